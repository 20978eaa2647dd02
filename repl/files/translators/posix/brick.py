# SPDX-License-Identifier: Apache-2.0
"""A brick: its root, the handles below ``.glusterfs``, and how a gfid or a name becomes something to work on.

Nothing is ever reached by a path that a client can influence.  Directories are open descriptors (the most recently
used ones are kept), found by walking handles up to one that is open and names down again, each step without following
a link and checked against the directory's own gfid; everything else is its handle.  Names are single components
relative to such a descriptor.

What holds at every moment, a crash included: a name is visible only with its gfid; a handle is made after the first
name and removed before the last one (directories: made before, removed after), so that what is left over is a name
without handle, which the next lookup mends, or something in ``unfinished`` or ``unlink``, which the next start clears.
Errors: ``OSError``; a gfid that is not here is ESTALE.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from repl.files.translators.posix import calls
from repl.files.translators.posix.known import KnownXattrs
from repl.files.translators.posix.names import (
    GFID_KEY,
    HIDDEN,
    UNFINISHED,
    UNLINKED,
    check_name,
    directory_handle,
    gfid2path,
    gfid_of_foreign,
    handle_path,
    parse_directory_handle,
)
from repl.files.translators.posix.native import Native
from repl.files.values import GFID_BYTES, NO_GFID, ROOT_GFID, FopError, Iatt, Loc, gfid_text
from repl.limits import FILES_DEPTH_MAX, POSIX_DIRECTORY_FDS_MAX

log = logging.getLogger(__name__)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Node:
    """Something of the brick.  ``fd`` is open for directories and open files, else -1 and ``path`` is the handle."""

    gfid: bytes
    st: os.stat_result
    fd: int
    path: str

    def get(self, key: str | bytes) -> bytes:
        if self.fd >= 0:
            return os.getxattr(self.fd, key)
        return os.getxattr(self.path, key, follow_symlinks=False)

    def keys(self) -> list[str]:
        if self.fd >= 0:
            return os.listxattr(self.fd)
        return os.listxattr(self.path, follow_symlinks=False)

    def set(self, key: str | bytes, value: bytes, flags: int = 0) -> None:
        if self.fd >= 0:
            calls.setxattr(self.fd, key, value, flags)
        else:
            calls.setxattr(self.path, key, value, flags, follow_symlinks=False)

    def remove(self, key: str | bytes) -> None:
        if self.fd >= 0:
            calls.removexattr(self.fd, key)
        else:
            calls.removexattr(self.path, key, follow_symlinks=False)


def name_path(directory: int, name: bytes) -> bytes:
    """A path for calls that know no directory descriptors; ``name`` is a single component."""
    return b"/proc/self/fd/%d/%s" % (directory, name)


def iatt_of(st: os.stat_result, gfid: bytes) -> Iatt:
    """The handle is no link of the user's."""
    nlink = st.st_nlink
    if not stat.S_ISDIR(st.st_mode):
        nlink -= 1
    elif gfid == ROOT_GFID and nlink > 2:
        nlink -= 1  # .glusterfs
    return Iatt(gfid, st.st_mode, nlink, st.st_uid, st.st_gid, st.st_rdev, st.st_size, st.st_blocks, st.st_blksize,
                st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)  # fmt: skip


