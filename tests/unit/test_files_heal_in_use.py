# SPDX-License-Identifier: Apache-2.0
"""Sweeps of the heal daemon beside clients that write (decision 0148): whom they leave alone, and whom they do not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from repl.files.heal.in_use import InUse
from repl.files.heal.info import heal_info
from repl.files.heal.sweep import Sweeper
from repl.files.rpc import handshake
from repl.files.translators.replicate.heal_locks import range_lock, take
from repl.files.translators.replicate.healing import How, Status
from repl.files.translators.replicate.transactions import Transactions
from repl.files.values import ROOT_GFID, Caller, Fd, FopError, Loc, Lock, LockCommand, LockType, SetAttr
from tests.lib.files import attached, make, posix, served
from tests.lib.replicas import Client, World
from tests.unit.test_files_heal import HEALS_OFF, assert_healed
from tests.unit.test_files_locks import FD, Locks, Top, on_locks, refused
from tests.unit.test_files_replicate import make_file, play, settle, write

QUIETLY, WRITE = LockCommand.TRY_QUIETLY, LockType.WRITE
A, B = (Caller(client=name, lock_owner=b"1", pid=1) for name in "ab")


def counting(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The requests to let go that clients get."""
    asked: list[object] = []
    before = Transactions._contended

    def contended(self: Transactions, event: object) -> None:
        asked.append(event)
        before(self, event)  # type: ignore[arg-type]

    monkeypatch.setattr(Transactions, "_contended", contended)
    return asked


async def writing(client: Client, gfid: bytes, name: bytes = b"") -> Callable[[], Awaitable[None]]:
    """The file is written, or names of the directory are made, every half second until what this returns is called."""
    is_over = False

    async def work() -> None:
        count = 0
        fd = Fd(gfid, os.O_WRONLY)
        if not name:
            await client.afr.open(client.caller, Loc(gfid=gfid), fd, flags=os.O_WRONLY)
        while not is_over:
            count += 1
            if name:
                await make_file(client, b"%s%d" % (name, count), b"", gfid)
            else:
                await client.afr.writev(client.caller, fd, b"%d" % count, offset=0)
            await asyncio.sleep(0.5)
        if not name:
            await client.afr.release(fd)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0.1)

    async def end() -> None:
        nonlocal is_over
        is_over = True
        await task

    return end


def test_a_quiet_try_asks_nobody_to_let_go() -> None:
    async def work(locks: Locks, top: Top) -> None:
        loc = Loc(gfid=FD.gfid)
        await locks.inodelk(A, "v", loc, QUIETLY, Lock(WRITE))
        await locks.entrylk(A, "v", loc, None, QUIETLY, WRITE)
        await refused(locks.inodelk(B, "v", loc, QUIETLY, Lock(WRITE)))
        await refused(locks.entrylk(B, "v", loc, b"x", QUIETLY, WRITE))
        await locks.lk(A, FD, QUIETLY, Lock(WRITE))
        await refused(locks.lk(B, FD, QUIETLY, Lock(WRITE)))
        assert top.events == []

    on_locks(work)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_server_that_does_not_know_quiet_tries_is_asked_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    if not is_known:
        monkeypatch.setattr(handshake, "FEATURES", ("compound", "events", "ends"))

    async def main() -> None:
        seen: list[LockCommand] = []
        async with posix(tmp_path / "brick") as brick:
            locks = make(Locks, "brick", [brick], brick.context)
            inodelk = locks.inodelk

            async def noting(caller: Caller, domain: str, target: Loc, command: LockCommand, lock: Lock) -> None:
                seen.append(command)
                await inodelk(caller, domain, target, command, lock)

            locks.inodelk = noting  # type: ignore[method-assign,assignment]
            async with served(locks) as server, attached(server, "brick") as client:
                await client.inodelk(A, "v", Loc(gfid=ROOT_GFID), QUIETLY, Lock(WRITE))
                await refused(client.inodelk(B, "v", Loc(gfid=ROOT_GFID), QUIETLY, Lock(WRITE)))
        assert seen == [QUIETLY if is_known else LockCommand.TRY] * 2

    asyncio.run(main())


def test_a_sweep_leaves_open_transactions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counting(monkeypatch)

    async def scene(world: World) -> None:
        client, daemon = await world.client(), await world.client()
        gfid = await make_file(client, b"a", b"x")
        await settle()
        ends = [await writing(client, gfid), await writing(client, ROOT_GFID, b"n")]
        progress = await Sweeper(daemon.afr).index()
        assert progress.by_status[Status.IN_USE] >= 2
        assert progress.healed == progress.undone == 0
        assert not any(brick.items for brick in await heal_info(daemon.afr))
        assert asked == []
        for end in ends:
            await end()
        await settle()
        assert world.pending() == {}

    play(2, scene, **HEALS_OFF)


def test_who_heals_an_inode_is_not_asked_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counting(monkeypatch)

    async def scene(world: World) -> None:
        client, daemon = await world.client(), await world.client()
        gfid = await make_file(client, b"a", b"x")
        await settle()
        afr = client.afr
        await take(afr, afr.everyone, afr.owner(), range_lock(afr.heal_domain, Loc(gfid=gfid)), [])
        for waits in (False, True):
            assert (await daemon.afr.healer.heal(gfid, How(waits=waits))).status is Status.BUSY
        assert asked == []

    play(2, scene, **HEALS_OFF)


def test_a_heal_on_access_asks_nobody_to_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counting(monkeypatch)

    async def scene(world: World) -> None:
        client, other = await world.client(), await world.client()
        gfid = await make_file(client, b"a", b"x")
        await settle()
        end = await writing(client, gfid)
        await other.afr.lookup(other.caller, Loc(gfid=gfid))
        assert other.afr.heals.length
        await other.afr.heals.idle()
        assert asked == []
        await end()

    play(2, scene)


