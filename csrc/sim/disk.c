/* SPDX-License-Identifier: Apache-2.0 */
/* Disks: a stable layer, a current layer, and the list of finished writes between them.
 *
 * Invariants: the layers differ at most where a cached write lies; a write's bytes are copied when it is submitted; a
 * sector that something newer made stable is superseded in every older cached write, so that those never undo it.
 * A flush covers what had finished before it was submitted, not more.
 */
#include "sim/internal.h"

enum { READ_MAX = 1 << 20, ZERO_MAX = 128 << 20, TABLE_MAX = 1 << 20 };

struct disk *disk_get(const struct re_sim *sim, int disk)
{
    CHECK(disk >= 0 && (size_t)disk < sim->disk_count);
    return sim->disks[disk];
}

int re_sim_disk_create(re_sim *sim, int node, uint64_t size_bytes)
{
    CHECK(size_bytes && size_bytes % BLOCK == 0);
    sim_node(sim, node);
    sim->disks = realloc(sim->disks, (sim->disk_count + 1) * sizeof(struct disk *));
    struct disk *d = calloc(1, sizeof(*d));
    CHECK(sim->disks && d);
    d->node = node;
    d->size = size_bytes;
    d->layers[0] = calloc(1, size_bytes);
    d->layers[1] = calloc(1, size_bytes);
    d->used = calloc(1, size_bytes / BLOCK / 8 + 1);
    CHECK(d->layers[0] && d->layers[1] && d->used);
    d->base_point = UINT64_MAX;
    d->settings = (struct re_sim_disk_settings){.read_min_ns = 20 * SIM_US,
                                                .read_max_ns = 200 * SIM_US,
                                                .write_min_ns = 20 * SIM_US,
                                                .write_max_ns = 400 * SIM_US,
                                                .flush_min_ns = 100 * SIM_US,
                                                .flush_max_ns = 2 * SIM_MS};
    list_init(&d->cache);
    list_init(&d->in_flight);
    sim->disks[sim->disk_count] = d;
    return (int)sim->disk_count++;
}

static void cached_free(struct cached *c)
{
    list_del(&c->link);
    free(c->data);
    free(c->superseded);
    free(c);
}

void disk_cache_clear(struct list_head *cache)
{
    while (!list_empty(cache))
        cached_free(list_entry(list_first(cache), struct cached, link));
}

static void io_release(struct re_sim *sim, struct disk_io *io)
{
    list_del(&io->link);
    sim->disks[io->disk]->in_flight_count--;
    free(io->data);
    io->data = NULL;
    io->serial = 0;
    sim->io_free[sim->io_free_count++] = io->index;
}

void disk_free_all(struct re_sim *sim)
{
    for (size_t i = 0; i < sim->io_count; i++) {
        free(sim->ios[i]->data);
        free(sim->ios[i]);
    }
    for (size_t i = 0; i < sim->disk_count; i++) {
        struct disk *d = sim->disks[i];
        disk_cache_clear(&d->cache);
        disk_log_free(d);
        free(d->layers[0]);
        free(d->layers[1]);
        free(d->used);
        free(d);
    }
    for (size_t i = 0; i < sim->snapshot_count; i++)
        disk_snapshot_drop(sim->snapshots[i]);
    free(sim->ios);
    free(sim->io_free);
    free(sim->disks);
    free(sim->snapshots);
}

/* ---- layers ---- */

void disk_layer_write(struct disk *d, int layer, uint64_t offset, uint64_t length, const uint8_t *data)
{
    if (data)
        memcpy(d->layers[layer] + offset, data, length);
    else
        memset(d->layers[layer] + offset, 0, length);
}

static bool bit_get(const uint8_t *bits, uint64_t bit)
{
    return bits && (bits[bit / 8] >> (bit % 8) & 1);
}

void disk_bit_set(uint8_t *bits, uint64_t bit)
{
    bits[bit / 8] = (uint8_t)(bits[bit / 8] | 1u << (bit % 8));
}

