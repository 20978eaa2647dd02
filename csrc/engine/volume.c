/* SPDX-License-Identifier: Apache-2.0 */
/* A volume: its disk, its states, its range lock, its dirty bits.
 *
 * Invariant: a detach is finished exactly when no operation on its descriptors is on its way (disk_ops.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

struct volume *volume_get(struct core *core, int number)
{
    if (number < 0 || number >= RE_VOLUMES_MAX)
        return NULL;
    if (core->volumes[number])
        return core->volumes[number];
    struct volume *v = calloc(1, sizeof(*v));
    CHECK(v);
    v->core = core;
    v->number = number;
    v->state = (struct re_state){.role = ROLE_SECONDARY, .disk = D_DISKLESS, .peer_disk = D_UNKNOWN};
    range_lock_init(&v->ranges);
    list_init(&v->held);
    list_init(&v->parked);
    list_init(&v->remote_reads);
    list_init(&v->flush_waiters);
    list_init(&v->al_waiting);
    list_init(&v->al_planned);
    list_init(&v->md_jobs);
    list_init(&v->verify.questions);
    list_init(&v->verify.answers);
    list_init(&v->target.requests);
    list_init(&v->target.written);
    list_init(&v->target.flushing);
    list_init(&v->source.throttled);
    list_init(&v->al_op.link);
    list_init(&v->target.flush_op.link);
    list_init(&v->in_flight);
    for (int i = 0; i < 64; i++)
        list_init(&v->al_page_ops[i].link);
    core->volumes[number] = v;
    return v;
}

static void forget_disk(struct volume *v)
{
    undo_forget(v);
    if (v->al)
        al_destroy(v->al);
    if (v->bitmap)
        bitmap_destroy(v->bitmap);
    v->al = NULL;
    v->bitmap = NULL;
    v->attached = false;
    v->loading = false;
    v->disk_failed = false;
    v->given_up = false;
    v->bad_blocks = false;
    v->error_reported = false;
    v->al_phase = AL_IDLE;
}

void volume_destroy(struct volume *v)
{
    forget_disk(v);
    undo_free_hung(v);
    free(v);
}

void volume_attach(struct volume *v, const struct re_attach *attach, uint64_t cookie)
{
    uint64_t bits = (attach->size_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
    if (v->attached || v->loading || v->detaching || attach->size_bytes == 0 || attach->size_bytes % SECTOR_BYTES ||
        (bits + 7) / 8 > attach->bitmap_bytes) {
        core_done(v->core, cookie, v->number, RE_RESULT_INVALID, 0);
        return;
    }
    v->disk = *attach;
    volume_set_size(v, attach->size_bytes);
    v->al = al_create(attach->al_extents);
    v->bitmap = bitmap_create(bits);
    if (!v->al || !v->bitmap) {
        forget_disk(v);
        core_done(v->core, cookie, v->number, RE_RESULT_IO, ENOMEM);
        return;
    }
    v->attached = true;
    v->attachment++;
    v->disk_failed = false;
    if (attach->flags & (RE_ATTACH_BITMAP_ALL_SET | RE_ATTACH_BITMAP_EMPTY)) {
        if (attach->flags & RE_ATTACH_BITMAP_ALL_SET)
            bitmap_set_all(v->bitmap);
        core_done(v->core, cookie, v->number, RE_RESULT_OK, 0);
        return;
    }
    v->loading = true;
    if (volume_md_job(v, MD_LOAD_BITMAP, cookie, NULL) != RE_OK)
        volume_attach_finished(v, cookie, ENOMEM);
}

void volume_attach_finished(struct volume *v, uint64_t cookie, int error)
{
    v->loading = false;
    if (error)
        forget_disk(v);
    core_done(v->core, cookie, v->number, error ? RE_RESULT_IO : RE_RESULT_OK, error);
}

void volume_detach(struct volume *v, uint64_t cookie)
{
    if (!v->attached || v->detaching) {
        core_done(v->core, cookie, v->number, RE_RESULT_INVALID, 0);
        return;
    }
    v->detaching = true;
    v->detach_cookie = cookie;
    undo_cancel(v);
    volume_check_idle(v);
}

void volume_drain(struct volume *v, uint64_t cookie)
{
    if (v->drain_cookie)
        core_done(v->core, v->drain_cookie, v->number, RE_RESULT_CANCELED, 0);
    v->drain_cookie = cookie;
    sender_close_epoch(v->core, NULL);
    volume_check_idle(v);
}

static void quiesce_end(struct volume *v, enum re_result result, int error)
{
    uint64_t cookie = v->quiesce_cookie;
    v->quiesce_cookie = 0;
    v->quiesce_flushing = false;
    core_done(v->core, cookie, v->number, result, error);
}

static void quiesce_flushed(struct disk_op *op)
{
    struct volume *v = op->owner;
    v->quiesce_flushing = false;
    volume_disk_finished(v, op);
    if (op->error)
        volume_disk_error(v, op, RE_DISK_FLUSH);
    else
        peer_epochs_stable(v);
    if (v->quiesce_cookie)
        quiesce_end(v, op->error ? RE_RESULT_IO : RE_RESULT_OK, op->error);
}

/* Nothing is on its way to the disk: make it stable. */
static void quiesce_step(struct volume *v)
{
    if (v->quiesce_flushing)
        return;
    if (!volume_can_flush(v)) {
        quiesce_end(v, RE_RESULT_IO, EIO);
        return;
    }
    v->quiesce_flushing = true;
    v->quiesce_op = (struct disk_op){.kind = DISK_FLUSH,
                                     .flags = v->disk.flags & RE_ATTACH_NO_DISK_FLUSHES ? DISK_NO_SYNC : 0,
                                     .fd = v->disk.data_fd};
    volume_disk_submit(v, &v->quiesce_op, quiesce_flushed, v);
}

