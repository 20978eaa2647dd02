/* SPDX-License-Identifier: Apache-2.0 */
/* The control plane's access to disks: reads and writes at once, content, comparison, snapshots.
 *
 * Invariant: what is written here takes the same way through cache and log as the engine's writes, without faults.
 */
#include "sim/internal.h"

/* ---- the control plane's access ---- */

static bool control_ok(const struct disk *d, uint64_t offset, uint64_t length)
{
    return offset % SECTOR == 0 && length % SECTOR == 0 && length && u64_range_inside(offset, length, d->size);
}

uint64_t re_sim_disk_size(const re_sim *sim, int disk)
{
    return disk_get(sim, disk)->size;
}

int re_sim_disk_pread(re_sim *sim, int disk, uint64_t offset, uint8_t *data, uint64_t length)
{
    const struct disk *d = disk_get(sim, disk);
    if (!control_ok(d, offset, length))
        return -EINVAL;
    memcpy(data, d->layers[RE_SIM_CURRENT] + offset, length);
    return 0;
}

int re_sim_disk_pwrite(re_sim *sim, int disk, uint64_t offset, const uint8_t *data, uint64_t length)
{
    struct disk *d = disk_get(sim, disk);
    struct node *node = sim_node(sim, d->node);
    if (!control_ok(d, offset, length))
        return -EINVAL;
    if (node->doomed)
        return -EIO;
    uint8_t *copy = malloc(length);
    CHECK(copy);
    memcpy(copy, data, length);
    d->order++;
    int64_t log = disk_log_submit(sim, d, RE_SIM_OP_WRITE, RE_SIM_OP_CONTROL, offset, length, data);
    d->order++;
    disk_write_take(d, offset, length, copy, false);
    disk_log_complete(sim, d, log, 0);
    node_disk_step(node);
    return 0;
}

int re_sim_disk_flush(re_sim *sim, int disk)
{
    struct disk *d = disk_get(sim, disk);
    struct node *node = sim_node(sim, d->node);
    if (node->doomed)
        return -EIO;
    uint64_t order = ++d->order;
    int64_t log = disk_log_submit(sim, d, RE_SIM_OP_FLUSH, RE_SIM_OP_CONTROL, 0, 0, NULL);
    d->order++;
    disk_cache_flush(d, order);
    disk_log_complete(sim, d, log, 0);
    node_disk_step(node);
    return 0;
}

const uint8_t *re_sim_disk_content(const re_sim *sim, int disk, int layer)
{
    CHECK(layer == RE_SIM_CURRENT || layer == RE_SIM_STABLE);
    return disk_get(sim, disk)->layers[layer];
}

void re_sim_disk_load(re_sim *sim, int disk, uint64_t offset, const uint8_t *data, uint64_t length)
{
    struct disk *d = disk_get(sim, disk);
    CHECK(control_ok(d, offset, length));
    disk_layer_write(d, RE_SIM_CURRENT, offset, length, data);
    disk_layer_write(d, RE_SIM_STABLE, offset, length, data);
    disk_supersede(d, offset, length, UINT64_MAX);
    d->recording = false;
}

void re_sim_disk_flip_bit(re_sim *sim, int disk, uint64_t byte_offset, unsigned bit)
{
    struct disk *d = disk_get(sim, disk);
    CHECK(byte_offset < d->size && bit < 8);
    d->layers[RE_SIM_CURRENT][byte_offset] ^= (uint8_t)(1u << bit);
    d->layers[RE_SIM_STABLE][byte_offset] ^= (uint8_t)(1u << bit);
}

uint64_t re_sim_disk_diff(const re_sim *sim, int disk_a, uint64_t offset_a, int disk_b, uint64_t offset_b,
                          uint64_t length, int layer, uint8_t *bitmap)
{
    const struct disk *a = disk_get(sim, disk_a), *b = disk_get(sim, disk_b);
    CHECK(u64_range_inside(offset_a, length, a->size) && u64_range_inside(offset_b, length, b->size));
    CHECK(layer == RE_SIM_CURRENT || layer == RE_SIM_STABLE);
    uint64_t different = 0;
    if (bitmap)
        memset(bitmap, 0, (length + BLOCK - 1) / BLOCK / 8 + ((length + BLOCK - 1) / BLOCK % 8 != 0));
    for (uint64_t at = 0; at < length; at += BLOCK) {
        uint64_t part = u64_min(BLOCK, length - at);
        if (memcmp(a->layers[layer] + offset_a + at, b->layers[layer] + offset_b + at, part) == 0)
            continue;
        different++;
        if (bitmap)
            disk_bit_set(bitmap, at / BLOCK);
    }
    return different;
}

/* ---- snapshots ---- */

void disk_snapshot_drop(struct snapshot *s)
{
    if (!s)
        return;
    disk_cache_clear(&s->cache);
    free(s->layers[0]);
    free(s->layers[1]);
    free(s);
}

static void cache_copy(struct list_head *to, const struct list_head *from)
{
    list_init(to);
    list_for_each(link, from) {
        const struct cached *c = list_entry(link, struct cached, link);
        struct cached *copy = malloc(sizeof(*copy));
        CHECK(copy);
        *copy = *c;
        list_init(&copy->link);
        if (c->data) {
            copy->data = malloc(c->length);
            CHECK(copy->data);
            memcpy(copy->data, c->data, c->length);
        }
        if (c->superseded) {
            copy->superseded = malloc(c->length / SECTOR / 8 + 1);
            CHECK(copy->superseded);
            memcpy(copy->superseded, c->superseded, c->length / SECTOR / 8 + 1);
        }
        list_add_tail(to, &copy->link);
    }
}

int re_sim_disk_snapshot(re_sim *sim, int disk)
{
    const struct disk *d = disk_get(sim, disk);
    sim->snapshots = realloc(sim->snapshots, (sim->snapshot_count + 1) * sizeof(struct snapshot *));
    struct snapshot *s = calloc(1, sizeof(*s));
    CHECK(sim->snapshots && s);
    s->size = d->size;
    s->order = d->order;
    s->cache_count = d->cache_count;
    for (int i = 0; i < 2; i++) {
        s->layers[i] = malloc(d->size);
        CHECK(s->layers[i]);
        memcpy(s->layers[i], d->layers[i], d->size);
    }
    cache_copy(&s->cache, &d->cache);
    sim->snapshots[sim->snapshot_count] = s;
    return (int)sim->snapshot_count++;
}

void re_sim_disk_restore(re_sim *sim, int disk, int snapshot)
{
    struct disk *d = disk_get(sim, disk);
    CHECK(snapshot >= 0 && (size_t)snapshot < sim->snapshot_count && sim->snapshots[snapshot]);
    const struct snapshot *s = sim->snapshots[snapshot];
    CHECK(s->size == d->size && list_empty(&d->in_flight));
    for (int i = 0; i < 2; i++)
        memcpy(d->layers[i], s->layers[i], d->size);
    disk_cache_clear(&d->cache);
    cache_copy(&d->cache, &s->cache);
    d->cache_count = s->cache_count;
    if (d->order < s->order)
        d->order = s->order;
    d->recording = false;
}

void re_sim_snapshot_free(re_sim *sim, int snapshot)
{
    CHECK(snapshot >= 0 && (size_t)snapshot < sim->snapshot_count);
    disk_snapshot_drop(sim->snapshots[snapshot]);
    sim->snapshots[snapshot] = NULL;
}
