# SPDX-License-Identifier: Apache-2.0
"""features/locks: who gets a lock, who waits, who hears of it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from repl.files.events import Contended, Event
from repl.files.options import Options
from repl.files.translator import Context, Translator
from repl.files.translators.locks import Locks
from repl.files.values import ROOT, Caller, Fd, FopError, Lock, LockCommand, LockType
from tests.lib.files import make
from tests.lib.memory_brick import MemoryBrick

A, B, C = (Caller(client=name, lock_owner=b"1", pid=1) for name in "abc")
TRY, WAIT, GET = LockCommand.TRY, LockCommand.WAIT, LockCommand.GET
READ, WRITE, UNLOCK = LockType.READ, LockType.WRITE, LockType.UNLOCK
FD = Fd(bytes(15) + b"\7")


class Top(Translator):
    def __init__(self, child: Translator) -> None:
        super().__init__("top", Options((), {}, {}), [child], child.context)
        self.events: list[Event] = []

    def notify(self, event: Event, child: Translator | None) -> None:
        self.events.append(event)


def on_locks(work: Callable[[Locks, Top], Awaitable[None]], **options: str) -> None:
    async def main() -> None:
        context = Context()
        locks = make(Locks, "locks", [MemoryBrick("brick", context=context)], context, **options)
        await work(locks, Top(locks))

    asyncio.run(main())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def refused(work: Awaitable[object], number: int = errno.EAGAIN) -> None:
    with pytest.raises(FopError) as caught:
        await work
    assert caught.value.errno == number


def start(work: Any) -> asyncio.Future[Any]:
    return asyncio.ensure_future(work)


def test_internal_locks_conflict_within_a_domain_only() -> None:
    async def work(locks: Locks, _: Top) -> None:
        await locks.inodelk(A, "v", ROOT, TRY, Lock(WRITE, 0, 99))
        await refused(locks.inodelk(B, "v", ROOT, TRY, Lock(READ, 99, 200)))
        await locks.inodelk(B, "v", ROOT, TRY, Lock(WRITE, 100, 200))
        await locks.inodelk(B, "v:self-heal", ROOT, TRY, Lock(WRITE))
        await locks.inodelk(A, "v", ROOT, TRY, Lock(UNLOCK, 0, 99))
        await locks.inodelk(B, "v", ROOT, TRY, Lock(WRITE, 0, 99))
        await locks.inodelk(C, "r", ROOT, TRY, Lock(READ))
        await locks.inodelk(B, "r", ROOT, TRY, Lock(READ))

    on_locks(work)


def test_names_conflict_with_themselves_and_with_all_names() -> None:
    async def work(locks: Locks, _: Top) -> None:
        await locks.entrylk(A, "v", ROOT, b"x", TRY, WRITE)
        await locks.entrylk(B, "v", ROOT, b"y", TRY, WRITE)
        await refused(locks.entrylk(B, "v", ROOT, b"x", TRY, WRITE))
        await refused(locks.entrylk(C, "v", ROOT, None, TRY, WRITE))
        await locks.entrylk(A, "v", ROOT, b"x", TRY, UNLOCK)
        await locks.entrylk(B, "v", ROOT, b"y", TRY, UNLOCK)
        await locks.entrylk(C, "v", ROOT, None, TRY, WRITE)
        await refused(locks.entrylk(A, "v", ROOT, b"z", TRY, WRITE))

    on_locks(work)


def test_waiters_come_in_order_and_tries_do_not_overtake() -> None:
    async def work(locks: Locks, _: Top) -> None:
        order: list[str] = []

        async def wait(caller: Caller, lock: Lock) -> None:
            await locks.inodelk(caller, "v", ROOT, WAIT, lock)
            order.append(caller.client)

        await locks.inodelk(A, "v", ROOT, TRY, Lock(READ))
        writer = start(wait(B, Lock(WRITE)))
        await settle()
        reader = start(wait(C, Lock(READ)))  # could share with A, but B was first
        await settle()
        await refused(locks.inodelk(C, "v", ROOT, TRY, Lock(READ)))
        assert order == []
        await locks.inodelk(A, "v", ROOT, TRY, Lock(UNLOCK))
        await writer
        await settle()
        assert order == ["b"]
        await locks.inodelk(B, "v", ROOT, TRY, Lock(UNLOCK))
        await reader
        assert order == ["b", "c"]

    on_locks(work)


def test_end_of_a_client_frees_what_it_held_and_ends_its_waits() -> None:
    async def work(locks: Locks, _: Top) -> None:
        await locks.inodelk(A, "v", ROOT, TRY, Lock(WRITE))
        await locks.entrylk(A, "v", ROOT, None, TRY, WRITE)
        await locks.lk(A, FD, TRY, Lock(WRITE))
        doomed = start(locks.inodelk(B, "v", ROOT, WAIT, Lock(WRITE)))
        patient = start(locks.inodelk(C, "v", ROOT, WAIT, Lock(WRITE)))
        await settle()
        locks.client_gone("b")
        await refused(doomed, errno.ENOTCONN)
        locks.client_gone("a")
        await patient
        await locks.lk(B, FD, TRY, Lock(WRITE))
        await locks.entrylk(B, "v", ROOT, b"n", TRY, WRITE)
        locks.client_gone("c")
        locks.client_gone("b")
        assert locks.state() == {}

    on_locks(work)


def test_cancelled_waits_hold_nothing_and_let_others_pass() -> None:
    async def work(locks: Locks, _: Top) -> None:
        await locks.inodelk(A, "v", ROOT, TRY, Lock(READ))
        writer = start(locks.inodelk(B, "v", ROOT, WAIT, Lock(WRITE)))
        reader = start(locks.inodelk(C, "v", ROOT, WAIT, Lock(READ)))
        await settle()
        writer.cancel()
        await asyncio.wait([writer])
        await reader
        # Granted and cancelled in the same moment: given back.
        late = start(locks.inodelk(B, "v", ROOT, WAIT, Lock(WRITE)))
        await settle()
        await locks.inodelk(A, "v", ROOT, TRY, Lock(UNLOCK))
        await locks.inodelk(C, "v", ROOT, TRY, Lock(UNLOCK))
        late.cancel()
        await asyncio.wait([late])
        await locks.inodelk(A, "v", ROOT, TRY, Lock(WRITE))

    on_locks(work)


def test_holders_are_asked_to_let_go_but_not_too_often() -> None:
    async def work(locks: Locks, top: Top) -> None:
        await locks.inodelk(A, "v", ROOT, TRY, Lock(WRITE))
        await locks.entrylk(A, "v", ROOT, b"n", TRY, WRITE)
        await refused(locks.inodelk(B, "v", ROOT, TRY, Lock(WRITE)))
        waiting = start(locks.inodelk(C, "v", ROOT, WAIT, Lock(WRITE)))
        await refused(locks.entrylk(B, "v", ROOT, None, TRY, WRITE))
        await settle()
        assert top.events == [
            Contended("v", ROOT.gfid, client="a"),
            Contended("v", ROOT.gfid, name=b"n", is_entry=True, client="a"),
        ]
        waiting.cancel()

    on_locks(work)


def test_an_internal_lock_in_the_way_for_too_long_is_taken_away() -> None:
    async def work(locks: Locks, _: Top) -> None:
        await locks.inodelk(A, "v", ROOT, TRY, Lock(WRITE))
        await asyncio.wait_for(locks.inodelk(B, "v", ROOT, WAIT, Lock(WRITE)), 10)

    on_locks(work, revocation_secs="0.01")


def test_range_locks_split_melt_and_are_told() -> None:
    async def work(locks: Locks, _: Top) -> None:
        await locks.lk(A, FD, TRY, Lock(WRITE, 0, 99))
        await locks.lk(A, FD, TRY, Lock(READ, 40, 59))
        found = await locks.lk(B, FD, GET, Lock(WRITE, 50, 200))
        assert (found.type, found.first, found.last, found.pid) == (READ, 40, 59, 1)
        await locks.lk(B, FD, TRY, Lock(READ, 45, 50))
        await locks.lk(A, FD, TRY, Lock(UNLOCK, 30, 69))
        await refused(locks.lk(B, FD, TRY, Lock(WRITE, 29, 29)))
        await locks.lk(B, FD, TRY, Lock(WRITE, 30, 69))
        assert (await locks.lk(A, FD, GET, Lock(READ, 70, 99))).type == UNLOCK
        await locks.lk(C, FD, TRY, Lock(WRITE, is_flock=True))  # the two kinds do not see each other
        await refused(locks.lk(A, FD, TRY, Lock(READ, is_flock=True)))

    on_locks(work)


def test_owners_of_one_client_are_different_holders() -> None:
    async def work(locks: Locks, _: Top) -> None:
        await locks.lk(A, FD, TRY, Lock(WRITE))
        await refused(locks.lk(replace(A, lock_owner=b"2"), FD, TRY, Lock(WRITE)))
        waiting = start(locks.lk(B, FD, WAIT, Lock(WRITE)))
        await settle()
        await locks.lk(A, FD, TRY, Lock(READ))  # a downgrade lets readers in, not this writer
        await settle()
        assert not waiting.done()
        await locks.lk(A, FD, TRY, Lock(UNLOCK))
        await waiting

    on_locks(work)


def test_mandatory_locks_bind_writers_that_do_not_ask() -> None:
    async def work(locks: Locks, _: Top) -> None:
        await locks.lk(A, FD, TRY, Lock(READ, 0, 9))
        await refused(locks.writev(B, FD, b"x" * 5, offset=8))
        await refused(locks.truncate(B, FD, 5))
        await refused(locks.readv(B, FD, size=1, offset=20), errno.EBADF)  # passed on

    on_locks(work, mandatory_locking="forced")


def test_a_new_graph_takes_over_what_is_held_and_waited_for() -> None:
    async def work(locks: Locks, _: Top) -> None:
        await locks.inodelk(A, "v", ROOT, TRY, Lock(WRITE))
        waiting = start(locks.inodelk(B, "v", ROOT, WAIT, Lock(WRITE)))
        await settle()
        after = make(Locks, "locks", [locks.child], locks.context)
        after.take_over(locks)
        await refused(after.inodelk(C, "v", ROOT, TRY, Lock(WRITE)))
        await after.inodelk(A, "v", ROOT, TRY, Lock(UNLOCK))
        await waiting

    on_locks(work)
