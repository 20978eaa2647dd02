/* SPDX-License-Identifier: Apache-2.0 */
/* Two Primaries: writes of both nodes to the same blocks that cross on the wire.
 *
 * F is the node with the resolve-conflicts flag, G the other one.  A write of G that meets an unacknowledged write of F
 * is discarded at F: it is superseded where F's write covers it, otherwise G sends it again later.  At G a write of F
 * waits in the range lock behind G's own, which F has answered or will answer.
 *
 * Invariants: F answers a write of G without waiting for G, so nobody waits in a circle; a write supersedes another
 * one only when it has been sent and is covered by the activity log, and the answer leaves when it is on F's disk;
 * writes of the peer pass own ones that have not been sent yet, since the peer may wait for the answer; both disks end
 * up with the same content.
 */
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

/* Own writes that have not been sent go behind it; but one that has waited for too long keeps its place: F answers it
 * as soon as it is sent. */
void conflict_pass(struct peer_request *pr)
{
    struct volume *v = pr->volume;
    const struct range *write = &pr->lock.range;
    struct range *next;
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

/* At F such a write would have to wait for G: the write of the peer comes again later. */
static bool own_write_insists(const struct volume *v, uint64_t begin, uint64_t end)
{
    if (volume_is_frozen(v))
        return false;
    for (struct range *range = range_first_overlap(&v->ranges, begin, end); range;
         range = range_next_overlap(range, begin, end)) {
        const struct request *r = request_of_range(range);
        if (r && !r->started && r->stepped_back >= STEP_BACK_MAX)
            return true;
    }
    return false;
}

static void settle(struct core *core, struct peer_request *pr)
{
    pr->epoch->unsettled--;
    list_del(&pr->link);
    peer_request_free(core, pr);
}

/* The peer has been told.  DRBD counts a discarded write in its epoch until it has let go of it: when it acknowledges
 * the write that covered it, or sends it again.  Until then the entry stays. */
static void discard(struct peer_request *pr, unsigned command, const struct request *covering)
{
    struct volume *v = pr->volume;
    struct core *core = v->core;
    v->stats.unacked--;
    pr->epoch->pending--;
    core->link.peer_writes--;
    if (core->link.phase != LINK_UP || core->link.generation != pr->link_generation) {
        peer_request_free(core, pr);
        return;
    }
    sender_ack(v, command, pr->sector, pr->block_id, pr->bytes);
    if (command == P_NEG_ACK) {
        pr->epoch->count++;
        peer_request_free(core, pr);
        return;
    }
    pr->epoch->unsettled++;
    pr->covering = covering;
    if (pr->buf)
        buf_put(pr->buf);
    pr->buf = NULL;
    list_add_tail(&core->link.unsettled, &pr->link);
}

void conflict_acknowledged(struct core *core, const struct request *r)
{
    list_for_each_safe(pos, following, &core->link.unsettled)
    {
        struct peer_request *pr = list_entry(pos, struct peer_request, link);
        if (pr->covering == r)
            settle(core, pr);
    }
    peer_epochs_answer(core);
}

static void sent_again(const struct peer_request *again)
{
    struct core *core = again->volume->core;
    list_for_each_safe(pos, following, &core->link.unsettled)
    {
        struct peer_request *pr = list_entry(pos, struct peer_request, link);
        if (!pr->covering && pr->volume == again->volume && pr->sector == again->sector && pr->bytes == again->bytes) {
            settle(core, pr);
            break;
        }
    }
    peer_epochs_answer(core);
}

void conflict_settle_epoch(struct core *core, const struct receive_epoch *epoch)
{
    list_for_each(pos, &core->link.unsettled)
    {
        struct peer_request *pr = list_entry(pos, struct peer_request, link);
        if (pr->epoch == epoch) {
            settle(core, pr);
            return;
        }
    }
    CHECK(!epoch->unsettled);
}

bool conflict_discards(struct peer_request *pr)
{
    struct volume *v = pr->volume;
    const struct re_link *o = &v->core->link.options;
    uint64_t begin = pr->sector * SECTOR_BYTES, end = begin + pr->bytes;
    struct request *covers = NULL;
    bool overlaps = false;
    if (!o->resolve_conflicts || !pr->bytes)
        return false;
    if (!list_empty(&v->core->link.unsettled))
        sent_again(pr);
    for (struct range *range = range_first_overlap(&v->ranges, begin, end); range && !covers;
         range = range_next_overlap(range, begin, end)) {
        struct request *r = request_of_range(range);
        if (!r || !r->started || !r->in_transfer_log || !r->net_pending)
            continue;
        overlaps = true;
        if (range->begin <= begin && range->end >= end)
            covers = r;
    }
    if (!overlaps && !own_write_insists(v, begin, end))
        return false;
    pr->epoch->count--;
    v->stats.conflicts++;
    if (covers && covers->local_pending) {
        pr->next_covered = covers->covered;
        covers->covered = pr;
        covers->in_conflict = true;
    } else
        discard(pr, covers ? (covers->local_ok ? P_SUPERSEDED : P_NEG_ACK) : P_RETRY_WRITE, covers);
    return true;
}

/* ---- own writes ---- */

/* Answered with P_RETRY_WRITE: from the range lock on again, behind what the peer has sent. */
static void restart(struct request *r)
{
    r->in_conflict = r->postponed = r->started = false;
    r->local_ok = r->net_ok = false;
    r->error = 0;
    request_lock_again(r);
}

void conflict_local_done(struct request *r)
{
    while (r->covered) {
        struct peer_request *pr = r->covered;
        r->covered = pr->next_covered;
        discard(pr, r->local_ok ? P_SUPERSEDED : P_NEG_ACK, r);
    }
    r->in_conflict = r->postponed;
    if (r->postponed)
        restart(r);
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
        link->spare = request_take(&core->requests);
    const struct epoch *oldest = unacknowledged(core);
    bool crowded = core->requests.free_count < core->requests.count / 4;
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
            send_flush_write(core->volumes[i], request_take(&core->requests));
    sender_close_epoch(core, NULL);
    sender_barrier(core);
}

void conflict_link_lost(struct core *core)
{
    if (core->link.spare)
        request_free(&core->requests, core->link.spare);
    core->link.spare = NULL;
    core->link.seq_wait_ns = 0;
    while (!list_empty(&core->link.unsettled))
        settle(core, list_entry(list_first(&core->link.unsettled), struct peer_request, link));
    peer_epochs_answer(core);
    for (int i = 0; core->link.options.two_primaries && i < RE_VOLUMES_MAX; i++)
        if (core->volumes[i])
            peer_writes_drop_waiting(core->volumes[i]);
}
