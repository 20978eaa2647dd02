# SPDX-License-Identifier: Apache-2.0
"""The activity log of DRBD v08 metadata: transaction blocks, ring positions and replay after a crash.

A block is 4096 bytes, an extent 4 MiB of data = 1024 bits = 128 bytes of bitmap.  Nothing here does I/O.
Raises ``MetadataError`` for damaged blocks and for logs that cannot be replayed.
Facts: logs written by the 8.4.11 driver; replay as drbdmeta's apply-al, stricter where the table may be
incomplete.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from repl.errors import MetadataError
from repl.limits import BLOCK_BYTES

AL_MAGIC = 0x69CB65A2
UPDATES_MAX = 64
CONTEXT_SLOTS = 919
SLOTS_MAX = 65534
NO_SLOT = 0xFFFF
NO_EXTENT = 0xFFFFFFFF
EXTENT_BITS = 1024
EXTENT_BITMAP_BYTES = 128
_TR_MODULUS = 1 << 32

_HEAD = struct.Struct(">IIIHHHH16s")
_SLOTS = struct.Struct(">64H")
_EXTENTS = struct.Struct(">64I")
_CONTEXT = struct.Struct(">919I")
_CRC_OFFSET = 8


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for index in range(256):
        crc = index
        for _ in range(8):
            crc = (crc >> 1) ^ 0x82F63B78 if crc & 1 else crc >> 1
        table.append(crc)
    return tuple(table)


_TABLE = _crc32c_table()


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC with the Castagnoli polynomial as the activity log uses it: start value 0, no final inversion."""
    table = _TABLE
    for byte in data:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc


class TransactionType(IntEnum):
    """transaction_type."""

    UPDATE = 0
    INITIALISED = 0xFFFF


@dataclass(frozen=True, slots=True)
class Transaction:
    """One block.  ``context`` is the raw window of 919 extents, the table before ``updates``.

    For an initialised block only ``number`` means anything.
    """

    number: int
    type: TransactionType
    context_size: int = 0
    context_start: int = 0
    updates: tuple[tuple[int, int], ...] = ()
    context: tuple[int, ...] = ()
    reserved: bytes = bytes(16)

    def encode(self) -> bytes:
        """The 4096 bytes with their checksum."""
        if len(self.updates) > UPDATES_MAX or len(self.context) > CONTEXT_SLOTS:
            raise MetadataError(f"Activity log transaction {self.number}: too many updates or context slots.")
        if self.type is TransactionType.INITIALISED:
            body = _HEAD.pack(AL_MAGIC, self.number, 0, self.type, 0, 0, 0, bytes(16)).ljust(
                BLOCK_BYTES, b"\0"
            )
        else:
            unused = UPDATES_MAX - len(self.updates)
            slots = [slot for slot, _ in self.updates] + [NO_SLOT] * unused
            extents = [extent for _, extent in self.updates] + [NO_EXTENT] * unused
            context = list(self.context) + [NO_EXTENT] * (CONTEXT_SLOTS - len(self.context))
            head = _HEAD.pack(
                AL_MAGIC,
                self.number,
                0,
                self.type,
                len(self.updates),
                self.context_size,
                self.context_start,
                self.reserved,
            )
            body = head + _SLOTS.pack(*slots) + _EXTENTS.pack(*extents) + _CONTEXT.pack(*context)
        crc = crc32c(body)
        return body[:_CRC_OFFSET] + crc.to_bytes(4, "big") + body[_CRC_OFFSET + 4 :]