void volume_quiesce(struct volume *v, uint64_t cookie)
{
    if (!v->attached || v->detaching || v->quiesce_cookie) {
        core_done(v->core, cookie, v->number, RE_RESULT_INVALID, 0);
        return;
    }
    v->quiesce_cookie = cookie;
    list_for_each(pos, &v->held)
        request_leave_extents(list_entry(pos, struct request, link));
    sender_close_epoch(v->core, NULL);
    volume_check_idle(v);
}

void volume_set_size(struct volume *v, uint64_t size_bytes)
{
    v->size_bytes = size_bytes;
    v->stats.size_bytes = size_bytes;
    struct core *core = v->core;
    for (int i = 0; i < core->streams_end; i++)
        if (core->streams[i].owner == STREAM_NBD && nbd_session_volume(core->streams[i].session) == v->number)
            nbd_session_resize(core->streams[i].session, size_bytes);
}

void volume_check_idle(struct volume *v)
{
    struct core *core = v->core;
    if (v->drain_cookie && v->stats.upper_pending == 0 && v->stats.peer_pending == 0) {
        core_done(core, v->drain_cookie, v->number, RE_RESULT_OK, 0);
        v->drain_cookie = 0;
    }
    if (v->quiesce_cookie && v->stats.lower_pending == 0 && (!v->al || al_refs_total(v->al) == 0))
        quiesce_step(v);
    if (v->detaching && v->attached && v->stats.lower_pending == 0) {
        if (v->quiesce_cookie)
            quiesce_end(v, RE_RESULT_CANCELED, 0);
        volume_al_abandon(v);
        while (!list_empty(&v->md_jobs)) {
            struct md_job *job = list_entry(list_first(&v->md_jobs), struct md_job, link);
            list_del(&job->link);
            core_done(core, job->cookie, v->number, RE_RESULT_CANCELED, 0);
            free(job->superblock);
            job->superblock = NULL;
            if (job->buf)
                buf_put(job->buf);
            job->buf = NULL;
            list_add_tail(&core->md_free, &job->link);
        }
        forget_disk(v);
    }
    if (v->hung == 0)
        undo_free_hung(v);
    if (v->detaching && !v->attached && v->hung == 0) {
        v->detaching = false;
        core_done(core, v->detach_cookie, v->number, RE_RESULT_OK, 0);
    }
}

