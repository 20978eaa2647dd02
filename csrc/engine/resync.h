/* SPDX-License-Identifier: Apache-2.0 */
/* The two ends of a resync: the target's requests and the source's answers.  Only engine/ includes this. */
#ifndef ENGINE_RESYNC_H
#define ENGINE_RESYNC_H

#include "base/digest.h"
#include "base/pool.h"
#include "io/io.h"
#include "req/request.h"
#include "resync/limit.h"
#include "resync/rate.h"

struct peer_request;
struct volume;

enum {
    RESYNC_REQUEST_BYTES_MAX = 256 << 10,   /* of data at once */
    RESYNC_CSUM_BYTES_MAX = 64 << 10,       /* one difference costs the transfer of all of it */
    RESYNC_THIN_BYTES_MAX = 1 << 20,        /* where the answers before were holes */
    RESYNC_REQUESTS_MAX = 1024,             /* of a target, in flight */
    RESYNC_ZERO_RUN_BYTES = 16 << 10,       /* zeroes within data that are worth a part of their own */
    RESYNC_ISLAND_BYTES = 64 << 10,         /* read at once among holes */
};

/* ---- target ---- */

enum resync_stage {
    RESYNC_FREE,
    RESYNC_LOCKING,     /* writes before it have to finish; nothing sent */
    RESYNC_READING,     /* the own block, for its digest */
    RESYNC_ASKED,       /* sent; may have stepped behind a write of the peer since */
    RESYNC_RECEIVING,   /* the reply's payload arrives */
    RESYNC_RECEIVED,    /* the reply is here, writes before it have to finish */
    RESYNC_WRITING,
    RESYNC_WRITTEN,     /* not flushed yet */
};

struct resync_request {
    struct list_head link;          /* free list, in flight, or written and not yet flushed */
    struct volume *volume;
    uint8_t stage;                  /* enum resync_stage */
    bool thin;                      /* the answer may be P_RS_DEALLOCATED */
    bool by_digest;                 /* the answer may be P_RS_IS_IN_SYNC */
    bool stepped_back;              /* a write went before it: the digest that was sent is not that of the block */
    bool peer_waits;                /* two Primaries: a write of the peer waits for it, and it is not sent yet */
    bool zero;                      /* the answer: zeroes */
    uint32_t link_generation;
    uint32_t run;                   /* resync run it belongs to */
    uint64_t offset;                /* bytes */
    uint32_t bytes;
    uint64_t since_ns;              /* asked, or given to the disk */
    struct buf *buf;
    struct range_item lock;
    struct disk_op op;
};

struct resync_target {
    uint32_t run;                   /* counts runs: answers of an earlier run are dropped */
    uint64_t cursor_bit;            /* next bit to look at */
    uint32_t in_flight;             /* requests not finished */
    uint64_t in_flight_bytes;       /* asked for and not arrived */
    uint64_t unwritten_bytes;       /* at the own disk: read for a digest, or arrived and not written yet */
    uint64_t unanswered_bytes;      /* asked for on this link, also by earlier runs, and not answered */
    uint64_t owed_bytes;            /* of these: asked for by earlier runs */
    uint32_t link_generation;       /* the link on which this run began */
    uint32_t thin_bytes;            /* how much a thin request asks for: grows over holes */
    struct list_head requests;      /* in flight */
    struct list_head written;       /* on disk, not yet flushed */
    struct list_head flushing;      /* covered by the flush in flight */
    struct disk_op flush_op;
    uint32_t flush_run;             /* run in which it was started */
    bool flush_in_flight;
    bool flush_first;               /* what was written before this run has to be stable before digests count */
    bool finished_reported;
    bool again;                     /* something has to be asked for once more */
    uint64_t failed_bits;
    bool made_progress;             /* a bit was cleared since the cursor last stood at 0 */
    struct rate_control rate;
    struct speed_marks speed;
    uint64_t rate_tick_ns;          /* next tick of the controller */
    int64_t allowed_sectors;        /* may still be asked for in this tick */
    uint64_t arrived_sectors;       /* since the last tick */
};

/* turns.c */
struct turns {
    uint8_t turn;                   /* 0: own writes are sent */
    bool writes_wait;               /* own writes are in `held` until it is their turn */
    uint64_t over_ns;               /* when requests last had their turn */
};

/* ---- source ---- */

