/* SPDX-License-Identifier: Apache-2.0 */
/* One disk operation as system calls.
 *
 * Invariants: an operation either moves all of its bytes or has an error; a write with DISK_FUA and a flush
 * without error are stable; nothing here is remembered between operations.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "io/disk_run.h"

#include "io/disk_nbd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    ZERO_PIECE_BYTES = 1 << 20,
    EXTENT_STEP_BYTES = 64 << 10,
    EXTENT_STEPS_MAX = 1024,
};

uint64_t disk_run_exact_bytes = 1 << 30;

/* Never written: all of it is the kernel's zero page.  Aligned for O_DIRECT. */
static _Alignas(4096) uint8_t zeroes[ZERO_PIECE_BYTES];

static bool is_unsupported(int error)
{
    return error == EOPNOTSUPP || error == ENOSYS || error == EINVAL || error == ENOTTY;
}

static int run_sync(struct disk_op *op)
{
    while (fdatasync(op->fd) != 0)
        if (errno != EINTR) {
            op->lost = true;
            return errno;
        }
    return 0;
}

static int run_read(int fd, uint8_t *data, uint64_t length, uint64_t offset)
{
    while (length > 0) {
        ssize_t got = pread(fd, data, length, (off_t)offset);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return errno;
        }
        if (got == 0)
            return EIO; /* the backing file is shorter than the device: never invent data */
        data += got;
        offset += (uint64_t)got;
        length -= (uint64_t)got;
    }
    return 0;
}

static int write_all(int fd, const uint8_t *data, uint64_t length, uint64_t offset)
{
    while (length > 0) {
        ssize_t put = pwrite(fd, data, length, (off_t)offset);
        if (put < 0) {
            if (errno == EINTR)
                continue;
            return errno;
        }
        if (put == 0)
            return EIO;
        data += put;
        offset += (uint64_t)put;
        length -= (uint64_t)put;
    }
    return 0;
}

/* The bytes are stable on return: by RWF_DSYNC where the file knows it, else by a flush at the end. */
static int write_stable(struct disk_op *op)
{
    uint8_t *data = op->data;
    uint64_t length = op->length, offset = op->offset;

    while (length > 0) {
        struct iovec iov = {.iov_base = data, .iov_len = length};
        ssize_t put = pwritev2(op->fd, &iov, 1, (off_t)offset, RWF_DSYNC);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            int error = put < 0 ? errno : EIO;
            int plain = write_all(op->fd, data, length, offset);
            if (plain)
                return plain;       /* it is these bytes that cannot be written */
            if (is_unsupported(error))
                return run_sync(op);
            op->lost = true;
            return error;
        }
        data += put;
        offset += (uint64_t)put;
        length -= (uint64_t)put;
    }
    return 0;
}

static int run_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
    while (fallocate(fd, mode, (off_t)offset, (off_t)length) != 0)
        if (errno != EINTR)
            return errno;
    return 0;
}

static int write_zeroes(int fd, uint64_t offset, uint64_t length)
{
    for (uint64_t done = 0; done < length;) {
        uint64_t piece = length - done < ZERO_PIECE_BYTES ? length - done : ZERO_PIECE_BYTES;
        int error = write_all(fd, zeroes, piece, offset + done);
        if (error)
            return error;
        done += piece;
    }
    return 0;
}

bool disk_run_aligned(const struct disk_op *op, uint64_t *begin, uint64_t *end)
{
    uint64_t granularity = op->extents_max;
    if (granularity == 0)
        return false;
    *begin = (op->offset + granularity - 1) / granularity * granularity;
    *end = (op->offset + op->length) / granularity * granularity;
    return *begin < *end;
}

/* A device that cannot zero and unmap, but discard (thin provisioning): its whole pieces are discarded, which the
 * configuration says to read as zeroes then, and the rest is zeroed. */
static int run_discard(const struct disk_op *op)
{
    uint64_t begin, end;
    if (!disk_run_aligned(op, &begin, &end))
        return EOPNOTSUPP;
    uint64_t range[2] = {begin, end - begin};
    while (ioctl(op->fd, BLKDISCARD, range) != 0)
        if (errno != EINTR)
            return errno;
    int error = write_zeroes(op->fd, op->offset, begin - op->offset);
    return error ? error : write_zeroes(op->fd, end, op->offset + op->length - end);
}

static int run_zero(const struct disk_op *op)
{
    bool fast = op->flags & DISK_FAST;
    struct stat status;
    int error = EOPNOTSUPP;

    if (fstat(op->fd, &status) != 0)
        return errno;
    if (op->flags & DISK_MAY_UNMAP)
        error = run_fallocate(op->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, op->offset, op->length);
    if (is_unsupported(error) && (op->flags & DISK_DISCARD) && S_ISBLK(status.st_mode))
        error = run_discard(op);
    /* A block device that cannot zero a range has the kernel write zeroes here, which is what DISK_FAST
     * forbids. */
    if (is_unsupported(error) && !(fast && S_ISBLK(status.st_mode)))
        error = run_fallocate(op->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, op->offset, op->length);
    if (!is_unsupported(error))
        return error;
    return fast ? ENOTSUP : write_zeroes(op->fd, op->offset, op->length);
}

static void add_extent(struct disk_op *op, uint64_t length, bool hole)
{
    if (length == 0)
        return;
    if (op->extents_count > 0 && op->extents[op->extents_count - 1].hole == hole)
        op->extents[op->extents_count - 1].length += length;
    else if (op->extents_count < op->extents_max)
        op->extents[op->extents_count++] = (struct disk_extent){.length = length, .hole = hole};
}

