/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of an NBD session under pressure: full sockets, empty pools, clients that leave, noise. */
#include "nbd/fake_host.h"

#define SIZE (1ull << 40)
#define MIB (1u << 20)
#define SPARSE (RE_NBD_STRUCTURED | RE_NBD_ALLOCATION)

static void send_all(struct fake_client *client)
{
    client->input_ready = client->input.length;
    fake_run(client);
}

static void send_zeroes(struct fake_bytes *script, size_t count)
{
    static const uint8_t zeroes[4096];
    for (; count > 0; count -= size_min(count, sizeof zeroes))
        fake_append(script, zeroes, size_min(count, sizeof zeroes));
}

static bool is_finished(const struct fake_client *client, enum re_nbd_end expected)
{
    enum re_nbd_end end;
    return nbd_session_is_finished(client->session, &end) && end == expected;
}

/* What the client knows of a request that it has sent. */
struct asked {
    uint16_t type;      /* enum nbd_command_type */
    uint32_t length;    /* bytes */
    uint32_t got;       /* READ: bytes answered */
    bool done;          /* the last reply was seen */
};

/* Walk through all replies (cookies are indexes of `asked`); returns how many requests are answered. */
static uint32_t check_replies(const struct fake_bytes *output, struct asked *asked, uint32_t count,
                              bool structured)
{
    const uint8_t *p = output->data, *end = p + output->length;
    uint32_t answered = 0;
    while (p < end) {
        CHECK(end - p >= NBD_SIMPLE_REPLY_BYTES);
        bool chunk = be32_get(p) == NBD_STRUCTURED_REPLY_MAGIC;
        CHECK(chunk || be32_get(p) == NBD_SIMPLE_REPLY_MAGIC);
        CHECK(be64_get(p + 8) < count);
        struct asked *request = &asked[be64_get(p + 8)];
        CHECK(!request->done);
        bool content = request->type == NBD_CMD_READ || request->type == NBD_CMD_BLOCK_STATUS;
        CHECK(chunk == (structured && content));
        if (!chunk) {
            p += NBD_SIMPLE_REPLY_BYTES;
            request->done = true;
            if (request->type == NBD_CMD_READ && be32_get(p - 12) == 0)
                p += request->length;
        } else {
            uint16_t type = be16_get(p + 6);
            uint32_t length = be32_get(p + 16);
            request->done = be16_get(p + 4) & NBD_REPLY_FLAG_DONE;
            p += NBD_CHUNK_BYTES;
            CHECK((uint64_t)(end - p) >= length);
            if (type == NBD_REPLY_OFFSET_DATA)
                request->got += length - 8;
            else if (type == NBD_REPLY_OFFSET_HOLE)
                request->got += be32_get(p + 8);
            CHECK(!request->done || type >= NBD_REPLY_BLOCK_STATUS || request->got == request->length);
            p += length;
        }
        answered += request->done;
    }
    CHECK(p == end);
    return answered;
}

static void test_pressure_output_of_a_slow_client_is_bounded_and_complete(void)
{
    enum { COUNT = 1000, LENGTH = 65536 };
    struct fake_host host;
    struct fake_client client;
    struct asked *asked = calloc(COUNT, sizeof(*asked));
    uint64_t seen = 0;
    fake_host_init(&host, 256, 128u << 20, 4 * MIB);
    fake_client_open(&client, &host, 0, SIZE, NULL, 0);
    for (uint32_t i = 0; i < COUNT; i++) {
        asked[i] = (struct asked){.type = NBD_CMD_READ, .length = LENGTH};
        fake_request(&client.input, 0, NBD_CMD_READ, i, 0, LENGTH);
    }
    client.output_room = 10;
    send_all(&client);
    CHECK(client.want_write && !client.want_read);
    while (client.output.length < COUNT * (LENGTH + 16ull)) {
        seen = u64_max(seen, host.buffers.used_bytes);
        client.output_room = 150001;
        uint64_t before = client.output.length;
        fake_run(&client);      /* no input event will come: all requests were received at the beginning */
        CHECK(client.output.length > before);
    }
    CHECK(seen <= 4 * MIB + 128 * (LENGTH + 16) && client.receives <= 3);
    CHECK(check_replies(&client.output, asked, COUNT, false) == COUNT);
    fake_client_close(&client);
    fake_host_destroy(&host);
    free(asked);
}

