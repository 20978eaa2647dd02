# SPDX-License-Identifier: Apache-2.0
"""An application of the simulated cluster: one NBD client with a workload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.sim.node_shell import Answer
from tests.sim.world import BLOCK, MS, SimFailure

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster


@dataclass(frozen=True)
class Load:
    """What an application does."""

    ops: int = 0  # 0: until stopped
    queue_depth: int = 4
    read_percent: int = 20
    flush_percent: int = 5
    zero_percent: int = 2
    trim_percent: int = 2
    fua_percent: int = 5
    hot_percent: int = 40
    align_bytes: int = 4096
    min_bytes: int = 512
    max_bytes: int = 65536
    think_max_ms: int = 20
    no_overlap: bool = False
    span_offset: int = 0
    span_length: int = 0


class App:
    """One NBD client of one volume."""

    def __init__(self, cluster: Cluster, node: int, volume: int = 0) -> None:
        self._c = cluster
        self.node = node
        self.is_open = self.is_refused = self.is_closed = False
        self.is_idle = True  # no workload
        world = cluster.world
        fd = world.ffi.new("int *")
        self.number = int(world.lib.re_sim_nbd_connect(world.sim, node, cluster.history, fd))
        if self.number < 0:
            raise SimFailure(f"an NBD client cannot connect: {self.number}")
        if volume:
            world.lib.re_sim_nbd_base(world.sim, self.number, volume * cluster.device_bytes)
        cluster.apps[self.number] = self
        cluster.shells[node].nbd_open(fd[0], self._opened, volume)

    def _opened(self, answer: Answer, stream: int) -> None:
        self.is_open, self.is_refused = stream >= 0, stream < 0

    def load(self, load: Load) -> None:
        world, members = self._c.world, {k: int(v) for k, v in vars(load).items()}
        members["think_max_ns"] = members.pop("think_max_ms") * MS
        members["span_length"] = members["span_length"] or self._c.device_bytes - load.span_offset
        members["align_bytes"] = max(512, load.align_bytes)
        self.is_idle = False
        world.lib.re_sim_workload(world.sim, self.number, world.struct("re_sim_workload_settings", **members))

    def end_load(self) -> None:
        """No new operations."""
        self._c.world.lib.re_sim_workload_stop(self._c.world.sim, self.number)

    def stop(self, ms: int = 60_000) -> None:
        """No new operations, and every answer is there; then leave."""
        if not self.is_closed and self.is_open:
            self.end_load()
            self._c.until(lambda: self.is_idle or self.is_closed, ms, "the application's last answers")
        self.leave()

    def leave(self, *, orderly: bool = True) -> None:
        if not self.is_closed and self.is_open:
            world = self._c.world
            world.lib.re_sim_nbd_disconnect(world.sim, self.number, orderly)

    def submit(self, kind: str, offset: int = 0, length: int = BLOCK, *, fua: bool = False, fast: bool = False) -> int:
        lib, world = self._c.world.lib, self._c.world
        number = {"read": lib.RE_SIM_NBD_READ, "write": lib.RE_SIM_NBD_WRITE, "flush": lib.RE_SIM_NBD_FLUSH,
                  "zero": lib.RE_SIM_NBD_ZERO, "trim": lib.RE_SIM_NBD_TRIM}[kind]  # fmt: skip
        if kind == "flush":
            offset = length = 0
        op = world.struct("re_sim_nbd_op", kind=number, fua=int(fua) | 2 * fast, offset=offset, length=length)
        result = int(lib.re_sim_nbd_submit(world.sim, self.number, op))
        if result < 0:
            raise SimFailure(f"an operation cannot be sent: {result}")
        return result

    def do(
        self,
        kind: str,
        offset: int = 0,
        length: int = BLOCK,
        *,
        fua: bool = False,
        fast: bool = False,
        ms: int = 30_000,
    ) -> int:
        """Submit and wait; the NBD error, 0 if it was carried out, -1 when the client was cut off."""
        op = self.submit(kind, offset, length, fua=fua, fast=fast)
        self._c.until(lambda: self._c.op(op).state != 0, ms, f"the answer to a {kind}")
        info = self._c.op(op)
        return {1: 0, 2: int(info.error)}.get(info.state, -1)

    def write(self, *blocks: int, fua: bool = False) -> None:
        """Write these 4 KiB blocks one after the other; each has to succeed."""
        for block in blocks:
            if error := self.do("write", block * BLOCK, fua=fua):
                raise SimFailure(f"writing block {block} failed with {error}")

    @property
    def stats(self) -> Any:
        world = self._c.world
        stats = world.ffi.new("struct re_sim_client_stats *")
        world.lib.re_sim_client_stats(world.sim, self.number, stats)
        return stats
