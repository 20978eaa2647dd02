# SPDX-License-Identifier: Apache-2.0
"""Every packet of the wire captures is decoded, compared with its description, and encoded again."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from repl.drbd import auth, bitmap_code, packets
from repl.drbd.packets import Agreed, Packet
from repl.drbd.states import STATE_FIELDS
from repl.drbd.uuids import Feature, start_source_sync_uuid
from tests.wire.vector_files import CapturedPacket, captured_packets, wire_files

DIGESTS = {"": 0, "crc32c": 4, "md5": 16, "sha1": 20, "sha256": 32}
PACKETS_TOTAL = 1403


class Follower:
    """Derives what was agreed from the packets seen so far, as a node would."""

    def __init__(self, stem: str) -> None:
        self.agreed = Agreed(verify_digest_bytes=16, csums_digest_bytes=16)
        if stem == "drbd-write-protocol-96":  # starts after the handshake
            self.agreed = replace(self.agreed, version=96, features=Feature.NONE)
        self.features: dict[str, packets.Features] = {}

    def see(self, captured: CapturedPacket, body: packets.Body) -> None:
        if captured.name in ("INITIAL_DATA", "INITIAL_META"):
            self.features.clear()
        elif isinstance(body, packets.Features):
            self.features[captured.direction] = body
            if len(self.features) == 2:
                version, features = packets.agree(*self.features.values())
                self.agreed = replace(self.agreed, version=version, features=features)
        elif isinstance(body, packets.Protocol):
            self.agreed = replace(self.agreed, integrity_digest_bytes=DIGESTS[body.integrity_alg or ""])


def _block_id(packet: Packet, block_id: bytes) -> str:
    if packet is Packet.OV_RESULT:
        if block_id == packets.ID_IN_SYNC:
            return "IN_SYNC(4711)"
        if block_id == packets.ID_OUT_OF_SYNC:
            return "OUT_OF_SYNC(4712)"
    return "ID_SYNCER" if block_id == packets.ID_SYNCER else block_id.hex()


def _dp_flags(flags: packets.DataFlag) -> str:
    names = "|".join(flag.name or "" for flag in packets.DataFlag if flag and flag in flags)
    return f"dp_flags=0x{int(flags):x}({names or 0})"


def _barrier(number: bytes) -> str:
    return f"barrier={int.from_bytes(number, 'little')}(read little-endian)"


def described(packet: Packet, body: packets.Body, captured: CapturedPacket) -> str:
    """The body in the words of the "fields:" lines."""
    match body:
        case packets.Empty():
            return ""
        case packets.Features():
            reserved = "zero" if not any(body.reserved) else "garbage"
            return (
                f"protocol_min={body.protocol_min} feature_flags=0x{body.feature_flags:x} "
                f"protocol_max={body.protocol_max} pad={int.from_bytes(body.pad, 'big')} reserved={reserved}"
            )
        case packets.AuthChallenge():
            return "challenge"
        case packets.AuthResponse():
            return f"hmac {len(body.response)} bytes"
        case packets.Protocol():
            return (
                f"protocol={body.protocol:d} after_sb_0p={body.after_sb_0p:d} "
                f"after_sb_1p={body.after_sb_1p:d} after_sb_2p={body.after_sb_2p:d} "
                f"conn_flags=0x{body.conn_flags:x} "
                f'two_primaries={body.two_primaries:d} integrity_alg="{body.integrity_alg or ""}"'
            )
        case packets.SyncParam(verify_alg=None):
            return f"resync_rate={body.resync_rate} rest=b''"
        case packets.SyncParam():
            text = (
                f'resync_rate={body.resync_rate} verify_alg="{body.verify_alg}" csums_alg="{body.csums_alg}"'
            )
            if body.c_plan_ahead is not None:
                text += (
                    f" c_plan_ahead={body.c_plan_ahead} c_delay_target={body.c_delay_target} "
                    f"c_fill_target={body.c_fill_target} c_max_rate={body.c_max_rate}"
                )
            return text
        case packets.Sizes():
            text = (
                f"d_size={body.d_size} u_size={body.u_size} c_size={body.c_size} "
                f"max_bio_size={body.max_bio_size} queue_order_type={body.queue_order_type} "
                f"dds_flags=0x{body.dds_flags:x}"
            )
            if body.limits is not None:
                names = (
                    "physical_block_size logical_block_size alignment_offset io_min io_opt discard_enabled "
                    "discard_zeroes_data write_same_capable pad"
                ).split()
                text += " | qlim " + " ".join(f"{name}={getattr(body.limits, name)}" for name in names)
            return text
        case packets.UuidReport():
            slots = body.uuids
            return (
                f"current={slots.current:016X} bitmap={slots.bitmap:016X} history0={slots.history1:016X} "
                f"history1={slots.history2:016X} dirty_bits={body.dirty_bits} flags=0x{body.flags:x}"
            )
        case packets.State():
            state = body.state
            parts = [f"0x{state.pack():08x}"]
            for name in STATE_FIELDS:
                value = getattr(state, name)
                parts.append(f"{name}={int(value) if isinstance(value, bool) else value}")
            return " ".join(parts) + f" pad={state.pad}"
        case packets.SyncUuid():
            return f"uuid={body.uuid:016X}"
        case packets.StateChangeRequest():
            change = body.change
            masked = "|".join(name for name in STATE_FIELDS if change.changes(name))
            return f"mask=0x{change.mask:08x}({masked}) val=0x{change.value:08x}: {change}"
        case packets.StateChangeReply():
            return f"retcode={body.code}"
        case packets.Data():
            text = (
                f"sector={body.sector} block_id={_block_id(packet, body.block_id)} seq_num={body.seq_num} "
                f"{_dp_flags(body.dp_flags)} data={len(body.data)} bytes"
            )
            return text + (f" digest={body.digest.hex()}" if body.digest else "")
        case packets.Batch():
            return (
                f"sector={body.sector} block_id={_block_id(packet, body.block_id)} seq_num={body.seq_num} "
                f"{_dp_flags(body.dp_flags)} size={body.size_bytes}"
            )
        case packets.BlockRequest() | packets.DigestRequest():
            text = (
                f"sector={body.sector} block_id={_block_id(packet, body.block_id)} "
                f"blksize={body.size_bytes} pad={body.pad.hex()}"
            )
            return text + (f" digest={body.digest.hex()}" if isinstance(body, packets.DigestRequest) else "")
        case packets.Ack():
            return (
                f"sector={body.sector} block_id={_block_id(packet, body.block_id)} "
                f"blksize={body.size_bytes} seq_num={body.seq_num}"
            )
        case packets.Barrier():
            return f"{_barrier(body.barrier)} pad={body.pad.hex()}"
        case packets.BarrierAck():
            return f"{_barrier(body.barrier)} set_size={body.set_size}"
        case packets.OutOfSync():
            return f"sector={body.sector} blksize={body.size_bytes} pad={body.pad.hex()}"
        case packets.Bitmap():
            if captured.payload_bytes:
                return captured.fields
            return f"plain {len(body.chunk)} bytes, {bitmap_code.count_bits(body.chunk)} bits set"
        case packets.CompressedBitmap():
            runs = bitmap_code.decode_runs(body)
            return (
                f"encoding=0x{body.encoding:02x} code={body.code} pad_bits={body.pad_bits} "
                f"start={body.starts_set:d} runs={runs} sum={sum(runs)}"
            )
        case _:
            raise AssertionError(f"no description for {body}")


@pytest.mark.parametrize("path", wire_files(), ids=lambda path: path.stem)
def test_captured_packets_decoded_and_encoded_again_are_identical(path: Path) -> None:
    follower = Follower(path.stem)
    for captured in captured_packets(path):
        where = f"{path.name} [{captured.number}]"
        header = packets.decode_header(captured.header)
        assert header.format.size_bytes == len(captured.header), where
        assert header.length == captured.length == len(captured.whole_body), where
        assert header.volume == captured.volume, where
        assert header.format.value == captured.header_format, where
        packet = header.packet
        assert packet.name == captured.name.replace("P_", ""), where
        assert (packet in packets.META_PACKETS) == (captured.socket == "meta"), where
        agreed = follower.agreed
        body = packets.decode_body(packet, captured.whole_body, agreed)
        assert packets.encode_body(body, agreed) == captured.whole_body, where
        encoded = packets.encode(
            packet, packets.encode_body(body, agreed), volume=header.volume, version=agreed.version
        )
        assert encoded == captured.header + captured.whole_body, where
        if packet not in packets.ALWAYS_H80_PACKETS:
            packets.expect_header(captured.header, agreed.version)
        assert described(packet, body, captured) == captured.fields, where
        follower.see(captured, body)


@pytest.mark.parametrize("stem", ["drbd-attach-role-swap", "drbd-resync-bitmap", "drbd-resync-mixed-bitmap"])
def test_captured_sync_uuid_follows_from_the_uuids_of_the_source(stem: str) -> None:
    path = next(path for path in wire_files() if path.stem == stem)
    last: dict[str, packets.UuidReport] = {}
    checked = 0
    for captured in captured_packets(path):
        if captured.name == "UUIDS":
            last[captured.direction] = packets.UuidReport.decode(captured.body)
        elif captured.name == "SYNC_UUID":
            started = start_source_sync_uuid(last[captured.direction].uuids, iter(()).__next__)
            assert packets.SyncUuid.decode(captured.body).uuid == started.bitmap
            checked += 1
    assert checked


def test_captures_contain_the_expected_number_of_packets() -> None:
    assert sum(1 for path in wire_files() for _ in captured_packets(path)) == PACKETS_TOTAL


def test_captured_hmac_exchange_recomputed_is_equal() -> None:
    path = next(path for path in wire_files() if path.stem == "drbd-handshake-cram-hmac")
    challenges: dict[str, bytes] = {}
    responses: dict[str, bytes] = {}
    for captured in captured_packets(path):
        if captured.name == "AUTH_CHALLENGE":
            challenges[captured.direction] = captured.body
        elif captured.name == "AUTH_RESPONSE":
            responses[captured.direction] = captured.body
    for mine, theirs in (("A->B", "B->A"), ("B->A", "A->B")):
        assert auth.respond("sha1", b"s3cr3t-Key", challenges[theirs]) == responses[mine]
        auth.check_response("sha1", b"s3cr3t-Key", challenges[theirs], responses[mine])


def test_captured_mixed_bitmap_split_again_gives_the_same_packets() -> None:
    path = next(path for path in wire_files() if path.stem == "drbd-resync-mixed-bitmap")
    bits = 51189
    bitmap = bytearray(bitmap_code.bitmap_bytes(bits))
    for block in range(9000):
        bitmap_code.set_range(bitmap, 2 * block, 1)
    expected = list(bitmap_code.split(bitmap, bits, header_bytes=16, use_rle=True))
    seen: dict[str, list[CapturedPacket]] = {}
    for captured in captured_packets(path):
        if captured.name in ("BITMAP", "COMPRESSED_BITMAP"):
            seen.setdefault(captured.direction, []).append(captured)
    assert len(seen) == 2
    text = path.read_text()
    for exchange in seen.values():
        assert [captured.name for captured in exchange] == [packet.name for packet, _ in expected]
        for captured, (_, body) in zip(exchange, expected, strict=True):
            if captured.payload_bytes:
                assert f"sha256={hashlib.sha256(body).hexdigest()}" in text
            else:
                assert captured.body == body


def _bitmap(bits: int, *ranges: tuple[int, int]) -> bytearray:
    bitmap = bytearray(bitmap_code.bitmap_bytes(bits))
    for start, length in ranges:
        bitmap_code.set_range(bitmap, start, length)
    return bitmap


@pytest.mark.parametrize(
    ("bits", "ranges", "body"),
    [
        (2038, [(10, 3), (100, 1), (320, 16)], "42977c267caaf79fba02"),
        (10230, [(0, 10230)], "b27fc50600"),
        (1014, [(10, 1)], "22177e7405"),
        (1014, [(0, 2), (10, 3)], "92eefce00a"),
    ],
)
def test_bitmap_of_the_worked_examples_gives_the_documented_bytes(
    bits: int, ranges: list[tuple[int, int]], body: str
) -> None:
    bitmap = _bitmap(bits, *ranges)
    sent = list(bitmap_code.split(bitmap, bits, header_bytes=16, use_rle=True))
    assert sent == [(Packet.COMPRESSED_BITMAP, bytes.fromhex(body))]
    target = bytearray(len(bitmap))
    merger = bitmap_code.Merger(target, bits, header_bytes=16)
    merger.compressed(packets.CompressedBitmap.decode(bytes.fromhex(body), Agreed()))
    assert merger.complete
    assert target == bitmap