/* The end of the data that begins at `at`, or a lower bound of it; 0: it cannot be told. */
static uint64_t data_end(const struct disk_op *op, uint64_t at, bool exact, uint64_t step)
{
    uint64_t end = op->offset + op->length;
    if (!exact)
        return end - at > step ? (at / step + 1) * step : end;
    off_t hole = lseek(op->fd, (off_t)at, SEEK_HOLE);
    if (hole < 0 || (uint64_t)hole <= at)
        return 0;   /* it changes under us */
    return (uint64_t)hole < end ? (uint64_t)hole : end;
}

/* Allocation is a hint: whatever cannot be told counts as allocated.
 *
 * To find the end of data the kernel may look at each of its pages or extents, so in files with much of it only the
 * beginning of every step is looked at: holes shorter than that are not seen, and the work is bounded. */
static void run_extents(struct disk_op *op)
{
    uint64_t at = op->offset;
    uint64_t end = op->offset + op->length;
    struct stat status;

    op->extents_count = 0;
    if (op->extents_max == 0)
        return;
    bool known = fstat(op->fd, &status) == 0 && S_ISREG(status.st_mode);
    bool exact = known && (uint64_t)status.st_blocks * 512 <= disk_run_exact_bytes;
    uint64_t step = op->length / EXTENT_STEPS_MAX / EXTENT_STEP_BYTES * EXTENT_STEP_BYTES + EXTENT_STEP_BYTES;
    /* Every turn either adds an entry or goes a step. */
    while (known && at < end) {
        off_t data = lseek(op->fd, (off_t)at, SEEK_DATA);
        if (data < 0 && errno == ENXIO) {
            add_extent(op, end - at, true);
            return;
        }
        if (data < 0)
            break;
        uint64_t data_at = (uint64_t)data < end ? (uint64_t)data : end;
        if (data_at > at && op->extents_count == op->extents_max)
            return;
        add_extent(op, data_at - at, true);
        at = data_at;
        if (at == end || (op->extents_count == op->extents_max && op->extents[op->extents_count - 1].hole))
            return;
        uint64_t next = data_end(op, at, exact, step);
        if (next == 0)
            break;
        add_extent(op, next - at, false);
        at = next;
    }
    if (at < end)
        add_extent(op, end - at, false);
}

/* Only the beginning of the next data is asked for: to find its end the kernel may look at every page of it. */
static bool begins_with_hole(struct disk_op *op)
{
    op->extents_count = 0;
    off_t data = lseek(op->fd, (off_t)op->offset, SEEK_DATA);
    uint64_t data_at = data < 0 ? UINT64_MAX : (uint64_t)data;
    if ((data < 0 && errno != ENXIO) || data_at <= op->offset)
        return false;
    uint64_t hole = data_at - op->offset;
    struct stat status;
    /* ENXIO is also the answer for what lies beyond the end, which reads as an error. */
    if (data < 0 && (fstat(op->fd, &status) != 0 || (uint64_t)status.st_size < op->offset + op->length))
        return false;
    if (data < 0)
        hole = (uint64_t)status.st_size - op->offset;
    op->extents[0] = (struct disk_extent){.length = hole, .hole = true};
    op->extents_count = 1;
    return true;
}

void disk_run(struct disk_op *op)
{
    bool sync = !(op->flags & DISK_NO_SYNC);
    bool stable = sync && (op->flags & DISK_FUA);

    op->error = 0;
    op->lost = false;
    if (op->flags & DISK_NBD) {
        disk_nbd_run(op);
        return;
    }
    if (sync && (op->flags & DISK_PREFLUSH))
        op->error = run_sync(op);
    if (op->error)
        return;
    switch ((enum disk_op_kind)op->kind) {
    case DISK_READ:
        if (op->extents_max > 0 && begins_with_hole(op))
            return;
        op->error = run_read(op->fd, op->data, op->length, op->offset);
        return;
    case DISK_WRITE:
        op->error = stable ? write_stable(op) : write_all(op->fd, op->data, op->length, op->offset);
        return;
    case DISK_FLUSH:
        op->error = sync ? run_sync(op) : 0;
        return;
    case DISK_ZERO:
        op->error = run_zero(op);
        if (!op->error && stable)
            op->error = run_sync(op);
        return;
    case DISK_EXTENTS:
        run_extents(op);
        return;
    }
    op->error = EINVAL;
}

static bool is_plain_write(const struct disk_op *op)
{
    return op->kind == DISK_WRITE && !(op->flags & DISK_NBD) &&
           ((op->flags & DISK_NO_SYNC) || !(op->flags & (DISK_FUA | DISK_PREFLUSH)));
}

bool disk_run_can_merge(const struct disk_op *op, const struct disk_op *next)
{
    return is_plain_write(op) && is_plain_write(next) && op->fd == next->fd &&
           op->offset + op->length == next->offset;
}

void disk_run_writes(struct disk_op *const *ops, int count)
{
    struct iovec iov[DISK_RUN_MERGE_MAX];
    ssize_t put = -1;

    if (count > 1) {
        for (int i = 0; i < count; i++)
            iov[i] = (struct iovec){.iov_base = ops[i]->data, .iov_len = ops[i]->length};
        do
            put = pwritev(ops[0]->fd, iov, count, (off_t)ops[0]->offset);
        while (put < 0 && errno == EINTR);
    }
    /* What the vectored write did not do completely is done one by one, so that each has its own error. */
    uint64_t written = put > 0 ? (uint64_t)put : 0;
    for (int i = 0; i < count; i++) {
        if (written >= ops[i]->length) {
            written -= ops[i]->length;
            ops[i]->error = 0;
            ops[i]->lost = false;
            continue;
        }
        written = 0;
        disk_run(ops[i]);
    }
}
