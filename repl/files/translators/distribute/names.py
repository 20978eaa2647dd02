# SPDX-License-Identifier: Apache-2.0
"""Making and removing names of files.

A new file lies where its name's hash says; when there is no room, elsewhere, with a link file.  Where two subvolumes
take part, the one that the name belongs to decides who wins (EEXIST), and its lock of the name keeps others away; a
link file comes before what it leads to and goes after it, so that a crash leaves at most a link file that leads
nowhere.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from repl.files.answers import GONE, Answers, errors_of, good_of
from repl.files.translator import Step
from repl.files.translators.distribute.caches import Directory
from repl.files.translators.distribute.files import Files
from repl.files.translators.distribute.links import name_of, of_file
from repl.files.translators.distribute.marks import (
    FILE_WANT,
    LINKTO,
    PRECONDITION,
    is_link,
    is_suspicious,
    linkto_name,
    looks_like_link,
)
from repl.files.translators.distribute.space import Room, room_of, total
from repl.files.values import Caller, Fd, FopError, Loc, LockCommand, Looked, StatVfs, Xattrs

_TRIES = 3


class Names(Files):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rooms: dict[int, Room] = {}
        self._rooms_asked_at = float("-inf")

    # ---- room ----

    async def statfs(self, caller: Caller, loc: Loc) -> StatVfs:
        await self.settled()
        answers = await self.ask(self.up_ones, lambda i, c: c.statfs(caller, loc))
        found = good_of(answers)
        if not found:
            raise next(iter(errors_of(answers).values()), None) or self.away([], "statfs")
        return total(found.values())

    async def look_for_room(self) -> None:
        caller, loc = self.owner(), Loc(gfid=bytes(15) + b"\x01")
        answers = await self.ask(self.up_ones, lambda i, c: c.statfs(caller, loc))
        self.rooms |= {i: room_of(found) for i, found in good_of(answers).items()}

    def _is_full(self, index: int) -> bool:
        now = self.context.now()
        if now - self._rooms_asked_at > self.options["min-free-interval"]:
            self._rooms_asked_at = now
            self.context.spawn(self.look_for_room(), f"{self.name}: free space")
        room = self.rooms.get(index)
        return room is not None and room.is_full(self.options["min-free-disk"], self.options["min-free-inodes"])

    def _with_room(self, known: Directory, index: int) -> int:
        """Where a new file goes whose name belongs to ``index``."""
        if not self._is_full(index) and index not in self.decommissioned:
            return index
        others = [i for i in self.up_ones if i not in self.decommissioned and not self._is_full(i)]
        in_layout = [i for i in others if i in known.layout.ranges and not known.layout.ranges[i].is_empty]
        chosen = in_layout or others
        return max(chosen, key=lambda i: self.rooms[i].bytes_free if i in self.rooms else 0) if chosen else index

    # ---- making ----

    def _extra(self, known: Directory, index: int, extra: Xattrs | None) -> Xattrs | None:
        """The brick refuses (ESTALE) when the directory's layout is another one than we think."""
        value = known.raw.get(index)
        if value is None:
            return extra
        return {**(extra or {}), PRECONDITION + self.layout_key: value}

    async def _make(
        self, fop: str, caller: Caller, loc: Loc, *args: Any, gfid: bytes, extra: Xattrs | None, **kwargs: Any
    ) -> tuple[Looked, int]:
        """One new object that is no directory, and where it is.  EEXIST."""
        for attempt in range(_TRIES):
            known, index = await self.hashed_up(loc)
            await self._refuse_elsewhere(caller, loc, known, index)
            place = self._with_room(known, index)
            try:
                if place == index:
                    more = self._extra(known, index, extra)
                    call = getattr(self.subvolumes[index], fop)
                    looked: Looked = await call(caller, loc, *args, gfid=gfid, extra=more, **kwargs)
                else:
                    looked = await self._make_aside(fop, caller, loc, known, place, args, gfid, extra, kwargs)
            except FopError as error:
                if error.errno == errno.ESTALE and attempt + 1 < _TRIES:
                    self.directories.drop(loc.parent)  # its layout has changed, or it is gone
                    continue
                if error.errno == errno.EEXIST and await self._was_stale(caller, loc, index):
                    continue
                raise
            self.files.put(gfid, place)
            self.known_names.put((loc.parent, loc.name), (gfid, place))
            looked.parent = self.parent_after(loc.parent, looked.parent)
            return looked, place
        raise FopError(errno.ESTALE, f"{self.name}: {loc} does not keep still")

    async def _refuse_elsewhere(self, caller: Caller, loc: Loc, known: Directory, index: int) -> None:
        """EEXIST where a name can be elsewhere without a link file (adopted bricks, other layouts before)."""
        if self.is_final(known) or self.count == 1:
            return
        others = [i for i in self.up_ones if i != index]
        answers = await self.ask(others, lambda i, c: c.lookup(caller, name_of(loc), want=FILE_WANT))
        if any(not is_link(a.xattrs) for a in good_of(answers).values()):
            raise FopError(errno.EEXIST, str(loc))

    async def _refuse_again(self, caller: Caller, loc: Loc, known: Directory, index: int) -> None:
        """The name is locked, and perhaps belongs elsewhere than when it was looked for."""
        now, owner = await self.hashed(loc)
        if owner != index:
            raise FopError(errno.ESTALE, f"{self.name}: the layout of {loc} has changed again")
        if now is not known:
            await self._refuse_elsewhere(caller, loc, now, index)

    async def _was_stale(self, caller: Caller, loc: Loc, index: int) -> bool:
        """EEXIST because of a link file that leads nowhere; it is gone now."""
        try:
            looked = await self.subvolumes[index].lookup(caller, name_of(loc), want=FILE_WANT)
            if not is_link(looked.xattrs):
                return False
            await self.find(caller, loc)
        except FopError as error:
            if error.errno not in GONE:
                raise
        else:
            return False
        await self.remove_stale(loc, index, LockCommand.WAIT)
        return True

    async def _make_aside(
        self, fop: str, caller: Caller, loc: Loc, known: Directory, place: int, args: Any, gfid: bytes,
        extra: Xattrs | None, kwargs: Any,
    ) -> Looked:  # fmt: skip
        """Somewhere else than where the name belongs: link file first."""
        async with self.names_kept(loc) as (index,):
            await self._refuse_again(caller, loc, known, index)
            await self.make_link(index, loc, gfid, place)
            try:
                call = getattr(self.subvolumes[place], fop)
                looked: Looked = await call(caller, loc, *args, gfid=gfid, extra=extra, **kwargs)
            except OSError:
                await self.undo(self.subvolumes[index].unlink(self.owner(), of_file(loc, gfid)))
                raise
            return looked

    async def create(
        self, caller: Caller, loc: Loc, fd: Fd, *, flags: int, mode: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        try:
            looked, place = await self._make(
                "create", caller, loc, fd, gfid=gfid, extra=extra, flags=flags | os.O_EXCL | os.O_CREAT, mode=mode
            )
        except FopError as error:
            if error.errno != errno.EEXIST or flags & os.O_EXCL:
                raise
            return await self._open_instead(caller, loc, fd, flags)
        self.opened(fd, place, flags)
        return looked

    async def _open_instead(self, caller: Caller, loc: Loc, fd: Fd, flags: int) -> Looked:
        looked = (await self.find(caller, loc))[1]
        if looked.iatt.is_directory:
            raise FopError(errno.EISDIR, str(loc))
        fd.gfid = looked.iatt.gfid
        await self.open(caller, Loc(looked.iatt.gfid, loc.parent, loc.name, loc.path), fd, flags=flags & ~os.O_CREAT)
        if flags & os.O_TRUNC:
            looked = await self.stat(caller, fd)
        return looked

    async def mknod(
        self, caller: Caller, loc: Loc, *, mode: int, rdev: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        return (await self._make("mknod", caller, loc, gfid=gfid, extra=extra, mode=mode, rdev=rdev))[0]

    async def symlink(
        self, caller: Caller, loc: Loc, *, target: bytes, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        return (await self._make("symlink", caller, loc, gfid=gfid, extra=extra, target=target))[0]

    async def link(self, caller: Caller, source: Loc, loc: Loc) -> Looked:
        """The new name lies with the data; where it belongs elsewhere, a link file is made first."""
        target = await self.by_gfid(source)
        assert isinstance(target, Loc)
        if await self.is_directory(target):
            raise FopError(errno.EPERM, f"{source} is a directory")
        for _ in range(_TRIES):
            known, index = await self.hashed_up(loc)
            place = await self.place(target)
            await self._refuse_elsewhere(caller, loc, known, index)
            try:
                looked, place = await self._link_at(caller, target, loc, known, index, place)
            except FopError as error:
                if error.errno == errno.EEXIST and await self._was_stale(caller, loc, index):
                    continue
                if error.errno not in GONE or self.files.get(target.gfid) is None:
                    raise
                self.files.drop(target.gfid)
                continue
            self.known_names.put((loc.parent, loc.name), (target.gfid, place))
            return self.shown(looked, ())
        raise FopError(errno.ESTALE, f"{self.name}: {loc} does not keep still")

    async def _link_at(
        self, caller: Caller, source: Loc, loc: Loc, known: Directory, index: int, place: int
    ) -> tuple[Looked, int]:
        if place == index:
            looked, is_true = await self.with_layout(caller, Step("link", (source, loc)), loc, place)
            if not is_true:
                await self._claim_link(loc, source.gfid, place)
            if is_suspicious(looked.iatt) and (await self.settled_phase(place, source)).is_link:
                await self.undo(self.subvolumes[place].unlink(caller, of_file(loc, source.gfid)))
                raise FopError(errno.ESTALE, f"{self.name}: {source} has moved")
            return looked, place
        async with self.names_kept(loc) as (index,):
            if place == index:
                raise FopError(errno.ESTALE, f"{self.name}: the layout of {loc} has changed")
            await self._refuse_again(caller, loc, known, index)
            child = self.need(place, source)
            await self.make_link(index, loc, source.gfid, place)
            try:
                looked = await child.link(caller, source, loc)
            except FopError as error:
                if error.errno != errno.EEXIST or not await self.remove_left_over(place, loc):
                    await self.undo(self.subvolumes[index].unlink(self.owner(), of_file(loc, source.gfid)))
                    raise
                looked = await child.link(caller, source, loc)
            if is_suspicious(looked.iatt) and (await self.settled_phase(place, source)).is_link:
                await self.undo(child.unlink(caller, of_file(loc, source.gfid)))
                await self.undo(self.subvolumes[index].unlink(self.owner(), of_file(loc, source.gfid)))
                raise FopError(errno.ESTALE, f"{self.name}: {source} has moved")
            return looked, place

    async def _claim_link(self, loc: Loc, gfid: bytes, place: int) -> None:
        async with self.names_kept(loc) as (index,):
            try:
                await self.claim_name(loc, gfid, place, index, replaces=False)
            except OSError:
                await self.undo(self.subvolumes[place].unlink(self.owner(), of_file(loc, gfid)))
                raise

    async def with_layout(self, caller: Caller, step: Step, loc: Loc, index: int) -> tuple[Looked, bool]:
        """A change of a name on one subvolume, and whether the name still belongs there as far as we know."""
        directory = Loc(gfid=loc.parent)
        answers = await self.subvolumes[index].compound(
            caller, [step, Step("stat", (directory,), {"want": (self.layout_key,)})]
        )
        if isinstance(answers[0], OSError):
            raise answers[0]
        known = self.directories.get(loc.parent)
        there = answers[-1].xattrs.get(self.layout_key) if not isinstance(answers[-1], OSError) else None
        is_true = known is not None and there == known.raw.get(index)
        if not is_true:
            self.directories.drop(loc.parent)
        return answers[0], is_true

    async def claim_name(self, loc: Loc, gfid: bytes, place: int, index: int, *, replaces: bool) -> None:
        """A file has got a name on ``place``, and the name belongs to ``index``, perhaps since a moment ago: there it
        gets its link file, in place of what is there.  The name is locked.  EEXIST, EISDIR: it is taken."""
        if place == index:
            return
        caller = self.owner()
        looked: Answers = await self.ask((place, index), lambda i, c: c.lookup(caller, loc, want=FILE_WANT))
        for error in errors_of(looked).values():
            if error.errno not in GONE:
                raise error
        found: dict[int, Looked] = good_of(looked)
        if place not in found or found[place].iatt.gfid != gfid or is_link(found[place].xattrs):
            return  # somebody has gone on with it
        there = found.get(index)
        if there is None or there.iatt.gfid == gfid:
            await self.repair_link_locked(loc, index)
            return
        if there.iatt.is_directory:
            raise FopError(errno.EISDIR if replaces else errno.EEXIST, str(loc))
        if not replaces and await self._is_taken(loc):
            raise FopError(errno.EEXIST, str(loc))
        await self.keep_open(there.iatt.gfid, index)
        await self.replace_link(index, loc, gfid, place, there.iatt.gfid)
        await self.clear_unreachable(loc, index)

    async def _is_taken(self, loc: Loc) -> bool:
        try:
            await self.find(self.owner(), loc, has_lock=True)
        except FopError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    async def remove_left_over(self, place: int, loc: Loc) -> bool:
        """Data at a name that has no link file (we hold the name's lock): a crash left them, nobody can reach them.
        Only where the directory's layout says that nothing can be without a link file."""
        known, _ = await self.hashed(loc)
        if not self.is_final(known):
            return False
        caller, child = self.owner(), self.subvolumes[place]
        looked = await child.lookup(caller, name_of(loc), want=FILE_WANT)
        if looked.iatt.is_directory:
            return False
        try:
            await child.unlink(caller, of_file(loc, looked.iatt.gfid))
        except FopError as error:
            if error.errno != errno.ESTALE:
                raise
            return False
        return True

    # ---- removing ----

    async def unlink(self, caller: Caller, loc: Loc) -> Looked:
        named = name_of(loc)
        _, index = await self.hashed_up(loc)
        known = self.known_names.get((loc.parent, loc.name))
        if known is None or known[1] != index:
            return self._unlinked(loc, await self._unlink_found(caller, named, index))
        await self.keep_open(known[0], index)
        return self._unlinked(loc, await self._unlink_alone(caller, named, index))

    async def _unlink_alone(self, caller: Caller, loc: Loc, index: int) -> Looked:
        """Where a name belongs it is removed, without a lock.  Was it the file?"""
        try:
            looked: Looked = await self.subvolumes[index].unlink(caller, loc)
        except FopError as error:
            if error.errno != errno.ENOENT or await self.is_fresh(loc, index):
                raise
            async with self.names_kept(loc) as (index,):
                return await self._unlink_locked(caller, loc, index)
        finally:
            self.known_names.drop((loc.parent, loc.name))
        if not is_suspicious(looked.iatt):
            return looked
        if not looks_like_link(looked.iatt):
            await self._unlink_links(loc, index)  # it was being migrated
            return looked
        async with self.names_kept(loc) as (now,):
            if now != index:  # it has gone where it belongs by another layout
                return await self._unlink_locked(caller, loc, now, looked)
            # Another client has moved the name since; what it led to goes as well.
            return await self.clear_unreachable(loc, index) or looked

    async def clear_unreachable(self, loc: Loc, index: int) -> Looked | None:
        """A link file of the name is gone: what it led to goes too, unless another one there leads to it by now.  The
        name is locked."""
        caller = self.owner()
        answers = await self.ask(self.up_ones, lambda i, c: c.lookup(caller, loc, want=FILE_WANT))
        found: dict[int, Looked] = good_of(answers)
        if any(a.iatt.is_directory for a in found.values()):
            return None
        reached: set[int] = set()
        at: int | None = index
        while at is not None and at not in reached:
            reached.add(at)
            at = self.number_of.get(linkto_name(found[at].xattrs.get(LINKTO, b""))) if at in found else None
        others = [i for i in found if i not in reached]
        answers = await self.ask(others, lambda i, c: c.unlink(caller, of_file(loc, found[i].iatt.gfid)))
        removed: dict[int, Looked] = good_of(answers)
        return next((a for i, a in removed.items() if not is_link(found[i].xattrs)), None)

    def _unlinked(self, loc: Loc, looked: Looked) -> Looked:
        if looked.iatt.nlink == 0:
            self.files.drop(looked.iatt.gfid)
        looked.parent = self.parent_after(loc.parent, looked.parent)
        return looked

    async def _unlink_found(self, caller: Caller, loc: Loc, index: int) -> Looked:
        """Data first, link files after it."""
        place, found = await self.find(caller, loc)
        if found.iatt.is_directory:
            raise FopError(errno.EISDIR, str(loc))
        await self.keep_open(found.iatt.gfid, place)
        if place == index and not stat.S_ISVTX & found.iatt.mode:
            return await self._unlink_alone(caller, loc, index)
        async with self.names_kept(loc) as (index,):
            return await self._unlink_locked(caller, loc, index)

    async def _unlink_locked(self, caller: Caller, loc: Loc, index: int, removed: Looked | None = None) -> Looked:
        """``removed``: its link file, already."""
        while True:
            try:
                place, found = await self.find(caller, loc, has_lock=True)
            except FopError as error:
                if error.errno != errno.ENOENT or removed is None:
                    raise
                return await self.clear_unreachable(loc, index) or removed
            if found.iatt.is_directory:
                raise FopError(errno.EISDIR, str(loc))
            await self.keep_open(found.iatt.gfid, place)
            removed = await self.need(place, loc).unlink(caller, loc)
            self.known_names.drop((loc.parent, loc.name))
            if not looks_like_link(removed.iatt):
                await self._unlink_links(loc, place)
                return removed
            # It was moved away in this moment, and only a link file was removed.

    async def _unlink_links(self, loc: Loc, place: int) -> None:
        """Link files of a name without data."""
        caller = self.owner()
        others = [i for i in self.up_ones if i != place]
        answers = await self.ask(others, lambda i, c: c.lookup(caller, loc, want=FILE_WANT))
        links = {i: a.iatt.gfid for i, a in good_of(answers).items() if is_link(a.xattrs)}
        await self.ask(list(links), lambda i, c: c.unlink(caller, of_file(loc, links[i])))
