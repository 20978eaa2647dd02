/* SPDX-License-Identifier: Apache-2.0 */
/* Disk threads: one queue in, one list of finished operations out.
 *
 * Wake-ups cost more than page-cache writes, so both directions save them.  In: a batch wakes one thread, or none if
 * one looks for work before it blocks (io/busy_poll.h); that one wakes another before it starts an operation while
 * more wait, unless operations have been fast lately (one thread is quicker then than four that get in each other's
 * way) and this one is no flush.  Out: a fast operation does not tell the engine at once while more wait in the queue;
 * HOLD_BACK_MAX are told together.
 * Both are safe because the engine looks again (disk_threads_poll) within POLL_NS while anything waits in the queue.
 *
 * Linux tells a descriptor once that writes are lost: the first of several flushes (and what else makes something
 * stable) that run at the same time gets the error, the others end well.  So one that has ended well is not put out
 * before all that were under way then are over, and it shares their error; a write with DISK_PREFLUSH is not even
 * begun.  What waits in the queue, or comes before the engine knows, fails as well.
 *
 * Invariants: everything in struct disk_threads is under `lock` but for what its comment says; a finished
 * operation is on `done` before the engine is told, or on `unsure` while one of the slots in its `waits_for` runs a
 * flush; while the queue is empty nothing is held back; `lost` of a waiting operation: it will fail.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "io/disk_threads.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "io/busy_poll.h"
#include "io/disk_run.h"
#include "io/thread.h"

enum {
    HOLD_BACK_MAX = 16,        /* finished operations that the engine need not know of yet */
    MERGE_BYTES_MAX = 1 << 20, /* of one vectored write */
    PER_DISK_MAX = DISK_THREADS_MAX / 2, /* threads that one disk may hold: if it hangs, others go on */
    DISK_COUNTS = 64,
};

#define FAST_NS 20000ull      /* operations below this are page-cache work: waking a thread costs as much */
#define POLL_NS 1000000ull    /* how often the engine looks while operations wait in the queue */
#define STUCK_NS 100000000ull /* no operation started for so long: all threads count as stuck */

enum slot_state { SLOT_FREE, SLOT_RUNNING, SLOT_ENDED };

struct slot {
    pthread_t thread;      /* valid unless free */
    enum slot_state state; /* ENDED: about to return, to be joined */
    bool syncs;            /* runs something that makes writes to `fd` stable */
    bool spoilt;           /* since its begin another one has got the error of writes that may be its own */
    int fd;
};

_Static_assert(DISK_THREADS_MAX <= 16, "a bit of disk_op.waits_for each");

struct disk_threads {
    pthread_mutex_t lock;
    pthread_cond_t work;    /* idle threads wait here */
    pthread_cond_t ended;   /* disk_threads_stop waits here */
    struct list_head queue; /* not started, oldest first */
    struct list_head done;  /* finished, not collected */
    struct list_head unsure; /* ended well, waiting for others */
    bool any_lost;          /* among `done` */
    int held_back;          /* operations on `done` that were not told */
    bool told;              /* done_fd was written since the last collect */
    bool stopping;          /* threads end when they next look */
    bool looking;           /* a thread looks for work: nobody need be woken */
    struct busy_poll poll;  /* without the lock, of the thread that looks */
    uint64_t quiet_since_ns; /* when a thread last found nothing to do */
    int idle;               /* threads waiting for work */
    int wakes;              /* of these, signalled and not awake yet */
    int running;            /* threads alive */
    uint64_t average_ns;    /* of recent operations, exponentially weighted */
    uint64_t started;       /* operations ever started */
    uint8_t threads_of[DISK_COUNTS]; /* threads at work, by descriptor (modulo) */
    bool fresh;             /* something was put into the empty queue since poll looked last */
    struct slot slots[DISK_THREADS_MAX];
    _Atomic uint32_t submitted; /* changes, without the lock, after something was put into the queue */
    int done_fd;           /* constant */
    int threads;           /* constant: threads that stay when there is nothing to do */
    uint64_t in_flight;    /* engine's thread only: taken over and not collected */
    uint64_t seen_started; /* engine's thread only: `started` at the last change seen by poll */
    uint64_t seen_at_ns;   /* engine's thread only: when that was */
};

