/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes: the shell around an engine's core.
 *
 * A run delivers everything that is ready, in an order drawn from the seed, and ticks the core once; the next run is
 * due when something becomes ready (after a short pause, so that things come in batches) or at the core's timer.
 */
#include "sim/internal.h"

void node_init(struct re_sim *sim, int index)
{
    struct node *node = &sim->nodes[index];
    node->index = index;
    node->sim = sim;
    node->powered = true;
    node->run_at = SIM_NEVER;
    for (int i = 0; i < RE_STREAMS_MAX; i++)
        node->sockets[i] = -1;
    list_init(&node->done);
    list_init(&node->commands);
}

static void commands_free(struct node *node)
{
    for (struct list_head *link; (link = list_pop(&node->commands));)
        free(list_entry(link, struct queued_command, link));
}

void node_free(struct node *node)
{
    list_init(&node->done);
    if (node->core)
        core_destroy(node->core);
    node->core = NULL;
    commands_free(node);
}

static void schedule(struct node *node, uint64_t at)
{
    if (at >= node->run_at || !node->core)
        return;
    node->run_at = at;
    sim_push(node->sim, at, EV_RUN, (uint32_t)node->index, ++node->run_token);
}

/* Something is ready. */
void node_kick(struct node *node)
{
    struct re_sim *sim = node->sim;
    if (!node->core || node->running)
        return;
    uint64_t latest = sim->now + sim->timing.run_max_ns;
    if (node->run_at <= latest)
        return;
    schedule(node, sim->now + sim_between(sim, RNG_SCHEDULE, 1, sim->timing.run_max_ns));
}

static bool stream_is_ready(const struct node *node, int stream)
{
    const struct socket *s = socket_get(node->sim, node->sockets[stream]);
    return (s->want_read && socket_readable(s)) || (s->want_write && socket_writable(node->sim, s));
}

static void run_streams(struct node *node)
{
    struct re_sim *sim = node->sim;
    int ready[RE_STREAMS_MAX];
    int count = 0;
    for (int i = 0; i < node->open_count; i++)
        if (stream_is_ready(node, node->open[i]))
            ready[count++] = node->open[i];
    for (int i = count - 1; i > 0; i--) {
        int j = (int)prng_below(&sim->rng[RNG_SCHEDULE], (uint64_t)i + 1);
        int swap = ready[i];
        ready[i] = ready[j];
        ready[j] = swap;
    }
    for (int i = 0; i < count; i++) {
        if (node->sockets[ready[i]] < 0)
            continue;
        const struct socket *s = socket_get(sim, node->sockets[ready[i]]);
        bool readable = s->want_read && socket_readable(s);
        bool writable = s->want_write && socket_writable(sim, s);
        if (readable || writable)
            core_stream_ready(node->core, ready[i], readable, writable);
    }
}

static void run_disks(struct node *node)
{
    for (struct list_head *link; (link = list_pop(&node->done));) {
        node->progress = true;
        core_disk_done(node->core, list_entry(link, struct disk_op, link));
    }
}

static void run_commands(struct node *node)
{
    for (struct list_head *link; (link = list_pop(&node->commands));) {
        struct queued_command *c = list_entry(link, struct queued_command, link);
        node->progress = true;
        core_command(node->core, &c->command, c->blob_length ? c->blob : NULL, c->blob_length);
        free(c);
    }
}

static void watch_progress(struct node *node)
{
    struct re_sim *sim = node->sim;
    if (node->progress || sim->now - node->last_run > SIM_MS)
        node->idle_runs = 0;
    else if (++node->idle_runs == IDLE_RUNS_MAX) {
        node->frozen = true;
        sim_violation(sim, "node %d: the engine has run %d times without doing anything", node->index,
                      IDLE_RUNS_MAX);
        sim_notice(sim, &(struct re_sim_notice){.kind = RE_SIM_NOTICE_STUCK,
                                                .node = node->index,
                                                .peer_node = -1,
                                                .id = -1,
                                                .fd = -1});
    }
    node->last_run = sim->now;
}

void node_run(struct node *node, uint64_t token)
{
    static const uint8_t orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    struct re_sim *sim = node->sim;
    if (!node->core || node->run_token != token || node->run_at != sim->now)
        return;
    node->run_at = SIM_NEVER;
    if (node->frozen) {
        node->run_missed = true;
        return;
    }
    sim->counters.engine_runs++;
    node->running = true;
    node->progress = false;
    const uint8_t *order = orders[prng_below(&sim->rng[RNG_SCHEDULE], 6)];
    for (int i = 0; i < 3; i++) {
        if (order[i] == 0)
            run_streams(node);
        else if (order[i] == 1)
            run_disks(node);
        else
            run_commands(node);
    }
    uint64_t next = core_tick(node->core);
    node->running = false;
    watch_progress(node);
    bool ready = !list_empty(&node->done) || !list_empty(&node->commands);
    for (int i = 0; i < node->open_count && !ready; i++)
        ready = stream_is_ready(node, node->open[i]);
    if (ready)
        node_kick(node);
    if (next != SIM_NEVER)
        schedule(node, next > sim->now ? next : sim->now + 1);
}

