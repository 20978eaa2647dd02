/* SPDX-License-Identifier: Apache-2.0 */
/* NBD clients: the transmission phase with simple replies, and workloads that drive them from the seed.
 *
 * Invariant: every operation that was sent ends exactly once: answered, failed, or unknown when the connection is lost.
 */
#include "nbd/wire.h"
#include "sim/internal.h"

enum { TX_KEEP = 1 << 20, REDRAWS_MAX = 8 };

static struct client *client_get(const struct re_sim *sim, int client)
{
    CHECK(client >= 0 && (size_t)client < sim->client_count);
    return sim->clients[client];
}

void client_free_all(struct re_sim *sim)
{
    for (size_t i = 0; i < sim->client_count; i++) {
        free(sim->clients[i]->tx);
        free(sim->clients[i]->rx);
        free(sim->clients[i]->pending);
        free(sim->clients[i]);
    }
    free(sim->clients);
}

int re_sim_nbd_connect(re_sim *sim, int node, int history, int *fd)
{
    sim_node(sim, node);
    history_get(sim, history);
    int fds[2];
    socket_pair(sim, node, node, true, fds);
    sim->clients = realloc(sim->clients, (sim->client_count + 1) * sizeof(struct client *));
    struct client *c = calloc(1, sizeof(*c));
    CHECK(sim->clients && c);
    c->id = (int)sim->client_count;
    c->node = node;
    c->history = history;
    c->socket = fds[0];
    c->open = true;
    c->rx_op = -1;
    socket_get(sim, fds[0])->client = c->id;
    sim->clients[sim->client_count++] = c;
    *fd = fds[1];
    return c->id;
}

void re_sim_nbd_base(re_sim *sim, int client, uint64_t offset)
{
    struct client *c = client_get(sim, client);
    CHECK(offset % SECTOR == 0 && offset < history_get(sim, c->history)->size && c->stats.submitted == 0);
    c->base = offset;
}

static void client_notice(struct re_sim *sim, const struct client *c, uint32_t kind, int error, uint64_t value)
{
    sim_notice(sim, &(struct re_sim_notice){.kind = kind,
                                            .node = c->node,
                                            .peer_node = -1,
                                            .id = c->id,
                                            .fd = -1,
                                            .error = error,
                                            .value = value});
}

/* ---- ends of operations ---- */

static void plan_next(struct re_sim *sim, struct client *c)
{
    if (!c->open || !c->loading || c->scheduled || !c->load_left || c->pending_count >= c->load.queue_depth)
        return;
    c->scheduled = true;
    sim_push(sim, sim->now + sim_between(sim, RNG_LOAD, 0, c->load.think_max_ns), EV_CLIENT_NEXT, (uint32_t)c->id, 0);
}

static void check_idle(struct re_sim *sim, struct client *c)
{
    if (!c->loading || c->idle_told || c->pending_count || (c->load_left && c->open))
        return;
    c->idle_told = true;
    c->loading = false;
    client_notice(sim, c, RE_SIM_NOTICE_CLIENT_IDLE, 0, 0);
}

static void op_ends(struct re_sim *sim, struct client *c, uint64_t number, uint32_t state, uint32_t error,
                    const uint8_t *data)
{
    struct nbd_op *op = &sim->ops[number];
    uint64_t last = c->pending[--c->pending_count];
    c->pending[op->waits] = last;
    sim->ops[last].waits = op->waits;
    op->info.error = error;
    reach_request(sim, c->node, op->info.kind, state);
    history_completed(sim, number, state, data);
    if (state == RE_SIM_OP_DONE) {
        c->stats.completed++;
        c->stats.last_completed_ns = sim->now;
        if (op->info.kind == RE_SIM_NBD_READ)
            c->stats.read_bytes += op->info.length;
        else if (op->info.kind == RE_SIM_NBD_FLUSH)
            c->stats.flushes++;
        else
            c->stats.written_bytes += op->info.length;
    } else if (state == RE_SIM_OP_FAILED)
        c->stats.failed++;
    else
        c->stats.unknown++;
    TRACE(sim, "client %d: operation %llu ends: %s %u", c->id, (unsigned long long)number,
          state == RE_SIM_OP_DONE ? "done" : state == RE_SIM_OP_FAILED ? "failed" : "unknown", error);
    client_notice(sim, c, RE_SIM_NOTICE_CLIENT_OP, (int)error, number);
}


