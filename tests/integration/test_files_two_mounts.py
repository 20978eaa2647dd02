# SPDX-License-Identifier: Apache-2.0
"""Two mounts of a 2x2 volume, with and without caches: a coherent file system for programs on both.

GlusterFS 10.3 fails several of these: a counter under locks, SQLite from two mounts, reads while a file is replaced,
a file whose name goes while it is open.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lib.mounts import needs_fuse
from tests.lib.tools import ROOT
from tests.lib.volumes import ALL_LAYERS, NO_LAYERS, running_volume
from tests.lib.wait import wait_for

pytestmark = needs_fuse()
PUNCH = 1 | 2
Pair = tuple[Path, Path]


CACHES = ALL_LAYERS | {"performance.strict-o-direct": "on"}


@pytest.fixture(scope="module", params=[NO_LAYERS, CACHES], ids=["plain", "caches"])
def mounts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with running_volume(tmp_path_factory.mktemp("volume"), options=request.param) as volume:
        yield volume.mount("a", ["acl"]).path, volume.mount("b", ["acl"]).path
        volume.heal()
        volume.wait_healed()
        volume.assert_equal()


@pytest.fixture
def pair(mounts: Pair, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A folder of the test's own, as both mounts show it."""
    name = request.node.originalname
    found = mounts[0] / name, mounts[1] / name
    found[0].mkdir()
    yield found
    shutil.rmtree(found[0])
    assert not found[1].exists()


def _python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True)


def _all_well(*running: subprocess.Popen[str]) -> None:
    assert [process.wait(1500) for process in running] == [0] * len(running)


def _soon(condition: Callable[[], bool]) -> None:
    """Long before the kernel would ask again by itself, a second after it did: the brick has told it."""
    wait_for(condition, 0.5, "what the other mount has changed")


class Background:
    """A function again and again in a thread until ``end``, which raises what it raised."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.rounds = 0
        self._work = work
        self._error: BaseException | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._is_over.is_set():
                self._work()
                self.rounds += 1
        except BaseException as error:
            self._error = error

    def end(self) -> None:
        self._is_over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


# ---- locks ----

COUNT = """
import fcntl, sys
for _ in range(int(sys.argv[2])):
    with open(sys.argv[1], "r+") as file:
        fcntl.{call}
        value = int(file.read())
        file.seek(0)
        file.write(str(value + 1))
"""
COUNT_IN_OPEN_FILE = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for _ in range(int(sys.argv[2])):
    fcntl.lockf(fd, fcntl.LOCK_EX)
    value = int(os.pread(fd, 20, 0))
    os.pwrite(fd, b"%d" % (value + 1), 0)
    fcntl.lockf(fd, fcntl.LOCK_UN)
"""
COUNTERS = {
    "fcntl": COUNT.format(call="lockf(file, fcntl.LOCK_EX)"),
    "flock": COUNT.format(call="flock(file, fcntl.LOCK_EX)"),
    "fcntl of a file that stays open": COUNT_IN_OPEN_FILE,
}


@pytest.mark.parametrize("kind", COUNTERS)
def test_counter_under_locks_is_exact(pair: Pair, scale: int, kind: str) -> None:
    (pair[0] / "counter").write_text("0")
    _all_well(*(_python(COUNTERS[kind], root / "counter", 40 * scale) for root in (*pair, *pair)))
    assert [(root / "counter").read_text() for root in pair] == [str(160 * scale)] * 2


