/* SPDX-License-Identifier: Apache-2.0 */
/* Faults that more than one part of the world has to do with: crash points, mishaps, devices that change their size.
 *
 * Invariant: from its crash point on a node changes nothing outside of itself until it has died.
 */
#include "meta/bitmap.h"
#include "sim/internal.h"

/* ---- crash points ---- */

void re_sim_crash_point(re_sim *sim, int index, uint64_t steps)
{
    struct node *node = sim_node(sim, index);
    CHECK(!node->doomed);
    node->crash_steps = steps;
}

bool re_sim_is_doomed(const re_sim *sim, int node)
{
    return sim_node(sim, node)->doomed;
}

void node_disk_step(struct node *node)
{
    if (node->crash_steps == 0 || --node->crash_steps != 0)
        return;
    node->doomed = true;
    node->frozen = true;
    TRACE(node->sim, "node %d: crash point", node->index);
    sim_notice(node->sim, &(struct re_sim_notice){.kind = RE_SIM_NOTICE_CRASH_POINT,
                                                  .node = node->index,
                                                  .peer_node = -1,
                                                  .id = -1,
                                                  .fd = -1});
}

/* ---- writes that go astray ---- */

void re_sim_disk_mishap(re_sim *sim, int disk, int kind, uint32_t count, uint64_t limit)
{
    struct disk *d = disk_get(sim, disk);
    CHECK((kind == RE_SIM_MISHAP_LOST || kind == RE_SIM_MISHAP_MISDIRECTED) && limit <= d->size);
    d->mishap = kind;
    d->mishap_count = count;
    d->mishap_limit = limit;
}

bool disk_mishap(struct re_sim *sim, struct disk *d, uint64_t *offset, uint64_t length)
{
    if (d->mishap_count == 0 || *offset + length > d->mishap_limit)
        return true;
    d->mishap_count--;
    if (d->mishap == RE_SIM_MISHAP_LOST)
        return false;
    *offset = prng_below(&sim->rng[RNG_DISK], (d->mishap_limit - length) / SECTOR + 1) * SECTOR;
    return true;
}

/* ---- sizes ---- */

static uint8_t *resized(uint8_t *old, uint64_t old_bytes, uint64_t new_bytes)
{
    uint8_t *made = calloc(1, new_bytes);
    CHECK(made);
    memcpy(made, old, old_bytes < new_bytes ? old_bytes : new_bytes);
    free(old);
    return made;
}

void re_sim_disk_resize(re_sim *sim, int disk, uint64_t size_bytes)
{
    struct disk *d = disk_get(sim, disk);
    CHECK(size_bytes && size_bytes % BLOCK == 0 && list_empty(&d->in_flight));
    disk_cache_flush(d, UINT64_MAX);
    disk_cache_clear(&d->cache);
    d->cache_count = 0;
    d->recording = false;
    for (int layer = 0; layer < 2; layer++)
        d->layers[layer] = resized(d->layers[layer], d->size, size_bytes);
    d->used = resized(d->used, d->size / BLOCK / 8 + 1, size_bytes / BLOCK / 8 + 1);
    d->size = size_bytes;
}

void re_sim_history_grow(re_sim *sim, int history, uint64_t size_bytes)
{
    struct history *h = history_get(sim, history);
    CHECK(size_bytes % SECTOR == 0 && size_bytes >= h->size);
    uint64_t old = h->size / SECTOR, count = size_bytes / SECTOR;
    h->cells = realloc(h->cells, count * sizeof(*h->cells));
    CHECK(h->cells);
    memset(h->cells + old, 0, (count - old) * sizeof(*h->cells));
    if (h->base_ops) {
        h->base_ops = realloc(h->base_ops, count * sizeof(*h->base_ops));
        CHECK(h->base_ops);
        memset(h->base_ops + old, 0, (count - old) * sizeof(*h->base_ops));
    }
    h->size = size_bytes;
}

/* ---- looking ---- */

int re_sim_net_streams(const re_sim *sim, int index, int *fds, int max)
{
    int count = 0;
    for (size_t i = 0; i < sim->socket_count; i++) {
        const struct socket *s = sim->sockets[i];
        if (!s->open || s->nbd || s->node != index || s->stream < 0)
            continue;
        if (count < max)
            fds[count] = (int)i;
        count++;
    }
    return count;
}

bool re_sim_volume_bitmap(const re_sim *sim, int index, int volume, uint8_t *bits, size_t bytes)
{
    const struct node *node = sim_node(sim, index);
    const struct bitmap *bitmap = node->core ? core_volume_bitmap(node->core, volume) : NULL;
    if (!bitmap)
        return false;
    memset(bits, 0, bytes);
    uint64_t words = u64_min(bitmap->words, bytes / 8);
    bitmap_read_words(bitmap, 0, bits, words);
    return true;
}
