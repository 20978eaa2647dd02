/* SPDX-License-Identifier: Apache-2.0 */
/* The input of fuzz_peer: four bytes of settings, then records of one byte kind, two bytes length, payload.
 *
 * The mutator works on records: most mutations keep a packet's header good and give its fields values that matter.
 */
#ifndef FUZZ_PEER_RECORDS_H
#define FUZZ_PEER_RECORDS_H

#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "base/prng.h"
#include "peer/packet.h"

enum { SETTINGS_BYTES = 4, RECORD_HEADER = 3, RECORDS_MAX = 300 };

enum record_kind {
    RECORD_DATA,        /* bytes on the data socket */
    RECORD_META,        /* bytes on the meta socket */
    RECORD_TICK,        /* le16: milliseconds */
    RECORD_STATE,       /* u8: which of the states */
    RECORD_NBD,         /* u8 kind, le16 block, u8 blocks, u8 sectors to shift */
    RECORD_ANSWER,      /* u8 how long ago, u8 with what, u8 how wrong */
    RECORD_DISK,        /* u8 hold, u8 operations to finish, u8 order, u8 which one fails */
    RECORD_COMMAND,     /* u8 which */
    RECORD_WIRE,        /* u8 stream, u8 what, le16 value */
    RECORD_METADATA,    /* le16 place, bytes */
    RECORD_ORDER,       /* u8 which (enum order), u8, le16 */
    RECORD_KINDS,
};

struct record {
    enum record_kind kind;
    const uint8_t *payload;
    uint32_t length;
};

/* The record at *at; false at the end of the input. */
static inline bool record_next(const uint8_t *data, size_t size, size_t *at, struct record *record)
{
    if (size - *at < RECORD_HEADER)
        return false;
    size_t length = le16_get(data + *at + 1), left = size - *at - RECORD_HEADER;
    record->kind = data[*at] % RECORD_KINDS;
    record->payload = data + *at + RECORD_HEADER;
    record->length = (uint32_t)size_min(length, left);
    *at += RECORD_HEADER + record->length;
    return true;
}

static inline uint8_t record_u8(const struct record *record, uint32_t at)
{
    return at < record->length ? record->payload[at] : 0;
}

static inline uint16_t record_u16(const struct record *record, uint32_t at)
{
    return (uint16_t)(record_u8(record, at) | record_u8(record, at + 1) << 8);
}

/* ---- mutation ---- */

__attribute__((weak)) size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

static const uint16_t data_commands[] = {
    P_DATA, P_DATA, P_TRIM, P_ZEROES, P_BARRIER, P_DATA_REQUEST, P_RS_DATA_REQUEST, P_RS_THIN_REQ, P_CSUM_RS_REQUEST,
    P_OV_REQUEST, P_OV_REPLY, P_DATA_REPLY, P_RS_DATA_REPLY, P_RS_DEALLOCATED, P_BITMAP, P_COMPRESSED_BITMAP,
    P_OUT_OF_SYNC, P_UNPLUG_REMOTE, P_DELAY_PROBE, P_STATE, P_UUIDS, P_SIZES, P_SYNC_UUID, P_STATE_CHG_REQ,
    P_CONN_ST_CHG_REQ, P_PROTOCOL_UPDATE, P_SYNC_PARAM89, P_WSAME, P_FAREWELL, P_SYNC_PARAM, P_PROTOCOL,
    P_AUTH_CHALLENGE, P_AUTH_RESPONSE, P_CONNECTION_FEATURES, P_INITIAL_DATA, 0x05, 0x25, 0x105,
};
static const uint16_t meta_commands[] = {
    P_PING, P_PING_ACK, P_RECV_ACK, P_WRITE_ACK, P_RS_WRITE_ACK, P_SUPERSEDED, P_NEG_ACK, P_NEG_DREPLY, P_NEG_RS_DREPLY,
    P_BARRIER_ACK, P_STATE_CHG_REPLY, P_CONN_ST_CHG_REPLY, P_OV_RESULT, P_RS_IS_IN_SYNC, P_RS_CANCEL, P_RETRY_WRITE,
    P_DELAY_PROBE, 0x05,
};

