# SPDX-License-Identifier: Apache-2.0
"""add-brick, remove-brick, replace-brick: other bricks while clients go on.

Order of every change: first what keeps an empty brick from being believed (accusations on the good ones), then its
process, then the clients' volfile.  The same command is run on every host of the volume.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from repl.cli import output
from repl.cli.volume import dumps, processes, rebalance
from repl.cli.volume.context import Volumes, claim
from repl.cli.volume.create import take_replica
from repl.cli.volume.heal_link import ask
from repl.cli.volume.look import answers
from repl.cli.volume.words import Words, command, confirm
from repl.errors import ReplError, RequestRefused, UsageError
from repl.files.rebalance.progress import State
from repl.files.volume.model import Brick, BrickSet, Place, Status, Volume

CLIENTS_TIMEOUT_S = 15.0
POLL_S = 0.2


@command("add-brick", "NAME [replica N [arbiter 1]] HOST:/DIR... [force]")
@click.option("--base-port", type=int, metavar="PORT", help="The first new brick's port (behind the others).")
def add_brick(volumes: Volumes, words: Words, base_port: int | None) -> None:
    """More sets of bricks, or with a larger replica count more copies."""
    name = words.next("the volume's name")
    replica, arbiter = take_replica(words)
    words.take_last("force")
    places = words.places()
    with volumes.store.changing():
        volume = volumes.load(name)
        _check_no_task(volumes, volume)
        ports = volumes.ports(name, base_port, len(places))
        are_copies = replica not in (1, volume.replica)
        if are_copies:
            volumes.need_started(volume)
            bricks = volume.add_copies(replica, places, ports, arbiter=arbiter)
        else:
            bricks = [brick for one in volume.add_sets(places, ports) for brick in one.bricks]
        take_in(volumes, volume, bricks)
    if are_copies:
        heal_all(volumes, volume)
    _done(volumes, "volume add-brick: success")
    if not are_copies and not volumes.session.is_json:
        output.print_note(f'"replctl volume rebalance {name} start" moves files there; new ones are made there after '
                          f'"replctl volume rebalance {name} fix-layout start" at the latest.')  # fmt: skip


def _check_no_task(volumes: Volumes, volume: Volume) -> None:
    if processes.rebalance_daemon(volumes, volume).pid() is not None:
        raise RequestRefused(f"{volume.name}: failed: a rebalance or remove-brick is in progress.",
                             advice="Wait for its end, or stop it.")  # fmt: skip
    if volume.leaving:
        raise RequestRefused(f"{volume.name}: failed: a remove-brick is not committed yet.",
                             advice="Commit or stop it first.")  # fmt: skip


def take_in(volumes: Volumes, volume: Volume, bricks: Sequence[Brick]) -> None:
    """New bricks become part of the volume, those of this host run."""
    for brick in bricks:
        if volumes.is_own(brick.host):
            claim(volume, brick)
    if volume.status is Status.STARTED:
        volumes.save_bricks(volume)
        processes.start_all(volumes, volume)
    volumes.save(volume)


def heal_all(volumes: Volumes, volume: Volume) -> None:
    """New copies are filled at once; if nobody can be asked, the daemon finds them in the index."""
    if volume.status is Status.STARTED and processes.wants_heals(volumes, volume):
        try:
            ask(volumes, volume, do="heal", full=True)
        except ReplError as error:
            output.print_note(f"the heal of the new bricks could not be asked for: {error}")


# ---- fewer bricks ----


@command("remove-brick", "NAME [replica N] HOST:/DIR... start|stop|status|commit|force")
def remove_brick(volumes: Volumes, words: Words) -> None:
    """start moves the files away while they are used, commit ends it; force drops bricks as they are."""
    name = words.next("the volume's name")
    verb = words.take_last("start", "stop", "status", "commit", "force")
    replica = words.number("the replica count") if words.take("replica") else 0
    if not verb:
        raise words.wrong("start, stop, status, commit or force is expected at the end.")
    places = words.places()
    if not places:
        raise words.wrong("no brick is named.")
    volume = volumes.load(name)
    if replica and replica != volume.replica:
        _remove_copies(volumes, volume, replica, places, verb)
        return
    sets = volume.sets_of(places)
    if verb == "start":
        _start(volumes, volume, sets)
    elif verb == "force":
        confirm(volumes, "Removing brick(s) can result in data loss. Do you want to Continue?")
        _drop(volumes, name, sets)
        _done(volumes, "volume remove-brick commit force: success")
    else:
        _check_leaving(volume, sets)
        {"stop": _stop, "status": _status, "commit": _commit}[verb](volumes, volume)


def _check_leaving(volume: Volume, sets: Sequence[BrickSet]) -> None:
    for one in sets:
        if not one.is_leaving:
            raise UsageError(f"commit: failed: Brick {one.bricks[0]} is not decommissioned. Use start or force option.")
    if len(sets) != len(volume.leaving):
        names = " ".join(str(brick) for one in volume.leaving for brick in one.bricks)
        raise UsageError(f"these are not all bricks that are being removed: {names}.")


def _start(volumes: Volumes, volume: Volume, sets: Sequence[BrickSet]) -> None:
    volumes.need_started(volume)
    if len(sets) == len(volume.sets):
        raise UsageError("start: failed: Deleting all the bricks of the volume is not allowed.")
    with volumes.store.changing():
        volume = volumes.load(volume.name)
        _check_no_task(volumes, volume)
        numbers = {one.number for one in sets}
        for one in volume.sets:
            one.is_leaving = one.number in numbers
        volumes.store.remove_file(volume.name, rebalance.PROGRESS)
        volumes.save(volume)
        try:
            rebalance.run(volumes, volume, "start")
        except ReplError:
            for one in volume.sets:
                one.is_leaving = False
            volumes.save(volume)
            raise
    _done(volumes, "volume remove-brick start: success")


def _stop(volumes: Volumes, volume: Volume) -> None:
    """Files that have moved stay where they are; the bricks get new ones again."""
    processes.rebalance_daemon(volumes, volume).ask_to_end()
    rebalance.print_progress(volumes, volume)
    with volumes.store.changing():
        volume = volumes.load(volume.name)
        for one in volume.sets:
            one.is_leaving = False
        volumes.save(volume)


def _status(volumes: Volumes, volume: Volume) -> None:
    rebalance.print_progress(volumes, volume)


def _commit(volumes: Volumes, volume: Volume) -> None:
    found = rebalance.look(volumes, volume)
    if found.state is State.IN_PROGRESS:
        raise RequestRefused("commit: failed: use 'force' option as migration is in progress.",
                             advice='"status" instead of "commit" shows how far it is.')  # fmt: skip
    if found.state is not State.COMPLETED:
        raise RequestRefused(f"commit: failed: the migration is {found.state}: files are left on the bricks.",
                             advice='"start" goes on with it.')  # fmt: skip
    if found.failures:
        raise RequestRefused(f"commit: failed: {found.failures} files could not be moved.",
                             advice=f'See {processes.rebalance_daemon(volumes, volume).log}; "start" tries again, '
                                    '"force" gives them up.')  # fmt: skip
    confirm(volumes, "Removing bricks: files that are left on them are lost to the volume. Do you want to Continue?")
    _drop(volumes, volume.name, volume.leaving)
    _done(volumes, "volume remove-brick commit: success")
    if not volumes.session.is_json:
        output.print_line("Check the removed bricks to ensure all files are migrated.\nIf files with data are found on "
                          "the brick path, copy them via a mount point before re-purposing the removed brick.")


def _drop(volumes: Volumes, name: str, sets: Sequence[BrickSet]) -> None:
    with volumes.store.changing():
        volume = volumes.load(name)
        numbers = {one.number for one in sets}
        gone = [one for one in volume.sets if one.number in numbers]
        volume.drop_sets(gone)
        moving = processes.rebalance_daemon(volumes, volume)
        if moving.ask_to_end():
            moving.stop(is_killed=True)
        volumes.store.remove_file(name, rebalance.PROGRESS)
        volumes.save(volume)
        stop_bricks(volumes, volume, [brick for one in gone for brick in one.bricks])


def stop_bricks(volumes: Volumes, volume: Volume, bricks: Sequence[Brick]) -> None:
    """Once nobody uses them any more: clients need some seconds to take their new graph."""
    deadline = time.monotonic() + CLIENTS_TIMEOUT_S
    for brick in bricks:
        daemon = processes.brick_daemon(volumes, volume, brick)
        while (clients := _clients_of(daemon)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if clients:
            output.print_note(f"{brick}: clients that do not know of its end yet: {', '.join(clients)}")
        daemon.stop()
        volumes.store.remove_file(volume.name, volumes.brick_file(brick))


def _clients_of(daemon: processes.Daemon) -> list[str]:
    """Nobody, if it cannot be asked."""
    try:
        found = dumps.find(dumps.dump(daemon), "protocol/server")
    except ReplError:
        return []
    return [found.get(f"client[{number}]", "?") for number in range(int(found.get("clients", "0")))]


def _remove_copies(volumes: Volumes, volume: Volume, replica: int, places: Sequence[Place], verb: str) -> None:
    if verb != "force":
        raise UsageError(
            "Removing bricks from replicate configuration is not allowed without reducing replica count explicitly, "
            "and with 'force'.",
            advice="The copies that stay have everything: heal info shows whether that is so.",
        )
    if volume.status is Status.STARTED:
        _check_healed(volumes, volume, places)
    confirm(volumes, "Removing brick(s) can result in data loss. Do you want to Continue?")
    with volumes.store.changing():
        volume = volumes.load(volume.name)
        _check_no_task(volumes, volume)
        gone = volume.drop_copies(replica, places)
        volumes.save(volume)
        stop_bricks(volumes, volume, gone)
        if replica == 1:
            processes.heal_daemon(volumes, volume).stop()
    _done(volumes, "volume remove-brick commit force: success")


def _check_healed(volumes: Volumes, volume: Volume, places: Sequence[Place]) -> None:
    """A copy that others need for their heals must not go."""
    if not volumes.own_bricks(volume):
        return
    for brick in ask(volumes, volume, do="info"):
        found = volume.named(brick["brick"])
        if found is not None and found.place in places and brick["total"]:
            raise RequestRefused(f"{volume.name}: failed: {found} has {brick['total']} entries that others need yet.",
                                 advice=f'"replctl volume heal {volume.name} wait" first.')  # fmt: skip


# ---- another place ----


@command("replace-brick", "NAME HOST:/OLD HOST:/NEW commit force")
@click.option("--base-port", type=int, metavar="PORT", help="The new brick's port (behind the others).")
def replace_brick(volumes: Volumes, words: Words, base_port: int | None) -> None:
    """An empty brick takes the place of another one and is filled from its copies."""
    name = words.next("the volume's name")
    old, new = words.place(), words.place()
    if not (words.take("commit") and words.take("force")):
        raise words.wrong("'commit force' is expected at the end.")
    words.end()
    with volumes.store.changing():
        volume = volumes.load(name)
        volumes.need_started(volume)
        _check_no_task(volumes, volume)
        before = volume.replace(old, new, next(volumes.ports(name, base_port, 1)))
        brick = volume.find(new)[1]
        daemon = processes.brick_daemon(volumes, volume, before)
        if volumes.is_own(new.host):
            claim(volume, brick)
        if volumes.is_own(old.host):
            daemon.stop()
        elif answers(before):
            raise UsageError(f"{name}: failed: {before} serves yet.",
                             advice=f"Run the same command on {old.host} first.")  # fmt: skip
        try:
            take_in(volumes, volume, [brick])
        except ReplError:
            processes.start_all(volumes, volumes.load(name))
            raise
    heal_all(volumes, volume)
    _done(volumes, "volume replace-brick: success: replace-brick commit force operation successful")


def _done(volumes: Volumes, text: str) -> None:
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": {}})
    else:
        output.print_line(text)


COMMANDS = (add_brick, remove_brick, replace_brick)
