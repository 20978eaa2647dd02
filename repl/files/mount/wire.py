# SPDX-License-Identifier: Apache-2.0
"""The kernel's FUSE protocol: numbers, structures, and the few encodings that several requests share.

Inputs and outputs: bytes in the machine's order, as they go through /dev/fuse.
Source: <linux/fuse.h>, version 7.38 and the flags of 7.39.  Older kernels than 7.31 (Linux 5.4) are refused.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from struct import Struct

from repl.files.values import Iatt

KERNEL_MAJOR, KERNEL_MINOR, KERNEL_MINOR_MIN = 7, 38, 31
ROOT_ID = 1
SECOND_NS = 1_000_000_000
_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1


class Op(enum.IntEnum):
    """Requests of the kernel."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51


class Init(enum.IntFlag):
    """What kernel and file system agree on."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36


class SetattrValid(enum.IntFlag):
    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCKOWNER = 1 << 9
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6
GETATTR_FH = 1 << 0
RELEASE_FLUSH = 1 << 0
RELEASE_FLOCK_UNLOCK = 1 << 1
LK_FLOCK = 1 << 0
WRITE_CACHE = 1 << 0
WRITE_KILL_SUIDGID = 1 << 2
OPEN_KILL_SUIDGID = 1 << 0
SETXATTR_ACL_KILL_SGID = 1 << 0
FSYNC_DATA = 1 << 0

NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
NOTIFY_STORE = 4

IN_HEADER = Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, extension length, padding
OUT_HEADER = Struct("=IiQ")  # len, -errno, unique
_ATTR = "QQQQQQIIIIIIIIII"  # ino size blocks atime mtime ctime, their ns, mode nlink uid gid rdev blksize flags
ENTRY_OUT = Struct("=QQQQII" + _ATTR)  # nodeid, generation, entry valid, attr valid, their ns
ATTR_OUT = Struct("=QII" + _ATTR)
OPEN_OUT = Struct("=QII")
WRITE_OUT = Struct("=II")
STATFS_OUT = Struct("=QQQQQIIII24x")
XATTR_OUT = Struct("=II")
LK_IN = Struct("=QQQQIIII")  # fh, owner, start, end, type, pid, flags, padding
LK_OUT = Struct("=QQII")
DIRENT = Struct("=QQII")  # ino, off, namelen, type
INIT_IN = Struct("=IIIII")  # major, minor, max_readahead, flags, flags2
INIT_OUT = Struct("=IIIIHHIIHHI28x")
INVAL_INODE = Struct("=Qqq")
INVAL_ENTRY = Struct("=QII")
STORE = Struct("=QQII")  # nodeid, offset, size, padding

GETATTR_IN = Struct("=IIQ")
SETATTR_IN = Struct("=IIQQQQQQIIIIIIII")
MKNOD_IN = Struct("=IIII")
MKDIR_IN = Struct("=II")
RENAME_IN = Struct("=Q")
RENAME2_IN = Struct("=QII")
LINK_IN = Struct("=Q")
OPEN_IN = Struct("=II")
CREATE_IN = Struct("=IIII")
RELEASE_IN = Struct("=QIIQ")
FLUSH_IN = Struct("=QIIQ")
READ_IN = Struct("=QQIIQII")
WRITE_IN = Struct("=QQIIQII")
FSYNC_IN = Struct("=QII")
SETXATTR_IN = Struct("=IIII")
GETXATTR_IN = Struct("=II")
FORGET_IN = Struct("=Q")
FORGET_ONE = Struct("=QQ")
BATCH_FORGET_IN = Struct("=II")
INTERRUPT_IN = Struct("=Q")
FALLOCATE_IN = Struct("=QQQII")
LSEEK_IN = Struct("=QQII")
LSEEK_OUT = Struct("=Q")
COPY_IN = Struct("=QQQQQQQ")


@dataclass(slots=True)
class Request:
    """One request of the kernel.  ``body`` is what follows the header."""

    op: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    body: bytes | memoryview


def inode_number(gfid: bytes) -> int:
    """The number that stat shows: the same on every mount, never 0."""
    number = (int.from_bytes(gfid[:8], "big") ^ int.from_bytes(gfid[8:], "big")) & (1 << 63) - 1
    return number or 2


def valid_for(seconds: float) -> tuple[int, int]:
    """A time to live as seconds and nanoseconds."""
    whole = int(seconds)
    return whole, int((seconds - whole) * SECOND_NS)


def attributes(iatt: Iatt) -> tuple[int, ...]:
    """The members of struct fuse_attr."""
    atime, atime_ns = divmod(iatt.atime_ns, SECOND_NS)
    mtime, mtime_ns = divmod(iatt.mtime_ns, SECOND_NS)
    ctime, ctime_ns = divmod(iatt.ctime_ns, SECOND_NS)
    # Times before 1970 wrap around: the kernel takes the 64 bits as signed.  Device numbers: the low 32 bits of
    # stat(2)'s are the kernel's own.
    return (
        inode_number(iatt.gfid), iatt.size, iatt.blocks, atime & _U64, mtime & _U64, ctime & _U64,
        atime_ns, mtime_ns, ctime_ns, iatt.mode, iatt.nlink & _U32, iatt.uid & _U32, iatt.gid & _U32,
        iatt.rdev & _U32, iatt.block_size, 0,
    )  # fmt: skip


_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1
