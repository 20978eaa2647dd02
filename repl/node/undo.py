# SPDX-License-Identifier: Apache-2.0
"""Undo of a split brain: the loser's version of the disk is kept when its blocks are overwritten.

The engine copies each block before its first overwriting (csrc/engine/undo.c); here stands when that begins, what
happens when it cannot, and who may look.  The files are the shell's.  One undo per volume: a second split brain is
refused until somebody has dropped the first one's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from repl.drbd.states import ConnectionState
from repl.engine import commands as ec
from repl.engine.events import Event, Result
from repl.errors import DiskFailed, ReplError, RequestRefused, UsageError
from repl.limits import BLOCK_BYTES
from repl.node import actions as act
from repl.node.drops import FinalDrop
from repl.node.flow import Promise
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node

_C = ConnectionState
_RESYNCING = (_C.WF_BITMAP_T, _C.WF_SYNC_UUID, _C.SYNC_TARGET, _C.PAUSED_SYNC_T)


@dataclass(frozen=True, slots=True)
class UndoFound:
    """Files of an undo, open; ``facts`` are those that it began with (plain values), "created_s" among them."""

    overlay_fd: int
    map_fd: int
    facts: dict[str, Any] = field(default_factory=dict)


class Undo:
    """The undos of all volumes."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._opening: dict[int, Promise[UndoFound]] = {}

    # ---- the shell's answers ----

    def opened(self, volume: int, found: UndoFound) -> None:
        promise = self._opening.pop(volume, None)
        if promise is None:
            self._node.act(act.CloseUndo(volume))
        else:
            promise.keep(found)

    def open_failed(self, volume: int, error: Exception) -> None:
        promise = self._opening.pop(volume, None)
        if promise is not None:
            promise.fail(error)

    # ---- begin and go on ----

    async def begin(self, volume: Volume, why: str) -> None:
        """A split brain was decided against this node: from now on nothing is overwritten that was not saved."""
        node, name = self._node, f"{self._node.settings.resource}/{volume.number}"
        if not volume.settings.split_brain_undo or not volume.attached:
            return
        generation = str(volume.uuids)
        if volume.undo is not None:
            if volume.undo.facts.get("generation") == generation:
                return  # the same split brain; the last attempt broke off
            raise FinalDrop(
                f"{name} still keeps the undo of an earlier split brain.",
                reason="undo-exists",
                advice=f'"replctl undo export {name}" if it is needed, "replctl undo drop {name}", then connect again.',
            )
        facts = {
            "resource": node.settings.resource,
            "volume": volume.number,
            "generation": generation,
            "peer": node.settings.peer,
            "why": why,
            "size_bytes": volume.size_sectors * 512,
        }
        promise: Promise[UndoFound] = Promise()
        self._opening[volume.number] = promise
        node.act(act.OpenUndo(volume.number, facts))
        try:
            found = await promise
            await self._use(volume, found)
        except (ReplError, OSError) as error:
            raise FinalDrop(
                f"{name}: what is to be overwritten cannot be kept: {error}",
                reason="undo-failed",
                advice=self._advice(volume),
            ) from None
        node.emit("undo", "what the resync overwrites is kept (split-brain-undo)", volume=volume.number)

    async def resume(self, volume: Volume, found: UndoFound | None, size_sectors: int) -> None:
        """The disk was attached: an undo that exists goes on before anything can write."""
        if found is None:
            return
        if int(found.facts.get("size_bytes", 0)) > size_sectors * 512:
            self._node.act(act.CloseUndo(volume.number))
            raise DiskFailed(
                f"{self._node.settings.resource}/{volume.number}: its undo belongs to a larger device.",
                advice="Restore the size, or delete the undo's files.",
            )
        await self._use(volume, found)
        self._node.emit("undo", "the undo of a split brain goes on", volume=volume.number)

    async def _use(self, volume: Volume, found: UndoFound) -> None:
        done = await self._node.ask(ec.UndoStart(volume.number, ec.UndoFiles(found.overlay_fd, found.map_fd)))
        if done.status is not Result.OK:
            self._node.act(act.CloseUndo(volume.number))
            raise DiskFailed(f"the undo's map cannot be read: {os.strerror(done.error)}.", errno=done.error)
        volume.undo = found

    def let_go(self, volume: Volume) -> None:
        """The disk was detached: the engine has let the files go."""
        if volume.undo is not None:
            volume.undo = None
            self._node.act(act.CloseUndo(volume.number))

    # ---- failure ----

    def engine_failed(self, event: Event) -> None:
        """Something could not be saved; the writes that would destroy it wait."""
        volume = self._node.volumes.get(event.volume)
        if volume is not None and volume.undo is not None:
            self._node.start(self._failed(volume, event.error), "undo failed")

    async def _failed(self, volume: Volume, error: int) -> None:
        node, name = self._node, f"{self._node.settings.resource}/{volume.number}"
        text = f"{name}: what is to be overwritten cannot be kept: {os.strerror(error)}"
        if volume.state.conn in _RESYNCING and volume.settings.split_brain_undo_on_error == "stop":
            node.connection.end_for_good(FinalDrop(text, reason="undo-failed", advice=self._advice(volume)))
            await node.watch(lambda: not node.is_connected)
            await node.ask(ec.UndoCancel(volume.number))
            return
        node.emit("undo", f"{text}; the undo is given up", level="error", volume=volume.number)
        await self._drop(volume)

    def _advice(self, volume: Volume) -> str:
        name = f"{self._node.settings.resource}/{volume.number}"
        return (
            f'Make room for the undo and "replctl connect {self._node.settings.resource}"; or give it up with '
            f'"replctl undo drop {name}" and "split-brain-undo no" or "split-brain-undo-on-error drop".'
        )

    # ---- the operator ----

    async def _drop(self, volume: Volume) -> None:
        volume.undo = None
        await self._node.ask(ec.UndoStop(volume.number))
        self._node.act(act.CloseUndo(volume.number, is_deleted=True))

    async def drop(self, volume: Volume) -> None:
        name = f"{self._node.settings.resource}/{volume.number}"
        if volume.undo is None:
            raise UsageError(f"{name} has no undo.")
        if volume.undo_open_count:
            raise RequestRefused(
                f"{name}: {volume.undo_open_count} clients read its undo.", advice="Disconnect them first."
            )
        self._node.emit("undo", "the undo is dropped", volume=volume.number)
        await self._drop(volume)

    def open(self, volume: Volume) -> int:
        """An NBD client wants to read it; the size."""
        if volume.undo is None:
            raise UsageError(f"{self._node.settings.resource}/{volume.number} has no undo.")
        volume.undo_open_count += 1
        return int(volume.undo.facts["size_bytes"])

    def closed(self, volume: Volume) -> None:
        volume.undo_open_count = max(0, volume.undo_open_count - 1)

    def status(self, volume: Volume) -> dict[str, Any] | None:
        if volume.undo is None:
            return None
        stats = self._node.stats.volume_stats(volume.number)
        saved = stats.undo_saved_bits * BLOCK_BYTES if stats is not None else 0
        return {**volume.undo.facts, "saved_bytes": saved, "open": volume.undo_open_count}
