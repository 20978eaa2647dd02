# SPDX-License-Identifier: Apache-2.0
"""Where DRBD v08 metadata stands on a device: internal, flexible external, indexed external.

Inputs: device size in bytes, activity log stripes, index.  Outputs: offsets and sizes in sectors
(512 bytes) and bytes.
Raises ``MetadataError`` for devices and parameters that the DRBD 8.4 driver would refuse.
Facts: layouts as written by drbdmeta and checked by the driver at attach.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from repl.errors import MetadataError
from repl.limits import BLOCK_BYTES, SECTOR_BYTES

BLOCK_SECTORS = BLOCK_BYTES // SECTOR_BYTES
BIT_BYTES = 4096
BIT_SECTORS = BIT_BYTES // SECTOR_BYTES
AL_EXTENT_BYTES = 4 * 1024 * 1024
SUPERBLOCK_SECTORS = 8

AL_STRIPES_MAX = 1024
AL_STRIPE_4K_MAX = 16 * 1024 * 1024 * 1024 // BLOCK_BYTES
AL_BYTES_MIN = 32 * 1024
AL_BYTES_MAX = 16 * 1024 * 1024 * 1024
AL_STRIPES_DEFAULT = 1
AL_STRIPE_4K_DEFAULT = 8

INDEXED_SLOT_SECTORS = 262144
INDEX_MAX = 255
# One 4 KiB bitmap block covers 128 MiB, one sector of it 16 MiB.
SECTORS_PER_BITMAP_BLOCK = 262144
SECTORS_PER_BITMAP_SECTOR = 32768

METADATA_DEVICE_SECTORS_MIN = 2048
MD_SIZE_SECTORS_MAX = (1 << 32) - 1
OFFSET_SECTORS_MAX = (1 << 31) - 1


class MetadataKind(Enum):
    """The three layouts."""

    INTERNAL = "internal"
    FLEXIBLE = "flex-external"
    INDEXED = "indexed"


def bitmap_bits(data_sectors: int) -> int:
    """Number of bits of a device of ``data_sectors``."""
    return -(-data_sectors // BIT_SECTORS)


def bitmap_disk_bytes(data_sectors: int) -> int:
    """Bytes of bitmap on disk for a device of ``data_sectors``: whole 4 KiB blocks."""
    bits_per_block = 8 * BLOCK_BYTES
    return -(-bitmap_bits(data_sectors) // bits_per_block) * BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Layout:
    """A checked layout.  Offsets named ``*_offset_sectors`` are relative to the superblock, as on disk."""

    kind: MetadataKind
    device_bytes: int
    index: int
    superblock_sector: int
    al_stripes: int
    al_stripe_size_4k: int
    al_offset_sectors: int
    bm_offset_sectors: int
    md_size_sectors: int

    @property
    def al_sectors(self) -> int:
        return self.al_stripes * self.al_stripe_size_4k * BLOCK_SECTORS

    @property
    def al_blocks(self) -> int:
        return self.al_stripes * self.al_stripe_size_4k

    @property
    def al_bytes(self) -> int:
        return self.al_sectors * SECTOR_BYTES

    @property
    def superblock_byte(self) -> int:
        return self.superblock_sector * SECTOR_BYTES

    @property
    def al_sector(self) -> int:
        return self.superblock_sector + self.al_offset_sectors

    @property
    def al_byte(self) -> int:
        return self.al_sector * SECTOR_BYTES

    @property
    def bitmap_sector(self) -> int:
        return self.superblock_sector + self.bm_offset_sectors

    @property
    def bitmap_byte(self) -> int:
        return self.bitmap_sector * SECTOR_BYTES

    @property
    def bitmap_sectors(self) -> int:
        """Room for the bitmap; with flexible metadata the last block may be cut short."""
        if self.kind is MetadataKind.INTERNAL:
            return self.al_offset_sectors - self.bm_offset_sectors
        return self.md_size_sectors - self.bm_offset_sectors

    @property
    def bitmap_bytes(self) -> int:
        return self.bitmap_sectors * SECTOR_BYTES

    @property
    def covered_sectors(self) -> int:
        """How much data the bitmap can describe."""
        return self.bitmap_sectors * SECTORS_PER_BITMAP_SECTOR

    def usable_sectors(self, backing_bytes: int | None = None) -> int:
        """Largest size of the replicated device.

        ``backing_bytes``: size of the data device; only external metadata needs it.
        """
        if self.kind is MetadataKind.INTERNAL:
            return self.bitmap_sector
        if backing_bytes is None:
            return self.covered_sectors
        return min(backing_bytes // SECTOR_BYTES, self.covered_sectors)

    @property
    def usable_bytes(self) -> int:
        """Largest size in bytes as far as the metadata alone decides."""
        return self.usable_sectors() * SECTOR_BYTES


def _check_activity_log(where: str, al_stripes: int, al_stripe_size_4k: int) -> int:
    """Sectors of the activity log."""
    if not 1 <= al_stripes <= AL_STRIPES_MAX:
        raise MetadataError(
            f"{where}: {al_stripes} activity log stripes.", advice=f"Use 1 to {AL_STRIPES_MAX} stripes."
        )
    if not 1 <= al_stripe_size_4k <= AL_STRIPE_4K_MAX:
        raise MetadataError(
            f"{where}: activity log stripes of {al_stripe_size_4k * 4} KiB.",
            advice="Use a stripe size of 4 KiB to 16 GiB, a multiple of 4 KiB.",
        )
    al_bytes = al_stripes * al_stripe_size_4k * BLOCK_BYTES
    if not AL_BYTES_MIN <= al_bytes <= AL_BYTES_MAX:
        raise MetadataError(
            f"{where}: an activity log of {al_bytes // 1024} KiB.",
            advice="Choose stripes and stripe size so that the product is 32 KiB to 16 GiB.",
        )
    return al_bytes // SECTOR_BYTES


def _check_device(where: str, device_bytes: int, sectors_min: int) -> int:
    sectors = device_bytes // SECTOR_BYTES
    if device_bytes < 0 or sectors < sectors_min:
        raise MetadataError(
            f"{where}: the device has {device_bytes} bytes, {sectors_min * SECTOR_BYTES} are needed.",
            advice="Use a larger device.",
        )
    return sectors


def internal(
    device_bytes: int,
    *,
    al_stripes: int = AL_STRIPES_DEFAULT,
    al_stripe_size_4k: int = AL_STRIPE_4K_DEFAULT,
) -> Layout:
    """Metadata at the end of the data device."""
    where = "Internal metadata"
    al_sectors = _check_activity_log(where, al_stripes, al_stripe_size_4k)
    sectors = _check_device(where, device_bytes, METADATA_DEVICE_SECTORS_MIN)
    superblock_sector = (device_bytes // BLOCK_BYTES - 1) * BLOCK_SECTORS
    bitmap_sectors = BLOCK_SECTORS * -(-sectors // SECTORS_PER_BITMAP_BLOCK)
    bm_offset = -(al_sectors + bitmap_sectors)
    if superblock_sector + bm_offset <= 0:
        raise MetadataError(
            f"{where}: nothing is left of a device of {device_bytes} bytes.",
            advice="Use a larger device or a smaller activity log.",
        )
    if -bm_offset > OFFSET_SECTORS_MAX:
        raise MetadataError(f"{where}: a device of {device_bytes} bytes is too large for this format.")
    return Layout(
        MetadataKind.INTERNAL,
        device_bytes,
        0,
        superblock_sector,
        al_stripes,
        al_stripe_size_4k,
        -al_sectors,
        bm_offset,
        SUPERBLOCK_SECTORS + al_sectors + bitmap_sectors,
    )


def flexible(
    device_bytes: int,
    *,
    al_stripes: int = AL_STRIPES_DEFAULT,
    al_stripe_size_4k: int = AL_STRIPE_4K_DEFAULT,
) -> Layout:
    """Metadata alone on its own device, which is used completely."""
    where = "Flexible external metadata"
    al_sectors = _check_activity_log(where, al_stripes, al_stripe_size_4k)
    sectors = _check_device(where, device_bytes, METADATA_DEVICE_SECTORS_MIN)
    bm_offset = SUPERBLOCK_SECTORS + al_sectors
    if sectors <= bm_offset:
        raise MetadataError(
            f"{where}: no room for a bitmap on a device of {device_bytes} bytes.",
            advice="Use a larger device or a smaller activity log.",
        )
    if sectors > MD_SIZE_SECTORS_MAX:
        raise MetadataError(
            f"{where}: a device of {device_bytes} bytes is too large for this format.",
            advice="Use a device below 2 TiB.",
        )
    return Layout(
        MetadataKind.FLEXIBLE,
        device_bytes,
        0,
        0,
        al_stripes,
        al_stripe_size_4k,
        SUPERBLOCK_SECTORS,
        bm_offset,
        sectors,
    )


def indexed(
    device_bytes: int,
    index: int,
    *,
    al_stripes: int = AL_STRIPES_DEFAULT,
    al_stripe_size_4k: int = AL_STRIPE_4K_DEFAULT,
) -> Layout:
    """Slot ``index`` of 128 MiB slots on a shared metadata device."""
    where = f"Indexed external metadata, slot {index}"
    if not 0 <= index <= INDEX_MAX:
        raise MetadataError(f"{where}: there is no such slot.", advice=f"Use 0 to {INDEX_MAX}.")
    # drbdmeta would write a striped log here, the driver then refuses to attach; so refuse at once.
    if (al_stripes, al_stripe_size_4k) != (AL_STRIPES_DEFAULT, AL_STRIPE_4K_DEFAULT):
        raise MetadataError(
            f"{where}: the activity log must be one stripe of 32 KiB.",
            advice="Leave the stripe options out or use flexible metadata.",
        )
    al_sectors = _check_activity_log(where, al_stripes, al_stripe_size_4k)
    _check_device(where, device_bytes, INDEXED_SLOT_SECTORS * (index + 1))
    return Layout(
        MetadataKind.INDEXED,
        device_bytes,
        index,
        INDEXED_SLOT_SECTORS * index,
        al_stripes,
        al_stripe_size_4k,
        SUPERBLOCK_SECTORS,
        SUPERBLOCK_SECTORS + al_sectors,
        INDEXED_SLOT_SECTORS,
    )


def calculate(
    kind: MetadataKind,
    device_bytes: int,
    *,
    index: int = 0,
    al_stripes: int = AL_STRIPES_DEFAULT,
    al_stripe_size_4k: int = AL_STRIPE_4K_DEFAULT,
) -> Layout:
    """The layout of any kind; ``index`` counts only for indexed metadata."""
    if kind is MetadataKind.INTERNAL:
        return internal(device_bytes, al_stripes=al_stripes, al_stripe_size_4k=al_stripe_size_4k)
    if kind is MetadataKind.FLEXIBLE:
        return flexible(device_bytes, al_stripes=al_stripes, al_stripe_size_4k=al_stripe_size_4k)
    return indexed(device_bytes, index, al_stripes=al_stripes, al_stripe_size_4k=al_stripe_size_4k)


def superblock_position(kind: MetadataKind, device_bytes: int, index: int = 0) -> int:
    """Byte offset where the superblock has to be looked for, before its stripe fields are known."""
    if kind is MetadataKind.FLEXIBLE:
        return 0
    if kind is MetadataKind.INDEXED:
        return index * INDEXED_SLOT_SECTORS * SECTOR_BYTES
    if device_bytes < 2 * BLOCK_BYTES:
        raise MetadataError(
            f"Internal metadata: a device of {device_bytes} bytes has no room for it.",
            advice="Use a larger device.",
        )
    return (device_bytes // BLOCK_BYTES - 1) * BLOCK_BYTES
