# SPDX-License-Identifier: Apache-2.0
"""What to do about a split brain: the after-sb policies, and rr-conflict.

Pure functions of what both nodes sent in the handshake, so that both come to mirrored results: +1 self is source,
-1 self is target, 0 no decision.  Numbers are those of P_PROTOCOL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType

from repl.drbd.uuids import PRIMARY_BIT, Side


class AfterSplitBrain(IntEnum):
    """after-sb-*pri policies."""

    DISCONNECT = 0
    DISCARD_YOUNGER_PRIMARY = 1
    DISCARD_OLDER_PRIMARY = 2
    DISCARD_ZERO_CHANGES = 3
    DISCARD_LEAST_CHANGES = 4
    DISCARD_LOCAL = 5
    DISCARD_REMOTE = 6
    CONSENSUS = 7
    DISCARD_SECONDARY = 8
    CALL_PRI_LOST = 9
    VIOLENTLY_AS_0P = 10

    def seen_by_peer(self) -> AfterSplitBrain:
        """The number that the peer must have configured to agree (local and remote are relative)."""
        if self == AfterSplitBrain.DISCARD_LOCAL:
            return AfterSplitBrain.DISCARD_REMOTE
        if self == AfterSplitBrain.DISCARD_REMOTE:
            return AfterSplitBrain.DISCARD_LOCAL
        return self

    @property
    def option(self) -> str:
        """As the configuration spells it."""
        if self == AfterSplitBrain.CALL_PRI_LOST:
            return "call-pri-lost-after-sb"
        return "violently-as0p" if self == AfterSplitBrain.VIOLENTLY_AS_0P else self.name.lower().replace("_", "-")


class ResyncConflict(Enum):
    """rr-conflict: a decided resync would overwrite a Primary's good data."""

    DISCONNECT = "disconnect"
    CALL_PRI_LOST = "call-pri-lost"
    VIOLENTLY = "violently"
    RETRY_CONNECT = "retry-connect"  # DRBD 9
    # DRBD 9: turns the direction round if a crashed Primary should overwrite the node that was promoted since.
    # DRBD 8.4's table never decides so (rule 41 makes the node that is Primary now the source): as disconnect.
    AUTO_DISCARD = "auto-discard"


@dataclass(frozen=True, slots=True)
class Policies:
    """What to do about a split brain, by number of Primaries, and about a resync over a Primary."""

    after_sb_0pri: AfterSplitBrain = AfterSplitBrain.DISCONNECT
    after_sb_1pri: AfterSplitBrain = AfterSplitBrain.DISCONNECT
    after_sb_2pri: AfterSplitBrain = AfterSplitBrain.DISCONNECT
    always_asbp: bool = False
    rr_conflict: ResyncConflict = ResyncConflict.DISCONNECT


Policy = Callable[[Side, Side, bool], int]


def _undecided(me: Side, peer: Side, resolve_conflicts: bool) -> int:
    return 0


def _zero_changes(me: Side, peer: Side, resolve_conflicts: bool) -> int:
    if me.dirty_bits == 0 and peer.dirty_bits == 0:
        return -1 if resolve_conflicts else 1
    if me.dirty_bits == 0 or peer.dirty_bits == 0:
        return -1 if me.dirty_bits == 0 else 1
    return 0


def _least_changes(me: Side, peer: Side, resolve_conflicts: bool) -> int:
    if me.dirty_bits != peer.dirty_bits:
        return -1 if me.dirty_bits < peer.dirty_bits else 1
    return -1 if resolve_conflicts else 1


def _older_primary_wins(me: Side, peer: Side) -> int:
    """Who was Primary before the nodes parted left his mark in the UUID that the bitmap is relative to."""
    return (me.uuids.bitmap & PRIMARY_BIT) - (peer.uuids.bitmap & PRIMARY_BIT)


def _younger(me: Side, peer: Side, resolve_conflicts: bool) -> int:
    return _older_primary_wins(me, peer) or _by_changes(me, peer, resolve_conflicts)


def _older(me: Side, peer: Side, resolve_conflicts: bool) -> int:
    return -_older_primary_wins(me, peer) or _by_changes(me, peer, resolve_conflicts)


def _by_changes(me: Side, peer: Side, resolve_conflicts: bool) -> int:
    return _zero_changes(me, peer, resolve_conflicts) or _least_changes(me, peer, resolve_conflicts)


_WITHOUT_PRIMARY: Mapping[AfterSplitBrain, Policy] = MappingProxyType(
    {
        AfterSplitBrain.DISCARD_YOUNGER_PRIMARY: _younger,
        AfterSplitBrain.DISCARD_OLDER_PRIMARY: _older,
        AfterSplitBrain.DISCARD_ZERO_CHANGES: _zero_changes,
        AfterSplitBrain.DISCARD_LEAST_CHANGES: _least_changes,
        AfterSplitBrain.DISCARD_LOCAL: lambda me, peer, resolve_conflicts: -1,
        AfterSplitBrain.DISCARD_REMOTE: lambda me, peer, resolve_conflicts: 1,
    }
)


@dataclass(frozen=True, slots=True)
class Solution:
    """``direction``: +1 source, -1 target, 0 unsolved.  ``policy``: what decided or failed to, as configured.

    ``loser_demotes``: only if the node that loses can be made Secondary first.
    """

    direction: int
    policy: str
    loser_demotes: bool = False


def solve(me: Side, peer: Side, *, resolve_conflicts: bool, policies: Policies) -> Solution:
    """Ask the policy for the number of Primaries that there are now."""
    primaries = int(me.primary) + int(peer.primary)
    without = _WITHOUT_PRIMARY.get(policies.after_sb_0pri, _undecided)(me, peer, resolve_conflicts)
    if primaries == 0:
        return Solution(without, f"after-sb-0pri {policies.after_sb_0pri.option}")
    chosen = policies.after_sb_1pri if primaries == 1 else policies.after_sb_2pri
    name = f"after-sb-{primaries}pri {chosen.option}"
    if chosen == AfterSplitBrain.VIOLENTLY_AS_0P:
        return Solution(without, name)
    if chosen == AfterSplitBrain.CALL_PRI_LOST:
        loser = me if without < 0 else peer
        return Solution(without, name, loser_demotes=without != 0 and loser.primary)
    if primaries == 1 and chosen == AfterSplitBrain.CONSENSUS:
        loser = me if without < 0 else peer
        return Solution(0 if loser.primary else without, name)
    if primaries == 1 and chosen == AfterSplitBrain.DISCARD_SECONDARY:
        return Solution(1 if me.primary else -1, name)
    return Solution(0, name)
