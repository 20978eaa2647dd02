# SPDX-License-Identifier: Apache-2.0
"""The production wiring: the compiled engine, the node, random numbers and the clock of the system."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

from repl.config.model import NodeView
from repl.daemon.run_dir import RunDir
from repl.daemon.service import Engine as EngineLike
from repl.daemon.service import Service
from repl.daemon.shell import NodeMachine
from repl.drbd.digests import digest_number
from repl.engine.binding import Engine, digest
from repl.errors import ConfigError
from repl.node.node import Node
from repl.node.settings import NodeSettings

UUID_BITS = 64

T = TypeVar("T")


def make_engine(view: NodeView) -> EngineLike:
    return Engine(view.options.busy_poll_us)


def make_node(settings: NodeSettings, engine: EngineLike) -> NodeMachine:
    return Node(
        settings,
        random=lambda: secrets.randbits(UUID_BITS),
        random_bytes=os.urandom,
        stats=engine,
        clock_ms=lambda: time.monotonic_ns() // 1_000_000,
        wall_s=time.time,
    )


def check_algorithms(view: NodeView) -> None:
    """Refuse an algorithm that this build of the engine does not have."""
    net = view.net
    for option, name in (
        ("data-integrity-alg", net.data_integrity_alg),
        ("verify-alg", net.verify_alg),
        ("csums-alg", net.csums_alg),
    ):
        if name and not digest(digest_number(name, option), b""):
            raise ConfigError(
                f"resource {view.name}: {option} '{name}' is not available: this program was built without libcrypto.",
                advice="Use crc32c or xxhash64, or install libssl-dev and build again.",
            )


def make_service(view: NodeView, run_dir: RunDir, config_file: Path) -> Service:
    check_algorithms(view)
    return Service(
        view, run_dir, make_engine=make_engine, make_node=make_node, clock_s=time.time, config_file=config_file
    )


def run_loop(main: Coroutine[object, object, T]) -> T:
    """On uvloop where it is installed, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
