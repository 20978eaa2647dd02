# SPDX-License-Identifier: Apache-2.0
"""The control socket: requests of ``replctl`` in, answers out.

Inputs: a path and a handler ``(request) -> answer`` that is called in the event loop's thread.  A client is served
if it runs as our own user or as root.  Each may have several requests under way; answers come as they are ready.
What one client does wrong closes that client only.  Errors: ``ConfigError`` if the socket cannot be made.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repl.daemon import protocol
from repl.daemon.protocol import HEADER, Request
from repl.errors import ConfigError, ProtocolError, RequestRefused
from repl.limits import CONTROL_CLIENTS_MAX

REQUESTS_PER_CLIENT_MAX = 16
FRAME_TIMEOUT_S = 10.0  # from the first byte of a frame to its last
UNREAD_BYTES_MAX = 4 << 20  # answers that a client does not read
CLOSE_TIMEOUT_S = 2.0

_UCRED = struct.Struct("=iII")
_log = logging.getLogger("repl.daemon.control")

Respond = Callable[[dict[str, Any], Exception | None], None]
# What the handler returns, if anything, says that the client is gone.
Handler = Callable[[Request, Respond], Callable[[], None] | None]


class ControlServer:
    """Listens until ``close``."""

    def __init__(self, path: Path, handler: Handler, *, clients_max: int = CONTROL_CLIENTS_MAX) -> None:
        self._path = path
        self._handler = handler
        self._clients_max = clients_max
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """The caller holds the resource's lock, so a socket that is there is a stale one."""
        try:
            sock = _listen(self._path)
        except OSError as error:
            raise ConfigError(
                f"the control socket {self._path} cannot be made: {error.strerror or error}.",
                advice="Choose another run directory (--run-dir or REPL_RUN_DIR).",
            ) from error
        self._server = await asyncio.start_unix_server(self._connected, sock=sock)

    async def close(self) -> None:
        """Stops listening; answers that are written already still go out."""
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        for writer in list(self._writers):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await writer.drain()
            writer.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        reason = self._refusal(writer)
        if reason:
            _log.warning("control: refused a client: %s", reason)
            writer.close()
            return
        self._clients.add(task)
        self._writers.add(writer)
        # Answers above this pile up in memory only as far as _respond allows.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            await _Client(reader, writer, self._handler).serve()
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        except Exception:
            _log.exception("control: serving a client failed")
        finally:
            self._clients.discard(task)
            self._writers.discard(writer)
            writer.close()

    def _refusal(self, writer: asyncio.StreamWriter) -> str:
        if len(self._clients) >= self._clients_max:
            return f"{self._clients_max} clients are connected"
        try:
            uid = peer_uid(writer.get_extra_info("socket"))
        except OSError as error:
            return f"its user is not known: {error}"
        if uid not in (0, os.geteuid()):
            return f"user {uid} is neither root nor ours"
        return ""


class _Client:
    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handler = handler
        self._pending: dict[int, Callable[[], None] | None] = {}
        self._next_pending = 0

    async def serve(self) -> None:
        try:
            await self._serve()
        finally:
            for cancel in list(self._pending.values()):
                if cancel is not None:
                    cancel()

    async def _serve(self) -> None:
        while True:
            try:
                message = await self._read_frame()
            except (ProtocolError, TimeoutError) as error:
                if isinstance(error, TimeoutError):
                    error = ProtocolError("a control frame was not finished in time.")
                _log.info("control: dropped a client: %s", error)
                self._write(protocol.encode_answer(None, {}, error))
                return
            self._take(message)

    async def _read_frame(self) -> dict[str, Any]:
        first = await self._reader.readexactly(1)
        async with asyncio.timeout(FRAME_TIMEOUT_S):
            header = first + await self._reader.readexactly(HEADER.size - 1)
            body = await self._reader.readexactly(protocol.frame_length(header))
        return protocol.decode_body(body)

    def _take(self, message: dict[str, Any]) -> None:
        try:
            request = protocol.parse_request(message)
        except ProtocolError as error:
            found = message.get("id")
            self._write(protocol.encode_answer(found if isinstance(found, int) else None, {}, error))
            return
        if len(self._pending) >= REQUESTS_PER_CLIENT_MAX:
            error_ = RequestRefused(f"{request.verb}: {REQUESTS_PER_CLIENT_MAX} requests are under way.")
            self._write(protocol.encode_answer(request.request_id, {}, error_))
            return
        number = self._next_pending
        self._next_pending += 1
        self._pending[number] = None

        def respond(result: dict[str, Any], error: Exception | None) -> None:
            self._pending.pop(number, None)
            try:
                frame = protocol.encode_answer(request.request_id, result, error)
            except Exception as failure:  # a result that cannot be packed
                _log.exception("control: the answer to %s cannot be sent", request.verb)
                frame = protocol.encode_answer(request.request_id, {}, failure)
            self._write(frame)

        cancel = self._handler(request, respond)
        if number in self._pending:
            self._pending[number] = cancel

    def _write(self, frame: bytes) -> None:
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() + len(frame) > UNREAD_BYTES_MAX:
            _log.info("control: dropped a client that does not read its answers")
            transport.abort()
            return
        self._writer.write(frame)


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a Unix socket."""
    _pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def _listen(path: Path) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(None, "it exists and is not a socket")
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock
