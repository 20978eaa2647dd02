/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nbdload: an NBD load generator that batches as a good client does and reports one JSON line.
 *
 * One thread drives all connections. Every wake-up takes one large receive, parses all replies in it, refills
 * every freed slot and sends all new requests with one sendmsg. With one connection the receive itself blocks, so
 * that a request at queue depth 1 costs two system calls; several connections share an epoll instance.
 *
 * Invariants:
 * - a slot is either on its connection's free stack or active with exactly one request on the wire;
 * - the memory a queued iovec points to stays untouched until the slot's reply has arrived;
 * - with --verify no two requests in flight touch the same block, so the expected contents are always known.
 *
 * Exit status: 0 all requests succeeded, 1 an I/O or verify error, 2 wrong usage, 3 connection or protocol failure.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* NBD protocol constants (fixed newstyle handshake, simple replies). */
#define NBD_MAGIC UINT64_C(0x4e42444d41474943)
#define NBD_OPTS_MAGIC UINT64_C(0x49484156454f5054)
#define NBD_REP_MAGIC UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC UINT32_C(0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC UINT32_C(0x67446698)
#define NBD_OPT_GO 7U
#define NBD_REP_ACK 1U
#define NBD_REP_INFO 3U
#define NBD_REP_FLAG_ERROR UINT32_C(0x80000000)
#define NBD_INFO_EXPORT 0U
#define NBD_INFO_BLOCK_SIZE 3U
#define NBD_FLAG_FIXED_NEWSTYLE 1U
#define NBD_FLAG_NO_ZEROES 2U
#define NBD_FLAG_READ_ONLY 0x0002U
#define NBD_FLAG_SEND_FLUSH 0x0004U
#define NBD_FLAG_SEND_FUA 0x0008U
#define NBD_FLAG_CAN_MULTI_CONN 0x0100U
#define NBD_CMD_READ 0U
#define NBD_CMD_WRITE 1U
#define NBD_CMD_DISC 2U
#define NBD_CMD_FLUSH 3U
#define NBD_CMD_FLAG_FUA 1U
#define REQUEST_BYTES 28U
#define REPLY_BYTES 16U

/* Limits of this program. */
#define QUEUE_DEPTH_MAX 4096U
#define CONNECTIONS_MAX 256U
#define BLOCK_BYTES_MAX (UINT32_C(32) << 20)
#define RECEIVE_BYTES (UINT32_C(256) << 10)
#define IOVECS_PER_SEND 1024U
#define OPTION_REPLY_BYTES_MAX 65536U
#define OPTION_REPLIES_MAX 64U
#define ERRORS_SHOWN 10U
#define ERRORS_MAX 1000U
#define EVENTS_PER_WAIT 64
#define RANDOM_POOL_BYTES (UINT32_C(1) << 20)

/* Log-linear histogram of nanoseconds: 64 steps per power of two, so a value is known within 1.6 %. */
#define HIST_STEP_BITS 6U
#define HIST_STEPS (1U << HIST_STEP_BITS)
#define HIST_OCTAVES 38U
#define HIST_BUCKETS (HIST_STEPS * (HIST_OCTAVES + 1U))

enum exit_status { EXIT_IO = 1, EXIT_USAGE = 2, EXIT_PROTOCOL = 3 };

enum mode { MODE_RANDWRITE, MODE_RANDREAD, MODE_SEQWRITE, MODE_SEQREAD, MODE_RANDRW };

static const char *const mode_names[] = {"randwrite", "randread", "seqwrite", "seqread", "randrw"};

struct histogram {
    uint64_t counts[HIST_BUCKETS]; /* requests per bucket */
    uint64_t total;                /* requests recorded */
    uint64_t sum_ns;               /* sum of all recorded times */
    uint64_t min_ns;               /* smallest recorded time */
    uint64_t max_ns;               /* largest recorded time */
};

struct slot {
    uint8_t header[REQUEST_BYTES]; /* request header as it goes onto the wire */
    uint16_t command;              /* NBD_CMD_* of the request in flight */
    bool active;                   /* a request is in flight */
    bool sent;                     /* the kernel has taken the whole request */
    uint32_t length_bytes;         /* bytes read or written, 0 for a flush */
    uint32_t sequence;             /* verify: pattern written, or expected by this read (0: unknown) */
    uint32_t generation;           /* counts uses of the slot, part of the handle */
    uint64_t block;                /* block number within the span */
    uint64_t start_ns;             /* when the request was queued; --rate: when it was due */
    uint8_t *buffer;               /* payload to send; verify: also where a read's payload goes */
};

struct connection {
    int fd;                        /* the socket */
    uint32_t index;                /* number of the connection */
    uint16_t export_flags;         /* transmission flags the server sent */
    uint64_t export_bytes;         /* size of the export */
    struct slot *slots;            /* queue_depth slots */
    uint32_t *free_slots;          /* stack of free slot numbers */
    uint32_t free_count;           /* entries on the stack */
    struct iovec *out;             /* queued output, at most two entries an active slot */
    uint32_t *out_slot;            /* slot number each output entry belongs to */
    uint32_t out_head;             /* first entry not yet sent completely */
    uint32_t out_tail;             /* one past the last entry */
    bool want_out;                 /* epoll is asked for writability */
    uint8_t *in;                   /* receive buffer */
    uint32_t in_used;              /* bytes of an incomplete reply header kept in it */
    struct slot *payload_slot;     /* read whose payload is arriving, or NULL */
    uint32_t payload_left;         /* bytes of it still to come */
    uint64_t writes_since_flush;   /* for --flush-every */
    uint64_t due_ns;               /* with --rate: when the next request has to go out */
};

struct options {
    enum mode mode;                /* access pattern */
    const char *unix_path;         /* Unix socket, or NULL for TCP */
    const char *host;              /* TCP host */
    const char *port;              /* TCP port */
    const char *export_name;       /* NBD export name */
    uint32_t block_bytes;          /* size of a request */
    uint32_t queue_depth;          /* requests in flight on each connection */
    uint32_t connections;          /* connections opened */
    uint32_t read_percent;         /* share of reads with randrw */
    double seconds;                /* measured time; 0: until `requests` */
    double warmup_seconds;         /* time not recorded at the start */
    uint64_t requests;             /* stop after so many; 0: until `seconds` */
    uint64_t span_bytes;           /* part of the export used; 0: all */
    uint64_t seed;                 /* of the random offsets and patterns */
    uint64_t flush_every;          /* a flush after so many writes of a connection; 0: none */
    uint64_t interval_ns;          /* between two requests of a connection; 0: as fast as replies come */
    uint32_t timeout_seconds;      /* give up after so long without a reply */
    bool fua;                      /* writes carry FUA */
    bool verify;                   /* patterns, and read back */
    bool gate;                     /* wait for stdin before and after the run */
};

enum phase { PHASE_LOAD, PHASE_DRAIN, PHASE_READBACK };

