/* SPDX-License-Identifier: Apache-2.0 */
/* The boundary between the control plane (Python) and the engine (C).
 *
 * Commands go down, events come up, counters lie in shared memory.  One engine serves one resource:
 * up to RE_VOLUMES_MAX volumes, one replication link, any number of NBD clients.
 * This header is read by the C compiler and by cffi; cffi sees no preprocessor lines.
 *
 * Numbers of roles, connection and disk states are DRBD's (0..23, 0..8), the same as on the wire.
 */
/* cffi: off */
#ifndef REPL_ENGINE_H
#define REPL_ENGINE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
/* cffi: on */

enum {
    RE_VOLUMES_MAX = 64,
    RE_STREAMS_MAX = 256,       /* streams known to one engine: peers' and NBD clients' */
    RE_SUPERBLOCK_BYTES = 4096,
    RE_EVENT_BLOB_MAX = 4352,   /* largest blob that comes with an event */
};

/* ---- commands ---- */

enum re_command_type {
    RE_CMD_NONE,
    /* A volume's disk.  `attach` tells where everything lies; the bitmap is read first.  Ends with DONE. */
    RE_CMD_VOLUME_ATTACH,
    /* Wait for disk operations in flight, then forget the disk.  After DONE its descriptors are free. */
    RE_CMD_VOLUME_DETACH,
    /* The volume's states as the control plane decided them (`state`).  Takes effect at once. */
    RE_CMD_VOLUME_STATE,
    /* Resync controller settings of a volume (`resync`). */
    RE_CMD_VOLUME_RESYNC,
    /* Write the 4096 bytes of the blob to the superblock and make them stable.  Ends with DONE. */
    RE_CMD_MD_WRITE,
    /* Set / clear every bit of the bitmap and write it to disk.  Ends with DONE. */
    RE_CMD_BITMAP_SET_ALL,
    RE_CMD_BITMAP_CLEAR_ALL,
    /* Write all changed bitmap pages and flush.  Ends with DONE. */
    RE_CMD_BITMAP_WRITE,
    /* Rewrite the whole activity log as initialized blocks and flush (orderly close).  Ends with DONE. */
    RE_CMD_AL_INITIALIZE,
    /* Wait until no application request is in flight and every replicated write is barrier-acked.  Ends with DONE. */
    RE_CMD_VOLUME_DRAIN,

    /* A connected socket (`fd`), known as `stream` from now on (the caller picks a free number 0..RE_STREAMS_MAX-1). */
    RE_CMD_STREAM_ADD,
    /* Send the blob (whole packets, header included). */
    RE_CMD_STREAM_SEND,
    /* Go on parsing a stream that stopped after an RE_EV_PACKET. */
    RE_CMD_STREAM_RESUME,
    RE_CMD_STREAM_CLOSE,

    /* The two sockets of the link, the agreed version and the network options (`link`). */
    RE_CMD_LINK_UP,
    /* Give the link up: both sockets are closed, nothing more is sent.  No LINK_LOST follows. */
    RE_CMD_LINK_DOWN,
    /* After LINK_LOST or LINK_DOWN, when the new states are set: what the peer did not confirm becomes out-of-sync,
     * waiting requests end or go on.  DONE comes when every write received from the peer is on disk as well. */
    RE_CMD_LINK_RESOLVE,
    /* Send P_PING; DONE when its P_PING_ACK arrives (RE_ECANCELED when the link breaks first). */
    RE_CMD_PING,
    /* New values of `link` while the link is up (protocol, timeouts).  The blob is sent on the data socket before
     * anything that is made under them. */
    RE_CMD_LINK_OPTIONS,
    /* Send this volume's whole bitmap.  DONE when it is queued completely. */
    RE_CMD_BITMAP_SEND,

    /* An NBD client that has finished negotiation (`nbd`); the blob holds bytes that were read ahead. */
    RE_CMD_NBD_ADD,
    RE_CMD_NBD_CLOSE,
    /* Close everything and end the engine's thread. */
    RE_CMD_STOP,

