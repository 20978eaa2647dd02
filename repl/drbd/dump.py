# SPDX-License-Identifier: Apache-2.0
"""Metadata as text in drbdmeta's format, and what create-md must not overwrite.

``dump_md`` takes a parsed superblock and bitmap bytes.  ``recognise`` looks at a device through a callback
``read(offset_bytes, length_bytes) -> bytes`` (short reads only at the end of the device) and reports file
systems,
partition tables, other signatures and DRBD metadata of any version.  Raises nothing of its own.
Facts: drbdmeta's output; published on-disk signatures of the file systems.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from repl.drbd.layout import (
    BIT_BYTES,
    INDEX_MAX,
    INDEXED_SLOT_SECTORS,
    METADATA_DEVICE_SECTORS_MIN,
    Layout,
    bitmap_disk_bytes,
)
from repl.drbd.superblock import Magic, Superblock
from repl.limits import BLOCK_BYTES, SECTOR_BYTES

Read = Callable[[int, int], bytes]

_WORDS_PER_LINE = 4
_WORDS_PER_MARK = 32
_KIB_PER_WORD = 64 * BIT_BYTES // 1024
_HALF_ALL = (1 << 32) - 1

UNCLEAN_LINES = (
    "This_is_an_unclean_meta_data_dump._Don't_trust_the_bitmap.",
    '# You should "apply-al" first, if you plan to restore this.',
)


def _bitmap_lines(bitmap: bytes) -> Iterator[str]:
    words = struct.unpack(f"<{len(bitmap) // 8}Q", bitmap)
    total = len(words)
    position = 0
    while position < total:
        if position % _WORDS_PER_MARK == 0:
            yield f"   # at {position * _KIB_PER_WORD}kB"
        word = words[position]
        run = 0
        # drbdmeta compares 32-bit halves, so only words of two equal halves are ever counted.
        if word >> 32 == word & _HALF_ALL:
            while position + run < total and words[position + run] == word:
                run += 1
            run -= run % _WORDS_PER_LINE
        if run > _WORDS_PER_LINE:
            yield f"    {run} times 0x{word:016X};"
            position += run
        else:
            line = words[position : position + _WORDS_PER_LINE]
            yield "    " + " ".join(f"0x{value:016X};" for value in line)
            position += len(line)


def dump_md(superblock: Superblock, layout: Layout, bitmap: bytes, *, comments: tuple[str, ...] = ()) -> str:
    """The text of ``drbdmeta dump-md``.

    ``bitmap``: the on-disk bytes of la_size, whole 4 KiB blocks.  ``comments``: lines for the head (date,
    command).
    differs: drbdmeta 9.22 prints flags 0 whatever they are; here they are right, as in 9.34 (decision 0044).
    """
    length = bitmap_disk_bytes(superblock.la_size_sectors)
    bitmap = bitmap[:length].ljust(length, b"\0")
    stripes, stripe_size = superblock.stripes
    uuids = superblock.uuids
    slots = (uuids.current, uuids.bitmap, uuids.history1, uuids.history2)
    lines = [
        "# DRBD meta data dump",
        *(f"# {comment}" for comment in comments),
        "#",
        "",
        'version "v08";',
        "",
    ]
    if not superblock.clean:
        lines += [*UNCLEAN_LINES, ""]
    lines += [
        f"# md_size_sect {superblock.md_size_sectors}",
        f"# md_offset {layout.superblock_byte}",
        f"# al_offset {layout.al_byte}",
        f"# bm_offset {layout.bitmap_byte}",
        "",
        "uuid {",
        "    " + " ".join(f"0x{slot:016X};" for slot in slots),
        f"    flags 0x{superblock.flags:08X};",
        "}",
        f"# al-extents {superblock.al_extents};",
        f"la-size-sect {superblock.la_size_sectors};",
        f"bm-byte-per-bit {superblock.bytes_per_bit};",
        f"device-uuid 0x{superblock.device_uuid:016X};",
        f"la-peer-max-bio-size {superblock.peer_max_bio_bytes};",
        f"al-stripes {stripes};",
        f"al-stripe-size-4k {stripe_size};",
        f"# bm-bytes {length};",
        "bm {",
        *_bitmap_lines(bitmap),
        "}",
        f"# bits-set {int.from_bytes(bitmap, 'little').bit_count()};",
    ]
    return "\n".join(lines) + "\n"


class FindingKind(Enum):
    """What kind of data was found."""

    DRBD = "DRBD metadata"
    FILE_SYSTEM = "file system"
    CONTAINER = "container or swap"
    PARTITION_TABLE = "partition table"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that creating metadata would destroy.  ``offset_bytes``: where its signature stands."""

    kind: FindingKind
    name: str
    offset_bytes: int

    def __str__(self) -> str:
        return f"{self.name} ({self.kind.value}, signature at byte {self.offset_bytes})"


