# SPDX-License-Identifier: Apache-2.0
"""Attaching and detaching the volumes' disks, and what happens when one fails."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from repl.drbd import superblock as sb
from repl.drbd.states import DiskState, Role
from repl.drbd.uuids import random_uuid
from repl.engine import commands as ec
from repl.engine.events import Event, Result
from repl.errors import DiskFailed, ReplError
from repl.node import actions as act
from repl.node.disk import Prepared
from repl.node.flow import Promise
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node


class Disks:
    """The disks of all volumes."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._opening: dict[int, Promise[Prepared]] = {}

    # ---- the shell's answers ----

    def opened(self, volume: int, prepared: Prepared) -> None:
        promise = self._opening.pop(volume, None)
        if promise is None:
            self._node.act(act.CloseDisk(volume))
        else:
            promise.keep(prepared)

    def open_failed(self, volume: int, error: Exception) -> None:
        promise = self._opening.pop(volume, None)
        if promise is not None:
            promise.fail(error)

    # ---- attach ----

    async def attach(self, volume: Volume) -> None:
        """Open, check, replay, load the bitmap; then the disk is in use."""
        node = self._node
        promise: Promise[Prepared] = Promise()
        self._opening[volume.number] = promise
        node.act(act.OpenDisk(volume.number))
        prepared = await promise
        volume.attach_disk(prepared)
        all_bits = volume.needs_all_bits()
        node.resync.options.tell_engine(volume)
        done = await node.ask(ec.VolumeAttach(volume.number, volume.attach_command()))
        if done.status is not Result.OK:
            volume.forget_disk()
            node.act(act.CloseDisk(volume.number))
            raise DiskFailed(
                f"{node.settings.resource}/{volume.number}: the bitmap cannot be read: {os.strerror(done.error)}.",
                errno=done.error,
                advice="Check the disk; create-md --force starts anew with a full sync.",
            )
        if all_bits and not await node.ask_ok(ec.BitmapSetAll(volume.number)):
            raise DiskFailed(f"{node.settings.resource}/{volume.number}: the bitmap cannot be written.")
        found, hot = volume.disk_state_found(), prepared.replayed_extents
        await node.transition(
            lambda v, s: replace(s, disk=found),
            only=volume,
            full_sync=False,
            reason=f"attached, {hot} hot extents replayed" if hot else "attached",
        )

    # ---- detach ----

    async def detach_clean(self, volume: Volume) -> None:
        """Orderly: bitmap, activity log, clean superblock, in this order; then let the descriptors go."""
        node = self._node
        if not volume.attached or volume.superblock is None:
            return
        await node.ask(ec.VolumeDrain(volume.number))
        stable = await node.ask_ok(ec.BitmapWrite(volume.number))
        stable = stable and await node.ask_ok(ec.AlInitialize(volume.number))
        if stable:
            clean = sb.mark_clean(volume.superblock)
            await node.ask_ok(ec.MdWrite(volume.number, clean.serialise()))
        await self._let_go(volume, DiskState.DISKLESS, "detached")

    async def _let_go(self, volume: Volume, state: DiskState, reason: str) -> None:
        node = self._node
        done = node.ask(ec.VolumeDetach(volume.number))
        volume.forget_disk()
        await node.transition(lambda v, s: replace(s, disk=state), only=volume, reason=reason)
        await done
        node.act(act.CloseDisk(volume.number))

    # ---- failure ----

    def engine_error(self, event: Event) -> None:
        """The engine has stopped using the disk (policy "detach")."""
        volume = self._node.volumes.get(event.volume)
        if volume is not None and volume.attached:
            self._node.start(self._failed(volume, event), "disk failure")

    async def _failed(self, volume: Volume, event: Event) -> None:
        node = self._node
        what = event.disk_op.name.lower()
        volume.disk_error = f"{what} error at byte {event.value}: {os.strerror(event.error)}"
        node.emit("disk-error", volume.disk_error, level="error", volume=volume.number)
        await node.transition(lambda v, s: replace(s, disk=DiskState.FAILED), only=volume, reason=volume.disk_error)
        node.connection.send_state(volume)
        if node.role == Role.PRIMARY and not node.is_connected:
            # What applications saw is on this disk only: no generation of the peer is good enough (decision 0016).
            volume.uuids = replace(volume.uuids, current=random_uuid(node.random) | 1)
        await self._let_go(volume, DiskState.DISKLESS, "detached after an error")
        node.connection.send_state(volume)
        if node.role == Role.PRIMARY and volume.state.pdsk < DiskState.UP_TO_DATE:
            node.emit(
                "no-data",
                "no access to good data: application I/O fails",
                level="error",
                volume=volume.number,
            )

    async def shrink_unused(self, volume: Volume, size_sectors: int) -> None:
        """A disk without good data takes the smaller size of the peer: attach it again with that size."""
        node = self._node
        await node.ask(ec.VolumeDetach(volume.number))
        volume.size_sectors = size_sectors
        assert volume.superblock is not None
        volume.superblock = replace(volume.superblock, la_size_sectors=size_sectors)
        await node.ask(ec.VolumeAttach(volume.number, volume.attach_command()))
        await node.ask(ec.BitmapSetAll(volume.number))
        await node.transition(lambda v, s: s, only=volume, reason=f"size {size_sectors} sectors, as the peer's disk")

    async def close_all(self) -> None:
        """For ``down``."""
        for volume in self._node.volumes.values():
            await self.detach_clean(volume)

    async def attach_all(self) -> None:
        """For ``up``; the first error is raised after the others were tried."""
        error: ReplError | None = None
        for volume in self._node.volumes.values():
            if volume.attached or not volume.settings.has_disk:
                continue
            try:
                await self.attach(volume)
            except ReplError as failed:
                volume.disk_error = failed.message
                error = error or failed
        if error is not None:
            raise error
