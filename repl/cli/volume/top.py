# SPDX-License-Identifier: Apache-2.0
"""top and profile: what clients ask the bricks of this host for, as debug/io-stats of each brick counts it."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from repl.cli import output
from repl.cli.volume import dumps, processes
from repl.cli.volume.context import Volumes
from repl.cli.volume.throughput import measure
from repl.cli.volume.words import Words, command
from repl.errors import RequestRefused, UsageError
from repl.files.volume.model import Brick, Place, Volume

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


_COUNTED = ("open", "read", "write", "opendir", "readdir")
_MEASURED = ("read-perf", "write-perf")
_USAGE = ("NAME open|read|write|opendir|readdir|clear [brick HOST:/DIR] [list-cnt N] | "
          "read-perf|write-perf [bs SIZE count COUNT] [brick HOST:/DIR] [list-cnt N]")  # fmt: skip


@dataclass(slots=True)
class Asked:
    """``block_bytes`` and ``blocks``: how a disk is to be measured, 0: not at all."""

    volume: Volume
    what: str
    place: Place | None = None
    count: int = LIST_COUNT
    block_bytes: int = 0
    blocks: int = 0


@command("top", _USAGE)
def top(volumes: Volumes, words: Words) -> None:
    """The files that are opened, read, written most, or fastest; counted from "profile NAME start" or clear on."""
    asked = _asked(volumes, words)
    volume = asked.volume
    volumes.need_started(volume)
    if volume.options.get(PROFILE_KEYS[1]) != "on":
        advice = f'"replctl volume profile {volume.name} start" first.'
        raise UsageError(f"{volume.name}: failed: nothing is counted.", advice=advice)
    bricks = [brick for brick in _running(volumes, volume) if asked.place in (None, brick.place)]
    if not bricks:
        raise RequestRefused(f"no brick {asked.place} of {volume.name} runs on this host.")
    if asked.what == "clear":
        for brick in bricks:
            processes.brick_daemon(volumes, volume, brick).send_user_signal(signal.SIGUSR2)
        _say(volumes, "\n".join(f"Cleared stats for brick {brick}" for brick in bricks))
        return
    found = {str(brick): _brick(volumes, brick, asked) for brick in bricks}
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": found})
        return
    for name, data in found.items():
        output.print_line(f"Brick: {name}")
        for line in _lines(asked, data):
            output.print_line(line)


def _asked(volumes: Volumes, words: Words) -> Asked:
    name = words.next("the volume's name")
    what = words.take(*_COUNTED, *_MEASURED, "clear")
    if not what:
        raise words.wrong("open, read, write, opendir, readdir, clear, read-perf or write-perf is expected.")
    asked = Asked(volumes.load(name), what)
    while word := words.take("brick", "list-cnt", "nfs", *(("bs", "count") if what in _MEASURED else ())):
        if word == "brick":
            asked.place = words.place()
        elif word == "bs":
            asked.block_bytes = words.positive("block size")
        elif word == "count":
            asked.blocks = words.positive("count")
        elif word == "list-cnt":
            asked.count = words.number("list-cnt")
    words.end()
    if bool(asked.block_bytes) != bool(asked.blocks):
        raise words.wrong("Need to give both 'bs' and 'count'.")
    if asked.count > LIST_COUNT:
        raise words.wrong(f"list-cnt should be between 0 to {LIST_COUNT}.")
    return asked


def _brick(volumes: Volumes, brick: Brick, asked: Asked) -> dict[str, Any]:
    """What there is to tell of one brick."""
    stats, path = _stats(volumes, asked.volume, brick), Path(brick.path)
    if asked.what not in _MEASURED:
        counts = _files(stats, f"top.{asked.what}", path, asked)
        rows = [{"count": int(number), "file": name} for name, number in counts]
        if asked.what != "open":
            return {"files": rows}
        keys = ("opened", "opened_max", "opened_max_ns")
        return {"files": rows} | {key: int(stats.get(key, 0)) for key in keys}
    kind = asked.what.removesuffix("-perf")
    found: dict[str, Any] = {"files": []}
    if asked.blocks:
        done = measure(path, block_bytes=asked.block_bytes, count=asked.blocks, is_read=kind == "read")
        found |= {"throughput_mbps": round(done.megabytes_s, 2), "time_s": round(done.duration_s, 4)}
    for name, value in _files(stats, f"perf.{kind}", path, asked):
        rate, _, when = value.partition(":")
        found["files"].append({"mbps": int(rate) / 1e6, "file": name, "time_ns": int(when)})
    return found


def _files(stats: dict[str, str], key: str, path: Path, asked: Asked) -> list[tuple[str, str]]:
    """Path and value of the first ones."""
    from repl.files.volume.brick_paths import path_on_brick

    words = [word.partition(":") for word in stats.get(key, "").split()[: asked.count]]
    return [(path_on_brick(path, bytes.fromhex(gfid)), value) for gfid, _, value in words]


def _lines(asked: Asked, data: dict[str, Any]) -> list[str]:
    lines = []
    if asked.what == "open":
        lines.append(f"Current open fds: {data['opened']}, Max open fds: {data['opened_max']}, "
                     f"Max openfd time: {_time(data['opened_max_ns'])} +0000")  # fmt: skip
    if "time_s" in data:
        lines.append(f"Throughput {data['throughput_mbps']:.2f} MBps time {data['time_s']:.4f} secs")
    if not data["files"]:
        return lines
    if asked.what in _MEASURED:
        lines += [f"{'MBps':<4} {'Filename':<47} {'Time':<26}".rstrip(), f"{'=' * 4} {'=' * 8:<47} {'=' * 4}"]
        return lines + [f"{row['mbps']:>4.0f} {row['file']:<47} {_time(row['time_ns'])}" for row in data["files"]]
    return [*lines, "Count\t\tfilename", "=" * 23, *(f"{row['count']}\t\t{row['file']}" for row in data["files"])]


def _time(when_ns: int) -> str:
    """In UTC."""
    return datetime.fromtimestamp(when_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


COMMANDS = (profile, top)
