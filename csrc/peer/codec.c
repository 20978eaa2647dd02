/* SPDX-License-Identifier: Apache-2.0 */
/* Headers and fixed bodies of DRBD packets to and from bytes; every length is checked before use. */
#include "base/bytes.h"
#include "peer/packet.h"

static const uint32_t magic_h80 = 0x83740267u, magic_h100 = 0x8620ec20u;
static const uint16_t magic_h95 = 0x835au;

enum packet_parse packet_header_parse(const uint8_t *bytes, size_t available, struct packet_header *header)
{
    if (available < 8)
        return PACKET_INCOMPLETE;
    uint32_t magic = be32_get(bytes);
    if (magic == magic_h100) {
        if (available < 16)
            return PACKET_INCOMPLETE;
        if (be32_get(bytes + 12) != 0)
            return PACKET_BAD;
        *header = (struct packet_header){.volume = be16_get(bytes + 4),
                                         .command = be16_get(bytes + 6),
                                         .length = be32_get(bytes + 8),
                                         .header_bytes = 16};
        return PACKET_OK;
    }
    if (magic == magic_h80) {
        *header = (struct packet_header){
            .command = be16_get(bytes + 4), .length = be16_get(bytes + 6), .header_bytes = 8};
        return PACKET_OK;
    }
    if (be16_get(bytes) == magic_h95) {
        *header = (struct packet_header){
            .command = be16_get(bytes + 2), .length = be32_get(bytes + 4), .header_bytes = 8};
        return PACKET_OK;
    }
    return PACKET_BAD;
}

size_t packet_header_put(uint8_t *out, uint32_t version, unsigned command, unsigned volume, uint32_t length)
{
    if (version >= 100) {
        be32_put(out, magic_h100);
        be16_put(out + 4, (uint16_t)volume);
        be16_put(out + 6, (uint16_t)command);
        be32_put(out + 8, length);
        be32_put(out + 12, 0);
        return 16;
    }
    if (version >= 95 && length > 32768) {
        be16_put(out, magic_h95);
        be16_put(out + 2, (uint16_t)command);
        be32_put(out + 4, length);
        return 8;
    }
    be32_put(out, magic_h80);
    be16_put(out + 4, (uint16_t)command);
    be16_put(out + 6, (uint16_t)length);
    return 8;
}

/* The receiving side of each command: the socket it belongs to, who handles it, its fixed length. */
enum { ON_DATA = 1, ON_META = 2, CONTROL = 4, EXACT = 8 };
struct packet_rule {
    uint16_t command;
    uint8_t flags;
    uint16_t length;    /* fixed part of the body */
};

