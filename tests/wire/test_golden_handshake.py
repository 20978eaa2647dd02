# SPDX-License-Identifier: Apache-2.0
"""The resync decisions that two real drivers reached, reached by ours."""

from __future__ import annotations

import pytest

from repl.drbd.packets import PROTOCOL_MAX
from repl.drbd.states import DiskState
from repl.drbd.uuids import Decision, DecisionKind, Feature, Side, Uuids, compare, decide
from tests.wire.vector_files import HandshakeCase, handshake_cases

CASES = handshake_cases()
# Solved by policies that are not implemented, or refused before any decision.
OTHER_POLICIES = {"sb100-always", "sb-younger", "sb-older", "sb-local", "sb-localmis"}


def side(text: str, *, discard: bool) -> Side:
    parts = text.split(":")
    uuids = Uuids(*(int(part, 16) for part in parts[:4]))
    consistent, up_to_date, primary, _, _, _, crashed = (part == "1" for part in parts[4:])
    disk = DiskState.INCONSISTENT
    if consistent:
        disk = DiskState.UP_TO_DATE if up_to_date else DiskState.OUTDATED
    return Side(uuids, disk=disk, crashed_primary=crashed or primary, discard_my_data=discard)


def sides(case: HandshakeCase) -> tuple[Side, Side]:
    discard = "discard-my-data" in case.options
    a_discards = discard and case.options.startswith(("A", "both"))
    b_discards = discard and case.options.startswith(("B", "both"))
    return side(case.side_a, discard=a_discards), side(case.side_b, discard=b_discards)


def flags_of(case: HandshakeCase) -> tuple[bool, bool]:
    """Who holds resolve-conflicts; where it matters the loser of the observation had it."""
    if case.name == "r40both":
        assert case.result_a is not None
        a_holds = case.result_a[0] < 0
        return a_holds, not a_holds
    return True, False


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_observed_handshake_compared_again_gives_rule_and_code_on_both_nodes(case: HandshakeCase) -> None:
    a, b = sides(case)
    a_holds, b_holds = flags_of(case)
    for me, peer, holds, result in ((a, b, a_holds, case.result_a), (b, a, b_holds, case.result_b)):
        verdict = compare(me, peer, version=PROTOCOL_MAX, features=Feature.KERNEL, resolve_conflicts=holds)
        if result is not None:
            assert (verdict.code, verdict.rule) == result[:2]


def expected_decision(text: str) -> tuple[DecisionKind, bool | None]:
    """What the driver's words say: kind, and full or not (None = not said)."""
    if "aborting" in text or "unresolved" in text:
        return DecisionKind.REFUSE, None
    if "No resync" in text:
        return DecisionKind.NONE, False
    full = None if "Sync from" in text or "Began" in text else "full resync" in text
    source = "SyncSource" in text or "Sync from this node" in text
    return (DecisionKind.SOURCE if source else DecisionKind.TARGET), full


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name not in OTHER_POLICIES], ids=lambda case: case.name
)
def test_observed_handshake_decided_again_goes_the_same_way(case: HandshakeCase) -> None:
    a, b = sides(case)
    a_holds, b_holds = flags_of(case)
    decisions: list[Decision] = []
    for me, peer, holds, result in ((a, b, a_holds, case.result_a), (b, a, b_holds, case.result_b)):
        decision = decide(me, peer, version=PROTOCOL_MAX, features=Feature.KERNEL, resolve_conflicts=holds)
        decisions.append(decision)
        if result is None:
            continue
        kind, full = expected_decision(result[2])
        assert decision.kind is kind
        if full is not None:
            assert decision.full == full
    mirrored = {
        DecisionKind.SOURCE: DecisionKind.TARGET,
        DecisionKind.TARGET: DecisionKind.SOURCE,
        DecisionKind.NONE: DecisionKind.NONE,
        DecisionKind.REFUSE: DecisionKind.REFUSE,
    }
    if "wrongdir" not in case.name:
        assert mirrored[decisions[0].kind] is decisions[1].kind


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in OTHER_POLICIES], ids=lambda case: case.name
)
def test_split_brain_with_the_only_policy_we_have_is_refused(case: HandshakeCase) -> None:
    a, b = sides(case)
    decision = decide(a, b, version=PROTOCOL_MAX, features=Feature.KERNEL, resolve_conflicts=True)
    assert decision.kind is DecisionKind.REFUSE
    assert decision.split_brain


def test_discard_my_data_after_rule_100_is_a_full_resync() -> None:
    case = next(case for case in CASES if case.name == "sb-100disc")
    a, b = sides(case)
    for me, peer in ((a, b), (b, a)):
        decision = decide(me, peer, version=PROTOCOL_MAX, features=Feature.KERNEL, resolve_conflicts=me is a)
        assert decision.full
