/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The range lock's tree: a treap over (begin, ticket) whose nodes know the largest end below them.
 * Invariants: heap order on `priority`, a hash of the ticket, hence the shape depends only on the operations;
 * subtree_end is exact for every node whenever a public function returns.
 */
#include "base/interval.h"

#include "base/check.h"
#include "base/prng.h"

#include <stddef.h>

#define SORT_BINS 64 /* bin i holds 2^i entries, so this can never overflow */

void range_lock_init(struct range_lock *lock)
{
    lock->root = NULL;
    lock->next_ticket = 0;
    lock->count = 0;
    lock->waiting = 0;
}

void range_init(struct range *range, uint64_t begin, uint64_t end, enum range_mode mode, void *owner)
{
    *range = (struct range){.begin = begin, .end = end, .owner = owner, .mode = (uint8_t)mode};
    list_init(&range->ready);
}

static bool range_before(const struct range *a, const struct range *b)
{
    return a->begin != b->begin ? a->begin < b->begin : a->ticket < b->ticket;
}

static bool range_blocks(const struct range *earlier, const struct range *later)
{
    if (earlier->mode == RANGE_SHARED && later->mode == RANGE_SHARED)
        return false;
    return later->mode != RANGE_PASSING || later->ticket >= earlier->firm_from;
}

/* Recompute subtree_end from the children; false when it did not change. */
static bool node_update(struct range *node)
{
    uint64_t end = node->end;
    if (node->left != NULL && node->left->subtree_end > end)
        end = node->left->subtree_end;
    if (node->right != NULL && node->right->subtree_end > end)
        end = node->right->subtree_end;
    if (end == node->subtree_end)
        return false;
    node->subtree_end = end;
    return true;
}

static void node_replace_child(struct range_lock *lock, struct range *parent, const struct range *old,
                               struct range *child)
{
    if (parent == NULL)
        lock->root = child;
    else if (parent->left == old)
        parent->left = child;
    else
        parent->right = child;
    if (child != NULL)
        child->parent = parent;
}

/* Lift `child` above its parent, keeping the key order and both subtree_ends. */
static void node_rotate_up(struct range_lock *lock, struct range *child)
{
    struct range *parent = child->parent;
    struct range *moved;

    node_replace_child(lock, parent->parent, parent, child);
    if (parent->left == child) {
        moved = child->right;
        parent->left = moved;
        child->right = parent;
    } else {
        moved = child->left;
        parent->right = moved;
        child->left = parent;
    }
    if (moved != NULL)
        moved->parent = parent;
    parent->parent = child;
    (void)node_update(parent);
    (void)node_update(child);
}

static void tree_insert(struct range_lock *lock, struct range *range)
{
    struct range *parent = NULL;
    struct range **link = &lock->root;

    while (*link != NULL) {
        parent = *link;
        if (parent->subtree_end < range->end)
            parent->subtree_end = range->end;
        link = range_before(range, parent) ? &parent->left : &parent->right;
    }
    range->left = NULL;
    range->right = NULL;
    range->parent = parent;
    range->subtree_end = range->end;
    *link = range;
    while (range->parent != NULL && range->parent->priority < range->priority)
        node_rotate_up(lock, range);
}

static void tree_remove(struct range_lock *lock, struct range *range)
{
    while (range->left != NULL && range->right != NULL)
        node_rotate_up(lock, range->left->priority > range->right->priority ? range->left : range->right);

    struct range *parent = range->parent;
    node_replace_child(lock, parent, range, range->left != NULL ? range->left : range->right);
    /* Every ancestor may have had its end from here; above the first unchanged one nothing can differ. */
    while (parent != NULL && node_update(parent))
        parent = parent->parent;
    range->left = NULL;
    range->right = NULL;
    range->parent = NULL;
}

/*
 * First overlap inside a subtree.  When the left subtree holds an end beyond `begin` the answer is there or nowhere:
 * that range either begins before `end`, or it and everything after it does not.
 */
static struct range *subtree_first_overlap(struct range *node, uint64_t begin, uint64_t end)
{
    while (node != NULL && node->subtree_end > begin) {
        if (node->left != NULL && node->left->subtree_end > begin) {
            node = node->left;
            continue;
        }
        if (node->begin >= end)
            return NULL;
        if (node->end > begin)
            return node;
        node = node->right;
    }
    return NULL;
}

