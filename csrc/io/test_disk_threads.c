/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the disk threads: everything comes back once, and a stuck operation holds up nothing but itself.
 *
 * A stuck disk is a FIFO that nobody writes to: pread(), replaced below, falls back to read(), which blocks
 * in the kernel. REPL_BENCH=1 prints what a hand-over costs.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "io/disk_threads.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/prng.h"

enum { BLOCK = 4096, PATIENCE_MS = 20000 };

ssize_t pread(int fd, void *buffer, size_t length, off_t offset)
{
    long got = syscall(SYS_pread64, fd, buffer, length, offset);
    if (got < 0 && errno == ESPIPE)
        got = syscall(SYS_read, fd, buffer, length);
    return got;
}

/* While `on`, fdatasync() waits for what it is told, and for the moment; like a disk that reports a loss once. */
struct sync_script {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool on;
    int began, ended; /* calls */
    int fd[4];        /* of each, in the order of their beginnings */
    bool may_end[4];
    int error[4];
};

static struct sync_script script = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

int fdatasync(int fd)
{
    pthread_mutex_lock(&script.lock);
    if (!script.on) {
        pthread_mutex_unlock(&script.lock);
        return (int)syscall(SYS_fdatasync, fd);
    }
    CHECK(script.began < 4);
    int call = script.began++;
    script.fd[call] = fd;
    pthread_cond_broadcast(&script.changed);
    while (!script.may_end[call])
        pthread_cond_wait(&script.changed, &script.lock);
    script.ended++;
    int error = script.error[call];
    pthread_cond_broadcast(&script.changed);
    pthread_mutex_unlock(&script.lock);
    errno = error;
    return error ? -1 : 0;
}

static void script_begin(void)
{
    script.on = true;
    script.began = script.ended = 0;
    for (int i = 0; i < 4; i++)
        script.may_end[i] = false;
}

static void script_wait_began(int count)
{
    pthread_mutex_lock(&script.lock);
    while (script.began < count)
        pthread_cond_wait(&script.changed, &script.lock);
    pthread_mutex_unlock(&script.lock);
}

static void script_end_call(int call, int error)
{
    pthread_mutex_lock(&script.lock);
    int count = script.ended + 1;
    script.error[call] = error;
    script.may_end[call] = true;
    pthread_cond_broadcast(&script.changed);
    while (script.ended < count)
        pthread_cond_wait(&script.changed, &script.lock);
    pthread_mutex_unlock(&script.lock);
}

static uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static uint64_t busy_poll_ns; /* of every pool */

struct rig {
    struct disk_threads *pool;
    int done_fd;
    uint64_t count; /* operations that came back */
};

static void rig_start(struct rig *rig, int threads)
{
    rig->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rig->pool = disk_threads_start(rig->done_fd, threads, busy_poll_ns);
    rig->count = 0;
    CHECK(rig->done_fd >= 0 && rig->pool);
}

static void rig_end(struct rig *rig)
{
    CHECK(disk_threads_stop(rig->pool, UINT64_MAX));
    close(rig->done_fd);
}

/* One turn as the loop does it: false when nothing came within `limit_ms`. */
static bool rig_turn(struct rig *rig, int limit_ms)
{
    struct list_head done;
    uint64_t told;
    uint64_t look_ns = disk_threads_poll(rig->pool, clock_ns());
    struct pollfd wait = {.fd = rig->done_fd, .events = POLLIN};
    int wait_ms =
        look_ns == UINT64_MAX || look_ns / 1000000 > (uint64_t)limit_ms ? limit_ms : (int)(look_ns / 1000000);
    if (poll(&wait, 1, wait_ms) == 0)
        return false;
    CHECK(read(rig->done_fd, &told, sizeof(told)) == (ssize_t)sizeof(told));
    list_init(&done);
    disk_threads_collect(rig->pool, &done);
    while (list_pop(&done))
        rig->count++;
    return true;
}

