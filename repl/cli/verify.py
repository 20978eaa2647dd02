# SPDX-License-Identifier: Apache-2.0
"""``replctl verify``: compare both copies while they are in use, list what differs, copy it if wanted.

Exit statuses: 0 the copies are the same (or the differences were repaired), 2 they differ, else as all commands.
"""

from __future__ import annotations

from typing import Any

import click

from repl.cli import output
from repl.cli.grouping import command
from repl.cli.output import duration_text, size_text
from repl.cli.session import CommandFailed, Session, Target
from repl.cli.waiting import REFRESH_S, STEP_PERCENT, Bars
from repl.config.options import Unit, ValueRefused, parse_number
from repl.errors import RequestRefused, UsageError

EXIT_DIFFERENT = 2
BLOCK_BYTES = 4096
SECTOR_BYTES = 512
RANGES_SHOWN = 100


def _sector(_context: object, parameter: click.Parameter, text: str | None) -> int | None:
    """Sectors; a suffix (s, K, M, G) says otherwise."""
    if text is None:
        return None
    try:
        return parse_number(text, Unit.SECTORS)
    except ValueRefused as error:
        raise click.BadParameter(f"'{text}': {error}.", param=parameter) from None


@command("verify")
@click.option("--start", "start_sector", callback=_sector, metavar="SECTOR",
              help="Begin here (K, M, G: bytes).  Default: where the last one ended early, else 0.")
@click.option("--stop", "stop_sector", callback=_sector, metavar="SECTOR", help="End here.")
@click.option("--repair", is_flag=True, help="Copy the blocks that differ, from the Primary or the node of --from.")
@click.option("--from", "repair_from", metavar="NODE", help="Whose blocks are right; implies --repair.")
@click.option("--wait/--no-wait", "is_waiting", default=None,
              help="Show the progress and the result.  Default with --repair.")
@click.option("--abort", "is_abort", is_flag=True, help="End the running verify; the next one goes on there.")
def verify(session: Session, names: tuple[str, ...], start_sector: int | None, stop_sector: int | None, repair: bool,
           repair_from: str | None, is_waiting: bool | None, is_abort: bool) -> None:  # fmt: skip
    """Compare this node's copy with the peer's (needs verify-alg)."""
    repair = repair or bool(repair_from)
    args = {"start_sector": start_sector, "stop_sector": stop_sector, "repair": repair, "repair_from": repair_from}
    if is_abort and any(args.values()):
        raise UsageError("--abort goes with no other option.")
    differs = False

    def work(target: Target) -> list[dict[str, Any]]:
        nonlocal differs
        reports = []
        for volume in _volumes(session, target):
            one = Target(target.resource, volume)
            if is_abort:
                reports.append({"volume": volume, **session.call(one, "verify-abort", volume=volume)})
                _say(session, one, reports[-1])
                continue
            session.call(one, "verify", volume=volume, **args)
            if repair if is_waiting is None else is_waiting:
                reports.append({"volume": volume, **_wait(session, one)})
                _say(session, one, reports[-1])
                differs = differs or _is_different(reports[-1])
        return reports

    session.each(session.targets(names, with_volume=True), work)
    if differs:
        raise CommandFailed(EXIT_DIFFERENT)


def _volumes(session: Session, target: Target) -> list[int]:
    if target.volume is not None:
        return [target.volume]
    return [int(volume["volume"]) for volume in session.call(target, "status")["volumes"]]


def _wait(session: Session, target: Target) -> dict[str, Any]:
    """The report at the end; raises if the verify did not get there."""
    with session.client(target.resource) as waiter, session.client(target.resource) as looker:
        waiter.send("wait-verify", volume=target.volume)
        shown = _Progress(target, is_quiet=session.is_json)
        try:
            while (report := waiter.poll(REFRESH_S)) is None:
                shown.show(looker.call("status"))
        finally:
            shown.end()
    if report.get("state") == "interrupted":
        _say(session, target, report)
        raise RequestRefused(
            f"{target}: the verify was interrupted at sector {report['position_sector']}",
            number=-15,
            advice=f'"replctl verify {target}" goes on there once both nodes are connected and UpToDate.',
        )
    return report


class _Progress:
    """A bar on a terminal, else a line for every tenth."""

    def __init__(self, target: Target, *, is_quiet: bool) -> None:
        self._target = target
        self._is_quiet = is_quiet
        self._step = -1
        self._bars = Bars(target.resource) if output.is_terminal() and not is_quiet else None
        if self._bars is not None:
            self._bars.__enter__()

    def show(self, status: dict[str, Any]) -> None:
        volume: dict[str, Any] = next((v for v in status["volumes"] if v["volume"] == self._target.volume), {})
        report = volume.get("verify") or {}
        if "done_percent" not in report or self._is_quiet:
            return
        if self._bars is not None:
            view = {
                "role": report["role"],
                "total_bytes": report["total_blocks"] * BLOCK_BYTES,
                "done_bytes": report["blocks"] * BLOCK_BYTES,
            }
            self._bars.show({**status, "volumes": [{**volume, "resync": view}]})
            return
        step = int(report["done_percent"]) // STEP_PERCENT
        if step != self._step:
            self._step = step
            output.print_line(progress_text(self._target, report))

    def end(self) -> None:
        if self._bars is not None:
            self._bars.__exit__(None, None, None)


def progress_text(target: Target, report: dict[str, Any]) -> str:
    done, total = report["blocks"] * BLOCK_BYTES, report["total_blocks"] * BLOCK_BYTES
    return (
        f"{target}: {report['done_percent']:.1f}% verified, {size_text(done)} of {size_text(total)}, "
        f"{size_text(report['rate_bytes'])}/s, {duration_text(report.get('eta_s'))} left, "
        f"{report['differing_blocks']} blocks differ"
    )


def _is_different(report: dict[str, Any]) -> bool:
    return bool(report["differing_blocks"]) and report["repair"] != "done"


def _say(session: Session, target: Target, report: dict[str, Any]) -> None:
    if not session.is_json:
        for line in result_lines(target, report):
            output.print_line(line)


def result_lines(target: Target, report: dict[str, Any]) -> list[str]:
    """What was found, range by range, and what became of it."""
    compared = size_text(report["blocks"] * BLOCK_BYTES)
    count = report["differing_blocks"]
    what = f"{count} block{'s' if count != 1 else ''} differ{'s' if count == 1 else ''}" if count else "no difference"
    head = f"{target}: verify {report['state']}: {compared} compared in {duration_text(report['duration_s'])}, {what}"
    if report["state"] != "complete":
        head += f", reached sector {report['position_sector']}"
    lines = [head]
    ranges = report["ranges"]
    for first, sectors in ranges[:RANGES_SHOWN]:
        at, size = size_text(first * SECTOR_BYTES), size_text(sectors * SECTOR_BYTES)
        lines.append(f"Out of sync: start={first}, size={sectors} (sectors)  # {size} at {at}")
    more = len(ranges) - RANGES_SHOWN + report["unlisted_ranges"] if len(ranges) > RANGES_SHOWN else 0
    if more or report["unlisted_ranges"]:
        lines.append(f"{more or report['unlisted_ranges']} more ranges (--json lists up to 4096)")
    if report["repair"] == "done":
        lines.append(f"{target}: repaired from {report['repair_from']}")
    elif report["repair"]:
        lines.append(f"{target}: repair from {report['repair_from']}: {report['repair']}")
    elif count:
        lines.append(f'{target}: "replctl verify --repair {target}" copies them from the Primary')
    return lines


COMMANDS = (verify,)
