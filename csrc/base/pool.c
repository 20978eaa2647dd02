/* SPDX-License-Identifier: Apache-2.0 */
/* Pooled payload buffers: three free lists over reserved memory and one byte budget. */
#include "base/pool.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "base/check.h"

static const uint32_t class_bytes[BUF_CLASSES] = {4096, 65536, 1 << 20};

bool buf_pool_init(struct buf_pool *pool, uint64_t budget_bytes)
{
    *pool = (struct buf_pool){.budget_bytes = budget_bytes};
    for (int i = 0; i < BUF_CLASSES; i++) {
        size_t count = (size_t)(budget_bytes / class_bytes[i]);
        if (count == 0)
            count = 1;
        pool->memory_bytes[i] = count * class_bytes[i];
        void *memory = mmap(NULL, pool->memory_bytes[i], PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        pool->headers[i] = calloc(count, sizeof(struct buf));
        if (memory == MAP_FAILED || !pool->headers[i]) {
            pool->memory[i] = memory == MAP_FAILED ? NULL : memory;
            buf_pool_destroy(pool);
            return false;
        }
        pool->memory[i] = memory;
        for (size_t n = count; n-- > 0;) {
            struct buf *buf = &pool->headers[i][n];
            buf->data = pool->memory[i] + n * class_bytes[i];
            buf->capacity = class_bytes[i];
            buf->size_class = (uint8_t)i;
            buf->pool = pool;
            buf->next = pool->free[i];
            pool->free[i] = buf;
        }
    }
    return true;
}

void buf_pool_destroy(struct buf_pool *pool)
{
    for (int i = 0; i < BUF_CLASSES; i++) {
        if (pool->memory[i])
            munmap(pool->memory[i], pool->memory_bytes[i]);
        free(pool->headers[i]);
        pool->memory[i] = NULL;
        pool->headers[i] = NULL;
        pool->free[i] = NULL;
    }
}

struct buf *buf_take(struct buf_pool *pool, size_t bytes)
{
    CHECK(bytes <= class_bytes[BUF_CLASSES - 1]);
    int i = 0;
    while (class_bytes[i] < bytes)
        i++;
    struct buf *buf = pool->free[i];
    if (!buf || pool->used_bytes + class_bytes[i] > pool->budget_bytes) {
        pool->starved = true;
        return NULL;
    }
    pool->free[i] = buf->next;
    buf->next = NULL;
    buf->refs = 1;
    pool->used_bytes += class_bytes[i];
    return buf;
}

void buf_put(struct buf *buf)
{
    CHECK(buf->refs > 0);
    if (--buf->refs > 0)
        return;
    struct buf_pool *pool = buf->pool;
    pool->used_bytes -= buf->capacity;
    buf->next = pool->free[buf->size_class];
    pool->free[buf->size_class] = buf;
}

struct buf *buf_of(const struct buf_pool *pool, const uint8_t *data)
{
    for (int i = 0; i < BUF_CLASSES; i++) {
        uintptr_t at = (uintptr_t)data - (uintptr_t)pool->memory[i];    /* wraps where it lies before */
        if (pool->memory[i] && at < pool->memory_bytes[i])
            return &pool->headers[i][at / class_bytes[i]];
    }
    return NULL;
}
