/* SPDX-License-Identifier: Apache-2.0 */
/* What a resync waits for: times are counted here, judged in resync/limit.c and told to a peer of our kind.
 *
 * The verdict travels in a P_DELAY_PROBE, which DRBD 8.4 never sends and never looks into (decision 0024).
 */
#include "base/bytes.h"
#include "engine/internal.h"

#define PROBE_MAGIC UINT32_C(0x6c696d00)    /* and the verdict in the low byte */
/* Less application I/O in 0.1 s than this is none. */
#define APPLICATION_BYTES_MIN (64u * SECTOR_BYTES)

static bool is_target(const struct volume *v)
{
    return v->state.connection == C_SYNC_TARGET || v->state.connection == C_PAUSED_SYNC_T;
}

void resync_look_start(struct volume *v)
{
    struct resync_look *look = &v->look;
    uint64_t now = v->core->now_ns;
    look->usage = (struct limit_usage){0};
    look->period_ns = look->seen_ns = now;
    look->quickest_ns = 0;
    look->waits = WAITS_FOR_ANSWERS;
    look->own = look->peer = VERDICT_NONE;
    v->stats.resync_limit = RE_LIMIT_NONE;
}

void resync_counting_start(struct volume *v)
{
    struct re_volume_stats *stats = &v->stats;
    stats->resync_total_bits = v->bitmap ? v->bitmap->count : 0;
    stats->resync_done_bits = 0;
    stats->resync_failed_bits = 0;
    stats->resync_lost_bits = 0;
    stats->resync_equal_bits = 0;
    stats->resync_deallocated_bits = 0;
    stats->resync_payload_bytes = 0;
    stats->resync_started_ns = v->core->now_ns;
    stats->resync_finished_ns = 0;
    stats->resync_rate_kib = 0;
    resync_look_start(v);
}

void resync_look_stop(struct volume *v)
{
    v->look.period_ns = 0;
    v->stats.resync_limit = RE_LIMIT_NONE;
}

static void count(struct volume *v, uint64_t passed_ns)
{
    struct limit_usage *usage = &v->look.usage;
    if (!is_target(v)) {
        if (!list_empty(&v->source.throttled))
            usage->throttled_ns += passed_ns;
        else if (v->core->link.data->stream.tx_blocked)
            usage->link_ns += passed_ns;
    } else if (v->look.waits == WAITS_FOR_APPLICATION)
        usage->throttled_ns += passed_ns;
    else if (v->look.waits == WAITS_FOR_BUFFERS)
        usage->buffers_ns += passed_ns;
    else if (v->look.waits == WAITS_FOR_RATE && v->target.in_flight)
        usage->held_ns += passed_ns;
    else if (v->look.waits == WAITS_FOR_RATE)
        usage->rate_ns += passed_ns;
}

static void show(struct volume *v)
{
    v->stats.resync_limit = limit_combined((enum limit_verdict)v->look.own, (enum limit_verdict)v->look.peer,
                                           is_target(v));
}

static void judge(struct volume *v)
{
    struct resync_look *look = &v->look;
    struct limit_usage *usage = &look->usage;
    usage->period_ns = v->core->now_ns - look->period_ns;
    usage->quickest_ns = look->quickest_ns;
    if (is_target(v) && !usage->answers && v->target.in_flight_bytes)
        usage->answer_ns += usage->period_ns;   /* nothing came in all this time */
    if (is_target(v) && !usage->disk_ns && v->target.unwritten_bytes)
        usage->disk_ns += usage->period_ns;
    look->own = (uint8_t)(is_target(v) ? limit_of_target(usage) : limit_of_source(usage));
    *usage = (struct limit_usage){0};
    look->period_ns = v->core->now_ns;
    show(v);
    if (link_peer_is_ours(v->core)) {
        uint8_t body[8] = {0};
        be32_put(body, PROBE_MAGIC | look->own);
        sender_raw(v->core, false, P_DELAY_PROBE, (unsigned)v->number, body, sizeof(body));
    }
}

void resync_look_tick(struct volume *v)
{
    struct resync_look *look = &v->look;
    uint64_t now = v->core->now_ns;
    if (!look->period_ns)
        return;
    if (v->state.connection == C_PAUSED_SYNC_T || v->state.connection == C_PAUSED_SYNC_S) {
        resync_look_start(v);
        return;
    }
    count(v, now - look->seen_ns);
    look->seen_ns = now;
    if (now - look->period_ns >= LIMIT_PERIOD_MS * NS_PER_MS)
        judge(v);
}

void resync_look_told(struct volume *v, const uint8_t *body)
{
    uint32_t word = be32_get(body);
    if (!link_peer_is_ours(v->core) || !v->look.period_ns || (word & ~UINT32_C(0xff)) != PROBE_MAGIC ||
        (word & 0xff) > VERDICT_BUFFERS)
        return;
    v->look.peer = (uint8_t)word;
    if (v->look.own != VERDICT_NONE)
        show(v);
}

uint64_t resync_look_deadline(const struct volume *v)
{
    bool paused = v->state.connection == C_PAUSED_SYNC_T || v->state.connection == C_PAUSED_SYNC_S;
    return v->look.period_ns && !paused ? v->look.period_ns + LIMIT_PERIOD_MS * NS_PER_MS : UINT64_MAX;
}

/* Applications want the disk and the resync is above c-min-rate: it should step back. */
bool resync_application_first(struct volume *v)
{
    struct resync_look *look = &v->look;
    uint64_t bytes = v->stats.read_bytes + v->stats.written_bytes + v->stats.received_bytes - look->received_bytes;
    bool busy = !list_empty(&v->al_waiting) || bytes > look->application_bytes + APPLICATION_BYTES_MIN;
    if (busy)
        look->application_bytes = bytes;
    uint32_t least = v->resync_options.min_rate_kib;
    return busy && least && v->stats.resync_rate_kib > least;
}
