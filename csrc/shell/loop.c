/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's thread: wait, hand everything that happened to the core, let it run, hand its events over.
 *
 * Invariants: a stream without wanted readiness is not in the epoll set (a hang-up that nobody wants to hear
 * of would wake it for ever); the thread waits nowhere but in epoll; the clock never goes back and is read
 * anew after every wait.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "shell/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/ring.h"
#include "io/busy_poll.h"
#include "io/disk_cached.h"
#include "io/disk_run.h"
#include "io/disk_threads.h"

enum { EPOLL_EVENTS_MAX = RE_STREAMS_MAX + 3 }; /* one wait can report everything: nobody starves */

#define STOP_DISK_WAIT_NS 5000000000ull /* patience with operations in flight at the end */
#define NS_PER_MS 1000000ull
#define NS_PER_S 1000000000ull

/* Numbers of the eventfds and the timer in epoll's data, beside those of the streams. */
enum { SOURCE_COMMANDS = RE_STREAMS_MAX, SOURCE_DISK, SOURCE_TIMER };

struct loop_stream {
    int fd;              /* as the control plane gave it */
    bool open;           /* the core knows it */
    uint32_t generation; /* changes with every open: readiness of the one before is recognized */
    uint32_t interest;   /* EPOLLIN | EPOLLOUT as the core wants it; 0: not in the epoll set */
    bool broken;         /* cannot be waited for: the core is told at once, reads and writes fail */
};

struct loop {
    struct core *core;
    int epoll_fd;
    int command_fd; /* eventfd: commands wait, or there is room for events again */
    int disk_fd;    /* eventfd: disk operations have finished */
    int wake_fd;    /* eventfd of the control plane; not ours to close */
    struct loop_stream streams[RE_STREAMS_MAX];
    bool any_broken;     /* a stream is broken and the core was not told yet */
    bool events_waiting; /* the core has events */
    int timer_fd;        /* timerfd: wakes at `armed_ns` */
    uint64_t armed_ns;   /* when the timer fires; UINT64_MAX: it does not */
    uint64_t now_ns;     /* cached clock */
    struct busy_poll poll;
    struct disk_threads *disks;
    struct disk_cached cached;
    struct ring commands;                  /* control plane to engine */
    struct ring events;                    /* engine to control plane */
    uint8_t event_blob[RE_EVENT_BLOB_MAX]; /* between core_event() and the queue */
};

static void clock_update(struct loop *loop)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    loop->now_ns = (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static void eventfd_signal(int fd)
{
    const uint64_t one = 1;
    ssize_t written;
    do
        written = write(fd, &one, sizeof(one));
    while (written < 0 && errno == EINTR);
}

static void eventfd_clear(int fd)
{
    uint64_t count;
    ssize_t got;
    do
        got = read(fd, &count, sizeof(count));
    while (got < 0 && errno == EINTR);
}

static void close_if_open(int fd)
{
    if (fd >= 0)
        close(fd);
}

static struct loop_stream *stream_get(struct loop *loop, int number)
{
    return number >= 0 && number < RE_STREAMS_MAX && loop->streams[number].open ? &loop->streams[number]
                                                                                : NULL;
}

/* ---- struct io_ops ---- */

static uint64_t io_now_ns(void *ctx)
{
    const struct loop *loop = ctx;
    return loop->now_ns;
}

static ssize_t stream_result(ssize_t moved)
{
    if (moved >= 0)
        return moved;
    /* Lack of kernel memory passes; readiness is level triggered, so it is tried again. */
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS || errno == ENOMEM)
        return STREAM_IO_AGAIN;
    return STREAM_IO_RESET;
}

static ssize_t io_stream_receive(void *ctx, int number, const struct iovec *iov, int count)
{
    struct loop_stream *stream = stream_get(ctx, number);
    ssize_t got;

    if (stream == NULL || stream->broken)
        return STREAM_IO_RESET;
    do {
        if (count == 1) {
            got = recv(stream->fd, iov->iov_base, iov->iov_len, MSG_DONTWAIT);
        } else {
            struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)count};
            got = recvmsg(stream->fd, &message, MSG_DONTWAIT);
        }
    } while (got < 0 && errno == EINTR);
    return stream_result(got);
}

static ssize_t io_stream_send(void *ctx, int number, const struct iovec *iov, int count)
{
    struct loop_stream *stream = stream_get(ctx, number);
    ssize_t put;

    if (stream == NULL || stream->broken)
        return STREAM_IO_RESET;
    do {
        if (count == 1) {
            put = send(stream->fd, iov->iov_base, iov->iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
        } else {
            struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)count};
            put = sendmsg(stream->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        }
    } while (put < 0 && errno == EINTR);
    return stream_result(put);
}

