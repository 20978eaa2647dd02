# SPDX-License-Identifier: Apache-2.0
"""A client of ``repld``'s control socket, without an event loop.

Inputs: a socket path, verbs and arguments.  Outputs: result maps.  Errors: :class:`NotRunning` when nobody listens,
``PeerLost`` when the daemon goes away, ``WaitTimedOut`` when it does not answer, else the daemon's own errors.
"""

from __future__ import annotations

import select
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from repl.daemon import protocol
from repl.errors import PeerLost, ProtocolError, RequestRefused, WaitTimedOut

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 120.0
RECEIVE_BYTES = 64 * 1024


class NotRunning(RequestRefused):
    """There is no ``repld`` for this resource."""

    code = "not-running"


class Client:
    """One connection; requests one after the other."""

    def __init__(self, path: Path, resource: str) -> None:
        self._resource = resource
        self._next_id = 1
        self._received = bytearray()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(CONNECT_TIMEOUT_S)
        try:
            self._sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            self._sock.close()
            raise NotRunning(
                f"{resource}: it is not running on this node", number=158, advice=f'"replctl up {resource}" starts it.'
            ) from error
        except OSError as error:
            self._sock.close()
            raise RequestRefused(
                f"{resource}: the control socket {path} does not answer: {error.strerror or error}.",
                advice="Run replctl as the user who runs repld, or as root.",
            ) from error

    def call(self, verb: str, /, *, answer_timeout_s: float | None = ANSWER_TIMEOUT_S, **args: Any) -> dict[str, Any]:
        """Ask and wait for the answer (None: for ever)."""
        self.send(verb, **args)
        answer = self.poll(answer_timeout_s)
        if answer is None:
            raise WaitTimedOut(
                f"{self._resource}: {verb}: repld did not answer within {answer_timeout_s:g} s.",
                advice="Look at its log; perhaps a disk hangs.",
            )
        return answer

    def send(self, verb: str, /, **args: Any) -> None:
        """Ask only; ``poll`` gets the answer."""
        frame = protocol.encode_frame({"id": self._next_id, "verb": verb, "args": args})
        self._sock.settimeout(CONNECT_TIMEOUT_S)
        try:
            self._sock.sendall(frame)
        except OSError as error:
            raise self._lost() from error

    def poll(self, timeout_s: float | None) -> dict[str, Any] | None:
        """The answer to the last ``send``; None if it has not come in time.  Raises the daemon's error."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (body := self._take_body()) is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._sock], [], [], left)[0]:
                return None
            self._receive()
        message = protocol.decode_body(body)
        if message.get("id") not in (self._next_id, None):
            raise ProtocolError(f"{self._resource}: repld answered another question.")
        self._next_id += 1
        if message.get("ok") is not True:
            raise protocol.error_from_map(message.get("error"))
        result = message.get("result")
        return result if isinstance(result, dict) else {}

    def wait_end(self, timeout_s: float) -> bool:
        """Wait until the daemon closes the connection; False if it does not in time."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._sock], [], [], left)[0]:
                return False
            try:
                if not self._sock.recv(RECEIVE_BYTES):
                    return True
            except OSError:
                return True
        return False

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> None:
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except OSError as error:
            raise self._lost() from error
        if not data:
            raise self._lost()
        self._received += data

    def _take_body(self) -> bytes | None:
        size = protocol.HEADER.size
        if len(self._received) < size:
            return None
        end = size + protocol.frame_length(bytes(self._received[:size]))
        if len(self._received) < end:
            return None
        body = bytes(self._received[size:end])
        del self._received[:end]
        return body

    def _lost(self) -> PeerLost:
        return PeerLost(f"{self._resource}: repld closed the connection.", advice="It may have ended; see its log.")
