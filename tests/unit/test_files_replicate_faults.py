# SPDX-License-Identifier: Apache-2.0
"""cluster/replicate when bricks go while they are asked: who is believed, what half a rename becomes, and what a
heal copies."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from repl.files.events import Event, Invalidated
from repl.files.translator import Step
from repl.files.translators.replicate.changelog import Kind, plus_one
from repl.files.translators.replicate.heal_places import Places
from repl.files.translators.replicate.healing import How, Status
from repl.files.values import ROOT_GFID, Caller, Fd, FopError, Loc, SetAttr
from tests.lib.replicas import Client, World
from tests.unit.test_files_heal import HEALS_OFF, assert_healed, heal_all, make_directory
from tests.unit.test_files_replicate import counters, make_file, play, read, settle, write


def at_root(name: bytes, gfid: bytes = bytes(16)) -> Loc:
    return Loc(gfid, ROOT_GFID, name)


async def find(client: Client, name: bytes) -> bytes:
    return (await client.afr.lookup(client.caller, at_root(name))).iatt.gfid


async def shows(client: Client, name: bytes) -> bool | None:
    """Whether the name is there; None: that is not known."""
    try:
        await find(client, name)
    except FopError as error:
        assert error.errno in (errno.ENOENT, errno.ENOTCONN)
        return False if error.errno == errno.ENOENT else None
    return True


def names(world: World, index: int) -> dict[bytes, bytes]:
    return {p[1:]: about[6] for p, about in world.tree(index).items() if p != b"/"}


async def rename_on_the_last_only(world: World, client: Client, gfid: bytes) -> None:
    """new -> f, which is done on one brick of three and fails."""

    async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
        if fop == "rename" and not is_done and brick != "brick2":
            world.crash(int(brick[-1]))

    no_fault, world.hook = world.hook, hook
    with pytest.raises(FopError):
        await client.afr.rename(client.caller, at_root(b"new", gfid), at_root(b"f"))
    world.hook = no_fault
    await settle()


def test_an_old_copy_is_not_believed_when_the_others_go_while_all_are_asked() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        world.crash(2)
        await make_file(client, b"a", b"data")
        await settle()
        world.come_back(2)
        is_armed = True

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            nonlocal is_armed
            if is_armed and fop == "lookup" and brick != "brick2":
                is_armed = False
                world.crash(0)
                world.crash(1)

        world.hook = hook
        for ask in (client.afr.opendir(client.caller, at_root(b"", ROOT_GFID), Fd(ROOT_GFID)), find(client, b"a")):
            with pytest.raises(FopError) as caught:
                await ask
            assert caught.value.errno == errno.ENOTCONN
        assert not is_armed

    play(3, scene, **HEALS_OFF)


def test_two_old_copies_together_do_not_show_what_was_removed() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"data")
        await settle()
        world.crash(1)
        await make_file(client, b"x")
        await settle()
        world.crash(2)
        world.come_back(1)
        await client.afr.unlink(client.caller, at_root(b"a", gfid))
        await settle()
        world.crash(0)
        world.come_back(2)
        assert [b"a" in names(world, i) for i in (1, 2)] == [False, True]
        for ask in (find(client, b"a"), client.afr.opendir(client.caller, at_root(b"", ROOT_GFID), Fd(ROOT_GFID))):
            with pytest.raises(FopError) as caught:
                await ask
            assert caught.value.errno == errno.ENOTCONN
        world.come_back(0)
        with pytest.raises(FopError) as caught:
            await find(client, b"a")
        assert caught.value.errno == errno.ENOENT
        await find(client, b"x")
        await heal_all(client)
        assert_healed(world)

    play(3, scene, **HEALS_OFF)


@pytest.mark.parametrize("is_there", [False, True], ids=["nothing there before", "another file there before"])
def test_half_a_rename_leaves_one_name_not_two(is_there: bool) -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        if is_there:
            await make_file(client, b"f", b"old")
        gfid = await make_file(client, b"new", b"data")
        await settle()
        await rename_on_the_last_only(world, client, gfid)
        for index in (0, 1):
            world.come_back(index)
        await heal_all(client)
        assert_healed(world)
        undone = {b"new": b"data", b"f": b"old"} if is_there else {b"new": b"data"}
        assert names(world, 0) in (undone, {b"f": b"data"})

    play(3, scene, **HEALS_OFF)


def test_half_a_rename_is_not_seen_under_both_names() -> None:
    """The program whose rename failed looks at the old name; before, it found the file, which has the new name on one
    copy, and wrote into it."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"new", b"data")
        await settle()
        await rename_on_the_last_only(world, client, gfid)
        for index in (0, 1):
            world.come_back(index)
        found = []
        for name in (b"new", b"f"):
            try:
                found.append(await find(client, name))
            except FopError as error:
                assert error.errno == errno.ENOENT
        assert found == [gfid]
        await heal_all(client)
        assert_healed(world)

    play(3, scene, **HEALS_OFF)


