# SPDX-License-Identifier: Apache-2.0
"""DRBD network packets (protocol 86..101): headers and bodies as frozen values.

Every body class has ``encode`` and ``decode``; decoders check lengths exactly and keep the fields that the
kernel
leaves uninitialised, so that decode + encode gives the same bytes.  ``decode_body`` picks the class by
packet.
Sectors are 512 bytes, sizes are bytes, all integers big-endian on the wire.
Raises ``ProtocolError`` naming packet and body offset.  Facts: wire captures of the Linux 8.4.11 driver.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from types import MappingProxyType
from typing import ClassVar, NoReturn, TypeAlias

from repl.drbd.split_brain import AfterSplitBrain
from repl.drbd.states import DiskState, StateChange, StateWord, state_code_text
from repl.drbd.uuids import Feature, Side, UuidFlag, Uuids
from repl.errors import ProtocolError
from repl.limits import SECTOR_BYTES

PROTOCOL_MIN = 86
PROTOCOL_MAX = 101

PROTOCOL_H95 = 95
PROTOCOL_H100 = 100
H80_BODY_BYTES_MAX = 32768

FEATURES_BODY_BYTES = 72
CHALLENGE_BYTES = 64
CHALLENGE_BYTES_MAX = 128
DIGEST_BYTES_MAX = 64
ALG_NAME_BYTES = 64
BITMAP_PACKET_BYTES_MAX = 4096
BATCH_BYTES_MAX = 128 * 1024 * 1024
BATCH_BYTES_MAX_NO_WSAME = 4 * 1024 * 1024

ID_SYNCER = b"\xff" * 8
ID_IN_SYNC = (4711).to_bytes(8, "big")
ID_OUT_OF_SYNC = (4712).to_bytes(8, "big")


class Packet(IntEnum):
    """Command codes."""

    DATA = 0x00
    DATA_REPLY = 0x01
    RS_DATA_REPLY = 0x02
    BARRIER = 0x03
    BITMAP = 0x04
    BECOME_SYNC_TARGET = 0x05
    BECOME_SYNC_SOURCE = 0x06
    UNPLUG_REMOTE = 0x07
    DATA_REQUEST = 0x08
    RS_DATA_REQUEST = 0x09
    SYNC_PARAM = 0x0A
    PROTOCOL = 0x0B
    UUIDS = 0x0C
    SIZES = 0x0D
    STATE = 0x0E
    SYNC_UUID = 0x0F
    AUTH_CHALLENGE = 0x10
    AUTH_RESPONSE = 0x11
    STATE_CHG_REQ = 0x12
    PING = 0x13
    PING_ACK = 0x14
    RECV_ACK = 0x15
    WRITE_ACK = 0x16
    RS_WRITE_ACK = 0x17
    SUPERSEDED = 0x18
    NEG_ACK = 0x19
    NEG_DREPLY = 0x1A
    NEG_RS_DREPLY = 0x1B
    BARRIER_ACK = 0x1C
    STATE_CHG_REPLY = 0x1D
    OV_REQUEST = 0x1E
    OV_REPLY = 0x1F
    OV_RESULT = 0x20
    CSUM_RS_REQUEST = 0x21
    RS_IS_IN_SYNC = 0x22
    SYNC_PARAM89 = 0x23
    COMPRESSED_BITMAP = 0x24
    DELAY_PROBE = 0x27
    OUT_OF_SYNC = 0x28
    RS_CANCEL = 0x29
    CONN_ST_CHG_REQ = 0x2A
    CONN_ST_CHG_REPLY = 0x2B
    RETRY_WRITE = 0x2C
    PROTOCOL_UPDATE = 0x2D
    TRIM = 0x31
    RS_THIN_REQ = 0x32
    RS_DEALLOCATED = 0x33
    WSAME = 0x34
    ZEROES = 0x36
    FAREWELL = 0x7F01  # ours, see repl.drbd.farewell
    INITIAL_META = 0xFFF1
    INITIAL_DATA = 0xFFF2
    CONNECTION_FEATURES = 0xFFFE

    def __str__(self) -> str:
        return f"P_{self.name}"


ACK_PACKETS = frozenset(
    (
        Packet.RECV_ACK,
        Packet.WRITE_ACK,
        Packet.RS_WRITE_ACK,
        Packet.SUPERSEDED,
        Packet.NEG_ACK,
        Packet.NEG_DREPLY,
        Packet.NEG_RS_DREPLY,
        Packet.OV_RESULT,
        Packet.RS_IS_IN_SYNC,
        Packet.RS_CANCEL,
        Packet.RETRY_WRITE,
    )
)
META_PACKETS = ACK_PACKETS | {
    Packet.PING,
    Packet.PING_ACK,
    Packet.BARRIER_ACK,
    Packet.STATE_CHG_REPLY,
    Packet.CONN_ST_CHG_REPLY,
    Packet.DELAY_PROBE,
    Packet.INITIAL_META,
}
EMPTY_PACKETS = frozenset(
    (Packet.UNPLUG_REMOTE, Packet.PING, Packet.PING_ACK, Packet.INITIAL_META, Packet.INITIAL_DATA)
)
ALWAYS_H80_PACKETS = frozenset((Packet.INITIAL_META, Packet.INITIAL_DATA, Packet.CONNECTION_FEATURES))
# Packets of the connection, not of a volume: with h100 headers their volume is 0.
CONNECTION_PACKETS = frozenset(
    (
        Packet.PROTOCOL,
        Packet.PROTOCOL_UPDATE,
        Packet.AUTH_CHALLENGE,
        Packet.AUTH_RESPONSE,
        Packet.BARRIER,
        Packet.BARRIER_ACK,
        Packet.PING,
        Packet.PING_ACK,
        Packet.CONN_ST_CHG_REQ,
        Packet.CONN_ST_CHG_REPLY,
    )
)


def _refuse(packet: Packet | str, offset: int, what: str) -> NoReturn:
    raise ProtocolError(f"{packet}: {what} (body offset {offset}).")


def _exact(packet: Packet | str, body: bytes, length: int) -> None:
    if len(body) != length:
        _refuse(packet, min(len(body), length), f"the body has {len(body)} bytes, {length} are expected")


def _at_least(packet: Packet | str, body: bytes, length: int) -> None:
    if len(body) < length:
        _refuse(packet, len(body), f"the body has {len(body)} bytes, at least {length} are expected")


# --- headers ----------------------------------------------


class HeaderFormat(Enum):
    """The three header formats; the value is the size in bytes."""

    H80 = "h80"
    H95 = "h95"
    H100 = "h100"

    @property
    def size_bytes(self) -> int:
        return 16 if self is HeaderFormat.H100 else 8


MAGIC_H80 = 0x83740267
MAGIC_H95 = 0x835A
MAGIC_H100 = 0x8620EC20
_H80 = struct.Struct(">IHH")
_H95 = struct.Struct(">HHI")
_H100 = struct.Struct(">IHHII")


@dataclass(frozen=True, slots=True)
class Header:
    """A decoded header.  ``command`` is the raw code, ``length`` the body size in bytes."""

    command: int
    length: int
    volume: int
    format: HeaderFormat

    @property
    def packet(self) -> Packet:
        """The packet; ProtocolError if the code is not known."""
        try:
            return Packet(self.command)
        except ValueError:
            raise ProtocolError(f"Unknown packet 0x{self.command:02x} (l: {self.length}).") from None


def header_format(packet: Packet, body_bytes: int, version: int) -> HeaderFormat:
    """The header format that a sender has to use; ``version`` is the agreed protocol version."""
    if packet in ALWAYS_H80_PACKETS:
        return HeaderFormat.H80
    if version >= PROTOCOL_H100:
        return HeaderFormat.H100
    if version >= PROTOCOL_H95 and body_bytes > H80_BODY_BYTES_MAX:
        return HeaderFormat.H95
    return HeaderFormat.H80


def header_bytes(version: int) -> int:
    """Size of the headers to read once ``version`` is agreed."""
    return 16 if version >= PROTOCOL_H100 else 8


def encode_header(packet: Packet, body_bytes: int, *, volume: int = 0, version: int) -> bytes:
    """Header of a packet with a body of ``body_bytes``."""
    kind = header_format(packet, body_bytes, version)
    if kind is HeaderFormat.H100:
        if not 0 <= volume <= 0xFFFF or not 0 <= body_bytes <= 0xFFFFFFFF:
            raise ProtocolError(
                f"{packet}: volume {volume} or body size {body_bytes} does not fit the header."
            )
        return _H100.pack(MAGIC_H100, volume, packet, body_bytes, 0)
    if volume != 0:
        raise ProtocolError(f"{packet}: volume {volume} needs protocol {PROTOCOL_H100}, agreed is {version}.")
    if kind is HeaderFormat.H95:
        return _H95.pack(MAGIC_H95, packet, body_bytes)
    if body_bytes > 0xFFFF:
        raise ProtocolError(f"{packet}: a body of {body_bytes} bytes does not fit the header.")
    return _H80.pack(MAGIC_H80, packet, body_bytes)


def encode(packet: Packet, body: bytes, *, volume: int = 0, version: int) -> bytes:
    """A whole packet."""
    return encode_header(packet, len(body), volume=volume, version=version) + body


def decode_header(data: bytes) -> Header:
    """Decode the header at the start of ``data`` (8 bytes, or 16 if the magic is that of h100)."""
    if len(data) < 8:
        raise ProtocolError(f"Packet header: {len(data)} bytes, at least 8 are expected.")
    if int.from_bytes(data[:2], "big") == MAGIC_H95:
        _, command, length = _H95.unpack_from(data)
        return Header(command, length, 0, HeaderFormat.H95)
    magic = int.from_bytes(data[:4], "big")
    if magic == MAGIC_H80:
        _, command, length = _H80.unpack_from(data)
        return Header(command, length, 0, HeaderFormat.H80)
    if magic == MAGIC_H100:
        if len(data) < _H100.size:
            raise ProtocolError(f"Packet header: {len(data)} bytes, {_H100.size} are expected.")
        _, volume, command, length, pad = _H100.unpack_from(data)
        if pad != 0:
            raise ProtocolError(f"Header pad is 0x{pad:08x} instead of 0 (header offset 12).")
        return Header(command, length, volume, HeaderFormat.H100)
    raise ProtocolError(f"Wrong magic value 0x{magic:08x} in packet header (header offset 0).")


def expect_header(data: bytes, version: int) -> Header:
    """``decode_header`` plus the check that the format belongs to the agreed version."""
    header = decode_header(data)
    allowed = (
        (HeaderFormat.H100,)
        if version >= PROTOCOL_H100
        else (HeaderFormat.H80, HeaderFormat.H95)
        if version >= PROTOCOL_H95
        else (HeaderFormat.H80,)
    )
    if header.format not in allowed:
        raise ProtocolError(f"Header format {header.format.value} does not belong to protocol {version}.")
    return header


# --- what was agreed ----------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreed:
    """What decides about body layouts.  Digest sizes are bytes, 0 = algorithm not in use."""

    version: int = PROTOCOL_MAX
    features: Feature = Feature.KERNEL
    integrity_digest_bytes: int = 0
    verify_digest_bytes: int = 0
    csums_digest_bytes: int = 0

    @property
    def wsame(self) -> bool:
        return Feature.WSAME in self.features

    @property
    def request_bytes_max(self) -> int:
        """Largest request of this version."""
        if self.version >= PROTOCOL_H100:
            return 1024 * 1024
        return 128 * 1024 if self.version >= PROTOCOL_H95 else 32 * 1024

    @property
    def batch_bytes_max(self) -> int:
        """Largest trim or zeroes."""
        return BATCH_BYTES_MAX if self.wsame else BATCH_BYTES_MAX_NO_WSAME


def agree(mine: Features, peer: Features) -> tuple[int, Feature]:
    """Agreed version and features; ProtocolError if there is no common version."""
    if mine.highest < peer.protocol_min or mine.protocol_min > peer.highest:
        raise ProtocolError(
            f"Incompatible DRBD dialects: I support {mine.protocol_min}-{mine.highest}, "
            f"the peer supports {peer.protocol_min}-{peer.highest}."
        )
    return min(mine.highest, peer.highest), Feature(mine.feature_flags & peer.feature_flags)


# --- connection setup ----------------------------------------------


@dataclass(frozen=True, slots=True)
class Features:
    """P_CONNECTION_FEATURES.  ``feature_flags`` is the raw word."""

    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX
    feature_flags: int = Feature.KERNEL
    pad: bytes = bytes(4)
    reserved: bytes = bytes(56)

    @property
    def highest(self) -> int:
        """protocol_max, with the meaning of 0 resolved."""
        return self.protocol_max or self.protocol_min

    @classmethod
    def decode(cls, body: bytes) -> Features:
        _exact(Packet.CONNECTION_FEATURES, body, FEATURES_BODY_BYTES)
        lowest, flags, highest = struct.unpack_from(">III", body)
        return cls(lowest, highest, flags, body[12:16], body[16:])

    def encode(self) -> bytes:
        head = struct.pack(">III", self.protocol_min, self.feature_flags, self.protocol_max)
        return head + self.pad + self.reserved


@dataclass(frozen=True, slots=True)
class AuthChallenge:
    """P_AUTH_CHALLENGE: 64 random bytes; up to 128 are accepted."""

    challenge: bytes

    @classmethod
    def decode(cls, body: bytes) -> AuthChallenge:
        _at_least(Packet.AUTH_CHALLENGE, body, CHALLENGE_BYTES)
        if len(body) > CHALLENGE_BYTES_MAX:
            _refuse(Packet.AUTH_CHALLENGE, CHALLENGE_BYTES_MAX, f"the challenge has {len(body)} bytes")
        return cls(body)

    def encode(self) -> bytes:
        return self.challenge


@dataclass(frozen=True, slots=True)
class AuthResponse:
    """P_AUTH_RESPONSE: the HMAC; whoever knows the algorithm checks the length."""

    response: bytes

    @classmethod
    def decode(cls, body: bytes) -> AuthResponse:
        if not 1 <= len(body) <= DIGEST_BYTES_MAX:
            _refuse(Packet.AUTH_RESPONSE, min(len(body), DIGEST_BYTES_MAX), f"the HMAC has {len(body)} bytes")
        return cls(body)

    def encode(self) -> bytes:
        return self.response


def _name_text(packet: Packet, raw: bytes, offset: int) -> str:
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError as error:
        _refuse(packet, offset + error.start, "an algorithm name is not ASCII")


def _name_bytes(packet: Packet, name: str) -> bytes:
    raw = name.encode("ascii", "strict") if name.isascii() else b""
    if (name and not raw) or len(raw) >= ALG_NAME_BYTES or b"\0" in raw:
        raise ProtocolError(f"{packet}: the algorithm name {name!r} cannot be sent.")
    return raw


class ReplicationProtocol(IntEnum):
    """The letter of the configuration."""

    A = 1
    B = 2
    C = 3


class ConnectionFlag(IntFlag):
    """conn_flags of P_PROTOCOL."""

    NONE = 0
    DISCARD_MY_DATA = 1
    DRY_RUN = 2


@dataclass(frozen=True, slots=True)
class Protocol:
    """P_PROTOCOL and P_PROTOCOL_UPDATE.  ``integrity_alg`` is None below version 87 (field absent)."""

    protocol: ReplicationProtocol
    after_sb_0p: AfterSplitBrain = AfterSplitBrain.DISCONNECT
    after_sb_1p: AfterSplitBrain = AfterSplitBrain.DISCONNECT
    after_sb_2p: AfterSplitBrain = AfterSplitBrain.DISCONNECT
    conn_flags: ConnectionFlag = ConnectionFlag.NONE
    two_primaries: bool = False
    integrity_alg: str | None = ""

    INTEGRITY_VERSION: ClassVar[int] = 87

    @classmethod
    def decode(cls, body: bytes, version: int = PROTOCOL_MAX) -> Protocol:
        packet = Packet.PROTOCOL
        _at_least(packet, body, 24)
        letter, *policies, flags, two = struct.unpack_from(">6I", body)
        if letter not in (1, 2, 3):
            _refuse(packet, 0, f"protocol {letter} is not A, B or C")
        for index, number in enumerate(policies):
            if number > AfterSplitBrain.VIOLENTLY_AS_0P:
                _refuse(packet, 4 + 4 * index, f"after-sb-{index}pri has the undefined value {number}")
        if two not in (0, 1):
            _refuse(packet, 20, f"two_primaries is {two}")
        name: str | None = None
        if version < cls.INTEGRITY_VERSION:
            _exact(packet, body, 24)
        else:
            raw = body[24:]
            if not 1 <= len(raw) <= ALG_NAME_BYTES or raw[-1] != 0 or b"\0" in raw[:-1]:
                _refuse(packet, 24, "the integrity algorithm is not one NUL terminated name")
            name = _name_text(packet, raw[:-1], 24)
        zero, one, both = (AfterSplitBrain(number) for number in policies)
        letter_value = ReplicationProtocol(letter)
        return cls(letter_value, zero, one, both, ConnectionFlag(flags), bool(two), name)

    def encode(self, version: int = PROTOCOL_MAX) -> bytes:
        head = struct.pack(
            ">6I",
            self.protocol,
            self.after_sb_0p,
            self.after_sb_1p,
            self.after_sb_2p,
            self.conn_flags,
            self.two_primaries,
        )
        if version < self.INTEGRITY_VERSION:
            return head
        return head + _name_bytes(Packet.PROTOCOL, self.integrity_alg or "") + b"\0"


@dataclass(frozen=True, slots=True)
class SyncParam:
    """P_SYNC_PARAM89, and P_SYNC_PARAM below version 89.

    Fields that a version does not have are None.  Rates are KiB/s, times 0.1 s, c_fill_target sectors.
    ``verify_rest`` / ``csums_rest``: bytes after the NUL of the name, without trailing zeroes.
    """

    resync_rate: int = 250
    verify_alg: str | None = ""
    csums_alg: str | None = ""
    c_plan_ahead: int | None = 20
    c_delay_target: int | None = 10
    c_fill_target: int | None = 100
    c_max_rate: int | None = 102400
    verify_rest: bytes = b""
    csums_rest: bytes = b""

    VERIFY_VERSION: ClassVar[int] = 88
    CSUMS_VERSION: ClassVar[int] = 89

    @staticmethod
    def packet_for(version: int) -> Packet:
        """The command of this version."""
        return Packet.SYNC_PARAM89 if version >= 89 else Packet.SYNC_PARAM

    @staticmethod
    def _name(packet: Packet, body: bytes, offset: int) -> tuple[str, bytes]:
        raw = body[offset : offset + ALG_NAME_BYTES]
        name, nul, rest = raw.partition(b"\0")
        if not nul:
            _refuse(packet, offset, "an algorithm name is not NUL terminated")
        return _name_text(packet, name, offset), rest.rstrip(b"\0")

    @classmethod
    def decode(cls, body: bytes, version: int = PROTOCOL_MAX) -> SyncParam:
        packet = cls.packet_for(version)
        _at_least(packet, body, 4)
        rate = int.from_bytes(body[:4], "big")
        if version < 88:
            _exact(packet, body, 4)
            return cls(rate, None, None, None, None, None, None)
        if version < 89:
            raw = body[4:]
            if not 1 <= len(raw) <= ALG_NAME_BYTES or raw[-1] != 0 or b"\0" in raw[:-1]:
                _refuse(packet, 4, "the verify algorithm is not one NUL terminated name")
            return cls(rate, _name_text(packet, raw[:-1], 4), None, None, None, None, None)
        _exact(packet, body, 148 if version >= PROTOCOL_H95 else 132)
        verify, verify_rest = cls._name(packet, body, 4)
        csums, csums_rest = cls._name(packet, body, 68)
        if version < PROTOCOL_H95:
            return cls(rate, verify, csums, None, None, None, None, verify_rest, csums_rest)
        plan, delay, fill, highest = struct.unpack_from(">4I", body, 132)
        return cls(rate, verify, csums, plan, delay, fill, highest, verify_rest, csums_rest)

    def encode(self, version: int = PROTOCOL_MAX) -> bytes:
        packet = self.packet_for(version)
        head = struct.pack(">I", self.resync_rate)
        if version < 88:
            return head
        verify = _name_bytes(packet, self.verify_alg or "") + b"\0"
        if version < 89:
            return head + verify
        csums = _name_bytes(packet, self.csums_alg or "") + b"\0"
        names = (verify + self.verify_rest).ljust(ALG_NAME_BYTES, b"\0")
        names += (csums + self.csums_rest).ljust(ALG_NAME_BYTES, b"\0")
        if len(names) != 2 * ALG_NAME_BYTES:
            raise ProtocolError(f"{packet}: the algorithm names do not fit.")
        if version < PROTOCOL_H95:
            return head + names
        tail = (self.c_plan_ahead, self.c_delay_target, self.c_fill_target, self.c_max_rate)
        return head + names + struct.pack(">4I", *(number or 0 for number in tail))


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The 24 bytes that P_SIZES has in addition if WSAME is agreed; sizes in bytes."""

    physical_block_size: int = 512
    logical_block_size: int = 512
    alignment_offset: int = 0
    io_min: int = 512
    io_opt: int = 0
    discard_enabled: int = 1
    discard_zeroes_data: int = 0
    write_same_capable: int = 0
    pad: int = 0

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct(">5I4B")

    @classmethod
    def decode(cls, body: bytes) -> QueueLimits:
        return cls(*cls._LAYOUT.unpack(body))

    def encode(self) -> bytes:
        return self._LAYOUT.pack(
            self.physical_block_size,
            self.logical_block_size,
            self.alignment_offset,
            self.io_min,
            self.io_opt,
            self.discard_enabled,
            self.discard_zeroes_data,
            self.write_same_capable,
            self.pad,
        )