def test_heals_on_access_ask_when_a_file_is_in_use_for_longer_than_heal_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = counting(monkeypatch)

    async def scene(world: World) -> None:
        client, other = await world.client(), await world.client()
        gfid = await make_file(client, b"a", b"x")
        await settle()
        end = await writing(client, gfid)
        for seconds, is_asked in ((0, False), (700, True), (700, False)):
            await asyncio.sleep(seconds)
            asked.clear()
            await other.afr.lookup(other.caller, Loc(gfid=gfid))
            await other.afr.heals.idle()
            assert bool(asked) is is_asked
        await end()

    play(2, scene)


@pytest.mark.parametrize("is_directory", [False, True])
def test_an_old_copy_is_healed_at_once_although_it_is_always_in_use(is_directory: bool) -> None:
    async def scene(world: World) -> None:
        client, daemon = await world.client(), await world.client()
        gfid = await make_file(client, b"a", b"x" * 1000)
        await settle()
        world.crash(1)
        await write(client, gfid, b"y", 500)
        await make_file(client, b"b")
        await settle()
        end = await writing(client, ROOT_GFID if is_directory else gfid, b"n" if is_directory else b"")
        world.come_back(1)
        await asyncio.sleep(3)
        progress = await Sweeper(daemon.afr).index()
        assert progress.healed >= 2
        assert [where for where in world.pending() if not where.endswith(".dirty")] == []
        await end()
        await settle()
        assert_healed(world)

    play(2, scene, **HEALS_OFF)


async def leave_half(client: Client, fop: str, work: Awaitable[object]) -> None:
    """The client dies when the first brick has carried out ``fop``."""
    world = client.world

    async def die(who: str, brick: str, what: str, is_done: bool) -> None:
        await asyncio.sleep(0)
        if who == client.name and what == fop and is_done and not client.is_dead:
            client.die()

    world.hook = die
    with pytest.raises((FopError, asyncio.CancelledError)):
        await work


def test_what_a_dead_client_left_is_healed_at_once_although_another_one_always_writes_there() -> None:
    async def scene(world: World) -> None:
        client, other, daemon = await world.client(), await world.client(), await world.client()
        gfid = await make_file(client, b"a", b"x" * 1000)
        await settle()
        fd = Fd(gfid, os.O_WRONLY)
        await other.afr.open(other.caller, Loc(gfid=gfid), fd, flags=os.O_WRONLY)
        await leave_half(other, "writev", other.afr.writev(other.caller, fd, b"zz", offset=500))
        end = await writing(client, gfid)
        end_names = await writing(client, ROOT_GFID, b"n")
        progress = await Sweeper(daemon.afr).index()
        assert progress.healed == 1 and progress.by_status[Status.IN_USE] >= 1
        await end()
        await end_names()
        await settle()
        assert_healed(world)

    play(2, scene, **HEALS_OFF)


def test_names_that_a_dead_client_left_are_healed_although_another_one_comes_meanwhile() -> None:
    async def scene(world: World) -> None:
        client, other, daemon = await world.client(), await world.client(), await world.client()
        await leave_half(other, "create", make_file(other, b"half"))
        ends: list[Callable[[], Awaitable[None]]] = []

        async def come(who: str, brick: str, what: str, is_done: bool) -> None:
            await asyncio.sleep(0)
            if who == daemon.name and what == "readdir" and not ends:
                ends.append(settle)  # only once
                ends.append(await writing(client, ROOT_GFID, b"n"))

        world.hook = come
        outcome = await daemon.afr.healer.heal(ROOT_GFID, How(waits=False))
        assert outcome.status is Status.HEALED
        for gfid in outcome.more:
            await daemon.afr.healer.heal(gfid, How())
        await ends[1]()
        await settle()
        assert_healed(world)

    play(2, scene, **HEALS_OFF)


def test_what_cannot_be_told_from_an_open_transaction_is_healed_after_two_sweeps() -> None:
    """A dead client's mark of attributes beside a live one's mark of data."""

    async def scene(world: World) -> None:
        client, other, daemon = await world.client(), await world.client(), await world.client()
        gfid = await make_file(client, b"a", b"x" * 1000)
        await settle()
        work = other.afr.setattr(other.caller, Loc(gfid=gfid), SetAttr(mode=0o600))
        await leave_half(other, "setattr", work)
        end = await writing(client, gfid)
        sweeper = Sweeper(daemon.afr)
        timeout_s = daemon.afr.options["heal-timeout"]
        for seconds, healed in ((0, 0), (timeout_s / 2, 0), (timeout_s / 2 + 1, 1), (1, 0)):
            await asyncio.sleep(seconds)
            progress = await sweeper.index()
            assert progress.healed == healed
        await end()
        await settle()
        assert_healed(world)

    play(2, scene, **HEALS_OFF, optimistic_change_log="off")


def test_how_long_an_inode_has_been_in_use() -> None:
    found = InUse(2)
    for now, names in ((10, b"ab"), (20, b"a"), (30, b"ab")):
        found.begin()
        for name in b"ab":
            found.note(bytes((name,)), now, is_in_use=name in names)
        found.end()
    assert found.for_s(b"a", 40) == 30 and found.for_s(b"b", 40) == 10
    found.note(b"c", 40, is_in_use=True)
    assert found.for_s(b"c", 50) == 0  # no place
    found.begin()
    found.note(b"a", 50, is_in_use=True)
    assert found.for_s(b"b", 60) == 30  # not looked at yet
    found.begin()  # the one before was given up
    assert found.for_s(b"a", 60) == 50 and found.for_s(b"b", 60) == 30
    found.end()
    assert found.for_s(b"a", 60) == found.for_s(b"b", 60) == 0
