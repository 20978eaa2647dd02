# SPDX-License-Identifier: Apache-2.0
"""protocol/client and protocol/server over real sockets, in one process, above a brick in memory."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from repl.files.events import ChildDown, ChildUp, Event, Invalidated, Reconnected
from repl.files.options import parse_options
from repl.files.rpc import frames
from repl.files.rpc.frames import Kind
from repl.files.rpc.handshake import Hello, encode_hello
from repl.files.translator import Context, Step, Translator
from repl.files.translators.client import Client
from repl.files.translators.server import Server
from repl.files.translators.upcall import Upcall
from repl.files.values import (
    ROOT,
    ROOT_GFID,
    Caller,
    Fd,
    FopError,
    Loc,
    Lock,
    LockCommand,
    LockType,
    Looked,
    SetAttr,
    XattrOp,
)
from tests.lib.files import at, attached, make, new_gfid, served
from tests.lib.memory_brick import MemoryBrick
from tests.lib.ports import free_port
from tests.lib.wait import wait_for_async

ME = Caller(uid=7, gid=8, groups=(8, 9), client="client", lock_owner=b"1")
WHOLE = Lock(LockType.WRITE)


class Listener(Translator):
    """On top of a client: writes down what happens."""

    def __init__(self, child: Translator) -> None:
        super().__init__("listener", child.options, [child], child.context)
        self.events: list[Event] = []

    def notify(self, event: Event, child: Translator | None) -> None:
        self.events.append(event)


@asynccontextmanager
async def link(**options: str) -> AsyncIterator[tuple[MemoryBrick, Server, Client]]:
    brick = MemoryBrick()
    async with served(brick) as server, attached(server, "brick", **options) as client:
        yield brick, server, client


async def create(client: Translator, name: str, data: bytes = b"", caller: Caller = ME) -> Fd:
    gfid = new_gfid()
    fd = Fd(gfid, os.O_RDWR)
    await client.create(caller, at(name), fd, flags=os.O_RDWR | os.O_CREAT, mode=0o644, gfid=gfid)
    if data:
        await client.writev(caller, fd, data, offset=0)
    return fd


def names_of(event: Event) -> tuple[bytes, ...]:
    assert isinstance(event, Invalidated)
    return event.names


def run(work: Any) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(30):
            return await work

    return asyncio.run(limited())


def failed(error: pytest.ExceptionInfo[FopError]) -> int:
    return error.value.errno or 0


def test_every_operation_gives_the_answer_of_the_brick() -> None:
    async def work() -> None:
        async with link() as (brick, _, client):
            fd = await create(client, "a", b"hello")
            looked = await client.lookup(ME, at("a"), want=(b"user.x",))
            assert looked == await brick.lookup(ME, at("a")) and looked.iatt.uid == 7 and looked.parent is not None
            read = await client.readv(ME, fd, size=100, offset=1)
            assert bytes(read.data) == b"ello"
            await client.setxattr(ME, fd, {b"user.x": b"1"})
            assert await client.getxattr(ME, at("a")) == {b"user.x": b"1"}
            key = b"trusted.afr.v"
            assert (await client.xattrop(ME, fd, XattrOp.ADD, {key: bytes(11) + b"\x05"}))[key][-1] == 5
            changed = await client.setattr(ME, at("a"), SetAttr(mode=0o600, mtime_ns=-5))
            assert changed.after.mode & 0o777 == 0o600 and changed.after.mtime_ns == -5
            await client.mkdir(ME, at("d"), mode=0o755, gfid=new_gfid())
            directory = Fd(ROOT_GFID, is_directory=True)
            await client.opendir(ME, ROOT, directory)
            entries = await client.readdir(ME, directory, size=4096, offset=0, is_plus=True)
            assert {e.name for e in entries} >= {b"a", b"d"}
            assert await client.statfs(ME, ROOT) == await brick.statfs(ME, ROOT)
            await client.rename(ME, at("a"), at("b"))
            await client.release(fd)
            await client.unlink(ME, at("b"))
            with pytest.raises(FopError) as error:
                await client.lookup(ME, at("b"))
            assert failed(error) == errno.ENOENT and "client" in error.value.detail

    run(work())


def test_the_end_of_a_directory_is_not_asked_for() -> None:
    async def work() -> None:
        async with link() as (brick, _, client):
            for number in range(50):
                await client.mknod(ME, at(f"f{number}"), mode=0o100644, rdev=0, gfid=new_gfid())
            directory = Fd(ROOT_GFID, is_directory=True)
            await client.opendir(ME, ROOT, directory)
            for size in (1 << 16, 600):
                before = brick.counts["readdir"]
                names, offset, parts = [], 0, 0
                while entries := await client.readdir(ME, directory, size=size, offset=offset):
                    names += [entry.name for entry in entries]
                    offset, parts = entries[-1].offset, parts + 1
                    assert not any(entry.xattrs for entry in entries)
                assert len(names) == len(set(names)) == 50
                assert brick.counts["readdir"] - before == parts and (parts == 1) == (size > 600)
            # From the start it is listed anew.
            await client.unlink(ME, at("f7"))
            assert len(await client.readdir(ME, directory, size=1 << 16, offset=0)) == 49
            await client.release(directory)

    run(work())


def test_large_payloads_arrive_whole() -> None:
    async def work() -> None:
        async with link() as (_, _, client):
            data = os.urandom(3 << 20)
            fd = await create(client, "big")
            await asyncio.gather(
                *(
                    client.writev(ME, fd, memoryview(data)[i : i + (1 << 20)], offset=i)
                    for i in range(0, 3 << 20, 1 << 20)
                )
            )
            pieces = await asyncio.gather(
                *(client.readv(ME, fd, size=1 << 20, offset=i) for i in range(0, 3 << 20, 1 << 20))
            )
            assert b"".join(bytes(p.data) for p in pieces) == data
            with pytest.raises(FopError) as error:
                await client.writev(ME, fd, bytes(9 << 20), offset=0)
            assert failed(error) == errno.E2BIG

    run(work())


def test_create_write_and_release_are_one_frame() -> None:
    async def work() -> None:
        async with link() as (brick, server, client):
            gfid = new_gfid()
            fd = Fd(gfid, os.O_RDWR)
            steps = [
                Step("create", (at("a"), fd), {"flags": os.O_RDWR | os.O_CREAT, "mode": 0o644, "gfid": gfid}),
                Step("writev", (fd, b"content"), {"offset": 0}),
                Step("release", (fd,)),
            ]
            created, written, released = await client.compound(ME, steps)
            assert created.iatt.gfid == gfid and written.after.size == 7 and released is None
            assert brick.counts["compound"] == 1 and len(client.files) == 0 and not fd.contexts
            (calls,) = [session.calls for session in server._sessions]
            assert calls is not None and len(calls.files) == 0

    run(work())


def test_error_in_a_compound_ends_it() -> None:
    async def work() -> None:
        async with link() as (brick, _, client):
            answers = await client.compound(
                ME, [Step("stat", (ROOT,)), Step("lookup", (at("no"),)), Step("stat", (ROOT,))]
            )
            assert isinstance(answers[0], Looked) and len(answers) == 2
            assert isinstance(answers[1], FopError) and answers[1].errno == errno.ENOENT
            assert brick.counts["stat"] == 1

    run(work())


def test_calls_on_a_file_may_follow_its_open_without_waiting() -> None:
    async def work() -> None:
        async with link() as (brick, _, client):
            await create(client, "a", b"hello")
            gate = asyncio.Event()

            async def before(fop: str) -> None:
                if fop == "open":
                    await gate.wait()

            brick.before = before
            fd = Fd((await client.lookup(ME, at("a"))).iatt.gfid, os.O_RDONLY)
            opening = asyncio.ensure_future(client.open(ME, at("a"), fd, flags=os.O_RDONLY))
            await asyncio.sleep(0)
            reading = asyncio.ensure_future(client.readv(ME, fd, size=5, offset=0))
            await client.stat(ME, ROOT)
            assert not reading.done()
            gate.set()
            assert bytes((await reading).data) == b"hello"
            await opening

    run(work())


def test_client_above_the_limit_of_calls_waits_in_line() -> None:
    async def work() -> None:
        brick = MemoryBrick()
        running, most = 0, 0
        gate = asyncio.Event()

        async def before(fop: str) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await gate.wait()
            running -= 1

        async with served(brick, rpc__outstanding_rpc_limit="4") as server, attached(server, "brick") as client:
            brick.before = before
            stats = [asyncio.ensure_future(client.stat(ME, ROOT)) for _ in range(20)]
            await wait_for_async(lambda: running == 4)
            stats[10].cancel()
            gate.set()
            await asyncio.gather(*stats, return_exceptions=True)
            assert most == 4 and sum(not s.cancelled() for s in stats) == 19

    run(work())


def test_waits_for_locks_leave_room_for_the_unlock_and_can_be_given_up() -> None:
    async def work() -> None:
        brick = MemoryBrick()
        async with served(brick, rpc__outstanding_rpc_limit="1") as server, attached(server, "brick") as client:
            other = Caller(client="client", lock_owner=b"2")
            await client.inodelk(ME, "d", ROOT, LockCommand.WAIT, WHOLE)
            waits = [asyncio.ensure_future(client.inodelk(other, "d", ROOT, LockCommand.WAIT, WHOLE)) for _ in range(3)]
            await client.stat(ME, ROOT)
            waits[0].cancel()
            await client.inodelk(ME, "d", ROOT, LockCommand.TRY, Lock(LockType.UNLOCK))
            await asyncio.gather(*waits[1:])
            with pytest.raises(FopError) as error:
                await client.inodelk(ME, "d", ROOT, LockCommand.TRY, WHOLE)
            assert failed(error) == errno.EAGAIN

    run(work())


def test_locks_and_files_of_a_client_that_is_gone_are_free() -> None:
    async def work() -> None:
        brick = MemoryBrick()
        async with served(brick) as server, attached(server, "brick", client="b") as survivor:
            async with attached(server, "brick", client="a") as dying:
                fd = await create(dying, "a")
                await dying.lk(ME, fd, LockCommand.TRY, WHOLE)
                await dying.inodelk(ME, "d", ROOT, LockCommand.TRY, WHOLE)
                waiting = asyncio.ensure_future(survivor.inodelk(ME, "d", ROOT, LockCommand.WAIT, WHOLE))
                await survivor.unlink(ME, at("a"))
                assert brick.inodes[fd.gfid].opened == 1
            await waiting
            await wait_for_async(lambda: fd.gfid not in brick.inodes)

    run(work())


def test_link_that_comes_back_has_its_files_and_locks_again() -> None:
    async def work() -> None:
        async with link() as (brick, server, client):
            listener = Listener(client)
            fd = await create(client, "a", b"hello")
            await client.lk(ME, fd, LockCommand.TRY, Lock(LockType.WRITE, 0, 99))
            await client.lk(ME, fd, LockCommand.TRY, Lock(LockType.UNLOCK, 10, 19))
            gate = asyncio.Event()

            async def before(fop: str) -> None:
                if fop == "stat":
                    await gate.wait()

            brick.before = before
            in_flight = asyncio.ensure_future(client.stat(ME, ROOT))
            await wait_for_async(lambda: brick.counts["stat"])
            (session,) = server._sessions
            session.connection.abort("test")
            with pytest.raises(FopError) as error:
                await in_flight
            assert failed(error) == errno.ENOTCONN
            await wait_for_async(lambda: not client.is_up)
            gate.set()
            await wait_for_async(lambda: client.is_up)
            assert [type(e) for e in listener.events] == [ChildDown, Reconnected, ChildUp]
            assert bytes((await client.readv(ME, fd, size=5, offset=0)).data) == b"hello"
            other = Caller(client="client", lock_owner=b"2")
            held = await client.lk(other, fd, LockCommand.GET, Lock(LockType.WRITE, 0, 15))
            assert (held.first, held.last) == (0, 9)
            assert (await client.lk(other, fd, LockCommand.GET, Lock(LockType.WRITE, 10, 19))).type == LockType.UNLOCK

    run(work())


def test_file_that_the_link_has_opened_again_may_be_opened_once_more() -> None:
    """Replicate does so, it does not know of the link's own recovery; the server ended the connection, and with the
    last copy gone the application's fsync was ENOTCONN."""

    async def work() -> None:
        async with link() as (brick, server, client):
            fd = await create(client, "a", b"hello")
            await client.lk(ME, fd, LockCommand.TRY, WHOLE)
            for _ in range(2):
                (session,) = server._sessions
                session.connection.abort("test")
                await wait_for_async(lambda: not client.is_up)
                await wait_for_async(lambda: client.is_up)
                await client.open(ME, Loc(gfid=fd.gfid), fd, flags=os.O_RDWR)
                assert bytes((await client.readv(ME, fd, size=5, offset=0)).data) == b"hello"
            other = Caller(client="client", lock_owner=b"2")
            assert (await client.lk(other, fd, LockCommand.GET, WHOLE)).type == LockType.WRITE
            await client.release(fd)
            await wait_for_async(lambda: brick.inodes[fd.gfid].opened == 0)

    run(work())


