/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One 4 KiB transaction block of the on-disk activity log (DRBD v08 metadata).
 * Invariant: encoding a decoded update block written by DRBD gives the same bytes.
 */
#ifndef META_AL_DISK_H
#define META_AL_DISK_H

#include <stdint.h>

#include "base/limits.h"
#include "base/status.h"

#define AL_MAGIC 0x69cb65a2u
#define AL_EXTENT_NONE 0xffffffffu /* no extent in a slot */
#define AL_SLOT_NONE 0xffffu       /* unused update entry */

enum al_transaction_type {
    AL_TRANSACTION_UPDATE = 0,
    AL_TRANSACTION_INITIALIZED = 0xffff, /* an empty block; carries no arrays */
};

struct al_transaction {
    uint32_t tr_number;                                   /* running number, wraps */
    uint16_t type;                                        /* enum al_transaction_type */
    uint16_t n_updates;                                   /* valid entries of the two update arrays */
    uint16_t context_size;                                /* slots in force */
    uint16_t context_start;                               /* slot of context[0] */
    uint16_t update_slot[AL_UPDATES_PER_TRANSACTION];     /* which slot changes */
    uint32_t update_extent[AL_UPDATES_PER_TRANSACTION];   /* what it holds from now on */
    uint32_t context[AL_CONTEXT_PER_TRANSACTION];         /* window of the slot table before the updates */
};

/*
 * type must be AL_TRANSACTION_UPDATE and n_updates within bounds.  Update entries from n_updates on, and context
 * entries at or beyond context_size, are written as unused whatever they hold.
 */
void al_block_encode(uint8_t out[BLOCK_BYTES], const struct al_transaction *transaction);

/* The empty block that fills a fresh or replayed ring. */
void al_block_encode_initialized(uint8_t out[BLOCK_BYTES]);

/*
 * RE_ECORRUPT unless magic, checksum, type and n_updates are valid.  Slot numbers are as found: a replay ignores
 * those it cannot hold.  Unused entries, and all arrays of an initialized block, read as AL_SLOT_NONE and
 * AL_EXTENT_NONE.
 */
enum re_status al_block_decode(const uint8_t block[BLOCK_BYTES], struct al_transaction *transaction);

/* Block of the ring, counted from the activity log's first byte, that holds transaction tr_number. */
uint32_t al_ring_block(uint32_t tr_number, uint32_t stripes, uint32_t stripe_size_4k);

#endif