def test_what_a_heal_of_two_copies_decides_holds_for_the_third() -> None:
    """Each pair is healed by itself: the third one must not be thought equal afterwards."""

    async def scene(world: World) -> None:
        client = await world.client()
        await make_file(client, b"f", b"old")
        gfid = await make_file(client, b"new", b"data")
        await settle()
        await rename_on_the_last_only(world, client, gfid)
        world.crash(2)
        for index in (0, 1):
            world.come_back(index)
        await client.afr.healer.heal(ROOT_GFID, How())
        decided = names(world, 0)
        world.crash(1)
        world.come_back(2)
        await client.afr.healer.heal(ROOT_GFID, How())
        assert await read(client, await find(client, b"f")) == decided[b"f"]
        world.come_back(1)
        await heal_all(client)
        assert_healed(world)
        assert names(world, 0) == decided

    play(3, scene, **HEALS_OFF)


def test_a_file_is_replaced_while_one_brick_is_away_and_another_is_not_healed_yet() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        await make_file(client, b"f", b"old")
        gfid = await make_file(client, b"new", b"data")
        await settle()
        world.crash(1)
        await make_file(client, b"x")
        await settle()
        world.crash(2)
        world.come_back(1)
        await client.afr.rename(client.caller, at_root(b"new", gfid), at_root(b"f"))
        assert await find(client, b"f") == gfid
        world.come_back(2)
        await heal_all(client)
        assert_healed(world)
        assert names(world, 0) == {b"f": b"data", b"x": b""}

    play(3, scene, **HEALS_OFF)


@pytest.mark.parametrize("index", [0, 1])
def test_who_appends_does_not_notice_that_a_brick_goes_while_it_is_asked_for_the_size(index: int) -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"log", b"one ")
        await settle()
        asked: list[str] = []

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            if fop == "stat" and not is_done and not asked:
                asked.append(brick)
                world.crash(int(brick[-1]))

        client.afr.preferred = index
        world.hook = hook
        await write(client, gfid, b"two", flags=os.O_APPEND)
        assert asked == [f"brick{index}"]
        world.come_back(index)
        await heal_all(client)
        assert_healed(world)
        assert await read(client, gfid) == b"one two"

    play(2, scene, **HEALS_OFF)


