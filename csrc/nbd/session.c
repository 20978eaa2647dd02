/* SPDX-License-Identifier: Apache-2.0 */
/* Life of an NBD session and its stream: receive, send, back-pressure, end.
 *
 * Invariant: whenever parsing stops at a limit, either something is in flight or output is queued, and the
 * completion or the drained output leads back to the bytes that are buffered (no input event would).
 */
#include "nbd/command.h"

#include <stdlib.h>

void nbd_session_kill(struct nbd_session *session, enum re_nbd_end end)
{
    if (session->state == NBD_DEAD)
        return;
    if (session->state == NBD_OPEN)
        session->end = end;
    session->state = NBD_DEAD;
    session->again_waits = false;
    nbd_parse_abort(session);
    stream_close(&session->stream);
}

/* Parsing has stopped at a limit that is not reached any more. */
static bool can_go_on(const struct nbd_session *session)
{
    return session->state == NBD_OPEN && session->wait == NBD_WAIT_LIMIT && !nbd_limit_reached(session);
}

static bool wants_again(const struct nbd_session *session)
{
    uint64_t origin;
    uint32_t length;
    return session->state != NBD_DEAD && stream_wants_data(&session->stream, &origin, &length);
}

static void update_interest(struct nbd_session *session)
{
    session->stream.rx_paused = session->state != NBD_OPEN || session->wait != NBD_WAIT_INPUT;
    stream_update_interest(&session->stream);
}

static void flush_and_go_on(struct nbd_session *session)
{
    struct stream *stream = &session->stream;
    bool more = true;
    /* Once more for what could not be parsed before its output had left; the rest in the next turn. */
    for (int round = 0; round < NBD_ROUNDS_PER_CALL && more && session->state != NBD_DEAD; round++) {
        uint64_t sent_before = stream->tx_sent_total;
        if (stream_flush(stream) == RE_RESET) {
            nbd_session_kill(session, RE_NBD_END_RESET);
            return;
        }
        nbd_again(session);
        bool sent = stream->tx_sent_total != sent_before;
        more = can_go_on(session) || (sent && session->wait == NBD_WAIT_RESOURCES);
        if (more)
            nbd_parse(session);
    }
}

static void fill_and_parse(struct nbd_session *session)
{
    struct stream *stream = &session->stream;

    if (can_go_on(session))
        nbd_parse(session);
    for (int i = 0; i < NBD_FILLS_PER_CALL; i++) {
        if (session->state != NBD_OPEN || session->wait != NBD_WAIT_INPUT)
            return;
        enum re_status status = stream_fill(stream);
        if (status == RE_EOF)
            nbd_session_kill(session, RE_NBD_END_EOF);
        else if (status == RE_RESET)
            nbd_session_kill(session, RE_NBD_END_RESET);
        if (status != RE_OK)
            return;
        bool all_taken = stream->rx_end < stream->rx_capacity;     /* a second receive would find nothing */
        nbd_parse(session);
        if (all_taken)
            return;
    }
}

void nbd_session_ready(struct nbd_session *session, bool readable, bool writable)
{
    if (writable)
        flush_and_go_on(session);
    if (readable)
        fill_and_parse(session);
    update_interest(session);
}

void nbd_session_resume(struct nbd_session *session)
{
    nbd_again(session);
    if (session->state == NBD_OPEN && (session->wait == NBD_WAIT_RESOURCES || can_go_on(session)))
        nbd_parse(session);
    update_interest(session);
}

void nbd_session_flush(struct nbd_session *session)
{
    flush_and_go_on(session);
    update_interest(session);
}

struct nbd_session *nbd_session_create(const struct nbd_host *host, const struct io_ops *io, void *io_ctx,
                                       int number, int volume, uint64_t size_bytes,
                                       const struct re_nbd *options, const uint8_t *leftover,
                                       size_t leftover_bytes)
{
    struct nbd_session *session = leftover_bytes <= STREAM_RX_BYTES ? calloc(1, sizeof(*session)) : NULL;
    if (!session)
        return NULL;
    if (stream_init(&session->stream, number, io, io_ctx, STREAM_RX_BYTES) != RE_OK) {
        free(session);
        return NULL;
    }
    if (leftover_bytes) {
        stream_preload(&session->stream, leftover, leftover_bytes);
        session->wait = NBD_WAIT_LIMIT;     /* there is something to parse without any input event */
    }
    session->host = host;
    session->volume = volume;
    session->size_bytes = size_bytes;
    session->options = *options;
    session->free_count = NBD_COMMANDS_MAX;
    for (uint32_t i = 0; i < NBD_COMMANDS_MAX; i++) {
        session->commands[i].session = session;
        session->commands[i].slot = (uint8_t)i;
        session->free_slots[i] = (uint8_t)(NBD_COMMANDS_MAX - 1 - i);
    }
    return session;
}

bool nbd_session_is_starved(const struct nbd_session *session)
{
    return (session->state == NBD_OPEN && session->wait == NBD_WAIT_RESOURCES) || session->again_waits;
}

uint64_t nbd_session_reclaim(struct nbd_session *session, uint64_t now_ns, bool *gave)
{
    struct stream *stream = &session->stream;
    if (session->state == NBD_DEAD || !stream->tx_blocked)
        return UINT64_MAX;
    if (!session->slow_since_ns || stream->tx_sent_total >= session->slow_goal) {
        session->slow_since_ns = now_ns;
        session->slow_goal = stream->tx_queued_total;
    }
    if (now_ns < session->slow_since_ns + NBD_SLOW_NS)
        return session->slow_since_ns + NBD_SLOW_NS;
    if (stream_drop_data(stream))
        *gave = true;
    return UINT64_MAX;
}

bool nbd_session_waits_its_turn(const struct nbd_session *session)
{
    return can_go_on(session);
}

void nbd_session_check_payload(struct nbd_session *session, uint64_t now_ns)
{
    bool arriving = session->state == NBD_OPEN && (session->part || session->drain_error);
    if (arriving && session->wait == NBD_WAIT_INPUT && now_ns >= session->stream.rx_last_ns + NBD_PAYLOAD_NS)
        nbd_session_kill(session, RE_NBD_END_STALLED);
}

bool nbd_session_is_finished(const struct nbd_session *session, enum re_nbd_end *end)
{
    if (session->state == NBD_OPEN || session->in_flight || session->again)
        return false;
    bool stuck = session->stream.tx_blocked || wants_again(session);
    if (session->state != NBD_DEAD && stream_tx_pending(&session->stream) && !(session->state == NBD_SHUT && stuck))
        return false;
    *end = session->end;
    return true;
}

void nbd_session_shut(struct nbd_session *session)
{
    if (session->state == NBD_OPEN)
        session->end = RE_NBD_END_CLOSED;
    if (session->state != NBD_DEAD) {
        session->state = NBD_SHUT;
        session->again_waits = false;
        nbd_parse_abort(session);
    }
    update_interest(session);
}

uint32_t nbd_session_in_flight(const struct nbd_session *session)
{
    return session->in_flight;
}

int nbd_session_volume(const struct nbd_session *session)
{
    return session->volume;
}

bool nbd_session_has_output(const struct nbd_session *session)
{
    return (stream_tx_pending(&session->stream) && !session->stream.tx_blocked && !wants_again(session)) ||
           can_go_on(session);
}

void nbd_session_resize(struct nbd_session *session, uint64_t size_bytes)
{
    session->size_bytes = size_bytes;
}

/* Requests that still run must never be completed afterwards: only an engine that ends whole may do that. */
void nbd_session_destroy(struct nbd_session *session)
{
    stream_close(&session->stream);
    free(session);
}
