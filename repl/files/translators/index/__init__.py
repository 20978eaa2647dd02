# SPDX-License-Identifier: Apache-2.0
"""features/index: keeps a list of the inodes that need healing, from the counters that pass through.

Inputs: xattrop.  Before a watched counter becomes non-zero the inode gets an entry on the disk; when all its watched
counters are zero again the entry goes, a moment later and after a look at all of them, so that counters which go up
and down with each write cost nothing.  An entry too many is harmless, one too few never happens, not by a crash either.

How a heal daemon asks (internal callers only):
- ``getxattr(ROOT, b"glusterfs.xattrop_index_gfid")`` (or ``glusterfs.xattrop_dirty_index_gfid``,
  ``glusterfs.xattrop_entry_changes_gfid``) answers the gfid of a virtual directory; ``opendir`` and ``readdir`` list
  it; an entry's ``gfid`` is the inode;
- ``opendir(Loc(parent=<entry changes gfid>, name=<gfid text of a directory>))``: the names that changed there;
- ``unlink(Loc(parent=<virtual gfid>, name=...))`` removes an entry whose inode is gone, ``rmdir`` a directory of names;
- ``getxattr(ROOT, b"glusterfs.heal-count")``: how many entries, in digits.
Names for ``entry-changes`` come with xattrop: the keys ``glusterfs.xattrop.entry-in`` and ``...entry-out`` (a name)
are meant for this translator and go no further.
Source of the facts: spec section 3.4.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import stat
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from repl.errors import ConfigError
from repl.files.options import Kind, Option, Options
from repl.files.translator import Context, Step, Translator
from repl.files.translators.index.folders import Folder, gfid_of
from repl.files.translators.posix.listing import Listing
from repl.files.values import (
    ROOT_GFID,
    Caller,
    End,
    Entry,
    Fd,
    FopError,
    Iatt,
    Loc,
    Looked,
    Target,
    Want,
    XattrOp,
    Xattrs,
    gfid_text,
)
from repl.limits import FILES_LISTING_ENTRIES_MAX, INDEX_KNOWN_MAX

log = logging.getLogger(__name__)

ENTRY_IN = b"glusterfs.xattrop.entry-in"
ENTRY_OUT = b"glusterfs.xattrop.entry-out"
HEAL_COUNT = b"glusterfs.heal-count"

XATTROP, DIRTY, CHANGES = "xattrop", "dirty", "entry-changes"
# Fixed gfids of the virtual directories; the variant bits are none that a random gfid has.
VIRTUAL = {
    XATTROP: bytes.fromhex("7265706c2d696e6465780000000000a1"),
    DIRTY: bytes.fromhex("7265706c2d696e6465780000000000a2"),
    CHANGES: bytes.fromhex("7265706c2d696e6465780000000000a3"),
}
_KIND_OF = {gfid: kind for kind, gfid in VIRTUAL.items()}
GFID_KEYS = {
    b"glusterfs.xattrop_index_gfid": XATTROP,
    b"glusterfs.xattrop_dirty_index_gfid": DIRTY,
    b"glusterfs.xattrop_entry_changes_gfid": CHANGES,
}
_SETTLE_S = 1.0  # counters that were zero for so long: the entry goes
_OURSELVES = Caller(is_internal=True)


def _may_grow(delta: bytes) -> bool:
    """Of counters that were not zero before: something is added to one of them."""
    return any(0 < delta[at] < 128 or not delta[at] and any(delta[at : at + 4]) for at in range(0, len(delta), 4))


class _OpenFolder:
    """A virtual directory that somebody lists."""

    __slots__ = ("fd", "listing")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.listing = Listing(fd)


class Index(Translator):
    TYPE = "features/index"
    OPTIONS = (
        Option("index-base", Kind.PATH, "", "Where the index is: indices below the brick's .glusterfs."),
        Option("xattrop-pending-watchlist", Kind.LIST, ("trusted.afr.",), "Counters (beginnings of names) of xattrop."),
        Option("xattrop-dirty-watchlist", Kind.LIST, ("trusted.afr.dirty",), "Counters of the dirty index."),
        Option("xattrop64-watchlist", Kind.LIST, (), "Counters of 64 bits, for the dirty index."),
    )  # fmt: skip

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self._folders: dict[str, Folder] = {}
        # Entries that are on the disk for sure (the most recently used ones), and those that may have become needless.
        self._known: dict[str, OrderedDict[bytes, None]] = {XATTROP: OrderedDict(), DIRTY: OrderedDict()}
        self._settling: dict[str, set[bytes]] = {XATTROP: set(), DIRTY: set()}
        self._zero: set[bytes] = set()  # of those in DIRTY: the counter was seen to be zero
        self._busy: Counter[bytes] = Counter()  # inodes whose counters are being written
        self._timer: asyncio.TimerHandle | None = None
        self._is_sweeping = False
        self._apply(options)

    def _apply(self, options: Options) -> None:
        self._pending = tuple(prefix.encode() for prefix in options["xattrop-pending-watchlist"])
        dirty = (*options["xattrop-dirty-watchlist"], *options["xattrop64-watchlist"])
        self._dirty = frozenset(key.encode() for key in dirty)

    # ---- life ----

    async def start(self) -> None:
        base = self.options["index-base"]
        if not base:
            raise ConfigError(f"volume '{self.name}': option index-base is missing.",
                              advice="Name indices below the brick's .glusterfs.")  # fmt: skip
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(base, 0o700)
            above = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"volume '{self.name}': cannot use index-base {base}: {error.strerror}.",
                              advice="Its parent has to exist: the brick makes .glusterfs.") from error  # fmt: skip
        try:
            for kind in (XATTROP, DIRTY, CHANGES):
                self._folders[kind] = Folder(above, kind, self._ids())
        finally:
            os.close(above)

    def _ids(self) -> Iterator[bytes]:
        while True:
            yield self.context.new_gfid()

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for folder in self._folders.values():
            folder.close()
        self._folders.clear()

    def reconfigure(self, options: Options) -> None:
        super().reconfigure(options)
        self._apply(options)

    def state(self) -> dict[str, object]:
        return {kind: folder.count() for kind, folder in self._folders.items()}

    # ---- counters ----

    def _kind(self, key: bytes) -> str | None:
        if key in self._dirty:
            return DIRTY
        return XATTROP if key.startswith(self._pending) else None

    async def xattrop(self, caller: Caller, target: Target, op: XattrOp, values: Xattrs, *, want: Want = ()) -> Xattrs:
        gfid = target.gfid
        touched: set[str] = set()
        names: dict[bytes, bytes] = {}
        for key, delta in values.items():
            if key in (ENTRY_IN, ENTRY_OUT):
                names[key] = delta
                continue
            kind = self._kind(key)
            if kind is not None:
                touched.add(kind)
                if any(delta):
                    self._add(kind, gfid)
        if names:
            values = {key: delta for key, delta in values.items() if key not in names}
            self._change_names(gfid, names)
        self._busy[gfid] += 1
        try:
            answer = await self.child.xattrop(caller, target, op, values, want=want)
        finally:
            self._no_longer_busy(gfid)
            # Whatever came of it: counters that are zero (or were never written) need no entry.
            for kind in touched:
                self._settle(kind, gfid)
        for kind in touched:
            if any(any(value) for key, value in answer.items() if self._kind(key) == kind):
                self._settling[kind].discard(gfid)
        return answer

    async def create(
        self, caller: Caller, loc: Loc, fd: Fd, *, flags: int, mode: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        """Some files are made with counters that say that they are being written."""
        kinds = {kind for key, value in extra.items() if any(value) and (kind := self._kind(key))} if extra else ()
        for kind in kinds:
            self._add(kind, gfid)
        try:
            looked = await self.child.create(caller, loc, fd, flags=flags, mode=mode, gfid=gfid, extra=extra)
        except BaseException:
            for kind in kinds:
                self._settle(kind, gfid)
            raise
        if looked.iatt.gfid != gfid:
            for kind in kinds:
                self._settle(kind, gfid)
        return looked

    async def end_all(
        self, caller: Caller, domain: str, key: bytes, ends: Sequence[End]
    ) -> list[bytes | OSError | None]:
        kind = self._kind(key)
        if kind is None or key in (ENTRY_IN, ENTRY_OUT) or any(_may_grow(end.delta) for end in ends):
            return await super().end_all(caller, domain, key, ends)
        for end in ends:
            self._busy[end.gfid] += 1
        try:
            found = await self.child.end_all(caller, domain, key, ends)
        finally:
            for end in ends:
                self._no_longer_busy(end.gfid)
                if end.delta:
                    self._settle(kind, end.gfid)
        is_all = self._dirty == {key}  # nothing else is to be looked at before the entry goes
        for end, value in zip(ends, found, strict=True):
            if isinstance(value, bytes) and any(value):
                self._add(kind, end.gfid)
            elif value and is_all:
                self._zero.add(end.gfid)
        return found

    def _no_longer_busy(self, gfid: bytes) -> None:
        self._busy[gfid] -= 1
        if not self._busy[gfid]:
            del self._busy[gfid]

    def _add(self, kind: str, gfid: bytes) -> None:
        """Before the counter is written."""
        self._zero.discard(gfid)
        known = self._known[kind]
        self._settling[kind].discard(gfid)
        if gfid in known:
            known.move_to_end(gfid)
            return
        try:
            self._folders[kind].add(gfid_text(gfid))
        except OSError as error:
            raise FopError(error.errno or errno.EIO, f"{self.name}: no entry for {gfid_text(gfid)}") from error
        known[gfid] = None
        if len(known) > INDEX_KNOWN_MAX:
            known.popitem(last=False)

    def _change_names(self, gfid: bytes, names: dict[bytes, bytes]) -> None:
        folder = self._folders[CHANGES]
        try:
            if (name := names.get(ENTRY_IN)) is not None:
                _check(name)
                folder.add_name(gfid, name)
            if (name := names.get(ENTRY_OUT)) is not None:
                _check(name)
                folder.remove_name(gfid, name)
        except FopError:
            raise
        except OSError as error:
            raise FopError(error.errno or errno.EIO, f"{self.name}: entry-changes of {gfid_text(gfid)}") from error

    # ---- entries that are needed no more ----

    def _settle(self, kind: str, gfid: bytes) -> None:
        self._settling[kind].add(gfid)
        if self._timer is None and not self._is_sweeping:
            self._timer = asyncio.get_running_loop().call_later(_SETTLE_S, self._begin_sweep)

    def _begin_sweep(self) -> None:
        self._timer = None
        self.context.spawn(self._sweep(), f"{self.name}: index")

    async def _sweep(self) -> None:
        self._is_sweeping = True
        try:
            for kind in (XATTROP, DIRTY):
                for gfid in list(self._settling[kind]):
                    await self._check_entry(kind, gfid)
        finally:
            self._is_sweeping = False
        if any(self._settling.values()) and self._timer is None and self._folders:
            self._timer = asyncio.get_running_loop().call_later(_SETTLE_S, self._begin_sweep)

    async def _check_entry(self, kind: str, gfid: bytes) -> None:
        """Remove the entry if every watched counter of the inode is zero."""
        if gfid in self._busy:
            return  # looked at again afterwards
        if kind == DIRTY and gfid in self._zero:
            self._settling[kind].discard(gfid)
            self._forget(kind, gfid)
            return
        try:
            values = await self.child.getxattr(_OURSELVES, Loc(gfid=gfid), None)
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOENT):
                self._settling[kind].discard(gfid)  # cannot be told now: it stays
                return
            values = {}
        if gfid not in self._settling[kind] or self._busy[gfid] or not self._folders:
            return  # written again meanwhile
        self._settling[kind].discard(gfid)
        if any(any(value) for key, value in values.items() if self._kind(key) == kind):
            return
        self._forget(kind, gfid)

    def _forget(self, kind: str, gfid: bytes) -> None:
        self._zero.discard(gfid)
        self._known[kind].pop(gfid, None)
        try:
            self._folders[kind].remove(gfid_text(gfid))
        except OSError as error:
            log.warning("%s: an entry of index %s cannot be removed: %s", self.name, kind, error)

    def _gone(self, looked: Looked) -> Looked:
        """What has no name any more needs no healing."""
        gfid = looked.iatt.gfid
        if looked.iatt.nlink == 0:
            for kind, known in self._known.items():
                if gfid in known:
                    self._settle(kind, gfid)
        return looked

    # ---- names ----

    async def unlink(self, caller: Caller, loc: Loc) -> Looked:
        if loc.parent in _KIND_OF and caller.is_internal:
            return await self._unlink(loc)
        return self._gone(await self.child.unlink(caller, loc))

    async def _unlink(self, loc: Loc) -> Looked:
        """It goes if the inode is gone or its counters are zero."""
        kind = _KIND_OF[loc.parent]
        gfid = gfid_of(loc.name)
        if gfid is None or kind == CHANGES:
            raise FopError(errno.EINVAL, f"{loc.name!r} is no entry")
        self._settling[kind].add(gfid)
        await self._check_entry(kind, gfid)
        return Looked(Iatt(gfid))

    async def rmdir(self, caller: Caller, loc: Loc, *, recursive: bool = False) -> Looked:
        if loc.parent == VIRTUAL[CHANGES] and caller.is_internal:
            gfid = gfid_of(loc.name)
            if gfid is None:
                raise FopError(errno.EINVAL, f"{loc.name!r} is no entry")
            self._drop_names(gfid)
            return Looked(Iatt(gfid))
        return self._gone(await self.child.rmdir(caller, loc, recursive=recursive))

    def _drop_names(self, gfid: bytes) -> None:
        folder = self._folders[CHANGES]
        try:
            fd = folder.open_names(gfid)
        except FileNotFoundError:
            return
        try:
            for name in os.listdir(fd):
                os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)
        folder.remove_if_empty(gfid)

    async def lookup(self, caller: Caller, loc: Loc, *, want: Want = ()) -> Looked:
        if not loc.name and loc.gfid in _KIND_OF and caller.is_internal:
            return Looked(Iatt(loc.gfid, stat.S_IFDIR | 0o700, 2))
        return await self.child.lookup(caller, loc, want=want)

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        """Lookups are nothing to us, but for those of virtual directories."""
        if not caller.is_internal and all(step.fop == "lookup" for step in steps):
            return await self.child.compound(caller, steps)
        return await super().compound(caller, steps)

    async def getxattr(self, caller: Caller, target: Target, name: bytes | None = None) -> Xattrs:
        if name is not None and caller.is_internal and target.gfid == ROOT_GFID:
            if name in GFID_KEYS:
                return {name: VIRTUAL[GFID_KEYS[name]]}
            if name == HEAL_COUNT:
                return {name: b"%d" % await self._count()}
        return await self.child.getxattr(caller, target, name)

    async def _count(self) -> int:
        await self._sweep_now()
        return self._folders[XATTROP].count()

    async def _sweep_now(self) -> None:
        """So that nobody sees entries that are needed no more."""
        for kind in (XATTROP, DIRTY):
            for gfid in list(self._settling[kind]):
                await self._check_entry(kind, gfid)

    # ---- listing ----

    async def opendir(self, caller: Caller, loc: Loc, fd: Fd) -> None:
        if not caller.is_internal or loc.gfid not in _KIND_OF and loc.parent != VIRTUAL[CHANGES]:
            await self.child.opendir(caller, loc, fd)
            return
        await self._sweep_now()
        if loc.gfid in _KIND_OF:
            number = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC,
                             dir_fd=self._folders[_KIND_OF[loc.gfid]].fd)  # fmt: skip
        else:
            gfid = gfid_of(loc.name)
            try:
                number = self._folders[CHANGES].open_names(gfid or bytes(16))
            except OSError as error:
                raise FopError(error.errno or errno.EIO, f"{self.name}: no names of {loc.name!r}") from None
        fd.contexts[self] = _OpenFolder(number)

    async def readdir(
        self, caller: Caller, fd: Fd, *, size: int, offset: int, is_plus: bool = False, want: Want = ()
    ) -> list[Entry]:
        opened: _OpenFolder | None = fd.contexts.get(self)
        if opened is None:
            return await self.child.readdir(caller, fd, size=size, offset=offset, is_plus=is_plus, want=want)
        found: list[Entry] = []
        is_names = fd.gfid not in _KIND_OF
        for raw in opened.listing.entries(offset):
            gfid = bytes(16) if is_names else gfid_of(raw.name)
            if gfid is None:
                continue
            found.append(Entry(raw.name, raw.offset, gfid, 0))
            size -= 24 + len(raw.name)
            if size <= 0 or len(found) >= FILES_LISTING_ENTRIES_MAX:
                break
        return found

    async def release(self, fd: Fd) -> None:
        opened: _OpenFolder | None = fd.contexts.pop(self, None)
        if opened is not None:
            os.close(opened.fd)
            return
        await self.child.release(fd)


def _check(name: bytes) -> None:
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name or len(name) > 255:
        raise FopError(errno.EINVAL, f"{name!r} is no name")
