/* SPDX-License-Identifier: Apache-2.0 */
/* Batched receive and coalesced send; invariant: the segments' lengths sum up to tx_queued_total - tx_sent_total. */
#include "io/stream.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

enum { LARGE_PAYLOAD_BYTES = 32 << 10, AFTER_LARGE_BYTES = 4096 };
enum { TX_SEGMENTS_START = 256, ARENA_BYTES_START = 16384, IOV_MAX_SEND = 256 };

enum re_status stream_init(struct stream *stream, int number, const struct io_ops *io, void *io_ctx,
                           size_t rx_capacity)
{
    *stream = (struct stream){.number = number, .io = io, .io_ctx = io_ctx, .rx_capacity = rx_capacity};
    stream->rx = malloc(rx_capacity);
    stream->tx = calloc(TX_SEGMENTS_START, sizeof(*stream->tx));
    stream->arena = malloc(ARENA_BYTES_START);
    if (!stream->rx || !stream->tx || !stream->arena) {
        free(stream->rx);
        free(stream->tx);
        free(stream->arena);
        stream->number = -1;
        return RE_ENOMEM;
    }
    stream->tx_capacity = TX_SEGMENTS_START;
    stream->arena_capacity = ARENA_BYTES_START;
    stream->want_read = true;
    stream->rx_last_ns = io->now_ns(io_ctx);
    return RE_OK;
}

void stream_close(struct stream *stream)
{
    if (stream->number < 0)
        return;
    for (size_t i = 0; i < stream->tx_count; i++) {
        struct tx_segment *segment = &stream->tx[(stream->tx_head + i) & (stream->tx_capacity - 1)];
        if (segment->buf)
            buf_put(segment->buf);
    }
    stream->io->stream_close(stream->io_ctx, stream->number);
    free(stream->rx);
    free(stream->tx);
    free(stream->arena);
    *stream = (struct stream){.number = -1};
}

static enum re_status receive_result(struct stream *stream, ssize_t got)
{
    if (got > 0) {
        stream->rx_last_ns = stream->io->now_ns(stream->io_ctx);
        return RE_OK;
    }
    if (got == STREAM_IO_AGAIN)
        return RE_AGAIN;
    if (got == STREAM_IO_EOF) {
        stream->rx_eof = true;
        return RE_EOF;
    }
    stream->failed = true;
    return RE_RESET;
}

enum re_status stream_fill(struct stream *stream)
{
    struct iovec iov[2];
    int count = 0;
    size_t payload_part = stream->payload_left;
    bool short_window = false;

    stream->rx_got = 0;
    stream->rx_more = false;
    if (stream->rx_begin == stream->rx_end)
        stream->rx_begin = stream->rx_end = 0;
    else if (stream->rx_begin > stream->rx_capacity / 2) {
        memmove(stream->rx, stream->rx + stream->rx_begin, stream->rx_end - stream->rx_begin);
        stream->rx_end -= stream->rx_begin;
        stream->rx_begin = 0;
    }
    if (payload_part) {
        CHECK(stream->rx_begin == stream->rx_end);
        iov[count++] = (struct iovec){.iov_base = stream->payload, .iov_len = payload_part};
    }
    if (stream->rx_end < stream->rx_capacity) {
        size_t room = stream->rx_capacity - stream->rx_end;
        /* Behind a large payload another one may follow: it should not take the way over the window. */
        short_window = (stream->rx_large || payload_part >= LARGE_PAYLOAD_BYTES) && room > AFTER_LARGE_BYTES;
        if (short_window)
            room = AFTER_LARGE_BYTES;
        iov[count++] = (struct iovec){.iov_base = stream->rx + stream->rx_end, .iov_len = room};
    }
    if (count == 0)
        return RE_AGAIN;    /* the window is full: the owner has to parse first */
    ssize_t got = stream->io->stream_receive(stream->io_ctx, stream->number, iov, count);
    if (got > 0) {
        size_t bytes = (size_t)got;
        stream->rx_got = bytes;
        stream->rx_more = bytes == iov[0].iov_len + (count == 2 ? iov[1].iov_len : 0);
        size_t direct = bytes < payload_part ? bytes : payload_part;
        /* A full short window: what follows is small after all, unless another large payload begins in it. */
        if (short_window && bytes - direct == AFTER_LARGE_BYTES)
            stream->rx_large = false;
        if (direct) {
            stream->payload += direct;
            stream->payload_left -= direct;
        }
        stream->rx_end += bytes - direct;
    }
    return receive_result(stream, got);
}

