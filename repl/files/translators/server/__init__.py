# SPDX-License-Identifier: Apache-2.0
"""protocol/server: exports volumes of its graph to clients over TCP or a Unix socket.

A client attaches to exactly the volume it names, any one beneath this translator that the auth options give it, not
only the subvolumes: two servers that replicate to each other attach to the volume under the replication and so never
to themselves (Gluster 10.3 loops there without end).
Errors: ``ConfigError`` for an address, a port or a certificate that cannot be.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any, ClassVar

from repl.files.events import ChildDown, ChildUp, Event
from repl.files.options import Option, Options
from repl.files.rpc.connection import Connection
from repl.files.rpc.frames import Kind
from repl.files.rpc.tls import tls_context
from repl.files.translator import ANY_NUMBER, Context, Translator
from repl.files.translators.server.auth import Access, Client
from repl.files.translators.server.door import Doors
from repl.files.translators.server.identity import Identity
from repl.files.translators.server.listening import open_sockets, place_of, tune
from repl.files.translators.server.options import OPTIONS
from repl.files.translators.server.session import Session
from repl.limits import RPC_CLIENTS_MAX

log = logging.getLogger(__name__)

DRAIN_S = 5.0  # for calls under way when the graph is replaced or stopped


class Server(Translator):
    TYPE = "protocol/server"
    OPTIONS: ClassVar[tuple[Option, ...]] = OPTIONS
    SUBVOLUMES = (1, ANY_NUMBER)

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self._volumes = _beneath(subvolumes)
        for volume in self._volumes.values():
            if self not in volume.parents:
                volume.parents.append(self)
        self._down: dict[Translator, str] = {}  # volumes that answer nothing but ENOTCONN, and why
        self._apply(options)
        tls = tls_context(options, is_server=True)
        self._doors = Doors(name, tls, self._accept, self._refusal) if tls is not None else None
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._sessions: set[Session] = set()
        self._ending: dict[asyncio.Task[None], Session] = {}
        self._next: Server | None = None  # who has taken over
        self._gave_sockets = False

    def _apply(self, options: Options) -> None:
        self.rules = Access(options)
        self.identity = Identity(options, self.context)
        self.outstanding_max: int = options["rpc.outstanding-rpc-limit"]

    # ---- life ----

    async def start(self) -> None:
        if not self._sockets:
            self._sockets = open_sockets(self.options)
        await self._listen()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for opened in self._sockets:
            make = loop.create_unix_server if opened.family == socket.AF_UNIX else loop.create_server
            if self._doors is not None:
                self._doors.open(opened)
            else:
                self._servers.append(await make(self._accept, sock=opened))
            log.info("volume '%s': listening on %s", self.name, _text_of(opened))

    def _accept(self) -> Connection:
        server = self
        while server._next is not None:
            server = server._next
        return Connection(lambda connection: Session(server, connection))

    async def stop(self) -> None:
        """No new clients; calls under way get their answers; then all clients are sent away."""
        await self._close_sockets()
        for session in self._sessions:
            session.connection.send(Kind.FAREWELL, 0, b"")
            if session.calls is not None:
                session.calls.freeze()
        idle = [session.calls.wait_idle(DRAIN_S) for session in self._sessions if session.calls is not None]
        await asyncio.gather(*idle)
        for session in list(self._sessions):
            session.connection.close("the brick stops")
            self.lost(session)
        while self._ending:
            await asyncio.wait(self._ending)

    async def _close_sockets(self) -> None:
        for opened in self._sockets:
            if opened.family == socket.AF_UNIX and not self._gave_sockets:
                with contextlib.suppress(OSError):
                    os.unlink(opened.getsockname())
        for server in self._servers:
            server.close()
        if self._doors is not None:
            await self._doors.close()
        for opened in self._sockets:
            opened.close()
        self._servers, self._sockets = [], []

    @property
    def addresses(self) -> list[Any]:
        """Where it listens, as getsockname says."""
        return [opened.getsockname() for opened in self._sockets]

    # ---- sessions call ----

    def admit(self, session: Session, client: Client) -> str:
        """Before anything is read from a connection: why it is not wanted, "" if it is."""
        connected = session.connection.socket
        if connected is not None:
            tune(connected, self.options)
        refusal = self._refusal(client)
        if not refusal:
            self._sessions.add(session)
        return refusal

    def _refusal(self, client: Client) -> str:
        """What can be said as soon as it has connected."""
        handshakes = self._doors.handshakes if self._doors is not None else 0
        if len(self._sessions) + handshakes >= RPC_CLIENTS_MAX:
            return f"{RPC_CLIENTS_MAX} clients are connected"
        return "" if self.rules.may_speak(client) else "no auth option names its address"

    def find_volume(self, name: str) -> Translator | None:
        return self._volumes.get(name)

    def predecessors(self, session: Session) -> list[Session]:
        """Older connections of the same client, which may not know yet that they are dead, or are about to end."""
        assert session.hello is not None
        mine = session.hello.session
        there = [*self._sessions, *self._ending.values()]
        return [other for other in there if other is not session and other.hello and other.hello.session == mine]

    def why_down(self, volume: Translator) -> str | None:
        """None: it can be used."""
        return self._down.get(volume)

    def lost(self, session: Session) -> None:
        if session in self._sessions:
            self._sessions.discard(session)
            task = asyncio.get_running_loop().create_task(session.end(), name=f"end of {session}")
            self._ending[task] = session
            task.add_done_callback(lambda _: self._ending.pop(task))

    # ---- events, state ----

    def notify(self, event: Event, child: Translator | None) -> None:
        """A volume that is down has no clients: they see a link that is lost, and try again."""
        if child is None:
            return
        if isinstance(event, ChildDown):
            self._down[child] = event.reason or "it is down"
        elif isinstance(event, ChildUp):
            self._down.pop(child, None)
        for session in list(self._sessions):
            if session.calls is None or session.calls.top is not child:
                continue
            if isinstance(event, ChildDown):
                session.connection.close(f"volume '{child.name}' is down: {self._down[child]}")
            else:
                session.tell(event)

    def state(self) -> dict[str, object]:
        values: dict[str, object] = {"clients": len(self._sessions)}
        for index, session in enumerate(sorted(self._sessions, key=str)):
            calls = session.calls
            values[f"client[{index}]"] = session
            if calls is not None:
                values[f"client[{index}].volume"] = calls.top.name
                values[f"client[{index}].calls"] = calls.under_way
                values[f"client[{index}].open_files"] = len(calls.files)
        return values

    # ---- changes ----

    def reconfigure(self, options: Options) -> None:
        if place_of(options) != place_of(self.options):
            log.warning("volume '%s': a new address or port needs a restart of the brick", self.name)
        super().reconfigure(options)
        self._apply(options)
        for session in self._sessions:
            session.limit_changed()
        self._dismiss()

    def _dismiss(self) -> None:
        """Clients that the rules no longer allow go, if dynamic-auth says so."""
        if not self.options["dynamic-auth"]:
            return
        for session in list(self._sessions):
            refusal = session.refusal(session.hello) if session.hello is not None else None
            if refusal is not None:
                session.connection.abort(f"it is not allowed any more: {refusal}")

    def adopt_sockets(self, before: Server) -> None:
        """Before ``start``: listen on the sockets of the graph that this one replaces, if they are the ones meant."""
        if place_of(before.options) == place_of(self.options):
            self._sockets = [opened.dup() for opened in before._sockets]
            before._gave_sockets = True

    def freeze(self) -> None:
        """The graph is about to be replaced: calls wait."""
        for session in self._sessions:
            if session.calls is not None:
                session.calls.freeze()

    def thaw(self) -> None:
        """It is not replaced after all."""
        self._gave_sockets = False
        for session in self._sessions:
            if session.calls is not None:
                session.calls.thaw()

    async def wait_idle(self) -> bool:
        busy = [session.calls.wait_idle(DRAIN_S) for session in self._sessions if session.calls is not None]
        return all(await asyncio.gather(*busy))

    async def move_clients(self, after: Server) -> None:
        """To the volumes of the same names in a new graph, with their open files; others are sent away."""
        self._next = after
        for session in list(self._sessions):
            session.server = after
            self._sessions.discard(session)
            after._sessions.add(session)
            if session.calls is None:
                continue
            assert session.hello is not None
            top = after.find_volume(session.hello.volume)
            if top is None:
                session.connection.abort(f"volume '{session.hello.volume}' is no more")
                continue
            await session.calls.move(top)
            session.calls.thaw()
        after._dismiss()


def _beneath(subvolumes: Sequence[Translator]) -> dict[str, Translator]:
    found: dict[str, Translator] = {}
    waiting = list(subvolumes)
    while waiting:
        volume = waiting.pop()
        if volume.name not in found:
            found[volume.name] = volume
            waiting.extend(volume.subvolumes)
    return found


def _text_of(opened: socket.socket) -> str:
    name = opened.getsockname()
    return str(name) if isinstance(name, str) else f"{name[0]} port {name[1]}"
