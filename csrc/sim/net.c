/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets: pairs of byte pipes with latency, limited buffers, partial moves and faults; listeners and dials.
 *
 * Invariants: a pipe belongs to the socket that receives; its segments arrive in order; `total` never exceeds `limit`.
 * What is sent to a closed socket is answered with a reset when it arrives, as long as the machine has power.
 */
#include "sim/internal.h"

enum { RETRANSMIT_MS_MAX = 200, SYN_RETRY_MS = 500, BUFFER_MAX = 4 << 20 };

void net_init(struct re_sim *sim)
{
    struct re_sim_net_settings s = {.latency_min_ns = 20 * SIM_US,
                                    .latency_max_ns = 200 * SIM_US,
                                    .dial_timeout_ns = 10 * SIM_SECOND,
                                    .buffer_bytes = 128 << 10,
                                    .partial_ppm = 20000,
                                    .tiny_ppm = 500};
    for (int a = 0; a < NODES; a++)
        for (int b = 0; b < NODES; b++)
            sim->net[a][b] = s;
    s.latency_min_ns = 2 * SIM_US;
    s.latency_max_ns = 30 * SIM_US;
    sim->net_nbd = s;
}

static void pipe_free(struct socket *s)
{
    free(s->ring);
    s->ring = NULL;
    s->head = s->arrived = s->total = 0;
}

void net_free(struct re_sim *sim)
{
    for (size_t i = 0; i < sim->socket_count; i++) {
        pipe_free(sim->sockets[i]);
        free(sim->sockets[i]->segments);
        free(sim->sockets[i]->tap);
        free(sim->sockets[i]);
    }
    free(sim->sockets);
    tap_free(sim);
    free(sim->listeners);
    free(sim->dials);
}

struct socket *socket_get(const struct re_sim *sim, int id)
{
    CHECK(id >= 0 && (size_t)id < sim->socket_count);
    return sim->sockets[id];
}

static const struct re_sim_net_settings *settings_of(const struct re_sim *sim, const struct socket *from)
{
    return from->nbd ? &sim->net_nbd : &sim->net[from->node][socket_get(sim, from->peer)->node];
}

static int path_of(const struct re_sim *sim, const struct socket *from)
{
    return from->nbd ? RE_SIM_PATH_OPEN : sim->path[from->node][socket_get(sim, from->peer)->node];
}

static struct socket *socket_new(struct re_sim *sim, int node, bool nbd, uint32_t limit)
{
    sim->sockets = sim_grow(sim->sockets, sim->socket_count, &sim->socket_capacity, sizeof(*sim->sockets));
    struct socket *s = calloc(1, sizeof(*s));
    CHECK(s);
    s->id = (int)sim->socket_count;
    s->sim = sim;
    s->node = node;
    s->nbd = nbd;
    s->client = s->stream = -1;
    s->open = true;
    s->limit = limit < 64 ? 64 : limit > BUFFER_MAX ? BUFFER_MAX : limit;
    s->capacity = 64;
    while (s->capacity < s->limit)
        s->capacity *= 2;
    sim->sockets[sim->socket_count++] = s;
    return s;
}

void socket_pair(struct re_sim *sim, int node_a, int node_b, bool nbd, int fds[2])
{
    const struct re_sim_net_settings *ab = nbd ? &sim->net_nbd : &sim->net[node_a][node_b];
    const struct re_sim_net_settings *ba = nbd ? &sim->net_nbd : &sim->net[node_b][node_a];
    struct socket *a = socket_new(sim, node_a, nbd, ba->buffer_bytes);
    struct socket *b = socket_new(sim, node_b, nbd, ab->buffer_bytes);
    a->peer = b->id;
    b->peer = a->id;
    fds[0] = a->id;
    fds[1] = b->id;
}

bool socket_readable(const struct socket *s)
{
    return s->arrived || s->eof || s->reset;
}

bool socket_writable(const struct re_sim *sim, const struct socket *s)
{
    const struct socket *peer = socket_get(sim, s->peer);
    return s->reset || peer->total < peer->limit;
}

/* Whoever owns the socket looks at it. */
static void socket_changed(struct re_sim *sim, struct socket *s)
{
    if (!s->open)
        return;
    if (s->client >= 0)
        client_socket_event(sim, s->client);
    else if (s->stream >= 0)
        node_kick(&sim->nodes[s->node]);
}

