# SPDX-License-Identifier: Apache-2.0
"""The values that file operations take and give: identities, attributes, open files, locks, answers.

Everything is known by its gfid (16 bytes, the same on every replica); a name is only a way to find one.  Names, link
targets and extended attributes are bytes, times are nanoseconds since 1970, sizes are bytes.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

GFID_BYTES = 16
# In the ``want`` of a listing: the directory's last entry has it.  Bricks that do not know it have no such attribute.
LAST = b"trusted.glusterfs.repl-last"
ONCE = "~"  # begins the names of clients that keep no names of files (features/upcall)
ROOT_GFID = bytes(15) + b"\x01"
NO_GFID = bytes(16)

TRANSACTION_PID = -2  # of internal callers whose work an operation of a user waits for

Xattrs: TypeAlias = dict[bytes, bytes]


def gfid_text(gfid: bytes) -> str:
    """The usual spelling with dashes.  Raises ``ValueError``."""
    if len(gfid) != GFID_BYTES:
        raise ValueError("a gfid has 16 bytes")
    h = gfid.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def gfid_from_text(text: str) -> bytes:
    """Raises ``ValueError``."""
    return uuid.UUID(text).bytes


_TEXTS = {number: os.strerror(number) for number in errno.errorcode}


class FopError(OSError):
    """A file operation failed: ``errno`` and ``strerror`` as the kernel would say it.

    ``detail`` is for logs: which translator, which brick, what it was doing.
    """

    def __init__(self, number: int, detail: str = "") -> None:
        super().__init__(number, _TEXTS.get(number) or os.strerror(number))
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.strerror}: {self.detail}" if self.detail else str(self.strerror)


@dataclass(slots=True)
class Iatt:
    """What stat tells, and the identity."""

    gfid: bytes = NO_GFID
    mode: int = 0  # type and permission bits
    nlink: int = 0
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    size: int = 0
    blocks: int = 0  # of 512 bytes
    block_size: int = 4096
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.mode)


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf.  ``client`` names the mount (the same for all its connections), ``lock_owner`` the holder of
    byte-range locks within it; ``is_internal`` marks work of ours (heal, rebalance), which quotas and ``reserve`` let
    through and whose priority is the least."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    pid: int = 0
    client: str = ""
    lock_owner: bytes = b""
    is_internal: bool = False


@dataclass(frozen=True, slots=True)
class Loc:
    """Where something is: by its gfid, or as a name in a directory, or both when both are known.

    ``path`` (inside the volume, leading slash) is a hint for messages and for the place of a new directory's layout.
    """

    gfid: bytes = NO_GFID
    parent: bytes = NO_GFID
    name: bytes = b""
    path: bytes = b""

    def __str__(self) -> str:
        if self.path:
            return os.fsdecode(self.path)
        if self.name:
            return f"<gfid:{gfid_text(self.parent)}>/{os.fsdecode(self.name)}"
        return f"<gfid:{gfid_text(self.gfid)}>"


ROOT = Loc(gfid=ROOT_GFID, path=b"/")


class Fd:
    """An open file or directory.  Whoever opens makes it and passes it down; each translator keeps what it needs under
    its own key in ``contexts`` and drops it in ``release``."""

    __slots__ = ("caller", "contexts", "flags", "gfid", "is_directory", "path")

    def __init__(self, gfid: bytes, flags: int = 0, *, is_directory: bool = False, path: bytes = b"") -> None:
        self.gfid = gfid
        self.flags = flags
        self.is_directory = is_directory
        self.path = path
        self.contexts: dict[Any, Any] = {}

    @property
    def is_writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    def __str__(self) -> str:
        return os.fsdecode(self.path) if self.path else f"<gfid:{gfid_text(self.gfid)}>"


Target: TypeAlias = Loc | Fd  # what an operation on an inode is given


@dataclass(slots=True)
class Entry:
    """A name of a directory.  A listing goes on after ``offset``; ``iatt`` and ``xattrs`` only when asked for."""

    name: bytes
    offset: int
    gfid: bytes
    kind: int  # S_IFMT part of the mode, 0 if unknown
    iatt: Iatt | None = None
    xattrs: Xattrs = field(default_factory=dict)


@dataclass(slots=True)
class SetAttr:
    """What setattr changes; None: stays."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None  # only between our own nodes


@dataclass(slots=True)
class StatVfs:
    """Free space and free inodes.  ``block_size`` bytes a block."""

    block_size: int
    blocks: int
    blocks_free: int
    blocks_available: int
    files: int
    files_free: int
    files_available: int
    name_bytes_max: int = 255
    flags: int = 0


@dataclass(slots=True)
class Looked:
    """The answer to lookup and to everything that makes a name: the inode and, where it is cheap, its directory."""

    iatt: Iatt
    parent: Iatt | None = None
    xattrs: Xattrs = field(default_factory=dict)


@dataclass(slots=True)
class Changed:
    """An inode before and after a change."""

    before: Iatt
    after: Iatt
    xattrs: Xattrs = field(default_factory=dict)


@dataclass(slots=True)
class Read:
    """Data that was read; shorter than asked: the end of the file."""

    data: bytes | bytearray | memoryview
    iatt: Iatt


class LockType(enum.IntEnum):
    READ = 0
    WRITE = 1
    UNLOCK = 2


class LockCommand(enum.IntEnum):
    """``TRY`` answers EAGAIN when somebody else holds it, ``WAIT`` waits, ``GET`` tells who.  The holder of an internal
    lock is asked to let go, unless it is tried with ``TRY_QUIETLY``."""

    TRY = 0
    WAIT = 1
    GET = 2
    TRY_QUIETLY = 3


END = (1 << 63) - 1  # the end of every range without one


@dataclass(frozen=True, slots=True)
class Lock:
    """A byte range (``last`` is inclusive, END: for ever) or, for flock, the whole file."""

    type: LockType
    first: int = 0
    last: int = END
    is_flock: bool = False
    pid: int = 0

    def overlaps(self, other: Lock) -> bool:
        return self.first <= other.last and other.first <= self.last


class XattrOp(enum.IntEnum):
    """Arithmetic on extended attributes, one atomic step for all keys given; absent counts as zero."""

    ADD = 0  # big-endian 32-bit words
    ADD_64 = 1


class End(NamedTuple):
    """The end of a transaction on one inode: ``delta`` is added to the counters (empty: nothing is), then the lock of
    the whole inode (``is_entry``: of all names) is given back, whatever came of the counters."""

    gfid: bytes
    delta: bytes
    is_entry: bool = False


class SyncKind(enum.IntEnum):
    ALL = 0
    DATA = 1


# In ``extra`` of create: a domain.  The caller gets the lock of the whole new file (inodelk) with it, and the answer's
# ``xattrs`` have the key if that is so.
NEW_LOCK = b"glusterfs.inodelk"

# Keys that a lookup (or another operation with ``want``) can ask for beside ordinary attributes.
Want: TypeAlias = tuple[bytes, ...]
Xdata: TypeAlias = Mapping[str, Any]
