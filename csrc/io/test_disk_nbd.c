/* SPDX-License-Identifier: Apache-2.0 */
/* NBD as a disk: several requests under way on one socket, answers in any order, an end of the connection. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/check.h"
#include "io/disk_run.h"

enum { BLOCK = 4096, BLOCKS = 64, THREADS = 8, ROUNDS = 200, HEADER = 28, REPLY = 16 };

struct server {
    int fd;
    int gather;         /* requests that it waits for before it answers any */
    int rounds;         /* how often; then it closes the connection */
    uint8_t disk[BLOCKS * BLOCK];
};

struct asked {
    uint16_t command;
    uint64_t cookie, offset;
    uint32_t length;
};

static bool get(int fd, void *data, size_t bytes)
{
    return recv(fd, data, bytes, MSG_WAITALL) == (ssize_t)bytes;
}

static bool take(struct server *s, struct asked *a)
{
    uint8_t h[HEADER];
    if (!get(s->fd, h, HEADER))
        return false;
    CHECK(be32_get(h) == 0x25609513u);
    *a = (struct asked){be16_get(h + 6), be64_get(h + 8), be64_get(h + 16), be32_get(h + 24)};
    return a->command != 1 || get(s->fd, s->disk + a->offset, a->length);
}

static void answer(struct server *s, const struct asked *a)
{
    uint8_t r[REPLY] = {0};
    be32_put(r, 0x67446698u);
    be32_put(r + 4, a->offset == (BLOCKS - 1) * BLOCK ? 28 : 0);   /* the last block has no space */
    be64_put(r + 8, a->cookie);
    CHECK(send(s->fd, r, REPLY, MSG_NOSIGNAL) == REPLY);
    if (a->command == 0 && be32_get(r + 4) == 0)
        CHECK(send(s->fd, s->disk + a->offset, a->length, MSG_NOSIGNAL) == (ssize_t)a->length);
}

/* Answers the newest request first. */
static void *serve(void *opaque)
{
    struct server *s = opaque;
    struct asked asked[THREADS];
    for (int round = 0; round < s->rounds; round++) {
        for (int i = 0; i < s->gather; i++)
            if (!take(s, &asked[i]))
                goto end;
        for (int i = s->gather; i-- > 0;)
            answer(s, &asked[i]);
    }
end:
    shutdown(s->fd, SHUT_RDWR);
    return NULL;
}

struct worker {
    int fd, number, rounds;
    int failed;
};

static int one(int fd, uint8_t kind, uint64_t block, uint8_t *data)
{
    struct disk_op op = {.kind = kind, .flags = DISK_NBD, .fd = fd, .offset = block * BLOCK, .length = BLOCK,
                         .data = data};
    disk_run(&op);
    return op.error;
}

static void *work(void *opaque)
{
    struct worker *w = opaque;
    uint8_t out[BLOCK], in[BLOCK];
    for (int round = 0; round < w->rounds; round++) {
        uint64_t block = (uint64_t)(w->number * 4 + round % 4);
        memset(out, w->number * 31 + round, BLOCK);
        int error = one(w->fd, DISK_WRITE, block, out);
        error = error ? error : one(w->fd, DISK_READ, block, in);
        CHECK(error == 0 || error == EIO);
        if (error) {
            w->failed++;
            continue;
        }
        CHECK(memcmp(in, out, BLOCK) == 0);
    }
    return NULL;
}

static int run_threads(int gather, int server_rounds, int rounds)
{
    static struct server server;
    struct worker workers[THREADS];
    pthread_t threads[THREADS], server_thread;
    int fds[2], failed = 0;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    server = (struct server){.fd = fds[1], .gather = gather, .rounds = server_rounds};
    CHECK(pthread_create(&server_thread, NULL, serve, &server) == 0);
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.fd = fds[0], .number = i, .rounds = rounds};
        CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        failed += workers[i].failed;
    }
    shutdown(fds[0], SHUT_RDWR);
    pthread_join(server_thread, NULL);
    close(fds[0]);
    close(fds[1]);
    return failed;
}

static void test_nbd_disk_has_as_many_requests_under_way_as_threads(void)
{
    CHECK(run_threads(THREADS, 2 * ROUNDS, ROUNDS) == 0);
}

static void test_nbd_disk_that_goes_away_fails_every_operation(void)
{
    int failed = run_threads(1, 100, ROUNDS);
    CHECK(failed >= THREADS * ROUNDS - 100 && failed < THREADS * ROUNDS);
}

static void test_nbd_disk_errors_belong_to_their_request(void)
{
    static struct server server;
    uint8_t data[BLOCK] = {1};
    pthread_t thread;
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    server = (struct server){.fd = fds[1], .gather = 1, .rounds = 1000};
    CHECK(pthread_create(&thread, NULL, serve, &server) == 0);
    CHECK(one(fds[0], DISK_WRITE, BLOCKS - 1, data) == ENOSPC);
    CHECK(one(fds[0], DISK_WRITE, 0, data) == 0);
    struct disk_op fast = {.kind = DISK_ZERO, .flags = DISK_NBD | DISK_FAST, .fd = fds[0], .length = BLOCK};
    disk_run(&fast);
    CHECK(fast.error == ENOTSUP);
    shutdown(fds[0], SHUT_RDWR);
    CHECK(one(fds[0], DISK_READ, 0, data) == EIO);
    pthread_join(thread, NULL);
    close(fds[0]);
    close(fds[1]);
}

int main(void)
{
    test_nbd_disk_has_as_many_requests_under_way_as_threads();
    test_nbd_disk_that_goes_away_fails_every_operation();
    test_nbd_disk_errors_belong_to_their_request();
    return 0;
}
