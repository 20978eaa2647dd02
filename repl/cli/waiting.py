# SPDX-License-Identifier: Apache-2.0
"""Wait for the connection or for the end of a resync, with progress: wait-connect, wait-sync.

On a terminal a bar for each volume, else one line per 10 %.  Exit status 5 when the time is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import click
from rich import filesize
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from repl.cli import output, status_text
from repl.cli.client import Client
from repl.cli.grouping import command
from repl.cli.session import Session, Target
from repl.errors import WaitTimedOut

REFRESH_S = 0.5
ANSWER_MARGIN_S = 10.0
STEP_PERCENT = 10

_timeout = click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0), default=0, help="Seconds; 0 = for ever.", show_default=True
)


class Reporter(Protocol):
    """Somebody who shows the progress of resyncs."""

    def show(self, status: dict[str, Any]) -> None: ...


@command("wait-connect")
@_timeout
def wait_connect(session: Session, names: tuple[str, ...], timeout_s: float) -> None:
    """Wait until the peer is connected."""

    def work(target: Target) -> dict[str, Any]:
        with session.client(target.resource) as client:
            limit = timeout_s + ANSWER_MARGIN_S if timeout_s else None
            return client.call("wait-connect", answer_timeout_s=limit, timeout_s=timeout_s)

    session.each(session.targets(names), work)


@command("wait-sync")
@_timeout
def wait_sync(session: Session, names: tuple[str, ...], timeout_s: float) -> None:
    """Wait until both nodes have the same data."""

    def work(target: Target) -> dict[str, Any]:
        with session.client(target.resource) as waiter, session.client(target.resource) as looker:
            with _reporter(target.resource, session.is_json) as reporter:
                return _wait_sync(waiter, looker, reporter, timeout_s)

    session.each(session.targets(names), work)


def _wait_sync(waiter: Client, looker: Client, reporter: Reporter, timeout_s: float) -> dict[str, Any]:
    waiter.send("wait-sync", timeout_s=timeout_s)
    waited_s = 0.0
    while True:
        answer = waiter.poll(REFRESH_S)
        if answer is not None:
            return answer
        waited_s += REFRESH_S
        if timeout_s and waited_s > timeout_s + ANSWER_MARGIN_S:
            raise WaitTimedOut("repld does not answer.", advice="Look at its log.")
        reporter.show(looker.call("status"))


@contextmanager
def _reporter(resource: str, is_json: bool) -> Iterator[Reporter]:
    if output.is_terminal() and not is_json:
        with Bars(resource) as bars:
            yield bars
    else:
        yield StepReporter(resource, is_quiet=is_json)


class StepReporter:
    """One line per ``STEP_PERCENT`` and volume."""

    def __init__(self, resource: str, *, is_quiet: bool = False) -> None:
        self._resource = resource
        self._is_quiet = is_quiet
        self._steps: dict[int, int] = {}

    def show(self, status: dict[str, Any]) -> None:
        for volume in status.get("volumes", []):
            number = int(volume["volume"])
            if not volume.get("resync"):
                self._steps.pop(number, None)
                continue
            step = int(volume["resync"]["done_percent"]) // STEP_PERCENT
            if step != self._steps.get(number):
                self._steps[number] = step
                if not self._is_quiet:
                    output.print_line(status_text.progress_text(self._resource, volume))


class SpeedColumn(TransferSpeedColumn):
    """The rate of the last moments; at the end, and before there were two looks, the mean so far."""

    def render(self, task: Task) -> Text:
        if not task.finished and task.speed:
            return super().render(task)
        if not task.completed or not task.elapsed:
            return Text()
        return Text(f"{filesize.decimal(int(task.completed / task.elapsed))}/s", style="progress.data.speed")


class Bars:
    def __init__(self, resource: str) -> None:
        self._resource = resource
        self._tasks: dict[int, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(binary_units=True),
            SpeedColumn(),
            TimeRemainingColumn(),
            console=Console(),
        )

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if _error[0] is None:  # the last look may have been before the end
            for task in self._tasks.values():
                self._progress.update(task, completed=self._progress.tasks[task].total)
        self._progress.stop()

    def show(self, status: dict[str, Any]) -> None:
        for volume in status.get("volumes", []):
            resync = volume.get("resync")
            number = int(volume["volume"])
            if not resync:
                continue
            if number not in self._tasks:
                arrow = "->" if resync["role"] == "source" else "<-"
                peer = status.get("peer", {}).get("name", "peer")
                self._tasks[number] = self._progress.add_task(f"{self._resource}/{number} {arrow} {peer}")
            self._progress.update(
                self._tasks[number], total=resync["total_bytes"], completed=resync["done_bytes"]
            )


COMMANDS = (wait_connect, wait_sync)
