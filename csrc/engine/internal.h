/* SPDX-License-Identifier: Apache-2.0 */
/* The core's own structures: what ties volumes, link and clients together.  Only engine/ includes this.
 *
 * Queues of a tick: everything that may start something else (finished disk operations, granted ranges, finished
 * requests) goes through a list that core_tick() drains, so no call chain grows with the load.
 */
#ifndef ENGINE_INTERNAL_H
#define ENGINE_INTERNAL_H

#include "base/digest.h"
#include "base/interval.h"
#include "base/list.h"
#include "base/pool.h"
#include "engine/core.h"
#include "engine/resync.h"
#include "engine/verify.h"
#include "io/stream.h"
#include "meta/activity_log.h"
#include "meta/bitmap.h"
#include "nbd/session.h"
#include "peer/packet.h"
#include "req/epoch.h"
#include "req/request.h"

/* DRBD's numbers (docs/protocol.md). */
enum role { ROLE_UNKNOWN = 0, ROLE_PRIMARY = 1, ROLE_SECONDARY = 2 };
enum disk_state {
    D_DISKLESS = 0,
    D_ATTACHING = 1,
    D_FAILED = 2,
    D_NEGOTIATING = 3,
    D_INCONSISTENT = 4,
    D_OUTDATED = 5,
    D_UNKNOWN = 6,
    D_CONSISTENT = 7,
    D_UP_TO_DATE = 8,
};
enum connection_state {
    C_STANDALONE = 0,
    C_WF_REPORT_PARAMS = 9,
    C_CONNECTED = 10,
    C_WF_BITMAP_S = 13,
    C_WF_BITMAP_T = 14,
    C_WF_SYNC_UUID = 15,
    C_SYNC_SOURCE = 16,
    C_SYNC_TARGET = 17,
    C_VERIFY_S = 18,
    C_VERIFY_T = 19,
    C_PAUSED_SYNC_S = 20,
    C_PAUSED_SYNC_T = 21,
    C_AHEAD = 22,
    C_BEHIND = 23,
};

enum {
    REQUESTS_DEFAULT = 16384,
    REQUESTS_RESERVED = RE_VOLUMES_MAX + 2,     /* for empty writes with a flush (conflict.c) */
    APP_BUFFER_BYTES_DEFAULT = 128 << 20,
    PEER_BUFFER_BYTES_DEFAULT = 64 << 20,
    METADATA_BUFFER_BYTES = 8 << 20,
    PEER_REQUESTS_MAX = 8192,       /* writes and reads of the peer in progress */
    MD_JOBS_MAX = 64,
    META_TX_BYTES_MAX = 4 << 20,    /* acks waiting for a slow peer before its data is no longer read */
    EVENTS_MAX = 1024,              /* not taken by the control plane, before the peer is no longer listened to */
    BITMAP_TX_BYTES_LOW = 256 << 10,
    GONE_BYTES_MAX = 1 << 20,       /* protocol A: taken for sent although the tick's end has yet to send them */
    TURN_BYTES_MAX = 1 << 20,       /* received of the peer in a turn, before the other sockets are looked at again */
    TICK_REQUESTS_MAX = 1024,       /* of NBD clients in a turn, before the sockets are looked at again */
    BARRIER_IDLE_MS = 1,            /* a closed epoch's barrier leaves with the next write, or after this long */
};

/* Why a packet was illegal (value of RE_EV_LINK_LOST). */
enum illegal {
    ILLEGAL_HEADER = 1,
    ILLEGAL_COMMAND,
    ILLEGAL_LENGTH,
    ILLEGAL_VOLUME,
    ILLEGAL_RANGE,
    ILLEGAL_STATE,
    ILLEGAL_ID,
    ILLEGAL_BARRIER,
    ILLEGAL_BITMAP,
    ILLEGAL_SEQUENCE = 16,
};

#define CONTROL_BODY_MAX 4096u
#define NS_PER_MS UINT64_C(1000000)
#define NBD_PAYLOAD_CHECK_NS (10000 * NS_PER_MS)

struct core;
struct volume;

/* ---- what the peer asked of us ---- */

enum peer_kind { PEER_WRITE, PEER_ZERO, PEER_READ, PEER_RESYNC_READ };