bool volume_is_frozen(const struct volume *v)
{
    /* Old peers cannot be told of writes during the bitmap exchange. */
    if (v->state.connection == C_WF_BITMAP_S && link_is_up(v->core) && v->core->link.options.version < 96)
        return true;
    /* A write that the activity log does not cover goes to the peer only when the peer knows that we have no disk:
     * it marks the blocks then.  (Negotiating: it knows of the disk already, and the verdict is on its way.) */
    return volume_waits_for_disk(v) || v->state.suspended || v->core->link.phase == LINK_LOST;
}

bool volume_waits_for_disk(const struct volume *v)
{
    bool changes = v->state.disk == D_FAILED || v->state.disk == D_NEGOTIATING;
    return changes || (v->disk_failed && v->state.disk >= D_FAILED);
}

void volume_thaw(struct volume *v)
{
    freeze_release(v);
    bool is_frozen = volume_is_frozen(v);
    /* Writes of another Primary that wait for one that is held may be what the disk waits for. */
    bool aside = volume_waits_for_disk(v) && v->core->link.options.two_primaries;
    if (is_frozen && !aside)
        return;
    struct list_head held;
    list_init(&held);
    list_splice_tail(&held, &v->held);
    if (is_frozen) {
        for (struct list_head *link; (link = list_pop(&held));)
            request_hold_aside(list_entry(link, struct request, link));
        return;
    }
    for (struct list_head *link; (link = list_pop(&held));)
        request_resume(list_entry(link, struct request, link));
}

void volume_set_state(struct volume *v, const struct re_state *told)
{
    struct re_state accepted = *told;
    const struct re_state *state = &accepted;
    congestion_declines(v, &accepted);
    uint8_t before = v->state.connection;
    uint8_t now = state->connection;
    if (v->state.disk == D_INCONSISTENT && state->disk == D_UP_TO_DATE)
        v->bad_blocks = false;      /* a resync has replaced them */
    if (state->role != ROLE_PRIMARY)
        v->others_whole = false;
    if (v->state.peer_disk >= D_INCONSISTENT && state->peer_disk < D_INCONSISTENT)
        link_peer_disk_lost(v);
    v->error_reported = false;
    v->state = *state;
    if (before != now) {
        bool exchange = now == C_WF_BITMAP_S || now == C_WF_BITMAP_T;
        if (exchange && before != C_WF_BITMAP_S && before != C_WF_BITMAP_T) {
            v->bitmap_receiving = true;
            v->bitmap_receive_bit = 0;
        } else if (!exchange)
            v->bitmap_receiving = false;
        bool was_target = before == C_SYNC_TARGET || before == C_PAUSED_SYNC_T;
        bool is_target = now == C_SYNC_TARGET || now == C_PAUSED_SYNC_T;
        if (is_target && !was_target)
            resync_target_start(v);
        else if (was_target && !is_target)
            resync_target_stop(v);
        else if (before == C_PAUSED_SYNC_T && now == C_SYNC_TARGET)
            resync_target_resumed(v);
        bool was_source = before == C_SYNC_SOURCE || before == C_PAUSED_SYNC_S;
        bool is_source = now == C_SYNC_SOURCE || now == C_PAUSED_SYNC_S;
        if (is_source && !was_source)
            resync_source_start(v);
        else if (was_source && !is_source)
            resync_source_stop(v);
        if (before == C_VERIFY_S || before == C_VERIFY_T)
            verify_end(v);
        if (now == C_VERIFY_S || now == C_VERIFY_T)
            verify_begin(v);
        congestion_state_changed(v, before);
    }
    if (now == C_SYNC_SOURCE)
        resync_source_check(v);
    if (state->suspended)
        freeze_begin(v);
    volume_thaw(v);
}

bool volume_disk_usable(const struct volume *v)
{
    return v->attached && !v->loading && !v->disk_failed && !v->detaching && v->state.disk >= D_INCONSISTENT;
}

bool volume_can_flush(const struct volume *v)
{
    return v->attached && !v->loading && !v->disk_failed;
}

