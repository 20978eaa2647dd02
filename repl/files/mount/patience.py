# SPDX-License-Identifier: Apache-2.0
"""Looking for the kernel's next request for a moment, before sleeping.

Who works alone sends its next request a few microseconds after an answer.  To sleep meanwhile, and to be woken, costs
both sides more than that moment, in virtual machines several times as much.  Where nothing comes, because the caller
computes or others want the processor, looking in vain gets rare.
Inputs: a function that reads without waiting; outputs: what it returns.  Errors: ``BlockingIOError``, nothing came.
"""

from __future__ import annotations

from collections.abc import Callable

from repl.limits import MOUNT_LOOK_NS, MOUNT_LOOKS_SKIPPED_MAX


class Patience:
    """``now_ns``: a clock that is never set back."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._skipped = 0  # since the last look
        self._to_skip = 0

    def look(self, read: Callable[[], int]) -> int:
        if self._skipped < self._to_skip:
            self._skipped += 1
            raise BlockingIOError
        self._skipped = 0
        until = self._now_ns() + MOUNT_LOOK_NS
        while self._now_ns() < until:
            try:
                found = read()
            except BlockingIOError:
                continue
            self._to_skip = 0
            return found
        self._to_skip = min(2 * self._to_skip + 1, MOUNT_LOOKS_SKIPPED_MAX)
        raise BlockingIOError
