# SPDX-License-Identifier: Apache-2.0
"""The model of distribute with pairs of replicas below it, and files moved from pair to pair under a writer."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from hypothesis import given, settings

from repl.files.options import parse_options
from repl.files.rebalance.migration import Migration
from repl.files.rebalance.mover import Outcome
from repl.files.translator import Context, Translator
from repl.files.translators.distribute import Distribute
from repl.files.translators.replicate import Replicate
from repl.files.values import ROOT_GFID, Caller, Loc
from tests.lib.memory_brick import MemoryBrick, Port
from tests.lib.virtual_loop import run
from tests.property.test_files_distribute_model import Side, operations

ME = Caller(client="a", lock_owner=b"1")


class Volume:
    """Two pairs, with as many clients as one likes."""

    def __init__(self) -> None:
        self.bricks = [MemoryBrick(f"brick{i}") for i in range(4)]
        self.clients = 0

    async def client(self) -> Distribute:
        self.clients += 1
        context = Context(process=f"client{self.clients}", random=random.Random(self.clients))
        ports = [Port(f"client{self.clients}", brick) for brick in self.bricks]
        pairs: list[Translator] = []
        for number in range(2):
            children = ports[2 * number : 2 * number + 2]
            pair = Replicate(f"pair{number}", parse_options(Replicate.OPTIONS, {}), children, context)
            await pair.start()
            pairs.append(pair)
        dht = Distribute("dht", parse_options(Distribute.OPTIONS, {}), pairs, context)
        await dht.start()
        return dht


@settings(max_examples=25, deadline=None)
@given(steps=operations)
def test_distribute_over_replicate_is_like_one_brick(steps: list[Any]) -> None:
    async def scenario() -> None:
        volume = Volume()
        model, dht = Side(MemoryBrick()), Side(await volume.client())
        for number, step in enumerate(steps):
            gfid = b"\xcd" + bytes(11) + (number + 1).to_bytes(4, "big")
            assert await model.do(gfid, *step) == await dht.do(gfid, *step), step
        tree = await model.tree()
        assert await dht.tree() == tree
        assert await Side(await volume.client()).tree() == tree

    run(scenario())


def test_migration_between_pairs_under_a_writer() -> None:
    async def scenario() -> None:
        volume = Volume()
        client, mover = await volume.client(), await volume.client()
        side = Side(client)
        root = await client.directory(ROOT_GFID)
        name = next(f"n{i}" for i in range(99) if root.layout.owner(client.hash_of(b"n%d" % i)) == 0)
        new = next(f"m{i}" for i in range(99) if root.layout.owner(client.hash_of(b"m%d" % i)) == 1)
        gfid = b"\xcd" * 16
        await side.do(gfid, "create", name)
        await side.do(gfid, "rename", name, new, 0)
        expected = bytearray(200)
        await side.do(gfid, "write", new, bytes(200), 0)
        is_over = False

        async def write() -> None:
            dice = random.Random(1)
            while not is_over:
                at, data = dice.randrange(196), dice.randbytes(4)
                expected[at : at + 4] = data
                assert await side.do(gfid, "write", new, data, at) == 200
                await asyncio.sleep(0.001)

        async def move() -> Outcome:
            nonlocal is_over
            await mover.directory(ROOT_GFID)
            await asyncio.sleep(0.05)
            moved = await Migration(mover, Loc(parent=ROOT_GFID, name=new.encode()), 0, 1).run()
            await asyncio.sleep(0.05)
            is_over = True
            return moved.outcome

        outcome, _ = await asyncio.gather(move(), write())
        assert outcome is Outcome.MOVED
        other = Side(await volume.client())
        tree = await other.tree()
        assert tree[f"/{new}"][3][:100] == bytes(expected[:100]) and tree[f"/{new}"][2] == 1
        assert gfid in volume.bricks[2].inodes and gfid in volume.bricks[3].inodes

    run(scenario())
