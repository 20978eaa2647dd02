# SPDX-License-Identifier: Apache-2.0
"""debug translators: errors, delays, traces, statistics, around any operation."""

from __future__ import annotations

import asyncio
import errno

import pytest

from repl.errors import ConfigError
from repl.files.translator import FOPS, Step
from repl.files.translators.delay_gen import DelayGen
from repl.files.translators.error_gen import ErrorGen
from repl.files.translators.io_stats import IoStats, Latency
from repl.files.translators.io_stats import files as file_counts
from repl.files.translators.io_stats.files import FileCounts, Throughputs
from repl.files.translators.trace import Trace
from repl.files.values import ROOT, Caller, Fd, FopError
from tests.lib.files import ME, at, make, new_gfid
from tests.lib.memory_brick import MemoryBrick


async def _create(top: IoStats | Trace, data: bytes) -> Fd:
    fd = Fd(new_gfid(), 2)
    await top.create(ME, at("a"), fd, flags=0o102, mode=0o600, gfid=fd.gfid)
    await top.writev(ME, fd, data, offset=0)
    return fd


def test_error_gen_fails_what_it_is_told_with_the_error_it_is_told() -> None:
    async def work() -> None:
        top = make(ErrorGen, "e", [MemoryBrick()], failure="100", error_no="enospc", enable="stat")
        await top.lookup(ME, ROOT)
        with pytest.raises(FopError) as error:
            await top.stat(ME, ROOT)
        assert error.value.errno == errno.ENOSPC
        answers = await top.compound(ME, [Step("lookup", (ROOT,)), Step("stat", (ROOT,))])
        assert isinstance(answers[1], FopError) and top.failed == 2

    asyncio.run(work())


def test_error_gen_refuses_an_error_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="there is no error 'EOFTEN'"):
        make(ErrorGen, "e", [MemoryBrick()], error_no="EOFTEN")


def test_delay_gen_delays_its_share() -> None:
    async def work() -> None:
        top = make(DelayGen, "d", [MemoryBrick()], delay_percentage="100", delay_duration="20000")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await top.stat(ME, ROOT)
        assert loop.time() - began >= 0.02 and top.delayed == 1

    asyncio.run(work())


def test_trace_tells_what_was_done_but_no_contents() -> None:
    async def work() -> None:
        top = make(Trace, "t", [MemoryBrick()], log_file="off", log_history="on", exclude_ops="statfs")
        await _create(top, b"secret")
        await top.statfs(ME, ROOT)
        with pytest.raises(FopError):
            await top.lookup(Caller(uid=5), at("no"))
        lines = [str(line) for line in top.state().values()]
        assert len(lines) == 3 and "secret" not in "".join(lines)
        assert "create(" in lines[0] and "<6 bytes>" in lines[1] and "error 2 uid=5" in lines[2]

    asyncio.run(work())


def test_io_stats_counts_calls_errors_and_bytes() -> None:
    async def work() -> None:
        top = make(IoStats, "s", [MemoryBrick()])
        fd = await _create(top, b"12345")
        await top.readv(ME, fd, size=3, offset=0)
        with pytest.raises(FopError):
            await top.lookup(ME, at("no"))
        await top.compound(ME, [Step("writev", (fd, b"67"), {"offset": 5})])
        state = top.state()
        assert (state["read_bytes"], state["written_bytes"]) == (3, 7)
        assert (state["lookup.calls"], state["lookup.errors"], state["compound.calls"]) == (1, 1, 1)
        assert (state["opened"], state["opened_max"]) == (1, 1)
        await top.release(fd)
        assert top.state()["opened"] == 0

    asyncio.run(work())


def test_latency_percentiles_are_upper_bounds() -> None:
    latency = Latency()
    for duration_us in range(1, 1001):
        latency.add(duration_us)
    assert 500 <= latency.percentile(0.5) <= 511 and 990 <= latency.percentile(0.99) <= 1000
    assert (latency.least, latency.most, latency.calls) == (1, 1000, 1000)


@pytest.mark.parametrize("kind", [ErrorGen, DelayGen, Trace, IoStats])
def test_every_operation_is_covered(kind: type) -> None:
    assert all(name in kind.__dict__ for name in FOPS)


def test_io_stats_keeps_the_files_that_are_used_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_counts, "IO_STATS_FILES_MAX", 8)
    counts = FileCounts()
    for number in range(100):
        counts.add("readv", (Fd(b"busy" * 4),))
        counts.add("readv", (Fd(number.to_bytes(16, "big")),))
    counts.add("lookup", ())
    shown = str(counts.state()["top.read"]).split()
    assert shown[0] == f"{(b'busy' * 4).hex()}:100" and len(shown) <= 8


def test_io_stats_keeps_the_fastest_read_of_each_file_and_the_fastest_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_counts, "IO_STATS_FILES_MAX", 8)
    found = Throughputs()
    for number in range(100):
        found.add("read", number.to_bytes(16, "big"), 1000 + number, 1000, number)
    found.add("read", (99).to_bytes(16, "big"), 5, 1000, 100)
    shown = str(found.state()["perf.read"]).split()
    assert shown[0] == f"{99:032x}:1099000:99" and 4 <= len(shown) <= 8
    found.clear()
    assert found.state() == {}
