/* SPDX-License-Identifier: Apache-2.0 */
/* XXH64: four lanes over stripes of 32 bytes, then the rest in steps of 8, 4 and 1, then an avalanche. */
#include "base/xxhash64.h"

#include "base/bytes.h"

static const uint64_t prime1 = 0x9e3779b185ebca87u, prime2 = 0xc2b2ae3d27d4eb4fu, prime3 = 0x165667b19e3779f9u,
                      prime4 = 0x85ebca77c2b2ae63u, prime5 = 0x27d4eb2f165667c5u;

static inline uint64_t rotate_left(uint64_t value, unsigned bits)
{
    return value << bits | value >> (64 - bits);
}

static inline uint64_t lane_round(uint64_t lane, uint64_t input)
{
    return rotate_left(lane + input * prime2, 31) * prime1;
}

static uint64_t merge(uint64_t hash, uint64_t lane)
{
    return (hash ^ lane_round(0, lane)) * prime1 + prime4;
}

static uint64_t hash_rest(uint64_t hash, const uint8_t *p, size_t bytes)
{
    for (; bytes >= 8; bytes -= 8, p += 8)
        hash = rotate_left(hash ^ lane_round(0, le64_get(p)), 27) * prime1 + prime4;
    if (bytes >= 4) {
        hash = rotate_left(hash ^ le32_get(p) * prime1, 23) * prime2 + prime3;
        bytes -= 4;
        p += 4;
    }
    for (; bytes > 0; bytes--, p++)
        hash = rotate_left(hash ^ *p * prime5, 11) * prime1;
    return hash;
}

uint64_t xxhash64(const void *data, size_t bytes)
{
    const uint8_t *p = data;
    size_t rest = bytes;
    uint64_t hash = prime5;
    if (bytes >= 32) {
        uint64_t a = prime1 + prime2, b = prime2, c = 0, d = 0 - prime1;
        for (; rest >= 32; rest -= 32, p += 32) {
            a = lane_round(a, le64_get(p));
            b = lane_round(b, le64_get(p + 8));
            c = lane_round(c, le64_get(p + 16));
            d = lane_round(d, le64_get(p + 24));
        }
        hash = rotate_left(a, 1) + rotate_left(b, 7) + rotate_left(c, 12) + rotate_left(d, 18);
        hash = merge(merge(merge(merge(hash, a), b), c), d);
    }
    hash = hash_rest(hash + bytes, p, rest);
    hash = (hash ^ hash >> 33) * prime2;
    hash = (hash ^ hash >> 29) * prime3;
    return hash ^ hash >> 32;
}
