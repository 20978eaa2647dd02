/* SPDX-License-Identifier: Apache-2.0 */
/* What NBD clients send: validate, split into requests of the volume, count them back.
 *
 * Invariants: at most one command is partly submitted (`current`), and nothing behind it is parsed before all
 * its parts are out, so that the order of submission is the order of arrival; a READ takes all its buffers or
 * none, so that two clients never wait for buffers which the other one holds; `wait` says what is missing.
 */
#include "base/check.h"
#include "nbd/command.h"

/* What the standard lets a client ask. */
static const struct command_rule {
    uint16_t flags;     /* allowed besides FUA, which is legal everywhere */
    bool writes;        /* refused on a read-only export */
    bool data;          /* moves data: length is limited */
    uint16_t past_end;  /* error for a range beyond the end */
} command_rules[] = {
    [NBD_CMD_READ] = {.flags = NBD_CMD_FLAG_DF, .data = true, .past_end = NBD_EINVAL},
    [NBD_CMD_WRITE] = {.writes = true, .data = true, .past_end = NBD_ENOSPC},
    [NBD_CMD_DISC] = {0},
    [NBD_CMD_FLUSH] = {0},
    [NBD_CMD_TRIM] = {.writes = true, .past_end = NBD_EINVAL},
    [NBD_CMD_CACHE] = {.past_end = NBD_EINVAL},
    [NBD_CMD_WRITE_ZEROES] = {.flags = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, .writes = true,
                              .past_end = NBD_ENOSPC},
    [NBD_CMD_BLOCK_STATUS] = {.flags = NBD_CMD_FLAG_REQ_ONE, .past_end = NBD_EINVAL},
};

/* ---- command slots ---- */

static struct nbd_command *command_take(struct nbd_session *session, const struct nbd_request *header)
{
    CHECK(session->free_count > 0);
    struct nbd_command *command = &session->commands[session->free_slots[--session->free_count]];
    command->cookie = header->cookie;
    command->offset = header->offset;
    command->length = header->length;
    command->type = header->type;
    command->flags = header->flags;
    command->parts_pending = 0;
    command->submitted = false;
    command->buf_count = 0;
    command->error = 0;
    command->extents_count = 0;
    command->extents = NULL;
    session->in_flight++;
    if (command_rules[command->type].data)
        session->in_flight_bytes += command->length;
    return command;
}

static void command_put(struct nbd_session *session, struct nbd_command *command)
{
    for (uint32_t i = 0; i < command->buf_count; i++)
        buf_put(command->bufs[i]);
    if (command->extents)
        buf_put(command->extents);
    session->in_flight--;
    if (command_rules[command->type].data)
        session->in_flight_bytes -= command->length;
    session->free_slots[session->free_count++] = command->slot;
}

static void command_finish_if_done(struct nbd_session *session, struct nbd_command *command)
{
    if (!command->submitted || command->parts_pending)
        return;
    if (session->state != NBD_DEAD)
        nbd_reply_command(session, command);
    command_put(session, command);
}

static void part_done(struct request *request)
{
    struct nbd_command *command = request->owner;

    if (request->error && !command->error)
        command->error = request->error;
    if (request->kind == REQUEST_READ) {
        uint32_t part = (uint32_t)((request->offset - command->offset) / NBD_PART_BYTES_MAX);
        if (request->buf != command->bufs[part]) {      /* the disk hangs with the first one */
            buf_put(command->bufs[part]);
            command->bufs[part] = buf_ref(request->buf);
        }
    }
    if (request->kind == REQUEST_EXTENTS)
        command->extents_count = u32_min(request->extents_count, request->extents_max);
    command->parts_pending--;
    command_finish_if_done(command->session, command);
}

static void part_submit(struct nbd_session *session, struct nbd_command *command, struct request *request,
                        enum request_kind kind, uint64_t offset, uint64_t length)
{
    uint8_t flags = 0;