/* Epoch of the peer's writes: its writes are on stable storage before those of the next one are started. */
struct receive_epoch {
    struct list_head link;          /* the link's list, oldest first; or the free list */
    struct list_head waiting;       /* writes that wait for their turn, in order of arrival */
    uint8_t number[4];              /* barrier number, echoed byte for byte */
    uint32_t count;                 /* writes that belong to it */
    uint32_t pending;               /* of these, not finished */
    uint32_t flushes;               /* flush operations in flight */
    uint64_t volumes;               /* bit per volume written to */
    bool closed;                    /* its P_BARRIER was received (or the link was lost) */
    bool flushing;                  /* its flush has started */
    bool failed;                    /* a volume of it cannot be made stable */
    bool acked;                     /* a barrier ack is wanted: false once the link is lost */
};

/* The flush before a barrier ack; only the oldest epoch flushes, so a volume needs one. */
struct epoch_flush {
    struct disk_op op;
    struct receive_epoch *epoch;
    struct volume *v;
};

struct peer_request {
    struct list_head link;          /* free list or the queue it waits in */
    struct volume *volume;
    uint8_t kind;                   /* enum peer_kind */
    bool thin;                      /* RESYNC_READ: zeroes may be answered with P_RS_DEALLOCATED */
    bool by_digest;                 /* RESYNC_READ: P_CSUM_RS_REQUEST */
    bool granted;                   /* WRITE: holds its range */
    bool flushed_first;             /* WRITE with DP_FLUSH: the flush before it is done */
    bool waits_for_own;             /* WRITE: own writes to these blocks are on their way to the disk (conflict.c) */
    uint32_t link_generation;       /* the link it came over */
    uint64_t block_id;              /* echoed */
    uint64_t sector;
    uint32_t bytes;                 /* length of the area */
    uint32_t done_bytes;            /* WRITE, ZERO: finished; more than the activity log takes at once goes in parts */
    uint32_t dp_flags;
    struct buf *buf;                /* payload */
    struct receive_epoch *epoch;    /* WRITE, ZERO */
    struct range_item lock;
    struct al_waiter al;
    struct disk_op op;
};

/* ---- metadata jobs ---- */

enum md_job_kind { MD_SUPERBLOCK, MD_BITMAP_WRITE, MD_AL_INITIALIZE, MD_LOAD_BITMAP, MD_RESIZE, MD_WIPE };

struct md_job {
    struct list_head link;          /* the volume's queue, or the free list */
    uint8_t kind;                   /* enum md_job_kind */
    uint64_t cookie;                /* of the command, 0 = none */
    struct volume *volume;
    uint64_t cursor;                /* page or block to go on with */
    uint64_t pages;                 /* pages of the operation in flight */
    bool data_flushed;              /* BITMAP_WRITE with external metadata: the data disk's flush was started */
    bool flushing;                  /* last step: the flush is in flight */
    uint8_t *superblock;            /* SUPERBLOCK: copy of the blob */
    struct buf *buf;
    struct disk_op op;
};

/* ---- volume ---- */

enum al_phase { AL_IDLE, AL_WRITING_BITMAP, AL_WRITING_BLOCK };

struct volume {
    struct core *core;
    int number;
    bool attached;                  /* a disk is there */
    uint32_t attachment;            /* counts attached disks: references of an earlier one are void */
    bool loading;                   /* its bitmap is being read */
    bool disk_failed;               /* an error was reported: no new operation is started */
    bool given_up;                  /* nobody waits for the disk any more (disk_ops.c) */
    bool bad_blocks;                /* pass_on: blocks that this disk lost are marked, the peer has them */
    bool others_whole;              /* with bad_blocks: every write since then is on this disk as well */
    bool read_turn;                 /* round-robin: the last one went to the peer */
    bool error_reported;            /* pass_on: the control plane was told, and has not set a state since */
    uint64_t quiesce_cookie;
    bool quiesce_flushing;
    struct disk_op quiesce_op;
    struct list_head in_flight;     /* struct volume_op, oldest first */
    uint64_t hung;                  /* operations given up that have not come back */
    bool detaching;
    uint64_t detach_cookie;
    uint64_t drain_cookie;
    struct re_attach disk;
    struct re_state state;
    struct re_resync resync_options;
    uint64_t size_bytes;
    struct range_lock ranges;
    uint32_t writes_behind;         /* requests with `behind` */
    uint32_t passing;               /* the peer's writes in it that pass own ones (conflict.c) */
    uint32_t dropped;               /* requests with `dropped` */
    struct list_head held;          /* requests that wait for the volume to thaw */
    struct list_head parked;        /* finished requests whose completion waits for the end of a suspension */
    struct list_head remote_reads;  /* asked from the peer */
    struct list_head flush_waiters; /* flushes that wait for barrier acks */
    uint64_t in_flight_bytes;       /* replicated and not barrier-acked */
    bool congestion_reported;       /* the control plane knows: congested, or over while Ahead */
    uint32_t seq_out;               /* sequence number of the last packet that consumes one */
    uint32_t seq_in;                /* highest one that the peer's packets had */