    /* As LINK_RESOLVE while I/O is suspended, but what the peer did not confirm is kept: for LINK_RESEND, or for a
     * later LINK_RESOLVE. */
    RE_CMD_LINK_KEEP,
    /* With a new link up and I/O still suspended: send again what was kept.  DONE when it is queued; CANCELED when it
     * cannot be sent as it was (overwritten, unreadable): everything is still kept then. */
    RE_CMD_LINK_RESEND,
    /* Before an orderly detach, when the state says that the disk is not used any more: wait for what was started on
     * it and for the barrier acks of all its writes, then flush.  Ends with DONE. */
    RE_CMD_VOLUME_QUIESCE = 60,
    /* Wait for the disk no longer: operations in flight fail; their buffers stay put until the disk has answered.
     * Only if one of them is older than `value` ms. */
    RE_CMD_VOLUME_GIVE_UP = 61,
    /* A volume without a disk: the size of the peer's device (`value` bytes). */
    RE_CMD_VOLUME_SIZE = 62,
    /* `value` 1: no write enters the activity log any more; DONE when all that are in it are barrier-acked (CANCELED
     * when the link breaks first; then it is open again).  0: open again. */
    RE_CMD_AL_HOLD = 63,
    /* Another size, and metadata in another place (`attach`: size, offsets and flags; ALL_SET: new bits are set).  Only
     * memory changes; every bitmap page has to be written anew.  With metadata that moves, only while the activity log
     * is held.  Ends with DONE. */
    RE_CMD_VOLUME_RESIZE = 64,
    /* Zero what was metadata: `attach.superblock_offset` says where on md_fd, `value` how many bytes.  Ends with
     * DONE. */
    RE_CMD_MD_WIPE = 65,
    /* What VerifyS is to compare (`verify`); before VOLUME_STATE makes it VerifyS. */
    RE_CMD_VERIFY_ORDER = 70,
    /* VerifyS asks for nothing more; VERIFY_FINISHED comes when what it has asked for is compared. */
    RE_CMD_VERIFY_STOP,

    /* Keep what is overwritten from now on (`undo`).  DONE when the map has been read: nothing unsaved is overwritten
     * from then on. */
    RE_CMD_UNDO_START = 80,
    /* Give it up; writes that wait for it go on.  After DONE its descriptors are free. */
    RE_CMD_UNDO_STOP = 81,
    /* After UNDO_FAILED: writes that wait for it fail, without the disk being blamed. */
    RE_CMD_UNDO_CANCEL = 82,
};

enum re_attach_flags {
    RE_ATTACH_BITMAP_ALL_SET = 1,   /* do not read the bitmap: every bit counts as set */
    RE_ATTACH_NO_DISK_FLUSHES = 2,  /* disk-flushes no */
    RE_ATTACH_NO_DISK_DRAIN = 4,    /* disk-drain no (only together with the above) */
    RE_ATTACH_NO_MD_FLUSHES = 8,    /* md-flushes no */
    RE_ATTACH_DIRECT = 16,          /* descriptors are opened with O_DIRECT */
    RE_ATTACH_INLINE = 32,          /* a memory file system: run operations in the engine's thread */
    RE_ATTACH_BITMAP_EMPTY = 64,    /* do not read the bitmap: every bit counts as clear */
    RE_ATTACH_KEEP_ALLOCATED = 128, /* zeroes of a resync are written, not unmapped: the file is not sparse */
    RE_ATTACH_DATA_NBD = 1024,      /* data_fd is an NBD connection */
    RE_ATTACH_MD_NBD = 2048,        /* md_fd is one, and not the same as data_fd */
    RE_ATTACH_PAGE_CACHE = 4096,    /* data_fd is a buffered regular file, and reading it updates no time stamp */
    RE_ATTACH_NO_AL = 512,          /* al-updates no: writes do not wait for the activity log */
    RE_ATTACH_PASS_ON = 256,        /* on-io-error pass_on: a failed read or write does not end the use of the disk */
};

enum re_read_balancing {
    RE_READ_PREFER_LOCAL,
    RE_READ_PREFER_REMOTE,
    RE_READ_ROUND_ROBIN,
    RE_READ_LEAST_PENDING,
    RE_READ_WHEN_CONGESTED,
};

struct re_attach {
    int32_t data_fd;            /* descriptor of the backing device or file (a number of the simulator there) */
    int32_t md_fd;              /* descriptor that holds the metadata; equals data_fd for internal metadata */
    uint32_t flags;             /* enum re_attach_flags */
    uint32_t al_extents;        /* slots of the activity log */
    uint32_t al_stripes;        /* layout of the activity log ring */
    uint32_t al_stripe_size_4k;
    uint64_t size_bytes;        /* size of the replicated device */
    uint64_t superblock_offset; /* bytes, on md_fd */
    uint64_t al_offset;         /* bytes, on md_fd */
    uint64_t bitmap_offset;     /* bytes, on md_fd */
    uint64_t bitmap_bytes;      /* room for the bitmap on disk */
    uint32_t disk_timeout_ms;   /* an operation that takes longer ends the use of the disk; 0 = none does */
    uint32_t read_balancing;    /* enum re_read_balancing, or log2 of a stripe (15..20) */
    uint32_t discard_granularity;   /* bytes: aligned pieces of a trim may be discarded; 0 = all of it is zeroed */
    uint32_t pad;
};

