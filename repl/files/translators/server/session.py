# SPDX-License-Identifier: Apache-2.0
"""One client of protocol/server: its handshake, who it calls for, the events it is told, its end."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from repl.errors import ProtocolError
from repl.files.events import Contended, Event, Invalidated
from repl.files.rpc import handshake
from repl.files.rpc import operations as ops
from repl.files.rpc.connection import Connection
from repl.files.rpc.frames import Frame, Kind
from repl.files.rpc.packing import is_list, pack_event, unpack_caller, unpack_text
from repl.files.rpc.tls import common_name
from repl.files.translators.server.auth import LOCAL, Client, address_of
from repl.files.translators.server.calls import Calls
from repl.files.values import ONCE, Caller
from repl.limits import RPC_CALLERS_MAX, RPC_HANDSHAKE_TIMEOUT_S, RPC_NESTED_CLIENTS_MAX

if TYPE_CHECKING:
    from repl.files.translators.server import Server

log = logging.getLogger(__name__)

SILENCE_FACTOR = 3.0  # of the client's ping timeout
SILENCE_S_MIN = 10.0


class Session:
    """Owner of one connection.  ``client`` is how the graph knows it (``Caller.client``); those on whose behalf it
    calls are known as ``client/name``."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self.server = server
        self.connection = connection
        self.hello: handshake.Hello | None = None
        self.calls: Calls | None = None
        self.client = ""
        self._loop = asyncio.get_running_loop()
        self._address = ""
        self._port = 0
        self._is_trusted = False
        self._is_unsent_full = False
        self._callers: dict[int, Caller] = {}
        self._nested: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._watch_due = self._awake_since = 0.0
        self._waiting: asyncio.Task[None] | None = None  # for the end of an older connection
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def __str__(self) -> str:
        where = f"{self._address}:{self._port}" if self._port else self._address
        return f"{self.client or 'a client'} ({where})"

    # ---- the connection calls ----

    def on_connected(self, connection: Connection) -> None:
        self._address, self._port = address_of(connection.peer())
        refusal = self.server.admit(self, self._credentials("", ""))
        if refusal:
            log.warning("volume '%s': %s is turned away: %s", self.server.name, self, refusal)
            connection.abort(refusal)
            return
        self._timer = self._loop.call_later(
            RPC_HANDSHAKE_TIMEOUT_S, connection.abort, f"no handshake within {RPC_HANDSHAKE_TIMEOUT_S:g} s"
        )

    def on_frame(self, frame: Frame) -> None:
        kind = frame.kind
        if self.calls is None:
            if kind != Kind.HELLO or self.hello is not None:
                raise ProtocolError("the first frame is not HELLO.")
            self._on_hello(frame)
        elif kind == Kind.CALL:
            self.calls.take(frame, self._callers)
        else:
            handler = _HANDLERS.get(kind)
            if handler is None:
                raise ProtocolError(f"frame {Kind(kind).name} is not for a server.")
            try:
                handler(self, frame)
            except ops.DECODE_ERRORS as error:
                raise ProtocolError(f"frame {Kind(kind).name} cannot be read: {error!r}.") from error

    def on_unsent(self, is_full: bool) -> None:
        self._is_unsent_full = is_full
        self.control_flow()

    def on_lost(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.calls is not None or reason.startswith("protocol error"):
            log.info("volume '%s': %s is gone: %s", self.server.name, self, reason)
        self.server.lost(self)

    # ---- handshake ----

    def _credentials(self, username: str, password: str) -> Client:
        certificate = self.connection.certificate()
        name = common_name(certificate) if certificate is not None else None
        return Client(self._address, self._port, username, password, name)

    def _refuse(self, number: int, reason: str) -> None:
        log.warning("volume '%s': %s is refused: %s", self.server.name, self, reason)
        self.connection.send(Kind.REFUSED, 0, handshake.encode_refusal(number, reason))
        self.connection.close(reason)

    def _on_hello(self, frame: Frame) -> None:
        hello = handshake.decode_hello(frame.body)
        version = handshake.agree_version(hello.versions)
        if not version:
            return self._refuse(errno.EPROTO, f"version {hello.versions} of the protocol, here {handshake.VERSIONS}")
        if (refusal := self.refusal(hello)) is not None:
            return self._refuse(errno.EACCES, f"volume '{hello.volume}' cannot be attached to: {refusal}")
        self.hello = hello
        once = ONCE if handshake.TOLD_ONCE in hello.features else ""
        self.client = f"{once}{hello.process}#{hello.session[:6].hex()}"
        self._is_trusted = bool(hello.username) or self._address in (LOCAL, "::1")
        before = self.server.predecessors(self)
        if before:
            # What its old connection held has to be free before this one asks for it.
            self._waiting = self._loop.create_task(self._attach_after(before, version))
        else:
            self._attach(version)

    async def _attach_after(self, before: list[Session], version: int) -> None:
        for session in before:
            session.connection.abort("the client has connected again")
        await asyncio.wait([session.ended for session in before])
        if self.connection.is_open:
            self._attach(version)

    def _attach(self, version: int) -> None:
        hello = self.hello
        assert hello is not None
        top = self.server.find_volume(hello.volume)
        if top is None:
            return self._refuse(errno.ENOENT, f"there is no volume '{hello.volume}'")
        if (reason := self.server.why_down(top)) is not None:
            return self._refuse(errno.ENOTCONN, f"volume '{hello.volume}' is down: {reason}")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.connection.reader.limits = handshake.CALL_LIMITS
        self.calls = Calls(
            self.server.name, top, self.connection.send, self.control_flow, 2 * self.server.outstanding_max
        )
        features = tuple(f for f in handshake.FEATURES if f in hello.features)
        welcome = handshake.Welcome(version, self.server.context.process, features, self.server.outstanding_max)
        self.connection.send(Kind.WELCOME, 0, handshake.encode_welcome(welcome))
        log.info("volume '%s': %s is attached to '%s'", self.server.name, self, hello.volume)
        if hello.ping_timeout_s:
            self._watch_due = self._loop.time()
            self._watch()

    def refusal(self, hello: handshake.Hello) -> str | None:
        """Why it may not be attached, by the rules that hold now."""
        return self.server.rules.refusal(hello.volume, self._credentials(hello.username, hello.password))

    def _watch(self) -> None:
        """A client that has not even pinged for long is gone, though its machine may still acknowledge packets.  If
        this process itself was stopped, the clock starts again: what came meanwhile has not been read yet."""
        assert self.hello is not None
        now, silence_s = self._loop.time(), max(SILENCE_S_MIN, SILENCE_FACTOR * self.hello.ping_timeout_s)
        if now - self._watch_due > silence_s / 4:
            self._awake_since = now
        left_s = max(self.connection.received_at, self._awake_since) + silence_s - now
        if left_s <= 0 and not self._is_unsent_full:
            self.connection.abort(f"nothing was heard of it for {silence_s:g} s")
        else:
            pause_s = max(left_s, silence_s / 4)
            self._watch_due = now + pause_s
            self._timer = self._loop.call_later(pause_s, self._watch)

    # ---- frames ----

    def _on_caller(self, frame: Frame) -> None:
        caller = unpack_caller(ops.unpack_body(frame.body))
        if caller.client and caller.client not in self._nested:
            if len(self._nested) >= RPC_NESTED_CLIENTS_MAX:
                raise ProtocolError(f"it calls on behalf of more than {RPC_NESTED_CLIENTS_MAX} others.")
            self._nested.add(caller.client)
        if frame.call_id not in self._callers and len(self._callers) >= RPC_CALLERS_MAX:
            raise ProtocolError(f"more than {RPC_CALLERS_MAX} callers at a time.")
        caller = replace(caller, client=self._known_as(caller.client))
        self._callers[frame.call_id] = self.server.identity.apply(caller, is_trusted=self._is_trusted)

    def _known_as(self, nested: str) -> str:
        return f"{self.client}/{nested}" if nested else self.client

    def _on_gone(self, frame: Frame) -> None:
        nested = unpack_text(ops.unpack_body(frame.body))
        if nested in self._nested and self.calls is not None:
            self._nested.discard(nested)
            self.calls.top.client_gone(self._known_as(nested))

    def _on_release(self, frame: Frame) -> None:
        assert self.calls is not None
        for number in is_list(ops.unpack_body(frame.body)):
            self.calls.release(number)

    def _on_cancel(self, frame: Frame) -> None:
        assert self.calls is not None
        self.calls.cancel(frame.call_id)

    def _on_ping(self, frame: Frame) -> None:
        self.connection.send(Kind.PONG, frame.call_id, b"")

    def _on_pong(self, frame: Frame) -> None:
        """That it came is all it says."""

    def limit_changed(self) -> None:
        if self.calls is not None:
            self.calls.outstanding_high = 2 * self.server.outstanding_max
            self.control_flow()

    def control_flow(self) -> None:
        """Clients keep to the limit they were told; one that does not is read no further."""
        outstanding = self.calls.outstanding if self.calls else 0
        if self._is_unsent_full or outstanding >= 2 * self.server.outstanding_max:
            self.connection.pause()
        else:
            self.connection.resume()

    # ---- events, end ----

    def tell(self, event: Event) -> None:
        """The event, if this client is meant."""
        meant: tuple[str, ...] = ()
        if isinstance(event, Invalidated):
            meant = event.clients
        elif isinstance(event, Contended) and event.client:
            meant = (event.client,)
        mine = tuple(client[len(self.client) + 1 :] for client in meant if self._is_mine(client))
        if meant and not mine:
            return
        packed = pack_event(event, mine)
        if packed is not None:
            self.connection.send(Kind.EVENT, 0, ops.pack_body(packed))

    def _is_mine(self, client: str) -> bool:
        return client == self.client or client.startswith(self.client + "/")

    async def end(self) -> None:
        """After the connection: give back all that the client held."""
        try:
            if self.calls is not None:
                await self.calls.finish(self._forget_locks)
        finally:
            self.ended.set_result(None)

    def _forget_locks(self) -> None:
        assert self.calls is not None
        for nested in sorted(self._nested):
            self.calls.top.client_gone(self._known_as(nested))
        self.calls.top.client_gone(self.client)


_HANDLERS: dict[int, Callable[[Session, Frame], None]] = {
    Kind.CALLER: Session._on_caller,
    Kind.RELEASE: Session._on_release,
    Kind.CANCEL: Session._on_cancel,
    Kind.GONE: Session._on_gone,
    Kind.PING: Session._on_ping,
    Kind.PONG: Session._on_pong,
}
