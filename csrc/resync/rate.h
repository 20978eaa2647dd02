/* SPDX-License-Identifier: Apache-2.0 */
/* The resync rate controller: how many sectors may be asked for in the next 0.1 s, and how fast it goes.
 *
 * DRBD's dynamic controller: a plan ring of `plan_ahead` entries spreads corrections over the horizon, so that the
 * amount in flight settles at the fill target without swinging.  Pure arithmetic; the caller keeps the clock.
 */
#ifndef RESYNC_RATE_H
#define RESYNC_RATE_H

#include <stdint.h>

#include "include/repl_engine.h"

enum {
    RATE_PLAN_MAX = 300,    /* largest c-plan-ahead */
    RATE_TICK_MS = 100,
    SPEED_MARK_MS = 3000,   /* distance of two marks */
};

struct rate_control {
    int32_t plan[RATE_PLAN_MAX];    /* corrections planned, sectors per tick */
    int64_t planned;                /* their sum */
    uint32_t steps;                 /* entries in use */
    uint32_t next;                  /* oldest entry */
};

void rate_reset(struct rate_control *rate, const struct re_resync *options);
/* Sectors to ask for in this tick; `arrived` since the last tick, `in_flight` asked for and not arrived. */
int64_t rate_tick(struct rate_control *rate, const struct re_resync *options, int64_t arrived, int64_t in_flight);

/* Progress at two moments of the past; what is between the older one and now is the present speed. */
struct speed_marks {
    uint64_t at_ns[2];      /* older, newer */
    uint64_t done_bits[2];
};

void speed_reset(struct speed_marks *marks, uint64_t now_ns, uint64_t done_bits);
/* Set a new mark when it is time; KiB/s over the last 3 to 6 s (less at the beginning). */
uint64_t speed_kib(struct speed_marks *marks, uint64_t now_ns, uint64_t done_bits);

#endif
