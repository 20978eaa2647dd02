# SPDX-License-Identifier: Apache-2.0
"""Data heal: the bytes of the good copy onto the others, while clients go on writing (spec 5.6).

A file that fits into one window is read once and written in one frame to each old copy, all under the inode's lock.  A
larger one goes window by window (``data-self-heal-window-size`` blocks of 128 KiB), each under the lock of its range
alone: digests are compared first, only blocks that differ travel, zeroes are not written where there is nothing yet.
Before its first byte changes, an old copy is marked as old by itself (decision 0066): half healed it is never read or
written to, though the good copy is away.  When it is done, everything is synced before any counter goes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Sequence
from typing import Any

from repl.files.translator import Step
from repl.files.translators.replicate.base import bits
from repl.files.translators.replicate.changelog import Kind, plus_one
from repl.files.translators.replicate.decide import Verdict
from repl.files.translators.replicate.heal_locks import range_lock, send, take, unlock_step
from repl.files.translators.replicate.heal_run import Run
from repl.files.translators.replicate.healing import Status
from repl.files.values import END, Fd, FopError, Iatt, Loc, Looked, Read, SetAttr, SyncKind, XattrOp
from repl.limits import HEAL_BLOCK_BYTES, HEAL_WINDOW_BYTES_MAX, HEAL_WINDOWS_AT_A_TIME


class DataHeal:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.afr = run.afr
        self.files = run.mask & ~self.afr.arbiters  # copies that have data
        blocks = self.afr.options["data-self-heal-window-size"]
        self.window = min(blocks * HEAL_BLOCK_BYTES, HEAL_WINDOW_BYTES_MAX)
        self.is_empty = 0  # sinks that had nothing: what is zero need not be written
        self.failed = 0

    @property
    def is_small(self) -> bool:
        return all(self.run.iatt(i).size <= self.window for i in bits(self.files))

    async def heal(self) -> None:
        run = self.run
        if not self._is_needed():
            return
        if not stat.S_ISREG(run.some_iatt.mode):  # nothing that could differ
            run.plan_undo(Kind.DATA, run.mask, run.mask)
            return
        verdict = await run.decide(Kind.DATA, lambda: self._are_equal(self.files))
        if verdict is None:
            return
        verdict = await self._agree(verdict)
        sinks = verdict.sinks & self.files
        if sinks:
            source = self._choose(verdict.sources)
            await (self._copy_small(source, sinks) if self.is_small else self._copy_large(source, sinks))
        await self._sync(verdict.sources & self.files)
        run.plan_undo(Kind.DATA, verdict.sources, run.mask & ~self.failed)

    def _is_needed(self) -> bool:
        run = self.run
        if run.has_counters(Kind.DATA):
            return True
        sizes = {run.iatt(i).size for i in bits(self.files)}
        return stat.S_ISREG(run.some_iatt.mode) and len(sizes) > 1

    def _choose(self, sources: int) -> int:
        return self.afr.read_order(self.run.gfid, sources & self.files, 0)[0]

    def _fail(self, index: int, error: OSError) -> None:
        self.failed |= 1 << index
        self.run.note(Status.FAILED, f"{self.afr.names[index]}: {error}")

    # ---- copies that nobody accuses ----

    async def _agree(self, verdict: Verdict) -> Verdict:
        """Equal ones are all good; if they differ, the chosen one accuses the rest before anything is copied."""
        run = self.run
        equals = (verdict.equals or verdict.sources) & self.files
        if not verdict.is_guess or await self._are_equal(equals):
            return Verdict(equals, verdict.sinks & ~equals)
        winner = bits(verdict.sources & self.files)[0]
        await run.accuse(Kind.DATA, self.afr.everyone & ~self.afr.arbiters & ~(1 << winner))
        return Verdict(1 << winner, self.files & ~(1 << winner))

    async def _are_equal(self, mask: int) -> bool:
        run = self.run
        if not mask & (mask - 1):
            return True
        sizes = {run.iatt(i).size for i in bits(mask)}
        if len(sizes) > 1:
            return False
        fd = Fd(run.gfid, os.O_RDONLY)
        await self._open(mask, fd)
        try:
            return await self._compare(mask, fd, sizes.pop())
        finally:
            await self._release(mask, fd)

    async def _compare(self, mask: int, fd: Fd, size: int) -> bool:
        is_locked = self.is_small
        if not is_locked:
            await self._leave_data_lock()
        is_equal = True
        for first in range(0, size, self.window):
            length = min(self.window, size - first)
            self.run.go_on()
            sums = await self._digests(mask, fd, first, length, is_locked=is_locked)
            if len({tuple(s) for s in sums.values()}) > 1:
                is_equal = False
                break
        if not is_locked:
            before = {i: (w.said, w.dirty) for i, w in self.run.copies.items()}
            await self.run.take_data_lock()
            if before != {i: (w.said, w.dirty) for i, w in self.run.copies.items()}:
                raise FopError(errno.EAGAIN, "it has changed while it was compared: once more")
        return is_equal

    async def _digests(
        self, mask: int, fd: Fd, first: int, length: int, *, is_locked: bool
    ) -> dict[int, list[bytes]]:
        """Of each block, at each child of the mask, all of the same instant."""
        steps = _digest_steps(fd, first, length)
        if is_locked:
            answers = await send(self.afr, mask, self.run.caller, steps)
        else:
            caller = self.afr.owner()
            lock = range_lock(self.afr.domain, self.run.loc, first, first + length - 1)
            got = await take(self.afr, self.run.mask, caller, lock, steps)
            assert got is not None
            await send(self.afr, sum(1 << i for i in got), caller, [unlock_step(lock)])
            answers = {i: got.get(i, [_gone(self.afr.names[i])]) for i in bits(mask)}
        self.run.how.pace.compared_bytes += length * mask.bit_count()
        return {i: _checked(a) for i, a in answers.items()}

    # ---- small files ----

    async def _copy_small(self, source: int, sinks: int) -> None:
        """Under the inode's lock: one frame to read, one frame to each old copy."""
        run = self.run
        iatt = run.iatt(source)
        data = b""
        if iatt.size:
            fd = Fd(run.gfid, os.O_RDONLY)
            read = Step("readv", (fd,), {"size": iatt.size, "offset": 0})
            answer = (await send(self.afr, 1 << source, run.caller, [_open_step(fd), read, Step("release", (fd,))]))[
                source
            ]
            found: Read = _checked(answer)[1]
            data = bytes(found.data)
            if len(data) != iatt.size:
                raise FopError(errno.EIO, f"{self.afr.names[source]}: {len(data)} bytes of {iatt.size}")
        await asyncio.gather(*(self._write_small(i, data, iatt) for i in bits(sinks)))

    async def _write_small(self, sink: int, data: bytes, iatt: Iatt) -> None:
        run = self.run
        fd = Fd(run.gfid, os.O_RDWR)
        steps = [*self._confess(sink), _open_step(fd)]
        if run.iatt(sink).size > len(data):
            steps.append(Step("truncate", (fd, len(data))))
        if data:
            steps.append(Step("writev", (fd, data), {"offset": 0}))
            run.how.pace.copied(len(data))
        steps += [_sync_step(fd), _times_step(fd, iatt), Step("release", (fd,))]
        answer = (await send(self.afr, 1 << sink, run.caller, steps))[sink]
        if not isinstance(answer[0], OSError):
            run.took(sink, answer[0])
        if error := next((a for a in answer if isinstance(a, OSError)), None):
            self._fail(sink, error)

    def _confess(self, sink: int) -> list[Step]:
        """The copy says of itself that it is old."""
        key = self.afr.keys[sink]
        return [Step("xattrop", (self.run.loc, XattrOp.ADD, {key: plus_one(Kind.DATA)}))]

    # ---- large files ----

    async def _copy_large(self, source: int, sinks: int) -> None:
        run = self.run
        fd = Fd(run.gfid, os.O_RDWR)
        size = run.iatt(source).size
        await self._open(1 << source, fd)
        try:
            await asyncio.gather(*(self._prepare(i, fd, size) for i in bits(sinks)))
            await self._leave_data_lock()
            await self._copy_windows(source, sinks, fd, size)
            await self._finish_large(source, sinks & ~self.failed, fd)
        finally:
            await self._release(1 << source | sinks, fd)

    async def _copy_windows(self, source: int, sinks: int, fd: Fd, size: int) -> None:
        """A few at a time.  When one fails no other is begun, and none is cut off: it has locks to give back, and who
        wants the file would wait for one that stayed."""
        run, loop = self.run, asyncio.get_running_loop()
        working: set[asyncio.Task[None]] = set()
        try:
            for first in range(0, size, self.window):
                await run.how.pace.wait()
                run.go_on()
                if not sinks & ~self.failed:
                    break
                window = self._window(source, sinks & ~self.failed, fd, first, min(self.window, size - first))
                working.add(loop.create_task(window))
                working = await _fewer(working, HEAL_WINDOWS_AT_A_TIME)
            await _fewer(working, 1)
        finally:
            await asyncio.gather(*working, return_exceptions=True)

    async def _prepare(self, sink: int, fd: Fd, size: int) -> None:
        """Marked as old by itself, opened, and as long as the source, under the inode's lock."""
        run = self.run
        steps = [*self._confess(sink), _open_step(fd)]
        before = run.iatt(sink).size
        if before != size:
            steps.append(Step("truncate", (fd, size)))
        if before == 0:
            self.is_empty |= 1 << sink
        answer = (await send(self.afr, 1 << sink, run.caller, steps))[sink]
        if not isinstance(answer[0], OSError):
            run.took(sink, answer[0])
        if isinstance(answer[-1], OSError):
            self._fail(sink, answer[-1])

    async def _leave_data_lock(self) -> None:
        lock = range_lock(self.afr.domain, self.run.loc)
        held, self.run.held = self.run.held, 0
        await send(self.afr, held, self.run.caller, [unlock_step(lock)])

    async def _window(self, source: int, sinks: int, fd: Fd, first: int, length: int) -> None:
        """One range: lock, counters and digests in a frame, what differs from the source to the sinks, unlocked."""
        afr, run = self.afr, self.run
        caller = afr.owner()
        lock = range_lock(afr.domain, run.loc, first, first + length - 1)
        is_full = afr.options["data-self-heal-algorithm"] == "full"
        compares = not is_full and bool(sinks & ~self.is_empty)
        steps = _digest_steps(fd, first, length) if compares else []
        answers = await take(afr, run.mask, caller, lock, [run.look_step(), *steps])
        assert answers is not None
        try:
            if source not in answers:
                raise _gone(afr.names[source])
            self._need_good(source, {i: a[0] for i, a in answers.items()})
            got = {i: a[1:] for i, a in answers.items()}
            for i in bits(sinks):
                if i not in got or (compares and got[i] and isinstance(got[i][-1], OSError)):
                    self._fail(i, got[i][-1] if i in got and got[i] else _gone(afr.names[i]))
            sinks &= ~self.failed
            spans = _differing({i: a for i, a in got.items() if i == source or sinks >> i & 1}, source, first, length)
            if compares:
                run.how.pace.compared_bytes += length
            else:
                spans = [(first, length)]
            for offset, count in spans:
                await self._copy_span(source, sinks & ~self.failed, fd, offset, count)
        finally:
            await send(afr, sum(1 << i for i in answers), caller, [unlock_step(lock)])

    def _need_good(self, source: int, looked: dict[int, Any]) -> None:
        """It may have missed a write since the heal began (decision 0135)."""
        before = self.run.copies
        for i, now in self.run.witnesses(looked).items():
            if now.said[source][Kind.DATA] > before[i].said[source][Kind.DATA]:
                raise FopError(errno.EAGAIN, f"{self.afr.names[source]} has missed a write meanwhile: once more")

    async def _copy_span(self, source: int, sinks: int, fd: Fd, offset: int, count: int) -> None:
        run = self.run
        answer: Read = await self.afr.subvolumes[source].readv(run.caller, fd, size=count, offset=offset)
        data = bytes(answer.data)
        if not data or not sinks:
            return  # cut off meanwhile, on all copies
        is_zero = not data.strip(b"\0")
        mask = sinks & ~self.is_empty if is_zero else sinks
        if not mask:
            return
        run.how.pace.copied(len(data))
        answers = await self.afr.ask(mask, lambda c: c.writev(run.caller, fd, data, offset=offset))
        for i, a in answers.items():
            if isinstance(a, OSError):
                self._fail(i, a)

    async def _finish_large(self, source: int, sinks: int, fd: Fd) -> None:
        """On stable storage, with the times of the source; sizes are looked at once more."""
        run, afr = self.run, self.afr
        answers = await send(afr, sinks, run.caller, [_sync_step(fd)])
        got = await take(afr, run.locked, run.caller, range_lock(afr.domain, run.loc), [run.look_step()])
        assert got is not None
        run.held = sum(1 << i for i in got)
        now = got.get(source, [None])[0]
        if not isinstance(now, Looked):
            raise _gone(afr.names[source])
        for i in bits(sinks):
            error = next((a for a in answers.get(i, []) if isinstance(a, OSError)), None)
            looked = got.get(i, [None])[0]
            if error is None and (not isinstance(looked, Looked) or looked.iatt.size != now.iatt.size):
                error = FopError(errno.EAGAIN, "it has changed too much: once more")
            if error is not None:
                self._fail(i, error)
        await send(afr, sinks & ~self.failed, run.caller, [_times_step(fd, now.iatt)])

    # ---- open files ----

    async def _open(self, mask: int, fd: Fd) -> None:
        answers = await self.afr.ask(mask, lambda c: c.open(self.run.caller, Loc(gfid=fd.gfid), fd, flags=fd.flags))
        for answer in answers.values():
            if isinstance(answer, OSError):
                await self._release(mask, fd)
                raise answer

    async def _release(self, mask: int, fd: Fd) -> None:
        for i in bits(mask):
            await self.afr.subvolumes[i].release(fd)

    async def _sync(self, mask: int) -> None:
        """A mark that a dead client left also says that a good copy may not be on stable storage yet."""
        run = self.run
        unsynced = sum(1 << i for i in bits(mask) if run.copies[i].dirty[Kind.DATA])
        fd = Fd(run.gfid, os.O_RDWR)
        steps = [_open_step(fd), _sync_step(fd), Step("release", (fd,))]
        for i, answer in (await send(self.afr, unsynced, run.caller, steps)).items():
            if error := next((a for a in answer if isinstance(a, OSError)), None):
                raise FopError(error.errno or errno.EIO, f"{self.afr.names[i]}: syncing {run.loc}")


