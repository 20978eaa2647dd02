/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The dirty bitmap.
 * Invariant: every change goes through one page at a time, with the counters and the changed mark brought up to date
 * before the next.
 */
#include "meta/bitmap.h"

#include "base/bytes.h"
#include "base/check.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words in memory are the bytes on disk");
_Static_assert(BITMAP_PAGE_WORDS * 64 == BITMAP_PAGE_BITS, "pages are whole words");

static uint32_t popcount64(uint64_t word)
{
    return (uint32_t)__builtin_popcountll(word);
}

/* Word with bits from..63 set, from <= 63. */
static uint64_t mask_from(uint64_t from)
{
    return ~0ull << (from & 63);
}

/* Word with bits 0..to set, to <= 63. */
static uint64_t mask_to(uint64_t to)
{
    return ~0ull >> (63 - (to & 63));
}

static uint64_t page_first_bit(uint64_t page)
{
    return page * BITMAP_PAGE_BITS;
}

/* Valid bits of a page. */
static uint32_t page_bits(const struct bitmap *bm, uint64_t page)
{
    return (uint32_t)u64_min(BITMAP_PAGE_BITS, bm->bits - page_first_bit(page));
}

static enum re_status bitmap_allocate(struct bitmap *bm, uint64_t bits)
{
    if (bits == 0 || bits > BITMAP_BITS_MAX)
        return RE_EINVAL;
    *bm = (struct bitmap){
        .bits = bits,
        .words = u64_div_round_up(bits, 64),
        .pages = u64_div_round_up(bits, BITMAP_PAGE_BITS),
    };
    bm->data = calloc(bm->pages, BITMAP_PAGE_BYTES);
    bm->page_count = calloc(bm->pages, sizeof *bm->page_count);
    bm->changed = calloc(u64_div_round_up(bm->pages, 64), sizeof *bm->changed);
    if (bm->data != NULL && bm->page_count != NULL && bm->changed != NULL)
        return RE_OK;
    free(bm->data);
    free(bm->page_count);
    free(bm->changed);
    return RE_ENOMEM;
}

struct bitmap *bitmap_create(uint64_t bits)
{
    struct bitmap *bm = malloc(sizeof *bm);
    if (bm != NULL && bitmap_allocate(bm, bits) != RE_OK) {
        free(bm);
        bm = NULL;
    }
    return bm;
}

void bitmap_destroy(struct bitmap *bm)
{
    if (bm == NULL)
        return;
    free(bm->data);
    free(bm->page_count);
    free(bm->changed);
    free(bm);
}

bool bitmap_page_changed(const struct bitmap *bm, uint64_t page)
{
    CHECK(page < bm->pages);
    return (bm->changed[page / 64] >> (page % 64)) & 1;
}

void bitmap_page_mark_changed(struct bitmap *bm, uint64_t page)
{
    if (bitmap_page_changed(bm, page))
        return;
    bm->changed[page / 64] |= 1ull << (page % 64);
    bm->changed_count++;
}

void bitmap_page_mark_written(struct bitmap *bm, uint64_t page)
{
    if (!bitmap_page_changed(bm, page))
        return;
    bm->changed[page / 64] &= ~(1ull << (page % 64));
    bm->changed_count--;
}

void bitmap_mark_all_changed(struct bitmap *bm)
{
    for (uint64_t page = 0; page < bm->pages; page++)
        bitmap_page_mark_changed(bm, page);
}

uint64_t bitmap_next_changed_page(const struct bitmap *bm, uint64_t from)
{
    if (from >= bm->pages || bm->changed_count == 0)
        return BITMAP_NONE;
    uint64_t n_words = u64_div_round_up(bm->pages, 64);
    uint64_t word = bm->changed[from / 64] & mask_from(from);
    for (uint64_t i = from / 64;;) {
        if (word != 0)
            return i * 64 + (uint64_t)__builtin_ctzll(word);
        if (++i >= n_words)
            return BITMAP_NONE;
        word = bm->changed[i];
    }
}

