#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the seeds of the fuzz corpora from tests/vectors: tests/fuzz/corpus/<target>/seed-<hash>.

usage: .venv/bin/python tools/make_corpus.py

Files of other names (findings, inputs that a fuzzer found) are left alone.  The same vectors give the same seeds.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import msgpack  # noqa: E402

from repl.drbd.packets import META_PACKETS, Packet  # noqa: E402
from repl.files.rpc import frames as rpc_frames  # noqa: E402
from repl.files.rpc import handshake as rpc_handshake  # noqa: E402
from repl.files.rpc import operations as rpc  # noqa: E402
from repl.files.rpc.frames import Kind  # noqa: E402
from tests.fuzz.fake_node import PACKETS  # noqa: E402
from tests.fuzz.images import bases  # noqa: E402
from tests.wire.vector_files import (  # noqa: E402
    VECTORS,
    CapturedPacket,
    captured_packets,
    metadata_files,
    metadata_image,
    wire_files,
)

CORPUS = ROOT / "tests/fuzz/corpus"
STREAM_BYTES_MAX = 3000
CONTROL_BODY_MAX = 4096
IHAVEOPT = 0x49484156454F5054
# Kinds of csrc/fuzz/peer_records.h.
DATA, META, TICK, STATE, NBD, ANSWER, DISK, COMMAND, WIRE, METADATA, ORDER = range(11)
# Orders of csrc/fuzz/peer_orders.h.
(VERIFY, VERIFY_STOP, OPTIONS, RESIZE, WIPE, UNDO, NO_UNDO, CLEAN_DETACH, GIVE_UP, SIZE, SUSPEND, RESUME,
 PRIORITY) = range(13)  # fmt: skip


def captured(path: Path) -> list[CapturedPacket]:
    return [p for p in captured_packets(path) if p.name != "?"]


def interesting(packets: Iterable[CapturedPacket], per_kind: int, bytes_max: int) -> Iterator[CapturedPacket]:
    """The first few of each kind, as long as they are small."""
    count: dict[tuple[str, str], int] = {}
    total = 0
    for packet in packets:
        key = packet.name, packet.header_format
        size = len(packet.header) + len(packet.whole_body)
        if count.get(key, 0) >= per_kind or total + size > bytes_max:
            continue
        count[key] = count.get(key, 0) + 1
        total += size
        yield packet


def wire_streams() -> Iterator[bytes]:
    for path in wire_files():
        for socket in ("data", "meta"):
            packets = (p for p in captured(path) if p.socket == socket)
            stream = b"".join(p.header + p.whole_body for p in interesting(packets, 3, STREAM_BYTES_MAX))
            if stream:
                yield stream


# ---- the peer session ----


def record(kind: int, payload: bytes = b"") -> bytes:
    return bytes((kind,)) + struct.pack("<H", len(payload)) + payload


def h100(command: int, body: bytes = b"", volume: int = 0) -> bytes:
    return struct.pack(">IHHII", 0x8620EC20, volume, command, len(body), 0) + body


def data_sub(sector: int, block_id: int, flags: int) -> bytes:
    return struct.pack(">QQII", sector, block_id, 1, flags)


def session(*records: bytes, settings: bytes = bytes((0, 2, 15, 7))) -> bytes:
    return settings + b"".join(records)


