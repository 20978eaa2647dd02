/* SPDX-License-Identifier: Apache-2.0 */
/* The event heap, notices and timers: virtual time goes on here and nowhere else. */
#include <stdarg.h>

#include "sim/internal.h"

void *sim_grow(void *array, size_t count, size_t *capacity, size_t size)
{
    if (count < *capacity)
        return array;
    size_t grown = *capacity ? *capacity * 2 : 16;
    array = realloc(array, grown * size);
    CHECK(array);
    *capacity = grown;
    return array;
}

struct node *sim_node(const struct re_sim *sim, int node)
{
    CHECK(node >= 0 && node < NODES);
    return (struct node *)(uintptr_t)&sim->nodes[node];
}

/* ---- heap ---- */

static bool event_before(const struct event *a, const struct event *b)
{
    return a->at != b->at ? a->at < b->at : a->tie < b->tie;
}

void sim_push(struct re_sim *sim, uint64_t at, enum event_kind kind, uint32_t a, uint64_t b)
{
    CHECK(at >= sim->now);
    sim->heap = sim_grow(sim->heap, sim->heap_count, &sim->heap_capacity, sizeof(*sim->heap));
    struct event event = {at, prng_next(&sim->rng[RNG_SCHEDULE]), kind, a, b};
    size_t i = sim->heap_count++;
    while (i > 0 && event_before(&event, &sim->heap[(i - 1) / 2])) {
        sim->heap[i] = sim->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    sim->heap[i] = event;
}

static struct event heap_pop(struct re_sim *sim)
{
    struct event top = sim->heap[0];
    struct event last = sim->heap[--sim->heap_count];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= sim->heap_count)
            break;
        if (child + 1 < sim->heap_count && event_before(&sim->heap[child + 1], &sim->heap[child]))
            child++;
        if (!event_before(&sim->heap[child], &last))
            break;
        sim->heap[i] = sim->heap[child];
        i = child;
    }
    sim->heap[i] = last;
    return top;
}

/* ---- life ---- */

re_sim *re_sim_create(uint64_t seed)
{
    struct re_sim *sim = calloc(1, sizeof(*sim));
    CHECK(sim);
    sim->seed = seed;
    sim->hash = splitmix64_mix(seed);
    for (unsigned i = 0; i < RNG_COUNT; i++)
        prng_init(&sim->rng[i], splitmix64_mix(seed) + i);
    sim->now = SIM_SECOND;
    sim->notice_mask = ~((1u << RE_SIM_NOTICE_CLIENT_OP) | (1u << RE_SIM_NOTICE_VIOLATION));
    sim->timing = (struct re_sim_timing){.wake_max_ns = 2 * SIM_MS, .run_max_ns = 20 * SIM_US};
    for (int i = 0; i < NODES; i++)
        node_init(sim, i);
    net_init(sim);
    return sim;
}

void re_sim_destroy(re_sim *sim)
{
    for (int i = 0; i < NODES; i++)
        node_free(&sim->nodes[i]);
    client_free_all(sim);
    net_free(sim);
    disk_free_all(sim);
    history_free_all(sim);
    if (sim->trace)
        fclose(sim->trace);
    free(sim->heap);
    free(sim->notices);
    free(sim->timers);
    free(sim);
}

uint64_t re_sim_now(const re_sim *sim)
{
    return sim->now;
}

uint64_t re_sim_trace_hash(const re_sim *sim)
{
    return sim->hash;
}

uint64_t re_sim_events(const re_sim *sim)
{
    return sim->events_run;
}

uint64_t re_sim_random(re_sim *sim, uint64_t bound)
{
    CHECK(bound);
    return prng_below(&sim->rng[RNG_CONTROL], bound);
}

void re_sim_timing_set(re_sim *sim, const struct re_sim_timing *timing)
{
    sim->timing = *timing;
}

void re_sim_counters(const re_sim *sim, struct re_sim_counters *counters)
{
    *counters = sim->counters;
}

/* ---- for people ---- */

int re_sim_trace_file(re_sim *sim, const char *path)
{
    if (sim->trace)
        fclose(sim->trace);
    sim->trace = NULL;
    if (path) {
        sim->trace = fopen(path, "a");
        if (!sim->trace)
            return -errno;
    }
    return 0;
}

void sim_trace(struct re_sim *sim, const char *format, ...)
{
    va_list args;
    fprintf(sim->trace, "%6llu.%09llu ", (unsigned long long)(sim->now / SIM_SECOND),
            (unsigned long long)(sim->now % SIM_SECOND));
    va_start(args, format);
    vfprintf(sim->trace, format, args);
    va_end(args);
    fputc('\n', sim->trace);
}

void sim_violation(struct re_sim *sim, const char *format, ...)
{
    char text[VIOLATION_TEXT];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    TRACE(sim, "VIOLATION %s", text);
    if (sim->violations < VIOLATIONS_KEPT)
        snprintf(sim->violation_text[sim->violations], VIOLATION_TEXT, "%llu.%09llu: %.200s",
                 (unsigned long long)(sim->now / SIM_SECOND), (unsigned long long)(sim->now % SIM_SECOND), text);
    sim->violations++;
    sim_notice(sim, &(struct re_sim_notice){.kind = RE_SIM_NOTICE_VIOLATION,
                                            .node = -1,
                                            .peer_node = -1,
                                            .id = -1,
                                            .fd = -1,
                                            .value = sim->violations - 1});
}

