/* SPDX-License-Identifier: Apache-2.0 */
/* Pure judgement over counted time; invariant: the same period judged twice has the same verdict. */
#include "resync/limit.h"

static bool is_most(uint64_t part_ns, const struct limit_usage *usage)
{
    return part_ns > usage->period_ns / 2;
}

/* Answers come about as quickly as they ever did: nothing queues anywhere, more could be in flight. */
static bool nothing_queues(const struct limit_usage *usage)
{
    return usage->answers && usage->answer_ns / usage->answers <= usage->quickest_ns * 2;
}

enum limit_verdict limit_of_target(const struct limit_usage *usage)
{
    if (is_most(usage->throttled_ns, usage))
        return VERDICT_APPLICATION;
    if (is_most(usage->rate_ns, usage))
        return VERDICT_RATE;
    if (usage->disk_ns >= usage->answer_ns && usage->disk_ns > 0)
        return VERDICT_DISK;
    if (is_most(usage->rate_ns + usage->held_ns, usage) && nothing_queues(usage))
        return VERDICT_RATE;
    if (is_most(usage->buffers_ns, usage) && nothing_queues(usage))
        return VERDICT_BUFFERS;
    return VERDICT_ELSEWHERE;
}

enum limit_verdict limit_of_source(const struct limit_usage *usage)
{
    if (is_most(usage->throttled_ns, usage))
        return VERDICT_APPLICATION;
    if (!is_most(usage->disk_ns, usage) && !is_most(usage->link_ns, usage))
        return VERDICT_ELSEWHERE;
    return usage->link_ns >= usage->disk_ns ? VERDICT_LINK : VERDICT_DISK;
}

enum re_resync_limit limit_combined(enum limit_verdict own, enum limit_verdict peer, bool is_target)
{
    /* The target sets the pace: what its controller does counts before anything that the source sees. */
    enum limit_verdict target = is_target ? own : peer, source = is_target ? peer : own;
    if (target == VERDICT_APPLICATION || source == VERDICT_APPLICATION)
        return RE_LIMIT_APPLICATION;
    if (target == VERDICT_RATE)
        return RE_LIMIT_RATE;
    if (target == VERDICT_DISK)
        return is_target ? RE_LIMIT_OWN_DISK : RE_LIMIT_PEER_DISK;
    if (source == VERDICT_DISK)
        return is_target ? RE_LIMIT_PEER_DISK : RE_LIMIT_OWN_DISK;
    if (source == VERDICT_LINK)
        return RE_LIMIT_LINK;
    if (target == VERDICT_BUFFERS)
        return RE_LIMIT_BUFFERS;
    if (own == VERDICT_NONE)
        return RE_LIMIT_NONE;
    /* Both are idle and wait: the round trips do it.  A peer that says nothing may be slow in any way. */
    return peer == VERDICT_NONE ? RE_LIMIT_PEER : RE_LIMIT_LINK;
}
