# SPDX-License-Identifier: Apache-2.0
"""Suspended application I/O: why, and how it goes on.

Three independent reasons, DRBD's susp, susp_fen and susp_nod: the operator, the peer's fate that fence-peer has to find
out, no good data in reach.  While one holds nothing is completed and nothing is lost: a broken link's unconfirmed
requests are kept (``LinkKeep``), and a new generation that would be due is put off.  They end in one of two ways:

* the same data is reached again: what was kept is sent again, there is no new generation (:meth:`reached_peer`);
* the peer will not get it: the new generation is stable first, then everything kept is dirty, then I/O goes on
  (:meth:`give_up`).

``lock`` keeps these two apart: who holds it sees no handshake begin.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from repl.drbd.states import ConnectionState, DiskState, Role, StateWord
from repl.drbd.uuids import Uuids, new_current, new_past_sync
from repl.engine import commands as ec
from repl.errors import PeerLost, ReplError
from repl.node.flow import Mutex
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node

_C = ConnectionState
_D = DiskState
RESOURCE_AND_STONITH = "resource-and-stonith"


class CannotResend(ReplError):
    """What was kept cannot be sent to this peer: it becomes dirty, and the next connection resyncs it."""


class Suspension:
    """That of one resource."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.user = False
        self.fencing = False
        self.no_data = False
        self.kept = False  # the engine may hold requests of an earlier link
        self.lock = Mutex()
        self._was_unfenced = False
        self._lacked_data: set[int] = set()
        self._fails_without_data = False  # an operator resumed although no data is there

    # ---- looking ----

    @property
    def active(self) -> bool:
        return self.user or self.fencing or self.no_data

    @property
    def reasons(self) -> list[str]:
        """In DRBD 9's words."""
        named = (("user", self.user), ("no-data", self.no_data), ("fencing", self.fencing))
        return [name for name, holds in named if holds]

    @property
    def waits_for_data(self) -> bool:
        """Requests without good data wait instead of failing."""
        return self._node.settings.on_no_data == "suspend-io" and not self._fails_without_data

    @property
    def is_short_of_data(self) -> bool:
        """Suspended for want of good data, which is not there yet."""
        return self.no_data and bool(self._lacked_data)

    @property
    def ends_with_data(self) -> bool:
        """Connected already, and the good data has just come: :meth:`reached_peer` is due."""
        return self.no_data and not self._lacked_data

    def advice(self) -> str:
        """What ends it."""
        name, peer = self._node.settings.resource, self._node.settings.peer
        texts = []
        if self.fencing:
            texts.append(
                f"It goes on when {peer} is connected again or fence-peer has outdated it; if {peer} is certainly "
                f'down: "replctl resume-io {name}".'
            )
        if self.no_data:
            texts.append(f'It goes on when good data is reached; "replctl resume-io {name}" lets the requests fail.')
        if self.user:
            texts.append(f'An operator suspended it: "replctl resume-io {name}".')
        return " ".join(texts)

    # ---- within a transition ----

    def observe(self, after: Iterable[tuple[Volume, StateWord]]) -> None:
        """The states that a transition leads to: a reason may begin.  None ends here."""
        node, states = self._node, list(after)
        is_primary = node.role == Role.PRIMARY
        alone = node.cstate < _C.CONNECTED
        unfenced = (
            is_primary
            and alone
            and any(s.pdsk > _D.OUTDATED for _, s in states)
            and all(s.disk >= _D.CONSISTENT for _, s in states)  # else there is nothing to protect
        )
        if unfenced and not self._was_unfenced and node.fencing.is_on:
            self.fencing |= node.settings.net.fencing == RESOURCE_AND_STONITH
            node.start(node.fencing.peer_lost(), "fence-peer")
        self._was_unfenced = unfenced
        lacking = {
            v.number
            for v, s in states
            if is_primary and s.disk < _D.UP_TO_DATE and (alone or s.pdsk < _D.UP_TO_DATE)
        }
        if not lacking:
            self._fails_without_data = False
        for number in sorted(lacking - self._lacked_data):
            node.handlers.notify("pri-on-incon-degr", number)
        if lacking and not self._lacked_data and self.waits_for_data:
            self.no_data = True
        elif self.no_data and not lacking and alone:  # a disk was attached; a peer is waited for by reached_peer()
            node.start(self._data_is_back(), "data is back")
        self._lacked_data = lacking

    def due_generation(self, volume: Volume) -> Uuids:
        """The generation that a loss of the peer asks for, unless it has to wait for the end of a suspension."""
        if not volume.generation_due or not volume.attached:
            return volume.uuids
        ended = self._node.writes_ended and self._node.role != Role.PRIMARY
        if ended and not volume.generation_keeps_bitmap and not volume.is_ahead_of_generation:
            volume.generation_due = False  # demoted while the loss waited for its turn: the peer has every write
            return volume.uuids
        if self.active and not self._node.connection.gives_up:
            return volume.uuids
        return self._new_generation(volume)

    def _new_generation(self, volume: Volume) -> Uuids:
        if not volume.generation_due or not volume.attached:
            return volume.uuids
        volume.generation_due = False
        if volume.uuids.bitmap and not volume.generation_keeps_bitmap:
            return volume.uuids
        if volume.generation_keeps_bitmap:
            return new_past_sync(volume.uuids, self._node.random, primary=True)
        return new_current(volume.uuids, self._node.random, primary=True)

    # ---- the two ways out ----

    async def link_is_gone(self) -> None:
        """After the transition that a lost link has led to."""
        node = self._node
        if self.active and not node.connection.gives_up:
            self.kept = True
            await node.ask(ec.LinkKeep())
        else:
            self.kept = False
            await node.ask(ec.LinkResolve())

    def check_peer(self, volume: Volume, peer_disk: DiskState) -> None:
        """In the handshake: a peer that is only Consistent was restarted; it may lack what it once confirmed."""
        if self._node.connection.is_dry_run:
            return
        if self.kept and peer_disk == _D.CONSISTENT and volume.generation_due:
            raise CannotResend(
                f"{self._node.settings.peer} was restarted while I/O was suspended: the requests that it did not "
                "confirm go there by a resync."
            )

    def check_missed_end(self, volume: Volume) -> None:
        """In the handshake: the peer was the source of this Primary's data and has not heard that all of it came.

        differs: without the generation that the suspension has put off DRBD finds that the Primary should become target
        and parts for good; with it the peer follows (decision 0110).
        """
        if self.kept and volume.generation_due and not self._node.connection.is_dry_run:
            raise CannotResend(
                f"{self._node.settings.peer} missed the end of its resync to this Primary while I/O was suspended: a "
                "resync brings what differs."
            )

    async def reached_peer(self) -> None:
        """All volumes are connected and agreed: what was kept is sent again; then I/O goes on.

        A peer that has come back without the only good disk gets nothing: what it has confirmed may be lost with that
        disk's cache, so all of it is kept until the disk is there (:attr:`is_short_of_data`).
        """
        node = self._node
        if self.kept and self.is_short_of_data:
            return
        if self.kept:
            await self._generation_without_peer_disk()
            if not await node.ask_ok(ec.LinkResend()):
                if node.connection.is_lost:
                    raise PeerLost("The connection to the peer was lost.")
                raise CannotResend("What was kept while I/O was suspended cannot be sent again; a resync brings it.")
            self.kept = False
        for volume in node.volumes.values():
            volume.generation_due = False
        if self.fencing or (self.no_data and not self._lacked_data):
            self.fencing = False
            self.no_data = self.no_data and bool(self._lacked_data)
            await node.transition(lambda v, s: s, reason="the peer is back, I/O goes on")

    async def _give_up_connected(self) -> None:
        """To a peer without a disk: it takes nothing, so all of it becomes dirty (as at the end of a link)."""
        if self.kept:
            await self._generation_without_peer_disk()
            self.kept = not await self._node.ask_ok(ec.LinkResend())

    async def _generation_without_peer_disk(self) -> None:
        """The peer came back without its disk: what is written from now on is not there."""
        node = self._node
        alone = {v.number for v in node.volumes.values() if v.generation_due and v.state.pdsk < _D.INCONSISTENT}
        if not alone:
            return
        await node.transition(
            lambda v, s: s, uuids=lambda v: self._new_generation(v) if v.number in alone else v.uuids
        )
        for number in alone:
            node.connection.send_uuids(node.volumes[number])

    async def give_up(
        self,
        *,
        reason: str,
        user: bool = False,
        fencing: bool = False,
        no_data: bool = False,
        pdsk: DiskState | None = None,
    ) -> bool:
        """End these reasons without the peer; ``pdsk``: what its disks are from now on.

        False if there is a connection by now: nothing was done.  The caller holds ``lock``.
        """
        node = self._node
        if node.cstate >= _C.WF_REPORT_PARAMS:
            return False
        await node.transition(
            lambda v, s: s if pdsk is None else _with_peer_disk(s, pdsk),
            uuids=self._new_generation,
            reason=reason,
            goes_on=True,
        )
        if self.kept:
            await node.ask(ec.LinkResolve())
            self.kept = False
        self._clear(user=user, fencing=fencing, no_data=no_data)
        await node.transition(lambda v, s: s, goes_on=True)
        return True

    def _clear(self, *, user: bool, fencing: bool, no_data: bool) -> None:
        before = self.reasons
        self.user = self.user and not user
        self.fencing = self.fencing and not fencing
        self.no_data = self.no_data and not no_data
        if before and not self.active:
            self._node.emit("suspended", f"application I/O goes on (was suspended: {', '.join(before)})")

    async def _data_is_back(self) -> None:
        """A good disk was attached while there is no peer."""
        async with self.lock:
            if self.no_data and not self._lacked_data:
                await self.give_up(no_data=True, reason="good data is here again")

    # ---- the operator ----

    async def suspend(self) -> None:
        if not self.user:
            self.user = True
            await self._node.transition(lambda v, s: s, reason="suspend-io", goes_on=True)
            self._node.emit("suspended", "application I/O is suspended by order", level="warning")

    async def resume(self) -> None:
        """Ends every reason: without the peer this means a new generation first."""
        node = self._node
        while True:
            await node.watch(lambda: node.cstate != _C.WF_REPORT_PARAMS)
            async with self.lock:
                if node.cstate == _C.WF_REPORT_PARAMS:
                    continue
                self._fails_without_data |= self.no_data
                if node.cstate < _C.WF_REPORT_PARAMS:
                    if await self.give_up(user=True, fencing=True, no_data=True, reason="resume-io"):
                        return
                    continue
                await self._give_up_connected()
                self._clear(user=True, fencing=True, no_data=True)
                await node.transition(lambda v, s: s, reason="resume-io", goes_on=True)
                return

    async def before_demotion(self, *, force: bool) -> None:
        """A Secondary has no requests: what is kept becomes dirty in a generation of its own."""
        if self.kept or self.fencing or self.no_data or (force and self.user):
            async with self.lock:
                reason = "demoted while I/O is suspended"
                if not await self.give_up(user=force, fencing=True, no_data=True, reason=reason):
                    await self._give_up_connected()
                    self._clear(user=force, fencing=True, no_data=True)
                    await self._node.transition(lambda v, s: s)


def _with_peer_disk(state: StateWord, pdsk: DiskState) -> StateWord:
    return replace(state, pdsk=pdsk) if state.pdsk > pdsk else state
