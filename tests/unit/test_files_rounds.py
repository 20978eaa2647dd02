# SPDX-License-Identifier: Apache-2.0
"""Operations that replicate sends to real links at once, and what their shortcuts must not change."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from repl.files import volfile
from repl.files.graph import Graph
from repl.files.rounds import Round
from repl.files.translator import Context
from repl.files.translators.client import Client
from repl.files.translators.locks import Locks
from repl.files.translators.replicate import Replicate
from repl.files.translators.server import Server
from repl.files.values import NEW_LOCK, ROOT, Caller, Fd, FopError, Loc, Lock, LockCommand, LockType, SetAttr
from tests.lib.files import at, attached, make, new_gfid, posix, served
from tests.lib.wait import wait_for_async

ME = Caller(client="me", lock_owner=b"1")
OTHER = Caller(client="other", lock_owner=b"2")
DOMAIN = "pair"
PASSING = """
volume brick
  type storage/posix
  option directory {}
  option reserve 0
end-volume
volume locks
  type features/locks
  subvolumes brick
end-volume
volume stats
  type debug/io-stats
  option count-fop-hits {}
  subvolumes locks
end-volume
volume top
  type performance/write-behind
  subvolumes stats
end-volume
"""


@asynccontextmanager
async def pair(path: Path) -> AsyncIterator[tuple[Replicate, list[Locks], list[Client], list[Server]]]:
    """Two bricks behind links, replicated."""
    async with (
        posix(path / "a") as first, posix(path / "b") as second,
        served(one := make(Locks, "brick", [first], first.context)) as near,
        served(other := make(Locks, "brick", [second], second.context)) as far,
        attached(near, "brick", client="client-0") as left, attached(far, "brick", client="client-1") as right,
    ):  # fmt: skip
        afr = make(Replicate, DOMAIN, [left, right], Context(process="me", wall_ns=lambda: 0))
        afr.up, afr.unknown = 3, 0
        await afr.start()
        yield afr, [one, other], [left, right], [near, far]
        await afr.stop()


async def is_locked(brick: Locks, gfid: bytes) -> bool:
    try:
        await brick.inodelk(OTHER, DOMAIN, Loc(gfid=gfid), LockCommand.TRY, Lock(LockType.WRITE))
    except FopError as error:
        assert error.errno == errno.EAGAIN
        return True
    await brick.inodelk(OTHER, DOMAIN, Loc(gfid=gfid), LockCommand.TRY, Lock(LockType.UNLOCK))
    return False


def test_changes_reach_both_copies(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (afr, _, clients, _):
            fd = Fd(new_gfid(), os.O_RDWR)
            await afr.create(ME, at("f"), fd, flags=os.O_RDWR | os.O_EXCL, mode=0o600, gfid=fd.gfid)
            await afr.writev(ME, fd, b"some data", offset=0)
            changed = await afr.setattr(ME, fd, SetAttr(mode=0o640))
            assert changed.after.mode & 0o7777 == 0o640 and changed.after.size == 9
            assert [(tmp_path / name / "f").read_bytes() for name in "ab"] == [b"some data"] * 2
            assert [(tmp_path / name / "f").stat().st_mode & 0o7777 for name in "ab"] == [0o640] * 2
            assert (await afr.lookup(ME, at("f"))).iatt.gfid == fd.gfid
            await afr.unlink(ME, at("f"))
            assert not any((tmp_path / name / "f").exists() for name in "ab")
            await afr.release(fd)
            await afr.finish()
            assert all(len(client.files) == 0 for client in clients)

    asyncio.run(main())


def test_an_error_of_one_child_is_its_answer(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (afr, _, _, _):
            (tmp_path / "b/there").write_text("")
            answers = await afr.ask_all(3, "unlink", ME, [at("there")])
            assert answers[0].errno == errno.ENOENT and answers[1].iatt.nlink == 0
            assert list(answers) == [0, 1]

    asyncio.run(main())


def test_more_calls_than_the_server_takes_at_a_time(tmp_path: Path) -> None:
    """Those that have to wait for their turn are called as any other operation."""

    async def main() -> None:
        async with pair(tmp_path) as (afr, _, _, _):
            asked = [afr.ask_all(3, "lookup", ME, [ROOT, ()]) for _ in range(600)]
            for answers in await asyncio.gather(*asked):
                assert answers[0].iatt.gfid == answers[1].iatt.gfid == ROOT.gfid

    asyncio.run(main())


def test_a_lost_link_answers_every_round(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (afr, _, clients, servers):
            asked = asyncio.gather(*(afr.ask_all(3, "lookup", ME, [ROOT, ()]) for _ in range(5)))
            await asyncio.sleep(0)
            assert clients[0].outstanding == clients[1].outstanding == 5
            await servers[1].stop()
            for answers in await asked:
                assert answers[0].iatt.gfid == ROOT.gfid
                assert not isinstance(answers[1], OSError) or answers[1].errno == errno.ENOTCONN

    asyncio.run(main())


def test_what_a_given_up_round_took_is_given_back(tmp_path: Path) -> None:
    """A file that comes with a lock: nobody waits for the answers any more, before and after they have come."""

    async def main(turns: int) -> None:
        async with pair(tmp_path / str(turns)) as (afr, bricks, clients, _):
            fd = Fd(new_gfid(), os.O_RDWR)
            values = [at("f"), fd, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, fd.gfid, {NEW_LOCK: DOMAIN.encode()}]
            task = asyncio.ensure_future(afr.ask_all(3, "create", ME, values))
            await asyncio.sleep(0)
            if turns:  # one has answered
                await wait_for_async(lambda: min(c.outstanding for c in clients) == 0, 10, "an answer")
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                return  # both came in one turn: nothing was given up
            await wait_for_async(lambda: all(not c.outstanding for c in clients), 10, "all answers")
            for brick in bricks:
                while await is_locked(brick, fd.gfid):
                    await asyncio.sleep(0)
            assert all(len(client.files) == 0 for client in clients)

    for turns in (0, 1):
        (tmp_path / str(turns)).mkdir()
        asyncio.run(main(turns))


def test_a_round_without_links_is_called(tmp_path: Path) -> None:
    async def main() -> None:
        async with posix(tmp_path / "a") as brick:
            assert not brick.begin_call(Round(), 0, "lookup", ME, [ROOT, ()])

    asyncio.run(main())


def test_a_started_graph_calls_only_those_that_do_something(tmp_path: Path) -> None:
    """And what an option switches on afterwards is called again."""

    def graph_of(counts: str) -> volfile.Volfile:
        return volfile.parse(PASSING.format(tmp_path / "brick", counts), "test.vol")

    async def main() -> None:
        (tmp_path / "brick").mkdir()
        graph = Graph(graph_of("off"), Context(process="me"))
        await graph.start()
        brick, stats = graph.translators["brick"], graph.translators["stats"]
        assert graph.top.getxattr == brick.getxattr
        assert graph.top.lookup != brick.lookup
        await graph.top.statfs(ME, ROOT)
        assert "statfs.calls" not in stats.state()
        graph.reconfigure(graph_of("on"))
        await graph.top.statfs(ME, ROOT)
        assert stats.state()["statfs.calls"] == 1
        graph.reconfigure(graph_of("off"))
        await graph.top.statfs(ME, ROOT)
        assert stats.state()["statfs.calls"] == 1
        await graph.stop()

    asyncio.run(main())
