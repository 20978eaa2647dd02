# SPDX-License-Identifier: Apache-2.0
"""How long a mount looks for the next request before it sleeps."""

from __future__ import annotations

import pytest

from repl.files.mount.patience import Patience
from repl.limits import MOUNT_LOOK_NS, MOUNT_LOOKS_SKIPPED_MAX

STEP_NS = 1000


class Kernel:
    """Has the next request from ``at_ns`` on; each look at the clock takes a microsecond."""

    def __init__(self) -> None:
        self.ns = 0
        self.at_ns = 0
        self.reads = 0

    def now_ns(self) -> int:
        self.ns += STEP_NS
        return self.ns

    def read(self) -> int:
        self.reads += 1
        if self.ns < self.at_ns:
            raise BlockingIOError
        return 40

    def comes_after(self, ns: int) -> None:
        self.at_ns = self.ns + ns


def test_a_request_that_comes_soon_is_found() -> None:
    kernel = Kernel()
    patience = Patience(kernel.now_ns)
    for _ in range(3):
        kernel.comes_after(MOUNT_LOOK_NS // 2)
        assert patience.look(kernel.read) == 40


def test_a_look_ends_when_nothing_comes() -> None:
    kernel = Kernel()
    kernel.comes_after(1 << 40)
    with pytest.raises(BlockingIOError):
        Patience(kernel.now_ns).look(kernel.read)
    assert MOUNT_LOOK_NS <= kernel.ns <= MOUNT_LOOK_NS + 2 * STEP_NS


def test_looks_in_vain_get_rare_and_one_that_finds_something_ends_that() -> None:
    kernel = Kernel()
    patience = Patience(kernel.now_ns)
    kernel.comes_after(1 << 40)
    looked = []
    for number in range(1000):
        before = kernel.reads
        with pytest.raises(BlockingIOError):
            patience.look(kernel.read)
        if kernel.reads > before:
            looked.append(number)
    gaps = [after - before for before, after in zip(looked, looked[1:], strict=False)]
    assert gaps[:3] == [2, 4, 8] and max(gaps) == gaps[-1] == MOUNT_LOOKS_SKIPPED_MAX + 1
    kernel.at_ns = 0
    found = 0
    for _ in range(MOUNT_LOOKS_SKIPPED_MAX + 3):
        try:
            found += patience.look(kernel.read) == 40
        except BlockingIOError:
            assert not found
    assert found >= 3
