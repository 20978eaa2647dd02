# SPDX-License-Identifier: Apache-2.0
"""Changes of names: create, mkdir, mknod, symlink, link, unlink, rmdir, rename (spec 5.2).

The lock of the directory is kept for the operations that follow, with one dirty mark for all of them (decision 0060).
Two directories are always locked in the order of their gfids.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from repl.files.answers import Answers, errors_of, good_of
from repl.files.events import Invalidated
from repl.files.replaced import replaced_of
from repl.files.rpc.operations import BY_NAME
from repl.files.translator import Step, Translator
from repl.files.translators.replicate.base import Question, bits, mask_of, telling_error
from repl.files.translators.replicate.changelog import DIRTY, Kind, delta
from repl.files.translators.replicate.inodes import FdState, InodeState
from repl.files.translators.replicate.lookups import Lookups
from repl.files.translators.replicate.order import Slot
from repl.files.translators.replicate.reads import NEVER_DOWN
from repl.files.translators.replicate.tenure import Tenure
from repl.files.values import (
    NEW_LOCK,
    NO_GFID,
    Caller,
    Fd,
    FopError,
    Loc,
    Looked,
    XattrOp,
    Xattrs,
)

_EXCHANGE = 2
# What a child that is away is accused of for an object that it does not have: its attributes, and its data (made,
# and to be written) or its names.  Vectors: a new file has (2, 1, 0), a new directory (0, 1, 1).
_NEW_FILE = delta((2, 1, 0))
_NEW_NODE = delta((1, 1, 0))
_NEW_DIRECTORY = delta((0, 1, 1))
_DIRTY_DATA = delta((1, 0, 0))


class HeldNames:
    """Names in directories, for the time of one operation."""

    __slots__ = ("_afr", "_places", "_slots", "_tenures")

    def __init__(self, afr: Entries, places: Sequence[tuple[bytes, frozenset[bytes] | None]]) -> None:
        self._afr = afr
        self._places = places
        self._tenures: dict[int, Tenure] = {}
        self._slots: list[Slot] = []

    async def __aenter__(self) -> list[Tenure]:
        afr, places, tenures = self._afr, self._places, self._tenures
        if len(places) == 1:
            gfid, names = places[0]
            inode = afr.inodes.get(gfid)
            tenure = afr.held(inode, Kind.ENTRY, is_entry=True)
            if tenure is not None:
                tenures[0] = tenure
                slot = tenure.order.enter_now(names=names) if afr.quorum.is_met(tenure.active) else None
                if slot is not None:
                    self._slots.append(slot)
                    return [tenure]
                del tenures[0]
                tenure.unpin()
        order = range(1) if len(places) == 1 else sorted(range(len(places)), key=lambda i: places[i][0])
        try:
            for i in order:
                tenures[i] = await afr.hold(afr.inodes.get(places[i][0]), Kind.ENTRY, is_entry=True)
            for i in order:
                self._slots.append(await tenures[i].order.enter(names=places[i][1]))
            active = -1
            for tenure in tenures.values():
                active &= tenure.active
            if not afr.quorum.is_met(active):  # what cannot be acknowledged is not begun: half of it would be seen
                raise afr.nobody(f"changing names in {tenures[0].loc}")
        except BaseException as error:
            self._leave(error)
            raise
        return [tenures[i] for i in range(len(places))]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._has_missed() and self._afr.options["granular-entry-heal"]:
                for i, (_, names) in enumerate(self._places):
                    await self._tenures[i].note_names(names or ())
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._leave(error)

    def _has_missed(self) -> bool:
        return any(tenure.active != self._afr.everyone for tenure in self._tenures.values())

    def _leave(self, error: BaseException | None) -> None:
        if isinstance(error, asyncio.CancelledError):
            for tenure in self._tenures.values():
                tenure.doubt(Kind.ENTRY)
        if error is not None:
            self._forget_doubtful()
        for slot in self._slots:
            slot.leave()
        for tenure in self._tenures.values():
            tenure.unpin()


    def _forget_doubtful(self) -> None:
        """Nobody knows what a change that failed has done: the kernel and caches have to ask again (decision 0134)."""
        for i, tenure in self._tenures.items():
            if Kind.ENTRY in tenure.suspect:
                gfid, names = self._places[i]
                self._afr.notify_parents(Invalidated(gfid, names=tuple(names or ()), is_data=names is None))


class Entries(Lookups):
    def _names(self, *places: tuple[bytes, frozenset[bytes] | None]) -> HeldNames:
        """The tenures of directories, with the names (None: all) kept from other operations of ours."""
        return HeldNames(self, places)

    async def _ask_good_first(
        self, tenure: Tenure, mask: int, call: Question, other: Tenure | None = None,
        name: Loc | None = None, target: Loc | None = None,
    ) -> Answers:  # fmt: skip
        """An old copy of the directory (or of the other one) does not decide whether a name can be made or removed.

        ``name`` is changed there only if it means the same inode as on the good copies, and ``target`` is not there or
        means what it means on one of them.  If too few copies are left then, nothing is done (decision 0146).
        """
        old = tenure.accused.get(Kind.ENTRY, 0) & mask
        if other is not None:
            old |= other.accused.get(Kind.ENTRY, 0) & mask
        if not old:
            return await self.ask(mask, call)
        unable: Answers = {}
        if name is not None:
            is_there, unable = await self._unable(tenure.caller, mask & ~old, old, name, target)
            # What an old copy does not have need not be removed there.
            lacking = [i for i, e in errors_of(unable).items() if other is not None or e.errno != errno.ENOENT]
            if is_there and not self.quorum.is_met(mask & ~mask_of(lacking)):
                for place in {name.parent, target.parent if target is not None else name.parent}:
                    self.heal_soon(place)
                raise FopError(errno.ENOTCONN, f"{self.name}: too few copies that could change {name} are here")
            # Who was lost meanwhile, and came back, has no lock any more.
            mask &= tenure.active & (other.active if other is not None else -1)
        answers = await self.ask(mask & ~old, call)
        if good_of(answers):
            answers |= unable | await self.ask(mask & old & ~mask_of(unable), call)
        return answers

    async def _need_one(self, caller: Caller, tenures: Sequence[Tenure], *names: Loc) -> None:
        """Where each side of a split-brain went on alone, a name that means two inodes is not changed: what would be
        done to one of them is done to the other one as well."""
        mask = -1
        for tenure in tenures:
            mask &= tenure.good(Kind.ENTRY)
        if any(tenure.is_split for tenure in tenures):
            for name in names:
                if len(await self._there(caller, mask, name)) > 1:
                    raise FopError(errno.EIO, f"{self.name}: {name} is in gfid split-brain")

    async def _unable(
        self, caller: Caller, good: int, old: int, name: Loc, target: Loc | None
    ) -> tuple[bool, Answers]:
        """Whether a good copy has the name; old copies that cannot do what the good ones can, and why."""
        meant = await self._there(caller, good, name)
        if not meant:  # then nothing is done, or at least not on a copy that was not compared
            return False, {i: FopError(errno.ENOENT, f"{self.names[i]}: {name}: on no good copy") for i in bits(old)}
        gfid, is_last = next(iter(meant.items()))
        replaced = set(await self._there(caller, good, target)) if target is not None else set()

        async def check(child: Translator) -> None:
            try:
                there = await child.lookup(caller, Loc(parent=name.parent, name=name.name))
            except OSError as error:
                if target is None and error.errno == errno.ENOENT and is_last:
                    await self._need_gone(child, caller, gfid, name)
                raise
            if there.iatt.gfid != gfid:
                raise FopError(errno.EIO, f"{child.name}: {name} is another inode on this old copy")
            if target is not None:
                await self._need_replaced(child, caller, target, replaced)

        return True, dict(errors_of(await self.ask(old, check)))

    async def _there(self, caller: Caller, mask: int, loc: Loc) -> dict[bytes, bool]:
        """What these copies have under a name, and whether that is its last one."""
        found = await self.ask(mask, lambda c: c.lookup(caller, Loc(parent=loc.parent, name=loc.name)))
        return {a.iatt.gfid: a.iatt.is_directory or a.iatt.nlink <= 1 for a in good_of(found).values()}

    @staticmethod
    async def _need_gone(child: Translator, caller: Caller, gfid: bytes, name: Loc) -> None:
        """An old copy with an inode, but not its last name, has not removed it: a heal would find too few that have."""
        try:
            await child.lookup(caller, Loc(gfid=gfid))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
        else:
            raise FopError(errno.EIO, f"{child.name}: {name} has another name on this old copy")

    @staticmethod
    async def _need_replaced(child: Translator, caller: Caller, target: Loc, replaced: set[bytes]) -> None:
        try:
            there = await child.lookup(caller, Loc(parent=target.parent, name=target.name))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
        else:
            if there.iatt.gfid not in replaced:
                raise FopError(errno.EIO, f"{child.name}: {target} is another inode on this old copy")

    # ---- making ----

    async def _make(
        self, caller: Caller, loc: Loc, gfid: bytes, step: Step, unit: bytes, *, is_file: bool = False
    ) -> tuple[Looked, int]:
        """One new object; its answer and the mask of the children that have it."""
        self.check_name(loc)
        await self.settled()
        async with self._names((loc.parent, frozenset((loc.name,)))) as (tenure,):
            inode = self.inodes.get(gfid)
            absent = self.everyone & ~tenure.active
            own = self.new_tenure(inode, is_entry=False) if is_file else None
            who = Caller(caller.uid, caller.gid, caller.groups, caller.pid, self.context.process,
                         (own or tenure).caller.lock_owner, caller.is_internal)  # fmt: skip
            steps = self._making(step, gfid, absent, unit, is_file=is_file)
            answers: Answers = {}
            try:
                answers = await self._ask_made(tenure, steps, who)
                made = {i: _made(a, needs_marks=bool(absent)) for i, a in answers.items()}
                answer: Looked | None = self.settle_at_once(tenure, Kind.ENTRY, made, caller.pid)
                done = self.everyone if answer is not None else mask_of(good_of(made))
                if answer is None:
                    if done:
                        await self._undo_if_there(tenure, loc, made, step.fop)
                    answer = await self.settle(tenure, Kind.ENTRY, made, pid=caller.pid)
                    assert answer is not None
                if missed := self.everyone & ~done & ~absent:
                    await self._accuse_new(done, gfid, missed, unit)
            except BaseException:
                if own is not None:
                    own.suspect.add(Kind.DATA)
                    self._adopt(own, answers, absent)
                    own.close()
                raise
            self._learn_new(inode, done)
            if own is not None:
                self._adopt(own, answers, self.everyone & ~done)
            answer.xattrs = {k: v for k, v in answer.xattrs.items() if k not in self.want_keys and k != NEW_LOCK}
            return answer, done

    async def _ask_made(self, tenure: Tenure, steps: list[Step], who: Caller) -> Answers:
        """A list of answers for each child; what a step before failed with is the last of them."""

        old = tenure.accused.get(Kind.ENTRY, 0) & tenure.active
        if len(steps) == 1 and not old:
            step = steps[0]
            made = await self.ask_all(tenure.active, step.fop, who, BY_NAME[step.fop].bind(step.args, step.kwargs))
            return {i: a if isinstance(a, OSError) else [a] for i, a in made.items()}

        async def make(child: Translator) -> list[Any]:
            return await child.compound(who, steps) if len(steps) > 1 else [await _single(child, who, steps[0])]

        def is_made(answers: Answers) -> bool:
            return any(isinstance(a, list) and not isinstance(a[0], OSError) for a in answers.values())

        answers = await self.ask(tenure.active & ~old, make)
        if old and is_made(answers):
            answers |= await self.ask(old, make)
        return answers

    def _adopt(self, own: Tenure, answers: Answers, absent: int) -> None:
        """The new file's tenure began with the file itself, where the lock was got."""
        locked = mask_of([
            i for i, a in answers.items()
            if isinstance(a, list) and isinstance(a[0], Looked) and NEW_LOCK in a[0].xattrs
        ])  # fmt: skip
        own.pins += 1
        own.adopt(Kind.DATA, locked, absent)
        own.size = 0
        if not self.quorum.is_met(locked):
            own.is_closing = True
        own.unpin()

    def _making(self, step: Step, gfid: bytes, absent: int, unit: bytes, *, is_file: bool) -> list[Step]:
        """A file comes into being with its marks and its lock, all else gets marks if it needs some."""
        values: Xattrs = {key: unit for i, key in enumerate(self.keys) if absent >> i & 1}
        if is_file:
            extra = {**(step.kwargs["extra"] or {}), **values, DIRTY: _DIRTY_DATA, NEW_LOCK: self.domain.encode()}
            return [Step(step.fop, step.args, {**step.kwargs, "extra": extra})]
        return [step, Step("xattrop", (Loc(gfid=gfid), XattrOp.ADD, values))] if values else [step]

    def _learn_new(self, inode: InodeState, done: int) -> None:
        inode.found = done
        inode.readable = [done & ~self.arbiters, done, done]
        inode.is_split = [False, False, False]
        inode.generation = self.generation

    async def _undo_if_there(self, tenure: Tenure, loc: Loc, answers: Answers, fop: str) -> None:
        """The name is there on a good copy that the others have not got yet: what was made beside it goes again."""
        there = [
            i for i, a in answers.items()
            if isinstance(a, OSError) and a.errno == errno.EEXIST and tenure.good(Kind.ENTRY) >> i & 1
        ]  # fmt: skip
        if not there:
            return
        tenure.doubt(Kind.ENTRY)
        made = mask_of(good_of(answers))
        if fop == "mkdir":
            await self.ask(made, lambda c: c.rmdir(tenure.caller, loc))
        else:
            await self.ask(made, lambda c: c.unlink(tenure.caller, loc))
        raise FopError(errno.EEXIST, f"{self.names[there[0]]}: {loc}")

    async def _accuse_new(self, done: int, gfid: bytes, missed: int, unit: bytes) -> None:
        """A child could not make it: the new inode says so on the others."""
        values = {key: unit for i, key in enumerate(self.keys) if missed >> i & 1}
        caller, loc = self.tenure_owner, Loc(gfid=gfid)
        answers = await self.ask(done, lambda c: c.xattrop(caller, loc, XattrOp.ADD, values))
        self.need_quorum(f"accusing those without {loc}", mask_of(good_of(answers)))

    async def create(
        self, caller: Caller, loc: Loc, fd: Fd, *, flags: int, mode: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        lower = Fd(gfid, flags & ~NEVER_DOWN, path=fd.path)
        step = Step("create", (loc, lower), {"flags": (flags & ~NEVER_DOWN) | os.O_CREAT | os.O_EXCL, "mode": mode,
                                             "gfid": gfid, "extra": extra})  # fmt: skip
        try:
            answer, done = await self._make(caller, loc, gfid, step, _NEW_FILE, is_file=True)
        except BaseException as error:
            self.context.spawn(self._release_made(lower), f"{self.name}: a file that was not made is closed")
            if not isinstance(error, OSError) or error.errno != errno.EEXIST or flags & os.O_EXCL:
                raise
            return await self._open_instead(caller, loc, fd, flags)
        inode = self.inodes.get(gfid)
        state = FdState(inode, lower, flags, opened=done)
        fd.contexts[self] = state
        inode.fds.add(state)
        return answer

    async def _release_made(self, lower: Fd) -> None:
        """Some children may have made and opened it."""
        for child in self.subvolumes:
            await child.release(lower)

    async def _open_instead(self, caller: Caller, loc: Loc, fd: Fd, flags: int) -> Looked:
        there = await self.lookup(caller, Loc(parent=loc.parent, name=loc.name, path=loc.path))
        if there.iatt.is_directory:
            raise FopError(errno.EISDIR, str(loc))
        fd.gfid = there.iatt.gfid
        await self.open(caller, Loc(there.iatt.gfid, loc.parent, loc.name, loc.path), fd, flags=flags & ~os.O_CREAT)
        return there

    async def mknod(
        self, caller: Caller, loc: Loc, *, mode: int, rdev: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        step = Step("mknod", (loc,), {"mode": mode, "rdev": rdev, "gfid": gfid, "extra": extra})
        return (await self._make(caller, loc, gfid, step, _NEW_NODE))[0]

    async def mkdir(self, caller: Caller, loc: Loc, *, mode: int, gfid: bytes, extra: Xattrs | None = None) -> Looked:
        step = Step("mkdir", (loc,), {"mode": mode, "gfid": gfid, "extra": extra})
        return (await self._make(caller, loc, gfid, step, _NEW_DIRECTORY))[0]

    async def symlink(
        self, caller: Caller, loc: Loc, *, target: bytes, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        step = Step("symlink", (loc,), {"target": target, "gfid": gfid, "extra": extra})
        return (await self._make(caller, loc, gfid, step, _NEW_NODE))[0]

    async def link(self, caller: Caller, source: Loc, loc: Loc) -> Looked:
        self.check_name(loc)
        await self.settled()
        inode = self.inodes.get(source.gfid)
        async with self._names((loc.parent, frozenset((loc.name,)))) as (tenure,):
            answers = await self._ask_good_first(tenure, tenure.active, lambda c: c.link(caller, source, loc))
            if good_of(answers):
                await self._undo_if_there(tenure, loc, answers, "link")
            answer: Looked = await self.settle(tenure, Kind.ENTRY, answers, pid=caller.pid)
            inode.lose(self.everyone & ~mask_of(good_of(answers)), Kind.METADATA)
            return answer

    # ---- removing ----

    async def unlink(self, caller: Caller, loc: Loc) -> Looked:
        self.check_name(loc)
        await self.settled()
        async with self._names((loc.parent, frozenset((loc.name,)))) as (tenure,):
            await self._need_one(caller, (tenure,), loc)
            await self._keep_open_files(loc)
            if tenure.accused.get(Kind.ENTRY, 0) & tenure.active:
                answers = await self._ask_good_first(
                    tenure, tenure.active, lambda c: c.unlink(caller, loc), name=loc
                )
            else:
                answers = await self.ask_all(tenure.active, "unlink", caller, [loc])
                answer: Looked | None = self.settle_at_once(tenure, Kind.ENTRY, answers, caller.pid)
                if answer is not None:
                    if not answer.iatt.nlink:
                        self.inodes.gone(answer.iatt.gfid)
                    return answer
            return await self._removed(tenure, answers, caller, has_gfid=loc.gfid != NO_GFID)

    async def _keep_open_files(self, loc: Loc) -> None:
        """What is open and loses its name must be open on all copies, or a copy's loss would end it."""
        inode = self.inodes.peek(loc.gfid) if loc.gfid != NO_GFID else None
        for state in list(inode.fds) if inode else ():
            await self.ensure_open(state, self.up)

    async def _removed(
        self, tenure: Tenure, answers: Answers, caller: Caller, *, has_gfid: bool = False
    ) -> Looked:
        """A child that did not have the name has missed nothing; one that has another file there (ESTALE) has."""
        good, gone = good_of(answers), (errno.ENOENT, errno.ENOENT if has_gfid else errno.ESTALE)
        if good:
            some = next(iter(good.values()))
            for i, error in errors_of(answers).items():
                if error.errno in gone:
                    answers[i] = some
        answer: Looked = await self.settle(tenure, Kind.ENTRY, answers, pid=caller.pid)
        if not good:
            raise telling_error(errors_of(answers))
        if not answer.iatt.nlink:
            self.inodes.gone(answer.iatt.gfid)
        return answer

    async def rmdir(self, caller: Caller, loc: Loc, *, recursive: bool = False) -> Looked:
        self.check_name(loc)
        await self.settled()
        victim = loc.gfid if any(loc.gfid) else (await self._look(caller, loc)).gfid
        # All names of the victim are locked, so that nothing comes into being in it on one copy only.
        places = ((loc.parent, frozenset((loc.name,))), (victim, None))
        async with self._names(*places) as (tenure, inside):
            await self._need_one(caller, (tenure,), loc)
            if not inside.is_clean and not recursive:
                await self._need_empty(inside, caller)
            inside.is_closing = True
            answers = await self._ask_good_first(
                tenure, tenure.active, lambda c: c.rmdir(caller, loc, recursive=recursive), name=loc
            )
            inside.removed(mask_of(good_of(answers)))
            return await self._removed(tenure, answers, caller)

    async def _look(self, caller: Caller, loc: Loc) -> Any:
        return (await self.lookup(caller, Loc(parent=loc.parent, name=loc.name, path=loc.path))).iatt

    async def _need_empty(self, inside: Tenure, caller: Caller) -> None:
        """Copies that may differ: no good one may have a name left."""
        fd = Fd(inside.inode.gfid, is_directory=True)
        mask = inside.good(Kind.ENTRY)

        async def first_names(child: Translator) -> bool:
            await child.opendir(caller, inside.loc, fd)
            try:
                return bool(await child.readdir(caller, fd, size=4096, offset=0))
            finally:
                await child.release(fd)

        for i, has_names in good_of(await self.ask(mask, first_names)).items():
            if has_names:
                raise FopError(errno.ENOTEMPTY, f"{self.names[i]}: {inside.loc}")

    # ---- renaming ----

    async def rename(self, caller: Caller, source: Loc, target: Loc, *, flags: int = 0) -> Looked:
        self.check_name(source)
        self.check_name(target)
        await self.settled()
        places: dict[bytes, frozenset[bytes] | None] = {source.parent: frozenset((source.name,))}
        places[target.parent] = frozenset((target.name,)) | (places.get(target.parent) or frozenset())
        victim = None if flags & _EXCHANGE else await self._victim(caller, target)
        if victim is not None and victim not in places:
            places[victim] = None
        async with self._names(*places.items()) as tenures:
            held = dict(zip(places, tenures, strict=True))
            if victim is not None and victim in held and not held[victim].is_clean and places[victim] is None:
                await self._need_empty(held[victim], caller)
            old, new = held[source.parent], held[target.parent]
            active = old.active & new.active
            if not old.good(Kind.ENTRY) & new.good(Kind.ENTRY):
                # Done on copies that are old in one of the two, it would be lost with their next heal (0069).
                self.heal_soon(source.parent)
                self.heal_soon(target.parent)
                raise FopError(errno.ENOTCONN, f"{self.name}: no child has a good copy of both directories")
            await self._need_one(caller, (old, new), source, target)
            await self._keep_open_files(target)
            answers = await self._ask_good_first(
                old, active, lambda c: c.rename(caller, source, target, flags=flags), new, source,
                None if flags & _EXCHANGE else target,
            )  # fmt: skip
            if victim is not None and victim in held and places[victim] is None:
                held[victim].removed(mask_of(good_of(answers)))
            try:
                answer: Looked = await self.settle(new, Kind.ENTRY, answers, pid=caller.pid)
            except BaseException:
                if Kind.ENTRY in new.suspect:
                    old.doubt(Kind.ENTRY)
                raise
            if old is not new:
                done = mask_of(good_of(answers))
                if not done & old.good(Kind.ENTRY) or not self.quorum.is_met(done & old.active):
                    old.doubt(Kind.ENTRY)
                    raise telling_error(errors_of(answers)) if errors_of(answers) else self.nobody(f"renaming {source}")
                await old.blame(Kind.ENTRY, old.active & ~done)
            replaced = replaced_of(answer)
            if replaced is not None and replaced.gfid != answer.iatt.gfid and not flags & _EXCHANGE:
                self.inodes.gone(replaced.gfid)
            return answer

    async def _victim(self, caller: Caller, target: Loc) -> bytes | None:
        """The directory that the rename would replace."""
        try:
            there = await self._look(caller, target)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return there.gfid if there.is_directory else None


async def _single(child: Translator, caller: Caller, step: Step) -> Any:
    return await getattr(child, step.fop)(caller, *step.args, **step.kwargs)


def _made(answer: Any, *, needs_marks: bool) -> Any:
    """What a child's compound says of the object: it counts as made only with the marks it needs."""
    if isinstance(answer, OSError):
        return answer
    if needs_marks and not isinstance(answer[0], OSError) and isinstance(answer[-1], OSError):
        return answer[-1]
    return answer[0]