def peer_sessions() -> Iterator[bytes]:
    write = h100(0, data_sub(8, 7, 0x100) + bytes(4096))
    barrier = h100(3, b"\1\0\0\0" + bytes(4))
    ask = h100(9, struct.pack(">QQII", 0, (1 << 64) - 1, 4096, 0))
    tick = record(TICK, struct.pack("<H", 200))
    nbd_write, nbd_read, nbd_flush = (record(NBD, bytes((kind, 3, 0, 8, 0))) for kind in (0, 1, 2))
    answers = b"".join(record(ANSWER, bytes((back, 0, 0))) for back in range(4))
    yield session(record(DATA, write + barrier), record(STATE, b"\1"), record(DATA, write + barrier), tick)
    yield session(record(DATA), nbd_write, answers, nbd_flush, answers, tick, answers)
    yield session(record(DATA), record(STATE, b"\x0b"), nbd_read, answers, nbd_write, answers)
    yield session(record(DATA), record(STATE, b"\6"), record(COMMAND, b"\3"), record(DATA, ask), tick)
    target = (record(DATA), record(COMMAND, b"\3"), record(STATE, b"\7"), tick, answers, answers, tick)
    yield session(*target)
    yield session(*target, record(STATE, b"\x0a"), record(DATA, write), answers)
    yield session(*target, record(META, h100(0x1B, struct.pack(">QQII", 0, (1 << 64) - 1, 4096, 1))))
    bitmap = h100(4, bytes(range(1, 41)) * 7 + bytes(16)) + h100(4)
    for state in (3, 4):
        yield session(record(DATA), record(STATE, bytes((state,))), record(COMMAND, b"\0"), record(DATA, bitmap))
    trim = h100(0x31, data_sub(0, 9, 0x140) + struct.pack(">I", 1 << 20))
    for state in (1, 12):
        yield session(record(DATA), record(STATE, bytes((state,))), record(DATA, trim + barrier), tick)
    yield session(record(DATA), nbd_write, record(DISK, b"\1"), nbd_write, record(WIRE, bytes((1, 2, 0, 0))), tick)
    yield session(record(DATA), record(WIRE, bytes((0, 0, 9, 0))), nbd_write, nbd_write, tick, tick)
    yield session(record(COMMAND, b"\6"), record(METADATA, bytes((0, 0x80)) + b"\xff" * 64), record(COMMAND, b"\7"))
    for path in wire_files():
        for direction in ("A->B", "B->A"):
            packets = (p for p in captured(path) if p.direction == direction and p.header_format == "h100")
            records = [
                record(META if p.socket == "meta" else DATA, p.header + p.whole_body)
                for p in interesting(packets, 2, STREAM_BYTES_MAX)
            ]
            for state in (1, 7) if records else ():
                yield session(record(DATA), record(STATE, bytes((state,))), *records)


def order(which: int, how: int = 0, value: int = 0) -> bytes:
    return record(ORDER, bytes((which, how)) + struct.pack("<H", value))


def order_sessions() -> Iterator[bytes]:
    """Sessions in which the control plane changes something under way."""
    up, hold, go_on = record(DATA), record(DISK, b"\1"), record(DISK, b"\0")
    tick = record(TICK, struct.pack("<H", 200))
    write, read = (record(NBD, bytes((kind, 3, 0, 8, 0))) for kind in (0, 1))
    answers = b"".join(record(ANSWER, bytes((back, 0, 0))) for back in range(4))
    peer_write = record(DATA, h100(0, data_sub(8, 7, 0x100) + bytes(4096)) + h100(3, b"\1\0\0\0" + bytes(4)))
    verify_reply = record(DATA, h100(0x1F, struct.pack(">QQII", 0, (1 << 64) - 1, 4096, 0) + bytes(4)))
    verifying = bytes((0, 2, 79, 7))
    yield session(up, order(VERIFY), tick, verify_reply, answers, tick, order(VERIFY_STOP), tick, settings=verifying)
    yield session(up, order(VERIFY, 64, 8), hold, write, tick, go_on, answers, verify_reply, settings=verifying)
    yield session(up, write, order(OPTIONS, 0x81), write, answers, order(OPTIONS, 2), write, peer_write, answers)
    yield session(up, write, answers, tick, order(RESIZE, 1, 1), answers, write, answers, order(RESIZE, 0, 0), tick)
    yield session(up, hold, write, order(RESIZE, 2, 1), go_on, answers, tick, order(WIPE), record(COMMAND, b"\6"))
    yield session(order(UNDO), up, write, peer_write, hold, write, order(NO_UNDO), go_on, answers, order(UNDO), write)
    yield session(order(UNDO), record(DISK, bytes((2, 0, 0, 2))), up, peer_write, write, tick, order(NO_UNDO))
    yield session(up, hold, write, order(CLEAN_DETACH), go_on, answers, tick, write, read, answers)
    yield session(up, hold, write, read, order(GIVE_UP), go_on, order(SIZE, 0, 2048), read, answers)
    kept = (up, write, order(SUSPEND), write, record(COMMAND, b"\x08"), tick)
    for settings in ((0, 2, 15, 7), (18, 2, 15, 7), (32, 0x22, 15, 7), (48, 1, 15, 7)):
        yield session(*kept, up, tick, answers, order(RESUME), answers, settings=bytes(settings))
        yield session(*kept, order(RESUME), write, up, answers, settings=bytes(settings))
    both = bytes((32, 2, 15, 7))
    yield session(up, record(STATE, b"\x0f"), write, peer_write, hold, write, peer_write, go_on, answers, settings=both)
    yield session(up, record(STATE, b"\x07"), order(PRIORITY, 3, 2048), tick, answers, tick, answers)
    ahead = bytes((192, 0, 15, 7))
    yield session(up, write, write, write, tick, answers, record(STATE, b"\x10"), write, settings=ahead)
    farewell = b"split-brain\0Split-Brain detected\0\0"
    yield session(up, record(DATA, h100(0x7F01, farewell) + h100(0x7F01, b"\0\0\0\0")), tick)


