# SPDX-License-Identifier: Apache-2.0
"""Locks that others take through replicate: applications' (fcntl, flock) and those of translators above.

A lock is held on all children that are up.  Two that want the same ask the children in the same order, so that nobody
waits for ever: a try that fails on one child is taken back on those before it.  A child that comes back gets the locks
of open files again (``restore_locks``).
"""

from __future__ import annotations

import logging

from repl.files.answers import AWAY, Answers, errors_of, good_of
from repl.files.translators.replicate.base import Question, telling_error
from repl.files.translators.replicate.entries import Entries
from repl.files.values import Caller, Fd, Loc, Lock, LockCommand, LockType, Target

log = logging.getLogger(__name__)


class Locking(Entries):
    async def _lock_in_order(
        self, call: Question, undo: Question, what: str
    ) -> Answers:
        """One child after another; a refusal undoes what was got."""
        await self.settled()
        self.need_quorum(f"locking {what}")
        got = 0
        answers: Answers = {}
        try:
            for i in self.lock_order:
                if not self.up >> i & 1:
                    continue
                answers |= await self.ask(1 << i, call)
                error = errors_of(answers).get(i)
                if error is None:
                    got |= 1 << i
                elif error.errno not in AWAY:
                    raise error
            self.need_quorum(f"locking {what}", got)
        except BaseException:
            self.context.spawn(self.ask(got, undo), f"{self.name}: a lock goes back")
            raise
        return good_of(answers)

    async def lk(self, caller: Caller, fd: Fd, command: LockCommand, lock: Lock) -> Lock:
        state = self.fd_state(fd)
        await self.ensure_open(state, self.up)
        unlock = lock_free(lock)
        if command is LockCommand.GET:
            answers = await self.ask(self.up, lambda c: c.lk(caller, state.lower, command, lock))
            good = good_of(answers)
            if not good:
                raise telling_error(errors_of(answers)) if answers else self.nobody(f"locking {fd}")
            found: list[Lock] = [a for a in good.values() if a.type is not LockType.UNLOCK]
            return found[0] if found else lock_free(lock)
        if lock.type is LockType.UNLOCK:
            await self._unlock_all(lambda c: c.lk(caller, state.lower, command, lock))
        else:
            state.inode.has_locks = True
            await self._lock_in_order(
                lambda c: c.lk(caller, state.lower, command, lock),
                lambda c: c.lk(caller, state.lower, LockCommand.TRY, unlock), str(fd),
            )  # fmt: skip
        state.remember_lock(caller, lock)
        return lock

    async def _unlock_all(self, call: Question) -> None:
        answers = await self.ask(self.up, call)
        errors = errors_of(answers)
        if answers and len(errors) == len(answers) and not all(e.errno in AWAY for e in errors.values()):
            raise telling_error(errors)

    async def restore_locks(self, index: int) -> None:
        """A child is back: it does not know the locks that were taken meanwhile, or lost those it knew."""
        for inode in self.inodes.all():
            for state in list(inode.fds):
                if not state.locks:
                    continue
                await self.ensure_open(state, 1 << index)
                for caller, lock in list(state.locks):
                    try:
                        await self.subvolumes[index].lk(caller, state.lower, LockCommand.TRY, lock)
                    except OSError as error:
                        log.warning("volume '%s': a lock on %s could not be taken again on '%s': %s", self.name,
                                    state.lower, self.names[index], error)  # fmt: skip

    async def inodelk(self, caller: Caller, domain: str, target: Target, command: LockCommand, lock: Lock) -> None:
        inode, state = self._inode_of(target)
        lower = self.lower(target)
        if state is not None:
            await self.ensure_open(state, self.up)
        if lock.type is LockType.UNLOCK:
            await self._unlock_all(lambda c: c.inodelk(caller, domain, lower, command, lock))
            return
        unlock = Lock(LockType.UNLOCK, lock.first, lock.last)
        await self._lock_in_order(
            lambda c: c.inodelk(caller, domain, lower, command, lock),
            lambda c: c.inodelk(caller, domain, lower, LockCommand.TRY, unlock), str(target),
        )  # fmt: skip

    async def entrylk(
        self, caller: Caller, domain: str, loc: Loc, name: bytes | None, command: LockCommand, type: LockType
    ) -> None:
        if type is LockType.UNLOCK:
            await self._unlock_all(lambda c: c.entrylk(caller, domain, loc, name, command, type))
            return
        await self._lock_in_order(
            lambda c: c.entrylk(caller, domain, loc, name, command, type),
            lambda c: c.entrylk(caller, domain, loc, name, LockCommand.TRY, LockType.UNLOCK), str(loc),
        )  # fmt: skip


def lock_free(lock: Lock) -> Lock:
    """The same range, unlocked."""
    return Lock(LockType.UNLOCK, lock.first, lock.last, lock.is_flock, lock.pid)
