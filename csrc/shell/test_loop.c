/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of the engine's thread with an echo core in place of the real one.
 *
 * The core below sends back what its streams receive, and takes some commands as orders: PING is a timer of
 * `stream` milliseconds, BITMAP_WRITE one disk operation, MD_WRITE emits `stream` events, VOLUME_STATE
 * switches a stream's interest, LINK_UP orders nothing but DONE.  REPL_BENCH=1 prints what a hand-over costs.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "engine/core.h"

enum { ECHO_BYTES = 65536, ECHO_EVENTS_MAX = 20000, PATIENCE_MS = 20000, BLOCK = 4096 };

/* ---- the echo core ---- */

struct echo {
    bool open;
    bool blocked;      /* bytes wait for the socket to take them */
    size_t begin, end; /* of `bytes`, to be sent */
    uint8_t bytes[ECHO_BYTES];
};

struct core {
    const struct io_ops *io;
    void *io_ctx;
    struct echo streams[RE_STREAMS_MAX];
    struct re_event events[ECHO_EVENTS_MAX];
    uint32_t events_begin, events_end;
    uint64_t timer_ns, timer_cookie;
    struct disk_op op;
    uint8_t data[BLOCK];
    uint64_t op_cookie;
    bool op_done;
    bool stopped;
    struct re_engine_stats stats;
};

/* Written by the engine's thread, read by the tests. */
static uint64_t ticks;
static uint64_t readiness;

static void emit(struct core *core, struct re_event event)
{
    CHECK(core->events_end < ECHO_EVENTS_MAX);
    core->events[core->events_end++] = event;
    core->io->event_wake(core->io_ctx);
}

static void disk_finished(struct disk_op *op)
{
    struct core *core = op->owner;
    emit(core, (struct re_event){.type = RE_EV_DONE, .cookie = core->op_cookie, .error = op->error});
}

struct core *core_create(const struct io_ops *io, void *io_ctx, const struct core_config *config)
{
    struct core *core = calloc(1, sizeof(*core));
    CHECK(core && !config);
    core->io = io;
    core->io_ctx = io_ctx;
    core->timer_ns = UINT64_MAX;
    return core;
}

void core_destroy(struct core *core)
{
    for (int i = 0; i < RE_STREAMS_MAX; i++)
        if (core->streams[i].open)
            core->io->stream_close(core->io_ctx, i);
    free(core);
}

static void echo_close(struct core *core, int number)
{
    core->io->stream_close(core->io_ctx, number);
    core->streams[number].open = false;
}

void core_stream_ready(struct core *core, int number, bool readable, bool writable)
{
    struct echo *echo = &core->streams[number];
    bool blocked = echo->blocked;
    ssize_t moved = 1;

    __atomic_add_fetch(&readiness, 1, __ATOMIC_RELAXED);
    CHECK(echo->open);
    if (readable && !blocked) {
        struct iovec iov[2] = {{.iov_base = echo->bytes, .iov_len = 100},
                               {.iov_base = echo->bytes + 100, .iov_len = ECHO_BYTES - 100}};
        moved = core->io->stream_receive(core->io_ctx, number, iov, 2);
        if (moved > 0) {
            echo->begin = 0;
            echo->end = (size_t)moved;
        }
    }
    if (readable || writable)
        while (moved > 0 && echo->begin < echo->end) {
            struct iovec iov = {.iov_base = echo->bytes + echo->begin, .iov_len = echo->end - echo->begin};
            moved = core->io->stream_send(core->io_ctx, number, &iov, 1);
            if (moved > 0)
                echo->begin += (size_t)moved;
        }
    if (moved == STREAM_IO_EOF || moved == STREAM_IO_RESET) {
        echo_close(core, number);
        emit(core,
             (struct re_event){.type = RE_EV_STREAM_CLOSED, .stream = number, .status = (int32_t)moved});
        return;
    }
    echo->blocked = echo->begin < echo->end;
    if (echo->blocked != blocked)
        core->io->stream_want(core->io_ctx, number, !echo->blocked, echo->blocked);
}

void core_disk_done(struct core *core, struct disk_op *op)
{
    CHECK(op == &core->op && !core->op_done);
    core->op_done = true;
}

