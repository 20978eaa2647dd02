# SPDX-License-Identifier: Apache-2.0
"""Entry heal: the names of a directory (spec 5.8, decision 0061).

The names of all copies are compared without a lock; those that differ are looked at again and repaired under the lock
of the directory, which is held for a quarter of a second at a time.  What clients change meanwhile goes to all copies,
or leaves accusations that are not in the snapshot and cause another round; if they are of a copy that was good, this
round ends (decision 0133).
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from repl.files.translators.replicate.base import bits, mask_of
from repl.files.translators.replicate.changelog import ENTRY_OUT, Kind
from repl.files.translators.replicate.decide import Witness, is_doubtful, judge
from repl.files.translators.replicate.heal_aside import Aside, list_all
from repl.files.translators.replicate.heal_locks import names_lock, send, take, unlock_step
from repl.files.translators.replicate.heal_names import Judged, NameHeal
from repl.files.translators.replicate.heal_run import Run, can_heal
from repl.files.translators.replicate.healing import Status
from repl.files.values import ROOT, ROOT_GFID, Fd, Loc, XattrOp, gfid_text
from repl.limits import HEAL_BATCH_NAMES, HEAL_LOCKED_S, HEAL_NAMES_MAX

NOTES_KEY = b"glusterfs.xattrop_entry_changes_gfid"
Names = dict[bytes, dict[int, tuple[bytes, int]]]  # name -> child -> gfid and type


class EntryHeal:
    def __init__(self, run: Run, aside: Aside) -> None:
        self.run = run
        self.afr = run.afr
        self.aside = aside
        self._lock = names_lock(run.afr.domain, run.loc)
        self._forgets: set[bytes] = set()  # names that need not be noted any longer when they are equal
        self._waits = run.how.waits  # for the lock, whoever has it

    async def heal(self) -> None:
        run = self.run
        judged = await self._judge()
        if judged is None or not (run.has_counters(Kind.ENTRY) or run.how.is_full):
            return
        healer = NameHeal(run, judged, self.aside)
        is_done, is_changed = True, False
        noted = await self._noted(judged)
        is_granular = run.is_complete and self.afr.options["granular-entry-heal"]
        self._forgets = (await self._all_noted() if noted is None else set(noted)) if is_granular else set()
        async for names in self._differences() if noted is None else _once(noted):
            is_changed = is_changed or bool(names)
            is_done &= await self._repair(healer, sorted(names))
        if is_done and noted is None and is_granular:
            # What is noted still, and did not differ: it is looked at under the lock before it is forgotten.
            self._forgets = await self._all_noted()
            await self._repair(healer, sorted(self._forgets))
        if is_done:
            run.plan_undo(Kind.ENTRY, judged.trusted, run.mask)
            if is_changed:
                run.note(Status.HEALED, "")
        else:
            run.note(Status.LATER, "some names are left")

    async def heal_name(self, name: bytes) -> None:
        """Only this one; counters stay as they are."""
        judged = await self._judge()
        if judged is not None:
            await self._repair(NameHeal(self.run, judged, self.aside), [name])

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[dict[int, list[Any]] | None]:
        afr = self.afr
        caller = afr.owner()
        if (inode := afr.inodes.peek(self.run.gfid)) is not None and inode.entry_tenure is not None:
            await afr.end_tenures(inode)
        got = await take(afr, self.run.locked or afr.up, caller, self._lock, [self.run.look_step()],
                         waits=self._waits, asks=self._waits)  # fmt: skip
        try:
            yield got
        finally:
            await send(afr, sum(1 << i for i in got or ()), caller, [unlock_step(self._lock)])

    async def _judge(self) -> Judged | None:
        """What the copies say under the lock of their names: from here on this is the snapshot."""
        run = self.run
        self._waits = self._waits or run.needs_heal()
        async with self._locked() as got:
            if got is None:
                run.note(Status.IN_USE, "marked dirty, nobody is accused")
                return None
            run.learn_again({i: a[0] for i, a in got.items()})
        self._waits = True  # nobody had it locked: what the counters say is left over
        if not can_heal(self.afr, run.mask):
            run.note(Status.PARENT if run.missing else Status.AWAY, "too few copies of the directory")
            return None
        judged = self._judge_copies(run.copies)
        if judged.is_blamed and not run.is_complete:
            run.note(Status.AWAY, "no good copy of its names answers")
            return None
        return judged

    def _judge_copies(self, copies: Mapping[int, Witness]) -> Judged:
        verdict = judge(copies, Kind.ENTRY, self.afr.quorum)
        trusted = mask_of(copies) if verdict.is_split else verdict.sources
        return Judged(trusted, verdict.is_split, is_doubtful(copies, Kind.ENTRY, trusted))

    # ---- names that were noted (granular-entry-heal) ----

    async def _noted(self, judged: Judged) -> list[bytes] | None:
        """What the good copies noted; None: the whole directory has to be compared."""
        run, afr = self.run, self.afr
        if not afr.options["granular-entry-heal"] or run.how.is_full or judged.is_dirty or judged.trusted == run.mask:
            return None
        if any(copy.dirty[Kind.ENTRY] for copy in run.copies.values()):
            return None
        found: set[bytes] = set()
        for i in bits(judged.trusted):
            try:
                place = await self._notes(i)
                entries = await list_all(afr.subvolumes[i], run.caller, place)
            except OSError:
                return None  # nothing was noted there, or it cannot be read
            found |= {entry.name for entry in entries}
            if len(found) > HEAL_NAMES_MAX:
                return None
        return sorted(found)

    async def _all_noted(self) -> set[bytes]:
        """By anybody; a bounded number of them."""
        found: set[bytes] = set()
        for i in bits(self.run.mask):
            with contextlib.suppress(OSError):  # nothing was noted there
                entries = await list_all(self.afr.subvolumes[i], self.run.caller, await self._notes(i))
                found.update(entry.name for entry in entries[:HEAL_NAMES_MAX])
        return found

    async def _notes(self, index: int) -> Loc:
        """Where a child has what was noted of this directory."""
        place = (await self.afr.subvolumes[index].getxattr(self.run.caller, ROOT, NOTES_KEY))[NOTES_KEY]
        return Loc(parent=place, name=gfid_text(self.run.gfid).encode())

    async def _forget(self, names: Iterable[bytes]) -> None:
        """They are equal on all copies; nobody can change them now."""
        await asyncio.gather(*(self._forget_one(name) for name in names))

    async def _forget_one(self, name: bytes) -> None:
        run, values = self.run, {ENTRY_OUT: name}
        await self.afr.ask(run.mask, lambda c: c.xattrop(run.caller, run.loc, XattrOp.ADD, values))

    # ---- comparing ----

    async def _differences(self) -> AsyncIterator[list[bytes]]:
        """Names that are not the same on all copies, a bounded number of names compared at a time."""
        parts = 1
        part = 0
        while part < parts:
            found = await self._list(part, parts)
            if found is None:
                parts *= 2
                part *= 2
                continue
            yield _differing(found, self.run.mask)
            part += 1

    async def _list(self, part: int, parts: int) -> Names | None:
        """The names of one part of several; None: too many."""
        found: Names = {}
        await asyncio.gather(*(self._list_child(i, found, part, parts) for i in bits(self.run.mask)))
        return found if len(found) <= HEAL_NAMES_MAX else None

    async def _list_child(self, index: int, found: Names, part: int, parts: int) -> None:
        child, caller = self.afr.subvolumes[index], self.run.caller
        fd = Fd(self.run.gfid, is_directory=True)
        size, offset = self.afr.options["self-heal-readdir-size"], 0
        is_root = self.run.gfid == ROOT_GFID
        await child.opendir(caller, self.run.loc, fd)
        try:
            while entries := await child.readdir(caller, fd, size=size, offset=offset):
                offset = entries[-1].offset
                for entry in entries:
                    if is_root and entry.name.startswith(b".glusterfs"):
                        continue
                    if parts == 1 or zlib.crc32(entry.name) % parts == part:
                        found.setdefault(entry.name, {})[index] = (entry.gfid, entry.kind)
                if len(found) > HEAL_NAMES_MAX:
                    return
        finally:
            await child.release(fd)

    # ---- repairing ----

    async def _repair(self, healer: NameHeal, names: list[bytes]) -> bool:
        """True: all are settled.  What could not be is tried once more: another name may have been in its way."""
        left = await self._repair_once(healer, names)
        if healer.unseen:
            await healer.look_below()
            left = await self._repair_once(healer, left)
        if left and len(left) < len(names):
            left = await self._repair_once(healer, left)
        return not left

    async def _repair_once(self, healer: NameHeal, names: list[bytes]) -> list[bytes]:
        """Locked for a while, free for a moment, until all have been looked at."""
        loop = asyncio.get_running_loop()
        left: list[bytes] = []
        at, wanted = 0, self.run.mask
        while at < len(names):
            self.run.go_on()
            async with self._locked() as got:
                if got is None or wanted & ~sum(1 << i for i in got):
                    self.run.note(Status.AWAY, "a copy cannot be locked any more")
                    return left + names[at:]
                if not self._is_as_judged(healer.judged, got):
                    self.run.note(Status.LATER, "other copies of the directory are good than before: once more")
                    return left + names[at:]
                until = loop.time() + HEAL_LOCKED_S
                while at < len(names) and loop.time() < until:
                    batch = names[at : at + HEAL_BATCH_NAMES]
                    at += len(batch)
                    failed = await self._repair_batch(healer, batch)
                    left += failed
                    await self._forget(self._forgets.intersection(batch).difference(failed))
        return left

    def _is_as_judged(self, judged: Judged, got: dict[int, list[Any]]) -> bool:
        """While nobody had the lock, a change may have been made without one of the copies that were good (it was away
        for a moment, or for that client only): what it has is not to be given to the others."""
        now = self.run.witnesses({i: answer[0] for i, answer in got.items() if i in self.run.copies})
        return len(now) == len(self.run.copies) and self._judge_copies(now) == judged

    async def _repair_batch(self, healer: NameHeal, names: list[bytes]) -> list[bytes]:
        answers = await asyncio.gather(*(healer.heal(name) for name in names), return_exceptions=True)
        left: list[bytes] = []
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, OSError):
                self.run.note(Status.FAILED, f"{name!r}: {answer}")
            elif isinstance(answer, BaseException):
                raise answer
            if answer is not True:
                left.append(name)
        return left


async def _once(names: list[bytes]) -> AsyncIterator[list[bytes]]:
    yield names


def _differing(found: Names, mask: int) -> list[bytes]:
    count = mask.bit_count()
    return [name for name, there in found.items() if len(there) < count or len(set(there.values())) > 1]
