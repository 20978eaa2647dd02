/* SPDX-License-Identifier: Apache-2.0 */
/* Online verify: what the two ends remember.  Included by engine/internal.h only.
 *
 * The source (VerifyS) asks for the digests of 4 KiB blocks, one packet each; the target (VerifyT) answers; the source
 * compares with its own blocks and tells the target each verdict.  Both handle up to VERIFY_BLOCKS neighbours together.
 */
#ifndef ENGINE_VERIFY_H
#define ENGINE_VERIFY_H

#include "base/digest.h"
#include "base/limits.h"
#include "base/list.h"
#include "req/request.h"
#include "resync/rate.h"

enum {
    VERIFY_BLOCKS = 16,         /* of one lock and one disk operation: 64 KiB */
    VERIFY_RUNS_MAX = 512,      /* in progress at the source, all volumes */
    VERIFY_ANSWERS_MAX = 1024,  /* in progress at the target: the kernel module may ask for scattered blocks */
    VERIFY_ROUNDS_MAX = 16,     /* writes may come between every time */
    VERIFY_RANGES_MAX = 4096,   /* differing ranges reported of one verify; more are only counted */
};

/* Neighbouring blocks under one lock. */
struct verify_blocks {
    struct list_head link;      /* free list, or the volume's */
    struct volume *volume;
    uint8_t stage;              /* enum verify_stage */
    uint32_t link_generation;
    uint32_t run;               /* verify run it belongs to */
    uint32_t count;             /* blocks */
    uint64_t offset;            /* bytes */
    uint32_t bytes;
    uint32_t missing;           /* source: digests to come; target: verdicts to come (a bit for each block) */
    uint32_t unequal;           /* source: blocks that have not been the same yet */
    uint32_t unreadable;        /* own blocks that cannot be read */
    uint32_t refused;           /* source: blocks that the target cannot read */
    uint32_t block;             /* read block by block: the one in hand */
    uint64_t epoch;             /* waits for the barrier ack of this epoch */
    uint64_t answered_ns;       /* target: when the digests were sent */
    bool is_answer;             /* target's */
    bool is_second;             /* the blocks differed once already */
    uint8_t rounds;             /* source: how often they differed */
    bool gives_way;             /* target: a write waits, the lock ends with the answer; source: one has passed it */
    bool singly;                /* the read failed: block by block */
    struct buf *buf;
    struct range_item lock;
    struct disk_op op;
};

/* A source's blocks and the digests that have come. */
struct verify_question {
    struct verify_blocks b;
    uint8_t digests[VERIFY_BLOCKS][DIGEST_BYTES_MAX];
};

enum verify_stage {
    VERIFY_FREE,
    VERIFY_LOCKING,     /* writes before it have to finish */
    VERIFY_SETTLING,    /* protocols A and B: the peer has to confirm these writes */
    VERIFY_ASIDE,       /* not in the range lock: a write of ours that the peer has dropped is to be sent again */
    VERIFY_ASKED,       /* source: may have stepped behind a write of the peer since */
    VERIFY_RECEIVED,    /* source: all digests are here, writes before it have to finish */
    VERIFY_BUFFER,      /* waits for a buffer or a disk */
    VERIFY_READING,
    VERIFY_ANSWERED,    /* target: holds its range until the verdicts come */
};

struct verify {
    uint32_t run;                   /* counts runs: what is left of an earlier one is dropped */
    uint64_t begin, end;            /* bytes; source: as ordered, target: begin of the first request */
    uint64_t cursor;                /* source: next block to ask for */
    struct list_head questions;     /* source, in order of offset */
    struct list_head answers;       /* target */
    struct verify_question *last;   /* source: where the last digest belonged */
    struct verify_blocks *open;     /* target: neighbours are still added */
    uint32_t stalled;               /* entries that wait for an epoch, a dropped write or a buffer */
    uint64_t in_flight_bytes;       /* asked for and not arrived */
    bool counting;                  /* target: the first request has told where it starts */
    bool has_asked;                 /* source: the target learns from the first request where the run starts */
    bool finished_reported;
    uint64_t range_begin, range_end;    /* differing sectors not reported yet */
    uint32_t ranges;                /* reported */
    struct rate_control rate;
    uint64_t rate_tick_ns;
    int64_t allowed_sectors;
    uint64_t arrived_sectors;
    uint64_t application_seen;
    struct speed_marks speed;
};

#endif
