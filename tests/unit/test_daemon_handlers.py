# SPDX-License-Identifier: Apache-2.0
"""Handlers run as real commands: environment, exit status, output that is not trusted, limits."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from repl import config
from repl.config.model import NodeView
from repl.daemon.handlers import LINE_CHARS_MAX, LINES_MAX, HandlerRunner, usual_environment
from repl.node.actions import RunHandler
from tests.lib.wait import wait_for_async

DEADLINE_S = 20.0
PATHS = {"PATH": os.environ["PATH"]}
RESOURCE = """
resource r0 {
    volume 0 { device minor 3; disk /disk/a; meta-disk internal; }
    volume 1 { device minor 4; disk /disk/b; meta-disk internal; }
    on alpha { address 192.0.2.1:7788; node-id 0; }
    on bravo { address 192.0.2.2:7788; node-id 1; }
}
"""


def run(case: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await case()

    asyncio.run(limited())


def status_of(command: str, *, timeout_s: float = 0, **environment: str) -> int:
    found: list[int] = []

    async def case() -> None:
        runner = HandlerRunner(lambda action: {**PATHS, **action.environment}, timeout_s=timeout_s)
        runner.start(RunHandler(1, "fence-peer", command, -1, environment), found.append)
        await wait_for_async(lambda: found, DEADLINE_S, "the handler's end")
        await runner.close()

    run(case)
    return found[0]


@pytest.mark.parametrize(
    ("command", "status"), [("exit 7", 7), ("true", 0), ("kill -9 $$", 137), ("no-such-thing", 127)]
)
def test_exit_status(command: str, status: int) -> None:
    assert status_of(command) == status


def test_environment_of_the_event_is_all_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "1")
    out = tmp_path / "env"
    assert status_of(f"env > {out}", DRBD_CSTATE="Connected") == 0
    names = {line.partition("=")[0] for line in out.read_text().splitlines()}
    assert "DRBD_CSTATE" in names and "SECRET_OF_THE_DAEMON" not in names


def test_output_is_logged_by_line_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="repl.daemon")
    long = LINE_CHARS_MAX * 40
    script = f"printf 'one\\ntw\\033[31mo\\n'; head -c {long} /dev/zero | tr '\\0' x; echo; echo after >&2"
    assert status_of(script) == 0
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:2] == ["handler fence-peer: one", "handler fence-peer: tw?[31mo"]
    assert lines[2].startswith("handler fence-peer: xxx") and len(lines[2]) < LINE_CHARS_MAX + 40
    assert lines[3:] == ["handler fence-peer: after"]


def test_endless_output_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="repl.daemon")
    assert status_of(f"yes | head -n {LINES_MAX * 10}") == 0
    assert len(caplog.records) == LINES_MAX + 1
    assert "more lines are not shown" in caplog.records[-1].getMessage()


def test_child_that_keeps_the_output_open_holds_up_nothing(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    assert status_of(f"sleep 1000 & echo $! > {pid_file}; exit 4") == 4
    os.kill(int(pid_file.read_text()), 9)


def test_time_limit_kills_the_whole_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    command = f"sleep 1000 & echo $! > {pid_file}; wait"
    assert status_of(command, timeout_s=1.0) == 137
    run(lambda: wait_for_async(lambda: not _is_alive(int(pid_file.read_text())), DEADLINE_S, "the child's end"))


def test_close_kills_what_still_runs(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    async def case() -> None:
        found: list[int] = []
        runner = HandlerRunner(lambda action: dict(PATHS))
        runner.start(RunHandler(1, "fence-peer", f"echo $$ > {pid_file}; sleep 1000"), found.append)
        await wait_for_async(lambda: pid_file.exists() and pid_file.read_text().strip(), DEADLINE_S, "the start")
        await runner.close()
        assert not found
        assert not _is_alive(int(pid_file.read_text()))

    run(case)


def test_shell_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repl.daemon.handlers.SHELL", "/nonexistent/sh")
    assert status_of("true") == 127


def test_usual_environment_of_a_volume_and_of_the_resource(tmp_path: Path) -> None:
    view = _view(tmp_path)
    environment = usual_environment(view, config_file=Path("/etc/drbd.conf"), run_dir=Path("/run/repl"))
    one = environment(RunHandler(1, "split-brain", "x", 1, {"DRBD_CSTATE": "StandAlone"}))
    wanted = {
        "DRBD_RESOURCE": "r0", "DRBD_VOLUME": "1", "DRBD_MINOR": "4", "DRBD_MINOR_1": "4", "DRBD_LL_DISK": "/disk/b",
        "DRBD_BACKING_DEV": "/disk/b", "DRBD_PEER": "bravo", "DRBD_PEERS": "bravo", "DRBD_PEER_AF": "ipv4",
        "DRBD_PEER_ADDRESS": "192.0.2.2", "DRBD_MY_AF": "ipv4", "DRBD_MY_ADDRESS": "192.0.2.1", "DRBD_MY_NODE_ID": "0",
        "DRBD_PEER_NODE_ID": "1", "DRBD_NODE_ID_0": "alpha", "DRBD_NODE_ID_1": "bravo", "DRBD_CSTATE": "StandAlone",
        "DRBD_CONF": "/etc/drbd.conf", "REPL_RUN_DIR": "/run/repl", "REPL_NODE": "alpha",
    }  # fmt: skip
    assert {name: one.get(name) for name in wanted} == wanted
    assert "DRBD_MINOR_0" not in one
    both = environment(RunHandler(1, "fence-peer", "x"))
    assert both["DRBD_VOLUME"] == "0 1" and both["DRBD_MINOR"] == "3 4"
    assert (both["DRBD_MINOR_0"], both["DRBD_BACKING_DEV_1"]) == ("3", "/disk/b")


def _view(tmp_path: Path) -> NodeView:
    path = tmp_path / "r0.res"
    path.write_text(RESOURCE)
    return config.resource_for_node(config.load(path), "r0", "alpha")


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
