/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hot-extent set.
 * Invariants: `extent` is the table as it will be after everything planned, `on_disk` the table after the last stable
 * transaction; a slot differs between them only while PLANNED or IN_FLIGHT; the hash holds exactly the extents of
 * `extent`; the LRU list holds exactly the ACTIVE slots without references, least recently used first.
 */
#include "meta/activity_log.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/prng.h"
#include "meta/al_disk.h"

#include <stdlib.h>
#include <string.h>

#define SLOT_NONE UINT32_MAX

enum slot_state {
    SLOT_FREE,      /* never used since the reset */
    SLOT_PLANNED,   /* changes with the next transaction */
    SLOT_IN_FLIGHT, /* changes with the transaction being written */
    SLOT_ACTIVE,    /* as on disk */
};

struct slot {
    uint32_t extent;    /* extent it holds or will hold */
    uint32_t on_disk;   /* extent the last stable transaction gave it */
    uint32_t refs;      /* users of the extent */
    uint32_t hash_next; /* next slot in the same hash chain */
    uint32_t lru_next;  /* more recently used neighbour, valid while on the LRU list */
    uint32_t lru_prev;  /* less recently used neighbour, valid while on the LRU list */
    uint8_t state;      /* enum slot_state */
};

struct slot_list {
    uint32_t slot[AL_UPDATES_PER_TRANSACTION]; /* slots in the order of planning */
    uint32_t count;                            /* valid entries */
};

struct activity_log {
    struct slot *slots;              /* the table */
    uint32_t *buckets;               /* heads of the hash chains */
    uint32_t bucket_mask;            /* number of buckets - 1, a power of two minus one */
    uint32_t n_slots;                /* al-extents */
    uint32_t free_count;             /* slots 0..free_count-1 are SLOT_FREE, handed out from the top */
    uint32_t lru_head;               /* least recently used slot, the first to be evicted */
    uint32_t lru_tail;               /* most recently used slot */
    uint32_t lru_count;              /* slots on the LRU list */
    uint64_t refs_total;             /* sum of refs */
    uint32_t tr_number;              /* number of the next transaction, or of the one in flight */
    uint32_t context_start;          /* its context window */
    bool committing;                 /* a transaction is in flight */
    struct slot_list planned;        /* updates of the next transaction */
    struct slot_list in_flight;      /* updates of the transaction in flight */
    struct al_transaction scratch;   /* where al_commit_begin assembles the block */
};

struct activity_log *al_create(uint32_t slots)
{
    if (slots == 0 || slots > AL_SLOTS_MAX)
        return NULL;
    uint32_t buckets = 64;
    while (buckets < slots * 2)
        buckets *= 2;
    struct activity_log *al = calloc(1, sizeof *al);
    if (al == NULL)
        return NULL;
    al->n_slots = slots;
    al->bucket_mask = buckets - 1;
    al->slots = calloc(slots, sizeof *al->slots);
    al->buckets = calloc(buckets, sizeof *al->buckets);
    if (al->slots == NULL || al->buckets == NULL) {
        al_destroy(al);
        return NULL;
    }
    al_reset(al);
    return al;
}

void al_destroy(struct activity_log *al)
{
    if (al == NULL)
        return;
    free(al->slots);
    free(al->buckets);
    free(al);
}

void al_reset(struct activity_log *al)
{
    for (uint32_t i = 0; i < al->n_slots; i++)
        al->slots[i] = (struct slot){
            .extent = AL_EXTENT_NONE,
            .on_disk = AL_EXTENT_NONE,
            .hash_next = SLOT_NONE,
            .lru_next = SLOT_NONE,
            .lru_prev = SLOT_NONE,
            .state = SLOT_FREE,
        };
    for (uint32_t i = 0; i <= al->bucket_mask; i++)
        al->buckets[i] = SLOT_NONE;
    al->free_count = al->n_slots;
    al->lru_head = SLOT_NONE;
    al->lru_tail = SLOT_NONE;
    al->lru_count = 0;
    al->refs_total = 0;
    al->tr_number = 0;
    al->context_start = 0;
    al->committing = false;
    al->planned.count = 0;
    al->in_flight.count = 0;
}

static uint32_t *hash_bucket(const struct activity_log *al, uint32_t extent)
{
    return &al->buckets[(uint32_t)splitmix64_mix(extent) & al->bucket_mask];
}

