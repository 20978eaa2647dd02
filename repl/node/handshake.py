# SPDX-License-Identifier: Apache-2.0
"""The handshake: features, authentication, parameters, and per volume who resyncs from whom.

Each mismatch ends in :class:`FinalDrop`: both nodes compare the same packets, so both end StandAlone and know why.
Facts: docs/protocol.md, sections 1.4 to 1.9.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from repl.drbd import auth
from repl.drbd import packets as pk
from repl.drbd.decision import Refusal
from repl.drbd.packets import Packet
from repl.drbd.split_brain import AfterSplitBrain
from repl.drbd.states import ConnectionState, DiskState, Role, StateWord
from repl.drbd.uuids import Feature, UuidFlag, base
from repl.engine import commands as ec
from repl.engine.events import Event
from repl.errors import ProtocolError, StateRefused
from repl.node.drops import FinalDrop, RetryDrop
from repl.node.settings import NetSettings
from repl.node.settlement import end_dry_run, settle
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.connection import Connection

_C = ConnectionState
_D = DiskState
OUR_FEATURE = 1 << 24  # offered by this software only; a DRBD peer masks it away
OFFERED_FEATURES = int(Feature.KERNEL) | OUR_FEATURE
AUTH_PING_TIMEOUTS = 4
PARAMETERS_WAIT_MS = 20_000


class Handshake:
    """Runs once per link; leaves the connection Connected."""

    def __init__(self, connection: Connection) -> None:
        self._c = connection
        self._node = connection.node
        self._late: set[int] = set()  # volumes whose generation is sent when the peer's size is known
        self._unsaid: set[int] = set()  # without a disk: the state is sent when the peer's is known

    @property
    def _net(self) -> NetSettings:
        return self._node.settings.net

    async def run(self) -> None:
        await self._features()
        if self._net.cram_hmac_alg:
            await self._authenticate()
        self._c.knows_peer = True
        self._send_parameters()
        await self._receive_parameters()

    # ---- step 1: features ----

    async def _features(self) -> None:
        c, net = self._c, self._net
        mine = pk.Features(net.protocol_min, net.protocol_max, OFFERED_FEATURES)
        c.send(Packet.CONNECTION_FEATURES, mine.encode())
        wait_ms = net.ping_timeout_ms * AUTH_PING_TIMEOUTS
        event = await c.next_packet(wait_ms)
        if event.packet != Packet.CONNECTION_FEATURES:
            raise FinalDrop(
                f"{self._peer} did not answer with P_CONNECTION_FEATURES but with packet 0x{event.packet:x}.",
                reason="not-drbd",
                advice="Check that the address belongs to a DRBD 8.4 node.",
            )
        try:
            theirs = pk.Features.decode(event.blob)
            version, _ = pk.agree(mine, theirs)
        except ProtocolError as error:
            raise FinalDrop(f"{self._peer}: {error.message}", reason="protocol-version") from None
        flags = mine.feature_flags & theirs.feature_flags
        self._refuse_old(version)
        c.peer_decides_alike = bool(flags & OUR_FEATURE)
        c.peer_is_ours = c.peer_decides_alike and version >= pk.PROTOCOL_H100
        c.link_up(pk.Agreed(version=version, features=Feature(flags & int(Feature.KERNEL))))
        c.resume()

    def _refuse_old(self, version: int) -> None:
        """What the protocol of this version has no words for."""
        wanted = []
        if len(self._node.volumes) > 1 or 0 not in self._node.volumes:
            wanted.append("other volumes than one with the number 0")
        if self._net.two_primaries:
            wanted.append("two Primaries")
        if version < pk.PROTOCOL_H100 and wanted:
            raise FinalDrop(
                f"{self._peer} speaks protocol version {version}; {' and '.join(wanted)} need {pk.PROTOCOL_H100}.",
                reason="protocol-version",
                advice="Update the peer, or change the configuration on both nodes.",
            )
        for name, first, value in (
            ("data-integrity-alg", pk.Protocol.INTEGRITY_VERSION, self._net.data_integrity_alg),
            ("verify-alg", pk.SyncParam.VERIFY_VERSION, self._net.verify_alg),
            ("csums-alg", pk.SyncParam.CSUMS_VERSION, self._net.csums_alg),
        ):
            if value and version < first:
                text = f"{self._peer} speaks protocol version {version}; {name} is not used, it needs {first}"
                self._node.emit("connection", text, level="warning")

    # ---- steps 2 and 3: authentication ----

    async def _authenticate(self) -> None:
        c, net = self._c, self._net
        wait_ms = net.ping_timeout_ms * AUTH_PING_TIMEOUTS
        secret = net.shared_secret.encode()
        own = self._node.random_bytes(pk.CHALLENGE_BYTES)
        c.send(Packet.AUTH_CHALLENGE, own)
        event = await c.next_packet(wait_ms)
        if event.packet != Packet.AUTH_CHALLENGE:
            raise FinalDrop(
                f"{self._peer} does not authenticate (cram-hmac-alg {net.cram_hmac_alg} is set here).",
                reason="authentication",
                advice="Set the same cram-hmac-alg and shared-secret on both nodes.",
            )
        try:
            auth.check_challenge(own, event.blob)
            c.send(Packet.AUTH_RESPONSE, auth.respond(net.cram_hmac_alg, secret, event.blob))
            c.resume()
            event = await c.next_packet(wait_ms)
            if event.packet != Packet.AUTH_RESPONSE:
                raise ProtocolError("no P_AUTH_RESPONSE came.")
            auth.check_response(net.cram_hmac_alg, secret, own, event.blob)
        except ProtocolError as error:
            raise FinalDrop(
                f"Authentication of {self._peer} failed: {error.message}",
                reason="authentication",
                advice="Compare shared-secret and cram-hmac-alg on both nodes.",
            ) from None
        c.resume()

    # ---- steps 4 to 7: parameters ----

    @property
    def _peer(self) -> str:
        return self._node.settings.peer

    def _send_parameters(self) -> None:
        c, version = self._c, self._c.agreed.version
        c.send(Packet.PROTOCOL, self._c.own_protocol().encode(version))
        for volume in self._node.volumes.values():
            c.send_sync_param(volume)
            c.send_sizes(volume)
            if volume.has_unused_room:  # what grows now is marked before the peer is told how much is
                self._late.add(volume.number)
            elif not volume.attached and not c.peer_decides_alike:
                self._unsaid.add(volume.number)
            else:
                self._send_generation(volume)

    def _send_generation(self, volume: Volume) -> None:
        self._c.send_uuids(volume)
        state = replace(volume.state, peer=Role.UNKNOWN, conn=_C.WF_CONNECTION, pdsk=_D.UNKNOWN)
        volume.sent_role = state.role
        self._c.send_state(volume, state)

    def _send_late(self, volume: Volume) -> None:
        if volume.number in self._late:
            self._late.discard(volume.number)
            self._send_generation(volume)

    async def _receive_parameters(self) -> None:
        c = self._c
        have_protocol = False
        while not all(v.is_evaluated for v in self._node.volumes.values()):
            event = await c.next_packet(PARAMETERS_WAIT_MS)
            if event.packet == Packet.AUTH_CHALLENGE:
                raise FinalDrop(
                    f"{self._peer} wants authentication, none is configured here.",
                    reason="authentication",
                    advice="Set the same cram-hmac-alg and shared-secret on both nodes.",
                )
            if event.packet == Packet.PROTOCOL:
                self._check_protocol(event)
                have_protocol = True
            elif not have_protocol:
                raise ProtocolError(f"Packet 0x{event.packet:x} came before P_PROTOCOL.")
            elif event.volume not in self._node.volumes:
                self._node.emit(
                    "connection",
                    f"{self._peer} has a volume {event.volume} that is not configured here",
                    level="warning",
                )
            else:
                await self._volume_packet(self._node.volumes[event.volume], event)
            c.resume()

    def _check_protocol(self, event: Event) -> None:
        mine, theirs = self._c.own_protocol(), pk.Protocol.decode(event.blob, self._c.agreed.version)
        own_integrity = mine.integrity_alg or "" if theirs.integrity_alg is not None else ""
        pairs: list[tuple[str, object, object]] = [
            ("protocol", mine.protocol.name, theirs.protocol.name),
            ("after-sb-0pri", mine.after_sb_0p, theirs.after_sb_0p.seen_by_peer()),
            ("after-sb-1pri", mine.after_sb_1p, theirs.after_sb_1p.seen_by_peer()),
            ("after-sb-2pri", mine.after_sb_2p, theirs.after_sb_2p.seen_by_peer()),
            ("allow-two-primaries", mine.two_primaries, theirs.two_primaries),
            ("data-integrity-alg", own_integrity, theirs.integrity_alg or ""),
        ]
        for name, here, there in pairs:
            if here != there:
                raise FinalDrop(
                    f"Incompatible settings: {name} is {_name(here)} here and {_name(there)} on {self._peer}.",
                    reason="settings-differ",
                    advice="Use the same configuration on both nodes.",
                )
        self._c.peer_is_tentative = bool(theirs.conn_flags & pk.ConnectionFlag.DRY_RUN)

    async def _volume_packet(self, volume: Volume, event: Event) -> None:
        if event.packet in (Packet.SYNC_PARAM, Packet.SYNC_PARAM89):
            theirs = pk.SyncParam.decode(event.blob, self._c.agreed.version)
            volume.peer_verify_alg = theirs.verify_alg
            for name, here, there in (
                ("verify-alg", self._net.verify_alg, theirs.verify_alg),
                ("csums-alg", self._net.csums_alg, theirs.csums_alg),
            ):
                if there is not None and here != there:
                    raise FinalDrop(
                        f'Incompatible settings: {name} is "{here}" here and "{there}" on {self._peer}.',
                        reason="settings-differ",
                        advice="Use the same configuration on both nodes.",
                    )
        elif event.packet == Packet.SIZES:
            await self._sizes(volume, pk.Sizes.decode(event.blob, wsame=self._c.agreed.wsame))
        elif event.packet == Packet.UUIDS:
            volume.peer_report = pk.UuidReport.decode(event.blob)
        elif event.packet == Packet.STATE:
            await self._state(volume, pk.State.decode(event.blob).state)
        else:
            raise ProtocolError(f"Packet 0x{event.packet:x} does not belong to the handshake.")

    async def _state(self, volume: Volume, theirs: StateWord) -> None:
        if volume.number in self._unsaid:
            self._unsaid.discard(volume.number)
            check_exposed(self._c, volume)
            _check_outdated(self._c, theirs)
            self._send_generation(volume)
        await evaluate(self._c, volume, theirs)

    async def _sizes(self, volume: Volume, theirs: pk.Sizes) -> None:
        volume.peer_sizes = theirs
        if not volume.attached:
            await self._node.disks.presented_size(volume, theirs.c_size or theirs.u_size or theirs.d_size)
            return
        if not theirs.d_size:
            self._send_late(volume)
            return
        limit = min((size for size in (volume.user_sectors, theirs.u_size) if size), default=0)
        size = min(volume.size_sectors, theirs.d_size, limit or theirs.d_size)
        if not self._c.is_dry_run:
            volume.user_sectors = limit  # one node may not know of the order that the other one was given
        if size >= volume.size_sectors:
            if not self._c.is_dry_run:
                await self._node.resize.at_connect(volume, theirs)
            self._send_late(volume)
            return
        if volume.state.disk >= _D.OUTDATED or volume.open_count:
            raise self._too_small(volume, theirs, size)
        if self._c.is_dry_run:
            return
        await self._node.disks.shrink_unused(volume, size)
        self._c.send_sizes(volume)
        self._send_late(volume)

    def _too_small(self, volume: Volume, theirs: pk.Sizes, size: int) -> FinalDrop:
        in_use, number = f"{volume.size_sectors} are in use here", volume.number
        if size == theirs.d_size:
            return FinalDrop(
                f"The disk of {self._peer} is too small for volume {number}: {size} sectors, {in_use}.",
                reason="disk-too-small",
                advice="Use a disk that is at least as large.",
            )
        name = f"{self._node.settings.resource}/{number}"
        return FinalDrop(
            f"The size of volume {number} is limited to {size} sectors, {in_use}.",
            reason="disk-too-small",
            advice=f'Look at the option "size" on both nodes, or let this one shrink too: "replctl invalidate {name}", '
            f'then "replctl connect"; the data of {self._peer} is copied.',
        )


def _name(value: object) -> str:
    if isinstance(value, AfterSplitBrain):
        return value.option
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f'"{value}"' if value == "" else str(value)


# ---- who resyncs from whom ----


async def evaluate(c: Connection, volume: Volume, theirs: StateWord) -> None:
    """The peer's state of a volume is known: decide, take the new state, tell the peer."""
    node = c.node
    peer_disk = real_disk(theirs, volume)
    if volume.attached and peer_disk >= _D.INCONSISTENT and volume.peer_report is None:
        raise ProtocolError(f"{node.settings.peer} sent no P_UUIDS for volume {volume.number}, which has a disk.")
    two_refused = Role.PRIMARY == theirs.role == node.role and not node.settings.net.two_primaries
    if two_refused:
        # Two Primaries: the generations say that it is a split brain; without disks nothing else would.
        if not volume.attached or peer_disk < _D.INCONSISTENT:
            raise _two_primaries()
    check_exposed(c, volume)
    node.suspension.check_peer(volume, peer_disk)
    check_reader(c, volume, theirs)
    conn, peer_role = _C.CONNECTED, theirs.role
    if volume.attached and peer_disk >= _D.INCONSISTENT:
        attaching = volume.is_negotiating
        try:
            conn, peer_role = await settle(c, volume, theirs, peer_disk)
        except FinalDrop as refused:  # a verdict against a disk that is just being attached concerns that disk only
            if attaching:
                volume.attach_refusal = refused
                node.notify_watchers()
                return
            if theirs.disk != _D.NEGOTIATING or not node.is_connected:
                raise
            peer_disk = _D.DISKLESS
        may_both = node.settings.net.two_primaries or c.is_dry_run
        if Role.PRIMARY == peer_role == node.role and not may_both:
            raise _two_primaries()
    elif volume.attached and peer_disk < _D.INCONSISTENT:
        if node.role == Role.PRIMARY and volume.is_negotiating and volume.is_older_than_exposed:
            await node.transition(lambda v, s: replace(s, pdsk=peer_disk), only=volume, reason="told by the peer")
            volume.attach_refusal = StateRefused(
                "its data is older than what this Primary has presented, and the peer has lost its disk.",
                advice="Attach the peer's disk first, or make this node Secondary.",
            )
            node.notify_watchers()
            return
        node.emit("resync", f"{node.settings.peer} has no disk", volume=volume.number)
    first = not node.is_connected
    volume.is_evaluated = True
    if c.is_dry_run:
        end_dry_run(c)
        return
    volume.peer_may_have_finished = False
    if peer_disk >= _D.INCONSISTENT:
        node.resync.peer_is_compared(volume)
        volume.peer_may_be_equal = False
    all_done = all(v.is_evaluated for v in node.volumes.values())
    volume.decided = replace(theirs, conn=conn, disk=peer_disk)
    ours = {volume.number} if not (first and all_done) else set(node.volumes)  # earlier ones have waited for the last
    await node.transition(
        lambda v, s: _as_decided(v, s) if v.number in ours else s,
        only=None if first and all_done else volume,
        cstate=_C.CONNECTED if all_done else None,
        peer_role=peer_role,
        reason="handshake" if first else "",
    )
    if not all_done:
        return
    each_new = list(node.volumes.values()) if first else [volume]
    for each in each_new:
        c.send_state(each)
    if first:
        c.serial += 1
    if first or node.suspension.ends_with_data:
        await node.suspension.reached_peer()
    for each in each_new:
        await node.resync.begin(each)
    if first:
        node.forget_reason()
        c.discard_was_carried_out()
    for each in each_new:
        await _check_unwritten(c, each)


