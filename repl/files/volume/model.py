# SPDX-License-Identifier: Apache-2.0
"""What a volume is made of: sets of bricks, options, and whether it is meant to run.

Inputs: what an administrator gives; outputs: ``Volume`` and what of it changes.  Bricks and sets keep their numbers for
ever, because the numbers are part of what stands in extended attributes of the bricks: ``trusted.afr.NAME-client-2``
accuses brick 2, ``trusted.glusterfs.dht.linkto`` holds ``NAME-replicate-1``.
Errors: ``UsageError`` that says what does not fit and what would.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from repl.errors import UsageError
from repl.limits import VOLUME_BRICKS_MAX

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
NAME_CHARS_MAX = 200
REPLICA_MAX = 16


class Status(StrEnum):
    CREATED = "Created"
    STARTED = "Started"
    STOPPED = "Stopped"


@dataclass(frozen=True, slots=True)
class Place:
    """``HOST:/directory``."""

    host: str
    path: str

    def __str__(self) -> str:
        return f"{self.host}:{self.path}"


@dataclass(slots=True)
class Brick:
    """``number`` stays what it is when the brick's place changes."""

    number: int
    host: str
    path: str
    port: int
    is_arbiter: bool = False
    is_fresh: bool = False  # came empty into a set with data: the others accuse it before it is started

    @property
    def place(self) -> Place:
        return Place(self.host, self.path)

    def __str__(self) -> str:
        return f"{self.host}:{self.path}"


@dataclass(slots=True)
class BrickSet:
    """Copies of the same files, or a single brick; one subvolume of distribute."""

    number: int
    bricks: list[Brick] = field(default_factory=list)
    is_leaving: bool = False  # remove-brick has been started


@dataclass(slots=True)
class Volume:
    name: str
    id: str  # a UUID as text; on every brick's root
    replica: int
    has_arbiter: bool
    sets: list[BrickSet]
    options: dict[str, str] = field(default_factory=dict)  # as volume set names them
    status: Status = Status.CREATED
    next_brick: int = 0
    next_set: int = 0

    # ---- names in volfiles ----

    def client_name(self, brick: Brick) -> str:
        return f"{self.name}-client-{brick.number}"

    def set_name(self, found: BrickSet) -> str:
        """Of distribute's child."""
        return f"{self.name}-replicate-{found.number}" if self.replica > 1 else self.client_name(found.bricks[0])

    @property
    def distribute_name(self) -> str:
        return f"{self.name}-dht"

    # ---- looking ----

    @property
    def bricks(self) -> list[Brick]:
        return [brick for one in self.sets for brick in one.bricks]

    @property
    def kind(self) -> str:
        """As ``volume info`` calls it."""
        if self.replica == 1:
            return "Distribute"
        return "Replicate" if len(self.sets) == 1 else "Distributed-Replicate"

    @property
    def count_text(self) -> str:
        """``2 x 2 = 4``."""
        if self.replica == 1:
            return str(len(self.sets))
        copies = f"({self.replica - 1} + 1)" if self.has_arbiter else str(self.replica)
        return f"{len(self.sets)} x {copies} = {len(self.bricks)}"

    def find(self, place: Place) -> tuple[BrickSet, Brick]:
        for one in self.sets:
            for brick in one.bricks:
                if brick.place == place:
                    return one, brick
        raise UsageError(f"{place} is no brick of volume {self.name}.",
                         advice="It has " + ", ".join(map(str, self.bricks)) + ".")  # fmt: skip

    def named(self, client: str) -> Brick | None:
        """The brick that a volfile calls so."""
        return next((brick for brick in self.bricks if self.client_name(brick) == client), None)

    @property
    def leaving(self) -> list[BrickSet]:
        return [one for one in self.sets if one.is_leaving]

    # ---- changing ----

    def _new_brick(self, place: Place, port: int, *, is_arbiter: bool) -> Brick:
        brick = Brick(self.next_brick, place.host, place.path, port, is_arbiter)
        self.next_brick += 1
        return brick

    def add_sets(self, places: Sequence[Place], ports: Iterator[int]) -> list[BrickSet]:
        """More subvolumes, the places of each one after another."""
        check_places(places, self)
        if not places or len(places) % self.replica:
            raise UsageError(f"Incorrect number of bricks supplied {len(places)} with count {self.replica}.",
                             advice=f"Bricks come in sets of {self.replica}.")  # fmt: skip
        added = []
        for at in range(0, len(places), self.replica):
            one = BrickSet(self.next_set)
            self.next_set += 1
            for k, place in enumerate(places[at : at + self.replica]):
                is_arbiter = self.has_arbiter and k == self.replica - 1
                one.bricks.append(self._new_brick(place, next(ports), is_arbiter=is_arbiter))
            added.append(one)
        self.sets += added
        return added

    def add_copies(
        self, replica: int, places: Sequence[Place], ports: Iterator[int], *, arbiter: bool = False
    ) -> list[Brick]:
        """One brick more for each set (or several), in the order of the sets."""
        check_places(places, self)
        more = replica - self.replica
        if more <= 0:
            raise UsageError(f"replica {replica} is no more than the {self.replica} that the volume has.")
        if len(places) != more * len(self.sets):
            raise UsageError(f"Incorrect number of bricks supplied {len(places)}.",
                             advice=f"{more} more for each of {len(self.sets)} sets are needed.")  # fmt: skip
        if self.has_arbiter or arbiter and (self.replica, replica) != (2, 3):
            raise UsageError("an arbiter is the third brick of replica 3.",
                             advice="From replica 2: add-brick NAME replica 3 arbiter 1 HOST:/DIR...")  # fmt: skip
        check_replica(replica, arbiter)
        added = []
        for k, one in enumerate(self.sets):
            for place in places[k * more : (k + 1) * more]:
                brick = self._new_brick(place, next(ports), is_arbiter=arbiter)
                brick.is_fresh = True
                one.bricks.append(brick)
                added.append(brick)
        self.replica, self.has_arbiter = replica, arbiter
        return added

    def sets_of(self, places: Sequence[Place]) -> list[BrickSet]:
        """Whole sets, as remove-brick names them."""
        found: dict[int, list[Place]] = {}
        for place in places:
            found.setdefault(self.find(place)[0].number, []).append(place)
        for one in self.sets:
            if one.number in found and len(set(found[one.number])) != len(one.bricks):
                raise UsageError(
                    f"Remove brick incorrect brick count of {len(places)} for replica {self.replica}.",
                    advice="Name all bricks of a set: " + " ".join(map(str, one.bricks)) + ".",
                )
        return [one for one in self.sets if one.number in found]

    def drop_sets(self, sets: Sequence[BrickSet]) -> None:
        if len(sets) == len(self.sets):
            raise UsageError("Deleting all the bricks of the volume is not allowed.")
        self.sets = [one for one in self.sets if one not in sets]

    def drop_copies(self, replica: int, places: Sequence[Place]) -> list[Brick]:
        """Fewer copies: one brick (or several) of each set goes."""
        check_replica(replica, False)
        less = self.replica - replica
        if less <= 0:
            raise UsageError(f"replica {replica} is no less than the {self.replica} that the volume has.")
        dropped = [self.find(place) for place in dict.fromkeys(places)]
        for one in self.sets:
            if sum(found is one for found, _ in dropped) != less:
                raise UsageError(f"replica {replica} takes {less} away from each set.",
                                 advice="A set is " + " ".join(map(str, one.bricks)) + ".")  # fmt: skip
        bricks = [brick for _, brick in dropped]
        if self.has_arbiter and not all(brick.is_arbiter for brick in bricks):
            raise UsageError("the arbiter has to go first: it has no data.")
        for one in self.sets:
            one.bricks = [brick for brick in one.bricks if brick not in bricks]
        self.replica, self.has_arbiter = replica, False
        return bricks

    def replace(self, old: Place, new: Place, port: int) -> Brick:
        """Another place for a copy; answers the brick as it was."""
        one, brick = self.find(old)
        if self.replica == 1:
            raise UsageError(
                f"{old} has the only copy of its files.",
                advice="Add the new brick, then remove-brick ... start: files move while they are used.",
            )
        check_places([new], self)
        before = Brick(brick.number, brick.host, brick.path, brick.port, brick.is_arbiter)
        brick.host, brick.path, brick.port, brick.is_fresh = new.host, new.path, port, True
        return before


