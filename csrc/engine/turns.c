/* SPDX-License-Identifier: Apache-2.0 */
/* Two Primaries, the other one is DRBD's and holds the resolve-conflicts flag: the requests of our resync or online
 * verify and our own writes take turns.
 *
 * DRBD receives nothing more while such a request waits for its own writes to the same 16 MiB to be acknowledged.
 * Here such a write waits for the answer to one of ours, if they overlap; and that one, sent after the request, would
 * never be received (decision 0047).
 *
 * A write that DRBD has dropped is on our disk alone until it is sent again.  A verify would take it for a difference:
 * there it is unanswered until then.
 *
 * Invariants: no own write is unanswered when a request is sent; none is sent before all requests are answered; one
 * that waits for its turn has no place in the range lock.  Each side has its turn: where writes wait, requests are
 * sent once per tick of the controller.
 */
#include "engine/internal.h"

enum turn { WRITES, WRITES_END, REQUESTS };

static bool takes_turns(const struct volume *v)
{
    const struct re_link *o = &v->core->link.options;
    return o->two_primaries && !o->resolve_conflicts && !link_peer_is_ours(v->core);
}

static bool waits_for_dropped(const struct volume *v)
{
    return v->dropped && v->state.connection == C_VERIFY_S;
}

static bool any_unanswered_write(const struct volume *v)
{
    if (waits_for_dropped(v))
        return true;
    for (struct range *range = range_first_overlap(&v->ranges, 0, UINT64_MAX); range;
         range = range_next_overlap(range, 0, UINT64_MAX)) {
        const struct request *r = request_of_range(range);
        if (r && r->started && r->net_pending)
            return true;
    }
    return false;
}

static bool any_unanswered_request(struct volume *v)
{
    list_for_each(pos, &v->target.requests) {
        const struct resync_request *rq = list_entry(pos, struct resync_request, link);
        if (rq->stage <= RESYNC_RECEIVING)
            return true;
    }
    list_for_each(pos, &v->verify.questions) {
        const struct verify_blocks *b = list_entry(pos, struct verify_blocks, link);
        if (b->stage <= VERIFY_ASKED)
            return true;
    }
    return false;
}

static void writes_turn(struct volume *v)
{
    struct turns *t = &v->turns;
    t->turn = WRITES;
    t->over_ns = v->core->now_ns;
    if (!t->writes_wait)
        return;
    t->writes_wait = false;
    volume_thaw(v);
}

bool turns_ask(struct volume *v, bool wants)
{
    struct turns *t = &v->turns;
    bool writes = takes_turns(v) && any_unanswered_write(v);
    bool had_turn = t->over_ns + RATE_TICK_MS * NS_PER_MS > v->core->now_ns;
    if (t->turn == REQUESTS)
        return wants && !t->writes_wait;
    if (t->turn == WRITES_END && (!wants || !takes_turns(v)))
        writes_turn(v);
    if (!wants || (t->turn == WRITES && writes && had_turn))
        return false;
    if (takes_turns(v))
        t->turn = writes ? WRITES_END : REQUESTS;
    return !writes;
}

bool turns_hold(const struct request *r)
{
    const struct volume *v = r->volume;
    bool ends_the_turn = v->turns.turn == WRITES_END && r->dropped && waits_for_dropped(v);
    return v->turns.turn != WRITES && !ends_the_turn;
}

void turns_check(struct volume *v)
{
    struct turns *t = &v->turns;
    bool asks = v->state.connection == C_SYNC_TARGET || v->state.connection == C_VERIFY_S;
    bool is_over = t->turn == REQUESTS ? !any_unanswered_request(v) : !asks;
    if (t->turn != WRITES && is_over)
        writes_turn(v);
}

/* The writes go on with the state that follows. */
void turns_reset(struct volume *v)
{
    v->turns.turn = WRITES;
    v->turns.writes_wait = false;
}
