# SPDX-License-Identifier: Apache-2.0
"""One connection of either end: bytes to frames, frames to bytes.

Its owner gets every frame (``on_frame``) and the end (``on_lost``, once, with the reason).  A frame that cannot be
read ends the connection and nothing else.  ``pause`` stops taking frames, at once, until ``resume``; what is unsent
is bounded: more than RPC_UNSENT_BYTES_MAX ends the connection, because the other end does not read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from repl.errors import ProtocolError
from repl.files.rpc import frames
from repl.files.rpc.frames import Frame, FrameReader, Kind, Limits
from repl.limits import RPC_HANDSHAKE_BYTES_MAX, RPC_UNSENT_BYTES_MAX

log = logging.getLogger(__name__)

UNSENT_HIGH_BYTES = 4 * 1024 * 1024
TURN_BYTES_MAX = 256 * 1024  # from here on frames do not wait for the end of the turn
JOINED_BYTES_MAX = 32 * 1024  # up to here copying costs less than a list of pieces
HANDSHAKE_LIMITS = Limits(RPC_HANDSHAKE_BYTES_MAX, 0)


class Owner(Protocol):
    """Who is behind a connection."""

    def on_connected(self, connection: Connection) -> None: ...
    def on_frame(self, frame: Frame) -> None: ...
    def on_unsent(self, is_full: bool) -> None: ...
    def on_lost(self, reason: str) -> None: ...


class Connection(asyncio.BufferedProtocol):
    """``owner`` is made for each connection, knowing it."""

    def __init__(self, make_owner: Callable[[Connection], Owner]) -> None:
        self.reader = FrameReader(HANDSHAKE_LIMITS)
        self.received_at = 0.0
        self._transport: asyncio.Transport | None = None
        self._reason = ""
        self._is_paused = False
        self._is_lost = False
        self._is_taking = False  # what is sent meanwhile goes out right behind
        self._outgoing: list[Any] = []  # of this turn of the loop
        self._outgoing_bytes = 0
        self._owner = make_owner(self)
        self._loop = asyncio.get_running_loop()

    # ---- the transport calls ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "writelines")
        self._transport = transport  # type: ignore[assignment]
        self._transport.set_write_buffer_limits(high=UNSENT_HIGH_BYTES)  # type: ignore[union-attr]
        self.received_at = self._loop.time()
        self._owner.on_connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self.reader.received(nbytes)
        self.received_at = self._loop.time()
        self._is_taking = True
        try:
            self._take_frames()
        finally:
            self._is_taking = False
        if self._outgoing:
            self._flush()

    def eof_received(self) -> None:
        self._reason = self._reason or "the other end closed the connection"

    def connection_lost(self, error: Exception | None) -> None:
        self._is_lost = True
        self._outgoing, self._outgoing_bytes = [], 0
        reason = self._reason or (str(error) if error else "the connection is closed")
        self._owner.on_lost(reason)

    def pause_writing(self) -> None:
        self._owner.on_unsent(True)

    def resume_writing(self) -> None:
        self._owner.on_unsent(False)

    # ---- the owner calls ----

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._is_lost and not self._reason

    @property
    def unsent_bytes(self) -> int:
        if self._transport is None or self._is_lost:
            return 0
        return self._outgoing_bytes + self._transport.get_write_buffer_size()

    @property
    def socket(self) -> Any:
        """For socket options; None if the transport has none."""
        return self._transport.get_extra_info("socket") if self._transport else None

    def peer(self) -> Any:
        """The other end's address: (host, port) or, for a Unix socket, its path."""
        return self._transport.get_extra_info("peername") if self._transport else None

    def certificate(self) -> Any:
        """The other end's certificate as ssl tells it, None without TLS."""
        return self._transport.get_extra_info("peercert") if self._transport else None

    def send(self, kind: Kind, call_id: int, body: bytes, payloads: Sequence[Any] = ()) -> None:
        """One frame; the payloads must not change until they are sent.  All frames of one turn of the loop go out
        together at its end: a system call, and a wake-up of the other end, costs more than a small frame.  Answers to
        what has just been received do not wait for that end: it would take the loop another round."""
        if self._transport is None or self._is_lost or self._reason:
            return
        if not self._outgoing and not self._is_taking:
            self._loop.call_soon(self._flush)
        size = 0
        if payloads:
            size = sum(map(frames.size_of, payloads))
            self._outgoing += (frames.encode(kind, call_id, body, size), *payloads)
        else:
            self._outgoing.append(frames.encode(kind, call_id, body))
        self._outgoing_bytes += frames.HEADER_BYTES + len(body) + size
        if self._outgoing_bytes > TURN_BYTES_MAX:
            self._flush()

    def _flush(self) -> None:
        transport = self._transport
        if not self._outgoing or transport is None:
            return
        parts, self._outgoing = self._outgoing, []
        size, self._outgoing_bytes = self._outgoing_bytes, 0
        if self._is_lost:
            return
        if len(parts) == 1:
            transport.write(parts[0])
        elif size <= JOINED_BYTES_MAX:
            transport.write(b"".join(parts))
        else:
            transport.writelines(parts)
        if transport.get_write_buffer_size() > RPC_UNSENT_BYTES_MAX:
            self.abort("the other end does not read what it asked for")

    def pause(self) -> None:
        if not self._is_paused and self._transport is not None:
            self._is_paused = True
            if not self._transport.is_closing():
                self._transport.pause_reading()

    def resume(self) -> None:
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
                self._loop.call_soon(self._take_frames)

    def close(self, reason: str) -> None:
        """What is written already still goes out."""
        self._flush()
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """What was sent in this turn of the loop still goes out if there is room for it."""
        self._flush()
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()

    def _take_frames(self) -> None:
        reader = self.reader
        try:
            while not self._is_paused and not self._reason:
                frame = reader.next()
                if frame is None:
                    return
                self._owner.on_frame(frame)
        except ProtocolError as error:
            self.abort(f"protocol error: {error.message}")
        except Exception as error:
            log.exception("a frame could not be handled")
            self.abort(f"internal error: {error!r}")