void core_command(struct core *core, const struct re_command *command, const uint8_t *blob,
                  size_t blob_length)
{
    struct re_event done = {.type = RE_EV_DONE, .cookie = command->cookie, .stream = command->stream};
    switch ((enum re_command_type)command->type) {
    case RE_CMD_STREAM_ADD:
        core->streams[command->stream] = (struct echo){.open = true};
        core->io->stream_open(core->io_ctx, command->stream, command->fd);
        break;
    case RE_CMD_STREAM_SEND: {
        struct iovec iov = {.iov_base = (void *)(uintptr_t)blob, .iov_len = blob_length};
        done.value = (uint64_t)core->io->stream_send(core->io_ctx, command->stream, &iov, 1);
        emit(core, done);
        break;
    }
    case RE_CMD_STREAM_CLOSE:
        echo_close(core, command->stream);
        emit(core, done);
        break;
    case RE_CMD_VOLUME_STATE:
        core->io->stream_want(core->io_ctx, command->stream, command->state.role, false);
        emit(core, done);
        break;
    case RE_CMD_PING:
        core->timer_ns = core->io->now_ns(core->io_ctx) + (uint64_t)command->stream * 1000000;
        core->timer_cookie = command->cookie;
        break;
    case RE_CMD_MD_WRITE:
        for (int i = 0; i < command->stream; i++)
            emit(core, (struct re_event){
                           .type = RE_EV_PACKET, .value = (uint64_t)i, .blob_length = (uint32_t)(i % 9)});
        break;
    case RE_CMD_BITMAP_WRITE: {
        struct list_head ops;
        list_init(&ops);
        core->op_cookie = command->cookie;
        core->op = (struct disk_op){.kind = (uint8_t)command->volume,
                                    .flags = command->attach.flags,
                                    .fd = command->fd,
                                    .data = core->data,
                                    .length = BLOCK,
                                    .done = disk_finished,
                                    .owner = core};
        memset(core->data, command->stream, BLOCK);
        list_add_tail(&ops, &core->op.link);
        core->io->disk_submit(core->io_ctx, &ops);
        break;
    }
    case RE_CMD_LINK_UP:
        emit(core, done);
        break;
    case RE_CMD_STOP:
        emit(core, (struct re_event){.type = RE_EV_STOPPED});
        core->stopped = true;
        break;
    default:
        CHECK(false);
    }
}

uint64_t core_tick(struct core *core)
{
    __atomic_add_fetch(&ticks, 1, __ATOMIC_RELAXED);
    if (core->op_done) {
        core->op_done = false;
        core->op.done(&core->op);
    }
    if (core->io->now_ns(core->io_ctx) >= core->timer_ns) {
        emit(core, (struct re_event){.type = RE_EV_DONE, .cookie = core->timer_cookie});
        core->timer_ns = UINT64_MAX;
    }
    return core->timer_ns;
}

bool core_event(struct core *core, struct re_event *event, uint8_t *blob)
{
    if (core->events_begin == core->events_end) {
        core->events_begin = core->events_end = 0;
        return false;
    }
    *event = core->events[core->events_begin++];
    memset(blob, (int)event->blob_length, event->blob_length);
    return true;
}

bool core_is_stopped(const struct core *core)
{
    return core->stopped;
}

const struct re_volume_stats *core_volume_stats(const struct core *core, int volume)
{
    (void)core;
    (void)volume;
    return NULL;
}

const struct re_engine_stats *core_stats(const struct core *core)
{
    return &core->stats;
}

/* ---- the control plane ---- */

static re_engine *engine;
static int wake_fd;
static uint32_t busy_poll_us; /* of the next engine */

static uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static uint64_t count_ticks(void)
{
    return __atomic_load_n(&ticks, __ATOMIC_RELAXED);
}

static void start(void)
{
    wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    engine = re_engine_start(wake_fd, busy_poll_us);
    CHECK(engine);
}

static void command(struct re_command order, const void *blob, size_t blob_length)
{
    CHECK(re_engine_command(engine, &order, blob, blob_length));
}

/* The next event, as an event loop would wait for it. */
static struct re_event next_event(void)
{
    static uint8_t blob[RE_EVENT_BLOB_MAX];
    struct re_event event;
    uint64_t count;

    while (!re_engine_event(engine, &event, blob)) {
        struct pollfd wait = {.fd = wake_fd, .events = POLLIN};
        CHECK(poll(&wait, 1, PATIENCE_MS) == 1);
        CHECK(read(wake_fd, &count, sizeof(count)) == (ssize_t)sizeof(count));
    }
    for (uint32_t i = 0; i < event.blob_length; i++)
        CHECK(blob[i] == event.blob_length);
    return event;
}

static struct re_event expect_done(uint64_t cookie)
{
    struct re_event event = next_event();
    CHECK(event.type == RE_EV_DONE && event.cookie == cookie);
    return event;
}

