/* SPDX-License-Identifier: Apache-2.0 */
/* Undo of a split brain: what is about to be overwritten is copied to an overlay first.
 *
 * A write (or zeroes) to a block that has not been saved waits here, between its range lock and the disk, until the
 * old content is in the overlay and the map says so, both stable.  Whoever writes it: resync, peer, application.
 * Invariant: a block whose bit in the map on disk is clear has not been overwritten since the undo began.
 * Zeroes stay holes of the overlay.  One batch at a time; nothing of this exists while there is no undo.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

enum {
    RUNS_MAX = 64,              /* pieces of one batch */
    RUN_BYTES_MAX = 1 << 20,
    BATCH_BYTES = 4 << 20,
    PAGES_MAX = 16,             /* pages of the map that one batch changes */
    PAGE_BYTES = 4096,
    PAGE_BLOCKS = PAGE_BYTES * 8,
    MAP_OFFSET = 4096,          /* before it the control plane's own notes */
};

enum phase { DRAINING, LOADING, IDLE, READING, SAVING, SAVED, MAPPING, MAPPED, FAILED };

struct run {
    uint64_t block;             /* first one */
    uint64_t offset;            /* bytes */
    uint32_t length;            /* bytes; the device's last block may be short */
    uint32_t blocks;
    uint8_t *data;              /* in the batch's buffer */
};

struct undo {
    struct volume *v;
    int overlay_fd, map_fd;
    uint8_t phase;              /* enum phase */
    int error;                  /* of the batch */
    uint64_t start_cookie, stop_cookie;
    bool stopping;
    uint64_t blocks;            /* of the device when the undo began to be used */
    uint64_t map_bytes;         /* whole pages */
    uint64_t loaded_bytes;
    uint8_t *map;               /* 1: saved */
    struct list_head held;      /* disk_op.link */
    uint64_t held_count;
    uint32_t reads;             /* reads of the undo's export under way */
    uint32_t run_count, page_count, pending;
    uint64_t pages[PAGES_MAX];
    struct run runs[RUNS_MAX];
    struct disk_op ops[RUNS_MAX];
    uint8_t *buffer;            /* BATCH_BYTES, then PAGES_MAX pages */
};

static void batch_next(struct undo *u);

/* ---- the map ---- */

static bool is_saved(const struct undo *u, uint64_t block)
{
    return u->map[block / 8] >> (block % 8) & 1;
}

/* The first block in [block, end) that is saved or not, as asked; `end` if there is none. */
static uint64_t next_block(const struct undo *u, uint64_t block, uint64_t end, bool saved)
{
    uint8_t other = saved ? 0 : 0xff;
    while (block < end) {
        if (block % 8 == 0 && u->map[block / 8] == other)
            block += 8;
        else if (is_saved(u, block) == saved)
            return block;
        else
            block++;
    }
    return end;
}

static void op_blocks(const struct undo *u, const struct disk_op *op, uint64_t *first, uint64_t *end)
{
    *first = op->offset / BLOCK_BYTES;
    *end = u64_min((op->offset + op->length + BLOCK_BYTES - 1) / BLOCK_BYTES, u->blocks);
}

static bool overwrites(const struct undo *u, const struct disk_op *op)
{
    const struct volume *v = u->v;
    if ((op->kind != DISK_WRITE && op->kind != DISK_ZERO) || op->fd != v->disk.data_fd || op->offset >= v->size_bytes)
        return false;
    uint64_t first, end;
    op_blocks(u, op, &first, &end);
    return first < end && next_block(u, first, end, false) < end;
}

/* ---- operations ---- */

static void release_held(struct undo *u, bool all)
{
    struct list_head waiting;
    list_init(&waiting);
    list_splice_tail(&waiting, &u->held);
    for (struct list_head *link; (link = list_pop(&waiting));) {
        struct disk_op *op = list_entry(link, struct disk_op, link);
        if (!all && overwrites(u, op)) {
            list_add_tail(&u->held, link);
            continue;
        }
        u->held_count--;
        list_init(link);
        volume_disk_start(u->v, op);
    }
}

