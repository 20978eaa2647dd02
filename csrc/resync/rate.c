/* SPDX-License-Identifier: Apache-2.0 */
/* DRBD's resync controller (facts: behaviour of 8.4, section "rate control" of docs/protocol.md). */
#include "resync/rate.h"

static int64_t per_tick(uint32_t rate_kib)
{
    return (int64_t)rate_kib * 2 / 10;  /* KiB/s -> sectors per 0.1 s */
}

void rate_reset(struct rate_control *rate, const struct re_resync *options)
{
    *rate = (struct rate_control){.steps = options->plan_ahead};
    if (rate->steps > RATE_PLAN_MAX)
        rate->steps = RATE_PLAN_MAX;
}

int64_t rate_tick(struct rate_control *rate, const struct re_resync *options, int64_t arrived, int64_t in_flight)
{
    if (options->plan_ahead == 0)
        return per_tick(options->resync_rate_kib);
    if (rate->steps != options->plan_ahead)
        rate_reset(rate, options);
    int64_t steps = rate->steps, want;
    if (in_flight + arrived == 0)
        want = per_tick(options->resync_rate_kib) * steps;
    else if (options->fill_target)
        want = options->fill_target;
    else
        want = arrived * options->delay_target;
    int64_t share = (want - in_flight - rate->planned) / steps;
    for (int64_t i = 0; i < steps; i++)
        rate->plan[i] += (int32_t)share;
    rate->planned += share * steps;
    int64_t correction = rate->plan[rate->next];
    rate->plan[rate->next] = 0;
    rate->next = (uint32_t)((rate->next + 1) % steps);
    rate->planned -= correction;
    int64_t request = arrived + correction;
    int64_t most = per_tick(options->max_rate_kib);
    if (request < 0)
        request = 0;
    return request > most ? most : request;
}

void speed_reset(struct speed_marks *marks, uint64_t now_ns, uint64_t done_bits)
{
    *marks = (struct speed_marks){.at_ns = {now_ns, now_ns}, .done_bits = {done_bits, done_bits}};
}

uint64_t speed_kib(struct speed_marks *marks, uint64_t now_ns, uint64_t done_bits)
{
    if (now_ns - marks->at_ns[1] >= (uint64_t)SPEED_MARK_MS * 1000000u) {
        marks->at_ns[0] = marks->at_ns[1];
        marks->done_bits[0] = marks->done_bits[1];
        marks->at_ns[1] = now_ns;
        marks->done_bits[1] = done_bits;
    }
    uint64_t period_ns = now_ns - marks->at_ns[0];
    uint64_t bits = done_bits > marks->done_bits[0] ? done_bits - marks->done_bits[0] : 0;
    if (period_ns < 1000000u)
        return 0;
    return bits * 4 * 1000 / (period_ns / 1000000u);
}
