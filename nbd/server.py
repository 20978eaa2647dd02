# SPDX-License-Identifier: Apache-2.0
"""Accepts NBD clients, negotiates with each of them and hands the descriptor over.

Inputs: listening places; an ``ExportProvider`` that knows the volumes; a ``Handover`` that takes a
connected, non-blocking socket with the result of its negotiation and owns it from then on.
Errors: ``ConfigError`` from the ``listen_*`` methods.  What goes wrong with one client is logged
(rate-limited) and closes that client only.

A client has ``negotiation_timeout_s`` of its own time for the handshake as a whole, so that neither silence
nor a byte now and then keeps a place; the time in which the provider works is not counted against it but has
its own bound.  Sockets are used raw (``loop.sock_*``), never through streams: no byte may stay in a buffer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from nbd import listeners
from nbd.export import Export, ListedExport, Refusal, RefusalKind, resolve_export_name
from nbd.listeners import Listener
from nbd.negotiation import (
    Aborted,
    Event,
    Finished,
    NeedExport,
    NeedExports,
    Negotiation,
)
from repl.errors import ReplError
from repl.limits import NBD_CLIENTS_MAX, NBD_NEGOTIATION_TIMEOUT_S

RECEIVE_BYTES_MAX = 64 * 1024
OPEN_TIMEOUT_S = 60.0
PLACE_TIMEOUT_S = 1.0
PLACE_POLL_S = 0.01
ACCEPT_RETRY_S = 0.2
LOG_BURST = 10
LOG_INTERVAL_S = 60.0

_log = logging.getLogger("nbd.server")

_T = TypeVar("_T")

Handover = Callable[[socket.socket, Finished], None]


class ExportProvider(Protocol):
    """The owner of the volumes, as the server sees it.  Everything is called in the event loop's thread."""

    def list_exports(self) -> Sequence[ListedExport]:
        """What may be listed and opened now, in the order in which clients see it."""

    def unlisted_export(self, name: str) -> str | None:
        """The full name of an export that may be opened although it is not listed."""

    async def open_export(self, name: str, *, for_go: bool) -> Export | Refusal:
        """Describes the listed export ``name``; with ``for_go`` also opens it (which may promote the node).

        A ``ReplError`` is a refusal with its text.  A cancelled call must leave nothing open.
        """

    def close_export(self, export: Export) -> None:
        """Takes back an ``open_export`` with ``for_go`` whose client never reached the handover."""

    def served_clients(self) -> int:
        """How many clients that were handed over are still connected."""


