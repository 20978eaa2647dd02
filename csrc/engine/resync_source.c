/* SPDX-License-Identifier: Apache-2.0 */
/* The source of a resync: it answers the target's requests and clears blocks on the target's acks.
 *
 * Invariants: an answer stands on the data socket before any later write of the same blocks (its range is released only
 * when the answer is queued), so that it never overwrites newer data at the target; holes are judged, and digests
 * compared, while the range is held; a request is answered completely, in parts only where both run this software, and
 * then from its beginning to its end.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

static struct source_read *read_of(const struct peer_request *pr)
{
    const struct core *core = pr->volume->core;
    return &core->source_reads[pr - core->peer_entries];
}

static bool is_current(const struct peer_request *pr)
{
    const struct link *link = &pr->volume->core->link;
    return link->phase == LINK_UP && link->generation == pr->link_generation;
}

static bool is_source(const struct volume *v)
{
    return v->state.connection == C_SYNC_SOURCE || v->state.connection == C_PAUSED_SYNC_S;
}

static bool all_zero(const uint8_t *data, size_t bytes)
{
    return data[0] == 0 && memcmp(data, data + 1, bytes - 1) == 0;
}

static void finish(struct peer_request *pr)
{
    struct volume *v = pr->volume;
    v->stats.unacked--;
    volume_unlock_range(v, &pr->lock);
    peer_request_free(v->core, pr);
}

static void refuse(struct peer_request *pr)
{
    uint32_t at = read_of(pr)->answered;
    unsigned command = pr->volume->state.connection == C_AHEAD ? P_RS_CANCEL : P_NEG_RS_DREPLY;
    if (is_current(pr))
        sender_ack(pr->volume, command, pr->sector + at / SECTOR_BYTES, pr->block_id, pr->bytes - at);
    finish(pr);
}

/* ---- blocks that fail here ---- */

