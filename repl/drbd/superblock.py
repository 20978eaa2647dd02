# SPDX-License-Identifier: Apache-2.0
"""The 4096-byte superblock of DRBD v08 metadata.

Inputs and outputs: 4096 bytes and frozen values; sizes named ``*_sectors`` are 512-byte sectors.
Raises ``MetadataError`` when bytes are not usable v08 metadata or do not fit the layout of the device.
Facts: superblocks written by drbdmeta and the 8.4.11 driver; flag rules of the driver.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag

from repl.drbd.layout import BIT_BYTES, BLOCK_SECTORS, Layout, bitmap_bits
from repl.drbd.states import ConnectionState, DiskState, Role, StateWord
from repl.drbd.uuids import Uuids
from repl.errors import MetadataError
from repl.limits import BLOCK_BYTES, SECTOR_BYTES

AL_EXTENTS_CREATED = 257
AL_EXTENTS_MIN = 67
AL_EXTENTS_MAX = 65534
PEER_MAX_BIO_BYTES_MIN = 4096


class Magic(IntEnum):
    """Superblock magics."""

    V07 = 0x8374026A
    V08_CLEAN = 0x8374026B
    V08_UNCLEAN = 0x8374026C
    V09 = 0x8374026D


class MdFlag(IntFlag):
    """Flags of the superblock."""

    NONE = 0
    CONSISTENT = 0x001
    PRIMARY_IND = 0x002
    CONNECTED_IND = 0x004
    FULL_SYNC = 0x008
    WAS_UP_TO_DATE = 0x010
    PEER_OUTDATED = 0x020
    CRASHED_PRIMARY = 0x040
    AL_CLEAN = 0x080
    AL_DISABLED = 0x100


# The order in which drbdmeta prints them.
GI_FLAGS = (
    MdFlag.CONSISTENT,
    MdFlag.WAS_UP_TO_DATE,
    MdFlag.PRIMARY_IND,
    MdFlag.CONNECTED_IND,
    MdFlag.FULL_SYNC,
    MdFlag.PEER_OUTDATED,
    MdFlag.CRASHED_PRIMARY,
)

_LAYOUT = struct.Struct(">QQQQQQ8xIIIiIiIIII")


@dataclass(frozen=True, slots=True)
class Superblock:
    """All fields.  ``la_size_sectors`` 0 = never attached; ``peer_max_bio_bytes`` 0 = unknown."""

    la_size_sectors: int
    uuids: Uuids
    device_uuid: int
    flags: MdFlag
    magic: Magic
    md_size_sectors: int
    al_offset_sectors: int
    al_extents: int
    bm_offset_sectors: int
    peer_max_bio_bytes: int
    al_stripes: int
    al_stripe_size_4k: int
    bytes_per_bit: int = BIT_BYTES

    @property
    def clean(self) -> bool:
        """False if the activity log has to be replayed before anything else."""
        return self.magic == Magic.V08_CLEAN and MdFlag.AL_CLEAN in self.flags

    @property
    def stripes(self) -> tuple[int, int]:
        """(al_stripes, al_stripe_size_4k) with the meaning of 0, 0 resolved."""
        if self.al_stripes == 0 and self.al_stripe_size_4k == 0:
            return 1, 8
        return self.al_stripes, self.al_stripe_size_4k

    @property
    def bitmap_bits(self) -> int:
        return bitmap_bits(self.la_size_sectors)

    @property
    def all_dirty(self) -> bool:
        """True if the bitmap on disk is not to be trusted and every bit counts as set."""
        if MdFlag.FULL_SYNC in self.flags:
            return True
        primary = self.flags & (MdFlag.PRIMARY_IND | MdFlag.CRASHED_PRIMARY)
        return MdFlag.AL_DISABLED in self.flags and bool(primary)

    def serialise(self) -> bytes:
        """The 4096 bytes."""
        head = _LAYOUT.pack(
            self.la_size_sectors,
            self.uuids.current,
            self.uuids.bitmap,
            self.uuids.history1,
            self.uuids.history2,
            self.device_uuid,
            self.flags,
            self.magic,
            self.md_size_sectors,
            self.al_offset_sectors,
            self.al_extents,
            self.bm_offset_sectors,
            self.bytes_per_bit,
            self.peer_max_bio_bytes,
            self.al_stripes,
            self.al_stripe_size_4k,
        )
        return head.ljust(BLOCK_BYTES, b"\0")


def parse(block: bytes, *, where: str = "superblock") -> Superblock:
    """Parse 4096 bytes; ``where`` names the device and offset in error messages."""
    if len(block) != BLOCK_BYTES:
        raise MetadataError(f"{where}: {len(block)} bytes read, {BLOCK_BYTES} are expected.")
    (
        la_size,
        current,
        bitmap,
        history1,
        history2,
        device_uuid,
        flags,
        magic,
        md_size,
        al_offset,
        al_extents,
        bm_offset,
        bytes_per_bit,
        peer_max_bio,
        stripes,
        stripe_size,
    ) = _LAYOUT.unpack_from(block)
    if magic == Magic.V07:
        raise MetadataError(f"{where}: v07 metadata.", advice="Convert it with drbdmeta first.")
    if magic == Magic.V09:
        raise MetadataError(f"{where}: DRBD 9 metadata.", advice="Convert it to v08 with drbdmeta first.")
    if magic not in (Magic.V08_CLEAN, Magic.V08_UNCLEAN):
        raise MetadataError(
            f"{where}: no metadata found (magic 0x{magic:08x}).", advice="Create it with create-md."
        )
    if bytes_per_bit != BIT_BYTES:
        raise MetadataError(f"{where}: {bytes_per_bit} bytes per bitmap bit, only {BIT_BYTES} is supported.")
    if (stripes == 0) != (stripe_size == 0):
        raise MetadataError(f"{where}: activity log of {stripes} stripes of {stripe_size} blocks.")
    return Superblock(
        la_size_sectors=la_size,
        uuids=Uuids(current, bitmap, history1, history2),
        device_uuid=device_uuid,
        flags=MdFlag(flags),
        magic=Magic(magic),
        md_size_sectors=md_size,
        al_offset_sectors=al_offset,
        al_extents=al_extents,
        bm_offset_sectors=bm_offset,
        peer_max_bio_bytes=peer_max_bio,
        al_stripes=stripes,
        al_stripe_size_4k=stripe_size,
    )


def verify_against_layout(
    superblock: Superblock, layout: Layout, *, backing_bytes: int | None = None
) -> None:
    """Refuse a superblock that does not say exactly what the device size and the stripes imply.

    ``backing_bytes``: size of the data device if the metadata is external and the size is known.
    """
    advice = "The device may have changed its size; restore the old size or move the metadata."
    where = f"{layout.kind.value} metadata at byte {layout.superblock_byte}"
    if superblock.stripes != (layout.al_stripes, layout.al_stripe_size_4k):
        raise MetadataError(f"{where}: activity log stripes {superblock.stripes} do not fit.", advice=advice)
    for name, found, expected in (
        ("md_size", superblock.md_size_sectors, layout.md_size_sectors),
        ("al_offset", superblock.al_offset_sectors, layout.al_offset_sectors),
        ("bm_offset", superblock.bm_offset_sectors, layout.bm_offset_sectors),
    ):
        if found != expected:
            raise MetadataError(f"{where}: {name} is {found} sectors, {expected} is expected.", advice=advice)
    if superblock.bm_offset_sectors % BLOCK_SECTORS:
        raise MetadataError(f"{where}: the bitmap does not start at a 4 KiB boundary.")
    if superblock.la_size_sectors > layout.covered_sectors:
        raise MetadataError(
            f"{where}: the bitmap has no room for a device of {superblock.la_size_sectors} sectors.",
            advice=advice,
        )
    usable = layout.usable_sectors(backing_bytes)
    if MdFlag.CONSISTENT in superblock.flags and superblock.la_size_sectors > usable:
        raise MetadataError(
            f"{where}: the device had {superblock.la_size_sectors} sectors, only {usable} are there now.",
            advice=advice,
        )


def create(layout: Layout, *, device_uuid: int = 0, peer_max_bio_bytes: int = 0) -> Superblock:
    """What create-md writes: just created, clean, never attached."""
    return Superblock(
        la_size_sectors=0,
        uuids=Uuids(),
        device_uuid=device_uuid,
        flags=MdFlag.AL_CLEAN,
        magic=Magic.V08_CLEAN,
        md_size_sectors=layout.md_size_sectors,
        al_offset_sectors=layout.al_offset_sectors,
        al_extents=AL_EXTENTS_CREATED,
        bm_offset_sectors=layout.bm_offset_sectors,
        peer_max_bio_bytes=peer_max_bio_bytes,
        al_stripes=layout.al_stripes,
        al_stripe_size_4k=layout.al_stripe_size_4k,
    )


def mark_clean(superblock: Superblock) -> Superblock:
    """After bitmap and initialised activity log are durable: nothing is left to replay."""
    return replace(superblock, magic=Magic.V08_CLEAN, flags=superblock.flags | MdFlag.AL_CLEAN)


def mark_unclean(superblock: Superblock) -> Superblock:
    """While attached: whoever opens it next has to replay the activity log."""
    return replace(superblock, magic=Magic.V08_UNCLEAN, flags=superblock.flags & ~MdFlag.AL_CLEAN)


# --- flags and state ----------------------------------------------

_FROM_STATE = (
    MdFlag.CONSISTENT
    | MdFlag.PRIMARY_IND
    | MdFlag.CONNECTED_IND
    | MdFlag.WAS_UP_TO_DATE
    | MdFlag.PEER_OUTDATED
    | MdFlag.CRASHED_PRIMARY
)


def flags_from_state(previous: MdFlag, state: StateWord, *, crashed_primary: bool = False) -> MdFlag:
    """The flags after a state change; ``crashed_primary`` is the volatile mark.

    Below Inconsistent (no disk, not yet or not any more) the flags stay what they were: a failed attach
    leaves
    the superblock alone, and a detached disk keeps what it was.  FULL_SYNC and AL_DISABLED are not derived
    from
    state.
    """
    if state.disk < DiskState.INCONSISTENT:
        return previous
    flags = previous & ~(_FROM_STATE | MdFlag.AL_CLEAN)
    if state.disk > DiskState.INCONSISTENT:
        flags |= MdFlag.CONSISTENT
    if state.disk > DiskState.OUTDATED:
        flags |= MdFlag.WAS_UP_TO_DATE
    peer_diskless_primary = state.pdsk < DiskState.INCONSISTENT and state.peer == Role.PRIMARY
    if state.role == Role.PRIMARY or peer_diskless_primary:
        flags |= MdFlag.PRIMARY_IND
    if state.conn > ConnectionState.WF_REPORT_PARAMS:
        flags |= MdFlag.CONNECTED_IND
    if state.pdsk in (DiskState.INCONSISTENT, DiskState.OUTDATED):
        flags |= MdFlag.PEER_OUTDATED
    if crashed_primary:
        flags |= MdFlag.CRASHED_PRIMARY
    return flags


def crashed_primary_at_attach(flags: MdFlag) -> bool:
    """The volatile "crashed primary" mark; it is removed when both disks become UpToDate.

    differs: a Primary that worked through its peer's disk is not ahead on its own one (decision 0016).
    """
    died = MdFlag.PRIMARY_IND | MdFlag.WAS_UP_TO_DATE
    return MdFlag.CRASHED_PRIMARY in flags or flags & died == died


def disk_state_after_attach(flags: MdFlag, *, fencing: bool = False) -> DiskState:
    """Disk state of a lone node after attach; ``fencing`` is True for any policy but dont-care.

    With a connection the disk is Negotiating first and this is the state prepared for it.
    """
    if MdFlag.CONSISTENT not in flags:
        return DiskState.INCONSISTENT
    if MdFlag.WAS_UP_TO_DATE not in flags:
        return DiskState.OUTDATED
    if not fencing or MdFlag.PEER_OUTDATED in flags:
        return DiskState.UP_TO_DATE
    return DiskState.CONSISTENT


def disk_state_text(flags: MdFlag) -> str:
    """What ``drbdmeta dstate`` prints."""
    if MdFlag.CONSISTENT not in flags:
        return str(DiskState.INCONSISTENT)
    if MdFlag.WAS_UP_TO_DATE not in flags:
        return str(DiskState.OUTDATED)
    return str(DiskState.UP_TO_DATE if MdFlag.PEER_OUTDATED in flags else DiskState.CONSISTENT)


def get_gi_text(superblock: Superblock) -> str:
    """What ``drbdmeta get-gi`` prints, without newline."""
    flags = ":".join("1" if flag in superblock.flags else "0" for flag in GI_FLAGS)
    return f"{superblock.uuids}:{flags}"


def data_bytes(superblock: Superblock) -> int:
    """Size of the replicated device in bytes."""
    return superblock.la_size_sectors * SECTOR_BYTES
