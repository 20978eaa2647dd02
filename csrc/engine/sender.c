/* SPDX-License-Identifier: Apache-2.0 */
/* What goes to the peer: replicated writes with their epochs, requests, replies, acks.
 *
 * Invariant: the order of P_DATA packets on the data socket is the order of the transfer log, and the P_BARRIER of a
 * closed epoch stands before the first write of the next one.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

bool volume_replicates(const struct volume *v)
{
    const struct re_state *s = &v->state;
    return link_is_up(v->core) &&
           (s->peer_disk == D_UP_TO_DATE ? s->connection >= C_CONNECTED && s->connection != C_WF_BITMAP_S &&
                                               s->connection != C_AHEAD
                                         : s->peer_disk >= D_INCONSISTENT && s->peer_disk != D_UNKNOWN &&
                                               s->connection >= C_WF_BITMAP_T && s->connection <= C_PAUSED_SYNC_T);
}

bool volume_notifies_out_of_sync(const struct volume *v)
{
    return link_is_up(v->core) && (v->state.connection == C_WF_BITMAP_S || v->state.connection == C_AHEAD);
}

void sender_raw(struct core *core, bool meta, unsigned command, unsigned volume, const void *body, size_t bytes)
{
    struct peer_stream *peer = meta ? core->link.meta : core->link.data;
    uint8_t packet[PACKET_HEADER_MAX + 64];
    if (core->link.phase != LINK_UP || !peer)
        return;
    CHECK(bytes <= 64);
    size_t header =
        packet_header_put(packet, core->link.options.version, command, volume, (uint32_t)bytes);
    if (bytes)
        memcpy(packet + header, body, bytes);
    stream_queue_bytes(&peer->stream, packet, header + bytes);
}

/* ---- epochs ---- */

void sender_close_epoch(struct core *core, const struct epoch *completed)
{
    struct link *link = &core->link;
    struct epoch *open = transfer_log_open_epoch(&link->log);
    if (!completed)
        link->barrier_urgent = true;
    if (open && (!completed || completed == open)) {
        transfer_log_close(&link->log);
        link->barrier_due_ns = core->now_ns + BARRIER_IDLE_MS * NS_PER_MS;
    }
}

void sender_barrier(struct core *core)
{
    struct epoch *epoch = transfer_log_barrier_due(&core->link.log);
    if (!epoch || core->link.phase != LINK_UP)
        return;
    uint8_t body[PACKET_BARRIER_BODY] = {0};
    le32_put(body, epoch->number);
    core->link.barrier_urgent = false;
    epoch->barrier_sent = true;
    epoch->barrier_sent_ns = core->now_ns;
    core->stats.barriers_sent++;
    sender_raw(core, false, P_BARRIER, 0, body, sizeof(body));
    if (list_empty(&epoch->requests)) {     /* the peer has discarded all of it (conflict.c) */
        transfer_log_free(&core->link.log, epoch);
        app_flush_check(core);
    }
}

/* The barrier of a closed epoch travels with the next write, which saves both nodes a wake-up; it waits briefly. */
void sender_barrier_tick(struct core *core)
{
    struct link *link = &core->link;
    if (link->barrier_urgent || core->now_ns >= link->barrier_due_ns)
        sender_barrier(core);
}

/* ---- writes ---- */

/* P_ZEROES is understood.  The kernel module drops the link over it when there are digests. */
static uint32_t write_flags(const struct core *core, struct request *r)
{
    const struct re_link *options = &core->link.options;
    const struct volume *v = r->volume;
    uint32_t flags = DP_RW_SYNC;
    if (r->flags & REQUEST_FUA)
        flags |= DP_FUA;
    if (r->flags & REQUEST_PREFLUSH)
        flags |= DP_FLUSH;
    if (r->kind != REQUEST_WRITE) {
        bool unmap = r->kind == REQUEST_TRIM || (r->flags & REQUEST_MAY_UNMAP);
        if (split_sends_zeroes(core, r))
            flags |= DP_ZEROES | (unmap ? DP_DISCARD : 0u);
        else
            flags |= DP_DISCARD;
    }
    bool resync = v->state.connection >= C_SYNC_SOURCE && v->state.connection <= C_PAUSED_SYNC_T &&
                  v->state.connection != C_VERIFY_S && v->state.connection != C_VERIFY_T;
    /* differs: without a good disk of our own only what is on the peer's counts, in every protocol (decision 0016). */
    bool write_ack = options->protocol == 3 || resync || v->state.disk != D_UP_TO_DATE;
    if (resync)
        flags |= DP_MAY_SET_IN_SYNC;
    /* Nothing else is defined there: what these flags ask for, only a barrier ack can promise. */
    r->needs_barrier =
        options->version < 95 && options->protocol == 3 && (r->flags & (REQUEST_FUA | REQUEST_PREFLUSH));
    if (options->version < 95)
        flags &= DP_RW_SYNC | DP_MAY_SET_IN_SYNC;
    if (options->version < 100) {   /* what is acknowledged follows from the protocol */
        r->needs_barrier |= options->protocol == 2 && v->state.disk != D_UP_TO_DATE;
        write_ack = options->protocol == 3;
    } else {
        if (write_ack)
            flags |= DP_SEND_WRITE_ACK;
        else if (options->protocol == 2)
            flags |= DP_SEND_RECEIVE_ACK;
    }
    r->ack_expected = write_ack || options->protocol == 2;
    r->write_ack = write_ack;
    return flags;
}

