/* SPDX-License-Identifier: Apache-2.0 */
/* Online verify at the target: digests of what is asked for, and what the source says about them.
 *
 * The range of an answer stays locked until all its verdicts are there: the kernel module compares later than it
 * receives the digest.  A source that sends no verdict cannot hold writes up for longer than `timeout`.
 */
#include <string.h>

#include "base/bytes.h"
#include "engine/internal.h"

#define ID_OUT_OF_SYNC UINT64_C(4712)

/* Our own software asks for VERIFY_BLOCKS at once, from where the run begins. */
static uint64_t question_at(const struct volume *v, uint64_t offset)
{
    return (offset - v->verify.begin) / (VERIFY_BLOCKS * BLOCK_BYTES);
}

/* A question of ours that comes in pieces, or a part of it that is asked again: its verdicts follow when all of it is
 * answered, and a write that waits for one piece may stand before another.  So while one of them waits for writes the
 * others end with their answers; what differs then is asked again. */
static void give_way_in_pieces(struct volume *v, struct verify_blocks *last)
{
    bool waits = last->stage == VERIFY_LOCKING;
    list_for_each_safe(pos, following, &v->verify.answers)
    {
        struct verify_blocks *b = list_entry(pos, struct verify_blocks, link);
        if (b == last || question_at(v, b->offset) != question_at(v, last->offset))
            continue;
        last->gives_way = last->gives_way || b->stage == VERIFY_LOCKING;
        if (waits && b->stage == VERIFY_ANSWERED)
            verify_release(b);
        else if (waits)
            b->gives_way = true;
    }
}

/* The entry has all its blocks: it takes its place among the writes. */
void verify_answer_start(struct volume *v)
{
    struct verify_blocks *b = v->verify.open;
    v->verify.open = NULL;
    if (!b)
        return;
    verify_lock(b);
    if (v->core->link.options.peer_is_ours)
        give_way_in_pieces(v, b);
}

/* A block that differed: it is read again under the lock that its first answer still holds. */
static bool is_held(struct volume *v, uint64_t offset)
{
    const struct verify_blocks *b = verify_find(v, offset, true);
    return b && b->stage == VERIFY_ANSWERED;
}

bool verify_request(struct volume *v, uint64_t sector, uint32_t bytes)
{
    struct verify *y = &v->verify;
    uint64_t offset = sector * SECTOR_BYTES;
    bool is_run = v->state.connection == C_VERIFY_T;
    if (is_run && !y->counting) {
        y->counting = true;
        y->begin = offset;
        verify_count_from(v, offset, v->size_bytes);
    }
    struct verify_blocks *b = y->open;
    bool second = is_run && is_held(v, offset);
    if (!second && b && b->offset + b->bytes == offset && b->count < VERIFY_BLOCKS && b->bytes % BLOCK_BYTES == 0 &&
        (!v->core->link.options.peer_is_ours || question_at(v, b->offset) == question_at(v, offset))) {
        b->bytes += bytes;
        b->missing |= 1u << b->count++;
        return true;
    }
    verify_answer_start(v);
    b = verify_take(v, true, offset, bytes);
    if (!b)
        return false;
    b->is_second = second;
    if (second)
        verify_read(b);
    else
        y->open = b;
    return true;
}

static bool is_useful(const struct verify_blocks *b)
{
    /* Of two Primaries of ours the other one may wait for the answer to a write that waits here for its verdict;
     * DRBD's keeps its own writes away from what it asks for. */
    const struct re_link *o = &b->volume->core->link.options;
    bool holds = !b->is_second && !b->gives_way && !(o->two_primaries && link_peer_is_ours(b->volume->core));
    return holds && verify_is_current(b) && b->volume->state.connection == C_VERIFY_T;
}

