# SPDX-License-Identifier: Apache-2.0
"""Bricks in memory, clients with a replicate volume each, and a link between each two that can fail at any step.

``World`` makes bricks and clients; a ``Link`` passes each operation on, each step of a compound by itself: before and
behind each one a fault can happen (``hook``), and a crash of the brick makes all that is under way ENOTCONN.  A brick
that crashes forgets locks and open files and keeps what is stored; a client that dies leaves everything as it is.
"""

from __future__ import annotations

import asyncio
import errno
import random
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from repl.files.events import ChildDown, ChildUp, Contended, Event
from repl.files.options import Options, parse_options
from repl.files.translator import FOPS, Context, Step, Translator
from repl.files.translators.index import GFID_KEYS, HEAL_COUNT, VIRTUAL
from repl.files.translators.replicate import Replicate
from repl.files.translators.replicate.changelog import DIRTY, ENTRY_IN, ENTRY_OUT
from repl.files.values import (
    Caller,
    Entry,
    Fd,
    FopError,
    Iatt,
    Loc,
    Lock,
    LockCommand,
    LockType,
    Looked,
    Target,
    Want,
    XattrOp,
    Xattrs,
    gfid_from_text,
    gfid_text,
)
from tests.lib.memory_brick import Inode, MemoryBrick
from tests.lib.memory_locks import LockSpace, LockTable, _conflict

PENDING = b"trusted.afr."
Hook = Callable[[str, str, str, bool], Awaitable[None]]


class Brick(MemoryBrick):
    """Tells the holder of an internal lock that somebody waits; can crash."""

    TYPE = "test/brick"

    def __init__(self, name: str, context: Context) -> None:
        super().__init__(name, None, (), context)
        self.epoch = 0

    def crash(self) -> None:
        self.is_down = True
        self.epoch += 1
        for space in (self._locks, self._internal):
            for table in space.tables.values():
                for place in table.waiting:
                    place.granted.cancel()
        self._locks, self._internal = LockSpace(), LockSpace()
        for inode in list(self.inodes.values()):
            inode.opened = 0
            self._drop_if_gone(inode)

    def close(self, inode: Inode) -> None:
        inode.opened -= 1
        self._drop_if_gone(inode)

    def _tell_holders(self, table: LockTable, owner: tuple[str, bytes], lock: Lock, event: Contended) -> None:
        clients = {held.owner[0] for held in table.held if _conflict(owner, lock, held)}
        for parent in self.parents:
            if getattr(parent, "client", None) in clients:
                asyncio.get_running_loop().call_soon(parent.notify, event, self)

    async def inodelk(self, caller: Caller, domain: str, target: Target, command: LockCommand, lock: Lock) -> None:
        if lock.type is not LockType.UNLOCK and command is not LockCommand.TRY_QUIETLY:
            gfid = self.inode(target).iatt.gfid
            table = self._internal.table((domain, gfid))
            self._tell_holders(table, (caller.client, caller.lock_owner), lock, Contended(domain, gfid))
        await super().inodelk(caller, domain, target, command, lock)

    async def entrylk(
        self, caller: Caller, domain: str, loc: Loc, name: bytes | None, command: LockCommand, type: LockType
    ) -> None:
        if type is not LockType.UNLOCK and command is not LockCommand.TRY_QUIETLY:
            table = self._internal.table((domain, "entry", loc.gfid))
            event = Contended(domain, loc.gfid, name, is_entry=True)
            self._tell_holders(table, (caller.client, caller.lock_owner), Lock(type), event)
        await super().entrylk(caller, domain, loc, name, command, type)


