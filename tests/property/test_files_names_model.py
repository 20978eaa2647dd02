# SPDX-License-Identifier: Apache-2.0
"""Three copies, one program that replaces and removes files, bricks that go and come back at any step.

No read, at any time, and no brick at the end shows what an acknowledged change has taken away.
``REPL_NAMES_SEEDS`` (40) runs for each kind of set.
"""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from repl.files.heal.sweep import Progress, Sweeper
from repl.files.translators.replicate.healing import Status
from tests.lib.heal_model import Faults, make_places
from tests.lib.names_model import Names
from tests.lib.replicas import World
from tests.lib.virtual_loop import run
from tests.property.test_files_heal_model import assert_equal_bricks

SEEDS = int(os.environ.get("REPL_NAMES_SEEDS", "40"))
FIRST = int(os.environ.get("REPL_NAMES_FIRST", "0"))
OPTIONS: dict[str, dict[str, str]] = {
    "plain": {},
    "no client heals": {"data-self-heal": "off", "metadata-self-heal": "off", "entry-self-heal": "off"},
    "granular": {"granular-entry-heal": "on"},
}


def flips(chance: random.Random, count: int) -> list[tuple[int, str, int, int]]:
    """A brick that is there goes, one that is away comes back; with too few of them things happen soon."""
    plan, away = [], 0
    for _ in range(count):
        steps_max = chance.choice((5, 30, 200)) if away.bit_count() < 2 else 20
        index = chance.randrange(3)
        away ^= 1 << index
        plan.append((chance.randint(1, steps_max), "flip", index, 0))
    return plan


async def play(world: World, seed: int) -> tuple[Names, Progress]:
    chance = random.Random(seed)
    client, daemon = [await world.client(name) for name in ("client", "daemon")]
    places = await make_places(client)
    faults = Faults(world, flips(chance, 60))
    world.hook = faults.hook

    async def idle() -> None:
        for _ in range(5):
            await faults.hook("", "", "", False)

    names = Names(client, places[1], seed, idle)
    sweeper = Sweeper(daemon.afr)

    async def sweep() -> None:
        while True:
            await sweeper.index()
            await asyncio.sleep(0.5)

    healer = asyncio.get_running_loop().create_task(sweep()) if seed % 4 else None
    await names.run(80)
    if healer is not None:
        healer.cancel()
        await asyncio.gather(healer, return_exceptions=True)
    faults.stop()
    await asyncio.sleep(5)
    for one in (client, daemon):
        await one.stop()
    assert world.opened() == {}, f"nobody closes it any more: {world.opened()}"
    last = Sweeper((await world.client("last")).afr)
    await last.index()
    await last.full()
    return names, await last.index()


def run_one(kind: str, seed: int) -> Names:
    world = World(3, seed=seed, options=OPTIONS[kind] | {"background-self-heal-count": "4"})

    async def scene() -> tuple[Names, Progress]:
        return await asyncio.wait_for(play(world, seed), 100_000)

    names, progress = run(scene())
    assert progress.by_status[Status.SPLIT] == 0, progress
    tree = assert_equal_bricks(world)
    assert world.pending() == {}, progress
    names.check(tree, b"/one")
    return names


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_what_was_acknowledged_is_neither_lost_nor_undone_at_any_time(kind: str) -> None:
    failed = []
    for seed in range(FIRST, FIRST + SEEDS):
        try:
            run_one(kind, seed)
        except AssertionError as error:
            failed.append(f"seed {seed}: {str(error)[:1500]}")
    assert not failed, "\n".join(failed)