static void rig_wait_count(struct rig *rig, uint64_t count)
{
    uint64_t end_ns = clock_ns() + PATIENCE_MS * 1000000ull;
    while (rig->count < count) {
        rig_turn(rig, 1000);
        CHECK(clock_ns() < end_ns);
    }
    CHECK(rig->count == count);
}

static void submit_one(struct rig *rig, struct disk_op *op)
{
    struct list_head ops;
    list_init(&ops);
    list_add_tail(&ops, &op->link);
    disk_threads_submit(rig->pool, &ops);
    CHECK(list_empty(&ops));
}

static int open_temporary(uint64_t bytes)
{
    int fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    return fd;
}

struct stuck {
    int fds[2];
    struct disk_op ops[DISK_THREADS_MAX + 4];
    uint8_t bytes[DISK_THREADS_MAX + 4];
    int count;
};

static void stuck_submit(struct rig *rig, struct stuck *stuck, int count)
{
    CHECK(pipe2(stuck->fds, O_CLOEXEC) == 0);
    stuck->count = count;
    for (int i = 0; i < count; i++) {
        stuck->ops[i] = (struct disk_op){
            .kind = DISK_READ, .fd = stuck->fds[0], .data = &stuck->bytes[i], .length = 1, .error = -1};
        submit_one(rig, &stuck->ops[i]);
    }
}

static void stuck_release(struct stuck *stuck)
{
    for (int i = 0; i < stuck->count; i++)
        CHECK(write(stuck->fds[1], "x", 1) == 1);
}

static void stuck_end(struct stuck *stuck)
{
    for (int i = 0; i < stuck->count; i++)
        CHECK(stuck->ops[i].error == 0 && stuck->bytes[i] == 'x');
    close(stuck->fds[0]);
    close(stuck->fds[1]);
}

static void test_disk_threads_every_operation_comes_back_once_with_its_data(void)
{
    enum { BLOCKS = 512, ROUNDS = 40 };
    static uint8_t data[BLOCKS][BLOCK];
    static struct disk_op ops[BLOCKS];
    struct rig rig;
    struct prng prng;
    int fd = open_temporary(BLOCKS * BLOCK);

    rig_start(&rig, 4);
    prng_init(&prng, 1);
    for (int round = 0; round < ROUNDS; round++) {
        struct list_head batch;
        bool writing = round % 2 == 0;
        list_init(&batch);
        for (int i = 0; i < BLOCKS; i++) {
            memset(data[i], writing ? round + i : 0, BLOCK);
            ops[i] = (struct disk_op){.kind = writing ? DISK_WRITE : DISK_READ,
                                      .fd = fd,
                                      .data = data[i],
                                      .offset = (uint64_t)i * BLOCK,
                                      .length = BLOCK,
                                      .error = -1,
                                      .flags = writing && prng_below(&prng, 50) == 0 ? DISK_FUA : 0};
            list_add_tail(&batch, &ops[i].link);
            if (prng_below(&prng, 8) == 0)
                disk_threads_submit(rig.pool, &batch);
        }
        disk_threads_submit(rig.pool, &batch);
        rig_wait_count(&rig, (uint64_t)(round + 1) * BLOCKS);
        CHECK(disk_threads_in_flight(rig.pool) == 0);
        for (int i = 0; i < BLOCKS; i++) {
            CHECK(ops[i].error == 0);
            if (!writing)
                CHECK(data[i][0] == (uint8_t)(round - 1 + i) &&
                      data[i][BLOCK - 1] == (uint8_t)(round - 1 + i));
        }
    }
    rig_end(&rig);
    close(fd);
}

static void test_disk_threads_one_stuck_operation_does_not_delay_others(void)
{
    struct rig rig;
    struct stuck stuck = {.count = 0};
    uint8_t block[BLOCK] = {0};
    int fd = open_temporary(BLOCK);

    rig_start(&rig, 4);
    stuck_submit(&rig, &stuck, 1);
    for (uint64_t i = 0; i < 1000; i++) {
        struct disk_op op = {.kind = DISK_WRITE, .fd = fd, .data = block, .length = BLOCK};
        submit_one(&rig, &op);
        rig_wait_count(&rig, i + 1);
    }
    CHECK(disk_threads_count(rig.pool) == 4);
    stuck_release(&stuck);
    rig_wait_count(&rig, 1001);
    stuck_end(&stuck);
    rig_end(&rig);
    close(fd);
}