struct thread_argument {
    struct disk_threads *pool; /* whose thread */
    struct slot *slot;         /* its place */
};

static uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* Lock held. */
static void wake_one(struct disk_threads *pool)
{
    if (pool->idle > pool->wakes) {
        pool->wakes++;
        pthread_cond_signal(&pool->work);
    }
}

static uint8_t *threads_of(struct disk_threads *pool, const struct disk_op *op)
{
    return &pool->threads_of[(unsigned)op->fd % DISK_COUNTS];
}

/* Lock held: the oldest operation of a disk that may have one more thread; NULL: none. */
static struct list_head *next_work(struct disk_threads *pool)
{
    struct list_head *first = list_first(&pool->queue);
    if (first == NULL || *threads_of(pool, list_entry(first, struct disk_op, link)) < PER_DISK_MAX)
        return first;
    list_for_each(link, &pool->queue) if (*threads_of(pool, list_entry(link, struct disk_op, link)) < PER_DISK_MAX)
        return link;
    return NULL;
}

/* Lock held: the next operation, and those behind it that one vectored write can do with it. */
static int take_work(struct disk_threads *pool, struct disk_op **ops)
{
    uint64_t bytes = 0;
    int count = 0;

    for (struct list_head *link; count < DISK_RUN_MERGE_MAX && (link = next_work(pool)) != NULL;) {
        struct disk_op *op = list_entry(link, struct disk_op, link);
        if (count > 0 && (!disk_run_can_merge(ops[count - 1], op) || bytes + op->length > MERGE_BYTES_MAX))
            break;
        list_del(link);
        bytes += op->length;
        ops[count++] = op;
    }
    pool->started += (uint64_t)count;
    if (count > 0)
        (*threads_of(pool, ops[0]))++;
    return count;
}

/* It waits for the disk whatever the page cache holds. */
static bool is_slow(const struct disk_op *op)
{
    if (op->kind == DISK_ZERO)
        return true;
    return DISK_OP_SYNCS(op);
}

/* Lock held: `op` begins in this slot. */
static void sync_begins(struct slot *slot, const struct disk_op *op)
{
    slot->syncs = DISK_OP_SYNCS(op);
    slot->spoilt = false;
    slot->fd = op->fd;
}

/* Lock held: writes to `fd` are lost, and nobody else is told. */
static void mark_lost(struct list_head *ops, int fd)
{
    list_for_each(link, ops) {
        struct disk_op *op = list_entry(link, struct disk_op, link);
        if (op->fd == fd && DISK_OP_SYNCS(op))
            op->lost = true;
    }
}

/* Lock held: an operation that has ended well need not wait for anybody, or shares an error. */
static void be_sure(struct disk_threads *pool, struct disk_op *op, struct list_head *finished)
{
    op->waits_for = 0;
    if (op->lost && !op->error)
        op->error = EIO;
    if (op->error || !(op->flags & DISK_FLUSHED)) {
        list_add_tail(finished, &op->link);
        return;
    }
    op->flags &= ~(uint32_t)DISK_FLUSHED;   /* now the write itself */
    list_add(&pool->queue, &op->link);
}

