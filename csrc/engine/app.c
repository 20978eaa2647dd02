/* SPDX-License-Identifier: Apache-2.0 */
/* Application requests: writes, reads, flushes of the NBD clients.
 *
 * Invariants: a write is completed only after its local part is finished and its network part has reached the
 * protocol's point; what the peer may not have is marked dirty before the completion; data of a cold extent waits for
 * the activity log; overlapping writes run one after the other in the order of arrival.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

static bool is_write(const struct request *r)
{
    return r->kind == REQUEST_WRITE || r->kind == REQUEST_ZERO || r->kind == REQUEST_TRIM;
}

static void complete(struct request *r, int error)
{
    struct volume *v = r->volume;
    CHECK(!r->completed);
    r->completed = true;
    r->error = error;
    conflict_set_dropped(r, false);
    if (r->behind) {
        r->behind = false;
        v->writes_behind--;
    }
    volume_unlock_range(v, &r->lock);
    if (r->in_transfer_log)
        sender_close_epoch(v->core, r->epoch);
    list_del(&r->link);
    list_add_tail(&v->core->completed, &r->link);
}

/* Free what is not needed any more. */
static void release(struct request *r)
{
    if (r->told && !r->local_pending && r->buf && !freeze_needs_data(r)) {
        buf_put(r->buf);
        r->buf = NULL;
    }
    if (r->local_pending || r->in_transfer_log)
        return;
    volume_al_put(r->volume, &r->al);
    if (r->told)
        request_free(&r->volume->core->requests, r);
}

void core_complete_requests(struct core *core)
{
    for (struct list_head *link; (link = list_pop(&core->completed));) {
        struct request *r = list_entry(link, struct request, link);
        struct volume *v = r->volume;
        v->stats.upper_pending--;
        r->done(r);
        r->told = true;
        release(r);
        if (v->drain_cookie)
            volume_check_idle(v);
    }
}

/* differs: DRBD is content with a copy on an Inconsistent disk, which a resync overwrites (decision 0016). */
static bool has_good_copy(const struct request *r)
{
    const struct re_state *state = &r->volume->state;
    if (!is_write(r) && r->kind != REQUEST_FLUSH)
        return r->local_ok || r->net_ok;
    if (r->local_ok && r->net_ok)
        return true;
    return (r->local_ok && state->disk == D_UP_TO_DATE) || (r->net_ok && state->peer_disk == D_UP_TO_DATE);
}

static void hold(struct request *r, enum request_stage stage)
{
    r->stage = (uint8_t)stage;
    list_del(&r->link);
    list_add_tail(&r->volume->held, &r->link);
    freeze_let_go(r);
}

/* Held: a disk that is to be let go does not wait for it. */
void request_leave_extents(struct request *r)
{
    if (r->stage != STAGE_NEW)
        volume_al_put(r->volume, &r->al);
    if (r->stage == STAGE_ADMITTED)
        r->stage = STAGE_LOCKED;
}

/* Held, and in nobody's way: it begins anew when its turn comes. */
void request_hold_aside(struct request *r)
{
    struct volume *v = r->volume;
    hold(r, STAGE_NEW);
    volume_al_put(v, &r->al);
    volume_unlock_range(v, &r->lock);
}

/* The volume is frozen, and it is this write's turn. */
static void hold_locked(struct request *r, enum request_stage stage)
{
    struct volume *v = r->volume;
    if (volume_waits_for_disk(v) && v->core->link.options.two_primaries) {
        request_hold_aside(r);
        return;
    }
    hold(r, stage);
    if (v->state.disk == D_FAILED)
        request_leave_extents(r);
}

/* on-no-data-accessible suspend-io: what no good disk has taken is started anew when there is one. */
static bool wait_for_data(struct request *r)
{
    struct volume *v = r->volume;
    if (!v->state.no_data_waits || r->in_transfer_log || r->remote_read || v->state.role != ROLE_PRIMARY)
        return false;
    if (!is_write(r) && r->kind != REQUEST_FLUSH)
        return false;
    bool good = (volume_disk_usable(v) && v->state.disk == D_UP_TO_DATE) || v->state.peer_disk == D_UP_TO_DATE;
    if (good)
        return false;   /* this one failed for another reason */
    volume_al_put(v, &r->al);
    r->local_ok = r->net_ok = r->started = false;
    r->error = 0;
    hold(r, r->kind == REQUEST_FLUSH ? STAGE_NEW : STAGE_LOCKED);
    return true;
}