static void end_held(struct undo *u, int error, uint32_t flags)
{
    for (struct list_head *link; (link = list_pop(&u->held));) {
        struct disk_op *op = list_entry(link, struct disk_op, link);
        u->held_count--;
        op->error = error;
        op->flags |= flags;
        list_add_tail(&u->v->core->done, link);
    }
}

static void free_all(struct undo *u)
{
    free(u->map);
    free(u->buffer);
    free(u);
}

static void destroy(struct undo *u)
{
    struct volume *v = u->v;
    v->undo = NULL;
    if (v->hung) {
        if (v->undo_hung)
            free_all(v->undo_hung);
        v->undo_hung = u;
    } else
        free_all(u);
}

/* Nothing of ours is in flight: end if somebody wants that. */
static bool stopped(struct undo *u)
{
    if (!u->stopping || u->reads)
        return false;
    struct volume *v = u->v;
    uint64_t cookie = u->stop_cookie;
    release_held(u, true);
    destroy(u);
    core_done(v->core, cookie, v->number, RE_RESULT_OK, 0);
    return true;
}

static void fail(struct undo *u)
{
    struct volume *v = u->v;
    if (u->phase == LOADING) {
        uint64_t cookie = u->start_cookie;
        int error = u->error;
        release_held(u, true);
        destroy(u);
        core_done(v->core, cookie, v->number, RE_RESULT_IO, error);
        return;
    }
    u->phase = FAILED;
    if (stopped(u))
        return;
    if (v->detaching) {     /* nobody is asked any more */
        undo_cancel(v);
        return;
    }
    core_emit(v->core,
              &(struct re_event){.type = RE_EV_UNDO_FAILED,
                                 .volume = v->number,
                                 .stream = -1,
                                 .error = u->error,
                                 .value = u->held_count},
              NULL, 0);
}

/* ---- one batch: read, save, flush, map, flush ---- */

static void phase_done(struct undo *u);

static void op_done(struct disk_op *op)
{
    struct undo *u = op->owner;
    if (op->error && !u->error)
        u->error = op->error;
    u->pending--;
    struct volume *v = u->v;
    bool is_last = u->pending == 0;
    if (is_last)
        v->stats.lower_pending++;   /* a detach that waits must not end before the next step is on its way */
    volume_disk_finished(v, op);
    if (!is_last)
        return;
    v->stats.lower_pending--;
    phase_done(u);
    if (v->detaching)
        volume_check_idle(v);
}

static void add_op(struct undo *u, uint8_t kind, int fd, uint64_t offset, uint64_t length, uint8_t *data)
{
    struct disk_op *op = &u->ops[u->pending++];
    *op = (struct disk_op){.kind = kind, .fd = fd, .offset = offset, .length = length, .data = data};
    volume_disk_submit_past_undo(u->v, op, op_done, u);
}

static bool add_page(struct undo *u, uint64_t page)
{
    for (uint32_t i = 0; i < u->page_count; i++)
        if (u->pages[i] == page)
            return true;
    if (u->page_count == PAGES_MAX)
        return false;
    u->pages[u->page_count++] = page;
    return true;
}

/* `block`, or the end of the batch's piece that it is in; *stop: at most the next piece's begin.
 * Locks are for bytes: operations that end and begin within one block wait here together. */
static uint64_t outside_batch(const struct undo *u, uint64_t block, uint64_t *stop)
{
    for (uint32_t i = 0; i < u->run_count; i++) {
        const struct run *run = &u->runs[i];
        if (run->block > block)
            *stop = u64_min(*stop, run->block);
        else if (block < run->block + run->blocks)
            return run->block + run->blocks;
    }
    return block;
}

