/* SPDX-License-Identifier: Apache-2.0 */
/* The tick: what has finished, what that allows to start, what leaves.
 *
 * Order within a round: finished disk operations, granted ranges, finished requests, activity log, metadata, resync,
 * then the peer's sockets (so that the wire and the local disk overlap), then disk operations, then NBD replies; in
 * protocol A, where a reply does not wait for the wire, the data socket comes last.
 * Thread: the engine's.  Never: blocks, calls the system, recurses.
 */
#include "engine/core.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

static void submit_from_nbd(void *ctx, int number, struct request *request)
{
    struct core *core = ctx;
    struct volume *v = volume_get(core, number);
    CHECK(v);
    volume_submit(v, request);
}

static uint64_t zero_bytes_max(void *ctx, int number)
{
    (void)number;
    return split_zero_bytes_max(ctx);
}

static bool pools_init(struct core *core, const struct core_config *config)
{
    uint32_t requests = config->requests ? config->requests : REQUESTS_DEFAULT;
    uint64_t app = config->app_buffer_bytes ? config->app_buffer_bytes : APP_BUFFER_BYTES_DEFAULT;
    uint64_t peer = config->peer_buffer_bytes ? config->peer_buffer_bytes : PEER_BUFFER_BYTES_DEFAULT;
    if (request_table_init(&core->requests, requests, REQUESTS_RESERVED) != RE_OK ||
        !buf_pool_init(&core->app_buffers, app) || !buf_pool_init(&core->peer_buffers, peer) ||
        !buf_pool_init(&core->md_buffers, METADATA_BUFFER_BYTES))
        return false;
    core->peer_count = config->peer_requests ? config->peer_requests : PEER_REQUESTS_MAX;
    core->resync_count = u32_min(core->peer_count, RESYNC_REQUESTS_MAX);
    core->peer_entries = calloc(core->peer_count, sizeof(*core->peer_entries));
    core->source_reads = calloc(core->peer_count, sizeof(*core->source_reads));
    core->resync_entries = calloc(core->resync_count, sizeof(*core->resync_entries));
    core->md_entries = calloc(MD_JOBS_MAX, sizeof(*core->md_entries));
    if (!core->peer_entries || !core->source_reads || !core->resync_entries || !core->md_entries ||
        !verify_init(core))
        return false;
    for (uint32_t i = 0; i < core->peer_count; i++)
        list_add_tail(&core->peer_free, &core->peer_entries[i].link);
    for (uint32_t i = 0; i < core->resync_count; i++)
        list_add_tail(&core->resync_free, &core->resync_entries[i].link);
    for (int i = 0; i < MD_JOBS_MAX; i++)
        list_add_tail(&core->md_free, &core->md_entries[i].link);
    core->stats.requests_total = requests;
    return true;
}

struct core *core_create(const struct io_ops *io, void *io_ctx, const struct core_config *config)
{
    struct core *core = calloc(1, sizeof(*core));
    if (!core)
        return NULL;
    core->io = io;
    core->io_ctx = io_ctx;
    core->now_ns = io->now_ns(io_ctx);
    core->payloads_due_ns = UINT64_MAX;
    list_init(&core->peer_free);
    list_init(&core->resync_free);
    list_init(&core->md_free);
    list_init(&core->done);
    list_init(&core->granted);
    list_init(&core->completed);
    list_init(&core->submit);
    list_init(&core->op_free);
    list_init(&core->events);
    core->nbd_host = (struct nbd_host){.requests = &core->requests,
                                       .buffers = &core->app_buffers,
                                       .submit = submit_from_nbd,
                                       .zero_bytes_max = zero_bytes_max,
                                       .ctx = core,
                                       .stats = &core->stats};
    struct core_config defaults = {0};
    if (!pools_init(core, config ? config : &defaults) || link_init(core) != RE_OK) {
        core_destroy(core);
        return NULL;
    }
    return core;
}

void core_destroy(struct core *core)
{
    for (int i = 0; i < RE_STREAMS_MAX; i++) {
        struct stream_slot *slot = &core->streams[i];
        if (slot->owner == STREAM_PEER) {
            stream_close(&slot->peer->stream);
            free(slot->peer);
        } else if (slot->owner == STREAM_NBD)
            nbd_session_destroy(slot->session);
    }
    for (int i = 0; i < RE_VOLUMES_MAX; i++)
        if (core->volumes[i])
            volume_destroy(core->volumes[i]);
    for (struct list_head *link; (link = list_pop(&core->events));) {
        struct event_node *node = list_entry(link, struct event_node, link);
        free(node->blob);
        free(node);
    }
    for (int i = 0; core->md_entries && i < MD_JOBS_MAX; i++)
        free(core->md_entries[i].superblock);
    disk_ops_destroy(core);
    request_table_destroy(&core->requests);
    transfer_log_destroy(&core->link.log);
    free(core->link.epoch_entries);
    free(core->peer_entries);
    free(core->source_reads);
    free(core->resync_entries);
    verify_destroy(core);
    free(core->md_entries);
    buf_pool_destroy(&core->app_buffers);
    buf_pool_destroy(&core->peer_buffers);
    buf_pool_destroy(&core->md_buffers);
    free(core);
}