/* ---- the table for the core ---- */

static uint64_t io_now(void *ctx)
{
    const struct node *node = ctx;
    return node->sim->now;
}

static struct socket *stream_socket(struct node *node, int stream)
{
    CHECK(stream >= 0 && stream < RE_STREAMS_MAX);
    return node->sockets[stream] < 0 ? NULL : socket_get(node->sim, node->sockets[stream]);
}

static ssize_t io_receive(void *ctx, int stream, const struct iovec *iov, int count)
{
    struct node *node = ctx;
    struct socket *s = stream_socket(node, stream);
    if (!s) {
        sim_violation(node->sim, "node %d: receive on stream %d, which is not open", node->index, stream);
        return STREAM_IO_RESET;
    }
    if (node->doomed)
        return STREAM_IO_AGAIN;
    ssize_t got = socket_receive(node->sim, s, iov, count);
    if (got != STREAM_IO_AGAIN && s->want_read)
        node->progress = true;
    if (got == STREAM_IO_EOF || got == STREAM_IO_RESET) {
        /* Asking again and again for the end is no progress. */
        node->progress = node->idle_runs == 0;
    }
    return got;
}

static ssize_t io_send(void *ctx, int stream, const struct iovec *iov, int count)
{
    struct node *node = ctx;
    struct socket *s = stream_socket(node, stream);
    if (!s) {
        sim_violation(node->sim, "node %d: send on stream %d, which is not open", node->index, stream);
        return STREAM_IO_RESET;
    }
    if (node->doomed)
        return STREAM_IO_AGAIN;
    ssize_t sent = socket_send(node->sim, s, iov, count);
    if (sent > 0)
        node->progress = true;
    return sent;
}

static void io_want(void *ctx, int stream, bool read, bool write)
{
    struct node *node = ctx;
    struct socket *s = stream_socket(node, stream);
    if (!s) {
        sim_violation(node->sim, "node %d: interest in stream %d, which is not open", node->index, stream);
        return;
    }
    s->want_read = read;
    s->want_write = write;
}

static void io_open(void *ctx, int stream, int fd)
{
    struct node *node = ctx;
    CHECK(stream >= 0 && stream < RE_STREAMS_MAX && node->sockets[stream] < 0);
    struct socket *s = socket_get(node->sim, fd);
    CHECK(s->node == node->index && s->client < 0 && s->stream < 0);
    CHECK(s->open);
    s->stream = stream;
    s->want_read = true;
    s->want_write = false;
    node->sockets[stream] = fd;
    node->open[node->open_count++] = stream;
}

static void io_close(void *ctx, int stream)
{
    struct node *node = ctx;
    struct socket *s = stream_socket(node, stream);
    if (!s) {
        sim_violation(node->sim, "node %d: stream %d closed twice", node->index, stream);
        return;
    }
    node->sockets[stream] = -1;
    for (int i = 0; i < node->open_count; i++)
        if (node->open[i] == stream) {
            memmove(&node->open[i], &node->open[i + 1], (size_t)(node->open_count - i - 1) * sizeof(node->open[0]));
            node->open_count--;
            break;
        }
    s->stream = -1;
    socket_close(node->sim, s, node->vanishing && !s->nbd);
    node->progress = true;
}

static void io_submit(void *ctx, struct list_head *ops)
{
    struct node *node = ctx;
    node->progress = true;
    disk_submit(node, ops);
}

static void io_wake(void *ctx)
{
    struct node *node = ctx;
    struct re_sim *sim = node->sim;
    node->progress = true;
    sim_push(sim, sim->now + sim_between(sim, RNG_SCHEDULE, 0, sim->timing.wake_max_ns), EV_WAKE,
             (uint32_t)node->index, node->generation);
}

const struct io_ops sim_io_ops = {
    .now_ns = io_now,
    .stream_receive = io_receive,
    .stream_send = io_send,
    .stream_want = io_want,
    .stream_open = io_open,
    .stream_close = io_close,
    .disk_submit = io_submit,
    .event_wake = io_wake,
};

/* ---- life of an engine ---- */

void re_sim_engine_start(re_sim *sim, int index, const struct re_sim_engine_config *config)
{
    struct node *node = sim_node(sim, index);
    CHECK(!node->core && node->powered);
    struct core_config core_config = {.requests = config ? config->requests : 0,
                                      .app_buffer_bytes = config ? config->app_buffer_bytes : 0,
                                      .peer_buffer_bytes = config ? config->peer_buffer_bytes : 0};
    node->generation++;
    node->frozen = false;
    node->idle_runs = 0;
    node->run_at = SIM_NEVER;
    node->core = core_create(&sim_io_ops, node, &core_config);
    CHECK(node->core);
    TRACE(sim, "node %d: engine starts", index);
    sim_hash(sim, 0xe1 + (uint64_t)index);
}

bool re_sim_engine_is_running(const re_sim *sim, int index)
{
    return sim_node(sim, index)->core != NULL;
}