class NbdServer:
    """The listeners and all connections that are still negotiating."""

    def __init__(
        self,
        provider: ExportProvider,
        handover: Handover,
        *,
        negotiation_timeout_s: float = NBD_NEGOTIATION_TIMEOUT_S,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        clients_max: int = NBD_CLIENTS_MAX,
    ) -> None:
        self._provider = provider
        self._handover = handover
        self._negotiation_timeout_s = negotiation_timeout_s
        self._open_timeout_s = open_timeout_s
        self._clients_max = clients_max
        self._listeners: list[Listener] = []
        self._accepting: set[asyncio.Task[None]] = set()
        self._negotiating: set[asyncio.Task[None]] = set()
        self._log = RateLimitedLog(_log)

    async def listen_unix(self, path: str | os.PathLike[str]) -> None:
        """Accepts clients on a Unix socket that only our own user can connect to."""
        # Probing a stale socket and resolving a name can take seconds: they must not stop the loop.
        loop = asyncio.get_running_loop()
        self._start([await loop.run_in_executor(None, listeners.listen_unix, os.fspath(path))])

    async def listen_tcp(self, host: str, port: int) -> list[tuple[str, int]]:
        """Accepts clients on every address of ``host`` ("" = all).  Returns the addresses and ports bound."""
        opened = await asyncio.get_running_loop().run_in_executor(None, listeners.listen_tcp, host, port)
        bound: list[tuple[str, int]] = [listener.sock.getsockname()[:2] for listener in opened]
        self._start(opened)
        return bound

    @property
    def negotiating_clients(self) -> int:
        return len(self._negotiating)

    async def close(self) -> None:
        """Stops listening and drops the clients that are not handed over yet."""
        tasks = [*self._accepting, *self._negotiating]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _start(self, opened: Sequence[Listener]) -> None:
        for listener in opened:
            self._listeners.append(listener)
            task = asyncio.get_running_loop().create_task(self._accept(listener))
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    async def _accept(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener.sock)
            except OSError as error:  # out of descriptors, or the client was gone again already
                self._log.warning("accept", "nbd: cannot accept a client on %s: %s", listener.label, error)
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            await self._wait_for_place()
            self._admit(sock, listener)
            # sock_accept does not yield while clients queue up; a flood of them must not stop the loop.
            await asyncio.sleep(0)

    def _is_full(self) -> bool:
        return len(self._negotiating) + self._provider.served_clients() >= self._clients_max

    async def _wait_for_place(self) -> None:
        """The places of clients that have just left are free in a moment: no reason to refuse their successors."""
        end = asyncio.get_running_loop().time() + PLACE_TIMEOUT_S
        while self._is_full() and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(PLACE_POLL_S)

    def _admit(self, sock: socket.socket, listener: Listener) -> None:
        if self._is_full():
            sock.close()
            self._log.warning("full", "nbd: refused a client on %s: %d clients are connected",
                              listener.label, self._clients_max)
            return
        try:
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError as error:
            sock.close()
            self._log.warning("accept", "nbd: a client on %s was lost: %s", listener.label, error)
            return
        task = asyncio.get_running_loop().create_task(self._serve(sock, listener.label))
        self._negotiating.add(task)

        def serve_done(done: asyncio.Task[None]) -> None:
            self._negotiating.discard(done)
            if done.cancelled():  # before its first step, perhaps: then it has not closed its socket
                sock.close()

        task.add_done_callback(serve_done)

    async def _serve(self, sock: socket.socket, label: str) -> None:
        """One client from accept to handover or close.  Lets nothing but cancellation out."""
        handshake = _Handshake(
            sock,
            self._provider,
            self._log,
            budget_s=self._negotiation_timeout_s,
            open_timeout_s=self._open_timeout_s,
        )
        is_handed_over = False
        try:
            end = await handshake.run()
            if isinstance(end, Finished):
                self._handover(sock, end)
                is_handed_over = True
                self._negotiating.discard(asyncio.current_task())  # it counts as served from here on
                _log.info("nbd: client on %s uses export %r", label, end.export.name)
            elif end.is_clean:
                _log.debug("nbd: client on %s left: %s", label, end.reason)
            else:
                self._log.info("dropped", "nbd: dropped a client on %s: %s", label, end.reason)
        except OSError as error:
            self._log.info("dropped", "nbd: lost a client on %s: %s", label, error)
        except Exception:
            self._log.exception("failed", "nbd: negotiation with a client on %s failed", label)
        finally:
            if not is_handed_over:
                sock.close()
                self._close_export(handshake.opened)

    def _close_export(self, export: Export | None) -> None:
        if export is None:
            return
        try:
            self._provider.close_export(export)
        except Exception:
            self._log.exception("failed", "nbd: export %r could not be closed", export.name)


class _BudgetSpent(Exception):
    """The client has used up its time."""