/* Sectors of a write that fulfil `bits` (NULL: all) and are not superseded, to a layer. */
static void layer_write_some(struct disk *d, int layer, const struct cached *c, const uint8_t *bits)
{
    if (!bits && !c->superseded) {
        disk_layer_write(d, layer, c->offset, c->length, c->data);
        return;
    }
    for (uint64_t i = 0; i < c->length / SECTOR; i++)
        if ((!bits || bit_get(bits, i)) && !bit_get(c->superseded, i))
            disk_layer_write(d, layer, c->offset + i * SECTOR, SECTOR, c->data ? c->data + i * SECTOR : NULL);
}

/* These bytes are stable and as new as `order`: no older cached write may undo them. */
void disk_supersede(struct disk *d, uint64_t offset, uint64_t length, uint64_t order)
{
    list_for_each(link, &d->cache) {
        struct cached *c = list_entry(link, struct cached, link);
        if (c->order >= order)
            return;
        uint64_t begin = u64_max(c->offset, offset);
        uint64_t end = u64_min(c->offset + c->length, offset + length);
        if (begin >= end)
            continue;
        if (!c->superseded) {
            c->superseded = calloc(1, c->length / SECTOR / 8 + 1);
            CHECK(c->superseded);
        }
        for (uint64_t at = begin; at < end; at += SECTOR)
            disk_bit_set(c->superseded, (at - c->offset) / SECTOR);
    }
}

/* What finished before number `order` becomes stable. */
void disk_cache_flush(struct disk *d, uint64_t order)
{
    list_for_each_safe(link, following, &d->cache) {
        struct cached *c = list_entry(link, struct cached, link);
        if (c->order >= order)
            return;
        if (c->abandoned)
            continue;
        layer_write_some(d, RE_SIM_STABLE, c, NULL);
        uint64_t offset = c->offset, length = c->length, at = c->order;
        cached_free(c);
        d->cache_count--;
        disk_supersede(d, offset, length, at);
    }
}

static void use_blocks(struct disk *d, uint64_t offset, uint64_t length)
{
    for (uint64_t block = offset / BLOCK; block < (offset + length + BLOCK - 1) / BLOCK; block++)
        if (!bit_get(d->used, block)) {
            disk_bit_set(d->used, block);
            d->used_blocks++;
        }
}

/* A finished write reaches the current layer and the cache, or the stable layer at once.  Takes `data` over. */
void disk_write_take(struct disk *d, uint64_t offset, uint64_t length, uint8_t *data, bool stable)
{
    uint64_t order = d->order;
    disk_layer_write(d, RE_SIM_CURRENT, offset, length, data);
    use_blocks(d, offset, length);
    if (stable) {
        disk_layer_write(d, RE_SIM_STABLE, offset, length, data);
        disk_supersede(d, offset, length, order);
        free(data);
        return;
    }
    struct cached *c = calloc(1, sizeof(*c));
    CHECK(c);
    *c = (struct cached){.offset = offset, .length = length, .data = data, .order = order};
    list_init(&c->link);
    list_add_tail(&d->cache, &c->link);
    d->cache_count++;
}

/* Part of a write that failed or was interrupted: each sector or a prefix of it, by the seed. */
static void write_partly(struct re_sim *sim, struct disk *d, const struct disk_io *io)
{
    uint64_t sectors = io->length / SECTOR;
    uint64_t mode = prng_below(&sim->rng[RNG_DISK], 4);
    if (mode == 0 || sectors == 0)
        return;
    uint64_t from = 0, to = sectors;
    if (mode == 1)
        to = prng_below(&sim->rng[RNG_DISK], sectors + 1);
    else if (mode == 2)
        from = prng_below(&sim->rng[RNG_DISK], sectors + 1);
    if (from >= to)
        return;
    if (from != 0 || to != sectors)
        sim->counters.writes_torn++;
    uint64_t length = (to - from) * SECTOR;
    uint8_t *data = NULL;
    if (io->data) {
        data = malloc(length);
        CHECK(data);
        memcpy(data, io->data + from * SECTOR, length);
    }
    disk_write_take(d, io->offset + from * SECTOR, length, data, false);
}

