# SPDX-License-Identifier: Apache-2.0
"""Free space of the subvolumes: whether one is too full for new files, and the sum that users are told.

Inputs: statfs of each subvolume, asked again in the background when what is known is old.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from repl.files.options import Percent
from repl.files.values import StatVfs


@dataclass(slots=True)
class Room:
    """What is known of one subvolume."""

    bytes_free: int
    bytes_all: int
    inodes_free: int
    inodes_all: int

    def is_full(self, disk: Percent | int, inodes: float) -> bool:
        """Less is free than is to be kept free."""
        kept = self.bytes_all * disk.value / 100 if isinstance(disk, Percent) else disk
        if self.bytes_all and self.bytes_free < kept:
            return True
        return bool(self.inodes_all) and self.inodes_free < self.inodes_all * inodes / 100


def room_of(found: StatVfs) -> Room:
    return Room(
        found.blocks_available * found.block_size, found.blocks * found.block_size, found.files_available, found.files
    )


def total(parts: Iterable[StatVfs]) -> StatVfs:
    """The sum, in blocks of the smallest block size."""
    every = list(parts)
    size = min(part.block_size for part in every)

    def blocks(name: str) -> int:
        return sum(int(getattr(part, name)) * part.block_size // size for part in every)

    def files(name: str) -> int:
        return sum(int(getattr(part, name)) for part in every)

    return StatVfs(
        size, blocks("blocks"), blocks("blocks_free"), blocks("blocks_available"), files("files"),
        files("files_free"), files("files_available"), min(part.name_bytes_max for part in every), every[0].flags,
    )  # fmt: skip