static void test_pressure_requests_in_flight_are_limited_and_go_on_after_completion(void)
{
    struct fake_host host;
    struct fake_client client;
    struct asked asked[300];
    fake_host_init(&host, 512, 128u << 20, MIB);
    fake_client_open(&client, &host, 0, SIZE, NULL, 0);
    host.hold = true;
    for (uint32_t i = 0; i < 300; i++) {
        asked[i] = (struct asked){.type = NBD_CMD_FLUSH};
        fake_request(&client.input, 0, NBD_CMD_FLUSH, i, 0, 0);
    }
    send_all(&client);
    CHECK(host.pending_count == 128 && nbd_session_in_flight(client.session) == 128);
    CHECK(!client.want_read && !nbd_session_is_starved(client.session));
    host.hold = false;
    fake_run(&client);
    CHECK(client.want_read && check_replies(&client.output, asked, 300, false) == 300);
    fake_client_close(&client);
    fake_host_destroy(&host);
}

static void test_pressure_bytes_in_flight_are_limited(void)
{
    struct fake_host host;
    struct fake_client client;
    fake_host_init(&host, 512, 256u << 20, MIB);
    fake_client_open(&client, &host, 0, SIZE, NULL, 0);
    host.hold = true;
    for (uint32_t i = 0; i < 100; i++)
        fake_request(&client.input, 0, NBD_CMD_READ, i, 0, 3 * MIB);
    send_all(&client);
    CHECK(nbd_session_in_flight(client.session) == 22 && host.pending_count == 66);
    host.hold = false;
    fake_run(&client);
    CHECK(client.output.length == 100 * (3ull * MIB + 16));
    fake_client_close(&client);
    fake_host_destroy(&host);
}

static void test_pressure_small_pool_starves_the_session_and_everything_is_served_later(void)
{
    struct fake_host host;
    struct fake_client client;
    struct asked asked[200];
    fake_host_init(&host, 3, MIB, MIB);
    fake_client_open(&client, &host, SPARSE, SIZE, NULL, 0);
    host.hold = true;
    for (uint32_t i = 0; i < 200; i++) {
        static const uint16_t types[] = {NBD_CMD_WRITE, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_BLOCK_STATUS,
                                         NBD_CMD_FLUSH};
        asked[i] = (struct asked){.type = types[i % 5], .length = i % 3 ? 4096 : MIB};
        fake_request(&client.input, 0, asked[i].type, i, 0, asked[i].length);
        if (asked[i].type == NBD_CMD_WRITE)
            send_zeroes(&client.input, asked[i].length);
    }
    send_all(&client);
    CHECK(nbd_session_is_starved(client.session) && !client.want_read);
    host.hold = false;
    fake_run(&client);
    CHECK(check_replies(&client.output, asked, 200, true) == 200);
    fake_client_close(&client);
    fake_host_destroy(&host);
}

static void test_pressure_own_output_that_leaves_gives_the_starved_session_its_buffers_at_once(void)
{
    struct fake_host host;
    struct fake_client client;
    fake_host_init(&host, 64, 2 * MIB, MIB);
    fake_client_open(&client, &host, 0, SIZE, NULL, 0);
    host.hold = true;
    fake_request(&client.input, 0, NBD_CMD_READ, 1, 0, 2 * MIB);
    fake_request(&client.input, 0, NBD_CMD_READ, 2, 0, 2 * MIB);
    send_all(&client);
    CHECK(nbd_session_is_starved(client.session) && host.pending_count == 2);
    fake_complete(&host, 0);
    fake_complete(&host, 0);
    nbd_session_resume(client.session);
    CHECK(nbd_session_is_starved(client.session));  /* its own reply has the buffers */
    nbd_session_flush(client.session);
    CHECK(!nbd_session_is_starved(client.session) && host.pending_count == 2);
    host.hold = false;
    fake_run(&client);
    CHECK(client.output.length == 2 * (2 * MIB + 16));
    fake_client_close(&client);
    fake_host_destroy(&host);
}

