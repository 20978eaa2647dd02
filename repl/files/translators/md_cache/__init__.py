# SPDX-License-Identifier: Apache-2.0
"""performance/md-cache: remembers attributes, names and some extended attributes.

Inputs: all operations, upcalls.  Outputs: lookups, stats and the like from memory.  What we change is dropped before
and after, what another client changes when the brick tells; all else is trusted for ``md-cache-timeout``.
Names: a directory that is known as a whole, because it was listed to its end (listing.py) or made here, answers for
names that do not exist.
Source: spec 4.5; listing ahead and names are our own.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from repl.files.dropping import truncates
from repl.files.events import Event, Invalidated, Unwatched
from repl.files.options import Options
from repl.files.translator import Context, Step, Translator
from repl.files.translators.md_cache.listing import ListingAhead
from repl.files.translators.md_cache.options import OPTIONS, XATTRS
from repl.files.values import (
    NO_GFID,
    Caller,
    Changed,
    Entry,
    Fd,
    FopError,
    Iatt,
    Loc,
    Looked,
    SetAttr,
    StatVfs,
    Target,
    Want,
    XattrOp,
    Xattrs,
)
from repl.files.watching import Watch, copy_of, name_key
from repl.limits import MD_CACHE_INODES_MAX, MD_CACHE_NAMES_MAX, QUICK_READ_BYTES_MAX

_LISTED_S = 0.05  # so long a lookup waits for a listing that is under way


class Known:
    """Of one inode.  ``xattrs``: None for one that is not there."""

    __slots__ = ("iatt", "until", "xattrs")

    def __init__(self, until: float) -> None:
        self.iatt: Iatt | None = None
        self.until = until
        self.xattrs: dict[bytes, bytes | None] = {}


class MdCache(ListingAhead):
    TYPE = "performance/md-cache"
    ALIASES = ("performance/stat-prefetch",)
    OPTIONS = OPTIONS

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._space: tuple[float, StatVfs] | None = None
        self._use(options)
        self.hits = self.misses = 0

    def _use(self, options: Options) -> None:
        self._valid_s = 0.0 if options["pass-through"] else options["md-cache-timeout"]
        self._has_names: bool = options["cache-names"]
        kept = [name for option, names in XATTRS if options[option] for name in names]
        more = [name.encode() for name in options["xattr-cache-list"]]
        self._kept = frozenset([*kept, *(name for name in more if not name.endswith(b"*"))])
        self._kept_heads = tuple(name[:-1] for name in more if name.endswith(b"*"))

    def reconfigure(self, options: Options) -> None:
        super().reconfigure(options)
        self.clear()
        self._use(options)

    def state(self) -> dict[str, object]:
        return {"inodes": len(self._known), "names": self._names.count, "hits": self.hits, "misses": self.misses}

    # ---- changes ----

    def notify(self, event: Event, child: Translator | None) -> None:
        if isinstance(event, Unwatched):
            self._is_partial = event.is_partial
        super().notify(event, child)

    def invalidate(self, event: Invalidated) -> None:
        self._known.pop(event.gfid, None)
        for name in event.names:
            self._names.forget(event.gfid, name)
        if event.is_gone or event.is_data and not event.names:
            self._names.drop(event.gfid)

    def clear(self) -> None:
        self._known.clear()
        self._names.clear()

    def drop(self, gfid: bytes) -> None:
        self.note_change(gfid)
        self._known.pop(gfid, None)

    # ---- what is known ----

    def _fresh(self, gfid: bytes) -> Known | None:
        known = self._known.get(gfid)
        if known is None or known.until < self.context.now():
            return None
        self._known.move_to_end(gfid)
        return known

    def _entry(self, gfid: bytes, now: float) -> Known:
        known = self._known.get(gfid)
        if known is None or known.until < now:
            known = self._known[gfid] = Known(now + self._valid_s)
            if len(self._known) > MD_CACHE_INODES_MAX:
                self._known.popitem(last=False)
        return known

    def _keep(self, watch: Watch, iatt: Iatt | None, now: float) -> None:
        if iatt is not None and iatt.mode and self._valid_s and watch.is_fresh(iatt.gfid):
            self._entry(iatt.gfid, now).iatt = copy_of(iatt)

    def _name(self, watch: Watch, parent: bytes, name: bytes, gfid: bytes, now: float) -> None:
        if self._has_names and self._valid_s and watch.is_name_fresh(parent, name):
            self._names.put(self._names.folder(parent, now, self._valid_s, MD_CACHE_NAMES_MAX), name, gfid)

    # ---- those that look ----

    async def lookup(self, caller: Caller, loc: Loc, *, want: Want = ()) -> Looked:
        now = self.context.now()
        if not want and self._valid_s:
            found = self._look(loc, now) or await self._look_listed(loc)
            if found is not None:
                self.hits += 1
                return Looked(copy_of(found))
        self.misses += 1
        has_name = bool(loc.name) and self._has_names and self._valid_s > 0
        with self.watch() as watch:
            try:
                looked = await self.child.lookup(caller, loc, want=want)
            except OSError as error:
                if error.errno == errno.ESTALE:
                    self._known.pop(loc.gfid, None)
                if has_name:
                    self._missed(caller, loc.parent, now, is_listed=False)
                raise
        if has_name:
            is_directory = looked.iatt.is_directory
            self._missed(caller, loc.parent, now, is_listed=not want and not is_directory)
            if is_directory and self.is_walking:
                self._walk_into(caller, looked.iatt.gfid, now)
        self._keep(watch, looked.iatt, now)
        if loc.name:
            self._name(watch, loc.parent, loc.name, looked.iatt.gfid, now)
        return looked

    def _look(self, loc: Loc, now: float) -> Iatt | None:
        """The attributes behind a name; ENOENT when there is none for certain."""
        gfid, folder = loc.gfid, None
        if loc.name:
            folder = self._names.find(loc.parent, now)
            if folder is None:
                return None
            found = folder.entries.get(loc.name)
            if found is None:
                if folder.is_whole:
                    self.hits += 1
                    raise FopError(errno.ENOENT, f"{self.name}: {loc}")
                return None
            gfid = found
        known = self._fresh(gfid)
        if known is None or known.iatt is None:
            return None
        if folder is not None and folder.hits >= 0:
            self._hit(folder)
        return known.iatt

    async def _look_listed(self, loc: Loc) -> Iatt | None:
        """What a listing that is under way says of a name, where directories are walked: it costs less than asking."""
        while loc.name:
            folder = self._names.find(loc.parent, self.context.now())
            if folder is None or not (folder.is_listing and folder.is_walk):
                return None
            before = len(folder.entries)
            await folder.wait_told(_LISTED_S)
            found = self._look(loc, self.context.now())
            if found is not None or len(folder.entries) == before:
                return found
        return None

    def known(self, parent: bytes, name: bytes) -> Iatt | bool | None:
        if not self._valid_s:
            return None
        folder = self._names.find(parent, self.context.now())
        if folder is None:
            return None
        gfid = folder.entries.get(name)
        if gfid is None:
            self.hits += folder.is_whole
            return False if folder.is_whole else None
        known = self._fresh(gfid)
        if known is None or known.iatt is None:
            return None
        self.hits += 1
        if folder.hits >= 0:
            self._hit(folder)
        return copy_of(known.iatt)

    def open_known(self, caller: Caller, loc: Loc, fd: Fd, flags: int) -> Iatt | None:
        """As ``_open_and_stat``: only of a file whose attributes are known."""
        known = self._fresh(loc.gfid)
        if known is None or known.iatt is None or flags & os.O_TRUNC:
            return None
        if self.child.open_known(caller, loc, fd, flags) is None:
            return None
        self.hits += 1
        return copy_of(known.iatt)

    async def stat(self, caller: Caller, target: Target, *, want: Want = ()) -> Looked:
        now = self.context.now()
        if not want and (known := self._fresh(target.gfid)) is not None and known.iatt is not None:
            self.hits += 1
            return Looked(copy_of(known.iatt))
        self.misses += 1
        with self.watch() as watch:
            looked = await self.child.stat(caller, target, want=want)
        self._keep(watch, looked.iatt, now)
        return looked

    async def readdir(
        self, caller: Caller, fd: Fd, *, size: int, offset: int, is_plus: bool = False, want: Want = ()
    ) -> list[Entry]:
        now = self.context.now()
        with self.watch() as watch:
            entries = await self.child.readdir(caller, fd, size=size, offset=offset, is_plus=is_plus, want=want)
        for entry in entries:
            if any(entry.gfid) and entry.name not in (b".", b".."):
                self._keep(watch, entry.iatt, now)
                self._name(watch, fd.gfid, entry.name, entry.gfid, now)
        return entries

    async def getxattr(self, caller: Caller, target: Target, name: bytes | None = None) -> Xattrs:
        if name is None or not self._valid_s or not (name in self._kept or name.startswith(self._kept_heads)):
            return await self.child.getxattr(caller, target, name)
        now = self.context.now()
        known = self._fresh(target.gfid)
        if known is not None and name in known.xattrs:
            value = known.xattrs[name]
            if value is None:
                raise FopError(errno.ENODATA, self.name)
            return {name: value}
        with self.watch() as watch:
            try:
                found = await self.child.getxattr(caller, target, name)
            except OSError as error:
                if error.errno == errno.ENODATA and watch.is_fresh(target.gfid):
                    self._entry(target.gfid, now).xattrs[name] = None
                raise
        if name in found and watch.is_fresh(target.gfid):
            self._entry(target.gfid, now).xattrs[name] = bytes(found[name])
        return found

    async def statfs(self, caller: Caller, loc: Loc) -> StatVfs:
        now = self.context.now()
        if self.options["md-cache-statfs"] and self._space is not None and self._space[0] >= now:
            return self._space[1]
        found = await self.child.statfs(caller, loc)
        self._space = (now + self._valid_s, found)
        return found

    async def flush(self, caller: Caller, fd: Fd) -> Iatt | None:
        """What has just been written is looked at next."""
        now = self.context.now()
        with self.watch() as watch:
            iatt = await self.child.flush(caller, fd)
        self._keep(watch, iatt, now)
        return iatt

    # ---- those that make, move and remove names ----

    def _about_to_change(self, *locs: Loc) -> None:
        """Names of ours: the directories' attributes change, and lookups on their way may be too old."""
        for loc in locs:
            self.drop(loc.parent)
            self.note_change(name_key(loc.parent, loc.name))

    def _made(self, watch: Watch, loc: Loc, looked: Looked, now: float) -> Looked:
        """``watch`` began before it was made."""
        if watch.is_name_fresh(loc.parent, loc.name):
            self._name(watch, loc.parent, loc.name, looked.iatt.gfid, now)
        else:
            self._names.forget(loc.parent, loc.name)
        self._keep(watch, looked.iatt, now)
        self._about_to_change(loc)
        return looked

    async def create(
        self, caller: Caller, loc: Loc, fd: Fd, *, flags: int, mode: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        now = self.context.now()
        self._about_to_change(loc)
        with self.watch() as watch:
            try:
                looked = await self.child.create(caller, loc, fd, flags=flags, mode=mode, gfid=gfid, extra=extra)
            except OSError:
                self.not_created(flags)
                raise
            if looked.iatt.gfid != gfid:
                self.drop(looked.iatt.gfid)
        return self._made(watch, loc, looked, now)

    async def mknod(
        self, caller: Caller, loc: Loc, *, mode: int, rdev: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        now = self.context.now()
        self._about_to_change(loc)
        with self.watch() as watch:
            looked = await self.child.mknod(caller, loc, mode=mode, rdev=rdev, gfid=gfid, extra=extra)
        return self._made(watch, loc, looked, now)

    async def mkdir(self, caller: Caller, loc: Loc, *, mode: int, gfid: bytes, extra: Xattrs | None = None) -> Looked:
        now = self.context.now()
        self._about_to_change(loc)
        with self.watch() as watch:
            looked = await self.child.mkdir(caller, loc, mode=mode, gfid=gfid, extra=extra)
        self._made(watch, loc, looked, now)
        made = looked.iatt.gfid
        if self._has_names and self._valid_s and watch.is_fresh(made) and made == gfid:
            folder = self._names.folder(made, now, self._valid_s, MD_CACHE_NAMES_MAX)
            folder.is_whole = not self._is_partial
        return looked

    async def symlink(
        self, caller: Caller, loc: Loc, *, target: bytes, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        now = self.context.now()
        self._about_to_change(loc)
        with self.watch() as watch:
            looked = await self.child.symlink(caller, loc, target=target, gfid=gfid, extra=extra)
        return self._made(watch, loc, looked, now)

    async def link(self, caller: Caller, source: Loc, loc: Loc) -> Looked:
        now = self.context.now()
        self._about_to_change(loc)
        self.drop(source.gfid)
        with self.watch() as watch:
            looked = await self.child.link(caller, source, loc)
        return self._made(watch, loc, looked, now)

    async def unlink(self, caller: Caller, loc: Loc) -> Looked:
        return await self._remove(loc, lambda: self.child.unlink(caller, loc))

    async def rmdir(self, caller: Caller, loc: Loc, *, recursive: bool = False) -> Looked:
        looked = await self._remove(loc, lambda: self.child.rmdir(caller, loc, recursive=recursive))
        self._names.drop(looked.iatt.gfid)
        return looked

    async def _remove(self, loc: Loc, call: Callable[[], Awaitable[Looked]]) -> Looked:
        self._about_to_change(loc)
        try:
            with self.watch() as watch:
                looked = await call()
        except OSError:
            self._names.forget(loc.parent, loc.name)
            raise
        if watch.is_name_fresh(loc.parent, loc.name):
            self._names.remove(loc.parent, loc.name)
        else:
            self._names.forget(loc.parent, loc.name)
        self._about_to_change(loc)
        self.drop(looked.iatt.gfid)
        return looked

    async def rename(self, caller: Caller, source: Loc, target: Loc, *, flags: int = 0) -> Looked:
        folder = self._names.find(target.parent, self.context.now())
        replaced = folder.entries.get(target.name, NO_GFID) if folder is not None else NO_GFID
        self._forget_names(source, target)
        try:
            looked = await self.child.rename(caller, source, target, flags=flags)
        finally:
            self._forget_names(source, target)
            self.drop(replaced)
        self.drop(looked.iatt.gfid)
        return looked

    def _forget_names(self, *locs: Loc) -> None:
        self._about_to_change(*locs)
        for loc in locs:
            self._names.forget(loc.parent, loc.name)

    # ---- those that change an inode ----

    async def setattr(self, caller: Caller, target: Target, attributes: SetAttr) -> Changed:
        self.drop(target.gfid)
        try:
            return await self.child.setattr(caller, target, attributes)
        finally:
            self.drop(target.gfid)

    async def setxattr(self, caller: Caller, target: Target, values: Xattrs, *, flags: int = 0) -> None:
        self.drop(target.gfid)
        try:
            await self.child.setxattr(caller, target, values, flags=flags)
        finally:
            self.drop(target.gfid)

    async def removexattr(self, caller: Caller, target: Target, name: bytes) -> None:
        self.drop(target.gfid)
        try:
            await self.child.removexattr(caller, target, name)
        finally:
            self.drop(target.gfid)

    async def xattrop(self, caller: Caller, target: Target, op: XattrOp, values: Xattrs, *, want: Want = ()) -> Xattrs:
        try:
            return await self.child.xattrop(caller, target, op, values, want=want)
        finally:
            self.drop(target.gfid)

    # ---- several at once ----

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        last = steps[-1] if steps else None
        if last is not None and last.fop == "stat" and not last.kwargs.get("want") and len(steps) == 2:
            return await self._open_and_stat(caller, steps)
        return await super().compound(caller, steps)

    async def _open_and_stat(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        """What the mount does when a file is opened."""
        first, last = steps
        gfid = last.args[0].gfid
        known = self._fresh(gfid)
        if first.fop != "open" or truncates(first):
            return await super().compound(caller, steps)
        if known is not None and known.iatt is not None:
            if known.iatt.size <= QUICK_READ_BYTES_MAX:
                answers = await self.child.compound(caller, [first])  # which may bring the contents
                return answers if isinstance(answers[0], OSError) else [None, await self.stat(caller, *last.args)]
            return await Translator.compound(self, caller, steps)  # one by one
        now = self.context.now()
        with self.watch() as watch:
            answers = await self.child.compound(caller, steps)
        if isinstance(answers[-1], Looked):
            self._keep(watch, answers[-1].iatt, now)
        return answers
