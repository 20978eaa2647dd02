/* SPDX-License-Identifier: Apache-2.0 */
/* The production shell of the core: epoll for sockets, disk threads, eventfds to the control plane.
 *
 * loop_run() is the engine's thread; loop_command(), loop_event() and the counters may be used from any
 * other.
 */
#ifndef IO_LOOP_H
#define IO_LOOP_H

#include "engine/core.h"

enum {
    LOOP_COMMANDS_MAX = 4096,          /* commands waiting for the engine */
    LOOP_COMMAND_BYTES_MAX = 64 << 20, /* their bytes */
    LOOP_EVENTS_MAX = 4096,            /* events waiting for the control plane; more stay in the core */
    LOOP_EVENT_BYTES_MAX = 32 << 20,   /* their bytes */
};

struct loop;

/* `wake_fd`: an eventfd, written when events wait that the control plane does not know of; `busy_poll_ns`: how long the
 * thread may look for work before it blocks, 0 = not at all.  NULL: no memory, descriptors or threads. */
struct loop *loop_create(int wake_fd, uint64_t busy_poll_ns, const struct core_config *config);
/* Runs until the core is stopped and its events are handed over. */
void loop_run(struct loop *loop);
/* Queue a command, copied with its blob.  False: no room now. */
bool loop_command(struct loop *loop, const struct re_command *command, const uint8_t *blob,
                  size_t blob_length);
/* Take the oldest event; `blob` has RE_EVENT_BLOB_MAX bytes. */
bool loop_event(struct loop *loop, struct re_event *event, uint8_t *blob);
const struct core *loop_core(const struct loop *loop);
/* After loop_run() has returned.  Where the kernel does not let a disk thread go, the core's memory is left
 * to it. */
void loop_destroy(struct loop *loop);

#endif