def control_sessions() -> Iterator[bytes]:
    """For py_session: the control packets that one side of a capture sent."""
    for path in wire_files():
        auth = "cram-hmac" in path.name
        for direction, mode in itertools.product(("A->B", "B->A"), (2 if auth else 8, 40 if not auth else 3)):
            events = b""
            packets = (p for p in captured(path) if p.direction == direction and not p.payload_bytes)
            for p in interesting(packets, 4, STREAM_BYTES_MAX):
                name = p.name.removeprefix("P_")
                packet = Packet[name]
                if packet in META_PACKETS and "REPLY" not in name or len(p.whole_body) > CONTROL_BODY_MAX:
                    continue
                kind = PACKETS.index(packet) | (0x40 if packet in META_PACKETS else 0) | (0x80 if p.volume else 0)
                body = b"\0" if packet is Packet.AUTH_RESPONSE else p.whole_body
                events += bytes((kind,)) + struct.pack(">H", len(body)) + body
            for tail in (b"", b"\xfa\0\1\5\xfb\0\1\0", b"\xfc\0\1\1\xf9\0\0\xf8\0\1\1"):
                if events:
                    yield bytes((mode, len(tail) & 1)) + events + tail


# ---- NBD ----


def nbd_request(command: int, offset: int, length: int, flags: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, offset ^ 5, offset, length) + payload


def nbd_sessions() -> Iterator[bytes]:
    plain = (
        nbd_request(1, 0, 4096, payload=bytes(4096)) + nbd_request(0, 0, 4096) + nbd_request(3, 0, 0)
        + nbd_request(4, 4096, 65536) + nbd_request(6, 0, 1 << 20, flags=1) + nbd_request(7, 0, 65536)
        + nbd_request(5, 0, 512) + nbd_request(0, 1 << 40, 512) + nbd_request(0, 1, 3) + nbd_request(2, 0, 0)
    )  # fmt: skip
    for head in (bytes(6), bytes((2, 1, 3, 2, 1, 3)), bytes((6, 4, 0, 0, 9, 1)), bytes((7, 8, 1, 1, 3, 2))):
        yield head + plain


def option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">QII", IHAVEOPT, number, len(data)) + data


def negotiations() -> Iterator[bytes]:
    name = struct.pack(">I", 4) + b"r0/0"
    go = name + struct.pack(">HH", 1, 3)
    meta = name + struct.pack(">I", 1) + struct.pack(">I", 15) + b"base:allocation"
    flows = (
        option(7, go) + b"leftover",
        option(1, b"r0/0"),
        option(3) + option(6, go) + option(8) + option(10, meta) + option(7, go),
        option(8) + option(9, meta) + option(9, name + bytes(4)) + option(2),
        option(5) + option(99, b"unknown") + option(7, name[:6]) + option(7, struct.pack(">IH", 5000, 0)),
        option(7, struct.pack(">I", 4) + b"r0/1" + bytes(2)) + option(7, struct.pack(">I", 4) + b"nope" + bytes(2)),
    )
    for flow, flags, piece in itertools.product(flows, (3, 1, 0), (255, 0)):
        yield bytes((piece,)) + struct.pack(">I", flags) + flow
    yield bytes((255,)) + struct.pack(">I", 3) + option(7, bytes(70000)) + option(7, go)


# ---- the rest ----


