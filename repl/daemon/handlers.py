# SPDX-License-Identifier: Apache-2.0
"""Runs the commands of the ``handlers`` section as drbdadm does: ``sh -c COMMAND`` with DRBD's variables.

Inputs: ``RunHandler`` actions.  Output: one call of ``on_done`` with the exit status (128 + n if signal n ended it,
127 if it cannot be started).  Each command has a process group of its own, which is killed when its time is over
and at the end of the process.  What it prints goes to the log line by line; it is not trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from repl.config.model import NodeView
from repl.node.actions import RunHandler

LINE_CHARS_MAX = 256
LINES_MAX = 200
READ_BYTES = 4096
PIPE_BYTES = 65536
STATUS_CANNOT_START = 127
SHELL = "/bin/sh"
# The last one is where replctl and repl-snapshot lie if they were installed into an environment of their own.
PATH = f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{Path(sys.executable).parent}"

_UNPRINTABLE = re.compile(r"[^ -~\u00a1-\uffff]")
_log = logging.getLogger("repl.daemon")


class HandlerRunner:
    """The running commands of one resource."""

    def __init__(self, environment: Callable[[RunHandler], dict[str, str]], *, timeout_s: float = 0) -> None:
        """``timeout_s``: 0 = a command may take as long as it likes."""
        self._environment = environment
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, action: RunHandler, on_done: Callable[[int], None]) -> None:
        async def run() -> None:
            on_done(await self._run(action))

        task = asyncio.get_running_loop().create_task(run(), name=f"handler {action.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Kill what still runs; nobody hears of it any more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, action: RunHandler) -> int:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        output = _Output(action.name, read_end)
        try:
            process = await asyncio.create_subprocess_exec(
                SHELL,
                "-c",
                action.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                cwd="/",
                env=self._environment(action),
                start_new_session=True,
            )
        except OSError as error:
            _log.error("handler %s cannot be started: %s", action.name, error)
            os.close(write_end)
            os.close(read_end)
            return STATUS_CANNOT_START
        os.close(write_end)
        loop = asyncio.get_running_loop()
        loop.add_reader(read_end, output.read)
        try:
            # Only the command counts; what it has left behind may keep the pipe open for as long as it likes.
            return await self._wait(action, process)
        finally:
            output.read_rest()
            loop.remove_reader(read_end)
            output.finish()
            os.close(read_end)

    async def _wait(self, action: RunHandler, process: asyncio.subprocess.Process) -> int:
        try:
            async with asyncio.timeout(self._timeout_s or None):
                status = await process.wait()
        except TimeoutError:
            _log.error("handler %s: not done after %g s (handler-timeout), killed", action.name, self._timeout_s)
            _kill_group(process.pid)
            status = await process.wait()
        except asyncio.CancelledError:
            _log.warning("handler %s: killed, the resource goes down", action.name)
            _kill_group(process.pid)
            await process.wait()
            raise
        return status if status >= 0 else 128 - status


class _Output:
    """Lines of a pipe, bounded in length and number."""

    def __init__(self, name: str, fd: int) -> None:
        self.is_over = False
        self._name = name
        self._fd = fd
        self._rest = b""
        self._is_cut = False  # the present line is longer than what was logged of it
        self._lines = 0

    def read(self) -> None:
        """What is there now, one portion: a command that prints on and on holds up nobody else."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.is_over = True
            asyncio.get_running_loop().remove_reader(self._fd)
            return
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._say(line)
            self._is_cut = False
        if len(rest) > LINE_CHARS_MAX:
            self._say(rest)
            self._is_cut, rest = True, b""
        self._rest = rest

    def read_rest(self) -> None:
        """What is left in the pipe, but not what others go on writing into it."""
        for _ in range(PIPE_BYTES // READ_BYTES):
            if self.is_over:
                return
            self.read()

    def finish(self) -> None:
        if self._rest:
            self._say(self._rest)
        if self._lines > LINES_MAX:
            _log.warning("handler %s: %d more lines are not shown", self._name, self._lines - LINES_MAX)

    def _say(self, line: bytes) -> None:
        if self._is_cut:
            return
        self._lines += 1
        if self._lines <= LINES_MAX:
            text = _UNPRINTABLE.sub("?", line.decode("utf-8", "replace").rstrip())
            more = " ..." if len(text) > LINE_CHARS_MAX else ""
            _log.info("handler %s: %s%s", self._name, text[:LINE_CHARS_MAX], more)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


# ---- environment ----


def usual_environment(
    view: NodeView, *, config_file: Path | None = None, run_dir: Path | None = None
) -> Callable[[RunHandler], dict[str, str]]:
    """What existing scripts read; a command about the whole resource gets lists, and names with volume numbers."""
    common = {"PATH": PATH, "HOME": "/", "TERM": "linux", **_of_resource(view)}
    if config_file is not None:
        common["DRBD_CONF"] = common["REPL_CONFIG"] = str(config_file)
    if run_dir is not None:
        common["REPL_RUN_DIR"] = str(run_dir)

    def environment(action: RunHandler) -> dict[str, str]:
        return {**common, **_of_volumes(view, action.volume), **action.environment}

    return environment


def _of_resource(view: NodeView) -> dict[str, str]:
    me, peer = view.my_address, view.peer_address
    peer_name = view.peer.names[0] if view.peer.names else view.peer.label
    my_name = view.me.names[0] if view.me.names else view.me.label
    found = {
        "DRBD_RESOURCE": view.name,
        "DRBD_PEER": peer_name,
        "DRBD_PEERS": peer_name,
        "DRBD_PEER_AF": peer.family.value,
        "DRBD_PEER_ADDRESS": peer.host,
        "DRBD_MY_AF": me.family.value,
        "DRBD_MY_ADDRESS": me.host,
        "DRBD_NODE_ID": str(view.my_node_id),
        "DRBD_MY_NODE_ID": str(view.my_node_id),
        "DRBD_PEER_NODE_ID": str(view.peer_node_id),
        "REPL_NODE": my_name,
    }
    for node_id, name in ((view.my_node_id, my_name), (view.peer_node_id, peer_name)):
        found[f"DRBD_NODE_ID_{node_id}"] = name
    return found


def _of_volumes(view: NodeView, number: int) -> dict[str, str]:
    volumes = [v for v in view.volumes if number in (-1, v.number)]
    disks = {v.number: v.disk_path or "none" for v in volumes}
    found = {
        "DRBD_VOLUME": " ".join(str(v.number) for v in volumes),
        "DRBD_MINOR": " ".join(str(v.device.minor) for v in volumes),
        "DRBD_LL_DISK": " ".join(disks.values()),
        "DRBD_BACKING_DEV": " ".join(disks.values()),
    }
    for v in volumes:
        found[f"DRBD_MINOR_{v.number}"] = str(v.device.minor)
        found[f"DRBD_LL_DISK_{v.number}"] = found[f"DRBD_BACKING_DEV_{v.number}"] = disks[v.number]
    return found
