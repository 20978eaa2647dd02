# SPDX-License-Identifier: Apache-2.0
"""What all parts of replicate share: the children and which of them are up, asking several of them, inodes, errors.

``up`` and all other masks have bit i for child i.  An answer of ``ask`` is what the child returned or its ``OSError``.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from repl.errors import ConfigError
from repl.files.answers import AWAY, GONE, Answers, errors_of, good_of, most_telling
from repl.files.eager import Begun
from repl.files.options import Options
from repl.files.rounds import Round
from repl.files.rpc.operations import BY_NAME
from repl.files.translator import ANY_NUMBER, Context, Translator
from repl.files.translators.replicate.changelog import DIRTY, PREFIX
from repl.files.translators.replicate.inodes import UNKNOWN, FdState, Inodes, InodeState
from repl.files.translators.replicate.options import OPTIONS
from repl.files.translators.replicate.quorum import make_quorum
from repl.files.translators.replicate.read_child import Load, choose
from repl.files.values import TRANSACTION_PID, Caller, Fd, FopError, Loc, Looked, Target
from repl.limits import FILES_INODES_MAX

log = logging.getLogger(__name__)

Question: TypeAlias = Callable[[Translator], Coroutine[Any, Any, Any]]

# An operation that fails like this has changed nothing.
HARMLESS = frozenset((
    errno.EINVAL, errno.EBADF, errno.EPERM, errno.EACCES, errno.ENODATA, errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EOPNOTSUPP, errno.EROFS, errno.ELOOP, errno.EMLINK,
    errno.EXDEV, errno.ENOSYS, errno.ERANGE, errno.E2BIG, errno.EFBIG, errno.ESTALE, errno.EAGAIN, errno.EBUSY,
    errno.ENXIO,
))  # fmt: skip
# The error that says most comes first; what is not listed comes before the last ones.
_TELLING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ESTALE)


@lru_cache(1024)
def bits(mask: int) -> tuple[int, ...]:
    return tuple(i for i in range(mask.bit_length()) if mask >> i & 1)


def mask_of(indexes: Mapping[int, Any] | Sequence[int]) -> int:
    mask = 0
    for i in indexes:
        mask |= 1 << i
    return mask


def heard(answers: Answers) -> int:
    """Children that have said what they have, or that they have nothing."""
    return mask_of([i for i, a in answers.items() if not isinstance(a, OSError) or a.errno in GONE])


def telling_error(errors: Mapping[int, OSError]) -> OSError:
    """Of several errors the one to tell: real ones before lost connections."""
    return most_telling(errors, _TELLING, AWAY)


class Base(Translator):
    OPTIONS = OPTIONS
    SUBVOLUMES = (2, ANY_NUMBER)

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self.count = len(self.subvolumes)
        self.everyone = (1 << self.count) - 1
        self.names = [child.name for child in self.subvolumes]
        self._set_keys(self._key_names())
        self.lock_order = list(range(self.count))
        self.domain = name
        self.heal_domain = f"{name}:self-heal"
        self._owner_head = context.random.randbytes(8)
        self._owner_count = 0
        self.tenure_owner = Caller(client=context.process, lock_owner=self._owner_head + bytes(8), is_internal=True,
                                   pid=TRANSACTION_PID)  # fmt: skip
        self.generation = 0
        self.unknown = sum(1 << i for i, c in enumerate(self.subvolumes) if is_remote(c))
        self.up = self.everyone & ~self.unknown
        self.losses = [0] * self.count  # how often the link to each child was lost
        self.turns = 0  # how often a child has come or gone
        self.loads = [Load() for _ in self.subvolumes]
        self.inodes = Inodes(FILES_INODES_MAX)
        self._settled: asyncio.Event = asyncio.Event()
        self._use_options(options)

    def _key_names(self) -> Sequence[str]:
        given = self.options["afr-pending-xattr"]
        if given and (len(given) != self.count or len(set(given)) != self.count):
            raise ConfigError(f"option afr-pending-xattr needs {self.count} different names, it has {len(given)}.",
                              advice="Give one name for each subvolume, in their order.")  # fmt: skip
        return given or self.names

    def _set_keys(self, names: Sequence[str]) -> None:
        self.keys: tuple[bytes, ...] = tuple(PREFIX + name.encode() for name in names)
        self.want_keys: tuple[bytes, ...] = (*self.keys, DIRTY)

    def call_children(self, names: Sequence[str]) -> None:
        """By these names, in the order of which locks are taken too."""
        self._set_keys(names)
        self.lock_order = sorted(range(self.count), key=lambda i: names[i])

    def _use_options(self, options: Options) -> None:
        self.options = options
        self.quorum = make_quorum(options["quorum-type"], options["quorum-count"], self.count)
        self.arbiters = 1 << (self.count - 1) if options["arbiter-count"] else 0
        self.hash_mode: int = options["read-hash-mode"]
        self.is_quorum_read: bool = options["quorum-reads"]
        self.is_eager: bool = options["eager-lock"]
        self.is_durable: bool = options["ensure-durability"]
        self.is_optimistic: bool = options["optimistic-change-log"]
        self.post_op_delay_s: float = options["post-op-delay-secs"]
        self.preferred = self._preferred(options)

    def _preferred(self, options: Options) -> int:
        """The child that the options name, -1 if none."""
        name, index = options["read-subvolume"], options["read-subvolume-index"]
        if name and name not in self.names:
            raise ConfigError(f"option read-subvolume: '{name}' is none of {', '.join(self.names)}.")
        if name:
            return self.names.index(name)
        if index >= self.count:
            raise ConfigError(f"option read-subvolume-index: {index}, the last child is {self.count - 1}.")
        if index >= 0:
            return int(index)
        if options["choose-local"]:
            local = [i for i, child in enumerate(self.subvolumes) if not is_remote(child)]
            if len(local) == 1:
                return local[0]
        return -1

    def reconfigure(self, options: Options) -> None:
        self._use_options(options)

    # ---- children ----

    async def settled(self) -> None:
        """Waits at the start until every child has said whether it is up, for a while."""
        if self.unknown:
            await self._settled.wait()

    def nobody(self, what: str) -> FopError:
        away = [self.names[i] for i in bits(self.everyone & ~self.up)]
        return FopError(errno.ENOTCONN, f"{self.name}: {what}: away: {', '.join(away)}; quorum {self.quorum}")

    def need_quorum(self, what: str, mask: int | None = None) -> None:
        if not self.quorum.is_met(self.up if mask is None else mask):
            raise self.nobody(what)

    async def ask(self, mask: int, call: Question) -> Answers:
        """The same question to several children at the same time; all answers."""
        if not mask & (mask - 1):  # one or none
            return {i: await self._one(i, call) for i in bits(mask)}
        up, children = self.up, self.subvolumes
        begun = [(i, Begun(call(children[i])) if up >> i & 1 else None) for i in bits(mask)]
        answers: Answers = {}
        try:
            for i, one in begun:
                if one is None:
                    answers[i] = FopError(errno.ENOTCONN, self.names[i])
                    continue
                try:
                    answers[i] = await one
                except OSError as error:
                    answers[i] = error
        except BaseException:
            for _, one in begun[len(answers) + 1 :]:
                if one is not None:
                    one.cancel()
            raise
        return answers

    async def ask_all(self, mask: int, operation: str, caller: Caller, values: list[Any]) -> Answers:
        """``ask`` for one operation with all its arguments (``compound``: its steps): where children can, it is sent at
        once, and all answers are waited for together."""
        round, up, late = Round(), self.up, None
        for i in bits(mask):
            if not up >> i & 1:
                round.answers[i] = FopError(errno.ENOTCONN, self.names[i])
                continue
            try:
                is_begun = self.subvolumes[i].begin_call(round, i, operation, caller, values)
            except OSError as error:
                round.answers[i] = error
                continue
            if not is_begun:
                round.answers[i] = None
                late = (late or 0) | 1 << i
        if late is None:
            await round.wait()
            for i, answer in round.answers.items():
                self.subvolumes[i].end_call(operation, caller, values, answer)
            return round.answers
        return await self._ask_late(round, late, operation, caller, values)

    async def _ask_late(self, round: Round, late: int, operation: str, caller: Caller, values: list[Any]) -> Answers:
        """Some have to be called."""
        if operation == "compound":
            calling = Begun(self.ask(late, lambda c: c.compound(caller, values)))
        else:
            step = BY_NAME[operation].step(values)
            calling = Begun(self.ask(late, lambda c: getattr(c, operation)(caller, *step.args, **step.kwargs)))
        try:
            await round.wait()
        except BaseException:
            calling.cancel()
            raise
        for i, answer in round.answers.items():
            if not late >> i & 1:
                self.subvolumes[i].end_call(operation, caller, values, answer)
        return round.answers | await calling

    async def ask_one(self, index: int, call: Callable[[Translator], Awaitable[Any]]) -> Any:
        """Its answer, or its ``OSError``."""
        return await self._one(index, call)

    async def _one(self, index: int, call: Callable[[Translator], Awaitable[Any]]) -> Any:
        if not self.up >> index & 1:
            return FopError(errno.ENOTCONN, self.names[index])
        try:
            return await call(self.subvolumes[index])
        except OSError as error:
            return error

    def owner(self, caller: Caller | None = None) -> Caller:
        """A holder of internal locks unlike any other."""
        self._owner_count += 1
        lock_owner = self._owner_head + self._owner_count.to_bytes(8, "big")
        if caller is None:
            return Caller(client=self.context.process, lock_owner=lock_owner, is_internal=True)
        return Caller(caller.uid, caller.gid, caller.groups, caller.pid, self.context.process, lock_owner,
                      caller.is_internal)  # fmt: skip

    # ---- inodes ----

    def fd_state(self, fd: Fd) -> FdState:
        state = fd.contexts.get(self)
        if state is None:
            raise FopError(errno.EBADF, f"{self.name}: {fd} is not open here")
        found: FdState = state
        return found

    def lower(self, target: Target) -> Target:
        return self.fd_state(target).lower if isinstance(target, Fd) else target

    def gfid_of(self, target: Target) -> bytes:
        return target.gfid

    def is_fresh(self, inode: InodeState) -> bool:
        return inode.generation == self.generation

    async def refresh(self, inode: InodeState) -> None:
        """Ask all children for the inode's counters, unless what is known is still true.

        Without quorum nobody can tell which copy is old: only what was known before can be read (decision 0062).
        """
        while inode.generation != self.generation:
            if inode.refreshing is not None:
                await asyncio.shield(inode.refreshing)
                continue
            inode.refreshing = asyncio.get_running_loop().create_future()
            try:
                await self._refresh(inode)
            finally:
                inode.refreshing.set_result(None)
                inode.refreshing = None

    async def _refresh(self, inode: InodeState) -> None:
        self.need_quorum("reading what is not known yet")
        generation = self.generation
        loc, caller = Loc(gfid=inode.gfid), Caller(client=self.context.process)
        answers = await self.ask(self.up, lambda c: c.lookup(caller, loc, want=self.want_keys))
        found = good_of(answers)
        if not found:
            raise telling_error(errors_of(answers)) if answers else self.nobody("looking at an inode")
        self.need_quorum("reading what is not known yet", heard(answers))
        self.learn(inode, found, generation)
        if inode.is_pending:
            self.heal_soon(inode.gfid)

    def heal_soon(self, gfid: bytes) -> None:
        """Something is pending: heal it in the background.  See Replicate."""

    async def look_again(self, inode: InodeState) -> None:
        """None of the copies that were good answers any more: another one may have been healed since."""
        if self.quorum.is_met(self.up):
            inode.generation = UNKNOWN
            await self.refresh(inode)

    def learn(self, inode: InodeState, found: Mapping[int, Looked], generation: int) -> None:
        inode.learn(found, self.keys, self.arbiters, generation, self.quorum)
        if inode.has_half_names and not self.quorum.is_met(self.up):
            inode.generation = UNKNOWN
        # A transaction of our own knows best who has missed something since.
        for tenure in (inode.tenure, inode.entry_tenure):
            if tenure is not None and tenure.is_open:
                for kind in tenure.used:
                    inode.lose(self.everyone & ~tenure.active, kind)

    def is_good_away(self, inode: InodeState) -> bool:
        """Where no copy is good: whether one that did not answer may be (decision 0070)."""
        return self.quorum.is_majority and inode.found != self.everyone

    def read_order(self, gfid: bytes, readable: int, pid: int) -> list[int]:
        """Children of the mask, the one to read from first."""
        if not readable:
            return []
        first = self.first_to_read(gfid, readable, pid)
        return [first, *[i for i in bits(readable) if i != first]]

    def first_to_read(self, gfid: bytes, readable: int, pid: int) -> int:
        """The child of the mask (not empty) to read from first."""
        if self.preferred >= 0 and readable >> self.preferred & 1:
            return self.preferred
        return choose(self.hash_mode, gfid, pid, readable, self.loads)


def is_remote(child: Translator) -> bool:
    """A child that says itself when it is up."""
    below = [child]
    while below:
        here = below.pop()
        if here.TYPE == "protocol/client":
            return True
        below += here.subvolumes
    return False
