# SPDX-License-Identifier: Apache-2.0
"""``repl-brickd``: serve the volumes of a volfile.

usage: repl-brickd -f server.vol [-l logfile] [-p pid-file] [-N]

It goes to the background once clients can attach; the exit status of the command is 0 then.  SIGTERM and SIGINT stop
it: calls under way get their answers.  SIGHUP, and a change of the file, load the volfile again: options are taken
over, another graph takes the place of the old one while clients stay attached; a volfile that is wrong is logged and
changes nothing.  SIGUSR1 writes a state dump, SIGUSR2 makes debug/io-stats count from zero.
Exit status: 0 after an orderly end, 1 wrong usage, 10 the volfile or what it names (directory, address, port,
certificate), 20 an internal error.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Sequence

import uvloop

import repl
from repl.clock import wall_ns
from repl.errors import ConfigError, InternalError, ReplError, UsageError
from repl.files import process, volfile
from repl.files.graph import Graph
from repl.files.translator import Context
from repl.files.translators.io_stats import IoStats
from repl.files.translators.server import Server
from repl.files.volfile import Volfile

log = logging.getLogger("repl.files.brick")


class Brick:
    """One process: a graph with at least one protocol/server, and the graphs that follow it."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._random = random.Random()
        self._process = f"{socket.gethostname()}-{os.getpid()}-{self._random.randbytes(6).hex()}"
        self._ending = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.graph: Graph

    async def run(self, ready: Callable[[], None]) -> None:
        """``ready`` is called when clients can attach; returns after a signal."""
        self.graph = self._make(volfile.load(self._path))
        await _start(self.graph)
        watch = process.VolfileWatch(self._path, self._reload_soon)
        self._handle_signals()
        try:
            log.info("serving %s", self._path)
            ready()
            await self._ending.wait()
        finally:
            watch.stop()
            async with self._reloading:
                await self.graph.stop()
            log.info("stopped")

    def _make(self, found: Volfile) -> Graph:
        context = Context(socket.gethostname(), self._process, self._random, wall_ns)
        graph = Graph(found, context)
        if not servers(graph):
            raise ConfigError("no volume is of type protocol/server: nobody could reach this brick.", file=found.path,
                              advice="This may be the volfile of a client; repl-mount takes those.")  # fmt: skip
        return graph

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        loop.add_signal_handler(signal.SIGUSR1, self._dump_state)
        loop.add_signal_handler(signal.SIGUSR2, self._count_anew)

    def _dump_state(self) -> None:
        try:
            process.write_state(self.graph, "repl-brickd", {"brickd": {"volfile": self._path}}, wall_ns())
        except OSError as error:
            log.error("cannot dump the state: %s", error)

    def _count_anew(self) -> None:
        for translator in self.graph.translators.values():
            if isinstance(translator, IoStats):
                translator.clear()

    # ---- another volfile ----

    def _reload_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload(), name="reload")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> None:
        async with self._reloading:
            try:
                found = volfile.load(self._path)
                if self.graph.same_shape(found):
                    self.graph.reconfigure(found)
                    log.info("options of %s taken over", self._path)
                else:
                    self.graph = await replace(self.graph, self._make(found))
                    log.info("another graph of %s serves now", self._path)
            except (ReplError, OSError) as error:
                log.error("the changed volfile is not used, the old one goes on: %s", error)
            except Exception:
                log.exception("the changed volfile is not used, the old one goes on")


def servers(graph: Graph) -> dict[str, Server]:
    return {name: found for name, found in graph.translators.items() if isinstance(found, Server)}


async def _start(graph: Graph) -> None:
    try:
        await graph.start()
    except OSError as error:
        raise ConfigError(f"{graph.volfile.path}: the graph cannot start: {error}.") from error


async def replace(before: Graph, after: Graph) -> Graph:
    """Clients go over from one running graph to a new one with their open files and locks.  Raises what keeps the new
    graph from starting; the old one serves on then."""
    old, new = servers(before), servers(after)
    pairs = [(old[name], new[name]) for name in new if name in old]
    for source, target in pairs:
        target.adopt_sockets(source)
    for source in old.values():
        source.freeze()
    try:
        await asyncio.gather(*(source.wait_idle() for source in old.values()))
        await _start(after)
        await before.finish()
    except BaseException:
        for source in old.values():
            source.thaw()
        raise
    for name, translator in after.translators.items():
        other = before.translators.get(name)
        if other is not None and type(other) is type(translator):
            translator.take_over(other)
    for source, target in pairs:
        await source.move_clients(target)
    await before.stop()
    return after


# ---- the command ----


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{message}.", advice='"repl-brickd --help" shows the options.')


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="repl-brickd", description="Serves the volumes of a volfile.")
    parser.add_argument("-f", "--volfile", required=True, metavar="FILE", help="the volfile of the server")
    parser.add_argument("-N", "--no-daemon", action="store_true", help="stay in the foreground")
    parser.add_argument("-l", "--log-file", default="", metavar="FILE",
                        help="(standard error in the foreground, else REPL_RUN_DIR/repl-brickd.PID.log)")
    parser.add_argument("-L", "--log-level", default="info", choices=process.LEVELS, type=str.lower)
    parser.add_argument("-p", "--pid-file", default="", metavar="FILE", help="locked while the process runs")
    parser.add_argument("--version", action="version", version=f"repl-brickd {repl.__version__}")
    return parser.parse_args(arguments)


def _serve(given: argparse.Namespace, background: process.Background) -> None:
    process.keep_memory()
    process.log_as("repl-brickd", given.log_level, given.log_file, in_background=not given.no_daemon)
    pid_file = process.PidFile(given.pid_file) if given.pid_file else None

    def ready() -> None:
        process.calm_collector()
        background.ready()

    async def serve() -> None:
        await Brick(given.volfile).run(ready)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    finally:
        if pid_file is not None:
            pid_file.remove()


def main(arguments: Sequence[str] | None = None) -> int:
    background = process.Background()
    try:
        given = _parse(sys.argv[1:] if arguments is None else arguments)
        if not given.no_daemon:
            given.volfile, given.log_file, given.pid_file = (
                os.path.abspath(name) if name else "" for name in (given.volfile, given.log_file, given.pid_file)
            )
            background.detach()
        _serve(given, background)
    except ReplError as error:
        if logging.getLogger().handlers and (given.log_file or not given.no_daemon):
            log.error("%s", error)
        background.failed(f"repl-brickd: {error}", error.exit_status)
        return error.exit_status
    except Exception as error:
        log.exception("a bug")
        background.failed(f"repl-brickd: internal error: {error!r}; the log says more.", InternalError.exit_status)
        return InternalError.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
