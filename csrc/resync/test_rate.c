/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the rate controller against the rules it follows, and of the speed over the last marks. */
#include "base/check.h"
#include "resync/rate.h"

#define SECOND UINT64_C(1000000000)

static struct re_resync defaults(void)
{
    return (struct re_resync){.resync_rate_kib = 250,
                              .plan_ahead = 20,
                              .delay_target = 10,
                              .fill_target = 100,
                              .max_rate_kib = 102400,
                              .min_rate_kib = 250};
}

static void test_fixed_rate_gives_the_same_amount_every_tick(void)
{
    struct re_resync options = defaults();
    struct rate_control rate;
    options.plan_ahead = 0;
    options.resync_rate_kib = 1000;
    rate_reset(&rate, &options);
    for (int i = 0; i < 50; i++)
        CHECK(rate_tick(&rate, &options, i * 100, i) == 200);
}

static void test_first_tick_asks_for_the_resync_rate(void)
{
    struct re_resync options = defaults();
    struct rate_control rate;
    rate_reset(&rate, &options);
    CHECK(rate_tick(&rate, &options, 0, 0) == 50);  /* 250 KiB/s: 25 KiB in 0.1 s */
}

/* A pipe that delivers `capacity` sectors a tick; returns what is in flight at the end. */
static int64_t run(const struct re_resync *options, int64_t capacity, int ticks, int64_t *arrived_last)
{
    struct rate_control rate;
    int64_t in_flight = 0, arrived = 0;
    rate_reset(&rate, options);
    for (int i = 0; i < ticks; i++) {
        in_flight += rate_tick(&rate, options, arrived, in_flight);
        arrived = in_flight < capacity ? in_flight : capacity;
        in_flight -= arrived;
    }
    *arrived_last = arrived;
    return in_flight;
}

static void test_in_flight_settles_at_the_fill_target_of_a_full_pipe(void)
{
    struct re_resync options = defaults();
    int64_t arrived;
    int64_t in_flight = run(&options, 2000, 600, &arrived);
    CHECK(arrived == 2000);
    CHECK(in_flight > 50 && in_flight < 150);
    options.fill_target = 1000;
    in_flight = run(&options, 2000, 600, &arrived);
    CHECK(in_flight > 800 && in_flight < 1200);
}

static void test_delay_target_counts_where_there_is_no_fill_target(void)
{
    struct re_resync options = defaults();
    int64_t arrived;
    options.fill_target = 0;
    options.delay_target = 3;
    int64_t in_flight = run(&options, 500, 1000, &arrived);
    CHECK(arrived == 500);
    CHECK(in_flight > 1200 && in_flight < 1800);    /* what arrives in 0.3 s */
}

static void test_never_above_the_largest_rate(void)
{
    struct re_resync options = defaults();
    int64_t arrived;
    options.max_rate_kib = 4000;
    run(&options, 1000000, 2000, &arrived);
    CHECK(arrived == 800);
}

static void test_changed_plan_ahead_starts_a_new_plan(void)
{
    struct re_resync options = defaults();
    struct rate_control rate;
    rate_reset(&rate, &options);
    for (int i = 0; i < 30; i++)
        rate_tick(&rate, &options, 100, 100);
    options.plan_ahead = 300;
    CHECK(rate_tick(&rate, &options, 100, 100) >= 0);
    CHECK(rate.steps == 300);
}

static void test_speed_is_that_of_the_last_two_marks(void)
{
    struct speed_marks marks;
    speed_reset(&marks, 10 * SECOND, 0);
    CHECK(speed_kib(&marks, 10 * SECOND, 0) == 0);
    CHECK(speed_kib(&marks, 11 * SECOND, 256) == 1024);
    uint64_t done = 0;
    for (uint64_t s = 0; s < 30; s++)
        speed_kib(&marks, (11 + s) * SECOND, done += 2560);
    CHECK(speed_kib(&marks, 41 * SECOND, done += 2560) == 10240);
    for (uint64_t s = 42; s < 50; s++)     /* it stalls */
        speed_kib(&marks, s * SECOND, done);
    CHECK(speed_kib(&marks, 50 * SECOND, done) == 0);
}

int main(void)
{
    test_fixed_rate_gives_the_same_amount_every_tick();
    test_first_tick_asks_for_the_resync_rate();
    test_in_flight_settles_at_the_fill_target_of_a_full_pipe();
    test_delay_target_counts_where_there_is_no_fill_target();
    test_never_above_the_largest_rate();
    test_changed_plan_ahead_starts_a_new_plan();
    test_speed_is_that_of_the_last_two_marks();
    return 0;
}