/* ---- events ---- */

void core_emit(struct core *core, const struct re_event *event, const uint8_t *blob, size_t blob_length)
{
    struct event_node *node = calloc(1, sizeof(*node));
    CHECK(node && blob_length <= RE_EVENT_BLOB_MAX);
    node->event = *event;
    node->event.blob_length = (uint32_t)blob_length;
    if (blob_length) {
        node->blob = malloc(blob_length);
        CHECK(node->blob);
        memcpy(node->blob, blob, blob_length);
    }
    bool first = list_empty(&core->events);
    list_add_tail(&core->events, &node->link);
    core->events_count++;
    if (first)
        core->io->event_wake(core->io_ctx);
}

void core_done(struct core *core, uint64_t cookie, int volume, enum re_result result, int error)
{
    if (cookie)
        core_emit(core,
                  &(struct re_event){.type = RE_EV_DONE,
                                     .volume = volume,
                                     .stream = -1,
                                     .cookie = cookie,
                                     .status = (int32_t)result,
                                     .error = error},
                  NULL, 0);
}

bool core_event(struct core *core, struct re_event *event, uint8_t *blob)
{
    struct list_head *link = list_pop(&core->events);
    if (!link)
        return false;
    struct event_node *node = list_entry(link, struct event_node, link);
    core->events_count--;
    *event = node->event;
    if (node->event.blob_length)
        memcpy(blob, node->blob, node->event.blob_length);
    free(node->blob);
    free(node);
    return true;
}

bool core_is_stopped(const struct core *core)
{
    return core->stopped;
}

const struct re_volume_stats *core_volume_stats(const struct core *core, int volume)
{
    if (volume < 0 || volume >= RE_VOLUMES_MAX || !core->volumes[volume])
        return NULL;
    return &core->volumes[volume]->stats;
}

const struct re_engine_stats *core_stats(const struct core *core)
{
    return &core->stats;
}

const struct bitmap *core_volume_bitmap(const struct core *core, int volume)
{
    return volume >= 0 && volume < RE_VOLUMES_MAX && core->volumes[volume] ? core->volumes[volume]->bitmap : NULL;
}

/* ---- input ---- */

void core_stream_closed(struct core *core, struct peer_stream *peer, enum re_status status)
{
    const struct peer_stream *other = peer->is_meta ? core->link.data : core->link.meta;
    if (peer->in_link && core->link.phase == LINK_UP && !other->stream.failed &&
        (peer->is_meta || status == RE_EOF)) {
        /* The peer's last words may still stand on the other socket: read them first. */
        peer->stream.failed = true;
        if (!core->link.half_gone_ns)   /* once: what is still queued for it comes by here in every tick */
            core->link.half_gone_ns = core->now_ns;
        stream_update_interest(&peer->stream);
        return;
    }
    if (peer->in_link) {
        link_lost(core, status == RE_EOF ? RE_LOST_EOF : RE_LOST_RESET, 0, 0, true);
        return;
    }
    if (peer->closed_reported)
        return;
    peer->closed_reported = true;
    core_emit(core,
              &(struct re_event){.type = RE_EV_STREAM_CLOSED,
                                 .volume = -1,
                                 .stream = peer->stream.number,
                                 .status = RE_RESULT_CANCELED},
              NULL, 0);
}

static void peer_stream_ready(struct core *core, struct peer_stream *peer, bool readable, bool writable)
{
    int number = peer->stream.number;
    if (writable) {
        if (stream_flush(&peer->stream) != RE_OK) {
            core_stream_closed(core, peer, RE_RESET);
            return;
        }
        sender_sent(core);
    }
    size_t received = 0;
    bool again = readable && !peer->stream.rx_eof;
    while (again) {
        enum re_status status = stream_fill(&peer->stream);
        if (status == RE_OK && peer->in_link)
            core->stats.link_received_bytes += peer->stream.rx_got;
        received += peer->stream.rx_got;
        receiver_parse(core, peer);
        /* Parsing may have closed it. */
        if (core->streams[number].owner != STREAM_PEER || core->streams[number].peer != peer ||
            peer->stream.number != number)
            return;
        if (status == RE_EOF || status == RE_RESET) {
            core_stream_closed(core, peer, status);
            return;
        }
        /* Large payloads come one by one: those that wait are dealt with together (answers, flushes, requests). */
        again = status == RE_OK && peer->stream.rx_more && received < TURN_BYTES_MAX && !peer->stream.rx_paused &&
                !peer->stream.failed;
    }
    if (peer->stream.number == number)
        stream_update_interest(&peer->stream);
}

