/* SPDX-License-Identifier: Apache-2.0 */
/* What a resync waits for: each node judges by its own clock, and the two verdicts are put together.
 *
 * A node knows its own disk, its own controller and its own socket.  What is slow beyond that only the peer can say:
 * peers of our kind do (P_DELAY_PROBE, which a DRBD node ignores); with any other one it stays "peer or link".
 */
#ifndef RESYNC_LIMIT_H
#define RESYNC_LIMIT_H

#include <stdbool.h>
#include <stdint.h>

#include "include/repl_engine.h"

enum { LIMIT_PERIOD_MS = 1000 };    /* a verdict is about so much time */

/* One node's verdict, in its own words; the number travels. */
enum limit_verdict {
    VERDICT_NONE,           /* it says nothing */
    VERDICT_ELSEWHERE,      /* neither its disk nor its settings */
    VERDICT_RATE,           /* its controller allowed no more */
    VERDICT_APPLICATION,    /* it stepped back for application I/O */
    VERDICT_DISK,           /* its disk */
    VERDICT_LINK,           /* what it sends waits for the socket */
    VERDICT_BUFFERS,        /* max-buffers: more in flight would be faster */
};

/* Where the time of one period went.  Times of requests are summed up, so they may exceed the period. */
struct limit_usage {
    uint64_t period_ns;
    uint64_t rate_ns;       /* target: nothing was in flight, since the controller allowed no more */
    uint64_t held_ns;       /* target: the controller allowed no more, and something was in flight */
    uint64_t buffers_ns;    /* target: as much in flight as max-buffers allows */
    uint64_t throttled_ns;  /* stepped back for application I/O */
    uint64_t answer_ns;     /* target: requests, from asking to the answer */
    uint64_t answers;       /* of so many requests */
    uint64_t quickest_ns;   /* target: the quickest answer of the whole run */
    uint64_t disk_ns;       /* requests, at the own disk */
    uint64_t link_ns;       /* source: replies waited for the socket */
};

enum limit_verdict limit_of_target(const struct limit_usage *usage);
enum limit_verdict limit_of_source(const struct limit_usage *usage);
/* What is shown on a node: its own verdict, or what the peer's one means here. */
enum re_resync_limit limit_combined(enum limit_verdict own, enum limit_verdict peer, bool is_target);

#endif