class SizeFlag(IntFlag):
    """dds_flags of P_SIZES."""

    NONE = 0
    FORCED = 1
    NO_RESYNC = 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """P_SIZES.  d_size, u_size, c_size in sectors, max_bio_size in bytes; limits exactly if WSAME is
    agreed.
    """

    d_size: int
    u_size: int
    c_size: int
    max_bio_size: int
    queue_order_type: int = 0
    dds_flags: SizeFlag = SizeFlag.NONE
    limits: QueueLimits | None = None

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct(">QQQIHH")

    @classmethod
    def decode(cls, body: bytes, *, wsame: bool) -> Sizes:
        _exact(Packet.SIZES, body, 56 if wsame else 32)
        d_size, u_size, c_size, max_bio, order, flags = cls._LAYOUT.unpack_from(body)
        limits = QueueLimits.decode(body[32:]) if wsame else None
        return cls(d_size, u_size, c_size, max_bio, order, SizeFlag(flags), limits)

    def encode(self) -> bytes:
        """The body; with limits if there are any."""
        fixed = self._LAYOUT.pack(
            self.d_size, self.u_size, self.c_size, self.max_bio_size, self.queue_order_type, self.dds_flags
        )
        return fixed + (self.limits.encode() if self.limits is not None else b"")


