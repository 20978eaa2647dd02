/* SPDX-License-Identifier: Apache-2.0 */
/* The activity log's part of a write: no data of a cold extent is written before its transaction is stable.
 *
 * Order on disk (metadata format, section 8.2): changed bitmap pages of the extents that leave, then the transaction
 * with flush and FUA, then the data.  One transaction is in flight at a time; what comes meanwhile shares the next
 * one. A bitmap page is never written by two operations at once: the older copy could land last.
 */
#include <string.h>

#include "base/check.h"
#include "engine/internal.h"
#include "meta/al_disk.h"

static void grant(struct al_waiter *waiter)
{
    list_del(&waiter->link);
    waiter->granted(waiter);
}

/* One attempt: active at once, planned for the next transaction, or neither (false). */
static bool try_begin(struct volume *v, struct al_waiter *waiter)
{
    if (al_begin_fast(v->al, waiter->first, waiter->last)) {
        waiter->has_reference = true;
        waiter->attachment = v->attachment;
        grant(waiter);
        return true;
    }
    if (al_plan(v->al, waiter->first, waiter->last) != RE_OK)
        return false;
    waiter->has_reference = true;
    waiter->attachment = v->attachment;
    list_del(&waiter->link);
    list_add_tail(&v->al_planned, &waiter->link);
    return true;
}

void volume_al_begin(struct volume *v, struct al_waiter *waiter, uint64_t offset, uint64_t length)
{
    waiter->first = (uint32_t)(offset / AL_EXTENT_BYTES);
    waiter->last = (uint32_t)((offset + length - 1) / AL_EXTENT_BYTES);
    waiter->has_reference = false;
    list_init(&waiter->link);
    if (v->disk.flags & RE_ATTACH_NO_AL) {
        grant(waiter);
        return;
    }
    if (v->al_held || !list_empty(&v->al_waiting) || !try_begin(v, waiter))
        list_add_tail(&v->al_waiting, &waiter->link);
}

void volume_al_put(struct volume *v, struct al_waiter *waiter)
{
    if (!waiter->has_reference)
        return;
    waiter->has_reference = false;
    if (!v->al || waiter->attachment != v->attachment)
        return;
    al_put(v->al, waiter->first, waiter->last);
    v->al_retry = true;
}

static void grant_all(struct list_head *from)
{
    struct list_head batch;
    list_init(&batch);
    list_splice_tail(&batch, from);
    while (!list_empty(&batch))
        grant(list_entry(list_first(&batch), struct al_waiter, link));
}

static void hold_end(struct volume *v, enum re_result result)
{
    uint64_t cookie = v->al_hold_cookie;
    v->al_hold_cookie = 0;
    core_done(v->core, cookie, v->number, result, 0);
}

void volume_al_hold(struct volume *v, bool held, uint64_t cookie)
{
    if (v->al_hold_cookie)
        hold_end(v, RE_RESULT_CANCELED);
    if (!v->al && held) {
        core_done(v->core, cookie, v->number, RE_RESULT_INVALID, 0);
        return;
    }
    if (held && v->core->link.phase == LINK_LOST) {     /* as in volume_al_link_lost() */
        core_done(v->core, cookie, v->number, RE_RESULT_CANCELED, 0);
        return;
    }
    v->al_held = held;
    v->al_retry = true;
    if (!held) {
        core_done(v->core, cookie, v->number, RE_RESULT_OK, 0);
        return;
    }
    v->al_hold_cookie = cookie;
    sender_close_epoch(v->core, NULL);
}

/* What is in it is let go only when the control plane has dealt with the loss, which may wait for us. */
void volume_al_link_lost(struct volume *v)
{
    if (!v->al_hold_cookie)
        return;
    v->al_held = false;
    v->al_retry = true;
    hold_end(v, RE_RESULT_CANCELED);
}

/* The disk is gone: whoever waits goes on and finds that out. */
void volume_al_abandon(struct volume *v)
{
    for (uint32_t i = 0; i < 64; i++)
        if (v->al_page_bufs[i]) {
            buf_put(v->al_page_bufs[i]);
            v->al_page_bufs[i] = NULL;
        }
    if (v->al_block)
        buf_put(v->al_block);
    v->al_block = NULL;
    v->al_phase = AL_IDLE;
    v->al_held = false;
    if (v->al_hold_cookie)
        hold_end(v, RE_RESULT_CANCELED);
    grant_all(&v->al_planned);
    grant_all(&v->al_waiting);
}

static void block_written(struct disk_op *op)
{
    struct volume *v = op->owner;
    bool detached = v->detaching;
    volume_disk_finished(v, op);
    if (detached)
        return;     /* abandoned above, or by the detach */
    if (op->error) {
        volume_disk_error(v, op, RE_DISK_META);
        volume_al_abandon(v);
        return;
    }
    buf_put(v->al_block);
    v->al_block = NULL;
    v->al_phase = AL_IDLE;
    v->stats.al_writes++;
    al_commit_done(v->al);
    v->al_retry = true;
    struct list_head planned;
    list_init(&planned);
    list_splice_tail(&planned, &v->al_planned);
    while (!list_empty(&planned)) {
        struct al_waiter *waiter = list_entry(list_first(&planned), struct al_waiter, link);
        if (al_range_active(v->al, waiter->first, waiter->last))
            grant(waiter);
        else {      /* some of its extents are in the next transaction */
            list_del(&waiter->link);
            list_add_tail(&v->al_planned, &waiter->link);
        }
    }
}

