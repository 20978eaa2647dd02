# SPDX-License-Identifier: Apache-2.0
"""The performance goals that this benchmark can judge, as ratios between contenders of one run.

Input: a lookup (section, contender, cell label, metric) → median or None. Output: rows with the measured
value and a verdict: "ok", "short", "info" for a ratio without a goal, or "-" when a side was not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Lookup = Callable[[str, str, str, str], float | None]

RANDWRITE_QD1 = "4 KiB randwrite QD1"
RANDREAD_QD1 = "4 KiB randread QD1"
RANDWRITE_QD32 = "4 KiB randwrite QD32"
RANDREAD_QD32 = "4 KiB randread QD32"
SEQWRITE = "1 MiB seqwrite QD8"
SEQREAD = "1 MiB seqread QD8"
PACED_PER_S = 2000
BURST_REQUESTS = 2000
PACED = f"4 KiB randwrite QD32 at {PACED_PER_S}/s"
BURST = f"4 KiB randwrite QD32 burst of {BURST_REQUESTS}"
FULL_SYNC = "full sync"


@dataclass(frozen=True, slots=True)
class Goal:
    """A metric of ours, divided by another contender's unless `other` is empty; no limit: no verdict."""

    section: str
    question: str
    cell: str
    metric: str
    ours: str
    other: str
    limit: float | None
    at_most: bool = False
    unit: str = "x"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal with what was measured."""

    question: str
    goal: str
    measured: float | None
    verdict: str
    unit: str


def _plain(question: str, cell: str, metric: str, other: str, limit: float, at_most: bool = False) -> Goal:
    return Goal("plain", question, cell, metric, "ours", other, limit, at_most)


def _replicated(question: str, cell: str, metric: str, other: str, limit: float | None, unit: str = "x") -> Goal:
    return Goal("replicated", question, cell, metric, "ours-C", other, limit, unit.startswith("us"), unit)


def _checked(question: str, cell: str, metric: str, limit: float, unit: str) -> Goal:
    return Goal("replicated", question, cell, metric, "ours-C-crc32c", "", limit, unit.startswith("us"), unit)


def _distant(question: str, cell: str, metric: str, other: str, limit: float | None) -> Goal:
    at_most = metric.startswith("latency")
    return Goal("distant", f"A over 50 ms, {question}", cell, metric, "ours-A-50ms", other, limit, at_most)


GOALS: tuple[Goal, ...] = (
    _plain("plain 4 KiB randwrite QD32, IOPS / nbdkit", RANDWRITE_QD32, "iops", "nbdkit", 1.8),
    _plain("plain 4 KiB randread QD32, IOPS / nbdkit", RANDREAD_QD32, "iops", "nbdkit", 1.8),
    _plain(
        "plain 4 KiB randwrite QD32, CPU / nbdkit",
        RANDWRITE_QD32,
        "server_cpu_us_per_op",
        "nbdkit",
        0.5,
        True,
    ),
    _plain("plain 4 KiB randread QD32, CPU / nbdkit", RANDREAD_QD32, "server_cpu_us_per_op", "nbdkit", 0.5, True),
    _plain("plain 4 KiB randwrite QD32, IOPS / qemu-nbd", RANDWRITE_QD32, "iops", "qemu-nbd", 4.0),
    _plain("plain 4 KiB randread QD32, IOPS / qemu-nbd", RANDREAD_QD32, "iops", "qemu-nbd", 4.0),
    _plain("plain randwrite QD1, p50 latency / nbdkit", RANDWRITE_QD1, "latency_p50_us", "nbdkit", 1.0, True),
    _plain("plain randread QD1, p50 latency / nbdkit", RANDREAD_QD1, "latency_p50_us", "nbdkit", 1.0, True),
    _plain("plain 1 MiB seqwrite, MB/s / nbdkit", SEQWRITE, "mb_per_s", "nbdkit", 1.0),
    _plain("plain 1 MiB seqread, MB/s / nbdkit", SEQREAD, "mb_per_s", "nbdkit", 1.0),
    _replicated("protocol C 4 KiB randwrite QD32, IOPS", RANDWRITE_QD32, "iops", "", 100_000, "/s"),
    _replicated("protocol C QD32, CPU of both nodes", RANDWRITE_QD32, "server_cpu_us_per_op", "", 10, "us/op"),
    _replicated("protocol C QD32, IOPS / qemu-mirror", RANDWRITE_QD32, "iops", "qemu-mirror", 15),
    _replicated("protocol C QD32, IOPS / qemu-mirror-nbdkit", RANDWRITE_QD32, "iops", "qemu-mirror-nbdkit", None),
    _replicated("protocol C QD1, IOPS / qemu-mirror", RANDWRITE_QD1, "iops", "qemu-mirror", 2),
    _replicated("protocol C 1 MiB seqwrite", SEQWRITE, "mb_per_s", "", 1000, "MB/s"),
    _checked("C with crc32c integrity, 4 KiB randwrite QD32, IOPS", RANDWRITE_QD32, "iops", 100_000, "/s"),
    _checked("C with crc32c integrity, QD32, CPU of both nodes", RANDWRITE_QD32, "server_cpu_us_per_op", 10, "us/op"),
    _checked("C with crc32c integrity, 1 MiB seqwrite", SEQWRITE, "mb_per_s", 1000, "MB/s"),
    _replicated("replicated / plain, randwrite QD1 (DRBD C: 0.52)", RANDWRITE_QD1, "iops", "ours", 0.6),
    _replicated("replicated / plain, randwrite QD32 (DRBD C: 0.60)", RANDWRITE_QD32, "iops", "ours", 0.6),
    _replicated("replicated / plain, 1 MiB seqwrite (DRBD C: 0.31)", SEQWRITE, "mb_per_s", "ours", 0.5),
    _distant(f"{PACED_PER_S} writes/s, p50 latency / plain", PACED, "latency_p50_us", "ours", 1.1),
    _distant(f"{PACED_PER_S} writes/s, p99 latency / plain", PACED, "latency_p99_us", "ours", 1.1),
    _distant(f"burst of {BURST_REQUESTS} writes, IOPS / plain", BURST, "iops", "ours", 0.9),
    _distant(f"{PACED_PER_S} writes/s, p50 latency / A at 0 ms", PACED, "latency_p50_us", "ours-A", None),
    _distant(f"burst of {BURST_REQUESTS} writes, IOPS / A at 0 ms", BURST, "iops", "ours-A", None),
    Goal(
        "verify",
        "online verify with crc32c, controller open",
        FULL_SYNC,
        "mb_per_s",
        "ours-crc32c",
        "",
        1500,
        unit="MB/s",
    ),  # fmt: skip
    Goal("resync", "full resync, controller open", FULL_SYNC, "mb_per_s", "ours-C", "", 1000, unit="MB/s"),
)


def judge(lookup: Lookup) -> list[Verdict]:
    """All goals against the medians of this run."""
    verdicts = []
    for goal in GOALS:
        measured = lookup(goal.section, goal.ours, goal.cell, goal.metric)
        if goal.other and measured is not None:
            other = lookup(goal.section, goal.other, goal.cell, goal.metric)
            measured = measured / other if other else None
        if measured is None:
            word = "-"
        elif goal.limit is None:
            word = "info"
        elif measured <= goal.limit if goal.at_most else measured >= goal.limit:
            word = "ok"
        else:
            word = "short"
        sign = "<=" if goal.at_most else ">="
        text = "" if goal.limit is None else f"{sign} {goal.limit:g} {goal.unit}"
        verdicts.append(Verdict(goal.question, text, measured, word, goal.unit))
    return verdicts
