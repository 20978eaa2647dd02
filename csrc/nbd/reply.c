/* SPDX-License-Identifier: Apache-2.0 */
/* Replies of an NBD session; invariant: headers are copied into the stream, data is referenced. */
#include "base/check.h"
#include "nbd/command.h"

void nbd_reply_status(struct nbd_session *session, uint16_t type, uint64_t cookie, uint32_t error)
{
    uint8_t reply[NBD_CHUNK_ERROR_BYTES];
    bool chunk = (session->options.flags & RE_NBD_STRUCTURED) &&
                 (type == NBD_CMD_READ || type == NBD_CMD_BLOCK_STATUS);

    if (!chunk) {
        nbd_simple_reply_encode(reply, cookie, error);
        stream_queue_bytes(&session->stream, reply, NBD_SIMPLE_REPLY_BYTES);
        return;
    }
    CHECK(error != NBD_OK);     /* success of these two carries content */
    nbd_chunk_encode(reply, NBD_REPLY_FLAG_DONE, NBD_REPLY_ERROR, cookie,
                     NBD_CHUNK_ERROR_BYTES - NBD_CHUNK_BYTES);
    be32_put(reply + NBD_CHUNK_BYTES, error);
    be16_put(reply + NBD_CHUNK_BYTES + 4, 0);
    stream_queue_bytes(&session->stream, reply, NBD_CHUNK_ERROR_BYTES);
}

/* Queue bytes [begin, end) of what the command has read. */
static void queue_data(struct nbd_session *session, const struct nbd_command *command, uint32_t begin,
                       uint32_t end)
{
    while (begin < end) {
        struct buf *buf = command->bufs[begin / NBD_PART_BYTES_MAX];
        uint32_t at = begin % NBD_PART_BYTES_MAX;
        uint32_t count = u32_min(end - begin, NBD_PART_BYTES_MAX - at);
        stream_queue_again(&session->stream, buf, buf->data + at, count, command->offset + begin);
        begin += count;
    }
}

/* One chunk for bytes [begin, end); the one that reaches the command's end is the last. */
static void queue_chunk(struct nbd_session *session, const struct nbd_command *command, uint32_t begin,
                        uint32_t end, bool hole)
{
    uint8_t header[NBD_CHUNK_HOLE_BYTES];
    uint16_t flags = end == command->length ? NBD_REPLY_FLAG_DONE : 0;

    be64_put(header + NBD_CHUNK_BYTES, command->offset + begin);
    if (hole) {
        nbd_chunk_encode(header, flags, NBD_REPLY_OFFSET_HOLE, command->cookie,
                         NBD_CHUNK_HOLE_BYTES - NBD_CHUNK_BYTES);
        be32_put(header + NBD_CHUNK_BYTES + 8, end - begin);
        stream_queue_bytes(&session->stream, header, NBD_CHUNK_HOLE_BYTES);
        return;
    }
    nbd_chunk_encode(header, flags, NBD_REPLY_OFFSET_DATA, command->cookie, 8 + (end - begin));
    stream_queue_bytes(&session->stream, header, NBD_CHUNK_DATA_BYTES);
    queue_data(session, command, begin, end);
}

/* Data mostly shows in the first cache line of a block: this costs next to nothing unless there is a hole. */
static bool block_is_zero(const uint8_t *block)
{
    for (uint32_t at = 0; at < BLOCK_BYTES; at += 64) {
        uint64_t word[8];
        memcpy(word, block + at, sizeof word);
        if (word[0] | word[1] | word[2] | word[3] | word[4] | word[5] | word[6] | word[7])
            return false;
    }
    return true;
}

