# SPDX-License-Identifier: Apache-2.0
"""The run directory: where a resource's lock, sockets and log lie, and the lock itself.

Inputs: a directory and the name of a resource.  Errors: ``RequestRefused`` when the resource already runs,
``ConfigError`` when the directory cannot be used.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from repl.errors import ConfigError, RequestRefused

UNIX_PATH_BYTES_MAX = 107
PID_CHARS_MAX = 32


SYSTEM_RUN_DIR = Path("/run/repl")


def user_state_dir() -> Path:
    return Path.home() / ".local/state/repl"


def default_run_dir() -> Path:
    """/run/repl for root, else a directory of the user's own."""
    given = os.environ.get("REPL_RUN_DIR")
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return SYSTEM_RUN_DIR
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "repl" if runtime else user_state_dir()


@dataclass(frozen=True, slots=True)
class RunDir:
    """The files of one resource."""

    folder: Path
    resource: str

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.resource}.lock"

    @property
    def control(self) -> Path:
        return self.folder / f"{self.resource}.sock"

    @property
    def nbd(self) -> Path:
        return self.folder / f"{self.resource}.nbd"

    @property
    def memory(self) -> Path:
        """Results that outlive the daemon."""
        return self.folder / f"{self.resource}.state"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.resource}.log"

    @property
    def lasting(self) -> Path:
        """A folder that survives a reboot: the default run directories do not, one that somebody chose is taken."""
        if self.folder == SYSTEM_RUN_DIR:
            return Path("/var/lib/repl")
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        return user_state_dir() if runtime and self.folder == Path(runtime) / "repl" else self.folder

    def create(self) -> None:
        """Make the directory (mode 0700 if it is new) and check that sockets in it have usable names."""
        for path in (self.control, self.nbd):
            if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
                raise ConfigError(
                    f"the socket path {path} has more than {UNIX_PATH_BYTES_MAX} bytes.",
                    advice="Choose a shorter run directory (--run-dir or REPL_RUN_DIR).",
                )
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the run directory {self.folder} cannot be made: {error.strerror}.",
                advice="Choose another one (--run-dir or REPL_RUN_DIR).",
            ) from error


class ResourceLock:
    """Held while the resource's ``repld`` runs; the file holds its pid."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self._fd = -1

    def take(self) -> None:
        path = self._run_dir.lock
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(
                f"the lock file {path} cannot be opened: {error.strerror}.",
                advice="Choose a run directory that this user may write to (--run-dir or REPL_RUN_DIR).",
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _read_pid(fd)
            os.close(fd)
            raise RequestRefused(
                f"{self._run_dir.resource}: repld is already running{f', pid {owner}' if owner else ''}.",
                advice=f'Stop it with "replctl down {self._run_dir.resource}" first.',
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """The file stays: removing it would let two processes lock two files of the same name."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def running_pid(run_dir: RunDir) -> int | None:
    """The pid of the ``repld`` that holds the lock (0 if it has not written it), None if nobody does."""
    try:
        fd = os.open(run_dir.lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read_pid(fd)
    else:
        return None
    finally:
        os.close(fd)


def _read_pid(fd: int) -> int:
    text = os.pread(fd, PID_CHARS_MAX, 0).decode(errors="replace").strip()
    return int(text) if text.isdecimal() else 0
