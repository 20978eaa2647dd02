/* SPDX-License-Identifier: Apache-2.0 */
/* The peer's writes on our disk: in order of epochs, acknowledged as asked, flushed before a barrier ack.
 *
 * Invariants: a write of an epoch is not started before every earlier epoch is on stable storage; the acks of an epoch
 * precede its barrier ack; barrier acks leave in order; what was received is written even if the link breaks, since a
 * P_RECV_ACK may have promised it.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

struct peer_request *peer_request_take(struct core *core, struct volume *v, enum peer_kind kind)
{
    struct list_head *link = list_pop(&core->peer_free);
    if (!link)
        return NULL;
    struct peer_request *pr = list_entry(link, struct peer_request, link);
    *pr = (struct peer_request){
        .volume = v, .kind = (uint8_t)kind, .link_generation = core->link.generation};
    list_init(&pr->link);
    list_init(&pr->al.link);
    list_init(&pr->op.link);
    list_init(&pr->lock.range.ready);
    return pr;
}

void peer_request_free(struct core *core, struct peer_request *pr)
{
    CHECK(!pr->lock.range.inserted);
    if (pr->buf)
        buf_put(pr->buf);
    pr->buf = NULL;
    list_del(&pr->link);
    list_add(&core->peer_free, &pr->link);
}

static bool is_current_link(const struct peer_request *pr)
{
    const struct link *link = &pr->volume->core->link;
    return link->phase == LINK_UP && link->generation == pr->link_generation;
}

/* ---- epochs ---- */

struct receive_epoch *peer_epoch_open(struct core *core)
{
    struct link *link = &core->link;
    struct list_head *last = list_last(&link->epochs);
    struct receive_epoch *epoch = last ? list_entry(last, struct receive_epoch, link) : NULL;
    if (epoch && !epoch->closed)
        return epoch;
    struct list_head *free_link = list_pop(&link->free_epochs);
    CHECK(free_link);
    epoch = list_entry(free_link, struct receive_epoch, link);
    *epoch = (struct receive_epoch){.acked = true};
    list_init(&epoch->waiting);
    list_add_tail(&link->epochs, &epoch->link);
    return epoch;
}

void peer_barrier(struct core *core, const uint8_t number[4])
{
    struct list_head *last = list_last(&core->link.epochs);
    struct receive_epoch *epoch = last ? list_entry(last, struct receive_epoch, link) : NULL;
    if (!epoch || epoch->closed)
        return;     /* an epoch without writes is never acknowledged */
    memcpy(epoch->number, number, 4);
    epoch->closed = true;
}

/* The link is gone: finish what was received, acknowledge nothing. */
void peer_epochs_orphan(struct core *core)
{
    list_for_each(pos, &core->link.epochs) {
        struct receive_epoch *epoch = list_entry(pos, struct receive_epoch, link);
        epoch->closed = true;
        epoch->acked = false;
    }
    core->link.receive_starved = false;
}

/* The volume's disk has been flushed after its last write: no epoch has to do it again. */
void peer_epochs_stable(struct volume *v)
{
    list_for_each(pos, &v->core->link.epochs)
        list_entry(pos, struct receive_epoch, link)->volumes &= ~(UINT64_C(1) << v->number);
}

static bool is_oldest(const struct core *core, const struct receive_epoch *epoch)
{
    return list_first(&core->link.epochs) == &epoch->link;
}

static void epoch_answer(struct core *core, struct receive_epoch *epoch)
{
    if (epoch->acked && core->link.phase == LINK_UP)
        sender_barrier_ack(core, epoch->number, epoch->count);
    list_add_tail(&core->link.free_epochs, &epoch->link);
}

static void epoch_flushed(struct core *core, struct receive_epoch *epoch)
{
    list_del(&epoch->link);
    epoch_answer(core, epoch);
    struct list_head *next = list_first(&core->link.epochs);
    if (!next)
        return;
    struct receive_epoch *now = list_entry(next, struct receive_epoch, link);
    struct list_head waiting;
    list_init(&waiting);
    list_splice_tail(&waiting, &now->waiting);
    for (struct list_head *l; (l = list_pop(&waiting));)
        peer_write_start(list_entry(l, struct peer_request, link));
}

static void flush_done(struct disk_op *op)
{
    struct epoch_flush *flush = op->owner;
    struct volume *v = flush->v;
    volume_disk_finished(v, op);
    if (op->error) {
        volume_disk_error(v, op, RE_DISK_FLUSH);
        flush->epoch->failed = true;
    }
    flush->epoch->flushes--;
}

