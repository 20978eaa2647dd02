/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the hot-extent set: fixed situations, and random use with a crash at every step. */
#include "base/check.h"
#include "base/prng.h"
#include "meta/activity_log.h"
#include "meta/test_al_replay.h"

#define RING_BLOCKS_MAX 128u /* enough for the context of 65534 slots and a torn block */

static uint8_t ring[RING_BLOCKS_MAX * BLOCK_BYTES];
static uint32_t evicted[AL_UPDATES_PER_TRANSACTION];
static struct al_transaction decoded;
static struct replay replay;

/* Commit what is planned; returns the number of evicted extents, the transaction is in `decoded`. */
static uint32_t commit(struct activity_log *al)
{
    uint8_t block[BLOCK_BYTES];
    uint32_t number;
    uint32_t n = al_commit_begin(al, block, &number, evicted);
    al_commit_done(al);
    CHECK(al_block_decode(block, &decoded) == RE_OK && decoded.tr_number == number);
    return n;
}

static void plan_commit_put(struct activity_log *al, uint32_t first, uint32_t last)
{
    CHECK(al_plan(al, first, last) == RE_OK);
    (void)commit(al);
    CHECK(al_range_active(al, first, last));
    al_put(al, first, last);
}

static void test_al_plan_of_the_first_extents_takes_the_highest_slots_downwards(void)
{
    struct activity_log *al = al_create(67);
    CHECK(al_plan(al, 12, 14) == RE_OK);
    CHECK(commit(al) == 0);
    CHECK(decoded.n_updates == 3 && decoded.context_size == 67 && decoded.context_start == 0);
    CHECK(decoded.update_slot[0] == 66 && decoded.update_extent[0] == 12);
    CHECK(decoded.update_slot[1] == 65 && decoded.update_slot[2] == 64 && decoded.update_extent[2] == 14);
    CHECK(decoded.context[66] == AL_EXTENT_NONE); /* the table before the updates */
    (void)commit(al);
    CHECK(decoded.tr_number == 1 && decoded.n_updates == 0 && decoded.context[66] == 12);
    CHECK(al_used(al) == 3 && al_refs_total(al) == 3 && al_slots(al) == 67);
    al_destroy(al);
}

static void test_al_begin_fast_before_the_commit_is_done_fails(void)
{
    uint8_t block[BLOCK_BYTES];
    uint32_t number;
    struct activity_log *al = al_create(67);
    CHECK(!al_begin_fast(al, 5, 5));
    CHECK(al_plan(al, 5, 6) == RE_OK && al_has_planned(al));
    CHECK(!al_begin_fast(al, 5, 6));
    CHECK(al_commit_begin(al, block, &number, evicted) == 0 && number == 0);
    CHECK(!al_has_planned(al) && al_commit_in_flight(al));
    CHECK(!al_begin_fast(al, 5, 6) && !al_contains_active(al, 5));
    CHECK(al_plan(al, 5, 5) == RE_OK && !al_has_planned(al)); /* in flight already */
    al_commit_done(al);
    CHECK(al_begin_fast(al, 5, 6) && al_refs_total(al) == 5 && al_extent_refs(al, 5) == 3);
    CHECK(!al_begin_fast(al, 6, 7) && al_extent_refs(al, 6) == 2); /* nothing taken */
    al_destroy(al);
}

static void test_al_plan_evicts_the_least_recently_used_unreferenced_extent(void)
{
    struct activity_log *al = al_create(3);
    plan_commit_put(al, 1, 1);
    plan_commit_put(al, 2, 2);
    plan_commit_put(al, 3, 3);
    CHECK(al_begin_fast(al, 1, 1));
    al_put(al, 1, 1);
    CHECK(al_plan(al, 9, 9) == RE_OK);
    CHECK(!al_contains_active(al, 2) && !al_begin_fast(al, 2, 2)); /* leaves from now on */
    CHECK(commit(al) == 1 && evicted[0] == 2);
    CHECK(al_begin_fast(al, 3, 3));
    CHECK(al_plan(al, 10, 10) == RE_OK && commit(al) == 1 && evicted[0] == 1);
    CHECK(al_plan(al, 11, 11) == RE_AGAIN); /* 3, 9 and 10 are referenced */
    CHECK(!al_has_planned(al) && al_refs_total(al) == 3);
    al_put(al, 9, 9);
    CHECK(al_plan(al, 11, 11) == RE_OK && commit(al) == 1 && evicted[0] == 9);
    al_destroy(al);
}

