/* SPDX-License-Identifier: Apache-2.0 */
/* The simulator's own structures.  Only sim/ includes this.
 *
 * Invariants: whatever decides draws from one of the seed's streams; objects are found by number, never by address;
 * an event in the heap that has become void is recognized by its token and skipped.
 */
#ifndef SIM_INTERNAL_H
#define SIM_INTERNAL_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/list.h"
#include "base/prng.h"
#include "engine/core.h"
#include "sim/repl_sim.h"

#define SIM_NEVER UINT64_MAX
#define SIM_US UINT64_C(1000)
#define SIM_MS UINT64_C(1000000)
#define SIM_SECOND UINT64_C(1000000000)
#define SECTOR ((uint64_t)RE_SIM_SECTOR)
#define BLOCK UINT64_C(4096)

enum {
    NODES = RE_SIM_NODES_MAX,
    VIOLATIONS_KEPT = 64,
    VIOLATION_TEXT = 240,
    IDLE_RUNS_MAX = 2000,       /* runs without any progress, each within 1 ms of the last: the engine spins */
    PACKET_SLOTS = 128,         /* commands 0..63 and 0xffc0..0xffff */
    REQUEST_MAX = 32 << 20,     /* NBD */
};

/* Streams of the seed, so that one kind of decision does not shift the others. */
enum sim_rng { RNG_SCHEDULE, RNG_DISK, RNG_NET, RNG_LOAD, RNG_CONTROL, RNG_COUNT };

enum event_kind {
    EV_RUN,             /* a: node, b: token */
    EV_WAKE,            /* a: node, b: generation */
    EV_TIMER,           /* a: index, b: serial */
    EV_DISK,            /* a: index of the operation, b: its serial */
    EV_SEGMENT,         /* a: socket that receives */
    EV_SYN,             /* a: dial */
    EV_DIALED,          /* a: dial, b: errno */
    EV_DIAL_TIMEOUT,    /* a: dial */
    EV_CLIENT_NEXT,     /* a: client */
};

struct event {
    uint64_t at;        /* virtual time */
    uint64_t tie;       /* order among those of the same time, from the seed */
    uint32_t kind;      /* enum event_kind */
    uint32_t a;         /* object */
    uint64_t b;         /* token or value */
};

struct timer {
    uint64_t id;        /* the control plane's */
    uint64_t serial;    /* 0: free entry */
};

/* ---- network ---- */

enum segment_kind { SEGMENT_DATA, SEGMENT_EOF, SEGMENT_RESET };

struct segment {
    uint64_t at;        /* arrival */
    uint32_t length;    /* bytes of DATA */
    uint32_t kind;      /* enum segment_kind */
};

/* Finds the packets in one direction of a connection. */
struct sniffer {
    uint8_t head[16];           /* header bytes so far */
    uint32_t have;
    unsigned command;           /* of the body that is going through */
    uint64_t body;              /* body bytes still to come */
    uint64_t done;              /* body bytes that have passed */
    bool dead;
};

struct tap_state {
    uint8_t head[16];           /* header bytes so far */
    uint32_t have;
    uint32_t left;              /* body bytes still to come */
    struct re_sim_packet packet;
    uint8_t body[4096];         /* what is kept of it */
};

struct socket {
    struct re_sim *sim;
    int id;                     /* also the "fd" */
    int peer;                   /* the other end */
    int node;                   /* where it lives; for a client's end the node it talks to */
    int client;                 /* NBD client that owns it, or -1 */
    int stream;                 /* engine's stream number, or -1 */
    bool nbd;                   /* between an NBD client and an engine */
    bool open;                  /* owned by somebody */
    bool want_read, want_write; /* of the engine */
    bool held;                  /* what it sends does not arrive */
    bool flip_next;
    bool eof, reset;            /* arrived */
    bool stalled;               /* segments to it wait for the path to heal */
    bool deaf;                  /* a segment was discarded: so are all later ones */
    uint8_t *ring;              /* bytes on the way to it and arrived, allocated with the first byte */
    uint32_t capacity;          /* a power of two */
    uint32_t limit;             /* most bytes in it */
    uint32_t head;              /* position of the oldest byte */
    uint32_t arrived;           /* may be read */
    uint32_t total;             /* arrived and on the way */
    struct segment *segments;   /* ring of those on the way */
    uint32_t segment_head, segment_count, segment_capacity;
    uint64_t last_at;           /* arrival of the last segment */
    uint64_t busy_until;        /* the line is busy (bytes_per_second) */
    struct sniffer sends, receives;
    struct tap_state *tap;      /* the packet that is being sent, NULL: nothing was tapped */
};

