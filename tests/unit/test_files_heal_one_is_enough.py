# SPDX-License-Identifier: Apache-2.0
"""Heals where one copy is enough: what each side of a cut has done alone, in directories that the other one has removed
or moved (decision 0152)."""

from __future__ import annotations

import errno

import pytest

from repl.files.heal.info import State, heal_info
from repl.files.heal.resolve import Policy, resolve
from repl.files.translators.replicate.healing import How, Status
from repl.files.values import ROOT_GFID, FopError, Loc
from tests.lib.replicas import Client, World
from tests.unit.test_files_heal import HEALS_OFF, assert_healed, heal_all, make_directory
from tests.unit.test_files_replicate import make_file, play, settle

OPTIONS = {"quorum_type": "none", **HEALS_OFF}


async def two_sides(world: World) -> tuple[Client, Client]:
    """Clients that reach brick 0 only, and the others only."""
    one, other = await world.client(), await world.client()
    world.cut(other, 0)
    for i in range(1, len(world.bricks)):
        world.cut(one, i)
    return one, other


async def remove(client: Client, name: bytes, parent: bytes = ROOT_GFID) -> None:
    await client.afr.rmdir(client.caller, Loc(parent=parent, name=name))


async def rename(client: Client, source: Loc, target: Loc) -> None:
    await client.afr.rename(client.caller, source, target)


@pytest.mark.parametrize("bricks", [2, 3])
@pytest.mark.parametrize("is_below", [False, True])
def test_what_is_made_in_a_directory_that_the_other_side_removes_is_kept(bricks: int, is_below: bool) -> None:
    async def scene(world: World) -> None:
        first = await world.client()
        directory = await make_directory(first, b"d")
        inside = await make_directory(first, b"inside", directory) if is_below else directory
        await settle()
        one, other = await two_sides(world)
        await make_file(one, b"f", b"acknowledged", inside)
        if is_below:
            await remove(other, b"inside", directory)
        await remove(other, b"d")
        await settle()
        assert await heal_all(first) == []
        assert_healed(world)
        path = b"/d/inside/f" if is_below else b"/d/f"
        assert world.tree(0)[path][6] == b"acknowledged"

    play(bricks, scene, **OPTIONS)


def test_a_tree_that_nobody_has_changed_goes_with_its_removal() -> None:
    async def scene(world: World) -> None:
        first = await world.client()
        directory = await make_directory(first, b"d")
        await make_directory(first, b"inside", directory)
        await settle()
        _, other = await two_sides(world)
        await remove(other, b"inside", directory)
        await remove(other, b"d")
        await settle()
        assert await heal_all(first) == []
        assert_healed(world)
        assert b"/d" not in world.tree(0)

    play(2, scene, **OPTIONS)


@pytest.mark.parametrize("winner", [0, 1])
def test_a_directory_changed_here_and_replaced_there_is_a_split_brain(winner: int) -> None:
    async def scene(world: World) -> None:
        first = await world.client()
        directory = await make_directory(first, b"d")
        await settle()
        one, other = await two_sides(world)
        await make_file(one, b"f", b"of one", directory)
        await remove(other, b"d")
        await make_file(other, b"g", b"of the other", await make_directory(other, b"d"))
        await settle()
        await heal_all(first)
        outcome = await first.afr.healer.heal(ROOT_GFID, How())
        assert outcome.status is Status.SPLIT
        for brick in await heal_info(first.afr):
            told = {item.path: [s.name for s in item.splits] for item in brick.items or () if item.state is State.SPLIT}
            assert told == ({} if brick.name == "brick0" else {"/": [b"d"]})
        assert b"/d/f" in world.tree(0)
        assert b"/d/g" in world.tree(1)
        await resolve(first.afr, b"/d", Policy.SOURCE_BRICK, f"brick{winner}")
        assert await heal_all(first) == []
        assert_healed(world)
        assert {path for path in world.tree(0) if path.startswith(b"/d/")} == {(b"/d/f", b"/d/g")[winner]}

    play(2, scene, **OPTIONS)


