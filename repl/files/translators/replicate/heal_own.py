# SPDX-License-Identifier: Apache-2.0
"""Directories that good copies have removed, and in which an old copy has gone on alone (decision 0152).

Only where one copy is enough for an acknowledged change: a client made names in a directory, or in one below it, that
could reach this copy only, while another client removed it on the others.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from repl.files.answers import GONE, errors_of, good_of
from repl.files.translator import Translator
from repl.files.translators.replicate.base import bits, mask_of
from repl.files.translators.replicate.changelog import Kind, accusations
from repl.files.translators.replicate.heal_aside import list_all
from repl.files.values import Caller, Loc

if TYPE_CHECKING:
    from repl.files.translators.replicate.transactions import Transactions


async def has_gone_on(afr: Transactions, caller: Caller, index: int, gfid: bytes, good: int) -> bool:
    """None of ``good`` has the directory any more, and the copy of ``index`` says that they have missed names of it, or
    of a directory below it.

    Raises ``OSError`` if that cannot be told.
    """
    left = [gfid]
    while left:
        at = left.pop()
        is_removed, is_changed = await _examine(afr, caller, index, at, good)
        if is_changed:
            return True
        if is_removed:
            left += await _below(afr.subvolumes[index], caller, at)
    return False


async def has_changed(afr: Transactions, caller: Caller, index: int, gfid: bytes, good: int) -> bool:
    """The same of this directory alone."""
    return (await _examine(afr, caller, index, gfid, good))[1]


async def _examine(afr: Transactions, caller: Caller, index: int, gfid: bytes, good: int) -> tuple[bool, bool]:
    """Whether only old copies have it (what good ones have elsewhere is healed there), and whether this one was changed
    since the others last had it."""
    loc = Loc(gfid=gfid)
    answers = await afr.ask(good | 1 << index, lambda c: c.lookup(caller, loc, want=afr.want_keys))
    for error in errors_of(answers).values():
        if error.errno not in GONE:
            raise error
    found = good_of(answers)
    if mask_of(found) != 1 << index:
        return False, False
    said = accusations(found[index].xattrs, afr.keys)
    return True, any(said[i][Kind.ENTRY] for i in bits(good))


async def _below(child: Translator, caller: Caller, gfid: bytes) -> list[bytes]:
    found = []
    for entry in await list_all(child, caller, gfid):
        kind = entry.kind or (await child.lookup(caller, Loc(parent=gfid, name=entry.name))).iatt.kind
        if stat.S_ISDIR(kind):
            found.append(entry.gfid)
    return found
