# SPDX-License-Identifier: Apache-2.0
"""Sockets of the replication link until the node has them: the listener and outgoing connections.

Inputs: the two addresses of the configuration.  Outputs: descriptors (connected, non-blocking) through callbacks.
Nothing here raises: what fails is reported.  Runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from repl.config.model import Address, AddressFamily

LISTEN_BACKLOG = 128  # a crowd of strangers must not fill it
LISTEN_RETRY_S = 1.0
ACCEPTS_PER_WAKE_MAX = 16
ACCEPT_PAUSE_S = 0.2
STRANGERS_NAMED_MAX = 16

_log = logging.getLogger("repl.daemon.link")


@dataclass(frozen=True, slots=True)
class LinkPlaces:
    """Both ends, and buffer sizes in bytes (0 = the kernel tunes them)."""

    mine: Address
    peer: Address
    send_buffer_bytes: int = 0
    receive_buffer_bytes: int = 0
    accepts_any: bool = False  # net { accept-from any; }: the peer's address is translated on the way


class LinkSockets:
    """Listens and dials for one resource."""

    def __init__(
        self,
        places: LinkPlaces,
        *,
        on_accepted: Callable[[int, str], None],
        on_dialled: Callable[[int, int], None],
        on_dial_failed: Callable[[int, str], None],
        on_listen_failed: Callable[[str], None],
    ) -> None:
        self._places = places
        self._on_accepted = on_accepted
        self._on_dialled = on_dialled
        self._on_dial_failed = on_dial_failed
        self._on_listen_failed = on_listen_failed
        self._listener: socket.socket | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._dials: set[asyncio.Task[None]] = set()
        self._strangers: set[str] = set()

    @property
    def is_listening(self) -> bool:
        return self._listener is not None

    # Listening

    def listen(self, on: bool) -> None:
        if not on:
            self._stop_listening()
        elif self._listener is None and self._retry is None:
            self._try_to_listen(is_first=True)

    def _try_to_listen(self, *, is_first: bool) -> None:
        loop = asyncio.get_running_loop()
        self._retry = None
        try:
            sock = self._socket(self._places.mine)
            try:
                sock.bind(_sockaddr(self._places.mine))
                sock.listen(LISTEN_BACKLOG)
            except OSError:
                sock.close()
                raise
        except OSError as error:
            self._retry = loop.call_later(LISTEN_RETRY_S, lambda: self._try_to_listen(is_first=False))
            if is_first:
                self._on_listen_failed(self._listen_reason(error))
            return
        self._listener = sock
        loop.add_reader(sock.fileno(), self._accept)
        _log.log(logging.DEBUG if is_first else logging.INFO, "listening on %s", self._places.mine.endpoint)

    def _listen_reason(self, error: OSError) -> str:
        where = self._places.mine.endpoint
        if error.errno == errno.EADDRINUSE:
            return f"{where}: another program uses this port (102)"
        if error.errno == errno.EADDRNOTAVAIL:
            return f"{where}: this machine does not have this address"
        return f"{where}: {error.strerror or error}"

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_WAKE_MAX):
            listener = self._listener
            if listener is None:  # closed by what the last connection led to
                return
            try:
                sock, address = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue
                _log.warning("a connection to %s cannot be accepted: %s", self._places.mine.endpoint, error)
                self._pause_accepting(listener)
                return
            if not self._is_expected(str(address[0])):
                sock.close()
                continue
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                sock.close()
                continue
            host = _plain_ip(str(address[0]))
            self._on_accepted(sock.detach(), "" if host == _plain_ip(self._places.peer.host) else host)

    def _is_expected(self, host: str) -> bool:
        """Only the configured peer may connect; a stranger is named once."""
        if self._places.accepts_any or _plain_ip(host) == _plain_ip(self._places.peer.host):
            return True
        if host not in self._strangers and len(self._strangers) < STRANGERS_NAMED_MAX:
            self._strangers.add(host)
            _log.warning(
                "refused a connection from %s: the peer is %s (net { accept-from any; } accepts everybody)",
                host,
                self._places.peer.host,
            )
        return False

    def _pause_accepting(self, listener: socket.socket) -> None:
        """Out of descriptors: the listener stays readable and would keep the loop busy."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener.fileno())

        def go_on() -> None:
            if self._listener is listener:
                loop.add_reader(listener.fileno(), self._accept)

        loop.call_later(ACCEPT_PAUSE_S, go_on)

    def _stop_listening(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._listener is not None:
            listener, self._listener = self._listener, None
            asyncio.get_running_loop().remove_reader(listener.fileno())
            listener.close()

    # Dialling

    def dial(self, dial_id: int, timeout_ms: int) -> None:
        task = asyncio.get_running_loop().create_task(self._dial(dial_id, timeout_ms))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _dial(self, dial_id: int, timeout_ms: int) -> None:
        try:
            sock = await self._connect(timeout_ms / 1000)
        except TimeoutError:
            self._on_dial_failed(dial_id, "timed out")
        except OSError as error:
            # asyncio puts its own words into strerror.
            self._on_dial_failed(dial_id, os.strerror(error.errno) if error.errno else str(error))
        else:
            self._on_dialled(dial_id, sock.detach())

    async def _connect(self, timeout_s: float) -> socket.socket:
        peer = _sockaddr(self._places.peer)
        sock = self._socket(self._places.mine)
        try:
            # From the configured address, any port: the peer knows us by it.
            sock.bind(_sockaddr(self._places.mine, port=0))
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().sock_connect(sock, peer)
            if sock.getsockname()[:2] == sock.getpeername()[:2]:
                # On one machine a dial to a port where nobody listens can meet itself.
                raise OSError(errno.ECONNREFUSED, "Connection refused")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        return sock

    async def close(self) -> None:
        self._stop_listening()
        tasks = [*self._dials]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _socket(self, address: Address) -> socket.socket:
        family = socket.AF_INET6 if address.family is AddressFamily.IPV6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._places.send_buffer_bytes:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._places.send_buffer_bytes)
            if self._places.receive_buffer_bytes:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._places.receive_buffer_bytes)
        except BaseException:
            sock.close()
            raise
        return sock


def _plain_ip(host: str) -> str:
    """One spelling for each address; IPv4 within IPv6 is IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _sockaddr(address: Address, *, port: int | None = None) -> tuple[Any, ...]:
    """The address as bind and connect take it; it is numeric, so nothing is looked up."""
    infos = socket.getaddrinfo(
        address.host,
        address.port if port is None else port,
        type=socket.SOCK_STREAM,
        flags=socket.AI_NUMERICHOST,
    )
    return infos[0][4]
