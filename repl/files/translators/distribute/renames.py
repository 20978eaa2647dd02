# SPDX-License-Identifier: Apache-2.0
"""Renaming files, atomic for readers and safe against a crash at each step (decision 0064).

S has the source's data, H is where the new name belongs, D has what is at the new name now.
- S == H or S == D: one rename on S does it.  What is left over elsewhere goes afterwards: data of the old target on D,
  link files of the old name.
- Otherwise: a link file with a hidden name on H that leads to S; the new name on S beside the old one (hard link); the
  hidden link file takes the new name's place on H, which is the moment of the rename; then the old name on S, its link
  file, and the old target's data go.
Up to that moment both names lead to what they led to before.
"""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass

from repl.files.answers import GONE
from repl.files.replaced import Replaced, replaced_of
from repl.files.translator import Step, Translator
from repl.files.translators.distribute.links import name_of, of_file
from repl.files.translators.distribute.marks import (
    LINK_MODE,
    LINKTO,
    is_suspicious,
    is_suspicious_mode,
    linkto_value,
)
from repl.files.translators.distribute.trees import Trees
from repl.files.values import Caller, FopError, Loc, Looked

NOREPLACE, EXCHANGE = 1, 2
_TRIES = 4


@dataclass(slots=True)
class Plan:
    """Who takes part in the rename of a file."""

    source: Loc
    target: Loc
    gfid: bytes
    at: int  # S
    source_hashed: int
    hashed: int  # H
    there: Looked | None  # what is at the new name
    there_at: int | None  # D

    @property
    def is_single(self) -> bool:
        return self.at in (self.hashed, self.there_at)

    @property
    def is_alone(self) -> bool:
        """No other subvolume has anything to do with it."""
        return self.at == self.hashed == self.source_hashed and self.there_at in (None, self.at)


