# SPDX-License-Identifier: Apache-2.0
"""Data that create-md must not overwrite is recognised."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from repl.drbd import dump, layout, superblock
from repl.drbd.dump import Finding, FindingKind, recognise
from repl.drbd.layout import MetadataKind
from repl.drbd.superblock import Magic

MIB = 1 << 20


def found_on(pieces: dict[int, bytes], device_bytes: int = 512 * MIB) -> list[Finding]:
    """Findings on a device of zeroes with some pieces of content."""

    def read(offset: int, length: int) -> bytes:
        result = bytearray(max(0, min(length, device_bytes - offset)))
        for start, content in pieces.items():
            for index, value in enumerate(content):
                if offset <= start + index < offset + len(result):
                    result[start + index - offset] = value
        return bytes(result)

    return recognise(read, device_bytes)


def ext(compat: int, incompat: int, ro_compat: int) -> dict[int, bytes]:
    words = compat.to_bytes(4, "little") + incompat.to_bytes(4, "little") + ro_compat.to_bytes(4, "little")
    return {1080: b"\x53\xef", 1024 + 92: words}


MBR = {446: b"\x80\0\0\0\x83\0\0\0\0\x08\0\0\0\x08\0\0", 510: b"\x55\xaa"}

CASES: list[tuple[str, dict[int, bytes]]] = [
    ("ext2", ext(0x38, 0x2, 0x3)),
    ("ext3", ext(0x3C, 0x2, 0x3)),
    ("ext4", ext(0x3C, 0x2C2, 0x46B)),
    ("xfs", {0: b"XFSB"}),
    ("btrfs", {0x10040: b"_BHRfS_M"}),
    ("LVM2", {512: b"LABELONE", 536: b"LVM2 001"}),
    ("swap", {4086: b"SWAPSPACE2"}),
    ("swap", {65526: b"SWAPSPACE2"}),
    ("ntfs", {3: b"NTFS    ", 510: b"\x55\xaa"}),
    ("fat", {54: b"FAT16   ", 510: b"\x55\xaa"}),
    ("fat", {82: b"FAT32   ", 510: b"\x55\xaa"}),
    ("gpt", {512: b"EFI PART"}),
    ("gpt", {512 * MIB - 512: b"EFI PART"}),
    ("mbr", MBR),
    ("LUKS", {0: b"LUKS\xba\xbe"}),
    ("LUKS", {0x4000: b"SKUL\xba\xbe"}),
    ("ocfs2", {8192: b"OCFSV2"}),
    ("gfs2", {65536: bytes.fromhex("0116197000000001")}),
    ("DRBD v08", {60: Magic.V08_CLEAN.to_bytes(4, "big")}),
    ("DRBD v08", {512 * MIB - 4096 + 60: Magic.V08_UNCLEAN.to_bytes(4, "big")}),
    ("DRBD v08", {128 * MIB + 60: Magic.V08_CLEAN.to_bytes(4, "big")}),
    ("DRBD v09", {512 * MIB - 4096 + 60: Magic.V09.to_bytes(4, "big")}),
    ("DRBD v07", {384 * MIB + 28: Magic.V07.to_bytes(4, "big")}),
]


@pytest.mark.parametrize(("name", "pieces"), CASES)
def test_signature_is_recognised_alone(name: str, pieces: dict[int, bytes]) -> None:
    assert [finding.name for finding in found_on(pieces)] == [name]


@pytest.mark.parametrize("size", [0, 512, 4096, 68 * 1024, MIB + 512, 512 * MIB])
def test_device_of_zeroes_of_any_size_has_no_findings(size: int) -> None:
    assert found_on({}, size) == []


def test_internal_metadata_of_an_odd_device_size_is_recognised() -> None:
    size = 100 * MIB + 3584
    where = layout.internal(size)
    block = superblock.create(where).serialise()[:64]
    assert found_on({where.superblock_byte: block}, size) == [
        Finding(FindingKind.DRBD, "DRBD v08", where.superblock_byte)
    ]


def test_file_system_and_metadata_behind_it_are_both_reported() -> None:
    pieces = {0: b"XFSB", 512 * MIB - 4096 + 60: Magic.V08_CLEAN.to_bytes(4, "big")}
    assert {finding.name for finding in found_on(pieces)} == {"xfs", "DRBD v08"}


TOOLS = [
    ("ext2", "mkfs.ext2", ["-q", "-F"]),
    ("ext3", "mkfs.ext3", ["-q", "-F"]),
    ("ext4", "mkfs.ext4", ["-q", "-F"]),
    ("swap", "mkswap", []),
]


@pytest.mark.parametrize(("name", "tool", "options"), TOOLS)
def test_real_tool_leaves_what_is_recognised(
    tmp_path: Path, name: str, tool: str, options: list[str]
) -> None:
    program = shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        pytest.skip(f"{tool} is not installed")
    assert _names(_made(tmp_path, [program, *options])) == [name]


@pytest.mark.parametrize("version", ["v07", "v08", "v09"])
@pytest.mark.parametrize("place", ["internal", "flex-external", "1"])
def test_metadata_of_the_real_tool_is_recognised(tmp_path: Path, version: str, place: str) -> None:
    program = shutil.which("drbdmeta", path="/usr/sbin:/sbin:/usr/bin")
    if program is None:
        pytest.skip("drbdmeta is not installed")
    if version == "v09" and place == "1":
        place = "0"
    file = _sparse(tmp_path)
    command = [program, "--force", "974", version, str(file), place, "create-md"]
    command += ["1"] if version == "v09" else []
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        pytest.skip(f"drbdmeta: {done.stderr.decode()}")
    assert _names(file) == [f"DRBD {version}"]


def _sparse(tmp_path: Path) -> Path:
    file = tmp_path / "device"
    with file.open("wb") as device:
        device.truncate(300 * MIB)
    return file


def _made(tmp_path: Path, command: list[str]) -> Path:
    file = _sparse(tmp_path)
    subprocess.run([*command, str(file)], capture_output=True, stdin=subprocess.DEVNULL, check=True)
    return file


def _names(file: Path) -> list[str]:
    with file.open("rb") as device:

        def read(offset: int, length: int) -> bytes:
            device.seek(offset)
            return device.read(length)

        return [finding.name for finding in recognise(read, file.stat().st_size)]


def test_positions_of_metadata_cover_all_layouts() -> None:
    size = 600 * MIB + 512
    positions = dump.metadata_positions(size)
    for kind in MetadataKind:
        for index in range(4):
            assert layout.superblock_position(kind, size, index) in positions
