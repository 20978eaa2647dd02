# SPDX-License-Identifier: Apache-2.0
"""What the processes of the file side have in common: the background, logs, state dumps, a watch on the volfile.

Outputs: a process whose starter knows whether it works; state dumps as text with ``[section]`` headers and
``key=value`` lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from repl.errors import ConfigError
from repl.files.graph import Graph

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 1.0
_COLLECTED_AT_ONCE = 5000
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
LEVELS = ("debug", "info", "warning", "error", "critical")


def run_directory() -> Path:
    """Where state dumps and the like go: REPL_RUN_DIR, /run/repl for root, else a directory of the user's own."""
    if given := os.environ.get("REPL_RUN_DIR"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/repl")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/repl-{os.getuid()}") / "repl"


def keep_memory() -> None:
    """Let the C library keep what is freed, up to a limit: payloads come and go in pieces of a megabyte, and new memory
    costs a page fault for each 4 KiB of them."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 1024 * 1024)
        mallopt(_M_TRIM_THRESHOLD, 64 * 1024 * 1024)


def calm_collector() -> None:
    """What lives from the start on is not looked at again, and what is new less often: caches fill with objects that
    live, and looking at them for cycles took a sixth of the time of reading small files."""
    gc.freeze()
    gc.set_threshold(_COLLECTED_AT_ONCE, 20, 20)


def set_up_logging(level: str, path: str = "") -> None:
    """To a file, or to standard error."""
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    if path:
        logging.basicConfig(level=level.upper(), format=form, filename=path, force=True)
    else:
        logging.basicConfig(level=level.upper(), format=form, stream=sys.stderr, force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def log_as(program: str, level: str, path: str, *, in_background: bool) -> str:
    """To ``path`` if given, in the background else to a file in the run directory, else to standard error; the path.

    ConfigError: it cannot be written.
    """
    try:
        if not path and in_background:
            directory = run_directory()
            directory.mkdir(parents=True, exist_ok=True)
            path = str(directory / f"{program}.{os.getpid()}.log")
        set_up_logging(level, path)
    except OSError as error:
        raise ConfigError(f"cannot write the log {path}: {error.strerror}.") from error
    return path


class Background:
    """``detach`` goes to the background; the process that was started ends when ``ready`` or ``failed`` is called in
    the one that goes on (or when that one dies)."""

    def __init__(self) -> None:
        self._writer = -1

    def detach(self) -> None:
        """Returns in the child only.  Before threads and loops."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        if os.fork() != 0:
            os.close(writer)
            self._await(reader)
        os.close(reader)
        os.setsid()
        self._writer = writer

    @staticmethod
    def _await(reader: int) -> NoReturn:
        told = b""
        while part := os.read(reader, 65536):
            told += part
        if told == b"ready":
            os._exit(0)
        sys.stderr.write(told[1:].decode(errors="replace") or "It ended before it was ready: see the log.\n")
        sys.stderr.flush()
        os._exit(told[0] if told else 1)

    def ready(self) -> None:
        self._tell(b"ready")
        null = os.open(os.devnull, os.O_RDWR)
        if self._was_detached:
            for fd in range(3):
                os.dup2(null, fd)
        os.close(null)

    _was_detached = False

    def failed(self, message: str, status: int) -> None:
        """Print it where the starter sees it."""
        if self._writer < 0:
            sys.stderr.write(message + "\n")
        else:
            self._tell(bytes([status]) + message.encode() + b"\n")

    def _tell(self, text: bytes) -> None:
        if self._writer >= 0:
            self._was_detached = True
            os.write(self._writer, text)
            os.close(self._writer)
            self._writer = -1


class PidFile:
    """Says who runs, and that it runs: whoever holds the lock does."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"cannot write the pid file {path}: {error.strerror}.") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.read(self._fd, 32).decode(errors="replace").strip()
            os.close(self._fd)
            raise ConfigError(f"the pid file {path} belongs to process {pid or '?'}, which runs.",
                              advice="Stop it first, or name another pid file.") from error  # fmt: skip
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        os.close(self._fd)


def write_state(graph: Graph, name: str, more: Mapping[str, Mapping[str, object]], wall_ns: int) -> Path:
    """Dump the state of every translator; answers the file, readable by its owner only."""
    directory = run_directory()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.{os.getpid()}.dump.{wall_ns // 1_000_000_000}"
    sections = dict(more)
    for translator in graph.translators.values():
        title = f"{translator.TYPE}.{translator.name}"
        options = {f"option.{key}": value for key, value in translator.options.given.items()}
        sections[title] = {**translator.state(), **options}
    lines = []
    for title, values in sections.items():
        lines.append(f"[{title}]")
        lines += [f"{key}={value}" for key, value in values.items()]
        lines.append("")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\n".join(lines))
    log.info("state dumped to %s", path)
    return path


class VolfileWatch:
    """Calls back when the file has changed and has been left alone for one interval."""

    def __init__(self, path: str, changed: Callable[[], None]) -> None:
        self._path = path
        self._changed = changed
        self._known = self._look()
        self._candidate = self._known
        self._timer: asyncio.TimerHandle | None = None
        self._again()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(WATCH_INTERVAL_S, self._tick)

    def _tick(self) -> None:
        now = self._look()
        if now is not None and now != self._known and now == self._candidate:
            self._known = now
            self._changed()
        self._candidate = now
        self._again()
