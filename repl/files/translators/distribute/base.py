# SPDX-License-Identifier: Apache-2.0
"""What all parts of distribute share: subvolumes and which are up, asking several of them, locks, finding a file.

Subvolumes are known by their number.  An answer of ``ask`` is what the subvolume returned or its ``OSError``.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from repl.errors import ConfigError
from repl.files.answers import GONE, Answers, most_telling
from repl.files.eager import Begun
from repl.files.events import ChildDown, ChildUp, Event, Invalidated, Unwatched
from repl.files.options import Options
from repl.files.translator import Context, Translator
from repl.files.translators.distribute.caches import Cache, Directory
from repl.files.translators.distribute.marks import INCOMING, LINKTO, MDS, is_link, linkto_name, looks_like_link
from repl.files.translators.distribute.name_hash import NameHash
from repl.files.translators.distribute.options import OPTIONS
from repl.files.values import TRANSACTION_PID, Caller, Fd, FopError, Loc, Lock, LockCommand, LockType, Looked
from repl.limits import DISTRIBUTE_DIRECTORIES_MAX, DISTRIBUTE_FILES_MAX, DISTRIBUTE_NAMES_MAX

log = logging.getLogger(__name__)

SUBVOLUMES_MAX = 4096  # their numbers have to find room in the offsets of listings

NO_LOCKS = frozenset((errno.ENOSYS, errno.EOPNOTSUPP))  # a brick without features/locks
_TELLING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOTEMPTY, errno.EEXIST, errno.EACCES, errno.ENOTCONN)


def telling_error(errors: Mapping[int, OSError]) -> OSError:
    """Of several errors the one to tell."""
    return most_telling(errors, _TELLING, GONE)


class Base(Translator):
    OPTIONS = OPTIONS
    SUBVOLUMES = (1, SUBVOLUMES_MAX)

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self.count = len(self.subvolumes)
        self.everyone = list(range(self.count))
        self.names = [child.name for child in self.subvolumes]
        self.number_of = {text: number for number, text in enumerate(self.names)}
        self.domain = name
        self.unknown = {i for i, c in enumerate(self.subvolumes) if _is_remote(c)}
        self.up = [i not in self.unknown for i in self.everyone]
        self.generation = 0
        self.directories: Cache[bytes, Directory] = Cache(DISTRIBUTE_DIRECTORIES_MAX)
        self.files: Cache[bytes, int] = Cache(DISTRIBUTE_FILES_MAX)
        self.known_names: Cache[tuple[bytes, bytes], tuple[bytes, int]] = Cache(DISTRIBUTE_NAMES_MAX)
        self.open_files: dict[bytes, set[Fd]] = {}
        self.volume_commit: int | None = None
        self._settled = asyncio.Event()
        self._owner_head = context.random.randbytes(8)
        self._owner_count = 0
        self._use_options(options)

    def _use_options(self, options: Options) -> None:
        self.options = options
        try:
            self.hash_of = NameHash(rsync=options["rsync-hash-regex"], extra=options["extra-hash-regex"])
        except re.error as error:
            raise ConfigError(f"option rsync-hash-regex or extra-hash-regex is no pattern: {error}.") from None
        self.layout_key: bytes = options["xattr-name"].encode()
        words = re.split(r"[\s,]+", options["decommissioned-bricks"].strip())
        for word in filter(None, words):
            if word not in self.number_of:
                raise ConfigError(f"option decommissioned-bricks: '{word}' is none of {', '.join(self.names)}.")
        self.decommissioned = frozenset(self.number_of[word] for word in words if word)
        self.looks_everywhere = options["lookup-unhashed"] not in ("off", "no", "false", "disable", "0")
        self.optimizes: bool = options["lookup-optimize"]
        self.directory_want = (self.layout_key, MDS)

    def reconfigure(self, options: Options) -> None:
        self._use_options(options)

    # ---- life ----

    async def start(self) -> None:
        if self.unknown:
            asyncio.get_running_loop().call_later(self.options["child-wait-secs"], self._settled.set)

    async def settled(self) -> None:
        """Waits at the start until every subvolume has said whether it is up, for a while."""
        if self.unknown and not self._settled.is_set():
            await self._settled.wait()

    @property
    def is_up(self) -> bool:
        return all(self.up) if self.options["assert-no-child-down"] else any(self.up)

    @property
    def up_ones(self) -> list[int]:
        return [i for i in self.everyone if self.up[i]]

    def notify(self, event: Event, child: Translator | None) -> None:
        index = self.subvolumes.index(child) if child in self.subvolumes else -1
        if index >= 0 and isinstance(event, ChildUp | ChildDown):
            was_up = self.is_up
            self.up[index] = isinstance(event, ChildUp)
            self.unknown.discard(index)
            if not self.unknown:
                self._settled.set()
            if self.up[index]:
                self.generation += 1  # layouts that were read without it are not all there is
            if was_up != self.is_up:
                self.notify_parents(event)
            self.notify_parents(Unwatched(is_partial=not all(self.up)))
            log.info("volume '%s': '%s' is %s", self.name, self.names[index], "up" if self.up[index] else "down")
        elif isinstance(event, Invalidated):
            if event.iatt is not None and looks_like_link(event.iatt):
                self.has_moved(event.gfid, index)
            self.notify_parents(self._invalidated(event))
        elif isinstance(event, Unwatched):
            self.notify_parents(Unwatched(is_partial=event.is_partial or not all(self.up)))
        else:
            self.notify_parents(event)

    def has_moved(self, gfid: bytes, index: int) -> None:
        """A subvolume says that it has a link file where a file was, perhaps."""

    def _invalidated(self, event: Invalidated) -> Invalidated:
        """What one subvolume says of a directory is not all, and a link file is not the file."""
        if (known := self.directories.get(event.gfid)) is not None:
            known.checked.clear()
            known.has_changed()
        for name in event.names:
            self.known_names.drop((event.gfid, name))
        iatt = event.iatt
        if iatt is None or not (iatt.is_directory or iatt.mode & 0o1000):
            return event
        is_file = not iatt.is_directory
        is_gone = event.is_gone and not looks_like_link(iatt)
        return Invalidated(event.gfid, None, event.names, event.is_data or is_file, is_gone, event.clients)

    def forget(self, gfid: bytes) -> None:
        self.files.drop(gfid)
        self.directories.drop(gfid)
        super().forget(gfid)

    # ---- asking ----

    def away(self, indexes: Iterable[int], what: str) -> FopError:
        names = ", ".join(self.names[i] for i in indexes) or "no subvolume is up"
        return FopError(errno.ENOTCONN, f"{self.name}: {what}: away: {names}")

    def need(self, index: int, what: object) -> Translator:
        """The subvolume, if it is up."""
        if not self.up[index]:
            raise self.away([index], str(what))
        return self.subvolumes[index]

    def need_all(self, what: str) -> None:
        if not all(self.up):
            raise self.away([i for i in self.everyone if not self.up[i]], what)

    async def ask(self, indexes: Sequence[int], call: Callable[[int, Translator], Awaitable[Any]]) -> Answers:
        """The same question to several subvolumes at the same time; all answers."""
        if len(indexes) <= 1:
            return {i: await self._one(i, call) for i in indexes}
        begun = [(i, Begun(self._one(i, call))) for i in indexes]
        answers: Answers = {}
        try:
            for i, one in begun:
                answers[i] = await one
        except BaseException:
            for _, one in begun[len(answers) + 1 :]:
                one.cancel()
            raise
        return answers

    async def _one(self, index: int, call: Callable[[int, Translator], Awaitable[Any]]) -> Any:
        if not self.up[index]:
            return FopError(errno.ENOTCONN, self.names[index])
        try:
            return await call(index, self.subvolumes[index])
        except OSError as error:
            return error

    def owner(self) -> Caller:
        """For work of our own: root, and a holder of internal locks unlike any other."""
        self._owner_count += 1
        lock_owner = self._owner_head + self._owner_count.to_bytes(8, "big")
        return Caller(client=self.context.process, lock_owner=lock_owner, is_internal=True, pid=TRANSACTION_PID)

    # ---- locks ----

    @asynccontextmanager
    async def locked_inode(
        self, index: int, loc: Loc, domain: str = "", *, first: int = 0, last: int | None = None,
        command: LockCommand = LockCommand.WAIT,
    ) -> AsyncIterator[None]:  # fmt: skip
        """A range of an inode on one subvolume; without features/locks there it is not locked."""
        caller, child, domain = self.owner(), self.subvolumes[index], domain or self.domain
        lock = Lock(LockType.WRITE, first) if last is None else Lock(LockType.WRITE, first, last)
        try:
            await child.inodelk(caller, domain, loc, command, lock)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            yield
            return
        try:
            yield
        finally:
            unlock = Lock(LockType.UNLOCK, lock.first, lock.last)
            self._unlock(partial(child.inodelk, caller, domain, loc, LockCommand.TRY, unlock))

    @asynccontextmanager
    async def locked_names(
        self, *names: tuple[int, Loc], command: LockCommand = LockCommand.WAIT
    ) -> AsyncIterator[None]:
        """Names, each on the subvolume that it belongs to; always in the same order, so that nobody waits for ever."""
        held: list[tuple[Caller, Translator, Loc]] = []
        try:
            for index, loc in sorted(names, key=lambda item: (item[1].parent, item[1].name)):
                caller, child, parent = self.owner(), self.subvolumes[index], Loc(gfid=loc.parent)
                if any(other.parent == loc.parent and other.name == loc.name for _, _, other in held):
                    continue
                try:
                    await child.entrylk(caller, self.domain, parent, loc.name, command, LockType.WRITE)
                except OSError as error:
                    if error.errno not in NO_LOCKS:
                        raise
                else:
                    held.append((caller, child, loc))
            yield
        finally:
            for caller, child, loc in held:
                parent = Loc(gfid=loc.parent)
                self._unlock(
                    partial(child.entrylk, caller, self.domain, parent, loc.name, LockCommand.TRY, LockType.UNLOCK)
                )

    def _unlock(self, call: Callable[[], Awaitable[Any]]) -> None:
        async def unlock() -> None:
            try:
                await call()
            except OSError as error:
                log.debug("volume '%s': a lock went with its subvolume: %s", self.name, error)

        self.context.spawn(unlock(), f"{self.name}: unlock")

    # ---- where a file is ----

    def data_among(self, found: Mapping[int, Looked]) -> int | None:
        """Which of the copies of a file is the file; the others are link files."""
        for index, looked in found.items():
            if not is_link(looked.xattrs):
                return index
        for index, looked in found.items():
            # The source of a migration has become a link file already, the target does not know it yet.
            if INCOMING not in looked.xattrs:
                continue
            source = self.number_of.get(linkto_name(looked.xattrs[LINKTO]))
            other = found.get(source) if source is not None else None
            if other is not None and linkto_name(other.xattrs[LINKTO]) == self.names[index]:
                return index
        return None


def _is_remote(child: Translator) -> bool:
    """A subvolume that says itself when it is up."""
    below = [child]
    while below:
        here = below.pop()
        if here.TYPE == "protocol/client":
            return True
        below += here.subvolumes
    return False
