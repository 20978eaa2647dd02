# SPDX-License-Identifier: Apache-2.0
"""What the file benchmark does in a directory, and how long it takes.

Input: a mounted ``Volume``; output: ``FileSample`` by name.  One thread, one operation after another, as ``tar`` or a
shell loop would; random writes by fio.  "Cold": the mount is new and the machine's caches are dropped before.
CPU is that of the volume's processes, the client side included.  MB are 2^20 bytes here.
"""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import BenchError, cpu_seconds
from bench.volumes import Replicated, Volume, wait

MIB = 1 << 20
SMALL = 4096
PER_FOLDER = 100


@dataclass(frozen=True, slots=True)
class FileSample:
    """``value``: in the unit of the cell; ``cpu_us``: of the volume's processes for one operation."""

    value: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done."""

    files: int = 1000
    stream_mib: int = 256
    random_mib: int = 128
    random_s: float = 8.0
    heal_files: int = 1000


UNITS = {
    "create": "/s", "stat cold": "/s", "stat warm": "/s", "read cold": "/s", "list cold": "/s", "unlink": "/s",
    "write 1 MiB": "MiB/s", "read 1 MiB cold": "MiB/s",
    "randwrite QD1": "/s", "randwrite QD16": "/s", "randread QD16": "/s",
    "untar": "s", "heal": "s",
}  # fmt: skip


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


class Load:
    """All measurements on one volume, in their order."""

    def __init__(self, volume: Volume, sizes: Sizes, number: int) -> None:
        self.volume = volume
        self.sizes = sizes
        self.root = volume.path / f"round{number}"
        self.samples: dict[str, FileSample] = {}
        self._data = os.urandom(SMALL)
        self.root.mkdir()

    def small_files(self) -> Iterator[Path]:
        for number in range(self.sizes.files):
            yield self.root / f"d{number // PER_FOLDER}" / f"file{number}"

    @contextmanager
    def _measured(self, name: str, count: int, *, is_time: bool = False) -> Iterator[None]:
        """``count``: operations, or MiB; a time is given as it is."""
        cpu_s, began = cpu_seconds(self.volume.pids()), time.perf_counter()
        yield
        took = time.perf_counter() - began
        used = cpu_seconds(self.volume.pids()) - cpu_s
        self.samples[name] = FileSample(took if is_time else count / took, used * 1e6 / count)

    def make_cold(self) -> None:
        self.volume.remount()
        drop_caches()
        os.listdir(self.root)  # the mount has connected and knows the root

    def steps(self) -> dict[str, Callable[[], None]]:
        """What there is to do, in its order."""
        return {
            "create": self.create, "stat cold": self.stat, "read cold": self.read, "list cold": self.list,
            "unlink": self.unlink, "write 1 MiB": self.stream, "randwrite": self.random, "untar": self.untar,
            "heal": self.heal,
        }  # fmt: skip

    # ---- small files ----

    def create(self) -> None:
        for number in range(0, self.sizes.files, PER_FOLDER):
            (self.root / f"d{number // PER_FOLDER}").mkdir()
        with self._measured("create", self.sizes.files):
            for path in self.small_files():
                fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                os.write(fd, self._data)
                os.close(fd)

    def stat(self) -> None:
        self.make_cold()
        for name in ("stat cold", "stat warm"):
            with self._measured(name, self.sizes.files):
                for path in self.small_files():
                    if os.stat(path).st_size != SMALL:
                        raise BenchError(f"{path} has another size")

    def read(self) -> None:
        self.make_cold()
        with self._measured("read cold", self.sizes.files):
            for path in self.small_files():
                fd = os.open(path, os.O_RDONLY)
                if os.read(fd, 2 * SMALL) != self._data:
                    raise BenchError(f"{path} has other contents")
                os.close(fd)

    def list(self) -> None:
        """As ``ls -lR``."""
        self.make_cold()
        count = 0
        with self._measured("list cold", self.sizes.files):
            for folder in os.scandir(self.root):
                for entry in os.scandir(folder.path):
                    count += entry.stat(follow_symlinks=False).st_size == SMALL
        if count != self.sizes.files:
            raise BenchError(f"{count} files of {self.sizes.files} were listed")

    def unlink(self) -> None:
        with self._measured("unlink", self.sizes.files):
            for path in self.small_files():
                os.unlink(path)

    # ---- large files ----

    def stream(self) -> None:
        path, block, count = self.root / "stream", os.urandom(MIB), self.sizes.stream_mib
        with self._measured("write 1 MiB", count):
            fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
            for _ in range(count):
                os.write(fd, block)
            os.fsync(fd)
            os.close(fd)
        self.make_cold()
        with self._measured("read 1 MiB cold", count):
            fd = os.open(path, os.O_RDONLY)
            while os.read(fd, MIB):
                pass
            os.close(fd)
        path.unlink()

    def random(self) -> None:
        path = self.root / "random"
        with path.open("wb", buffering=0) as file:
            for _ in range(self.sizes.random_mib):
                file.write(os.urandom(MIB))
            os.fsync(file.fileno())
        for mode, depth in (("randwrite", 1), ("randwrite", 16), ("randread", 16)):
            self._fio(path, mode, depth)
        path.unlink()

    def _fio(self, path: Path, mode: str, depth: int) -> None:
        command = [
            "fio", "--name=x", f"--filename={path}", f"--rw={mode}", "--bs=4k", f"--iodepth={depth}", "--direct=1",
            "--ioengine=libaio", f"--size={self.sizes.random_mib}m", f"--runtime={self.sizes.random_s}",
            "--time_based", "--output-format=json", "--randseed=7",
        ]  # fmt: skip
        cpu_s = cpu_seconds(self.volume.pids())
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"fio: {done.stderr.strip()[-500:]}")
        used = cpu_seconds(self.volume.pids()) - cpu_s
        result = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["write" if "write" in mode else "read"]
        self.samples[f"{mode} QD{depth}"] = FileSample(result["iops"], used * 1e6 / max(1, result["total_ios"]))

    # ---- trees ----

    def untar(self) -> None:
        archive = make_archive(self.volume.folder)
        with tarfile.open(archive) as tar:
            count = len(tar.getmembers())
        target = self.root / "tree"
        target.mkdir()
        with self._measured("untar", count, is_time=True):
            subprocess.run(["tar", "-xf", archive, "-C", target], check=True)

    def heal(self) -> None:
        """One brick misses new small files and eight spots of a large one."""
        volume, folder = self.volume, self.root / "healed"
        if not isinstance(volume, Replicated):
            return
        folder.mkdir()
        big = folder / "big"
        big.write_bytes(os.urandom(MIB) * 256)
        volume.remount()  # nothing of it is under way any more
        volume.kill_brick()
        for number in range(self.sizes.heal_files):
            (folder / f"f{number}").write_bytes(self._data)
        with big.open("r+b") as file:
            for spot in range(8):
                file.seek(spot * 32 * MIB + 12345)
                file.write(self._data)
        wait(lambda: not volume.changing(), f"{volume.name}: the end of the changes")
        volume.return_brick()
        if not volume.pending():
            raise BenchError("nothing is pending")
        with self._measured("heal", self.sizes.heal_files, is_time=True):
            volume.wait_healed()


def make_archive(folder: Path) -> Path:
    """Sources: the same 373 entries every time."""
    path = folder / "tree.tar"
    if not path.exists():
        top = folder / "tree"
        for number in range(372 - 30):
            file = top / f"part{number % 30}" / f"source{number}.c"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(os.urandom(1500 + number * 37 % 12000))
        subprocess.run(["tar", "-cf", path, "-C", folder, "tree"], check=True)
    return path