void request_settle(struct request *r)
{
    if (!r->completed && !r->local_pending && !r->net_pending) {
        if (freeze_holds(r))
            freeze_park(r);
        else if (has_good_copy(r))
            complete(r, 0);
        else if (!wait_for_data(r))
            complete(r, r->error ? r->error : EIO);
    }
    release(r);
}

void request_net_done(struct request *r, bool ok)
{
    if (!r->net_pending)
        return;
    r->net_pending = false;
    r->net_ok = ok;
    range_firm(&r->volume->ranges, &r->lock.range);
    list_del(&r->sent);
}

void request_mark_dirty(struct request *r)
{
    if (!r->marked && is_write(r)) {
        r->marked = true;
        volume_set_dirty(r->volume, r->offset, r->length);
    }
}

/* ---- writes ---- */

static void write_local_done(struct disk_op *op)
{
    struct request *r = op->owner;
    struct volume *v = r->volume;
    r->local_pending = false;
    r->local_ok = op->error == 0;
    volume_disk_finished(v, op);
    if (op->error) {
        r->error = op->error;
        bool has_copy = r->in_transfer_log || r->net_ok;
        bool soft = (op->error == ENOTSUP && (r->flags & REQUEST_FAST)) ||
                    (op->error == ENOSPC && !has_copy && !op->lost);
        /* differs: a full backing store without a peer is the client's error, not the disk's (decision 0004). */
        if (!soft) {
            request_mark_dirty(r);
            volume_disk_error(v, op, r->kind == REQUEST_WRITE ? RE_DISK_WRITE : RE_DISK_ZERO);
        }
    }
    if (r->in_conflict && conflict_local_done(r))
        return;
    request_settle(r);
}

void request_write_local(struct request *r)
{
    struct volume *v = r->volume;
    uint32_t flags = 0;
    if (v->passing && conflict_defers(r))
        return;
    if (r->flags & REQUEST_FUA)
        flags |= DISK_FUA;
    if (r->flags & REQUEST_FAST)
        flags |= DISK_FAST;
    if (r->kind == REQUEST_TRIM || (r->flags & REQUEST_MAY_UNMAP))
        flags |= DISK_MAY_UNMAP;
    if (r->kind == REQUEST_TRIM)
        flags |= DISK_DISCARD;
    r->op = (struct disk_op){.kind = r->kind == REQUEST_WRITE ? DISK_WRITE : DISK_ZERO,
                             .flags = flags,
                             .fd = v->disk.data_fd,
                             .offset = r->offset,
                             .length = r->length,
                             .data = r->buf ? r->buf->data : NULL,
                             .extents_max = flags & DISK_DISCARD ? v->disk.discard_granularity : 0};
    r->local_pending = true;
    volume_disk_submit(v, &r->op, write_local_done, r);
}

/* The device has become smaller since the client asked. */
static bool is_behind_the_end(const struct request *r)
{
    return r->offset + r->length > r->volume->size_bytes;
}

void request_start_write(struct request *r)
{
    struct volume *v = r->volume;
    if (volume_is_frozen(v)) {
        hold_locked(r, STAGE_ADMITTED);
        return;
    }
    bool local = volume_disk_usable(v);
    bool remote = volume_replicates(v);
    bool good = (local && v->state.disk == D_UP_TO_DATE) || (remote && v->state.peer_disk == D_UP_TO_DATE);
    if (!good && v->state.role == ROLE_PRIMARY && v->state.no_data_waits) {
        volume_al_put(v, &r->al);
        hold(r, STAGE_LOCKED);
        return;
    }
    if (!good || v->state.role != ROLE_PRIMARY || is_behind_the_end(r)) {
        complete(r, EIO);
        release(r);
        return;
    }
    if (remote && turns_hold(r)) {
        v->turns.writes_wait = true;
        request_hold_aside(r);
        return;
    }
    if (remote && v->core->link.options.on_congestion)
        congestion_check(v);
    if (remote && !split_can_carry(v->core, r)) {
        complete(r, ENOTSUP);   /* the client falls back to writing zeroes */
        release(r);
        return;
    }
    if (remote && fast_zero_first(r, local))
        return;
    r->started_ns = v->core->now_ns;
    r->started = true;
    conflict_set_dropped(r, false);
    if (local && v->state.disk != D_UP_TO_DATE && !r->behind) {
        r->behind = true;
        v->writes_behind++;
    }
    if (remote) {
        if (!local && v->bitmap)      /* an attaching or leaving disk will lack it; without one the peer marks it */
            request_mark_dirty(r);
        sender_write(v->core, r);
        sender_counts_as_gone(v->core, r);
    } else {
        range_firm(&v->ranges, &r->lock.range);
        request_mark_dirty(r);
        if (volume_notifies_out_of_sync(v))
            sender_out_of_sync(v, r->offset, r->length);
    }
    if (local)
        request_write_local(r);
    request_settle(r);
}

