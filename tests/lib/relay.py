# SPDX-License-Identifier: Apache-2.0
"""A TCP relay between two DRBD nodes: it delays what passes, and can make both nodes speak an older protocol.

    with Relay(listener, connect, delay_ms=15, version_max=96) as relay:
        ...the node dials the listener's port; the relay dials the other node with ``connect``...

One relay for each node's listener.  Each connection has two pipes, each pipe two threads; order and bytes are kept.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable

HEADER_BYTES = 8
FEATURES_BYTES = HEADER_BYTES + 72
FEATURES = 0xFFFE
FIRST_PACKETS = (0xFFF1, 0xFFF2)
H80_MAGIC = 0x83740267
RECEIVE_BYTES = 65536


class Lowering:
    """Changes protocol_max in the P_CONNECTION_FEATURES of one direction of one connection.

    Below version 100 the feature flags are cleared as well, as from a node that is that old.
    """

    def __init__(self, version_max: int) -> None:
        self._version_max = version_max
        self._held = b""
        self._is_done = version_max == 0

    def pass_on(self, data: bytes) -> bytes:
        """What may leave now."""
        if self._is_done:
            return data
        self._held += data
        out = b""
        while not self._is_done and len(self._held) >= HEADER_BYTES:
            magic, command, _ = struct.unpack_from(">IHH", self._held)
            size = FEATURES_BYTES if (magic, command) == (H80_MAGIC, FEATURES) else HEADER_BYTES
            if len(self._held) < size:
                break
            packet, self._held = self._held[:size], self._held[size:]
            if size == FEATURES_BYTES:
                (most,) = struct.unpack_from(">I", packet, 16)
                flags = packet[12:16] if self._version_max >= 100 else bytes(4)
                packet = packet[:12] + flags + struct.pack(">I", min(most, self._version_max)) + packet[20:]
            self._is_done = command not in FIRST_PACKETS
            out += packet
        if self._is_done:
            out, self._held = out + self._held, b""
        return out


class Relay:
    """Runs until ``close``."""

    def __init__(self, listener: socket.socket, connect: Callable[[], socket.socket], *, delay_ms: float = 0,
                 version_max: int = 0, bytes_per_second: int = 0) -> None:  # fmt: skip
        """``version_max`` 0: unchanged; ``bytes_per_second`` 0: no limit, else of each direction of a connection."""
        self.delay_ms = delay_ms
        self.bytes_per_second = bytes_per_second
        self._listener = listener
        self._connect = connect
        self._version_max = version_max
        self._over = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, run: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=run, args=args, name="relay", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = self._connect()
            except OSError:
                near.close()
                continue
            for sock in (near, far):
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets |= {near, far}
            for source, sink in ((near, far), (far, near)):
                waiting: queue.Queue[tuple[float, bytes]] = queue.Queue(maxsize=64)
                self._start(self._receive, source, waiting)
                self._start(self._send, sink, waiting)

    def _receive(self, source: socket.socket, waiting: queue.Queue[tuple[float, bytes]]) -> None:
        lowering = Lowering(self._version_max)
        with contextlib.suppress(OSError):
            while data := source.recv(self._chunk()):
                waiting.put((time.monotonic() + self.delay_ms / 1000, lowering.pass_on(data)))
        waiting.put((0.0, b""))

    def _chunk(self) -> int:
        return min(RECEIVE_BYTES, max(512, self.bytes_per_second // 50)) if self.bytes_per_second else RECEIVE_BYTES

    def _send(self, sink: socket.socket, waiting: queue.Queue[tuple[float, bytes]]) -> None:
        is_broken = False
        while True:
            due, data = waiting.get()
            if not data and not due:
                break
            self._over.wait(max(0.0, due - time.monotonic()))
            if self.bytes_per_second:
                self._over.wait(len(data) / self.bytes_per_second)
            if not is_broken:
                try:
                    sink.sendall(data)
                except OSError:
                    is_broken = True
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
