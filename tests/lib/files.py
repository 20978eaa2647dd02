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
from repl.files.translators.posix import Posix
from repl.files.values import ROOT_GFID, Caller, Loc

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


def new_gfid() -> bytes:
    """Another one each time, easy to recognise."""
    return b"\xab" + bytes(11) + next(_numbers).to_bytes(4, "big")


def at(name: str | bytes, parent: bytes = ROOT_GFID) -> Loc:
    return Loc(parent=parent, name=name.encode() if isinstance(name, str) else name)
