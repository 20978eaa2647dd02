/* SPDX-License-Identifier: Apache-2.0 */
/* Is it in the page cache?  cachestat(2) (Linux 6.5) tells without reading anything; RWF_NOWAIT alone would do as well,
 * but begins to read what it does not find, and a disk that hangs could keep this thread there.
 *
 * The page cache also reads ahead when somebody comes to a page that it has marked for that.  It does not when all that
 * it would read is there already, so READ_AHEAD_BYTES (Linux's usual setting) behind the range are looked up with it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "io/disk_cached.h"

#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

enum { READ_AHEAD_BYTES = 128 << 10 };

/* As the kernel defines them: newer than the headers of most distributions. */
struct cache_range {
    uint64_t offset; /* bytes */
    uint64_t length; /* bytes */
};

struct cache_state {
    uint64_t cached; /* pages */
    uint64_t dirty, writeback, evicted, recently_evicted;
};

static bool is_cached(int fd, uint64_t offset, uint64_t length)
{
    const uint64_t page_bytes = (uint64_t)getpagesize();
    struct cache_range range = {.offset = offset, .length = length};
    struct cache_state state;

    if (syscall(SYS_cachestat, fd, &range, &state, 0) != 0)
        return false;
    return state.cached == (offset + length - 1) / page_bytes - offset / page_bytes + 1;
}

static bool read_now(const struct disk_op *op)
{
    struct iovec iov = {.iov_base = op->data, .iov_len = op->length};
    return preadv2(op->fd, &iov, 1, (off_t)op->offset, RWF_NOWAIT) == (ssize_t)op->length;
}

bool disk_cached_read(struct disk_cached *cached, struct disk_op *op)
{
    if (op->kind != DISK_READ || !(op->flags & DISK_PAGE_CACHE) || op->extents_max > 0 || op->length == 0 ||
        op->length > DISK_CACHED_BYTES_MAX)
        return false;
    uint8_t *pause = &cached->places[(unsigned)op->fd % DISK_CACHED_PLACES].pause;
    uint8_t *step = &cached->places[(unsigned)op->fd % DISK_CACHED_PLACES].step;
    if (cached->row >= DISK_CACHED_ROW_MAX || *pause > 0) {
        cached->row = 0;
        if (*pause > 0)
            (*pause)--;
        return false;
    }
    if (is_cached(op->fd, op->offset, op->length + READ_AHEAD_BYTES) && read_now(op)) {
        cached->row++;
        *step = 0;
        op->error = 0;
        op->lost = false;
        return true;
    }
    /* Where reads miss the cache, asking each time would be for nothing. */
    *step = (uint8_t)(*step == 0 ? 1 : *step < DISK_CACHED_PAUSE_MAX ? *step * 2 : DISK_CACHED_PAUSE_MAX);
    *pause = *step;
    return false;
}