@pytest.mark.parametrize("is_held", [False, True])
def test_what_is_made_while_a_heal_looks_at_the_directory_is_kept(is_held: bool) -> None:
    """``is_held``: the client still has the directory's names locked when the heal takes it away."""

    async def scene(world: World) -> None:
        first = await world.client()
        directory = await make_directory(first, b"d")
        await settle()
        one, other = await two_sides(world)
        await remove(other, b"d")
        await settle()
        opened = 0

        async def hook(client: str, brick: str, fop: str, is_done: bool) -> None:
            nonlocal opened
            opened += (client, brick, fop, is_done) == (first.name, "brick0", "opendir", True)
            if opened == 2:  # the root's names, then those of "d"
                opened += 1
                await make_file(one, b"f", b"acknowledged", directory)
                if not is_held:
                    await settle()

        world.hook = hook
        await first.afr.healer.heal(ROOT_GFID, How())
        assert opened == 3
        assert b"/d/f" in world.tree(0)
        assert await heal_all(first) == []
        assert_healed(world)
        assert b"/d/f" in world.tree(1)

    play(2, scene, **OPTIONS)


@pytest.mark.parametrize("fop", ["rmdir", "rename"])
def test_a_directory_that_a_heal_gives_back_has_no_marks_of_its_removal(fop: str) -> None:
    """Whoever removed it has yet to take back the mark that it had on the one that is gone."""

    async def scene(world: World) -> None:
        first = await world.client()
        await make_directory(first, b"d")
        await make_directory(first, b"over")
        await settle()
        one, other = await two_sides(world)
        await make_directory(one, b"beside")
        if fop == "rmdir":
            await remove(other, b"d")
        else:
            await rename(other, Loc(parent=ROOT_GFID, name=b"over"), Loc(parent=ROOT_GFID, name=b"d"))
        await first.afr.healer.heal(ROOT_GFID, How())
        await settle()
        for brick in world.pending().values():
            assert min(brick) >= 0, world.pending()

    play(2, scene, **OPTIONS)


def test_a_counter_below_zero_is_taken_back() -> None:
    async def scene(world: World) -> None:
        first = await world.client()
        directory = await make_directory(first, b"d")
        await settle()
        world.bricks[1].inodes[directory].xattrs[b"trusted.afr.dirty"] = bytes(8) + b"\xff" * 4
        assert (await first.afr.healer.heal(directory, How())).status is Status.HEALED
        assert_healed(world)

    play(2, scene, **OPTIONS)


def test_nothing_is_made_in_a_directory_that_the_other_copies_have_removed() -> None:
    async def scene(world: World) -> None:
        first = await world.client()
        directory = await make_directory(first, b"d")
        await settle()
        _, other = await two_sides(world)
        await remove(other, b"d")
        await settle()
        before = world.tree(0)
        with pytest.raises(FopError) as caught:
            await make_file(first, b"f", b"", directory)
        assert caught.value.errno == errno.ESTALE
        await settle()
        assert world.tree(0) == before

    play(3, scene, **OPTIONS)


def test_names_are_made_in_a_directory_that_a_copy_has_not_got_yet() -> None:
    async def scene(world: World) -> None:
        first = await world.client()
        world.crash(1)
        directory = await make_directory(first, b"d")
        await settle()
        world.come_back(1)
        await make_file(first, b"f", b"x", directory)
        assert b"/d/f" in world.tree(0)
        assert await heal_all(first) == []
        assert_healed(world)

    play(2, scene, **OPTIONS)


def test_a_directory_that_was_moved_to_where_the_other_side_made_one_stays_where_it_was() -> None:
    async def scene(world: World) -> None:
        first = await world.client()
        moved, place = await make_directory(first, b"moved"), await make_directory(first, b"place")
        await settle()
        one, other = await two_sides(world)
        made = await make_directory(other, b"x", place)
        await make_file(other, b"beside", b"")
        await rename(one, Loc(parent=ROOT_GFID, name=b"moved"), Loc(parent=place, name=b"x"))
        await settle()
        assert await heal_all(first) == []
        assert_healed(world)
        tree = world.tree(0)
        assert (tree[b"/moved"][0], tree[b"/place/x"][0]) == (moved, made)

    play(2, scene, **OPTIONS)
