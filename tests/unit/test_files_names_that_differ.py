# SPDX-License-Identifier: Apache-2.0
"""Names that mean different inodes on copies of which none is old: nobody changes them as if they were one."""

from __future__ import annotations

import errno

import pytest

from repl.files.values import ROOT_GFID, FopError, Loc
from tests.lib.replicas import Client, World
from tests.unit.test_files_heal import HEALS_OFF
from tests.unit.test_files_replicate import make_file, play, settle


def at(name: bytes) -> Loc:
    return Loc(parent=ROOT_GFID, name=name)


async def split_name(world: World, client: Client) -> tuple[bytes, bytes]:
    """"a" was made on each of two copies while the other one was away."""
    gfids = []
    for away in (1, 0):
        world.crash(away)
        gfids.append(await make_file(client, b"a", b"x"))
        await settle()
        world.crash(1 - away)
        world.come_back(away)
        await settle()
    world.come_back(0)
    world.come_back(1)
    await settle()
    return gfids[0], gfids[1]


@pytest.mark.parametrize("fop", ["rename", "rename over", "exchange", "unlink"])
def test_a_name_in_split_brain_is_not_changed(fop: str) -> None:
    async def scene(world: World) -> None:
        client = await world.client()
        await make_file(client, b"b", b"y")
        await settle()
        one, other = await split_name(world, client)
        before = world.tree(0), world.tree(1)
        with pytest.raises(FopError) as caught:
            if fop == "unlink":
                await client.afr.unlink(client.caller, at(b"a"))
            elif fop == "rename over":
                await client.afr.rename(client.caller, at(b"b"), at(b"a"))
            elif fop == "exchange":
                await client.afr.rename(client.caller, at(b"b"), at(b"a"), flags=2)
            else:
                await client.afr.rename(client.caller, at(b"a"), at(b"c"))
        assert caught.value.errno == errno.EIO
        await settle()
        assert (world.tree(0), world.tree(1)) == before
        assert [world.tree(i)[b"/a"][0] for i in (0, 1)] == [one, other]
        await client.afr.rename(client.caller, at(b"b"), at(b"c"))  # others are changed as ever
        await client.afr.unlink(client.caller, at(b"c"))

    play(2, scene, quorum_type="none", **HEALS_OFF)


@pytest.mark.parametrize("fop", ["rename", "unlink"])
def test_the_other_side_s_file_is_not_taken_for_the_one_that_is_meant(fop: str) -> None:
    """A client that has looked at the name on one side, and reaches the other side only (decision 0155)."""

    async def scene(world: World) -> None:
        client = await world.client()
        one, _ = await split_name(world, client)
        world.crash(0)
        before = world.tree(1)
        meant = Loc(one, ROOT_GFID, b"a")
        with pytest.raises(FopError) as caught:
            if fop == "rename":
                await client.afr.rename(client.caller, meant, at(b"c"))
            else:
                await client.afr.unlink(client.caller, meant)
        assert caught.value.errno == errno.ESTALE
        assert world.tree(1) == before

    play(2, scene, quorum_type="none", **HEALS_OFF)
