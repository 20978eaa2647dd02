# SPDX-License-Identifier: Apache-2.0
"""on-congestion: what happens when the link cannot keep up with the application.

``pull-ahead``: the volume goes Ahead, the peer Behind; writes only mark blocks on both sides until nothing is in
flight, and a resync without bitmap exchange follows.  ``disconnect``: the link is given up.
Facts: docs/protocol.md, section 4.4.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from repl.drbd import packets as pk
from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState, DiskState, Role, StateWord
from repl.drbd.uuids import start_source_sync_uuid
from repl.engine import commands as ec
from repl.engine.events import Event, EventType
from repl.node.drops import FinalDrop
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node

CATCH_UP_MS = 1000
AHEAD_VERSION = 96  # older peers know neither Ahead nor P_OUT_OF_SYNC
FELL_BEHIND = 1 << 8  # in the unused part of P_STATE: the answer to Ahead
_REASONS = {1: "congestion-fill", 2: "congestion-extents"}

_C = ConnectionState
_D = DiskState
_MAY_GO_AHEAD = (_C.CONNECTED, _C.SYNC_SOURCE, _C.PAUSED_SYNC_S)


class Congestion:
    """Of all volumes."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._runs: Counter[int] = Counter()  # by volume: how often it has gone Ahead
        self._heard: dict[int, int] = {}  # by volume: the last of these that the peer has answered

    def engine_event(self, event: Event) -> None:
        node, volume = self._node, self._node.volumes.get(event.volume)
        if volume is None or not node.is_connected:
            return
        if event.type is EventType.CONGESTION_OVER and event.detail:
            node.connection.child(node.start(self._stay(volume), "stay with the peer"))
        elif event.type is EventType.CONGESTION_OVER:
            node.connection.child(node.start(self._catch_up(volume), "catch up"))
        elif node.settings.net.on_congestion == "disconnect":
            text = f"The link is congested ({_REASONS[event.detail]}, {event.value} bytes in flight)."
            advice = f'"replctl connect {node.settings.resource}" when the link can keep up again.'
            node.connection.end_for_good(FinalDrop(text, reason="congested", advice=advice))
        else:
            node.connection.child(node.start(self._pull_ahead(volume, _REASONS[event.detail]), "pull ahead"))

    async def _pull_ahead(self, volume: Volume, reason: str) -> None:
        node = self._node
        if node.connection.agreed.version < AHEAD_VERSION:
            return

        def is_it(v: Volume, s: StateWord) -> bool:
            return v is volume and s.conn in _MAY_GO_AHEAD and node.role == Role.PRIMARY and s.disk == _D.UP_TO_DATE

        def change(v: Volume, s: StateWord) -> StateWord:
            if not is_it(v, s):
                return s
            v.peer_lags = True
            self._runs[v.number] += 1
            return replace(s, conn=_C.AHEAD, pdsk=_D.CONSISTENT)

        # The engine tells the peer: the P_STATE has to stand between the last write that is sent and the first
        # one that is not.
        await node.transition(
            change,
            only=volume,
            reason=f"congestion: {reason} reached",
        )

    async def _stay(self, volume: Volume) -> None:
        """The engine has not gone Ahead: this disk has just lost blocks that only the peer has (decision 0032)."""
        node = self._node

        def change(v: Volume, s: StateWord) -> StateWord:
            if v is not volume or s.conn != _C.AHEAD:
                return s
            return replace(s, conn=_C.CONNECTED, disk=_D.INCONSISTENT, pdsk=_D.UP_TO_DATE)

        await node.transition(change, only=volume, reason=volume.disk_error)
        node.connection.send_state(volume)

    async def _catch_up(self, volume: Volume) -> None:
        node, run = self._node, self._runs[volume.number]

        def is_it(v: Volume, s: StateWord) -> bool:
            """The peer's disk may have gone and come back since, and this be the next time, with data on its way."""
            return v is volume and s.conn == _C.AHEAD and self._runs[v.number] == run

        await node.pause(CATCH_UP_MS)
        if node.connection.peer_decides_alike:
            # differs: what it got of an earlier resync it may still write and acknowledge, although the blocks were
            # written here since.  Nothing of that comes behind the ping's answer (decision 0145).
            await node.watch(lambda: self._heard.get(volume.number) == run or not is_it(volume, volume.state))
            if not await node.ask_ok(ec.Ping()):
                return
        if not is_it(volume, volume.state) or not await node.ask_ok(ec.BitmapWrite(volume.number)):
            return
        if not await node.resync.source_may_start(volume):
            return
        dirty = node.dirty_bits(volume)
        is_begun = False

        def change(v: Volume, s: StateWord) -> StateWord:
            nonlocal is_begun
            if not is_it(v, s):
                return s
            is_begun = True
            node.resync.catches_up(v)
            return replace(s, conn=_C.SYNC_SOURCE, pdsk=_D.INCONSISTENT)

        await node.transition(
            change,
            uuids=lambda v: start_source_sync_uuid(v.uuids, node.random) if is_begun else v.uuids,
            only=volume,
            reason=f"congestion is over, {dirty} blocks ({dirty * 4} KiB) to be sent",
        )
        runs = volume.state.conn in (_C.SYNC_SOURCE, _C.PAUSED_SYNC_S) and not volume.has_lost_metadata
        if is_begun and runs:
            node.connection.send(Packet.SYNC_UUID, pk.SyncUuid(volume.uuids.bitmap).encode(), volume=volume.number)
            node.resync.save_progress(volume)

    async def fall_behind(self, volume: Volume, theirs: StateWord) -> None:
        """The peer is Ahead: it only tells us which blocks it has written.  It waits to hear that this is stable."""
        node, was_behind = self._node, volume.state.conn == _C.BEHIND
        await node.transition(
            lambda v, s: replace(s, conn=_C.BEHIND, pdsk=theirs.disk, peer_isp=theirs.pauses_resync),
            only=volume,
            peer_role=theirs.role,
            reason="the peer is ahead",
        )
        if node.connection.peer_decides_alike and volume.state.conn == _C.BEHIND and not was_behind:
            node.connection.send_state(volume, more_pad=FELL_BEHIND)

    def peer_fell_behind(self, volume: Volume) -> None:
        """Its P_STATE that answers ours."""
        self._heard[volume.number] = self._runs[volume.number]
        volume.peer_noted_behind = True
        self._node.notify_watchers()