def check_name(name: str) -> None:
    if not NAME.fullmatch(name) or len(name) > NAME_CHARS_MAX or name == "all":
        raise UsageError(f"'{name}' cannot be the name of a volume.",
                         advice="Letters, digits, - and _, beginning with a letter or digit.")  # fmt: skip


def check_replica(replica: int, arbiter: bool) -> None:
    if not 1 <= replica <= REPLICA_MAX:
        raise UsageError(f"replica {replica} cannot be.", advice=f"2 to {REPLICA_MAX}.")
    if arbiter and replica != 3:
        raise UsageError("an arbiter needs replica 3.", advice="replica 3 arbiter 1: two copies and an arbiter.")


def check_places(places: Sequence[Place], volume: Volume | None = None) -> None:
    """No brick twice, none inside another one of its host."""
    known = [brick.place for brick in volume.bricks] if volume else []
    for at, place in enumerate(places):
        for other in [*known, *places[:at]]:
            if place.host != other.host:
                continue
            if place.path == other.path:
                raise UsageError(f"Found duplicate exports {place}.")
            first, second = sorted((place.path, other.path), key=len)
            if second.startswith(first.rstrip("/") + "/"):
                raise UsageError(f"{place} and {other}: one brick cannot be inside another one.")
    if len(known) + len(places) > VOLUME_BRICKS_MAX:
        raise UsageError(f"a volume has at most {VOLUME_BRICKS_MAX} bricks.")


def create(
    name: str, places: Sequence[Place], ports: Iterator[int], *, replica: int = 1, arbiter: bool = False,
    volume_id: str = "",
) -> Volume:  # fmt: skip
    """Without ``volume_id`` the same words give the same volume on every host."""
    check_name(name)
    check_replica(replica, arbiter)
    if not places:
        raise UsageError("no brick is given.", advice="HOST:/DIRECTORY, one or more.")
    volume = Volume(name, "", replica, arbiter, [])
    if len(places) % replica:
        raise UsageError(
            f"number of bricks is not a multiple of replica count: {len(places)} bricks, replica {replica}.",
            advice="Each set of copies needs its bricks, one after another.",
        )
    volume.add_sets(places, ports)
    text = "\n".join([name, f"{replica} {arbiter:d}", *(f"{brick} {brick.port}" for brick in volume.bricks)])
    volume.id = volume_id or str(uuid.uuid5(uuid.NAMESPACE_URL, text))
    if replica > 1:
        volume.options["cluster.granular-entry-heal"] = "on"
    return volume
