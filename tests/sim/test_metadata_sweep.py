# SPDX-License-Identifier: Apache-2.0
"""A crash at every point of a disk's life: what the next attach finds must be legal and cover every unconfirmed write.

One node on recorded simulated disks: create metadata, attach, promote alone, write to more extents than the activity
log holds, detach, go down; the same again as a node that was in sync before, and with a peer that is lost in between.
For every point of the record and every legal subset of the unflushed writes (sampled above twelve of them), also torn:
the image is made, replayed twice, and judged; the replay's own writes are swept in the same way, and drbdmeta judges a
sample.  Offsets in bytes, times in virtual nanoseconds.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from repl.drbd import superblock
from repl.drbd.layout import Layout, MetadataKind
from repl.errors import ReplError
from repl.node import disk as node_disk
from repl.node.disk import DiskPlace
from tests.lib.tools import require, require_root, require_sim
from tests.sim.drbdmeta_judge import Case, judge

MIB = 1 << 20
BLOCK = 4096
SECTOR = 512
AL_EXTENTS = 2
DISK_BYTES = 8 * MIB + (128 << 10)  # three extents, the last one cut short
EXHAUSTIVE_MAX = 12
SUBSETS_SAMPLED = 200
TORN_EVERY_MAX = 5  # unflushed writes up to which every subset is torn as well
JUDGED_A_POINT = 3
SEED = 7
SWEEP_ALL = os.environ.get("REPL_SWEEP") == "all"  # drbdmeta judges every image
IN_REPLAY = ", and again in its replay"
REFUSED = "Activity log: damaged, and this node was Primary"
ALL = (1 << 64) - 1
# Which of a write's sectors arrive (modulo 64): the first ones, the last ones, every other one, all but one.
TEARS = (0x1, 0xFF, 0xFFF, ALL << 1, ALL << 8, ALL << 12, 0x5555_5555_5555_5555, ALL ^ 0x8000)


class Image:
    """A ``BlockFile`` in memory that keeps its writes."""

    def __init__(self, content: Any, size_bytes: int, name: str) -> None:
        self.size_bytes = size_bytes
        self.name = name
        self._content = content  # buffer of the whole disk; only its range from `first` on is kept
        self.first = 0
        self.log: list[tuple[int, bytes] | None] = []  # None: a flush

    @classmethod
    def of(cls, data: bytes, first: int, size_bytes: int) -> Image:
        """Only the bytes from ``first`` on are there; what lies before is never read by a replay."""
        image = cls(bytearray(data), size_bytes, "image")
        image.first = first
        return image

    def pread(self, offset: int, length: int) -> bytes:
        assert offset >= self.first, "a replay has no business in the data"
        return bytes(self._content[offset - self.first : offset - self.first + length])

    def pwrite(self, offset: int, data: bytes) -> None:
        assert offset >= self.first, "a replay has no business in the data"
        self._content[offset - self.first : offset - self.first + len(data)] = data
        self.log.append((offset, data))

    def flush(self) -> None:
        self.log.append(None)

    @property
    def writes(self) -> int:
        return sum(entry is not None for entry in self.log)

    @property
    def tail(self) -> bytes:
        return bytes(self._content)


class NoFile:
    """The data of a node with external metadata: only its size matters."""

    name = "data"

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def pread(self, offset: int, length: int) -> bytes:
        raise AssertionError("the data is not read")

    def pwrite(self, offset: int, data: bytes) -> None:
        raise AssertionError("the data is not written")

    def flush(self) -> None:
        pass


@dataclass(slots=True)
class Write:
    """A write to the data area, as the disk saw it, and when the peer had it (None: never)."""

    first: int
    last: int
    submitted_ns: int
    confirmed_ns: int | None
    is_alone: bool  # made under the generation that began when the node was alone


@dataclass
class Record:
    """What a run has left: its disk with the op log, and what has to be covered when."""

    cluster: Any
    name: str
    md: Any
    data_bytes: int
    kind: MetadataKind
    layout: Layout
    times: list[int]  # of every point of the metadata disk's log
    writes: list[Write]
    had_superblock: bool

    def required(self, point: int) -> int:
        """Blocks that the peer may lack at this point, as the bits of a number."""
        until = self.times[point + 1] if point + 1 < len(self.times) else 1 << 63
        bits = 0
        for write in self.writes:
            if write.submitted_ns >= until or (write.confirmed_ns and write.confirmed_ns <= self.times[point]):
                continue
            bits |= (1 << write.last - write.first + 1) - 1 << write.first
        return bits

    def alone_write_begun(self, point: int) -> bool:
        until = self.times[point + 1] if point + 1 < len(self.times) else 1 << 63
        return any(write.is_alone and write.submitted_ns < until for write in self.writes)


@dataclass(frozen=True, slots=True)
class Sample:
    """Unclean metadata for another judge, and what it has to cover."""

    point: str
    tail: bytes
    required: int


@dataclass
class Figures:
    """What a sweep has done."""

    points: int = 0
    images: int = 0
    distinct: int = 0
    replay_images: int = 0
    problems: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)  # a replay that follows an interrupted one
    samples: list[Sample] = field(default_factory=list)
    generations: int = 0


# ---- running ----


def submit(cluster: Any, app: Any, kind: int, offset: int, length: int, fua: int = 0) -> int:
    op = cluster.world.struct("re_sim_nbd_op", kind=kind, fua=fua, offset=offset, length=length)
    number = int(cluster.world.lib.re_sim_nbd_submit(cluster.world.sim, app.number, op))
    assert number >= 0
    return number


def ended(cluster: Any, number: int) -> bool:
    return bool(cluster.op(number).state != cluster.world.lib.RE_SIM_OP_PENDING)


def wait_ops(cluster: Any, numbers: Iterable[int]) -> None:
    wanted = list(numbers)
    cluster.until(lambda: all(ended(cluster, n) for n in wanted), 60_000, "the writes' answers")


def three_writes(cluster: Any, app: Any, *, shift: int = 0) -> list[int]:
    """One in each extent, one after the other: the third one evicts the first one's extent; then a fourth goes back."""
    lib = cluster.world.lib
    numbers = []
    for offset, length in (
        (shift, 4096),
        (4 * MIB + shift + 1536, 8192),
        (8 * MIB + shift, 512),
        (MIB + shift, 12288),
    ):
        numbers.append(submit(cluster, app, lib.RE_SIM_NBD_WRITE, offset, length))
        wait_ops(cluster, numbers)
    numbers.append(submit(cluster, app, lib.RE_SIM_NBD_FLUSH, 0, 0))
    wait_ops(cluster, numbers)
    return numbers