    struct activity_log *al;
    struct list_head al_waiting;    /* no slot, or behind one that has none */
    struct list_head al_planned;    /* in the transaction in flight or the next one */
    uint8_t al_phase;               /* enum al_phase */
    bool al_retry;                  /* references were put: look at al_waiting again */
    bool al_held;                   /* nobody is let in */
    uint64_t al_hold_cookie;        /* told when nobody is in it any more */
    struct re_attach resize;        /* of the resize that waits for its turn among the metadata jobs */
    uint64_t wipe_offset, wipe_end; /* bytes on md_fd, of the wipe among them */
    uint32_t al_pages_pending;      /* bitmap pages to be written before the transaction */
    uint32_t al_evicted[64];
    uint32_t al_evicted_count;
    struct buf *al_block;
    struct disk_op al_op;
    struct disk_op al_page_ops[64];
    struct buf *al_page_bufs[64];

    struct bitmap *bitmap;
    struct list_head md_jobs;       /* first one runs */
    bool md_job_in_flight;

    bool bitmap_sending;            /* P_BITMAP packets are being produced */
    bool bitmap_last_plain;         /* the last one was plain: an empty one ends the series */
    uint64_t bitmap_send_bit;
    uint64_t bitmap_send_cookie;
    uint64_t bitmap_receive_bit;    /* how far the peer's bitmap was received */
    bool bitmap_receiving;          /* WFBitMapS/T: the peer's bitmap is expected */

    struct resync_target target;
    struct turns turns;
    struct resync_source source;
    struct resync_look look;
    struct verify verify;
    struct epoch_flush epoch_flush;
    bool source_finished_reported;
    struct undo *undo;              /* undo.c; NULL: there is none */
    struct undo *undo_hung;         /* one that is gone; a hung disk may still fill its buffer */
    struct re_volume_stats stats;
};

/* ---- link ---- */

enum link_phase { LINK_DOWN, LINK_UP, LINK_LOST };

struct ping_waiter {
    uint64_t cookie;
    uint64_t serial;                /* answered by the P_PING_ACK number `serial` */
};

enum { PING_WAITERS_MAX = 32 };

struct link {
    uint8_t phase;                  /* enum link_phase */
    uint32_t generation;            /* counts links */
    struct re_link options;
    struct peer_stream *data, *meta;
    struct transfer_log log;
    struct list_head kept;          /* freeze.c: sent over an earlier link and not barrier-acked, oldest first */
    uint64_t resend_cookie;         /* LINK_RESEND is under way */
    uint32_t resend_generation;     /* the link it is meant for */
    uint32_t resend_reads;          /* data that is being read back for it */
    bool resend_failed;
    struct list_head unsent;        /* protocol A: requests whose packet has not left, by request.sent */
    struct list_head epochs;        /* struct receive_epoch */
    struct list_head free_epochs;
    struct receive_epoch *epoch_entries;
    uint32_t peer_writes;           /* received and not finished */
    uint64_t resolve_cookie;        /* LINK_RESOLVE waits for peer_writes == 0 */
    bool barrier_urgent;            /* somebody waits for the closed epoch's barrier ack: send its barrier now */
    uint64_t barrier_due_ns;        /* when the barrier of the closed epoch is sent without a next write */
    uint64_t half_gone_ns;          /* when one socket ended and the other had not; 0 = both are there */
    bool receive_starved;           /* the data socket waits for buffers or entries */
    bool meta_waits;                /* the meta socket waits until the peer reads or the control plane catches up */
    uint64_t seq_wait_ns;           /* two Primaries: it waits since then for acks that were sent before; 0 = no */
    struct request *spare;          /* two Primaries: for a write that nobody asked for (conflict.c) */

