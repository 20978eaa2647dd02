# SPDX-License-Identifier: Apache-2.0
"""Packing a dirty bitmap into P_BITMAP and P_COMPRESSED_BITMAP packets, and merging them on arrival.

A bitmap is little-endian bytes, bit i in byte i // 8.  Run lengths and positions are bits of 4 KiB of data
each.
Raises ``ProtocolError`` for streams that no sender makes.  Facts: DRBD's run length coding (protocol >= 90).
The C engine has its own implementation; the two are compared in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from repl.drbd.packets import BITMAP_PACKET_BYTES_MAX, CompressedBitmap, Packet
from repl.errors import ProtocolError

CODE_RLE_VLI = 2
WORD_BITS = 64


@dataclass(frozen=True, slots=True)
class _Level:
    total_bits: int
    prefix_bits: int
    prefix: int
    first: int

    @property
    def last(self) -> int:
        return self.first + (1 << (self.total_bits - self.prefix_bits)) - 1


def _levels() -> tuple[_Level, ...]:
    shapes = (
        (2, 1, 0x00),
        (3, 2, 0x01),
        (5, 3, 0x03),
        (7, 4, 0x07),
        (10, 5, 0x0F),
        (14, 6, 0x1F),
        (21, 8, 0x3F),
        (29, 8, 0x7F),
        (42, 8, 0xBF),
        (64, 8, 0xFF),
    )
    levels: list[_Level] = []
    first = 1
    for total_bits, prefix_bits, prefix in shapes:
        levels.append(_Level(total_bits, prefix_bits, prefix, first))
        first = levels[-1].last + 1
    return tuple(levels)


LEVELS = _levels()
RUN_BITS_MAX = LEVELS[-1].last


def encode_run(length: int) -> tuple[int, int]:
    """(code as an integer whose bit 0 is sent first, number of bits) of one run."""
    for level in LEVELS:
        if level.first <= length <= level.last:
            return ((length - level.first) << level.prefix_bits) | level.prefix, level.total_bits
    raise ProtocolError(f"P_COMPRESSED_BITMAP: a run of {length} bits cannot be coded.")


def decode_run(code: int, bits: int) -> tuple[int, int]:
    """(run length, bits used) of the code at the start of ``code``, of which ``bits`` bits are valid."""
    for level in LEVELS:
        if code & ((1 << level.prefix_bits) - 1) == level.prefix:
            if level.total_bits > bits:
                break
            data_bits = level.total_bits - level.prefix_bits
            value = (code >> level.prefix_bits) & ((1 << data_bits) - 1)
            return level.first + value, level.total_bits
    raise ProtocolError(f"P_COMPRESSED_BITMAP: the stream ends inside of a run ({bits} bits left).")


def encode_runs(runs: Sequence[int], *, starts_set: bool) -> CompressedBitmap:
    """A compressed packet body of runs of alternating polarity."""
    stream = position = 0
    for length in runs:
        code, bits = encode_run(length)
        stream |= code << position
        position += bits
    pad_bits = -position % 8
    encoding = CODE_RLE_VLI | pad_bits << 4 | (0x80 if starts_set else 0)
    return CompressedBitmap(encoding, stream.to_bytes((position + 7) // 8, "little"))


def decode_runs(packet: CompressedBitmap) -> list[int]:
    """The run lengths of a compressed packet; the polarity of the first is ``packet.starts_set``."""
    if packet.code != CODE_RLE_VLI:
        raise ProtocolError(f"P_COMPRESSED_BITMAP: unknown bitmap code {packet.code} (body offset 0).")
    left = 8 * len(packet.stream) - packet.pad_bits
    if left <= 0:
        raise ProtocolError("P_COMPRESSED_BITMAP: there are no runs (body offset 1).")
    stream = int.from_bytes(packet.stream, "little")
    runs = []
    while left > 0:
        length, used = decode_run(stream & ((1 << 64) - 1), left)
        runs.append(length)
        stream >>= used
        left -= used
    return runs


def bitmap_bytes(bits: int) -> int:
    """Bytes of a bitmap of ``bits``: whole 64-bit words."""
    return -(-bits // WORD_BITS) * 8


def _get(bitmap: bytes | bytearray, bit: int) -> bool:
    return bool(bitmap[bit >> 3] & (1 << (bit & 7)))


def next_run(bitmap: bytes | bytearray, bits: int, start: int) -> int:
    """Length of the run of equal bits at ``start``; the last run ends with the bitmap."""
    polarity = _get(bitmap, start)
    skip = 0xFF if polarity else 0x00
    position = start
    while position < bits:
        if position & 7 == 0 and bitmap[position >> 3] == skip:
            position += 8
        elif _get(bitmap, position) == polarity:
            position += 1
        else:
            break
    return min(position, bits) - start


def compress(
    bitmap: bytes | bytearray, bits: int, start: int, *, body_bytes_max: int
) -> tuple[CompressedBitmap, int]:
    """One compressed packet from bit ``start`` on, and the number of bits that it describes."""
    if not 0 <= start < bits:
        raise ProtocolError(f"P_COMPRESSED_BITMAP: nothing to send at bit {start} of {bits}.")
    room = 8 * (body_bytes_max - 1)
    runs: list[int] = []
    used = 0
    position = start
    while position < bits:
        length = next_run(bitmap, bits, position)
        _, code_bits = encode_run(length)
        if used + code_bits > room:
            break
        runs.append(length)
        used += code_bits
        position += length
    return encode_runs(runs, starts_set=_get(bitmap, start)), position - start


def split(
    bitmap: bytes | bytearray, bits: int, *, header_bytes: int, use_rle: bool
) -> Iterator[tuple[Packet, bytes]]:
    """All packets (packet, body) that carry a bitmap of ``bits``.

    A packet whose compressed form is not smaller than the plain bits is replaced by a plain one that
    starts at a
    word boundary.  Ends with an empty P_BITMAP if the last chunk was plain.
    """
    if len(bitmap) < bitmap_bytes(bits):
        raise ProtocolError(f"P_BITMAP: {len(bitmap)} bytes are no bitmap of {bits} bits.")
    body_max = BITMAP_PACKET_BYTES_MAX - header_bytes
    position = 0
    plain_last = True
    while position < bits:
        if use_rle:
            packet, covered = compress(bitmap, bits, position, body_bytes_max=body_max)
            body = packet.encode()
            if 8 * len(body) < covered:
                yield Packet.COMPRESSED_BITMAP, body
                position += covered
                plain_last = False
                continue
        position -= position % WORD_BITS
        offset = position // 8
        chunk = bytes(bitmap[offset : min(offset + body_max - body_max % 8, bitmap_bytes(bits))])
        yield Packet.BITMAP, chunk
        position += 8 * len(chunk)
        plain_last = True
    if plain_last:
        yield Packet.BITMAP, b""


class Merger:
    """Receiving side: ORs packets into an own bitmap and knows when the exchange is complete.

    ``bitmap`` is changed in place and must have ``bitmap_bytes(bits)`` bytes.
    """

    def __init__(self, bitmap: bytearray, bits: int, *, header_bytes: int) -> None:
        if len(bitmap) != bitmap_bytes(bits):
            raise ProtocolError(f"P_BITMAP: {len(bitmap)} bytes are no bitmap of {bits} bits.")
        self.bitmap = bitmap
        self.bits = bits
        self.position = 0
        self.complete = False
        self._chunk_max = (BITMAP_PACKET_BYTES_MAX - header_bytes) // 8 * 8

    def plain(self, chunk: bytes) -> None:
        """Merge a P_BITMAP body; the empty one is the end mark."""
        # A sender that gives up on compression goes back to the start of the 64-bit word.
        ended = self.position >= self.bits
        offset = len(self.bitmap) if ended else self.position // WORD_BITS * (WORD_BITS // 8)
        expected = max(0, min(self._chunk_max, len(self.bitmap) - offset))
        if len(chunk) != expected:
            raise ProtocolError(f"P_BITMAP: a chunk of {len(chunk)} bytes, {expected} are expected.")
        if not chunk:
            self.complete = True
            return
        own = int.from_bytes(self.bitmap[offset : offset + len(chunk)], "little")
        merged = own | int.from_bytes(chunk, "little")
        self.bitmap[offset : offset + len(chunk)] = merged.to_bytes(len(chunk), "little")
        if offset + len(chunk) == len(self.bitmap) and self.bits % WORD_BITS:
            word = int.from_bytes(self.bitmap[-8:], "little") & ((1 << self.bits % WORD_BITS) - 1)
            self.bitmap[-8:] = word.to_bytes(8, "little")
        self.position = min(8 * (offset + len(chunk)), self.bits)

    def compressed(self, packet: CompressedBitmap) -> None:
        """Merge a P_COMPRESSED_BITMAP body."""
        polarity = packet.starts_set
        runs = decode_runs(packet)
        end = self.position + sum(runs)
        if end > self.bits:  # before anything is changed
            raise ProtocolError(f"P_COMPRESSED_BITMAP: runs up to bit {end}, there are only {self.bits}.")
        for length in runs:
            if polarity:
                set_range(self.bitmap, self.position, length)
            self.position += length
            polarity = not polarity
        if self.position >= self.bits:
            self.complete = True


def set_range(bitmap: bytearray, start: int, length: int) -> None:
    """Set ``length`` bits from ``start`` on."""
    if length <= 0:
        return
    end = start + length
    first_byte, last_byte = start >> 3, (end - 1) >> 3
    if first_byte == last_byte:
        bitmap[first_byte] |= ((1 << length) - 1) << (start & 7)
        return
    bitmap[first_byte] |= (0xFF << (start & 7)) & 0xFF
    bitmap[first_byte + 1 : last_byte] = b"\xff" * (last_byte - first_byte - 1)
    bitmap[last_byte] |= 0xFF >> (7 - ((end - 1) & 7))


def count_bits(bitmap: bytes | bytearray) -> int:
    """Number of set bits."""
    return int.from_bytes(bitmap, "little").bit_count()
