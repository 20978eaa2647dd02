/* SPDX-License-Identifier: Apache-2.0 */
/* The simulator's world: virtual time, nodes that run real engine cores, disks with a volatile cache, a
 * network, NBD clients that write tagged sectors, and the checker of what they read.
 *
 * Everything follows from the seed and the calls made: no wall clock, no thread, no pointer order.  One
 * thread. Numbers (disks, sockets, clients, operations, histories) are small integers, never reused within
 * one simulation. Functions that return int give a number >= 0, or a negative errno.  A misuse by the
 * caller aborts. This header is read by the C compiler and by cffi (after repl_engine.h); cffi sees no
 * preprocessor lines.
 */
/* cffi: off */
#ifndef REPL_SIM_H
#define REPL_SIM_H
#include "include/repl_engine.h"
/* cffi: on */

enum {
    RE_SIM_NODES_MAX = 4,
    RE_SIM_SECTOR = 512,        /* unit of atomicity and of tags */
    RE_SIM_CANDIDATES_MAX = 63, /* unflushed writes that a mask can name */
};

typedef struct re_sim re_sim;

re_sim *re_sim_create(uint64_t seed);
void re_sim_destroy(re_sim *sim);
uint64_t re_sim_now(const re_sim *sim);
/* Running hash over everything that was delivered, submitted and sent.  Equal seeds and calls give equal
 * hashes. */
uint64_t re_sim_trace_hash(const re_sim *sim);
/* Append one line per happening to a file (for people); NULL stops.  0 or a negative errno. */
int re_sim_trace_file(re_sim *sim, const char *path);
/* A number below `bound` from the control plane's own stream of the seed. */
uint64_t re_sim_random(re_sim *sim, uint64_t bound);

/* ---- running ------------------------------------------------------------------------------------------ */

enum re_sim_notice_kind {
    RE_SIM_NOTICE_NONE,
    RE_SIM_NOTICE_ENGINE,       /* node: re_sim_event() has something (take all; there may be none left) */
    RE_SIM_NOTICE_TIMER,        /* value: id of re_sim_timer() */
    RE_SIM_NOTICE_DIALED,       /* id: dial; node; peer_node; fd (error 0) or error = errno */
    RE_SIM_NOTICE_ACCEPTED,     /* id: listener; node; peer_node; fd */
    RE_SIM_NOTICE_CLIENT_OP,    /* id: client; value: operation; error: NBD error (masked at first) */
    RE_SIM_NOTICE_CLIENT_IDLE,  /* id: client; its workload has issued everything and has every answer */
    RE_SIM_NOTICE_CLIENT_CLOSED,/* id: client; the engine ended the connection; error: 0 EOF, or ECONNRESET */
    RE_SIM_NOTICE_VIOLATION,    /* a violation was recorded (masked at first) */
    RE_SIM_NOTICE_STUCK,        /* node: the engine runs on and on without doing anything; it is frozen now */
    RE_SIM_NOTICE_CRASH_POINT,  /* node: the step of re_sim_crash_point() is reached; crash it or cut its power now */
};

struct re_sim_notice {
    uint32_t kind;              /* enum re_sim_notice_kind */
    int32_t node;               /* or -1 */
    int32_t peer_node;          /* or -1 */
    int32_t id;                 /* listener, dial or client, or -1 */
    int32_t fd;                 /* socket to be passed to an engine, or -1 */
    int32_t error;
    uint64_t value;
};

/* Run until something concerns the control plane (true, `*notice`) or virtual time is `until_ns` (false, kind
 * NONE). False as well when nothing at all is left to happen and `until_ns` is UINT64_MAX. */
bool re_sim_step(re_sim *sim, uint64_t until_ns, struct re_sim_notice *notice);
/* Bit (1 << kind) set: such notices are delivered.  At first all but CLIENT_OP and VIOLATION. */
void re_sim_notice_mask(re_sim *sim, uint32_t mask);
/* A notice TIMER with `id` at `at_ns` (at once when that has passed).  Several may be set, ids need not
 * differ. */
