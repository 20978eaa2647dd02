/* SPDX-License-Identifier: Apache-2.0 */
/* The world around an engine's core for fuzzing: one disk, one NBD client, the peer's two sockets, a clock.
 *
 * Everything is memory.  Disk operations wait until the test completes them; what the peer gets is parsed and checked:
 * only headers of the agreed format, commands of that socket with legal lengths, ranges inside the device.  A disk
 * operation outside the device and its metadata ends the run.
 */
#ifndef FUZZ_FAKE_WORLD_H
#define FUZZ_FAKE_WORLD_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "engine/core.h"
#include "nbd/wire.h"
#include "peer/packet.h"

enum {
    WORLD_DEVICE = (9 << 20) + 3 * 512,             /* not a whole number of blocks, three extents */
    WORLD_SUPERBLOCK = 10 << 20,
    WORLD_AL = WORLD_SUPERBLOCK + 4096,
    WORLD_BITMAP = WORLD_AL + 8 * 4096,
    WORLD_METADATA = 4096 + 8 * 4096 + 4096,        /* superblock, log, bitmap */
    WORLD_PLACES = 2,                               /* where the metadata may lie */
    WORLD_DISK = WORLD_SUPERBLOCK + WORLD_PLACES * WORLD_METADATA,
    WORLD_UNDO_MAP = 4096 + 4096,
    WORLD_DEVICE_PAGES = (WORLD_DEVICE + 4095) / 4096 * 4096,
    WORLD_MEMORY = WORLD_DISK + WORLD_DEVICE_PAGES + WORLD_UNDO_MAP,
    WORLD_DISK_FD = 7,
    WORLD_OVERLAY_FD = 8,
    WORLD_MAP_FD = 9,
    WORLD_STREAMS = 6,                              /* 0, 1: the peer's in use; 5: the NBD client's */
    WORLD_NBD = 5,
    WORLD_PENDING_MAX = 16384,
    WORLD_SENT_MAX = 256,
};

struct world_bytes {
    uint8_t *data;
    size_t length, capacity;
};

/* A packet of ours that may be answered. */
struct world_sent {
    unsigned command, volume;
    struct data_sub sub;        /* requests: sector and block_id */
    uint32_t bytes;             /* length of the area */
    uint8_t barrier[4];
    uint32_t count;             /* BARRIER: writes since the one before */
};

struct world_stream {
    bool open, is_meta, is_peer;
    bool want_read, want_write;
    bool eof, reset;            /* the other end is gone */
    struct world_bytes in;      /* sent by the other end, not received by the core */
    size_t in_at;
    size_t room;                /* bytes the other end takes, SIZE_MAX: any number */
    size_t piece;               /* most bytes of one receive */
    struct world_bytes out;     /* got by the other end, not parsed */
};

struct world {
    struct core *core;
    uint64_t now;
    struct world_stream streams[WORLD_STREAMS];
    uint8_t *disk;
    uint8_t *overlay, *map;     /* of an undo */
    struct disk_op *pending[WORLD_PENDING_MAX];
    uint32_t pending_count;
    uint32_t fail_in;           /* this many operations from now one fails, 0: none */
    uint32_t version;           /* agreed */
    uint32_t digest_bytes;      /* in front of every payload of ours */
    struct world_sent sent[WORLD_SENT_MAX];     /* a ring */
    uint32_t sent_count;
    uint32_t epoch_writes;      /* sent since the last P_BARRIER */
    uint64_t writes_taken, acks_got, barriers_taken, barrier_acks_got;
    uint64_t nbd_replies;
    uint64_t nbd_last_cookie;
    uint32_t nbd_last_error, nbd_payload_left;
};

static inline void world_append(struct world_bytes *bytes, const void *data, size_t count)
{
    if (bytes->length + count > bytes->capacity) {
        bytes->capacity = (bytes->length + count) * 2;
        bytes->data = realloc(bytes->data, bytes->capacity);
        CHECK(bytes->data);
    }
    if (count)
        memcpy(bytes->data + bytes->length, data, count);
    bytes->length += count;
}

static inline void world_drop_front(struct world_bytes *bytes, size_t count)
{
    if (count)
        memmove(bytes->data, bytes->data + count, bytes->length - count);
    bytes->length -= count;
}

/* ---- what our node sends ---- */

