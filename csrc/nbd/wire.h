/* SPDX-License-Identifier: Apache-2.0 */
/* The NBD transmission phase on the wire: numbers, request header, reply headers.
 *
 * Invariants: everything is big endian; a reply header is written completely by the function of its name.
 * Facts: the NBD project's doc/proto.md, sections "Transmission phase", "Structured replies", "Error values".
 */
#ifndef NBD_WIRE_H
#define NBD_WIRE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

enum nbd_magic {
    NBD_REQUEST_MAGIC = 0x25609513,
    NBD_SIMPLE_REPLY_MAGIC = 0x67446698,
    NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef,
};

enum nbd_wire_bytes {
    NBD_REQUEST_BYTES = 28,
    NBD_SIMPLE_REPLY_BYTES = 16,
    NBD_CHUNK_BYTES = 20,                           /* header of a structured reply chunk */
    NBD_CHUNK_DATA_BYTES = NBD_CHUNK_BYTES + 8,     /* with the offset in front of the data */
    NBD_CHUNK_HOLE_BYTES = NBD_CHUNK_BYTES + 12,
    NBD_CHUNK_ERROR_BYTES = NBD_CHUNK_BYTES + 6,    /* without a message */
};

enum nbd_command_type {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum nbd_command_flags {
    NBD_CMD_FLAG_FUA = 1,
    NBD_CMD_FLAG_NO_HOLE = 2,
    NBD_CMD_FLAG_DF = 4,
    NBD_CMD_FLAG_REQ_ONE = 8,
    NBD_CMD_FLAG_FAST_ZERO = 16,
};

enum nbd_reply_type {
    NBD_REPLY_OFFSET_DATA = 1,
    NBD_REPLY_OFFSET_HOLE = 2,
    NBD_REPLY_BLOCK_STATUS = 5,
    NBD_REPLY_ERROR = 32769,
};

enum { NBD_REPLY_FLAG_DONE = 1 };
enum { NBD_STATE_HOLE = 1, NBD_STATE_ZERO = 2 };

enum nbd_error {
    NBD_OK = 0,
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

/* A decoded request header. */
struct nbd_request {
    uint32_t magic;     /* NBD_REQUEST_MAGIC if the client is sane */
    uint16_t flags;     /* enum nbd_command_flags, or anything */
    uint16_t type;      /* enum nbd_command_type, or anything */
    uint64_t cookie;    /* comes back in the reply */
    uint64_t offset;    /* bytes */
    uint32_t length;    /* bytes */
};

static inline struct nbd_request nbd_request_decode(const uint8_t *p)
{
    return (struct nbd_request){
        .magic = be32_get(p), .flags = be16_get(p + 4), .type = be16_get(p + 6),
        .cookie = be64_get(p + 8), .offset = be64_get(p + 16), .length = be32_get(p + 24),
    };
}

static inline void nbd_simple_reply_encode(uint8_t p[NBD_SIMPLE_REPLY_BYTES], uint64_t cookie, uint32_t error)
{
    be32_put(p, NBD_SIMPLE_REPLY_MAGIC);
    be32_put(p + 4, error);
    be64_put(p + 8, cookie);
}

static inline void nbd_chunk_encode(uint8_t p[NBD_CHUNK_BYTES], uint16_t flags, uint16_t type,
                                    uint64_t cookie, uint32_t length)
{
    be32_put(p, NBD_STRUCTURED_REPLY_MAGIC);
    be16_put(p + 4, flags);
    be16_put(p + 6, type);
    be64_put(p + 8, cookie);
    be32_put(p + 16, length);
}

/* The standard's number for an errno of this machine; what it does not know is EIO. */
static inline uint32_t nbd_error_from_errno(int error)
{
    switch (error) {
    case 0: return NBD_OK;
    case EPERM: return NBD_EPERM;
    case EINVAL: return NBD_EINVAL;
    case ENOSPC: return NBD_ENOSPC;
    case EOVERFLOW: return NBD_EOVERFLOW;
    case ENOTSUP: return NBD_ENOTSUP;
    case ESHUTDOWN: return NBD_ESHUTDOWN;
    default: return NBD_EIO;
    }
}

#endif
