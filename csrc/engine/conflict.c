/* SPDX-License-Identifier: Apache-2.0 */
/* Two Primaries: writes of both nodes to the same blocks that cross on the wire.
 *
 * F is the node with the resolve-conflicts flag, G the other one.  F carries out every write of G at once, even beside
 * unanswered writes of its own, and puts its own data on top again when both are finished.  At G a write of F waits in
 * the range lock behind G's own, which F answers: so there as well F's data comes last.
 * differs: DRBD's F discards the write and G sends it again, if need be (decision 0037).  As G we do that, too.
 *
 * Invariants: F answers a write of G without waiting for G, so nobody waits in a circle; own writes of F keep their
 * place in the queue; an own write that one of G has landed on is not completed before its data is on top again; both
 * disks end up with the same content.
 */
#include <errno.h>

#include "base/check.h"
#include "engine/internal.h"

enum {
    STEP_BACK_MAX = 8,          /* how often an own write lets one of the peer pass before it insists on its turn */
    FLUSH_WRITE_AFTER_MS = 1000,
};

/* ---- sequence numbers: F looks at a write when it knows everything that G sent before it ---- */

bool conflict_must_wait(struct volume *v, uint32_t seq_num)
{
    struct link *link = &v->core->link;
    bool waits = link->options.resolve_conflicts && (int32_t)(seq_num - 1 - v->seq_in) > 0;
    if (waits && !link->seq_wait_ns)
        link->seq_wait_ns = v->core->now_ns;
    if (!waits)
        link->seq_wait_ns = 0;
    return waits;
}

void conflict_seen(struct volume *v, uint32_t seq_num)
{
    if ((int32_t)(seq_num - v->seq_in) > 0)
        v->seq_in = seq_num;
}

/* ---- a write of the peer has arrived ---- */

static bool passes(const struct range *range)
{
    return range->mode == RANGE_PASSING;
}

/* At F it waits for resync, verify and what G has answered, but not for G. */
enum range_mode conflict_mode(const struct core *core)
{
    const struct re_link *o = &core->link.options;
    return o->two_primaries && o->resolve_conflicts ? RANGE_PASSING : RANGE_EXCLUSIVE;
}

/* An operation of this own write is in flight. */
static bool is_busy(const struct request *r)
{
    return r->started && r->local_pending && !r->waits_for_peer;
}

bool conflict_holds_up(struct peer_request *pr)
{
    const struct range *write = &pr->lock.range;
    pr->waits_for_own = false;
    if (!passes(write))
        return false;
    for (struct range *range = range_first_overlap(&pr->volume->ranges, write->begin, write->end); range;
         range = range_next_overlap(range, write->begin, write->end)) {
        const struct request *r = request_of_range(range);
        if (r && is_busy(r))
            pr->waits_for_own = true;
    }
    return pr->waits_for_own;
}

/* An operation of this own write is over: which writes of G may go to the disk? */
static void let_pass(const struct request *r)
{
    uint64_t begin = r->offset, end = r->offset + r->length;
    struct range *next;
    for (struct range *range = range_first_overlap(&r->volume->ranges, begin, end); range; range = next) {
        next = range_next_overlap(range, begin, end);
        struct peer_request *pr = peer_write_of_range(range);
        if (pr && pr->waits_for_own)
            peer_write_start(pr);
    }
}

/* Is a write of G under way over this own one?  Those that came after its answer wait for it. */
static bool is_passed(const struct request *r)
{
    uint64_t begin = r->offset, end = r->offset + r->length;
    for (struct range *range = range_first_overlap(&r->volume->ranges, begin, end); range;
         range = range_next_overlap(range, begin, end))
        if (passes(range) && range->ticket < r->lock.range.firm_from)
            return true;
    return false;
}

/* The own data comes on top when the write of G is finished. */
static void wait_below(struct request *r)
{
    r->local_pending = r->in_conflict = r->write_again = r->waits_for_peer = true;
}

void conflict_arrived(struct peer_request *pr)
{
    struct volume *v = pr->volume;
    const struct range *write = &pr->lock.range;
    bool crosses = false;
    if (!passes(write))
        return;
    v->passing++;
    for (struct range *range = range_first_overlap(&v->ranges, write->begin, write->end); range;
         range = range_next_overlap(range, write->begin, write->end)) {
        struct request *r = request_of_range(range);
        if (!r || !r->started || !r->net_pending)   /* not sent: after it; answered: before it */
            continue;
        crosses = true;
        if (r->local_pending)
            r->in_conflict = r->write_again = true;
        else if (r->local_ok)
            wait_below(r);
    }
    v->stats.conflicts += crosses ? 1 : 0;
}

