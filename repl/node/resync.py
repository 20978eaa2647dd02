# SPDX-License-Identifier: Apache-2.0
"""The course of a resync: bitmap exchange, sync UUID, running, the end on both sides.

The engine moves the data; here stand the states and generations.  Order at every step: bitmap and superblock are stable
before the peer is told.  Facts: docs/protocol.md, sections 3.1, 4.1, 4.3, 4.4.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from repl.drbd import packets as pk
from repl.drbd.decision import Refusal
from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState, DiskState, Role, StateChange, StateWord
from repl.drbd.uuids import (
    Uuids,
    base,
    finish_source,
    finish_target,
    new_current,
    start_source_sync_uuid,
    sync_had_begun,
    sync_uuid_after,
    target_accept_sync_uuid,
)
from repl.engine import commands as ec
from repl.engine.events import Event, EventType
from repl.errors import PeerLost, ProtocolError, ReplError, StateRefused
from repl.node.drops import FinalDrop, RetryDrop
from repl.node.flow import Cancelled, Promise
from repl.node.refusals import refusal
from repl.node.resync_options import ResyncOptions
from repl.node.resync_pause import PauseControl
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node

PROGRESS_SAVE_MS = 1000

_C = ConnectionState
_D = DiskState
_TARGETS = (_C.SYNC_TARGET, _C.PAUSED_SYNC_T)  # the last answers may come after a pause
_RUNNING = (_C.SYNC_SOURCE, _C.SYNC_TARGET, _C.PAUSED_SYNC_S, _C.PAUSED_SYNC_T)


def _veto(handler: str, status: int) -> FinalDrop:
    return FinalDrop(
        f"The handler {handler} does not want this resync (exit status {status}).",
        reason="resync-vetoed",
        advice="See its output in the log; connect again when its reason is gone.",
    )


def _goes_on(volume: Volume, state: StateWord) -> bool:
    """Its disk and its part in the resync were not lost while the step before was waited for."""
    return volume.attached and state.conn > _C.CONNECTED


class ResyncControl:
    """Resyncs of all volumes."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.options = ResyncOptions(node)
        self.pauses = PauseControl(node)

    def _child(self, coroutine: object, name: str) -> None:
        self._node.connection.child(self._node.start(coroutine, name))  # type: ignore[arg-type]

    # ---- bitmap exchange ----

    async def begin(self, volume: Volume) -> None:
        """The handshake has decided: the source sends its bitmap first."""
        volume.waiting_for_sync_uuid = Promise()
        volume.has_sources_bitmap = False
        if volume.state.conn == _C.WF_BITMAP_S:
            self._node.ask(ec.BitmapSend(volume.number))

    def engine_event(self, event: Event) -> None:
        volume = self._node.volumes.get(event.volume)
        if volume is None:
            return
        if event.type is EventType.BITMAP_RECEIVED:
            if volume.state.conn == _C.WF_BITMAP_S:
                self._child(self._become_source(volume), "become resync source")
            elif volume.state.conn == _C.WF_BITMAP_T:
                volume.has_sources_bitmap = True
                self._child(self._answer_bitmap(volume), "send own bitmap")
        elif volume.state.conn in _TARGETS:
            self._child(self._target_finished(volume, event.value), "resync target end")

    async def _answer_bitmap(self, volume: Volume) -> None:
        node = self._node
        if not await node.ask_ok(ec.BitmapWrite(volume.number)):
            return
        await node.transition(
            lambda v, s: replace(s, conn=_C.WF_SYNC_UUID) if _goes_on(v, s) else s,
            only=volume,
        )
        if volume.state.conn != _C.WF_SYNC_UUID:
            return
        node.ask(ec.BitmapSend(volume.number))
        volume.waiting_for_sync_uuid.keep(None)

    async def _become_source(self, volume: Volume) -> None:
        node = self._node
        this_one, since = volume.waiting_for_sync_uuid, volume.state.conn
        is_begun = False

        def goes_on(v: Volume, s: StateWord) -> bool:
            """Neither disk was lost while a step was waited for, and this is not the next resync already."""
            return v.attached and s.conn == since and s.pdsk > _D.FAILED and v.waiting_for_sync_uuid is this_one

        def change(v: Volume, s: StateWord) -> StateWord:
            nonlocal is_begun
            if v is not volume or not goes_on(v, s):
                return s
            is_begun = True
            self.peer_is_compared(v)
            return replace(s, conn=_C.SYNC_SOURCE, pdsk=_D.INCONSISTENT)

        def uuids(v: Volume) -> Uuids:
            if v is not volume or not is_begun:
                return v.uuids
            return start_source_sync_uuid(v.corrected or v.uuids, node.random)

        if not await node.ask_ok(ec.BitmapWrite(volume.number)) or not await self.source_may_start(volume):
            return
        if not goes_on(volume, volume.state):
            return
        dirty = node.dirty_bits(volume)
        await node.transition(
            change,
            uuids=uuids,
            only=volume,
            reason=f"{dirty} blocks ({dirty * 4} KiB) to be sent",
        )
        runs = is_begun and volume.state.conn in _RUNNING
        if not runs or volume.has_lost_metadata:  # what is on the disk does not know this UUID
            return
        volume.corrected = None
        self._child(self._save_progress(volume), "save resync progress")
        node.connection.send(Packet.SYNC_UUID, pk.SyncUuid(volume.uuids.bitmap).encode(), volume=volume.number)

    async def source_may_start(self, volume: Volume) -> bool:
        """Handler before-resync-source: any status but 0 and 3 is a veto."""
        node = self._node
        status = await node.handlers.run("before-resync-source", volume)
        if status in (None, 0, 3):
            return True
        if volume.uuids.bitmap == 0:
            # differs: without a trace in the generations the next handshake would find both equal (decision 0022).
            await node.transition(
                lambda v, s: s,
                uuids=lambda v: new_current(v.uuids, node.random, primary=node.role == Role.PRIMARY),
                only=volume,
            )
        node.connection.end_for_good(_veto("before-resync-source", status))
        return False

    async def _target_may_start(self, volume: Volume) -> None:
        """Handler before-resync-target: any status but 0 is a veto; the disk stays what the exchange has made it."""
        node = self._node
        facts = {"REPL_DISK_STATE": str(volume.state.disk)}
        handler = node.start(node.handlers.run("before-resync-target", volume, facts), "before-resync-target")
        node.connection.child(handler)
        try:
            status = await handler.done
        except Cancelled:
            if node.connection.is_lost:
                raise PeerLost("The connection to the peer was lost.") from None
            raise
        if status:
            raise _veto("before-resync-target", status)
    def save_progress(self, volume: Volume) -> None:
        """While it runs."""
        self._child(self._save_progress(volume), "save resync progress")

    async def _save_progress(self, volume: Volume) -> None:
        """A node that dies in a long resync goes on where it was: what is done is taken from the bitmap on disk."""
        while True:
            await self._node.pause(PROGRESS_SAVE_MS)
            if volume.state.conn not in _RUNNING or not await self._node.ask_ok(ec.BitmapWrite(volume.number)):
                return

    # ---- target ----

    async def sync_uuid(self, volume: Volume, uuid: int) -> None:
        """P_SYNC_UUID: the resync starts."""
        node = self._node
        if volume.state.disk < _D.INCONSISTENT:
            return  # the peer has not heard yet that the disk has gone
        if volume.state.conn not in (_C.WF_SYNC_UUID, _C.BEHIND):
            expected = volume.state.conn in (_C.WF_BITMAP_T, _C.STARTING_SYNC_T)
            if not expected and not volume.expects_sync_uuid:
                # differs: DRBD would take the UUID over when the connection breaks (decision 0006).
                raise ProtocolError(f"P_SYNC_UUID came in {volume.state.conn}; it is ignored.")
            if volume.state.conn == _C.WF_BITMAP_T and not (volume.has_sources_bitmap or volume.expects_sync_uuid):
                raise self._skipped_bitmap(volume)
            await volume.waiting_for_sync_uuid
        await self._target_may_start(volume)
        if not _goes_on(volume, volume.state):
            return
        volume.expects_sync_uuid = volume.is_discarded = False
        node.connection.discard_was_carried_out()
        self.options.choose_csums(volume)
        dirty = node.dirty_bits(volume)
        await node.transition(
            lambda v, s: (
                replace(s, conn=_C.SYNC_TARGET, disk=_D.INCONSISTENT, pdsk=_D.UP_TO_DATE) if _goes_on(v, s) else s
            ),
            uuids=lambda v: target_accept_sync_uuid(v.uuids, uuid) if _goes_on(v, v.state) else v.uuids,
            only=volume,
            reason=f"{dirty} blocks ({dirty * 4} KiB) to be fetched",
        )
        if volume.state.conn not in _RUNNING:
            return
        self._child(self._save_progress(volume), "save resync progress")

    def _skipped_bitmap(self, volume: Volume) -> RetryDrop:
        """It would come behind this packet, on the same socket.

        differs: DRBD waits for it.  But its source sends none when a start that it had decided on before the last
        connection was lost is carried out on this one (decision 0006).
        """
        settings = self._node.settings
        return RetryDrop(
            f"{settings.resource}/{volume.number}: {settings.peer} has begun the resync without sending its bitmap; "
            "connecting again.",
            reason="resync-without-bitmap",
        )

    async def _target_finished(self, volume: Volume, failed: int) -> None:
        node = self._node
        if not await node.ask_ok(ec.Ping()):  # the source has seen every ack once it answers
            return
        if volume.state.conn not in _TARGETS:
            return
        if failed:
            await node.transition(
                lambda v, s: replace(s, conn=_C.CONNECTED, disk=_D.INCONSISTENT) if s.conn in _TARGETS else s,
                only=volume,
                reason=f"resync ended, {failed} blocks failed",
            )
            if volume.state.conn != _C.CONNECTED:
                return
            node.connection.send_state(volume)
            node.handlers.notify("after-resync-target", volume, {"REPL_FAILED_BLOCKS": str(failed)})
            return
        report = volume.peer_report
        assert report is not None
        if not await node.ask_ok(ec.BitmapWrite(volume.number)):
            return

        def is_it(v: Volume) -> bool:  # the disk or the peer may be lost by now
            return v is volume and v.attached and v.state.conn == _C.SYNC_TARGET

        await node.transition(
            lambda v, s: replace(s, conn=_C.CONNECTED, disk=_D.UP_TO_DATE, pdsk=_D.UP_TO_DATE) if is_it(v) else s,
            uuids=lambda v: (
                finish_target(v.uuids, report.uuids, primary=node.role == Role.PRIMARY) if is_it(v) else v.uuids
            ),
            only=volume,
            reason="resync done",
        )
        if volume.state.conn != _C.CONNECTED or not volume.attached:
            return
        volume.peer_has_our_uuids()
        node.connection.send_state(volume)
        node.handlers.notify("after-resync-target", volume)

    # ---- source ----

    async def source_finished(self, volume: Volume, peer_disk: DiskState, peer_role: Role) -> None:
        """The target says that it is Connected again."""
        node = self._node
        left = node.dirty_bits(volume)
        if left and peer_disk == _D.UP_TO_DATE:  # this disk has failed to write them; the peer knows nothing of it
            raise RetryDrop(
                f"{node.settings.resource}/{volume.number}: {left} blocks were marked while the resync ran; "
                "connecting again to resync them.",
                reason=Refusal.LEFT_OVER.value,
            )
        done = left == 0 and peer_disk == _D.UP_TO_DATE
        if done:
            await node.ask(ec.BitmapWrite(volume.number))

        def is_it(v: Volume) -> bool:  # it may have gone Ahead by now, and the peer Behind
            return v is volume and v.state.conn in (_C.SYNC_SOURCE, _C.PAUSED_SYNC_S)

        def ended(v: Volume, s: StateWord) -> StateWord:
            has_lost_disk = v is volume and s.conn == _C.CONNECTED and s.disk < _D.INCONSISTENT
            if done and has_lost_disk and s.pdsk == _D.INCONSISTENT:  # just now; the peer says once that it has all
                return replace(s, pdsk=_D.UP_TO_DATE)
            return replace(s, conn=_C.CONNECTED, pdsk=now) if is_it(v) else s

        now = _D.UP_TO_DATE if done else _D.INCONSISTENT
        await node.transition(
            ended,
            uuids=lambda v: finish_source(v.uuids) if done and is_it(v) else v.uuids,
            only=volume,
            peer_role=peer_role,
            reason="resync done" if done else f"resync ended, {left} blocks are still different",
        )
        if done and volume.state.conn == _C.CONNECTED:
            volume.peer_lags = volume.peer_noted_behind = False
            volume.peer_has_our_uuids()
            node.fencing.resync_done()

    def target_may_have_finished(self, volume: Volume) -> bool:
        """The link breaks: the target has got everything but what this disk has lost itself.

        differs: DRBD goes on under a generation that the target may have as well; what it writes may be discarded
        silently (decision 0016).
        """
        conn, stats = volume.state.conn, self._node.stats.volume_stats(volume.number)
        if stats is None or not volume.attached or volume.state.disk != _D.UP_TO_DATE:
            return False
        if conn == _C.AHEAD:  # what it had got by then; it may not have heard of what came after that
            # (A bitmap UUID alone says nothing: a demotion while Ahead makes one as well.)
            return sync_had_begun(volume.uuids) and stats.resync_left_bits <= stats.resync_lost_bits
        return conn in (_C.SYNC_SOURCE, _C.PAUSED_SYNC_S) and stats.out_of_sync_bits <= stats.resync_lost_bits

    # ---- what the target has until it gets the sync UUID (decision 0110) ----

    def peer_is_compared(self, volume: Volume) -> None:
        """A resync may follow, or does."""
        volume.moved_before = self._moved(volume)
        if volume.peer_report is not None:
            volume.peer_may_have = base(volume.peer_report.uuids.current)

    def catches_up(self, volume: Volume) -> None:
        """Ahead, and source next: what the peer has reported may be older than the resync before."""
        if self.target_may_have_finished(volume) or volume.uuids.bitmap == 0:
            volume.peer_may_have = base(volume.uuids.current)
        else:
            self.link_breaks(volume)
        volume.moved_before = self._moved(volume)

    def link_breaks(self, volume: Volume) -> None:
        """Or the run of a resync ends: a target that has asked for blocks has the sync UUID."""
        if volume.state.conn in (_C.SYNC_SOURCE, _C.PAUSED_SYNC_S, _C.AHEAD) and self._has_moved_blocks(volume):
            volume.peer_may_have = 0

    def _has_moved_blocks(self, volume: Volume) -> bool:
        """What was there when it began is of the resync before: the engine begins to count a moment later."""
        moved = self._moved(volume)
        return any(moved) and moved != volume.moved_before

    def _moved(self, volume: Volume) -> tuple[int, int, int]:
        stats = self._node.stats.volume_stats(volume.number)
        if stats is None:
            return 0, 0, 0
        return stats.resync_payload_bytes, stats.resync_equal_bits, stats.resync_deallocated_bits

    def target_shares_generation(self, volume: Volume) -> bool:
        """The link or the target's disk goes: may that have the generation under which this node would go on?

        differs: DRBD makes no new generation while there is a bitmap UUID.  A target that has never heard of the
        resync is promoted as if it had everything, and wins over what is written here (decision 0143).
        """
        if not volume.attached or volume.state.disk != _D.UP_TO_DATE or volume.uuids.just_created:
            return False
        finished = volume.state.conn == _C.AHEAD and self.target_may_have_finished(volume)
        shares = self._target_may_have(volume) == base(volume.uuids.current) and not volume.peer_noted_behind
        if not finished and not (shares and self._names_all(volume.uuids)):
            return False
        if self._node.role == Role.PRIMARY:
            return True
        stats = self._node.stats.volume_stats(volume.number)
        return volume.peer_lags and stats is not None and stats.out_of_sync_bits > stats.resync_lost_bits

    @staticmethod
    def _names_all(uuids: Uuids) -> bool:
        """Of several starts in a row: what the target may have of them stays in the history of a new generation."""
        last, before, first = base(uuids.bitmap), base(uuids.history1), base(uuids.history2)
        return first == 0 or last != base(sync_uuid_after(before)) or before != base(sync_uuid_after(first))

    def _target_may_have(self, volume: Volume) -> int:
        """The generation of good data that it may have as long as nothing shows that it knows of the resync."""
        conn, report = volume.state.conn, volume.peer_report
        if conn in (_C.STARTING_SYNC_S, _C.WF_BITMAP_S):
            return base(report.uuids.current) if report is not None else 0
        if conn in (_C.SYNC_SOURCE, _C.PAUSED_SYNC_S) or (conn == _C.AHEAD and volume.uuids.bitmap):
            return 0 if self._has_moved_blocks(volume) else volume.peer_may_have
        return 0

    # ---- without bitmaps ----

    async def begin_without_bitmaps(self, volume: Volume, *, as_source: bool) -> None:
        """Both nodes have marked the same blocks and know who has the good ones."""
        volume.waiting_for_sync_uuid = Promise()
        if as_source:
            await self._become_source(volume)
            return
        volume.expects_sync_uuid = True
        await self._node.transition(
            lambda v, s: replace(s, conn=_C.WF_SYNC_UUID), only=volume, reason="the device has grown"
        )
        volume.waiting_for_sync_uuid.keep(None)

    # ---- full sync by order ----

    def full_sync_asked(self, volume: Volume, *, as_source: bool) -> int:
        """The peer wants a full sync; the answer, and what follows from a yes."""
        state = volume.state
        if state.conn != _C.CONNECTED:
            return -8
        if not volume.attached or state.disk < _D.INCONSISTENT:
            return -5 if as_source else -4
        if as_source and state.disk != _D.UP_TO_DATE:
            return -2
        if not as_source and self._node.role == Role.PRIMARY:
            return -10
        volume.waiting_for_sync_uuid = Promise()
        if as_source:
            self._child(self._start_full_sync_source(volume), "full sync source")
        else:
            volume.expects_sync_uuid = True  # it may come while we still set all bits
            self._child(self._start_full_sync_target(volume), "full sync target")
        return 1

    async def invalidate(self, volume: Volume) -> None:
        """Own data is to be replaced by the peer's."""
        volume.expects_sync_uuid = True
        volume.waiting_for_sync_uuid = Promise()
        try:
            await self._full_sync(volume, _C.STARTING_SYNC_T, "invalidate")
        except ReplError:
            volume.expects_sync_uuid = False
            raise
        await self._start_full_sync_target(volume)

    async def invalidate_remote(self, volume: Volume) -> None:
        """The peer's data is to be replaced by ours."""
        volume.waiting_for_sync_uuid = Promise()
        await self._full_sync(volume, _C.STARTING_SYNC_S, "invalidate-remote")
        self._child(self._start_full_sync_source(volume), "full sync source")

    async def _full_sync(self, volume: Volume, wanted: ConnectionState, verb: str) -> None:
        """Ask the peer; returns when it has agreed."""
        node = self._node
        if volume.state.conn != _C.CONNECTED:
            raise StateRefused(f"{node.settings.resource}: a resync is running", number=-8)
        try:
            code = await node.connection.request_change(StateChange.of(conn=wanted), volume=volume.number)
        except PeerLost:
            code = -15
        if code < 1:
            raise refusal(node, verb, code)

    async def _start_full_sync_target(self, volume: Volume) -> None:
        node = self._node
        await node.transition(
            lambda v, s: replace(s, conn=_C.STARTING_SYNC_T) if v is volume else s,
            full_sync=True,
            only=volume,
            reason="full sync by order",
        )
        if not await node.ask_ok(ec.BitmapSetAll(volume.number)):
            return
        await node.transition(
            lambda v, s: replace(s, conn=_C.WF_SYNC_UUID, disk=_D.INCONSISTENT) if v is volume else s,
            full_sync=False,
            only=volume,
        )
        volume.waiting_for_sync_uuid.keep(None)

    async def _start_full_sync_source(self, volume: Volume) -> None:
        node = self._node
        await node.transition(
            lambda v, s: replace(s, conn=_C.STARTING_SYNC_S), only=volume, reason="full sync by order"
        )
        if await node.ask_ok(ec.BitmapSetAll(volume.number)):
            await self._become_source(volume)