/* ---- sending ---- */

static void segment_push(struct re_sim *sim, struct socket *from, struct socket *to, uint32_t kind, uint32_t length)
{
    const struct re_sim_net_settings *net = settings_of(sim, from);
    if (to->segment_count == to->segment_capacity) {
        uint32_t capacity = to->segment_capacity ? to->segment_capacity * 2 : 16;
        struct segment *grown = calloc(capacity, sizeof(*grown));
        CHECK(grown);
        for (uint32_t i = 0; i < to->segment_count; i++)
            grown[i] = to->segments[(to->segment_head + i) & (to->segment_capacity - 1)];
        free(to->segments);
        to->segments = grown;
        to->segment_head = 0;
        to->segment_capacity = capacity;
    }
    uint64_t leaves = sim->now;
    if (net->bytes_per_second) {
        if (to->busy_until > leaves)
            leaves = to->busy_until;
        leaves += length * SIM_SECOND / net->bytes_per_second;
        to->busy_until = leaves;
    }
    uint64_t at = leaves + sim_between(sim, RNG_NET, net->latency_min_ns, net->latency_max_ns);
    if (at < to->last_at)
        at = to->last_at;
    to->last_at = at;
    to->segments[(to->segment_head + to->segment_count++) & (to->segment_capacity - 1)] =
        (struct segment){.at = at, .length = length, .kind = kind};
    sim->counters.segments++;
    sim_push(sim, at, EV_SEGMENT, (uint32_t)to->id, 0);
}

/* At most how many of `bytes` move this time. */
static uint32_t move_limit(struct re_sim *sim, const struct re_sim_net_settings *net, uint32_t bytes)
{
    if (bytes > 1 && sim_chance(sim, RNG_NET, net->tiny_ppm)) {
        sim->counters.tiny_moves++;
        return 1;
    }
    if (bytes > 1 && sim_chance(sim, RNG_NET, net->partial_ppm)) {
        sim->counters.partial_moves++;
        return 1 + (uint32_t)prng_below(&sim->rng[RNG_NET], bytes - 1);
    }
    return bytes;
}

static void ring_put(struct socket *to, const uint8_t *data, uint32_t length)
{
    uint32_t at = (to->head + to->total) & (to->capacity - 1);
    uint32_t first = u32_min(length, to->capacity - at);
    memcpy(to->ring + at, data, first);
    memcpy(to->ring, data + first, length - first);
    to->total += length;
}

static void flip_bit(struct re_sim *sim, struct socket *from, struct socket *to, uint32_t start, uint32_t length)
{
    uint32_t at = start + (uint32_t)prng_below(&sim->rng[RNG_NET], length);
    to->ring[at & (to->capacity - 1)] ^= (uint8_t)(1u << prng_below(&sim->rng[RNG_NET], 8));
    from->flip_next = false;
    sim->counters.bit_flips++;
    TRACE(sim, "socket %d: a bit flips", from->id);
}

ssize_t socket_send(struct re_sim *sim, struct socket *s, const struct iovec *iov, int count)
{
    struct socket *to = socket_get(sim, s->peer);
    const struct re_sim_net_settings *net = settings_of(sim, s);
    size_t wanted = 0;
    if (s->reset)
        return STREAM_IO_RESET;
    for (int i = 0; i < count; i++)
        wanted += iov[i].iov_len;
    uint32_t room = to->limit - to->total;
    if (room == 0 || wanted == 0)
        return STREAM_IO_AGAIN;
    uint32_t bytes = move_limit(sim, net, wanted < room ? (uint32_t)wanted : room);
    if (to->open && !to->ring) {
        to->ring = malloc(to->capacity);
        CHECK(to->ring);
    }
    uint32_t start = to->head + to->total;
    uint32_t left = bytes, payload = 0, payload_length = 0;
    uint64_t sum = 0;
    for (int i = 0; i < count && left; i++) {
        uint32_t part = iov[i].iov_len < left ? (uint32_t)iov[i].iov_len : left;
        const uint8_t *data = iov[i].iov_base;
        if (!s->nbd) {
            size_t from = 0;
            if (sim->tap_on)
                tap_bytes(s, data, part);
            size_t found = sniff_sent(s, data, part, &from);
            if (found) {
                payload = bytes - left + (uint32_t)from;
                payload_length = (uint32_t)found;
            }
        }
        /* Enough of the bytes to notice differences. */
        for (uint32_t at = 0; at + 8 <= part; at += 64)
            sum = (sum ^ le64_get(data + at)) * UINT64_C(0x100000001b3);
        if (to->ring)
            ring_put(to, data, part);
        else
            to->total += part;
        left -= part;
    }
    sim_hash(sim, sum ^ bytes ^ (uint64_t)s->id << 40);
    if (to->ring && (s->flip_next || sim_chance(sim, RNG_NET, net->flip_ppm)))
        flip_bit(sim, s, to, start, bytes);
    else if (to->ring && payload_length && sim_chance(sim, RNG_NET, net->flip_payload_ppm))
        flip_bit(sim, s, to, start + payload, payload_length);
    for (left = bytes; left;) {
        bool split = left > 1 && prng_below(&sim->rng[RNG_NET], 8) == 0;
        uint32_t part = split ? 1 + (uint32_t)prng_below(&sim->rng[RNG_NET], left - 1) : left;
        segment_push(sim, s, to, SEGMENT_DATA, part);
        left -= part;
    }
    return (ssize_t)bytes;
}