static inline struct world_sent *world_sent_push(struct world *w)
{
    return &w->sent[w->sent_count++ % WORLD_SENT_MAX];
}

static inline void check_area(uint64_t sector, uint64_t bytes)
{
    CHECK(bytes % 512 == 0 && sector <= WORLD_DEVICE / 512 && bytes <= WORLD_DEVICE - sector * 512);
}

/* Behind the digest. */
static inline uint32_t payload_bytes(const struct world *w, const struct packet_header *h)
{
    CHECK(h->length >= PACKET_DATA_SUB + w->digest_bytes);
    return h->length - PACKET_DATA_SUB - w->digest_bytes;
}

static inline void check_packet(struct world *w, const struct world_stream *s, const struct packet_header *h,
                                const uint8_t *body)
{
    CHECK(h->volume == 0 && packet_kind(s->is_meta, h->command) != PACKET_UNKNOWN);
    CHECK(packet_length_ok(h->command, h->length));
    CHECK(w->version >= 100 ? h->header_bytes == 16 : h->header_bytes == 8);
    struct world_sent sent = {.command = h->command, .volume = h->volume};
    switch (h->command) {
    case P_DATA:
    case P_TRIM:
    case P_ZEROES:
        packet_data_sub_get(body, &sent.sub);
        sent.bytes = h->command == P_DATA ? payload_bytes(w, h) : be32_get(body + PACKET_DATA_SUB);
        check_area(sent.sub.sector, sent.bytes);
        w->epoch_writes++;
        break;
    case P_DATA_REPLY:
    case P_RS_DATA_REPLY:
        packet_data_sub_get(body, &sent.sub);
        check_area(sent.sub.sector, payload_bytes(w, h));
        return;
    case P_DATA_REQUEST:
    case P_RS_DATA_REQUEST:
        sent.sub.sector = be64_get(body);
        sent.sub.block_id = be64_get(body + 8);
        sent.bytes = be32_get(body + 16);
        check_area(sent.sub.sector, sent.bytes);
        break;
    case P_BARRIER:
        CHECK(w->epoch_writes > 0);
        memcpy(sent.barrier, body, 4);
        sent.count = w->epoch_writes;
        w->epoch_writes = 0;
        break;
    case P_WRITE_ACK:
    case P_RS_WRITE_ACK:
    case P_RECV_ACK:
    case P_NEG_ACK:
        w->acks_got += be64_get(body + 8) != ID_SYNCER;
        CHECK(w->acks_got <= 2 * w->writes_taken);
        return;
    case P_PROTOCOL_UPDATE:     /* the test's own: the first byte of the string names the digest's length */
        w->digest_bytes = h->length > 24 ? body[24] : 0;
        return;
    case P_BARRIER_ACK:
        CHECK(++w->barrier_acks_got <= w->barriers_taken && be32_get(body + 4) > 0);
        return;
    default:
        return;
    }
    *world_sent_push(w) = sent;
}

static inline void world_parse_peer(struct world *w, struct world_stream *s)
{
    size_t at = 0;
    struct packet_header h;
    if (!s->out.length)
        return;
    while (packet_header_parse(s->out.data + at, s->out.length - at, &h) == PACKET_OK &&
           s->out.length - at >= h.header_bytes + h.length) {
        check_packet(w, s, &h, s->out.data + at + h.header_bytes);
        at += h.header_bytes + h.length;
    }
    if (s->out.length - at >= PACKET_HEADER_MAX)
        CHECK(packet_header_parse(s->out.data + at, s->out.length - at, &h) == PACKET_OK);
    world_drop_front(&s->out, at);
}

static inline void world_parse_nbd(struct world *w, struct world_stream *s)
{
    size_t at = 0;
    while (s->out.length - at >= (w->nbd_payload_left ? 1 : NBD_SIMPLE_REPLY_BYTES)) {
        if (w->nbd_payload_left) {
            uint32_t part = (uint32_t)size_min(w->nbd_payload_left, s->out.length - at);
            w->nbd_payload_left -= part;
            at += part;
            continue;
        }
        CHECK(be32_get(s->out.data + at) == NBD_SIMPLE_REPLY_MAGIC);
        w->nbd_last_error = be32_get(s->out.data + at + 4);
        w->nbd_last_cookie = be64_get(s->out.data + at + 8);
        w->nbd_replies++;
        /* The cookie of a read is its length with the top bit set. */
        if (w->nbd_last_cookie >> 63 && !w->nbd_last_error)
            w->nbd_payload_left = (uint32_t)w->nbd_last_cookie;
        at += NBD_SIMPLE_REPLY_BYTES;
    }
    world_drop_front(&s->out, at);
}

