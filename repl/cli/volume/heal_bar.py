# SPDX-License-Identifier: Apache-2.0
"""The progress of heals: a bar on a terminal, else a line whenever a tenth more is done.

Input: the status maps of the heal daemon.  What is left is an estimate: directories that are healed bring more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from repl.cli import output

STEP_PERCENT = 10


class HealBar:
    """``show`` takes what the daemon says of all sets of the volume."""

    def __init__(self, name: str, bar: Progress | None) -> None:
        self._name = name
        self._bar = bar
        self._task = bar.add_task(f"healing {name}", total=None, copied="") if bar else None
        self._most = 0
        self._told = 0

    def show(self, status: dict[str, dict[str, Any]]) -> None:
        left = sum(max(0, int(one["left"])) for one in status.values())
        healed = sum(int(one["healed"]) for one in status.values())
        copied = output.size_text(max((int(one["copied_bytes"]) for one in status.values()), default=0))  # of all
        self._most = max(self._most, left + healed)
        done = min(self._most, max(healed, self._most - left))
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=self._most or None, completed=done, copied=copied)
        elif self._most and (percent := done * 100 // self._most) >= self._told + STEP_PERCENT:
            self._told = percent - percent % STEP_PERCENT
            click.echo(f"healing {self._name}: {done} of {self._most}, {copied} copied", err=True)


@contextmanager
def bar(name: str) -> Iterator[HealBar]:
    if not output.is_terminal():
        yield HealBar(name, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[copied]}"),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns) as shown:
        yield HealBar(name, shown)