static void client_gone(struct re_sim *sim, struct client *c, int error, bool by_engine)
{
    if (!c->open)
        return;
    c->open = false;
    socket_close(sim, socket_get(sim, c->socket), false);
    while (c->pending_count)
        op_ends(sim, c, c->pending[c->pending_count - 1], RE_SIM_OP_UNKNOWN, 0, NULL);
    free(c->tx);
    free(c->rx);
    c->tx = c->rx = NULL;
    c->tx_head = c->tx_end = c->tx_capacity = 0;
    check_idle(sim, c);
    if (by_engine)
        client_notice(sim, c, RE_SIM_NOTICE_CLIENT_CLOSED, error, 0);
}

/* ---- bytes ---- */

static void client_send(struct re_sim *sim, struct client *c)
{
    struct socket *s = socket_get(sim, c->socket);
    while (c->open && c->tx_head < c->tx_end) {
        struct iovec iov = {c->tx + c->tx_head, c->tx_end - c->tx_head};
        ssize_t sent = socket_send(sim, s, &iov, 1);
        if (sent <= 0)
            return;     /* a broken connection is noticed when it is read */
        c->tx_head += (size_t)sent;
    }
    if (c->tx_head == c->tx_end) {
        c->tx_head = c->tx_end = 0;
        if (c->tx_capacity > TX_KEEP) {
            free(c->tx);
            c->tx = NULL;
            c->tx_capacity = 0;
        }
    }
}

static uint8_t *tx_room(struct client *c, size_t bytes)
{
    if (c->tx_end + bytes > c->tx_capacity) {
        if (c->tx_end != c->tx_head)
            memmove(c->tx, c->tx + c->tx_head, c->tx_end - c->tx_head);
        c->tx_end -= c->tx_head;
        c->tx_head = 0;
        size_t capacity = c->tx_capacity ? c->tx_capacity : 4096;
        while (c->tx_end + bytes > capacity)
            capacity *= 2;
        if (capacity != c->tx_capacity) {
            c->tx = realloc(c->tx, capacity);
            CHECK(c->tx);
            c->tx_capacity = capacity;
        }
    }
    uint8_t *at = c->tx + c->tx_end;
    c->tx_end += bytes;
    return at;
}

static bool bad_reply(struct re_sim *sim, struct client *c, const char *what)
{
    sim_violation(sim, "client %d: bad reply: %s", c->id, what);
    c->stats.protocol_errors++;
    client_gone(sim, c, EPROTO, true);
    return false;
}

static bool header_complete(struct re_sim *sim, struct client *c)
{
    c->header_have = 0;
    uint32_t error = be32_get(c->header + 4);
    uint64_t number = be64_get(c->header + 8) - 1;
    if (be32_get(c->header) != NBD_SIMPLE_REPLY_MAGIC)
        return bad_reply(sim, c, "wrong magic");
    if (number >= sim->op_count || sim->ops[number].info.client != c->id ||
        sim->ops[number].info.state != RE_SIM_OP_PENDING)
        return bad_reply(sim, c, "nothing with this cookie waits");
    if (error) {
        op_ends(sim, c, number, RE_SIM_OP_FAILED, error, NULL);
        return true;
    }
    if (sim->ops[number].info.kind != RE_SIM_NBD_READ) {
        op_ends(sim, c, number, RE_SIM_OP_DONE, 0, NULL);
        return true;
    }
    c->rx_op = (int64_t)number;
    c->rx_have = 0;
    c->rx = malloc(sim->ops[number].info.length);
    CHECK(c->rx);
    return true;
}

static void client_receive(struct re_sim *sim, struct client *c)
{
    struct socket *s = socket_get(sim, c->socket);
    while (c->open) {
        struct iovec iov = {c->header + c->header_have, NBD_SIMPLE_REPLY_BYTES - c->header_have};
        if (c->rx_op >= 0)
            iov = (struct iovec){c->rx + c->rx_have, sim->ops[c->rx_op].info.length - c->rx_have};
        ssize_t got = socket_receive(sim, s, &iov, 1);
        if (got == STREAM_IO_AGAIN)
            return;
        if (got == STREAM_IO_EOF || got == STREAM_IO_RESET) {
            client_gone(sim, c, got == STREAM_IO_EOF ? 0 : ECONNRESET, true);
            return;
        }
        if (c->rx_op < 0) {
            c->header_have += (uint32_t)got;
            if (c->header_have == NBD_SIMPLE_REPLY_BYTES && !header_complete(sim, c))
                return;
            continue;
        }
        c->rx_have += (size_t)got;
        uint64_t number = (uint64_t)c->rx_op;
        if (c->rx_have == sim->ops[number].info.length) {
            c->rx_op = -1;
            op_ends(sim, c, number, RE_SIM_OP_DONE, 0, c->rx);
            free(c->rx);
            c->rx = NULL;
        }
    }
}