void core_stream_ready(struct core *core, int number, bool readable, bool writable)
{
    if (number < 0 || number >= RE_STREAMS_MAX)
        return;
    struct stream_slot *slot = &core->streams[number];
    core->now_ns = core->io->now_ns(core->io_ctx);
    if (slot->owner == STREAM_PEER)
        peer_stream_ready(core, slot->peer, readable, writable);
    else if (slot->owner == STREAM_NBD)
        nbd_session_ready(slot->session, readable, writable);
}

void core_disk_done(struct core *core, struct disk_op *op)
{
    list_add_tail(&core->done, &op->link);
}

/* ---- the tick ---- */

static void run_done(struct core *core)
{
    for (struct list_head *link; (link = list_pop(&core->done));) {
        struct disk_op *op = list_entry(link, struct disk_op, link);
        op->done(op);
    }
}

static void run_granted(struct core *core)
{
    for (struct list_head *link; (link = list_pop(&core->granted));) {
        struct range *range = list_entry(link, struct range, ready);
        struct range_item *item = container_of(range, struct range_item, range);
        item->granted(item);
    }
}

static void flush_peer(struct core *core, struct peer_stream *peer)
{
    if (!peer || peer->stream.number < 0 || peer->stream.tx_blocked || !peer->stream.tx_count)
        return;
    uint64_t before = peer->stream.tx_sent_total;
    enum re_status status = stream_flush(&peer->stream);
    core->stats.link_sent_bytes += peer->stream.tx_sent_total - before;
    if (status != RE_OK)
        core_stream_closed(core, peer, RE_RESET);
    else
        stream_update_interest(&peer->stream);
}

/* Memory is written within this tick: the acks of that leave together with those that wait already, and the other node
 * wakes up once. */
static bool acks_follow(const struct core *core)
{
    struct list_head *first = list_first(&core->submit);
    return first && (list_entry(first, struct disk_op, link)->flags & DISK_INLINE);
}

static void flush_streams(struct core *core)
{
    for (int i = 0; i < core->streams_end; i++)
        if (core->streams[i].owner == STREAM_PEER && !core->streams[i].peer->in_link)
            flush_peer(core, core->streams[i].peer);
    if (core->link.phase == LINK_UP) {
        if (!sender_replies_first(core))
            flush_peer(core, core->link.data);
        if (core->link.phase == LINK_UP && !acks_follow(core))
            flush_peer(core, core->link.meta);
        sender_sent(core);
    }
}

/* One pass over the clients; true when a starved one may go on because a later one gave something back. */
static bool run_sessions_once(struct core *core, bool *starved)
{
    *starved = core->turn_waits = false;
    uint64_t used = core->app_buffers.used_bytes;
    uint32_t free_before = request_table_free(&core->requests);
    for (int i = 0; i < core->streams_end; i++) {
        struct stream_slot *slot = &core->streams[i];
        if (slot->owner != STREAM_NBD)
            continue;
        struct nbd_session *session = slot->session;
        if (nbd_session_is_starved(session))
            nbd_session_resume(session);
        if (nbd_session_has_output(session))
            nbd_session_flush(session);
        *starved |= nbd_session_is_starved(session);
        core->turn_waits |= nbd_session_waits_its_turn(session);
        enum re_nbd_end end;
        if (nbd_session_is_finished(session, &end)) {
            int volume = nbd_session_volume(session);
            nbd_session_destroy(session);
            slot->owner = STREAM_UNUSED;
            core->stats.nbd_clients--;
            core_emit(core,
                      &(struct re_event){.type = RE_EV_NBD_CLOSED, .volume = volume, .stream = i, .reason = end}, NULL,
                      0);
        }
    }
    return *starved && (core->app_buffers.used_bytes < used || request_table_free(&core->requests) > free_before);
}

/* Somebody waits for buffers: clients that are slow to take their replies give theirs back.  When to look again. */
static uint64_t reclaim(struct core *core, bool *gave)
{
    uint64_t next = UINT64_MAX;
    *gave = false;
    for (int i = 0; i < core->streams_end; i++)
        if (core->streams[i].owner == STREAM_NBD)
            next = u64_min(next, nbd_session_reclaim(core->streams[i].session, core->now_ns, gave));
    return next;
}