/* Lock held: what was on this slot is over, as far as it makes something stable. */
static void sync_ended(struct disk_threads *pool, struct slot *slot, struct disk_op *op, struct list_head *finished)
{
    unsigned own = 1u << (slot - pool->slots), others = 0;
    slot->syncs = false;
    list_for_each_safe(link, following, &pool->unsure) {
        struct disk_op *earlier = list_entry(link, struct disk_op, link);
        earlier->lost = earlier->lost || (op->lost && (earlier->waits_for & own));
        earlier->waits_for = (uint16_t)(earlier->waits_for & ~own);
        if (earlier->waits_for && !earlier->lost)
            continue;
        list_del(link);
        be_sure(pool, earlier, finished);
    }
    for (int i = 0; i < DISK_THREADS_MAX; i++) {
        struct slot *other = &pool->slots[i];
        if (!other->syncs || other->fd != op->fd)
            continue;
        others |= 1u << i;
        other->spoilt = other->spoilt || op->lost;
    }
    if (op->lost) {
        mark_lost(&pool->queue, op->fd);
        pool->any_lost = true;
    }
    op->lost = op->lost || slot->spoilt;
    op->waits_for = (uint16_t)others;
    if (others && !op->error && !op->lost)
        list_add_tail(&pool->unsure, &op->link);
    else
        be_sure(pool, op, finished);
}

/* What a write with DISK_PREFLUSH begins with, so that it can wait before it goes on. */
static void run_preflush(struct disk_op *op)
{
    struct disk_op flush = {.kind = DISK_FLUSH, .flags = op->flags & DISK_NBD, .fd = op->fd};
    disk_run(&flush);
    op->error = flush.error;
    op->lost = flush.lost;
    op->flags = (op->flags & ~(uint32_t)DISK_PREFLUSH) | DISK_FLUSHED;
}

static void run(struct disk_op *const *ops, int count)
{
    struct disk_op *first = ops[0];
    if (count > 1)
        disk_run_writes(ops, count);
    else if (first->lost)
        first->error = EIO;
    else if ((first->flags & DISK_PREFLUSH) && DISK_OP_SYNCS(first) && first->kind != DISK_FLUSH)
        run_preflush(first);
    else
        disk_run(first);
}

/* Lock held, given up meanwhile: there is nothing to do, but may be soon.  True: there is, or the end has come. */
static bool look_for_work(struct disk_threads *pool)
{
    const uint32_t seen = atomic_load(&pool->submitted);
    const uint64_t began_ns = pool->quiet_since_ns;
    uint64_t now_ns = began_ns;
    bool offered = true;

    if (pool->looking || !busy_poll_goes_on(&pool->poll, began_ns, now_ns))
        return false;
    pool->looking = true;
    pthread_mutex_unlock(&pool->lock);
    while (atomic_load(&pool->submitted) == seen && offered && busy_poll_goes_on(&pool->poll, began_ns, now_ns)) {
        uint64_t before_ns = clock_ns();
        sched_yield();
        now_ns = clock_ns();
        offered = busy_poll_offered(&pool->poll, before_ns, now_ns);
    }
    pthread_mutex_lock(&pool->lock);
    pool->looking = false;
    return next_work(pool) != NULL || pool->stopping;
}

/* Lock held: one that was started because others were stuck, and they are back. */
static bool is_surplus(const struct disk_threads *pool)
{
    return pool->running > pool->threads && pool->idle >= pool->threads;
}

/* Lock held, given up meanwhile.  Comes back with nothing if the others became enough while this one looked. */
static void wait_for_work(struct disk_threads *pool)
{
    pool->quiet_since_ns = clock_ns();
    if (look_for_work(pool) || is_surplus(pool))
        return;
    pool->idle++;
    pthread_cond_wait(&pool->work, &pool->lock);
    pool->idle--;
    if (pool->wakes > 0)
        pool->wakes--;
    if (!pool->looking && next_work(pool) != NULL)
        busy_poll_blocked(&pool->poll, clock_ns() - pool->quiet_since_ns);
}

/* Lock held: put finished operations out; true when the engine must be told. */
static bool put_done(struct disk_threads *pool, struct slot *slot, struct disk_op *const *ops, int count,
                     uint64_t took_ns)
{
    uint64_t each_ns = took_ns / (uint64_t)count;
    pool->average_ns = (pool->average_ns * 7 + each_ns) / 8;
    if (slot->syncs) {
        struct list_head finished;
        list_init(&finished);
        sync_ended(pool, slot, ops[0], &finished);
        list_for_each(link, &finished) pool->held_back++;
        list_splice_tail(&pool->done, &finished);
    } else {
        for (int i = 0; i < count; i++)
            list_add_tail(&pool->done, &ops[i]->link);
        pool->held_back += count;
    }
    if (pool->told || pool->stopping || pool->held_back == 0)
        return false;
    if (!list_empty(&pool->queue) && pool->held_back < HOLD_BACK_MAX && took_ns < FAST_NS)
        return false;
    pool->told = true;
    return true;
}