static void stop(void)
{
    command((struct re_command){.type = RE_CMD_STOP}, NULL, 0);
    while (next_event().type != RE_EV_STOPPED)
        ;
    re_engine_destroy(engine);
    close(wake_fd);
}

static void send_all(int fd, const uint8_t *bytes, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t put = write(fd, bytes + done, length - done);
        CHECK(put > 0);
        done += (size_t)put;
    }
}

static void receive_all(int fd, uint8_t *bytes, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t got = read(fd, bytes + done, length - done);
        CHECK(got > 0);
        done += (size_t)got;
    }
}

static void tcp_pair(int fds[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(listener, (struct sockaddr *)&address, length) == 0 && listen(listener, 1) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &length) == 0);
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(connect(fds[0], (struct sockaddr *)&address, length) == 0);
    fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(fds[1] >= 0);
    close(listener);
}

static void unix_pair(int fds[2])
{
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
}

static void add(int number, int fd)
{
    command((struct re_command){.type = RE_CMD_STREAM_ADD, .stream = number, .fd = fd}, NULL, 0);
}

/* ---- tests ---- */

struct bulk {
    int fd;
    const uint8_t *bytes;
    size_t length;
};

static void *bulk_send(void *opaque)
{
    struct bulk *bulk = opaque;
    send_all(bulk->fd, bulk->bytes, bulk->length);
    return NULL;
}

static void test_loop_streams_carry_bytes_both_ways_under_back_pressure(void)
{
    enum { LENGTH = 16 << 20 };
    static uint8_t sent[LENGTH], got[LENGTH];
    for (size_t i = 0; i < LENGTH; i++)
        sent[i] = (uint8_t)(i * 2654435761u >> 13);
    start();
    for (int kind = 0; kind < 2; kind++) {
        int fds[2];
        pthread_t sender;
        (kind ? tcp_pair : unix_pair)(fds);
        struct bulk bulk = {.fd = fds[0], .bytes = sent, .length = LENGTH};
        add(RE_STREAMS_MAX - 1, fds[1]);
        CHECK(pthread_create(&sender, NULL, bulk_send, &bulk) == 0);
        receive_all(fds[0], got, LENGTH);
        pthread_join(sender, NULL);
        CHECK(memcmp(sent, got, LENGTH) == 0);
        close(fds[0]);
        struct re_event event = next_event();
        CHECK(event.type == RE_EV_STREAM_CLOSED && event.stream == RE_STREAMS_MAX - 1);
    }
    stop();
}

static void test_loop_stream_open_sets_what_it_must(void)
{
    int fds[2], duplicate, on = 0;
    socklen_t length = sizeof(on);
    start();
    tcp_pair(fds);
    duplicate = dup(fds[1]);
    add(3, fds[1]);
    command((struct re_command){.type = RE_CMD_LINK_UP, .cookie = 1}, NULL, 0);
    expect_done(1);
    CHECK(fcntl(duplicate, F_GETFL) & O_NONBLOCK);
    CHECK(getsockopt(duplicate, IPPROTO_TCP, TCP_NODELAY, &on, &length) == 0 && on);
    stop();
    close(fds[0]);
    close(duplicate);
}

static void test_loop_send_to_a_closed_peer_is_a_reset_and_no_signal(void)
{
    int fds[2];
    start();
    unix_pair(fds);
    add(0, fds[1]);
    command((struct re_command){.type = RE_CMD_VOLUME_STATE, .stream = 0, .cookie = 1}, NULL, 0);
    expect_done(1);
    close(fds[0]);
    command((struct re_command){.type = RE_CMD_STREAM_SEND, .stream = 0, .cookie = 2}, "x", 1);
    CHECK((int64_t)expect_done(2).value == STREAM_IO_RESET);
    stop();
}

static void test_loop_hang_up_that_nobody_wants_to_hear_of_does_not_spin(void)
{
    int fds[2];
    uint8_t byte;
    start();
    unix_pair(fds);
    add(0, fds[1]);
    command((struct re_command){.type = RE_CMD_VOLUME_STATE, .stream = 0, .cookie = 1}, NULL, 0);
    expect_done(1);
    uint64_t before = count_ticks();
    send_all(fds[0], (const uint8_t *)"x", 1);
    close(fds[0]);
    command((struct re_command){.type = RE_CMD_PING, .stream = 50, .cookie = 2}, NULL, 0);
    expect_done(2);
    CHECK(count_ticks() - before <= 10);
    /* Wanted again, it is seen: the byte first, whose echo finds the peer gone. */
    command((struct re_command){.type = RE_CMD_VOLUME_STATE, .stream = 0, .state.role = 1, .cookie = 3}, NULL,
            0);
    expect_done(3);
    CHECK(next_event().type == RE_EV_STREAM_CLOSED);
    unix_pair(fds);
    add(0, fds[1]);
    send_all(fds[0], (const uint8_t *)"y", 1);
    receive_all(fds[0], &byte, 1);
    CHECK(byte == 'y');
    stop();
    close(fds[0]);
}