    bool ping_outstanding;
    uint64_t ping_sent_ns;
    uint64_t pings_sent, pings_acked;
    struct ping_waiter ping_waiters[PING_WAITERS_MAX];
    uint32_t ping_waiter_count;
};

/* ---- streams ---- */

enum stream_owner { STREAM_UNUSED, STREAM_PEER, STREAM_NBD };

/* A socket to the peer.  Until LINK_UP every packet goes to the control plane. */
struct peer_stream {
    struct stream stream;
    bool paused;                    /* waits for STREAM_RESUME */
    bool closed_reported;
    bool in_link;
    bool is_meta;
    enum { RX_NONE, RX_PEER_REQUEST, RX_REMOTE_READ, RX_RESYNC, RX_DROP } rx_kind;   /* whose payload is coming in */
    void *rx_object;
    size_t digest_bytes;            /* of the payload in hand, 0 = none came with it */
    uint8_t digest[DIGEST_BYTES_MAX];
    uint16_t digest_command;
    uint64_t digest_sector;
    const uint8_t *digest_payload;
    size_t digest_length;
};

struct stream_slot {
    uint8_t owner;                  /* enum stream_owner */
    union {
        struct peer_stream *peer;
        struct nbd_session *session;
    };
};

/* ---- core ---- */

struct event_node {
    struct list_head link;
    struct re_event event;
    uint8_t *blob;
};

struct core {
    const struct io_ops *io;
    void *io_ctx;
    uint64_t now_ns;                /* read once per tick */
    bool stopped;

    struct request_table requests;
    struct buf_pool app_buffers, peer_buffers, md_buffers;
    struct volume *volumes[RE_VOLUMES_MAX];
    struct link link;
    struct stream_slot streams[RE_STREAMS_MAX];
    int streams_end;                /* one past the highest stream number ever used */
    uint32_t peer_count, resync_count;      /* entries of the two tables below */
    struct peer_request *peer_entries;
    struct source_read *source_reads;   /* what a resync source has to know of each of them beyond that */
    struct list_head peer_free;
    struct resync_request *resync_entries;
    struct list_head resync_free;
    struct verify_question *verify_question_entries;
    struct list_head verify_question_free;
    struct verify_blocks *verify_answer_entries;
    struct list_head verify_answer_free;
    struct md_job *md_entries;
    struct list_head md_free;

    struct list_head done;          /* finished disk operations */
    struct list_head granted;       /* ranges granted by a release, by range.ready */
    struct list_head completed;     /* requests whose owner has to be told, by request.link */
    struct list_head submit;        /* disk operations to be handed to the shell */
    struct list_head op_free;       /* struct volume_op */
    struct op_chunk *op_chunks;
    struct list_head events;        /* struct event_node */
    uint32_t events_count;
    uint32_t illegal_reason;        /* why the packet in hand is illegal (receiver.c) */
    uint64_t payloads_due_ns;       /* when to look for payloads of NBD clients that stopped arriving */
    bool turn_waits;                /* requests of a client wait only because it has had its turn */
    struct nbd_host nbd_host;
    struct re_engine_stats stats;
};

/* core.c */
void core_emit(struct core *core, const struct re_event *event, const uint8_t *blob, size_t blob_length);
void core_done(struct core *core, uint64_t cookie, int volume, enum re_result result, int error);
void core_stream_closed(struct core *core, struct peer_stream *peer, enum re_status status);