class Indexed(Brick):
    """With what features/index offers, made up from the counters."""

    TYPE = "test/indexed"

    def _pending(self, is_dirty: bool) -> list[bytes]:
        return [
            gfid for gfid, inode in sorted(self.inodes.items())
            if any(k.startswith(PENDING) and any(v) and (k == DIRTY) == is_dirty for k, v in inode.xattrs.items())
        ]  # fmt: skip

    def __init__(self, name: str, context: Context) -> None:
        super().__init__(name, context)
        self._virtual = {VIRTUAL["xattrop"]: False, VIRTUAL["dirty"]: True}
        self.noted: dict[bytes, set[bytes]] = {}  # entry-changes: directory -> names

    async def getxattr(self, caller: Caller, target: Target, name: bytes | None = None) -> Xattrs:
        if name in GFID_KEYS:
            return {name: VIRTUAL[GFID_KEYS[name]]}
        if name == HEAL_COUNT:
            return {name: b"%d" % len(self._pending(False))}
        return await super().getxattr(caller, target, name)

    async def opendir(self, caller: Caller, loc: Loc, fd: Fd) -> None:
        if loc.parent == VIRTUAL["entry-changes"]:
            names = self.noted.get(gfid_from_text(loc.name.decode()))
            if not names:
                raise FopError(errno.ENOENT, self.name)
            fd.contexts[self] = sorted(names)
        elif loc.gfid not in self._virtual:
            await super().opendir(caller, loc, fd)

    async def readdir(
        self, caller: Caller, fd: Fd, *, size: int, offset: int, is_plus: bool = False, want: Want = ()
    ) -> list[Entry]:
        if isinstance(names := fd.contexts.get(self), list):
            return [Entry(name, i + 1, bytes(16), 0) for i, name in enumerate(names) if i >= offset]
        if fd.gfid not in self._virtual:
            return await super().readdir(caller, fd, size=size, offset=offset, is_plus=is_plus, want=want)
        if offset:
            return []
        found = self._pending(self._virtual[fd.gfid])
        return [Entry(gfid_text(g).encode(), i + 1, g, 0) for i, g in enumerate(found)]

    async def release(self, fd: Fd) -> None:
        if isinstance(fd.contexts.get(self), list):
            del fd.contexts[self]
        else:
            await super().release(fd)

    async def unlink(self, caller: Caller, loc: Loc) -> Looked:
        if loc.parent in self._virtual:
            return Looked(Iatt())
        return await super().unlink(caller, loc)

    async def rmdir(self, caller: Caller, loc: Loc, *, recursive: bool = False) -> Looked:
        if loc.parent == VIRTUAL["entry-changes"]:
            self.noted.pop(gfid_from_text(loc.name.decode()), None)
            return Looked(Iatt())
        return await super().rmdir(caller, loc, recursive=recursive)

    async def xattrop(self, caller: Caller, target: Target, op: XattrOp, values: Xattrs, *, want: Want = ()) -> Xattrs:
        rest = {key: value for key, value in values.items() if key not in (ENTRY_IN, ENTRY_OUT)}
        answer = await super().xattrop(caller, target, op, rest, want=want)
        names = self.noted.setdefault(target.gfid, set())
        if ENTRY_IN in values:
            names.add(values[ENTRY_IN])
        names.discard(values.get(ENTRY_OUT, b""))
        return answer


