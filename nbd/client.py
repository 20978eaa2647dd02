# SPDX-License-Identifier: Apache-2.0
"""A small synchronous NBD client: one connection, one request at a time.

For tools, the demo and tests; anything heavier should use libnbd.  Offsets and lengths in bytes.  Raises
``UsageError`` for a refused export, ``NbdRequestError`` when the server answers a request with an error, ``PeerLost``
when it goes away.
Facts: the NBD protocol text (fixed newstyle, simple replies).
"""

from __future__ import annotations

import errno as errno_names
import os
import socket
import struct
from types import TracebackType

from nbd.constants import Command, CommandFlag, Info, Option, Reply
from nbd.uri import parse_uri
from repl.errors import PeerLost, ReplError, UsageError
from repl.limits import NBD_OPTION_BYTES_MAX, NBD_OPTIONS_MAX

_NBD_MAGIC = 0x4E42444D41474943
_OPTION_MAGIC = 0x49484156454F5054
_OPTION_REPLY_MAGIC = 0x0003E889045565A9
_REQUEST_MAGIC = 0x25609513
_REPLY_MAGIC = 0x67446698
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_ERRNO_MAX = 4096
EXPORT_BYTES_MAX = (1 << 63) - 1
TIMEOUT_S = 60.0


class NbdRequestError(ReplError):
    """The server answered a request with an error.  ``errno``: the protocol's number."""

    code = "nbd"

    def __init__(self, what: str, errno: int) -> None:
        name = errno_names.errorcode.get(errno, str(errno))
        text = os.strerror(errno) if errno < _ERRNO_MAX else "unknown"
        super().__init__(f"{what}: {name} ({text}).")
        self.errno = errno


class NbdClient:
    """Connected to one export from construction to :meth:`close`."""

    def __init__(self, uri: str, *, timeout_s: float = TIMEOUT_S) -> None:
        target = parse_uri(uri)
        if target.socket_path:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(timeout_s)
            sock.connect(target.socket_path)
        else:
            sock = socket.create_connection((target.host, target.port), timeout=timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.adopt(sock, target.export)

    def adopt(self, sock: socket.socket, export: str) -> None:
        """Negotiate on a connected socket, which belongs to the client from now on."""
        self._socket = sock
        self._cookie = 0
        self.size_bytes = 0
        self.flags = 0
        try:
            self._negotiate(export)
        except BaseException:
            self._socket.close()
            raise

    # ---- requests ----

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``."""
        self._request(Command.READ, offset, length)
        self._reply(f"read of {length} bytes at {offset}")
        return self._receive(length)

    def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        """Returns when the server has acknowledged the write."""
        self._request(Command.WRITE, offset, len(data), data, CommandFlag.FUA if fua else 0)
        self._reply(f"write of {len(data)} bytes at {offset}")

    def flush(self) -> None:
        """Everything acknowledged so far is stable afterwards."""
        self._request(Command.FLUSH, 0, 0)
        self._reply("flush")

    def trim(self, offset: int, length: int) -> None:
        self._request(Command.TRIM, offset, length)
        self._reply(f"trim of {length} bytes at {offset}")

    def zero(self, offset: int, length: int, *, fast: bool = False) -> None:
        """``fast``: an error (ENOTSUP) if it would cost as much as writing the zeroes."""
        self._request(Command.WRITE_ZEROES, offset, length, flags=CommandFlag.FAST_ZERO if fast else 0)
        self._reply(f"write-zeroes of {length} bytes at {offset}")

    def fileno(self) -> int:
        return self._socket.fileno()

    def wait_without_limit(self) -> None:
        """Requests may take as long as they like from now on (and the socket is a blocking one)."""
        self._socket.settimeout(None)

    def close(self) -> None:
        """Orderly end."""
        try:
            self._request(Command.DISC, 0, 0)
        except PeerLost:
            pass
        self._socket.close()

    def __enter__(self) -> NbdClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- bytes ----

    def _request(self, command: Command, offset: int, length: int, data: bytes = b"", flags: int = 0) -> None:
        self._cookie += 1
        self._send(_REQUEST.pack(_REQUEST_MAGIC, flags, command, self._cookie, offset, length) + data)

    def _reply(self, what: str) -> None:
        magic, error, cookie = _REPLY.unpack(self._receive(_REPLY.size))
        if magic != _REPLY_MAGIC or cookie != self._cookie:
            raise PeerLost(f"{what}: the server's reply makes no sense.")
        if error:
            raise NbdRequestError(what, error)

    def _negotiate(self, export: str) -> None:
        magic, option_magic, _ = struct.unpack(">QQH", self._receive(18))
        if magic != _NBD_MAGIC or option_magic != _OPTION_MAGIC:
            raise UsageError("This is not a newstyle NBD server.")
        self._send(struct.pack(">I", 3))
        name = export.encode()
        body = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._send(struct.pack(">QII", _OPTION_MAGIC, Option.GO, len(body)) + body)
        for _ in range(NBD_OPTIONS_MAX):
            reply_magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
            if reply_magic != _OPTION_REPLY_MAGIC:
                raise PeerLost("The server's option reply makes no sense.")
            if length > NBD_OPTION_BYTES_MAX:
                raise PeerLost(f"The server's option reply has {length} bytes.")
            payload = self._receive(length)
            if kind == Reply.ACK:
                return
            if kind == Reply.INFO and payload[:2] == struct.pack(">H", Info.EXPORT):
                if len(payload) != 12:
                    raise PeerLost(f"The server describes the export in {len(payload)} bytes.")
                self.size_bytes, self.flags = struct.unpack(">QH", payload[2:])
                if self.size_bytes > EXPORT_BYTES_MAX:
                    raise PeerLost(f"The server says that the export has {self.size_bytes} bytes.")
            elif kind >= Reply.ERR_UNSUP:
                raise UsageError(f"export {export!r} refused: {payload.decode(errors='replace') or hex(kind)}")
        raise PeerLost("The server does not come to an end with its option replies.")

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise PeerLost(f"The NBD server is gone: {error}.") from None

    def _receive(self, length: int) -> bytes:
        parts: list[bytes] = []
        left = length
        while left:
            try:
                part = self._socket.recv(min(left, 1 << 20))
            except OSError as error:
                raise PeerLost(f"The NBD server is gone: {error}.") from None
            if not part:
                raise PeerLost("The NBD server closed the connection.")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
