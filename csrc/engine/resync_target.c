/* SPDX-License-Identifier: Apache-2.0 */
/* Resync, both ends: the target asks for dirty blocks at its own pace, the source clears them on the target's acks.
 *
 * Invariants: a request has its place in the range lock from before it is sent until its data is on disk, so no write
 * of the application can be overwritten by it; it steps behind writes of the peer until its data arrives, since the
 * peer may be able to read the blocks only after we acknowledged them, and what it sends is as new as they are; a bit
 * is cleared, and the block acknowledged, only after a flush has made it stable (differs: DRBD acknowledges before,
 * decision 0003); blocks that failed stay dirty.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

enum { RATE_TICK_MS = 100, BITS_PER_REQUEST_MAX = RESYNC_REQUEST_BYTES_MAX / BLOCK_BYTES };

static void request_release(struct resync_request *rq)
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

static bool is_current(const struct resync_request *rq)
{
    const struct volume *v = rq->volume;
    return rq->run == v->target.run && v->core->link.phase == LINK_UP &&
           rq->link_generation == v->core->link.generation;
}

void resync_target_start(struct volume *v)
{
    struct resync_target *t = &v->target;
    t->run++;
    t->cursor_bit = 0;
    t->finished_reported = false;
    t->failed_bits = 0;
    t->made_progress = false;
    t->in_flight_bytes = 0;
    t->in_flight = 0;
    rate_reset(&t->rate, &v->resync_options);
    t->rate_tick_ns = v->core->now_ns;
    t->allowed_sectors = 0;
    t->arrived_sectors = 0;
    v->stats.resync_total_bits = v->bitmap ? v->bitmap->count : 0;
    v->stats.resync_done_bits = 0;
    v->stats.resync_failed_bits = 0;
    v->stats.resync_started_ns = v->core->now_ns;
    v->stats.resync_finished_ns = 0;
    v->stats.resync_rate_kib = 0;
    t->mark_ns = v->core->now_ns;
    t->mark_done_bits = 0;
}

/* The resync is over or interrupted: what is being written finishes by itself, the rest is forgotten (still dirty). */
void resync_target_stop(struct volume *v)
{
    struct resync_target *t = &v->target;
    t->run++;
    list_for_each_safe(pos, following, &t->requests)
    {
        struct resync_request *rq = list_entry(pos, struct resync_request, link);
        if (rq->stage != RESYNC_WRITING && rq->stage != RESYNC_RECEIVING)
            request_release(rq);
    }
    list_for_each_safe(pos, following, &t->written)
        request_release(list_entry(pos, struct resync_request, link));
    t->in_flight = 0;
    t->in_flight_bytes = 0;
    if (v->stats.resync_started_ns && !v->stats.resync_finished_ns)
        v->stats.resync_finished_ns = v->core->now_ns;
}

/* ---- asking ---- */

static void forget(struct resync_request *rq)
{
    struct resync_target *t = &rq->volume->target;
    if (rq->run == t->run) {
        t->in_flight--;
        if (rq->stage == RESYNC_ASKED || rq->stage == RESYNC_RECEIVING)
            t->in_flight_bytes -= rq->bytes;
    }
    request_release(rq);
}

static void ask(struct resync_request *rq)
{
    struct volume *v = rq->volume;
    uint64_t first = rq->offset / BLOCK_BYTES, last = (rq->offset + rq->bytes - 1) / BLOCK_BYTES;
    if (!is_current(rq) || !bitmap_any_in(v->bitmap, first, last)) {
        forget(rq);     /* a write of the application has covered it meanwhile */
        return;
    }
    rq->stage = RESYNC_ASKED;
    v->target.in_flight_bytes += rq->bytes;
    sender_resync_request(v, rq->offset, rq->bytes);
}

static void write_start(struct resync_request *rq);

static void lock_granted(struct range_item *item)
{
    struct resync_request *rq = container_of(item, struct resync_request, lock);
    if (rq->stage == RESYNC_LOCKING)
        ask(rq);
    else if (rq->stage == RESYNC_RECEIVED)
        write_start(rq);
}

void resync_target_yield(struct volume *v, const struct range *write)
{
    struct range *next;
    for (struct range *range = range_first_overlap(&v->ranges, write->begin, write->end); range; range = next) {
        next = range_next_overlap(range, write->begin, write->end);
        struct range_item *item = container_of(range, struct range_item, range);
        if (item->granted != lock_granted || range->ticket > write->ticket)
            continue;
        struct resync_request *rq = container_of(item, struct resync_request, lock);
        if (rq->stage != RESYNC_LOCKING && rq->stage != RESYNC_ASKED)
            continue;
        volume_unlock_range(v, &rq->lock);
        bool held = volume_lock_range(v, &rq->lock, rq->offset, rq->bytes, true, lock_granted);
        CHECK(!held);   /* the write is before it now */
    }
}

