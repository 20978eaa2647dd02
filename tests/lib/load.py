# SPDX-License-Identifier: Apache-2.0
"""Tagged writes through NBD, and what of them has to be found afterwards.

``TaggedRegion`` remembers for every block of a part of the device which write was acknowledged last and which were
only sent; ``problems`` reads it back.  ``Load`` keeps writing to a region in a thread until it is stopped or the
server goes away.  Offsets and sizes in sectors of 512 bytes.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator

from nbd.client import NbdClient
from repl.errors import PeerLost
from tests.lib.tagged import SECTOR_BYTES, Kind, Sector, TaggedWriter, decode
from tests.lib.wait import wait_for

BLOCK_SECTORS = 8
READ_SECTORS = 256
PROBLEMS_MAX = 20

Read = Callable[[int, int], bytes]  # offset and length in bytes


class TaggedRegion:
    """One writer's part of the device; one request at a time."""

    def __init__(self, *, run: int, writer: int, offset_sectors: int, blocks: int, in_order: bool = False) -> None:
        """``in_order``: blocks are written one after the other, each once (else at random)."""
        self.writer = TaggedWriter(run=run, writer=writer)
        self.offset_sectors = offset_sectors
        self.blocks = blocks
        self.in_order = in_order
        self.acknowledged: dict[int, int] = {}  # block -> request
        self.unanswered: dict[int, list[int]] = {}  # block -> requests that may have taken effect
        self.acknowledged_count = 0
        self._random = random.Random(run * 1000 + writer)

    @property
    def is_full(self) -> bool:
        return self.in_order and self.writer.request >= self.blocks

    def write_next(self, client: NbdClient, *, fua: bool = False) -> None:
        self.write(client, self.writer.request if self.in_order else self._random.randrange(self.blocks), fua=fua)

    def write(self, client: NbdClient, block: int, count: int = 1, *, fua: bool = False) -> None:
        at = self.offset_sectors + block * BLOCK_SECTORS
        data = self.writer.payload(offset_sectors=at, sectors=count * BLOCK_SECTORS)
        request = self.writer.request
        self._sent(block, count, request)
        client.write(at * SECTOR_BYTES, data, fua=fua)
        self._answered(block, count, request)

    def zero(self, client: NbdClient, block: int, count: int = 1) -> None:
        at = self.offset_sectors + block * BLOCK_SECTORS
        self._sent(block, count, 0)
        client.zero(at * SECTOR_BYTES, count * BLOCK_SECTORS * SECTOR_BYTES)
        self._answered(block, count, 0)

    def trim(self, client: NbdClient, block: int, count: int = 1) -> None:
        """What was there before may still be read afterwards, or zeroes."""
        at = self.offset_sectors + block * BLOCK_SECTORS
        self._sent(block, count, 0)
        client.trim(at * SECTOR_BYTES, count * BLOCK_SECTORS * SECTOR_BYTES)
        self.acknowledged_count += 1

    def _sent(self, block: int, count: int, request: int) -> None:
        for one in range(block, block + count):
            self.unanswered.setdefault(one, []).append(request)

    def _answered(self, block: int, count: int, request: int) -> None:
        for one in range(block, block + count):
            self.acknowledged[one] = request
            self.unanswered[one] = []
        self.acknowledged_count += 1

    def problems(self, read: Read, block: int = 0, count: int | None = None) -> list[str]:
        """What an exact copy may not have: lost, torn, misdirected or foreign sectors (the first few)."""
        found: list[str] = []
        for sector in self._sectors(read, block, self.blocks - block if count is None else count):
            here = (sector.position - self.offset_sectors) // BLOCK_SECTORS
            allowed = self._allowed(here)
            request = sector.tag.request if sector.tag is not None else 0
            is_good = sector.kind is Kind.TAGGED and sector.tag is not None and sector.tag.writer == self.writer.writer
            if (is_good and request in allowed) or (sector.kind is Kind.ZERO and 0 in allowed):
                continue
            found.append(f"sector {sector.position}: {sector.kind.value} {request}, not one of {sorted(allowed)}")
            if len(found) >= PROBLEMS_MAX:
                break
        return found

    def _allowed(self, block: int) -> set[int]:
        return {self.acknowledged.get(block, 0), *self.unanswered.get(block, ())}

    def found_blocks(self, read: Read) -> int:
        """``in_order`` only: how many blocks are there; asserts that they are the first ones, whole."""
        blocks = 0
        is_over = False
        for sector in self._sectors(read, 0, self.blocks):
            if sector.kind is Kind.ZERO:
                is_over = True
                continue
            assert sector.kind is Kind.TAGGED, sector
            assert not is_over, f"{sector} is there, something before it is not"
            blocks = max(blocks, (sector.position - self.offset_sectors) // BLOCK_SECTORS + 1)
        return blocks

    def _sectors(self, read: Read, block: int, count: int) -> Iterator[Sector]:
        first = self.offset_sectors + block * BLOCK_SECTORS
        end = first + count * BLOCK_SECTORS
        for at in range(first, end, READ_SECTORS):
            count = min(READ_SECTORS, end - at)
            data = read(at * SECTOR_BYTES, count * SECTOR_BYTES)
            yield from decode(data, offset_sectors=at, run=self.writer.run)


class Load:
    """Writes from ``start`` on; ``is_lost`` when the server went away."""

    def __init__(
        self, region: TaggedRegion, url: str, *, flush_every: int = 0, fua_every: int = 0, pause_s: float = 0
    ) -> None:
        self.region = region
        self.is_lost = False
        self.slowest_s = 0.0
        self._since_s = time.monotonic()
        self._url = url
        self._flush_every = flush_every
        self._fua_every = fua_every
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> Load:
        self._thread.start()
        return self

    @property
    def waiting_s(self) -> float:
        """How long the request in hand has been waiting."""
        return time.monotonic() - self._since_s

    def wait_writes(self, count: int, timeout: float = 20) -> None:
        """Until ``count`` more writes are acknowledged."""
        goal = self.region.acknowledged_count + count
        wait_for(
            lambda: self.region.acknowledged_count >= goal or not self._thread.is_alive(),
            timeout,
            f"{count} more writes",
            describe=lambda: self.region.acknowledged_count,
        )
        self._raise()

    def stop(self, timeout: float = 30) -> None:
        """No more writes; raises what went wrong, except that the server went away."""
        self._stop.set()
        self.join(timeout)

    def join(self, timeout: float = 30) -> None:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "a write is not answered"
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with NbdClient(self._url) as client:
                self._write(client)
        except PeerLost:
            self.is_lost = True
        except BaseException as error:
            self._error = error

    def _write(self, client: NbdClient) -> None:
        count = 0
        while not self._stop.is_set() and not self.region.is_full:
            count += 1
            self._since_s = begin = time.monotonic()
            self.region.write_next(client, fua=bool(self._fua_every) and count % self._fua_every == 0)
            if self._flush_every and count % self._flush_every == 0:
                client.flush()
                self.region.writer.flushed()
            self.slowest_s = max(self.slowest_s, time.monotonic() - begin)
            if self._pause_s:
                self._stop.wait(self._pause_s)


@contextlib.contextmanager
def writing(region: TaggedRegion, url: str, *, flush_every: int = 0, fua_every: int = 0, pause_s: float = 0):
    """A ``Load`` that is stopped at the end of the block."""
    load = Load(region, url, flush_every=flush_every, fua_every=fua_every, pause_s=pause_s).start()
    try:
        yield load
    finally:
        load.stop()
