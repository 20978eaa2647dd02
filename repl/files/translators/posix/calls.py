# SPDX-License-Identifier: Apache-2.0
"""Every system call that changes the brick, in one place, so that tests can stop a brick between any two of them; but
for what is done often: native.py.

Those that Python's ``os`` does not have go through ctypes.  Errors: ``OSError``.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.getdents64.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
_libc.getdents64.restype = ctypes.c_ssize_t
_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
FALLOC_KEEP_SIZE = 1

open = os.open
link = os.link
symlink = os.symlink
mkdir = os.mkdir
mknod = os.mknod
unlink = os.unlink
rmdir = os.rmdir
rename = os.rename
setxattr = os.setxattr
removexattr = os.removexattr
chown = os.chown
chmod = os.chmod
utime = os.utime
pwritev = os.pwritev
ftruncate = os.ftruncate


def _failed() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def rename_flags(source: str | bytes, target: str | bytes, source_fd: int, target_fd: int, flags: int) -> None:
    """renameat2(2)."""
    if _libc.renameat2(source_fd, os.fsencode(source), target_fd, os.fsencode(target), flags) < 0:
        raise _failed()


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length) < 0:
        raise _failed()


def getdents(fd: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Bytes of directory entries put into ``buffer``, 0 at the end."""
    count: int = _libc.getdents64(fd, buffer, len(buffer))
    if count < 0:
        raise _failed()
    return count