/* ---- receiving ---- */

ssize_t socket_receive(struct re_sim *sim, struct socket *s, const struct iovec *iov, int count)
{
    struct socket *peer = socket_get(sim, s->peer);
    uint32_t wanted = 0;
    if (!s->arrived)
        return s->reset ? STREAM_IO_RESET : s->eof ? STREAM_IO_EOF : STREAM_IO_AGAIN;
    for (int i = 0; i < count && wanted < s->arrived; i++)
        wanted += iov[i].iov_len > s->arrived ? s->arrived : (uint32_t)iov[i].iov_len;
    wanted = u32_min(wanted, s->arrived);
    if (!wanted)
        return STREAM_IO_AGAIN;
    uint32_t bytes = move_limit(sim, settings_of(sim, peer), wanted);
    bool was_full = s->total >= s->limit;
    uint32_t left = bytes;
    for (int i = 0; i < count && left; i++) {
        uint32_t part = iov[i].iov_len < left ? (uint32_t)iov[i].iov_len : left;
        uint32_t at = s->head & (s->capacity - 1);
        uint32_t first = u32_min(part, s->capacity - at);
        memcpy(iov[i].iov_base, s->ring + at, first);
        memcpy((uint8_t *)iov[i].iov_base + first, s->ring, part - first);
        if (!s->nbd)
            sniff_received(s, iov[i].iov_base, part);
        s->head += part;
        s->arrived -= part;
        s->total -= part;
        left -= part;
    }
    sim_hash(sim, bytes ^ (uint64_t)s->id << 32);
    if (was_full)
        socket_changed(sim, peer);
    return (ssize_t)bytes;
}

static void take_reset(struct re_sim *sim, struct socket *s)
{
    if (!s->open || s->reset)
        return;
    s->reset = true;
    sim->counters.resets++;
    TRACE(sim, "socket %d: reset", s->id);
    if (prng_below(&sim->rng[RNG_NET], 2)) {    /* what has arrived and was not read may be lost */
        s->total -= s->arrived;
        s->head += s->arrived;
        s->arrived = 0;
    }
    socket_changed(sim, s);
}

static void segment_arrives(struct re_sim *sim, struct socket *to, const struct segment *segment)
{
    struct socket *from = socket_get(sim, to->peer);
    bool rejected = path_of(sim, from) == RE_SIM_PATH_REJECT;
    if (segment->kind == SEGMENT_DATA && (rejected || !to->open || to->reset || to->deaf)) {
        to->deaf = true;    /* with a gap nothing later may be read either */
        to->total -= segment->length;
        if (from->open && !from->reset && (rejected || to->nbd || sim->nodes[to->node].powered))
            segment_push(sim, to, from, SEGMENT_RESET, 0);
        return;
    }
    if (!to->open)
        return;
    if (segment->kind == SEGMENT_RESET)
        take_reset(sim, to);
    else {
        if (segment->kind == SEGMENT_EOF)
            to->eof = true;
        else
            to->arrived += segment->length;
        socket_changed(sim, to);
    }
}