def compressed_bodies() -> Iterator[bytes]:
    for path in wire_files():
        for packet in captured(path):
            if packet.name.endswith("COMPRESSED_BITMAP") and len(packet.whole_body) < 600:
                yield packet.whole_body
    yield bytes.fromhex("42977c267caaf79fba02")


def log_blocks() -> Iterator[bytes]:
    for path in metadata_files():
        blocks = {block for block in metadata_image(path.name).al_blocks if any(block[4:8])}
        yield from sorted(blocks)[:3]


def frames() -> Iterator[bytes]:
    for message in (
        {"id": 1, "verb": "status"},
        {"id": 2, "verb": "primary", "args": {"force": True}},
        {"id": 3, "ok": True, "result": {"a": [1, "b", None, 1.5]}},
        {"id": 4, "ok": False, "error": {"code": "x", "message": "m", "advice": "a", "exit_status": 3}},
        {"id": "x", "verb": 5, "args": []},
    ):
        body = msgpack.packb(message)
        yield struct.pack(">I", len(body)) + body


def servers() -> Iterator[bytes]:
    """What an NBD server says to our client."""
    greeting = struct.pack(">QQH", 0x4E42444D41474943, IHAVEOPT, 3)

    def told(kind: int, payload: bytes = b"") -> bytes:
        return struct.pack(">QIII", 0x0003E889045565A9, 7, kind, len(payload)) + payload

    export = told(3, struct.pack(">HQH", 0, 1 << 20, 1))
    good = greeting + told(3, b"\0\3\0\0\0\1\0\0\20\0\2\0\0\0") + export + told(1)
    replies = [struct.pack(">IIQ", 0x67446698, error, cookie) for cookie, error in ((1, 0), (2, 0), (3, 0), (4, 5))]
    yield bytes((3, 4)) + good + replies[0] + bytes(512) + b"".join(replies[1:])
    yield bytes((3, 4)) + greeting + export + told(0x80000006, b"no such export")


def records() -> Iterator[bytes]:
    yield b'{"format": "repl-disk-1", "path": "/dev/x", "size_bytes": 524288, "device_uuid": "000000000000004d"}'
    yield b'{"format": "repl-undo-1", "resource": "r0", "volume": 0, "size_bytes": 524288, "generation": "1:2:3:4"}'