    if (command->flags & NBD_CMD_FLAG_FUA)
        flags |= REQUEST_FUA;
    if (kind == REQUEST_ZERO && !(command->flags & NBD_CMD_FLAG_NO_HOLE))
        flags |= REQUEST_MAY_UNMAP;
    if (kind == REQUEST_ZERO && (command->flags & NBD_CMD_FLAG_FAST_ZERO))
        flags |= REQUEST_FAST;
    if (command->session->options.flags & RE_NBD_UNDO)
        flags |= REQUEST_UNDO;
    request->kind = (uint8_t)kind;
    request->flags = flags;
    request->offset = offset;
    request->length = length;
    request->done = part_done;
    request->owner = command;
    command->parts_pending++;
    session->host->submit(session->host->ctx, session->volume, request);
}

void nbd_parse_abort(struct nbd_session *session)
{
    struct nbd_command *command = session->current;

    session->drain_error = 0;
    if (!command)
        return;
    session->current = NULL;
    if (session->part) {
        session->stream.payload = NULL;
        session->stream.payload_left = 0;
        request_free(session->host->requests, session->part);
        session->part = NULL;
    }
    if (!command->error)
        command->error = ESHUTDOWN;
    command->submitted = true;
    command_finish_if_done(session, command);
}

/* ---- parsing ---- */

/* Buffer bytes that have to be had at once for the command to go on. */
static uint64_t buffer_need(const struct nbd_request *header)
{
    uint64_t bytes = header->length;
    if (header->type == NBD_CMD_WRITE)
        bytes = u64_min(bytes, NBD_PART_BYTES_MAX);
    if (bytes > 65536)
        return u64_div_round_up(bytes, NBD_PART_BYTES_MAX) * NBD_PART_BYTES_MAX;
    return bytes > 4096 ? 65536 : 4096;
}

static bool always_starved(const struct nbd_session *session, const struct nbd_request *header)
{
    const struct nbd_host *host = session->host;
    uint32_t requests = header->type == NBD_CMD_READ
                            ? (uint32_t)u64_div_round_up(header->length, NBD_PART_BYTES_MAX) : 1;
    return buffer_need(header) > host->buffers->budget_bytes || requests > host->requests->count;
}

/* NBD_OK or the error that the request deserves. */
static enum nbd_error request_check(const struct nbd_session *session, const struct nbd_request *header)
{
    if (header->type >= sizeof command_rules / sizeof command_rules[0])
        return NBD_EINVAL;
    const struct command_rule *rule = &command_rules[header->type];
    uint32_t options = session->options.flags;
    bool structured = options & RE_NBD_STRUCTURED;
    uint16_t allowed = NBD_CMD_FLAG_FUA | rule->flags;

    if (!structured)
        allowed &= (uint16_t)~NBD_CMD_FLAG_DF;
    if (header->flags & ~allowed)
        return NBD_EINVAL;
    if (header->type == NBD_CMD_BLOCK_STATUS && !(structured && (options & RE_NBD_ALLOCATION)))
        return NBD_EINVAL;
    if (rule->writes && (options & RE_NBD_READ_ONLY))
        return NBD_EPERM;
    if (header->type == NBD_CMD_FLUSH)
        return NBD_OK;      /* its offset and length are reserved */
    if (header->length == 0 || ((header->offset | header->length) & (SECTOR_BYTES - 1)))
        return NBD_EINVAL;
    if (rule->data && header->length > REQUEST_BYTES_MAX)
        return header->flags & NBD_CMD_FLAG_DF ? NBD_EOVERFLOW : NBD_EINVAL;
    if (!u64_range_inside(header->offset, header->length, session->size_bytes))
        return rule->past_end;
    if (rule->data && always_starved(session, header))
        return NBD_EIO;
    return NBD_OK;
}

/* A few clients that do not read their replies must not hold everything: the last part of the budget is for those
 * that hold little themselves. */
static bool has_share(const struct nbd_session *session, uint64_t bytes)
{
    const struct buf_pool *pool = session->host->buffers;
    uint64_t share = pool->budget_bytes / NBD_SHARES;
    uint64_t held = stream_tx_pending(&session->stream) + session->in_flight_bytes - session->part_left;

    return pool->used_bytes == 0 || held + bytes <= share ||
           pool->used_bytes + bytes <= pool->budget_bytes - share * NBD_RESERVED_SHARES;
}

