# SPDX-License-Identifier: Apache-2.0
"""A guest with the kernel's DRBD for the tests of a process, and a fresh pair of nodes for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.interop import KernelLab, PairMaker


@pytest.fixture(scope="session")
def lab() -> Iterator[KernelLab]:
    lab = KernelLab()
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture
def make_pair(lab: KernelLab, tmp_path: Path) -> Iterator[PairMaker]:
    """At the end both sides are taken down, and the kernel must not have complained."""
    maker = PairMaker(lab, tmp_path)
    try:
        yield maker
    finally:
        complaints = []
        if maker.pair is not None:
            print(maker.pair.report())
            complaints = maker.pair.kernel.complaints(allowed=maker.allowed)
            maker.pair.close()
    assert complaints == []
