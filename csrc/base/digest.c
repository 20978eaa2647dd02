/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crc32c and xxhash64 go out little-endian, as the kernel's crypto API stores them.
 *
 * libcrypto's older interface (SHA256_Init and so on) keeps its state on the stack; the newer one allocates and looks
 * the algorithm up for every block.  Both run the same code for the processor at hand.
 */
#define OPENSSL_SUPPRESS_DEPRECATED
#include "base/digest.h"

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/xxhash64.h"

#ifdef HAVE_LIBCRYPTO
#include <openssl/md5.h>
#include <openssl/sha.h>
#endif

size_t digest_bytes(enum digest_alg alg)
{
    switch (alg) {
    case DIGEST_CRC32C:
        return 4;
    case DIGEST_XXHASH64:
        return 8;
#ifdef HAVE_LIBCRYPTO
    case DIGEST_MD5:
        return MD5_DIGEST_LENGTH;
    case DIGEST_SHA1:
        return SHA_DIGEST_LENGTH;
    case DIGEST_SHA256:
        return SHA256_DIGEST_LENGTH;
#endif
    default:
        return 0;
    }
}

#ifdef HAVE_LIBCRYPTO

static void md5(const void *data, size_t bytes, uint8_t *out)
{
    MD5_CTX context;
    MD5_Init(&context);
    MD5_Update(&context, data, bytes);
    MD5_Final(out, &context);
}

static void sha1(const void *data, size_t bytes, uint8_t *out)
{
    SHA_CTX context;
    SHA1_Init(&context);
    SHA1_Update(&context, data, bytes);
    SHA1_Final(out, &context);
}

static void sha256(const void *data, size_t bytes, uint8_t *out)
{
    SHA256_CTX context;
    SHA256_Init(&context);
    SHA256_Update(&context, data, bytes);
    SHA256_Final(out, &context);
}

#endif

void digest_compute(enum digest_alg alg, const void *data, size_t bytes, uint8_t *out)
{
    switch (alg) {
    case DIGEST_CRC32C:
        le32_put(out, crc32c(data, bytes));
        break;
    case DIGEST_XXHASH64:
        le64_put(out, xxhash64(data, bytes));
        break;
#ifdef HAVE_LIBCRYPTO
    case DIGEST_MD5:
        md5(data, bytes, out);
        break;
    case DIGEST_SHA1:
        sha1(data, bytes, out);
        break;
    case DIGEST_SHA256:
        sha256(data, bytes, out);
        break;
#endif
    default:
        break;
    }
}

void digest_compute_blocks(enum digest_alg alg, const uint8_t *data, size_t count, size_t block_bytes,
                           uint8_t out[][DIGEST_BYTES_MAX])
{
    size_t i = 0;
    for (; alg == DIGEST_CRC32C && i + 4 <= count; i += 4) {
        uint32_t sums[4];
        crc32c_four(data + i * block_bytes, block_bytes, sums);
        for (size_t k = 0; k < 4; k++)
            le32_put(out[i + k], sums[k]);
    }
    for (; i < count; i++)
        digest_compute(alg, data + i * block_bytes, block_bytes, out[i]);
}