static inline uint64_t draw_sector(struct prng *prng)
{
    static const uint64_t edges[] = {0, 1, 7, 8, 8191, 8192, 18432, 18434, 18435, UINT32_MAX, UINT64_C(1) << 54,
                                     UINT64_C(1) << 55, (UINT64_C(1) << 55) - 1, UINT64_MAX >> 9, UINT64_MAX};
    switch (prng_below(prng, 4)) {
    case 0: return edges[prng_below(prng, sizeof edges / sizeof edges[0])];
    case 1: return prng_below(prng, 18440);
    default: return prng_below(prng, 20) * 8;
    }
}

static inline uint32_t draw_bytes(struct prng *prng)
{
    static const uint32_t edges[] = {0, 1, 511, 512, 4096, 4096, 4096, 1536, 65536, 262144, 1 << 20, (1 << 20) + 512,
                                     9 << 20, 128 << 20, (128 << 20) + 512, UINT32_MAX};
    return edges[prng_below(prng, sizeof edges / sizeof edges[0])];
}

/* A body with plausible fields; returns its length. */
static inline size_t draw_body(struct prng *prng, unsigned command, uint8_t *body, size_t max)
{
    static const uint16_t lengths[] = {[P_BARRIER] = 8, [P_DATA_REQUEST] = 24, [P_RS_DATA_REQUEST] = 24, [P_UUIDS] = 48,
                                       [P_SIZES] = 56, [P_STATE] = 4, [P_SYNC_UUID] = 8, [P_STATE_CHG_REQ] = 8,
                                       [P_BARRIER_ACK] = 8, [P_STATE_CHG_REPLY] = 4, [P_OV_REQUEST] = 24,
                                       [P_SYNC_PARAM89] = 148, [P_DELAY_PROBE] = 8, [P_OUT_OF_SYNC] = 16,
                                       [P_CONN_ST_CHG_REQ] = 8, [P_CONN_ST_CHG_REPLY] = 4, [P_PROTOCOL_UPDATE] = 25,
                                       [P_TRIM] = 28, [P_RS_THIN_REQ] = 24, [P_RS_DEALLOCATED] = 16, [P_ZEROES] = 28};
    static const uint8_t farewell[] = "split-brain\0why\0what to do";
    bool has_data = command == P_DATA || command == P_DATA_REPLY || command == P_RS_DATA_REPLY;
    bool is_bitmap = command == P_BITMAP || command == P_COMPRESSED_BITMAP;
    size_t length = command < sizeof lengths / sizeof lengths[0] ? lengths[command] : 0;
    if (command == P_FAREWELL) {
        length = size_min(sizeof farewell - prng_below(prng, 8), max);
        memcpy(body, farewell, length);
        return length;
    }
    if (has_data)
        length = 24 + 512 * prng_below(prng, 9);
    else if (is_bitmap)
        length = prng_below(prng, 4) ? 296 : 2 + prng_below(prng, 40);
    else if (length == 0 && command != P_PING && command != P_PING_ACK && command != P_UNPLUG_REMOTE)
        length = 24 + 4 * prng_below(prng, 3);
    length = size_min(length, max);
    for (size_t i = 0; i < length; i++)
        body[i] = is_bitmap ? (uint8_t)prng_next(prng) : 0;
    if (command == P_COMPRESSED_BITMAP && length)
        body[0] = (uint8_t)(0x02 | prng_below(prng, 16) << 4);
    if (length >= 16 && !is_bitmap) {
        be64_put(body, draw_sector(prng));
        be64_put(body + 8, prng_below(prng, 2) ? UINT64_MAX : prng_next(prng));
    }
    if (length >= 24 && !is_bitmap) {
        be32_put(body + 16, draw_bytes(prng));
        be32_put(body + 20, (uint32_t)prng_next(prng) & 0x7ff);
    }
    if (length == 28)
        be32_put(body + 24, draw_bytes(prng));
    if (command == P_OUT_OF_SYNC || command == P_RS_DEALLOCATED)
        be32_put(body + 8, draw_bytes(prng));
    return length;
}

