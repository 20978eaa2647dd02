/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's decoders as plain functions, so that tests can compare them with other readings of the same bytes. */
#include "meta/al_disk.h"
#include "peer/packet.h"
#include "resync/vli.h"
#include "sim/internal.h"

int re_sim_decode_header(const uint8_t *bytes, size_t length, struct re_sim_header *header)
{
    struct packet_header found = {0};
    enum packet_parse parsed = packet_header_parse(bytes, length, &found);
    *header = (struct re_sim_header){.command = found.command,
                                     .volume = found.volume,
                                     .length = found.length,
                                     .header_bytes = found.header_bytes};
    return parsed == PACKET_OK ? 0 : parsed == PACKET_INCOMPLETE ? -EAGAIN : -EPROTO;
}

int re_sim_decode_runs(const uint8_t *body, size_t length, uint64_t bits, uint64_t *position, uint8_t *bitmap)
{
    struct bitmap *bm = bitmap_create(bits);
    uint64_t newly;
    CHECK(bm);
    bitmap_merge_words(bm, 0, bitmap, bm->words);
    enum re_status status = vli_decode(body, length, bm, position, &newly);
    bitmap_read_words(bm, 0, bitmap, bm->words);
    bitmap_destroy(bm);
    return status == RE_OK ? 0 : -EPROTO;
}

int re_sim_decode_log_block(const uint8_t *block, struct re_sim_log_block *found)
{
    struct al_transaction transaction;
    if (al_block_decode(block, &transaction) != RE_OK)
        return -EPROTO;
    *found = (struct re_sim_log_block){.number = transaction.tr_number,
                                       .type = transaction.type,
                                       .updates = transaction.n_updates,
                                       .context_size = transaction.context_size,
                                       .context_start = transaction.context_start};
    for (uint32_t i = 0; i < AL_CONTEXT_PER_TRANSACTION; i++)
        found->context[i] = transaction.context[i];
    for (uint32_t i = 0; i < AL_UPDATES_PER_TRANSACTION; i++) {
        found->slots[i] = transaction.update_slot[i];
        found->extents[i] = transaction.update_extent[i];
    }
    return 0;
}