/* Set or clear bits [first, last], all of one page. */
static uint64_t page_change(struct bitmap *bm, uint64_t page, uint64_t first, uint64_t last, bool set)
{
    uint32_t full = set ? page_bits(bm, page) : 0;
    uint32_t changed = 0;

    if (bm->page_count[page] == full)
        return 0;
    for (uint64_t i = first / 64; i <= last / 64; i++) {
        uint64_t mask = ~0ull;
        if (i == first / 64)
            mask &= mask_from(first);
        if (i == last / 64)
            mask &= mask_to(last);
        if (set) {
            changed += popcount64(mask & ~bm->data[i]);
            bm->data[i] |= mask;
        } else {
            changed += popcount64(mask & bm->data[i]);
            bm->data[i] &= ~mask;
        }
    }
    if (changed == 0)
        return 0;
    if (set) {
        bm->page_count[page] += changed;
        bm->count += changed;
    } else {
        bm->page_count[page] -= changed;
        bm->count -= changed;
    }
    bitmap_page_mark_changed(bm, page);
    return changed;
}

static uint64_t range_change(struct bitmap *bm, uint64_t first, uint64_t last, bool set)
{
    uint64_t changed = 0;
    CHECK(first <= last && last < bm->bits);
    while (first <= last) {
        uint64_t page = first / BITMAP_PAGE_BITS;
        uint64_t end = u64_min(last, page_first_bit(page) + BITMAP_PAGE_BITS - 1);
        changed += page_change(bm, page, first, end, set);
        first = end + 1;
    }
    return changed;
}

uint64_t bitmap_set_range(struct bitmap *bm, uint64_t first, uint64_t last)
{
    return range_change(bm, first, last, true);
}

uint64_t bitmap_clear_range(struct bitmap *bm, uint64_t first, uint64_t last)
{
    return range_change(bm, first, last, false);
}

void bitmap_set_all(struct bitmap *bm)
{
    (void)bitmap_set_range(bm, 0, bm->bits - 1);
}

void bitmap_clear_all(struct bitmap *bm)
{
    (void)bitmap_clear_range(bm, 0, bm->bits - 1);
}

enum re_status bitmap_resize(struct bitmap *bm, uint64_t bits, bool set_new)
{
    struct bitmap resized;
    enum re_status status = bitmap_allocate(&resized, bits);
    if (status != RE_OK)
        return status;

    uint64_t old_bits = bm->bits;
    for (uint64_t page = 0; page < u64_min(bm->pages, resized.pages); page++)
        bitmap_load_page(&resized, page, bitmap_page(bm, page));
    free(bm->data);
    free(bm->page_count);
    free(bm->changed);
    *bm = resized;
    if (set_new && bits > old_bits)
        (void)bitmap_set_range(bm, old_bits, bits - 1);
    bitmap_mark_all_changed(bm);
    return RE_OK;
}

bool bitmap_test(const struct bitmap *bm, uint64_t bit)
{
    CHECK(bit < bm->bits);
    return (bm->data[bit / 64] >> (bit % 64)) & 1;
}

bool bitmap_any_in(const struct bitmap *bm, uint64_t first, uint64_t last)
{
    CHECK(first <= last && last < bm->bits);
    /* Looks no further than `last`: this is asked for every request while something is dirty. */
    while (first <= last) {
        uint64_t page = first / BITMAP_PAGE_BITS;
        uint64_t end = u64_min(last, page_first_bit(page) + BITMAP_PAGE_BITS - 1);
        if (bm->page_count[page] != 0)
            for (uint64_t i = first / 64; i <= end / 64; i++) {
                uint64_t word = bm->data[i];
                if (i == first / 64)
                    word &= mask_from(first);
                if (i == end / 64)
                    word &= mask_to(end);
                if (word != 0)
                    return true;
            }
        first = end + 1;
    }
    return false;
}

uint64_t bitmap_count_in(const struct bitmap *bm, uint64_t first, uint64_t last)
{
    uint64_t count = 0;
    CHECK(first <= last && last < bm->bits);
    while (first <= last) {
        uint64_t page = first / BITMAP_PAGE_BITS;
        uint64_t end = u64_min(last, page_first_bit(page) + BITMAP_PAGE_BITS - 1);
        uint32_t present = bm->page_count[page];
        if (present == page_bits(bm, page))
            count += end - first + 1;
        else if (present != 0)
            for (uint64_t i = first / 64; i <= end / 64; i++) {
                uint64_t word = bm->data[i];
                if (i == first / 64)
                    word &= mask_from(first);
                if (i == end / 64)
                    word &= mask_to(end);
                count += popcount64(word);
            }
        first = end + 1;
    }
    return count;
}

