# SPDX-License-Identifier: Apache-2.0
"""What a replicated volume may look like after anything that can go wrong: a model of acknowledged changes.

``Model`` remembers for every name, every part of a file and every mode which values are possible: after an acknowledged
change exactly one, after one that failed the values before and behind it.  ``Load`` makes such changes through a client
with names of its own; ``Faults`` kills, cuts and returns at any step between them.  At the end everything is healed,
and the bricks must be equal and hold what is possible (``Model.check``).
"""

from __future__ import annotations

import asyncio
import os
import random
import stat
from collections.abc import AsyncIterator, Container
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from repl.files.values import ROOT_GFID, Fd, FopError, Loc, SetAttr
from tests.lib.replicas import Client, World

PARTS = (0, 140_000, 300_000)  # offsets of the parts of a file; a heal's window is 128 KiB
PART_BYTES = 16
MODES = (0o600, 0o640, 0o644)

Key = tuple[bytes, bytes]  # directory, name


@dataclass
class Model:
    """``names``: possible identities (None: no such name); ``parts``: gfid, part -> contents; ``alive``: must be there
    under some name."""

    names: dict[Key, set[bytes | None]] = field(default_factory=dict)
    parts: dict[tuple[bytes, int], set[bytes]] = field(default_factory=dict)
    modes: dict[bytes, set[int]] = field(default_factory=dict)
    colors: dict[bytes, set[bytes | None]] = field(default_factory=dict)
    alive: set[bytes] = field(default_factory=set)
    directories: set[bytes] = field(default_factory=set)
    ever: dict[Key, set[bytes]] = field(default_factory=dict)
    replaced: set[bytes] = field(default_factory=set)  # by a rename, on a copy that had them still at that name
    history: dict[bytes, set[Any]] = field(default_factory=dict)  # all that a file has had: parts, modes, colors

    def at(self, key: Key) -> set[bytes | None]:
        return self.names.setdefault(key, {None})

    def note(self, key: Key, gfid: bytes) -> None:
        """It may have been there at some time."""
        self.ever.setdefault(key, set()).add(gfid)

    def check(self, tree: dict[bytes, Any]) -> None:
        """``tree`` is that of ``World.tree``."""
        gfids = {path: about[0] for path, about in tree.items()}
        found: set[bytes] = set(gfids.values())
        seen: set[Key] = set()
        for path, about in tree.items():
            if path == b"/":
                continue
            above, _, name = path.rpartition(b"/")
            key = (gfids[above or b"/"], name)
            seen.add(key)
            assert about[0] in self.names.get(key, {None}), f"{path!r} is not what was made there"
            if stat.S_ISREG(about[1]):
                self._check_file(path, about)
        for key, possible in self.names.items():
            if key not in seen and key[0] in found:
                assert None in possible, f"{key[1]!r} was acknowledged and is gone"
        assert self.alive <= found, "something that was made has no name any more"

    def check_split(self, trees: list[dict[bytes, Any]], split: set[bytes], names: set[Key]) -> None:
        """Where one copy is enough: each side may have gone on alone.  What is different on two bricks must have been
        told (``split`` inodes, ``names``); removals may be undone, nothing else may be lost.  A file that was renamed
        on one side, and replaced under its old name on the other one, is there with what the one side has of it."""
        found = {about[0] for tree in trees for about in tree.values()}
        here: dict[Key, set[bytes]] = {}
        for tree in trees:
            gfids = {path: about[0] for path, about in tree.items()}
            for path, about in tree.items():
                above, _, name = path.rpartition(b"/")
                key = (gfids[above or b"/"], name)
                if path == b"/":
                    continue
                here.setdefault(key, set()).add(about[0])
                assert about[0] in self.ever.get(key, set()), f"{path!r} is not what was made there"
                if stat.S_ISREG(about[1]) and about[0] not in split and about[0] in self.alive:
                    self._check_file(path, about, self.history[about[0]] if about[0] in self.replaced else set())
        for key, possible in self.names.items():
            if None not in possible and key[0] in found:
                moved = possible & self.directories & found  # it has one place, and each side may have had another
                assert here.get(key, set()) & possible or key in names or moved, f"{key[1]!r} is gone"
        assert self.alive <= found, "something that was made has no name any more"
        self._check_equal(trees, split, names)

    @staticmethod
    def _check_equal(trees: list[dict[bytes, Any]], split: set[bytes], names: set[Key]) -> None:
        gfids = {path: about[0] for tree in trees for path, about in tree.items()}
        places = {p: p.rpartition(b"/") for p in gfids if p != b"/"}
        untold = [p for p, (above, _, name) in places.items() if (gfids[above or b"/"], name) in names]
        for path, gfid in gfids.items():
            if gfid in split or any(path == p or path.startswith(p + b"/") for p in untold):
                continue
            assert len({str(tree.get(path)) for tree in trees}) == 1, f"{path!r} differs and nobody says so"

    def _check_file(self, path: bytes, about: Any, before: Container[Any] = ()) -> None:
        """``before``: what it may have as well."""
        gfid, mode, _, _, _, xattrs, data = about[:7]
        mode = stat.S_IMODE(mode)
        assert mode in self.modes.get(gfid, {mode}) or mode in before, f"{path!r}: mode"
        if gfid in self.colors:
            color = xattrs.get(b"user.color")
            assert color in self.colors[gfid] or color in before, f"{path!r}: attribute"
        for part, offset in enumerate(PARTS):
            possible = self.parts.get((gfid, part), {b""})
            here = data[offset : offset + PART_BYTES]
            if not here.strip(b"\0"):
                here = b""
            is_possible = here in possible or (part, here) in before
            assert is_possible, f"{path!r}: part {part} is {here!r}, not one of {possible}"


