# SPDX-License-Identifier: Apache-2.0
"""Start ``repld`` detached and wait until it answers, and wait until it has ended.

Errors: :class:`DaemonDied` with the last lines of its log, ``WaitTimedOut``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import repl
from repl.cli.client import Client, NotRunning
from repl.cli.session import Session
from repl.daemon.run_dir import RunDir, running_pid
from repl.errors import ReplError, WaitTimedOut

START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 60.0
POLL_S = 0.02
LOG_BYTES_MAX = 1 << 20
LOG_TAIL_BYTES = 4096
LOG_TAIL_LINES = 5
LAST_WORD = "repld: "


class DaemonDied(ReplError):
    """``repld`` ended before it was ready."""

    code = "daemon-died"

    def __init__(self, message: str, *, advice: str, exit_status: int) -> None:
        super().__init__(message, advice=advice)
        self.exit_status = exit_status if 0 < exit_status < 128 else ReplError.exit_status


def start_daemon(session: Session, resource: str) -> Client:
    """A connection to a new ``repld``; if another start is under way, to that one."""
    run_dir = session.run_dir(resource)
    run_dir.create()
    _shorten_log(run_dir.log)
    log_begin = run_dir.log.stat().st_size if run_dir.log.exists() else 0
    with open(run_dir.log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
        process = subprocess.Popen(
            _command(session, run_dir),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environment(),
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            return Client(run_dir.control, resource)
        except NotRunning:
            status = process.poll()
            if status is not None:
                raise _died(run_dir, status, log_begin) from None
            time.sleep(POLL_S)
    raise WaitTimedOut(
        f"{resource}: repld (pid {process.pid}) does not answer after {START_TIMEOUT_S:g} s.",
        advice=f"Look at {run_dir.log}.",
    )


def wait_for_end(session: Session, resource: str) -> None:
    """Until nobody holds the resource's lock any more: then disks and ports are free."""
    run_dir = session.run_dir(resource)
    deadline = time.monotonic() + END_TIMEOUT_S
    while (pid := running_pid(run_dir)) is not None:
        if time.monotonic() >= deadline:
            raise WaitTimedOut(
                f"{resource}: repld (pid {pid}) is down but has not ended after {END_TIMEOUT_S:g} s.",
                advice=f"Perhaps a disk hangs: look at {run_dir.log}.",
            )
        time.sleep(POLL_S)


def _command(session: Session, run_dir: RunDir) -> list[str]:
    return [
        sys.executable, "-P", "-m", "repl.daemon.main", run_dir.resource,
        "--config", str(session.config_file),
        *(["--node", session.node] if not session.addresses else []),
        "--run-dir", str(run_dir.folder),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """The same program as ours, wherever it was started from."""
    root = str(Path(repl.__file__).resolve().parent.parent)
    known = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{known}" if known else root}


def _shorten_log(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_name(log.name + ".old"))


def _died(run_dir: RunDir, status: int, log_begin: int) -> DaemonDied:
    with open(run_dir.log, "rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(log_begin, size - LOG_TAIL_BYTES) if size >= log_begin else 0)
        lines = log.read().decode(errors="replace").splitlines()
    last = [line for line in lines[-LOG_TAIL_LINES:] if line.strip()]
    # Its own last word, if it had one; else what the log has.
    said = [line.removeprefix(LAST_WORD) for line in last if line.startswith(LAST_WORD)] or last
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return DaemonDied(
        f"{run_dir.resource}: repld did not start ({how}): " + ("\n  ".join(said) if said else "it said nothing."),
        advice="" if said else f"Look at {run_dir.log}.",
        exit_status=status,
    )
