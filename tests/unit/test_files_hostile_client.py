# SPDX-License-Identifier: Apache-2.0
"""A client that may attach and means harm: paths out of the brick, identities of others, numbers without measure."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from repl.files.rpc import frames
from repl.files.rpc import operations as ops
from repl.files.rpc.frames import Kind
from repl.files.rpc.handshake import Hello, encode_hello
from repl.files.rpc.packing import pack_caller
from repl.files.translator import FOPS
from repl.files.translators.client import Client
from repl.files.translators.locks import Locks
from repl.files.translators.server import Server, session
from repl.files.values import ROOT_GFID, Caller, Fd, FopError, Loc, gfid_text
from repl.limits import RPC_COMPOUND_STEPS_MAX, RPC_PAYLOAD_BYTES_MAX
from tests.lib.files import at, attached, make, new_gfid, posix, served
from tests.lib.memory_brick import MemoryBrick
from tests.lib.wait import wait_for_async

ME = Caller(uid=0, gid=0, client="x", lock_owner=b"1")
HUGE = 1 << 62


@asynccontextmanager
async def brick_of(folder: Path) -> AsyncIterator[tuple[Path, Server, Client]]:
    """A real brick beside a secret."""
    (folder / "secret").mkdir()
    (folder / "secret/f").write_text("secret")
    async with posix(folder / "brick") as below:
        top = make(Locks, "locks", [below])
        async with served(top) as server, attached(server, "locks") as client:
            yield folder / "brick", server, client


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(limited())


async def errno_of(call: Awaitable[Any]) -> int:
    """Of what must fail."""
    with pytest.raises(FopError) as caught:
        await call
    assert "internal error" not in str(caught.value), caught.value
    return caught.value.errno or 0


def outside(folder: Path) -> list[str]:
    """What lies beside the brick, and in the secret."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if "brick" not in p.relative_to(folder).parts)


NO_NAMES = (b"..", b".", b"", b"/", b"../secret", b"../secret/f", b"/etc/passwd", b"a/../../secret/f", b"f\0g",
            b"../" * 40, b"x" * 300)  # fmt: skip


def test_names_that_are_none_lead_nowhere(tmp_path: Path) -> None:
    async def work() -> None:
        async with brick_of(tmp_path) as (_, _, client):
            good = at("good")
            await client.mkdir(ME, good, mode=0o755, gfid=new_gfid())
            for bad in map(at, NO_NAMES):
                fd = Fd(new_gfid(), os.O_RDWR)
                for call in (
                    client.create(ME, bad, fd, flags=os.O_RDWR | os.O_CREAT, mode=0o644, gfid=fd.gfid),
                    client.mkdir(ME, bad, mode=0o755, gfid=new_gfid()),
                    client.mknod(ME, bad, mode=0o644, rdev=0, gfid=new_gfid()),
                    client.symlink(ME, bad, target=b"x", gfid=new_gfid()),
                    client.rename(ME, good, bad),
                    client.rename(ME, bad, good),
                    client.link(ME, good, bad),
                    client.unlink(ME, bad),
                    client.rmdir(ME, bad),
                    client.rmdir(ME, bad, recursive=True),
                ):
                    await errno_of(call)
                if bad.name:
                    await errno_of(client.lookup(ME, bad))
            assert outside(tmp_path) == ["secret", "secret/f"]

    run(work)