def rpc_streams() -> Iterator[bytes]:
    """Frames of each kind, calls of each operation with plausible arguments, answers to each."""
    gfid, loc = bytes(range(16)), bytes(16) + bytes(15) + b"\1" + b"\0\1a" + b"/a"
    iatt = bytes(16) + struct.pack(">IIIIQQQIqqq", 0o100644, 1, 0, 0, 0, 5, 8, 4096, 1, 2, 3)
    looked = [iatt, None, {b"user.a": b"b"}]
    samples = {
        rpc.LOC: loc, rpc.TARGET: 1, rpc.FD: 1, rpc.INT: 5, rpc.BOOL: False, rpc.BYTES: b"x",
        rpc.TEXT: "domain", rpc.GFID: gfid, rpc.XATTRS: {b"user.a": b"b"}, rpc.WANT: [b"user.a"],
        rpc.SETATTR: struct.pack(">BIIIqqq", 63, 1, 2, 3, 4, 5, 6), rpc.DATA: 5,
        rpc.LOCK: struct.pack(">BBQQi", 1, 0, 0, 9, 1), rpc.COMMAND: 1, rpc.LOCK_TYPE: 1, rpc.XATTR_OP: 1,
        rpc.SYNC: 1, rpc.NONE: None, rpc.LOOKED: looked, rpc.CHANGED: [iatt, iatt, {}],
        rpc.STATVFS: struct.pack(">IQQQQQQII", 4096, 9, 8, 7, 6, 5, 4, 255, 0),
        rpc.ENTRIES: [[struct.pack(">q16sI", 1, gfid, 0o100000), b"a", iatt, None]], rpc.READ: [5, iatt],
    }  # fmt: skip
    hello = rpc_handshake.encode_hello(rpc_handshake.Hello("brick", "x", bytes(16)))
    welcome = rpc_handshake.encode_welcome(rpc_handshake.Welcome(1, "brick"))
    plain = [
        (Kind.HELLO, hello), (Kind.WELCOME, welcome), (Kind.REFUSED, msgpack.packb([13, "no"])),
        (Kind.CALLER, msgpack.packb([0, 0, [0], 1, "c", b"o", False])), (Kind.ERROR, msgpack.packb([2, "d"])),
        (Kind.RELEASE, msgpack.packb([1, 2])), (Kind.GONE, msgpack.packb("c")), (Kind.PING, b""),
        (Kind.EVENT, msgpack.packb([1, gfid, iatt, [b"a"], True, False, ["c"]])),
        (Kind.EVENT, msgpack.packb([2, "d", gfid, None, True, "c"])), (Kind.EVENT, msgpack.packb([3, True])),
    ]  # fmt: skip
    yield b"\xff\0" + b"".join(rpc_frames.encode(kind, 1, body) for kind, body in plain)
    steps = []
    for index, operation in enumerate(rpc.BY_NUMBER.values()):
        samples[rpc.NEW_FD] = struct.pack(">Q16sIB", 100 + index, gfid, 2, 0)
        arguments = [samples.get(a.shape) for a in operation.arguments]
        steps.append([operation.number, *arguments])
        size = 5 if rpc.DATA in [a.shape for a in operation.arguments] else 0
        call = rpc_frames.encode(Kind.CALL, 1, msgpack.packb([operation.number, 1, *arguments]), size) + b"hello"[:size]
        answer = msgpack.packb(samples.get(operation.result))
        size = 5 if operation.result is rpc.READ else 0
        back = rpc_frames.encode(Kind.ANSWER, 1, answer, size) + b"hello"[:size]
        several = msgpack.packb([[samples.get(operation.result)], None])
        many = rpc_frames.encode(Kind.ANSWER, (1 << 31) + 1, several, size)
        yield bytes((3, index)) + call + back + many + b"hello"[:size]
    yield b"\xff\0" + rpc_frames.encode(Kind.CALL, 1, msgpack.packb([0, 1, *steps]), 5) + b"hello"


def attaches() -> Iterator[bytes]:
    for number in range(len(bases())):
        yield bytes((number, 3))
        patches = bytes((0, 0, 0, 8)) + bytes(8) + bytes((1, 0, 4, 4)) + b"\0\0\0\7" + bytes((2, 0, 9, 2, 255, 1))
        yield bytes((number, 1)) + patches


def seeds() -> Iterator[tuple[str, bytes]]:
    for stream in wire_streams():
        yield "fuzz_codec", stream
        yield "py_packets", bytes((15, 15)) + stream
    for body in compressed_bodies():
        yield "fuzz_vli", b"\xff\xff\0\0\1" + body
        yield "py_bitmap_code", b"\xff\xff\0\0" + body
    for block in log_blocks():
        yield "fuzz_activity_log", b"\0" + block.rstrip(b"\0")
        yield "py_activity_log", b"\2" + block
    for name, made in (
        ("fuzz_peer", peer_sessions()),
        ("fuzz_peer", order_sessions()),
        ("fuzz_nbd", nbd_sessions()),
        ("py_negotiation", negotiations()),
        ("py_session", control_sessions()),
        ("py_control", frames()),
        ("py_attach", attaches()),
        ("py_nbd_client", servers()),
        ("py_records", records()),
        ("py_files_rpc", rpc_streams()),
    ):
        for seed in made:
            yield name, seed
    for path in sorted((VECTORS / "volfiles").glob("*.vol")):
        yield "py_volfile", path.read_bytes()
    yield "py_volfile", b'volume "a b"\n type x/y # c\n option k "v\\"w\\\\"\nend-volume\n'
    for path in sorted((VECTORS / "res-corpus").rglob("*")):
        if path.is_file() and path.stat().st_size < 6000 and path.suffix in (".res", ".conf"):
            yield "py_config", path.read_bytes()


def main() -> None:
    count = size = 0
    for old in CORPUS.glob("*/seed-*"):
        old.unlink()
    for target, content in seeds():
        path = CORPUS / target / f"seed-{hashlib.sha256(content).hexdigest()[:12]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(content)
            count, size = count + 1, size + len(content)
    print(f"{count} seeds, {size // 1024} KiB")


if __name__ == "__main__":
    main()