static void test_disk_threads_completions_held_back_by_a_stuck_thread_are_told(void)
{
    enum { COUNT = 3 };
    struct rig rig;
    struct stuck stuck = {.count = 1};
    struct disk_op ops[COUNT];
    uint8_t block[BLOCK] = {0};
    int fd = open_temporary(COUNT * BLOCK);

    rig_start(&rig, 1);
    CHECK(pipe2(stuck.fds, O_CLOEXEC) == 0);
    /* Make the pool believe that operations are fast. */
    for (uint64_t i = 0; i < 100; i++) {
        struct disk_op op = {.kind = DISK_FLUSH, .flags = DISK_NO_SYNC, .fd = fd};
        submit_one(&rig, &op);
        rig_wait_count(&rig, i + 1);
    }
    struct list_head batch;
    list_init(&batch);
    for (int i = 0; i < COUNT - 1; i++) {
        ops[i] = (struct disk_op){.kind = DISK_WRITE, .fd = fd, .data = block, .length = BLOCK};
        list_add_tail(&batch, &ops[i].link);
    }
    stuck.ops[0] = (struct disk_op){.kind = DISK_READ, .fd = stuck.fds[0], .data = stuck.bytes, .length = 1};
    list_add_tail(&batch, &stuck.ops[0].link);
    ops[COUNT - 1] = (struct disk_op){.kind = DISK_WRITE, .fd = fd, .data = block, .length = BLOCK};
    list_add_tail(&batch, &ops[COUNT - 1].link);
    disk_threads_submit(rig.pool, &batch);
    /* The one behind the stuck one needs a thread that is started for it. */
    rig_wait_count(&rig, 100 + COUNT);
    CHECK(disk_threads_count(rig.pool) == 2);
    stuck_release(&stuck);
    rig_wait_count(&rig, 100 + COUNT + 1);
    stuck_end(&stuck);
    rig_end(&rig);
    close(fd);
}

static void test_disk_threads_when_all_are_stuck_more_are_started_and_end_later(void)
{
    struct rig rig;
    struct stuck stuck = {.count = 0};
    struct disk_op op = {.kind = DISK_FLUSH, .fd = open_temporary(BLOCK)};

    rig_start(&rig, 4);
    stuck_submit(&rig, &stuck, 6);
    submit_one(&rig, &op);
    rig_wait_count(&rig, 1);
    CHECK(op.error == 0 && disk_threads_count(rig.pool) == 7);
    stuck_release(&stuck);
    rig_wait_count(&rig, 7);
    uint64_t end_ns = clock_ns() + PATIENCE_MS * 1000000ull;
    while (disk_threads_count(rig.pool) != 4)
        CHECK(clock_ns() < end_ns);
    /* The places are free again. */
    stuck_end(&stuck);
    stuck_submit(&rig, &stuck, 6);
    submit_one(&rig, &op);
    rig_wait_count(&rig, 8);
    stuck_release(&stuck);
    rig_wait_count(&rig, 14);
    stuck_end(&stuck);
    close(op.fd);
    rig_end(&rig);
}

static void test_disk_threads_never_exceed_their_limit(void)
{
    struct rig rig;
    struct stuck stuck = {.count = 0}, other = {.count = 0};
    struct disk_op op = {.kind = DISK_FLUSH, .flags = DISK_NO_SYNC};

    rig_start(&rig, DISK_THREADS_MAX - 1);
    stuck_submit(&rig, &stuck, DISK_THREADS_MAX / 2 + 1);
    stuck_submit(&rig, &other, DISK_THREADS_MAX / 2);
    submit_one(&rig, &op);
    uint64_t end_ns = clock_ns() + 500 * 1000000ull;
    while (clock_ns() < end_ns)
        CHECK(!rig_turn(&rig, 100));
    CHECK(disk_threads_count(rig.pool) == DISK_THREADS_MAX);
    stuck_release(&stuck);
    stuck_release(&other);
    rig_wait_count(&rig, DISK_THREADS_MAX + 2);
    stuck_end(&stuck);
    stuck_end(&other);
    rig_end(&rig);
}

