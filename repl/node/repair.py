# SPDX-License-Identifier: Apache-2.0
"""``verify --repair``: the differing blocks are copied from one node to the other without a reconnect.

The node whose data is right starts a new generation with the differing blocks as its bitmap, tells the peer and becomes
the source of an ordinary bitmap resync; the peer comes to the same verdict by the usual rules.  So a kernel module can
be the one that is repaired.  Only a peer of ours can be told to be the source.  Interrupted, it goes on with the next
connection.  Decision 0025.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from repl.drbd.states import ConnectionState, DiskState, Role, StateChange, StateCode, StateWord
from repl.drbd.uuids import Uuids, new_current
from repl.errors import PeerLost, ReplError, StateRefused, UsageError
from repl.node.refusals import refusal
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node
    from repl.node.verify import VerifyControl, VerifyReport

_C = ConnectionState
_D = DiskState


def is_source(volume: Volume) -> bool:
    return volume.state.conn == _C.WF_BITMAP_S


class Repair:
    """Repairs of all volumes."""

    def __init__(self, node: Node, control: VerifyControl) -> None:
        self._node = node
        self._control = control

    def check(self, volume: Volume, named: str) -> str:
        """The node whose data is right: the one that is named, else the Primary.  Refuses what cannot work."""
        node, settings = self._node, self._node.settings
        where = f"{settings.resource}/{volume.number}"
        me, peer = settings.node, settings.peer
        primaries = [n for n, role in ((me, node.role), (peer, node.peer_role)) if role == Role.PRIMARY]
        if named and named not in (me, peer):
            raise UsageError(f"--from {named}: {settings.resource} runs on {me} and {peer}.")
        if not named and len(primaries) != 1:
            raise UsageError(
                f"{where}: {'both nodes are' if primaries else 'neither node is'} Primary.",
                advice=f"Name the node whose data is right: --from {me} or --from {peer}.",
            )
        source = named or primaries[0]
        target = peer if source == me else me
        if target in primaries:
            raise StateRefused(
                f"{where}: {target} is Primary, its data is in use and cannot be replaced",
                number=-10,
                advice=f'"replctl secondary {settings.resource}" on {target} first, or repair from {target}.',
            )
        if source == peer and not node.connection.peer_is_ours:
            raise StateRefused(
                f"{where}: {peer} runs the kernel module, which cannot be told to copy single blocks",
                number=-17,
                advice=f'"replctl invalidate {where}" copies everything from {peer}; disconnecting and connecting '
                f"while {peer} is Primary copies the differing blocks.",
            )
        return source

    def after_verify(self, volume: Volume, report: VerifyReport) -> None:
        """A verify has ended orderly."""
        if report.repair != "wanted":
            return
        if not report.differing_blocks:
            self._set(report, "")
            return
        self._set(report, "starting")
        node = self._node
        node.connection.child(node.start(self._run(volume, report), "repair"))

    async def _run(self, volume: Volume, report: VerifyReport) -> None:
        node = self._node
        try:
            if report.repair_from == node.settings.node:
                await self._become_source(volume)
            else:
                change = StateChange.of(conn=_C.WF_BITMAP_T)
                code = await node.connection.request_change(change, volume=volume.number)
                if code < StateCode.SUCCESS:
                    raise refusal(node, "repair", code)
        except PeerLost:
            self._set(report, "interrupted: connection lost")
        except ReplError as error:
            self._set(report, error.message)
            node.emit("verify", f"repair: {error.message}", level="error", volume=volume.number)

    def asked(self, volume: Volume) -> int:
        """Our peer wants to be repaired from here."""
        node, state = self._node, volume.state
        if state.conn != _C.CONNECTED:
            return StateCode.RESYNC_RUNNING
        if state.disk != _D.UP_TO_DATE or state.pdsk != _D.UP_TO_DATE:
            return StateCode.NO_UP_TO_DATE_DISK
        if node.peer_role == Role.PRIMARY:
            return StateCode.FAILED_BY_PEER
        node.connection.child(node.start(self._become_source(volume), "repair source"))
        return StateCode.SUCCESS

    async def _become_source(self, volume: Volume) -> None:
        """A new generation whose bitmap is what differs; the peer sees that it lacks exactly that."""
        node = self._node
        if volume.state.conn != _C.CONNECTED or not volume.attached:
            raise StateRefused(f"{node.settings.resource}/{volume.number} is {volume.state.conn}", number=-8)

        def uuids(v: Volume) -> Uuids:
            if v is not volume:
                return v.uuids
            return new_current(v.uuids, node.random, primary=node.role == Role.PRIMARY, keep_bitmap=v.uuids.bitmap != 0)

        def change(v: Volume, s: StateWord) -> StateWord:
            return replace(s, conn=_C.WF_BITMAP_S) if v is volume and s.conn == _C.CONNECTED else s

        await node.transition(lambda v, s: s, uuids=uuids, only=volume, reason="repair")
        node.connection.send_uuids(volume)
        node.connection.send_state(volume, replace(volume.state, conn=_C.WF_BITMAP_S))
        await node.transition(change, only=volume, reason="repair of the differing blocks")
        if is_source(volume):
            await node.resync.begin(volume)

    def state_changed(self, volume: Volume, before: StateWord, after: StateWord) -> None:
        """Called by every transition."""
        report = self._control.reports.get(volume.number)
        if report is None or before.conn == after.conn:
            return
        if after.conn < _C.CONNECTED:
            self.give_up(report)
        if report.repair not in ("starting", "running"):
            return
        if after.conn > _C.CONNECTED:
            report.repair = "running"
        elif after.conn == _C.CONNECTED and report.repair == "running":
            whole = after.disk == _D.UP_TO_DATE and after.pdsk == _D.UP_TO_DATE
            self._set(report, "done" if whole else "interrupted: a disk failed")
        elif after.conn < _C.CONNECTED:
            self._set(report, "interrupted: it goes on with the next connection")

    def give_up(self, report: VerifyReport) -> None:
        """The verify has not come to an orderly end: nothing is repaired, and nobody waits for that."""
        if report.repair == "wanted":
            self._set(report, "not started: the link, a disk or another order came between")

    def _set(self, report: VerifyReport, state: str) -> None:
        report.repair = state
        self._control.save()
        self._node.notify_watchers()
