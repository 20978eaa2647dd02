/* SPDX-License-Identifier: Apache-2.0 */
/* The request table; invariant: an entry's generation changes with every use, so a stale block_id finds nothing. */
#include "req/request.h"

#include <stdlib.h>

#include "base/check.h"

enum re_status request_table_init(struct request_table *table, uint32_t count, uint32_t reserved)
{
    count += reserved;
    table->entries = calloc(count, sizeof(*table->entries));
    if (!table->entries)
        return RE_ENOMEM;
    table->count = count;
    table->reserved = reserved;
    table->free_count = count;
    list_init(&table->free);
    for (uint32_t i = 0; i < count; i++) {
        struct request *request = &table->entries[i];
        request->index = i;
        list_init(&request->link);
        list_init(&request->tl);
        list_init(&request->sent);
        list_init(&request->al.link);
        list_init(&request->op.link);
        list_init(&request->lock.range.ready);
        list_add_tail(&table->free, &request->link);
    }
    return RE_OK;
}

void request_table_destroy(struct request_table *table)
{
    free(table->entries);
    table->entries = NULL;
}

struct request *request_take(struct request_table *table)
{
    return table->free_count > table->reserved ? request_take_reserved(table) : NULL;
}

struct request *request_take_reserved(struct request_table *table)
{
    struct list_head *link = list_pop(&table->free);
    if (!link)
        return NULL;
    struct request *request = list_entry(link, struct request, link);
    uint32_t index = request->index, generation = request->generation + 1;
    *request = (struct request){.index = index, .generation = generation & 0x7fffffffu};
    list_init(&request->link);
    list_init(&request->tl);
    list_init(&request->sent);
    list_init(&request->al.link);
    list_init(&request->op.link);
    list_init(&request->lock.range.ready);
    table->free_count--;
    return request;
}

void request_free(struct request_table *table, struct request *request)
{
    CHECK(!request->in_transfer_log && !request->local_pending && !request->lock.range.inserted);
    if (request->buf)
        buf_put(request->buf);
    request->buf = NULL;
    request->generation++;      /* ids of the finished use are unknown from now on */
    list_del(&request->link);
    list_add(&table->free, &request->link);
    table->free_count++;
}

struct request *request_find(struct request_table *table, uint64_t block_id)
{
    uint32_t index = (uint32_t)block_id - 1u;
    if (index >= table->count)
        return NULL;
    struct request *request = &table->entries[index];
    return request_block_id(request) == block_id ? request : NULL;
}