static void reply_read_sparse(struct nbd_session *session, const struct nbd_command *command)
{
    uint32_t run = 0;           /* where the chunk that is being put together begins */
    bool run_is_hole = false;
    uint32_t chunks = 0;
    /* Blocks are those of the device; what is in front of the first whole one is data. */
    uint32_t at = (uint32_t)(-command->offset & (BLOCK_BYTES - 1));

    for (; command->length - at >= BLOCK_BYTES && chunks < NBD_READ_CHUNKS_MAX - 2; at += BLOCK_BYTES) {
        uint32_t in_part = at % NBD_PART_BYTES_MAX;
        bool hole = in_part <= NBD_PART_BYTES_MAX - BLOCK_BYTES &&  /* one that lies in two buffers is data */
                    block_is_zero(command->bufs[at / NBD_PART_BYTES_MAX]->data + in_part);
        if (hole != run_is_hole) {
            if (at > run) {
                queue_chunk(session, command, run, at, run_is_hole);
                chunks++;
            }
            run = at;
            run_is_hole = hole;
        }
    }
    if (run_is_hole && at < command->length) {
        queue_chunk(session, command, run, at, true);
        run = at;
        run_is_hole = false;
    }
    queue_chunk(session, command, run, command->length, run_is_hole);
}

static void reply_read(struct nbd_session *session, const struct nbd_command *command)
{
    if (!(session->options.flags & RE_NBD_STRUCTURED)) {
        nbd_reply_status(session, NBD_CMD_READ, command->cookie, NBD_OK);
        queue_data(session, command, 0, command->length);
    } else if ((command->flags & NBD_CMD_FLAG_DF) || command->length < BLOCK_BYTES) {
        queue_chunk(session, command, 0, command->length, false);
    } else {
        reply_read_sparse(session, command);
    }
}

/* Extents become descriptors: clipped to what was asked, on sector borders, neighbours of one kind joined. */
static void reply_block_status(struct nbd_session *session, const struct nbd_command *command)
{
    const struct disk_extent *extents = (const void *)command->extents->data;
    uint8_t reply[NBD_CHUNK_BYTES + 4 + NBD_EXTENTS_MAX * 8];
    uint8_t *first = reply + NBD_CHUNK_BYTES + 4, *next = first;
    uint64_t position = 0, told = 0;

    for (uint32_t i = 0; i < command->extents_count && told < command->length; i++) {
        if (!u64_add_checked(position, extents[i].length, &position) || position > command->length)
            position = command->length;
        /* Half a sector of data makes it a sector of data. */
        uint64_t end = extents[i].hole ? position : position + SECTOR_BYTES - 1;
        end = u64_min(end & ~(uint64_t)(SECTOR_BYTES - 1), command->length);
        if (end <= told)
            continue;
        uint32_t length = (uint32_t)(end - told);
        uint32_t state = extents[i].hole ? NBD_STATE_HOLE | NBD_STATE_ZERO : 0;
        told = end;
        if (next > first && be32_get(next - 4) == state) {
            be32_put(next - 8, be32_get(next - 8) + length);
            continue;
        }
        be32_put(next, length);
        be32_put(next + 4, state);
        next += 8;
    }
    if (next == first) {    /* nothing is known: it is data */
        be32_put(next, command->length);
        be32_put(next + 4, 0);
        next += 8;
    }
    nbd_chunk_encode(reply, NBD_REPLY_FLAG_DONE, NBD_REPLY_BLOCK_STATUS, command->cookie,
                     (uint32_t)(next - reply) - NBD_CHUNK_BYTES);
    be32_put(reply + NBD_CHUNK_BYTES, session->options.context_id);
    stream_queue_bytes(&session->stream, reply, (size_t)(next - reply));
}

void nbd_reply_command(struct nbd_session *session, const struct nbd_command *command)
{
    if (command->error)
        nbd_reply_status(session, command->type, command->cookie, nbd_error_from_errno(command->error));
    else if (command->type == NBD_CMD_READ)
        reply_read(session, command);
    else if (command->type == NBD_CMD_BLOCK_STATUS)
        reply_block_status(session, command);
    else
        nbd_reply_status(session, command->type, command->cookie, NBD_OK);
}