/* volume.c */
struct volume *volume_get(struct core *core, int number);
void volume_destroy(struct volume *v);
void volume_attach(struct volume *v, const struct re_attach *attach, uint64_t cookie);
void volume_attach_finished(struct volume *v, uint64_t cookie, int error);
void volume_detach(struct volume *v, uint64_t cookie);
void volume_set_state(struct volume *v, const struct re_state *state);
void volume_drain(struct volume *v, uint64_t cookie);
void volume_check_idle(struct volume *v);       /* ends a detach or drain that waits */
bool volume_is_frozen(const struct volume *v);
bool volume_waits_for_disk(const struct volume *v);
void volume_thaw(struct volume *v);
bool volume_disk_usable(const struct volume *v);    /* operations on data may be started */
void volume_disk_finished(struct volume *v, struct disk_op *op);
void volume_disk_error(struct volume *v, const struct disk_op *op, enum re_disk_op what);
bool volume_can_flush(const struct volume *v);      /* what was written can still be made stable */
void volume_quiesce(struct volume *v, uint64_t cookie);
void volume_set_size(struct volume *v, uint64_t size_bytes);
bool volume_lock_range(struct volume *v, struct range_item *item, uint64_t offset, uint64_t length,
                       enum range_mode mode, void (*granted)(struct range_item *));
void volume_unlock_range(struct volume *v, struct range_item *item);
void volume_set_dirty(struct volume *v, uint64_t offset, uint64_t length);
bool volume_differs_in(const struct volume *v, uint64_t offset, uint64_t length);    /* a marked block; length > 0 */
void volume_clear_dirty(struct volume *v, uint64_t offset, uint64_t length);

/* balance.c */
bool balance_reads_remotely(struct volume *v, const struct request *request);
bool balance_read_is_alone(const struct volume *v, const struct request *request);
bool balance_read_waits(const struct volume *v, const struct request *request);

/* split.c */
bool split_is_needed(const struct core *core, const struct request *request);
bool split_sends_zeroes(const struct core *core, const struct request *request);
bool split_can_carry(const struct core *core, const struct request *request);
uint64_t split_zero_bytes_max(const struct core *core);
uint32_t split_data_bytes_max(const struct core *core);
void split_send(struct core *core, struct request *request, uint32_t dp_flags);
bool split_ack_matches(const struct request *request, uint64_t sector);
void split_clear_dirty(struct request *request, uint64_t sector);

/* disk_ops.c */
void volume_disk_submit(struct volume *v, struct disk_op *op, void (*done)(struct disk_op *), void *owner);
/* What the undo itself reads and writes. */
void volume_disk_submit_past_undo(struct volume *v, struct disk_op *op, void (*done)(struct disk_op *), void *owner);
void volume_disk_give_up(struct volume *v, uint32_t older_than_ms);
void volume_disk_start(struct volume *v, struct disk_op *op);
uint64_t volume_disk_deadline(const struct volume *v);
void volume_disk_check_timeout(struct volume *v);
void disk_ops_destroy(struct core *core);

/* undo.c: what a split brain's loser had */
void undo_start(struct volume *v, const struct re_undo *files, uint64_t cookie);
void undo_stop(struct volume *v, uint64_t cookie);
void undo_cancel(struct volume *v);
void undo_forget(struct volume *v);
void undo_give_up(struct volume *v);
void undo_free_hung(struct volume *v);
bool undo_takes(struct volume *v, struct disk_op *op);
void undo_operation_ended(struct volume *v);
void undo_read(struct request *r);

/* activity.c */
void volume_al_begin(struct volume *v, struct al_waiter *waiter, uint64_t offset, uint64_t length);
void volume_al_put(struct volume *v, struct al_waiter *waiter);
void volume_al_tick(struct volume *v);
void volume_al_abandon(struct volume *v);
void volume_al_hold(struct volume *v, bool held, uint64_t cookie);
void volume_al_link_lost(struct volume *v);

/* metadata.c */
enum re_status volume_md_job(struct volume *v, enum md_job_kind kind, uint64_t cookie, const uint8_t *superblock);
void volume_md_tick(struct volume *v);
void volume_resize(struct volume *v, const struct re_attach *to, uint64_t cookie);
void volume_md_wipe(struct volume *v, uint64_t offset, uint64_t length, uint64_t cookie);

/* app.c: application requests */
struct request *request_of_range(struct range *range);  /* the own write whose lock this is, or NULL */
void request_lock_again(struct request *request);       /* behind everything that waits for its range */
void request_write_local(struct request *request);
void request_leave_extents(struct request *request);
void request_hold_aside(struct request *request);
void volume_submit(struct volume *v, struct request *request);
void request_resume(struct request *request);   /* after a thaw */
void request_settle(struct request *request);
void request_start_write(struct request *request);     /* its range and its extents are held */
/* fast_zero.c: REQUEST_FAST with a peer.  True: it goes on by itself, or ends. */
bool fast_zero_first(struct request *request, bool local);
void request_mark_dirty(struct request *request);
void request_read_start(struct request *request);
void request_net_done(struct request *request, bool ok);
void app_flush_check(struct core *core);
void core_complete_requests(struct core *core);

