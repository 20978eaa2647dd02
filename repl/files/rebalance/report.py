# SPDX-License-Identifier: Apache-2.0
"""The progress of rebalances as users of Gluster know it: one row a node.

Input: progress files; output: lines of text.
"""

from __future__ import annotations

from collections.abc import Mapping

from repl.files.rebalance.progress import Progress

_TITLES = ("Node", "Rebalanced-files", "size", "scanned", "failures", "skipped", "status", "run time in h:m:s")
_WIDTHS = (20, 16, 12, 12, 12, 12, 14, 18)
_UNITS = ("Bytes", "KB", "MB", "GB", "TB", "PB")


def size_text(size: int) -> str:
    value = float(size)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{size}Bytes" if unit == "Bytes" else f"{value:.1f}{unit}"


def time_text(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _row(cells: tuple[object, ...]) -> str:
    return " ".join(str(cell).rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def table(nodes: Mapping[str, Progress]) -> list[str]:
    """With a line for each reason that kept files where they were."""
    lines = [_row(_TITLES), " ".join("-" * width for width in _WIDTHS)]
    for node, p in nodes.items():
        lines.append(_row((node, p.files, size_text(p.size), p.scanned, p.failures, p.skipped, p.state,
                           time_text(p.run_s))))  # fmt: skip
    for node, p in nodes.items():
        lines += [f"{node}: {count} skipped: {reason}" for reason, count in sorted(p.reasons.items())]
    return lines
