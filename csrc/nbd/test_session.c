/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of an NBD session, byte for byte: every command, every error, every way the bytes can arrive. */
#include "nbd/fake_host.h"

#define DISK (8u << 20)
#define SIZE (1ull << 40)
#define SPARSE (RE_NBD_STRUCTURED | RE_NBD_ALLOCATION)

/* One client of one engine, and what it is expected to get. */
struct scene {
    struct fake_host host;      /* the engine */
    struct fake_client client;  /* the client */
    struct fake_bytes expected; /* what it must get */
};

static void scene_open(struct scene *scene, uint32_t flags)
{
    fake_host_init(&scene->host, 256, 128u << 20, DISK);
    fake_client_open(&scene->client, &scene->host, flags, SIZE, NULL, 0);
    scene->expected = (struct fake_bytes){0};
    for (uint32_t at = 0; at < DISK; at += 8)   /* no zero block anywhere */
        le64_put(scene->host.disk + at, splitmix64_mix(at));
}

static void ask(struct scene *scene, uint16_t flags, uint16_t type, uint64_t cookie, uint64_t offset,
                uint32_t length)
{
    fake_request(&scene->client.input, flags, type, cookie, offset, length);
}

static void payload(struct scene *scene, uint8_t value, size_t count)
{
    uint8_t *bytes = malloc(count);
    CHECK(bytes);
    memset(bytes, value, count);
    fake_append(&scene->client.input, bytes, count);
    free(bytes);
}

static void expect_simple(struct scene *scene, uint64_t cookie, uint32_t error)
{
    uint8_t reply[NBD_SIMPLE_REPLY_BYTES];
    be32_put(reply, 0x67446698);
    be32_put(reply + 4, error);
    be64_put(reply + 8, cookie);
    fake_append(&scene->expected, reply, sizeof reply);
}

static void expect_u32(struct scene *scene, uint32_t value)
{
    uint8_t bytes[4];
    be32_put(bytes, value);
    fake_append(&scene->expected, bytes, sizeof bytes);
}

static void expect_chunk(struct scene *scene, uint64_t cookie, bool last, uint16_t type, uint32_t length)
{
    uint8_t bytes[12];
    expect_u32(scene, 0x668e33ef);
    be16_put(bytes, last ? 1 : 0);
    be16_put(bytes + 2, type);
    be64_put(bytes + 4, cookie);
    fake_append(&scene->expected, bytes, sizeof bytes);
    expect_u32(scene, length);
}

static void expect_error(struct scene *scene, uint64_t cookie, uint32_t error)
{
    uint8_t no_message[2] = {0, 0};
    expect_chunk(scene, cookie, true, 32769, 6);
    expect_u32(scene, error);
    fake_append(&scene->expected, no_message, sizeof no_message);
}

static void expect_data(struct scene *scene, uint64_t cookie, bool last, uint64_t offset, uint32_t length)
{
    expect_chunk(scene, cookie, last, 1, 8 + length);
    expect_u32(scene, (uint32_t)(offset >> 32));
    expect_u32(scene, (uint32_t)offset);
    fake_append(&scene->expected, scene->host.disk + offset, length);
}

static void expect_hole(struct scene *scene, uint64_t cookie, bool last, uint64_t offset, uint32_t length)
{
    expect_chunk(scene, cookie, last, 2, 12);
    expect_u32(scene, (uint32_t)(offset >> 32));
    expect_u32(scene, (uint32_t)offset);
    expect_u32(scene, length);
}

/* Let everything that the client has written so far arrive. */
static void run(struct scene *scene)
{
    scene->client.input_ready = scene->client.input.length;
    fake_run(&scene->client);
}

static void check_output(const struct scene *scene)
{
    CHECK(scene->client.output.length == scene->expected.length);
    CHECK(scene->expected.length == 0 ||
          memcmp(scene->client.output.data, scene->expected.data, scene->expected.length) == 0);
}

/* Run, compare, and take everything down. */
static void finish(struct scene *scene)
{
    run(scene);
    check_output(scene);
    fake_client_close(&scene->client);
    fake_host_destroy(&scene->host);
    free(scene->expected.data);
}

static void check_log(const struct scene *scene, uint32_t index, uint8_t kind, uint8_t flags, uint64_t offset,
                      uint64_t length)
{
    const struct fake_log *log = &scene->host.log[index];
    CHECK(index < scene->host.log_count);
    CHECK(log->kind == kind && log->flags == flags && log->offset == offset && log->length == length);
}

