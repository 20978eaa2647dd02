# SPDX-License-Identifier: Apache-2.0
"""The connection to the peer: connect, agree, follow its packets, lose it, try again.

A :class:`FinalDrop` ends StandAlone with a reason that is kept (the administrator has to act); losing the peer or a
:class:`RetryDrop` leads back to connecting.  Facts: docs/protocol.md, sections "connection setup" and "state packets".
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from repl.drbd import packets as pk
from repl.drbd.digests import digest_number
from repl.drbd.farewell import Farewell
from repl.drbd.packets import Packet, SizeFlag
from repl.drbd.split_brain import AfterSplitBrain
from repl.drbd.states import ConnectionState, DiskState, Role, StateChange, StateWord
from repl.drbd.uuids import Feature, UuidFlag
from repl.engine import commands as ec
from repl.engine.events import Event, EventType, Lost
from repl.errors import PeerLost, ProtocolError
from repl.node import actions as act
from repl.node.drops import FinalDrop, RetryDrop
from repl.node.flow import Cancelled, Flow, Mutex, Promise
from repl.node.handshake import Handshake
from repl.node.leaving import ask_to_leave, left
from repl.node.pair import Pair, PairMaker
from repl.node.peer_packets import PeerPackets
from repl.node.settlement import tentative_result
from repl.node.suspend import RESOURCE_AND_STONITH, CannotResend
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node

RETRY_PAUSE_MS = 1000

_C = ConnectionState
_LOST_STATES = {
    Lost.NONE: _C.DISCONNECTING,
    Lost.EOF: _C.BROKEN_PIPE,
    Lost.RESET: _C.BROKEN_PIPE,
    Lost.PING_TIMEOUT: _C.NETWORK_FAILURE,
    Lost.KO: _C.TIMEOUT,
    Lost.SEND_TIMEOUT: _C.TIMEOUT,
    Lost.PROTOCOL: _C.PROTOCOL_ERROR,
    Lost.OWN_DISK: _C.NETWORK_FAILURE,
    Lost.INTEGRITY: _C.PROTOCOL_ERROR,
}
_ILLEGAL = {
    1: "bad header",
    2: "unexpected command",
    3: "wrong length",
    4: "unknown volume",
    5: "beyond the device",
    6: "not now",
    7: "unknown block id",
    8: "barrier does not match",
    9: "bad bitmap",
    16: "sequence numbers with a gap",
}


class Connection:
    """One link at a time."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.pairs = PairMaker(node)
        self.wanted = False
        self.discard_my_data = False
        self.is_tentative = False  # only ask what would happen
        self.peer_is_tentative = False
        self.verdicts: dict[int, str] = {}  # of a dry run, by volume
        self.last_loss = ""  # how the last connection ended
        self.doubt = ""  # why the peer may not do what was decided
        self.agreed = pk.Agreed()
        self.csums_alg = ""  # in force; the peer may change it while connected
        self.peer_integrity = ""
        self.peer_is_ours = False  # it understands what DRBD's node does not
        self.peer_decides_alike = False  # the same at any protocol version: it compares generations as we do
        self.knows_peer = False  # it has shown the secret, if there is one
        self.resolve_conflicts = False
        self._data_stream = -1
        self._meta_stream = -1
        self._packets: deque[Event] = deque()
        self._arrival: Promise[Event] | None = None
        self._link_up = False
        self._lost: Event | None = None
        self._flow: Flow[None] | None = None
        self._children: list[Flow[Any]] = []
        self._reply: Promise[int] | None = None
        self._veto: FinalDrop | None = None
        self._change_lock = Mutex()
        self._peer_leaves = False
        self.serial = 0  # counts connections that came to be Connected
        self.gives_up = False  # what was kept while I/O was suspended cannot go to this peer
        self.peer_leaves_as: DiskState | None = None  # what its disks are while it is away
        self.leaves_as: DiskState | None = None  # what ours are
        self._parted: Promise[None] | None = None  # both agreed to part: the peer closes first
        self._may_cancel = False  # the flow waits for something that need not come

    @property
    def is_lost(self) -> bool:
        """The link broke; the procedure that runs on it has not seen that yet."""
        return self._lost is not None

    # ---- the shell's and the engine's side ----

    def accepted(self, fd: int, source: str) -> None:
        self.pairs.accepted(fd, source)

    def dialled(self, dial_id: int, fd: int) -> None:
        self.pairs.dialled(dial_id, fd)

    def dial_failed(self, dial_id: int, reason: str) -> None:
        self.pairs.dial_failed(dial_id, reason)

    def uses_stream(self, stream: int) -> bool:
        return stream in (self._data_stream, self._meta_stream)

    def engine_event(self, event: Event) -> None:
        if event.type is EventType.LINK_LOST:
            self._on_lost(event)
        elif self.uses_stream(event.stream):
            if event.type is EventType.PACKET and event.stream == self._meta_stream:
                self._on_meta(event)
            elif event.type is EventType.PACKET:
                if self._arrival is not None:
                    arrival, self._arrival = self._arrival, None
                    arrival.keep(event)
                else:
                    self._packets.append(event)
        else:
            self.pairs.engine_event(event)

    def _on_meta(self, event: Event) -> None:
        if event.packet in (Packet.STATE_CHG_REPLY, Packet.CONN_ST_CHG_REPLY) and self._reply is not None:
            reply, self._reply = self._reply, None
            reply.keep(pk.StateChangeReply.decode(event.blob).code)

    def _on_lost(self, event: Event) -> None:
        if not self._link_up:
            return
        self._link_up = False
        if self._parted is not None:
            self._parted.keep(None)
            self.wanted, event = False, Event(EventType.LINK_LOST, reason=Lost.NONE)
        self._lost = event
        error = PeerLost("The connection to the peer was lost.")
        if self._reply is not None:
            reply, self._reply = self._reply, None
            reply.fail(error)
        for child in self._children:
            child.cancel("connection lost")
        self._children.clear()
        for volume in self.node.volumes.values():
            volume.waiting_for_sync_uuid.fail(error)
        if self._arrival is not None:
            arrival, self._arrival = self._arrival, None
            arrival.fail(error)

    # ---- operator's side ----

    def start(self, *, discard_my_data: bool = False, is_tentative: bool = False) -> None:
        """Go on connecting until somebody says otherwise."""
        self.wanted = True
        self.discard_my_data = discard_my_data
        self.is_tentative = is_tentative
        self.node.forget_reason()
        if self._flow is None or self._flow.done.is_done:
            self._flow = self.node.start(self._run(), "connection")

    async def stop(self, *, force: bool = False) -> None:
        """Disconnect: ask the peer if it is there, then go StandAlone."""
        node = self.node
        if node.is_connected and not force:
            await ask_to_leave(self)
            await self._peer_closes()
        self.wanted = False
        if self._flow is None or self._flow.done.is_done:
            return
        if self._link_up:
            self._on_lost(Event(EventType.LINK_LOST, reason=Lost.NONE))
            node.send(ec.LinkDown())
        elif self._may_cancel:  # anything else it carries through, and then sees that nobody wants it any more
            self._may_cancel = False
            self._flow.cancel("disconnect")
        ended: Promise[None] = Promise()
        self._flow.done.when_done(lambda: ended.keep(None))
        await ended

    async def _peer_closes(self) -> None:
        """It has agreed; a peer that sees the end of a socket before it has closed its own takes that for a fault."""
        if self._link_up:
            self._parted = Promise()
            await self.node.within(self._parted, self.node.settings.net.ping_timeout_ms)
            self._parted = None

    # ---- the life of the connection ----

    async def _run(self) -> None:
        while self.wanted:  # again: somebody may say "connect" while it is just being ended
            try:
                while self.wanted:
                    await self._attempt()
            except FinalDrop as error:
                self._say(error)
                await self._stand_alone(error.message)
                continue
            except Cancelled:
                pass
            await self._stand_alone("disconnected")
        self.node.notify_watchers()

    async def _stand_alone(self, reason: str) -> None:
        self.wanted = self.is_tentative = False
        self.pairs.close()
        self.node.act(act.Listen(False))
        await self._set_connection(_C.STANDALONE, reason)

    def _say(self, drop: FinalDrop | RetryDrop) -> None:
        self.node.keep_reason(drop.reason, drop.message, drop.advice)
        is_error = isinstance(drop, FinalDrop) and drop.reason != "tentative"
        self.node.emit(
            "connection",
            drop.message,
            level="error" if is_error else "warning",
            advice=drop.advice,
            reason=drop.reason,
        )

    async def _set_connection(self, cstate: ConnectionState, reason: str = "") -> None:
        await self.node.transition(
            lambda v, s: replace(s, conn=cstate), cstate=cstate, peer_role=Role.UNKNOWN, reason=reason, goes_on=True
        )

    async def _attempt(self) -> None:
        """From nothing to a connection, and until it is lost."""
        node = self.node
        if node.cstate != _C.WF_CONNECTION:
            await self._set_connection(_C.WF_CONNECTION)
        if not self.wanted:
            return
        self._may_cancel = True
        await node.late.settled()
        self.pairs.open()
        node.act(act.Listen(True))
        pair = await self.pairs.make()
        node.act(act.Listen(False))
        self.pairs.close()
        self._may_cancel = False
        async with node.suspension.lock:  # nobody goes on without the peer from here on
            self._begin(pair)
            await self._set_connection(_C.WF_REPORT_PARAMS)
        self._may_cancel = True
        final: FinalDrop | Cancelled | None = None
        retry = ""
        try:
            await self._converse()
        except FinalDrop as error:
            final = error
            self._say_farewell(error)
            await self._linger()
        except CannotResend as error:
            self.gives_up = True
            retry = error.message
        except RetryDrop as error:
            retry = error.message
            if error.reason:
                self._say(error)
            if self.peer_is_tentative:
                await self._linger()
        except ProtocolError as error:
            retry = error.message
        except PeerLost:
            self._explain_loss()
        except Cancelled as error:
            final = error
        self._may_cancel = False
        if final is None and self.is_tentative and self.verdicts:  # the peer dropped it first
            final = tentative_result(self)
        was_connected = node.is_connected
        await self._end(final.message if isinstance(final, FinalDrop) else "disconnected" if final else retry)
        self.gives_up = False
        if final is not None:
            raise final
        if self.wanted and (retry or not was_connected):
            self._may_cancel = True
            await node.pause(RETRY_PAUSE_MS)
            self._may_cancel = False

    def _begin(self, pair: Pair) -> None:
        self._data_stream, self._meta_stream = pair.data.stream, pair.meta.stream
        self.resolve_conflicts = pair.resolve_conflicts
        self._packets = deque(pair.data.early)
        self._lost = None
        self._veto = None
        self.peer_leaves_as = self.leaves_as = None
        self._peer_leaves = self.peer_is_tentative = False
        self.knows_peer = self.peer_is_ours = self.peer_decides_alike = False
        self.verdicts.clear()
        self.doubt = ""
        self.agreed = pk.Agreed(version=80, features=Feature.NONE)
        for volume in self.node.volumes.values():
            volume.new_connection()

    async def _converse(self) -> None:
        if not self.wanted:  # told to go while it waited for its turn
            raise Cancelled("disconnect")
        await Handshake(self).run()
        packets = PeerPackets(self)
        while True:
            event = await self.next_packet()
            await packets.handle(event)
            self.resume()
            if self._peer_leaves:
                raise PeerLost("The peer has disconnected.")

    @property
    def is_dry_run(self) -> bool:
        """Nothing may change: one of the nodes only wants to know what would happen."""
        return self.is_tentative or self.peer_is_tentative

    def _say_farewell(self, drop: FinalDrop) -> None:
        """A peer that runs this software gets to know why; DRBD has no word for it."""
        if self.peer_is_ours and self.knows_peer and not self.is_dry_run:
            node = self.node
            text = f"{node.settings.node} gave up: {drop.message}"
            self.send(Packet.FAREWELL, Farewell(drop.reason, text, drop.advice).encode())

    def discard_was_carried_out(self) -> None:
        """The order to discard this node's data holds until no volume waits for it any more."""
        if not any(v.is_discarded for v in self.node.volumes.values()):
            self.discard_my_data = False

    def _explain_loss(self) -> None:
        """Policies are not exchanged: a peer that does not follow the decision just closes the connection."""
        waiting = any(v.state.conn == _C.WF_BITMAP_S for v in self.node.volumes.values())
        if self.doubt and waiting and not self._peer_leaves:
            text = f"{self.node.settings.peer} left after the handshake; probably {self.doubt}."
            advice = f'Look at "replctl why" or the kernel log on {self.node.settings.peer}.'
            self._say(RetryDrop(text, reason="peer-refused", advice=advice))

    async def _linger(self) -> None:
        """Let the peer come to its own verdict on what it was sent: a broken connection alone makes it try again."""
        if not self._link_up:
            return
        self._packets.clear()
        self._veto = None
        with contextlib.suppress(PeerLost, RetryDrop):
            await self.next_packet(self.node.settings.net.ping_timeout_ms)

    async def _end(self, why: str) -> None:
        """The link is gone or to be given up: new generation where needed, then let the engine go on."""
        node = self.node
        lost, self._lost = self._lost, None
        had_link = self._link_up or lost is not None
        if self._link_up:
            self._on_lost(Event(EventType.LINK_LOST, reason=Lost.NONE))
            self._lost = None
            node.send(ec.LinkDown())
        elif lost is None:
            node.send(ec.StreamClose(self._data_stream))
            node.send(ec.StreamClose(self._meta_stream))
        self._data_stream = self._meta_stream = -1
        for child in self._children:
            child.cancel("connection lost")
        self._children.clear()
        state, text = self._lost_text(lost, why)
        self.last_loss = text
        was_connected = node.is_connected
        if was_connected:
            for volume in node.volumes.values():
                volume.peer_may_serve = node.peer_role == Role.PRIMARY
            node.emit("connection", f"lost the peer: {text}", level="warning")
        # Volumes that lose the peer's good data start a new generation; it is durable before any write completes.
        losing = {
            v.number
            for v in node.volumes.values()
            if v.loses_peer_data and v.state.pdsk == DiskState.UP_TO_DATE and node.is_connected
        }
        losing |= {v.number for v in node.volumes.values() if v.is_ahead_of_generation}

        ending = {v.number for v in node.volumes.values() if node.resync.target_may_have_finished(v)}
        shared = {v.number for v in node.volumes.values() if node.resync.target_shares_generation(v)}
        for number in ending - shared:
            node.volumes[number].peer_may_have_finished = node.role != Role.PRIMARY  # a promotion does it then
        ending = ending | shared if node.role == Role.PRIMARY else shared

        for volume in node.volumes.values():
            node.resync.link_breaks(volume)
            volume.peer_may_lack = volume.peer_may_lack or node.disks.outlives_its_disk(volume)
        for number in losing | ending:
            node.volumes[number].generation_due = True
            node.volumes[number].generation_keeps_bitmap = number in ending
        await node.transition(
            lambda v, s: left(self, replace(s, conn=state)),
            uuids=node.suspension.due_generation,
            cstate=state,
            peer_role=Role.UNKNOWN,
            reason=text,
            goes_on=True,
        )
        if was_connected:
            node.handlers.notify("disconnected", facts={"DRBD_CSTATE": str(state)})
        if had_link:
            await node.suspension.link_is_gone()
        if self.wanted:
            await self._set_connection(_C.UNCONNECTED)

    def _lost_text(self, lost: Event | None, why: str) -> tuple[ConnectionState, str]:
        if self._peer_leaves:
            return _C.TEAR_DOWN, "the peer has disconnected"
        if why:
            return _C.PROTOCOL_ERROR if self.wanted else _C.DISCONNECTING, why
        if lost is None or lost.lost is Lost.NONE:
            return _C.DISCONNECTING, "disconnected"
        text = {
            Lost.EOF: "the peer closed the connection",
            Lost.RESET: "the connection was reset",
            Lost.PING_TIMEOUT: "no answer to a ping",
            Lost.KO: "a write was not acknowledged in time (ko-count x timeout)",
            Lost.SEND_TIMEOUT: "the peer takes no data",
            Lost.OWN_DISK: "the own disk failed with writes of the peer on it",
        }.get(lost.lost, "")
        if lost.lost in (Lost.PROTOCOL, Lost.INTEGRITY):
            try:
                name = str(Packet(lost.detail))
            except ValueError:
                name = f"packet 0x{lost.detail:x}"
        if lost.lost is Lost.INTEGRITY:
            text = f"data-integrity-alg: {name} for sector {lost.value} was damaged on the way"
            self.node.reason = text
        elif lost.lost is Lost.PROTOCOL:
            text = f"the peer broke the protocol: {name}, {_ILLEGAL.get(lost.value, 'illegal')}"
            self.node.keep_reason("protocol-broken", text)
        return _LOST_STATES[lost.lost], text

    # ---- packets ----

    async def next_packet(self, wait_ms: int | None = None) -> Event:
        """The next control packet of the data socket; PeerLost when the link breaks, RetryDrop after ``wait_ms``."""
        if self._veto is not None:
            raise self._veto
        if self._packets:
            return self._heard(self._packets.popleft())
        if self._lost is not None:
            raise PeerLost("The connection to the peer was lost.")
        self._arrival = Promise()
        event = await self.node.within(self._arrival, wait_ms)
        if event is None:
            self._arrival = None
            raise RetryDrop("The peer did not answer in time.")
        return self._heard(event)

    def _heard(self, event: Event) -> Event:
        if event.packet == Packet.FAREWELL and self.knows_peer:
            farewell = Farewell.decode(event.blob)
            raise RetryDrop(farewell.text, reason=farewell.reason, advice=farewell.advice)
        return event

    def end_for_good(self, error: FinalDrop) -> None:
        """A procedure beside the main one has found that the nodes do not fit together."""
        self._veto = error
        if self._arrival is not None:
            arrival, self._arrival = self._arrival, None
            arrival.fail(error)

    def resume(self) -> None:
        """The packet has been dealt with: the engine may read on."""
        if self._data_stream >= 0:
            self.node.send(ec.StreamResume(self._data_stream))

    def send(self, packet: Packet, body: bytes, *, volume: int = 0) -> None:
        """Queue a packet on the data socket."""
        if self._data_stream >= 0 and (self._lost is None):
            self.node.send(
                ec.StreamSend(self._data_stream, pk.encode(packet, body, volume=volume, version=self.agreed.version))
            )

    def send_meta(self, packet: Packet, body: bytes, *, volume: int = 0) -> None:
        """Queue a packet on the meta socket."""
        if self._link_up:
            self.node.send(
                ec.StreamSend(self._meta_stream, pk.encode(packet, body, volume=volume, version=self.agreed.version))
            )

    def own_protocol(self) -> pk.Protocol:
        """P_PROTOCOL of this node as it is configured now."""
        net, flags = self.node.settings.net, pk.ConnectionFlag.NONE
        if self.discard_my_data:
            flags |= pk.ConnectionFlag.DISCARD_MY_DATA
        if self.is_tentative:
            flags |= pk.ConnectionFlag.DRY_RUN
        return pk.Protocol(
            protocol=pk.ReplicationProtocol(net.protocol),
            after_sb_0p=AfterSplitBrain(net.after_sb_0pri),
            after_sb_1p=AfterSplitBrain(net.after_sb_1pri),
            after_sb_2p=AfterSplitBrain(net.after_sb_2pri),
            conn_flags=flags,
            integrity_alg=net.data_integrity_alg,
            two_primaries=net.two_primaries,
        )

    def link_up(self, agreed: pk.Agreed) -> None:
        """Version and features are known: the engine takes both sockets."""
        self.agreed = agreed
        self._link_up = True
        self.csums_alg = self.node.settings.net.csums_alg
        self.node.send(ec.LinkUp(self.link_options(self.node.settings.net.data_integrity_alg)))

    def link_options(self, peer_integrity: str) -> ec.Link:
        """What the engine has to know about the link; ``peer_integrity``: the peer's data-integrity-alg."""
        net, version = self.node.settings.net, self.agreed.version

        def digest(name: str, since: int, option: str) -> int:
            return digest_number(name, option) if version >= since else 0

        integrity_since = pk.Protocol.INTEGRITY_VERSION
        self.peer_integrity = peer_integrity
        return ec.Link(
            data_stream=self._data_stream,
            meta_stream=self._meta_stream,
            version=version,
            features=int(self.agreed.features),
            protocol=net.protocol,
            timeout_ms=net.timeout_ms,
            ping_int_ms=net.ping_int_ms,
            ping_timeout_ms=net.ping_timeout_ms,
            ko_count=net.ko_count,
            max_epoch_size=net.max_epoch_size,
            max_buffers=net.max_buffers,
            integrity_alg=digest(net.data_integrity_alg, integrity_since, "data-integrity-alg"),
            peer_integrity_alg=digest(peer_integrity, integrity_since, "the peer's data-integrity-alg"),
            verify_alg=digest(net.verify_alg, pk.SyncParam.VERIFY_VERSION, "verify-alg"),
            csums_alg=digest(self.csums_alg, pk.SyncParam.CSUMS_VERSION, "csums-alg"),
            strict_flush=net.strict_flush,
            use_rle=net.use_rle,
            resolve_conflicts=self.resolve_conflicts,
            peer_is_ours=self.peer_is_ours,
            two_primaries=net.two_primaries,
            keep_data=net.fencing == RESOURCE_AND_STONITH or self.node.settings.on_no_data == "suspend-io",
            on_congestion=net.on_congestion == "disconnect" or (net.on_congestion, net.protocol) == ("pull-ahead", 1),
            congestion_fill_bytes=net.congestion_fill_sectors * 512,
            congestion_extents=net.congestion_extents,
        )

    def child(self, flow: Flow[Any]) -> None:
        """A procedure that ends with the link."""
        self._children = [f for f in self._children if not f.done.is_done]
        self._children.append(flow)

    def peer_leaves(self) -> None:
        """The peer has asked for a graceful disconnect and we agreed."""
        self._peer_leaves = True

    # ---- what the peer is told ----

    def send_state(self, volume: Volume, state: StateWord | None = None, *, more_pad: int = 0) -> None:
        if self.node.is_connected or state is not None:
            word = state or volume.state
            pad = volume.attach_serials.pad(word) if self.peer_is_ours and self.node.is_connected else 0
            self.send(Packet.STATE, pk.State(replace(word, pad=pad | more_pad)).encode(), volume=volume.number)

    def send_sync_param(self, volume: Volume) -> None:
        version = self.agreed.version
        body = self.node.resync.options.packet(volume).encode(version)
        self.send(pk.SyncParam.packet_for(version), body, volume=volume.number)

    def send_uuids(self, volume: Volume, *, extra_flags: int = 0) -> None:
        if not volume.attached:
            return
        volume.sent_dirty_bits = self.node.dirty_bits(volume)
        flags = extra_flags
        if self.discard_my_data:
            flags |= UuidFlag.DISCARD_MY_DATA
        if volume.claims_crash:
            flags |= UuidFlag.CRASHED_PRIMARY
        found = volume.disk_state_found() if volume.is_negotiating else volume.state.disk
        if found == DiskState.INCONSISTENT:
            flags |= UuidFlag.INCONSISTENT
        report = pk.UuidReport(volume.uuids, volume.sent_dirty_bits, UuidFlag(flags))
        self.send(Packet.UUIDS, report.encode(), volume=volume.number)

    def send_sizes(self, volume: Volume, *, asks: bool = False, flags: SizeFlag = SizeFlag.NONE) -> None:
        """``asks``: the peer has to look at its disk and answer."""
        cap = self.agreed.request_bytes_max
        sizes = pk.Sizes(
            d_size=volume.backing_sectors,
            u_size=volume.user_sectors,
            c_size=0 if asks else volume.size_sectors,
            dds_flags=flags,
            max_bio_size=cap,
            limits=pk.QueueLimits() if self.agreed.wsame else None,
        )
        self.send(Packet.SIZES, sizes.encode(), volume=volume.number)

    # ---- changes that need the peer's agreement ----

    async def request_change(self, change: StateChange, *, volume: int = 0, connection_wide: bool = False) -> int:
        """Ask the peer; its code (>= 1: agreed).  PeerLost if the link breaks first."""
        async with self._change_lock:
            if not self._link_up:
                raise PeerLost("The connection to the peer was lost.")
            packet = Packet.STATE_CHG_REQ
            if connection_wide and self.agreed.version >= pk.PROTOCOL_H100:
                packet = Packet.CONN_ST_CHG_REQ
            self._reply = Promise()
            promise = self._reply
            self.send(packet, pk.StateChangeRequest(change).encode(), volume=volume)
            self.node.ask(ec.Ping())
            return await promise

    @property
    def change_is_open(self) -> bool:
        return self._reply is not None
