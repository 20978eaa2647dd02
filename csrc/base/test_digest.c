/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the digests with published values; tests/unit/test_drbd_digests.py compares with Python's own. */
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/digest.h"
#include "base/xxhash64.h"

struct published {
    enum digest_alg alg;
    const char *text;
    const char *hex;    /* as it stands on the wire */
};

static const struct published published[] = {
    {DIGEST_CRC32C, "", "00000000"},
    {DIGEST_CRC32C, "123456789", "839206e3"},
    {DIGEST_XXHASH64, "", "99e9d85137db46ef"},
    {DIGEST_XXHASH64, "abc", "990977adf52cbc44"},
    {DIGEST_MD5, "", "d41d8cd98f00b204e9800998ecf8427e"},
    {DIGEST_MD5, "abc", "900150983cd24fb0d6963f7d28e17f72"},
    {DIGEST_SHA1, "abc", "a9993e364706816aba3e25717850c26c9cd0d89d"},
    {DIGEST_SHA256, "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
};

static void test_digest_of_published_texts(void)
{
    for (size_t i = 0; i < sizeof(published) / sizeof(published[0]); i++) {
        const struct published *p = &published[i];
        uint8_t out[DIGEST_BYTES_MAX];
        char hex[2 * DIGEST_BYTES_MAX + 1] = "";
        size_t bytes = digest_bytes(p->alg);
        if (bytes == 0)
            continue;   /* built without libcrypto */
        digest_compute(p->alg, p->text, strlen(p->text), out);
        for (size_t b = 0; b < bytes; b++)
            snprintf(hex + 2 * b, 3, "%02x", out[b]);
        CHECK(strcmp(hex, p->hex) == 0);
    }
}

static void test_digest_of_a_zero_block_is_what_the_kernel_module_sends(void)
{
    static const uint8_t block[4096];
    static const uint8_t md5[16] = {0x62, 0x0f, 0x0b, 0x67, 0xa9, 0x1f, 0x7f, 0x74,
                                    0x15, 0x1b, 0xc5, 0xbe, 0x74, 0x5b, 0x71, 0x10};
    uint8_t out[DIGEST_BYTES_MAX];
    if (digest_bytes(DIGEST_MD5) == 0)
        return;
    digest_compute(DIGEST_MD5, block, sizeof(block), out);
    CHECK(memcmp(out, md5, sizeof(md5)) == 0);
}

static void test_digest_unknown_writes_nothing(void)
{
    uint8_t out[DIGEST_BYTES_MAX];
    memset(out, 0x5a, sizeof(out));
    CHECK(digest_bytes(DIGEST_NONE) == 0 && digest_bytes((enum digest_alg)77) == 0);
    digest_compute(DIGEST_NONE, "abc", 3, out);
    digest_compute((enum digest_alg)77, "abc", 3, out);
    for (size_t i = 0; i < sizeof(out); i++)
        CHECK(out[i] == 0x5a);
}

static void test_xxhash64_takes_every_kind_of_rest(void)
{
    /* Longer than a stripe, ending with 8, 4 and single bytes: the published value of a sentence of 43 bytes. */
    CHECK(xxhash64("The quick brown fox jumps over the lazy dog", 43) == 0x0b242d361fda71bcu);
}

static void test_digest_of_blocks_is_the_digest_of_each(void)
{
    static uint8_t data[7 * 512];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * i >> 3);
    for (int alg = DIGEST_CRC32C; alg <= DIGEST_SHA256; alg++)
        for (size_t count = 0; count <= 7; count++) {
            uint8_t out[7][DIGEST_BYTES_MAX], one[DIGEST_BYTES_MAX];
            digest_compute_blocks((enum digest_alg)alg, data, count, 512, out);
            for (size_t i = 0; i < count; i++) {
                digest_compute((enum digest_alg)alg, data + i * 512, 512, one);
                CHECK(memcmp(out[i], one, digest_bytes((enum digest_alg)alg)) == 0);
            }
        }
}

int main(void)
{
    test_digest_of_blocks_is_the_digest_of_each();
    test_digest_of_published_texts();
    test_digest_of_a_zero_block_is_what_the_kernel_module_sends();
    test_digest_unknown_writes_nothing();
    test_xxhash64_takes_every_kind_of_rest();
    return 0;
}
