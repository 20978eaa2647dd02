/* SPDX-License-Identifier: Apache-2.0 */
/* data-integrity-alg: a digest in front of every payload, checked before anybody sees the payload.
 *
 * Invariants: a payload whose digest is wrong reaches neither a disk nor a client, the link is given up instead; what
 * is digested and sent is this program's own copy, so a client that changes its memory causes no false alarm.
 * Each direction uses its sender's algorithm.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/digest.h"
#include "engine/internal.h"

static uint8_t zeroes[PEER_REQUEST_BYTES_MAX];  /* never written */

size_t integrity_put(const struct link *link, uint8_t *out, const void *data, size_t bytes)
{
    enum digest_alg alg = (enum digest_alg)link->options.integrity_alg;
    if (alg == DIGEST_NONE)
        return 0;
    digest_compute(alg, data, bytes, out);
    return digest_bytes(alg);
}

size_t integrity_received_bytes(const struct core *core)
{
    return digest_bytes((enum digest_alg)core->link.options.peer_integrity_alg);
}

void integrity_expect(struct peer_stream *peer, const struct packet_header *header, const uint8_t *body, size_t digest,
                      const uint8_t *payload, size_t bytes)
{
    memcpy(peer->digest, body + PACKET_DATA_SUB, digest);
    peer->digest_bytes = digest;
    peer->digest_command = header->command;
    peer->digest_sector = be64_get(body);
    peer->digest_payload = payload;
    peer->digest_length = bytes;
}

bool integrity_check(struct core *core, struct peer_stream *peer)
{
    uint8_t own[DIGEST_BYTES_MAX];
    size_t digest = peer->digest_bytes;
    if (digest == 0)
        return true;
    peer->digest_bytes = 0;
    digest_compute((enum digest_alg)core->link.options.peer_integrity_alg, peer->digest_payload, peer->digest_length,
                   own);
    if (memcmp(own, peer->digest, digest) == 0)
        return true;
    core->stats.integrity_errors++;
    link_lost(core, RE_LOST_INTEGRITY, peer->digest_command, peer->digest_sector, true);
    return false;
}

/* ---- zeroes ---- */

bool integrity_needs_data(const struct core *core, const struct request *r)
{
    const struct re_link *o = &core->link.options;
    if (o->integrity_alg == DIGEST_NONE || o->peer_is_ours || r->kind == REQUEST_WRITE)
        return false;
    return r->kind == REQUEST_ZERO || !(o->features & FEATURE_TRIM);
}

uint32_t integrity_zero_parts(const struct request *r)
{
    return (uint32_t)((r->length + PEER_REQUEST_BYTES_MAX - 1) / PEER_REQUEST_BYTES_MAX);
}

/* The kernel module reads a digest behind P_ZEROES although it sends none: zeroes travel as data of 1 MiB each. */
void integrity_send_zeroes(struct core *core, struct request *r, uint32_t dp_flags)
{
    struct link *link = &core->link;
    struct volume *v = r->volume;
    r->parts_left = integrity_zero_parts(r);
    r->epoch->count += r->parts_left - 1;
    for (uint64_t done = 0; done < r->length;) {
        uint8_t packet[PACKET_HEADER_MAX + PACKET_DATA_SUB + DIGEST_BYTES_MAX];
        size_t bytes = (size_t)u64_min(r->length - done, PEER_REQUEST_BYTES_MAX);
        size_t digest = digest_bytes((enum digest_alg)link->options.integrity_alg);
        size_t header = packet_header_put(packet, link->options.version, P_DATA, (unsigned)v->number,
                                          (uint32_t)(PACKET_DATA_SUB + digest + bytes));
        packet_data_sub_put(packet + header,
                            &(struct data_sub){.sector = (r->offset + done) / SECTOR_BYTES,
                                               .block_id = request_block_id(r),
                                               .seq_num = ++v->seq_out,
                                               .dp_flags = dp_flags & ~(uint32_t)(DP_ZEROES | DP_DISCARD)});
        integrity_put(link, packet + header + PACKET_DATA_SUB, zeroes, bytes);
        stream_queue_bytes(&link->data->stream, packet, header + PACKET_DATA_SUB + digest);
        stream_queue_buf(&link->data->stream, NULL, zeroes, bytes);
        v->stats.sent_bytes += bytes;
        done += bytes;
    }
}

/* Where the acks of `r` may point to: its beginning, or that of one of its parts. */
bool integrity_ack_matches(const struct request *r, uint64_t sector)
{
    uint64_t first = r->offset / SECTOR_BYTES, part = PEER_REQUEST_BYTES_MAX / SECTOR_BYTES;
    if (r->parts_left == 0)
        return sector == first;
    return sector >= first && sector - first < r->length / SECTOR_BYTES && (sector - first) % part == 0;
}