/* What the operation would overwrite, as far as the batch has room.  False: the batch is full. */
static bool collect(struct undo *u, const struct disk_op *op, size_t *used)
{
    uint64_t block, end;
    op_blocks(u, op, &block, &end);
    while ((block = next_block(u, block, end, false)) < end) {
        uint64_t page = block / PAGE_BLOCKS, limit = end, begin = outside_batch(u, block, &limit);
        if (begin != block) {
            block = begin;
            continue;
        }
        uint64_t most = u64_min(u64_min(limit, (page + 1) * PAGE_BLOCKS),
                                block + u64_min(RUN_BYTES_MAX, BATCH_BYTES - *used) / BLOCK_BYTES);
        if (u->run_count == RUNS_MAX || most == block || !add_page(u, page))
            return false;
        uint64_t stop = next_block(u, block, most, true);
        uint64_t offset = block * BLOCK_BYTES;
        u->runs[u->run_count++] = (struct run){
            .block = block,
            .blocks = (uint32_t)(stop - block),
            .offset = offset,
            .length = (uint32_t)(u64_min(stop * BLOCK_BYTES, u->v->size_bytes) - offset),
            .data = u->buffer + *used,
        };
        *used += (stop - block) * BLOCK_BYTES;
        block = stop;
    }
    return true;
}

static void batch_next(struct undo *u)
{
    if (stopped(u))
        return;
    u->phase = IDLE;
    release_held(u, false);
    u->run_count = u->page_count = 0;
    u->error = 0;
    size_t used = 0;
    for (struct list_head *link = u->held.next; link != &u->held; link = link->next)
        if (!collect(u, list_entry(link, struct disk_op, link), &used))
            break;
    if (!u->run_count)
        return;
    u->phase = READING;
    for (uint32_t i = 0; i < u->run_count; i++)
        add_op(u, DISK_READ, u->v->disk.data_fd, u->runs[i].offset, u->runs[i].length, u->runs[i].data);
}

static bool is_zero(const uint8_t *data, size_t length)
{
    return length == 0 || (data[0] == 0 && memcmp(data, data + 1, length - 1) == 0);
}

static void save(struct undo *u)
{
    u->phase = SAVING;
    for (uint32_t i = 0; i < u->run_count; i++) {
        const struct run *run = &u->runs[i];
        uint32_t begin = 0, end = run->length;
        while (begin < end && is_zero(run->data + begin, u64_min(BLOCK_BYTES, end - begin)))
            begin += (uint32_t)u64_min(BLOCK_BYTES, end - begin);
        while (end > begin) {
            uint32_t last = (end - 1) / BLOCK_BYTES * BLOCK_BYTES;
            if (!is_zero(run->data + last, end - last))
                break;
            end = last;
        }
        if (begin < end)
            add_op(u, DISK_WRITE, u->overlay_fd, run->offset + begin, end - begin, run->data + begin);
    }
    if (!u->pending)
        phase_done(u);
}

static void mark(uint8_t *bits, uint64_t from, const struct run *run)
{
    for (uint64_t block = run->block - from; block < run->block - from + run->blocks; block++)
        bits[block / 8] |= (uint8_t)(1u << (block % 8));
}

static void write_map(struct undo *u)
{
    u->phase = MAPPING;
    for (uint32_t i = 0; i < u->page_count; i++) {
        uint8_t *copy = u->buffer + BATCH_BYTES + i * PAGE_BYTES;
        memcpy(copy, u->map + u->pages[i] * PAGE_BYTES, PAGE_BYTES);
        for (uint32_t k = 0; k < u->run_count; k++)
            if (u->runs[k].block / PAGE_BLOCKS == u->pages[i])
                mark(copy, u->pages[i] * PAGE_BLOCKS, &u->runs[k]);
        add_op(u, DISK_WRITE, u->map_fd, MAP_OFFSET + u->pages[i] * PAGE_BYTES, PAGE_BYTES, copy);
    }
}

static void count_saved(struct undo *u)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < u->map_bytes; i++)
        count += (uint64_t)__builtin_popcount(u->map[i]);
    u->v->stats.undo_saved_bits = count;
}

