# SPDX-License-Identifier: Apache-2.0
"""The class that a volfile's cluster/replicate becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from repl.files.options import Options
from repl.files.translator import Context, Translator
from repl.files.translators.replicate.base import bits
from repl.files.translators.replicate.heal import BackgroundHeals, Healer
from repl.files.translators.replicate.healing import How
from repl.files.translators.replicate.split_xattrs import SplitXattrs
from repl.files.values import Loc


class Replicate(SplitXattrs):
    TYPE = "cluster/replicate"
    ALIASES = ("cluster/afr",)

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self.healer = Healer(self)
        self.heals = BackgroundHeals(self.healer)
        self.aside_name = self.healer.aside.name
        self.child_up_listeners: list[Callable[[int], None]] = []

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
