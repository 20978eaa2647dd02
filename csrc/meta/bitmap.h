/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The dirty bitmap in memory: one bit per 4 KiB block, kept as on disk (a little endian bit stream in 4 KiB pages),
 * with the number of set bits per page and in total, and the pages that differ from the disk.
 * Invariants: bits at and beyond `bits` are zero; count and page_count are exact after every call; a page whose
 * content changed since its last bitmap_page_mark_written is marked changed.
 */
#ifndef META_BITMAP_H
#define META_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/status.h"

#define BITMAP_NONE UINT64_MAX /* no such bit or page */

struct bitmap {                /* read only for users */
    uint64_t bits;             /* valid bits */
    uint64_t words;            /* 64-bit words that hold valid bits: the length on the wire */
    uint64_t pages;            /* 4 KiB pages that hold valid bits: the length on disk */
    uint64_t count;            /* set bits */
    uint64_t changed_count;    /* changed pages */
    uint64_t *data;            /* pages * BITMAP_PAGE_WORDS words */
    uint32_t *page_count;      /* set bits of each page */
    uint64_t *changed;         /* one bit per page */
};

/* All clear, no page changed.  bits 1..BITMAP_BITS_MAX; NULL when out of memory or out of that range. */
struct bitmap *bitmap_create(uint64_t bits);
void bitmap_destroy(struct bitmap *bm);

/*
 * Change the number of bits, keeping bit n as bit n; new ones are set or clear.  Every page counts as changed
 * afterwards, since its place on disk may have moved.  On failure nothing changes.
 */
enum re_status bitmap_resize(struct bitmap *bm, uint64_t bits, bool set_new);

/* Bits [first, last], last < bits.  Return how many bits that changed. */
uint64_t bitmap_set_range(struct bitmap *bm, uint64_t first, uint64_t last);
uint64_t bitmap_clear_range(struct bitmap *bm, uint64_t first, uint64_t last);
void bitmap_set_all(struct bitmap *bm);
void bitmap_clear_all(struct bitmap *bm);

bool bitmap_test(const struct bitmap *bm, uint64_t bit);

/* Anything set in [first, last]?  How much? */
bool bitmap_any_in(const struct bitmap *bm, uint64_t first, uint64_t last);
uint64_t bitmap_count_in(const struct bitmap *bm, uint64_t first, uint64_t last);

/* The first set or clear bit at or after `from` (which may be beyond the end), or BITMAP_NONE. */
uint64_t bitmap_next_set(const struct bitmap *bm, uint64_t from);
uint64_t bitmap_next_clear(const struct bitmap *bm, uint64_t from);

/*
 * The same for device bytes [offset, offset + length) inside the device; a length of 0 does nothing.  Setting rounds
 * outward; clearing rounds inward, where a partial last block that ends the device counts as whole.
 */
uint64_t bitmap_set_bytes(struct bitmap *bm, uint64_t offset, uint64_t length);
uint64_t bitmap_clear_bytes(struct bitmap *bm, uint64_t offset, uint64_t length, uint64_t device_bytes);

/* The 4096 bytes of a page as they belong on disk.  Read only. */
const uint8_t *bitmap_page(const struct bitmap *bm, uint64_t page);

/*
 * A page as read from disk.  Bits set since bitmap_create stay set (then the page stays changed, otherwise it becomes
 * unchanged), bits beyond the end are ignored.
 */
void bitmap_load_page(struct bitmap *bm, uint64_t page, const uint8_t *data);

bool bitmap_page_changed(const struct bitmap *bm, uint64_t page);

/*
 * Call this when a write of the page's present content is submitted: later changes mark it again.  If that write
 * fails, call bitmap_page_mark_changed.
 */
void bitmap_page_mark_written(struct bitmap *bm, uint64_t page);
void bitmap_page_mark_changed(struct bitmap *bm, uint64_t page);
void bitmap_mark_all_changed(struct bitmap *bm);

/* The first changed page at or after `from`, or BITMAP_NONE. */
uint64_t bitmap_next_changed_page(const struct bitmap *bm, uint64_t from);

/* OR n_words little endian words in, from word_offset on, inside `words`.  Returns the newly set bits. */
uint64_t bitmap_merge_words(struct bitmap *bm, uint64_t word_offset, const uint8_t *le_bytes, uint64_t n_words);

/* Copy n_words little endian words out, from word_offset on, inside `words`. */
void bitmap_read_words(const struct bitmap *bm, uint64_t word_offset, uint8_t *le_bytes, uint64_t n_words);

#endif
