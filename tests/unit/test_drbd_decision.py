# SPDX-License-Identifier: Apache-2.0
"""Who resyncs from whom, beyond the comparison: left-over bits, disk states, split-brain policies, rr-conflict.

The property at the end: whatever the two sides are, both nodes come to mirrored results.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repl.drbd.decision import Decision, DecisionKind, Refusal, decide
from repl.drbd.split_brain import AfterSplitBrain, Policies, ResyncConflict
from repl.drbd.states import DiskState, Role
from repl.drbd.uuids import PRIMARY_BIT, Feature, Side, Uuids

A, B, C, D, E = (0x1111111111111110 * factor for factor in range(1, 6))
Asb = AfterSplitBrain


def both(
    a: Side,
    b: Side,
    *,
    a_holds: bool = True,
    policies: Policies | None = None,
    peer_policies: Policies | None = None,
    ours: bool = False,
) -> tuple[Decision, Decision]:
    """What the two nodes decide; the second one's policies are those of the first as seen from there."""
    policies = policies or Policies()
    theirs = peer_policies or replace(policies, after_sb_0pri=policies.after_sb_0pri.seen_by_peer())
    version, features = 101, Feature.KERNEL

    def one(me: Side, peer: Side, holds: bool, own: Policies) -> Decision:
        return decide(
            me, peer, version=version, features=features, resolve_conflicts=holds, policies=own, peer_is_ours=ours
        )

    return one(a, b, a_holds, policies), one(b, a, not a_holds, theirs)


def kinds(found: tuple[Decision, Decision]) -> str:
    """One letter for each node: s(ource), t(arget), n(one), r(efuse)."""
    return "".join(decision.kind.value[0] for decision in found)


UP = DiskState.UP_TO_DATE


@pytest.mark.parametrize("dirty", [(1, 0), (0, 1), (7, 7)])
def test_left_over_dirty_bits_of_two_secondaries_are_copied_from_the_node_without_the_flag(
    dirty: tuple[int, int],
) -> None:
    a, b = (Side(Uuids(A), disk=UP, dirty_bits=count) for count in dirty)
    first, second = both(a, b, a_holds=True)
    assert (first.kind, second.kind) == (DecisionKind.TARGET, DecisionKind.SOURCE)
    assert first.left_over and second.left_over and not first.full


def test_left_over_dirty_bits_with_a_primary_are_copied_from_the_primary() -> None:
    a = Side(Uuids(A), role=Role.PRIMARY, disk=UP)
    b = Side(Uuids(A), disk=UP, dirty_bits=3)
    for a_holds in (True, False):
        first, second = both(a, b, a_holds=a_holds)
        assert (first.kind, second.kind) == (DecisionKind.SOURCE, DecisionKind.TARGET)


@pytest.mark.parametrize("role", [Role.SECONDARY, Role.PRIMARY])
def test_left_over_dirty_bits_with_an_outdated_node_are_copied_to_it(role: Role) -> None:
    a = Side(Uuids(A), role=role, disk=DiskState.OUTDATED, dirty_bits=3)
    b = Side(Uuids(A), disk=UP, dirty_bits=3)
    for a_holds in (True, False):
        assert both(a, b, a_holds=a_holds)[0].kind is DecisionKind.TARGET


def test_who_crashed_as_primary_is_ahead_although_its_disk_is_outdated_now() -> None:
    a = Side(Uuids(A), disk=DiskState.OUTDATED, crashed_primary=True)
    b = Side(Uuids(A), disk=UP)
    for a_holds in (True, False):
        assert kinds(both(a, b, a_holds=a_holds, ours=True)) == "st"


@pytest.mark.parametrize(
    ("role", "crashed"),
    [
        (Role.PRIMARY, (True, False)),
        (Role.PRIMARY, (False, True)),
        (Role.PRIMARY, (True, True)),
        (Role.SECONDARY, (False, True)),
        (Role.SECONDARY, (True, True)),
    ],
)
def test_an_outdated_disk_is_no_source_because_a_node_crashed_as_primary(
    role: Role, crashed: tuple[bool, bool]
) -> None:
    a = Side(Uuids(A), role=role, disk=DiskState.OUTDATED, crashed_primary=crashed[0])
    b = Side(Uuids(A), disk=UP, crashed_primary=crashed[1])
    for a_holds in (True, False):
        found = both(a, b, a_holds=a_holds, ours=True)
        assert kinds(found) == "ts" and found[0].rule in (40, 41)
    if role is Role.PRIMARY:
        assert kinds(both(a, b)) == "st"  # towards the kernel module, which goes by the role


