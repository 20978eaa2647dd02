# SPDX-License-Identifier: Apache-2.0
"""performance/io-threads: bounds, order and fairness of what is passed on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from repl.files.translator import Step
from repl.files.translators.io_threads import IoThreads
from repl.files.values import ROOT, Caller, FopError, Lock, LockCommand, LockType
from tests.lib.files import ME, make
from tests.lib.memory_brick import MemoryBrick
from tests.lib.wait import wait_for_async

HEALER = Caller(client="healer", is_internal=True)


class Gated(MemoryBrick):
    """Each operation waits for a permit; ``order`` is who came through."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = asyncio.Semaphore(0)
        self.running = 0
        self.order: list[str] = []
        self.before = self._wait

    async def _wait(self, fop: str) -> None:
        self.running += 1
        await self.permits.acquire()
        self.running -= 1
        self.order.append(fop)

    def permit(self, count: int) -> None:
        for _ in range(count):
            self.permits.release()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_no_more_than_thread_count_are_under_way_and_high_priority_goes_first() -> None:
    async def work() -> None:
        brick = Gated()
        top = make(IoThreads, "io", [brick], thread_count="2")
        started = [asyncio.ensure_future(top.truncate(ME, ROOT, 0)) for _ in range(2)]
        await settle()
        low = [asyncio.ensure_future(top.truncate(ME, ROOT, 0)) for _ in range(3)]
        await settle()
        high = [asyncio.ensure_future(top.stat(ME, ROOT)) for _ in range(3)]
        await settle()
        assert brick.running == 2
        brick.permit(8)
        await asyncio.gather(*started, *low, *high, return_exceptions=True)
        assert brick.order == ["truncate"] * 2 + ["stat"] * 3 + ["truncate"] * 3

    asyncio.run(work())


def test_heals_have_places_of_their_own_only() -> None:
    async def work() -> None:
        brick = Gated()
        top = make(IoThreads, "io", [brick], thread_count="8", least_prio_threads="1")
        heals = [asyncio.ensure_future(top.stat(HEALER, ROOT)) for _ in range(4)]
        await settle()
        assert brick.running == 1
        brick.permit(4)
        await asyncio.gather(*heals)

    asyncio.run(work())


def test_client_with_one_operation_does_not_wait_for_all_of_another() -> None:
    async def work() -> None:
        brick = Gated()
        top = make(IoThreads, "io", [brick], thread_count="1")
        done: list[str] = []

        async def stat(client: str) -> None:
            await top.stat(Caller(client=client), ROOT)
            done.append(client)

        work = [asyncio.ensure_future(stat("busy")) for _ in range(10)]
        await settle()
        work.append(asyncio.ensure_future(stat("calm")))
        await settle()
        brick.permit(20)
        await asyncio.gather(*work)
        assert done.index("calm") <= 2

    asyncio.run(work())


def test_locks_do_not_wait_for_those_who_wait_for_them() -> None:
    async def work() -> None:
        top = make(IoThreads, "io", [MemoryBrick()], thread_count="1")
        write, unlock = Lock(LockType.WRITE), Lock(LockType.UNLOCK)
        await top.inodelk(ME, "d", ROOT, LockCommand.TRY, write)
        steps = [
            Step("inodelk", ("d", ROOT, LockCommand.WAIT, write)),
            Step("stat", (ROOT,)),
            Step("inodelk", ("d", ROOT, LockCommand.TRY, unlock)),
        ]
        others = [Caller(client="b", lock_owner=bytes([n])) for n in range(5)]
        waiting = [asyncio.ensure_future(top.compound(other, steps)) for other in others]
        await settle()
        steps = [Step("stat", (ROOT,)), Step("inodelk", ("d", ROOT, LockCommand.TRY, unlock))]
        await top.compound(ME, steps)
        answers = await asyncio.gather(*waiting)
        assert all(len(answer) == 3 and not isinstance(answer[-1], OSError) for answer in answers)

    asyncio.run(work())


def test_cancelled_operation_gives_its_place_back() -> None:
    async def work() -> None:
        brick = Gated()
        top = make(IoThreads, "io", [brick], thread_count="1")
        first, second, third = (asyncio.ensure_future(top.stat(ME, ROOT)) for _ in range(3))
        await settle()
        second.cancel()
        first.cancel()
        await wait_for_async(lambda: brick.running)
        brick.permit(3)
        await third
        assert top.state()["running"] == 0

    asyncio.run(work())


def test_what_waits_for_a_client_that_is_gone_is_dropped_if_asked() -> None:
    async def work() -> Any:
        brick = Gated()
        top = make(IoThreads, "io", [brick], thread_count="1", cleanup_disconnected_reqs="on")
        first = asyncio.ensure_future(top.stat(Caller(client="b"), ROOT))
        await settle()
        second = asyncio.ensure_future(top.stat(ME, ROOT))
        await settle()
        top.client_gone(ME.client)
        with pytest.raises(FopError):
            await second
        brick.permit(1)
        await first

    asyncio.run(work())
