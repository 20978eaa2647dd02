# SPDX-License-Identifier: Apache-2.0
"""Constants of DRBD's wire protocol as the checker and the scripted peer read them: independent of the product."""

from __future__ import annotations

# code: (name, on the meta socket, the length is exact, fixed part of the body)
_COMMANDS = {
    0x00: ("P_DATA", False, False, 24),
    0x01: ("P_DATA_REPLY", False, False, 24),
    0x02: ("P_RS_DATA_REPLY", False, False, 24),
    0x03: ("P_BARRIER", False, True, 8),
    0x04: ("P_BITMAP", False, False, 0),
    0x07: ("P_UNPLUG_REMOTE", False, True, 0),
    0x08: ("P_DATA_REQUEST", False, True, 24),
    0x09: ("P_RS_DATA_REQUEST", False, True, 24),
    0x0A: ("P_SYNC_PARAM", False, False, 4),
    0x0B: ("P_PROTOCOL", False, False, 24),
    0x0C: ("P_UUIDS", False, True, 48),
    0x0D: ("P_SIZES", False, False, 32),
    0x0E: ("P_STATE", False, True, 4),
    0x0F: ("P_SYNC_UUID", False, True, 8),
    0x10: ("P_AUTH_CHALLENGE", False, False, 64),
    0x11: ("P_AUTH_RESPONSE", False, False, 16),
    0x12: ("P_STATE_CHG_REQ", False, True, 8),
    0x13: ("P_PING", True, True, 0),
    0x14: ("P_PING_ACK", True, True, 0),
    0x15: ("P_RECV_ACK", True, True, 24),
    0x16: ("P_WRITE_ACK", True, True, 24),
    0x17: ("P_RS_WRITE_ACK", True, True, 24),
    0x18: ("P_SUPERSEDED", True, True, 24),
    0x19: ("P_NEG_ACK", True, True, 24),
    0x1A: ("P_NEG_DREPLY", True, True, 24),
    0x1B: ("P_NEG_RS_DREPLY", True, True, 24),
    0x1C: ("P_BARRIER_ACK", True, True, 8),
    0x1D: ("P_STATE_CHG_REPLY", True, True, 4),
    0x1E: ("P_OV_REQUEST", False, True, 24),
    0x1F: ("P_OV_REPLY", False, False, 24),
    0x20: ("P_OV_RESULT", True, True, 24),
    0x21: ("P_CSUM_RS_REQUEST", False, False, 24),
    0x22: ("P_RS_IS_IN_SYNC", True, True, 24),
    0x23: ("P_SYNC_PARAM89", False, False, 132),
    0x24: ("P_COMPRESSED_BITMAP", False, False, 2),
    0x27: ("P_DELAY_PROBE", False, True, 8),
    0x28: ("P_OUT_OF_SYNC", False, True, 16),
    0x29: ("P_RS_CANCEL", True, True, 24),
    0x2A: ("P_CONN_ST_CHG_REQ", False, True, 8),
    0x2B: ("P_CONN_ST_CHG_REPLY", True, True, 4),
    0x2C: ("P_RETRY_WRITE", True, True, 24),
    0x2D: ("P_PROTOCOL_UPDATE", False, False, 25),
    0x31: ("P_TRIM", False, True, 28),
    0x32: ("P_RS_THIN_REQ", False, True, 24),
    0x33: ("P_RS_DEALLOCATED", False, True, 16),
    0x34: ("P_WSAME", False, False, 28),
    0x36: ("P_ZEROES", False, True, 28),
    0x7F01: ("P_FAREWELL", False, False, 1),
    0xFFF1: ("P_INITIAL_META", True, True, 0),
    0xFFF2: ("P_INITIAL_DATA", False, True, 0),
    0xFFFE: ("P_CONNECTION_FEATURES", False, True, 72),
}
CODES = {name: code for code, (name, *_) in _COMMANDS.items()}
CODE_NAMES = {code: name for code, (name, *_) in _COMMANDS.items()}
BODIES = {code: rest for code, (_, *rest) in _COMMANDS.items()}

WRITES = frozenset((0x00, 0x31, 0x36))
ACKS = frozenset((0x15, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x1B, 0x20, 0x22, 0x29, 0x2C))
ACKS_DONE = frozenset((0x16, 0x17, 0x18, 0x19, 0x2C))  # after one of them no other ack of the write comes
CONNECTION_WIDE = frozenset((0x03, 0x0B, 0x10, 0x11, 0x13, 0x14, 0x1C, 0x2A, 0x2B, 0x2D))
# Known to 8.4 and never sent by it, or fatal to newer kernels (P_WSAME).
NEVER_SENT = frozenset((0x27, 0x34, 0x7F01))
EXTENSIONS = frozenset((0x27, 0x7F01))  # between our own nodes: why a resync is slow, why a node gives up
DIGEST_BYTES = {b"": 0, b"crc32c": 4, b"md5": 16, b"sha1": 20, b"sha256": 32, b"xxhash64": 8}

# Levels of the run-length code: prefix as sent (first bit = lowest), its bits, data bits, first run length.
_LEVELS = (
    (0x00, 1, 1, 1),
    (0x01, 2, 1, 3),
    (0x03, 3, 2, 5),
    (0x07, 4, 3, 9),
    (0x0F, 5, 5, 17),
    (0x1F, 6, 8, 49),
    (0x3F, 8, 13, 305),
    (0x7F, 8, 21, 8497),
    (0xBF, 8, 34, 2105649),
    (0xFF, 8, 56, 17181974833),
)


def run_lengths(body: bytes) -> list[int]:
    """The runs of a P_COMPRESSED_BITMAP body."""
    stream = int.from_bytes(body[1:], "little")
    left = 8 * (len(body) - 1) - (body[0] >> 4 & 7)
    runs = []
    while left > 0:
        for prefix, prefix_bits, data_bits, first in _LEVELS:
            if stream & (1 << prefix_bits) - 1 == prefix:
                runs.append(first + (stream >> prefix_bits & (1 << data_bits) - 1))
                stream >>= prefix_bits + data_bits
                left -= prefix_bits + data_bits
                break
        else:
            raise AssertionError("no level fits")
    assert left == 0, "the stream ends inside of a run"
    return runs


def run_bits(body: bytes) -> int:
    """How many bits of the bitmap a P_COMPRESSED_BITMAP body describes."""
    return sum(run_lengths(body))