@pytest.mark.parametrize("fop", ["writev", "setattr"])
def test_who_misses_a_part_of_a_frame_is_accused_of_all_of_it(fop: str) -> None:
    """A write and attributes behind it, in one frame; a brick goes before one of them."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"f", b"before")
        fd = Fd(gfid, os.O_RDWR)
        await client.afr.open(client.caller, Loc(gfid=gfid), fd, flags=os.O_RDWR)

        async def hook(who: str, brick: str, name: str, is_done: bool) -> None:
            if name == fop and brick == "brick1" and not is_done:
                world.crash(1)

        no_fault, world.hook = world.hook, hook
        steps = [Step("writev", (fd, b"after!"), {"offset": 0, "flags": 0}), Step("setattr", (fd, SetAttr(uid=7)))]
        answers = await client.afr.compound(client.caller, steps)
        world.hook = no_fault
        assert [answer.after.size for answer in answers] == [6, 6] and answers[1].after.uid == 7
        await client.afr.release(fd)
        await settle()
        # The link took all answers of the frame with it.
        assert world.pending()[f"brick0 {gfid.hex()[-6:]} trusted.afr.brick1"] == (1, 1, 0)
        world.come_back(1)
        await heal_all(client)
        assert_healed(world)

    play(2, scene, **HEALS_OFF)


@pytest.mark.parametrize("copies", [2, 3])
def test_who_changes_a_file_that_another_client_removes_is_told_so(copies: int) -> None:
    """On one copy the change was in time, on the others not: nobody is away."""

    async def scene(world: World) -> None:
        client, other = await world.client(), await world.client()
        gfid = await make_file(client, b"f")
        await settle()
        removed = asyncio.Event()

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            if who != client.name or fop != "setattr":
                await asyncio.sleep(0)
            elif brick != "brick0":
                await removed.wait()
            elif is_done:
                await other.afr.unlink(other.caller, at_root(b"f"))
                removed.set()

        world.hook = hook
        for _ in range(2):
            with pytest.raises(FopError) as caught:
                await client.afr.setattr(client.caller, Loc(gfid=gfid), SetAttr(uid=7))
            assert caught.value.errno == errno.ESTALE

    play(copies, scene, **HEALS_OFF)


def test_what_an_old_copy_lacks_is_not_told_while_the_good_one_goes() -> None:
    """The rename of a directory took it for a copy that is not there, and was done without this one."""

    async def scene(world: World) -> None:
        client = await world.client()
        world.crash(0)
        gfid = await make_directory(client, b"d")
        await settle()
        world.come_back(0)

        tenure = await client.afr.hold(client.afr.inodes.get(ROOT_GFID), Kind.ENTRY, is_entry=True)
        world.crash(1)
        answers = {0: FopError(errno.ENOENT), 1: FopError(errno.ENOTCONN)}
        with pytest.raises(FopError) as caught:
            await client.afr.settle(tenure, Kind.ENTRY, answers)
        assert caught.value.errno == errno.ENOTCONN
        tenure.unpin()
        assert gfid not in world.bricks[0].inodes

    play(2, scene, **HEALS_OFF)


def test_who_opens_a_directory_that_is_gone_from_its_only_good_copy_is_told_so() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_directory(client, b"d")
        await settle()
        client.afr.inodes.get(gfid).readable[Kind.ENTRY] = 1
        await world.bricks[0].rmdir(client.caller, at_root(b"d"))
        with pytest.raises(FopError) as caught:
            await client.afr.opendir(client.caller, Loc(gfid=gfid), Fd(gfid, is_directory=True))
        assert caught.value.errno == errno.ESTALE

    play(2, scene, **HEALS_OFF)


async def noting_frames(frames: list[list[str]], send: Any, caller: Caller, steps: Sequence[Step]) -> list[Any]:
    frames.append([step.fop for step in steps])
    answers: list[Any] = await send(caller, steps)
    return answers


def test_attributes_of_one_frame_are_one_transaction() -> None:
    """A copy that misses the second is accused; what all refuse is told behind the answers before it."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"f")
        await settle()
        color = Step("setxattr", (Loc(gfid=gfid), {b"user.color": b"red"}))
        steps = [color, Step("setattr", (Loc(gfid=gfid), SetAttr(uid=7)))]
        asked: list[str] = []
        missing: list[str] = []

        async def hook(who: str, brick: str, name: str, is_done: bool) -> None:
            if not is_done:
                asked.append(name)
            if name == "setattr" and brick in missing and not is_done:
                raise FopError(errno.EIO)

        frames: list[list[str]] = []
        for link in client.links:
            link.compound = partial(noting_frames, frames, link.compound)  # type: ignore[method-assign]
        no_fault, world.hook = world.hook, hook
        answers = await client.afr.compound(client.caller, steps)
        assert answers[0] is None and answers[1].after.uid == 7
        assert frames[2:] == [["setxattr", "setattr"]] * 2  # behind the lock
        assert asked.count("inodelk") == 2
        missing.append("brick1")
        steps[1] = Step("setattr", (Loc(gfid=gfid), SetAttr(uid=8)))
        assert (await client.afr.compound(client.caller, steps))[1].after.uid == 8
        missing.append("brick0")
        assert [a and a.errno for a in await client.afr.compound(client.caller, steps)] == [None, errno.EIO]
        world.hook = no_fault
        await settle()
        assert world.pending()[f"brick0 {gfid.hex()[-6:]} trusted.afr.brick1"] == (0, 1, 0)
        assert f"brick1 {gfid.hex()[-6:]} trusted.afr.brick0" not in world.pending()
        await heal_all(client)
        assert {brick.inodes[gfid].iatt.uid for brick in world.bricks} == {8}

    play(2, scene, **HEALS_OFF)


def test_a_copy_that_misses_a_change_during_a_heal_of_names_is_not_copied_from() -> None:
    """A rename without one of the two good copies, between the judgement of a heal and its repairs: the rename was
    undone on the other good copy, and the file had no name in the end."""

    async def scene(world: World) -> None:
        client, healing = await world.client(), await world.client()
        gfid = await make_file(client, b"new", b"data")
        world.crash(1)
        await make_file(client, b"x")
        await settle()
        world.come_back(1)
        is_armed = True

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            nonlocal is_armed
            if is_armed and who == healing.name and fop == "opendir":
                is_armed = False
                world.cut(client, 2)
                await client.afr.rename(client.caller, at_root(b"new", gfid), at_root(b"z"))
                await settle()

        world.hook = hook
        await healing.afr.healer.heal(ROOT_GFID, How())
        assert not is_armed
        for index in (0, 1):
            assert names(world, index).get(b"z") == b"data"
            assert b"new" not in names(world, index)
        world.join(client, 2)
        await heal_all(client)
        assert_healed(world)
        assert names(world, 0) == {b"x": b"", b"z": b"data"}

    play(3, scene, **HEALS_OFF)


