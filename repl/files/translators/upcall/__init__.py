# SPDX-License-Identifier: Apache-2.0
"""features/upcall: tells clients what others have changed, so that caches agree.

Inputs: all operations, with the name of the client they come from.  Outputs: ``Invalidated``, addressed to the clients
that know the inode and did not make the change.  It never carries attributes: who wants to know asks again, and is
remembered again; so an inode that one client writes and nobody else reads costs one event, not one a write.  A client
stays remembered for the names of a directory, because it may know many of them, unless it says that it keeps none
(``ONCE``: the heal daemon, which looks at every directory in which somebody works).

What is remembered is bounded; what no longer fits is told as changed.  An answer that was on its way while the inode
changed is followed by an event, so that nobody keeps what is old.
differs: Gluster's cache-invalidation is off by default and forgets after a time; here it is on and forgets nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from repl.files.events import Invalidated
from repl.files.options import Kind, Option, Options
from repl.files.translator import Context, Step, Translator
from repl.files.values import (
    NO_GFID,
    ONCE,
    Caller,
    Changed,
    Entry,
    Fd,
    Loc,
    Looked,
    Read,
    SetAttr,
    Target,
    Want,
    Xattrs,
)
from repl.limits import UPCALL_CLIENTS_MAX, UPCALL_INODES_MAX, UPCALL_RECENT_MAX


class Upcall(Translator):
    TYPE = "features/upcall"
    OPTIONS = (
        Option("cache-invalidation", Kind.BOOL, True, "Tell clients what others have changed."),
        Option("cache-invalidation-timeout", Kind.TIME, 60.0, "Accepted; what a client knows is not forgotten.",
               minimum=0),
    )  # fmt: skip

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self._known: OrderedDict[bytes, set[str]] = OrderedDict()  # inode -> clients, least recently used first
        self._is_on: bool = options["cache-invalidation"]
        self._changes = 0  # so many changes so far
        self._recent: OrderedDict[bytes, int] = OrderedDict()  # inode -> number of its last change
        self._recent_since = 0  # changes up to this number may be missing in _recent
        self.told = 0

    def reconfigure(self, options: Options) -> None:
        super().reconfigure(options)
        self._is_on = options["cache-invalidation"]

    def take_over(self, before: Translator) -> None:
        if isinstance(before, Upcall):
            self._known = before._known

    def client_gone(self, client: str) -> None:
        for gfid, clients in list(self._known.items()):
            clients.discard(client)
            if not clients:
                del self._known[gfid]
        super().client_gone(client)

    def state(self) -> dict[str, object]:
        return {"inodes": len(self._known), "changes": self._changes, "told": self.told}

    # ---- who knows what ----

    def _learn(self, caller: Caller, gfid: bytes, since: int) -> None:
        """The caller knows the inode.  ``since``: number of changes when it asked."""
        client = caller.client
        if not client or not self._is_on:
            return
        known = self._known
        clients = known.get(gfid)
        if clients is None:
            known[gfid] = {client}
            if len(known) > UPCALL_INODES_MAX:
                old, old_clients = known.popitem(last=False)
                self._tell(Invalidated(old, is_data=True, clients=tuple(old_clients)))
        else:
            known.move_to_end(gfid)
            if client not in clients:
                if len(clients) >= UPCALL_CLIENTS_MAX:
                    other = clients.pop()
                    self._tell(Invalidated(gfid, is_data=True, clients=(other,)))
                clients.add(client)
        if self._changes != since and self._has_changed(gfid, since):
            # The answer may be older than the change: told again, behind the answer.
            event = Invalidated(gfid, is_data=True, clients=(client,))
            asyncio.get_running_loop().call_soon(self._tell, event)

    def _has_changed(self, gfid: bytes, since: int) -> bool:
        return self._recent.get(gfid, self._recent_since) > since

    def _change(
        self, caller: Caller, gfid: bytes, *, names: tuple[bytes, ...] = (), is_data: bool = False,
        is_gone: bool = False,
    ) -> None:  # fmt: skip
        self._changes += 1
        recent = self._recent
        recent[gfid] = self._changes
        recent.move_to_end(gfid)
        if len(recent) > UPCALL_RECENT_MAX:
            self._recent_since = recent.popitem(last=False)[1]
        clients = self._known.get(gfid)
        if not clients or len(clients) == 1 and caller.client in clients:
            if is_gone:  # nobody else can get to it any more
                self._known.pop(gfid, None)
            return
        others = tuple(client for client in clients if client != caller.client)
        keep_no_names = [client for client in others if client.startswith(ONCE)]
        clients.difference_update(keep_no_names if names else others)
        self._tell(Invalidated(gfid, names=names, is_data=is_data, is_gone=is_gone, clients=others))

    def _tell(self, event: Invalidated) -> None:
        if self._is_on:
            self.told += 1
            self.notify_parents(event)

    def _is_shared(self, gfid: bytes) -> bool:
        return bool(self._known.get(gfid))

    # ---- those that look ----

    async def lookup(self, caller: Caller, loc: Loc, *, want: Want = ()) -> Looked:
        since = self._changes
        if loc.name:
            # Known before it is asked, found or not: the absence of a name is knowledge, too.
            self._learn(caller, loc.parent, since)
        looked = await self.child.lookup(caller, loc, want=want)
        self._learn(caller, looked.iatt.gfid, since)
        if loc.name and self._changes != since:
            self._learn(caller, loc.parent, since)
        return looked

    async def stat(self, caller: Caller, target: Target, *, want: Want = ()) -> Looked:
        since = self._changes
        looked = await self.child.stat(caller, target, want=want)
        self._learn(caller, looked.iatt.gfid, since)
        return looked

    async def readlink(self, caller: Caller, loc: Loc) -> bytes:
        since = self._changes
        target = await self.child.readlink(caller, loc)
        self._learn(caller, loc.gfid, since)
        return target

    async def getxattr(self, caller: Caller, target: Target, name: bytes | None = None) -> Xattrs:
        since = self._changes
        try:
            return await self.child.getxattr(caller, target, name)
        finally:
            self._learn(caller, target.gfid, since)

    async def open(self, caller: Caller, loc: Loc, fd: Fd, *, flags: int) -> None:
        since = self._changes
        await self.child.open(caller, loc, fd, flags=flags)
        if flags & os.O_TRUNC:
            self._change(caller, loc.gfid, is_data=True)
        self._learn(caller, loc.gfid, since if not flags & os.O_TRUNC else self._changes)

    async def readv(self, caller: Caller, fd: Fd, *, size: int, offset: int) -> Read:
        since = self._changes
        read = await self.child.readv(caller, fd, size=size, offset=offset)
        self._learn(caller, fd.gfid, since)
        return read

    async def readdir(
        self, caller: Caller, fd: Fd, *, size: int, offset: int, is_plus: bool = False, want: Want = ()
    ) -> list[Entry]:
        since = self._changes
        entries = await self.child.readdir(caller, fd, size=size, offset=offset, is_plus=is_plus, want=want)
        self._learn(caller, fd.gfid, since)
        if is_plus:
            for entry in entries:
                self._learn(caller, entry.gfid, since)
        return entries

    # ---- those that make, move and remove names ----

    def _made(self, caller: Caller, loc: Loc, looked: Looked) -> Looked:
        self._change(caller, loc.parent, names=(loc.name,))
        self._learn(caller, looked.iatt.gfid, self._changes)
        self._learn(caller, loc.parent, self._changes)
        return looked

    async def create(
        self, caller: Caller, loc: Loc, fd: Fd, *, flags: int, mode: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        looked = await self.child.create(caller, loc, fd, flags=flags, mode=mode, gfid=gfid, extra=extra)
        if looked.iatt.gfid != gfid and flags & os.O_TRUNC:  # it was there and has been opened
            self._change(caller, looked.iatt.gfid, is_data=True)
        return self._made(caller, loc, looked)

    async def mknod(
        self, caller: Caller, loc: Loc, *, mode: int, rdev: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        looked = await self.child.mknod(caller, loc, mode=mode, rdev=rdev, gfid=gfid, extra=extra)
        return self._made(caller, loc, looked)

    async def mkdir(self, caller: Caller, loc: Loc, *, mode: int, gfid: bytes, extra: Xattrs | None = None) -> Looked:
        return self._made(caller, loc, await self.child.mkdir(caller, loc, mode=mode, gfid=gfid, extra=extra))

    async def symlink(
        self, caller: Caller, loc: Loc, *, target: bytes, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        return self._made(caller, loc, await self.child.symlink(caller, loc, target=target, gfid=gfid, extra=extra))

    async def link(self, caller: Caller, source: Loc, loc: Loc) -> Looked:
        looked = await self.child.link(caller, source, loc)
        self._change(caller, looked.iatt.gfid)
        return self._made(caller, loc, looked)

    def _removed(self, caller: Caller, loc: Loc, looked: Looked) -> Looked:
        self._change(caller, loc.parent, names=(loc.name,))
        self._change(caller, looked.iatt.gfid, is_gone=looked.iatt.nlink == 0)
        return looked

    async def unlink(self, caller: Caller, loc: Loc) -> Looked:
        return self._removed(caller, loc, await self.child.unlink(caller, loc))

    async def rmdir(self, caller: Caller, loc: Loc, *, recursive: bool = False) -> Looked:
        return self._removed(caller, loc, await self.child.rmdir(caller, loc, recursive=recursive))

    async def rename(self, caller: Caller, source: Loc, target: Loc, *, flags: int = 0) -> Looked:
        replaced = await self._find_replaced(caller, target)
        looked = await self.child.rename(caller, source, target, flags=flags)
        self._change(caller, source.parent, names=(source.name,))
        self._change(caller, target.parent, names=(target.name,))
        self._change(caller, looked.iatt.gfid)
        if replaced not in (NO_GFID, looked.iatt.gfid):
            self._change(caller, replaced)
        return looked

    async def _find_replaced(self, caller: Caller, target: Loc) -> bytes:
        """What a rename is going to replace, if somebody else may know it."""
        clients = self._known.get(target.parent, set())
        if not clients - {caller.client}:
            return NO_GFID
        try:
            return (await self.child.lookup(caller, Loc(parent=target.parent, name=target.name))).iatt.gfid
        except OSError:
            return NO_GFID

    # ---- those that change an inode ----

    async def setattr(self, caller: Caller, target: Target, attributes: SetAttr) -> Changed:
        changed = await self.child.setattr(caller, target, attributes)
        self._change(caller, target.gfid)
        return changed

    async def setxattr(self, caller: Caller, target: Target, values: Xattrs, *, flags: int = 0) -> None:
        await self.child.setxattr(caller, target, values, flags=flags)
        self._change(caller, target.gfid)

    async def removexattr(self, caller: Caller, target: Target, name: bytes) -> None:
        await self.child.removexattr(caller, target, name)
        self._change(caller, target.gfid)

    async def writev(
        self, caller: Caller, fd: Fd, data: bytes | bytearray | memoryview, *, offset: int, flags: int = 0
    ) -> Changed:
        try:
            return await self.child.writev(caller, fd, data, offset=offset, flags=flags)
        finally:  # a failure may have changed a part
            self._change(caller, fd.gfid, is_data=True)

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        """Several writes of one file are one change; several lookups by identity are carried out together."""
        if len(steps) > 1 and all(step.fop == "lookup" and not step.args[0].name for step in steps):
            since = self._changes
            answers = await self.child.compound(caller, steps)
            for looked in answers:
                if not isinstance(looked, OSError):
                    self._learn(caller, looked.iatt.gfid, since)
            return answers
        if len(steps) > 1 and all(step.fop == "writev" and step.args[0] is steps[0].args[0] for step in steps):
            try:
                return await self.child.compound(caller, steps)
            finally:
                self._change(caller, steps[0].args[0].gfid, is_data=True)
        return await super().compound(caller, steps)

    async def truncate(self, caller: Caller, target: Target, size: int) -> Changed:
        try:
            return await self.child.truncate(caller, target, size)
        finally:  # a failure may have changed a part
            self._change(caller, target.gfid, is_data=True)

    async def fallocate(self, caller: Caller, fd: Fd, *, mode: int, offset: int, length: int) -> Changed:
        try:
            return await self.child.fallocate(caller, fd, mode=mode, offset=offset, length=length)
        finally:  # a failure may have changed a part
            self._change(caller, fd.gfid, is_data=True)