def test_lock_that_somebody_else_got_meanwhile_is_reported() -> None:
    async def work() -> None:
        async with link() as (brick, server, client):
            listener = Listener(client)
            fd = await create(client, "a", b"hello")
            await client.lk(ME, fd, LockCommand.TRY, WHOLE)
            (session,) = server._sessions
            thief = Fd(fd.gfid, os.O_RDWR)
            waiting = asyncio.ensure_future(_steal(brick, thief))
            await wait_for_async(lambda: brick in thief.contexts)
            session.connection.abort("test")
            await waiting
            await wait_for_async(lambda: any(isinstance(e, Reconnected) for e in listener.events))
            assert Reconnected((fd.gfid,)) in listener.events

    run(work())


async def _steal(brick: MemoryBrick, fd: Fd) -> None:
    thief = Caller(client="thief", lock_owner=b"9")
    await brick.open(thief, Loc(gfid=fd.gfid), fd, flags=os.O_RDWR)
    await brick.lk(thief, fd, LockCommand.WAIT, WHOLE)


def test_file_opened_while_the_server_was_away_is_opened_by_its_first_use() -> None:
    async def work() -> None:
        async with link() as (brick, server, client):
            gfid = (await create(client, "a", b"hello")).gfid
            fd = Fd(gfid, os.O_RDWR | os.O_TRUNC)
            reads = await asyncio.gather(*(client.readv(ME, fd, size=5, offset=0) for _ in range(3)))
            assert all(bytes(r.data) == b"hello" for r in reads)
            assert brick.counts["open"] == 1

    run(work())


