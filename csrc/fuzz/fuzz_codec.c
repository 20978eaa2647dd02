/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzing of the stateless peer codec: any bytes as a packet.
 *
 * Checked: nothing beyond the given bytes is read, an incomplete header stays incomplete for every shorter piece of it,
 * what was parsed is put back byte for byte, and a command that no socket takes has no legal length.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/limits.h"
#include "peer/packet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The agreed version under which this header would have been sent. */
static uint32_t version_of(const uint8_t *bytes, const struct packet_header *header)
{
    if (header->header_bytes == PACKET_HEADER_MAX)
        return 100;
    return be32_get(bytes) == 0x83740267u ? 94 : 95;
}

static void check_header(const uint8_t *data, size_t size, struct packet_header *header)
{
    for (size_t part = 0; part < size && part < PACKET_HEADER_MAX; part++) {
        struct packet_header shorter;
        enum packet_parse parsed = packet_header_parse(data, part, &shorter);
        CHECK(part >= 8 || parsed == PACKET_INCOMPLETE);
        if (parsed == PACKET_OK)
            CHECK(shorter.header_bytes <= part);
    }
    uint8_t out[PACKET_HEADER_MAX];
    uint32_t version = version_of(data, header);
    if (version == 95 && header->length <= 32768)
        return;     /* legal to read, never sent */
    size_t bytes = packet_header_put(out, version, header->command, header->volume, header->length);
    CHECK(bytes == header->header_bytes && memcmp(out, data, bytes) == 0);
}

static void check_bodies(const uint8_t *body)
{
    uint8_t out[PACKET_ACK_BODY];
    struct data_sub sub;
    packet_data_sub_get(body, &sub);
    packet_data_sub_put(out, &sub);
    CHECK(memcmp(out, body, PACKET_DATA_SUB) == 0);
    struct ack_body ack;
    packet_ack_get(body, &ack);
    packet_ack_put(out, &ack);
    CHECK(memcmp(out, body, PACKET_ACK_BODY) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t at = 0;
    while (at < size) {
        struct packet_header header;
        enum packet_parse parsed = packet_header_parse(data + at, size - at, &header);
        if (parsed == PACKET_INCOMPLETE)
            CHECK(size - at < PACKET_HEADER_MAX);
        if (parsed != PACKET_OK)
            break;
        CHECK(header.header_bytes <= size - at);
        check_header(data + at, size - at, &header);
        at += header.header_bytes;
        if (packet_kind(false, header.command) == PACKET_UNKNOWN && packet_kind(true, header.command) == PACKET_UNKNOWN)
            CHECK(!packet_length_ok(header.command, header.length));
        if (packet_length_ok(header.command, header.length) && header.length < UINT32_MAX)     /* a minimum, or exact */
            CHECK(packet_length_ok(header.command, UINT32_MAX) == packet_length_ok(header.command, header.length + 1));
        if (size - at >= PACKET_ACK_BODY)
            check_bodies(data + at);
        at += size_min(header.length, size - at);
    }
    return 0;
}
