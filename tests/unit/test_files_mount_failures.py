# SPDX-License-Identifier: Apache-2.0
"""The log of a mount says why operations failed, and not for ever."""

from __future__ import annotations

import errno

import pytest

from repl.files.mount.failures import Failures
from repl.files.mount.wire import Op, Request
from repl.files.values import FopError
from repl.limits import MOUNT_FAILURES_S, MOUNT_FAILURES_TOLD_MAX


def test_failures_of_the_volume_are_told_with_their_reason_and_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    failures = Failures(lambda: now[0])
    request = Request(Op.OPEN, 1, 1, 0, 0, 0, b"")
    failures.note(request, FopError(errno.ENOENT, "brick"))
    assert caplog.messages == []
    for _ in range(MOUNT_FAILURES_TOLD_MAX + 5):
        failures.note(request, FopError(errno.EIO, "the copies differ"))
    assert caplog.messages == ["open failed: Input/output error: the copies differ"] * MOUNT_FAILURES_TOLD_MAX
    now[0] = MOUNT_FAILURES_S + 1
    failures.note(request, OSError(errno.ENOSPC, "No space left on device"))
    assert caplog.messages[-1] == "open failed: No space left on device (5 more before)"
