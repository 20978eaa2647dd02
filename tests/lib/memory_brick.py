# SPDX-License-Identifier: Apache-2.0
"""A brick in memory: every file operation with the answers of a real one, for tests of what stands above.

Inputs: operations as a translator takes them; ``extra`` and all xattrs are kept as they come.  Outputs: answers, and
``Invalidated`` to every parent of another client (a ``Port`` names its client).  Permissions are not checked: that is
the kernel's part at the mount.  Times come from a counter unless ``context.wall_ns`` tells the time.

Faults: ``is_down`` (``go_down``, ``come_up``): ENOTCONN; ``before``: awaited before each operation with its name, may
raise; ``counts``: operations by name.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from repl.files.events import ChildDown, ChildUp, Event, Invalidated
from repl.files.options import Options
from repl.files.replaced import replaced_xattrs
from repl.files.translator import FOPS, Context, Step, Translator
from repl.files.translators.posix.names import gfid2path
from repl.files.values import (
    LAST,
    NEW_LOCK,
    NO_GFID,
    ROOT_GFID,
    Caller,
    Changed,
    Entry,
    Fd,
    FopError,
    Iatt,
    Loc,
    Lock,
    LockCommand,
    LockType,
    Looked,
    Read,
    SetAttr,
    StatVfs,
    SyncKind,
    Target,
    Want,
    XattrOp,
    Xattrs,
)
from tests.lib.memory_locks import LockSpace

HIDDEN = (b"trusted.gfid", b"trusted.afr.", b"trusted.glusterfs.")
CONTENT = b"glusterfs.content"
PRECONDITION = b"glusterfs.preop."
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
NOREPLACE, EXCHANGE = 1, 2


@dataclass(slots=True, eq=False)
class Inode:
    iatt: Iatt
    data: bytearray = field(default_factory=bytearray)
    link_target: bytes = b""
    entries: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)  # name -> (cookie, gfid)
    xattrs: Xattrs = field(default_factory=dict)
    opened: int = 0


class Port(Translator):
    """Between the brick and one client: gives the client its name and its own upcalls."""

    def __init__(self, client: str, brick: MemoryBrick) -> None:
        super().__init__(f"port-{client}", Options((), {}, {}), [brick], brick.context)
        self.client = client


class MemoryBrick(Translator):
    TYPE = "test/memory"
    SUBVOLUMES = (0, 0)

    def __init__(
        self, name: str = "brick", options: Options | None = None, subvolumes: Sequence[Translator] = (),
        context: Context | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name, options or Options((), {}, {}), subvolumes, context or Context())
        self.inodes: dict[bytes, Inode] = {}
        self.is_down = False
        self.before: Callable[[str], Awaitable[None]] | None = None
        self.counts: Counter[str] = Counter()
        self._clock = 1_600_000_000_000_000_000
        self._cookie = 0
        self._locks = LockSpace()
        self._internal = LockSpace()
        root = self._new(ROOT_GFID, stat.S_IFDIR | 0o755, Caller(), None)
        root.iatt.nlink = 2
        for fop in (*FOPS, "compound"):
            setattr(self, fop, self._guarded(fop, getattr(self, fop)))

    # ---- faults ----

    def _guarded(self, fop: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            self.counts[fop] += 1
            if self.before is not None:
                await self.before(fop)
            if self.is_down:
                raise FopError(errno.ENOTCONN, self.name)
            return await method(*args, **kwargs)

        return call

    def go_down(self, reason: str = "test") -> None:
        self.is_down = True
        self.notify_parents(ChildDown(reason))

    def come_up(self) -> None:
        self.is_down = False
        self.notify_parents(ChildUp())

    def drop_client(self, client: str) -> None:
        """The client died: its locks are gone."""
        self._locks.drop_client(client)
        self._internal.drop_client(client)

    def client_gone(self, client: str) -> None:
        self.drop_client(client)

    # ---- equipment ----

    def _now(self) -> int:
        self._clock += 1000
        return self.context.wall_ns() or self._clock

    def _tell(self, caller: Caller, event: Event) -> None:
        for parent in self.parents:
            if getattr(parent, "client", None) not in (None, caller.client):
                parent.notify(event, self)

    def _changed(self, caller: Caller, inode: Inode, *, is_data: bool = False, names: tuple[bytes, ...] = ()) -> None:
        gone = inode.iatt.nlink == 0
        self._tell(caller, Invalidated(inode.iatt.gfid, _copy(inode.iatt), names, is_data=is_data, is_gone=gone))

    def _new(self, gfid: bytes, mode: int, caller: Caller, parent: Inode | None, extra: Xattrs | None = None) -> Inode:
        now = self._now()
        gid = caller.gid
        if parent is not None and parent.iatt.mode & stat.S_ISGID:
            gid = parent.iatt.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        iatt = Iatt(gfid, mode, 1, caller.uid, gid, atime_ns=now, mtime_ns=now, ctime_ns=now)
        inode = Inode(iatt, xattrs=dict(extra or {}))
        self.inodes[gfid] = inode
        return inode

    def inode(self, target: Target) -> Inode:
        if isinstance(target, Fd):
            try:
                found: Inode = target.contexts[self]
            except KeyError:
                raise FopError(errno.EBADF, f"{self.name}: not open here") from None
            return found
        if not any(target.gfid) and target.name:
            return self._child(self._directory(target.parent), target.name)
        try:
            return self.inodes[target.gfid]
        except KeyError:
            raise FopError(errno.ESTALE, f"{self.name}: no such gfid") from None

    def _directory(self, gfid: bytes) -> Inode:
        found = self.inodes.get(gfid)
        if found is None:
            raise FopError(errno.ESTALE, f"{self.name}: no such directory")
        if not found.iatt.is_directory:
            raise FopError(errno.ENOTDIR, self.name)
        return found

    def _child(self, directory: Inode, name: bytes) -> Inode:
        if name not in directory.entries:
            raise FopError(errno.ENOENT, self.name)
        return self.inodes[directory.entries[name][1]]

    def _touch(self, inode: Inode, *, data: bool = True) -> None:
        inode.iatt.ctime_ns = self._now()
        if data:
            inode.iatt.mtime_ns = inode.iatt.ctime_ns

    def _add(self, directory: Inode, name: bytes, inode: Inode) -> None:
        self._cookie += 1
        directory.entries[name] = (self._cookie, inode.iatt.gfid)
        self._touch(directory)

    def _drop_if_gone(self, inode: Inode) -> None:
        if inode.iatt.nlink == 0 and inode.opened == 0:
            self.inodes.pop(inode.iatt.gfid, None)

    def _sized(self, inode: Inode) -> None:
        inode.iatt.size = len(inode.data)
        inode.iatt.blocks = (len(inode.data) + 511) // 512

    def _wanted(self, inode: Inode, want: Want) -> Xattrs:
        found = {key: inode.xattrs[key] for key in want if key in inode.xattrs}
        if CONTENT in want and inode.iatt.is_regular:
            found[CONTENT] = bytes(inode.data)
        return found

    def _looked(self, inode: Inode, parent: Inode | None = None, want: Want = ()) -> Looked:
        return Looked(_copy(inode.iatt), _copy(parent.iatt) if parent else None, self._wanted(inode, want))

    def _renamed(self, inode: Inode, parent: Inode, replaced: Inode | None) -> Looked:
        xattrs = {} if replaced is None else replaced_xattrs(replaced.iatt.gfid, replaced.iatt.mode)
        return Looked(_copy(inode.iatt), _copy(parent.iatt), xattrs)

    def _make(self, caller: Caller, loc: Loc, gfid: bytes, mode: int, extra: Xattrs | None) -> tuple[Inode, Inode]:
        parent = self._directory(loc.parent)
        if parent.iatt.nlink == 0:
            raise FopError(errno.ENOENT, self.name)
        if len(loc.name) > 255:
            raise FopError(errno.ENAMETOOLONG, self.name)
        for key, value in (extra or {}).items():
            if key.startswith(PRECONDITION) and parent.xattrs.get(key[len(PRECONDITION) :]) != value:
                raise FopError(errno.ESTALE, self.name)
        extra = {key: value for key, value in (extra or {}).items() if not key.startswith(PRECONDITION)}
        if loc.name in parent.entries or gfid in self.inodes:
            raise FopError(errno.EEXIST, self.name)
        inode = self._new(gfid, mode, caller, parent, extra)
        self._add(parent, loc.name, inode)
        if inode.iatt.is_directory:
            parent.iatt.nlink += 1
            inode.iatt.nlink = 2
        self._changed(caller, parent, names=(loc.name,))
        return inode, parent

    # ---- names ----

    async def lookup(self, caller: Caller, loc: Loc, *, want: Want = ()) -> Looked:
        if not loc.name:
            return self._looked(self.inode(loc), None, want)
        parent = self._directory(loc.parent)
        return self._looked(self._child(parent, loc.name), parent, want)

    async def create(
        self, caller: Caller, loc: Loc, fd: Fd, *, flags: int, mode: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        parent = self._directory(loc.parent)
        if loc.name in parent.entries and not flags & os.O_EXCL:
            inode = self._child(parent, loc.name)
            if inode.iatt.is_directory:
                raise FopError(errno.EISDIR, self.name)
            if flags & os.O_TRUNC:
                self._resize(inode, 0)
        else:
            kept = {key: value for key, value in extra.items() if key != NEW_LOCK} if extra else None
            inode, parent = self._make(caller, loc, gfid, stat.S_IFREG | mode & 0o7777, kept)
        fd.gfid = inode.iatt.gfid
        self._opened(fd, inode)
        looked = self._looked(inode, parent)
        if extra and NEW_LOCK in extra and inode.iatt.gfid == gfid:
            table = self._internal.table((extra[NEW_LOCK].decode(), gfid))
            await table.lock((caller.client, caller.lock_owner), LockCommand.TRY, Lock(LockType.WRITE), counts=True)
            looked.xattrs[NEW_LOCK] = b"1"
        return looked

    async def mknod(
        self, caller: Caller, loc: Loc, *, mode: int, rdev: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        inode, parent = self._make(caller, loc, gfid, mode if stat.S_IFMT(mode) else mode | stat.S_IFREG, extra)
        inode.iatt.rdev = rdev
        return self._looked(inode, parent)

    async def mkdir(self, caller: Caller, loc: Loc, *, mode: int, gfid: bytes, extra: Xattrs | None = None) -> Looked:
        return self._looked(*self._make(caller, loc, gfid, stat.S_IFDIR | mode & 0o7777, extra))

    async def symlink(
        self, caller: Caller, loc: Loc, *, target: bytes, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        inode, parent = self._make(caller, loc, gfid, stat.S_IFLNK | 0o777, extra)
        inode.link_target = target
        inode.iatt.size = len(target)
        return self._looked(inode, parent)

    async def link(self, caller: Caller, source: Loc, loc: Loc) -> Looked:
        inode, parent = self.inode(source), self._directory(loc.parent)
        if inode.iatt.is_directory:
            raise FopError(errno.EPERM, self.name)
        if inode.iatt.nlink == 0 and not inode.opened:
            raise FopError(errno.ENOENT, self.name)
        if loc.name in parent.entries:
            raise FopError(errno.EEXIST, self.name)
        self._add(parent, loc.name, inode)
        inode.iatt.nlink += 1
        self._touch(inode, data=False)
        self._changed(caller, inode)
        self._changed(caller, parent, names=(loc.name,))
        return self._looked(inode, parent)

    async def unlink(self, caller: Caller, loc: Loc) -> Looked:
        parent = self._directory(loc.parent)
        inode = self._child(parent, loc.name)
        self._check_meant(loc, inode)
        if inode.iatt.is_directory:
            raise FopError(errno.EISDIR, self.name)
        self._remove(caller, parent, loc.name, inode)
        return self._looked(inode, parent)

    def _check_meant(self, loc: Loc, inode: Inode) -> None:
        if any(loc.gfid) and loc.gfid != inode.iatt.gfid:
            raise FopError(errno.ESTALE, self.name)

    def _remove(self, caller: Caller, parent: Inode, name: bytes, inode: Inode) -> None:
        parent.entries.pop(name)
        self._touch(parent)
        self._touch(inode, data=False)
        inode.iatt.nlink = 0 if inode.iatt.is_directory else inode.iatt.nlink - 1
        if inode.iatt.is_directory:
            parent.iatt.nlink -= 1
        self._changed(caller, inode)
        self._changed(caller, parent, names=(name,))
        self._drop_if_gone(inode)

    async def rmdir(self, caller: Caller, loc: Loc, *, recursive: bool = False) -> Looked:
        parent = self._directory(loc.parent)
        inode = self._child(parent, loc.name)
        if not inode.iatt.is_directory:
            raise FopError(errno.ENOTDIR, self.name)
        if inode.entries and not recursive:
            raise FopError(errno.ENOTEMPTY, self.name)
        for name in list(inode.entries):
            child = self._child(inode, name)
            if child.iatt.is_directory:
                await self.rmdir(caller, Loc(parent=inode.iatt.gfid, name=name), recursive=True)
            else:
                self._remove(caller, inode, name, child)
        self._remove(caller, parent, loc.name, inode)
        return self._looked(inode, parent)

    async def rename(self, caller: Caller, source: Loc, target: Loc, *, flags: int = 0) -> Looked:
        old, new = self._directory(source.parent), self._directory(target.parent)
        inode = self._child(old, source.name)
        self._check_meant(source, inode)
        there = self._child(new, target.name) if target.name in new.entries else None
        if there is not None:
            self._check_meant(target, there)
        elif target.gfid not in (NO_GFID, inode.iatt.gfid):
            raise FopError(errno.ESTALE, self.name)
        if flags & NOREPLACE and there is not None:
            raise FopError(errno.EEXIST, self.name)
        if flags & EXCHANGE:
            if there is None:
                raise FopError(errno.ENOENT, self.name)
            self._swap(old, source.name, inode, new, target.name, there)
        elif there is inode:
            return self._renamed(inode, new, there)
        else:
            self._check_inside(inode, new)
            if there is not None:
                _check_replace(inode, there)
                self._remove(caller, new, target.name, there)
            old.entries.pop(source.name)
            self._add(new, target.name, inode)
            if inode.iatt.is_directory:
                old.iatt.nlink -= 1
                new.iatt.nlink += 1
        self._touch(old)
        self._touch(new)
        self._touch(inode, data=False)
        self._changed(caller, inode)
        self._changed(caller, old, names=(source.name,))
        self._changed(caller, new, names=(target.name,))
        return self._renamed(inode, new, None if flags else there)

    def _swap(self, old: Inode, name: bytes, inode: Inode, new: Inode, other_name: bytes, other: Inode) -> None:
        old.entries[name] = (old.entries[name][0], other.iatt.gfid)
        new.entries[other_name] = (new.entries[other_name][0], inode.iatt.gfid)
        moved = inode.iatt.is_directory - other.iatt.is_directory
        old.iatt.nlink -= moved
        new.iatt.nlink += moved
        self._touch(other, data=False)

    def _check_inside(self, inode: Inode, directory: Inode) -> None:
        """A directory cannot move below itself."""
        below = [inode]
        while below:
            here = below.pop()
            if here is directory:
                raise FopError(errno.EINVAL, self.name)
            below += [self.inodes[gfid] for _, gfid in here.entries.values()]

    async def readlink(self, caller: Caller, loc: Loc) -> bytes:
        inode = self.inode(loc)
        if not stat.S_ISLNK(inode.iatt.mode):
            raise FopError(errno.EINVAL, self.name)
        return inode.link_target

    # ---- attributes ----

    async def stat(self, caller: Caller, target: Target, *, want: Want = ()) -> Looked:
        return self._looked(self.inode(target), None, want)

    async def access(self, caller: Caller, loc: Loc, mask: int) -> None:
        self.inode(loc)

    async def setattr(self, caller: Caller, target: Target, attributes: SetAttr) -> Changed:
        inode = self.inode(target)
        before = _copy(inode.iatt)
        is_marked = before.mode & 0o171000 == 0o101000 and b"trusted.glusterfs.dht.linkto" in inode.xattrs
        if attributes.mode is not None and is_marked and not caller.is_internal:
            raise FopError(errno.EBUSY, self.name)
        self._touch(inode, data=False)
        if attributes.mode is not None:
            inode.iatt.mode = inode.iatt.kind | attributes.mode & 0o7777
        for name in ("uid", "gid", "atime_ns", "mtime_ns", "ctime_ns"):
            if (value := getattr(attributes, name)) is not None:
                setattr(inode.iatt, name, value)
        self._changed(caller, inode)
        return Changed(before, _copy(inode.iatt))

    async def statfs(self, caller: Caller, loc: Loc) -> StatVfs:
        used = sum(len(inode.data) for inode in self.inodes.values())
        free = (1 << 20) - used // 4096
        return StatVfs(4096, 1 << 20, free, free, 1 << 20, (1 << 20) - len(self.inodes), (1 << 20) - len(self.inodes))

    async def getxattr(self, caller: Caller, target: Target, name: bytes | None = None) -> Xattrs:
        inode = self.inode(target)
        if name is None:
            notes = self._noted_names(inode) if caller.is_internal and not inode.iatt.is_directory else {}
            return notes | {k: v for k, v in inode.xattrs.items() if caller.is_internal or not k.startswith(HIDDEN)}
        if name == b"glusterfs.gfidtopath":
            return {name: self._path(inode)}
        if name not in inode.xattrs:
            raise FopError(errno.ENODATA, self.name)
        return {name: inode.xattrs[name]}

    def _noted_names(self, inode: Inode) -> Xattrs:
        names = [(p, n) for p, i in self.inodes.items() for n, (_, g) in i.entries.items() if g == inode.iatt.gfid]
        notes = [gfid2path(parent, name) for parent, name in names]
        return {key.encode(): value for key, value in notes}

    def _path(self, inode: Inode) -> bytes:
        """One of its paths."""
        names: list[bytes] = []
        gfid = inode.iatt.gfid
        while gfid != ROOT_GFID:
            found = ((p, n) for p in self.inodes.values() for n, (_, g) in p.entries.items() if g == gfid)
            parent, name = next(found, (None, b""))
            if parent is None:
                raise FopError(errno.ESTALE, self.name)
            names.append(name)
            gfid = parent.iatt.gfid
        return b"/" + b"/".join(reversed(names))

    async def setxattr(self, caller: Caller, target: Target, values: Xattrs, *, flags: int = 0) -> None:
        inode = self.inode(target)
        for name in values:
            if flags & os.XATTR_CREATE and name in inode.xattrs:
                raise FopError(errno.EEXIST, self.name)
            if flags & os.XATTR_REPLACE and name not in inode.xattrs:
                raise FopError(errno.ENODATA, self.name)
        inode.xattrs.update({name: bytes(value) for name, value in values.items()})
        self._touch(inode, data=False)
        self._changed(caller, inode)

    async def removexattr(self, caller: Caller, target: Target, name: bytes) -> None:
        inode = self.inode(target)
        if inode.xattrs.pop(name, None) is None:
            raise FopError(errno.ENODATA, self.name)
        self._touch(inode, data=False)
        self._changed(caller, inode)

    async def xattrop(self, caller: Caller, target: Target, op: XattrOp, values: Xattrs, *, want: Want = ()) -> Xattrs:
        inode = self.inode(target)
        size = 4 if op == XattrOp.ADD else 8
        answer = self._wanted(inode, want)
        for name, delta in values.items():
            inode.xattrs[name] = answer[name] = _added(inode.xattrs.get(name, bytes(len(delta))), delta, size)
        return answer

    # ---- open files ----

    def _opened(self, fd: Fd, inode: Inode) -> None:
        fd.contexts[self] = inode
        inode.opened += 1

    async def open(self, caller: Caller, loc: Loc, fd: Fd, *, flags: int) -> None:
        inode = self.inode(loc)
        if inode.iatt.is_directory:
            raise FopError(errno.EISDIR, self.name)
        if flags & os.O_TRUNC:
            self._resize(inode, 0)
            self._changed(caller, inode, is_data=True)
        self._opened(fd, inode)

    async def opendir(self, caller: Caller, loc: Loc, fd: Fd) -> None:
        self._opened(fd, self._directory(loc.gfid))

    async def readv(self, caller: Caller, fd: Fd, *, size: int, offset: int) -> Read:
        inode = self.inode(fd)
        return Read(bytes(inode.data[offset : offset + size]), _copy(inode.iatt))

    async def writev(
        self, caller: Caller, fd: Fd, data: bytes | bytearray | memoryview, *, offset: int, flags: int = 0
    ) -> Changed:
        inode = self.inode(fd)
        before = _copy(inode.iatt)
        if not data:
            return Changed(before, before)
        if flags & os.O_APPEND:
            offset = len(inode.data)
        if offset > len(inode.data):
            inode.data.extend(bytes(offset - len(inode.data)))
        inode.data[offset : offset + len(data)] = data
        self._sized(inode)
        self._touch(inode)
        self._changed(caller, inode, is_data=True)
        return Changed(before, _copy(inode.iatt))

    def _resize(self, inode: Inode, size: int) -> None:
        del inode.data[size:]
        inode.data.extend(bytes(size - len(inode.data)))
        self._sized(inode)
        self._touch(inode)

    async def truncate(self, caller: Caller, target: Target, size: int) -> Changed:
        inode = self.inode(target)
        before = _copy(inode.iatt)
        self._resize(inode, size)
        self._changed(caller, inode, is_data=True)
        return Changed(before, _copy(inode.iatt))

    async def fallocate(self, caller: Caller, fd: Fd, *, mode: int, offset: int, length: int) -> Changed:
        inode = self.inode(fd)
        before, end = _copy(inode.iatt), offset + length
        if not mode & KEEP_SIZE and end > len(inode.data):
            self._resize(inode, end)
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            last = min(end, len(inode.data))
            inode.data[offset:last] = bytes(max(last - offset, 0))
        self._touch(inode)
        self._changed(caller, inode, is_data=True)
        return Changed(before, _copy(inode.iatt))

    async def seek(self, caller: Caller, fd: Fd, *, offset: int, what: int) -> int:
        size = len(self.inode(fd).data)
        if offset >= size:
            raise FopError(errno.ENXIO, self.name)
        return offset if what == os.SEEK_DATA else size

    async def flush(self, caller: Caller, fd: Fd) -> None:
        self.inode(fd)

    async def fsync(self, caller: Caller, fd: Fd, kind: SyncKind = SyncKind.ALL) -> Changed:
        iatt = _copy(self.inode(fd).iatt)
        return Changed(iatt, iatt)

    async def fsyncdir(self, caller: Caller, fd: Fd, kind: SyncKind = SyncKind.ALL) -> None:
        self.inode(fd)

    async def readdir(
        self, caller: Caller, fd: Fd, *, size: int, offset: int, is_plus: bool = False, want: Want = ()
    ) -> list[Entry]:
        found: list[Entry] = []
        for name, (cookie, gfid) in sorted(self.inode(fd).entries.items(), key=lambda item: item[1][0]):
            if cookie <= offset:
                continue
            size -= 24 + len(name)
            if size < 0 and found:
                break
            inode = self.inodes[gfid]
            iatt = _copy(inode.iatt) if is_plus else None
            found.append(Entry(name, cookie, gfid, inode.iatt.kind, iatt, self._wanted(inode, want)))
        else:
            if found and LAST in want:
                found[-1].xattrs = {**found[-1].xattrs, LAST: b""}
        return found

    async def rchecksum(self, caller: Caller, fd: Fd, *, offset: int, length: int) -> bytes:
        part = self.inode(fd).data[offset : offset + length]
        return hashlib.sha256(part).digest() if len(part) == length else b""

    async def release(self, fd: Fd) -> None:
        inode = fd.contexts.pop(self, None)
        if inode is not None:
            inode.opened -= 1
            self._drop_if_gone(inode)

    def forget(self, gfid: bytes) -> None:
        """Nothing is cached."""

    # ---- locks ----

    async def lk(self, caller: Caller, fd: Fd, command: LockCommand, lock: Lock) -> Lock:
        table = self._locks.table(self.inode(fd).iatt.gfid)
        return await table.lock((caller.client, caller.lock_owner), command, lock)

    async def inodelk(self, caller: Caller, domain: str, target: Target, command: LockCommand, lock: Lock) -> None:
        gfid = target.gfid if lock.type is LockType.UNLOCK else self.inode(target).iatt.gfid
        table = self._internal.table((domain, gfid))
        await table.lock((caller.client, caller.lock_owner), command, lock, counts=True)

    async def entrylk(
        self, caller: Caller, domain: str, loc: Loc, name: bytes | None, command: LockCommand, type: LockType
    ) -> None:
        # A name is a range of one byte, all names are the whole range.
        first = 0 if name is None else int.from_bytes(hashlib.sha256(name).digest()[:7], "big")
        lock = Lock(type) if name is None else Lock(type, first, first)
        gfid = loc.gfid if type is LockType.UNLOCK else self.inode(loc).iatt.gfid
        table = self._internal.table((domain, "entry", gfid))
        await table.lock((caller.client, caller.lock_owner), command, lock, counts=True)

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        return await super().compound(caller, steps)


def _copy(iatt: Iatt) -> Iatt:
    return Iatt(
        iatt.gfid, iatt.mode, iatt.nlink, iatt.uid, iatt.gid, iatt.rdev, iatt.size, iatt.blocks, iatt.block_size,
        iatt.atime_ns, iatt.mtime_ns, iatt.ctime_ns,
    )  # fmt: skip


def _check_replace(inode: Inode, there: Inode) -> None:
    if there.iatt.is_directory and not inode.iatt.is_directory:
        raise FopError(errno.EISDIR)
    if inode.iatt.is_directory and not there.iatt.is_directory:
        raise FopError(errno.ENOTDIR)
    if there.entries:
        raise FopError(errno.ENOTEMPTY)


def _added(value: bytes, delta: bytes, size: int) -> bytes:
    value = value.ljust(len(delta), b"\0")
    words = []
    for at in range(0, len(value), size):
        total = int.from_bytes(value[at : at + size], "big") + int.from_bytes(
            delta[at : at + size].ljust(size, b"\0"), "big"
        )
        words.append((total % (1 << 8 * size)).to_bytes(size, "big"))
    return b"".join(words)


async def pause() -> None:
    """Let every other task go first, for ``before``."""
    await asyncio.sleep(0)
