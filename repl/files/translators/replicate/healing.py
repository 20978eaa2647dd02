# SPDX-License-Identifier: Apache-2.0
"""What a heal is asked (``How``), what it answers (``Outcome``), and how fast it may be (``Pace``)."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field

from repl.files.translators.replicate.changelog import KINDS, Kind
from repl.files.values import gfid_text


class Status(enum.Enum):
    """How the heal of one inode ended."""

    HEALED = "healed"
    CLEAN = "nothing to heal"
    BUSY = "another one heals it"
    IN_USE = "it is being written"
    AWAY = "copies that are needed are away"
    PARENT = "a copy lacks it: its directory comes first"
    LATER = "something else has to be healed first"
    SPLIT = "split-brain"
    GONE = "it does not exist any more"
    FAILED = "failed"


class Pace:
    """Bytes that heals copy: counted, and no more than ``rate_bytes_s`` a second (0: no limit).

    A budget of one second is what may be copied at once; who is beyond it waits.
    """

    def __init__(self, rate_bytes_s: int = 0) -> None:
        self.rate_bytes_s = rate_bytes_s
        self.copied_bytes = 0
        self.compared_bytes = 0
        self._free_at_s = 0.0

    def copied(self, count: int) -> None:
        self.copied_bytes += count
        if self.rate_bytes_s:
            now = asyncio.get_running_loop().time()
            self._free_at_s = max(self._free_at_s, now - 1.0) + count / self.rate_bytes_s

    async def wait(self) -> None:
        """Called where no lock is held."""
        if self.rate_bytes_s:
            now = asyncio.get_running_loop().time()
            if self._free_at_s > now:
                await asyncio.sleep(self._free_at_s - now)


@dataclass(frozen=True, slots=True)
class How:
    """``waits``: for clients that have an inode locked, although nobody is accused; ``is_full``: compare although
    nothing is pending; ``winner``: the child that an administrator named for a split-brain of ``kinds``; ``policy``:
    who wins one without asking; ``only_name``: of the directory only this name."""

    kinds: frozenset[Kind] = frozenset(KINDS)
    waits: bool = True
    is_full: bool = False
    winner: int = -1
    policy: str = "none"
    pace: Pace = field(default_factory=Pace)
    only_name: bytes = b""


@dataclass(frozen=True, slots=True)
class Split:
    """What nobody can decide: ``word`` is data, metadata, gfid or type; ``name``: of which entry of the directory."""

    word: str
    name: bytes = b""


@dataclass(slots=True)
class Outcome:
    """``more``: inodes that came into being on a copy and have to be healed next."""

    gfid: bytes
    status: Status
    reason: str = ""
    splits: list[Split] = field(default_factory=list)
    more: list[bytes] = field(default_factory=list)
    is_directory: bool = False

    def __str__(self) -> str:
        what = f"<gfid:{gfid_text(self.gfid)}>: {self.status.value}"
        return f"{what}: {self.reason}" if self.reason else what