static void start_flushes(struct core *core, struct receive_epoch *epoch)
{
    epoch->flushing = true;
    for (int i = 0; i < RE_VOLUMES_MAX; i++) {
        struct volume *v = core->volumes[i];
        if (!v || !(epoch->volumes & (UINT64_C(1) << i)))
            continue;
        if (!volume_can_flush(v)) {
            epoch->failed = true;
            continue;
        }
        if (v->disk.flags & RE_ATTACH_NO_DISK_FLUSHES)
            continue;
        struct epoch_flush *flush = &v->epoch_flush;
        *flush = (struct epoch_flush){.epoch = epoch, .v = v};
        flush->op = (struct disk_op){.kind = DISK_FLUSH, .fd = v->disk.data_fd};
        epoch->flushes++;
        volume_disk_submit(v, &flush->op, flush_done, flush);
    }
}

void peer_epochs_check(struct core *core)
{
    for (;;) {
        struct list_head *first = list_first(&core->link.epochs);
        if (!first)
            break;
        struct receive_epoch *epoch = list_entry(first, struct receive_epoch, link);
        if (!epoch->closed || epoch->pending)
            break;
        if (!epoch->flushing)
            start_flushes(core, epoch);
        if (epoch->flushes)
            break;
        /* No barrier ack for what is not stable: when the link is lost the peer marks all of it as out of sync. */
        if (epoch->failed && epoch->acked && core->link.phase == LINK_UP)
            link_lost(core, RE_LOST_OWN_DISK, 0, 0, true);
        epoch_flushed(core, epoch);
    }
    link_check_resolved(core);
}

/* ---- one write ---- */

static void write_finished(struct peer_request *pr, bool ok)
{
    struct volume *v = pr->volume;
    struct core *core = v->core;
    volume_unlock_range(v, &pr->lock);
    if (v->passing)
        conflict_finished(pr);
    volume_al_put(v, &pr->al);
    uint64_t offset = pr->sector * SECTOR_BYTES;
    if (is_current_link(pr)) {
        const struct re_link *o = &core->link.options;
        bool write_ack = o->version >= 100 ? pr->dp_flags & DP_SEND_WRITE_ACK : o->protocol == 3;
        if (!ok) {
            volume_set_dirty(v, offset, pr->bytes);
            sender_ack(v, P_NEG_ACK, pr->sector, pr->block_id, pr->bytes);
        } else if (write_ack || (o->version >= 100 && (pr->dp_flags & DP_MAY_SET_IN_SYNC))) {
            bool resync = (pr->dp_flags & DP_MAY_SET_IN_SYNC) && v->state.connection >= C_SYNC_SOURCE &&
                          v->state.connection <= C_PAUSED_SYNC_T;
            if (resync)
                volume_clear_dirty(v, offset, pr->bytes);
            sender_ack(v, resync ? P_RS_WRITE_ACK : P_WRITE_ACK, pr->sector, pr->block_id, pr->bytes);
        }
    }
    v->stats.unacked--;
    pr->epoch->pending--;
    core->link.peer_writes--;
    peer_request_free(core, pr);
}

static void write_part(struct peer_request *pr);

static void write_done(struct disk_op *op)
{
    struct peer_request *pr = op->owner;
    struct volume *v = pr->volume;
    volume_disk_finished(v, op);
    if (op->error)
        volume_disk_error(v, op, pr->kind == PEER_WRITE ? RE_DISK_WRITE : RE_DISK_ZERO);
    pr->done_bytes += (uint32_t)op->length;
    if (op->error || pr->done_bytes >= pr->bytes) {
        write_finished(pr, op->error == 0);
        return;
    }
    volume_al_put(v, &pr->al);
    write_part(pr);
}

/* What is written next: up to the last extent that one transaction of the log can bring in. */
static uint32_t part_bytes(const struct peer_request *pr)
{
    uint64_t offset = pr->sector * SECTOR_BYTES + pr->done_bytes;
    uint64_t extents = u32_min(AL_EXTENTS_PER_REQUEST_MAX, pr->volume->disk.al_extents);
    uint64_t end = (offset / AL_EXTENT_BYTES + extents) * AL_EXTENT_BYTES;
    return (uint32_t)u64_min(pr->bytes - pr->done_bytes, end - offset);
}