# (name, kind, offset of the signature, signature)
_FIXED_SIGNATURES: tuple[tuple[str, FindingKind, int, bytes], ...] = (
    ("xfs", FindingKind.FILE_SYSTEM, 0, b"XFSB"),
    ("btrfs", FindingKind.FILE_SYSTEM, 0x10040, b"_BHRfS_M"),
    ("ntfs", FindingKind.FILE_SYSTEM, 3, b"NTFS    "),
    ("exfat", FindingKind.FILE_SYSTEM, 3, b"EXFAT   "),
    ("fat", FindingKind.FILE_SYSTEM, 54, b"FAT12   "),
    ("fat", FindingKind.FILE_SYSTEM, 54, b"FAT16   "),
    ("fat", FindingKind.FILE_SYSTEM, 82, b"FAT32   "),
    ("LUKS", FindingKind.CONTAINER, 0, b"LUKS\xba\xbe"),
)
_LUKS2_SECOND_OFFSETS = tuple(0x4000 << shift for shift in range(9))
_SWAP_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_OCFS2_BLOCK_SIZES = (512, 1024, 2048, 4096)
_GPT_SECTOR_SIZES = (512, 4096)
_GFS2_OFFSET = 64 * 1024
_GFS2_HEAD = bytes.fromhex("0116197000000001")
_LVM_SECTORS = 4

_EXT_OFFSET = 1024
_EXT_HAS_JOURNAL = 0x4
_EXT4_INCOMPAT = 0x40 | 0x80 | 0x200  # extents, 64bit, flex_bg
_EXT4_RO_COMPAT = (
    0x8 | 0x10 | 0x20 | 0x40 | 0x400
)  # huge_file, gdt_csum, dir_nlink, extra_isize, metadata_csum


def _ext(read: Read) -> Finding | None:
    superblock = read(_EXT_OFFSET, 1024)
    if len(superblock) < 1024 or superblock[56:58] != b"\x53\xef":
        return None
    compat, incompat, ro_compat = struct.unpack_from("<III", superblock, 92)
    if incompat & _EXT4_INCOMPAT or ro_compat & _EXT4_RO_COMPAT:
        name = "ext4"
    else:
        name = "ext3" if compat & _EXT_HAS_JOURNAL else "ext2"
    return Finding(FindingKind.FILE_SYSTEM, name, _EXT_OFFSET + 56)


