/* SPDX-License-Identifier: Apache-2.0 */
/* What comes from the peer: packets are parsed, checked and handed on; payloads go straight into their buffers.
 *
 * Control packets go to the control plane as they are, and the stream waits until it has answered (STREAM_RESUME), so
 * that what follows is read in the state that the packet led to.  Anything illegal ends the link with a reason, never
 * the engine.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

/* What a handler did with the packet. */
enum handled { HANDLED, NEEDS_MORE, STARVED, ILLEGAL };

struct packet_view {
    struct packet_header header;
    const uint8_t *body;        /* what is there of it */
    size_t body_available;
    struct volume *v;           /* NULL for an unknown volume */
};

static enum handled illegal(struct core *core, enum illegal reason)
{
    core->illegal_reason = reason;
    return ILLEGAL;
}

/* The largest request or payload of one packet: 1 MiB, less for old versions (whose headers could not carry it). */
static uint64_t request_bytes_max(const struct core *core)
{
    uint32_t version = core->link.options.version;
    return version >= 100 ? PEER_REQUEST_BYTES_MAX : version >= 95 ? 128 << 10 : 32 << 10;
}

static bool range_ok(const struct volume *v, uint64_t sector, uint64_t bytes, uint64_t bytes_max)
{
    return bytes > 0 && bytes <= bytes_max && bytes % SECTOR_BYTES == 0 &&
           sector <= v->size_bytes / SECTOR_BYTES && bytes / SECTOR_BYTES <= v->size_bytes / SECTOR_BYTES - sector;
}

/* ---- payloads ---- */

/* The peer has answered the last part. */
static void remote_read_check(struct request *r)
{
    if (r->parts_left || r->arriving)
        return;
    r->remote_read = false;
    r->volume->stats.peer_pending--;
    list_del(&r->link);
    request_net_done(r, !r->read_failed);
    if (r->read_failed && !r->refused && volume_disk_usable(r->volume)) {   /* read-balancing: our disk has it, too */
        r->refused = true;
        request_read_start(r);
        return;
    }
    request_settle(r);
}

static void payload_finished(struct core *core, struct peer_stream *peer)
{
    if (!integrity_check(core, peer))
        return;     /* the link is gone, and the payload and `peer` with it */
    void *object = peer->rx_object;
    int kind = peer->rx_kind;
    peer->rx_kind = RX_NONE;
    peer->rx_object = NULL;
    switch (kind) {
    case RX_PEER_REQUEST:
        peer_write_received(core, object);
        break;
    case RX_REMOTE_READ: {
        struct request *r = object;
        r->volume->stats.received_bytes += r->length;
        r->arriving = false;
        remote_read_check(r);
        break;
    }
    case RX_RESYNC:
        resync_target_data(object);
        break;
    case RX_DROP:
        buf_put(object);
        break;
    default:
        break;
    }
}

void receiver_drop_payload(struct core *core, struct peer_stream *peer)
{
    if (peer->rx_kind == RX_PEER_REQUEST) {
        struct peer_request *pr = peer->rx_object;
        pr->epoch->count--;
        pr->epoch->pending--;
        core->link.peer_writes--;
        peer_request_free(core, pr);
    } else if (peer->rx_kind == RX_RESYNC) {
        struct resync_request *rq = peer->rx_object;
        rq->stage = RESYNC_ASKED;   /* resync_target_stop() frees it */
    } else if (peer->rx_kind == RX_DROP)
        buf_put(peer->rx_object);
    peer->rx_kind = RX_NONE;
    peer->rx_object = NULL;
}

static enum handled take_payload(struct core *core, struct peer_stream *peer, const struct packet_view *p,
                                 size_t digest, uint8_t *destination, size_t bytes, int kind, void *object)
{
    integrity_expect(peer, &p->header, p->body, digest, destination, bytes);
    stream_consume(&peer->stream, p->header.header_bytes + PACKET_DATA_SUB + digest);
    peer->rx_kind = kind;
    peer->rx_object = object;
    if (stream_receive_payload(&peer->stream, destination, bytes))
        payload_finished(core, peer);
    return HANDLED;
}

/* ---- data socket ---- */

