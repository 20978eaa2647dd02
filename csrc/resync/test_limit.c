/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the verdict about what a resync waits for: one node's, and both together. */
#include "base/check.h"
#include "resync/limit.h"

#define MS UINT64_C(1000000)

static void test_target_names_its_controller_when_nothing_is_in_flight_for_most_of_the_time(void)
{
    struct limit_usage usage = {.period_ns = 1000 * MS, .rate_ns = 700 * MS, .disk_ns = 100 * MS, .answer_ns = 90 * MS};
    CHECK(limit_of_target(&usage) == VERDICT_RATE);
    usage.rate_ns = 400 * MS;
    CHECK(limit_of_target(&usage) == VERDICT_DISK);
}

static void test_target_names_applications_before_anything_else(void)
{
    struct limit_usage usage = {.period_ns = 1000 * MS, .throttled_ns = 600 * MS, .disk_ns = 5000 * MS};
    CHECK(limit_of_target(&usage) == VERDICT_APPLICATION);
}

static void test_target_names_its_disk_when_requests_spend_more_time_there_than_at_the_peer(void)
{
    struct limit_usage usage = {
        .period_ns = 1000 * MS, .buffers_ns = 900 * MS, .disk_ns = 4000 * MS, .answer_ns = 3000 * MS, .answers = 100};
    CHECK(limit_of_target(&usage) == VERDICT_DISK);
    usage.answer_ns = 9000 * MS;
    usage.quickest_ns = 1 * MS;
    CHECK(limit_of_target(&usage) == VERDICT_ELSEWHERE);
}

static void test_target_names_the_fill_target_when_answers_are_as_quick_as_ever(void)
{
    struct limit_usage usage = {
        .period_ns = 1000 * MS, .held_ns = 900 * MS, .answers = 100, .answer_ns = 1500 * MS, .quickest_ns = 10 * MS};
    CHECK(limit_of_target(&usage) == VERDICT_RATE);
    usage.answer_ns = 9000 * MS;    /* they queue somewhere */
    CHECK(limit_of_target(&usage) == VERDICT_ELSEWHERE);
}

static void test_target_names_max_buffers_only_when_nothing_queues(void)
{
    struct limit_usage usage = {
        .period_ns = 1000 * MS, .buffers_ns = 900 * MS, .answers = 100, .answer_ns = 1500 * MS, .quickest_ns = 10 * MS};
    CHECK(limit_of_target(&usage) == VERDICT_BUFFERS);
}

static void test_source_names_its_disk_its_socket_or_nothing(void)
{
    struct limit_usage usage = {.period_ns = 1000 * MS, .disk_ns = 100 * MS, .link_ns = 100 * MS};
    CHECK(limit_of_source(&usage) == VERDICT_ELSEWHERE);
    usage.link_ns = 900 * MS;
    CHECK(limit_of_source(&usage) == VERDICT_LINK);
    usage.disk_ns = 3000 * MS;
    CHECK(limit_of_source(&usage) == VERDICT_DISK);
    usage.throttled_ns = 600 * MS;
    CHECK(limit_of_source(&usage) == VERDICT_APPLICATION);
}

static void check_mirrored(enum limit_verdict target, enum limit_verdict source, enum re_resync_limit at_target,
                           enum re_resync_limit at_source)
{
    CHECK(limit_combined(target, source, true) == at_target);
    CHECK(limit_combined(source, target, false) == at_source);
}

static void test_both_nodes_name_the_same_cause(void)
{
    check_mirrored(VERDICT_RATE, VERDICT_DISK, RE_LIMIT_RATE, RE_LIMIT_RATE);
    check_mirrored(VERDICT_DISK, VERDICT_LINK, RE_LIMIT_OWN_DISK, RE_LIMIT_PEER_DISK);
    check_mirrored(VERDICT_ELSEWHERE, VERDICT_DISK, RE_LIMIT_PEER_DISK, RE_LIMIT_OWN_DISK);
    check_mirrored(VERDICT_ELSEWHERE, VERDICT_LINK, RE_LIMIT_LINK, RE_LIMIT_LINK);
    check_mirrored(VERDICT_ELSEWHERE, VERDICT_ELSEWHERE, RE_LIMIT_LINK, RE_LIMIT_LINK);
    check_mirrored(VERDICT_BUFFERS, VERDICT_ELSEWHERE, RE_LIMIT_BUFFERS, RE_LIMIT_BUFFERS);
    check_mirrored(VERDICT_ELSEWHERE, VERDICT_APPLICATION, RE_LIMIT_APPLICATION, RE_LIMIT_APPLICATION);
    check_mirrored(VERDICT_APPLICATION, VERDICT_DISK, RE_LIMIT_APPLICATION, RE_LIMIT_APPLICATION);
}

static void test_peer_that_says_nothing_may_be_slow_itself_or_behind_a_slow_link(void)
{
    CHECK(limit_combined(VERDICT_ELSEWHERE, VERDICT_NONE, true) == RE_LIMIT_PEER);
    CHECK(limit_combined(VERDICT_ELSEWHERE, VERDICT_NONE, false) == RE_LIMIT_PEER);
    CHECK(limit_combined(VERDICT_DISK, VERDICT_NONE, true) == RE_LIMIT_OWN_DISK);
    CHECK(limit_combined(VERDICT_NONE, VERDICT_NONE, true) == RE_LIMIT_NONE);
}

int main(void)
{
    test_target_names_its_controller_when_nothing_is_in_flight_for_most_of_the_time();
    test_target_names_applications_before_anything_else();
    test_target_names_its_disk_when_requests_spend_more_time_there_than_at_the_peer();
    test_target_names_the_fill_target_when_answers_are_as_quick_as_ever();
    test_target_names_max_buffers_only_when_nothing_queues();
    test_source_names_its_disk_its_socket_or_nothing();
    test_both_nodes_name_the_same_cause();
    test_peer_that_says_nothing_may_be_slow_itself_or_behind_a_slow_link();
    return 0;
}