class Load:
    """One client's changes, in the directories ``places`` that all share."""

    def __init__(self, client: Client, model: Model, places: list[bytes], seed: int) -> None:
        self.client = client
        self.afr = client.afr
        self.caller = client.caller
        self.model = model
        self.places = places
        self.random = random.Random(seed)
        self.count = 0
        self.acknowledged = 0
        self.mine = [b"%s-%d" % (client.name.encode(), i) for i in range(3)]

    async def run(self, operations: int) -> None:
        for _ in range(operations):
            try:
                await getattr(self, self.random.choice(OPERATIONS))()
                self.acknowledged += 1
            except FopError:
                pass
            await asyncio.sleep(self.random.choice((0, 0, 0.01, 2)))

    def _key(self) -> Key:
        inside = [d for d in self.model.directories if d in self.model.alive]
        places = [*self.places, *sorted(inside)] if self.random.random() < 0.3 else self.places
        return self.random.choice(places), self.random.choice(self.mine)

    def _known(self, *, is_directory: bool = False) -> tuple[Key, bytes] | None:
        """A name of ours that surely is there."""
        found = [
            (key, next(iter(possible))) for key, possible in self.model.names.items()
            if key[1] in self.mine and len(possible) == 1 and None not in possible
        ]  # fmt: skip
        found = [(k, g) for k, g in found if (g in self.model.directories) == is_directory]
        return self.random.choice(found) if found else None

    @asynccontextmanager
    async def _changing(self, changes: list[tuple[set[Any], set[Any]]]) -> AsyncIterator[None]:
        """(what is possible, what will be): both until it is acknowledged."""
        for possible, after in changes:
            possible |= after
        yield
        for possible, after in changes:
            possible.clear()
            possible |= after

    def _value(self) -> bytes:
        self.count += 1
        return b"%s %08d" % (self.client.name.encode()[-4:].ljust(7, b"."), self.count)

    # ---- operations ----

    async def create(self) -> None:
        key, gfid = self._key(), self.client.context.new_gfid()
        fd = Fd(gfid, os.O_RDWR)
        loc = Loc(parent=key[0], name=key[1])
        self.model.modes[gfid] = {0o644}
        self.model.note(key, gfid)
        value = self._value()
        self.model.history[gfid] = {0o644, None, *((part, b"") for part in range(len(PARTS))), (0, value)}
        async with self._changing([(self.model.at(key), {gfid})]):
            await self.afr.create(self.caller, loc, fd, flags=os.O_RDWR | os.O_EXCL, mode=0o644, gfid=gfid)
        self.model.alive.add(gfid)
        parts = self.model.parts.setdefault((gfid, 0), {b""})
        try:
            async with self._changing([(parts, {value})]):
                await self.afr.writev(self.caller, fd, value, offset=0)
        finally:
            await self.afr.release(fd)

    async def mkdir(self) -> None:
        key, gfid = self._key(), self.client.context.new_gfid()
        if key[0] not in self.places:
            return
        self.model.directories.add(gfid)
        self.model.note(key, gfid)
        async with self._changing([(self.model.at(key), {gfid})]):
            await self.afr.mkdir(self.caller, Loc(parent=key[0], name=key[1]), mode=0o755, gfid=gfid)
        self.model.alive.add(gfid)

    async def write(self) -> None:
        if (known := self._known()) is None:
            return
        _, gfid = known
        part = self.random.randrange(len(PARTS))
        fd = Fd(gfid, os.O_WRONLY)
        await self.afr.open(self.caller, Loc(gfid=gfid), fd, flags=os.O_WRONLY)
        try:
            for _ in range(self.random.choice((1, 1, 3))):
                value = self._value()
                self.model.history[gfid].add((part, value))
                async with self._changing([(self.model.parts.setdefault((gfid, part), {b""}), {value})]):
                    await self.afr.writev(self.caller, fd, value, offset=PARTS[part])
        finally:
            await self.afr.release(fd)

    async def read(self) -> None:
        if (known := self._known()) is None:
            return
        _, gfid = known
        part = self.random.randrange(len(PARTS))
        fd = Fd(gfid, os.O_RDONLY)
        await self.afr.open(self.caller, Loc(gfid=gfid), fd, flags=os.O_RDONLY)
        try:
            data = bytes((await self.afr.readv(self.caller, fd, size=PART_BYTES, offset=PARTS[part])).data)
        finally:
            await self.afr.release(fd)
        possible = self.model.parts.get((gfid, part), {b""})
        here = data if data.strip(b"\0") else b""
        assert here in possible or self.is_lax, f"read {data!r}, possible is {possible}"

    is_lax = False

    async def chmod(self) -> None:
        if (known := self._known()) is None:
            return
        mode = self.random.choice(MODES)
        self.model.history[known[1]].add(mode)
        async with self._changing([(self.model.modes[known[1]], {mode})]):
            await self.afr.setattr(self.caller, Loc(gfid=known[1]), SetAttr(mode=mode))

    async def color(self) -> None:
        if (known := self._known()) is None:
            return
        value = self._value()
        self.model.history[known[1]].add(value)
        async with self._changing([(self.model.colors.setdefault(known[1], {None}), {value})]):
            await self.afr.setxattr(self.caller, Loc(gfid=known[1]), {b"user.color": value})

    async def rename(self) -> None:
        known = self._known(is_directory=self.random.random() < 0.4)
        if known is None:
            return
        key, gfid = known
        target = self._key()
        if target == key or target[0] == gfid or (gfid in self.model.directories and target[0] not in self.places):
            return
        there = self.model.at(target)
        if any(g in self.model.directories for g in there if g) or gfid in self.model.directories and there != {None}:
            return
        self.model.alive -= {g for g in there if g}
        self.model.replaced |= self.client.world.named(*target) - there
        for moved in {gfid, *self.model.ever.get(key, set())}:  # an old copy alone may have another one there
            self.model.note(target, moved)
        source, place = Loc(gfid, key[0], key[1]), Loc(parent=target[0], name=target[1])
        async with self._changing([(self.model.at(key), {None}), (there, {gfid})]):
            await self.afr.rename(self.caller, source, place)

    async def unlink(self) -> None:
        if (known := self._known()) is None:
            return
        key, gfid = known
        self.model.alive.discard(gfid)
        async with self._changing([(self.model.at(key), {None})]):
            await self.afr.unlink(self.caller, Loc(gfid, key[0], key[1]))

    async def rmdir(self) -> None:
        if (known := self._known(is_directory=True)) is None:
            return
        key, gfid = known
        if any(None not in p for k, p in self.model.names.items() if k[0] == gfid):
            return
        self.model.alive.discard(gfid)
        async with self._changing([(self.model.at(key), {None})]):
            await self.afr.rmdir(self.caller, Loc(gfid, key[0], key[1]))
        for inner, possible in self.model.names.items():
            if inner[0] == gfid:
                possible.clear()
                possible.add(None)