static void test_loop_descriptor_that_cannot_be_waited_for_is_reported_broken(void)
{
    int file = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    start();
    if (file >= 0) {
        add(1, file);
        struct re_event event = next_event();
        CHECK(event.type == RE_EV_STREAM_CLOSED && event.stream == 1 && event.status == STREAM_IO_RESET);
    }
    add(2, -1);
    struct re_event event = next_event();
    CHECK(event.type == RE_EV_STREAM_CLOSED && event.stream == 2 && event.status == STREAM_IO_RESET);
    stop();
}

static void test_loop_timer_is_punctual_and_waiting_costs_no_ticks(void)
{
    start();
    for (int ms = 1; ms <= 64; ms *= 8) {
        uint64_t before = count_ticks(), begin_ns = clock_ns();
        command((struct re_command){.type = RE_CMD_PING, .stream = ms, .cookie = 5}, NULL, 0);
        expect_done(5);
        CHECK(clock_ns() - begin_ns >= (uint64_t)ms * 1000000);
        CHECK(count_ticks() - before <= 4);
    }
    stop();
}

static void test_loop_more_events_than_the_queue_holds_all_arrive_in_order(void)
{
    enum { COUNT = 15000 };
    start();
    command((struct re_command){.type = RE_CMD_MD_WRITE, .stream = COUNT}, NULL, 0);
    for (uint64_t i = 0; i < COUNT; i++) {
        struct re_event event = next_event();
        CHECK(event.type == RE_EV_PACKET && event.value == i && event.blob_length == i % 9);
    }
    /* Nobody takes them before the end. */
    command((struct re_command){.type = RE_CMD_MD_WRITE, .stream = COUNT}, NULL, 0);
    stop();
}

static void *send_commands(void *opaque)
{
    uint64_t base = (uint64_t)(uintptr_t)opaque << 32;
    for (uint64_t i = 0; i < 2000; i++) {
        struct re_command order = {.type = RE_CMD_LINK_UP, .cookie = base + i};
        uint8_t blob[16] = {0};
        while (!re_engine_command(engine, &order, blob, i % 16))
            sched_yield();
    }
    return NULL;
}

static void test_loop_commands_of_several_threads_are_all_run_in_their_order(void)
{
    pthread_t threads[4];
    uint64_t next[4] = {0};
    start();
    for (uintptr_t i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, send_commands, (void *)i) == 0);
    for (int i = 0; i < 4 * 2000; i++) {
        struct re_event event = next_event();
        CHECK(event.type == RE_EV_DONE && (event.cookie & UINT32_MAX) == next[event.cookie >> 32]++);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    stop();
}

static void test_loop_disk_operations_run_inline_and_on_threads(void)
{
    uint8_t block[BLOCK];
    int fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    start();
    for (int i = 0; i < 100; i++) {
        struct re_command order = {
            .type = RE_CMD_BITMAP_WRITE, .volume = DISK_WRITE, .fd = fd, .stream = i, .cookie = 7};
        order.attach.flags = i % 2 ? DISK_INLINE : 0;
        command(order, NULL, 0);
        CHECK(expect_done(7).error == 0);
        CHECK(pread(fd, block, BLOCK, 0) == BLOCK && block[0] == i && block[BLOCK - 1] == i);
    }
    command((struct re_command){.type = RE_CMD_BITMAP_WRITE, .volume = DISK_READ, .fd = -1, .cookie = 8},
            NULL, 0);
    CHECK(expect_done(8).error == EBADF);
    stop();
    close(fd);
}

static bool file_has(const char *path, const char *text, char *found, size_t size)
{
    char line[256];
    bool has = false;
    FILE *file = fopen(path, "re");
    while (file && !has && fgets(line, sizeof(line), file)) {
        has = strncmp(line, text, strlen(text)) == 0;
        snprintf(found, size, "%s", line + (has ? strlen(text) : 0));
    }
    if (file)
        fclose(file);
    return has;
}

