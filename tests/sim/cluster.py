# SPDX-License-Identifier: Apache-2.0
"""Two simulated nodes with their disks, an application, and the checks that hold at any time.

Times are virtual milliseconds (``ms``) unless a name says otherwise.  Everything ends in :class:`SimFailure` when a
promise is broken; :meth:`Cluster.tail` has the last lines of the log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from repl.drbd import activity_log, superblock
from repl.drbd.layout import MetadataKind
from repl.drbd.states import ConnectionState, DiskState, Role
from repl.drbd.superblock import MdFlag
from repl.engine.commands import Resync
from repl.node import disk as node_disk
from repl.node.disk import DiskPlace
from repl.node.node import Node
from repl.node.settings import NetSettings, NodeSettings, VolumeSettings
from repl.node.volume import Volume
from tests.sim.node_shell import TIMER_TEST, Answer, NodeShell
from tests.sim.world import BLOCK, MIB, MS, STRICT, SimDisk, SimFailure, World

LOG_LINES = 400
SLICE_MS = 20
FAST_RESYNC = Resync(resync_rate_kib=40960, plan_ahead=0, max_rate_kib=102400, min_rate_kib=0)
QUICK_NET = NetSettings(ping_int_ms=2000, ping_timeout_ms=300, connect_int_ms=1500, timeout_ms=1500)


@dataclass(frozen=True)
class Setup:
    """What a cluster is made of."""

    disk_bytes: int = 2 * MIB
    al_extents: int = 67
    net: NetSettings = QUICK_NET
    resync: Resync = FAST_RESYNC
    external: bool = False
    requests: int = 64
    latency_max_us: int = 500
    write_max_us: int = 1000
    flush_max_us: int = 3000
    wake_max_us: int = 500
    partial_ppm: int = 100_000
    tiny_ppm: int = 5_000
    buffer_bytes: int = 256 << 10
    other_net: NetSettings | None = None  # node 1, where it differs
    other_disk_bytes: int = 0  # node 1, where it differs
    has_metadata: bool = True
    odd_sectors: int = 0  # the device is so much smaller than a whole number of 4 KiB blocks
    handlers: tuple[str, ...] = ()  # those that are configured; what they do: NodeShell.scripts
    overrides: dict[str, Any] = field(default_factory=dict)  # of VolumeSettings


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
    """One NBD client with a workload."""

    def __init__(self, cluster: Cluster, node: int) -> None:
        self._c = cluster
        self.node = node
        self.is_open = self.is_refused = self.is_closed = False
        self.is_idle = True  # no workload
        world = cluster.world
        fd = world.ffi.new("int *")
        self.number = int(world.lib.re_sim_nbd_connect(world.sim, node, cluster.history, fd))
        if self.number < 0:
            raise SimFailure(f"an NBD client cannot connect: {self.number}")
        cluster.apps[self.number] = self
        cluster.shells[node].nbd_open(fd[0], self._opened)

    def _opened(self, answer: Answer, stream: int) -> None:
        self.is_open, self.is_refused = stream >= 0, stream < 0

    def load(self, load: Load) -> None:
        world, members = self._c.world, {k: int(v) for k, v in vars(load).items()}
        members["think_max_ns"] = members.pop("think_max_ms") * MS
        members["span_length"] = members["span_length"] or self._c.device_bytes - load.span_offset
        members["align_bytes"] = max(512, load.align_bytes)
        self.is_idle = False
        world.lib.re_sim_workload(world.sim, self.number, world.struct("re_sim_workload_settings", **members))

    def stop(self, ms: int = 60_000) -> None:
        """No new operations, and every answer is there; then leave."""
        world = self._c.world
        if not self.is_closed and self.is_open:
            world.lib.re_sim_workload_stop(world.sim, self.number)
            self._c.until(lambda: self.is_idle or self.is_closed, ms, "the application's last answers")
        self.leave()

    def leave(self, *, orderly: bool = True) -> None:
        if not self.is_closed and self.is_open:
            world = self._c.world
            world.lib.re_sim_nbd_disconnect(world.sim, self.number, orderly)

    def submit(self, kind: str, offset: int = 0, length: int = BLOCK, *, fua: bool = False) -> int:
        lib, world = self._c.world.lib, self._c.world
        number = {"read": lib.RE_SIM_NBD_READ, "write": lib.RE_SIM_NBD_WRITE, "flush": lib.RE_SIM_NBD_FLUSH,
                  "zero": lib.RE_SIM_NBD_ZERO, "trim": lib.RE_SIM_NBD_TRIM}[kind]  # fmt: skip
        if kind == "flush":
            offset = length = 0
        op = world.struct("re_sim_nbd_op", kind=number, fua=int(fua), offset=offset, length=length)
        result = int(lib.re_sim_nbd_submit(world.sim, self.number, op))
        if result < 0:
            raise SimFailure(f"an operation cannot be sent: {result}")
        return result

    def do(self, kind: str, offset: int = 0, length: int = BLOCK, *, fua: bool = False, ms: int = 30_000) -> int:
        """Submit and wait; the NBD error, 0 if it was carried out, -1 when the client was cut off."""
        op = self.submit(kind, offset, length, fua=fua)
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


class Cluster:
    """The simulation with two nodes."""

    def __init__(self, seed: int, setup: Setup | None = None) -> None:
        self.setup = setup = setup or Setup()
        self.world = World(seed)
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self.apps: dict[int, App] = {}
        self.observers: list[Callable[[int], None]] = []
        self._later: dict[int, Callable[[], None]] = {}
        self._next_later = 1
        world = self.world
        world.timing(wake_max_ns=setup.wake_max_us * 1000, run_max_ns=20_000)
        world.net(latency_min_ns=20_000, latency_max_ns=setup.latency_max_us * 1000, buffer_bytes=setup.buffer_bytes,
                  partial_ppm=setup.partial_ppm, tiny_ppm=setup.tiny_ppm)  # fmt: skip
        self.shells = [self._make(0), self._make(1)]
        usable = [node_disk.usable_sectors(s.place, s.layout) for s in self.shells if setup.has_metadata]
        self.device_bytes = (min(usable or [0]) - setup.odd_sectors) * 512
        self.history = int(world.lib.re_sim_history_create(world.sim, max(self.device_bytes, 512)))

    def _make(self, index: int) -> NodeShell:
        setup, world = self.setup, self.world
        size = setup.other_disk_bytes if index and setup.other_disk_bytes else setup.disk_bytes
        data = SimDisk(world, index, size, f"disk{index}")
        md = SimDisk(world, index, MIB, f"md{index}") if setup.external else data
        for disk in {id(data): data, id(md): md}.values():
            disk.settings(read_min_ns=20_000, read_max_ns=setup.write_max_us * 500,
                          write_min_ns=20_000, write_max_ns=setup.write_max_us * 1000,
                          flush_min_ns=50_000, flush_max_ns=setup.flush_max_us * 1000)  # fmt: skip
        kind = MetadataKind.FLEXIBLE if setup.external else MetadataKind.INTERNAL
        place = DiskPlace(data, md, kind)
        if setup.has_metadata:
            node_disk.create_metadata(place, device_uuid=world.random64())
        limit = 0
        if setup.odd_sectors:
            limit = node_disk.usable_sectors(place, node_disk.find_superblock(place)[1]) - setup.odd_sectors
        volume = VolumeSettings(0, size_sectors=limit, al_extents=setup.al_extents, resync=setup.resync)
        settings = NodeSettings(
            resource="r0",
            node="ab"[index],
            peer="ba"[index],
            my_address=f"10.0.0.{index + 1}:7788",
            peer_address=f"10.0.0.{2 - index}:7788",
            volumes=(replace(volume, **setup.overrides),),
            net=setup.other_net if index and setup.other_net else setup.net,
            handlers={name: f"simulated {name}" for name in setup.handlers},
        )
        return NodeShell(world, index, settings, place, log=self.log, on_state=self._state_changed,
                         engine_config={"requests": setup.requests})  # fmt: skip

    def close(self) -> None:
        self.world.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- log ----

    def log(self, text: str) -> None:
        self.lines.append(f"{self.world.now / 1e6:12.3f} {text}")

    def tail(self, lines: int = 60) -> str:
        return "\n".join(list(self.lines)[-lines:])

    def _state_changed(self, index: int) -> None:
        for observer in self.observers:
            observer(index)

    # ---- time ----

    @property
    def now_ms(self) -> float:
        return self.world.now / MS

    def later(self, ms: float, call: Callable[[], None]) -> None:
        number = self._next_later
        self._next_later += 1
        self._later[number] = call
        self.world.timer(self.world.now + int(ms * MS), TIMER_TEST << 60 | number)

    def run(self, ms: float) -> None:
        """Let time pass."""
        self._run_to(self.world.now + int(ms * MS), None)

    def wait(self, condition: Callable[[], bool], ms: float) -> bool:
        """Until the condition holds; False if the time is over first."""
        end = self.world.now + int(ms * MS)
        while not condition():
            if self.world.now >= end:
                return False
            self._run_to(min(end, self.world.now + SLICE_MS * MS), condition)
        return True

    def until(self, condition: Callable[[], bool], ms: float, what: str) -> None:
        if not self.wait(condition, ms):
            raise SimFailure(f"not within {ms / 1000:g} s: {what} ({self.describe()})")

    def _run_to(self, end: int, condition: Callable[[], bool] | None) -> None:
        world, lib = self.world, self.world.lib
        while (n := world.step(end)) is not None:
            if n.kind == lib.RE_SIM_NOTICE_TIMER:
                if n.value >> 60 & 3 == TIMER_TEST:
                    self._later.pop(n.value & (1 << 44) - 1)()
                else:
                    self.shells[n.value >> 62].timer(n.value >> 60 & 3, n.value >> 44 & 0xFFFF, n.value & (1 << 44) - 1)
            elif n.kind == lib.RE_SIM_NOTICE_CLIENT_IDLE:
                self.apps[n.id].is_idle = True
            elif n.kind == lib.RE_SIM_NOTICE_CLIENT_CLOSED:
                self.apps[n.id].is_closed = True
            elif n.kind == lib.RE_SIM_NOTICE_STUCK:
                raise SimFailure(f"node {n.node}: the engine runs on and on without doing anything")
            elif n.node >= 0:
                self.shells[n.node].notice(n)
            if condition is not None and condition():
                break
        if texts := world.violations():
            raise SimFailure("violation: " + "; ".join(texts))

    # ---- operators ----

    def fire(self, node: int, verb: str, **args: Any) -> Answer:
        """A command; nobody waits for its answer."""
        self.log(f"node {node}: operator: {verb} {args or ''}".rstrip())
        return self.shells[node].command(verb, args)

    def ask(self, node: int, verb: str, *, ms: float = 60_000, **args: Any) -> dict[str, Any]:
        """A command and its answer; raises the error of a refusal."""
        answer = self.fire(node, verb, **args)
        self.until(lambda: answer.is_done, ms, f"the answer to {verb} on node {node}")
        if answer.error is not None:
            raise answer.error
        return answer.result

    def start(self, *nodes: int) -> None:
        """Processes start and come up."""
        answers = []
        for node in nodes or (0, 1):
            self.shells[node].start()
            answers.append(self.fire(node, "up"))
        self.until(lambda: all(a.is_done for a in answers), 10_000, "up")
        for answer in answers:
            if answer.error is not None:
                raise answer.error

    def restart(self, node: int) -> None:
        """Power and process come back, and the resource is up."""
        if not self.shells[node].is_powered:
            self.shells[node].power_on()
        if not self.shells[node].is_running:
            self.start(node)

    def connect_fresh(self, *, skip_initial_sync: bool = True) -> None:
        """Both nodes of a new cluster, connected and UpToDate."""
        self.start()
        self.until(lambda: self.connected, 30_000, "the first connection")
        if skip_initial_sync:
            self.ask(0, "new-current-uuid", clear_bitmap=True)
        else:
            self.ask(0, "primary", force=True)
        self.until(lambda: self.in_sync, 600_000, "the first sync")
        self.ask(0, "secondary")

    def serve(self, node: int) -> App:
        """An application on this node (which becomes Primary for it)."""
        app = App(self, node)
        self.until(lambda: app.is_open or app.is_refused or app.is_closed, 30_000, "an NBD client's open")
        if not app.is_open:
            raise SimFailure(f"node {node} refuses an NBD client")
        return app

    # ---- looking ----

    def node(self, index: int) -> Node:
        node = self.shells[index].node
        if node is None:
            raise SimFailure(f"node {index} does not run")
        return node

    def volume(self, index: int) -> Volume:
        return self.node(index).volumes[0]

    def op(self, number: int) -> Any:
        info = self.world.ffi.new("struct re_sim_op_info *")
        if not self.world.lib.re_sim_op_info(self.world.sim, number, info):
            raise SimFailure(f"no operation {number}")
        return info

    def state(self, index: int) -> tuple[Role, ConnectionState, DiskState, DiskState]:
        node = self.shells[index].node
        if node is None:
            return Role.UNKNOWN, ConnectionState.STANDALONE, DiskState.DISKLESS, DiskState.UNKNOWN
        state = node.volumes[0].state
        conn = node.cstate if node.cstate < ConnectionState.CONNECTED else state.conn
        return node.role, conn, state.disk, state.pdsk

    @property
    def connected(self) -> bool:
        return all(self.state(index)[1] >= ConnectionState.CONNECTED for index in (0, 1))

    @property
    def in_sync(self) -> bool:
        return all(s.node is not None and s.node.is_connected and s.node.volumes[0].is_in_sync for s in self.shells)

    @property
    def stand_alone(self) -> bool:
        return all(s.node is not None and s.node.cstate == ConnectionState.STANDALONE for s in self.shells)

    def dirty_bits(self, index: int) -> int:
        node = self.node(index)
        return node.dirty_bits(node.volumes[0])

    def describe(self) -> str:
        texts = []
        for shell in self.shells:
            role, conn, disk, peer_disk = self.state(shell.index)
            text = f"{role}/{conn}/{disk}/{peer_disk}" if shell.node is not None else "not running"
            if shell.node is not None and shell.node.reason:
                text += f' "{shell.node.reason}"'
            texts.append(f"{shell.index}: {text}")
        return ", ".join(texts)

    def events(self, index: int, kind: str = "", text: str = "") -> list[str]:
        return [
            e.message for e in self.shells[index].state_events if (not kind or e.kind == kind) and text in e.message
        ]

    # ---- network faults ----

    def cut(self, *, silent: bool = True, direction: int = -1) -> None:
        """No way between the nodes: packets vanish, or connections are reset; one direction (its sender) or both."""
        lib = self.world.lib
        state = lib.RE_SIM_PATH_DROP if silent else lib.RE_SIM_PATH_REJECT
        self.log(f"network: {'drops' if silent else 'rejects'} {'all' if direction < 0 else f'from {direction}'}")
        for sender in (0, 1) if direction < 0 else (direction,):
            self.world.path(sender, 1 - sender, state)

    def heal(self) -> None:
        self.log("network: open")
        self.world.heal()

    # ---- checks ----

    def differing(self, *, layer: int = 0) -> int:
        a, b = (s.data.number for s in self.shells)
        return self.world.differing(a, b, self.device_bytes, layer=layer)

    def check_equal(self) -> None:
        """P5: byte-identical, bitmaps clear."""
        if bits := self.differing():
            raise SimFailure(f"P5: {bits.bit_count()} blocks differ on nodes in sync: {_blocks(bits)}")
        for index in (0, 1):
            if dirty := self.dirty_bits(index):
                raise SimFailure(f"P5: node {index} is in sync and has {dirty} dirty bits")

    def wait_idle(self) -> None:
        """Nothing is on its way any more (an open epoch is, perhaps: its writes are on both disks)."""
        self.until(lambda: all(map(self._is_idle, (0, 1))), 30_000, "idle disks and clear bitmaps")
        self.run(2 * self.setup.latency_max_us / 1000 + 5)  # an asynchronous write may still be between the sockets
        self.until(lambda: all(map(self._is_idle, (0, 1))), 30_000, "idle disks and clear bitmaps")

    def _is_idle(self, index: int) -> bool:
        stats = self.node(index).stats.volume_stats(0)
        busy = stats is None or stats.upper_pending or stats.lower_pending or stats.unacked
        return not busy and not self.dirty_bits(index) and self.shells[index].data.in_flight == 0

    def covered_on_disk(self, index: int, *, layer: int = 0) -> int:
        """The blocks that a restart of this node would take for different, as the bits of a number."""
        return covered(self.shells[index].place, layer=layer)

    def check_coverage(self, when: str, *, layer: int = 0) -> None:
        """P4 on the images as they are: what differs is known to the metadata on at least one disk."""
        if not (bits := self.differing(layer=layer)):
            return
        for index in (0, 1):
            bits &= ~self.covered_on_disk(index, layer=layer)
        if bits:
            raise SimFailure(
                f"P4 ({when}, layer {layer}): {bits.bit_count()} blocks differ and are on no disk's bitmap or activity "
                f"log: {_blocks(bits)} ({self.describe()})"
            )

    def check_audit(self, index: int, modes: int = STRICT, what: str = "") -> None:
        """The content of a node's disk against what was acknowledged."""
        text = self.world.audit(self.history, self.shells[index].data.number, modes=modes)
        if text:
            names = {0: "tags", 1: "P1 strict", 2: "P2 flushed", 4: "P3 causal", 8: "P1 acknowledged"}
            raise SimFailure(f"{names.get(modes, modes)} on node {index} {what}: {text} ({self.describe()})")

    def check_idle_pair(self) -> None:
        """Both in sync, nothing going on: P5, and the audit of both copies."""
        self.until(lambda: self.in_sync, 60_000, "both nodes in sync")
        self.wait_idle()
        self.check_equal()
        self.check_audit(0)


