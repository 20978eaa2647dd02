# SPDX-License-Identifier: Apache-2.0
"""One connection to a server, from its handshake to its end.

Calls are pipelined: as many at a time as the server granted, others wait in line; a call that waits for a lock keeps
its place in the line but takes none of the server's.  When the connection dies every call under way fails with
ENOTCONN.  A call nobody waits for any more (its task was cancelled) is answered all the same, and ``abandoned`` is
told what it did, because a lock that was granted has to be given back.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from repl.errors import ProtocolError
from repl.files.events import Event, Invalidated
from repl.files.rounds import Round
from repl.files.rpc import handshake
from repl.files.rpc import operations as ops
from repl.files.rpc.connection import Connection
from repl.files.rpc.frames import Frame, Kind, size_of
from repl.files.rpc.operations import Operation, Plan, Sender
from repl.files.rpc.packing import pack_caller, unpack_event
from repl.files.values import Caller, Fd, FopError
from repl.limits import RPC_CALLERS_MAX, RPC_HANDSHAKE_BYTES_MAX

log = logging.getLogger(__name__)

CALL_ID_LAST = (1 << 32) - 1
PINGS_PER_TIMEOUT = 4


class Refused(FopError):
    """The server does not let us attach."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """``own_client``: the name of this process among callers, which the server knows by the connection."""

    name: str
    own_client: str
    hello: handshake.Hello
    ping_timeout_s: float
    frame_timeout_s: float
    send_groups: bool


class _Pending:
    """A call on its way.  Its answer goes to ``future``, or to ``round`` under ``number``; ``is_told``: it has."""

    __slots__ = (
        "call_id", "caller", "future", "is_abandoned", "is_compound", "is_told", "link", "number", "plan", "result",
        "round", "sent_at", "takes_slot",
    )  # fmt: skip

    def __init__(self, link: Link, caller: Caller, plan: Plan, *, is_compound: bool, takes_slot: bool) -> None:
        self.link = link
        self.caller = caller
        self.plan = plan
        self.is_compound = is_compound
        self.takes_slot = takes_slot
        self.call_id = 0
        self.sent_at = 0.0
        self.future: asyncio.Future[Any] | None = None
        self.round: Round | None = None
        self.number = 0
        self.result: Any = None
        self.is_told = False
        self.is_abandoned = False

    def tell(self, result: Any) -> None:
        """What came of it."""
        self.is_told = True
        self.result = result
        if self.round is not None:
            round, self.round = self.round, None  # the two know each other until now
            round.answered(self.number, result)
        elif self.future is not None and not self.future.done():
            if isinstance(result, OSError):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        self.link.abandon(self)


class Link:
    """Owner of one connection."""

    def __init__(
        self,
        settings: LinkSettings,
        connection: Connection,
        *,
        number: Callable[[Fd], int],
        event: Callable[[Event], None],
        abandoned: Callable[[Caller, Plan, list[Any]], None],
        ended: Callable[[Link, str], None],
    ) -> None:
        self.settings = settings
        self.connection = connection
        self._number = number
        self._event = event
        self._abandoned = abandoned
        self._ended = ended  # called before any call fails
        self._loop = asyncio.get_running_loop()
        self.attached: asyncio.Future[handshake.Welcome] = self._loop.create_future()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self.round_trip_s = 0.0
        self._pending: dict[int, _Pending] = {}
        self._callers: dict[Caller, int] = {}
        self._last_call = 0
        self._slots = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._welcome: handshake.Welcome | None = None
        self._knows_quiet_try = False
        self._timer: asyncio.TimerHandle | None = None
        self._tick_due = 0.0
        self._alive_at = 0.0
        self._unsent_bytes = 0
        self._pinged_at = 0.0

    def rebind(
        self,
        *,
        number: Callable[[Fd], int],
        event: Callable[[Event], None],
        abandoned: Callable[[Caller, Plan, list[Any]], None],
        ended: Callable[[Link, str], None],
    ) -> None:
        """Another translator goes on with it."""
        self._number, self._event, self._abandoned, self._ended = number, event, abandoned, ended

    def reconfigure(self, settings: LinkSettings) -> None:
        """Other timeouts.  What the server was told at the beginning stays."""
        self.settings = replace(settings, hello=self.settings.hello)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.attached.done() and not self.lost.done():
            self._watch()

    # ---- the connection calls ----

    def on_connected(self, connection: Connection) -> None:
        connection.send(Kind.HELLO, 0, handshake.encode_hello(self.settings.hello))

    def on_frame(self, frame: Frame) -> None:
        kind = frame.kind
        if self._welcome is None:
            self._on_first(frame)
        elif kind == Kind.ANSWER or kind == Kind.ERROR:
            self._on_answer(frame)
        elif kind == Kind.EVENT:
            try:
                event = unpack_event(ops.unpack_body(frame.body))
            except ops.DECODE_ERRORS as error:
                raise ProtocolError(f"an event cannot be read: {error!r}.") from error
            if isinstance(event, Invalidated):  # the server knows us without a name
                event = replace(event, clients=tuple(name or self.settings.own_client for name in event.clients))
            self._event(event)
        elif kind == Kind.PING:
            self.connection.send(Kind.PONG, frame.call_id, b"")
        elif kind == Kind.PONG:
            self.round_trip_s = self._loop.time() - self._pinged_at
        elif kind == Kind.FAREWELL:
            self.connection.close("the server stops")
        else:
            raise ProtocolError(f"frame {Kind(kind).name} is not for a client.")

    def on_unsent(self, is_full: bool) -> None:
        """What is unsent is bounded by the calls under way."""

    def on_lost(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._ended(self, reason)
        error = FopError(errno.ENOTCONN, f"{self.settings.name}: {reason}")
        pending, self._pending = self._pending, {}
        for call in pending.values():
            if not call.is_told:
                call.tell(error)
        for waiter in self._line:
            if not waiter.done():
                waiter.set_exception(error)
        self._line.clear()
        if not self.attached.done():
            self.attached.set_exception(error)
        if not self.lost.done():
            self.lost.set_result(reason)

    # ---- handshake ----

    def _on_first(self, frame: Frame) -> None:
        if frame.kind == Kind.REFUSED:
            number, reason = handshake.decode_refusal(frame.body)
            if not self.attached.done():
                self.attached.set_exception(Refused(number, f"{self.settings.name}: {reason}"))
            self.connection.close(reason)
            return
        if frame.kind != Kind.WELCOME:
            raise ProtocolError("the server's first frame is not WELCOME.")
        self._welcome = handshake.decode_welcome(frame.body)
        self._knows_quiet_try = self.knows("quiet-try")
        self.connection.reader.limits = handshake.ANSWER_LIMITS
        self._slots = self._welcome.outstanding_max
        self._watch()
        if not self.attached.done():
            self.attached.set_result(self._welcome)

    # ---- calls ----

    @property
    def outstanding(self) -> int:
        return len(self._pending)

    def knows(self, feature: str) -> bool:
        """The server has named it in its welcome."""
        return self._welcome is not None and feature in self._welcome.features

    def _sender(self) -> Sender:
        return Sender(self._number, knows_quiet_try=self._knows_quiet_try)

    async def call(self, operation: Operation, caller: Caller, values: list[Any]) -> Any:
        """The result of one operation."""
        waits = operation.is_lock and ops.is_lock_wait(operation, values)
        if self._line or (self._slots <= 0 and not waits):
            await self._wait_turn()
        sender = self._sender()
        body = ops.encode_call(operation, self._caller_number(caller), values, sender)
        call = _Pending(self, caller, [(operation, values)], is_compound=False, takes_slot=not waits)
        return await self._answer_to(call, body, sender)

    async def compound(self, caller: Caller, plan: Plan) -> list[Any]:
        waits = any(operation.is_lock and ops.is_lock_wait(operation, values) for operation, values in plan)
        if self._line or (self._slots <= 0 and not waits):
            await self._wait_turn()
        sender = self._sender()
        body = ops.encode_compound(plan, self._caller_number(caller), sender)
        call = _Pending(self, caller, plan, is_compound=True, takes_slot=not waits)
        results: list[Any] = await self._answer_to(call, body, sender)
        return results

    async def _answer_to(self, call: _Pending, body: bytes, sender: Sender) -> Any:
        future = call.future = self._loop.create_future()
        self._send(call, body, sender.payloads)
        try:
            return await future
        except asyncio.CancelledError:
            self.abandon(call)
            raise

    def begin(self, round: Round, number: int, operation: Operation, caller: Caller, values: list[Any]) -> bool:
        """The same for ``round``, sent when this returns; False: it would have to wait for its turn.  What another
        child of the round has sent is sent again where the numbers of caller and file are the same."""
        if self._line or self._slots <= 0:
            return False
        at, who = operation.file_index, self._caller_number(caller)
        fd = self._number(values[at]) if at is not None and isinstance(values[at], Fd) else 0
        if round.encoded is not None and round.encoded[:2] == (who, fd):
            _, _, body, payloads = round.encoded
        else:
            sender = self._sender()
            body, payloads = ops.encode_call(operation, who, values, sender), sender.payloads
            round.encoded = who, fd, body, payloads
        call = _Pending(self, caller, [(operation, values)], is_compound=False, takes_slot=True)
        self._begin(round, number, call, body, payloads)
        return True

    def begin_compound(self, round: Round, number: int, caller: Caller, plan: Plan) -> bool:
        if self._line or self._slots <= 0:
            return False
        sender = self._sender()
        body = ops.encode_compound(plan, self._caller_number(caller), sender)
        call = _Pending(self, caller, plan, is_compound=True, takes_slot=True)
        self._begin(round, number, call, body, sender.payloads)
        return True

    def _begin(self, round: Round, number: int, call: _Pending, body: bytes, payloads: list[Any]) -> None:
        self._send(call, body, payloads)
        call.round, call.number = round, number
        round.asked(number, call.give_up)

    async def _wait_turn(self) -> None:
        """From here to the sending nothing awaits: a place that is free stays free."""
        waiter = self._loop.create_future()
        self._line.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._next_in_line()
            raise

    def _next_in_line(self) -> None:
        while self._line and self._slots > 0:
            waiter = self._line.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _send(self, call: _Pending, body: bytes, payloads: list[Any]) -> None:
        call_id = self._last_call = self._last_call % CALL_ID_LAST + 1
        if call_id in self._pending:
            raise FopError(errno.EAGAIN, f"{self.settings.name}: out of call numbers")
        if not self.connection.is_open:
            raise FopError(errno.ENOTCONN, f"{self.settings.name}: the link is gone")
        if payloads or len(body) > RPC_HANDSHAKE_BYTES_MAX:
            self._check_size(body, payloads)
        call.call_id = call_id
        call.sent_at = self._loop.time()
        self._pending[call_id] = call
        self._slots -= call.takes_slot
        self.connection.send(Kind.CALL, call_id, body, payloads)
        if self._line:
            self._next_in_line()

    def _check_size(self, body: bytes, payloads: list[Any]) -> None:
        welcome = self._welcome
        assert welcome is not None
        if len(body) > welcome.body_bytes_max:
            raise FopError(errno.E2BIG, f"{self.settings.name}: {len(body)} bytes of arguments")
        if payloads:
            size = sum(map(size_of, payloads))
            if size > welcome.payload_bytes_max:
                raise FopError(errno.E2BIG, f"{self.settings.name}: {size} bytes of data in one call")

    def abandon(self, call: _Pending) -> None:
        """Nobody waits for its answer any more, or has got it in vain."""
        if call.call_id in self._pending:
            call.is_abandoned = True
            if not call.takes_slot:
                self.connection.send(Kind.CANCEL, call.call_id, b"")
        elif call.is_told and not isinstance(call.result, OSError):
            self._undo(call, call.result)

    def _undo(self, call: _Pending, result: Any) -> None:
        self._abandoned(call.caller, call.plan, result if call.is_compound else [result])

    def _on_answer(self, frame: Frame) -> None:
        call = self._pending.pop(frame.call_id, None)
        if call is None:
            raise ProtocolError(f"an answer to call {frame.call_id}, which was not made.")
        if call.takes_slot:
            self._slots += 1
        if self._line:
            self._next_in_line()
        result: Any
        if frame.kind == Kind.ERROR:
            result = ops.decode_error(frame.body)
            result.detail = f"{self.settings.name}: {result.detail}"
        elif call.is_compound:
            result = ops.decode_compound_answer(call.plan, frame.body, frame.payload, is_lasting=frame.is_lasting)
        else:
            result = ops.decode_answer(call.plan[0][0], frame.body, frame.payload, is_lasting=frame.is_lasting)
        if call.is_abandoned:
            if not isinstance(result, OSError):
                self._undo(call, result)
        elif not call.is_told:
            call.tell(result)

    def tell(self, kind: Kind, content: Any) -> None:
        """Something that is not answered."""
        self.connection.send(kind, 0, ops.pack_body(content))

    def _caller_number(self, caller: Caller) -> int:
        number = self._callers.get(caller)
        return number if number is not None else self._new_caller(caller)

    def _new_caller(self, caller: Caller) -> int:
        """The server reads frames in order, so an old number can be given away at once."""
        if len(self._callers) >= RPC_CALLERS_MAX:
            number = self._callers.pop(next(iter(self._callers)))
        else:
            number = len(self._callers)
        self._callers[caller] = number
        client = "" if caller.client == self.settings.own_client else caller.client
        packed = pack_caller(caller, client)
        if not self.settings.send_groups:
            packed[2] = []
        self.connection.send(Kind.CALLER, number, ops.pack_body(packed))
        return number

    # ---- is it alive ----

    def _watch(self) -> None:
        if self._interval_s:
            self._alive_at = self._loop.time()
            self._schedule_tick()

    @property
    def _ping_s(self) -> float:
        """The server counts on pings as often as the timeout wants them that it was told; 0: nobody does."""
        told, now = self.settings.hello.ping_timeout_s, self.settings.ping_timeout_s
        return min(told, now) if told and now else told or now

    @property
    def _interval_s(self) -> float:
        return (self._ping_s or self.settings.frame_timeout_s) / PINGS_PER_TIMEOUT

    def _schedule_tick(self) -> None:
        interval_s = self._interval_s
        self._tick_due = self._loop.time() + interval_s
        self._timer = self._loop.call_later(interval_s, self._tick)

    def _tick(self) -> None:
        """A quiet link is pinged; one that stays quiet is dead.  Data that drains to the other end is a sign of life;
        if this process itself was stopped, the clock starts again."""
        now, timeout_s = self._loop.time(), self.settings.ping_timeout_s
        interval_s = self._interval_s
        unsent = self.connection.unsent_bytes
        if now - self._tick_due > interval_s or unsent < self._unsent_bytes:
            self._alive_at = now
        self._unsent_bytes = unsent
        quiet_s = now - max(self._alive_at, self.connection.received_at)
        if timeout_s and quiet_s >= timeout_s:
            self.connection.abort(f"nothing came from the server for {timeout_s:g} s (ping-timeout)")
            return
        if self._ping_s and quiet_s >= interval_s * 0.9:
            self._pinged_at = now
            self.connection.send(Kind.PING, 0, b"")
        self._expire(now)
        self._schedule_tick()

    def _expire(self, now: float) -> None:
        """Calls are in the order of their sending.  Who waits for a lock may wait."""
        limit_s = self.settings.frame_timeout_s
        if not limit_s:
            return
        for call in self._pending.values():
            if now - call.sent_at < limit_s:
                return
            if call.takes_slot and not call.is_told:
                detail = f"{self.settings.name}: no answer within {limit_s:g} s (frame-timeout)"
                call.tell(FopError(errno.ENOTCONN, detail))