static void test_read_without_structured_replies_gets_one_header_and_the_data(void)
{
    struct scene scene;
    scene_open(&scene, 0);
    memset(scene.host.disk + 8192, 0, 8192);
    ask(&scene, 0, NBD_CMD_READ, 0x1122334455667788, 4096, 16384);
    expect_simple(&scene, 0x1122334455667788, 0);
    fake_append(&scene.expected, scene.host.disk + 4096, 16384);
    ask(&scene, NBD_CMD_FLAG_FUA, NBD_CMD_READ, 2, 512, 512);
    expect_simple(&scene, 2, 0);
    fake_append(&scene.expected, scene.host.disk + 512, 512);
    finish(&scene);
}

static void test_read_of_several_parts_is_put_together_in_order(void)
{
    struct scene scene;
    struct prng shuffle;
    prng_init(&shuffle, 1);
    scene_open(&scene, 0);
    scene.host.shuffle = &shuffle;
    ask(&scene, 0, NBD_CMD_READ, 9, 512, 5 * (1 << 20) + 1024);
    run(&scene);
    CHECK(scene.host.log_count == 6);
    check_log(&scene, 0, REQUEST_READ, 0, 512, 1 << 20);
    check_log(&scene, 5, REQUEST_READ, 0, 512 + 5 * (1 << 20), 1024);
    expect_simple(&scene, 9, 0);
    fake_append(&scene.expected, scene.host.disk + 512, 5 * (1 << 20) + 1024);
    finish(&scene);
}

static void test_structured_read_sends_zero_blocks_as_holes(void)
{
    struct scene scene;
    scene_open(&scene, SPARSE);
    memset(scene.host.disk, 0, 4096);                   /* at the beginning */
    memset(scene.host.disk + 16384, 0, 8192);           /* inside */
    memset(scene.host.disk + 28672, 0, 4096);           /* at the end */
    memset(scene.host.disk + 40960, 0, 16384);          /* all */
    memset(scene.host.disk + (1 << 20) - 4096, 0, 8192);/* over the border of two parts */
    ask(&scene, 0, NBD_CMD_READ, 1, 0, 32768);
    expect_hole(&scene, 1, false, 0, 4096);
    expect_data(&scene, 1, false, 4096, 12288);
    expect_hole(&scene, 1, false, 16384, 8192);
    expect_data(&scene, 1, false, 24576, 4096);
    expect_hole(&scene, 1, true, 28672, 4096);
    run(&scene);
    ask(&scene, 0, NBD_CMD_READ, 2, 40960, 16384);
    expect_hole(&scene, 2, true, 40960, 16384);
    run(&scene);
    ask(&scene, 0, NBD_CMD_READ, 3, (1 << 20) - 8192, 2 << 20);
    expect_data(&scene, 3, false, (1 << 20) - 8192, 4096);
    expect_hole(&scene, 3, false, (1 << 20) - 4096, 8192);
    expect_data(&scene, 3, true, (1 << 20) + 4096, (2 << 20) - 12288);
    run(&scene);
    ask(&scene, 0, NBD_CMD_READ, 4, 57344, 4096);
    expect_data(&scene, 4, true, 57344, 4096);
    finish(&scene);
}

static void test_structured_read_that_is_not_aligned_finds_only_whole_blocks_of_the_device(void)
{
    struct scene scene;
    scene_open(&scene, SPARSE);
    memset(scene.host.disk + 4096, 0, 12288);
    ask(&scene, 0, NBD_CMD_READ, 1, 4608, 8192);        /* zeroes only, one whole block among them */
    expect_data(&scene, 1, false, 4608, 3584);
    expect_hole(&scene, 1, false, 8192, 4096);
    expect_data(&scene, 1, true, 12288, 512);
    run(&scene);
    memset(scene.host.disk + (1 << 20), 0, 8192);       /* its first block lies in two parts */
    ask(&scene, 0, NBD_CMD_READ, 2, 512, (1 << 20) + 8192);
    expect_data(&scene, 2, false, 512, 3584);
    expect_hole(&scene, 2, false, 4096, 12288);
    expect_data(&scene, 2, false, 16384, (1 << 20) + 4096 - 16384);
    expect_hole(&scene, 2, false, (1 << 20) + 4096, 4096);
    expect_data(&scene, 2, true, (1 << 20) + 8192, 512);
    finish(&scene);
}