/* All digests are sent. */
static void answered(struct verify_blocks *b)
{
    if (b->buf)
        buf_put(b->buf);
    b->buf = NULL;
    if (!is_useful(b)) {
        verify_release(b);
        return;
    }
    b->stage = VERIFY_ANSWERED;
    b->answered_ns = b->volume->core->now_ns;
}

void verify_answer(struct verify_blocks *b)
{
    struct volume *v = b->volume;
    struct link *link = &v->core->link;
    enum digest_alg alg = (enum digest_alg)link->options.verify_alg;
    size_t length = digest_bytes(alg), used = 0;
    uint8_t packets[VERIFY_BLOCKS * (PACKET_HEADER_MAX + PACKET_REQUEST_BODY + DIGEST_BYTES_MAX)];
    uint8_t digests[VERIFY_BLOCKS][DIGEST_BYTES_MAX];
    verify_digests(b, alg, digests);
    for (uint32_t i = 0; i < b->count; i++) {
        used += packet_header_put(packets + used, link->options.version, P_OV_REPLY, (unsigned)v->number,
                                  (uint32_t)(PACKET_REQUEST_BODY + length));
        be64_put(packets + used, (b->offset + i * BLOCK_BYTES) / SECTOR_BYTES);
        be64_put(packets + used + 8, ID_SYNCER);
        be32_put(packets + used + 16, verify_block_bytes(b, i));
        be32_put(packets + used + 20, 0);
        used += PACKET_REQUEST_BODY;
        if (b->unreadable & (1u << i))
            memset(packets + used, 0, length);
        else
            memcpy(packets + used, digests[i], length);
        used += length;
    }
    stream_queue_bytes(&link->data->stream, packets, used);
    answered(b);
}

void verify_refuse(struct verify_blocks *b)
{
    struct volume *v = b->volume;
    for (uint32_t i = 0; i < b->count; i++)
        sender_ack(v, P_NEG_RS_DREPLY, (b->offset + i * BLOCK_BYTES) / SECTOR_BYTES, ID_SYNCER,
                   verify_block_bytes(b, i));
    verify_release(b);  /* no verdict comes */
}

void verify_verdict(struct volume *v, uint64_t sector, uint32_t bytes, uint64_t verdict)
{
    uint64_t offset = sector * SECTOR_BYTES;
    bool is_run = v->state.connection == C_VERIFY_T;
    if (verdict == ID_OUT_OF_SYNC) {
        if (is_run)
            verify_differs(v, offset, bytes);
        else
            volume_set_dirty(v, offset, bytes);
    }
    if (!is_run)
        return;
    struct verify_blocks *b = verify_find(v, offset, true);
    if (b && b->stage == VERIFY_ANSWERED) {
        b->missing &= ~(1u << ((offset - b->offset) / BLOCK_BYTES));
        if (!b->missing)
            verify_release(b);
    }
    v->stats.verify_done_bits++;
    v->stats.verify_position = u64_max(v->stats.verify_position, sector + bytes / SECTOR_BYTES);
    if (v->stats.verify_done_bits >= v->stats.verify_total_bits && v->verify.counting)
        verify_finished(v);
}

static uint64_t expiry(const struct verify_blocks *b)
{
    return b->answered_ns + b->volume->core->link.options.timeout_ms * NS_PER_MS;
}

void verify_answer_pump(struct volume *v)
{
    verify_answer_start(v);
    for (struct list_head *first; (first = list_first(&v->verify.answers));) {
        struct verify_blocks *b = list_entry(first, struct verify_blocks, link);
        if (b->stage != VERIFY_ANSWERED || v->core->now_ns < expiry(b))
            break;
        verify_release(b);
    }
}

uint64_t verify_answer_deadline(const struct volume *v)
{
    struct list_head *first = list_first(&v->verify.answers);
    const struct verify_blocks *b = first ? list_entry(first, struct verify_blocks, link) : NULL;
    return b && b->stage == VERIFY_ANSWERED ? expiry(b) : UINT64_MAX;
}
