/* SPDX-License-Identifier: Apache-2.0 */
/* The entry points of repl_engine.h: a loop and its thread.
 *
 * Invariant: the thread runs from re_engine_start() until the core has stopped; only re_engine_destroy()
 * joins it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <stdatomic.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/digest.h"
#include "include/repl_engine.h"
#include "shell/loop.h"
#include "io/thread.h"

struct re_engine {
    struct loop *loop;     /* the engine itself */
    pthread_t thread;      /* runs it */
    atomic_bool stop_sent; /* RE_CMD_STOP was queued */
};

static void *engine_run(void *argument)
{
    struct re_engine *engine = argument;
    loop_run(engine->loop);
    return NULL;
}

re_engine *re_engine_start(int wake_fd, uint32_t busy_poll_us)
{
    struct re_engine *engine = calloc(1, sizeof(*engine));
    if (engine == NULL)
        return NULL;
    engine->loop = loop_create(wake_fd, (uint64_t)busy_poll_us * 1000, NULL);
    if (engine->loop == NULL) {
        free(engine);
        return NULL;
    }
    if (!thread_start(&engine->thread, "repl-engine", engine_run, engine)) {
        loop_destroy(engine->loop);
        free(engine);
        return NULL;
    }
    return engine;
}

bool re_engine_command(re_engine *engine, const struct re_command *command, const uint8_t *blob,
                       size_t blob_length)
{
    bool queued = loop_command(engine->loop, command, blob, blob_length);
    if (queued && command->type == RE_CMD_STOP)
        atomic_store(&engine->stop_sent, true);
    return queued;
}

bool re_engine_event(re_engine *engine, struct re_event *event, uint8_t *blob)
{
    return loop_event(engine->loop, event, blob);
}

const struct re_volume_stats *re_engine_volume_stats(re_engine *engine, int volume)
{
    return core_volume_stats(loop_core(engine->loop), volume);
}

const struct re_engine_stats *re_engine_stats(re_engine *engine)
{
    return core_stats(loop_core(engine->loop));
}

size_t re_digest(uint32_t alg, const uint8_t *data, size_t length, uint8_t *out)
{
    digest_compute((enum digest_alg)alg, data, length, out);
    return digest_bytes((enum digest_alg)alg);
}

void re_engine_destroy(re_engine *engine)
{
    /* Whoever forgot to stop it would wait for ever. */
    if (!atomic_load(&engine->stop_sent)) {
        const struct re_command stop = {.type = RE_CMD_STOP, .volume = -1, .stream = -1, .fd = -1};
        struct timespec pause = {.tv_nsec = 1000000};
        while (!re_engine_command(engine, &stop, NULL, 0))
            nanosleep(&pause, NULL); /* the engine empties its queue in every turn */
    }
    pthread_join(engine->thread, NULL);
    loop_destroy(engine->loop);
    free(engine);
}
