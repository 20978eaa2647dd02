# SPDX-License-Identifier: Apache-2.0
"""Generation UUIDs: rotations, version limits of the rules, results of both sides on reachable histories."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repl.drbd import uuids
from repl.drbd.decision import DecisionKind, decide
from repl.drbd.states import DiskState, Role
from repl.drbd.uuids import Feature, Side, Uuids, Verdict, compare
from repl.errors import InternalError

A, B, C, D, E = (0x1111111111111110 * factor for factor in range(1, 6))
STEP = uuids.UUID_SYNC_STEP


def verdict(
    me: Uuids, peer: Uuids, *, version: int = 101, features: Feature = Feature.KERNEL, ours: bool = False
) -> Verdict:
    return compare(
        Side(me), Side(peer), version=version, features=features, resolve_conflicts=False, peer_is_ours=ours
    )


def numbers(*values: int) -> uuids.RandomU64:
    return iter(values).__next__


def test_random_uuid_of_an_unlucky_source_skips_the_reserved_values() -> None:
    assert uuids.random_uuid(numbers(0, 1, 4, 5, 77)) == 76


def test_random_uuid_of_a_broken_source_is_an_internal_error() -> None:
    with pytest.raises(InternalError):
        uuids.random_uuid(lambda: 4)


def test_resync_of_the_documented_example_gives_the_documented_uuids() -> None:
    step = 1 << 48
    before = Uuids(0x61FF * step, 0, 0x8047 * step, 4)
    primary = uuids.new_current(before, numbers(0x93CC * step), primary=False)
    assert primary == Uuids(0x93CC * step, 0x61FF * step, 0x8047 * step, 4)
    source = uuids.start_source_sync_uuid(primary, numbers())
    assert source == Uuids(0x93CC * step, 0x6200 * step, 0x61FF * step, 0x8047 * step)
    target = uuids.target_accept_sync_uuid(before, source.bitmap)
    assert target == Uuids(0x6200 * step, 0, 0x8047 * step, 4)
    ended = Uuids(0x93CC * step, 0, 0x6200 * step, 0x61FF * step)
    assert uuids.finish_source(source) == ended
    assert uuids.finish_target(target, primary, primary=False) == ended


def test_sync_uuid_without_bitmap_uuid_follows_from_the_generation() -> None:
    first = uuids.first_sync_uuid(A)
    assert uuids.start_source_sync_uuid(Uuids(A | 1), numbers()) == Uuids(A | 1, first, 0, 0)
    assert first == uuids.base(first) != uuids.first_sync_uuid(B)


def test_resync_that_was_broken_off_is_resumed_by_its_bitmap() -> None:
    """By a target that has its sync UUID, one that never got it, one that has finished; also at the next try."""
    before = Uuids(A, 0, C, D)
    source = uuids.start_source_sync_uuid(before, numbers())
    alone = uuids.new_past_sync(source, numbers(E), primary=False)
    begun = uuids.target_accept_sync_uuid(before, source.bitmap)
    finished = uuids.finish_target(begun, before, primary=False)
    for target, rule in ((begun, 71), (finished, 70), (before, 70)):
        found = verdict(alone, target, ours=True)
        assert (found.rule, found.code) == (rule, 1)
        mirrored = verdict(target, alone, ours=True)
        assert (mirrored.code, mirrored.peer_corrected) == (-1, found.self_corrected)
        resumed = uuids.start_source_sync_uuid(found.self_corrected or alone, numbers())
        assert verdict(resumed, target).code == 1 and verdict(target, resumed).code == -1
        again = uuids.target_accept_sync_uuid(target, resumed.bitmap)
        assert uuids.finish_source(resumed) == uuids.finish_target(
            again, found.self_corrected or alone, primary=False
        )
    assert verdict(alone, begun).code == 2 and verdict(begun, alone).code == -2  # what DRBD's nodes make of it


@pytest.mark.parametrize("before", [Uuids(A, B, C, D), Uuids(A, uuids.first_sync_uuid(A), C, D)])
def test_target_that_has_what_the_sync_uuid_was_made_from_is_found_after_a_broken_off_resync(before: Uuids) -> None:
    """It missed the start, and nothing was marked that it had to ask for: the generation must not be forgotten."""
    source = uuids.start_source_sync_uuid(before, numbers())
    alone = uuids.new_past_sync(source, numbers(E), primary=False)
    for has in (before.bitmap, source.bitmap, A):
        code = 1 if has == A else 2
        assert verdict(alone, Uuids(has, 0, C, D), ours=True).code == code
        assert verdict(Uuids(has, 0, C, D), alone, ours=True).code == -code


def test_target_that_went_on_alone_after_a_broken_off_resync_is_a_split_brain() -> None:
    source = uuids.start_source_sync_uuid(Uuids(A, 0, C, D), numbers())
    alone = uuids.new_past_sync(source, numbers(E), primary=False)
    other = uuids.new_current(Uuids(A, 0, C, D), numbers(B), primary=False)
    for ours in (False, True):
        assert verdict(alone, other, ours=ours).rule == verdict(other, alone, ours=ours).rule == 90


def test_old_image_of_a_target_that_has_finished_gets_everything() -> None:
    """The same sync UUID in the history, but nobody has broken anything off."""
    source = uuids.start_source_sync_uuid(Uuids(A, 0, C, D), numbers())
    image = uuids.target_accept_sync_uuid(Uuids(A, 0, C, D), source.bitmap)
    alone = uuids.new_current(uuids.finish_source(source), numbers(E), primary=False)
    assert verdict(alone, image, ours=True).code == 2 and verdict(image, alone, ours=True).code == -2


def test_sync_uuid_after_just_created_follows_from_the_generation_and_keeps_the_old_one_in_history() -> None:
    assert uuids.start_source_sync_uuid(Uuids(A, 4), numbers()) == Uuids(A, uuids.first_sync_uuid(A), 4, 0)


def test_sync_uuid_that_would_be_a_reserved_value_is_random() -> None:
    last = (1 << 64) - (1 << 48)
    assert uuids.start_source_sync_uuid(Uuids(A, last), numbers(C)) == Uuids(A, C, last, 0)


@pytest.mark.parametrize("before", [Uuids(A), Uuids(A, B), Uuids(A | 1, B | 1, C, D)])
def test_begun_resync_is_recognized_until_its_end(before: Uuids) -> None:
    source = uuids.start_source_sync_uuid(before, numbers())
    assert uuids.sync_had_begun(source)
    assert not uuids.sync_had_begun(before) and not uuids.sync_had_begun(uuids.finish_source(source))
    beside = uuids.new_beside_sync(source, numbers(D + 2), primary=True)
    assert not uuids.sync_had_begun(beside)
    interrupted = uuids.target_accept_sync_uuid(Uuids(B), source.bitmap)
    finished = uuids.finish_target(interrupted, before, primary=False)
    assert verdict(beside, interrupted).rule == 70
    assert verdict(beside, finished).rule == 80
    alone = uuids.new_current(finished, numbers(E), primary=True)
    assert verdict(beside, alone).code in (uuids.CODE_SPLIT_BRAIN, -uuids.CODE_SPLIT_BRAIN)


def test_new_current_of_a_primary_sets_bit_0_and_keeps_the_old_mark_in_the_bitmap_slot() -> None:
    assert uuids.new_current(Uuids(A | 1), numbers(C), primary=True) == Uuids(C | 1, A | 1)


def test_role_change_touches_only_bit_0_of_the_current_uuid() -> None:
    assert uuids.set_primary(Uuids(A, B, C, D), True) == Uuids(A | 1, B, C, D)
    assert uuids.set_primary(Uuids(A | 1, B, C, D), False) == Uuids(A, B, C, D)


def test_comparison_with_primary_marks_everywhere_ignores_them() -> None:
    assert verdict(Uuids(A | 1, B), Uuids(C, A)).rule == 50
    assert verdict(Uuids(A, B | 1), Uuids(A | 1, B)).rule == 40


def test_missed_end_corrected_gives_what_the_peer_has() -> None:
    found = verdict(Uuids(A, B, C, D), Uuids(A, 0, B, C))
    assert (found.rule, found.code) == (34, 1)
    assert found.self_corrected == Uuids(A, 0, B, C)
    mirrored = verdict(Uuids(A, 0, B, C), Uuids(A, B, C, D))
    assert (mirrored.rule, mirrored.code) == (35, -1)
    assert mirrored.peer_corrected == Uuids(A, 0, B, C)


def test_lost_sync_uuid_is_undone_on_both_sides() -> None:
    found = verdict(Uuids(B, A + STEP, A, C), Uuids(A))
    assert (found.rule, found.code, found.self_corrected) == (71, 1, Uuids(B, A, C, C))
    mirrored = verdict(Uuids(A), Uuids(B, A + STEP, A, C))
    assert (mirrored.rule, mirrored.code, mirrored.peer_corrected) == (51, -1, Uuids(B, A, C, C))


@pytest.mark.parametrize(
    ("me", "peer", "rule"),
    [
        (Uuids(A, B), Uuids(A), 36),
        (Uuids(A), Uuids(A, B), 37),
        (Uuids(A, B, C, D), Uuids(A, 0, B, C), 34),
        (Uuids(A, 0, B, C), Uuids(A, B, C, D), 35),
        (Uuids(A, 0, C, 0), Uuids(B, D, A, C), 51),
        (Uuids(B, D, A, C), Uuids(A, 0, C, 0), 71),
    ],
)
def test_correction_rule_below_protocol_91_refuses_the_connection(me: Uuids, peer: Uuids, rule: int) -> None:
    found = verdict(me, peer, version=90)
    assert (found.rule, found.code) == (rule, uuids.CODE_NEEDS_VERSION)
    decision = decide(Side(me), Side(peer), version=90, features=Feature.NONE, resolve_conflicts=True)
    assert decision.kind is DecisionKind.REFUSE


def test_lost_sync_uuid_below_protocol_96_is_recognised_by_the_history() -> None:
    assert verdict(Uuids(A, 0, C, 0), Uuids(B, D, A, C), version=95).rule == 51
    assert verdict(Uuids(A, 0, C, 0), Uuids(B, D, A, C), version=96).rule == 60
    assert verdict(Uuids(B, D, A, C), Uuids(A, 0, C, 0), version=95).rule == 71
    assert verdict(Uuids(B, D, A, C), Uuids(A, 0, C, 0), version=96).rule == 80


@pytest.mark.parametrize(
    ("mine", "theirs", "code"),
    [
        (Role.PRIMARY, Role.SECONDARY, 1),
        (Role.SECONDARY, Role.PRIMARY, -1),
        (Role.PRIMARY, Role.PRIMARY, -100),
    ],
)
def test_crashed_primary_with_a_primary_now_is_decided_by_the_role(
    mine: Role, theirs: Role, code: int
) -> None:
    me, peer = Side(Uuids(A), role=mine), Side(Uuids(A), role=theirs, crashed_primary=True)
    found = compare(me, peer, version=101, features=Feature.KERNEL, resolve_conflicts=True)
    assert (found.rule, found.code) == (41, code)
    without = compare(me, peer, version=101, features=Feature.TRIM, resolve_conflicts=True)
    assert without.code == uuids.CODE_NEEDS_WSAME


@pytest.mark.parametrize("holds", [True, False])
def test_two_crashed_primaries_are_decided_by_the_resolve_conflicts_flag(holds: bool) -> None:
    crashed = Side(Uuids(A), crashed_primary=True)
    found = compare(crashed, crashed, version=101, features=Feature.KERNEL, resolve_conflicts=holds)
    assert (found.rule, found.code) == (40, -1 if holds else 1)


UP = DiskState.UP_TO_DATE


def masked(value: Uuids) -> tuple[int, ...]:
    slots = (value.current, value.bitmap, value.history1, value.history2)
    return tuple(uuids.base(slot) for slot in slots)


# --- histories of two nodes ----------------------------------------------------


@dataclass
class Node:
    uuids: Uuids
    primary: bool = False
    crashed: bool = False
    disk: DiskState = UP
    dirty_bits: int = 0

    def side(self, discard: bool = False) -> Side:
        role = Role.PRIMARY if self.primary else Role.SECONDARY
        return Side(self.uuids, role, self.disk, self.dirty_bits, self.crashed, discard)


class World:
    """Two nodes with good or lost luck; ``connected`` means a finished handshake without running resync."""

    def __init__(self, first: int) -> None:
        self.next = first
        self.nodes = [Node(Uuids(self.random(), 0, 0, 0)), Node(Uuids())]
        self.nodes[1].uuids = self.nodes[0].uuids
        self.connected = True
        self.codes: list[int] = []

    def random(self) -> int:
        self.next += 0x1234567890ABCDE
        return self.next

    def new_current(self, node: Node) -> None:
        if uuids.base(node.uuids.bitmap) == 0 and node.disk == UP:
            node.uuids = uuids.new_current(node.uuids, self.random, primary=node.primary)

    def promote(self, index: int) -> None:
        node = self.nodes[index]
        if node.disk != UP or (self.connected and self.nodes[1 - index].primary):
            return
        node.primary = True
        node.uuids = uuids.set_primary(node.uuids, True)
        if not self.connected:
            self.new_current(node)

    def demote(self, index: int) -> None:
        self.nodes[index].primary = False
        self.nodes[index].uuids = uuids.set_primary(self.nodes[index].uuids, False)

    def disconnect(self) -> None:
        if self.connected:
            self.connected = False
            for node in self.nodes:
                if node.primary:
                    self.new_current(node)

    def crash(self, index: int) -> None:
        node = self.nodes[index]
        node.crashed = node.crashed or node.primary
        node.primary = False
        self.disconnect()

    def connect(self, holds: int, luck: int, discard: int) -> None:
        if self.connected:
            return
        for index, node in enumerate(self.nodes):
            node.dirty_bits = luck >> index & 1
        sides = [node.side(discard == index) for index, node in enumerate(self.nodes)]
        verdicts = [
            compare(
                sides[i], sides[1 - i], version=101, features=Feature.KERNEL, resolve_conflicts=holds == i
            )
            for i in (0, 1)
        ]
        mirrored = verdicts[1].code if abs(verdicts[1].code) >= 100 else -verdicts[1].code
        assert verdicts[0].code == mirrored, (sides, verdicts)
        for mine, other in ((0, 1), (1, 0)):
            if verdicts[mine].self_corrected is not None:
                assert verdicts[other].peer_corrected == verdicts[mine].self_corrected
        decisions = [
            decide(
                sides[i],
                sides[1 - i],
                version=101,
                features=Feature.KERNEL,
                resolve_conflicts=holds == i,
            )
            for i in (0, 1)
        ]
        kinds = [decision.kind for decision in decisions]
        # Two slots of history do not reach past several resyncs that were discarded half-way: that is refused.
        if verdicts[0].code == uuids.CODE_UNRELATED:
            assert kinds == [DecisionKind.REFUSE, DecisionKind.REFUSE]
        if DecisionKind.REFUSE in kinds:
            return
        if kinds == [DecisionKind.NONE, DecisionKind.NONE]:
            self.finish()
            return
        assert set(kinds) == {DecisionKind.SOURCE, DecisionKind.TARGET}
        assert decisions[0].full == decisions[1].full
        s = kinds.index(DecisionKind.SOURCE)
        self.resync(s, verdicts[s].self_corrected, luck)

    def resync(self, s: int, corrected: Uuids | None, luck: int) -> None:
        source, target = self.nodes[s], self.nodes[1 - s]
        before = corrected or source.uuids
        if luck == 0:
            return  # broke before anything was recorded
        source.uuids = uuids.start_source_sync_uuid(before, self.random)
        if luck == 1:
            return  # P_SYNC_UUID lost
        target.uuids = uuids.target_accept_sync_uuid(target.uuids, source.uuids.bitmap)
        target.disk = DiskState.INCONSISTENT
        if luck == 2:
            return  # broke in the middle
        target.uuids = uuids.finish_target(target.uuids, before, primary=target.primary)
        target.disk = UP
        if luck == 3:
            return  # the source missed the end
        source.uuids = uuids.finish_source(source.uuids)
        assert masked(source.uuids) == masked(target.uuids)
        self.finish()

    def finish(self) -> None:
        self.connected = True
        for node in self.nodes:
            node.crashed = False
            node.disk = UP


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["promote", "demote", "disconnect", "crash", "connect", "connect", "connect"]),
        st.integers(0, 1),
        st.integers(0, 5),
        st.integers(-1, 1),
    ),
    max_size=25,
)


@settings(max_examples=400, deadline=None)
@given(actions=ACTIONS, first=st.integers(0, (1 << 64) - 1))
def test_verdicts_after_any_history_are_mirror_images(
    actions: list[tuple[str, int, int, int]], first: int
) -> None:
    world = World(first)
    for action, index, luck, discard in actions:
        if action == "promote":
            world.promote(index)
        elif action == "demote":
            world.demote(index)
        elif action == "disconnect":
            world.disconnect()
        elif action == "crash":
            world.crash(index)
        else:
            world.connect(index, luck, discard)


@settings(max_examples=400, deadline=None)
@given(
    rounds=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12), first=st.integers(0, (1 << 64) - 1)
)
def test_source_that_dies_any_number_of_times_is_never_taken_for_another_one(
    rounds: list[tuple[int, bool]], first: int
) -> None:
    world = World(first)
    source = world.nodes[0]
    world.promote(0)
    world.disconnect()
    for luck, goes_on_alone in rounds:
        world.demote(0)
        world.connect(holds=1, luck=luck, discard=-1)
        if goes_on_alone and uuids.sync_had_begun(source.uuids):
            source.uuids = uuids.new_beside_sync(source.uuids, world.random, primary=False)
    world.connect(holds=1, luck=4, discard=-1)
    assert world.connected and world.nodes[1].disk == UP


def test_full_resync_of_an_older_generation_keeps_that_one_in_the_history_of_both() -> None:
    for mine, corrected in (
        (Uuids(A, 0, B, C), Uuids(A, 0, B, C)),
        (Uuids(A, 0, C, B), Uuids(A, 0, B, C)),
        (Uuids(A, D, B, C), Uuids(A, 0, B, D)),
        (Uuids(A, D, C, B), Uuids(A, 0, B, D)),
        (Uuids(A, 0, B, 0), Uuids(A, 0, B, 0)),
    ):
        found, mirrored = verdict(mine, Uuids(B)), verdict(Uuids(B), mine)
        assert (found.rule, found.self_corrected) == (80, corrected)
        assert (mirrored.rule, mirrored.peer_corrected) == (60, corrected)


def test_winner_of_a_split_brain_finds_a_loser_that_never_got_a_sync_uuid_by_its_generation() -> None:
    winner, loser = Uuids(B, A, C, D), Uuids(E, A, C, D)
    assert abs(verdict(winner, loser).code) == uuids.CODE_SPLIT_BRAIN
    corrected = uuids.after_split_brain(winner, loser.current | 1)
    assert corrected == Uuids(B, E, A, C)
    for _ in range(4):
        started = uuids.start_source_sync_uuid(corrected, numbers())
        assert started == Uuids(B, E + STEP, E, A)
        found, mirrored = verdict(started, loser), verdict(loser, started)
        assert (found.rule, mirrored.rule) == (71, 51)
        assert (found.code, mirrored.code) == (uuids.CODE_BITMAP, -uuids.CODE_BITMAP)
        assert found.self_corrected == mirrored.peer_corrected is not None
        corrected = found.self_corrected
        assert (corrected.bitmap, corrected.history1) == (E, A)
    assert verdict(started, loser, version=95).rule == 80, "a full one: it knows no step"
    accepted = uuids.target_accept_sync_uuid(loser, started.bitmap)
    assert uuids.finish_target(accepted, corrected, primary=False) == uuids.finish_source(started)


def test_winner_keeps_what_it_has_of_the_loser_only_once() -> None:
    assert uuids.after_split_brain(Uuids(B, 0, E, C), E) == Uuids(B, E, C, 0)
    assert uuids.after_split_brain(Uuids(B), E) == Uuids(B, E)
