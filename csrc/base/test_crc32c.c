/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of CRC-32C against its published check value and between its two paths. */
#include "base/check.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/prng.h"

static void test_crc32c_of_the_check_string_is_the_published_value(void)
{
    CHECK(crc32c("123456789", 9) == 0xe3069283u);
    CHECK(crc32c("", 0) == 0);
}

static void test_crc32c_raw_in_two_parts_equals_one_part(void)
{
    uint8_t data[333];
    struct prng prng;
    prng_init(&prng, 1);
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)prng_next(&prng);
    for (size_t cut = 0; cut <= sizeof data; cut++)
        CHECK(crc32c_raw(crc32c_raw(7, data, cut), data + cut, sizeof data - cut) == crc32c_raw(7, data, sizeof data));
}

static void test_crc32c_hardware_and_table_paths_agree(void)
{
    uint8_t data[300];
    struct prng prng;
    prng_init(&prng, 2);
    for (int round = 0; round < 2000; round++) {
        size_t start = prng_below(&prng, 16);
        size_t length = prng_below(&prng, 280);
        uint32_t state = (uint32_t)prng_next(&prng);
        for (size_t i = 0; i < sizeof data; i++)
            data[i] = (uint8_t)prng_next(&prng);
        CHECK(crc32c_raw(state, data + start, length) == crc32c_raw_portable(state, data + start, length));
    }
}

static void test_bytes_big_endian_is_most_significant_first(void)
{
    uint8_t b[9] = {0};
    be64_put(b + 1, 0x0102030405060708ull);
    for (unsigned i = 1; i <= 8; i++)
        CHECK(b[i] == i);
    CHECK(be32_get(b + 1) == 0x01020304 && be16_get(b + 7) == 0x0708 && le32_get(b + 1) == 0x04030201);
    CHECK(be64_get(b + 1) == 0x0102030405060708ull);
    uint64_t sum;
    CHECK(u64_add_checked(1, UINT64_MAX - 1, &sum) && sum == UINT64_MAX);
    CHECK(!u64_add_checked(2, UINT64_MAX - 1, &sum));
    CHECK(u64_range_inside(10, 0, 10) && !u64_range_inside(10, 1, 10) && !u64_range_inside(4, UINT64_MAX, 10));
}

int main(void)
{
    test_crc32c_of_the_check_string_is_the_published_value();
    test_crc32c_raw_in_two_parts_equals_one_part();
    test_crc32c_hardware_and_table_paths_agree();
    test_bytes_big_endian_is_most_significant_first();
    return 0;
}