/* ---- operations ---- */

static bool is_write(unsigned kind)
{
    return kind == DISK_WRITE || kind == DISK_ZERO;
}

static struct disk_io *io_new(struct re_sim *sim)
{
    if (!sim->io_free_count) {
        size_t count = sim->io_count ? sim->io_count * 2 : 64;
        CHECK(count <= TABLE_MAX);
        sim->ios = realloc(sim->ios, count * sizeof(struct disk_io *));
        sim->io_free = realloc(sim->io_free, count * sizeof(*sim->io_free));
        CHECK(sim->ios && sim->io_free);
        for (size_t i = count; i-- > sim->io_count;) {
            sim->ios[i] = calloc(1, sizeof(struct disk_io));
            CHECK(sim->ios[i]);
            sim->ios[i]->index = (uint32_t)i;
            list_init(&sim->ios[i]->link);
            sim->io_free[sim->io_free_count++] = (uint32_t)i;
        }
        sim->io_count = count;
    }
    return sim->ios[sim->io_free[--sim->io_free_count]];
}

static int fault_kind(unsigned kind)
{
    switch (kind) {
    case DISK_READ: return RE_DISK_READ;
    case DISK_WRITE: return RE_DISK_WRITE;
    case DISK_FLUSH: return RE_DISK_FLUSH;
    case DISK_ZERO: return RE_DISK_ZERO;
    default: return -1;
    }
}

static int draw_error(struct re_sim *sim, struct disk *d, const struct disk_io *io)
{
    const struct re_sim_disk_settings *s = &d->settings;
    int kind = fault_kind(io->kind);
    if (kind < 0)
        return 0;
    if (d->fail_count[kind]) {
        d->fail_count[kind]--;
        return d->fail_error[kind];
    }
    if (s->bad_length && io->kind != DISK_FLUSH && io->offset < s->bad_offset + s->bad_length &&
        s->bad_offset < io->offset + io->length)
        return EIO;
    uint32_t ppm = io->kind == DISK_READ    ? s->read_error_ppm
                   : io->kind == DISK_FLUSH ? s->flush_error_ppm
                                            : s->write_error_ppm;
    if (sim_chance(sim, RNG_DISK, ppm))
        return EIO;
    if (s->space_bytes && is_write(io->kind) && d->used_blocks * BLOCK >= s->space_bytes)
        for (uint64_t block = io->offset / BLOCK; block < (io->offset + io->length + BLOCK - 1) / BLOCK; block++)
            if (!bit_get(d->used, block))
                return ENOSPC;
    if (io->kind == DISK_ZERO && (io->flags & DISK_FAST) && s->no_fast_zero)
        return ENOTSUP;
    return 0;
}

static void check_overlap(struct re_sim *sim, const struct disk *d, const struct disk_io *io)
{
    if (!is_write(io->kind))
        return;
    list_for_each(link, &d->in_flight) {
        const struct disk_io *other = list_entry(link, struct disk_io, link);
        if (is_write(other->kind) && other->offset < io->offset + io->length &&
            io->offset < other->offset + other->length)
            sim_violation(sim, "disk %d: writes %#llx+%#llx and %#llx+%#llx are in flight together", io->disk,
                          (unsigned long long)other->offset, (unsigned long long)other->length,
                          (unsigned long long)io->offset, (unsigned long long)io->length);
    }
}

static void schedule(struct re_sim *sim, const struct disk *d, const struct disk_io *io)
{
    const struct re_sim_disk_settings *s = &d->settings;
    uint64_t low = s->write_min_ns, high = s->write_max_ns;
    if (io->kind == DISK_READ || io->kind == DISK_EXTENTS) {
        low = s->read_min_ns;
        high = s->read_max_ns;
    } else if (io->kind == DISK_FLUSH) {
        low = s->flush_min_ns;
        high = s->flush_max_ns;
    }
    uint64_t delay = sim_between(sim, RNG_DISK, low, high);
    if (sim_chance(sim, RNG_DISK, s->slow_ppm))
        delay += s->slow_ns;
    sim_push(sim, sim->now + delay, EV_DISK, io->index, io->serial);
}

