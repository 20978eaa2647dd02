# SPDX-License-Identifier: Apache-2.0
"""What the workers of a sweep share."""

import asyncio

import pytest

from repl.files.heal.work import Work
from tests.lib.virtual_loop import run


def test_what_comes_into_being_with_a_heal_is_taken_by_other_workers_and_first() -> None:
    async def scene() -> None:
        work = Work(8, 8)
        for gfid in (b"directory", b"later"):
            await work.put(gfid)
        await work.close()
        assert await work.take() == b"directory"
        await work.done([b"one", b"two"])
        assert {await work.take(), await work.take()} == {b"one", b"two"}  # neither is done yet
        assert await work.take() == b"later"
        waiting = asyncio.create_task(work.take())
        await asyncio.sleep(1)
        assert not waiting.done()  # something may still come
        for more in ((), (), [b"last"]):
            await work.done(more)
        assert await waiting == b"last"
        await work.done(())
        assert await work.take() is None

    run(scene())


def test_both_limits_hold() -> None:
    async def scene() -> None:
        work = Work(1, 1)
        await work.put(b"a")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(work.put(b"b"), 1)
        assert await work.take() == b"a"
        await work.done([b"c", b"d"])
        await work.close()
        assert await work.take() == b"c"
        await work.done(())
        assert await work.take() is None

    run(scene())
