/* SPDX-License-Identifier: Apache-2.0 */
/* Metadata jobs of a volume, one after the other: superblock, whole bitmap, activity log, loading.
 *
 * A job's operation is at most 1 MiB, so that the activity log, which must not run beside a bitmap write, waits
 * briefly.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"
#include "meta/al_disk.h"

enum { JOB_PAGES_MAX = (1 << 20) / BITMAP_PAGE_BYTES, ENOMEM_ERRNO = 12 };

enum re_status volume_md_job(struct volume *v, enum md_job_kind kind, uint64_t cookie, const uint8_t *superblock)
{
    struct list_head *link = list_pop(&v->core->md_free);
    if (!link)
        return RE_AGAIN;
    struct md_job *job = list_entry(link, struct md_job, link);
    *job = (struct md_job){.kind = (uint8_t)kind, .cookie = cookie, .volume = v};
    list_init(&job->link);
    list_init(&job->op.link);
    if (superblock) {
        job->superblock = malloc(RE_SUPERBLOCK_BYTES);
        CHECK(job->superblock);
        memcpy(job->superblock, superblock, RE_SUPERBLOCK_BYTES);
    }
    list_add_tail(&v->md_jobs, &job->link);
    return RE_OK;
}

static void job_end(struct md_job *job, int error)
{
    struct volume *v = job->volume;
    struct core *core = v->core;
    list_del(&job->link);
    if (job->buf)
        buf_put(job->buf);
    free(job->superblock);
    job->buf = NULL;
    job->superblock = NULL;
    uint64_t cookie = job->cookie;
    uint8_t kind = job->kind;
    list_add_tail(&core->md_free, &job->link);
    if (kind == MD_LOAD_BITMAP)
        volume_attach_finished(v, cookie, error);
    else
        core_done(core, cookie, v->number, error ? RE_RESULT_IO : RE_RESULT_OK, error);
}

static void job_step(struct md_job *job);

static void job_op_done(struct disk_op *op)
{
    struct md_job *job = op->owner;
    struct volume *v = job->volume;
    v->md_job_in_flight = false;
    bool detached = v->detaching;
    volume_disk_finished(v, op);
    if (detached)
        return;     /* the detach has ended the job */
    if (op->error) {
        if (job->kind != MD_LOAD_BITMAP)
            volume_disk_error(v, op, RE_DISK_META);
        job_end(job, op->error);
        return;
    }
    if (job->kind == MD_LOAD_BITMAP) {
        for (uint64_t i = 0; i < job->pages; i++)
            bitmap_load_page(v->bitmap, job->cursor + i, job->buf->data + i * BITMAP_PAGE_BYTES);
        job->cursor += job->pages;
    } else if (job->kind == MD_BITMAP_WRITE && !job->flushing)
        v->stats.bitmap_writes += job->pages;
    else if (job->kind == MD_AL_INITIALIZE && !job->flushing)
        v->stats.al_writes += job->pages;
    if (job->flushing || job->kind == MD_SUPERBLOCK) {
        job_end(job, 0);
        return;
    }
    if (job->buf) {
        buf_put(job->buf);
        job->buf = NULL;
    }
}

static void job_submit(struct md_job *job, uint8_t kind, uint32_t flags, uint64_t offset, uint64_t length)
{
    struct volume *v = job->volume;
    if (v->disk.flags & RE_ATTACH_NO_MD_FLUSHES)
        flags |= DISK_NO_SYNC;
    job->op = (struct disk_op){.kind = kind,
                               .flags = flags,
                               .fd = v->disk.md_fd,
                               .offset = offset,
                               .length = length,
                               .data = job->buf ? job->buf->data : NULL};
    v->md_job_in_flight = true;
    volume_disk_submit(v, &job->op, job_op_done, job);
}

static void job_flush(struct md_job *job)
{
    job->flushing = true;
    job_submit(job, DISK_FLUSH, 0, 0, 0);
}

