# SPDX-License-Identifier: Apache-2.0
"""features/locks: byte-range locks and flock of applications, and the internal locks of replicate and distribute.

Inputs: lk, inodelk, entrylk; everything else passes.  Outputs: the lock, or EAGAIN (TRY, TRY_QUIETLY), or it waits
(WAIT, until granted, cancelled, or the client is gone: ENOTCONN).  ``Contended`` goes up, addressed to the client whose
internal lock is in somebody's way, unless that one tried quietly.  All that a client holds ends with ``client_gone``.
Locks live in memory only, as in Gluster: a brick that restarts has none, and its clients know that they lost the link.
Source of the facts: spec section 3.3; fcntl(2), flock(2).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from repl.files.events import Contended
from repl.files.options import Options
from repl.files.translator import Context, Step, Translator
from repl.files.translators.locks.options import OPTIONS
from repl.files.translators.locks.tables import L, NameLock, Owner, RangeTable, Table, Waiting
from repl.files.values import (
    END,
    NEW_LOCK,
    Caller,
    Changed,
    End,
    Fd,
    FopError,
    Loc,
    Lock,
    LockCommand,
    LockType,
    Looked,
    Read,
    Target,
    Xattrs,
    gfid_text,
)

log = logging.getLogger(__name__)

_WHOLE, _UNLOCK = Lock(LockType.WRITE), Lock(LockType.UNLOCK)


class Locks(Translator):
    TYPE = "features/locks"
    ALIASES = ("features/posix-locks",)
    OPTIONS = OPTIONS

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self._ranges: dict[bytes, RangeTable] = {}  # by gfid
        self._inodes: dict[tuple[str, bytes], Table[Lock]] = {}  # by domain and gfid
        self._entries: dict[tuple[str, bytes], Table[NameLock]] = {}
        self._lost_unlocks = 0

    def _spaces(self) -> tuple[dict[Any, Table[Any]], ...]:
        return self._ranges, self._inodes, self._entries  # type: ignore[return-value]

    # ---- life ----

    def take_over(self, before: Translator) -> None:
        if isinstance(before, Locks):
            self._ranges, self._inodes, self._entries = before._ranges, before._inodes, before._entries

    def client_gone(self, client: str) -> None:
        now = self.context.now()
        for space in self._spaces():
            for key, table in list(space.items()):
                if client in table.clients():
                    table.drop(client, now)
                    self._tidy(space, key)
        super().client_gone(client)

    def state(self) -> dict[str, object]:
        out: dict[str, object] = {}
        for kind, space in zip(("posixlk", "inodelk", "entrylk"), self._spaces(), strict=True):
            for key, table in space.items():
                domain, gfid = key if isinstance(key, tuple) else ("", key)
                where = f"{kind}.{domain}.{gfid_text(gfid)}" if domain else f"{kind}.{gfid_text(gfid)}"
                out[where] = {
                    "active": [f"{_text(h.lock)} by {_owner(h.owner)} since {h.since:.3f}" for h in table.held],
                    "blocked": [f"{_text(w.lock)} by {_owner(w.owner)}" for w in table.waiting],
                }
        return out

    # ---- locks of applications ----

    async def lk(self, caller: Caller, fd: Fd, command: LockCommand, lock: Lock) -> Lock:
        if lock.first < 0 or lock.last < lock.first:
            raise FopError(errno.EINVAL, f"no range: {lock.first} to {lock.last}")
        owner = (caller.client, caller.lock_owner)
        lock = replace(lock, pid=lock.pid or caller.pid)
        if lock.is_flock:
            lock = replace(lock, first=0, last=END)
        self._trace("lk", caller, fd.gfid, command, lock)
        if command == LockCommand.GET:
            table = self._ranges.get(fd.gfid)
            found = table.blocker(owner, lock) if table and lock.type != LockType.UNLOCK else None
            return found or replace(lock, type=LockType.UNLOCK)
        if lock.type == LockType.UNLOCK:
            self._release(self._ranges, fd.gfid, owner, lock)
        else:
            await self._take(self._ranges, RangeTable, fd.gfid, owner, command, lock)
        return lock

    # ---- internal locks ----

    async def inodelk(self, caller: Caller, domain: str, target: Target, command: LockCommand, lock: Lock) -> None:
        if lock.first < 0 or lock.last < lock.first:
            raise FopError(errno.EINVAL, f"no range: {lock.first} to {lock.last}")
        self._trace(f"inodelk {domain}", caller, target.gfid, command, lock)
        key = (domain, target.gfid)
        owner = (caller.client, caller.lock_owner)
        if lock.type == LockType.UNLOCK:
            self._release(self._inodes, key, owner, lock)
            return
        await self._take(
            self._inodes, Table, key, owner, command, lock,
            lambda table: self._contended(table, owner, lock, domain, target.gfid),
        )  # fmt: skip

    async def entrylk(
        self, caller: Caller, domain: str, loc: Loc, name: bytes | None, command: LockCommand, type: LockType
    ) -> None:
        lock = NameLock(type, name)
        self._trace(f"entrylk {domain}", caller, loc.gfid, command, lock)
        key = (domain, loc.gfid)
        owner = (caller.client, caller.lock_owner)
        if type == LockType.UNLOCK:
            self._release(self._entries, key, owner, lock)
            return
        await self._take(
            self._entries, Table, key, owner, command, lock,
            lambda table: self._contended(table, owner, lock, domain, loc.gfid),
        )  # fmt: skip

    async def create(
        self, caller: Caller, loc: Loc, fd: Fd, *, flags: int, mode: int, gfid: bytes, extra: Xattrs | None = None
    ) -> Looked:
        """With ``NEW_LOCK`` the new file is locked before anybody else can see it."""
        if extra is None or NEW_LOCK not in extra:
            return await self.child.create(caller, loc, fd, flags=flags, mode=mode, gfid=gfid, extra=extra)
        domain = extra[NEW_LOCK].decode(errors="replace")
        rest = {key: value for key, value in extra.items() if key != NEW_LOCK}
        looked = await self.child.create(caller, loc, fd, flags=flags, mode=mode, gfid=gfid, extra=rest)
        if looked.iatt.gfid == gfid and self._lock_new(caller, (domain, gfid)):
            looked.xattrs[NEW_LOCK] = b"1"
        return looked

    def _lock_new(self, caller: Caller, key: tuple[str, bytes]) -> bool:
        table = self._inodes.get(key) or Table()
        try:
            is_taken = table.take((caller.client, caller.lock_owner), _WHOLE, self.context.now())
        except FopError:  # too many locks
            return False
        if is_taken:
            self._inodes[key] = table
        return is_taken

    async def end_all(
        self, caller: Caller, domain: str, key: bytes, ends: Sequence[End]
    ) -> list[bytes | OSError | None]:
        try:
            return await self.child.end_all(caller, domain, key, ends)
        finally:
            owner = (caller.client, caller.lock_owner)
            for end in ends:
                if end.is_entry:
                    self._release(self._entries, (domain, end.gfid), owner, NameLock(LockType.UNLOCK, None))
                else:
                    self._release(self._inodes, (domain, end.gfid), owner, _UNLOCK)

    def _contended(self, table: Table[L], owner: Owner, lock: L, domain: str, gfid: bytes) -> None:
        """Ask who is in the way to let go."""
        if not self.options["notify-contention"]:
            return
        now, delay = self.context.now(), self.options["notify-contention-delay"]
        asked: set[str] = set()
        for held in table.blockers(owner, lock):
            client = held.owner[0]
            if now - held.contended_at < delay or client in asked:
                continue
            held.contended_at = now
            asked.add(client)
            is_entry = isinstance(held.lock, NameLock)
            name = held.lock.name if isinstance(held.lock, NameLock) else None
            self.notify_parents(Contended(domain, gfid, name, is_entry, client))

    # ---- taking, waiting, giving back ----

    async def _take(
        self, space: dict[Any, Any], kind: Callable[[], Any], key: Any, owner: Owner, command: LockCommand, lock: L,
        contended: Callable[[Table[L]], None] | None = None,
    ) -> None:  # fmt: skip
        if command == LockCommand.GET:
            raise FopError(errno.EINVAL, "internal locks are not asked for")
        table: Table[L] = space.get(key) or kind()
        if table.take(owner, lock, self.context.now()):
            space[key] = table
            return
        if contended is not None and command != LockCommand.TRY_QUIETLY:
            contended(table)
        if command != LockCommand.WAIT:
            raise FopError(errno.EAGAIN, f"{self.name}: locked by somebody else")
        is_internal = contended is not None
        await self._wait(space, key, table, owner, lock, is_internal=is_internal)

    async def _wait(
        self, space: dict[Any, Any], key: Any, table: Table[L], owner: Owner, lock: L, *, is_internal: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        decided: asyncio.Future[None] = loop.create_future()

        def granted() -> None:
            if not decided.done():
                decided.set_result(None)

        def lost() -> None:
            if not decided.done():
                decided.set_exception(FopError(errno.ENOTCONN, f"{self.name}: the client is gone"))

        waiting = Waiting(owner, lock, granted, lost)
        table.wait(waiting)
        timer = self._arrange_revocation(table, waiting) if is_internal else None
        try:
            await decided
        except asyncio.CancelledError:
            table.give_up(waiting, self.context.now())
            self._tidy(space, key)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _arrange_revocation(self, table: Table[L], waiting: Waiting[L]) -> asyncio.TimerHandle | None:
        most, seconds = self.options["revocation-max-blocked"], self.options["revocation-secs"]
        if most and len(table.waiting) > most:
            self._revoke(table, waiting)
        elif seconds:
            return asyncio.get_running_loop().call_later(seconds, self._revoke, table, waiting)
        return None

    def _revoke(self, table: Table[L], waiting: Waiting[L]) -> None:
        if waiting not in table.waiting:
            return
        holders = ", ".join(_owner(h.owner) for h in table.blockers(waiting.owner, waiting.lock))
        log.warning("%s: an internal lock is taken away from %s", self.name, holders or "those that wait")
        if self.options["revocation-clear-all"]:
            for other in [w for w in table.waiting if w is not waiting]:
                table.waiting.remove(other)
                other.lost()
        table.revoke(waiting.owner, waiting.lock, self.context.now())

    def _release(self, space: dict[Any, Any], key: Any, owner: Owner, lock: L) -> None:
        table = space.get(key)
        if table is None:
            return
        if self.options["monkey-unlocking"] and space is not self._ranges:
            self._lost_unlocks += 1
            if self._lost_unlocks % 2:
                return
        table.release(owner, lock, self.context.now())
        self._tidy(space, key)

    @staticmethod
    def _tidy(space: dict[Any, Any], key: Any) -> None:
        table = space.get(key)
        if table is not None and table.is_empty:
            del space[key]

    def _trace(self, what: str, caller: Caller, gfid: bytes, command: LockCommand, lock: Lock | NameLock) -> None:
        if self.options["trace"]:
            owner = _owner((caller.client, caller.lock_owner))
            log.info("%s: %s %s %s %s by %s", self.name, what, gfid_text(gfid), command.name, _text(lock), owner)

    # ---- mandatory locks ----

    async def _check_mandatory(self, caller: Caller, target: Target, kind: LockType, first: int, last: int) -> None:
        """EAGAIN if somebody else has locked the range and locks bind this file."""
        table = self._ranges.get(target.gfid)
        mode = "forced" if self.options["enforce-mandatory-lock"] else self.options["mandatory-locking"]
        if table is None or mode not in ("file", "forced"):
            return
        if table.blocker((caller.client, caller.lock_owner), Lock(kind, first, last)) is None:
            return
        if mode == "file":
            bits = (await self.child.stat(caller, target)).iatt.mode
            if not bits & stat.S_ISGID or bits & stat.S_IXGRP:
                return
        raise FopError(errno.EAGAIN, f"{self.name}: a mandatory lock")

    async def readv(self, caller: Caller, fd: Fd, *, size: int, offset: int) -> Read:
        if self._ranges:
            await self._check_mandatory(caller, fd, LockType.READ, offset, offset + max(size, 1) - 1)
        return await self.child.readv(caller, fd, size=size, offset=offset)

    async def writev(
        self, caller: Caller, fd: Fd, data: bytes | bytearray | memoryview, *, offset: int, flags: int = 0
    ) -> Changed:
        if self._ranges:
            await self._check_mandatory(caller, fd, LockType.WRITE, offset, offset + max(len(data), 1) - 1)
        return await self.child.writev(caller, fd, data, offset=offset, flags=flags)

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        if not self._ranges and all(step.fop == "writev" for step in steps):
            return await self.child.compound(caller, steps)
        return await super().compound(caller, steps)

    async def truncate(self, caller: Caller, target: Target, size: int) -> Changed:
        if self._ranges:
            await self._check_mandatory(caller, target, LockType.WRITE, size, END)
        return await self.child.truncate(caller, target, size)

    async def fallocate(self, caller: Caller, fd: Fd, *, mode: int, offset: int, length: int) -> Changed:
        if self._ranges:
            await self._check_mandatory(caller, fd, LockType.WRITE, offset, offset + max(length, 1) - 1)
        return await self.child.fallocate(caller, fd, mode=mode, offset=offset, length=length)


def _owner(owner: Owner) -> str:
    return f"{owner[0] or '(here)'}/{owner[1].hex() or '-'}"


def _text(lock: Lock | NameLock) -> str:
    if isinstance(lock, NameLock):
        return f"{lock.type.name} {'all names' if lock.name is None else repr(lock.name)}"
    kind = "flock " if lock.is_flock else ""
    return f"{kind}{lock.type.name} {lock.first}-{'end' if lock.last == END else lock.last}"