void stream_consume(struct stream *stream, size_t bytes)
{
    CHECK(bytes <= stream_available(stream));
    stream->rx_begin += bytes;
}

enum re_status stream_preload(struct stream *stream, const uint8_t *bytes, size_t count)
{
    CHECK(stream_available(stream) == 0);
    if (count > stream->rx_capacity)
        return RE_ERANGE;
    memcpy(stream->rx, bytes, count);
    stream->rx_begin = 0;
    stream->rx_end = count;
    return RE_OK;
}

bool stream_receive_payload(struct stream *stream, uint8_t *destination, size_t bytes)
{
    CHECK(stream->payload_left == 0);
    stream->rx_large = bytes >= LARGE_PAYLOAD_BYTES;
    size_t have = stream_available(stream);
    if (have > bytes)
        have = bytes;
    memcpy(destination, stream_peek(stream), have);
    stream->rx_begin += have;
    stream->payload = destination + have;
    stream->payload_left = bytes - have;
    return stream->payload_left == 0;
}

static struct tx_segment *segment_append(struct stream *stream)
{
    if (stream->tx_count == stream->tx_capacity) {
        size_t capacity = stream->tx_capacity * 2;
        struct tx_segment *grown = calloc(capacity, sizeof(*grown));
        CHECK(grown);
        for (size_t i = 0; i < stream->tx_count; i++)
            grown[i] = stream->tx[(stream->tx_head + i) & (stream->tx_capacity - 1)];
        free(stream->tx);
        stream->tx = grown;
        stream->tx_head = 0;
        stream->tx_capacity = capacity;
    }
    return &stream->tx[(stream->tx_head + stream->tx_count++) & (stream->tx_capacity - 1)];
}

static void arena_grow(struct stream *stream, size_t count)
{
    size_t capacity = stream->arena_capacity;
    while (stream->arena_used + count > capacity)
        capacity *= 2;
    if (capacity == stream->arena_capacity)
        return;
    uint8_t *grown = malloc(capacity);
    CHECK(grown);
    for (size_t i = 0; i < stream->arena_used; i++)
        grown[i] = stream->arena[(stream->arena_head + i) & (stream->arena_capacity - 1)];
    free(stream->arena);
    stream->arena = grown;
    stream->arena_head = 0;
    stream->arena_capacity = capacity;
}

void stream_queue_bytes(struct stream *stream, const void *bytes, size_t count)
{
    if (stream->number < 0 || count == 0)
        return;
    arena_grow(stream, count);
    size_t tail = (stream->arena_head + stream->arena_used) & (stream->arena_capacity - 1);
    size_t first = stream->arena_capacity - tail;
    if (first > count)
        first = count;
    memcpy(stream->arena + tail, bytes, first);
    memcpy(stream->arena, (const uint8_t *)bytes + first, count - first);
    stream->arena_used += count;
    stream->tx_queued_total += count;
    if (stream->tx_count) {
        struct tx_segment *last =
            &stream->tx[(stream->tx_head + stream->tx_count - 1) & (stream->tx_capacity - 1)];
        if (!last->data) {      /* the arena is contiguous in queue order: extend */
            last->length += (uint32_t)count;
            return;
        }
    }
    *segment_append(stream) = (struct tx_segment){.length = (uint32_t)count};
}

void stream_queue_buf(struct stream *stream, struct buf *buf, const uint8_t *data, size_t count)
{
    if (stream->number < 0 || count == 0)
        return;
    if (buf)
        buf_ref(buf);
    stream->tx_queued_total += count;
    *segment_append(stream) = (struct tx_segment){.data = data, .length = (uint32_t)count, .buf = buf};
}

void stream_queue_again(struct stream *stream, struct buf *buf, const uint8_t *data, size_t count, uint64_t origin)
{
    if (stream->number < 0 || count == 0)
        return;
    stream->tx_queued_total += count;
    *segment_append(stream) = (struct tx_segment){
        .data = data, .length = (uint32_t)count, .can_drop = true, .buf = buf_ref(buf), .origin = origin};
}

