/* SPDX-License-Identifier: Apache-2.0 */
/* Online verify at the source: ask for digests, compare, tell the verdicts.
 *
 * A difference is looked at a second time while both ends still hold the range, if the peer is ours; the kernel module
 * counts a second request as a block of its own.  A block that either end cannot read counts as different.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

#define ID_IN_SYNC UINT64_C(4711)
#define ID_OUT_OF_SYNC UINT64_C(4712)

/* ---- asking ---- */

/* One packet for each block of `b` that is missing. */
void verify_ask(struct verify_blocks *b)
{
    struct volume *v = b->volume;
    struct link *link = &v->core->link;
    uint8_t packets[VERIFY_BLOCKS * (PACKET_HEADER_MAX + PACKET_REQUEST_BODY)];
    size_t used = 0;
    b->stage = VERIFY_ASKED;
    v->verify.has_asked = true;
    for (uint32_t i = 0; i < b->count; i++) {
        if (!(b->missing & (1u << i)))
            continue;
        used += packet_header_put(packets + used, link->options.version, P_OV_REQUEST, (unsigned)v->number,
                                  PACKET_REQUEST_BODY);
        be64_put(packets + used, (b->offset + i * BLOCK_BYTES) / SECTOR_BYTES);
        be64_put(packets + used + 8, ID_SYNCER);
        be32_put(packets + used + 16, verify_block_bytes(b, i));
        be32_put(packets + used + 20, 0);
        used += PACKET_REQUEST_BODY;
    }
    stream_queue_bytes(&link->data->stream, packets, used);
}

/* Below version 100 a target does not know us.  It holds a block until the verdict; a write that waits there for one
 * block may stand before its neighbour: then no verdict must wait for the neighbour's digest. */
static uint32_t blocks_of_question(const struct link *link)
{
    return link->options.peer_is_ours || link->options.version >= 100 ? VERIFY_BLOCKS : 1;
}

static bool ask_next(struct volume *v)
{
    struct verify *y = &v->verify;
    uint64_t most = (uint64_t)blocks_of_question(&v->core->link) * BLOCK_BYTES;
    uint32_t bytes = (uint32_t)u64_min(most, y->end - y->cursor);
    struct verify_blocks *b = verify_take(v, false, y->cursor, bytes);
    if (!b)
        return false;
    y->cursor += bytes;
    y->in_flight_bytes += bytes;
    y->allowed_sectors -= bytes / SECTOR_BYTES;
    verify_lock(b);
    return true;
}

void verify_question_pump(struct volume *v)
{
    struct verify *y = &v->verify;
    struct link *link = &v->core->link;
    uint64_t most = (uint64_t)link->options.max_buffers * BLOCK_BYTES / 2;
    if (!volume_disk_usable(v))
        return;
    bool wants = y->cursor < y->end && y->allowed_sectors > 0;
    bool may = turns_ask(v, wants);
    while (may && y->cursor < y->end && y->allowed_sectors > 0 && (y->has_asked || y->cursor == y->begin)) {
        if (y->in_flight_bytes >= most || stream_tx_pending(&link->data->stream) >= (1u << 20)) {
            v->stats.verify_limit = RE_LIMIT_PEER;
            break;
        }
        if (!ask_next(v)) {
            v->stats.verify_limit = RE_LIMIT_BUFFERS;
            break;
        }
    }
    struct list_head *first = list_first(&y->questions);
    uint64_t position = first ? list_entry(first, struct verify_blocks, link)->offset : y->cursor;
    v->stats.verify_position = u64_min(position, v->size_bytes) / SECTOR_BYTES;
    turns_check(v);
    if (y->cursor >= y->end && !first)
        verify_finished(v);
}

void verify_stop(struct volume *v)
{
    if (v->state.connection == C_VERIFY_S)
        v->verify.end = v->verify.cursor;
}

/* ---- answers ---- */

static struct verify_question *question_of(struct volume *v, uint64_t offset)
{
    struct verify_question *last = v->verify.last;
    if (last && offset >= last->b.offset && offset < last->b.offset + last->b.bytes)
        return last;
    struct verify_blocks *b = verify_find(v, offset, false);
    return b ? container_of(b, struct verify_question, b) : NULL;
}

