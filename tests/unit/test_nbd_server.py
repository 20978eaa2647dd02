# SPDX-License-Identifier: Apache-2.0
"""The accept server on real sockets, with our own and with foreign clients."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from nbd.constants import IHAVEOPT, ClientFlag, Command, Option, Reply
from nbd.export import Export, ListedExport, Refusal, RefusalKind
from nbd.listeners import UNIX_PATH_BYTES_MAX
from nbd.negotiation import Finished
from nbd.server import LOG_BURST, LOG_INTERVAL_S, NbdServer, RateLimitedLog
from nbd.uri import build_tcp_uri, build_unix_uri
from repl.errors import ConfigError, StateRefused

FIXED = struct.pack(">I", ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)
GREETING_BYTES = 18
DEADLINE_S = 20.0

DISK = Export(name="r0/0", volume=0, size_bytes=1 << 20, description="data of r0")
OTHER = Export(name="r0/1", volume=1, size_bytes=2 << 20)


def option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">QII", IHAVEOPT, number, len(data)) + data


def go(name: str) -> bytes:
    return option(Option.GO, struct.pack(">I", len(name)) + name.encode() + b"\0\0")


class Provider:
    """Two volumes; what happens on opening is up to the test."""

    def __init__(self, *exports: Export) -> None:
        self.exports = exports
        self.opened: list[tuple[str, bool]] = []
        self.closed: list[Export] = []
        self.served = 0
        self.on_open: Callable[[], Awaitable[None]] | None = None

    def unlisted_export(self, name: str) -> str | None:
        return None

    def list_exports(self) -> Sequence[ListedExport]:
        return [ListedExport(export.name, export.description) for export in self.exports]

    async def open_export(self, name: str, *, for_go: bool) -> Export | Refusal:
        self.opened.append((name, for_go))
        if self.on_open:
            await self.on_open()
        for export in self.exports:
            if export.name == name:
                return export
        return Refusal(RefusalKind.UNKNOWN, "gone")

    def close_export(self, export: Export) -> None:
        self.closed.append(export)

    def served_clients(self) -> int:
        return self.served


class Bench:
    """A server and what it handed over."""

    def __init__(self, path: Path, provider: Provider) -> None:
        self.path = str(path)
        self.provider = provider
        self.handed_over: list[tuple[socket.socket, Finished]] = []
        self.handover_error: Exception | None = None
        self.engine: set[asyncio.Task[None]] = set()
        self.clients: list[Client] = []

    def handover(self, sock: socket.socket, finished: Finished) -> None:
        if self.handover_error:
            raise self.handover_error
        self.handed_over.append((sock, finished))

    def handover_to_engine(self, sock: socket.socket, finished: Finished) -> None:
        """For foreign clients: serves nothing but the goodbye."""
        self.handed_over.append((sock, finished))
        self.engine.add(asyncio.get_running_loop().create_task(self._read_goodbye(sock, finished.leftover)))

    async def _read_goodbye(self, sock: socket.socket, received: bytes) -> None:
        loop = asyncio.get_running_loop()
        with sock, contextlib.suppress(OSError):
            while len(received) < 28:
                data = await loop.sock_recv(sock, 4096)
                if not data:
                    return
                received += data
            assert struct.unpack_from(">H", received, 6)[0] == Command.DISC

    async def connect(self) -> Client:
        return self._keep(Client(*await asyncio.open_unix_connection(self.path)))

    async def connect_tcp(self, host: str, port: int) -> Client:
        return self._keep(Client(*await asyncio.open_connection(host, port)))

    def _keep(self, client: Client) -> Client:
        self.clients.append(client)
        return client


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def start(self) -> None:
        await self.reader.readexactly(GREETING_BYTES)
        self.writer.write(FIXED)

    async def reply(self) -> tuple[int, int, bytes]:
        _, number, kind, length_bytes = struct.unpack(">QIII", await self.reader.readexactly(20))
        return number, kind, await self.reader.readexactly(length_bytes)

    async def final_reply(self) -> tuple[int, bytes]:
        """The type and data of the reply that ends the replies to one option."""
        while True:
            _, kind, data = await self.reply()
            if kind not in (Reply.INFO, Reply.SERVER, Reply.META_CONTEXT):
                return kind, data

    async def wait_closed(self) -> bytes:
        with contextlib.suppress(ConnectionError):
            return await self.reader.read()
        return b""


@contextlib.asynccontextmanager
async def serving(
    tmp_path: Path,
    *exports: Export,
    negotiation_timeout_s: float = DEADLINE_S,
    open_timeout_s: float = DEADLINE_S,
    clients_max: int = 64,
    with_engine: bool = False,
) -> AsyncIterator[tuple[Bench, NbdServer]]:
    bench = Bench(tmp_path / "r0.nbd", Provider(*(exports or (DISK, OTHER))))
    server = NbdServer(
        bench.provider,
        bench.handover_to_engine if with_engine else bench.handover,
        negotiation_timeout_s=negotiation_timeout_s,
        open_timeout_s=open_timeout_s,
        clients_max=clients_max,
    )
    try:
        await server.listen_unix(bench.path)
        async with asyncio.timeout(DEADLINE_S):
            yield bench, server
    finally:
        await server.close()
        for sock, _ in bench.handed_over:
            sock.close()
        for client in bench.clients:
            client.writer.close()
            with contextlib.suppress(OSError):
                await client.writer.wait_closed()
        for task in bench.engine:
            task.cancel()
        results = await asyncio.gather(*bench.engine, return_exceptions=True)
        assert not [result for result in results if isinstance(result, AssertionError)]


async def wait_until(is_true: Callable[[], bool]) -> None:
    while not is_true():
        await asyncio.sleep(0.001)


# Handover


def test_client_that_goes_is_handed_over_with_its_first_requests(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path) as (bench, server):
            client = await bench.connect()
            await client.start()
            client.writer.write(go("r0/1") + b"first requests")
            assert (await client.final_reply())[0] == Reply.ACK
            await wait_until(lambda: len(bench.handed_over) == 1 and server.negotiating_clients == 0)
            sock, finished = bench.handed_over[0]
            assert finished.export is OTHER
            assert finished.leftover == b"first requests"
            assert sock.getblocking() is False
            sock.send(b"served")
            assert await client.reader.readexactly(6) == b"served"
            client.writer.write(b"more")
            loop = asyncio.get_running_loop()
            assert await loop.sock_recv(sock, 100) == b"more"
            assert bench.provider.closed == []

    asyncio.run(run())


def test_empty_name_opens_the_only_volume(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path, OTHER) as (bench, _):
            client = await bench.connect()
            await client.start()
            client.writer.write(go(""))
            assert (await client.final_reply())[0] == Reply.ACK
            assert bench.provider.opened == [("r0/1", True)]

    asyncio.run(run())


@pytest.mark.parametrize("name", ["", "r9/9"])
def test_name_that_means_no_volume_is_refused_without_opening(tmp_path: Path, name: str) -> None:
    async def run() -> None:
        async with serving(tmp_path) as (bench, _):
            client = await bench.connect()
            await client.start()
            client.writer.write(go(name))
            assert (await client.final_reply())[0] == Reply.ERR_UNKNOWN
            assert bench.provider.opened == []

    asyncio.run(run())


def test_refused_open_tells_the_client_why_and_lets_it_try_again(tmp_path: Path) -> None:
    async def refuse() -> None:
        raise StateRefused("r0 cannot become Primary:", number=-2, advice="Wait for the peer.")

    async def run() -> None:
        async with serving(tmp_path) as (bench, _):
            bench.provider.on_open = refuse
            client = await bench.connect()
            await client.start()
            client.writer.write(go("r0/0"))
            assert await client.final_reply() == (
                Reply.ERR_POLICY, b"r0 cannot become Primary: (-2) Wait for the peer."
            )
            bench.provider.on_open = None
            client.writer.write(go("r0/0"))
            assert (await client.final_reply())[0] == Reply.ACK

    asyncio.run(run())


def test_open_that_fails_unexpectedly_is_logged_and_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise RuntimeError("a bug")

    async def run() -> None:
        async with serving(tmp_path) as (bench, _):
            bench.provider.on_open = fail
            client = await bench.connect()
            await client.start()
            client.writer.write(go("r0/0"))
            kind, text = await client.final_reply()
            assert kind == Reply.ERR_POLICY
            assert b"a bug" not in text

    asyncio.run(run())
    assert "a bug" in caplog.text


def test_open_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        async with serving(tmp_path, open_timeout_s=0.02) as (bench, _):
            bench.provider.on_open = hang
            client = await bench.connect()
            await client.start()
            client.writer.write(go("r0/0"))
            kind, text = await client.final_reply()
            assert (kind, b"in time" in text) == (Reply.ERR_POLICY, True)

    asyncio.run(run())


def test_time_for_opening_is_not_the_clients(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path, negotiation_timeout_s=0.15) as (bench, _):
            bench.provider.on_open = lambda: asyncio.sleep(0.3)
            client = await bench.connect()
            await client.start()
            client.writer.write(go("r0/0"))
            assert (await client.final_reply())[0] == Reply.ACK

    asyncio.run(run())


def test_export_opened_for_a_client_that_has_vanished_is_handed_over_or_closed(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path) as (bench, server):
            release = asyncio.Event()

            async def wait_for_release() -> None:
                await release.wait()

            bench.provider.on_open = wait_for_release
            client = await bench.connect()
            await client.start()
            client.writer.write(go("r0/0"))
            await wait_until(lambda: bench.provider.opened == [("r0/0", True)])
            client.writer.transport.abort()
            await client.writer.wait_closed()
            release.set()
            await wait_until(lambda: server.negotiating_clients == 0)
            assert len(bench.handed_over) + len(bench.provider.closed) == 1

    asyncio.run(run())


def test_export_that_the_client_cannot_use_is_closed_again(tmp_path: Path) -> None:
    wide = Export(name="r0/0", volume=0, size_bytes=1 << 20, block_min=4096)

    async def run() -> None:
        async with serving(tmp_path, wide) as (bench, _):
            client = await bench.connect()
            await client.start()
            client.writer.write(go("r0/0"))
            assert (await client.final_reply())[0] == Reply.ERR_BLOCK_SIZE_REQD
            assert bench.provider.closed == [wide]

    asyncio.run(run())


def test_handover_that_fails_closes_the_client_and_its_export(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with serving(tmp_path) as (bench, _):
            bench.handover_error = RuntimeError("engine is full")
            client = await bench.connect()
            await client.start()
            client.writer.write(go("r0/0"))
            await client.wait_closed()
            await wait_until(lambda: bench.provider.closed == [DISK])

    asyncio.run(run())
    assert "engine is full" in caplog.text


# Clients that misbehave


@pytest.mark.parametrize("first", [b"", FIXED, FIXED + option(Option.LIST)[:10]])
def test_silent_client_is_dropped_when_its_time_is_over(tmp_path: Path, first: bytes) -> None:
    async def run() -> None:
        async with serving(tmp_path, negotiation_timeout_s=0.05) as (bench, _):
            client = await bench.connect()
            await client.reader.readexactly(GREETING_BYTES)
            client.writer.write(first)
            assert await client.wait_closed() == b""

    asyncio.run(run())


def test_client_that_sends_a_byte_now_and_then_is_dropped_as_well(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path, negotiation_timeout_s=0.1) as (bench, server):
            client = await bench.connect()
            await client.reader.readexactly(GREETING_BYTES)
            sent_bytes = 0
            for byte in FIXED + option(99, bytes(60_000)):
                with contextlib.suppress(ConnectionError):
                    client.writer.write(bytes([byte]))
                    await client.writer.drain()
                sent_bytes += 1
                await asyncio.sleep(0.005)
                if client.reader.at_eof() or client.writer.is_closing():
                    break
            assert sent_bytes < 1000
            await wait_until(lambda: server.negotiating_clients == 0)

    asyncio.run(run())


def test_client_that_does_not_read_is_dropped_when_its_time_is_over(tmp_path: Path) -> None:
    many = [Export(name=f"r0/{number}", volume=number, size_bytes=512, description="x" * 4096)
            for number in range(64)]

    async def run() -> None:
        async with serving(tmp_path, *many, negotiation_timeout_s=0.1) as (bench, server):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(sock, bench.path)
                await loop.sock_sendall(sock, FIXED + option(Option.LIST) * 31)
                await wait_until(lambda: server.negotiating_clients == 1)
                await wait_until(lambda: server.negotiating_clients == 0)

    asyncio.run(run())


def test_hundred_megabytes_of_garbage_are_cut_early(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path) as (bench, _):
            client = await bench.connect()
            sent_bytes = 0
            with contextlib.suppress(ConnectionError):
                while sent_bytes < 100 << 20:
                    client.writer.write(b"\xa5" * 65536)
                    await client.writer.drain()
                    sent_bytes += 65536
            assert sent_bytes < 4 << 20

    asyncio.run(run())


def test_broken_client_does_not_disturb_another(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path) as (bench, _):
            good, bad = await bench.connect(), await bench.connect()
            await good.start()
            bad.writer.write(b"\xff" * 4)
            await bad.wait_closed()
            good.writer.write(go("r0/0"))
            assert (await good.final_reply())[0] == Reply.ACK

    asyncio.run(run())


def test_client_that_says_abort_gets_its_acknowledgement(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path) as (bench, _):
            client = await bench.connect()
            await client.start()
            client.writer.write(option(Option.ABORT))
            assert await client.reply() == (Option.ABORT, Reply.ACK, b"")
            assert await client.wait_closed() == b""

    asyncio.run(run())


@pytest.mark.parametrize("served", [0, 2])
def test_client_above_the_limit_is_closed_and_a_place_that_is_left_is_given_again(
    tmp_path: Path, served: int
) -> None:
    async def run() -> None:
        async with serving(tmp_path, clients_max=3) as (bench, server):
            bench.provider.served = served
            waiting = [await bench.connect() for _ in range(3 - served)]
            await wait_until(lambda: server.negotiating_clients == len(waiting))
            assert await (await bench.connect()).wait_closed() == b""
            waiting[0].writer.close()
            await wait_until(lambda: server.negotiating_clients == len(waiting) - 1)
            await (await bench.connect()).start()

    asyncio.run(run())


def test_client_gets_the_place_that_another_one_is_just_leaving(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path, clients_max=2) as (bench, _):
            bench.provider.served = 2
            client = await bench.connect()
            asyncio.get_running_loop().call_later(0.1, setattr, bench.provider, "served", 1)
            await client.start()

    asyncio.run(run())


def test_close_drops_clients_that_are_negotiating_but_not_those_handed_over(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path) as (bench, server):
            going, waiting = await bench.connect(), await bench.connect()
            await going.start()
            going.writer.write(go("r0/0"))
            await wait_until(lambda: len(bench.handed_over) == 1)
            await waiting.start()
            await server.close()
            await waiting.wait_closed()
            bench.handed_over[0][0].send(b"still here")
            await going.final_reply()
            assert await going.reader.readexactly(10) == b"still here"
            assert not (tmp_path / "r0.nbd").is_socket()

    asyncio.run(run())


# Listening


def test_unix_socket_is_for_our_user_only(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path) as (bench, _):
            assert stat.S_IMODE(os.stat(bench.path).st_mode) == 0o600

    asyncio.run(run())


def test_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "r0.nbd"))

    async def run() -> None:
        async with serving(tmp_path) as (bench, _):
            await (await bench.connect()).start()

    asyncio.run(run())


def test_unix_socket_that_answers_is_left_alone(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path) as (bench, _):
            second = NbdServer(bench.provider, bench.handover)
            with pytest.raises(ConfigError, match="another server answers"):
                await second.listen_unix(bench.path)
            await second.close()
            await (await bench.connect()).start()

    asyncio.run(run())


def test_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "r0.nbd").write_text("precious")

    async def run() -> None:
        with pytest.raises(ConfigError, match="not a socket"):
            async with serving(tmp_path):
                pass

    asyncio.run(run())
    assert (tmp_path / "r0.nbd").read_text() == "precious"


def test_close_leaves_the_socket_of_a_successor(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path) as (bench, server):
            os.unlink(bench.path)
            successor = NbdServer(bench.provider, bench.handover)
            await successor.listen_unix(bench.path)
            await server.close()
            await (await bench.connect()).start()
            await successor.close()

    asyncio.run(run())


@pytest.mark.parametrize("path", ["", "missing/r0.nbd", "x" * (UNIX_PATH_BYTES_MAX + 1), "a\0b"])
def test_unix_path_that_cannot_be_used_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)

    async def run() -> None:
        with pytest.raises(ConfigError, match="cannot listen for NBD"):
            await NbdServer(Provider(DISK), lambda sock, finished: None).listen_unix(path)

    asyncio.run(run())


def test_tcp_client_is_served_without_delay_and_the_port_is_then_in_use(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path) as (bench, server):
            ((host, port),) = await server.listen_tcp("127.0.0.1", 0)
            client = await bench.connect_tcp(host, port)
            await client.start()
            client.writer.write(go("r0/0"))
            assert (await client.final_reply())[0] == Reply.ACK
            await wait_until(lambda: len(bench.handed_over) == 1)
            assert bench.handed_over[0][0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            second = NbdServer(bench.provider, bench.handover)
            with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*already in use.*another port"):
                await second.listen_tcp("127.0.0.1", port)

    asyncio.run(run())


def test_every_address_is_listened_on_without_a_host(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path) as (_, server):
            bound = await server.listen_tcp("", 0)
            assert {host for host, _ in bound} <= {"0.0.0.0", "::"}
            assert bound

    asyncio.run(run())


@pytest.mark.parametrize(("host", "port"), [
    ("127.0.0.1", -1), ("127.0.0.1", 65536), ("192.0.2.1", 0), ("a..b", 1),
])
def test_tcp_address_that_cannot_be_used_is_a_config_error(host: str, port: int) -> None:
    async def run() -> None:
        with pytest.raises(ConfigError, match="cannot listen for NBD"):
            await NbdServer(Provider(DISK), lambda sock, finished: None).listen_tcp(host, port)

    asyncio.run(run())


# Logging


def test_repeated_log_lines_are_counted_instead_of_written(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    limited = RateLimitedLog(logging.getLogger("nbd.test"), lambda: now_s)
    with caplog.at_level(logging.INFO):
        for number in range(LOG_BURST + 7):
            limited.info("dropped", "line %d", number)
        limited.info("full", "another kind")
        assert len(caplog.messages) == LOG_BURST + 1
        now_s = LOG_INTERVAL_S
        limited.info("dropped", "late line")
    assert caplog.messages[-2:] == ["nbd: left out 7 lines (dropped)", "late line"]


# Foreign clients


def foreign(*command: str) -> Callable[[], subprocess.CompletedProcess[str]]:
    """A command that is run outside of the source tree (its ``nbd`` is not libnbd's)."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=DEADLINE_S, check=False)

    return run


def run_foreign(tmp_path: Path, *command: str, tcp: bool = False, exports: Sequence[Export] = ()) -> tuple[
    subprocess.CompletedProcess[str], list[Finished]
]:
    """Runs ``command`` with URI (of export r0/0), LISTURI and SOCKET replaced."""

    async def run() -> tuple[subprocess.CompletedProcess[str], list[Finished]]:
        async with serving(tmp_path, *exports, with_engine=True) as (bench, server):
            uri, list_uri = build_unix_uri(bench.path, "r0/0"), build_unix_uri(bench.path, "")
            if tcp:
                ((host, port),) = await server.listen_tcp("127.0.0.1", 0)
                uri, list_uri = build_tcp_uri(host, port, "r0/0"), build_tcp_uri(host, port, "")
            words = [word.replace("LISTURI", list_uri).replace("URI", uri).replace("SOCKET", bench.path)
                     for word in command]
            done = await asyncio.to_thread(foreign(*words))
            return done, [finished for _, finished in bench.handed_over]

    return asyncio.run(run())


@pytest.mark.parametrize("tcp", [False, True])
def test_nbdinfo_lists_the_exports(tmp_path: Path, tcp: bool) -> None:
    done, _ = run_foreign(tmp_path, "nbdinfo", "--list", "--no-content", "LISTURI", tcp=tcp)
    assert done.returncode == 0, done.stderr
    for expected in ('export="r0/0"', 'export="r0/1"', "description: data of r0", "export-size: 1048576",
                     "export-size: 2097152", "can_multi_conn: true", "can_df: true", "can_fast_zero: true",
                     "block_size_minimum: 512", "block_size_preferred: 4096", "block_size_maximum: 33554432",
                     "base:allocation"):
        assert expected in done.stdout


def test_nbdinfo_shows_an_export_with_structured_replies(tmp_path: Path) -> None:
    done, finished = run_foreign(tmp_path, "nbdinfo", "--no-content", "URI")
    assert done.returncode == 0, done.stderr
    assert "newstyle-fixed without TLS, using structured packets" in done.stdout
    assert finished == []  # it only looks (INFO): nothing may have been opened


def test_nbdinfo_of_an_unknown_export_says_that_there_is_none(tmp_path: Path) -> None:
    done, finished = run_foreign(tmp_path, "nbdinfo", "--no-content", "nbd+unix:///r9/0?socket=SOCKET")
    assert done.returncode != 0
    assert "No such file or directory for export: r9/0" in done.stderr
    assert finished == []


def test_qemu_shows_our_text_of_a_refusal(tmp_path: Path) -> None:
    done, finished = run_foreign(tmp_path, "qemu-img", "info", "nbd+unix:///r9/0?socket=SOCKET")
    assert done.returncode != 0
    assert "no export 'r9/0'" in done.stderr
    assert finished == []


NBDSH = """
h.set_opt_mode(True)
h.set_full_info(True)
h.connect_uri("URI")
contexts = []
h.add_meta_context("base:allocation")
h.opt_list_meta_context(lambda name: contexts.append(name))
assert contexts == ["base:allocation"], contexts
h.opt_info()
assert h.get_size() == 1048576 and h.get_canonical_export_name() == "r0/0"
h.set_export_name("r9/9")
try:
    h.opt_go()
    raise SystemExit("went to an unknown export")
except nbd.Error as error:
    assert error.errno == "ENOENT", error.errno
h.set_export_name("r0/0")
h.opt_go()
assert h.can_meta_context("base:allocation") and h.can_df() and h.can_multi_conn()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 512
"""


def test_libnbd_haggles_and_goes_with_a_meta_context(tmp_path: Path) -> None:
    done, finished = run_foreign(tmp_path, "nbdsh", "-c", NBDSH)
    assert done.returncode == 0, done.stderr
    assert finished[0].meta_contexts == {"base:allocation": 1}


def test_libnbd_that_goes_at_once_is_handed_over(tmp_path: Path) -> None:
    script = "assert h.get_size() == 1048576"
    done, finished = run_foreign(tmp_path, "nbdsh", "-u", "URI", "-c", script, tcp=True)
    assert done.returncode == 0, done.stderr
    assert finished[0].structured
    assert finished[0].no_zeroes


def test_libnbd_without_modern_options_uses_export_name(tmp_path: Path) -> None:
    script = "h.set_handshake_flags(0)\nh.connect_uri('URI')\nassert h.get_size() == 1048576"
    done, finished = run_foreign(tmp_path, "nbdsh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert not finished[0].no_zeroes
    assert not finished[0].structured


def test_nbd_client_lists_the_exports(tmp_path: Path) -> None:
    done, _ = run_foreign(tmp_path, "nbd-client", "-l", "-unix", "SOCKET")
    assert "r0/0" in done.stdout, done.stderr


def test_qemu_nbd_lists_the_exports(tmp_path: Path) -> None:
    done, _ = run_foreign(tmp_path, "qemu-nbd", "--list", "-k", "SOCKET")
    assert done.returncode == 0, done.stderr
    for expected in ("export: 'r0/0'", "description: data of r0", "size:  1048576", "min block: 512",
                     "base:allocation"):
        assert expected in done.stdout