static void batch_end(struct undo *u)
{
    for (uint32_t i = 0; i < u->run_count; i++) {
        const struct run *run = &u->runs[i];
        for (uint64_t block = run->block; block < run->block + run->blocks; block++)
            u->v->stats.undo_saved_bits += !is_saved(u, block), u->map[block / 8] |= (uint8_t)(1u << (block % 8));
    }
    batch_next(u);
}

/* ---- begin ---- */

static void load(struct undo *u)
{
    u->phase = LOADING;
    if (u->loaded_bytes == u->map_bytes) {
        struct volume *v = u->v;
        uint64_t cookie = u->start_cookie;
        count_saved(u);
        batch_next(u);
        core_done(v->core, cookie, v->number, RE_RESULT_OK, 0);
        return;
    }
    add_op(u, DISK_READ, u->map_fd, MAP_OFFSET + u->loaded_bytes,
           u64_min(RUN_BYTES_MAX, u->map_bytes - u->loaded_bytes), u->map + u->loaded_bytes);
}

static void phase_done(struct undo *u)
{
    if (u->error) {
        fail(u);
        return;
    }
    switch ((enum phase)u->phase) {
    case LOADING:
        u->loaded_bytes += u64_min(RUN_BYTES_MAX, u->map_bytes - u->loaded_bytes);
        load(u);
        break;
    case READING:
        save(u);
        break;
    case SAVING:
        u->phase = SAVED;
        add_op(u, DISK_FLUSH, u->overlay_fd, 0, 0, NULL);
        break;
    case SAVED:
        write_map(u);
        break;
    case MAPPING:
        u->phase = MAPPED;
        add_op(u, DISK_FLUSH, u->map_fd, 0, 0, NULL);
        break;
    case MAPPED:
        batch_end(u);
        break;
    default:
        CHECK(false);
    }
}

static void check_drained(struct undo *u)
{
    if (u->phase == DRAINING && u->v->stats.lower_pending == u->held_count)
        load(u);
}