static void test_loop_threads_have_names_and_take_no_signals(void)
{
    int engines, disks, faults;
    uint64_t end_ns = clock_ns() + PATIENCE_MS * 1000000ull;
    start();
    command((struct re_command){.type = RE_CMD_LINK_UP, .cookie = 1}, NULL, 0);
    expect_done(1);
    /* A thread that has not run yet blocks everything, and has no name of its own for a moment. */
    do {
        CHECK(clock_ns() < end_ns);
        engines = disks = faults = 0;
        DIR *tasks = opendir("/proc/self/task");
        for (struct dirent *task; (task = readdir(tasks));) {
            char path[300], text[256];
            snprintf(path, sizeof(path), "/proc/self/task/%s/status", task->d_name);
            bool is_engine = file_has(path, "Name:\trepl-engine", text, sizeof(text));
            bool is_disk = !is_engine && file_has(path, "Name:\trepl-disk", text, sizeof(text));
            if ((!is_engine && !is_disk) || !file_has(path, "SigBlk:\t", text, sizeof(text)))
                continue;
            uint64_t blocked = strtoull(text, NULL, 16);
            CHECK(blocked & 1u << (SIGTERM - 1) && blocked & 1u << (SIGINT - 1) &&
                  blocked & 1u << (SIGPIPE - 1));
            engines += is_engine;
            disks += is_disk;
            faults += !(blocked & 1u << (SIGSEGV - 1));
        }
        closedir(tasks);
    } while (engines != 1 || disks != 4 || faults != 5);
    stop();
}

static void test_loop_destroy_without_stop_ends_the_thread(void)
{
    int fds[2];
    uint8_t byte;
    start();
    unix_pair(fds);
    add(9, fds[1]);
    re_engine_destroy(engine);
    CHECK(read(fds[0], &byte, 1) == 0);
    close(fds[0]);
    close(wake_fd);
}

static int count_descriptors(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void bench(const char *what, void (*one)(int fd), int fd)
{
    enum { ROUNDS = 20000 };
    static double took[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t begin_ns = clock_ns();
        one(fd);
        took[i] = (double)(clock_ns() - begin_ns) / 1000;
    }
    qsort(took, ROUNDS, sizeof(*took), compare);
    printf("%-34s median %6.2f us, p99 %7.2f us\n", what, took[ROUNDS / 2], took[ROUNDS * 99 / 100]);
}

static void bench_command(int fd)
{
    command((struct re_command){.type = RE_CMD_LINK_UP, .cookie = 1, .fd = fd}, NULL, 0);
    expect_done(1);
}

static void bench_disk(int fd)
{
    command((struct re_command){.type = RE_CMD_BITMAP_WRITE, .volume = DISK_WRITE, .fd = fd, .cookie = 1},
            NULL, 0);
    expect_done(1);
}

static void bench_inline(int fd)
{
    struct re_command order = {.type = RE_CMD_BITMAP_WRITE, .volume = DISK_WRITE, .fd = fd, .cookie = 1};
    order.attach.flags = DISK_INLINE;
    command(order, NULL, 0);
    expect_done(1);
}

static void bench_echo(int fd)
{
    uint8_t bytes[64] = {0};
    send_all(fd, bytes, sizeof(bytes));
    receive_all(fd, bytes, sizeof(bytes));
}

static void bench_all(void)
{
    int fds[2];
    int fd = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    start();
    bench("command to event", bench_command, -1);
    bench("command, inline 4 KiB write, event", bench_inline, fd);
    bench("command, disk thread write, event", bench_disk, fd);
    unix_pair(fds);
    add(0, fds[1]);
    bench("64 bytes echoed, Unix socket", bench_echo, fds[0]);
    tcp_pair(fds);
    add(1, fds[1]);
    bench("64 bytes echoed, TCP", bench_echo, fds[0]);
    stop();
}

int main(void)
{
    if (getenv("REPL_BENCH")) {
        bench_all();
        return 0;
    }
    int before = count_descriptors();
    for (busy_poll_us = 0; busy_poll_us <= 200; busy_poll_us += 200) {
        test_loop_streams_carry_bytes_both_ways_under_back_pressure();
        test_loop_stream_open_sets_what_it_must();
        test_loop_send_to_a_closed_peer_is_a_reset_and_no_signal();
        test_loop_hang_up_that_nobody_wants_to_hear_of_does_not_spin();
        test_loop_descriptor_that_cannot_be_waited_for_is_reported_broken();
        test_loop_timer_is_punctual_and_waiting_costs_no_ticks();
        test_loop_more_events_than_the_queue_holds_all_arrive_in_order();
        test_loop_commands_of_several_threads_are_all_run_in_their_order();
        test_loop_disk_operations_run_inline_and_on_threads();
        test_loop_threads_have_names_and_take_no_signals();
        test_loop_destroy_without_stop_ends_the_thread();
    }
    CHECK(count_descriptors() == before);
    return 0;
}