def test_symlinks_and_gfids_of_internals_lead_nowhere(tmp_path: Path) -> None:
    async def work() -> None:
        async with brick_of(tmp_path) as (_, _, client):
            for number, target in enumerate((b"../../../../secret", str(tmp_path / "secret").encode(), b"/", b"..")):
                gfid = new_gfid()
                await client.symlink(ME, at(f"ln{number}"), target=target, gfid=gfid)
                assert await errno_of(client.lookup(ME, at("f", gfid))) in (errno.ENOTDIR, errno.ESTALE)
                assert await errno_of(client.open(ME, Loc(gfid=gfid), Fd(gfid, os.O_RDWR), flags=os.O_RDWR)) in (
                    errno.ELOOP, errno.EINVAL, errno.ENXIO)  # fmt: skip
                assert await errno_of(client.opendir(ME, Loc(gfid=gfid), Fd(gfid, is_directory=True)))
                assert await errno_of(client.truncate(ME, Loc(gfid=gfid), 0))
                for name in ("f", "new"):
                    fd = Fd(new_gfid(), os.O_RDWR)
                    flags = os.O_RDWR | os.O_CREAT
                    await errno_of(client.create(ME, at(name, gfid), fd, flags=flags, mode=0o644, gfid=fd.gfid))
            assert (tmp_path / "secret/f").read_text() == "secret"
            for name in (".glusterfs", ".glusterfs/00"):
                await errno_of(client.lookup(ME, at(name)))
            for _ in range(50):
                await errno_of(client.stat(ME, Loc(gfid=random.randbytes(16))))
            assert outside(tmp_path) == ["secret", "secret/f"]

    run(work)


def test_identities_and_internal_attributes_are_not_for_taking(tmp_path: Path) -> None:
    async def work() -> None:
        async with brick_of(tmp_path) as (brick, _, client):
            fd = Fd(new_gfid(), os.O_RDWR)
            await client.create(ME, at("f"), fd, flags=os.O_RDWR | os.O_CREAT, mode=0o644, gfid=fd.gfid)
            for gfid in (ROOT_GFID, bytes(16), fd.gfid):
                await errno_of(client.mkdir(ME, at("d"), mode=0o755, gfid=gfid))
            for gfid in (ROOT_GFID, bytes(16)):
                other = Fd(gfid, os.O_RDWR)
                await errno_of(
                    client.create(ME, at("g"), other, flags=os.O_RDWR | os.O_CREAT, mode=0o644, gfid=gfid)
                )
            for key in (b"trusted.gfid", b"trusted.gfid2path.x", b"trusted.glusterfs.volume-id"):
                assert await errno_of(client.setxattr(ME, fd, {key: b"x" * 16})) == errno.EPERM
                assert await errno_of(client.removexattr(ME, fd, key)) in (errno.EPERM, errno.ENODATA)
            assert os.getxattr(brick / "f", "trusted.gfid") == fd.gfid
            assert not (brick / "d").exists() and not (brick / "g").exists()

    run(work)


def test_numbers_without_measure_are_refused_and_take_no_memory(tmp_path: Path) -> None:
    async def work() -> None:
        async with brick_of(tmp_path) as (_, _, client):
            fd = Fd(new_gfid(), os.O_RDWR)
            await client.create(ME, at("f"), fd, flags=os.O_RDWR | os.O_CREAT, mode=0o644, gfid=fd.gfid)
            await client.truncate(ME, fd, 1 << 40)
            for size in (HUGE, (1 << 64) - 1, -1, 1 << 30, RPC_PAYLOAD_BYTES_MAX + 1):
                assert await errno_of(client.readv(ME, fd, size=size, offset=0)) == errno.EINVAL
                assert await errno_of(client.rchecksum(ME, fd, offset=0, length=size)) == errno.EINVAL
            for offset in (-1, (1 << 64) - 1, -(1 << 63)):
                for call in (
                    client.readv(ME, fd, size=1, offset=offset),
                    client.writev(ME, fd, b"x", offset=offset),
                    client.truncate(ME, fd, offset),
                    client.fallocate(ME, fd, mode=0, offset=offset, length=10),
                    client.fallocate(ME, fd, mode=0, offset=0, length=offset),
                    client.seek(ME, fd, offset=offset, what=os.SEEK_DATA),
                ):
                    await errno_of(call)
            for number in (1 << 40, -(1 << 40)):
                other = Fd(new_gfid(), os.O_RDWR)
                await errno_of(client.create(ME, at("g"), other, flags=number, mode=number, gfid=other.gfid))
                await errno_of(client.mknod(ME, at("g"), mode=number, rdev=number, gfid=new_gfid()))
            folder = Fd(ROOT_GFID, is_directory=True)
            await client.opendir(ME, Loc(gfid=ROOT_GFID), folder)
            assert len(await client.readdir(ME, folder, size=HUGE, offset=0)) == 1
            assert bytes((await client.readv(ME, fd, size=RPC_PAYLOAD_BYTES_MAX, offset=0)).data).count(0) > 0

    run(work)


