# SPDX-License-Identifier: Apache-2.0
"""The shell of one simulated node: carries out what ``repl.node.node.Node`` wants in the simulator's world.

The same rule as in repl/daemon/shell.py: after every call of the node its actions are taken and carried out in order.
What takes time in production takes time here: opening a disk, and everything the world delays by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from repl.drbd.layout import Layout
from repl.engine import commands as ec
from repl.engine.events import (
    EngineStats,
    Event,
    EventType,
    VolumeStats,
    decode_engine_stats,
    decode_event,
    decode_volume_stats,
)
from repl.errors import DiskFailed, MetadataError, ReplError
from repl.node import actions as act
from repl.node import disk as node_disk
from repl.node.disk import DiskPlace
from repl.node.moved import LastDisk
from repl.node.node import Node
from repl.node.settings import NodeSettings
from repl.node.undo import UndoFound
from tests.sim.world import MS, Notice, SimDisk, World

PORT = 7788
PEER_STREAMS = 16  # smaller stream numbers are the node's
DISK_OPEN_MAX_NS = 30 * MS

# A timer's id says whose it is: node (2 bits), kind (2), process (16), number (44).
HANDLER = 1 << 43  # in the number of a TIMER_DISK: a handler ends
TIMER_NODE, TIMER_DIAL, TIMER_DISK, TIMER_TEST = range(4)


@dataclass(slots=True, eq=False)
class Answer:
    """The reply to a command that was asked for."""

    verb: str
    is_done: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    when_done: Callable[[Answer], None] | None = None


@dataclass(frozen=True)
class Script:
    """What a handler does in the simulator: ends with ``status`` after ``delay_ms``; None: it hangs for ever."""

    status: int | None = 0
    delay_ms: int = 0


class _Stats:
    def __init__(self, world: World, index: int) -> None:
        self._world, self._index = world, index

    def volume_stats(self, volume: int) -> VolumeStats | None:
        stats = self._world.lib.re_sim_volume_stats(self._world.sim, self._index, volume)
        return None if stats == self._world.ffi.NULL else decode_volume_stats(stats)

    def engine_stats(self) -> EngineStats:
        stats = self._world.lib.re_sim_engine_stats(self._world.sim, self._index)
        return EngineStats() if stats == self._world.ffi.NULL else decode_engine_stats(stats)


class NodeShell:
    """One machine: disks that outlive its processes, and at most one process."""

    def __init__(
        self,
        world: World,
        index: int,
        settings: NodeSettings,
        places: list[DiskPlace],
        *,
        log: Callable[[str], None],
        on_state: Callable[[int], None],
        engine_config: dict[str, int] | None = None,
        pair: tuple[int, int] = (0, 1),
    ) -> None:
        self.published: dict[int, bool] = {}  # resyncs that others on this host wait for
        self.watched: set[tuple[str, int]] = set()
        self.world = world
        self.index = index
        self.peer = pair[1] if index == pair[0] else pair[0]
        self.settings = settings
        self.places = places  # by volume
        self.engine_config = engine_config or {}
        self.node: Node | None = None
        self.is_powered = True
        self.state_events: list[act.StateEvent] = []
        self.scripts: dict[str, Script] = {}  # by handler name, for those that the settings have; default: status 0
        self.handler_calls: list[act.RunHandler] = []
        self.remembered: dict[str, dict[str, Any]] = {}
        self.on_engine_state: Callable[[int, ec.State], None] | None = None  # every state that the engine is told
        self.undo_disks: dict[int, tuple[SimDisk, SimDisk]] = {}  # overlay and map
        self.undo_facts: dict[int, dict[str, Any]] = {}  # of the undos that exist
        self.on_undo: Callable[[int, int], None] | None = None  # one begins: node, volume
        self.last_disks: dict[int, LastDisk] = {}  # lasting, as the daemon's records
        self.answer_measure: Callable[[Callable[[], None]], None] = lambda answer: answer()  # it may take its time
        self.answer_close = self.answer_measure
        self._log = log
        self._on_state = on_state
        self._process = 0
        self._answers: list[Answer] = []
        self._listener = -1
        self._dials: dict[int, int] = {}  # the world's number -> the node's
        self._streams: dict[int, int] = {}  # NBD stream -> volume
        self._opening: set[int] = set()
        self._handlers: dict[int, int] = {}  # running -> status
        self._is_acting = False
        self._is_stopping = False
        self._frozen: list[Callable[[], object]] | None = None  # what waits for the process to go on

    # ---- life ----

    @property
    def is_running(self) -> bool:
        return self.node is not None

    @property
    def place(self) -> DiskPlace:
        return self.places[0]

    @property
    def disks(self) -> list[SimDisk]:
        """Each once."""
        found = {id(f): f for place in self.places for f in (place.data, place.md)}
        return list(found.values())  # type: ignore[arg-type]

    @property
    def md(self) -> SimDisk:
        return self.place.md  # type: ignore[return-value]

    @property
    def data(self) -> SimDisk:
        return self.place.data  # type: ignore[return-value]

    def start(self) -> None:
        """A process starts; it is not up yet."""
        assert self.node is None and self.is_powered
        self._process += 1
        self._is_stopping = False
        config = self.world.struct("re_sim_engine_config", **self.engine_config)
        self.world.lib.re_sim_engine_start(self.world.sim, self.index, config)
        self.node = Node(
            self.settings,
            random=self.world.random64,
            random_bytes=self.world.random_bytes,
            stats=_Stats(self.world, self.index),
            clock_ms=lambda: self.world.now // MS,
        )
        self._log(f"node {self.index}: process {self._process} starts")

    def crash(self) -> None:
        """The process dies; what it has written to the disk stays."""
        self._log(f"node {self.index}: process dies")
        self.world.lib.re_sim_engine_crash(self.world.sim, self.index)
        self._forget("the process died")

    def power_off(self) -> None:
        self._log(f"node {self.index}: loses power")
        self.world.lib.re_sim_power_off(self.world.sim, self.index)
        self.is_powered = False
        self._forget("power was lost")

    def power_on(self) -> None:
        self._log(f"node {self.index}: power is back")
        self.world.lib.re_sim_power_on(self.world.sim, self.index)
        self.is_powered = True

    def freeze(self, on: bool) -> None:
        """The whole process stands still; timers and commands wait."""
        self._log(f"node {self.index}: the process {'stands still' if on else 'goes on'}")
        self.world.lib.re_sim_engine_freeze(self.world.sim, self.index, on)
        waiting, self._frozen = self._frozen or [], [] if on else None
        for call in waiting:
            call()

    def _forget(self, why: str) -> None:
        self.node = None
        self._frozen = None
        self._listener = -1
        self._dials.clear()
        self._streams.clear()
        self._opening.clear()
        self._handlers.clear()
        answers, self._answers = self._answers, []
        for answer in answers:
            answer.is_done, answer.error = True, ReplError(f"{answer.verb}: {why}.")
            if answer.when_done:
                answer.when_done(answer)

    # ---- calls of the node ----

    def command(self, verb: str, args: dict[str, Any], when_done: Callable[[Answer], None] | None = None) -> Answer:
        answer = Answer(verb, when_done=when_done)
        if self.node is None:
            answer.is_done, answer.error = True, ReplError(f"{verb}: nothing is running.")
            if when_done:
                when_done(answer)
            return answer
        self._answers.append(answer)
        self._call(lambda node: node.command(answer, verb, args))
        return answer

    def nbd_open(self, fd: int, when_done: Callable[[Answer, int], None], volume: int = 0) -> None:
        """Negotiation of a client that wants to write; ends with its stream, or -1."""

        def opened(answer: Answer) -> None:
            if answer.error is not None or self.node is None:
                self.world.lib.re_sim_socket_close(self.world.sim, fd)
                when_done(answer, -1)
                return
            stream = next(n for n in range(PEER_STREAMS, ec.STREAMS_MAX) if n not in self._streams)
            self._streams[stream] = volume
            self._engine(ec.NbdAdd(volume, stream, ec.Nbd(fd=fd)), 0)
            when_done(answer, stream)

        self.command("nbd-open", {"volume": volume}, opened)

    def _call(self, call: Callable[[Node], None]) -> None:
        if self.node is None:
            return
        if self._frozen is not None:
            self._frozen.append(lambda: self._call(call))
            return
        call(self.node)
        self._act()

    def _act(self) -> None:
        if self._is_acting:
            return
        self._is_acting = True
        try:
            while self.node is not None and (actions := self.node.take_actions()):
                for action in actions:
                    self._carry_out(action)
        finally:
            self._is_acting = False
        if self.node is not None:
            self._on_state(self.index)

    # ---- actions ----

    def _carry_out(self, action: act.Action) -> None:
        world, lib = self.world, self.world.lib
        match action:
            case act.EngineCommand(command=command, cookie=cookie):
                if isinstance(command, ec.VolumeState) and self.on_engine_state is not None:
                    self.on_engine_state(command.volume, command.state)
                self._engine(command, cookie)
            case act.SetTimer(timer_id=timer_id, delay_ms=delay_ms):
                world.timer(world.now + delay_ms * MS, self._timer(TIMER_NODE, timer_id))
            case act.CancelTimer(timer_id=timer_id):
                lib.re_sim_timer_cancel(world.sim, self._timer(TIMER_NODE, timer_id))
            case act.Listen(on=True):
                if self._listener < 0:
                    self._listener = lib.re_sim_listen(world.sim, self.index, PORT)
                    if self._listener < 0:
                        self._call(lambda node: node.listen_failed(os.strerror(-self._listener)))
            case act.Listen():
                if self._listener >= 0:
                    lib.re_sim_unlisten(world.sim, self._listener)
                    self._listener = -1
            case act.Dial(dial_id=dial_id, timeout_ms=timeout_ms):
                number = lib.re_sim_dial(world.sim, self.index, self.peer, PORT)
                self._dials[number] = dial_id
                world.timer(world.now + timeout_ms * MS, self._timer(TIMER_DIAL, number))
            case act.CloseFd(fd=fd):
                lib.re_sim_socket_close(world.sim, fd)
            case act.OpenDisk(volume=volume):
                self._opening.add(volume)
                world.timer(world.now + world.random(DISK_OPEN_MAX_NS), self._timer(TIMER_DISK, volume))
            case act.MeasureDisk():
                layout, usable = node_disk.measure(
                    self.place, al_stripes=action.al_stripes, al_stripe_size_4k=action.al_stripe_size_4k
                )
                self.answer_measure(lambda: self._call(lambda node: node.disk_measured(action.volume, layout, usable)))
            case act.CloseDisk(volume=volume):
                self.answer_close(lambda: self._call(lambda node: node.disk_closed(volume)))
            case act.OpenUndo(volume=volume, facts=facts):
                self._open_undo(volume, facts)
            case act.CloseUndo(volume=volume, is_deleted=is_deleted):
                if is_deleted:
                    self.undo_facts.pop(volume, None)
            case act.Reply(token=answer, result=result, error=error):
                assert answer in self._answers, "a second reply to one command"
                self._answers.remove(answer)
                if error is not None:
                    self._log(f"node {self.index}: {answer.verb} refused: {error}")
                answer.is_done, answer.result, answer.error = True, result, error
                if answer.when_done:
                    answer.when_done(answer)
            case act.StateEvent():
                if action.kind == "size" and action.volume in self.last_disks:
                    last = self.last_disks[action.volume]
                    self.last_disks[action.volume] = replace(last, size_bytes=action.fields["device_bytes"])
                self.state_events.append(action)
                where = f"/{action.volume}" if action.volume > 0 else ""
                self._log(f"node {self.index}{where}: [{action.kind}] {action.message}")
                assert action.kind != "bug", action.message
            case act.PublishResync(volume=volume, busy=busy):
                self.published[volume] = busy
            case act.WatchResync(resource=resource, volume=volume):
                self.watched.add((resource, volume))
            case act.RunHandler():
                self._run_handler(action)
            case act.Remember(key=key, values=values):
                self.remembered[key] = values
            case act.Exit():
                self._is_stopping = True
                self._engine(ec.Stop(), 0)

    def _open_undo(self, volume: int, facts: dict[str, Any]) -> None:
        """Its files are two more disks; their names and facts are stable at once."""
        size = int(facts["size_bytes"])
        if volume not in self.undo_disks or self.undo_disks[volume][0].size_bytes < size:
            pages = -(-size // (4096 * 8 * 4096))
            self.undo_disks[volume] = (
                SimDisk(self.world, self.index, -(-size // 4096) * 4096, f"undo{self.index}"),
                SimDisk(self.world, self.index, 4096 * (1 + pages), f"undo-map{self.index}"),
            )
        overlay, undo_map = self.undo_disks[volume]
        for disk in (overlay, undo_map):
            disk.load(0, bytes(disk.size_bytes))
        self.undo_facts[volume] = {**facts, "created_s": self.world.now / 1e9}
        if self.on_undo is not None:
            self.on_undo(self.index, volume)
        self._call(lambda node: node.undo_opened(volume, self._undo_found(volume)))

    def _undo_found(self, volume: int) -> UndoFound:
        overlay, undo_map = self.undo_disks[volume]
        return UndoFound(overlay.number, undo_map.number, self.undo_facts[volume])

    def _run_handler(self, action: act.RunHandler) -> None:
        self.handler_calls.append(action)
        script = self.scripts.get(action.name, Script())
        if script.status is not None:
            self._handlers[action.handler_id] = script.status
            timer = self._timer(TIMER_DISK, HANDLER | action.handler_id)
            self.world.timer(self.world.now + script.delay_ms * MS, timer)

    def _timer(self, kind: int, number: int) -> int:
        return self.index << 62 | kind << 60 | (self._process & 0xFFFF) << 44 | number

    def _engine(self, command: ec.Command, cookie: int) -> None:
        encoded, blob = ec.encode_command(self.world.ffi, command, cookie)
        self.world.lib.re_sim_command(self.world.sim, self.index, encoded, blob, len(blob))

    # ---- what the world tells ----

    def notice(self, n: Notice) -> None:
        lib = self.world.lib
        if self.node is None:
            if n.fd >= 0 and n.kind in (lib.RE_SIM_NOTICE_DIALED, lib.RE_SIM_NOTICE_ACCEPTED):
                lib.re_sim_socket_close(self.world.sim, n.fd)
        elif n.kind == lib.RE_SIM_NOTICE_ENGINE:
            self._take_events()
        elif n.kind == lib.RE_SIM_NOTICE_ACCEPTED:
            self._call(lambda node: node.accepted(n.fd))
        elif n.kind == lib.RE_SIM_NOTICE_DIALED:
            dial_id = self._dials.pop(n.id, -1)
            if dial_id < 0:
                if n.fd >= 0:
                    lib.re_sim_socket_close(self.world.sim, n.fd)
            elif n.error:
                self._call(lambda node: node.dial_failed(dial_id, os.strerror(n.error)))
            else:
                self._call(lambda node: node.dialled(dial_id, n.fd))

    def timer(self, kind: int, process: int, number: int) -> None:
        if self.node is None or process != self._process & 0xFFFF:
            return
        if self._frozen is not None:
            self._frozen.append(lambda: self.timer(kind, process, number))
            return
        if kind == TIMER_NODE:
            self._call(lambda node: node.timer(number))
        elif kind == TIMER_DIAL and number in self._dials:
            dial_id = self._dials.pop(number)
            self.world.lib.re_sim_dial_cancel(self.world.sim, number)
            self._call(lambda node: node.dial_failed(dial_id, "it took too long"))
        elif kind == TIMER_DISK and number & HANDLER:
            handler_id = number & ~HANDLER
            status = self._handlers.pop(handler_id)
            self._call(lambda node: node.handler_done(handler_id, status))
        elif kind == TIMER_DISK and number in self._opening:
            self._opening.discard(number)
            self._open_disk(number)

    def _open_disk(self, volume: int) -> None:
        try:
            place = self.places[volume]
            prepared = node_disk.prepare(
                place,
                size_limit_sectors=self.settings.volumes[volume].size_sectors,
                data_fd=place.data.number,  # type: ignore[attr-defined]
                md_fd=place.md.number,  # type: ignore[attr-defined]
                last=self.last_disks.get(volume),
            )
            self.last_disks[volume] = LastDisk(prepared.layout.device_bytes, prepared.superblock.device_uuid)
            if volume in self.undo_facts:
                prepared = replace(prepared, undo=self._undo_found(volume))
        except (MetadataError, DiskFailed) as error:
            failure = error
            if not self.world.lib.re_sim_is_doomed(self.world.sim, self.index):
                self._call(lambda node: node.disk_failed(volume, failure))
        else:
            self._call(lambda node: node.disk_opened(volume, prepared))

    def _take_events(self) -> None:
        world = self.world
        while self.node is not None and world.lib.re_sim_event(world.sim, self.index, world.event, world.blob):
            self._deliver(decode_event(world.ffi, world.event, world.blob))

    def _deliver(self, event: Event) -> None:
        if event.type is EventType.STOPPED:
            self._log(f"node {self.index}: process ends")
            self.world.lib.re_sim_engine_stop(self.world.sim, self.index)
            if self._listener >= 0:
                self.world.lib.re_sim_unlisten(self.world.sim, self._listener)
            for number in self._dials:
                self.world.lib.re_sim_dial_cancel(self.world.sim, number)
            self._forget("the process ended")
        elif event.type is EventType.NBD_CLOSED and event.stream >= PEER_STREAMS:
            volume = self._streams.pop(event.stream, None)
            if volume is not None:
                self._call(lambda node: node.nbd_closed(volume))
        else:
            self._call(lambda node: node.engine_event(event))

    # ---- looking ----

    @property
    def layout(self) -> Layout:
        return node_disk.find_superblock(self.place)[1]