void resync_source_lost(struct volume *v, const struct disk_op *op, enum re_disk_op what)
{
    struct resync_source *s = &v->source;
    if (!is_source(v))
        return;
    uint64_t begin = op->offset / BLOCK_BYTES * BLOCK_BYTES;
    uint64_t end = (op->offset + op->length + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;
    v->stats.resync_lost_bits += (end - begin) / BLOCK_BYTES;
    if (what == RE_DISK_READ || s->failed_count > SOURCE_FAILED_WRITES)
        return;
    for (uint32_t i = 0; i < s->failed_count; i++)
        if (s->failed[i].begin <= begin && end <= s->failed[i].end)
            return;
    if (s->failed_count < SOURCE_FAILED_WRITES) {
        s->failed[s->failed_count].begin = begin;
        s->failed[s->failed_count].end = end;
    }
    if (++s->failed_count > SOURCE_FAILED_WRITES)
        v->stats.resync_lost_bits = v->bitmap->bits;    /* no answer of the target clears any block now */
}

bool resync_source_has_failed(const struct volume *v, uint64_t offset, uint64_t length)
{
    const struct resync_source *s = &v->source;
    if (v->state.connection == C_SYNC_TARGET || v->state.connection == C_PAUSED_SYNC_T)
        return false;
    for (uint32_t i = 0; i < s->failed_count && i < SOURCE_FAILED_WRITES; i++)
        if (s->failed[i].begin < offset + length && offset < s->failed[i].end)
            return true;
    return s->failed_count > SOURCE_FAILED_WRITES;
}

/* ---- answers ---- */

static void answer_data(struct peer_request *pr, uint32_t at, uint32_t bytes)
{
    pr->volume->stats.resync_payload_bytes += bytes;
    sender_reply_part(pr->volume, P_RS_DATA_REPLY, pr, at, bytes);
}

static void answer_zero(struct peer_request *pr, uint32_t at, uint32_t bytes)
{
    pr->volume->stats.resync_deallocated_bits += (bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
    sender_deallocated(pr->volume, pr, at, bytes);
}

static void answer_digest(struct peer_request *pr)
{
    struct volume *v = pr->volume;
    enum digest_alg alg = (enum digest_alg)v->core->link.options.csums_alg;
    uint8_t digest[DIGEST_BYTES_MAX];
    digest_compute(alg, pr->buf->data, pr->bytes, digest);
    /* The target may have made its digest before it got a write that has failed here: it is to have what is here. */
    if (!resync_source_has_failed(v, pr->sector * SECTOR_BYTES, pr->bytes) &&
        memcmp(digest, read_of(pr)->digest, digest_bytes(alg)) == 0) {
        uint64_t before = v->stats.resync_done_bits;
        volume_clear_dirty(v, pr->sector * SECTOR_BYTES, pr->bytes);
        v->stats.resync_equal_bits += v->stats.resync_done_bits - before;
        sender_ack(v, P_RS_IS_IN_SYNC, pr->sector, pr->block_id, pr->bytes);
        resync_source_check(v);
    } else if (link_peer_is_ours(v->core) && (v->core->link.options.features & FEATURE_THIN_RESYNC) &&
               all_zero(pr->buf->data, pr->bytes))
        answer_zero(pr, 0, pr->bytes);
    else
        answer_data(pr, 0, pr->bytes);
}

/* How many bytes from `at` on are zero, or not zero: runs of zeroes count from `least` on, and at the end. */
static uint32_t run_of(const uint8_t *data, uint32_t at, uint32_t end, uint32_t least, bool *zero)
{
    uint32_t next = at;
    while (next < end && all_zero(data + next, u64_min(BLOCK_BYTES, end - next)))
        next += BLOCK_BYTES;
    *zero = next - at >= least || next >= end;
    if (*zero)
        return (uint32_t)u64_min(next, end) - at;
    uint32_t zeroes = 0;
    for (; next < end && zeroes < least; next += BLOCK_BYTES)
        zeroes = all_zero(data + next, u64_min(BLOCK_BYTES, end - next)) ? zeroes + BLOCK_BYTES : 0;
    return zeroes >= least ? next - zeroes - at : (uint32_t)u64_min(next, end) - at;
}

static void answer_runs(struct peer_request *pr, uint32_t at, uint32_t bytes)
{
    struct source_read *read = read_of(pr);
    uint32_t least = read->sparse ? BLOCK_BYTES : RESYNC_ZERO_RUN_BYTES;
    for (uint32_t end = at + bytes; at < end;) {
        uint32_t run = run_of(pr->buf->data, at, end, least, &read->sparse);
        if (read->sparse)
            answer_zero(pr, at, run);
        else
            answer_data(pr, at, run);
        at += run;
    }
}

/* ---- reading ---- */

static void next_part(struct peer_request *pr);

/* The part that was to be read begins with a hole: how much of it is answered as zeroes.  Whole blocks only. */
static uint32_t hole_in(const struct peer_request *pr)
{
    const struct source_read *read = read_of(pr);
    uint32_t left = pr->bytes - read->answered;
    if (pr->op.extents_count == 0)
        return 0;
    if (read->extent.length >= left)
        return left;
    return link_peer_is_ours(pr->volume->core) ? (uint32_t)(read->extent.length / BLOCK_BYTES * BLOCK_BYTES) : 0;
}

static void submit(struct peer_request *pr, uint32_t bytes, bool looks);

static void answer_part(struct peer_request *pr)
{
    struct volume *v = pr->volume;
    struct source_read *read = read_of(pr);
    if (pr->by_digest)
        answer_digest(pr);
    else if (pr->thin && link_peer_is_ours(v->core))
        answer_runs(pr, read->answered, read->part);
    else if (pr->thin && all_zero(pr->buf->data, pr->bytes))
        answer_zero(pr, 0, pr->bytes);
    else
        answer_data(pr, 0, pr->bytes);
}

static void read_done(struct disk_op *op)
{
    struct peer_request *pr = op->owner;
    struct volume *v = pr->volume;
    struct source_read *read = read_of(pr);
    volume_disk_finished(v, op);
    v->look.usage.disk_ns += v->core->io->now_ns(v->core->io_ctx) - read->since_ns;
    if (op->error) {
        uint64_t unknown = v->stats.resync_lost_bits;
        volume_disk_error(v, op, RE_DISK_READ);
        v->stats.resync_lost_bits = unknown;    /* of these the target is told: it has not got them */
        refuse(pr);
        return;
    }
    if (v->state.connection == C_AHEAD) {
        refuse(pr);
        return;
    }
    if (!is_current(pr)) {
        finish(pr);
        return;
    }
    if (op->extents_count) {
        uint32_t hole = hole_in(pr);
        if (hole == 0) {    /* a block with a hole in it, or one that has to be answered as a whole */
            submit(pr, read->part, false);
            return;
        }
        read->part = hole;
        read->sparse = true;
        answer_zero(pr, read->answered, hole);
    } else {
        v->stats.resync_disk_bytes += op->length;
        answer_part(pr);
    }
    read->answered += read->part;
    if (read->answered < pr->bytes)
        next_part(pr);
    else
        finish(pr);
}

static void submit(struct peer_request *pr, uint32_t bytes, bool looks)
{
    struct volume *v = pr->volume;
    struct source_read *read = read_of(pr);
    read->part = bytes;
    read->since_ns = v->core->io->now_ns(v->core->io_ctx);
    pr->op = (struct disk_op){.kind = DISK_READ,
                              .fd = v->disk.data_fd,
                              .offset = pr->sector * SECTOR_BYTES + read->answered,
                              .length = bytes,
                              .data = pr->buf->data + read->answered,
                              .extents = &read->extent,
                              .extents_max = looks ? 1 : 0};
    volume_disk_submit(v, &pr->op, read_done, pr);
}

/* Among holes data comes in islands: little is read at once, until it turns out to be more. */
static void next_part(struct peer_request *pr)
{
    struct volume *v = pr->volume;
    struct source_read *read = read_of(pr);
    if (!volume_disk_usable(v) || v->state.disk != D_UP_TO_DATE || !is_source(v)) {
        refuse(pr);
        return;
    }
    uint64_t left = pr->bytes - read->answered;
    if (pr->thin && link_peer_is_ours(v->core))
        left = u64_min(left, read->sparse ? RESYNC_ISLAND_BYTES : RESYNC_REQUEST_BYTES_MAX);
    submit(pr, (uint32_t)left, pr->thin);
}

/* ---- requests ---- */

static void granted(struct range_item *item)
{
    next_part(container_of(item, struct peer_request, lock));
}

static void begin(struct peer_request *pr)
{
    if (volume_lock_range(pr->volume, &pr->lock, pr->sector * SECTOR_BYTES, pr->bytes, RANGE_SHARED, granted))
        next_part(pr);
}

/* As DRBD: a Secondary lets its own applications go first, one request in 0.1 s; to a Primary every one is urgent. */
static bool must_wait(struct volume *v)
{
    return v->state.peer_role != ROLE_PRIMARY && resync_application_first(v);
}

void resync_source_received(struct peer_request *pr, const uint8_t *digest)
{
    struct volume *v = pr->volume;
    struct source_read *read = read_of(pr);
    v->stats.unacked++;
    *read = (struct source_read){.sparse = pr->bytes > RESYNC_REQUEST_BYTES_MAX};
    if (digest)
        memcpy(read->digest, digest, digest_bytes((enum digest_alg)v->core->link.options.csums_alg));
    if (is_source(v) && (!list_empty(&v->source.throttled) || must_wait(v))) {
        list_add_tail(&v->source.throttled, &pr->link);
        if (!v->source.throttle_ns)
            v->source.throttle_ns = v->core->now_ns + RATE_TICK_MS * NS_PER_MS;
        return;
    }
    begin(pr);
}

void resync_source_tick(struct volume *v)
{
    struct resync_source *s = &v->source;
    if (!is_source(v) || v->core->link.phase != LINK_UP)
        return;
    resync_look_tick(v);
    v->stats.resync_rate_kib = speed_kib(&s->speed, v->core->now_ns, v->stats.resync_done_bits);
    if (!s->throttle_ns || v->core->now_ns < s->throttle_ns)
        return;
    s->throttle_ns = 0;
    for (struct list_head *link; (link = list_pop(&s->throttled));) {
        begin(list_entry(link, struct peer_request, link));
        if (!list_empty(&s->throttled) && must_wait(v)) {
            s->throttle_ns = v->core->now_ns + RATE_TICK_MS * NS_PER_MS;
            return;
        }
    }
}

uint64_t resync_source_deadline(const struct volume *v)
{
    if (!is_source(v) || v->core->link.phase != LINK_UP)
        return UINT64_MAX;
    uint64_t look = resync_look_deadline(v);
    return v->source.throttle_ns ? u64_min(v->source.throttle_ns, look) : look;
}

/* ---- begin, end, acks ---- */

void resync_source_start(struct volume *v)
{
    v->source_finished_reported = false;
    v->source.failed_count = 0;
    resync_counting_start(v);
    speed_reset(&v->source.speed, v->core->now_ns, 0);
}

/* Requests that still wait are not answered: the link is lost, or the target has ended as well. */
void resync_source_stop(struct volume *v)
{
    v->source.throttle_ns = 0;
    for (struct list_head *link; (link = list_pop(&v->source.throttled));) {
        struct peer_request *pr = list_entry(link, struct peer_request, link);
        refuse(pr);
    }
    resync_look_stop(v);
    if (v->stats.resync_started_ns && !v->stats.resync_finished_ns)
        v->stats.resync_finished_ns = v->core->now_ns;
}

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
    if (congestion_marks_again(v, sector * SECTOR_BYTES, bytes) || !is_source(v))
        return;
    /* It may have written that before it got the write that failed here: the next resync sends it again. */
    if (resync_source_has_failed(v, sector * SECTOR_BYTES, bytes))
        return;
    volume_clear_dirty(v, sector * SECTOR_BYTES, bytes);
    resync_source_check(v);
}
