# SPDX-License-Identifier: Apache-2.0
"""The three index folders on the disk, in Gluster's format: a base file, and a hard link to it for each entry.

``xattrop/`` and ``dirty/`` name inodes by their gfids, ``entry-changes/<gfid of a directory>/`` names entries.
Source of the facts: bricks of GlusterFS 10.3 (spec section 3.4).  Errors: ``OSError``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from repl.files.values import gfid_from_text, gfid_text

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Folder:
    """One of them.  ``new_id`` makes the gfids that name base files."""

    def __init__(self, above: int, name: str, new_id: Iterable[bytes]) -> None:
        self.name = name
        self._new_id = iter(new_id)
        try:
            os.mkdir(name, 0o700, dir_fd=above)
        except FileExistsError:
            pass
        self.fd = os.open(name, _DIRECTORY, dir_fd=above)
        found = sorted(entry for entry in os.listdir(self.fd) if self.is_base(entry))
        self._base = found[-1] if found else self._new_base()

    def close(self) -> None:
        os.close(self.fd)

    def is_base(self, entry: str) -> bool:
        return entry.startswith(self.name + "-")

    def _new_base(self) -> str:
        base = f"{self.name}-{gfid_text(next(self._new_id))}"
        os.close(os.open(base, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0, dir_fd=self.fd))
        return base

    def add(self, entry: str | bytes) -> None:
        """Idempotent."""
        try:
            os.link(self._base, entry, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in (errno.EMLINK, errno.ENOENT):
                raise
            self._base = self._new_base()  # file systems bound the links of a file; or somebody removed it
            os.link(self._base, entry, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def remove(self, entry: str | bytes) -> bool:
        """False: it was not there."""
        try:
            os.unlink(entry, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        return True

    def count(self) -> int:
        """The entries, by the links of the base files (there are few: one for 65,000 entries)."""
        bases = [entry for entry in os.listdir(self.fd) if self.is_base(entry)]
        return sum(os.stat(base, dir_fd=self.fd, follow_symlinks=False).st_nlink - 1 for base in bases)

    # ---- entry-changes: one level more ----

    def open_names(self, gfid: bytes) -> int:
        """The names below one directory, as an open directory.  FileNotFoundError: none."""
        return os.open(gfid_text(gfid), _DIRECTORY, dir_fd=self.fd)

    def add_name(self, gfid: bytes, name: bytes) -> None:
        folder = gfid_text(gfid)
        try:
            os.mkdir(folder, 0o700, dir_fd=self.fd)
        except FileExistsError:
            pass
        self.add(os.fsencode(folder) + b"/" + name)

    def remove_name(self, gfid: bytes, name: bytes) -> None:
        folder = os.fsencode(gfid_text(gfid))
        self.remove(folder + b"/" + name)
        self.remove_if_empty(gfid)

    def remove_if_empty(self, gfid: bytes) -> None:
        try:
            os.rmdir(gfid_text(gfid), dir_fd=self.fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                raise


def gfid_of(entry: bytes) -> bytes | None:
    """The inode that an entry means; None: it is a base file or none of ours."""
    try:
        return gfid_from_text(entry.decode()) if len(entry) == 36 else None
    except ValueError:
        return None
