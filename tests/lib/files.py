# SPDX-License-Identifier: Apache-2.0
"""Test equipment for the file side: translators on real directories."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from repl.files.options import parse_options
from repl.files.translator import Context, Translator
from repl.files.translators.client import Client
from repl.files.translators.posix import Posix
from repl.files.translators.server import Server
from repl.files.values import ROOT_GFID, Caller, Loc
from tests.lib.wait import wait_for_async

ME = Caller(client="a", lock_owner=b"1")
HEALER = Caller(client="healer", is_internal=True)

T = TypeVar("T", bound=Translator)
_numbers = itertools.count(1)


def make(kind: type[T], name: str, children: Sequence[Translator] = (), context: Context | None = None, **options: str
         ) -> T:  # fmt: skip
    """A translator with its options as in a volfile; an underscore stands for a dash."""
    given = {key.replace("_", "-"): value for key, value in options.items()}
    parsed = parse_options(kind.OPTIONS, given, where=name)
    return kind(name, parsed, children, context or Context(wall_ns=time.time_ns))


@asynccontextmanager
async def posix(path: Path, **options: str) -> AsyncIterator[Posix]:
    """A brick that serves ``path`` (on a disk: a tmpfs keeps no trusted.* attributes)."""
    path.mkdir(exist_ok=True)
    brick = make(Posix, "brick", directory=str(path), **{"reserve": "0", "health_check_interval": "0"} | options)
    await brick.start()
    try:
        yield brick
    finally:
        await brick.stop()
        for task in list(brick.context.tasks):
            task.cancel()


@asynccontextmanager
async def served(*tops: Translator, context: Context | None = None, **options: str) -> AsyncIterator[Server]:
    """protocol/server above the given translators on a free port of loopback; everybody here may attach to them."""
    given = {f"auth.addr.{top.name}.allow": "127.0.0.1" for top in tops}
    given["transport.socket.listen-port"] = "0"
    given |= {key.replace("__", ".").replace("_", "-"): value for key, value in options.items()}
    server = make(Server, "server", tops, context or Context(process="server"), **given)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def attached(
    where: Server | int, volume: str, *, client: str = "client", wait_s: float = 10, is_told_once: bool = False,
    **options: str,
) -> AsyncIterator[Client]:  # fmt: skip
    """protocol/client attached to a volume at a server of ours or a port of loopback."""
    port = where if isinstance(where, int) else where.addresses[0][1]
    given = {"remote-host": "127.0.0.1", "remote-port": str(port), "remote-subvolume": volume}
    given |= {key.replace("__", ".").replace("_", "-"): value for key, value in options.items()}
    context = Context(process=client, wall_ns=time.time_ns, is_told_once=is_told_once)
    translator = make(Client, client, (), context, **given)
    await translator.start()
    try:
        if wait_s:
            await wait_for_async(lambda: translator.is_up, wait_s, f"{client} attached to {volume}")
        yield translator
    finally:
        await translator.stop()


def new_gfid() -> bytes:
    """Another one each time, easy to recognise."""
    return b"\xab" + bytes(11) + next(_numbers).to_bytes(4, "big")


def at(name: str | bytes, parent: bytes = ROOT_GFID) -> Loc:
    return Loc(parent=parent, name=name.encode() if isinstance(name, str) else name)
