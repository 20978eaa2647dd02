/* SPDX-License-Identifier: Apache-2.0 */
/* A client, a volume and an engine around one NBD session, for tests and fuzzing only.
 *
 * The client's bytes are given as a script; how many arrive per receive, how many the socket takes and when
 * requests complete is up to the test.  fake_run() drives the session as the engine does, to the end.
 */
#ifndef NBD_FAKE_HOST_H
#define NBD_FAKE_HOST_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/prng.h"
#include "nbd/session.h"
#include "nbd/wire.h"

enum { FAKE_PENDING_MAX = 4096, FAKE_STREAM = 7, FAKE_VOLUME = 3 };

/* Bytes that grow. */
struct fake_bytes {
    uint8_t *data;      /* memory */
    size_t length;      /* bytes in use */
    size_t capacity;    /* bytes allocated */
};

/* What was submitted, in order. */
struct fake_log {
    uint8_t kind;       /* enum request_kind */
    uint8_t flags;      /* enum request_flags */
    uint64_t offset;    /* bytes */
    uint64_t length;    /* bytes */
};

/* What sessions of one engine share. */
struct fake_host {
    struct nbd_host host;               /* what the session gets */
    struct request_table requests;      /* its table */
    struct buf_pool buffers;            /* its pool */
    struct re_engine_stats stats;       /* its counters */
    struct request *pending[FAKE_PENDING_MAX];  /* submitted, oldest first */
    struct fake_log log[FAKE_PENDING_MAX];      /* the first ones ever submitted */
    uint32_t pending_count, log_count, done_count;
    bool hold;                          /* nothing completes */
    struct prng *shuffle;               /* requests complete in this order, NULL: oldest first */
    uint32_t fail_index;                /* this request (counted from 1 by completion) fails */
    int fail_error;                     /* with this errno */
    uint8_t *disk;                      /* its content */
    uint64_t disk_bytes;                /* beyond: reads as zeroes, writes are lost */
    struct disk_extent extents[1024];   /* answer to EXTENTS */
    uint32_t extents_count;             /* entries */
};

struct fake_client {
    struct fake_host *fake;     /* the engine */
    struct io_ops io;           /* the socket's operations */
    struct nbd_session *session;
    struct fake_bytes input;    /* all that the client sends */
    size_t input_at;            /* how much of it was received */
    size_t input_ready;         /* how much of it has arrived */
    size_t receive_max;         /* most bytes of one receive */
    bool eof;                   /* the client's side is closed behind the input */
    struct fake_bytes output;   /* all that it got */
    size_t output_room;         /* bytes that the socket takes before it is full */
    bool send_fails;            /* the client is gone */
    bool want_read, want_write; /* interest of the session */
    bool closed;                /* the descriptor is closed */
    uint64_t receives, sends;   /* calls */
};

static inline void fake_append(struct fake_bytes *bytes, const void *data, size_t count)
{
    if (bytes->length + count > bytes->capacity) {
        bytes->capacity = (bytes->length + count) * 2;
        bytes->data = realloc(bytes->data, bytes->capacity);
        CHECK(bytes->data);
    }
    if (count)
        memcpy(bytes->data + bytes->length, data, count);
    bytes->length += count;
}

static inline uint64_t fake_now_ns(void *ctx)
{
    (void)ctx;
    return 1;
}

static inline ssize_t fake_receive(void *ctx, int stream, const struct iovec *iov, int count)
{
    struct fake_client *client = ctx;
    size_t budget = client->input_ready - client->input_at, moved = 0;

    CHECK(stream == FAKE_STREAM && !client->closed);
    client->receives++;
    if (budget == 0)
        return client->eof && client->input_at == client->input.length ? STREAM_IO_EOF : STREAM_IO_AGAIN;
    budget = size_min(budget, client->receive_max);
    for (int i = 0; i < count && moved < budget; i++) {
        size_t part = size_min(iov[i].iov_len, budget - moved);
        memcpy(iov[i].iov_base, client->input.data + client->input_at, part);
        client->input_at += part;
        moved += part;
    }
    return (ssize_t)moved;
}