void volume_disk_finished(struct volume *v, struct disk_op *op)
{
    CHECK(v->stats.lower_pending > 0);
    v->stats.lower_pending--;
    /* A flush has failed: what it was for may be gone, and another one that is under way, or a write that includes
     * one, says nothing of that. */
    if (v->disk_failed && !op->error && op->fd == v->disk.data_fd &&
        (op->kind == DISK_FLUSH || (DISK_OP_SYNCS(op) && op->offset < v->size_bytes)))
        op->error = EIO;
    if (!op->error) {
        if (op->kind == DISK_READ)
            v->stats.disk_read_bytes += op->length;
        else if (op->kind == DISK_WRITE)
            v->stats.disk_written_bytes += op->length;
        else if (op->kind == DISK_FLUSH)
            v->stats.disk_flushes++;
    }
    if (v->undo)
        undo_operation_ended(v);
    if (v->detaching)
        volume_check_idle(v);
}

/* The peer has good data of every block: what this disk lost can be read there.  (Dirty blocks of a resync source are
 * those that the peer lacks.) */
static bool peer_covers(const struct volume *v)
{
    uint8_t c = v->state.connection;
    bool source = c == C_WF_BITMAP_S || c == C_SYNC_SOURCE || c == C_PAUSED_SYNC_S || c == C_AHEAD;
    return link_is_up(v->core) && v->state.peer_disk == D_UP_TO_DATE && !source;
}

void volume_disk_error(struct volume *v, const struct disk_op *op, enum re_disk_op what)
{
    if (v->disk_failed || !v->attached || op->error == ECANCELED)
        return;     /* canceled: it never got to the disk */
    /* Metadata and flushes: what is on this disk is not known any more. */
    bool pass_on = (v->disk.flags & RE_ATTACH_PASS_ON) && !(op->flags & DISK_GIVEN_UP) && !op->lost &&
                   (what == RE_DISK_READ || what == RE_DISK_WRITE || what == RE_DISK_ZERO);
    if (pass_on) {
        volume_set_dirty(v, op->offset, op->length);
        resync_source_lost(v, op, what);
        /* A peer that writes as well does not send it to a disk that has lost something. */
        bool only_writer = v->state.role == ROLE_PRIMARY && !v->core->link.options.two_primaries;
        v->others_whole = only_writer && (v->others_whole || !v->bad_blocks);
        v->bad_blocks = v->bad_blocks || peer_covers(v);
        if (v->error_reported)
            return;
        v->error_reported = true;
    } else
        v->disk_failed = true;
    core_emit(v->core,
              &(struct re_event){.type = RE_EV_DISK_ERROR,
                                 .volume = v->number,
                                 .stream = -1,
                                 .status = pass_on ? RE_RESULT_OK : RE_RESULT_IO,
                                 .error = op->error,
                                 .detail = what,
                                 .value = op->offset},
              NULL, 0);
}

bool volume_lock_range(struct volume *v, struct range_item *item, uint64_t offset, uint64_t length,
                       enum range_mode mode, void (*granted)(struct range_item *))
{
    range_init(&item->range, offset, offset + length, mode, item);
    item->granted = granted;
    return range_acquire(&v->ranges, &item->range);
}

void volume_unlock_range(struct volume *v, struct range_item *item)
{
    if (item->range.inserted)
        range_release(&v->ranges, &item->range, &v->core->granted);
}

/* The device may have become smaller while something was under way: there is nothing behind its end. */
static uint64_t inside(const struct volume *v, uint64_t offset, uint64_t length)
{
    return offset < v->size_bytes ? u64_min(length, v->size_bytes - offset) : 0;
}

void volume_set_dirty(struct volume *v, uint64_t offset, uint64_t length)
{
    length = inside(v, offset, length);
    if (v->bitmap && length)
        bitmap_set_bytes(v->bitmap, offset, length);
}

bool volume_differs_in(const struct volume *v, uint64_t offset, uint64_t length)
{
    return v->bitmap && bitmap_any_in(v->bitmap, offset / BLOCK_BYTES, (offset + length - 1) / BLOCK_BYTES);
}

void volume_clear_dirty(struct volume *v, uint64_t offset, uint64_t length)
{
    length = inside(v, offset, length);
    if (v->bitmap && length) {
        uint64_t cleared = bitmap_clear_bytes(v->bitmap, offset, length, v->size_bytes);
        v->stats.resync_done_bits += cleared;
    }
}
