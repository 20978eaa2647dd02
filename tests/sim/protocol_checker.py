# SPDX-License-Identifier: Apache-2.0
"""An independent reading of the wire protocol: judges every packet that simulated nodes send to each other.

Input: the records of the simulator's tap, in the order of sending over both sockets and both directions.  It shares
no code with the product and knows only docs/protocol.md's facts.  What is wrong is kept in ``problems``, the first
ones with the packets before them.
"""

from __future__ import annotations

import functools
import struct
from collections import Counter, deque
from dataclasses import dataclass, field

from tests.sim.protocol_tables import (
    ACKS,
    ACKS_DONE,
    BODIES,
    CODE_NAMES,
    CONNECTION_WIDE,
    DIGEST_BYTES,
    EXTENSIONS,
    NEVER_SENT,
    WRITES,
    run_bits,
)

_RECORD = struct.Struct("<Qiii7I")
_REQUEST = struct.Struct(">QQII")
_TIMES = 12  # packets that are shown with a problem
_PROBLEMS_MAX = 20
SYNCER = (1 << 64) - 1
MAX_BATCH, MAX_BATCH_OLD = 128 << 20, 4 << 20
PRIMARY = 1
STARTING_SYNC_S, STARTING_SYNC_T, AHEAD, BEHIND = 11, 12, 22, 23


class Wrong(Exception):
    """A packet that must not be sent."""


@dataclass(slots=True)
class Packet:
    at_ns: int
    node: int
    connection: int
    command: int
    volume: int
    format: int
    pad: int
    length: int
    body: bytes

    def __str__(self) -> str:
        name = CODE_NAMES.get(self.command, hex(self.command))
        head = self.body[:24].hex(" ", 4)
        where = f"node {self.node} tcp{self.connection}"
        return f"{self.at_ns / 1e6:10.3f} {where} {name}/{self.volume} l={self.length} {head}"


@dataclass(slots=True)
class Epoch:
    number: bytes = b""
    writes: dict[tuple[int, int, int], Write] = field(default_factory=dict)  # but those that a conflict discarded


@dataclass(slots=True)
class Write:
    size: int
    wants: frozenset[int]  # acks that may come
    epoch: Epoch
    got: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Volume:
    """What one node has said and asked about a volume on this connection."""

    sizes: tuple[int, int, int] | None = None
    verify_alg: bytes = b""
    csums_alg: bytes = b""
    has_params: bool = False
    has_uuids: bool = False
    has_state: bool = False
    role: int = 0
    conn: int = 0
    disk: int = 0
    seq: int = 0
    seq_early: set[int] = field(default_factory=set)
    reads: dict[tuple[int, int], int] = field(default_factory=dict)
    resync: dict[int, tuple[int, int]] = field(default_factory=dict)  # sector -> (size, command)
    was_ahead: bool = False
    cancelled: list[tuple[int, int, int]] = field(default_factory=list)  # asked for again: sector, size, command
    resynced: Counter[tuple[int, int]] = field(default_factory=Counter)  # data given, not acked: sector, size
    verify: dict[int, int] = field(default_factory=dict)
    verify_last: int = -1
    verified: dict[int, int] = field(default_factory=dict)  # digests given
    bitmap_bits: int = 0
    bitmap_plain: bool = False
    bitmap_done: bool = False
    bitmap_started: bool = False
    disk_has_left: bool = False  # since the last exchange: that one may have ended anywhere


class Half:
    """One node's side of a pair of sockets."""

    def __init__(self) -> None:
        self.features: tuple[int, int, int] | None = None
        self.has_protocol = False
        self.protocol = 0
        self.integrity = b""
        self.challenges = self.responses = 0
        self.volumes: dict[int, Volume] = {}
        self.log: dict[tuple[int, int, int], Write] = {}
        self.epochs: deque[Epoch] = deque()
        self.is_open = False  # the last epoch takes writes
        self.pings = self.ping_acks = 0
        self.changes: list[tuple[int, int, int, int]] = []
        self.sent_state = False

    def volume(self, number: int) -> Volume:
        if number not in self.volumes:
            self.volumes[number] = Volume()
        return self.volumes[number]