async def rename_on_one_only(world: World, client: Client, gfid: bytes, done_on: str) -> None:
    """new -> f is done on one brick; that one has gone at once, and the rename fails."""

    async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
        if fop == "rename" and is_done == (brick == done_on):
            world.crash(int(brick[-1]))

    no_fault, world.hook = world.hook, hook
    with pytest.raises(FopError):
        await client.afr.rename(client.caller, at_root(b"new", gfid), at_root(b"f"))
    world.hook = no_fault
    await settle()


@pytest.mark.parametrize("others", [(0, 1), (1, 0)])
@pytest.mark.parametrize("by", ["lookup", "listing"])
def test_half_a_rename_on_a_copy_that_is_away_does_not_undo_what_was_seen(others: tuple[int, int], by: str) -> None:
    """The program finds the old name and writes into the file.  When the copy with the new name came back, and another
    one went, the file had the new name."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"new", b"data")
        await settle()
        await rename_on_one_only(world, client, gfid, "brick2")
        for index in (0, 1):
            world.come_back(index)
        if by == "lookup":
            assert await find(client, b"new") == gfid
        else:
            fd = Fd(ROOT_GFID)
            await client.afr.opendir(client.caller, at_root(b"", ROOT_GFID), fd)
            found = await client.afr.readdir(client.caller, fd, size=4096, offset=0)
            assert [e.name for e in found if not e.name.startswith(b".")] == [b"new"]
            await client.afr.release(fd)
        await write(client, gfid, b"more")
        await settle()
        world.crash(others[0])
        world.come_back(2)
        with pytest.raises(FopError) as caught:
            await find(client, b"f")
        assert caught.value.errno == errno.ENOENT
        assert await find(client, b"new") == gfid
        await client.afr.healer.heal(ROOT_GFID, How())
        world.crash(others[1])
        world.come_back(others[0])
        await heal_all(client)
        world.come_back(others[1])
        await heal_all(client)
        assert_healed(world)
        assert names(world, 0) == {b"new": b"more"}

    play(3, scene, **HEALS_OFF)


async def rename_on_the_only_good_copy(world: World, client: Client) -> bytes:
    """It is away then, and the two old ones agree on the old name."""
    gfid = await make_file(client, b"new", b"data")
    await settle()
    for index, name in ((0, b"x"), (1, b"y")):
        world.crash(index)
        world.come_back(1 - index)
        await make_file(client, name)
        await settle()
    await rename_on_one_only(world, client, gfid, "brick2")
    for index in (0, 1):
        world.come_back(index)
        assert b"new" in names(world, index)
    return gfid


def test_two_old_copies_that_agree_do_not_show_a_name_either() -> None:
    """The good one, which is away, has another one in its place: what is written into the file is in that one then."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await rename_on_the_only_good_copy(world, client)
        with pytest.raises(FopError) as caught:
            await find(client, b"new")
        assert caught.value.errno == errno.ENOTCONN
        world.come_back(2)
        assert await find(client, b"f") == gfid
        await heal_all(client)
        assert_healed(world)
        assert names(world, 0) == {b"f": b"data", b"x": b"", b"y": b""}

    play(3, scene, **HEALS_OFF)


def test_a_good_copy_that_comes_while_two_old_ones_are_asked_decides() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await rename_on_the_only_good_copy(world, client)

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            if fop == "lookup" and is_done:
                world.come_back(2)

        world.hook = hook
        with pytest.raises(FopError) as caught:
            await find(client, b"new")
        assert caught.value.errno == errno.ENOENT
        assert await find(client, b"f") == gfid

    play(3, scene, **HEALS_OFF)


