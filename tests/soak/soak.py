# SPDX-License-Identifier: Apache-2.0
"""A soak: two real nodes under load, one fault after the other, and every few minutes everything is compared.

The clients stop, then both nodes have to be in sync and idle, their disks the same byte for byte (P5), every
acknowledged write on them (P1), an online verify has to find nothing, no request or buffer may be missing from the
pools, and memory, descriptors and journals must not grow.  At the end both nodes are killed, return, and are audited
once more.  Errors: ``AssertionError`` with what was found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.lib.cluster import ALICE, MIB, NODES, Cluster
from tests.lib.load import TaggedRegion
from tests.soak.clients import SoakClient
from tests.soak.faults import WHOLE_S, Faults
from tests.soak.plan import FAMILIES, Step, of_families, steps
from tests.soak.row import ANSWER_S, Result, Row, Timing
from tests.soak.watch import Watch

CLIENTS = 3
SIZE_MIB = 300  # a little more than 67 hot extents
HOT_EXTENTS = 67
RESYNC_RATE_MIN = "20M"  # beside the load; DRBD's 250 KiB/s would make of most of the time one resync
VANISHING_MIB = 4
BLOCKS_PER_MIB = 256


@dataclass(frozen=True)
class Settings(Timing):
    families: Sequence[str] = FAMILIES
    protocol: str = "C"
    size_mib: int = SIZE_MIB


class Soak(Row):
    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        super().__init__(settings, say)
        self.settings = settings
        self.cluster = Cluster(
            size_mib=settings.size_mib,
            net={"protocol": settings.protocol, "verify-alg": "crc32c", "data-integrity-alg": "crc32c"},
            disk={"al-extents": str(HOT_EXTENTS), "c-min-rate": RESYNC_RATE_MIN},
            has_proxy=True,
            seed=settings.seed,
        )
        self.folder = self.cluster.folder
        self._clients: list[SoakClient] = []
        self.watch = Watch(self._pids, lambda: sum(len(self.cluster.log(name)) for name in NODES))

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
        self.workers = [*self._clients]
        self._regions = [client.region for client in self._clients] + [vanishing]
        try:
            self._resume()
            self._until_over()
            self._audit()
            self._after_a_crash()
        finally:
            self._close_workers()
        self._check(self.watch.problems(self._elapsed_s / 60, sum(self.result.faults.values())))
        self._check(self.cluster.bad_log_lines())
        return self.result

    def _region(self, number: int, offset_mib: int, size_mib: int) -> TaggedRegion:
        return TaggedRegion(
            run=self.settings.seed, writer=number + 1, offset_sectors=offset_mib * MIB // 512,
            blocks=size_mib * BLOCKS_PER_MIB,
        )  # fmt: skip

    def close(self) -> None:
        self.cluster.close()

    def kill(self) -> None:
        for node in self.cluster.nodes.values():
            if node.process is not None:
                node.process.kill()

    def _pids(self) -> dict[str, int]:
        return {name: node.process.pid for name, node in self.cluster.nodes.items() if node.process is not None}

    def _schedule(self) -> Iterator[Step]:
        return steps(self.settings.seed, of_families(self.settings.families), self.settings.pause_s)

    def _do(self, step: Step) -> str:
        return self._faults.provoke(step)

    # ---- audits ----

    def _audit(self) -> None:
        begin = self._elapsed_s
        self._stand_still()
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
        self._tell(f"audit {result.audits} ({self._elapsed_s - begin:.1f} s): both disks equal, {result.writes} "
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
