/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the activity log block codec against rings found on real devices. */
#include "base/bytes.h"
#include "base/crc32c.h"
#include "meta/al_disk.h"
#include "meta/test_al_replay.h"
#include "meta/test_al_vectors.h"

#define RING_BYTES_MAX (16u * BLOCK_BYTES)

static uint8_t ring[RING_BYTES_MAX];
static struct replay replay;

static uint8_t hex_digit(char c)
{
    return (uint8_t)(c <= '9' ? c - '0' : c - 'a' + 10);
}

static void ring_load(const struct ring_row *rows, size_t n_rows)
{
    memset(ring, 0, sizeof ring);
    for (size_t i = 0; i < n_rows; i++)
        for (uint32_t k = 0; k < rows[i].repeat * 16; k++) {
            const char *pair = rows[i].hex + 2 * (k % 16);
            CHECK(rows[i].offset + k < sizeof ring);
            ring[rows[i].offset + k] = (uint8_t)(hex_digit(pair[0]) << 4 | hex_digit(pair[1]));
        }
}

#define RING_LOAD(rows) ring_load(rows, sizeof(rows) / sizeof(rows)[0])

/* Every block decodes, encodes to the same bytes, and stands where its number says; returns the update blocks. */
static uint32_t ring_roundtrip(uint32_t stripes, uint32_t stripe_size_4k)
{
    static struct al_transaction tr;
    uint8_t again[BLOCK_BYTES];
    uint32_t updates = 0;
    for (uint32_t i = 0; i < stripes * stripe_size_4k; i++) {
        const uint8_t *block = ring + (size_t)i * BLOCK_BYTES;
        CHECK(al_block_decode(block, &tr) == RE_OK);
        if (tr.type == AL_TRANSACTION_INITIALIZED) {
            al_block_encode_initialized(again);
        } else {
            al_block_encode(again, &tr);
            CHECK(al_ring_block(tr.tr_number, stripes, stripe_size_4k) == i);
            updates++;
        }
        CHECK(memcmp(again, block, BLOCK_BYTES) == 0);
    }
    return updates;
}

static void test_al_block_of_a_real_crashed_primary_encodes_byte_identically(void)
{
    RING_LOAD(ring_crash_primary);
    CHECK(ring_roundtrip(1, RING_CRASH_PRIMARY_BLOCKS) == 8);
}

static void test_al_block_of_a_real_striped_ring_encodes_byte_identically(void)
{
    RING_LOAD(ring_crash_striped);
    CHECK(RING_CRASH_STRIPED_BLOCKS == 12);
    CHECK(ring_roundtrip(3, 4) == 12);
}

static void test_al_block_of_two_context_windows_encodes_byte_identically(void)
{
    RING_LOAD(ring_handmade_wrap);
    CHECK(ring_roundtrip(1, RING_HANDMADE_WRAP_BLOCKS) == 3);
}

static void expect_extents(uint32_t first, uint32_t last, uint32_t blocks)
{
    replay_ring(&replay, ring, blocks);
    CHECK(replay_count(&replay) == last - first + 1);
    for (uint32_t extent = first; extent <= last; extent++)
        CHECK(replay_covers(&replay, extent));
}

static void test_al_replay_of_real_rings_gives_the_extents_that_apply_al_marked(void)
{
    RING_LOAD(ring_crash_primary);
    expect_extents(24, 90, 8);
    RING_LOAD(ring_crash_striped);
    expect_extents(13, 79, 12);
    RING_LOAD(ring_handmade_wrap);
    replay_ring(&replay, ring, 8);
    CHECK(replay_count(&replay) == 4);
    CHECK(replay_covers(&replay, 5) && replay_covers(&replay, 9) && replay_covers(&replay, 10));
    CHECK(replay_covers(&replay, 15));
}

static void test_al_replay_of_a_torn_newest_block_gives_the_set_before_it(void)
{
    RING_LOAD(ring_crash_primary);
    ring[al_ring_block(93, 1, 8) * BLOCK_BYTES + 100] ^= 1;
    expect_extents(23, 89, 8);
    RING_LOAD(ring_crash_primary);
    ring[al_ring_block(92, 1, 8) * BLOCK_BYTES + 4000] ^= 0x80;
    expect_extents(24, 90, 8);
}

static void test_al_block_with_any_flipped_bit_is_corrupt(void)
{
    static struct al_transaction tr;
    RING_LOAD(ring_crash_primary);
    for (uint32_t bit = 0; bit < BLOCK_BYTES * 8; bit++) {
        ring[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK(al_block_decode(ring, &tr) == RE_ECORRUPT);
        ring[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    CHECK(al_block_decode(ring, &tr) == RE_OK);
}

static void resign(uint8_t *block)
{
    be32_put(block + 8, 0);
    be32_put(block + 8, crc32c_raw(0, block, BLOCK_BYTES));
}

static void test_al_block_with_valid_checksum_and_impossible_fields_is_corrupt(void)
{
    static struct al_transaction tr;
    RING_LOAD(ring_crash_primary);
    be16_put(ring + 14, 64);
    resign(ring);
    CHECK(al_block_decode(ring, &tr) == RE_OK && tr.n_updates == 64);
    be16_put(ring + 14, 65);
    resign(ring);
    CHECK(al_block_decode(ring, &tr) == RE_ECORRUPT);
    be16_put(ring + 14, 0);
    be16_put(ring + 12, 1);
    resign(ring);
    CHECK(al_block_decode(ring, &tr) == RE_ECORRUPT);
}

static void test_al_block_initialized_has_the_known_checksum_and_no_arrays(void)
{
    static struct al_transaction tr;
    uint8_t block[BLOCK_BYTES];
    al_block_encode_initialized(block);
    CHECK(be32_get(block + 8) == 0x709cc651u);
    CHECK(al_block_decode(block, &tr) == RE_OK && tr.type == AL_TRANSACTION_INITIALIZED && tr.n_updates == 0);
    CHECK(tr.context[0] == AL_EXTENT_NONE && tr.update_slot[0] == AL_SLOT_NONE);
    be32_put(block + 8, 0);
    CHECK(crc32c(block, BLOCK_BYTES) == 0xe86587d8u);
}

static void test_al_ring_block_of_three_stripes_matches_the_real_ring(void)
{
    CHECK(al_ring_block(91, 3, 4) == 6);
    CHECK(al_ring_block(0xffffffffu, 1, 8) == 7);
    bool seen[12] = {false};
    for (uint32_t tr = 100; tr < 112; tr++) {
        uint32_t block = al_ring_block(tr, 3, 4);
        CHECK(block < 12 && !seen[block]);
        seen[block] = true;
    }
}

int main(void)
{
    test_al_block_of_a_real_crashed_primary_encodes_byte_identically();
    test_al_block_of_a_real_striped_ring_encodes_byte_identically();
    test_al_block_of_two_context_windows_encodes_byte_identically();
    test_al_replay_of_real_rings_gives_the_extents_that_apply_al_marked();
    test_al_replay_of_a_torn_newest_block_gives_the_set_before_it();
    test_al_block_with_any_flipped_bit_is_corrupt();
    test_al_block_with_valid_checksum_and_impossible_fields_is_corrupt();
    test_al_block_initialized_has_the_known_checksum_and_no_arrays();
    test_al_ring_block_of_three_stripes_matches_the_real_ring();
    return 0;
}
