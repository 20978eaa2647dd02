# SPDX-License-Identifier: Apache-2.0
"""Bricks killed, stopped, full and cut off, clients killed: what was acknowledged stays, copies become equal again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lib.cutting import Cable
from tests.lib.files_load import Writer
from tests.lib.mounts import needs_fuse
from tests.lib.volumes import NO_LAYERS, VolumeProcesses, running_volume
from tests.lib.wait import WaitTimedOut, wait_for

pytestmark = needs_fuse()
QUICK = {"network.ping-timeout": "2"}
SECONDS_MAX = 12.0  # the default ping-timeout is 5 s; Gluster's is 42 s


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[VolumeProcesses]:
    with running_volume(tmp_path, 2) as found:
        yield found


def _finish(volume: VolumeProcesses, writers: list[Writer]) -> None:
    """No marks, equal copies, and all that was acknowledged, on the mount and on each brick that has the file."""
    volume.wait_healed()
    for writer in writers:
        assert writer.problems() == []
    volume.assert_equal()


def _timed(work: Callable[[], Any]) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


# ---- a brick that stops or cannot be reached ----


def test_stopped_brick_holds_the_mount_up_for_seconds_only(volume: VolumeProcesses) -> None:
    mount = volume.mount().path
    (mount / "before").write_bytes(b"before")
    volume.brick(0).freeze()
    assert _timed(lambda: (mount / "during").write_bytes(b"during")) < SECONDS_MAX
    assert _timed(lambda: (mount / "again").write_bytes(b"again")) < 1
    assert (mount / "before").read_bytes() == b"before"
    volume.brick(0).thaw()
    volume.heal()
    volume.wait_healed()
    volume.assert_equal()
    assert volume.tree(0)["during"][3] == b"during"


ONE_WAY = [pytest.param({"from_server": False}, id="to the brick", marks=pytest.mark.files_long),
           pytest.param({"to_server": False}, id="from the brick")]  # fmt: skip


@pytest.mark.parametrize("cut", [*ONE_WAY, pytest.param({}, id="both ways")])
def test_cut_link_is_noticed_in_seconds_and_healed_afterwards(tmp_path: Path, cut: dict[str, bool]) -> None:
    with running_volume(tmp_path, 2, options=QUICK) as volume:
        cable = Cable(volume.volume.bricks[0].port)
        volume.write_volfiles([cable.port])
        mount = volume.mount().path
        with open(mount / "open", "w+b", buffering=0) as file:
            file.write(b"x" * 4096)
            (mount / "gone").touch()
            cable.cut(**cut)
            assert _timed(lambda: (mount / "during").write_bytes(b"during")) < SECONDS_MAX
            assert _timed(lambda: (mount / "gone").unlink()) < 1
            file.write(b"y" * 4096)
            os.fsync(file.fileno())
            cable.join()
            volume.heal()
            volume.wait_healed()
            file.write(b"z" * 4096)
        volume.wait_healed()
        volume.assert_equal()
        assert volume.tree(0)["open"][3] == b"x" * 4096 + b"y" * 4096 + b"z" * 4096
        cable.close()


def test_all_copies_away_is_an_error_at_once_and_files_go_on_when_they_are_back(volume: VolumeProcesses) -> None:
    mount = volume.mount().path
    with open(mount / "f", "w+b", buffering=0) as file:
        file.write(b"before")
        os.fsync(file.fileno())
        for number in (0, 1):
            volume.kill(number)
        for work in (lambda: (mount / "new").touch(), lambda: os.listdir(mount), lambda: (mount / "x").mkdir()):
            with pytest.raises(OSError) as caught:
                assert _timed(work) < 2
            assert caught.value.errno == errno.ENOTCONN
        with pytest.raises(OSError):
            file.write(b"lost")
            os.fsync(file.fileno())
        volume.start()
        wait_for(lambda: os.listdir(mount) == ["f"], 10, "the bricks", ignore=OSError)
        os.pwrite(file.fileno(), b"after!", 6)
        os.fsync(file.fileno())
    assert (mount / "f").read_bytes() == b"beforeafter!"
    volume.heal()
    volume.wait_healed()
    volume.assert_equal()


def test_listing_goes_on_when_its_brick_is_killed(volume: VolumeProcesses) -> None:
    mount = volume.mount().path
    names = {f"a-name-that-is-not-short-{number:06d}" for number in range(1500)}
    for name in names:
        (mount / name).touch()
    volume.heal()
    for number in (0, 1):  # one of them is listed
        with os.scandir(mount) as listing:
            found = [next(listing).name]
            volume.kill(number)
            found += [entry.name for entry in listing]
        assert sorted(found) == sorted(names)
        volume.start(number)
        volume.wait_healed()


# ---- locks ----


def _try_lock(path: Path) -> bool:
    """By another process: those of one do not keep each other out."""
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert not done.returncode or "BlockingIOError" in done.stderr, done.stderr
    return not done.returncode


def test_lock_outlives_bricks_that_go_and_come_back_one_after_the_other(volume: VolumeProcesses) -> None:
    first, second = volume.mount("first").path, volume.mount("second").path
    (first / "f").write_text("x")
    volume.heal()
    with open(first / "f", "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        for number in (0, 1, 0):
            volume.kill(number)
            assert not _try_lock(second / "f"), f"brick {number} is away"
            volume.start(number)
            wait_for(lambda: volume.is_healed() and _is_up_everywhere(volume), 20, "the brick", ignore=OSError)
            assert not _try_lock(second / "f"), f"brick {number} is back"
    wait_for(lambda: _try_lock(second / "f"), 5, "the lock after the file is closed")


def _is_up_everywhere(volume: VolumeProcesses) -> bool:
    """Every client has seen every brick come as often as it has seen it go."""
    logs = [(volume.folder / f"{name}.log").read_text() for name in ("first", "second")]
    return all(log.count("' is up") - log.count("' is down") == 3 for log in logs)  # two bricks and their set


def test_locks_of_a_killed_client_are_free_at_once(volume: VolumeProcesses) -> None:
    first, second = volume.mount("first"), volume.mount("second").path
    (first.path / "f").write_text("x")
    file = open(first.path / "f", "r+")
    fcntl.lockf(file, fcntl.LOCK_EX)
    assert not _try_lock(second / "f")
    first.process.kill()
    wait_for(lambda: _try_lock(second / "f"), 3, "the lock")
    with contextlib.suppress(OSError):
        file.close()


# ---- full disks ----


@contextmanager
def _disks(folder: Path, *megabytes: int) -> Iterator[list[Path]]:
    """File systems of their own."""
    with ExitStack() as stack:
        found = []
        for number, size in enumerate(megabytes):
            image, directory = folder / f"disk{number}", folder / f"mounted{number}"
            directory.mkdir()
            with open(image, "wb") as file:
                file.truncate(size << 20)
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
            done = subprocess.run(["mount", "-o", "loop", image, directory], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no loop devices: {done.stderr.strip()}")
            stack.callback(subprocess.run, ["umount", "-l", directory], check=True)
            (directory / "brick").mkdir()
            found.append(directory / "brick")
        yield found


def _fill(folder: Path) -> list[Path]:
    """Files of 256 KiB until one fails; those that were acknowledged."""
    kept = []
    for number in range(1000):
        path = folder / f"fill{number}"
        try:
            fd = os.open(path, os.O_CREAT | os.O_WRONLY)
            try:
                os.write(fd, bytes([number % 256]) * (256 << 10))
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            assert error.errno in (errno.ENOSPC, errno.EDQUOT), error
            return kept
        kept.append(path)
    raise AssertionError("the disk is never full")


def test_full_disks_are_told_and_what_was_acknowledged_stays(tmp_path: Path) -> None:
    with _disks(tmp_path, 24, 24) as directories, running_volume(tmp_path, 2, directories=directories) as volume:
        mount = volume.mount().path
        kept = _fill(mount)
        assert len(kept) > 20
        for number, path in enumerate(kept):
            assert path.read_bytes() == bytes([number % 256]) * (256 << 10)
        for path in kept[:10]:
            path.unlink()
        wait_for(lambda: (mount / "more").write_bytes(b"m" * 65536), 20, "room", ignore=OSError)
        volume.heal()
        volume.wait_healed()
        volume.assert_equal()


def test_one_full_disk_is_accused_and_healed_when_there_is_room(tmp_path: Path) -> None:
    with _disks(tmp_path, 20, 40) as directories, running_volume(tmp_path, 2, directories=directories) as volume:
        mount = volume.mount().path
        volume.heal()
        kept = _fill(mount)
        for number, path in enumerate(kept):
            assert path.read_bytes() == bytes([number % 256]) * (256 << 10)
        for path in kept[: len(kept) // 2 + 10]:
            path.unlink()
        for path in mount.iterdir():
            if path not in kept:
                path.unlink()
        volume.wait_healed()
        volume.assert_equal()


def test_full_space_of_attributes_is_an_error_and_nothing_else(tmp_path: Path) -> None:
    with _disks(tmp_path, 24, 24) as directories, running_volume(tmp_path, 2, directories=directories) as volume:
        mount = volume.mount().path
        (mount / "f").write_bytes(b"x")
        with pytest.raises(OSError) as caught:
            for number in range(64):
                os.setxattr(mount / "f", f"user.{number}", b"v" * 200)
        assert caught.value.errno == errno.ENOSPC
        (mount / "f").write_bytes(b"still written")
        os.rename(mount / "f", mount / "g")
        assert (mount / "g").read_bytes() == b"still written"
        volume.heal()
        volume.wait_healed()
        volume.assert_equal()


# ---- clients and heals that end in the middle ----


def test_client_killed_in_a_transaction_leaves_marks_and_no_locks(volume: VolumeProcesses) -> None:
    first = volume.mount("first")
    (first.path / "f").write_bytes(b"x" * 8192)
    wait_for(lambda: not volume.pending(), 10, "the end of what was kept open")
    fd = os.open(first.path / "f", os.O_WRONLY)
    os.write(fd, b"y" * 8192)
    os.fsync(fd)
    assert any("trusted.afr.dirty" in mark for mark in volume.pending()), "nothing would be between"
    first.process.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    second = volume.mount("second").path
    begin = time.monotonic()
    (second / "f").write_bytes(b"z" * 4096)
    (second / "new").write_bytes(b"new")
    assert time.monotonic() - begin < 5
    volume.heal()
    volume.wait_healed()
    volume.assert_equal()
    assert (second / "f").read_bytes() == b"z" * 4096


def test_clients_killed_under_load_lose_nothing_that_was_synced(volume: VolumeProcesses, scale: int) -> None:
    volume.heal()
    watching = volume.mount("watching").path
    writers = []
    for number in range(2 * scale):
        mount = volume.mount(f"mnt{number}")
        writer = Writer(mount.path, f"w{number}", is_synced=True)
        writer.start()
        wait_for(lambda w=writer: w.acknowledged > 60, 30, "load")
        mount.process.kill()
        writer.stop()
        writer.root = watching
        writers.append(writer)
        assert str(mount.path) not in Path("/proc/self/mountinfo").read_text() or _gone(mount.path)
    _finish(volume, writers)


def _gone(path: Path) -> bool:
    wait_for(lambda: f" {path} " not in Path("/proc/self/mountinfo").read_text(), 10, "the mount's end")
    return True


def test_killed_mount_with_operations_on_a_stopped_brick_leaves_no_mount_point(volume: VolumeProcesses) -> None:
    mount = volume.mount()
    for number in (0, 1):
        volume.brick(number).freeze()
    waiting = subprocess.Popen(["dd", "if=/dev/zero", f"of={mount.path}/f", "count=1"], stderr=subprocess.DEVNULL)
    wchan = Path(f"/proc/{waiting.pid}/wchan")
    wait_for(lambda: "request_wait_answer" in wchan.read_text(), 20, "dd in a request to the mount")
    mount.process.kill()
    _gone(mount.path)
    assert waiting.wait(20) != 0
    for number in (0, 1):
        volume.brick(number).thaw()
    assert os.listdir(volume.mount("other").path) in ([], ["f"])


def test_interrupted_heal_is_finished_by_the_next(tmp_path: Path) -> None:
    with running_volume(tmp_path, 2, options=NO_LAYERS) as volume:
        mount = volume.mount().path
        chance = random.Random(1)
        (mount / "big").write_bytes(chance.randbytes(24 << 20))
        volume.kill(1)
        wait_for(lambda: (mount / "seen").touch() is None, 10, "one brick alone", ignore=OSError)
        with open(mount / "big", "r+b") as file:
            for at in range(0, 24 << 20, 1 << 20):
                file.seek(at)
                file.write(chance.randbytes(600_000))
        for number in range(150):
            (mount / f"f{number}").write_bytes(b"%d" % number * 100)
        os.sync()
        volume.start(1)
        for victim in ("heald", 1, "heald", 1):
            if volume.daemon is None or not volume.daemon.is_running:
                volume.heal()
            wait_for(lambda: _has_begun(volume), 20, "a heal under way", interval=0.005, ignore=OSError)
            if victim == "heald":
                assert volume.daemon is not None
                volume.daemon.kill()
            else:
                volume.kill(1)
                volume.start(1)
        if volume.daemon is None or not volume.daemon.is_running:
            volume.heal()
        volume.wait_healed()
        volume.assert_equal()


def _has_begun(volume: VolumeProcesses) -> bool:
    """Something has been healed, or all of it."""
    brick = volume.directories[1]
    return any((brick / f"f{number}").exists() for number in range(0, 150, 20)) or not volume.pending()


# ---- rounds ----


def _fault(volume: VolumeProcesses, number: int, kind: str) -> None:
    if kind == "kill":
        volume.kill(number)
    else:
        volume.brick(number).freeze()


def _return(volume: VolumeProcesses, number: int, kind: str) -> None:
    if kind == "kill":
        volume.start(number)
    else:
        volume.brick(number).thaw()


@pytest.mark.files_long
def test_rounds_of_faults_under_load_end_with_equal_bricks(tmp_path: Path, scale: int) -> None:
    """2x2: a brick goes and comes back again and again; the next one only when it has everything."""
    chance = random.Random(11)
    with running_volume(tmp_path, 4, options=QUICK) as volume:
        volume.heal()
        writers = [Writer(volume.mount(name).path, name) for name in ("a", "b")]
        for writer in writers:
            writer.start()
        for round_number in range(5 * scale):
            number, kind = chance.randrange(4), "kill" if chance.random() < 0.75 else "stop"
            before = [writer.acknowledged for writer in writers]
            _fault(volume, number, kind)
            wait_for(lambda b=before: all(w.acknowledged > n + 20 for w, n in zip(writers, b, strict=True)), 40,
                     f"round {round_number}: load while brick {number} is away ({kind})")  # fmt: skip
            _return(volume, number, kind)
            wait_for(volume.is_healed, 60, f"round {round_number}: brick {number} healed", ignore=OSError)
        for writer in writers:
            writer.stop()
        _finish(volume, writers)
        errors = [error for writer in writers for error in writer.errors]
        assert not errors, "one brick away is no reason for an error:\n" + "\n".join(errors)


def test_three_copies_survive_any_order_of_kills_and_returns(tmp_path: Path, scale: int) -> None:
    """Replica 3: bricks go while others are not healed yet.  Quorum keeps what was acknowledged."""
    chance = random.Random(12)
    with running_volume(tmp_path, 3, replica=3, options=QUICK) as volume:
        volume.heal()
        writers = [Writer(volume.mount(name).path, name, is_synced=True) for name in ("a", "b")]
        for writer in writers:
            writer.start()
        away: set[int] = set()
        for _ in range(6 * scale):
            number = chance.randrange(3)
            if number in away:
                volume.start(number)
                away.discard(number)
            else:
                volume.kill(number)
                away.add(number)
            before = [writer.acknowledged for writer in writers]
            # The only good copy of something may be away: then its writers wait until it is back.
            with contextlib.suppress(WaitTimedOut):
                wait_for(lambda b=before: all(w.acknowledged > n + 5 for w, n in zip(writers, b, strict=True)), 3)
        volume.start()
        before = [writer.acknowledged for writer in writers]
        wait_for(lambda: all(w.acknowledged > n + 20 for w, n in zip(writers, before, strict=True)), 60, "load")
        for writer in writers:
            writer.stop()
        _finish(volume, writers)
