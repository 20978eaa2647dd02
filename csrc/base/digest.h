/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Digests of blocks, as DRBD sends them: data-integrity-alg, verify-alg, csums-alg.
 * Invariant: no state and no allocation, so any thread may compute one at any time.
 *
 * crc32c and xxhash64 are this program's own; md5, sha1 and sha256 are libcrypto's, and missing when it was built
 * without (digest_bytes() then says 0, and the configuration refuses them).
 */
#ifndef BASE_DIGEST_H
#define BASE_DIGEST_H

#include <stddef.h>
#include <stdint.h>

/* Numbers of re_link's *_alg members (repl/drbd/digests.py). */
enum digest_alg { DIGEST_NONE, DIGEST_CRC32C, DIGEST_XXHASH64, DIGEST_MD5, DIGEST_SHA1, DIGEST_SHA256 };

enum { DIGEST_BYTES_MAX = 32 };

/* Length of a digest; 0 for DIGEST_NONE and for what this build does not have. */
size_t digest_bytes(enum digest_alg alg);

/* `out` has room for digest_bytes(alg); nothing is written when that is 0. */
void digest_compute(enum digest_alg alg, const void *data, size_t bytes, uint8_t *out);

/* Digests of `count` blocks of `block_bytes` (a multiple of 8); `out` has DIGEST_BYTES_MAX bytes for each. */
void digest_compute_blocks(enum digest_alg alg, const uint8_t *data, size_t count, size_t block_bytes,
                           uint8_t out[][DIGEST_BYTES_MAX]);

#endif