@dataclass(frozen=True, slots=True)
class UuidReport:
    """P_UUIDS."""

    uuids: Uuids
    dirty_bits: int = 0
    flags: UuidFlag = UuidFlag.NONE

    @classmethod
    def decode(cls, body: bytes) -> UuidReport:
        _exact(Packet.UUIDS, body, 48)
        current, bitmap, history1, history2, dirty_bits, flags = struct.unpack(">6Q", body)
        return cls(Uuids(current, bitmap, history1, history2), dirty_bits, UuidFlag(flags))

    def encode(self) -> bytes:
        slots = self.uuids
        return struct.pack(
            ">6Q", slots.current, slots.bitmap, slots.history1, slots.history2, self.dirty_bits, self.flags
        )


@dataclass(frozen=True, slots=True)
class State:
    """P_STATE: the sender's view."""

    state: StateWord

    @classmethod
    def decode(cls, body: bytes) -> State:
        _exact(Packet.STATE, body, 4)
        return cls(StateWord.unpack(int.from_bytes(body, "big")))

    def encode(self) -> bytes:
        return self.state.pack().to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class SyncUuid:
    """P_SYNC_UUID: the source's new bitmap UUID."""

    uuid: int

    @classmethod
    def decode(cls, body: bytes) -> SyncUuid:
        _exact(Packet.SYNC_UUID, body, 8)
        return cls(int.from_bytes(body, "big"))

    def encode(self) -> bytes:
        return self.uuid.to_bytes(8, "big")


