/* SPDX-License-Identifier: Apache-2.0 */
/* Replies whose data was given back because the client did not take them: it is read again, a piece at a time.
 *
 * A READ may see any moment between its arrival and its reply, so what is read again is as good as what was there.
 * Invariants: one piece is on its way at most, so that a slow client holds at most one buffer; the reply's header has
 * left or stands before the data, so when the data cannot be read any more the client is cut off.
 */
#include "base/check.h"
#include "nbd/command.h"

static void again_done(struct request *request)
{
    struct nbd_session *session = request->owner;
    uint64_t origin;
    uint32_t length;

    buf_put(session->again);
    session->again = NULL;
    if (session->state == NBD_DEAD)
        return;
    CHECK(stream_wants_data(&session->stream, &origin, &length));
    if (request->error)
        nbd_session_kill(session, RE_NBD_END_STALLED);
    else    /* not `again`: a disk that hangs keeps the first buffer */
        stream_supply(&session->stream, request->buf, request->buf->data + (origin - request->offset));
}

void nbd_again(struct nbd_session *session)
{
    const struct nbd_host *host = session->host;
    uint64_t origin;
    uint32_t length;

    session->again_waits = false;
    if (session->state == NBD_DEAD || session->state == NBD_SHUT || session->again || session->stream.tx_blocked ||
        !stream_wants_data(&session->stream, &origin, &length))
        return;
    uint64_t begin = origin & ~(uint64_t)(SECTOR_BYTES - 1);
    uint64_t end = (origin + length + SECTOR_BYTES - 1) & ~(uint64_t)(SECTOR_BYTES - 1);
    session->again = buf_take(host->buffers, end - begin);
    struct request *request = session->again ? request_take(host->requests) : NULL;
    if (!request) {
        if (session->again)
            buf_put(session->again);
        session->again = NULL;
        session->again_waits = true;
        return;
    }
    request->kind = REQUEST_READ;
    request->flags = session->options.flags & RE_NBD_UNDO ? REQUEST_UNDO : 0;
    request->offset = begin;
    request->length = end - begin;
    request->buf = buf_ref(session->again);
    request->done = again_done;
    request->owner = session;
    host->submit(host->ctx, session->volume, request);
}
