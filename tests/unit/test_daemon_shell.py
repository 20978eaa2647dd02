# SPDX-License-Identifier: Apache-2.0
"""The shell carries out a scripted node's actions on real sockets, files and timers."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nbd.export import Export, Refusal
from nbd.negotiation import Finished
from repl.config.model import Address, AddressFamily, Device, MetaDisk, MetaDiskKind, VolumeView, typed_disk
from repl.daemon import link
from repl.daemon.disks import OpenedDisk
from repl.daemon.exports import Exports
from repl.daemon.handlers import HandlerRunner
from repl.daemon.journal import ANSWER_EVENTS_MAX, EVENTS_MAX, Journal
from repl.daemon.link import LinkPlaces
from repl.daemon.shell import PEER_STREAMS, Shell
from repl.engine import commands as ec
from repl.engine.events import Event, EventType
from repl.errors import RequestRefused, StateRefused
from repl.node import actions as act
from repl.node.disk import Prepared
from tests.lib.ports import free_port
from tests.lib.wait import wait_for_async

DEADLINE_S = 20.0
VIEW = VolumeView(0, Device(0), "/disk", MetaDisk(MetaDiskKind.INTERNAL), typed_disk({}))


class FakeEngine:
    """A ring of ``room`` commands."""

    def __init__(self) -> None:
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.commands: list[tuple[ec.Command, int]] = []
        self.events: deque[Event] = deque()
        self.room = 1 << 30

    def command(self, command: ec.Command, cookie: int = 0) -> bool:
        if self.room == 0:
            return False
        self.room -= 1
        self.commands.append((command, cookie))
        return True

    def event(self) -> Event | None:
        return self.events.popleft() if self.events else None

    def post(self, *events: Event) -> None:
        self.events += events
        os.eventfd_write(self.wake_fd, 1)


class FakeNode:
    """Keeps its calls; ``on_call`` may add actions."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.actions: list[act.Action] = []
        self.on_call: Callable[[str, tuple[Any, ...]], None] = lambda name, args: None

    def take_actions(self) -> list[act.Action]:
        taken, self.actions = self.actions, []
        return taken

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*args: Any) -> None:
            self.calls.append((name, *args))
            self.on_call(name, args)

        return call

    def called(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]


class Rig:
    """A shell between a fake node and a fake engine."""

    def __init__(self, **options: Any) -> None:
        self.engine = FakeEngine()
        self.node: Any = FakeNode()
        self.ports = (free_port(), free_port())
        self.exits: list[str] = []
        self.fatal: list[BaseException] = []
        mine, peer = (Address(AddressFamily.IPV4, "127.0.0.1", str(port)) for port in self.ports)
        self.shell = Shell(
            self.node,
            self.engine,
            places=LinkPlaces(mine, peer),
            volumes={0: VIEW},
            journal=Journal("r0", lambda: 1.5),
            handlers=HandlerRunner(lambda action: dict(action.environment)),
            on_exit=lambda: self.exits.append("exit"),
            on_fatal=self.fatal.append,
            **options,
        )
        self.shell.start()

    def do(self, *actions: act.Action) -> None:
        """Let the node want this."""
        self.node.actions += actions
        self.shell.nbd_closed(99)

    async def until_called(self, name: str, count: int = 1) -> list[tuple[Any, ...]]:
        await wait_for_async(lambda: len(self.node.called(name)) >= count, DEADLINE_S, f"{name} x {count}")
        found: list[tuple[Any, ...]] = self.node.called(name)
        return found