/* Its packets are queued. */
static void sent(struct core *core, struct request *r)
{
    struct link *link = &core->link;
    r->tx_mark = link->data->stream.tx_queued_total;
    r->net_pending = true;
    if (link->options.protocol == 1 && r->volume->state.disk == D_UP_TO_DATE)
        list_add_tail(&link->unsent, &r->sent);
    else if (!r->ack_expected || r->needs_barrier)  /* only the barrier ack will tell */
        sender_close_epoch(core, NULL);
}

void sender_write(struct core *core, struct request *r)
{
    struct link *link = &core->link;
    struct volume *v = r->volume;
    struct epoch *open = transfer_log_open_epoch(&link->log);
    if (open && open->count >= link->options.max_epoch_size)
        transfer_log_close(&link->log);
    sender_barrier(core);
    transfer_log_append(&link->log, r);
    v->stats.peer_pending++;
    v->in_flight_bytes += r->length;

    if (split_is_needed(core, r)) {
        split_send(core, r, write_flags(core, r));
        sent(core, r);
        return;
    }
    uint8_t packet[PACKET_HEADER_MAX + PACKET_TRIM_SUB + DIGEST_BYTES_MAX], digest[DIGEST_BYTES_MAX];
    unsigned command = r->kind == REQUEST_WRITE ? P_DATA : split_sends_zeroes(core, r) ? P_ZEROES : P_TRIM;
    size_t payload = r->kind == REQUEST_WRITE ? r->length : 0;
    bool has_payload = command == P_DATA;   /* perhaps an empty one: conflict.c */
    size_t digested = has_payload ? integrity_put(link, digest, payload ? r->buf->data : NULL, payload) : 0;
    size_t sub_bytes = has_payload ? PACKET_DATA_SUB + digested : PACKET_TRIM_SUB;
    size_t header = packet_header_put(packet, link->options.version, command, (unsigned)v->number,
                                      (uint32_t)(sub_bytes + payload));
    struct data_sub sub = {.sector = r->offset / SECTOR_BYTES,
                           .block_id = request_block_id(r),
                           .seq_num = ++v->seq_out,
                           .dp_flags = write_flags(core, r)};
    packet_data_sub_put(packet + header, &sub);
    if (!has_payload)
        be32_put(packet + header + PACKET_DATA_SUB, (uint32_t)r->length);
    memcpy(packet + header + PACKET_DATA_SUB, digest, digested);
    stream_queue_bytes(&link->data->stream, packet, header + sub_bytes);
    if (payload)
        stream_queue_buf(&link->data->stream, r->buf, r->buf->data, payload);
    v->stats.sent_bytes += payload;
    sent(core, r);
}

/* differs: in protocol A DRBD waits until the socket has the packets.  A few that leave at the end of this very tick
 * count as gone, so that the client has its reply before we pay for the send (decision 0044). */
void sender_counts_as_gone(struct core *core, struct request *r)
{
    struct link *link = &core->link;
    if (list_first(&link->unsent) != &r->sent)      /* another protocol, or others wait for room in the socket */
        return;
    const struct stream *stream = &link->data->stream;
    if (!stream->tx_blocked && stream->tx_queued_total - stream->tx_sent_total <= GONE_BYTES_MAX)
        request_net_done(r, true);
}

bool sender_replies_first(const struct core *core)
{
    return core->link.options.protocol == 1 && list_empty(&core->link.unsent);
}

/* Protocol A: the socket has taken these packets. */
void sender_sent(struct core *core)
{
    struct link *link = &core->link;
    if (link->phase != LINK_UP)
        return;
    while (!list_empty(&link->unsent)) {
        struct request *r = list_entry(list_first(&link->unsent), struct request, sent);
        if (link->data->stream.tx_sent_total < r->tx_mark)
            return;
        list_del(&r->sent);
        request_net_done(r, true);
        request_settle(r);
    }
}