def test_half_a_removal_that_could_not_be_ruled_upon_is_not_shown_without_quorum() -> None:
    """Two copies are there, and one goes before they have accused the third: what the last one says is no knowledge."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"f", b"data")
        await settle()

        async def only_on_the_first(who: str, brick: str, fop: str, is_done: bool) -> None:
            if fop == "unlink" and not is_done and brick != "brick0":
                world.crash(int(brick[-1]))
                raise FopError(errno.ENOTCONN, brick)

        async def goes_when_locked(who: str, brick: str, fop: str, is_done: bool) -> None:
            if fop == "entrylk" and brick == "brick2":
                world.crash(2)

        no_fault, world.hook = world.hook, only_on_the_first
        with pytest.raises(FopError):
            await client.afr.unlink(client.caller, Loc(gfid, ROOT_GFID, b"f"))
        assert [bool(world.tree(i).get(b"/f")) for i in range(3)] == [False, True, True]
        world.hook = no_fault
        await settle()
        world.come_back(2)
        world.hook = goes_when_locked
        for _ in range(2):
            with pytest.raises(FopError) as caught:
                await client.afr.lookup(client.caller, Loc(parent=ROOT_GFID, name=b"f"))
            assert caught.value.errno == errno.ENOTCONN
        assert world.bricks[2].is_down
        world.hook = no_fault
        for index in (1, 2):
            world.come_back(index)
        await heal_all(client)
        assert_healed(world)

    play(3, scene, **HEALS_OFF)


@pytest.mark.parametrize("is_ours", [True, False])
def test_half_a_removal_is_not_shown_without_quorum_although_the_directory_was_looked_at_since(is_ours: bool) -> None:
    """Both copies accuse the third one of something else, so there is nothing to rule; then the one goes that may undo
    what is on the other.  ``is_ours``: else by a client that has died."""

    async def scene(world: World) -> None:
        client, other = await world.client(), await world.client()
        gfid = await make_file(client, b"f", b"data")
        await settle()
        world.crash(2)
        await make_file(client, b"x")
        await settle()

        async def only_on_the_first(who: str, brick: str, fop: str, is_done: bool) -> None:
            if fop == "unlink" and not is_done and brick == "brick1":
                world.crash(1)
                if not is_ours:
                    other.die()
                raise FopError(errno.ENOTCONN, brick)

        no_fault, world.hook = world.hook, only_on_the_first
        who = client if is_ours else other
        with pytest.raises(FopError):
            await who.afr.unlink(who.caller, Loc(gfid, ROOT_GFID, b"f"))
        assert [bool(world.tree(i).get(b"/f")) for i in range(2)] == [False, True]
        world.hook = no_fault
        await settle()
        world.come_back(1)
        assert await find(client, b"x")
        await settle()
        world.crash(1)
        with pytest.raises(FopError) as caught:
            await find(client, b"f")
        assert caught.value.errno == errno.ENOTCONN
        for index in (1, 2):
            world.come_back(index)
        await heal_all(client)
        assert_healed(world)
        await client.afr.lookup(client.caller, Loc(gfid=ROOT_GFID))
        assert await find(client, b"x")
        world.crash(0)
        world.crash(1)
        assert await find(client, b"x")  # nothing is half done there now

    play(3, scene, **HEALS_OFF)


def test_what_is_left_of_a_change_that_failed_is_not_shown_without_quorum() -> None:
    """The copies that are away may know nothing of it, and have their way later."""

    async def scene(world: World) -> None:
        client = await world.client()
        await make_file(client, b"other")
        gfid = await make_file(client, b"new", b"data")
        await settle()
        await rename_on_the_last_only(world, client, gfid)
        assert b"f" in names(world, 2)
        root = at_root(b"", ROOT_GFID)
        for ask in (find(client, b"f"), find(client, b"new"), client.afr.opendir(client.caller, root, Fd(ROOT_GFID))):
            with pytest.raises(FopError) as caught:
                await ask
            assert caught.value.errno == errno.ENOTCONN

    play(3, scene, **HEALS_OFF)


def test_a_name_on_some_good_copies_that_cannot_be_healed_is_not_shown() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"new", b"data")
        await settle()
        await rename_on_the_last_only(world, client, gfid)
        for index in (0, 1):
            world.come_back(index)

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            if fop == "rename":
                raise FopError(errno.EIO, "a disk that fails")

        no_fault, world.hook = world.hook, hook
        with pytest.raises(FopError) as caught:
            await find(client, b"new")
        assert caught.value.errno == errno.ENOTCONN
        world.hook = no_fault
        assert await find(client, b"new") == gfid
        await heal_all(client)
        assert_healed(world)

    play(3, scene, **HEALS_OFF)


def test_a_copy_that_misses_a_write_during_its_heal_of_others_is_not_copied_from_any_more() -> None:
    """The heal goes from window to window; in between a client that has lost the source writes to the others.  The old
    copy got the source's old block back, and was good for everybody afterwards."""

    async def scene(world: World) -> None:
        client, healing = await world.client(), await world.client()
        size, place = 128 * 1024, 5 * 128 * 1024 + 17
        gfid = await make_file(client, b"big", b"a" * size * 6)
        await settle()
        world.crash(2)
        await write(client, gfid, b"b" * size * 6)
        await settle()
        world.come_back(2)
        writing: list[asyncio.Task[None]] = []

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            if not writing and who == healing.name and fop == "rchecksum":
                world.cut(client, 0)
                writing.append(asyncio.ensure_future(write(client, gfid, b"new", place)))

        world.hook = hook
        outcome = await healing.afr.healer.heal(gfid, How())
        assert outcome.status is Status.FAILED and "once more" in outcome.reason
        await writing[0]
        await settle()
        world.join(client, 0)
        await heal_all(healing)
        assert_healed(world)
        assert names(world, 0)[b"big"][place : place + 3] == b"new"

    play(3, scene, **HEALS_OFF, data_self_heal_window_size="1", read_subvolume_index="0")


