# SPDX-License-Identifier: Apache-2.0
"""Caching translators above a brick in memory: one graph, or several clients' graphs that hear of each other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from repl.files.options import parse_options
from repl.files.translator import Context, Translator
from repl.files.translators import find_class
from repl.files.values import Caller
from tests.lib.memory_brick import MemoryBrick, Port
from tests.lib.virtual_loop import run

CACHES = ("write-behind", "read-ahead", "io-cache", "quick-read", "md-cache")  # bottom first
LONG = {"io-cache": {"cache-timeout": "60"}, "quick-read": {"cache-timeout": "60"},
        "md-cache": {"md-cache-timeout": "600"}}  # fmt: skip


class Mount:
    """One client: ``top`` is its graph, ``me`` what it calls itself."""

    def __init__(self, brick: MemoryBrick, client: str, kinds: Sequence[str], **options: str) -> None:
        self.me = Caller(client=client, lock_owner=client.encode())
        self.brick = brick
        self.context = Context(process=client)
        self.layers: dict[str, Translator] = {}
        self.top: Translator = Port(client, brick)
        for kind in kinds:
            found = find_class(f"performance/{kind}")
            assert found is not None
            given = LONG.get(kind, {}) | {key.replace("_", "-"): value for key, value in options.items()}
            parsed = parse_options(found.OPTIONS, {k: v for k, v in given.items() if _has(found, k)}, where=kind)
            self.top = self.layers[kind] = found(kind, parsed, [self.top], self.context)


def _has(kind: type[Translator], name: str) -> bool:
    return any(option.name == name for option in kind.OPTIONS)


def jitter(brick: MemoryBrick, seed: int) -> None:
    """Every operation of the brick takes a while, each another one."""
    chance = random.Random(seed)

    async def before(fop: str) -> None:
        if fop not in ("release", "forget") and chance.random() < 0.5:
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.01)))

    brick.before = before


def on_mounts(work: Callable[..., Awaitable[None]], kinds: Sequence[str], clients: str = "ab", **options: str) -> None:
    """``work`` is given a mount for each letter of ``clients``."""

    async def main() -> None:
        brick = MemoryBrick()
        mounts = [Mount(brick, client, kinds, **options) for client in clients]
        await work(*mounts)
        for mount in mounts:
            for layer in mount.layers.values():
                await layer.stop()

    run(main())
