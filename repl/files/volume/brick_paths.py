# SPDX-License-Identifier: Apache-2.0
"""From a gfid to a path, on a brick of this host: by its handle and the names it carries.

Output: a path inside the volume, ``<gfid:...>`` if it has none (any more).  Raises nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from repl.files.translators.posix.names import handle_path
from repl.files.values import ROOT_GFID, gfid_from_text, gfid_text
from repl.limits import FILES_DEPTH_MAX

_NAME_KEY = "trusted.gfid2path."


def path_on_brick(brick: Path, gfid: bytes) -> str:
    names: list[str] = []
    at = gfid
    try:
        while at != ROOT_GFID and len(names) < FILES_DEPTH_MAX:
            at, name = _parent(brick / handle_path(at))
            names.append(name)
    except (OSError, ValueError):
        return f"<gfid:{gfid_text(gfid)}>"
    return "/" + "/".join(reversed(names))


def _parent(handle: Path) -> tuple[bytes, str]:
    """A directory's handle is a symbolic link that ends in parent/name; a file carries its names."""
    if handle.is_symlink():
        parts = os.readlink(handle).split("/")
        if len(parts) > 1 and len(parts[-2]) == 36:
            return gfid_from_text(parts[-2]), parts[-1]
    for key in os.listxattr(handle, follow_symlinks=False):
        if key.startswith(_NAME_KEY):
            text = os.fsdecode(os.getxattr(handle, key, follow_symlinks=False))
            parent, _, name = text.partition("/")
            return gfid_from_text(parent), name
    raise ValueError("no name")