def test_lock_of_one_mount_is_seen_by_the_other(pair: Pair) -> None:
    for root in pair:
        (root / "f").touch()
    with open(pair[0] / "f", "r+") as first, open(pair[1] / "f", "r+") as second:
        fcntl.lockf(first, fcntl.LOCK_EX, 10, 5)
        for length, start in ((5, 8), (1, 14), (0, 0)):
            with pytest.raises(OSError) as caught:
                fcntl.lockf(second, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
            assert caught.value.errno in (errno.EAGAIN, errno.EACCES)
        fcntl.lockf(second, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)
        fcntl.flock(first, fcntl.LOCK_SH)
        fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


INSERT = """
import sqlite3, sys
for number in range(int(sys.argv[3])):
    with sqlite3.connect(sys.argv[1], timeout=120) as base:
        base.execute("insert into t values (?, ?)", (sys.argv[2], number))
    base.close()
"""
INSERT_IN_OPEN_BASE = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], timeout=120, isolation_level=None)
for number in range(int(sys.argv[3])):
    base.execute("begin immediate")
    (count,) = base.execute("select count(*) from t").fetchone()
    base.execute("insert into t values (?, ?)", (sys.argv[2], number))
    assert base.execute("select count(*) from t").fetchone() == (count + 1,)
    base.execute("commit")
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(INSERT, id="opened for each", marks=pytest.mark.files_long),
        pytest.param(INSERT_IN_OPEN_BASE, id="open all the time"),
    ],
)
def test_sqlite_from_both_mounts_loses_nothing(pair: Pair, scale: int, code: str) -> None:
    base = sqlite3.connect(pair[0] / "base.db")
    base.execute("create table t (who text, number int)")
    base.commit()
    _all_well(*(_python(code, pair[k] / "base.db", name, 20 * scale) for k, name in ((0, "a"), (1, "b"), (1, "c"))))
    assert base.execute("select count(*), count(distinct who || number) from t").fetchone() == (60 * scale,) * 2
    assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    base.close()


def test_sqlite_with_a_write_ahead_log_on_one_mount(pair: Pair, scale: int) -> None:
    base = sqlite3.connect(pair[0] / "base.db")
    assert base.execute("pragma journal_mode=wal").fetchone() == ("wal",)
    base.execute("create table t (who text, number int)")
    base.commit()
    _all_well(*(_python(INSERT_IN_OPEN_BASE, pair[0] / "base.db", name, 20 * scale) for name in "ab"))
    assert base.execute("select count(*) from t").fetchone() == (40 * scale,)
    assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    base.close()


# ---- what one writes the other sees ----

APPEND = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(int(sys.argv[3])):
    line = b"%s:%05d:" % (sys.argv[2].encode(), number)
    os.write(fd, line + b"." * (number * 7 % 300) + b"\\n")
"""


def test_appends_are_all_there_once_and_whole(pair: Pair, scale: int) -> None:
    count = 120 * scale
    _all_well(*(_python(APPEND, pair[k] / "log", name, count) for k, name in ((0, "a"), (1, "b"), (0, "c"))))
    for root in pair:
        lines = (root / "log").read_text().splitlines()
        wanted = [f"{name}:{number:05d}:" + "." * (number * 7 % 300) for name in "abc" for number in range(count)]
        assert sorted(lines) == sorted(wanted)


def test_what_was_closed_is_read_by_who_opens_next(pair: Pair, scale: int) -> None:
    """Random changes by one mount or the other, a file opened for each: contents and size are the model's."""
    chance, model = random.Random(3), bytearray()
    (pair[0] / "f").touch()
    for number in range(250 * scale):
        with open(pair[chance.randrange(2)] / "f", "r+b", buffering=0) as file:
            at, size = chance.randrange(150_000), chance.choice((1, 500, 4096, 40_000))
            kind = chance.choice(("write", "map", "truncate", "read", "read", "stat", "map read"))
            if kind == "write":
                data = chance.randbytes(size)
                os.pwrite(file.fileno(), data, at)
                model.extend(bytes(max(0, at + size - len(model))))
                model[at : at + size] = data
            elif kind == "truncate":
                os.ftruncate(file.fileno(), at)
                del model[at:]
                model.extend(bytes(at - len(model)))
            elif kind == "stat":
                assert os.fstat(file.fileno()).st_size == len(model), number
            elif kind == "read":
                assert os.pread(file.fileno(), size, at) == model[at : at + size], number
            elif model:
                at = chance.randrange(len(model))
                with mmap.mmap(file.fileno(), len(model)) as mapped:
                    if kind == "map":
                        data = chance.randbytes(min(size, len(model) - at))
                        mapped[at : at + len(data)] = data
                        model[at : at + len(data)] = data
                    else:
                        assert mapped[at : at + size] == model[at : at + size], number
    assert [(root / "f").read_bytes() for root in pair] == [bytes(model)] * 2


