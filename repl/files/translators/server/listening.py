# SPDX-License-Identifier: Apache-2.0
"""The sockets that protocol/server listens on.

Input: its options; output: listening sockets, bound before anything is served.  Errors: ``ConfigError`` that names
the address and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from repl.errors import ConfigError
from repl.files.options import Options

_EVERYWHERE = {"*": "0.0.0.0", "": "0.0.0.0"}


def open_sockets(options: Options) -> list[socket.socket]:
    """One for each address."""
    if options["transport-type"].startswith("unix") or options["transport.socket.listen-path"]:
        return [_open_unix(options["transport.socket.listen-path"], options["transport.listen-backlog"])]
    sockets: list[socket.socket] = []
    try:
        port, backlog = options["transport.socket.listen-port"], options["transport.listen-backlog"]
        for host in options["transport.socket.bind-address"]:
            sockets.append(_open_tcp(host, port, backlog))
    except BaseException:
        for opened in sockets:
            opened.close()
        raise
    return sockets


def place_of(options: Options) -> tuple[object, ...]:
    """Where the options say to listen: a change of it needs new sockets."""
    names = ("transport-type", "transport.socket.listen-path", "transport.socket.bind-address",
             "transport.socket.listen-port")  # fmt: skip
    return tuple(options[name] for name in names)


def _open_tcp(host: str, port: int, backlog: int) -> socket.socket:
    host = _EVERYWHERE.get(host, host)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError(f"bind-address '{host}' is no address: {error.strerror}.") from error
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(address)
        opened.listen(backlog)
        opened.setblocking(False)
    except OSError as error:
        opened.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}.", advice=_advice(error)) from error
    return opened


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "Something listens there already: stop it, or choose another transport.socket.listen-port."
    if error.errno == errno.EADDRNOTAVAIL:
        return "This host does not have the address: correct transport.socket.bind-address."
    if error.errno in (errno.EACCES, errno.EPERM):
        return "Ports below 1024 need root."
    return ""


def _open_unix(path: str, backlog: int) -> socket.socket:
    if not path:
        raise ConfigError("transport-type unix needs the option transport.socket.listen-path.")
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode) and not _is_alive(path):
            os.unlink(path)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        opened.bind(path)
        os.chmod(path, 0o600)
        opened.listen(backlog)
        opened.setblocking(False)
    except OSError as error:
        opened.close()
        advice = "" if Path(path).parent.is_dir() else "Its folder does not exist."
        raise ConfigError(f"cannot listen on the socket {path}: {error.strerror}.", advice=advice) from error
    return opened


def _is_alive(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
    return True


def tune(connected: socket.socket, options: Options) -> None:
    """Options of an accepted connection."""
    if connected.family not in (socket.AF_INET, socket.AF_INET6):
        return
    set_option = connected.setsockopt
    set_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    user_timeout_ms = int(options["transport.tcp-user-timeout"] * 1000)
    if user_timeout_ms:
        set_option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)
    if options["transport.socket.keepalive"]:
        set_option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        set_option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(options["transport.socket.keepalive-time"]))
        set_option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, int(options["transport.socket.keepalive-interval"]))
        set_option(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, options["transport.socket.keepalive-count"])
