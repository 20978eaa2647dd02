# SPDX-License-Identifier: Apache-2.0
"""Fencing: what a node does before it goes on alone, so that the lost peer does not go on as well.

The policy is the strictest one of the volumes.  ``fence-peer`` finds out, or sees to it, that the peer does not go on;
its exit status says which.  A result counts only while the peer is still away.  Facts: docs/operations.md, "Fencing".
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from repl.drbd.states import ConnectionState, DiskState, Role
from repl.errors import StateRefused
from repl.node.suspend import RESOURCE_AND_STONITH

if TYPE_CHECKING:
    from repl.node.node import Node

_C = ConnectionState
_D = DiskState
HANDLER = "fence-peer"
DONT_CARE = "dont-care"
PEER_INCONSISTENT, PEER_OUTDATED, PEER_DOWN, PEER_IS_PRIMARY, PEER_FENCED = 3, 4, 5, 6, 7
_MEANINGS = {
    PEER_INCONSISTENT: "the peer's disk is Inconsistent",
    PEER_OUTDATED: "the peer's disk is Outdated",
    PEER_DOWN: "the peer cannot be reached and is taken to be down",
    PEER_IS_PRIMARY: "the peer is Primary",
    PEER_FENCED: "the peer was stopped",
}


class Fencing:
    """That of one resource."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.last_status: int | None = None

    @property
    def is_on(self) -> bool:
        return self._node.settings.net.fencing != DONT_CARE

    @property
    def peer_is_fenced(self) -> bool:
        """No disk of the peer is better than Outdated as far as we know."""
        return all(v.state.pdsk <= _D.OUTDATED for v in self._node.volumes.values())

    def refuses_lone_primary(self) -> bool:
        """Whether a Primary may not lose its peer's disks as they are now."""
        return self.is_on and not self.peer_is_fenced

    # ---- a lost peer ----

    async def peer_lost(self) -> None:
        """This Primary has lost its peer: find out what became of it, in the background."""
        node = self._node
        ended = await self.outdate_peer()
        if not ended and node.suspension.fencing:
            node.emit(
                "suspended",
                f"application I/O stays suspended: fence-peer did not outdate {node.settings.peer}",
                level="error",
                advice=node.suspension.advice(),
            )

    async def outdate_peer(self) -> bool:
        """Run fence-peer and apply its result; True if the peer's disks are Outdated or worse now."""
        node = self._node
        serial = node.connection.serial
        status = await node.handlers.run(HANDLER)
        self.last_status = status
        if status is None:
            node.emit("fencing", "fencing is on, but no fence-peer handler is configured", level="error")
            return False
        while True:
            await node.watch(lambda: node.cstate != _C.WF_REPORT_PARAMS)
            async with node.suspension.lock:
                if node.cstate == _C.WF_REPORT_PARAMS:
                    continue
                if node.connection.serial != serial or node.is_connected:
                    node.emit("fencing", "the peer was back before fence-peer ended: its result does not count")
                    return False
                return await self._apply(status)

    async def _apply(self, status: int) -> bool:
        node = self._node
        meaning = _MEANINGS.get(status)
        if meaning is None:
            node.emit("fencing", f"fence-peer is broken: exit status {status} means nothing", level="error")
            return False
        node.emit("fencing", f"fence-peer: {meaning}", level="warning")
        if status == PEER_IS_PRIMARY:
            await self._outdate_self()
            return False
        if status == PEER_DOWN and any(v.state.disk != _D.UP_TO_DATE for v in node.volumes.values()):
            return False  # this disk may be the older one
        if status == PEER_FENCED and node.settings.net.fencing != RESOURCE_AND_STONITH:
            policy = node.settings.net.fencing
            node.emit("fencing", f"fence-peer stops the peer, but the policy is {policy}", level="warning")
        pdsk = _D.INCONSISTENT if status == PEER_INCONSISTENT else _D.OUTDATED
        if not await node.suspension.give_up(fencing=True, reason=f"fence-peer: {meaning}", pdsk=pdsk):
            return False
        if any(v.state.disk == _D.CONSISTENT for v in node.volumes.values()):
            await node.transition(
                lambda v, s: replace(s, disk=_D.UP_TO_DATE) if s.disk == _D.CONSISTENT else s,
                reason="nobody has newer data",
            )
        return True

    async def _outdate_self(self) -> None:
        node = self._node
        if node.role == Role.PRIMARY:
            node.emit(
                "fencing",
                "this node is Primary as well: its disk is in use and stays as it is",
                level="error",
                advice=f'Make one of the nodes Secondary; "replctl resume-io {node.settings.resource}" goes on alone.',
            )
            return
        await node.transition(
            lambda v, s: replace(s, disk=_D.OUTDATED) if s.disk > _D.OUTDATED else s,
            reason=f"{node.settings.peer} is Primary",
        )

    # ---- promotion ----

    async def before_promotion(self, *, force: bool) -> bool:
        """A lone node that is to be Primary; raises a refusal.  True: the peer counts as Outdated by force."""
        node = self._node
        if not self.is_on or node.is_connected or self.peer_is_fenced:
            return False
        if all(v.state.disk >= _D.CONSISTENT for v in node.volumes.values()):
            await self.outdate_peer()
        if node.is_connected or self.peer_is_fenced:
            return False
        if force:
            node.emit("fencing", "forced: the peer counts as Outdated, this may be a split brain", level="error")
            return True
        if any(v.state.disk < _D.CONSISTENT for v in node.volumes.values()):
            return False  # refused for its data
        name, peer = node.settings.resource, node.settings.peer
        what = "no fence-peer handler is configured" if self.last_status is None else self._last_text()
        raise StateRefused(
            f"{name}: cannot become Primary: {peer} is not connected and not outdated, and {what}",
            number=-7,
            advice=f'Connect to {peer}, or see that it is down and stays down: then "replctl primary --force {name}".',
        )

    def _last_text(self) -> str:
        status = self.last_status
        meaning = _MEANINGS.get(status if status is not None else -1, "which means nothing")
        return f"fence-peer ended with status {status}: {meaning}"

    # ---- both are good again ----

    def resync_done(self) -> None:
        """This node was the source of a resync that has ended."""
        node = self._node
        if all(v.is_in_sync for v in node.volumes.values()):
            node.handlers.notify("unfence-peer")
