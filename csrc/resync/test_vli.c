/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the bitmap run code against packets captured from Linux DRBD 8.4.11, and random round trips. */
#include "base/check.h"
#include "base/prng.h"
#include "resync/vli.h"

#include <stdbool.h>
#include <string.h>

#define BODY_MAX 4080u /* 4096 without a 16-byte header */
#define RUNS_MAX 8

struct captured {
    bool first_set;          /* polarity of runs[0] */
    uint64_t runs[RUNS_MAX]; /* 0 ends */
    size_t length;           /* of body */
    uint8_t body[12];        /* as captured */
};

static const struct captured captured[] = {
    {false, {10, 3, 87, 1, 219, 16, 1702}, 10, {0x42, 0x97, 0x7c, 0x26, 0x7c, 0xaa, 0xf7, 0x9f, 0xba, 0x02}},
    {true, {10230}, 5, {0xb2, 0x7f, 0xc5, 0x06, 0x00}},
    {false, {10, 1, 1003}, 5, {0x22, 0x17, 0x7e, 0x74, 0x05}},
    {true, {2, 8, 3, 1001}, 5, {0x92, 0xee, 0xfc, 0xe0, 0x0a}},
    {false, {512, 16, 486}, 8, {0x72, 0x3f, 0xcf, 0xe0, 0xfe, 0x53, 0x0b, 0x00}},
    {true, {2, 254, 32, 32, 16, 1702}, 9, {0x82, 0x7e, 0xcd, 0xef, 0xbd, 0x77, 0xff, 0xa9, 0x2b}},
    {false, {8, 2, 1004}, 5, {0x42, 0xdb, 0x9f, 0x5d, 0x01}},
    {true, {1, 1013}, 4, {0x92, 0xfc, 0x10, 0x0b}},
    {true, {1014}, 4, {0xb2, 0x3f, 0xc5, 0x02}},
    {true, {2, 1012}, 4, {0x92, 0xfe, 0x0c, 0x0b}},
    {false, {18549}, 5, {0x32, 0x7f, 0x44, 0x27, 0x00}},
};

static struct bitmap *bitmap_from_runs(const struct captured *packet)
{
    uint64_t bits = 0, pos = 0;
    bool set = packet->first_set;
    for (int i = 0; i < RUNS_MAX; i++)
        bits += packet->runs[i];
    struct bitmap *bm = bitmap_create(bits);
    CHECK(bm != NULL);
    for (int i = 0; i < RUNS_MAX && packet->runs[i] > 0; i++, set = !set) {
        if (set)
            (void)bitmap_set_range(bm, pos, pos + packet->runs[i] - 1);
        pos += packet->runs[i];
    }
    return bm;
}

static bool bitmap_equal(const struct bitmap *a, const struct bitmap *b)
{
    return a->bits == b->bits && a->count == b->count && memcmp(a->data, b->data, a->words * 8) == 0;
}

static void test_vli_encode_gives_the_captured_packets(void)
{
    for (size_t i = 0; i < sizeof captured / sizeof captured[0]; i++) {
        uint8_t out[BODY_MAX];
        uint64_t pos = 0;
        struct bitmap *bm = bitmap_from_runs(&captured[i]);
        CHECK(vli_encode(bm, &pos, out, sizeof out) == captured[i].length);
        CHECK(pos == bm->bits && memcmp(out, captured[i].body, captured[i].length) == 0);
        bitmap_destroy(bm);
    }
}

static void test_vli_decode_of_the_captured_packets_gives_their_runs(void)
{
    for (size_t i = 0; i < sizeof captured / sizeof captured[0]; i++) {
        uint64_t pos = 0, newly_set = 99;
        struct bitmap *expected = bitmap_from_runs(&captured[i]);
        struct bitmap *bm = bitmap_create(expected->bits);
        CHECK(vli_decode(captured[i].body, captured[i].length, bm, &pos, &newly_set) == RE_OK);
        CHECK(pos == bm->bits && newly_set == expected->count && bitmap_equal(bm, expected));
        bitmap_destroy(bm);
        bitmap_destroy(expected);
    }
}

