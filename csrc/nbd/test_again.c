/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of clients that are slow to take their replies while others wait for buffers, and of taking turns. */
#include "nbd/fake_host.h"

#define MIB (1u << 20)
#define SIZE (16ull * MIB)
#define SLOW_NS UINT64_C(200000000)
#define START_NS UINT64_C(1000000)

/* Every sector begins with its number. */
static void fill_disk(struct fake_host *host)
{
    memset(host->disk, 0x77, host->disk_bytes);
    for (uint64_t sector = 0; sector < host->disk_bytes / 512; sector++)
        be64_put(host->disk + sector * 512, sector);
}

static void arrive(struct fake_client *client)
{
    client->input_ready = client->input.length;
    fake_run(client);
}

static bool reclaim(struct fake_client *client, uint64_t now_ns, uint64_t *next)
{
    bool gave = false;
    *next = nbd_session_reclaim(client->session, now_ns, &gave);
    return gave;
}

/* Eight MiB of replies of which `taken` bytes were taken, given back. */
static void open_slow(struct fake_client *client, struct fake_host *host, uint32_t flags, size_t taken)
{
    uint64_t next;
    fake_client_open(client, host, flags, SIZE, NULL, 0);
    client->output_room = taken;
    fake_request(&client->input, 0, NBD_CMD_READ, 1, 512, 7 * MIB);
    fake_request(&client->input, 0, NBD_CMD_READ, 2, 8 * MIB, MIB);
    arrive(client);
    CHECK(client->output.length == taken && client->want_write);
    CHECK(!reclaim(client, START_NS, &next) && next == START_NS + SLOW_NS);
    CHECK(!reclaim(client, START_NS + SLOW_NS - 1, &next) && next == START_NS + SLOW_NS);
    CHECK(reclaim(client, START_NS + SLOW_NS, &next) && next == UINT64_MAX);
    CHECK(!reclaim(client, START_NS + SLOW_NS, &next));     /* nothing is left */
}

static void check_replies(const struct fake_client *client, const struct fake_host *host)
{
    const uint8_t *p = client->output.data;
    CHECK(client->output.length == 8 * MIB + 2 * 16);
    CHECK(be64_get(p + 8) == 1 && be32_get(p + 4) == 0 && memcmp(p + 16, host->disk + 512, 7 * MIB) == 0);
    p += 16 + 7 * MIB;
    CHECK(be64_get(p + 8) == 2 && be32_get(p + 4) == 0 && memcmp(p + 16, host->disk + 8 * MIB, MIB) == 0);
}

static void test_slow_client_gives_its_buffers_to_who_waits_and_still_gets_every_byte(void)
{
    static const size_t taken[] = {0, 7, 16, 16 + 100, 16 + MIB, 16 + MIB + 4097, 16 + 7 * MIB + 3};
    for (size_t i = 0; i < sizeof taken / sizeof taken[0]; i++) {
        struct fake_host host;
        struct fake_client slow, other;
        fake_host_init(&host, 64, 10 * MIB, SIZE);
        fill_disk(&host);
        open_slow(&slow, &host, 0, taken[i]);
        CHECK(host.buffers.used_bytes == 0);
        fake_client_open(&other, &host, 0, SIZE, NULL, 0);
        fake_request(&other.input, 0, NBD_CMD_READ, 3, 0, 8 * MIB);
        arrive(&other);
        CHECK(other.output.length == 8 * MIB + 16);
        while (slow.output.length < 8 * MIB + 2 * 16) {
            slow.output_room = 300001;
            uint64_t before = slow.output.length;
            fake_run(&slow);
            CHECK(slow.output.length > before && host.buffers.used_bytes <= 2 * MIB);
        }
        check_replies(&slow, &host);
        fake_client_close(&slow);
        fake_client_close(&other);
        fake_host_destroy(&host);
    }
}

static void test_sparse_replies_that_were_given_back_keep_their_shape(void)
{
    struct fake_host host;
    struct fake_client quick, slow;
    fake_host_init(&host, 64, 32 * MIB, SIZE);
    fill_disk(&host);
    memset(host.disk + 12288, 0, 3 * 4096);
    memset(host.disk + MIB - 4096, 0, 2 * 4096);
    fake_client_open(&quick, &host, RE_NBD_STRUCTURED | RE_NBD_ALLOCATION, SIZE, NULL, 0);
    fake_request(&quick.input, 0, NBD_CMD_READ, 1, 512, 7 * MIB);
    fake_request(&quick.input, 0, NBD_CMD_READ, 2, 8 * MIB, MIB);
    arrive(&quick);
    open_slow(&slow, &host, RE_NBD_STRUCTURED | RE_NBD_ALLOCATION, 5000);
    slow.output_room = SIZE_MAX;
    fake_run(&slow);
    CHECK(slow.output.length == quick.output.length);
    CHECK(memcmp(slow.output.data, quick.output.data, slow.output.length) == 0);
    fake_client_close(&quick);
    fake_client_close(&slow);
    fake_host_destroy(&host);
}

static void test_client_that_takes_its_replies_keeps_its_buffers(void)
{
    struct fake_host host;
    struct fake_client client;
    uint64_t next;
    fake_host_init(&host, 64, 10 * MIB, SIZE);
    fake_client_open(&client, &host, 0, SIZE, NULL, 0);
    client.output_room = 100;
    fake_request(&client.input, 0, NBD_CMD_READ, 1, 0, 2 * MIB);
    arrive(&client);
    CHECK(!reclaim(&client, START_NS, &next));
    fake_request(&client.input, 0, NBD_CMD_READ, 2, 0, 2 * MIB);
    client.output_room = 2 * MIB + 16;      /* all that was queued then */
    arrive(&client);
    CHECK(!reclaim(&client, START_NS + SLOW_NS, &next) && next == START_NS + 2 * SLOW_NS);
    CHECK(host.buffers.used_bytes > 0);
    client.output_room = SIZE_MAX;
    fake_run(&client);
    CHECK(client.output.length == 2 * (2 * MIB + 16));
    fake_client_close(&client);
    fake_host_destroy(&host);
}

