# SPDX-License-Identifier: Apache-2.0
"""What the metadata of a simulated disk says about its blocks, read by our Python; bits of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from repl.drbd import activity_log, layout, superblock
from repl.drbd.superblock import MdFlag, Superblock
from repl.node.disk import DiskPlace
from tests.sim.world import BLOCK, SimDisk

Read = Callable[[int, int], bytes]


def covered(place: DiskPlace, *, layer: int = 0, image: Read | None = None) -> int:
    """Blocks of a device that would be taken for different after a restart."""
    read = image or _reader(place, layer)
    found = superblock.parse(read(_superblock_byte(place), BLOCK))
    if found.la_size_sectors == 0 or found.all_dirty:
        return (1 << max(1, -(-place.data.size_bytes // BLOCK))) - 1
    where = _layout(place)
    bits = int.from_bytes(read(where.bitmap_byte, where.bitmap_bytes), "little")
    return bits | _hot(found, where, read)


def hot(place: DiskPlace, *, layer: int = 0) -> int:
    """Blocks that the activity log alone marks."""
    read = _reader(place, layer)
    found = superblock.parse(read(_superblock_byte(place), BLOCK))
    return _hot(found, _layout(place), read)


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


def _superblock_byte(place: DiskPlace) -> int:
    return layout.superblock_position(place.kind, place.md.size_bytes, place.index)


def _layout(place: DiskPlace) -> Any:
    return layout.calculate(place.kind, place.md.size_bytes, index=place.index, al_stripes=1, al_stripe_size_4k=8)


def numbers(bits: int) -> str:
    """The first few block numbers."""
    found = []
    while bits and len(found) < 8:
        low = bits & -bits
        found.append(str(low.bit_length() - 1))
        bits ^= low
    return ", ".join(found) + (", …" if bits else "")
