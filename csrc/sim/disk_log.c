/* SPDX-License-Identifier: Apache-2.0 */
/* The op log of a disk, and the images that a power loss at any of its points may leave.
 *
 * Invariant: `entry.submitted` and `.completed` are the disk's order minus `log_base`: one sequence without gaps
 * caused by anything but operations.
 */
#include "sim/internal.h"

int64_t disk_log_submit(struct re_sim *sim, struct disk *d, uint32_t kind, uint32_t flags, uint64_t offset,
                        uint64_t length, const uint8_t *data)
{
    if (!d->recording)
        return -1;
    if (d->log_count == d->log_capacity) {
        d->log_capacity = d->log_capacity ? d->log_capacity * 2 : 64;
        d->log = realloc(d->log, d->log_capacity * sizeof(*d->log));
        CHECK(d->log);
    }
    struct log_record *record = &d->log[d->log_count];
    *record = (struct log_record){.entry = {.kind = kind,
                                            .flags = flags,
                                            .offset = offset,
                                            .length = length,
                                            .submitted = d->order - d->log_base,
                                            .submitted_ns = sim->now}};
    if (kind == RE_SIM_OP_WRITE) {
        record->data = malloc(length);
        CHECK(record->data);
        memcpy(record->data, data, length);
    }
    return d->log_count++;
}

void disk_log_complete(struct re_sim *sim, struct disk *d, int64_t log, int error)
{
    /* The log may have been started anew since. */
    if (log < 0 || !d->recording || (uint64_t)log >= d->log_count || d->log[log].entry.completed)
        return;
    d->log[log].entry.completed = d->order - d->log_base;
    d->log[log].entry.completed_ns = sim->now;
    d->log[log].entry.error = error;
}

void disk_log_free(struct disk *d)
{
    for (uint32_t i = 0; i < d->log_count; i++)
        free(d->log[i].data);
    free(d->log);
    free(d->log_start);
    free(d->base_image);
    free(d->candidates);
    d->log = NULL;
    d->log_start = d->base_image = NULL;
    d->candidates = NULL;
    d->log_count = d->log_capacity = d->candidate_count = 0;
    d->base_point = UINT64_MAX;
}

void re_sim_disk_record(re_sim *sim, int disk, bool on)
{
    struct disk *d = disk_get(sim, disk);
    if (!on) {
        d->recording = false;   /* what is there stays readable */
        return;
    }
    CHECK(list_empty(&d->in_flight));
    disk_log_free(d);
    re_sim_disk_flush(sim, disk);
    d->log_base = d->order;
    d->log_start = malloc(d->size);
    CHECK(d->log_start);
    memcpy(d->log_start, d->layers[RE_SIM_CURRENT], d->size);
    d->recording = true;
}

uint32_t re_sim_log_count(const re_sim *sim, int disk)
{
    return disk_get(sim, disk)->log_count;
}

bool re_sim_log_entry(const re_sim *sim, int disk, uint32_t index, struct re_sim_log_entry *entry)
{
    const struct disk *d = disk_get(sim, disk);
    if (index >= d->log_count)
        return false;
    *entry = d->log[index].entry;
    return true;
}

uint64_t re_sim_log_points(const re_sim *sim, int disk)
{
    const struct disk *d = disk_get(sim, disk);
    uint64_t last = 0;
    for (uint32_t i = 0; i < d->log_count; i++) {
        last = u64_max(last, d->log[i].entry.submitted);
        last = u64_max(last, d->log[i].entry.completed);
    }
    return last;
}

/* ---- images ---- */

static bool is_write(const struct re_sim_log_entry *e)
{
    return e->kind == RE_SIM_OP_WRITE || e->kind == RE_SIM_OP_ZERO;
}

static bool synced(const struct re_sim_log_entry *e, uint32_t flag)
{
    return (e->flags & flag) && !(e->flags & RE_SIM_OP_NO_SYNC);
}

static bool finished(const struct re_sim_log_entry *e, uint64_t point)
{
    return e->completed && e->completed <= point;
}

/* It is surely stable at `point`; `flush`: what finished before that number is covered by a flush. */
static bool is_sure(const struct re_sim_log_entry *e, uint64_t point, uint64_t flush)
{
    return finished(e, point) && !e->error && (synced(e, RE_SIM_OP_FUA) || e->completed < flush);
}

struct ordered {
    uint64_t key;       /* completion; those in flight behind all of these */
    uint32_t index;
};

static int ordered_compare(const void *a, const void *b)
{
    const struct ordered *x = a, *y = b;
    return x->key < y->key ? -1 : x->key > y->key;
}