static enum handled on_write(struct core *core, struct peer_stream *peer, const struct packet_view *p)
{
    bool zero = p->header.command != P_DATA;
    size_t digest = zero || p->header.length == PACKET_DATA_SUB ? 0 : integrity_received_bytes(core);
    size_t sub_bytes = zero ? PACKET_TRIM_SUB : PACKET_DATA_SUB + digest;
    if (p->header.length < sub_bytes)
        return illegal(core, ILLEGAL_LENGTH);
    if (p->body_available < sub_bytes)
        return NEEDS_MORE;
    if (!p->v)
        return illegal(core, ILLEGAL_VOLUME);
    /* differs: DRBD takes writes from a Secondary as well (decision 0035). */
    if (p->v->state.peer_role != ROLE_PRIMARY)
        return illegal(core, ILLEGAL_STATE);
    struct data_sub sub;
    packet_data_sub_get(p->body, &sub);
    uint64_t bytes = zero ? be32_get(p->body + PACKET_DATA_SUB) : p->header.length - sub_bytes;
    bool inside = sub.sector <= p->v->size_bytes / SECTOR_BYTES;
    bool empty_flush = !zero && bytes == 0 && (sub.dp_flags & DP_FLUSH) && inside;
    if (!empty_flush && !range_ok(p->v, sub.sector, bytes, zero ? PEER_DISCARD_BYTES_MAX : request_bytes_max(core)))
        return illegal(core, ILLEGAL_RANGE);
    if (core->link.options.two_primaries && conflict_must_wait(p->v, sub.seq_num))
        return STARVED;
    struct peer_request *pr = peer_request_take(core, p->v, zero || empty_flush ? PEER_ZERO : PEER_WRITE);
    if (!pr)
        return STARVED;
    if (!zero && bytes) {
        pr->buf = buf_take(&core->peer_buffers, bytes);
        if (!pr->buf) {
            peer_request_free(core, pr);
            return STARVED;
        }
    }
    pr->sector = sub.sector;
    pr->block_id = sub.block_id;
    pr->dp_flags = sub.dp_flags;
    pr->bytes = (uint32_t)bytes;
    pr->epoch = peer_epoch_open(core);
    pr->epoch->count++;
    pr->epoch->pending++;
    core->link.peer_writes++;
    conflict_seen(p->v, sub.seq_num);
    if (pr->buf)
        return take_payload(core, peer, p, digest, pr->buf->data, bytes, RX_PEER_REQUEST, pr);
    stream_consume(&peer->stream, p->header.header_bytes + sub_bytes);
    peer_write_received(core, pr);
    return HANDLED;
}

static enum handled on_barrier(struct core *core, const struct packet_view *p)
{
    core->stats.barriers_received++;
    peer_barrier(core, p->body);
    return HANDLED;
}

static enum handled on_read_request(struct core *core, const struct packet_view *p)
{
    if (!p->v)
        return illegal(core, ILLEGAL_VOLUME);
    uint64_t sector = be64_get(p->body);
    uint32_t bytes = be32_get(p->body + 16);
    if (!range_ok(p->v, sector, bytes, request_bytes_max(core)))
        return illegal(core, ILLEGAL_RANGE);
    bool resync = p->header.command != P_DATA_REQUEST;
    bool by_digest = p->header.command == P_CSUM_RS_REQUEST;
    size_t digest_length = by_digest ? digest_bytes((enum digest_alg)core->link.options.csums_alg) : 0;
    if (by_digest && !digest_length)
        return illegal(core, ILLEGAL_COMMAND);
    if (by_digest && p->header.length != PACKET_REQUEST_BODY + digest_length)
        return illegal(core, ILLEGAL_LENGTH);
    struct peer_request *pr = peer_request_take(core, p->v, resync ? PEER_RESYNC_READ : PEER_READ);
    if (!pr)
        return STARVED;
    pr->buf = buf_take(&core->peer_buffers, bytes);
    if (!pr->buf) {
        peer_request_free(core, pr);
        return STARVED;
    }
    pr->sector = sector;
    pr->block_id = be64_get(p->body + 8);
    pr->bytes = bytes;
    pr->thin = p->header.command == P_RS_THIN_REQ;
    pr->by_digest = by_digest;
    if (resync)
        resync_source_received(pr, by_digest ? p->body + PACKET_REQUEST_BODY : NULL);
    else
        peer_read_received(core, pr);
    return HANDLED;
}