struct range *range_first_overlap(const struct range_lock *lock, uint64_t begin, uint64_t end)
{
    return begin < end ? subtree_first_overlap(lock->root, begin, end) : NULL;
}

struct range *range_next_overlap(const struct range *range, uint64_t begin, uint64_t end)
{
    /* As above: a right subtree reaching beyond `begin` decides for everything after it, too. */
    if (range->right != NULL && range->right->subtree_end > begin)
        return subtree_first_overlap(range->right, begin, end);
    while (range->parent != NULL) {
        struct range *parent = range->parent;
        bool was_left = parent->left == range;
        range = parent;
        if (!was_left)
            continue;
        if (parent->begin >= end)
            return NULL;
        if (parent->end > begin)
            return parent;
        if (parent->right != NULL && parent->right->subtree_end > begin)
            return subtree_first_overlap(parent->right, begin, end);
    }
    return NULL;
}

bool range_overlaps_any(const struct range_lock *lock, uint64_t begin, uint64_t end)
{
    return range_first_overlap(lock, begin, end) != NULL;
}

bool range_acquire(struct range_lock *lock, struct range *range)
{
    CHECK(!range->inserted);
    CHECK(range->begin < range->end);
    CHECK(range->mode <= RANGE_PASSING);

    range->ticket = lock->next_ticket++;
    range->priority = splitmix64_mix(range->ticket);
    range->firm_from = range->mode == RANGE_YIELDING ? UINT64_MAX : 0;
    range->blockers = 0;
    list_init(&range->ready);
    for (struct range *other = range_first_overlap(lock, range->begin, range->end); other != NULL;
         other = range_next_overlap(other, range->begin, range->end))
        if (range_blocks(other, range))
            range->blockers++;

    tree_insert(lock, range);
    range->inserted = true;
    range->held = range->blockers == 0;
    lock->count++;
    if (!range->held)
        lock->waiting++;
    return range->held;
}

static void list_merge_by_ticket(struct list_head *into, struct list_head *other)
{
    struct list_head merged;
    list_init(&merged);
    while (!list_empty(into) && !list_empty(other)) {
        const struct range *a = container_of(into->next, struct range, ready);
        const struct range *b = container_of(other->next, struct range, ready);
        list_add_tail(&merged, list_pop(a->ticket < b->ticket ? into : other));
    }
    list_splice_tail(&merged, into);
    list_splice_tail(&merged, other);
    list_splice_tail(into, &merged);
}

/* Bottom-up merge sort. */
static void list_sort_by_ticket(struct list_head *list)
{
    if (list_empty(list) || list->next == list->prev)
        return;
    struct list_head bins[SORT_BINS];
    for (size_t i = 0; i < SORT_BINS; i++)
        list_init(&bins[i]);
    while (!list_empty(list)) {
        struct list_head carry;
        size_t i = 0;
        list_init(&carry);
        list_add(&carry, list_pop(list));
        for (; !list_empty(&bins[i]); i++)
            list_merge_by_ticket(&carry, &bins[i]);
        list_splice_tail(&bins[i], &carry);
    }
    for (size_t i = 0; i < SORT_BINS; i++)
        list_merge_by_ticket(list, &bins[i]);
}

void range_release(struct range_lock *lock, struct range *range, struct list_head *granted)
{
    struct list_head fresh;

    CHECK(range->inserted);
    list_init(&fresh);
    list_del(&range->ready);
    tree_remove(lock, range);
    range->inserted = false;
    lock->count--;
    if (!range->held)
        lock->waiting--;
    range->held = false;
    range->blockers = 0;
    if (lock->waiting == 0)
        return;

    for (struct range *other = range_first_overlap(lock, range->begin, range->end); other != NULL;
         other = range_next_overlap(other, range->begin, range->end)) {
        if (other->ticket < range->ticket || !range_blocks(range, other))
            continue;
        CHECK(other->blockers > 0 && !other->held);
        if (--other->blockers > 0)
            continue;
        other->held = true;
        lock->waiting--;
        list_add_tail(&fresh, &other->ready);
    }
    list_sort_by_ticket(&fresh);
    list_splice_tail(granted, &fresh);
}