def test_mapped_file_of_one_mount_shows_what_the_other_has_written(pair: Pair) -> None:
    (pair[0] / "f").write_bytes(b"0" * 20_000)
    with open(pair[1] / "f", "r+b") as file, mmap.mmap(file.fileno(), 20_000) as mapped:
        assert mapped[:] == b"0" * 20_000
        with open(pair[0] / "f", "r+b") as other:
            other.write(b"1" * 20_000)
        wait_for(lambda: mapped[:] == b"1" * 20_000, 10, "the other's data in memory")
        mapped[5000:5010] = b"2" * 10
        mapped.flush()
        assert (pair[0] / "f").read_bytes() == b"1" * 5000 + b"2" * 10 + b"1" * 14_990


def test_file_stays_usable_when_the_other_mount_removes_its_name(pair: Pair) -> None:
    for make in (lambda: (pair[1] / "f").unlink(), lambda: (pair[1] / "new").rename(pair[1] / "f")):
        (pair[0] / "f").write_bytes(b"x" * 10_000)
        (pair[1] / "new").write_bytes(b"new")
        fd = os.open(pair[0] / "f", os.O_RDWR)
        make()
        assert os.pread(fd, 5, 0) == b"xxxxx"
        os.pwrite(fd, b"y" * 5, 9_998)
        os.ftruncate(fd, 12_000)
        assert os.pread(fd, 20_000, 9_990) == b"x" * 8 + b"y" * 5 + bytes(1_997)
        assert os.fstat(fd).st_size == 12_000
        os.close(fd)
    assert (pair[0] / "f").read_bytes() == b"new"


def test_readers_of_a_replaced_file_see_the_old_one_or_the_new(pair: Pair, scale: int) -> None:
    target = pair[0] / "target"
    target.write_bytes(b"0" * 9000)

    def read(root: Path) -> None:
        with open(root / "target", "rb", buffering=0) as file:
            data = file.read(4096) + file.read(9000)
            assert len(data) == 9000 and len(set(data)) == 1, data[:20]
        assert (root / "target").stat().st_size == 9000

    readers = [Background(lambda root=root: read(root)) for root in (*pair, pair[1])]
    for number in range(80 * scale):
        new = pair[number % 2] / f"source{number}"
        new.write_bytes(b"%d" % (number % 10) * 9000)
        new.rename(pair[number % 2] / "target")
    for reader in readers:
        reader.end()
    assert min(reader.rounds for reader in readers) > 10
    assert [os.listdir(root) for root in pair] == [["target"]] * 2


EXCLUSIVE = """
import os, sys
won = 0
for number in range(int(sys.argv[2])):
    makers = [lambda n: os.close(os.open(n, os.O_CREAT | os.O_EXCL)), os.mkdir, lambda n: os.symlink("x", n)]
    for k, make in enumerate(makers):
        try:
            make(f"{sys.argv[1]}/{number}-{k}")
            won += 1
        except FileExistsError:
            pass
print(won)
"""


def test_new_name_is_given_to_exactly_one(pair: Pair, scale: int) -> None:
    count = 30 * scale
    command = [sys.executable, "-c", EXCLUSIVE]
    racers = [subprocess.Popen([*command, str(root), str(count)], stdout=subprocess.PIPE, text=True)
              for root in (*pair, *pair)]  # fmt: skip
    won = [int(racer.communicate(timeout=300)[0]) for racer in racers]
    assert sum(won) == 3 * count
    assert sorted(os.listdir(pair[0])) == sorted(os.listdir(pair[1]))
    assert len(os.listdir(pair[0])) == 3 * count


# ---- directories ----