static uint32_t hash_find(const struct activity_log *al, uint32_t extent)
{
    uint32_t slot = *hash_bucket(al, extent);
    while (slot != SLOT_NONE && al->slots[slot].extent != extent)
        slot = al->slots[slot].hash_next;
    return slot;
}

static void hash_add(struct activity_log *al, uint32_t slot)
{
    uint32_t *bucket = hash_bucket(al, al->slots[slot].extent);
    al->slots[slot].hash_next = *bucket;
    *bucket = slot;
}

static void hash_remove(struct activity_log *al, uint32_t slot)
{
    uint32_t *link = hash_bucket(al, al->slots[slot].extent);
    while (*link != slot) {
        CHECK(*link != SLOT_NONE);
        link = &al->slots[*link].hash_next;
    }
    *link = al->slots[slot].hash_next;
}

static void lru_remove(struct activity_log *al, uint32_t slot)
{
    struct slot *s = &al->slots[slot];
    if (s->lru_prev == SLOT_NONE)
        al->lru_head = s->lru_next;
    else
        al->slots[s->lru_prev].lru_next = s->lru_next;
    if (s->lru_next == SLOT_NONE)
        al->lru_tail = s->lru_prev;
    else
        al->slots[s->lru_next].lru_prev = s->lru_prev;
    al->lru_count--;
}

static void lru_append(struct activity_log *al, uint32_t slot)
{
    struct slot *s = &al->slots[slot];
    s->lru_prev = al->lru_tail;
    s->lru_next = SLOT_NONE;
    if (al->lru_tail == SLOT_NONE)
        al->lru_head = slot;
    else
        al->slots[al->lru_tail].lru_next = slot;
    al->lru_tail = slot;
    al->lru_count++;
}

static void slot_ref(struct activity_log *al, uint32_t slot)
{
    struct slot *s = &al->slots[slot];
    CHECK(s->refs < UINT32_MAX);
    if (s->refs == 0 && s->state == SLOT_ACTIVE)
        lru_remove(al, slot);
    s->refs++;
    al->refs_total++;
}

bool al_contains_active(const struct activity_log *al, uint32_t extent)
{
    uint32_t slot = hash_find(al, extent);
    return slot != SLOT_NONE && al->slots[slot].state == SLOT_ACTIVE;
}

bool al_range_active(const struct activity_log *al, uint32_t first, uint32_t last)
{
    CHECK(first <= last && last < AL_EXTENT_NONE);
    for (uint32_t extent = first; extent <= last; extent++)
        if (!al_contains_active(al, extent))
            return false;
    return true;
}

uint32_t al_extent_refs(const struct activity_log *al, uint32_t extent)
{
    uint32_t slot = hash_find(al, extent);
    return slot == SLOT_NONE ? 0 : al->slots[slot].refs;
}

bool al_begin_fast(struct activity_log *al, uint32_t first, uint32_t last)
{
    if (!al_range_active(al, first, last))
        return false;
    for (uint32_t extent = first; extent <= last; extent++)
        slot_ref(al, hash_find(al, extent));
    return true;
}

/* A slot for one more extent; the caller has made sure that there is one. */
static uint32_t slot_take(struct activity_log *al)
{
    if (al->free_count > 0)
        return --al->free_count;
    uint32_t slot = al->lru_head;
    CHECK(slot != SLOT_NONE);
    lru_remove(al, slot);
    hash_remove(al, slot);
    return slot;
}

enum re_status al_plan(struct activity_log *al, uint32_t first, uint32_t last)
{
    uint32_t missing = 0;
    uint32_t unreferenced = 0; /* own extents that are on the LRU list and must not be evicted for the others */

    CHECK(first <= last && last < AL_EXTENT_NONE);
    if (last - first >= u32_min(AL_UPDATES_PER_TRANSACTION, al->n_slots))
        return RE_EINVAL;
    for (uint32_t extent = first; extent <= last; extent++) {
        uint32_t slot = hash_find(al, extent);
        if (slot == SLOT_NONE)
            missing++;
        else if (al->slots[slot].refs == 0 && al->slots[slot].state == SLOT_ACTIVE)
            unreferenced++;
    }
    if (missing > al->free_count + al->lru_count - unreferenced)
        return RE_AGAIN;
    if (missing > AL_UPDATES_PER_TRANSACTION - al->planned.count)
        return RE_ENOSPC;

