/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seeded pseudo random numbers (splitmix64 for seeding and hashing, xoshiro256** for streams).
 * Invariants: the same seed gives the same stream everywhere; not for secrets.
 */
#ifndef BASE_PRNG_H
#define BASE_PRNG_H

#include <stdint.h>

struct prng {
    uint64_t state[4]; /* xoshiro256** state, never all zero */
};

/* One bijective scrambling step; also a good integer hash. */
static inline uint64_t splitmix64_mix(uint64_t value)
{
    value += 0x9e3779b97f4a7c15ull;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
    return value ^ (value >> 31);
}

static inline uint64_t splitmix64_next(uint64_t *state)
{
    uint64_t value = splitmix64_mix(*state);
    *state += 0x9e3779b97f4a7c15ull;
    return value;
}

static inline void prng_init(struct prng *prng, uint64_t seed)
{
    for (int i = 0; i < 4; i++)
        prng->state[i] = splitmix64_next(&seed);
}

static inline uint64_t prng_rotl(uint64_t value, unsigned count)
{
    return (value << count) | (value >> (64 - count));
}

static inline uint64_t prng_next(struct prng *prng)
{
    uint64_t *s = prng->state;
    uint64_t result = prng_rotl(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = prng_rotl(s[3], 45);
    return result;
}

/* Uniform enough in [0, bound); bound > 0. */
static inline uint64_t prng_below(struct prng *prng, uint64_t bound)
{
    return prng_next(prng) % bound;
}

#endif