static void test_disk_threads_a_disk_that_hangs_with_many_operations_leaves_threads_for_others(void)
{
    struct rig rig;
    struct stuck stuck = {.count = 0};
    struct disk_op op = {.kind = DISK_FLUSH, .flags = DISK_NO_SYNC};

    rig_start(&rig, 2);
    stuck_submit(&rig, &stuck, DISK_THREADS_MAX);
    submit_one(&rig, &op);
    rig_wait_count(&rig, 1);
    CHECK(disk_threads_count(rig.pool) <= DISK_THREADS_MAX / 2 + 2);
    stuck_release(&stuck);
    rig_wait_count(&rig, DISK_THREADS_MAX + 1);
    stuck_end(&stuck);
    rig_end(&rig);
}

static void test_disk_threads_stop_gives_up_on_a_stuck_thread(void)
{
    static struct rig rig; /* reachable: the pool is left behind on purpose */
    static struct stuck stuck;
    uint64_t begin_ns = clock_ns();

    rig_start(&rig, 2);
    stuck_submit(&rig, &stuck, 1);
    while (disk_threads_poll(rig.pool, clock_ns()) != UINT64_MAX)
        CHECK(clock_ns() < begin_ns + PATIENCE_MS * 1000000ull);
    CHECK(!disk_threads_stop(rig.pool, 20 * 1000000ull));
    stuck_release(&stuck);
    CHECK(disk_threads_stop(rig.pool, UINT64_MAX));
    close(rig.done_fd);
    stuck_end(&stuck);
}

static void test_disk_threads_stop_drops_what_was_not_started(void)
{
    enum { COUNT = 1000 };
    static struct disk_op ops[COUNT];
    struct rig rig;
    struct list_head batch;

    rig_start(&rig, 1);
    list_init(&batch);
    for (int i = 0; i < COUNT; i++) {
        ops[i] = (struct disk_op){.kind = DISK_FLUSH, .flags = DISK_NO_SYNC};
        list_add_tail(&batch, &ops[i].link);
    }
    disk_threads_submit(rig.pool, &batch);
    rig_end(&rig);
}

/* ---- a disk reports a loss once ---- */

/* A pool with two flushes under way, or what does a flush as well, of one disk or two. */
static void two_flushes(struct rig *rig, struct disk_op ops[2], const int fds[2])
{
    static uint8_t block[BLOCK];
    memset(block, 0xee, BLOCK);
    rig_start(rig, 2);
    script_begin();
    for (int i = 0; i < 2; i++) {
        ops[i] = (struct disk_op){.kind = DISK_FLUSH, .fd = fds[i], .error = -1};
        if (i == 1)     /* the same for a write */
            ops[i] = (struct disk_op){
                .kind = DISK_WRITE, .flags = DISK_PREFLUSH, .fd = fds[i], .data = block, .length = BLOCK, .error = -1};
        submit_one(rig, &ops[i]);
        script_wait_began(i + 1);
        CHECK(script.fd[i] == fds[i]);
    }
}

/* The thread that has nothing to wait for has put away what it had, and done something else since. */
static void let_the_other_thread_go_on(struct rig *rig, uint64_t count)
{
    struct disk_op op = {.kind = DISK_FLUSH, .flags = DISK_NO_SYNC, .fd = -1};
    submit_one(rig, &op);
    rig_wait_count(rig, count);
}

static void expect_byte(int fd, uint8_t value)
{
    uint8_t byte;
    CHECK(pread(fd, &byte, 1, 0) == 1 && byte == value);
}

static void two_flushes_end(struct rig *rig, int fd)
{
    script.on = false;
    rig_end(rig);
    close(fd);
}

