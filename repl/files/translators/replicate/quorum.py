# SPDX-License-Identifier: Apache-2.0
"""How many copies are enough.  Facts: spec 5.3, seen on GlusterFS 10.3."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quorum:
    """``type`` none: one copy is enough; fixed: ``count``; auto: more than half, or half with the first child."""

    type: str
    count: int
    children: int

    def is_met(self, mask: int) -> bool:
        """``mask``: children that are up, or that have succeeded."""
        have = mask.bit_count()
        if self.type == "none":
            return have > 0
        if self.type == "fixed":
            return have >= max(1, self.count)
        return 2 * have > self.children or (2 * have == self.children and bool(mask & 1))

    @property
    def is_majority(self) -> bool:
        """Any two sets that meet it have a child in common: no split-brain can come about."""
        return self.type == "auto" or (self.type == "fixed" and 2 * self.count > self.children)

    def is_credible(self, accusers: int, absent: int) -> bool:
        """Whether an accusation by these children tells that a copy is old; ``absent``: those that cannot be asked.

        With a majority, whatever was acknowledged is on a quorum of children, and all of them accuse those that missed
        it.  An accusation that fewer make, absent ones counted in, is of a change that nobody acknowledged, or a
        left-over: the accused was healed while the accuser was away (decision 0067).
        """
        if not self.is_majority:
            return bool(accusers)
        return bool(accusers) and self.is_met(accusers | absent)

    def __str__(self) -> str:
        return f"fixed ({self.count} of {self.children})" if self.type == "fixed" else f"{self.type} ({self.children})"


def make_quorum(type_name: str, count: int, children: int) -> Quorum:
    """The default: auto with more than two children, none with two."""
    if not type_name:
        type_name = "auto" if children > 2 else "none"
    return Quorum(type_name, count, children)
