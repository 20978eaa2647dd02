# SPDX-License-Identifier: Apache-2.0
"""What a client does about files that are being migrated, or have been, while it uses them (decision 0065).

Every answer about a regular file with the sticky bit is looked at twice (``phase_of``).  At the source of a migration
reads go on as they are; a write has been carried out there and is copied to the target, under a lock on its range that
the migrator takes as well.  A link file says that the file has moved: it is opened at its new place, and the operation
done again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from repl.files.answers import GONE
from repl.files.translator import Translator
from repl.files.translators.distribute.caches import FdState, Mirror, state_of
from repl.files.translators.distribute.copying import copy_range
from repl.files.translators.distribute.lookups import Lookups
from repl.files.translators.distribute.marks import (
    FILE_WANT,
    FINAL_SIZE,
    INCOMING,
    LINKTO,
    is_link,
    is_marked,
    is_migrating,
    is_suspicious,
    linkto_name,
    real_mode,
)
from repl.files.values import END, Changed, Fd, FopError, Iatt, Loc, Looked, SetAttr, Target

log = logging.getLogger(__name__)

_TRIES = 4
NEVER_AGAIN = os.O_TRUNC | os.O_CREAT | os.O_EXCL  # when a file is opened once more


@dataclass(frozen=True, slots=True)
class Phase:
    """``target``: where a migration from here goes (or went, ``is_link``), None: there is none."""

    target: int | None = None
    is_link: bool = False
    mode: int = 0
    first_size: int = 0  # of a source when its last phase began
    final_size: int = 0  # what the target has taken over

    def has_taken(self, changed: Changed) -> bool:
        """The place of an append that was carried out at the source is within what the target has taken over: it was
        made before the switch, or in its last moment, and not when the source had been emptied already."""
        is_in_time = is_marked(changed.after) or self.first_size <= changed.before.size
        return self.is_link and is_in_time and changed.after.size <= self.final_size


NONE = Phase()


class Migrating(Lookups):
    @property
    def migration_domain(self) -> str:
        return f"{self.domain}:migration"

    # ---- where ----

    def fd_state(self, fd: Fd) -> FdState:
        found = state_of(fd, self)
        if found is None:
            raise FopError(errno.EBADF, f"{self.name}: {fd} is not open here")
        return found

    async def place(self, target: Target) -> int:
        """The subvolume of a file.  EISDIR cannot be told here: a directory has any."""
        if isinstance(target, Fd):
            return self.fd_state(target).index
        index = self.files.get(target.gfid)
        if index is not None:
            return index
        if not any(target.gfid) and target.name:
            return (await self.find(self.owner(), target))[0]
        return (await self.locate(target.gfid))[0]

    async def is_directory(self, target: Target) -> bool:
        if isinstance(target, Fd):
            return target.is_directory
        if self.files.get(target.gfid) is not None:
            return False
        if self.directories.get(target.gfid) is None:
            await self.locate(target.gfid)
        return self.files.get(target.gfid) is None

    async def by_gfid(self, target: Target) -> Target:
        """A name stands for what it leads to."""
        if isinstance(target, Loc) and not any(target.gfid) and target.name:
            looked = (await self.find(self.owner(), target))[1]
            return Loc(looked.iatt.gfid, target.parent, target.name, target.path)
        return target

    # ---- doing it where the file is ----

    async def at_place(
        self, target: Target, call: Callable[[Translator], Awaitable[Any]],
        iatt_of: Callable[[Any], Iatt] | None = None, *, is_append: bool = False,
    ) -> tuple[Any, int, Phase]:  # fmt: skip
        """What ``call`` answers on the subvolume that has the file."""
        failure: FopError | None = None
        for _ in range(_TRIES):
            index = await self.place(target)
            try:
                answer = await call(self.need(index, target))
            except FopError as error:
                if error.errno not in GONE or isinstance(target, Fd):
                    raise
                failure = failure or error
                self.files.drop(target.gfid)
                if await self.place(target) == index:
                    raise
                continue
            if iatt_of is None:
                return answer, index, NONE
            iatt = iatt_of(answer)
            if not is_suspicious(iatt):
                return answer, index, NONE
            phase = await self.phase_of(index, target)
            if not phase.is_link:
                if phase.target is not None:
                    iatt.mode = phase.mode
                return answer, index, phase
            await self.follow_move(target, index)
            if is_append and phase.has_taken(answer):
                return answer, await self.place(target), phase
        raise failure or FopError(errno.ESTALE, f"{self.name}: {target} does not keep still")

    async def phase_of(self, index: int, target: Target) -> Phase:
        """A second look at a file that has the sticky bit."""
        want = (*FILE_WANT, FINAL_SIZE)
        looked: Looked = await self.subvolumes[index].stat(self.owner(), target, want=want)
        if LINKTO not in looked.xattrs:
            return NONE
        other = self.number_of.get(linkto_name(looked.xattrs[LINKTO]))
        if is_migrating(looked.xattrs):
            return Phase(other, mode=real_mode(looked))
        if is_link(looked.xattrs) and not self._is_settled_target(index, target, looked):
            sizes = looked.xattrs.get(FINAL_SIZE, b"").rjust(16, b"\0")
            return Phase(other, True, 0, int.from_bytes(sizes[:8], "big"), int.from_bytes(sizes[8:], "big"))
        return NONE

    def _is_settled_target(self, index: int, target: Target, looked: Looked) -> bool:
        """The file itself, which still has the mark of a migration that has ended here."""
        place = self.fd_state(target).index if isinstance(target, Fd) else self.files.get(target.gfid)
        return INCOMING in looked.xattrs and place == index

    async def settled_phase(self, index: int, target: Target) -> Phase:
        """The same when a migration that is about to end has ended."""
        phase = await self.phase_of(index, target)
        if phase.target is None or phase.is_link:
            return phase
        async with self.locked_inode(index, Loc(gfid=target.gfid), self.migration_domain):
            return await self.phase_of(index, target)

    async def follow_move(self, target: Target, index: int) -> None:
        """The file is not on ``index`` any more.  ESTALE."""
        if self.files.get(target.gfid) == index:
            self.files.drop(target.gfid)
        new = self.files.get(target.gfid)
        if new is None:
            new = (await self.locate(target.gfid))[0]
        if isinstance(target, Fd):
            await self.open_at(target, new)

    def has_moved(self, gfid: bytes, index: int) -> None:
        """Open files follow at once: later their last name may be gone, and nobody could find them."""
        if self.files.get(gfid) == index:
            self.files.drop(gfid)
        for fd in self.open_files.get(gfid, ()):
            if self.fd_state(fd).index == index:
                self._later(partial(self._follow_if_moved, fd, index), f"{fd} is followed")

    async def _follow_if_moved(self, fd: Fd, index: int) -> None:
        state = state_of(fd, self)
        if state is not None and state.index == index and (await self.phase_of(index, fd)).is_link:
            await self.follow_move(fd, index)

    async def keep_open(self, gfid: bytes, index: int) -> None:
        """A file that is about to lose a name on ``index`` is open there, not where it was once."""
        for fd in list(self.open_files.get(gfid, ())):
            if self.fd_state(fd).index != index:
                await self.open_at(fd, index)

    async def open_at(self, fd: Fd, index: int) -> None:
        """An open file's operations go to another subvolume from now on."""
        state = self.fd_state(fd)
        if state.lock is None:
            state.lock = asyncio.Lock()
        async with state.lock:
            if index not in state.opened:
                flags = state.flags & ~NEVER_AGAIN
                await self.need(index, fd).open(self.owner(), Loc(gfid=fd.gfid), fd, flags=flags)
                state.opened.add(index)
            state.index = index

    # ---- changes at the source of a migration ----

    async def repeat(
        self, target: Target, index: int, phase: Phase, again: Callable[[], Awaitable[Any]],
        *, first: int = 0, last: int = END, is_append: bool = False, changed: Changed | None = None,
        is_data: bool = True,
    ) -> bool:  # fmt: skip
        """A change has been made at the source.  While the migration goes on the target gets the same contents; when
        it is over, ``again`` does the change where the file is now.  False: its end has taken over the place of an
        append, but perhaps not its bytes."""
        if phase.target is None:
            return True
        async with self.locked_inode(index, Loc(gfid=target.gfid), self.migration_domain, first=first, last=last):
            now = await self.phase_of(index, target)
            if now.target is None:
                return True
            if not now.is_link:
                if is_data:
                    await self._mirror(target, index, now, first, last)
                return True
        await self.follow_move(target, index)
        if is_append and changed is not None and changed.after.size <= now.final_size:
            return False
        await again()
        return True

    async def _mirror(self, target: Target, index: int, phase: Phase, first: int, last: int) -> None:
        """The change is at the source; if it cannot get to the target, the migration is over."""
        assert phase.target is not None
        try:
            async with self._mirrored(target, index, phase.target) as fd:
                source, other = self.subvolumes[index], self.need(phase.target, target)
                await copy_range(source, other, fd, self.owner(), first, last)
        except OSError as error:
            log.info("volume '%s': the migration of %s to '%s' ends: %s", self.name, target, self.names[phase.target],
                     error)  # fmt: skip
            mode = SetAttr(mode=stat.S_IMODE(phase.mode))
            await self.subvolumes[index].setattr(self.owner(), target, mode)

    @asynccontextmanager
    async def _mirrored(self, target: Target, source: int, other: int) -> AsyncIterator[Fd]:
        """The file open at both ends."""
        state = self.fd_state(target) if isinstance(target, Fd) else None
        if state is not None and state.mirror is not None:
            if (state.mirror.source, state.mirror.target) == (source, other):
                yield state.mirror.fd
                return
            await self.close_mirror(state)
        mirror = await self.open_mirror(target.gfid, source, other)
        if state is not None:
            state.mirror = mirror
        try:
            yield mirror.fd
        finally:
            if state is None:
                await self.release_mirror(mirror)

    async def open_mirror(self, gfid: bytes, source: int, target: int) -> Mirror:
        fd, caller, loc = Fd(gfid, os.O_RDWR), self.owner(), Loc(gfid=gfid)
        await self.subvolumes[source].open(caller, loc, fd, flags=os.O_RDONLY)
        try:
            await self.subvolumes[target].open(caller, loc, fd, flags=os.O_RDWR)
        except BaseException:
            await self.subvolumes[source].release(fd)
            raise
        return Mirror(fd, source, target)

    async def release_mirror(self, mirror: Mirror) -> None:
        await self.subvolumes[mirror.source].release(mirror.fd)
        await self.subvolumes[mirror.target].release(mirror.fd)

    async def close_mirror(self, state: FdState) -> None:
        mirror, state.mirror = state.mirror, None
        if mirror is not None:
            await self.release_mirror(mirror)
