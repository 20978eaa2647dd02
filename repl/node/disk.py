# SPDX-License-Identifier: Apache-2.0
"""A volume's disk outside the engine: create metadata, check and replay it at attach.

Works on :class:`BlockFile`, which the shell implements on descriptors and the simulator on its disks.  All offsets and
lengths in bytes.  Raises ``MetadataError`` and ``DiskFailed``.  Facts: docs/metadata.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from repl.drbd import activity_log, layout, superblock
from repl.drbd.layout import Layout, MetadataKind
from repl.drbd.superblock import MdFlag, Superblock
from repl.errors import MetadataError
from repl.limits import BLOCK_BYTES, SECTOR_BYTES
from repl.node import moved
from repl.node.moved import LastDisk

if TYPE_CHECKING:
    from repl.node.undo import UndoFound

COPY_BYTES = 1 << 20


class BlockFile(Protocol):
    """Synchronous access to a device or file."""

    size_bytes: int
    name: str

    def pread(self, offset: int, length: int) -> bytes: ...
    def pwrite(self, offset: int, data: bytes) -> None: ...
    def flush(self) -> None: ...
    def refresh_size(self) -> None: ...


@dataclass(frozen=True, slots=True)
class DiskPlace:
    """Where a volume's data and metadata lie.  ``md`` equals ``data`` for internal metadata."""

    data: BlockFile
    md: BlockFile
    kind: MetadataKind
    index: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A disk ready for the engine: clean activity log, bitmap complete on disk.

    ``data_fd``/``md_fd`` are what the engine gets; ``flags`` are enum re_attach_flags bits that depend on the file
    (DIRECT, INLINE).  ``replayed_extents``: extents that the activity log marked as dirty.
    """

    superblock: Superblock
    layout: Layout
    usable_sectors: int
    data_fd: int
    md_fd: int
    flags: int = 0
    replayed_extents: int = 0
    undo: UndoFound | None = None  # the files of an undo that exists
    discard_granularity: int = 0  # bytes; 0: not a block device that discards


def find_superblock(place: DiskPlace) -> tuple[Superblock, Layout]:
    """Read the superblock and compute the layout that it implies; refuse anything that does not fit exactly."""
    position = layout.superblock_position(place.kind, place.md.size_bytes, place.index)
    block = place.md.pread(position, BLOCK_BYTES)
    found = superblock.parse(block, where=f"{place.md.name} at byte {position}")
    stripes, stripe_size = found.stripes
    implied = layout.calculate(
        place.kind,
        place.md.size_bytes,
        index=place.index,
        al_stripes=stripes,
        al_stripe_size_4k=stripe_size,
    )
    superblock.verify_against_layout(found, implied, backing_bytes=place.data.size_bytes)
    return found, implied


def usable_sectors(place: DiskPlace, place_layout: Layout) -> int:
    """Sectors of the backing disk that can be replicated."""
    backing = None if place.kind is MetadataKind.INTERNAL else place.data.size_bytes
    return place_layout.usable_sectors(backing)


def measure(place: DiskPlace, *, al_stripes: int, al_stripe_size_4k: int) -> tuple[Layout, int]:
    """Where the metadata belongs on the disk as large as it is now, and the sectors that can be replicated."""
    place.data.refresh_size()
    if place.md is not place.data:
        place.md.refresh_size()
    found = layout.calculate(
        place.kind,
        place.md.size_bytes,
        index=place.index,
        al_stripes=al_stripes,
        al_stripe_size_4k=al_stripe_size_4k,
    )
    return found, usable_sectors(place, found)


def create_metadata(
    place: DiskPlace, *, device_uuid: int = 0, al_stripes: int = 1, al_stripe_size_4k: int = 8
) -> Superblock:
    """Write fresh metadata: bitmap and activity log first, the superblock last."""
    made = layout.calculate(
        place.kind,
        place.md.size_bytes,
        index=place.index,
        al_stripes=al_stripes,
        al_stripe_size_4k=al_stripe_size_4k,
    )
    _zero(place.md, made.bitmap_byte, made.bitmap_bytes)
    _initialize_log(place.md, made)
    place.md.flush()
    fresh = superblock.create(made, device_uuid=device_uuid)
    place.md.pwrite(made.superblock_byte, fresh.serialise())
    place.md.flush()
    return fresh


def replay(place: DiskPlace, found: Superblock, where: Layout) -> tuple[Superblock, int]:
    """Apply the activity log if the metadata is unclean: bitmap first, then the log, then the superblock.

    Returns the superblock as it is on disk then and the number of extents that were marked.
    """
    if found.clean:
        if found.all_dirty:  # metadata that was being moved: what stands there may never have been a log
            _initialize_log(place.md, where)
            place.md.flush()
        return found, 0
    primary = MdFlag.PRIMARY_IND in found.flags
    log = place.md.pread(where.al_byte, where.al_bytes)
    blocks = [log[at : at + BLOCK_BYTES] for at in range(0, len(log), BLOCK_BYTES)]
    stripes, stripe_size = found.stripes
    result = activity_log.replay(blocks, al_stripes=stripes, al_stripe_size_4k=stripe_size, primary_ind=primary)
    marks = activity_log.apply(result, bitmap_bits=found.bitmap_bits, primary_ind=primary)
    if place.data is not place.md:
        # What a dead process left in the cache: a resync would clear its bits once the peer has it, not we.
        place.data.flush()
    _write_marks(place.md, where, marks)
    if marks.ranges:
        place.md.flush()
    _reset_log(place.md, where, blocks[0], slots=found.al_extents)
    clean = superblock.mark_clean(found)
    place.md.pwrite(where.superblock_byte, clean.serialise())
    place.md.flush()
    return clean, len(result.extents) if primary else 0


def prepare(
    place: DiskPlace,
    *,
    size_limit_sectors: int = 0,
    data_fd: int,
    md_fd: int,
    flags: int = 0,
    last: LastDisk | None = None,
) -> Prepared:
    """Everything that has to happen before the engine may use the disk; ``last``: what is known of its last use."""
    try:
        found, where = find_superblock(place)
    except MetadataError as error:
        if place.kind is not MetadataKind.INTERNAL:
            raise
        old = moved.at_last_size(place, last) if last is not None else None
        if old is None:
            raise moved.refusal(place, error, last) from None
        clean, extents = replay(place, *old)
        clean, where = moved.move(place, clean, old[1])
        found = clean
    else:
        clean, extents = replay(place, found, where)
    usable = usable_sectors(place, where)
    if size_limit_sectors:
        if size_limit_sectors > usable:
            raise MetadataError(
                f"{place.data.name}: size {size_limit_sectors} sectors is configured, the disk has room for {usable}.",
                advice="Correct the size option or use a larger disk.",
            )
        usable = size_limit_sectors
    if found.la_size_sectors > usable and MdFlag.CONSISTENT in found.flags:
        raise MetadataError(
            f"{place.data.name}: the device was {found.la_size_sectors} sectors, there is room for {usable} now.",
            advice="A disk with good data is never shrunk; restore its size.",
        )
    return Prepared(clean, where, usable, data_fd, md_fd, flags, extents)


def _write_marks(md: BlockFile, where: Layout, marks: activity_log.Marks) -> None:
    room = where.bitmap_bytes
    for begin, length in marks.ranges:
        stop = min(begin + length, room)
        for offset in range(begin, stop, COPY_BYTES):
            _set_bytes(md, where.bitmap_byte + offset, min(COPY_BYTES, stop - offset))


def _set_bytes(md: BlockFile, offset: int, length: int) -> None:
    """Set every bit of these bytes, in whole blocks."""
    first = offset - offset % BLOCK_BYTES
    end = -(-(offset + length) // BLOCK_BYTES) * BLOCK_BYTES
    end = min(end, md.size_bytes - md.size_bytes % SECTOR_BYTES)
    old = bytearray(md.pread(first, end - first))
    old[offset - first : offset - first + length] = b"\xff" * length
    md.pwrite(first, bytes(old))


def _initialize_log(md: BlockFile, where: Layout) -> None:
    block = activity_log.INITIALISED_BLOCK
    blocks = where.al_bytes // BLOCK_BYTES
    per_write = COPY_BYTES // BLOCK_BYTES
    for first in range(0, blocks, per_write):
        count = min(per_write, blocks - first)
        md.pwrite(where.al_byte + first * BLOCK_BYTES, block * count)


def _reset_log(md: BlockFile, where: Layout, first_block: bytes, *, slots: int) -> None:
    """Initialize a log that was in use, so that a crash at any moment leaves one that can be replayed again.

    A log without any transaction may have its first block torn and no other one (that is how the first transaction of
    all looks when it was torn), so the first block holds a transaction until the others are done, and goes last.
    """
    try:
        holds = activity_log.decode(first_block).type is activity_log.TransactionType.UPDATE
    except MetadataError:
        holds = False
    if not holds:
        placeholder = activity_log.Transaction(0, activity_log.TransactionType.UPDATE, context_size=slots)
        md.pwrite(where.al_byte, placeholder.encode())
        md.flush()
    block = activity_log.INITIALISED_BLOCK
    blocks = where.al_bytes // BLOCK_BYTES
    per_write = COPY_BYTES // BLOCK_BYTES
    for first in range(1, blocks, per_write):
        md.pwrite(where.al_byte + first * BLOCK_BYTES, block * min(per_write, blocks - first))
    md.flush()
    md.pwrite(where.al_byte, block)
    md.flush()


def _zero(md: BlockFile, offset: int, length: int) -> None:
    for at in range(0, length, COPY_BYTES):
        md.pwrite(offset + at, bytes(min(COPY_BYTES, length - at)))


def mark_attached(found: Superblock, *, size_sectors: int, al_extents: int, al_updates: bool = True) -> Superblock:
    """The superblock's fixed part while the disk is in use."""
    used = superblock.mark_unclean(found)
    flags = used.flags & ~MdFlag.AL_DISABLED if al_updates else used.flags | MdFlag.AL_DISABLED
    return replace(used, flags=flags, la_size_sectors=size_sectors, al_extents=al_extents)
