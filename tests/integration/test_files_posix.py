# SPDX-License-Identifier: Apache-2.0
"""One mount over one brick behaves like a local file system: the kernel, the mount process and a real directory."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.mounts import Mount, local_volfile, mounted, needs_fuse
from tests.lib.wait import wait_for

pytestmark = needs_fuse()
ROOT = Path(__file__).resolve().parents[2]
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
CACHES = ("performance/write-behind", "performance/io-cache")  # the order of the tutorial
ALL_CACHES = tuple(
    f"performance/{kind}" for kind in ("write-behind", "read-ahead", "io-cache", "quick-read", "md-cache")
)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    with mounted(tmp_path, local_volfile(tmp_path)) as found:
        yield found


def _python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _rename(source: Path, target: Path, flags: int) -> int:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags)
    return ctypes.get_errno() if done else 0


def test_file_whose_last_name_is_gone_works_until_it_is_closed(mount: Mount) -> None:
    path = mount.path / "f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"before")
    path.unlink()
    os.pwrite(fd, b"AFTER", 6)
    os.fchmod(fd, 0o600)
    os.ftruncate(fd, 9)
    found = os.fstat(fd)
    assert (found.st_nlink, found.st_size, stat.S_IMODE(found.st_mode)) == (0, 9, 0o600)
    assert os.pread(fd, 100, 0) == b"beforeAFT"
    os.close(fd)
    assert list(mount.path.iterdir()) == []


def test_rename_over_a_file_leaves_its_readers_alone(mount: Mount) -> None:
    path = mount.path / "f"
    path.write_bytes(b"0" * 8192)
    stopped = threading.Event()
    wrong: list[bytes] = []

    def read() -> None:
        while not stopped.is_set():
            with open(path, "rb") as file:
                first, second = file.read(4096), file.read()
                if len(set(first + second)) != 1 or len(first + second) != 8192:
                    wrong.append(first[:1] + second[:1])

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(60):
        new = mount.path / "new"
        new.write_bytes(b"%d" % (number % 10) * 8192)
        new.rename(path)
    stopped.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_names_links_and_directories(mount: Mount) -> None:
    root = mount.path
    (root / "d").mkdir(mode=0o750)
    (root / "d/f").write_text("x")
    os.link(root / "d/f", root / "g")
    assert (root / "g").stat().st_nlink == 2 and (root / "g").samefile(root / "d/f")
    (root / "s").symlink_to("d/f")
    assert os.readlink(root / "s") == "d/f" and (root / "s").read_text() == "x"
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((root / "fifo").stat().st_mode)
    with pytest.raises(OSError) as caught:
        (root / "d").rmdir()
    assert caught.value.errno == errno.ENOTEMPTY
    assert (root / "d").stat().st_nlink == 2
    assert sorted(os.listdir(root)) == ["d", "fifo", "g", "null", "s"]


def test_rename_flags(mount: Mount) -> None:
    a, b = mount.path / "a", mount.path / "b"
    a.write_text("a")
    b.write_text("b")
    assert _rename(a, b, RENAME_NOREPLACE) == errno.EEXIST
    assert _rename(a, b, RENAME_EXCHANGE) == 0
    assert (a.read_text(), b.read_text()) == ("b", "a")
    assert _rename(a, mount.path / "c", RENAME_NOREPLACE) == 0


def test_nameless_temporary_files_and_ioctls_are_refused(mount: Mount) -> None:
    with pytest.raises(OSError) as caught:
        os.open(mount.path, os.O_TMPFILE | os.O_RDWR)
    assert caught.value.errno in (errno.EOPNOTSUPP, errno.EISDIR)
    (mount.path / "f").touch()
    with open(mount.path / "f") as file, pytest.raises(OSError) as caught:
        fcntl.ioctl(file, 0x1234)
    assert caught.value.errno == errno.ENOTTY


def test_attributes_keep_nanoseconds_and_extended_ones(mount: Mount) -> None:
    path = mount.path / "f"
    path.touch()
    os.utime(path, ns=(1_234_567_890_123_456_789, -1_000_000_001))
    found = path.stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_234_567_890_123_456_789, -1_000_000_001)
    os.chown(path, 12, 34)
    os.setxattr(path, "user.k", b"\0v")
    assert os.getxattr(path, "user.k") == b"\0v" and os.listxattr(path) == ["user.k"]
    with pytest.raises(OSError):
        os.setxattr(path, "user.k", b"", os.XATTR_CREATE)
    os.removexattr(path, "user.k")
    assert os.listxattr(path) == []
    assert (path.stat().st_uid, path.stat().st_gid) == (12, 34)
    free = os.statvfs(mount.path)
    assert free.f_blocks > free.f_bavail > 0 and free.f_namemax == 255


def test_set_uid_goes_when_somebody_else_writes(mount: Mount) -> None:
    path = mount.path / "f"
    path.write_text("x")
    os.chmod(path, 0o6777)
    code = "import os, sys; fd = os.open(sys.argv[1], 1); os.setgid(65534); os.setuid(65534); os.write(fd, b'y')"
    assert _python(code, path).wait() == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_set_id_bits_go_with_every_change_of_owner(mount: Mount, tmp_path: Path) -> None:
    """As on the local disk: whoever is named, and of a file that its maker has open as well."""
    for folder in (mount.path, tmp_path):
        fd = os.open(folder / "made", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(fd, b"x")
        os.fchmod(fd, 0o6755)
        os.fchown(fd, 0, 0)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o755, folder
        os.fchmod(fd, 0o4711)
        os.chown(folder / "made", 12, 34)
        os.close(fd)
        found = (folder / "made").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o711, 12, 34), folder


def test_what_tar_sets_is_there_at_once(mount: Mount) -> None:
    """Times, owner and mode of a file that is still open, looked at by its descriptor, its name and the local tools."""
    path = mount.path / "made"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.write(fd, b"data")
    os.utime(fd, ns=(1_000_000_001, 2_000_000_002))
    found = os.fstat(fd)
    assert (found.st_atime_ns, found.st_mtime_ns, found.st_size) == (1_000_000_001, 2_000_000_002, 4)
    os.fchown(fd, 0, 0)
    found = path.stat()
    assert (found.st_mtime_ns, found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (2_000_000_002, 0, 0, 0o600)
    os.fchmod(fd, 0o640)
    os.write(fd, b" and more")
    os.utime(fd, ns=(3, 4))
    os.close(fd)
    found = path.stat()
    assert (found.st_mtime_ns, found.st_size, stat.S_IMODE(found.st_mode)) == (4, 13, 0o640)
    assert path.read_bytes() == b"data and more"


def test_holes_allocation_and_copies_within(mount: Mount) -> None:
    path = mount.path / "f"
    with open(path, "w+b", buffering=0) as file:
        file.write(b"x" * 65536)
        os.posix_fallocate(file.fileno(), 65536, 65536)
        assert os.fstat(file.fileno()).st_size == 131072
        os.ftruncate(file.fileno(), 1 << 20)
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert 65536 <= os.lseek(file.fileno(), 0, os.SEEK_HOLE) <= 131072
        with pytest.raises(OSError) as caught:
            os.lseek(file.fileno(), 1 << 20, os.SEEK_DATA)
        assert caught.value.errno == errno.ENXIO
        assert os.copy_file_range(file.fileno(), file.fileno(), 4096, 0, 200_000) == 4096
        assert os.pread(file.fileno(), 4097, 200_000) == b"x" * 4096 + b"\0"


def test_appends_of_several_processes_are_all_there(mount: Mount) -> None:
    path = mount.path / "log"
    code = ("import os, sys; fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
            "for i in range(200): os.write(fd, b'%s:%03d\\n' % (sys.argv[2].encode(), i))")  # fmt: skip
    writers = [_python(code, path, name) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{name}:{i:03d}" for name in "abc" for i in range(200))


def test_large_blocks_and_direct_io_come_back(mount: Mount) -> None:
    path, data = mount.path / "f", os.urandom(5 << 20)
    path.write_bytes(data)
    subprocess.run(["dd", f"if={path}", f"of={path}2", "bs=1M", "iflag=direct", "oflag=direct"], check=True,
                   stderr=subprocess.DEVNULL)  # fmt: skip
    assert Path(f"{path}2").read_bytes() == data


def test_listing_of_many_names_goes_on_while_they_are_removed(mount: Mount) -> None:
    names = {f"file-{i:04d}" for i in range(1500)}
    for name in names:
        (mount.path / name).touch()
    assert {".", ".."} <= set(subprocess.run(["ls", "-fa", mount.path], capture_output=True, text=True).stdout.split())
    seen = set()
    for entry in os.scandir(mount.path):
        seen.add(entry.name)
        os.unlink(entry.path)
    assert seen == names and os.listdir(mount.path) == []


COUNT = """
import fcntl, sys
for _ in range(int(sys.argv[2])):
    with open(sys.argv[1], "r+") as file:
        fcntl.{call}
        value = int(file.read())
        file.seek(0)
        file.write(str(value + 1))