def test_upcalls_reach_the_clients_that_are_meant() -> None:
    async def work() -> None:
        brick = MemoryBrick()
        async with (
            served(brick) as server,
            attached(server, "brick", client="a") as a,
            attached(server, "brick", client="b") as b,
        ):
            hears_a, hears_b = Listener(a), Listener(b)
            (session,) = [s for s in server._sessions if s.client.startswith("a#")]
            server.notify(Invalidated(new_gfid(), clients=(session.client,)), brick)
            server.notify(Invalidated(ROOT_GFID, is_gone=True), brick)
            await wait_for_async(lambda: len(hears_a.events) == 2 and len(hears_b.events) == 1)
            assert hears_b.events == [Invalidated(ROOT_GFID, is_gone=True)]

    run(work())


def test_a_client_that_keeps_no_names_says_so_and_hears_once_of_a_directory() -> None:
    async def work() -> None:
        brick = MemoryBrick()
        async with (
            served(make(Upcall, "brick", [brick], brick.context)) as server,
            attached(server, "brick", client="a") as a,
            attached(server, "brick", client="b") as b,
            attached(server, "brick", client="heal", is_told_once=True) as heal,
        ):
            hears_b, hears_heal = Listener(b), Listener(heal)
            for client in (b, heal):
                await client.lookup(Caller(client=client.name), ROOT)
            for name in ("first", "second"):
                await create(a, name, caller=Caller(client="a"))
            await wait_for_async(lambda: len(hears_b.events) == 2)
            await heal.lookup(Caller(client="heal"), ROOT)  # events come before the answers that follow them
            assert [names_of(event) for event in hears_b.events] == [(b"first",), (b"second",)]
            assert [names_of(event) for event in hears_heal.events] == [(b"first",)]

    run(work())