static void write_on_top(struct request *r)
{
    r->in_conflict = r->write_again = r->waits_for_peer = false;
    if (volume_disk_usable(r->volume)) {
        request_write_local(r);
        return;
    }
    r->local_pending = r->local_ok = false;
    r->error = EIO;
    request_mark_dirty(r);
    request_settle(r);
}

/* It has left the range lock. */
void conflict_finished(struct peer_request *pr)
{
    struct volume *v = pr->volume;
    const struct range *write = &pr->lock.range;
    struct range *next;
    if (!passes(write))
        return;
    v->passing--;
    for (struct range *range = range_first_overlap(&v->ranges, write->begin, write->end); range; range = next) {
        next = range_next_overlap(range, write->begin, write->end);
        struct request *r = request_of_range(range);
        if (r && r->waits_for_peer && !is_passed(r))
            write_on_top(r);
    }
}

/* An own write gets its turn while one of G is under way to the same blocks. */
bool conflict_defers(struct request *r)
{
    if (!is_passed(r))
        return false;
    wait_below(r);
    return true;
}

/* At G: own writes that have not been sent go behind it; but one that has waited for too long keeps its place, F
 * answers it as soon as it is sent. */
void conflict_pass(struct peer_request *pr)
{
    struct volume *v = pr->volume;
    const struct range *write = &pr->lock.range;
    struct range *next;
    if (passes(write))
        return;
    for (struct range *range = range_first_overlap(&v->ranges, write->begin, write->end); range; range = next) {
        next = range_next_overlap(range, write->begin, write->end);
        struct request *r = request_of_range(range);
        if (!r || r->started || range->ticket > write->ticket)
            continue;
        if (r->stepped_back >= STEP_BACK_MAX && !volume_is_frozen(v))
            continue;
        if (r->stepped_back < UINT8_MAX)
            r->stepped_back++;
        request_lock_again(r);
    }
}

/* A resync request that is under way has stepped behind a write of the peer.  Own writes that waited for it still do:
 * what is sent while the peer has not read the blocks yet would wait there for that read, which may wait for writes
 * that wait here; and the data of the resync, read before it, would land on top of it. */
void conflict_stay_behind(struct volume *v, const struct range *resync)
{
    struct range *next;
    for (struct range *range = range_first_overlap(&v->ranges, resync->begin, resync->end); range; range = next) {
        next = range_next_overlap(range, resync->begin, resync->end);
        struct request *r = request_of_range(range);
        if (r && !r->started && range->ticket < resync->ticket)
            request_lock_again(r);
    }
}

/* ---- own writes ---- */

void conflict_set_dropped(struct request *r, bool dropped)
{
    if (r->dropped != dropped)
        r->volume->dropped += dropped ? 1 : UINT32_MAX;
    r->dropped = dropped;
}

static bool is_dropped_in(const struct request *r, uint64_t offset, uint64_t length)
{
    return r->dropped && r->offset < offset + length && offset < r->offset + r->length;
}

/* Do the disks differ there until an own write is sent again?  It waits in the range lock, or aside for its turn. */
bool conflict_dropped_in(const struct volume *v, uint64_t offset, uint64_t length)
{
    if (!v->dropped)
        return false;
    for (struct range *range = range_first_overlap(&v->ranges, offset, offset + length); range;
         range = range_next_overlap(range, offset, offset + length)) {
        const struct request *r = request_of_range(range);
        if (r && r->dropped)
            return true;
    }
    list_for_each(pos, &v->held)
        if (is_dropped_in(list_entry(pos, struct request, link), offset, length))
            return true;
    return false;
}

/* Answered with P_RETRY_WRITE: from the range lock on again, behind what the peer has sent. */
static void restart(struct request *r)
{
    r->in_conflict = r->postponed = r->started = false;
    r->local_ok = r->net_ok = false;
    r->error = 0;
    request_lock_again(r);
}

bool conflict_local_done(struct request *r)
{
    if (r->write_again && r->local_ok) {
        if (is_passed(r)) {
            wait_below(r);
            let_pass(r);
        } else
            write_on_top(r);
        return true;
    }
    if (r->write_again)
        let_pass(r);
    r->write_again = r->in_conflict = false;
    if (!r->postponed)
        return false;
    restart(r);
    return true;
}

static void leave_epoch(struct core *core, struct request *r)
{
    struct link *link = &core->link;
    struct epoch *epoch = r->epoch;
    sender_close_epoch(core, epoch);
    transfer_log_remove(&link->log, r);
    request_left_log(r);
    epoch->count--;
    epoch->discarded++;
    if (epoch->barrier_sent && list_empty(&epoch->requests)) {  /* its barrier is never acknowledged */
        transfer_log_free(&link->log, epoch);
        app_flush_check(core);
    }
}