"""


@pytest.mark.parametrize("call", ["lockf(file, fcntl.LOCK_EX)", "flock(file, fcntl.LOCK_EX)"])
def test_counter_under_locks_of_several_processes(mount: Mount, call: str) -> None:
    path = mount.path / "counter"
    path.write_text("0")
    workers = [_python(COUNT.format(call=call), path, 60) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert path.read_text() == "180"


def test_wait_for_a_lock_ends_with_a_signal(mount: Mount) -> None:
    path = mount.path / "f"
    path.touch()
    code = """
import fcntl, signal, sys
def alarm(*_): raise TimeoutError
signal.signal(signal.SIGALRM, alarm)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    fcntl.lockf(open(sys.argv[1], "r+"), fcntl.LOCK_EX)
except TimeoutError:
    print("interrupted")
"""
    with open(path, "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert _python(code, path).communicate(timeout=20)[0] == "interrupted\n"
    with open(path, "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("layers", [(), CACHES, ALL_CACHES], ids=["plain", "caches", "all caches"])
def test_random_operations_with_mapped_files_match_the_model(tmp_path: Path, layers: tuple[str, ...]) -> None:
    with mounted(tmp_path, local_volfile(tmp_path, layers)) as mount:
        command = [sys.executable, "-m", "tests.lib.fsx"]
        runs = [subprocess.Popen([*command, str(mount.path / str(seed)), str(seed), "800", "--mmap"], cwd=ROOT,
                                 stdout=subprocess.PIPE, text=True) for seed in (1, 2, 3)]  # fmt: skip
        for run in runs:
            out, _ = run.communicate(timeout=120)
            assert run.returncode == 0, out


INSERT = """
import sqlite3, sys
for number in range(40):
    with sqlite3.connect(sys.argv[1], timeout=60) as base:
        base.execute("insert into t values (?, ?)", (sys.argv[2], number))
    base.close()
