# SPDX-License-Identifier: Apache-2.0
"""What the control plane tells the engine: one frozen dataclass for each command of repl_engine.h.

Inputs: numbers in the units of their names (bytes, milliseconds, KiB/s; DRBD's 0.1 s where there is none).
Outputs: :func:`encode_command` turns a command into a ``struct re_command`` and its blob for any cffi
module that was made from that header (the product's engine and the simulator's).  Roles, connection and
disk states are DRBD's numbers.  Fields of a command named ``volume``, ``stream`` and ``fd`` go to the
struct's member of that name, a nested value (``attach``, ``state``, …) to the nested struct, and a
``bytes`` field is the blob.
Errors: OverflowError from cffi when a number does not fit its member, ValueError from a value that cannot
be right.  Facts: csrc/include/repl_engine.h.  Nothing here needs the compiled module.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass, field
from typing import Any, ClassVar

VOLUMES_MAX = 64
STREAMS_MAX = 256
SUPERBLOCK_BYTES = 4096


class CommandType(enum.IntEnum):
    """``enum re_command_type``."""

    NONE = 0
    VOLUME_ATTACH = 1
    VOLUME_DETACH = 2
    VOLUME_STATE = 3
    VOLUME_RESYNC = 4
    MD_WRITE = 5
    BITMAP_SET_ALL = 6
    BITMAP_CLEAR_ALL = 7
    BITMAP_WRITE = 8
    AL_INITIALIZE = 9
    VOLUME_DRAIN = 10
    STREAM_ADD = 11
    STREAM_SEND = 12
    STREAM_RESUME = 13
    STREAM_CLOSE = 14
    LINK_UP = 15
    LINK_DOWN = 16
    LINK_RESOLVE = 17
    PING = 18
    LINK_OPTIONS = 19
    BITMAP_SEND = 20
    NBD_ADD = 21
    NBD_CLOSE = 22
    STOP = 23
    LINK_KEEP = 24
    LINK_RESEND = 25
    VOLUME_QUIESCE = 60
    VOLUME_GIVE_UP = 61
    VOLUME_SIZE = 62
    AL_HOLD = 63
    VOLUME_RESIZE = 64
    MD_WIPE = 65
    VERIFY_ORDER = 70
    VERIFY_STOP = 71
    UNDO_START = 80
    UNDO_STOP = 81
    UNDO_CANCEL = 82


class AttachFlags(enum.IntFlag):
    """``enum re_attach_flags``."""

    BITMAP_ALL_SET = 1
    NO_DISK_FLUSHES = 2
    NO_DISK_DRAIN = 4
    NO_MD_FLUSHES = 8
    DIRECT = 16
    INLINE = 32
    BITMAP_EMPTY = 64
    KEEP_ALLOCATED = 128
    PASS_ON = 256
    NO_AL = 512
    DATA_NBD = 1024
    MD_NBD = 2048
    PAGE_CACHE = 4096


class NbdFlags(enum.IntFlag):
    """``enum re_nbd_flags``."""

    READ_ONLY = 1
    STRUCTURED = 2
    ALLOCATION = 4
    UNDO = 8


# ---- values (the nested structs) -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attach:
    """``struct re_attach``: where a volume's data and metadata lie (offsets in bytes on ``md_fd``)."""

    data_fd: int
    md_fd: int
    size_bytes: int
    superblock_offset: int
    al_offset: int
    bitmap_offset: int
    bitmap_bytes: int
    al_extents: int = 1237
    al_stripes: int = 1
    al_stripe_size_4k: int = 8
    flags: AttachFlags = AttachFlags(0)
    disk_timeout_ms: int = 0
    read_balancing: int = 0
    discard_granularity: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """``struct re_state``: a volume's states as DRBD's numbers."""

    role: int
    peer_role: int
    connection: int
    disk: int
    peer_disk: int
    suspended: bool = False
    no_data_waits: bool = False


