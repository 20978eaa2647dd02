# SPDX-License-Identifier: Apache-2.0
"""Where a brick's system calls run: when the disk counts as slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from repl.files.translators.posix.lane import FAST_CALLS, SLOW_NS, Lane, Schedule


class Machine:
    """A clock, and how much of its time a thread had the processor or waited for it."""

    def __init__(self) -> None:
        self.now = self.ran = 0

    def disk(self, ns: int) -> None:
        """A call waits for the disk."""
        self.now += ns

    def others(self, ns: int) -> None:
        """Others have the processor."""
        self.now += ns
        self.ran += ns


def on_lane(work: Callable[[Machine, Lane], Awaitable[None]]) -> None:
    async def main() -> None:
        machine = Machine()
        lane = Lane(lambda: machine.now, "brick", lambda: machine.ran)
        try:
            await work(machine, lane)
        finally:
            lane.close()

    asyncio.run(main())


def test_a_disk_that_is_slow_twice_counts_as_slow_until_it_has_been_fast_for_long() -> None:
    async def work(machine: Machine, lane: Lane) -> None:
        await lane.run(machine.disk, 2 * SLOW_NS)
        assert not lane.is_slow
        await lane.run(machine.disk, 2 * SLOW_NS)
        assert lane.is_slow
        for _ in range(FAST_CALLS - 1):
            await lane.run(machine.disk, 1000)
        assert lane.is_slow
        await lane.run(machine.disk, 1000)
        assert not lane.is_slow
        assert lane.slow_calls == 1

    on_lane(work)


def test_calls_that_wait_for_a_processor_do_not_make_the_disk_slow() -> None:
    async def work(machine: Machine, lane: Lane) -> None:
        for _ in range(2 * FAST_CALLS):
            await lane.run(machine.others, 2 * SLOW_NS)
            assert not lane.is_slow

    on_lane(work)


def test_the_kernel_tells_for_how_long_a_thread_ran() -> None:
    schedule = Schedule()
    began, before = time.thread_time_ns(), schedule.ran_ns()
    while time.thread_time_ns() - began < 20_000_000:
        pass
    after = schedule.ran_ns()
    schedule.close()
    assert after == 0 or after - before > 10_000_000
