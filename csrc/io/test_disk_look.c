/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the disk thread that looks for work before it blocks.  Between two looks it offers its processor to others:
 * sched_yield(), replaced below, can keep it there. Who blocks and who is woken is counted in the same way. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "io/disk_threads.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"

enum { PATIENCE_MS = 20000 };

#define WINDOW_NS 1000000000ull /* waits in a test end within that, mostly */

static pthread_t engine;    /* who submits */
static int wakes;           /* its calls of pthread_cond_signal() */
static int (*real_signal)(pthread_cond_t *);
static int (*real_wait)(pthread_cond_t *, pthread_mutex_t *);

/* What the threads do. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool keep;          /* in sched_yield() */
    bool kept;          /* somebody is */
    int offers;         /* calls of sched_yield() */
    int blocked;        /* threads that wait to be woken */
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

int sched_yield(void)
{
    pthread_mutex_lock(&seen.lock);
    seen.offers++;
    while (seen.keep) {
        seen.kept = true;
        real_wait(&seen.changed, &seen.lock);
    }
    seen.kept = false;
    pthread_mutex_unlock(&seen.lock);
    return (int)syscall(SYS_sched_yield);
}

int pthread_cond_signal(pthread_cond_t *condition)
{
    if (pthread_equal(pthread_self(), engine))
        wakes++;
    return real_signal(condition);
}

static void count_blocked(int more)
{
    pthread_mutex_lock(&seen.lock);
    seen.blocked += more;
    pthread_mutex_unlock(&seen.lock);
}

int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *lock)
{
    count_blocked(1); /* the pool's lock is held: who has it afterwards finds this thread waiting */
    int result = real_wait(condition, lock);
    count_blocked(-1);
    return result;
}

static void keep(bool on)
{
    pthread_mutex_lock(&seen.lock);
    seen.keep = on;
    pthread_cond_broadcast(&seen.changed);
    pthread_mutex_unlock(&seen.lock);
}

static bool is_kept(void)
{
    pthread_mutex_lock(&seen.lock);
    bool kept = seen.kept;
    pthread_mutex_unlock(&seen.lock);
    return kept;
}

static bool is_blocked(void)
{
    pthread_mutex_lock(&seen.lock);
    bool blocked = seen.blocked > 0;
    pthread_mutex_unlock(&seen.lock);
    return blocked;
}

static uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

struct rig {
    struct disk_threads *pool;
    int done_fd, file_fd;
    struct disk_op op;
    uint8_t byte;
};

static void rig_start(struct rig *rig, uint64_t busy_poll_ns)
{
    seen.offers = 0;
    rig->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rig->file_fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    CHECK(rig->done_fd >= 0 && rig->file_fd >= 0 && ftruncate(rig->file_fd, 4096) == 0);
    rig->pool = disk_threads_start(rig->done_fd, 2, busy_poll_ns);
    CHECK(rig->pool);
}

static void rig_end(struct rig *rig)
{
    CHECK(disk_threads_stop(rig->pool, UINT64_MAX));
    close(rig->done_fd);
    close(rig->file_fd);
}

static void submit(struct rig *rig)
{
    struct list_head ops;
    list_init(&ops);
    rig->op = (struct disk_op){.kind = DISK_READ, .fd = rig->file_fd, .data = &rig->byte, .length = 1, .error = -1};
    list_add_tail(&ops, &rig->op.link);
    disk_threads_submit(rig->pool, &ops);
}

/* As the loop does it, or without looking after threads that are late. */
static void await_done(struct rig *rig, bool look_after)
{
    uint64_t end_ns = clock_ns() + PATIENCE_MS * 1000000ull;
    struct pollfd wait = {.fd = rig->done_fd, .events = POLLIN};
    struct list_head done;
    uint64_t told;

    do {
        if (look_after)
            disk_threads_poll(rig->pool, clock_ns());
        CHECK(clock_ns() < end_ns);
    } while (poll(&wait, 1, look_after ? 1 : PATIENCE_MS) == 0);
    CHECK(read(rig->done_fd, &told, sizeof(told)) == (ssize_t)sizeof(told));
    list_init(&done);
    disk_threads_collect(rig->pool, &done);
    CHECK(list_pop(&done) == &rig->op.link && list_empty(&done) && rig->op.error == 0);
}

/* Short waits let the window grow, so one thread looks for work before long and is kept there; the other one blocks. */
static void keep_a_looker(struct rig *rig)
{
    uint64_t end_ns = clock_ns() + PATIENCE_MS * 1000000ull;
    keep(true);
    while (!is_kept()) {
        CHECK(clock_ns() < end_ns);
        submit(rig);
        await_done(rig, true);
    }
    while (!is_blocked())
        CHECK(clock_ns() < end_ns);
}

static void test_disk_look_takes_what_comes_and_nobody_is_woken(void)
{
    struct rig rig;
    rig_start(&rig, WINDOW_NS);
    keep_a_looker(&rig);
    wakes = 0;
    submit(&rig);
    CHECK(wakes == 0);
    keep(false);
    await_done(&rig, false); /* nobody is woken by this */
    rig_end(&rig);
}

static void test_disk_look_that_is_held_up_delays_nothing(void)
{
    struct rig rig;
    rig_start(&rig, WINDOW_NS);
    keep_a_looker(&rig);
    submit(&rig);
    await_done(&rig, true);
    CHECK(is_kept());
    keep(false);
    submit(&rig);
    await_done(&rig, false); /* all goes on */
    rig_end(&rig);
}

static void test_disk_look_ends_with_the_pool(void)
{
    struct rig rig;
    rig_start(&rig, WINDOW_NS);
    keep_a_looker(&rig);
    CHECK(!disk_threads_stop(rig.pool, 0)); /* it is in the kernel's hands */
    keep(false);
    rig_end(&rig);
}

static void test_disk_look_can_be_turned_off(void)
{
    struct rig rig;
    rig_start(&rig, 0);
    for (int i = 0; i < 100; i++) {
        submit(&rig);
        await_done(&rig, true);
    }
    CHECK(seen.offers == 0);
    rig_end(&rig);
}

int main(void)
{
    void *found = dlsym(RTLD_NEXT, "pthread_cond_signal");
    memcpy(&real_signal, &found, sizeof(real_signal));
    found = dlsym(RTLD_NEXT, "pthread_cond_wait");
    memcpy(&real_wait, &found, sizeof(real_wait));
    engine = pthread_self();
    test_disk_look_takes_what_comes_and_nobody_is_woken();
    test_disk_look_that_is_held_up_delays_nothing();
    test_disk_look_ends_with_the_pool();
    test_disk_look_can_be_turned_off();
    return 0;
}