async def _check_unwritten(c: Connection, volume: Volume) -> None:
    """Both nodes have said that nothing differs; what applications wrote since then has not gone to the peer."""
    node = c.node

    def is_in_sync() -> bool:
        both = {volume.state.disk, volume.state.pdsk}
        return volume.attached and volume.state.conn == _C.CONNECTED and both == {_D.UP_TO_DATE}

    if node.role != Role.PRIMARY or not is_in_sync():
        return
    await node.late.in_time([node.ask(ec.BitmapWrite(volume.number))])  # behind the new state: what it counts is final
    written = node.dirty_bits(volume)
    if written and is_in_sync():
        raise RetryDrop(
            f"{node.settings.resource}/{volume.number}: {written} blocks were written while the nodes connected; "
            "connecting again to resync them.",
            reason=Refusal.LEFT_OVER.value,
        )


def _two_primaries() -> FinalDrop:
    return FinalDrop("Both nodes are Primary.", reason="two-primaries", advice="Make one of them Secondary.")


def _as_decided(volume: Volume, state: StateWord) -> StateWord:
    peer = volume.decided
    disk = volume.disk_state_found() if volume.is_negotiating else state.disk
    return replace(state, conn=peer.conn, disk=disk, pdsk=peer.disk, peer_isp=peer.pauses_resync)