struct listener {
    int node, port;
    bool open;
};

struct dial {
    int node, peer, port;
    int fd;                     /* own end once connected, or -1 */
    bool pending;
};

/* ---- disks ---- */

/* A finished write that no flush has covered. */
struct cached {
    struct list_head link;      /* the disk's list, by order */
    uint64_t offset, length;
    uint8_t *data;              /* NULL: zeroes */
    uint8_t *superseded;        /* bit per sector that something newer has made stable, or NULL */
    uint64_t order;             /* when it finished */
    uint64_t preflush_order;    /* in flight with PREFLUSH: what finished before is stable first; 0 otherwise */
    bool abandoned;             /* its flush failed: no later one makes it stable */
};

/* An operation in flight. */
struct disk_io {
    struct list_head link;      /* of the disk, by submission */
    struct disk_op *op;         /* the engine's, not touched after a crash */
    uint32_t index;             /* own place in the table */
    uint64_t serial;            /* 0: free */
    int disk, node;
    uint32_t generation;        /* of the node's engine */
    uint8_t kind;
    uint32_t flags;
    uint64_t offset, length;
    uint8_t *data;              /* WRITE: copy */
    uint64_t order;             /* of its submission */
    int64_t log;                /* log entry, or -1 */
    int error;                  /* to come */
    bool lost;                  /* with it the flush has failed */
    bool stuck;
};

struct log_record {
    struct re_sim_log_entry entry;
    uint8_t *data;              /* WRITE: copy */
};

struct disk {
    int node;
    uint64_t size;
    uint8_t *layers[2];         /* by enum re_sim_layer */
    struct list_head cache;     /* struct cached */
    uint32_t cache_count;
    struct list_head in_flight; /* struct disk_io */
    uint32_t in_flight_count;
    uint64_t order;             /* submissions and completions so far */
    bool hold;
    struct re_sim_disk_settings settings;
    uint32_t fail_count[4];     /* by enum re_disk_op */
    int fail_error[4];
    int mishap;                 /* enum re_sim_mishap of the next writes */
    uint32_t mishap_count;
    uint64_t mishap_limit;
    uint8_t *used;              /* bit per 4 KiB block ever written */
    uint64_t used_blocks;

    bool recording;
    uint64_t log_base;          /* `order` at the start */
    uint8_t *log_start;         /* image then */
    struct log_record *log;
    uint32_t log_count, log_capacity;
    uint8_t *base_image;        /* sure content at base_point */
    uint64_t base_point;        /* UINT64_MAX: none */
    uint32_t base_log_count;    /* entries when it was made */
    uint64_t base_flush;        /* what finished before this is stable */
    uint32_t *candidates;       /* log indices at base_point */
    uint32_t candidate_count;
};

struct snapshot {
    uint8_t *layers[2];
    struct list_head cache;
    uint32_t cache_count;
    uint64_t size, order;
};

/* ---- nodes ---- */

struct queued_command {
    struct list_head link;
    struct re_command command;
    size_t blob_length;
    uint8_t blob[];
};

struct node {
    int index;
    struct re_sim *sim;
    bool powered, frozen;
    bool vanishing;             /* power fails: sockets end silently */
    bool run_missed;            /* it was frozen when it should have run */
    struct core *core;
    uint32_t generation;        /* counts engines */
    uint64_t run_at, run_token; /* when the next run is due, SIM_NEVER: none */
    bool running;
    bool progress;              /* this run has done something */
    uint32_t idle_runs;
    uint64_t last_run;
    int sockets[RE_STREAMS_MAX];        /* by stream, -1: none */
    int open[RE_STREAMS_MAX];           /* streams in use, in order of opening */
    int open_count;
    struct list_head done;      /* disk_op.link: finished, not yet told */
    struct list_head commands;  /* struct queued_command */
    uint64_t packets[PACKET_SLOTS];
    uint64_t crash_steps;       /* disk steps to the crash point, 0: none is set */
    bool doomed;                /* it is reached */
    uint8_t reach_state;
};

/* ---- clients and histories ---- */

struct nbd_op {
    struct re_sim_op_info info;
    int32_t history;
    uint32_t waits;             /* position in the client's list of pending ones */
    struct cell *floor;         /* READ: the cells when it was invoked, until its end */
};

