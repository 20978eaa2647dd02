/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Activity log block codec.
 * Invariant: the checksum is CRC-32C with initial value 0 and no inversion over the block with the crc field as zero.
 */
#include "meta/al_disk.h"

#include "base/bytes.h"
#include "base/check.h"
#include "base/crc32c.h"

#include <string.h>

enum { /* byte offsets */
    AL_OFFSET_MAGIC = 0,
    AL_OFFSET_TR_NUMBER = 4,
    AL_OFFSET_CRC = 8,
    AL_OFFSET_TYPE = 12,
    AL_OFFSET_N_UPDATES = 14,
    AL_OFFSET_CONTEXT_SIZE = 16,
    AL_OFFSET_CONTEXT_START = 18,
    AL_OFFSET_UPDATE_SLOT = 36,
    AL_OFFSET_UPDATE_EXTENT = 164,
    AL_OFFSET_CONTEXT = 420,
};

_Static_assert(AL_OFFSET_CONTEXT + 4 * AL_CONTEXT_PER_TRANSACTION == BLOCK_BYTES, "the context fills the block");

static uint32_t block_crc(const uint8_t block[BLOCK_BYTES])
{
    static const uint8_t zero[4];
    uint32_t crc = crc32c_raw(0, block, AL_OFFSET_CRC);
    crc = crc32c_raw(crc, zero, sizeof zero);
    return crc32c_raw(crc, block + AL_OFFSET_CRC + 4, BLOCK_BYTES - AL_OFFSET_CRC - 4);
}

void al_block_encode(uint8_t out[BLOCK_BYTES], const struct al_transaction *transaction)
{
    CHECK(transaction->type == AL_TRANSACTION_UPDATE);
    CHECK(transaction->n_updates <= AL_UPDATES_PER_TRANSACTION);

    memset(out, 0, AL_OFFSET_UPDATE_SLOT);
    memset(out + AL_OFFSET_UPDATE_SLOT, 0xff, BLOCK_BYTES - AL_OFFSET_UPDATE_SLOT);
    be32_put(out + AL_OFFSET_MAGIC, AL_MAGIC);
    be32_put(out + AL_OFFSET_TR_NUMBER, transaction->tr_number);
    be16_put(out + AL_OFFSET_TYPE, transaction->type);
    be16_put(out + AL_OFFSET_N_UPDATES, transaction->n_updates);
    be16_put(out + AL_OFFSET_CONTEXT_SIZE, transaction->context_size);
    be16_put(out + AL_OFFSET_CONTEXT_START, transaction->context_start);
    for (uint32_t i = 0; i < transaction->n_updates; i++) {
        be16_put(out + AL_OFFSET_UPDATE_SLOT + 2 * i, transaction->update_slot[i]);
        be32_put(out + AL_OFFSET_UPDATE_EXTENT + 4 * i, transaction->update_extent[i]);
    }
    for (uint32_t i = 0; i < AL_CONTEXT_PER_TRANSACTION; i++) {
        if (transaction->context_start + i >= transaction->context_size)
            break;
        be32_put(out + AL_OFFSET_CONTEXT + 4 * i, transaction->context[i]);
    }
    be32_put(out + AL_OFFSET_CRC, block_crc(out));
}

void al_block_encode_initialized(uint8_t out[BLOCK_BYTES])
{
    memset(out, 0, BLOCK_BYTES);
    be32_put(out + AL_OFFSET_MAGIC, AL_MAGIC);
    be16_put(out + AL_OFFSET_TYPE, AL_TRANSACTION_INITIALIZED);
    be32_put(out + AL_OFFSET_CRC, block_crc(out));
}

enum re_status al_block_decode(const uint8_t block[BLOCK_BYTES], struct al_transaction *transaction)
{
    if (be32_get(block + AL_OFFSET_MAGIC) != AL_MAGIC || be32_get(block + AL_OFFSET_CRC) != block_crc(block))
        return RE_ECORRUPT;

    uint16_t type = be16_get(block + AL_OFFSET_TYPE);
    uint16_t n_updates = be16_get(block + AL_OFFSET_N_UPDATES);
    if (type != AL_TRANSACTION_UPDATE && type != AL_TRANSACTION_INITIALIZED)
        return RE_ECORRUPT;
    if (type == AL_TRANSACTION_UPDATE && n_updates > AL_UPDATES_PER_TRANSACTION)
        return RE_ECORRUPT;

    memset(transaction, 0xff, sizeof *transaction);
    transaction->tr_number = be32_get(block + AL_OFFSET_TR_NUMBER);
    transaction->type = type;
    transaction->n_updates = 0;
    transaction->context_size = 0;
    transaction->context_start = 0;
    if (type == AL_TRANSACTION_INITIALIZED)
        return RE_OK;

    transaction->n_updates = n_updates;
    transaction->context_size = be16_get(block + AL_OFFSET_CONTEXT_SIZE);
    transaction->context_start = be16_get(block + AL_OFFSET_CONTEXT_START);
    for (uint32_t i = 0; i < n_updates; i++) {
        transaction->update_slot[i] = be16_get(block + AL_OFFSET_UPDATE_SLOT + 2 * i);
        transaction->update_extent[i] = be32_get(block + AL_OFFSET_UPDATE_EXTENT + 4 * i);
    }
    for (uint32_t i = 0; i < AL_CONTEXT_PER_TRANSACTION; i++)
        transaction->context[i] = be32_get(block + AL_OFFSET_CONTEXT + 4 * i);
    return RE_OK;
}

uint32_t al_ring_block(uint32_t tr_number, uint32_t stripes, uint32_t stripe_size_4k)
{
    uint64_t blocks = (uint64_t)stripes * stripe_size_4k;
    CHECK(blocks > 0 && blocks <= AL_RING_BLOCKS_MAX);
    uint32_t t = (uint32_t)(tr_number % blocks);
    return (t % stripes) * stripe_size_4k + t / stripes;
}
