# SPDX-License-Identifier: Apache-2.0
"""Whether an inode that only some copies have was removed, or has not come to the others yet."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from repl.files.translators.replicate.base import bits
from repl.files.translators.replicate.changelog import DIRTY, Kind, unpack
from repl.files.values import ROOT_GFID, Loc, Xattrs

if TYPE_CHECKING:
    from repl.files.translators.replicate.transactions import Transactions

log = logging.getLogger(__name__)
PATHS = b"glusterfs.gfidtopath"


async def is_left_over(afr: Transactions, gfid: bytes, missing: int, said: Mapping[int, Xattrs]) -> bool:
    """``said``: the counters of those that have it.  They accuse those that lack it (``missing``), or a change was
    under way, or it is left over from something removed."""
    for xattrs in said.values():
        counts = [unpack(xattrs.get(afr.keys[i])) for i in bits(missing)]
        if all(any(c) for c in counts) or any(unpack(xattrs.get(DIRTY))):
            return False
    for i in said:
        if await _are_behind(afr, i, missing, gfid):
            return False
    return True


async def _are_behind(afr: Transactions, index: int, missing: int, gfid: bytes) -> bool:
    """Children that lack it have not got so far yet: this one accuses all of them of a directory on the way to it
    (a brick that took its place empty is accused at the root only)."""
    child, caller, keys = afr.subvolumes[index], afr.owner(), [afr.keys[i] for i in bits(missing)]
    at = ROOT_GFID
    try:
        path = (await child.getxattr(caller, Loc(gfid=gfid), PATHS))[PATHS].split(b"\n")[0]
        for name in path.split(b"/")[1:]:
            looked = await child.lookup(caller, Loc(gfid=at), want=afr.want_keys)
            keys = [key for key in keys if not unpack(looked.xattrs.get(key))[Kind.ENTRY]]
            if not keys:
                return True
            at = (await child.lookup(caller, Loc(parent=at, name=name))).iatt.gfid
    except (OSError, KeyError):
        log.debug("%s: no way to %s", afr.name, gfid.hex())
    return False
