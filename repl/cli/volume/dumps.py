# SPDX-License-Identifier: Apache-2.0
"""State dumps of running processes: asked for with SIGUSR1, read, removed.

Output: section -> key -> value, as text.  Errors: ``RequestRefused`` when it does not run, ``WaitTimedOut``.
"""

from __future__ import annotations

import contextlib
import time

from repl.cli.volume.processes import Daemon
from repl.errors import RequestRefused, WaitTimedOut

DUMP_TIMEOUT_S = 10.0
_POLL_S = 0.02
Dump = dict[str, dict[str, str]]


def dump(daemon: Daemon) -> Dump:
    pid = daemon.pid()
    if not pid:
        raise RequestRefused(f"{daemon.what} does not run.")
    pattern = f"*.{pid}.dump.*"
    for old in daemon.folder.glob(pattern):
        old.unlink(missing_ok=True)
    deadline = time.monotonic() + DUMP_TIMEOUT_S
    daemon.send_user_signal()
    while time.monotonic() < deadline:
        for path in daemon.folder.glob(pattern):
            with contextlib.suppress(OSError):
                text = path.read_text(errors="surrogateescape")
                if text.endswith("\n"):
                    path.unlink(missing_ok=True)
                    return parse(text)
        time.sleep(_POLL_S)
    raise WaitTimedOut(f"{daemon.what} (pid {pid}) does not write its state.", advice="Perhaps its disk hangs.")


def parse(text: str) -> Dump:
    found: Dump = {}
    section: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("[") and line.endswith("]"):
            section = found.setdefault(line[1:-1], {})
        elif "=" in line:
            key, _, value = line.partition("=")
            section[key] = value
    return found


def find(dumped: Dump, kind: str) -> dict[str, str]:
    """The first section of a type."""
    return next((values for title, values in dumped.items() if title.startswith(f"{kind}.")), {})