static void test_structured_read_with_df_or_below_a_block_is_one_chunk(void)
{
    struct scene scene;
    scene_open(&scene, SPARSE);
    memset(scene.host.disk, 0, 3 << 20);
    ask(&scene, NBD_CMD_FLAG_DF, NBD_CMD_READ, 1, 0, 3 << 20);
    expect_data(&scene, 1, true, 0, 3 << 20);
    run(&scene);
    ask(&scene, 0, NBD_CMD_READ, 2, 0, 3584);
    expect_data(&scene, 2, true, 0, 3584);
    finish(&scene);
}

static void test_structured_read_of_a_chess_board_stays_below_the_limit_of_chunks(void)
{
    struct scene scene;
    size_t chunks = 0, at = 0;
    uint64_t covered = 0;
    scene_open(&scene, SPARSE);
    for (uint32_t block = 0; block < DISK / 4096; block += 2)
        memset(scene.host.disk + block * 4096, 0, 4096);
    ask(&scene, 0, NBD_CMD_READ, 1, 0, DISK);
    run(&scene);
    const uint8_t *out = scene.client.output.data;
    while (at < scene.client.output.length) {
        uint16_t type = be16_get(out + at + 6);
        uint32_t length = be32_get(out + at + 16);
        CHECK(be64_get(out + at + 20) == covered);
        covered += type == NBD_REPLY_OFFSET_HOLE ? be32_get(out + at + 28) : length - 8;
        CHECK((be16_get(out + at + 4) == 1) == (covered == DISK));
        at += 20 + length;
        chunks++;
    }
    CHECK(covered == DISK && chunks > 1000 && chunks <= 1024);
    fake_append(&scene.expected, scene.client.output.data, scene.client.output.length);
    finish(&scene);
}

static void test_write_reaches_the_disk_in_parts_and_in_order_of_arrival(void)
{
    struct scene scene;
    scene_open(&scene, 0);
    ask(&scene, 0, NBD_CMD_WRITE, 1, 4096, 4096);
    payload(&scene, 0xa1, 4096);
    ask(&scene, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 2, 512, (2 << 20) + 512);
    payload(&scene, 0xa2, (2 << 20) + 512);
    ask(&scene, 0, NBD_CMD_WRITE, 3, 1024, 512);
    payload(&scene, 0xa3, 512);
    run(&scene);
    CHECK(scene.host.log_count == 5);
    check_log(&scene, 0, REQUEST_WRITE, 0, 4096, 4096);
    check_log(&scene, 1, REQUEST_WRITE, REQUEST_FUA, 512, 1 << 20);
    check_log(&scene, 2, REQUEST_WRITE, REQUEST_FUA, 512 + (1 << 20), 1 << 20);
    check_log(&scene, 3, REQUEST_WRITE, REQUEST_FUA, 512 + (2 << 20), 512);
    check_log(&scene, 4, REQUEST_WRITE, 0, 1024, 512);
    CHECK(scene.host.disk[4096] == 0xa2 && scene.host.disk[1024] == 0xa3 && scene.host.disk[1535] == 0xa3);
    CHECK(scene.host.disk[1536] == 0xa2 && scene.host.disk[(2 << 20) + 1023] == 0xa2);
    for (uint64_t cookie = 1; cookie <= 3; cookie++)
        expect_simple(&scene, cookie, 0);
    finish(&scene);
}

static void test_flush_trim_zeroes_and_cache_carry_their_flags(void)
{
    struct scene scene;
    scene_open(&scene, SPARSE);
    ask(&scene, 0, NBD_CMD_FLUSH, 1, 77, 99);   /* reserved fields are ignored */
    ask(&scene, 0, NBD_CMD_TRIM, 2, 4096, 512);
    ask(&scene, NBD_CMD_FLAG_FUA, NBD_CMD_TRIM, 3, 0, 4096);
    ask(&scene, 0, NBD_CMD_WRITE_ZEROES, 4, 0, 4096);
    ask(&scene, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FUA, NBD_CMD_WRITE_ZEROES, 5, 0, 4096);
    ask(&scene, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_WRITE_ZEROES, 6, 0, 4096);
    ask(&scene, 0, NBD_CMD_CACHE, 7, 0, 128u << 20);
    expect_simple(&scene, 7, 0);                /* at once */
    run(&scene);
    CHECK(scene.host.log_count == 6);
    check_log(&scene, 0, REQUEST_FLUSH, 0, 0, 0);
    check_log(&scene, 1, REQUEST_TRIM, 0, 4096, 512);
    check_log(&scene, 2, REQUEST_TRIM, REQUEST_FUA, 0, 4096);
    check_log(&scene, 3, REQUEST_ZERO, REQUEST_MAY_UNMAP, 0, 4096);
    check_log(&scene, 4, REQUEST_ZERO, REQUEST_FUA, 0, 4096);
    check_log(&scene, 5, REQUEST_ZERO, REQUEST_MAY_UNMAP | REQUEST_FAST, 0, 4096);
    for (uint64_t cookie = 1; cookie <= 6; cookie++)
        expect_simple(&scene, cookie, 0);
    finish(&scene);
}

