# SPDX-License-Identifier: Apache-2.0
"""Removal of trees that were taken out of the volume as a whole (rmdir with ``recursive``).

What is in the landfill is removed name by name with its handles, a few at a time so that others get their turn;
directories inside of it move up into the landfill first, so depth does not matter.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator

from repl.files.translators.posix import calls
from repl.files.translators.posix.brick import Brick, name_path
from repl.files.translators.posix.names import (
    GFID_KEY,
    LANDFILL,
    UNLINKED,
    gfid2path,
    handle_path,
)
from repl.files.values import gfid_text

log = logging.getLogger(__name__)

_STEPS_AT_ONCE = 32


def clean(brick: Brick, is_open: Callable[[bytes], bool]) -> Iterator[None]:
    """Each step removes one thing or moves one directory; the end: the landfill is empty.

    Files that somebody has open keep their handle under ``unlink``.
    """
    landfill = os.open(LANDFILL, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=brick.root)
    try:
        while names := os.listdir(landfill):
            for name in names:
                yield from _empty(brick, landfill, os.fsencode(name), is_open)
    finally:
        os.close(landfill)


def _gfid(directory: int, name: bytes) -> bytes:
    try:
        return os.getxattr(name_path(directory, name), GFID_KEY, follow_symlinks=False)
    except OSError:
        return b""


def _empty(brick: Brick, landfill: int, name: bytes, is_open: Callable[[bytes], bool]) -> Iterator[None]:
    if not stat.S_ISDIR(os.stat(name, dir_fd=landfill, follow_symlinks=False).st_mode):
        calls.unlink(name, dir_fd=landfill)
        return
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=landfill)
    try:
        parent = _gfid(landfill, name)
        for child in os.listdir(fd):
            _take_out(brick, landfill, fd, parent, os.fsencode(child), is_open)
            yield
    finally:
        os.close(fd)
    calls.rmdir(name, dir_fd=landfill)
    yield


def _take_out(
    brick: Brick, landfill: int, directory: int, parent: bytes, name: bytes, is_open: Callable[[bytes], bool]
) -> None:
    st = os.stat(name, dir_fd=directory, follow_symlinks=False)
    gfid = _gfid(directory, name)
    if stat.S_ISDIR(st.st_mode):
        place = gfid_text(gfid).encode() if gfid else b"inode-%d" % st.st_ino
        calls.rename(name, place, src_dir_fd=directory, dst_dir_fd=landfill)
        if gfid:
            brick.drop_directory(gfid)
            brick.remove_handle(gfid)
        return
    if st.st_nlink <= 2 and gfid:
        if is_open(gfid):
            aside = f"{UNLINKED}/{gfid_text(gfid)}"
            calls.rename(handle_path(gfid), aside, src_dir_fd=brick.root, dst_dir_fd=brick.root)
            brick.unlinked.add(gfid)
        else:
            brick.remove_handle(gfid)
    calls.unlink(name, dir_fd=directory)
    if st.st_nlink > 2 and gfid and parent and brick.keeps_names:
        try:
            brick.node(gfid).remove(gfid2path(parent, name)[0])
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ESTALE):
                raise


def some(steps: Iterator[None]) -> bool:
    """A few steps; False when all is gone."""
    try:
        return sum(1 for _ in zip(range(_STEPS_AT_ONCE), steps, strict=False)) == _STEPS_AT_ONCE
    except OSError as error:
        log.warning("the landfill cannot be emptied now: %s", error)
        return False