static void put(uint8_t *image, const struct log_record *r, uint64_t sector)
{
    if (r->data)
        memcpy(image + r->entry.offset + sector * SECTOR, r->data + sector * SECTOR, SECTOR);
    else
        memset(image + r->entry.offset + sector * SECTOR, 0, SECTOR);
}

/* Work out what is sure at `point` and what is not; kept until another point is asked for. */
static void prepare(struct disk *d, uint64_t point)
{
    CHECK(d->log_start);
    if (d->base_point == point && d->base_log_count == d->log_count)
        return;
    uint64_t flush = 0;
    for (uint32_t i = 0; i < d->log_count; i++) {
        const struct re_sim_log_entry *e = &d->log[i].entry;
        bool flushes = e->kind == RE_SIM_OP_FLUSH ? !(e->flags & RE_SIM_OP_NO_SYNC)
                                                  : is_write(e) && synced(e, RE_SIM_OP_PREFLUSH);
        if (flushes && finished(e, point) && !e->error)
            flush = u64_max(flush, e->submitted);
    }
    struct ordered *order = malloc((d->log_count + 1u) * sizeof(*order));
    d->candidates = realloc(d->candidates, (d->log_count + 1u) * sizeof(*d->candidates));
    if (!d->base_image)
        d->base_image = malloc(d->size);
    CHECK(order && d->candidates && d->base_image);
    memcpy(d->base_image, d->log_start, d->size);
    uint32_t count = 0;
    for (uint32_t i = 0; i < d->log_count; i++) {
        const struct re_sim_log_entry *e = &d->log[i].entry;
        if (is_write(e) && e->submitted <= point)
            order[count++] =
                (struct ordered){finished(e, point) ? e->completed : UINT64_MAX / 2 + e->submitted, i};
    }
    qsort(order, count, sizeof(*order), ordered_compare);
    d->candidate_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct log_record *r = &d->log[order[i].index];
        if (!is_sure(&r->entry, point, flush)) {
            d->candidates[d->candidate_count++] = order[i].index;
            continue;
        }
        for (uint64_t s = 0; s < r->entry.length / SECTOR; s++)
            put(d->base_image, r, s);
    }
    free(order);
    d->base_point = point;
    d->base_log_count = d->log_count;
    d->base_flush = flush;
}

int re_sim_log_candidates(const re_sim *sim, int disk, uint64_t point, uint32_t *indices, int max)
{
    struct disk *d = disk_get(sim, disk);
    prepare(d, point);
    for (uint32_t i = 0; i < d->candidate_count && i < (uint32_t)max; i++)
        indices[i] = d->candidates[i];
    return (int)d->candidate_count;
}

/* A sure write that finished after this candidate covers the sector. */
static bool is_superseded(const struct disk *d, const struct re_sim_log_entry *e, uint64_t at, uint64_t point)
{
    for (uint32_t i = 0; finished(e, point) && i < d->log_count; i++) {
        const struct re_sim_log_entry *other = &d->log[i].entry;
        if (is_write(other) && other->offset <= at && at < other->offset + other->length &&
            is_sure(other, point, d->base_flush) && other->completed > e->completed)
            return true;
    }
    return false;
}

bool re_sim_log_image(re_sim *sim, int disk, uint64_t point, uint64_t mask, int torn, uint64_t torn_sectors,
                      bool reverse, uint8_t *out)
{
    struct disk *d = disk_get(sim, disk);
    prepare(d, point);
    int count = (int)d->candidate_count;
    CHECK(count <= RE_SIM_CANDIDATES_MAX && mask >> count == 0 && torn < count);
    CHECK(torn < 0 || (mask >> torn & 1));
    for (int j = 0; j < count; j++) {
        const struct re_sim_log_entry *e = &d->log[d->candidates[j]].entry;
        if (!(mask >> j & 1) || !synced(e, RE_SIM_OP_PREFLUSH))
            continue;
        for (int i = 0; i < count; i++) {
            const struct re_sim_log_entry *before = &d->log[d->candidates[i]].entry;
            if (finished(before, point) && !before->error && before->completed < e->submitted &&
                (!(mask >> i & 1) || i == torn))
                return false;
        }
    }
    memcpy(out, d->base_image, d->size);
    for (int k = 0; k < count; k++) {
        int j = reverse ? count - 1 - k : k;
        const struct log_record *r = &d->log[d->candidates[j]];
        for (uint64_t s = 0; (mask >> j & 1) && s < r->entry.length / SECTOR; s++)
            if ((j != torn || torn_sectors >> (s % 64) & 1) &&
                !is_superseded(d, &r->entry, r->entry.offset + s * SECTOR, point))
                put(out, r, s);
    }
    return true;
}
