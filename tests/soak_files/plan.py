# SPDX-License-Identifier: Apache-2.0
"""What may happen to a volume in a soak, and which volumes there are.

A ``Shape`` says how many copies there are and whether a quorum keeps them from going separate ways.  Without one no
fault may take two bricks of a set from anybody, nor show different bricks to different clients: two copies would be
changed without each other, and that is what ``volume heal info split-brain`` is for.  So faults that need a quorum
are left out of its schedule.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.soak.plan import Fault

BRICK, LINK, MOUNT, HEAL, VOLUME, DISK = "brick", "link", "mount", "heal", "volume", "disk"
FAMILIES = (BRICK, LINK, MOUNT, HEAL, VOLUME, DISK)


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    replica: int
    has_arbiter: bool = False
    quorum: str = ""  # cluster.quorum-type

    @property
    def has_quorum(self) -> bool:
        return self.replica > 2 or bool(self.quorum)


SHAPES = {
    shape.name: shape
    for shape in (Shape("pairs", 2), Shape("pairs-quorum", 2, quorum="auto"), Shape("triples", 3),
                  Shape("arbiter", 3, has_arbiter=True))
}  # fmt: skip

FAULTS = (
    Fault("kill-brick", BRICK, (0.1, 5)),
    Fault("freeze-brick", BRICK, (0.3, 9)),
    Fault("restart-brick", BRICK, (0.1, 2)),
    Fault("cut-brick", LINK, (0.2, 9)),
    Fault("cut-brick-one-way", LINK, (0.2, 9)),
    Fault("hold-brick", LINK, (0.2, 8)),
    Fault("reset", LINK, (0, 0)),
    Fault("reset-mid-packet", LINK, (0.3, 2)),
    Fault("split", LINK, (0.5, 3)),
    Fault("cut-one-mount-from-a-brick", LINK, (0.2, 8)),
    Fault("kill-mount", MOUNT, (0.1, 2)),
    Fault("freeze-mount", MOUNT, (0.3, 8)),
    Fault("remount", MOUNT, (0, 0)),
    Fault("kill-heald", HEAL, (0.1, 3)),
    Fault("heal-full", HEAL, (0, 0)),
    Fault("kill-brick-while-healing", HEAL, (0.1, 3)),
    Fault("fix-layout", VOLUME, (0, 0)),
    Fault("rebalance", VOLUME, (0, 0)),
    Fault("kill-rebalance", VOLUME, (0.2, 2)),
    Fault("add-set", VOLUME, (0, 0)),
    Fault("remove-set", VOLUME, (0, 0)),
    Fault("options", VOLUME, (0, 0)),
    Fault("layers", VOLUME, (0, 0)),
    Fault("reload", VOLUME, (0, 0)),
    Fault("full-brick", DISK, (0.5, 3)),
    Fault("full-volume", DISK, (0.5, 2)),
)
QUORUM_FAULTS = (
    Fault("kill-set", BRICK, (0.1, 4)),
    Fault("freeze-set", BRICK, (0.3, 8)),
    Fault("kill-another-before-it-is-healed", BRICK, (0.1, 3)),
    Fault("kill-all-bricks", BRICK, (0.1, 2)),
    Fault("cut-mounts-from-different-bricks", LINK, (0.3, 8)),
    Fault("cut-one-mount-from-all", LINK, (0.3, 8)),
    Fault("rebalance-and-kill-brick", VOLUME, (0.1, 2)),
)


def shape_of(seed: int, name: str = "") -> Shape:
    return SHAPES[name] if name else random.Random(seed).choice(list(SHAPES.values()))


def faults_of(shape: Shape, families: Sequence[str]) -> list[Fault]:
    found = [*FAULTS, *(QUORUM_FAULTS if shape.has_quorum else ())]
    return [fault for fault in found if fault.family in families]