/* A read for the target, beside its struct peer_request. */
struct source_read {
    uint32_t answered;              /* bytes of it, if it is answered in parts */
    uint32_t part;                  /* bytes of the part that is being read */
    uint64_t since_ns;              /* given to the disk */
    uint8_t digest[DIGEST_BYTES_MAX];   /* the target's */
    bool sparse;                    /* zeroes stand before what comes now, or are to be expected */
    struct disk_extent extent;      /* what was found when it was looked for holes */
};

enum { SOURCE_FAILED_WRITES = 32 };

struct resync_source {
    struct list_head throttled;     /* requests that wait, oldest first */
    uint64_t throttle_ns;           /* when the next one may start; 0: none waits */
    struct speed_marks speed;
    /* Writes that failed here in this resync, while the target may have them: whole blocks, in bytes. */
    struct {
        uint64_t begin, end;
    } failed[SOURCE_FAILED_WRITES];
    uint32_t failed_count;          /* more than there is room for: everywhere */
};

/* ---- both ---- */

enum look_wait { WAITS_FOR_ANSWERS, WAITS_FOR_RATE, WAITS_FOR_BUFFERS, WAITS_FOR_APPLICATION };

struct resync_look {
    struct limit_usage usage;       /* of the period since `period_ns` */
    uint64_t period_ns;             /* its beginning; 0: no resync */
    uint64_t seen_ns;               /* last call of resync_look_tick */
    uint64_t quickest_ns;           /* quickest answer of this run; 0: none came yet */
    uint8_t waits;                  /* enum look_wait: why the target asks for nothing now */
    uint8_t own, peer;              /* enum limit_verdict */
    uint64_t received_bytes;        /* resync data ever received */
    uint64_t application_bytes;     /* of applications' reads and writes, as last seen */
};

/* resync_target.c */
void resync_target_start(struct volume *v);
void resync_target_stop(struct volume *v);
void resync_target_resumed(struct volume *v);
void resync_target_pump(struct volume *v);
uint64_t resync_target_deadline(const struct volume *v);
void resync_request_forget(struct resync_request *rq);
void resync_request_release(struct resync_request *rq);
bool resync_request_is_current(const struct resync_request *rq);

/* turns.c */
bool turns_ask(struct volume *v, bool wants);   /* may requests be sent? */
bool turns_hold(const struct request *request); /* an own write may not */
void turns_check(struct volume *v);             /* are they all answered? */
void turns_reset(struct volume *v);

/* resync_ask.c */
bool resync_ask_next(struct volume *v);
void resync_ask_granted(struct range_item *item);
void resync_target_yield(struct volume *v, const struct range *write);
struct resync_request *resync_target_find(struct volume *v, uint64_t sector, uint32_t bytes);
bool resync_request_shrink(struct resync_request *rq, uint32_t bytes);

/* resync_answer.c */
void resync_target_data(struct resync_request *rq);
void resync_target_zero(struct resync_request *rq);
void resync_target_equal(struct volume *v, uint64_t sector, uint32_t bytes);
void resync_target_failed(struct volume *v, uint64_t sector, uint32_t bytes);
void resync_target_again(struct volume *v, uint64_t sector, uint32_t bytes);
void resync_answer_write(struct resync_request *rq);
void resync_answer_flush(struct volume *v);
bool resync_target_expects(struct volume *v, uint64_t bytes);

/* resync_source.c */
void resync_source_start(struct volume *v);
void resync_source_stop(struct volume *v);
void resync_source_received(struct peer_request *pr, const uint8_t *digest);
void resync_source_tick(struct volume *v);
uint64_t resync_source_deadline(const struct volume *v);
/* pass_on: what the target answers about a block that was not written may be older than its copy of that write. */
void resync_source_lost(struct volume *v, const struct disk_op *op, enum re_disk_op what);
bool resync_source_has_failed(const struct volume *v, uint64_t offset, uint64_t length);
void resync_source_acked(struct volume *v, uint64_t sector, uint32_t bytes);
void resync_source_check(struct volume *v);

/* resync_look.c: what it waits for, and whether applications want the disk */
void resync_look_start(struct volume *v);
/* The figures of a run begin anew, on either side. */
void resync_counting_start(struct volume *v);
void resync_look_stop(struct volume *v);
void resync_look_tick(struct volume *v);
void resync_look_told(struct volume *v, const uint8_t *body);
uint64_t resync_look_deadline(const struct volume *v);
bool resync_application_first(struct volume *v);

#endif