/* ---- the table ---- */

static inline uint64_t world_now(void *ctx)
{
    return ((struct world *)ctx)->now;
}

static inline ssize_t world_receive(void *ctx, int stream, const struct iovec *iov, int count)
{
    struct world_stream *s = &((struct world *)ctx)->streams[stream];
    CHECK(s->open);
    size_t have = size_min(s->in.length - s->in_at, s->piece), moved = 0;
    if (!have)
        return s->reset ? STREAM_IO_RESET : s->eof ? STREAM_IO_EOF : STREAM_IO_AGAIN;
    for (int i = 0; i < count && moved < have; i++) {
        size_t part = size_min(iov[i].iov_len, have - moved);
        memcpy(iov[i].iov_base, s->in.data + s->in_at, part);
        s->in_at += part;
        moved += part;
    }
    return (ssize_t)moved;
}

static inline ssize_t world_send(void *ctx, int stream, const struct iovec *iov, int count)
{
    struct world *w = ctx;
    struct world_stream *s = &w->streams[stream];
    size_t moved = 0;
    CHECK(s->open);
    if (s->reset)
        return STREAM_IO_RESET;
    for (int i = 0; i < count && s->room; i++) {
        size_t part = size_min(iov[i].iov_len, s->room);
        world_append(&s->out, iov[i].iov_base, part);
        if (s->room != SIZE_MAX)
            s->room -= part;
        moved += part;
        if (part < iov[i].iov_len)
            break;
    }
    if (s->is_peer)
        world_parse_peer(w, s);
    else
        world_parse_nbd(w, s);
    return moved ? (ssize_t)moved : STREAM_IO_AGAIN;
}

static inline void world_want(void *ctx, int stream, bool read, bool write)
{
    struct world_stream *s = &((struct world *)ctx)->streams[stream];
    CHECK(s->open);
    s->want_read = read;
    s->want_write = write;
}

static inline void world_open(void *ctx, int stream, int fd)
{
    struct world_stream *s = &((struct world *)ctx)->streams[stream];
    CHECK(!s->open && fd == stream);
    s->in.length = s->in_at = s->out.length = 0;
    *s = (struct world_stream){.open = true, .want_read = true, .is_peer = stream != WORLD_NBD, .is_meta = stream == 1,
                               .room = SIZE_MAX, .piece = SIZE_MAX, .in = s->in, .out = s->out};
}

static inline void world_close(void *ctx, int stream)
{
    struct world_stream *s = &((struct world *)ctx)->streams[stream];
    CHECK(s->open);
    s->open = false;
}

/* The memory behind a descriptor. */
static inline uint8_t *world_file(struct world *w, int fd)
{
    return fd == WORLD_DISK_FD ? w->disk : fd == WORLD_OVERLAY_FD ? w->overlay : w->map;
}

static inline bool world_inside(const struct disk_op *op, uint64_t begin, uint64_t end)
{
    return op->offset >= begin && op->offset <= end && op->length <= end - op->offset;
}

static inline void world_submit(void *ctx, struct list_head *ops)
{
    struct world *w = ctx;
    for (struct list_head *link; (link = list_pop(ops));) {
        struct disk_op *op = list_entry(link, struct disk_op, link);
        bool own = op->fd == WORLD_DISK_FD, overlay = op->fd == WORLD_OVERLAY_FD, map = op->fd == WORLD_MAP_FD;
        CHECK(w->pending_count < WORLD_PENDING_MAX && (own || overlay || map));
        if (op->kind != DISK_FLUSH)
            CHECK(op->length > 0 && (((own || overlay) && world_inside(op, 0, WORLD_DEVICE)) ||
                                     (own && world_inside(op, WORLD_SUPERBLOCK, WORLD_DISK)) ||
                                     (map && world_inside(op, 4096, WORLD_UNDO_MAP))));
        w->pending[w->pending_count++] = op;
    }
}

static inline void world_wake(void *ctx)
{
    (void)ctx;
}