@pytest.mark.parametrize("lookups", range(1, 10))
def test_a_copy_that_is_away_while_a_name_is_healed_does_not_undo_what_is_shown(lookups: int) -> None:
    """Half a rename; one of its two copies goes as the heal begins, and is back before the lookup answers."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"new", b"data")
        await settle()
        world.crash(0)
        await make_file(client, b"x")
        await settle()
        world.come_back(0)
        world.bricks[0].inodes[ROOT_GFID].xattrs[b"trusted.afr.brick1"] = plus_one(Kind.ENTRY)  # left over
        await rename_on_one_only(world, client, gfid, "brick2")
        for index in (0, 1, 2):
            world.come_back(index)
        left, no_fault = -1, world.hook

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            nonlocal left
            if left < 0 and fop == "entrylk":
                left = lookups
                world.crash(2)
            elif fop == "lookup" and is_done and left > 0:
                left -= 1
                if not left:
                    world.come_back(2)

        world.hook = hook
        shown = await shows(client, b"new")
        world.hook = no_fault
        world.come_back(2)
        if shown is None:
            return
        for index in (0, 1, 2):
            world.crash(index)
            assert await shows(client, b"f") in (None, not shown)
            assert await shows(client, b"new") in (None, shown)
            world.come_back(index)
        await heal_all(client)
        assert_healed(world)
        assert (b"new" in names(world, 0)) is shown

    play(3, scene, **HEALS_OFF)


def test_names_of_a_change_that_failed_are_forgotten_above() -> None:
    """The kernel would open the file by the old name for a second without asking."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"new", b"data")
        await settle()
        told: list[Event] = []
        client.afr.notify_parents = told.append  # type: ignore[method-assign]
        await rename_on_the_last_only(world, client, gfid)
        names_told = {name for e in told if isinstance(e, Invalidated) and e.gfid == ROOT_GFID for name in e.names}
        assert names_told == {b"new", b"f"}

    play(3, scene, **HEALS_OFF)


