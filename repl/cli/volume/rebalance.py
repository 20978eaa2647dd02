# SPDX-License-Identifier: Apache-2.0
"""rebalance: new ranges, and files to where they belong.  Run it on one host; clients go on meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from repl.cli import output
from repl.cli.volume import processes
from repl.cli.volume.context import Volumes
from repl.cli.volume.look import need_online
from repl.cli.volume.words import Words, command
from repl.errors import RequestRefused, UsageError
from repl.files.rebalance import progress
from repl.files.rebalance.progress import Progress, State
from repl.files.rebalance.report import table
from repl.files.volume.model import Volume

PROGRESS = "rebalance.json"


@command("rebalance", "NAME [fix-layout] start|stop|status [force]")
def rebalance(volumes: Volumes, words: Words) -> None:
    """After bricks were added: fix-layout start, start [force], status, stop."""
    name = words.next("the volume's name")
    mode = words.take("fix-layout") or "start"
    verb = words.take("start", "stop", "status")
    if not verb:
        raise words.wrong("start, stop or status is expected.")
    if words.take("force"):
        mode = "force"
    words.end()
    volume = volumes.load(name)
    volumes.need_started(volume)
    if verb == "start":
        if volume.leaving:
            raise UsageError(f"{name}: failed: A remove-brick task on volume {name} is not yet committed.",
                             advice="Commit or stop it first.")  # fmt: skip
        if len(volume.sets) < 2:
            raise UsageError(f"{name}: failed: Volume {name} is not a distribute volume or contains only 1 brick.",
                             advice="Not performing rebalance.")  # fmt: skip
        run(volumes, volume, mode)
        _say(volumes, f"volume rebalance: {name}: success: Rebalance on {name} has been started successfully. "
                      "Use rebalance status command to check status of the rebalance process.")
        return
    if volume.leaving:
        raise UsageError(f"{name}: failed: it is a remove-brick that works on the volume.",
                         advice=f'"replctl volume remove-brick {name} ... {verb}".')  # fmt: skip
    if verb == "stop":
        halt(volumes, volume)
    print_progress(volumes, volume)


def _say(volumes: Volumes, text: str) -> None:
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": {}})
    else:
        output.print_line(text)


def run(volumes: Volumes, volume: Volume, mode: str) -> None:
    """Returns when it has begun."""
    need_online(volumes, volume, "a rebalance")
    words: Sequence[str] = ("-m", mode, "-P", str(volumes.store.path(volume.name, PROGRESS)))
    if not processes.rebalance_daemon(volumes, volume, words).start():
        raise RequestRefused(f"{volume.name}: failed: Rebalance on {volume.name} is already started.")


def halt(volumes: Volumes, volume: Volume) -> None:
    """After the files that are being moved."""
    if not processes.rebalance_daemon(volumes, volume).ask_to_end():
        raise RequestRefused(f"{volume.name}: failed: Rebalance not started.")


def look(volumes: Volumes, volume: Volume) -> Progress:
    """What the file says; of one whose process is gone without a word: failed."""
    daemon = processes.rebalance_daemon(volumes, volume)
    is_running = daemon.pid() is not None
    found = progress.load(volumes.store.path(volume.name, PROGRESS))
    if found.state is State.IN_PROGRESS and not is_running:
        found = progress.load(volumes.store.path(volume.name, PROGRESS))  # it may have ended in between
        if found.state is State.IN_PROGRESS:
            found.state = State.FAILED
    return found


def print_progress(volumes: Volumes, volume: Volume) -> None:
    found = look(volumes, volume)
    if found.state is State.NOT_STARTED:
        raise RequestRefused(f"{volume.name}: failed: Rebalance not started for volume {volume.name}.")
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": asdict(found)})
        return
    for line in table({"localhost": found}):
        output.print_line(line)
    if not volume.leaving:
        output.print_line(f"volume rebalance: {volume.name}: success")
    if found.state is State.FAILED:
        daemon = processes.rebalance_daemon(volumes, volume)
        output.print_note(f"it ended early; {daemon.log} says why. Started again it goes on where it was.")


COMMANDS = (rebalance,)
