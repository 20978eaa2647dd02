# SPDX-License-Identifier: Apache-2.0
"""Random operations on one file against a model of its contents, in the manner of fsx.

usage: python -m tests.lib.fsx FILE SEED STEPS [--mmap]

Reads, writes, appends, truncates, punches holes, copies ranges, maps, closes and opens again; every answer is compared
with the model at once.  Runs as a process of its own, because a page fault on a mapped file must not wait for itself.
Exit status 1 and the last steps on a difference.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import sys
from collections import deque
from collections.abc import Callable

SIZE_MAX = 256 * 1024
PUNCH = 1 | 2


class Wrong(Exception):
    pass


class Exerciser:
    def __init__(self, path: str, seed: int, *, has_mmap: bool) -> None:
        self.path = path
        self.random = random.Random(seed)
        self.model = bytearray()
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self.second = os.open(path, os.O_RDWR)  # another description of the same file
        self.history: deque[str] = deque(maxlen=25)
        self._fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        self._fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        self.steps: list[Callable[[], str]] = [
            self.write, self.write, self.read, self.read, self.append, self.truncate, self.punch, self.copy,
            self.reopen, self.sync, self.check_size, self.small_writes,
        ]  # fmt: skip
        if has_mmap:
            self.steps += [self.map_read, self.map_write]

    def run(self, count: int) -> None:
        for number in range(count):
            step = self.random.choice(self.steps)
            self.history.append(f"{number} {step.__name__}")
            self.history[-1] += " " + step()
        self.check_all()

    # ---- what is done ----

    def any_fd(self) -> int:
        return self.random.choice([self.fd, self.second])

    def range(self) -> tuple[int, int]:
        offset = self.random.randrange(SIZE_MAX)
        return offset, min(self.random.choice([1, 100, 4096, 5000, 65536, 140000]), SIZE_MAX - offset)

    def put(self, offset: int, data: bytes) -> None:
        if offset > len(self.model):
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + len(data)] = data

    def compare(self, offset: int, got: bytes, wanted: bytes) -> None:
        if got != wanted:
            at = next(
                (i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted))
            )
            raise Wrong(f"at {offset + at}: {len(got)} bytes {got[at : at + 8].hex()} for {len(wanted)} bytes "
                        f"{wanted[at : at + 8].hex()}")  # fmt: skip

    def write(self) -> str:
        offset, size = self.range()
        data = self.random.randbytes(size)
        if os.pwrite(self.any_fd(), data, offset) != size:
            raise Wrong("short write")
        self.put(offset, data)
        return f"{offset}+{size}"

    def small_writes(self) -> str:
        """A row of them, as a program with a small buffer does."""
        offset, fd = self.random.randrange(SIZE_MAX // 2), self.any_fd()
        for _ in range(self.random.randrange(1, 12)):
            data = self.random.randbytes(self.random.randrange(1, 600))
            os.pwrite(fd, data, offset)
            self.put(offset, data)
            offset += len(data)
        return f"..{offset}"

    def append(self) -> str:
        data = self.random.randbytes(self.random.randrange(1, 3000))
        if len(self.model) + len(data) > SIZE_MAX:
            return "no"
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)
        self.put(len(self.model), data)
        return f"+{len(data)}"

    def read(self) -> str:
        offset, size = self.range()
        self.compare(offset, os.pread(self.any_fd(), size, offset), bytes(self.model[offset : offset + size]))
        return f"{offset}+{size}"

    def truncate(self) -> str:
        size = self.random.randrange(SIZE_MAX)
        if self.random.random() < 0.5:
            os.truncate(self.path, size)
        else:
            os.ftruncate(self.any_fd(), size)
        del self.model[size:]
        self.put(size, b"")
        return str(size)

    def punch(self) -> str:
        offset, size = self.range()
        if self._fallocate(self.any_fd(), PUNCH, offset, size) != 0:
            raise OSError(ctypes.get_errno(), "fallocate")
        end = min(offset + size, len(self.model))
        if end > offset:
            self.model[offset:end] = bytes(end - offset)
        return f"{offset}+{size}"

    def copy(self) -> str:
        offset, size = self.range()
        target = self.random.randrange(SIZE_MAX)
        size = min(size, abs(target - offset), SIZE_MAX - target)
        if size:
            done = os.copy_file_range(self.fd, self.second, size, offset, target)
            self.put(target, bytes(self.model[offset : offset + done])) if done else None
        return f"{offset}+{size} to {target}"

    def reopen(self) -> str:
        os.close(self.fd)
        self.fd, self.second = self.second, os.open(self.path, os.O_RDWR)
        return ""

    def sync(self) -> str:
        os.fsync(self.any_fd())
        return ""

    def check_size(self) -> str:
        found = os.stat(self.path).st_size if self.random.random() < 0.5 else os.fstat(self.any_fd()).st_size
        if found != len(self.model):
            raise Wrong(f"size {found} for {len(self.model)}")
        return str(found)

    def map_read(self) -> str:
        if not self.model:
            return "no"
        with mmap.mmap(self.any_fd(), len(self.model), mmap.MAP_SHARED, mmap.PROT_READ) as found:
            offset, size = self.range()
            self.compare(offset, found[offset : offset + size], bytes(self.model[offset : offset + size]))
        return f"{offset}+{size}"

    def map_write(self) -> str:
        if not self.model:
            return "no"
        with mmap.mmap(self.any_fd(), len(self.model), mmap.MAP_SHARED) as found:
            offset = self.random.randrange(len(self.model))
            data = self.random.randbytes(min(self.random.choice([1, 700, 9000]), len(self.model) - offset))
            found[offset : offset + len(data)] = data
            self.put(offset, data)
            if self.random.random() < 0.5:
                found.flush()
        return f"{offset}+{len(data)}"

    def check_all(self) -> None:
        self.check_size()
        self.compare(0, os.pread(self.fd, SIZE_MAX, 0), bytes(self.model))
        os.close(self.fd)
        os.close(self.second)
        with open(self.path, "rb") as file:
            self.compare(0, file.read(), bytes(self.model))


def main(arguments: list[str]) -> int:
    path, seed, steps = arguments[0], int(arguments[1]), int(arguments[2])
    exerciser = Exerciser(path, seed, has_mmap="--mmap" in arguments)
    try:
        exerciser.run(steps)
    except (Wrong, OSError) as error:
        print("\n".join(exerciser.history))
        print(f"seed {seed}: {error!r}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
