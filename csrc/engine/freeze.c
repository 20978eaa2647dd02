/* SPDX-License-Identifier: Apache-2.0 */
/* Frozen I/O: nothing is completed, nothing is lost.
 *
 * While a volume is suspended no request is started and finished ones are parked.  When the link is lost then, the
 * transfer log is kept (LINK_KEEP): its requests leave their epochs but stay in order, with their activity log extents.
 * What comes next is the control plane's choice:
 *   LINK_RESEND   the same data is at the other end of a new link: everything that was not barrier-acked is sent again,
 *                 in the old order, with an epoch's end wherever one was.  What the application was told long ago is
 *                 sent too: the peer may have had it in a volatile cache only.
 *   LINK_RESOLVE  the peer will not get it: everything becomes dirty.  A new generation is durable by then.
 *
 * Invariants: a kept request is in no epoch (`epoch` is NULL), so no ack finds it and no timeout counts it; it is not
 * completed.  Its data is in its buffer (always with the link's option keep_data) or on the local disk, and is read
 * back only if nothing written later overlaps it: what is sent again is exactly what was sent before.
 */
#include <errno.h>

#include "base/check.h"
#include "engine/internal.h"

/* The send queue holds a reference of its own, but what it has sent may have to be sent again. */
bool freeze_needs_data(const struct request *r)
{
    return r->in_transfer_log && (!r->epoch || !r->local_ok || r->volume->core->link.options.keep_data);
}

bool freeze_holds(const struct request *r)
{
    return r->volume->state.suspended || (r->in_transfer_log && !r->epoch);
}

/* A request that waits for the end of a suspension stands in nobody's way: not in that of a resync. */
void freeze_let_go(struct request *r)
{
    struct volume *v = r->volume;
    if (!v->state.suspended || r->stage == STAGE_NEW)
        return;
    r->stage = STAGE_NEW;
    volume_al_put(v, &r->al);
    volume_unlock_range(v, &r->lock);
}

void freeze_begin(struct volume *v)
{
    for (struct list_head *l = v->held.next; l != &v->held; l = l->next)
        freeze_let_go(list_entry(l, struct request, link));
}

void freeze_park(struct request *r)
{
    bool done = r->local_ok && r->net_ok && r->volume->core->link.options.two_primaries;   /* nothing is sent again */
    if (!r->in_transfer_log || done)
        volume_unlock_range(r->volume, &r->lock);
    list_del(&r->link);
    list_add_tail(&r->volume->parked, &r->link);
}

void freeze_release(struct volume *v)
{
    if (v->state.suspended || list_empty(&v->parked))
        return;
    struct list_head parked;
    list_init(&parked);
    list_splice_tail(&parked, &v->parked);
    for (struct list_head *link; (link = list_pop(&parked));)
        request_settle(list_entry(link, struct request, link));     /* parks it again if it is still kept */
}

bool freeze_has_kept(const struct core *core)
{
    return !list_empty(&core->link.kept);
}

void freeze_keep(struct core *core)
{
    struct link *link = &core->link;
    for (struct epoch *epoch; (epoch = transfer_log_oldest(&link->log));) {
        while (!list_empty(&epoch->requests)) {
            struct request *r = list_entry(list_first(&epoch->requests), struct request, tl);
            transfer_log_remove(&link->log, r);
            list_del(&r->sent);
            if (r->length == 0) {       /* a write that nobody asked for (conflict.c) */
                request_left_log(r);
                request_net_done(r, false);
                request_settle(r);
                continue;
            }
            r->in_transfer_log = true;
            r->kept_epoch = epoch->serial;
            list_add_tail(&link->kept, &r->tl);
        }
        transfer_log_free(&link->log, epoch);
    }
}

static struct request *take_first(struct link *link)
{
    struct request *r = list_entry(list_first(&link->kept), struct request, tl);
    list_del(&r->tl);
    r->in_transfer_log = false;
    request_left_log(r);
    return r;
}

static void give_up(struct request *r)
{
    request_mark_dirty(r);
    request_net_done(r, false);
    request_settle(r);
}

void freeze_give_up(struct core *core)
{
    while (freeze_has_kept(core))
        give_up(take_first(&core->link));
}

/* ---- sending again ---- */

static bool needs_reading(const struct request *r)
{
    return r->kind == REQUEST_WRITE && !r->buf && r->length;
}

static bool can_be_sent(const struct request *r)
{
    return volume_replicates(r->volume) && split_can_carry(r->volume->core, r) && !needs_reading(r);
}

static void resend_end(struct core *core, bool ok)
{
    struct link *link = &core->link;
    core_done(core, link->resend_cookie, -1, ok ? RE_RESULT_OK : RE_RESULT_CANCELED, 0);
    link->resend_cookie = 0;
}

