/* SPDX-License-Identifier: Apache-2.0 */
/* Invariant: window_ns <= max_ns. */
#include "io/busy_poll.h"

#include "base/bytes.h"

void busy_poll_init(struct busy_poll *poll, uint64_t max_ns)
{
    *poll = (struct busy_poll){.max_ns = max_ns};
}

bool busy_poll_goes_on(const struct busy_poll *poll, uint64_t began_ns, uint64_t now_ns)
{
    return now_ns - began_ns < poll->window_ns && now_ns >= poll->paused_until_ns;
}

bool busy_poll_offered(struct busy_poll *poll, uint64_t before_ns, uint64_t after_ns)
{
    if (after_ns - before_ns <= BUSY_POLL_YIELD_NS_MAX)
        return true;
    /* Whoever took it soon after the last pause never stopped computing: the next try can wait longer. */
    bool again = poll->pause_ns && before_ns - poll->paused_until_ns < poll->pause_ns;
    poll->pause_ns = again ? u64_min(poll->pause_ns * 2, BUSY_POLL_PAUSE_NS_MAX) : BUSY_POLL_PAUSE_NS_MIN;
    poll->paused_until_ns = after_ns + poll->pause_ns;
    return false;
}

void busy_poll_blocked(struct busy_poll *poll, uint64_t waited_ns)
{
    if (waited_ns > poll->max_ns)
        poll->window_ns = 0;
    else
        poll->window_ns = u64_min(poll->window_ns ? poll->window_ns * 2 : BUSY_POLL_WINDOW_NS_MIN, poll->max_ns);
}