def test_clients_of_a_client_are_told_apart_and_end_one_by_one() -> None:
    """A server that replicates to another one calls on behalf of its own clients."""

    async def work() -> None:
        brick = MemoryBrick()
        async with served(brick) as inner, attached(inner, "brick", client="node1") as middle:
            one, two = Caller(client="m1", lock_owner=b"1"), Caller(client="m2", lock_owner=b"1")
            await middle.inodelk(one, "d", ROOT, LockCommand.TRY, WHOLE)
            waiting = asyncio.ensure_future(middle.inodelk(two, "d", ROOT, LockCommand.WAIT, WHOLE))
            await middle.stat(ME, ROOT)
            assert not waiting.done()
            middle.client_gone("m1")
            await waiting

    run(work())


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({"auth.addr.brick.allow": "10.0.0.*"}, errno.ENOTCONN),
        ({"auth.addr.brick.allow": "*", "auth.addr.brick.reject": "127.*"}, errno.EACCES),
        ({"auth.addr.brick.allow": "10.0.0.1", "auth.addr.other.allow": "*"}, errno.EACCES),
    ],
)
def test_address_that_is_not_allowed_gets_nothing(options: dict[str, str], number: int) -> None:
    async def work() -> None:
        brick = MemoryBrick()
        server = make(Server, "server", [brick], Context(), **{"transport.socket.listen-port": "0"} | options)
        await server.start()
        try:
            async with attached(server, "brick", wait_s=0) as client:
                listener = Listener(client)
                await wait_for_async(lambda: listener.events)
                assert isinstance(listener.events[0], ChildDown)
                with pytest.raises(FopError) as error:
                    await client.stat(ME, ROOT)
                assert failed(error) == errno.ENOTCONN
                assert ("reject" in str(error.value) or "not in auth" in str(error.value)) == (number == errno.EACCES)
        finally:
            await server.stop()

    run(work())


