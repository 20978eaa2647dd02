/* SPDX-License-Identifier: Apache-2.0 */
/* A pool of threads that run disk operations for the engine's thread, which never waits for any of them.
 *
 * submit/collect/poll/stop belong to the engine's thread (or whoever plays it).  Operations are started in
 * the order of submission and finish in any order.  A thread that the kernel does not let go blocks nothing
 * but its own operation: the others go on, and when all are stuck more are started, up to DISK_THREADS_MAX.
 */
#ifndef IO_DISK_THREADS_H
#define IO_DISK_THREADS_H

#include "io/io.h"

enum {
    DISK_THREADS_DEFAULT = 4,
    DISK_THREADS_MAX = 16,
};

struct disk_threads;

/* `done_fd`: an eventfd, readable when disk_threads_collect() has something.  `busy_poll_ns`: how long a thread may
 * look for work before it blocks, 0 = not at all.  NULL: no memory or threads. */
struct disk_threads *disk_threads_start(int done_fd, int threads, uint64_t busy_poll_ns);
/* Take over the operations of `ops` (empty afterwards). */
void disk_threads_submit(struct disk_threads *pool, struct list_head *ops);
/* Append what has finished to `done`. */
void disk_threads_collect(struct disk_threads *pool, struct list_head *done);
/* To be called before every wait: looks after stuck threads and returns the longest time (ns) to wait until
 * the next call, UINT64_MAX if there is no need for one. */
uint64_t disk_threads_poll(struct disk_threads *pool, uint64_t now_ns);
/* A thread is looking for work: what is submitted now need not wake anybody. */
bool disk_threads_are_looking(struct disk_threads *pool);
/* Operations taken over and not collected yet. */
uint64_t disk_threads_in_flight(const struct disk_threads *pool);
/* Threads alive (for tests and statistics). */
int disk_threads_count(struct disk_threads *pool);
/* Drop what has not been started, wait at most `wait_ns` for the rest and free the pool.  False: threads are
 * still stuck in the kernel; the pool, `done_fd` and the operations' memory must be left alone for ever. */
bool disk_threads_stop(struct disk_threads *pool, uint64_t wait_ns);

#endif