class _Handshake:
    """Moves bytes between one socket and its ``Negotiation`` and gets the provider's answers."""

    def __init__(
        self,
        sock: socket.socket,
        provider: ExportProvider,
        log: RateLimitedLog,
        *,
        budget_s: float,
        open_timeout_s: float,
    ) -> None:
        self.opened: Export | None = None  # opened for this client and not yet handed over
        self._sock = sock
        self._provider = provider
        self._log = log
        self._budget_s = budget_s
        self._open_timeout_s = open_timeout_s
        self._negotiation = Negotiation()

    async def run(self) -> Finished | Aborted:
        event: Event | None = None
        try:
            while True:
                await self._send()
                match event:
                    case Finished() | Aborted():
                        return event
                    case None:
                        event = await self._receive()
                    case NeedExports():
                        event = self._negotiation.answer_exports(self._provider.list_exports())
                    case NeedExport():
                        event = await self._open(event)
        except _BudgetSpent:
            return Aborted("it did not finish the negotiation in time")

    async def _send(self) -> None:
        output = self._negotiation.take_output()
        if output:
            await self._in_client_time(asyncio.get_running_loop().sock_sendall(self._sock, output))

    async def _receive(self) -> Event | None:
        receiving = asyncio.get_running_loop().sock_recv(self._sock, RECEIVE_BYTES_MAX)
        data = await self._in_client_time(receiving)
        return self._negotiation.receive(data) if data else self._negotiation.receive_end()

    async def _in_client_time(self, operation: Awaitable[_T]) -> _T:
        """Waits for the client, at the cost of its time budget."""
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        try:
            async with asyncio.timeout(self._budget_s) as bound:
                return await operation
        except TimeoutError:
            if not bound.expired():
                raise  # the socket's own ETIMEDOUT
            raise _BudgetSpent from None
        finally:
            self._budget_s = max(0.0, self._budget_s - (loop.time() - begin_s))

    async def _open(self, need: NeedExport) -> Event | None:
        answer = await self._ask_provider(need)
        if need.for_go and isinstance(answer, Export):
            self.opened = answer
        event = self._negotiation.answer_export(answer)
        if self.opened is not None and not isinstance(event, Finished):
            # The client cannot use what was opened for it (it has to know the block sizes first).
            opened, self.opened = self.opened, None
            self._provider.close_export(opened)
        return event

    async def _ask_provider(self, need: NeedExport) -> Export | Refusal:
        name = resolve_export_name(need.name, self._provider.list_exports())
        name = name or self._provider.unlisted_export(need.name)
        if name is None:
            hint = "" if need.name else ": there is no default export, give a name"
            return Refusal(RefusalKind.UNKNOWN, f"no export {need.name!r}{hint}")
        try:
            async with asyncio.timeout(self._open_timeout_s):
                return await self._provider.open_export(name, for_go=need.for_go)
        except TimeoutError:
            return Refusal(RefusalKind.POLICY, f"export {name!r} could not be opened in time")
        except ReplError as error:
            return Refusal(RefusalKind.POLICY, str(error))
        except Exception:
            self._log.exception("failed", "nbd: export %r could not be opened", name)
            return Refusal(RefusalKind.POLICY, f"export {name!r} could not be opened: see the server's log")


class RateLimitedLog:
    """Lets ``LOG_BURST`` lines of a kind through per ``LOG_INTERVAL_S`` and counts the rest."""

    def __init__(self, logger: logging.Logger, clock_s: Callable[[], float] | None = None) -> None:
        self._logger = logger
        self._clock_s = clock_s or _loop_time_s
        self._windows: dict[str, _LogWindow] = {}  # bounded: kinds are literals of this module

    def info(self, kind: str, message: str, *args: object) -> None:
        self._write(logging.INFO, kind, message, args, with_traceback=False)

    def warning(self, kind: str, message: str, *args: object) -> None:
        self._write(logging.WARNING, kind, message, args, with_traceback=False)

    def exception(self, kind: str, message: str, *args: object) -> None:
        self._write(logging.ERROR, kind, message, args, with_traceback=True)

    def _write(
        self, level: int, kind: str, message: str, args: tuple[object, ...], *, with_traceback: bool
    ) -> None:
        now_s = self._clock_s()
        window = self._windows.setdefault(kind, _LogWindow(begin_s=now_s))
        if now_s - window.begin_s >= LOG_INTERVAL_S:
            if window.suppressed_count:
                self._logger.log(level, "nbd: left out %d lines (%s)", window.suppressed_count, kind)
            window = self._windows[kind] = _LogWindow(begin_s=now_s)
        if window.written_count >= LOG_BURST:
            window.suppressed_count += 1
            return
        window.written_count += 1
        self._logger.log(level, message, *args, exc_info=with_traceback)


@dataclass(slots=True)
class _LogWindow:
    begin_s: float
    written_count: int = 0
    suppressed_count: int = 0


def _loop_time_s() -> float:
    return asyncio.get_running_loop().time()
