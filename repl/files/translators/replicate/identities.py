# SPDX-License-Identifier: Apache-2.0
"""Which brick is which, where the copies replicate among themselves and each calls the others by another name.

In server-side replication every node's graph has its own brick as a child and the other nodes' bricks behind
protocol/client.  The names of the children, and their order, are different on each node: counters with those names
would mean another brick to everybody, and locks taken in that order would wait for each other.  So each brick gets a
name of its own for good (``trusted.repl.brick-id`` of its root), which all use (decision 0126).
Inputs: children as they come up.  Outputs: the keys and the order of locks, once all have been seen; the local brick
notes who they were, so that a node goes on alone after a restart.
Errors: ``OSError`` of a child.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from repl.files.values import ROOT, gfid_text

if TYPE_CHECKING:
    from repl.files.translators.replicate.base import Base

log = logging.getLogger(__name__)

ID_KEY = b"trusted.repl.brick-id"
PEER_KEY = b"trusted.repl.peer."  # and the name of the child
_CREATE = 1


class Identities:
    """``locals``: children in this process."""

    def __init__(self, afr: Base, locals: list[int]) -> None:
        self._afr = afr
        self._locals = locals
        self._ids: dict[int, bytes] = {}

    @property
    def is_complete(self) -> bool:
        return len(set(self._ids.values())) == self._afr.count

    async def begin(self) -> None:
        """What is known before any other node answers."""
        afr = self._afr
        for index in range(afr.count):
            if index in self._locals:
                self._ids[index] = await self._of(index)
            elif known := await self._noted(index):
                self._ids[index] = known
        self._use()

    async def meet(self, index: int) -> None:
        """A child answers."""
        found, afr = await self._of(index), self._afr
        before = self._ids.get(index)
        if found == before:
            return
        if found in self._ids.values():
            log.error("volume '%s': '%s' is a brick that is another child already", afr.name, afr.names[index])
            return
        if before is not None:
            log.warning("volume '%s': another brick has taken the place of '%s'", afr.name, afr.names[index])
        for here in self._locals:
            await afr.subvolumes[here].setxattr(afr.owner(), ROOT, {self._note(index): found})
        self._ids[index] = found
        self._use()

    def _use(self) -> None:
        if self.is_complete:
            self._afr.call_children([gfid_text(self._ids[i]) for i in range(self._afr.count)])

    def _note(self, index: int) -> bytes:
        return PEER_KEY + self._afr.names[index].encode()

    async def _noted(self, index: int) -> bytes | None:
        return await self._get(self._locals[0], self._note(index))

    async def _of(self, index: int) -> bytes:
        """Whoever comes first gives the brick its name."""
        found = await self._get(index, ID_KEY)
        if found is None:
            afr = self._afr
            try:
                new = {ID_KEY: afr.context.new_gfid()}
                await afr.subvolumes[index].setxattr(afr.owner(), ROOT, new, flags=_CREATE)
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise
            found = await self._get(index, ID_KEY)
        assert found is not None
        return found

    async def _get(self, index: int, key: bytes) -> bytes | None:
        afr = self._afr
        try:
            return bytes((await afr.subvolumes[index].getxattr(afr.owner(), ROOT, key))[key])
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return None
