/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the range lock: fixed situations, and random operations compared with a naive list. */
#include "base/check.h"
#include "base/interval.h"
#include "base/prng.h"

#include <string.h>

#define POOL 400 /* ranges of the random test */

static void test_range_release_of_an_exclusive_range_grants_waiters_in_ticket_order(void)
{
    struct range_lock lock;
    struct range a, b, c, d;
    struct list_head granted;
    range_lock_init(&lock);
    list_init(&granted);
    range_init(&a, 0, 100, RANGE_EXCLUSIVE, NULL);
    range_init(&b, 50, 60, RANGE_EXCLUSIVE, NULL);
    range_init(&c, 10, 20, RANGE_SHARED, NULL);
    range_init(&d, 55, 56, RANGE_EXCLUSIVE, NULL);
    CHECK(range_acquire(&lock, &a));
    CHECK(!range_acquire(&lock, &b) && !range_acquire(&lock, &c) && !range_acquire(&lock, &d));
    range_release(&lock, &a, &granted);
    CHECK(list_pop(&granted) == &b.ready && list_pop(&granted) == &c.ready && list_empty(&granted));
    CHECK(b.held && c.held && !d.held);
    range_release(&lock, &b, &granted);
    CHECK(list_pop(&granted) == &d.ready);
    range_release(&lock, &c, &granted);
    range_release(&lock, &d, &granted);
    CHECK(list_empty(&granted) && range_lock_empty(&lock));
}

static void test_range_shared_behind_a_waiting_exclusive_does_not_overtake_it(void)
{
    struct range_lock lock;
    struct range a, b, c;
    struct list_head granted;
    range_lock_init(&lock);
    list_init(&granted);
    range_init(&a, 0, 10, RANGE_SHARED, NULL);
    range_init(&b, 0, 10, RANGE_EXCLUSIVE, NULL);
    range_init(&c, 0, 10, RANGE_SHARED, NULL);
    CHECK(range_acquire(&lock, &a) && !range_acquire(&lock, &b) && !range_acquire(&lock, &c));
    range_release(&lock, &b, &granted); /* cancel the writer: the reader behind it may go */
    CHECK(list_pop(&granted) == &c.ready && c.held);
    range_release(&lock, &a, &granted);
    range_release(&lock, &c, &granted);
    CHECK(range_lock_empty(&lock));
}

static void test_range_touching_ends_do_not_overlap(void)
{
    struct range_lock lock;
    struct range a, b;
    range_lock_init(&lock);
    range_init(&a, 8, 16, RANGE_EXCLUSIVE, NULL);
    range_init(&b, 16, UINT64_MAX, RANGE_EXCLUSIVE, NULL);
    CHECK(range_acquire(&lock, &a) && range_acquire(&lock, &b));
    CHECK(!range_overlaps_any(&lock, 0, 8) && range_overlaps_any(&lock, 0, 9) && !range_overlaps_any(&lock, 9, 9));
}

static void test_range_lock_lets_a_passing_range_go_beside_yielding_ones_until_they_are_firm(void)
{
    struct range_lock lock;
    struct range own, next, first, second;
    struct list_head granted;
    range_lock_init(&lock);
    list_init(&granted);
    range_init(&own, 0, 100, RANGE_YIELDING, NULL);
    range_init(&first, 10, 20, RANGE_PASSING, NULL);
    range_init(&second, 30, 40, RANGE_PASSING, NULL);
    range_init(&next, 15, 35, RANGE_YIELDING, NULL);
    CHECK(range_acquire(&lock, &own) && range_acquire(&lock, &first));
    range_firm(&lock, &own);
    CHECK(!range_acquire(&lock, &second) && !range_acquire(&lock, &next));
    CHECK(second.blockers == 1 && next.blockers == 3);
    range_release(&lock, &own, &granted);
    CHECK(list_pop(&granted) == &second.ready && list_empty(&granted) && first.held);
    range_release(&lock, &second, &granted);
    CHECK(list_empty(&granted));
    range_release(&lock, &first, &granted);
    CHECK(list_pop(&granted) == &next.ready && list_empty(&granted));
    range_release(&lock, &next, &granted);
    CHECK(range_lock_empty(&lock));
}

static uint64_t tree_check(const struct range *node)
{
    if (node == NULL)
        return 0;
    uint64_t end = node->end;
    for (int side = 0; side < 2; side++) {
        const struct range *child = side ? node->right : node->left;
        if (child == NULL)
            continue;
        CHECK(child->parent == node && child->priority <= node->priority);
        CHECK(side ? child->begin >= node->begin : child->begin <= node->begin);
        if (child->subtree_end > end)
            end = child->subtree_end;
    }
    CHECK(end == node->subtree_end);
    return 1 + tree_check(node->left) + tree_check(node->right);
}

