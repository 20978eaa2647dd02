# SPDX-License-Identifier: Apache-2.0
"""protocol/client: sends operations to a volume of another process.

The link is made and made again for ever in the background; while there is none every operation fails with ENOTCONN at
once.  On a new link files that are open are opened again by gfid and application locks are asked for again, before
the parents hear ``ChildUp``; locks that somebody else has got meanwhile are reported with ``Reconnected``.  Internal
locks (inodelk, entrylk) die with the link: whoever held them hears ``ChildDown`` first.
An operation on a file that was never opened here (the server was away then) opens it by gfid first.
Errors: what the server answers, and ENOTCONN.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from repl.errors import ConfigError
from repl.files.events import ChildDown, ChildUp, Event, Reconnected
from repl.files.every_fop import define_fops
from repl.files.options import Option, Options
from repl.files.rounds import Round
from repl.files.rpc import operations as ops
from repl.files.rpc.connection import Connection
from repl.files.rpc.frames import Kind
from repl.files.rpc.handshake import FEATURES, PING_TIMEOUT_S_MAX, SESSION_BYTES, TOLD_ONCE, Hello
from repl.files.rpc.operations import Operation, Plan
from repl.files.rpc.tls import TLS_OPTIONS, tls_context
from repl.files.translator import Context, Step, Translator
from repl.files.translators.client.dialing import (
    CONNECT_TIMEOUT_S,
    Address,
    addresses,
    dial,
    is_unix,
    same_server,
    text_of,
)
from repl.files.translators.client.link import Link, LinkSettings, Refused
from repl.files.translators.client.open_files import RemoteFiles
from repl.files.translators.client.options import OPTIONS
from repl.files.translators.client.recovery import UNLOCKS, open_again, recover
from repl.files.values import LAST, NEW_LOCK, Caller, End, Entry, Fd, FopError, Loc, Lock, LockCommand, LockType, Want

log = logging.getLogger(__name__)

RECONNECT_S_MIN = 0.1
RELEASE_S = 0.002
RECONNECT_S_MAX = 1.0
SETTLED_S = 5.0  # a link that lived for so long was a good one


_SYNC_ALL, _END_ALL, _READDIR = ops.BY_NAME["sync_all"], ops.BY_NAME["end_all"], ops.BY_NAME["readdir"]


def _fop(name: str) -> Callable[..., Any]:
    operation = ops.BY_NAME[name]

    async def fop(self: Client, caller: Caller, *args: Any, **kwargs: Any) -> Any:
        return await self.call(operation, caller, operation.bind(args, kwargs))

    return fop


@define_fops(_fop)
class Client(Translator):
    TYPE = "protocol/client"
    OPTIONS: ClassVar[tuple[Option, ...]] = OPTIONS
    SUBVOLUMES = (0, 0)

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        _check(options)
        self._tls = tls_context(options, is_server=False)
        self.files = RemoteFiles(self)
        self._session = context.random.randbytes(SESSION_BYTES)
        self._link: Link | None = None
        self._next_address = 0
        self._keeper: asyncio.Task[None] | None = None
        self._reason = "not connected yet"
        self._was_up = False
        self._is_down_told = False
        self._connects = 0
        self._successor: Client | None = None
        self._released: list[int] = []  # files that the server is to be told of

    # ---- life ----

    async def start(self) -> None:
        self._keeper = self.context.spawn(self._keep_connected(), f"connection of {self.name}")

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._tell_released()
        if self._link is not None:
            link, self._link = self._link, None
            link.connection.close("the graph stops")
            await asyncio.wait([link.lost], timeout=CONNECT_TIMEOUT_S)

    def reconfigure(self, options: Options) -> None:
        """Another server, or another way to it, is connected to at once.  Other options hold at once, those of the
        socket from the next connection on: all links of a mount are changed at the same time, and without any nothing
        could be read, and locks would be lost."""
        _check(options)
        before, self._tls = self.options, tls_context(options, is_server=False)
        super().reconfigure(options)
        if self._link is None:
            return
        if same_server(before, options) and all(before[one.name] == options[one.name] for one in TLS_OPTIONS):
            self._link.reconfigure(self._settings())
        else:
            self._link.connection.abort("its server, or the way to it, has changed")

    def take_over(self, before: Translator) -> None:
        """A new graph with the same server goes on with the old graph's link: to the server it is the same client, with
        the same locks.  The old translator then only releases its files."""
        assert isinstance(before, Client)
        if before._link is None or not same_server(before.options, self.options):
            return
        if self._link is not None:
            mine, self._link = self._link, None
            mine.connection.close("an older link goes on")
        before._tell_released()
        link, before._link = before._link, None
        before._successor = self
        if before._keeper is not None:
            before._keeper.cancel()
        self._session, self._link = before._session, link
        self.files.go_on_from(before.files)
        link.rebind(number=self.files.number, event=self._on_event, abandoned=self._undo, ended=self._link_ended)
        link.reconfigure(self._settings())
        self._was_up, self._reason = True, ""
        if self._keeper is not None:
            self._keeper.cancel()
        self._keeper = self.context.spawn(self._keep_connected(link), f"connection of {self.name}")
        self.notify_parents(ChildUp())

    @property
    def is_up(self) -> bool:
        return self._link is not None

    @property
    def outstanding(self) -> int:
        """Calls under way (read-hash-mode 3)."""
        return self._link.outstanding if self._link is not None else 0

    @property
    def round_trip_s(self) -> float:
        """Of the last ping (read-hash-mode 4)."""
        return self._link.round_trip_s if self._link is not None else 0.0

    def state(self) -> dict[str, object]:
        where = self.options["transport.socket.connect-path"] or f"{self.options['remote-host']}"
        return {
            "connected": int(self.is_up),
            "remote": f"{where}:{self.options['remote-port']}/{self.options['remote-subvolume']}",
            "reason": "" if self.is_up else self._reason,
            "outstanding": self.outstanding,
            "open_files": len(self.files),
            "connects": self._connects,
            "ping_us": round(self.round_trip_s * 1e6),
        }

    # ---- the link ----

    async def _keep_connected(self, link: Link | None = None) -> None:
        """``link``: one that is there already."""
        loop = asyncio.get_running_loop()
        if link is not None:
            await asyncio.wait([link.lost])
        pause_s = RECONNECT_S_MIN
        while True:
            began = loop.time()
            try:
                link = await self._connect()
            except OSError as error:
                self._down(_text_of(error), is_refusal=isinstance(error, Refused))
            else:
                await asyncio.wait([link.lost])  # being cancelled must not cancel it
            if loop.time() - began > SETTLED_S:
                pause_s = RECONNECT_S_MIN
            await asyncio.sleep(pause_s * self.context.random.uniform(0.7, 1.0))
            pause_s = min(pause_s * 2, RECONNECT_S_MAX)

    def _link_ended(self, link: Link, reason: str) -> None:
        if link is self._link:
            self._link = None
            self._down(reason, is_refusal=False)

    def _down(self, reason: str, *, is_refusal: bool) -> None:
        if reason != self._reason:
            log.log(logging.ERROR if is_refusal else logging.WARNING, "volume '%s': %s", self.name, reason)
        self._reason = reason
        if not self._is_down_told:
            self._is_down_told = True
            self.notify_parents(ChildDown(reason))

    async def _connect(self) -> Link:
        """One try at each address, beginning behind the one tried last.  Raises ``OSError`` of the last."""
        found = await addresses(self.options)
        error: OSError = FopError(errno.EHOSTUNREACH, f"{self.options['remote-host']} has no address")
        for _ in found:
            address = found[self._next_address % len(found)]
            try:
                return await self._attach(address)
            except Refused as refused:
                error = refused
            except (OSError, TimeoutError) as failed:
                number = failed.errno or errno.ETIMEDOUT
                error = FopError(number, f"cannot reach {text_of(address)}: {_text_of(failed)}")
            self._next_address += 1
        raise error

    async def _attach(self, address: Address) -> Link:
        links: list[Link] = []

        def make_link(connection: Connection) -> Link:
            links.append(self._make_link(connection))
            return links[0]

        connection: Connection | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await dial(address, self.options, self._tls, lambda: Connection(make_link))
                await links[0].attached
            lost = await recover(self.files, links[0])
        except BaseException:
            if connection is not None:
                connection.abort("the handshake failed")
            raise
        if links[0].lost.done():
            raise FopError(errno.ENOTCONN, links[0].lost.result())
        self._up(links[0], address, lost)
        return links[0]

    def _settings(self) -> LinkSettings:
        options = self.options
        ping_s = options["ping-timeout"]
        features = (*FEATURES, TOLD_ONCE) if self.context.is_told_once else FEATURES
        hello = Hello(options["remote-subvolume"], self.context.process or self.context.host, self._session,
                      options["username"], options["password"], min(ping_s, PING_TIMEOUT_S_MAX),
                      features=features)  # fmt: skip
        return LinkSettings(
            self.name, self.context.process, hello, ping_s, options["frame-timeout"], options["send-gids"]
        )

    def _make_link(self, connection: Connection) -> Link:
        return Link(
            self._settings(),
            connection,
            number=self.files.number,
            event=self._on_event,
            abandoned=self._undo,
            ended=self._link_ended,
        )

    def _up(self, link: Link, address: Address, lost_locks: tuple[bytes, ...]) -> None:
        self._link = link
        self._connects += 1
        self._is_down_told = False
        self._reason = ""
        log.info("volume '%s': attached to '%s' at %s", self.name, self.options["remote-subvolume"], text_of(address))
        if self._was_up:
            self.notify_parents(Reconnected(lost_locks))
        self._was_up = True
        self.notify_parents(ChildUp())

    def _on_event(self, event: Event) -> None:
        self.notify_parents(event)

    # ---- operations ----

    def _linked(self) -> Link:
        link = self._link
        if link is None or not link.connection.is_open:
            raise FopError(errno.ENOTCONN, f"{self.name}: {self._reason or 'the link is gone'}")
        return link

    async def call(self, operation: Operation, caller: Caller, values: list[Any]) -> Any:
        link = self._link
        if link is None or not link.connection.is_open:
            link = self._linked()
        index = operation.file_index
        if index is not None and isinstance(fd := values[index], Fd):
            if operation.is_opener:
                self._begin_open(link, fd)
            elif self.files.is_unknown(fd):
                await open_again(self.files, link, caller, fd, strict=self.options["strict-locks"])
        if not operation.has_effect_here:
            return await link.call(operation, caller, values)
        try:
            result = await link.call(operation, caller, values)
        except BaseException as error:
            self._after_error(operation, caller, values, error)
            raise
        self._after(operation, caller, values, result)
        return result

    async def readdir(
        self, caller: Caller, fd: Fd, *, size: int, offset: int, is_plus: bool = False, want: Want = ()
    ) -> list[Entry]:
        """The server says which entry is the last one, so that nobody has to ask what comes behind it."""
        file = self.files.find(fd)
        if file is not None and offset and offset == file.listed_to:
            return []
        wanted = want if LAST in want else (*want, LAST)
        given = {"size": size, "offset": offset, "is_plus": is_plus, "want": wanted}
        entries: list[Entry] = await self.call(_READDIR, caller, _READDIR.bind((fd,), given))
        file = self.files.find(fd)
        if file is not None:
            is_last = bool(entries) and LAST in entries[-1].xattrs
            file.listed_to = entries[-1].offset if is_last else 0
        if wanted is not want and entries:
            entries[-1].xattrs.pop(LAST, None)
        return entries

    def begin_call(self, round: Round, number: int, operation: str, caller: Caller, values: list[Any]) -> bool:
        """Not those that may wait for a lock.  ``compound``: its steps are ``values``."""
        link = self._linked()
        if operation == "compound":
            return self._begin_compound(round, number, link, caller, values)
        op = ops.BY_NAME[operation]
        if op.file_index is not None and isinstance(fd := values[op.file_index], Fd):
            if op.is_opener:
                self._begin_open(link, fd)
            elif self.files.is_unknown(fd):
                return False
        try:
            return link.begin(round, number, op, caller, values)
        except OSError as error:
            self._after_error(op, caller, values, error)
            raise

    def _begin_compound(self, round: Round, number: int, link: Link, caller: Caller, steps: list[Any]) -> bool:
        """Of steps on files that are open, which change nothing here and do not wait for locks."""
        if round.plan is None:
            round.plan = ops.plan_of(steps)
        plan: Plan = round.plan
        for operation, values in plan:
            if operation.has_effect_here or operation.is_lock and ops.is_lock_wait(operation, values):
                return False
            at = operation.file_index
            if at is not None and isinstance(values[at], Fd) and self.files.is_unknown(values[at]):
                return False
        return link.begin_compound(round, number, caller, plan)

    def end_call(self, operation: str, caller: Caller, values: list[Any], answer: Any) -> None:
        op = ops.BY_NAME.get(operation)
        if op is None or not op.has_effect_here:
            return
        if isinstance(answer, OSError):
            self._after_error(op, caller, values, answer)
        else:
            self._after(op, caller, values, answer)

    async def compound(self, caller: Caller, steps: Sequence[Step]) -> list[Any]:
        try:
            plan = ops.plan_of(steps)
            link = self._linked()
            await self._prepare(link, caller, plan)
            results = await link.compound(caller, plan)
        except OSError as error:
            for step in steps:
                if step.fop == "release" or step.fop in ops.OPENERS:
                    self.files.remove(step.args[0 if step.fop == "release" else 1])
            return [error]
        for index, (operation, values) in enumerate(plan):
            if index < len(results) and not isinstance(results[index], OSError):
                self._after(operation, caller, values, results[index])
            else:
                self._after_error(operation, caller, values, None)
        return results

    async def sync_all(self, caller: Caller, fds: Sequence[Fd]) -> list[OSError | None]:
        link = self._linked()
        if not link.knows("ends") or any(map(self.files.is_unknown, fds)):
            return await super().sync_all(caller, fds)
        found: list[OSError | None] = await link.call(_SYNC_ALL, caller, [fds])
        return found

    async def end_all(
        self, caller: Caller, domain: str, key: bytes, ends: Sequence[End]
    ) -> list[bytes | OSError | None]:
        """The values of counters do not come over the wire: empty ones stand for them."""
        link = self._linked()
        if not link.knows("ends"):
            return await super().end_all(caller, domain, key, ends)
        found = await link.call(_END_ALL, caller, [domain, key, ends])
        return [error or (b"" if end.delta else None) for end, error in zip(ends, found, strict=True)]

    async def _prepare(self, link: Link, caller: Caller, plan: Plan) -> None:
        """Files that the steps work on and do not open themselves have to be open."""
        for operation, values in plan:
            index = operation.file_index
            if index is None or not isinstance(values[index], Fd):
                continue
            fd = values[index]
            if operation.name in ops.OPENERS:
                self._begin_open(link, fd)
            elif self.files.is_unknown(fd) and operation is not ops.RELEASE:
                await open_again(self.files, link, caller, fd, strict=self.options["strict-locks"])

    def _begin_open(self, link: Link, fd: Fd) -> None:
        """A file that the new link has opened again by itself, and that somebody above opens once more, gets another
        number: the server takes one only once."""
        before = self.files.find(fd)
        if before is None:
            self.files.add(fd)
        elif before.is_open:
            self.files.remove(fd)
            self.files.add(fd).locks = before.locks
            link.tell(Kind.RELEASE, [before.number])

    def _after(self, operation: Operation, caller: Caller, values: list[Any], result: Any) -> None:
        """What an operation that succeeded changes here."""
        name = operation.name
        if name in ops.OPENERS:
            file = self.files.find(values[1])
            if file is not None:
                file.is_open = True
            if result is not None:
                values[1].gfid = result.iatt.gfid
        elif name == "release":
            self.files.remove(values[0])
        elif name == "lk":
            file = self.files.find(values[0])
            if file is not None and values[1] is not LockCommand.GET:
                file.locks.record(caller, values[2])
        elif name == "flush":
            file = self.files.find(values[0])
            if file is not None:
                file.locks.closed(caller)

    def _after_error(self, operation: Operation, caller: Caller, values: list[Any], error: object) -> None:
        if operation.name in ops.OPENERS and not isinstance(error, asyncio.CancelledError):
            self.files.remove(values[1])
        elif operation is ops.RELEASE:
            self.files.remove(values[0])
        elif operation.name == "lk" and values[2].type == UNLOCKS and (file := self.files.find(values[0])):
            file.locks.record(caller, values[2])

    def _undo(self, caller: Caller, plan: Plan, results: list[Any]) -> None:
        """A call that nobody waited for any more has succeeded: give back what it took."""
        self.context.spawn(self._undo_steps(caller, plan, results), f"undo at {self.name}")

    async def _undo_steps(self, caller: Caller, plan: Plan, results: list[Any]) -> None:
        for index, ((operation, values), result) in enumerate(zip(plan, results, strict=False)):
            if isinstance(result, OSError):
                return
            if operation.name in ops.OPENERS:
                await self.release(values[1])
            if operation.name == "create" and NEW_LOCK in result.xattrs:
                operation, values = ops.BY_NAME["inodelk"], _lock_of_new(result.iatt.gfid, values)
            unlock = ops.unlock_of(operation, values)
            if unlock is None or any(op is operation and v == unlock for op, v in plan[index + 1 :]):
                continue
            try:
                await self.call(operation, caller, unlock)
            except OSError as error:
                log.info("volume '%s': a lock could not be given back: %s", self.name, error)

    async def release(self, fd: Fd) -> None:
        file = self.files.remove(fd)
        if file is None:
            return
        if not self._released:
            asyncio.get_running_loop().call_later(RELEASE_S, self._tell_released)
        self._released.append(file.number)

    def _tell_released(self) -> None:
        """Nobody waits for it: several go in one frame."""
        numbers, self._released = self._released, []
        link = self._link or (self._successor._link if self._successor is not None else None)
        if link is not None and numbers:
            link.tell(Kind.RELEASE, numbers)

    def forget(self, gfid: bytes) -> None:
        """What this end has forgotten says nothing about other clients of the server."""

    def client_gone(self, client: str) -> None:
        for file in self.files.all():
            file.locks.forget_client(client)
        if self._link is not None:
            self._link.tell(Kind.GONE, client)


def _lock_of_new(gfid: bytes, values: list[Any]) -> list[Any]:
    """The lock that a create has got, as if it had been asked for by itself."""
    return [values[-1][NEW_LOCK].decode(), Loc(gfid=gfid), LockCommand.TRY, Lock(LockType.WRITE)]


def _check(options: Options) -> None:
    if is_unix(options) or options["transport-type"].startswith("unix"):
        if not options["transport.socket.connect-path"]:
            raise ConfigError("transport-type unix needs the option transport.socket.connect-path.")
    elif not options["remote-host"]:
        raise ConfigError("the option remote-host is missing: where is the server?")
    if not options["remote-subvolume"]:
        raise ConfigError("the option remote-subvolume is missing: which volume of the server?")


def _text_of(error: BaseException) -> str:
    if isinstance(error, FopError):
        return error.detail or str(error)
    return getattr(error, "strerror", None) or str(error) or "no answer"