static bool shape_ok(const struct disk *d, const struct disk_op *op)
{
    if (op->kind == DISK_FLUSH)
        return true;
    if (op->kind > DISK_EXTENTS || op->length == 0 || op->length % SECTOR || op->offset % SECTOR ||
        !u64_range_inside(op->offset, op->length, d->size))
        return false;
    return op->length <= (op->kind == DISK_READ || op->kind == DISK_WRITE ? READ_MAX : ZERO_MAX);
}

static void submit_one(struct node *node, struct disk_op *op)
{
    struct re_sim *sim = node->sim;
    if (node->doomed)
        return;
    sim->counters.disk_ops++;
    bool known = op->fd >= 0 && (size_t)op->fd < sim->disk_count && sim->disks[op->fd]->node == node->index;
    if (!known || !shape_ok(sim->disks[op->fd], op)) {
        sim_violation(sim, "node %d: illegal disk operation: kind %u, disk %d, %#llx+%#llx", node->index, op->kind,
                      op->fd, (unsigned long long)op->offset, (unsigned long long)op->length);
        op->error = EINVAL;
        list_add_tail(&node->done, &op->link);
        node_kick(node);
        return;
    }
    struct disk *d = sim->disks[op->fd];
    struct disk_io *io = io_new(sim);
    uint32_t index = io->index;
    *io = (struct disk_io){.op = op,
                           .index = index,
                           .serial = ++sim->serial,
                           .disk = op->fd,
                           .node = node->index,
                           .generation = node->generation,
                           .kind = op->kind,
                           .flags = op->flags,
                           .offset = op->kind == DISK_FLUSH ? 0 : op->offset,
                           .length = op->kind == DISK_FLUSH ? 0 : op->length};
    list_init(&io->link);
    if (io->kind == DISK_WRITE) {
        io->data = malloc(io->length);
        CHECK(io->data);
        memcpy(io->data, op->data, io->length);
        uint64_t sum = 0;
        for (uint64_t at = 0; at < io->length; at += 64)
            sum = (sum ^ le64_get(io->data + at)) * UINT64_C(0x100000001b3);
        sim_hash(sim, sum);
    }
    sim_hash(sim, io->offset ^ io->length << 20 ^ (uint64_t)io->kind << 56 ^ (uint64_t)io->flags << 48);
    TRACE(sim, "disk %d: submit %s%s%s %#llx+%#llx", io->disk,
          (const char *[]){"read", "write", "flush", "zero", "extents"}[io->kind],
          io->flags & DISK_FUA ? " fua" : "", io->flags & DISK_PREFLUSH ? " preflush" : "",
          (unsigned long long)io->offset, (unsigned long long)io->length);
    check_overlap(sim, d, io);
    io->order = ++d->order;
    io->log = disk_log_submit(sim, d, io->kind, io->flags, io->offset, io->length, io->data);
    io->error = draw_error(sim, d, io);
    list_add_tail(&d->in_flight, &io->link);
    d->in_flight_count++;
    if (d->hold || sim_chance(sim, RNG_DISK, d->settings.stuck_ppm)) {
        io->stuck = true;
        sim->counters.disk_stuck++;
    } else
        schedule(sim, d, io);
    node_disk_step(node);
}

void disk_submit(struct node *node, struct list_head *ops)
{
    for (struct list_head *link; (link = list_pop(ops));)
        submit_one(node, list_entry(link, struct disk_op, link));
}

static bool is_zero_block(const uint8_t *p, uint64_t length)
{
    return length == 0 || (p[0] == 0 && memcmp(p, p + 1, length - 1) == 0);
}