struct run {
    struct options options;        /* from the command line */
    struct connection *connections; /* options.connections of them */
    struct histogram data;         /* reads and writes */
    struct histogram flush;        /* flushes */
    enum phase phase;              /* what refill does */
    int epoll_fd;                  /* -1 with one connection */
    uint64_t blocks;               /* blocks in the span */
    uint64_t random_state[2];      /* xoroshiro128+ */
    uint64_t cursor;               /* next block of sequential access and of the read-back */
    uint32_t next_sequence;        /* verify: sequence of the next write */
    uint32_t *shadow;              /* verify: sequence each block holds, 0 unknown */
    uint8_t *busy;                 /* verify: a request on the block is in flight */
    uint8_t *random_pool;          /* payloads when not verifying */
    uint64_t in_flight;            /* active slots of all connections */
    uint64_t issued;               /* data requests issued, warm-up included */
    uint64_t completed;            /* data requests completed, warm-up included */
    uint64_t reads;                /* recorded reads */
    uint64_t writes;               /* recorded writes */
    uint64_t errors;               /* replies with an error */
    uint64_t verified_blocks;      /* blocks compared */
    uint64_t verify_errors;        /* blocks that differed */
    uint64_t now_ns;               /* clock, read once per batch */
    uint64_t measure_ns;           /* when recording starts */
    uint64_t deadline_ns;          /* when no more is issued; 0: never */
    uint64_t first_ns;             /* clock when the first completion was recorded, minus its batch */
    uint64_t last_ns;              /* clock of the last recorded completion */
};

__attribute__((noreturn, format(printf, 2, 3))) static void die(enum exit_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("nbdload: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit((int)status);
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (memory == NULL)
        die(EXIT_USAGE, "out of memory (%zu x %zu bytes)", count, size);
    return memory;
}

static uint64_t clock_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * UINT64_C(1000000000) + (uint64_t)time.tv_nsec;
}

/* ---- bytes ------------------------------------------------------------------------------------------------- */

static void put_be16(uint8_t *at, uint16_t value) { value = htobe16(value); memcpy(at, &value, sizeof value); }
static void put_be32(uint8_t *at, uint32_t value) { value = htobe32(value); memcpy(at, &value, sizeof value); }
static void put_be64(uint8_t *at, uint64_t value) { value = htobe64(value); memcpy(at, &value, sizeof value); }
static uint16_t get_be16(const uint8_t *at) { uint16_t value; memcpy(&value, at, sizeof value); return be16toh(value); }
static uint32_t get_be32(const uint8_t *at) { uint32_t value; memcpy(&value, at, sizeof value); return be32toh(value); }
static uint64_t get_be64(const uint8_t *at) { uint64_t value; memcpy(&value, at, sizeof value); return be64toh(value); }

/* ---- histogram --------------------------------------------------------------------------------------------- */

static void histogram_record(struct histogram *histogram, uint64_t value_ns)
{
    uint32_t bucket;
    if (value_ns < HIST_STEPS) {
        bucket = (uint32_t)value_ns;
    } else {
        uint32_t shift = 63U - (uint32_t)__builtin_clzll(value_ns) - HIST_STEP_BITS;
        bucket = (shift + 1U) * HIST_STEPS + (uint32_t)((value_ns >> shift) - HIST_STEPS);
        if (bucket >= HIST_BUCKETS)
            bucket = HIST_BUCKETS - 1U;
    }
    histogram->counts[bucket]++;
    if (histogram->total == 0 || value_ns < histogram->min_ns)
        histogram->min_ns = value_ns;
    if (value_ns > histogram->max_ns)
        histogram->max_ns = value_ns;
    histogram->total++;
    histogram->sum_ns += value_ns;
}

/* The middle of the bucket in which the given share of all requests is reached, in microseconds. */
static double histogram_quantile_us(const struct histogram *histogram, double share)
{
    uint64_t rank = (uint64_t)(share * (double)histogram->total);
    uint64_t seen = 0;
    if (rank >= histogram->total)
        return (double)histogram->max_ns / 1e3;
    for (uint32_t bucket = 0; bucket < HIST_BUCKETS; bucket++) {
        seen += histogram->counts[bucket];
        if (seen > rank) {
            uint32_t shift = bucket < HIST_STEPS ? 0 : bucket / HIST_STEPS - 1U;
            uint64_t low = bucket < HIST_STEPS ? bucket : (uint64_t)(bucket % HIST_STEPS + HIST_STEPS) << shift;
            double middle_ns = (double)low + (double)((UINT64_C(1) << shift) - 1U) / 2.0;
            if (middle_ns > (double)histogram->max_ns)
                middle_ns = (double)histogram->max_ns;
            if (middle_ns < (double)histogram->min_ns)
                middle_ns = (double)histogram->min_ns;
            return middle_ns / 1e3;
        }
    }
    return (double)histogram->max_ns / 1e3;
}

static void histogram_print(const char *name, const struct histogram *histogram)
{
    double mean_us = histogram->total ? (double)histogram->sum_ns / (double)histogram->total / 1e3 : 0.0;
    printf("\"%s\": {\"min\": %.2f, \"mean\": %.2f, \"p50\": %.2f, \"p99\": %.2f, \"p999\": %.2f, \"max\": %.2f}",
           name, (double)histogram->min_ns / 1e3, mean_us, histogram_quantile_us(histogram, 0.50),
           histogram_quantile_us(histogram, 0.99), histogram_quantile_us(histogram, 0.999),
           (double)histogram->max_ns / 1e3);
}

/* ---- random numbers and patterns --------------------------------------------------------------------------- */

static uint64_t mix64(uint64_t value)
{
    value += UINT64_C(0x9e3779b97f4a7c15);
    value = (value ^ (value >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ (value >> 27)) * UINT64_C(0x94d049bb133111eb);
    return value ^ (value >> 31);
}

static uint64_t rotate_left(uint64_t value, int bits) { return (value << bits) | (value >> (64 - bits)); }

static uint64_t random_next(struct run *run)
{
    uint64_t a = run->random_state[0], b = run->random_state[1], result = a + b;
    b ^= a;
    run->random_state[0] = rotate_left(a, 24) ^ b ^ (b << 16);
    run->random_state[1] = rotate_left(b, 37);
    return result;
}

static uint64_t random_below(struct run *run, uint64_t limit)
{
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)(((wide)random_next(run) * limit) >> 64);
}

/* A block's pattern: its offset, its sequence, the seed, then words that follow from the three. */
static void pattern_fill(const struct run *run, uint8_t *buffer, uint64_t offset_bytes, uint32_t sequence)
{
    uint64_t word = mix64(mix64(offset_bytes ^ run->options.seed) + sequence);
    uint32_t words = run->options.block_bytes / 8U;
    put_be64(buffer, offset_bytes);
    put_be64(buffer + 8, sequence);
    put_be64(buffer + 16, run->options.seed);
    for (uint32_t i = 3; i < words; i++) {
        word = word * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        memcpy(buffer + (size_t)i * 8U, &word, sizeof word);
    }
}