@dataclass(frozen=True, slots=True)
class Resync:
    """``struct re_resync``: the resync controller's settings; the defaults are DRBD's."""

    resync_rate_kib: int = 250
    plan_ahead: int = 20
    delay_target: int = 10
    fill_target: int = 100
    max_rate_kib: int = 102400
    min_rate_kib: int = 250
    discard_granularity: int = 0
    use_csums: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """``struct re_link``: the replication link's sockets, agreed version and network options."""

    data_stream: int
    meta_stream: int
    version: int
    features: int = 0
    protocol: int = 3
    timeout_ms: int = 6000
    ping_int_ms: int = 10000
    ping_timeout_ms: int = 500
    ko_count: int = 7
    max_epoch_size: int = 2048
    max_buffers: int = 2048
    integrity_alg: int = 0
    peer_integrity_alg: int = 0
    verify_alg: int = 0
    csums_alg: int = 0
    congestion_extents: int = 0
    congestion_fill_bytes: int = 0
    strict_flush: bool = True
    use_rle: bool = True
    resolve_conflicts: bool = False
    peer_is_ours: bool = False
    keep_data: bool = False
    two_primaries: bool = False
    on_congestion: bool = False


@dataclass(frozen=True, slots=True)
class Verify:
    """``struct re_verify``: what is to be compared."""

    start_sector: int = 0
    stop_sector: int = (1 << 64) - 1  # to the end


@dataclass(frozen=True, slots=True)
class Nbd:
    """``struct re_nbd``: an NBD client's socket and what its negotiation agreed on."""

    fd: int
    flags: NbdFlags = NbdFlags(0)
    context_id: int = 0


@dataclass(frozen=True, slots=True)
class UndoFiles:
    """``struct re_undo``: where what is overwritten is kept."""

    overlay_fd: int
    map_fd: int


# ---- commands --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VolumeAttach:
    """Take a volume's disk into use; DONE comes when the bitmap has been read."""

    type: ClassVar[CommandType] = CommandType.VOLUME_ATTACH
    volume: int
    attach: Attach


@dataclass(frozen=True, slots=True)
class VolumeDetach:
    """Wait for disk operations in flight, then forget the disk; after DONE the descriptors are free."""

    type: ClassVar[CommandType] = CommandType.VOLUME_DETACH
    volume: int


@dataclass(frozen=True, slots=True)
class VolumeQuiesce:
    """Before an orderly detach: DONE when nothing of what was written is open any more and all of it is stable."""

    type: ClassVar[CommandType] = CommandType.VOLUME_QUIESCE
    volume: int


@dataclass(frozen=True, slots=True)
class VolumeGiveUp:
    """Do not wait for the disk any more if an operation is older than ``value`` ms: what is in flight fails."""

    type: ClassVar[CommandType] = CommandType.VOLUME_GIVE_UP
    volume: int
    value: int = 0


@dataclass(frozen=True, slots=True)
class VolumeSize:
    """The size of the peer's device (``value`` bytes), for a volume without a disk."""

    type: ClassVar[CommandType] = CommandType.VOLUME_SIZE
    volume: int
    value: int


@dataclass(frozen=True, slots=True)
class AlHold:
    """``value`` 1: no write enters the activity log, DONE when it is empty; 0: open again."""

    type: ClassVar[CommandType] = CommandType.AL_HOLD
    volume: int
    value: int


@dataclass(frozen=True, slots=True)
class VolumeResize:
    """Another size and another place of the metadata, in memory only; ends with DONE."""

    type: ClassVar[CommandType] = CommandType.VOLUME_RESIZE
    volume: int
    attach: Attach


@dataclass(frozen=True, slots=True)
class MdWipe:
    """Zero ``value`` bytes of what was metadata, from ``attach.superblock_offset`` on; ends with DONE."""

    type: ClassVar[CommandType] = CommandType.MD_WIPE
    volume: int
    attach: Attach
    value: int