@pytest.mark.parametrize("disk, kind", [(UP, DecisionKind.SOURCE), (DiskState.OUTDATED, DecisionKind.TARGET)])
def test_left_over_dirty_bits_are_copied_to_a_disk_that_is_attached_but_from_no_outdated_one(
    disk: DiskState, kind: DecisionKind
) -> None:
    in_use = Side(Uuids(A), disk=disk, dirty_bits=3)
    attached = Side(Uuids(A), disk=UP, dirty_bits=3, attaching=True)
    for a_holds in (True, False):
        assert both(in_use, attached, a_holds=a_holds)[0].kind is kind


def test_left_over_dirty_bits_of_two_primaries_are_refused() -> None:
    side = Side(Uuids(A), role=Role.PRIMARY, disk=UP, dirty_bits=1)
    assert {decision.kind for decision in both(side, side)} == {DecisionKind.REFUSE}


def test_just_created_nodes_with_all_bits_dirty_do_not_resync() -> None:
    side = Side(Uuids(), disk=DiskState.INCONSISTENT, dirty_bits=1014)
    decisions = both(side, side)
    assert {decision.kind for decision in decisions} == {DecisionKind.NONE}
    assert {decision.rule for decision in decisions} == {10}


def test_resync_over_a_primary_with_good_data_is_refused() -> None:
    a = Side(Uuids(A), role=Role.PRIMARY, disk=UP)
    b = Side(Uuids(B, A), disk=UP)
    assert both(a, b)[0].kind is DecisionKind.REFUSE


def test_resync_from_an_inconsistent_disk_is_refused() -> None:
    a = Side(Uuids(B, A), disk=DiskState.INCONSISTENT)
    b = Side(Uuids(A), disk=DiskState.INCONSISTENT)
    assert both(a, b)[0].kind is DecisionKind.REFUSE


def test_forced_primary_against_a_fresh_node_is_a_full_resync() -> None:
    a = Side(Uuids(A | 1, 4), role=Role.PRIMARY, disk=UP)
    b = Side(Uuids(4), disk=DiskState.INCONSISTENT)
    first, second = both(a, b)
    assert (first.kind, second.kind) == (DecisionKind.SOURCE, DecisionKind.TARGET)
    assert first.full and second.full


def test_relative_policies_are_swapped_for_the_peer() -> None:
    assert AfterSplitBrain.DISCARD_LOCAL.seen_by_peer() is AfterSplitBrain.DISCARD_REMOTE
    assert AfterSplitBrain.DISCARD_REMOTE.seen_by_peer() is AfterSplitBrain.DISCARD_LOCAL
    assert AfterSplitBrain.CONSENSUS.seen_by_peer() is AfterSplitBrain.CONSENSUS


# ---- split brain ----


def split(
    *,
    roles: str = "SS",
    dirty: tuple[int, int] = (5, 7),
    were_primary: str = "",
    discard: str = "",
    is_old: bool = False,
) -> tuple[Side, Side]:
    """Two sides of a split brain: rule 90, or rule 100 (``is_old``).

    ``were_primary``: who of "ab" was Primary before the nodes parted; ``discard``: who was told to discard.
    """
    sides = []
    for index, name in enumerate("ab"):
        bitmap = 0 if is_old else C | (PRIMARY_BIT if name in were_primary else 0)
        sides.append(
            Side(
                Uuids((A, B)[index], bitmap, D, E),
                role=Role.PRIMARY if roles[index] == "P" else Role.SECONDARY,
                disk=UP,
                dirty_bits=dirty[index],
                discard_my_data=name in discard,
            )
        )
    return sides[0], sides[1]