struct re_state {
    uint8_t role;               /* own role */
    uint8_t peer_role;
    uint8_t connection;         /* DRBD's merged connection state of this volume, 0..23 */
    uint8_t disk;               /* own disk state */
    uint8_t peer_disk;
    uint8_t suspended;          /* 1: no request is started or completed */
    uint8_t no_data_waits;      /* 1: without good data requests wait instead of failing */
    uint8_t pad;
};

struct re_resync {
    uint32_t resync_rate_kib;   /* KiB/s */
    uint32_t plan_ahead;        /* 0.1 s; 0 = fixed rate */
    uint32_t delay_target;      /* 0.1 s */
    uint32_t fill_target;       /* sectors */
    uint32_t max_rate_kib;      /* KiB/s */
    uint32_t min_rate_kib;      /* KiB/s; 0 = never step back for application I/O */
    uint32_t discard_granularity;   /* bytes of a thin request to a DRBD peer; 0 = none is made */
    uint32_t use_csums;         /* 1: ask with digests of the own blocks (if the link has a csums_alg) */
};

struct re_verify {
    uint64_t start_sector;      /* rounded down to 4 KiB */
    uint64_t stop_sector;       /* rounded up, at most the size; all ones = to the end */
};

struct re_link {
    int32_t data_stream;
    int32_t meta_stream;
    uint32_t version;           /* agreed protocol version, 86..101 */
    uint32_t features;          /* agreed feature flags */
    uint32_t protocol;          /* 1 = A, 2 = B, 3 = C */
    uint32_t timeout_ms;
    uint32_t ping_int_ms;
    uint32_t ping_timeout_ms;
    uint32_t ko_count;          /* 0 = never expel */
    uint32_t max_epoch_size;    /* writes per epoch */
    uint32_t max_buffers;       /* 4 KiB pages for the peer's writes and resync */
    uint32_t integrity_alg;     /* enum digest_alg (base/digest.h): of the data that we send, 0 = none */
    uint32_t peer_integrity_alg;    /* the same of what the peer sends */
    uint32_t verify_alg;        /* of online verify, 0 = the peer's requests are refused */
    uint32_t csums_alg;         /* of checksum based resync, 0 = none */
    uint32_t congestion_extents;    /* activity log extents in use */
    uint64_t congestion_fill_bytes; /* written and not barrier-acked; 0 = does not count */
    uint8_t strict_flush;       /* a flush waits for the peer's barrier ack */
    uint8_t use_rle;            /* run-length coded bitmaps */
    uint8_t resolve_conflicts;  /* this node accepted the meta socket */
    uint8_t peer_is_ours;       /* the peer runs this software: it understands what the kernel module does not */
    uint8_t keep_data;          /* keep the data of writes until the barrier ack: LINK_RESEND never has to read it */
    uint8_t two_primaries;      /* both nodes may write */
    uint8_t on_congestion;      /* report when a threshold is reached */
    uint8_t pad[1];
};

enum re_nbd_flags {
    RE_NBD_READ_ONLY = 1,
    RE_NBD_STRUCTURED = 2,      /* structured replies were negotiated */
    RE_NBD_ALLOCATION = 4,      /* base:allocation was negotiated, id in `context_id` */
    RE_NBD_UNDO = 8,            /* reads show the disk as it was when the undo began */
};

struct re_nbd {
    int32_t fd;
    uint32_t flags;             /* enum re_nbd_flags */
    uint32_t context_id;        /* meta context id of base:allocation */
    uint32_t pad;
};

struct re_undo {
    int32_t overlay_fd;         /* as large as the device, sparse: old content at its own offset */
    int32_t map_fd;             /* from byte 4096 on one bit for each 4 KiB block, 1 = saved; whole pages of 4 KiB */
};

struct re_command {
    uint32_t type;              /* enum re_command_type */
    int32_t volume;             /* volume number, -1 where none is meant */
    int32_t stream;             /* stream number, -1 where none is meant */
    int32_t fd;                 /* STREAM_ADD */
    uint64_t cookie;            /* comes back in RE_EV_DONE; 0 = no DONE wanted */
    uint64_t value;             /* where a command says so */
    struct re_attach attach;
    struct re_state state;
    struct re_resync resync;
    struct re_link link;
    struct re_nbd nbd;
    struct re_verify verify;
    struct re_undo undo;
};

