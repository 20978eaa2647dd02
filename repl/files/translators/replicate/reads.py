# SPDX-License-Identifier: Apache-2.0
"""Everything that only reads: from one good copy, and from the next one when that fails (spec 5.4)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any

from repl.files.answers import AWAY, GONE, errors_of, good_of
from repl.files.translator import Step, Translator
from repl.files.translators.replicate.base import bits, mask_of, telling_error
from repl.files.translators.replicate.changelog import Kind
from repl.files.translators.replicate.inodes import FdState, InodeState
from repl.files.translators.replicate.ruling import Ruling
from repl.files.values import (
    LAST,
    ROOT_GFID,
    Caller,
    Entry,
    Fd,
    FopError,
    Iatt,
    Loc,
    Looked,
    Read,
    StatVfs,
    Target,
    Want,
    Xattrs,
)
from repl.limits import RPC_COMPOUND_STEPS_MAX

NEVER_DOWN = os.O_APPEND | os.O_TRUNC | os.O_CREAT | os.O_EXCL
RETRIED = AWAY | {errno.EIO, errno.ESTALE, errno.EBADF, errno.ENOENT, errno.ENOSYS}


class Reads(Ruling):
    async def readable(self, inode: InodeState, kind: Kind) -> int:
        """Children with a good copy.  EIO when there is none, ENOTCONN when it is away."""
        await self.settled()
        if self.is_quorum_read:
            self.need_quorum(f"reading {Loc(gfid=inode.gfid)}")
        if inode.generation != self.generation:
            await self.refresh(inode)
        elif not inode.readable[kind] & self.up:
            await self.look_again(inode)
        if inode.choice >= 0 and inode.choice_until > self.context.now() and self.up >> inode.choice & 1:
            return 1 << inode.choice
        if any(inode.is_split) and (kind is Kind.DATA or inode.is_split[kind]) and not self._may_show(inode, kind):
            if inode.found != self.everyone:  # a copy that is away may be the good one
                raise self.nobody(f"reading {Loc(gfid=inode.gfid)}: no good copy answers")
            word = next(k.word for k in Kind if inode.is_split[k])
            raise FopError(errno.EIO, f"{self.name}: {Loc(gfid=inode.gfid)} is in {word} split-brain")
        mask = inode.readable[kind] & self.up
        if not mask and kind is not Kind.DATA and inode.is_split[kind]:
            mask = inode.found & self.up
        if not mask:
            raise self.nobody(f"reading {Loc(gfid=inode.gfid)}")
        return mask

    def _may_show(self, inode: InodeState, kind: Kind) -> bool:
        """Attributes and names of a split-brain are shown, contents are not (spec 5.11)."""
        return kind is not Kind.DATA and not self.is_good_away(inode)

    async def read_from(
        self,
        inode: InodeState,
        kind: Kind,
        caller: Caller,
        call: Callable[[Translator], Awaitable[Any]],
        state: FdState | None = None,
    ) -> Any:
        """The answer of a good copy, with retries on the others."""
        tried = 0
        failure: OSError | None = None
        while untried := await self.readable(inode, kind) & ~tried:
            index = self.read_order(inode.gfid, untried, caller.pid)[0]
            tried |= 1 << index
            if state is not None and not state.opened >> index & 1:
                await self.ensure_open(state, 1 << index)
            load, started = self.loads[index], self.context.now()
            load.pending += 1
            try:
                answer = await call(self.subvolumes[index])
            except OSError as error:
                if error.errno not in RETRIED:
                    raise
                failure = failure or error
                if error.errno not in AWAY:
                    failure = error
                continue
            finally:
                load.pending -= 1
            load.done(self.context.now() - started)
            return answer
        raise failure or self.nobody(f"reading {Loc(gfid=inode.gfid)}")

    def _inode_of(self, target: Target) -> tuple[InodeState, FdState | None]:
        if isinstance(target, Fd):
            state = self.fd_state(target)
            return state.inode, state
        return self.inodes.get(target.gfid), None

    # ---- attributes ----

    async def stat(self, caller: Caller, target: Target, *, want: Want = ()) -> Looked:
        inode, state = self._inode_of(target)
        lower = self.lower(target)
        kind = Kind.DATA
        if inode.generation != self.generation:
            await self.settled()
            await self.refresh(inode)
        if not inode.readable[kind] or inode.is_split[Kind.METADATA] or inode.is_split[Kind.DATA]:
            kind = Kind.METADATA
        elif not inode.readable[kind] & inode.readable[Kind.METADATA] & self.up:
            return await self._stat_two(inode, caller, target, want)
        answer: Looked = await self.read_from(inode, kind, caller, lambda c: c.stat(caller, lower, want=want), state)
        return answer

    async def _stat_two(self, inode: InodeState, caller: Caller, target: Target, want: Want) -> Looked:
        """No copy is good in both: size and times of one, the rest of the other."""
        state, lower = self._inode_of(target)[1], self.lower(target)
        data = await self.read_from(inode, Kind.DATA, caller, lambda c: c.stat(caller, lower), state)
        rest: Looked = await self.read_from(
            inode, Kind.METADATA, caller, lambda c: c.stat(caller, lower, want=want), state
        )
        rest.iatt = with_size(rest.iatt, data.iatt)
        return rest

    async def access(self, caller: Caller, loc: Loc, mask: int) -> None:
        await self.read_from(self.inodes.get(loc.gfid), Kind.METADATA, caller, lambda c: c.access(caller, loc, mask))

    async def readlink(self, caller: Caller, loc: Loc) -> bytes:
        inode = self.inodes.get(loc.gfid)
        answer: bytes = await self.read_from(inode, Kind.METADATA, caller, lambda c: c.readlink(caller, loc))
        return answer

    async def getxattr(self, caller: Caller, target: Target, name: bytes | None = None) -> Xattrs:
        inode, state = self._inode_of(target)
        lower = self.lower(target)
        answer: Xattrs = await self.read_from(
            inode, Kind.METADATA, caller, lambda c: c.getxattr(caller, lower, name), state
        )
        return answer

    async def statfs(self, caller: Caller, loc: Loc) -> StatVfs:
        """The child with the least room says how much there is."""
        await self.settled()
        answers = await self.ask(self.up & ~self.arbiters or self.up, lambda c: c.statfs(caller, loc))
        good = good_of(answers)
        if not good:
            raise telling_error(errors_of(answers)) if answers else self.nobody("statfs")
        least: StatVfs = min(good.values(), key=lambda a: a.blocks_available * a.block_size)
        return least

    # ---- files ----

    async def open(self, caller: Caller, loc: Loc, fd: Fd, *, flags: int) -> None:
        inode = self.inodes.get(loc.gfid)
        readable = await self.readable(inode, Kind.DATA)
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes:
            self.need_quorum(f"opening {loc} for writing")
        state = FdState(inode, Fd(loc.gfid, flags & ~NEVER_DOWN, path=fd.path), flags)
        mask = self.up if writes else 1 << self.read_order(inode.gfid, readable, caller.pid)[0]
        lower_flags = state.lower.flags
        answers = await self.ask(mask, lambda c: c.open(caller, loc, state.lower, flags=lower_flags))
        if not (good := good_of(answers)) and (rest := readable & self.up & ~mask):
            answers = await self.ask(rest, lambda c: c.open(caller, loc, state.lower, flags=lower_flags))
            good = good_of(answers)
        state.opened = mask_of(good)
        if not state.opened & readable:
            await self.release_state(state)
            if not readable & self.up:  # they have gone meanwhile
                await self.open(caller, loc, fd, flags=flags)
                return
            raise telling_error(errors_of(answers)) if errors_of(answers) else self.nobody(f"opening {loc}")
        fd.contexts[self] = state
        inode.fds.add(state)
        if flags & os.O_TRUNC and writes:
            try:
                await self.truncate(caller, fd, 0)
            except BaseException:  # it is not open for the caller, who will not close it
                self.context.spawn(self.release(fd), f"{self.name}: a file that was not opened is closed")
                raise

    async def opendir(self, caller: Caller, loc: Loc, fd: Fd) -> None:
        inode = self.inodes.get(loc.gfid)
        if self.up != self.everyone and self.quorum.is_majority and self.quorum.is_met(self.up):
            await self.rule(loc.gfid)
        readable = await self.readable(inode, Kind.ENTRY)
        state = FdState(inode, Fd(loc.gfid, fd.flags, is_directory=True, path=fd.path), fd.flags)
        index = self.read_order(inode.gfid, readable, caller.pid)[0]
        answers = await self.ask(1 << index, lambda c: c.opendir(caller, loc, state.lower))
        state.opened = mask_of(good_of(answers))
        if not state.opened:
            answers |= await self.ask(readable & ~(1 << index), lambda c: c.opendir(caller, loc, state.lower))
            state.opened = mask_of(good_of(answers))
            if not state.opened and not readable & self.up:  # they have gone meanwhile
                await self.opendir(caller, loc, fd)
                return
            if not state.opened:
                raise telling_error(errors_of(answers)) if answers else self.nobody(f"opening {loc}")
        fd.contexts[self] = state
        inode.fds.add(state)

    async def readv(self, caller: Caller, fd: Fd, *, size: int, offset: int) -> Read:
        state = self.fd_state(fd)
        answer: Read | None = await self._read_at_once(state, caller, size, offset)
        if answer is None:
            answer = await self.read_from(
                state.inode, Kind.DATA, caller, lambda c: c.readv(caller, state.lower, size=size, offset=offset), state
            )
        return answer

    async def _read_at_once(self, state: FdState, caller: Caller, size: int, offset: int) -> Read | None:
        """What ``read_from`` does where everything is as it should be and nobody measures children; else None."""
        inode, hash_mode = state.inode, self.hash_mode
        mask = inode.readable[Kind.DATA] & self.up
        if (
            not mask or inode.generation != self.generation or inode.choice >= 0 or any(inode.is_split)
            or hash_mode > 2 or self.unknown or self.is_quorum_read
        ):  # fmt: skip
            return None
        index = self.first_to_read(inode.gfid, mask, caller.pid)
        if not state.opened >> index & 1:
            return None
        answer = (await self.ask_all(1 << index, "readv", caller, [state.lower, size, offset]))[index]
        if isinstance(answer, OSError):
            if answer.errno not in RETRIED:
                raise answer
            return None
        found: Read = answer
        return found

    async def seek(self, caller: Caller, fd: Fd, *, offset: int, what: int) -> int:
        state = self.fd_state(fd)
        answer: int = await self.read_from(
            state.inode, Kind.DATA, caller, lambda c: c.seek(caller, state.lower, offset=offset, what=what), state
        )
        return answer

    async def rchecksum(self, caller: Caller, fd: Fd, *, offset: int, length: int) -> bytes:
        state = self.fd_state(fd)
        answer: bytes = await self.read_from(
            state.inode, Kind.DATA, caller,
            lambda c: c.rchecksum(caller, state.lower, offset=offset, length=length), state,
        )  # fmt: skip
        return answer

    async def release(self, fd: Fd) -> None:
        state = fd.contexts.pop(self, None)
        if state is None:
            return
        state.inode.fds.discard(state)
        self.inodes.used(state.inode)
        tenure = state.inode.tenure
        if tenure is not None:
            writer = next((s for s in state.inode.fds if s.flags & os.O_ACCMODE), None)
            if writer is None:
                tenure.close(for_good=False)
            if tenure.syncing is state or tenure.unstable is state and writer is None:
                tenure.releases.append(state)  # the sync needs it
                return
            if tenure.unstable is state and writer is not None:
                # What was written is synced through a descriptor that is still open.
                tenure.unstable = writer
                await self.ensure_open(writer, tenure.active)
        await self.release_state(state)

    # ---- directories ----

    def visible(self, gfid: bytes, entries: list[Entry]) -> list[Entry]:
        """Without the place where heals keep what lost its name."""
        return [e for e in entries if e.name != self.aside_name] if gfid == ROOT_GFID else entries

    aside_name = b""

    async def check_entries(self, entries: list[Entry], index: int, want: Want) -> None:
        """Attributes come from good copies: the other children are asked for their counters, all names of a listing in
        one frame each, and what is not good here is looked up.  Where that fails none come along."""
        generation = self.generation
        asked = [e for e in entries if e.iatt is not None]
        unknown = [e for e in asked if self.inodes.get(e.gfid).generation != generation]
        if unknown:
            others = self.up & ~(1 << index)
            looks = {i: await self._look_all(i, unknown) for i in bits(others)}
            for entry in unknown:
                assert entry.iatt is not None
                found = {i: a[entry.gfid] for i, a in looks.items() if entry.gfid in a}
                found[index] = Looked(entry.iatt, None, entry.xattrs)
                if len(found) == self.up.bit_count() and self.quorum.is_met(self.up):
                    self.learn(self.inodes.get(entry.gfid), found, generation)
        old = []
        for entry in asked:
            inode = self.inodes.get(entry.gfid)
            good = inode.readable[Kind.METADATA] & inode.readable[Kind.DATA]
            if inode.generation != generation or not good >> index & 1:
                old.append(entry)
            elif self.want_keys:
                entry.xattrs = {k: v for k, v in entry.xattrs.items() if k in want or k not in self.want_keys}
        await asyncio.gather(*(self._look_up(entry, want) for entry in old))

    async def _look_up(self, entry: Entry, want: Want) -> None:
        last = {LAST: b""} if LAST in entry.xattrs else {}
        entry.iatt, entry.xattrs = None, last
        with contextlib.suppress(OSError):
            found = await self.lookup(Caller(client=self.context.process), Loc(gfid=entry.gfid), want=want)
            entry.iatt, entry.xattrs = found.iatt, {k: v for k, v in found.xattrs.items() if k in want} | last

    async def _look_all(self, index: int, entries: list[Entry]) -> dict[bytes, Looked]:
        """The inodes of a listing at one child; those it does not have are left out."""
        step = RPC_COMPOUND_STEPS_MAX
        found: dict[bytes, Looked] = {}
        parts = [entries[at : at + step] for at in range(0, len(entries), step)]
        for part in await asyncio.gather(*(self._look_part(index, part) for part in parts)):
            found |= part
        return found

    async def _look_part(self, index: int, entries: list[Entry]) -> dict[bytes, Looked]:
        found: dict[bytes, Looked] = {}
        caller = Caller(client=self.context.process)
        while entries and self.up >> index & 1:
            steps = [Step("lookup", (Loc(gfid=e.gfid),), {"want": self.want_keys}) for e in entries]
            try:
                answers = await self.subvolumes[index].compound(caller, steps)
            except OSError:
                break
            for entry, answer in zip(entries, answers, strict=False):
                if isinstance(answer, Looked):
                    found[entry.gfid] = answer
            if not answers or (isinstance(answers[-1], OSError) and answers[-1].errno not in GONE):
                break
            entries = entries[len(answers) :]  # an error ended the frame: the rest goes in another one
        return found


def with_size(iatt: Iatt, data: Iatt) -> Iatt:
    """The attributes of one copy with what belongs to the data of another."""
    return Iatt(iatt.gfid, iatt.mode, iatt.nlink, iatt.uid, iatt.gid, iatt.rdev, data.size, data.blocks,
                data.block_size, data.atime_ns, data.mtime_ns, max(iatt.ctime_ns, data.ctime_ns))  # fmt: skip
