# SPDX-License-Identifier: Apache-2.0
"""The resync decisions that two real drivers reached, reached by ours."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from repl.drbd.decision import Decision, DecisionKind, decide
from repl.drbd.packets import PROTOCOL_MAX
from repl.drbd.split_brain import AfterSplitBrain, Policies
from repl.drbd.states import DiskState
from repl.drbd.uuids import Feature, Side, Uuids, compare
from tests.wire.vector_files import HandshakeCase, handshake_cases

CASES = handshake_cases()

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
    if case.name == "sb100-always":
        return False, True
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


def policies_of(case: HandshakeCase, node: str) -> Policies:
    """``options A: x y, B: z`` or ``options both: x y, x y``."""
    found = Policies()
    for part in re.findall(r"(?:always-asbp|after-sb-0pri|discard-remote)[^,]*", case.options):
        name, _, value = part.partition(" ")
        if name == "always-asbp":
            found = replace(found, always_asbp=value == "yes")
        elif name == "after-sb-0pri" and (case.options.startswith("both") or node == "A"):
            found = replace(found, after_sb_0pri=next(p for p in AfterSplitBrain if p.option == value))
        elif name == "discard-remote" and node == "B":
            found = replace(found, after_sb_0pri=AfterSplitBrain.DISCARD_REMOTE)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_observed_handshake_decided_again_goes_the_same_way(case: HandshakeCase) -> None:
    a, b = sides(case)
    a_holds, b_holds = flags_of(case)
    decisions: list[Decision] = []
    for node, me, peer, holds, result in (("A", a, b, a_holds, case.result_a), ("B", b, a, b_holds, case.result_b)):
        policies = policies_of(case, node)
        decision = decide(
            me, peer, version=PROTOCOL_MAX, features=Feature.KERNEL, resolve_conflicts=holds, policies=policies
        )
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
    if case.name not in ("inconsist-wrongdir", "sb-localmis"):  # the latter is refused before
        assert mirrored[decisions[0].kind] is decisions[1].kind


def test_discard_my_data_after_rule_100_is_a_full_resync() -> None:
    case = next(case for case in CASES if case.name == "sb-100disc")
    a, b = sides(case)
    for me, peer in ((a, b), (b, a)):
        decision = decide(me, peer, version=PROTOCOL_MAX, features=Feature.KERNEL, resolve_conflicts=me is a)
        assert decision.full
