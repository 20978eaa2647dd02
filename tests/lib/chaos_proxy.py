# SPDX-License-Identifier: Apache-2.0
"""A byte proxy between two TCP ends that misbehaves on order: for links that break in ways a closed socket does not.

    with ChaosProxy(target_port, seed=7) as proxy:
        ...connect to proxy.port...
        proxy.set(Mode.DROP)      # both ends stay open, nothing arrives any more

One listener, one target, any number of connections, all in one thread.  A connection that lost bytes is reset when
the proxy goes back to passing: no TCP ever loses bytes in the middle.  Sizes in bytes.  Random choices come from the
seed only; when the kernel hands out which bytes does not.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import threading
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType

HOST = "127.0.0.1"
BUFFER_BYTES_MAX = 256 * 1024
RECEIVE_BYTES = 64 * 1024
SPLITS_PER_TURN = 256
CONNECT_TIMEOUT_S = 2.0
BACKLOG = 16
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends a reset


class Mode(Enum):
    """What happens to bytes on their way."""

    PASS = "pass"
    HOLD = "hold"  # nothing is read: the sender's buffers fill up, nothing is lost
    DROP = "drop"  # read and thrown away, ends of streams too: the other side is gone without a word
    SPLIT = "split"  # forwarded in segments of 1 to 3 bytes


class Direction(Enum):
    """As seen from the one who connects to the proxy."""

    THERE = "there"
    BACK = "back"


@dataclass(eq=False)
class _Pipe:
    source: socket.socket
    sink: socket.socket | None  # None: the target was never reached
    direction: Direction
    buffer: bytearray = field(default_factory=bytearray)
    is_ended: bool = False  # the source has sent its end
    is_closed: bool = False  # and the sink knows


@dataclass(eq=False)
class _Connection:
    there: _Pipe
    back: _Pipe | None
    has_lost_bytes: bool = False

    @property
    def pipes(self) -> list[_Pipe]:
        return [self.there] if self.back is None else [self.there, self.back]

    @property
    def sockets(self) -> list[socket.socket]:
        return [pipe.source for pipe in self.pipes]


class ChaosProxy:
    """Listens on ``port`` from construction to ``close``."""

    def __init__(self, target_port: int, *, port: int = 0, seed: int = 0) -> None:
        self.target_port = target_port
        self.bytes_passed = 0
        self.connections_accepted = 0
        self._random = random.Random(seed)
        self._modes = dict.fromkeys(Direction, Mode.PASS)
        self._is_refusing = False
        self._reset_at: int | None = None  # value of bytes_passed
        self._lock = threading.Lock()
        self._connections: list[_Connection] = []
        self._listener = socket.create_server((HOST, port), backlog=BACKLOG)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._is_over = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"chaos-proxy-{self.port}", daemon=True)
        self._thread.start()

    # What a test orders; each call has taken effect when it returns.

    def set(self, mode: Mode, direction: Direction | None = None) -> None:
        """From now on; without a direction for both."""
        with self._lock:
            for one in Direction if direction is None else (direction,):
                self._modes[one] = mode
            if all(m in (Mode.PASS, Mode.SPLIT) for m in self._modes.values()):
                for connection in [c for c in self._connections if c.has_lost_bytes or c.back is None]:
                    self._reset(connection)
        self._wake()

    def refuse(self, on: bool) -> None:
        """New connections are reset; those that exist go on."""
        with self._lock:
            self._is_refusing = on

    def reset(self) -> None:
        """Reset every connection on both sides."""
        with self._lock:
            for connection in list(self._connections):
                self._reset(connection)
        self._wake()

    def cut(self) -> None:
        """Reset everything and refuse what is new, until ``mend``."""
        self.refuse(True)
        self.reset()

    def mend(self) -> None:
        self.refuse(False)
        self.set(Mode.PASS)

    def reset_within(self, bytes_max: int) -> None:
        """Reset all connections after a random number of further bytes: in the middle of a packet, mostly."""
        with self._lock:
            self._reset_at = self.bytes_passed + self._random.randrange(1, bytes_max + 1)

    @property
    def connection_count(self) -> int:
        with self._lock:
            return len(self._connections)

    def close(self) -> None:
        self._is_over = True
        self._wake()
        self._thread.join()
        for connection in list(self._connections):
            self._reset(connection)
        for sock in (self._listener, self._wake_in, self._wake_out):
            sock.close()
        if self._error is not None:
            raise RuntimeError("the proxy itself failed") from self._error

    def __enter__(self) -> ChaosProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The thread

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_out.send(b"x")

    def _run(self) -> None:
        try:
            while not self._is_over:
                self._turn()
        except BaseException as error:
            self._error = error

    def _turn(self) -> None:
        with self._lock, selectors.PollSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake_in, selectors.EVENT_READ)
            for sock, events in self._interests().items():
                selector.register(sock, events)
            self._lock.release()
            try:
                ready = selector.select()
            finally:
                self._lock.acquire()
            keys = {key.fileobj: events for key, events in ready}
            if self._wake_in in keys:
                self._wake_in.recv(RECEIVE_BYTES)
            for connection in list(self._connections):
                self._move(connection, keys)
            if self._listener in keys:
                self._accept()

    def _interests(self) -> dict[socket.socket, int]:
        found: dict[socket.socket, int] = {}
        for connection in self._connections:
            for pipe in connection.pipes:
                mode = self._modes[pipe.direction]
                if mode is Mode.HOLD:
                    continue
                if not pipe.is_ended and len(pipe.buffer) < BUFFER_BYTES_MAX:
                    found[pipe.source] = found.get(pipe.source, 0) | selectors.EVENT_READ
                if pipe.sink is not None and pipe.buffer and mode is not Mode.DROP:
                    found[pipe.sink] = found.get(pipe.sink, 0) | selectors.EVENT_WRITE
        return found

    def _move(self, connection: _Connection, keys: dict[object, int]) -> None:
        for pipe in connection.pipes:
            mode = self._modes[pipe.direction]
            if connection not in self._connections or mode is Mode.HOLD:
                return
            if keys.get(pipe.source, 0) & selectors.EVENT_READ and not pipe.is_ended:
                self._receive(connection, pipe, mode)
            if connection in self._connections and mode is not Mode.DROP:
                self._forward(connection, pipe, mode)

    def _receive(self, connection: _Connection, pipe: _Pipe, mode: Mode) -> None:
        try:
            data = pipe.source.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            if mode is Mode.DROP:  # the other end does not hear of it
                pipe.is_ended = connection.has_lost_bytes = True
            else:
                self._reset(connection)
            return
        if mode is Mode.DROP:
            connection.has_lost_bytes = True
            pipe.is_ended = not data
        elif data:
            pipe.buffer += data
        else:
            pipe.is_ended = True

    def _forward(self, connection: _Connection, pipe: _Pipe, mode: Mode) -> None:
        if pipe.sink is None:
            return
        try:
            for _ in range(SPLITS_PER_TURN if mode is Mode.SPLIT else 1):
                if not pipe.buffer:
                    break
                size = self._random.randrange(1, 4) if mode is Mode.SPLIT else len(pipe.buffer)
                sent = pipe.sink.send(pipe.buffer[:size])
                del pipe.buffer[:sent]
                self.bytes_passed += sent
                if self._reset_at is not None and self.bytes_passed >= self._reset_at:
                    self._reset_at = None
                    for one in list(self._connections):
                        self._reset(one)
                    return
            if pipe.is_ended and not pipe.buffer and not pipe.is_closed:
                pipe.is_closed = True
                pipe.sink.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:
            self._reset(connection)
            return
        if all(one.is_closed for one in connection.pipes):
            self._forget(connection)

    def _accept(self) -> None:
        try:
            near, _ = self._listener.accept()
        except OSError:
            return
        self.connections_accepted += 1
        if self._is_refusing:
            _close_with_reset(near)
            return
        is_open = all(mode in (Mode.PASS, Mode.SPLIT) for mode in self._modes.values())
        far: socket.socket | None = None
        if is_open:
            try:
                far = socket.create_connection((HOST, self.target_port), timeout=CONNECT_TIMEOUT_S)
            except OSError:
                _close_with_reset(near)
                return
        for sock in (near, far):
            if sock is not None:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there = _Pipe(near, far, Direction.THERE)
        back = _Pipe(far, near, Direction.BACK) if far is not None else None
        self._connections.append(_Connection(there, back))

    def _reset(self, connection: _Connection) -> None:
        for sock in connection.sockets:
            _close_with_reset(sock)
        if connection in self._connections:
            self._connections.remove(connection)

    def _forget(self, connection: _Connection) -> None:
        for sock in connection.sockets:
            sock.close()
        self._connections.remove(connection)


def _close_with_reset(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
