/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of a stream's receive side: large payloads do not take the way over the window. */
#include "io/stream.h"

#include <string.h>

#include "base/check.h"

enum { HEADER = 16, LARGE = 1 << 20, SMALL = 4096 };

/* A socket that always has as much as is asked for. */
struct endless {
    size_t asked[2];    /* of the last receive: into the payload, into the window */
    size_t left;        /* bytes there are */
};

static uint8_t payload[LARGE];

static uint64_t no_time(void *ctx)
{
    (void)ctx;
    return 1;
}

static ssize_t receive(void *ctx, int number, const struct iovec *iov, int count)
{
    struct endless *socket = ctx;
    size_t got = 0;
    (void)number;
    socket->asked[0] = count == 2 ? iov[0].iov_len : 0;
    socket->asked[1] = iov[count - 1].iov_len;
    for (int i = 0; i < count; i++) {
        size_t part = iov[i].iov_len < socket->left - got ? iov[i].iov_len : socket->left - got;
        memset(iov[i].iov_base, 'x', part);
        got += part;
    }
    socket->left -= got;
    return got ? (ssize_t)got : STREAM_IO_AGAIN;
}

static void nothing(void *ctx, int number)
{
    (void)ctx;
    (void)number;
}

static const struct io_ops ops = {.now_ns = no_time, .stream_receive = receive, .stream_close = nothing};

static void take_payload(struct stream *stream, size_t bytes)
{
    stream_consume(stream, HEADER);
    if (!stream_receive_payload(stream, payload, bytes))
        CHECK(stream_fill(stream) == RE_OK && stream_payload_done(stream));
}

static void test_stream_behind_a_large_payload_only_a_header_is_looked_for(void)
{
    struct endless socket = {.left = HEADER + LARGE};
    struct stream stream;
    CHECK(stream_init(&stream, 3, &ops, &socket, STREAM_RX_BYTES) == RE_OK);
    CHECK(stream_fill(&stream) == RE_OK && socket.asked[1] == STREAM_RX_BYTES);
    take_payload(&stream, LARGE);
    CHECK(stream_available(&stream) == 0);

    socket.left = HEADER + LARGE;   /* one that comes when the first has been dealt with */
    CHECK(stream_fill(&stream) == RE_OK && socket.asked[0] == 0 && socket.asked[1] == 4096);
    take_payload(&stream, LARGE);
    CHECK(socket.asked[0] == LARGE - (4096 - HEADER));
    stream_close(&stream);
}

static void test_stream_what_is_small_is_received_in_batches_again(void)
{
    struct endless socket = {.left = HEADER + LARGE};
    struct stream stream;
    CHECK(stream_init(&stream, 3, &ops, &socket, STREAM_RX_BYTES) == RE_OK);
    CHECK(stream_fill(&stream) == RE_OK);
    take_payload(&stream, LARGE);

    socket.left = STREAM_RX_BYTES;
    CHECK(stream_fill(&stream) == RE_OK && socket.asked[1] == 4096);
    for (size_t i = 0; i < 4096 / HEADER; i++)  /* requests without a payload */
        stream_consume(&stream, HEADER);
    CHECK(stream_fill(&stream) == RE_OK && socket.asked[1] == STREAM_RX_BYTES);
    stream_close(&stream);
}

static void test_stream_a_small_payload_ends_it_at_once(void)
{
    struct endless socket = {.left = HEADER + LARGE};
    struct stream stream;
    CHECK(stream_init(&stream, 3, &ops, &socket, STREAM_RX_BYTES) == RE_OK);
    CHECK(stream_fill(&stream) == RE_OK);
    take_payload(&stream, LARGE);

    socket.left = HEADER + SMALL + STREAM_RX_BYTES;
    CHECK(stream_fill(&stream) == RE_OK && socket.asked[1] == 4096);
    take_payload(&stream, SMALL);
    CHECK(socket.asked[0] == HEADER && socket.asked[1] == STREAM_RX_BYTES);
    stream_close(&stream);
}

int main(void)
{
    test_stream_behind_a_large_payload_only_a_header_is_looked_for();
    test_stream_what_is_small_is_received_in_batches_again();
    test_stream_a_small_payload_ends_it_at_once();
    return 0;
}
