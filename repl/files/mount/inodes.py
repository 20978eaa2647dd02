# SPDX-License-Identifier: Apache-2.0
"""What the kernel knows of us: inodes by number and by gfid, and open files by handle.

An inode lives as long as the kernel remembers it (lookup counts against forgets).  Numbers are never used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from repl.files.mount.wire import ROOT_ID
from repl.files.values import ROOT, ROOT_GFID, Entry, Fd, Iatt, Loc, Lock


@dataclass(slots=True, eq=False)
class Handle:
    """An open file or directory of the kernel's.  As a context manager: its descriptor is lent to a request for the
    inode, and is not released before that is through, although whoever has opened it closes it."""

    number: int
    inode: Inode
    fd: Fd
    leftover: list[Entry] = field(default_factory=list)  # of a listing, not told yet
    leftover_at: int = -1  # the offset they follow
    leftover_time: float = 0.0
    borrowers: int = 0
    _is_back: asyncio.Event | None = None  # somebody waits for the last borrower

    def __enter__(self) -> Fd:
        self.borrowers += 1
        return self.fd

    def __exit__(self, *_: object) -> None:
        self.borrowers -= 1
        if not self.borrowers and self._is_back is not None:
            self._is_back.set()

    async def returned(self) -> None:
        """Once it is closed nobody borrows it any more."""
        if self.borrowers:
            self._is_back = asyncio.Event()
            await self._is_back.wait()


@dataclass(slots=True, eq=False)
class Inode:
    """One inode of the kernel's.  ``parent`` and ``name`` are where it was seen last."""

    nodeid: int
    gfid: bytes
    loc: Loc
    lookups: int = 0
    parent: int = 0
    name: bytes = b""
    handles: list[Handle] = field(default_factory=list)
    locks: list[tuple[bytes, Lock]] = field(default_factory=list)  # (owner, lock) that this mount holds
    seen: tuple[int, int, int] = (-1, -1, -1)  # size, mtime, ctime as the kernel was told last
    stored: tuple[int, int, int] = (-1, -1, -1)  # the same when its contents were stored in the kernel's cache
    has_no_capability: bool = False  # just created here: there cannot be a security.capability
    directory: Iatt | None = None  # a directory's attributes as the last change in it left them
    directory_until: float = 0.0
    default_acl_until: float = 0.0
    has_default_acl: bool = False

    def target(self) -> AbstractContextManager[Loc | Fd]:
        """How to reach it now: an open descriptor works even after the last name is gone."""
        return self.handles[0] if self.handles else nullcontext(self.loc)

    def note(self, iatt: Iatt) -> bool:
        """The kernel is told these attributes; True if they are new to it."""
        seen = (iatt.size, iatt.mtime_ns, iatt.ctime_ns)
        changed, self.seen = seen != self.seen, seen
        return changed


class InodeTable:
    def __init__(self) -> None:
        root = Inode(ROOT_ID, ROOT_GFID, ROOT, lookups=1)
        self._by_id: dict[int, Inode] = {ROOT_ID: root}
        self._by_gfid: dict[bytes, Inode] = {ROOT_GFID: root}
        self._last_id = ROOT_ID
        self._handles: dict[int, Handle] = {}
        self._last_handle = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __getitem__(self, nodeid: int) -> Inode:
        """KeyError: the kernel names an inode that it forgot."""
        return self._by_id[nodeid]

    def find(self, gfid: bytes) -> Inode | None:
        return self._by_gfid.get(gfid)

    def remember(self, iatt: Iatt, parent: int = 0, name: bytes = b"") -> Inode:
        """The kernel is about to be told of it: one lookup more."""
        inode = self._by_gfid.get(iatt.gfid)
        if inode is None:
            self._last_id += 1
            inode = Inode(self._last_id, iatt.gfid, Loc(gfid=iatt.gfid))
            self._by_id[inode.nodeid] = inode
            self._by_gfid[iatt.gfid] = inode
        inode.lookups += 1
        if name:
            inode.parent, inode.name = parent, name
        inode.note(iatt)
        return inode

    def forget(self, nodeid: int, count: int) -> bytes | None:
        """The kernel drops ``count`` lookups; the gfid if that was the last of them."""
        inode = self._by_id.get(nodeid)
        if inode is None or nodeid == ROOT_ID:
            return None
        inode.lookups -= count
        if inode.lookups > 0 or inode.handles:
            return None
        del self._by_id[nodeid]
        if self._by_gfid.get(inode.gfid) is inode:
            del self._by_gfid[inode.gfid]
        return inode.gfid

    def parent(self, inode: Inode) -> Inode:
        """Of a directory; itself where that is not known."""
        return self._by_id.get(inode.parent, inode)

    def path(self, inode: Inode) -> bytes:
        """Where it was seen last, from the root; b"" if that is not known."""
        parts: list[bytes] = []
        while inode.nodeid != ROOT_ID:
            parent = self._by_id.get(inode.parent)
            if parent is None or not inode.name or len(parts) > 255:
                return b""
            parts.append(inode.name)
            inode = parent
        return b"/" + b"/".join(reversed(parts))

    # ---- open files ----

    def open(self, inode: Inode, fd: Fd) -> Handle:
        self._last_handle += 1
        handle = Handle(self._last_handle, inode, fd)
        self._handles[handle.number] = handle
        inode.handles.append(handle)
        return handle

    def handle(self, number: int) -> Handle:
        """KeyError: no such handle."""
        return self._handles[number]

    def close(self, number: int) -> Handle:
        handle = self._handles.pop(number)
        handle.inode.handles.remove(handle)
        return handle

    def handles(self) -> Iterator[Handle]:
        return iter(list(self._handles.values()))

    def inodes(self) -> Iterator[Inode]:
        return iter(list(self._by_id.values()))
