# SPDX-License-Identifier: Apache-2.0
"""Programs under test: own process group, output to a file, gone at the end whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.lib.wait import wait_for

PR_SET_PDEATHSIG = 1
LOG_TAIL_BYTES = 4000
STANDING = {"T", "D", "Z"}  # in a system call that cannot be interrupted: it stands behind that
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """In the child before exec: own group, and SIGTERM when the test process dies."""
    os.setpgid(0, 0)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """One running program.  ``log()`` is everything it wrote to stdout and stderr so far."""

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        log_path: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        prefix: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        """``env`` is added to the environment; ``prefix`` goes in front (``NetNamespace.prefix``)."""
        self.argv = [*prefix, *(os.fspath(a) for a in argv)]
        self.name = Path(os.fspath(argv[0])).name
        self.log_path = log_path
        with open(log_path, "ab") as log:
            self.popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                pass_fds=tuple(pass_fds),
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def is_running(self) -> bool:
        return self.popen.poll() is None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_log(self, text: str, timeout: float = 10) -> None:
        """Until the program has written ``text``; fails at once when it ends without."""
        self.wait_until(lambda: text in self.log(), timeout, f"'{text}' in the log")

    def wait_until(self, predicate: Callable[[], object], timeout: float = 10, what: str = "") -> None:
        """Until the predicate holds; fails at once when the program ends."""

        def holds_or_ended() -> bool:
            if predicate():
                return True
            if not self.is_running and not predicate():
                raise AssertionError(f"{self.name} ended with {self.popen.returncode}:\n{self._tail()}")
            return False

        wait_for(holds_or_ended, timeout, f"{self.name}: {what}", describe=self._tail)

    def wait_exit(self, timeout: float = 10) -> int:
        """The exit status; negative is the signal that ended it."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout:g} s:\n{self._tail()}") from None

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def freeze(self) -> None:
        """Returns when it stands: on a busy machine its threads answer for a while after the signal."""
        os.killpg(self.pid, signal.SIGSTOP)
        wait_for(lambda: self._states() <= STANDING, 30, f"{self.name} stands", describe=self._states)

    def _states(self) -> set[str]:
        """Of its threads, as /proc has them."""
        states = set()
        for stat in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                states.add(stat.read_text().rpartition(")")[2].split()[0])
        return states

    def thaw(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to the whole group: a crash of the process, not of the machine."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()

    def stop(self, timeout: float = 10) -> int:
        """SIGTERM, then SIGKILL; also ends children that the program left in its group."""
        if self.is_running:
            self.popen.terminate()
            self.popen.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout)
        self.kill()
        return self.popen.returncode

    def _tail(self) -> str:
        return self.log()[-LOG_TAIL_BYTES:]

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Processes:
    """Starts processes with logs in one folder, stops them in reverse order (fixture ``processes``)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Process] = []

    def start(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        name: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        prefix: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> Process:
        label = name or Path(os.fspath(argv[0])).name
        log_path = self.folder / f"{len(self.started)}-{label}.log"
        process = Process(argv, log_path, env=env, cwd=cwd, prefix=prefix, pass_fds=pass_fds)
        self.started.append(process)
        return process

    def stop_all(self) -> None:
        for process in reversed(self.started):
            process.stop()

    def logs(self) -> str:
        return "".join(f"--- {p.log_path.name}\n{p.log()[-LOG_TAIL_BYTES:]}\n" for p in self.started)
