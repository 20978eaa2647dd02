# SPDX-License-Identifier: Apache-2.0
"""The resource's state machine: roles, disks, the connection; every change goes through :meth:`Node.transition`.

Inputs: events of the shell (see :mod:`repl.node.actions`).  Outputs: a list of actions.  Deterministic: randomness
comes from the callables passed in, time only from timers.  Order of a transition: metadata is stable before the engine
acts on the new state and before the peer hears of it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

from repl.drbd.layout import Layout
from repl.drbd.states import ConnectionState, DiskState, Role, StateWord, sanitize
from repl.drbd.superblock import MdFlag, flags_from_state
from repl.drbd.uuids import Uuids, set_primary
from repl.engine import commands as ec
from repl.engine.events import EngineStats, Event, EventType, Result, VolumeStats
from repl.errors import InternalError, ReplError
from repl.node import actions as act
from repl.node.commands import Commands
from repl.node.congestion import Congestion
from repl.node.connection import Connection
from repl.node.disk import Prepared
from repl.node.disks import Disks
from repl.node.fencing import DONT_CARE, Fencing
from repl.node.flow import Cancelled, Flow, Mutex, Promise, Scheduler
from repl.node.handlers import Handlers
from repl.node.late import LateMetadata, Step
from repl.node.net_options import NetOptions
from repl.node.resize import Measured, Resize
from repl.node.resync import ResyncControl
from repl.node.settings import NodeSettings
from repl.node.status import node_status
from repl.node.suspend import Suspension
from repl.node.undo import Undo, UndoFound
from repl.node.verify import VerifyControl
from repl.node.volume import Volume

T = TypeVar("T")
Change = Callable[[Volume, StateWord], StateWord]


class StatsReader(Protocol):
    """Counters of the engine, readable at any time."""

    def volume_stats(self, volume: int) -> VolumeStats | None: ...
    def engine_stats(self) -> EngineStats: ...


class Node:
    """One resource on one node."""

    def __init__(
        self,
        settings: NodeSettings,
        *,
        random: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        stats: StatsReader,
        clock_ms: Callable[[], int],
        wall_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.settings = settings
        self.random = random
        self.random_bytes = random_bytes
        self.stats = stats
        self.clock_ms = clock_ms  # for what people are shown; decisions depend on timers only
        self.wall_s = wall_s  # seconds since 1970, for the age of results
        self.role = Role.SECONDARY
        self.peer_role = Role.UNKNOWN
        self.cstate = ConnectionState.STANDALONE
        self.reason = ""  # why the connection is down for good, or what happened last
        self.reason_code = ""
        self.advice = ""
        self.is_up = False
        self.auto_promoted = False
        self.writes_ended = False  # the last demotion has waited for all of them, on both nodes
        has_fencing = settings.net.fencing != DONT_CARE
        self.volumes = {v.number: Volume(v, has_fencing=has_fencing) for v in settings.volumes}
        self.scheduler = Scheduler()
        self.connection = Connection(self)
        self.resync = ResyncControl(self)
        self.net_options = NetOptions(self)
        self.verify = VerifyControl(self)
        self.congestion = Congestion(self)
        self.disks = Disks(self)
        self.undo = Undo(self)
        self.resize = Resize(self)
        self.late = LateMetadata(self)
        self.commands = Commands(self)
        self.handlers = Handlers(self)
        self.fencing = Fencing(self)
        self.suspension = Suspension(self)
        self._actions: list[act.Action] = []
        self._sequence = 0
        self._cookies: dict[int, Promise[Event]] = {}
        self._next_cookie = 1
        self._timers: dict[int, Promise[None]] = {}
        self._next_timer = 1
        self._lock = Mutex()
        self._watchers: list[tuple[Callable[[], bool], Promise[None]]] = []
        self._waiting: dict[object, Flow[None]] = {}

    # ---- the shell's side ----

    def take_actions(self) -> list[act.Action]:
        """What the shell has to do now, in this order."""
        self.scheduler.run()
        taken, self._actions = self._actions, []
        return taken

    def engine_event(self, event: Event) -> None:
        """An event of the engine."""
        if event.type is EventType.DONE:
            promise = self._cookies.pop(event.cookie, None)
            if promise is not None:
                promise.keep(event)
        elif event.type in (EventType.PACKET, EventType.STREAM_CLOSED, EventType.LINK_LOST):
            self.connection.engine_event(event)
        elif event.type in (EventType.BITMAP_RECEIVED, EventType.RESYNC_FINISHED):
            self.resync.engine_event(event)
        elif event.type in (EventType.VERIFY_RANGE, EventType.VERIFY_FINISHED):
            self.verify.engine_event(event)
        elif event.type is EventType.UNDO_FAILED:
            self.undo.engine_failed(event)
        elif event.type in (EventType.CONGESTED, EventType.CONGESTION_OVER):
            self.congestion.engine_event(event)
        elif event.type is EventType.DISK_ERROR:
            self.disks.engine_error(event)
        self.scheduler.run()

    def timer(self, timer_id: int) -> None:
        """A timer that was asked for has run out."""
        promise = self._timers.pop(timer_id, None)
        if promise is not None:
            promise.keep(None)
        self.scheduler.run()

    def accepted(self, fd: int, source: str = "") -> None:
        """Somebody connected to the replication listener."""
        self.connection.accepted(fd, source)
        self.scheduler.run()

    def dialled(self, dial_id: int, fd: int) -> None:
        """A :class:`Dial` has succeeded."""
        self.connection.dialled(dial_id, fd)
        self.scheduler.run()

    def dial_failed(self, dial_id: int, reason: str) -> None:
        """A :class:`Dial` has failed."""
        self.connection.dial_failed(dial_id, reason)
        self.scheduler.run()

    def listen_failed(self, reason: str) -> None:
        """The replication listener cannot be opened (the shell goes on trying)."""
        self.keep_reason("listen-failed", f"cannot listen for the peer: {reason}")
        self.emit("listen", f"cannot listen for the peer: {reason}", level="error")

    def disk_opened(self, volume: int, prepared: Prepared) -> None:
        """Answer to :class:`OpenDisk`."""
        self.disks.opened(volume, prepared)
        self.scheduler.run()

    def disk_failed(self, volume: int, error: Exception) -> None:
        """Answer to :class:`OpenDisk`."""
        self.disks.open_failed(volume, error)
        self.scheduler.run()

    def disk_closed(self, volume: int) -> None:
        """Answer to :class:`CloseDisk`."""
        self.disks.closed(volume)
        self.scheduler.run()

    def handler_done(self, handler_id: int, status: int) -> None:
        """Answer to :class:`RunHandler`."""
        self.handlers.done(handler_id, status)
        self.scheduler.run()

    def other_resync(self, resource: str, volume: int, busy: bool) -> None:
        """Answer to :class:`WatchResync`, whenever it changes."""
        self.resync.pauses.other_changed(resource, volume, busy)
        self.scheduler.run()

    def remembered(self, key: str, values: dict[str, Any]) -> None:
        """What a :class:`Remember` of an earlier life kept."""
        if key == "verify":
            self.verify.restore(values)
    def undo_opened(self, volume: int, found: UndoFound) -> None:
        """Answer to :class:`OpenUndo`."""
        self.undo.opened(volume, found)
        self.scheduler.run()

    def undo_failed(self, volume: int, error: Exception) -> None:
        """Answer to :class:`OpenUndo`."""
        self.undo.open_failed(volume, error)
        self.scheduler.run()

    def undo_closed(self, volume: int) -> None:
        """A client that was opened with the verb "undo-open" is gone."""
        if volume in self.volumes:
            self.undo.closed(self.volumes[volume])

    def disk_measured(self, volume: int, layout: Layout, usable_sectors: int) -> None:
        """Answer to :class:`MeasureDisk`."""
        self.resize.measured(volume, Measured(layout, usable_sectors))
        self.scheduler.run()

    def measure_failed(self, volume: int, error: Exception) -> None:
        """Answer to :class:`MeasureDisk`."""
        self.resize.measure_failed(volume, error)
        self.scheduler.run()

    def nbd_closed(self, volume: int) -> None:
        """A client that was opened with the verb "nbd-open" is gone."""
        self.commands.nbd_closed(volume)
        self.scheduler.run()

    def command(self, token: object, verb: str, args: dict[str, Any]) -> None:
        """Carry out a verb; ends with exactly one Reply for this token."""

        async def run() -> None:
            try:
                result = await self.commands.run(verb, args)
            except ReplError as error:
                self.act(act.Reply(token, error=error))
            except Cancelled as error:
                self.act(act.Reply(token, error=ReplError(f"{verb}: given up ({error}).")))
            else:
                self.act(act.Reply(token, result))
                if verb == "down":
                    self.act(act.Exit())

        flow = self.start(run(), f"command {verb}")
        if verb.startswith("wait-"):
            self._waiting[token] = flow
            flow.done.when_done(lambda: self._forget_waiting(token))
        self.scheduler.run()

    def _forget_waiting(self, token: object) -> None:
        self._waiting.pop(token, None)

    def cancel(self, token: object) -> None:
        """Nobody wants the answer to this command any more: a wait ends, anything else is carried through."""
        flow = self._waiting.get(token)
        if flow is not None:
            flow.cancel("nobody waits for it any more")
        self.scheduler.run()

    def keep_reason(self, code: str, text: str, advice: str = "") -> None:
        """What stands between this node and its peer, for whoever looks."""
        self.reason_code, self.reason, self.advice = code, text, advice

    def forget_reason(self) -> None:
        self.reason_code = self.reason = self.advice = ""

    def status(self) -> dict[str, Any]:
        """Everything a person may want to know now; plain values."""
        return node_status(self)

    # ---- for the parts of the node ----

    def act(self, action: act.Action) -> None:
        self._actions.append(action)

    def emit(self, kind: str, message: str, *, level: str = "info", volume: int = -1, **fields: Any) -> None:
        """One event, from which the log line is made."""
        self._sequence += 1
        self.act(act.StateEvent(self._sequence, kind, message, level, volume, fields))

    def start(self, coroutine: Coroutine[Any, Any, T], name: str) -> Flow[T]:
        """Run a procedure; an unexpected error in it is a bug and is reported as one."""
        flow = self.scheduler.start(coroutine, name)

        def ended() -> None:
            try:
                flow.done.result()
            except (Cancelled, ReplError) as error:
                if isinstance(error, InternalError):
                    self.emit("bug", f"{name}: {error}", level="error")
            except Exception as error:
                self.emit("bug", f"{name}: {type(error).__name__}: {error}", level="error")
                raise

        flow.done.when_done(ended)
        return flow

    def send(self, command: ec.Command) -> None:
        """Give the engine a command that has no answer."""
        self.act(act.EngineCommand(command))

    def ask(self, command: ec.Command) -> Promise[Event]:
        """Give the engine a command and promise its DONE event."""
        cookie = self._next_cookie
        self._next_cookie += 1
        promise: Promise[Event] = Promise()
        self._cookies[cookie] = promise
        self.act(act.EngineCommand(command, cookie))
        return promise

    async def ask_ok(self, command: ec.Command) -> bool:
        """Wait for the answer; True if it was carried out."""
        return (await self.ask(command)).status is Result.OK

    def after(self, delay_ms: int) -> tuple[int, Promise[None]]:
        """A timer; its id is for :meth:`forget_timer`."""
        timer_id = self._next_timer
        self._next_timer += 1
        promise: Promise[None] = Promise()
        self._timers[timer_id] = promise
        self.act(act.SetTimer(timer_id, max(0, delay_ms)))
        return timer_id, promise

    def forget_timer(self, timer_id: int) -> None:
        if self._timers.pop(timer_id, None) is not None:
            self.act(act.CancelTimer(timer_id))

    async def pause(self, delay_ms: int) -> None:
        """Let time pass."""
        timer_id, promise = self.after(delay_ms)
        try:
            await promise
        finally:
            self.forget_timer(timer_id)

    async def within(self, promise: Promise[T], delay_ms: int | None) -> T | None:
        """The promise's value, or None when the time is over first (None: no limit)."""
        if delay_ms is None:
            return await promise
        either: Promise[bool] = Promise()
        timer_id, timer = self.after(delay_ms)
        promise.when_done(lambda: either.keep(True))
        timer.when_done(lambda: either.keep(False))
        try:
            if await either:
                return promise.result()
            return None
        finally:
            self.forget_timer(timer_id)

    def watch(self, condition: Callable[[], bool]) -> Promise[None]:
        """Kept when the condition holds after some transition."""
        promise: Promise[None] = Promise()
        if condition():
            promise.keep(None)
        else:
            self._watchers.append((condition, promise))
        return promise

    def unwatch(self, promise: Promise[None]) -> None:
        """The watcher gives up."""
        self._watchers = [entry for entry in self._watchers if entry[1] is not promise]

    def notify_watchers(self) -> None:
        """Something changed that a watcher may wait for."""
        still: list[tuple[Callable[[], bool], Promise[None]]] = []
        for condition, promise in self._watchers:
            if condition():
                promise.keep(None)
            else:
                still.append((condition, promise))
        self._watchers = still

    def dirty_bits(self, volume: Volume) -> int:
        stats = self.stats.volume_stats(volume.number)
        return stats.out_of_sync_bits if stats is not None and volume.attached else 0

    @property
    def is_connected(self) -> bool:
        return self.cstate >= ConnectionState.CONNECTED

    @property
    def is_settled(self) -> bool:
        """Connected, and every volume's states have followed."""
        return self.is_connected and all(v.state.conn >= ConnectionState.CONNECTED for v in self.volumes.values())

    # ---- transitions ----

    def exclusively(self) -> Mutex:
        """``async with``: no transition takes place meanwhile."""
        return self._lock

    async def metadata_is_stable(self, volume: Volume | None = None) -> None:
        """Every transition that was under way has its metadata on the disk (that of ``volume`` even if it is late)."""
        if volume is not None:
            await self.late.settled(volume)
        async with self._lock:
            pass

    async def refuse_writes(self) -> None:
        """The engine ends the clients' writes with an error from now on."""
        async with self._lock:
            for volume in self.volumes.values():
                self.tell_engine(volume, replace(volume.state, role=Role.SECONDARY))

    async def transition(
        self,
        change: Change,
        *,
        uuids: Callable[[Volume], Uuids] | None = None,
        role: Role | None = None,
        peer_role: Role | None = None,
        cstate: ConnectionState | None = None,
        full_sync: bool | None = None,
        only: Volume | None = None,
        reason: str = "",
        goes_on: bool = False,
    ) -> None:
        """Change states of all volumes (or ``only`` one): metadata first, then the engine, then the log.

        ``change`` and ``uuids`` are called with the state as it is when the transition has its turn.
        ``goes_on``: do not wait for volumes whose metadata does not answer (see :mod:`repl.node.late`).
        """
        late: list[Promise[None]] = []
        step = Step(change, uuids, full_sync, reason)
        async with self._lock:
            if role is not None:
                self._log_change("role", self.role, role, reason=reason)
                self.role = role
            if peer_role is not None and peer_role != self.peer_role:
                self._log_change("peer", self.peer_role, peer_role, reason=reason)
                self.peer_role = peer_role
            if cstate is not None and cstate != self.cstate:
                self._log_change("connection", self.cstate, cstate, reason=reason)
                self.cstate = cstate
            targets = [only] if only is not None else list(self.volumes.values())
            for volume in targets:
                if not self.late.holds(volume) and self.ends_replay(volume, step):
                    written = self.write_bitmap(volume)
                    await self.late.in_time([written])
                    if not written.is_done:
                        self.late.hold(volume, written, lambda: None)
            late += [self.late.defer(volume, step) for volume in targets if self.late.holds(volume)]
            targets = [volume for volume in targets if not self.late.holds(volume)]
            wanted = {v.number: change(v, v.state) for v in targets}  # once: it may take a disk over
            planned = [(v, wanted.get(v.number, v.state)) for v in self.volumes.values()]
            self.suspension.observe([(v, self._sanitized(v, state)) for v, state in planned])
            plans: list[tuple[Volume, StateWord, Promise[Event] | None]] = []
            for volume, state in planned:
                if self.late.holds(volume) or (volume not in targets and self._sanitized(volume, state) == state):
                    continue
                plans.append((volume, *self.plan(volume, state, step if volume in targets else Step())))
            await self.late.in_time([write for _, _, write in plans if write is not None])
            for volume, after, write in plans:
                if write is None or write.is_done:
                    self.apply(volume, after, reason)
                    continue
                waits = self.late.hold(volume, write, partial(self.apply, volume, after, reason))
                if volume in targets:
                    late.append(waits)
        self.resync.pauses.look()
        self.notify_watchers()
        for promise in late if not goes_on else ():
            await promise

    def plan(self, volume: Volume, state: StateWord, step: Step) -> tuple[StateWord, Promise[Event] | None]:
        """The state that follows, and the write that makes it stable if one is needed."""
        after = self._sanitized(volume, state)
        if after.disk == DiskState.UP_TO_DATE and after.pdsk == DiskState.UP_TO_DATE:
            volume.crashed_primary = volume.has_left_over = False
        uuids = step.uuids(volume) if step.uuids is not None else volume.uuids
        uuids = set_primary(uuids, self.role == Role.PRIMARY) if uuids.current else uuids
        block = volume.superblock_for(after, uuids, full_sync=step.full_sync)
        volume.uuids = uuids
        if block is None:
            return after, None
        volume.superblock = block
        data = block.serialise()
        if data == volume.written:
            return after, None
        volume.written = data
        return after, self._written(volume, self.ask(ec.MdWrite(volume.number, data)))

    @staticmethod
    def _written(volume: Volume, write: Promise[Event]) -> Promise[Event]:
        def done() -> None:
            volume.has_lost_metadata = volume.has_lost_metadata or write.result().status is not Result.OK

        write.when_done(done)
        return write

    def apply(self, volume: Volume, after: StateWord, reason: str) -> None:
        """Its metadata is stable."""
        before, volume.state = volume.state, after
        volume.follow_service()
        self._log_volume(volume, before, after, reason)
        self.verify.state_changed(volume, before, after)
        self.tell_engine(volume)

    def tell_engine(self, volume: Volume, state: StateWord | None = None) -> None:
        """What the engine acts on; application I/O of a volume whose metadata is late is frozen."""
        told = self._engine_state(volume.state if state is None else state)
        if self.late.holds(volume):
            told = replace(told, suspended=True)
        self.send(ec.VolumeState(volume.number, told))

    def _sanitized(self, volume: Volume, state: StateWord) -> StateWord:
        return sanitize(self._with_node_states(state), negotiating_falls_to=volume.falls_to)

    def write_bitmap(self, volume: Volume) -> Promise[Event]:
        """Instead of the activity log; it flushes the data as well.  If it fails the next attach has to replay that."""
        write = self.ask(ec.BitmapWrite(volume.number))

        def done() -> None:
            volume.needs_replay = write.result().status is not Result.OK

        write.when_done(done)
        return write

    def ends_replay(self, volume: Volume, step: Step) -> bool:
        """The next attach will not mark the activity log's extents any more: the bitmap has to say all of it."""
        if not volume.attached or volume.superblock is None:
            return False
        after = self._sanitized(volume, step.change(volume, volume.state))
        flags = volume.superblock.flags
        return MdFlag.PRIMARY_IND in flags and MdFlag.PRIMARY_IND not in flags_from_state(flags, after)

    def _with_node_states(self, state: StateWord) -> StateWord:
        conn = state.conn if self.cstate >= ConnectionState.CONNECTED else self.cstate
        if self.cstate >= ConnectionState.CONNECTED and conn < ConnectionState.CONNECTED:
            conn = ConnectionState.CONNECTED
        return StateWord(
            role=self.role,
            peer=self.peer_role,
            conn=conn,
            disk=state.disk,
            pdsk=state.pdsk,
            aftr_isp=state.aftr_isp,
            peer_isp=state.peer_isp and conn >= ConnectionState.CONNECTED,
            user_isp=state.user_isp,
            susp=self.suspension.user,
            susp_nod=self.suspension.no_data,
            susp_fen=self.suspension.fencing,
            pad=0,
        )

    def _engine_state(self, state: StateWord) -> ec.State:
        return ec.State(
            role=int(state.role),
            peer_role=int(state.peer),
            connection=int(state.conn),
            disk=int(state.disk),
            peer_disk=int(state.pdsk),
            suspended=state.suspended,
            no_data_waits=self.suspension.waits_for_data,
        )

    def _log_change(self, field: str, old: object, new: object, *, reason: str, volume: int = -1) -> None:
        if old != new:
            because = f" ({reason})" if reason else ""
            self.emit(
                "change", f"{field} {old} -> {new}{because}", volume=volume, field=field, old=str(old), new=str(new)
            )

    def _log_volume(self, volume: Volume, before: StateWord, after: StateWord, reason: str) -> None:
        number = volume.number
        self._log_change("disk", before.disk, after.disk, reason=reason, volume=number)
        self._log_change("peer-disk", before.pdsk, after.pdsk, reason=reason, volume=number)
        if after.conn >= ConnectionState.CONNECTED:
            self._log_change("replication", before.conn, after.conn, reason=reason, volume=number)