/* The first bit equal to `set` at or after `from`; pages without one are skipped by their count. */
static uint64_t next_equal(const struct bitmap *bm, uint64_t from, bool set)
{
    uint64_t invert = set ? 0 : ~0ull;
    while (from < bm->bits) {
        uint64_t page = from / BITMAP_PAGE_BITS;
        uint32_t without = set ? 0 : page_bits(bm, page);
        if (bm->page_count[page] != without) {
            uint64_t end = page_first_bit(page) / 64 + BITMAP_PAGE_WORDS;
            uint64_t i = from / 64;
            uint64_t word = (bm->data[i] ^ invert) & mask_from(from);
            while (word == 0 && ++i < end)
                word = bm->data[i] ^ invert;
            if (word != 0) {
                /* Beyond the end everything reads as clear. */
                uint64_t bit = i * 64 + (uint64_t)__builtin_ctzll(word);
                return bit < bm->bits ? bit : BITMAP_NONE;
            }
        }
        from = page_first_bit(page + 1);
    }
    return BITMAP_NONE;
}

uint64_t bitmap_next_set(const struct bitmap *bm, uint64_t from)
{
    return bm->count == 0 ? BITMAP_NONE : next_equal(bm, from, true);
}

uint64_t bitmap_next_clear(const struct bitmap *bm, uint64_t from)
{
    return bm->count == bm->bits ? BITMAP_NONE : next_equal(bm, from, false);
}

uint64_t bitmap_set_bytes(struct bitmap *bm, uint64_t offset, uint64_t length)
{
    if (length == 0)
        return 0;
    CHECK(u64_range_inside(offset, length, bm->bits * BLOCK_BYTES));
    return bitmap_set_range(bm, offset / BLOCK_BYTES, (offset + length - 1) / BLOCK_BYTES);
}

uint64_t bitmap_clear_bytes(struct bitmap *bm, uint64_t offset, uint64_t length, uint64_t device_bytes)
{
    if (length == 0)
        return 0;
    CHECK(u64_div_round_up(device_bytes, BLOCK_BYTES) == bm->bits);
    CHECK(u64_range_inside(offset, length, device_bytes));
    uint64_t first = u64_div_round_up(offset, BLOCK_BYTES);
    uint64_t end = offset + length == device_bytes ? bm->bits : (offset + length) / BLOCK_BYTES;
    return first < end ? bitmap_clear_range(bm, first, end - 1) : 0;
}

const uint8_t *bitmap_page(const struct bitmap *bm, uint64_t page)
{
    CHECK(page < bm->pages);
    return (const uint8_t *)(bm->data + page * BITMAP_PAGE_WORDS);
}

/* A word from outside without the bits beyond the end; i < words. */
static uint64_t word_valid(const struct bitmap *bm, uint64_t i, uint64_t word)
{
    return i == bm->words - 1 ? word & mask_to(bm->bits - 1) : word;
}

void bitmap_load_page(struct bitmap *bm, uint64_t page, const uint8_t *data)
{
    CHECK(page < bm->pages);
    bool differs = false;
    uint32_t count = 0;
    uint64_t base = page * BITMAP_PAGE_WORDS;
    for (uint64_t i = base; i < u64_min(base + BITMAP_PAGE_WORDS, bm->words); i++) {
        uint64_t word = word_valid(bm, i, le64_get(data + (i - base) * 8));
        if ((bm->data[i] & ~word) != 0)
            differs = true;
        bm->data[i] |= word;
        count += popcount64(bm->data[i]);
    }
    bm->count += count;
    bm->count -= bm->page_count[page];
    bm->page_count[page] = count;
    if (differs)
        bitmap_page_mark_changed(bm, page);
    else
        bitmap_page_mark_written(bm, page);
}

uint64_t bitmap_merge_words(struct bitmap *bm, uint64_t word_offset, const uint8_t *le_bytes, uint64_t n_words)
{
    uint64_t newly_set = 0;
    CHECK(u64_range_inside(word_offset, n_words, bm->words));
    for (uint64_t i = word_offset; i < word_offset + n_words; i++) {
        uint64_t word = word_valid(bm, i, le64_get(le_bytes + (i - word_offset) * 8)) & ~bm->data[i];
        if (word == 0)
            continue;
        uint64_t page = i / BITMAP_PAGE_WORDS;
        uint32_t added = popcount64(word);
        bm->data[i] |= word;
        bm->page_count[page] += added;
        newly_set += added;
        bitmap_page_mark_changed(bm, page);
    }
    bm->count += newly_set;
    return newly_set;
}

void bitmap_read_words(const struct bitmap *bm, uint64_t word_offset, uint8_t *le_bytes, uint64_t n_words)
{
    CHECK(u64_range_inside(word_offset, n_words, bm->words));
    memcpy(le_bytes, bm->data + word_offset, n_words * 8);
}
