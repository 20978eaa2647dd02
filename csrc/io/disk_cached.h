/* SPDX-License-Identifier: Apache-2.0 */
/* Reads that the page cache answers, on the engine's thread: handing them to a disk thread costs more than they do.
 *
 * Invariant: nothing here waits for a disk.  What is not in memory as a whole is left to the disk threads.
 */
#ifndef IO_DISK_CACHED_H
#define IO_DISK_CACHED_H

#include "io/io.h"

enum {
    DISK_CACHED_BYTES_MAX = 32 << 10, /* larger ones are worth a second processor */
    DISK_CACHED_PLACES = 64,
    DISK_CACHED_PAUSE_MAX = 64,       /* reads that are not looked up after misses, at most */
    DISK_CACHED_ROW_MAX = 64,         /* then a disk thread gets one: on a quiet machine it goes on looking for work */
};

/* What is remembered of a descriptor (modulo DISK_CACHED_PLACES); all zeroes at the start. */
struct disk_cached {
    unsigned row; /* reads answered since a disk thread got one */
    struct {
        uint8_t pause; /* reads that will not be looked up */
        uint8_t step;  /* how many the last miss was worth */
    } places[DISK_CACHED_PLACES];
};

/* True: `op` is a read and done, with all of its bytes and no error.  False: it has to be run in the ordinary way. */
bool disk_cached_read(struct disk_cached *cached, struct disk_op *op);

#endif
