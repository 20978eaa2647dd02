/* SPDX-License-Identifier: Apache-2.0 */
/* Pooled, page-aligned payload buffers in three sizes with a byte budget.
 *
 * Address space is reserved once; a page costs memory only after its first use.  A buffer is shared by reference count
 * (the local disk operation and the send queue hold one each).  An empty pool is back-pressure, never an error: the
 * caller stops reading from its stream until buffers come back.
 */
#ifndef BASE_POOL_H
#define BASE_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BUF_CLASSES = 3 };   /* 4 KiB, 64 KiB, 1 MiB */

struct buf_pool;

struct buf {
    uint8_t *data;          /* aligned to 4096 */
    uint32_t capacity;      /* bytes */
    uint32_t refs;          /* holders; back to the pool at 0 */
    uint8_t size_class;     /* index of its size */
    struct buf *next;       /* free list */
    struct buf_pool *pool;  /* owner */
};

struct buf_pool {
    struct buf *free[BUF_CLASSES];      /* free buffers of each size, most recently used first */
    struct buf *headers[BUF_CLASSES];   /* their memory */
    uint8_t *memory[BUF_CLASSES];       /* reserved address space */
    size_t memory_bytes[BUF_CLASSES];   /* its size */
    uint64_t budget_bytes;              /* most bytes that may be out at once */
    uint64_t used_bytes;                /* bytes out now (capacity, not length) */
    bool starved;                       /* a take failed since the flag was last cleared */
};

/* Reserve a pool of at most `budget_bytes` outstanding.  False: no address space. */
bool buf_pool_init(struct buf_pool *pool, uint64_t budget_bytes);
void buf_pool_destroy(struct buf_pool *pool);
/* A buffer of at least `bytes` (<= 1 MiB) with one reference, or NULL when the budget is used up. */
struct buf *buf_take(struct buf_pool *pool, size_t bytes);

static inline struct buf *buf_ref(struct buf *buf)
{
    buf->refs++;
    return buf;
}

void buf_put(struct buf *buf);
/* The buffer of this pool that holds the byte at `data`; NULL: it lies elsewhere. */
struct buf *buf_of(const struct buf_pool *pool, const uint8_t *data);

#endif