def check_exposed(c: Connection, volume: Volume) -> None:
    """Without a disk (any more): applications have seen one generation and must not be shown another one."""
    node, report = c.node, volume.peer_report
    if volume.peer_may_lack and node.role == Role.PRIMARY:
        has = "has no disk" if not volume.attached else "has lost blocks"
        raise FinalDrop(
            f"This Primary {has}, and {node.settings.peer} may lack writes that were acknowledged before.",
            reason="unconfirmed-writes",
            advice=f"Attach the disk of {node.settings.node} again, or make this node Secondary and decide which data "
            "to go on with.",
        )
    if report is None:
        return
    if volume.attached:
        _check_presented(c, volume, base(report.uuids.current))
        return
    mine, theirs = volume.uuids.current, report.uuids.current
    if node.role == Role.PRIMARY and mine and base(mine) != base(theirs):
        raise FinalDrop(
            f"This Primary has no disk and can only connect to data of generation {mine:016X}; "
            f"{node.settings.peer} has {theirs:016X}.",
            reason="other-generation",
            advice=f"Attach the disk of {node.settings.node} that holds this generation, or take the resource down.",
        )
    if not c.is_dry_run:
        volume.uuids = replace(volume.uuids, current=theirs)


def _check_presented(c: Connection, volume: Volume, theirs: int) -> None:
    """differs: DRBD goes on, and sends again what it has kept, on top of what others have written (decision 0110)."""
    net, name = c.node.settings.net, c.node.settings.resource
    if volume.presented in (0, theirs) or volume.is_negotiating or net.two_primaries or c.is_dry_run:
        return
    raise FinalDrop(
        f"This Primary has shown its applications data of generation {volume.presented:016X}; {c.node.settings.peer}, "
        f"which had it, was promoted meanwhile and has {theirs:016X}.",
        reason="other-generation",
        advice=f'End the applications, then "replctl secondary {name}" and "replctl connect {name}" here.',
    )


