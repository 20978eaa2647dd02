/* SPDX-License-Identifier: Apache-2.0 */
/* DRBD's packets: command numbers, the three header formats, lengths and fields.
 *
 * Values and layouts are those of the 8.4 wire protocol (docs/protocol.md).  Everything here is pure: bytes in, fields
 * out.
 */
#ifndef PEER_PACKET_H
#define PEER_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum packet {
    P_DATA = 0x00,
    P_DATA_REPLY = 0x01,
    P_RS_DATA_REPLY = 0x02,
    P_BARRIER = 0x03,
    P_BITMAP = 0x04,
    P_UNPLUG_REMOTE = 0x07,
    P_DATA_REQUEST = 0x08,
    P_RS_DATA_REQUEST = 0x09,
    P_SYNC_PARAM = 0x0a,
    P_PROTOCOL = 0x0b,
    P_UUIDS = 0x0c,
    P_SIZES = 0x0d,
    P_STATE = 0x0e,
    P_SYNC_UUID = 0x0f,
    P_AUTH_CHALLENGE = 0x10,
    P_AUTH_RESPONSE = 0x11,
    P_STATE_CHG_REQ = 0x12,
    P_PING = 0x13,
    P_PING_ACK = 0x14,
    P_RECV_ACK = 0x15,
    P_WRITE_ACK = 0x16,
    P_RS_WRITE_ACK = 0x17,
    P_SUPERSEDED = 0x18,
    P_NEG_ACK = 0x19,
    P_NEG_DREPLY = 0x1a,
    P_NEG_RS_DREPLY = 0x1b,
    P_BARRIER_ACK = 0x1c,
    P_STATE_CHG_REPLY = 0x1d,
    P_OV_REQUEST = 0x1e,
    P_OV_REPLY = 0x1f,
    P_OV_RESULT = 0x20,
    P_CSUM_RS_REQUEST = 0x21,
    P_RS_IS_IN_SYNC = 0x22,
    P_SYNC_PARAM89 = 0x23,
    P_COMPRESSED_BITMAP = 0x24,
    P_DELAY_PROBE = 0x27,
    P_OUT_OF_SYNC = 0x28,
    P_RS_CANCEL = 0x29,
    P_CONN_ST_CHG_REQ = 0x2a,
    P_CONN_ST_CHG_REPLY = 0x2b,
    P_RETRY_WRITE = 0x2c,
    P_PROTOCOL_UPDATE = 0x2d,
    P_TRIM = 0x31,
    P_RS_THIN_REQ = 0x32,
    P_RS_DEALLOCATED = 0x33,
    P_WSAME = 0x34,
    P_ZEROES = 0x36,
    P_FAREWELL = 0x7f01,    /* ours: why the peer gives up */
    P_INITIAL_META = 0xfff1,
    P_INITIAL_DATA = 0xfff2,
    P_CONNECTION_FEATURES = 0xfffe,
};

enum dp_flags {
    DP_RW_SYNC = 2,
    DP_MAY_SET_IN_SYNC = 4,
    DP_FUA = 16,
    DP_FLUSH = 32,
    DP_DISCARD = 64,
    DP_SEND_RECEIVE_ACK = 128,
    DP_SEND_WRITE_ACK = 256,
    DP_ZEROES = 1024,
};

enum feature_flags { FEATURE_TRIM = 1, FEATURE_THIN_RESYNC = 2, FEATURE_WSAME = 4, FEATURE_WZEROES = 8 };

#define ID_SYNCER UINT64_MAX

enum {
    PACKET_HEADER_MAX = 16,
    PACKET_DATA_SUB = 24,       /* sector, block_id, seq_num, dp_flags */
    PACKET_TRIM_SUB = 28,       /* the same and a size */
    PACKET_ACK_BODY = 24,
    PACKET_REQUEST_BODY = 24,
    PACKET_BARRIER_BODY = 8,
    PACKET_OUT_OF_SYNC_BODY = 16,
};

struct packet_header {
    uint16_t command;
    uint16_t volume;        /* 0 with the older formats */
    uint32_t length;        /* body bytes */
    uint8_t header_bytes;   /* 8 or 16 */
};

/* Result of looking at the beginning of a packet. */
enum packet_parse { PACKET_INCOMPLETE, PACKET_OK, PACKET_BAD };
/* Read a header of any format from `available` bytes. */
enum packet_parse packet_header_parse(const uint8_t *bytes, size_t available, struct packet_header *header);
/* Write the header that the agreed version prescribes; returns its size. */
size_t packet_header_put(uint8_t *out, uint32_t version, unsigned command, unsigned volume, uint32_t length);

/* What the data or meta socket may carry once the link is up. */
enum packet_kind { PACKET_UNKNOWN, PACKET_CONTROL, PACKET_DATA_PATH };
enum packet_kind packet_kind(bool meta, unsigned command);
/* The body's length is legal for this command: exact for fixed ones, at least the fixed part for others. */
bool packet_length_ok(unsigned command, uint32_t length);

struct data_sub {
    uint64_t sector;
    uint64_t block_id;      /* opaque, as read big-endian; put back the same way */
    uint32_t seq_num;
    uint32_t dp_flags;
};
void packet_data_sub_get(const uint8_t *bytes, struct data_sub *sub);
void packet_data_sub_put(uint8_t *bytes, const struct data_sub *sub);

struct ack_body {
    uint64_t sector;
    uint64_t block_id;
    uint32_t size_bytes;
    uint32_t seq_num;
};
void packet_ack_get(const uint8_t *bytes, struct ack_body *ack);
void packet_ack_put(uint8_t *bytes, const struct ack_body *ack);

#endif