@dataclass(frozen=True, slots=True)
class StateChangeRequest:
    """P_STATE_CHG_REQ and P_CONN_ST_CHG_REQ, in the requester's view."""

    change: StateChange

    @classmethod
    def decode(cls, body: bytes) -> StateChangeRequest:
        _exact(Packet.STATE_CHG_REQ, body, 8)
        return cls(StateChange(*struct.unpack(">II", body)))

    def encode(self) -> bytes:
        return struct.pack(">II", self.change.mask, self.change.value)


@dataclass(frozen=True, slots=True)
class StateChangeReply:
    """P_STATE_CHG_REPLY and P_CONN_ST_CHG_REPLY: a state code, success if >= 1."""

    code: int

    @property
    def success(self) -> bool:
        return self.code >= 1

    @property
    def text(self) -> str:
        return state_code_text(self.code)

    @classmethod
    def decode(cls, body: bytes) -> StateChangeReply:
        _exact(Packet.STATE_CHG_REPLY, body, 4)
        return cls(int.from_bytes(body, "big", signed=True))

    def encode(self) -> bytes:
        return self.code.to_bytes(4, "big", signed=True)


def peer_side(report: UuidReport, state: StateWord) -> Side:
    """What the peer brings into the handshake: its P_UUIDS and its P_STATE.

    A disk that is still Negotiating counts as what flag 4 of P_UUIDS says it will be.
    """
    disk = state.disk
    if disk == DiskState.NEGOTIATING:
        inconsistent = UuidFlag.INCONSISTENT in report.flags
        disk = DiskState.INCONSISTENT if inconsistent else DiskState.CONSISTENT
    return Side(
        uuids=report.uuids,
        role=state.role,
        disk=disk,
        dirty_bits=report.dirty_bits,
        crashed_primary=UuidFlag.CRASHED_PRIMARY in report.flags,
        discard_my_data=UuidFlag.DISCARD_MY_DATA in report.flags,
    )