class Pair:
    """Two sockets between two nodes, named by the data socket's connection."""

    def __init__(self) -> None:
        self.halves: dict[int, Half] = {}
        self.meta = -1
        self.sync_uuid_from: dict[int, set[int]] = {}  # volume -> nodes that may send P_SYNC_UUID
        self.agreed_unsaid: set[tuple[int, int]] = set()  # full syncs that the node's P_SYNC_UUID says yes to
        self.version = 80
        self.flags = 0
        self.is_ours = False  # both ends run this software: decisions 0017, 0023, 0024 allow more

    def half(self, node: int) -> Half:
        if node not in self.halves:
            self.halves[node] = Half()
        return self.halves[node]

    def other(self, node: int) -> Half:
        for number, half in self.halves.items():
            if number != node:
                return half
        return _NOBODY

    def agree(self) -> None:
        """After an offer of features: what both have."""
        known = [h.features for h in self.halves.values() if h.features]
        if len(known) == 2:
            self.version = min((f[2] or f[0]) for f in known)
            self.flags = known[0][1] & known[1][1]
            self.is_ours = self.flags & 1 << 24 != 0

    def size(self, volume: int) -> int:
        """Sectors that both can have: the disks' sizes limit, the larger one of the sizes in use is where both go."""
        sides = [h.volume(volume) for h in self.halves.values()]
        said = [v.sizes for v in sides if v.disk or not v.has_state] or [v.sizes for v in sides]  # no disk: no limit
        limits = [n for sizes in said if sizes for n in sizes[:2] if n]
        in_use = max((sizes[2] for sizes in said if sizes), default=0)
        return min([*limits, in_use] if in_use else limits, default=0)

    def request_max(self) -> int:
        return 1 << 20 if self.version >= 100 else 131072 if self.version >= 95 else 32768


_NOBODY = Half()