static void test_trim_of_gigabytes_is_cut_at_extent_borders(void)
{
    struct scene scene;
    scene_open(&scene, 0);
    ask(&scene, 0, NBD_CMD_TRIM, 1, (5u << 20) + 512, 0xfffffe00);
    run(&scene);
    uint64_t next = (5u << 20) + 512;
    for (uint32_t i = 0; i < scene.host.log_count; i++) {
        CHECK(scene.host.log[i].offset == next);
        next += scene.host.log[i].length;
        CHECK((next & ((4u << 20) - 1)) == 0 || i == scene.host.log_count - 1);
    }
    CHECK(next == (5u << 20) + 512 + 0xfffffe00ull && scene.host.log_count <= 33);
    expect_simple(&scene, 1, 0);
    finish(&scene);
}

static void test_block_status_joins_clips_and_aligns_extents(void)
{
    struct scene scene;
    static const struct disk_extent extents[] = {
        {4096, false}, {4096, false}, {8192, true}, {100, false}, {8092, true}, {1ull << 50, false},
    };
    scene_open(&scene, SPARSE);
    memcpy(scene.host.extents, extents, sizeof extents);
    scene.host.extents_count = 6;
    ask(&scene, 0, NBD_CMD_BLOCK_STATUS, 1, 4096, 65536);
    static const uint32_t all[] = {42, 8192, 0, 8192, 3, 512, 0, 7680, 3, 40960, 0};
    expect_chunk(&scene, 1, true, 5, sizeof all);
    for (size_t i = 0; i < sizeof all / 4; i++)
        expect_u32(&scene, all[i]);
    run(&scene);
    ask(&scene, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_BLOCK_STATUS, 2, 4096, 2048);
    static const uint32_t one[] = {42, 2048, 0};
    expect_chunk(&scene, 2, true, 5, sizeof one);
    for (size_t i = 0; i < sizeof one / 4; i++)
        expect_u32(&scene, one[i]);
    run(&scene);
    check_log(&scene, 1, REQUEST_EXTENTS, 0, 4096, 2048);
    scene.host.extents_count = 0;
    ask(&scene, 0, NBD_CMD_BLOCK_STATUS, 3, 0, 0xfffffe00);
    static const uint32_t none[] = {42, 0xfffffe00, 0};
    expect_chunk(&scene, 3, true, 5, sizeof none);
    for (size_t i = 0; i < sizeof none / 4; i++)
        expect_u32(&scene, none[i]);
    finish(&scene);
}