void re_sim_timer(re_sim *sim, uint64_t at_ns, uint64_t id);
/* Cancel every timer with this id, also one that is due and not delivered. */
void re_sim_timer_cancel(re_sim *sim, uint64_t id);
/* Events executed so far (for figures of cost). */
uint64_t re_sim_events(const re_sim *sim);

struct re_sim_timing {
    uint64_t wake_max_ns;       /* from an engine's event to the notice: 0..this (first 2 ms) */
    uint64_t run_max_ns;        /* from a readiness to the engine's run: 1..this (first 20 us) */
};
void re_sim_timing_set(re_sim *sim, const struct re_sim_timing *timing);

/* ---- nodes and engines -------------------------------------------------------------------------------- */

struct re_sim_engine_config {
    uint32_t requests;          /* entries of the request table; 0 = default */
    uint64_t app_buffer_bytes;  /* 0 = default */
    uint64_t peer_buffer_bytes; /* 0 = default */
};

/* A process with an engine starts on a node that has none (and is powered). */
void re_sim_engine_start(re_sim *sim, int node, const struct re_sim_engine_config *config);
bool re_sim_engine_is_running(const re_sim *sim, int node);
/* The process dies: the core is destroyed; each disk operation in flight has reached the disk's cache, in
 * part, or not; all sockets of the node (also those not yet handed to the engine) end with EOF or reset at
 * the other side; listeners, dials and undelivered notices of the node are gone.  NBD clients live on and see
 * their connection end. */
void re_sim_engine_crash(re_sim *sim, int node);
/* An orderly end after RE_EV_STOPPED: the core is destroyed, the sockets close.  The listeners stay. */
void re_sim_engine_stop(re_sim *sim, int node);
/* The machine dies: like a crash, but sockets vanish silently and all disks of the node lose power, together
 * with the operations in flight.  Until power comes back nothing answers. */
void re_sim_power_off(re_sim *sim, int node);
void re_sim_power_on(re_sim *sim, int node);
/* While frozen the process does not run (its sockets fill up, its disks go on). */
void re_sim_engine_freeze(re_sim *sim, int node, bool frozen);
/* After `steps` more submissions and completions of disk operations on the node (the control plane's count as well)
 * nothing that it does has any effect, and a notice CRASH_POINT comes.  0: no such point. */
void re_sim_crash_point(re_sim *sim, int node, uint64_t steps);
/* The point is reached, and the node has not died yet. */
bool re_sim_is_doomed(const re_sim *sim, int node);

/* Queue a command; it is carried out in the engine's next run (within timing.run_max_ns), in order. */
void re_sim_command(re_sim *sim, int node, const struct re_command *command, const uint8_t *blob,
                    size_t blob_length);
/* Take the next event; `blob` has RE_EVENT_BLOB_MAX bytes.  Call until false after a notice ENGINE. */
bool re_sim_event(re_sim *sim, int node, struct re_event *event, uint8_t *blob);
const struct re_volume_stats *re_sim_volume_stats(const re_sim *sim, int node, int volume);
const struct re_engine_stats *re_sim_engine_stats(const re_sim *sim, int node);
/* The bitmap in the engine's memory, little endian; false when there is none. */
bool re_sim_volume_bitmap(const re_sim *sim, int node, int volume, uint8_t *bits, size_t bytes);

/* ---- disks -------------------------------------------------------------------------------------------- */

enum re_sim_layer { RE_SIM_CURRENT, RE_SIM_STABLE };    /* what reads see; what survives a power loss */

struct re_sim_disk_settings {
    uint64_t read_min_ns, read_max_ns;      /* latency */
    uint64_t write_min_ns, write_max_ns;
    uint64_t flush_min_ns, flush_max_ns;
    uint64_t slow_ns;                       /* added to `slow_ppm` of the operations */
    uint32_t slow_ppm;
    uint32_t read_error_ppm, write_error_ppm, flush_error_ppm;  /* EIO by probability, per million */
    uint32_t stuck_ppm;                     /* operations that hang until re_sim_disk_release() */
    uint32_t no_fast_zero;                  /* 1: ZERO with FAST fails with ENOTSUP */
    uint64_t bad_offset, bad_length;        /* EIO on everything that touches this range; length 0 = none */
    uint64_t space_bytes;                   /* ENOSPC once so many bytes of 4 KiB blocks are in use; 0 = never */
};

