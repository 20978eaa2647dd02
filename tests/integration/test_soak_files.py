# SPDX-License-Identifier: Apache-2.0
"""The soak of files itself: a short one passes, and its audits notice what they are there to notice."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from tests.lib.mounts import needs_fuse
from tests.soak.plan import Step
from tests.soak_files.faults import NAMES
from tests.soak_files.plan import FAMILIES, FAULTS, QUORUM_FAULTS, SHAPES, faults_of
from tests.soak_files.soak import Settings, SoakFiles
from tests.soak_files.tree import ABSENT
from tests.soak_files.volume import LINKTO, MOUNTS
from tests.soak_files.weather import Weather
from tests.soak_files.worker import STALE_S

SEED = 11
IMPATIENT_S = 2.0


class Short(SoakFiles):
    """A few faults that are soon over."""

    ROW: ClassVar[tuple[str, ...]] = ("kill-brick", "kill-mount", "reset", "options")

    def _schedule(self) -> Iterator[Step]:
        faults = {fault.name: fault for fault in FAULTS}
        for number, name in enumerate(self.ROW):
            yield Step(number, 0.1, faults[name], 0.3, 0.4)


@contextlib.contextmanager
def prepared(kind: type[SoakFiles], patience_s: float = STALE_S) -> Iterator[SoakFiles]:
    """With everything gone at the end, whatever happens."""
    settings = Settings(SEED, 600, shape="pairs", mounts=MOUNTS[:2], pace_s=0.05, stale_s=patience_s,
                        healed_s=max(patience_s, 5.0))  # fmt: skip
    soak = kind(settings, print)
    try:
        yield soak
    finally:
        soak.kill()
        shutil.rmtree(soak.folder, ignore_errors=True)


@needs_fuse()
def test_short_soak_of_files_survives_faults_of_bricks_links_and_mounts() -> None:
    with prepared(Short) as soak:
        result = soak.run()
        assert sum(result.faults.values()) == len(Short.ROW) and result.audits == 1
        assert result.writes > 100 and result.reads > 20
        assert all(client.acknowledged for client in soak.clients)
        soak.close()


# ---- what is planted is found ----


class Standing(SoakFiles):
    """A volume that was worked on, and on which nobody works any more."""

    def begin(self) -> None:
        self._prepare()
        self._resume()
        self._stand_still()

    def copies(self, name: str) -> list[Path]:
        """Of a file, wherever its data are."""
        found = [path / name for path in self.volume.directories if (path / name).exists()]
        return [path for path in found if LINKTO not in os.listxattr(path)]


def other_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def byte_on_one_brick(soak: Standing) -> None:
    other_byte(soak.copies("blocks0")[1])


def content_that_nobody_wrote(soak: Standing) -> None:
    for path in soak.copies("tree0/always"):
        other_byte(path)


def mode_on_one_brick(soak: Standing) -> None:
    soak.copies("blocks1")[0].chmod(0o600)


def attribute_on_one_brick(soak: Standing) -> None:
    os.setxattr(soak.copies("blocks1")[1], "user.planted", b"x")


def name_on_one_brick(soak: Standing) -> None:
    path = soak.copies("blocks1")[0]
    path.with_name("planted").hardlink_to(path)


def lost_file(soak: Standing) -> None:
    for path in soak.copies("tree1/always"):
        path.unlink()


def name_that_was_removed(soak: Standing) -> None:
    free = next(name for name, what in soak.trees[2].slots.items() if what == {ABSENT} and "/" not in name)
    for path in soak.copies("tree2/always"):
        path.with_name(free).hardlink_to(path)


def line_of_a_log(soak: Standing) -> None:
    for path in soak.copies("log0"):
        data = path.read_bytes()
        path.write_bytes(data[data.index(b"\n") + 1 :])


def line_of_a_log_twice(soak: Standing) -> None:
    for path in soak.copies("log1"):
        data = path.read_bytes()
        path.write_bytes(data + data[: data.index(b"\n") + 1])


def count_that_was_lost(soak: Standing) -> None:
    for path in soak.copies("fcntl"):
        path.write_text("{}")


def stored(directory: Path, gfid: uuid.UUID) -> Path:
    path = directory / ".glusterfs" / gfid.hex[:2] / gfid.hex[2:4] / str(gfid)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def file_without_a_name(soak: Standing) -> None:
    stored(soak.volume.directories[0], uuid.UUID(int=1 << 100)).write_bytes(b"x")


def mark_of_a_change(soak: Standing) -> None:
    os.setxattr(soak.copies("blocks0")[0], "trusted.afr.planted", bytes.fromhex("000000010000000000000000"))


def link_file_of_another_file(soak: Standing) -> None:
    name, gfid = "flock", uuid.uuid4()
    for directory in soak.volume.directories:
        path = directory / name
        if LINKTO in os.listxattr(path) if path.exists() else False:
            stored(directory, uuid.UUID(bytes=os.getxattr(path, "trusted.gfid"))).unlink()
            path.unlink()
        if not path.exists():
            path.touch()
            path.chmod(0o1000)
            os.setxattr(path, "trusted.gfid", gfid.bytes)
            os.setxattr(path, LINKTO, b"vol-replicate-0\0")
            stored(directory, gfid).hardlink_to(path)


def range_of_a_directory(soak: Standing) -> None:
    for directory in soak.volume.directories[:2]:
        value = os.getxattr(directory / "exclusive", "trusted.glusterfs.dht")
        os.setxattr(directory / "exclusive", "trusted.glusterfs.dht", value[:8] + bytes(8))


def traceback_in_a_log(soak: Standing) -> None:
    with (soak.volume.folder / "brick0.log").open("a") as log:
        log.write("Traceback (most recent call last):\n")


# What is planted, and how an audit tells it.
PLANTED = {
    byte_on_one_brick: "blocks0 differs on brick[0-3] and brick[0-3]: .*content",
    content_that_nobody_wrote: "tree0 on fresh: always: .* not one of",
    mode_on_one_brick: "blocks1 differs on brick[0-3] and brick[0-3]: mode",
    attribute_on_one_brick: "blocks1 differs on brick[0-3] and brick[0-3]: .*attributes",
    name_on_one_brick: "planted is on brick[0-3] only",
    lost_file: "tree1 on fresh: always is not there",
    name_that_was_removed: "tree2 on fresh: f[0-9] is listed and was removed",
    line_of_a_log: "fresh: log0: 1 lines of [a-z0-9]+ missing",
    line_of_a_log_twice: "fresh: log1: 1 lines of [a-z0-9]+ twice",
    count_that_was_lost: "on fresh: fcntl says 0, [0-9]+ was acknowledged",
    file_without_a_name: "00000010000000000000000000000000 has no name",
    mark_of_a_change: "all bricks healed: not within",
    link_file_of_another_file: "flock: link files of another file",
    range_of_a_directory: "exclusive: ranges",
    traceback_in_a_log: "(?s)brick0.log: .*Traceback",
}


@needs_fuse()
def test_audit_notices_everything_that_is_planted() -> None:
    with prepared(Standing, IMPATIENT_S) as soak:
        assert isinstance(soak, Standing)
        soak.begin()
        assert soak.findings() == []
        for plant in PLANTED:
            plant(soak)
        found = "\n".join(soak.findings())
        soak._close_workers()
    missing = [plant.__name__ for plant, words in PLANTED.items() if not re.search(words, found)]
    assert not missing, f"{missing} in\n{found}"


# ---- the plan ----


def test_every_fault_of_the_plan_can_be_provoked() -> None:
    assert {fault.name for fault in (*FAULTS, *QUORUM_FAULTS)} == NAMES
    assert not {fault.name for fault in faults_of(SHAPES["pairs"], FAMILIES)} & {f.name for f in QUORUM_FAULTS}
    assert len(faults_of(SHAPES["arbiter"], FAMILIES)) == len(NAMES)


def test_errors_are_excused_by_the_weather_only() -> None:
    weather = Weather()
    assert not weather.excuse("a", 0.0)
    with weather.storm("a fault", "a"):
        assert weather.excuse("a", float("inf")) == "a fault" and not weather.excuse("b", 0.0)
    assert weather.excuse("a", 0.0) and not weather.excuse("a", float("inf"))
