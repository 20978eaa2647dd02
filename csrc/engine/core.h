/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's core: what a shell (io/loop.c, sim/) calls.  Sans-IO, one thread, deterministic.
 *
 * Use: core_create; then, for everything that happens, one of core_stream_ready / core_disk_done / core_command, and
 * after a batch of those core_tick(), which runs until nothing is left to do and returns when it wants to be called
 * next.
 */
#ifndef ENGINE_CORE_H
#define ENGINE_CORE_H

#include "include/repl_engine.h"
#include "io/io.h"

struct core;

struct core_config {
    uint32_t requests;              /* entries of the request table; 0 = default */
    uint64_t app_buffer_bytes;      /* budget for NBD payloads; 0 = default */
    uint64_t peer_buffer_bytes;     /* budget for the peer's writes and resync; 0 = default */
    uint32_t peer_requests;         /* writes and reads of the peer in progress; 0 = default */
};

struct core *core_create(const struct io_ops *io, void *io_ctx, const struct core_config *config);
/* Frees everything at once, whatever is in flight (the shell must not call core_disk_done() afterwards). */
void core_destroy(struct core *core);

void core_stream_ready(struct core *core, int stream, bool readable, bool writable);
/* `op->error` is set; the callback runs in the next core_tick(). */
void core_disk_done(struct core *core, struct disk_op *op);
/* Runs the command; the blob need not outlive the call. */
void core_command(struct core *core, const struct re_command *command, const uint8_t *blob, size_t blob_length);
/* Runs until nothing is left; returns the time (io->now_ns clock) of the next timer, UINT64_MAX if there is none. */
uint64_t core_tick(struct core *core);
/* Next event for the control plane; `blob` has RE_EVENT_BLOB_MAX bytes. */
bool core_event(struct core *core, struct re_event *event, uint8_t *blob);
bool core_is_stopped(const struct core *core);

const struct re_volume_stats *core_volume_stats(const struct core *core, int volume);
const struct re_engine_stats *core_stats(const struct core *core);
/* For tests: the bitmap of a volume, NULL without a disk. */
struct bitmap;
const struct bitmap *core_volume_bitmap(const struct core *core, int volume);

#endif