/* A zeroed disk of the node; the number is the "fd" of RE_CMD_VOLUME_ATTACH.  `size_bytes` is a multiple of
 * 4096. */
int re_sim_disk_create(re_sim *sim, int node, uint64_t size_bytes);
uint64_t re_sim_disk_size(const re_sim *sim, int disk);
void re_sim_disk_settings_get(const re_sim *sim, int disk, struct re_sim_disk_settings *settings);
void re_sim_disk_settings_set(re_sim *sim, int disk, const struct re_sim_disk_settings *settings);
/* The next `count` operations of this kind (enum re_disk_op: READ, WRITE, FLUSH, ZERO) fail with `error` (an
 * errno). */
void re_sim_disk_fail_next(re_sim *sim, int disk, int kind, uint32_t count, int error);
/* The next `count` writes that lie whole below `limit` report success; the bytes are nowhere, or somewhere else below
 * it. */
enum re_sim_mishap { RE_SIM_MISHAP_LOST, RE_SIM_MISHAP_MISDIRECTED };
void re_sim_disk_mishap(re_sim *sim, int disk, int kind, uint32_t count, uint64_t limit);
/* A larger or smaller device from now on (nothing may be in flight); new bytes are zeroes. */
void re_sim_disk_resize(re_sim *sim, int disk, uint64_t size_bytes);
/* Hold: every operation submitted from now on hangs.  Release ends that and lets all hanging ones finish. */
void re_sim_disk_hold(re_sim *sim, int disk);
void re_sim_disk_release(re_sim *sim, int disk);
/* Power loss of this disk alone: any subset of the unflushed writes survives, each perhaps torn; what was in
 * flight fails with EIO.  (For a whole machine: re_sim_power_off.) */
void re_sim_disk_power_loss(re_sim *sim, int disk);

/* The control plane's own synchronous access (attach, metadata); sectors only; part of the op log, no faults.
 * 0 or a negative errno. */
int re_sim_disk_pread(re_sim *sim, int disk, uint64_t offset, uint8_t *data, uint64_t length);
int re_sim_disk_pwrite(re_sim *sim, int disk, uint64_t offset, const uint8_t *data, uint64_t length);
int re_sim_disk_flush(re_sim *sim, int disk);
/* The content, `size` bytes; valid until the next call that changes the disk. */
const uint8_t *re_sim_disk_content(const re_sim *sim, int disk, int layer);
/* Replace a range of the content in both layers, outside of the op log and of the cache (images,
 * corruption). */
void re_sim_disk_load(re_sim *sim, int disk, uint64_t offset, const uint8_t *data, uint64_t length);
void re_sim_disk_flip_bit(re_sim *sim, int disk, uint64_t byte_offset, unsigned bit);
/* Count the 4 KiB blocks in which two ranges differ (a short last block counts); `bitmap` (may be NULL): one
 * bit a block, little endian, set where different. */
uint64_t re_sim_disk_diff(const re_sim *sim, int disk_a, uint64_t offset_a, int disk_b, uint64_t offset_b,
                          uint64_t length, int layer, uint8_t *bitmap);
/* Copy of both layers and of the cache is kept under a number; restoring needs no operation in flight. */
int re_sim_disk_snapshot(re_sim *sim, int disk);
void re_sim_disk_restore(re_sim *sim, int disk, int snapshot);
void re_sim_snapshot_free(re_sim *sim, int snapshot);
uint32_t re_sim_disk_in_flight(const re_sim *sim, int disk);
uint32_t re_sim_disk_unflushed(const re_sim *sim, int disk);

/* The op log.  Submissions and completions are numbered 1, 2, ... in one sequence: these numbers are the
 * crash points (point p: everything up to number p has happened; 0: nothing). */