@pytest.mark.parametrize(
    ("policy", "made", "a_holds", "expected"),
    [
        (Asb.DISCONNECT, {}, True, "rr"),
        (Asb.DISCARD_LOCAL, {}, True, "ts"),
        (Asb.DISCARD_REMOTE, {}, True, "st"),
        (Asb.DISCARD_YOUNGER_PRIMARY, {"were_primary": "a"}, True, "st"),
        (Asb.DISCARD_YOUNGER_PRIMARY, {"were_primary": "b"}, True, "ts"),
        (Asb.DISCARD_OLDER_PRIMARY, {"were_primary": "a"}, True, "ts"),
        (Asb.DISCARD_OLDER_PRIMARY, {"were_primary": "b"}, True, "st"),
        # undecidable: who changed nothing, then who changed less
        (Asb.DISCARD_YOUNGER_PRIMARY, {"dirty": (0, 9)}, False, "ts"),
        (Asb.DISCARD_OLDER_PRIMARY, {"dirty": (9, 0)}, True, "st"),
        (Asb.DISCARD_OLDER_PRIMARY, {"were_primary": "ab", "dirty": (3, 9)}, True, "ts"),
        (Asb.DISCARD_YOUNGER_PRIMARY, {"dirty": (9, 3)}, True, "st"),
        (Asb.DISCARD_ZERO_CHANGES, {"dirty": (0, 9)}, False, "ts"),
        (Asb.DISCARD_ZERO_CHANGES, {"dirty": (9, 0)}, True, "st"),
        (Asb.DISCARD_ZERO_CHANGES, {"dirty": (0, 0)}, True, "ts"),
        (Asb.DISCARD_ZERO_CHANGES, {"dirty": (0, 0)}, False, "st"),
        (Asb.DISCARD_ZERO_CHANGES, {"dirty": (1, 9)}, True, "rr"),
        (Asb.DISCARD_LEAST_CHANGES, {"dirty": (1, 9)}, False, "ts"),
        (Asb.DISCARD_LEAST_CHANGES, {"dirty": (9, 1)}, True, "st"),
        (Asb.DISCARD_LEAST_CHANGES, {"dirty": (4, 4)}, True, "ts"),
        (Asb.DISCARD_LEAST_CHANGES, {"dirty": (4, 4)}, False, "st"),
    ],
)
def test_policy_without_primary(policy: Asb, made: dict[str, object], a_holds: bool, expected: str) -> None:
    found = both(*split(**made), a_holds=a_holds, policies=Policies(policy))  # type: ignore[arg-type]
    assert kinds(found) == expected
    assert all(decision.split_brain and not decision.full for decision in found)


@pytest.mark.parametrize(
    ("policy", "roles", "dirty", "expected"),
    [
        (Asb.DISCONNECT, "PS", (9, 1), "rr"),
        (Asb.CONSENSUS, "PS", (9, 1), "st"),
        (Asb.CONSENSUS, "PS", (1, 9), "rr"),
        (Asb.CONSENSUS, "SP", (1, 9), "ts"),
        (Asb.DISCARD_SECONDARY, "PS", (1, 9), "st"),
        (Asb.DISCARD_SECONDARY, "SP", (9, 1), "ts"),
        (Asb.VIOLENTLY_AS_0P, "PS", (9, 1), "st"),
        (Asb.VIOLENTLY_AS_0P, "PS", (1, 9), "ts"),
        (Asb.CALL_PRI_LOST, "PS", (9, 1), "st"),
        (Asb.CALL_PRI_LOST, "SP", (9, 1), "st"),
    ],
)
def test_policy_with_one_primary(policy: Asb, roles: str, dirty: tuple[int, int], expected: str) -> None:
    policies = Policies(Asb.DISCARD_LEAST_CHANGES, policy, rr_conflict=ResyncConflict.VIOLENTLY)
    found = both(*split(roles=roles, dirty=dirty), policies=policies)
    assert kinds(found) == expected


def test_primary_that_is_overwritten_violently_still_has_rr_conflict_to_pass() -> None:
    sides = split(roles="PS", dirty=(1, 9))
    found = both(*sides, policies=Policies(Asb.DISCARD_LEAST_CHANGES, Asb.VIOLENTLY_AS_0P))
    assert kinds(found) == "rs"
    assert found[0].refusal is Refusal.PRIMARY_TARGET and found[1].doubt


def test_primary_that_loses_with_call_pri_lost_after_sb_demotes_first() -> None:
    policies = Policies(Asb.DISCARD_LEAST_CHANGES, Asb.CALL_PRI_LOST)
    found = both(*split(roles="PS", dirty=(1, 9)), policies=policies)
    assert kinds(found) == "ts"
    assert found[0].demote_first and not found[1].demote_first and found[1].doubt


@pytest.mark.parametrize(
    ("policy", "expected"),
    [(Asb.DISCONNECT, "rr"), (Asb.VIOLENTLY_AS_0P, "ts"), (Asb.CALL_PRI_LOST, "ts"), (Asb.CONSENSUS, "rr")],
)
def test_policy_with_two_primaries(policy: Asb, expected: str) -> None:
    policies = Policies(Asb.DISCARD_LEAST_CHANGES, after_sb_2pri=policy, rr_conflict=ResyncConflict.VIOLENTLY)
    assert kinds(both(*split(roles="PP", dirty=(1, 9)), policies=policies)) == expected


def test_old_split_brain_is_solved_by_policy_only_with_always_asbp_and_then_in_full() -> None:
    sides = split(is_old=True)
    policies = Policies(Asb.DISCARD_LEAST_CHANGES)
    assert kinds(both(*sides, policies=policies)) == "rr"
    found = both(*sides, policies=replace(policies, always_asbp=True))
    assert kinds(found) == "ts" and all(decision.full for decision in found)


