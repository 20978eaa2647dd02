# SPDX-License-Identifier: Apache-2.0
"""The schedule of a soak: which fault, how long, after which pause, drawn from a seed.

Input: a seed, the faults and the bounds of the pauses; output: an endless row of ``Step``.  The same
inputs give the same steps; what the kernel and the clock make of them differs from run to run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LINK, NODE, OPERATOR, CLIENT = "link", "node", "operator", "client"
FAMILIES = (LINK, NODE, OPERATOR, CLIENT)


@dataclass(frozen=True, slots=True)
class Fault:
    """``seconds``: the shortest and longest time it lasts.  Longer than ``timeout`` and shorter both happen."""

    name: str
    family: str
    seconds: tuple[float, float]


FAULTS = (
    Fault("cut", LINK, (0.2, 6)),
    Fault("drop", LINK, (0.2, 6)),
    Fault("drop-one-way", LINK, (0.2, 6)),
    Fault("hold", LINK, (0.2, 4)),
    Fault("hold-one-way", LINK, (0.2, 4)),
    Fault("split", LINK, (0.5, 4)),
    Fault("reset", LINK, (0, 0)),
    Fault("reset-mid-packet", LINK, (0.2, 2)),
    Fault("kill-secondary", NODE, (0.1, 5)),
    Fault("kill-primary-and-promote", NODE, (0.1, 5)),
    Fault("kill-primary-and-return", NODE, (0.1, 5)),
    Fault("kill-both", NODE, (0.1, 2)),
    Fault("freeze-secondary", NODE, (0.5, 8)),
    Fault("freeze-primary", NODE, (0.5, 8)),
    Fault("restart-secondary", NODE, (0.1, 3)),
    Fault("switch-roles", OPERATOR, (0, 0)),
    Fault("disconnect", OPERATOR, (0.2, 4)),
    Fault("detach-secondary", OPERATOR, (0.2, 4)),
    Fault("detach-primary", OPERATOR, (0.2, 4)),
    Fault("invalidate-secondary", OPERATOR, (0, 0)),
    Fault("pause-sync", OPERATOR, (0.5, 4)),
    Fault("verify", OPERATOR, (0, 0)),
    Fault("suspend-io", OPERATOR, (0.2, 3)),
    Fault("many-orders", OPERATOR, (0.5, 4)),
    Fault("vanish", CLIENT, (0.5, 3)),
    Fault("flush-storm", CLIENT, (0.5, 3)),
)


@dataclass(frozen=True, slots=True)
class Step:
    """``pick``: what a fault that has a choice (which direction, how many bytes) chooses by, 0 to 1."""

    number: int
    pause_s: float
    fault: Fault
    seconds: float
    pick: float


def of_families(families: Sequence[str]) -> list[Fault]:
    return [fault for fault in FAULTS if fault.family in families]


def steps(seed: int, faults: Sequence[Fault], pause_s: tuple[float, float]) -> Iterator[Step]:
    """All faults come before one of them comes again: in an hour each is seen."""
    chance = random.Random(seed)
    row: list[Fault] = []
    number = 0
    while True:
        if not row:
            row = list(faults)
            chance.shuffle(row)
        fault = row.pop()
        number += 1
        yield Step(number, chance.uniform(*pause_s), fault, chance.uniform(*fault.seconds), chance.random())
