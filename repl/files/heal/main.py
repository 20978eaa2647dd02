# SPDX-License-Identifier: Apache-2.0
"""``repl-heald``: heals the replicated volumes of a volfile.

usage: repl-heald -f client.vol [-s socket] [-l logfile] [-p pid-file] [-N]

Takes the volfile of a client; of it only the replicate volumes and what is below them are used.  It goes to the
background once it has begun; the exit status of the command is 0 then.  SIGTERM and SIGINT end it, SIGHUP makes it look
at the indices now, SIGUSR1 writes a state dump; a change of the file is taken over.  Several daemons may heal one
volume: each inode is healed by one of them.
Exit status: 0 after an orderly end, 1 wrong usage, 10 the volfile, 20 an internal error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import uvloop

import repl
from repl.clock import wall_ns
from repl.errors import ConfigError, InternalError, ReplError, UsageError
from repl.files import process, volfile
from repl.files.graph import Graph
from repl.files.heal.control import Control
from repl.files.heal.daemon import HealDaemon
from repl.files.options import Kind, Option, parse_options
from repl.files.translator import Context
from repl.files.translators import find_class
from repl.files.translators.replicate import Replicate
from repl.files.volfile import Volfile

log = logging.getLogger("repl.files.heal")


def prune(found: Volfile) -> Volfile:
    """The replicate volumes with what is below them, for a daemon.  ConfigError: there are none, or a brick would be
    opened here while its own process serves it."""
    by_name = {volume.name: volume for volume in found.volumes}
    needed: set[str] = set()
    todo = [v.name for v in found.volumes if find_class(v.type) is Replicate]
    if not todo:
        raise ConfigError("no volume is of type cluster/replicate: there is nothing to heal.", file=found.path)
    for name in todo:
        by_name[name].options["iam-self-heal-daemon"] = "on"
    while todo:
        name = todo.pop()
        if name in needed or name not in by_name:
            continue
        needed.add(name)
        volume = by_name[name]
        if volume.type == "storage/posix":
            raise ConfigError(f"volume '{name}' is a brick in this process.", file=found.path, line=volume.line,
                              advice="repl-heald takes the volfile of a client.")  # fmt: skip
        todo += volume.subvolumes
    return Volfile(found.path, [v for v in found.volumes if v.name in needed])


class Service:
    """One process: a graph, its daemon, and those that follow when the volfile changes."""

    def __init__(self, path: str, control: Path, rate_bytes_s: int) -> None:
        self._path = path
        self._rate = rate_bytes_s
        self._random = random.Random()
        self._process = f"{socket.gethostname()}-{os.getpid()}-{self._random.randbytes(6).hex()}-heald"
        self._ending = asyncio.Event()
        self._control = Control(control, lambda: self.daemon)
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._work: asyncio.Task[None]
        self.daemon: HealDaemon

    async def run(self, ready: Callable[[], None]) -> None:
        await self._begin(prune(volfile.load(self._path)))
        await self._control.start()
        watch = process.VolfileWatch(self._path, self._reload_soon)
        self._handle_signals()
        log.info("healing %s of %s", ", ".join(self.daemon.volumes), self._path)
        try:
            ready()
            await self._ending.wait()
        finally:
            watch.stop()
            await self._control.stop()
            async with self._reloading:
                await self._end()
            log.info("stopped")

    async def _begin(self, found: Volfile) -> None:
        context = Context(socket.gethostname(), self._process, self._random, wall_ns, is_told_once=True)
        graph = Graph(found, context)
        await graph.start()
        self.daemon = HealDaemon(graph, self._rate)
        self._work = asyncio.get_running_loop().create_task(self.daemon.run(), name="heals")
        self._work.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("healing has ended", exc_info=error)
            self._ending.set()

    async def _end(self) -> None:
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        await self.daemon.graph.stop()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        loop.add_signal_handler(signal.SIGHUP, self._heal_now)
        loop.add_signal_handler(signal.SIGUSR1, self._dump_state)

    def _heal_now(self) -> None:
        for volume in self.daemon.chosen():
            volume.want()

    def _dump_state(self) -> None:
        try:
            process.write_state(self.daemon.graph, "repl-heald", self.daemon.state(), wall_ns())
        except OSError as error:
            log.error("cannot dump the state: %s", error)

    # ---- another volfile ----

    def _reload_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload(), name="reload")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> None:
        async with self._reloading:
            try:
                found = prune(volfile.load(self._path))
                if self.daemon.graph.same_shape(found):
                    self.daemon.graph.reconfigure(found)
                    log.info("options of %s taken over", self._path)
                else:
                    Graph(found, Context())  # what is wrong with it shows before the old one ends
                    await self._end()
                    await self._begin(found)
                    log.info("another graph of %s is healed now", self._path)
            except (ReplError, OSError) as error:
                log.error("the changed volfile is not used, the old one goes on: %s", error)


# ---- the command ----


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{message}.", advice='"repl-heald --help" shows the options.')


_RATE = Option("rate", Kind.SIZE, 0, "bytes a second")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="repl-heald", description="Heals the replicated volumes of a volfile.")
    parser.add_argument("-f", "--volfile", required=True, metavar="FILE", help="the volfile of a client")
    parser.add_argument("-s", "--socket", default="", metavar="FILE",
                        help="the control socket (REPL_RUN_DIR/repl-heald.PID.sock)")  # fmt: skip
    parser.add_argument("-r", "--rate", default="0", metavar="SIZE",
                        help="bytes that are copied in a second at most, as 20MB (0: no limit)")  # fmt: skip
    parser.add_argument("-N", "--no-daemon", action="store_true", help="stay in the foreground")
    parser.add_argument("-l", "--log-file", default="", metavar="FILE",
                        help="(standard error in the foreground, else REPL_RUN_DIR/repl-heald.PID.log)")
    parser.add_argument("-L", "--log-level", default="info", choices=process.LEVELS, type=str.lower)
    parser.add_argument("-p", "--pid-file", default="", metavar="FILE", help="locked while the process runs")
    parser.add_argument("--version", action="version", version=f"repl-heald {repl.__version__}")
    given = parser.parse_args(arguments)
    try:
        given.rate = parse_options((_RATE,), {"rate": given.rate}, where="repl-heald")["rate"]
    except ConfigError as error:
        raise UsageError(f"--rate {given.rate}: {error.text}") from None
    return given


def _serve(given: argparse.Namespace, background: process.Background) -> None:
    process.keep_memory()
    process.log_as("repl-heald", given.log_level, given.log_file, in_background=not given.no_daemon)
    pid_file = process.PidFile(given.pid_file) if given.pid_file else None
    control = Path(given.socket or process.run_directory() / f"repl-heald.{os.getpid()}.sock")

    def ready() -> None:
        process.calm_collector()
        background.ready()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(given, control, ready))
    finally:
        if pid_file is not None:
            pid_file.remove()


async def _run(given: argparse.Namespace, control: Path, ready: Callable[[], None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await Service(given.volfile, control, given.rate).run(ready)


def main(arguments: Sequence[str] | None = None) -> int:
    background = process.Background()
    try:
        given = _parse(sys.argv[1:] if arguments is None else arguments)
        for name in ("volfile", "log_file", "pid_file", "socket"):
            if value := getattr(given, name):
                setattr(given, name, os.path.abspath(value))
        if not given.no_daemon:
            background.detach()
        _serve(given, background)
    except ReplError as error:
        if logging.getLogger().handlers:
            log.error("%s", error)
        background.failed(f"repl-heald: {error}", error.exit_status)
        return error.exit_status
    except Exception as error:
        log.exception("a bug")
        background.failed(f"repl-heald: internal error: {error!r}; the log says more.", InternalError.exit_status)
        return InternalError.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
