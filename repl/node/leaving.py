# SPDX-License-Identifier: Apache-2.0
"""Graceful disconnects: the node that stays must not have to fence the one that leaves.

With fencing a Primary refuses to lose its peer (code -7) unless that peer outdates itself: the leaving Secondary
repeats its request with its own disk Outdated; a leaving Primary asks for the peer's disk Outdated.  What was agreed
holds from the moment of the cut (:func:`left`); who outdates itself for a Primary does so before it agrees.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from repl.drbd.states import ConnectionState, DiskState, Role, StateChange, StateCode, StateWord
from repl.errors import PeerLost
from repl.node.refusals import refusal

if TYPE_CHECKING:
    from repl.node.connection import Connection

_C = ConnectionState
_D = DiskState


def left(c: Connection, state: StateWord) -> StateWord:
    """The state without the peer, as it was agreed when one of the two left."""
    if c.leaves_as is not None and state.disk > c.leaves_as:
        state = replace(state, disk=c.leaves_as)
    if c.peer_leaves_as is not None and state.pdsk > c.peer_leaves_as:
        state = replace(state, pdsk=c.peer_leaves_as)
    return state


async def ask_to_leave(c: Connection) -> None:
    """The peer agrees to be left (or is gone); raises its refusal."""
    node = c.node
    plain = StateChange.of(conn=_C.DISCONNECTING)
    try:
        if node.role == Role.PRIMARY and node.fencing.refuses_lone_primary():
            change = StateChange.of(conn=_C.DISCONNECTING, pdsk=_D.OUTDATED)
            code = await c.request_change(change, connection_wide=True)
            if code >= 1:
                c.peer_leaves_as = _D.OUTDATED
        else:
            code = await c.request_change(plain, connection_wide=True)
            can_outdate = all(v.state.disk >= _D.OUTDATED for v in node.volumes.values())
            if code < 1 and node.role != Role.PRIMARY and can_outdate:
                change = StateChange.of(conn=_C.DISCONNECTING, disk=_D.OUTDATED)
                code = await c.request_change(change, connection_wide=True)
                if code >= 1:
                    c.leaves_as = _D.OUTDATED
    except PeerLost:
        return
    if code < 1:
        raise refusal(node, "disconnect", code)


async def peer_asks_to_leave(c: Connection, change: StateChange) -> int:
    """The peer's request in our own view; 1 or the code of the refusal."""
    node = c.node
    is_primary = node.role == Role.PRIMARY
    if is_primary and any(v.state.disk != _D.UP_TO_DATE for v in node.volumes.values()):
        return StateCode.NO_UP_TO_DATE_DISK
    outdates_peer = change.changes("pdsk") and change.get("pdsk") <= _D.OUTDATED
    if is_primary and node.fencing.refuses_lone_primary() and not outdates_peer:
        return StateCode.PRIMARY_NOT_FENCED
    if change.changes("disk"):  # a Primary leaves, and goes on alone
        if is_primary or change.get("disk") != _D.OUTDATED:
            return StateCode.FAILED_BY_PEER
        if any(v.state.disk < _D.OUTDATED for v in node.volumes.values()):
            return StateCode.LOWER_THAN_OUTDATED
        c.leaves_as = _D.OUTDATED
        await node.transition(
            lambda v, s: left(c, replace(s, conn=_C.TEAR_DOWN)),
            cstate=_C.TEAR_DOWN,
            peer_role=Role.UNKNOWN,
            reason="outdated by the leaving peer",
        )
    if outdates_peer:
        c.peer_leaves_as = DiskState(change.get("pdsk"))
    return StateCode.SUCCESS