static const struct io_ops world_io = {
    .now_ns = world_now,
    .stream_receive = world_receive,
    .stream_send = world_send,
    .stream_want = world_want,
    .stream_open = world_open,
    .stream_close = world_close,
    .disk_submit = world_submit,
    .event_wake = world_wake,
};

/* ---- running ---- */

static inline void world_disk_done(struct world *w, uint32_t index)
{
    struct disk_op *op = w->pending[index];
    memmove(&w->pending[index], &w->pending[index + 1], (--w->pending_count - index) * sizeof(w->pending[0]));
    op->error = w->fail_in && --w->fail_in == 0 ? EIO : 0;
    uint8_t *file = world_file(w, op->fd);
    if (!op->error && op->kind == DISK_READ)
        memcpy(op->data, file + op->offset, op->length);
    else if (!op->error && op->kind == DISK_WRITE)
        memcpy(file + op->offset, op->data, op->length);
    else if (!op->error && op->kind == DISK_ZERO)
        memset(file + op->offset, 0, op->length);
    else if (op->kind == DISK_EXTENTS)
        op->extents_count = 0;
    core_disk_done(w->core, op);
}

/* Everything that is ready, once; false when nothing was. */
static inline bool world_turn(struct world *w, bool disks)
{
    bool any = false;
    for (int i = 0; i < WORLD_STREAMS; i++) {
        struct world_stream *s = &w->streams[i];
        bool input = s->in.length > s->in_at || s->eof || s->reset;
        bool readable = s->open && s->want_read && input;
        bool writable = s->open && s->want_write && (s->room || s->reset);
        if (readable || writable) {
            core_stream_ready(w->core, i, readable, writable);
            any = true;
        }
    }
    while (disks && w->pending_count) {
        world_disk_done(w, 0);
        any = true;
    }
    (void)core_tick(w->core);
    return any || (disks && w->pending_count);
}

static inline void world_command(struct world *w, struct re_command command, const uint8_t *blob, size_t bytes)
{
    core_command(w->core, &command, blob, bytes);
}

/* A disk of this size with its metadata in one of the places. */
static inline struct re_attach world_disk_at(uint32_t place, uint64_t size_bytes)
{
    uint64_t shift = place % WORLD_PLACES * UINT64_C(1) * WORLD_METADATA;
    return (struct re_attach){.data_fd = WORLD_DISK_FD, .md_fd = WORLD_DISK_FD, .al_extents = 7, .al_stripes = 1,
                              .al_stripe_size_4k = 8, .size_bytes = size_bytes,
                              .superblock_offset = WORLD_SUPERBLOCK + shift, .al_offset = WORLD_AL + shift,
                              .bitmap_offset = WORLD_BITMAP + shift, .bitmap_bytes = 4096};
}

static inline void world_attach(struct world *w, uint32_t flags)
{
    struct re_attach disk = world_disk_at(0, WORLD_DEVICE);
    disk.flags = flags;
    world_command(w, (struct re_command){.type = RE_CMD_VOLUME_ATTACH, .stream = -1, .cookie = 1, .attach = disk}, NULL,
                  0);
}

static inline void world_state(struct world *w, struct re_state state)
{
    world_command(w, (struct re_command){.type = RE_CMD_VOLUME_STATE, .stream = -1, .state = state}, NULL, 0);
}

/* The files' memory: one mapping for all runs, as much faster than allocating it as a run is short. */
static inline uint8_t *world_zeroes(void)
{
    static uint8_t *memory;
    if (!memory)
        memory = mmap(NULL, WORLD_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED && madvise(memory, WORLD_MEMORY, MADV_DONTNEED) == 0);
    return memory;
}

static inline void world_init(struct world *w)
{
    memset(w, 0, sizeof *w);
    w->now = 1;
    w->disk = world_zeroes();
    w->overlay = w->disk + WORLD_DISK;
    w->map = w->overlay + WORLD_DEVICE_PAGES;
    struct core_config config = {.requests = 64, .app_buffer_bytes = 4 << 20, .peer_buffer_bytes = 4 << 20,
                                 .peer_requests = 64};
    w->core = core_create(&world_io, w, &config);
    CHECK(w->core);
}

static inline void world_destroy(struct world *w)
{
    core_destroy(w->core);
    for (int i = 0; i < WORLD_STREAMS; i++) {
        free(w->streams[i].in.data);
        free(w->streams[i].out.data);
    }
}

#endif
