# SPDX-License-Identifier: Apache-2.0
"""The class that a volfile's cluster/replicate becomes."""

from __future__ import annotations

from repl.files.translators.replicate.base import bits
from repl.files.translators.replicate.locking import Locking


class Replicate(Locking):
    TYPE = "cluster/replicate"
    ALIASES = ("cluster/afr",)

    def child_came_up(self, index: int) -> None:
        self.context.spawn(self.restore_locks(index), f"{self.name}: locks on {self.names[index]}")

    def state(self) -> dict[str, object]:
        up = {f"child_up[{i}]": int(bool(self.up >> i & 1)) for i in range(self.count)}
        keys = {f"pending_key[{i}]": key.decode() for i, key in enumerate(self.keys)}
        reads = {f"pending_reads[{i}]": load.pending for i, load in enumerate(self.loads)}
        return {**up, **keys, **reads, "up": [self.names[i] for i in bits(self.up)], "quorum": str(self.quorum),
                "transactions": len(self.tenures), "generation": self.generation}  # fmt: skip
