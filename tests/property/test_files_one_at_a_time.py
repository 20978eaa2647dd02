# SPDX-License-Identifier: Apache-2.0
"""Two copies, and a brick goes only when the other one has everything: nothing is lost, nothing fails, nothing splits.

The links of the client and of the heal daemon to a brick that comes back are there at different times.
``REPL_ROUNDS_SEEDS`` (12) runs for each kind of set, from ``REPL_ROUNDS_FIRST`` (0) on.
"""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from repl.files.heal.sweep import Sweeper
from repl.files.translators.replicate.healing import Status
from tests.lib.heal_model import make_places
from tests.lib.names_model import Names
from tests.lib.replicas import Client, World
from tests.lib.virtual_loop import run
from tests.property.test_files_heal_model import assert_equal_bricks

SEEDS = int(os.environ.get("REPL_ROUNDS_SEEDS", "12"))
FIRST = int(os.environ.get("REPL_ROUNDS_FIRST", "0"))
ROUNDS = 6
OPTIONS: dict[str, dict[str, str]] = {
    "plain": {},
    "granular": {"granular-entry-heal": "on"},
    "no client heals": {"data-self-heal": "off", "metadata-self-heal": "off", "entry-self-heal": "off"},
}


class Steps:
    """Each step of an operation takes a moment; ``wait`` returns after so many of them."""

    def __init__(self) -> None:
        self.count = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def hook(self, client: str, brick: str, fop: str, is_done: bool) -> None:
        await asyncio.sleep(0)
        self.count += 1
        for at, future in list(self._waiting):
            if self.count >= at and not future.done():
                future.set_result(None)

    async def wait(self, count: int) -> None:
        item = self.count + count, asyncio.get_running_loop().create_future()
        self._waiting.append(item)
        await asyncio.wait([item[1]], timeout=30)  # while nothing is done
        self._waiting.remove(item)


async def faults(world: World, clients: list[Client], steps: Steps, chance: random.Random) -> None:
    for _ in range(ROUNDS):
        await steps.wait(chance.randint(1, 200))
        index = chance.randrange(2)
        world.crash(index)
        await steps.wait(chance.randint(1, 300))
        for client in clients:
            client.links[index].is_cut = True
        world.come_back(index)
        for client in chance.sample(clients, len(clients)):
            world.join(client, index)
            await steps.wait(chance.choice((0, 5, 50, 400)))
        while not has_everything(world):
            await asyncio.sleep(0.1)


def has_everything(world: World) -> bool:
    """Each brick, and nobody is at work who began without one of them."""
    if any(not key.endswith("dirty") for key in world.pending()):
        return False
    return all(tenure.active == 3 for client in world.clients for tenure in client.afr.tenures)


async def play(world: World, seed: int) -> Names:
    chance = random.Random(seed)
    clients = [await world.client(name) for name in ("client", "daemon")]
    client, daemon = clients
    places = await make_places(client)
    steps = Steps()
    world.hook = steps.hook
    names = Names(client, places[1], seed, idle=lambda: asyncio.sleep(0))
    names.pauses = chance.choice(((0, 0, 0.01, 2), (0, 0.01, 0.01, 0.5)))
    sweeper = Sweeper(daemon.afr)

    async def sweep() -> None:
        while True:
            progress = await sweeper.index()
            assert progress.by_status[Status.SPLIT] == 0, progress
            await asyncio.sleep(0.5)

    loop = asyncio.get_running_loop()
    failing = loop.create_task(faults(world, clients, steps, chance))
    healer = loop.create_task(sweep())
    while not failing.done() and not healer.done():
        await names.run(1)
    for task in (failing, healer):
        task.cancel()
    for result in await asyncio.gather(failing, healer, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
    for one in clients:
        await one.stop()
    assert world.opened() == {}, f"nobody closes it any more: {world.opened()}"
    last = Sweeper((await world.client("last")).afr)
    await last.index()
    return names


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_a_brick_at_a_time_is_no_reason_for_an_error(kind: str) -> None:
    failed = []
    for seed in range(FIRST, FIRST + SEEDS):
        world = World(2, seed=seed, options=OPTIONS[kind] | {"background-self-heal-count": "4"})

        async def scene(world: World = world, seed: int = seed) -> Names:
            return await asyncio.wait_for(play(world, seed), 10_000)

        try:
            names = run(scene())
            tree = assert_equal_bricks(world)
            assert world.pending() == {}
            names.check(tree, b"/one")
            assert names.errors == []
        except (AssertionError, TimeoutError) as error:
            failed.append(f"seed {seed}: {str(error)[:600]!r}")
    assert not failed, f"{len(failed)} of {SEEDS}:\n" + "\n".join(failed)
