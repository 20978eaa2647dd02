# SPDX-License-Identifier: Apache-2.0
"""What is seen of a directory's names stays true when a copy that is away comes back (decision 0134).

A change of names that was interrupted may have been carried out on a copy that is away now.  Nobody accuses that copy,
and with another one it would have its way later: what has been looked up meanwhile, and written to, would be undone.
So before the first name is shown after a copy has gone, the copies that are here are asked whether a change may have
been interrupted (dirty), and if so they accuse all others: what the good ones here have holds from then on.
Errors: ENOTCONN, where no copy that is here is good, or too few are here to accuse the others.
"""

from __future__ import annotations

from typing import Any

from repl.files.answers import good_of
from repl.files.translators.replicate.base import bits, heard
from repl.files.translators.replicate.changelog import DIRTY, Kind, unpack
from repl.files.translators.replicate.inodes import InodeState
from repl.files.translators.replicate.transactions import Transactions
from repl.files.values import Loc


class Ruling(Transactions):
    async def rule(self, gfid: bytes) -> bool:
        """Of one directory, before what some copies have is shown.  Whether they were asked: what was known of its
        names before may be old."""
        inode, turns, generation = self.inodes.get(gfid), self.turns, self.generation
        if inode.ruled == turns:
            self.need_good_names(gfid, self.up)
            return False
        loc = Loc(gfid=gfid)
        answers = await self.ask_all(self.up, "lookup", self.owner(), [loc, self.want_keys])
        self.need_quorum(f"looking into {loc}", heard(answers))
        if found := good_of(answers):
            self.learn(inode, found, generation)
            self.need_good_names(gfid, self.up)
            if self._is_open_ended(inode, found):
                tenure = await self.hold(inode, Kind.ENTRY, is_entry=True)
                try:
                    await tenure.overrule(Kind.ENTRY)
                finally:
                    tenure.unpin()
        inode.ruled = turns
        return True

    def need_good_names(self, gfid: bytes, mask: int) -> None:
        if not self.inodes.get(gfid).readable[Kind.ENTRY] & mask:
            raise self.nobody(f"looking into {Loc(gfid=gfid)}: no good copy of the directory answers")

    def _is_open_ended(self, inode: InodeState, found: dict[int, Any]) -> bool:
        """A change was interrupted, or is under way, and not all accuse those that are away or old."""
        if not any(unpack(a.xattrs.get(DIRTY))[Kind.ENTRY] for a in found.values()):
            return False
        others = [self.keys[i] for i in bits(self.everyone & ~inode.readable[Kind.ENTRY])]
        return not all(unpack(a.xattrs.get(key))[Kind.ENTRY] for a in found.values() for key in others)