void socket_arrival(struct re_sim *sim, uint32_t id)
{
    struct socket *to = sim->sockets[id];
    struct socket *from = socket_get(sim, to->peer);
    while (to->segment_count && !to->stalled) {
        struct segment segment = to->segments[to->segment_head];
        if (segment.at > sim->now)
            return;
        if (from->held || path_of(sim, from) == RE_SIM_PATH_DROP) {
            to->stalled = true;
            return;
        }
        to->segment_head = (to->segment_head + 1) & (to->segment_capacity - 1);
        to->segment_count--;
        segment_arrives(sim, to, &segment);
    }
}

/* The path to this socket may be open again: what waits is sent once more. */
static void resume(struct re_sim *sim, struct socket *to)
{
    struct socket *from = socket_get(sim, to->peer);
    if (!to->stalled || from->held || path_of(sim, from) == RE_SIM_PATH_DROP)
        return;
    to->stalled = false;
    uint64_t at = sim->now + sim_between(sim, RNG_NET, 1, RETRANSMIT_MS_MAX * SIM_MS);
    if (to->last_at < at)
        to->last_at = at;
    for (uint32_t i = 0; i < to->segment_count; i++) {
        struct segment *segment = &to->segments[(to->segment_head + i) & (to->segment_capacity - 1)];
        if (segment->at < at)
            segment->at = at;
    }
    sim_push(sim, at, EV_SEGMENT, (uint32_t)to->id, 0);
}

/* Segments on the way from a machine that lost power: the last ones never left it. */
static void lose_segments(struct re_sim *sim, struct socket *to)
{
    uint32_t keep = (uint32_t)prng_below(&sim->rng[RNG_NET], to->segment_count + 1u);
    while (to->segment_count > keep) {
        to->segment_count--;
        to->total -= to->segments[(to->segment_head + to->segment_count) & (to->segment_capacity - 1)].length;
    }
}

void socket_close(struct re_sim *sim, struct socket *s, bool silently)
{
    if (!s->open)
        return;
    struct socket *peer = socket_get(sim, s->peer);
    bool unread = s->arrived != 0;
    s->open = false;
    s->client = s->stream = -1;
    TRACE(sim, "socket %d: closed%s", s->id, silently ? " silently" : unread ? " with unread bytes" : "");
    if (silently)
        lose_segments(sim, peer);
    else if (!s->reset && peer->open)
        segment_push(sim, s, peer, unread ? SEGMENT_RESET : SEGMENT_EOF, 0);
    uint32_t coming = s->total - s->arrived;
    pipe_free(s);
    s->total = coming;
    s->eof = false;
}

/* ---- listeners and dials ---- */

int re_sim_listen(re_sim *sim, int node, int port)
{
    sim_node(sim, node);
    for (size_t i = 0; i < sim->listener_count; i++)
        if (sim->listeners[i].open && sim->listeners[i].node == node && sim->listeners[i].port == port)
            return -EADDRINUSE;
    sim->listeners = realloc(sim->listeners, (sim->listener_count + 1) * sizeof(*sim->listeners));
    CHECK(sim->listeners);
    sim->listeners[sim->listener_count] = (struct listener){.node = node, .port = port, .open = true};
    return (int)sim->listener_count++;
}

void re_sim_unlisten(re_sim *sim, int listener)
{
    CHECK(listener >= 0 && (size_t)listener < sim->listener_count);
    sim->listeners[listener].open = false;
}

static uint64_t one_way(struct re_sim *sim, int from, int to)
{
    return sim->now + sim_between(sim, RNG_NET, sim->net[from][to].latency_min_ns, sim->net[from][to].latency_max_ns);
}

int re_sim_dial(re_sim *sim, int node, int peer_node, int port)
{
    CHECK(sim_node(sim, node)->powered && sim_node(sim, peer_node) && node != peer_node);
    sim->dials = realloc(sim->dials, (sim->dial_count + 1) * sizeof(*sim->dials));
    CHECK(sim->dials);
    uint32_t id = (uint32_t)sim->dial_count++;
    sim->dials[id] = (struct dial){.node = node, .peer = peer_node, .port = port, .fd = -1, .pending = true};
    sim_push(sim, one_way(sim, node, peer_node), EV_SYN, id, 0);
    sim_push(sim, sim->now + sim->net[node][peer_node].dial_timeout_ns, EV_DIAL_TIMEOUT, id, 0);
    return (int)id;
}

