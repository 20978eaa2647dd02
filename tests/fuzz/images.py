# SPDX-License-Identifier: Apache-2.0
"""Fuzzing of what is found on a disk at attach: superblock, activity log and bitmap of a damaged image.

Input: one byte chooses the image (fresh ones and those of tests/vectors), one says what is made good again, then
patches of one byte region, two bytes offset, one byte length and the bytes.  Everything lies in memory, sparse.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from repl.drbd import activity_log, superblock
from repl.drbd.layout import MetadataKind
from repl.engine.commands import Attach
from repl.errors import DiskFailed, MetadataError
from repl.node import disk as node_disk
from repl.node.disk import DiskPlace
from repl.node.settings import VolumeSettings
from repl.node.volume import Volume
from tests.wire.vector_files import metadata_files, metadata_image

BLOCK = 4096
PATCHES_MAX = 64
KINDS = {"internal": MetadataKind.INTERNAL, "flex-external": MetadataKind.FLEXIBLE, "indexed": MetadataKind.INDEXED}


@dataclass
class MemoryFile:
    """A sparse device; also a ``repl.node.disk.BlockFile``."""

    size_bytes: int
    name: str = "memory"
    blocks: dict[int, bytes] = field(default_factory=dict)
    moved_bytes: int = 0

    def copy(self) -> MemoryFile:
        return MemoryFile(self.size_bytes, self.name, dict(self.blocks))

    def pread(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        first, last = offset // BLOCK, -(-(offset + length) // BLOCK)
        data = b"".join(self.blocks.get(n, bytes(BLOCK)) for n in range(first, last))
        return data[offset - first * BLOCK :][:length]

    def pwrite(self, offset: int, data: bytes) -> None:
        self._check(offset, len(data))
        at = 0
        while at < len(data):
            number, start = divmod(offset + at, BLOCK)
            part = data[at : at + BLOCK - start]
            old = self.blocks.get(number, bytes(BLOCK))
            self.blocks[number] = old[:start] + part + old[start + len(part) :]
            at += len(part)

    def flush(self) -> None:
        pass

    def _check(self, offset: int, length: int) -> None:
        assert offset >= 0 and length >= 0, f"access at {offset} of {length} bytes"
        if offset + length > self.size_bytes:
            raise DiskFailed(f"{self.name}: beyond the end.", errno=5)
        self.moved_bytes += length
        # A search for moved metadata reads the device once (repl/node/moved.py); this attaches twice.
        assert self.moved_bytes <= (1 << 26) + 4 * self.size_bytes, "too much is read and written"


@dataclass(frozen=True)
class Base:
    """An undamaged image: the device with the metadata, and where its regions lie (offset, bytes)."""

    md: MemoryFile
    data_bytes: int
    kind: MetadataKind
    index: int
    regions: tuple[tuple[int, int], ...]  # superblock, activity log, bitmap


def fresh(kind: MetadataKind, device_bytes: int, *, al_stripe_size_4k: int = 8) -> Base:
    md = MemoryFile(device_bytes)
    data = MemoryFile(64 << 20) if kind is not MetadataKind.INTERNAL else md
    place = DiskPlace(data, md, kind)
    node_disk.create_metadata(place, device_uuid=0x1234567890ABCDEF, al_stripe_size_4k=al_stripe_size_4k)
    where = node_disk.find_superblock(place)[1]
    regions = ((where.superblock_byte, BLOCK), (where.al_byte, where.al_bytes), (where.bitmap_byte, where.bitmap_bytes))
    return Base(MemoryFile(md.size_bytes, blocks=md.blocks), data.size_bytes, kind, 0, regions)


@functools.cache
def bases() -> tuple[Base, ...]:
    found = [fresh(MetadataKind.INTERNAL, 2 << 20), fresh(MetadataKind.FLEXIBLE, 1 << 20)]
    for path in metadata_files():
        image = metadata_image(path.name)
        md = MemoryFile(image.device_bytes)
        regions = []
        for at, content in (
            (image.superblock_at, image.superblock),
            (image.al_at, image.activity_log),
            (image.bitmap_at, image.bitmap),
        ):
            md.pwrite(at, bytes(content))
            regions.append((at, len(content)))
        kind = KINDS[image.layout]
        data_bytes = image.device_bytes if kind is MetadataKind.INTERNAL else 1 << 40
        found.append(Base(md, data_bytes, kind, image.index, tuple(regions)))
    return tuple(found)


def fuzz_attach(data: bytes) -> None:
    if len(data) < 2:
        return
    base = bases()[data[0] % len(bases())]
    md = base.md.copy()
    _patch(md, base, data[2:])
    if data[1] & 1:
        _repair_log(md, base.regions[1])
    backing = md if base.kind is MetadataKind.INTERNAL else MemoryFile(base.data_bytes)
    place = DiskPlace(backing, md, base.kind, base.index)
    limit = 0 if data[1] & 2 else 64
    try:
        prepared = node_disk.prepare(place, size_limit_sectors=limit, data_fd=3, md_fd=4)
    except (MetadataError, DiskFailed) as error:
        assert error.message
        return
    volume = Volume(VolumeSettings(0, size_sectors=limit))
    size = min(prepared.superblock.la_size_sectors or prepared.usable_sectors, prepared.usable_sectors)
    volume.attach_disk(prepared, size)
    check_attach(volume.attach_command(prepared, size, all_bits=False), base)
    assert volume.superblock is not None
    superblock.parse(volume.superblock.serialise(), where="what would be written")
    # What the replay has left is clean: a second attach changes nothing.
    again = node_disk.prepare(place, size_limit_sectors=limit, data_fd=3, md_fd=4)
    assert again.replayed_extents == 0 and again.superblock == prepared.superblock


def _patch(md: MemoryFile, base: Base, data: bytes) -> None:
    at = count = 0
    while at + 4 <= len(data) and count < PATCHES_MAX:
        start, length = base.regions[data[at] % 3]
        offset = int.from_bytes(data[at + 1 : at + 3], "big") % max(length, 1)
        content = data[at + 4 : at + 4 + data[at + 3]]
        content = content[: max(0, length - offset)]
        md.pwrite(start + offset, content)
        at += 4 + data[at + 3]
        count += 1


def _repair_log(md: MemoryFile, region: tuple[int, int]) -> None:
    start, length = region
    for at in range(start, start + min(length, 16 * BLOCK), BLOCK):
        block = md.pread(at, BLOCK)
        if not any(block):
            continue
        block = activity_log.AL_MAGIC.to_bytes(4, "big") + block[4:8] + bytes(4) + block[12:]
        md.pwrite(at, block[:8] + activity_log.crc32c(block).to_bytes(4, "big") + block[12:])


def check_attach(attach: Attach, base: Base) -> None:
    """Nothing that the engine is told to use lies outside the device or on something else."""
    areas = [
        (attach.superblock_offset, BLOCK),
        (attach.al_offset, attach.al_stripes * attach.al_stripe_size_4k * BLOCK),
        (attach.bitmap_offset, attach.bitmap_bytes),
    ]
    if base.kind is MetadataKind.INTERNAL:
        areas.append((0, attach.size_bytes))
    areas.sort()
    assert 0 < attach.size_bytes <= base.data_bytes and attach.size_bytes % 512 == 0
    assert -(-attach.size_bytes // BLOCK) <= attach.bitmap_bytes * 8, "the bitmap is too short"
    for (start, length), (following, _) in zip(areas, areas[1:], strict=False):
        assert start + length <= following, "areas overlap"
    assert areas[0][0] >= 0 and areas[-1][0] + areas[-1][1] <= base.md.size_bytes
    assert 1 <= attach.al_extents <= activity_log.SLOTS_MAX
