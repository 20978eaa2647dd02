# SPDX-License-Identifier: Apache-2.0
"""Lock tables against models that hold one byte (or name) at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from repl.files.translators.locks.tables import NameLock, Owner, RangeTable, Table, Waiting
from repl.files.values import Lock, LockType

BYTES = 12
OWNERS: list[Owner] = [("a", b"1"), ("a", b"2"), ("b", b"1")]

ranges = st.tuples(st.integers(0, BYTES - 1), st.integers(0, BYTES - 1)).map(sorted)
range_steps = st.tuples(st.sampled_from(OWNERS), st.sampled_from(list(LockType)), ranges, st.booleans())


def model_of(table: RangeTable) -> dict[tuple[Owner, bool, int], LockType]:
    model = {}
    for held in table.held:
        for byte in range(held.lock.first, min(held.lock.last, BYTES) + 1):
            key = (held.owner, held.lock.is_flock, byte)
            assert key not in model, "one owner holds a byte twice"
            model[key] = held.lock.type
    return model


@given(st.lists(range_steps, max_size=40))
def test_range_locks_are_what_a_table_of_bytes_says(steps: list[tuple[Owner, LockType, list[int], bool]]) -> None:
    table = RangeTable()
    model: dict[tuple[Owner, bool, int], LockType] = {}
    for owner, kind, (first, last), is_flock in steps:
        lock = Lock(kind, first, last, is_flock)
        places = range(first, last + 1)
        if kind == LockType.UNLOCK:
            table.release(owner, lock, 0)
            for byte in places:
                model.pop((owner, is_flock, byte), None)
        else:
            blocked = any(
                o != owner and f == is_flock and b in places and LockType.WRITE in (kind, t)
                for (o, f, b), t in model.items()
            )
            assert table.take(owner, lock, 0) == (not blocked)
            if not blocked:
                model.update({(owner, is_flock, byte): kind for byte in places})
        assert model_of(table) == model
        for held in table.held:  # as few pieces as possible
            assert not any(
                other is not held
                and other.owner == held.owner
                and other.lock.type == held.lock.type
                and other.lock.is_flock == held.lock.is_flock
                and other.lock.first == held.lock.last + 1
                for other in table.held
            )


names = st.sampled_from([None, b"x", b"y"])
queue_steps = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from(OWNERS), st.sampled_from([LockType.READ, LockType.WRITE]), names),
    st.tuples(st.just("release"), st.sampled_from(OWNERS), st.just(LockType.UNLOCK), names),
    st.tuples(st.just("give up"), st.sampled_from(OWNERS), st.just(LockType.UNLOCK), names),
    st.tuples(st.just("gone"), st.sampled_from(OWNERS), st.just(LockType.UNLOCK), names),
)


def clash(one: NameLock, other: NameLock) -> bool:
    return one.overlaps(other) and LockType.WRITE in (one.type, other.type)


@given(st.lists(queue_steps, max_size=40))
def test_queue_never_lets_two_in_never_forgets_anyone_and_keeps_order(
    steps: list[tuple[str, Owner, LockType, bytes | None]],
) -> None:
    table: Table[NameLock] = Table()
    outcome: dict[int, str] = {}
    for number, (what, owner, kind, name) in enumerate(steps):
        lock = NameLock(kind, name)
        if what == "wait":
            if not table.take(owner, lock, 0):
                table.wait(
                    Waiting(
                        owner,
                        lock,
                        lambda number=number: outcome.__setitem__(number, outcome.get(number, "") + "granted"),
                        lambda number=number: outcome.__setitem__(number, outcome.get(number, "") + "lost"),
                    )
                )
        elif what == "release":
            table.release(owner, lock, 0)
        elif what == "give up" and table.waiting:
            table.give_up(table.waiting[0], 0)
        elif what == "gone":
            table.drop(owner[0], 0)
            assert owner[0] not in table.clients()
        for index, held in enumerate(table.held):
            assert not any(o.owner != held.owner and clash(o.lock, held.lock) for o in table.held[:index])
        # Whoever waits has a reason: a holder, or an earlier waiter with the right of way.
        for index, waiting in enumerate(table.waiting):
            in_way = [*table.blockers(waiting.owner, waiting.lock)]
            ahead = [w for w in table.waiting[:index] if w.owner != waiting.owner and clash(w.lock, waiting.lock)]
            assert in_way or ahead
        assert set(outcome.values()) <= {"granted", "lost"}, "everybody hears once"