static void arrived(struct volume *v, uint64_t sector, uint32_t bytes, const uint8_t *digest, size_t digest_length)
{
    struct verify *y = &v->verify;
    uint64_t offset = sector * SECTOR_BYTES;
    struct verify_question *q = question_of(v, offset);
    if (!q || q->b.stage != VERIFY_ASKED || !verify_is_current(&q->b) || offset % BLOCK_BYTES)
        return;     /* an answer to a run that was given up */
    struct verify_blocks *b = &q->b;
    uint32_t block = (uint32_t)((offset - b->offset) / BLOCK_BYTES);
    if (!(b->missing & (1u << block)) || bytes != verify_block_bytes(b, block))
        return;
    y->last = q;
    b->missing &= ~(1u << block);
    if (digest)
        memcpy(q->digests[block], digest, digest_length);
    else
        b->refused |= 1u << block;
    if (!b->is_second) {
        y->arrived_sectors += bytes / SECTOR_BYTES;
        y->in_flight_bytes -= bytes;
    }
    if (b->missing)
        return;
    b->stage = VERIFY_RECEIVED;
    if (b->lock.range.held)
        verify_read(b);
}

void verify_reply(struct volume *v, uint64_t sector, uint32_t bytes, const uint8_t *digest, size_t digest_length)
{
    arrived(v, sector, bytes, digest, digest_length);
}

void verify_refused(struct volume *v, uint64_t sector, uint32_t bytes)
{
    arrived(v, sector, bytes, NULL, 0);
}

/* ---- verdicts ---- */

static uint32_t differing(const struct verify_question *q)
{
    const struct verify_blocks *b = &q->b;
    enum digest_alg alg = (enum digest_alg)b->volume->core->link.options.verify_alg;
    uint32_t found = b->unreadable | b->refused;
    size_t length = digest_bytes(alg);
    uint8_t own[VERIFY_BLOCKS][DIGEST_BYTES_MAX];
    verify_digests(b, alg, own);
    for (uint32_t i = 0; i < b->count; i++)
        if (memcmp(own[i], q->digests[i], length) != 0)
            found |= 1u << i;
    return found;
}

static void send_verdicts(const struct verify_blocks *b, uint32_t found)
{
    struct volume *v = b->volume;
    struct link *link = &v->core->link;
    uint8_t packets[VERIFY_BLOCKS * (PACKET_HEADER_MAX + PACKET_ACK_BODY)];
    size_t used = 0;
    for (uint32_t i = 0; i < b->count; i++) {
        bool differs = found & (1u << i);
        uint64_t offset = b->offset + i * BLOCK_BYTES;
        if (differs)
            verify_differs(v, offset, verify_block_bytes(b, i));
        if (b->refused & (1u << i))
            continue;   /* a verdict answers a digest: the target waits for none, and its counts would not be right */
        used += packet_header_put(packets + used, link->options.version, P_OV_RESULT, (unsigned)v->number,
                                  PACKET_ACK_BODY);
        packet_ack_put(packets + used, &(struct ack_body){.sector = offset / SECTOR_BYTES,
                                                          .block_id = differs ? ID_OUT_OF_SYNC : ID_IN_SYNC,
                                                          .size_bytes = verify_block_bytes(b, i),
                                                          .seq_num = ++v->seq_out});
        used += PACKET_ACK_BODY;
    }
    if (used)
        stream_queue_bytes(&link->meta->stream, packets, used);
}

void verify_compare(struct verify_blocks *b)
{
    struct verify_question *q = container_of(b, struct verify_question, b);
    struct volume *v = b->volume;
    uint32_t found = b->unequal &= differing(q);   /* the other digests are of earlier rounds */
    buf_put(b->buf);
    b->buf = NULL;
    /* A write of the peer has passed it since it was asked for, or waits for it: the answer may be older, and that to
     * another question would wait there for the write.  Else the second answer is as good as any. */
    bool writes = b->gives_way || v->core->link.options.two_primaries;
    if (found && (writes || b->rounds == 0) && b->rounds < VERIFY_ROUNDS_MAX && v->core->link.options.peer_is_ours) {
        b->is_second = true;
        b->rounds++;
        b->missing = found;
        b->refused = 0;
        b->gives_way = false;
        if (writes) {
            volume_unlock_range(v, &b->lock);
            verify_lock(b);
        } else
            verify_ask(b);
        return;
    }
    send_verdicts(b, found);
    v->stats.verify_done_bits += b->count;
    verify_release(b);
}
