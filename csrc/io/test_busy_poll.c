/* SPDX-License-Identifier: Apache-2.0 */
#include "base/check.h"
#include "io/busy_poll.h"

enum { MAX_NS = 200000, MS = 1000000 };

static void grow(struct busy_poll *poll)
{
    for (int i = 0; i < 10; i++)
        busy_poll_blocked(poll, 30000);
}

static void test_busy_poll_window_grows_with_short_waits_and_ends_with_a_long_one(void)
{
    struct busy_poll poll;
    busy_poll_init(&poll, MAX_NS);
    CHECK(!busy_poll_goes_on(&poll, 100, 100)); /* nothing is known: it blocks */
    busy_poll_blocked(&poll, 30000);
    CHECK(poll.window_ns == BUSY_POLL_WINDOW_NS_MIN);
    CHECK(busy_poll_goes_on(&poll, 100, 100 + BUSY_POLL_WINDOW_NS_MIN - 1));
    CHECK(!busy_poll_goes_on(&poll, 100, 100 + BUSY_POLL_WINDOW_NS_MIN));
    grow(&poll);
    CHECK(poll.window_ns == MAX_NS);
    busy_poll_blocked(&poll, MAX_NS + 1); /* an idle device */
    CHECK(!busy_poll_goes_on(&poll, 100, 100));
}

static void test_busy_poll_stops_while_somebody_else_computes(void)
{
    struct busy_poll poll;
    uint64_t now_ns = 1000ull * MS;
    busy_poll_init(&poll, MAX_NS);
    grow(&poll);
    CHECK(busy_poll_offered(&poll, now_ns, now_ns + BUSY_POLL_YIELD_NS_MAX));
    CHECK(busy_poll_goes_on(&poll, now_ns, now_ns + 1));
    uint64_t pause_ns = BUSY_POLL_PAUSE_NS_MIN;
    for (int i = 0; i < 12; i++) {
        CHECK(!busy_poll_offered(&poll, now_ns, now_ns + 3 * MS));
        now_ns += 3 * MS;
        CHECK(!busy_poll_goes_on(&poll, now_ns, now_ns + 1));
        CHECK(!busy_poll_goes_on(&poll, now_ns + pause_ns - 2, now_ns + pause_ns - 1));
        now_ns += pause_ns;
        CHECK(busy_poll_goes_on(&poll, now_ns, now_ns + 1));
        pause_ns = pause_ns * 2 < BUSY_POLL_PAUSE_NS_MAX ? pause_ns * 2 : BUSY_POLL_PAUSE_NS_MAX;
    }
    CHECK(poll.pause_ns == BUSY_POLL_PAUSE_NS_MAX);
    now_ns += 2 * BUSY_POLL_PAUSE_NS_MAX; /* a long time without: the next one is short again */
    CHECK(!busy_poll_offered(&poll, now_ns, now_ns + 3 * MS));
    CHECK(poll.pause_ns == BUSY_POLL_PAUSE_NS_MIN);
}

static void test_busy_poll_with_nothing_allowed_never_looks(void)
{
    struct busy_poll poll;
    busy_poll_init(&poll, 0);
    grow(&poll);
    CHECK(!busy_poll_goes_on(&poll, 5, 5));
}

int main(void)
{
    test_busy_poll_window_grows_with_short_waits_and_ends_with_a_long_one();
    test_busy_poll_stops_while_somebody_else_computes();
    test_busy_poll_with_nothing_allowed_never_looks();
    return 0;
}
