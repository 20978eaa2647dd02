# SPDX-License-Identifier: Apache-2.0
"""Why the volume could not do what an application asked for: a program only gets to see "Input/output error".

Told are errors that are the volume's (no copy that answers, a split-brain, a disk), not those that belong to the
request.  At most ``MOUNT_FAILURES_TOLD_MAX`` in ``MOUNT_FAILURES_S`` seconds; how many more there were is told with the
next one.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from repl.files.mount.wire import Op, Request
from repl.files.values import FopError
from repl.limits import MOUNT_FAILURES_S, MOUNT_FAILURES_TOLD_MAX

log = logging.getLogger(__name__)

TOLD = frozenset((errno.EIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENOSPC, errno.EDQUOT, errno.EBADF))


class Failures:
    """``now``: a clock in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._since = float("-inf")
        self._told = 0
        self._untold = 0

    def note(self, request: Request, error: OSError) -> None:
        if error.errno not in TOLD:
            return
        now = self._now()
        if now - self._since > MOUNT_FAILURES_S:
            self._since, self._told = now, 0
        if self._told >= MOUNT_FAILURES_TOLD_MAX:
            self._untold += 1
            return
        self._told += 1
        untold, self._untold = self._untold, 0
        why = error.detail if isinstance(error, FopError) and error.detail else ""
        log.warning("%s failed: %s%s%s", _name(request.op), error.strerror, f": {why}" if why else "",
                    f" ({untold} more before)" if untold else "")  # fmt: skip


def _name(op: int) -> str:
    try:
        return Op(op).name.lower()
    except ValueError:
        return f"request {op}"