/* It leaves the transfer log, or what is kept of it. */
static inline void request_left_log(struct request *r)
{
    r->volume->stats.peer_pending--;
    r->volume->in_flight_bytes -= r->length;
}

/* link.c */
enum re_status link_init(struct core *core);
void link_up(struct core *core, const struct re_link *options);
void link_lost(struct core *core, enum re_lost reason, unsigned detail, uint64_t value, bool report);
void link_resolve(struct core *core, uint64_t cookie, bool keep);
void link_peer_disk_lost(struct volume *v);
void link_check_resolved(struct core *core);
void link_ping(struct core *core, uint64_t cookie);
uint64_t link_timers(struct core *core);
bool link_is_up(const struct core *core);
bool link_peer_is_ours(const struct core *core);

/* freeze.c */
bool freeze_needs_data(const struct request *request);
bool freeze_holds(const struct request *request);
void freeze_let_go(struct request *request);
void freeze_begin(struct volume *v);
void freeze_park(struct request *request);
void freeze_release(struct volume *v);
bool freeze_has_kept(const struct core *core);
void freeze_keep(struct core *core);
void freeze_give_up(struct core *core);
void freeze_resend(struct core *core, uint64_t cookie);

/* sender.c: what goes to the peer */
bool volume_replicates(const struct volume *v);
bool volume_notifies_out_of_sync(const struct volume *v);
void sender_write(struct core *core, struct request *request);
void sender_out_of_sync(struct volume *v, uint64_t offset, uint64_t length);
void sender_data_request(struct volume *v, struct request *request);
void sender_resync_request(struct volume *v, unsigned command, uint64_t offset, uint32_t bytes);
void sender_csum_request(struct volume *v, uint64_t offset, uint32_t bytes, const uint8_t *digest, size_t length);
void sender_reply(struct volume *v, unsigned command, const struct peer_request *request);
void sender_reply_part(struct volume *v, unsigned command, const struct peer_request *request, uint32_t at,
                       uint32_t bytes);
void sender_deallocated(struct volume *v, const struct peer_request *request, uint32_t at, uint32_t bytes);
void sender_ack(struct volume *v, unsigned command, uint64_t sector, uint64_t block_id, uint32_t bytes);
void sender_barrier_ack(struct core *core, const uint8_t number[4], uint32_t count);
void sender_close_epoch(struct core *core, const struct epoch *completed);
void sender_barrier(struct core *core);
void sender_barrier_tick(struct core *core);
void sender_sent(struct core *core);
void sender_counts_as_gone(struct core *core, struct request *request);
bool sender_replies_first(const struct core *core);
void sender_raw(struct core *core, bool meta, unsigned command, unsigned volume, const void *body, size_t bytes);

/* receiver.c: what comes from the peer */
void receiver_parse(struct core *core, struct peer_stream *peer);
void receiver_drop_payload(struct core *core, struct peer_stream *peer);
void epoch_acknowledged(struct core *core, struct epoch *epoch);

