# SPDX-License-Identifier: Apache-2.0
"""The health check: a small file is written and read now and then; a disk that fails or hangs stops the brick.

Input: the brick, interval and timeout in seconds; output: ``failed`` is called once with the reason.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from repl.files.translators.posix import calls
from repl.files.translators.posix.brick import Brick
from repl.files.translators.posix.lane import Lane
from repl.files.translators.posix.names import HIDDEN

_FILE = f"{HIDDEN}/health_check"


def check(brick: Brick, text: bytes) -> None:
    """Raises ``OSError``."""
    fd = calls.open(_FILE, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=brick.root)
    try:
        calls.pwritev(fd, [text], 0)
        os.fdatasync(fd)
        if os.pread(fd, len(text) + 1, 0) != text:
            raise OSError(5, "what was written does not come back")
    finally:
        os.close(fd)


async def watch(
    brick: Brick, lane: Lane, *, interval: float, timeout: float, wall_ns: Callable[[], int],
    failed: Callable[[str], None],
) -> None:  # fmt: skip
    """Runs until the disk fails or it is cancelled."""
    while True:
        await asyncio.sleep(interval)
        try:
            async with asyncio.timeout(timeout or None):
                await lane.data(check, brick, str(wall_ns()).encode())
        except TimeoutError:
            failed(f"health check: the disk did not answer for {timeout:g} s")
            return
        except OSError as error:
            failed(f"health check: {error.strerror}")
            return