void client_socket_event(struct re_sim *sim, int id)
{
    struct client *c = client_get(sim, id);
    client_receive(sim, c);
    if (c->open)
        client_send(sim, c);
    if (c->open)
        plan_next(sim, c);
    check_idle(sim, c);
}

/* ---- requests ---- */

static uint16_t command_of(uint32_t kind)
{
    static const uint16_t commands[] = {NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_FLUSH, NBD_CMD_WRITE_ZEROES, NBD_CMD_TRIM};
    return commands[kind];
}

int64_t re_sim_nbd_submit(re_sim *sim, int client, const struct re_sim_nbd_op *request)
{
    struct client *c = client_get(sim, client);
    uint64_t size = history_get(sim, c->history)->size;
    bool flush = request->kind == RE_SIM_NBD_FLUSH;
    if (request->kind > RE_SIM_NBD_TRIM ||
        (!flush && (!request->length || request->length > REQUEST_MAX || request->offset % SECTOR ||
                    request->length % SECTOR ||
                    !u64_range_inside(c->base + request->offset, request->length, size))))
        return -EINVAL;
    if (!c->open || c->closing)
        return -ENOTCONN;
    sim->ops = sim_grow(sim->ops, sim->op_count, &sim->op_capacity, sizeof(*sim->ops));
    uint64_t number = sim->op_count++;
    struct nbd_op *op = &sim->ops[number];
    *op = (struct nbd_op){.info = {.kind = request->kind,
                                   .fua = request->fua & 1,
                                   .offset = c->base + (flush ? 0 : request->offset),
                                   .length = flush ? 0 : request->length,
                                   .client = client,
                                   .state = RE_SIM_OP_PENDING},
                          .history = c->history,
                          .waits = c->pending_count};
    if (c->pending_count == c->pending_capacity) {
        c->pending_capacity = c->pending_capacity ? c->pending_capacity * 2 : 16;
        c->pending = realloc(c->pending, c->pending_capacity * sizeof(*c->pending));
        CHECK(c->pending);
    }
    c->pending[c->pending_count++] = number;
    history_invoked(sim, op);
    reach_request(sim, c->node, op->info.kind, 0);
    bool payload = op->info.kind == RE_SIM_NBD_WRITE;
    uint8_t *p = tx_room(c, NBD_REQUEST_BYTES + (payload ? op->info.length : 0));
    be32_put(p, NBD_REQUEST_MAGIC);
    bool fast = (request->fua & 2) && request->kind == RE_SIM_NBD_ZERO;
    be16_put(p + 4, (uint16_t)((op->info.fua && !flush && op->info.kind != RE_SIM_NBD_READ ? NBD_CMD_FLAG_FUA : 0) |
                               (fast ? NBD_CMD_FLAG_FAST_ZERO : 0)));
    be16_put(p + 6, command_of(op->info.kind));
    be64_put(p + 8, number + 1);
    be64_put(p + 16, flush ? 0 : op->info.offset - c->base);
    be32_put(p + 24, (uint32_t)op->info.length);
    p += NBD_REQUEST_BYTES;
    for (uint64_t i = 0; payload && i < op->info.length / SECTOR; i++)
        tag_fill(sim, p + i * SECTOR, op->info.offset / SECTOR + i, number, c->stats.flushes, (uint32_t)client);
    c->stats.submitted++;
    TRACE(sim, "client %d: operation %llu: %s %#llx+%#llx%s", client, (unsigned long long)number,
          (const char *[]){"read", "write", "flush", "zero", "trim"}[op->info.kind],
          (unsigned long long)op->info.offset, (unsigned long long)op->info.length, op->info.fua ? " fua" : "");
    client_send(sim, c);
    return (int64_t)number;
}

int re_sim_nbd_send_raw(re_sim *sim, int client, const uint8_t *data, size_t length)
{
    struct client *c = client_get(sim, client);
    if (!c->open)
        return -ENOTCONN;
    memcpy(tx_room(c, length), data, length);
    client_send(sim, c);
    return 0;
}

void re_sim_nbd_disconnect(re_sim *sim, int client, bool orderly)
{
    struct client *c = client_get(sim, client);
    if (!c->open || (orderly && c->closing))
        return;
    if (!orderly) {
        client_gone(sim, c, 0, false);
        return;
    }
    uint8_t request[NBD_REQUEST_BYTES] = {0};
    be32_put(request, NBD_REQUEST_MAGIC);
    be16_put(request + 6, NBD_CMD_DISC);
    c->closing = true;
    c->load_left = 0;
    re_sim_nbd_send_raw(sim, client, request, sizeof(request));
    check_idle(sim, c);
}

/* ---- workloads ---- */

