/* SPDX-License-Identifier: Apache-2.0 */
/* The target of a resync: it asks for dirty blocks at its own pace until none is left.
 *
 * Invariants of the three files resync_target.c, resync_ask.c, resync_answer.c: a request has its place in the range
 * lock from before it is sent until its data is on disk, so no write of the application can be overwritten by it; it
 * steps behind writes of the peer until its data arrives, since the peer may be able to read the blocks only after we
 * acknowledged them, and what it sends is as new as they are; a bit is cleared, and the block acknowledged, only after
 * a flush has made it stable (differs: DRBD acknowledges before, decision 0003); blocks that failed stay dirty.
 */
#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

enum { DATA_TX_BYTES_MAX = 1 << 20 };   /* the socket is behind: ask later */

void resync_request_release(struct resync_request *rq)
{
    struct volume *v = rq->volume;
    volume_unlock_range(v, &rq->lock);
    if (rq->buf)
        buf_put(rq->buf);
    rq->buf = NULL;
    rq->stage = RESYNC_FREE;
    list_del(&rq->link);
    list_add(&v->core->resync_free, &rq->link);
}

bool resync_request_is_current(const struct resync_request *rq)
{
    const struct volume *v = rq->volume;
    return rq->run == v->target.run && v->core->link.phase == LINK_UP &&
           rq->link_generation == v->core->link.generation;
}

void resync_request_forget(struct resync_request *rq)
{
    struct resync_target *t = &rq->volume->target;
    if (rq->run == t->run) {
        t->in_flight--;
        if (rq->stage == RESYNC_ASKED || rq->stage == RESYNC_RECEIVING)
            t->in_flight_bytes -= rq->bytes;
        else if (rq->stage == RESYNC_READING || rq->stage == RESYNC_RECEIVED || rq->stage == RESYNC_WRITING)
            t->unwritten_bytes -= rq->bytes;
    }
    resync_request_release(rq);
}

/* ---- begin and end of a run ---- */

void resync_target_start(struct volume *v)
{
    struct resync_target *t = &v->target;
    t->run++;
    t->cursor_bit = 0;
    t->finished_reported = false;
    t->failed_bits = 0;
    t->made_progress = false;
    t->again = false;
    t->in_flight_bytes = 0;
    t->unwritten_bytes = 0;
    t->in_flight = 0;
    if (t->link_generation != v->core->link.generation)
        t->unanswered_bytes = 0;
    t->link_generation = v->core->link.generation;
    t->owed_bytes = t->unanswered_bytes;
    t->thin_bytes = RESYNC_REQUEST_BYTES_MAX;
    t->flush_first = v->resync_options.use_csums && v->core->link.options.csums_alg;
    rate_reset(&t->rate, &v->resync_options);
    t->rate_tick_ns = v->core->now_ns;
    t->allowed_sectors = 0;
    t->arrived_sectors = 0;
    speed_reset(&t->speed, v->core->now_ns, 0);
    resync_counting_start(v);
}

/* The resync is over or interrupted: what is at the disk finishes by itself, the rest is forgotten (still dirty). */
void resync_target_stop(struct volume *v)
{
    struct resync_target *t = &v->target;
    t->run++;
    list_for_each_safe(pos, following, &t->requests)
    {
        struct resync_request *rq = list_entry(pos, struct resync_request, link);
        if (rq->stage != RESYNC_WRITING && rq->stage != RESYNC_RECEIVING && rq->stage != RESYNC_READING)
            resync_request_release(rq);
    }
    list_for_each_safe(pos, following, &t->written)
        resync_request_release(list_entry(pos, struct resync_request, link));
    t->in_flight = 0;
    t->in_flight_bytes = 0;
    t->unwritten_bytes = 0;
    if (v->core->link.phase != LINK_UP)
        t->unanswered_bytes = 0;
    resync_look_stop(v);
    turns_reset(v);
    if (v->stats.resync_started_ns && !v->stats.resync_finished_ns)
        v->stats.resync_finished_ns = v->core->now_ns;
}

