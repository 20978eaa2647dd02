# SPDX-License-Identifier: Apache-2.0
"""A disk is attached while the nodes are connected: which P_STATE of the peer is its answer?

What the peer sent before it heard of the disk may still be on its way, over a slow link for seconds.  Taken for the
answer it compares the disk with what the peer was: equal, and UpToDate, although the peer has gone on (decision 0105).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repl.drbd.states import ConnectionState, DiskState, StateWord

if TYPE_CHECKING:
    from repl.node.connection import Connection
    from repl.node.volume import Volume

_C = ConnectionState
_D = DiskState
SERIALS = 15  # 4 bits in the unused part of P_STATE, 0: none


class AttachSerials:
    """Of one volume: our attaches are counted, and the peer, if it is ours, says which one it knows of."""

    def __init__(self) -> None:
        self._own = 0
        self._peers = 0  # that of the peer's disk that was Negotiating last
        self._generation_came = False  # since the last attach, and no P_STATE since then

    def attached(self) -> None:
        """Another disk of ours."""
        self._own = self._own % SERIALS + 1
        self._generation_came = False

    def generation_came(self) -> None:
        """P_UUIDS of the peer."""
        self._generation_came = True

    def take_generation(self) -> bool:
        """For a P_STATE: did P_UUIDS come before it?"""
        came, self._generation_came = self._generation_came, False
        return came

    def new_connection(self) -> None:
        """What the peer has said does not count any more."""
        self._peers = 0

    def heard(self, theirs: StateWord) -> None:
        """A P_STATE came."""
        if theirs.disk == _D.NEGOTIATING:
            self._peers = theirs.pad & SERIALS

    def pad(self, state: StateWord) -> int:
        """For the unused bits of a P_STATE of ours."""
        return (self._own if state.disk == _D.NEGOTIATING else 0) | self._peers << 4

    def knows_ours(self, theirs: StateWord) -> bool:
        return theirs.pad >> 4 & SERIALS == self._own


def answers(c: Connection, volume: Volume, theirs: StateWord) -> bool:
    """Our disk is Negotiating: was this sent by a peer that has seen that?"""
    if theirs.disk == _D.NEGOTIATING:  # its own disk comes just now: the P_UUIDS before it are those of that disk
        return True
    if c.peer_is_ours:
        return volume.attach_serials.knows_ours(theirs)
    # The kernel module says what it takes our disk for, unless it refuses it; it leaves Ahead when our disk goes.  It
    # said the same before it heard of that, but it answers an attach with its P_UUIDS and the P_STATE behind them.
    compared = volume.attach_serials.take_generation() or theirs.disk < _D.INCONSISTENT
    return compared and theirs.pdsk >= _D.NEGOTIATING and theirs.conn != _C.AHEAD