async def _fewer(working: set[asyncio.Task[None]], than: int) -> set[asyncio.Task[None]]:
    """Those that are left; what one of the others failed with is raised."""
    while len(working) >= than:
        done, working = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    return working


def _gone(name: str) -> FopError:
    return FopError(errno.ENOTCONN, name)


def _open_step(fd: Fd) -> Step:
    return Step("open", (Loc(gfid=fd.gfid), fd), {"flags": fd.flags})


def _sync_step(fd: Fd) -> Step:
    return Step("fsync", (fd, SyncKind.DATA))


def _times_step(fd: Fd, iatt: Iatt) -> Step:
    return Step("setattr", (fd, SetAttr(atime_ns=iatt.atime_ns, mtime_ns=iatt.mtime_ns)))


def _digest_steps(fd: Fd, first: int, length: int) -> list[Step]:
    ends = min(first + length, END)
    return [
        Step("rchecksum", (fd,), {"offset": at, "length": min(HEAL_BLOCK_BYTES, ends - at)})
        for at in range(first, ends, HEAL_BLOCK_BYTES)
    ]


def _checked(answer: list[Any]) -> list[Any]:
    """All steps went well, or the error."""
    if answer and isinstance(answer[-1], OSError):
        raise answer[-1]
    return answer


def _differing(digests: dict[int, list[Any]], source: int, first: int, length: int) -> list[tuple[int, int]]:
    """Ranges (offset, count) where some sink differs; neighbours in one."""
    spans: list[tuple[int, int]] = []
    good: Sequence[Any] = digests.get(source, [])
    for number, digest in enumerate(good):
        if isinstance(digest, OSError):
            raise digest
        if all(a[number : number + 1] == [digest] for i, a in digests.items() if i != source):
            continue
        offset = first + number * HEAL_BLOCK_BYTES
        count = min(HEAL_BLOCK_BYTES, first + length - offset)
        if spans and sum(spans[-1]) == offset:
            spans[-1] = (spans[-1][0], spans[-1][1] + count)
        else:
            spans.append((offset, count))
    return spans
