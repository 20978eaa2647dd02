# SPDX-License-Identifier: Apache-2.0
"""Damaged metadata at attach: each kind is refused with the disk, the place and what is wrong, and nothing is written;
or it does no harm, because it says nothing that matters."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest

from repl.drbd import activity_log, superblock
from repl.drbd.activity_log import INITIALISED_BLOCK, Transaction, TransactionType
from repl.drbd.layout import Layout, MetadataKind
from repl.drbd.superblock import Magic, MdFlag, Superblock
from repl.drbd.uuids import Uuids
from repl.errors import MetadataError
from repl.node import disk as node_disk
from repl.node.disk import DiskPlace, Prepared
from tests.fuzz.images import MemoryFile
from tests.unit.test_node_moved import AFTER, BEFORE, device

BLOCK = 4096
ONES_32, ONES_64 = (1 << 32) - 1, (1 << 64) - 1
# Offsets of docs/metadata.md's layout.
LA_SIZE, FLAGS, MAGIC, MD_SIZE, AL_OFFSET, AL_EXTENTS, BM_OFFSET, BIT_BYTES, MAX_BIO, STRIPES, STRIPE_SIZE = (
    0, 56, 60, 64, 68, 72, 76, 80, 84, 88, 92,
)  # fmt: skip


def place_of(disk: MemoryFile) -> DiskPlace:
    return DiskPlace(disk, disk, MetadataKind.INTERNAL)


def attach(disk: MemoryFile) -> Prepared:
    return node_disk.prepare(place_of(disk), data_fd=3, md_fd=3)


def refused(disk: MemoryFile, words: str) -> None:
    before = dict(disk.blocks)
    with pytest.raises(MetadataError) as error:
        attach(disk)
    assert words in error.value.message, error.value.message
    assert disk.blocks == before, "something was written"


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (bytes(BLOCK), "no metadata found"),
        (b"\xff" * BLOCK, "no metadata found"),
        (random.Random(4).randbytes(BLOCK), "no metadata found"),
        (b"\xeb\x58\x90" + bytes(507) + b"\x55\xaa" + bytes(BLOCK - 512), "no metadata found"),
    ],
    ids=["zeroes", "ones", "noise", "boot-sector"],
)
def test_place_of_the_superblock_holds_something_else(block: bytes, words: str) -> None:
    disk = device()
    disk.pwrite(BEFORE - BLOCK, block)
    refused(disk, words)


@pytest.mark.parametrize(("size", "words"), [(AFTER, "sectors, only"), (512 << 20, "expected")])
def test_superblock_of_a_larger_device_is_refused(size: int, words: str) -> None:
    """Of a smaller one with the same layout nothing tells it apart: the generations do, in the handshake."""
    disk = device()
    disk.pwrite(BEFORE - BLOCK, device(size).pread(size - BLOCK, BLOCK))
    refused(disk, words)


@pytest.mark.parametrize(
    ("offset", "width", "value", "words"),
    [
        (LA_SIZE, 8, ONES_64, "no room"),
        (LA_SIZE, 8, BEFORE // 512 + 1, "sectors"),
        (MAGIC, 4, 0, "no metadata found"),
        (MAGIC, 4, ONES_32, "no metadata found"),
        (MAGIC, 4, Magic.V07, "v07"),
        (MAGIC, 4, Magic.V09, "DRBD 9"),
        (MD_SIZE, 4, 0, "md_size"),
        (MD_SIZE, 4, ONES_32, "md_size"),
        (AL_OFFSET, 4, 0, "al_offset"),
        (AL_OFFSET, 4, ONES_32, "al_offset"),
        (AL_OFFSET, 4, 0x80000000, "al_offset"),
        (BM_OFFSET, 4, 0, "bm_offset"),
        (BM_OFFSET, 4, ONES_32, "bm_offset"),
        (BM_OFFSET, 4, 0x7FFFFFFF, "bm_offset"),
        (BIT_BYTES, 4, 0, "bytes per bitmap bit"),
        (BIT_BYTES, 4, 8192, "bytes per bitmap bit"),
        (BIT_BYTES, 4, ONES_32, "bytes per bitmap bit"),
        (STRIPES, 4, 0, "stripes"),
        (STRIPE_SIZE, 4, 0, "stripes"),
        (STRIPES, 4, ONES_32, "activity log"),
        (STRIPE_SIZE, 4, ONES_32, "activity log"),
        (STRIPES, 4, 2, "md_size"),
    ],
)
def test_field_that_cannot_be_is_refused(offset: int, width: int, value: int, words: str) -> None:
    disk = device()
    disk.pwrite(BEFORE - BLOCK + offset, int(value).to_bytes(width, "big"))
    refused(disk, words)


@pytest.mark.parametrize(
    ("offset", "value"), [(AL_EXTENTS, 0), (AL_EXTENTS, ONES_32), (MAX_BIO, 0), (MAX_BIO, ONES_32), (FLAGS, ONES_32)]
)
def test_field_that_is_only_a_hint_does_no_harm(offset: int, value: int) -> None:
    disk = device()
    disk.pwrite(BEFORE - BLOCK + offset, value.to_bytes(4, "big"))
    try:
        prepared = attach(disk)
    except MetadataError as error:
        assert error.message
        return
    superblock.parse(prepared.superblock.serialise())
    assert prepared.usable_sectors * 512 < BEFORE


# ---- the activity log of a Primary that crashed ----


def crashed(*, is_primary: bool = True) -> tuple[MemoryFile, Superblock, Layout]:
    disk = device(64 << 20)
    found, where = node_disk.find_superblock(place_of(disk))
    flags = found.flags | (MdFlag.PRIMARY_IND if is_primary else 0)
    found = replace(superblock.mark_unclean(found), flags=(flags & ~MdFlag.AL_CLEAN), al_extents=67)
    disk.pwrite(where.superblock_byte, found.serialise())
    return disk, found, where


def write_log(disk: MemoryFile, where: Layout, *blocks: bytes) -> None:
    for number in range(where.al_bytes // BLOCK):
        content = blocks[number] if number < len(blocks) else INITIALISED_BLOCK
        disk.pwrite(where.al_byte + number * BLOCK, content)


def update(number: int, *extents: int) -> bytes:
    return Transaction(
        number, TransactionType.UPDATE, updates=tuple(enumerate(extents)), context_size=67
    ).encode()


def marked_bits(disk: MemoryFile, where: Layout) -> int:
    return int.from_bytes(disk.pread(where.bitmap_byte, where.bitmap_bytes), "little").bit_count()


def test_unclean_mark_without_hot_extents_marks_nothing() -> None:
    disk, _, where = crashed()
    write_log(disk, where)
    before = marked_bits(disk, where)
    assert attach(disk).replayed_extents == 0 and marked_bits(disk, where) == before


def test_hot_extents_of_a_crashed_primary_are_marked() -> None:
    disk, _, where = crashed()
    write_log(disk, where, update(0, 3), update(1, 5))
    attach(disk)
    assert marked_bits(disk, where) >= 1024


@pytest.mark.parametrize("damage", ["all-zero", "all-ones", "wrong-crc"])
def test_log_of_a_crashed_primary_that_cannot_be_read_is_refused(damage: str) -> None:
    disk, _, where = crashed()
    good = update(0, 3)
    bad = {"all-zero": bytes(BLOCK), "all-ones": b"\xff" * BLOCK, "wrong-crc": good[:8] + b"\0\1\2\3" + good[12:]}
    write_log(disk, where, *[bad[damage]] * (where.al_bytes // BLOCK))
    refused(disk, "ctivity log")


def test_two_transactions_with_one_number_mark_more_not_less() -> None:
    disk, _, where = crashed()
    write_log(disk, where, update(7, 3), update(7, 5))
    try:
        attach(disk)
    except MetadataError as error:
        assert "ctivity log" in error.message
        return
    assert marked_bits(disk, where) >= 2 * 1024


def test_extent_behind_the_end_of_the_device_is_ignored() -> None:
    disk, _, where = crashed()
    write_log(disk, where, update(0, 1_000_000, 2))
    attach(disk)
    assert marked_bits(disk, where) >= 1024


def test_log_of_a_secondary_does_not_matter_however_it_looks() -> None:
    disk, _, where = crashed(is_primary=False)
    write_log(disk, where, *[b"\xff" * BLOCK] * (where.al_bytes // BLOCK))
    assert attach(disk).replayed_extents == 0


def test_generations_of_value_zero_and_all_ones_are_taken_as_they_are() -> None:
    """They are compared in the handshake, where they fit nobody else's."""
    for value in (0, ONES_64):
        disk = device()
        disk.pwrite(BEFORE - BLOCK + 8, struct.pack(">4Q", value, value, value, value))
        assert attach(disk).superblock.uuids == Uuids(value, value, value, value)


def test_every_flipped_bit_of_a_log_block_is_noticed() -> None:
    block = update(4, 2, 9)
    for bit in range(0, 8 * 120, 7):
        flipped = bytearray(block)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MetadataError):
            activity_log.decode(bytes(flipped))