@dataclass(frozen=True, slots=True)
class VolumeState:
    """The volume's states as decided; takes effect at once."""

    type: ClassVar[CommandType] = CommandType.VOLUME_STATE
    volume: int
    state: State


@dataclass(frozen=True, slots=True)
class VolumeResync:
    """New settings of the volume's resync controller."""

    type: ClassVar[CommandType] = CommandType.VOLUME_RESYNC
    volume: int
    resync: Resync


@dataclass(frozen=True, slots=True)
class MdWrite:
    """Write the superblock (4096 bytes) and make it stable; ends with DONE."""

    type: ClassVar[CommandType] = CommandType.MD_WRITE
    volume: int
    superblock: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.superblock) != SUPERBLOCK_BYTES:
            raise ValueError(f"a superblock has {SUPERBLOCK_BYTES} bytes, not {len(self.superblock)}")


@dataclass(frozen=True, slots=True)
class BitmapSetAll:
    """Set every bit of the bitmap and write it; ends with DONE."""

    type: ClassVar[CommandType] = CommandType.BITMAP_SET_ALL
    volume: int


@dataclass(frozen=True, slots=True)
class BitmapClearAll:
    """Clear every bit of the bitmap and write it; ends with DONE."""

    type: ClassVar[CommandType] = CommandType.BITMAP_CLEAR_ALL
    volume: int


@dataclass(frozen=True, slots=True)
class BitmapWrite:
    """Write all changed bitmap pages and flush; ends with DONE."""

    type: ClassVar[CommandType] = CommandType.BITMAP_WRITE
    volume: int


@dataclass(frozen=True, slots=True)
class AlInitialize:
    """Rewrite the whole activity log as initialized blocks and flush; ends with DONE."""

    type: ClassVar[CommandType] = CommandType.AL_INITIALIZE
    volume: int


@dataclass(frozen=True, slots=True)
class VolumeDrain:
    """DONE when no application request is in flight and every replicated write is barrier-acked."""

    type: ClassVar[CommandType] = CommandType.VOLUME_DRAIN
    volume: int


@dataclass(frozen=True, slots=True)
class StreamAdd:
    """A connected socket, known as ``stream`` from now on.  The engine takes ``fd`` over."""

    type: ClassVar[CommandType] = CommandType.STREAM_ADD
    stream: int
    fd: int


@dataclass(frozen=True, slots=True)
class StreamSend:
    """Send whole packets, header included."""

    type: ClassVar[CommandType] = CommandType.STREAM_SEND
    stream: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StreamResume:
    """Go on parsing a stream that stopped after a PACKET event."""

    type: ClassVar[CommandType] = CommandType.STREAM_RESUME
    stream: int


@dataclass(frozen=True, slots=True)
class StreamClose:
    """Close a stream."""

    type: ClassVar[CommandType] = CommandType.STREAM_CLOSE
    stream: int


@dataclass(frozen=True, slots=True)
class LinkUp:
    """Two streams become the replication link."""

    type: ClassVar[CommandType] = CommandType.LINK_UP
    link: Link


@dataclass(frozen=True, slots=True)
class LinkDown:
    """Give the link up: both sockets are closed, no LINK_LOST follows."""

    type: ClassVar[CommandType] = CommandType.LINK_DOWN


@dataclass(frozen=True, slots=True)
class LinkResolve:
    """After LINK_LOST or :class:`LinkDown`, once the new states are set; ends with DONE."""

    type: ClassVar[CommandType] = CommandType.LINK_RESOLVE


@dataclass(frozen=True, slots=True)
class LinkKeep:
    """Instead of :class:`LinkResolve` while I/O is suspended: keep what the peer did not confirm; ends with DONE."""

    type: ClassVar[CommandType] = CommandType.LINK_KEEP


@dataclass(frozen=True, slots=True)
class LinkResend:
    """Send over the new link what was kept; DONE: OK when queued, CANCELED when it has to be given up."""

    type: ClassVar[CommandType] = CommandType.LINK_RESEND


