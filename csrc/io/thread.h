/* SPDX-License-Identifier: Apache-2.0 */
/* Start of the engine's threads: named, joinable, deaf to signals.
 *
 * Signals belong to the control plane's main thread; only faults stay unblocked, so that a crash handler sees
 * them.
 */
#ifndef IO_THREAD_H
#define IO_THREAD_H

#ifndef _GNU_SOURCE
#error "define _GNU_SOURCE before including anything"
#endif
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

/* False: the system gives no thread.  `name` has at most 15 characters. */
static inline bool thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *argument)
{
    sigset_t blocked, previous;

    sigfillset(&blocked);
    sigdelset(&blocked, SIGSEGV);
    sigdelset(&blocked, SIGBUS);
    sigdelset(&blocked, SIGFPE);
    sigdelset(&blocked, SIGILL);
    sigdelset(&blocked, SIGABRT);
    sigdelset(&blocked, SIGTRAP);
    /* The new thread inherits the mask: there is no moment in which it could take a signal. */
    pthread_sigmask(SIG_SETMASK, &blocked, &previous);
    bool started = pthread_create(thread, NULL, run, argument) == 0;
    pthread_sigmask(SIG_SETMASK, &previous, NULL);
    if (started)
        pthread_setname_np(*thread, name);
    return started;
}

#endif
