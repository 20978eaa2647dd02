#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A link that takes time: a TCP relay that passes everything on some milliseconds later, in both directions.

`python bench/delay.py MS LISTEN:TARGET [LISTEN:TARGET ...]` with ports of the loopback address; ends by a signal.

It looks at all sockets every 2 ms and sleeps in between instead of being woken by each packet, so that it costs nearly
nothing on the CPUs that client and nodes share.  It takes what comes at once and without a limit: the sender's socket
is empty much sooner than it would be over a real link of that length, where TCP keeps the data until it is confirmed.
"""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import sys
import time

LOOPBACK = "127.0.0.1"
TURN_S = 0.002
RECEIVE_BYTES = 1 << 20
BUFFER_BYTES = 4 << 20


class Pipe:
    """One direction of one connection: order and bytes are kept."""

    def __init__(self, source: socket.socket, sink: socket.socket, delay_s: float) -> None:
        self._source = source
        self._sink = sink
        self._delay_s = delay_s
        self._waiting: collections.deque[tuple[float, bytes]] = collections.deque()
        self._is_at_end = False
        self.is_over = False

    def turn(self, now_s: float) -> None:
        try:
            while not self._is_at_end:
                data = self._source.recv(RECEIVE_BYTES)
                self._waiting.append((now_s + self._delay_s, data))
                self._is_at_end = not data
        except BlockingIOError:
            pass
        except OSError:
            self._waiting.append((now_s + self._delay_s, b""))
            self._is_at_end = True
        while self._waiting and self._waiting[0][0] <= now_s:
            due_s, data = self._waiting.popleft()
            try:
                if not data:
                    self.is_over = True
                    self._sink.shutdown(socket.SHUT_WR)
                    return
                sent = self._sink.send(data)
                if sent < len(data):
                    self._waiting.appendleft((due_s, data[sent:]))
                    return
            except BlockingIOError:
                self._waiting.appendleft((due_s, data))
                return
            except OSError:
                self.is_over = self._is_at_end = True
                self._waiting.clear()


class Link:
    """Both directions of one connection."""

    def __init__(self, near: socket.socket, far: socket.socket, delay_s: float) -> None:
        self._sockets = (near, far)
        for sock in self._sockets:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._pipes = (Pipe(near, far, delay_s), Pipe(far, near, delay_s))

    def turn(self, now_s: float) -> bool:
        """False: it has ended."""
        for pipe in self._pipes:
            if not pipe.is_over:
                pipe.turn(now_s)
        if not all(pipe.is_over for pipe in self._pipes):
            return True
        for sock in self._sockets:
            sock.close()
        return False


def run(delay_s: float, ways: list[tuple[int, int]]) -> None:
    """Until a signal."""
    links: list[Link] = []
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as listeners:
        for listen_port, target_port in ways:
            listener = stack.enter_context(socket.create_server((LOOPBACK, listen_port)))
            listener.setblocking(False)
            listeners.register(listener, selectors.EVENT_READ, target_port)
        while True:
            for key, _ in listeners.select(0 if links else None):
                assert isinstance(key.fileobj, socket.socket)
                near, _ = key.fileobj.accept()
                try:
                    links.append(Link(near, socket.create_connection((LOOPBACK, key.data)), delay_s))
                except OSError:
                    near.close()
            time.sleep(TURN_S)
            now_s = time.monotonic()
            links = [link for link in links if link.turn(now_s)]


if __name__ == "__main__":
    milliseconds, *pairs = sys.argv[1:]
    run(float(milliseconds) / 1000, [(int(a), int(b)) for a, _, b in (pair.partition(":") for pair in pairs)])