def test_only_named_volumes_are_attached_and_each_exactly() -> None:
    async def work() -> None:
        brick = MemoryBrick()
        top = make(Translator, "top", [brick])
        async with served(top, **{"auth.addr.brick.allow": "127.0.0.1"}) as server:
            async with attached(server, "brick") as client, attached(server, "none", wait_s=0) as lost:
                await client.mkdir(ME, at("d"), mode=0o755, gfid=new_gfid())
                assert {s.calls.top for s in server._sessions if s.calls} == {brick}
                listener = Listener(lost)
                await wait_for_async(lambda: listener.events)
                assert "no option auth.addr.none.allow" in str(listener.events[0])

    run(work())


HELLO = frames.encode(Kind.HELLO, 0, encode_hello(Hello("brick", "x", bytes(16))))


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        frames.encode(Kind.CALL, 1, b"\x90"),
        frames.HEADER.pack(1 << 30, 0, 0, Kind.HELLO, 0, frames.MAGIC),
        frames.encode(Kind.HELLO, 0, b"\xc1"),
        HELLO + frames.encode(Kind.CALL, 1, b"\xc1"),
        HELLO + frames.encode(Kind.CALL, 1, b"\x92\x01\x05"),
        HELLO + frames.encode(Kind.CALLER, 0, b"\x93\x01\x02\x03"),
        HELLO + frames.encode(Kind.ANSWER, 0, b""),
        HELLO + frames.encode(Kind.RELEASE, 0, b"\x01"),
    ],
)
def test_frame_that_cannot_be_read_ends_that_connection_only(sent: bytes) -> None:
    async def work() -> None:
        async with link() as (_, server, client):
            reader, writer = await asyncio.open_connection(*server.addresses[0])
            writer.write(sent)
            while await reader.read(4096):
                pass
            writer.close()
            await client.stat(ME, ROOT)

    run(work())