static bool pattern_matches(const struct run *run, const uint8_t *buffer, uint64_t offset_bytes, uint32_t sequence,
                            uint32_t *bad_byte)
{
    uint64_t word = mix64(mix64(offset_bytes ^ run->options.seed) + sequence), found;
    uint32_t words = run->options.block_bytes / 8U;
    *bad_byte = 0;
    if (get_be64(buffer) != offset_bytes || get_be64(buffer + 8) != sequence
        || get_be64(buffer + 16) != run->options.seed)
        return false;
    for (uint32_t i = 3; i < words; i++) {
        word = word * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        memcpy(&found, buffer + (size_t)i * 8U, sizeof found);
        if (found != word) {
            *bad_byte = i * 8U;
            return false;
        }
    }
    return true;
}

/* ---- connecting and negotiating ---------------------------------------------------------------------------- */

static void write_fully(int fd, const uint8_t *bytes, size_t length)
{
    while (length > 0) {
        ssize_t sent = send(fd, bytes, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            die(EXIT_PROTOCOL, "send during negotiation: %s", strerror(errno));
        bytes += sent;
        length -= (size_t)sent;
    }
}

static void read_fully(int fd, uint8_t *bytes, size_t length, const char *what)
{
    while (length > 0) {
        ssize_t got = recv(fd, bytes, length, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got == 0)
            die(EXIT_PROTOCOL, "server closed the connection while we waited for %s", what);
        if (got < 0)
            die(EXIT_PROTOCOL, "waiting for %s: %s", what,
                errno == EAGAIN ? "no answer within the timeout" : strerror(errno));
        bytes += got;
        length -= (size_t)got;
    }
}

static int connect_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;
    if (strlen(path) >= sizeof address.sun_path)
        die(EXIT_USAGE, "socket path is longer than %zu bytes: %s", sizeof address.sun_path - 1, path);
    memcpy(address.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die(EXIT_PROTOCOL, "socket: %s", strerror(errno));
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) != 0)
        die(EXIT_PROTOCOL, "connect to %s: %s", path, strerror(errno));
    return fd;
}

static int connect_tcp(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    int failure = getaddrinfo(host, port, &hints, &found), fd = -1, one = 1, saved = 0;
    if (failure != 0)
        die(EXIT_PROTOCOL, "%s:%s: %s", host, port, gai_strerror(failure));
    for (struct addrinfo *each = found; each != NULL; each = each->ai_next) {
        fd = socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, each->ai_addr, each->ai_addrlen) == 0)
            break;
        saved = errno;
        if (fd >= 0)
            close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    if (fd < 0)
        die(EXIT_PROTOCOL, "connect to %s:%s: %s", host, port, strerror(saved));
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0)
        die(EXIT_PROTOCOL, "TCP_NODELAY: %s", strerror(errno));
    return fd;
}

static const char *option_error_name(uint32_t reply)
{
    switch (reply) {
    case 0x80000001: return "option not supported";
    case 0x80000002: return "refused by the server's policy";
    case 0x80000003: return "invalid request";
    case 0x80000004: return "not supported on this platform";
    case 0x80000005: return "TLS required";
    case 0x80000006: return "unknown export";
    case 0x80000007: return "server is shutting down";
    case 0x80000008: return "block size information required";
    case 0x80000009: return "request too big";
    default: return "unknown error";
    }
}

static void negotiate(struct connection *connection, const char *export_name)
{
    uint8_t hello[18], answer[4], head[20], body[OPTION_REPLY_BYTES_MAX];
    size_t name_length = strlen(export_name);
    uint8_t request[16 + 4 + 4096 + 2 + 2];
    bool seen_export = false;
    uint16_t server_flags;

    if (name_length > 4096)
        die(EXIT_USAGE, "export name is longer than 4096 bytes");
    read_fully(connection->fd, hello, sizeof hello, "the server's greeting");
    if (get_be64(hello) != NBD_MAGIC || get_be64(hello + 8) != NBD_OPTS_MAGIC)
        die(EXIT_PROTOCOL, "the server does not speak NBD newstyle");
    server_flags = get_be16(hello + 16);
    if (!(server_flags & NBD_FLAG_FIXED_NEWSTYLE))
        die(EXIT_PROTOCOL, "the server does not offer the fixed newstyle handshake");
    put_be32(answer, server_flags & (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES));
    write_fully(connection->fd, answer, sizeof answer);

    put_be64(request, NBD_OPTS_MAGIC);
    put_be32(request + 8, NBD_OPT_GO);
    put_be32(request + 12, (uint32_t)(4 + name_length + 2 + 2));
    put_be32(request + 16, (uint32_t)name_length);
    memcpy(request + 20, export_name, name_length);
    put_be16(request + 20 + name_length, 1);
    put_be16(request + 22 + name_length, NBD_INFO_BLOCK_SIZE);
    write_fully(connection->fd, request, 24 + name_length);

    for (unsigned replies = 0; replies < OPTION_REPLIES_MAX; replies++) {
        uint32_t type, length;
        read_fully(connection->fd, head, sizeof head, "the answer to NBD_OPT_GO");
        type = get_be32(head + 12);
        length = get_be32(head + 16);
        if (get_be64(head) != NBD_REP_MAGIC || get_be32(head + 8) != NBD_OPT_GO)
            die(EXIT_PROTOCOL, "malformed answer to NBD_OPT_GO");
        if (length >= sizeof body)
            die(EXIT_PROTOCOL, "answer to NBD_OPT_GO is %" PRIu32 " bytes long", length);
        read_fully(connection->fd, body, length, "the answer to NBD_OPT_GO");
        if (type & NBD_REP_FLAG_ERROR) {
            body[length] = 0;
            die(EXIT_PROTOCOL, "the server refused export \"%s\": %s%s%s", export_name, option_error_name(type),
                length ? ": " : "", (const char *)body);
        }
        if (type == NBD_REP_ACK) {
            if (!seen_export)
                die(EXIT_PROTOCOL, "the server acknowledged NBD_OPT_GO without export information");
            return;
        }
        if (type != NBD_REP_INFO || length < 2)
            die(EXIT_PROTOCOL, "unexpected reply type %" PRIu32 " to NBD_OPT_GO", type);
        if (get_be16(body) == NBD_INFO_EXPORT) {
            if (length != 12)
                die(EXIT_PROTOCOL, "export information is %" PRIu32 " bytes long, not 12", length);
            connection->export_bytes = get_be64(body + 2);
            connection->export_flags = get_be16(body + 10);
            seen_export = true;
        }
    }
    die(EXIT_PROTOCOL, "more than %u replies to NBD_OPT_GO", OPTION_REPLIES_MAX);
}

