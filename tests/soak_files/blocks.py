# SPDX-License-Identifier: Apache-2.0
"""A client that keeps a file open, writes tagged blocks into it and syncs now and then.

Acknowledged is what an fsync came back for: until then writes may wait in the mount, and go with it.  After a failed
write, fsync or close the blocks since the last fsync may be old or new, until they are written again.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.lib.load import BLOCK_SECTORS, TaggedRegion
from tests.lib.tagged import SECTOR_BYTES
from tests.soak_files.worker import Failed, FileWorker, World

BLOCKS = 48
BLOCK_BYTES = BLOCK_SECTORS * SECTOR_BYTES
BLOCKS_AT_ONCE_MAX = 8


class SyncedRegion(TaggedRegion):
    """``unanswered`` has the requests since the last fsync, and failed ones that nothing has overwritten."""

    def __init__(self, run: int, writer: int) -> None:
        super().__init__(run=run, writer=writer, offset_sectors=0, blocks=BLOCKS)
        self._written: set[int] = set()  # requests that were answered, and not yet synced
        self.is_reading_own = False

    def begin(self, block: int, count: int) -> tuple[int, bytes]:
        data = self.writer.payload(offset_sectors=block * BLOCK_SECTORS, sectors=count * BLOCK_SECTORS)
        self._sent(block, count, self.writer.request)
        return self.writer.request, data

    def written(self, request: int) -> None:
        self._written.add(request)

    def synced(self) -> None:
        for block, requests in self.unanswered.items():
            done = [at for at, request in enumerate(requests) if request in self._written]
            if done:
                self.acknowledged[block] = requests[done[-1]]
                self.unanswered[block] = requests[done[-1] + 1 :]
        self._written.clear()

    def failed(self) -> None:
        """Nobody knows of anything since the last fsync."""
        self._written.clear()

    def _allowed(self, block: int) -> set[int]:
        requests = self.unanswered.get(block, [])
        if self.is_reading_own:  # who has written it reads it, or what failed after it
            done = [at for at, request in enumerate(requests) if request in self._written]
            if done:
                return set(requests[done[-1] :])
        return super()._allowed(block)


class Blocks(FileWorker):
    def __init__(self, world: World, name: str, seed: int, number: int) -> None:
        super().__init__(world, name, seed)
        self.region = SyncedRegion(seed, number)
        self._fd = -1
        self._is_new = False
        self._start()

    def prepare(self, mount: Path) -> None:
        with open(mount / self.name, "xb") as file:
            file.truncate(BLOCKS * BLOCK_BYTES)

    # ---- turns ----

    def _arrive(self) -> None:
        path = self.root / self.name
        self._fd = self._attempt("open", lambda: os.open(path, os.O_RDWR))

    def _leave(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                self._attempt("fsync", lambda: os.fsync(fd))
            except Failed:
                self.region.failed()
            else:
                self.region.synced()
            finally:
                self._attempt_close(fd)

    def _attempt_close(self, fd: int) -> None:
        try:
            os.close(fd)
        except OSError:
            self.region.failed()  # nothing was under way any more, or it has been told already

    def _turn(self) -> None:
        if self._fd < 0:  # it could not be opened after a failure
            self._arrive()
        draw = self.chance.random()
        if draw < 0.55:
            self._write()
        elif draw < 0.75:
            self._read()
        elif draw < 0.95:
            self._sync()
        else:
            self._elsewhere()

    def _write(self) -> None:
        count = self.chance.randrange(1, BLOCKS_AT_ONCE_MAX + 1)
        block = self.chance.randrange(BLOCKS - count + 1)
        request, data = self.region.begin(block, count)
        try:
            self._attempt(f"pwrite of block {block}", lambda: _pwrite(self._fd, data, block * BLOCK_BYTES))
        except Failed:
            self._again()
            raise
        self.region.written(request)

    def _sync(self) -> None:
        try:
            self._attempt("fsync", lambda: os.fsync(self._fd))
        except Failed:
            self._again()
            raise
        self.region.synced()

    def _again(self) -> None:
        """After a failure the file is opened anew: what was known of it is not any more."""
        self.region.failed()
        fd, self._fd = self._fd, -1
        self._attempt_close(fd)
        assert self.view is not None
        if self.view.is_alive:
            self._arrive()

    def _read(self) -> None:
        assert self.view is not None
        count = self.chance.randrange(1, BLOCKS_AT_ONCE_MAX + 1)
        block = self.chance.randrange(BLOCKS - count + 1)
        self.reads += 1
        self.region.is_reading_own = True
        try:
            found = self._attempt("read", lambda: self.region.problems(self._pread, block, count))
        finally:
            self.region.is_reading_own = False
        for one in found:
            self.problem(f"{self.name} read on {self.view.name}: {one}")

    def _pread(self, offset: int, size: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        return data + b"?" * (size - len(data))

    def _elsewhere(self) -> None:
        """What is synced is seen on the other mounts."""
        self._sync()
        if views := self.others():
            self._look(self.chance.choice(views), self.final_problems)

    def final_problems(self, root: Path) -> list[str]:
        path = root / self.name
        fd = os.open(path, os.O_RDONLY)
        try:
            def read(offset: int, size: int) -> bytes:
                data = os.pread(fd, size, offset)
                return data + b"?" * (size - len(data))

            size = os.fstat(fd).st_size
            found = [f"{self.name} has {size} bytes"] if size != BLOCKS * BLOCK_BYTES else []
            return found + [f"{self.name}: {one}" for one in self.region.problems(read)]
        finally:
            os.close(fd)


def _pwrite(fd: int, data: bytes, offset: int) -> None:
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