def make_cluster(seed: int, *, external: bool, has_metadata: bool) -> Any:
    from tests.sim.cluster import Cluster, Setup

    return Cluster(
        seed,
        Setup(disk_bytes=DISK_BYTES, al_extents=AL_EXTENTS, external=external, has_metadata=has_metadata,
              partial_ppm=0, tiny_ppm=0),
    )  # fmt: skip


def record(cluster: Any, index: int, on: bool) -> None:
    shell = cluster.shells[index]
    for disk in {id(shell.data): shell.data, id(shell.md): shell.md}.values():
        disk.record(on)


def go_down(cluster: Any, index: int) -> None:
    cluster.ask(index, "down")
    cluster.until(lambda: not cluster.shells[index].is_running, 10_000, "the process's end")


def run_first(seed: int, *, external: bool) -> Record:
    """New metadata, first attach, promoted by force without ever having seen a peer."""
    cluster = make_cluster(seed, external=external, has_metadata=False)
    shell = cluster.shells[0]
    record(cluster, 0, True)
    node_disk.create_metadata(shell.place, device_uuid=cluster.world.random64())
    cluster.device_bytes = node_disk.usable_sectors(shell.place, shell.layout) * SECTOR
    cluster.history = int(cluster.world.lib.re_sim_history_create(cluster.world.sim, cluster.device_bytes))
    cluster.start(0)
    cluster.ask(0, "primary", force=True)
    app = cluster.serve(0)
    three_writes(cluster, app)
    app.leave()
    cluster.run(20)
    go_down(cluster, 0)
    return collect(cluster, "first attach", had_superblock=False)


