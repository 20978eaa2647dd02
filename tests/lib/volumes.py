# SPDX-License-Identifier: Apache-2.0
"""A replicated volume of real processes: bricks that are killed, frozen and cut off, mounts, a heal daemon.

The volfiles are those that ``replctl volume`` writes.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import stat
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from repl.files.volume import graphs, settings
from repl.files.volume.model import Place, create
from tests.lib.mounts import Mount
from tests.lib.ports import free_port
from tests.lib.process import Process
from tests.lib.wait import wait_for

LAYERS = tuple(key for key, _, _ in settings.LAYERS)
NO_LAYERS = dict.fromkeys(LAYERS, "off")
ALL_LAYERS = dict.fromkeys(LAYERS, "on")
# What a sweep may leave while somebody writes.
PASSING = {"it is being written", "something else has to be healed first"}


def _ports() -> Iterator[int]:
    while True:
        yield free_port()


class VolumeProcesses:
    """``directories[i]`` and ``bricks[i]`` in the order of the volume: copies are neighbours."""

    def __init__(self, folder: Path, count: int = 4, *, replica: int = 2, arbiter: bool = False,
                 options: dict[str, str] | None = None, directories: Sequence[Path] = ()) -> None:  # fmt: skip
        self.folder = folder
        self.replica = replica
        self.directories = list(directories) or [folder / f"brick{number}" for number in range(count)]
        places = [Place("127.0.0.1", str(directory)) for directory in self.directories]
        self.volume = create("vol", places, _ports(), replica=replica, arbiter=arbiter)
        self.volume.options |= options or {}
        self.bricks: list[Process | None] = [None] * count
        self.daemon: Process | None = None
        self.control = folder / "heald.sock"
        self.volfile = folder / "client.vol"
        self._stack = ExitStack()
        for directory in self.directories:
            directory.mkdir(exist_ok=True)
            os.setxattr(directory, "trusted.glusterfs.volume-id", uuid.UUID(self.volume.id).bytes)
        self.write_volfiles()

    def write_volfiles(self, ports: Sequence[int] = ()) -> None:
        """``ports``: where clients find the bricks, if not at the bricks themselves."""
        for number, brick in enumerate(self.volume.bricks):
            (self.folder / f"brick{number}.vol").write_text(graphs.brick_volfile(self.volume, brick))
        seen = copy.deepcopy(self.volume)
        for brick, port in zip(seen.bricks, ports, strict=False):
            brick.port = port
        self.volfile.write_text(graphs.client_volfile(seen))

    # ---- bricks ----

    def _run(self, module: str, *arguments: object, log: str) -> Process:
        command: list[Any] = [sys.executable, "-m", module, "-N", *arguments]
        return Process(command, self.folder / log, env={"REPL_RUN_DIR": str(self.folder / "run")})

    def start(self, *numbers: int) -> None:
        """Those bricks, or all that do not run; returns when they serve."""
        chosen = numbers or [n for n, brick in enumerate(self.bricks) if brick is None]
        begun = []
        for number in chosen:
            log = self.folder / f"brick{number}.log"
            before = log.stat().st_size if log.exists() else 0
            found = self._run("repl.files.brick", "-f", self.folder / f"brick{number}.vol", log=log.name)
            self.bricks[number] = found
            begun.append((found, before))
        for found, before in begun:
            found.wait_until(lambda f=found, b=before: "serving" in f.log()[b:], 30, "a brick that serves")

    def brick(self, number: int) -> Process:
        found = self.bricks[number]
        assert found is not None
        return found

    def kill(self, number: int) -> None:
        self.brick(number).kill()
        self.bricks[number] = None

    # ---- mounts, heals ----

    def mount(self, name: str = "mnt", options: Sequence[str] = ()) -> Mount:
        found = Mount(self.folder, self.volfile, options, name)
        self._stack.callback(_unmount, found)
        return found

    def heal(self) -> None:
        """Start the daemon."""
        log = self.folder / "heald.log"
        before = log.stat().st_size if log.exists() else 0
        self.daemon = self._run("repl.files.heal.main", "-f", self.volfile, "-s", self.control, log=log.name)
        self.daemon.wait_until(lambda: "healing" in self.daemon_log()[before:], 30, "a daemon that heals")

    def daemon_log(self) -> str:
        return (self.folder / "heald.log").read_text(errors="replace")

    def ask(self, **request: object) -> Any:
        """The daemon's answer."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(120)
            sock.connect(str(self.control))
            sock.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(sock.makefile().readline())
        assert "ok" in answer, answer
        return answer["ok"]

    def is_healed(self) -> bool:
        """All bricks are there and nobody is accused."""
        for status in self.ask(do="heal", wait=True).values():
            if len(status["up"]) < self.replica or set(status["undone"]) - PASSING:
                return False
        return True

    def wait_healed(self, timeout_s: float = 60) -> None:
        """Until nothing is left to heal and no copy accuses another."""
        wait_for(lambda: self.is_healed() and not self.pending(), timeout_s, "all bricks healed",
                 describe=lambda: (self.ask(do="heal", wait=True), self.pending()))  # fmt: skip

    # ---- what lies on the bricks ----

    def tree(self, number: int) -> dict[str, tuple[Any, ...]]:
        """Everything but .glusterfs: type and mode, owner, size, content, users' attributes, gfid."""
        root, found = self.directories[number], {}
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            if name.startswith((".glusterfs", "lost+found")):
                continue
            st = path.lstat()
            content: Any = path.read_bytes() if stat.S_ISREG(st.st_mode) else b""
            if path.is_symlink():
                content = os.readlink(path)
            keys = os.listxattr(path, follow_symlinks=False)
            kept = {k: os.getxattr(path, k, follow_symlinks=False) for k in keys
                    if k.startswith(("user.", "trusted.gfid", "trusted.glusterfs.dht"))}  # fmt: skip
            found[name] = (st.st_mode, st.st_uid, st.st_gid, content, kept)
        return found

    def assert_equal(self) -> None:
        """The copies of each set are the same, and no marks are left."""
        for first in range(0, len(self.directories), self.replica):
            one = self.tree(first)
            for other in range(first + 1, first + self.replica):
                another = self.tree(other)
                differing = [name for name in {*one, *another} if one.get(name) != another.get(name)]
                assert not differing, f"bricks {first} and {other} differ: {differing[:10]}"
        assert self.pending() == []

    def pending(self) -> list[str]:
        """Marks of all bricks, files without names included."""
        found = []
        for root in self.directories:
            for path in [root, *root.rglob("*")]:
                if ".glusterfs/indices" in str(path) or path.is_symlink() and ".glusterfs" in str(path):
                    continue
                try:
                    for key in os.listxattr(path, follow_symlinks=False):
                        if key.startswith("trusted.afr.") and any(os.getxattr(path, key, follow_symlinks=False)):
                            found.append(f"{path} {key}")
                except OSError:  # gone meanwhile
                    continue
        return found

    def stop(self) -> None:
        self._stack.close()
        for process in (self.daemon, *self.bricks):
            if process is not None:
                process.stop(20)
        for log in self.folder.glob("*.log"):
            text = log.read_text(errors="replace")
            for word in ("Traceback", "never awaited"):
                assert word not in text, f"{log}:\n{text[-4000:]}"


def _unmount(mount: Mount) -> None:
    if mount.process.is_running:
        mount.unmount()


@contextmanager
def running_volume(folder: Path, count: int = 4, **options: Any) -> Iterator[VolumeProcesses]:
    """All bricks serve; the logs must not have a traceback at the end."""
    found = VolumeProcesses(folder, count, **options)
    try:
        found.start()
        yield found
    finally:
        found.stop()