async def raw(server: Server, *sent: bytes) -> bytes:
    """Everything that comes back until the server ends the connection."""
    reader, writer = await asyncio.open_connection(*server.addresses[0])
    hello = frames.encode(Kind.HELLO, 0, encode_hello(Hello("brick", "x", bytes(16))))
    caller = frames.encode(Kind.CALLER, 1, msgpack.packb(pack_caller(ME, "")))
    writer.write(b"".join((hello, caller, *sent)))
    answer = b""
    while part := await reader.read(1 << 16):
        answer += part
    writer.close()
    return answer


def test_frames_beyond_the_limits_end_the_connection_before_they_are_read() -> None:
    async def work() -> None:
        async with served(MemoryBrick()) as server:
            release = [ops.RELEASE.number, 1]
            many = msgpack.packb([ops.COMPOUND, 1, *([release] * (RPC_COMPOUND_STEPS_MAX + 1))])
            for sent in (
                frames.HEADER.pack(1, RPC_PAYLOAD_BYTES_MAX + 1, 1, Kind.CALL, 0, frames.MAGIC),
                frames.HEADER.pack(0xFFFFFFFF, 0, 1, Kind.CALL, 0, frames.MAGIC),
                frames.HEADER.pack(0xFFFFFFFF, 0xFFFFFFFF, 1, Kind.CALL, 0, frames.MAGIC),
                frames.encode(Kind.CALL, 1, many),
                frames.encode(Kind.CALL, 1, b"\xdd\xff\xff\xff\xff"),  # a list of four thousand million
                frames.encode(Kind.CALL, 1, b"\x91" * 100_000),  # lists in lists
                frames.encode(Kind.CALL, 1, b"\xc6\xff\xff\xff\xff"),
            ):
                answer = await raw(server, sent)
                kinds = [Kind.WELCOME]
                assert answer[12] == kinds[0] and len(answer) < 4096
            assert not server._sessions

    run(work)


def test_client_that_says_nothing_or_comes_a_thousand_times_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "RPC_HANDSHAKE_TIMEOUT_S", 0.2)
    monkeypatch.setattr("repl.files.translators.server.RPC_CLIENTS_MAX", 8)

    async def work() -> None:
        async with served(MemoryBrick()) as server:
            connections = [await asyncio.open_connection(*server.addresses[0]) for _ in range(20)]
            await wait_for_async(lambda: len(server._sessions) <= 8)
            for reader, writer in connections:
                assert await reader.read() == b""
                writer.close()
            await wait_for_async(lambda: not server._sessions)
            async with attached(server, "brick") as client:
                await client.stat(ME, Loc(gfid=ROOT_GFID))

    run(work)


