# SPDX-License-Identifier: Apache-2.0
"""Changes of a directory's attributes: noted on the copy that counts before others have them, taken back behind the
answer (repl/files/translators/distribute/notes.py)."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable

import pytest

from repl.files.translators.distribute.notes import Notes
from repl.files.values import Caller, Changed, FopError, Loc, SetAttr, Target
from repl.limits import DISTRIBUTE_NOTE_S
from tests.lib.distributed import Client, World
from tests.lib.virtual_loop import run

MDS = b"trusted.glusterfs.dht.mds"


class Place:
    """A volume with one directory, which one client has made."""

    def __init__(self) -> None:
        self.world = World()
        self.client = self.world.client()
        self.gfid = b""
        self.mds = 0

    async def make(self) -> Place:
        self.gfid = await self.client.mkdir("d")
        self.mds = self.client.dht.directories.get(self.gfid).mds
        self.client.log.clear()
        return self

    async def change(self, **values: int) -> None:
        await self.client.dht.setattr(self.client.caller, Loc(gfid=self.gfid), SetAttr(**values))

    def noted(self) -> int:
        return int.from_bytes(self.world.stored("d")[self.mds].xattrs[MDS], "big", signed=True)

    def sent(self, fop: str, client: Client | None = None) -> int:
        return sum(line.endswith(f".{fop}") for line in (client or self.client).log)

    def modes(self) -> set[int]:
        return {inode.iatt.mode & 0o7777 for inode in self.world.stored("d").values()}


def play(scene: Callable[[Place], Awaitable[None]]) -> None:
    async def scenario() -> None:
        await scene(await Place().make())

    run(scenario())


def test_the_notes_of_changes_that_come_together_are_taken_back_at_once() -> None:
    async def scene(place: Place) -> None:
        await place.change(mtime_ns=5)
        await place.change(uid=7)
        await place.change(mode=0o700)
        assert place.noted() == 3  # answered, and stored everywhere
        assert place.modes() == {0o700}
        await asyncio.sleep(2 * DISTRIBUTE_NOTE_S)
        assert place.noted() == 0
        assert place.sent("xattrop") == 3 + 1

    play(scene)


def test_own_notes_are_no_reason_to_compare_the_copies() -> None:
    async def scene(place: Place) -> None:
        await place.change(mode=0o700)
        await place.client.look("d")
        assert place.noted() == 1
        assert place.sent("inodelk") == 0  # as for a heal
        other = place.world.client()
        await other.look("d")
        assert place.sent("inodelk", other) > 0
        assert place.noted() == 0
        await asyncio.sleep(2 * DISTRIBUTE_NOTE_S)  # what we take back is not there any more
        assert place.noted() == -1
        await other.look("d")
        assert place.noted() == 0
        assert place.modes() == {0o700}

    play(scene)


def test_a_heal_of_our_own_takes_the_notes_along() -> None:
    async def scene(place: Place) -> None:
        await place.change(mode=0o700)
        victim = (place.mds + 1) % 4
        place.world.stored("d")[victim].iatt.mode ^= 0o070  # by hand
        await place.client.look("d")
        assert place.modes() == {0o700}
        assert place.noted() == 0
        await asyncio.sleep(2 * DISTRIBUTE_NOTE_S)
        assert place.noted() == 0

    play(scene)


def test_what_is_noted_beside_a_heal_is_counted_by_itself() -> None:
    """A note on its way back when the counter is set to nothing, and another change behind it."""

    async def scene(place: Place) -> None:
        may_go = asyncio.Event()
        asked: list[int] = []

        async def take_back(gfid: bytes, index: int, count: int) -> None:
            asked.append(count)
            await may_go.wait()

        notes = Notes("dht", place.client.dht.context, take_back)
        for _ in range(2):
            notes.done(place.gfid, 1)
        await asyncio.sleep(2 * DISTRIBUTE_NOTE_S)
        notes.done(place.gfid, 1)
        notes.forget(place.gfid)
        notes.done(place.gfid, 1)
        assert notes.is_own(place.gfid, 1, 3)
        may_go.set()
        await notes.settle()
        assert asked == [2, 1]
        assert not notes.is_own(place.gfid, 1, 1)

    play(scene)


def test_the_note_stays_while_a_copy_lacks_the_change() -> None:
    async def scene(place: Place) -> None:
        away = (place.mds + 1) % 4
        place.world.bricks[away].go_down()
        await place.change(mode=0o700)
        await asyncio.sleep(2 * DISTRIBUTE_NOTE_S)
        assert place.noted() == 1
        place.world.bricks[away].come_up()
        await place.client.look("d")
        assert place.noted() == 0
        assert place.modes() == {0o700}

    play(scene)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTCONN])
def test_a_change_that_is_refused_leaves_no_note(number: int) -> None:
    """Unless nobody knows whether it was refused."""

    async def scene(place: Place) -> None:
        async def refuse(caller: Caller, target: Target, attributes: SetAttr) -> Changed:
            raise FopError(number)

        place.world.bricks[place.mds].setattr = refuse  # type: ignore[method-assign]
        with pytest.raises(FopError) as caught:
            await place.change(mode=0o700)
        assert caught.value.errno == number
        await asyncio.sleep(2 * DISTRIBUTE_NOTE_S)
        assert place.noted() == (number == errno.ENOTCONN)
        assert place.modes() == {0o755}

    play(scene)


def test_a_client_that_dies_leaves_its_note_and_the_next_lookup_compares() -> None:
    async def scene(place: Place) -> None:
        await place.change(mode=0o700)
        place.client.die()
        await asyncio.sleep(2 * DISTRIBUTE_NOTE_S)
        assert place.noted() == 1
        other = place.world.client()
        await other.look("d")
        assert place.noted() == 0
        assert place.modes() == {0o700}

    play(scene)


def test_the_end_of_a_graph_takes_all_notes_back() -> None:
    async def scene(place: Place) -> None:
        await place.change(mode=0o700)
        await place.change(mode=0o711)
        await place.client.dht.stop()
        assert place.noted() == 0

    play(scene)


def test_a_note_that_cannot_be_taken_back_is_nobodys() -> None:
    async def scene(place: Place) -> None:
        asked: list[tuple[bytes, int, int]] = []

        async def take_back(gfid: bytes, index: int, count: int) -> None:
            asked.append((gfid, index, count))
            raise FopError(errno.ENOTCONN)

        notes = Notes("dht", place.client.dht.context, take_back)
        notes.done(place.gfid, 1)
        notes.done(place.gfid, 1)
        assert notes.is_own(place.gfid, 1, 2) and not notes.is_own(place.gfid, 1, 3)
        assert not notes.is_own(place.gfid, 0, 1)
        await notes.settle()
        assert asked == [(place.gfid, 1, 2)]
        assert not notes.is_own(place.gfid, 1, 1)  # now it is a reason to compare

    play(scene)
