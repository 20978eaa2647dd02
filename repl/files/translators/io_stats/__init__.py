# SPDX-License-Identifier: Apache-2.0
"""debug/io-stats: counts operations and bytes, and how long operations take.

For each operation: calls, errors, mean, least and most latency, and a histogram whose buckets are powers of two of
microseconds; and how often which file is opened, read and written.  In state dumps, and every ``ios-dump-interval`` in
the log.  The names of Gluster's many options for logs are taken so that its volfiles load; the processes' own switches
decide what is logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from repl.files.every_fop import Around, around, define_fops
from repl.files.options import Kind, Option, Options
from repl.files.translator import Context, Translator
from repl.files.translators.io_stats.files import FileCounts, Throughputs
from repl.files.values import Caller, Fd, Read

log = logging.getLogger(__name__)

BUCKETS = 32  # the last: an hour and more
_ACCEPTED = ("log-level", "brick-log-level", "client-log-level", "sys-log-level", "brick-sys-log-level",
             "client-sys-log-level", "logger", "log-format", "log-buf-size", "log-flush-timeout", "unique-id",
             "volume-id", "ios-sample-buf-size", "ios-dump-format")  # fmt: skip


class Latency:
    """Of one operation, in microseconds."""

    __slots__ = ("buckets", "calls", "errors", "most", "least", "total")

    def __init__(self) -> None:
        self.calls = 0
        self.errors = 0
        self.total = 0
        self.least = 0
        self.most = 0
        self.buckets = [0] * BUCKETS

    def add(self, duration_us: int) -> None:
        self.least = min(self.least, duration_us) if self.calls else duration_us
        self.most = max(self.most, duration_us)
        self.calls += 1
        self.total += duration_us
        self.buckets[min(duration_us.bit_length(), BUCKETS - 1)] += 1

    def percentile(self, share: float) -> int:
        """An upper bound: the end of the bucket in which so many calls are done."""
        left = self.calls * share
        for bucket, count in enumerate(self.buckets):
            left -= count
            if left <= 0:
                return min((1 << bucket) - 1, self.most)
        return self.most


@define_fops(around)
class IoStats(Around):
    TYPE = "debug/io-stats"
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option("latency-measurement", Kind.BOOL, True, "measure how long operations take.  differs: off in Gluster"),
        Option("count-fop-hits", Kind.BOOL, True, "count operations.  differs: off in Gluster"),
        Option("dump-fd-stats", Kind.BOOL, False, "accepted for Gluster's sake"),
        Option("ios-dump-interval", Kind.TIME, 0.0, "seconds between two tables in the log; 0: none", minimum=0),
        Option("ios-sample-interval", Kind.TIME, 0.0, "accepted for Gluster's sake", minimum=0),
        *(Option(name, Kind.STRING, "", "accepted for Gluster's sake") for name in _ACCEPTED),
    )

    def __init__(self, name: str, options: Options, subvolumes: Sequence[Translator], context: Context) -> None:
        super().__init__(name, options, subvolumes, context)
        self.latencies: dict[str, Latency] = {}
        self.read_bytes = 0
        self.written_bytes = 0
        self.files = FileCounts()
        self.throughputs = Throughputs()
        self.is_idle = not options["count-fop-hits"]

    def reconfigure(self, options: Options) -> None:
        super().reconfigure(options)
        self.is_idle = not options["count-fop-hits"]

    async def start(self) -> None:
        if self.options["ios-dump-interval"]:
            self.context.spawn(self._dump_for_ever(), f"{self.name}: dumps")

    async def _dump_for_ever(self) -> None:
        while interval_s := self.options["ios-dump-interval"]:
            await asyncio.sleep(interval_s)
            for key, value in self.state().items():
                log.info("%s: %s=%s", self.name, key, value)

    async def around(self, fop: str, caller: Caller, args: Sequence[Any], call: Callable[[], Any]) -> Any:
        latency = self.latencies.get(fop)
        if latency is None:
            latency = self.latencies[fop] = Latency()
        began, duration_us = self._now_us() if self.options["latency-measurement"] else 0, 0
        try:
            result = await call()
        except OSError:
            latency.errors += 1
            raise
        finally:
            duration_us = max(0, self._now_us() - began) if began else 0
            latency.add(duration_us)
        if fop == "compound":
            for step, answer in zip(args[0], result, strict=False):
                self._count(step.fop, step.args, answer, duration_us)
        else:
            self._count(fop, args, result, duration_us)
        return result

    def _count(self, fop: str, args: Sequence[Any], result: Any, duration_us: int) -> None:
        """``duration_us``: of the whole frame."""
        if isinstance(result, OSError):
            return
        self.files.add(fop, args)
        if fop == "release":
            self._closed(args[0])
        elif fop in ("open", "create"):
            args[1].contexts[self] = True
            self.files.open(self.context.wall_ns())
        elif isinstance(result, Read):
            self.read_bytes += len(result.data)
            self._count_rate("read", args[0], len(result.data), duration_us)
        elif fop == "writev":
            self.written_bytes += len(args[1])
            self._count_rate("write", args[0], len(args[1]), duration_us)

    def _count_rate(self, kind: str, fd: Fd, size: int, duration_us: int) -> None:
        if duration_us:
            self.throughputs.add(kind, fd.gfid, size, duration_us, self.context.wall_ns())

    def _closed(self, fd: Fd) -> None:
        if fd.contexts.pop(self, None):
            self.files.opened -= 1

    async def release(self, fd: Fd) -> None:
        self._closed(fd)
        await self.child.release(fd)

    def release_known(self, fd: Fd) -> bool:
        is_released = self.is_idle and self.child.release_known(fd)
        if is_released:
            self._closed(fd)
        return is_released

    def _now_us(self) -> int:
        """The loop's own clock stands still within a turn of the loop (uvloop: a millisecond): too coarse here."""
        wall_ns = self.context.wall_ns()
        return wall_ns // 1000 if wall_ns else int(asyncio.get_running_loop().time() * 1e6)

    def clear(self) -> None:
        """Count from zero."""
        self.latencies.clear()
        self.read_bytes = self.written_bytes = 0
        self.files.clear()
        self.throughputs.clear()

    def state(self) -> dict[str, object]:
        values: dict[str, object] = {"read_bytes": self.read_bytes, "written_bytes": self.written_bytes}
        for fop, latency in sorted(self.latencies.items()):
            values[f"{fop}.calls"] = latency.calls
            values[f"{fop}.errors"] = latency.errors
            mean = latency.total / latency.calls if latency.calls else 0.0
            values[f"{fop}.latency_us"] = (
                f"mean {mean:.0f} least {latency.least} p50 {latency.percentile(0.5)} p99 {latency.percentile(0.99)} "
                f"most {latency.most}"
            )
            values[f"{fop}.histogram_us"] = " ".join(
                f"<{1 << bucket}:{count}" for bucket, count in enumerate(latency.buckets) if count
            )
        return values | self.files.state() | self.throughputs.state()
