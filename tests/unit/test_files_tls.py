# SPDX-License-Identifier: Apache-2.0
"""TLS between protocol/client and protocol/server: both show a certificate, and auth.addr comes before."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from repl.errors import ConfigError
from repl.files.events import ChildDown, Event
from repl.files.translator import Translator
from repl.files.translators.client import Client
from repl.files.translators.server import Server, door
from repl.files.values import ROOT, Caller, Fd
from tests.lib.certificates import Authority, needs_openssl
from tests.lib.files import at, attached, make, new_gfid, served
from tests.lib.memory_brick import MemoryBrick
from tests.lib.wait import wait_for_async

pytestmark = needs_openssl()
ME = Caller(client="client", lock_owner=b"1")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server_options(authority: Authority) -> dict[str, str]:
    return authority.sign("brick1")


@pytest.fixture(scope="module")
def client_options(authority: Authority) -> dict[str, str]:
    return authority.sign("client1")


def run(work: Callable[[], Awaitable[None]]) -> None:
    """With both event loops: real processes have uvloop, whose TLS is another one."""

    async def limited() -> None:
        async with asyncio.timeout(30):
            await work()

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(limited())


async def reason_of_refusal(server: Server, **options: str) -> str:
    """Why a client is not attached."""
    reasons: list[str] = []

    class Ear(Translator):
        def notify(self, event: Event, child: Translator | None) -> None:
            if isinstance(event, ChildDown):
                reasons.append(event.reason)

    async with attached(server, "brick", wait_s=0, **options) as client:
        Ear("ear", client.options, [client], client.context)
        await wait_for_async(lambda: reasons)
        assert not client.is_up
    return reasons[0]


def test_data_pass_whole_between_ends_that_know_each_other(
    server_options: dict[str, str], client_options: dict[str, str]
) -> None:
    async def work() -> None:
        brick = MemoryBrick()
        async with served(brick, **server_options) as server, attached(server, "brick", **client_options) as client:
            data = os.urandom(5 << 20)
            fd = Fd(new_gfid(), os.O_RDWR)
            await client.create(ME, at("f"), fd, flags=os.O_RDWR | os.O_CREAT, mode=0o644, gfid=fd.gfid)
            await asyncio.gather(
                *(client.writev(ME, fd, data[n : n + (1 << 20)], offset=n) for n in range(0, 5 << 20, 1 << 20))
            )
            reads = await asyncio.gather(
                *(client.readv(ME, fd, size=1 << 20, offset=n) for n in range(0, 5 << 20, 1 << 20))
            )
            assert b"".join(bytes(r.data) for r in reads) == data
            (session,) = server._sessions
            session.connection.abort("test")
            await wait_for_async(lambda: not client.is_up)
            await wait_for_async(lambda: client.is_up)
            assert (await client.readv(ME, fd, size=10, offset=0)).data == data[:10]

    run(work)


def test_strangers_are_refused(
    tmp_path: Path, authority: Authority, server_options: dict[str, str], client_options: dict[str, str]
) -> None:
    """No TLS, a certificate of somebody else, none at all; and a server that cannot show one."""
    foreign = Authority(tmp_path, "foreign")
    impostor = foreign.sign("brick1") | {"transport.socket.ssl-ca-list": str(authority.certificate)}
    stranger = foreign.sign("client1") | {"transport.socket.ssl-ca-list": str(authority.certificate)}

    async def work() -> None:
        brick = MemoryBrick()
        async with served(brick, **server_options) as server:
            assert await reason_of_refusal(server)
            assert await reason_of_refusal(server, **stranger)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with pytest.raises((ssl.SSLError, ConnectionError)):
                reader, writer = await asyncio.open_connection(*server.addresses[0], ssl=context)
                writer.write(b"x" * 100)
                await writer.drain()
                if await reader.read(100) == b"":
                    raise ConnectionError
            async with attached(server, "brick", **client_options) as client:
                await client.stat(ME, ROOT)
        async with served(brick, **impostor) as server:
            assert "certificate" in (await reason_of_refusal(server, **client_options)).lower()
        async with served(brick) as server:
            assert await reason_of_refusal(server, **client_options)

    run(work)


def test_names_of_certificates_decide_who_may_attach(authority: Authority, server_options: dict[str, str],
                                                     client_options: dict[str, str]) -> None:  # fmt: skip
    other, admin = authority.sign("other"), authority.sign("admin7")
    allowed = {"auth.login.brick.ssl-allow": "client1,admin*"}

    async def work() -> None:
        async with served(MemoryBrick(), **server_options, **allowed) as server:
            assert "ssl-allow" in await reason_of_refusal(server, **other)
            async with attached(server, "brick", **client_options) as client:
                await client.stat(ME, ROOT)
            async with attached(server, "brick", **admin) as client:
                await client.stat(ME, ROOT)

    run(work)


def test_address_is_judged_before_the_first_byte_of_tls(
    server_options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        brick = MemoryBrick()
        options = {"auth.addr.brick.allow": "10.0.0.*", "transport.socket.listen-port": "0"}
        server = make(Server, "server", [brick], **options, **server_options)
        handshakes: list[object] = []
        monkeypatch.setattr(door.Doors, "_begin", lambda *words: handshakes.append(words))
        await server.start()
        try:
            reader, writer = await asyncio.open_connection(*server.addresses[0])
            assert await reader.read() == b""
            writer.close()
            assert not handshakes and not server._sessions
        finally:
            await server.stop()

    run(work)


def test_client_that_never_ends_its_handshake_is_sent_away(
    server_options: dict[str, str], client_options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "RPC_HANDSHAKE_TIMEOUT_S", 0.3)
    monkeypatch.setattr("repl.files.translators.server.RPC_CLIENTS_MAX", 4)

    async def work() -> None:
        async with served(MemoryBrick(), **server_options) as server:
            silent = [await asyncio.open_connection(*server.addresses[0]) for _ in range(10)]
            for reader, writer in silent:
                assert await reader.read() == b""
                writer.close()
            async with attached(server, "brick", **client_options) as client:
                await client.stat(ME, ROOT)

    run(work)


@pytest.mark.parametrize("missing", ["own-cert", "private-key", "ca-list"])
def test_what_is_missing_is_told_with_its_name(client_options: dict[str, str], tmp_path: Path, missing: str) -> None:
    options = client_options | {f"transport.socket.ssl-{missing}": str(tmp_path / "absent")}
    more = {"remote-host": "127.0.0.1", "remote-subvolume": "brick"}
    with pytest.raises(ConfigError, match="absent"):
        make(Client, "client", (), **options, **more)
