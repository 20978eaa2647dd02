# SPDX-License-Identifier: Apache-2.0
"""The volumes as NBD exports: the provider for ``nbd.server`` and the handover of clients to the engine.

Names are ``RESOURCE/VOLUME``; an empty name means the only volume.  ``RESOURCE/VOLUME@undo`` is what a split brain's
loser had, read-only, while it is kept; it is not listed, so that the only volume stays the default.

Stream numbers 16..255 are given out here and come back with the engine's NBD_CLOSED.  What the node refuses becomes the
refusal that the client sees.
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
UNDO_SUFFIX = "@undo"


class Exports:
    """``nbd.server.ExportProvider`` on top of the node."""

    def __init__(self, shell: Shell, resource: str, volumes: Sequence[int]) -> None:
        self._shell = shell
        self._listed = {f"{resource}/{number}": number for number in volumes}
        self._streams: dict[int, int] = {}  # stream -> volume
        self._undo_streams: set[int] = set()
        self._free = list(range(STREAMS_MAX - 1, PEER_STREAMS - 1, -1))
        shell.on_nbd_closed = self.stream_closed

    # nbd.server.ExportProvider

    def list_exports(self) -> Sequence[ListedExport]:
        return [ListedExport(name) for name in self._listed]

    def unlisted_export(self, name: str) -> str | None:
        """The undo of a volume."""
        return name if name.endswith(UNDO_SUFFIX) and name.removesuffix(UNDO_SUFFIX) in self._listed else None

    async def _open_undo(self, name: str, *, for_go: bool) -> Export | Refusal:
        volume = self._listed[name.removesuffix(UNDO_SUFFIX)]
        try:
            result = await self._ask("undo-open" if for_go else "undo-info", volume)
        except ReplError as error:
            return Refusal(RefusalKind.POLICY, str(error))
        size = int(result["size_bytes"])
        return Export(name, volume, size_bytes=size, block_min=BLOCK_MIN_BYTES, read_only=True)

    async def open_export(self, name: str, *, for_go: bool) -> Export | Refusal:
        if name.endswith(UNDO_SUFFIX):
            return await self._open_undo(name, for_go=for_go)
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
        if export.name.endswith(UNDO_SUFFIX):
            self._shell.undo_closed(export.volume)
            return
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
        is_undo = end.export.name.endswith(UNDO_SUFFIX)
        if is_undo:
            flags |= NbdFlags.UNDO
        stream = self._free.pop()
        if is_undo:
            self._undo_streams.add(stream)
        self._streams[stream] = end.export.volume
        nbd = Nbd(fd=sock.detach(), flags=flags, context_id=context_id)
        self._shell.engine_command(NbdAdd(end.export.volume, stream, nbd, end.leftover))

    def stream_closed(self, stream: int) -> int | None:
        """The volume whose client is gone; None for a number that is not in use."""
        volume = self._streams.pop(stream, None)
        if volume is not None:
            self._free.append(stream)
        if volume is not None and stream in self._undo_streams:
            self._undo_streams.discard(stream)
            self._shell.undo_closed(volume)
            return None
        return volume

    async def _ask(self, verb: str, volume: int) -> dict[str, Any]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

        def answer(result: dict[str, Any], error: Exception | None) -> None:
            if future.cancelled():  # the client gave up meanwhile: nothing may stay open
                if error is None:
                    self._given_back(verb, volume)
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._shell.command(verb, {"volume": volume}, answer)
        try:
            return await future
        except asyncio.CancelledError:
            # Cancelled just after the answer came, before it was read.
            if future.done() and not future.cancelled() and not future.exception():
                self._given_back(verb, volume)
            raise

    def _given_back(self, verb: str, volume: int) -> None:
        if verb == "nbd-open":
            self._shell.nbd_closed(volume)
        elif verb == "undo-open":
            self._shell.undo_closed(volume)
