# SPDX-License-Identifier: Apache-2.0
"""Files that were made here and are still open: attributes of theirs that nobody needs to wait for.

While its maker has it open, a file's owner and mode are known here (others' changes are told by features/upcall).
To set them to what they are changes nothing that anybody could miss, and times say when the data were written, which
wait as well.  So both may be set a moment later, behind the data; they are always set.
"""

from __future__ import annotations

from dataclasses import fields

from repl.files.values import Fd, Iatt, SetAttr, Target
from repl.files.watching import copy_of

_SET_ID = 0o6000
_PERMISSIONS = 0o7777
_SECTOR_BYTES = 512


class Made:
    """``iatt`` is what is known of the file, its size with what has not been stored yet."""

    __slots__ = ("fd", "iatt")

    def __init__(self, fd: Fd, iatt: Iatt) -> None:
        self.fd = fd
        self.iatt = copy_of(iatt)

    def can_wait(self, target: Target, wanted: SetAttr) -> bool:
        """Nothing but times changes."""
        iatt = self.iatt
        if target is not self.fd or wanted.ctime_ns is not None:
            return False
        if wanted.mode is not None and wanted.mode != iatt.mode & _PERMISSIONS:
            return False
        if wanted.uid is None and wanted.gid is None:
            return True
        is_same_owner = wanted.uid in (None, iatt.uid) and wanted.gid in (None, iatt.gid)
        return is_same_owner and not iatt.mode & _SET_ID  # a change of owner takes these bits away, whatever it is

    def after(self, wanted: SetAttr, now_ns: int) -> Iatt:
        """How the file is going to look."""
        iatt = self.iatt
        if wanted.atime_ns is not None:
            iatt.atime_ns = wanted.atime_ns
        if wanted.mtime_ns is not None:
            iatt.mtime_ns = wanted.mtime_ns
        iatt.ctime_ns = now_ns
        iatt.blocks = -(-iatt.size // _SECTOR_BYTES)
        return copy_of(iatt)


def update(values: SetAttr, later: SetAttr) -> SetAttr:
    """``later`` is set on top of ``values``, which is changed and returned."""
    for field in fields(SetAttr):
        wanted = getattr(later, field.name)
        if wanted is not None:
            setattr(values, field.name, wanted)
    return values
