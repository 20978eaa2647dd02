# SPDX-License-Identifier: Apache-2.0
"""stat, setattr, access, readlink, and what an answer carries beside attributes.

Errors: ``OSError``.
"""

from __future__ import annotations

import errno
import os
import stat

from repl.files.translators.posix import acl, calls
from repl.files.translators.posix.brick import Brick, Node, iatt_of
from repl.files.translators.posix.names import ANONYMOUS, DHT_LINKTO, check_name, handle_path, is_hidden
from repl.files.translators.posix.xattrs import CONTENT, wanted
from repl.files.values import Caller, Changed, FopError, Loc, Looked, SetAttr, Want, Xattrs


def lookup(brick: Brick, loc: Loc, want: Want, *, is_internal: bool = False) -> Looked:
    if not loc.name:
        node = brick.node(loc.gfid)
        return Looked(iatt_of(node.st, node.gfid), None, wanted(brick, node, want) if want else {})
    if is_hidden(loc.parent, loc.name) and not (is_internal and loc.name.startswith(ANONYMOUS)):
        raise FopError(errno.ENOENT)
    looked = _look(brick, loc, want)
    if looked is not None:
        return looked
    st, gfid = brick.find(loc)
    if not stat.S_ISDIR(st.st_mode) and st.st_nlink == 1:  # its handle was missing and is there now
        st = os.stat(handle_path(gfid), dir_fd=brick.root, follow_symlinks=False)
    xattrs = xattrs_of(brick, gfid, st, want) if want else {}
    return Looked(iatt_of(st, gfid), iatt_of(os.fstat(brick.directory(loc.parent)), loc.parent), xattrs)


def _look(brick: Brick, loc: Loc, want: Want) -> Looked | None:
    """None: it is not so simple."""
    check_name(loc.parent, loc.name)
    directory = brick.directory(loc.parent)
    found = brick.native.look(directory, loc.name, loc.parent)
    if found is None:
        return None
    iatt, above, inode = found
    gfid = iatt.gfid
    if iatt.is_directory and not brick.is_open_directory(gfid, inode):
        return None
    if not want:
        return Looked(iatt, above)
    known = brick.known.find_at(gfid, iatt.ctime_ns, inode)
    if known is not None and CONTENT not in want and known.others.isdisjoint(want):
        values = known.values
        return Looked(iatt, above, {key: values[key] for key in want if key in values})
    st = os.stat(loc.name, dir_fd=directory, follow_symlinks=False)
    return Looked(iatt, above, xattrs_of(brick, gfid, st, want))


def xattrs_of(brick: Brick, gfid: bytes, st: os.stat_result, want: Want) -> Xattrs:
    if stat.S_ISDIR(st.st_mode):
        return wanted(brick, Node(gfid, st, brick.directory(gfid), ""), want)
    return wanted(brick, Node(gfid, st, -1, f"{brick.path}/{handle_path(gfid)}"), want)


def stat_node(brick: Brick, node: Node, want: Want) -> Looked:
    return Looked(iatt_of(node.st, node.gfid), None, wanted(brick, node, want) if want else {})


def access(brick: Brick, caller: Caller, loc: Loc, mask: int) -> None:
    node = brick.at(loc)
    if not acl.access(caller, node.fd if node.fd >= 0 else node.path, node.st, mask):
        raise FopError(errno.EACCES)


def readlink(brick: Brick, loc: Loc) -> bytes:
    node = brick.at(loc)
    if node.fd >= 0:
        raise FopError(errno.EINVAL)
    return os.readlink(os.fsencode(node.path))


def check_marks(node: Node) -> None:
    """EBUSY: distribute shows clients with the sticky bit that the file is a link file, or is being moved.  A new mode
    would hide that, if only for a moment (decision 0150)."""
    if not (stat.S_ISREG(node.st.st_mode) and node.st.st_mode & stat.S_ISVTX):
        return
    try:
        node.get(DHT_LINKTO)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return  # a user's sticky bit
    raise FopError(errno.EBUSY, "it is a link file of cluster/distribute, or is being moved by it")


def setattr_node(node: Node, attributes: SetAttr) -> Changed:
    """Owner before mode, because a change of owner clears set-id bits; times last."""
    before = iatt_of(node.st, node.gfid)
    if attributes.uid is not None or attributes.gid is not None:
        uid = -1 if attributes.uid is None else attributes.uid
        gid = -1 if attributes.gid is None else attributes.gid
        if node.fd >= 0:
            calls.chown(node.fd, uid, gid)
        else:
            calls.chown(node.path, uid, gid, follow_symlinks=False)
    if attributes.mode is not None:
        if stat.S_ISLNK(node.st.st_mode):
            raise FopError(errno.EOPNOTSUPP, "symbolic links have no mode")
        calls.chmod(node.fd if node.fd >= 0 else node.path, stat.S_IMODE(attributes.mode))
    if attributes.atime_ns is not None or attributes.mtime_ns is not None:
        times = (
            node.st.st_atime_ns if attributes.atime_ns is None else attributes.atime_ns,
            node.st.st_mtime_ns if attributes.mtime_ns is None else attributes.mtime_ns,
        )
        if node.fd >= 0:
            calls.utime(node.fd, ns=times)
        else:
            calls.utime(node.path, ns=times, follow_symlinks=False)
    st = os.fstat(node.fd) if node.fd >= 0 else os.stat(node.path, follow_symlinks=False)
    return Changed(before, iatt_of(st, node.gfid))