class Renames(Trees):
    async def rename(self, caller: Caller, source: Loc, target: Loc, *, flags: int = 0) -> Looked:
        if flags not in (0, NOREPLACE, EXCHANGE):
            raise FopError(errno.EINVAL, f"rename flags {flags:#x}")
        source, target = name_of(source), name_of(target)
        for attempt in range(_TRIES):
            try:
                looked = await self._rename(caller, source, target, flags)
            except FopError as error:
                if error.errno != errno.ESTALE or attempt + 1 == _TRIES:
                    raise
                self.directories.drop(source.parent)
                self.directories.drop(target.parent)
                continue
            return looked
        raise FopError(errno.ESTALE, f"{self.name}: {source} does not keep still")

    async def _rename(self, caller: Caller, source: Loc, target: Loc, flags: int) -> Looked:
        at, found = await self.find(caller, source)
        if self.count == 1:
            looked: Looked = await self.subvolumes[0].rename(caller, source, target, flags=flags)
            return looked
        if flags == EXCHANGE:
            return await self._exchange(caller, source, target, at, found)
        if found.iatt.is_directory:
            if flags == NOREPLACE and await self._current(caller, target) is not None:
                raise FopError(errno.EEXIST, str(target))
            return await self.rename_directory(caller, source, target, found.iatt.gfid, 0)
        current = await self._current(caller, target)
        plan = await self._plan(source, target, at, found, current, flags)
        if plan.there is not None and plan.there.iatt.gfid == plan.gfid:
            return found  # two names of one file: nothing happens, POSIX says
        if plan.is_alone and not is_suspicious(found.iatt):
            try:
                # If there is something now, perhaps a link file, others take part.
                return await self._move_alone(caller, plan, flags)
            except FopError as error:
                gone = errno.ENOENT if plan.there is not None else errno.EEXIST
                if error.errno not in (errno.EEXIST, errno.ESTALE, gone) or flags == NOREPLACE:
                    raise
        async with self.names_kept(source, target) as places:
            (at, found), current = await asyncio.gather(
                self.find(caller, source, has_lock=True), self._current(caller, target, has_lock=True)
            )
            if found.iatt.is_directory:
                raise FopError(errno.ESTALE, f"{self.name}: {source} has been replaced")
            plan = await self._plan(source, target, at, found, current, flags)
            if [plan.source_hashed, plan.hashed] != places:  # by a layout that has just come, another lock counts
                raise FopError(errno.ESTALE, f"{self.name}: {target} belongs elsewhere by now")
            if plan.there is not None and plan.there.iatt.gfid == plan.gfid:
                return found
            return await (self._move(caller, plan, flags) if plan.is_single else self._move_across(caller, plan))

    async def _plan(
        self, source: Loc, target: Loc, at: int, found: Looked, current: tuple[int, Looked] | None, flags: int
    ) -> Plan:
        _, source_hashed = await self.hashed_up(source)
        _, hashed = await self.hashed_up(target)
        if current is not None and current[1].iatt.is_directory:
            raise FopError(errno.EEXIST if flags == NOREPLACE else errno.EISDIR, str(target))
        if current is not None and flags == NOREPLACE:
            raise FopError(errno.EEXIST, str(target))
        there_at, there = current or (None, None)
        return Plan(source, target, found.iatt.gfid, at, source_hashed, hashed, there, there_at)

    async def _current(
        self, caller: Caller, target: Loc, *, has_lock: bool = False
    ) -> tuple[int, Looked] | None:
        try:
            return await self.find(caller, target, has_lock=has_lock)
        except FopError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    # ---- on one subvolume ----

    async def _keep_replaced(self, plan: Plan) -> None:
        if plan.there is not None and plan.there_at is not None:
            await self.keep_open(plan.there.iatt.gfid, plan.there_at)

    async def _move_alone(self, caller: Caller, plan: Plan, flags: int) -> Looked:
        """Without locks.  Who holds them may have moved either name a moment ago, or the layout may have changed: the
        answer tells."""
        await self._keep_replaced(plan)
        # What has come to the old name since, perhaps one copy of a directory, stays there.
        source = of_file(plan.source, plan.gfid)
        step = Step("rename", (source, plan.target), {"flags": NOREPLACE if plan.there is None else 0})
        looked, is_true = await self.with_layout(caller, step, plan.target, plan.at)
        replaced = replaced_of(looked)
        if _is_same(replaced, looked):
            return self.shown(looked, ())
        if await self._is_elsewhere(plan, looked):
            async with self.names_kept(plan.source, plan.target) as (plan.source_hashed, plan.hashed):
                looked = await self._follow_file(caller, plan)
                await self.clear_unreachable(plan.target, plan.hashed)
        elif not is_true:
            async with self.names_kept(plan.source, plan.target) as (plan.source_hashed, plan.hashed):
                await self._claim_target(plan, replaced, flags)
        elif replaced is not None and is_suspicious_mode(replaced.mode):  # it is elsewhere too
            async with self.names_kept(plan.target) as (hashed,):
                await self.clear_unreachable(plan.target, hashed)
        return self._moved(plan, looked)

    async def _move(self, caller: Caller, plan: Plan, flags: int) -> Looked:
        """Both names are locked."""
        child = self.need(plan.at, plan.source)
        await self._keep_replaced(plan)
        if plan.at != plan.hashed and plan.there_at == plan.at:
            await self._prepare_link(plan)
        # A link file at the new name does not make it taken.
        looked = await child.rename(caller, plan.source, plan.target, flags=flags if plan.is_alone else 0)
        plan.gfid = looked.iatt.gfid  # another file may have got the old name in the last moment
        if _is_same(replaced_of(looked), looked):
            await self._clean_up(plan, keeps_source=True)  # its new name has come in this moment: it keeps both
            return self.shown(looked, ())
        if await self._is_elsewhere(plan, looked):
            looked = await self._follow_file(caller, plan)
        else:
            await self._clean_up(plan)
        return self._moved(plan, looked)

    async def _claim_target(self, plan: Plan, replaced: Replaced | None, flags: int) -> None:
        """The layout has changed.  What has got the new name where it belongs now was not seen by the rename."""
        try:
            await self.claim_name(plan.target, plan.gfid, plan.at, plan.hashed, replaces=flags != NOREPLACE)
        except OSError:
            if replaced is None:
                source, target = of_file(plan.source, plan.gfid), of_file(plan.target, plan.gfid)
                await self.undo(self.subvolumes[plan.at].rename(self.owner(), target, source, flags=NOREPLACE))
            raise
        if replaced is not None and is_suspicious_mode(replaced.mode):
            await self.clear_unreachable(plan.target, plan.hashed)

    async def _is_elsewhere(self, plan: Plan, looked: Looked) -> bool:
        """What was renamed is a link file by now."""
        return is_suspicious(looked.iatt) and (await self.settled_phase(plan.at, Loc(gfid=plan.gfid))).is_link

    async def _prepare_link(self, plan: Plan) -> None:
        """The new name stays where its link file says; a directory adopted from others may lack the link file."""
        try:
            await self.subvolumes[plan.hashed].lookup(self.owner(), plan.target)
        except FopError as error:
            if error.errno not in GONE:
                raise
            await self.make_link(plan.hashed, plan.target, plan.gfid, plan.at)

    async def _follow_file(self, caller: Caller, plan: Plan) -> Looked:
        """The file has been moved away a moment ago, only its link file was renamed: its name follows.  Both names are
        locked."""
        self.files.drop(plan.gfid)
        self.known_names.drop((plan.target.parent, plan.target.name))
        at, _ = await self.locate(plan.gfid)
        looked: Looked = await self.need(at, plan.source).rename(caller, plan.source, plan.target)
        had, plan.at = plan.at, at
        await self.repair_link_locked(plan.target, plan.hashed)
        # What has the old name where the link file was is another file; what it led to has lost that name.
        await self._clean_up(plan, keeps_source=plan.source_hashed == had)
        await self.clear_unreachable(plan.source, plan.source_hashed)
        return looked

    async def _clean_up(self, plan: Plan, *, keeps_source: bool = False) -> None:
        """After the moment of the rename: link files of the old name, data of the old target."""
        work = []
        if plan.source_hashed != plan.at and not keeps_source:
            work.append(self.undo(self.remove_link(plan.source_hashed, plan.source, plan.gfid)))
        if plan.there_at is not None and plan.there_at not in (plan.at, plan.hashed) and self.up[plan.there_at]:
            work.append(self._drop_replaced(plan, plan.there_at))
        if work:
            await asyncio.gather(*work)
        if plan.at != plan.hashed and plan.there_at == plan.at:
            await self.undo(self.repair_link_locked(plan.target, plan.hashed))

    async def _drop_replaced(self, plan: Plan, index: int) -> None:
        """What was at the new name: another file takes its place for a moment, because what a rename replaces on a
        brick can be opened for a while yet by those who looked the name up just before."""
        assert plan.there is not None
        caller, value, gfid = self.owner(), linkto_value(self.names[plan.at]), self.context.new_gfid()
        hidden = Loc(parent=plan.target.parent, name=self.hidden_name(plan.gfid))
        old, new = of_file(plan.target, plan.there.iatt.gfid), of_file(plan.target, gfid)
        made = {"mode": LINK_MODE, "rdev": 0, "gfid": gfid, "extra": {LINKTO: value}}
        steps = [Step("mknod", (hidden,), made), Step("rename", (hidden, old)), Step("unlink", (new,))]
        try:
            answers = await self.subvolumes[index].compound(caller, steps)
        except OSError as error:
            answers = [error]
        if isinstance(answers[-1], OSError):
            for left in (old, new, of_file(hidden, gfid)):
                await self.undo(self.subvolumes[index].unlink(caller, left))

    def _moved(self, plan: Plan, looked: Looked) -> Looked:
        self.known_names.drop((plan.source.parent, plan.source.name))
        self.known_names.put((plan.target.parent, plan.target.name), (plan.gfid, plan.at))
        self.files.put(plan.gfid, plan.at)
        if plan.there is not None and plan.there.iatt.nlink <= 1:
            self.files.drop(plan.there.iatt.gfid)
        return self.shown(looked, ())

    # ---- across subvolumes ----

    async def _move_across(self, caller: Caller, plan: Plan) -> Looked:
        data, holder, own = self.need(plan.at, plan.source), self.subvolumes[plan.hashed], self.owner()
        hidden = Loc(plan.gfid, plan.target.parent, self.hidden_name(plan.gfid))
        await self._keep_replaced(plan)
        await self.make_link(plan.hashed, hidden, plan.gfid, plan.at)
        try:
            looked = await self._second_name(caller, plan)
            try:
                await holder.rename(own, hidden, plan.target)
            except OSError as error:
                await self.undo(data.unlink(own, of_file(plan.target, plan.gfid)))
                if error.errno == errno.ENOENT:  # a rebalance has taken it for something left over
                    raise FopError(errno.ESTALE, f"{self.name}: the link file of {plan.target} is gone") from error
                raise
        except OSError:
            await self.undo(holder.unlink(own, hidden))
            raise
        # The file has its new name: the rest may happen in any order.
        await asyncio.gather(
            self.undo(holder.unlink(own, hidden)),  # it is still there where both were the same link file
            self.undo(data.unlink(own, of_file(plan.source, plan.gfid))),
            self._clean_up(plan),
        )
        looked.iatt.nlink = max(looked.iatt.nlink - 1, 1)
        return self._moved(plan, looked)

    async def _second_name(self, caller: Caller, plan: Plan) -> Looked:
        """The new name where the data are; nobody sees it before the link file leads there."""
        data, file = self.subvolumes[plan.at], Loc(gfid=plan.gfid)
        try:
            looked: Looked = await data.link(caller, file, plan.target)
        except FopError as error:
            if error.errno != errno.EEXIST:
                raise
            if plan.there_at is not None:  # what is here is not what the name leads to, and never will be
                await self.undo(self._drop_unreached(data, plan.target))
            elif not await self.remove_left_over(plan.at, plan.target):
                raise FopError(errno.ESTALE, f"{self.name}: {plan.target} has come into being") from error
            looked = await data.link(caller, file, plan.target)
        if is_suspicious(looked.iatt) and (await self.settled_phase(plan.at, file)).is_link:
            await self.undo(data.unlink(self.owner(), of_file(plan.target, plan.gfid)))
            self.files.drop(plan.gfid)
            raise FopError(errno.ESTALE, f"{self.name}: {plan.source} has moved")
        return looked

    async def _drop_unreached(self, child: Translator, loc: Loc) -> None:
        here = await child.lookup(self.owner(), loc)
        await child.unlink(self.owner(), of_file(loc, here.iatt.gfid))

    # ---- exchange ----

    async def _exchange(self, caller: Caller, source: Loc, target: Loc, at: int, found: Looked) -> Looked:
        """Two files on one subvolume, or two directories; others cannot change places in one step."""
        current = await self._current(caller, target)
        if current is None:
            raise FopError(errno.ENOENT, str(target))
        there_at, there = current
        if found.iatt.is_directory != there.iatt.is_directory:
            raise FopError(errno.EINVAL, "a file and a directory cannot change places here")
        if found.iatt.is_directory:
            return await self._exchange_directories(caller, source, target, found, there)
        if there_at != at:
            raise FopError(errno.EINVAL, "files on different subvolumes cannot change places")
        async with self.names_kept(source, target) as (source_hashed, hashed):
            await self._need_same(caller, {source: (at, found), target: (there_at, there)})
            looked: Looked = await self.need(at, source).rename(caller, source, target, flags=EXCHANGE)
            for index, loc in ((source_hashed, source), (hashed, target)):
                if index != at:
                    await self.undo(self.repair_link_locked(loc, index))
        self.known_names.drop((source.parent, source.name))
        self.known_names.drop((target.parent, target.name))
        return self.shown(looked, ())

    async def _need_same(self, caller: Caller, seen: dict[Loc, tuple[int, Looked]]) -> None:
        """ESTALE unless names that are locked by now lead to what they led to before."""
        for loc, (at, found) in seen.items():
            now_at, now = await self.find(caller, loc, has_lock=True)
            if now.iatt.gfid != found.iatt.gfid or not now.iatt.is_directory and now_at != at:
                raise FopError(errno.ESTALE, f"{self.name}: {loc} has been replaced")

    async def _exchange_directories(
        self, caller: Caller, source: Loc, target: Loc, found: Looked, there: Looked
    ) -> Looked:
        self.need_all(f"renaming {source}")
        _, old_index = await self.hashed_up(source)
        _, index = await self.hashed_up(target)
        async with self.locked_names((old_index, source), (index, target)):
            await self._need_same(caller, {source: (old_index, found), target: (index, there)})
            looked: Looked = await self.subvolumes[index].rename(caller, source, target, flags=EXCHANGE)
            done = [index]
            try:
                for other in (i for i in self.everyone if i != index):
                    await self.subvolumes[other].rename(caller, source, target, flags=EXCHANGE)
                    done.append(other)
            except OSError:
                for other in done:
                    await self.undo(self.subvolumes[other].rename(self.owner(), source, target, flags=EXCHANGE))
                raise
        self.directories.drop(found.iatt.gfid)
        self.directories.drop(there.iatt.gfid)
        looked.parent = None
        return looked


def _is_same(replaced: Replaced | None, looked: Looked) -> bool:
    """Two names of one file: nothing was done."""
    return replaced is not None and replaced.gfid == looked.iatt.gfid


__all__ = ["Renames"]