/* A new record behind `at`; returns its bytes. */
static inline size_t draw_record(struct prng *prng, uint8_t *out, size_t max)
{
    size_t length = 4 + prng_below(prng, 4);
    if (max < RECORD_HEADER + length + PACKET_HEADER_MAX)
        return 0;
    uint8_t *payload = out + RECORD_HEADER;
    enum record_kind kind = (enum record_kind)prng_below(prng, RECORD_KINDS + 4);
    if (kind >= RECORD_KINDS)
        kind = (enum record_kind)(kind & 1);
    for (size_t i = 0; i < length; i++)
        payload[i] = (uint8_t)(prng_below(prng, 3) ? prng_below(prng, 12) : prng_next(prng));
    if (kind <= RECORD_META) {
        size_t n = kind == RECORD_DATA ? sizeof data_commands / 2 : sizeof meta_commands / 2;
        unsigned command = (kind == RECORD_DATA ? data_commands : meta_commands)[prng_below(prng, n)];
        size_t room = max - RECORD_HEADER - PACKET_HEADER_MAX;
        size_t body = draw_body(prng, command, payload + PACKET_HEADER_MAX, size_min(room, 8192));
        unsigned volume = prng_below(prng, 32) ? 0 : (unsigned)prng_below(prng, 70);
        uint32_t version = prng_below(prng, 8) ? 100 : 95;
        size_t header = packet_header_put(payload, version, command, volume, (uint32_t)body);
        memmove(payload + header, payload + PACKET_HEADER_MAX, body);
        length = header + body;
    }
    out[0] = (uint8_t)kind;
    le16_put(out + 1, (uint16_t)length);
    return RECORD_HEADER + length;
}

/* Make the header of the packet in a record good again. */
static inline void repair_record(uint8_t *record)
{
    uint32_t length = le16_get(record + 1);
    uint8_t *p = record + RECORD_HEADER;
    if (record[0] % RECORD_KINDS > RECORD_META || length < PACKET_HEADER_MAX || be32_get(p) == 0x83740267u ||
        be16_get(p) == 0x835a)
        return;
    be32_put(p, 0x8620ec20u);
    be32_put(p + 8, length - PACKET_HEADER_MAX);
    be32_put(p + 12, 0);
}

static inline size_t find_records(const uint8_t *data, size_t size, size_t *starts)
{
    size_t at = SETTINGS_BYTES, count = 0;
    struct record record;
    for (size_t begin = at; size > SETTINGS_BYTES && count < RECORDS_MAX && record_next(data, size, &at, &record);
         begin = at)
        starts[count++] = begin;
    starts[count] = size_min(at, size);
    return count;
}

static inline size_t mutate_payload(struct prng *prng, uint8_t *data, size_t size, size_t max, size_t begin, size_t end)
{
    static uint8_t tail[1 << 20];
    size_t old = end - begin - RECORD_HEADER, rest = size - end;
    if (rest > sizeof tail)
        return size;
    size_t room = size_min(max - begin - RECORD_HEADER - rest, UINT16_MAX);
    size_t most = prng_below(prng, 4) ? old : size_min(room, old + 4096);
    most = most ? most : 1;
    if (most > room)
        return size;
    memcpy(tail, data + end, rest);
    size_t now = LLVMFuzzerMutate(data + begin + RECORD_HEADER, old, most);
    le16_put(data + begin + 1, (uint16_t)now);
    memcpy(data + begin + RECORD_HEADER + now, tail, rest);
    if (prng_below(prng, 8))
        repair_record(data + begin);
    return size - old + now;
}

static inline size_t insert(uint8_t *data, size_t size, size_t at, const uint8_t *bytes, size_t count)
{
    memmove(data + at + count, data + at, size - at);
    memcpy(data + at, bytes, count);
    return size + count;
}

static inline size_t mutate_records(uint8_t *data, size_t size, size_t max, struct prng *prng)
{
    static size_t starts[RECORDS_MAX + 1];
    static uint8_t fresh[RECORD_HEADER + 65536];
    size_t count = find_records(data, size, starts);
    size_t pick = count ? prng_below(prng, count) : 0, begin = starts[pick];
    size_t end = count ? starts[pick + 1] : begin;
    uint64_t action = count ? prng_below(prng, 10) : 0;
    if (action <= 4) {
        size_t bytes = draw_record(prng, fresh, size_min(sizeof fresh, max - size));
        return bytes ? insert(data, size, count ? starts[prng_below(prng, count + 1)] : begin, fresh, bytes) : size;
    }
    if (action == 5 && end - begin <= max - size) {
        memcpy(fresh, data + begin, end - begin);
        return insert(data, size, starts[prng_below(prng, count + 1)], fresh, end - begin);
    }
    if (action == 6) {
        memmove(data + begin, data + end, size - end);
        return size - (end - begin);
    }
    if (action == 7) {
        data[prng_below(prng, SETTINGS_BYTES)] = (uint8_t)prng_next(prng);
        return size;
    }
    return mutate_payload(prng, data, size, max, begin, end);
}

#endif
