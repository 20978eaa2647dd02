/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A second, naive reading of the activity log ring for tests: what a crashed Primary marks dirty.
 * Invariant: shares only the block decoder with the code under test.
 */
#ifndef META_TEST_AL_REPLAY_H
#define META_TEST_AL_REPLAY_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/check.h"
#include "meta/al_disk.h"

#define REPLAY_BLOCKS_MAX 512 /* largest ring of a test */

struct replay {
    uint32_t table[AL_SLOTS_MAX]; /* slot -> extent after the newest valid transaction */
    uint32_t n_updates_blocks;    /* valid update blocks found */
};

/* Blocks may stand in any order; fails the test when none is valid. */
static inline void replay_ring(struct replay *replay, const uint8_t *ring, uint32_t blocks)
{
    static struct al_transaction tr[REPLAY_BLOCKS_MAX];
    uint32_t order[REPLAY_BLOCKS_MAX];
    uint32_t n = 0, valid = 0;
    CHECK(blocks <= REPLAY_BLOCKS_MAX);
    for (uint32_t i = 0; i < blocks; i++) {
        if (al_block_decode(ring + (size_t)i * BLOCK_BYTES, &tr[n]) != RE_OK)
            continue;
        valid++;
        if (tr[n].type != AL_TRANSACTION_UPDATE)
            continue;
        uint32_t at = n;
        while (at > 0 && (int32_t)(tr[n].tr_number - tr[order[at - 1]].tr_number) < 0) {
            order[at] = order[at - 1];
            at--;
        }
        order[at] = n++;
    }
    CHECK(valid > 0);
    memset(replay->table, 0xff, sizeof replay->table);
    replay->n_updates_blocks = n;
    for (uint32_t i = 0; i < n; i++) {
        const struct al_transaction *t = &tr[order[i]];
        for (uint32_t k = 0; k < AL_CONTEXT_PER_TRANSACTION; k++) {
            uint32_t slot = t->context_start + k;
            if (slot < AL_SLOTS_MAX && (slot < t->context_size || t->context[k] != AL_EXTENT_NONE))
                replay->table[slot] = t->context[k];
        }
        for (uint32_t k = 0; k < t->n_updates; k++)
            if (t->update_slot[k] < AL_SLOTS_MAX)
                replay->table[t->update_slot[k]] = t->update_extent[k];
    }
}

static inline bool replay_covers(const struct replay *replay, uint32_t extent)
{
    for (uint32_t i = 0; i < AL_SLOTS_MAX; i++)
        if (replay->table[i] == extent)
            return true;
    return false;
}

static inline uint32_t replay_count(const struct replay *replay)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < AL_SLOTS_MAX; i++)
        count += replay->table[i] != AL_EXTENT_NONE;
    return count;
}

#endif