/* Whichever of the two took the report: neither says that all is well, and what was to follow is not done. */
static void test_disk_threads_two_flushes_that_overlap_share_their_error(void)
{
    for (int failing = 0; failing < 2; failing++) {
        for (int first = 0; first < 2; first++) {
            int fd = open_temporary(BLOCK);
            struct disk_op ops[2];
            struct rig rig;
            two_flushes(&rig, ops, (int[2]){fd, fd});
            script_end_call(first, first == failing ? EIO : 0);
            /* One without an error is not told before the other one is over. */
            let_the_other_thread_go_on(&rig, first == failing ? 2 : 1);
            script_end_call(1 - first, first == failing ? 0 : EIO);
            rig_wait_count(&rig, 3);
            CHECK(ops[0].error == EIO && ops[1].error == EIO && ops[0].lost && ops[1].lost);
            expect_byte(fd, 0);
            two_flushes_end(&rig, fd);
        }
    }
}

static void test_disk_threads_two_flushes_without_errors_are_told(void)
{
    int fd = open_temporary(BLOCK);
    struct disk_op ops[2];
    struct rig rig;
    two_flushes(&rig, ops, (int[2]){fd, fd});
    script_end_call(1, 0);
    script_end_call(0, 0);
    rig_wait_count(&rig, 2);
    CHECK(ops[0].error == 0 && ops[1].error == 0);
    expect_byte(fd, 0xee);
    two_flushes_end(&rig, fd);
}

/* They come before the engine knows of the loss: a disk that was asked again would say that all is well. */
static void test_disk_threads_flushes_behind_one_that_failed_fail_as_well(void)
{
    enum { BEHIND = 3 };
    int fd = open_temporary(BLOCK);
    uint8_t block[BLOCK] = {0};
    struct disk_op ops[1 + BEHIND];
    struct rig rig;
    rig_start(&rig, 1);
    script_begin();
    for (int i = 0; i <= BEHIND; i++) {
        ops[i] = (struct disk_op){.kind = DISK_FLUSH, .fd = fd, .error = -1};
        if (i == 2)
            ops[i] = (struct disk_op){
                .kind = DISK_WRITE, .flags = DISK_FUA, .fd = fd, .data = block, .length = BLOCK, .error = -1};
        if (i == 3)
            script_end_call(0, EIO);    /* it may be in the queue by then, or not */
        submit_one(&rig, &ops[i]);
        script_wait_began(1);
    }
    rig_wait_count(&rig, 1 + BEHIND);
    for (int i = 0; i <= BEHIND; i++)
        CHECK(ops[i].error == EIO && ops[i].lost);
    CHECK(script.began == 1);
    /* The engine knows now; what it still asks for is answered. */
    struct disk_op later = {.kind = DISK_FLUSH, .fd = fd, .error = -1};
    submit_one(&rig, &later);
    script_wait_began(2);
    script_end_call(1, 0);
    rig_wait_count(&rig, 2 + BEHIND);
    CHECK(later.error == 0);
    two_flushes_end(&rig, fd);
}

static void test_disk_threads_flushes_of_two_disks_do_not_share_errors(void)
{
    int fds[2] = {open_temporary(BLOCK), open_temporary(BLOCK)};
    struct disk_op ops[2];
    struct rig rig;
    two_flushes(&rig, ops, fds);
    script_end_call(1, 0);
    rig_wait_count(&rig, 1);
    script_end_call(0, EIO);
    rig_wait_count(&rig, 2);
    CHECK(ops[0].error == EIO && ops[1].error == 0);
    close(fds[1]);
    two_flushes_end(&rig, fds[0]);
}

/* One that begins when another one has ended without an error need not wait for anybody, nor the other way round. */
static void test_disk_threads_flush_waits_only_for_those_that_were_there_before_its_end(void)
{
    int fd = open_temporary(BLOCK);
    struct disk_op ops[2], late = {.kind = DISK_FLUSH, .fd = fd, .error = -1};
    struct rig rig;
    two_flushes(&rig, ops, (int[2]){fd, fd});
    script_end_call(0, 0);
    submit_one(&rig, &late);
    script_wait_began(3);
    script_end_call(1, 0);
    rig_wait_count(&rig, 1);
    CHECK(ops[0].error == 0);
    script_end_call(2, 0);
    rig_wait_count(&rig, 3);
    CHECK(ops[1].error == 0 && late.error == 0);
    two_flushes_end(&rig, fd);
}