def test_client_that_never_reads_its_answers_costs_bounded_memory() -> None:
    """It asks for a thousand times 8 MiB; what is kept for it is what was being worked on when it fell behind."""

    async def work() -> None:
        brick = MemoryBrick()
        async with served(brick) as server, attached(server, "brick") as client:
            fd = Fd(new_gfid(), os.O_RDWR)
            await client.create(ME, at("f"), fd, flags=os.O_RDWR | os.O_CREAT, mode=0o644, gfid=fd.gfid)
            await client.writev(ME, fd, bytes(1 << 20), offset=0)
            sock = socket.create_connection(server.addresses[0])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            hello = frames.encode(Kind.HELLO, 0, encode_hello(Hello("brick", "x", b"y" * 16)))
            caller = frames.encode(Kind.CALLER, 1, msgpack.packb(pack_caller(ME, "")))
            opening = _body_of("open", [Loc(gfid=fd.gfid), Fd(fd.gfid, os.O_RDONLY), os.O_RDONLY])
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, hello + caller + frames.encode(Kind.CALL, 1, opening))
            reads = (
                frames.encode(Kind.CALL, 2 + n, _body_of("readv", [Fd(fd.gfid), RPC_PAYLOAD_BYTES_MAX, 0]))
                for n in range(1000)
            )

            async def ask() -> None:
                for read in reads:
                    await loop.sock_sendall(sock, read)

            asking = asyncio.ensure_future(ask())
            most = 0

            async def watch() -> bool:
                nonlocal most
                mine = [s.connection for s in server._sessions if s.client.startswith("x#")]
                most = max([most, *(c.unsent_bytes for c in mine)])
                return bool(brick.counts["readv"]) and all(c._is_paused for c in mine)

            await wait_for_async(watch)
            before = brick.counts["readv"]
            await client.stat(ME, Loc(gfid=ROOT_GFID))  # others are served
            assert brick.counts["readv"] - before < 200 and before < 200
            assert most < 256 << 20
            asking.cancel()
            sock.close()

    run(work)


def _body_of(name: str, values: list[Any]) -> bytes:
    """The body of a call, every file number 1."""
    return ops.encode_call(ops.BY_NAME[name], 1, values, ops.Sender(lambda fd: 1))


def test_every_operation_with_values_of_wrong_kinds_is_an_error_of_that_connection(tmp_path: Path) -> None:
    """Random bodies for every number; the brick serves the next client all the same and stays as it is."""
    chance = random.Random(5)

    def value(depth: int = 0) -> Any:
        kind = chance.randrange(9 if depth < 2 else 7)
        plain = (None, True, chance.choice((0, 1, -1, HUGE)), b"", chance.randbytes(chance.choice((1, 16, 34))),
                 "text", ROOT_GFID)  # fmt: skip
        if kind < 7:
            return plain[kind]
        return [value(depth + 1) for _ in range(3)] if kind == 7 else {b"user.a": b"x", b"trusted.gfid": b"y"}

    async def work() -> None:
        async with posix(tmp_path / "brick") as brick, served(brick) as server:
            for operation in ops.BY_NUMBER.values():
                for _ in range(12):
                    arguments = [value() for _ in operation.arguments]
                    body = msgpack.packb([operation.number, 1, *arguments])
                    stop = frames.encode(Kind.ANSWER, 0, b"")  # no frame for a server: it ends there at the latest
                    answer = await raw(server, frames.encode(Kind.CALL, 1, body), stop)
                    assert b"internal error" not in answer, (operation.name, arguments)
            async with attached(server, "brick") as client:
                await client.stat(ME, Loc(gfid=ROOT_GFID))
            assert len(FOPS) >= 30 and not os.listxattr(tmp_path / "brick") == []

    run(work)


def test_handle_that_was_made_a_link_on_the_disk_is_not_followed(tmp_path: Path) -> None:
    async def work() -> None:
        async with brick_of(tmp_path) as (brick, _, client):
            gfid = new_gfid()
            text = gfid_text(gfid)
            folder = brick / ".glusterfs" / text[:2] / text[2:4]
            folder.mkdir(parents=True, exist_ok=True)
            os.symlink(tmp_path / "secret/f", folder / text)
            fd = Fd(gfid, os.O_RDWR)
            await errno_of(client.open(ME, Loc(gfid=gfid), fd, flags=os.O_RDWR))
            await errno_of(client.truncate(ME, Loc(gfid=gfid), 0))
            await errno_of(client.setxattr(ME, Loc(gfid=gfid), {b"user.x": b"y"}))
            assert (tmp_path / "secret/f").read_text() == "secret" and os.listxattr(tmp_path / "secret/f") == []

    run(work)