static void test_al_plan_does_not_evict_its_own_extents(void)
{
    struct activity_log *al = al_create(4);
    for (uint32_t extent = 1; extent <= 4; extent++)
        plan_commit_put(al, extent, extent);
    CHECK(al_plan(al, 0, 2) == RE_OK); /* 1 and 2 are the oldest, but wanted */
    CHECK(commit(al) == 1 && evicted[0] == 3 && al_range_active(al, 0, 2));
    CHECK(al_plan(al, 2, 4) == RE_AGAIN && al_refs_total(al) == 3); /* nobody but 4 could make room for 3 */
    al_destroy(al);

    al = al_create(4);
    for (uint32_t extent = 1; extent <= 4; extent++)
        plan_commit_put(al, extent, extent);
    CHECK(al_begin_fast(al, 4, 4));
    CHECK(al_plan(al, 0, 3) == RE_AGAIN); /* 1..3 would have to stay, 4 is in use */
    CHECK(al_refs_total(al) == 1 && al_range_active(al, 1, 4));
    al_destroy(al);
}

static void test_al_plan_beyond_64_updates_asks_for_a_commit(void)
{
    struct activity_log *al = al_create(200);
    CHECK(al_plan(al, 0, 31) == RE_OK && al_plan(al, 100, 130) == RE_OK);
    CHECK(al_plan(al, 200, 201) == RE_ENOSPC && al_refs_total(al) == 63);
    CHECK(al_plan(al, 200, 200) == RE_OK && al_plan(al, 300, 300) == RE_ENOSPC);
    CHECK(al_plan(al, 0, 31) == RE_OK); /* nothing new */
    CHECK(commit(al) == 0 && decoded.n_updates == 64);
    CHECK(al_plan(al, 300, 363) == RE_OK && al_plan(al, 400, 464) == RE_EINVAL);
    al_destroy(al);
    al = al_create(10);
    CHECK(al_plan(al, 0, 10) == RE_EINVAL && al_plan(al, 0, 9) == RE_OK);
    al_destroy(al);
}

static void test_al_plan_of_an_extent_on_its_way_out_keeps_it_in_the_set(void)
{
    uint8_t block[BLOCK_BYTES];
    uint32_t number;
    struct activity_log *al = al_create(2);
    plan_commit_put(al, 1, 1);
    plan_commit_put(al, 2, 2);
    CHECK(al_plan(al, 3, 3) == RE_OK); /* 1 leaves */
    CHECK(al_plan(al, 1, 1) == RE_OK); /* and takes the place of 2 */
    CHECK(!al_contains_active(al, 1));
    CHECK(commit(al) == 1 && evicted[0] == 2 && decoded.n_updates == 2);
    CHECK(al_range_active(al, 1, 1) && al_range_active(al, 3, 3) && !al_contains_active(al, 2));
    al_put(al, 1, 1);
    al_put(al, 3, 3);

    /* In flight it is too late: it leaves, and comes back with the next transaction. */
    CHECK(al_plan(al, 4, 4) == RE_OK && al_commit_begin(al, block, &number, evicted) == 1 && evicted[0] == 1);
    CHECK(al_plan(al, 1, 1) == RE_OK && al_has_planned(al));
    al_commit_done(al);
    CHECK(!al_contains_active(al, 1) && commit(al) == 1 && evicted[0] == 3 && al_contains_active(al, 1));
    al_destroy(al);
}

static void test_al_plan_while_in_flight_collects_for_the_next_transaction(void)
{
    uint8_t block[BLOCK_BYTES];
    uint32_t number;
    struct activity_log *al = al_create(1000);
    CHECK(al_plan(al, 1, 1) == RE_OK);
    (void)al_commit_begin(al, block, &number, evicted);
    CHECK(al_plan(al, 1, 2) == RE_OK && al_has_planned(al));
    al_commit_done(al);
    CHECK(al_contains_active(al, 1) && !al_contains_active(al, 2) && !al_range_active(al, 1, 2));
    (void)commit(al);
    CHECK(decoded.tr_number == 1 && decoded.n_updates == 1 && decoded.update_extent[0] == 2);
    CHECK(al_range_active(al, 1, 2));
    al_destroy(al);
}

static void test_al_put_before_the_commit_leaves_the_extent_active_and_evictable(void)
{
    struct activity_log *al = al_create(1);
    CHECK(al_plan(al, 7, 7) == RE_OK);
    al_put(al, 7, 7);
    CHECK(al_plan(al, 8, 8) == RE_AGAIN); /* its slot is planned */
    (void)commit(al);
    CHECK(al_contains_active(al, 7) && al_refs_total(al) == 0);
    CHECK(al_plan(al, 8, 8) == RE_OK && commit(al) == 1 && evicted[0] == 7);
    al_destroy(al);
}

