# SPDX-License-Identifier: Apache-2.0
"""Making, removing and renaming directories, which are on every subvolume.

The subvolume that the name belongs to decides: it comes first when a directory is made or renamed, last when one is
removed.  What fails on the way is undone.  A crash leaves copies missing, which the next lookup makes, or copies at two
places, which the note of the rename (``MOVING``) tells how to bring together.
"""

from __future__ import annotations

import errno
import logging
import stat
from dataclasses import dataclass
from functools import partial

from repl.files.answers import GONE, Answers, errors_of, good_of
from repl.files.translator import Step, Translator
from repl.files.translators.distribute.base import NO_LOCKS, telling_error
from repl.files.translators.distribute.layout import COMMIT_NONE, Range, new_layout
from repl.files.translators.distribute.links import name_of, of_file
from repl.files.translators.distribute.marks import (
    FILE_WANT,
    MDS,
    MDS_ZERO,
    MOVING,
    Moving,
    is_link,
    parse_moving,
)
from repl.files.translators.distribute.names import Names
from repl.files.values import Caller, Entry, Fd, FopError, Loc, LockCommand, LockType, Looked, SetAttr, Xattrs

log = logging.getLogger(__name__)

_LISTING_BYTES = 64 * 1024
_TRIES = 3
_NOT_COPIED = (b"trusted.gfid", b"trusted.afr")


@dataclass(slots=True)
class Copy:
    """One copy of a directory as it was: to make it again."""

    looked: Looked
    xattrs: Xattrs