/* False: it has stepped back while it waited for something else, and goes on when it is granted again, which may be due
 * in this very tick. */
static bool has_lock(const struct request *r)
{
    return r->lock.range.held && list_empty(&r->lock.range.ready);
}

static void write_admitted(struct al_waiter *waiter)
{
    struct request *r = container_of(waiter, struct request, al);
    if (has_lock(r))
        request_start_write(r);
    else if (volume_waits_for_disk(r->volume))
        volume_al_put(r->volume, &r->al);   /* held aside: the disk does not wait for it */
}

static void write_locked(struct request *r)
{
    struct volume *v = r->volume;
    if (volume_is_frozen(v)) {
        hold_locked(r, STAGE_LOCKED);
        return;
    }
    if (!list_empty(&r->al.link))
        return;     /* the activity log is being written for it already */
    bool has_extents = r->al.has_reference && r->al.attachment == v->attachment;
    if (!has_extents && volume_disk_usable(v) && v->state.role == ROLE_PRIMARY) {
        r->al.granted = write_admitted;
        volume_al_begin(v, &r->al, r->offset, r->length);
    } else
        request_start_write(r);
}

static void write_granted(struct range_item *item)
{
    write_locked(container_of(item, struct request, lock));
}

struct request *request_of_range(struct range *range)
{
    struct range_item *item = container_of(range, struct range_item, range);
    return item->granted == write_granted ? container_of(item, struct request, lock) : NULL;
}

void request_lock_again(struct request *r)
{
    struct volume *v = r->volume;
    volume_unlock_range(v, &r->lock);
    if (volume_lock_range(v, &r->lock, r->offset, r->length, RANGE_YIELDING, write_granted))
        write_locked(r);
}

static void write_new(struct request *r)
{
    struct volume *v = r->volume;
    uint64_t first = r->offset / AL_EXTENT_BYTES, last = (r->offset + r->length - 1) / AL_EXTENT_BYTES;
    if (last - first >= AL_EXTENTS_PER_REQUEST_MAX || (v->al && last - first >= v->disk.al_extents)) {
        complete(r, EINVAL);
        return;
    }
    if (volume_lock_range(v, &r->lock, r->offset, r->length, RANGE_YIELDING, write_granted))
        write_locked(r);
}

/* ---- reads ---- */

static void read_local_done(struct disk_op *op)
{
    struct request *r = op->owner;
    struct volume *v = r->volume;
    r->local_pending = false;
    r->local_ok = op->error == 0;
    volume_disk_finished(v, op);
    if (!op->error && !balance_read_is_alone(v, r)) {
        request_settle(r);
        return;
    }
    if (op->error) {
        r->error = op->error;
        volume_disk_error(v, op, RE_DISK_READ);
    }
    r->local_ok = false;
    if (op->flags & DISK_GIVEN_UP) {    /* the disk may still write to that buffer */
        struct buf *fresh = buf_take(&v->core->app_buffers, r->length);
        if (!fresh) {
            request_settle(r);
            return;
        }
        buf_put(r->buf);
        r->buf = fresh;
    }
    request_read_start(r);      /* the peer may have the data */
}

static void read_granted(struct range_item *item)
{
    struct request *r = container_of(item, struct request, lock);
    volume_unlock_range(r->volume, item);
    request_read_start(r);
}

