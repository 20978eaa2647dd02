# SPDX-License-Identifier: Apache-2.0
"""features/upcall and features/arbiter."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from repl.files.events import Event, Invalidated
from repl.files.options import Options
from repl.files.translator import Context, Step, Translator
from repl.files.translators import upcall
from repl.files.translators.arbiter import Arbiter
from repl.files.translators.upcall import Upcall
from repl.files.values import ONCE, ROOT, ROOT_GFID, Caller, Fd, FopError, Loc, SetAttr
from tests.lib.files import at, make, new_gfid
from tests.lib.memory_brick import MemoryBrick

A, B = Caller(client="a"), Caller(client="b")


class Top(Translator):
    def __init__(self, child: Translator) -> None:
        super().__init__("top", Options((), {}, {}), [child], child.context)
        self.events: list[Invalidated] = []

    def notify(self, event: Event, child: Translator | None) -> None:
        assert isinstance(event, Invalidated)
        self.events.append(event)

    def take(self) -> list[Invalidated]:
        events, self.events = self.events, []
        return events


class Brick(MemoryBrick):
    """Its own upcalls are not what is tested."""

    def _tell(self, caller: Caller, event: Event) -> None:
        pass


def on_upcall(work: Callable[[Upcall, Top, Brick], Awaitable[None]]) -> None:
    async def main() -> None:
        context = Context()
        brick = Brick("brick", context=context)
        calls = make(Upcall, "upcall", [brick], context)
        await work(calls, Top(calls), brick)

    asyncio.run(main())


async def new_file(calls: Upcall, caller: Caller, name: str) -> Fd:
    fd = Fd(new_gfid(), os.O_RDWR)
    await calls.create(caller, at(name), fd, flags=os.O_RDWR, mode=0o644, gfid=fd.gfid)
    return fd


def test_those_who_know_an_inode_hear_once_of_what_others_do_to_it() -> None:
    async def work(calls: Upcall, top: Top, _: Brick) -> None:
        fd = await new_file(calls, A, "f")
        await calls.writev(A, fd, b"x", offset=0)
        assert top.take() == []  # nobody else knows
        await calls.stat(B, Loc(gfid=fd.gfid))
        await calls.writev(A, fd, b"y", offset=0)
        await calls.writev(A, fd, b"z", offset=0)
        assert top.take() == [Invalidated(fd.gfid, is_data=True, clients=("b",))]
        await calls.readv(B, fd, size=1, offset=0)
        await calls.setattr(A, Loc(gfid=fd.gfid), SetAttr(mode=0o600))
        await calls.setattr(B, Loc(gfid=fd.gfid), SetAttr(mode=0o600))
        assert top.take() == [Invalidated(fd.gfid, clients=("b",)), Invalidated(fd.gfid, clients=("a",))]

    on_upcall(work)


def test_names_are_told_to_whoever_looked_into_the_directory_even_in_vain() -> None:
    async def work(calls: Upcall, top: Top, _: Brick) -> None:
        with pytest.raises(FopError):
            await calls.lookup(B, at("f"))
        fd = await new_file(calls, A, "f")
        await new_file(calls, A, "g")
        assert top.take() == [
            Invalidated(ROOT_GFID, names=(b"f",), clients=("b",)),
            Invalidated(ROOT_GFID, names=(b"g",), clients=("b",)),
        ]
        g = (await calls.lookup(B, at("g"))).iatt.gfid
        await calls.rename(A, at("f"), at("g"))
        assert [(e.gfid, e.names) for e in top.take()] == [(ROOT_GFID, (b"f",)), (ROOT_GFID, (b"g",)), (g, ())]
        await calls.lookup(B, at("g"))
        await calls.unlink(A, at("g"))
        assert top.take()[-1] == Invalidated(fd.gfid, is_gone=True, clients=("b",))

    on_upcall(work)


def test_of_what_is_gone_nothing_is_remembered_unless_others_may_have_it_open() -> None:
    async def work(calls: Upcall, top: Top, _: Brick) -> None:
        for name in ("f", "g"):
            await new_file(calls, A, name)
            await calls.unlink(A, at(name))
        assert calls.state()["inodes"] == 1  # the directory
        fd = await new_file(calls, A, "h")
        await calls.open(B, Loc(gfid=fd.gfid), Fd(fd.gfid), flags=os.O_RDONLY)
        await calls.unlink(A, at("h"))
        top.take()
        await calls.writev(B, fd, b"x", offset=0)
        assert top.take() == [Invalidated(fd.gfid, is_data=True, clients=("a",))]

    on_upcall(work)


def test_who_keeps_no_names_is_told_once_until_it_looks_again() -> None:
    healer = Caller(client=f"{ONCE}heal")

    async def work(calls: Upcall, top: Top, _: Brick) -> None:
        for _ in range(2):
            await calls.lookup(healer, ROOT)
            await calls.lookup(B, ROOT)
            names = [new_gfid().hex() for _ in range(2)]
            for name in names:
                await new_file(calls, A, name)
            told = [(event.names, set(event.clients)) for event in top.take()]
            assert told == [((names[0].encode(),), {"b", healer.client}), ((names[1].encode(),), {"b"})]

    on_upcall(work)


def test_an_answer_that_was_on_its_way_during_a_change_is_followed_by_an_event() -> None:
    async def work(calls: Upcall, top: Top, brick: Brick) -> None:
        fd = await new_file(calls, A, "f")
        gate = asyncio.Event()

        async def hold(fop: str) -> None:
            if fop == "readv":
                await gate.wait()

        brick.before = hold
        read = asyncio.ensure_future(calls.readv(B, fd, size=1, offset=0))
        await asyncio.sleep(0)
        await calls.writev(A, fd, b"x", offset=0)
        assert top.take() == []
        gate.set()
        await read
        await asyncio.sleep(0)
        assert top.take() == [Invalidated(fd.gfid, is_data=True, clients=("b",))]

    on_upcall(work)


def test_what_no_longer_fits_is_told_as_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upcall, "UPCALL_INODES_MAX", 2)
    monkeypatch.setattr(upcall, "UPCALL_CLIENTS_MAX", 1)

    async def work(calls: Upcall, top: Top, brick: Brick) -> None:
        files = [await new_file(calls, Caller(), f"f{i}") for i in range(3)]
        for fd in files:
            await calls.stat(A, fd)
        assert top.take() == [Invalidated(files[0].gfid, is_data=True, clients=("a",))]
        await calls.stat(B, files[2])
        assert top.take() == [Invalidated(files[2].gfid, is_data=True, clients=("a",))]
        calls.client_gone("b")
        await calls.writev(Caller(), files[2], b"x", offset=0)
        assert top.take() == []

    on_upcall(work)


def test_arbiter_keeps_names_and_counters_but_no_data() -> None:
    async def main() -> None:
        arbiter = make(Arbiter, "arbiter", [MemoryBrick("brick")])
        fd = Fd(new_gfid(), os.O_RDWR)
        await arbiter.create(A, at("f"), fd, flags=os.O_RDWR, mode=0o644, gfid=fd.gfid)
        assert (await arbiter.writev(A, fd, b"data", offset=10)).after.size == 0
        assert (await arbiter.truncate(A, fd, 100)).after.size == 0
        assert (await arbiter.fallocate(A, fd, mode=0, offset=0, length=100)).after.size == 0
        for call in (
            arbiter.readv(A, fd, size=1, offset=0),
            arbiter.seek(A, fd, offset=0, what=os.SEEK_DATA),
            arbiter.rchecksum(A, fd, offset=0, length=1),
        ):
            with pytest.raises(FopError) as caught:
                await call
            assert caught.value.errno == errno.ENOSYS
        assert (await arbiter.lookup(A, at("f"))).iatt.size == 0
        await arbiter.setattr(A, ROOT, SetAttr(mode=0o700))

    asyncio.run(main())


def test_several_lookups_at_once_are_remembered_one_by_one() -> None:
    async def work(calls: Upcall, top: Top, _: Brick) -> None:
        fds = [await new_file(calls, A, f"f{number}") for number in range(3)]
        steps = [Step("lookup", (Loc(gfid=fd.gfid),)) for fd in fds]
        answers = await calls.compound(B, [*steps, Step("lookup", (Loc(gfid=new_gfid()),))])
        assert len(answers) == 4 and isinstance(answers[-1], FopError)
        for fd in fds:
            await calls.writev(A, fd, b"x", offset=0)
        assert [(event.gfid, event.clients) for event in top.take()] == [(fd.gfid, ("b",)) for fd in fds]

    on_upcall(work)


def test_a_change_during_several_lookups_is_told_behind_their_answer() -> None:
    async def work(calls: Upcall, top: Top, brick: Brick) -> None:
        fd = await new_file(calls, A, "f")
        steps = [Step("lookup", (Loc(gfid=fd.gfid),)), Step("lookup", (ROOT,))]
        answer = brick.compound

        async def late(caller: Caller, steps: Sequence[Step]) -> list[Any]:
            answers = await answer(caller, steps)
            await calls.writev(A, fd, b"x", offset=0)
            return answers

        brick.compound = late  # type: ignore[method-assign]
        await calls.compound(B, steps)
        assert top.take() == []  # the answer goes first
        await asyncio.sleep(0)
        assert [(event.gfid, event.clients) for event in top.take()] == [(fd.gfid, ("b",))]

    on_upcall(work)
