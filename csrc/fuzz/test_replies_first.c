/* SPDX-License-Identifier: Apache-2.0 */
/* What a client waits for: in protocol A not for the send to the peer, as long as the socket has room. */
#include "fuzz/fake_world.h"

enum { DATA = 0, META = 1, SENDS_MAX = 64, LARGE = 2 << 20 };

static struct world world;
static int sends[SENDS_MAX];    /* the streams that took something, in order */
static unsigned sends_count;

static ssize_t noted_send(void *ctx, int stream, const struct iovec *iov, int count)
{
    ssize_t sent = world_send(ctx, stream, iov, count);
    if (sent > 0) {
        CHECK(sends_count < SENDS_MAX);
        sends[sends_count++] = stream;
    }
    return sent;
}

static void submit_inline(void *ctx, struct list_head *ops)
{
    world_submit(ctx, ops);
    while (world.pending_count)
        world_disk_done(&world, 0);
}

static void settle(void)
{
    while (world_turn(&world, true))
        ;
}

static void start(uint32_t protocol)
{
    static struct io_ops table;
    table = world_io;
    table.stream_send = noted_send;
    table.disk_submit = submit_inline;
    memset(&world, 0, sizeof(world));
    world.now = 1;
    world.version = 101;
    world.disk = world_zeroes();
    world.overlay = world.disk + WORLD_DISK;
    world.map = world.overlay + WORLD_DEVICE_PAGES;
    world.core = core_create(&table, &world, NULL);
    CHECK(world.core);
    world_attach(&world, RE_ATTACH_BITMAP_EMPTY | RE_ATTACH_INLINE);
    for (int i = DATA; i <= META; i++)
        world_command(&world, (struct re_command){.type = RE_CMD_STREAM_ADD, .stream = i, .fd = i}, NULL, 0);
    struct re_link options = {.version = 101, .protocol = protocol, .data_stream = DATA, .meta_stream = META,
                              .timeout_ms = 6000, .ping_int_ms = 10000, .ping_timeout_ms = 500,
                              .max_epoch_size = 2048, .max_buffers = 2048};
    world_command(&world, (struct re_command){.type = RE_CMD_LINK_UP, .stream = -1, .link = options}, NULL, 0);
    world_state(&world,
                (struct re_state){.role = 1, .peer_role = 2, .connection = 10, .disk = 8, .peer_disk = 8});
    world_command(&world, (struct re_command){.type = RE_CMD_NBD_ADD, .stream = WORLD_NBD, .nbd = {.fd = WORLD_NBD}},
                  NULL, 0);
    settle();
    sends_count = 0;
}

static void stop(void)
{
    core_destroy(world.core);
    for (int i = 0; i < WORLD_STREAMS; i++) {
        free(world.streams[i].in.data);
        free(world.streams[i].out.data);
    }
}

static void client_writes(uint64_t offset, uint32_t length)
{
    static const uint8_t payload[LARGE];
    uint8_t request[NBD_REQUEST_BYTES] = {0};
    be32_put(request, NBD_REQUEST_MAGIC);
    be16_put(request + 6, NBD_CMD_WRITE);
    be64_put(request + 8, offset);
    be64_put(request + 16, offset);
    be32_put(request + 24, length);
    world_append(&world.streams[WORLD_NBD].in, request, sizeof(request));
    world_append(&world.streams[WORLD_NBD].in, payload, length);
}

static void test_protocol_a_replies_and_then_sends(void)
{
    start(1);
    client_writes(0, BLOCK_BYTES);
    settle();               /* the extent was cold: its activity log transaction came in between */
    CHECK(world.nbd_replies == 1);
    sends_count = 0;
    client_writes(BLOCK_BYTES, BLOCK_BYTES);
    (void)world_turn(&world, false);
    CHECK(world.nbd_replies == 2);
    CHECK(sends_count == 2 && sends[0] == WORLD_NBD && sends[1] == DATA);   /* both in this turn */
    stop();
}

static void test_protocol_a_waits_for_a_full_socket(void)
{
    start(1);
    world.streams[DATA].room = 0;
    client_writes(0, BLOCK_BYTES);
    settle();
    CHECK(world.nbd_replies == 1 && world.epoch_writes == 0);
    client_writes(BLOCK_BYTES, BLOCK_BYTES);
    settle();
    CHECK(world.nbd_replies == 1);
    world.streams[DATA].room = SIZE_MAX;
    settle();
    CHECK(world.nbd_replies == 2);
    stop();
}

static void test_protocol_a_sends_much_first(void)
{
    start(1);
    client_writes(0, BLOCK_BYTES);
    settle();
    sends_count = 0;
    client_writes(0, LARGE);
    settle();
    CHECK(world.nbd_replies == 2 && sends_count >= 2 && sends[0] == DATA && sends[sends_count - 1] != META);
    stop();
}

static void test_protocol_c_sends_first(void)
{
    start(3);
    client_writes(0, BLOCK_BYTES);
    settle();
    CHECK(world.nbd_replies == 0 && sends_count >= 1 && sends[0] == DATA);
    stop();
}

int main(void)
{
    test_protocol_a_replies_and_then_sends();
    test_protocol_a_waits_for_a_full_socket();
    test_protocol_a_sends_much_first();
    test_protocol_c_sends_first();
    return 0;
}
