/* SPDX-License-Identifier: Apache-2.0 */
/* The table of operations through which the engine's core touches the world.
 *
 * The core never makes a system call, never reads a clock and never starts a thread: the shell that runs it
 * (io/loop.c in production, sim/ in the simulator) hands it this table and calls it back:
 *   core_stream_ready()  a stream can be read or written        core_disk_done()  an operation has finished
 *   core_command()       the control plane wants something      core_tick()       run until nothing is left to do
 * All of it happens on one thread.
 */
#ifndef IO_IO_H
#define IO_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/list.h"

enum disk_op_kind {
    DISK_READ,      /* with extents_max > 0: if the range begins with a hole, its length (which may be more than the
                     * range) is told and nothing is read */
    DISK_WRITE,     /* with DISK_FUA: stable when done; with DISK_PREFLUSH: all earlier finished writes stable first */
    DISK_FLUSH,     /* all earlier finished writes on this descriptor are stable when done */
    DISK_ZERO,      /* the range reads as zeroes afterwards; DISK_MAY_UNMAP: give the space back if possible;
                     * DISK_FAST: fail with ENOTSUP rather than write zeroes;
                     * DISK_DISCARD: where that is not possible, discard the pieces aligned to extents_max bytes */
    DISK_EXTENTS,   /* fill `extents`: allocation of the range (data / hole), at most extents_max entries */
};

enum disk_op_flags {
    DISK_FUA = 1,
    DISK_PREFLUSH = 2,
    DISK_MAY_UNMAP = 4,
    DISK_FAST = 8,
    DISK_INLINE = 16,   /* run on the engine's thread (memory file systems) */
    DISK_NO_SYNC = 32,  /* ignore FUA and PREFLUSH (flushes are switched off) */
    DISK_NBD = 128,     /* the descriptor is an NBD connection */
    DISK_DISCARD = 256, /* discarded pieces count as zeroes (discard-zeroes-if-aligned) */
    DISK_PAGE_CACHE = 1024, /* a buffered file: the engine's thread may read what need not be waited for */
    DISK_FLUSHED = 512, /* of whoever holds it now: what PREFLUSH asks for is done */
    DISK_GIVEN_UP = 64, /* of a finished operation: the disk did not answer and may still use its buffer */
};

struct disk_extent {
    uint64_t length;    /* bytes */
    bool hole;          /* reads as zeroes, not allocated */
};

/* It makes something stable: a disk reports what it has lost once, to any of these. */
#define DISK_OP_SYNCS(op) \
    (!((op)->flags & DISK_NO_SYNC) && ((op)->kind == DISK_FLUSH || ((op)->flags & (DISK_FUA | DISK_PREFLUSH))))

/* One disk operation.  Owned by the core; the shell may hold it from submit until it calls core_disk_done(). */
struct disk_op {
    struct list_head link;          /* queue of whoever holds it now */
    uint8_t kind;                   /* enum disk_op_kind */
    bool lost;                      /* result: making something stable has failed, so any earlier write may be lost */
    uint16_t waits_for;             /* of whoever holds it now */
    uint32_t flags;                 /* enum disk_op_flags */
    int fd;                         /* descriptor, or a number of the simulator */
    uint64_t offset;                /* bytes */
    uint64_t length;                /* bytes; at most 1 MiB for READ and WRITE, at most 128 MiB for ZERO */
    uint8_t *data;                  /* READ and WRITE; aligned to 4096 when the descriptor is O_DIRECT */
    struct disk_extent *extents;    /* EXTENTS, READ: filled by the shell */
    uint32_t extents_max;           /* EXTENTS: room; READ: 1 = look for a hole first; ZERO: see there */
    uint32_t extents_count;         /* EXTENTS: result; READ: 1 = the range begins with a hole */
    int error;                      /* result: 0 or an errno */
    void (*done)(struct disk_op *op);   /* called by the core from core_tick(), never by the shell */
    void *owner;                    /* for the callback */
};

/* Results of stream operations besides a byte count > 0. */
enum { STREAM_IO_AGAIN = -1, STREAM_IO_EOF = 0, STREAM_IO_RESET = -2 };

struct io_ops {
    uint64_t (*now_ns)(void *ctx);      /* monotonic */
    /* Bytes moved (> 0), or STREAM_IO_*.  Never blocks. `stream` is the number of RE_CMD_STREAM_ADD / NBD_ADD. */
    ssize_t (*stream_receive)(void *ctx, int stream, const struct iovec *iov, int count);
    ssize_t (*stream_send)(void *ctx, int stream, const struct iovec *iov, int count);
    /* Which readiness the core wants to hear of (level triggered). Reading is wanted from the start. */
    void (*stream_want)(void *ctx, int stream, bool read, bool write);
    void (*stream_open)(void *ctx, int stream, int fd);     /* takes the descriptor over */
    void (*stream_close)(void *ctx, int stream);            /* closes it; no more readiness comes */
    /* Take a list of operations (linked by disk_op.link); each comes back through core_disk_done(). */
    void (*disk_submit)(void *ctx, struct list_head *ops);
    /* Events wait for the control plane. */
    void (*event_wake)(void *ctx);
};

#endif