static void fill_extents(const struct disk *d, struct disk_op *op)
{
    op->extents_count = 0;
    for (uint64_t at = op->offset, end = op->offset + op->length; at < end;) {
        uint64_t next = u64_min((at / BLOCK + 1) * BLOCK, end);
        uint64_t block = at / BLOCK * BLOCK;
        bool hole = is_zero_block(d->layers[RE_SIM_CURRENT] + block, u64_min(BLOCK, d->size - block));
        struct disk_extent *last = op->extents_count ? &op->extents[op->extents_count - 1] : NULL;
        if (last && last->hole == hole)
            last->length += next - at;
        else if (op->extents_count == op->extents_max)
            return;
        else
            op->extents[op->extents_count++] = (struct disk_extent){.length = next - at, .hole = hole};
        at = next;
    }
}

static bool begins_with_hole(const struct disk *d, struct disk_op *op)
{
    uint64_t length = op->length;
    op->length = d->size - op->offset;
    fill_extents(d, op);
    op->length = length;
    if (op->extents_count && op->extents[0].hole)
        return true;
    op->extents_count = 0;
    return false;
}

/* A flush that failed: nobody knows what it has done, and no later one makes up for it. */
static void flush_failed(struct re_sim *sim, struct disk *d, uint64_t order)
{
    list_for_each(link, &d->cache) {
        struct cached *c = list_entry(link, struct cached, link);
        if (c->order < order && prng_below(&sim->rng[RNG_DISK], 2))
            c->abandoned = true;
    }
}

/* What an operation that fails has done nevertheless. */
static void carry_out_failed(struct re_sim *sim, struct disk *d, struct disk_io *io, bool preflush)
{
    sim->counters.disk_errors++;
    if (io->kind == DISK_FLUSH) {
        flush_failed(sim, d, io->order);
        io->lost = true;
        return;
    }
    if (!is_write(io->kind) || io->error == ENOTSUP)
        return;
    if (preflush && (io->order & 1)) {  /* the write is not started */
        flush_failed(sim, d, io->order);
        io->lost = true;
        return;
    }
    if (preflush)
        disk_cache_flush(d, io->order);
    bool fua = (io->flags & (DISK_FUA | DISK_NO_SYNC)) == DISK_FUA;
    if (fua && io->error == EIO && (io->order & 2)) {   /* it was written, and others were lost when it was flushed */
        flush_failed(sim, d, io->order);
        io->lost = true;
    }
    write_partly(sim, d, io);
}

static void carry_out(struct re_sim *sim, struct disk *d, struct disk_io *io)
{
    bool sync = !(io->flags & DISK_NO_SYNC);
    bool preflush = sync && is_write(io->kind) && (io->flags & DISK_PREFLUSH);
    if (io->error) {
        carry_out_failed(sim, d, io, preflush);
        return;
    }
    if (preflush || (sync && io->kind == DISK_FLUSH))
        disk_cache_flush(d, io->order);
    if (is_write(io->kind)) {
        uint64_t offset = io->offset;
        if (!disk_mishap(sim, d, &offset, io->length))
            return;
        uint8_t *data = io->data;
        io->data = NULL;
        disk_write_take(d, offset, io->length, data, sync && (io->flags & DISK_FUA));
    }
}

void disk_finish(struct re_sim *sim, uint32_t index, uint64_t serial)
{
    struct disk_io *io = sim->ios[index];
    if (io->serial != serial)
        return;
    struct disk *d = sim->disks[io->disk];
    struct disk_op *op = io->op;
    struct node *node = &sim->nodes[io->node];
    CHECK(node->core && node->generation == io->generation);
    if (io->kind == DISK_WRITE && memcmp(op->data, io->data, io->length) != 0)
        sim_violation(sim, "disk %d: the payload of the write %#llx+%#llx changed in flight", io->disk,
                      (unsigned long long)io->offset, (unsigned long long)io->length);
    d->order++;
    carry_out(sim, d, io);
    if (io->kind == DISK_READ && !io->error && op->extents_max && begins_with_hole(d, op))
        ;
    else if (io->kind == DISK_READ && !io->error)
        memcpy(op->data, d->layers[RE_SIM_CURRENT] + io->offset, io->length);
    else if (io->kind == DISK_EXTENTS)
        fill_extents(d, op);
    disk_log_complete(sim, d, io->log, io->error);
    reach_disk(sim, io->node, io->kind, io->error != 0);
    op->error = io->error;
    op->lost = io->lost;
    TRACE(sim, "disk %d: done %u %#llx+%#llx%s", io->disk, io->kind, (unsigned long long)io->offset,
          (unsigned long long)io->length, io->error ? " with an error" : "");
    io_release(sim, io);
    list_add_tail(&node->done, &op->link);
    node_disk_step(node);
    node_kick(node);
}