enum re_sim_op_kind { RE_SIM_OP_READ, RE_SIM_OP_WRITE, RE_SIM_OP_FLUSH, RE_SIM_OP_ZERO, RE_SIM_OP_EXTENTS };
enum re_sim_op_flags { RE_SIM_OP_FUA = 1, RE_SIM_OP_PREFLUSH = 2, RE_SIM_OP_NO_SYNC = 32,
                        RE_SIM_OP_CONTROL = 1 << 16 };
struct re_sim_log_entry {
    uint32_t kind;              /* enum re_sim_op_kind */
    uint32_t flags;             /* enum re_sim_op_flags; CONTROL: by the control plane */
    uint64_t offset, length;
    uint64_t submitted;         /* its number */
    uint64_t completed;         /* its number, 0: not (yet) */
    uint64_t submitted_ns, completed_ns;
    int32_t error;              /* errno it completed with */
    int32_t pad;
};
/* Start (the current content becomes the stable start image, the old log is dropped; nothing may be in flight) or
 * stop.  A power loss, a crash with operations in flight, a load and a restore end a recording: its log stays
 * readable, but knows nothing of what comes after. */
void re_sim_disk_record(re_sim *sim, int disk, bool on);
uint32_t re_sim_log_count(const re_sim *sim, int disk);
bool re_sim_log_entry(const re_sim *sim, int disk, uint32_t index, struct re_sim_log_entry *entry);
/* Last point of the log. */
uint64_t re_sim_log_points(const re_sim *sim, int disk);
/* Writes and zeroes that are submitted at point `point` and not surely stable then: log indices in the order
 * in which they would be applied (completed ones first, then those in flight).  Returns how many there are;
 * fills at most `max`. */
int re_sim_log_candidates(const re_sim *sim, int disk, uint64_t point, uint32_t *indices, int max);
/* One legal image of a power loss at `point`: everything surely stable, and of the candidates those whose bit
 * (by position) is in `mask`.  `torn` >= 0: of that candidate (which must be in the mask) only the sectors
 * whose bit is in `torn_sectors` (sector modulo 64).  `reverse`: candidates are applied in the opposite order
 * (matters where they overlap). False when no disk can look so: a write with PREFLUSH is in the mask and one
 * that was completed before its submission is not, or is the torn one.  `out` has the disk's size. */
bool re_sim_log_image(re_sim *sim, int disk, uint64_t point, uint64_t mask, int torn, uint64_t torn_sectors,
                      bool reverse, uint8_t *out);

/* ---- network ------------------------------------------------------------------------------------------ */

struct re_sim_net_settings {
    uint64_t latency_min_ns, latency_max_ns;    /* one way, per segment; order within a connection is kept */
    uint64_t bytes_per_second;                  /* 0 = no limit */
    uint64_t dial_timeout_ns;
    uint32_t buffer_bytes;                      /* most bytes sent and not yet read, per direction (new sockets) */
    uint32_t partial_ppm;                       /* sends and receives that move a random part only */
    uint32_t tiny_ppm;                          /* ... that move one byte */
    uint32_t flip_ppm;                          /* sends of which one bit arrives flipped */
    uint32_t flip_payload_ppm;                  /* ... in the payload of a P_DATA, P_DATA_REPLY or P_RS_DATA_REPLY */
};
enum re_sim_path {
    RE_SIM_PATH_OPEN,
    RE_SIM_PATH_DROP,           /* nothing arrives; what was sent arrives after healing if the socket lives */
    RE_SIM_PATH_REJECT,         /* what is sent is answered with a reset; dials are refused */
};

/* Settings of the direction from -> to; -1 means every node. */
void re_sim_net_settings_get(const re_sim *sim, int from, int to, struct re_sim_net_settings *settings);
void re_sim_net_settings_set(re_sim *sim, int from, int to, const struct re_sim_net_settings *settings);
/* Settings of connections between NBD clients and engines made from now on. */
void re_sim_net_settings_nbd(re_sim *sim, const struct re_sim_net_settings *settings);
/* State of the direction from -> to (enum re_sim_path). */
void re_sim_net_path(re_sim *sim, int from, int to, int path);
/* Every connection between the two nodes breaks now, with a reset at both ends. */
void re_sim_net_reset(re_sim *sim, int node_a, int node_b);

