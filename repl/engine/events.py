# SPDX-License-Identifier: Apache-2.0
"""What the engine tells the control plane: events and counters, as frozen dataclasses.

Inputs: a ``struct re_event`` (or a counters struct) of any cffi module made from repl_engine.h.
Outputs: :class:`Event`, :class:`VolumeStats`, :class:`EngineStats`.  Units are in the names; ``_ns`` is the
engine's monotonic clock.  The enums mirror the header's by value (a test compares them with the module).
Errors: ValueError when the engine hands over a number that no enum has (header and module disagree).
Facts: csrc/include/repl_engine.h.  Nothing here needs the compiled module.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass, field
from typing import Any

EVENT_BLOB_MAX = 4352


class EventType(enum.IntEnum):
    """``enum re_event_type``."""

    NONE = 0
    DONE = 1
    PACKET = 2
    STREAM_CLOSED = 3
    LINK_LOST = 4
    BITMAP_RECEIVED = 5
    RESYNC_FINISHED = 6
    DISK_ERROR = 7
    NBD_CLOSED = 8
    STOPPED = 9
    VERIFY_RANGE = 70
    VERIFY_FINISHED = 71
    CONGESTED = 60
    CONGESTION_OVER = 61
    UNDO_FAILED = 80


class Result(enum.IntEnum):
    """``enum re_result``: the status of an event."""

    OK = 0
    IO = 1
    CANCELED = 2
    INVALID = 3


class Lost(enum.IntEnum):
    """``enum re_lost``: why the link was lost."""

    NONE = 0
    EOF = 1
    RESET = 2
    PING_TIMEOUT = 3
    KO = 4
    SEND_TIMEOUT = 5
    PROTOCOL = 6
    OWN_DISK = 7
    INTEGRITY = 8


class DiskOp(enum.IntEnum):
    """``enum re_disk_op``: what a DISK_ERROR hit."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    ZERO = 3
    META = 4
    TIMEOUT = 5


class NbdEnd(enum.IntEnum):
    """``enum re_nbd_end``: how an NBD client ended."""

    DISC = 0
    EOF = 1
    RESET = 2
    PROTOCOL = 3
    CLOSED = 4
    STALLED = 5


class ResyncLimit(enum.IntEnum):
    """``enum re_resync_limit``: what holds the resync back."""

    NONE = 0
    RATE = 1
    BUFFERS = 2
    APPLICATION = 3
    PEER = 4
    OWN_DISK = 5
    PEER_DISK = 6
    LINK = 7


@dataclass(frozen=True, slots=True)
class Event:
    """``struct re_event``; which fields mean something depends on ``type`` (see the header)."""

    type: EventType
    volume: int = -1
    stream: int = -1
    status: Result = Result.OK
    error: int = 0  # errno or 0
    packet: int = 0  # DRBD command number
    reason: int = 0  # a Lost or an NbdEnd
    detail: int = 0
    cookie: int = 0
    value: int = 0
    blob: bytes = field(default=b"", repr=False)

    @property
    def lost(self) -> Lost:
        """Why the link was lost (LINK_LOST only)."""
        return Lost(self.reason)

    @property
    def nbd_end(self) -> NbdEnd:
        """How the NBD client ended (NBD_CLOSED only)."""
        return NbdEnd(self.reason)

    @property
    def disk_op(self) -> DiskOp:
        """What failed (DISK_ERROR only)."""
        return DiskOp(self.detail)


@dataclass(frozen=True, slots=True)
class VolumeStats:
    """``struct re_volume_stats``: a volume's counters (each exact by itself, not all of one instant)."""

    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    written_bytes: int = 0
    flushes: int = 0
    zeroes: int = 0
    disk_read_bytes: int = 0
    disk_written_bytes: int = 0
    disk_flushes: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    peer_writes: int = 0
    al_writes: int = 0
    bitmap_writes: int = 0
    out_of_sync_bits: int = 0
    size_bytes: int = 0
    upper_pending: int = 0
    lower_pending: int = 0
    peer_pending: int = 0
    unacked: int = 0
    conflicts: int = 0
    resync_total_bits: int = 0
    resync_done_bits: int = 0
    resync_failed_bits: int = 0
    resync_lost_bits: int = 0
    resync_left_bits: int = 0
    resync_started_ns: int = 0
    resync_finished_ns: int = 0
    resync_rate_kib: int = 0
    resync_limit: int = 0
    resync_equal_bits: int = 0
    resync_deallocated_bits: int = 0
    resync_payload_bytes: int = 0
    resync_disk_bytes: int = 0
    bitmap_sent_bits: int = 0
    bitmap_bits: int = 0
    verify_total_bits: int = 0
    verify_done_bits: int = 0
    verify_differing_bits: int = 0
    verify_position: int = 0
    verify_started_ns: int = 0
    verify_finished_ns: int = 0
    verify_rate_kib: int = 0
    verify_limit: int = 0
    undo_saved_bits: int = 0
    unconfirmed_writes: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """``struct re_engine_stats``: one reading of the counters of the whole engine."""

    now_ns: int = 0
    ticks: int = 0
    nbd_clients: int = 0
    nbd_requests: int = 0
    epochs_open: int = 0
    transfer_log: int = 0
    barriers_sent: int = 0
    barrier_acks_received: int = 0
    barriers_received: int = 0
    pings_sent: int = 0
    ping_acks_received: int = 0
    link_sent_bytes: int = 0
    link_received_bytes: int = 0
    requests_free: int = 0
    requests_total: int = 0
    app_buffers_used_bytes: int = 0
    peer_buffers_used_bytes: int = 0
    integrity_errors: int = 0


def decode_event(ffi: Any, event: Any, blob: Any) -> Event:
    """``event``: a ``struct re_event *``; ``blob``: memory whose first ``blob_length`` bytes belong to it."""
    return Event(
        type=EventType(event.type),
        volume=event.volume,
        stream=event.stream,
        status=Result(event.status),
        error=event.error,
        packet=event.packet,
        reason=event.reason,
        detail=event.detail,
        cookie=event.cookie,
        value=event.value,
        blob=bytes(ffi.buffer(blob, event.blob_length)) if event.blob_length else b"",
    )


def decode_volume_stats(stats: Any) -> VolumeStats:
    """``stats``: a ``const struct re_volume_stats *``."""
    return VolumeStats(*(getattr(stats, part.name) for part in dataclasses.fields(VolumeStats)))


def decode_engine_stats(stats: Any) -> EngineStats:
    """``stats``: a ``const struct re_engine_stats *``."""
    return EngineStats(*(getattr(stats, part.name) for part in dataclasses.fields(EngineStats)))
