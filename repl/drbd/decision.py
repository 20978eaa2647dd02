# SPDX-License-Identifier: Apache-2.0
"""Who resyncs from whom: what follows from the comparison of the generations, the disks' states and the policies.

Pure: both nodes run it on the same exchanged values and come to mirrored results.  Facts: docs/protocol.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from repl.drbd.split_brain import Policies, ResyncConflict, solve
from repl.drbd.states import DiskState
from repl.drbd.uuids import (
    CODE_FULL,
    CODE_NEEDS_VERSION,
    CODE_NEEDS_WSAME,
    CODE_NONE,
    CODE_SPLIT_BRAIN,
    CODE_UNRELATED,
    Feature,
    Side,
    Verdict,
    compare,
)


class DecisionKind(Enum):
    """What this node does now."""

    NONE = "none"
    SOURCE = "source"
    TARGET = "target"
    REFUSE = "refuse"


class Refusal(Enum):
    """Why a connection is refused; stable, for programs."""

    UNRELATED = "unrelated-data"
    OLD_PEER = "peer-too-old"
    SPLIT_BRAIN = "split-brain"
    LEFT_OVER = "left-over-differences"
    NO_GOOD_SOURCE = "no-good-source"
    PRIMARY_TARGET = "primary-would-lose"


@dataclass(frozen=True, slots=True)
class Decision:
    """Result of the handshake of one volume.

    ``full``: set all bits of the own bitmap first.  ``reason``: one sentence for the log.
    ``split_brain``: one was detected (call handlers), solved or not; ``manually``: an operator's --discard-my-data.
    ``left_over``: equal generations, but dirty bits.  A DRBD peer does not resync them by itself.
    ``demote_first``: self is Primary and loses; only if it can be made Secondary (else the result is REFUSE).
    ``doubt``: the peer may refuse to be the target; why (its policies are not exchanged).
    ``peer_demotes``: the peer is Primary, loses, and becomes Secondary (or gives up).
    ``retry``: a refusal that may be over the next time.
    """

    kind: DecisionKind
    reason: str
    rule: int
    verdict: Verdict
    full: bool = False
    split_brain: bool = False
    manually: bool = False
    left_over: bool = False
    demote_first: bool = False
    doubt: str = ""
    peer_demotes: bool = False
    refusal: Refusal | None = None
    retry: bool = False

    def would_become(self) -> str:
        """In DRBD's words, for a dry run."""
        if self.kind is DecisionKind.REFUSE:
            return "would be refused"
        if self.kind is DecisionKind.NONE:
            return "no resync, would become Connected immediately"
        role = "SyncSource" if self.kind is DecisionKind.SOURCE else "SyncTarget"
        return f"would become {role}, doing a {'full' if self.full else 'bit-map based'} resync"


def decide(
    me: Side,
    peer: Side,
    *,
    version: int,
    features: Feature,
    resolve_conflicts: bool,
    policies: Policies | None = None,
    peer_is_ours: bool = False,
) -> Decision:
    """The whole decision of one node about one volume.  A peer that is not ours decides as the driver does."""
    policies = policies or Policies()
    verdict = compare(
        me,
        peer,
        version=version,
        features=features,
        resolve_conflicts=resolve_conflicts,
        peer_is_ours=peer_is_ours,
    )
    early = _refused_at_once(verdict)
    if early is not None:
        return early
    if verdict.code != CODE_NONE and abs(verdict.code) < CODE_SPLIT_BRAIN:
        kind = DecisionKind.SOURCE if verdict.code > 0 else DecisionKind.TARGET
    else:
        kind = DecisionKind.NONE
    found = Decision(kind, verdict.text, verdict.rule, verdict, full=abs(verdict.code) == CODE_FULL)
    turned = _by_disk_states(me, peer, found)
    if turned is not None:
        found = turned
    elif peer_is_ours and kind is not DecisionKind.NONE and _goes_by_role_alone(me, peer, verdict):
        found = _outdated_yields(me, peer, found)
    elif abs(verdict.code) == CODE_SPLIT_BRAIN:
        found = _split_brain(me, peer, found, resolve_conflicts=resolve_conflicts, policies=policies)
    elif verdict.code == CODE_NONE and verdict.rule != 10 and (me.dirty_bits or peer.dirty_bits):
        found = _left_over(me, peer, found, resolve_conflicts=resolve_conflicts)
    return _checked(me, peer, found, policies)


def _refused(found: Decision, refusal: Refusal, reason: str, *, retry: bool = False) -> Decision:
    return replace(found, kind=DecisionKind.REFUSE, refusal=refusal, reason=reason, retry=retry, demote_first=False)


def _refused_at_once(verdict: Verdict) -> Decision | None:
    found = Decision(DecisionKind.REFUSE, verdict.text, verdict.rule, verdict)
    if verdict.code == CODE_UNRELATED:
        return replace(found, refusal=Refusal.UNRELATED, reason="Unrelated data, aborting! " + verdict.text)
    if verdict.code in (CODE_NEEDS_VERSION, CODE_NEEDS_WSAME):
        return replace(found, refusal=Refusal.OLD_PEER)
    return None


