/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzing of the run-length code of bitmaps: two bytes choose the size, two the position, the rest is a packet's body.
 *
 * Checked: a refused body changes nothing, a good one sets only bits in front of the position it ends at, the counters
 * stay exact, and encoding the result and decoding that again gives the same bits.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "resync/vli.h"

enum { BODY_MAX = 4080 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t count_set(const struct bitmap *bm)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < bm->pages * BITMAP_PAGE_WORDS; i++)
        count += (uint64_t)__builtin_popcountll(bm->data[i]);
    return count;
}

static bool same(const struct bitmap *a, const struct bitmap *b)
{
    return a->count == b->count && memcmp(a->data, b->data, a->pages * BITMAP_PAGE_BYTES) == 0;
}

static struct bitmap *make(uint64_t bits)
{
    struct bitmap *bm = bitmap_create(bits);
    CHECK(bm);
    return bm;
}

/* The bitmap over the wire as bitmap_exchange.c sends it, into an empty one. */
static void check_exchange(const struct bitmap *bm)
{
    struct bitmap *other = make(bm->bits);
    uint64_t from = 0, to = 0, packets = 0;
    while (from < bm->bits) {
        uint8_t body[BODY_MAX];
        uint64_t before = from, newly;
        size_t bytes = vli_encode(bm, &from, body, sizeof body);
        CHECK(++packets <= bm->bits + 1);
        if (bytes) {
            CHECK(bytes <= sizeof body && from > before);
            CHECK(vli_decode(body, bytes, other, &to, &newly) == RE_OK && to == from);
            continue;
        }
        CHECK(from == before);
        uint64_t word = from / 64, words = u64_min(bm->words - word, sizeof body / 8);
        bitmap_read_words(bm, word, body, words);
        bitmap_merge_words(other, word, body, words);
        from = to = u64_min((word + words) * 64, bm->bits);
    }
    CHECK(same(bm, other));
    bitmap_destroy(other);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 5)
        return 0;
    uint64_t bits = 1 + be16_get(data) * (uint64_t)(data[4] & 15 ? 1 : 9);
    uint64_t pos = be16_get(data + 2) % (bits + 1), start = pos, newly = 0;
    struct bitmap *bm = make(bits), *before = make(bits);
    if (data[4] & 0x10) {
        bitmap_set_range(bm, 0, bits / 2);
        bitmap_set_range(before, 0, bits / 2);
    }
    enum re_status status = vli_decode(data + 5, size - 5, bm, &pos, &newly);
    CHECK(count_set(bm) == bm->count && bm->count == before->count + newly);
    if (status == RE_OK) {
        CHECK(pos > start && pos <= bits);
        CHECK(start == 0 || bitmap_count_in(bm, 0, start - 1) == bitmap_count_in(before, 0, start - 1));
        CHECK(pos == bits || bitmap_count_in(bm, pos, bits - 1) == bitmap_count_in(before, pos, bits - 1));
    } else
        CHECK(pos == start && newly == 0 && same(bm, before));
    check_exchange(bm);
    bitmap_destroy(bm);
    bitmap_destroy(before);
    return 0;
}