static void notices_forget(struct re_sim *sim, int index)
{
    size_t kept = 0;
    for (size_t i = 0; i < sim->notice_count; i++) {
        const struct re_sim_notice *n = &sim->notices[i];
        bool of_process = n->kind == RE_SIM_NOTICE_ENGINE || n->kind == RE_SIM_NOTICE_DIALED ||
                          n->kind == RE_SIM_NOTICE_ACCEPTED || n->kind == RE_SIM_NOTICE_STUCK ||
                          n->kind == RE_SIM_NOTICE_CRASH_POINT;
        if (!of_process || n->node != index)
            sim->notices[kept++] = *n;
    }
    sim->notice_count = kept;
}

static void engine_end(struct re_sim *sim, struct node *node, bool crash, bool power)
{
    node->vanishing = power;
    if (node->core) {
        list_init(&node->done);
        disk_engine_gone(sim, node->index, power);
        core_destroy(node->core);
        node->core = NULL;
        node->run_at = SIM_NEVER;
        node->run_token++;
        /* What the core did not close itself. */
        while (node->open_count)
            io_close(node, node->open[node->open_count - 1]);
    }
    commands_free(node);
    if (crash) {
        net_node_down(sim, node->index, power);
        notices_forget(sim, node->index);
    }
    node->frozen = false;
    node->vanishing = false;
    node->doomed = false;
    node->crash_steps = 0;
}

void re_sim_engine_crash(re_sim *sim, int index)
{
    struct node *node = sim_node(sim, index);
    CHECK(!node->running);
    TRACE(sim, "node %d: process dies", index);
    sim_hash(sim, 0xc1 + (uint64_t)index);
    sim->counters.crashes++;
    engine_end(sim, node, true, false);
}

void re_sim_engine_stop(re_sim *sim, int index)
{
    struct node *node = sim_node(sim, index);
    CHECK(node->core && !node->running);
    TRACE(sim, "node %d: engine ends", index);
    engine_end(sim, node, false, false);
}

void re_sim_power_off(re_sim *sim, int index)
{
    struct node *node = sim_node(sim, index);
    CHECK(!node->running && node->powered);
    TRACE(sim, "node %d: power fails", index);
    sim_hash(sim, 0xf1 + (uint64_t)index);
    sim->counters.power_losses++;
    node->powered = false;
    engine_end(sim, node, true, true);
    for (size_t i = 0; i < sim->disk_count; i++)
        if (sim->disks[i]->node == index)
            re_sim_disk_power_loss(sim, (int)i);
}

void re_sim_power_on(re_sim *sim, int index)
{
    struct node *node = sim_node(sim, index);
    CHECK(!node->powered);
    TRACE(sim, "node %d: power is back", index);
    node->powered = true;
}

void re_sim_engine_freeze(re_sim *sim, int index, bool frozen)
{
    struct node *node = sim_node(sim, index);
    TRACE(sim, "node %d: %s", index, frozen ? "frozen" : "goes on");
    node->frozen = frozen || node->doomed;
    if (!node->frozen && node->run_missed) {
        node->run_missed = false;
        node_kick(node);
    }
}

void re_sim_command(re_sim *sim, int index, const struct re_command *command, const uint8_t *blob,
                    size_t blob_length)
{
    struct node *node = sim_node(sim, index);
    CHECK(node->core);
    struct queued_command *c = malloc(sizeof(*c) + blob_length);
    CHECK(c);
    c->command = *command;
    c->blob_length = blob_length;
    if (blob_length)
        memcpy(c->blob, blob, blob_length);
    list_add_tail(&node->commands, &c->link);
    TRACE(sim, "node %d: command %u volume %d stream %d cookie %llu", index, command->type, command->volume,
          command->stream, (unsigned long long)command->cookie);
    sim_hash(sim, (uint64_t)command->type << 32 ^ command->cookie);
    node_kick(node);
}

bool re_sim_event(re_sim *sim, int index, struct re_event *event, uint8_t *blob)
{
    struct node *node = sim_node(sim, index);
    if (!node->core || !core_event(node->core, event, blob))
        return false;
    TRACE(sim, "node %d: event %u volume %d stream %d status %d packet %#x reason %u cookie %llu value %llu", index,
          event->type, event->volume, event->stream, event->status, event->packet, event->reason,
          (unsigned long long)event->cookie, (unsigned long long)event->value);
    sim_hash(sim, (uint64_t)event->type << 56 ^ (uint64_t)event->packet << 32 ^ event->cookie ^ event->value << 8 ^
                      (uint64_t)(uint32_t)event->status << 40);
    return true;
}

const struct re_volume_stats *re_sim_volume_stats(const re_sim *sim, int index, int volume)
{
    const struct node *node = sim_node(sim, index);
    return node->core ? core_volume_stats(node->core, volume) : NULL;
}

const struct re_engine_stats *re_sim_engine_stats(const re_sim *sim, int index)
{
    const struct node *node = sim_node(sim, index);
    return node->core ? core_stats(node->core) : NULL;
}
