# SPDX-License-Identifier: Apache-2.0
"""The kernel's machine loses power under load: what is on its disk is read by us and by drbdmeta alike.

The peer's disk (ours) is the measure: every block in which the two disks differ has to be marked by what the replay of
the kernel's activity log gives, or in our own bitmap.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from repl.drbd.layout import MetadataKind
from repl.node import disk as node_disk
from repl.node.disk import DiskPlace
from tests.lib.interop import KernelLab, KernelPair
from tests.lib.tools import require, require_root
from tests.sim.drbdmeta_judge import Case, File, judge

BLOCK = 4096
WRITES = 40


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[KernelLab]:
    shared = tmp_path / "shared"
    shared.mkdir()
    lab = KernelLab(shared=shared)
    try:
        yield lab
    finally:
        lab.close()


@pytest.mark.interop
def test_disk_of_a_kernel_primary_that_lost_power_is_replayed_as_drbdmeta_does(lab: KernelLab, tmp_path: Path) -> None:
    require("drbdmeta")
    require_root()
    pair = KernelPair(lab, tmp_path, survives=True)
    try:
        pair.kernel_primary()
        pair.kernel.load_start()
        pair.wait_load(WRITES)
        lab.guest.kill()
        pair.wait_ours(connection="WFConnection")
        pair.ours.call("down")
    finally:
        pair.ours.close()
    image = Path(pair.kernel.backing)
    size = image.stat().st_size
    file = File(image, size)
    place = DiskPlace(file, file, MetadataKind.INTERNAL)
    found, where = node_disk.find_superblock(place)
    assert not found.clean and found.uuids.current & 1, "it died as Primary"
    begin = where.bitmap_byte
    case = Case("kernel", file.pread(begin, size - begin), begin, size, MetadataKind.INTERNAL, where, 0)
    assert judge([case], tmp_path) == []

    prepared = node_disk.prepare(place, data_fd=0, md_fd=0)
    assert prepared.superblock.uuids == found.uuids and prepared.replayed_extents > 0
    marked = int.from_bytes(file.pread(where.bitmap_byte, where.bitmap_bytes), "little")
    with pair.ours.disk.open("rb") as ours:
        for block in range(found.la_size_sectors * 512 // BLOCK):
            ours.seek(block * BLOCK)
            if file.pread(block * BLOCK, BLOCK) != ours.read(BLOCK):
                assert marked >> block & 1, f"P4: block {block} differs and is not marked"
    file.close()
