/* SPDX-License-Identifier: Apache-2.0 */
/* The synchronous execution of disk operations: blocks for as long as the kernel likes.
 *
 * Any thread; operations share nothing.  The result is in op->error (0 or a positive errno).
 */
#ifndef IO_DISK_RUN_H
#define IO_DISK_RUN_H

#include "io/io.h"

enum { DISK_RUN_MERGE_MAX = 64 }; /* operations in one vectored write */

/* Files with more data than this (bytes) get a coarse answer to EXTENTS, for less work. */
extern uint64_t disk_run_exact_bytes;

/* Execute one operation. */
void disk_run(struct disk_op *op);
/* ZERO with DISK_DISCARD: the part made of whole pieces; false: there is none. */
bool disk_run_aligned(const struct disk_op *op, uint64_t *begin, uint64_t *end);
/* True when `next` may share a vectored write with `op`, directly behind it. */
bool disk_run_can_merge(const struct disk_op *op, const struct disk_op *next);
/* Execute 1..DISK_RUN_MERGE_MAX writes, each of which can be merged with the one before it. */
void disk_run_writes(struct disk_op *const *ops, int count);

#endif