/* Requests that are refused, whatever the volume says. */
static const struct refusal {
    uint32_t options;   /* enum re_nbd_flags */
    uint16_t flags, type;
    uint64_t offset;
    uint32_t length, error;
} refusals[] = {
    {0, 0, NBD_CMD_READ, 0, 0, NBD_EINVAL},
    {0, 0, NBD_CMD_READ, 1, 512, NBD_EINVAL},
    {0, 0, NBD_CMD_READ, 0, 513, NBD_EINVAL},
    {0, 0, NBD_CMD_READ, SIZE - 512, 1024, NBD_EINVAL},
    {0, 0, NBD_CMD_READ, SIZE, 512, NBD_EINVAL},
    {0, 0, NBD_CMD_READ, 0xfffffffffffffe00, 1024, NBD_EINVAL},
    {0, 0, NBD_CMD_READ, 0, (32u << 20) + 512, NBD_EINVAL},
    {0, 0, NBD_CMD_READ, 0, 0xfffffe00, NBD_EINVAL},
    {0, NBD_CMD_FLAG_DF, NBD_CMD_READ, 0, 512, NBD_EINVAL},
    {SPARSE, NBD_CMD_FLAG_DF, NBD_CMD_READ, 0, (32u << 20) + 512, NBD_EOVERFLOW},
    {SPARSE, 0x20, NBD_CMD_READ, 0, 512, NBD_EINVAL},
    {0, 0x8000, NBD_CMD_READ, 0, 512, NBD_EINVAL},
    {0, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_TRIM, 0, 512, NBD_EINVAL},
    {0, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLUSH, 0, 0, NBD_EINVAL},
    {0, 0, NBD_CMD_WRITE, SIZE - 512, 1024, NBD_ENOSPC},
    {0, 0, NBD_CMD_WRITE, 0xfffffffffffffe00, 1024, NBD_ENOSPC},
    {0, 0, NBD_CMD_WRITE, 0, 0, NBD_EINVAL},
    {0, 0, NBD_CMD_WRITE, 0, 100, NBD_EINVAL},
    {0, 0, NBD_CMD_WRITE, 100, 512, NBD_EINVAL},
    {0, 0, NBD_CMD_WRITE, 0, (32u << 20) + 512, NBD_EINVAL},
    {0, 0, NBD_CMD_WRITE, 0, 64u << 20, NBD_EINVAL},
    {0, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_WRITE, 0, 512, NBD_EINVAL},
    {SPARSE, 0x20, NBD_CMD_WRITE, 0, 512, NBD_EINVAL},
    {RE_NBD_READ_ONLY, 0, NBD_CMD_WRITE, 0, 4096, NBD_EPERM},
    {RE_NBD_READ_ONLY, 0, NBD_CMD_TRIM, 0, 4096, NBD_EPERM},
    {RE_NBD_READ_ONLY, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_WRITE_ZEROES, 0, 4096, NBD_EPERM},
    {0, 0, NBD_CMD_TRIM, SIZE, 4096, NBD_EINVAL},
    {0, 0, NBD_CMD_TRIM, 0, 0, NBD_EINVAL},
    {0, 0, NBD_CMD_WRITE_ZEROES, SIZE - 512, 4096, NBD_ENOSPC},
    {0, 0, NBD_CMD_WRITE_ZEROES, 0, 4097, NBD_EINVAL},
    {0, 0, NBD_CMD_CACHE, SIZE, 512, NBD_EINVAL},
    {0, 0, NBD_CMD_BLOCK_STATUS, 0, 4096, NBD_EINVAL},
    {RE_NBD_STRUCTURED, 0, NBD_CMD_BLOCK_STATUS, 0, 4096, NBD_EINVAL},
    {SPARSE, 0, NBD_CMD_BLOCK_STATUS, SIZE, 4096, NBD_EINVAL},
    {SPARSE, 0, NBD_CMD_BLOCK_STATUS, 0, 0, NBD_EINVAL},
    {0, 0, 8, 0, 512, NBD_EINVAL},
    {SPARSE, 0xffff, 0xffff, 0, 512, NBD_EINVAL},
};

static void test_request_that_breaks_a_rule_gets_its_error_and_the_next_one_is_served(void)
{
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const struct refusal *refusal = &refusals[i];
        struct scene scene;
        scene_open(&scene, refusal->options);
        ask(&scene, refusal->flags, refusal->type, 5, refusal->offset, refusal->length);
        if (refusal->type == NBD_CMD_WRITE)
            payload(&scene, 0x25, refusal->length);
        if ((refusal->options & RE_NBD_STRUCTURED) &&
            (refusal->type == NBD_CMD_READ || refusal->type == NBD_CMD_BLOCK_STATUS))
            expect_error(&scene, 5, refusal->error);
        else
            expect_simple(&scene, 5, refusal->error);
        ask(&scene, 0, NBD_CMD_FLUSH, 6, 0, 0);
        expect_simple(&scene, 6, 0);
        run(&scene);
        CHECK(scene.host.log_count == 1 && scene.host.stats.nbd_requests == 2);
        finish(&scene);
    }
}

