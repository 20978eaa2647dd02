# SPDX-License-Identifier: Apache-2.0
"""A whole ``repld`` with a fake node and a fake engine: start, control socket, NBD socket, every way to end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from repl import config
from repl.cli.client import Client, NotRunning
from repl.daemon import service
from repl.daemon.production import run_loop
from repl.daemon.run_dir import ResourceLock, RunDir, running_pid
from repl.daemon.service import Service
from repl.engine import commands as ec
from repl.engine.events import EngineStats, Event, EventType, VolumeStats
from repl.errors import ConfigError, ReplError, RequestRefused
from repl.node import actions as act
from repl.node.settings import NodeSettings
from tests.lib.ports import free_ports
from tests.lib.wait import wait_for_async

DEADLINE_S = 30.0


class FakeEngine:
    def __init__(self) -> None:
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.pending: list[Event] = []
        self.is_destroyed = False
        self.ignores_stop = False

    def command(self, command: ec.Command, cookie: int = 0) -> bool:
        if isinstance(command, ec.Stop) and not self.ignores_stop:
            self.pending.append(Event(EventType.STOPPED))
            os.eventfd_write(self.wake_fd, 1)
        return True

    def event(self) -> Event | None:
        return self.pending.pop(0) if self.pending else None

    def volume_stats(self, volume: int) -> VolumeStats | None:
        return None

    def engine_stats(self) -> EngineStats:
        return EngineStats()

    def destroy(self) -> None:
        self.is_destroyed = True
        os.close(self.wake_fd)


class FakeNode:
    """Answers every command; "down" ends it unless it is stuck."""

    def __init__(self) -> None:
        self.actions: list[act.Action] = []
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.is_stuck = False
        self.down_error: ReplError | None = None
        self.up_error: ReplError | None = None

    def take_actions(self) -> list[act.Action]:
        taken, self.actions = self.actions, []
        return taken

    def command(self, token: object, verb: str, args: dict[str, Any]) -> None:
        self.commands.append((verb, args))
        if verb == "bug":
            raise ZeroDivisionError("bug")
        if verb == "down" and self.is_stuck:
            return
        error = {"down": self.down_error, "up": self.up_error}.get(verb)
        self.actions.append(act.Reply(token, {"verb": verb}, error))
        if verb == "down" and error is None:
            self.actions.append(act.Exit())
        self.actions.append(act.StateEvent(len(self.commands), "command", f"{verb} done"))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


class Rig:
    def __init__(self, folder: Path) -> None:
        self.run_dir = RunDir(folder / "run", "web")
        self.engine, self.node = FakeEngine(), FakeNode()
        ports = free_ports(3)
        text = (
            f"resource web {{ device minor 0; disk none; meta-disk internal; nbd {{ listen 127.0.0.1:{ports[0]}; }} "
            f"on alpha {{ address 127.0.0.1:{ports[1]}; }} on beta {{ address 127.0.0.1:{ports[2]}; }} }}"
        )
        self.nbd_port = ports[0]
        view = config.resource_for_node(config.load(Path("x.res"), text=text), "web", "alpha")
        self.make = lambda: Service(
            view,
            self.run_dir,
            make_engine=lambda view: self.engine,
            make_node=lambda settings, engine: self._node(settings),
            clock_s=lambda: 0.0,
        )

    def _node(self, settings: NodeSettings) -> Any:
        assert settings.resource == "web"
        return self.node

    async def call(self, verb: str, **args: Any) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            with Client(self.run_dir.control, "web") as client:
                return client.call(verb, answer_timeout_s=DEADLINE_S, **args)

        return await asyncio.get_running_loop().run_in_executor(None, work)


def serve(rig: Rig, case: Callable[[Rig], Awaitable[None]], *, up: bool = False) -> int:
    """Runs the service beside the case; the case has to end it."""

    async def run() -> int:
        async with asyncio.timeout(DEADLINE_S):
            running = asyncio.ensure_future(rig.make().run(up=up))
            await wait_for_async(lambda: rig.run_dir.control.exists() or running.done(), DEADLINE_S, "ready")
            await case(rig)
            return await running

    status = run_loop(run())
    assert not rig.run_dir.control.exists() and not rig.run_dir.nbd.exists()
    assert running_pid(rig.run_dir) is None
    return status


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_service_answers_and_ends_with_down(rig: Rig) -> None:
    async def case(rig: Rig) -> None:
        assert await rig.call("primary", force=True) == {"verb": "primary"}
        assert rig.node.commands == [("primary", {"force": True})]
        daemon = await rig.call("daemon")
        assert daemon["pid"] == os.getpid() and daemon["node"] == "alpha"
        assert [event["message"] for event in (await rig.call("events", after=0))["events"]] == ["primary done"]
        assert await rig.call("down") == {"verb": "down"}

    assert serve(rig, case) == 0
    assert rig.engine.is_destroyed


def test_service_listens_for_nbd_on_its_socket_and_on_tcp(rig: Rig) -> None:
    async def case(rig: Rig) -> None:
        for reader, writer in (
            await asyncio.open_unix_connection(rig.run_dir.nbd),
            await asyncio.open_connection("127.0.0.1", rig.nbd_port),
        ):
            assert (await reader.readexactly(18)).startswith(b"NBDMAGIC")
            writer.close()
        await rig.call("down")

    assert serve(rig, case) == 0


@pytest.mark.parametrize("verb", ["nbd-open", "nbd-info"])
def test_service_keeps_the_nbd_servers_verbs_to_itself(rig: Rig, verb: str) -> None:
    async def case(rig: Rig) -> None:
        with pytest.raises(ReplError, match="not a command"):
            await rig.call(verb, volume=0)
        assert not rig.node.commands
        await rig.call("down")

    assert serve(rig, case) == 0


def test_service_goes_down_on_sigterm(rig: Rig) -> None:
    async def case(rig: Rig) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    assert serve(rig, case) == 0
    assert rig.node.commands == [("down", {"force": True})]


def test_service_ends_at_once_on_the_second_signal(rig: Rig) -> None:
    rig.node.is_stuck = True

    async def case(rig: Rig) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await wait_for_async(lambda: rig.node.commands, DEADLINE_S, "down")
        os.kill(os.getpid(), signal.SIGTERM)

    assert serve(rig, case) == 1


def test_service_that_cannot_go_down_in_time_ends_all_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "DOWN_TIMEOUT_S", 0.05)
    rig.node.is_stuck = True

    async def case(rig: Rig) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    assert serve(rig, case) == 1


def test_service_whose_down_is_refused_after_a_signal_ends(rig: Rig) -> None:
    rig.node.down_error = RequestRefused("no")

    async def case(rig: Rig) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    assert serve(rig, case) == 1


def test_service_ends_after_a_bug_in_the_node(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    async def case(rig: Rig) -> None:
        with pytest.raises(ReplError):  # no answer ever comes, the connection is closed
            await rig.call("bug")

    assert serve(rig, case) == 20
    assert "internal error" in caplog.text


def test_service_with_an_engine_that_does_not_stop_ends(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "ENGINE_STOP_TIMEOUT_S", 0.05)
    rig.engine.ignores_stop = True

    async def case(rig: Rig) -> None:
        await rig.call("down")

    assert serve(rig, case) == 0
    assert not rig.engine.is_destroyed  # its thread may still use it


def test_service_with_up_brings_the_resource_up_first(rig: Rig) -> None:
    async def case(rig: Rig) -> None:
        await wait_for_async(lambda: rig.node.commands, DEADLINE_S, "up")
        assert rig.node.commands == [("up", {})]
        await rig.call("down")

    assert serve(rig, case, up=True) == 0


def test_service_that_cannot_come_up_ends_with_an_error(rig: Rig) -> None:
    rig.node.up_error = RequestRefused("no disk", number=104)

    async def case(rig: Rig) -> None:
        return

    assert serve(rig, case, up=True) == 1


def test_service_of_a_resource_that_runs_is_refused(rig: Rig) -> None:
    rig.run_dir.create()
    lock = ResourceLock(rig.run_dir)
    lock.take()
    try:
        with pytest.raises(RequestRefused, match="already running"):
            asyncio.run(rig.make().run())
    finally:
        lock.release()


def test_service_whose_nbd_port_is_taken_says_so_and_cleans_up(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", rig.nbd_port)):
        with pytest.raises(ConfigError, match=str(rig.nbd_port)):
            asyncio.run(rig.make().run())
    assert rig.engine.is_destroyed and running_pid(rig.run_dir) is None


def test_client_of_a_resource_that_does_not_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="not running"):
        Client(tmp_path / "web.sock", "web")
