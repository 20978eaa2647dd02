# SPDX-License-Identifier: Apache-2.0
"""The soak itself: a short one passes, and it notices what it is there to notice."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from tests.lib.cluster import BOB, NODES
from tests.lib.load import TaggedRegion
from tests.lib.tagged import SECTOR_BYTES, Tag, encode_sector
from tests.lib.tools import require_engine
from tests.soak.faults import Faults
from tests.soak.plan import CLIENT, FAULTS, LINK, NODE, Step, of_families, steps
from tests.soak.soak import CLIENTS, HOT_EXTENTS, SIZE_MIB, Settings, Soak

SEED = 11
SMALL_MIB = 32
BLOCK_BYTES = 4096
PLANTED_BYTES = 256 * 1024
AL_EXTENT_MIB = 4


def small(
    seconds: float, say: Callable[[str], None] = print, *, kind: type[Soak] = Soak, **options: Any
) -> Soak:
    require_engine()
    return kind(Settings(SEED, seconds, pause_s=(0.1, 0.3), size_mib=SMALL_MIB, **options), say)


def test_short_soak_survives_faults_of_link_nodes_and_clients() -> None:
    soak = small(15, families=(LINK, NODE, CLIENT))
    with soak.cluster:
        result = soak.run()
        assert sum(result.faults.values()) >= 3 and result.audits >= 1 and result.writes > 100


def plant(soak: Soak, *names: str) -> None:
    """Over the end of the last client's region: more than it writes again before the audit."""
    region = soak._regions[CLIENTS - 1]
    end = region.offset_sectors * SECTOR_BYTES + region.blocks * BLOCK_BYTES
    for name in names:
        with soak.cluster.nodes[name].image.open("r+b") as image:
            image.seek(end - PLANTED_BYTES)
            image.write(b"?" * PLANTED_BYTES)


@pytest.mark.parametrize(
    ("names", "finding"), [((BOB,), "the disks differ"), (NODES, "sector [0-9]+: alien")]
)
def test_soak_notices_content_that_nobody_wrote(names: tuple[str, ...], finding: str) -> None:
    """On one disk, and the same on both."""

    def say(line: str) -> None:
        if " vanish " in line or " flush-storm " in line:
            plant(soak, *names)

    soak = small(4, say, families=(CLIENT,))
    with soak.cluster, pytest.raises(AssertionError, match=finding):
        soak.run()


class WithALostWrite(Soak):
    """Before each audit an older write of a client stands where a newer one was acknowledged, on both disks."""

    def _audit(self) -> None:
        for client in self._clients:
            client.pause(30)
        region = self._regions[0]
        block = next(b for b, request in region.acknowledged.items() if request > 1)
        at = region.offset_sectors + block * (BLOCK_BYTES // SECTOR_BYTES)
        old = encode_sector(Tag(SEED, region.writer.writer, 1, at))
        for name in NODES:
            with self.cluster.nodes[name].image.open("r+b") as image:
                image.seek(at * SECTOR_BYTES)
                image.write(old)
        self._resume()
        super()._audit()


def test_soak_notices_a_lost_write() -> None:
    soak = small(3, kind=WithALostWrite, families=(CLIENT,))
    with soak.cluster, pytest.raises(AssertionError, match="tagged 1, not one of"):
        soak.run()


def test_plan_is_the_seeds_and_brings_every_fault_before_one_comes_again() -> None:
    def first(seed: int) -> list[Step]:
        return list(itertools.islice(steps(seed, of_families((LINK, NODE)), (1, 2)), 60))

    assert first(1) == first(1) != first(2)
    wanted = {fault.name for fault in FAULTS if fault.family in (LINK, NODE)}
    assert {step.fault.name for step in first(1)[: len(wanted)]} == wanted


def test_every_fault_of_the_plan_can_be_provoked() -> None:
    soak = small(1)
    with soak.cluster:
        region = TaggedRegion(run=SEED, writer=1, offset_sectors=0, blocks=1)
        assert Faults(soak.cluster, region, [], SEED).names == {fault.name for fault in FAULTS}
    assert SIZE_MIB > HOT_EXTENTS * AL_EXTENT_MIB  # some become cold while others become hot