static void tell_engine(int done_fd)
{
    const uint64_t one = 1;
    /* Cannot fail: the counter would have to reach 2^64 - 1. */
    CHECK(write(done_fd, &one, sizeof(one)) == (ssize_t)sizeof(one));
}

static void *thread_run(void *opaque)
{
    struct thread_argument *argument = opaque;
    struct disk_threads *pool = argument->pool;
    struct slot *slot = argument->slot;
    struct disk_op *ops[DISK_RUN_MERGE_MAX];
    free(argument);

    pthread_mutex_lock(&pool->lock);
    while (!pool->stopping) {
        int count = take_work(pool, ops);
        if (count == 0) {
            if (is_surplus(pool))
                break;
            wait_for_work(pool);
            continue;
        }
        if (!list_empty(&pool->queue) && (pool->average_ns >= FAST_NS || is_slow(ops[0])))
            wake_one(pool);
        sync_begins(slot, ops[0]);
        pthread_mutex_unlock(&pool->lock);

        uint64_t begin_ns = clock_ns();
        run(ops, count);
        uint64_t took_ns = clock_ns() - begin_ns;

        pthread_mutex_lock(&pool->lock);
        (*threads_of(pool, ops[0]))--;
        if (put_done(pool, slot, ops, count, took_ns)) {
            pthread_mutex_unlock(&pool->lock);
            tell_engine(pool->done_fd);
            pthread_mutex_lock(&pool->lock);
        }
    }
    pool->running--;
    slot->state = SLOT_ENDED;
    pthread_cond_signal(&pool->ended);
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

/* Engine's thread, lock held (the new thread waits for it).  False: no slot or no thread. */
static bool start_thread(struct disk_threads *pool)
{
    struct slot *slot = NULL;
    for (int i = 0; i < DISK_THREADS_MAX && slot == NULL; i++)
        if (pool->slots[i].state != SLOT_RUNNING)
            slot = &pool->slots[i];
    if (slot == NULL)
        return false;
    if (slot->state == SLOT_ENDED) {
        /* It took its leave under the lock and only has to return. */
        pthread_join(slot->thread, NULL);
        slot->state = SLOT_FREE;
    }
    struct thread_argument *argument = malloc(sizeof(*argument));
    if (argument == NULL)
        return false;
    *argument = (struct thread_argument){.pool = pool, .slot = slot};
    if (!thread_start(&slot->thread, "repl-disk", thread_run, argument)) {
        free(argument);
        return false;
    }
    slot->state = SLOT_RUNNING;
    pool->running++;
    return true;
}

struct disk_threads *disk_threads_start(int done_fd, int threads, uint64_t busy_poll_ns)
{
    CHECK(threads >= 1 && threads <= DISK_THREADS_MAX);
    struct disk_threads *pool = calloc(1, sizeof(*pool));
    if (pool == NULL)
        return NULL;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, &attributes);
    pthread_cond_init(&pool->ended, &attributes);
    pthread_condattr_destroy(&attributes);
    list_init(&pool->queue);
    list_init(&pool->done);
    list_init(&pool->unsure);
    pool->done_fd = done_fd;
    pool->threads = threads;
    busy_poll_init(&pool->poll, busy_poll_ns);
    pool->average_ns = FAST_NS; /* unknown: as if slow */
    bool started = true;
    pthread_mutex_lock(&pool->lock);
    for (int i = 0; i < threads && started; i++)
        started = start_thread(pool);
    pthread_mutex_unlock(&pool->lock);
    if (!started) {
        disk_threads_stop(pool, UINT64_MAX);
        return NULL;
    }
    return pool;
}