void re_sim_dial_cancel(re_sim *sim, int id)
{
    CHECK(id >= 0 && (size_t)id < sim->dial_count);
    struct dial *dial = &sim->dials[id];
    bool told = !dial->pending;
    dial->pending = false;
    for (size_t i = sim->notice_count; i-- > 0;)
        if (sim->notices[i].kind == RE_SIM_NOTICE_DIALED && sim->notices[i].id == id) {
            sim->notices[i].kind = RE_SIM_NOTICE_NONE;
            told = false;
        }
    size_t kept = 0;
    for (size_t i = 0; i < sim->notice_count; i++)
        if (sim->notices[i].kind != RE_SIM_NOTICE_NONE)
            sim->notices[kept++] = sim->notices[i];
    sim->notice_count = kept;
    if (!told && dial->fd >= 0)
        socket_close(sim, socket_get(sim, dial->fd), false);
}

static void dial_notice(struct re_sim *sim, uint32_t id, int error)
{
    struct dial *dial = &sim->dials[id];
    dial->pending = false;
    if (error)
        sim->counters.dials_failed++;
    TRACE(sim, "node %d: dial %u to node %d ends: %s", dial->node, id, dial->peer,
          error ? strerror(error) : "connected");
    sim_notice(sim, &(struct re_sim_notice){.kind = RE_SIM_NOTICE_DIALED,
                                            .node = dial->node,
                                            .peer_node = dial->peer,
                                            .id = (int32_t)id,
                                            .fd = error ? -1 : dial->fd,
                                            .error = error});
}

void dial_syn(struct re_sim *sim, uint32_t id)
{
    struct dial dial = sim->dials[id];
    int path = sim->path[dial.node][dial.peer];
    if (!dial.pending)
        return;
    if (path == RE_SIM_PATH_DROP || (path == RE_SIM_PATH_OPEN && !sim->nodes[dial.peer].powered)) {
        sim_push(sim, sim->now + SYN_RETRY_MS * SIM_MS, EV_SYN, id, 0);
        return;
    }
    for (size_t i = 0; i < sim->listener_count && path == RE_SIM_PATH_OPEN; i++) {
        const struct listener *listener = &sim->listeners[i];
        if (!listener->open || listener->node != dial.peer || listener->port != dial.port)
            continue;
        int fds[2];
        socket_pair(sim, dial.node, dial.peer, false, fds);
        sim->dials[id].fd = fds[0];
        TRACE(sim, "node %d: connection from node %d: sockets %d, here %d", dial.peer, dial.node, fds[0], fds[1]);
        sim_notice(sim, &(struct re_sim_notice){.kind = RE_SIM_NOTICE_ACCEPTED,
                                                .node = dial.peer,
                                                .peer_node = dial.node,
                                                .id = (int32_t)i,
                                                .fd = fds[1]});
        sim_push(sim, one_way(sim, dial.peer, dial.node), EV_DIALED, id, 0);
        return;
    }
    sim_push(sim, one_way(sim, dial.peer, dial.node), EV_DIALED, id, ECONNREFUSED);
}

void dial_finished(struct re_sim *sim, uint32_t id, int error)
{
    const struct dial *dial = &sim->dials[id];
    if (!dial->pending)
        return;
    if (sim->path[dial->peer][dial->node] == RE_SIM_PATH_DROP) {
        sim_push(sim, sim->now + SYN_RETRY_MS * SIM_MS, EV_DIALED, id, (uint64_t)error);
        return;
    }
    dial_notice(sim, id, error);
}

void dial_timeout(struct re_sim *sim, uint32_t id)
{
    const struct dial *dial = &sim->dials[id];
    if (!dial->pending)
        return;
    if (dial->fd >= 0)      /* the other side has accepted, which was never heard here */
        socket_close(sim, socket_get(sim, dial->fd), true);
    dial_notice(sim, id, ETIMEDOUT);
}

void net_node_down(struct re_sim *sim, int node, bool silently)
{
    for (size_t i = 0; i < sim->dial_count; i++)
        if (sim->dials[i].node == node)
            sim->dials[i].pending = false;
    for (size_t i = 0; i < sim->listener_count; i++)
        if (sim->listeners[i].node == node)
            sim->listeners[i].open = false;
    for (size_t i = 0; i < sim->socket_count; i++) {
        struct socket *s = sim->sockets[i];
        if (s->open && s->node == node && s->client < 0)
            socket_close(sim, s, silently && !s->nbd);
    }
}