/* The next run of changed pages, copied: the bitmap may change while it is written. */
static void bitmap_step(struct md_job *job)
{
    struct volume *v = job->volume;
    if (!job->data_flushed && v->disk.md_fd != v->disk.data_fd && !(v->disk.flags & RE_ATTACH_NO_DISK_FLUSHES)) {
        job->data_flushed = true;   /* what this bitmap calls clean has to be stable as well */
        job->op = (struct disk_op){.kind = DISK_FLUSH, .fd = v->disk.data_fd};
        v->md_job_in_flight = true;
        volume_disk_submit(v, &job->op, job_op_done, job);
        return;
    }
    uint64_t page = bitmap_next_changed_page(v->bitmap, job->cursor);
    if (page == UINT64_MAX) {
        job_flush(job);
        return;
    }
    job->buf = buf_take(&v->core->md_buffers, JOB_PAGES_MAX * BITMAP_PAGE_BYTES);
    if (!job->buf)
        return;     /* tried again with the next tick */
    job->pages = 0;
    while (job->pages < JOB_PAGES_MAX && page + job->pages < v->bitmap->pages &&
           bitmap_page_changed(v->bitmap, page + job->pages)) {
        memcpy(job->buf->data + job->pages * BITMAP_PAGE_BYTES, bitmap_page(v->bitmap, page + job->pages),
               BITMAP_PAGE_BYTES);
        bitmap_page_mark_written(v->bitmap, page + job->pages);
        job->pages++;
    }
    job->cursor = page + job->pages;
    uint64_t offset = page * BITMAP_PAGE_BYTES;
    job_submit(job, DISK_WRITE, 0, v->disk.bitmap_offset + offset,
               u64_min(job->pages * BITMAP_PAGE_BYTES, v->disk.bitmap_bytes - offset));
}

static void al_step(struct md_job *job)
{
    struct volume *v = job->volume;
    uint64_t blocks = (uint64_t)v->disk.al_stripes * v->disk.al_stripe_size_4k;
    if (job->cursor == blocks) {
        al_reset(v->al);
        v->attachment++;    /* references taken before are void */
        job_flush(job);
        return;
    }
    job->buf = buf_take(&v->core->md_buffers, JOB_PAGES_MAX * BLOCK_BYTES);
    if (!job->buf)
        return;
    job->pages = u64_min(blocks - job->cursor, JOB_PAGES_MAX);
    for (uint64_t i = 0; i < job->pages; i++)
        al_block_encode_initialized(job->buf->data + i * BLOCK_BYTES);
    uint64_t offset = v->disk.al_offset + job->cursor * BLOCK_BYTES;
    job->cursor += job->pages;
    job_submit(job, DISK_WRITE, 0, offset, job->pages * BLOCK_BYTES);
}

static void load_step(struct md_job *job)
{
    struct volume *v = job->volume;
    if (job->cursor >= v->bitmap->pages) {
        job_end(job, 0);
        return;
    }
    if (!job->buf)
        job->buf = buf_take(&v->core->md_buffers, JOB_PAGES_MAX * BITMAP_PAGE_BYTES);
    if (!job->buf)
        return;
    job->pages = u64_min(v->bitmap->pages - job->cursor, JOB_PAGES_MAX);
    uint64_t offset = job->cursor * BITMAP_PAGE_BYTES;
    /* The last page of an external bitmap may be cut short by the end of its device. */
    uint64_t length = u64_min(job->pages * BITMAP_PAGE_BYTES, v->disk.bitmap_bytes - offset);
    memset(job->buf->data, 0, job->pages * BITMAP_PAGE_BYTES);
    job_submit(job, DISK_READ, 0, v->disk.bitmap_offset + offset, length);
}

static void wipe_step(struct md_job *job)
{
    struct volume *v = job->volume;
    if (v->wipe_offset >= v->wipe_end) {
        job_flush(job);
        return;
    }
    uint64_t length = u64_min(v->wipe_end - v->wipe_offset, PEER_DISCARD_BYTES_MAX);
    uint64_t offset = v->wipe_offset;
    v->wipe_offset += length;
    job_submit(job, DISK_ZERO, DISK_MAY_UNMAP, offset, length);
}

