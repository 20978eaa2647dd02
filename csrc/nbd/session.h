/* SPDX-License-Identifier: Apache-2.0 */
/* One NBD client in the transmission phase: read, validate, hand to the volume, reply.
 *
 * The session knows nothing of volumes: it takes requests and buffers from what `struct nbd_host` offers and
 * submits them through its function.  A malformed header ends this client only.
 */
#ifndef NBD_SESSION_H
#define NBD_SESSION_H

#include "base/list.h"
#include "base/pool.h"
#include "include/repl_engine.h"
#include "io/stream.h"
#include "req/request.h"

/* What the engine offers to every session. */
struct nbd_host {
    struct request_table *requests;     /* requests are taken here (the engine frees them after `done`) */
    struct buf_pool *buffers;           /* payload buffers */
    /* Start a request of a volume; `done` is called later, from a tick, never from inside this call. */
    void (*submit)(void *ctx, int volume, struct request *request);
    /* The most bytes that one TRIM or WRITE_ZEROES request of a volume may cover. */
    uint64_t (*zero_bytes_max)(void *ctx, int volume);
    void *ctx;                          /* for submit */
    struct re_engine_stats *stats;      /* nbd_requests is counted here */
};

struct nbd_session;

/* A session on stream `number`, whose descriptor the engine has opened.  `size_bytes` is the export's size.
 * `leftover` are bytes that the negotiation read ahead. NULL: out of memory. */
struct nbd_session *nbd_session_create(const struct nbd_host *host, const struct io_ops *io, void *io_ctx,
                                       int number, int volume, uint64_t size_bytes,
                                       const struct re_nbd *options, const uint8_t *leftover,
                                       size_t leftover_bytes);
/* The stream can be read or written.  The stream is closed at once when the client turns out to be gone. */
void nbd_session_ready(struct nbd_session *session, bool readable, bool writable);
/* Requests or buffers may be available again: parse what is waiting (the session was starved). */
void nbd_session_resume(struct nbd_session *session);
bool nbd_session_is_starved(const struct nbd_session *session);
/* Somebody waits for buffers.  A client that has been slow to take its replies gives the data of READs back, which is
 * read again when it takes more.  Returns when to ask again (UINT64_MAX: it holds nothing); `*gave`: something came
 * back. */
uint64_t nbd_session_reclaim(struct nbd_session *session, uint64_t now_ns, bool *gave);
/* Requests lie in the window and may go on: the turn of the others came first. */
bool nbd_session_waits_its_turn(const struct nbd_session *session);
/* A payload has not gone on arriving for too long: end it. */
void nbd_session_check_payload(struct nbd_session *session, uint64_t now_ns);
/* Send what is queued. Called once per tick and after completions. */
void nbd_session_flush(struct nbd_session *session);
/* The session wants to end (client gone, DISC with everything answered, or protocol violation) and nothing is
 * in flight: the engine destroys it and reports `*end`. */
bool nbd_session_is_finished(const struct nbd_session *session, enum re_nbd_end *end);
/* Ask it to end: no more requests are read; finished once nothing is in flight. */
void nbd_session_shut(struct nbd_session *session);
/* Requests in flight. */
uint32_t nbd_session_in_flight(const struct nbd_session *session);
int nbd_session_volume(const struct nbd_session *session);
/* True when nbd_session_flush has something to do: queued output, or buffered requests that may go on. */
bool nbd_session_has_output(const struct nbd_session *session);
/* The device has another size from now on. */
void nbd_session_resize(struct nbd_session *session, uint64_t size_bytes);
/* Frees the session and closes its stream; nothing may be in flight. */
void nbd_session_destroy(struct nbd_session *session);

#endif
