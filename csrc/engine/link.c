/* SPDX-License-Identifier: Apache-2.0 */
/* The replication link: up, lost, resolved; pings and timeouts.
 *
 *   DOWN --LINK_UP--> UP --lost or LINK_DOWN--> LOST --LINK_RESOLVE--> DOWN
 *
 * While it is LOST every write waits: the control plane first makes a new generation durable where one is needed, so
 * that no write that the peer may not have is completed under the old one.  While I/O is suspended LINK_KEEP takes the
 * place of LINK_RESOLVE (freeze.c).
 */
#include <stdlib.h>

#include "base/check.h"
#include "engine/internal.h"

enum re_status link_init(struct core *core)
{
    struct link *link = &core->link;
    list_init(&link->unsent);
    list_init(&link->kept);
    list_init(&link->epochs);
    list_init(&link->free_epochs);
    uint32_t epochs = core->peer_count + 2;     /* each but the open one has a write in progress */
    link->epoch_entries = calloc(epochs, sizeof(*link->epoch_entries));
    if (!link->epoch_entries)
        return RE_ENOMEM;
    for (uint32_t i = 0; i < epochs; i++)
        list_add_tail(&link->free_epochs, &link->epoch_entries[i].link);
    return transfer_log_init(&link->log, core->requests.count);
}

bool link_is_up(const struct core *core)
{
    return core->link.phase == LINK_UP;
}

bool link_peer_is_ours(const struct core *core)
{
    return core->link.options.peer_is_ours;
}

static struct peer_stream *link_stream(struct core *core, int number)
{
    if (number < 0 || number >= RE_STREAMS_MAX || core->streams[number].owner != STREAM_PEER)
        return NULL;
    return core->streams[number].peer;
}

static void close_stream(struct core *core, struct peer_stream *peer)
{
    if (!peer || peer->stream.number < 0)
        return;
    int number = peer->stream.number;
    receiver_drop_payload(core, peer);
    stream_close(&peer->stream);
    free(peer);
    core->streams[number].owner = STREAM_UNUSED;
    core->streams[number].peer = NULL;
}

/* A link that cannot come up is lost at once; as with any lost link both sockets are closed then. */
static void refuse_link(struct core *core, struct peer_stream *data, struct peer_stream *meta)
{
    if (data && !data->in_link)
        close_stream(core, data);
    if (meta && meta != data && !meta->in_link)
        close_stream(core, meta);
    core_emit(core,
              &(struct re_event){.type = RE_EV_LINK_LOST, .volume = -1, .stream = -1, .reason = RE_LOST_EOF}, NULL, 0);
}

void link_up(struct core *core, const struct re_link *options)
{
    struct link *link = &core->link;
    struct peer_stream *data = link_stream(core, options->data_stream);
    struct peer_stream *meta = link_stream(core, options->meta_stream);
    if (link->phase != LINK_DOWN || !data || !meta || data == meta || data->stream.number < 0 ||
        meta->stream.number < 0 || data->closed_reported || meta->closed_reported) {
        refuse_link(core, data, meta);
        return;
    }
    link->phase = LINK_UP;
    link->generation++;
    link->options = *options;
    link->data = data;
    link->meta = meta;
    data->in_link = meta->in_link = true;
    meta->is_meta = true;
    meta->paused = false;
    link->ping_outstanding = false;
    link->half_gone_ns = 0;
    link->pings_sent = link->pings_acked = 0;
    data->stream.rx_last_ns = meta->stream.rx_last_ns = core->now_ns;
    for (int i = 0; i < RE_VOLUMES_MAX; i++)
        if (core->volumes[i])
            core->volumes[i]->seq_out = core->volumes[i]->seq_in = 0;
    receiver_parse(core, meta);
}

/* Protocols A and B: the own disk has them; who has lost that one as well has to know. */
static void count_unconfirmed(struct core *core)
{
    for (int i = 0; i < RE_VOLUMES_MAX; i++)
        if (core->volumes[i])
            core->volumes[i]->stats.unconfirmed_writes = 0;
    list_for_each(epoch_link, &core->link.log.epochs)
    {
        struct epoch *epoch = list_entry(epoch_link, struct epoch, link);
        list_for_each(pos, &epoch->requests)
        {
            const struct request *r = list_entry(pos, struct request, tl);
            if (r->completed && !r->error && !r->write_ack)
                r->volume->stats.unconfirmed_writes++;
        }
    }
}