/* ---- events ---- */

enum re_event_type {
    RE_EV_NONE,
    RE_EV_DONE,             /* cookie, status (enum re_result) */
    RE_EV_PACKET,           /* stream, packet, volume, blob = body; all but a meta stream wait for STREAM_RESUME */
    RE_EV_STREAM_CLOSED,    /* stream (not part of an up link) ended; status */
    RE_EV_LINK_LOST,        /* status, reason (enum re_lost), detail; both sockets are closed */
    RE_EV_BITMAP_RECEIVED,  /* volume: the peer's whole bitmap is merged; value = dirty bits now */
    RE_EV_RESYNC_FINISHED,  /* volume: nothing left to do; value = blocks that failed */
    RE_EV_DISK_ERROR,       /* volume; value = byte offset, detail = enum re_disk_op, error = errno; the disk is no
                             * longer used, or (status RE_RESULT_OK) the policy is pass_on and it still is */
    RE_EV_NBD_CLOSED,       /* stream; reason = enum re_nbd_end */
    RE_EV_STOPPED,          /* answer to RE_CMD_STOP */
    RE_EV_CONGESTED = 60,   /* volume: a threshold is reached; detail 1 = bytes in flight, 2 = extents; value = bytes */
    RE_EV_CONGESTION_OVER,  /* volume: it is Ahead and nothing is in flight any more; detail 1: it has not gone Ahead,
                             * the peer alone has blocks that this disk has lost */
    RE_EV_VERIFY_RANGE = 70,    /* volume: sectors value .. value + cookie differ */
    RE_EV_VERIFY_FINISHED,  /* volume: nothing left to compare; value = blocks that differ */
    RE_EV_UNDO_FAILED = 80,      /* volume; error = errno, value = operations that wait for UNDO_STOP or UNDO_CANCEL */
};

enum re_result {
    RE_RESULT_OK = 0,
    RE_RESULT_IO = 1,           /* disk error, errno in `error` */
    RE_RESULT_CANCELED = 2,     /* the link or the disk went away first */
    RE_RESULT_INVALID = 3,      /* the command makes no sense now */
};

enum re_lost {
    RE_LOST_NONE,
    RE_LOST_EOF,                /* the peer closed */
    RE_LOST_RESET,              /* socket error */
    RE_LOST_PING_TIMEOUT,       /* no P_PING_ACK within ping-timeout */
    RE_LOST_KO,                 /* a write was not acknowledged within ko-count x timeout */
    RE_LOST_SEND_TIMEOUT,       /* a socket took no data for too long */
    RE_LOST_PROTOCOL,           /* the peer sent something illegal: detail = packet, value says what */
    RE_LOST_OWN_DISK,           /* writes of the peer cannot be made stable here: it has to keep them marked */
    RE_LOST_INTEGRITY,          /* a payload does not fit its digest: detail = packet, value = sector */
};

enum re_disk_op { RE_DISK_READ, RE_DISK_WRITE, RE_DISK_FLUSH, RE_DISK_ZERO, RE_DISK_META, RE_DISK_TIMEOUT };

enum re_nbd_end { RE_NBD_END_DISC, RE_NBD_END_EOF, RE_NBD_END_RESET, RE_NBD_END_PROTOCOL, RE_NBD_END_CLOSED,
                  RE_NBD_END_STALLED };

struct re_event {
    uint32_t type;              /* enum re_event_type */
    int32_t volume;
    int32_t stream;
    int32_t status;             /* enum re_result */
    int32_t error;              /* errno or 0 */
    uint32_t packet;            /* DRBD command number of RE_EV_PACKET */
    uint32_t reason;            /* enum re_lost or enum re_nbd_end */
    uint32_t detail;
    uint64_t cookie;
    uint64_t value;
    uint32_t blob_length;
    uint32_t pad;
};

/* ---- counters: written by the engine only, read at any time ---- */

