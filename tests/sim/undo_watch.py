# SPDX-License-Identifier: Apache-2.0
"""Undos of split brains in the scenarios: whatever happens, the loser's version of its disk can be put together.

Of a disk that has had one every sector that was stable when the undo began has to come out as it was then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.world import BLOCK, SimFailure

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

SECTOR = 512


@dataclass(frozen=True)
class _Begun:
    content: bytes
    stable: bytes


class UndoWatch:
    """Those of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._c = cluster
        self._begun: dict[tuple[int, int], _Begun] = {}
        self.checks = 0
        for shell in cluster.shells:
            shell.on_undo = self._begins

    def _begins(self, index: int, number: int) -> None:
        self._begun[index, number] = _Begun(self._disk(index, number, 0), self._disk(index, number, 1))

    def forget(self, index: int) -> None:
        """Somebody else has changed its disks."""
        for key in [key for key in self._begun if key[0] == index]:
            del self._begun[key]

    def check(self, when: str) -> None:
        """Now, and as if the node lost power now."""
        for (index, number), begun in list(self._begun.items()):
            if number not in self._c.shells[index].undo_facts:
                del self._begun[index, number]  # dropped
                continue
            for layer in (0, 1):
                self._compare(index, number, begun, f"{when}, layer {layer}", self._kept(index, number, layer))

    def _compare(self, index: int, number: int, begun: _Begun, when: str, kept: bytes) -> None:
        self.checks += 1
        if kept == begun.content:
            return
        for at in range(0, len(begun.content), SECTOR):
            was = begun.content[at : at + SECTOR]
            if kept[at : at + SECTOR] != was and was == begun.stable[at : at + SECTOR]:
                raise SimFailure(
                    f"P7: the undo of node {index}'s volume {number} has not what was there when it began ({when}): "
                    f"sector {at // SECTOR}"
                )

    def _disk(self, index: int, number: int, layer: int) -> bytes:
        place = self._c.shells[index].places[number]
        size = int(self._c.shells[index].undo_facts[number]["size_bytes"])
        return place.data.content(0, size, layer=layer)  # type: ignore[attr-defined,no-any-return]

    def _kept(self, index: int, number: int, layer: int) -> bytes:
        """Put together from overlay, map and what is on the disk."""
        overlay, undo_map = self._c.shells[index].undo_disks[number]
        image = bytearray(self._disk(index, number, layer))
        bits = int.from_bytes(undo_map.content(BLOCK, undo_map.size_bytes - BLOCK, layer=layer), "little")
        saved = overlay.content(0, len(image), layer=layer)
        block = 0
        while bits:
            skip = (bits & -bits).bit_length() - 1
            bits >>= skip
            block += skip
            run = (~bits & bits + 1).bit_length() - 1
            begin, end = block * BLOCK, min((block + run) * BLOCK, len(image))
            image[begin:end] = saved[begin:end]
            bits >>= run
            block += run
        return bytes(image)
