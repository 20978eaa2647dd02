# SPDX-License-Identifier: Apache-2.0
"""What the metadata of a simulated disk says about its blocks, read by our Python; bits of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from repl.drbd import activity_log, layout, superblock
from repl.drbd.superblock import MdFlag, Superblock
from repl.errors import MetadataError
from repl.node import moved
from repl.node.disk import DiskPlace
from tests.sim.world import BLOCK, SimDisk

Read = Callable[[int, int], bytes]


def covered(place: DiskPlace, *, layer: int = 0, image: Read | None = None) -> int:
    """Blocks of a device that would be taken for different after a restart."""
    read = image or _reader(place, layer)
    found, where = _find(place, read)
    if found.la_size_sectors == 0 or found.all_dirty:
        return (1 << max(1, -(-place.data.size_bytes // BLOCK))) - 1
    bits = int.from_bytes(read(where.bitmap_byte, where.bitmap_bytes), "little")
    return bits | _hot(found, where, read)


def hot(place: DiskPlace, *, layer: int = 0) -> int:
    """Blocks that the activity log alone marks."""
    read = _reader(place, layer)
    found, where = _find(place, read)
    return _hot(found, where, read)


def _hot(found: Superblock, where: Any, read: Read) -> int:
    primary = MdFlag.PRIMARY_IND in found.flags
    if found.clean or not primary:
        return 0
    log = read(where.al_byte, where.al_bytes)
    blocks = [log[at : at + BLOCK] for at in range(0, len(log), BLOCK)]
    stripes, stripe_size = found.stripes
    result = activity_log.replay(blocks, al_stripes=stripes, al_stripe_size_4k=stripe_size, primary_ind=primary)
    bits = 0
    for begin, length in activity_log.apply(result, bitmap_bits=found.bitmap_bits, primary_ind=True).ranges:
        bits |= ((1 << length * 8) - 1) << begin * 8
    return bits


def _reader(place: DiskPlace, layer: int) -> Read:
    disk: SimDisk = place.md  # type: ignore[assignment]
    return lambda offset, length: disk.content(offset, length, layer=layer)


class _Image:
    """What is read, as a file."""

    def __init__(self, place: DiskPlace, read: Read) -> None:
        self.name, self.size_bytes, self.pread = place.md.name, place.md.size_bytes, read


def _find(place: DiskPlace, read: Read) -> tuple[Superblock, Any]:
    """At the end of the disk, or where that was before the disk grew."""
    position = layout.superblock_position(place.kind, place.md.size_bytes, place.index)
    try:
        found = superblock.parse(read(position, BLOCK))
    except MetadataError:
        image: Any = _Image(place, read)
        moved_from = moved.search(DiskPlace(image, image, place.kind)) if place.md is place.data else None
        if moved_from is None:
            raise
        return moved_from
    return found, layout.calculate(
        place.kind, place.md.size_bytes, index=place.index, al_stripes=1, al_stripe_size_4k=8
    )


def numbers(bits: int) -> str:
    """The first few block numbers."""
    found = []
    while bits and len(found) < 8:
        low = bits & -bits
        found.append(str(low.bit_length() - 1))
        bits ^= low
    return ", ".join(found) + (", …" if bits else "")