def decode(block: bytes) -> Transaction:
    """Decode and check one block."""
    if len(block) != BLOCK_BYTES:
        raise MetadataError(f"Activity log block: {len(block)} bytes, {BLOCK_BYTES} are expected.")
    magic, number, crc, kind, n_updates, context_size, context_start, reserved = _HEAD.unpack_from(block)
    if magic != AL_MAGIC:
        raise MetadataError(f"Activity log block: wrong magic 0x{magic:08x}.")
    found = crc32c(block[:_CRC_OFFSET] + bytes(4) + block[_CRC_OFFSET + 4 :])
    if found != crc:
        raise MetadataError(f"Activity log block {number}: checksum 0x{found:08x} instead of 0x{crc:08x}.")
    if kind == TransactionType.INITIALISED:
        return Transaction(number, TransactionType.INITIALISED)
    if kind != TransactionType.UPDATE or n_updates > UPDATES_MAX:
        raise MetadataError(f"Activity log block {number}: type 0x{kind:04x} with {n_updates} updates.")
    offset = _HEAD.size
    slots = _SLOTS.unpack_from(block, offset)
    extents = _EXTENTS.unpack_from(block, offset + _SLOTS.size)
    context = _CONTEXT.unpack_from(block, offset + _SLOTS.size + _EXTENTS.size)
    return Transaction(
        number,
        TransactionType.UPDATE,
        context_size,
        context_start,
        tuple(zip(slots[:n_updates], extents[:n_updates], strict=True)),
        context,
        reserved,
    )


INITIALISED_BLOCK = Transaction(0, TransactionType.INITIALISED).encode()


