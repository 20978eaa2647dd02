/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzing of activity log blocks: the first byte says whether magic and checksum are made good, then one block.
 *
 * Checked: a block is refused or read within its bounds; what was read and written again reads the same; the ring's
 * block of any number lies inside the ring.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/crc32c.h"
#include "meta/al_disk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void make_good(uint8_t *block)
{
    be32_put(block, AL_MAGIC);
    be32_put(block + 8, 0);
    be32_put(block + 8, crc32c_raw(0, block, BLOCK_BYTES));
}

static void check_ring(uint32_t number, uint32_t a, uint32_t b)
{
    uint32_t stripes = 1 + a % AL_STRIPES_MAX, size_4k = 1 + b % 4096;
    CHECK(al_ring_block(number, stripes, size_4k) < (uint64_t)stripes * size_4k);
    uint32_t in_turn = number % (stripes * size_4k), next = (in_turn + 1) % (stripes * size_4k);
    CHECK(in_turn == next ||
          al_ring_block(in_turn, stripes, size_4k) != al_ring_block(next, stripes, size_4k));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct al_transaction first, again;
    uint8_t block[BLOCK_BYTES] = {0}, out[BLOCK_BYTES];
    if (size < 1)
        return 0;
    memcpy(block, data + 1, size - 1 < sizeof block ? size - 1 : sizeof block);
    if (data[0] & 1)
        make_good(block);
    check_ring(be32_get(block), be32_get(block + 4), be32_get(block + 12));
    if (al_block_decode(block, &first) != RE_OK)
        return 0;
    CHECK(first.n_updates <= AL_UPDATES_PER_TRANSACTION);
    if (first.type == AL_TRANSACTION_INITIALIZED)
        al_block_encode_initialized(out);
    else
        al_block_encode(out, &first);
    CHECK(al_block_decode(out, &again) == RE_OK);
    CHECK(again.type == first.type && again.n_updates == first.n_updates);
    if (first.type == AL_TRANSACTION_INITIALIZED)
        return 0;
    CHECK(again.tr_number == first.tr_number && again.context_size == first.context_size &&
          again.context_start == first.context_start);
    CHECK(memcmp(again.update_slot, first.update_slot, sizeof first.update_slot) == 0 &&
          memcmp(again.update_extent, first.update_extent, sizeof first.update_extent) == 0);
    for (uint32_t i = 0; i < AL_CONTEXT_PER_TRANSACTION; i++)
        CHECK(again.context[i] ==
              (first.context_start + i < first.context_size ? first.context[i] : AL_EXTENT_NONE));
    return 0;
}
