/* SPDX-License-Identifier: Apache-2.0 */
/* Online verify, what both ends have in common: entries, locks, reads, differences, the life of a run.
 *
 * No false alarms while applications write: the source holds its range from the request on and steps behind writes of
 * the peer until the digests are here; the target holds its range from before it reads until the verdict comes; both
 * wait until the peer has confirmed earlier writes (in protocols A and B).  So both read the same writes.
 */
#include <stdlib.h>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

/* Less application I/O in 0.1 s than this is none. */
#define APPLICATION_BYTES_MIN (64u * SECTOR_BYTES)

/* ---- entries ---- */

bool verify_init(struct core *core)
{
    list_init(&core->verify_question_free);
    list_init(&core->verify_answer_free);
    core->verify_question_entries = calloc(VERIFY_RUNS_MAX, sizeof(*core->verify_question_entries));
    core->verify_answer_entries = calloc(VERIFY_ANSWERS_MAX, sizeof(*core->verify_answer_entries));
    if (!core->verify_question_entries || !core->verify_answer_entries)
        return false;
    for (int i = 0; i < VERIFY_RUNS_MAX; i++)
        list_add_tail(&core->verify_question_free, &core->verify_question_entries[i].b.link);
    for (int i = 0; i < VERIFY_ANSWERS_MAX; i++)
        list_add_tail(&core->verify_answer_free, &core->verify_answer_entries[i].link);
    return true;
}

void verify_destroy(struct core *core)
{
    free(core->verify_question_entries);
    free(core->verify_answer_entries);
}