/* Nothing of the metadata is on its way to the old place. */
static void resize_step(struct md_job *job)
{
    struct volume *v = job->volume;
    const struct re_attach *to = &v->resize;
    uint64_t bits = (to->size_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
    if (bitmap_resize(v->bitmap, bits, to->flags & RE_ATTACH_BITMAP_ALL_SET) != RE_OK) {
        job_end(job, ENOMEM_ERRNO);
        return;
    }
    v->disk.superblock_offset = to->superblock_offset;
    v->disk.al_offset = to->al_offset;
    v->disk.bitmap_offset = to->bitmap_offset;
    v->disk.bitmap_bytes = to->bitmap_bytes;
    v->disk.size_bytes = to->size_bytes;
    volume_set_size(v, to->size_bytes);
    job_end(job, 0);
}

static void job_step(struct md_job *job)
{
    struct volume *v = job->volume;
    switch ((enum md_job_kind)job->kind) {
    case MD_SUPERBLOCK:
        job->buf = buf_take(&v->core->md_buffers, RE_SUPERBLOCK_BYTES);
        if (!job->buf)
            return;
        memcpy(job->buf->data, job->superblock, RE_SUPERBLOCK_BYTES);
        job_submit(job, DISK_WRITE, DISK_FUA | DISK_PREFLUSH, v->disk.superblock_offset, RE_SUPERBLOCK_BYTES);
        break;
    case MD_BITMAP_WRITE:
        bitmap_step(job);
        break;
    case MD_AL_INITIALIZE:
        al_step(job);
        break;
    case MD_LOAD_BITMAP:
        load_step(job);
        break;
    case MD_RESIZE:
        resize_step(job);
        break;
    case MD_WIPE:
        wipe_step(job);
        break;
    }
}

void volume_md_wipe(struct volume *v, uint64_t offset, uint64_t length, uint64_t cookie)
{
    if (!v->attached || v->loading || v->detaching || offset < v->size_bytes) {
        core_done(v->core, cookie, v->number, RE_RESULT_INVALID, 0);
        return;
    }
    v->wipe_offset = offset;
    v->wipe_end = offset + length;
    if (volume_md_job(v, MD_WIPE, cookie, NULL) != RE_OK)
        core_done(v->core, cookie, v->number, RE_RESULT_INVALID, 0);
}

void volume_resize(struct volume *v, const struct re_attach *to, uint64_t cookie)
{
    bool moves = v->disk.al_offset != to->al_offset || v->disk.bitmap_offset != to->bitmap_offset;
    bool fits = to->size_bytes && to->size_bytes % SECTOR_BYTES == 0 &&
                (to->size_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES <= to->bitmap_bytes * 8;
    if (!v->attached || v->loading || v->detaching || (moves && !v->al_held) || !fits) {
        core_done(v->core, cookie, v->number, RE_RESULT_INVALID, 0);
        return;
    }
    v->resize = *to;
    if (volume_md_job(v, MD_RESIZE, cookie, NULL) != RE_OK)
        core_done(v->core, cookie, v->number, RE_RESULT_INVALID, 0);
}

void volume_md_tick(struct volume *v)
{
    while (!v->md_job_in_flight && !v->detaching && !list_empty(&v->md_jobs)) {
        struct md_job *job = list_entry(list_first(&v->md_jobs), struct md_job, link);
        if (!v->attached) {
            job_end(job, ENOMEM_ERRNO);
            continue;
        }
        if (job->kind == MD_BITMAP_WRITE && v->al_phase == AL_WRITING_BITMAP)
            return;
        if (job->kind == MD_RESIZE && v->al_phase != AL_IDLE)
            return;
        if (v->disk_failed && job->kind != MD_SUPERBLOCK) {
            job_end(job, 5 /* EIO */);
            continue;
        }
        job_step(job);
        if (!v->md_job_in_flight && !list_empty(&v->md_jobs) && list_first(&v->md_jobs) == &job->link)
            return;     /* no buffer: again with the next tick */
    }
}