void request_read_start(struct request *r)
{
    struct volume *v = r->volume;
    if (v->state.suspended) {
        hold(r, STAGE_NEW);
        return;
    }
    if (is_behind_the_end(r)) {
        complete(r, EIO);
        return;
    }
    bool doubtful = v->state.disk != D_UP_TO_DATE || v->bad_blocks;
    bool dirty = doubtful && volume_differs_in(v, r->offset, r->length);
    /* A dirty block's good copy is elsewhere.  That a clean one is good is sure after an exchange of bitmaps only, or
     * where nobody else has written since this disk lost some: also without the peer. */
    bool exchanged = v->state.disk == D_INCONSISTENT && link_is_up(v->core) && v->state.peer_disk == D_UP_TO_DATE &&
                     (v->state.connection == C_SYNC_TARGET || v->state.connection == C_PAUSED_SYNC_T);
    bool whole = v->bad_blocks && (v->others_whole || v->state.disk == D_UP_TO_DATE);
    bool clean = v->state.disk >= D_INCONSISTENT && !dirty && (exchanged || whole) && !balance_read_is_alone(v, r);
    bool local = volume_disk_usable(v) && !r->error && (doubtful ? clean : true);
    if (local && balance_read_waits(v, r)) {
        if (!volume_lock_range(v, &r->lock, r->offset, r->length, RANGE_SHARED, read_granted))
            return;
        volume_unlock_range(v, &r->lock);
    }
    if (local && !balance_reads_remotely(v, r)) {
        r->op = (struct disk_op){.kind = DISK_READ,
                                 .fd = v->disk.data_fd,
                                 .offset = r->offset,
                                 .length = r->length,
                                 .data = r->buf->data};
        r->local_pending = true;
        volume_disk_submit(v, &r->op, read_local_done, r);
        return;
    }
    if (link_is_up(v->core) && v->state.peer_disk == D_UP_TO_DATE) {
        r->remote_read = true;
        r->net_pending = true;
        r->started_ns = v->core->now_ns;
        list_del(&r->link);
        list_add_tail(&v->remote_reads, &r->link);
        v->stats.peer_pending++;
        sender_data_request(v, r);
        return;
    }
    if (v->core->link.phase == LINK_LOST || (v->state.no_data_waits && v->state.role == ROLE_PRIMARY)) {
        hold(r, STAGE_NEW);
        return;
    }
    complete(r, r->error ? r->error : EIO);
}

/* ---- flushes ---- */

static bool vouches_alone(const struct request *r)
{
    return r->local_ok && r->volume->state.disk == D_UP_TO_DATE;
}

/* differs: DRBD reports a flush as replicated once the barrier is sent; we wait for its ack (decision 0002). */
static void flush_at_peer(struct request *r)
{
    struct core *core = r->volume->core;
    sender_close_epoch(core, NULL);
    struct list_head *last = list_last(&core->link.log.epochs);
    if (!last) {
        r->net_ok = true;
        return;
    }
    r->net_pending = true;
    r->flush_epoch = list_entry(last, struct epoch, link)->serial;
    list_del(&r->link);
    list_add_tail(&r->volume->flush_waiters, &r->link);
}

static void flush_local_done(struct disk_op *op)
{
    struct request *r = op->owner;
    struct volume *v = r->volume;
    r->local_pending = false;
    volume_disk_finished(v, op);
    r->local_ok = op->error == 0;
    if (op->error) {
        r->error = op->error;
        volume_disk_error(v, op, RE_DISK_FLUSH);    /* a failed flush is final for the device */
    }
    if (!r->net_pending && !r->net_ok && !vouches_alone(r) && volume_replicates(v))
        flush_at_peer(r);
    request_settle(r);
}

static void flush_new(struct request *r)
{
    struct volume *v = r->volume;
    struct core *core = v->core;
    if (volume_is_frozen(v)) {
        hold(r, STAGE_NEW);
        return;
    }
    bool local = volume_disk_usable(v);
    bool remote = volume_replicates(v);
    if (!local && !remote && v->state.no_data_waits && v->state.role == ROLE_PRIMARY) {
        hold(r, STAGE_NEW);
        return;
    }
    if (!local && !remote) {
        complete(r, EIO);
        return;
    }
    /* Flushing a disk that lacks the peer's writes makes nothing stable: the peer has to, in every protocol (decision
     * 0142). */
    bool strict = core->link.options.strict_flush && core->link.options.protocol == 3;
    if (remote)
        sender_close_epoch(core, NULL);
    if (remote && (strict || !local || v->state.disk != D_UP_TO_DATE))
        flush_at_peer(r);
    if (local && !(v->disk.flags & RE_ATTACH_NO_DISK_FLUSHES)) {
        r->op = (struct disk_op){.kind = DISK_FLUSH, .fd = v->disk.data_fd};
        r->local_pending = true;
        volume_disk_submit(v, &r->op, flush_local_done, r);
    } else
        r->local_ok = local;
    request_settle(r);
}

