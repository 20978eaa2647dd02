# SPDX-License-Identifier: Apache-2.0
"""Opening and locking the disks of volumes, on real files."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from repl.config.model import Device, MetaDisk, MetaDiskKind, VolumeView, typed_disk
from repl.daemon.block_file import FdBlockFile
from repl.daemon.disks import is_in_memory, open_and_prepare, open_disk, updates_no_times
from repl.drbd.layout import INDEXED_SLOT_SECTORS
from repl.engine.commands import AttachFlags
from repl.errors import ConfigError, MetadataError, RequestRefused
from repl.node.disk import create_metadata

MIB = 1 << 20
INTERNAL = MetaDisk(MetaDiskKind.INTERNAL)
SHM = Path("/dev/shm")


def volume(path: Path | str, meta: MetaDisk = INTERNAL, *, io: str = "") -> VolumeView:
    return VolumeView(0, Device(0), str(path), meta, replace(typed_disk({}), io=io))


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with open(path, "wb") as file:
        file.truncate(8 * MIB)
    return path


def test_disk_with_metadata_is_prepared_for_the_engine(disk: Path) -> None:
    fresh = open_disk(volume(disk))
    create_metadata(fresh.place, device_uuid=1)
    fresh.close()
    opened, prepared = open_and_prepare(volume(disk))
    try:
        assert prepared.data_fd == prepared.md_fd == opened.data.fd
        assert 0 < prepared.usable_sectors < 8 * MIB // 512
        assert AttachFlags.DIRECT not in AttachFlags(prepared.flags)
    finally:
        opened.close()


def test_disk_without_metadata_is_refused_with_advice_and_released(disk: Path) -> None:
    with pytest.raises(MetadataError, match="create-md"):
        open_and_prepare(volume(disk))
    open_disk(volume(disk)).close()  # the lock is gone


def test_disk_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestRefused, match=r"nothing.*does not exist \(104\)"):
        open_disk(volume(tmp_path / "nothing"))


def test_disk_with_relative_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="not absolute"):
        open_disk(volume("disk"))


def test_disk_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestRefused, match=r"neither a block device nor a regular file \(107\)"):
        open_disk(volume(tmp_path))


def test_disk_too_small_for_metadata_is_refused(disk: Path) -> None:
    os.truncate(disk, 4096)
    with pytest.raises(MetadataError):
        open_and_prepare(volume(disk))


def test_disk_none_is_refused(disk: Path) -> None:
    with pytest.raises(RequestRefused, match="138"):
        open_disk(replace(volume(disk), disk_path=None))


def test_disk_in_use_names_the_owner(disk: Path) -> None:
    first = open_disk(volume(disk))
    try:
        with pytest.raises(RequestRefused, match=rf"in use by .* \(pid {os.getpid()}\) \(114\)"):
            open_disk(volume(disk))
        open_disk(volume(disk), read_only=True).close()  # looking is allowed
    finally:
        first.close()
    open_disk(volume(disk)).close()


def test_disk_with_direct_io_says_so(disk: Path) -> None:
    try:
        opened = open_disk(volume(disk, io="direct"))
    except RequestRefused as error:
        assert "io direct" in str(error)
        pytest.skip("no direct I/O on this file system")
    assert opened.flags & AttachFlags.DIRECT
    opened.close()


def test_disk_owner_that_is_repld_is_named_with_its_resource(disk: Path) -> None:
    script = "import sys, fcntl; f = open(sys.argv[3]); fcntl.flock(f, 2); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, "repld", "web", str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"1\n"
        with pytest.raises(RequestRefused, match=rf"in use by repld web \(pid {owner.pid}\) \(114\)"):
            open_disk(volume(disk))
        owner.kill()


@pytest.mark.skipif(not SHM.is_dir(), reason="no tmpfs")
def test_disk_in_memory_is_marked_inline() -> None:
    path = SHM / f"repl-test-{os.getpid()}"
    path.write_bytes(bytes(4096))
    try:
        opened = open_disk(volume(path))
        assert AttachFlags.INLINE in opened.flags and is_in_memory(opened.data.fd)
        opened.close()
    finally:
        path.unlink()


def test_buffered_file_may_be_read_from_the_page_cache_and_its_reads_are_not_written_down(disk: Path) -> None:
    opened = open_disk(volume(disk))
    try:
        assert AttachFlags.PAGE_CACHE in opened.flags
        assert fcntl.fcntl(opened.data.fd, fcntl.F_GETFL) & os.O_NOATIME
    finally:
        opened.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_file_of_somebody_else_is_read_by_the_disk_threads(disk: Path) -> None:
    """Only its owner may leave the access time as it is, and a read could wait for that to be written."""
    with disk.open("r+b") as file:
        os.chown(disk, 1, 1)
        os.seteuid(2)
        try:
            assert not updates_no_times(FdBlockFile(file.fileno(), str(disk)))
        finally:
            os.seteuid(0)
        assert updates_no_times(FdBlockFile(file.fileno(), str(disk)))


def test_external_metadata_on_the_data_disk_is_refused(disk: Path) -> None:
    with pytest.raises(ConfigError, match="data disk"):
        open_disk(volume(disk, MetaDisk(MetaDiskKind.FLEXIBLE, str(disk))))


def test_external_metadata_that_is_missing_has_its_own_code_and_releases_the_data_disk(disk: Path) -> None:
    meta = MetaDisk(MetaDiskKind.FLEXIBLE, str(disk) + "-md")
    with pytest.raises(RequestRefused, match=r"\(105\)"):
        open_disk(volume(disk, meta))
    open_disk(volume(disk)).close()


def test_indexed_metadata_shares_the_device_but_not_the_slot(tmp_path: Path) -> None:
    md = tmp_path / "md"
    disks = [tmp_path / f"disk{number}" for number in range(3)]
    for path, size in ((md, 2 * INDEXED_SLOT_SECTORS * 512), *((one, 4 * MIB) for one in disks)):
        with open(path, "wb") as file:
            file.truncate(size)
    slots = [MetaDisk(MetaDiskKind.INDEXED, str(md), index) for index in (0, 1)]
    first = open_disk(volume(disks[0], slots[0]))
    second = open_disk(volume(disks[1], slots[1]))
    with pytest.raises(RequestRefused, match="115"):
        open_disk(volume(disks[2], slots[1]))
    first.close()
    second.close()
    open_disk(volume(disks[2], slots[1])).close()
