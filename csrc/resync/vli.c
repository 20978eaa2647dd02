/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RLE with variable length integers, as DRBD puts the bitmap on the wire.
 * Invariants: bits are taken least significant first from byte 0 on; no access beyond the given lengths; decoding
 * ends after at most 4 runs per byte.
 */
#include "resync/vli.h"

#include "base/bytes.h"
#include "base/check.h"

#include <string.h>

#define VLI_CODE_RLE 2u /* code number in bits 0-3 of the encoding byte */
#define VLI_CODE_MASK 0x0fu
#define VLI_PAD_SHIFT 4u
#define VLI_PAD_MASK 0x07u
#define VLI_FIRST_SET 0x80u
#define VLI_LEVELS 10u

struct vli_level {
    uint64_t first;       /* smallest run length of the level */
    uint8_t prefix;       /* prefix as a number, first bit sent = least significant */
    uint8_t prefix_bits;  /* its length */
    uint8_t data_bits;    /* bits of (run length - first) */
};

static const struct vli_level vli_levels[VLI_LEVELS] = {
    {1, 0x00, 1, 1},        {3, 0x01, 2, 1},           {5, 0x03, 3, 2},           {9, 0x07, 4, 3},
    {17, 0x0f, 5, 5},       {49, 0x1f, 6, 8},          {305, 0x3f, 8, 13},        {8497, 0x7f, 8, 21},
    {2105649, 0xbf, 8, 34}, {17181974833ull, 0xff, 8, 56},
};

/* The code of a run length (>= 1) and its number of bits. */
static unsigned run_to_code(uint64_t run, uint64_t *code)
{
    unsigned i = 0;
    while (i + 1 < VLI_LEVELS && run >= vli_levels[i + 1].first)
        i++;
    const struct vli_level *level = &vli_levels[i];
    uint64_t value = run - level->first;
    CHECK(run >= 1 && value >> level->data_bits == 0);
    *code = value << level->prefix_bits | level->prefix;
    return (unsigned)(level->prefix_bits + level->data_bits);
}

/* The level that the next bits of the stream select. */
static const struct vli_level *code_level(uint64_t bits)
{
    unsigned ones = (unsigned)__builtin_ctzll(~bits | 1ull << 6);
    if (ones < 6)
        return &vli_levels[ones];
    switch ((bits >> 6) & 3) {
    case 0: return &vli_levels[6];
    case 1: return &vli_levels[7];
    case 2: return &vli_levels[8];
    default: return &vli_levels[9];
    }
}

/* Append `count` bits of `code` at bit *used of the zeroed buffer. */
static void bits_append(uint8_t *out, uint64_t *used, uint64_t code, unsigned count)
{
    while (count > 0) {
        unsigned shift = (unsigned)(*used % 8);
        unsigned n = count < 8 - shift ? count : 8 - shift;
        out[*used / 8] = (uint8_t)(out[*used / 8] | ((code & ((1u << n) - 1)) << shift));
        code >>= n;
        *used += n;
        count -= n;
    }
}

/* The 64 bits from bit `pos` on; zeros beyond the end of the buffer. */
static uint64_t bits_peek(const uint8_t *code, size_t length, uint64_t pos)
{
    uint8_t window[9] = {0};
    size_t start = (size_t)(pos / 8);
    unsigned shift = (unsigned)(pos % 8);
    memcpy(window, code + start, size_min(sizeof window, length - start));
    uint64_t bits = le64_get(window) >> shift;
    if (shift > 0)
        bits |= (uint64_t)window[8] << (64 - shift);
    return bits;
}

size_t vli_encode(const struct bitmap *bm, uint64_t *bit_pos, uint8_t *out, size_t out_max)
{
    CHECK(*bit_pos < bm->bits);
    if (out_max < VLI_BODY_BYTES_MIN)
        return 0;

    uint64_t pos = *bit_pos;
    uint64_t used = 0;
    uint64_t capacity = (uint64_t)(out_max - 1) * 8;
    bool first_set = bitmap_test(bm, pos);
    bool set = first_set;
    memset(out, 0, out_max);
    while (pos < bm->bits) {
        uint64_t end = u64_min(set ? bitmap_next_clear(bm, pos) : bitmap_next_set(bm, pos), bm->bits);
        uint64_t code;
        unsigned count = run_to_code(end - pos, &code);
        if (count > capacity - used)
            break;
        bits_append(out + 1, &used, code, count);
        pos = end;
        set = !set;
    }

    size_t length = 1 + (size_t)u64_div_round_up(used, 8);
    if ((uint64_t)length * 8 >= pos - *bit_pos)
        return 0;
    unsigned pad = (unsigned)((8 - used % 8) % 8);
    out[0] = (uint8_t)(VLI_CODE_RLE | pad << VLI_PAD_SHIFT | (first_set ? VLI_FIRST_SET : 0));
    *bit_pos = pos;
    return length;
}

struct run_reader {
    const uint8_t *code; /* the stream behind the encoding byte */
    size_t length;       /* its bytes */
    uint64_t bits;       /* its bits, without the padding */
    uint64_t pos;        /* next bit */
};

/* The next run; RE_EOF at the end of the stream. */
static enum re_status run_next(struct run_reader *reader, uint64_t *run)
{
    uint64_t left = reader->bits - reader->pos;
    if (left == 0)
        return RE_EOF;
    uint64_t bits = bits_peek(reader->code, reader->length, reader->pos);
    const struct vli_level *level = code_level(bits);
    unsigned count = (unsigned)(level->prefix_bits + level->data_bits);
    if (count > left)
        return RE_EPROTO;
    uint64_t value = (bits >> level->prefix_bits) & ((1ull << level->data_bits) - 1);
    *run = level->first + value;
    reader->pos += count;
    return RE_OK;
}

enum re_status vli_decode(const uint8_t *body, size_t length, struct bitmap *bm, uint64_t *bit_pos,
                          uint64_t *newly_set)
{
    *newly_set = 0;
    if (length < VLI_BODY_BYTES_MIN || (body[0] & VLI_CODE_MASK) != VLI_CODE_RLE || *bit_pos > bm->bits)
        return RE_EPROTO;
    unsigned pad = (body[0] >> VLI_PAD_SHIFT) & VLI_PAD_MASK;
    struct run_reader start = {
        .code = body + 1,
        .length = length - 1,
        .bits = (uint64_t)(length - 1) * 8 - pad,
        .pos = 0,
    };

    /* Look at everything before touching the bitmap.  At least one bit is there, hence at least one run or an error. */
    struct run_reader reader = start;
    uint64_t pos = *bit_pos;
    uint64_t run;
    enum re_status status;
    while ((status = run_next(&reader, &run)) == RE_OK) {
        if (run > bm->bits - pos)
            return RE_EPROTO;
        pos += run;
    }
    if (status != RE_EOF)
        return status;

    bool set = (body[0] & VLI_FIRST_SET) != 0;
    reader = start;
    pos = *bit_pos;
    while (run_next(&reader, &run) == RE_OK) {
        if (set)
            *newly_set += bitmap_set_range(bm, pos, pos + run - 1);
        pos += run;
        set = !set;
    }
    *bit_pos = pos;
    return RE_OK;
}
