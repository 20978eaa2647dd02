# SPDX-License-Identifier: Apache-2.0
"""resync-after between processes of one host: lock files that go with their process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from repl.daemon import resync_order
from repl.daemon.resync_order import ResyncOrder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resync_order, "LOOK_S", 0.005)
    monkeypatch.setattr(resync_order, "RETRY_S", 0.002)


async def until(condition: object) -> None:
    async with asyncio.timeout(5):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.002)


def test_watcher_hears_of_each_change(tmp_path: Path) -> None:
    async def scene() -> None:
        heard: list[tuple[str, int, bool]] = []
        busy = ResyncOrder(tmp_path, "r0", lambda *_: None)
        waits = ResyncOrder(tmp_path, "r1", lambda *change: heard.append(change))
        waits.watch("r0", 2)
        busy.publish(1, True)
        await asyncio.sleep(0.02)
        assert heard == []  # another volume
        busy.publish(2, True)
        await until(lambda: heard == [("r0", 2, True)])
        busy.publish(2, False)
        await until(lambda: heard[1:] == [("r0", 2, False)])
        busy.close()
        waits.close()

    asyncio.run(scene())


def test_lock_of_a_process_that_has_gone_holds_up_nobody(tmp_path: Path) -> None:
    async def scene() -> None:
        heard: list[bool] = []
        dies = ResyncOrder(tmp_path, "r0", lambda *_: None)
        waits = ResyncOrder(tmp_path, "r1", lambda _name, _volume, busy: heard.append(busy))
        dies.publish(0, True)
        waits.watch("r0", 0)
        await until(lambda: heard == [True])
        dies.close()
        await until(lambda: heard == [True, False])
        waits.close()

    asyncio.run(scene())


def test_many_watchers_do_not_keep_the_lock_from_its_owner(tmp_path: Path) -> None:
    async def scene() -> None:
        owner = ResyncOrder(tmp_path, "r0", lambda *_: None)
        heard: list[int] = []
        watchers = [ResyncOrder(tmp_path, f"w{n}", lambda *_, n=n: heard.append(n)) for n in range(8)]
        for watcher in watchers:
            watcher.watch("r0", 0)
        for _ in range(20):
            owner.publish(0, True)
            await asyncio.sleep(0.003)
            owner.publish(0, False)
        owner.publish(0, True)
        heard.clear()
        await until(lambda: all(watcher._seen["r0", 0] for watcher in watchers))
        for each in (owner, *watchers):
            each.close()

    asyncio.run(scene())
