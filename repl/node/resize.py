# SPDX-License-Identifier: Apache-2.0
"""Devices that change their size: by order, because the peer's did, or at connect.

Both nodes compute the same size from what their P_SIZES say.  What is new is marked on both and copied from the
Primary, without an exchange of bitmaps.  Internal metadata moves to the new end: first a superblock there that calls
everything different, then the activity log and the bitmap, then the superblock as it belongs; a crash at any point
leaves metadata that can be found.  Sizes in sectors.  Facts: docs/metadata.md section 11, docs/protocol.md 1.8.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from repl.drbd import superblock as sb
from repl.drbd.layout import Layout
from repl.drbd.packets import SizeFlag, Sizes
from repl.drbd.states import ConnectionState, DiskState, Role
from repl.drbd.superblock import MdFlag, Superblock
from repl.engine import commands as ec
from repl.errors import DiskFailed, ProtocolError, RequestRefused, UsageError
from repl.node import actions as act
from repl.node.drops import FinalDrop
from repl.node.flow import Promise
from repl.node.moved import old_place
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node

ANSWER_WAIT_MS = 20_000

_C = ConnectionState
_D = DiskState


@dataclass(frozen=True, slots=True)
class Measured:
    """The backing device as it is now."""

    layout: Layout
    usable_sectors: int


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator wants; ``size_sectors`` 0: as much as there is."""

    size_sectors: int = 0
    assume_clean: bool = False
    peer_has_space: bool = False
    may_shrink: bool = False