# --- data ----------------------------------------------


class DataFlag(IntFlag):
    """dp_flags."""

    NONE = 0
    HARDBARRIER = 1
    RW_SYNC = 2
    MAY_SET_IN_SYNC = 4
    UNPLUG = 8
    FUA = 16
    FLUSH = 32
    DISCARD = 64
    SEND_RECEIVE_ACK = 128
    SEND_WRITE_ACK = 256
    WSAME = 512
    ZEROES = 1024


_DATA_HEAD = struct.Struct(">Q8sII")
DATA_HEAD_BYTES = _DATA_HEAD.size


@dataclass(frozen=True, slots=True)
class Data:
    """P_DATA, P_DATA_REPLY, P_RS_DATA_REPLY.  ``digest`` is empty without data-integrity-alg."""

    sector: int
    block_id: bytes
    seq_num: int
    dp_flags: DataFlag
    data: bytes
    digest: bytes = b""

    @classmethod
    def decode(cls, body: bytes, agreed: Agreed, packet: Packet = Packet.DATA) -> Data:
        _at_least(packet, body, DATA_HEAD_BYTES + agreed.integrity_digest_bytes)
        sector, block_id, seq_num, flags = _DATA_HEAD.unpack_from(body)
        start = DATA_HEAD_BYTES + agreed.integrity_digest_bytes
        size = len(body) - start
        if size % SECTOR_BYTES or size > agreed.request_bytes_max:
            _refuse(packet, start, f"the payload of {size} bytes is no whole number of sectors or too long")
        if size == 0 and not (packet is Packet.DATA and flags & DataFlag.FLUSH):
            _refuse(packet, start, "there is no payload")
        return cls(sector, block_id, seq_num, DataFlag(flags), body[start:], body[DATA_HEAD_BYTES:start])

    def encode(self) -> bytes:
        head = _DATA_HEAD.pack(self.sector, self.block_id, self.seq_num, self.dp_flags)
        return head + self.digest + self.data