/* Negative errno: -EADDRINUSE. */
int re_sim_listen(re_sim *sim, int node, int port);
void re_sim_unlisten(re_sim *sim, int listener);
/* Ends with a notice DIALED: error 0, ECONNREFUSED, or ETIMEDOUT. */
int re_sim_dial(re_sim *sim, int node, int peer_node, int port);
/* No notice comes any more; a connection made meanwhile is closed. */
void re_sim_dial_cancel(re_sim *sim, int dial);
/* For sockets that the control plane holds (not handed to an engine). */
void re_sim_socket_close(re_sim *sim, int fd);
/* Faults of one connection, wherever the socket is: reset both ends; hold what this end sends; flip a bit of
 * the next send. */
void re_sim_socket_reset(re_sim *sim, int fd);
void re_sim_socket_hold(re_sim *sim, int fd, bool hold);
void re_sim_socket_flip(re_sim *sim, int fd);
/* The open sockets between engines that this node's streams own, oldest first; returns how many there are. */
int re_sim_net_streams(const re_sim *sim, int node, int *fds, int max);
/* True while this end is open. */
bool re_sim_socket_is_open(const re_sim *sim, int fd);

/* ---- histories, NBD clients, workload ----------------------------------------------------------------- */

/* A history belongs to one replicated device, whichever node serves it: all clients of the device share
 * it. */
int re_sim_history_create(re_sim *sim, uint64_t size_bytes);
/* The device has grown by zeroes. */
void re_sim_history_grow(re_sim *sim, int history, uint64_t size_bytes);

enum re_sim_nbd_kind {
    RE_SIM_NBD_READ, RE_SIM_NBD_WRITE, RE_SIM_NBD_FLUSH, RE_SIM_NBD_ZERO, RE_SIM_NBD_TRIM
};
struct re_sim_nbd_op {
    uint32_t kind;              /* enum re_sim_nbd_kind */
    uint32_t fua;               /* 1: WRITE, ZERO, TRIM; 2: ZERO that has to be fast */
    uint64_t offset, length;    /* bytes, whole sectors */
};
/* A connected client after negotiation (simple replies); `*fd` is the engine's end, for RE_CMD_NBD_ADD. */
int re_sim_nbd_connect(re_sim *sim, int node, int history, int *fd);
/* The client's device is the part of the history's that begins here (a volume of several); before its first operation.
 * Operations are submitted with offsets in the part and reported with those in the whole. */
void re_sim_nbd_base(re_sim *sim, int client, uint64_t offset);
/* Send NBD_CMD_DISC (orderly) or break the connection now, possibly in the middle of a payload. */
void re_sim_nbd_disconnect(re_sim *sim, int client, bool orderly);
/* Returns the operation's number (over all clients), -ENOTCONN, or -EINVAL.  Write payloads are tagged. */
int64_t re_sim_nbd_submit(re_sim *sim, int client, const struct re_sim_nbd_op *op);
/* Any bytes as they are (abuse). */
int re_sim_nbd_send_raw(re_sim *sim, int client, const uint8_t *data, size_t length);

/* UNKNOWN: the connection was lost first. */
enum re_sim_op_state { RE_SIM_OP_PENDING, RE_SIM_OP_DONE, RE_SIM_OP_FAILED, RE_SIM_OP_UNKNOWN };
struct re_sim_op_info {
    uint32_t kind, fua;
    uint64_t offset, length;
    uint64_t invoked_ns, completed_ns;
    uint64_t invoked, completed;    /* order over all invocations and completions; completed 0: never */
    int32_t client;
    uint32_t state;             /* enum re_sim_op_state */
    uint32_t error;             /* NBD error of FAILED */
    uint32_t pad;
};
bool re_sim_op_info(const re_sim *sim, int64_t op, struct re_sim_op_info *info);
int64_t re_sim_op_count(const re_sim *sim);

