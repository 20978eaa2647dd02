# SPDX-License-Identifier: Apache-2.0
"""What distribute keeps on bricks beside layouts, and what it means.

- A link file leads to the subvolume that has the data: ``trusted.glusterfs.dht.linkto`` = its name and a NUL, mode
  01000.  Only the attribute decides; a user's file of mode 01000 is a file (spec 6.3, decision 0063).
- A file that is being migrated (decision 0065): its data are at the *source*, which has ``linkto`` = target and
  ``migration`` = its real mode, and shows itself by the mode bits 03000.  The *target* is a link file with
  ``incoming``.  Taking ``migration`` from the source is the one step that makes the target the file.
- ``dht.mds`` counts changes of a directory's attributes that are not on all copies yet; it lies on one copy, whose
  attributes count.
- ``dht.commithash`` of the root: the volume's commit number.
- ``dht.moving``: a directory is being renamed; from where and to where.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass

from repl.files.values import GFID_BYTES, Iatt, Looked, Want, Xattrs

LINKTO = b"trusted.glusterfs.dht.linkto"
MIGRATION = b"trusted.glusterfs.dht.migration"
INCOMING = b"trusted.glusterfs.dht.incoming"
MDS = b"trusted.glusterfs.dht.mds"
COMMIT_HASH = b"trusted.glusterfs.dht.commithash"
FINAL_SIZE = b"trusted.glusterfs.dht.final-size"  # of a source: its sizes when the switch began and when it was over
MOVING = b"trusted.glusterfs.dht.moving"
PRECONDITION = b"glusterfs.preop."  # in ``extra``, before a key: the directory must have this value

FILE_WANT: Want = (LINKTO, MIGRATION, INCOMING)
LINK_MODE = stat.S_IFREG | stat.S_ISVTX
MIGRATING_BITS = stat.S_ISGID | stat.S_ISVTX
MDS_ONE = struct.pack(">i", 1)
MDS_ZERO = bytes(4)


def mds_value(count: int) -> bytes:
    return struct.pack(">i", count)


def mds_count(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


def linkto_value(name: str) -> bytes:
    return name.encode() + b"\0"


def linkto_name(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def is_suspicious(iatt: Iatt) -> bool:
    """A regular file with the sticky bit may be a link file or one that is being migrated."""
    return is_suspicious_mode(iatt.mode)


def is_suspicious_mode(mode: int) -> bool:
    return mode & 0o171000 == 0o101000


def is_marked(iatt: Iatt) -> bool:
    """It shows that it is being migrated, and not switched yet."""
    return iatt.mode & MIGRATING_BITS == MIGRATING_BITS


def looks_like_link(iatt: Iatt) -> bool:
    return iatt.mode == LINK_MODE


def is_link(xattrs: Xattrs) -> bool:
    return LINKTO in xattrs and MIGRATION not in xattrs


def is_migrating(xattrs: Xattrs) -> bool:
    return LINKTO in xattrs and MIGRATION in xattrs


def real_mode(looked: Looked) -> int:
    """The mode of a file, without the marks of a migration; a chmod has taken them away."""
    value, mode = looked.xattrs.get(MIGRATION), looked.iatt.mode
    if value is None or len(value) != 4 or not (mode & MIGRATING_BITS == MIGRATING_BITS or mode == LINK_MODE):
        return mode
    return stat.S_IFREG | stat.S_IMODE(int.from_bytes(value, "big"))


def commit_value(number: int) -> bytes:
    return str(number).encode() + b"\0"


def commit_number(value: bytes | None) -> int | None:
    """None: the volume has none, or what is there is no number."""
    text = (value or b"").rstrip(b"\0")
    return int(text) if text.isdigit() else None


@dataclass(frozen=True, slots=True)
class Moving:
    """The rename of a directory: from where to where."""

    old_parent: bytes
    old_name: bytes
    new_parent: bytes
    new_name: bytes

    def pack(self) -> bytes:
        return self.old_parent + self.new_parent + self.old_name + b"\0" + self.new_name


def parse_moving(value: bytes) -> Moving | None:
    old_name, nul, new_name = value[2 * GFID_BYTES :].partition(b"\0")
    if not nul or not old_name or not new_name:
        return None
    return Moving(value[:GFID_BYTES], old_name, value[GFID_BYTES : 2 * GFID_BYTES], new_name)