/* The run of dirty bits at `bit` that one request may cover: aligned to its own size, within a 16 MiB extent. */
static uint64_t run_length(const struct volume *v, uint64_t bit)
{
    /* An old peer's packets carry less: 32 KiB with the short header, 128 KiB before version 100. */
    uint32_t version = v->core->link.options.version;
    uint64_t bits_max = version < 95 ? 8 : version < 100 ? 32 : BITS_PER_REQUEST_MAX;
    uint64_t most = bit ? bit & (~bit + 1) : bits_max;
    uint64_t end = u64_min(bit + u64_min(most, bits_max), v->bitmap->bits);
    uint64_t next_clear = bitmap_next_clear(v->bitmap, bit);
    return u64_min(end, next_clear) - bit;
}

static bool ask_next(struct volume *v)
{
    struct resync_target *t = &v->target;
    struct core *core = v->core;
    uint64_t bit = bitmap_next_set(v->bitmap, t->cursor_bit);
    if (bit == UINT64_MAX)
        return false;
    struct list_head *link = list_pop(&core->resync_free);
    if (!link)
        return false;
    uint64_t bits = run_length(v, bit);
    uint64_t offset = bit * BLOCK_BYTES;
    struct resync_request *rq = list_entry(link, struct resync_request, link);
    *rq = (struct resync_request){.volume = v,
                                  .stage = RESYNC_LOCKING,
                                  .link_generation = core->link.generation,
                                  .run = t->run,
                                  .offset = offset,
                                  .bytes = (uint32_t)u64_min(bits * BLOCK_BYTES, v->size_bytes - offset)};
    list_init(&rq->link);
    list_init(&rq->op.link);
    list_init(&rq->lock.range.ready);
    list_add_tail(&t->requests, &rq->link);
    t->in_flight++;
    t->cursor_bit = bit + bits;
    t->allowed_sectors -= rq->bytes / SECTOR_BYTES;
    if (volume_lock_range(v, &rq->lock, rq->offset, rq->bytes, true, lock_granted))
        ask(rq);
    return true;
}

/* Application I/O wants the disk and resync is above c-min-rate: step back. */
static bool application_first(struct volume *v)
{
    struct resync_target *t = &v->target;
    uint64_t seen = v->stats.writes + v->stats.reads + v->stats.peer_writes;
    bool busy = seen != t->application_seen;
    t->application_seen = seen;
    return busy && v->resync_options.min_rate_kib && v->stats.resync_rate_kib > v->resync_options.min_rate_kib;
}

static void rate_step(struct volume *v)
{
    struct resync_target *t = &v->target;
    uint64_t now = v->core->now_ns;
    if (now < t->rate_tick_ns)
        return;
    t->rate_tick_ns = now + RATE_TICK_MS * NS_PER_MS;
    if (now - t->mark_ns >= 1000 * NS_PER_MS) {
        uint64_t done = v->stats.resync_done_bits - t->mark_done_bits;
        v->stats.resync_rate_kib = done * 4 * 1000 * NS_PER_MS / (now - t->mark_ns);
        t->mark_ns = now;
        t->mark_done_bits = v->stats.resync_done_bits;
    }
    int64_t sectors = rate_tick(&t->rate, &v->resync_options, (int64_t)t->arrived_sectors,
                                (int64_t)(t->in_flight_bytes / SECTOR_BYTES));
    t->arrived_sectors = 0;
    t->allowed_sectors = sectors;
    v->stats.resync_limit = RE_LIMIT_RATE;
    if (application_first(v)) {
        t->allowed_sectors = 0;
        v->stats.resync_limit = RE_LIMIT_APPLICATION;
    }
}

static void start_flush(struct volume *v);

