# SPDX-License-Identifier: Apache-2.0
"""What a brick does often, several system calls in a row, as one call of C (csrc/files/brick.c).

Only where all is as usual: whatever is not, creation.py, removal.py, attributes.py, xattrs.py and files.py do step by
step.  Belongs to one lane: its calls come one at a time.
Errors: ``OSError``; InternalError when the compiled module is missing.
"""

from __future__ import annotations

import errno
import importlib
import os
import struct
from collections.abc import Iterable
from typing import Any

from repl.errors import InternalError
from repl.files.values import Caller, Changed, FopError, Iatt, Looked

_IATT = struct.Struct(">16sIIIIQQQIqqq")  # as in frames


def _load() -> Any:
    try:
        return importlib.import_module("repl.files._brick")
    except ImportError as error:
        raise InternalError(
            f"the compiled part of the brick cannot be loaded: {error}.",
            advice='Build it with "make build", or install the package.',
        ) from error


def pack_extra(extra: Iterable[tuple[bytes, bytes]]) -> bytes:
    """As rb_complete takes it.  A zero ends a name: one in the middle would let another name through."""
    parts: list[bytes] = []
    for key, value in extra:
        if b"\0" in key:
            raise FopError(errno.EINVAL, f"{key!r} is no name of an attribute")
        parts += (key, b"\0", len(value).to_bytes(4, "little"), value)
    return b"".join(parts)


class Native:
    """Memory for the answers is taken once."""

    def __init__(self) -> None:
        module = _load()
        self._lib, self._null = module.lib, module.ffi.NULL
        self._from_buffer = module.ffi.from_buffer
        self._otherwise: int = module.lib.RB_OTHERWISE
        self._iatts = module.ffi.new("uint8_t[]", 2 * _IATT.size)
        self._view = memoryview(module.ffi.buffer(self._iatts))
        self._inode = module.ffi.new("uint64_t *")
        self._counter = module.ffi.new("uint8_t[]", module.lib.RB_COUNTER_MAX)
        self._counters = memoryview(module.ffi.buffer(self._counter))

    def _both(self) -> tuple[Iatt, Iatt]:
        view = self._view
        return Iatt(*_IATT.unpack_from(view, 0)), Iatt(*_IATT.unpack_from(view, _IATT.size))

    def complete(
        self, root: int, parent: int, fd: int, name: bytes, gfid: bytes, above: bytes | None, mode: int,
        caller: Caller, extra: bytes,
    ) -> Looked:  # fmt: skip
        """A file without a name becomes a new one; ``above``: gfid of the directory, to be noted."""
        done = self._lib.rb_complete(root, parent, fd, name, gfid, self._null if above is None else above, mode,
                                     caller.uid, caller.gid, extra, len(extra), self._iatts)  # fmt: skip
        if done < 0:
            raise OSError(-done, os.strerror(-done))
        return Looked(*self._both())

    def look(self, parent: int, name: bytes, above: bytes) -> tuple[Iatt, Iatt, int] | None:
        """Attributes of what is behind a name and of the directory, number of the inode; None: it is not so simple."""
        if self._lib.rb_look(parent, name, above, self._iatts, self._inode):
            return None
        iatt, directory = self._both()
        return iatt, directory, self._inode[0]

    def remove(self, root: int, parent: int, name: bytes, gfid: bytes, above: bytes) -> Iatt:
        """A file's handle and its last name; answers the directory."""
        done = self._lib.rb_remove(root, parent, name, gfid, above, self._iatts)
        if done < 0:
            raise OSError(-done, os.strerror(-done))
        return Iatt(*_IATT.unpack_from(self._view, 0))

    def write(self, fd: int, gfid: bytes, data: bytes | bytearray | memoryview, offset: int, how: int) -> Changed:
        """``how``: flags of pwritev2(2)."""
        there = data if type(data) is bytes else self._from_buffer("uint8_t[]", data)
        done = self._lib.rb_write(fd, gfid, there, len(data), offset, how, self._iatts)
        if done < 0:
            raise OSError(-done, os.strerror(-done))
        return Changed(*self._both())

    def add(self, path: bytes, key: bytes, delta: bytes) -> bytes | None:
        """A counter after it; None: it is not so simple."""
        size: int = self._lib.rb_add(path, key, delta, len(delta), self._counter)
        if size == self._otherwise:
            return None
        if size < 0:
            raise OSError(-size, os.strerror(-size))
        return bytes(self._counters[:size])
