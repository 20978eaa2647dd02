/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The activity log's set of hot 4 MiB extents: an LRU of slots, the pending changes, and the transactions that put
 * them on disk.
 * Invariants:
 * - al_begin_fast succeeds only for extents that the ring on disk already names;
 * - an extent that has references keeps its slot, and an extent leaving the set stops being active when that is
 *   planned;
 * - one transaction is in flight at most; at most 64 updates are planned, at most 64 are in flight;
 * - after al_create nothing is allocated.
 */
#ifndef META_ACTIVITY_LOG_H
#define META_ACTIVITY_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/status.h"

struct activity_log;

/* slots 1..AL_SLOTS_MAX (al-extents); NULL when out of memory or out of that range. */
struct activity_log *al_create(uint32_t slots);

void al_destroy(struct activity_log *al);

/*
 * Forget everything, references and a transaction in flight included, and number transactions from 0 again.
 * References taken before must not be put afterwards.
 */
void al_reset(struct activity_log *al);

/* True when the extent is in the set and on disk. */
bool al_contains_active(const struct activity_log *al, uint32_t extent);

/* The same for every extent of [first, last]. */
bool al_range_active(const struct activity_log *al, uint32_t first, uint32_t last);

/* References on the extent; 0 also when it is not in the set. */
uint32_t al_extent_refs(const struct activity_log *al, uint32_t extent);

/* When all of [first, last] is active: one reference on each and true.  Otherwise nothing happens. */
bool al_begin_fast(struct activity_log *al, uint32_t first, uint32_t last);

/*
 * Get [first, last] into the set.
 * RE_OK: every extent is active, in flight or planned, and has one more reference.  It may be used only once
 *   al_range_active holds; if that is not so now, it is after the al_commit_done of the transaction in flight, or
 *   after that of the next one - ask al_range_active after each: what is in flight already is not planned again.
 * RE_AGAIN: not enough slots are unreferenced; nothing taken.  (Slots that are planned or in flight do not count as
 *   free even when unreferenced: with al_has_planned or a transaction in flight, committing may help as well as
 *   al_put.)
 * RE_ENOSPC: the pending transaction has no room for so many updates; nothing taken; commit first.
 * RE_EINVAL: more extents than a transaction or the set can ever hold.
 */
enum re_status al_plan(struct activity_log *al, uint32_t first, uint32_t last);

/* True when al_commit_begin would have updates to write. */
bool al_has_planned(const struct activity_log *al);

/* True between al_commit_begin and al_commit_done. */
bool al_commit_in_flight(const struct activity_log *al);

/*
 * Build the block of the next transaction from all planned updates (there may be none: then it only carries its
 * context window).  tr_number receives its number, for al_ring_block.  Returns how many extents leave the set and
 * puts them in evicted[]; their changed bitmap pages must be stable before the block is written.  No transaction may
 * be in flight.
 */
uint32_t al_commit_begin(struct activity_log *al, uint8_t block[BLOCK_BYTES], uint32_t *tr_number,
                         uint32_t evicted[AL_UPDATES_PER_TRANSACTION]);

/* The block of the transaction in flight is stable: its extents are active now. */
void al_commit_done(struct activity_log *al);

/* Drop one reference on each extent of [first, last]; every one must have one. */
void al_put(struct activity_log *al, uint32_t first, uint32_t last);

uint32_t al_slots(const struct activity_log *al);

/* Sum of all references. */
uint64_t al_refs_total(const struct activity_log *al);

/* Extents that somebody refers to, and those that are planned or in flight. */
uint32_t al_referenced(const struct activity_log *al);

/* Slots that hold an extent, whether active, planned or in flight. */
uint32_t al_used(const struct activity_log *al);

/*
 * Iterate the active extents in slot order: start with *cursor = 0; false at the end.  The set must not change
 * meanwhile if all are to be seen.
 */
bool al_next_active(const struct activity_log *al, uint32_t *cursor, uint32_t *extent);

#endif