@dataclass(frozen=True, slots=True)
class Batch:
    """P_TRIM and P_ZEROES: no payload."""

    sector: int
    block_id: bytes
    seq_num: int
    dp_flags: DataFlag
    size_bytes: int

    @classmethod
    def decode(cls, body: bytes, agreed: Agreed, packet: Packet = Packet.TRIM) -> Batch:
        _exact(packet, body, DATA_HEAD_BYTES + 4)
        sector, block_id, seq_num, flags = _DATA_HEAD.unpack_from(body)
        size = int.from_bytes(body[DATA_HEAD_BYTES:], "big")
        if size == 0 or size % SECTOR_BYTES or size > agreed.batch_bytes_max:
            _refuse(packet, DATA_HEAD_BYTES, f"the size of {size} bytes is not allowed")
        return cls(sector, block_id, seq_num, DataFlag(flags), size)

    def encode(self) -> bytes:
        head = _DATA_HEAD.pack(self.sector, self.block_id, self.seq_num, self.dp_flags)
        return head + self.size_bytes.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class WriteSame:
    """P_WSAME: one logical block of data that is repeated over ``size_bytes``."""

    sector: int
    block_id: bytes
    seq_num: int
    dp_flags: DataFlag
    size_bytes: int
    data: bytes
    digest: bytes = b""

    @classmethod
    def decode(cls, body: bytes, agreed: Agreed) -> WriteSame:
        packet = Packet.WSAME
        head_bytes = DATA_HEAD_BYTES + 4
        start = head_bytes + agreed.integrity_digest_bytes
        _at_least(packet, body, start)
        sector, block_id, seq_num, flags = _DATA_HEAD.unpack_from(body)
        size = int.from_bytes(body[DATA_HEAD_BYTES:head_bytes], "big")
        block_bytes = len(body) - start
        if block_bytes < SECTOR_BYTES or block_bytes > 4096 or block_bytes & (block_bytes - 1):
            _refuse(packet, start, f"the payload of {block_bytes} bytes is no logical block")
        if size == 0 or size % block_bytes or size > agreed.batch_bytes_max:
            _refuse(packet, DATA_HEAD_BYTES, f"the size of {size} bytes is not allowed")
        digest = body[head_bytes:start]
        return cls(sector, block_id, seq_num, DataFlag(flags), size, body[start:], digest)

    def encode(self) -> bytes:
        head = _DATA_HEAD.pack(self.sector, self.block_id, self.seq_num, self.dp_flags)
        return head + self.size_bytes.to_bytes(4, "big") + self.digest + self.data


_BLOCK = struct.Struct(">Q8sI4s")
BLOCK_HEAD_BYTES = _BLOCK.size