static void test_pressure_read_larger_than_the_whole_pool_is_an_error(void)
{
    struct fake_host host;
    struct fake_client client;
    fake_host_init(&host, 2, 4 * MIB, MIB);
    fake_client_open(&client, &host, 0, SIZE, NULL, 0);
    fake_request(&client.input, 0, NBD_CMD_READ, 1, 0, 5 * MIB);
    fake_request(&client.input, 0, NBD_CMD_READ, 2, 0, 3 * MIB);    /* more parts than requests exist */
    fake_request(&client.input, 0, NBD_CMD_READ, 3, 0, 2 * MIB);
    send_all(&client);
    CHECK(client.output.length == 3 * 16 + 2 * MIB);
    CHECK(be32_get(client.output.data + 4) == NBD_EIO && be32_get(client.output.data + 20) == NBD_EIO);
    fake_client_close(&client);
    fake_host_destroy(&host);
}

static void test_pressure_two_clients_with_large_reads_and_one_small_pool_both_end(void)
{
    struct fake_host host;
    struct fake_client clients[2];
    fake_host_init(&host, 48, 40 * MIB, MIB);
    for (int i = 0; i < 2; i++) {
        fake_client_open(&clients[i], &host, 0, SIZE, NULL, 0);
        for (uint32_t k = 0; k < 4; k++)
            fake_request(&clients[i].input, 0, NBD_CMD_READ, k, 0, 32 * MIB);
        clients[i].input_ready = clients[i].input.length;
    }
    bool work = true;
    while (work) {
        work = fake_turn(&clients[0]);
        work = fake_turn(&clients[1]) || work;
    }
    for (int i = 0; i < 2; i++) {
        CHECK(clients[i].output.length == 4 * (32ull * MIB + 16));
        fake_client_close(&clients[i]);
    }
    fake_host_destroy(&host);
}

static void test_disc_waits_for_requests_in_flight_and_ignores_what_follows(void)
{
    struct fake_host host;
    struct fake_client client;
    struct asked asked[3] = {{.type = NBD_CMD_READ, .length = 4096}, {.type = NBD_CMD_WRITE},
                             {.type = NBD_CMD_FLUSH}};
    fake_host_init(&host, 64, 4 * MIB, MIB);
    fake_client_open(&client, &host, 0, SIZE, NULL, 0);
    host.hold = true;
    fake_request(&client.input, 0, NBD_CMD_READ, 0, 0, 4096);
    fake_request(&client.input, 0, NBD_CMD_WRITE, 1, 0, 512);
    send_zeroes(&client.input, 512);
    fake_request(&client.input, 0, NBD_CMD_FLUSH, 2, 0, 0);
    fake_request(&client.input, 0xffff, NBD_CMD_DISC, 3, 1, 1);
    fake_request(&client.input, 0, NBD_CMD_FLUSH, 4, 0, 0);
    client.eof = true;
    send_all(&client);
    CHECK(nbd_session_in_flight(client.session) == 3 && !client.want_read && !client.closed);
    CHECK(!is_finished(&client, RE_NBD_END_DISC));
    client.output_room = 100;
    host.hold = false;
    fake_run(&client);
    CHECK(client.output.length == 100 && !is_finished(&client, RE_NBD_END_DISC));
    client.output_room = SIZE_MAX;
    fake_run(&client);
    CHECK(check_replies(&client.output, asked, 3, false) == 3 && is_finished(&client, RE_NBD_END_DISC));
    fake_client_close(&client);
    fake_host_destroy(&host);
}

static void test_client_that_vanishes_has_its_submitted_writes_done_and_nothing_else(void)
{
    struct fake_host host;
    struct fake_client client;
    fake_host_init(&host, 64, 64 * MIB, 8 * MIB);
    memset(host.disk, 0xee, 8 * MIB);
    fake_client_open(&client, &host, 0, SIZE, NULL, 0);
    host.hold = true;
    fake_request(&client.input, 0, NBD_CMD_READ, 1, 0, 4096);
    fake_request(&client.input, 0, NBD_CMD_WRITE, 2, 0, 4096);
    send_zeroes(&client.input, 4096);
    fake_request(&client.input, 0, NBD_CMD_WRITE, 3, MIB, 3 * MIB);
    send_zeroes(&client.input, MIB + MIB / 2);
    client.eof = true;
    send_all(&client);
    CHECK(client.closed && host.pending_count == 3 && nbd_session_in_flight(client.session) == 3);
    CHECK(!is_finished(&client, RE_NBD_END_EOF));
    host.hold = false;
    fake_run(&client);
    CHECK(is_finished(&client, RE_NBD_END_EOF) && client.output.length == 0);
    CHECK(host.disk[0] == 0 && host.disk[MIB] == 0 && host.disk[2 * MIB - 1] == 0);
    CHECK(host.disk[4096] == 0xee && host.disk[2 * MIB] == 0xee);
    fake_client_close(&client);
    fake_host_destroy(&host);
}