@dataclass(frozen=True, slots=True)
class Ping:
    """Send P_PING; DONE with its acknowledgement, or CANCELED when the link breaks first."""

    type: ClassVar[CommandType] = CommandType.PING


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """New options while the link is up.  ``packet`` goes out on the data socket before anything under the new ones."""

    type: ClassVar[CommandType] = CommandType.LINK_OPTIONS
    link: Link
    packet: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class BitmapSend:
    """Send the volume's whole bitmap; DONE when it is queued completely."""

    type: ClassVar[CommandType] = CommandType.BITMAP_SEND
    volume: int


@dataclass(frozen=True, slots=True)
class VerifyOrder:
    """What VerifyS is to compare; before the state that makes it VerifyS."""

    type: ClassVar[CommandType] = CommandType.VERIFY_ORDER
    volume: int
    verify: Verify


@dataclass(frozen=True, slots=True)
class VerifyStop:
    """VerifyS asks for nothing more; VERIFY_FINISHED follows."""

    type: ClassVar[CommandType] = CommandType.VERIFY_STOP
    volume: int


@dataclass(frozen=True, slots=True)
class NbdAdd:
    """An NBD client that has finished negotiation.  ``leftover``: bytes that were read ahead."""

    type: ClassVar[CommandType] = CommandType.NBD_ADD
    volume: int
    stream: int
    nbd: Nbd
    leftover: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class NbdClose:
    """Close an NBD client."""

    type: ClassVar[CommandType] = CommandType.NBD_CLOSE
    stream: int


@dataclass(frozen=True, slots=True)
class UndoStart:
    """Keep what is overwritten from now on; after DONE nothing unsaved is overwritten any more."""

    type: ClassVar[CommandType] = CommandType.UNDO_START
    volume: int
    undo: UndoFiles


@dataclass(frozen=True, slots=True)
class UndoStop:
    """Give it up; writes that wait for it go on, and after DONE its descriptors are free."""

    type: ClassVar[CommandType] = CommandType.UNDO_STOP
    volume: int


@dataclass(frozen=True, slots=True)
class UndoCancel:
    """After UNDO_FAILED: writes that wait for it fail, without the disk being blamed."""

    type: ClassVar[CommandType] = CommandType.UNDO_CANCEL
    volume: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Close everything and end the engine's thread; STOPPED follows."""

    type: ClassVar[CommandType] = CommandType.STOP


Command = (
    VolumeAttach
    | VolumeDetach
    | VolumeQuiesce
    | VolumeGiveUp
    | VolumeSize
    | AlHold
    | VolumeResize
    | MdWipe
    | VolumeState
    | VolumeResync
    | MdWrite
    | BitmapSetAll
    | BitmapClearAll
    | BitmapWrite
    | AlInitialize
    | VolumeDrain
    | StreamAdd
    | StreamSend
    | StreamResume
    | StreamClose
    | LinkUp
    | LinkDown
    | LinkResolve
    | LinkKeep
    | LinkResend
    | Ping
    | LinkOptions
    | BitmapSend
    | VerifyOrder
    | VerifyStop
    | NbdAdd
    | NbdClose
    | UndoStart
    | UndoStop
    | UndoCancel
    | Stop
)


def encode_command(ffi: Any, command: Command, cookie: int = 0) -> tuple[Any, bytes]:
    """Make a ``struct re_command`` owned by the caller, and the blob that goes with it (b"" if none)."""
    encoded = ffi.new("struct re_command *")
    encoded.type = int(command.type)
    encoded.volume = -1
    encoded.stream = -1
    encoded.fd = -1
    encoded.cookie = cookie
    blob = b""
    for part in dataclasses.fields(command):
        value = getattr(command, part.name)
        if isinstance(value, bytes):
            blob = value
        elif isinstance(value, int):
            setattr(encoded, part.name, value)
        else:
            nested = getattr(encoded, part.name)
            for member in dataclasses.fields(value):
                setattr(nested, member.name, int(getattr(value, member.name)))
    return encoded, blob