def test_what_is_moved_to_its_place_is_what_was_found_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a rename from one directory to another; a change of the other directory comes before its lock is taken."""
    before, is_armed = Places._is_old, True

    async def scene(world: World) -> None:
        client, healing = await world.client(), await world.client()
        one, two = [await make_directory(client, name) for name in (b"one", b"two")]
        gfid = await make_file(client, b"d", b"data", one)
        await settle()

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            if fop == "rename" and not is_done and brick != "brick2":
                world.crash(int(brick[-1]))

        no_fault, world.hook = world.hook, hook
        with pytest.raises(FopError):
            await client.afr.rename(client.caller, Loc(gfid, one, b"d"), Loc(parent=two, name=b"d"))
        world.hook = no_fault
        for index in (0, 1):
            world.come_back(index)
        await settle()
        other = client.context.new_gfid()

        async def is_old(self: Places, index: int, directory: bytes) -> bool:
            nonlocal is_armed
            found = await before(self, index, directory)
            if is_armed:
                is_armed, brick = False, world.bricks[2]
                await brick.rename(client.caller, Loc(gfid, two, b"d"), Loc(parent=two, name=b"e"))
                await brick.mknod(client.caller, Loc(parent=two, name=b"d"), mode=0o100644, rdev=0, gfid=other)
            return found

        monkeypatch.setattr(Places, "_is_old", is_old)
        await healing.afr.healer.heal(one, How())
        assert not is_armed
        assert world.tree(2)[b"/two/d"][0] == other
        assert world.tree(2)[b"/two/e"][0] == gfid

    play(3, scene, **HEALS_OFF)


def test_a_directory_that_was_removed_is_gone_although_a_copy_is_away() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        directory = await make_directory(client, b"d")
        await settle()
        world.crash(2)
        await client.afr.rmdir(client.caller, at_root(b"d", directory))
        await settle()
        fd, other = Fd(directory, is_directory=True), await world.client()
        for ask in (
            other.afr.lookup(other.caller, Loc(parent=directory, name=b"x")),
            other.afr.opendir(other.caller, Loc(gfid=directory), fd),
        ):
            with pytest.raises(FopError) as caught:
                await ask
            assert caught.value.errno in (errno.ENOENT, errno.ESTALE)

    play(3, scene, **HEALS_OFF)


async def removal_that_fails(world: World, client: Client, gfid: bytes, done_on: str) -> None:
    async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
        if fop == "unlink" and is_done == (brick[-1] in done_on):
            world.crash(int(brick[-1]))

    no_fault, world.hook = world.hook, hook
    with pytest.raises(FopError):
        await client.afr.unlink(client.caller, at_root(b"a", gfid))
    world.hook = no_fault
    for index in (0, 1, 2):
        world.come_back(index)
    await settle()


def test_a_removal_that_failed_does_not_leave_an_old_copy() -> None:
    """Two copies have removed the file; the third one missed what was written to it, which only those two knew."""

    async def scene(world: World) -> None:
        client = await world.client()

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            if fop == "writev" and brick == "brick1" and not is_done:
                world.crash(1)

        no_fault, world.hook = world.hook, hook
        gfid = await make_file(client, b"a", b"data")
        world.hook = no_fault
        await removal_that_fails(world, client, gfid, "02")
        assert [b"a" in names(world, i) for i in range(3)] == [False, True, False]
        assert await shows(client, b"a") is False
        await heal_all(client)
        assert_healed(world)
        assert names(world, 0) == {}

    play(3, scene, **HEALS_OFF)


def test_a_copy_that_a_removal_has_gone_from_is_missed_as_a_witness() -> None:
    """The copy that has removed the file was one of the two that accused the third one, which is longer."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"a long content")
        await settle()
        world.crash(2)
        await write(client, gfid, b"new", flags=os.O_TRUNC)
        await settle()
        world.come_back(2)
        await removal_that_fails(world, client, gfid, "0")
        assert [names(world, i).get(b"a") for i in range(3)] == [None, b"new", b"a long content"]
        await heal_all(client)
        assert_healed(world)
        assert names(world, 0) == {b"a": b"new"}

    play(3, scene, **HEALS_OFF)


def test_a_removal_does_not_count_an_old_copy_that_has_the_inode_under_another_name() -> None:
    """It lacks the name, but has not removed the file: with the copy that is away it would outvote the one that has."""

    async def scene(world: World) -> None:
        client = await world.client()
        directory = await make_directory(client, b"d")
        gfid = await make_file(client, b"a", b"data")
        await settle()
        world.crash(0)
        place = Loc(gfid, directory, b"f")
        await client.afr.rename(client.caller, at_root(b"a", gfid), place)
        await settle()
        world.come_back(0)
        world.crash(2)
        with pytest.raises(FopError) as caught:
            await client.afr.unlink(client.caller, place)
        assert caught.value.errno == errno.ENOTCONN
        assert [sorted(names(world, i)) for i in range(3)] == [[b"a", b"d"], [b"d", b"d/f"], [b"d", b"d/f"]]
        await heal_all(client)
        await client.afr.unlink(client.caller, place)
        await settle()
        world.come_back(2)
        await heal_all(client)
        assert_healed(world)
        assert sorted(names(world, 0)) == [b"d"]

    play(3, scene, **HEALS_OFF)


def test_half_a_rename_of_what_a_copy_has_never_had_loses_nothing() -> None:
    """One copy is old in the directory where it was made, and good in the one where another copy has it now."""

    async def scene(world: World) -> None:
        client = await world.client()
        one, two = [await make_directory(client, name) for name in (b"one", b"two")]
        await settle()
        world.crash(0)
        gfid = await make_directory(client, b"d", one)
        await settle()
        world.come_back(0)

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            if fop == "rename" and not is_done and brick == "brick2":
                world.crash(2)

        no_fault, world.hook = world.hook, hook
        with pytest.raises(FopError):
            await client.afr.rename(client.caller, Loc(gfid, one, b"d"), Loc(parent=two, name=b"d"))
        world.hook = no_fault
        await settle()
        assert b"/two/d" in world.tree(1)
        for how in (two, one, two):
            await client.afr.healer.heal(how, How())
        world.come_back(2)
        await heal_all(client)
        assert_healed(world)
        assert gfid in {about[0] for about in world.tree(0).values()}

    play(3, scene, **HEALS_OFF)


