# SPDX-License-Identifier: Apache-2.0
"""What happens to a connection before TLS: its address is judged first, then the handshake has a time limit.

Input: listening sockets; output: a ``Connection`` of ``accept`` for each client whose handshake succeeds.  Connections
are accepted here and not by the event loop's server, which would read from them at once.  With plain TCP there is
nothing to do before the first byte, and no door.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

from repl.files.rpc.connection import Connection
from repl.files.translators.server.auth import Client, address_of
from repl.limits import RPC_HANDSHAKE_TIMEOUT_S

log = logging.getLogger(__name__)

PAUSE_S = 0.2  # when there is no room for another descriptor


class Doors:
    """Those of one server.  ``refusal`` says why an address is not let in, "" if it is."""

    def __init__(
        self, name: str, context: ssl.SSLContext, accept: Callable[[], Connection], refusal: Callable[[Client], str]
    ) -> None:
        self.name = name
        self.handshakes = 0
        self._context = context
        self._accept = accept
        self._refusal = refusal
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, listening: socket.socket) -> None:
        self._spawn(self._accept_all(listening))

    async def close(self) -> None:
        """Before the listening sockets are closed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept_all(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listening)
            except OSError as error:
                log.warning("volume '%s': a client cannot be accepted: %s", self.name, error)
                await asyncio.sleep(PAUSE_S)
                continue
            address, port = address_of(peer)
            if refusal := self._refusal(Client(address, port)):
                log.warning("volume '%s': a client (%s:%d) is turned away: %s", self.name, address, port, refusal)
                accepted.close()
            else:
                self.handshakes += 1
                self._spawn(self._begin(accepted, f"{address}:{port}"))

    async def _begin(self, accepted: socket.socket, where: str) -> None:
        accepted.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._accept, accepted, ssl=self._context, ssl_handshake_timeout=RPC_HANDSHAKE_TIMEOUT_S
            )
        except OSError as error:  # ssl.SSLError and TimeoutError are some
            log.info("volume '%s': no TLS with a client (%s): %r", self.name, where, error)
            accepted.close()
        finally:
            self.handshakes -= 1
