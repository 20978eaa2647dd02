# SPDX-License-Identifier: Apache-2.0
"""A cable between clients and a server that can be cut, one way or both: nothing passes, and nobody is told."""

from __future__ import annotations

import contextlib
import socket
import threading

BUFFER_BYTES = 1 << 18


class Cable:
    """Listens on ``port`` and passes everything on to ``target_port``, until ``close``."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._flows = {True: threading.Event(), False: threading.Event()}  # to the server, from it
        self._sockets: list[socket.socket] = []
        self._is_over = False
        self.join()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, *, to_server: bool = True, from_server: bool = True) -> None:
        for direction, is_cut in ((True, to_server), (False, from_server)):
            if is_cut:
                self._flows[direction].clear()

    def join(self) -> None:
        for flow in self._flows.values():
            flow.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._flows[True].wait()  # the first packet of a connection does not pass either
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets.append(sock)
            for source, sink, to_server in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass, args=(source, sink, self._flows[to_server]), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, flow: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(BUFFER_BYTES):
                flow.wait()
                if self._is_over:
                    return
                sink.sendall(data)
        flow.wait()
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._is_over = True
        self.join()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
