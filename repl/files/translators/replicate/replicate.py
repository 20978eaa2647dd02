# SPDX-License-Identifier: Apache-2.0
"""The class that a volfile's cluster/replicate becomes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from repl.files.events import ChildDown
from repl.files.options import Options
from repl.files.translator import Context, Translator
from repl.files.translators.replicate.base import bits, is_remote, mask_of
from repl.files.translators.replicate.heal import BackgroundHeals, Healer
from repl.files.translators.replicate.healing import How
from repl.files.translators.replicate.identities import Identities
from repl.files.translators.replicate.split_xattrs import SplitXattrs
from repl.files.values import Loc

log = logging.getLogger(__name__)


class Replicate(SplitXattrs):
    TYPE = "cluster/replicate"
    ALIASES = ("cluster/afr",)

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self.healer = Healer(self)
        self.heals = BackgroundHeals(self.healer)
        self.aside_name = self.healer.aside.name
        self.child_up_listeners: list[Callable[[int], None]] = []
        here = [i for i, child in enumerate(self.subvolumes) if not is_remote(child)]
        is_among_peers = 0 < len(here) < self.count and not options["afr-pending-xattr"]
        self._identities = Identities(self, here) if is_among_peers else None
        self._answering = mask_of(here)  # children that could be up as far as they say themselves
        self._links = [0] * self.count

    async def start(self) -> None:
        if self._identities is not None:
            self.up = 0
            await self._identities.begin()
            if self._identities.is_complete:
                self.up = self._answering
            else:
                log.info("volume '%s': waiting for all bricks to be seen once", self.name)
        await super().start()

    def _child_up(self, index: int) -> None:
        self._links[index] += 1
        if self._identities is None:
            super()._child_up(index)
        else:
            work = self._meet(self._identities, index, self._links[index])
            self.context.spawn(work, f"{self.name}: which brick {self.names[index]} is")

    async def _meet(self, identities: Identities, index: int, link: int) -> None:
        try:
            await identities.meet(index)
        except OSError as error:
            log.warning("volume '%s': '%s' does not say which brick it is: %s", self.name, self.names[index], error)
            return
        if self._links[index] != link:  # it has gone meanwhile
            return
        self._answering |= 1 << index
        if identities.is_complete:
            for i in bits(self._answering & ~self.up | 1 << index):
                super()._child_up(i)

    def _child_down(self, index: int, event: ChildDown) -> None:
        self._links[index] += 1
        self._answering &= ~(1 << index)
        super()._child_down(index, event)

    def child_came_up(self, index: int) -> None:
        self.heals.forget_failures()
        self.context.spawn(self.restore_locks(index), f"{self.name}: locks on {self.names[index]}")
        for listener in self.child_up_listeners:
            listener(index)

    def heal_soon(self, gfid: bytes) -> None:
        self.heals.soon(gfid)

    def heal_name_soon(self, loc: Loc) -> None:
        self.heals.soon(loc.parent, loc.name)

    async def heal_name_now(self, loc: Loc) -> None:
        """What the heal could not do is left for later."""
        await self.healer.heal_name(loc.parent, loc.name, How(policy=self.options["favorite-child-policy"]))

    def state(self) -> dict[str, object]:
        up = {f"child_up[{i}]": int(bool(self.up >> i & 1)) for i in range(self.count)}
        keys = {f"pending_key[{i}]": key.decode() for i, key in enumerate(self.keys)}
        reads = {f"pending_reads[{i}]": load.pending for i, load in enumerate(self.loads)}
        return {**up, **keys, **reads, "up": [self.names[i] for i in bits(self.up)], "quorum": str(self.quorum),
                "transactions": len(self.tenures), "generation": self.generation, "healers": self.heals.length,
                "heals_dropped": self.heals.dropped, "healed_bytes": self.heals.pace.copied_bytes}  # fmt: skip
