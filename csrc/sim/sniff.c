/* SPDX-License-Identifier: Apache-2.0 */
/* Which packets go over a connection, and in which state of the node; counted, never changed. */
#include "sim/internal.h"

enum { DATA_HEAD_BYTES = 24 };      /* sector, block id, sequence number, flags: no digest covers them */

static bool header_parse(const uint8_t *h, uint32_t have, unsigned *command, uint64_t *body, uint32_t *length)
{
    if (be32_get(h) == 0x8620ec20u) {
        *length = 16;
        *command = have >= 8 ? be16_get(h + 6) : 0;
        *body = have >= 12 ? be32_get(h + 8) : 0;
        return true;
    }
    *length = 8;
    if (be32_get(h) == 0x83740267u) {
        *command = be16_get(h + 4);
        *body = be16_get(h + 6);
        return true;
    }
    *command = be16_get(h + 2);
    *body = be32_get(h + 4);
    return be16_get(h) == 0x835a;
}

static bool carries_payload(unsigned command)
{
    return command <= 2;    /* P_DATA, P_DATA_REPLY, P_RS_DATA_REPLY */
}

/* `data` goes through; returns the packets that are complete with their header now, by `found`.  The last bytes of
 * payload in it are [*payload, *payload + result). */
size_t sniff(struct sniffer *s, const uint8_t *data, size_t length, size_t *payload,
             void (*found)(void *ctx, unsigned command, uint64_t body), void *ctx)
{
    size_t at = 0, payload_length = 0;
    while (at < length && !s->dead) {
        if (s->body) {
            uint64_t part = u64_min(s->body, length - at);
            if (carries_payload(s->command) && s->done + part > DATA_HEAD_BYTES) {
                uint64_t skip = s->done < DATA_HEAD_BYTES ? DATA_HEAD_BYTES - s->done : 0;
                *payload = at + skip;
                payload_length = part - skip;
            }
            s->body -= part;
            s->done += part;
            at += part;
            continue;
        }
        s->head[s->have++] = data[at++];
        if (s->have < 8)
            continue;
        uint64_t body;
        uint32_t bytes;
        if (!header_parse(s->head, s->have, &s->command, &body, &bytes)) {
            s->dead = true;
            break;
        }
        if (s->have < bytes)
            continue;
        s->have = 0;
        s->body = body;
        s->done = 0;
        found(ctx, s->command, body);
    }
    return payload_length;
}

/* ---- counting ---- */

/* P_FAREWELL, of our own nodes, takes the last place of DRBD's small numbers. */
static uint32_t *packet_slot(uint32_t (*table)[RE_SIM_REACH_STATES], unsigned command, unsigned state)
{
    if (command == 0x7f01)
        command = 63;
    if (command < 64)
        return &table[command][state];
    return command >= 0xffc0 && command <= 0xffff ? &table[command - 0xffc0 + 64][state] : NULL;
}

static void count(struct re_sim *sim, uint32_t (*table)[RE_SIM_REACH_STATES], int node, unsigned command)
{
    uint32_t *slot = packet_slot(table, command, sim->nodes[node].reach_state);
    if (slot)
        (*slot)++;
}

static void packet_sent(void *ctx, unsigned command, uint64_t body)
{
    const struct socket *s = ctx;
    struct re_sim *sim = s->sim;
    sim->counters.packets++;
    if (command < 64)
        sim->nodes[s->node].packets[command]++;
    else if (command >= 0xffc0)
        sim->nodes[s->node].packets[command - 0xffc0 + 64]++;
    count(sim, sim->reach.sent, s->node, command);
    TRACE(sim, "node %d: socket %d sends packet %#x, %llu bytes", s->node, s->id, command, (unsigned long long)body);
}

static void packet_received(void *ctx, unsigned command, uint64_t body)
{
    const struct socket *s = ctx;
    (void)body;
    count(s->sim, s->sim->reach.received, s->node, command);
}

size_t sniff_sent(struct socket *s, const uint8_t *data, size_t length, size_t *payload)
{
    bool was_dead = s->sends.dead;
    size_t found = sniff(&s->sends, data, length, payload, packet_sent, s);
    if (s->sends.dead && !was_dead)
        s->sim->counters.bad_packets++;
    return found;
}

void sniff_received(struct socket *s, const uint8_t *data, size_t length)
{
    size_t payload;
    sniff(&s->receives, data, length, &payload, packet_received, s);
}

/* ---- for the control plane ---- */

uint64_t re_sim_packets_sent(const re_sim *sim, int index, unsigned command)
{
    if (command < 64)
        return sim_node(sim, index)->packets[command];
    return command >= 0xffc0 && command <= 0xffff ? sim_node(sim, index)->packets[command - 0xffc0 + 64] : 0;
}

void re_sim_reach_state(re_sim *sim, int node, unsigned state)
{
    CHECK(state < RE_SIM_REACH_STATES);
    sim_node(sim, node)->reach_state = (uint8_t)state;
}

void reach_request(struct re_sim *sim, int node, uint32_t kind, uint32_t event)
{
    sim->reach.requests[kind][event][sim->nodes[node].reach_state]++;
}

void reach_disk(struct re_sim *sim, int node, uint32_t kind, bool failed)
{
    sim->reach.disk[kind][failed][sim->nodes[node].reach_state]++;
}

void re_sim_reach_add(const re_sim *sim, struct re_sim_reach *sum)
{
    const uint32_t *from = (const uint32_t *)&sim->reach;
    uint32_t *to = (uint32_t *)sum;
    for (size_t i = 0; i < sizeof(*sum) / sizeof(uint32_t); i++)
        to[i] += from[i];
}