static void connection_open(struct run *run, struct connection *connection, uint32_t index)
{
    const struct options *options = &run->options;
    struct timeval timeout = {.tv_sec = (time_t)options->timeout_seconds};
    connection->index = index;
    connection->fd = options->unix_path ? connect_unix(options->unix_path)
                                        : connect_tcp(options->host, options->port);
    if (setsockopt(connection->fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) != 0)
        die(EXIT_PROTOCOL, "SO_RCVTIMEO: %s", strerror(errno));
    negotiate(connection, options->export_name);

    connection->slots = allocate(options->queue_depth, sizeof *connection->slots);
    connection->free_slots = allocate(options->queue_depth, sizeof *connection->free_slots);
    connection->out = allocate((size_t)options->queue_depth * 4U, sizeof *connection->out);
    connection->out_slot = allocate((size_t)options->queue_depth * 4U, sizeof *connection->out_slot);
    connection->in = allocate(RECEIVE_BYTES, 1);
    for (uint32_t i = 0; i < options->queue_depth; i++) {
        struct slot *slot = &connection->slots[i];
        connection->free_slots[connection->free_count++] = options->queue_depth - 1U - i;
        if (options->verify)
            slot->buffer = allocate(options->block_bytes, 1);
        else
            slot->buffer = run->random_pool + (mix64(i) % RANDOM_POOL_BYTES & ~UINT64_C(63));
    }
    if (run->epoll_fd >= 0) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = index};
        if (epoll_ctl(run->epoll_fd, EPOLL_CTL_ADD, connection->fd, &event) != 0)
            die(EXIT_PROTOCOL, "epoll_ctl: %s", strerror(errno));
    }
}

/* ---- issuing ----------------------------------------------------------------------------------------------- */

static void queue_bytes(struct run *run, struct connection *connection, uint32_t slot, uint8_t *bytes, size_t length)
{
    uint32_t capacity = run->options.queue_depth * 4U;
    if (connection->out_tail == capacity) {
        uint32_t live = connection->out_tail - connection->out_head;
        memmove(connection->out, connection->out + connection->out_head, live * sizeof *connection->out);
        memmove(connection->out_slot, connection->out_slot + connection->out_head,
                live * sizeof *connection->out_slot);
        connection->out_head = 0;
        connection->out_tail = live;
    }
    connection->out[connection->out_tail] = (struct iovec){.iov_base = bytes, .iov_len = length};
    connection->out_slot[connection->out_tail++] = slot;
}

/* Requests go out by the clock, and not when a slot becomes free. */
static bool is_paced(const struct run *run)
{
    return run->options.interval_ns != 0 && run->phase == PHASE_LOAD;
}

static void issue(struct run *run, struct connection *connection, uint16_t command, uint64_t block)
{
    uint32_t number = connection->free_slots[--connection->free_count];
    struct slot *slot = &connection->slots[number];
    bool data = command != NBD_CMD_FLUSH;
    uint64_t offset_bytes = data ? block * run->options.block_bytes : 0;
    uint16_t flags = command == NBD_CMD_WRITE && run->options.fua ? NBD_CMD_FLAG_FUA : 0;

    slot->command = command;
    slot->active = true;
    slot->sent = false;
    slot->length_bytes = data ? run->options.block_bytes : 0;
    slot->generation++;
    slot->block = block;
    slot->start_ns = run->now_ns;
    if (is_paced(run)) {
        slot->start_ns = connection->due_ns;
        connection->due_ns += run->options.interval_ns;
    }
    if (run->options.verify && data) {
        run->busy[block] = 1;
        if (command == NBD_CMD_WRITE) {
            slot->sequence = run->next_sequence++;
            if (run->next_sequence == 0)
                run->next_sequence = 1;
            pattern_fill(run, slot->buffer, offset_bytes, slot->sequence);
        } else {
            slot->sequence = run->shadow[block];
        }
    }
    put_be32(slot->header, NBD_REQUEST_MAGIC);
    put_be16(slot->header + 4, flags);
    put_be16(slot->header + 6, command);
    put_be64(slot->header + 8, (uint64_t)slot->generation << 32 | number);
    put_be64(slot->header + 16, offset_bytes);
    put_be32(slot->header + 24, slot->length_bytes);
    queue_bytes(run, connection, number, slot->header, REQUEST_BYTES);
    if (command == NBD_CMD_WRITE)
        queue_bytes(run, connection, number, slot->buffer, slot->length_bytes);
    run->in_flight++;
    if (data && run->phase == PHASE_LOAD)
        run->issued++;
}

/* With --verify: the first block from `block` on that no request is using. False if all of them are in use. */
static bool find_idle_block(const struct run *run, uint64_t *block)
{
    for (uint64_t tries = 0; tries <= run->in_flight && tries < run->blocks; tries++) {
        if (!run->busy[*block])
            return true;
        *block = *block + 1 == run->blocks ? 0 : *block + 1;
    }
    return false;
}

static bool issue_next(struct run *run, struct connection *connection)
{
    const struct options *options = &run->options;
    uint16_t command;
    uint64_t block;

    if (run->phase == PHASE_READBACK) {
        while (run->cursor < run->blocks && run->shadow[run->cursor] == 0)
            run->cursor++;
        if (run->cursor == run->blocks)
            return false;
        issue(run, connection, NBD_CMD_READ, run->cursor++);
        return true;
    }
    if (run->phase == PHASE_DRAIN)
        return false;
    if (options->flush_every && connection->writes_since_flush >= options->flush_every) {
        connection->writes_since_flush = 0;
        issue(run, connection, NBD_CMD_FLUSH, 0);
        return true;
    }
    if (options->requests && run->issued >= options->requests)
        return false;
    if (options->mode == MODE_SEQWRITE || options->mode == MODE_SEQREAD) {
        block = run->cursor;
        run->cursor = run->cursor + 1 == run->blocks ? 0 : run->cursor + 1;
    } else {
        block = random_below(run, run->blocks);
    }
    if (options->verify && !find_idle_block(run, &block))
        return false;
    switch (options->mode) {
    case MODE_RANDREAD:
    case MODE_SEQREAD:
        command = NBD_CMD_READ;
        break;
    case MODE_RANDRW:
        command = NBD_CMD_WRITE;
        if (random_below(run, 100) < options->read_percent)
            command = NBD_CMD_READ;
        break;
    case MODE_RANDWRITE:
    case MODE_SEQWRITE:
    default:
        command = NBD_CMD_WRITE;
        break;
    }
    if (command == NBD_CMD_WRITE)
        connection->writes_since_flush++;
    issue(run, connection, command, block);
    return true;
}