static void check_finished(struct volume *v)
{
    struct resync_target *t = &v->target;
    if (t->in_flight || t->finished_reported)
        return;
    if (bitmap_next_set(v->bitmap, t->cursor_bit) != UINT64_MAX)
        return;
    if (v->bitmap->count > 0 && t->made_progress) {     /* bits came up behind the cursor, or failed: another round */
        t->cursor_bit = 0;
        t->made_progress = false;
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

void resync_target_pump(struct volume *v)
{
    struct resync_target *t = &v->target;
    struct link *link = &v->core->link;
    if (!v->bitmap || link->phase != LINK_UP || !volume_disk_usable(v))
        return;
    if (!list_empty(&t->written) && !t->flush_in_flight)
        start_flush(v);
    if (v->state.connection == C_PAUSED_SYNC_T)
        return;
    rate_step(v);
    uint64_t most = (uint64_t)link->options.max_buffers * BLOCK_BYTES / 2;
    while (t->allowed_sectors > 0 && t->in_flight_bytes < most && stream_tx_pending(&link->data->stream) < (1u << 20))
        if (!ask_next(v))
            break;
    check_finished(v);
}

uint64_t resync_target_deadline(const struct volume *v)
{
    if (v->state.connection != C_SYNC_TARGET || v->target.finished_reported || v->core->link.phase != LINK_UP ||
        !volume_disk_usable(v))
        return UINT64_MAX;
    return v->target.rate_tick_ns;
}

/* ---- answers ---- */

struct resync_request *resync_target_find(struct volume *v, uint64_t sector, uint32_t bytes)
{
    uint64_t offset = sector * SECTOR_BYTES;
    for (struct range *range = range_first_overlap(&v->ranges, offset, offset + bytes); range;
         range = range_next_overlap(range, offset, offset + bytes)) {
        struct range_item *item = container_of(range, struct range_item, range);
        if (item->granted != lock_granted)
            continue;
        struct resync_request *rq = container_of(item, struct resync_request, lock);
        if (rq->stage == RESYNC_ASKED && rq->offset == offset && rq->bytes == bytes)
            return rq;
    }
    return NULL;
}

static void write_done(struct disk_op *op)
{
    struct resync_request *rq = op->owner;
    struct volume *v = rq->volume;
    volume_disk_finished(v, op);
    volume_unlock_range(v, &rq->lock);
    if (op->error) {
        volume_disk_error(v, op, RE_DISK_WRITE);
        if (is_current(rq))
            sender_ack(v, P_NEG_ACK, rq->offset / SECTOR_BYTES, ID_SYNCER, rq->bytes);
        forget(rq);
        return;
    }
    if (!is_current(rq)) {
        request_release(rq);
        return;
    }
    buf_put(rq->buf);
    rq->buf = NULL;
    rq->stage = RESYNC_WRITTEN;
    list_del(&rq->link);
    list_add_tail(&v->target.written, &rq->link);
}

void resync_target_data(struct resync_request *rq)
{
    struct volume *v = rq->volume;
    v->stats.received_bytes += rq->bytes;
    if (!is_current(rq)) {
        request_release(rq);
        return;
    }
    v->target.in_flight_bytes -= rq->bytes;
    v->target.arrived_sectors += rq->bytes / SECTOR_BYTES;
    rq->stage = RESYNC_RECEIVED;
    if (rq->lock.range.held)
        write_start(rq);
}

static void write_start(struct resync_request *rq)
{
    struct volume *v = rq->volume;
    rq->stage = RESYNC_WRITING;
    if (!volume_disk_usable(v)) {
        forget(rq);
        return;
    }
    rq->op = (struct disk_op){.kind = DISK_WRITE,
                              .fd = v->disk.data_fd,
                              .offset = rq->offset,
                              .length = rq->bytes,
                              .data = rq->buf->data};
    volume_disk_submit(v, &rq->op, write_done, rq);
}

static void flush_done(struct disk_op *op)
{
    struct volume *v = op->owner;
    struct resync_target *t = &v->target;
    volume_disk_finished(v, op);
    t->flush_in_flight = false;
    if (op->error)
        volume_disk_error(v, op, RE_DISK_FLUSH);
    for (struct list_head *link; (link = list_first(&t->flushing));) {
        struct resync_request *rq = list_entry(link, struct resync_request, link);
        if (!op->error && is_current(rq) && volume_disk_usable(v)) {
            /* A write of the application that came after ours was acknowledged and cleared on its own. */
            volume_clear_dirty(v, rq->offset, rq->bytes);
            t->made_progress = true;
            sender_ack(v, P_RS_WRITE_ACK, rq->offset / SECTOR_BYTES, ID_SYNCER, rq->bytes);
        }
        forget(rq);
    }
}

static void start_flush(struct volume *v)
{
    struct resync_target *t = &v->target;
    list_splice_tail(&t->flushing, &t->written);
    t->flush_in_flight = true;
    t->flush_op = (struct disk_op){.kind = DISK_FLUSH,
                                   .flags = v->disk.flags & RE_ATTACH_NO_DISK_FLUSHES ? DISK_NO_SYNC : 0,
                                   .fd = v->disk.data_fd};
    volume_disk_submit(v, &t->flush_op, flush_done, v);
}

void resync_target_failed(struct volume *v, uint64_t sector, uint32_t bytes)
{
    struct resync_request *rq = resync_target_find(v, sector, bytes);
    if (!rq)
        return;
    v->target.failed_bits += (bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
    forget(rq);
}

void resync_target_again(struct volume *v, uint64_t sector, uint32_t bytes)
{
    struct resync_request *rq = resync_target_find(v, sector, bytes);
    if (rq)
        forget(rq);     /* still dirty: the next round asks again */
}

/* ---- source ---- */

void resync_source_check(struct volume *v)
{
    if (v->state.connection != C_SYNC_SOURCE || !v->bitmap || v->source_finished_reported)
        return;
    if (v->bitmap->count > 0)
        return;
    v->source_finished_reported = true;
    core_emit(v->core,
              &(struct re_event){.type = RE_EV_RESYNC_FINISHED, .volume = v->number, .stream = -1}, NULL, 0);
}

void resync_source_acked(struct volume *v, uint64_t sector, uint32_t bytes)
{
    bool source = v->state.connection == C_SYNC_SOURCE || v->state.connection == C_PAUSED_SYNC_S;
    if (!source)
        return;
    volume_clear_dirty(v, sector * SECTOR_BYTES, bytes);
    resync_source_check(v);
}