void sender_out_of_sync(struct volume *v, uint64_t offset, uint64_t length)
{
    uint8_t body[PACKET_OUT_OF_SYNC_BODY] = {0};
    be64_put(body, offset / SECTOR_BYTES);
    be32_put(body + 8, (uint32_t)length);
    sender_raw(v->core, false, P_OUT_OF_SYNC, (unsigned)v->number, body, sizeof(body));
}

/* ---- requests ---- */

static void send_request(struct volume *v, unsigned command, uint64_t offset, uint64_t block_id, uint32_t bytes)
{
    uint8_t body[PACKET_REQUEST_BODY] = {0};
    be64_put(body, offset / SECTOR_BYTES);
    be64_put(body + 8, block_id);
    be32_put(body + 16, bytes);
    sender_raw(v->core, false, command, (unsigned)v->number, body, sizeof(body));
}

void sender_data_request(struct volume *v, struct request *r)
{
    uint32_t most = split_data_bytes_max(v->core);
    r->part_bytes = most;
    r->parts_left = (uint32_t)((r->length + most - 1) / most);
    r->arriving = r->read_failed = false;
    for (uint64_t done = 0; done < r->length; done += most) {
        uint32_t bytes = (uint32_t)u64_min(r->length - done, most);
        send_request(v, P_DATA_REQUEST, r->offset + done, request_block_id(r), bytes);
    }
}

void sender_resync_request(struct volume *v, unsigned command, uint64_t offset, uint32_t bytes)
{
    send_request(v, command, offset, ID_SYNCER, bytes);
}

void sender_csum_request(struct volume *v, uint64_t offset, uint32_t bytes, const uint8_t *digest, size_t length)
{
    uint8_t body[PACKET_REQUEST_BODY + DIGEST_BYTES_MAX] = {0};
    CHECK(length <= DIGEST_BYTES_MAX);
    be64_put(body, offset / SECTOR_BYTES);
    be64_put(body + 8, ID_SYNCER);
    be32_put(body + 16, bytes);
    memcpy(body + PACKET_REQUEST_BODY, digest, length);
    sender_raw(v->core, false, P_CSUM_RS_REQUEST, (unsigned)v->number, body, PACKET_REQUEST_BODY + length);
}

/* ---- replies and acks ---- */

void sender_reply_part(struct volume *v, unsigned command, const struct peer_request *pr, uint32_t at,
                       uint32_t bytes)
{
    struct link *link = &v->core->link;
    uint8_t packet[PACKET_HEADER_MAX + PACKET_DATA_SUB + DIGEST_BYTES_MAX], digest[DIGEST_BYTES_MAX];
    if (link->phase != LINK_UP)
        return;
    size_t digested = integrity_put(link, digest, pr->buf->data + at, bytes);
    size_t header = packet_header_put(packet, link->options.version, command, (unsigned)v->number,
                                      (uint32_t)(PACKET_DATA_SUB + digested + bytes));
    packet_data_sub_put(packet + header,
                        &(struct data_sub){.sector = pr->sector + at / SECTOR_BYTES, .block_id = pr->block_id});
    memcpy(packet + header + PACKET_DATA_SUB, digest, digested);
    stream_queue_bytes(&link->data->stream, packet, header + PACKET_DATA_SUB + digested);
    stream_queue_buf(&link->data->stream, pr->buf, pr->buf->data + at, bytes);
    v->stats.sent_bytes += bytes;
}

void sender_reply(struct volume *v, unsigned command, const struct peer_request *pr)
{
    sender_reply_part(v, command, pr, 0, pr->bytes);
}

void sender_deallocated(struct volume *v, const struct peer_request *pr, uint32_t at, uint32_t bytes)
{
    uint8_t body[PACKET_OUT_OF_SYNC_BODY] = {0};
    be64_put(body, pr->sector + at / SECTOR_BYTES);
    be32_put(body + 8, bytes);
    sender_raw(v->core, false, P_RS_DEALLOCATED, (unsigned)v->number, body, sizeof(body));
}

void sender_ack(struct volume *v, unsigned command, uint64_t sector, uint64_t block_id, uint32_t bytes)
{
    uint8_t body[PACKET_ACK_BODY];
    packet_ack_put(body, &(struct ack_body){.sector = sector,
                                            .block_id = block_id,
                                            .size_bytes = bytes,
                                            .seq_num = ++v->seq_out});
    sender_raw(v->core, true, command, (unsigned)v->number, body, sizeof(body));
}

void sender_barrier_ack(struct core *core, const uint8_t number[4], uint32_t count)
{
    uint8_t body[PACKET_BARRIER_BODY];
    memcpy(body, number, 4);
    be32_put(body + 4, count);
    sender_raw(core, true, P_BARRIER_ACK, 0, body, sizeof(body));
}
