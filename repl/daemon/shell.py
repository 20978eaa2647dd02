# SPDX-License-Identifier: Apache-2.0
"""Runs one node: carries out its actions and delivers what comes of them.

Inputs: a :class:`NodeMachine` and an :class:`EnginePort` (both as protocols, so that tests bring their own), the
places of the link and the volumes.  Everything runs in the event loop's thread, except that disks are opened
and closed in threads of their own: a hung disk holds up nothing but itself.

The rule: after every call of the node its actions are taken and carried out in order; a call that an action
leads to (a reply that starts the next command) adds its actions behind.  An exception out of the node is a bug:
it is logged and the process ends (``on_fatal``), as after a crash nothing acknowledged is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from repl.config.model import VolumeView
from repl.daemon.disk_records import DiskRecords
from repl.daemon.disks import OpenedDisk, open_and_prepare
from repl.daemon.handlers import HandlerRunner
from repl.daemon.journal import Journal
from repl.daemon.link import LinkPlaces, LinkSockets
from repl.daemon.resync_order import ResyncOrder
from repl.daemon.run_dir import RunDir
from repl.daemon.undo_store import UndoStore
from repl.drbd.layout import Layout
from repl.engine import commands as ec
from repl.engine.events import Event, EventType, NbdEnd
from repl.errors import DiskFailed, ReplError, RequestRefused
from repl.node import actions as act
from repl.node import disk as node_disk
from repl.node.disk import Prepared
from repl.node.undo import UndoFound

EVENTS_PER_WAKE_MAX = 512
ENGINE_RETRY_S = 0.005
DISK_OPEN_TIMEOUT_S = 300.0
COMMANDS_MAX = 256
PEER_STREAMS = 16  # streams below this number are the node's, the others are NBD clients

_log = logging.getLogger("repl.daemon")


class EnginePort(Protocol):
    """The engine as the shell uses it."""

    @property
    def wake_fd(self) -> int: ...
    def command(self, command: ec.Command, cookie: int = 0) -> bool: ...
    def event(self) -> Event | None: ...


class NodeMachine(Protocol):
    """The node as the shell uses it."""

    def take_actions(self) -> list[act.Action]: ...
    def engine_event(self, event: Event) -> None: ...
    def timer(self, timer_id: int) -> None: ...
    def accepted(self, fd: int, source: str = "") -> None: ...
    def dialled(self, dial_id: int, fd: int) -> None: ...
    def dial_failed(self, dial_id: int, reason: str) -> None: ...
    def listen_failed(self, reason: str) -> None: ...
    def disk_opened(self, volume: int, prepared: Prepared) -> None: ...
    def disk_failed(self, volume: int, error: Exception) -> None: ...
    def disk_closed(self, volume: int) -> None: ...
    def disk_measured(self, volume: int, layout: Layout, usable_sectors: int) -> None: ...
    def measure_failed(self, volume: int, error: Exception) -> None: ...
    def command(self, token: object, verb: str, args: dict[str, Any]) -> None: ...
    def cancel(self, token: object) -> None: ...
    def nbd_closed(self, volume: int) -> None: ...
    def undo_opened(self, volume: int, found: UndoFound) -> None: ...
    def undo_failed(self, volume: int, error: Exception) -> None: ...
    def undo_closed(self, volume: int) -> None: ...
    def handler_done(self, handler_id: int, status: int) -> None: ...
    def other_resync(self, resource: str, volume: int, busy: bool) -> None: ...
    def status(self) -> dict[str, Any]: ...
    def remembered(self, key: str, values: dict[str, Any]) -> None: ...


Answer = Callable[[dict[str, Any], Exception | None], None]
DiskOpener = Callable[[VolumeView], tuple[OpenedDisk, Prepared]]


class _Token:
    """One command that is under way."""

    __slots__ = ("answer",)

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


class Shell:
    """The node's arms and legs."""

    def __init__(
        self,
        node: NodeMachine,
        engine: EnginePort,
        *,
        places: LinkPlaces,
        volumes: Mapping[int, VolumeView],
        journal: Journal,
        undos: UndoStore | None = None,
        records: DiskRecords | None = None,
        handlers: HandlerRunner,
        on_exit: Callable[[], None],
        on_fatal: Callable[[BaseException], None],
        disk_opener: DiskOpener | None = None,
        disk_timeout_s: float = DISK_OPEN_TIMEOUT_S,
        run_dir: RunDir | None = None,
    ) -> None:
        self.node = node
        self._order: ResyncOrder | None = None
        if run_dir is not None:
            self._order = ResyncOrder(
                run_dir.folder,
                run_dir.resource,
                lambda name, volume, busy: self._call(lambda: node.other_resync(name, volume, busy)),
            )
        self.engine = engine
        self.journal = journal
        self.undos = undos
        self._records = records
        self.engine_stopped = asyncio.Event()
        self.on_nbd_closed: Callable[[int], int | None] = lambda stream: None  # stream -> volume
        self._handlers = handlers
        self.on_remember: Callable[[str, dict[str, Any]], None] = lambda key, values: None
        self._volumes = volumes
        self._on_exit = on_exit
        self._on_fatal = on_fatal
        self._disk_opener = disk_opener or (lambda view: open_and_prepare(view, records))
        self._disk_timeout_s = disk_timeout_s
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._tokens: set[_Token] = set()
        self._disks: dict[int, OpenedDisk] = {}
        self._closers: dict[int, threading.Thread] = {}
        self._unsent: deque[tuple[ec.Command, int]] = deque()
        self._retry: asyncio.TimerHandle | None = None
        self._is_acting = False
        self._has_failed = False
        self._is_closed = False
        self.link = LinkSockets(
            places,
            on_accepted=lambda fd, source: self._call(lambda: node.accepted(fd, source)),
            on_dialled=lambda dial_id, fd: self._call(lambda: node.dialled(dial_id, fd)),
            on_dial_failed=lambda dial_id, reason: self._call(lambda: node.dial_failed(dial_id, reason)),
            on_listen_failed=lambda reason: self._call(lambda: node.listen_failed(reason)),
        )

    # Life

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self.engine.wake_fd, self._wake)

    async def close(self) -> None:
        """Stop everything that could call the node.  The engine has stopped before."""
        self._is_closed = True
        await self.link.close()
        await self._handlers.close()
        if self._order is not None:
            self._order.close()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._retry is not None:
            self._retry.cancel()
        asyncio.get_running_loop().remove_reader(self.engine.wake_fd)

    # Calls of the node

    def command(self, verb: str, args: dict[str, Any], answer: Answer) -> Callable[[], None]:
        """Ends with exactly one call of ``answer``.  The result says that nobody wants that answer any more."""
        if len(self._tokens) >= COMMANDS_MAX:
            answer({}, RequestRefused(f"{verb}: {COMMANDS_MAX} commands are waiting already.",
                                      advice="Wait for some of them to end."))
            return lambda: None
        token = _Token(answer)
        self._tokens.add(token)
        self._call(lambda: self.node.command(token, verb, args))
        return lambda: self._call(lambda: self.node.cancel(token))

    async def ask(self, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        """A command as a coroutine; raises its error.  Cancelling it does not stop the command."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

        def answer(result: dict[str, Any], error: Exception | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.command(verb, args, answer)
        return await future

    def undo_closed(self, volume: int) -> None:
        self._call(lambda: self.node.undo_closed(volume))

    def nbd_closed(self, volume: int) -> None:
        self._call(lambda: self.node.nbd_closed(volume))

    def _call(self, call: Callable[[], None]) -> None:
        if self._has_failed or self._is_closed:  # closed: a disk's thread may answer late, the engine may be gone
            return
        try:
            call()
            self._act()
        except Exception as error:
            self._has_failed = True
            _log.critical("internal error, repld ends: %s", error, exc_info=True)
            self._on_fatal(error)

    # Actions

    def _act(self) -> None:
        """Carries out what the node wants, until it wants nothing more."""
        if self._is_acting:  # the outer call goes on with what is new
            return
        self._is_acting = True
        try:
            while actions := self.node.take_actions():
                for action in actions:
                    self._carry_out(action)
        finally:
            self._is_acting = False

    def _carry_out(self, action: act.Action) -> None:
        match action:
            case act.EngineCommand(command=command, cookie=cookie):
                self.engine_command(command, cookie)
            case act.SetTimer(timer_id=timer_id, delay_ms=delay_ms):
                self._set_timer(timer_id, delay_ms)
            case act.CancelTimer(timer_id=timer_id):
                if timer := self._timers.pop(timer_id, None):
                    timer.cancel()
            case act.Listen(on=on):
                self.link.listen(on)
            case act.Dial(dial_id=dial_id, timeout_ms=timeout_ms):
                self.link.dial(dial_id, timeout_ms)
            case act.CloseFd(fd=fd):
                with contextlib.suppress(OSError):
                    os.close(fd)
            case act.MeasureDisk():
                self._measure_disk(action)
            case act.OpenDisk(volume=volume):
                self._open_disk(volume)
            case act.CloseDisk(volume=volume):
                self._close_disk(volume)
            case act.OpenUndo(volume=volume, facts=facts):
                self._open_undo(volume, facts)
            case act.CloseUndo(volume=volume, is_deleted=is_deleted):
                self._close_undo(volume, is_deleted=is_deleted)
            case act.Reply(token=token, result=result, error=error):
                self._reply(token, result, error)
            case act.StateEvent():
                self.journal.add(action)
                if action.kind == "size":
                    self._keep_record(action.volume, action.fields["device_bytes"])
            case act.PublishResync(volume=volume, busy=busy):
                if self._order is not None:
                    self._order.publish(volume, busy)
            case act.WatchResync(resource=resource, volume=volume):
                if self._order is not None:
                    self._order.watch(resource, volume)
            case act.RunHandler():
                self._run_handler(action)
            case act.Remember(key=key, values=values):
                self.on_remember(key, values)
            case act.Exit():
                self._on_exit()

    def _run_handler(self, action: act.RunHandler) -> None:
        number = action.handler_id
        self._handlers.start(action, lambda status: self._call(lambda: self.node.handler_done(number, status)))

    def _reply(self, token: object, result: dict[str, Any], error: Exception | None) -> None:
        assert isinstance(token, _Token) and token in self._tokens, "a second reply to one command"
        self._tokens.discard(token)
        try:
            token.answer(result, error)
        except Exception:  # whoever asked: not the node's fault
            _log.exception("an answer could not be delivered")

    def _set_timer(self, timer_id: int, delay_ms: int) -> None:
        if old := self._timers.pop(timer_id, None):
            old.cancel()

        def run_out() -> None:
            self._timers.pop(timer_id, None)
            self._call(lambda: self.node.timer(timer_id))

        self._timers[timer_id] = asyncio.get_running_loop().call_later(delay_ms / 1000, run_out)

    # The engine

    def engine_command(self, command: ec.Command, cookie: int = 0) -> None:
        """Commands reach the engine in order; a full ring only delays them."""
        if self._unsent or not self.engine.command(command, cookie):
            self._unsent.append((command, cookie))
            self._retry_later()

    def _retry_later(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(ENGINE_RETRY_S, self._send_unsent)

    def _send_unsent(self) -> None:
        self._retry = None
        while self._unsent:
            command, cookie = self._unsent[0]
            if not self.engine.command(command, cookie):
                self._retry_later()
                return
            self._unsent.popleft()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.engine.wake_fd)
        self._take_events()

    def _take_events(self) -> None:
        for _ in range(EVENTS_PER_WAKE_MAX):
            event = self.engine.event()
            if event is None:
                break
            self._deliver(event)
        else:  # others have their turn first
            asyncio.get_running_loop().call_soon(self._take_events)
        if self._unsent and self._retry is None:
            self._send_unsent()

    def _deliver(self, event: Event) -> None:
        if event.type is EventType.STOPPED:
            self.engine_stopped.set()
        elif event.type is EventType.NBD_CLOSED and event.stream >= PEER_STREAMS:
            if event.nbd_end is NbdEnd.STALLED:
                _log.warning("nbd: cut off a client: the data of its write stopped arriving for a minute, or data that "
                             "it was slow to fetch could not be read again")
            volume = self.on_nbd_closed(event.stream)
            if volume is not None:
                self.nbd_closed(volume)
        else:
            self._call(lambda: self.node.engine_event(event))

    # Disks

    def _open_disk(self, volume: int) -> None:
        loop = asyncio.get_running_loop()
        view = self._volumes[volume]
        closer = self._closers.pop(volume, None)
        state = {"is_over": False}

        def late() -> None:
            state["is_over"] = True
            self._call(lambda: self.node.disk_failed(volume, DiskFailed(
                f"{view.disk_path}: the disk did not answer within {self._disk_timeout_s:g} s.",
                advice="Look at the kernel log for errors of the disk.",
            )))

        limit = loop.call_later(self._disk_timeout_s, late)

        def opened(disk: OpenedDisk, prepared: Prepared) -> None:
            if state["is_over"]:
                _close_in_thread(disk)
                return
            limit.cancel()
            self._disks[volume] = disk
            self._call(lambda: self.node.disk_opened(volume, prepared))

        def failed(error: Exception) -> None:
            if not state["is_over"]:
                limit.cancel()
                self._call(lambda: self.node.disk_failed(volume, error))

        def work() -> None:
            if closer is not None:
                closer.join()  # its lock has to be gone
            try:
                disk, prepared = self._disk_opener(view)
                try:
                    undo = self.undos.find(volume) if self.undos is not None else None
                except BaseException:
                    disk.close()
                    raise
                prepared = replace(prepared, undo=undo) if undo is not None else prepared
            except Exception as error:
                _call_in_loop(loop, lambda error=error: failed(error))  # type: ignore[misc]
            else:
                if not _call_in_loop(loop, lambda: opened(disk, prepared)):
                    disk.close()

        # A thread of its own that does not hold up the end of the process, unlike one of an executor.
        threading.Thread(target=work, name=f"open-disk-{volume}", daemon=True).start()

    def _open_undo(self, volume: int, facts: dict[str, Any]) -> None:
        """Small files; made in this thread."""
        try:
            if self.undos is None:
                raise DiskFailed("there is no place for it.")
            found = self.undos.create(volume, facts, time.time())
        except (OSError, ReplError) as error:
            failure = error
            self._call(lambda: self.node.undo_failed(volume, failure))
        else:
            self._call(lambda: self.node.undo_opened(volume, found))

    def _close_undo(self, volume: int, *, is_deleted: bool) -> None:
        if self.undos is not None:
            try:
                self.undos.close(volume, is_deleted=is_deleted)
            except OSError as error:
                _log.warning("the undo of volume %d could not be closed: %s", volume, error)

    def _keep_record(self, volume: int, device_bytes: int) -> None:
        """The device has another size, its metadata may have moved."""
        disk = self._disks.get(volume)
        if disk is not None and self._records is not None:
            last = self._records.last(volume)
            self._records.keep(volume, disk.place, device_bytes, last.device_uuid if last is not None else 0)

    def _measure_disk(self, action: act.MeasureDisk) -> None:
        volume, disk = action.volume, self._disks.get(action.volume)
        try:
            if disk is None:
                raise DiskFailed(f"volume {volume} has no open disk.", errno=errno.ENODEV)
            layout, usable = node_disk.measure(
                disk.place, al_stripes=action.al_stripes, al_stripe_size_4k=action.al_stripe_size_4k
            )
        except ReplError as error:
            failure = error
            self._call(lambda: self.node.measure_failed(volume, failure))
        else:
            self._call(lambda: self.node.disk_measured(volume, layout, usable))

    def _close_disk(self, volume: int) -> None:
        loop, disk = asyncio.get_running_loop(), self._disks.pop(volume, None)

        def closed() -> None:
            self._call(lambda: self.node.disk_closed(volume))

        if disk is None:
            loop.call_soon(closed)
        else:
            self._closers[volume] = _close_in_thread(disk, lambda: _call_in_loop(loop, closed))

    async def wait_disks_closed(self, timeout_s: float) -> None:
        """After the engine has stopped: close what is still open; give a hung disk up after ``timeout_s``."""
        for volume in list(self._disks):
            self._close_disk(volume)
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        for closer in self._closers.values():
            while closer.is_alive() and asyncio.get_running_loop().time() < deadline_s:
                await asyncio.sleep(0.01)


def _call_in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> bool:
    """False if the loop has ended meanwhile."""
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        return False
    return True


def _close_in_thread(disk: OpenedDisk, then: Callable[[], object] = lambda: None) -> threading.Thread:
    """Closing a device may write its page cache back, which may hang."""

    def close() -> None:
        try:
            disk.close()
        except OSError as error:
            _log.warning("%s: closing it failed: %s", disk.data.name, error)
        then()

    thread = threading.Thread(target=close, name="close-disk", daemon=True)
    thread.start()
    return thread
