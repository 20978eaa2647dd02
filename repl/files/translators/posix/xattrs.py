# SPDX-License-Identifier: Apache-2.0
"""Extended attributes: those of users, internal ones, counters, and virtual ones that are computed.

Internal ones (trusted.gfid*, trusted.afr.*, trusted.glusterfs.*) are told to whoever names them in ``want``, and to
internal callers; others neither see nor change them.  Virtual, by getxattr: ``trusted.glusterfs.pathinfo`` (as
Gluster: ``<POSIX(brick):host:path>``), ``glusterfs.gfidtopath`` (paths inside the volume, one a line).  Virtual, by
``want``: ``glusterfs.content`` (the whole of a small file).
Errors: ``OSError``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from repl.files.translators.posix.brick import Brick, Node
from repl.files.translators.posix.known import is_kept
from repl.files.translators.posix.names import GFID_KEY, is_internal
from repl.files.values import Caller, End, FopError, Loc, Want, XattrOp, Xattrs
from repl.limits import QUICK_READ_BYTES_MAX

PATHINFO = b"trusted.glusterfs.pathinfo"
GFID_TO_PATH = b"glusterfs.gfidtopath"
CONTENT = b"glusterfs.content"
_GFID = GFID_KEY.encode()


def wanted(brick: Brick, node: Node, want: Want) -> Xattrs:
    """Those of ``want`` that are there."""
    known = brick.known.find(node.gfid, node.st)
    if known is not None:
        values, others = known
        found = {key: values[key] for key in want if key in values}
        found |= {key: node.get(key) for key in want if key in others}
    else:
        present = [os.fsencode(key) for key in node.keys()]
        is_file = not stat.S_ISDIR(node.st.st_mode)
        found = {key: node.get(key) for key in present if key in want or is_file and is_kept(key)}
        brick.known.keep(node.gfid, node.st, found, present)
        if is_file:
            found = {key: value for key, value in found.items() if key in want}
    if CONTENT in want:
        _add_content(node, found)
    return found


def _add_content(node: Node, found: Xattrs) -> None:
    if not stat.S_ISREG(node.st.st_mode) or node.st.st_size > QUICK_READ_BYTES_MAX:
        return
    fd = node.fd if node.fd >= 0 else os.open(node.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found[CONTENT] = os.pread(fd, node.st.st_size, 0)
    finally:
        if fd != node.fd:
            os.close(fd)


def get(brick: Brick, caller: Caller, node: Node, name: bytes, host: str) -> Xattrs:
    if name == PATHINFO:
        path = next(brick.paths(node.gfid), b"")
        text = f"<POSIX({brick.path}):{host}:{brick.path}".encode() + (path if path != b"/" else b"") + b">"
        return {name: text}
    if name == GFID_TO_PATH:
        return {name: b"\n".join(brick.paths(node.gfid))}
    if is_internal(name) and not caller.is_internal:
        raise FopError(errno.ENODATA)
    return {name: node.get(name)}


def list_all(brick: Brick, caller: Caller, node: Node) -> Xattrs:
    found: Xattrs = {}
    names = [os.fsencode(text) for text in node.keys()]
    for key in names:
        if caller.is_internal or not is_internal(key):
            try:
                found[key] = node.get(key)
            except OSError as error:
                if error.errno != errno.ENODATA:
                    raise
    if caller.is_internal and len(found) == len(names):
        brick.known.keep(node.gfid, node.st, found, names)
    return found


def _check_writable(caller: Caller, key: bytes) -> None:
    if key.startswith(_GFID) or is_internal(key) and not caller.is_internal:
        raise FopError(errno.EPERM, f"{os.fsdecode(key)} is kept by the brick")


def set_all(caller: Caller, node: Node, values: Xattrs, flags: int) -> None:
    for key in values:
        _check_writable(caller, key)
    for key, value in values.items():
        node.set(key, bytes(value), flags)


def remove(caller: Caller, node: Node, name: bytes) -> None:
    _check_writable(caller, name)
    node.remove(name)


# ---- counters ----


def add(value: bytes, delta: bytes, word_bytes: int) -> bytes:
    """Sum word by word, big-endian, each modulo its size; the shorter one counts as followed by zeroes."""
    length = max(len(value), len(delta))
    value, delta = value.ljust(length, b"\0"), delta.ljust(length, b"\0")
    mask = (1 << 8 * word_bytes) - 1
    return b"".join(
        ((int.from_bytes(value[i : i + word_bytes], "big") + int.from_bytes(delta[i : i + word_bytes], "big")) & mask)
        .to_bytes(word_bytes, "big")
        for i in range(0, length, word_bytes)
    )  # fmt: skip


def operate(brick: Brick, node: Node, op: XattrOp, values: Xattrs, want: Want) -> Xattrs:
    """xattrop.  All keys or none: what was set is put back when the disk has no room for the rest."""
    word_bytes = 4 if op == XattrOp.ADD else 8
    for key, delta in values.items():
        if not delta or len(delta) % word_bytes or key.startswith(_GFID):
            raise FopError(errno.EINVAL, f"no counters: {os.fsdecode(key)}")
    present = {os.fsencode(key) for key in node.keys()}
    answer: Xattrs = {}
    done: list[tuple[bytes, bytes | None]] = []
    try:
        for key, delta in values.items():
            before = node.get(key) if key in present else None
            answer[key] = after = add(before or b"", delta, word_bytes)
            if after != (before or bytes(len(after))):
                node.set(key, after)
                done.append((key, before))
    except OSError:
        for key, before in reversed(done):
            if before is None:
                node.remove(key)
            else:
                node.set(key, before)
        raise
    missing = tuple(key for key in want if key not in answer)
    if missing:
        answer.update(wanted(brick, node, missing))
    return answer


def end_all(brick: Brick, key: bytes, ends: Sequence[End]) -> list[bytes | OSError | None]:
    """``operate`` with one counter of many inodes, each by itself."""
    found: list[bytes | OSError | None] = []
    for end in ends:
        try:
            found.append(_end(brick, key, end) if end.delta else None)
        except OSError as error:
            found.append(error)
    return found


def _end(brick: Brick, key: bytes, end: End) -> bytes:
    if not end.is_entry and not key.startswith(_GFID) and b"\0" not in key:
        path = os.fsencode(f"{brick.path}/{brick.file_path(end.gfid)}")
        after = brick.native.add(path, key, end.delta)
        if after is not None:  # it is there, and no directory's handle
            return after
    return operate(brick, brick.at(Loc(gfid=end.gfid)), XattrOp.ADD, {key: end.delta}, ())[key]