def run_alone(seed: int, *, external: bool) -> Record:
    """A node that was in sync with its peer comes up without it."""
    cluster = make_cluster(seed, external=external, has_metadata=True)
    cluster.connect_fresh()
    cluster.wait_idle()
    go_down(cluster, 1)
    go_down(cluster, 0)
    record(cluster, 0, True)
    cluster.start(0)
    cluster.ask(0, "primary")
    app = cluster.serve(0)
    three_writes(cluster, app)
    app.leave()
    cluster.run(20)
    go_down(cluster, 0)
    return collect(cluster, "alone", had_superblock=True)


def run_lost_peer(seed: int, *, external: bool) -> Record:
    """A Primary with its peer, then without it."""
    cluster = make_cluster(seed, external=external, has_metadata=True)
    cluster.connect_fresh()
    cluster.wait_idle()
    record(cluster, 0, True)
    cluster.ask(0, "primary")
    app = cluster.serve(0)
    confirmed = {n: int(cluster.op(n).completed_ns) for n in three_writes(cluster, app)}
    numbers = [submit(cluster, app, cluster.world.lib.RE_SIM_NBD_WRITE, 2 * MIB, 4096)]
    cluster.shells[1].crash()  # with a write on its way
    wait_ops(cluster, numbers)
    three_writes(cluster, app, shift=64 << 10)
    app.leave()
    cluster.run(20)
    go_down(cluster, 0)
    return collect(cluster, "lost peer", had_superblock=True, confirmed=confirmed)


RUNS: dict[str, Callable[..., Record]] = {"first": run_first, "alone": run_alone, "lost-peer": run_lost_peer}


def log_entries(cluster: Any, disk: Any) -> list[Any]:
    world, found = cluster.world, []
    for index in range(world.lib.re_sim_log_count(world.sim, disk.number)):
        entry = world.ffi.new("struct re_sim_log_entry *")
        assert world.lib.re_sim_log_entry(world.sim, disk.number, index, entry)
        found.append(entry)
    return found


