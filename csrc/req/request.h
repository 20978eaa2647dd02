/* SPDX-License-Identifier: Apache-2.0 */
/* One application request: what it asks for, where it stands, who is told.
 *
 * Life of a write: taken -> (held while the volume is frozen) -> range lock -> activity log -> started: in the
 * transfer log and in the data stream's queue, then on the local disk -> completed to its owner when the local part is
 * finished and the network part has reached the protocol's point -> released when its epoch is barrier-acked.
 */
#ifndef REQ_REQUEST_H
#define REQ_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/interval.h"
#include "base/list.h"
#include "base/pool.h"
#include "base/status.h"
#include "io/io.h"

enum request_kind { REQUEST_READ, REQUEST_WRITE, REQUEST_ZERO, REQUEST_TRIM, REQUEST_FLUSH, REQUEST_EXTENTS };

enum request_flags {
    REQUEST_FUA = 1,
    REQUEST_MAY_UNMAP = 2,  /* ZERO: the space may be given back */
    REQUEST_FAST = 4,       /* ZERO: fail with ENOTSUP instead of writing zeroes */
    REQUEST_UNDO = 8,       /* READ: the disk as it was when the undo began */
    REQUEST_PREFLUSH = 8,   /* the peer flushes first (engine/conflict.c) */
};

struct volume;
struct epoch;

/* A range in a volume's lock and what to do when it is granted later. */
struct range_item {
    struct range range;                             /* bytes */
    void (*granted)(struct range_item *item);       /* called from a tick, not from range_acquire */
};

/* Where a held request goes on. */
enum request_stage { STAGE_NEW, STAGE_LOCKED, STAGE_ADMITTED };

/* Something that waits for its extents to be in the activity log. */
struct al_waiter {
    struct list_head link;                      /* the volume's waiting or planned list */
    uint32_t first, last;                       /* extents, inclusive */
    bool has_reference;                         /* references are held and must be put */
    uint32_t attachment;                        /* which attached disk the references belong to */
    void (*granted)(struct al_waiter *waiter);  /* called when the extents are active and referenced */
};

struct request {
    struct list_head link;      /* free list, or the queue it waits in */
    struct list_head tl;        /* transfer log: list of its epoch */
    struct list_head sent;      /* protocol A: waiting for the socket to take the packet */
    struct volume *volume;      /* set by volume_submit */
    uint32_t index;             /* place in the request table; with `generation` the block_id on the wire */
    uint32_t generation;        /* counts the uses of this entry */
    uint8_t kind;               /* enum request_kind */
    uint8_t flags;              /* enum request_flags */
    uint64_t offset;            /* bytes, multiple of 512 */
    uint64_t length;            /* bytes, multiple of 512; at most 1 MiB, TRIM and ZERO at most 128 MiB */
    struct buf *buf;            /* READ and WRITE: data (the request owns one reference) */
    struct disk_extent *extents;    /* EXTENTS: filled on success, owned by the caller */
    uint32_t extents_max, extents_count;

    /* Result, valid in `done`. */
    int error;                  /* 0 or errno for the client */
    void (*done)(struct request *request);  /* called exactly once, from a tick */
    void *owner;                /* for the callback */

    /* Progress; private to req/ and engine/. */
    struct range_item lock;     /* lock on the bytes it touches */
    struct al_waiter al;        /* activity log extents */
    struct disk_op op;          /* local part */
    struct epoch *epoch;        /* epoch it was sent in */
    uint64_t started_ns;        /* when it was started */
    uint64_t tx_mark;           /* data stream position behind its packet */
    uint64_t kept_epoch;        /* serial of its former epoch while it is kept without a link */
    uint64_t read_at;           /* UNDO: bytes that have been read */
    uint64_t flush_epoch;       /* FLUSH: epochs up to this serial must be barrier-acked */
    bool local_pending, local_ok;   /* local part running / succeeded */
    bool net_pending, net_ok;       /* network part short of the protocol's point / succeeded */
    bool ack_expected;          /* an ack packet for it may still come */
    bool write_ack;             /* and a P_RECV_ACK is not the point that it waits for */
    bool in_transfer_log;       /* waits for the barrier ack of its epoch */
    bool completed;             /* the owner was told */
    bool marked;                /* its bits are set already */
    bool remote_read;           /* READ: asked from the peer, in parts of part_bytes */
    bool arriving;              /* READ: the payload of a part is coming in */
    bool read_failed;           /* READ: the peer has refused a part */
    bool refused;               /* READ: the peer could not, though it should have: the own disk is asked */
    bool needs_barrier;         /* more than an old peer acks: FUA that it does not know, a write in B */
    bool told;                  /* `done` was called */
    uint32_t parts_left;        /* TRIM and ZERO sent as several packets: acks still to come, 0 = one packet */
    uint32_t part_bytes;        /* length of each of them but the last */
    bool behind;                /* WRITE: begun while the own disk was not good, not completed */
    bool started;               /* WRITE: sent and given to the disk, as far as that was to be done */
    bool in_conflict;           /* WRITE: something is to be done when the local part is finished (conflict.c) */
    bool postponed;             /* WRITE: to be started again then */
    bool dropped;               /* WRITE: by the peer, and not sent again yet: its data is on the own disk alone */
    uint8_t stepped_back;       /* WRITE: how often a write of the peer has passed it */
    bool write_again;           /* WRITE: one of the peer lands on it: its data is put on top */
    bool waits_for_peer;        /* WRITE: when that is finished; no operation of its own is in flight */
    uint8_t stage;              /* enum request_stage: where it goes on when the volume thaws */
};

/* Fixed table of requests; block ids are looked up here, never dereferenced. */
struct request_table {
    struct request *entries;    /* `count` of them */
    uint32_t count;
    uint32_t reserved;          /* of them; only request_take_reserved() gets the last ones */
    uint32_t free_count;
    struct list_head free;      /* most recently used first */
};

enum re_status request_table_init(struct request_table *table, uint32_t count, uint32_t reserved);
void request_table_destroy(struct request_table *table);
/* A request with cleared progress, or NULL when all are in use. */
struct request *request_take(struct request_table *table);
/* The same for what has to go on while the applications hold all others. */
struct request *request_take_reserved(struct request_table *table);
void request_free(struct request_table *table, struct request *request);
/* How many request_take() has still to give. */
static inline uint32_t request_table_free(const struct request_table *table)
{
    return table->free_count > table->reserved ? table->free_count - table->reserved : 0;
}
/* The id that goes out as block_id (never 0 and never all ones). */
static inline uint64_t request_block_id(const struct request *request)
{
    return ((uint64_t)request->generation << 32) | (request->index + 1u);
}
/* The request in use that has this id, or NULL. */
struct request *request_find(struct request_table *table, uint64_t block_id);

#endif
