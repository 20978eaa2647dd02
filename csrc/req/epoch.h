/* SPDX-License-Identifier: Apache-2.0 */
/* The transfer log: replicated writes grouped into epochs, from sending until the barrier ack.
 *
 * Invariants: requests stand in sending order; an epoch is closed before a write that may depend on one of its
 * completed writes is sent; an epoch leaves only by its barrier ack, oldest first, or when the link is resolved after
 * its loss.
 */
#ifndef REQ_EPOCH_H
#define REQ_EPOCH_H

#include "req/request.h"

struct epoch {
    struct list_head link;          /* the log's list of epochs, oldest first; or the free list */
    struct list_head requests;      /* by request.tl */
    uint64_t serial;                /* counts epochs, never reused */
    uint32_t number;                /* barrier number on the wire */
    uint32_t count;                 /* writes in it */
    uint32_t discarded;             /* writes that were in it until the peer refused them (engine/conflict.c) */
    bool closed;                    /* no write may be added any more */
    bool barrier_sent;              /* its P_BARRIER is queued */
    uint64_t barrier_sent_ns;       /* when */
};

struct transfer_log {
    struct list_head epochs;        /* oldest first; the last may be open */
    struct list_head free;          /* unused epochs */
    struct epoch *entries;          /* their memory */
    uint64_t next_serial;           /* serial of the next epoch */
    uint32_t requests;              /* requests in the log */
    uint32_t epochs_open;           /* epochs in the list */
};

/* At most `requests_max` requests are ever in the log, and each epoch holds at least one. */
enum re_status transfer_log_init(struct transfer_log *log, uint32_t requests_max);
void transfer_log_destroy(struct transfer_log *log);
/* The open epoch, or NULL when the next write starts a new one. */
struct epoch *transfer_log_open_epoch(const struct transfer_log *log);
/* Append a write to the open epoch, starting one if needed (the caller has sent the barrier of the closed one). */
void transfer_log_append(struct transfer_log *log, struct request *request);
/* Close the open epoch, if there is one. Returns it or NULL. */
struct epoch *transfer_log_close(struct transfer_log *log);
/* The newest epoch when it is closed and its barrier has not been sent, else NULL. */
struct epoch *transfer_log_barrier_due(const struct transfer_log *log);
/* Take the oldest epoch off; its requests stay on `epoch->requests` until the caller has handled them. */
struct epoch *transfer_log_oldest(const struct transfer_log *log);
/* Take one request out of its epoch. */
void transfer_log_remove(struct transfer_log *log, struct request *request);
/* Give back an epoch without requests. */
void transfer_log_free(struct transfer_log *log, struct epoch *epoch);

#endif