static void test_error_of_the_volume_is_told_in_the_standards_numbers(void)
{
    static const struct { int local; uint32_t wire; } errors[] = {
        {EPERM, 1}, {EIO, 5}, {EINVAL, 22}, {ENOSPC, 28}, {EOVERFLOW, 75}, {ENOTSUP, 95}, {ESHUTDOWN, 108},
        {EBADF, 5}, {ENOMEM, 5}, {EROFS, 5},
    };
    static const uint16_t types[] = {NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_FLUSH, NBD_CMD_TRIM,
                                     NBD_CMD_WRITE_ZEROES, NBD_CMD_BLOCK_STATUS};
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        for (size_t k = 0; k < sizeof types / sizeof types[0]; k++) {
            struct scene scene;
            scene_open(&scene, SPARSE);
            scene.host.fail_index = 1;
            scene.host.fail_error = errors[i].local;
            ask(&scene, 0, types[k], 1, 0, 4096);
            if (types[k] == NBD_CMD_WRITE)
                payload(&scene, 1, 4096);
            if (types[k] == NBD_CMD_READ || types[k] == NBD_CMD_BLOCK_STATUS)
                expect_error(&scene, 1, errors[i].wire);
            else
                expect_simple(&scene, 1, errors[i].wire);
            finish(&scene);
        }
}

static void test_first_error_of_several_parts_wins(void)
{
    struct scene scene;
    scene_open(&scene, 0);
    scene.host.fail_index = 2;
    scene.host.fail_error = ENOSPC;
    ask(&scene, 0, NBD_CMD_WRITE, 1, 0, 3 << 20);
    payload(&scene, 1, 3 << 20);
    expect_simple(&scene, 1, NBD_ENOSPC);
    ask(&scene, 0, NBD_CMD_READ, 2, 0, 512);
    run(&scene);
    expect_simple(&scene, 2, 0);
    fake_append(&scene.expected, scene.host.disk, 512);
    finish(&scene);
}

static void expect_end(struct scene *scene, enum re_nbd_end expected)
{
    enum re_nbd_end end;
    CHECK(nbd_session_is_finished(scene->client.session, &end) && end == expected);
}

static void test_bad_magic_ends_the_client(void)
{
    struct scene scene;
    scene_open(&scene, 0);
    ask(&scene, 0, NBD_CMD_CACHE, 1, 0, 512);
    expect_simple(&scene, 1, 0);
    ask(&scene, 0, NBD_CMD_READ, 2, 0, 512);
    scene.client.input.data[NBD_REQUEST_BYTES] ^= 1;
    ask(&scene, 0, NBD_CMD_READ, 3, 0, 512);
    run(&scene);
    expect_end(&scene, RE_NBD_END_PROTOCOL);
    finish(&scene);
}

static void test_write_of_more_than_can_be_drained_ends_the_client(void)
{
    struct scene scene;
    scene_open(&scene, 0);
    ask(&scene, 0, NBD_CMD_WRITE, 1, 0, (64u << 20) + 512);
    expect_simple(&scene, 1, NBD_EINVAL);
    run(&scene);
    expect_end(&scene, RE_NBD_END_PROTOCOL);
    finish(&scene);
}

/* All commands in one script; 0x25.. in payloads would be taken for headers if the position were lost. */
static void every_command(struct scene *scene)
{
    memset(scene->host.disk + 8192, 0, 4096);
    scene->host.extents[0] = (struct disk_extent){.length = 1 << 20, .hole = true};
    scene->host.extents_count = 1;
    ask(scene, 0, NBD_CMD_CACHE, 1, 0, 512);
    ask(scene, 0, NBD_CMD_WRITE, 2, 4096, 512);
    payload(scene, 0x11, 512);
    ask(scene, 0, NBD_CMD_WRITE, 3, 4097, 100);     /* drained */
    payload(scene, 0x22, 100);
    ask(scene, 0, NBD_CMD_READ, 4, 4096, 8192);
    ask(scene, 0, NBD_CMD_BLOCK_STATUS, 5, 0, 4096);
    ask(scene, 0, NBD_CMD_WRITE_ZEROES, 6, 0, 512);
    ask(scene, 0, NBD_CMD_TRIM, 7, 0, 512);
    ask(scene, 0, NBD_CMD_FLUSH, 8, 0, 0);
    ask(scene, 0, 99, 9, 0, 0);
    ask(scene, 0, NBD_CMD_DISC, 10, 0, 0);
}

