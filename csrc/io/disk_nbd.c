/* SPDX-License-Identifier: Apache-2.0 */
/* A disk that is another resource's device: operations as NBD requests on a connected socket.
 *
 * Invariants: one request at a time on each socket, so an answer belongs to the request before it; after anything
 * that does not fit the connection is shut down, and every later operation fails.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "io/disk_nbd.h"

#include <errno.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/bytes.h"

enum {
    LOCKS = 64,
    REQUEST_BYTES = 28,
    REPLY_BYTES = 16,
    CMD_READ = 0,
    CMD_WRITE = 1,
    CMD_FLUSH = 3,
    CMD_WRITE_ZEROES = 6,
    FLAG_FUA = 1,
    FLAG_NO_HOLE = 2,
};

#define REQUEST_MAGIC 0x25609513u
#define REPLY_MAGIC 0x67446698u
#define COOKIE UINT64_C(0x7265706c00000000)

static pthread_mutex_t locks[LOCKS] = {[0 ... LOCKS - 1] = PTHREAD_MUTEX_INITIALIZER};

static bool send_all(int fd, const uint8_t *header, const uint8_t *data, size_t bytes)
{
    struct iovec iov[2] = {{(void *)(uintptr_t)header, REQUEST_BYTES}, {(void *)(uintptr_t)data, bytes}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = bytes ? 2 : 1};
    while (message.msg_iovlen > 0) {
        ssize_t put = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return false;
        for (size_t left = (size_t)put; left > 0;) {
            size_t step = left < message.msg_iov->iov_len ? left : message.msg_iov->iov_len;
            message.msg_iov->iov_base = (uint8_t *)message.msg_iov->iov_base + step;
            message.msg_iov->iov_len -= step;
            left -= step;
            if (message.msg_iov->iov_len == 0) {
                message.msg_iov++;
                message.msg_iovlen--;
            }
        }
    }
    return true;
}

static bool receive_all(int fd, uint8_t *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t got = recv(fd, data, bytes, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        data += got;
        bytes -= (size_t)got;
    }
    return true;
}

/* 0 or an errno. */
static int request(const struct disk_op *op, uint16_t command, uint16_t flags, uint64_t offset, uint32_t length)
{
    uint8_t header[REQUEST_BYTES], reply[REPLY_BYTES];
    be32_put(header, REQUEST_MAGIC);
    be16_put(header + 4, flags);
    be16_put(header + 6, command);
    be64_put(header + 8, COOKIE);
    be64_put(header + 16, offset);
    be32_put(header + 24, length);
    if (!send_all(op->fd, header, op->data, command == CMD_WRITE ? length : 0) ||
        !receive_all(op->fd, reply, REPLY_BYTES) || be32_get(reply) != REPLY_MAGIC || be64_get(reply + 8) != COOKIE)
        goto broken;
    uint32_t error = be32_get(reply + 4);
    if (error)
        return error == 28 /* NBD_ENOSPC */ ? ENOSPC : error == 95 /* NBD_ENOTSUP */ ? ENOTSUP : EIO;
    if (command == CMD_READ && !receive_all(op->fd, op->data, length))
        goto broken;
    return 0;
broken:
    shutdown(op->fd, SHUT_RDWR);
    return EIO;
}

static int run(struct disk_op *op)
{
    bool sync = !(op->flags & DISK_NO_SYNC);
    uint16_t fua = sync && (op->flags & DISK_FUA) ? FLAG_FUA : 0;
    uint32_t length = (uint32_t)op->length;
    int error = sync && (op->flags & DISK_PREFLUSH) ? request(op, CMD_FLUSH, 0, 0, 0) : 0;
    if (error)
        return error;
    switch ((enum disk_op_kind)op->kind) {
    case DISK_READ:
        return request(op, CMD_READ, 0, op->offset, length);
    case DISK_WRITE:
        return request(op, CMD_WRITE, fua, op->offset, length);
    case DISK_FLUSH:
        return sync ? request(op, CMD_FLUSH, 0, 0, 0) : 0;
    case DISK_ZERO:
        return request(op, CMD_WRITE_ZEROES, (uint16_t)(fua | (op->flags & DISK_MAY_UNMAP ? 0 : FLAG_NO_HOLE)),
                       op->offset, length);
    case DISK_EXTENTS:
        op->extents_count = 0;  /* all of it counts as data */
        return 0;
    }
    return EINVAL;
}

void disk_nbd_run(struct disk_op *op)
{
    pthread_mutex_t *lock = &locks[(unsigned)op->fd % LOCKS];
    pthread_mutex_lock(lock);
    op->error = run(op);
    pthread_mutex_unlock(lock);
}
