# SPDX-License-Identifier: Apache-2.0
"""For pairs with the kernel's DRBD where both are Primary: writers on both nodes to the same area, and who holds the
resolve-conflicts flag.
"""

from __future__ import annotations

import random
import re
import threading
from dataclasses import dataclass

from tests.lib.interop import KernelPair
from tests.lib.tools import SYSTEM_PYTHON

CONFLICTS = r"Concurrent writes detected"  # what the module says about writes that cross
LOST = re.compile(r"-> (NetworkFailure|Timeout|BrokenPipe|ProtocolError|Unconnected|Disconnecting)|finish a request")

GUEST_WRITERS = """
import mmap, os, random, sys, threading
device, stop, count = sys.argv[1:4]
threads, offset, length, align, most = map(int, sys.argv[4:])
written = [0] * threads
def run(n):
    rnd, fd, buf = random.Random(n), os.open(device, os.O_WRONLY | os.O_DIRECT), mmap.mmap(-1, most)
    while not os.path.exists(stop):
        size = rnd.randrange(align, most + 1, align)
        buf[:size] = bytes([rnd.randrange(1, 127)]) * size
        os.pwritev(fd, [memoryview(buf)[:size]], offset + rnd.randrange(0, length - size + 1, align))
        written[n] += 1
        if n == 0:
            with open(count, "w") as file: file.write(str(sum(written)))
running = [threading.Thread(target=run, args=(n,)) for n in range(threads)]
[t.start() for t in running]
[t.join() for t in running]
with open(count, "w") as file: file.write("done")
"""


@dataclass(frozen=True)
class Area:
    """Where the writers write, what they align to, and the longest write; bytes."""

    offset: int
    length: int
    align: int = 4096
    most: int = 8192


class CrossingWrites:
    """Both nodes write until the block is left; nobody loses the link, and every write is answered."""

    def __init__(self, pair: KernelPair, area: Area, *, threads: int = 3) -> None:
        self._pair = pair
        self._area = area
        self._errors: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), name="writer") for n in range(threads)]
        self.ours = 0
        self._guest_stop, self._guest_count = (
            f"/run/interop/crossing-{word}{pair.kernel.minor}" for word in ("stop", "n")
        )

    def _run(self, seed: int) -> None:
        area, rnd = self._area, random.Random(seed)
        try:
            with self._pair.ours.client() as client:
                while not self._stop.is_set():
                    size = rnd.randrange(area.align, area.most + 1, area.align)
                    at = area.offset + rnd.randrange(0, area.length - size + 1, area.align)
                    client.write(at, bytes([rnd.randrange(128, 256)]) * size)
                    self.ours += 1
        except BaseException as error:
            self._errors.append(error)

    def kernels(self) -> str:
        """How many writes the kernel's writers have done, or "done"."""
        return self._pair.kernel.guest.read_file(self._guest_count, check=False)

    def wait_more(self, count: int) -> None:
        """Until both have written so often again."""
        mine, theirs = self.ours + count, int(self.kernels() or 0) + count
        self._pair.wait(
            lambda: self._errors or (self.ours >= mine and int(self.kernels() or 0) >= theirs),
            f"{count} writes of both",
        )
        self._raise()

    def _raise(self) -> None:
        if self._errors:
            raise self._errors[0]

    def __enter__(self) -> CrossingWrites:
        kernel, area = self._pair.kernel, self._area
        self._log_begin = len(kernel.log())
        script = f"{self._guest_count}.py"
        kernel.guest.write_file(script, GUEST_WRITERS)
        numbers = len(self._threads), area.offset, area.length, area.align, area.most
        words = " ".join(map(str, (script, kernel.device, self._guest_stop, self._guest_count, *numbers)))
        kernel.guest.run(
            f"rm -f {self._guest_stop} {self._guest_count}; "
            f"(setsid {SYSTEM_PYTHON} {words} </dev/null >/run/interop/crossing.log 2>&1 &)"
        )
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        kernel = self._pair.kernel
        self._stop.set()
        kernel.guest.run(f"touch {self._guest_stop}")
        for thread in self._threads:
            thread.join()
        if kind is not None:
            return
        self._raise()
        self._pair.wait(lambda: self.kernels() == "done", "the last writes of the kernel")
        lost = LOST.search(kernel.log()[self._log_begin :])
        assert lost is None, lost


def promote_both(pair: KernelPair) -> None:
    pair.ours.call("primary")
    pair.kernel.adm("primary")
    pair.wait_ours(role="Primary", peer_role="Primary")
    pair.wait_kernel(role="Primary", peer_role="Primary")


def flag_is_ours(pair: KernelPair) -> bool:
    return bool(pair.ours.status()["peer"]["resolve_conflicts"])


def reconnect_until_flag(pair: KernelPair, *, ours: bool) -> None:
    """Who dials which socket first is chance; who joins last is the likelier one."""

    def holds() -> bool:
        if flag_is_ours(pair) is ours:
            return True
        if ours:
            pair.reconnect_quietly()
        else:
            pair.interrupt_kernel()
            pair.wait_in_sync()
        return flag_is_ours(pair) is ours

    pair.wait(holds, "the resolve-conflicts flag", 120)


def check_end(pair: KernelPair) -> None:
    """Nothing is left open, and both disks are the same."""
    pair.wait_in_sync()
    pair.wait_equal()
    with pair.ours.client() as client:
        client.flush()
    pair.our_secondary()
    status = pair.ours.status()
    assert status["engine"]["transfer_log"] == status["engine"]["epochs_open"] == 0
    pair.kernel.adm("secondary")
    assert status["volumes"][0]["out_of_sync_bytes"] == pair.kernel.state().out_of_sync_kib == 0
    pair.compare()
