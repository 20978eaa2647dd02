/* SPDX-License-Identifier: Apache-2.0 */
/* Epoch bookkeeping of the transfer log. */
#include "req/epoch.h"

#include <stdlib.h>

#include "base/check.h"

enum re_status transfer_log_init(struct transfer_log *log, uint32_t requests_max)
{
    *log = (struct transfer_log){0};
    list_init(&log->epochs);
    list_init(&log->free);
    log->entries = calloc(requests_max + 1u, sizeof(*log->entries));
    if (!log->entries)
        return RE_ENOMEM;
    for (uint32_t i = 0; i <= requests_max; i++)
        list_add_tail(&log->free, &log->entries[i].link);
    return RE_OK;
}

void transfer_log_destroy(struct transfer_log *log)
{
    free(log->entries);
    log->entries = NULL;
}

struct epoch *transfer_log_open_epoch(const struct transfer_log *log)
{
    struct list_head *link = list_last(&log->epochs);
    struct epoch *epoch = link ? list_entry(link, struct epoch, link) : NULL;
    return epoch && !epoch->closed ? epoch : NULL;
}

void transfer_log_append(struct transfer_log *log, struct request *request)
{
    CHECK(list_empty(&request->tl));
    struct epoch *epoch = transfer_log_open_epoch(log);
    if (!epoch) {
        struct list_head *link = list_pop(&log->free);
        CHECK(link);
        epoch = list_entry(link, struct epoch, link);
        *epoch = (struct epoch){.serial = log->next_serial, .number = (uint32_t)log->next_serial};
        log->next_serial++;
        list_init(&epoch->requests);
        list_add_tail(&log->epochs, &epoch->link);
        log->epochs_open++;
    }
    list_add_tail(&epoch->requests, &request->tl);
    epoch->count++;
    log->requests++;
    request->epoch = epoch;
    request->in_transfer_log = true;
}

struct epoch *transfer_log_close(struct transfer_log *log)
{
    struct epoch *epoch = transfer_log_open_epoch(log);
    if (epoch)
        epoch->closed = true;
    return epoch;
}

struct epoch *transfer_log_barrier_due(const struct transfer_log *log)
{
    struct list_head *link = list_last(&log->epochs);
    if (!link)
        return NULL;
    struct epoch *epoch = list_entry(link, struct epoch, link);
    return epoch->closed && !epoch->barrier_sent ? epoch : NULL;
}

struct epoch *transfer_log_oldest(const struct transfer_log *log)
{
    struct list_head *link = list_first(&log->epochs);
    return link ? list_entry(link, struct epoch, link) : NULL;
}

void transfer_log_remove(struct transfer_log *log, struct request *request)
{
    CHECK(request->in_transfer_log);
    list_del(&request->tl);
    request->in_transfer_log = false;
    request->epoch = NULL;
    log->requests--;
}

void transfer_log_free(struct transfer_log *log, struct epoch *epoch)
{
    CHECK(list_empty(&epoch->requests));
    list_del(&epoch->link);
    list_add(&log->free, &epoch->link);
    log->epochs_open--;
}