def covered(place: DiskPlace, *, layer: int = 0, image: Callable[[int, int], bytes] | None = None) -> int:
    """Bits of a device whose metadata would be replayed; read by our Python from a disk's layer or from an image."""
    disk: SimDisk = place.md  # type: ignore[assignment]
    read = image or (lambda offset, length: disk.content(offset, length, layer=layer))
    found = superblock.parse(read(_superblock_byte(place), BLOCK))
    everything = (1 << max(1, -(-place.data.size_bytes // BLOCK))) - 1
    if found.la_size_sectors == 0 or found.all_dirty or MdFlag.CONSISTENT not in found.flags:
        # An Inconsistent node's own bitmap says what it lacks; before its first attach it lacks everything.
        if found.la_size_sectors == 0 or found.all_dirty:
            return everything
    where = _layout(place)
    bits = int.from_bytes(read(where.bitmap_byte, where.bitmap_bytes), "little")
    primary = MdFlag.PRIMARY_IND in found.flags
    if found.clean or not primary:
        return bits
    log = read(where.al_byte, where.al_bytes)
    blocks = [log[at : at + BLOCK] for at in range(0, len(log), BLOCK)]
    stripes, stripe_size = found.stripes
    result = activity_log.replay(blocks, al_stripes=stripes, al_stripe_size_4k=stripe_size, primary_ind=True)
    for begin, length in activity_log.apply(result, bitmap_bits=found.bitmap_bits, primary_ind=True).ranges:
        bits |= ((1 << length * 8) - 1) << begin * 8
    return bits


def _superblock_byte(place: DiskPlace) -> int:
    from repl.drbd import layout

    return layout.superblock_position(place.kind, place.md.size_bytes, place.index)


def _layout(place: DiskPlace) -> Any:
    from repl.drbd import layout

    return layout.calculate(place.kind, place.md.size_bytes, index=place.index, al_stripes=1, al_stripe_size_4k=8)


def _blocks(bits: int) -> str:
    """The first few block numbers."""
    found = []
    while bits and len(found) < 8:
        low = bits & -bits
        found.append(str(low.bit_length() - 1))
        bits ^= low
    return ", ".join(found) + (", …" if bits else "")