void link_lost(struct core *core, enum re_lost reason, unsigned detail, uint64_t value, bool report)
{
    struct link *link = &core->link;
    if (link->phase != LINK_UP)
        return;
    struct peer_stream *data = link->data, *meta = link->meta;
    link->phase = LINK_LOST;
    link->data = link->meta = NULL;
    link->receive_starved = link->meta_waits = false;
    conflict_link_lost(core);
    close_stream(core, data);
    close_stream(core, meta);
    transfer_log_close(&link->log);
    count_unconfirmed(core);
    peer_epochs_orphan(core);
    for (uint32_t i = 0; i < link->ping_waiter_count; i++)
        core_done(core, link->ping_waiters[i].cookie, -1, RE_RESULT_CANCELED, 0);
    link->ping_waiter_count = 0;
    for (int i = 0; i < RE_VOLUMES_MAX; i++) {
        struct volume *v = core->volumes[i];
        if (!v)
            continue;
        if (v->bitmap_sending) {
            v->bitmap_sending = false;
            core_done(core, v->bitmap_send_cookie, v->number, RE_RESULT_CANCELED, 0);
        }
        v->bitmap_receiving = false;
        volume_al_link_lost(v);
        resync_target_stop(v);
        resync_source_stop(v);
        verify_end(v);
    }
    if (report)
        core_emit(core,
                  &(struct re_event){.type = RE_EV_LINK_LOST,
                                     .volume = -1,
                                     .stream = -1,
                                     .reason = reason,
                                     .detail = detail,
                                     .value = value},
                  NULL, 0);
}

void link_check_resolved(struct core *core)
{
    struct link *link = &core->link;
    if (link->resolve_cookie && link->peer_writes == 0) {
        core_done(core, link->resolve_cookie, -1, RE_RESULT_OK, 0);
        link->resolve_cookie = 0;
    }
}

/* What the peer did not confirm counts as lost. */
static void give_up_transfer_log(struct core *core)
{
    struct link *link = &core->link;
    for (struct epoch *epoch; (epoch = transfer_log_oldest(&link->log));) {
        while (!list_empty(&epoch->requests)) {
            struct request *r = list_entry(list_first(&epoch->requests), struct request, tl);
            transfer_log_remove(&link->log, r);
            request_left_log(r);
            request_mark_dirty(r);
            request_net_done(r, false);
            request_settle(r);
        }
        transfer_log_free(&link->log, epoch);
    }
}

/* The peer's disk goes while the link stays: what is not stable there may be lost with it.  The peer refuses it, or has
 * confirmed it, on the other socket: a disk that comes back at once may be resynced before those acks are here. */
void link_peer_disk_lost(struct volume *v)
{
    list_for_each(epoch_link, &v->core->link.log.epochs)
    {
        struct epoch *epoch = list_entry(epoch_link, struct epoch, link);
        list_for_each(pos, &epoch->requests)
        {
            struct request *r = list_entry(pos, struct request, tl);
            if (r->volume == v)
                request_mark_dirty(r);
        }
    }
}

void link_resolve(struct core *core, uint64_t cookie, bool keep)
{
    struct link *link = &core->link;
    if (link->phase == LINK_UP || (link->phase == LINK_DOWN && keep)) {
        core_done(core, cookie, -1, RE_RESULT_INVALID, 0);
        return;
    }
    if (keep)
        freeze_keep(core);
    else {
        freeze_give_up(core);
        give_up_transfer_log(core);
    }
    CHECK(list_empty(&link->unsent));
    link->phase = LINK_DOWN;
    if (link->resolve_cookie)   /* the first one waits for the peer's writes */
        core_done(core, cookie, -1, RE_RESULT_OK, 0);
    else
        link->resolve_cookie = cookie;
    for (int i = 0; i < RE_VOLUMES_MAX; i++) {
        struct volume *v = core->volumes[i];
        if (!v)
            continue;
        struct list_head reads;
        list_init(&reads);
        list_splice_tail(&reads, &v->remote_reads);
        for (struct list_head *l; (l = list_pop(&reads));) {
            struct request *r = list_entry(l, struct request, link);
            v->stats.peer_pending--;
            r->remote_read = false;
            r->net_pending = false;
            request_read_start(r);
        }
        volume_thaw(v);
        volume_check_idle(v);
    }
    app_flush_check(core);
    link_check_resolved(core);
}

/* ---- pings and timeouts ---- */

