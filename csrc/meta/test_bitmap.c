/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the dirty bitmap: fixed situations, and random operations compared with an array of bools. */
#include "base/bytes.h"
#include "base/check.h"
#include "base/prng.h"
#include "meta/bitmap.h"

#include <string.h>

static void test_bitmap_set_and_clear_count_only_changes(void)
{
    struct bitmap *bm = bitmap_create(100000);
    CHECK(bm->words == 1563 && bm->pages == 4);
    CHECK(bitmap_set_range(bm, 10, 12) == 3 && bitmap_set_range(bm, 12, 13) == 1 && bm->count == 4);
    CHECK(bitmap_set_range(bm, 0, 99999) == 99996 && bm->count == 100000);
    CHECK(bitmap_next_clear(bm, 0) == BITMAP_NONE && bitmap_next_set(bm, 99999) == 99999);
    CHECK(bitmap_next_set(bm, 100000) == BITMAP_NONE);
    CHECK(bitmap_clear_range(bm, 32767, 32768) == 2 && bitmap_clear_range(bm, 32768, 32768) == 0);
    CHECK(bitmap_next_clear(bm, 5) == 32767 && bitmap_next_clear(bm, 32769) == BITMAP_NONE);
    CHECK(bitmap_count_in(bm, 32760, 32770) == 9);
    bitmap_clear_all(bm);
    CHECK(bm->count == 0 && bitmap_next_set(bm, 0) == BITMAP_NONE && !bitmap_any_in(bm, 0, 99999));
    bitmap_destroy(bm);
}

static void test_bitmap_create_outside_the_supported_sizes_fails(void)
{
    CHECK(bitmap_create(0) == NULL && bitmap_create(BITMAP_BITS_MAX + 1) == NULL);
    const uint64_t bits = (UINT64_C(16) << 40) / BLOCK_BYTES;
    struct bitmap *bm = bitmap_create(bits);
    CHECK(bm != NULL && bm->pages == 131072);
    CHECK(bitmap_set_range(bm, bits - 1, bits - 1) == 1);
    CHECK(bitmap_next_set(bm, 0) == bits - 1);
    bitmap_destroy(bm);
}

static void test_bitmap_page_is_the_little_endian_disk_form_with_a_zero_tail(void)
{
    struct bitmap *bm = bitmap_create(BITMAP_PAGE_BITS + 10);
    (void)bitmap_set_range(bm, 0, 0);
    (void)bitmap_set_range(bm, 127, 135);
    CHECK(bitmap_page(bm, 0)[0] == 0x01 && bitmap_page(bm, 0)[15] == 0x80 && bitmap_page(bm, 0)[16] == 0xff);
    bitmap_set_all(bm);
    CHECK(bitmap_page(bm, 1)[0] == 0xff && bitmap_page(bm, 1)[1] == 0x03);
    for (uint32_t i = 2; i < BITMAP_PAGE_BYTES; i++)
        CHECK(bitmap_page(bm, 1)[i] == 0);
    bitmap_destroy(bm);
}

static void test_bitmap_bytes_round_outward_when_set_and_inward_when_cleared(void)
{
    uint64_t device = 10 * 4096 + 512;
    struct bitmap *bm = bitmap_create(11);
    CHECK(bitmap_set_bytes(bm, 4095, 2) == 2 && bitmap_test(bm, 0) && bitmap_test(bm, 1));
    CHECK(bitmap_set_bytes(bm, 4096, 0) == 0 && bitmap_set_bytes(bm, 10 * 4096 + 511, 1) == 1);
    bitmap_set_all(bm);
    CHECK(bitmap_clear_bytes(bm, 1, 8191, device) == 1 && !bitmap_test(bm, 1) && bitmap_test(bm, 0));
    CHECK(bitmap_clear_bytes(bm, 4096 * 3 + 1, 4096, device) == 0);
    CHECK(bitmap_clear_bytes(bm, 4096 * 3 + 1, 4094, device) == 0);
    CHECK(bitmap_clear_bytes(bm, 4096 * 9, 4096 + 511, device) == 1 && bitmap_test(bm, 10));
    CHECK(bitmap_clear_bytes(bm, 4096 * 10 + 1, 511, device) == 0 && bitmap_test(bm, 10));
    CHECK(bitmap_clear_bytes(bm, 4096 * 10, 512, device) == 1 && !bitmap_test(bm, 10));
    CHECK(bitmap_clear_bytes(bm, 0, device, device) == 8 && bm->count == 0);
    bitmap_destroy(bm);
}