class Link(Translator):
    """One client's connection to one brick."""

    TYPE = "test/link"

    def __init__(self, client: str, brick: Brick, world: World) -> None:
        super().__init__(brick.name, Options((), {}, {}), [brick], brick.context)
        self.client = client
        self.brick = brick
        self.world = world
        self.is_cut = False
        self.is_dead = False  # the client is
        self.opened: set[Fd] = set()
        for fop in FOPS:
            setattr(self, fop, self._passing(fop))

    @property
    def is_usable(self) -> bool:
        return not (self.is_cut or self.is_dead or self.brick.is_down)

    def _passing(self, fop: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._pass(fop, args, kwargs)

        return call

    async def _pass(self, fop: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        await self.world.hook(self.client, self.name, fop, False)
        epoch = self.brick.epoch
        self._check(epoch)
        fd = next((a for a in args if isinstance(a, Fd)), None)
        is_opening = fop in ("create", "open", "opendir")
        if fd is not None and not is_opening and fd.contexts.get(self) != epoch:
            raise FopError(errno.EBADF, f"{self.name}: not open")
        if fd is not None and is_opening and fd.contexts.get(self) == epoch:
            await self.brick.release(fd)  # a new link had opened it again by itself: it gets another number
        self.brick.counts["waits"] += 1
        try:
            answer = await getattr(self.brick, fop)(*args, **kwargs)
        except asyncio.CancelledError:
            if self.brick.epoch != epoch or self.is_cut:
                raise FopError(errno.ENOTCONN, self.name) from None
            raise
        if fd is not None and is_opening:
            fd.contexts[self] = epoch
            self.opened.add(fd)
        try:
            await self.world.hook(self.client, self.name, fop, True)
            self._check(epoch)
        except BaseException:  # whoever is not told that it is open will not close it
            if fd is not None and is_opening:
                await self.release(fd)
            raise
        return answer

    def _check(self, epoch: int) -> None:
        if not self.is_usable or self.brick.epoch != epoch:
            raise FopError(errno.ENOTCONN, self.name)

    async def release(self, fd: Fd) -> None:
        self.opened.discard(fd)
        if fd.contexts.pop(self, None) == self.brick.epoch and self.is_usable:
            await self.brick.release(fd)

    def close_all(self) -> None:
        """The brick has noticed that the connection is gone."""
        for fd in self.opened:
            if fd.contexts.pop(self, None) == self.brick.epoch and (inode := fd.contexts.pop(self.brick, None)):
                self.brick.close(inode)

    def open_all(self) -> None:
        """What protocol/client does with files that are open when it is connected again."""
        for fd in list(self.opened):
            inode = self.brick.inodes.get(fd.gfid)
            if inode is None:
                self.opened.discard(fd)
            elif fd.contexts.get(self) != self.brick.epoch:
                inode.opened += 1
                fd.contexts[self.brick], fd.contexts[self] = inode, self.brick.epoch

    def forget(self, gfid: bytes) -> None:
        pass

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        """A lost connection loses the whole answer."""
        answers = await super().compound(caller, steps)
        if answers and isinstance(answers[-1], OSError) and answers[-1].errno == errno.ENOTCONN:
            raise answers[-1]
        return answers

    def notify(self, event: Event, child: Translator | None) -> None:
        if not self.is_dead and not self.is_cut:
            self.notify_parents(event)


class Client:
    """A mount: one replicate volume over links to all bricks."""

    def __init__(self, world: World, name: str, options: dict[str, str]) -> None:
        self.name = name
        self.world = world
        self.context = Context(process=name, random=random.Random(f"{world.seed}-{name}"), wall_ns=world.wall_ns)
        self.links = [Link(name, brick, world) for brick in world.bricks]
        parsed = parse_options(Replicate.OPTIONS, options)
        self.afr = Replicate("replicate", parsed, self.links, self.context)
        self.caller = Caller(client=name, lock_owner=name.encode())
        self.is_dead = False

    async def start(self) -> None:
        await self.afr.start()
        for i, link in enumerate(self.links):
            if not link.is_usable:
                self.afr.notify(ChildDown("at the start"), self.links[i])

    def die(self) -> None:
        """Like kill -9: nothing more is sent, the bricks drop its locks."""
        self.is_dead = True
        for link in self.links:
            link.is_dead = True
            if not link.brick.is_down:
                link.brick.drop_client(self.name)
                link.close_all()
        for task in list(self.context.tasks):
            task.cancel()

    async def stop(self) -> None:
        await self.afr.stop()


async def _no_fault(client: str, brick: str, fop: str, is_done: bool) -> None:
    await asyncio.sleep(0)


class World:
    def __init__(self, bricks: int, *, seed: int = 0, options: dict[str, str] | None = None) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.options = options or {}
        self.hook: Hook = _no_fault
        self._ticks = 0
        context = Context(process="bricks", wall_ns=self.wall_ns)
        self.bricks: list[Brick] = [Indexed(f"brick{i}", context) for i in range(bricks)]
        self.clients: list[Client] = []

    def wall_ns(self) -> int:
        self._ticks += 1000
        return 1_600_000_000_000_000_000 + self._ticks

    async def client(self, name: str = "", **options: str) -> Client:
        given = self.options | {key.replace("_", "-"): value for key, value in options.items()}
        client = Client(self, name or f"client{len(self.clients)}", given)
        self.clients.append(client)
        await client.start()
        return client

    def _links(self, index: int) -> list[tuple[Client, Link]]:
        return [(c, c.links[index]) for c in self.clients if not c.is_dead]

    def crash(self, index: int) -> None:
        if self.bricks[index].is_down:
            return
        self.bricks[index].crash()
        for client, link in self._links(index):
            client.afr.notify(ChildDown("crashed"), link)

    def come_back(self, index: int) -> None:
        if not self.bricks[index].is_down:
            return
        self.bricks[index].is_down = False
        for client, link in self._links(index):
            if not link.is_cut:
                link.open_all()
                client.afr.notify(ChildUp(), link)

    def cut(self, client: Client, index: int) -> None:
        """The link alone; the brick drops the client's locks and files."""
        link = client.links[index]
        if link.is_cut:
            return
        link.is_cut = True
        self.bricks[index].drop_client(client.name)
        link.close_all()
        client.afr.notify(ChildDown("cut"), link)

    def join(self, client: Client, index: int) -> None:
        link = client.links[index]
        link.is_cut = False
        if link.is_usable:
            link.open_all()
            client.afr.notify(ChildUp(), link)

    # ---- what is stored ----

    def opened(self) -> dict[str, int]:
        """How often files and directories are open: "brick gfid" -> count."""
        return {f"{brick.name} {gfid.hex()[-6:]}": inode.opened
                for brick in self.bricks for gfid, inode in brick.inodes.items() if inode.opened}  # fmt: skip

    def pending(self) -> dict[str, tuple[int, ...]]:
        """All counters that are not zero: "brick gfid key" -> counts."""
        found = {}
        for brick in self.bricks:
            for gfid, inode in brick.inodes.items():
                for key, value in inode.xattrs.items():
                    if key.startswith(PENDING) and any(value):
                        where = f"{brick.name} {gfid.hex()[-6:]} {key.decode()}"
                        found[where] = struct.unpack(">3i", value)
        return found

    def named(self, parent: bytes, name: bytes) -> set[bytes]:
        """What any brick has there."""
        places = [brick.inodes[parent].entries for brick in self.bricks if parent in brick.inodes]
        return {entries[name][1] for entries in places if name in entries}

    def tree(self, index: int) -> dict[bytes, Any]:
        """Path -> what is there, without times."""
        brick = self.bricks[index]
        found: dict[bytes, Any] = {}

        def walk(path: bytes, inode: Inode) -> None:
            users = {k: v for k, v in inode.xattrs.items() if not k.startswith(b"trusted.")}
            about = (inode.iatt.gfid, inode.iatt.mode, inode.iatt.uid, inode.iatt.gid, inode.iatt.rdev, users)
            is_file = inode.iatt.is_regular
            found[path or b"/"] = (*about, bytes(inode.data) if is_file else b"", inode.link_target)
            for name, (_, gfid) in inode.entries.items():
                if not (path == b"" and name.startswith(b".glusterfs")):
                    walk(path + b"/" + name, brick.inodes[gfid])

        walk(b"", brick.inodes[bytes(15) + b"\x01"])
        return found


__all__ = ["Brick", "Client", "Link", "World"]