void undo_start(struct volume *v, const struct re_undo *files, uint64_t cookie)
{
    if (v->undo || !v->attached || v->detaching) {
        core_done(v->core, cookie, v->number, RE_RESULT_INVALID, 0);
        return;
    }
    struct undo *u = calloc(1, sizeof(*u));
    uint64_t blocks = (v->size_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
    uint64_t map_bytes = (blocks + PAGE_BLOCKS - 1) / PAGE_BLOCKS * PAGE_BYTES;
    uint8_t *map = aligned_alloc(PAGE_BYTES, map_bytes);
    uint8_t *buffer = aligned_alloc(PAGE_BYTES, BATCH_BYTES + PAGES_MAX * PAGE_BYTES);
    if (!u || !map || !buffer) {
        free(u);
        free(map);
        free(buffer);
        core_done(v->core, cookie, v->number, RE_RESULT_IO, ENOMEM);
        return;
    }
    memset(map, 0, map_bytes);
    *u = (struct undo){.v = v,
                       .overlay_fd = files->overlay_fd,
                       .map_fd = files->map_fd,
                       .start_cookie = cookie,
                       .blocks = blocks,
                       .map_bytes = map_bytes,
                       .map = map,
                       .buffer = buffer};
    list_init(&u->held);
    v->undo = u;
    check_drained(u);
}

/* ---- from the volume ---- */

bool undo_takes(struct volume *v, struct disk_op *op)
{
    struct undo *u = v->undo;
    bool all = u->phase == DRAINING || u->phase == LOADING;    /* what was under way before has to end first */
    if (!all && !overwrites(u, op))
        return false;
    list_add_tail(&u->held, &op->link);
    u->held_count++;
    if (u->phase == IDLE)
        batch_next(u);
    else
        check_drained(u);
    return true;
}

void undo_operation_ended(struct volume *v)
{
    check_drained(v->undo);
}

void undo_stop(struct volume *v, uint64_t cookie)
{
    struct undo *u = v->undo;
    if (!u || u->stopping || u->phase == DRAINING || u->phase == LOADING) {
        core_done(v->core, cookie, v->number, RE_RESULT_INVALID, 0);
        return;
    }
    u->stopping = true;
    u->stop_cookie = cookie;
    if (u->phase == IDLE || u->phase == FAILED)
        (void)stopped(u);
}

void undo_cancel(struct volume *v)
{
    struct undo *u = v->undo;
    if (u && u->phase == FAILED) {
        u->phase = IDLE;
        end_held(u, ECANCELED, 0);
    }
}

/* Nobody waits for the disk any more. */
void undo_give_up(struct volume *v)
{
    if (v->undo)
        end_held(v->undo, EIO, DISK_GIVEN_UP);
}

void undo_free_hung(struct volume *v)
{
    if (v->undo_hung)
        free_all(v->undo_hung);
    v->undo_hung = NULL;
}

void undo_forget(struct volume *v)
{
    struct undo *u = v->undo;
    if (!u)
        return;
    CHECK(!v->detaching || (u->held_count == 0 && u->pending == 0 && u->reads == 0));
    if (u->stopping)
        core_done(v->core, u->stop_cookie, v->number, RE_RESULT_CANCELED, 0);
    else if (u->phase == DRAINING || u->phase == LOADING)
        core_done(v->core, u->start_cookie, v->number, RE_RESULT_CANCELED, 0);
    v->stats.undo_saved_bits = 0;
    destroy(u);
}

/* ---- reads of the export: the disk as it was ---- */

static void read_step(struct request *r);

static void read_end(struct request *r, int error)
{
    struct volume *v = r->volume;
    struct undo *u = v->undo;
    r->local_pending = false;
    r->local_ok = error == 0;
    r->error = error;
    request_settle(r);
    if (u && --u->reads == 0 && (u->phase == IDLE || u->phase == FAILED))
        (void)stopped(u);
}

static void read_done(struct disk_op *op)
{
    struct request *r = op->owner;
    struct volume *v = r->volume;
    int error = op->error;
    r->read_at += op->length;
    v->stats.lower_pending++;
    volume_disk_finished(v, op);
    v->stats.lower_pending--;
    if (error)
        read_end(r, error);
    else
        read_step(r);
    if (v->detaching)
        volume_check_idle(v);
}

static void read_step(struct request *r)
{
    struct volume *v = r->volume;
    struct undo *u = v->undo;
    uint64_t at = r->offset + r->read_at, end = r->offset + r->length;
    if (at == end || v->detaching) {
        read_end(r, at == end ? 0 : EIO);
        return;
    }
    uint64_t block = at / BLOCK_BYTES, last = u64_min((end + BLOCK_BYTES - 1) / BLOCK_BYTES, u->blocks);
    bool saved = is_saved(u, block);
    uint64_t stop = u64_min(next_block(u, block, last, !saved) * BLOCK_BYTES, end);
    r->op = (struct disk_op){.kind = DISK_READ,
                             .fd = saved ? u->overlay_fd : v->disk.data_fd,
                             .offset = at,
                             .length = stop - at,
                             .data = r->buf->data + r->read_at};
    volume_disk_submit_past_undo(u->v, &r->op, read_done, r);
}

/* The shared lock keeps writers of this range away, so what is not saved stays so meanwhile. */
static void read_locked(struct request *r)
{
    struct undo *u = r->volume->undo;
    if (!u || u->stopping || r->volume->detaching || u->phase == DRAINING || u->phase == LOADING ||
        r->offset + r->length > u->blocks * BLOCK_BYTES) {
        r->error = EIO;
        request_settle(r);
        return;
    }
    u->reads++;
    r->local_pending = true;
    r->read_at = 0;
    read_step(r);
}

static void read_granted(struct range_item *item)
{
    read_locked(container_of(item, struct request, lock));
}

void undo_read(struct request *r)
{
    if (volume_lock_range(r->volume, &r->lock, r->offset, r->length, RANGE_SHARED, read_granted))
        read_locked(r);
}