static void test_bitmap_page_set_while_its_write_is_in_flight_is_changed_afterwards(void)
{
    struct bitmap *bm = bitmap_create(10 * (uint64_t)BITMAP_PAGE_BITS);
    CHECK(bitmap_next_changed_page(bm, 0) == BITMAP_NONE);
    (void)bitmap_set_range(bm, 3 * BITMAP_PAGE_BITS, 3 * BITMAP_PAGE_BITS);
    CHECK(bitmap_next_changed_page(bm, 0) == 3 && bm->changed_count == 1);
    bitmap_page_mark_written(bm, 3);
    (void)bitmap_set_range(bm, 3 * BITMAP_PAGE_BITS, 3 * BITMAP_PAGE_BITS);
    CHECK(!bitmap_page_changed(bm, 3)); /* nothing new */
    (void)bitmap_set_range(bm, 3 * BITMAP_PAGE_BITS, 3 * BITMAP_PAGE_BITS + 1);
    CHECK(bitmap_page_changed(bm, 3) && bm->changed_count == 1);
    bitmap_page_mark_written(bm, 3);
    (void)bitmap_clear_range(bm, 0, bm->bits - 1);
    CHECK(bitmap_next_changed_page(bm, 0) == 3 && bitmap_next_changed_page(bm, 4) == BITMAP_NONE);
    CHECK(bm->changed_count == 1);
    bitmap_set_all(bm);
    CHECK(bm->changed_count == 10 && bitmap_next_changed_page(bm, 9) == 9);
    CHECK(bitmap_next_changed_page(bm, 10) == BITMAP_NONE);
    bitmap_destroy(bm);
}

static void test_bitmap_load_page_masks_the_tail_and_keeps_newer_bits(void)
{
    uint8_t page[BITMAP_PAGE_BYTES];
    struct bitmap *bm = bitmap_create(4088);
    memset(page, 0xff, sizeof page);
    bitmap_load_page(bm, 0, page); /* as after apply-al: bits beyond the end are set */
    CHECK(bm->count == 4088 && !bitmap_page_changed(bm, 0) && bitmap_page(bm, 0)[511] == 0 && page[511] == 0xff);
    memset(page, 0, sizeof page);
    page[0] = 1;
    bitmap_destroy(bm);
    bm = bitmap_create(4088);
    (void)bitmap_set_range(bm, 7, 7);
    bitmap_load_page(bm, 0, page);
    CHECK(bm->count == 2 && bitmap_test(bm, 0) && bitmap_test(bm, 7) && bitmap_page_changed(bm, 0));
    page[0] = 0x81;
    bitmap_load_page(bm, 0, page);
    CHECK(bm->count == 2 && !bitmap_page_changed(bm, 0));
    bitmap_destroy(bm);
}

static void test_bitmap_merge_words_is_a_union_without_the_tail(void)
{
    uint8_t words[16 * 8], out[16 * 8];
    struct bitmap *bm = bitmap_create(1014);
    memset(words, 0xff, sizeof words);
    (void)bitmap_set_range(bm, 100, 109);
    CHECK(bitmap_merge_words(bm, 1, words, 1) == 54 && bm->count == 64);
    CHECK(bitmap_merge_words(bm, 0, words, 16) == 1014 - 64 && bm->count == 1014 && bitmap_page_changed(bm, 0));
    bitmap_page_mark_written(bm, 0);
    CHECK(bitmap_merge_words(bm, 0, words, 16) == 0 && !bitmap_page_changed(bm, 0));
    CHECK(bitmap_merge_words(bm, 16, words, 0) == 0);
    bitmap_read_words(bm, 0, out, 16);
    CHECK(memcmp(out, words, 126) == 0 && out[126] == 0x3f && out[127] == 0);
    bitmap_destroy(bm);
}

