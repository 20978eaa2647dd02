# SPDX-License-Identifier: Apache-2.0
"""Headers and bodies that a peer must not send, and the ones that no capture contains."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.drbd import packets
from repl.drbd.packets import Agreed, HeaderFormat, Packet
from repl.drbd.states import DiskState, Role, StateWord
from repl.drbd.uuids import Feature, UuidFlag, Uuids
from repl.errors import ProtocolError

OLD = Agreed(version=94, features=Feature.NONE)
DIGESTS = Agreed(integrity_digest_bytes=4, verify_digest_bytes=16, csums_digest_bytes=20)


@pytest.mark.parametrize(
    ("packet", "body_bytes", "version", "expected"),
    [
        (Packet.CONNECTION_FEATURES, 72, 101, HeaderFormat.H80),
        (Packet.INITIAL_META, 0, 101, HeaderFormat.H80),
        (Packet.STATE, 4, 100, HeaderFormat.H100),
        (Packet.STATE, 4, 99, HeaderFormat.H80),
        (Packet.DATA, 32768, 99, HeaderFormat.H80),
        (Packet.DATA, 32769, 99, HeaderFormat.H95),
        (Packet.DATA, 32769, 94, HeaderFormat.H80),
    ],
)
def test_header_format_follows_version_and_size(
    packet: Packet, body_bytes: int, version: int, expected: HeaderFormat
) -> None:
    assert packets.header_format(packet, body_bytes, version) is expected


@given(
    packet=st.sampled_from([packet for packet in Packet if packet not in packets.ALWAYS_H80_PACKETS]),
    length=st.integers(0, 65535),
    volume=st.integers(0, 65535),
    version=st.integers(86, 101),
)
def test_header_encoded_and_decoded_is_identical(
    packet: Packet, length: int, volume: int, version: int
) -> None:
    used = volume if version >= 100 else 0
    data = packets.encode_header(packet, length, volume=used, version=version)
    header = packets.expect_header(data, version)
    assert (header.packet, header.length, header.volume) == (packet, length, used)
    assert len(data) == packets.header_bytes(version) == header.format.size_bytes


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x83\x74\x02\x67\0\0\0",
        bytes(16),
        bytes.fromhex("8620ec20000000130000000000000001"),
        bytes.fromhex("8620ec200000001300000000"),
    ],
)
def test_damaged_header_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        packets.decode_header(data)


@pytest.mark.parametrize(
    ("data", "version"),
    [("8374026700130000", 101), ("835a001300000000", 94), ("8620ec20000000130000000000000000", 99)],
)
def test_header_format_of_another_version_is_a_protocol_error(data: str, version: int) -> None:
    with pytest.raises(ProtocolError):
        packets.expect_header(bytes.fromhex(data), version)


def test_unknown_command_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="0x105"):
        _ = packets.decode_header(bytes.fromhex("8620ec20000001050000000000000000")).packet


def test_volume_below_protocol_100_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        packets.encode(Packet.STATE, bytes(4), volume=1, version=99)


EXAMPLES: list[tuple[Packet, packets.Body, Agreed]] = [
    (
        Packet.WSAME,
        packets.WriteSame(8, b"12345678", 3, packets.DataFlag.WSAME, 4096, bytes(512), b"dige"),
        DIGESTS,
    ),
    (Packet.CSUM_RS_REQUEST, packets.DigestRequest(8, packets.ID_SYNCER, 4096, bytes(20)), DIGESTS),
    (Packet.NEG_DREPLY, packets.Ack(8, b"12345678", 4096, 9), Agreed()),
    (Packet.RS_CANCEL, packets.Ack(8, packets.ID_SYNCER, 4096, 9), Agreed()),
    (Packet.DELAY_PROBE, packets.DelayProbe(1, 2), Agreed()),
    (Packet.SYNC_PARAM, packets.SyncParam(250, "sha1", None, None, None, None, None), Agreed(version=88)),
    (Packet.SYNC_PARAM89, packets.SyncParam(verify_alg="md5", verify_rest=b"xx\0y"), Agreed()),
    (Packet.DATA, packets.Data(0, b"12345678", 1, packets.DataFlag.FLUSH, b""), Agreed()),
    (Packet.SIZES, packets.Sizes(1, 2, 3, 4), Agreed(features=Feature.TRIM)),
    (Packet.AUTH_CHALLENGE, packets.AuthChallenge(bytes(128)), Agreed()),
]


@pytest.mark.parametrize(("packet", "body", "agreed"), EXAMPLES, ids=lambda value: str(value)[:24])
def test_packet_that_no_capture_contains_survives_a_round_trip(
    packet: Packet, body: packets.Body, agreed: Agreed
) -> None:
    encoded = packets.encode_body(body, agreed)
    decoded = packets.decode_body(packet, encoded, agreed)
    assert decoded == body
    assert packets.encode_body(decoded, agreed) == encoded


FIXED_LENGTHS = {
    Packet.CONNECTION_FEATURES: 72,
    Packet.SYNC_PARAM89: 148,
    Packet.SIZES: 56,
    Packet.UUIDS: 48,
    Packet.STATE: 4,
    Packet.SYNC_UUID: 8,
    Packet.STATE_CHG_REQ: 8,
    Packet.CONN_ST_CHG_REQ: 8,
    Packet.STATE_CHG_REPLY: 4,
    Packet.CONN_ST_CHG_REPLY: 4,
    Packet.BARRIER: 8,
    Packet.BARRIER_ACK: 8,
    Packet.DATA_REQUEST: 24,
    Packet.RS_DATA_REQUEST: 24,
    Packet.RS_THIN_REQ: 24,
    Packet.OV_REQUEST: 24,
    Packet.OV_REPLY: 40,
    Packet.CSUM_RS_REQUEST: 44,
    Packet.TRIM: 28,
    Packet.ZEROES: 28,
    Packet.OUT_OF_SYNC: 16,
    Packet.RS_DEALLOCATED: 16,
    Packet.DELAY_PROBE: 8,
    **dict.fromkeys(packets.ACK_PACKETS, 24),
    **dict.fromkeys(packets.EMPTY_PACKETS, 0),
}


@pytest.mark.parametrize(("packet", "length"), sorted(FIXED_LENGTHS.items()), ids=str)
def test_body_of_wrong_length_is_a_protocol_error_that_names_the_packet(packet: Packet, length: int) -> None:
    for wrong in (length - 1, length + 1):
        if wrong >= 0:
            with pytest.raises(ProtocolError, match="P_.*offset"):
                packets.decode_body(packet, bytes(wrong), DIGESTS)


BAD_BODIES = [
    (Packet.PROTOCOL, bytes.fromhex("00000003" + "00000000" * 5), Agreed()),
    (Packet.PROTOCOL, bytes.fromhex("00000003" + "00000000" * 5 + "6d6435"), Agreed()),
    (Packet.PROTOCOL, bytes.fromhex("00000004" + "00000000" * 5 + "00"), Agreed()),
    (Packet.PROTOCOL, bytes.fromhex("000000030000000b" + "00000000" * 4 + "00"), Agreed()),
    (Packet.SYNC_PARAM, bytes(4), Agreed()),
    (Packet.SYNC_PARAM89, bytes(4) + b"x" * 64 + bytes(80), Agreed()),
    (Packet.SIZES, bytes(32), Agreed()),
    (Packet.SIZES, bytes(56), OLD),
    (Packet.DATA, bytes(24 + 100), Agreed()),
    (Packet.DATA, bytes(24 + 1048576 + 512), Agreed()),
    (Packet.DATA, bytes(24 + 65536), OLD),
    (Packet.DATA, bytes(24), Agreed()),
    (Packet.DATA_REQUEST, bytes(24), Agreed()),
    (Packet.TRIM, bytes(24) + (8 << 20).to_bytes(4, "big"), OLD),
    (Packet.TRIM, bytes(24) + (1).to_bytes(4, "big"), Agreed()),
    (Packet.WSAME, bytes(24) + (4096).to_bytes(4, "big") + bytes(100), Agreed()),
    (Packet.OV_REPLY, bytes(16) + (4096).to_bytes(4, "big") + bytes(20), Agreed()),
    (Packet.AUTH_CHALLENGE, bytes(63), Agreed()),
    (Packet.AUTH_CHALLENGE, bytes(129), Agreed()),
    (Packet.AUTH_RESPONSE, b"", Agreed()),
    (Packet.BITMAP, bytes(7), Agreed()),
    (Packet.BITMAP, bytes(4088), Agreed()),
    (Packet.COMPRESSED_BITMAP, b"\x02", Agreed()),
    (Packet.COMPRESSED_BITMAP, b"\x01\x00", Agreed()),
    (Packet.OUT_OF_SYNC, bytes(16), Agreed()),
    (Packet.BECOME_SYNC_SOURCE, b"", Agreed()),
]


@pytest.mark.parametrize(("packet", "body", "agreed"), BAD_BODIES, ids=lambda value: str(value)[:20])
def test_illegal_body_is_a_protocol_error(packet: Packet, body: bytes, agreed: Agreed) -> None:
    with pytest.raises(ProtocolError):
        packets.decode_body(packet, body, agreed)


@given(packet=st.sampled_from(Packet), body=st.binary(max_size=200), version=st.integers(86, 101))
def test_any_bytes_decode_to_the_same_bytes_or_a_protocol_error(
    packet: Packet, body: bytes, version: int
) -> None:
    agreed = Agreed(version=version, integrity_digest_bytes=4, verify_digest_bytes=16, csums_digest_bytes=20)
    try:
        decoded = packets.decode_body(packet, body, agreed)
    except ProtocolError:
        return
    assert packets.encode_body(decoded, agreed) == body


def test_agreement_with_a_newer_peer_is_our_version() -> None:
    version, features = packets.agree(
        packets.Features(), packets.Features(protocol_max=110, feature_flags=0x1F3)
    )
    assert (version, features) == (101, Feature.TRIM | Feature.THIN_RESYNC)


def test_agreement_without_common_version_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        packets.agree(packets.Features(), packets.Features(protocol_min=110, protocol_max=0))


@pytest.mark.parametrize(
    ("disk", "flags", "expected"),
    [
        (DiskState.NEGOTIATING, UuidFlag.INCONSISTENT, DiskState.INCONSISTENT),
        (DiskState.NEGOTIATING, UuidFlag.CRASHED_PRIMARY, DiskState.CONSISTENT),
        (DiskState.OUTDATED, UuidFlag.INCONSISTENT, DiskState.OUTDATED),
    ],
)
def test_peer_side_of_a_negotiating_disk_is_what_the_uuid_flags_say(
    disk: DiskState, flags: UuidFlag, expected: DiskState
) -> None:
    side = packets.peer_side(packets.UuidReport(Uuids(8), 7, flags), StateWord(Role.PRIMARY, disk=disk))
    assert (side.disk, side.dirty_bits, side.primary) == (expected, 7, True)
    assert side.crashed_primary == (UuidFlag.CRASHED_PRIMARY in flags)


def test_sizes_without_limits_are_not_sent_when_wsame_is_agreed() -> None:
    with pytest.raises(ProtocolError):
        packets.encode_body(packets.Sizes(1, 2, 3, 4), Agreed())
