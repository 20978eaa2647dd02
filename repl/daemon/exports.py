# SPDX-License-Identifier: Apache-2.0
"""The volumes as NBD exports: the provider for ``nbd.server`` and the handover of clients to the engine.

Names are ``RESOURCE/VOLUME``; an empty name means the only volume.  Stream numbers 16..255 are given out here and
come back with the engine's NBD_CLOSED.  What the node refuses becomes the refusal that the client sees.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

from nbd.constants import BASE_ALLOCATION
from nbd.export import Export, ListedExport, Refusal, RefusalKind
from nbd.negotiation import Finished
from repl.daemon.shell import PEER_STREAMS, Shell
from repl.engine.commands import STREAMS_MAX, Nbd, NbdAdd, NbdFlags
from repl.errors import InternalError, ReplError

BLOCK_MIN_BYTES = 512


class Exports:
    """``nbd.server.ExportProvider`` on top of the node."""

    def __init__(self, shell: Shell, resource: str, volumes: Sequence[int]) -> None:
        self._shell = shell
        self._listed = {f"{resource}/{number}": number for number in volumes}
        self._streams: dict[int, int] = {}  # stream -> volume
        self._free = list(range(STREAMS_MAX - 1, PEER_STREAMS - 1, -1))
        shell.on_nbd_closed = self.stream_closed

    # nbd.server.ExportProvider

    def list_exports(self) -> Sequence[ListedExport]:
        return [ListedExport(name) for name in self._listed]

    async def open_export(self, name: str, *, for_go: bool) -> Export | Refusal:
        volume = self._listed[name]
        try:
            result = await self._ask("nbd-open" if for_go else "nbd-info", volume)
        except ReplError as error:
            return Refusal(RefusalKind.POLICY, str(error))
        try:
            return Export(name, volume, size_bytes=int(result["size_bytes"]), block_min=BLOCK_MIN_BYTES)
        except BaseException:
            if for_go:
                self._shell.nbd_closed(volume)
            raise

    def close_export(self, export: Export) -> None:
        self._shell.nbd_closed(export.volume)

    def served_clients(self) -> int:
        return len(self._streams)

    # Handover

    def handover(self, sock: socket.socket, end: Finished) -> None:
        """Gives the connection to the engine, which owns it from then on."""
        if not self._free:
            raise InternalError("no stream number is free for another NBD client.")
        flags = NbdFlags(0)
        if end.export.read_only:
            flags |= NbdFlags.READ_ONLY
        if end.structured:
            flags |= NbdFlags.STRUCTURED
        context_id = end.meta_contexts.get(BASE_ALLOCATION, 0)
        if BASE_ALLOCATION in end.meta_contexts:
            flags |= NbdFlags.ALLOCATION
        stream = self._free.pop()
        self._streams[stream] = end.export.volume
        nbd = Nbd(fd=sock.detach(), flags=flags, context_id=context_id)
        self._shell.engine_command(NbdAdd(end.export.volume, stream, nbd, end.leftover))

    def stream_closed(self, stream: int) -> int | None:
        """The volume whose client is gone; None for a number that is not in use."""
        volume = self._streams.pop(stream, None)
        if volume is not None:
            self._free.append(stream)
        return volume

    async def _ask(self, verb: str, volume: int) -> dict[str, Any]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

        def answer(result: dict[str, Any], error: Exception | None) -> None:
            if future.cancelled():  # the client gave up meanwhile: nothing may stay open
                if error is None and verb == "nbd-open":
                    self._shell.nbd_closed(volume)
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._shell.command(verb, {"volume": volume}, answer)
        try:
            return await future
        except asyncio.CancelledError:
            # Cancelled just after the answer came, before it was read.
            if verb == "nbd-open" and future.done() and not future.cancelled() and not future.exception():
                self._shell.nbd_closed(volume)
            raise