static void test_bitmap_resize_moves_bit_n_to_bit_n_and_marks_every_page_changed(void)
{
    struct bitmap *bm = bitmap_create(1000);
    (void)bitmap_set_range(bm, 5, 5);
    (void)bitmap_set_range(bm, 999, 999);
    bitmap_page_mark_written(bm, 0);
    CHECK(bitmap_resize(bm, 70000, true) == RE_OK);
    CHECK(bm->count == 2 + 69000 && bitmap_next_clear(bm, 5) == 6 && bitmap_next_clear(bm, 999) == BITMAP_NONE);
    CHECK(bm->changed_count == 3 && bm->pages == 3);
    CHECK(bitmap_resize(bm, 6, false) == RE_OK && bm->count == 1 && bitmap_test(bm, 5) && bm->changed_count == 1);
    CHECK(bitmap_resize(bm, 40000, false) == RE_OK && bm->count == 1 && bm->changed_count == 2);
    CHECK(bitmap_resize(bm, 0, false) == RE_EINVAL && bm->bits == 40000);
    bitmap_destroy(bm);
}

static void random_run(uint64_t seed, uint64_t bits, int steps)
{
    static bool model[200000];
    static bool changed[8];
    struct prng prng;
    struct bitmap *bm = bitmap_create(bits);
    prng_init(&prng, seed);
    memset(model, 0, sizeof model);
    memset(changed, 0, sizeof changed);
    for (int step = 0; step < steps; step++) {
        uint64_t first = prng_below(&prng, bits);
        uint64_t span = prng_below(&prng, 3) ? 200 : bits;
        uint64_t last = u64_min(bits - 1, first + prng_below(&prng, span));
        bool set = prng_below(&prng, 2) != 0;
        uint64_t expected = 0, inside = 0;
        for (uint64_t i = first; i <= last; i++)
            inside += model[i];
        CHECK(bitmap_count_in(bm, first, last) == inside && bitmap_any_in(bm, first, last) == (inside > 0));
        uint64_t next_set = first, next_clear = first;
        while (next_set < bits && !model[next_set])
            next_set++;
        while (next_clear < bits && model[next_clear])
            next_clear++;
        CHECK(bitmap_next_set(bm, first) == (next_set < bits ? next_set : BITMAP_NONE));
        CHECK(bitmap_next_clear(bm, first) == (next_clear < bits ? next_clear : BITMAP_NONE));
        for (uint64_t i = first; i <= last; i++) {
            if (model[i] != set) {
                expected++;
                changed[i / BITMAP_PAGE_BITS] = true;
            }
            model[i] = set;
        }
        CHECK((set ? bitmap_set_range(bm, first, last) : bitmap_clear_range(bm, first, last)) == expected);
        uint64_t page = prng_below(&prng, bm->pages);
        if (step % 3 == 0) {
            bitmap_page_mark_written(bm, page);
            changed[page] = false;
        }
        uint64_t total = 0, changed_total = 0;
        for (uint64_t i = 0; i < bits; i++)
            total += model[i];
        for (uint64_t i = 0; i < bm->pages; i++) {
            CHECK(bitmap_page_changed(bm, i) == changed[i]);
            changed_total += changed[i];
        }
        CHECK(bm->count == total && bm->changed_count == changed_total);
        CHECK(bitmap_test(bm, first) == model[first]);
        uint64_t next = page;
        while (next < bm->pages && !changed[next])
            next++;
        CHECK(bitmap_next_changed_page(bm, page) == (next < bm->pages ? next : BITMAP_NONE));
    }
    for (uint64_t i = 0; i < bm->pages * BITMAP_PAGE_BITS; i++) {
        bool on_disk = (bitmap_page(bm, i / BITMAP_PAGE_BITS)[i % BITMAP_PAGE_BITS / 8] >> (i % 8)) & 1;
        CHECK(on_disk == (i < bits && model[i]));
    }
    bitmap_destroy(bm);
}

static void test_bitmap_random_operations_agree_with_an_array_of_bools(void)
{
    static const uint64_t sizes[] = {1, 63, 64, 65, 1014, 32767, 32768, 32769, 131072, 199999};
    for (uint64_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        random_run(i, sizes[i], 400);
}

int main(void)
{
    test_bitmap_set_and_clear_count_only_changes();
    test_bitmap_create_outside_the_supported_sizes_fails();
    test_bitmap_page_is_the_little_endian_disk_form_with_a_zero_tail();
    test_bitmap_bytes_round_outward_when_set_and_inward_when_cleared();
    test_bitmap_page_set_while_its_write_is_in_flight_is_changed_afterwards();
    test_bitmap_load_page_masks_the_tail_and_keeps_newer_bits();
    test_bitmap_merge_words_is_a_union_without_the_tail();
    test_bitmap_resize_moves_bit_n_to_bit_n_and_marks_every_page_changed();
    test_bitmap_random_operations_agree_with_an_array_of_bools();
    return 0;
}
