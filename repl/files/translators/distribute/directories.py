# SPDX-License-Identifier: Apache-2.0
"""Directories as a whole: their layouts, their copies on all subvolumes, and how differences between them are healed.

A directory is on every subvolume.  What is missing on one (a copy, a range of the layout, attributes that changed
while it was away) is put right by whoever looks the directory up, under a lock.  Ranges of a subvolume that is away
stay as they are: names in them answer ENOTCONN.
Decisions: 0063 (commit numbers and misses), 0064 (who counts when copies differ).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import stat
from collections.abc import Mapping, Sequence, Set
from typing import Any

from repl.files.answers import AWAY, GONE, errors_of, good_of
from repl.files.options import Options
from repl.files.translator import Context, Step, Translator
from repl.files.translators.distribute.base import Base, telling_error
from repl.files.translators.distribute.caches import Directory
from repl.files.translators.distribute.layout import (
    COMMIT_INVALID,
    LAST_HASH,
    Range,
    fixed_layout,
    new_layout,
    read_layout,
)
from repl.files.translators.distribute.marks import (
    COMMIT_HASH,
    MDS,
    MDS_ONE,
    MDS_ZERO,
    MOVING,
    commit_number,
    commit_value,
    mds_count,
    mds_value,
)
from repl.files.translators.distribute.notes import Notes
from repl.files.values import (
    ROOT_GFID,
    Caller,
    Fd,
    FopError,
    Iatt,
    Loc,
    LockCommand,
    Looked,
    SetAttr,
    Want,
    XattrOp,
    Xattrs,
    gfid_text,
)
from repl.files.watching import copy_of

log = logging.getLogger(__name__)

DIRECTORY_KNOWN_S = 1.0  # so long its attributes are taken as known when a name in it is changed
TRUST_S = 1.0  # so long a layout is believed without asking when a name is missing
KEPT_BY_US = (b"trusted.",)
_MAKING_PAUSES_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # between looks at a directory that is being made


def merged(found: Mapping[int, Looked], mds: int) -> Iatt:
    """The attributes of a directory: those of the copy that counts, with the latest times."""
    answers = list(found.values())
    iatt = found[mds].iatt if mds in found else answers[0].iatt
    if len(answers) > 1:
        for other in answers:
            it = other.iatt
            iatt.mtime_ns = max(iatt.mtime_ns, it.mtime_ns)
            iatt.ctime_ns = max(iatt.ctime_ns, it.ctime_ns)
            iatt.atime_ns = max(iatt.atime_ns, it.atime_ns)
            iatt.nlink = max(iatt.nlink, it.nlink)
            iatt.size = max(iatt.size, it.size)
            iatt.blocks = max(iatt.blocks, it.blocks)
    return iatt


class Directories(Base):
    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self.notes = Notes(name, context, self._take_back)

    async def finish(self) -> None:
        await self.notes.settle()

    async def stop(self) -> None:
        await self.finish()

    # ---- what is known ----

    async def directory(self, gfid: bytes) -> Directory:
        """What is known of a directory; asks all subvolumes if nothing is.  ESTALE, ENOTDIR."""
        known = self.directories.get(gfid)
        if known is not None and known.generation == self.generation:
            return known
        await self.settled()
        found = await self.ask_directory(Loc(gfid=gfid), self.wanted_of(gfid))
        return await self.learned(gfid, Loc(gfid=gfid, path=b"/" if gfid == ROOT_GFID else b""), found)

    def wanted_of(self, gfid: bytes, want: Want = ()) -> Want:
        more = (COMMIT_HASH,) if gfid == ROOT_GFID else (MOVING,)
        return (*want, *self.directory_want, *more)

    async def ask_directory(self, loc: Loc, want: Want) -> dict[int, Any]:
        """Looked up on all subvolumes; at least one of them has it."""
        caller = self.owner()
        answers = await self.ask(self.up_ones, lambda i, c: c.lookup(caller, loc, want=want))
        found = good_of(answers)
        if not found:
            raise telling_error(errors_of(answers)) if answers else self.away([], f"looking up {loc}")
        if not all(a.iatt.is_directory for a in found.values()):
            raise FopError(errno.ENOTDIR, f"{self.name}: {loc}")
        return answers

    async def learned(self, gfid: bytes, loc: Loc, answers: dict[int, Any]) -> Directory:
        """From answers of all subvolumes that are up; what is wrong is healed if none is away."""
        known = self.learn(gfid, answers)
        is_settled = known.is_whole or not self._can_tell_all(answers)
        if not is_settled and not (not loc.name and gfid != ROOT_GFID and known.layout.anomalies().is_sound):
            try:
                known = await self.heal_directory(gfid, loc)
            except OSError as error:
                log.warning("volume '%s': directory %s cannot be healed: %s", self.name, loc, error)
        return known

    def _can_tell_all(self, answers: Mapping[int, Any]) -> bool:
        return len(answers) == self.count and all(e.errno in GONE for e in errors_of(answers).values())

    def learn(self, gfid: bytes, answers: dict[int, Any]) -> Directory:
        found: dict[int, Looked] = good_of(answers)
        raw = {i: a.xattrs[self.layout_key] for i, a in found.items() if self.layout_key in a.xattrs}
        before = self.directories.get(gfid)
        if before is not None:  # of those that are away we know what they had
            raw |= {i: value for i, value in before.raw.items() if not self.up[i]}
        layout = read_layout({i: raw.get(i) for i in {**raw, **answers}})
        if gfid == ROOT_GFID:
            numbers = {commit_number(a.xattrs.get(COMMIT_HASH)) for a in found.values()} - {None}
            self.volume_commit = numbers.pop() if len(numbers) == 1 else None
        counters = {i: a.xattrs[MDS] for i, a in found.items() if MDS in a.xattrs}
        pending = not all(self.notes.is_own(gfid, i, mds_count(value)) for i, value in counters.items())
        known = Directory(
            gfid, layout, min(counters, default=min(found)), frozenset(found), raw, self.generation,
            dict.fromkeys(found, self.context.now()), layout.commit(),
            is_whole=len(found) == self.count and not layout.missing and layout.anomalies().is_sound and not pending
            and not _differ(found) and not any(MOVING in a.xattrs for a in found.values()),
        )  # fmt: skip
        self.directories.put(gfid, known)
        return known

    def is_final(self, known: Directory) -> bool:
        """A name that is not where it belongs is nowhere."""
        if not self.looks_everywhere:
            return True
        return self.optimizes and known.commit is not None and known.commit == self.volume_commit

    async def still_true(self, known: Directory, index: int) -> bool:
        """Whether the layout is what it was, as far as the subvolume knows that a name was missed on."""
        now = self.context.now()
        if now - known.checked.get(index, float("-inf")) < TRUST_S:
            return True
        try:
            looked = await self.subvolumes[index].stat(self.owner(), Loc(gfid=known.gfid), want=(self.layout_key,))
        except OSError:
            return False
        if looked.xattrs.get(self.layout_key) != known.raw.get(index):
            self.directories.drop(known.gfid)
            return False
        known.checked[index] = now
        return True

    def eligible(self) -> list[int]:
        """Subvolumes that new ranges may go to."""
        return [i for i in self.up_ones if i not in self.decommissioned] or self.up_ones

    def place_of(self, gfid: bytes, loc: Loc) -> bytes:
        """What decides where the first range of a new layout goes."""
        if self.options["randomize-hash-range-by-gfid"] or not (loc.path or loc.name):
            return gfid_text(gfid).encode()
        return loc.path or loc.name

    # ---- healing ----

    async def heal_directory(self, gfid: bytes, loc: Loc) -> Directory:
        """``loc`` has a name where copies are to be made.  While somebody makes or removes the directory its ranges
        are not touched: who makes it puts its own on the copies that are not there yet."""
        for pause_s in _MAKING_PAUSES_S:
            known, is_in_use = await self._heal(gfid, loc, may_wait=True)
            if not is_in_use:
                return known
            await asyncio.sleep(pause_s)
        return (await self._heal(gfid, loc, may_wait=False))[0]

    async def _heal(self, gfid: bytes, loc: Loc, *, may_wait: bool) -> tuple[Directory, bool]:
        """And whether somebody seems to be at work on its copies.  Without a name that cannot be known, but for how
        long it lasts."""
        first = min(i for i in self.everyone if self.up[i])
        known = self.directories.get(gfid)
        if known is not None and known.present:
            first = min(i for i in known.present if self.up[i])
        async with self.locked_inode(first, Loc(gfid=gfid)):
            answers = await self.ask_directory(Loc(gfid=gfid), self.wanted_of(gfid))
            known = self.learn(gfid, answers)
            if known.is_whole or not self._can_tell_all(answers):
                return known, False
            found: dict[int, Looked] = good_of(answers)
            await self._heal_moves(gfid, loc, found)
            is_in_use = not await self._heal_copies(gfid, loc, known, found)
            if len(found) != self.count and not known.layout.anomalies().is_sound and (is_in_use or may_wait):
                return known, True
            try:
                await self._heal_attributes(gfid, known, found)
                await self._heal_layout(gfid, loc, known, found)
            except FopError as error:
                if error.errno in GONE:
                    await self._drop_made(gfid, loc, found.keys() - good_of(answers).keys())
                raise
            return self.learn(gfid, await self.ask_directory(Loc(gfid=gfid), self.wanted_of(gfid))), False

    async def _heal_moves(self, gfid: bytes, loc: Loc, found: dict[int, Looked]) -> None:
        """For renames that a crash interrupted."""

    async def _heal_copies(self, gfid: bytes, loc: Loc, known: Directory, found: dict[int, Looked]) -> bool:
        """Make the directory where it is missing, with the same gfid and attributes, and no range.  False: somebody is
        at work on the name."""
        missing = [i for i in self.everyone if i not in found]
        if not missing or not loc.name:
            return True
        above = await self.directory(loc.parent)
        index = above.layout.owner(self.hash_of(loc.name))
        if index is None or not self.up[index]:
            return True
        try:
            async with self.locked_names((index, loc), command=LockCommand.TRY):
                if await self._is_there(index, loc, gfid):
                    await self._make_missing(gfid, loc, known, found, missing)
        except FopError as error:
            if error.errno != errno.EAGAIN:
                raise
            return False  # it may be about to go
        return True

    async def _drop_made(self, gfid: bytes, loc: Loc, made: Set[int]) -> None:
        """If the copies that were there are gone, somebody has removed the directory, who knew another layout of the
        names: what was made here goes too."""
        caller, others = self.owner(), [i for i in self.everyone if i not in made]
        answers = await self.ask(others, lambda i, c: c.lookup(caller, Loc(gfid=gfid)))
        if not good_of(answers) and all(e.errno in GONE for e in errors_of(answers).values()):
            for index in sorted(made):
                if (await self.subvolumes[index].lookup(caller, loc)).iatt.gfid == gfid:
                    await self.subvolumes[index].rmdir(caller, loc)

    async def _is_there(self, index: int, loc: Loc, gfid: bytes) -> bool:
        """The copy that decides; where the layout is newer than the directory, any will do."""
        caller = self.owner()
        answers = await self.ask(self.everyone, lambda i, c: c.lookup(caller, loc))
        same = [i for i, a in good_of(answers).items() if a.iatt.gfid == gfid]
        return index in same or (bool(same) and index not in good_of(answers) and self._was_moved(loc))

    def _was_moved(self, loc: Loc) -> bool:
        """The names of the directory have been shared out anew since it was made."""
        above = self.directories.get(loc.parent)
        return above is None or not self.is_final(above)

    async def _make_missing(
        self, gfid: bytes, loc: Loc, known: Directory, found: dict[int, Looked], missing: list[int]
    ) -> None:
        iatt = found[known.mds].iatt if known.mds in found else next(iter(found.values())).iatt
        caller = self.owner()
        values = await self._user_xattrs(known.mds, gfid)
        values[self.layout_key] = Range(0, 0, known.commit if known.commit is not None else COMMIT_INVALID).pack()
        made = await self.ask(missing, lambda i, c: c.mkdir(
            caller, loc, mode=stat.S_IMODE(iatt.mode), gfid=gfid, extra=values))  # fmt: skip
        done = good_of(made)
        await self.ask(list(done), lambda i, c: c.setattr(caller, Loc(gfid=gfid), _ownership(iatt)))
        for i, error in errors_of(made).items():
            if error.errno not in (errno.EEXIST, *AWAY):
                raise error
            log.info("volume '%s': no copy of %s on '%s' yet: %s", self.name, loc, self.names[i], error)
        found.update(done)

    async def _user_xattrs(self, index: int, gfid: bytes) -> Xattrs:
        """Those of applications, ACLs among them."""
        try:
            every = await self.subvolumes[index].getxattr(Caller(client=self.context.process), Loc(gfid=gfid))
        except OSError:
            return {}
        return {k: v for k, v in every.items() if not k.startswith(KEPT_BY_US)}

    async def _heal_attributes(self, gfid: bytes, known: Directory, found: dict[int, Looked]) -> None:
        """Owner, mode and attributes as on the copy that counts."""
        authority = found[known.mds] if known.mds in found else next(iter(found.values()))
        pending = authority.xattrs.get(MDS, MDS_ZERO)
        others = [i for i, a in found.items() if i != known.mds]
        if not any(pending) and not _differ(found):
            return
        caller, loc = self.owner(), Loc(gfid=gfid)
        wanted = await self._user_xattrs(known.mds, gfid)

        async def heal(index: int, _: Any) -> None:
            child = self.subvolumes[index]
            await child.setattr(caller, loc, _ownership(authority.iatt))
            there = await self._user_xattrs(index, gfid)
            if wanted != there and wanted:
                await child.setxattr(caller, loc, wanted)
            for key in there.keys() - wanted.keys():
                await child.removexattr(caller, loc, key)

        answers = await self.ask(others, heal)
        if errors := errors_of(answers):
            raise telling_error(errors)
        if any(pending):
            await self.subvolumes[known.mds].setxattr(caller, loc, {MDS: MDS_ZERO})
            self.notes.forget(gfid)

    async def _heal_layout(self, gfid: bytes, loc: Loc, known: Directory, found: dict[int, Looked]) -> None:
        present = sorted(found)
        ranges = known.layout.ranges
        place = self.place_of(gfid, loc)
        caller, target = self.owner(), Loc(gfid=gfid)
        more: Xattrs = {}
        if gfid == ROOT_GFID and not known.raw:
            commit = COMMIT_INVALID
            if await self._is_fresh_volume(present):
                commit = self.fresh_commit()
                more = {COMMIT_HASH: commit_value(commit)}
            made = new_layout(b"/", self._present_and_eligible(present), commit=commit)
            made = {i: made.get(i, Range(0, 0, commit)) for i in present}
        elif known.layout.anomalies().is_sound:
            made = {i: ranges.get(i, Range(0, 0, known_commit(ranges))) for i in present}
        else:
            made = _filled(ranges, self._present_and_eligible(present)) or fixed_layout(
                place, ranges, self._present_and_eligible(present), commit=COMMIT_INVALID
            )
            made = {i: made.get(i, Range(0, 0, COMMIT_INVALID)) for i in present}
        await self.write_layout(caller, target, made, known.raw, more)

    def _present_and_eligible(self, present: list[int]) -> list[int]:
        return [i for i in present if i not in self.decommissioned] or present

    async def write_layout(
        self, caller: Caller, target: Loc, made: Mapping[int, Range], raw: Mapping[int, bytes], more: Xattrs
    ) -> None:
        """Only what has changed."""
        values = {i: {self.layout_key: r.pack(), **more} for i, r in made.items() if more or r.pack() != raw.get(i)}
        answers = await self.ask(list(values), lambda i, c: c.setxattr(caller, target, values[i]))
        if errors := errors_of(answers):
            raise telling_error(errors)

    def fresh_commit(self) -> int:
        """A commit number that no directory has: neither none nor invalid."""
        return self.context.random.randrange(2, 1 << 32)

    async def _is_fresh_volume(self, present: list[int]) -> bool:
        """All bricks are empty: from now on every name is where it belongs."""
        caller = self.owner()

        async def is_empty(index: int, child: Any) -> bool:
            fd = Fd(ROOT_GFID, is_directory=True)
            await child.opendir(caller, Loc(gfid=ROOT_GFID), fd)
            try:
                return not await child.readdir(caller, fd, size=4096, offset=0)
            finally:
                await child.release(fd)

        answers = await self.ask(present, is_empty)
        return len(present) == self.count and all(a is True for a in answers.values())

    # ---- attributes of directories ----

    async def stat_directory(self, caller: Caller, loc: Loc, want: Want) -> Looked:
        """All copies together."""
        known = self.directories.get(loc.gfid)
        now, changes = self.context.now(), known.changes if known is not None else 0
        answers = await self.ask(self.up_ones, lambda i, c: c.stat(caller, loc, want=want))
        found = good_of(answers)
        if not found:
            raise telling_error(errors_of(answers)) if answers else self.away([], f"looking at {loc}")
        mds = known.mds if known is not None else min(found)
        answer: Looked = found[mds] if mds in found else next(iter(found.values()))
        iatt = merged(found, mds)
        if known is not None and known.changes == changes and len(found) == self.count:
            known.iatt, known.iatt_until = copy_of(iatt), now + DIRECTORY_KNOWN_S
        return Looked(iatt, None, answer.xattrs)

    def parent_after(self, gfid: bytes, part: Iatt | None) -> Iatt | None:
        """The attributes of a directory after a change of a name on one subvolume, whose copy is now ``part``; None if
        those of the others are not known."""
        if self.count == 1:
            return part
        known = self.directories.get(gfid)
        if known is None or known.iatt is None or part is None or known.iatt_until < self.context.now():
            return None
        return copy_of(merged({0: Looked(known.iatt), 1: Looked(part)}, 0))

    async def change_directory(self, caller: Caller, step: Step) -> Any:
        """A change of attributes (``step`` is of one directory): first on the copy that counts, where it is noted in
        the same frame that others do not have it yet (notes.py)."""
        loc: Loc = step.args[0]
        known = await self.directory(loc.gfid)
        known.has_changed()
        mds = self.need(known.mds, loc)
        if self.count == 1:
            return await _carry_out(mds, caller, step)
        answers = await mds.compound(caller, [Step("xattrop", (loc, XattrOp.ADD, {MDS: MDS_ONE})), step])
        if isinstance(answers[-1], OSError):
            if len(answers) > 1 and answers[-1].errno not in AWAY:
                await self._take_back(loc.gfid, known.mds, 1)
            raise answers[-1]
        others = [i for i in known.present if i != known.mds]
        done = await self.ask(others, lambda i, c: _carry_out(c, caller, step))
        errors = {i: e for i, e in errors_of(done).items() if e.errno != errno.ENODATA}
        if not errors and len(known.present) == self.count:
            self.notes.done(loc.gfid, known.mds)
        else:
            known.is_whole = False
            self.directories.drop(loc.gfid)
        return answers[-1]

    async def _take_back(self, gfid: bytes, index: int, count: int) -> None:
        values = {MDS: mds_value(-count)}
        await self.subvolumes[index].xattrop(self.owner(), Loc(gfid=gfid), XattrOp.ADD, values)


async def _carry_out(child: Translator, caller: Caller, step: Step) -> Any:
    return await getattr(child, step.fop)(caller, *step.args, **step.kwargs)


def known_commit(ranges: Mapping[int, Range]) -> int:
    commits = {r.commit for r in ranges.values()}
    return commits.pop() if len(commits) == 1 else COMMIT_INVALID


def _ownership(iatt: Iatt) -> SetAttr:
    return SetAttr(mode=stat.S_IMODE(iatt.mode), uid=iatt.uid, gid=iatt.gid)


def _differ(found: Mapping[int, Looked]) -> bool:
    """Copies that do not have the same owner and mode."""
    answers = [(a.iatt.uid, a.iatt.gid, a.iatt.mode) for a in found.values()]
    return any(answer != answers[0] for answer in answers)


def _filled(ranges: Mapping[int, Range], numbers: list[int]) -> dict[int, Range] | None:
    """The ranges that are there, and what is between them for those without any; None: that cannot be."""
    there = sorted((r.first, r.last, i) for i, r in ranges.items() if not r.is_empty)
    free = [i for i in numbers if i not in ranges or ranges[i].is_empty]
    holes, expected = [], 0
    for first, last, number in there:
        if first < expected or number not in numbers:
            return None
        if first > expected:
            holes.append((expected, first - 1))
        expected = last + 1
    if expected <= LAST_HASH:
        holes.append((expected, LAST_HASH))
    if not there or len(holes) > len(free):
        return None
    made = {i: Range(first, last, COMMIT_INVALID) for first, last, i in there}
    made |= {i: Range(*hole, COMMIT_INVALID) for i, hole in zip(free, holes, strict=False)}
    return made


__all__ = ["Directories", "merged"]
