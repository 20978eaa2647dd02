# SPDX-License-Identifier: Apache-2.0
"""Control packets of the peer once the nodes are connected.

One packet is dealt with at a time; the data socket waits meanwhile.  Facts: docs/protocol.md, sections 4.3, 4.4 and 5.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from repl.drbd import packets as pk
from repl.drbd.packets import Packet
from repl.drbd.states import ConnectionState, DiskState, Role, StateChange, StateWord
from repl.drbd.uuids import Uuids, new_current, new_past_sync
from repl.engine.events import Event
from repl.errors import ProtocolError
from repl.node.attaching import answers
from repl.node.congestion import FELL_BEHIND
from repl.node.drops import RetryDrop
from repl.node.handshake import check_exposed, check_reader, evaluate, real_disk
from repl.node.leaving import peer_asks_to_leave
from repl.node.skipping import disk_after_skip, peer_asks_to_skip, peer_has_skipped
from repl.node.verify import VERIFYING
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.connection import Connection

_C = ConnectionState
_D = DiskState


class PeerPackets:
    """Dispatches by packet."""

    def __init__(self, connection: Connection) -> None:
        self._c = connection
        self._node = connection.node

    async def handle(self, event: Event) -> None:
        if event.packet in (Packet.CONN_ST_CHG_REQ, Packet.PROTOCOL_UPDATE, Packet.PROTOCOL):
            await self._connection_packet(event)
            return
        volume = self._node.volumes.get(event.volume)
        if volume is None:
            if event.packet in (Packet.SYNC_PARAM89, Packet.SYNC_PARAM, Packet.SIZES, Packet.UUIDS, Packet.STATE):
                return  # a volume that only the peer has
            raise ProtocolError(f"Packet 0x{event.packet:x} for volume {event.volume}, which is not configured here.")
        if event.packet == Packet.STATE:
            await self._state(volume, pk.State.decode(event.blob).state)
        elif event.packet == Packet.UUIDS:
            await self._uuids(volume, pk.UuidReport.decode(event.blob))
        elif event.packet == Packet.SYNC_UUID:
            await self._node.resync.sync_uuid(volume, pk.SyncUuid.decode(event.blob).uuid)
        elif event.packet == Packet.STATE_CHG_REQ:
            await self._change_request(volume, event)
        elif event.packet == Packet.SIZES:
            await self._node.resize.peer_sizes(volume, pk.Sizes.decode(event.blob, wsame=self._c.agreed.wsame))
        elif event.packet in (Packet.SYNC_PARAM, Packet.SYNC_PARAM89):
            theirs = pk.SyncParam.decode(event.blob, self._c.agreed.version)
            volume.peer_verify_alg = theirs.verify_alg
            self._node.resync.options.adopt(volume, theirs)
            self._node.net_options.adopt_verify(theirs.verify_alg)
        else:
            raise ProtocolError(f"Packet 0x{event.packet:x} is not expected now.")

    async def _connection_packet(self, event: Event) -> None:
        if event.packet == Packet.CONN_ST_CHG_REQ:
            await self._change_request(next(iter(self._node.volumes.values())), event)
            return
        if event.packet == Packet.PROTOCOL:
            raise ProtocolError("P_PROTOCOL came a second time.")
        theirs = pk.Protocol.decode(event.blob, self._c.agreed.version)
        self._node.net_options.adopt(theirs)

    # ---- P_STATE ----

    async def _state(self, volume: Volume, theirs: StateWord) -> None:
        node, mine = self._node, volume.state
        volume.attach_serials.heard(theirs)
        if self._c.peer_decides_alike and theirs.pad & FELL_BEHIND:
            node.congestion.peer_fell_behind(volume)
            return
        if volume.is_negotiating and not answers(self._c, volume, theirs):
            return
        peer_disk = disk_after_skip(volume, theirs, real_disk(theirs, volume))
        busy = mine.conn > _C.CONNECTED
        syncs = mine.conn in (_C.SYNC_SOURCE, _C.PAUSED_SYNC_S)
        # (A disk that is Negotiating ends none: this node has yet to write that the last one has left.)
        if theirs.conn == _C.CONNECTED and syncs and peer_disk >= _D.INCONSISTENT and theirs.disk != _D.NEGOTIATING:
            await node.resync.source_finished(volume, peer_disk, theirs.role)
            return
        if theirs.conn == mine.conn and mine.conn in (_C.WF_BITMAP_S, _C.WF_BITMAP_T):
            raise RetryDrop(
                f"{node.settings.resource}/{volume.number}: both nodes have decided to be "
                f"sync {'source' if mine.conn == _C.WF_BITMAP_S else 'target'}; connecting again.",
                reason="directions-differ",
            )
        if theirs.conn == _C.CONNECTED and mine.conn in VERIFYING and peer_disk != _D.INCONSISTENT:
            await node.verify.peer_says_connected(volume)
        newly_attached = theirs.disk == _D.NEGOTIATING or (mine.pdsk < _D.NEGOTIATING <= theirs.disk)
        forced = (
            not busy
            and mine.disk == _D.INCONSISTENT
            and mine.pdsk == _D.INCONSISTENT
            and theirs.disk == _D.UP_TO_DATE
            and theirs.role == Role.PRIMARY
        )
        starting = _C.STARTING_SYNC_S <= theirs.conn <= _C.WF_BITMAP_T and mine.conn == _C.CONNECTED
        attaching = volume.is_negotiating
        if not busy and volume.attached and (newly_attached or forced or starting or attaching):
            if theirs.conn not in (_C.STARTING_SYNC_S, _C.STARTING_SYNC_T):
                await self._evaluate_again(volume, theirs, told=starting or attaching)
                return
        if busy and theirs.conn > _C.CONNECTED and theirs.conn < _C.SYNC_SOURCE and peer_disk == _D.UP_TO_DATE:
            peer_disk = mine.pdsk  # its disk is what the resync makes of it
        await self._follow(volume, theirs, peer_disk)

    async def _evaluate_again(self, volume: Volume, theirs: StateWord, *, told: bool) -> None:
        """A disk appeared at the peer, or it wants a resync: the same decision as in the handshake."""
        if not told:
            self._c.send_uuids(volume)
        elif not volume.is_negotiating:
            volume.sent_dirty_bits = self._node.dirty_bits(volume)
        await evaluate(self._c, volume, theirs)

    async def _follow(self, volume: Volume, theirs: StateWord, peer_disk: DiskState) -> None:
        """Take over role and disk of the peer; a lost copy starts a new generation."""
        node, before = self._node, volume.state
        lost_copy = before.pdsk == _D.UP_TO_DATE and peer_disk < _D.INCONSISTENT and before.disk == _D.UP_TO_DATE
        in_resync = before.conn == _C.AHEAD and node.resync.target_may_have_finished(volume)
        in_resync = in_resync or node.resync.target_shares_generation(volume)
        left_behind = (volume.is_ahead_of_generation or in_resync) and peer_disk < _D.INCONSISTENT
        # differs: DRBD does so only if the peer is promoted or loses its disk while connected (decision 0016).
        writes_here_only = (
            peer_disk < _D.INCONSISTENT
            and theirs.role == Role.PRIMARY
            and theirs.conn >= _C.CONNECTED
            and before.disk == _D.UP_TO_DATE
        )
        new_generation = (
            (lost_copy or writes_here_only)
            and volume.uuids.bitmap == 0
            and Role.PRIMARY in (node.role, theirs.role)
        ) or left_behind

        def uuids(v: Volume) -> Uuids:
            if v is not volume or not new_generation:
                return v.uuids
            make = new_past_sync if in_resync else new_current
            return make(v.uuids, node.random, primary=node.role == Role.PRIMARY)

        def change(_: Volume, s: StateWord) -> StateWord:
            lost_blocks = s.conn in VERIFYING and peer_disk == _D.INCONSISTENT  # passed on: nothing to compare with
            conn = _C.CONNECTED if lost_blocks else s.conn
            return replace(s, conn=conn, pdsk=peer_disk, peer_isp=theirs.pauses_resync)

        if theirs.conn == _C.AHEAD:
            await node.congestion.fall_behind(volume, theirs)
            return
        await node.transition(
            change,
            uuids=uuids,
            peer_role=theirs.role,
            only=volume,
            reason="told by the peer",
            goes_on=True,
        )
        check_reader(self._c, volume, theirs)
        if node.late.holds(volume):  # the other volumes' packets do not wait for it
            self._c.child(node.start(self._followed_late(volume, theirs, new_generation), "follow the peer late"))
        else:
            self._followed(volume, theirs, new_generation)

    async def _followed_late(self, volume: Volume, theirs: StateWord, new_generation: bool) -> None:
        await self._node.late.settled(volume)
        self._followed(volume, theirs, new_generation)

    def _followed(self, volume: Volume, theirs: StateWord, new_generation: bool) -> None:
        if new_generation:
            self._c.send_uuids(volume)
        if theirs.disk == _D.NEGOTIATING:  # we have nothing to compare it with: it goes on by itself
            self._c.send_state(volume)

    # ---- P_UUIDS ----

    async def _uuids(self, volume: Volume, report: pk.UuidReport) -> None:
        volume.peer_report = report
        volume.attach_serials.generation_came()
        volume.follow_service()  # what applications see from now on may have another generation
        if not volume.attached:
            if volume.state.pdsk < _D.INCONSISTENT:  # it attaches a disk
                check_exposed(self._c, volume)
            volume.uuids = replace(volume.uuids, current=report.uuids.current)  # what applications see from now on
        await peer_has_skipped(self._c, volume, report)

    # ---- P_STATE_CHG_REQ ----

    async def _change_request(self, volume: Volume, event: Event) -> None:
        c, node = self._c, self._node
        asked = pk.StateChangeRequest.decode(event.blob).change
        reply_packet = Packet.CONN_ST_CHG_REPLY if event.packet == Packet.CONN_ST_CHG_REQ else Packet.STATE_CHG_REPLY
        if c.change_is_open and c.resolve_conflicts:
            code = -19
        elif c.peer_is_ours and asked.changes("conn") and asked.get("conn") == _C.WF_BITMAP_T:
            code = node.verify.repair.asked(volume)  # a kernel module never asks for that
        elif c.peer_decides_alike and asked == StateChange.of(disk=_D.UP_TO_DATE):  # nor for that
            code = peer_asks_to_skip(volume)
        else:
            code = await self._carry_out(volume, asked.peer_view())
        c.send_meta(reply_packet, pk.StateChangeReply(code).encode(), volume=event.volume)
        if code >= 1 and asked.changes("conn") and asked.get("conn") == _C.DISCONNECTING:
            c.peer_leaves()

    async def _carry_out(self, volume: Volume, change: StateChange) -> int:
        """The change in our own view: 1 or the code of the refusal."""
        node, state = self._node, volume.state
        if change.changes("conn"):
            return await self._connection_change(volume, change)
        if change.changes("peer") and change.get("peer") == Role.PRIMARY:
            one_only = not node.settings.net.two_primaries
            if one_only and (node.role == Role.PRIMARY or node.commands.is_promoting):
                return -1
            peer_disk = DiskState(change.get("pdsk")) if change.changes("pdsk") else state.pdsk
            if _D.UP_TO_DATE not in (peer_disk, state.disk):
                return -2
            await node.transition(lambda v, s: s, peer_role=Role.PRIMARY, reason="promotion agreed with the peer")
            return 1
        if change.changes("pdsk"):
            if Role.PRIMARY in (node.role, node.peer_role) and state.disk != _D.UP_TO_DATE:
                return -2  # the peer's disk is the only good one
            return 1
        return 1

    async def _connection_change(self, volume: Volume, change: StateChange) -> int:
        node = self._node
        wanted = change.get("conn")
        if wanted == _C.TEAR_DOWN:
            return await peer_asks_to_leave(self._c, change)
        if wanted in (_C.STARTING_SYNC_S, _C.STARTING_SYNC_T):
            return node.resync.full_sync_asked(volume, as_source=wanted == _C.STARTING_SYNC_S)
        if wanted == _C.VERIFY_T:
            return await node.verify.asked(volume)
        return -10
