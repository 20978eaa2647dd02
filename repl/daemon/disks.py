# SPDX-License-Identifier: Apache-2.0
"""Open and lock the disk of a volume and everything that its metadata lies on.

Input: a ``VolumeView`` of the configuration.  Output: :class:`OpenedDisk`, a ``DiskPlace`` with descriptors.
Everything here blocks; a hung disk hangs the calling thread.  Errors: ``RequestRefused`` with DRBD's codes
(104/105 cannot be opened, 114/115 in use), ``ConfigError``; from ``prepare``: ``MetadataError``,
``DiskFailed``.

Block devices are opened with O_EXCL, so that nothing mounts them; everything is locked with flock, so that no
second ``repld`` takes it.  A metadata device with slots (indexed) is shared: there each slot is locked.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from repl.config.model import MetaDisk, MetaDiskKind, VolumeView
from repl.daemon.block_file import FdBlockFile, discard_granularity, logical_sector_bytes
from repl.daemon.disk_records import DiskRecords
from repl.daemon.nbd_file import NbdBlockFile, is_nbd
from repl.drbd.layout import INDEXED_SLOT_SECTORS, MetadataKind
from repl.engine.commands import AttachFlags
from repl.errors import ConfigError, MetadataError, RequestRefused
from repl.limits import SECTOR_BYTES
from repl.node.disk import DiskPlace, Prepared, prepare
from repl.node.moved import LastDisk

TMPFS_MAGIC = 0x01021994
RAMFS_MAGIC = 0x858458F6
_STATFS_BYTES = 256
_F_OFD_SETLK = 37
_FLOCK = struct.Struct("=hhiqqii")  # struct flock of 64-bit Linux, with its padding
LOCKS_BYTES_MAX = 1 << 22
DAEMON_MODULE = "repl.daemon.main"

KINDS = {
    MetaDiskKind.INTERNAL: MetadataKind.INTERNAL,
    MetaDiskKind.FLEXIBLE: MetadataKind.FLEXIBLE,
    MetaDiskKind.INDEXED: MetadataKind.INDEXED,
}

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class OpenedDisk:
    """A disk in use.  ``flags``: ``AttachFlags`` that depend on the files (DIRECT, INLINE)."""

    place: DiskPlace
    data: FdBlockFile | NbdBlockFile
    md: FdBlockFile | NbdBlockFile
    flags: AttachFlags

    def prepare(self, size_limit_sectors: int, last: LastDisk | None = None) -> Prepared:
        prepared = prepare(
            self.place,
            size_limit_sectors=size_limit_sectors,
            data_fd=self.data.fd,
            md_fd=self.md.fd,
            flags=int(self.flags),
            last=last,
        )
        return replace(prepared, discard_granularity=0 if self.data.is_nbd else discard_granularity(self.data.fd))

    def close(self) -> None:
        self.md.close()
        self.data.close()


def metadata_path(view: VolumeView) -> str:
    """The file or device that holds the metadata."""
    return view.meta_disk.path or view.disk_path or ""


def open_disk(view: VolumeView, *, read_only: bool = False) -> OpenedDisk:
    """``read_only``: only to look at the metadata of a resource that is down; nothing is locked."""
    if view.disk_path is None:
        raise RequestRefused(f"volume {view.number} has no disk (disk none).", number=138)
    data = _open(view.disk_path, view, is_metadata=False, read_only=read_only)
    md = data
    try:
        if view.meta_disk.kind is not MetaDiskKind.INTERNAL:
            _check_metadata_device(view)
            md = _open(view.meta_disk.path, view, is_metadata=True, read_only=read_only)
        flags = AttachFlags(0)
        if data.is_direct or md.is_direct:
            flags |= AttachFlags.DIRECT
        if data.is_nbd:
            flags |= AttachFlags.DATA_NBD
        if md is not data and md.is_nbd:
            flags |= AttachFlags.MD_NBD
        if all(is_in_memory(file.fd) for file in (data, md)):
            flags |= AttachFlags.INLINE
        elif not read_only and updates_no_times(data):
            flags |= AttachFlags.PAGE_CACHE
        if not view.options.rs_discard_granularity_bytes and is_fully_allocated(data.fd):
            flags |= AttachFlags.KEEP_ALLOCATED
        place = DiskPlace(data, md, KINDS[view.meta_disk.kind], view.meta_disk.index)
        return OpenedDisk(place, data, md, flags)
    except BaseException:
        if md is not data:
            md.close()
        data.close()
        raise


def open_and_prepare(view: VolumeView, records: DiskRecords | None = None) -> tuple[OpenedDisk, Prepared]:
    """What the shell does for ``OpenDisk``."""
    disk = open_disk(view)
    try:
        last = records.last(view.number) if records is not None else None
        prepared = disk.prepare(view.options.size_sectors, last)
        if records is not None:
            records.keep(view.number, disk.place, prepared.layout.device_bytes, prepared.superblock.device_uuid)
        return disk, prepared
    except MetadataError as error:
        disk.close()
        if not error.advice:
            error.advice = "If this disk was never used, create its metadata with replctl create-md."
        raise
    except BaseException:
        disk.close()
        raise


def is_in_memory(fd: int) -> bool:
    """True on tmpfs and ramfs: I/O there never waits for a device."""
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        return False
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, buffer) != 0:
        return False
    kind = int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], "little") & 0xFFFFFFFF
    return kind in (TMPFS_MAGIC, RAMFS_MAGIC)


def updates_no_times(file: FdBlockFile | NbdBlockFile) -> bool:
    """For a buffered regular file: from now on reading it updates no access time, for which a read may wait."""
    if file.is_nbd or file.is_direct or not stat.S_ISREG(os.fstat(file.fd).st_mode):
        return False
    try:
        fcntl.fcntl(file.fd, fcntl.F_SETFL, fcntl.fcntl(file.fd, fcntl.F_GETFL) | os.O_NOATIME)
    except PermissionError:
        return False  # neither the file's owner nor privileged
    return True


def is_fully_allocated(fd: int) -> bool:
    """A file for which somebody has reserved all of its space: a resync does not give it back."""
    status = os.fstat(fd)
    return stat.S_ISREG(status.st_mode) and status.st_blocks * SECTOR_BYTES >= status.st_size > 0


def lock_owner(fd: int) -> int:
    """The pid that /proc/locks names for a lock on this file, 0 if it is not known."""
    status = os.fstat(fd)
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as locks:
            lines = locks.read(LOCKS_BYTES_MAX).splitlines()
    except OSError:
        return 0
    for line in lines:
        words = line.split()
        if len(words) >= 6 and "->" not in words and words[5] == wanted and words[4].isdecimal():
            return int(words[4])
    return 0


def _check_metadata_device(view: VolumeView) -> None:
    if os.path.realpath(view.meta_disk.path) == os.path.realpath(view.disk_path or ""):
        raise ConfigError(
            f"volume {view.number}: the metadata cannot lie on the data disk {view.disk_path} itself.",
            advice="Write 'meta-disk internal;' or use another device.",
        )


def _open(path: str, view: VolumeView, *, is_metadata: bool, read_only: bool) -> FdBlockFile | NbdBlockFile:
    if is_nbd(path):
        return NbdBlockFile(path)
    if not os.path.isabs(path):
        raise ConfigError(f"volume {view.number}: the path '{path}' is not absolute.",
                          advice="A daemon has no current directory: write the whole path.")
    what = "metadata disk" if is_metadata else "disk"
    number = 105 if is_metadata else 104
    is_shared = is_metadata and view.meta_disk.kind is MetaDiskKind.INDEXED
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise _open_error(path, what, number, error) from error
    is_block = stat.S_ISBLK(mode)
    if not is_block and not stat.S_ISREG(mode):
        raise RequestRefused(
            f"{path}: the {what} is neither a block device nor a regular file",
            number=108 if is_metadata else 107,
            advice="Correct the path in the configuration.",
        )
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    if is_block and not is_shared and not read_only:
        flags |= os.O_EXCL
    wants_direct = not read_only and (view.options.io == "direct" or (is_block and not view.options.io))
    fd, is_direct = _open_mode(path, what, number, flags, wants_direct, must=view.options.io == "direct")
    try:
        if not read_only:
            _lock(fd, path, view.meta_disk if is_shared else None, is_metadata=is_metadata)
        return FdBlockFile(fd, path, is_direct=is_direct)
    except BaseException:
        os.close(fd)
        raise


def _open_mode(path: str, what: str, number: int, flags: int, wants_direct: bool, *, must: bool) -> tuple[int, bool]:
    try:
        if not wants_direct:
            return os.open(path, flags), False
        try:
            fd = os.open(path, flags | os.O_DIRECT)
            if logical_sector_bytes(fd) <= SECTOR_BYTES:
                return fd, True
            os.close(fd)  # requests are multiples of 512 bytes: the page cache has to put them together
            return os.open(path, flags), False
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            if must:
                raise RequestRefused(
                    f"{path}: 'io direct' is not possible there: the file system knows no direct I/O",
                    number=number,
                    advice="Remove 'io direct' from the disk section.",
                ) from error
            return os.open(path, flags), False
    except OSError as error:
        raise _open_error(path, what, number, error) from error


def _open_error(path: str, what: str, number: int, error: OSError) -> RequestRefused:
    reason, advice = {
        errno.ENOENT: ("it does not exist", "Create it, or correct the path in the configuration."),
        errno.ENXIO: ("the device does not exist", "Create it, or correct the path in the configuration."),
        errno.EROFS: ("it is read-only", "Make it writable."),
        errno.EACCES: ("no permission to write to it", "Run repld as a user who may write to it."),
        errno.EPERM: ("no permission to write to it", "Make it writable for this user."),
        errno.EBUSY: ("it is in use", "Unmount it, or stop what uses it (lsblk, fuser)."),
    }.get(error.errno or 0, (error.strerror or str(error), "Correct the path in the configuration."))
    if error.errno == errno.EBUSY:
        number += 10  # 114 and 115: claimed by something else
    return RequestRefused(f"{path}: the {what} cannot be opened: {reason}", number=number, advice=advice)


def _lock(fd: int, path: str, shared: MetaDisk | None, *, is_metadata: bool) -> None:
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if shared is None else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        if shared is not None:
            slot_bytes = INDEXED_SLOT_SECTORS * SECTOR_BYTES
            begin = shared.index * slot_bytes
            wish = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, begin, slot_bytes, 0, 0)
            fcntl.fcntl(fd, _F_OFD_SETLK, wish)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise RequestRefused(f"{path}: it cannot be locked: {error.strerror}", number=104) from error
        owner = lock_owner(fd)
        who = _program(owner) if owner else "another program"
        raise RequestRefused(
            f"{path}: in use by {who}",
            number=115 if is_metadata else 114,
            advice="Stop that first, or give each volume a disk of its own.",
        ) from error


def _program(pid: int) -> str:
    """``repld web (pid 5)``; of a program that is not ours only its name."""
    try:
        words = [word.decode(errors="replace") for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    except OSError:
        words = []
    for at, word in enumerate(words[:-1]):
        if word == DAEMON_MODULE or os.path.basename(word) == "repld":
            return f"repld {words[at + 1]} (pid {pid})"
    name = os.path.basename(words[0]) if words and words[0] else "another program"
    return f"{name} (pid {pid})"
