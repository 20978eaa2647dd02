# SPDX-License-Identifier: Apache-2.0
"""A soak: two real nodes under load, one fault after the other, and every few minutes everything is compared.

The clients stop, then both nodes have to be in sync and idle, their disks the same byte for byte (P5), every
acknowledged write on them (P1), an online verify has to find nothing, no request or buffer may be missing from the
pools, and memory, descriptors and journals must not grow.  At the end both nodes are killed, return, and are audited
once more.  Errors: ``AssertionError`` with what was found.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.lib.cluster import ALICE, MIB, NODES, Cluster
from tests.lib.load import TaggedRegion
from tests.soak.clients import SoakClient
from tests.soak.faults import WHOLE_S, Faults
from tests.soak.plan import FAMILIES, Step, steps
from tests.soak.watch import Watch

CLIENTS = 3
SIZE_MIB = 300  # a little more than 67 hot extents
HOT_EXTENTS = 67
RESYNC_RATE_MIN = "20M"  # beside the load; DRBD's 250 KiB/s would make of most of the time one resync
VANISHING_MIB = 4
BLOCKS_PER_MIB = 256
ANSWER_S = 60.0  # with nothing wrong any more


@dataclass(frozen=True)
class Settings:
    """``pause_s``: shortest and longest time between two faults; ``audit_s``: seconds between two audits."""

    seed: int
    seconds: float
    families: Sequence[str] = FAMILIES
    pause_s: tuple[float, float] = (1.0, 20.0)
    audit_s: float = 600.0
    protocol: str = "C"
    size_mib: int = SIZE_MIB


@dataclass
class Result:
    """What a soak has come to so far."""

    faults: Counter[str] = field(default_factory=Counter)
    audits: int = 0
    writes: int = 0
    reads: int = 0
    slowest_s: float = 0.0
    rss_max_bytes: int = 0


class Soak:
    """``say`` gets a line for everything that happens."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.result = Result()
        self.history: list[str] = []
        self._say = say
        self._began_s = time.monotonic()
        self.cluster = Cluster(
            size_mib=settings.size_mib,
            net={"protocol": settings.protocol, "verify-alg": "crc32c", "data-integrity-alg": "crc32c"},
            disk={"al-extents": str(HOT_EXTENTS), "c-min-rate": RESYNC_RATE_MIN},
            has_proxy=True,
            seed=settings.seed,
        )
        self._clients: list[SoakClient] = []
        self.watch = Watch(self.cluster)

    def run(self) -> Result:
        """Until the time is over; raises at the first thing that is wrong."""
        self.cluster.start_pair()
        self.cluster.call(ALICE, "primary")
        self._began_s = time.monotonic()  # however long a busy machine took until here
        usable_mib = self.cluster.size_bytes() // MIB
        each_mib = (usable_mib - VANISHING_MIB) // CLIENTS
        vanishing = self._region(CLIENTS, CLIENTS * each_mib, VANISHING_MIB)
        self._faults = Faults(self.cluster, vanishing, self._clients, self.settings.seed)
        for number in range(CLIENTS):
            region = self._region(number, number * each_mib, each_mib)
            self._clients.append(SoakClient(region, self._faults.url, seed=self.settings.seed * CLIENTS + number))
        self._regions = [client.region for client in self._clients] + [vanishing]
        try:
            self._resume()
            self._until_over()
            self._audit()
            self._after_a_crash()
        finally:
            for client in self._clients:
                client.close()
        self._check(self.watch.problems(self._elapsed_s / 60, sum(self.result.faults.values())))
        self._check(self.cluster.bad_log_lines())
        return self.result

    def _region(self, number: int, offset_mib: int, size_mib: int) -> TaggedRegion:
        return TaggedRegion(
            run=self.settings.seed, writer=number + 1, offset_sectors=offset_mib * MIB // 512,
            blocks=size_mib * BLOCKS_PER_MIB,
        )  # fmt: skip

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began_s

    # ---- the row of faults ----

    def _until_over(self) -> None:
        audit_at_s = self._elapsed_s + self.settings.audit_s
        for step in steps(self.settings.seed, self.settings.families, self.settings.pause_s):
            if self._elapsed_s + step.pause_s >= self.settings.seconds:
                return
            self._pause(step.pause_s)
            self._provoke(step)
            if self._elapsed_s >= audit_at_s:
                self._audit()
                self._resume()
                audit_at_s = self._elapsed_s + self.settings.audit_s

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))
            self._check_clients()

    def _provoke(self, step: Step) -> None:
        begin = time.monotonic()
        found = self._faults.provoke(step)
        self.result.faults[step.fault.name] += 1
        self._tell(f"{step.number} {step.fault.name} ({time.monotonic() - begin:.1f} s): {found}")
        self._check_clients()

    def _tell(self, text: str) -> None:
        minutes, seconds = divmod(int(self._elapsed_s), 60)
        line = f"[{minutes:3d}:{seconds:02d}] {text}"
        self.history.append(line)
        self._say(line)

    def _check_clients(self) -> None:
        self._check([problem for client in self._clients for problem in client.problems])

    def _check(self, problems: Sequence[str]) -> None:
        assert not problems, "\n".join(problems)

    # ---- audits ----

    def _resume(self) -> None:
        for client in self._clients:
            client.resume()

    def _audit(self) -> None:
        begin = time.monotonic()
        for client in self._clients:
            client.wait_progress(ANSWER_S)
        for client in self._clients:
            client.pause(ANSWER_S)
        self._check_clients()
        self.cluster.wait_synced(WHOLE_S)
        for name in NODES:
            self.cluster.wait(f"{name} idle", lambda name=name: not self._busy(name), ANSWER_S)
        self.cluster.compare_disks()
        self._check_regions()
        self._faults.verify()
        self.watch.sample(self._elapsed_s)
        result = self.result
        result.audits += 1
        result.writes = sum(client.region.acknowledged_count for client in self._clients)
        result.reads = sum(client.reads for client in self._clients)
        result.slowest_s = max(client.slowest_s for client in self._clients)
        result.rss_max_bytes = self.watch.rss_max_bytes()
        self._tell(f"audit {result.audits} ({time.monotonic() - begin:.1f} s): both disks equal, {result.writes} "
                   f"writes where they belong, slowest answer {result.slowest_s:.1f} s")  # fmt: skip

    def _busy(self, name: str) -> list[str]:
        """What is not where it belongs while nothing is going on."""
        status = self.cluster.status(name)
        engine, counters = status["engine"], status["volumes"][0]["counters"]
        left = {key: counters[key] for key in ("upper_pending", "lower_pending", "peer_pending", "unacked")}
        left |= {key: engine[key] for key in ("app_buffers_used_bytes", "peer_buffers_used_bytes", "nbd_clients")}
        left["requests"] = engine["requests_total"] - engine["requests_free"]
        return [f"{key} {value}" for key, value in left.items() if value]

    def _check_regions(self) -> None:
        with self.cluster.client(self._faults.primary) as client:
            for region in self._regions:
                self._check([f"writer {region.writer.writer}: {one}" for one in region.problems(client.read)])

    def _after_a_crash(self) -> None:
        for name in NODES:
            self.cluster.kill(name)
        self.cluster.start()
        self.cluster.wait_synced(WHOLE_S)
        self.cluster.compare_disks()
        self.cluster.call(self._faults.primary, "primary")
        self._check_regions()
        self._tell("both nodes were killed and returned: both disks equal, all writes where they belong")