static inline ssize_t fake_send(void *ctx, int stream, const struct iovec *iov, int count)
{
    struct fake_client *client = ctx;
    size_t moved = 0;

    CHECK(stream == FAKE_STREAM && !client->closed);
    client->sends++;
    if (client->send_fails)
        return STREAM_IO_RESET;
    for (int i = 0; i < count && client->output_room; i++) {
        size_t part = size_min(iov[i].iov_len, client->output_room);
        fake_append(&client->output, iov[i].iov_base, part);
        if (client->output_room != SIZE_MAX)
            client->output_room -= part;
        moved += part;
        if (part < iov[i].iov_len)
            break;
    }
    return moved ? (ssize_t)moved : STREAM_IO_AGAIN;
}

static inline void fake_want(void *ctx, int stream, bool read, bool write)
{
    struct fake_client *client = ctx;
    CHECK(stream == FAKE_STREAM && !client->closed);
    client->want_read = read;
    client->want_write = write;
}

static inline void fake_close(void *ctx, int stream)
{
    struct fake_client *client = ctx;
    CHECK(stream == FAKE_STREAM && !client->closed);
    client->closed = true;
    client->want_read = client->want_write = false;
}

static inline void fake_submit(void *ctx, int volume, struct request *request)
{
    struct fake_host *fake = ctx;
    CHECK(volume == FAKE_VOLUME && fake->pending_count < FAKE_PENDING_MAX);
    if (request->kind != REQUEST_FLUSH)
        CHECK(request->length > 0 && ((request->offset | request->length) & 511) == 0);
    if (request->kind == REQUEST_READ || request->kind == REQUEST_WRITE)
        CHECK(request->length <= 1 << 20 && request->buf && request->buf->capacity >= request->length);
    if (request->kind == REQUEST_ZERO || request->kind == REQUEST_TRIM)
        CHECK(request->length <= 128 << 20 &&
              ((request->offset + request->length - 1) >> 22) - (request->offset >> 22) < 32);
    if (fake->log_count < FAKE_PENDING_MAX)
        fake->log[fake->log_count++] = (struct fake_log){request->kind, request->flags, request->offset,
                                                         request->length};
    fake->pending[fake->pending_count++] = request;
}

static inline void fake_perform(struct fake_host *fake, struct request *request)
{
    uint64_t begin = u64_min(request->offset, fake->disk_bytes);
    size_t count = (size_t)u64_min(request->length, fake->disk_bytes - begin);

    switch ((enum request_kind)request->kind) {
    case REQUEST_READ:
        memcpy(request->buf->data, fake->disk + begin, count);
        memset(request->buf->data + count, 0, request->length - count);
        break;
    case REQUEST_WRITE:
        memcpy(fake->disk + begin, request->buf->data, count);
        break;
    case REQUEST_ZERO:
    case REQUEST_TRIM:
        memset(fake->disk + begin, 0, count);
        break;
    case REQUEST_EXTENTS:
        request->extents_count = u32_min(fake->extents_count, request->extents_max);
        if (request->extents_count)
            memcpy(request->extents, fake->extents, request->extents_count * sizeof(struct disk_extent));
        break;
    case REQUEST_FLUSH:
        break;
    }
}

/* Complete one pending request as the engine does. */
static inline void fake_complete(struct fake_host *fake, uint32_t index)
{
    struct request *request = fake->pending[index];

    memmove(&fake->pending[index], &fake->pending[index + 1],
            (--fake->pending_count - index) * sizeof(fake->pending[0]));
    request->error = ++fake->done_count == fake->fail_index ? fake->fail_error : 0;
    if (!request->error)
        fake_perform(fake, request);
    request->done(request);
    request_free(&fake->requests, request);
}

static inline bool fake_complete_all(struct fake_host *fake)
{
    bool any = fake->pending_count > 0 && !fake->hold;
    for (uint32_t left = fake->pending_count; left > 0 && !fake->hold; left--)
        fake_complete(fake, fake->shuffle ? (uint32_t)prng_below(fake->shuffle, left) : 0);
    return any;
}

