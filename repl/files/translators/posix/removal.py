# SPDX-License-Identifier: Apache-2.0
"""Taking names away: unlink, rmdir, rename, and what happens to handles and notes then.

The handle of a file goes before its last name, so a crash in between leaves a name that the next lookup mends, never
an inode that nobody finds.  A file that is still open keeps its handle, under ``unlink``, so that it can be opened by
its gfid until the last descriptor is released.  The new handle of a directory lies in ``unfinished`` before the
directory moves and takes its place afterwards; a start finishes what a crash interrupted.
Errors: ``OSError``; nothing has changed after one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from repl.files.replaced import replaced_xattrs
from repl.files.translators.posix import calls
from repl.files.translators.posix.brick import Brick, iatt_of
from repl.files.translators.posix.names import (
    LANDFILL,
    UNFINISHED,
    UNLINKED,
    check_name,
    directory_handle,
    gfid2path,
    handle_path,
)
from repl.files.values import NO_GFID, FopError, Loc, Looked, gfid_text
from repl.limits import POSIX_UNLINK_INLINE_BYTES

_O_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class _Name:
    """A name, what it leads to and where."""

    loc: Loc
    directory: int
    st: os.stat_result
    gfid: bytes

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.st.st_mode)

    @property
    def is_last(self) -> bool:
        """The last name of a file (its handle is the second link)."""
        return not self.is_directory and self.st.st_nlink <= 2


class Remover:
    """What takes names away on one brick.

    ``is_open`` tells whether somebody has a file open, ``close_later`` closes a descriptor in the background: that is
    when the blocks of a large file become free.  ``linger`` is told of files that a rename has replaced: whoever looked
    the name up just before can open them for a while yet (``released`` ends that); False: there are too many already.
    """

    def __init__(
        self,
        brick: Brick,
        is_open: Callable[[bytes], bool],
        close_later: Callable[[int], None],
        linger: Callable[[bytes], bool] = lambda gfid: False,
    ) -> None:
        self._brick = brick
        self._is_open = is_open
        self._close_later = close_later
        self._linger = linger
        self.defer_all = False  # option background-unlink

    def _name(self, loc: Loc) -> _Name:
        st, gfid = self._brick.find(loc)
        directory = self._brick.directory(loc.parent)
        if not stat.S_ISDIR(st.st_mode) and st.st_nlink == 1:  # it got its handle back just now
            st = os.stat(loc.name, dir_fd=directory, follow_symlinks=False)
        return _Name(loc, directory, st, gfid)

    # ---- unlink ----

    def unlink(self, loc: Loc) -> Looked:
        looked = self._unlink_usual(loc)
        if looked is not None:
            self._brick.known.drop(looked.iatt.gfid)
            return looked
        name = self._name(loc)
        _check_meant(loc, name.gfid)
        if name.is_directory:
            raise FopError(errno.EISDIR)
        if not name.is_last:
            calls.unlink(loc.name, dir_fd=name.directory)
            self._forget_name(name.gfid, loc)
            iatt = iatt_of(os.stat(handle_path(name.gfid), dir_fd=self._brick.root, follow_symlinks=False), name.gfid)
        else:
            kept = self._keep(name)
            self._drop_last_handle(name)
            try:
                calls.unlink(loc.name, dir_fd=name.directory)
            except OSError:
                self._restore_handle(name)
                raise
            finally:
                if kept >= 0:
                    self._close_later(kept)
            iatt = iatt_of(name.st, name.gfid)
            iatt.nlink = 0
            self._brick.known.drop(name.gfid)
        return Looked(iatt, iatt_of(os.fstat(name.directory), loc.parent))

    def _unlink_usual(self, loc: Loc) -> Looked | None:
        """The last name of a file that is neither large nor open; None: it is something else."""
        check_name(loc.parent, loc.name)
        brick = self._brick
        directory = brick.directory(loc.parent)
        found = brick.native.look(directory, loc.name, loc.parent)
        if found is None:
            return None
        iatt = found[0]
        _check_meant(loc, iatt.gfid)
        if iatt.is_directory or iatt.nlink > 1 or self._is_open(iatt.gfid) or self._frees_late(iatt.blocks):
            return None
        above = brick.native.remove(brick.root, directory, loc.name, iatt.gfid, loc.parent)
        iatt.nlink = 0
        return Looked(iatt, above)

    def _frees_late(self, blocks: int) -> bool:
        return self.defer_all or blocks * 512 >= POSIX_UNLINK_INLINE_BYTES

    def _keep(self, name: _Name) -> int:
        """A descriptor that keeps the blocks of a large file until it is closed elsewhere."""
        if not self._frees_late(name.st.st_blocks):
            return -1
        return os.open(name.loc.name, _O_PATH, dir_fd=name.directory)

    def _drop_last_handle(self, name: _Name, *, lingers: bool = False) -> None:
        brick = self._brick
        keeps = lingers and self._linger(name.gfid)
        if not keeps and not self._is_open(name.gfid):
            brick.remove_handle(name.gfid)
            return
        aside = f"{UNLINKED}/{gfid_text(name.gfid)}"
        calls.rename(handle_path(name.gfid), aside, src_dir_fd=brick.root, dst_dir_fd=brick.root)
        brick.unlinked.add(name.gfid)

    def _restore_handle(self, name: _Name) -> None:
        brick = self._brick
        if name.gfid in brick.unlinked:
            aside = f"{UNLINKED}/{gfid_text(name.gfid)}"
            calls.rename(aside, handle_path(name.gfid), src_dir_fd=brick.root, dst_dir_fd=brick.root)
            brick.unlinked.discard(name.gfid)
        else:
            brick.link_handle(name.directory, name.loc.name, name.gfid)

    def _forget_name(self, gfid: bytes, loc: Loc) -> None:
        if not self._brick.keeps_names:
            return
        try:
            self._brick.node(gfid).remove(gfid2path(loc.parent, loc.name)[0])
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOSPC):
                raise

    def released(self, gfid: bytes) -> None:
        """The last descriptor of a file without a name is closed."""
        brick = self._brick
        brick.unlinked.discard(gfid)
        try:
            calls.unlink(f"{UNLINKED}/{gfid_text(gfid)}", dir_fd=brick.root)
        except FileNotFoundError:
            pass

    # ---- rmdir ----

    def rmdir(self, loc: Loc) -> Looked:
        name = self._name(loc)
        if not name.is_directory:
            raise FopError(errno.ENOTDIR)
        calls.rmdir(loc.name, dir_fd=name.directory)
        return self._directory_gone(name)

    def rmtree(self, loc: Loc) -> Looked:
        """The directory leaves the volume with everything in it; what it holds is removed later."""
        name = self._name(loc)
        if not name.is_directory:
            raise FopError(errno.ENOTDIR)
        place = f"{LANDFILL}/{gfid_text(name.gfid)}"
        calls.rename_flags(loc.name, place, name.directory, self._brick.root, calls.RENAME_NOREPLACE)
        return self._directory_gone(name)

    def _directory_gone(self, name: _Name) -> Looked:
        self._brick.drop_directory(name.gfid)
        self._brick.remove_handle(name.gfid)
        iatt = iatt_of(name.st, name.gfid)
        iatt.nlink = 0
        return Looked(iatt, iatt_of(os.fstat(name.directory), name.loc.parent))

    # ---- rename ----

    def rename(self, source: Loc, target: Loc, flags: int) -> Looked:
        check_name(target.parent, target.name)
        if flags not in (0, calls.RENAME_NOREPLACE, calls.RENAME_EXCHANGE):
            raise FopError(errno.EINVAL, f"rename flags {flags:#x}")
        old = self._name(source)
        _check_meant(source, old.gfid)
        new_directory = self._brick.directory(target.parent)
        try:
            new: _Name | None = self._name(target)
        except FileNotFoundError:
            new = None
        if new is not None:
            _check_meant(target, new.gfid)
        elif target.gfid != old.gfid:  # which says what will be there
            _check_meant(target, NO_GFID)
        if flags & calls.RENAME_EXCHANGE:
            if new is None:
                raise FopError(errno.ENOENT)
            self._exchange(old, new)
        elif new is not None and flags & calls.RENAME_NOREPLACE:
            raise FopError(errno.EEXIST)
        elif new is None or new.gfid != old.gfid:  # two names of one file: nothing happens, POSIX says
            self._move(old, target, new_directory, new)
        st = os.stat(target.name, dir_fd=new_directory, follow_symlinks=False)
        replaced = replaced_xattrs(new.gfid, new.st.st_mode) if new is not None and not flags else {}
        return Looked(iatt_of(st, old.gfid), iatt_of(os.fstat(new_directory), target.parent), replaced)

    def _move(self, old: _Name, target: Loc, directory: int, new: _Name | None) -> None:
        _check_kinds(old, new)
        self._note_move(old, target)
        kept = -1
        loses_last = new is not None and new.is_last
        try:
            if new is not None and loses_last:
                kept = self._keep(new)
                self._drop_last_handle(new, lingers=True)
            try:
                calls.rename(old.loc.name, target.name, src_dir_fd=old.directory, dst_dir_fd=directory)
            except OSError:
                if new is not None and loses_last:
                    self._restore_handle(new)
                self._unnote_move(old, target)
                raise
        finally:
            if kept >= 0:
                self._close_later(kept)
        self._finish_move(old)
        if new is None:
            return
        if new.is_directory:
            self._brick.drop_directory(new.gfid)
            self._brick.remove_handle(new.gfid)
        elif not loses_last:
            self._forget_name(new.gfid, target)

    def _exchange(self, old: _Name, new: _Name) -> None:
        if old.gfid == new.gfid:
            return
        self._note_move(old, new.loc)
        self._note_move(new, old.loc)
        try:
            calls.rename_flags(old.loc.name, new.loc.name, old.directory, new.directory, calls.RENAME_EXCHANGE)
        except OSError:
            self._unnote_move(old, new.loc)
            self._unnote_move(new, old.loc)
            raise
        self._finish_move(old)
        self._finish_move(new)

    def _note_move(self, name: _Name, target: Loc) -> None:
        """Before it moves: where it is going to be."""
        if name.is_directory:
            self._brick.point_handle(name.gfid, directory_handle(target.parent, target.name))
        else:
            self._brick.note_name(self._brick.node(name.gfid), target.parent, target.name)

    def _finish_move(self, name: _Name) -> None:
        """It has moved: what is noted about the old place goes."""
        if name.is_directory:
            self._brick.finish_handle(name.gfid)
        else:
            self._forget_name(name.gfid, name.loc)

    def _unnote_move(self, name: _Name, target: Loc) -> None:
        if name.is_directory:
            calls.unlink(f"{UNFINISHED}/{gfid_text(name.gfid)}", dir_fd=self._brick.root)
        else:
            self._forget_name(name.gfid, target)


def _check_meant(loc: Loc, gfid: bytes) -> None:
    """Who names a file as well means no other."""
    if loc.gfid not in (NO_GFID, gfid):
        raise FopError(errno.ESTALE, f"{loc} is something else by now")


def _check_kinds(old: _Name, new: _Name | None) -> None:
    """Before any handle is touched: what the kernel would refuse."""
    if new is None:
        return
    if new.is_directory and not old.is_directory:
        raise FopError(errno.EISDIR)
    if old.is_directory and not new.is_directory:
        raise FopError(errno.ENOTDIR)