void disk_threads_submit(struct disk_threads *pool, struct list_head *ops)
{
    if (list_empty(ops))
        return;
    list_for_each(link, ops) pool->in_flight++;
    pthread_mutex_lock(&pool->lock);
    if (pool->any_lost)
        list_for_each(link, &pool->done) {
            const struct disk_op *op = list_entry(link, struct disk_op, link);
            if (op->lost)
                mark_lost(ops, op->fd);
        }
    pool->fresh = pool->fresh || list_empty(&pool->queue);
    list_splice_tail(&pool->queue, ops);
    if (!pool->looking)
        wake_one(pool);
    pthread_mutex_unlock(&pool->lock);
    atomic_fetch_add(&pool->submitted, 1); /* not before: who sees it wants the lock */
}

void disk_threads_collect(struct disk_threads *pool, struct list_head *done)
{
    struct list_head taken;
    list_init(&taken);
    pthread_mutex_lock(&pool->lock);
    list_splice_tail(&taken, &pool->done);
    pool->held_back = 0;
    pool->told = pool->any_lost = false;
    pthread_mutex_unlock(&pool->lock);
    list_for_each(link, &taken) pool->in_flight--;
    list_splice_tail(done, &taken);
}

uint64_t disk_threads_poll(struct disk_threads *pool, uint64_t now_ns)
{
    if (pool->in_flight == 0)
        return UINT64_MAX;
    pthread_mutex_lock(&pool->lock);
    bool waiting = !list_empty(&pool->queue);
    bool tell = false;
    if (!waiting || pool->fresh || pool->started != pool->seen_started) {
        pool->fresh = false;
        pool->seen_started = pool->started;
        pool->seen_at_ns = now_ns;
    } else if (now_ns - pool->seen_at_ns >= POLL_NS) {
        /* Nothing was started since the last look: whoever was to do it hangs, and with it what it holds
         * back. */
        tell = pool->held_back > 0 && !pool->told;
        pool->told = pool->told || tell;
        wake_one(pool);
        if (pool->idle == 0 && now_ns - pool->seen_at_ns >= STUCK_NS) {
            start_thread(pool);
            pool->seen_at_ns = now_ns;
        }
    }
    pthread_mutex_unlock(&pool->lock);
    if (tell)
        tell_engine(pool->done_fd);
    return waiting ? POLL_NS : UINT64_MAX;
}

bool disk_threads_are_looking(struct disk_threads *pool)
{
    pthread_mutex_lock(&pool->lock);
    bool looking = pool->looking;
    pthread_mutex_unlock(&pool->lock);
    return looking;
}

uint64_t disk_threads_in_flight(const struct disk_threads *pool)
{
    return pool->in_flight;
}

int disk_threads_count(struct disk_threads *pool)
{
    pthread_mutex_lock(&pool->lock);
    int running = pool->running;
    pthread_mutex_unlock(&pool->lock);
    return running;
}

bool disk_threads_stop(struct disk_threads *pool, uint64_t wait_ns)
{
    uint64_t now_ns = clock_ns();
    uint64_t end_ns = wait_ns < UINT64_MAX / 4 - now_ns ? now_ns + wait_ns : UINT64_MAX / 4;
    struct timespec end = {.tv_sec = (time_t)(end_ns / 1000000000ull),
                           .tv_nsec = (long)(end_ns % 1000000000ull)};
    int waited = 0;

    pthread_mutex_lock(&pool->lock);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->work);
    while (pool->running > 0 && waited != ETIMEDOUT)
        waited = pthread_cond_timedwait(&pool->ended, &pool->lock, &end);
    bool ended = pool->running == 0;
    pthread_mutex_unlock(&pool->lock);
    if (!ended)
        return false;
    for (int i = 0; i < DISK_THREADS_MAX; i++)
        if (pool->slots[i].state == SLOT_ENDED)
            pthread_join(pool->slots[i].thread, NULL);
    pthread_cond_destroy(&pool->work);
    pthread_cond_destroy(&pool->ended);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
    return true;
}
