# SPDX-License-Identifier: Apache-2.0
"""A socket whose other end says what a test wants, for :class:`nbd.client.NbdClient`."""

from __future__ import annotations

import socket
from typing import cast

from nbd.client import NbdClient

ASKED_BYTES_MAX = 1 << 20


class ScriptedSocket:
    """Everything is there at once, then the end."""

    def __init__(self, answers: bytes) -> None:
        self._answers = answers
        self.sent_bytes = 0

    def recv(self, count: int) -> bytes:
        assert 0 < count <= ASKED_BYTES_MAX
        part, self._answers = self._answers[:count], self._answers[count:]
        return part

    def sendall(self, data: bytes) -> None:
        self.sent_bytes += len(data)

    def close(self) -> None:
        self._answers = b""


def client_of(sock: ScriptedSocket, export: str = "r0/0") -> NbdClient:
    """A client that has negotiated over it."""
    client = NbdClient.__new__(NbdClient)
    client.adopt(cast(socket.socket, sock), export)
    return client