struct re_volume_stats {
    uint64_t reads, read_bytes;             /* application */
    uint64_t writes, written_bytes;         /* application */
    uint64_t flushes, zeroes;               /* application */
    uint64_t disk_read_bytes, disk_written_bytes, disk_flushes;
    uint64_t sent_bytes, received_bytes;    /* replicated and resync payload */
    uint64_t peer_writes;                   /* writes of the peer's application carried out here */
    uint64_t al_writes, bitmap_writes;      /* 4 KiB metadata writes */
    uint64_t out_of_sync_bits;
    uint64_t size_bytes;
    uint64_t upper_pending;                 /* application requests in flight */
    uint64_t lower_pending;                 /* disk operations in flight */
    uint64_t peer_pending;                  /* requests waiting for the peer's ack */
    uint64_t unacked;                       /* peer's requests not answered yet */
    uint64_t conflicts;                     /* writes discarded because the other Primary wrote to the same blocks */
    uint64_t resync_total_bits;             /* at the start of the running or last resync */
    uint64_t resync_done_bits;
    uint64_t resync_failed_bits;
    uint64_t resync_lost_bits;              /* that this disk failed to read or write as the source, not refused */
    uint64_t resync_left_bits;              /* Ahead: of the resync before, not confirmed by the target */
    uint64_t resync_started_ns, resync_finished_ns;  /* engine clock; finished 0 while it runs */
    uint64_t resync_rate_kib;               /* over the last seconds */
    uint64_t resync_limit;                  /* enum re_resync_limit */
    uint64_t resync_equal_bits;             /* found equal by their digests */
    uint64_t resync_deallocated_bits;       /* holes: zeroes that were not transferred */
    uint64_t resync_payload_bytes;          /* resync data that was transferred */
    uint64_t resync_disk_bytes;             /* read and written by resyncs */
    uint64_t bitmap_sent_bits, bitmap_bits; /* progress of the bitmap exchange */
    uint64_t verify_total_bits, verify_done_bits;   /* of the running or last online verify */
    uint64_t verify_differing_bits;
    uint64_t verify_position;               /* sectors: all before it is compared */
    uint64_t verify_started_ns, verify_finished_ns; /* engine clock; finished 0 while it runs */
    uint64_t verify_rate_kib;
    uint64_t verify_limit;                  /* enum re_resync_limit */
    uint64_t undo_saved_bits;               /* blocks kept by the undo */
    uint64_t unconfirmed_writes;            /* when the link was lost: completed before the peer's disk had them */
};

/* What a running resync waits for. */
enum re_resync_limit {
    RE_LIMIT_NONE,          /* not known yet, or nothing runs */
    RE_LIMIT_RATE,          /* the controller (resync-rate, c-max-rate, c-fill-target) */
    RE_LIMIT_BUFFERS,       /* max-buffers */
    RE_LIMIT_APPLICATION,   /* steps back for application I/O (c-min-rate) */
    RE_LIMIT_PEER,          /* the peer or the link: the peer does not say */
    RE_LIMIT_OWN_DISK,
    RE_LIMIT_PEER_DISK,
    RE_LIMIT_LINK,
};

struct re_engine_stats {
    uint64_t now_ns;                        /* the engine's clock at its last tick */
    uint64_t ticks, nbd_clients, nbd_requests;
    uint64_t epochs_open;                   /* not yet barrier-acked */
    uint64_t transfer_log;                  /* writes in the transfer log */
    uint64_t barriers_sent, barrier_acks_received, barriers_received;
    uint64_t pings_sent, ping_acks_received;
    uint64_t link_sent_bytes, link_received_bytes;
    uint64_t requests_free, requests_total;
    uint64_t app_buffers_used_bytes, peer_buffers_used_bytes;
    uint64_t integrity_errors;              /* payloads of the peer with a wrong digest */
};

/* ---- entry points (production shell; any thread of the control plane) ---- */

typedef struct re_engine re_engine;

/* Start an engine and its thread; `wake_fd`: eventfd that is readable when events wait; `busy_poll_us`: how long the
 * thread may look for work before it blocks, 0 = not at all.  NULL: out of memory. */
re_engine *re_engine_start(int wake_fd, uint32_t busy_poll_us);
/* Queue a command; the blob is copied.  False when the ring is full (the caller waits for events and tries again). */
bool re_engine_command(re_engine *engine, const struct re_command *command, const uint8_t *blob, size_t blob_length);
/* Take the next event; `blob` has RE_EVENT_BLOB_MAX bytes.  False when there is none. */
bool re_engine_event(re_engine *engine, struct re_event *event, uint8_t *blob);
const struct re_volume_stats *re_engine_volume_stats(re_engine *engine, int volume);
const struct re_engine_stats *re_engine_stats(re_engine *engine);
/* Digest of `data` with algorithm `alg` into `out` (32 bytes); its length, 0 when this build does not have it. */
size_t re_digest(uint32_t alg, const uint8_t *data, size_t length, uint8_t *out);
/* Wait for the thread to end after RE_CMD_STOP and free everything. */
void re_engine_destroy(re_engine *engine);

/* cffi: off */
#endif
/* cffi: on */
