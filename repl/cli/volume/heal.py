# SPDX-License-Identifier: Apache-2.0
"""heal: what is pending, what is in split-brain, and the end of both."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any

from repl.cli import output
from repl.cli.volume import heal_bar, processes
from repl.cli.volume.context import Volumes
from repl.cli.volume.heal_link import ask, connect
from repl.cli.volume.look import is_online
from repl.cli.volume.words import Words, command
from repl.errors import RequestRefused, UsageError
from repl.files.volume.model import Place, Volume

POLICIES = ("bigger-file", "latest-mtime", "majority", "source-brick")
POLL_S = 0.2
LINK_TIMEOUT_S = 15.0
NAMES = ("info", "statistics", "split-brain", "explain", "full", "wait", "enable", "disable", "granular-entry-heal")


@command("heal", "NAME [full|wait|info [summary|split-brain]|split-brain POLICY ...|explain FILE|statistics ...]")
def heal(volumes: Volumes, words: Words) -> None:
    """Without a word: heal what is pending.  Policies: bigger-file FILE, latest-mtime FILE, majority FILE,
    source-brick HOST:/DIR [FILE].  wait: until nothing is pending, with a bar."""
    volume = volumes.load(words.next("the volume's name"))
    if volume.replica == 1:
        raise UsageError(f"{volume.name}: failed: Volume {volume.name} is not of type replicate.")
    verb = words.take(*NAMES)
    if verb not in ("enable", "disable", "granular-entry-heal"):
        volumes.need_started(volume)
    work = _VERBS[verb]
    try:
        work(volumes, volume, words)
    except UsageError as error:
        if words.usage not in error.advice:
            error.message = error.message.removeprefix("volume heal: ")
        raise


def _launch(volumes: Volumes, volume: Volume, words: Words, kind: str = "index") -> None:
    words.end()
    ask(volumes, volume, do="heal", full=kind == "full")
    _say(volumes, f"Launching heal operation to perform {kind} self heal on volume {volume.name} has been successful\n"
                  "Use heal info commands to check status.")


def _say(volumes: Volumes, text: str, data: object = None) -> None:
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": data})
    else:
        output.print_line(text)


# ---- info ----


def _info(volumes: Volumes, volume: Volume, words: Words) -> None:
    what = words.take("summary", "split-brain")
    words.end()
    bricks = ask(volumes, volume, do="info", splits=what == "split-brain")
    for brick in bricks:
        found = volume.named(brick["brick"])
        brick["brick"] = str(found or brick["brick"])
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": bricks})
        return
    show = _summary if what == "summary" else _items
    count = "Number of entries in split-brain" if what == "split-brain" else "Number of entries"
    for brick in bricks:
        output.print_line("\n".join([f"Brick {brick['brick']}", *show(brick, count), ""]))


def _items(brick: dict[str, Any], count: str) -> list[str]:
    lines = []
    for item in brick["items"] or ():
        mark = "" if item["state"] == "heal pending" else f" - {item['state']}"
        lines.append(item["path"] + mark)
    total = "-" if brick["items"] is None else len(brick["items"])
    return [*lines, f"Status: {brick['status']}", f"{count}: {total}"]


def _summary(brick: dict[str, Any], _: str) -> list[str]:
    fields = {"Total Number of entries": "total", "Number of entries in heal pending": "pending",
              "Number of entries in split-brain": "split", "Number of entries possibly healing": "healing"}  # fmt: skip
    counts = [f"{text}: {'-' if brick[key] is None else brick[key]}" for text, key in fields.items()]
    return [f"Status: {brick['status']}", *counts]


# ---- split-brain ----


def _split_brain(volumes: Volumes, volume: Volume, words: Words) -> None:
    policy = words.take(*POLICIES)
    if not policy:
        raise words.wrong(f"one of {', '.join(POLICIES)} is expected.")
    place: Place | None = words.place() if policy == "source-brick" else None
    path = words.take(words.peek())
    words.end()
    request: dict[str, object] = {"do": "resolve", "policy": policy, "path": path}
    if place is not None:
        one, brick = volume.find(place)
        request |= {"source": volume.client_name(brick), "volume": volume.set_name(one)}
    elif not path:
        raise words.wrong("the file is missing.")
    if path and not path.startswith("/"):
        raise words.wrong(f"{path}: the path inside the volume is meant, beginning with /.")
    lines = ask(volumes, volume, **request)
    if not path:
        lines.append(f"Number of healed entries: {len(lines)}")
    _say(volumes, "\n".join(lines), lines)


def _explain(volumes: Volumes, volume: Volume, words: Words) -> None:
    path = words.next("the file")
    words.end()
    text = str(ask(volumes, volume, do="explain", path=path))
    for brick in volume.bricks:
        text = text.replace(volume.client_name(brick), str(brick))
    _say(volumes, text, text)


# ---- figures ----


def _statistics(volumes: Volumes, volume: Volume, words: Words) -> None:
    if words.take("heal-count"):
        place = words.place() if words.take("replica") else None
        words.end()
        _heal_count(volumes, volume, place)
        return
    words.end()
    found = ask(volumes, volume, do="status")
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": found})
        return
    output.print_line(f"Gathering crawl statistics on volume {volume.name} has been successful")
    for name, one in found.items():
        output.print_line("\n".join([
            "-" * 48, "", f"Crawl statistics for {name}", "",
            f"Type of crawl: {str(one['kind']).upper()}{' (in progress)' if one['running'] else ''}",
            f"Crawls so far: {one['sweeps']}",
            f"Run time: {one['seconds']} s",
            f"No. of entries looked at: {one['found']}",
            f"No. of entries healed: {one['healed']}",
            f"No. of entries left: {one['left'] if one['left'] >= 0 else '-'}",
            f"No. of entries in split-brain: {one['undone'].get('split-brain', 0)}",
            f"No. of heal failed entries: {one['undone'].get('failed', 0)}",
        ]))  # fmt: skip


def _heal_count(volumes: Volumes, volume: Volume, place: Place | None) -> None:
    bricks = ask(volumes, volume, do="info")
    wanted = {volume.client_name(b) for b in (volume.find(place)[0].bricks if place else volume.bricks)}
    counts = {str(volume.named(b["brick"])): b["total"] for b in bricks if b["brick"] in wanted}
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": counts})
        return
    output.print_line(f"Gathering count of entries to be healed on volume {volume.name} has been successful\n")
    for name, count in counts.items():
        output.print_line(f"Brick {name}\nNumber of entries: {'-' if count is None else count}\n")


# ---- waiting ----


def _wait(volumes: Volumes, volume: Volume, words: Words) -> None:
    timeout_s = words.number("the number of seconds") if words.peek() else 0
    words.end()
    heal_all(volumes, volume, timeout_s or None)
    _say(volumes, f"volume heal: {volume.name}: success: nothing is pending")


def heal_all(volumes: Volumes, volume: Volume, timeout_s: float | None) -> None:
    """Until nothing is pending, or what is left does not become less."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    _wait_for_links(volumes, volume)
    with heal_bar.bar(volume.name) as shown, connect(volumes, volume) as work, connect(volumes, volume) as look:
        before: int | None = None
        while True:
            work.send(do="heal", wait=True)
            while not select.select([work], [], [], POLL_S)[0]:
                shown.show(look.ask(do="status"))
                if deadline is not None and time.monotonic() > deadline:
                    raise RequestRefused(f"{volume.name}: heals go on after {timeout_s:g} s.",
                                         advice="They do so in the background.")  # fmt: skip
            shown.show(work.receive())
            bricks = look.ask(do="info")
            left = sum(brick["total"] or 0 for brick in bricks)
            if not left:
                break
            if before is not None and left >= before:
                raise _stuck(volume, bricks, left)
            before = left
        _check_all_there(volume, bricks)