def windows(context_size: int) -> int:
    """Number of consecutive transactions that describe the whole slot table."""
    return max(1, -(-context_size // CONTEXT_SLOTS))


def block_of_position(position: int, al_stripes: int, al_stripe_size_4k: int) -> int:
    """Block index from the start of the log of ring position ``position``."""
    return (position % al_stripes) * al_stripe_size_4k + position // al_stripes


def ring_position(number: int, al_stripes: int, al_stripe_size_4k: int) -> int:
    """Block index from the start of the log where transaction ``number`` is stored."""
    position = number % (al_stripes * al_stripe_size_4k)
    return block_of_position(position, al_stripes, al_stripe_size_4k)


@dataclass(frozen=True, slots=True)
class Replay:
    """What a log says.

    ``extents``: the active ones, sorted.  ``mark_everything``: the table may be incomplete, treat all data as
    active.  ``newest`` / ``oldest``: transaction numbers, None if the log is empty.  ``damaged``: block
    indexes
    from the start of the log.  ``ignored_slots``: slot numbers beyond the limit that were skipped.
    """

    extents: tuple[int, ...]
    mark_everything: bool
    oldest: int | None
    newest: int | None
    damaged: tuple[int, ...]
    ignored_slots: tuple[int, ...] = ()


def _distance(number: int, origin: int) -> int:
    """Signed distance of two transaction numbers in 32-bit arithmetic."""
    difference = (number - origin) % _TR_MODULUS
    return difference - _TR_MODULUS if difference >= _TR_MODULUS // 2 else difference


def _read_ring(
    blocks: Sequence[bytes], al_stripes: int, al_stripe_size_4k: int
) -> tuple[list[Transaction | None], tuple[int, ...]]:
    """Transactions in ring order (None = damaged) and the damaged block indexes."""
    ring: list[Transaction | None] = []
    damaged = []
    for position in range(len(blocks)):
        index = block_of_position(position, al_stripes, al_stripe_size_4k)
        try:
            ring.append(decode(blocks[index]))
        except MetadataError:
            ring.append(None)
            damaged.append(index)
    return ring, tuple(sorted(damaged))


def _table_complete(ring: list[Transaction | None], order: list[Transaction]) -> bool:
    """Whether the valid update blocks (oldest first) are known to describe the whole table.

    differs: drbdmeta takes what it finds (decision 0010).  The table is complete if the unbroken run of transactions
    that ends with the newest contains every context window, or reaches back to the initialised log.
    """
    size = len(ring)
    newest = order[-1]
    place = {id(transaction): position for position, transaction in enumerate(ring)}
    for before, after in zip(order, order[1:], strict=False):
        if before.number == after.number:
            return False
    for transaction in order:
        if place[id(transaction)] != transaction.number % size:
            return False
    if _distance(newest.number, order[0].number) >= size:
        return False
    # One damaged block behind the newest is the write that the crash interrupted; two cannot be.
    behind = 0
    while behind < size and ring[(newest.number + 1 + behind) % size] is None:
        behind += 1
    if behind > 1:
        return False
    covered: set[int] = set()
    run = 0
    for transaction in reversed(order):
        if _distance(newest.number, transaction.number) != run:
            break
        run += 1
        if transaction.context_size != newest.context_size:
            return False
        first = transaction.context_start
        covered.update(range(first, min(first + CONTEXT_SLOTS, newest.context_size)))
        if len(covered) >= newest.context_size:
            return True
    if run < len(order):
        return False
    before_oldest = ring[(order[0].number - 1) % size]
    return before_oldest is not None and before_oldest.type is TransactionType.INITIALISED


def replay(blocks: Sequence[bytes], *, al_stripes: int, al_stripe_size_4k: int, primary_ind: bool) -> Replay:
    """Replay a log given as its blocks in disk order.

    ``primary_ind``: the flag of the superblock.  Without it nothing has to be marked, so nothing is refused;
    the
    extents are still reported.
    """
    if len(blocks) != al_stripes * al_stripe_size_4k or not blocks:
        raise MetadataError(
            f"Activity log: {len(blocks)} blocks, {al_stripes * al_stripe_size_4k} are expected."
        )
    ring, damaged = _read_ring(blocks, al_stripes, al_stripe_size_4k)
    nothing = Replay((), False, None, None, damaged)
    valid = [transaction for transaction in ring if transaction is not None]
    advice = "Nobody knows what a crashed Primary wrote last: invalidate this node's data or verify it."
    if not valid:
        if primary_ind:
            raise MetadataError("Activity log: no valid block, and this node was Primary.", advice=advice)
        return nothing
    updates = [transaction for transaction in valid if transaction.type is TransactionType.UPDATE]
    if not updates:
        only_first_torn = len(valid) == len(ring) - 1 and ring[0] is None
        if len(valid) < len(ring) and not only_first_torn and primary_ind:
            raise MetadataError("Activity log: damaged, and this node was Primary.", advice=advice)
        return nothing
    origin = updates[0].number
    order = sorted(updates, key=lambda transaction: _distance(transaction.number, origin))
    table: dict[int, int] = {}
    ignored: set[int] = set()
    for transaction in order:
        for index, extent in enumerate(transaction.context):
            slot = transaction.context_start + index
            if slot >= transaction.context_size and extent == NO_EXTENT:
                continue
            _store(table, ignored, slot, extent)
        for slot, extent in transaction.updates:
            _store(table, ignored, slot, extent)
    return Replay(
        extents=tuple(sorted(set(table.values()))),
        mark_everything=not _table_complete(ring, order),
        oldest=order[0].number,
        newest=order[-1].number,
        damaged=damaged,
        ignored_slots=tuple(sorted(ignored)),
    )


def _store(table: dict[int, int], ignored: set[int], slot: int, extent: int) -> None:
    if slot >= SLOTS_MAX:
        ignored.add(slot)
    elif extent == NO_EXTENT:
        table.pop(slot, None)
    else:
        table[slot] = extent


@dataclass(frozen=True, slots=True)
class Marks:
    """Bitmap bytes to set to 0xff as (offset, length), ascending and joined; ``beyond``: extents
    past the end.
    """

    ranges: tuple[tuple[int, int], ...]
    beyond: tuple[int, ...]


def apply(result: Replay, *, bitmap_bits: int, primary_ind: bool) -> Marks:
    """The bytes of the on-disk bitmap that the replay sets; nothing if the node was not Primary."""
    if not primary_ind:
        return Marks((), ())
    extents_total = -(-bitmap_bits // EXTENT_BITS)
    if result.mark_everything:
        length = extents_total * EXTENT_BITMAP_BYTES
        beyond = tuple(extent for extent in result.extents if extent >= extents_total)
        return Marks(((0, length),) if length else (), beyond)
    ranges: list[tuple[int, int]] = []
    past_end = []
    for extent in result.extents:
        if extent >= extents_total:
            past_end.append(extent)
            continue
        offset = extent * EXTENT_BITMAP_BYTES
        if ranges and ranges[-1][0] + ranges[-1][1] == offset:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + EXTENT_BITMAP_BYTES)
        else:
            ranges.append((offset, EXTENT_BITMAP_BYTES))
    return Marks(tuple(ranges), tuple(past_end))