struct re_sim_workload_settings {
    uint64_t ops;               /* 0: until stopped */
    uint32_t queue_depth;
    uint32_t read_percent, flush_percent, zero_percent, trim_percent;   /* the rest are writes */
    uint32_t fua_percent;       /* of writes and zeroes */
    uint32_t hot_percent;       /* operations within the first 1/16 of the span */
    uint32_t align_bytes;       /* 512 .. 4096 */
    uint32_t min_bytes, max_bytes;  /* sizes, logarithmically distributed */
    uint32_t no_overlap;        /* 1: a write never overlaps another operation in flight of the same client */
    uint64_t span_offset, span_length;
    uint64_t think_max_ns;      /* pause before an operation */
};
void re_sim_workload(re_sim *sim, int client, const struct re_sim_workload_settings *settings);
/* No new operations; CLIENT_IDLE follows when those in flight have ended. */
void re_sim_workload_stop(re_sim *sim, int client);

struct re_sim_client_stats {
    uint64_t submitted, completed, failed, unknown;
    uint64_t read_bytes, written_bytes, flushes;
    uint64_t last_completed_ns;
    uint64_t oldest_pending_ns; /* invocation of the oldest operation without answer, UINT64_MAX: none */
    uint32_t in_flight;
    uint32_t open;              /* connected */
    uint64_t protocol_errors;   /* bad replies */
};
void re_sim_client_stats(const re_sim *sim, int client, struct re_sim_client_stats *stats);

/* ---- checking ----------------------------------------------------------------------------------------- */

/* Violations found while running: wrong reads, disk operations out of range, payloads changed in flight,
 * ... */
uint64_t re_sim_violations(const re_sim *sim);
/* Text of violation `index`, or NULL (only the first ones are kept). */
const char *re_sim_violation(const re_sim *sim, uint32_t index);

enum re_sim_audit_mode {
    /* Every completed write is there, or a concurrent or later one; and what a read has seen is not undone.  Too strict
     * for a takeover: a primary serves reads of writes that the peer has not acknowledged yet. */
    RE_SIM_AUDIT_STRICT = 1,
    RE_SIM_AUDIT_FLUSHED = 2,   /* only for writes with FUA, or completed before a completed flush was invoked */
    RE_SIM_AUDIT_CAUSAL = 4,    /* what completed before a visible write was invoked is there or overwritten (P3) */
    RE_SIM_AUDIT_ACKED = 8,     /* as STRICT, but reads do not count */
};
/* Check `length` bytes of an image at `data` as content of the history's device from `device_offset` on.
 * Tags must always be whole, in their place and of this run.  Returns violations; `report` (may be NULL) gets
 * lines of text. */
uint64_t re_sim_audit_image(re_sim *sim, int history, const uint8_t *data, uint64_t device_offset,
                            uint64_t length, uint32_t modes, char *report, size_t report_bytes);
/* The same of a disk's layer; the device's byte 0 lies at `disk_offset`. */
uint64_t re_sim_audit(re_sim *sim, int history, int disk, uint64_t disk_offset, int layer, uint32_t modes,
                      char *report, size_t report_bytes);
/* From now on this content counts as what was written last: after an event that was allowed to lose writes.
 * Writes invoked before and not seen in the content must not come back. */
void re_sim_history_rebase(re_sim *sim, int history, int disk, uint64_t disk_offset, int layer);
/* The same of `length` bytes of the device; rebase all parts one after the other. */
void re_sim_history_rebase_part(re_sim *sim, int history, int disk, uint64_t disk_offset, int layer,
                                uint64_t device_offset, uint64_t length);
/* What lies in a sector: 0 zeroes, 1 a whole tag of this run (`*op`, `*sector`), 2 anything else. */
int re_sim_tag_parse(const re_sim *sim, const uint8_t *sector_data, uint64_t *op, uint64_t *sector);

/* ---- coverage ----------------------------------------------------------------------------------------- */