static void stream_set_interest(struct loop *loop, int number, uint32_t interest)
{
    struct loop_stream *stream = &loop->streams[number];
    struct epoll_event event = {.events = interest,
                                .data.u64 = (uint64_t)stream->generation << 32 | (uint32_t)number};
    if (interest == stream->interest || stream->broken)
        return;
    int operation = interest == 0 ? EPOLL_CTL_DEL : stream->interest == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    if (epoll_ctl(loop->epoll_fd, operation, stream->fd, &event) != 0) {
        stream->broken = true;
        loop->any_broken = true;
        return;
    }
    stream->interest = interest;
}

static void io_stream_want(void *ctx, int number, bool read, bool write)
{
    if (stream_get(ctx, number) != NULL)
        stream_set_interest(ctx, number, (read ? (uint32_t)EPOLLIN : 0) | (write ? (uint32_t)EPOLLOUT : 0));
}

static void io_stream_open(void *ctx, int number, int fd)
{
    struct loop *loop = ctx;
    const int on = 1;

    CHECK(number >= 0 && number < RE_STREAMS_MAX && !loop->streams[number].open);
    struct loop_stream *stream = &loop->streams[number];
    *stream = (struct loop_stream){.fd = fd, .open = true, .generation = stream->generation + 1};
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && !(flags & O_NONBLOCK))
        fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    /* Everything is sent in large pieces already; fails on sockets that are not TCP, where it has no meaning.
     */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    stream_set_interest(loop, number, EPOLLIN);
}

static void io_stream_close(void *ctx, int number)
{
    struct loop *loop = ctx;
    struct loop_stream *stream = stream_get(loop, number);

    if (stream == NULL)
        return;
    /* Explicitly: closing is not enough where somebody else holds a duplicate. */
    if (stream->interest != 0)
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, stream->fd, NULL);
    close_if_open(stream->fd);
    stream->open = false;
}

static void run_inline(struct loop *loop, struct list_head *ops)
{
    struct disk_op *run[DISK_RUN_MERGE_MAX];

    while (!list_empty(ops)) {
        int count = 0;
        for (struct list_head *link; count < DISK_RUN_MERGE_MAX && (link = list_first(ops)) != NULL;) {
            struct disk_op *op = list_entry(link, struct disk_op, link);
            if (count > 0 && !disk_run_can_merge(run[count - 1], op))
                break;
            list_del(link);
            run[count++] = op;
        }
        if (count == 1)
            disk_run(run[0]);
        else
            disk_run_writes(run, count);
        for (int i = 0; i < count; i++)
            core_disk_done(loop->core, run[i]);
    }
}

/* One read alone, and no thread looks for work: to wake one costs more than what the page cache has.  A deep queue is
 * worth a second processor. */
static bool answer_from_cache(struct loop *loop, struct list_head *ops)
{
    struct list_head *link = list_first(ops);
    if (link == NULL || link != list_last(ops))
        return false;
    struct disk_op *op = list_entry(link, struct disk_op, link);
    if (!(op->flags & DISK_PAGE_CACHE) || op->kind != DISK_READ || disk_threads_in_flight(loop->disks) > 0 ||
        disk_threads_are_looking(loop->disks) || !disk_cached_read(&loop->cached, op))
        return false;
    list_del(link);
    core_disk_done(loop->core, op);
    return true;
}

static void io_disk_submit(void *ctx, struct list_head *ops)
{
    struct loop *loop = ctx;
    struct list_head at_once;

    if (answer_from_cache(loop, ops))
        return;
    list_init(&at_once);
    list_for_each_safe(link, following, ops) if (list_entry(link, struct disk_op, link)->flags & DISK_INLINE)
        list_move_tail(&at_once, link);
    /* The threads first: they work while this one does. */
    disk_threads_submit(loop->disks, ops);
    if (!list_empty(&at_once)) {
        run_inline(loop, &at_once);
        clock_update(loop);
    }
}

static void io_event_wake(void *ctx)
{
    struct loop *loop = ctx;
    loop->events_waiting = true;
}

static const struct io_ops loop_io_ops = {
    .now_ns = io_now_ns,
    .stream_receive = io_stream_receive,
    .stream_send = io_stream_send,
    .stream_want = io_stream_want,
    .stream_open = io_stream_open,
    .stream_close = io_stream_close,
    .disk_submit = io_disk_submit,
    .event_wake = io_event_wake,
};

