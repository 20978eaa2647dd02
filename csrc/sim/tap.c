/* SPDX-License-Identifier: Apache-2.0 */
/* The tap: every whole packet that a node's engine sends to another node, in the order of sending, for a checker; and
 * the sockets of a scripted peer.
 *
 * Of a body with payload only what stands in front of the payload is kept.
 */
#include "sim/internal.h"

enum { TAP_BYTES_MAX = 64 << 20, TAP_SUB_MAX = 64 };

static uint32_t kept_bytes(const struct re_sim_packet *p)
{
    uint32_t most = p->command <= 2 ? TAP_SUB_MAX : sizeof(((struct tap_state *)NULL)->body);
    return u32_min(p->length, most);
}

void re_sim_tap(re_sim *sim, bool on)
{
    sim->tap_on = on;
}

size_t re_sim_tap_waiting(const re_sim *sim)
{
    return sim->tap_used;
}

size_t re_sim_tap_take(re_sim *sim, uint8_t *out, size_t max)
{
    size_t bytes = sim->tap_used;
    if (bytes > max)
        return 0;
    if (bytes)
        memcpy(out, sim->tap, bytes);
    sim->tap_used = 0;
    return bytes;
}

void tap_free(struct re_sim *sim)
{
    free(sim->tap);
}

static void append(struct re_sim *sim, const void *bytes, size_t count)
{
    if (sim->tap_used + count > sim->tap_capacity) {
        sim->tap_capacity = (sim->tap_used + count) * 2;
        sim->tap = realloc(sim->tap, sim->tap_capacity);
        CHECK(sim->tap && sim->tap_used < TAP_BYTES_MAX);
    }
    memcpy(sim->tap + sim->tap_used, bytes, count);
    sim->tap_used += count;
}

static void packet_end(struct socket *s)
{
    struct tap_state *t = s->tap;
    t->packet.at_ns = s->sim->now;
    append(s->sim, &t->packet, sizeof(t->packet));
    append(s->sim, t->body, t->packet.kept);
    t->have = 0;
}

/* False while the header is not complete. */
static bool header_end(struct socket *s)
{
    struct tap_state *t = s->tap;
    const uint8_t *h = t->head;
    uint32_t magic = be32_get(h);
    struct re_sim_packet *p = &t->packet;
    *p = (struct re_sim_packet){.node = s->node, .socket = s->id, .peer_socket = s->peer};
    if (magic == 0x8620ec20u) {
        if (t->have < 16)
            return false;
        p->format = 100;
        p->volume = be16_get(h + 4);
        p->command = be16_get(h + 6);
        p->length = be32_get(h + 8);
        p->pad = be32_get(h + 12);
    } else if (magic == 0x83740267u) {
        p->format = 80;
        p->command = be16_get(h + 4);
        p->length = be16_get(h + 6);
    } else if (be16_get(h) == 0x835a) {
        p->format = 95;
        p->command = be16_get(h + 2);
        p->length = be32_get(h + 4);
    }
    t->left = p->length;
    return true;
}

void tap_bytes(struct socket *s, const uint8_t *data, size_t length)
{
    if (!s->tap)
        s->tap = calloc(1, sizeof(*s->tap));
    struct tap_state *t = s->tap;
    CHECK(t);
    for (size_t at = 0; at < length;) {
        if (t->left) {
            uint32_t part = (uint32_t)u64_min(t->left, length - at);
            uint32_t keep = u32_min(part, kept_bytes(&t->packet) - t->packet.kept);
            memcpy(t->body + t->packet.kept, data + at, keep);
            t->packet.kept += keep;
            t->left -= part;
            at += part;
            if (!t->left)
                packet_end(s);
            continue;
        }
        t->head[t->have++] = data[at++];
        if (t->have >= 8 && header_end(s) && !t->left)
            packet_end(s);
        else if (t->left)
            t->have = 0;
    }
}

/* ---- a scripted peer ---- */

int64_t re_sim_socket_write(re_sim *sim, int fd, const uint8_t *data, size_t length)
{
    struct socket *s = socket_get(sim, fd);
    CHECK(s->open && s->client < 0 && s->stream < 0);
    struct iovec iov = {(void *)(uintptr_t)data, length};
    ssize_t sent = socket_send(sim, s, &iov, 1);
    return sent == STREAM_IO_RESET ? -ECONNRESET : sent == STREAM_IO_AGAIN ? -EAGAIN : sent;
}

int64_t re_sim_socket_read(re_sim *sim, int fd, uint8_t *data, size_t max)
{
    struct socket *s = socket_get(sim, fd);
    CHECK(s->open && s->client < 0 && s->stream < 0);
    struct iovec iov = {data, max};
    ssize_t got = socket_receive(sim, s, &iov, 1);
    return got == STREAM_IO_RESET ? -ECONNRESET : got == STREAM_IO_AGAIN ? -EAGAIN : got;
}