"""


def test_sqlite_with_several_writers(mount: Mount) -> None:
    path = mount.path / "base.db"
    base = sqlite3.connect(path)
    base.execute("create table t (who text, number int)")
    base.commit()
    writers = [_python(INSERT, path, name) for name in "ab"]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert base.execute("select count(*) from t").fetchone() == (80,)
    assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    base.close()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_clone_gc_and_fsck(mount: Mount, tmp_path: Path) -> None:
    def git(*words: object, folder: Path) -> str:
        command = [
            "git",
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "-c",
            "safe.directory=*",
            *map(str, words),
        ]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout

    origin = tmp_path / "origin"
    origin.mkdir()
    git("init", "-q", folder=origin)
    for number in range(20):
        (origin / f"f{number % 5}").write_text(f"{number}\n" * (number + 1) * 50)
        git("add", ".", folder=origin)
        git("commit", "-qm", f"c{number}", folder=origin)
    git("clone", "-q", f"file://{origin}", "clone", folder=mount.path)
    clone = mount.path / "clone"
    (clone / "new").write_text("x")
    git("add", ".", folder=clone)
    git("commit", "-qm", "new", folder=clone)
    git("gc", "-q", "--aggressive", folder=clone)
    git("fsck", "--full", "--strict", folder=clone)
    assert git("status", "--porcelain", folder=clone) == ""


def test_tar_round_trip(mount: Mount, tmp_path: Path) -> None:
    source = ROOT / "repl/files"
    subprocess.run(["tar", "cf", tmp_path / "a.tar", "--exclude=__pycache__", "-C", source, "."], check=True)
    (mount.path / "t").mkdir()
    subprocess.run(["tar", "xpf", tmp_path / "a.tar", "-C", mount.path / "t"], check=True)
    subprocess.run(["diff", "-r", "--exclude=__pycache__", source, mount.path / "t"], check=True)
    subprocess.run(["tar", "df", tmp_path / "a.tar", "-C", mount.path / "t"], check=True)


def test_default_acl_takes_the_place_of_the_umask(tmp_path: Path) -> None:
    # version 2; user::rwx, group::rwx, mask::rwx, other::--- in the kernel's format
    acl = bytes.fromhex("0200000001000700ffffffff04000700ffffffff10000700ffffffff20000000ffffffff")
    with mounted(tmp_path, local_volfile(tmp_path), ["acl"]) as mount:
        os.setxattr(mount.path, "system.posix_acl_default", acl)
        before = os.umask(0o077)
        try:
            fd = os.open(mount.path / "f", os.O_CREAT | os.O_WRONLY, 0o666)
        finally:
            os.umask(before)
        os.close(fd)
        assert stat.S_IMODE((mount.path / "f").stat().st_mode) == 0o660
        assert os.getxattr(mount.path / "f", "system.posix_acl_access")[:4] == acl[:4]


def test_killed_mount_leaves_no_mount_point(tmp_path: Path) -> None:
    mount = Mount(tmp_path, local_volfile(tmp_path))
    (mount.path / "f").write_text("x")
    open_fd = os.open(mount.path / "f", os.O_RDONLY)
    os.kill(mount.process.pid, signal.SIGKILL)
    mount.process.popen.wait()
    wait_for(lambda: str(mount.path) not in Path("/proc/self/mountinfo").read_text(), what="the mount's end")
    with pytest.raises(OSError):
        os.read(open_fd, 10)
    assert list(mount.path.iterdir()) == []