/* The process is gone: its operations in flight happen, happen in part, or do not; with a power loss they wait for
 * re_sim_disk_power_loss() as if they were cached. */
void disk_engine_gone(struct re_sim *sim, int node, bool power_loss)
{
    for (size_t i = 0; i < sim->disk_count; i++) {
        struct disk *d = sim->disks[i];
        if (d->node != node)
            continue;
        if (!list_empty(&d->in_flight))
            d->recording = false;
        while (!list_empty(&d->in_flight)) {
            struct disk_io *io = list_entry(list_first(&d->in_flight), struct disk_io, link);
            d->order++;
            if (is_write(io->kind) && !io->error && power_loss) {
                bool preflush = (io->flags & (DISK_PREFLUSH | DISK_NO_SYNC)) == DISK_PREFLUSH;
                uint64_t submitted = io->order;
                uint8_t *data = io->data;
                io->data = NULL;
                disk_write_take(d, io->offset, io->length, data, false);
                if (preflush)
                    list_entry(list_last(&d->cache), struct cached, link)->preflush_order = submitted;
            } else if (is_write(io->kind) && !io->error && prng_below(&sim->rng[RNG_DISK], 3)) {
                if ((io->flags & (DISK_PREFLUSH | DISK_NO_SYNC)) == DISK_PREFLUSH)
                    disk_cache_flush(d, io->order);
                write_partly(sim, d, io);
            }
            io_release(sim, io);
        }
    }
}

/* ---- power loss ---- */

static void draw_survivors(struct re_sim *sim, struct cached **all, uint32_t count, bool *lives)
{
    static const uint32_t chances[] = {0, 1000000, 500000, 125000, 875000};
    uint64_t mode = prng_below(&sim->rng[RNG_DISK], 8);
    uint64_t one = count ? prng_below(&sim->rng[RNG_DISK], count) : 0;
    for (uint32_t i = 0; i < count; i++) {
        if (mode < 5)
            lives[i] = sim_chance(sim, RNG_DISK, chances[mode]);
        else
            lives[i] = mode == 5 ? i == one : mode == 6 ? i != one : i < one;
    }
    /* A write with PREFLUSH is started only when all before it is stable. */
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = 0; lives[i] && all[i]->preflush_order && j < count; j++)
            if (all[j]->order < all[i]->preflush_order && !all[j]->abandoned)
                lives[j] = true;
}

static bool is_forced(struct cached *const *all, const bool *lives, uint32_t count, const struct cached *c)
{
    for (uint32_t i = 0; i < count; i++)
        if (lives[i] && all[i]->preflush_order > c->order && !c->abandoned)
            return true;
    return false;
}

static void survive(struct re_sim *sim, struct disk *d, const struct cached *c, bool whole)
{
    uint64_t sectors = c->length / SECTOR;
    sim->counters.writes_survived++;
    if (whole || sectors < 2 || prng_below(&sim->rng[RNG_DISK], 4)) {
        layer_write_some(d, RE_SIM_STABLE, c, NULL);
        return;
    }
    uint8_t *bits = calloc(1, sectors / 8 + 1);
    CHECK(bits);
    uint64_t cut = prng_below(&sim->rng[RNG_DISK], sectors);
    uint64_t mode = prng_below(&sim->rng[RNG_DISK], 3);
    for (uint64_t i = 0; i < sectors; i++)
        if (mode == 0 ? i < cut : mode == 1 ? i >= cut : prng_below(&sim->rng[RNG_DISK], 2))
            disk_bit_set(bits, i);
    sim->counters.writes_torn++;
    layer_write_some(d, RE_SIM_STABLE, c, bits);
    free(bits);
}