/* Hands queued output to the kernel; what it does not take now stays queued. */
static void send_queued(struct run *run, struct connection *connection)
{
    while (connection->out_head < connection->out_tail) {
        uint32_t count = connection->out_tail - connection->out_head;
        struct msghdr message = {.msg_iov = connection->out + connection->out_head};
        ssize_t sent;
        size_t left;
        message.msg_iovlen = count < IOVECS_PER_SEND ? count : IOVECS_PER_SEND;
        sent = sendmsg(connection->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        if (sent < 0)
            die(EXIT_PROTOCOL, "connection %" PRIu32 ": send: %s", connection->index, strerror(errno));
        left = (size_t)sent;
        while (left > 0) {
            struct iovec *iovec = &connection->out[connection->out_head];
            struct slot *slot = &connection->slots[connection->out_slot[connection->out_head]];
            if (left < iovec->iov_len) {
                iovec->iov_base = (uint8_t *)iovec->iov_base + left;
                iovec->iov_len -= left;
                break;
            }
            left -= iovec->iov_len;
            if (slot->command != NBD_CMD_WRITE || iovec->iov_base != (void *)slot->header)
                slot->sent = true;
            connection->out_head++;
        }
    }
    if (connection->out_head == connection->out_tail)
        connection->out_head = connection->out_tail = 0;
    if (run->epoll_fd >= 0 && connection->want_out != (connection->out_tail > 0)) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = connection->index};
        connection->want_out = connection->out_tail > 0;
        if (connection->want_out)
            event.events |= EPOLLOUT;
        if (epoll_ctl(run->epoll_fd, EPOLL_CTL_MOD, connection->fd, &event) != 0)
            die(EXIT_PROTOCOL, "epoll_ctl: %s", strerror(errno));
    }
}

static void refill(struct run *run, struct connection *connection)
{
    while (connection->free_count > 0 && !(is_paced(run) && connection->due_ns > run->now_ns)
           && issue_next(run, connection)) {
    }
    send_queued(run, connection);
}

/* ---- completing -------------------------------------------------------------------------------------------- */

static const char *command_name(uint16_t command)
{
    return command == NBD_CMD_READ ? "read" : command == NBD_CMD_WRITE ? "write" : "flush";
}

static void check_block(struct run *run, const struct slot *slot)
{
    uint64_t offset_bytes = slot->block * run->options.block_bytes;
    uint32_t bad_byte;
    if (slot->sequence == 0)
        return;
    run->verified_blocks++;
    if (pattern_matches(run, slot->buffer, offset_bytes, slot->sequence, &bad_byte))
        return;
    run->verify_errors++;
    if (run->verify_errors <= ERRORS_SHOWN)
        fprintf(stderr,
                "nbdload: verify: block at %" PRIu64 " differs from byte %" PRIu32 " on: expected sequence %" PRIu32
                ", found offset %" PRIu64 " sequence %" PRIu64 " seed %" PRIu64 "\n",
                offset_bytes, bad_byte, slot->sequence, get_be64(slot->buffer), get_be64(slot->buffer + 8),
                get_be64(slot->buffer + 16));
}

static void complete(struct run *run, struct connection *connection, struct slot *slot, uint32_t error)
{
    bool data = slot->command != NBD_CMD_FLUSH;
    if (error != 0) {
        run->errors++;
        if (run->errors <= ERRORS_SHOWN)
            fprintf(stderr,
                    "nbdload: connection %" PRIu32 ": %s of %" PRIu32 " bytes at %" PRIu64 ": %s (%" PRIu32 ")\n",
                    connection->index, command_name(slot->command), slot->length_bytes,
                    slot->block * run->options.block_bytes, strerror((int)error), error);
        if (run->errors >= ERRORS_MAX)
            die(EXIT_IO, "giving up after %u I/O errors", ERRORS_MAX);
    }
    if (run->options.verify && data) {
        run->busy[slot->block] = 0;
        if (slot->command == NBD_CMD_WRITE)
            run->shadow[slot->block] = error ? 0 : slot->sequence;
        else if (error == 0)
            check_block(run, slot);
    }
    if (run->phase != PHASE_READBACK) {
        if (data)
            run->completed++;
        if (run->now_ns >= run->measure_ns && error == 0) {
            histogram_record(data ? &run->data : &run->flush, run->now_ns - slot->start_ns);
            run->last_ns = run->now_ns;
            if (slot->command == NBD_CMD_READ)
                run->reads++;
            else if (slot->command == NBD_CMD_WRITE)
                run->writes++;
        }
    }
    slot->active = false;
    run->in_flight--;
    connection->free_slots[connection->free_count++] = (uint32_t)(slot - connection->slots);
}

static void parse_replies(struct run *run, struct connection *connection, uint32_t length)
{
    uint8_t *at = connection->in;
    uint8_t *end = connection->in + length;
    while (at < end) {
        uint64_t handle;
        uint32_t error, number;
        struct slot *slot = connection->payload_slot;
        if (slot != NULL) {
            uint32_t take = connection->payload_left;
            if ((size_t)(end - at) < take)
                take = (uint32_t)(end - at);
            if (run->options.verify)
                memcpy(slot->buffer + (slot->length_bytes - connection->payload_left), at, take);
            at += take;
            connection->payload_left -= take;
            if (connection->payload_left == 0) {
                connection->payload_slot = NULL;
                complete(run, connection, slot, 0);
            }
            continue;
        }
        if ((size_t)(end - at) < REPLY_BYTES)
            break;
        error = get_be32(at + 4);
        handle = get_be64(at + 8);
        number = (uint32_t)handle;
        if (get_be32(at) != NBD_SIMPLE_REPLY_MAGIC)
            die(EXIT_PROTOCOL, "connection %" PRIu32 ": bad reply magic 0x%08" PRIx32, connection->index, get_be32(at));
        if (number >= run->options.queue_depth || !connection->slots[number].active
            || connection->slots[number].generation != (uint32_t)(handle >> 32))
            die(EXIT_PROTOCOL, "connection %" PRIu32 ": reply to a request we did not send (handle 0x%016" PRIx64 ")",
                connection->index, handle);
        slot = &connection->slots[number];
        if (!slot->sent)
            die(EXIT_PROTOCOL, "connection %" PRIu32 ": reply (error %" PRIu32 ") before the request was sent",
                connection->index, error);
        at += REPLY_BYTES;
        if (slot->command == NBD_CMD_READ && error == 0) {
            connection->payload_slot = slot;
            connection->payload_left = slot->length_bytes;
        } else {
            complete(run, connection, slot, error);
        }
    }
    connection->in_used = (uint32_t)(end - at);
    memmove(connection->in, at, connection->in_used);
}

static void receive(struct run *run, struct connection *connection, int flags)
{
    uint32_t used = connection->in_used;
    ssize_t got = recv(connection->fd, connection->in + used, RECEIVE_BYTES - used, flags);
    if (got < 0 && errno == EINTR)
        return;
    if (got < 0 && errno == EAGAIN && (flags & MSG_DONTWAIT))
        return;
    if (got < 0 && errno == EAGAIN)
        die(EXIT_PROTOCOL, "no reply for %" PRIu32 " s with %" PRIu64 " requests in flight",
            run->options.timeout_seconds, run->in_flight);
    if (got < 0)
        die(EXIT_PROTOCOL, "connection %" PRIu32 ": receive: %s", connection->index, strerror(errno));
    if (got == 0)
        die(EXIT_PROTOCOL, "connection %" PRIu32 ": server closed the connection with %" PRIu64 " requests in flight",
            connection->index, run->in_flight);
    run->now_ns = clock_ns();
    parse_replies(run, connection, used + (uint32_t)got);
    if (run->phase == PHASE_LOAD && run->deadline_ns && run->now_ns >= run->deadline_ns)
        run->phase = PHASE_DRAIN;
    refill(run, connection);
}

