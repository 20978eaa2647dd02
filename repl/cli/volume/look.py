# SPDX-License-Identifier: Apache-2.0
"""info, list, status: what volumes there are and how their processes are."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

from repl.cli import output
from repl.cli.volume import dumps, processes
from repl.cli.volume.context import Volumes
from repl.cli.volume.words import Words, command
from repl.errors import UsageError
from repl.files.rebalance import progress
from repl.files.rebalance.report import size_text
from repl.files.volume.model import Brick, Status, Volume

CONNECT_TIMEOUT_S = 1.0
RULE = "-" * 78


@command("list", "")
def list_(volumes: Volumes, words: Words) -> None:
    """The names of all volumes."""
    words.end()
    names = volumes.store.names()
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": names})
        return
    for name in names:
        output.print_line(name)
    if not names:
        output.print_line("No volumes present in cluster")


def chosen(volumes: Volumes, words: Words) -> list[Volume]:
    """The one that is named, or all."""
    name = words.take(words.peek())
    if name and name != "all":
        return [volumes.load(name)]
    return volumes.store.volumes()


@command("info", "[NAME|all]")
def info(volumes: Volumes, words: Words) -> None:
    """Type, bricks and options of a volume."""
    found = chosen(volumes, words)
    words.end()
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": [{**asdict(one), "type": one.kind} for one in found]})
        return
    for volume in found:
        output.print_line("\n".join(_info(volume)))
    if not found:
        output.print_line("No volumes present")


def _info(volume: Volume) -> list[str]:
    lines = [
        " ",
        f"Volume Name: {volume.name}",
        f"Type: {volume.kind}",
        f"Volume ID: {volume.id}",
        f"Status: {volume.status}",
        "Snapshot Count: 0",
        f"Number of Bricks: {volume.count_text}",
        "Transport-type: tcp",
        "Bricks:",
    ]
    for number, brick in enumerate(volume.bricks, 1):
        lines.append(f"Brick{number}: {brick}{' (arbiter)' if brick.is_arbiter else ''}")
    if volume.options:
        lines.append("Options Reconfigured:")
        lines += [f"{key}: {value}" for key, value in volume.options.items()]
    return lines


# ---- status ----


@command("status", "[NAME|all] [detail|clients|tasks]")
def status(volumes: Volumes, words: Words) -> None:
    """Which processes run, and on which ports."""
    what = words.take_last("detail", "clients", "tasks")
    is_one = words.peek() not in ("", "all")
    found = chosen(volumes, words)
    words.end()
    if is_one:
        volumes.need_started(found[0])
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": [_data(volumes, volume) for volume in found]})
        return
    for volume in found:
        if volume.status is not Status.STARTED:
            output.print_line(f"Volume {volume.name} is not started\n ")
            continue
        show = {"detail": _detail, "clients": _clients, "tasks": _tasks}.get(what, _table)
        output.print_line("\n".join(show(volumes, volume)))
    if not found:
        output.print_line("No volumes present")


def is_online(volumes: Volumes, volume: Volume, brick: Brick) -> tuple[bool, int | None]:
    """(it runs, its pid if it is ours).  Of other hosts: whether its port answers."""
    if volumes.is_own(brick.host):
        pid = processes.brick_daemon(volumes, volume, brick).pid()
        return pid is not None, pid
    return answers(brick), None


def answers(brick: Brick) -> bool:
    try:
        with socket.create_connection((brick.host, brick.port), CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


def _row(what: str, port: object, is_up: bool, pid: object) -> str:
    """Long names get a line of their own, as Gluster breaks them."""
    lines = [what[at : at + 43] for at in range(0, len(what), 43)] or [""]
    lines[-1] = f"{lines[-1]:<43} {port!s:<9} {'0' if is_up else 'N/A':<10} {'Y' if is_up else 'N':<7} {pid!s:<5}"
    return "\n".join(lines)


def _table(volumes: Volumes, volume: Volume) -> list[str]:
    lines = [f"Status of volume: {volume.name}",
             f"{'Process':<43} {'TCP Port':<9} {'RDMA Port':<10} {'Online':<7} {'Pid':<5}", RULE]  # fmt: skip
    for brick in volume.bricks:
        is_up, pid = is_online(volumes, volume, brick)
        lines.append(_row(f"Brick {brick}", brick.port if is_up else "N/A", is_up, pid if pid is not None else "N/A"))
    if processes.wants_heals(volumes, volume):
        heald = processes.heal_daemon(volumes, volume).pid()
        online = f"{'N/A':<9} {'N/A':<10} {'Y' if heald is not None else 'N':<7} {heald if heald else 'N/A'!s:<5}"
        lines.append(f"{'Self-heal Daemon on localhost':<43} {online}")
    return [*lines, " ", *_tasks(volumes, volume)]


def _tasks(volumes: Volumes, volume: Volume) -> list[str]:
    lines = [f"Task Status of Volume {volume.name}", RULE]
    found = progress.load(volumes.store.path(volume.name, "rebalance.json"))
    is_running = processes.rebalance_daemon(volumes, volume).pid() is not None
    if not is_running and found.state is not progress.State.IN_PROGRESS and not volume.leaving:
        return [*lines, "There are no active volume tasks", " "]
    state = found.state if is_running or found.state is not progress.State.IN_PROGRESS else progress.State.FAILED
    lines.append(f"{'Task':<20} : {'Remove brick' if volume.leaving else 'Rebalance'}")
    if volume.leaving:
        lines.append("Removed bricks:")
        lines += [str(brick) for one in volume.leaving for brick in one.bricks]
    return [*lines, f"{'Status':<20} : {state}", " "]


def _detail(volumes: Volumes, volume: Volume) -> list[str]:
    lines = [f"Status of volume: {volume.name}"]
    for brick in volume.bricks:
        is_up, pid = is_online(volumes, volume, brick)
        fields = {
            "Brick": f"Brick {brick}",
            "TCP Port": brick.port if is_up else "N/A",
            "Online": "Y" if is_up else "N",
            "Pid": pid if pid is not None else "N/A",
        }
        if volumes.is_own(brick.host):
            fields |= _space(Path(brick.path))
        lines += [RULE, *(f"{name:<20} : {value!s}" for name, value in fields.items())]
    return [*lines, RULE]


def _space(path: Path) -> dict[str, Any]:
    try:
        found = os.statvfs(path)
    except OSError as error:
        return {"Directory": error.strerror}
    kind, device, options = _mount_of(path)
    return {
        "File System": kind,
        "Device": device,
        "Mount Options": options,
        "Disk Space Free": size_text(found.f_bavail * found.f_frsize),
        "Total Disk Space": size_text(found.f_blocks * found.f_frsize),
        "Inode Count": found.f_files,
        "Free Inodes": found.f_ffree,
    }


def _mount_of(path: Path) -> tuple[str, str, str]:
    """Kind, device and options of the file system."""
    number = os.stat(path).st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    with open("/proc/self/mountinfo", errors="surrogateescape") as table:
        for line in table:
            fields = line.split(" ")
            if fields[2] == wanted:
                dash = fields.index("-")
                return fields[dash + 1], fields[dash + 2], fields[5]
    return "N/A", "N/A", "N/A"


def _clients(volumes: Volumes, volume: Volume) -> list[str]:
    lines = [f"Client connections for volume {volume.name}", RULE]
    for brick in volumes.own_bricks(volume):
        dump = dumps.dump(processes.brick_daemon(volumes, volume, brick))
        server = dump.get(f"protocol/server.{volume.name}-server", {})
        count = int(server.get("clients", "0"))
        lines += [f"Brick : {brick}", f"Clients connected : {count}"]
        for number in range(count):
            head = f"client[{number}]"
            lines.append(f"  {server.get(head, '?')}: {server.get(f'{head}.open_files', '0')} open files, "
                         f"{server.get(f'{head}.calls', '0')} calls under way")  # fmt: skip
        lines.append(RULE)
    return lines


def _data(volumes: Volumes, volume: Volume) -> dict[str, Any]:
    bricks = []
    for brick in volume.bricks:
        is_up, pid = is_online(volumes, volume, brick)
        bricks.append({"brick": str(brick), "port": brick.port, "online": is_up, "pid": pid})
    heald = processes.heal_daemon(volumes, volume).pid()
    return {"name": volume.name, "status": volume.status, "bricks": bricks, "self_heal_daemon": heald}


def need_online(volumes: Volumes, volume: Volume, what: str) -> None:
    """All bricks."""
    down = [str(brick) for brick in volume.bricks if not is_online(volumes, volume, brick)[0]]
    if down:
        raise UsageError(f"{volume.name}: failed: {what} needs all bricks; {', '.join(down)} cannot be reached.",
                         advice=f'"replctl volume start {volume.name} force" on that host starts it.')  # fmt: skip


COMMANDS = (list_, info, status)
