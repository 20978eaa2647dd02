# SPDX-License-Identifier: Apache-2.0
"""POSIX access control lists as the kernel keeps them in ``system.posix_acl_access`` and ``..._default``.

Inputs: the raw attribute (version 2, entries of tag, permission, id, little-endian) and mode bits; outputs: whether a
caller may, or what a new object inherits.  Source of the facts: acl(5), and linux/posix_acl_xattr.h for the bytes.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator

from repl.files.translators.posix import calls
from repl.files.values import Caller

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"
_VERSION = 2
_ENTRY = struct.Struct("<HHI")
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


def _entries(raw: bytes) -> Iterator[tuple[int, int, int]]:
    if len(raw) < 4 or struct.unpack_from("<I", raw)[0] != _VERSION or (len(raw) - 4) % _ENTRY.size:
        raise OSError(errno.EINVAL, "not an access control list")
    return _ENTRY.iter_unpack(raw[4:])


def _get(target: int | str, key: str) -> bytes | None:
    try:
        return os.getxattr(target, key)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def inherited(raw: bytes, mode: int) -> bytes:
    """The access list of a new object below a directory with the default list ``raw``."""
    entries = list(_entries(raw))
    has_mask = any(tag == MASK for tag, _, _ in entries)
    shifts = {USER_OBJ: 6, MASK if has_mask else GROUP_OBJ: 3, OTHER: 0}
    out = [
        (tag, permission & (mode >> shifts[tag]) & 7 if tag in shifts else permission, who)
        for tag, permission, who in entries
    ]
    return struct.pack("<I", _VERSION) + b"".join(_ENTRY.pack(*entry) for entry in out)


def inherit(parent: int, target: int | str, mode: int) -> None:
    """Give a new object what its directory's default list says; nothing without one."""
    raw = _get(parent, DEFAULT)
    if raw is None:
        return
    calls.setxattr(target, ACCESS, inherited(raw, mode))
    if stat.S_ISDIR(mode) or isinstance(target, str) and os.path.isdir(target):
        calls.setxattr(target, DEFAULT, raw)


def permits(caller: Caller, st: os.stat_result, raw: bytes | None, mask: int) -> bool:
    """``mask``: R_OK 4, W_OK 2, X_OK 1; ``raw``: the access list if there is one."""
    if caller.uid == 0:
        return not mask & 1 or stat.S_ISDIR(st.st_mode) or bool(st.st_mode & 0o111)
    groups = {caller.gid, *caller.groups}
    if caller.uid == st.st_uid:
        return mask & (st.st_mode >> 6) == mask
    if raw is None:
        shift = 3 if st.st_gid in groups else 0
        return mask & (st.st_mode >> shift) == mask
    entries = list(_entries(raw))
    limit = next((permission for tag, permission, _ in entries if tag == MASK), 7)
    for tag, permission, who in entries:
        if tag == USER and who == caller.uid:
            return mask & permission & limit == mask
    in_groups = [p for tag, p, who in entries
                 if tag == GROUP_OBJ and st.st_gid in groups or tag == GROUP and who in groups]  # fmt: skip
    if in_groups:
        return any(mask & permission & limit == mask for permission in in_groups)
    return any(tag == OTHER and mask & permission == mask for tag, permission, _ in entries)


def access(caller: Caller, target: int | str, st: os.stat_result, mask: int) -> bool:
    raw = None if stat.S_ISLNK(st.st_mode) or caller.uid == 0 else _get(target, ACCESS)
    return permits(caller, st, raw, mask & 7)
