/* SPDX-License-Identifier: Apache-2.0 */
/* How long a thread of the engine looks for work before it blocks (docs/decisions/0038).
 *
 * Where requests come and go faster than a processor falls asleep and wakes up, looking is cheaper than being woken.
 * The window follows what is seen: it grows while waits end within `max_ns`, and is nothing after one that did not.
 * Between two looks the processor is offered to others; if somebody takes it for long, they compute, and nobody looks
 * for a while.
 */
#ifndef IO_BUSY_POLL_H
#define IO_BUSY_POLL_H

#include <stdbool.h>
#include <stdint.h>

enum {
    BUSY_POLL_WINDOW_NS_MIN = 5000,             /* where growing begins */
    BUSY_POLL_YIELD_NS_MAX = 250000,            /* a peer on the same processor gives it back sooner */
    BUSY_POLL_PAUSE_NS_MIN = 50000000,
};
#define BUSY_POLL_PAUSE_NS_MAX 5000000000ull

struct busy_poll {
    uint64_t max_ns;            /* 0: never */
    uint64_t window_ns;         /* of the next wait; at most `max_ns` */
    uint64_t paused_until_ns;
    uint64_t pause_ns;          /* the last one */
};

void busy_poll_init(struct busy_poll *poll, uint64_t max_ns);
/* A wait began at `began_ns`: look once more? */
bool busy_poll_goes_on(const struct busy_poll *poll, uint64_t began_ns, uint64_t now_ns);
/* The processor was offered to others between the two times.  False: block now. */
bool busy_poll_offered(struct busy_poll *poll, uint64_t before_ns, uint64_t after_ns);
/* The wait ended after `waited_ns` and by blocking. */
void busy_poll_blocked(struct busy_poll *poll, uint64_t waited_ns);

#endif
