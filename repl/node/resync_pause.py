# SPDX-License-Identifier: Apache-2.0
"""Who may resync: pauses by order, by the peer, and by ``resync-after``.

A volume is busy while it resyncs or has any pause reason; one that is configured ``resync-after`` it waits (flag
``aftr_isp``), and so on along the chain.  Volumes of this resource are looked at directly, those of other resources of
this host through the shell (``PublishResync``, ``WatchResync``).  Facts: DRBD's three pause flags, which each node
tells in its P_STATE.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from repl.drbd.states import ConnectionState, StateWord
from repl.errors import RequestRefused
from repl.node import actions as act
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node

_C = ConnectionState
_RESYNCING = (*(_C(n) for n in range(_C.STARTING_SYNC_S, _C.VERIFY_S)), _C.PAUSED_SYNC_S, _C.PAUSED_SYNC_T)


class PauseControl:
    """The pause flags of all volumes."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._others: dict[tuple[str, int], bool] = {}  # volumes of other resources: are they busy?
        self._published: dict[int, bool] = {}
        self._changing: set[int] = set()

    # ---- by order ----

    async def pause(self, volume: Volume) -> None:
        if volume.state.user_isp:
            raise RequestRefused(f"{self._name(volume)}: resync is paused already", number=134)
        await self._set_user(volume, True)

    async def resume(self, volume: Volume) -> None:
        state = volume.state
        if state.user_isp:
            await self._set_user(volume, False)
        elif state.aftr_isp:
            raise RequestRefused(
                f"{self._name(volume)}: resync waits for {_text(volume.settings.resync_after)} (resync-after)",
                number=156,
                advice="It goes on by itself when that one is done.",
            )
        elif state.peer_isp:
            raise RequestRefused(
                f"{self._name(volume)}: resync is paused by {self._node.settings.peer}",
                number=157,
                advice=f'"replctl resume-sync" on {self._node.settings.peer}.',
            )
        else:
            raise RequestRefused(f"{self._name(volume)}: resync is not paused", number=135)

    async def _set_user(self, volume: Volume, on: bool) -> None:
        await self._node.transition(
            lambda v, s: replace(s, user_isp=on),
            only=volume,
            reason="resync paused by order" if on else "resync resumed by order",
        )
        self._node.connection.send_state(volume)

    def _name(self, volume: Volume) -> str:
        return f"{self._node.settings.resource}/{volume.number}"

    # ---- resync-after ----

    def other_changed(self, resource: str, volume: int, busy: bool) -> None:
        """The shell has looked at a volume of another resource."""
        self._others[resource, volume] = busy
        self.look()

    def _must_wait(self, volume: Volume) -> bool:
        after = volume.settings.resync_after
        if after is None:
            return False
        if after[0] != self._node.settings.resource:
            return self._others.get(after, False)
        other = self._node.volumes.get(after[1])
        return other is not None and other is not volume and is_busy(other.state)

    def look(self) -> None:
        """After every change: set the flags that follow from it, tell the others on this host."""
        for volume in self._node.volumes.values():
            after = volume.settings.resync_after
            if after is not None and after[0] != self._node.settings.resource and after not in self._others:
                self._others[after] = False
                self._node.act(act.WatchResync(*after))
            if self._must_wait(volume) != volume.state.aftr_isp and volume.number not in self._changing:
                self._changing.add(volume.number)
                self._node.start(self._change(volume), "resync-after")
            busy = is_busy(volume.state)
            if busy != self._published.get(volume.number, False):
                self._published[volume.number] = busy
                self._node.act(act.PublishResync(volume.number, busy))

    async def _change(self, volume: Volume) -> None:
        """It may have to wait for a volume whose metadata does not answer: not again before it has been carried out."""
        after = _text(volume.settings.resync_after)
        try:
            await self._node.transition(
                lambda v, s: replace(s, aftr_isp=self._must_wait(volume)),
                only=volume,
                reason=f"resync-after {after}",
            )
        finally:
            self._changing.discard(volume.number)
        self._node.connection.send_state(volume)
        self.look()


def is_busy(state: StateWord) -> bool:
    """It resyncs, or would if it were allowed to."""
    return state.conn in _RESYNCING or state.resync_paused


def _text(after: tuple[str, int] | None) -> str:
    return f"{after[0]}/{after[1]}" if after else ""