void re_sim_workload(re_sim *sim, int client, const struct re_sim_workload_settings *settings)
{
    struct client *c = client_get(sim, client);
    uint64_t size = history_get(sim, c->history)->size;
    CHECK(settings->align_bytes >= SECTOR && settings->align_bytes % SECTOR == 0 && settings->queue_depth);
    CHECK(settings->min_bytes <= settings->max_bytes && settings->max_bytes <= REQUEST_MAX);
    CHECK(settings->span_length >= settings->align_bytes && settings->span_offset % settings->align_bytes == 0);
    CHECK(u64_range_inside(settings->span_offset, settings->span_length, size));
    CHECK(settings->read_percent + settings->flush_percent + settings->zero_percent + settings->trim_percent <= 100);
    c->load = *settings;
    c->load_left = settings->ops ? settings->ops : UINT64_MAX;
    c->loading = true;
    c->idle_told = false;
    plan_next(sim, c);
    check_idle(sim, c);
}

void re_sim_workload_stop(re_sim *sim, int client)
{
    struct client *c = client_get(sim, client);
    c->load_left = 0;
    check_idle(sim, c);
}

static bool overlaps_pending(const struct re_sim *sim, const struct client *c, const struct re_sim_nbd_op *op)
{
    for (uint32_t i = 0; i < c->pending_count; i++) {
        const struct re_sim_op_info *other = &sim->ops[c->pending[i]].info;
        uint64_t offset = c->base + op->offset;
        if (other->offset < offset + op->length && offset < other->offset + other->length &&
            (op->kind != RE_SIM_NBD_READ || other->kind != RE_SIM_NBD_READ))
            return true;
    }
    return false;
}

static struct re_sim_nbd_op draw_op(struct re_sim *sim, const struct client *c)
{
    const struct re_sim_workload_settings *load = &c->load;
    struct prng *rng = &sim->rng[RNG_LOAD];
    struct re_sim_nbd_op op = {.kind = RE_SIM_NBD_WRITE};
    uint64_t percent = prng_below(rng, 100);
    uint64_t limit = load->read_percent;
    if (percent < limit)
        op.kind = RE_SIM_NBD_READ;
    else if (percent < (limit += load->flush_percent))
        op.kind = RE_SIM_NBD_FLUSH;
    else if (percent < (limit += load->zero_percent))
        op.kind = RE_SIM_NBD_ZERO;
    else if (percent < (limit += load->trim_percent))
        op.kind = RE_SIM_NBD_TRIM;
    op.fua = op.kind != RE_SIM_NBD_READ && op.kind != RE_SIM_NBD_FLUSH && prng_below(rng, 100) < load->fua_percent;
    uint64_t align = load->align_bytes;
    uint64_t low = u64_max(load->min_bytes / align, 1), high = u64_max(load->max_bytes / align, low);
    while (high > low && prng_below(rng, 2))    /* each halving is half as likely as the one before */
        high = u64_max(high / 2, low);
    uint64_t units = low + prng_below(rng, high - low + 1);
    uint64_t span = load->span_length / align;
    if (prng_below(rng, 100) < load->hot_percent)
        span = u64_max(span / 16, 1);
    units = u64_min(units, span);
    op.offset = load->span_offset + prng_below(rng, span - units + 1) * align;
    op.length = units * align;
    return op;
}

void client_next(struct re_sim *sim, uint32_t id)
{
    struct client *c = client_get(sim, (int)id);
    c->scheduled = false;
    if (!c->open || c->closing || !c->loading || !c->load_left || c->pending_count >= c->load.queue_depth)
        return;
    struct re_sim_nbd_op op = draw_op(sim, c);
    bool busy = c->load.no_overlap && op.kind != RE_SIM_NBD_FLUSH && overlaps_pending(sim, c, &op);
    for (int i = 0; busy && i < REDRAWS_MAX; i++) {
        op = draw_op(sim, c);
        busy = op.kind != RE_SIM_NBD_FLUSH && overlaps_pending(sim, c, &op);
    }
    if (busy)
        return;     /* again when something has ended */
    c->load_left -= c->load_left != UINT64_MAX;
    CHECK(re_sim_nbd_submit(sim, c->id, &op) >= 0);
    plan_next(sim, c);
}

void re_sim_client_stats(const re_sim *sim, int client, struct re_sim_client_stats *stats)
{
    const struct client *c = client_get(sim, client);
    *stats = c->stats;
    stats->in_flight = c->pending_count;
    stats->open = c->open;
    stats->oldest_pending_ns = SIM_NEVER;
    for (uint32_t i = 0; i < c->pending_count; i++)
        stats->oldest_pending_ns = u64_min(stats->oldest_pending_ns, sim->ops[c->pending[i]].info.invoked_ns);
}
