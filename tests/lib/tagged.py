# SPDX-License-Identifier: Apache-2.0
"""Tagged sectors: every 512-byte sector a test writes says who wrote it, so one read tells torn, misdirected,
stale and foreign data apart.

Sector, little-endian, 512 bytes: magic (8), run id (8), sector number (8), request number (8), flush
generation (8), writer (4), crc32 of all the other bytes (4), then a pattern repeated from the first 40 bytes.

Inputs and outputs are whole sectors as ``bytes``; offsets are sectors.  The form is our own.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import Enum

SECTOR_BYTES = 512
MAGIC = 0x5245504C54414731  # "REPLTAG1"
_HEAD = struct.Struct("<QQQQQ")  # magic, run, sector, request, generation
_TAIL = struct.Struct("<II")  # writer, crc
_HEADER_BYTES = _HEAD.size + _TAIL.size
_PATTERN_BYTES = SECTOR_BYTES - _HEADER_BYTES
_REPEATS = -(-_PATTERN_BYTES // _HEAD.size)
_ZERO_SECTOR = bytes(SECTOR_BYTES)


@dataclass(frozen=True, slots=True)
class Tag:
    """Who wrote a sector.  ``generation``: flushes this writer had completed when it issued the request."""

    run: int
    writer: int
    request: int
    sector: int
    generation: int = 0


class Kind(Enum):
    """What a sector turned out to be."""

    TAGGED = "tagged"  # whole, ours, in its place
    ZERO = "zero"  # never written (or discarded)
    TORN = "torn"  # has our magic, crc wrong
    MISDIRECTED = "misdirected"  # whole and ours, but belongs elsewhere
    FOREIGN = "foreign"  # whole, from another run
    ALIEN = "alien"  # anything else


@dataclass(frozen=True, slots=True)
class Sector:
    """One sector as read at ``position``; ``tag`` is there for whole tagged sectors only."""

    position: int
    kind: Kind
    tag: Tag | None = None


def encode_sector(tag: Tag) -> bytes:
    head = _HEAD.pack(MAGIC, tag.run, tag.sector, tag.request, tag.generation)
    pattern = (head * _REPEATS)[:_PATTERN_BYTES]
    writer = tag.writer.to_bytes(4, "little")
    crc = zlib.crc32(pattern, zlib.crc32(writer, zlib.crc32(head)))
    return b"".join((head, writer, crc.to_bytes(4, "little"), pattern))


def decode_sector(data: bytes | memoryview, *, position: int, run: int) -> Sector:
    """What lies in one sector that was read at ``position`` by a test of run ``run``."""
    raw = bytes(data)
    if len(raw) != SECTOR_BYTES:
        raise ValueError(f"a sector has {SECTOR_BYTES} bytes, not {len(raw)}")
    if raw == _ZERO_SECTOR:
        return Sector(position, Kind.ZERO)
    magic, tag_run, sector, request, generation = _HEAD.unpack_from(raw)
    if magic != MAGIC:
        return Sector(position, Kind.ALIEN)
    writer, crc = _TAIL.unpack_from(raw, _HEAD.size)
    without_crc = zlib.crc32(raw[_HEADER_BYTES:], zlib.crc32(raw[: _HEADER_BYTES - 4]))
    if crc != without_crc:
        return Sector(position, Kind.TORN)
    tag = Tag(run=tag_run, writer=writer, request=request, sector=sector, generation=generation)
    if tag_run != run:
        return Sector(position, Kind.FOREIGN, tag)
    return Sector(position, Kind.TAGGED if sector == position else Kind.MISDIRECTED, tag)


def decode(data: bytes | memoryview, *, offset_sectors: int, run: int) -> list[Sector]:
    """Every sector of a read that began at ``offset_sectors``."""
    if len(data) % SECTOR_BYTES:
        raise ValueError(f"{len(data)} bytes are not whole sectors")
    view = memoryview(data)
    return [
        decode_sector(view[at : at + SECTOR_BYTES], position=offset_sectors + at // SECTOR_BYTES, run=run)
        for at in range(0, len(data), SECTOR_BYTES)
    ]


class TaggedWriter:
    """Makes the payloads of one writer and counts its requests and flushes."""

    def __init__(self, *, run: int, writer: int) -> None:
        self.run = run
        self.writer = writer
        self.request = 0
        self.generation = 0

    def payload(self, *, offset_sectors: int, sectors: int) -> bytes:
        """Data of the next write request: ``sectors`` whole sectors for ``offset_sectors``."""
        self.request += 1
        return b"".join(
            encode_sector(Tag(self.run, self.writer, self.request, offset_sectors + index, self.generation))
            for index in range(sectors)
        )

    def flushed(self) -> None:
        """A flush of this writer has completed."""
        self.generation += 1