static void test_data_that_cannot_be_read_again_ends_the_client(void)
{
    struct fake_host host;
    struct fake_client slow;
    enum re_nbd_end end;
    fake_host_init(&host, 64, 10 * MIB, SIZE);
    open_slow(&slow, &host, 0, 100);
    host.fail_index = host.done_count + 1;
    host.fail_error = EIO;
    slow.output_room = SIZE_MAX;
    fake_run(&slow);
    CHECK(nbd_session_is_finished(slow.session, &end) && end == RE_NBD_END_STALLED);
    CHECK(slow.output.length == 100);
    fake_client_close(&slow);
    fake_host_destroy(&host);
}

static void test_client_that_leaves_while_data_is_read_again_is_waited_for(void)
{
    struct fake_host host;
    struct fake_client slow;
    enum re_nbd_end end;
    fake_host_init(&host, 64, 10 * MIB, SIZE);
    open_slow(&slow, &host, 0, 100);
    host.hold = true;
    slow.output_room = 10;
    fake_run(&slow);
    CHECK(host.pending_count > 0);
    slow.eof = true;
    nbd_session_shut(slow.session);
    CHECK(!nbd_session_is_finished(slow.session, &end));
    host.hold = false;
    fake_run(&slow);
    CHECK(nbd_session_is_finished(slow.session, &end));
    fake_client_close(&slow);
    fake_host_destroy(&host);
}

static void test_data_is_read_again_once_there_is_a_buffer(void)
{
    struct fake_host host;
    struct fake_client slow, other;
    fake_host_init(&host, 64, 10 * MIB, SIZE);
    fill_disk(&host);
    open_slow(&slow, &host, 0, 100);
    fake_client_open(&other, &host, 0, SIZE, NULL, 0);
    host.hold = true;
    fake_request(&other.input, 0, NBD_CMD_READ, 3, 0, 10 * MIB);
    arrive(&other);
    slow.output_room = SIZE_MAX;
    nbd_session_ready(slow.session, false, true);
    CHECK(nbd_session_is_starved(slow.session) && slow.output.length == 100);
    host.hold = false;
    fake_run(&other);
    fake_run(&slow);
    check_replies(&slow, &host);
    fake_client_close(&slow);
    fake_client_close(&other);
    fake_host_destroy(&host);
}

static void test_many_small_requests_are_taken_in_turns(void)
{
    enum { COUNT = 20000 };
    struct fake_host host;
    struct fake_client client;
    fake_host_init(&host, 64, 10 * MIB, SIZE);
    fake_client_open(&client, &host, 0, SIZE, NULL, 0);
    for (uint32_t i = 0; i < COUNT; i++)
        fake_request(&client.input, 0, i % 2 ? NBD_CMD_CACHE : NBD_CMD_READ, i, 0, i % 2 ? 512 : 511);
    client.input_ready = client.input.length;
    nbd_session_ready(client.session, true, false);
    CHECK(host.stats.nbd_requests <= 512 && nbd_session_waits_its_turn(client.session));
    for (uint64_t before = 0; nbd_session_waits_its_turn(client.session);) {
        CHECK(nbd_session_has_output(client.session));
        nbd_session_flush(client.session);
        CHECK(host.stats.nbd_requests > before && host.stats.nbd_requests - before <= 1024 + 512);
        before = host.stats.nbd_requests;
    }
    fake_run(&client);
    CHECK(host.stats.nbd_requests == COUNT && client.output.length == COUNT * 16);
    fake_client_close(&client);
    fake_host_destroy(&host);
}

static void test_payload_that_stops_arriving_ends_the_client_after_a_minute(void)
{
    struct fake_host host;
    struct fake_client client;
    enum re_nbd_end end;
    fake_host_init(&host, 64, 10 * MIB, SIZE);
    fake_client_open(&client, &host, 0, SIZE, NULL, 0);
    nbd_session_check_payload(client.session, UINT64_C(3600) * 1000000000);     /* an idle client may stay */
    fake_request(&client.input, 0, NBD_CMD_WRITE, 1, 0, MIB);
    arrive(&client);
    CHECK(host.buffers.used_bytes == MIB);
    nbd_session_check_payload(client.session, UINT64_C(59000000000));
    CHECK(!client.closed);
    nbd_session_check_payload(client.session, UINT64_C(60000000001));
    CHECK(client.closed && nbd_session_is_finished(client.session, &end) && end == RE_NBD_END_STALLED);
    CHECK(host.buffers.used_bytes == 0);
    fake_client_close(&client);
    fake_host_destroy(&host);
}

int main(void)
{
    test_slow_client_gives_its_buffers_to_who_waits_and_still_gets_every_byte();
    test_sparse_replies_that_were_given_back_keep_their_shape();
    test_client_that_takes_its_replies_keeps_its_buffers();
    test_data_that_cannot_be_read_again_ends_the_client();
    test_client_that_leaves_while_data_is_read_again_is_waited_for();
    test_data_is_read_again_once_there_is_a_buffer();
    test_many_small_requests_are_taken_in_turns();
    test_payload_that_stops_arriving_ends_the_client_after_a_minute();
    return 0;
}