static void test_al_context_windows_roll_by_919_and_start_over(void)
{
    static const uint32_t starts[] = {0, 919, 1838, 0, 919};
    struct activity_log *al = al_create(2000);
    for (uint32_t i = 0; i < 5; i++) {
        (void)commit(al);
        CHECK(decoded.context_start == starts[i] && decoded.tr_number == i && decoded.context_size == 2000);
    }
    al_destroy(al);
    al = al_create(919);
    (void)commit(al);
    (void)commit(al);
    CHECK(decoded.context_start == 0);
    al_destroy(al);
    CHECK(al_create(0) == NULL && al_create(65535) == NULL);
}

static void test_al_reset_forgets_everything(void)
{
    uint8_t block[BLOCK_BYTES];
    uint32_t number, cursor = 0, extent;
    struct activity_log *al = al_create(1000);
    plan_commit_put(al, 1, 5);
    CHECK(al_plan(al, 6, 6) == RE_OK);
    (void)al_commit_begin(al, block, &number, evicted);
    al_reset(al);
    CHECK(al_used(al) == 0 && al_refs_total(al) == 0 && !al_has_planned(al) && !al_commit_in_flight(al));
    CHECK(!al_next_active(al, &cursor, &extent) && !al_contains_active(al, 1));
    CHECK(al_plan(al, 6, 6) == RE_OK);
    (void)commit(al);
    CHECK(decoded.tr_number == 0 && decoded.context_start == 0 && decoded.update_slot[0] == 999);
    cursor = 0;
    CHECK(al_next_active(al, &cursor, &extent) && extent == 6 && !al_next_active(al, &cursor, &extent));
    al_destroy(al);
}

/* --- random use with crashes --- */

#define HOLDERS 60
#define EXTENTS 4096u

struct holder {
    uint32_t first, last; /* its extents */
    bool planned;         /* has references, not yet all active */
    bool granted;         /* may write */
};

struct world {
    struct activity_log *al;        /* under test */
    struct prng prng;               /* all choices */
    struct holder holders[HOLDERS]; /* concurrent writes */
    uint32_t blocks;                /* ring size */
    uint32_t extents;               /* extents in use */
    uint8_t block[BLOCK_BYTES];     /* transaction in flight */
    uint32_t at;                    /* its place in the ring */
    uint64_t grants;                /* to see that something happened */
    uint64_t evictions;             /* the same */
};

static void replay_set(const struct world *w, bool set[EXTENTS])
{
    replay_ring(&replay, ring, w->blocks);
    memset(set, 0, EXTENTS);
    for (uint32_t slot = 0; slot < al_slots(w->al); slot++)
        if (replay.table[slot] != AL_EXTENT_NONE) {
            CHECK(replay.table[slot] < EXTENTS && !set[replay.table[slot]]);
            set[replay.table[slot]] = true;
        }
}

/* The claim: after a crash now, every extent somebody may be writing to is known. */
static void crash_check(const struct world *w)
{
    bool set[EXTENTS];
    replay_set(w, set);
    for (int i = 0; i < HOLDERS; i++)
        for (uint32_t e = w->holders[i].first; w->holders[i].granted && e <= w->holders[i].last; e++)
            CHECK(set[e]);
    uint32_t cursor = 0, extent;
    while (al_next_active(w->al, &cursor, &extent))
        CHECK(set[extent]);
}

static void grant_active(struct world *w)
{
    for (int i = 0; i < HOLDERS; i++) {
        struct holder *h = &w->holders[i];
        if (!h->planned || !al_range_active(w->al, h->first, h->last))
            continue;
        h->planned = false;
        h->granted = true;
        w->grants++;
    }
}

static void step_request(struct world *w)
{
    struct holder *h = &w->holders[prng_below(&w->prng, HOLDERS)];
    if (h->granted || (h->planned && prng_below(&w->prng, 10) == 0)) {
        al_put(w->al, h->first, h->last);
        *h = (struct holder){0};
        return;
    }
    if (h->planned)
        return;
    h->first = (uint32_t)prng_below(&w->prng, w->extents - 32);
    h->last = h->first + (uint32_t)prng_below(&w->prng, prng_below(&w->prng, 8) == 0 ? 32 : 2);
    uint64_t refs = al_refs_total(w->al);
    if (al_begin_fast(w->al, h->first, h->last)) {
        h->granted = true;
        w->grants++;
        CHECK(al_refs_total(w->al) == refs + h->last - h->first + 1);
        return;
    }
    CHECK(al_refs_total(w->al) == refs);
    if (al_plan(w->al, h->first, h->last) == RE_OK) {
        h->planned = true;
        CHECK(al_refs_total(w->al) == refs + h->last - h->first + 1);
    } else {
        CHECK(al_refs_total(w->al) == refs);
    }
}