def _partition_table(read: Read, device_bytes: int) -> Iterator[Finding]:
    for sector_bytes in _GPT_SECTOR_SIZES:
        for offset in (sector_bytes, device_bytes // sector_bytes * sector_bytes - sector_bytes):
            if offset > 0 and read(offset, 8) == b"EFI PART":
                yield Finding(FindingKind.PARTITION_TABLE, "gpt", offset)
    boot = read(0, SECTOR_BYTES)
    if len(boot) < SECTOR_BYTES or boot[510:512] != b"\x55\xaa":
        return
    # FAT and NTFS boot sectors end with the same two bytes; a table has sane entries.
    entries = [boot[446 + 16 * index : 462 + 16 * index] for index in range(4)]
    sane = all(entry[0] in (0x00, 0x80) for entry in entries)
    used = any(entry[4] != 0 and int.from_bytes(entry[12:16], "little") for entry in entries)
    if sane and used:
        yield Finding(FindingKind.PARTITION_TABLE, "mbr", 510)


def _signatures(read: Read, device_bytes: int) -> Iterator[Finding]:
    ext = _ext(read)
    if ext is not None:
        yield ext
    for name, kind, offset, signature in _FIXED_SIGNATURES:
        if read(offset, len(signature)) == signature:
            yield Finding(kind, name, offset)
    for offset in _LUKS2_SECOND_OFFSETS:
        if read(offset, 6) == b"SKUL\xba\xbe":
            yield Finding(FindingKind.CONTAINER, "LUKS", offset)
    for sector in range(_LVM_SECTORS):
        label = read(sector * SECTOR_BYTES, 32)
        if label[:8] == b"LABELONE" and label[24:32] == b"LVM2 001":
            yield Finding(FindingKind.CONTAINER, "LVM2", sector * SECTOR_BYTES)
    for page_bytes in _SWAP_PAGE_SIZES:
        if read(page_bytes - 10, 10) in (b"SWAPSPACE2", b"SWAP-SPACE"):
            yield Finding(FindingKind.CONTAINER, "swap", page_bytes - 10)
    for block_bytes in _OCFS2_BLOCK_SIZES:
        if read(2 * block_bytes, 6) == b"OCFSV2":
            yield Finding(FindingKind.FILE_SYSTEM, "ocfs2", 2 * block_bytes)
    if read(_GFS2_OFFSET, 8) == _GFS2_HEAD:
        yield Finding(FindingKind.FILE_SYSTEM, "gfs2", _GFS2_OFFSET)
    yield from _partition_table(read, device_bytes)


# (offset of the magic in the superblock, magics that stand there, name)
_DRBD_MAGICS: tuple[tuple[int, tuple[Magic, ...], str], ...] = (
    (28, (Magic.V07,), "DRBD v07"),
    (60, (Magic.V08_CLEAN, Magic.V08_UNCLEAN), "DRBD v08"),
    (60, (Magic.V09,), "DRBD v09"),
)


def metadata_positions(device_bytes: int) -> list[int]:
    """Byte offsets where a DRBD superblock of any version and layout may stand."""
    slot_bytes = INDEXED_SLOT_SECTORS * SECTOR_BYTES
    aligned = device_bytes // BLOCK_BYTES * BLOCK_BYTES
    positions = {0}
    if device_bytes >= METADATA_DEVICE_SECTORS_MIN * SECTOR_BYTES or aligned >= 2 * BLOCK_BYTES:
        positions.add(aligned - BLOCK_BYTES)
    # v07 kept internal metadata in the last 128 MiB, with the superblock first.
    if aligned >= slot_bytes:
        positions.add(aligned - slot_bytes)
    for index in range(1, INDEX_MAX + 1):
        if index * slot_bytes + BLOCK_BYTES > device_bytes:
            break
        positions.add(index * slot_bytes)
    return sorted(positions)


def _drbd(read: Read, device_bytes: int) -> Iterator[Finding]:
    for position in metadata_positions(device_bytes):
        head = read(position, 64)
        for offset, magics, name in _DRBD_MAGICS:
            if len(head) >= offset + 4 and int.from_bytes(head[offset : offset + 4], "big") in magics:
                yield Finding(FindingKind.DRBD, name, position)


def recognise(read: Read, device_bytes: int) -> list[Finding]:
    """Everything known on a device, in the order of checking; an empty list means nothing was recognised."""
    return [*_drbd(read, device_bytes), *_signatures(read, device_bytes)]
