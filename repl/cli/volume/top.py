# SPDX-License-Identifier: Apache-2.0
"""top and profile: what clients ask the bricks of this host for, as debug/io-stats of each brick counts it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from repl.cli import output
from repl.cli.volume import dumps, processes
from repl.cli.volume.context import Volumes
from repl.cli.volume.words import Words, command
from repl.errors import RequestRefused, UsageError
from repl.files.volume.model import Brick, Volume

PROFILE_KEYS = ("diagnostics.latency-measurement", "diagnostics.count-fop-hits")
LIST_COUNT = 100
_LATENCY = re.compile(r"mean (\d+) least (\d+) p50 (\d+) p99 (\d+) most (\d+)")


def _stats(volumes: Volumes, volume: Volume, brick: Brick) -> dict[str, str]:
    dump = dumps.dump(processes.brick_daemon(volumes, volume, brick))
    return dumps.find(dump, "debug/io-stats")


@command("profile", "NAME start|info|stop")
def profile(volumes: Volumes, words: Words) -> None:
    """Count operations and measure how long they take on the bricks."""
    name = words.next("the volume's name")
    verb = words.take("start", "stop", "info")
    if not verb:
        raise words.wrong("start, stop or info is expected.")
    words.take("peek", "cumulative", "incremental")
    words.end()
    if verb != "info":
        _switch(volumes, name, is_on=verb == "start")
        done = "Starting" if verb == "start" else "Stopping"
        _say(volumes, f"{done} volume profile on {name} has been successful")
        return
    volume = volumes.load(name)
    volumes.need_started(volume)
    if volume.options.get(PROFILE_KEYS[1]) != "on":
        raise UsageError(f"Profile on Volume {name} is not started.", advice=f'"replctl volume profile {name} start".')
    found = {str(brick): _stats(volumes, volume, brick) for brick in _running(volumes, volume)}
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": found})
        return
    for brick, stats in found.items():
        output.print_line("\n".join(_profile(brick, stats)))


def _say(volumes: Volumes, text: str) -> None:
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": {}})
    else:
        output.print_line(text)


def _switch(volumes: Volumes, name: str, *, is_on: bool) -> None:
    with volumes.store.changing():
        volume = volumes.load(name)
        for key in PROFILE_KEYS:
            if is_on:
                volume.options[key] = "on"
            else:
                volume.options.pop(key, None)
        volumes.save(volume)


def _running(volumes: Volumes, volume: Volume) -> list[Brick]:
    own = volumes.own_bricks(volume)
    if not own:
        raise RequestRefused(f"{volume.name}: no brick of it is on this host.", advice="Ask where its bricks are.")
    return [brick for brick in own if processes.brick_daemon(volumes, volume, brick).pid() is not None]


def _profile(brick: str, stats: dict[str, str]) -> list[str]:
    rows: list[tuple[Any, ...]] = []
    for key, value in stats.items():
        fop, _, what = key.rpartition(".")
        if what == "latency_us" and (match := _LATENCY.match(value)):
            mean, least, p50, p99, most = map(int, match.groups())
            rows.append((int(stats[f"{fop}.calls"]), mean, least, p50, p99, most, int(stats[f"{fop}.errors"]), fop))
    total = sum(row[0] * row[1] for row in rows) or 1
    head = ("%-latency", "Avg us", "Min us", "p50 us", "p99 us", "Max us", "Errors", "Calls", "Fop")
    lines = [f"Brick: {brick}", "-" * (7 + len(brick)), _row(head)]
    for calls, mean, least, p50, p99, most, errors, fop in sorted(rows, key=lambda row: row[0] * row[1]):
        share = f"{100 * calls * mean / total:.2f}"
        lines.append(_row((share, mean, least, p50, p99, most, errors, calls, fop.upper())))
    return [*lines, f"   Data Read: {stats.get('read_bytes', 0)} bytes",
            f"Data Written: {stats.get('written_bytes', 0)} bytes", " "]  # fmt: skip


def _row(cells: tuple[Any, ...]) -> str:
    return " ".join(str(cell).rjust(10) for cell in cells[:-1]) + "  " + str(cells[-1])


# ---- files ----


@command("top", "NAME open|read|write|opendir|readdir [brick HOST:/DIR] [list-cnt N]")
def top(volumes: Volumes, words: Words) -> None:
    """The files that are opened, read, written most; counted from "profile NAME start" on."""
    name = words.next("the volume's name")
    what = words.take("open", "read", "write", "opendir", "readdir")
    if not what:
        raise words.wrong("open, read, write, opendir or readdir is expected.")
    place, count = None, LIST_COUNT
    while word := words.take("brick", "list-cnt", "nfs"):
        if word == "brick":
            place = words.place()
        else:
            count = words.number("the number of files")
    words.end()
    volume = volumes.load(name)
    volumes.need_started(volume)
    if volume.options.get(PROFILE_KEYS[1]) != "on":
        raise UsageError(f"{name}: failed: nothing is counted.", advice=f'"replctl volume profile {name} start" first.')
    bricks = [brick for brick in _running(volumes, volume) if place in (None, brick.place)]
    found = {str(brick): _top(_stats(volumes, volume, brick), brick, what, count) for brick in bricks}
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": found})
        return
    for brick_name, rows in found.items():
        output.print_line(f"Brick: {brick_name}")
        if rows:
            output.print_line("Count\t\tfilename\n=======================")
        for row in rows:
            output.print_line(f"{row['count']}\t\t{row['file']}")


def _top(stats: dict[str, str], brick: Brick, what: str, count: int) -> list[dict[str, Any]]:
    from repl.files.volume.brick_paths import path_on_brick

    rows = []
    for word in stats.get(f"top.{what}", "").split()[:count]:
        gfid, _, number = word.partition(":")
        rows.append({"count": int(number), "file": path_on_brick(Path(brick.path), bytes.fromhex(gfid))})
    return rows


COMMANDS = (profile, top)
