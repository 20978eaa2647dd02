# SPDX-License-Identifier: Apache-2.0
"""Layouts, superblock flags and activity logs that no golden file contains."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.drbd import activity_log, layout, superblock
from repl.drbd.activity_log import INITIALISED_BLOCK, NO_EXTENT, Transaction, TransactionType
from repl.drbd.layout import MetadataKind
from repl.drbd.states import ConnectionState, DiskState, Role, StateWord
from repl.drbd.superblock import Magic, MdFlag
from repl.errors import MetadataError

MIB = 1 << 20


@pytest.mark.parametrize(
    "case",
    [
        (MetadataKind.INTERNAL, 1048575, 0, 1, 8),
        (MetadataKind.INTERNAL, MIB, 0, 64, 8),
        (MetadataKind.FLEXIBLE, 1048575, 0, 1, 8),
        (MetadataKind.FLEXIBLE, MIB, 0, 32, 8),
        (MetadataKind.FLEXIBLE, 1 << 41, 0, 1, 8),
        (MetadataKind.INDEXED, 128 * MIB - 512, 0, 1, 8),
        (MetadataKind.INDEXED, 384 * MIB - 512, 2, 1, 8),
        (MetadataKind.INDEXED, 1 << 40, 256, 1, 8),
        (MetadataKind.INDEXED, 1 << 40, -1, 1, 8),
        (MetadataKind.INDEXED, 1 << 40, 0, 2, 8),
        (MetadataKind.INTERNAL, 1 << 40, 0, 0, 8),
        (MetadataKind.INTERNAL, 1 << 40, 0, 1, 0),
        (MetadataKind.INTERNAL, 1 << 40, 0, 1, 7),
        (MetadataKind.INTERNAL, 1 << 40, 0, 1025, 8),
        (MetadataKind.INTERNAL, 1 << 50, 0, 2, 1 << 22),
    ],
)
def test_device_or_activity_log_that_does_not_fit_is_refused_with_advice(
    case: tuple[MetadataKind, int, int, int, int],
) -> None:
    kind, size, index, stripes, stripe_size = case
    with pytest.raises(MetadataError) as caught:
        layout.calculate(kind, size, index=index, al_stripes=stripes, al_stripe_size_4k=stripe_size)
    assert caught.value.advice


@given(size=st.integers(MIB, 1 << 52), stripes=st.integers(1, 4), stripe_size=st.integers(8, 32))
def test_internal_layout_of_any_size_never_overlaps_the_data(
    size: int, stripes: int, stripe_size: int
) -> None:
    try:
        where = layout.internal(size, al_stripes=stripes, al_stripe_size_4k=stripe_size)
    except MetadataError:
        return
    assert 0 < where.usable_bytes == where.bitmap_byte
    assert where.bitmap_byte + where.bitmap_bytes == where.al_byte
    assert where.al_byte + where.al_bytes == where.superblock_byte
    assert where.superblock_byte + 4096 <= size < where.superblock_byte + 8192
    assert where.covered_sectors >= where.usable_sectors()
    assert layout.bitmap_disk_bytes(where.usable_sectors()) <= where.bitmap_bytes


def test_external_capacity_is_the_smaller_of_data_device_and_bitmap() -> None:
    where = layout.flexible(3 * MIB + 512)
    assert where.md_size_sectors == 6145
    assert where.usable_sectors() == (6145 - 72) * 32768
    assert where.usable_sectors(MIB) == 2048
    assert layout.indexed(128 * MIB, 0).usable_sectors(1 << 50) == (262144 - 72) * 32768


WHERE = layout.internal(64 * MIB)
FRESH = superblock.create(WHERE)


@pytest.mark.parametrize(
    "changes",
    [
        {"md_size_sectors": 88},
        {"al_offset_sectors": -72},
        {"bm_offset_sectors": -80},
        {"al_stripes": 2, "al_stripe_size_4k": 4},
        {"la_size_sectors": 262145},
        {"la_size_sectors": 130993, "flags": MdFlag.CONSISTENT},
    ],
)
def test_superblock_that_does_not_fit_its_device_is_refused(changes: dict[str, int]) -> None:
    superblock.verify_against_layout(FRESH, WHERE)
    with pytest.raises(MetadataError):
        superblock.verify_against_layout(replace(FRESH, **changes), WHERE)  # type: ignore[arg-type]


def test_old_superblock_without_stripe_fields_means_one_stripe_of_32k() -> None:
    superblock.verify_against_layout(replace(FRESH, al_stripes=0, al_stripe_size_4k=0), WHERE)


@pytest.mark.parametrize(
    ("offset", "content"),
    [
        (60, Magic.V07.to_bytes(4, "big")),
        (60, Magic.V09.to_bytes(4, "big")),
        (60, bytes(4)),
        (80, (8192).to_bytes(4, "big")),
        (88, bytes(4)),
        (92, bytes(4)),
    ],
)
def test_superblock_that_is_not_usable_is_refused(offset: int, content: bytes) -> None:
    block = bytearray(FRESH.serialise())
    block[offset : offset + len(content)] = content
    with pytest.raises(MetadataError):
        superblock.parse(bytes(block))


def test_superblock_of_wrong_length_is_refused() -> None:
    with pytest.raises(MetadataError):
        superblock.parse(FRESH.serialise()[:-1])


def test_clean_and_unclean_marks_change_magic_and_flag() -> None:
    unclean = superblock.mark_unclean(FRESH)
    assert (unclean.magic, unclean.clean) == (Magic.V08_UNCLEAN, False)
    assert superblock.mark_clean(unclean) == FRESH
    assert not replace(FRESH, flags=MdFlag.NONE).clean


UP, OUT, INC, UNKNOWN = DiskState.UP_TO_DATE, DiskState.OUTDATED, DiskState.INCONSISTENT, DiskState.UNKNOWN


@pytest.mark.parametrize(
    ("state", "flags"),
    [
        (StateWord(Role.PRIMARY, Role.SECONDARY, ConnectionState.CONNECTED, UP, UP), 0x017),
        (StateWord(Role.SECONDARY, Role.PRIMARY, ConnectionState.CONNECTED, UP, UP), 0x015),
        (StateWord(Role.SECONDARY, Role.UNKNOWN, ConnectionState.WF_CONNECTION, UP, UNKNOWN), 0x011),
        (StateWord(Role.PRIMARY, Role.UNKNOWN, ConnectionState.WF_CONNECTION, UP, OUT), 0x033),
        (StateWord(Role.SECONDARY, Role.UNKNOWN, ConnectionState.STANDALONE, OUT, UNKNOWN), 0x001),
        (StateWord(Role.SECONDARY, Role.PRIMARY, ConnectionState.SYNC_TARGET, INC, UP), 0x004),
        (StateWord(Role.SECONDARY, Role.PRIMARY, ConnectionState.CONNECTED, UP, DiskState.DISKLESS), 0x017),
    ],
)
def test_flags_follow_the_state(state: StateWord, flags: int) -> None:
    assert superblock.flags_from_state(MdFlag(0x080 | 0x020), state, crashed_primary=False) == flags
    crashed = superblock.flags_from_state(MdFlag.NONE, state, crashed_primary=True)
    assert crashed == flags | MdFlag.CRASHED_PRIMARY


def test_flags_that_do_not_follow_the_state_stay() -> None:
    state = StateWord(disk=UP)
    kept = MdFlag.FULL_SYNC | MdFlag.AL_DISABLED
    assert superblock.flags_from_state(kept, state, crashed_primary=False) & kept == kept


@pytest.mark.parametrize(
    "disk", [DiskState.DISKLESS, DiskState.ATTACHING, DiskState.FAILED, DiskState.NEGOTIATING]
)
def test_flags_without_a_usable_disk_stay_as_they_were(disk: DiskState) -> None:
    previous = MdFlag(0x91)
    assert superblock.flags_from_state(previous, StateWord(disk=disk), crashed_primary=True) == previous


@pytest.mark.parametrize(
    ("flags", "fencing", "expected"),
    [
        (0x000, False, INC),
        (0x001, False, OUT),
        (0x011, False, UP),
        (0x011, True, DiskState.CONSISTENT),
        (0x031, True, UP),
        (0x010, False, INC),
    ],
)
def test_disk_state_after_attach_follows_the_flags(flags: int, fencing: bool, expected: DiskState) -> None:
    assert superblock.disk_state_after_attach(MdFlag(flags), fencing=fencing) is expected


def test_crashed_primary_is_recognised_from_either_flag() -> None:
    recognise = superblock.crashed_primary_at_attach
    assert recognise(MdFlag.CRASHED_PRIMARY)
    assert recognise(MdFlag.PRIMARY_IND | MdFlag.WAS_UP_TO_DATE)
    assert not recognise(MdFlag.PRIMARY_IND | MdFlag.CONSISTENT)  # it worked through its peer's disk
    assert not recognise(MdFlag.CONSISTENT)


@pytest.mark.parametrize(
    ("flags", "expected"), [(0x008, True), (0x102, True), (0x140, True), (0x100, False), (0x013, False)]
)
def test_full_sync_or_a_crash_without_activity_log_makes_everything_dirty(flags: int, expected: bool) -> None:
    assert replace(FRESH, flags=MdFlag(flags)).all_dirty is expected


# --- activity log --------------------------------------------------------------


def test_crc_has_the_documented_check_value() -> None:
    assert INITIALISED_BLOCK[8:12].hex() == "709cc651"
    assert activity_log.crc32c(b"123456789", 0xFFFFFFFF) ^ 0xFFFFFFFF == 0xE3069283


def test_ring_position_with_stripes_is_as_documented() -> None:
    assert activity_log.ring_position(91, 3, 4) == 6
    assert sorted(activity_log.ring_position(number, 3, 4) for number in range(12)) == list(range(12))


def update(
    number: int,
    *,
    slots: int = 67,
    start: int = 0,
    updates: tuple[tuple[int, int], ...] = (),
    extent: int = NO_EXTENT,
) -> bytes:
    count = min(activity_log.CONTEXT_SLOTS, slots - start)
    return Transaction(number, TransactionType.UPDATE, slots, start, updates, (extent,) * count).encode()


BAD = bytes(4096)


def replay(blocks: list[bytes], *, primary: bool = True) -> activity_log.Replay:
    return activity_log.replay(blocks, al_stripes=1, al_stripe_size_4k=len(blocks), primary_ind=primary)


def test_initialised_log_has_nothing_to_apply() -> None:
    result = replay([INITIALISED_BLOCK] * 8)
    assert (result.extents, result.newest, result.mark_everything) == ((), None, False)


def test_torn_first_transaction_has_nothing_to_apply() -> None:
    result = replay([BAD] + [INITIALISED_BLOCK] * 7)
    assert (result.extents, result.damaged) == ((), (0,))


def test_damage_in_an_initialised_log_is_refused_for_a_primary_only() -> None:
    blocks = [INITIALISED_BLOCK] * 7 + [BAD]
    assert replay(blocks, primary=False).extents == ()
    with pytest.raises(MetadataError):
        replay(blocks)


def test_log_without_any_valid_block_is_refused_for_a_primary_only() -> None:
    assert replay([BAD] * 8, primary=False).extents == ()
    with pytest.raises(MetadataError):
        replay([BAD] * 8)


def test_log_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(MetadataError):
        activity_log.replay([BAD] * 7, al_stripes=1, al_stripe_size_4k=8, primary_ind=True)


def test_first_transaction_of_a_large_table_is_complete_after_an_initialised_log() -> None:
    result = replay([update(0, slots=2000, updates=((1999, 5),))] + [INITIALISED_BLOCK] * 7)
    assert (result.extents, result.mark_everything) == ((5,), False)


def large_ring(*damaged: int) -> activity_log.Replay:
    """2000 slots = 3 windows, transactions 8..15 in a ring of 8."""
    blocks = [
        update(8 + step, slots=2000, start=step % 3 * 919, updates=((step, step),)) for step in range(8)
    ]
    for step in damaged:
        blocks[step] = BAD
    return replay(blocks)


@pytest.mark.parametrize("damaged", [(), (0,), (1,), (2, 3), (4,), (0, 2)])
def test_large_table_with_its_last_windows_intact_is_complete(damaged: tuple[int, ...]) -> None:
    assert not large_ring(*damaged).mark_everything


@pytest.mark.parametrize("damaged", [(5,), (6,), (5, 6)])
def test_large_table_with_a_gap_in_its_last_windows_marks_everything(damaged: tuple[int, ...]) -> None:
    assert large_ring(*damaged).mark_everything


def test_log_with_stale_or_misplaced_blocks_marks_everything() -> None:
    good = [update(number) for number in range(8)]
    assert not replay(good).mark_everything
    assert replay([*good[:7], update(8 + 6)]).mark_everything
    assert replay([good[1], good[0], *good[2:]]).mark_everything
    assert replay([*good[:7], update(700 * 8 + 7)]).mark_everything


def test_slots_beyond_the_limit_are_ignored_and_reported() -> None:
    result = replay([update(0, updates=((65534, 3), (1, 4)))] + [INITIALISED_BLOCK] * 7)
    assert (result.extents, result.ignored_slots) == ((4,), (65534,))


def test_marks_join_neighbours_and_report_extents_past_the_end() -> None:
    result = activity_log.Replay((0, 1, 3, 15, 16, 99), False, 0, 0, ())
    marks = activity_log.apply(result, bitmap_bits=16374, primary_ind=True)
    assert marks.ranges == ((0, 256), (384, 128), (1920, 128))
    assert marks.beyond == (16, 99)
    assert activity_log.apply(result, bitmap_bits=16374, primary_ind=False).ranges == ()


def test_marks_of_an_incomplete_table_cover_the_whole_bitmap() -> None:
    result = activity_log.Replay((3,), True, 0, 0, ())
    assert activity_log.apply(result, bitmap_bits=16374, primary_ind=True).ranges == ((0, 2048),)


@given(extent=st.integers(0, NO_EXTENT), flip=st.integers(0, 4096 * 8 - 1))
def test_block_with_any_flipped_bit_is_refused(extent: int, flip: int) -> None:
    block = bytearray(update(5, updates=((1, extent),)))
    block[flip >> 3] ^= 1 << (flip & 7)
    with pytest.raises(MetadataError):
        activity_log.decode(bytes(block))