def _wait_for_links(volumes: Volumes, volume: Volume) -> None:
    """A brick that was started just now is not connected to the daemon yet."""
    wanted = {volume.client_name(brick) for brick in volume.bricks if is_online(volumes, volume, brick)[0]}
    deadline = time.monotonic() + LINK_TIMEOUT_S
    with connect(volumes, volume) as link:
        while time.monotonic() < deadline:
            there = {name for one in link.ask(do="status").values() for name in one["up"]}
            if wanted <= there:
                break
            time.sleep(POLL_S)


def _stuck(volume: Volume, bricks: list[dict[str, Any]], left: int) -> RequestRefused:
    splits = sum(brick["split"] or 0 for brick in bricks)
    if splits:
        return RequestRefused(f"{volume.name}: {splits} entries are in split-brain.",
                              advice=f'"replctl volume heal {volume.name} info split-brain" lists them.')  # fmt: skip
    away = [str(volume.named(brick["brick"])) for brick in bricks if brick["total"] is None]
    if away:
        return RequestRefused(f"{volume.name}: {left} entries cannot be healed while {', '.join(away)} is away.",
                              advice=f'"replctl volume start {volume.name} force" starts bricks.')  # fmt: skip
    return RequestRefused(f"{volume.name}: {left} entries are pending and do not become fewer.",
                          advice=f'"replctl volume heal {volume.name} info" lists them; a file that is being written '
                                 "is healed later.")  # fmt: skip


def _check_all_there(volume: Volume, bricks: list[dict[str, Any]]) -> None:
    away = [str(volume.named(brick["brick"])) for brick in bricks if brick["total"] is None]
    if away:
        raise RequestRefused(f"{volume.name}: nothing is pending on the others, but {', '.join(away)} is away.",
                             advice=f'"replctl volume start {volume.name} force" starts bricks.')  # fmt: skip


# ---- switches ----


def _switch(volumes: Volumes, name: str, key: str, value: str) -> None:
    with volumes.store.changing():
        volume = volumes.load(name)
        volume.options[key] = value
        volumes.save(volume)


def _able(word: str) -> Callable[[Volumes, Volume, Words], None]:
    def work(volumes: Volumes, volume: Volume, words: Words) -> None:
        words.end()
        _switch(volumes, volume.name, "cluster.self-heal-daemon", "on" if word == "enable" else "off")
        _say(volumes, f"{word.capitalize()} heal on volume {volume.name} has been successful")

    return work


def _granular(volumes: Volumes, volume: Volume, words: Words) -> None:
    word = words.take("enable", "disable")
    if not word:
        raise words.wrong("enable or disable is expected.")
    words.end()
    if processes.heal_daemon(volumes, volume).pid() is not None and word == "enable":
        if any(brick["total"] is None or brick["total"] for brick in ask(volumes, volume, do="info")):
            raise RequestRefused(f"{volume.name}: failed: One or more entries need heal, or a brick is away.",
                                 advice=f'"replctl volume heal {volume.name} wait" first.')  # fmt: skip
    _switch(volumes, volume.name, "cluster.granular-entry-heal", "on" if word == "enable" else "off")
    _say(volumes, f"{word.capitalize()} granular entry heal on volume {volume.name} has been successful")


_VERBS: dict[str, Callable[[Volumes, Volume, Words], None]] = {
    "": _launch, "full": lambda volumes, volume, words: _launch(volumes, volume, words, "full"), "info": _info,
    "split-brain": _split_brain, "explain": _explain, "statistics": _statistics, "wait": _wait,
    "enable": _able("enable"), "disable": _able("disable"), "granular-entry-heal": _granular,
}  # fmt: skip

COMMANDS = (heal,)
