# SPDX-License-Identifier: Apache-2.0
"""The processes of a volume on this host: one repl-brickd for each of its bricks, repl-heald, repl-rebalance.

Whoever holds the lock on its pid file runs; a pid whose lock nobody holds is never signalled, and the process is held
by a descriptor between the look and the signal, so that a pid that was given to somebody else meanwhile is not hit.
Files: RUN/volumes/NAME/{brick-N,heald,rebalance}.{pid,log}, heald.sock.
Errors: ``DidNotStart`` with what the process said, ``WaitTimedOut``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from repl.cli.starting import environment
from repl.cli.volume.context import Volumes
from repl.errors import ConfigError, ReplError, WaitTimedOut
from repl.files.volume.model import Brick, Volume

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
ASKED_TIMEOUT_S = 2.0
UNIX_PATH_BYTES_MAX = 107
LOG_BYTES_MAX = 4 << 20
_POLL_S = 0.02


class DidNotStart(ReplError):
    """A process ended before it was ready."""

    code = "daemon-died"

    def __init__(self, message: str, *, advice: str, exit_status: int) -> None:
        super().__init__(message, advice=advice)
        self.exit_status = exit_status if 0 < exit_status < 128 else ReplError.exit_status


@dataclass(frozen=True, slots=True)
class Daemon:
    """One of them.  ``what`` is for messages."""

    what: str
    module: str
    arguments: tuple[str, ...]
    folder: Path
    name: str

    @property
    def pid_file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def pid(self) -> int | None:
        """None: it does not run."""
        try:
            fd = os.open(self.pid_file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            text = os.pread(fd, 32, 0).decode(errors="replace").strip()
            return int(text) if text.isdecimal() else 0
        else:
            return None
        finally:
            os.close(fd)

    def start(self) -> bool:
        """False: it ran already.  Returns when it can be used."""
        if self.pid() is not None:
            return False
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > LOG_BYTES_MAX:
                self.log.replace(self.log.with_name(self.log.name + ".old"))
        command = [sys.executable, "-P", "-m", self.module, *self.arguments, "-p", str(self.pid_file), "-l",
                   str(self.log)]  # fmt: skip
        env = environment() | {"REPL_RUN_DIR": str(self.folder)}
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", env=env,
                                  start_new_session=True, timeout=START_TIMEOUT_S, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            raise WaitTimedOut(f"{self.what} does not answer after {START_TIMEOUT_S:g} s.",
                               advice=f"Look at {self.log}.") from None  # fmt: skip
        if done.returncode != 0:
            said = done.stderr.strip().rpartition("\n")[2].partition(": ")[2] or f"exit status {done.returncode}"
            raise DidNotStart(f"{self.what} did not start: {said}", advice=f"Its log is {self.log}.",
                              exit_status=done.returncode)  # fmt: skip
        return True

    @contextlib.contextmanager
    def _held(self) -> Iterator[int | None]:
        """A descriptor of the process that holds the lock, None if there is none."""
        pid, held = self.pid(), None
        with contextlib.suppress(ProcessLookupError):
            held = os.pidfd_open(pid) if pid else None
        try:
            yield held if self.pid() == pid else None
        finally:
            if held is not None:
                os.close(held)

    def stop(self, *, is_killed: bool = False) -> bool:
        """SIGTERM (or SIGKILL), and wait for its end.  False: it did not run."""
        with self._held() as held:
            if held is None:
                return False
            signal.pidfd_send_signal(held, signal.SIGKILL if is_killed else signal.SIGTERM)
            if not select.select([held], [], [], STOP_TIMEOUT_S)[0]:
                raise WaitTimedOut(f"{self.what} (pid {self.pid()}) has not ended after {STOP_TIMEOUT_S:g} s.",
                                   advice='Perhaps its disk hangs. "force" kills it.')  # fmt: skip
        self._wait_unlocked()
        return True

    def ask_to_end(self) -> bool:
        """SIGTERM, and a short wait.  False: it did not run."""
        with self._held() as held:
            if held is None:
                return False
            signal.pidfd_send_signal(held, signal.SIGTERM)
            select.select([held], [], [], ASKED_TIMEOUT_S)
            return True

    def _wait_unlocked(self) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.pid() is not None and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def send_user_signal(self, number: signal.Signals = signal.SIGUSR1) -> bool:
        """SIGUSR1: write a state dump; to a brick SIGUSR2: count from zero."""
        with self._held() as held:
            if held is not None:
                signal.pidfd_send_signal(held, number)
            return held is not None


def brick_daemon(volumes: Volumes, volume: Volume, brick: Brick) -> Daemon:
    path = volumes.store.path(volume.name, volumes.brick_file(brick))
    folder = volumes.run_folder(volume.name)
    return Daemon(f"brick {brick}", "repl.files.brick", ("-f", str(path)), folder, f"brick-{brick.number}")


def heal_socket(volumes: Volumes, name: str) -> Path:
    path = volumes.run_folder(name) / "heald.sock"
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise ConfigError(f"the socket path {path} has more than {UNIX_PATH_BYTES_MAX} bytes.",
                          advice="Choose a shorter run directory (--run-dir or REPL_RUN_DIR).")  # fmt: skip
    return path


def heal_daemon(volumes: Volumes, volume: Volume) -> Daemon:
    words = ("-f", str(volumes.client_volfile(volume.name)), "-s", str(heal_socket(volumes, volume.name)))
    return Daemon("the self-heal daemon", "repl.files.heal.main", words, volumes.run_folder(volume.name), "heald")


def rebalance_daemon(volumes: Volumes, volume: Volume, words: Sequence[str] = ()) -> Daemon:
    given = ("-f", str(volumes.client_volfile(volume.name)), "-V", volume.distribute_name, *words)
    return Daemon("the rebalance", "repl.files.rebalance.main", given, volumes.run_folder(volume.name), "rebalance")


def wants_heals(volumes: Volumes, volume: Volume) -> bool:
    """A heal daemon runs on the hosts of its bricks."""
    return volume.replica > 1 and bool(volumes.own_bricks(volume))


def start_all(volumes: Volumes, volume: Volume, *, is_all_or_nothing: bool = False) -> list[str]:
    """Whatever of the volume should run here and does not; answers what was started.  Bricks that cannot start do not
    keep the others from it, unless it is to be all or nothing.  Raises what kept one from it, afterwards."""
    started: list[Daemon] = []
    errors: list[ReplError] = []
    own = volumes.own_bricks(volume)
    daemons = [brick_daemon(volumes, volume, brick) for brick in own if not brick.is_fresh]
    fresh = [brick for brick in own if brick.is_fresh]
    _start_each(daemons, started, errors)
    try:
        if fresh:
            _accuse(volume, fresh)
            _start_each([brick_daemon(volumes, volume, brick) for brick in fresh], started, errors)
    except ReplError as error:
        errors.append(error)
    if wants_heals(volumes, volume):
        _start_each([heal_daemon(volumes, volume)], started, errors)
    if errors:
        for daemon in started if is_all_or_nothing else ():
            daemon.stop()
        first = errors[0]
        first.message = "\n  ".join(error.message for error in errors)
        raise first
    return [daemon.what for daemon in started]


def _start_each(daemons: Sequence[Daemon], started: list[Daemon], errors: list[ReplError]) -> None:
    for daemon in daemons:
        try:
            if daemon.start():
                started.append(daemon)
        except ReplError as error:
            errors.append(error)


def _accuse(volume: Volume, fresh: Sequence[Brick]) -> None:
    """Before anybody can read from them."""
    from repl.files.volume.accuse import accuse  # loaded when needed: it brings all of replicate with it

    asyncio.run(accuse(volume, fresh))
    for brick in fresh:
        brick.is_fresh = False


def stop_all(volumes: Volumes, volume: Volume, *, is_killed: bool = False) -> None:
    moving = rebalance_daemon(volumes, volume)
    if moving.ask_to_end():  # a large file may take it long; it goes on with it the next time
        moving.stop(is_killed=True)
    heal_daemon(volumes, volume).stop(is_killed=is_killed)
    for brick in volume.bricks:
        brick_daemon(volumes, volume, brick).stop(is_killed=is_killed)