OPERATIONS = (
    "create", "create", "create", "mkdir", "write", "write", "write", "read", "read", "chmod", "color", "rename",
    "rename", "unlink", "rmdir",
)  # fmt: skip


class Faults:
    """``plan``: (steps until then, what, which brick, which client)."""

    def __init__(self, world: World, plan: list[tuple[int, str, int, int]]) -> None:
        self.world = world
        self.plan = list(plan)
        self.steps = 0
        self.next = self.plan[0][0] if self.plan else -1
        self.workers: dict[str, asyncio.Task[None]] = {}

    async def hook(self, client: str, brick: str, fop: str, is_done: bool) -> None:
        await asyncio.sleep(0)
        self.steps += 1
        while self.plan and self.steps >= self.next:
            _, what, index, who = self.plan.pop(0)
            self.next = self.steps + (self.plan[0][0] if self.plan else 0)
            self.do(what, index % len(self.world.bricks), self.world.clients[who % len(self.world.clients)])

    def do(self, what: str, index: int, client: Client) -> None:
        if what == "flip":
            what = "return" if self.world.bricks[index].is_down else "crash"
        if what == "crash":
            self.world.crash(index)
        elif what == "return":
            self.world.come_back(index)
        elif what == "cut":
            self.world.cut(client, index)
        elif what == "join" and not client.is_dead:
            self.world.join(client, index)
        elif what == "die" and client.name in self.workers and not client.is_dead:
            client.die()
            self.workers.pop(client.name).cancel()

    def stop(self) -> None:
        """All that is left comes back."""
        self.plan.clear()
        for index in range(len(self.world.bricks)):
            self.world.come_back(index)
            for client in self.world.clients:
                if not client.is_dead and client.links[index].is_cut:
                    self.world.join(client, index)


async def make_places(client: Client) -> list[bytes]:
    """Two directories for all."""
    places = [ROOT_GFID]
    for name in (b"one", b"two"):
        places.append(client.context.new_gfid())
        await client.afr.mkdir(client.caller, Loc(parent=ROOT_GFID, name=name), mode=0o755, gfid=places[-1])
    await asyncio.sleep(5)
    return places