def test_listing_while_names_come_and_go_has_all_that_stay_once(pair: Pair, scale: int) -> None:
    stay = {f"stay{number:05d}" for number in range(300 * scale)}
    for name in stay:
        (pair[0] / name).touch()
    chance = random.Random(5)

    def change() -> None:
        path = pair[0] / f"gone{chance.randrange(100)}"
        if path.exists():
            path.unlink()
        else:
            path.touch()

    changing = Background(change)
    for number in range(12):
        names = [entry.name for entry in os.scandir(pair[number % 2])]
        assert len(names) == len(set(names)), "a name twice"
        assert stay <= set(names), sorted(stay - set(names))[:5]
    changing.end()
    assert changing.rounds > 5


@pytest.mark.files_long
def test_directory_of_ten_thousand_names(pair: Pair) -> None:
    names = {f"a-name-that-is-not-short-{number:06d}" for number in range(10_000)}
    for name in names:
        os.close(os.open(pair[0] / name, os.O_CREAT | os.O_WRONLY))
    for root in pair:
        listed = os.listdir(root)
        assert len(listed) == 10_000 and set(listed) == names
        assert sum(entry.stat().st_size for entry in os.scandir(root)) == 0
    for name in sorted(names)[::2]:
        (pair[1] / name).unlink()
    assert sorted(os.listdir(pair[0])) == sorted(names)[1::2]


# ---- holes, attributes, direct ----