void resync_target_resumed(struct volume *v)
{
    struct resync_target *t = &v->target;
    t->finished_reported = false;   /* if it has come to its end in the pause, that is said now */
    t->rate_tick_ns = v->core->now_ns;
    speed_reset(&t->speed, v->core->now_ns, v->stats.resync_done_bits);
    resync_look_start(v);
}

static void check_finished(struct volume *v)
{
    struct resync_target *t = &v->target;
    if (t->in_flight || t->finished_reported)
        return;
    if (bitmap_next_set(v->bitmap, t->cursor_bit) != UINT64_MAX)
        return;
    /* Bits came up behind the cursor, or failed, or are to be asked for again: another round. */
    if (v->bitmap->count > 0 && (t->made_progress || t->again)) {
        /* Parts of a request that was given up at a promotion, read before what is written here now: not to be taken
         * for the answer to another request for the same blocks. */
        if (t->unanswered_bytes && link_peer_is_ours(v->core))
            return;
        if (!t->made_progress)
            t->allowed_sectors = 0;     /* at the next tick, not at once */
        t->cursor_bit = 0;
        t->made_progress = false;
        t->again = false;
        t->failed_bits = 0;
        return;
    }
    t->finished_reported = true;
    v->stats.resync_failed_bits = v->bitmap->count;
    core_emit(v->core,
              &(struct re_event){
                  .type = RE_EV_RESYNC_FINISHED, .volume = v->number, .stream = -1, .value = v->bitmap->count},
              NULL, 0);
}

/* ---- pace ---- */

static void rate_step(struct volume *v)
{
    struct resync_target *t = &v->target;
    uint64_t now = v->core->now_ns;
    if (now < t->rate_tick_ns)
        return;
    t->rate_tick_ns = now + RATE_TICK_MS * NS_PER_MS;
    v->stats.resync_rate_kib = speed_kib(&t->speed, now, v->stats.resync_done_bits);
    t->allowed_sectors = rate_tick(&t->rate, &v->resync_options, (int64_t)t->arrived_sectors,
                                   (int64_t)(t->in_flight_bytes / SECTOR_BYTES));
    t->arrived_sectors = 0;
    v->look.waits = WAITS_FOR_ANSWERS;
    if (resync_application_first(v)) {
        t->allowed_sectors = 0;
        v->look.waits = WAITS_FOR_APPLICATION;
    }
}

static void ask_more(struct volume *v)
{
    struct resync_target *t = &v->target;
    const struct link *link = &v->core->link;
    uint64_t most = (uint64_t)link->options.max_buffers * BLOCK_BYTES / 2;
    bool wants = t->allowed_sectors > 0 && bitmap_next_set(v->bitmap, t->cursor_bit) != UINT64_MAX;
    bool any = turns_ask(v, wants);
    while (any && t->allowed_sectors > 0 && t->in_flight_bytes + t->unwritten_bytes < most &&
           stream_tx_pending(&link->data->stream) < DATA_TX_BYTES_MAX)
        any = resync_ask_next(v);
    if (t->allowed_sectors > 0)
        v->look.waits = any && t->in_flight_bytes + t->unwritten_bytes >= most ? WAITS_FOR_BUFFERS : WAITS_FOR_ANSWERS;
    else if (v->look.waits != WAITS_FOR_APPLICATION)
        v->look.waits = WAITS_FOR_RATE;
}

void resync_target_pump(struct volume *v)
{
    struct resync_target *t = &v->target;
    if (!v->bitmap || v->core->link.phase != LINK_UP || !volume_disk_usable(v))
        return;
    resync_look_tick(v);
    if ((!list_empty(&t->written) || t->flush_first) && !t->flush_in_flight)
        resync_answer_flush(v);
    if (v->state.connection == C_SYNC_TARGET && !t->flush_first) {
        rate_step(v);
        ask_more(v);
        check_finished(v);
    }
    turns_check(v);
}

uint64_t resync_target_deadline(const struct volume *v)
{
    const struct resync_target *t = &v->target;
    if (v->state.connection != C_SYNC_TARGET || t->finished_reported || t->flush_first ||
        v->core->link.phase != LINK_UP || !volume_disk_usable(v))
        return UINT64_MAX;
    return t->rate_tick_ns;
}