static void send_all(struct core *core)
{
    struct link *link = &core->link;
    uint64_t epoch = 0;
    if (link->options.two_primaries)
        conflict_keep_acknowledged(core);
    while (freeze_has_kept(core)) {
        struct request *r = take_first(link);
        if (!can_be_sent(r)) {      /* a resync will bring it, or there is nobody to have it */
            give_up(r);
            continue;
        }
        if (r->kept_epoch != epoch)
            transfer_log_close(&link->log);
        epoch = r->kept_epoch;
        r->net_ok = false;
        r->parts_left = 0;
        r->started_ns = core->now_ns;
        sender_write(core, r);
    }
    sender_close_epoch(core, NULL);
    struct list_head *last = list_last(&link->log.epochs);
    for (int i = 0; last && i < RE_VOLUMES_MAX; i++)
        if (core->volumes[i])
            for (struct list_head *l = core->volumes[i]->flush_waiters.next; l != &core->volumes[i]->flush_waiters;
                 l = l->next)
                list_entry(l, struct request, link)->flush_epoch = list_entry(last, struct epoch, link)->serial;
    app_flush_check(core);
    resend_end(core, true);
}

static void check_ready(struct core *core)
{
    struct link *link = &core->link;
    if (!link->resend_cookie || link->resend_reads)
        return;
    if (link->phase != LINK_UP || link->generation != link->resend_generation || link->resend_failed)
        resend_end(core, false);
    else
        send_all(core);
}

static void read_back_done(struct disk_op *op)
{
    struct request *r = op->owner;
    struct core *core = r->volume->core;
    r->local_pending = false;
    volume_disk_finished(r->volume, op);
    if (op->error)
        core->link.resend_failed = true;
    core->link.resend_reads--;
    request_settle(r);      /* it may have been given up meanwhile */
    check_ready(core);
}

static bool read_back(struct request *r)
{
    struct volume *v = r->volume;
    struct core *core = v->core;
    if (r->local_pending || !volume_disk_usable(v))
        return false;
    r->buf = buf_take(&core->app_buffers, r->length);
    if (!r->buf)
        return false;
    r->op = (struct disk_op){.kind = DISK_READ,
                             .fd = v->disk.data_fd,
                             .offset = r->offset,
                             .length = r->length,
                             .data = r->buf->data};
    r->local_pending = true;
    core->link.resend_reads++;
    volume_disk_submit(v, &r->op, read_back_done, r);
    return true;
}

/* Does something younger cover a part of what has to be read back?  Requests that are not completed hold their range
 * in the volume's lock; the ranges of completed ones are unused and serve for a lock of our own. */
static bool any_overwritten(struct core *core)
{
    struct link *link = &core->link;
    struct range_lock younger[RE_VOLUMES_MAX];
    struct list_head granted;
    bool found = false;
    list_init(&granted);
    for (int i = 0; i < RE_VOLUMES_MAX; i++)
        range_lock_init(&younger[i]);
    for (struct list_head *l = link->kept.prev; l != &link->kept; l = l->prev) {
        struct request *r = list_entry(l, struct request, tl);
        struct volume *v = r->volume;
        uint64_t end = r->offset + r->length;
        if (!r->completed)
            continue;
        if (needs_reading(r) && (range_overlaps_any(&younger[v->number], r->offset, end) ||
                                 range_overlaps_any(&v->ranges, r->offset, end)))
            found = true;
        range_init(&r->lock.range, r->offset, end, RANGE_SHARED, &r->lock);
        (void)range_acquire(&younger[v->number], &r->lock.range);
    }
    for (struct list_head *l = link->kept.next; l != &link->kept; l = l->next) {
        struct request *r = list_entry(l, struct request, tl);
        if (r->completed)
            range_release(&younger[r->volume->number], &r->lock.range, &granted);
    }
    return found;
}

void freeze_resend(struct core *core, uint64_t cookie)
{
    struct link *link = &core->link;
    if (link->phase != LINK_UP || link->resend_cookie || !cookie) {
        core_done(core, cookie, -1, RE_RESULT_INVALID, 0);
        return;
    }
    link->resend_cookie = cookie;
    link->resend_generation = link->generation;
    if (link->options.two_primaries)
        link->resend_failed = !conflict_can_keep(core);
    else
        link->resend_failed = freeze_has_kept(core) && any_overwritten(core);
    for (struct list_head *l = link->kept.next; l != &link->kept && !link->resend_failed; l = l->next) {
        struct request *r = list_entry(l, struct request, tl);
        bool stays = link->options.two_primaries && r->net_ok;
        if (!stays && volume_replicates(r->volume) && needs_reading(r) && !read_back(r))
            link->resend_failed = true;
    }
    check_ready(core);
}