/* The steps below return true to go on at once; otherwise `wait` is set, or the state is not NBD_OPEN. */

static bool wait_for(struct nbd_session *session, enum nbd_wait wait)
{
    session->wait = wait;
    return false;
}

static bool step_header(struct nbd_session *session)
{
    struct stream *stream = &session->stream;

    if (stream_available(stream) < NBD_REQUEST_BYTES)
        return wait_for(session, NBD_WAIT_INPUT);
    if (nbd_limit_reached(session))
        return wait_for(session, NBD_WAIT_LIMIT);
    struct nbd_request header = nbd_request_decode(stream_peek(stream));
    stream_consume(stream, NBD_REQUEST_BYTES);
    if (header.magic != NBD_REQUEST_MAGIC) {
        stream_flush(stream);
        nbd_session_kill(session, RE_NBD_END_PROTOCOL);
        return false;
    }
    if (header.type == NBD_CMD_DISC) {
        session->end = RE_NBD_END_DISC;
        session->state = NBD_DISC;
        return false;
    }
    session->host->stats->nbd_requests++;
    enum nbd_error error = request_check(session, &header);
    if (error != NBD_OK && header.type == NBD_CMD_WRITE) {
        if (header.length > NBD_DRAIN_BYTES_MAX) {
            nbd_reply_status(session, header.type, header.cookie, error);
            stream_flush(stream);
            nbd_session_kill(session, RE_NBD_END_PROTOCOL);
            return false;
        }
        session->drain_cookie = header.cookie;
        session->drain_left = header.length;
        session->drain_error = error;
    } else if (error != NBD_OK || header.type == NBD_CMD_CACHE) {
        /* CACHE is a hint, and a read that is thrown away would not make later ones faster. */
        nbd_reply_status(session, header.type, header.cookie, error);
    } else {
        session->current = command_take(session, &header);
        session->part_offset = header.offset;
        session->part_left = header.length;
    }
    return true;
}

/* The payload of a refused WRITE. */
static bool step_drain(struct nbd_session *session)
{
    uint32_t count = (uint32_t)size_min(session->drain_left, stream_available(&session->stream));

    stream_consume(&session->stream, count);
    session->drain_left -= count;
    if (session->drain_left)
        return wait_for(session, NBD_WAIT_INPUT);
    nbd_reply_status(session, NBD_CMD_WRITE, session->drain_cookie, session->drain_error);
    session->drain_error = 0;
    return true;
}

/* All parts of the command at the parse position are out. */
static bool current_submitted(struct nbd_session *session)
{
    struct nbd_command *command = session->current;
    session->current = NULL;
    command->submitted = true;
    command_finish_if_done(session, command);   /* parts of a slow WRITE are done before its end arrives */
    return true;
}

static bool step_write(struct nbd_session *session)
{
    const struct nbd_host *host = session->host;

    while (session->part_left) {
        size_t bytes = size_min(session->part_left, NBD_PART_BYTES_MAX);
        if (!session->part) {
            struct buf *buf = has_share(session, bytes) ? buf_take(host->buffers, bytes) : NULL;
            if (!buf)
                return wait_for(session, NBD_WAIT_RESOURCES);
            struct request *request = request_take(host->requests);
            if (!request) {
                buf_put(buf);
                return wait_for(session, NBD_WAIT_RESOURCES);
            }
            request->buf = buf;
            session->part = request;
            stream_receive_payload(&session->stream, buf->data, bytes);
        }
        if (!stream_payload_done(&session->stream))
            return wait_for(session, NBD_WAIT_INPUT);
        struct request *request = session->part;
        uint64_t offset = session->part_offset;
        session->part = NULL;
        session->part_offset += bytes;
        session->part_left -= bytes;
        part_submit(session, session->current, request, REQUEST_WRITE, offset, bytes);
    }
    return current_submitted(session);
}

