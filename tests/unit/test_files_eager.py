# SPDX-License-Identifier: Apache-2.0
"""Coroutines that begin in their caller's turn."""

from __future__ import annotations

import asyncio

import pytest

from repl.files.eager import Begun


def test_what_need_not_wait_is_done_at_once() -> None:
    async def work() -> None:
        async def quick() -> int:
            return 7

        async def wrong() -> int:
            raise OSError(5, "x")

        begun = Begun(quick())
        assert begun.is_done and await begun == 7
        failed = Begun(wrong())
        with pytest.raises(OSError):
            await failed

    asyncio.run(work())


def test_the_rest_goes_on_where_it_waited_whoever_awaits_it() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        gates = [loop.create_future() for _ in range(3)]
        seen: list[object] = []

        async def slow() -> str:
            seen.append("begun")
            seen.append(await gates[0])
            await asyncio.sleep(0)
            try:
                await gates[1]
            except OSError as error:
                seen.append(error.errno)
            return str(await gates[2])

        begun = Begun(slow())
        assert seen == ["begun"] and not begun.is_done
        gates[0].set_result("first")
        gates[1].set_exception(OSError(5, "x"))
        gates[2].set_result("end")
        assert await loop.create_task(begun) == "end"
        assert seen == ["begun", "first", 5]

    asyncio.run(work())


def test_cancelling_reaches_what_it_waits_for_and_its_cleaning_up() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        gate, cleaned = loop.create_future(), asyncio.Event()

        async def slow() -> None:
            try:
                await gate
            finally:
                await asyncio.sleep(0)
                cleaned.set()

        for as_task in (True, False):
            gate, begun = loop.create_future(), None
            cleaned.clear()
            begun = Begun(slow())
            if as_task:
                task = loop.create_task(begun)
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert task.cancelled()
            else:
                begun.cancel()
            await asyncio.wait_for(cleaned.wait(), 5)
            assert gate.cancelled()

    asyncio.run(work())


def test_a_task_that_is_cancelled_before_its_first_turn_cancels_what_has_begun() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        gate, seen = loop.create_future(), []

        async def slow() -> None:
            try:
                await gate
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        task = loop.create_task(Begun(slow()))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled() and gate.cancelled() and seen == ["cancelled"]

    asyncio.run(work())
