# SPDX-License-Identifier: Apache-2.0
"""Split-brains: what heal info says, each way to end one, what differs in words, and the attributes of a mount."""

from __future__ import annotations

import pytest

from repl.files.heal.explain import explain
from repl.files.heal.info import State, heal_info, summary
from repl.files.heal.resolve import HealRefused, Policy, resolve, resolve_all
from repl.files.translators.replicate.changelog import Kind
from repl.files.translators.replicate.decide import Witness, judge
from repl.files.translators.replicate.healing import How, Status
from repl.files.translators.replicate.quorum import Quorum
from repl.files.values import ROOT_GFID, Iatt, Loc, SetAttr
from tests.lib.replicas import Client, World
from tests.unit.test_files_heal import HEALS_OFF, assert_healed, heal_all, make_directory, split
from tests.unit.test_files_replicate import make_file, play, read, settle, write


async def listed(client: Client, brick: int = 0) -> dict[str, State]:
    info = (await heal_info(client.afr))[brick]
    assert info.items is not None
    return {item.path: item.state for item in info.items}


def test_info_lists_what_is_pending_by_path_on_the_brick_that_knows_it() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        directory = await make_directory(client, b"d")
        gfid = await make_file(client, b"a", b"x", directory)
        await settle()
        assert await listed(client) == {}
        world.crash(1)
        await write(client, gfid, b"y")
        await settle()
        bricks = await heal_info(client.afr)
        assert bricks[0].lines() == ["/d/a", "Status: Connected", "Number of entries: 1"]
        assert bricks[1].lines() == ["Status: Transport endpoint is not connected", "Number of entries: -"]
        counts = summary(bricks[0])
        assert counts is not None
        assert (counts.total, counts.pending, counts.split) == (1, 1, 0)

    play(2, scene, **HEALS_OFF)


def test_info_does_not_list_a_file_that_is_being_written() -> None:
    async def scene(world: World) -> None:
        client, other = await world.client(), await world.client()
        await make_file(other, b"a", b"x")
        assert world.pending() != {}
        assert await listed(client) == {}

    play(2, scene, **HEALS_OFF)


@pytest.mark.parametrize("word", ["data", "metadata", "gfid", "type"])
def test_info_marks_a_split_brain(word: str) -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        await split(world, client, word)
        path = "/a" if word in ("data", "metadata") else "/"
        for brick in (0, 1):
            assert (await listed(client, brick))[path] is State.SPLIT

    play(2, scene, **HEALS_OFF)


@pytest.mark.parametrize("word", ["data", "metadata", "gfid", "type"])
@pytest.mark.parametrize("winner", [0, 1])
def test_a_source_brick_ends_every_kind_of_split_brain(word: str, winner: int) -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        await split(world, client, word)
        path = b"/a" if word in ("data", "metadata") else b"/same"
        before = world.tree(winner)[path]
        await resolve(client.afr, path, Policy.SOURCE_BRICK, f"brick{winner}")
        assert await heal_all(client) == []
        assert_healed(world)
        assert world.tree(0)[path] == before

    play(2, scene, **HEALS_OFF)


def test_the_bigger_file_and_the_latest_one_win_when_asked() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        for policy, wanted in ((Policy.BIGGER_FILE, b"longer one"), (Policy.LATEST_MTIME, b"latest")):
            name = policy.value.encode()
            gfid = await make_file(client, name, b"")
            await settle()
            for down, data in ((1, b"longer one"), (0, b"latest")):
                world.crash(down)
                world.come_back(1 - down)
                await write(client, gfid, data)
                await settle()
            world.come_back(0)
            assert await resolve(client.afr, b"/" + name, policy) == f"Healed /{policy.value}."
            assert await read(client, gfid) == wanted
        assert await heal_all(client) == []
        assert_healed(world)

    play(2, scene, **HEALS_OFF)


def test_refusals_say_what_to_do_instead() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        await split(world, client, "metadata")
        await make_file(client, b"fine", b"x")
        await settle()
        with pytest.raises(HealRefused, match="Use source-brick option"):
            await resolve(client.afr, b"/a", Policy.BIGGER_FILE)
        with pytest.raises(HealRefused, match="is not in split-brain"):
            await resolve(client.afr, b"/fine", Policy.BIGGER_FILE)
        with pytest.raises(HealRefused, match="brick0, brick1"):
            await resolve(client.afr, b"/a", Policy.SOURCE_BRICK, "brick7")

    play(2, scene, **HEALS_OFF)


def test_equal_sizes_have_no_bigger_file() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        await split(world, client, "data")
        with pytest.raises(HealRefused, match="No bigger file"):
            await resolve(client.afr, b"/a", Policy.BIGGER_FILE)

    play(2, scene, **HEALS_OFF)


