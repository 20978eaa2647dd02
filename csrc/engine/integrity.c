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