void re_sim_disk_power_loss(re_sim *sim, int disk)
{
    struct disk *d = disk_get(sim, disk);
    d->recording = false;
    list_for_each(io_link, &d->in_flight) {
        struct disk_io *io = list_entry(io_link, struct disk_io, link);
        if (!io->error)
            io->error = EIO;
        if (io->stuck) {
            io->stuck = false;
            schedule(sim, d, io);
        }
        /* Its bytes may already be in the cache that is lost. */
        if (is_write(io->kind)) {
            d->order++;
            write_partly(sim, d, io);
        }
    }
    uint32_t count = d->cache_count, i = 0;
    struct cached **all = calloc(count + 1u, sizeof(*all));
    bool *lives = calloc(count + 1u, sizeof(*lives));
    CHECK(all && lives);
    list_for_each(link, &d->cache)
        all[i++] = list_entry(link, struct cached, link);
    draw_survivors(sim, all, count, lives);
    if (prng_below(&sim->rng[RNG_DISK], 2))
        for (i = count; i > 1; i--) {
            uint32_t j = (uint32_t)prng_below(&sim->rng[RNG_DISK], i);
            struct cached *c = all[i - 1];
            bool l = lives[i - 1];
            all[i - 1] = all[j];
            lives[i - 1] = lives[j];
            all[j] = c;
            lives[j] = l;
        }
    for (i = 0; i < count; i++) {
        if (lives[i])
            survive(sim, d, all[i], is_forced(all, lives, count, all[i]));
        else
            sim->counters.writes_dropped++;
    }
    /* The layers differ nowhere else. */
    list_for_each(again, &d->cache) {
        const struct cached *c = list_entry(again, struct cached, link);
        memcpy(d->layers[RE_SIM_CURRENT] + c->offset, d->layers[RE_SIM_STABLE] + c->offset, c->length);
    }
    TRACE(sim, "disk %d: power loss with %u unflushed writes", disk, count);
    disk_cache_clear(&d->cache);
    d->cache_count = 0;
    free(all);
    free(lives);
}

/* ---- faults ---- */

void re_sim_disk_settings_get(const re_sim *sim, int disk, struct re_sim_disk_settings *settings)
{
    *settings = disk_get(sim, disk)->settings;
}

void re_sim_disk_settings_set(re_sim *sim, int disk, const struct re_sim_disk_settings *settings)
{
    disk_get(sim, disk)->settings = *settings;
}

void re_sim_disk_fail_next(re_sim *sim, int disk, int kind, uint32_t count, int error)
{
    CHECK(kind >= RE_DISK_READ && kind <= RE_DISK_ZERO && error > 0);
    struct disk *d = disk_get(sim, disk);
    d->fail_count[kind] = count;
    d->fail_error[kind] = error;
}

void re_sim_disk_hold(re_sim *sim, int disk)
{
    disk_get(sim, disk)->hold = true;
}

void re_sim_disk_release(re_sim *sim, int disk)
{
    struct disk *d = disk_get(sim, disk);
    d->hold = false;
    list_for_each(link, &d->in_flight) {
        struct disk_io *io = list_entry(link, struct disk_io, link);
        if (io->stuck) {
            io->stuck = false;
            schedule(sim, d, io);
        }
    }
}

uint32_t re_sim_disk_in_flight(const re_sim *sim, int disk)
{
    return disk_get(sim, disk)->in_flight_count;
}

uint32_t re_sim_disk_unflushed(const re_sim *sim, int disk)
{
    return disk_get(sim, disk)->cache_count;
}