static void test_client_whose_socket_breaks_is_closed_and_its_queued_buffers_come_back(void)
{
    struct fake_host host;
    struct fake_client client;
    fake_host_init(&host, 64, 64 * MIB, MIB);
    fake_client_open(&client, &host, 0, SIZE, NULL, 0);
    client.output_room = 100;
    for (uint32_t i = 0; i < 4; i++)
        fake_request(&client.input, 0, NBD_CMD_READ, i, 0, MIB);
    send_all(&client);
    CHECK(host.buffers.used_bytes == 4 * MIB);
    host.hold = true;
    fake_request(&client.input, 0, NBD_CMD_READ, 9, 0, MIB);
    send_all(&client);
    CHECK(host.buffers.used_bytes == 5 * MIB);
    client.send_fails = true;
    client.output_room = 100;
    fake_run(&client);
    CHECK(client.closed && host.buffers.used_bytes == MIB && !is_finished(&client, RE_NBD_END_RESET));
    host.hold = false;
    fake_run(&client);
    CHECK(is_finished(&client, RE_NBD_END_RESET) && host.buffers.used_bytes == 0);
    fake_client_close(&client);
    fake_host_destroy(&host);
}

static void test_shut_in_the_middle_of_commands_never_reports_success_for_half_of_one(void)
{
    struct fake_host host;
    struct fake_client client;
    fake_host_init(&host, 4, 64 * MIB, MIB);
    fake_client_open(&client, &host, 0, SIZE, NULL, 0);
    host.hold = true;
    fake_request(&client.input, 0, NBD_CMD_FLUSH, 1, 0, 0);
    fake_request(&client.input, 0, NBD_CMD_TRIM, 2, 0, 1024u * MIB);    /* eight parts, three requests */
    fake_request(&client.input, 0, NBD_CMD_FLUSH, 3, 0, 0);
    send_all(&client);
    CHECK(nbd_session_is_starved(client.session));
    nbd_session_shut(client.session);
    CHECK(!nbd_session_is_starved(client.session) && !is_finished(&client, RE_NBD_END_CLOSED));
    host.hold = false;
    fake_run(&client);
    CHECK(is_finished(&client, RE_NBD_END_CLOSED) && host.log_count == 4 && client.output.length == 32);
    CHECK(be64_get(client.output.data + 8) == 1 && be32_get(client.output.data + 4) == 0);
    CHECK(be64_get(client.output.data + 24) == 2 && be32_get(client.output.data + 20) == NBD_ESHUTDOWN);
    fake_client_close(&client);
    fake_client_open(&client, &host, 0, SIZE, NULL, 0);
    fake_request(&client.input, 0, NBD_CMD_WRITE, 1, 0, 4096);
    send_zeroes(&client.input, 100);
    send_all(&client);
    nbd_session_shut(client.session);
    CHECK(host.buffers.used_bytes == 0);
    fake_client_close(&client);
    fake_host_destroy(&host);
}

/* Random valid and invalid requests; returns the script, and in `asked` what was sent. */
static void random_script(struct fake_bytes *script, struct prng *prng, struct asked *asked, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint16_t type = (uint16_t)prng_below(prng, 8);
        uint32_t length = (uint32_t)(prng_below(prng, 40) * (prng_below(prng, 10) ? 512 : 131072));
        uint64_t offset = prng_below(prng, 8192) * 512;
        uint16_t flags = prng_below(prng, 8) ? 0 : (uint16_t)prng_next(prng);
        if (type == NBD_CMD_DISC)
            type = prng_below(prng, 2) ? NBD_CMD_READ : 8;
        if (prng_below(prng, 30) == 0)
            offset = prng_next(prng);
        if (prng_below(prng, 30) == 0 && type != NBD_CMD_WRITE)
            length = (uint32_t)prng_next(prng);
        asked[i] = (struct asked){.type = type, .length = length};
        fake_request(script, flags, type, i, offset, length);
        if (type == NBD_CMD_WRITE)
            send_zeroes(script, length);
    }
}