def test_holes_and_allocation_are_the_same_on_both(pair: Pair) -> None:
    with open(pair[0] / "f", "w+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"x" * 65536, 1 << 20)
        os.pwrite(file.fileno(), b"y" * 65536, 0)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.fallocate(file.fileno(), PUNCH, ctypes.c_int64(4096), ctypes.c_int64(8192)) == 0
    with open(pair[1] / "f", "r+b", buffering=0) as file:
        fd = file.fileno()
        assert os.fstat(fd).st_size == (1 << 20) + 65536 and os.fstat(fd).st_blocks * 512 < 1 << 19
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 4096 and os.lseek(fd, 4096, os.SEEK_DATA) == 12288
        assert os.lseek(fd, 65536, os.SEEK_DATA) == 1 << 20
        assert os.pread(fd, 16384, 0) == b"y" * 4096 + bytes(8192) + b"y" * 4096
        os.posix_fallocate(fd, 0, 1 << 20)
        assert os.fstat(fd).st_blocks * 512 >= 1 << 20
    assert (pair[0] / "f").stat().st_blocks * 512 >= 1 << 20


def test_attributes_and_access_lists_are_the_same_on_both(pair: Pair) -> None:
    one, two = pair[0] / "f", pair[1] / "f"
    one.write_text("x")
    for number in range(10):
        os.setxattr(one, "user.k", b"%d" % number)
        _soon(lambda n=number: os.getxattr(two, "user.k") == b"%d" % n)
        os.chmod(two, 0o600 + number)
        _soon(lambda n=number: one.stat().st_mode & 0o777 == 0o600 + n)
        os.utime(one, ns=(number, 10**18 + number))
        _soon(lambda n=number: two.stat().st_mtime_ns == 10**18 + n)
    os.removexattr(two, "user.k")
    _soon(lambda: os.listxattr(one) == [])
    # user::rw-, user:1000:r--, group::---, mask::r--, other::--- in the kernel's format
    acl = bytes.fromhex("0200000001000600ffffffff02000400e803000004000000ffffffff10000400ffffffff20000000ffffffff")
    os.setxattr(one, "system.posix_acl_access", acl)
    _soon(lambda: os.getxattr(two, "system.posix_acl_access") == acl)
    pair[0].chmod(0o755)
    code = "import os; os.setgroups([]); os.setgid({0}); os.setuid({0}); open('f').read()"
    for user, error in ((1000, ""), (1001, "PermissionError")):
        command = [sys.executable, "-c", code.format(user)]
        done = subprocess.run(command, cwd=pair[1], capture_output=True, text=True)
        assert error in done.stderr and bool(error) == bool(done.returncode), done.stderr


def test_direct_writes_of_one_mount_are_read_by_the_other(pair: Pair) -> None:
    block = mmap.mmap(-1, 8192)
    fds = [os.open(root / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT) for root in pair]
    for number in range(40):
        block[:] = b"%c" % (65 + number % 26) * 8192
        os.pwritev(fds[number % 2], [block], number % 5 * 8192)
        assert os.preadv(fds[1 - number % 2], [block], number % 5 * 8192) == 8192
        assert block[:] == b"%c" % (65 + number % 26) * 8192
    for fd in fds:
        os.close(fd)


def test_statfs_is_that_of_all_sets(pair: Pair) -> None:
    one, two = os.statvfs(pair[0]), os.statvfs(pair[1])
    assert one.f_blocks * one.f_frsize == two.f_blocks * two.f_frsize > 0
    assert one.f_blocks >= one.f_bfree >= one.f_bavail > 0 and one.f_files > 0 and one.f_namemax == 255


# ---- programs ----


def test_random_operations_several_at_once_match_their_models(pair: Pair, scale: int) -> None:
    runs = []
    for seed in range(3 if scale == 1 else 6):
        path, steps = str(pair[seed % 2] / str(seed)), str(300 * scale)
        command = [sys.executable, "-m", "tests.lib.fsx", path, str(seed), steps, "--mmap"]
        runs.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    for run in runs:
        out, _ = run.communicate(timeout=1500)
        assert run.returncode == 0, out


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_repository_is_cloned_collected_and_checked_from_both(pair: Pair, tmp_path: Path, scale: int) -> None:
    identity = ("user.name=t", "user.email=t@example.org", "safe.directory=*")
    settings = [word for pair in identity for word in ("-c", pair)]

    def git(*words: object, folder: Path) -> str:
        command = ["git", *settings, *map(str, words)]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout

    git("init", "-q", "origin", folder=tmp_path)
    origin = tmp_path / "origin"
    for number in range(8 * scale):
        (origin / f"f{number % 5}").write_text(f"{number}\n" * (number + 1) * 50)
        git("add", ".", folder=origin)
        git("commit", "-qm", f"c{number}", folder=origin)
    git("clone", "-q", f"file://{origin}", "clone", folder=pair[0])
    (pair[1] / "clone/new").write_text("x")
    git("add", ".", folder=pair[1] / "clone")
    git("commit", "-qm", "new", folder=pair[1] / "clone")
    git("gc", "-q", folder=pair[0] / "clone")
    for root in pair:
        git("fsck", "--full", "--strict", folder=root / "clone")
        assert git("status", "--porcelain", folder=root / "clone") == ""
        assert len(git("log", "--oneline", folder=root / "clone").splitlines()) == 8 * scale + 1


def _source(scale: int) -> Path:
    return ROOT / ("repl/files/translators/posix" if scale == 1 else "repl")


def test_tar_round_trip(pair: Pair, tmp_path: Path, scale: int) -> None:
    source, archive = _source(scale), tmp_path / "a.tar"
    subprocess.run(["tar", "cf", archive, "--exclude=__pycache__", "-C", source, "."], check=True)
    subprocess.run(["tar", "xpf", archive, "-C", pair[0]], check=True)
    for root in pair:
        subprocess.run(["tar", "df", archive, "-C", root], check=True)
        subprocess.run(["diff", "-r", "--exclude=__pycache__", source, root], check=True)


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_rsync_round_trip(pair: Pair, tmp_path: Path, scale: int) -> None:
    command = ["rsync", "-aHX", "--delete", "--exclude=__pycache__"]
    subprocess.run([*command, f"{_source(scale)}/", f"{pair[0]}/"], check=True)
    (pair[1] / "more").write_text("more")
    subprocess.run([*command, f"{pair[1]}/", f"{tmp_path}/back/"], check=True)
    again = subprocess.run([*command, "-cni", f"{pair[0]}/", f"{tmp_path}/back/"], check=True, capture_output=True)
    assert again.stdout == b"" and (tmp_path / "back/more").read_text() == "more"
    subprocess.run([*command, f"{_source(scale)}/", f"{pair[1]}/"], check=True)
    subprocess.run(["diff", "-r", "--exclude=__pycache__", _source(scale), pair[0]], check=True)