/* ---- one turn ---- */

static void drain_commands(struct loop *loop)
{
    struct list_head taken;

    eventfd_clear(loop->command_fd);
    list_init(&taken);
    ring_take_all(&loop->commands, &taken);
    for (struct list_head *link; (link = list_pop(&taken)) != NULL;) {
        struct ring_message *message = list_entry(link, struct ring_message, link);
        core_command(loop->core, ring_fixed(message), ring_blob(message), message->blob_length);
        free(message);
    }
}

static void drain_disk(struct loop *loop)
{
    struct list_head done;

    eventfd_clear(loop->disk_fd);
    list_init(&done);
    disk_threads_collect(loop->disks, &done);
    for (struct list_head *link; (link = list_pop(&done)) != NULL;)
        core_disk_done(loop->core, list_entry(link, struct disk_op, link));
}

static void report_broken(struct loop *loop)
{
    loop->any_broken = false;
    for (int i = 0; i < RE_STREAMS_MAX; i++)
        if (loop->streams[i].open && loop->streams[i].broken)
            core_stream_ready(loop->core, i, true, true);
}

static void report_ready(struct loop *loop, const struct epoll_event *event)
{
    int number = (int)(uint32_t)event->data.u64;
    struct loop_stream *stream = stream_get(loop, number);

    if (stream == NULL || stream->generation != (uint32_t)(event->data.u64 >> 32))
        return; /* closed, or opened anew, since the wait */
    /* An error or a hang-up shows in whatever the core wants to do. */
    uint32_t events = event->events & (EPOLLERR | EPOLLHUP) ? (uint32_t)(EPOLLIN | EPOLLOUT) : event->events;
    events &= stream->interest;
    if (events != 0)
        core_stream_ready(loop->core, number, events & EPOLLIN, events & EPOLLOUT);
}

/* What does not fit stays in the core; taking from the full queue wakes this thread again. */
static void hand_over_events(struct loop *loop)
{
    struct re_event event;

    /* Room is looked for first: an event that was taken from the core cannot be put back. */
    while (ring_has_room(&loop->events, sizeof(event) + 16 + RE_EVENT_BLOB_MAX)) {
        if (!core_event(loop->core, &event, loop->event_blob)) {
            loop->events_waiting = false;
            return;
        }
        CHECK(event.blob_length <= RE_EVENT_BLOB_MAX);
        enum ring_result result =
            ring_push(&loop->events, &event, sizeof(event), loop->event_blob, event.blob_length);
        CHECK(result != RING_FULL); /* no memory for a few bytes */
        if (result == RING_WAKE)
            eventfd_signal(loop->wake_fd);
    }
}

/* Make sure that the wait ends at `at_ns`.  A timer that fires earlier is left alone: deadlines move later with almost
 * every request, and setting a timer is dearer than an idle turn now and then. */
static void arm_timer(struct loop *loop, uint64_t at_ns)
{
    if (loop->armed_ns <= at_ns && loop->armed_ns > loop->now_ns)
        return;
    if (at_ns == UINT64_MAX)
        return;
    loop->armed_ns = at_ns;
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(at_ns / NS_PER_S), .tv_nsec = (long)(at_ns % NS_PER_S)}};
    CHECK(timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &when, NULL) == 0);
}

/* The next events: looked for as long as that pays, then waited for. */
static int await_events(struct loop *loop, struct epoll_event *ready)
{
    const uint64_t began_ns = loop->now_ns;

    while (busy_poll_goes_on(&loop->poll, began_ns, loop->now_ns)) {
        int count = epoll_wait(loop->epoll_fd, ready, EPOLL_EVENTS_MAX, 0);
        if (count != 0)
            return count;
        clock_update(loop);
        uint64_t before_ns = loop->now_ns;
        sched_yield();
        clock_update(loop);
        if (!busy_poll_offered(&loop->poll, before_ns, loop->now_ns))
            break;
    }
    int count = epoll_wait(loop->epoll_fd, ready, EPOLL_EVENTS_MAX, -1);
    clock_update(loop);
    busy_poll_blocked(&loop->poll, loop->now_ns - began_ns);
    return count;
}

