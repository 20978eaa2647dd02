/* SPDX-License-Identifier: Apache-2.0 */
/* How many times a Secondary with its disk in memory wakes its peer up: acks of one tick leave together. */
#include "fuzz/fake_world.h"

enum { WRITES = 8, DATA = 0, META = 1, LARGE = 64 << 10, LARGE_A_TURN = (1 << 20) / LARGE };

static struct world world;
static unsigned meta_sends;
static bool late;   /* the shell does not finish inline operations at once */

static ssize_t counted_send(void *ctx, int stream, const struct iovec *iov, int count)
{
    meta_sends += stream == META;
    return world_send(ctx, stream, iov, count);
}

static void submit_inline(void *ctx, struct list_head *ops)
{
    world_submit(ctx, ops);
    while (!late && world.pending_count)
        world_disk_done(&world, 0);
}

static void start(uint32_t flags)
{
    struct io_ops ops = world_io;
    static struct io_ops table;
    ops.stream_send = counted_send;
    ops.disk_submit = submit_inline;
    table = ops;
    memset(&world, 0, sizeof(world));
    world.now = 1;
    world.version = 101;
    world.disk = world_zeroes();
    world.overlay = world.disk + WORLD_DISK;
    world.map = world.overlay + WORLD_DEVICE_PAGES;
    world.core = core_create(&table, &world, NULL);
    CHECK(world.core);
    world_attach(&world, RE_ATTACH_BITMAP_EMPTY | flags);
    for (int i = DATA; i <= META; i++)
        world_command(&world, (struct re_command){.type = RE_CMD_STREAM_ADD, .stream = i, .fd = i}, NULL, 0);
    struct re_link options = {.version = 101, .protocol = 3, .data_stream = DATA, .meta_stream = META,
                              .timeout_ms = 6000,
                              .ping_int_ms = 10000, .ping_timeout_ms = 500, .max_epoch_size = 2048,
                              .max_buffers = 2048};
    world_command(&world, (struct re_command){.type = RE_CMD_LINK_UP, .stream = -1, .link = options}, NULL, 0);
    world_state(&world,
                (struct re_state){.role = 2, .peer_role = 1, .connection = 10, .disk = 8, .peer_disk = 8});
    (void)core_tick(world.core);
    meta_sends = 0;
}

static void stop(void)
{
    core_destroy(world.core);
    for (int i = 0; i < WORLD_STREAMS; i++) {
        free(world.streams[i].in.data);
        free(world.streams[i].out.data);
    }
}

static void peer_data(uint32_t number, uint32_t bytes)
{
    static const uint8_t data[LARGE];
    uint8_t packet[PACKET_HEADER_MAX + PACKET_DATA_SUB] = {0};
    struct world_bytes *in = &world.streams[DATA].in;
    size_t header = packet_header_put(packet, world.version, P_DATA, 0, PACKET_DATA_SUB + bytes);
    packet_data_sub_put(packet + header, &(struct data_sub){.sector = (uint64_t)number * bytes / SECTOR_BYTES,
                                                            .block_id = number + 1,
                                                            .seq_num = number + 1,
                                                            .dp_flags = DP_RW_SYNC | DP_SEND_WRITE_ACK});
    world_append(in, packet, header + PACKET_DATA_SUB);
    world_append(in, data, bytes);
    world.writes_taken++;
}

/* A client at depth 1: every write comes with the barrier of the one before. */
static void peer_writes(uint32_t number)
{
    if (number > 0) {
        struct world_bytes *in = &world.streams[DATA].in;
        uint8_t packet[PACKET_HEADER_MAX];
        uint8_t body[PACKET_BARRIER_BODY] = {0};
        le32_put(body, number);
        size_t header = packet_header_put(packet, world.version, P_BARRIER, 0, sizeof(body));
        world_append(in, packet, header);
        world_append(in, body, sizeof(body));
        world.barriers_taken++;
    }
    peer_data(number, BLOCK_BYTES);
}

static void test_acks_of_one_tick_leave_together(void)
{
    late = false;
    start(RE_ATTACH_INLINE);
    for (uint32_t i = 0; i < WRITES; i++) {
        peer_writes(i);
        (void)world_turn(&world, false);
        CHECK(world.acks_got == i + 1 && world.barrier_acks_got == i);
    }
    CHECK(meta_sends == WRITES);
    stop();
}

static void test_acks_wait_for_no_disk(void)
{
    late = true;
    start(RE_ATTACH_INLINE);
    peer_writes(0);
    peer_writes(1);
    (void)world_turn(&world, false);
    CHECK(world.pending_count == 1);
    world_disk_done(&world, 0);             /* the first write; a flush begins */
    (void)core_tick(world.core);
    CHECK(world.acks_got == 1 && world.pending_count == 1);
    world_disk_done(&world, 0);             /* the flush; the second write begins */
    (void)core_tick(world.core);
    CHECK(world.barrier_acks_got == 1 && world.acks_got == 1 && world.pending_count == 1);
    late = false;
    world_disk_done(&world, 0);
    (void)core_tick(world.core);
    CHECK(world.acks_got == 2);
    stop();
}

static void test_large_writes_that_wait_are_answered_together(void)
{
    start(RE_ATTACH_INLINE);
    peer_data(0, LARGE);
    (void)world_turn(&world, false);    /* from now on the payloads are received one by one */
    CHECK(world.acks_got == 1);
    meta_sends = 0;
    for (uint32_t i = 1; i <= WRITES; i++)
        peer_data(i, LARGE);
    (void)world_turn(&world, false);
    CHECK(world.acks_got == 1 + WRITES && meta_sends == 1);
    stop();
}

static void test_large_writes_leave_the_others_their_turn(void)
{
    start(RE_ATTACH_INLINE);
    peer_data(0, LARGE);
    (void)world_turn(&world, false);
    for (uint32_t i = 1; i <= 4 * LARGE_A_TURN; i++)
        peer_data(i, LARGE);
    (void)world_turn(&world, false);
    CHECK(world.acks_got >= LARGE_A_TURN && world.acks_got <= LARGE_A_TURN + 2);
    while (world_turn(&world, false))
        ;
    CHECK(world.acks_got == 1 + 4 * LARGE_A_TURN);
    stop();
}

int main(void)
{
    test_acks_of_one_tick_leave_together();
    test_acks_wait_for_no_disk();
    test_large_writes_that_wait_are_answered_together();
    test_large_writes_leave_the_others_their_turn();
    return 0;
}
