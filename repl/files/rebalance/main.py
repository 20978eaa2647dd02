# SPDX-License-Identifier: Apache-2.0
"""``repl-rebalance``: bring a distributed volume in order after its bricks have changed.

usage: repl-rebalance -f client.vol [--mode fix-layout|start|force] [--remove VOLUME] [-P progress-file]
                      [-p pid-file] [-N]

It goes to the background once the volume can be worked on.  SIGTERM stops it after the files it is moving; started
again with the same progress file it goes on where it was.  Exit status: 0 done or stopped, 1 wrong usage, 10 the
volfile, 5 a brick is away, 20 an internal error.
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
from pathlib import Path

import uvloop

import repl
from repl.clock import wall_ns
from repl.errors import ConfigError, InternalError, ReplError, UsageError
from repl.files import process, volfile
from repl.files.graph import Graph
from repl.files.rebalance import progress
from repl.files.rebalance.crawl import MODES, Crawl
from repl.files.rebalance.tidying import parallel_of
from repl.files.translator import Context
from repl.files.translators.distribute import Distribute
from repl.files.volfile import Volfile

log = logging.getLogger("repl.files.rebalance")


class Unavailable(ReplError):
    """A brick cannot be reached, or has gone away."""

    code = "unavailable"
    exit_status = 5


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{message}.", advice='"repl-rebalance --help" shows the options.')


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="repl-rebalance", description="Rebalances a distributed volume.")
    parser.add_argument("-f", "--volfile", required=True, metavar="FILE", help="the volfile of a client")
    parser.add_argument("-m", "--mode", default="start", choices=MODES,
                        help="fix-layout: new ranges only; start: move files too; force: also to fuller bricks")
    parser.add_argument("-V", "--volume", default="", metavar="NAME", help="the volume of type cluster/distribute")
    parser.add_argument("-r", "--remove", action="append", default=[], metavar="NAME",
                        help="a subvolume that is to be emptied (again for several)")
    parser.add_argument("-t", "--throttle", default="", help="lazy, normal, aggressive, or files at the same time")
    parser.add_argument("-P", "--progress", default="", metavar="FILE",
                        help="(REPL_RUN_DIR/rebalance-VOLUME.json)")
    parser.add_argument("-p", "--pid-file", default="", metavar="FILE", help="locked while the process runs")
    parser.add_argument("-N", "--no-daemon", action="store_true", help="stay in the foreground")
    parser.add_argument("-l", "--log-file", default="", metavar="FILE")
    parser.add_argument("-L", "--log-level", default="info", choices=process.LEVELS, type=str.lower)
    parser.add_argument("--version", action="version", version=f"repl-rebalance {repl.__version__}")
    return parser.parse_args(arguments)


def prepare(given: argparse.Namespace) -> tuple[Volfile, str]:
    """The volfile with the options of the command line, and the name of its distribute volume."""
    found = volfile.load(given.volfile)
    volumes = [v for v in found.volumes if v.type in (Distribute.TYPE, *Distribute.ALIASES)]
    volumes = [v for v in volumes if given.volume in ("", v.name)]
    if not volumes:
        what = f"volume '{given.volume}' is not" if given.volume else "no volume is"
        raise ConfigError(f"{what} of type cluster/distribute: there is nothing to rebalance.", file=found.path)
    volume = volumes[-1]
    if given.remove:
        volume.options["decommissioned-bricks"] = " ".join(given.remove)
        volume.lines.pop("decommissioned-bricks", None)
    if given.throttle:
        parallel_of(given.throttle)
        volume.options["rebal-throttle"] = given.throttle
    return found, volume.name


async def rebalance(given: argparse.Namespace, ready: Callable[[], None]) -> None:
    """Errors: ``ReplError``."""
    found, name = prepare(given)
    chance = random.Random()
    client = f"rebalance-{socket.gethostname()}-{os.getpid()}-{chance.randbytes(4).hex()}"
    graph = Graph(found, Context(socket.gethostname(), client, chance, wall_ns), name)
    path = Path(given.progress) if given.progress else process.run_directory() / f"rebalance-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    dht = graph.translators[name]
    assert isinstance(dht, Distribute)
    told = progress.load(path)
    told.pid = os.getpid()
    crawl = Crawl(dht, given.mode, told, path)

    def stop() -> None:
        log.info("stopping after the files that are being moved")
        crawl.is_stopping = True

    await graph.start()
    try:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        done = await crawl.run(ready)
        log.info("%s: %s files of %s bytes moved, %s skipped, %s failures", done.state, done.files, done.size,
                 done.skipped, done.failures)  # fmt: skip
    except OSError as error:
        advice = "Start it again when all bricks are there; it goes on where it was."
        raise Unavailable(f"the rebalance of {name} ended: {error}.", advice=advice) from error
    finally:
        await graph.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    background, log_file = process.Background(), ""
    try:
        given = _parse(sys.argv[1:] if arguments is None else arguments)
        if not given.no_daemon:
            for name in ("volfile", "log_file", "progress", "pid_file"):
                if value := getattr(given, name):
                    setattr(given, name, os.path.abspath(value))
            background.detach()
        log_file = process.log_as(
            "repl-rebalance", given.log_level, given.log_file, in_background=not given.no_daemon
        )
        pid_file = process.PidFile(given.pid_file) if given.pid_file else None
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(rebalance(given, background.ready))
        finally:
            if pid_file is not None:
                pid_file.remove()
    except ReplError as error:
        if log_file:
            log.error("%s", error)
        background.failed(f"repl-rebalance: {error}", error.exit_status)
        return error.exit_status
    except Exception as error:
        log.exception("a bug")
        background.failed(f"repl-rebalance: internal error: {error!r}; the log says more.", InternalError.exit_status)
        return InternalError.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