def collect(cluster: Any, name: str, *, had_superblock: bool, confirmed: dict[int, int] | None = None) -> Record:
    shell, world = cluster.shells[0], cluster.world
    record(cluster, 0, False)
    found, where = node_disk.find_superblock(shell.place)
    assert found.clean
    points = int(world.lib.re_sim_log_points(world.sim, shell.md.number))
    times = [0] * (points + 1)
    for entry in log_entries(cluster, shell.md):
        times[entry.submitted] = entry.submitted_ns
        if entry.completed:
            times[entry.completed] = entry.completed_ns
    for point in range(1, points + 1):
        times[point] = max(times[point], times[point - 1])
    begin = metadata_byte(shell.place.kind, where)
    confirmations = []
    for number, at in (confirmed or {}).items():
        op = cluster.op(number)
        confirmations.append((int(op.offset), int(op.length), int(op.invoked_ns), at))
    writes = []
    for entry in log_entries(cluster, shell.data):
        is_data = shell.data is not shell.md or entry.offset < begin
        if entry.kind != world.lib.RE_SIM_OP_WRITE or not is_data:
            continue
        span = (entry.offset, entry.length)
        when = [at for offset, length, invoked, at in confirmations
                if (offset, length) == span and invoked <= entry.submitted_ns <= at]  # fmt: skip
        last = (entry.offset + entry.length - 1) // BLOCK
        alone = not when and (not confirmed or entry.offset % MIB != 0)
        writes.append(Write(entry.offset // BLOCK, last, entry.submitted_ns, when[0] if when else None, alone))
    assert len(writes) >= 4, "the writes are in the record"
    return Record(cluster, name, shell.md, shell.data.size_bytes, shell.place.kind, where, times, writes,
                  had_superblock)  # fmt: skip


def metadata_byte(kind: MetadataKind, where: Layout) -> int:
    """Where the metadata begins on its disk."""
    return where.bitmap_byte if kind is MetadataKind.INTERNAL else where.superblock_byte


# ---- images ----


def subsets(count: int, rng: random.Random) -> Iterator[int]:
    """All of them for few candidates; otherwise none, all, each alone, all but each, prefixes and a sample."""
    everything = (1 << count) - 1
    if count <= EXHAUSTIVE_MAX:
        yield from range(everything + 1)
        return
    chosen = {0, everything}
    for index in range(count):
        chosen |= {1 << index, everything ^ 1 << index, (1 << index) - 1}
    chosen.update(rng.getrandbits(count) for _ in range(SUBSETS_SAMPLED))
    yield from sorted(chosen)


def torn_variants(mask: int, count: int, lengths: list[int]) -> Iterator[tuple[int, int]]:
    """(candidate, sectors that arrive) for one image."""
    whole = mask in (0, (1 << count) - 1) or mask & (mask - 1) == 0
    if count > TORN_EVERY_MAX and not whole:
        return
    for index in range(count):
        if mask >> index & 1:
            sectors = lengths[index] // SECTOR
            every = (1 << min(sectors, 64)) - 1
            for tear in dict.fromkeys(t & every for t in TEARS):
                if tear not in (0, every):
                    yield index, tear


def disk_images(run: Record, figures: Figures) -> Iterator[tuple[int, int, bytes]]:
    """(point, mask, metadata bytes) of every legal image; equal ones of a point only once."""
    world, lib, rng = run.cluster.world, run.cluster.world.lib, random.Random(1)
    size, first = run.md.size_bytes, metadata_byte(run.kind, run.layout)
    out = world.ffi.new("uint8_t[]", size)
    indices = world.ffi.new("uint32_t[]", 63)
    entries = log_entries(run.cluster, run.md)
    for point in range(len(run.times)):
        figures.points += 1
        count = lib.re_sim_log_candidates(world.sim, run.md.number, point, indices, 63)
        assert count <= 63
        lengths = [int(entries[indices[i]].length) for i in range(count)]
        seen: set[bytes] = set()
        for mask in subsets(count, rng):
            for torn, sectors in ((-1, 0), *torn_variants(mask, count, lengths)):
                for reverse in (False, True) if mask & (mask - 1) else (False,):
                    args = (world.sim, run.md.number, point, mask, torn, sectors, reverse, out)
                    if not lib.re_sim_log_image(*args):
                        continue
                    figures.images += 1
                    tail = bytes(world.ffi.buffer(out + first, size - first))
                    if tail not in seen:
                        seen.add(tail)
                        yield point, mask, tail


def replay_images(first: int, before: bytes, log: list[tuple[int, bytes] | None]) -> Iterator[bytes]:
    """What a crash in the middle of a replay leaves: its own writes, any subset since its last flush, torn."""
    stable = bytearray(before)
    pending: list[tuple[int, bytes]] = []
    for entry in log:
        if entry is None:
            for offset, data in pending:
                stable[offset - first : offset - first + len(data)] = data
            pending = []
            continue
        pending.append(entry)
        count = min(len(pending), EXHAUSTIVE_MAX)
        for mask in range(1 << count - 1, 1 << count):  # with the newest one; the others were there before
            for torn, sectors in ((-1, 0), *torn_variants(mask, count, [len(d) for _, d in pending])):
                image = bytearray(stable)
                for index, (offset, data) in enumerate(pending):
                    if not mask >> index & 1:
                        continue
                    for at in range(0, len(data), SECTOR):
                        if index != torn or sectors >> at // SECTOR % 64 & 1:
                            image[offset - first + at : offset - first + at + SECTOR] = data[at : at + SECTOR]
                yield bytes(image)


# ---- judging ----


class Judge:
    """Everything that must hold for an image; remembers what it has judged."""

    def __init__(self, run: Record, figures: Figures) -> None:
        self.run = run
        self.figures = figures
        self.first = metadata_byte(run.kind, run.layout)
        self.size = run.md.size_bytes
        self.generations = self._generations()
        self._judged: dict[bytes, tuple[int, int]] = {}  # covered blocks, generation

    def _generations(self) -> list[Any]:
        """The UUIDs that the superblock had, in order (bit 0 of the current one follows the role)."""
        found: list[Any] = []
        world, md = self.run.cluster.world, self.run.md
        entries = log_entries(self.run.cluster, md)
        out = world.ffi.new("uint8_t[]", self.size)
        at = self.run.layout.superblock_byte
        points = [0, *sorted(int(e.completed) for e in entries if e.offset == at and e.kind == 1 and e.completed)]
        for point in points:
            count = world.lib.re_sim_log_candidates(world.sim, md.number, point, world.ffi.NULL, 0)
            assert world.lib.re_sim_log_image(world.sim, md.number, point, (1 << count) - 1, -1, 0, False, out)
            block = bytes(world.ffi.buffer(out + at, BLOCK))
            if any(block):
                uuids = generation(superblock.parse(block))
                if uuids not in found:
                    found.append(uuids)
        return found

    def place(self, image: Image) -> DiskPlace:
        data = image if self.run.kind is MetadataKind.INTERNAL else NoFile(self.run.data_bytes)
        return DiskPlace(data, image, self.run.kind)

    def judge(self, tail: bytes, where: str, *, required: int, lowest: int, highest: int, sweep: bool) -> None:
        if tail not in self._judged:
            self._judged[tail] = self._examine(tail, where, required, sweep=sweep)
            self.figures.distinct += 1
        covered, number = self._judged[tail]
        if number < 0:
            return  # already reported, or no superblock where there may be none
        if missing := required & ~covered:
            self.problem(f"P4: {where}: blocks {blocks(missing)} are not covered")
        if not lowest <= number <= highest:
            self.problem(f"{where}: generation {number}, expected {lowest}..{highest} of {len(self.generations)}")

    def problem(self, text: str) -> None:
        is_refusal = IN_REPLAY in text and REFUSED in text
        found = self.figures.refusals if is_refusal else self.figures.problems
        found.append(f"{self.run.name}, {self.run.kind.value}: {text}")

    def _examine(self, tail: bytes, where: str, required: int, *, sweep: bool) -> tuple[int, int]:
        at = self.run.layout.superblock_byte - self.first
        if not self.run.had_superblock and not any(tail[at : at + SECTOR]):
            return 0, -1  # creation was interrupted: nothing to attach
        image = Image.of(tail, self.first, self.size)
        try:
            prepared = node_disk.prepare(self.place(image), data_fd=0, md_fd=1)
        except ReplError as error:
            self.problem(f"{where}: {error}")
            return 0, -1
        result = image.tail
        again = Image.of(result, self.first, self.size)
        second = node_disk.prepare(self.place(again), data_fd=0, md_fd=1)
        if again.writes or second.superblock != prepared.superblock:
            self.problem(f"{where}: a second replay changes something")
        found = prepared.superblock
        uuids = generation(found)
        if uuids not in self.generations:
            self.problem(f"{where}: UUIDs {found.uuids} were never written")
            return 0, -1
        everything = (1 << -(-self.run.data_bytes // BLOCK)) - 1
        begin = self.run.layout.bitmap_byte - self.first
        bits = int.from_bytes(result[begin : begin + self.run.layout.bitmap_bytes], "little")
        covered = everything if found.all_dirty or found.la_size_sectors == 0 else bits
        number = self.generations.index(uuids)
        if sweep and image.writes:
            for inner in dict.fromkeys(replay_images(self.first, tail, image.log)):
                self.figures.replay_images += 1
                name = f"{where}{IN_REPLAY}"
                self.judge(inner, name, required=covered, lowest=number, highest=number, sweep=False)
        if sweep or IN_REPLAY in where:
            self.figures.samples.append(Sample(where.split(", mask")[0] + IN_REPLAY * (not sweep), tail, required))
        return covered, number


def generation(found: superblock.Superblock) -> Any:
    u = found.uuids
    return u.current & ~1, u.bitmap & ~1, u.history1 & ~1, u.history2 & ~1


def blocks(bits: int) -> str:
    return ", ".join(str(n) for n in range(bits.bit_length()) if bits >> n & 1)[:60]


def sweep(run: Record) -> tuple[Figures, Judge]:
    figures = Figures()
    judge = Judge(run, figures)
    newest, oldest = generation_bounds(run, judge)
    figures.generations = len(judge.generations)
    for point, mask, tail in disk_images(run, figures):
        judge.judge(tail, f"point {point}, mask {mask:#x}", required=run.required(point), lowest=oldest[point],
                    highest=newest[point], sweep=True)  # fmt: skip
    return figures, judge


def generation_bounds(run: Record, judge: Judge) -> tuple[list[int], list[int]]:
    """The newest and the oldest generation that may be on disk at every point.

    Newest: what was submitted.  Oldest: what was completed (every superblock is written with FUA or flushed), and the
    one under which the writes without a peer were made as soon as one of them has begun.
    """
    at = run.layout.superblock_byte
    world = run.cluster.world
    points = len(run.times)
    out = world.ffi.new("uint8_t[]", judge.size)
    newest, oldest = [0] * points, [0] * points
    flush_to = 0
    for point in range(points):
        count = world.lib.re_sim_log_candidates(world.sim, run.md.number, point, world.ffi.NULL, 0)
        bounds = []
        for mask in (0, (1 << count) - 1):
            assert world.lib.re_sim_log_image(world.sim, run.md.number, point, mask, -1, 0, False, out)
            block = bytes(world.ffi.buffer(out + at, BLOCK))
            bounds.append(judge.generations.index(generation(superblock.parse(block))) if any(block) else 0)
        oldest[point], newest[point] = bounds
        if run.alone_write_begun(point):
            flush_to = flush_to or newest[point]
            oldest[point] = max(oldest[point], flush_to)
    return newest, oldest


# ---- tests ----


@functools.cache
def swept(name: str, *, external: bool) -> tuple[Figures, MetadataKind, Layout]:
    run = RUNS[name](SEED, external=external)
    try:
        figures, _ = sweep(run)
        return figures, run.kind, run.layout
    finally:
        run.cluster.close()


@pytest.fixture(params=["internal", "flexible"])
def is_external(request: pytest.FixtureRequest) -> bool:
    require_sim()
    return bool(request.param == "flexible")


@pytest.mark.parametrize("name", list(RUNS))
def test_every_crash_image_attaches_and_covers_every_unconfirmed_write(name: str, is_external: bool) -> None:
    figures, _, _ = swept(name, external=is_external)
    print(
        f"{figures.points} points, {figures.images} images, {figures.distinct} different ones with "
        f"{figures.replay_images} of crashes in a replay, {figures.generations} generations"
    )
    assert not figures.problems, f"{len(figures.problems)} problems\n" + "\n".join(figures.problems[:12])
    assert figures.points > 30 and figures.images > 100 and figures.generations > 1, "the sweep sweeps"


@pytest.mark.parametrize("name", list(RUNS))
def test_replay_that_a_crash_interrupts_is_not_refused_later(name: str, is_external: bool) -> None:
    figures, _, _ = swept(name, external=is_external)
    found = figures.refusals
    assert not found, f"{len(found)} problems\n" + "\n".join(found[:12])
    assert figures.replay_images > 100, "the sweep sweeps"


def judged(name: str, *, external: bool) -> Iterator[Case]:
    """Images for drbdmeta: some of every crash point that has new ones; with REPL_SWEEP=all every one."""
    figures, kind, where = swept(name, external=external)
    rng = random.Random(3)
    by_point: dict[str, list[Sample]] = {}
    for sample in figures.samples:
        by_point.setdefault(sample.point, []).append(sample)
    few = [sample for found in by_point.values() for sample in rng.sample(found, min(JUDGED_A_POINT, len(found)))]
    chosen = figures.samples if SWEEP_ALL else few
    data = NoFile(DISK_BYTES) if external else None
    size = MIB if external else DISK_BYTES
    for number, sample in enumerate(chosen):
        yield Case(f"{name}, {sample.point} ({number})", sample.tail, metadata_byte(kind, where), size, kind, where,
                   sample.required, data)  # fmt: skip


@pytest.mark.parametrize("name", list(RUNS))
def test_drbdmeta_reads_replays_and_dumps_every_crash_point_as_we_do(
    name: str, is_external: bool, tmp_path: Path
) -> None:
    require("drbdmeta")
    require_root()  # it wants its lock in /var/run and the device's minor
    cases = list(judged(name, external=is_external))
    assert len(cases) > 30
    problems = judge(cases, tmp_path)
    print(f"{len(cases)} images")
    assert not problems, f"{len(problems)} problems\n" + "\n".join(problems[:12])
