# SPDX-License-Identifier: Apache-2.0
"""Making things: create, mknod, mkdir, symlink, link.

A regular file is made without a name (O_TMPFILE) in its directory, gets gfid, note and owner, then its name, then its
handle.  Where the file system has no O_TMPFILE, and for all other kinds, the same happens under ``unfinished``; a
directory is renamed from there.  Errors: ``OSError``; nothing is left behind after one.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from repl.files.translators.posix import acl, calls
from repl.files.translators.posix.brick import Brick, iatt_of
from repl.files.translators.posix.names import (
    GFID_KEY,
    PRECONDITION,
    UNFINISHED,
    check_name,
    directory_handle,
    gfid2path,
    handle_path,
)
from repl.files.translators.posix.native import pack_extra
from repl.files.values import NEW_LOCK, NO_GFID, Caller, FopError, Loc, Looked, Xattrs, gfid_text

_NOT_KEPT = (GFID_KEY.encode(), NEW_LOCK)
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}


@dataclass(frozen=True, slots=True)
class Masks:
    """Options that bound and force permission bits."""

    file: int = 0o777
    directory: int = 0o777
    force_file: int = 0
    force_directory: int = 0
    links_max: int = 100

    def of_file(self, mode: int) -> int:
        return stat.S_IFMT(mode) | mode & (self.file | 0o7000) | self.force_file

    def of_directory(self, mode: int) -> int:
        return mode & (self.directory | 0o7000) | self.force_directory


class Maker:
    """What makes new inodes on one brick."""

    def __init__(self, brick: Brick, masks: Masks) -> None:
        self._brick = brick
        self.masks = masks
        self._has_tmpfile = True

    # ---- regular files ----

    def create(self, caller: Caller, loc: Loc, mode: int, gfid: bytes, extra: Xattrs | None) -> tuple[int, Looked]:
        """The file and its open descriptor.  EEXIST if the name is there."""
        parent = self._parent(loc, gfid, extra)
        mode = stat.S_IMODE(self.masks.of_file(mode))
        if self._has_tmpfile:
            try:
                fd = calls.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=parent)
            except OSError as error:
                # ENOENT: the directory has been removed, or the file system never heard of it.
                if error.errno not in _NO_TMPFILE or os.fstat(parent).st_nlink == 0:
                    raise
                self._has_tmpfile = False
            else:
                return fd, self._complete_tmpfile(caller, loc, fd, mode, gfid, extra, parent)
        source = f"{UNFINISHED}/{gfid_text(gfid)}"
        self._clear(source)
        fd = calls.open(source, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=self._brick.root)
        try:
            self._dress(fd, loc, gfid, extra)
            self._own(fd, caller, mode, os.fstat(parent))
            acl.inherit(parent, fd, mode)
            self._move_in(source, loc, gfid, parent)
            return fd, self._looked(os.fstat(fd), gfid, parent)
        except OSError:
            os.close(fd)
            self._clear(source)
            raise

    def _complete_tmpfile(
        self, caller: Caller, loc: Loc, fd: int, mode: int, gfid: bytes, extra: Xattrs | None, parent: int
    ) -> Looked:
        brick = self._brick
        try:
            return brick.native.complete(brick.root, parent, fd, loc.name, gfid,
                                         loc.parent if brick.keeps_names else None, mode, caller,
                                         pack_extra(_kept(extra)))  # fmt: skip
        except OSError:
            os.close(fd)
            raise

    # ---- the others ----

    def mknod(self, caller: Caller, loc: Loc, mode: int, rdev: int, gfid: bytes, extra: Xattrs | None) -> Looked:
        if stat.S_ISREG(mode) or not stat.S_IFMT(mode):
            fd, looked = self.create(caller, loc, mode, gfid, extra)
            os.close(fd)
            return looked
        parent = self._parent(loc, gfid, extra)
        mode = self.masks.of_file(mode)
        source = f"{UNFINISHED}/{gfid_text(gfid)}"
        self._clear(source)
        calls.mknod(source, mode, rdev, dir_fd=self._brick.root)
        return self._complete(caller, loc, mode, gfid, extra, parent)

    def symlink(self, caller: Caller, loc: Loc, target: bytes, gfid: bytes, extra: Xattrs | None) -> Looked:
        parent = self._parent(loc, gfid, extra)
        source = f"{UNFINISHED}/{gfid_text(gfid)}"
        self._clear(source)
        calls.symlink(target, os.fsencode(source), dir_fd=self._brick.root)
        return self._complete(caller, loc, stat.S_IFLNK | 0o777, gfid, extra, parent)

    def _complete(self, caller: Caller, loc: Loc, mode: int, gfid: bytes, extra: Xattrs | None, parent: int) -> Looked:
        source = f"{UNFINISHED}/{gfid_text(gfid)}"
        path = f"{self._brick.path}/{source}"
        try:
            self._dress(path, loc, gfid, extra)
            self._own(path, caller, mode, os.fstat(parent))
            if not stat.S_ISLNK(mode):
                acl.inherit(parent, path, mode)
            self._move_in(source, loc, gfid, parent)
        except OSError:
            self._clear(source)
            raise
        return self._looked(os.stat(loc.name, dir_fd=parent, follow_symlinks=False), gfid, parent)

    def _move_in(self, source: str, loc: Loc, gfid: bytes, parent: int) -> None:
        """Name first, then ``unfinished`` becomes the handle."""
        root = self._brick.root
        calls.link(source, loc.name, src_dir_fd=root, dst_dir_fd=parent, follow_symlinks=False)
        try:
            self._brick.link_handle(root, source, gfid)
        except OSError:
            calls.unlink(loc.name, dir_fd=parent)
            raise
        calls.unlink(source, dir_fd=root)

    def mkdir(self, caller: Caller, loc: Loc, mode: int, gfid: bytes, extra: Xattrs | None) -> Looked:
        brick = self._brick
        parent = self._parent(loc, gfid, extra)
        self._refuse_existing(loc.name, parent)
        source = f"{UNFINISHED}/{gfid_text(gfid)}"
        path = f"{brick.path}/{source}"
        above = os.fstat(parent)
        mode = self.masks.of_directory(stat.S_IMODE(mode)) | above.st_mode & stat.S_ISGID
        self._refuse_handle(gfid)
        self._clear(source)
        calls.mkdir(source, mode, dir_fd=brick.root)
        try:
            self._dress(path, loc, gfid, extra, is_directory=True)
            self._own(path, caller, mode, above)
            calls.chmod(path, mode)  # mkdir leaves out the set-group-id bit
            acl.inherit(parent, path, mode)
            self._point(gfid, directory_handle(loc.parent, loc.name))
            calls.rename_flags(source, loc.name, brick.root, parent, calls.RENAME_NOREPLACE)
        except OSError:
            brick.remove_handle(gfid)
            self._clear(source)
            raise
        return self._looked(os.stat(loc.name, dir_fd=parent, follow_symlinks=False), gfid, parent)

    def _point(self, gfid: bytes, target: bytes) -> None:
        """The handle of a new directory."""
        path = os.fsencode(handle_path(gfid))
        try:
            calls.symlink(target, path, dir_fd=self._brick.root)
        except FileNotFoundError:
            self._brick.make_folder(gfid)
            calls.symlink(target, path, dir_fd=self._brick.root)

    def _refuse_handle(self, gfid: bytes) -> None:
        """EEXIST when the gfid lives here already; a handle that leads nowhere goes."""
        try:
            self._brick.node(gfid)
        except FopError as error:
            if error.errno != errno.ESTALE:
                raise
            self._brick.remove_handle(gfid)
        else:
            raise FopError(errno.EEXIST, f"{gfid_text(gfid)} is here already")

    @staticmethod
    def _refuse_existing(name: bytes, parent: int) -> None:
        try:
            os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        raise FopError(errno.EEXIST)

    def link(self, source: Loc, loc: Loc) -> Looked:
        brick = self._brick
        check_name(loc.parent, loc.name)
        node = brick.at(source)
        if stat.S_ISDIR(node.st.st_mode):
            raise FopError(errno.EPERM)
        if self.masks.links_max and node.st.st_nlink - 1 >= self.masks.links_max:
            raise FopError(errno.EMLINK, f"option max-hardlinks is {self.masks.links_max}")
        parent = brick.directory(loc.parent)
        self._refuse_existing(loc.name, parent)
        brick.note_name(node, loc.parent, loc.name)
        path = brick.file_path(node.gfid)
        calls.link(path, loc.name, src_dir_fd=brick.root, dst_dir_fd=parent, follow_symlinks=False)
        if node.gfid in brick.unlinked:
            # It has a name again: back from where the nameless are.
            calls.rename(path, handle_path(node.gfid), src_dir_fd=brick.root, dst_dir_fd=brick.root)
            brick.unlinked.discard(node.gfid)
        return self._looked(os.stat(loc.name, dir_fd=parent, follow_symlinks=False), node.gfid, parent)

    # ---- parts ----

    def _parent(self, loc: Loc, gfid: bytes, extra: Xattrs | None) -> int:
        """ESTALE when ``extra`` says that the directory must have an attribute (``PRECONDITION``) and it has not."""
        check_name(loc.parent, loc.name)
        if len(gfid) != len(NO_GFID) or gfid == NO_GFID:
            raise FopError(errno.EINVAL, "a new object needs a gfid")
        if gfid in self._brick.unlinked:
            raise FopError(errno.EEXIST, f"{gfid_text(gfid)} is here, without a name")
        directory = self._brick.directory(loc.parent)
        for key, value in extra.items() if extra else ():
            if key.startswith(PRECONDITION) and not _has(directory, key[len(PRECONDITION) :], value):
                raise FopError(errno.ESTALE, "the directory's layout has changed")
        return directory

    def _clear(self, source: str) -> None:
        """Take away what an earlier attempt may have left under ``unfinished``."""
        try:
            calls.unlink(source, dir_fd=self._brick.root)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            calls.rmdir(source, dir_fd=self._brick.root)

    def _dress(
        self, target: int | str, loc: Loc, gfid: bytes, extra: Xattrs | None, *, is_directory: bool = False
    ) -> None:
        """Identity, note of the name, and whatever else comes into being with it."""
        values: list[tuple[str | bytes, bytes]] = [(GFID_KEY, gfid)]
        if self._brick.keeps_names and not is_directory:
            values.append(gfid2path(loc.parent, loc.name))
        values += _kept(extra)
        for key, value in values:
            if isinstance(target, int):
                calls.setxattr(target, key, value)
            else:
                calls.setxattr(target, key, value, follow_symlinks=False)

    @staticmethod
    def _own(target: int | str, caller: Caller, mode: int, above: os.stat_result) -> None:
        gid = above.st_gid if above.st_mode & stat.S_ISGID else caller.gid
        if caller.uid or gid or above.st_mode & stat.S_ISGID:
            if isinstance(target, int):
                calls.chown(target, caller.uid, gid)
            else:
                calls.chown(target, caller.uid, gid, follow_symlinks=False)
            if mode & 0o6000 and not stat.S_ISLNK(mode):
                calls.chmod(target, stat.S_IMODE(mode))

    @staticmethod
    def _looked(st: os.stat_result, gfid: bytes, parent: int) -> Looked:
        return Looked(iatt_of(st, gfid), iatt_of(os.fstat(parent), NO_GFID))


def _kept(extra: Xattrs | None) -> list[tuple[bytes, bytes]]:
    """What becomes an attribute of the new object."""
    if not extra:
        return []
    return [(key, bytes(value)) for key, value in extra.items()
            if key not in _NOT_KEPT and not key.startswith(PRECONDITION)]  # fmt: skip


def _has(directory: int, key: bytes, value: bytes) -> bool:
    try:
        return os.getxattr(directory, key) == value
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return False
