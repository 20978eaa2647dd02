/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Always-on assertion for programmer errors.
 * Invariant: never used on anything that came from a disk, a socket or a user; those get a status code.
 */
#ifndef BASE_CHECK_H
#define BASE_CHECK_H

#include <stdio.h>
#include <stdlib.h>

_Noreturn static inline void check_failed(const char *file, int line, const char *condition)
{
    fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
    fflush(stderr);
    abort();
}

#define CHECK(cond) (__builtin_expect(!!(cond), 1) ? (void)0 : check_failed(__FILE__, __LINE__, #cond))

#endif
