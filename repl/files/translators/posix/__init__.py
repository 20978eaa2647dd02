# SPDX-License-Identifier: Apache-2.0
"""storage/posix: the bottom of a brick's graph, a directory of a local file system in Gluster's format.

Inputs: file operations; outputs: answers, ``ChildUp`` when it serves, ``ChildDown`` when its disk has failed.
Operations run as the brick's user; what is made belongs to the caller.  Permissions are the kernel's matter at the
mount (default_permissions); ``access`` answers for access control lists.
Errors: ``FopError`` with the kernel's number; ENOTCONN after the health check has failed.
How names, handles and crashes go together: brick.py; where things run: lane.py.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple

from repl.files.events import ChildDown, ChildUp
from repl.files.options import Options
from repl.files.translator import Context, Step, Translator
from repl.files.translators.posix import attributes, files, health, janitor, readdir, setup, xattrs
from repl.files.translators.posix.aio import Aio
from repl.files.translators.posix.brick import Brick, Node
from repl.files.translators.posix.creation import Maker, Masks
from repl.files.translators.posix.files import OpenFile, OpenFiles
from repl.files.translators.posix.known import KnownXattrs
from repl.files.translators.posix.lane import Lane
from repl.files.translators.posix.options import OPTIONS
from repl.files.translators.posix.remembering import Remembering
from repl.files.translators.posix.removal import Remover
from repl.files.translators.posix.space import Space
from repl.files.values import (
    Caller,
    Changed,
    End,
    Entry,
    Fd,
    FopError,
    Loc,
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
from repl.limits import (
    POSIX_ALLOCATE_INLINE_BYTES,
    POSIX_CACHE_DROP_S,
    POSIX_INLINE_BYTES_MAX,
    POSIX_LINGER_S,
    POSIX_LINGERING_MAX,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_ALONE = OSError(errno.ENOSYS, "not asynchronously")
_LOOKUPS_AT_ONCE = 16  # others get their turn in between
_BLOCK = 4096  # the least that a new object takes from the disk


class Posix(Translator):
    TYPE = "storage/posix"
    OPTIONS = OPTIONS
    SUBVOLUMES = (0, 0)

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self._brick: Brick
        self._lane: Lane
        self._files: OpenFiles
        self._remembering: Remembering
        self._maker: Maker
        self._remover: Remover
        self._space: Space
        self._lingering: set[bytes] = set()
        self._loop: asyncio.AbstractEventLoop
        self._lock_fd = -1
        self._inherited_lock_fds: list[int] = []  # of graphs that this one has replaced
        self._failed = ""
        self._has_started = False
        self._garbage = False

    # ---- life ----

    async def start(self) -> None:
        _raise_descriptor_limit()
        os.umask(0)  # clients apply theirs; the brick must not apply its own as well
        self._brick = setup.open_brick(self.options["directory"], self.options["volume-id"],
                                       keeps_names=self.options["gfid2path"])  # fmt: skip
        try:
            self._lock_fd = setup.lock_brick(self._brick)
            self._brick.unlinked = setup.recover(self._brick)
        except BaseException:
            self._brick.close()
            raise
        self._brick.known = KnownXattrs(self.context.wall_ns)
        self._loop = asyncio.get_running_loop()
        self._lane = Lane(self.context.wall_ns, self.name)
        self._remembering = Remembering(
            self._brick, self._lane, lambda work: self.context.spawn(work, f"{self.name}: attributes")
        )
        self._files = OpenFiles(self._brick, self._last_closed)
        self._maker = Maker(self._brick, Masks())
        self._remover = Remover(self._brick, self._files.is_open, lambda fd: self._lane.close_later(os.close, fd),
                                self._linger)  # fmt: skip
        self._space = Space(self._brick.root, self.context.now)
        self._apply(self.options)
        self._has_started = True
        self._garbage = True  # perhaps, from last time
        self.context.spawn(self._clean(set(self._brick.unlinked)), f"{self.name}: janitor")
        if self.options["health-check-interval"]:
            self.context.spawn(self._watch(), f"{self.name}: health check")
        self.notify_parents(ChildUp())

    def _apply(self, options: Options) -> None:
        self._maker.masks = Masks(options["create-mask"], options["create-directory-mask"],
                                  options["force-create-mode"], options["force-directory-mode"],
                                  options["max-hardlinks"])  # fmt: skip
        self._remover.defer_all = options["background-unlink"]
        self._brick.keeps_names = options["gfid2path"]
        self._space.reserve = options["reserve"]
        self._space.bricks = options["shared-brick-count"]
        self._space.is_told = options["export-statfs-size"]
        uid, gid = options["brick-uid"], options["brick-gid"]
        if uid >= 0 or gid >= 0:
            os.chown(self._brick.root, uid, gid)

    def reconfigure(self, options: Options) -> None:
        super().reconfigure(options)
        if self._has_started:
            self._apply(options)

    async def stop(self) -> None:
        if not self._has_started:
            return
        self._has_started = False
        self._failed = self._failed or "the brick is stopped"
        self._lane.close()
        self._files.close_all()
        self._brick.close()
        for fd in (self._lock_fd, *self._inherited_lock_fds):
            if fd >= 0:
                os.close(fd)

    def take_over(self, before: Translator) -> None:
        """Closing any descriptor of the lock's file would free the lock of the process: it goes on with the brick."""
        assert isinstance(before, Posix)
        self._inherited_lock_fds += [before._lock_fd, *before._inherited_lock_fds]
        before._lock_fd, before._inherited_lock_fds = -1, []

    async def _watch(self) -> None:
        await health.watch(
            self._brick, self._lane, interval=self.options["health-check-interval"],
            timeout=self.options["health-check-timeout"], wall_ns=self.context.wall_ns, failed=self._disk_failed,
        )  # fmt: skip

    def _disk_failed(self, reason: str) -> None:
        log.error("brick %s: %s; it is taken out of service", self._brick.path, reason)
        self._failed = reason
        self.notify_parents(ChildDown(reason))

    async def _clean(self, waiting: set[bytes]) -> None:
        """Empties the landfill now and then.  ``waiting``: files without a name that a crash left; after one round
        those that no client has opened again go."""
        while True:
            await asyncio.sleep(self.options["janitor-sleep-duration"])
            for gfid in waiting:
                if not self._files.is_open(gfid):
                    await self._lane.run(self._remover.released, gfid)
            waiting.clear()
            if self._garbage:
                self._garbage = False
                steps = janitor.clean(self._brick, self._files.is_open)
                while await self._lane.run(janitor.some, steps):
                    await asyncio.sleep(0)

    def _linger(self, gfid: bytes) -> bool:
        """May be called in a thread."""
        if len(self._lingering) >= POSIX_LINGERING_MAX:
            return False
        self._lingering.add(gfid)
        self._loop.call_soon_threadsafe(self._loop.call_later, POSIX_LINGER_S, self._end_lingering, gfid)
        return True

    def _end_lingering(self, gfid: bytes) -> None:
        self._lingering.discard(gfid)
        if self._has_started and gfid in self._brick.unlinked and not self._files.is_open(gfid):
            self.context.spawn(self._lane.run(self._remover.released, gfid), f"{self.name}: a file that was replaced")

    def state(self) -> dict[str, object]:
        return {
            "directory": self.options["directory"],
            "failed": self._failed,
            "open files": len(self._files) if self._has_started else 0,
            "unlinked open files": len(self._brick.unlinked) if self._has_started else 0,
            "slow": self._lane.is_slow if self._has_started else False,
            "slow calls": self._lane.slow_calls if self._has_started else 0,
        }

    # ---- how calls run ----

    async def _run(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        if self._failed:
            raise FopError(errno.ENOTCONN, f"{self.name}: {self._failed}")
        self._brick.trim()
        try:
            return await self._lane.run(call, *args)
        except FopError:
            raise
        except OSError as error:
            raise FopError(error.errno or errno.EIO, f"{self.name}: {call.__name__}") from error

    async def _run_on(self, opened: OpenFile, call: Callable[[*Ts], T], *args: *Ts) -> T:
        """In a thread, with the descriptor held open meanwhile."""
        if self._failed:
            raise FopError(errno.ENOTCONN, f"{self.name}: {self._failed}")
        opened.users += 1
        try:
            return await self._lane.data(call, *args)
        except OSError as error:
            raise FopError(error.errno or errno.EIO, f"{self.name}: {call.__name__}") from error
        finally:
            self._used(opened)

    def _opened(self, fd: Fd) -> OpenFile:
        opened: OpenFile | None = fd.contexts.get(self)
        if opened is None:
            raise FopError(errno.EBADF, f"{self.name}: {fd} is not open here")
        if opened.is_released:
            raise FopError(errno.EBADF, f"{self.name}: {fd} is closed")
        return opened

    def _node(self, target: Target) -> Node:
        if isinstance(target, Fd):
            opened = self._opened(target)
            return Node(opened.gfid, os.fstat(opened.fd), opened.fd, "")
        return self._brick.at(target)

    # ---- names ----

    async def lookup(self, caller: Caller, loc: Loc, *, want: Want = ()) -> Looked:
        if caller.is_internal:  # heals keep what lost its name in a place that nobody else sees
            return await self._run(self._lookup_all, loc, want)
        return await self._run(attributes.lookup, self._brick, loc, want)

    def _lookup_all(self, loc: Loc, want: Want) -> Looked:
        return attributes.lookup(self._brick, loc, want, is_internal=True)

    async def _lookup_several(self, steps: Sequence[Step]) -> list[Any]:
        answers: list[Any] = []
        for at in range(0, len(steps), _LOOKUPS_AT_ONCE):
            answers += await self._run(self._lookup_some, steps[at : at + _LOOKUPS_AT_ONCE])
            if isinstance(answers[-1], OSError):
                break
        return answers

    def _lookup_some(self, steps: Sequence[Step]) -> list[Any]:
        answers: list[Any] = []
        try:
            for step in steps:
                answers.append(attributes.lookup(self._brick, step.args[0], step.kwargs.get("want", ())))
        except FopError as error:
            answers.append(error)
        except OSError as error:
            answers.append(FopError(error.errno or errno.EIO, f"{self.name}: lookup"))
        return answers

    async def create(
        self, caller: Caller, loc: Loc, fd: Fd, *, flags: int, mode: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        self._space.need(caller, _BLOCK)
        return await self._run(self._create, caller, loc, fd, flags, mode, gfid, extra)

    def _create(
        self, caller: Caller, loc: Loc, fd: Fd, flags: int, mode: int, gfid: bytes, extra: Xattrs | None
    ) -> Looked:
        try:
            number, looked = self._maker.create(caller, loc, mode, gfid, extra)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            looked = attributes.lookup(self._brick, loc, ())
            fd.contexts[self] = opened = self._open(looked.iatt.gfid, flags)
            looked.iatt = files.iatt(opened)
        else:
            fd.contexts[self] = self._files.add(gfid, number, is_writable=True)
        fd.gfid = looked.iatt.gfid
        return looked

    async def mknod(
        self, caller: Caller, loc: Loc, *, mode: int, rdev: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        self._space.need(caller, _BLOCK)
        return await self._run(self._maker.mknod, caller, loc, mode, rdev, gfid, extra)

    async def mkdir(self, caller: Caller, loc: Loc, *, mode: int, gfid: bytes, extra: Xattrs | None = None) -> Looked:
        self._space.need(caller, _BLOCK)
        return await self._run(self._maker.mkdir, caller, loc, mode, gfid, extra)

    async def symlink(
        self, caller: Caller, loc: Loc, *, target: bytes, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        self._space.need(caller, _BLOCK)
        return await self._run(self._maker.symlink, caller, loc, target, gfid, extra)

    async def link(self, caller: Caller, source: Loc, loc: Loc) -> Looked:
        return await self._run(self._maker.link, source, loc)

    async def unlink(self, caller: Caller, loc: Loc) -> Looked:
        return await self._run(self._remover.unlink, loc)

    async def rmdir(self, caller: Caller, loc: Loc, *, recursive: bool = False) -> Looked:
        if recursive:
            self._garbage = True
            return await self._run(self._remover.rmtree, loc)
        return await self._run(self._remover.rmdir, loc)

    async def rename(self, caller: Caller, source: Loc, target: Loc, *, flags: int = 0) -> Looked:
        return await self._run(self._remover.rename, source, target, flags)

    async def readlink(self, caller: Caller, loc: Loc) -> bytes:
        return await self._run(attributes.readlink, self._brick, loc)

    # ---- attributes ----

    async def stat(self, caller: Caller, target: Target, *, want: Want = ()) -> Looked:
        return await self._run(self._stat, target, want)

    def _stat(self, target: Target, want: Want) -> Looked:
        return attributes.stat_node(self._brick, self._node(target), want)

    async def access(self, caller: Caller, loc: Loc, mask: int) -> None:
        await self._run(attributes.access, self._brick, caller, loc, mask)

    async def setattr(self, caller: Caller, target: Target, attributes_: SetAttr) -> Changed:
        return await self._run(self._setattr, caller, target, attributes_)

    def _setattr(self, caller: Caller, target: Target, values: SetAttr) -> Changed:
        node = self._node(target)
        if values.mode is not None and not caller.is_internal:
            attributes.check_marks(node)
        return attributes.setattr_node(node, values)

    async def statfs(self, caller: Caller, loc: Loc) -> StatVfs:
        return await self._run(self._space.statfs)

    async def getxattr(self, caller: Caller, target: Target, name: bytes | None = None) -> Xattrs:
        return await self._run(self._getxattr, caller, target, name)

    def _getxattr(self, caller: Caller, target: Target, name: bytes | None) -> Xattrs:
        node = self._node(target)
        if name is None:
            return xattrs.list_all(self._brick, caller, node)
        host = self.options["node-uuid"] if self.options["node-uuid-pathinfo"] else self.context.host
        return xattrs.get(self._brick, caller, node, name, host)

    async def setxattr(self, caller: Caller, target: Target, values: Xattrs, *, flags: int = 0) -> None:
        await self._run(self._setxattr, caller, target, values, flags)

    def _setxattr(self, caller: Caller, target: Target, values: Xattrs, flags: int) -> None:
        xattrs.set_all(caller, self._node(target), values, flags)

    async def removexattr(self, caller: Caller, target: Target, name: bytes) -> None:
        await self._run(self._removexattr, caller, target, name)

    def _removexattr(self, caller: Caller, target: Target, name: bytes) -> None:
        xattrs.remove(caller, self._node(target), name)

    async def xattrop(self, caller: Caller, target: Target, op: XattrOp, values: Xattrs, *, want: Want = ()) -> Xattrs:
        return await self._run(self._xattrop, target, op, values, want)

    def _xattrop(self, target: Target, op: XattrOp, values: Xattrs, want: Want) -> Xattrs:
        return xattrs.operate(self._brick, self._node(target), op, values, want)

    async def end_all(
        self, caller: Caller, domain: str, key: bytes, ends: Sequence[End]
    ) -> list[bytes | OSError | None]:
        """The locks are features/locks' matter."""
        found = await self._run(xattrs.end_all, self._brick, key, ends)
        self._remembering.ended(end.gfid for end in ends if not end.is_entry)
        return found

    # ---- open files ----

    def _open(self, gfid: bytes, flags: int) -> OpenFile:
        return self._files.open(gfid, flags, is_direct=self.options["o-direct"])

    async def open(self, caller: Caller, loc: Loc, fd: Fd, *, flags: int) -> None:
        fd.contexts[self] = await self._run(self._open, loc.gfid, flags)

    async def opendir(self, caller: Caller, loc: Loc, fd: Fd) -> None:
        fd.contexts[self] = await self._run(self._files.open_directory, loc.gfid)

    async def readv(self, caller: Caller, fd: Fd, *, size: int, offset: int) -> Read:
        opened = self._opened(fd)
        data: bytes | bytearray | memoryview | None = None
        if size <= POSIX_INLINE_BYTES_MAX and not opened.is_direct and not self._lane.is_slow:
            data = await self._run(files.read_cached, opened, size, offset)
        if opened.is_direct and files.is_aligned(size, offset):
            data = await self._asynchronously(opened, lambda aio: aio.read(opened.fd, size, offset))
        if data is None:
            data = await self._run_on(opened, files.read, opened, size, offset)
        return Read(data, files.iatt(opened))

    async def writev(
        self, caller: Caller, fd: Fd, data: bytes | bytearray | memoryview, *, offset: int, flags: int = 0
    ) -> Changed:
        opened = self._opened(fd)
        self._space.need(caller, len(data))
        if opened.is_direct and not flags & (files.SYNC_FLAGS | os.O_APPEND) and files.is_aligned(len(data), offset):
            (changed,) = await self._write_directly(opened, [(data, offset)])
            return changed
        if len(data) > POSIX_INLINE_BYTES_MAX or flags & files.SYNC_FLAGS or opened.is_direct or self._lane.is_slow:
            return await self._run_on(opened, files.write, opened, data, offset, flags)
        return await self._run(files.write_soon, self._brick.native, opened, data, offset, flags)

    async def _write_directly(self, opened: OpenFile, pieces: list[tuple[files.Data, int]]) -> list[Changed]:
        """Past the page cache, all of them together."""
        before = files.iatt(opened)
        late = await self._asynchronously(opened, lambda aio: aio.write(opened.fd, pieces))
        if late is None:
            late = list(range(len(pieces)))
        elif late and self.context.now() >= opened.pages_stay_until:
            # One after another would have to wait for a page in the cache: off with all of them.
            opened.pages_stay_until = self.context.now() + POSIX_CACHE_DROP_S
            await self._run_on(opened, files.forget_pages, opened)
        if late:
            writes = [self._run_on(opened, files.write, opened, *pieces[number], 0) for number in late]
            await asyncio.gather(*writes)
        changed = Changed(before, files.iatt(opened))
        return [changed] * len(pieces)

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        """Lookups are one call; direct writes that touch different bytes are carried out together."""
        if len(steps) > 1 and not caller.is_internal and all(step.fop == "lookup" for step in steps):
            return await self._lookup_several(steps)
        if len(steps) > 1 and all(step.fop == "writev" and step.args[0] is steps[0].args[0] for step in steps):
            opened = self._opened(steps[0].args[0])
            pieces = [(step.args[1], step.kwargs["offset"]) for step in steps]
            flags = [step.kwargs.get("flags", 0) for step in steps]
            if opened.is_direct and not any(how & (files.SYNC_FLAGS | os.O_APPEND) for how in flags):
                if files.are_apart(pieces):
                    self._space.need(caller, sum(len(data) for data, _ in pieces))
                    try:
                        return list(await self._write_directly(opened, pieces))
                    except OSError:
                        pass  # which of them it was: one after another
        return await super().compound(caller, steps)

    async def truncate(self, caller: Caller, target: Target, size: int) -> Changed:
        if isinstance(target, Fd):
            opened = self._opened(target)
            return await self._run_on(opened, files.truncate, opened, size)
        temporary = Fd(target.gfid, os.O_RDWR)
        await self.open(caller, target, temporary, flags=os.O_RDWR)
        try:
            return await self.truncate(caller, temporary, size)
        finally:
            await self.release(temporary)

    async def fallocate(self, caller: Caller, fd: Fd, *, mode: int, offset: int, length: int) -> Changed:
        opened = self._opened(fd)
        if not mode & files.FALLOC_PUNCH_HOLE:
            self._space.need(caller, length)
        if length <= POSIX_ALLOCATE_INLINE_BYTES:
            return await self._run(files.allocate, opened, mode, offset, length)
        return await self._run_on(opened, files.allocate, opened, mode, offset, length)

    async def seek(self, caller: Caller, fd: Fd, *, offset: int, what: int) -> int:
        return await self._run(os.lseek, self._opened(fd).fd, offset, what)

    async def flush(self, caller: Caller, fd: Fd) -> None:
        self._opened(fd)

    async def fsync(self, caller: Caller, fd: Fd, kind: SyncKind = SyncKind.ALL) -> Changed:
        opened = self._opened(fd)
        await self._sync(opened, kind)
        iatt = files.iatt(opened)
        return Changed(iatt, iatt)

    async def sync_all(self, caller: Caller, fds: Sequence[Fd]) -> list[OSError | None]:
        """One call for all of them; what cannot be synced like that is synced by itself."""
        found: list[OSError | None] = []
        opened: list[OpenFile] = []
        for fd in fds:
            there: OpenFile | None = fd.contexts.get(self)
            if there is not None and not there.is_released:
                opened.append(there)
        if len(opened) < len(fds) or self._failed:
            return await super().sync_all(caller, fds)
        for file in opened:
            file.users += 1
        try:
            numbers = [file.fd for file in opened]
            found = await self._lane.asynchronous(lambda aio: aio.sync_data(numbers)) or [_ALONE] * len(fds)
        finally:
            for file in opened:
                self._used(file)
        for index, error in enumerate(found):
            if error is not None and error.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EAGAIN):
                found[index] = (await super().sync_all(caller, [fds[index]]))[0]
        return found

    async def _sync(self, opened: OpenFile, kind: SyncKind) -> None:
        async def sync(aio: Aio) -> bool:
            await aio.sync(opened.fd, is_data=kind is SyncKind.DATA)
            return True

        if not await self._asynchronously(opened, sync):
            await self._run_on(opened, files.sync, opened, kind)

    async def _asynchronously(self, opened: OpenFile, call: Callable[[Aio], Awaitable[T]]) -> T | None:
        """With the descriptor held open meanwhile; None: it cannot be done in this way."""
        if self._failed:
            raise FopError(errno.ENOTCONN, f"{self.name}: {self._failed}")
        opened.users += 1
        try:
            return await self._lane.asynchronous(call)
        except OSError as error:
            raise FopError(error.errno or errno.EIO, f"{self.name}: asynchronous I/O") from error
        finally:
            self._used(opened)

    def _used(self, opened: OpenFile) -> None:
        opened.users -= 1
        if opened.is_released and not opened.users:
            self._files.release(opened)

    async def fsyncdir(self, caller: Caller, fd: Fd, kind: SyncKind = SyncKind.ALL) -> None:
        await self._sync(self._opened(fd), kind)

    async def readdir(
        self, caller: Caller, fd: Fd, *, size: int, offset: int, is_plus: bool = False, want: Want = ()
    ) -> list[Entry]:
        opened = self._opened(fd)
        if opened.listing is None:
            raise FopError(errno.ENOTDIR, f"{self.name}: {fd}")
        return await self._run(readdir.read, self._brick, opened, size, offset, is_plus, want)

    async def rchecksum(self, caller: Caller, fd: Fd, *, offset: int, length: int) -> bytes:
        opened = self._opened(fd)
        return await self._run_on(opened, files.checksum, opened, offset, length)

    async def release(self, fd: Fd) -> None:
        opened: OpenFile | None = fd.contexts.pop(self, None)
        if opened is not None and self._has_started:
            await self._lane.run(self._files.release, opened)

    def _last_closed(self, gfid: bytes) -> None:
        if gfid in self._brick.unlinked and gfid not in self._lingering:
            self._remover.released(gfid)

    def forget(self, gfid: bytes) -> None:
        """Nothing is kept for a gfid but the open directories, which are bounded."""


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


__all__ = ["Posix"]
