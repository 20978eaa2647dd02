# SPDX-License-Identifier: Apache-2.0
"""Several clients change the same few names of a volume of replicated pairs at the same time, also while it grows."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from repl.files.rebalance.crawl import Crawl
from repl.files.rebalance.progress import Progress
from tests.lib.distributed import World
from tests.lib.distributed_meetings import slow_down
from tests.lib.distributed_pairs import PairClient, copies_of, is_accused
from tests.lib.memory_brick import MemoryBrick
from tests.lib.virtual_loop import run
from tests.unit.test_files_distribute_races import work

PATHS = ["a", "b", "c", "d/a", "d/b"]


async def check_folder(client: PairClient, folder: str, names_of: Counter[bytes], nlinks: dict[bytes, int]) -> None:
    """Every name is there once, leads to what is listed, and a file says which one it is."""
    entries = await client.entries(folder)
    names = [entry.name for entry in entries]
    assert len(set(names)) == len(names), (folder, names)
    for entry in entries:
        path = f"{folder}/{entry.name.decode()}"
        looked = await client.look(path)
        assert looked.iatt.gfid == entry.gfid, path
        if looked.iatt.is_directory:
            await check_folder(client, path, names_of, nlinks)
        else:
            names_of[entry.gfid] += 1
            nlinks[entry.gfid] = looked.iatt.nlink
            assert await client.read(path) in (entry.gfid[-4:], b""), path  # caught between creation and writing


async def check(world: World) -> None:
    client = await PairClient(world, "checker").start()
    names_of: Counter[bytes] = Counter()
    nlinks: dict[bytes, int] = {}
    await check_folder(client, "", names_of, nlinks)
    assert nlinks == names_of
    for gfid in names_of:
        copies = copies_of(world, gfid)
        for first in range(0, len(world.bricks), 2):
            assert copies.get(first) == copies.get(first + 1) or is_accused(world, gfid), gfid
    await client.idle()


@pytest.mark.parametrize("is_growing", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_clients_that_change_the_same_names_of_a_volume_of_pairs(seed: int, is_growing: bool) -> None:
    async def scenario() -> None:
        world, dice = World(4, seed=seed), random.Random(seed)
        first = await PairClient(world, "first").start()
        await first.look("")
        await first.mkdir("d")
        await first.idle()
        if is_growing:
            world.bricks += [MemoryBrick(f"brick{number}") for number in (4, 5)]
        clients = [await PairClient(world, f"client{number}").start() for number in range(4)]
        for client in clients:
            await client.look("d")
            slow_down(client, dice, often=6)
        *workers, mover = clients

        async def move() -> None:
            if is_growing:
                await asyncio.sleep(dice.random() * 20)
                await Crawl(mover.dht, "force", Progress()).run()

        await asyncio.gather(move(), *(work(client, dice, PATHS, has_folders=True) for client in workers))
        for client in clients:
            await client.idle()
        await check(world)

    run(scenario())
