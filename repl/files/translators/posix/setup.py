# SPDX-License-Identifier: Apache-2.0
"""Start of a brick: checks, first-time layout, and the clearing of what a crash left half done.

Errors: ``ConfigError`` with what to do.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import uuid

from repl.errors import ConfigError
from repl.files.translators.posix import calls
from repl.files.translators.posix.brick import Brick
from repl.files.translators.posix.names import (
    GFID_KEY,
    HIDDEN,
    LANDFILL,
    UNFINISHED,
    UNLINKED,
    VOLUME_ID_KEY,
    handle_path,
    parse_directory_handle,
)
from repl.files.values import ROOT_GFID, gfid_from_text, gfid_text

log = logging.getLogger(__name__)

_LOCK_FILE = f"{HIDDEN}/repl.lock"


def open_brick(path: str, volume_id: str, *, keeps_names: bool) -> Brick:
    """The brick, checked and with all hidden folders."""
    if not path:
        raise ConfigError("option directory is missing.", advice="Name the brick's directory.")
    try:
        brick = Brick(path, keeps_names=keeps_names)
    except OSError as error:
        raise ConfigError(f"cannot open the brick {path}: {error.strerror}.",
                          advice="Make the directory, or mount its disk, first.") from error  # fmt: skip
    try:
        _check_volume(brick, volume_id)
        _lay_out(brick)
    except BaseException:
        brick.close()
        raise
    return brick


def _root_value(brick: Brick, key: str) -> bytes | None:
    try:
        return os.getxattr(brick.root, key)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise ConfigError(f"the file system of {brick.path} keeps no trusted.* extended attributes: {error.strerror}.",
                          advice="Use ext4 or XFS, and run as root.") from error  # fmt: skip


def _check_volume(brick: Brick, volume_id: str) -> None:
    found = _root_value(brick, VOLUME_ID_KEY)
    if not volume_id:
        return
    try:
        wanted = uuid.UUID(volume_id).bytes
    except ValueError:
        raise ConfigError(f"option volume-id is no UUID: {volume_id!r}.") from None
    if found is None:
        raise ConfigError(f"{brick.path} belongs to no volume, {volume_id} is expected.",
                          advice="Is its disk mounted?")  # fmt: skip
    if found != wanted:
        raise ConfigError(f"{brick.path} belongs to volume {uuid.UUID(bytes=found)}, not to {volume_id}.",
                          advice="Check option directory.")  # fmt: skip


def _lay_out(brick: Brick) -> None:
    gfid = _root_value(brick, GFID_KEY)
    if gfid is None:
        try:
            calls.setxattr(brick.root, GFID_KEY, ROOT_GFID, os.XATTR_CREATE)
        except OSError as error:
            raise ConfigError(f"cannot set {GFID_KEY} on {brick.path}: {error.strerror}.",
                              advice="Use ext4 or XFS, and run as root.") from error  # fmt: skip
    elif gfid != ROOT_GFID:
        raise ConfigError(f"{brick.path} is a directory inside a brick (its gfid is {gfid_text(gfid)}).",
                          advice="Name the brick's own directory.")  # fmt: skip
    folders = [HIDDEN, *(f"{HIDDEN}/{i:02x}" for i in range(256)), f"{HIDDEN}/00/00", UNFINISHED, UNLINKED, LANDFILL,
               f"{HIDDEN}/indices"]  # fmt: skip
    for folder in folders:
        try:
            calls.mkdir(folder, 0o700, dir_fd=brick.root)
        except FileExistsError:
            pass
    try:
        calls.symlink("../../..", handle_path(ROOT_GFID), dir_fd=brick.root)
    except FileExistsError:
        pass


def lock_brick(brick: Brick) -> int:
    """No other process may serve it.  The descriptor holds the lock."""
    fd = calls.open(_LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=brick.root)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"another process serves the brick {brick.path} already ({error.strerror}).",
                          advice="Stop that one first.") from error  # fmt: skip
    return fd


# ---- after a crash ----


def recover(brick: Brick) -> set[bytes]:
    """Finish or undo what was under way.  Answers the files without a name that clients may still want to reopen."""
    for entry in os.listdir(f"{brick.path}/{UNFINISHED}"):
        _finish(brick, entry)
    waiting: set[bytes] = set()
    for entry in os.listdir(f"{brick.path}/{UNLINKED}"):
        _recover_unlinked(brick, entry, waiting)
    return waiting


def _finish(brick: Brick, entry: str) -> None:
    path = f"{UNFINISHED}/{entry}"
    st = os.stat(path, dir_fd=brick.root, follow_symlinks=False)
    try:
        gfid = gfid_from_text(entry)
    except ValueError:
        log.warning("brick %s: %s is not ours; it stays", brick.path, path)
        return
    if stat.S_ISDIR(st.st_mode):
        # A mkdir that did not come to its rename: its handle leads nowhere yet.
        log.info("brick %s: a mkdir of %s was interrupted; undone", brick.path, entry)
        _drop_dangling(brick, gfid)
        calls.rmdir(path, dir_fd=brick.root)
    elif stat.S_ISLNK(st.st_mode) and st.st_nlink == 1 and not _has_gfid(brick, path):
        _finish_directory_handle(brick, gfid, path)
    else:
        # Made but perhaps not named.  A name without a handle is mended here, as the next lookup would.
        if st.st_nlink > 1 and _has_gfid(brick, path):
            try:
                brick.link_handle(brick.root, path, gfid)
            except FileExistsError:
                pass
        calls.unlink(path, dir_fd=brick.root)


def _has_gfid(brick: Brick, path: str) -> bool:
    try:
        os.getxattr(f"{brick.path}/{path}", GFID_KEY, follow_symlinks=False)
    except OSError:
        return False
    return True


def _drop_dangling(brick: Brick, gfid: bytes) -> None:
    try:
        brick.directory(gfid)
    except OSError:
        brick.remove_handle(gfid)


def _finish_directory_handle(brick: Brick, gfid: bytes, path: str) -> None:
    """A rename of a directory: it has moved, or it has not."""
    place = parse_directory_handle(os.readlink(os.fsencode(path), dir_fd=brick.root))
    has_moved = False
    if place is not None:
        try:
            fd = os.open(place[1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=brick.directory(place[0]))
        except OSError:
            pass
        else:
            try:
                has_moved = os.getxattr(fd, GFID_KEY) == gfid
            except OSError:
                pass
            os.close(fd)
    log.info("brick %s: a rename of directory %s was interrupted; %s", brick.path, gfid_text(gfid),
             "finished" if has_moved else "undone")  # fmt: skip
    if has_moved:
        brick.drop_directory(gfid)
        brick.finish_handle(gfid)
    else:
        calls.unlink(path, dir_fd=brick.root)


def _recover_unlinked(brick: Brick, entry: str, waiting: set[bytes]) -> None:
    path = f"{UNLINKED}/{entry}"
    try:
        gfid = gfid_from_text(entry)
    except ValueError:
        calls.unlink(path, dir_fd=brick.root)  # Gluster names them otherwise; nobody has them open now
        return
    st = os.stat(path, dir_fd=brick.root, follow_symlinks=False)
    if st.st_nlink > 1:  # the name is still there: the unlink did not happen
        try:
            brick.link_handle(brick.root, path, gfid)
        except FileExistsError:
            pass
        calls.unlink(path, dir_fd=brick.root)
    else:
        waiting.add(gfid)