uint64_t re_sim_violations(const re_sim *sim)
{
    return sim->violations;
}

const char *re_sim_violation(const re_sim *sim, uint32_t index)
{
    return index < sim->violations && index < VIOLATIONS_KEPT ? sim->violation_text[index] : NULL;
}

/* ---- notices and timers ---- */

void re_sim_notice_mask(re_sim *sim, uint32_t mask)
{
    sim->notice_mask = mask;
}

void sim_notice(struct re_sim *sim, const struct re_sim_notice *notice)
{
    sim_hash(sim, sim->now ^ ((uint64_t)notice->kind << 56) ^ ((uint64_t)(uint32_t)notice->id << 16));
    if (!(sim->notice_mask >> notice->kind & 1))
        return;
    sim->notices = sim_grow(sim->notices, sim->notice_count, &sim->notice_capacity, sizeof(*sim->notices));
    sim->notices[sim->notice_count++] = *notice;
}

static void notice_drop(struct re_sim *sim, size_t index)
{
    sim->notice_count--;
    memmove(&sim->notices[index], &sim->notices[index + 1],
            (sim->notice_count - index) * sizeof(*sim->notices));
}

/* The first one that may be delivered: a frozen process learns nothing. */
static bool notice_take(struct re_sim *sim, struct re_sim_notice *notice)
{
    for (size_t i = 0; i < sim->notice_count; i++) {
        const struct re_sim_notice *n = &sim->notices[i];
        bool to_process = n->kind == RE_SIM_NOTICE_ENGINE || n->kind == RE_SIM_NOTICE_DIALED ||
                          n->kind == RE_SIM_NOTICE_ACCEPTED;
        if (to_process && n->node >= 0 && sim->nodes[n->node].frozen)
            continue;
        *notice = *n;
        notice_drop(sim, i);
        return true;
    }
    return false;
}

void re_sim_timer(re_sim *sim, uint64_t at_ns, uint64_t id)
{
    size_t i = 0;
    while (i < sim->timer_count && sim->timers[i].serial)
        i++;
    if (i == sim->timer_count) {
        sim->timers = realloc(sim->timers, (i + 1) * sizeof(*sim->timers));
        CHECK(sim->timers);
        sim->timer_count++;
    }
    sim->timers[i] = (struct timer){.id = id, .serial = ++sim->serial};
    sim_push(sim, at_ns < sim->now ? sim->now : at_ns, EV_TIMER, (uint32_t)i, sim->serial);
}

void re_sim_timer_cancel(re_sim *sim, uint64_t id)
{
    for (size_t i = 0; i < sim->timer_count; i++)
        if (sim->timers[i].serial && sim->timers[i].id == id)
            sim->timers[i].serial = 0;
    for (size_t i = sim->notice_count; i-- > 0;)
        if (sim->notices[i].kind == RE_SIM_NOTICE_TIMER && sim->notices[i].value == id)
            notice_drop(sim, i);
}

static void timer_due(struct re_sim *sim, uint32_t index, uint64_t serial)
{
    struct timer *timer = &sim->timers[index];
    if (timer->serial != serial)
        return;
    timer->serial = 0;
    sim_notice(sim, &(struct re_sim_notice){.kind = RE_SIM_NOTICE_TIMER,
                                            .node = -1,
                                            .peer_node = -1,
                                            .id = -1,
                                            .fd = -1,
                                            .value = timer->id});
}

static void wake_due(struct re_sim *sim, uint32_t index, uint64_t generation)
{
    struct node *node = &sim->nodes[index];
    if (node->core && node->generation == generation)
        sim_notice(sim, &(struct re_sim_notice){.kind = RE_SIM_NOTICE_ENGINE,
                                                .node = node->index,
                                                .peer_node = -1,
                                                .id = -1,
                                                .fd = -1});
}

/* ---- running ---- */

static void event_run(struct re_sim *sim, const struct event *event)
{
    switch ((enum event_kind)event->kind) {
    case EV_RUN:
        node_run(&sim->nodes[event->a], event->b);
        break;
    case EV_WAKE:
        wake_due(sim, event->a, event->b);
        break;
    case EV_TIMER:
        timer_due(sim, event->a, event->b);
        break;
    case EV_DISK:
        disk_finish(sim, event->a, event->b);
        break;
    case EV_SEGMENT:
        socket_arrival(sim, event->a);
        break;
    case EV_SYN:
        dial_syn(sim, event->a);
        break;
    case EV_DIALED:
        dial_finished(sim, event->a, (int)event->b);
        break;
    case EV_DIAL_TIMEOUT:
        dial_timeout(sim, event->a);
        break;
    case EV_CLIENT_NEXT:
        client_next(sim, event->a);
        break;
    }
}

bool re_sim_step(re_sim *sim, uint64_t until_ns, struct re_sim_notice *notice)
{
    for (;;) {
        if (sim->notice_count && notice_take(sim, notice))
            return true;
        if (!sim->heap_count || sim->heap[0].at > until_ns)
            break;
        struct event event = heap_pop(sim);
        sim->now = event.at;
        sim->events_run++;
        sim_hash(sim, event.at ^ (uint64_t)event.kind << 60 ^ (uint64_t)event.a << 44);
        event_run(sim, &event);
    }
    if (until_ns != SIM_NEVER && until_ns > sim->now)
        sim->now = until_ns;
    *notice = (struct re_sim_notice){.node = -1, .peer_node = -1, .id = -1, .fd = -1};
    return false;
}
