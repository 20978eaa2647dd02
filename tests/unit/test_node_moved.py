# SPDX-License-Identifier: Apache-2.0
"""Internal metadata of a device that grew while nobody looked, and forged ones among the user's data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repl.drbd import superblock
from repl.drbd.layout import MetadataKind, calculate
from repl.drbd.superblock import MdFlag
from repl.drbd.uuids import Uuids
from repl.errors import MetadataError
from repl.node import disk as node_disk
from repl.node.disk import DiskPlace, Prepared
from repl.node.moved import LastDisk
from tests.fuzz.images import MemoryFile

MIB = 1 << 20
BEFORE, AFTER = 4 * MIB, 8 * MIB
DEVICE = 0x1234
DIRTY = bytes((0x81, 0, 0x10))


def device(size: int = BEFORE, *, uuid: int = DEVICE) -> MemoryFile:
    """One with good data and some dirty bits."""
    disk = MemoryFile(size, "disk")
    place = DiskPlace(disk, disk, MetadataKind.INTERNAL)
    node_disk.create_metadata(place, device_uuid=uuid)
    found, where = node_disk.find_superblock(place)
    used = replace(
        found,
        la_size_sectors=where.usable_sectors(),
        uuids=Uuids(0x1110, 0x2220, 0, 0),
        flags=found.flags | MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE,
    )
    disk.pwrite(where.superblock_byte, used.serialise())
    disk.pwrite(where.bitmap_byte, DIRTY)
    return disk


def grown(disk: MemoryFile, size: int = AFTER) -> MemoryFile:
    disk.size_bytes = size
    return disk


def attach(disk: MemoryFile, last: LastDisk | None) -> Prepared:
    place = DiskPlace(disk, disk, MetadataKind.INTERNAL)
    return node_disk.prepare(place, data_fd=3, md_fd=3, last=last)


def forge(disk: MemoryFile, size: int, *, uuid: int = 0xBAD) -> None:
    """What a guest may write into its own data: a superblock that says it is the end of a smaller device."""
    where = calculate(MetadataKind.INTERNAL, size)
    false = replace(
        superblock.create(where, device_uuid=uuid),
        la_size_sectors=where.usable_sectors(),
        uuids=Uuids(0x6660, 0, 0, 0),
        flags=MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE | MdFlag.AL_CLEAN,
    )
    disk.pwrite(where.superblock_byte, false.serialise())


def test_metadata_of_a_grown_device_move_with_every_bit_when_its_last_size_is_known() -> None:
    disk = grown(device())
    prepared = attach(disk, LastDisk(BEFORE, DEVICE))
    assert prepared.superblock.uuids.current == 0x1110
    assert disk.pread(prepared.layout.bitmap_byte, 3) == DIRTY
    assert prepared.layout.superblock_byte == AFTER - 4096


@pytest.mark.parametrize("size", [BEFORE, BEFORE // 2, 2 * MIB])
def test_without_a_record_nothing_is_taken_and_the_way_out_is_named(size: int) -> None:
    disk = device(size)
    with pytest.raises(MetadataError) as refused:
        attach(grown(disk), None)
    assert f"superblock of a device of {size} bytes" in refused.value.message
    assert f"check-resize --from {size}" in refused.value.advice
    assert attach(disk, LastDisk(size)).superblock.uuids.current == 0x1110


@pytest.mark.parametrize("last", [None, LastDisk(AFTER, DEVICE), LastDisk(BEFORE, DEVICE), LastDisk(3 * MIB, DEVICE)])
def test_forged_superblock_is_never_used_when_the_real_one_is_damaged(last: LastDisk | None) -> None:
    disk = device(AFTER)
    forge(disk, 3 * MIB)
    forge(disk, BEFORE)
    assert attach(disk, last).superblock.uuids.current == 0x1110, "the real one is there"
    disk.pwrite(AFTER - 4096, bytes(4096))
    content = dict(disk.blocks)
    with pytest.raises(MetadataError):
        attach(disk, last)
    assert disk.blocks == content, "nothing is written"


def test_forged_superblock_behind_the_real_one_of_a_grown_device_is_not_preferred() -> None:
    """A search backwards from the end would meet this one first."""
    disk = grown(device(), AFTER)
    forge(disk, 6 * MIB)
    assert attach(disk, LastDisk(BEFORE, DEVICE)).superblock.uuids.current == 0x1110


def test_another_disk_of_the_recorded_size_is_refused() -> None:
    disk = grown(device(uuid=0x7777))
    with pytest.raises(MetadataError) as refused:
        attach(disk, LastDisk(BEFORE, DEVICE))
    assert f"{BEFORE} bytes large at its last use" in refused.value.message
