/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unaligned big and little endian access to byte buffers, and overflow-checked arithmetic.
 * Invariant: no function reads or writes beyond the width in its name; no alignment is assumed.
 */
#ifndef BASE_BYTES_H
#define BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "byte order conversions assume a little endian machine");

static inline uint16_t le16_get(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t le32_get(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint64_t le64_get(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void le16_put(uint8_t *p, uint16_t v)
{
    memcpy(p, &v, sizeof v);
}

static inline void le32_put(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, sizeof v);
}

static inline void le64_put(uint8_t *p, uint64_t v)
{
    memcpy(p, &v, sizeof v);
}

static inline uint16_t be16_get(const uint8_t *p)
{
    return __builtin_bswap16(le16_get(p));
}

static inline uint32_t be32_get(const uint8_t *p)
{
    return __builtin_bswap32(le32_get(p));
}

static inline uint64_t be64_get(const uint8_t *p)
{
    return __builtin_bswap64(le64_get(p));
}

static inline void be16_put(uint8_t *p, uint16_t v)
{
    le16_put(p, __builtin_bswap16(v));
}

static inline void be32_put(uint8_t *p, uint32_t v)
{
    le32_put(p, __builtin_bswap32(v));
}

static inline void be64_put(uint8_t *p, uint64_t v)
{
    le64_put(p, __builtin_bswap64(v));
}

/* *sum = a + b; false (and *sum unspecified) when that does not fit. */
static inline bool u64_add_checked(uint64_t a, uint64_t b, uint64_t *sum)
{
    return !__builtin_add_overflow(a, b, sum);
}

static inline bool u32_add_checked(uint32_t a, uint32_t b, uint32_t *sum)
{
    return !__builtin_add_overflow(a, b, sum);
}

static inline bool size_add_checked(size_t a, size_t b, size_t *sum)
{
    return !__builtin_add_overflow(a, b, sum);
}

/* *product = a * b; false (and *product unspecified) when that does not fit. */
static inline bool u64_mul_checked(uint64_t a, uint64_t b, uint64_t *product)
{
    return !__builtin_mul_overflow(a, b, product);
}

/* True when [offset, offset+length) lies inside [0, limit). */
static inline bool u64_range_inside(uint64_t offset, uint64_t length, uint64_t limit)
{
    return offset <= limit && length <= limit - offset;
}

static inline uint64_t u64_div_round_up(uint64_t value, uint64_t divisor)
{
    return value / divisor + (value % divisor != 0);
}

static inline uint64_t u64_min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t u64_max(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline uint32_t u32_min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline size_t size_min(size_t a, size_t b)
{
    return a < b ? a : b;
}

#endif
