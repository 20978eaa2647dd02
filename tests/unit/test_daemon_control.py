# SPDX-License-Identifier: Apache-2.0
"""The control server on a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from repl.daemon import control, protocol
from repl.daemon.control import ControlServer, Respond, peer_uid
from repl.daemon.protocol import Request
from repl.errors import ConfigError, StateRefused
from tests.lib.wait import wait_for_async

DEADLINE_S = 20.0


class Handler:
    """Answers at once, except verbs in ``held``: those wait for ``release``."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.waiting: list[tuple[Request, Respond]] = []

    def __call__(self, request: Request, respond: Respond) -> None:
        self.requests.append(request)
        if request.verb == "wait":
            self.waiting.append((request, respond))
        elif request.verb == "fail":
            respond({}, StateRefused("no", number=-1))
        elif request.verb == "huge":
            respond({"text": "x" * (2 << 20)}, None)
        else:
            respond({"verb": request.verb, **request.args}, None)


class Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, path: Path) -> Peer:
        return cls(*await asyncio.open_unix_connection(path))

    def ask(self, number: int, verb: str, **args: Any) -> None:
        self.writer.write(protocol.encode_frame({"id": number, "verb": verb, "args": args}))

    async def answer(self) -> dict[str, Any]:
        header = await self.reader.readexactly(4)
        return protocol.decode_body(await self.reader.readexactly(protocol.frame_length(header)))

    async def is_closed(self) -> bool:
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


Case = Callable[[Path, Handler], Awaitable[None]]


def serve(path: Path, case: Case, **options: Any) -> None:
    async def run() -> None:
        handler = Handler()
        server = ControlServer(path, handler, **options)
        await server.start()
        try:
            async with asyncio.timeout(DEADLINE_S):
                await case(path, handler)
        finally:
            await server.close()
        assert not path.exists()

    asyncio.run(run())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r0.sock"


def test_control_request_gets_its_answer(path: Path) -> None:
    async def case(path: Path, handler: Handler) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        peer = await Peer.open(path)
        peer.ask(5, "status", volume=1)
        assert await peer.answer() == {"id": 5, "ok": True, "result": {"verb": "status", "volume": 1}}
        peer.ask(6, "fail")
        assert (await peer.answer())["error"]["exit_status"] == 11

    serve(path, case)


def test_control_requests_of_one_client_are_answered_as_they_end(path: Path) -> None:
    async def case(path: Path, handler: Handler) -> None:
        peer = await Peer.open(path)
        peer.ask(1, "wait")
        peer.ask(2, "status")
        assert (await peer.answer())["id"] == 2
        handler.waiting[0][1]({"late": True}, None)
        assert await peer.answer() == {"id": 1, "ok": True, "result": {"late": True}}

    serve(path, case)


@pytest.mark.parametrize(
    "garbage", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1\xc1", b"\0\0\0\1\x01", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_control_client_with_garbage_is_told_and_closed_and_others_live(path: Path, garbage: bytes) -> None:
    async def case(path: Path, handler: Handler) -> None:
        good, bad = await Peer.open(path), await Peer.open(path)
        bad.writer.write(garbage)
        assert (await bad.answer())["error"]["code"] == "protocol"
        assert await bad.is_closed()
        good.ask(1, "status")
        assert (await good.answer())["ok"]

    serve(path, case)


def test_control_request_of_wrong_shape_is_answered_and_the_client_may_go_on(path: Path) -> None:
    async def case(path: Path, handler: Handler) -> None:
        peer = await Peer.open(path)
        peer.writer.write(protocol.encode_frame({"id": 4, "verb": 9}))
        answer = await peer.answer()
        assert answer["id"] == 4 and not answer["ok"]
        peer.ask(5, "status")
        assert (await peer.answer())["ok"]

    serve(path, case)


def test_control_frame_that_stays_unfinished_closes_the_client(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "FRAME_TIMEOUT_S", 0.05)

    async def case(path: Path, handler: Handler) -> None:
        peer = await Peer.open(path)
        peer.writer.write(b"\0\0\0\x10half")
        assert not (await peer.answer())["ok"]
        assert await peer.is_closed()

    serve(path, case)


def test_control_too_many_clients_are_turned_away(path: Path) -> None:
    async def case(path: Path, handler: Handler) -> None:
        first = await Peer.open(path)
        first.ask(1, "status")
        await first.answer()
        second = await Peer.open(path)
        assert await second.is_closed()
        first.ask(2, "status")
        assert (await first.answer())["ok"]

    serve(path, case, clients_max=1)


def test_control_too_many_requests_of_a_client_are_refused(path: Path) -> None:
    async def case(path: Path, handler: Handler) -> None:
        peer = await Peer.open(path)
        for number in range(control.REQUESTS_PER_CLIENT_MAX + 1):
            peer.ask(number, "wait")
        answer = await peer.answer()
        assert answer["id"] == control.REQUESTS_PER_CLIENT_MAX and answer["error"]["code"] == "refused"

    serve(path, case)


def test_control_answer_that_cannot_be_sent_is_an_error(path: Path) -> None:
    async def case(path: Path, handler: Handler) -> None:
        peer = await Peer.open(path)
        peer.ask(1, "huge")
        assert (await peer.answer())["error"]["code"] == "internal"

    serve(path, case)


def test_control_client_that_never_reads_is_dropped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "UNREAD_BYTES_MAX", 64 * 1024)

    async def case(path: Path, handler: Handler) -> None:
        peer = await Peer.open(path)
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        sent = 0

        async def is_dropped() -> bool:
            nonlocal sent
            if not peer.writer.is_closing():
                for _ in range(20):
                    sent += 1
                    peer.ask(sent, "echo", text="x" * 10_000)
            good = await Peer.open(path)
            good.ask(1, "status")
            assert (await good.answer())["ok"]
            good.writer.close()
            try:
                await asyncio.wait_for(peer.writer.drain(), 0.05)
            except (ConnectionError, TimeoutError) as error:
                return isinstance(error, ConnectionError)
            return False

        await wait_for_async(is_dropped, DEADLINE_S, "the lazy client is dropped")

    serve(path, case)


def test_control_client_gone_while_a_command_runs_does_no_harm(path: Path) -> None:
    async def case(path: Path, handler: Handler) -> None:
        peer = await Peer.open(path)
        peer.ask(1, "wait")
        await wait_for_async(lambda: handler.waiting, DEADLINE_S, "the request")
        peer.writer.close()
        await peer.writer.wait_closed()
        handler.waiting[0][1]({}, None)
        other = await Peer.open(path)
        other.ask(2, "status")
        assert (await other.answer())["ok"]

    serve(path, case)


def test_control_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))

    async def case(path: Path, handler: Handler) -> None:
        peer = await Peer.open(path)
        peer.ask(1, "status")
        assert (await peer.answer())["ok"]

    serve(path, case)


def test_control_file_in_the_way_is_not_removed(path: Path) -> None:
    path.write_text("important")

    async def run() -> None:
        with pytest.raises(ConfigError, match="not a socket"):
            await ControlServer(path, Handler()).start()

    asyncio.run(run())
    assert path.read_text() == "important"


def test_peer_uid_of_a_socket_pair_is_our_own() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert peer_uid(left) == os.geteuid()