/* What one sector of a device may hold.  "s": latest invocation of a write or of a read that saw it. */
struct cell {
    uint64_t best_s;            /* largest s of a write that is known to have taken effect */
    uint64_t second_s;          /* the same of another write */
    uint64_t zero_done;         /* completion of the last finished write of zeroes */
    uint32_t best_op;           /* operation + 1; CELL_ZERO: zeroes of a rebase; 0: none */
    uint32_t zero_pending;      /* writes of zeroes that may yet take effect */
};
#define CELL_ZERO UINT32_MAX

struct history {
    uint64_t size;
    struct cell *cells;
    uint64_t base_order;        /* of the last rebase, 0: none */
    uint32_t *base_ops;         /* then: operation + 1 by sector, 0: zeroes */
};

struct early {                  /* a write that was seen before it was answered */
    uint64_t key;               /* 0: free */
    uint64_t order;             /* first completion of such a read */
};

struct client {
    int id, node, history, socket;
    uint64_t base;              /* where its device begins in the history */
    bool open, idle_told, scheduled, loading;
    uint8_t *tx;                /* to be sent */
    size_t tx_head, tx_end, tx_capacity;
    uint8_t header[16];
    uint32_t header_have;
    int64_t rx_op;              /* whose payload is coming in, or -1 */
    uint8_t *rx;
    size_t rx_have;
    uint64_t *pending;          /* operations without answer, unordered */
    uint32_t pending_count, pending_capacity;
    struct re_sim_workload_settings load;
    uint64_t load_left;
    struct re_sim_client_stats stats;
    bool closing;               /* DISC was sent */
};

/* ---- the world ---- */

struct re_sim {
    uint64_t seed, now, hash, events_run;
    struct prng rng[RNG_COUNT];
    struct event *heap;
    size_t heap_count, heap_capacity;
    struct re_sim_notice *notices;
    size_t notice_count, notice_capacity;
    uint32_t notice_mask;
    struct timer *timers;
    size_t timer_count;
    uint64_t serial;            /* for timers and disk operations */
    uint64_t order;             /* invocations and completions of clients */
    struct re_sim_timing timing;
    FILE *trace;

    struct node nodes[NODES];
    struct socket **sockets;
    size_t socket_count, socket_capacity;
    struct listener *listeners;
    size_t listener_count;
    struct dial *dials;
    size_t dial_count;
    struct re_sim_net_settings net[NODES][NODES], net_nbd;
    uint8_t path[NODES][NODES];

    struct disk **disks;
    size_t disk_count;
    struct disk_io **ios;
    size_t io_count;
    uint32_t *io_free;
    size_t io_free_count;
    struct snapshot **snapshots;
    size_t snapshot_count;

    struct client **clients;
    size_t client_count;
    struct history **histories;
    size_t history_count;
    struct nbd_op *ops;
    size_t op_count, op_capacity;
    struct early *early;
    size_t early_count, early_capacity;

    bool tap_on;
    uint8_t *tap;               /* packets that wait */
    size_t tap_used, tap_capacity;
    struct re_sim_counters counters;
    struct re_sim_reach reach;
    uint64_t violations;
    char violation_text[VIOLATIONS_KEPT][VIOLATION_TEXT];
};

/* sim.c */
void *sim_grow(void *array, size_t count, size_t *capacity, size_t size);   /* room for one more */
void sim_push(struct re_sim *sim, uint64_t at, enum event_kind kind, uint32_t a, uint64_t b);
void sim_notice(struct re_sim *sim, const struct re_sim_notice *notice);
void sim_violation(struct re_sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));
void sim_trace(struct re_sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));
struct node *sim_node(const struct re_sim *sim, int node);
#define TRACE(sim, ...)                                                                                          \
    do {                                                                                                         \
        if (__builtin_expect((sim)->trace != NULL, 0))                                                           \
            sim_trace((sim), __VA_ARGS__);                                                                       \
    } while (0)

static inline void sim_hash(struct re_sim *sim, uint64_t value)
{
    sim->hash = prng_rotl((sim->hash ^ value) * UINT64_C(0x9e3779b97f4a7c15), 29);
}

/* Uniform in [low, high]. */
static inline uint64_t sim_between(struct re_sim *sim, enum sim_rng rng, uint64_t low, uint64_t high)
{
    return high <= low ? low : low + prng_below(&sim->rng[rng], high - low + 1);
}