static void write_submit(struct peer_request *pr)
{
    struct volume *v = pr->volume;
    if (!volume_disk_usable(v)) {
        write_finished(pr, false);
        return;
    }
    uint32_t flags = pr->dp_flags & DP_FUA ? DISK_FUA : 0;
    if (pr->dp_flags & DP_FLUSH)
        flags |= DISK_PREFLUSH;
    if (pr->dp_flags & DP_DISCARD)
        flags |= DISK_MAY_UNMAP;
    /* Without P_ZEROES a P_TRIM may stand for zeroes. */
    if ((pr->dp_flags & (DP_DISCARD | DP_ZEROES)) == DP_DISCARD && (v->core->link.options.features & FEATURE_WZEROES))
        flags |= DISK_DISCARD;
    if (v->disk.flags & RE_ATTACH_NO_DISK_FLUSHES)
        flags |= DISK_NO_SYNC;
    uint8_t kind = pr->bytes == 0 ? DISK_FLUSH : pr->kind == PEER_WRITE ? DISK_WRITE : DISK_ZERO;
    pr->op = (struct disk_op){.kind = kind,
                              .flags = flags,
                              .fd = v->disk.data_fd,
                              .offset = pr->sector * SECTOR_BYTES + pr->done_bytes,
                              .length = part_bytes(pr),
                              .data = pr->buf ? pr->buf->data + pr->done_bytes : NULL,
                              .extents_max = flags & DISK_DISCARD ? v->disk.discard_granularity : 0};
    pr->epoch->volumes |= UINT64_C(1) << v->number;
    volume_disk_submit(v, &pr->op, write_done, pr);
}

static void write_admitted(struct al_waiter *waiter)
{
    write_submit(container_of(waiter, struct peer_request, al));
}

static void write_part(struct peer_request *pr)
{
    struct volume *v = pr->volume;
    /* The writer has no disk of its own: our activity log has to cover its writes. */
    if (volume_disk_usable(v) && pr->bytes && v->state.peer_disk < D_INCONSISTENT &&
        v->state.connection >= C_CONNECTED) {
        pr->al.granted = write_admitted;
        volume_al_begin(v, &pr->al, pr->sector * SECTOR_BYTES + pr->done_bytes, part_bytes(pr));
    } else
        write_submit(pr);
}

/* Both its range and its epoch's turn are there. */
void peer_write_start(struct peer_request *pr)
{
    if (pr->volume->passing && conflict_holds_up(pr))
        return;
    if (is_oldest(pr->volume->core, pr->epoch))
        write_part(pr);
    else
        list_add_tail(&pr->epoch->waiting, &pr->link);
}

static void write_granted(struct range_item *item)
{
    peer_write_start(container_of(item, struct peer_request, lock));
}

struct peer_request *peer_write_of_range(struct range *range)
{
    struct range_item *item = container_of(range, struct range_item, range);
    return range->mode == RANGE_PASSING ? container_of(item, struct peer_request, lock) : NULL;
}

/* The link of two Primaries is lost: what waits for own writes is not carried out.  Nobody was told that it was, and
 * own writes may be kept for long (engine/freeze.c). */
void peer_writes_drop_waiting(struct volume *v)
{
    struct range *next;
    for (struct range *range = range_first_overlap(&v->ranges, 0, UINT64_MAX); range; range = next) {
        next = range_next_overlap(range, 0, UINT64_MAX);
        struct range_item *item = container_of(range, struct range_item, range);
        if (item->granted == write_granted && !range->held)
            write_finished(container_of(item, struct peer_request, lock), false);
    }
}

void peer_write_received(struct core *core, struct peer_request *pr)
{
    struct volume *v = pr->volume;
    const struct re_link *o = &core->link.options;
    v->stats.unacked++;
    v->stats.peer_writes++;
    v->stats.received_bytes += pr->buf ? pr->bytes : 0;
    bool receive_ack = o->version >= 100 ? pr->dp_flags & DP_SEND_RECEIVE_ACK : o->protocol == 2;
    if (receive_ack)
        sender_ack(v, P_RECV_ACK, pr->sector, pr->block_id, pr->bytes);
    if (v->state.peer_disk < D_INCONSISTENT && v->state.connection >= C_CONNECTED)
        volume_set_dirty(v, pr->sector * SECTOR_BYTES, pr->bytes);  /* the writer has no disk: only we have this */
    if (!pr->bytes) {       /* only a flush: it waits for its epoch's turn, not for a range */
        peer_write_start(pr);
        return;
    }
    if (v->verify.open)
        verify_answer_start(v);     /* it was asked before this write */
    bool granted = volume_lock_range(v, &pr->lock, pr->sector * SECTOR_BYTES, pr->bytes, conflict_mode(core),
                                     write_granted);
    if (o->two_primaries)
        conflict_arrived(pr);
    if (granted)
        peer_write_start(pr);
    else {
        resync_target_yield(v, &pr->lock.range);
        if (v->state.connection == C_VERIFY_S || !list_empty(&v->verify.answers))
            verify_yield(v, &pr->lock.range);
        if (o->two_primaries)
            conflict_pass(pr);
    }
}
