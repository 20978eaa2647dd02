# SPDX-License-Identifier: Apache-2.0
"""One running resource: lock, engine, node, control socket and NBD server, from start to end.

Inputs: a ``NodeView``, the run directory and the makers of engine and node.  ``run`` returns the exit status: 0
after an orderly "down", 1 when the end was forced, 20 after an internal error.  Errors before it runs are raised
(``ConfigError``, ``RequestRefused``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import repl
from nbd.server import NbdServer
from repl.config.model import NodeView
from repl.daemon.control import ControlServer, Respond
from repl.daemon.disk_records import DiskRecords
from repl.daemon.exports import Exports
from repl.daemon.handlers import HandlerRunner, usual_environment
from repl.daemon.journal import Journal
from repl.daemon.link import LinkPlaces
from repl.daemon.memory import Memory
from repl.daemon.notify import notify
from repl.daemon.protocol import Request
from repl.daemon.run_dir import ResourceLock, RunDir
from repl.daemon.settings import node_settings
from repl.daemon.shell import EnginePort, NodeMachine, Shell
from repl.daemon.undo_store import UndoStore
from repl.engine.commands import Stop
from repl.errors import ReplError, UsageError
from repl.node.node import StatsReader
from repl.node.settings import NodeSettings

DOWN_TIMEOUT_S = 30.0
ENGINE_STOP_TIMEOUT_S = 10.0
DISK_CLOSE_TIMEOUT_S = 5.0
EXIT_FORCED = 1
EXIT_INTERNAL = 20

# Verbs of the node that only the NBD server may use: each open has to be matched by a close.
PRIVATE_VERBS = frozenset({"nbd-open", "nbd-info", "undo-open", "undo-info"})

_log = logging.getLogger("repl.daemon")


class Engine(EnginePort, StatsReader, Protocol):
    """An engine that runs."""

    def destroy(self) -> None: ...


EngineMaker = Callable[[NodeView], Engine]
NodeMaker = Callable[[NodeSettings, Engine], NodeMachine]


class Service:
    """Everything of one ``repld`` process."""

    def __init__(
        self,
        view: NodeView,
        run_dir: RunDir,
        *,
        make_engine: EngineMaker,
        make_node: NodeMaker,
        clock_s: Callable[[], float],
        config_file: Path | None = None,
    ) -> None:
        self._view = view
        self._config_file = config_file
        self._run_dir = run_dir
        self._settings = node_settings(view)
        self._make_engine = make_engine
        self._make_node = make_node
        self._journal = Journal(view.name, clock_s)
        self._is_over = asyncio.Event()
        self._exit_status = 0
        self._signal_count = 0
        self._shell: Shell | None = None
        self._down_limit: asyncio.TimerHandle | None = None

    async def run(self, *, up: bool = False) -> int:
        """``up``: bring the resource up before anybody is told that we are ready."""
        lock = ResourceLock(self._run_dir)
        self._run_dir.create()
        lock.take()
        try:
            return await self._run_locked(up=up)
        finally:
            lock.release()

    async def _run_locked(self, *, up: bool) -> int:
        engine = self._make_engine(self._view)
        node = self._make_node(self._settings, engine)
        net = self._view.net
        shell = self._shell = Shell(
            node,
            engine,
            places=LinkPlaces(
                self._view.my_address,
                self._view.peer_address,
                net.sndbuf_size_bytes,
                net.rcvbuf_size_bytes,
                accepts_any=net.accept_from == "any",
            ),
            volumes={volume.number: volume for volume in self._view.volumes},
            journal=self._journal,
            undos=self._undo_store(),
            records=DiskRecords(self._run_dir.lasting, self._view.name),
            handlers=self._handlers(),
            on_exit=self._is_over.set,
            on_fatal=self._fatal,
            run_dir=self._run_dir,
        )
        memory = Memory(self._run_dir.memory)
        for key, values in memory.load().items():
            node.remembered(key, values)
        shell.on_remember = memory.keep
        exports = Exports(shell, self._view.name, [volume.number for volume in self._view.volumes])
        nbd = NbdServer(exports, exports.handover, clients_max=self._view.nbd.max_clients,
                        negotiation_timeout_s=self._view.nbd.negotiation_timeout_s)
        control = ControlServer(self._run_dir.control, self._handle)
        is_stopped = False
        try:
            shell.start()
            self._watch_signals()
            await self._listen_nbd(nbd)
            await control.start()
            where = self._settings.node
            _log.info("%s: repld %s runs on %s, pid %d", self._view.name, _version(), where, os.getpid())
            if up and not await self._bring_up(shell):
                return EXIT_FORCED
            notify(f"READY=1\nSTATUS={self._view.name} on {where}")
            await self._is_over.wait()
        finally:
            notify("STOPPING=1")
            if self._down_limit is not None:
                self._down_limit.cancel()
            with contextlib.suppress(Exception):
                await nbd.close()
            is_stopped = await self._stop_engine(shell)
            await shell.close()
            await control.close()
            if is_stopped:
                engine.destroy()
                await shell.wait_disks_closed(DISK_CLOSE_TIMEOUT_S)
        _log.info("%s: repld ends", self._view.name)
        return self._exit_status

    def _undo_store(self) -> UndoStore:
        folders = [v.options.split_brain_undo_dir for v in self._view.volumes if v.options.split_brain_undo_dir]
        return UndoStore(Path(folders[0]) if folders else self._run_dir.lasting, self._view.name)

    def _handlers(self) -> HandlerRunner:
        environment = usual_environment(self._view, config_file=self._config_file, run_dir=self._run_dir.folder)
        return HandlerRunner(environment, timeout_s=self._view.options.handler_timeout_s)

    async def _listen_nbd(self, nbd: NbdServer) -> None:
        await nbd.listen_unix(self._run_dir.nbd)
        for listen in self._view.nbd.listen:
            if listen.address is None:
                await nbd.listen_unix(listen.unix_path)
            else:
                await nbd.listen_tcp(listen.address.host, listen.address.port)

    async def _bring_up(self, shell: Shell) -> bool:
        try:
            await shell.ask("up", {})
        except ReplError as error:
            _log.error("%s: it cannot be brought up: %s", self._view.name, error)
            return False
        return True

    async def _stop_engine(self, shell: Shell) -> bool:
        shell.engine_command(Stop())
        try:
            async with asyncio.timeout(ENGINE_STOP_TIMEOUT_S):
                await shell.engine_stopped.wait()
        except TimeoutError:
            _log.error("%s: the engine did not stop within %g s (does a disk hang?)",
                       self._view.name, ENGINE_STOP_TIMEOUT_S)
            return False
        return True

    # Control socket

    def _handle(self, request: Request, respond: Respond) -> Callable[[], None] | None:
        assert self._shell is not None
        try:
            local = self._local(request)
        except ReplError as error:
            respond({}, error)
            return None
        if local is not None:
            respond(local, None)
            return None
        return self._shell.command(request.verb, request.args, respond)

    def _local(self, request: Request) -> dict[str, Any] | None:
        """Verbs that the node knows nothing of."""
        if request.verb in PRIVATE_VERBS:
            raise UsageError(f"'{request.verb}' is not a command of the control socket.")
        if request.verb == "daemon":
            return {
                "pid": os.getpid(),
                "version": _version(),
                "resource": self._view.name,
                "node": self._settings.node,
                "nbd_socket": str(self._run_dir.nbd),
                "is_listening": self._shell.link.is_listening if self._shell else False,
            }
        if request.verb == "events":
            after = request.args.get("after", 0)
            if not isinstance(after, int):
                raise UsageError("events: 'after' is not a number.")
            return {"events": self._journal.after(after)}
        return None

    # Ends

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)

    def _signalled(self, number: int) -> None:
        self._signal_count += 1
        name = signal.Signals(number).name
        if self._signal_count > 1:
            self._give_up(f"{name} again: it ends at once")
            return
        _log.info("%s: %s: going down", self._view.name, name)
        self._down_limit = asyncio.get_running_loop().call_later(
            DOWN_TIMEOUT_S, lambda: self._give_up(f"going down took more than {DOWN_TIMEOUT_S:g} s")
        )
        assert self._shell is not None
        self._shell.command("down", {"force": True}, self._down_answered)

    def _down_answered(self, result: dict[str, Any], error: Exception | None) -> None:
        if error is not None:
            self._give_up(f"it cannot go down: {error}")

    def _give_up(self, reason: str) -> None:
        _log.error("%s: %s", self._view.name, reason)
        self._exit_status = EXIT_FORCED
        self._is_over.set()

    def _fatal(self, error: BaseException) -> None:
        self._exit_status = EXIT_INTERNAL
        self._is_over.set()


def _version() -> str:
    version: str = getattr(repl, "__version__", "0")
    return version