static void test_vli_encode_of_a_dense_part_is_refused_and_the_rest_is_encoded(void)
{
    /* The captured exchange of 51189 bits with 9000 single dirty blocks: one plain packet, then one run. */
    static const uint8_t rest[] = {0x32, 0x7f, 0x44, 0x27, 0x00};
    uint8_t out[BODY_MAX];
    uint64_t pos = 0;
    struct bitmap *bm = bitmap_create(51189);
    for (uint64_t bit = 0; bit < 18000; bit += 2)
        (void)bitmap_set_range(bm, bit, bit);
    CHECK(vli_encode(bm, &pos, out, sizeof out) == 0 && pos == 0);
    pos = BODY_MAX * 8;
    CHECK(vli_encode(bm, &pos, out, sizeof out) == sizeof rest);
    CHECK(pos == 51189 && memcmp(out, rest, sizeof rest) == 0);
    bitmap_destroy(bm);
}

static void test_vli_codes_at_the_level_limits_round_trip(void)
{
    static const uint64_t limits[] = {1, 2, 3, 4, 5, 8, 9, 16, 17, 48, 49, 304, 305, 8496, 8497, 2105648, 2105649,
                                      900000000};
    static const unsigned bits[] = {2, 2, 3, 3, 5, 5, 7, 7, 10, 10, 14, 14, 21, 21, 29, 29, 42, 42};
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        /* A long clear run behind it keeps the body smaller than the plain bits. */
        uint8_t out[BODY_MAX];
        uint64_t pos = 0, newly_set;
        struct bitmap *bm = bitmap_create(limits[i] + 400);
        struct bitmap *copy = bitmap_create(limits[i] + 400);
        (void)bitmap_set_range(bm, 0, limits[i] - 1);
        size_t length = vli_encode(bm, &pos, out, sizeof out);
        CHECK(length == 1 + (bits[i] + 21 + 7) / 8 && pos == bm->bits);
        pos = 0;
        CHECK(vli_decode(out, length, copy, &pos, &newly_set) == RE_OK && newly_set == limits[i]);
        CHECK(bitmap_equal(bm, copy));
        bitmap_destroy(bm);
        bitmap_destroy(copy);
    }
}

/* Send a bitmap as a peer does: compressed where that is smaller, else a plain packet from a word boundary. */
static void transfer(const struct bitmap *from, struct bitmap *to, size_t body_max, uint64_t *compressed)
{
    uint64_t send = 0, receive = 0, newly_set;
    uint8_t body[BODY_MAX];
    while (send < from->bits) {
        uint64_t before = send;
        size_t length = vli_encode(from, &send, body, body_max);
        if (length > 0) {
            CHECK(length <= body_max && length * 8 < send - before);
            CHECK(vli_decode(body, length, to, &receive, &newly_set) == RE_OK);
            ++*compressed;
        } else {
            uint64_t word = send / 64;
            uint64_t n = from->words - word < body_max / 8 ? from->words - word : body_max / 8;
            bitmap_read_words(from, word, body, n);
            (void)bitmap_merge_words(to, receive / 64, body, n);
            send = receive = (word + n) * 64 < from->bits ? (word + n) * 64 : from->bits;
        }
        CHECK(send == receive && send > before);
    }
}

static void test_vli_random_bitmaps_arrive_identical_mixed_with_plain_packets(void)
{
    struct prng prng;
    uint64_t compressed = 0;
    prng_init(&prng, 5);
    for (int round = 0; round < 400; round++) {
        uint64_t bits = 1 + prng_below(&prng, round % 4 == 0 ? 400000 : 3000);
        struct bitmap *from = bitmap_create(bits), *to = bitmap_create(bits);
        uint64_t run_max = 1 + prng_below(&prng, round % 3 == 0 ? 4 : 2000);
        for (uint64_t pos = prng_below(&prng, run_max + 1); pos < bits;) {
            uint64_t end = pos + prng_below(&prng, run_max);
            (void)bitmap_set_range(from, pos, end < bits ? end : bits - 1);
            pos = end + 2 + prng_below(&prng, run_max);
        }
        size_t body_max = round % 2 == 0 ? BODY_MAX : 16 + 8 * (size_t)prng_below(&prng, 40);
        transfer(from, to, body_max, &compressed);
        CHECK(bitmap_equal(from, to));
        bitmap_destroy(from);
        bitmap_destroy(to);
    }
    CHECK(compressed > 100);
}