struct verify_blocks *verify_take(struct volume *v, bool is_answer, uint64_t offset, uint32_t bytes)
{
    struct core *core = v->core;
    struct list_head *link = list_pop(is_answer ? &core->verify_answer_free : &core->verify_question_free);
    if (!link)
        return NULL;
    struct verify_blocks *b = list_entry(link, struct verify_blocks, link);
    *b = (struct verify_blocks){.volume = v,
                                .stage = VERIFY_LOCKING,
                                .link_generation = core->link.generation,
                                .run = v->verify.run,
                                .offset = offset,
                                .bytes = bytes,
                                .is_answer = is_answer};
    b->count = (bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
    b->missing = b->unequal = (1u << b->count) - 1;
    list_init(&b->link);
    list_init(&b->op.link);
    list_init(&b->lock.range.ready);
    list_add_tail(is_answer ? &v->verify.answers : &v->verify.questions, &b->link);
    return b;
}

static bool is_stalled(const struct verify_blocks *b)
{
    return b->stage == VERIFY_SETTLING || b->stage == VERIFY_ASIDE || b->stage == VERIFY_BUFFER;
}

void verify_release(struct verify_blocks *b)
{
    struct volume *v = b->volume;
    struct verify *y = &v->verify;
    if (is_stalled(b))
        y->stalled--;
    if (y->last && &y->last->b == b)
        y->last = NULL;
    if (y->open == b)
        y->open = NULL;
    volume_unlock_range(v, &b->lock);
    if (b->buf)
        buf_put(b->buf);
    b->buf = NULL;
    b->stage = VERIFY_FREE;
    list_del(&b->link);
    list_add(b->is_answer ? &v->core->verify_answer_free : &v->core->verify_question_free, &b->link);
}

bool verify_is_current(const struct verify_blocks *b)
{
    const struct volume *v = b->volume;
    return b->run == v->verify.run && v->core->link.phase == LINK_UP &&
           b->link_generation == v->core->link.generation;
}

uint32_t verify_block_bytes(const struct verify_blocks *b, uint32_t block)
{
    return (uint32_t)u64_min(BLOCK_BYTES, b->bytes - block * BLOCK_BYTES);
}

/* ---- locks ---- */

static void lock_granted(struct range_item *item)
{
    struct verify_blocks *b = container_of(item, struct verify_blocks, lock);
    if (b->stage == VERIFY_LOCKING)
        verify_settle(b);
    else if (b->stage == VERIFY_RECEIVED)
        verify_read(b);
}

void verify_lock(struct verify_blocks *b)
{
    b->stage = VERIFY_LOCKING;
    if (volume_lock_range(b->volume, &b->lock, b->offset, b->bytes, RANGE_SHARED, lock_granted))
        verify_settle(b);
}

struct verify_blocks *verify_find(struct volume *v, uint64_t offset, bool is_answer)
{
    uint64_t end = offset + SECTOR_BYTES;
    for (struct range *r = range_first_overlap(&v->ranges, offset, end); r; r = range_next_overlap(r, offset, end)) {
        struct range_item *item = container_of(r, struct range_item, range);
        if (item->granted != lock_granted)
            continue;
        struct verify_blocks *b = container_of(item, struct verify_blocks, lock);
        if (b->is_answer == is_answer)
            return b;
    }
    return NULL;
}

/* The peer may only be able to go on after we acknowledged this write of it: our digest, or its verdict, may wait for
 * that (of two Primaries). */
void verify_yield(struct volume *v, const struct range *write)
{
    struct range *next;
    for (struct range *r = range_first_overlap(&v->ranges, write->begin, write->end); r; r = next) {
        next = range_next_overlap(r, write->begin, write->end);
        struct range_item *item = container_of(r, struct range_item, range);
        if (item->granted != lock_granted || r->ticket > write->ticket)
            continue;
        struct verify_blocks *b = container_of(item, struct verify_blocks, lock);
        if (b->is_answer && b->stage == VERIFY_ANSWERED) {
            verify_release(b);
            continue;
        }
        b->gives_way = true;
        if (b->stage != VERIFY_LOCKING && (b->is_answer || b->stage != VERIFY_ASKED))
            continue;
        volume_unlock_range(v, &b->lock);
        bool held = volume_lock_range(v, &b->lock, b->offset, b->bytes, RANGE_SHARED, lock_granted);
        if (!b->is_answer)      /* the digest that comes is older than they are */
            conflict_stay_behind(v, &b->lock.range);
        CHECK(!held);   /* the write is before it now */
    }
}

static void stall(struct verify_blocks *b, enum verify_stage stage)
{
    if (!is_stalled(b))
        b->volume->verify.stalled++;
    b->stage = (uint8_t)stage;
}

static void unstall(struct verify_blocks *b, enum verify_stage stage)
{
    if (is_stalled(b))
        b->volume->verify.stalled--;
    b->stage = (uint8_t)stage;
}

static void settled(struct verify_blocks *b)
{
    unstall(b, VERIFY_ASKED);
    if (!verify_is_current(b))
        verify_release(b);
    else if (b->is_answer)
        verify_read(b);
    else
        verify_ask(b);
}

/* The lock is ours; in protocols A and B earlier writes may be finished here and still on their way to the peer.  One
 * that the peer has dropped has to go first; its place may be behind us. */
void verify_settle(struct verify_blocks *b)
{
    struct core *core = b->volume->core;
    if (conflict_dropped_in(b->volume, b->offset, b->bytes) && core->link.phase == LINK_UP) {
        volume_unlock_range(b->volume, &b->lock);
        stall(b, VERIFY_ASIDE);
        return;
    }
    struct list_head *last = list_last(&core->link.log.epochs);
    if (core->link.options.protocol == 3 || !last || core->link.phase != LINK_UP) {
        settled(b);
        return;
    }
    sender_close_epoch(core, NULL);
    b->epoch = list_entry(last, struct epoch, link)->serial;
    stall(b, VERIFY_SETTLING);
}

/* ---- reads ---- */

static void read_finished(struct verify_blocks *b)
{
    if (!verify_is_current(b))
        verify_release(b);
    else if (b->is_answer)
        verify_answer(b);
    else
        verify_compare(b);
}

static void read_done(struct disk_op *op);

static void read_submit(struct verify_blocks *b)
{
    struct volume *v = b->volume;
    uint32_t begin = b->singly ? b->block * BLOCK_BYTES : 0;
    b->op = (struct disk_op){.kind = DISK_READ,
                             .fd = v->disk.data_fd,
                             .offset = b->offset + begin,
                             .length = b->singly ? verify_block_bytes(b, b->block) : b->bytes,
                             .data = b->buf->data + begin};
    volume_disk_submit(v, &b->op, read_done, b);
}

static void read_done(struct disk_op *op)
{
    struct verify_blocks *b = op->owner;
    struct volume *v = b->volume;
    volume_disk_finished(v, op);
    if (op->error)
        volume_disk_error(v, op, RE_DISK_READ);
    if (!b->singly && !op->error) {
        read_finished(b);
        return;
    }
    if (b->singly) {
        b->unreadable |= op->error ? 1u << b->block : 0;
        b->block++;
    }
    b->singly = true;   /* which of the blocks is it? */
    if (b->block < b->count && verify_is_current(b) && volume_disk_usable(v)) {
        read_submit(b);
        return;
    }
    for (; b->block < b->count; b->block++)
        b->unreadable |= 1u << b->block;
    read_finished(b);
}

void verify_read(struct verify_blocks *b)
{
    struct volume *v = b->volume;
    if (b->is_answer && (!volume_disk_usable(v) || v->state.disk != D_UP_TO_DATE)) {
        unstall(b, VERIFY_READING);
        verify_refuse(b);
        return;
    }
    b->buf = volume_disk_usable(v) ? buf_take(&v->core->peer_buffers, b->bytes) : NULL;
    if (!b->buf) {
        stall(b, VERIFY_BUFFER);
        return;
    }
    unstall(b, VERIFY_READING);
    b->singly = false;
    b->block = 0;
    b->unreadable = 0;
    read_submit(b);
}

static void go_on(struct list_head *list)
{
    list_for_each_safe(pos, following, list)
    {
        struct verify_blocks *b = list_entry(pos, struct verify_blocks, link);
        struct epoch *oldest = transfer_log_oldest(&b->volume->core->link.log);
        if (b->stage == VERIFY_SETTLING && (!oldest || oldest->serial > b->epoch))
            settled(b);
        else if (b->stage == VERIFY_ASIDE && !conflict_dropped_in(b->volume, b->offset, b->bytes)) {
            unstall(b, VERIFY_LOCKING);
            verify_lock(b);
        } else if (b->stage == VERIFY_BUFFER)
            verify_read(b);
    }
}

void verify_digests(const struct verify_blocks *b, enum digest_alg alg, uint8_t out[][DIGEST_BYTES_MAX])
{
    uint32_t whole = b->bytes / BLOCK_BYTES;
    digest_compute_blocks(alg, b->buf->data, whole, BLOCK_BYTES, out);
    if (whole < b->count)
        digest_compute(alg, b->buf->data + whole * BLOCK_BYTES, verify_block_bytes(b, whole), out[whole]);
}

/* ---- differences ---- */

static void report_range(struct volume *v)
{
    struct verify *y = &v->verify;
    if (y->range_begin == y->range_end)
        return;
    if (y->ranges < VERIFY_RANGES_MAX)
        core_emit(v->core,
                  &(struct re_event){.type = RE_EV_VERIFY_RANGE,
                                     .volume = v->number,
                                     .stream = -1,
                                     .value = y->range_begin,
                                     .cookie = y->range_end - y->range_begin},
                  NULL, 0);
    y->ranges++;
    y->range_begin = y->range_end = 0;
}

void verify_differs(struct volume *v, uint64_t offset, uint32_t bytes)
{
    struct verify *y = &v->verify;
    uint64_t begin = offset / SECTOR_BYTES, end = begin + bytes / SECTOR_BYTES;
    volume_set_dirty(v, offset, bytes);
    v->stats.verify_differing_bits++;
    if (y->range_begin != y->range_end && begin == y->range_end) {
        y->range_end = end;
        return;
    }
    report_range(v);
    y->range_begin = begin;
    y->range_end = end;
}

void verify_finished(struct volume *v)
{
    struct verify *y = &v->verify;
    if (y->finished_reported)
        return;
    y->finished_reported = true;
    report_range(v);
    v->stats.verify_finished_ns = v->core->now_ns;
    core_emit(v->core,
              &(struct re_event){.type = RE_EV_VERIFY_FINISHED,
                                 .volume = v->number,
                                 .stream = -1,
                                 .value = v->stats.verify_differing_bits},
              NULL, 0);
}

/* ---- a run ---- */

static uint64_t blocks_in(uint64_t begin, uint64_t end)
{
    return (end - begin + BLOCK_BYTES - 1) / BLOCK_BYTES;
}

void verify_order(struct volume *v, const struct re_verify *order)
{
    struct verify *y = &v->verify;
    uint64_t end = order->stop_sector < UINT64_MAX / SECTOR_BYTES ? order->stop_sector * SECTOR_BYTES : UINT64_MAX;
    y->begin = order->start_sector * SECTOR_BYTES / BLOCK_BYTES * BLOCK_BYTES;
    y->end = u64_min((end + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES, v->size_bytes);
    if (end == UINT64_MAX)
        y->end = v->size_bytes;
}

void verify_count_from(struct volume *v, uint64_t begin, uint64_t end)
{
    v->stats.verify_total_bits = end > begin ? blocks_in(begin, end) : 0;
    v->stats.verify_done_bits = 0;
    v->stats.verify_position = begin / SECTOR_BYTES;
}

void verify_begin(struct volume *v)
{
    struct verify *y = &v->verify;
    y->run++;
    y->cursor = y->begin;
    y->counting = false;
    y->has_asked = false;
    y->finished_reported = false;
    y->range_begin = y->range_end = 0;
    y->ranges = 0;
    y->in_flight_bytes = 0;
    rate_reset(&y->rate, &v->resync_options);
    y->rate_tick_ns = v->core->now_ns;
    y->allowed_sectors = 0;
    y->arrived_sectors = 0;
    speed_reset(&y->speed, v->core->now_ns, 0);
    v->stats.verify_started_ns = v->core->now_ns;
    v->stats.verify_finished_ns = 0;
    v->stats.verify_differing_bits = 0;
    v->stats.verify_rate_kib = 0;
    verify_count_from(v, v->state.connection == C_VERIFY_S ? y->begin : 0,
                      v->state.connection == C_VERIFY_S ? y->end : v->size_bytes);
}

static void drop_all(struct list_head *list)
{
    list_for_each_safe(pos, following, list)
    {
        struct verify_blocks *b = list_entry(pos, struct verify_blocks, link);
        if (b->stage != VERIFY_READING)     /* released when its read is finished */
            verify_release(b);
    }
}

void verify_end(struct volume *v)
{
    struct verify *y = &v->verify;
    y->run++;
    drop_all(&y->questions);
    drop_all(&y->answers);
    y->open = NULL;
    y->last = NULL;
    y->in_flight_bytes = 0;
    turns_reset(v);
    if (v->stats.verify_started_ns && !v->stats.verify_finished_ns)
        v->stats.verify_finished_ns = v->core->now_ns;
    report_range(v);
}

static bool application_first(struct volume *v)
{
    struct verify *y = &v->verify;
    uint64_t seen = v->stats.read_bytes + v->stats.written_bytes + v->stats.received_bytes;
    bool busy = !list_empty(&v->al_waiting) || seen > y->application_seen + APPLICATION_BYTES_MIN;
    y->application_seen = seen;
    return busy && v->resync_options.min_rate_kib && v->stats.verify_rate_kib > v->resync_options.min_rate_kib;
}

static void rate_step(struct volume *v)
{
    struct verify *y = &v->verify;
    uint64_t now = v->core->now_ns;
    if (now < y->rate_tick_ns)
        return;
    y->rate_tick_ns = now + RATE_TICK_MS * NS_PER_MS;
    v->stats.verify_rate_kib = speed_kib(&y->speed, now, v->stats.verify_done_bits);
    y->allowed_sectors = rate_tick(&y->rate, &v->resync_options, (int64_t)y->arrived_sectors,
                                   (int64_t)(y->in_flight_bytes / SECTOR_BYTES));
    y->arrived_sectors = 0;
    v->stats.verify_limit = RE_LIMIT_RATE;
    if (application_first(v)) {
        y->allowed_sectors = 0;
        v->stats.verify_limit = RE_LIMIT_APPLICATION;
    }
}

void verify_pump(struct volume *v)
{
    struct verify *y = &v->verify;
    if (v->core->link.phase != LINK_UP)
        return;
    verify_answer_pump(v);
    if (y->stalled) {
        go_on(&y->answers);
        go_on(&y->questions);
    }
    if (v->state.connection != C_VERIFY_S && v->state.connection != C_VERIFY_T)
        return;
    rate_step(v);
    if (v->state.connection == C_VERIFY_S)
        verify_question_pump(v);
}

uint64_t verify_deadline(const struct volume *v)
{
    const struct verify *y = &v->verify;
    uint64_t next = UINT64_MAX;
    if (v->core->link.phase != LINK_UP)
        return next;
    if (v->state.connection == C_VERIFY_S && !y->finished_reported)
        next = y->rate_tick_ns;
    return u64_min(next, verify_answer_deadline(v));
}
