# SPDX-License-Identifier: Apache-2.0
"""Replicate under load with faults at any step: nothing acknowledged is lost, and a sweep makes all bricks equal.

``REPL_HEAL_EXAMPLES`` (12) plans are tried for each kind of set.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repl.files.heal.info import BrickInfo, State, heal_info
from repl.files.heal.sweep import Progress, Sweeper
from repl.files.translators.replicate.healing import Status
from repl.files.values import ROOT_GFID
from tests.lib.heal_model import Faults, Load, Model, make_places
from tests.lib.replicas import World
from tests.lib.virtual_loop import run

EXAMPLES = int(os.environ.get("REPL_HEAL_EXAMPLES", "12"))

whats = st.sampled_from(["crash", "return", "crash", "return", "cut", "join", "die"])
plans = st.lists(st.tuples(st.integers(1, 120), whats, st.integers(0, 2), st.integers(0, 2)), max_size=14)
Plan = list[tuple[int, str, int, int]]

SETS: dict[str, tuple[int, dict[str, str]]] = {
    "three": (3, {}),
    "arbiter": (3, {"arbiter-count": "1"}),
    "two-auto": (2, {"quorum-type": "auto"}),
    "two-all": (2, {"quorum-type": "fixed", "quorum-count": "2"}),
    "five": (5, {}),
    "granular": (3, {"granular-entry-heal": "on"}),
}


async def play(world: World, seed: int, plan: Plan, *, heals: bool, is_lax: bool = False) -> tuple[Model, Progress]:
    model = Model()
    clients = [await world.client(f"client{i}") for i in range(3)]
    places = await make_places(clients[0])
    for name, place in zip((b"one", b"two"), places[1:], strict=True):
        model.names[places[0], name] = {place}
        model.note((places[0], name), place)
    model.directories |= set(places[1:])
    faults = Faults(world, plan)
    world.hook = faults.hook
    loop = asyncio.get_running_loop()
    sweeper = Sweeper(clients[2].afr)
    for number, client in enumerate(clients[:2]):
        load = Load(client, model, places, seed + number)
        load.is_lax = is_lax
        faults.workers[client.name] = loop.create_task(load.run(25))

    async def sweep() -> None:
        while True:
            await sweeper.index()
            await asyncio.sleep(0.5)

    healer = loop.create_task(sweep()) if heals else None
    for task in list(faults.workers.values()):
        try:
            await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
    if healer is not None:
        healer.cancel()
        await asyncio.gather(healer, return_exceptions=True)
    faults.stop()
    await asyncio.sleep(5)
    for client in clients:
        if not client.is_dead:
            await client.stop()
    last = await world.client("last")
    sweeper = Sweeper(last.afr)
    await sweeper.index()
    await sweeper.full()
    return model, await sweeper.index()


def assert_equal_bricks(world: World) -> dict[bytes, Any]:
    trees = [world.tree(i) for i in range(len(world.bricks))]
    if world.options.get("arbiter-count"):
        blind = [{k: v[:6] + v[7:] for k, v in tree.items()} for tree in trees]
        assert blind[-1] == blind[0]
        trees.pop()
    for tree in trees[1:]:
        assert tree == trees[0]
    for brick in world.bricks:
        names = {g for i in brick.inodes.values() for _, g in i.entries.values()}
        left = {g for g, i in brick.inodes.items() if i.iatt.nlink} - names
        assert left == {ROOT_GFID}, "an inode without a name is left"
    return trees[0]


@pytest.mark.parametrize("kind", list(SETS))
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000), plan=plans, heals=st.booleans())
def test_with_a_majority_nothing_acknowledged_is_lost_and_nothing_splits(
    kind: str, seed: int, plan: Plan, heals: bool
) -> None:
    bricks, options = SETS[kind]
    given_options = {"data-self-heal-window-size": "1", "background-self-heal-count": "4"} | options
    if not heals:
        given_options |= {"data-self-heal": "off", "metadata-self-heal": "off", "entry-self-heal": "off"}
    world = World(bricks, seed=seed, options=given_options)

    async def scene() -> tuple[Model, Progress]:
        return await asyncio.wait_for(play(world, seed, plan, heals=heals), 100_000)

    model, progress = run(scene())
    assert progress.by_status[Status.SPLIT] == 0, progress
    tree = assert_equal_bricks(world)
    assert world.pending() == {}, progress
    model.check(tree)



@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(bricks=st.integers(2, 3), seed=st.integers(0, 10_000), plan=plans, heals=st.booleans())
def test_where_one_copy_is_enough_every_split_is_told_and_nothing_else_is_lost(
    bricks: int, seed: int, plan: Plan, heals: bool
) -> None:
    world = World(bricks, seed=seed, options={"data-self-heal-window-size": "1", "quorum-type": "none"})

    async def scene() -> tuple[Model, Progress, list[BrickInfo]]:
        model, progress = await asyncio.wait_for(play(world, seed, plan, heals=heals, is_lax=True), 100_000)
        return model, progress, await heal_info(world.clients[-1].afr)

    model, progress, info = run(scene())
    items = [item for brick in info for item in brick.items or ()]
    split = {item.gfid for item in items if item.state is State.SPLIT}
    names = {(item.gfid, s.name) for item in items for s in item.splits if s.name}
    trees = [world.tree(i) for i in range(bricks)]
    told = split | below(trees, names)
    assert {item.gfid for item in items} <= told, items
    assert {key.split()[1] for key in world.pending()} <= {gfid.hex()[-6:] for gfid in told}
    model.check_split(trees, told, names)


def below(trees: list[dict[bytes, Any]], names: set[tuple[bytes, bytes]]) -> set[bytes]:
    """What lies at those names, and in it."""
    found: set[bytes] = set()
    for tree in trees:
        gfids = {path: about[0] for path, about in tree.items()}
        for path in sorted(gfids):
            above, _, name = path.rpartition(b"/")
            parent = gfids[above or b"/"]
            if (parent, name) in names or (parent in found and path != b"/"):
                found.add(gfids[path])
    return found