/* One operation at a time (`batch` = 1), or batches: microseconds an operation, from submit to collected. */
static void bench_round_trip(const char *what, enum disk_op_kind kind, uint32_t flags, int batch)
{
    enum { TOTAL = 100000, BATCH_MAX = 128 };
    static struct disk_op ops[BATCH_MAX];
    static uint8_t data[BATCH_MAX][BLOCK];
    struct rig rig;
    struct timespec cpu;
    int fd = open_temporary(BATCH_MAX * 2 * BLOCK);

    rig_start(&rig, DISK_THREADS_DEFAULT);
    uint64_t turns = 0;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    uint64_t cpu_begin_ns = (uint64_t)cpu.tv_sec * 1000000000ull + (uint64_t)cpu.tv_nsec;
    uint64_t begin_ns = clock_ns();
    for (uint64_t done = 0; done < TOTAL; done += (uint64_t)batch) {
        struct list_head list;
        list_init(&list);
        for (int i = 0; i < batch; i++) {
            ops[i] = (struct disk_op){.kind = (uint8_t)kind,
                                      .flags = flags,
                                      .fd = fd,
                                      .data = data[i],
                                      .offset = (uint64_t)i * 2 * BLOCK,
                                      .length = BLOCK};
            list_add_tail(&list, &ops[i].link);
        }
        disk_threads_submit(rig.pool, &list);
        while (rig.count < done + (uint64_t)batch) {
            rig_turn(&rig, 1000);
            turns++;
        }
    }
    uint64_t took_ns = clock_ns() - begin_ns;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    uint64_t cpu_ns = (uint64_t)cpu.tv_sec * 1000000000ull + (uint64_t)cpu.tv_nsec - cpu_begin_ns;
    printf("%-14s batch %3d: %7.2f us/op wall, %6.2f us/op CPU, %6.2f us/batch, %.2f wakes/batch\n", what,
           batch, (double)took_ns / TOTAL / 1000, (double)cpu_ns / TOTAL / 1000,
           (double)took_ns / TOTAL / 1000 * batch, (double)turns / TOTAL * batch);
    rig_end(&rig);
    close(fd);
}

static void run_all(void)
{
    test_disk_threads_every_operation_comes_back_once_with_its_data();
    test_disk_threads_one_stuck_operation_does_not_delay_others();
    test_disk_threads_completions_held_back_by_a_stuck_thread_are_told();
    test_disk_threads_when_all_are_stuck_more_are_started_and_end_later();
    test_disk_threads_never_exceed_their_limit();
    test_disk_threads_a_disk_that_hangs_with_many_operations_leaves_threads_for_others();
    test_disk_threads_stop_gives_up_on_a_stuck_thread();
    test_disk_threads_stop_drops_what_was_not_started();
    test_disk_threads_two_flushes_that_overlap_share_their_error();
    test_disk_threads_two_flushes_without_errors_are_told();
    test_disk_threads_flushes_behind_one_that_failed_fail_as_well();
    test_disk_threads_flushes_of_two_disks_do_not_share_errors();
    test_disk_threads_flush_waits_only_for_those_that_were_there_before_its_end();
}

int main(void)
{
    if (getenv("REPL_BENCH")) {
        static const int batches[] = {1, 8, 32, 128};
        for (int i = 0; i < 4; i++)
            bench_round_trip("nothing", DISK_FLUSH, DISK_NO_SYNC, batches[i]);
        for (int i = 0; i < 4; i++)
            bench_round_trip("4 KiB write", DISK_WRITE, 0, batches[i]);
        return 0;
    }
    run_all();
    busy_poll_ns = 200000; /* the same of threads that look for work */
    run_all();
    return 0;
}