def test_a_source_for_all_ends_all() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        await split(world, client, "data")
        gfid = await make_file(client, b"b", b"x")
        await settle()
        for down in (0, 1):
            world.come_back(1 - down)
            world.crash(down)
            await client.afr.setattr(client.caller, Loc(gfid=gfid), SetAttr(mode=0o600 + down))
            await make_file(client, b"same")
            await settle()
        world.come_back(1)
        assert len(await resolve_all(client.afr, "brick1")) == 3
        assert await heal_all(client) == []
        assert_healed(world)
        assert world.tree(0)[b"/b"][1] & 0o777 == 0o600

    play(2, scene, **HEALS_OFF)


@pytest.mark.parametrize("policy", ["size", "mtime", "ctime"])
def test_a_favorite_child_policy_ends_splits_without_asking(policy: str) -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"")
        await settle()
        for down, data in ((1, b"short"), (0, b"longest and latest")):
            world.crash(down)
            world.come_back(1 - down)
            await write(client, gfid, data)
            await make_file(client, b"same", data)
            await settle()
        world.come_back(0)
        for target in (gfid, ROOT_GFID, gfid):
            await client.afr.healer.heal(target, How(policy=policy))
        await client.afr.healer.aside.clean()
        assert await heal_all(client) == []
        assert_healed(world)
        tree = world.tree(0)
        assert tree[b"/a"][6] == tree[b"/same"][6] == b"longest and latest"

    play(2, scene, **HEALS_OFF)


def test_copies_that_accuse_one_another_and_are_equal_are_no_split_brain() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"x")
        await settle()
        for down in (0, 1):
            world.crash(1 - down)
            world.come_back(down)
            await write(client, gfid, b"the same")
            await settle()
        world.come_back(0)
        assert (await client.afr.healer.heal(gfid, How())).status is Status.HEALED
        assert_healed(world)

    play(2, scene, **HEALS_OFF)


def test_an_explanation_says_who_accuses_whom_and_where_the_copies_differ() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await make_file(client, b"a", b"o" * 500_000)
        await settle()
        for down in (0, 1):
            world.crash(1 - down)
            world.come_back(down)
            await write(client, gfid, b"%d" % down, 300_000)
            await client.afr.setxattr(client.caller, Loc(gfid=gfid), {b"user.side": b"%d" % down})
            await settle()
        world.come_back(0)
        text = str(await explain(client.afr, gfid))
        assert text.startswith("/a\n")
        assert "brick0 says that brick1 has missed changes: 1 of data, 1 of metadata" in text
        assert "bytes 262144 to 393215 differ" in text
        assert "extended attribute user.side differs: brick0 b'0', brick1 b'1'" in text
        assert "none is good" in text

    play(2, scene, **HEALS_OFF)


def test_a_mount_shows_a_split_brain_lets_one_copy_be_read_and_ends_it() -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        gfid = await split(world, client, "data")
        loc, name = Loc(gfid=gfid), b"replica.split-brain-status"
        status = (await client.afr.getxattr(client.caller, loc, name))[name]
        assert status == b"data-split-brain:yes    metadata-split-brain:no    Choices:brick0,brick1"
        await client.afr.setxattr(client.caller, loc, {b"replica.split-brain-choice": b"brick1"})
        assert await read(client, gfid) == b"side 1"
        await client.afr.setxattr(client.caller, loc, {b"replica.split-brain-choice": b"none"})
        await client.afr.setxattr(client.caller, loc, {b"replica.split-brain-heal-finalize": b"brick0"})
        assert await read(client, gfid) == b"side 0"
        assert b"not under" in (await client.afr.getxattr(client.caller, loc, name))[name]
        assert_healed(world)

    play(2, scene, **HEALS_OFF)


@pytest.mark.parametrize(
    ("accused", "winner"), [({0: (1, 2), 1: (0, 2), 2: (0,)}, -1), ({0: (0, 2), 1: (0, 1, 2), 2: (0, 2)}, 1)]
)
def test_fewer_accusers_are_no_source_where_one_copy_may_have_gone_on_alone(
    accused: dict[int, tuple[int, ...]], winner: int
) -> None:
    """``accused``: by each copy; with quorum ``none``.  An accusation counts unless the accuser is old by itself."""
    none = Quorum("none", 0, 3)
    copies = {
        i: Witness(tuple((int(j in accused.get(i, ())), 0, 0) for j in range(3)), (0, 0, 0), Iatt()) for i in range(3)
    }
    verdict = judge(copies, Kind.DATA, none)
    assert verdict.is_split == (winner < 0)
    assert verdict.sources == (1 << winner if winner >= 0 else 0)
