/* SPDX-License-Identifier: Apache-2.0 */
/* read-balancing: which of two good copies answers a read.
 *
 * Only where a completed write is on the peer's disk for sure, or its reads wait for the writes before them (our own
 * software): in protocols A and B the kernel module could answer with what was there before.  While a write is on its
 * way one disk may have it and the other not: who has read the new data must not see the old data afterwards, so the
 * own disk answers alone.  So it does for blocks that differ: a write that the peer's disk refused is complete before
 * the peer's state says what that disk lacks.
 */
#include "engine/internal.h"

/* differs: on a disk that is not good a write that the peer does not get is lost, and its block differs then: what is
 * on this disk alone is shown to nobody (decision 0015). */
bool balance_read_is_alone(const struct volume *v, const struct request *r)
{
    uint64_t end = r->offset + r->length;
    return v->state.disk == D_INCONSISTENT &&
           (range_overlaps_any(&v->ranges, r->offset, end) || volume_differs_in(v, r->offset, r->length));
}

/* Until the disk became good the peer answered alone, also with what this disk has still to write: who reads now waits
 * for the writes of that time. */
bool balance_read_waits(const struct volume *v, const struct request *r)
{
    return v->writes_behind && v->state.disk == D_UP_TO_DATE &&
           range_overlaps_any(&v->ranges, r->offset, r->offset + r->length);
}

enum { CONGESTED_OPERATIONS = 64 };

bool balance_reads_remotely(struct volume *v, const struct request *r)
{
    const struct core *core = v->core;
    uint32_t policy = v->disk.read_balancing;
    if (policy == RE_READ_PREFER_LOCAL || r->refused || !link_is_up(core) || v->state.peer_disk != D_UP_TO_DATE ||
        v->state.connection != C_CONNECTED || (core->link.options.protocol != 3 && !link_peer_is_ours(core)))
        return false;
    if (range_overlaps_any(&v->ranges, r->offset, r->offset + r->length) || volume_differs_in(v, r->offset, r->length))
        return false;
    switch (policy) {
    case RE_READ_PREFER_REMOTE:
        return true;
    case RE_READ_ROUND_ROBIN:
        v->read_turn = !v->read_turn;
        return v->read_turn;
    case RE_READ_LEAST_PENDING:
        return v->stats.lower_pending > v->stats.peer_pending;
    case RE_READ_WHEN_CONGESTED:
        return v->stats.lower_pending > CONGESTED_OPERATIONS;
    default:    /* the stripe's size as a power of two */
        return (r->offset >> policy) & 1;
    }
}
