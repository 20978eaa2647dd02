# SPDX-License-Identifier: Apache-2.0
"""What happens to a connection before TLS: its address is judged first, then the handshake has a time limit.

``Door`` is the protocol of a fresh connection; it hands over to the ``Connection`` that ``accept`` makes.  With plain
TCP there is nothing to do before that, and no door.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any, cast

from repl.files.rpc.connection import Connection
from repl.files.translators.server.auth import Client, address_of
from repl.limits import RPC_HANDSHAKE_TIMEOUT_S

log = logging.getLogger(__name__)


class Doors:
    """Those of one server.  ``refusal`` says why an address is not let in, "" if it is."""

    def __init__(
        self, name: str, context: ssl.SSLContext, accept: Callable[[], Connection], refusal: Callable[[Client], str]
    ) -> None:
        self.name = name
        self.context = context
        self.accept = accept
        self.refusal = refusal
        self.waiting: set[asyncio.Task[None]] = set()

    def make(self) -> asyncio.Protocol:
        return _Door(self)

    def close(self) -> None:
        for task in self.waiting:
            task.cancel()


class _Door(asyncio.Protocol):
    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        raw = cast(asyncio.Transport, transport)
        raw.pause_reading()  # not a byte of it is looked at before TLS
        doors = self._doors
        address, port = address_of(raw.get_extra_info("peername"))
        if refusal := doors.refusal(Client(address, port)):
            log.warning("volume '%s': a client (%s:%d) is turned away: %s", doors.name, address, port, refusal)
            raw.abort()
            return
        task = asyncio.get_running_loop().create_task(self._begin(raw, f"{address}:{port}"))
        doors.waiting.add(task)
        task.add_done_callback(doors.waiting.discard)

    async def _begin(self, raw: asyncio.Transport, where: str) -> None:
        doors, loop = self._doors, asyncio.get_running_loop()
        connection = doors.accept()
        try:
            # The stubs want a Protocol; a BufferedProtocol is what streams of bytes are received with.
            secured: Any = await loop.start_tls(
                raw, cast(Any, connection), doors.context, server_side=True,
                ssl_handshake_timeout=RPC_HANDSHAKE_TIMEOUT_S,
            )  # fmt: skip
        except OSError as error:  # ssl.SSLError and TimeoutError are some
            log.info("volume '%s': no TLS with a client (%s): %s", doors.name, where, error)
            raw.abort()
        except BaseException:
            raw.abort()
            raise
        else:
            connection.connection_made(secured)
