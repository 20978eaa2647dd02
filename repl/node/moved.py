# SPDX-License-Identifier: Apache-2.0
"""Internal metadata of a backing device that grew while it was not looked after: find it, move it to the new end.

A device may grow while it is detached, or a node may die between the growth of its device and the resize.  The
superblock is then no longer at the end but where the device ended before: that is kept outside of the device
(``LastDisk``).  What merely looks like a superblock may be a part of the user's data, even a planted one, and is only
named in the message.  Offsets and lengths in bytes.
differs: drbdmeta forgets bits when the bitmap gets longer (decision 0044).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from repl.drbd import activity_log, layout, superblock
from repl.drbd.layout import Layout
from repl.drbd.superblock import MdFlag, Superblock
from repl.errors import MetadataError
from repl.limits import BLOCK_BYTES, SECTOR_BYTES

if TYPE_CHECKING:
    from repl.node.disk import DiskPlace

CHUNK_BYTES = 1 << 20
SEARCH_BYTES_MAX = 64 << 30  # a minute or so
MAGIC_OFFSET = 60
_MAGICS = tuple(int(magic).to_bytes(4, "big") for magic in (superblock.Magic.V08_CLEAN, superblock.Magic.V08_UNCLEAN))


@dataclass(frozen=True, slots=True)
class LastDisk:
    """A disk with internal metadata as it was when it was used last."""

    size_bytes: int
    device_uuid: int = 0  # 0: not known


def at_last_size(place: DiskPlace, last: LastDisk) -> tuple[Superblock, Layout] | None:
    """The superblock at the end of the device as it was; None if there is no such one."""
    if not 0 < last.size_bytes < place.md.size_bytes:
        return None
    try:
        position = layout.superblock_position(place.kind, last.size_bytes)
        block = place.md.pread(position, BLOCK_BYTES)
        found = superblock.parse(block, where=f"{place.md.name} at byte {position}")
        stripes, stripe_size = found.stripes
        implied = layout.calculate(place.kind, last.size_bytes, al_stripes=stripes, al_stripe_size_4k=stripe_size)
        superblock.verify_against_layout(found, implied)
    except MetadataError:
        return None
    return None if last.device_uuid and found.device_uuid != last.device_uuid else (found, implied)


def refusal(place: DiskPlace, error: MetadataError, last: LastDisk | None) -> MetadataError:
    """Why nothing is moved, and how an operator decides it."""
    if last is not None and last.size_bytes < place.md.size_bytes:
        return MetadataError(
            f"{error.message} It was {last.size_bytes} bytes large at its last use; its metadata does not end there "
            "either.",
            advice=error.advice,
        )
    found = search(place) if last is None else None
    if found is None:
        return error
    size = found[1].device_bytes
    return MetadataError(
        f"{error.message} At byte {found[1].superblock_byte} there is a superblock of a device of {size} bytes: its "
        "own from before it grew, or something that was written to it.",
        advice=f'If it was exactly {size} bytes large before: "replctl check-resize --from {size}", then attach again.',
    )


def search(place: DiskPlace) -> tuple[Superblock, Layout] | None:
    """The last superblock that says of itself that it is the end of a smaller device."""
    end = place.md.size_bytes - place.md.size_bytes % BLOCK_BYTES
    lowest = max(0, end - SEARCH_BYTES_MAX)
    while end > lowest:
        begin = max(lowest, (end - 1) // CHUNK_BYTES * CHUNK_BYTES)
        chunk = place.md.pread(begin, end - begin)
        for at in range(len(chunk) - BLOCK_BYTES, -1, -BLOCK_BYTES):
            if chunk[at + MAGIC_OFFSET : at + MAGIC_OFFSET + 4] in _MAGICS:
                found = _accept(place, begin + at, chunk[at : at + BLOCK_BYTES])
                if found is not None:
                    return found
        end = begin
    return None


def _accept(place: DiskPlace, position: int, block: bytes) -> tuple[Superblock, Layout] | None:
    for tail in (0, BLOCK_BYTES - SECTOR_BYTES):  # sectors behind the superblock may need one more bitmap block
        try:
            found = superblock.parse(block, where=f"{place.md.name} at byte {position}")
            stripes, stripe_size = found.stripes
            implied = layout.calculate(
                place.kind, position + BLOCK_BYTES + tail, al_stripes=stripes, al_stripe_size_4k=stripe_size
            )
            superblock.verify_against_layout(found, implied)
        except MetadataError:
            continue
        return found, implied
    return None


def move(place: DiskPlace, clean: Superblock, old: Layout) -> tuple[Superblock, Layout]:
    """Bit n stays bit n; the activity log was replayed before.

    Where old and new place overlap, a crash on the way makes everything dirty.
    """
    md = place.md
    bitmap = md.pread(old.bitmap_byte, old.bitmap_bytes)
    stripes, stripe_size = clean.stripes
    new = layout.calculate(place.kind, md.size_bytes, al_stripes=stripes, al_stripe_size_4k=stripe_size)
    final = replace(
        clean,
        md_size_sectors=new.md_size_sectors,
        al_offset_sectors=new.al_offset_sectors,
        bm_offset_sectors=new.bm_offset_sectors,
    )
    if new.bitmap_byte < old.superblock_byte + BLOCK_BYTES:
        everything = replace(final, flags=final.flags | MdFlag.FULL_SYNC)
        md.pwrite(new.superblock_byte, everything.serialise())
        md.flush()
    for at in range(0, new.bitmap_bytes, CHUNK_BYTES):
        length = min(CHUNK_BYTES, new.bitmap_bytes - at)
        md.pwrite(new.bitmap_byte + at, bitmap[at : at + length].ljust(length, b"\0"))
    blocks = activity_log.INITIALISED_BLOCK * (CHUNK_BYTES // BLOCK_BYTES)
    for at in range(0, new.al_bytes, CHUNK_BYTES):
        md.pwrite(new.al_byte + at, blocks[: min(CHUNK_BYTES, new.al_bytes - at)])
    md.flush()
    md.pwrite(new.superblock_byte, final.serialise())
    md.flush()
    begin, length = old_place(old, new)
    for at in range(0, length, CHUNK_BYTES):  # it becomes data, and should be the same on both nodes
        md.pwrite(begin + at, bytes(min(CHUNK_BYTES, length - at)))
    md.flush()
    return final, new


def old_place(old: Layout, new: Layout) -> tuple[int, int]:
    """What the old metadata no longer needs, as offset and length; none of it belongs to the new one."""
    return old.bitmap_byte, max(0, min(old.superblock_byte + BLOCK_BYTES, new.bitmap_byte) - old.bitmap_byte)