/* Payloads that stopped arriving hold buffers. */
static void check_payloads(struct core *core)
{
    core->payloads_due_ns = core->stats.nbd_clients ? core->now_ns + NBD_PAYLOAD_CHECK_NS : UINT64_MAX;
    for (int i = 0; i < core->streams_end; i++)
        if (core->streams[i].owner == STREAM_NBD)
            nbd_session_check_payload(core->streams[i].session, core->now_ns);
}

/* Returns when to run again although nothing happens, UINT64_MAX: never. */
static uint64_t run_sessions(struct core *core)
{
    bool starved, gave;
    if (core->now_ns >= core->payloads_due_ns)
        check_payloads(core);
    while (run_sessions_once(core, &starved))
        ;
    if (!starved)
        return UINT64_MAX;
    uint64_t next = reclaim(core, &gave);
    if (gave)
        while (run_sessions_once(core, &starved))
            ;
    return next;
}

static void run_volumes(struct core *core)
{
    for (int i = 0; i < RE_VOLUMES_MAX; i++) {
        struct volume *v = core->volumes[i];
        if (!v)
            continue;
        volume_disk_check_timeout(v);
        volume_al_tick(v);
        volume_md_tick(v);
        if (v->bitmap_sending)
            bitmap_send_pump(v);
        if (v->state.connection == C_SYNC_TARGET || v->state.connection == C_PAUSED_SYNC_T)
            resync_target_pump(v);
        resync_source_tick(v);
        if (v->state.connection == C_VERIFY_S || !list_empty(&v->verify.answers))
            verify_pump(v);
        if (v->state.connection == C_AHEAD)
            congestion_tick(v);
        v->stats.out_of_sync_bits = v->bitmap ? v->bitmap->count : 0;
    }
}

static bool has_work(const struct core *core)
{
    return !list_empty(&core->done) || !list_empty(&core->granted) || !list_empty(&core->completed) ||
           !list_empty(&core->submit);
}

uint64_t core_tick(struct core *core)
{
    core->now_ns = core->io->now_ns(core->io_ctx);
    core->stats.ticks++;
    uint64_t sessions_due;
    uint64_t enough = core->stats.nbd_requests + TICK_REQUESTS_MAX;
    do {
        run_done(core);
        run_granted(core);
        core_complete_requests(core);
        peer_epochs_check(core);
        run_volumes(core);
        if (core->link.phase == LINK_UP) {
            if (core->link.receive_starved && core->link.data) {
                core->link.receive_starved = false;
                receiver_parse(core, core->link.data);
            }
            if (core->link.meta_waits && core->link.meta) {
                core->link.meta_waits = false;
                receiver_parse(core, core->link.meta);
            }
            if (core->link.phase == LINK_UP) {
                if (core->link.options.two_primaries && !core->link.options.resolve_conflicts)
                    conflict_tick(core);
                sender_barrier_tick(core);
            }
        }
        flush_streams(core);
        if (!list_empty(&core->submit)) {
            struct list_head ops;
            list_init(&ops);
            list_splice_tail(&ops, &core->submit);
            core->io->disk_submit(core->io_ctx, &ops);
        }
        sessions_due = run_sessions(core);
    } while (has_work(core) && core->stats.nbd_requests < enough);
    if (core->link.phase == LINK_UP)
        flush_peer(core, core->link.data);
    if (core->link.phase == LINK_UP)
        flush_peer(core, core->link.meta);
    sender_sent(core);

    core->stats.now_ns = core->now_ns;
    core->stats.requests_free = request_table_free(&core->requests);
    core->stats.app_buffers_used_bytes = core->app_buffers.used_bytes;
    core->stats.peer_buffers_used_bytes = core->peer_buffers.used_bytes;
    core->stats.epochs_open = core->link.log.epochs_open;
    core->stats.transfer_log = core->link.log.requests;
    if (has_work(core) || core->turn_waits)
        return core->now_ns;    /* but the sockets first */
    uint64_t next = u64_min(link_timers(core), u64_min(sessions_due, core->payloads_due_ns));
    for (int i = 0; i < RE_VOLUMES_MAX; i++)
        if (core->volumes[i]) {
            const struct volume *v = core->volumes[i];
            next = u64_min(next, u64_min(resync_target_deadline(v), resync_source_deadline(v)));
            next = u64_min(next, volume_disk_deadline(v));
            next = u64_min(next, verify_deadline(v));
        }
    return next;
}
