# SPDX-License-Identifier: Apache-2.0
"""BlockFile on descriptors, buffered and with O_DIRECT."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from repl.daemon.block_file import BOUNCE_BYTES, FdBlockFile, discard_granularity
from repl.errors import DiskFailed

SIZE = 3 * BOUNCE_BYTES + 1536  # not a multiple of 4096: the end is the difficult part


CYCLE = bytes(index * 7 % 251 for index in range(251))


def pattern(length: int) -> bytes:
    return (CYCLE * (length // len(CYCLE) + 1))[:length]


@pytest.fixture(params=["buffered", "direct"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FdBlockFile]:
    path = tmp_path / "disk"
    path.write_bytes(pattern(SIZE))
    is_direct = request.param == "direct"
    try:
        fd = os.open(path, os.O_RDWR | (os.O_DIRECT if is_direct else 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("no direct I/O on this file system")
    opened = FdBlockFile(fd, str(path), is_direct=is_direct)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 4096), (1, 1), (4095, 2), (511, BOUNCE_BYTES + 3), (SIZE - 10, 10), (8192, 0)],
)
def test_block_file_read_of_any_alignment_gives_the_bytes(file: FdBlockFile, offset: int, length: int) -> None:
    assert file.pread(offset, length) == pattern(SIZE)[offset : offset + length]


def test_block_file_read_over_the_end_is_short(file: FdBlockFile) -> None:
    assert file.pread(SIZE - 100, 4096) == pattern(SIZE)[-100:]


def test_block_file_read_behind_the_end_is_empty(file: FdBlockFile) -> None:
    assert file.pread(SIZE + 8192, 64) == b""


@pytest.mark.parametrize(
    ("offset", "length"), [(4096, 8192), (0, 2 * BOUNCE_BYTES), (512, 1024), (SIZE - 700, 700), (7, 5)]
)
def test_block_file_write_changes_exactly_its_bytes(file: FdBlockFile, offset: int, length: int) -> None:
    file.pwrite(offset, b"\xa5" * length)
    file.flush()
    expected = bytearray(pattern(SIZE))
    expected[offset : offset + length] = b"\xa5" * length
    assert Path(file.name).read_bytes() == bytes(expected)


def test_block_file_write_beyond_the_end_is_refused(file: FdBlockFile) -> None:
    with pytest.raises(DiskFailed, match="beyond its end"):
        file.pwrite(SIZE - 10, bytes(11))
    assert os.path.getsize(file.name) == SIZE


def test_block_file_error_names_the_file_and_errno(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    opened = FdBlockFile(os.open(path, os.O_RDONLY), str(path))
    with pytest.raises(DiskFailed, match=str(path)) as caught:
        opened.pwrite(0, b"x")
    assert caught.value.errno == errno.EBADF
    opened.close()


def test_discard_granularity_is_that_of_the_disk_below_a_partition(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    block = os.stat_result((stat.S_IFBLK | 0o600, *os.fstat(fd)[1:]), {"st_rdev": os.makedev(8, 1)})
    assert discard_granularity(fd) == 0  # no block device
    monkeypatch.setattr(os, "fstat", lambda _: block)
    disk = tmp_path / "devices" / "sda"
    for folder, name, text in (
        (disk / "sda1", "discard_alignment", "0"),
        (disk / "queue", "discard_granularity", "65536"),
        (disk / "queue", "discard_max_bytes", "1073741824"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    (tmp_path / "dev" / "block").mkdir(parents=True)
    (tmp_path / "dev" / "block" / "8:1").symlink_to(disk / "sda1")
    assert discard_granularity(fd, tmp_path) == 65536
    (disk / "sda1" / "discard_alignment").write_text("512\n")
    assert discard_granularity(fd, tmp_path) == 0
    (disk / "sda1" / "discard_alignment").write_text("0\n")
    (disk / "queue" / "discard_max_bytes").write_text("0\n")
    assert discard_granularity(fd, tmp_path) == 0
    monkeypatch.undo()
    os.close(fd)
