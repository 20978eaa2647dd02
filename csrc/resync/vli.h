/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Run lengths of the bitmap in the variable length code of P_COMPRESSED_BITMAP.
 * Invariant: a body that is refused has changed nothing.
 */
#ifndef RESYNC_VLI_H
#define RESYNC_VLI_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "meta/bitmap.h"

#define VLI_BODY_BYTES_MIN 2u /* encoding byte and at least one byte of code */

/*
 * Encode as many runs from *bit_pos (< bits) on as fit in out_max bytes, the encoding byte included; returns the
 * length of the body and advances *bit_pos.  Returns 0 and leaves *bit_pos alone when the body would not be smaller
 * than the plain bits it covers: the caller then sends plain words, from the word that holds *bit_pos.
 */
size_t vli_encode(const struct bitmap *bm, uint64_t *bit_pos, uint8_t *out, size_t out_max);

/*
 * OR the runs of a body into the bitmap from *bit_pos on, and advance *bit_pos behind the last run; *newly_set
 * receives the number of bits this set.  RE_EPROTO for another code, a truncated or empty run stream, or a run beyond
 * the end.
 */
enum re_status vli_decode(const uint8_t *body, size_t length, struct bitmap *bm, uint64_t *bit_pos,
                          uint64_t *newly_set);

#endif