bool stream_drop_data(struct stream *stream)
{
    static const uint8_t nothing[1];
    bool any = false;
    for (size_t i = 0; i < stream->tx_count; i++) {
        struct tx_segment *segment = &stream->tx[(stream->tx_head + i) & (stream->tx_capacity - 1)];
        if (!segment->can_drop || segment->dropped)
            continue;
        buf_put(segment->buf);
        segment->buf = NULL;
        segment->data = nothing;
        segment->dropped = any = true;
    }
    return any;
}

bool stream_wants_data(const struct stream *stream, uint64_t *origin, uint32_t *length)
{
    const struct tx_segment *segment = &stream->tx[stream->tx_head];
    if (!stream->tx_count || !segment->dropped)
        return false;
    *origin = segment->origin;
    *length = segment->length;
    return true;
}

void stream_supply(struct stream *stream, struct buf *buf, const uint8_t *data)
{
    struct tx_segment *segment = &stream->tx[stream->tx_head];
    CHECK(stream->tx_count && segment->dropped);
    segment->data = data;
    segment->buf = buf_ref(buf);
    segment->dropped = false;
}

/* Describe the queue's beginning; an arena segment that wraps takes two entries. */
static int gather(const struct stream *stream, struct iovec *iov)
{
    int count = 0;
    size_t arena_at = stream->arena_head;
    for (size_t i = 0; i < stream->tx_count && count < IOV_MAX_SEND - 1; i++) {
        const struct tx_segment *segment = &stream->tx[(stream->tx_head + i) & (stream->tx_capacity - 1)];
        if (segment->dropped)
            break;
        if (segment->data) {
            iov[count++] = (struct iovec){.iov_base = (void *)(uintptr_t)segment->data, .iov_len = segment->length};
            continue;
        }
        size_t first = stream->arena_capacity - arena_at;
        if (first > segment->length)
            first = segment->length;
        iov[count++] = (struct iovec){.iov_base = stream->arena + arena_at, .iov_len = first};
        if (first < segment->length)
            iov[count++] = (struct iovec){.iov_base = stream->arena, .iov_len = segment->length - first};
        arena_at = (arena_at + segment->length) & (stream->arena_capacity - 1);
    }
    return count;
}

static void advance(struct stream *stream, size_t bytes)
{
    stream->tx_sent_total += bytes;
    while (bytes) {
        struct tx_segment *segment = &stream->tx[stream->tx_head];
        size_t part = bytes < segment->length ? bytes : segment->length;
        segment->length -= (uint32_t)part;
        bytes -= part;
        if (segment->data) {
            segment->data += part;
            segment->origin += part;
        } else {
            stream->arena_head = (stream->arena_head + part) & (stream->arena_capacity - 1);
            stream->arena_used -= part;
        }
        if (segment->length == 0) {
            if (segment->buf)
                buf_put(segment->buf);
            stream->tx_head = (stream->tx_head + 1) & (stream->tx_capacity - 1);
            stream->tx_count--;
        }
    }
}

enum re_status stream_flush(struct stream *stream)
{
    struct iovec iov[IOV_MAX_SEND];
    while (stream->number >= 0 && stream->tx_count && !stream->failed) {
        int count = gather(stream, iov);
        if (count == 0)
            break;
        ssize_t sent = stream->io->stream_send(stream->io_ctx, stream->number, iov, count);
        if (sent == STREAM_IO_AGAIN) {
            if (!stream->tx_blocked_since_ns)
                stream->tx_blocked_since_ns = stream->io->now_ns(stream->io_ctx);
            stream->tx_blocked = true;
            return RE_OK;
        }
        if (sent <= 0) {
            stream->failed = true;
            return RE_RESET;
        }
        stream->tx_blocked_since_ns = 0;
        advance(stream, (size_t)sent);
    }
    stream->tx_blocked = false;
    return stream->failed ? RE_RESET : RE_OK;
}

void stream_update_interest(struct stream *stream)
{
    bool read = !stream->rx_paused && !stream->rx_eof && !stream->failed;
    bool write = stream->tx_blocked && !stream->failed;
    if (stream->number >= 0 && (read != stream->want_read || write != stream->want_write)) {
        stream->want_read = read;
        stream->want_write = write;
        stream->io->stream_want(stream->io_ctx, stream->number, read, write);
    }
}
