/* SPDX-License-Identifier: Apache-2.0 */
/* Writes, trims and zeroes that do not go to the peer as one packet: in parts, or as the data that they stand for.
 *
 * All parts of a request carry its block id and belong to one epoch; its network part is done with the last ack.
 * What a peer takes depends on what was agreed: 128 MiB in one packet, 4 MiB without WSAME; without P_ZEROES zeroes
 * travel as data (a P_TRIM does not promise that the range reads as zeroes), without P_TRIM trims as well.  Old
 * versions know only small writes.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"

#define ZERO_BYTES_WITHOUT_WSAME (4u << 20)

static uint8_t zeroes[PEER_REQUEST_BYTES_MAX];  /* never written */

uint32_t split_data_bytes_max(const struct core *core)
{
    uint32_t version = core->link.options.version;
    return version >= 100 ? PEER_REQUEST_BYTES_MAX : version >= 95 ? 128u << 10 : 32u << 10;
}

static bool as_data(const struct core *core, const struct request *r)
{
    const struct re_link *o = &core->link.options;
    if (r->kind == REQUEST_WRITE)
        return true;
    if (r->kind == REQUEST_TRIM && (o->features & FEATURE_TRIM))
        return false;
    /* The kernel module reads a digest behind P_ZEROES although it sends none. */
    return !(o->features & FEATURE_WZEROES) || (o->integrity_alg != DIGEST_NONE && !o->peer_is_ours);
}

/* The packet is P_ZEROES.  A trim is a P_TRIM: what its receiver makes of it is its own discard-zeroes-if-aligned. */
bool split_sends_zeroes(const struct core *core, const struct request *r)
{
    return r->kind != REQUEST_WRITE && !as_data(core, r) &&
           !(r->kind == REQUEST_TRIM && (core->link.options.features & FEATURE_TRIM));
}

static uint32_t part_bytes_max(const struct core *core, const struct request *r)
{
    if (as_data(core, r))
        return split_data_bytes_max(core);
    return core->link.options.features & FEATURE_WSAME ? PEER_DISCARD_BYTES_MAX : ZERO_BYTES_WITHOUT_WSAME;
}

bool split_is_needed(const struct core *core, const struct request *r)
{
    if (r->kind == REQUEST_WRITE)
        return r->length > split_data_bytes_max(core);
    return as_data(core, r) || r->length > part_bytes_max(core, r);
}

/* What one request may zero so that it is one packet, where each packet may be answered in its own way. */
uint64_t split_zero_bytes_max(const struct core *core)
{
    const struct re_link *o = &core->link.options;
    if (!link_is_up(core) || !o->two_primaries)
        return PEER_DISCARD_BYTES_MAX;
    struct request zero = {.kind = REQUEST_ZERO};
    return part_bytes_max(core, &zero);
}

bool split_can_carry(const struct core *core, const struct request *r)
{
    if (r->kind == REQUEST_WRITE)
        return true;
    /* Zeroes as data are never fast.  Two Primaries' conflicts are answered packet by packet. */
    return !((r->flags & REQUEST_FAST) && as_data(core, r)) &&
           (!core->link.options.two_primaries || r->length <= part_bytes_max(core, r));
}

static void send_part(struct core *core, struct request *r, uint64_t done, uint32_t bytes, uint32_t dp_flags)
{
    struct link *link = &core->link;
    struct volume *v = r->volume;
    uint8_t packet[PACKET_HEADER_MAX + PACKET_TRIM_SUB + DIGEST_BYTES_MAX];
    bool data = as_data(core, r);
    uint8_t *payload = r->kind == REQUEST_WRITE ? r->buf->data + done : zeroes;
    size_t digest = data ? digest_bytes((enum digest_alg)link->options.integrity_alg) : 0;
    size_t sub_bytes = data ? PACKET_DATA_SUB + digest : PACKET_TRIM_SUB;
    unsigned command = data ? P_DATA : dp_flags & DP_ZEROES ? P_ZEROES : P_TRIM;
    size_t header = packet_header_put(packet, link->options.version, command, (unsigned)v->number,
                                      (uint32_t)(sub_bytes + (data ? bytes : 0)));
    packet_data_sub_put(packet + header,
                        &(struct data_sub){.sector = (r->offset + done) / SECTOR_BYTES,
                                           .block_id = request_block_id(r),
                                           .seq_num = ++v->seq_out,
                                           .dp_flags = data ? dp_flags & ~(uint32_t)(DP_ZEROES | DP_DISCARD)
                                                            : dp_flags});
    if (data)
        integrity_put(link, packet + header + PACKET_DATA_SUB, payload, bytes);
    else
        be32_put(packet + header + PACKET_DATA_SUB, bytes);
    stream_queue_bytes(&link->data->stream, packet, header + sub_bytes);
    if (!data)
        return;
    stream_queue_buf(&link->data->stream, r->kind == REQUEST_WRITE ? r->buf : NULL, payload, bytes);
    v->stats.sent_bytes += bytes;
}

void split_send(struct core *core, struct request *r, uint32_t dp_flags)
{
    uint32_t most = part_bytes_max(core, r);
    r->part_bytes = most;
    r->parts_left = (uint32_t)((r->length + most - 1) / most);
    r->epoch->count += r->parts_left - 1;
    for (uint64_t done = 0; done < r->length; done += most)
        send_part(core, r, done, (uint32_t)u64_min(r->length - done, most), dp_flags);
}

/* Where the acks of `r` may point to: its beginning, or that of one of its parts. */
bool split_ack_matches(const struct request *r, uint64_t sector)
{
    uint64_t first = r->offset / SECTOR_BYTES;
    if (r->parts_left == 0)
        return sector == first;
    return sector >= first && sector - first < r->length / SECTOR_BYTES &&
           (sector - first) % (r->part_bytes / SECTOR_BYTES) == 0;
}

/* The peer has written the packet that began at this sector. */
void split_clear_dirty(struct request *r, uint64_t sector)
{
    uint64_t offset = sector * SECTOR_BYTES, length = r->offset + r->length - offset;
    if (r->parts_left)
        length = u64_min(length, r->part_bytes);
    if (!resync_source_has_failed(r->volume, offset, length))   /* a later write, when this one was on its way */
        volume_clear_dirty(r->volume, offset, length);
}