static void test_vli_decode_into_a_dirty_bitmap_is_a_union(void)
{
    uint64_t pos = 0, newly_set;
    struct bitmap *bm = bitmap_create(1014);
    (void)bitmap_set_range(bm, 1, 10);
    CHECK(vli_decode(captured[3].body, captured[3].length, bm, &pos, &newly_set) == RE_OK);
    CHECK(newly_set == 3 && bm->count == 13 && bitmap_test(bm, 5) && bitmap_test(bm, 0) && bitmap_test(bm, 12));
    bitmap_destroy(bm);
}

static void expect_refused(const uint8_t *body, size_t length, uint64_t bits, uint64_t start)
{
    uint64_t pos = start, newly_set = 1;
    struct bitmap *bm = bitmap_create(bits);
    CHECK(vli_decode(body, length, bm, &pos, &newly_set) == RE_EPROTO);
    CHECK(pos == start && bm->count == 0 && newly_set == 0);
    bitmap_destroy(bm);
}

static void test_vli_decode_of_a_bad_body_is_refused_and_changes_nothing(void)
{
    static const uint8_t all_1014[] = {0xb2, 0x3f, 0xc5, 0x02};
    static const uint8_t clear_1014[] = {0x32, 0x3f, 0xc5, 0x02};
    static const uint8_t other_code[] = {0xb1, 0x3f, 0xc5, 0x02};
    static const uint8_t no_run[] = {0x02};
    static const uint8_t truncated[] = {0x02, 0xff};
    static const uint8_t cut_run[] = {0x92, 0x3f, 0xc5}; /* 21-bit code in 15 bits */
    static const uint8_t good_then_cut[] = {0x82, 0x3c};  /* 1 set (00), 1... clear (11110 needs 10 bits) */
    static const uint8_t huge[] = {0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    expect_refused(all_1014, 4, 1013, 0);
    expect_refused(clear_1014, 4, 1013, 0);
    expect_refused(all_1014, 4, 2000, 1000);
    expect_refused(all_1014, 4, 1014, 1014);
    expect_refused(other_code, 4, 1014, 0);
    expect_refused(no_run, 1, 1014, 0);
    expect_refused(no_run, 0, 1014, 0);
    expect_refused(truncated, 2, 1014, 0);
    expect_refused(cut_run, 3, 1014, 0);
    expect_refused(cut_run, 3, 1u << 30, 0); /* what is left of it would fit */
    expect_refused(good_then_cut, 2, 1014, 0);
    expect_refused(huge, 9, 1014, 0);
}

static void test_vli_decode_of_random_bytes_stays_inside_the_bitmap(void)
{
    struct prng prng;
    prng_init(&prng, 9);
    struct bitmap *bm = bitmap_create(5000);
    for (int round = 0; round < 100000; round++) {
        uint8_t body[40];
        size_t length = prng_below(&prng, sizeof body + 1);
        for (size_t i = 0; i < length; i++)
            body[i] = (uint8_t)(prng_next(&prng) & prng_next(&prng));
        if (length > 0)
            body[0] = (uint8_t)((body[0] & 0xf0) | 2);
        uint64_t before = prng_below(&prng, 5001), pos = before, count = bm->count, newly_set;
        enum re_status status = vli_decode(body, length, bm, &pos, &newly_set);
        CHECK(bm->count == count + newly_set && pos <= 5000);
        CHECK(status == RE_OK ? pos > before : pos == before && newly_set == 0);
        if (round % 50 == 0)
            bitmap_clear_all(bm);
    }
    bitmap_destroy(bm);
}

int main(void)
{
    test_vli_encode_gives_the_captured_packets();
    test_vli_decode_of_the_captured_packets_gives_their_runs();
    test_vli_encode_of_a_dense_part_is_refused_and_the_rest_is_encoded();
    test_vli_codes_at_the_level_limits_round_trip();
    test_vli_random_bitmaps_arrive_identical_mixed_with_plain_packets();
    test_vli_decode_into_a_dirty_bitmap_is_a_union();
    test_vli_decode_of_a_bad_body_is_refused_and_changes_nothing();
    test_vli_decode_of_random_bytes_stays_inside_the_bitmap();
    return 0;
}