void loop_run(struct loop *loop)
{
    struct epoll_event ready[EPOLL_EVENTS_MAX];
    uint64_t next_ns = 0;

    while (!core_is_stopped(loop->core)) {
        clock_update(loop);
        uint64_t look_ns = disk_threads_poll(loop->disks, loop->now_ns);
        if (look_ns != UINT64_MAX && loop->now_ns + look_ns < next_ns)
            next_ns = loop->now_ns + look_ns;
        bool at_once = next_ns <= loop->now_ns || loop->any_broken;
        if (!at_once)
            arm_timer(loop, next_ns);
        int count = at_once ? epoll_wait(loop->epoll_fd, ready, EPOLL_EVENTS_MAX, 0) : await_events(loop, ready);
        CHECK(count >= 0 || errno == EINTR);
        clock_update(loop);

        bool commands = false;
        bool disk = false;
        for (int i = 0; i < count; i++) {
            commands = commands || ready[i].data.u64 == SOURCE_COMMANDS;
            disk = disk || ready[i].data.u64 == SOURCE_DISK;
            if (ready[i].data.u64 == SOURCE_TIMER) {
                eventfd_clear(loop->timer_fd);
                loop->armed_ns = UINT64_MAX;
            }
        }
        if (commands)
            drain_commands(loop);
        if (disk)
            drain_disk(loop);
        if (loop->any_broken)
            report_broken(loop);
        for (int i = 0; i < count; i++)
            if ((uint32_t)ready[i].data.u64 < RE_STREAMS_MAX)
                report_ready(loop, &ready[i]);
        next_ns = core_tick(loop->core);
        if (loop->events_waiting)
            hand_over_events(loop);
    }
    /* Nobody comes back for what does not fit: the limits end here (the core's own queue is the bound). */
    loop->events.count_max = loop->events.bytes_max = SIZE_MAX;
    hand_over_events(loop);
}

/* ---- the other side ---- */

bool loop_command(struct loop *loop, const struct re_command *command, const uint8_t *blob,
                  size_t blob_length)
{
    enum ring_result result = ring_push(&loop->commands, command, sizeof(*command), blob, blob_length);
    if (result == RING_WAKE)
        eventfd_signal(loop->command_fd);
    return result != RING_FULL;
}

bool loop_event(struct loop *loop, struct re_event *event, uint8_t *blob)
{
    bool room;
    struct ring_message *message = ring_pop(&loop->events, &room);

    if (room)
        eventfd_signal(loop->command_fd);
    if (message == NULL)
        return false;
    memcpy(event, ring_fixed(message), sizeof(*event));
    memcpy(blob, ring_blob(message), message->blob_length);
    free(message);
    return true;
}

const struct core *loop_core(const struct loop *loop)
{
    return loop->core;
}

static bool watch(struct loop *loop, int fd, uint64_t source)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = source};
    return fd >= 0 && epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

struct loop *loop_create(int wake_fd, uint64_t busy_poll_ns, const struct core_config *config)
{
    struct loop *loop = calloc(1, sizeof(*loop));
    if (loop == NULL)
        return NULL;
    ring_init(&loop->commands, LOOP_COMMANDS_MAX, LOOP_COMMAND_BYTES_MAX);
    ring_init(&loop->events, LOOP_EVENTS_MAX, LOOP_EVENT_BYTES_MAX);
    loop->wake_fd = wake_fd;
    loop->command_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    loop->disk_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    loop->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    loop->armed_ns = UINT64_MAX;
    busy_poll_init(&loop->poll, busy_poll_ns);
    clock_update(loop);
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd >= 0 && watch(loop, loop->command_fd, SOURCE_COMMANDS) &&
        watch(loop, loop->disk_fd, SOURCE_DISK) && watch(loop, loop->timer_fd, SOURCE_TIMER))
        loop->disks = disk_threads_start(loop->disk_fd, DISK_THREADS_DEFAULT, busy_poll_ns);
    if (loop->disks != NULL)
        loop->core = core_create(&loop_io_ops, loop, config);
    if (loop->core == NULL) {
        loop_destroy(loop);
        return NULL;
    }
    return loop;
}

void loop_destroy(struct loop *loop)
{
    /* A thread that is stuck in the kernel writes to the core's buffers when it comes back, and to its
     * eventfd. */
    bool disks_ended = loop->disks == NULL || disk_threads_stop(loop->disks, STOP_DISK_WAIT_NS);

    if (loop->core != NULL && disks_ended)
        core_destroy(loop->core);
    for (int i = 0; i < RE_STREAMS_MAX; i++)
        io_stream_close(loop, i);
    ring_destroy(&loop->commands);
    ring_destroy(&loop->events);
    close_if_open(loop->epoll_fd);
    close_if_open(loop->command_fd);
    close_if_open(loop->timer_fd);
    if (!disks_ended)
        return;
    close_if_open(loop->disk_fd);
    free(loop);
}