static enum handled on_data_reply(struct core *core, struct peer_stream *peer, const struct packet_view *p)
{
    size_t digest = integrity_received_bytes(core);
    if (p->header.length < PACKET_DATA_SUB + digest)
        return illegal(core, ILLEGAL_LENGTH);
    if (p->body_available < PACKET_DATA_SUB + digest)
        return NEEDS_MORE;
    struct data_sub sub;
    packet_data_sub_get(p->body, &sub);
    uint64_t bytes = p->header.length - PACKET_DATA_SUB - digest;
    struct request *r = request_find(&core->requests, sub.block_id);
    if (!r || !r->remote_read || !r->parts_left || r->volume != p->v || !split_ack_matches(r, sub.sector))
        return illegal(core, ILLEGAL_ID);
    uint64_t at = sub.sector * SECTOR_BYTES - r->offset;
    if (bytes != u64_min(r->part_bytes, r->length - at))
        return illegal(core, ILLEGAL_ID);
    r->parts_left--;
    r->arriving = true;
    return take_payload(core, peer, p, digest, r->buf->data + at, bytes, RX_REMOTE_READ, r);
}

static enum handled on_resync_reply(struct core *core, struct peer_stream *peer, const struct packet_view *p)
{
    size_t digest = integrity_received_bytes(core);
    if (p->header.length < PACKET_DATA_SUB + digest)
        return illegal(core, ILLEGAL_LENGTH);
    if (p->body_available < PACKET_DATA_SUB + digest)
        return NEEDS_MORE;
    if (!p->v)
        return illegal(core, ILLEGAL_VOLUME);
    struct data_sub sub;
    packet_data_sub_get(p->body, &sub);
    uint64_t bytes = p->header.length - PACKET_DATA_SUB - digest;
    if (!range_ok(p->v, sub.sector, bytes, PEER_REQUEST_BYTES_MAX))
        return illegal(core, ILLEGAL_RANGE);
    struct resync_request *rq = resync_target_find(p->v, sub.sector, (uint32_t)bytes);
    struct buf *buf = buf_take(&core->peer_buffers, bytes);
    if (!buf)
        return STARVED;
    if (!rq && resync_target_expects(p->v, bytes))  /* the run that has asked for it is over */
        return take_payload(core, peer, p, digest, buf->data, bytes, RX_DROP, buf);
    if (!rq || !resync_request_shrink(rq, (uint32_t)bytes)) {
        buf_put(buf);
        return rq ? STARVED : illegal(core, ILLEGAL_ID);
    }
    rq->buf = buf;
    rq->stage = RESYNC_RECEIVING;
    return take_payload(core, peer, p, digest, rq->buf->data, bytes, RX_RESYNC, rq);
}

static enum handled on_deallocated(struct core *core, const struct packet_view *p)
{
    if (!p->v)
        return illegal(core, ILLEGAL_VOLUME);
    uint64_t sector = be64_get(p->body);
    uint32_t bytes = be32_get(p->body + 8);
    if (!range_ok(p->v, sector, bytes, PEER_REQUEST_BYTES_MAX))
        return illegal(core, ILLEGAL_RANGE);
    struct resync_request *rq = resync_target_find(p->v, sector, bytes);
    if (!rq)
        return resync_target_expects(p->v, bytes) ? HANDLED : illegal(core, ILLEGAL_ID);
    if (!resync_request_shrink(rq, bytes))
        return STARVED;
    resync_target_zero(rq);
    return HANDLED;
}

/* Blocks of an online verify: 4 KiB each, only the last one of the device may be shorter. */
static bool verify_block_ok(const struct volume *v, uint64_t sector, uint32_t bytes)
{
    return sector % BLOCK_SECTORS == 0 && range_ok(v, sector, bytes, BLOCK_BYTES) &&
           (bytes == BLOCK_BYTES || sector * SECTOR_BYTES + bytes == v->size_bytes);
}

