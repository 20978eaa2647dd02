# SPDX-License-Identifier: Apache-2.0
"""Listings with identities, attributes and extended attributes.

What vanishes while it is listed is left out.  Errors: ``OSError``.
"""

from __future__ import annotations

import os
import stat

from repl.files.translators.posix.attributes import xattrs_of
from repl.files.translators.posix.brick import Brick, iatt_of
from repl.files.translators.posix.files import OpenFile
from repl.files.translators.posix.names import is_hidden
from repl.files.translators.posix.xattrs import CONTENT
from repl.files.values import Entry, Want
from repl.limits import FILES_LISTING_ENTRIES_MAX, POSIX_LISTING_CONTENT_BYTES

_DIRENT_BYTES = 24
_PLUS_BYTES = 128  # what attributes add to an entry of FUSE


def read(brick: Brick, opened: OpenFile, size: int, offset: int, is_plus: bool, want: Want) -> list[Entry]:
    assert opened.listing is not None
    parent, directory = opened.gfid, opened.fd
    found: list[Entry] = []
    room = POSIX_LISTING_CONTENT_BYTES if CONTENT in want else 0
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
        if room and (content := xattrs.get(CONTENT)) is not None:
            room = max(0, room - len(content))
            if not room:  # no more of them in this answer
                want = tuple(key for key in want if key != CONTENT)
        found.append(entry)
        size -= _DIRENT_BYTES + (len(raw.name) + 7 & ~7) + (_PLUS_BYTES if is_plus else 0)
        if size <= 0 or len(found) >= FILES_LISTING_ENTRIES_MAX:
            break
    return found
