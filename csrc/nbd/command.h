/* SPDX-License-Identifier: Apache-2.0 */
/* Private to nbd/: the session, its command slots and how commands are parsed and answered.
 *
 * Invariants: a slot is in use from the parsed header until every submitted part is done; `in_flight` counts
 * them.  A READ holds one reference to each of its buffers besides the requests' own: its reply is made when
 * the last part is done.  Once the state is not NBD_OPEN, no request is read any more.
 */
#ifndef NBD_COMMAND_H
#define NBD_COMMAND_H

#include "base/limits.h"
#include "nbd/session.h"
#include "nbd/wire.h"

enum nbd_limits {
    NBD_COMMANDS_MAX = 128,                         /* commands in flight per client */
    NBD_IN_FLIGHT_BYTES_MAX = 64 << 20,             /* of READ and WRITE data; one more may start below it */
    NBD_OUTPUT_BYTES_MAX = 4 << 20,                 /* queued replies above which nothing is parsed */
    NBD_PART_BYTES_MAX = 1 << 20,                   /* READ and WRITE: one request of the volume */
    NBD_READ_PARTS_MAX = REQUEST_BYTES_MAX / NBD_PART_BYTES_MAX,
    NBD_ZERO_PART_BYTES_MAX = 128 << 20,            /* TRIM and WRITE_ZEROES: one request of the volume */
    NBD_DRAIN_BYTES_MAX = 64 << 20,                 /* largest payload that is read only to be refused */
    NBD_FILLS_PER_CALL = 2,                         /* receives before other streams get their turn */
    NBD_EXTENTS_MAX = 4096 / sizeof(struct disk_extent),    /* BLOCK_STATUS: what fits a small buffer */
    NBD_READ_CHUNKS_MAX = 1024,                     /* READ: chunks of one reply, the rest is sent as data */
    NBD_SHARES = 64,                                /* a client that holds less than budget / this always gets some.. */
    NBD_RESERVED_SHARES = 16,                       /* ..of what is kept for that: so many shares */
    NBD_ROUNDS_PER_CALL = 4,                        /* of parsing and sending, likewise */
    NBD_TURN_REQUESTS = 256,                        /* parsed before the other clients have their turn */
};

#define NBD_SLOW_NS 200000000ull        /* replies not taken for so long give their buffers to those who wait */
#define NBD_PAYLOAD_NS 60000000000ull   /* a WRITE's payload of which nothing comes for so long ends the client */

enum nbd_state {
    NBD_OPEN,       /* requests are read */
    NBD_DISC,       /* DISC was read: answer everything, then finished */
    NBD_SHUT,       /* the engine wants it to end: answer what the socket takes at once, then finished */
    NBD_DEAD,       /* the stream is closed, replies are dropped */
};

/* Why parsing stopped. */
enum nbd_wait {
    NBD_WAIT_INPUT,         /* more bytes have to arrive */
    NBD_WAIT_LIMIT,         /* output or requests in flight have to become fewer */
    NBD_WAIT_RESOURCES,     /* requests or buffers have to come back (starved) */
};

/* One command of the client that is in flight. */
struct nbd_command {
    struct nbd_session *session;    /* owner */
    uint64_t cookie;                /* of the client */
    uint64_t offset;                /* bytes */
    uint32_t length;                /* bytes */
    uint16_t type;                  /* enum nbd_command_type */
    uint16_t flags;                 /* enum nbd_command_flags */
    uint32_t parts_pending;         /* submitted and not done */
    bool submitted;                 /* no more parts follow */
    uint8_t slot;                   /* own index */
    uint8_t buf_count;              /* READ: parts */
    int error;                      /* first error of a part, errno */
    uint32_t extents_count;         /* BLOCK_STATUS: result */
    struct buf *extents;            /* BLOCK_STATUS: memory of the extents */
    struct buf *bufs[NBD_READ_PARTS_MAX];   /* READ: data, every part but the last has NBD_PART_BYTES_MAX */
};

struct nbd_session {
    struct stream stream;           /* the client's socket */
    const struct nbd_host *host;    /* where requests go */
    int volume;                     /* number of the exported volume */
    uint64_t size_bytes;            /* of the export */
    struct re_nbd options;          /* what was negotiated */
    enum nbd_state state;           /* see there */
    enum nbd_wait wait;             /* why parsing stopped */
    enum re_nbd_end end;            /* valid once the state is not NBD_OPEN */

    /* Parse position inside a command. */
    struct nbd_command *current;    /* parts of it are still to be submitted, or NULL */
    struct request *part;           /* WRITE: the part whose payload is arriving, or NULL */
    uint64_t part_offset;           /* where the next part begins */
    uint64_t part_left;             /* bytes of `current` not submitted yet */
    uint64_t drain_cookie;          /* WRITE that is refused: whom to tell */
    uint32_t drain_left;            /* its payload still to be thrown away */
    uint32_t drain_error;           /* enum nbd_error, 0: no such WRITE */

    struct buf *again;              /* data of a reply that was given back, being read again, or NULL */
    bool again_waits;               /* there is no buffer or request for that now */
    uint64_t slow_since_ns;         /* what was queued then, up to.. */
    uint64_t slow_goal;             /* ..this count of the stream, has not been taken yet */

    uint32_t in_flight;             /* commands */
    uint64_t in_flight_bytes;       /* data of READ and WRITE among them */
    uint32_t free_count;            /* free slots */
    uint8_t free_slots[NBD_COMMANDS_MAX];   /* their indices, most recently used last */
    struct nbd_command commands[NBD_COMMANDS_MAX];
};

/* Nothing more is parsed before this is over. */
static inline bool nbd_limit_reached(const struct nbd_session *session)
{
    return session->free_count == 0 || session->in_flight_bytes >= NBD_IN_FLIGHT_BYTES_MAX ||
           stream_tx_pending(&session->stream) > NBD_OUTPUT_BYTES_MAX;
}

/* Parse what is buffered and set `wait`; every turn takes bytes or submits something, so it ends. */
void nbd_parse(struct nbd_session *session);
/* The command at the parse position ends here: parts that were submitted go on, the rest never starts. */
void nbd_parse_abort(struct nbd_session *session);

/* Nobody is there to read replies, or deserves any: close the stream at once; queued buffers come back. */
void nbd_session_kill(struct nbd_session *session, enum re_nbd_end end);

/* The client takes more, and what comes next was given back: read it again. */
void nbd_again(struct nbd_session *session);

/* Answer a request that never became a command. `error` is an enum nbd_error. */
void nbd_reply_status(struct nbd_session *session, uint16_t type, uint64_t cookie, uint32_t error);
/* Answer a command whose parts are all done. */
void nbd_reply_command(struct nbd_session *session, const struct nbd_command *command);

#endif