class ProtocolChecker:
    """Feed it the tap's bytes."""

    def __init__(self, *, judged: frozenset[int] = frozenset((0, 1)), is_lenient: bool = False) -> None:
        self.problems: list[str] = []
        self.packets = 0
        self.is_lenient = is_lenient  # bits flip on the way: answers may repeat what never was
        self.judged = judged
        self._kinds: dict[int, int] = {}  # connection -> P_INITIAL_*
        self._pairs: dict[int, Pair] = {}  # by data connection
        self._pair_of: dict[int, int] = {}  # node -> its newest data connection
        self._recent: deque[Packet] = deque(maxlen=_TIMES)

    def meta_connection(self, node: int) -> int:
        """Number of the meta socket's connection of this node's newest link."""
        return self._pairs[self._pair_of[node]].meta

    def feed(self, records: bytes) -> None:
        at = 0
        while at < len(records):
            at_ns, node, socket, peer, command, volume, form, pad, length, kept, _ = _RECORD.unpack_from(records, at)
            at += _RECORD.size
            body = records[at : at + kept]
            at += kept
            packet = Packet(at_ns, node, min(socket, peer), command, volume, form, pad, length, body)
            self.packets += 1
            self._recent.append(packet)
            try:
                self._packet(packet)
            except Wrong as wrong:
                if node in self.judged and len(self.problems) < _PROBLEMS_MAX:
                    before = "".join(f"\n  {p}" for p in self._recent) if len(self.problems) < 2 else f" {packet}"
                    self.problems.append(f"node {node} sends {CODE_NAMES.get(command, hex(command))}: {wrong}{before}")

    # ---- any packet ----

    def _packet(self, p: Packet) -> None:
        if p.command in (0xFFF1, 0xFFF2):
            if p.format != 80 or p.length:
                raise Wrong("first packets are h80 without body")
            if p.connection in self._kinds:
                raise Wrong("a second first packet")
            self._kinds[p.connection] = p.command
            return
        pair, half = self._find(p)
        if p.command == 0xFFFE:
            self._features(p, half)
            pair.agree()
            return
        if p.format != _format(pair.version, p.length):
            raise Wrong(f"header h{p.format} in version {pair.version}")
        if p.pad != 0:
            raise Wrong(f"header pad {p.pad:#x}")
        is_extension = pair.is_ours and p.command in EXTENSIONS
        if not (p.command in BODIES and (is_extension or p.command not in NEVER_SENT)):
            raise Wrong("not a packet of 8.4")
        is_meta, is_exact, least = BODIES[p.command]
        if is_meta != (self._kinds.get(p.connection) == 0xFFF1):
            raise Wrong("on the wrong socket")
        if not (p.length == least if is_exact else p.length >= least):
            raise Wrong(f"a body of {p.length} bytes")
        if p.command in CONNECTION_WIDE and p.volume != 0:
            raise Wrong(f"volume {p.volume} in a packet of the connection")
        if is_meta:
            if pair.meta not in (-1, p.connection):
                raise Wrong("a second meta socket")
            # A ping may fall into a long authentication: the kernel's thread for this socket reads it when it starts.
            is_ping = p.command in (0x13, 0x14)
            if not half.sent_state and not is_ping:
                raise Wrong("on the meta socket before the own handshake is through")
            pair.meta = p.connection
        self._dispatch(p, pair, half)

    def _find(self, p: Packet) -> tuple[Pair, Half]:
        if p.command == 0xFFFE:
            if p.connection not in self._pairs:
                self._pairs[p.connection] = Pair()
            self._pair_of[p.node] = p.connection
        if p.node not in self._pair_of:
            raise Wrong("before P_CONNECTION_FEATURES")
        pair = self._pairs[self._pair_of[p.node]]
        if self._kinds.get(p.connection) == 0xFFF2 and p.connection != self._pair_of[p.node]:
            raise Wrong("on an older data socket")
        return pair, pair.half(p.node)

    def _features(self, p: Packet, half: Half) -> None:
        _need(p.format == 80 and p.length == 72, f"h{p.format}, {p.length} bytes")
        _need(self._kinds.get(p.connection) == 0xFFF2, "not on a data socket")
        _need(half.features is None, "twice")
        low, flags, high = struct.unpack_from(">III", p.body)
        _need(not any(p.body[12:]), "reserved bytes are not 0")
        half.features = low, flags, high

    def _dispatch(self, p: Packet, pair: Pair, half: Half) -> None:
        peer = pair.other(p.node)
        command = p.command
        if command in WRITES:
            self._write(p, pair, half)
        elif command in ACKS:
            self._ack(p, pair, half, peer)
        elif command in _HANDLERS:
            _HANDLERS[command](self, p, pair, half, peer)

    # ---- handshake and states ----

    def _auth(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        _need(not half.has_protocol, "after P_PROTOCOL")
        if p.command == 0x10:
            half.challenges += 1
            _need(half.challenges == 1 and p.length == 64, "one challenge of 64 bytes")
        else:
            half.responses += 1
            _need(half.responses == 1 and peer.challenges == 1, "one response to a challenge")

    def _protocol(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        number = int.from_bytes(p.body[:4], "big")
        _need(1 <= number <= 3, f"protocol {number}")
        if pair.version >= 87:
            ends = p.length > 24 and p.body[-1] == 0
            _need(ends and p.length <= 24 + 64, "the integrity string has no NUL or is too long")
        if p.command == 0x0B:
            _need(not half.has_protocol, "twice")
            half.has_protocol = True
        else:
            _need(half.has_protocol and pair.version >= 100, "P_PROTOCOL_UPDATE before P_PROTOCOL or below 100")
        half.protocol, half.integrity = number, p.body[24:].rstrip(b"\0")

    def _params(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        _need(half.has_protocol, "before P_PROTOCOL")
        _need((p.command == 0x23) == (pair.version >= 89), f"in version {pair.version}")
        if p.command == 0x23:
            _need(p.length == (148 if pair.version >= 95 else 132), f"{p.length} bytes")
            v = half.volume(p.volume)
            v.verify_alg, v.csums_alg = p.body[4:68].rstrip(b"\0"), p.body[68:132].rstrip(b"\0")
        elif pair.version == 88:
            half.volume(p.volume).verify_alg = p.body[4:].rstrip(b"\0")
        half.volume(p.volume).has_params = True

    def _sizes(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        v = half.volume(p.volume)
        _need(v.has_params, "before P_SYNC_PARAM")
        _need(p.length == (56 if pair.flags & 4 else 32), f"{p.length} bytes, features {pair.flags:#x}")
        d_size, u_size, c_size, max_bio = struct.unpack_from(">QQQI", p.body)
        _need(max_bio <= pair.request_max(), f"max_bio_size {max_bio}")
        _need(d_size < 1 << 41 and c_size < 1 << 41, "impossible sizes")
        if v.has_state and v.sizes is not None and v.sizes[2] != c_size:  # a resync of the new part follows
            pair.sync_uuid_from.setdefault(p.volume, set()).update(pair.halves)
        v.sizes = d_size, u_size, c_size

    def _uuids(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        v = half.volume(p.volume)
        _need(v.sizes is not None, "before P_SIZES")
        current, *_rest, bits, flags = struct.unpack(">6Q", p.body)
        _need(flags & ~0xF == 0, f"flags {flags:#x}")
        _need(bits <= (1 << 38), f"{bits} dirty bits")
        v.has_uuids = True

    def _state(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        word = int.from_bytes(p.body, "big")
        role, conn, disk = word & 3, word >> 4 & 31, word >> 9 & 15
        v = half.volume(p.volume)
        answers = word >> 31 == 0 or conn == BEHIND  # decision 0145
        _need(word >> 23 == 0 or (pair.is_ours and answers), f"state {word:#x}: upper bits")  # decision 0105
        _need(role in (1, 2) and conn <= 23 and disk <= 8 and word >> 13 & 15 <= 8, f"state {word:#x}")
        _need(v.sizes is not None, "before P_SIZES")
        _need(disk < 3 or v.has_uuids, "a disk and no P_UUIDS")
        if not v.has_state:
            _need(conn in (8, 9), f"the first state of a connection says {conn}")
            v.has_state = True
        before, v.role, v.conn, v.disk = v.conn, role, conn, disk
        v.was_ahead = v.was_ahead or conn == AHEAD
        theirs = peer.volume(p.volume)
        is_back = theirs.disk_has_left and theirs.disk > 2
        if conn in (13, 14) and (is_back or (before != conn and v.bitmap_done and theirs.bitmap_done)):
            _restart_bitmaps(pair, p.volume)  # the last exchange led to nothing
        v.disk_has_left = v.disk_has_left or disk < 3
        half.sent_state = all(other.has_state for other in half.volumes.values())

    def _change(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        mask, value = struct.unpack(">II", p.body)
        _need(value & ~mask == 0 and mask != 0, f"mask {mask:#x}, value {value:#x}")
        _need((p.command == 0x12) or pair.version >= 100, "below version 100")
        _need(half.sent_state, "before the own P_STATE")
        half.changes.append((p.command, p.volume, mask, value))

    def _change_reply(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        asked = 0x12 if p.command == 0x1D else 0x2A
        code = struct.unpack(">i", p.body)[0]
        found = next((c for c in peer.changes if c[0] == asked and c[1] == p.volume), None)
        _need(found is not None, "nobody asked")
        _need(-21 <= code <= 4, f"code {code}")
        assert found is not None
        peer.changes.remove(found)
        _, volume, mask, value = found
        wanted = value >> 4 & 31 if mask & 0x1F0 else 0
        if wanted == STARTING_SYNC_T and (p.node, volume) in pair.agreed_unsaid:
            pair.agreed_unsaid.discard((p.node, volume))
            _need(code >= 1, "a refusal behind the P_SYNC_UUID that was asked for")
            return
        if code < 1:
            return
        if mask & 3 and value & 3 == PRIMARY:
            for v in peer.volumes.values():
                v.role = PRIMARY
        if wanted in (STARTING_SYNC_S, STARTING_SYNC_T):
            me = p.node
            other = next((n for n in pair.halves if n != me), me)
            pair.sync_uuid_from.setdefault(volume, set()).add(other if wanted == STARTING_SYNC_S else me)
        if wanted == 18:
            for h in (half, peer):
                h.volume(volume).verify_last = -1

    def _sync_uuid(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        v, theirs = half.volume(p.volume), peer.volume(p.volume)
        allowed = pair.sync_uuid_from.get(p.volume, set())
        exchanged = v.bitmap_done and theirs.bitmap_done
        if not (p.node in allowed or exchanged or v.conn == AHEAD):
            is_first = (p.node, p.volume) not in pair.agreed_unsaid
            _need(is_first and self._is_asked(peer, p.volume), "nobody waits for it")
            pair.agreed_unsaid.add((p.node, p.volume))
        allowed.discard(p.node)
        _restart_bitmaps(pair, p.volume)
        v.conn = 16

    @staticmethod
    def _is_asked(peer: Half, volume: int) -> bool:
        """It wants a full sync, and the yes is on its way on the other socket, which may stand still or be broken."""
        return any(
            number == volume and mask & 0x1F0 and value >> 4 & 31 == STARTING_SYNC_T
            for _, number, mask, value in peer.changes
        )

    # ---- writes, acks, barriers ----

    def _write(self, p: Packet, pair: Pair, half: Half) -> None:
        if not half.sent_state:
            raise Wrong("before the own P_STATE")
        sector, block_id, seq, flags = struct.unpack_from(">QQII", p.body)
        if p.command == 0:
            digest = DIGEST_BYTES.get(half.integrity, 0) if p.length > 24 else 0
            size = p.length - 24 - digest
            if not 0 <= size <= pair.request_max():
                raise Wrong(f"{size} bytes")
            if not (size or flags & 32):
                raise Wrong("an empty write without FLUSH")
        else:
            size = int.from_bytes(p.body[24:28], "big")
            if not 0 < size <= (MAX_BATCH if pair.flags & 4 else MAX_BATCH_OLD):
                raise Wrong(f"{size} bytes")
            if pair.flags & (8 if p.command == 0x36 else 1) == 0:
                raise Wrong(f"features {pair.flags:#x}")
            wanted = 1024 if p.command == 0x36 else 64
            if not flags & wanted and pair.version >= 95:
                raise Wrong(f"dp_flags {flags:#x}")
        if not (size % 512 == 0 and sector + size // 512 <= pair.size(p.volume)):
            raise Wrong(f"sector {sector}, {size} bytes")
        if flags & ~0x7FE or block_id == SYNCER:
            raise Wrong(f"dp_flags {flags:#x}, id {block_id:#x}")
        v = half.volume(p.volume)
        if v.role != PRIMARY:
            raise Wrong(f"from a node that said role {v.role}")
        _sequence(v, seq)
        key = p.volume, block_id, sector
        if key in half.log:
            raise Wrong(f"id {block_id:#x} is in use")
        if not half.is_open:
            half.epochs.append(Epoch())
            half.is_open = True
        epoch = half.epochs[-1]
        write = Write(size, _wanted_acks(pair.version, half.protocol, flags), epoch)
        half.log[key] = epoch.writes[key] = write

    def _ack(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        sector, block_id, size, seq = _REQUEST.unpack(p.body)
        v, theirs = half.volume(p.volume), peer.volume(p.volume)
        _sequence(v, seq)
        if self.is_lenient:
            return
        if p.command in (0x15, 0x16, 0x17, 0x18, 0x19, 0x2C):
            if block_id == SYNCER:
                if p.command not in (0x17, 0x19):
                    raise Wrong("for resync data")
                if theirs.resynced[sector, size] <= 0:
                    raise Wrong(f"no resync data for sector {sector}, {size} bytes")
                theirs.resynced[sector, size] -= 1  # given twice where a resync was broken off by an Ahead
                return
            write = peer.log.get((p.volume, block_id, sector))
            if write is None:
                raise Wrong(f"id {block_id:#x} names no write at sector {sector}")
            if write.size != size:
                raise Wrong(f"{size} bytes: not the write's")
            if p.command not in write.wants:
                raise Wrong("not asked for")
            if p.command in write.got or write.got & ACKS_DONE:
                raise Wrong("acked already")
            write.got.add(p.command)
            if p.command in (0x18, 0x2C):  # the id is free, the epoch is smaller
                del write.epoch.writes[p.volume, block_id, sector], peer.log[p.volume, block_id, sector]
        elif p.command == 0x1A:
            if theirs.reads.pop((block_id, sector), -1) != size:
                raise Wrong("no such read")
        elif p.command in (0x1B, 0x22, 0x29):
            self._resync_answer(p, pair, theirs, sector, size)
        elif p.command == 0x20:
            if block_id not in (4711, 4712):
                raise Wrong(f"verdict {block_id}")
            if theirs.verified.pop(sector, -1) != size:
                raise Wrong(f"no digest of sector {sector}")

    @staticmethod
    def _resync_answer(p: Packet, pair: Pair, theirs: Volume, sector: int, size: int) -> None:
        verify = theirs.verify.pop(sector, -1) if p.command == 0x1B and sector in theirs.verify else None
        if verify is not None:
            return
        asked = take_resync(theirs, sector, size, in_parts=pair.is_ours)
        if p.command == 0x22 and asked != 0x21:
            raise Wrong("no digest was sent")

    def _barrier(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        if not half.is_open:
            raise Wrong("an epoch without writes")
        if p.body[4:] != bytes(4):
            raise Wrong("pad")
        half.epochs[-1].number = p.body[:4]
        half.is_open = False

    def _barrier_ack(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        if self.is_lenient:
            return
        closed = len(peer.epochs) - peer.is_open
        if closed <= 0:
            raise Wrong("no barrier waits")
        epoch = peer.epochs[0]
        while len(peer.epochs) > 1 and not epoch.writes:
            peer.epochs.popleft()  # nothing of it remained: never acked
            epoch = peer.epochs[0]
        count = int.from_bytes(p.body[4:], "big")
        if epoch.number != p.body[:4]:
            raise Wrong(f"number {p.body[:4].hex()}, the oldest is {epoch.number.hex()}")
        if not count == len(epoch.writes) > 0:
            raise Wrong(f"{count} writes, there were {len(epoch.writes)}")
        for key, write in epoch.writes.items():
            del peer.log[key]
            if 0x16 in write.wants and not write.got & ACKS_DONE:
                raise Wrong(f"before the ack of {key[1]:#x}")
        peer.epochs.popleft()

    # ---- reads, resync, verify ----

    def _request(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        sector, block_id, size, _ = _REQUEST.unpack_from(p.body)
        v = half.volume(p.volume)
        end = pair.size(p.volume)
        if not (0 < size <= pair.request_max() and size % 512 == 0):
            raise Wrong(f"{size} bytes")
        if sector + size // 512 > end:
            raise Wrong(f"beyond the device: sector {sector}, {size} bytes")
        if p.command == 0x08:
            if (block_id, sector) in v.reads:  # one request in parts has one id
                raise Wrong("the id is in use")
            v.reads[block_id, sector] = size
            return
        is_last = sector + size // 512 == end
        if block_id != SYNCER:
            raise Wrong(f"id {block_id:#x}")
        if not (sector % 8 == 0 and (size % 4096 == 0 or is_last)):
            raise Wrong(f"not whole blocks: sector {sector}, {size} bytes")
        if p.command == 0x1E:
            self._verify_request(pair, v, peer.volume(p.volume), sector, size, is_last=is_last)
            return
        if sector // 32768 != (sector + size // 512 - 1) // 32768:
            raise Wrong("over a 16 MiB boundary")
        stop = sector + size // 512
        again = [at for at, (length, _) in v.resync.items() if at < stop and sector < at + length // 512]
        if peer.volume(p.volume).was_ahead:  # the cancellation is late, on the other socket
            v.cancelled += [(at, *v.resync.pop(at)) for at in again]
            again = []
        if again:
            raise Wrong(f"sector {sector}, {size} bytes: asked twice")
        if p.command == 0x32 and not pair.flags & 2:
            raise Wrong("THIN_RESYNC is not agreed")
        if p.command == 0x21:
            algorithm = v.csums_alg
            if not (algorithm != b"" and p.length == 24 + DIGEST_BYTES.get(algorithm, -1)):
                raise Wrong(f"digest, {p.length} bytes")
        v.resync[sector] = size, p.command

    @staticmethod
    def _verify_request(pair: Pair, v: Volume, theirs: Volume, sector: int, size: int, *, is_last: bool) -> None:
        if v.verify_alg == b"" or v.verify_alg != theirs.verify_alg:
            raise Wrong("no common verify-alg")
        if size != 4096 and not is_last:
            raise Wrong(f"{size} bytes")
        is_second_look = pair.is_ours and sector <= v.verify_last and sector not in v.verify  # decision 0026
        if sector <= v.verify_last and not is_second_look:
            raise Wrong(f"sector {sector} after {v.verify_last}")
        v.verify_last = max(sector, v.verify_last)
        v.verify[sector] = size

    def _reply(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        sector, block_id, seq, flags = struct.unpack_from(">QQII", p.body)
        size = p.length - 24 - DIGEST_BYTES.get(half.integrity, 0)
        theirs = peer.volume(p.volume)
        if seq or flags:
            raise Wrong(f"seq_num {seq}, flags {flags:#x}")
        if self.is_lenient:
            return
        if p.command == 0x01:
            if theirs.reads.pop((block_id, sector), -1) != size:
                raise Wrong("no such read")
            return
        if block_id != SYNCER:
            raise Wrong(f"id {block_id:#x}")
        take_resync(theirs, sector, size, in_parts=pair.is_ours)
        half.volume(p.volume).resynced[sector, size] += 1

    def _deallocated(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        sector, size = struct.unpack_from(">QI", p.body)
        if not self.is_lenient:
            asked = take_resync(peer.volume(p.volume), sector, size, in_parts=pair.is_ours)
            if asked != 0x32 and not (asked == 0x21 and pair.is_ours):
                raise Wrong("no thin request")
        half.volume(p.volume).resynced[sector, size] += 1

    def _verify_reply(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        sector, _, size, _ = _REQUEST.unpack_from(p.body)
        v, theirs = half.volume(p.volume), peer.volume(p.volume)
        if p.length != 24 + DIGEST_BYTES.get(v.verify_alg, -1):
            raise Wrong(f"{p.length} bytes")
        if not self.is_lenient and theirs.verify.pop(sector, -1) != size:
            raise Wrong(f"nobody asked for sector {sector}")
        v.verified[sector] = size

    def _out_of_sync(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        sector, size = struct.unpack_from(">QI", p.body)
        if not (size > 0 and size % 512 == 0 and sector + size // 512 <= pair.size(p.volume)):
            raise Wrong(f"{sector}, {size} bytes")
        v = half.volume(p.volume)  # an ack of a resync may come after the demotion, and marks again (decision 0032)
        if v.role != PRIMARY and v.conn != AHEAD:
            raise Wrong("from a Secondary")

    # ---- bitmaps ----

    def _bitmap(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        v, theirs = half.volume(p.volume), peer.volume(p.volume)
        bits = -(-pair.size(p.volume) // 8)
        most = 4096 - (16 if pair.version >= 100 else 8)
        _need(p.length <= most, f"{p.length} bytes")
        _need(not v.bitmap_done, "after its end")
        _need(not theirs.bitmap_started or theirs.bitmap_done, "before the other one's bitmap is complete")
        v.bitmap_started = True
        if p.command == 0x24:
            _need(pair.version >= 90 and p.body[0] & 15 == 2, f"code {p.body[0]:#x}")
            try:
                v.bitmap_bits += run_bits(p.body)
            except AssertionError as error:
                raise Wrong(str(error)) from error
            _need(v.bitmap_bits <= bits, f"{v.bitmap_bits} of {bits} bits")
            v.bitmap_plain = False
            v.bitmap_done = v.bitmap_bits == bits
        elif v.bitmap_bits >= bits:
            _need(p.length == 0 and v.bitmap_plain, "more than an end mark")
            v.bitmap_done = True
        else:
            word = v.bitmap_bits // 64
            expected = min(most // 8, -(-bits // 64) - word) * 8
            _need(p.length == expected, f"a chunk of {p.length} bytes, {expected} are due")
            v.bitmap_bits = min(bits, word * 64 + p.length * 8)
            v.bitmap_plain = True

    # ---- pings ----

    def _ping(self, p: Packet, pair: Pair, half: Half, peer: Half) -> None:
        if p.command == 0x13:
            half.pings += 1
            return
        half.ping_acks += 1
        _need(half.ping_acks <= peer.pings, "without a ping")


def _need(condition: bool, what: str) -> None:
    """For packets that are rare; where most pass through, the text is made only when it is needed."""
    if not condition:
        raise Wrong(what)


def _format(version: int, length: int) -> int:
    return 100 if version >= 100 else 95 if version >= 95 and length > 32768 else 80


def _take(asked: dict[int, tuple[int, int]], sector: int, size: int, *, in_parts: bool) -> int:
    """The request that this answers, whole or (between our own nodes) in part."""
    found = asked.pop(sector, None)
    if found is not None and found[0] == size:
        return found[1]
    end = sector + size // 512
    if found is not None:
        asked[sector] = found
    for start, (length, command) in asked.items() if in_parts else ():
        stop = start + length // 512
        if start <= sector and end <= stop:
            del asked[start]
            if start < sector:
                asked[start] = (sector - start) * 512, command
            if end < stop:
                asked[end] = (stop - end) * 512, command
            return command
    raise Wrong(f"nobody asked for sector {sector}, {size} bytes")


def take_resync(theirs: Volume, sector: int, size: int, *, in_parts: bool) -> int:
    again = next((c for c in theirs.cancelled if c[:2] == (sector, size)), None)
    if again is not None:
        theirs.cancelled.remove(again)
        return again[2]
    try:
        return _take(theirs.resync, sector, size, in_parts=in_parts)
    except Wrong:
        for start, length, command in theirs.cancelled if in_parts else ():
            asked = {start: (length, command)}
            if start <= sector and sector + size // 512 <= start + length // 512:
                theirs.cancelled.remove((start, length, command))
                _take(asked, sector, size, in_parts=True)
                theirs.cancelled += [(begin, *rest) for begin, rest in asked.items()]
                return command
        raise


def _sequence(v: Volume, seq: int) -> None:
    """Contiguous over both sockets; one may be ahead of the other."""
    ahead = (seq - v.seq) & 0xFFFFFFFF
    if not (0 < ahead < 1 << 31 and seq not in v.seq_early):
        raise Wrong(f"seq_num {seq} was used")
    v.seq_early.add(seq)
    while v.seq + 1 & 0xFFFFFFFF in v.seq_early:
        v.seq = v.seq + 1 & 0xFFFFFFFF
        v.seq_early.discard(v.seq)
    if len(v.seq_early) >= 100_000:
        raise Wrong(f"seq_num {v.seq + 1} never came")


@functools.cache
def _wanted_acks(version: int, protocol: int, flags: int) -> frozenset[int]:
    received = flags & 128 if version >= 100 else protocol == 2
    written = flags & 256 if version >= 100 else protocol == 3
    wants = {0x19, 0x18, 0x2C}
    if received:
        wants.add(0x15)
    if written:
        wants |= {0x16}
    if flags & 4 and (version >= 100 or written):  # below, what is acknowledged follows from the protocol alone
        wants |= {0x16, 0x17}
    return frozenset(wants)


def _restart_bitmaps(pair: Pair, volume: int) -> None:
    for half in pair.halves.values():
        v = half.volume(volume)
        v.bitmap_bits = 0
        v.bitmap_done = v.bitmap_started = v.bitmap_plain = v.disk_has_left = False


_HANDLERS = {
    0x03: ProtocolChecker._barrier,
    0x1C: ProtocolChecker._barrier_ack,
    0x0B: ProtocolChecker._protocol,
    0x2D: ProtocolChecker._protocol,
    0x0A: ProtocolChecker._params,
    0x23: ProtocolChecker._params,
    0x0C: ProtocolChecker._uuids,
    0x0D: ProtocolChecker._sizes,
    0x0E: ProtocolChecker._state,
    0x0F: ProtocolChecker._sync_uuid,
    0x10: ProtocolChecker._auth,
    0x11: ProtocolChecker._auth,
    0x12: ProtocolChecker._change,
    0x2A: ProtocolChecker._change,
    0x1D: ProtocolChecker._change_reply,
    0x2B: ProtocolChecker._change_reply,
    0x13: ProtocolChecker._ping,
    0x14: ProtocolChecker._ping,
    0x08: ProtocolChecker._request,
    0x09: ProtocolChecker._request,
    0x1E: ProtocolChecker._request,
    0x21: ProtocolChecker._request,
    0x32: ProtocolChecker._request,
    0x01: ProtocolChecker._reply,
    0x02: ProtocolChecker._reply,
    0x1F: ProtocolChecker._verify_reply,
    0x33: ProtocolChecker._deallocated,
    0x28: ProtocolChecker._out_of_sync,
    0x04: ProtocolChecker._bitmap,
    0x24: ProtocolChecker._bitmap,
}