static void test_random_pipelines_get_exactly_one_answer_for_every_request(void)
{
    enum { COUNT = 1000 };
    struct asked *asked = calloc(COUNT, sizeof(*asked));
    for (uint64_t seed = 0; seed < 24; seed++) {
        struct fake_host host;
        struct fake_client client;
        struct prng prng;
        prng_init(&prng, seed);
        bool structured = seed & 1, tight = seed & 2, trickle = seed & 4;
        fake_host_init(&host, tight ? 6 : 1024, tight ? 6 * MIB : 128 * MIB, 2 * MIB);
        fake_client_open(&client, &host, structured ? SPARSE : 0, 4 * MIB, NULL, 0);
        host.shuffle = &prng;
        host.extents[0] = (struct disk_extent){.length = 4096, .hole = true};
        host.extents[1] = (struct disk_extent){.length = MIB, .hole = false};
        host.extents_count = 2;
        random_script(&client.input, &prng, asked, COUNT);
        while (client.input_at < client.input.length || client.want_write ||
               nbd_session_in_flight(client.session)) {
            size_t arrives = trickle ? prng_below(&prng, 9000) : client.input.length;
            client.input_ready = size_min(client.input.length, client.input_at + arrives);
            client.output_room = trickle ? prng_below(&prng, 90000) : SIZE_MAX;
            client.receive_max = trickle ? 1 + prng_below(&prng, 5000) : SIZE_MAX;
            host.hold = prng_below(&prng, 3) == 0;
            fake_run(&client);
            if (trickle && prng_below(&prng, 3))
                continue;
            host.hold = false;
        }
        CHECK(check_replies(&client.output, asked, COUNT, structured) == COUNT);
        CHECK(host.stats.nbd_requests == COUNT);
        fake_client_close(&client);
        fake_host_destroy(&host);
    }
    free(asked);
}

static void test_random_garbage_only_ever_ends_the_client(void)
{
    for (uint64_t seed = 0; seed < 2000; seed++) {
        struct fake_host host;
        struct fake_client client;
        struct prng prng;
        enum re_nbd_end end;
        prng_init(&prng, 1000 + seed);
        fake_host_init(&host, 8, 8 * MIB, MIB);
        fake_client_open(&client, &host, (uint32_t)prng_below(&prng, 8), 4 * MIB, NULL, 0);
        for (uint64_t n = 1 + prng_below(&prng, 40); n > 0; n--) {
            fake_request(&client.input, (uint16_t)(prng_next(&prng) & prng_next(&prng) & prng_next(&prng)),
                         (uint16_t)prng_below(&prng, 9), prng_next(&prng), prng_below(&prng, 9000) * 512,
                         (uint32_t)(prng_next(&prng) >> prng_below(&prng, 63)));
            uint64_t noise[64];
            for (size_t i = 0; i < 64; i++)
                noise[i] = prng_next(&prng);
            if (prng_below(&prng, 3) == 0)
                fake_append(&client.input, noise, prng_below(&prng, sizeof noise));
        }
        client.receive_max = 1 + prng_below(&prng, 200);
        client.eof = true;
        send_all(&client);
        CHECK(nbd_session_is_finished(client.session, &end) && host.pending_count == 0);
        fake_client_close(&client);
        fake_host_destroy(&host);
    }
}

int main(void)
{
    test_pressure_output_of_a_slow_client_is_bounded_and_complete();
    test_pressure_requests_in_flight_are_limited_and_go_on_after_completion();
    test_pressure_bytes_in_flight_are_limited();
    test_pressure_small_pool_starves_the_session_and_everything_is_served_later();
    test_pressure_own_output_that_leaves_gives_the_starved_session_its_buffers_at_once();
    test_pressure_read_larger_than_the_whole_pool_is_an_error();
    test_pressure_two_clients_with_large_reads_and_one_small_pool_both_end();
    test_disc_waits_for_requests_in_flight_and_ignores_what_follows();
    test_client_that_vanishes_has_its_submitted_writes_done_and_nothing_else();
    test_client_whose_socket_breaks_is_closed_and_its_queued_buffers_come_back();
    test_shut_in_the_middle_of_commands_never_reports_success_for_half_of_one();
    test_random_pipelines_get_exactly_one_answer_for_every_request();
    test_random_garbage_only_ever_ends_the_client();
    return 0;
}
