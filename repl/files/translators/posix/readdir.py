# SPDX-License-Identifier: Apache-2.0
"""Listings with identities, attributes, extended attributes and, where they are wanted, contents of small files.

What vanishes while it is listed is left out.  Contents are asked of the disk for all files of an answer before the
first of them is waited for.  Errors: ``OSError``.
"""

from __future__ import annotations

import contextlib
import os
import stat

from repl.files.translators.posix.attributes import xattrs_of
from repl.files.translators.posix.brick import Brick, iatt_of
from repl.files.translators.posix.files import OpenFile
from repl.files.translators.posix.names import is_hidden
from repl.files.translators.posix.xattrs import CONTENT
from repl.files.values import LAST, Entry, Want
from repl.limits import (
    FILES_LISTING_ENTRIES_MAX,
    POSIX_LISTING_CONTENT_BYTES,
    POSIX_LISTING_CONTENTS_MAX,
    QUICK_READ_BYTES_MAX,
)

_DIRENT_BYTES = 24
_PLUS_BYTES = 128  # what attributes add to an entry of FUSE
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class _Contents:
    """Of the files of one answer."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._room = POSIX_LISTING_CONTENT_BYTES
        self._opened: list[tuple[Entry, int, int]] = []

    def ask(self, entry: Entry, st: os.stat_result) -> None:
        """If it is a small file, and there is room for it."""
        size = st.st_size
        is_small = stat.S_ISREG(st.st_mode) and size <= QUICK_READ_BYTES_MAX
        if not is_small or not self._room or len(self._opened) >= POSIX_LISTING_CONTENTS_MAX:
            return
        try:
            fd = os.open(entry.name, _OPEN, dir_fd=self._directory)
        except OSError:  # it comes without
            return
        self._opened.append((entry, fd, size))
        self._room = max(0, self._room - size)
        if size:
            with contextlib.suppress(OSError):
                os.posix_fadvise(fd, 0, size, os.POSIX_FADV_WILLNEED)

    def read(self) -> None:
        for entry, fd, size in self._opened:
            with contextlib.suppress(OSError):
                entry.xattrs[CONTENT] = os.pread(fd, size, 0)

    def close(self) -> None:
        for _, fd, _ in self._opened:
            os.close(fd)


def read(brick: Brick, opened: OpenFile, size: int, offset: int, is_plus: bool, want: Want) -> list[Entry]:
    tells_last = LAST in want
    if tells_last:
        want = tuple(key for key in want if key != LAST)
    if CONTENT not in want:
        return _read(brick, opened, size, offset, is_plus, want, None, tells_last=tells_last)
    contents = _Contents(opened.fd)
    try:
        rest = tuple(key for key in want if key != CONTENT)
        found = _read(brick, opened, size, offset, is_plus, rest, contents, tells_last=tells_last)
        contents.read()
    finally:
        contents.close()
    return found


def _read(
    brick: Brick, opened: OpenFile, size: int, offset: int, is_plus: bool, want: Want, contents: _Contents | None,
    *, tells_last: bool,
) -> list[Entry]:  # fmt: skip
    assert opened.listing is not None
    parent, directory = opened.gfid, opened.fd
    found: list[Entry] = []
    for raw in opened.listing.entries(offset):
        if is_hidden(parent, raw.name):
            continue
        try:
            st = os.stat(raw.name, dir_fd=directory, follow_symlinks=False)
            gfid = brick.identify(parent, directory, raw.name, st)
            if not stat.S_ISDIR(st.st_mode) and st.st_nlink == 1:
                st = os.stat(raw.name, dir_fd=directory, follow_symlinks=False)
            xattrs = xattrs_of(brick, gfid, st, want) if want else {}
        except FileNotFoundError:
            continue
        entry = Entry(raw.name, raw.offset, gfid, stat.S_IFMT(st.st_mode), None, xattrs)
        if is_plus:
            entry.iatt = iatt_of(st, gfid)
        if contents is not None:
            contents.ask(entry, st)
        found.append(entry)
        size -= _DIRENT_BYTES + (len(raw.name) + 7 & ~7) + (_PLUS_BYTES if is_plus else 0)
        if size <= 0 or len(found) >= FILES_LISTING_ENTRIES_MAX:
            break
    else:
        if found and tells_last:
            found[-1].xattrs = {**found[-1].xattrs, LAST: b""}  # a directory's are the ones that the brick remembers
    return found