/* ---- for the control plane ---- */

void re_sim_net_settings_get(const re_sim *sim, int from, int to, struct re_sim_net_settings *settings)
{
    *settings = sim->net[from < 0 ? 0 : from][to < 0 ? (from == 1 ? 0 : 1) : to];
}

/* The line has become faster: what waits in front of it leaves at the new rate. */
static void hurry(struct re_sim *sim, struct socket *to, const struct re_sim_net_settings *net)
{
    uint64_t leaves = sim->now;
    for (uint32_t i = 0; i < to->segment_count; i++) {
        struct segment *segment = &to->segments[(to->segment_head + i) & (to->segment_capacity - 1)];
        if (net->bytes_per_second)
            leaves += segment->length * SIM_SECOND / net->bytes_per_second;
        if (segment->at > leaves + net->latency_max_ns) {
            segment->at = leaves + net->latency_max_ns;
            sim_push(sim, segment->at, EV_SEGMENT, (uint32_t)to->id, 0);
        }
        to->last_at = segment->at;
    }
    if (to->busy_until > leaves)
        to->busy_until = leaves;
}

static void change_line(struct re_sim *sim, int from, int to, const struct re_sim_net_settings *settings)
{
    uint64_t before = sim->net[from][to].bytes_per_second, after = settings->bytes_per_second;
    sim->net[from][to] = *settings;
    for (size_t i = 0; before && (!after || after > before) && i < sim->socket_count; i++) {
        struct socket *s = sim->sockets[i];
        if (!s->nbd && s->node == to && socket_get(sim, s->peer)->node == from)
            hurry(sim, s, settings);
    }
}

void re_sim_net_settings_set(re_sim *sim, int from, int to, const struct re_sim_net_settings *settings)
{
    CHECK(settings->latency_max_ns >= settings->latency_min_ns);
    for (int a = 0; a < NODES; a++)
        for (int b = 0; b < NODES; b++)
            if ((from < 0 || from == a) && (to < 0 || to == b))
                change_line(sim, a, b, settings);
}

void re_sim_net_settings_nbd(re_sim *sim, const struct re_sim_net_settings *settings)
{
    sim->net_nbd = *settings;
}

void re_sim_net_path(re_sim *sim, int from, int to, int path)
{
    sim_node(sim, from);
    sim_node(sim, to);
    CHECK(path >= RE_SIM_PATH_OPEN && path <= RE_SIM_PATH_REJECT);
    TRACE(sim, "path %d -> %d: %s", from, to, path == 0 ? "open" : path == 1 ? "drops" : "rejects");
    sim_hash(sim, 0xa11 + (uint64_t)(from * 64 + to * 8 + path));
    sim->path[from][to] = (uint8_t)path;
    for (size_t i = 0; i < sim->socket_count; i++)
        resume(sim, sim->sockets[i]);
}

void re_sim_socket_reset(re_sim *sim, int fd)
{
    struct socket *s = socket_get(sim, fd);
    take_reset(sim, s);
    take_reset(sim, socket_get(sim, s->peer));
}

void re_sim_net_reset(re_sim *sim, int node_a, int node_b)
{
    for (size_t i = 0; i < sim->socket_count; i++) {
        const struct socket *s = sim->sockets[i];
        if (!s->nbd && s->node == node_a && socket_get(sim, s->peer)->node == node_b)
            re_sim_socket_reset(sim, (int)i);
    }
}

void re_sim_socket_hold(re_sim *sim, int fd, bool hold)
{
    struct socket *s = socket_get(sim, fd);
    s->held = hold;
    resume(sim, socket_get(sim, s->peer));
}

void re_sim_socket_flip(re_sim *sim, int fd)
{
    socket_get(sim, fd)->flip_next = true;
}

bool re_sim_socket_is_open(const re_sim *sim, int fd)
{
    return socket_get(sim, fd)->open;
}

void re_sim_socket_close(re_sim *sim, int fd)
{
    struct socket *s = socket_get(sim, fd);
    CHECK(s->stream < 0 && s->client < 0);
    socket_close(sim, s, false);
}
