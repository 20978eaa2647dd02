/* SPDX-License-Identifier: Apache-2.0 */
/*
 * XXH64 with seed 0, after the published specification (xxHash fast digest algorithm, version 0.1.1).
 */
#ifndef BASE_XXHASH64_H
#define BASE_XXHASH64_H

#include <stddef.h>
#include <stdint.h>

uint64_t xxhash64(const void *data, size_t bytes);

#endif