def _check_request_size(packet: Packet, size: int, highest: int) -> None:
    if size == 0 or size % SECTOR_BYTES or size > highest:
        _refuse(packet, 16, f"the size of {size} bytes is not allowed")


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """P_DATA_REQUEST, P_RS_DATA_REQUEST, P_RS_THIN_REQ, P_OV_REQUEST.  ``pad`` may be garbage."""

    sector: int
    block_id: bytes
    size_bytes: int
    pad: bytes = bytes(4)

    @classmethod
    def decode(cls, body: bytes, agreed: Agreed, packet: Packet = Packet.DATA_REQUEST) -> BlockRequest:
        _exact(packet, body, BLOCK_HEAD_BYTES)
        request = cls(*_BLOCK.unpack(body))
        _check_request_size(packet, request.size_bytes, agreed.request_bytes_max)
        return request

    def encode(self) -> bytes:
        return _BLOCK.pack(self.sector, self.block_id, self.size_bytes, self.pad)


@dataclass(frozen=True, slots=True)
class DigestRequest:
    """P_CSUM_RS_REQUEST and P_OV_REPLY: a block request followed by the digest of the sender's content."""

    sector: int
    block_id: bytes
    size_bytes: int
    digest: bytes
    pad: bytes = bytes(4)

    @classmethod
    def decode(cls, body: bytes, agreed: Agreed, packet: Packet = Packet.OV_REPLY) -> DigestRequest:
        digest_bytes = agreed.verify_digest_bytes if packet is Packet.OV_REPLY else agreed.csums_digest_bytes
        if digest_bytes == 0:
            _refuse(packet, BLOCK_HEAD_BYTES, "no algorithm is agreed for it")
        _exact(packet, body, BLOCK_HEAD_BYTES + digest_bytes)
        sector, block_id, size, pad = _BLOCK.unpack_from(body)
        _check_request_size(packet, size, agreed.request_bytes_max)
        return cls(sector, block_id, size, body[BLOCK_HEAD_BYTES:], pad)

    def encode(self) -> bytes:
        return _BLOCK.pack(self.sector, self.block_id, self.size_bytes, self.pad) + self.digest


_ACK = struct.Struct(">Q8sII")
ACK_BYTES = _ACK.size


@dataclass(frozen=True, slots=True)
class Ack:
    """The 24-byte body of all packets in ``ACK_PACKETS``."""

    sector: int
    block_id: bytes
    size_bytes: int
    seq_num: int

    @classmethod
    def decode(cls, body: bytes, packet: Packet = Packet.WRITE_ACK) -> Ack:
        _exact(packet, body, ACK_BYTES)
        return cls(*_ACK.unpack(body))

    def encode(self) -> bytes:
        return _ACK.pack(self.sector, self.block_id, self.size_bytes, self.seq_num)


@dataclass(frozen=True, slots=True)
class Barrier:
    """P_BARRIER: an opaque number that is echoed byte for byte."""

    barrier: bytes
    pad: bytes = bytes(4)

    @classmethod
    def decode(cls, body: bytes) -> Barrier:
        _exact(Packet.BARRIER, body, 8)
        return cls(body[:4], body[4:])

    def encode(self) -> bytes:
        return self.barrier + self.pad


@dataclass(frozen=True, slots=True)
class BarrierAck:
    """P_BARRIER_ACK: the echoed number and the count of writes of the epoch."""

    barrier: bytes
    set_size: int

    @classmethod
    def decode(cls, body: bytes) -> BarrierAck:
        _exact(Packet.BARRIER_ACK, body, 8)
        return cls(body[:4], int.from_bytes(body[4:], "big"))

    def encode(self) -> bytes:
        return self.barrier + self.set_size.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class OutOfSync:
    """P_OUT_OF_SYNC and P_RS_DEALLOCATED.  ``pad`` may be garbage."""

    sector: int
    size_bytes: int
    pad: bytes = bytes(4)

    @classmethod
    def decode(cls, body: bytes, packet: Packet = Packet.OUT_OF_SYNC) -> OutOfSync:
        _exact(packet, body, 16)
        sector, size, pad = struct.unpack(">QI4s", body)
        if size == 0 or size % SECTOR_BYTES:
            _refuse(packet, 8, f"the size of {size} bytes is not allowed")
        return cls(sector, size, pad)

    def encode(self) -> bytes:
        return struct.pack(">QI4s", self.sector, self.size_bytes, self.pad)


@dataclass(frozen=True, slots=True)
class Bitmap:
    """P_BITMAP: the next plain bytes of the bitmap, whole 64-bit words; empty = end mark."""

    chunk: bytes

    @classmethod
    def decode(cls, body: bytes, agreed: Agreed) -> Bitmap:
        highest = BITMAP_PACKET_BYTES_MAX - header_bytes(agreed.version)
        if len(body) % 8 or len(body) > highest:
            _refuse(Packet.BITMAP, min(len(body), highest), f"a chunk of {len(body)} bytes is not allowed")
        return cls(body)

    def encode(self) -> bytes:
        return self.chunk