@pytest.mark.parametrize("is_old", [False, True])
def test_operators_discard_decides_what_no_policy_does(is_old: bool) -> None:
    found = both(*split(discard="b", is_old=is_old))
    assert kinds(found) == "st"
    assert all(decision.manually and decision.full == is_old for decision in found)


def test_policy_that_decides_comes_before_the_operators_discard() -> None:
    assert kinds(both(*split(discard="b"), policies=Policies(Asb.DISCARD_LOCAL))) == "ts"


def test_discard_on_both_nodes_solves_nothing() -> None:
    found = both(*split(discard="ab"))
    assert kinds(found) == "rr"
    assert {decision.refusal for decision in found} == {Refusal.SPLIT_BRAIN}


def test_discard_without_a_split_brain_changes_nothing() -> None:
    sides = (Side(Uuids(A), disk=UP, discard_my_data=True), Side(Uuids(A), disk=UP))
    assert kinds(both(*sides)) == "nn"


@pytest.mark.parametrize(
    ("conflict", "expected", "retry"),
    [
        (ResyncConflict.DISCONNECT, "rs", False),
        (ResyncConflict.CALL_PRI_LOST, "rs", False),
        (ResyncConflict.AUTO_DISCARD, "rs", False),
        (ResyncConflict.RETRY_CONNECT, "rs", True),
        (ResyncConflict.VIOLENTLY, "ts", False),
    ],
)
def test_resync_over_a_primary(conflict: ResyncConflict, expected: str, retry: bool) -> None:
    a = Side(Uuids(A), role=Role.PRIMARY, disk=UP)
    found = both(a, Side(Uuids(B, A), disk=UP), policies=Policies(rr_conflict=conflict))
    assert kinds(found) == expected
    assert found[0].retry is retry and found[1].doubt


# ---- both nodes, whatever they are ----

SLOT = st.sampled_from([0, 4, A, A | 1, B, B | 1, C, C | 1, D, A + (1 << 48), C + (1 << 48)])
SIDES = st.builds(
    Side,
    uuids=st.builds(Uuids, SLOT, SLOT, SLOT, SLOT),
    role=st.sampled_from([Role.PRIMARY, Role.SECONDARY]),
    disk=st.sampled_from([DiskState.INCONSISTENT, DiskState.OUTDATED, DiskState.CONSISTENT, UP]),
    dirty_bits=st.integers(0, 3),
    crashed_primary=st.booleans(),
    discard_my_data=st.booleans(),
)
POLICIES = st.builds(
    Policies,
    after_sb_0pri=st.sampled_from(list(Asb)[:7]),
    after_sb_1pri=st.sampled_from([Asb.DISCONNECT, *list(Asb)[7:]]),
    after_sb_2pri=st.sampled_from([Asb.DISCONNECT, Asb.CALL_PRI_LOST, Asb.VIOLENTLY_AS_0P]),
    always_asbp=st.booleans(),
    rr_conflict=st.sampled_from(list(ResyncConflict)),
)


@settings(max_examples=1000, deadline=None)
@given(a=SIDES, b=SIDES, policies=POLICIES, a_holds=st.booleans(), ours=st.booleans())
def test_two_nodes_decide_in_mirror_image(
    a: Side, b: Side, policies: Policies, a_holds: bool, ours: bool
) -> None:
    """Only the node that would lose a Primary's data may refuse alone, and then the other one expects it."""
    if is_contradictory(a.uuids, b.uuids):
        return
    found = both(a, b, a_holds=a_holds, policies=policies, ours=ours)
    first, second = found
    if kinds(found) in ("rs", "sr"):
        refuses, source = (first, second) if first.kind is DecisionKind.REFUSE else (second, first)
        assert refuses.refusal is Refusal.PRIMARY_TARGET and source.doubt
        return
    assert kinds(found) in ("st", "ts", "nn", "rr")
    assert (first.full, first.split_brain, first.manually, first.left_over, first.refusal) == (
        (second.full, second.split_brain, second.manually, second.left_over, second.refusal)
    )
    if kinds(found) in ("st", "ts"):
        source, target, loser = (first, second, b) if first.kind is DecisionKind.SOURCE else (second, first, a)
        assert bool(source.doubt) == (target.demote_first or (loser.primary and loser.disk >= DiskState.CONSISTENT))
        winner = a if loser is b else b
        assert winner.disk > DiskState.INCONSISTENT


def is_contradictory(a: Uuids, b: Uuids) -> bool:
    """Each of two different generations descends from the other one: no history leads there, and each node would
    follow the first rule that fits it."""
    ancestors = [{slot & ~1 for slot in (u.bitmap, u.history1, u.history2)} for u in (a, b)]
    mine, theirs = a.current & ~1, b.current & ~1
    return mine != theirs and mine in ancestors[1] and theirs in ancestors[0]