static enum handled on_verify(struct core *core, const struct packet_view *p)
{
    size_t digest = digest_bytes((enum digest_alg)core->link.options.verify_alg);
    bool is_reply = p->header.command == P_OV_REPLY;
    if (!p->v)
        return illegal(core, ILLEGAL_VOLUME);
    if (digest == 0)
        return illegal(core, ILLEGAL_STATE);    /* no verify-alg here */
    if (is_reply && p->header.length != PACKET_REQUEST_BODY + digest)
        return illegal(core, ILLEGAL_LENGTH);
    uint64_t sector = be64_get(p->body);
    uint32_t bytes = be32_get(p->body + 16);
    if (!verify_block_ok(p->v, sector, bytes))
        return illegal(core, ILLEGAL_RANGE);
    if (is_reply)
        verify_reply(p->v, sector, bytes, p->body + PACKET_REQUEST_BODY, digest);
    else if (!verify_request(p->v, sector, bytes))
        return STARVED;
    return HANDLED;
}

static enum handled on_bitmap(struct core *core, const struct packet_view *p)
{
    if (p->header.length > BLOCK_BYTES - p->header.header_bytes)
        return illegal(core, ILLEGAL_LENGTH);
    if (p->body_available < p->header.length)
        return NEEDS_MORE;
    if (!p->v)
        return illegal(core, ILLEGAL_VOLUME);
    if (!p->v->bitmap || !p->v->bitmap_receiving)
        return illegal(core, ILLEGAL_STATE);
    return bitmap_receive(p->v, p->header.command, p->body, p->header.length) ? HANDLED : illegal(core, ILLEGAL_BITMAP);
}

static enum handled on_out_of_sync(struct core *core, const struct packet_view *p)
{
    if (!p->v)
        return illegal(core, ILLEGAL_VOLUME);
    uint64_t sector = be64_get(p->body);
    uint32_t bytes = be32_get(p->body + 8);
    if (!range_ok(p->v, sector, bytes, PEER_DISCARD_BYTES_MAX))
        return illegal(core, ILLEGAL_RANGE);
    volume_set_dirty(p->v, sector * SECTOR_BYTES, bytes);
    return HANDLED;
}

static enum handled on_delay_probe(const struct packet_view *p)
{
    if (p->v)
        resync_look_told(p->v, p->body);
    return HANDLED;
}

static enum handled on_data_packet(struct core *core, struct peer_stream *peer, const struct packet_view *p)
{
    size_t consume = p->header.header_bytes + p->header.length;
    enum handled result;
    switch (p->header.command) {
    case P_DATA:
    case P_TRIM:
    case P_ZEROES:
        return on_write(core, peer, p);
    case P_DATA_REPLY:
        return on_data_reply(core, peer, p);
    case P_RS_DATA_REPLY:
        return on_resync_reply(core, peer, p);
    case P_BITMAP:
    case P_COMPRESSED_BITMAP:
        result = on_bitmap(core, p);
        break;
    case P_BARRIER:
    case P_DATA_REQUEST:
    case P_RS_DATA_REQUEST:
    case P_RS_THIN_REQ:
    case P_CSUM_RS_REQUEST:
    case P_RS_DEALLOCATED:
    case P_OUT_OF_SYNC:
    case P_UNPLUG_REMOTE:
    case P_DELAY_PROBE:
    case P_OV_REQUEST:
    case P_OV_REPLY:
        if (p->header.length > CONTROL_BODY_MAX)
            return illegal(core, ILLEGAL_LENGTH);
        if (p->body_available < p->header.length)
            return NEEDS_MORE;
        if (p->header.command == P_BARRIER)
            result = on_barrier(core, p);
        else if (p->header.command == P_OUT_OF_SYNC)
            result = on_out_of_sync(core, p);
        else if (p->header.command == P_RS_DEALLOCATED)
            result = on_deallocated(core, p);
        else if (p->header.command == P_OV_REQUEST || p->header.command == P_OV_REPLY)
            result = on_verify(core, p);
        else if (p->header.command == P_UNPLUG_REMOTE)
            result = HANDLED;
        else if (p->header.command == P_DELAY_PROBE)
            result = on_delay_probe(p);
        else
            result = on_read_request(core, p);
        break;
    default:
        return illegal(core, ILLEGAL_COMMAND);    /* known, but nothing that we have asked or announced */
    }
    if (result == HANDLED)
        stream_consume(&peer->stream, consume);
    return result;
}

/* ---- meta socket ---- */