static void wait_one(struct run *run)
{
    struct connection *connection = &run->connections[0];
    if (connection->out_tail > 0) {
        struct pollfd poll_fd = {.fd = connection->fd, .events = POLLIN | POLLOUT};
        int ready = poll(&poll_fd, 1, (int)run->options.timeout_seconds * 1000);
        if (ready == 0)
            die(EXIT_PROTOCOL, "the server neither reads nor replies for %" PRIu32 " s", run->options.timeout_seconds);
        if (poll_fd.revents & POLLOUT)
            send_queued(run, connection);
        if (!(poll_fd.revents & (POLLIN | POLLERR | POLLHUP)))
            return;
        receive(run, connection, MSG_DONTWAIT);
    } else {
        receive(run, connection, 0);
    }
}

static void wait_many(struct run *run)
{
    struct epoll_event events[EVENTS_PER_WAIT];
    int ready = epoll_wait(run->epoll_fd, events, EVENTS_PER_WAIT, (int)run->options.timeout_seconds * 1000);
    if (ready == 0)
        die(EXIT_PROTOCOL, "no reply for %" PRIu32 " s with %" PRIu64 " requests in flight",
            run->options.timeout_seconds, run->in_flight);
    for (int i = 0; i < ready; i++) {
        struct connection *connection = &run->connections[events[i].data.u32];
        if (events[i].events & EPOLLOUT)
            send_queued(run, connection);
        if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))
            receive(run, connection, MSG_DONTWAIT);
    }
}

/* How long nothing is to be sent; the timeout when only a reply can change that. */
static uint64_t paced_wait_ns(const struct run *run)
{
    uint64_t wait_ns = (uint64_t)run->options.timeout_seconds * UINT64_C(1000000000);
    for (uint32_t i = 0; i < run->options.connections; i++) {
        const struct connection *connection = &run->connections[i];
        uint64_t left_ns = connection->due_ns - run->now_ns;
        if (connection->free_count > 0 && connection->due_ns > run->now_ns && left_ns < wait_ns)
            wait_ns = left_ns;
    }
    return wait_ns;
}

static bool is_over(const struct run *run)
{
    return (run->deadline_ns && run->now_ns >= run->deadline_ns)
           || (run->options.requests && run->issued >= run->options.requests);
}

/* With --rate: until the last request has gone out. */
static void run_paced(struct run *run)
{
    uint32_t count = run->options.connections;
    struct pollfd *polled = allocate(count, sizeof *polled);
    for (uint32_t i = 0; i < count; i++)
        run->connections[i].due_ns = run->now_ns + run->options.interval_ns * i / count;
    for (;;) {
        uint64_t wait_ns;
        struct timespec wait;
        int ready;
        for (uint32_t i = 0; i < count; i++)
            refill(run, &run->connections[i]);
        if (is_over(run))
            break;
        for (uint32_t i = 0; i < count; i++)
            polled[i] = (struct pollfd){.fd = run->connections[i].fd,
                                        .events = run->connections[i].out_tail > 0 ? POLLIN | POLLOUT : POLLIN};
        wait_ns = paced_wait_ns(run);
        wait = (struct timespec){.tv_sec = (time_t)(wait_ns / UINT64_C(1000000000)),
                                 .tv_nsec = (long)(wait_ns % UINT64_C(1000000000))};
        ready = ppoll(polled, count, &wait, NULL);
        if (ready < 0 && errno != EINTR)
            die(EXIT_PROTOCOL, "ppoll: %s", strerror(errno));
        run->now_ns = clock_ns();
        for (uint32_t i = 0; i < count && ready > 0; i++)
            if (polled[i].revents & (POLLIN | POLLERR | POLLHUP))
                receive(run, &run->connections[i], MSG_DONTWAIT);
    }
    run->phase = PHASE_DRAIN;
    free(polled);
}

static void run_until_idle(struct run *run)
{
    run->now_ns = clock_ns();
    if (is_paced(run))
        run_paced(run);
    for (uint32_t i = 0; i < run->options.connections; i++)
        refill(run, &run->connections[i]);
    while (run->in_flight > 0) {
        if (run->epoll_fd >= 0)
            wait_many(run);
        else
            wait_one(run);
    }
}

/* ---- command line ------------------------------------------------------------------------------------------ */

static const char usage_text[] =
    "usage: nbdload [options] URI\n"
    "  URI                  nbd+unix:///EXPORT?socket=PATH or nbd://HOST[:PORT]/EXPORT\n"
    "  --unix PATH | --host H --port P, --export NAME   instead of a URI\n"
    "  --mode M             randwrite, randread, seqwrite, seqread, randrw (default randwrite)\n"
    "  --bs SIZE            request size, k/m/g suffixes (default 4k)\n"
    "  --qd N               requests in flight on each connection (default 32)\n"
    "  --connections N      (default 1)\n"
    "  --seconds S | --requests N   how long (default 3 s; both: whichever comes first)\n"
    "  --warmup S           not recorded before the measured time (default 0)\n"
    "  --span SIZE          use only the first SIZE bytes of the export\n"
    "  --seed N             of offsets and patterns (default 1)\n"
    "  --read-percent N     share of reads with randrw (default 50)\n"
    "  --flush-every N      a flush after every N writes of a connection\n"
    "  --rate N             N requests a second on each connection, by the clock; latencies count from the moment a\n"
    "                       request was due, so one that had to wait for a free slot has waited\n"
    "  --fua                writes carry FUA\n"
    "  --verify             write patterns, check reads, read everything written back at the end\n"
    "  --timeout S          give up after S seconds without a reply (default 30)\n"
    "  --gate               print \"ready\" and wait for a line on stdin before the run, and for another before\n"
    "                       disconnecting (so that a caller can sample the server's CPU time around the run)\n"
    "Prints one JSON line. Exit status: 0 good, 1 I/O or verify error, 2 usage, 3 connection or protocol failure.\n";

static uint64_t parse_number(const char *name, const char *text, bool suffix, uint64_t minimum, uint64_t maximum)
{
    char *end = NULL;
    unsigned long long value;
    unsigned shift = 0;
    errno = 0;
    value = strtoull(text, &end, 0);
    if (suffix && end != text && *end != 0) {
        switch (*end) {
        case 'k': case 'K': shift = 10; break;
        case 'm': case 'M': shift = 20; break;
        case 'g': case 'G': shift = 30; break;
        case 't': case 'T': shift = 40; break;
        default: break;
        }
        if (shift)
            end++;
    }
    if (end == text || *end != 0 || *text == '-' || errno || value > (UINT64_MAX >> shift)
        || (value << shift) < minimum || (value << shift) > maximum)
        die(EXIT_USAGE, "%s: \"%s\" is not a number from %" PRIu64 " to %" PRIu64, name, text, minimum, maximum);
    return (uint64_t)value << shift;
}