def rigged(case: Callable[[Rig], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        rig = Rig(**options)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await case(rig)
        finally:
            await rig.shell.close()
            os.close(rig.engine.wake_fd)

    asyncio.run(run())


# Commands and replies


def test_shell_command_ends_with_the_nodes_reply() -> None:
    async def case(rig: Rig) -> None:
        def reply(name: str, args: tuple[Any, ...]) -> None:
            if name == "command":
                rig.node.actions.append(act.Reply(args[0], {"verb": args[1], **args[2]}))

        rig.node.on_call = reply
        assert await rig.shell.ask("primary", {"force": True}) == {"verb": "primary", "force": True}

    rigged(case)


def test_shell_command_refused_raises_the_error() -> None:
    async def case(rig: Rig) -> None:
        rig.node.on_call = lambda name, args: rig.node.actions.append(
            act.Reply(args[0], error=StateRefused("no", number=-1))
        )
        with pytest.raises(StateRefused):
            await rig.shell.ask("primary", {})

    rigged(case)


def test_shell_command_from_inside_a_reply_is_carried_out_after_it() -> None:
    async def case(rig: Rig) -> None:
        order: list[str] = []

        def reply(name: str, args: tuple[Any, ...]) -> None:
            if name == "command":
                rig.node.actions += [act.Reply(args[0], {}), act.EngineCommand(ec.Ping(), len(order) + 1)]

        def first(result: dict[str, Any], error: Exception | None) -> None:
            rig.shell.command("second", {}, lambda result, error: order.append("second"))
            order.append("first")

        rig.node.on_call = reply
        rig.shell.command("first", {}, first)
        assert order == ["first", "second"]
        assert len(rig.engine.commands) == 2

    rigged(case)


def test_shell_too_many_commands_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repl.daemon.shell.COMMANDS_MAX", 2)

    async def case(rig: Rig) -> None:
        for _ in range(2):
            rig.shell.command("wait", {}, lambda result, error: None)
        with pytest.raises(RequestRefused):
            await rig.shell.ask("wait", {})

    rigged(case)


def test_shell_error_out_of_the_node_is_fatal_once() -> None:
    async def case(rig: Rig) -> None:
        def fail(name: str, args: tuple[Any, ...]) -> None:
            raise ZeroDivisionError("bug")

        rig.node.on_call = fail
        rig.shell.nbd_closed(0)
        rig.shell.nbd_closed(0)
        assert len(rig.fatal) == 1 and len(rig.node.calls) == 1

    rigged(case)


# Engine


def test_shell_engine_commands_keep_their_order_when_the_ring_is_full() -> None:
    async def case(rig: Rig) -> None:
        rig.engine.room = 2
        rig.do(*(act.EngineCommand(ec.StreamResume(number), number) for number in range(5)))
        assert len(rig.engine.commands) == 2
        rig.engine.room = 1
        rig.do(act.EngineCommand(ec.Ping(), 99))
        await wait_for_async(lambda: len(rig.engine.commands) == 3, DEADLINE_S)
        rig.engine.room = 10
        await wait_for_async(lambda: len(rig.engine.commands) == 6, DEADLINE_S)
        assert [cookie for _, cookie in rig.engine.commands] == [0, 1, 2, 3, 4, 99]

    rigged(case)


def test_shell_engine_events_reach_the_node_in_order() -> None:
    async def case(rig: Rig) -> None:
        rig.engine.post(*(Event(EventType.DONE, cookie=number) for number in range(1200)))
        calls = await rig.until_called("engine_event", 1200)
        assert [event.cookie for (event,) in calls] == list(range(1200))

    rigged(case)


def test_shell_stopped_event_is_the_shells_own() -> None:
    async def case(rig: Rig) -> None:
        rig.engine.post(Event(EventType.STOPPED))
        await rig.shell.engine_stopped.wait()
        assert not rig.node.calls

    rigged(case)


# Timers, exit, events


def test_shell_timer_runs_out_once_and_a_cancelled_one_never() -> None:
    async def case(rig: Rig) -> None:
        rig.do(act.SetTimer(1, 10), act.SetTimer(2, 0), act.SetTimer(3, 60_000), act.CancelTimer(2))
        rig.do(act.CancelTimer(7))
        assert await rig.until_called("timer") == [(1,)]

    rigged(case)


def test_shell_exit_and_close_fd_are_carried_out() -> None:
    async def case(rig: Rig) -> None:
        left, right = socket.socketpair()
        rig.do(act.CloseFd(left.detach()), act.Exit())
        assert rig.exits == ["exit"]
        assert right.recv(1) == b""
        right.close()

    rigged(case)


def test_journal_keeps_the_last_events_and_gives_those_after_a_number() -> None:
    journal = Journal("r0", lambda: 1.5)
    for number in range(1, EVENTS_MAX + 11):
        journal.add(act.StateEvent(number, "change", f"disk {number}", volume=0, fields={"reason": ValueError("x")}))
    found = journal.after(0)
    assert found[0]["sequence"] == 11 and len(found) == ANSWER_EVENTS_MAX
    last = journal.after(EVENTS_MAX + 9)
    assert [event["message"] for event in last] == [f"disk {EVENTS_MAX + 10}"]
    assert last[0]["fields"] == {"reason": "x"} and last[0]["time_s"] == 1.5


# Link


def test_shell_listens_and_gives_connections_to_the_node() -> None:
    async def case(rig: Rig) -> None:
        rig.do(act.Listen(True))
        _, writer = await asyncio.open_connection("127.0.0.1", rig.ports[0])
        ((fd, source),) = await rig.until_called("accepted")
        assert source == ""
        assert not os.get_blocking(fd)
        os.write(fd, b"x")
        os.close(fd)
        writer.close()
        rig.do(act.Listen(False))
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", rig.ports[0])

    rigged(case)


def test_shell_listener_reports_a_port_in_use_once_and_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "LISTEN_RETRY_S", 0.02)

    async def case(rig: Rig) -> None:
        with socket.create_server(("127.0.0.1", rig.ports[0])):
            rig.do(act.Listen(True))
            ((reason,),) = rig.node.called("listen_failed")
            assert "102" in reason
        await wait_for_async(lambda: rig.shell.link.is_listening, DEADLINE_S, "listening")
        assert len(rig.node.called("listen_failed")) == 1

    rigged(case)


def test_shell_dials_from_its_own_address() -> None:
    async def case(rig: Rig) -> None:
        with socket.create_server(("127.0.0.1", rig.ports[1])) as peer:
            rig.do(act.Dial(4, 5000))
            ((dial_id, fd),) = await rig.until_called("dialled")
            connection, (host, port) = peer.accept()
            assert dial_id == 4 and host == "127.0.0.1" and port != rig.ports[0]
            assert not os.get_blocking(fd)
            os.close(fd)
            assert connection.recv(1) == b""
            connection.close()

    rigged(case)


def test_shell_dial_to_nobody_fails_with_the_reason() -> None:
    async def case(rig: Rig) -> None:
        rig.do(act.Dial(4, 5000))
        assert await rig.until_called("dial_failed") == [(4, "Connection refused")]

    rigged(case)


def test_shell_dial_that_takes_too_long_times_out() -> None:
    async def case(rig: Rig) -> None:
        with socket.socket() as peer:  # a full backlog leaves further connections waiting
            peer.bind(("127.0.0.1", rig.ports[1]))
            peer.listen(0)
            fillers = []
            for _ in range(3):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", rig.ports[1]))
                fillers.append(filler)
            rig.do(act.Dial(4, 100))
            assert await rig.until_called("dial_failed") == [(4, "timed out")]
            for filler in fillers:
                filler.close()

    rigged(case)


# Disks


class FakeDisk:
    def __init__(self) -> None:
        self.closed = threading.Event()
        self.data = SimpleNamespace(name="/disk")

    def close(self) -> None:
        self.closed.set()


PREPARED: Any = object()


def opener_of(disk: Any) -> Callable[[VolumeView], tuple[OpenedDisk, Prepared]]:
    return lambda view: (disk, PREPARED)


def test_shell_opens_and_closes_a_disk() -> None:
    disk = FakeDisk()

    async def case(rig: Rig) -> None:
        rig.do(act.OpenDisk(0))
        assert await rig.until_called("disk_opened") == [(0, PREPARED)]
        rig.do(act.CloseDisk(0), act.CloseDisk(0))
        await rig.until_called("disk_closed", 2)
        assert disk.closed.is_set()

    rigged(case, disk_opener=opener_of(disk))


def test_shell_says_that_a_disk_is_closed_only_when_it_is() -> None:
    may_close = threading.Event()

    class SlowDisk(FakeDisk):
        def close(self) -> None:
            may_close.wait(DEADLINE_S)
            super().close()

    disk = SlowDisk()
    seen: list[bool] = []

    async def case(rig: Rig) -> None:
        rig.do(act.OpenDisk(0))
        await rig.until_called("disk_opened")
        rig.node.on_call = lambda name, args: seen.append(disk.closed.is_set()) if name == "disk_closed" else None
        rig.do(act.CloseDisk(0))
        may_close.set()
        await rig.until_called("disk_closed")

    rigged(case, disk_opener=opener_of(disk))
    assert seen == [True]


def test_shell_reports_a_disk_that_cannot_be_opened() -> None:
    error = RequestRefused("no disk", number=104)

    def refuse(view: VolumeView) -> tuple[OpenedDisk, Prepared]:
        raise error

    async def case(rig: Rig) -> None:
        rig.do(act.OpenDisk(0))
        assert await rig.until_called("disk_failed") == [(0, error)]

    rigged(case, disk_opener=refuse)


def test_shell_gives_a_hung_disk_up_and_closes_it_when_it_comes_late() -> None:
    disk, go_on = FakeDisk(), threading.Event()

    def hang(view: VolumeView) -> tuple[Any, Prepared]:
        go_on.wait(DEADLINE_S)
        return disk, PREPARED

    async def case(rig: Rig) -> None:
        rig.do(act.OpenDisk(0))
        ((volume, error),) = await rig.until_called("disk_failed")
        assert volume == 0 and "did not answer" in str(error)
        go_on.set()
        await wait_for_async(disk.closed.is_set, DEADLINE_S)
        assert not rig.node.called("disk_opened")

    rigged(case, disk_opener=hang, disk_timeout_s=0.05)


def test_shell_waits_for_the_old_descriptors_before_it_opens_again() -> None:
    order: list[str] = []
    may_close = threading.Event()

    class SlowDisk(FakeDisk):
        def close(self) -> None:
            may_close.wait(DEADLINE_S)
            order.append("close")

    def opener(view: VolumeView) -> tuple[Any, Prepared]:
        order.append("open")
        return SlowDisk(), PREPARED

    async def case(rig: Rig) -> None:
        rig.do(act.OpenDisk(0))
        await rig.until_called("disk_opened")
        rig.do(act.CloseDisk(0), act.OpenDisk(0))
        may_close.set()
        await rig.until_called("disk_opened", 2)
        assert order == ["open", "close", "open"]

    rigged(case, disk_opener=opener)


# NBD


def answering(rig: Rig, error: Exception | None = None) -> Callable[[str, tuple[Any, ...]], None]:
    def answer(name: str, args: tuple[Any, ...]) -> None:
        if name == "command":
            result = {} if error else {"size_bytes": 1 << 20}
            rig.node.actions.append(act.Reply(args[0], result, error))

    return answer


def test_exports_open_asks_the_node_and_info_does_not_open() -> None:
    async def case(rig: Rig) -> None:
        rig.node.on_call = answering(rig)
        exports = Exports(rig.shell, "r0", [0, 3])
        assert [listed.name for listed in exports.list_exports()] == ["r0/0", "r0/3"]
        export = await exports.open_export("r0/3", for_go=True)
        assert isinstance(export, Export) and export.volume == 3 and export.size_bytes == 1 << 20
        await exports.open_export("r0/0", for_go=False)
        assert [call[1:] for call in rig.node.called("command")] == [
            ("nbd-open", {"volume": 3}), ("nbd-info", {"volume": 0}),
        ]  # fmt: skip
        exports.close_export(export)
        assert rig.node.called("nbd_closed") == [(3,)]

    rigged(case)


def test_exports_refusal_carries_the_nodes_message() -> None:
    async def case(rig: Rig) -> None:
        rig.node.on_call = answering(rig, StateRefused("r0 is Secondary", number=-2, advice="Promote it."))
        refusal = await Exports(rig.shell, "r0", [0]).open_export("r0/0", for_go=True)
        assert isinstance(refusal, Refusal) and refusal.message == "r0 is Secondary (-2) Promote it."

    rigged(case)


def test_exports_open_that_is_cancelled_leaves_nothing_open() -> None:
    async def case(rig: Rig) -> None:
        exports = Exports(rig.shell, "r0", [0])
        opening = asyncio.ensure_future(exports.open_export("r0/0", for_go=True))
        ((token, _, _),) = await rig.until_called("command")
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        rig.do(act.Reply(token, {"size_bytes": 4096}))
        assert (0,) in rig.node.called("nbd_closed")

    rigged(case)


def test_exports_handover_numbers_streams_and_frees_them() -> None:
    async def case(rig: Rig) -> None:
        exports = Exports(rig.shell, "r0", [0])
        export = Export("r0/0", 0, 1 << 20)
        left, right = socket.socketpair()
        end = Finished(export, True, {"base:allocation": 1}, b"early", no_zeroes=True)
        fd = left.fileno()
        exports.handover(left, end)
        ((command, _),) = rig.engine.commands
        flags = ec.NbdFlags.STRUCTURED | ec.NbdFlags.ALLOCATION
        assert command == ec.NbdAdd(0, PEER_STREAMS, ec.Nbd(fd, flags, 1), b"early")
        assert exports.served_clients() == 1
        rig.engine.post(Event(EventType.NBD_CLOSED, stream=PEER_STREAMS))
        assert await rig.until_called("nbd_closed") == [(0,)]
        assert exports.served_clients() == 0 and not rig.node.called("engine_event")
        rig.engine.post(Event(EventType.NBD_CLOSED, stream=PEER_STREAMS), Event(EventType.DONE))
        await rig.until_called("engine_event")
        assert len(rig.node.called("nbd_closed")) == 1  # a number that is free closes nothing
        os.close(fd)
        right.close()

    rigged(case)


def test_exports_streams_run_out_only_above_the_peers_numbers(tmp_path: Path) -> None:
    async def case(rig: Rig) -> None:
        exports = Exports(rig.shell, "r0", [0])
        end = Finished(Export("r0/0", 0, 1 << 20), False, {}, b"", no_zeroes=True)
        for _ in range(ec.STREAMS_MAX - PEER_STREAMS):
            exports.handover(FakeSocket(), end)  # type: ignore[arg-type]
        streams = {command.stream for command, _ in rig.engine.commands if isinstance(command, ec.NbdAdd)}
        assert streams == set(range(PEER_STREAMS, ec.STREAMS_MAX))
        with pytest.raises(Exception, match="no stream number"):
            exports.handover(FakeSocket(), end)  # type: ignore[arg-type]

    rigged(case)


class FakeSocket:
    def detach(self) -> int:
        return 0
