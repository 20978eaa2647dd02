/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CRC-32C (Castagnoli, reflected polynomial 0x82F63B78).
 * Invariant: the hardware and the table path give identical results.
 */
#ifndef BASE_CRC32C_H
#define BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Continue from `state` without initial or final inversion: the activity log's form starts with 0. */
uint32_t crc32c_raw(uint32_t state, const void *data, size_t length);

/* The table path of crc32c_raw, whatever the processor can do (for tests). */
uint32_t crc32c_raw_portable(uint32_t state, const void *data, size_t length);

/* The usual CRC-32C: starts with all ones, inverted at the end. */
uint32_t crc32c(const void *data, size_t length);

/* crc32c() of four neighbouring pieces of `length` bytes (a multiple of 8) at once, which is several times as fast. */
void crc32c_four(const void *data, size_t length, uint32_t out[4]);

#endif
