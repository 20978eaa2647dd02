/* SPDX-License-Identifier: Apache-2.0 */
/* A disk that is another resource's device: operations as NBD requests on a connected socket.
 *
 * Each thread of the pool sends its request and waits; several are under way on one socket, found by their cookies.
 * Whoever waits and finds nobody reading reads the next answer, for whomever it is.
 *
 * Invariants: `lock` guards everything but the bytes on the socket; while a request is not answered somebody reads or
 * is about to, so the server is never kept from sending; an answer's payload goes into a buffer whose owner waits
 * (`busy`); after anything that does not fit the connection is shut down, and this and every later operation fails.
 * A flush is sent when the writes before it are answered: the engine submits it then.
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
#include "base/check.h"

enum {
    CONNECTIONS_MAX = 64,   /* with operations in flight; more than there are threads */
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

/* A request under way; on its thread's stack. */
struct pending {
    struct pending *next;
    uint64_t cookie;
    uint8_t *data;      /* READ: where the payload goes */
    size_t bytes;
    bool busy;          /* its payload is being received */
    bool done;
    int error;
};

/* A socket with requests under way. */
struct connection {
    int fd;
    unsigned users;             /* 0: the place is free */
    bool broken;
    bool reading;               /* somebody reads the next answer */
    uint64_t cookie;            /* the last one */
    struct pending *pending;
    pthread_mutex_t sending;    /* whole requests, one after the other */
    pthread_cond_t changed;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct connection connections[CONNECTIONS_MAX] = {
    [0 ... CONNECTIONS_MAX - 1] = {.sending = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER}};

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

/* Lock held. */
static struct connection *connection_take(int fd)
{
    struct connection *unused = NULL;
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        struct connection *c = &connections[i];
        if (c->users && c->fd == fd) {
            c->users++;
            return c;
        }
        if (!c->users)
            unused = c;
    }
    CHECK(unused);
    unused->fd = fd;
    unused->users = 1;
    unused->broken = unused->reading = false;
    return unused;
}

/* Lock held. */
static void break_connection(struct connection *c)
{
    c->broken = true;
    shutdown(c->fd, SHUT_RDWR);
    pthread_cond_broadcast(&c->changed);
}

static int error_of(uint32_t error)
{
    return error == 0 ? 0 : error == 28 /* NBD_ENOSPC */ ? ENOSPC : error == 95 /* NBD_ENOTSUP */ ? ENOTSUP : EIO;
}

/* Lock held; given up meanwhile.  False: the answer makes no sense, or there is none. */
static bool read_answer(struct connection *c)
{
    uint8_t reply[REPLY_BYTES];
    pthread_mutex_unlock(&lock);
    bool ok = receive_all(c->fd, reply, REPLY_BYTES) && be32_get(reply) == REPLY_MAGIC;
    pthread_mutex_lock(&lock);
    if (!ok)
        return false;
    struct pending *p = c->pending;
    while (p && p->cookie != be64_get(reply + 8))
        p = p->next;
    if (!p || p->done)
        return false;
    p->error = error_of(be32_get(reply + 4));
    if (!p->error && p->data) {
        p->busy = true;
        pthread_mutex_unlock(&lock);
        ok = receive_all(c->fd, p->data, p->bytes);
        pthread_mutex_lock(&lock);
        p->busy = false;
    }
    p->done = ok;
    return ok;
}

/* Lock held.  0 or an errno. */
static int wait_for_answer(struct connection *c, struct pending *p)
{
    while (!p->done && (p->busy || !c->broken)) {
        if (c->reading || c->broken) {
            pthread_cond_wait(&c->changed, &lock);
            continue;
        }
        c->reading = true;
        bool ok = read_answer(c);
        c->reading = false;
        if (!ok)
            break_connection(c);
        pthread_cond_broadcast(&c->changed);
    }
    return p->done ? p->error : EIO;
}

/* 0 or an errno. */
static int request(const struct disk_op *op, uint16_t command, uint16_t flags, uint64_t offset, uint32_t length)
{
    struct pending pending = {.data = command == CMD_READ ? op->data : NULL, .bytes = length};
    uint8_t header[REQUEST_BYTES];
    pthread_mutex_lock(&lock);
    struct connection *c = connection_take(op->fd);
    pending.cookie = ++c->cookie;
    pending.next = c->pending;
    c->pending = &pending;
    pthread_mutex_unlock(&lock);

    be32_put(header, REQUEST_MAGIC);
    be16_put(header + 4, flags);
    be16_put(header + 6, command);
    be64_put(header + 8, pending.cookie);
    be64_put(header + 16, offset);
    be32_put(header + 24, length);
    pthread_mutex_lock(&c->sending);
    bool sent = send_all(op->fd, header, op->data, command == CMD_WRITE ? length : 0);
    pthread_mutex_unlock(&c->sending);

    pthread_mutex_lock(&lock);
    if (!sent)
        break_connection(c);
    int error = wait_for_answer(c, &pending);
    struct pending **at = &c->pending;
    while (*at != &pending)
        at = &(*at)->next;
    *at = pending.next;
    c->users--;
    pthread_mutex_unlock(&lock);
    return error;
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
        op->extents_count = 0;  /* no hole is looked for */
        return request(op, CMD_READ, 0, op->offset, length);
    case DISK_WRITE:
        return request(op, CMD_WRITE, fua, op->offset, length);
    case DISK_FLUSH:
        return sync ? request(op, CMD_FLUSH, 0, 0, 0) : 0;
    case DISK_ZERO:
        if (op->flags & DISK_FAST)
            return ENOTSUP;
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
    op->error = run(op);
    /* Which part of it has failed the server does not say, but for a lack of room. */
    op->lost = op->error && op->error != ENOSPC && op->error != ENOTSUP && DISK_OP_SYNCS(op);
}