@dataclass(frozen=True, slots=True)
class CompressedBitmap:
    """P_COMPRESSED_BITMAP: encoding byte and bit stream (see bitmap_code)."""

    encoding: int
    stream: bytes

    @property
    def code(self) -> int:
        return self.encoding & 0x0F

    @property
    def pad_bits(self) -> int:
        return (self.encoding >> 4) & 7

    @property
    def starts_set(self) -> bool:
        return bool(self.encoding & 0x80)

    @classmethod
    def decode(cls, body: bytes, agreed: Agreed) -> CompressedBitmap:
        packet = Packet.COMPRESSED_BITMAP
        _at_least(packet, body, 2)
        highest = BITMAP_PACKET_BYTES_MAX - header_bytes(agreed.version)
        if len(body) > highest:
            _refuse(packet, highest, f"a body of {len(body)} bytes is too long")
        compressed = cls(body[0], body[1:])
        if compressed.code != 2:
            _refuse(packet, 0, f"unknown bitmap code {compressed.code}")
        return compressed

    def encode(self) -> bytes:
        return bytes((self.encoding,)) + self.stream


@dataclass(frozen=True, slots=True)
class DelayProbe:
    """P_DELAY_PROBE: never sent by 8.4, skipped when received."""

    seq_num: int
    offset_us: int

    @classmethod
    def decode(cls, body: bytes) -> DelayProbe:
        _exact(Packet.DELAY_PROBE, body, 8)
        return cls(*struct.unpack(">II", body))

    def encode(self) -> bytes:
        return struct.pack(">II", self.seq_num, self.offset_us)


@dataclass(frozen=True, slots=True)
class Empty:
    """A packet without body."""

    def encode(self) -> bytes:
        return b""


Body: TypeAlias = (
    Features
    | AuthChallenge
    | AuthResponse
    | Protocol
    | SyncParam
    | Sizes
    | UuidReport
    | State
    | SyncUuid
    | StateChangeRequest
    | StateChangeReply
    | Data
    | Batch
    | WriteSame
    | BlockRequest
    | DigestRequest
    | Ack
    | Barrier
    | BarrierAck
    | OutOfSync
    | Bitmap
    | CompressedBitmap
    | DelayProbe
    | Empty
)

_Fixed: TypeAlias = type[
    Features
    | AuthChallenge
    | AuthResponse
    | UuidReport
    | State
    | SyncUuid
    | StateChangeRequest
    | StateChangeReply
    | Barrier
    | BarrierAck
    | DelayProbe
]

_FIXED_BODIES: Mapping[Packet, _Fixed] = MappingProxyType(
    {
        Packet.CONNECTION_FEATURES: Features,
        Packet.AUTH_CHALLENGE: AuthChallenge,
        Packet.AUTH_RESPONSE: AuthResponse,
        Packet.UUIDS: UuidReport,
        Packet.STATE: State,
        Packet.SYNC_UUID: SyncUuid,
        Packet.STATE_CHG_REQ: StateChangeRequest,
        Packet.CONN_ST_CHG_REQ: StateChangeRequest,
        Packet.STATE_CHG_REPLY: StateChangeReply,
        Packet.CONN_ST_CHG_REPLY: StateChangeReply,
        Packet.BARRIER: Barrier,
        Packet.BARRIER_ACK: BarrierAck,
        Packet.DELAY_PROBE: DelayProbe,
    }
)


def decode_body(packet: Packet, body: bytes, agreed: Agreed) -> Body:
    """Decode the body of any packet; ProtocolError for packets that 8.4 does not handle."""
    if packet in EMPTY_PACKETS:
        _exact(packet, body, 0)
        return Empty()
    fixed = _FIXED_BODIES.get(packet)
    if fixed is not None:
        return fixed.decode(body)
    if packet in ACK_PACKETS:
        return Ack.decode(body, packet)
    match packet:
        case Packet.DATA | Packet.DATA_REPLY | Packet.RS_DATA_REPLY:
            return Data.decode(body, agreed, packet)
        case Packet.TRIM | Packet.ZEROES:
            return Batch.decode(body, agreed, packet)
        case Packet.WSAME:
            return WriteSame.decode(body, agreed)
        case Packet.DATA_REQUEST | Packet.RS_DATA_REQUEST | Packet.RS_THIN_REQ | Packet.OV_REQUEST:
            return BlockRequest.decode(body, agreed, packet)
        case Packet.CSUM_RS_REQUEST | Packet.OV_REPLY:
            return DigestRequest.decode(body, agreed, packet)
        case Packet.OUT_OF_SYNC | Packet.RS_DEALLOCATED:
            return OutOfSync.decode(body, packet)
        case Packet.BITMAP:
            return Bitmap.decode(body, agreed)
        case Packet.COMPRESSED_BITMAP:
            return CompressedBitmap.decode(body, agreed)
        case Packet.PROTOCOL | Packet.PROTOCOL_UPDATE:
            return Protocol.decode(body, agreed.version)
        case Packet.SYNC_PARAM | Packet.SYNC_PARAM89:
            if packet is not SyncParam.packet_for(agreed.version):
                _refuse(packet, 0, f"it does not belong to protocol {agreed.version}")
            return SyncParam.decode(body, agreed.version)
        case Packet.SIZES:
            return Sizes.decode(body, wsame=agreed.wsame)
        case _:
            _refuse(packet, 0, "this packet is not used by DRBD 8.4")


def encode_body(body: Body, agreed: Agreed) -> bytes:
    """Encode any body."""
    if isinstance(body, Protocol | SyncParam):
        return body.encode(agreed.version)
    if isinstance(body, Sizes) and (body.limits is not None) != agreed.wsame:
        raise ProtocolError(f"{Packet.SIZES}: queue limits must be sent exactly if WSAME is agreed.")
    return body.encode()
