# SPDX-License-Identifier: Apache-2.0
"""Questions to the heal daemon of a volume, or, when it does not run, about a graph of our own.

Inputs: a request of ``repl/files/heal/control.py``.  Outputs: its answer.  Errors: what the answer says
(``RequestRefused``), ``NotRunning`` for what only the daemon can do.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from repl.cli.volume import processes
from repl.cli.volume.context import Volumes
from repl.clock import wall_ns
from repl.errors import RequestRefused, WaitTimedOut
from repl.files.volume.model import Volume

ANSWER_TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 5.0
WITHOUT_DAEMON = ("info", "explain", "resolve")


class NotRunning(RequestRefused):
    """There is no heal daemon."""

    code = "not-running"


class Link:
    """One connection to the daemon; one request after another."""

    def __init__(self, path: Path, name: str) -> None:
        self._name = name
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(CONNECT_TIMEOUT_S)
        try:
            self._sock.connect(str(path))
        except OSError as error:
            self._sock.close()
            raise NotRunning(f"{name}: the self-heal daemon does not run here.",
                             advice=f'"replctl volume start {name} force" starts it.') from error  # fmt: skip
        self._sock.settimeout(ANSWER_TIMEOUT_S)
        self._file = self._sock.makefile("rb")

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, **request: object) -> None:
        self._sock.sendall(json.dumps(request).encode() + b"\n")

    def receive(self) -> Any:
        try:
            line = self._file.readline()
        except TimeoutError:
            raise WaitTimedOut(f"{self._name}: the self-heal daemon does not answer.") from None
        if not line:
            raise NotRunning(f"{self._name}: the self-heal daemon has ended.")
        return unpack(self._name, json.loads(line))

    def ask(self, **request: object) -> Any:
        self.send(**request)
        return self.receive()

    def close(self) -> None:
        self._file.close()
        self._sock.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unpack(name: str, said: dict[str, Any]) -> Any:
    if "ok" in said:
        return said["ok"]
    raise RequestRefused(f"{name}: {said['error']}", advice=said.get("advice", ""))


def connect(volumes: Volumes, volume: Volume) -> Link:
    return Link(processes.heal_socket(volumes, volume.name), volume.name)


def ask(volumes: Volumes, volume: Volume, **request: object) -> Any:
    """One question."""
    try:
        with connect(volumes, volume) as link:
            return link.ask(**request)
    except NotRunning:
        if request.get("do") not in WITHOUT_DAEMON:
            raise
    return unpack(volume.name, asyncio.run(_ask_alone(volumes.client_volfile(volume.name), request)))


async def _ask_alone(path: Path, request: dict[str, object]) -> dict[str, Any]:
    # Loaded when needed: other commands start in half the time without.
    from repl.files import volfile
    from repl.files.graph import Graph
    from repl.files.heal.control import answer
    from repl.files.heal.daemon import HealDaemon
    from repl.files.heal.main import prune
    from repl.files.translator import Context

    chance = random.Random()
    name = f"replctl-{socket.gethostname()}-{chance.randbytes(6).hex()}"
    graph = Graph(prune(volfile.load(path)), Context(socket.gethostname(), name, chance, wall_ns))
    await graph.start()
    try:
        return await answer(HealDaemon(graph), request)
    finally:
        await graph.stop()
