# SPDX-License-Identifier: Apache-2.0
"""A brick that takes its place in a set empty is accused by the others, before anybody can use it.

Without that an empty root would look as good as the others, and a listing that is read from it would show nothing.
The others' roots say "it has missed changes of names and attributes", and they are marked dirty, so that the heal
compares all names and not only those that a granular heal has noted.
Inputs: the volume as it will be, the bricks that are new in it.  Errors: ``ReplError`` when a good brick cannot be
reached.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Sequence

from repl.clock import wall_ns
from repl.errors import ReplError
from repl.files import volfile
from repl.files.graph import Graph
from repl.files.translator import Context
from repl.files.translators.client import Client
from repl.files.translators.replicate.changelog import DIRTY, PREFIX, delta
from repl.files.values import ROOT, Caller, XattrOp
from repl.files.volume.graphs import links_volfile
from repl.files.volume.model import Brick, Volume

CONNECT_S = 10.0
_POLL_S = 0.02


async def accuse(volume: Volume, fresh: Sequence[Brick]) -> None:
    """Afterwards the next heal fills them."""
    for one in volume.sets:
        new = [brick for brick in one.bricks if brick in fresh]
        good = [brick for brick in one.bricks if brick not in fresh]
        if new and good:
            await _accuse(volume, new, good)


async def _accuse(volume: Volume, new: Sequence[Brick], good: Sequence[Brick]) -> None:
    chance = random.Random()
    name = f"replctl-{socket.gethostname()}-{chance.randbytes(6).hex()}"
    graph = Graph(volfile.parse(links_volfile(volume, good)), Context(socket.gethostname(), name, chance, wall_ns))
    counts = {PREFIX + volume.client_name(brick).encode(): delta((0, 1, 1)) for brick in new}
    caller = Caller(client=name, is_internal=True)
    await graph.start()
    try:
        for brick in good:
            link = graph.translators[volume.client_name(brick)]
            assert isinstance(link, Client)
            await _connected(link, brick)
            await link.xattrop(caller, ROOT, XattrOp.ADD, {**counts, DIRTY: delta((0, 0, 1))})
    except OSError as error:
        raise ReplError(f"the new brick cannot be marked as empty on the others of its set: {error}.") from error
    finally:
        await graph.stop()


async def _connected(link: Client, brick: Brick) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CONNECT_S
    while not link.is_up:
        if loop.time() >= deadline:
            raise ReplError(f"brick {brick}, which has the data, cannot be reached: {link.state()['reason']}.",
                            advice="All bricks of the set have to run.")  # fmt: skip
        await asyncio.sleep(_POLL_S)
