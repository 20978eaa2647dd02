# SPDX-License-Identifier: Apache-2.0
"""What a rename took the place of, as the brick says in its answer.

Only the brick knows for sure: whoever looks before the rename sees what may be something else a moment later.
Carried among the answer's attributes as gfid and mode.  The same gfid as the answer's: two names of one file, and
nothing was done.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from repl.files.values import GFID_BYTES, Looked, Xattrs

REPLACED = b"glusterfs.replaced"
_FORMAT = struct.Struct(f">{GFID_BYTES}sI")


@dataclass(frozen=True, slots=True)
class Replaced:
    gfid: bytes
    mode: int


def replaced_xattrs(gfid: bytes, mode: int) -> Xattrs:
    """For the answer of the brick."""
    return {REPLACED: _FORMAT.pack(gfid, mode)}


def replaced_of(looked: Looked) -> Replaced | None:
    """None: the name was free, or the brick does not tell."""
    value = looked.xattrs.get(REPLACED, b"")
    return Replaced(*_FORMAT.unpack(value)) if len(value) == _FORMAT.size else None
