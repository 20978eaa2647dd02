/* SPDX-License-Identifier: Apache-2.0 */
/* One socket as the core sees it: batched receive, coalesced send.
 *
 * Receive: one large read fills the window [rx_begin, rx_end); the owner parses as much as it can per tick.  A payload
 * that is larger than what has arrived is received straight into its buffer (stream_receive_payload).
 * Send: a queue of segments; small headers are copied into an arena, payloads are referenced.  Everything queued in a
 * tick leaves with as few sends as possible.
 */
#ifndef IO_STREAM_H
#define IO_STREAM_H

#include "base/pool.h"
#include "base/status.h"
#include "io/io.h"

struct tx_segment {
    const uint8_t *data;    /* payload, or NULL: the next `length` bytes of the arena */
    uint32_t length;        /* bytes left */
    bool can_drop;          /* the owner can make the payload again */
    bool dropped;           /* it has to, before the segment can be sent */
    struct buf *buf;        /* reference that ends when the segment is sent, or NULL */
    uint64_t origin;        /* of the first byte left, to whoever makes it again */
};

struct stream {
    int number;                     /* stream number of the command that opened it; -1: closed */
    const struct io_ops *io;        /* how to reach the world */
    void *io_ctx;

    uint8_t *rx;                    /* receive window */
    size_t rx_begin, rx_end;        /* bytes not parsed yet */
    size_t rx_capacity;
    uint8_t *payload;               /* where a payload in progress goes on, or NULL */
    size_t payload_left;            /* its bytes still to come */
    bool rx_large;                  /* the last payload was large: the next receive looks for a header only */
    size_t rx_got;                  /* bytes of the last receive */
    bool rx_more;                   /* it has filled all there was room for: more may wait */
    bool rx_eof;                    /* the other end has closed its side */
    bool rx_paused;                 /* the owner does not want to read now */
    bool failed;                    /* a socket error was seen */

    struct tx_segment *tx;          /* ring of segments, a power of two */
    size_t tx_head, tx_count, tx_capacity;
    uint8_t *arena;                 /* ring of header bytes, a power of two */
    size_t arena_head, arena_used, arena_capacity;
    uint64_t tx_queued_total;       /* bytes ever queued */
    uint64_t tx_sent_total;         /* bytes ever taken by the socket */
    uint64_t tx_blocked_since_ns;   /* the socket has taken nothing since then; 0 = not blocked */
    uint64_t rx_last_ns;            /* when bytes last arrived */
    bool tx_blocked;                /* waiting for the socket to take more */
    bool want_read, want_write;     /* what the shell was told last */
};

enum { STREAM_RX_BYTES = 1 << 20 };

/* Allocates the windows; the descriptor is opened by the caller through io->stream_open. */
enum re_status stream_init(struct stream *stream, int number, const struct io_ops *io, void *io_ctx,
                           size_t rx_capacity);
/* Drops everything queued, closes the descriptor, frees the memory. */
void stream_close(struct stream *stream);

/* Receive once. RE_OK: something new is in the window (or payload); RE_AGAIN; RE_EOF; RE_RESET. */
enum re_status stream_fill(struct stream *stream);
static inline size_t stream_available(const struct stream *stream)
{
    return stream->rx_end - stream->rx_begin;
}
static inline const uint8_t *stream_peek(const struct stream *stream)
{
    return stream->rx + stream->rx_begin;
}
void stream_consume(struct stream *stream, size_t bytes);
/* Put bytes that were read ahead by somebody else in front (only on an empty window). */
enum re_status stream_preload(struct stream *stream, const uint8_t *bytes, size_t count);
/* Direct the next `bytes` of the stream to `destination`: takes what is in the window already; true when complete at
 * once, otherwise stream_fill() goes on and stream_payload_done() tells. */
bool stream_receive_payload(struct stream *stream, uint8_t *destination, size_t bytes);
static inline bool stream_payload_done(const struct stream *stream)
{
    return stream->payload_left == 0;
}

/* Queue small bytes (copied). */
void stream_queue_bytes(struct stream *stream, const void *bytes, size_t count);
/* Queue `count` bytes at `data`; `buf` (may be NULL: memory that outlives the stream) gets one more reference. */
void stream_queue_buf(struct stream *stream, struct buf *buf, const uint8_t *data, size_t count);
/* The same, of data that its owner can make again from `origin`, which counts bytes. */
void stream_queue_again(struct stream *stream, struct buf *buf, const uint8_t *data, size_t count, uint64_t origin);
/* Give the memory of everything back that can be made again; returns whether there was any. */
bool stream_drop_data(struct stream *stream);
/* The queue goes on with data that was dropped: nothing is sent before stream_supply(). */
bool stream_wants_data(const struct stream *stream, uint64_t *origin, uint32_t *length);
void stream_supply(struct stream *stream, struct buf *buf, const uint8_t *data);
/* Send what the socket takes. RE_OK: all gone, blocked, or dropped data is wanted; RE_RESET: the socket failed. */
enum re_status stream_flush(struct stream *stream);
static inline uint64_t stream_tx_pending(const struct stream *stream)
{
    return stream->tx_queued_total - stream->tx_sent_total;
}
/* Tell the shell what readiness is wanted, if that changed. */
void stream_update_interest(struct stream *stream);

#endif
