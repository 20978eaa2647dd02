# SPDX-License-Identifier: Apache-2.0
"""What a soak watches while it runs: memory, descriptors and journals of the daemons.

A process that only grows would pass every other check for days.  Samples are of one process each: one that was
started anew begins anew, so the slope of memory needs a long soak without faults of nodes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

WARM_UP_S = 600.0
SLOPE_OVER_S = 1800.0  # of a process that lived shorter than this after its warm-up the slope says nothing
RSS_SLOPE_MAX = 1 << 20  # bytes an hour
RSS_GROWTH_MAX = 24 << 20  # of any process, after its first audit
DESCRIPTORS_MORE_MAX = 2
LOG_BYTES_A_FAULT_MAX = 64 << 10
LOG_BYTES_A_MINUTE_MAX = 64 << 10


@dataclass
class Life:
    """One process."""

    name: str
    began_s: float
    rss: list[tuple[float, int]] = field(default_factory=list)  # seconds, bytes; at audits
    descriptors: list[int] = field(default_factory=list)
    descriptors_more_max: int = DESCRIPTORS_MORE_MAX

    def problems(self) -> list[str]:
        found = []
        if self.descriptors and max(self.descriptors) > self.descriptors[0] + self.descriptors_more_max:
            found.append(f"{self.name}: open descriptors grow: {self.descriptors}")
        if self.rss and max(b for _, b in self.rss) > self.rss[0][1] + RSS_GROWTH_MAX:
            found.append(f"{self.name}: memory grew: {[b >> 20 for _, b in self.rss]} MiB")
        slope = self.slope()
        if slope is not None and slope > RSS_SLOPE_MAX:
            found.append(f"{self.name}: memory grows by {slope / (1 << 20):.2f} MiB an hour")
        return found

    def slope(self) -> float | None:
        """Bytes an hour, by least squares; None: it has not lived long enough."""
        points = [(t, b) for t, b in self.rss if t >= self.began_s + WARM_UP_S]
        if len(points) < 3 or points[-1][0] - points[0][0] < SLOPE_OVER_S:
            return None
        mean_t = sum(t for t, _ in points) / len(points)
        mean_b = sum(b for _, b in points) / len(points)
        above = sum((t - mean_t) * (b - mean_b) for t, b in points)
        return 3600 * above / sum((t - mean_t) ** 2 for t, _ in points)


class Watch:
    """``sample`` at every audit, when the processes are idle.  ``pids`` has them by name, ``log_bytes`` is how much
    all of them have written."""

    def __init__(
        self, pids: Callable[[], dict[str, int]], log_bytes: Callable[[], int],
        descriptors_more_max: int = DESCRIPTORS_MORE_MAX,
    ) -> None:  # fmt: skip
        self.lives: dict[int, Life] = {}
        self.log_bytes = log_bytes
        self._pids = pids
        self._descriptors_more_max = descriptors_more_max

    def sample(self, now_s: float) -> None:
        for name, pid in self._pids().items():
            new = Life(f"{name} (pid {pid})", now_s, descriptors_more_max=self._descriptors_more_max)
            life = self.lives.setdefault(pid, new)
            life.rss.append((now_s, rss_bytes(pid)))
            life.descriptors.append(len(os.listdir(f"/proc/{pid}/fd")))

    def problems(self, minutes: float, faults: int) -> list[str]:
        found = [problem for life in self.lives.values() for problem in life.problems()]
        allowed = LOG_BYTES_A_FAULT_MAX * (faults + 1) + LOG_BYTES_A_MINUTE_MAX * minutes
        if self.log_bytes() > allowed:
            found.append(f"the journals have {self.log_bytes()} bytes after {faults} faults, {allowed:.0f} are plenty")
        return found

    def rss_max_bytes(self) -> int:
        return max((b for life in self.lives.values() for _, b in life.rss), default=0)


def rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no VmRSS")