static const struct packet_rule rules[] = {
    {P_DATA, ON_DATA, 24},
    {P_DATA_REPLY, ON_DATA, 24},
    {P_RS_DATA_REPLY, ON_DATA, 24},
    {P_BARRIER, ON_DATA | EXACT, 8},
    {P_BITMAP, ON_DATA, 0},
    {P_UNPLUG_REMOTE, ON_DATA | EXACT, 0},
    {P_DATA_REQUEST, ON_DATA | EXACT, 24},
    {P_RS_DATA_REQUEST, ON_DATA | EXACT, 24},
    {P_SYNC_PARAM, ON_DATA | CONTROL, 4},
    {P_PROTOCOL, ON_DATA | CONTROL, 24},
    {P_UUIDS, ON_DATA | CONTROL | EXACT, 48},
    {P_SIZES, ON_DATA | CONTROL, 32},
    {P_STATE, ON_DATA | CONTROL | EXACT, 4},
    {P_SYNC_UUID, ON_DATA | CONTROL | EXACT, 8},
    {P_AUTH_CHALLENGE, ON_DATA | CONTROL, 64},
    {P_AUTH_RESPONSE, ON_DATA | CONTROL, 1},
    {P_STATE_CHG_REQ, ON_DATA | CONTROL | EXACT, 8},
    {P_PING, ON_META | EXACT, 0},
    {P_PING_ACK, ON_META | EXACT, 0},
    {P_RECV_ACK, ON_META | EXACT, 24},
    {P_WRITE_ACK, ON_META | EXACT, 24},
    {P_RS_WRITE_ACK, ON_META | EXACT, 24},
    {P_SUPERSEDED, ON_META | EXACT, 24},
    {P_NEG_ACK, ON_META | EXACT, 24},
    {P_NEG_DREPLY, ON_META | EXACT, 24},
    {P_NEG_RS_DREPLY, ON_META | EXACT, 24},
    {P_BARRIER_ACK, ON_META | EXACT, 8},
    {P_STATE_CHG_REPLY, ON_META | CONTROL | EXACT, 4},
    {P_OV_REQUEST, ON_DATA | EXACT, 24},
    {P_OV_REPLY, ON_DATA, 24},
    {P_OV_RESULT, ON_META | EXACT, 24},
    {P_CSUM_RS_REQUEST, ON_DATA, 24},
    {P_RS_IS_IN_SYNC, ON_META | EXACT, 24},
    {P_SYNC_PARAM89, ON_DATA | CONTROL, 132},
    {P_COMPRESSED_BITMAP, ON_DATA, 1},
    {P_DELAY_PROBE, ON_DATA | ON_META | EXACT, 8},
    {P_OUT_OF_SYNC, ON_DATA | EXACT, 16},
    {P_RS_CANCEL, ON_META | EXACT, 24},
    {P_CONN_ST_CHG_REQ, ON_DATA | CONTROL | EXACT, 8},
    {P_CONN_ST_CHG_REPLY, ON_META | CONTROL | EXACT, 4},
    {P_RETRY_WRITE, ON_META | EXACT, 24},
    {P_PROTOCOL_UPDATE, ON_DATA | CONTROL, 24},
    {P_TRIM, ON_DATA | EXACT, 28},
    {P_RS_THIN_REQ, ON_DATA | EXACT, 24},
    {P_RS_DEALLOCATED, ON_DATA | EXACT, 16},
    {P_ZEROES, ON_DATA | EXACT, 28},
    {P_FAREWELL, ON_DATA | CONTROL, 4},
    {P_CONNECTION_FEATURES, ON_DATA | CONTROL, 72},
};

static const struct packet_rule *find_rule(unsigned command)
{
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
        if (rules[i].command == command)
            return &rules[i];
    return NULL;
}

enum packet_kind packet_kind(bool meta, unsigned command)
{
    const struct packet_rule *rule = find_rule(command);
    if (!rule || !(rule->flags & (meta ? ON_META : ON_DATA)))
        return PACKET_UNKNOWN;
    return rule->flags & CONTROL ? PACKET_CONTROL : PACKET_DATA_PATH;
}

bool packet_length_ok(unsigned command, uint32_t length)
{
    const struct packet_rule *rule = find_rule(command);
    return rule && (rule->flags & EXACT ? length == rule->length : length >= rule->length);
}

void packet_data_sub_get(const uint8_t *bytes, struct data_sub *sub)
{
    sub->sector = be64_get(bytes);
    sub->block_id = be64_get(bytes + 8);
    sub->seq_num = be32_get(bytes + 16);
    sub->dp_flags = be32_get(bytes + 20);
}

void packet_data_sub_put(uint8_t *bytes, const struct data_sub *sub)
{
    be64_put(bytes, sub->sector);
    be64_put(bytes + 8, sub->block_id);
    be32_put(bytes + 16, sub->seq_num);
    be32_put(bytes + 20, sub->dp_flags);
}

void packet_ack_get(const uint8_t *bytes, struct ack_body *ack)
{
    ack->sector = be64_get(bytes);
    ack->block_id = be64_get(bytes + 8);
    ack->size_bytes = be32_get(bytes + 16);
    ack->seq_num = be32_get(bytes + 20);
}

void packet_ack_put(uint8_t *bytes, const struct ack_body *ack)
{
    be64_put(bytes, ack->sector);
    be64_put(bytes + 8, ack->block_id);
    be32_put(bytes + 16, ack->size_bytes);
    be32_put(bytes + 20, ack->seq_num);
}
