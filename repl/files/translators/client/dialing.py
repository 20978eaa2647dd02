# SPDX-License-Identifier: Apache-2.0
"""Finding the server: the addresses behind its name, one after the other, until one takes the connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

from repl.files.options import Options
from repl.files.rpc.connection import Connection

CONNECT_TIMEOUT_S = 5.0
LOW_PORTS = range(1023, 600, -1)
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}

Address = str | tuple[socket.AddressFamily, tuple[Any, ...]]
MakeConnection = Callable[[], Connection]


def is_unix(options: Options) -> bool:
    return bool(options["transport.socket.connect-path"]) or options["transport.address-family"] == "unix"


def same_server(one: Options, other: Options) -> bool:
    """Both lead to the same volume in the same way."""
    names = ("transport.socket.connect-path", "remote-host", "remote-port", "remote-subvolume", "username",
             "transport.socket.ssl-enabled", "transport.address-family", "transport-type")  # fmt: skip
    return all(one[name] == other[name] for name in names)


async def addresses(options: Options) -> list[Address]:
    """Where the server may be.  Raises ``OSError`` if its name is not known."""
    if is_unix(options):
        return [options["transport.socket.connect-path"]]
    family = _FAMILIES.get(options["transport.address-family"], socket.AF_UNSPEC)
    found = await asyncio.get_running_loop().getaddrinfo(
        options["remote-host"], options["remote-port"], family=family, type=socket.SOCK_STREAM
    )
    return list(dict.fromkeys((entry[0], tuple(entry[4])) for entry in found))


def text_of(address: Address) -> str:
    return address if isinstance(address, str) else f"{address[1][0]} port {address[1][1]}"


async def dial(address: Address, options: Options, tls: ssl.SSLContext | None, make: MakeConnection) -> Connection:
    """Raises ``OSError``."""
    loop = asyncio.get_running_loop()
    hostname = "" if tls else None
    if isinstance(address, str):
        _, connection = await loop.create_unix_connection(make, address, ssl=tls, server_hostname=hostname)
        return connection
    opened = socket.socket(address[0], socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        _tune(opened, options)
        await loop.sock_connect(opened, address[1])
        _, connection = await loop.create_connection(make, sock=opened, ssl=tls, server_hostname=hostname)
    except BaseException:
        opened.close()
        raise
    return connection


def _tune(opened: socket.socket, options: Options) -> None:
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if options["transport.socket.keepalive"]:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    user_timeout_s = options["transport.tcp-user-timeout"]
    if user_timeout_s:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(user_timeout_s * 1000))
    window_bytes = options["tcp-window-size"]
    if window_bytes:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, window_bytes)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
    if not options["client-bind-insecure"]:
        for port in LOW_PORTS:
            with contextlib.suppress(OSError):
                opened.bind(("::" if opened.family == socket.AF_INET6 else "0.0.0.0", port))
                return