static double parse_seconds(const char *name, const char *text)
{
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != 0 || !(value >= 0.0) || value > 1e6)
        die(EXIT_USAGE, "%s: \"%s\" is not a number of seconds", name, text);
    return value;
}

static int hex_digit(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    digit = (char)(digit | 0x20);
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

static void percent_decode(char *text)
{
    char *to = text;
    for (; *text != 0; text++) {
        if (*text == '%' && hex_digit(text[1]) >= 0 && hex_digit(text[2]) >= 0) {
            *to++ = (char)(hex_digit(text[1]) * 16 + hex_digit(text[2]));
            text += 2;
        } else {
            *to++ = *text;
        }
    }
    *to = 0;
}

/* Splits the URI in place. */
static void parse_uri(struct options *options, char *uri)
{
    static const char unix_prefix[] = "nbd+unix://", tcp_prefix[] = "nbd://";
    char *name, *query;
    if (strncmp(uri, unix_prefix, sizeof unix_prefix - 1) == 0) {
        name = uri + sizeof unix_prefix - 1;
        query = strchr(name, '?');
        if (query == NULL || strncmp(query + 1, "socket=", 7) != 0)
            die(EXIT_USAGE, "URI has no ?socket=PATH: %s", uri);
        *query = 0;
        query += 8;
        percent_decode(query);
        options->unix_path = query;
        name += *name == '/';
    } else if (strncmp(uri, tcp_prefix, sizeof tcp_prefix - 1) == 0) {
        char *host = uri + sizeof tcp_prefix - 1, *colon;
        name = strchr(host, '/');
        if (name != NULL)
            *name++ = 0;
        else
            name = host + strlen(host);
        if (*host == '[') {
            char *bracket = strchr(host, ']');
            if (bracket == NULL)
                die(EXIT_USAGE, "URI has an unclosed [");
            *bracket = 0;
            colon = bracket[1] == ':' ? bracket + 1 : NULL;
            host++;
        } else {
            colon = strrchr(host, ':');
        }
        if (colon != NULL) {
            *colon = 0;
            options->port = colon + 1;
        }
        options->host = host;
    } else {
        die(EXIT_USAGE, "not an NBD URI (nbd+unix:// or nbd://): %s", uri);
    }
    percent_decode(name);
    options->export_name = name;
}

enum option_key {
    KEY_UNIX = 256, KEY_HOST, KEY_PORT, KEY_EXPORT, KEY_MODE, KEY_BS, KEY_QD, KEY_CONNECTIONS, KEY_SECONDS,
    KEY_REQUESTS, KEY_WARMUP, KEY_SPAN, KEY_SEED, KEY_READ_PERCENT, KEY_FLUSH_EVERY, KEY_FUA, KEY_VERIFY,
    KEY_TIMEOUT, KEY_GATE, KEY_RATE, KEY_HELP
};

static void parse_options(struct options *options, int argc, char **argv)
{
    static const struct option table[] = {
        {"unix", required_argument, NULL, KEY_UNIX}, {"host", required_argument, NULL, KEY_HOST},
        {"port", required_argument, NULL, KEY_PORT}, {"export", required_argument, NULL, KEY_EXPORT},
        {"mode", required_argument, NULL, KEY_MODE}, {"bs", required_argument, NULL, KEY_BS},
        {"qd", required_argument, NULL, KEY_QD}, {"connections", required_argument, NULL, KEY_CONNECTIONS},
        {"seconds", required_argument, NULL, KEY_SECONDS}, {"requests", required_argument, NULL, KEY_REQUESTS},
        {"warmup", required_argument, NULL, KEY_WARMUP}, {"span", required_argument, NULL, KEY_SPAN},
        {"seed", required_argument, NULL, KEY_SEED}, {"read-percent", required_argument, NULL, KEY_READ_PERCENT},
        {"flush-every", required_argument, NULL, KEY_FLUSH_EVERY}, {"fua", no_argument, NULL, KEY_FUA},
        {"verify", no_argument, NULL, KEY_VERIFY}, {"timeout", required_argument, NULL, KEY_TIMEOUT},
        {"gate", no_argument, NULL, KEY_GATE}, {"rate", required_argument, NULL, KEY_RATE},
        {"help", no_argument, NULL, KEY_HELP}, {NULL, 0, NULL, 0}};
    int key;
    *options = (struct options){.port = "10809", .export_name = "", .block_bytes = 4096, .queue_depth = 32,
                                .connections = 1, .read_percent = 50, .seed = 1, .timeout_seconds = 30};
    while ((key = getopt_long(argc, argv, "h", table, NULL)) != -1) {
        switch (key) {
        case KEY_UNIX: options->unix_path = optarg; break;
        case KEY_HOST: options->host = optarg; break;
        case KEY_PORT: options->port = optarg; break;
        case KEY_EXPORT: options->export_name = optarg; break;
        case KEY_MODE: {
            unsigned mode = 0;
            while (mode <= MODE_RANDRW && strcmp(optarg, mode_names[mode]) != 0)
                mode++;
            if (mode > MODE_RANDRW)
                die(EXIT_USAGE, "--mode: \"%s\" is none of randwrite, randread, seqwrite, seqread, randrw", optarg);
            options->mode = (enum mode)mode;
            break;
        }
        case KEY_BS: options->block_bytes = (uint32_t)parse_number("--bs", optarg, true, 1, BLOCK_BYTES_MAX); break;
        case KEY_QD: options->queue_depth = (uint32_t)parse_number("--qd", optarg, false, 1, QUEUE_DEPTH_MAX); break;
        case KEY_CONNECTIONS:
            options->connections = (uint32_t)parse_number("--connections", optarg, false, 1, CONNECTIONS_MAX);
            break;
        case KEY_SECONDS: options->seconds = parse_seconds("--seconds", optarg); break;
        case KEY_REQUESTS: options->requests = parse_number("--requests", optarg, true, 1, UINT64_MAX); break;
        case KEY_WARMUP: options->warmup_seconds = parse_seconds("--warmup", optarg); break;
        case KEY_SPAN: options->span_bytes = parse_number("--span", optarg, true, 1, UINT64_MAX); break;
        case KEY_SEED: options->seed = parse_number("--seed", optarg, false, 0, UINT64_MAX); break;
        case KEY_READ_PERCENT:
            options->read_percent = (uint32_t)parse_number("--read-percent", optarg, false, 0, 100);
            break;
        case KEY_FLUSH_EVERY: options->flush_every = parse_number("--flush-every", optarg, false, 1, UINT64_MAX); break;
        case KEY_FUA: options->fua = true; break;
        case KEY_VERIFY: options->verify = true; break;
        case KEY_TIMEOUT:
            options->timeout_seconds = (uint32_t)parse_number("--timeout", optarg, false, 1, 86400);
            break;
        case KEY_GATE: options->gate = true; break;
        case KEY_RATE:
            options->interval_ns = UINT64_C(1000000000) / parse_number("--rate", optarg, true, 1, 1000000);
            break;
        case 'h':
        case KEY_HELP:
            fputs(usage_text, stdout);
            exit(0);
        default:
            fputs(usage_text, stderr);
            exit(EXIT_USAGE);
        }
    }
    if (optind + 1 == argc)
        parse_uri(options, argv[optind]);
    else if (optind != argc)
        die(EXIT_USAGE, "more than one URI given");
    if (options->unix_path == NULL && options->host == NULL)
        die(EXIT_USAGE, "no server given; see --help");
    if (options->verify && (options->block_bytes < 32 || options->block_bytes % 8))
        die(EXIT_USAGE, "--verify needs a request size that is a multiple of 8, at least 32");
    if (options->seconds <= 0.0 && options->requests == 0)
        options->seconds = 3.0;
}

static void check_export(struct run *run)
{
    const struct options *options = &run->options;
    const struct connection *first = &run->connections[0];
    bool writes = options->mode != MODE_RANDREAD && options->mode != MODE_SEQREAD;
    uint64_t span = options->span_bytes ? options->span_bytes : first->export_bytes;
    if (span > first->export_bytes)
        die(EXIT_USAGE, "--span %" PRIu64 " is more than the export's %" PRIu64 " bytes", span, first->export_bytes);
    for (uint32_t i = 1; i < options->connections; i++)
        if (run->connections[i].export_bytes != first->export_bytes)
            die(EXIT_PROTOCOL, "connections see different export sizes");
    if (writes && (first->export_flags & NBD_FLAG_READ_ONLY))
        die(EXIT_USAGE, "the export is read-only");
    if (options->flush_every && !(first->export_flags & NBD_FLAG_SEND_FLUSH))
        die(EXIT_USAGE, "--flush-every: the export does not offer flush");
    if (options->fua && !(first->export_flags & NBD_FLAG_SEND_FUA))
        die(EXIT_USAGE, "--fua: the export does not offer FUA");
    if (options->connections > 1 && writes && options->flush_every
        && !(first->export_flags & NBD_FLAG_CAN_MULTI_CONN))
        fputs("nbdload: note: the export does not promise coherent caches over several connections\n", stderr);
    run->blocks = span / options->block_bytes;
    if (run->blocks == 0)
        die(EXIT_USAGE, "the span of %" PRIu64 " bytes is smaller than one request", span);
    if (options->verify) {
        run->shadow = allocate(run->blocks, sizeof *run->shadow);
        run->busy = allocate(run->blocks, sizeof *run->busy);
    }
}

static void wait_gate(void)
{
    int byte;
    do {
        byte = getchar();
    } while (byte != EOF && byte != '\n');
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec
           + ((double)usage.ru_utime.tv_usec + (double)usage.ru_stime.tv_usec) / 1e6;
}

static void print_result(const struct run *run, double cpu, uint64_t export_bytes)
{
    const struct options *options = &run->options;
    double seconds = run->last_ns > run->first_ns ? (double)(run->last_ns - run->first_ns) / 1e9 : 0.0;
    double iops = seconds > 0.0 ? (double)run->data.total / seconds : 0.0;
    printf("{\"mode\": \"%s\", \"block_bytes\": %" PRIu32 ", \"queue_depth\": %" PRIu32 ", \"connections\": %" PRIu32
           ", \"export_bytes\": %" PRIu64 ", \"span_bytes\": %" PRIu64 ", \"seconds\": %.4f, ",
           mode_names[options->mode], options->block_bytes, options->queue_depth, options->connections, export_bytes,
           run->blocks * options->block_bytes, seconds);
    printf("\"requests\": %" PRIu64 ", \"requests_total\": %" PRIu64 ", \"reads\": %" PRIu64 ", \"writes\": %" PRIu64
           ", \"flushes\": %" PRIu64 ", \"iops\": %.1f, \"mb_per_s\": %.2f, ",
           run->data.total, run->completed, run->reads, run->writes, run->flush.total, iops,
           iops * (double)options->block_bytes / 1e6);
    histogram_print("latency_us", &run->data);
    fputs(", ", stdout);
    histogram_print("flush_latency_us", &run->flush);
    printf(", \"errors\": %" PRIu64 ", \"verified_blocks\": %" PRIu64 ", \"verify_errors\": %" PRIu64
           ", \"client_cpu_s\": %.4f, \"client_cpu_us_per_op\": %.3f}\n",
           run->errors, run->verified_blocks, run->verify_errors, cpu,
           run->completed ? cpu * 1e6 / (double)run->completed : 0.0);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static struct run run;
    uint8_t bye[REQUEST_BYTES] = {0};
    double cpu;
    size_t pool_bytes;

    signal(SIGPIPE, SIG_IGN);
    (void)prctl(PR_SET_TIMERSLACK, 1UL); /* with --rate: a request late by the usual 50 us would look slow */
    parse_options(&run.options, argc, argv);
    run.random_state[0] = mix64(run.options.seed);
    run.random_state[1] = mix64(run.random_state[0]);
    run.next_sequence = 1;
    run.epoll_fd = -1;
    if (run.options.connections > 1) {
        run.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        if (run.epoll_fd < 0)
            die(EXIT_PROTOCOL, "epoll_create1: %s", strerror(errno));
    }
    pool_bytes = (size_t)RANDOM_POOL_BYTES + run.options.block_bytes + 8U;
    run.random_pool = allocate(pool_bytes, 1);
    for (size_t i = 0; i + 8 <= pool_bytes; i += 8)
        put_be64(run.random_pool + i, random_next(&run));

    run.connections = allocate(run.options.connections, sizeof *run.connections);
    for (uint32_t i = 0; i < run.options.connections; i++)
        connection_open(&run, &run.connections[i], i);
    check_export(&run);

    if (run.options.gate) {
        puts("ready");
        fflush(stdout);
        wait_gate();
    }
    cpu = cpu_seconds();
    run.now_ns = clock_ns();
    run.measure_ns = run.first_ns = run.last_ns = run.now_ns + (uint64_t)(run.options.warmup_seconds * 1e9);
    if (run.options.seconds > 0.0)
        run.deadline_ns = run.measure_ns + (uint64_t)(run.options.seconds * 1e9);
    run.phase = PHASE_LOAD;
    run_until_idle(&run);
    cpu = cpu_seconds() - cpu;
    if (run.options.verify) {
        run.phase = PHASE_READBACK;
        run.cursor = 0;
        run_until_idle(&run);
    }
    print_result(&run, cpu, run.connections[0].export_bytes);
    if (run.options.gate)
        wait_gate();

    put_be32(bye, NBD_REQUEST_MAGIC);
    put_be16(bye + 6, NBD_CMD_DISC);
    for (uint32_t i = 0; i < run.options.connections; i++) {
        (void)send(run.connections[i].fd, bye, sizeof bye, MSG_NOSIGNAL);
        close(run.connections[i].fd);
    }
    return run.errors || run.verify_errors ? EXIT_IO : 0;
}