class Resize:
    """The sizes of all volumes."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._measuring: dict[int, Promise[Measured]] = {}
        self._answers: dict[int, Promise[None]] = {}

    def _name(self, volume: Volume) -> str:
        return f"{self._node.settings.resource}/{volume.number}"

    # ---- the shell's answers ----

    def measured(self, volume: int, found: Measured) -> None:
        promise = self._measuring.pop(volume, None)
        if promise is not None:
            promise.keep(found)

    def measure_failed(self, volume: int, error: Exception) -> None:
        promise = self._measuring.pop(volume, None)
        if promise is not None:
            promise.fail(error)

    async def _measure(self, volume: Volume) -> Measured:
        assert volume.superblock is not None
        promise = self._measuring.get(volume.number)
        if promise is None:
            promise = self._measuring[volume.number] = Promise()
            stripes, stripe_size = volume.superblock.stripes
            self._node.act(act.MeasureDisk(volume.number, stripes, stripe_size))
        return await promise

    # ---- by order ----

    async def ordered(self, volume: Volume, order: Order) -> bool:
        """True if the size has changed; the resync of what is new goes on afterwards."""
        node, before = self._node, volume.size_sectors
        self._check_order(volume, order)
        own = await self._measure(volume)
        await self._move_if_moved(volume, own)
        wanted = self._wanted(volume, own, order)
        if wanted < before and not order.may_shrink:
            raise UsageError(
                f"{self._name(volume)}: {wanted} sectors are less than the {before} of now; what lies behind is lost.",
                advice="Shrink what is on the device first, then repeat with --force.",
            )
        volume.user_sectors = order.size_sectors
        if not node.is_connected or volume.state.pdsk < _D.INCONSISTENT:
            await self._change(volume, own, wanted, set_new=not order.assume_clean)
            if node.is_connected:
                node.connection.send_sizes(volume)
            return volume.size_sectors != before
        flags = SizeFlag.NO_RESYNC if order.assume_clean else SizeFlag.NONE
        if wanted < before:
            await self._change(volume, own, wanted, set_new=False)
        answer = self._answers[volume.number] = Promise()
        if order.assume_clean:
            volume.new_part_is_clean = True
        node.connection.send_sizes(volume, asks=True, flags=flags)
        gone = node.watch(lambda: not node.is_connected)
        gone.when_done(lambda: answer.keep(None))
        await node.within(answer, ANSWER_WAIT_MS)
        node.unwatch(gone)
        self._answers.pop(volume.number, None)
        return volume.size_sectors != before

    def _check_order(self, volume: Volume, order: Order) -> None:
        node, name = self._node, self._name(volume)
        if not volume.attached or volume.state.disk < _D.INCONSISTENT:
            raise RequestRefused(f"{name} has no disk", number=138, advice=f'"replctl attach {name}" first.')
        if volume.state.conn > _C.CONNECTED:
            raise RequestRefused(
                f"{name}: a resync or verify is running", number=130, advice="Wait for its end (replctl wait-sync)."
            )
        if Role.PRIMARY not in (node.role, node.peer_role):
            raise RequestRefused(
                f"{name}: one of the nodes has to be Primary: it has the data of the new part",
                number=131,
                advice=f'"replctl primary {node.settings.resource}" on one of them first.',
            )
        if order.assume_clean and node.is_connected and node.connection.agreed.version < 93:
            raise RequestRefused(f"{name}: the peer is too old for --assume-clean", number=153)
        has_peer = node.is_connected and volume.state.pdsk >= _D.INCONSISTENT
        if not has_peer and not order.peer_has_space and not order.may_shrink:
            raise RequestRefused(
                f"{name}: the peer's disk is not there, nobody knows how large it is",
                number=-15,
                advice="Connect first, or --assume-peer-has-space if its disk is large enough.",
            )

    def _wanted(self, volume: Volume, own: Measured, order: Order) -> int:
        """By what is known now; the peer may still find that it has more."""
        peer = volume.peer_sizes
        has_peer = self._node.is_connected and volume.state.pdsk >= _D.INCONSISTENT and peer is not None
        most = own.usable_sectors
        if order.size_sectors > most:
            raise RequestRefused(
                f"{self._name(volume)}: the disk has room for {most} sectors only, not for {order.size_sectors}",
                number=111,
                advice="Let the backing device grow first.",
            )
        if has_peer and not order.size_sectors:
            return volume.size_sectors
        return order.size_sectors or most

    # ---- because of the peer's P_SIZES ----

    async def peer_sizes(self, volume: Volume, theirs: Sizes) -> None:
        """While connected: take the size that both have room for, answer, and begin the resync of what is new."""
        node = self._node
        volume.peer_sizes = theirs
        if volume.is_negotiating and theirs.c_size > volume.size_sectors:
            await self.at_connect(volume, theirs)  # the peer's disk had grown as well, and it has taken the size
            return
        if not volume.attached or volume.state.disk < _D.INCONSISTENT:
            await self._follow_without_disk(volume, theirs)
            return
        if not theirs.d_size:
            if theirs.c_size != volume.size_sectors:
                node.connection.send_sizes(volume)
            return
        if volume.state.conn > _C.CONNECTED and theirs.c_size == volume.size_sectors:
            return  # news of a handshake, no order: a size does not change below bitmaps and resyncs
        own = await self._measure(volume)
        await self._move_if_moved(volume, own)
        no_resync = SizeFlag.NO_RESYNC in theirs.dds_flags or volume.new_part_is_clean
        if theirs.u_size != volume.user_sectors and not theirs.c_size:
            volume.user_sectors = theirs.u_size  # the one who asks was told by its operator
        size = min(own.usable_sectors, theirs.d_size)
        limit = volume.user_sectors
        if limit and limit <= size:
            size = limit
        elif size < volume.size_sectors:
            raise FinalDrop(
                f"The disk of {node.settings.peer} became too small for volume {volume.number}: {theirs.d_size} "
                f"sectors, {volume.size_sectors} are in use here.",
                reason="disk-too-small",
                advice="Let its backing device grow again.",
            )
        grew = size > volume.size_sectors
        if size != volume.size_sectors:
            await self._change(volume, own, size, set_new=not no_resync)
        if theirs.c_size != volume.size_sectors:
            flags = SizeFlag.NO_RESYNC if no_resync else SizeFlag.NONE
            node.connection.send_sizes(volume, flags=flags)
        if grew and not no_resync:
            await self._resync_new_part(volume)
        volume.new_part_is_clean = False
        answer = self._answers.get(volume.number)
        if answer is not None and theirs.c_size:
            answer.keep(None)

    async def _follow_without_disk(self, volume: Volume, theirs: Sizes) -> None:
        node = self._node
        size = theirs.c_size or volume.size_sectors or theirs.d_size
        if node.role == Role.PRIMARY and size < volume.size_sectors and not theirs.u_size:
            raise FinalDrop(
                f"{node.settings.peer} has {size} sectors for volume {volume.number}, which this Primary uses with "
                f"{volume.size_sectors}.",
                reason="disk-too-small",
                advice="Use a disk that is at least as large.",
            )
        if size != volume.size_sectors:
            await node.disks.presented_size(volume, size)
        if not theirs.c_size:
            node.connection.send_sizes(volume)

    async def _resync_new_part(self, volume: Volume) -> None:
        node, state = self._node, volume.state
        if state.conn != _C.CONNECTED or min(state.disk, state.pdsk) < _D.INCONSISTENT:
            return
        both = node.role == node.peer_role
        is_source = node.connection.resolve_conflicts if both else node.role == Role.PRIMARY
        await node.resync.begin_without_bitmaps(volume, as_source=is_source)

    # ---- at connect, and when a disk is attached while connected ----

    async def at_connect(self, volume: Volume, theirs: Sizes) -> None:
        """Both disks have more room than is used: what is new is marked before the generations are compared."""
        prepared = volume.prepared
        has_data = volume.is_negotiating or volume.state.disk >= _D.INCONSISTENT
        if prepared is None or not theirs.d_size or not has_data:
            return
        size = min(prepared.usable_sectors, theirs.d_size)
        limits = [limit for limit in (volume.user_sectors, theirs.u_size) if limit]
        if limits and min(limits) <= size:
            size = min(limits)
        if size > volume.size_sectors:
            own = Measured(prepared.layout, prepared.usable_sectors)
            await self._change(volume, own, size, set_new=True)
            self._node.connection.send_sizes(volume)

    # ---- the change itself ----

    async def _move_if_moved(self, volume: Volume, own: Measured) -> None:
        assert volume.prepared is not None
        if own.layout.superblock_byte != volume.prepared.layout.superblock_byte:
            await self._change(volume, own, volume.size_sectors, set_new=False)
        elif own.usable_sectors != volume.prepared.usable_sectors:
            volume.prepared = replace(volume.prepared, layout=own.layout, usable_sectors=own.usable_sectors)

    async def _change(self, volume: Volume, own: Measured, size: int, *, set_new: bool) -> None:
        """Metadata durable at every step; nothing else may write the superblock meanwhile."""
        node, name = self._node, self._name(volume)
        before = volume.size_sectors
        async with node.late.exclusively(volume):
            block = volume.superblock
            if block is None or volume.prepared is None:
                raise DiskFailed(f"{name}: its disk is gone.", errno=5)
            if own.usable_sectors < size:
                raise RequestRefused(f"{name}: the disk has room for {own.usable_sectors} sectors only", number=111)
            moves = own.layout.superblock_byte != volume.prepared.layout.superblock_byte
            frozen = node.suspension.kept or (node.suspension.active and not node.is_connected)
            if moves and frozen:  # what is frozen stays in the activity log
                raise RequestRefused(
                    f"{name}: its metadata has to move, and application I/O is suspended",
                    advice=f'Connect first, or "replctl resume-io {node.settings.resource}".',
                )
            if moves and not await node.ask_ok(ec.AlHold(volume.number, 1)):
                raise ProtocolError(f"{name}: writes were interrupted while the metadata had to move.")
            try:
                await self._rewrite(volume, own, size, block, moves=moves, set_new=set_new)
            finally:
                if moves:
                    node.send(ec.AlHold(volume.number, 0))
        place = ", the metadata has moved" if moves else ""
        device = own.layout.device_bytes  # as it was when the metadata was put at its end; it may be larger by now
        text = f"{before} -> {size} sectors{place}"
        node.emit("size", text, volume=volume.number, old=before, new=size, device_bytes=device)
        node.notify_watchers()

    async def _rewrite(
        self, volume: Volume, own: Measured, size: int, block: Superblock, *, moves: bool, set_new: bool
    ) -> None:
        node, number, layout = self._node, volume.number, own.layout
        assert volume.prepared is not None
        prepared = replace(volume.prepared, layout=layout, usable_sectors=own.usable_sectors)
        final = replace(
            block,
            la_size_sectors=size,
            md_size_sectors=layout.md_size_sectors,
            al_offset_sectors=layout.al_offset_sectors,
            bm_offset_sectors=layout.bm_offset_sectors,
        )
        # Clean: there is no activity log in the new place yet, and everything is different anyhow.
        first = sb.mark_clean(replace(final, flags=final.flags | MdFlag.FULL_SYNC))
        command = volume.attach_command(prepared, size, all_bits=set_new)
        stable = await node.ask_ok(ec.VolumeResize(number, command))
        stable = stable and await node.ask_ok(ec.MdWrite(number, first.serialise()))
        if moves:
            stable = stable and await node.ask_ok(ec.AlInitialize(number))
        stable = stable and await node.ask_ok(ec.BitmapWrite(number))
        stable = stable and await node.ask_ok(ec.MdWrite(number, final.serialise()))
        if not stable:
            raise DiskFailed(
                f"{self._name(volume)}: its metadata cannot be written.",
                errno=5,
                advice="Look at the kernel log for errors of the disk.",
            )
        old = volume.prepared.layout
        volume.prepared, volume.superblock, volume.written = prepared, final, final.serialise()
        volume.size_sectors = size
        begin, length = old_place(old, layout)
        if moves and begin >= size * 512 and length:  # it may become data, and should be the same on both nodes
            await node.ask(ec.MdWipe(number, replace(command, superblock_offset=begin), length))