def test_a_rename_that_too_few_copies_can_do_is_not_begun() -> None:
    """The only good copy here had carried it out before the other one, which has never had the file, refused.  Whoever
    took the old name then for something else, which is acknowledged, left the file without a name."""

    async def scene(world: World) -> None:
        client = await world.client()
        one = await make_directory(client, b"one")
        await settle()
        world.crash(2)
        gfid, other = [await make_file(client, name, b"data", one) for name in (b"f", b"other")]
        await settle()
        world.crash(1)
        world.come_back(2)
        with pytest.raises(FopError) as caught:
            await client.afr.rename(client.caller, Loc(gfid, one, b"f"), Loc(parent=ROOT_GFID, name=b"g"))
        assert caught.value.errno == errno.ENOTCONN
        await client.afr.unlink(client.caller, Loc(other, one, b"other"))  # there is nothing to remove on the old one
        await settle()
        assert list(world.tree(0)) == [b"/", b"/one", b"/one/f"]
        world.come_back(1)
        await heal_all(client)
        assert_healed(world)
        assert list(world.tree(0)) == [b"/", b"/one", b"/one/f"]

    play(3, scene, **HEALS_OFF)


def test_half_a_rename_leaves_its_mark_in_both_directories() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        one, two = [await make_directory(client, name) for name in (b"one", b"two")]
        gfid = await make_file(client, b"f", b"data", one)
        await settle()

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            if fop == "rename" and not is_done and brick != "brick0":
                raise FopError(errno.EIO, "a disk that fails")

        no_fault, world.hook = world.hook, hook
        with pytest.raises(FopError):
            await client.afr.rename(client.caller, Loc(gfid, one, b"f"), Loc(parent=two, name=b"f"))
        world.hook = no_fault
        await settle()
        assert b"/two/f" in world.tree(0)
        assert [counters(world, 0, place, "dirty")[16:] for place in (one, two)] == ["00000001"] * 2

    play(3, scene, **HEALS_OFF)


@pytest.mark.parametrize("is_root_last", [False, True])
def test_half_a_rename_does_not_cost_the_file_where_each_name_is_gone_on_good_copies(is_root_last: bool) -> None:
    """Done on one copy; in the old directory that one alone is good, and the name means something new by then; in the
    new directory the other two are, and do not have it.  The third copy has never had the file."""

    async def scene(world: World) -> None:
        client = await world.client()
        one = await make_directory(client, b"one")
        await settle()
        world.crash(2)
        gfid = await make_file(client, b"f", b"data", one)
        await settle()
        world.come_back(2)

        async def hook(who: str, brick: str, fop: str, is_done: bool) -> None:
            if fop == "rename" and not is_done and brick == "brick1":
                world.crash(1)

        no_fault, world.hook = world.hook, hook
        with pytest.raises(FopError):
            await client.afr.rename(client.caller, Loc(gfid, one, b"f"), Loc(parent=ROOT_GFID, name=b"g"))
        world.hook = no_fault
        await settle()
        await make_file(client, b"f", b"new", one)
        await settle()
        world.crash(0)
        world.come_back(1)
        await make_directory(client, b"x")
        await settle()
        world.come_back(0)
        if is_root_last:
            await client.afr.healer.heal(one, How())
        await heal_all(client)
        assert_healed(world)
        assert {p: about[6] for p, about in world.tree(0).items()} == {
            b"/": b"", b"/one": b"", b"/x": b"", b"/one/f": b"new", b"/g": b"data"
        }  # fmt: skip

    play(3, scene, **HEALS_OFF)


@pytest.mark.parametrize("bricks", [2, 3])
def test_open_to_read_ends_when_no_copy_can_be_opened(bricks: int) -> None:
    """It went from one copy to the others and back for ever; without waiting, where their links had just gone."""

    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"data")
        asked = [0]

        async def refuse(_client: str, _brick: str, fop: str, is_done: bool) -> None:
            if fop == "open" and not is_done:
                asked[0] += 1
                assert asked[0] < 50, "it does not end"
                raise FopError(errno.EIO, "no")

        world.hook = refuse
        with pytest.raises(FopError) as caught:
            await client.afr.open(client.caller, Loc(gfid=gfid), Fd(gfid, os.O_RDONLY), flags=os.O_RDONLY)
        assert caught.value.errno == errno.EIO and asked[0] == bricks

    play(bricks, scene)