def test_server_that_stops_answering_is_noticed_by_pings() -> None:
    async def work() -> None:
        async with link(ping_timeout="1") as (brick, server, client):
            listener = Listener(client)
            (session,) = server._sessions
            session.connection.pause()
            with pytest.raises(FopError) as error:
                await client.stat(ME, ROOT)
            assert failed(error) == errno.ENOTCONN
            assert "ping-timeout" in str(listener.events[0])

    run(work())


def test_other_timeouts_hold_at_once_and_cost_nobody_the_link() -> None:
    """All clients of a mount get them in the same moment: without links nothing could be read, and locks were lost."""

    async def work() -> None:
        async with link(ping_timeout="60") as (_, server, client):
            listener = Listener(client)
            (session,) = server._sessions
            given = dict(client.options.given)
            client.reconfigure(parse_options(Client.OPTIONS, given | {"ping-timeout": "1", "strict-locks": "on"}))
            await client.stat(ME, ROOT)
            assert not listener.events and list(server._sessions) == [session]
            session.connection.pause()
            with pytest.raises(FopError) as error:
                await client.stat(ME, ROOT)
            assert failed(error) == errno.ENOTCONN
            assert "1 s (ping-timeout)" in str(listener.events[0])

    run(work())


def test_pings_go_on_as_the_server_was_told_when_nobody_else_wants_them() -> None:
    """It takes a client for dead that does not ping."""

    async def work() -> None:
        async with link(ping_timeout="1") as (_, server, client):
            given = dict(client.options.given)
            client.reconfigure(parse_options(Client.OPTIONS, given | {"ping-timeout": "0"}))
            (session,) = server._sessions
            received = session.connection.received_at
            await wait_for_async(lambda: session.connection.received_at > received, 5, "a ping")

    run(work())


def test_another_server_is_connected_to_at_once() -> None:
    async def work() -> None:
        other = MemoryBrick()
        async with link() as (_, _, client), served(other) as server:
            port = str(server.addresses[0][1])
            client.reconfigure(parse_options(Client.OPTIONS, dict(client.options.given) | {"remote-port": port}))
            await wait_for_async(lambda: client.is_up and server._sessions, 5, "the other server")
            fd = await create(client, "f")
            assert fd.gfid in other.inodes

    run(work())


def test_machine_that_stood_still_for_long_does_not_cost_a_client_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A virtual machine that was paused: the brick's first look at the clock came before what its client had sent."""

    async def work() -> None:
        async with link(ping_timeout="1") as (_, server, client):
            listener, loop = Listener(client), asyncio.get_running_loop()
            (session,) = server._sessions
            real, ended = loop.time, session.ended
            monkeypatch.setattr(loop, "time", lambda: real() + 15)
            await asyncio.sleep(0.1)
            await client.stat(ME, ROOT)
            assert not ended.done() and not listener.events

    run(work())


def test_unix_socket_serves_as_well(tmp_path: Any) -> None:
    async def work() -> None:
        brick = MemoryBrick()
        path = str(tmp_path / "s")
        async with served(brick, transport_type="unix", transport__socket__listen_path=path):
            options = {"transport.socket.connect-path": path, "transport-type": "unix"}
            async with attached(1, "brick", **options) as client:
                await client.stat(ME, ROOT)
        assert not os.path.exists(path)

    run(work())


def test_name_with_several_addresses_leads_to_one_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        one, two = MemoryBrick(), MemoryBrick()
        async with served(one) as first, served(two) as second:
            ports = (free_port(), first.addresses[0][1], second.addresses[0][1])

            async def known(options: Any) -> list[Any]:
                return [(socket.AF_INET, ("127.0.0.1", port)) for port in ports]

            monkeypatch.setattr("repl.files.translators.client.addresses", known)
            async with attached(1, "brick") as client:
                await client.stat(ME, ROOT)
                assert (one.counts["stat"], two.counts["stat"]) == (1, 0)
                await first.stop()
                await wait_for_async(lambda: not client.is_up, 10, "the end of the first server")
                await wait_for_async(lambda: client.is_up, 10, "the second one")
                await client.stat(ME, ROOT)
                assert two.counts["stat"] == 1

    run(work())