/* One turn of the engine with one client; false when nothing was there to do. */
static inline bool fake_turn(struct fake_client *client)
{
    struct nbd_session *session = client->session;
    bool input = client->input_ready > client->input_at ||
                 (client->eof && client->input_at == client->input.length);
    bool readable = client->want_read && input, writable = client->want_write && client->output_room;
    enum re_nbd_end end;
    uint64_t before = client->input_at + client->output.length + client->fake->stats.nbd_requests;
    uint32_t submitted = client->fake->log_count + client->fake->pending_count;

    if (readable || writable)
        nbd_session_ready(session, readable, writable);
    bool work = fake_complete_all(client->fake);
    if (nbd_session_is_starved(session))
        nbd_session_resume(session);
    if (nbd_session_has_output(session))
        nbd_session_flush(session);
    CHECK(!nbd_session_has_output(session) || nbd_session_waits_its_turn(session));
    if (nbd_session_is_finished(session, &end))
        return false;
    return work || before != client->input_at + client->output.length + client->fake->stats.nbd_requests ||
           submitted != client->fake->log_count + client->fake->pending_count;
}

static inline void fake_run(struct fake_client *client)
{
    while (fake_turn(client))
        continue;
}

static uint64_t fake_zero_bytes_max(void *ctx, int volume)
{
    (void)ctx;
    (void)volume;
    return 128u << 20;
}

static inline void fake_host_init(struct fake_host *fake, uint32_t requests, uint64_t buffer_bytes,
                                  uint64_t disk_bytes)
{
    *fake = (struct fake_host){.disk_bytes = disk_bytes};
    fake->disk = calloc(1, disk_bytes);
    CHECK(fake->disk && buf_pool_init(&fake->buffers, buffer_bytes));
    CHECK(request_table_init(&fake->requests, requests, 0) == RE_OK);
    fake->host = (struct nbd_host){.requests = &fake->requests, .buffers = &fake->buffers,
                                   .submit = fake_submit, .zero_bytes_max = fake_zero_bytes_max, .ctx = fake,
                                   .stats = &fake->stats};
}

/* Everything must have come back. */
static inline void fake_host_destroy(struct fake_host *fake)
{
    CHECK(fake->pending_count == 0 && fake->buffers.used_bytes == 0);
    CHECK(fake->requests.free_count == fake->requests.count);
    request_table_destroy(&fake->requests);
    buf_pool_destroy(&fake->buffers);
    free(fake->disk);
}

static inline void fake_client_open(struct fake_client *client, struct fake_host *fake, uint32_t flags,
                                    uint64_t size_bytes, const uint8_t *leftover, size_t leftover_bytes)
{
    *client = (struct fake_client){
        .fake = fake, .receive_max = SIZE_MAX, .output_room = SIZE_MAX, .want_read = true,
        .io = {.now_ns = fake_now_ns, .stream_receive = fake_receive, .stream_send = fake_send,
               .stream_want = fake_want, .stream_close = fake_close},
    };
    struct re_nbd options = {.fd = -1, .flags = flags, .context_id = 42};
    client->session = nbd_session_create(&fake->host, &client->io, client, FAKE_STREAM, FAKE_VOLUME,
                                         size_bytes, &options, leftover, leftover_bytes);
    CHECK(client->session);
}

static inline void fake_client_close(struct fake_client *client)
{
    enum re_nbd_end end;
    if (!nbd_session_is_finished(client->session, &end)) {
        client->fake->hold = false;
        nbd_session_shut(client->session);
        fake_run(client);
        CHECK(nbd_session_is_finished(client->session, &end));
    }
    CHECK(nbd_session_in_flight(client->session) == 0);
    nbd_session_destroy(client->session);
    CHECK(client->closed);
    free(client->input.data);
    free(client->output.data);
}

static inline void fake_request(struct fake_bytes *script, uint16_t flags, uint16_t type, uint64_t cookie,
                                uint64_t offset, uint32_t length)
{
    uint8_t header[NBD_REQUEST_BYTES];
    be32_put(header, NBD_REQUEST_MAGIC);
    be16_put(header + 4, flags);
    be16_put(header + 6, type);
    be64_put(header + 8, cookie);
    be64_put(header + 16, offset);
    be32_put(header + 24, length);
    fake_append(script, header, sizeof header);
}

#endif
