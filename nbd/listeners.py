# SPDX-License-Identifier: Apache-2.0
"""Listening sockets for NBD: Unix (mode 0600, stale files cleared away) and TCP.

Inputs: a path, or a host and a port.  Outputs: non-blocking listening sockets.
Errors: ``ConfigError`` saying what is in the way and what to do about it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import dataclass

from repl.errors import ConfigError
from repl.limits import NBD_CLIENTS_MAX

UNIX_PATH_BYTES_MAX = 107
UNIX_MODE = 0o600
PROBE_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening socket.  ``path`` and ``inode`` (device, inode) are set for Unix sockets only."""

    sock: socket.socket
    label: str
    path: str = ""
    inode: tuple[int, int] = (0, 0)

    def close(self) -> None:
        """Closes the socket and removes its file, unless somebody has put another one there."""
        self.sock.close()
        if not self.path:
            return
        try:
            if _inode(self.path) == self.inode:
                os.unlink(self.path)
        except FileNotFoundError:
            pass


def listen_unix(path: str) -> Listener:
    if not path or "\0" in path or len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise ConfigError(f"cannot listen for NBD on {path!r}: a Unix socket's path has 1 to "
                          f"{UNIX_PATH_BYTES_MAX} bytes.", advice="Use a shorter path.")
    try:
        _clear_stale_socket(path)
        return _listen_path(path)
    except OSError as error:
        raise _listen_error(path, error) from error


def listen_tcp(host: str, port: int) -> list[Listener]:
    """Listens on every address of ``host`` ("" = all of this machine); ``port`` 0 lets the system choose."""
    where = format_address(host or "*", port)
    if not 0 <= port <= 65535:
        raise ConfigError(f"cannot listen for NBD on {where}: the port is outside 0..65535.")
    try:
        infos = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen for NBD on {where}: {error}.",
                          advice="Give an address of this machine.") from error
    listeners: list[Listener] = []
    missing: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(infos):
        try:
            listeners.append(_listen_address(family, address))
        except OSError as error:
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                missing = error  # "localhost" also means ::1 where there is no IPv6
                continue
            for listener in listeners:
                listener.close()
            raise _listen_error(where, error) from error
    if not listeners and missing is not None:
        raise _listen_error(where, missing) from missing
    return listeners


def format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen_path(path: str) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
    except OSError:
        sock.close()
        raise
    listener = Listener(sock, label=f"unix:{path}", path=path, inode=_inode(path))
    try:
        # Nobody can connect between bind and listen, so nobody slips in before the mode is set.
        os.chmod(path, UNIX_MODE)
        sock.listen(NBD_CLIENTS_MAX)
        sock.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _listen_address(family: int, address: tuple[str | int | bytes, ...]) -> Listener:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(NBD_CLIENTS_MAX)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    host, port = sock.getsockname()[:2]
    return Listener(sock, label=format_address(host, port))


def _clear_stale_socket(path: str) -> None:
    """Removes a socket file that a dead server left; anything that lives or is no socket stays."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"cannot listen for NBD on {path}: it exists and is not a socket.",
                          advice="Choose another path or remove the file.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except TimeoutError:
            pass  # a full backlog: somebody listens, if slowly
    raise ConfigError(f"cannot listen for NBD on {path}: another server answers there.",
                      advice="Stop it or choose another path.")


def _listen_error(where: str, error: OSError) -> ConfigError:
    advice = {
        errno.EADDRINUSE: "Another program uses it: stop that program or choose another port.",
        errno.EADDRNOTAVAIL: "Give an address of this machine.",
        errno.EACCES: "Use a place that this user may write to, or a port from 1024 up.",
        errno.ENOENT: "Create the directory first.",
    }.get(error.errno or 0, "")
    return ConfigError(f"cannot listen for NBD on {where}: {error.strerror or error}.", advice=advice)


def _inode(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