enum { RE_SIM_REACH_PACKETS = 128, RE_SIM_REACH_STATES = 32 };
/* What has happened in which connection state of the node that it happened to.  Packets: commands 0..63, then
 * 0xffc0..0xffff.  Requests: by enum re_sim_nbd_kind, and 0 invoked, else enum re_sim_op_state.  Disk operations:
 * by enum re_sim_op_kind, and 0 good, 1 failed. */
struct re_sim_reach {
    uint32_t sent[RE_SIM_REACH_PACKETS][RE_SIM_REACH_STATES];
    uint32_t received[RE_SIM_REACH_PACKETS][RE_SIM_REACH_STATES];
    uint32_t requests[5][4][RE_SIM_REACH_STATES];
    uint32_t disk[5][2][RE_SIM_REACH_STATES];
};
/* The control plane's state of the node, as a number below RE_SIM_REACH_STATES. */
void re_sim_reach_state(re_sim *sim, int node, unsigned state);
/* Add this simulation's counts to a sum. */
void re_sim_reach_add(const re_sim *sim, struct re_sim_reach *sum);

/* Packets with this command number sent by the node's engine on sockets to other nodes. */
uint64_t re_sim_packets_sent(const re_sim *sim, int node, unsigned command);

struct re_sim_counters {
    uint64_t engine_runs, disk_ops, segments, packets;
    uint64_t disk_errors, disk_stuck, writes_torn, writes_dropped, writes_survived;
    uint64_t partial_moves, tiny_moves, bit_flips, resets, dials_failed;
    uint64_t crashes, power_losses;
    uint64_t reads_checked, sectors_checked;
    uint64_t bad_packets;       /* streams on which the sniffer found no header where one must be */
};
void re_sim_counters(const re_sim *sim, struct re_sim_counters *counters);

/* ---- the tap (csrc/sim/tap.c) ------------------------------------------------------------------------- */

/* A packet that a node sent to another one, followed by `kept` bytes of its body (all but the payload). */
struct re_sim_packet {
    uint64_t at_ns;
    int32_t node, socket, peer_socket;
    uint32_t command, volume;
    uint32_t format;            /* of the header: 80, 95, 100; 0: no header at all */
    uint32_t pad;               /* of a long header */
    uint32_t length, kept;
    uint32_t reserved;
};
/* Packets are kept from now on (or no longer). */
void re_sim_tap(re_sim *sim, bool on);
/* Bytes that wait, and all of them at once (0 when there is not so much room). */
size_t re_sim_tap_waiting(const re_sim *sim);
size_t re_sim_tap_take(re_sim *sim, uint8_t *out, size_t max);

/* ---- sockets of the control plane: a scripted peer ---------------------------------------------------- */

/* Bytes moved, 0: the other end is closed (receive only), -EAGAIN, -ECONNRESET. */
int64_t re_sim_socket_write(re_sim *sim, int fd, const uint8_t *data, size_t length);
int64_t re_sim_socket_read(re_sim *sim, int fd, uint8_t *data, size_t max);

/* ---- the engine's decoders, to be compared with other readings of the same bytes (csrc/sim/codec.c) ---- */

struct re_sim_header {
    uint32_t command, volume, length, header_bytes;
};
/* 0, -EAGAIN: more bytes are needed, -EPROTO. */
int re_sim_decode_header(const uint8_t *bytes, size_t length, struct re_sim_header *header);
/* The body of a P_COMPRESSED_BITMAP into a bitmap of `bits` (whole words) from `*position` on: 0 or -EPROTO. */
int re_sim_decode_runs(const uint8_t *body, size_t length, uint64_t bits, uint64_t *position, uint8_t *bitmap);
struct re_sim_log_block {
    uint32_t number, type, updates, context_size, context_start;
    uint32_t slots[64], extents[64], context[919];
};
/* A 4 KiB block of the activity log: 0 or -EPROTO. */
int re_sim_decode_log_block(const uint8_t *block, struct re_sim_log_block *found);

/* cffi: off */
#endif
/* cffi: on */