static void write_block(struct volume *v)
{
    v->al_phase = AL_WRITING_BLOCK;
    uint32_t flags = DISK_FUA | (v->al_evicted_count ? DISK_PREFLUSH : 0);
    if (v->disk.flags & RE_ATTACH_NO_MD_FLUSHES)
        flags |= DISK_NO_SYNC;
    v->al_op.kind = DISK_WRITE;
    v->al_op.flags = flags;
    v->al_op.fd = v->disk.md_fd;
    v->al_op.data = v->al_block->data;
    v->al_op.length = BLOCK_BYTES;
    volume_disk_submit(v, &v->al_op, block_written, v);
}

static void page_written(struct disk_op *op)
{
    struct volume *v = op->owner;
    bool detached = v->detaching;
    volume_disk_finished(v, op);
    if (detached)
        return;
    if (op->error) {
        volume_disk_error(v, op, RE_DISK_META);
        if (--v->al_pages_pending == 0)
            volume_al_abandon(v);
        return;
    }
    if (op->kind == DISK_WRITE)
        v->stats.bitmap_writes++;
    if (--v->al_pages_pending > 0)
        return;
    if (v->disk_failed) {
        volume_al_abandon(v);
        return;
    }
    for (uint32_t i = 0; i < 64; i++)
        if (v->al_page_bufs[i]) {
            buf_put(v->al_page_bufs[i]);
            v->al_page_bufs[i] = NULL;
        }
    write_block(v);
}

/* What was written to the extents that leave the set must be stable before, and marked where the peer lacks it: with
 * the metadata on another device a flush of the data, then the changed bitmap pages.  False when nothing is to be
 * done. */
static bool write_evicted_pages(struct volume *v)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < v->al_evicted_count; i++) {
        uint64_t page = v->al_evicted[i] / BITMAP_EXTENTS_PER_PAGE;
        if (page >= v->bitmap->pages || !bitmap_page_changed(v->bitmap, page))
            continue;
        struct buf *buf = buf_take(&v->core->md_buffers, BITMAP_PAGE_BYTES);
        CHECK(buf);
        memcpy(buf->data, bitmap_page(v->bitmap, page), BITMAP_PAGE_BYTES);
        bitmap_page_mark_written(v->bitmap, page);
        struct disk_op *op = &v->al_page_ops[count];
        v->al_page_bufs[count++] = buf;
        *op = (struct disk_op){.kind = DISK_WRITE,
                               .fd = v->disk.md_fd,
                               .offset = v->disk.bitmap_offset + page * BITMAP_PAGE_BYTES,
                               .length = BITMAP_PAGE_BYTES,
                               .data = buf->data};
        volume_disk_submit(v, op, page_written, v);
    }
    if (v->al_evicted_count && v->disk.md_fd != v->disk.data_fd && !(v->disk.flags & RE_ATTACH_NO_DISK_FLUSHES)) {
        v->al_op = (struct disk_op){.kind = DISK_FLUSH, .fd = v->disk.data_fd, .offset = v->al_op.offset};
        volume_disk_submit(v, &v->al_op, page_written, v);
        v->al_pages_pending = count + 1;
        return true;
    }
    v->al_pages_pending = count;
    return count > 0;
}

static void commit(struct volume *v)
{
    struct buf *buf = buf_take(&v->core->md_buffers, BLOCK_BYTES);
    if (!buf)
        return;
    uint32_t number;
    v->al_block = buf;
    v->al_evicted_count = al_commit_begin(v->al, buf->data, &number, v->al_evicted);
    uint32_t block = al_ring_block(number, v->disk.al_stripes, v->disk.al_stripe_size_4k);
    v->al_op.offset = v->disk.al_offset + (uint64_t)block * BLOCK_BYTES;
    if (write_evicted_pages(v))
        v->al_phase = AL_WRITING_BITMAP;
    else
        write_block(v);
}

void volume_al_tick(struct volume *v)
{
    if (v->quiesce_cookie)
        volume_check_idle(v);
    if (!v->al || v->detaching)
        return;
    if (v->disk_failed && v->al_phase == AL_IDLE) {
        volume_al_abandon(v);
        return;
    }
    if (v->al_hold_cookie && v->al_phase == AL_IDLE && list_empty(&v->al_planned) && al_refs_total(v->al) == 0)
        hold_end(v, RE_RESULT_OK);
    if (v->al_retry && !v->al_held && !list_empty(&v->al_waiting)) {
        v->al_retry = false;
        struct list_head waiting;
        list_init(&waiting);
        list_splice_tail(&waiting, &v->al_waiting);
        while (!list_empty(&waiting)) {
            struct al_waiter *waiter = list_entry(list_first(&waiting), struct al_waiter, link);
            if (!try_begin(v, waiter))
                break;
        }
        /* What a granted write put behind them meanwhile stays behind them. */
        list_splice_tail(&waiting, &v->al_waiting);
        list_splice_tail(&v->al_waiting, &waiting);
    }
    v->al_retry = false;
    if (v->al_phase == AL_IDLE && !v->disk_failed && !v->md_job_in_flight && al_has_planned(v->al))
        commit(v);
    /* Slots come back only with barrier acks: do not let an open epoch hold them. */
    if (!list_empty(&v->al_waiting) && link_is_up(v->core))
        sender_close_epoch(v->core, NULL);
}
