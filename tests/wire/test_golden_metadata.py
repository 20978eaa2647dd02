# SPDX-License-Identifier: Apache-2.0
"""Metadata written by drbdmeta and by the driver: parsed, written again, replayed, laid out, dumped."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from repl.drbd import activity_log, dump, layout, superblock
from repl.drbd.layout import Layout, MetadataKind
from repl.drbd.superblock import MdFlag
from repl.drbd.uuids import Uuids
from repl.errors import MetadataError
from tests.wire.vector_files import MetadataImage, metadata_files, metadata_image

IMAGES = [path.name for path in metadata_files()]
KINDS = {kind.value: kind for kind in MetadataKind}


def layout_of(image: MetadataImage) -> Layout:
    block = superblock.parse(bytes(image.superblock))
    stripes, stripe_size = block.stripes
    return layout.calculate(
        KINDS[image.layout],
        image.device_bytes,
        index=image.index,
        al_stripes=stripes,
        al_stripe_size_4k=stripe_size,
    )


def replay_of(image: MetadataImage, blocks: list[bytes] | None = None) -> activity_log.Replay:
    block = superblock.parse(bytes(image.superblock))
    stripes, stripe_size = block.stripes
    return activity_log.replay(
        image.al_blocks if blocks is None else blocks,
        al_stripes=stripes,
        al_stripe_size_4k=stripe_size,
        primary_ind=MdFlag.PRIMARY_IND in block.flags,
    )


def without_flags(text: str) -> str:
    """drbdmeta 9.22 prints flags 0 for v08 metadata."""
    return re.sub(r"flags 0x[0-9A-F]{8};", "flags;", text)


@pytest.mark.parametrize("name", IMAGES)
def test_superblock_parsed_and_written_again_is_identical(name: str) -> None:
    image = metadata_image(name)
    assert superblock.parse(bytes(image.superblock)).serialise() == bytes(image.superblock)


@pytest.mark.parametrize("name", IMAGES)
def test_layout_calculated_stands_where_the_tool_put_it(name: str) -> None:
    image = metadata_image(name)
    where = layout_of(image)
    superblock.verify_against_layout(superblock.parse(bytes(image.superblock)), where)
    found = (where.superblock_byte, where.al_byte, where.al_bytes, where.bitmap_byte)
    assert found == (image.superblock_at, image.al_at, len(image.activity_log), image.bitmap_at)
    at = layout.superblock_position(KINDS[image.layout], image.device_bytes, image.index)
    assert at == image.superblock_at


@pytest.mark.parametrize("name", IMAGES)
def test_activity_log_block_decoded_and_encoded_again_is_identical(name: str) -> None:
    for block in metadata_image(name).al_blocks:
        assert activity_log.decode(block).encode() == block


@pytest.mark.parametrize("name", IMAGES)
def test_get_gi_dstate_and_dump_are_what_drbdmeta_prints(name: str) -> None:
    image = metadata_image(name)
    block = superblock.parse(bytes(image.superblock))
    assert superblock.get_gi_text(block) == image.get_gi
    assert superblock.disk_state_text(block.flags) == image.dstate
    text = dump.dump_md(block, layout_of(image), bytes(image.bitmap))
    assert without_flags(text) == without_flags(image.dump)


@pytest.mark.parametrize("name", [name for name in IMAGES if name.startswith("fresh-")])
def test_created_superblock_is_byte_identical_to_create_md(name: str) -> None:
    image = metadata_image(name)
    assert superblock.create(layout_of(image)).serialise() == bytes(image.superblock)
    assert set(image.al_blocks) == {activity_log.INITIALISED_BLOCK}


def applied(image: MetadataImage) -> tuple[bytes, bytes, bytes]:
    """(superblock, activity log, bitmap) after our replay."""
    block = superblock.parse(bytes(image.superblock))
    primary = MdFlag.PRIMARY_IND in block.flags
    marks = activity_log.apply(replay_of(image), bitmap_bits=block.bitmap_bits, primary_ind=primary)
    bitmap = bytearray(image.bitmap)
    for offset, length in marks.ranges:
        bitmap[offset : offset + length] = b"\xff" * length
    log = activity_log.INITIALISED_BLOCK * len(image.al_blocks)
    return superblock.mark_clean(block).serialise(), log, bytes(bitmap)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("crash-primary-before-apply.txt", "crash-primary-after-apply.txt"),
        ("crash-flexext-striped-before-apply.txt", "crash-flexext-striped-after-apply.txt"),
        ("handmade-unclean-wrap.txt", "handmade-unclean-wrap-after-apply.txt"),
    ],
)
def test_replay_of_a_crashed_primary_gives_what_apply_al_gives(before: str, after: str) -> None:
    expected = metadata_image(after)
    found = applied(metadata_image(before))
    wanted = (bytes(expected.superblock), bytes(expected.activity_log), bytes(expected.bitmap))
    assert found == wanted


def test_replay_of_a_crashed_secondary_marks_nothing() -> None:
    image = metadata_image("crash-secondary-before-apply.txt")
    assert replay_of(image).extents == ()
    assert applied(image)[2] == bytes(len(image.bitmap))


CRASHED = "crash-primary-before-apply.txt"


def flipped(block: bytes) -> bytes:
    return block[:500] + bytes((block[500] ^ 1,)) + block[501:]


def crashed_with_damage(*ages: int) -> activity_log.Replay:
    """Replay with the transactions damaged that are ``ages`` older than the newest."""
    image = metadata_image(CRASHED)
    blocks = image.al_blocks
    order = sorted(range(len(blocks)), key=lambda index: -activity_log.decode(blocks[index]).number)
    for age in ages:
        blocks[order[age]] = flipped(blocks[order[age]])
    return replay_of(image, blocks)


@pytest.mark.parametrize(
    ("ages", "first", "last"),
    [
        ((), 24, 90),
        ((0,), 23, 89),
        ((1,), 24, 90),
        ((7,), 24, 90),
        ((3, 4, 5), 24, 90),
    ],
)
def test_replay_with_damaged_blocks_marks_the_documented_extents(
    ages: tuple[int, ...], first: int, last: int
) -> None:
    result = crashed_with_damage(*ages)
    assert result.extents == tuple(range(first, last + 1))
    assert not result.mark_everything
    assert len(result.damaged) == len(ages)


def test_replay_with_all_blocks_damaged_is_refused() -> None:
    with pytest.raises(MetadataError):
        crashed_with_damage(*range(8))


def test_replay_with_the_two_newest_blocks_damaged_marks_everything() -> None:
    assert crashed_with_damage(0, 1).mark_everything


@pytest.mark.parametrize(
    ("device_bytes", "stripes", "superblock_at", "md_size", "al_offset", "bm_offset", "usable"),
    [
        (1048576, (1, 8), 1044480, 80, -64, -72, 1968),
        (67108864, (1, 8), 67104768, 80, -64, -72, 130992),
        (134217728, (1, 8), 134213632, 80, -64, -72, 262064),
        (134221824, (1, 8), 134217728, 88, -64, -80, 262064),
        (1073745408, (1, 8), 1073737728, 144, -64, -136, 2097008),
        (274877915136, (1, 8), 274877911040, 16464, -64, -16456, 536854464),
        (67108864, (4, 16), 67104768, 528, -512, -520, 130544),
    ],
)
def test_internal_layout_of_the_documented_devices_is_as_documented(
    device_bytes: int,
    stripes: tuple[int, int],
    superblock_at: int,
    md_size: int,
    al_offset: int,
    bm_offset: int,
    usable: int,
) -> None:
    found = layout.internal(device_bytes, al_stripes=stripes[0], al_stripe_size_4k=stripes[1])
    assert found.superblock_byte == superblock_at
    assert found.md_size_sectors == md_size
    assert (found.al_offset_sectors, found.bm_offset_sectors) == (al_offset, bm_offset)
    assert found.usable_sectors() == usable


# --- against the real tool -----------------------------------------------------

DRBDMETA = shutil.which("drbdmeta", path="/usr/sbin:/sbin:/usr/bin:/usr/local/sbin") or ""
needs_drbdmeta = pytest.mark.skipif(not DRBDMETA or os.geteuid() != 0, reason="drbdmeta as root is needed")
MINOR = "973"


def drbdmeta(file: Path, kind: MetadataKind, index: int, *command: str) -> str:
    device_index = str(index) if kind is MetadataKind.INDEXED else kind.value
    done = subprocess.run(
        [DRBDMETA, "--force", MINOR, "v08", str(file), device_index, *command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def sparse(path: Path, size_bytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def random_layouts() -> list[tuple[MetadataKind, int, int, int, int]]:
    source = random.Random(8404)
    cases: list[tuple[MetadataKind, int, int, int, int]] = []
    for kind in MetadataKind:
        for _ in range(8):
            index = source.randrange(3) if kind is MetadataKind.INDEXED else 0
            smallest = 134217728 * (index + 1) if kind is MetadataKind.INDEXED else 16 << 20
            size = smallest + source.randrange(1 << source.randrange(12, 36)) // 512 * 512
            stripes, stripe_size = (1, 8)
            if kind is not MetadataKind.INDEXED and source.random() < 0.5:
                stripes, stripe_size = source.randrange(1, 6), source.randrange(8, 40)
            cases.append((kind, index, size, stripes, stripe_size))
    return cases


@needs_drbdmeta
@pytest.mark.parametrize(("kind", "index", "size", "stripes", "stripe_size"), random_layouts())
def test_layout_of_a_random_device_is_what_drbdmeta_creates(
    tmp_path: Path, kind: MetadataKind, index: int, size: int, stripes: int, stripe_size: int
) -> None:
    file = sparse(tmp_path / "device", size)
    options = ["--al-stripes", str(stripes), "--al-stripe-size-kB", str(4 * stripe_size)]
    drbdmeta(file, kind, index, "create-md", *options)
    where = layout.calculate(kind, size, index=index, al_stripes=stripes, al_stripe_size_4k=stripe_size)
    with file.open("rb") as device:
        device.seek(where.superblock_byte)
        assert device.read(4096) == superblock.create(where).serialise()
        device.seek(where.al_byte)
        assert device.read(where.al_bytes) == activity_log.INITIALISED_BLOCK * where.al_blocks


@needs_drbdmeta
@pytest.mark.parametrize("kind", list(MetadataKind))
@pytest.mark.parametrize("clean", [True, False])
def test_metadata_of_ours_is_read_and_dumped_by_drbdmeta_as_by_us(
    tmp_path: Path, kind: MetadataKind, clean: bool
) -> None:
    source = random.Random(f"{kind}{clean}")
    # 20 GiB of data: 640 KiB of bitmap, more than one buffer of any tool.
    data_sectors = (20 << 21) + 24
    size = {MetadataKind.INTERNAL: data_sectors * 512 + (1 << 20), MetadataKind.FLEXIBLE: 4 << 20}.get(
        kind, 2 << 27
    )
    index = 1 if kind is MetadataKind.INDEXED else 0
    stripes = (1, 8) if kind is MetadataKind.INDEXED else (3, 11)
    where = layout.calculate(kind, size, index=index, al_stripes=stripes[0], al_stripe_size_4k=stripes[1])
    block = replace(
        superblock.create(where, device_uuid=source.getrandbits(64), peer_max_bio_bytes=1 << 20),
        la_size_sectors=data_sectors,
        uuids=Uuids(*(source.getrandbits(64) for _ in range(4))),
        flags=MdFlag(0x1F7 | (0x80 if clean else 0)) & ~(MdFlag.NONE if clean else MdFlag.AL_CLEAN),
    )
    if not clean:
        block = superblock.mark_unclean(block)
    bitmap = bytearray(layout.bitmap_disk_bytes(data_sectors))
    for _ in range(400):
        offset = source.randrange(len(bitmap) // 8) * 8
        length = source.choice((1, 8, 32, 64, 1000, 5000))
        fill = source.choice((0x00, 0xFF, 0x10))
        bitmap[offset : offset + length] = bytes((fill,)) * min(length, len(bitmap) - offset)
    file = sparse(tmp_path / "device", size)
    with file.open("r+b") as device:
        device.seek(where.superblock_byte)
        device.write(block.serialise())
        device.seek(where.al_byte)
        device.write(activity_log.INITIALISED_BLOCK * where.al_blocks)
        device.seek(where.bitmap_byte)
        device.write(bitmap)
    gi = drbdmeta(file, kind, index, "get-gi")
    assert gi.strip() == superblock.get_gi_text(block)
    assert drbdmeta(file, kind, index, "dstate").strip().split("/")[0] == superblock.disk_state_text(
        block.flags
    )
    found = drbdmeta(file, kind, index, "dump-md").splitlines()
    ours = dump.dump_md(block, where, bytes(bitmap)).splitlines()
    del found[1:3]  # date and command
    assert without_flags("\n".join(found)) == without_flags("\n".join(ours))


@needs_drbdmeta
def test_random_crashed_log_replayed_by_drbdmeta_marks_the_same_bits(tmp_path: Path) -> None:
    source = random.Random(67)
    for round_number in range(12):
        stripes, stripe_size = source.choice(((1, 8), (2, 6), (3, 4), (1, 16)))
        slots = source.choice((67, 919, 920, 1237, 3000))
        where = layout.internal(1 << 30, al_stripes=stripes, al_stripe_size_4k=stripe_size)
        block = superblock.mark_unclean(
            replace(
                superblock.create(where),
                la_size_sectors=where.usable_sectors(),
                al_extents=slots,
                flags=MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE | MdFlag.PRIMARY_IND,
            )
        )
        blocks = [activity_log.INITIALISED_BLOCK] * where.al_blocks
        table = [activity_log.NO_EXTENT] * slots
        window = 0
        first = source.choice((0, 0, (1 << 32) - where.al_blocks))
        for step in range(source.randrange(1, 3 * where.al_blocks)):
            number = (first + step) % (1 << 32)
            count = source.randrange(0, 20)
            updates = tuple((source.randrange(min(slots, 200)), source.randrange(250)) for _ in range(count))
            updates = tuple(dict(updates).items())
            start = window * activity_log.CONTEXT_SLOTS
            context = tuple(table[start : start + activity_log.CONTEXT_SLOTS])
            transaction = activity_log.Transaction(
                number, activity_log.TransactionType.UPDATE, slots, start, updates, context
            )
            blocks[activity_log.ring_position(number, stripes, stripe_size)] = transaction.encode()
            for slot, extent in updates:
                table[slot] = extent
            window = (window + 1) % activity_log.windows(slots)
        result = activity_log.replay(
            blocks, al_stripes=stripes, al_stripe_size_4k=stripe_size, primary_ind=True
        )
        assert set(result.extents) == {extent for extent in table if extent != activity_log.NO_EXTENT}
        assert not result.mark_everything
        file = sparse(tmp_path / f"device{round_number}", 1 << 30)
        with file.open("r+b") as device:
            device.seek(where.superblock_byte)
            device.write(block.serialise())
            device.seek(where.al_byte)
            device.write(b"".join(blocks))
        drbdmeta(file, MetadataKind.INTERNAL, 0, "apply-al")
        marks = activity_log.apply(result, bitmap_bits=block.bitmap_bits, primary_ind=True)
        bitmap = bytearray(where.bitmap_bytes)
        for offset, length in marks.ranges:
            bitmap[offset : offset + length] = b"\xff" * length
        with file.open("rb") as device:
            device.seek(where.bitmap_byte)
            assert device.read(where.bitmap_bytes) == bytes(bitmap)
            device.seek(where.superblock_byte)
            assert device.read(4096) == superblock.mark_clean(block).serialise()
