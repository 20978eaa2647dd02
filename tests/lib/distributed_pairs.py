# SPDX-License-Identifier: Apache-2.0
"""Clients of distribute over pairs of replicas, over the bricks in memory of ``distributed.World``."""

from __future__ import annotations

import asyncio
import random
from typing import TypeAlias

from repl.files.options import parse_options
from repl.files.translator import Context, Translator
from repl.files.translators.distribute import Distribute
from repl.files.translators.replicate import Replicate
from tests.lib.distributed import Client, World

PENDING = b"trusted.afr."
Copy: TypeAlias = tuple[int, int, bytes, dict[bytes, bytes]]  # mode, names, data, entries


class PairClient(Client):
    """Bricks 0 and 1 are the first pair, and so on.  It sends through the same ports, which count and pause."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name, {})
        context = Context(process=name, random=random.Random(f"{world.seed}-{name}"))
        self.pairs = [
            Replicate(f"pair{i // 2}", parse_options(Replicate.OPTIONS, {}), self.ports[i : i + 2], context)
            for i in range(0, len(self.ports), 2)
        ]
        children: list[Translator] = list(self.pairs)
        self.dht = Distribute("dht", parse_options(Distribute.OPTIONS, {}), children, context)

    async def start(self) -> PairClient:
        for pair in self.pairs:
            await pair.start()
        await self.dht.start()
        return self

    async def idle(self) -> None:
        """No transaction of its own is left either."""
        self.pause = None
        await super().idle()
        while any(pair.tenures for pair in self.pairs):
            await asyncio.gather(*(pair.finish() for pair in self.pairs))
            await super().idle()


def copies_of(world: World, gfid: bytes) -> dict[int, Copy]:
    """What the bricks store of an inode, by their numbers; without times and counters."""
    found: dict[int, Copy] = {}
    for number, brick in enumerate(world.bricks):
        inode = brick.inodes.get(gfid)
        if inode is not None:
            entries = {name: entry[1] for name, entry in inode.entries.items() if not name.startswith(b".glusterfs-")}
            found[number] = (inode.iatt.mode, inode.iatt.nlink, bytes(inode.data), entries)
    return found


def is_accused(world: World, gfid: bytes) -> bool:
    """A copy of the inode, or of a directory that has a name for it, is known to have missed something."""
    for brick in world.bricks:
        for number, inode in brick.inodes.items():
            is_meant = number == gfid or any(entry[1] == gfid for entry in inode.entries.values())
            if is_meant and any(any(value) for key, value in inode.xattrs.items() if key.startswith(PENDING)):
                return True
    return False
