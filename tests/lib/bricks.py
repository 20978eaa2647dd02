# SPDX-License-Identifier: Apache-2.0
"""Brick processes of the real program, and volfiles of clients that use them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lib.ports import free_port
from tests.lib.process import Process

SERVER = """
volume posix
  type storage/posix
  option directory {directory}
  option reserve 0
end-volume

volume locks
  type features/locks
  subvolumes posix
end-volume

volume brick
  type features/upcall
  subvolumes locks
end-volume

volume server
  type protocol/server
  option transport.socket.listen-port {port}
  option transport.socket.bind-address 127.0.0.1
  option auth.addr.brick.allow 127.0.0.1
  subvolumes brick
end-volume
"""
CLIENT = """
volume {name}
  type protocol/client
  option remote-host 127.0.0.1
  option remote-port {port}
  option remote-subvolume brick
end-volume
"""


class BrickProcess:
    """``repl-brickd`` for one directory; ``start`` again after ``kill``."""

    def __init__(self, folder: Path, number: int) -> None:
        self.name = f"c{number}"
        self.directory = folder / f"brick{number}"
        self.directory.mkdir(exist_ok=True)
        self.port = free_port()
        self.volfile = folder / f"brick{number}.vol"
        self.volfile.write_text(SERVER.format(directory=self.directory, port=self.port))
        self._folder = folder
        self.process: Process
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "repl.files.brick", "-N", "-f", self.volfile]
        log = self._folder / f"{self.volfile.stem}.log"
        before = log.stat().st_size if log.exists() else 0
        self.process = Process(command, log, env={"REPL_RUN_DIR": str(self._folder / "run")})
        self.process.wait_until(lambda: "serving" in self.process.log()[before:], 20, "a brick that serves")

    def kill(self) -> None:
        self.process.popen.kill()
        self.process.popen.wait(20)

    @property
    def client(self) -> str:
        return CLIENT.format(name=self.name, port=self.port)


@contextmanager
def bricks(folder: Path, count: int) -> Iterator[list[BrickProcess]]:
    found: list[BrickProcess] = []
    try:
        for number in range(count):
            found.append(BrickProcess(folder, number))
        yield found
    finally:
        for brick in found:
            brick.kill()
        for brick in found:
            assert "Traceback" not in brick.process.log(), brick.process.log()


def distribute(found: Sequence[BrickProcess], more: str = "", **options: object) -> str:
    """A client's volfile."""
    lines = [f"  option {key.replace('_', '-')} {value}" for key, value in options.items()]
    names = " ".join(brick.name for brick in found)
    volume = ["volume dist", "  type cluster/distribute", *lines, f"  subvolumes {names}", "end-volume", ""]
    return "".join(brick.client for brick in found) + "\n" + "\n".join(volume) + more