static void expect_every_command(struct scene *scene)
{
    expect_simple(scene, 1, 0);
    expect_simple(scene, 2, 0);
    expect_simple(scene, 3, NBD_EINVAL);
    expect_data(scene, 4, false, 4096, 4096);
    expect_hole(scene, 4, true, 8192, 4096);
    expect_chunk(scene, 5, true, 5, 12);
    expect_u32(scene, 42);
    expect_u32(scene, 4096);
    expect_u32(scene, 3);
    for (uint64_t cookie = 6; cookie <= 8; cookie++)
        expect_simple(scene, cookie, 0);
    expect_simple(scene, 9, NBD_EINVAL);
}

/* Whoever answers at once may overtake others: only the lengths are the same for every way of arrival. */
static void test_script_cut_at_any_byte_is_served_the_same(void)
{
    size_t length = 1;
    for (size_t cut = 1; cut < length; cut++) {
        struct scene scene;
        scene_open(&scene, SPARSE);
        every_command(&scene);
        length = scene.client.input.length;
        scene.client.input_ready = cut;
        fake_run(&scene.client);
        run(&scene);
        expect_every_command(&scene);
        CHECK(scene.client.output.length == scene.expected.length);
        CHECK(scene.host.log_count == 6 && scene.host.stats.nbd_requests == 9);
        CHECK(scene.host.disk[4096] == 0x11 && scene.host.disk[4607] == 0x11);
        expect_end(&scene, RE_NBD_END_DISC);
        scene.expected.length = 0;
        fake_append(&scene.expected, scene.client.output.data, scene.client.output.length);
        finish(&scene);
    }
}

static void test_script_that_arrives_byte_by_byte_is_answered_in_order(void)
{
    struct scene scene;
    scene_open(&scene, SPARSE);
    every_command(&scene);
    scene.client.receive_max = 1;
    run(&scene);
    expect_every_command(&scene);
    expect_end(&scene, RE_NBD_END_DISC);
    finish(&scene);
}

static void test_bytes_that_the_negotiation_read_are_served_without_input(void)
{
    struct fake_bytes script = {0};
    struct scene scene;
    scene_open(&scene, 0);
    fake_client_close(&scene.client);
    fake_request(&script, 0, NBD_CMD_FLUSH, 1, 0, 0);
    fake_request(&script, 0, NBD_CMD_READ, 2, 0, 512);
    fake_client_open(&scene.client, &scene.host, 0, SIZE, script.data, script.length - 10);
    CHECK(nbd_session_has_output(scene.client.session));
    run(&scene);
    expect_simple(&scene, 1, 0);
    check_output(&scene);
    fake_append(&scene.client.input, script.data + script.length - 10, 10);
    expect_simple(&scene, 2, 0);
    fake_append(&scene.expected, scene.host.disk, 512);
    finish(&scene);
    free(script.data);
}

static void test_resize_moves_the_end(void)
{
    struct scene scene;
    scene_open(&scene, 0);
    nbd_session_resize(scene.client.session, 4096);
    ask(&scene, 0, NBD_CMD_TRIM, 1, 4096, 512);
    expect_simple(&scene, 1, NBD_EINVAL);
    run(&scene);
    nbd_session_resize(scene.client.session, 8192);
    ask(&scene, 0, NBD_CMD_TRIM, 2, 4096, 512);
    expect_simple(&scene, 2, 0);
    finish(&scene);
}

int main(void)
{
    test_read_without_structured_replies_gets_one_header_and_the_data();
    test_read_of_several_parts_is_put_together_in_order();
    test_structured_read_sends_zero_blocks_as_holes();
    test_structured_read_that_is_not_aligned_finds_only_whole_blocks_of_the_device();
    test_structured_read_with_df_or_below_a_block_is_one_chunk();
    test_structured_read_of_a_chess_board_stays_below_the_limit_of_chunks();
    test_write_reaches_the_disk_in_parts_and_in_order_of_arrival();
    test_flush_trim_zeroes_and_cache_carry_their_flags();
    test_trim_of_gigabytes_is_cut_at_extent_borders();
    test_block_status_joins_clips_and_aligns_extents();
    test_request_that_breaks_a_rule_gets_its_error_and_the_next_one_is_served();
    test_error_of_the_volume_is_told_in_the_standards_numbers();
    test_first_error_of_several_parts_wins();
    test_bad_magic_ends_the_client();
    test_write_of_more_than_can_be_drained_ends_the_client();
    test_script_cut_at_any_byte_is_served_the_same();
    test_script_that_arrives_byte_by_byte_is_answered_in_order();
    test_bytes_that_the_negotiation_read_are_served_without_input();
    test_resize_moves_the_end();
    return 0;
}