class Brick:
    """Everything here is synchronous and runs one call at a time (see lane.py)."""

    def __init__(self, path: str, *, keeps_names: bool = True) -> None:
        self.path = os.path.realpath(path)
        self.keeps_names = keeps_names  # option gfid2path
        self.root = os.open(self.path, _DIRECTORY)
        self._directories: OrderedDict[bytes, int] = OrderedDict()
        self._inodes: dict[bytes, int] = {}  # of the directories that are open
        self.known = KnownXattrs()
        self.native = Native()
        self.unlinked: set[bytes] = set()  # open files without a name: their handle is in UNLINKED

    def close(self) -> None:
        for fd in self._directories.values():
            os.close(fd)
        self._directories.clear()
        self._inodes.clear()
        if self.root >= 0:
            os.close(self.root)
            self.root = -1

    # ---- directories ----

    def trim(self) -> None:
        """Close descriptors that have not been used for long.  Only between two calls."""
        while len(self._directories) > POSIX_DIRECTORY_FDS_MAX:
            gfid, fd = self._directories.popitem(last=False)
            del self._inodes[gfid]
            os.close(fd)

    def directory(self, gfid: bytes) -> int:
        """An open descriptor, good until the end of this call."""
        if gfid == ROOT_GFID:
            return self.root
        fd = self._directories.get(gfid)
        if fd is not None:
            self._directories.move_to_end(gfid)
            return fd
        return self._load(gfid)

    def _load(self, gfid: bytes) -> int:
        steps: list[tuple[bytes, bytes]] = []  # gfid and name, from below
        above = gfid
        while above != ROOT_GFID and above not in self._directories:
            if len(steps) >= FILES_DEPTH_MAX:
                raise FopError(errno.ELOOP, f"the handles above {gfid_text(gfid)} go round in a circle")
            parent, name = self.place(above)
            steps.append((above, name))
            above = parent
        fd = self.root if above == ROOT_GFID else self._directories[above]
        for below, name in reversed(steps):
            fd = self._enter(fd, below, name)
        return fd

    def _enter(self, parent: int, gfid: bytes, name: bytes) -> int:
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise FopError(errno.ESTALE, f"the directory of handle {gfid_text(gfid)} is gone") from None
            raise
        try:
            found = os.getxattr(fd, GFID_KEY)
        except OSError:
            found = b""
        if found != gfid:
            os.close(fd)
            raise FopError(errno.ESTALE, f"handle {gfid_text(gfid)} leads to another directory")
        self._directories[gfid] = fd
        self._inodes[gfid] = os.fstat(fd).st_ino
        return fd

    def place(self, gfid: bytes) -> tuple[bytes, bytes]:
        """Parent and name of a directory by its handle."""
        try:
            target = os.readlink(os.fsencode(handle_path(gfid)), dir_fd=self.root)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise FopError(errno.ENOTDIR, gfid_text(gfid)) from None
            if error.errno == errno.ENOENT:
                raise FopError(errno.ESTALE, f"no {gfid_text(gfid)} here") from None
            raise
        place = parse_directory_handle(target)
        if place is None:
            raise FopError(errno.ENOTDIR, gfid_text(gfid))
        return place

    def drop_directory(self, gfid: bytes) -> None:
        """It is gone, or may have been replaced by hand."""
        fd = self._directories.pop(gfid, None)
        if fd is not None:
            del self._inodes[gfid]
            os.close(fd)

    def is_open_directory(self, gfid: bytes, inode: int) -> bool:
        return self._inodes.get(gfid) == inode

    # ---- everything by its gfid ----

    def file_path(self, gfid: bytes) -> str:
        """The handle of what is no directory, below the root."""
        return f"{UNLINKED}/{gfid_text(gfid)}" if gfid in self.unlinked else handle_path(gfid)

    def node(self, gfid: bytes) -> Node:
        if gfid == ROOT_GFID or gfid in self._directories:
            fd = self.directory(gfid)
            return Node(gfid, os.fstat(fd), fd, "")
        relative = self.file_path(gfid)
        path = f"{self.path}/{relative}"
        try:
            st = os.stat(relative, dir_fd=self.root, follow_symlinks=False)
            if stat.S_ISLNK(st.st_mode) and not self._is_symlink_of_user(path):
                fd = self.directory(gfid)
                return Node(gfid, os.fstat(fd), fd, "")
        except FileNotFoundError:
            raise FopError(errno.ESTALE, f"no {gfid_text(gfid)} here") from None
        return Node(gfid, st, -1, path)

    def note_name(self, node: Node, parent: bytes, name: bytes) -> None:
        """In its attributes; where there is no room for more of them, its path is not known by its gfid."""
        if not self.keeps_names:
            return
        try:
            node.set(*gfid2path(parent, name))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    @staticmethod
    def _is_symlink_of_user(path: str) -> bool:
        """A user's link has its gfid, the handle of a directory has none."""
        try:
            os.getxattr(path, GFID_KEY, follow_symlinks=False)
        except OSError:
            return False
        return True

    def at(self, loc: Loc) -> Node:
        """What an operation on an inode is about: the gfid counts, without one the name."""
        if loc.gfid != NO_GFID:
            return self.node(loc.gfid)
        return self.node(self.find(loc)[1])

    # ---- names ----

    def find(self, loc: Loc) -> tuple[os.stat_result, bytes]:
        """The inode behind a name.  Its gfid and handle are mended if need be."""
        check_name(loc.parent, loc.name)
        directory = self.directory(loc.parent)
        st = os.stat(loc.name, dir_fd=directory, follow_symlinks=False)
        return st, self.identify(loc.parent, directory, loc.name, st)

    def identify(self, parent: bytes, directory: int, name: bytes, st: os.stat_result) -> bytes:
        """The gfid of a name that was just stat'ed."""
        path = name_path(directory, name)
        try:
            gfid = os.getxattr(path, GFID_KEY, follow_symlinks=False)
            if len(gfid) != GFID_BYTES:
                raise FopError(errno.EIO, f"{name!r} has a gfid of {len(gfid)} bytes")
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            gfid = self._adopt(parent, path, name, st)
        if stat.S_ISDIR(st.st_mode):
            if not self.is_open_directory(gfid, st.st_ino):
                self._mend_directory(parent, name, gfid)
        elif st.st_nlink == 1:
            self._mend_file(directory, name, gfid, st)
        return gfid

    def _adopt(self, parent: bytes, path: bytes, name: bytes, st: os.stat_result) -> bytes:
        """Somebody has put it into the brick by hand: it gets an identity."""
        gfid = gfid_of_foreign(parent, name)
        log.info("brick %s: %s in %s had no gfid; it gets %s", self.path, name, gfid_text(parent), gfid_text(gfid))
        calls.setxattr(path, GFID_KEY, gfid, os.XATTR_CREATE, follow_symlinks=False)
        if self.keeps_names and not stat.S_ISDIR(st.st_mode):
            key, value = gfid2path(parent, name)
            calls.setxattr(path, key, value, follow_symlinks=False)
        return gfid

    def _mend_directory(self, parent: bytes, name: bytes, gfid: bytes) -> None:
        self.drop_directory(gfid)
        wanted = directory_handle(parent, name)
        try:
            if os.readlink(os.fsencode(handle_path(gfid)), dir_fd=self.root) == wanted:
                return
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise
        log.info("brick %s: the handle of directory %s is put right", self.path, gfid_text(gfid))
        self.point_handle(gfid, wanted)
        self.finish_handle(gfid)

    def _mend_file(self, directory: int, name: bytes, gfid: bytes, st: os.stat_result) -> None:
        try:
            self.link_handle(directory, name, gfid)
        except FileExistsError:
            other = os.stat(handle_path(gfid), dir_fd=self.root, follow_symlinks=False)
            if other.st_ino == st.st_ino:
                return
            if other.st_nlink > 1 or stat.S_ISLNK(other.st_mode):
                raise FopError(errno.EIO, f"two inodes have the gfid {gfid_text(gfid)}") from None
            calls.unlink(handle_path(gfid), dir_fd=self.root)
            self.link_handle(directory, name, gfid)
        log.info("brick %s: %s had no handle; it has one now", self.path, gfid_text(gfid))

    # ---- handles ----

    def make_folder(self, gfid: bytes) -> None:
        h = gfid.hex()
        for folder in (f"{HIDDEN}/{h[:2]}", f"{HIDDEN}/{h[:2]}/{h[2:4]}"):
            try:
                calls.mkdir(folder, 0o700, dir_fd=self.root)
            except FileExistsError:
                pass

    def link_handle(self, directory: int, name: str | bytes, gfid: bytes) -> None:
        """A hard link to what is no directory."""
        path = handle_path(gfid)
        for _ in range(2):
            try:
                calls.link(name, path, src_dir_fd=directory, dst_dir_fd=self.root, follow_symlinks=False)
                return
            except FileNotFoundError:
                self.make_folder(gfid)
        raise FopError(errno.ENOENT, f"no handle can be made for {gfid_text(gfid)}")

    def point_handle(self, gfid: bytes, target: bytes) -> None:
        """First half of the change of a directory's handle: a new symlink beside it."""
        text = f"{UNFINISHED}/{gfid_text(gfid)}"
        try:
            calls.symlink(target, os.fsencode(text), dir_fd=self.root)
        except FileExistsError:
            calls.unlink(text, dir_fd=self.root)
            calls.symlink(target, os.fsencode(text), dir_fd=self.root)

    def finish_handle(self, gfid: bytes) -> None:
        """Second half: it takes the place of the old one."""
        text = f"{UNFINISHED}/{gfid_text(gfid)}"
        try:
            calls.rename(text, handle_path(gfid), src_dir_fd=self.root, dst_dir_fd=self.root)
        except FileNotFoundError:
            self.make_folder(gfid)
            calls.rename(text, handle_path(gfid), src_dir_fd=self.root, dst_dir_fd=self.root)

    def remove_handle(self, gfid: bytes) -> None:
        try:
            calls.unlink(handle_path(gfid), dir_fd=self.root)
        except FileNotFoundError:
            pass

    # ---- where it is ----

    def paths(self, gfid: bytes) -> Iterator[bytes]:
        """Every path inside the volume that leads to it, by what is noted and still true."""
        if gfid == ROOT_GFID:
            yield b"/"
            return
        node = self.node(gfid)
        if stat.S_ISDIR(node.st.st_mode):
            yield self._path_of_directory(gfid)
            return
        for key in node.keys():
            if not key.startswith("trusted.gfid2path."):
                continue
            parent, _, name = node.get(key).partition(b"/")
            try:
                folder = bytes.fromhex(parent.decode().replace("-", ""))
                st = os.stat(name, dir_fd=self.directory(folder), follow_symlinks=False)
            except (OSError, ValueError):
                continue
            if st.st_ino == node.st.st_ino:
                yield self._path_of_directory(folder).rstrip(b"/") + b"/" + name

    def _path_of_directory(self, gfid: bytes) -> bytes:
        parts: list[bytes] = []
        while gfid != ROOT_GFID and len(parts) < FILES_DEPTH_MAX:
            gfid, name = self.place(gfid)
            parts.append(name)
        return b"/" + b"/".join(reversed(parts))
