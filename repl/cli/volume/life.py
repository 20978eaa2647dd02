# SPDX-License-Identifier: Apache-2.0
"""start and stop: the processes of a volume on this host."""

from __future__ import annotations

from repl.cli import output
from repl.cli.volume import processes
from repl.cli.volume.context import Volumes
from repl.cli.volume.words import Words, command, confirm
from repl.errors import UsageError
from repl.files.volume.model import Status


@command("start", "NAME [force]")
def start(volumes: Volumes, words: Words) -> None:
    """Start what of a volume belongs to this host: its bricks, its heal daemon.  force: those that do not run."""
    name = words.next("the volume's name")
    is_forced = bool(words.take("force"))
    words.end()
    with volumes.store.changing():
        volume = volumes.load(name)
        if volume.status is Status.STARTED and not is_forced:
            raise UsageError(f"{name}: failed: Volume {name} already started.",
                             advice=f'"replctl volume start {name} force" starts what does not run.')  # fmt: skip
        volumes.save(volume)  # volfiles of an older version are written anew
        if is_forced:
            volume.status = Status.STARTED
            volumes.save(volume)
        started = processes.start_all(volumes, volume, is_all_or_nothing=not is_forced)
        volume.status = Status.STARTED
        volumes.save(volume)
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": {"started": started}})
        return
    output.print_line(f"volume start: {name}: success")
    if others := volumes.other_hosts(volume):
        output.print_note(f"this host's part of it; the bricks of {', '.join(others)} are started there.")


@command("stop", "NAME [force]")
def stop(volumes: Volumes, words: Words) -> None:
    """Stop this host's processes of a volume.  force: also those that do not answer."""
    name = words.next("the volume's name")
    is_forced = bool(words.take("force"))
    words.end()
    volume = volumes.load(name)
    if volume.status is not Status.STARTED and not is_forced:
        raise UsageError(f"{name}: failed: Volume {name} is not in the started state.")
    if not is_forced:
        confirm(volumes, "Stopping volume will make its data inaccessible. Do you want to continue?")
    with volumes.store.changing():
        volume = volumes.load(name)
        processes.stop_all(volumes, volume, is_killed=is_forced)
        volume.status = Status.STOPPED
        volumes.save(volume)
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": {}})
    else:
        output.print_line(f"volume stop: {name}: success")


COMMANDS = (start, stop)