static void step_commit_begin(struct world *w)
{
    static uint8_t saved[BLOCK_BYTES];
    bool before[EXTENTS], after[EXTENTS];
    uint32_t number;

    replay_set(w, before);
    uint32_t n = al_commit_begin(w->al, w->block, &number, evicted);
    w->at = al_ring_block(number, 1, w->blocks) * BLOCK_BYTES;
    w->evictions += n;
    crash_check(w);

    memcpy(saved, ring + w->at, BLOCK_BYTES);
    memcpy(ring + w->at, w->block, BLOCK_BYTES);
    crash_check(w); /* stable, but not known to be */
    replay_set(w, after);
    for (uint32_t i = 0; i < n; i++) {
        CHECK(before[evicted[i]] && !after[evicted[i]]);
        before[evicted[i]] = false;
    }
    for (uint32_t e = 0; e < EXTENTS; e++)
        CHECK(!before[e] || after[e]); /* exactly the evicted ones left */

    memcpy(ring + w->at + 2048, saved, 2048); /* torn */
    crash_check(w);
    memcpy(ring + w->at, saved, BLOCK_BYTES);
}

static void random_run(uint64_t seed, uint32_t slots, uint32_t blocks, uint32_t extents, int steps)
{
    static struct world w;
    memset(&w, 0, sizeof w);
    w.al = al_create(slots);
    w.blocks = blocks;
    w.extents = extents;
    prng_init(&w.prng, seed);
    for (uint32_t i = 0; i < blocks; i++)
        al_block_encode_initialized(ring + i * BLOCK_BYTES);

    for (int step = 0; step < steps; step++) {
        uint64_t choice = prng_below(&w.prng, 12);
        if (choice > 1) {
            step_request(&w);
        } else if (al_commit_in_flight(w.al)) {
            memcpy(ring + w.at, w.block, BLOCK_BYTES);
            al_commit_done(w.al);
            grant_active(&w);
            crash_check(&w);
        } else if (al_has_planned(w.al) || choice == 0) {
            step_commit_begin(&w);
        }
        uint64_t refs = 0;
        for (int i = 0; i < HOLDERS; i++)
            if (w.holders[i].planned || w.holders[i].granted)
                refs += w.holders[i].last - w.holders[i].first + 1;
        CHECK(refs == al_refs_total(w.al) && al_used(w.al) <= slots);
        if (step % 16 == 0)
            crash_check(&w);
    }
    CHECK(w.grants > (uint64_t)steps / 100);
    CHECK(w.evictions > 0 || slots >= extents);

    /* Whatever was planned becomes active with at most two more transactions. */
    for (int round = 0; round < 2; round++) {
        if (!al_commit_in_flight(w.al))
            step_commit_begin(&w);
        memcpy(ring + w.at, w.block, BLOCK_BYTES);
        al_commit_done(w.al);
        grant_active(&w);
        crash_check(&w);
    }
    for (int i = 0; i < HOLDERS; i++)
        CHECK(!w.holders[i].planned);
    al_destroy(w.al);
}

static void test_al_random_use_with_a_crash_at_any_step_covers_every_granted_extent(void)
{
    random_run(1, 67, 8, 300, 8000);
    random_run(2, 67, 8, 100, 8000);
    random_run(3, 32, 2, 100, 4000);
    random_run(4, 1237, 8, 3000, 12000);
    random_run(5, 2000, 8, EXTENTS, 12000);
    random_run(6, 7352, 9, EXTENTS, 3000);
    for (uint64_t seed = 10; seed < 20; seed++)
        random_run(seed, 67 + (uint32_t)seed * 3, 8, 400, 2000);
}

int main(void)
{
    test_al_plan_of_the_first_extents_takes_the_highest_slots_downwards();
    test_al_begin_fast_before_the_commit_is_done_fails();
    test_al_plan_evicts_the_least_recently_used_unreferenced_extent();
    test_al_plan_does_not_evict_its_own_extents();
    test_al_plan_beyond_64_updates_asks_for_a_commit();
    test_al_plan_of_an_extent_on_its_way_out_keeps_it_in_the_set();
    test_al_plan_while_in_flight_collects_for_the_next_transaction();
    test_al_put_before_the_commit_leaves_the_extent_active_and_evictable();
    test_al_context_windows_roll_by_919_and_start_over();
    test_al_reset_forgets_everything();
    test_al_random_use_with_a_crash_at_any_step_covers_every_granted_extent();
    return 0;
}
