# SPDX-License-Identifier: Apache-2.0
"""Clients of a soak: tagged writes, zeroes, trims and reads through NBD, on whichever node is Primary.

A ``SoakClient`` owns a region of the device, has one request under way and checks what it reads against what it
knows: a request that was answered took effect, one whose answer never came may have.  ``vanish`` is a client that goes
in the middle of its requests.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time
from collections.abc import Callable

from nbd.client import NbdClient, NbdRequestError
from repl.errors import PeerLost, ReplError
from tests.lib.load import BLOCK_SECTORS, TaggedRegion
from tests.lib.tagged import SECTOR_BYTES
from tests.soak.worker import Worker

BLOCKS_PER_WRITE_MAX = 16
RETRY_S = 0.05
PAUSE_S = 0.002  # between two requests: the machine belongs to the servers
ANSWER_TIMEOUT_S = 120.0
_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC, _WRITE = 0x25609513, 1


class SoakClient(Worker):
    """``url``: of the Primary, None while there is none."""

    def __init__(self, region: TaggedRegion, url: Callable[[], str | None], *, seed: int) -> None:
        super().__init__(f"client {region.writer.writer}")
        self.region = region
        self.reads = 0
        self._url = url
        self._random = random.Random(seed)
        self._start()

    @property
    def acknowledged_count(self) -> int:
        return self.region.acknowledged_count

    def _work(self) -> None:
        url = self._url()
        if url is None:
            time.sleep(RETRY_S)
            return
        try:
            with NbdClient(url, timeout_s=ANSWER_TIMEOUT_S) as client:
                while self._goes_on():
                    self._since_s = time.monotonic()
                    self._request(client)
                    self._answered()
                    time.sleep(PAUSE_S)
        except NbdRequestError as error:
            self._fail(str(error))
        except (ReplError, OSError):  # the server went, is not there yet, or lets nobody open it
            if self.waiting_s >= ANSWER_TIMEOUT_S:
                self._fail(f"no answer in {self.waiting_s:.0f} s")
            self._since_s = None
            time.sleep(RETRY_S)

    def _fail(self, what: str) -> None:
        self.problems.append(f"{self.name}: {what}")
        self._is_over = True

    def _request(self, client: NbdClient) -> None:
        draw = self._random.random()
        if draw < 0.30:
            self._read(client)
            return
        count = 1 if draw < 0.75 else self._random.randrange(1, BLOCKS_PER_WRITE_MAX + 1)
        block = self._random.randrange(self.region.blocks - count + 1)
        if draw < 0.93:
            self.region.write(client, block, count, fua=draw < 0.34)
        elif draw < 0.96:
            self.region.zero(client, block, count)
        elif draw < 0.98:
            self.region.trim(client, block, count)
        else:
            client.flush()
            self.region.writer.flushed()

    def _read(self, client: NbdClient) -> None:
        count = self._random.randrange(1, BLOCKS_PER_WRITE_MAX + 1)
        block = self._random.randrange(self.region.blocks - count + 1)
        found = self.region.problems(client.read, block, count)
        self.reads += 1
        self.problems += [f"{self.name} read {one}" for one in found]


def vanish(url: str, region: TaggedRegion, chance: random.Random, seconds: float) -> int:
    """Clients that send some writes and go without waiting, the last one in the middle of its data: that one must
    never take effect.  How many there were."""
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        with contextlib.suppress(ReplError, OSError):
            _vanish_once(url, region, chance)
        count += 1
    return count


def _vanish_once(url: str, region: TaggedRegion, chance: random.Random) -> None:
    with NbdClient(url) as client, socket.socket(fileno=os.dup(client.fileno())) as sock:
        for cookie in range(chance.randrange(4)):
            block = chance.randrange(region.blocks)
            packet = _packet(region, block, cookie)
            region.unanswered.setdefault(block, []).append(region.writer.request)
            sock.sendall(packet)
        half = _packet(region, chance.randrange(region.blocks), 99)
        sock.sendall(half[: chance.randrange(1, len(half))])
        sock.shutdown(socket.SHUT_RDWR)


def _packet(region: TaggedRegion, block: int, cookie: int) -> bytes:
    """A whole write request."""
    at = region.offset_sectors + block * BLOCK_SECTORS
    data = region.writer.payload(offset_sectors=at, sectors=BLOCK_SECTORS)
    return _REQUEST.pack(_REQUEST_MAGIC, 0, _WRITE, cookie, at * SECTOR_BYTES, len(data)) + data


def flush_storm(url: str, seconds: float) -> int:
    """Flushes, one behind the other.  How many."""
    until, count = time.monotonic() + seconds, 0
    with contextlib.suppress(PeerLost), NbdClient(url) as client:
        while time.monotonic() < until:
            client.flush()
            count += 1
    return count
