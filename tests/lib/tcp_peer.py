# SPDX-License-Identifier: Apache-2.0
"""The scripted peer (tests/lib/peer_script.py) on real sockets, against a real daemon."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable

from tests.lib.peer_script import PeerScript, h80, split

LOOPBACK = "127.0.0.1"


class TcpPeer(PeerScript):
    """Dials a node's replication port when told; ``is_connected``: how to ask the node."""

    def __init__(self, port: int, is_connected: Callable[[], bool]) -> None:
        super().__init__()
        self._port = port
        self._is_connected = is_connected
        self._buffers: dict[socket.socket, bytearray] = {}
        self._sockets: list[socket.socket] = []
        self.ended: set[socket.socket] = set()

    def dial(self, wait_s: float = 10) -> socket.socket:
        """A connection; the node may not listen just now."""
        end = time.monotonic() + wait_s
        while True:
            try:
                sock = socket.create_connection((LOOPBACK, self._port), timeout=wait_s)
            except ConnectionRefusedError:
                if time.monotonic() > end:
                    raise
                select.select((), (), (), 0.02)
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.append(sock)
            self._buffers[sock] = bytearray()
            return sock

    def connect(self) -> None:
        self.data = self.dial()
        self.send(h80("P_INITIAL_DATA"))
        self.meta = self.dial()
        self.send(h80("P_INITIAL_META"), self.meta)

    def send(self, content: bytes, socket: socket.socket | None = None) -> None:
        """All of it, unless the node has ended the connection."""
        target = self.data if socket is None else socket
        try:
            target.sendall(content)
        except (ConnectionError, TimeoutError):
            self.ended.add(target)

    def close(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.close()

    def read(self, wait_s: float = 0) -> None:
        open_ones = [s for s in (self.data, self.meta) if s not in self.ended and s.fileno() >= 0]
        for sock in select.select(open_ones, (), (), wait_s)[0]:
            try:
                got = sock.recv(1 << 16)
            except ConnectionError:
                got = b""
            if not got:
                self.ended.add(sock)
            self._buffers[sock] += got
            self.packets += split(self._buffers[sock])

    def take(self, name: str, ms: float = 10_000) -> bytes:
        end = time.monotonic() + ms / 1000
        while True:
            while self.packets:
                got, _, body = self.packets.pop(0)
                if got == name:
                    return body
            if self.data in self.ended or time.monotonic() > end:
                raise AssertionError(f"no {name} from the node")
            self.read(0.1)

    def wait_ended(self, wait_s: float = 10) -> float:
        """Until the node has closed the data socket; how long it took."""
        begin = time.monotonic()
        while self.data not in self.ended:
            assert time.monotonic() < begin + wait_s, "the node keeps the connection"
            self.read(0.1)
        return time.monotonic() - begin

    def wait_connected(self) -> None:
        end = time.monotonic() + 10
        while not self._is_connected():
            assert time.monotonic() < end, "the node is not connected"
            self.read(0.02)