/* Barrier acks arrived (or the link was resolved): which flushes are through? */
void app_flush_check(struct core *core)
{
    if (freeze_has_kept(core))
        return;
    struct epoch *oldest = transfer_log_oldest(&core->link.log);
    for (int i = 0; i < RE_VOLUMES_MAX; i++) {
        struct volume *v = core->volumes[i];
        if (!v)
            continue;
        while (!list_empty(&v->flush_waiters)) {
            struct request *r = list_entry(list_first(&v->flush_waiters), struct request, link);
            if (core->link.phase == LINK_UP && oldest && oldest->serial <= r->flush_epoch)
                break;
            list_del(&r->link);
            r->net_pending = false;
            r->net_ok = volume_replicates(v);   /* else nobody has said that it is stable there */
            request_settle(r);
        }
    }
}

/* ---- allocation ---- */

static void extents_done(struct disk_op *op)
{
    struct request *r = op->owner;
    r->local_pending = false;
    r->local_ok = true;
    volume_disk_finished(r->volume, op);
    if (op->error || op->extents_count == 0) {      /* no answer is an answer: all of it is data */
        r->extents[0] = (struct disk_extent){.length = r->length, .hole = false};
        r->extents_count = 1;
    } else
        r->extents_count = op->extents_count;
    request_settle(r);
}

static void extents_new(struct request *r)
{
    struct volume *v = r->volume;
    if (!volume_disk_usable(v) || v->state.disk != D_UP_TO_DATE || (r->flags & REQUEST_UNDO)) {
        r->extents[0] = (struct disk_extent){.length = r->length, .hole = false};
        r->extents_count = 1;
        complete(r, 0);
        return;
    }
    r->op = (struct disk_op){.kind = DISK_EXTENTS,
                             .fd = v->disk.data_fd,
                             .offset = r->offset,
                             .length = r->length,
                             .extents = r->extents,
                             .extents_max = r->extents_max};
    r->local_pending = true;
    volume_disk_submit(v, &r->op, extents_done, r);
}

/* ---- entry ---- */

static void request_new(struct request *r)
{
    if (r->volume->state.suspended && !(r->flags & REQUEST_UNDO)) {
        hold(r, STAGE_NEW);
        return;
    }
    switch ((enum request_kind)r->kind) {
    case REQUEST_WRITE:
    case REQUEST_ZERO:
    case REQUEST_TRIM:
        if (volume_is_frozen(r->volume))
            hold(r, STAGE_NEW);
        else
            write_new(r);
        break;
    case REQUEST_READ:
        if (r->flags & REQUEST_UNDO)
            undo_read(r);
        else
            request_read_start(r);
        break;
    case REQUEST_FLUSH:
        if (r->flags & REQUEST_UNDO)
            complete(r, 0);
        else
            flush_new(r);
        break;
    case REQUEST_EXTENTS:
        extents_new(r);
        break;
    }
}

void request_resume(struct request *r)
{
    if (r->stage == STAGE_NEW)
        request_new(r);
    else if (!has_lock(r))
        return;
    else if (r->stage == STAGE_LOCKED)
        write_locked(r);
    else
        request_start_write(r);
}

void volume_submit(struct volume *v, struct request *r)
{
    r->volume = v;
    v->stats.upper_pending++;
    if (is_write(r)) {
        v->stats.writes++;
        v->stats.written_bytes += r->length;
        if (r->kind != REQUEST_WRITE)
            v->stats.zeroes++;
    } else if (r->kind == REQUEST_READ) {
        v->stats.reads++;
        v->stats.read_bytes += r->length;
    } else if (r->kind == REQUEST_FLUSH)
        v->stats.flushes++;
    if (r->kind != REQUEST_FLUSH && !u64_range_inside(r->offset, r->length, v->size_bytes)) {
        complete(r, is_write(r) ? ENOSPC : EINVAL);
        return;
    }
    request_new(r);
}
