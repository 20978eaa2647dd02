/* SPDX-License-Identifier: Apache-2.0 */
/* Congestion of the link: when is it reached, when is it over, what an Ahead node does with late acks.
 *
 * What follows is the control plane's decision (on-congestion): a volume that goes Ahead tells the peer, closes the
 * epoch, and from then on sends a P_OUT_OF_SYNC for each write instead of the data.
 *
 * Invariant: while a volume is Ahead both bitmaps get the same bits in the same order; an ack of a block that comes
 * late may be older than a write of that block, so it marks the block again on both sides instead of clearing it here.
 */
#include "base/bytes.h"
#include "engine/internal.h"

enum { CONGESTED_FILL = 1, CONGESTED_EXTENTS = 2 };

static bool may_go_ahead(const struct re_state *s)
{
    return s->disk == D_UP_TO_DATE &&
           (s->connection == C_CONNECTED || s->connection == C_SYNC_SOURCE || s->connection == C_PAUSED_SYNC_S);
}

void congestion_check(struct volume *v)
{
    const struct re_link *o = &v->core->link.options;
    uint32_t reason = 0;
    if (v->congestion_reported || !may_go_ahead(&v->state))
        return;
    if (o->congestion_fill_bytes && v->in_flight_bytes >= o->congestion_fill_bytes)
        reason = CONGESTED_FILL;
    else if (v->al && al_referenced(v->al) >= o->congestion_extents)
        reason = CONGESTED_EXTENTS;
    if (!reason)
        return;
    v->congestion_reported = true;
    core_emit(v->core,
              &(struct re_event){.type = RE_EV_CONGESTED,
                                 .volume = v->number,
                                 .stream = -1,
                                 .detail = reason,
                                 .value = v->in_flight_bytes},
              NULL, 0);
}

/* The state in DRBD's word of P_STATE. */
static uint32_t state_word(const struct re_state *s)
{
    return (uint32_t)s->role | (uint32_t)s->peer_role << 2 | (uint32_t)s->connection << 4 | (uint32_t)s->disk << 9 |
           (uint32_t)s->peer_disk << 13;
}

/* A write that was sent has failed on this disk: only the peer has it, and that one must not fall behind. */
void congestion_declines(struct volume *v, struct re_state *state)
{
    bool lost = v->bad_blocks && v->bitmap && v->bitmap->count > 0;
    if (state->connection != C_AHEAD || v->state.connection != C_CONNECTED || !lost)
        return;
    state->connection = C_CONNECTED;
    state->peer_disk = v->state.peer_disk;
    core_emit(v->core,
              &(struct re_event){.type = RE_EV_CONGESTION_OVER, .volume = v->number, .stream = -1, .detail = 1},
              NULL, 0);
}

void congestion_state_changed(struct volume *v, uint8_t before)
{
    struct core *core = v->core;
    uint8_t body[4];
    v->congestion_reported = false;
    if (v->state.connection == C_AHEAD && v->bitmap)
        v->stats.resync_left_bits = before == C_SYNC_SOURCE || before == C_PAUSED_SYNC_S ? v->bitmap->count : 0;
    if (v->state.connection != C_AHEAD || core->link.phase != LINK_UP)
        return;
    be32_put(body, state_word(&v->state));
    sender_raw(core, false, P_STATE, (unsigned)v->number, body, sizeof(body));
    sender_close_epoch(core, NULL);
    sender_barrier(core);
}

/* Ahead: everything that was sent is stable at the peer. */
void congestion_tick(struct volume *v)
{
    if (v->in_flight_bytes || v->congestion_reported || v->core->link.phase != LINK_UP)
        return;
    v->congestion_reported = true;
    core_emit(v->core, &(struct re_event){.type = RE_EV_CONGESTION_OVER, .volume = v->number, .stream = -1}, NULL, 0);
}

/* The peer has cleared these blocks; true when they are marked again on both sides. */
bool congestion_marks_again(struct volume *v, uint64_t offset, uint64_t length)
{
    if (v->state.connection != C_AHEAD)
        return false;
    volume_set_dirty(v, offset, length);
    v->stats.resync_left_bits -= u64_min(v->stats.resync_left_bits, (length + BLOCK_BYTES - 1) / BLOCK_BYTES);
    sender_out_of_sync(v, offset, length);
    return true;
}