static bool step_read(struct nbd_session *session)
{
    const struct nbd_host *host = session->host;
    struct nbd_command *command = session->current;
    uint32_t parts = (command->length + NBD_PART_BYTES_MAX - 1) / NBD_PART_BYTES_MAX, taken = 0;
    uint32_t left = command->length;

    if (request_table_free(host->requests) < parts || !has_share(session, command->length))
        return wait_for(session, NBD_WAIT_RESOURCES);
    for (; taken < parts; taken++) {
        uint32_t bytes = u32_min(left, NBD_PART_BYTES_MAX);
        command->bufs[taken] = buf_take(host->buffers, bytes);
        if (!command->bufs[taken])
            break;
        left -= bytes;
    }
    if (taken < parts) {
        while (taken > 0)
            buf_put(command->bufs[--taken]);
        return wait_for(session, NBD_WAIT_RESOURCES);
    }
    command->buf_count = (uint8_t)parts;
    for (uint32_t i = 0; i < parts; i++) {
        uint32_t at = i * NBD_PART_BYTES_MAX;
        struct request *request = request_take(host->requests);
        CHECK(request);
        request->buf = buf_ref(command->bufs[i]);
        part_submit(session, command, request, REQUEST_READ, command->offset + at,
                    u32_min(command->length - at, NBD_PART_BYTES_MAX));
    }
    return current_submitted(session);
}

/* TRIM and WRITE_ZEROES: parts end on extent borders, so none touches more extents than a request may. */
static bool step_zero(struct nbd_session *session)
{
    struct nbd_command *command = session->current;
    enum request_kind kind = command->type == NBD_CMD_TRIM ? REQUEST_TRIM : REQUEST_ZERO;

    while (session->part_left) {
        struct request *request = request_take(session->host->requests);
        if (!request)
            return wait_for(session, NBD_WAIT_RESOURCES);
        uint64_t offset = session->part_offset;
        uint64_t border = (offset + NBD_ZERO_PART_BYTES_MAX) & ~(uint64_t)(AL_EXTENT_BYTES - 1);
        uint64_t most = session->host->zero_bytes_max(session->host->ctx, session->volume);
        uint64_t bytes = u64_min(session->part_left, u64_min(border - offset, most));
        session->part_offset += bytes;
        session->part_left -= bytes;
        part_submit(session, command, request, kind, offset, bytes);
    }
    return current_submitted(session);
}

/* FLUSH and BLOCK_STATUS: one request whatever the length. */
static bool step_single(struct nbd_session *session)
{
    const struct nbd_host *host = session->host;
    struct nbd_command *command = session->current;
    bool flush = command->type == NBD_CMD_FLUSH;

    if (!flush && !command->extents) {
        command->extents = buf_take(host->buffers, NBD_EXTENTS_MAX * sizeof(struct disk_extent));
        if (!command->extents)
            return wait_for(session, NBD_WAIT_RESOURCES);
    }
    struct request *request = request_take(host->requests);
    if (!request)
        return wait_for(session, NBD_WAIT_RESOURCES);
    if (flush) {
        part_submit(session, command, request, REQUEST_FLUSH, 0, 0);
        return current_submitted(session);
    }
    request->extents = (void *)command->extents->data;
    request->extents_max = command->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_EXTENTS_MAX;
    part_submit(session, command, request, REQUEST_EXTENTS, command->offset, command->length);
    return current_submitted(session);
}

void nbd_parse(struct nbd_session *session)
{
    bool more = true;
    uint64_t end = session->host->stats->nbd_requests + NBD_TURN_REQUESTS;
    while (more && session->state == NBD_OPEN) {
        if (!session->current) {
            if (session->host->stats->nbd_requests >= end) {
                session->wait = NBD_WAIT_LIMIT;     /* that of the turn: it goes on with the next one */
                return;
            }
            more = session->drain_error ? step_drain(session) : step_header(session);
            continue;
        }
        switch (session->current->type) {
        case NBD_CMD_WRITE: more = step_write(session); break;
        case NBD_CMD_READ: more = step_read(session); break;
        case NBD_CMD_TRIM:
        case NBD_CMD_WRITE_ZEROES: more = step_zero(session); break;
        default: more = step_single(session); break;
        }
    }
}

