/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ticketed range lock: shared or exclusive ranges are granted strictly in the order of their arrival wherever they
 * overlap in an incompatible way.
 * Invariants: a range is held exactly when no earlier inserted range both overlaps it and is incompatible with it;
 * blockers counts those earlier ranges; therefore held incompatible ranges never overlap, and nothing can starve.
 * The one exception is asked for: a passing range does not wait for yielding ones, and may be held beside them.
 * Nothing is allocated: the tree is made of the ranges themselves.
 */
#ifndef BASE_INTERVAL_H
#define BASE_INTERVAL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"

enum range_mode {
    RANGE_SHARED = 0,    /* compatible with other shared ranges */
    RANGE_EXCLUSIVE = 1, /* compatible with nothing */
    RANGE_YIELDING = 2,  /* the same, but passing ranges go before it until range_firm() */
    RANGE_PASSING = 3,   /* exclusive, but waits for no yielding range */
};

struct range {
    uint64_t begin;         /* first unit (byte or sector, the user's choice); set by the user */
    uint64_t end;           /* one past the last unit, > begin; set by the user */
    uint64_t ticket;        /* order of arrival; set by range_acquire */
    uint64_t priority;      /* heap key of the treap */
    uint64_t firm_from;     /* passing ranges with a lower ticket do not wait for it */
    uint64_t subtree_end;   /* largest end in this subtree */
    struct range *left;     /* ranges before (begin, ticket) */
    struct range *right;    /* ranges after (begin, ticket) */
    struct range *parent;   /* NULL at the root */
    struct list_head ready; /* link in a `granted` list; free for the user while held or not inserted */
    void *owner;            /* the user's */
    uint32_t blockers;      /* earlier overlapping incompatible ranges still inserted */
    uint8_t mode;           /* enum range_mode; set by the user */
    bool held;              /* granted */
    bool inserted;          /* known to the lock, held or waiting */
};

struct range_lock {
    struct range *root;   /* treap ordered by (begin, ticket), NULL when empty */
    uint64_t next_ticket; /* ticket of the next arrival */
    uint64_t count;       /* inserted ranges */
    uint64_t waiting;     /* inserted ranges that are not held */
};

void range_lock_init(struct range_lock *lock);

/* Prepare a range: not inserted, ready initialized. */
void range_init(struct range *range, uint64_t begin, uint64_t end, enum range_mode mode, void *owner);

/*
 * Insert; true when granted at once.  Otherwise the range waits and is reported later by some range_release.
 * begin, end, mode and owner must be set, and the range must not be inserted (range->inserted false).
 */
bool range_acquire(struct range_lock *lock, struct range *range);

/*
 * Remove a held or still waiting range (a waiting one is thereby canceled).  Ranges that become held are appended to
 * `granted` through range.ready in ticket order.  The caller of a release owns the list; a range that is on such a
 * list may be released again: range_release takes it off the list first.
 */
void range_release(struct range_lock *lock, struct range *range, struct list_head *granted);

/* From now on arriving passing ranges wait for it as well. */
static inline void range_firm(const struct range_lock *lock, struct range *range)
{
    range->firm_from = lock->next_ticket;
}

/* True when any inserted range, held or waiting, overlaps [begin, end). */
bool range_overlaps_any(const struct range_lock *lock, uint64_t begin, uint64_t end);

/* The inserted range lowest in (begin, ticket) order that overlaps [begin, end), or NULL. */
struct range *range_first_overlap(const struct range_lock *lock, uint64_t begin, uint64_t end);

/* The next one after `range` in (begin, ticket) order that overlaps [begin, end), or NULL. */
struct range *range_next_overlap(const struct range *range, uint64_t begin, uint64_t end);

static inline bool range_lock_empty(const struct range_lock *lock)
{
    return lock->root == NULL;
}

#endif