static inline bool sim_chance(struct re_sim *sim, enum sim_rng rng, uint32_t ppm)
{
    return ppm != 0 && prng_below(&sim->rng[rng], 1000000) < ppm;
}

/* engine.c */
extern const struct io_ops sim_io_ops;
void node_init(struct re_sim *sim, int index);
void node_free(struct node *node);
void node_kick(struct node *node);
void node_run(struct node *node, uint64_t token);

/* net.c */
void net_init(struct re_sim *sim);
void net_free(struct re_sim *sim);
struct socket *socket_get(const struct re_sim *sim, int id);
void socket_pair(struct re_sim *sim, int node_a, int node_b, bool nbd, int fds[2]);
ssize_t socket_receive(struct re_sim *sim, struct socket *s, const struct iovec *iov, int count);
ssize_t socket_send(struct re_sim *sim, struct socket *s, const struct iovec *iov, int count);
void socket_close(struct re_sim *sim, struct socket *s, bool silently);
bool socket_readable(const struct socket *s);
bool socket_writable(const struct re_sim *sim, const struct socket *s);
void socket_arrival(struct re_sim *sim, uint32_t id);
void dial_syn(struct re_sim *sim, uint32_t id);
void dial_finished(struct re_sim *sim, uint32_t id, int error);
void dial_timeout(struct re_sim *sim, uint32_t id);
void net_node_down(struct re_sim *sim, int node, bool silently);

/* sniff.c */
size_t sniff_sent(struct socket *s, const uint8_t *data, size_t length, size_t *payload);
void sniff_received(struct socket *s, const uint8_t *data, size_t length);
void reach_request(struct re_sim *sim, int node, uint32_t kind, uint32_t event);
void reach_disk(struct re_sim *sim, int node, uint32_t kind, bool failed);

/* faults.c */
/* A disk operation of the node is submitted or completed. */
void node_disk_step(struct node *node);
/* The write's bytes go where the disk leads them; false when that is nowhere. */
bool disk_mishap(struct re_sim *sim, struct disk *d, uint64_t *offset, uint64_t length);

/* tap.c */
void tap_bytes(struct socket *s, const uint8_t *data, size_t length);
void tap_free(struct re_sim *sim);

/* disk.c */
void disk_submit(struct node *node, struct list_head *ops);
void disk_finish(struct re_sim *sim, uint32_t index, uint64_t serial);
void disk_engine_gone(struct re_sim *sim, int node, bool power_loss);
void disk_free_all(struct re_sim *sim);
struct disk *disk_get(const struct re_sim *sim, int disk);
void disk_bit_set(uint8_t *bits, uint64_t bit);
/* Bytes (NULL: zeroes) to one layer. */
void disk_layer_write(struct disk *d, int layer, uint64_t offset, uint64_t length, const uint8_t *data);
/* These bytes are stable and as new as `order`: no older cached write may undo them. */
void disk_supersede(struct disk *d, uint64_t offset, uint64_t length, uint64_t order);
/* A finished write reaches the current layer and the cache, or the stable layer at once.  Takes `data` over. */
void disk_write_take(struct disk *d, uint64_t offset, uint64_t length, uint8_t *data, bool stable);
/* What finished before number `order` becomes stable. */
void disk_cache_flush(struct disk *d, uint64_t order);
void disk_cache_clear(struct list_head *cache);
/* disk_access.c */
void disk_snapshot_drop(struct snapshot *snapshot);
/* disk_log.c */
int64_t disk_log_submit(struct re_sim *sim, struct disk *d, uint32_t kind, uint32_t flags, uint64_t offset,
                        uint64_t length, const uint8_t *data);
void disk_log_complete(struct re_sim *sim, struct disk *d, int64_t log, int error);
void disk_log_free(struct disk *d);

/* client.c */
void client_socket_event(struct re_sim *sim, int client);
void client_next(struct re_sim *sim, uint32_t client);
void client_free_all(struct re_sim *sim);

/* history.c */
void tag_fill(const struct re_sim *sim, uint8_t *sector_data, uint64_t sector, uint64_t op, uint64_t generation,
              uint32_t client);
struct history *history_get(const struct re_sim *sim, int history);
void history_invoked(struct re_sim *sim, struct nbd_op *op);
/* `state` DONE, FAILED or UNKNOWN; `data`: what a finished read has got. */
void history_completed(struct re_sim *sim, uint64_t op, uint32_t state, const uint8_t *data);
void history_free_all(struct re_sim *sim);

#endif