/* verify.c, verify_source.c, verify_target.c: online verify */
bool verify_init(struct core *core);
void verify_destroy(struct core *core);
void verify_order(struct volume *v, const struct re_verify *order);
void verify_begin(struct volume *v);
void verify_end(struct volume *v);
void verify_stop(struct volume *v);
void verify_pump(struct volume *v);
uint64_t verify_deadline(const struct volume *v);
void verify_yield(struct volume *v, const struct range *write);
bool verify_request(struct volume *v, uint64_t sector, uint32_t bytes);
void verify_reply(struct volume *v, uint64_t sector, uint32_t bytes, const uint8_t *digest, size_t digest_length);
void verify_refused(struct volume *v, uint64_t sector, uint32_t bytes);
void verify_verdict(struct volume *v, uint64_t sector, uint32_t bytes, uint64_t verdict);
void verify_answer_start(struct volume *v);
/* among these three */
struct verify_blocks *verify_take(struct volume *v, bool is_answer, uint64_t offset, uint32_t bytes);
void verify_release(struct verify_blocks *b);
struct verify_blocks *verify_find(struct volume *v, uint64_t offset, bool is_answer);
bool verify_is_current(const struct verify_blocks *b);
uint32_t verify_block_bytes(const struct verify_blocks *b, uint32_t block);
void verify_lock(struct verify_blocks *b);
void verify_settle(struct verify_blocks *b);
void verify_read(struct verify_blocks *b);
void verify_digests(const struct verify_blocks *b, enum digest_alg alg, uint8_t out[][DIGEST_BYTES_MAX]);
void verify_ask(struct verify_blocks *b);
void verify_compare(struct verify_blocks *b);
void verify_answer(struct verify_blocks *b);
void verify_refuse(struct verify_blocks *b);
void verify_differs(struct volume *v, uint64_t offset, uint32_t bytes);
void verify_finished(struct volume *v);
void verify_count_from(struct volume *v, uint64_t begin, uint64_t end);
void verify_question_pump(struct volume *v);
void verify_answer_pump(struct volume *v);
uint64_t verify_answer_deadline(const struct volume *v);

/* integrity.c: data-integrity-alg */
size_t integrity_put(const struct link *link, uint8_t *out, const void *data, size_t bytes);
size_t integrity_received_bytes(const struct core *core);
void integrity_expect(struct peer_stream *peer, const struct packet_header *header, const uint8_t *body, size_t digest,
                      const uint8_t *payload, size_t bytes);
bool integrity_check(struct core *core, struct peer_stream *peer);

/* peer_write.c */
void peer_write_received(struct core *core, struct peer_request *pr);
void peer_barrier(struct core *core, const uint8_t number[4]);
void peer_epochs_check(struct core *core);
void peer_epochs_orphan(struct core *core);
void peer_writes_drop_waiting(struct volume *v);
void peer_write_start(struct peer_request *pr);
struct peer_request *peer_write_of_range(struct range *range);  /* passing ones only */
void peer_epochs_stable(struct volume *v);
struct receive_epoch *peer_epoch_open(struct core *core);
struct peer_request *peer_request_take(struct core *core, struct volume *v, enum peer_kind kind);
void peer_request_free(struct core *core, struct peer_request *pr);

/* conflict.c: two Primaries */
bool conflict_must_wait(struct volume *v, uint32_t seq_num);
void conflict_seen(struct volume *v, uint32_t seq_num);
enum range_mode conflict_mode(const struct core *core);     /* how a write of the peer takes its range */
void conflict_arrived(struct peer_request *pr);             /* it has taken it */
bool conflict_holds_up(struct peer_request *pr);            /* it must not go to the disk yet */
void conflict_pass(struct peer_request *pr);    /* it waits: it goes before own writes that have not been sent */
void conflict_stay_behind(struct volume *v, const struct range *resync);
void conflict_finished(struct peer_request *pr);
bool conflict_defers(struct request *request);
bool conflict_local_done(struct request *request);  /* true: the local part is not over */
void conflict_answered(struct request *request, bool retry);
void conflict_set_dropped(struct request *request, bool dropped);
bool conflict_dropped_in(const struct volume *v, uint64_t offset, uint64_t length);
bool conflict_release_older(struct core *core, uint32_t number);
void conflict_tick(struct core *core);
uint64_t conflict_deadline(const struct core *core);
void conflict_link_lost(struct core *core);
bool conflict_can_keep(const struct core *core);
void conflict_keep_acknowledged(struct core *core);     /* of what was kept without a link */

/* congestion.c */
void congestion_check(struct volume *v);    /* before a write is sent */
void congestion_declines(struct volume *v, struct re_state *state);
void congestion_state_changed(struct volume *v, uint8_t before);
void congestion_tick(struct volume *v);
bool congestion_marks_again(struct volume *v, uint64_t offset, uint64_t length);

/* peer_read.c */
void peer_read_received(struct core *core, struct peer_request *pr);

/* bitmap_exchange.c */
void bitmap_send_start(struct volume *v, uint64_t cookie);
void bitmap_send_pump(struct volume *v);
bool bitmap_receive(struct volume *v, unsigned command, const uint8_t *body, uint32_t length);

#endif
