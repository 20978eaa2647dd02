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

from repl.drbd.layout import MetadataKind
from repl.drbd.states import ConnectionState, DiskState, Role
from repl.engine.commands import Resync
from repl.node import disk as node_disk
from repl.node.disk import DiskPlace
from repl.node.node import Node
from repl.node.settings import NetSettings, NodeSettings, VolumeSettings
from repl.node.volume import Volume
from tests.sim import marks
from tests.sim.app import App, Load
from tests.sim.node_shell import TIMER_TEST, Answer, NodeShell
from tests.sim.protocol_checker import ProtocolChecker
from tests.sim.world import CAUSAL, MIB, MS, STRICT, SimDisk, SimFailure, World

__all__ = ["App", "Cluster", "Load", "Setup"]

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
    room_bytes: int = 0  # by which the disks can grow; one volume
    has_metadata: bool = True
    volumes: int = 1
    odd_sectors: int = 0  # the device is so much smaller than a whole number of 4 KiB blocks
    on_no_data: str = "io-error"
    resync_in_turn: bool = False  # resync-after: each volume after the one before it
    handlers: tuple[str, ...] = ()  # those that are configured; what they do: NodeShell.scripts
    overrides: dict[str, Any] = field(default_factory=dict)  # of VolumeSettings


class Cluster:
    """The simulation with two nodes."""

    def __init__(self, seed: int, setup: Setup | None = None) -> None:
        self.setup = setup = setup or Setup()
        self.world = World(seed)
        self.checker = ProtocolChecker()
        self.world.lib.re_sim_tap(self.world.sim, True)
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self.apps: dict[int, App] = {}
        self.observers: list[Callable[[int], None]] = []
        self.on_crash_point: Callable[[int], None] = lambda index: self.shells[index].crash()
        self._later: dict[int, Callable[[], None]] = {}
        self._next_later = 1
        world = self.world
        world.timing(wake_max_ns=setup.wake_max_us * 1000, run_max_ns=20_000)
        world.net(latency_min_ns=20_000, latency_max_ns=setup.latency_max_us * 1000, buffer_bytes=setup.buffer_bytes,
                  partial_ppm=setup.partial_ppm, tiny_ppm=setup.tiny_ppm)  # fmt: skip
        self.shells = [self._make(0), self._make(1)]
        places = [place for shell in self.shells for place in shell.places] if setup.has_metadata else []
        usable = [node_disk.usable_sectors(p, node_disk.find_superblock(p)[1]) for p in places]
        self.device_bytes = (min(usable or [0]) - setup.odd_sectors) * 512  # of each volume
        size = max(self.device_bytes, 512) * setup.volumes + setup.room_bytes
        self.history = int(world.lib.re_sim_history_create(world.sim, size))

    def _place(self, index: int, number: int) -> DiskPlace:
        setup, world, suffix = self.setup, self.world, f".{number}" if number else ""
        size = setup.other_disk_bytes if index and setup.other_disk_bytes else setup.disk_bytes
        data = SimDisk(world, index, size + setup.room_bytes, f"disk{index}{suffix}")
        data.size_bytes = size
        md = SimDisk(world, index, MIB, f"md{index}{suffix}") if setup.external else data
        for disk in {id(data): data, id(md): md}.values():
            disk.settings(read_min_ns=20_000, read_max_ns=setup.write_max_us * 500,
                          write_min_ns=20_000, write_max_ns=setup.write_max_us * 1000,
                          flush_min_ns=50_000, flush_max_ns=setup.flush_max_us * 1000)  # fmt: skip
        kind = MetadataKind.FLEXIBLE if setup.external else MetadataKind.INTERNAL
        place = DiskPlace(data, md, kind)
        if setup.has_metadata:
            node_disk.create_metadata(place, device_uuid=world.random64())
        return place

    def _make(self, index: int) -> NodeShell:
        setup, volumes = self.setup, []
        places = [self._place(index, number) for number in range(setup.volumes)]
        for number, place in enumerate(places):
            limit = 0
            if setup.odd_sectors:
                limit = node_disk.usable_sectors(place, node_disk.find_superblock(place)[1]) - setup.odd_sectors
            made = VolumeSettings(number, size_sectors=limit, al_extents=setup.al_extents, resync=setup.resync)
            if setup.resync_in_turn and number:
                made = replace(made, resync_after=("r0", number - 1))
            volumes.append(replace(made, **setup.overrides))
        settings = NodeSettings(
            resource="r0",
            node="ab"[index],
            peer="ba"[index],
            my_address=f"10.0.0.{index + 1}:7788",
            peer_address=f"10.0.0.{2 - index}:7788",
            volumes=tuple(volumes),
            net=setup.other_net if index and setup.other_net else setup.net,
            on_no_data=setup.on_no_data,
            handlers={name: f"simulated {name}" for name in setup.handlers},
        )
        return NodeShell(self.world, index, settings, places, log=self.log, on_state=self._state_changed,
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
            elif n.kind == lib.RE_SIM_NOTICE_CRASH_POINT:
                self.on_crash_point(n.node)
            elif n.kind == lib.RE_SIM_NOTICE_STUCK:
                raise SimFailure(f"node {n.node}: the engine runs on and on without doing anything")
            elif n.node >= 0:
                self.shells[n.node].notice(n)
            if condition is not None and condition():
                break
        if texts := world.violations():
            raise SimFailure("violation: " + "; ".join(texts))
        self.checker.feed(world.tapped())
        if self.checker.problems:
            raise SimFailure("wire: " + "; ".join(self.checker.problems))

    def judge(self, *nodes: int) -> None:
        """Only what these nodes send has to be right: a test makes the others do wrong."""
        self.checker.judged = frozenset(nodes)

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
            for number in range(self.setup.volumes):
                self.ask(0, "new-current-uuid", volume=number, clear_bitmap=True)
        else:
            self.ask(0, "primary", force=True)
        self.until(lambda: self.in_sync, 600_000, "the first sync")
        self.ask(0, "secondary")

    def serve(self, node: int, volume: int = 0) -> App:
        """An application on this node (which becomes Primary for it)."""
        app = App(self, node, volume)
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

    def volume(self, index: int, number: int = 0) -> Volume:
        return self.node(index).volumes[number]

    def op(self, number: int) -> Any:
        info = self.world.ffi.new("struct re_sim_op_info *")
        if not self.world.lib.re_sim_op_info(self.world.sim, number, info):
            raise SimFailure(f"no operation {number}")
        return info

    def state(self, index: int, number: int = 0) -> tuple[Role, ConnectionState, DiskState, DiskState]:
        node = self.shells[index].node
        if node is None:
            return Role.UNKNOWN, ConnectionState.STANDALONE, DiskState.DISKLESS, DiskState.UNKNOWN
        state = node.volumes[number].state
        conn = node.cstate if node.cstate < ConnectionState.CONNECTED else state.conn
        return node.role, conn, state.disk, state.pdsk

    @property
    def connected(self) -> bool:
        return all(self.state(index)[1] >= ConnectionState.CONNECTED for index in (0, 1))

    @property
    def numbers(self) -> range:
        """Of the volumes."""
        return range(self.setup.volumes)

    @property
    def in_sync(self) -> bool:
        return all(map(self.volume_in_sync, self.numbers))

    def volume_in_sync(self, number: int) -> bool:
        nodes = [shell.node for shell in self.shells]
        return all(n is not None and n.is_connected and n.volumes[number].is_in_sync for n in nodes)

    @property
    def stand_alone(self) -> bool:
        return all(s.node is not None and s.node.cstate == ConnectionState.STANDALONE for s in self.shells)

    def dirty_bits(self, index: int, number: int = 0) -> int:
        node = self.node(index)
        return node.dirty_bits(node.volumes[number])

    def describe(self) -> str:
        texts = []
        for shell in self.shells:
            text = "; ".join("/".join(map(str, self.state(shell.index, n))) for n in self.numbers)
            text = text if shell.node is not None else "not running"
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

    def differing(self, number: int = 0, *, layer: int = 0) -> int:
        a, b = (s.places[number].data.number for s in self.shells)  # type: ignore[attr-defined]
        return self.world.differing(a, b, self.device_bytes, layer=layer)

    def check_equal(self) -> None:
        """P5: byte-identical, bitmaps clear."""
        for number in self.numbers:
            if bits := self.differing(number):
                raise SimFailure(f"P5: {bits.bit_count()} blocks differ on nodes in sync: {marks.numbers(bits)}")
            for index in (0, 1):
                if dirty := self.dirty_bits(index, number):
                    raise SimFailure(f"P5: node {index} is in sync and has {dirty} dirty bits")

    def wait_idle(self) -> None:
        """Nothing is on its way any more (an open epoch is, perhaps: its writes are on both disks)."""
        self.until(lambda: all(map(self._is_idle, (0, 1))), 30_000, "idle disks and clear bitmaps")
        self.run(2 * self.setup.latency_max_us / 1000 + 5)  # an asynchronous write may still be between the sockets
        self.until(lambda: all(map(self._is_idle, (0, 1))), 30_000, "idle disks and clear bitmaps")
        if any(self.node(index).settings.net.protocol == 1 for index in (0, 1)):  # a slow link may have much to bring
            self.wait(lambda: not any(map(self.differing, self.numbers)), 30_000)
            self.until(lambda: all(map(self._is_idle, (0, 1))), 30_000, "idle disks and clear bitmaps")

    def _is_idle(self, index: int) -> bool:
        for number in self.numbers:
            stats = self.node(index).stats.volume_stats(number)
            busy = stats is None or stats.upper_pending or stats.lower_pending or stats.unacked
            if busy or self.dirty_bits(index, number):
                return False
        return all(disk.in_flight == 0 for disk in self.shells[index].disks)

    def covered_on_disk(self, index: int, *, layer: int = 0) -> int:
        """The blocks that a restart of this node would take for different, as the bits of a number."""
        return marks.covered(self.shells[index].place, layer=layer)

    def check_coverage(self, when: str, *, layer: int = 0) -> None:
        """P4 on the images as they are: what differs is known to the metadata on at least one disk."""
        for number in self.numbers:
            if not (bits := self.differing(number, layer=layer)):
                continue
            for shell in self.shells:
                bits &= ~marks.covered(shell.places[number], layer=layer)
            if bits:
                raise SimFailure(
                    f"P4 ({when}, layer {layer}): {bits.bit_count()} blocks differ and are on no disk's bitmap or "
                    f"activity log: {marks.numbers(bits)} ({self.describe()})"
                )

    def check_each_side(self, when: str) -> None:
        """P4 and P6 of a resync: each side's bitmap in memory knows every block that is not stable at the target.

        Blocks of hot extents are left out: writes on their way are known to the activity log of the Primary alone.
        """
        running = {ConnectionState.SYNC_SOURCE, ConnectionState.PAUSED_SYNC_S}
        for number in self.numbers:
            states = [self.state(index, number)[1] for index in (0, 1)]
            source = next((i for i in (0, 1) if states[i] in running), -1)
            if source < 0 or states[1 - source] not in (ConnectionState.SYNC_TARGET, ConnectionState.PAUSED_SYNC_T):
                continue
            for layer in (0, 1):
                bits = self.differing(number, layer=layer)
                for shell in self.shells:
                    bits &= ~marks.hot(shell.places[number], layer=layer) if bits else 0
                for index in (0, 1) if bits else ():
                    left = bits & ~self.memory_bits(index, number)
                    if index != source and left.bit_count() <= self._lost_bits(source, number):
                        continue  # pass_on: what the source has failed to write is known to that one alone
                    if left:
                        raise SimFailure(
                            f"P4 ({when}, layer {layer}): the {'source' if index == source else 'target'} (node "
                            f"{index}) does not know {left.bit_count()} blocks that differ: {marks.numbers(left)}"
                        )

    def _lost_bits(self, source: int, number: int) -> int:
        stats = self.node(source).stats.volume_stats(number)
        return 0 if stats is None else stats.resync_lost_bits

    def memory_bits(self, index: int, number: int = 0) -> int:
        """The engine's bitmap."""
        return self.world.bitmap(index, number, self.device_bytes)

    def check_audit(self, index: int, modes: int = STRICT, what: str = "", *, number: int = 0) -> None:
        """The content of a node's disk against what was acknowledged."""
        disk: SimDisk = self.shells[index].places[number].data  # type: ignore[assignment]
        begin = number * self.device_bytes
        text = self.world.audit(self.history, disk.number, begin, self.device_bytes, modes=modes)
        if text:
            names = {0: "tags", 1: "P1 strict", 2: "P2 flushed", 4: "P3 causal", 8: "P1 acknowledged"}
            raise SimFailure(f"{names.get(modes, modes)} on node {index} {what}: {text} ({self.describe()})")

    def rebase(self, copies: list[int]) -> None:
        """From now on what these nodes have (by volume) counts as written last."""
        for number in self.numbers:
            disk: SimDisk = self.shells[copies[number]].places[number].data  # type: ignore[assignment]
            self.world.rebase(self.history, disk.number, number * self.device_bytes, self.device_bytes)

    def check_order(self, copies: list[int]) -> None:
        """P3 over all volumes of what these nodes have: they have one order of writes."""
        if len(copies) > 1:
            parts = []
            for number in self.numbers:
                disk: SimDisk = self.shells[copies[number]].places[number].data  # type: ignore[assignment]
                parts.append(disk.content(0, self.device_bytes))
            if text := self.world.audit_bytes(self.history, b"".join(parts), modes=CAUSAL):
                raise SimFailure(f"P3 causal over the volumes: {text} ({self.describe()})")

    def check_idle_pair(self) -> None:
        """Both in sync, nothing going on: P5, and the audit of both copies."""
        self.until(lambda: self.in_sync, 60_000, "both nodes in sync")
        self.wait_idle()
        self.check_equal()
        for number in self.numbers:
            self.check_audit(0, number=number)