static enum handled on_write_ack(struct core *core, const struct packet_view *p, const struct ack_body *ack)
{
    struct request *r = request_find(&core->requests, ack->block_id);
    bool negative = p->header.command == P_NEG_ACK;
    if (!r || !r->epoch || r->volume != p->v || !split_ack_matches(r, ack->sector)) {
        if (!negative)
            return illegal(core, ILLEGAL_ID);
        if (range_ok(p->v, ack->sector, ack->size_bytes, PEER_DISCARD_BYTES_MAX))
            volume_set_dirty(p->v, ack->sector * SECTOR_BYTES, ack->size_bytes);
        return HANDLED;
    }
    if (negative)
        request_mark_dirty(r);
    else if (p->header.command == P_RS_WRITE_ACK && !congestion_marks_again(r->volume, r->offset, r->length)) {
        if (!r->marked)
            split_clear_dirty(r, ack->sector);
    }
    /* Where the peer's disk counts a P_RECV_ACK is not the point; the protocol may have changed since it was sent. */
    if (p->header.command == P_RECV_ACK && r->write_ack)
        return HANDLED;
    if (!negative && r->needs_barrier)
        return HANDLED;
    if (!negative && r->parts_left > 1) {
        r->parts_left--;
        return HANDLED;
    }
    request_net_done(r, !negative);
    request_settle(r);
    if (p->header.command == P_RS_WRITE_ACK)
        resync_source_check(p->v);
    return HANDLED;
}

static enum handled on_read_refused(struct core *core, const struct packet_view *p, const struct ack_body *ack)
{
    struct request *r = request_find(&core->requests, ack->block_id);
    if (!r || !r->remote_read || !r->parts_left || r->volume != p->v)
        return illegal(core, ILLEGAL_ID);
    r->parts_left--;
    r->read_failed = true;
    remote_read_check(r);
    return HANDLED;
}

/* Two Primaries: the other one has not carried out this write of ours. */
static enum handled on_discarded(struct core *core, const struct packet_view *p, const struct ack_body *ack)
{
    const struct re_link *o = &core->link.options;
    struct request *r = request_find(&core->requests, ack->block_id);
    if (!o->two_primaries || o->resolve_conflicts)
        return illegal(core, ILLEGAL_STATE);
    if (!r || !r->in_transfer_log || !r->net_pending || r->volume != p->v ||
        r->offset / SECTOR_BYTES != ack->sector)
        return illegal(core, ILLEGAL_ID);
    conflict_answered(r, p->header.command == P_RETRY_WRITE);
    return HANDLED;
}

