# SPDX-License-Identifier: Apache-2.0
"""Attaching and detaching the volumes' disks, and what happens when one fails."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from repl.drbd import superblock as sb
from repl.drbd.states import ConnectionState, DiskState, Role, StateChange, StateWord
from repl.drbd.superblock import MdFlag
from repl.drbd.uuids import base, random_uuid
from repl.engine import commands as ec
from repl.engine.events import DiskOp, Event, Result
from repl.errors import DiskFailed, PeerLost, ReplError, RequestRefused, StateRefused
from repl.node import actions as act
from repl.node.disk import Prepared
from repl.node.drops import FinalDrop
from repl.node.flow import Promise
from repl.node.refusals import refusal
from repl.node.settlement import refusal_by_kernel
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node

DISK_WAIT_MS = 10_000  # patience of an orderly end with a disk that does not answer

_C = ConnectionState
_D = DiskState
_BEFORE_SYNC = (_C.STARTING_SYNC_S, _C.WF_BITMAP_S)  # of the source: the target has not got the sync UUID
LAST_COPY = "; no other good copy is in reach: attached again it may lack what was written since its last flush"


class Disks:
    """The disks of all volumes."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._opening: dict[int, Promise[Prepared]] = {}
        self._busy: set[int] = set()  # an attach or a detach is under way
        self._leaving: set[int] = set()  # given up by us, and the engine cannot let it go yet
        self._closing: set[int] = set()  # let go, and the shell has not closed the descriptors yet

    # ---- the shell's answers ----

    def opened(self, volume: int, prepared: Prepared) -> None:
        promise = self._opening.pop(volume, None)
        if promise is None:
            self._close(volume)
        else:
            promise.keep(prepared)

    def open_failed(self, volume: int, error: Exception) -> None:
        promise = self._opening.pop(volume, None)
        if promise is not None:
            promise.fail(error)

    def closed(self, volume: int) -> None:
        self._closing.discard(volume)
        self._node.notify_watchers()

    def _close(self, volume: int) -> None:
        self._closing.add(volume)
        self._node.act(act.CloseDisk(volume))

    # ---- attach ----

    async def attach(self, volume: Volume) -> None:
        """Open, check, replay, load the bitmap; then the disk is in use, or the peer's verdict on it is awaited."""
        number = volume.number
        name = f"{self._node.settings.resource}/{number}"
        if volume.attached:
            raise RequestRefused(f"{name} has a disk already", number=124, advice=f'"replctl detach {name}" first.')
        if number in self._leaving:
            raise RequestRefused(
                f"{name}: its last disk was given up and still does not answer",
                number=162,
                advice="Wait until the disk answers or fails, or take the resource down.",
            )
        if number in self._busy:
            raise RequestRefused(f"{name}: an attach or detach is under way", number=162)
        self._busy.add(number)
        try:
            await self._attach(volume)
        finally:
            self._busy.discard(number)

    async def _attach(self, volume: Volume) -> None:
        node = self._node
        await node.transition(lambda v, s: replace(s, disk=_D.ATTACHING), only=volume)
        try:
            prepared = await self._open(volume)
            try:
                await self._load(volume, prepared)
            except ReplError:
                self._close(volume.number)
                raise
        except ReplError as error:
            volume.disk_error = error.message
            await node.transition(lambda v, s: replace(s, disk=_D.DISKLESS), only=volume, reason="attach failed")
            raise
        if volume.is_negotiating:
            await self._negotiate(volume)

    async def _open(self, volume: Volume) -> Prepared:
        promise: Promise[Prepared] = Promise()
        self._opening[volume.number] = promise
        self._node.act(act.OpenDisk(volume.number))
        return await promise

    async def _load(self, volume: Volume, prepared: Prepared) -> None:
        node, name = self._node, f"{self._node.settings.resource}/{volume.number}"
        size = self._size(volume, prepared)
        found = prepared.superblock
        all_bits = found.la_size_sectors == 0 or found.all_dirty or found.la_size_sectors != size
        node.resync.options.tell_engine(volume)
        command = volume.attach_command(prepared, size, all_bits=all_bits)
        done = await node.ask(ec.VolumeAttach(volume.number, command))
        if done.status is not Result.OK:
            raise DiskFailed(
                f"{name}: the bitmap cannot be read: {os.strerror(done.error)}.",
                errno=done.error,
                advice="Check the disk; create-md --force starts anew with a full sync.",
            )
        try:
            if all_bits and not await node.ask_ok(ec.BitmapSetAll(volume.number)):
                raise DiskFailed(f"{name}: the bitmap cannot be written.")
            await node.undo.resume(volume, prepared.undo, size)
            await self._take_over(volume, prepared, size)
        except ReplError:
            await node.ask(ec.VolumeDetach(volume.number))
            node.undo.let_go(volume)
            raise

    async def _take_over(self, volume: Volume, prepared: Prepared, size: int) -> None:
        """The disk is the volume's from this transition on; not in the middle of a handshake."""
        node, hot = self._node, prepared.replayed_extents
        refused: list[ReplError] = []

        def change(v: Volume, s: StateWord) -> StateWord:
            if v.attached or node.cstate == _C.WF_REPORT_PARAMS:
                return s
            try:
                if self._size(v, prepared) != size:
                    raise RequestRefused(f"{node.settings.resource}/{v.number}: its size changed just now", number=162)
                self._check_exposed(v, prepared)
            except ReplError as error:
                refused.append(error)
                return s
            v.attach_disk(prepared, size)
            if node.is_connected:
                return replace(s, disk=_D.NEGOTIATING)
            # differs: DRBD forgets that it knows better, and takes such a disk for UpToDate (decision 0016).
            found = min(v.disk_state_found(), _D.OUTDATED) if v.is_left_behind else v.disk_state_found()
            return replace(s, disk=found, pdsk=_D.OUTDATED if v.peer_was_outdated else s.pdsk)

        while not volume.attached:
            await node.watch(lambda: node.cstate != _C.WF_REPORT_PARAMS)
            await node.transition(
                change,
                only=volume,
                full_sync=False,
                reason=f"attached, {hot} hot extents replayed" if hot else "attached",
            )
            if refused:
                raise refused[0]

    def _size(self, volume: Volume, prepared: Prepared) -> int:
        """The size of the device with this disk; what is there already is never made smaller."""
        node, usable = self._node, prepared.usable_sectors
        last = prepared.superblock.la_size_sectors
        present = volume.size_sectors if node.is_connected or node.role == Role.PRIMARY else 0
        if not present:
            return min(last or usable, usable)
        name = f"{node.settings.resource}/{volume.number}"
        if usable < present:
            raise RequestRefused(
                f"{name}: the disk has room for {usable} sectors, the device has {present}",
                number=111,
                advice="Use a disk that is at least as large.",
            )
        if last > present and MdFlag.CONSISTENT in prepared.superblock.flags:
            raise RequestRefused(
                f"{name}: the disk holds data of {last} sectors, the device has {present} now",
                number=170,
                advice="create-md --force on it forgets that data; it is synced completely then.",
            )
        return present

    def _check_exposed(self, volume: Volume, prepared: Prepared) -> None:
        """Applications of a Primary without another disk go on only with the data that they have seen last."""
        node, exposed = self._node, volume.uuids.current
        theirs = prepared.superblock.uuids.current
        # differs: DRBD asks only a Primary without a connection; a peer may have lost its disk as well (decision 0016).
        is_compared = node.is_connected and volume.state.pdsk >= _D.INCONSISTENT
        if is_compared or node.role != Role.PRIMARY or not exposed:
            return
        # differs: DRBD compares the generations only; the news of the new one may be lost (decision 0016).
        if base(exposed) == base(theirs) and not volume.peer_served:
            return
        lacks = f"may lack what was written on {node.settings.peer} since"
        has = lacks if base(exposed) == base(theirs) else f"holds {theirs:016X}"
        raise RequestRefused(
            f"{node.settings.resource}/{volume.number}: this Primary presented data of generation {exposed:016X}, "
            f"the disk {has}",
            number=150,
            advice="Connect to the peer's disk first, or make this node Secondary.",
        )

    async def _negotiate(self, volume: Volume) -> None:
        """Attached while connected: both nodes compare generations as in a handshake."""
        node = self._node
        node.connection.send_sizes(volume)
        node.connection.send_uuids(volume)
        node.connection.send_state(volume)
        volume.attach_refusal = refusal_by_kernel(node.connection, volume)
        await node.watch(lambda: volume.attach_refusal is not None or volume.state.disk != _D.NEGOTIATING)
        refused, volume.attach_refusal = volume.attach_refusal, None
        if refused is None and volume.state.disk >= _D.INCONSISTENT:
            return
        reason = refused.message if refused is not None else "the connection was lost before the peer has agreed"
        volume.disk_error = reason
        await self._let_go(volume, "attach refused")
        node.connection.send_state(volume)
        raise RequestRefused(
            f"{node.settings.resource}/{volume.number}: the disk cannot be attached: {reason}",
            number=150,
            advice=refused.advice if refused is not None else "Connect again, or attach while disconnected.",
        )

    # ---- detach ----

    async def detach(self, volume: Volume, *, force: bool) -> None:
        """By order.  ``force``: do not wait for a disk that does not answer."""
        node, number = self._node, volume.number
        if not volume.attached:
            return
        if force:
            await self._detach_now(volume)
            return
        if number in self._busy:
            raise RequestRefused(f"{node.settings.resource}/{number}: an attach or detach is under way", number=162)
        self._busy.add(number)
        try:
            await self._agree_to_detach(volume)
            await self.detach_clean(volume, is_order=True)
        finally:
            self._busy.discard(number)

    async def _agree_to_detach(self, volume: Volume) -> None:
        node = self._node
        await node.watch(lambda: node.cstate != _C.WF_REPORT_PARAMS)
        if self._has_last_good_copy(volume.state):
            raise self._refused_last_copy(volume)
        if node.is_connected:
            try:
                code = await node.connection.request_change(StateChange.of(disk=_D.FAILED), volume=volume.number)
            except PeerLost:
                await node.watch(lambda: not node.is_connected)
                await self._agree_to_detach(volume)
                return
            if code < 1:
                raise refusal(node, "detach", code)

    def _has_last_good_copy(self, state: StateWord) -> bool:
        node = self._node
        is_alone = node.role == Role.PRIMARY and not (node.is_connected and state.pdsk == _D.UP_TO_DATE)
        is_needed = state.conn in _BEFORE_SYNC and not node.connection.peer_decides_alike
        return is_alone or is_needed or state.conn == _C.AHEAD

    def _refused_last_copy(self, volume: Volume) -> StateRefused:
        name, conn = f"{self._node.settings.resource}/{volume.number}", volume.state.conn
        if conn == _C.AHEAD or conn in _BEFORE_SYNC:
            return StateRefused(
                f"{name}: there is no other good data: the peer is behind",
                number=-2,
                advice="Wait until the resync that follows has ended.",
            )
        return StateRefused(
            f"{name}: this Primary has no other good data",
            number=-2,
            advice="Connect to a peer with UpToDate data, or make this node Secondary first.",
        )

    async def _to_failed(self, volume: Volume, reason: str, *, is_order: bool = False) -> None:
        node = self._node

        def change(_: Volume, s: StateWord) -> StateWord:
            kept = is_order and self._has_last_good_copy(s)  # it may have gone Ahead while the peer was asked
            return s if kept else replace(s, disk=_D.FAILED)

        if not is_order:
            await self._leave_behind(volume)
        await node.transition(change, only=volume, reason=reason)
        node.connection.send_state(volume)

    def _takes_old_for_good(self, volume: Volume) -> bool:
        """Would the peer, DRBD's own, go on with what it has, as soon as it hears that this disk has gone?

        It has noted that its data is Outdated, or is about to.  Once a resync has begun it is Inconsistent.
        """
        node, c = self._node, self._node.connection
        if volume.state.conn == _C.AHEAD:
            return not c.peer_is_ours
        compares = node.cstate == _C.WF_REPORT_PARAMS and c.knows_peer
        return (compares or volume.state.conn in _BEFORE_SYNC) and not c.peer_decides_alike

    async def _leave_behind(self, volume: Volume) -> None:
        """differs: DRBD would go on with what the peer has (decision 0016)."""
        node, name = self._node, self._node.settings.resource
        if not self._takes_old_for_good(volume):
            return
        lacks = "is behind: it lacks acknowledged writes" if volume.state.conn == _C.AHEAD else "has older data"
        node.connection.end_for_good(
            FinalDrop(
                f"{name}/{volume.number} has lost its disk, and {node.settings.peer} {lacks}.",
                reason="unconfirmed-writes",
                advice=f'"replctl secondary {name}", "replctl attach {name}" and "replctl connect {name}" here; '
                "or go on with the older data.",
            )
        )
        await node.watch(lambda: node.cstate < _C.WF_REPORT_PARAMS)

    async def detach_clean(self, volume: Volume, *, wait_ms: int | None = None, is_order: bool = False) -> None:
        """Orderly: data, bitmap, activity log, clean superblock, in this order; then let the descriptors go."""
        node = self._node
        if not volume.attached:
            return
        await self._to_failed(volume, "detach", is_order=is_order)
        if is_order and volume.state.disk > _D.FAILED:
            raise self._refused_last_copy(volume)
        stable = await node.within(node.start(self._make_clean(volume), "clean detach").done, wait_ms)
        if not stable:
            node.send(ec.VolumeGiveUp(volume.number))
        await self._let_go(volume, "detached" if stable else "detached, its activity log will be replayed")
        node.connection.send_state(volume)

    async def _make_clean(self, volume: Volume) -> bool:
        node, number = self._node, volume.number
        stable = await node.ask_ok(ec.VolumeQuiesce(number))
        stable = stable and await node.ask_ok(ec.BitmapWrite(number))
        stable = stable and await node.ask_ok(ec.AlInitialize(number))
        if not stable or volume.superblock is None:
            return False
        clean = sb.mark_clean(volume.superblock)
        # Nothing is open on it: whoever attaches it next is no crashed Primary.
        clean = replace(clean, flags=clean.flags & ~MdFlag.PRIMARY_IND)
        return await node.ask_ok(ec.MdWrite(number, clean.serialise()))

    async def _detach_now(self, volume: Volume) -> None:
        node = self._node
        was_leaving = volume.state.disk == _D.FAILED  # another procedure goes on with it
        node.send(ec.VolumeGiveUp(volume.number))
        if was_leaving:
            await node.watch(lambda: volume.state.disk != _D.FAILED)
            return
        await self._to_failed(volume, "forced detach")
        self._outlive(volume)
        await self._let_go(volume, "detached by force")
        node.connection.send_state(volume)
        self._tell_end(volume)

    async def _let_go(self, volume: Volume, reason: str) -> None:
        """The engine may need long for it: nobody waits, but the disk cannot be attached again before."""
        node, number = self._node, volume.number
        if not volume.attached:
            return
        volume.forget_disk()
        self._leaving.add(number)
        node.start(self._close_when_free(number, node.ask(ec.VolumeDetach(number))), "let a disk go")
        await node.transition(lambda v, s: replace(s, disk=_D.DISKLESS), only=volume, reason=reason)

    async def _close_when_free(self, number: int, let_go: Promise[Event]) -> None:
        await let_go
        self._node.undo.let_go(self._node.volumes[number])
        self._leaving.discard(number)
        self._close(number)
        self._node.notify_watchers()

    async def released(self, volume: Volume) -> None:
        """Until the descriptors of a detached disk are closed (or it turns out to hang)."""
        promise = self._node.watch(lambda: volume.number not in self._leaving | self._closing)
        await self._node.within(promise, DISK_WAIT_MS)
        self._node.unwatch(promise)

    # ---- failure ----

    def engine_error(self, event: Event) -> None:
        """The engine has stopped using the disk, or the policy is pass_on."""
        volume = self._node.volumes.get(event.volume)
        if volume is None or not volume.attached:
            return
        what = "no answer to an operation" if event.disk_op is DiskOp.TIMEOUT else f"{event.disk_op.name.lower()} error"
        was_last = volume.state.disk == _D.UP_TO_DATE and volume.state.pdsk < _D.UP_TO_DATE
        was_last = event.status is not Result.OK and (was_last or volume.disk_error.endswith(LAST_COPY))
        volume.disk_error = f"{what} at byte {event.value}: {os.strerror(event.error)}{LAST_COPY if was_last else ''}"
        self._node.emit("disk-error", volume.disk_error, level="error", volume=volume.number)
        if event.status is Result.OK:
            self._node.start(self._passed_on(volume), "disk error passed on")
        else:
            self._node.start(self._failed(volume), "disk failure")

    async def _passed_on(self, volume: Volume) -> None:
        """Blocks are lost; while the peer has good data they are read there.  Alone this is the best copy there is."""
        node, reason = self._node, volume.disk_error
        if not await node.ask_ok(ec.BitmapWrite(volume.number)):
            return

        has_changed = False

        def change(v: Volume, s: StateWord) -> StateWord:
            nonlocal has_changed
            alive = s.conn in (_C.CONNECTED, _C.VERIFY_S, _C.VERIFY_T)
            has_changed = alive and s.pdsk == _D.UP_TO_DATE and s.disk == _D.UP_TO_DATE and v.attached
            # differs: DRBD's disk is Inconsistent even if there is nothing better, but not in a verify (decision 0028).
            return replace(s, conn=_C.CONNECTED, disk=_D.INCONSISTENT) if has_changed else s

        await node.transition(change, only=volume, reason=reason)
        if has_changed:
            node.connection.send_state(volume)

    async def _failed(self, volume: Volume) -> None:
        node = self._node
        if volume.state.disk == _D.FAILED:  # it is being detached already, which sees the error itself
            return
        await self._to_failed(volume, volume.disk_error)
        if volume.settings.on_io_error == "call-local-io-error":
            await node.handlers.run("local-io-error", volume)  # application I/O waits meanwhile
        self._outlive(volume)
        await self._let_go(volume, "detached after an error")
        node.connection.send_state(volume)
        self._tell_end(volume)

    def _tell_end(self, volume: Volume) -> None:
        node = self._node
        if node.role == Role.PRIMARY and volume.state.pdsk < _D.UP_TO_DATE:
            node.emit(
                "no-data",
                "no access to good data: application I/O fails",
                level="error",
                volume=volume.number,
            )

    def _outlive(self, volume: Volume) -> None:
        node = self._node
        if node.role == Role.PRIMARY and not node.is_connected:
            # What applications saw is on this disk only: no generation of the peer is good enough (decision 0016).
            volume.uuids = replace(volume.uuids, current=random_uuid(node.random) | 1)

    def outlives_its_disk(self, volume: Volume) -> bool:
        """The link breaks: did applications of this Primary see writes that are on a lost disk only?"""
        if self._node.role != Role.PRIMARY or volume.state.disk == _D.UP_TO_DATE:
            return False
        stats = self._node.stats.volume_stats(volume.number)
        return stats is not None and stats.unconfirmed_writes > 0

    async def presented_size(self, volume: Volume, size_sectors: int) -> None:
        """Without a disk the device has the size of the peer's."""
        volume.size_sectors = size_sectors
        await self._node.ask(ec.VolumeSize(volume.number, size_sectors * 512))

    async def shrink_unused(self, volume: Volume, size_sectors: int) -> None:
        """A disk without good data takes the smaller size of the peer: attach it again with that size."""
        node = self._node
        assert volume.superblock is not None and volume.prepared is not None
        await node.ask(ec.VolumeDetach(volume.number))
        volume.size_sectors = size_sectors
        volume.superblock = replace(volume.superblock, la_size_sectors=size_sectors)
        command = volume.attach_command(volume.prepared, size_sectors, all_bits=True)
        await node.ask(ec.VolumeAttach(volume.number, command))
        await node.ask(ec.BitmapSetAll(volume.number))
        await node.transition(lambda v, s: s, only=volume, reason=f"size {size_sectors} sectors, as the peer's disk")

    async def watch_for_hangs(self) -> None:
        """While an order is carried out that has to end: disks that do not answer are given up."""
        while True:
            await self._node.pause(DISK_WAIT_MS // 5)
            for volume in self._node.volumes.values():
                self._node.send(ec.VolumeGiveUp(volume.number, DISK_WAIT_MS))

    async def close_all(self) -> None:
        """For ``down``: a disk that hangs holds nothing up."""
        for volume in self._node.volumes.values():
            await self.detach_clean(volume, wait_ms=DISK_WAIT_MS)
            await self.released(volume)

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