/* The lock's state must follow from the definition alone, computed over all pairs. */
static void model_check(const struct range_lock *lock, const struct range *pool)
{
    uint64_t inserted = 0, waiting = 0;
    for (int i = 0; i < POOL; i++) {
        uint32_t blockers = 0;
        if (!pool[i].inserted)
            continue;
        for (int j = 0; j < POOL; j++)
            if (pool[j].inserted && pool[j].ticket < pool[i].ticket && pool[j].begin < pool[i].end &&
                pool[i].begin < pool[j].end && (pool[i].mode != RANGE_SHARED || pool[j].mode != RANGE_SHARED) &&
                !(pool[i].mode == RANGE_PASSING && pool[i].ticket < pool[j].firm_from))
                blockers++;
        CHECK(pool[i].blockers == blockers && pool[i].held == (blockers == 0));
        inserted++;
        waiting += blockers != 0;
    }
    CHECK(lock->count == inserted && lock->waiting == waiting);
    CHECK(tree_check(lock->root) == inserted);
}

static void random_run(uint64_t seed, uint64_t space, uint64_t length_max, int steps)
{
    static struct range pool[POOL];
    struct range_lock lock;
    struct prng prng;
    prng_init(&prng, seed);
    range_lock_init(&lock);
    memset(pool, 0, sizeof pool);
    for (int step = 0; step < steps; step++) {
        struct range *range = &pool[prng_below(&prng, POOL)];
        if (!range->inserted) {
            uint64_t begin = prng_below(&prng, space);
            range_init(range, begin, begin + 1 + prng_below(&prng, length_max),
                       (enum range_mode)prng_below(&prng, RANGE_PASSING + 1), NULL);
            bool held = range_acquire(&lock, range);
            CHECK(held == range->held);
        } else if (range->mode == RANGE_YIELDING && range->firm_from == UINT64_MAX && prng_below(&prng, 2))
            range_firm(&lock, range);
        else {
            struct list_head granted;
            bool held_before[POOL];
            uint64_t last_ticket = 0;
            list_init(&granted);
            for (int i = 0; i < POOL; i++)
                held_before[i] = pool[i].inserted && pool[i].held;
            range_release(&lock, range, &granted);
            for (struct list_head *node = list_pop(&granted); node != NULL; node = list_pop(&granted)) {
                struct range *grant = container_of(node, struct range, ready);
                CHECK(grant->held && !held_before[grant - pool] && grant->ticket > last_ticket);
                last_ticket = grant->ticket;
                held_before[grant - pool] = true;
            }
            for (int i = 0; i < POOL; i++)
                CHECK(held_before[i] == (pool[i].inserted && pool[i].held) || &pool[i] == range);
        }
        if (step % 7 == 0)
            model_check(&lock, pool);
        uint64_t begin = prng_below(&prng, space), end = begin + prng_below(&prng, length_max);
        uint64_t expected = 0, found = 0;
        for (int i = 0; i < POOL; i++)
            expected += pool[i].inserted && begin < end && pool[i].begin < end && begin < pool[i].end;
        for (struct range *r = range_first_overlap(&lock, begin, end); r != NULL; r = range_next_overlap(r, begin, end))
            found++;
        CHECK(found == expected && range_overlaps_any(&lock, begin, end) == (expected > 0));
    }
}

static void test_range_lock_random_operations_agree_with_the_definition(void)
{
    for (uint64_t seed = 1; seed <= 4; seed++) {
        random_run(seed, 40, 8, 3000);
        random_run(seed + 100, 5000, 20, 3000);
        random_run(seed + 200, 1u << 20, 1u << 18, 3000);
    }
}

static void test_range_release_of_many_waiters_keeps_ticket_order_and_a_shallow_tree(void)
{
    enum { N = 20000 };
    static struct range many[N];
    struct range_lock lock;
    struct range all;
    struct list_head granted;
    range_lock_init(&lock);
    list_init(&granted);
    range_init(&all, 0, N, RANGE_EXCLUSIVE, NULL);
    CHECK(range_acquire(&lock, &all));
    for (int i = 0; i < N; i++) {
        uint64_t begin = ((uint64_t)i * 7919) % N;
        range_init(&many[i], begin, begin + 1, RANGE_EXCLUSIVE, NULL);
        CHECK(!range_acquire(&lock, &many[i]));
    }
    range_release(&lock, &all, &granted);
    for (int i = 0; i < N; i++)
        CHECK(list_pop(&granted) == &many[i].ready);
    CHECK(list_empty(&granted));
    unsigned depth_max = 0;
    for (int i = 0; i < N; i++) {
        unsigned depth = 0;
        for (const struct range *r = &many[i]; r->parent != NULL; r = r->parent)
            depth++;
        depth_max = depth > depth_max ? depth : depth_max;
    }
    CHECK(depth_max < 60);
}

int main(void)
{
    test_range_release_of_an_exclusive_range_grants_waiters_in_ticket_order();
    test_range_shared_behind_a_waiting_exclusive_does_not_overtake_it();
    test_range_touching_ends_do_not_overlap();
    test_range_lock_lets_a_passing_range_go_beside_yielding_ones_until_they_are_firm();
    test_range_lock_random_operations_agree_with_the_definition();
    test_range_release_of_many_waiters_keeps_ticket_order_and_a_shallow_tree();
    return 0;
}