def _check_outdated(c: Connection, theirs: StateWord) -> None:
    """differs: DRBD's node takes an Outdated disk for UpToDate once it hears that the other one has none; if that is
    Primary it begins a generation as well, of old data (decision 0016)."""
    node = c.node
    if theirs.disk != _D.OUTDATED or c.is_dry_run:
        return
    raise FinalDrop(
        f"{node.settings.node} has no disk, and the data of {node.settings.peer} is Outdated.",
        reason="unconfirmed-writes",
        advice=f"Attach the disk of {node.settings.node} again, then connect; or go on with the older data: promote "
        f"{node.settings.peer} by force.",
    )


def check_reader(c: Connection, volume: Volume, theirs: StateWord) -> None:
    """differs: DRBD's Primary without a disk takes an Outdated one for UpToDate: a node of its own shows it old data.

    It would ask this node again and again for what it is refused (decision 0016).
    """
    node = c.node
    reads = theirs.role == Role.PRIMARY and theirs.disk < _D.NEGOTIATING
    if c.peer_decides_alike or volume.state.disk != _D.OUTDATED or not reads or c.is_dry_run:
        return
    raise FinalDrop(
        f"{node.settings.peer} is Primary without a disk; what {node.settings.node} has is older than what it showed.",
        reason="peer-needs-its-disk",
        advice=f'Attach the disk of {node.settings.peer} again, then "replctl connect {node.settings.resource}" here.',
    )


def real_disk(theirs: StateWord, volume: Volume) -> DiskState:
    """Negotiating stands for what the peer's P_UUIDS say."""
    if theirs.disk != _D.NEGOTIATING:
        return theirs.disk
    report = volume.peer_report
    inconsistent = report is not None and UuidFlag.INCONSISTENT in report.flags
    return _D.INCONSISTENT if inconsistent else _D.CONSISTENT
