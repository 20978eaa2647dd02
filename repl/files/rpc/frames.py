# SPDX-License-Identifier: Apache-2.0
"""Frames: a fixed header, a msgpack body, then payload bytes as they are.

    u32 body bytes | u32 payload bytes | u32 call id | u8 kind | u8 0 | u16 magic        (big-endian, 16 bytes)

Input of ``FrameReader``: bytes, received straight into the memory it offers; output: ``Frame`` values.  Small frames
are taken out of one staging buffer, a frame that does not fit there gets memory of its own, so that a large payload
is never copied.  Errors: ``ProtocolError``, before any memory is taken for the frame.
"""

from __future__ import annotations

import enum
import struct
from typing import Any, NamedTuple

from repl.errors import ProtocolError

HEADER = struct.Struct(">IIIBBH")
HEADER_BYTES = HEADER.size
MAGIC = 0x7266
STAGING_BYTES = 128 * 1024


class Kind(enum.IntEnum):
    """What a frame is.  The number stands in the header."""

    HELLO = 1  # client: who it is and what it wants to attach to
    WELCOME = 2  # server: attached, and its limits
    REFUSED = 3  # server: errno and reason; it closes
    CALLER = 4  # client: credentials from now on known by a number
    CALL = 5  # client: one operation or several
    ANSWER = 6  # server
    ERROR = 7  # server: errno and detail
    CANCEL = 8  # client: nobody waits for the call any more; it is answered all the same
    RELEASE = 9  # client: descriptors are closed; not answered
    GONE = 11  # client: one of those on whose behalf it calls is gone; not answered
    EVENT = 12  # server
    PING = 13  # either; the other end answers PONG with the same call id
    PONG = 14
    FAREWELL = 15  # server: it stops on purpose, come back soon


_KINDS = frozenset(Kind)


class Limits(NamedTuple):
    """The most that one frame may have."""

    body_bytes: int
    payload_bytes: int


class Frame(NamedTuple):
    """``body`` and ``payload`` are valid until the next ``FrameReader.buffer``, unless ``is_lasting``."""

    kind: int
    call_id: int
    body: memoryview
    payload: memoryview
    is_lasting: bool


def size_of(payload: Any) -> int:
    """In bytes."""
    return len(payload) if type(payload) is bytes else memoryview(payload).nbytes


def encode(kind: int, call_id: int, body: bytes, payload_bytes: int = 0) -> bytes:
    """Header and body; the payloads follow on the wire as they are."""
    return HEADER.pack(len(body), payload_bytes, call_id, kind, 0, MAGIC) + body


class FrameReader:
    """Takes frames out of a stream.  ``limits`` may be changed between two frames (after the handshake)."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._staging = memoryview(bytearray(STAGING_BYTES))
        self._begin = 0
        self._end = 0
        self._large: memoryview | None = None  # a frame with its own memory, header included
        self._filled = 0

    def buffer(self) -> memoryview:
        """Where received bytes go."""
        if self._large is not None:
            return self._large[self._filled :]
        if self._begin == self._end:
            self._begin = self._end = 0
        elif self._end == STAGING_BYTES:
            rest = bytes(self._staging[self._begin : self._end])
            self._staging[: len(rest)] = rest
            self._begin, self._end = 0, len(rest)
        return self._staging[self._end :]

    def received(self, count: int) -> None:
        """So many bytes have been put into ``buffer()``."""
        if self._large is not None:
            self._filled += count
        else:
            self._end += count

    def next(self) -> Frame | None:
        """The next whole frame.  Raises ``ProtocolError``; the stream cannot be read any further then."""
        if self._large is not None:
            return self._next_large(self._large)
        begin = self._begin
        if self._end - begin < HEADER_BYTES:
            return None
        body_bytes, payload_bytes, call_id, kind, zero, magic = HEADER.unpack_from(self._staging, begin)
        if magic != MAGIC or zero or kind not in _KINDS:
            raise ProtocolError(f"this is no frame: kind {kind}, magic {magic:#06x}.")
        if body_bytes > self.limits.body_bytes or payload_bytes > self.limits.payload_bytes:
            raise ProtocolError(f"frame too large: {body_bytes} bytes of body and {payload_bytes} of payload.")
        body_at = begin + HEADER_BYTES
        payload_at = body_at + body_bytes
        end = payload_at + payload_bytes
        if end <= self._end:
            self._begin = end
            staging = self._staging
            return Frame(kind, call_id, staging[body_at:payload_at], staging[payload_at:end], False)
        if end - begin > STAGING_BYTES // 2:
            self._start_large(end - begin)
        elif end > STAGING_BYTES:
            self._compact()
        return None

    def _compact(self) -> None:
        rest = bytes(self._staging[self._begin : self._end])
        self._staging[: len(rest)] = rest
        self._begin, self._end = 0, len(rest)

    def _start_large(self, frame_bytes: int) -> None:
        self._large = memoryview(bytearray(frame_bytes))
        self._filled = self._end - self._begin
        self._large[: self._filled] = self._staging[self._begin : self._end]
        self._begin = self._end = 0

    def _next_large(self, large: memoryview) -> Frame | None:
        if self._filled < len(large):
            return None
        self._large = None
        body_bytes, _, call_id, kind, _, _ = HEADER.unpack_from(large)
        payload_at = HEADER_BYTES + body_bytes
        return Frame(kind, call_id, large[HEADER_BYTES:payload_at], large[payload_at:], True)