class Trees(Names):
    # ---- making ----

    async def mkdir(self, caller: Caller, loc: Loc, *, mode: int, gfid: bytes, extra: Xattrs | None = None) -> Looked:
        for attempt in range(_TRIES):
            known, index = await self.hashed_up(loc)
            await self._refuse_elsewhere(caller, loc, known, index)
            ranges = self.ranges_for_new(loc, gfid)
            first = {**(extra or {}), self.layout_key: ranges.get(index, Range(0, 0, self._new_commit())).pack()}
            if self.count > 1:
                first[MDS] = MDS_ZERO
            try:
                return await self._mkdir(caller, loc, mode, gfid, index, ranges, self._extra(known, index, first) or {},
                                         extra or {})  # fmt: skip
            except FopError as error:
                if error.errno == errno.ESTALE and attempt + 1 < _TRIES:
                    self.directories.drop(loc.parent)
                    continue
                if error.errno == errno.EEXIST and await self._was_stale(caller, loc, index):
                    continue
                raise
        raise FopError(errno.ESTALE, f"{self.name}: {loc} does not keep still")

    async def _mkdir(
        self, caller: Caller, loc: Loc, mode: int, gfid: bytes, index: int, ranges: dict[int, Range], first: Xattrs,
        extra: Xattrs,
    ) -> Looked:  # fmt: skip
        """The name's lock and the first copy in one frame; then the other copies."""
        child, owner, parent = self.subvolumes[index], self.owner(), Loc(gfid=loc.parent)
        make = Step("mkdir", (loc,), {"mode": mode, "gfid": gfid, "extra": first})
        if self.count == 1:
            looked: Looked = await child.mkdir(caller, loc, mode=mode, gfid=gfid, extra=first)
            return looked
        lock = Step("entrylk", (self.domain, parent, loc.name, LockCommand.WAIT, LockType.WRITE))
        who = Caller(caller.uid, caller.gid, caller.groups, caller.pid, owner.client, owner.lock_owner)
        answers = await child.compound(who, [lock, make])
        is_locked = not isinstance(answers[0], OSError)
        if not is_locked and answers[0].errno in NO_LOCKS:
            answers = [None, *await child.compound(who, [make])]
        try:
            if isinstance(answers[-1], OSError):
                raise answers[-1]
            looked = answers[1]
            await self._make_copies(who, loc, mode, gfid, index, looked, ranges, extra)
            looked.parent = None
            return looked
        finally:
            if is_locked:
                self._unlock(
                    partial(child.entrylk, who, self.domain, parent, loc.name, LockCommand.TRY, LockType.UNLOCK)
                )

    async def _make_copies(
        self, caller: Caller, loc: Loc, mode: int, gfid: bytes, index: int, looked: Looked, ranges: dict[int, Range],
        extra: Xattrs,
    ) -> None:  # fmt: skip
        others = [i for i in self.up_ones if i != index]
        answers = await self.ask(others, lambda i, c: self._make_copy(c, caller, loc, mode, gfid, {
            **extra, self.layout_key: ranges.get(i, Range(0, 0, self._new_commit())).pack()}))  # fmt: skip
        if errors := errors_of(answers):
            log.info("volume '%s': %s is not everywhere yet: %s", self.name, loc, telling_error(errors))
            self._later(partial(self.lookup, self.owner(), name_of(loc)), f"copies of {loc}")
        elif all(self.up):
            self._learn_made(gfid, index, {index: looked, **answers}, ranges)

    def _learn_made(self, gfid: bytes, index: int, made: dict[int, Looked], ranges: dict[int, Range]) -> None:
        """What we have just made is known without asking."""
        for i, looked in made.items():
            looked.xattrs = {self.layout_key: ranges.get(i, Range(0, 0, self._new_commit())).pack()}
        made[index].xattrs[MDS] = MDS_ZERO
        self.learn(gfid, made)
        made[index].xattrs = {}

    def _new_commit(self) -> int:
        return self.volume_commit if self.volume_commit is not None else COMMIT_NONE

    def ranges_for_new(self, loc: Loc, gfid: bytes) -> dict[int, Range]:
        return new_layout(
            self.place_of(gfid, loc), self.eligible(), commit=self._new_commit(),
            spread=min(self.options["directory-layout-spread"], len(self.eligible())),
        )  # fmt: skip

    async def _make_copy(self, child: Translator, caller: Caller, loc: Loc, mode: int, gfid: bytes, extra: Xattrs
                         ) -> Looked:  # fmt: skip
        """Where a directory of this name is left over from something that was interrupted, it goes if it is empty."""
        try:
            return await child.mkdir(caller, loc, mode=mode, gfid=gfid, extra=extra)
        except FopError as error:
            if error.errno != errno.EEXIST:
                raise
        there = await child.lookup(self.owner(), name_of(loc))
        if there.iatt.gfid == gfid:  # a lookup was quicker, and has made a layout of what it found
            raise FopError(errno.EEXIST, f"{self.name}: {loc} has been healed already")
        if there.iatt.is_directory:
            await child.rmdir(self.owner(), name_of(loc))
        else:
            await child.unlink(self.owner(), of_file(loc, there.iatt.gfid))
        return await child.mkdir(caller, loc, mode=mode, gfid=gfid, extra=extra)

    # ---- emptiness ----

    async def links_in(self, gfid: bytes) -> dict[int, list[Entry]]:
        """What may go from an otherwise empty directory, by subvolume: link files, and left-overs.  ENOTEMPTY."""
        answers = await self.ask(self.up_ones, lambda i, c: self._unreachable(i, gfid))
        if errors := {i: e for i, e in errors_of(answers).items() if e.errno not in GONE}:
            raise telling_error(errors)
        return good_of(answers)

    async def _unreachable(self, index: int, gfid: bytes) -> list[Entry]:
        child, caller, fd = self.subvolumes[index], self.owner(), Fd(gfid, is_directory=True)
        await child.opendir(caller, Loc(gfid=gfid), fd)
        found: list[Entry] = []
        try:
            offset = 0
            while True:
                part: list[Entry] = await child.readdir(
                    caller, fd, size=_LISTING_BYTES, offset=offset, want=FILE_WANT
                )
                if not part:
                    return found
                for entry in part:
                    if entry.name in (b".", b".."):
                        continue
                    if not is_link(entry.xattrs) and not await self._is_left_over(index, gfid, entry):
                        raise FopError(errno.ENOTEMPTY, f"{self.name}: {child.name}")
                    found.append(entry)
                offset = part[-1].offset
        finally:
            await child.release(fd)

    async def _is_left_over(self, index: int, gfid: bytes, entry: Entry) -> bool:
        """Data that no name leads to, or a copy of a directory without the one that decides, in a directory where that
        is certain."""
        known = await self.directory(gfid)
        owner = known.layout.owner(self.hash_of(entry.name))
        if owner in (None, index) or not self.is_final(known):
            return False
        try:
            await self.find(self.owner(), Loc(parent=gfid, name=entry.name))
        except FopError as error:
            return error.errno == errno.ENOENT
        return False

    async def clear_links(self, gfid: bytes) -> None:
        """What is left in an empty directory.  ENOTEMPTY."""
        caller = self.owner()
        for index, entries in (await self.links_in(gfid)).items():
            child = self.subvolumes[index]
            for entry in entries:
                loc = Loc(entry.gfid, gfid, entry.name)
                await self.undo(child.rmdir(caller, loc) if entry.kind == stat.S_IFDIR else child.unlink(caller, loc))

    # ---- removing ----

    async def rmdir(self, caller: Caller, loc: Loc, *, recursive: bool = False) -> Looked:
        self.need_all(f"removing {loc}")
        named = name_of(loc)
        async with self.names_kept(named) as (index,):
            found = (await self.find(caller, named, has_lock=True))[1]
            if not found.iatt.is_directory:
                raise FopError(errno.ENOTDIR, str(loc))
            gfid = found.iatt.gfid
            if not recursive:
                await self.clear_links(gfid)
            copies = await self._copies(gfid)
            others = [i for i in self.everyone if i != index]
            answers = await self.ask(others, lambda i, c: c.rmdir(caller, named, recursive=recursive))
            removed = list(good_of(answers))
            errors = await self._still_there(named, gfid, answers)
            if not errors:
                last = await self.ask([index], lambda i, c: c.rmdir(caller, named, recursive=recursive))
                errors = {i: e for i, e in errors_of(last).items() if e.errno not in GONE or not removed}
            if errors:
                await self._make_again(named, gfid, {i: copies[i] for i in removed if i in copies})
                raise telling_error(errors)
        self.directories.drop(gfid)
        looked: Looked = good_of(last).get(index) or answers[removed[0]]
        if self.count > 1:
            looked.parent = None
        return looked

    async def _copies(self, gfid: bytes) -> dict[int, Copy]:
        caller, loc = self.owner(), Loc(gfid=gfid)

        async def copy(_: int, child: Translator) -> Copy:
            return Copy(await child.lookup(caller, loc), await child.getxattr(caller, loc))

        return good_of(await self.ask(self.up_ones, copy))

    async def _make_again(self, loc: Loc, gfid: bytes, copies: dict[int, Copy]) -> None:
        """A directory could not be removed everywhere: it comes back where it was."""
        caller = self.owner()

        async def again(index: int, child: Translator) -> None:
            iatt = copies[index].looked.iatt
            kept = {k: v for k, v in copies[index].xattrs.items() if not k.startswith(_NOT_COPIED)}
            mode = stat.S_IMODE(iatt.mode)
            await child.mkdir(caller, loc, mode=mode, gfid=gfid, extra=kept)
            await child.setattr(caller, Loc(gfid=gfid), SetAttr(mode=mode, uid=iatt.uid, gid=iatt.gid))

        for index, error in errors_of(await self.ask(list(copies), again)).items():
            log.warning("volume '%s': %s on '%s' is left to the next lookup: %s", self.name, loc, self.names[index],
                        error)  # fmt: skip
        self.directories.drop(gfid)

    # ---- renaming ----

    async def rename_directory(self, caller: Caller, source: Loc, target: Loc, gfid: bytes, flags: int) -> Looked:
        """On all subvolumes; the one that the new name belongs to decides."""
        self.need_all(f"renaming {source}")
        async with self.names_kept(source, target) as (old_index, index):
            if (await self.find(caller, source, has_lock=True))[1].iatt.gfid != gfid:
                raise FopError(errno.ESTALE, f"{self.name}: {source} has been replaced")
            replaced = await self._replaced(caller, target, gfid)
            if replaced is not None and replaced.iatt.gfid == gfid:
                return replaced
            note = Moving(source.parent, source.name, target.parent, target.name).pack()
            noted = sorted({old_index, index})
            await self._note(noted, gfid, {MOVING: note})
            copies = await self._copies(replaced.iatt.gfid) if replaced is not None else {}
            try:
                looked = await self._rename_all(caller, source, target, index, flags)
            except OSError:
                if replaced is not None:
                    await self._make_again(target, replaced.iatt.gfid, await self._lost(target, copies))
                await self._unnote(noted, gfid)
                raise
            await self._unnote(noted, gfid)
        if replaced is not None:
            self.directories.drop(replaced.iatt.gfid)
        self.directories.drop(gfid)
        looked.parent = None
        return looked

    async def _replaced(self, caller: Caller, target: Loc, gfid: bytes) -> Looked | None:
        """The empty directory at the new name.  ENOTEMPTY, ENOTDIR."""
        try:
            _, there = await self.find(caller, target, has_lock=True)
        except FopError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        if not there.iatt.is_directory:
            raise FopError(errno.ENOTDIR, str(target))
        if there.iatt.gfid != gfid:
            await self.clear_links(there.iatt.gfid)
        return there

    async def _lost(self, target: Loc, copies: dict[int, Copy]) -> dict[int, Copy]:
        """Copies that are not at the name any more."""
        caller = self.owner()
        answers = await self.ask(list(copies), lambda i, c: c.lookup(caller, target))
        return {i: copies[i] for i in errors_of(answers)}

    async def _note(self, indexes: list[int], gfid: bytes, values: Xattrs) -> None:
        caller = self.owner()
        answers = await self.ask(indexes, lambda i, c: c.setxattr(caller, Loc(gfid=gfid), values))
        if errors := errors_of(answers):
            raise telling_error(errors)

    async def _unnote(self, indexes: list[int], gfid: bytes) -> None:
        caller = self.owner()
        await self.ask(indexes, lambda i, c: c.removexattr(caller, Loc(gfid=gfid), MOVING))

    async def _rename_all(self, caller: Caller, source: Loc, target: Loc, index: int, flags: int) -> Looked:
        looked: Looked = await self.subvolumes[index].rename(caller, source, target, flags=flags)
        others = [i for i in self.everyone if i != index]
        answers = await self.ask(others, lambda i, c: c.rename(caller, source, target, flags=flags))
        if not (errors := await self._still_there(source, looked.iatt.gfid, answers)):
            return looked
        back = [index, *good_of(answers)]
        undone = await self.ask(back, lambda i, c: c.rename(self.owner(), target, source))
        for i, error in errors_of(undone).items():
            log.warning("volume '%s': %s could not be renamed back on '%s': %s", self.name, target, self.names[i],
                        error)  # fmt: skip
        raise telling_error(errors)

    async def _still_there(self, loc: Loc, gfid: bytes, answers: Answers) -> dict[int, OSError]:
        """What failed.  A copy that was not there need not be moved or removed; but it may only not have been seen
        while bricks went, so it is looked for again."""
        errors = {i: e for i, e in errors_of(answers).items() if e.errno not in GONE}
        gone, caller = errors_of(answers).keys() - errors.keys(), self.owner()
        looked = await self.ask(sorted(gone), lambda i, c: c.lookup(caller, name_of(loc)))
        errors |= {i: e for i, e in errors_of(looked).items() if e.errno not in GONE}
        for i, there in good_of(looked).items():
            if there.iatt.gfid == gfid:
                errors[i] = FopError(errno.ENOTCONN, f"{self.names[i]}: its copy of {loc} was not seen for a moment")
        return errors

    async def _heal_moves(self, gfid: bytes, loc: Loc, found: dict[int, Looked]) -> None:
        """A crash interrupted the rename of a directory: where the new name belongs, it has been renamed or not."""
        notes = {i: parse_moving(a.xattrs[MOVING]) for i, a in found.items() if MOVING in a.xattrs}
        moving = next((note for note in notes.values() if note is not None), None)
        if moving is None:
            return
        old = Loc(parent=moving.old_parent, name=moving.old_name)
        new = Loc(parent=moving.new_parent, name=moving.new_name)
        _, old_index = await self.hashed(old)
        _, index = await self.hashed(new)
        if index is None or old_index is None or not all(self.up):
            return
        try:
            async with self.locked_names((old_index, old), (index, new), command=LockCommand.TRY):
                await self._finish_move(gfid, old, new, index, list(notes))
        except FopError as error:
            if error.errno != errno.EAGAIN:  # the rename is still under way
                raise
            return
        for i in notes:
            found[i].xattrs.pop(MOVING, None)

    async def _finish_move(self, gfid: bytes, old: Loc, new: Loc, index: int, notes: list[int]) -> None:
        caller = self.owner()
        decided = await self.ask([index], lambda i, c: c.lookup(caller, new))
        is_new = index in good_of(decided) and decided[index].iatt.gfid == gfid
        wrong, right = (old, new) if is_new else (new, old)
        there = good_of(await self.ask(self.everyone, lambda i, c: c.lookup(caller, wrong)))
        late = [i for i, a in there.items() if a.iatt.gfid == gfid]
        answers = await self.ask(late, lambda i, c: c.rename(caller, wrong, right))
        if errors := errors_of(answers):
            raise telling_error(errors)
        await self._unnote(notes, gfid)