static void send_ping(struct core *core)
{
    struct link *link = &core->link;
    sender_raw(core, true, P_PING, 0, NULL, 0);
    link->pings_sent++;
    core->stats.pings_sent++;
    if (!link->ping_outstanding) {
        link->ping_outstanding = true;
        link->ping_sent_ns = core->now_ns;
    }
}

void link_ping(struct core *core, uint64_t cookie)
{
    struct link *link = &core->link;
    if (link->phase != LINK_UP || link->ping_waiter_count == PING_WAITERS_MAX) {
        core_done(core, cookie, -1, RE_RESULT_CANCELED, 0);
        return;
    }
    send_ping(core);
    link->ping_waiters[link->ping_waiter_count++] =
        (struct ping_waiter){.cookie = cookie, .serial = link->pings_sent};
}

/* When the oldest thing that the peer has not confirmed was sent; 0 if nothing is open. */
static uint64_t oldest_unconfirmed_ns(const struct core *core)
{
    list_for_each(pos, &core->link.log.epochs) {
        const struct epoch *epoch = list_entry(pos, struct epoch, link);
        if (epoch->barrier_sent && !epoch->discarded)
            return epoch->barrier_sent_ns;
        struct list_head *first = list_first(&epoch->requests);
        const struct request *r = first ? list_entry(first, struct request, tl) : NULL;
        if (r && r->net_pending)
            return r->started_ns;
        if (!epoch->discarded)
            break;
        /* The barrier ack of this one may never come (conflict.c). */
    }
    return 0;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* The send side is stuck since `since`: past the limit? Otherwise `next` is brought forward. */
static bool expired(const struct core *core, uint64_t since, uint64_t limit_ns, uint64_t *next)
{
    if (!since)
        return false;
    if (core->now_ns >= since + limit_ns)
        return true;
    *next = earlier(*next, since + limit_ns);
    return false;
}

uint64_t link_timers(struct core *core)
{
    struct link *link = &core->link;
    uint64_t next = UINT64_MAX;
    if (link->phase != LINK_UP)
        return next;
    const struct re_link *o = &link->options;
    uint64_t timeout = o->timeout_ms * NS_PER_MS;
    if (transfer_log_barrier_due(&link->log))
        next = link->barrier_due_ns;
    if (o->ko_count) {
        uint64_t ko = timeout * o->ko_count;
        if (expired(core, oldest_unconfirmed_ns(core), ko, &next)) {
            link_lost(core, RE_LOST_KO, 0, 0, true);
            return UINT64_MAX;
        }
        if (expired(core, link->data->stream.tx_blocked_since_ns, ko, &next)) {
            link_lost(core, RE_LOST_SEND_TIMEOUT, 0, 0, true);
            return UINT64_MAX;
        }
    }
    if (o->two_primaries && !o->resolve_conflicts)
        next = earlier(next, conflict_deadline(core));
    if (expired(core, link->seq_wait_ns, o->ping_timeout_ms * NS_PER_MS, &next)) {
        link_lost(core, RE_LOST_PROTOCOL, P_DATA, ILLEGAL_SEQUENCE, true);
        return UINT64_MAX;
    }
    if (expired(core, link->half_gone_ns, o->ping_timeout_ms * NS_PER_MS, &next)) {
        link_lost(core, RE_LOST_EOF, 0, 0, true);
        return UINT64_MAX;
    }
    if (expired(core, link->meta->stream.tx_blocked_since_ns, timeout, &next)) {
        link_lost(core, RE_LOST_SEND_TIMEOUT, 1, 0, true);
        return UINT64_MAX;
    }
    if (link->ping_outstanding) {
        if (expired(core, link->ping_sent_ns, o->ping_timeout_ms * NS_PER_MS, &next)) {
            link_lost(core, RE_LOST_PING_TIMEOUT, 0, 0, true);
            return UINT64_MAX;
        }
        return next;
    }
    uint64_t heard = link->data->stream.rx_last_ns > link->meta->stream.rx_last_ns ? link->data->stream.rx_last_ns
                                                                                   : link->meta->stream.rx_last_ns;
    uint64_t due = heard + o->ping_int_ms * NS_PER_MS;
    if (core->now_ns >= due) {
        send_ping(core);
        (void)stream_flush(&link->meta->stream);
        due = core->now_ns + o->ping_timeout_ms * NS_PER_MS;
    }
    return earlier(next, due);
}