    /* First pin what is there, so that it is not evicted for its neighbours. */
    for (uint32_t extent = first; extent <= last; extent++) {
        uint32_t slot = hash_find(al, extent);
        if (slot != SLOT_NONE)
            slot_ref(al, slot);
    }
    for (uint32_t extent = first; missing > 0 && extent <= last; extent++) {
        if (hash_find(al, extent) != SLOT_NONE)
            continue;
        uint32_t slot = slot_take(al);
        al->slots[slot].extent = extent;
        al->slots[slot].state = SLOT_PLANNED;
        hash_add(al, slot);
        slot_ref(al, slot);
        al->planned.slot[al->planned.count++] = slot;
        missing--;
    }
    CHECK(missing == 0);
    return RE_OK;
}

bool al_has_planned(const struct activity_log *al)
{
    return al->planned.count > 0;
}

bool al_commit_in_flight(const struct activity_log *al)
{
    return al->committing;
}

uint32_t al_commit_begin(struct activity_log *al, uint8_t block[BLOCK_BYTES], uint32_t *tr_number,
                         uint32_t evicted[AL_UPDATES_PER_TRANSACTION])
{
    struct al_transaction *tr = &al->scratch;
    uint32_t n_evicted = 0;

    CHECK(!al->committing);
    al->committing = true;
    al->in_flight = al->planned;
    al->planned.count = 0;

    tr->tr_number = al->tr_number;
    tr->type = AL_TRANSACTION_UPDATE;
    tr->n_updates = (uint16_t)al->in_flight.count;
    tr->context_size = (uint16_t)al->n_slots;
    tr->context_start = (uint16_t)al->context_start;
    for (uint32_t i = 0; i < al->in_flight.count; i++) {
        uint32_t slot = al->in_flight.slot[i];
        struct slot *s = &al->slots[slot];
        CHECK(s->state == SLOT_PLANNED);
        s->state = SLOT_IN_FLIGHT;
        tr->update_slot[i] = (uint16_t)slot;
        tr->update_extent[i] = s->extent;
        /* An extent that was planned out and, by the same transaction, into another slot does not leave. */
        if (s->on_disk != AL_EXTENT_NONE && hash_find(al, s->on_disk) == SLOT_NONE)
            evicted[n_evicted++] = s->on_disk;
    }
    for (uint32_t i = 0; i < AL_CONTEXT_PER_TRANSACTION; i++) {
        uint32_t slot = al->context_start + i;
        tr->context[i] = slot < al->n_slots ? al->slots[slot].on_disk : AL_EXTENT_NONE;
    }
    al_block_encode(block, tr);
    *tr_number = al->tr_number;
    return n_evicted;
}

void al_commit_done(struct activity_log *al)
{
    CHECK(al->committing);
    for (uint32_t i = 0; i < al->in_flight.count; i++) {
        uint32_t slot = al->in_flight.slot[i];
        struct slot *s = &al->slots[slot];
        CHECK(s->state == SLOT_IN_FLIGHT);
        s->state = SLOT_ACTIVE;
        s->on_disk = s->extent;
        if (s->refs == 0)
            lru_append(al, slot);
    }
    al->in_flight.count = 0;
    al->committing = false;
    al->tr_number++;
    al->context_start += AL_CONTEXT_PER_TRANSACTION;
    if (al->context_start >= al->n_slots)
        al->context_start = 0;
}

void al_put(struct activity_log *al, uint32_t first, uint32_t last)
{
    CHECK(first <= last && last < AL_EXTENT_NONE);
    for (uint32_t extent = first; extent <= last; extent++) {
        uint32_t slot = hash_find(al, extent);
        CHECK(slot != SLOT_NONE);
        struct slot *s = &al->slots[slot];
        CHECK(s->refs > 0);
        s->refs--;
        al->refs_total--;
        if (s->refs == 0 && s->state == SLOT_ACTIVE)
            lru_append(al, slot);
    }
}

uint32_t al_slots(const struct activity_log *al)
{
    return al->n_slots;
}

uint64_t al_refs_total(const struct activity_log *al)
{
    return al->refs_total;
}

uint32_t al_referenced(const struct activity_log *al)
{
    return al_used(al) - al->lru_count;
}

uint32_t al_used(const struct activity_log *al)
{
    return al->n_slots - al->free_count;
}

bool al_next_active(const struct activity_log *al, uint32_t *cursor, uint32_t *extent)
{
    while (*cursor < al->n_slots) {
        const struct slot *s = &al->slots[(*cursor)++];
        if (s->state != SLOT_ACTIVE)
            continue;
        *extent = s->extent;
        return true;
    }
    return false;
}