static enum handled on_ack(struct core *core, const struct packet_view *p)
{
    struct ack_body ack;
    if (!p->v)
        return illegal(core, ILLEGAL_VOLUME);
    packet_ack_get(p->body, &ack);
    conflict_seen(p->v, ack.seq_num);
    switch (p->header.command) {
    case P_NEG_DREPLY:
        return on_read_refused(core, p, &ack);
    case P_NEG_RS_DREPLY:
    case P_RS_CANCEL:
    case P_RS_IS_IN_SYNC:
        if (!range_ok(p->v, ack.sector, ack.size_bytes, PEER_REQUEST_BYTES_MAX))
            return illegal(core, ILLEGAL_RANGE);
        if (p->header.command == P_RS_IS_IN_SYNC)
            resync_target_equal(p->v, ack.sector, ack.size_bytes);
        else if (p->v->state.connection == C_VERIFY_S)
            verify_refused(p->v, ack.sector, ack.size_bytes);
        else if (p->header.command == P_RS_CANCEL)
            resync_target_again(p->v, ack.sector, ack.size_bytes);
        else
            resync_target_failed(p->v, ack.sector, ack.size_bytes);
        return HANDLED;
    case P_OV_RESULT:
        if (!verify_block_ok(p->v, ack.sector, ack.size_bytes))
            return illegal(core, ILLEGAL_RANGE);
        verify_verdict(p->v, ack.sector, ack.size_bytes, ack.block_id);
        return HANDLED;
    case P_RS_WRITE_ACK:
    case P_NEG_ACK:
        if (ack.block_id == ID_SYNCER) {
            if (!range_ok(p->v, ack.sector, ack.size_bytes, PEER_REQUEST_BYTES_MAX))
                return illegal(core, ILLEGAL_RANGE);
            if (p->header.command == P_RS_WRITE_ACK)
                resync_source_acked(p->v, ack.sector, ack.size_bytes);
            else
                p->v->stats.resync_failed_bits += (ack.size_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
            return HANDLED;
        }
        return on_write_ack(core, p, &ack);
    case P_RECV_ACK:
    case P_WRITE_ACK:
        return on_write_ack(core, p, &ack);
    case P_SUPERSEDED:
    case P_RETRY_WRITE:
        return on_discarded(core, p, &ack);
    default:
        return illegal(core, ILLEGAL_COMMAND);
    }
}

/* The oldest epoch is on the peer's stable storage. */
void epoch_acknowledged(struct core *core, struct epoch *epoch)
{
    struct link *link = &core->link;
    while (!list_empty(&epoch->requests)) {
        struct request *r = list_entry(list_first(&epoch->requests), struct request, tl);
        transfer_log_remove(&link->log, r);
        request_left_log(r);
        request_net_done(r, true);
        struct volume *v = r->volume;
        request_settle(r);
        if (v->drain_cookie)
            volume_check_idle(v);
    }
    transfer_log_free(&link->log, epoch);
    app_flush_check(core);
}

static enum handled on_barrier_ack(struct core *core, const struct packet_view *p)
{
    struct epoch *epoch = transfer_log_oldest(&core->link.log);
    uint32_t number = le32_get(p->body);
    if (epoch && epoch->number != number && epoch->discarded && conflict_release_older(core, number))
        epoch = transfer_log_oldest(&core->link.log);
    if (!epoch || !epoch->barrier_sent || epoch->number != number || epoch->count != be32_get(p->body + 4))
        return illegal(core, ILLEGAL_BARRIER);
    core->stats.barrier_acks_received++;
    epoch_acknowledged(core, epoch);
    return HANDLED;
}

static enum handled on_ping_ack(struct core *core)
{
    struct link *link = &core->link;
    if (link->pings_acked >= link->pings_sent)
        return HANDLED;     /* nobody asked: harmless */
    link->pings_acked++;
    core->stats.ping_acks_received++;
    link->ping_outstanding = link->pings_acked < link->pings_sent;
    if (link->ping_outstanding)
        link->ping_sent_ns = core->now_ns;
    while (link->ping_waiter_count && link->ping_waiters[0].serial <= link->pings_acked) {
        core_done(core, link->ping_waiters[0].cookie, -1, RE_RESULT_OK, 0);
        link->ping_waiter_count--;
        memmove(link->ping_waiters, link->ping_waiters + 1,
                link->ping_waiter_count * sizeof(link->ping_waiters[0]));
    }
    return HANDLED;
}

static enum handled on_meta_packet(struct core *core, struct peer_stream *peer, const struct packet_view *p)
{
    if (p->body_available < p->header.length)
        return NEEDS_MORE;
    enum handled result;
    switch (p->header.command) {
    case P_PING:
        sender_raw(core, true, P_PING_ACK, 0, NULL, 0);
        result = HANDLED;
        break;
    case P_PING_ACK:
        result = on_ping_ack(core);
        break;
    case P_BARRIER_ACK:
        result = on_barrier_ack(core, p);
        break;
    case P_DELAY_PROBE:
        result = HANDLED;
        break;
    default:
        result = on_ack(core, p);
        break;
    }
    if (result == HANDLED)
        stream_consume(&peer->stream, p->header.header_bytes + p->header.length);
    return result;
}

/* ---- any socket ---- */

static enum handled on_control(struct core *core, struct peer_stream *peer, const struct packet_view *p)
{
    if (p->body_available < p->header.length)
        return NEEDS_MORE;
    core_emit(core,
              &(struct re_event){.type = RE_EV_PACKET,
                                 .volume = p->header.volume,
                                 .stream = peer->stream.number,
                                 .packet = p->header.command},
              p->body, p->header.length);
    if (!peer->is_meta)
        peer->paused = true;
    stream_consume(&peer->stream, p->header.header_bytes + p->header.length);
    return HANDLED;
}

static enum handled one_packet(struct core *core, struct peer_stream *peer, struct packet_view *p)
{
    const uint8_t *bytes = stream_peek(&peer->stream);
    size_t available = stream_available(&peer->stream);
    enum packet_parse parsed = packet_header_parse(bytes, available, &p->header);
    if (parsed == PACKET_INCOMPLETE)
        return NEEDS_MORE;
    if (parsed == PACKET_BAD)
        return illegal(core, ILLEGAL_HEADER);
    p->body = bytes + p->header.header_bytes;
    p->body_available = available - p->header.header_bytes;
    if (!peer->in_link && p->header.header_bytes == PACKET_HEADER_MAX) {
        peer->paused = true;    /* the peer is through with the handshake already: read it when the link is up */
        return NEEDS_MORE;
    }
    if (!peer->in_link)
        return p->header.length > CONTROL_BODY_MAX ? illegal(core, ILLEGAL_LENGTH) : on_control(core, peer, p);
    /* From version 100 on only the long header is legal, before only the short ones. */
    if ((core->link.options.version >= 100) != (p->header.header_bytes == PACKET_HEADER_MAX))
        return illegal(core, ILLEGAL_HEADER);
    enum packet_kind kind = packet_kind(peer->is_meta, p->header.command);
    if (kind == PACKET_UNKNOWN)
        return illegal(core, ILLEGAL_COMMAND);
    if (!packet_length_ok(p->header.command, p->header.length) ||
        p->header.length > PEER_REQUEST_BYTES_MAX + PACKET_TRIM_SUB + DIGEST_BYTES_MAX)
        return illegal(core, ILLEGAL_LENGTH);
    p->v = p->header.volume < RE_VOLUMES_MAX ? core->volumes[p->header.volume] : NULL;
    if (kind == PACKET_CONTROL)
        return p->header.length > CONTROL_BODY_MAX ? illegal(core, ILLEGAL_LENGTH) : on_control(core, peer, p);
    return peer->is_meta ? on_meta_packet(core, peer, p) : on_data_packet(core, peer, p);
}

static void end_illegal(struct core *core, struct peer_stream *peer, const struct packet_view *p)
{
    if (peer->in_link) {
        link_lost(core, RE_LOST_PROTOCOL, p->header.command, core->illegal_reason, true);
        return;
    }
    peer->stream.failed = true;
    stream_update_interest(&peer->stream);
    if (peer->closed_reported)
        return;
    peer->closed_reported = true;
    core_emit(core,
              &(struct re_event){.type = RE_EV_STREAM_CLOSED,
                                 .volume = -1,
                                 .stream = peer->stream.number,
                                 .status = RE_RESULT_INVALID,
                                 .detail = core->illegal_reason},
              NULL, 0);
}

/* The peer does not read our answers, or the control plane is far behind: take nothing more. */
static bool must_wait(const struct core *core, const struct peer_stream *peer)
{
    return peer->in_link && (stream_tx_pending(&core->link.meta->stream) > META_TX_BYTES_MAX ||
                             core->events_count > EVENTS_MAX);
}

static void wait_for_room(struct core *core, const struct peer_stream *peer)
{
    if (peer->is_meta)
        core->link.meta_waits = true;
    else
        core->link.receive_starved = true;
}

static bool is_gone(const struct core *core, int number, const struct peer_stream *peer)
{
    return core->streams[number].owner != STREAM_PEER || core->streams[number].peer != peer;
}

void receiver_parse(struct core *core, struct peer_stream *peer)
{
    int number = peer->stream.number;
    while (!peer->paused && !peer->stream.failed) {
        if (peer->rx_kind != RX_NONE) {
            if (!stream_payload_done(&peer->stream))
                break;
            payload_finished(core, peer);
            if (is_gone(core, number, peer))
                return;
            continue;
        }
        if (must_wait(core, peer)) {
            wait_for_room(core, peer);
            break;
        }
        struct packet_view p = {0};
        enum handled result = one_packet(core, peer, &p);
        if (is_gone(core, number, peer))
            return;
        if (result == HANDLED)
            continue;
        if (result == ILLEGAL) {
            end_illegal(core, peer, &p);
            return;
        }
        if (result == STARVED)
            core->link.receive_starved = true;
        break;
    }
    peer->stream.rx_paused = peer->paused || (core->link.receive_starved && peer == core->link.data) ||
                             (core->link.meta_waits && peer == core->link.meta);
    stream_update_interest(&peer->stream);
}
