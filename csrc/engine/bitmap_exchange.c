/* SPDX-License-Identifier: Apache-2.0 */
/* Sending and merging whole bitmaps: run-length coded where that is smaller, plain otherwise, mixed as it comes.
 *
 * Packets are produced only while the send queue is short, so a bitmap of any size costs no memory.
 */
#include "base/bytes.h"
#include "base/check.h"
#include "engine/internal.h"
#include "resync/vli.h"

static uint64_t total_words(const struct volume *v)
{
    return (v->bitmap->bits + 63) / 64;
}

static size_t chunk_bytes(const struct volume *v)
{
    return v->core->link.options.version >= 100 ? BLOCK_BYTES - 16 : BLOCK_BYTES - 8;
}

static void queue_packet(struct volume *v, unsigned command, const uint8_t *body, size_t bytes)
{
    struct link *link = &v->core->link;
    uint8_t header[PACKET_HEADER_MAX];
    size_t n = packet_header_put(header, link->options.version, command, (unsigned)v->number, (uint32_t)bytes);
    stream_queue_bytes(&link->data->stream, header, n);
    stream_queue_bytes(&link->data->stream, body, bytes);
}

void bitmap_send_start(struct volume *v, uint64_t cookie)
{
    if (!v->bitmap || v->core->link.phase != LINK_UP || v->bitmap_sending) {
        core_done(v->core, cookie, v->number, RE_RESULT_CANCELED, 0);
        return;
    }
    v->bitmap_sending = true;
    v->bitmap_last_plain = false;
    v->bitmap_send_bit = 0;
    v->bitmap_send_cookie = cookie;
    v->stats.bitmap_bits = v->bitmap->bits;
    v->stats.bitmap_sent_bits = 0;
}

static void send_plain(struct volume *v)
{
    v->bitmap_send_bit &= ~UINT64_C(63);    /* a plain packet starts at a word */
    uint64_t word = v->bitmap_send_bit / 64;
    uint64_t words = u64_min(total_words(v) - word, chunk_bytes(v) / 8);
    uint8_t body[BLOCK_BYTES];
    bitmap_read_words(v->bitmap, word, body, words);
    queue_packet(v, P_BITMAP, body, words * 8);
    v->bitmap_send_bit = u64_min((word + words) * 64, v->bitmap->bits);
    v->bitmap_last_plain = true;
}

static void send_one(struct volume *v)
{
    if (v->core->link.options.use_rle && v->core->link.options.version >= 90) {
        uint8_t body[BLOCK_BYTES];
        size_t bytes = vli_encode(v->bitmap, &v->bitmap_send_bit, body, chunk_bytes(v));
        if (bytes) {
            queue_packet(v, P_COMPRESSED_BITMAP, body, bytes);
            v->bitmap_last_plain = false;
            return;
        }
    }
    send_plain(v);
}

void bitmap_send_pump(struct volume *v)
{
    struct link *link = &v->core->link;
    if (link->phase != LINK_UP)
        return;
    if (!v->bitmap) {   /* the disk has gone meanwhile */
        v->bitmap_sending = false;
        core_done(v->core, v->bitmap_send_cookie, v->number, RE_RESULT_CANCELED, 0);
        return;
    }
    while (v->bitmap_send_bit < v->bitmap->bits) {
        if (stream_tx_pending(&link->data->stream) > BITMAP_TX_BYTES_LOW)
            return;
        send_one(v);
        v->stats.bitmap_sent_bits = v->bitmap_send_bit;
    }
    if (v->bitmap_last_plain)
        queue_packet(v, P_BITMAP, NULL, 0);     /* the end mark after a plain chunk */
    v->bitmap_sending = false;
    core_done(v->core, v->bitmap_send_cookie, v->number, RE_RESULT_OK, 0);
}

static void received_all(struct volume *v)
{
    v->bitmap_receiving = false;
    core_emit(v->core,
              &(struct re_event){
                  .type = RE_EV_BITMAP_RECEIVED, .volume = v->number, .stream = -1, .value = v->bitmap->count},
              NULL, 0);
}

bool bitmap_receive(struct volume *v, unsigned command, const uint8_t *body, uint32_t length)
{
    uint64_t bits = v->bitmap->bits;
    if (command == P_COMPRESSED_BITMAP) {
        uint64_t newly = 0;
        if (vli_decode(body, length, v->bitmap, &v->bitmap_receive_bit, &newly) != RE_OK)
            return false;
        if (v->bitmap_receive_bit >= bits)
            received_all(v);
        return true;
    }
    if (v->bitmap_receive_bit >= bits) {    /* the end mark */
        if (length)
            return false;
        received_all(v);
        return true;
    }
    /* A plain chunk after compressed ones starts at the word that holds the first bit not described yet. */
    uint64_t word = v->bitmap_receive_bit / 64;
    uint64_t words = u64_min(total_words(v) - word, chunk_bytes(v) / 8);
    if (length != words * 8)
        return false;
    bitmap_merge_words(v->bitmap, word, body, words);
    v->bitmap_receive_bit = u64_min((word + words) * 64, bits);
    return true;
}