void conflict_answered(struct request *r, bool retry)
{
    struct volume *v = r->volume;
    v->stats.conflicts++;
    leave_epoch(v->core, r);
    request_net_done(r, !retry);
    conflict_set_dropped(r, retry);
    if (!retry)
        request_settle(r);
    else if (r->local_pending)
        r->postponed = r->in_conflict = true;
    else
        restart(r);
    if (v->drain_cookie)
        volume_check_idle(v);
}

/* ---- epochs of which a write was discarded ---- */

/* DRBD never acknowledges the barrier of such an epoch; the ack of a later one says that it is stable, too.  True: the
 * epoch with this number is the oldest now. */
bool conflict_release_older(struct core *core, uint32_t number)
{
    struct transfer_log *log = &core->link.log;
    const struct epoch *wanted = NULL;
    list_for_each(pos, &log->epochs) {
        const struct epoch *epoch = list_entry(pos, struct epoch, link);
        if (epoch->number == number) {
            wanted = epoch;
            break;
        }
        if (!epoch->discarded || !epoch->barrier_sent)
            return false;
    }
    if (!wanted)
        return false;
    while (transfer_log_oldest(log) != wanted)
        epoch_acknowledged(core, transfer_log_oldest(log));
    return true;
}

/* The oldest epoch if neither its own barrier ack nor that of a later one may be on its way. */
static const struct epoch *unacknowledged(const struct core *core)
{
    const struct transfer_log *log = &core->link.log;
    const struct epoch *oldest = transfer_log_oldest(log);
    if (!oldest || !oldest->discarded || !core->link.spare)
        return NULL;
    const struct epoch *newest = list_entry(list_last(&log->epochs), struct epoch, link);
    return newest->discarded && newest->barrier_sent ? oldest : NULL;
}

uint64_t conflict_deadline(const struct core *core)
{
    const struct epoch *epoch = unacknowledged(core);
    return epoch ? epoch->barrier_sent_ns + FLUSH_WRITE_AFTER_MS * NS_PER_MS : UINT64_MAX;
}

static void send_flush_write(struct volume *v, struct request *r)
{
    r->volume = v;
    r->kind = REQUEST_WRITE;
    r->flags = REQUEST_PREFLUSH;
    r->started_ns = v->core->now_ns;
    r->completed = r->told = r->started = true;
    sender_write(v->core, r);
}

/* Nothing follows such an epoch: an empty write with a flush does, so that its barrier ack releases both. */
void conflict_tick(struct core *core)
{
    struct link *link = &core->link;
    if (!link->spare)
        link->spare = request_take_reserved(&core->requests);
    const struct epoch *oldest = unacknowledged(core);
    const struct request_table *table = &core->requests;
    bool crowded = request_table_free(table) < (table->count - table->reserved) / 4;
    if (!oldest || (!crowded && core->now_ns < conflict_deadline(core)))
        return;
    const struct request *kept = list_entry(list_first(&oldest->requests), struct request, tl);
    struct request *r = link->spare;
    link->spare = NULL;
    send_flush_write(kept->volume, r);
    sender_close_epoch(core, NULL);
}

bool conflict_can_keep(const struct core *core)
{
    uint32_t volumes = 0;
    for (int i = 0; i < RE_VOLUMES_MAX; i++)
        volumes += core->volumes[i] ? 1 : 0;
    return core->requests.free_count >= volumes;
}

/* The link was lost and I/O frozen, and now the same peer is back.  What it has acknowledged is not sent again: that
 * could overwrite what the peer has written since.  A flush makes it stable; until that is acknowledged as well it
 * stays in the log. */
void conflict_keep_acknowledged(struct core *core)
{
    struct link *link = &core->link;
    bool any[RE_VOLUMES_MAX] = {false};
    list_for_each_safe(pos, following, &link->kept)
    {
        struct request *r = list_entry(pos, struct request, tl);
        if (!r->net_ok || !volume_replicates(r->volume))
            continue;
        list_del(&r->tl);
        transfer_log_append(&link->log, r);
        r->epoch->count--;
        any[r->volume->number] = true;
    }
    for (int i = 0; i < RE_VOLUMES_MAX; i++)
        if (any[i])
            send_flush_write(core->volumes[i], request_take_reserved(&core->requests));
    sender_close_epoch(core, NULL);
    sender_barrier(core);
}

void conflict_link_lost(struct core *core)
{
    if (core->link.spare)
        request_free(&core->requests, core->link.spare);
    core->link.spare = NULL;
    core->link.seq_wait_ns = 0;
    for (int i = 0; core->link.options.two_primaries && i < RE_VOLUMES_MAX; i++)
        if (core->volumes[i])
            peer_writes_drop_waiting(core->volumes[i]);
}