def _by_disk_states(me: Side, peer: Side, found: Decision) -> Decision | None:
    """Exactly one disk is Inconsistent and the other one better: that settles the direction, a split brain as well."""
    mine, theirs = me.disk == DiskState.INCONSISTENT, peer.disk == DiskState.INCONSISTENT
    whole = found.verdict.code == -CODE_SPLIT_BRAIN or abs(found.verdict.code) == CODE_FULL
    if mine and peer.disk > DiskState.INCONSISTENT:
        reason = "This node is Inconsistent, the peer is better."
        return replace(found, kind=DecisionKind.TARGET, reason=reason, full=whole)
    if theirs and me.disk > DiskState.INCONSISTENT:
        reason = "The peer is Inconsistent, this node is better."
        return replace(found, kind=DecisionKind.SOURCE, reason=reason, full=whole)
    return None


def _split_brain(
    me: Side, peer: Side, found: Decision, *, resolve_conflicts: bool, policies: Policies
) -> Decision:
    primaries = int(me.primary) + int(peer.primary)
    found = replace(found, split_brain=True)
    detected = f"Split-Brain detected, {primaries} primaries,"
    direction, how, manually, demotes = 0, "", False, False
    if found.verdict.code == CODE_SPLIT_BRAIN or policies.always_asbp:
        solution = solve(me, peer, resolve_conflicts=resolve_conflicts, policies=policies)
        how, direction = f"automatically solved ({solution.policy})", solution.direction
        demotes = solution.loser_demotes
    if not direction and me.discard_my_data != peer.discard_my_data:
        direction, how, manually = (-1 if me.discard_my_data else 1), "manually solved", True
    if not direction:
        both = " Both nodes were told to discard their data." if me.discard_my_data and peer.discard_my_data else ""
        return _refused(
            found,
            Refusal.SPLIT_BRAIN,
            f"Split-Brain detected but unresolved, dropping connection! {found.verdict.text}{both}",
        )
    # differs: with discard-my-data the driver copies only the blocks of the bitmaps even if they have no common base;
    # nothing then says that the other blocks are equal (decision 0009).
    return replace(
        found,
        kind=DecisionKind.SOURCE if direction > 0 else DecisionKind.TARGET,
        full=found.verdict.code == -CODE_SPLIT_BRAIN,
        manually=manually,
        demote_first=demotes and direction < 0,
        peer_demotes=demotes and direction > 0,
        doubt="the peer is Primary and has to be made Secondary first" if demotes and direction > 0 else "",
        reason=f"{detected} {how}. Sync from {'this' if direction > 0 else 'peer'} node.",
    )


def _goes_by_role_alone(me: Side, peer: Side, verdict: Verdict) -> bool:
    """Who alone crashed as Primary had a good disk then, and is ahead even if that is Outdated since (rule 40)."""
    return verdict.rule == 41 or (verdict.rule == 40 and me.crashed_primary and peer.crashed_primary)


def _outdated_yields(me: Side, peer: Side, found: Decision) -> Decision:
    """differs: a node that crashed as Primary does not make an Outdated disk the better one (decision 0016).

    A Primary that works through its peer's disk while its own is Outdated, loses the link and meets the peer again.
    """
    mine, theirs = me.disk == DiskState.OUTDATED, peer.disk == DiskState.OUTDATED
    if mine == theirs:
        return found
    whose, kind = ("this node", DecisionKind.TARGET) if mine else ("the peer", DecisionKind.SOURCE)
    return replace(found, kind=kind, reason=f"Equal generations after a crash, but the disk of {whose} is Outdated.")


def _left_over(me: Side, peer: Side, found: Decision, *, resolve_conflicts: bool) -> Decision:
    """differs: a "no resync" with dirty bits left is a resync, never just a log line (decision 0008)."""
    reason = f"Equal generations, but {me.dirty_bits} and {peer.dirty_bits} blocks are marked as different."
    found = replace(found, left_over=True)
    if me.primary and peer.primary:
        return _refused(found, Refusal.LEFT_OVER, reason + " Both nodes are Primary.")
    mine_outdated, peer_outdated = me.disk == DiskState.OUTDATED, peer.disk == DiskState.OUTDATED
    if mine_outdated != peer_outdated:
        is_source = peer_outdated       # even if it is in use, or Primary: it worked through the other one's disk
    elif me.attaching != peer.attaching:
        is_source = peer.attaching      # the disk in use has what was written last
    elif me.primary != peer.primary:
        is_source = me.primary
    else:
        is_source = not resolve_conflicts
    return replace(found, kind=DecisionKind.SOURCE if is_source else DecisionKind.TARGET, reason=reason)


def _checked(me: Side, peer: Side, found: Decision, policies: Policies) -> Decision:
    """The direction is known: may it be?"""
    if found.kind not in (DecisionKind.SOURCE, DecisionKind.TARGET):
        return found
    source, target = (me, peer) if found.kind is DecisionKind.SOURCE else (peer, me)
    if source.disk <= DiskState.INCONSISTENT:
        who = "This node" if source is me else "The peer"
        return _refused(found, Refusal.NO_GOOD_SOURCE, f"{who} should be resync source but has no good data.")
    nothing_to_lose = not target.primary or target.disk < DiskState.CONSISTENT or target.attaching
    if nothing_to_lose or found.demote_first or found.doubt:
        return found
    if target is peer:
        return replace(found, doubt="the peer is Primary and would lose its data (rr-conflict)")
    if policies.rr_conflict is ResyncConflict.VIOLENTLY:
        return found
    reason = f"This node is Primary but should become resync target: {found.reason}"
    return _refused(
        found, Refusal.PRIMARY_TARGET, reason, retry=policies.rr_conflict is ResyncConflict.RETRY_CONNECT
    )
