# SPDX-License-Identifier: Apache-2.0
"""The operator's verbs and the NBD server's opens.

Each verb ends with a dict of plain values or raises a ``ReplError`` that says who refused, why and what to do next.
Facts: DRBD's state change rules and codes (docs/protocol.md, section 5.4).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from repl.drbd import superblock as sb
from repl.drbd.states import ConnectionState, DiskState, Role, StateChange, StateWord
from repl.drbd.uuids import (
    Uuids,
    base,
    new_beside_sync,
    new_current,
    new_past_sync,
    replace_current,
)
from repl.engine import commands as ec
from repl.errors import PeerLost, RequestRefused, StateRefused, UsageError, WaitTimedOut
from repl.node.flow import Mutex
from repl.node.refusals import refusal
from repl.node.resize import Order
from repl.node.skipping import may_skip, skip
from repl.node.volume import Volume
from repl.node.why import explain

if TYPE_CHECKING:
    from repl.node.node import Node

_C = ConnectionState
_D = DiskState
_ENDING = (
    _C.DISCONNECTING,
    _C.TIMEOUT,
    _C.BROKEN_PIPE,
    _C.NETWORK_FAILURE,
    _C.PROTOCOL_ERROR,
    _C.TEAR_DOWN,
)
PROMOTE_TRIES = 3
CONCURRENT_CHANGE = -19
LEAVE_WAIT_MS = 500  # a client that was just told to go may still be on its way out
Verb = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class Commands:
    """One method per verb."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.is_promoting = False
        self._downs = 0  # orders to go down that are being carried out
        self._alone_lock = Mutex()  # an order that needs a node without a connection, until it is carried out
        self._role_lock = Mutex()  # a role changes completely before anybody builds on it
        self._verbs: dict[str, Verb] = {
            "up": self._up,
            "down": self._down,
            "primary": self._primary,
            "secondary": self._secondary,
            "connect": self._connect,
            "disconnect": self._disconnect,
            "attach": self._attach,
            "detach": self._detach,
            "resize": self._resize,
            "invalidate": self._invalidate,
            "invalidate-remote": self._invalidate_remote,
            "pause-sync": self._pause_sync,
            "resume-sync": self._resume_sync,
            "disk-options": self._disk_options,
            "net-options": self._net_options,
            "verify": self._verify,
            "verify-abort": self._verify_abort,
            "wait-verify": self._wait_verify,
            "outdate": self._outdate,
            "suspend-io": self._suspend_io,
            "resume-io": self._resume_io,
            "wait-connect": self._wait_connect,
            "wait-sync": self._wait_sync,
            "role": self._role,
            "cstate": self._cstate,
            "dstate": self._dstate,
            "show-gi": self._show_gi,
            "new-current-uuid": self._new_current_uuid,
            "status": self._status,
            "why": self._why,
            "undo-list": self._undo_list,
            "undo-drop": self._undo_drop,
            "undo-open": self._undo_open,
            "undo-info": self._undo_info,
            "nbd-open": self._nbd_open,
            "nbd-info": self._nbd_info,
        }

    async def run(self, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        """Carry out a verb."""
        if verb not in self._verbs:
            raise UsageError(f"Unknown command {verb!r}.", advice='"replctl --help" lists the commands.')
        return await self._verbs[verb](args)

    # ---- helpers ----

    @property
    def _name(self) -> str:
        return self._node.settings.resource

    def _volume(self, args: dict[str, Any]) -> Volume:
        number = int(args.get("volume", -1))
        volumes = self._node.volumes
        if number == -1 and len(volumes) == 1:
            return next(iter(volumes.values()))
        if number not in volumes:
            listed = ", ".join(f"{self._name}/{n}" for n in volumes)
            raise UsageError(f"{self._name} has no volume {number}.", advice=f"There is {listed}.")
        return volumes[number]

    def _open_clients(self) -> int:
        return sum(v.open_count for v in self._node.volumes.values())

    def _must_be_up(self) -> None:
        """Nothing begins any more while it goes down."""
        if not self._node.is_up or self._downs:
            state = "is going down" if self._downs else "is not up"
            raise RequestRefused(f"{self._name} {state}.", number=127, advice=f'"replctl up {self._name}" first.')

    # ---- life ----

    async def _up(self, args: dict[str, Any]) -> dict[str, Any]:
        node = self._node
        if node.is_up:  # or is brought up just now: a failure of this order must not take down what runs
            raise RequestRefused(
                f"{self._name}: it is up already", number=124, advice=f'See "replctl status {self._name}".'
            )
        node.is_up = True
        try:
            await node.disks.attach_all()
        except Exception:
            await node.disks.close_all()
            node.is_up = False
            raise
        if not node.connection.wanted:  # an order of its own may have come while the disks were attached
            node.connection.start()
        return {}

    async def _down(self, args: dict[str, Any]) -> dict[str, Any]:
        node = self._node
        force = bool(args.get("force"))
        watchdog = node.start(node.disks.watch_for_hangs(), "watch for disks that hang")
        self._downs += 1
        try:
            if node.role == Role.PRIMARY:
                await self._demote(force=force)
            await node.connection.stop(force=force)
            await node.disks.close_all()
        finally:
            watchdog.cancel("down has ended")
            self._downs -= 1
        node.is_up = False
        return {}

    # ---- disks ----

    async def _attach(self, args: dict[str, Any]) -> dict[str, Any]:
        node, volume = self._node, self._volume(args)
        self._must_be_up()
        if not volume.settings.has_disk:
            raise RequestRefused(
                f"{self._name}/{volume.number} has no disk in the configuration",
                number=138,
                advice="Give the volume a disk there, then take the resource down and up.",
            )
        await node.disks.attach(volume)
        return {"disk": str(volume.state.disk)}

    async def _detach(self, args: dict[str, Any]) -> dict[str, Any]:
        volume = self._volume(args)
        await self._node.disks.detach(volume, force=bool(args.get("force")))
        await self._node.disks.released(volume)
        return {"disk": str(volume.state.disk)}

    async def _resize(self, args: dict[str, Any]) -> dict[str, Any]:
        volume = self._volume(args)
        order = Order(
            size_sectors=int(args.get("size_sectors", 0)),
            assume_clean=bool(args.get("assume_clean")),
            peer_has_space=bool(args.get("assume_peer_has_space")),
            may_shrink=bool(args.get("force")),
        )
        has_changed = await self._node.resize.ordered(volume, order)
        return {"size_bytes": volume.size_sectors * 512, "has_changed": has_changed}

    # ---- roles ----

    async def _primary(self, args: dict[str, Any]) -> dict[str, Any]:
        async with self._role_lock:
            await self._promote(force=bool(args.get("force")))
            self._node.auto_promoted = False
        return {}

    async def _promote(self, *, force: bool) -> None:
        node = self._node
        if node.role == Role.PRIMARY:
            return
        self._must_be_up()
        self.is_promoting = True
        try:
            for _ in range(PROMOTE_TRIES):
                try:
                    await self._promote_once(force=force)
                    return
                except PeerLost:  # it decides as a disconnected node now
                    await node.watch(lambda: not node.is_connected)
                except StateRefused as error:
                    if error.number != CONCURRENT_CHANGE:
                        raise
                    await node.pause(node.settings.net.ping_timeout_ms)  # both nodes are promoted at once
            raise StateRefused(f"{self._name}: the connection comes and goes", number=-18, advice="Try again.")
        finally:
            self.is_promoting = False

    async def _promote_once(self, *, force: bool) -> None:
        node = self._node
        await self._settled()
        outdates_peer = await node.fencing.before_promotion(force=force)
        await self._settled()
        forced = self._check_data(force=force)
        if node.is_connected:
            # As DRBD does: the word of its demotion may be on its way.
            may_both = node.settings.net.two_primaries
            changed = node.watch(lambda: may_both or not node.is_connected or node.peer_role != Role.PRIMARY)
            await node.within(changed, node.settings.net.ping_timeout_ms)
            node.unwatch(changed)
            if not node.is_connected:
                raise PeerLost("The connection to the peer was lost.")
            if node.peer_role == Role.PRIMARY and not may_both:
                raise StateRefused(
                    f"{self._name}: cannot become Primary: {node.settings.peer} is Primary",
                    number=-1,
                    advice=f'"replctl secondary {self._name}" on {node.settings.peer} first, '
                    "or allow-two-primaries for a cluster filesystem.",
                )
            for volume in node.volumes.values():
                wish = StateChange.of(role=Role.PRIMARY, disk=_D.UP_TO_DATE if volume.number in forced else None)
                code = await node.connection.request_change(wish, volume=volume.number)
                if code < 1:
                    raise refusal(node, "primary", code)

        def uuids(volume: Volume) -> Uuids:
            alone = not node.is_connected or volume.state.pdsk <= _D.FAILED
            if alone and volume.attached and volume.peer_may_be_equal and volume.number not in forced:
                # differs: the target may have finished; writes under a generation that it has as well would be
                # discarded silently when it is promoted too (decision 0036).
                volume.peer_may_be_equal = False
                return new_beside_sync(volume.uuids, node.random, primary=True)
            goes_on_alone = alone and (volume.uuids.bitmap == 0 or volume.peer_may_have_finished)
            if volume.attached and (volume.number in forced or goes_on_alone):
                volume.peer_may_have_finished = False
                if volume.number in forced:
                    # differs: it leaves what the nodes have in common in the history (decision 0140).
                    return new_current(volume.uuids, node.random, primary=True, keep_bitmap=True)
                return new_past_sync(volume.uuids, node.random, primary=True)
            if alone and volume.attached and volume.peer_may_serve:
                # differs: the peer is a Primary that waits for this data: it has to see that others were served
                # (decision 0110).
                if volume.peer_may_have == base(volume.uuids.current):  # then it is found by this one
                    return new_past_sync(volume.uuids, node.random, primary=True)
                return replace_current(volume.uuids, node.random, primary=True)
            return volume.uuids

        def change(volume: Volume, state: StateWord) -> StateWord:
            if volume.number in forced:
                state = replace(state, disk=_D.UP_TO_DATE)
            if outdates_peer and not node.is_connected and state.pdsk > _D.OUTDATED:
                state = replace(state, pdsk=_D.OUTDATED)
            return state

        await node.transition(
            change,
            uuids=uuids,
            role=Role.PRIMARY,
            reason="forced" if forced else "",
        )
        node.connection.discard_my_data = False  # it is going to be written to
        for volume in node.volumes.values():
            if node.is_connected:
                if volume.number in forced:
                    node.connection.send_uuids(volume)
                node.connection.send_state(volume)

    async def _settled(self) -> None:
        node = self._node
        if node.cstate == _C.WF_REPORT_PARAMS:
            await node.watch(lambda: node.cstate != _C.WF_REPORT_PARAMS)
        if node.cstate in _ENDING:  # what the peer has sent is still on its way to the disk
            await node.watch(lambda: node.cstate not in _ENDING)

    def _check_data(self, *, force: bool) -> set[int]:
        """Volumes that have to be declared good; refuses where there is no good data."""
        node, forced = self._node, set()
        for volume in node.volumes.values():
            state = volume.state
            if state.disk == _D.UP_TO_DATE or (node.is_connected and state.pdsk == _D.UP_TO_DATE):
                continue
            if force and volume.attached and state.disk >= _D.INCONSISTENT:
                forced.add(volume.number)
                continue
            advice = (
                f'If this disk has the data you want: "replctl primary --force {self._name}"; '
                "whatever the peer has is overwritten then."
                if volume.attached
                else "Attach a disk or connect to the peer first."
            )
            raise StateRefused(
                f"{self._name}/{volume.number}: cannot become Primary: own disk is {state.disk}, "
                f"{node.settings.peer}'s is {state.pdsk}: there is no UpToDate data",
                number=-2,
                advice=advice,
            )
        return forced

    async def _secondary(self, args: dict[str, Any]) -> dict[str, Any]:
        if self._node.role == Role.PRIMARY or self.is_promoting:
            await self._demote(force=False)
        return {}

    async def _demote(self, *, force: bool) -> None:
        node = self._node
        if self._open_clients() and not force:
            left = node.watch(lambda: self._open_clients() == 0)
            await node.within(left, LEAVE_WAIT_MS)
            node.unwatch(left)
        async with self._role_lock:
            if node.role == Role.PRIMARY:
                await self._demote_locked(force=force)

    async def _demote_locked(self, *, force: bool) -> None:
        node, count = self._node, self._open_clients()
        if count and not force:
            raise StateRefused(
                f"{self._name}: cannot become Secondary: {count} NBD client{'s are' if count > 1 else ' is'} connected",
                number=-12,
                advice="Unmount and disconnect the clients (nbd-client -d, qemu, …) first.",
            )
        await node.suspension.before_demotion(force=force)
        if not count:
            for volume in node.volumes.values():
                await node.ask(ec.VolumeDrain(volume.number))
        else:
            await node.refuse_writes()
        node.writes_ended = not count
        begun: list[Volume] = []

        def uuids(volume: Volume) -> Uuids:
            """A peer that is Behind may become Primary, but never the source of what it lacks (decision 0032)."""
            if not volume.is_ahead_of_generation:
                return volume.uuids
            begun.append(volume)
            return new_current(volume.uuids, node.random, primary=False)

        await node.transition(lambda v, s: s, uuids=uuids, role=Role.SECONDARY)
        for volume in begun:
            node.connection.send_uuids(volume)
        for volume in node.volumes.values():
            node.connection.send_state(volume)

    async def demote_in_handshake(self) -> bool:
        """A split brain was decided against this Primary: Secondary, if nobody uses the device."""
        if self._node.role != Role.PRIMARY:  # its order came after the state that was decided with
            return True
        if self.is_promoting or self._role_lock.is_held or self._open_clients():
            return False
        async with self._role_lock:
            await self._demote_locked(force=False)
        self._node.auto_promoted = False
        return True

    # ---- connection ----

    async def _connect(self, args: dict[str, Any]) -> dict[str, Any]:
        async with self._alone_lock:
            self._begin_to_connect(args)
        return {}

    def _begin_to_connect(self, args: dict[str, Any]) -> None:
        node, discard = self._node, bool(args.get("discard_my_data"))
        self._must_be_up()
        if discard and node.role == Role.PRIMARY:
            raise RequestRefused(
                f"{self._name}: a Primary cannot discard its data",
                number=123,
                advice=f'"replctl secondary {self._name}" first.',
            )
        if node.cstate != _C.STANDALONE or node.connection.wanted:  # wanted: its first step waits for its turn
            raise RequestRefused(
                f"{self._name} has a connection already "
                f"({_C.UNCONNECTED if node.cstate == _C.STANDALONE else node.cstate})",
                number=125,
                advice=f'"replctl disconnect {self._name}" first.',
            )
        node.connection.start(discard_my_data=discard, is_tentative=bool(args.get("tentative")))

    async def _disconnect(self, args: dict[str, Any]) -> dict[str, Any]:
        node, force = self._node, bool(args.get("force"))
        if node.role == Role.PRIMARY and not force:
            for volume in node.volumes.values():
                if volume.state.disk != _D.UP_TO_DATE and volume.state.pdsk == _D.UP_TO_DATE:
                    raise StateRefused(
                        f"{self._name}/{volume.number}: the peer has the only good data of this Primary",
                        number=-2,
                        advice="Wait for the resync, or --force: application I/O fails then.",
                    )
        await node.connection.stop(force=force)
        return {}

    # ---- suspension ----

    async def _suspend_io(self, args: dict[str, Any]) -> dict[str, Any]:
        await self._node.suspension.suspend()
        return {}

    async def _resume_io(self, args: dict[str, Any]) -> dict[str, Any]:
        await self._node.suspension.resume()
        return {}

    async def _outdate(self, args: dict[str, Any]) -> dict[str, Any]:
        node, volume = self._node, self._volume(args)
        name = f"{self._name}/{volume.number}"
        await node.watch(lambda: node.cstate != _C.WF_REPORT_PARAMS)
        if not volume.attached:
            raise StateRefused(f"{name} has no disk", number=-11, advice="Outdate the disk that has the old data.")
        if node.is_connected:
            raise StateRefused(
                f"{name}: will not be Outdated while it is connected to {node.settings.peer}",
                number=-6,
                advice=f'"replctl disconnect {self._name}" first.',
            )
        if volume.state.disk < _D.OUTDATED:
            raise StateRefused(f"{name}: the disk is {volume.state.disk}, which is lower than Outdated", number=-16)
        if node.role == Role.PRIMARY:
            raise StateRefused(
                f"{name}: the data of a Primary is in use", number=-2, advice=f'"replctl secondary {self._name}" first.'
            )
        await node.transition(
            lambda v, s: replace(s, disk=_D.OUTDATED) if v is volume else s, only=volume, reason="outdated by order"
        )
        return {}

    # ---- data ----

    async def _invalidate(self, args: dict[str, Any]) -> dict[str, Any]:
        node, volume = self._node, self._volume(args)
        if not volume.attached:
            raise StateRefused(f"{self._name}/{volume.number} has no disk", number=-4)
        if node.role == Role.PRIMARY:
            raise StateRefused(
                f"{self._name}: the data of a Primary is in use",
                number=-10,
                advice=f'"replctl secondary {self._name}" first.',
            )
        if node.is_connected:
            if volume.state.pdsk != _D.UP_TO_DATE:
                raise StateRefused(
                    f"{self._name}/{volume.number}: {node.settings.peer} has no UpToDate data", number=-2
                )
            await node.resync.invalidate(volume)
        elif node.cstate == _C.STANDALONE:
            await node.transition(
                lambda v, s: replace(s, disk=_D.INCONSISTENT) if v is volume else s,
                full_sync=True,
                only=volume,
                reason="invalidated by order",
            )
            await node.ask(ec.BitmapSetAll(volume.number))
            await node.transition(lambda v, s: s, full_sync=False, only=volume)
        else:
            raise StateRefused(
                f"{self._name}: a resync needs a connection (it is {node.cstate})",
                number=-15,
                advice=f'"replctl wait-connect {self._name}", or "disconnect" to invalidate while StandAlone.',
            )
        return {}

    async def _invalidate_remote(self, args: dict[str, Any]) -> dict[str, Any]:
        node, volume = self._node, self._volume(args)
        if not node.is_connected:
            raise StateRefused(
                f"{self._name}: a resync needs a connection (it is {node.cstate})",
                number=-15,
                advice=f'"replctl wait-connect {self._name}" first.',
            )
        if not volume.attached or volume.state.disk != _D.UP_TO_DATE:
            raise StateRefused(f"{self._name}/{volume.number}: the own disk is {volume.state.disk}", number=-2)
        if volume.state.pdsk < _D.INCONSISTENT:
            raise StateRefused(f"{self._name}/{volume.number}: {node.settings.peer} has no disk", number=-5)
        await node.resync.invalidate_remote(volume)
        return {}

    async def _pause_sync(self, args: dict[str, Any]) -> dict[str, Any]:
        await self._node.resync.pauses.pause(self._volume(args))
        return {}

    async def _resume_sync(self, args: dict[str, Any]) -> dict[str, Any]:
        await self._node.resync.pauses.resume(self._volume(args))
        return {}

    async def _net_options(self, args: dict[str, Any]) -> dict[str, Any]:
        await self._node.net_options.change(args)
        return {}

    async def _disk_options(self, args: dict[str, Any]) -> dict[str, Any]:
        values = {name: value for name, value in args.items() if name not in ("volume", "priority", "reset")}
        priority = str(args["priority"]) if "priority" in args else None
        reset = bool(args.get("reset"))
        self._node.resync.options.change(self._volume(args), values, priority=priority, reset=reset)
        return {}

    async def _new_current_uuid(self, args: dict[str, Any]) -> dict[str, Any]:
        node, volume, clear = self._node, self._volume(args), bool(args.get("clear_bitmap"))
        if not volume.attached:
            raise StateRefused(f"{self._name}/{volume.number} has no disk", number=-4)
        if clear and may_skip(node.connection, volume):
            await skip(node, volume)
            return {}
        async with self._alone_lock:
            await self._new_generation(volume, clear=clear)
        return {}

    async def _new_generation(self, volume: Volume, *, clear: bool) -> None:
        node = self._node
        if node.cstate != _C.STANDALONE or node.connection.wanted:
            raise RequestRefused(
                f"{self._name}: the resource has to be StandAlone for this (it is {node.cstate})",
                number=151,
                advice="--clear-bitmap skips the initial sync of two freshly created, connected disks.",
            )
        if clear:
            await node.ask(ec.BitmapClearAll(volume.number))
        primary = node.role == Role.PRIMARY
        await node.transition(
            lambda v, s: s,
            uuids=lambda v: new_current(v.uuids, node.random, primary=primary, keep_bitmap=True),
            only=volume,
            reason="new generation by order",
        )

    # ---- online verify ----

    async def _verify(self, args: dict[str, Any]) -> dict[str, Any]:
        def sector(name: str) -> int | None:
            return None if args.get(name) is None else int(args[name])

        await self._node.verify.start(
            self._volume(args),
            start_sector=sector("start_sector"),
            stop_sector=sector("stop_sector"),
            repair=bool(args.get("repair")),
            repair_from=str(args.get("repair_from") or ""),
        )
        return {}

    async def _verify_abort(self, args: dict[str, Any]) -> dict[str, Any]:
        volume = self._volume(args)
        self._node.verify.abort(volume)
        await self._node.watch(lambda: not self._node.verify.is_busy(volume))
        return self._node.verify.status(volume) or {}

    async def _wait_verify(self, args: dict[str, Any]) -> dict[str, Any]:
        """The report, once the verify (and its repair) has ended."""
        node, volume = self._node, self._volume(args)
        await node.watch(lambda: not node.verify.is_busy(volume))
        return node.verify.status(volume) or {}

    # ---- waiting ----

    async def _wait(self, condition: Callable[[], bool], args: dict[str, Any], what: str) -> None:
        node = self._node
        timeout = args.get("timeout_s")
        ended = node.watch(lambda: condition() or node.cstate == _C.STANDALONE)
        kept = node.watch(condition)
        await node.within(ended, int(float(timeout) * 1000) if timeout else None)
        if not ended.is_done:
            raise WaitTimedOut(f"{self._name}: {what} took longer than {timeout} s.", advice=node.reason)
        if not kept.is_done and not condition():
            raise RequestRefused(
                f"{self._name} is StandAlone{': ' + node.reason if node.reason else ''}",
                number=-15,
                advice=node.advice or f'"replctl connect {self._name}" first.',
            )

    async def _wait_connect(self, args: dict[str, Any]) -> dict[str, Any]:
        await self._wait(lambda: self._node.is_settled, args, "connecting")
        return {}

    async def _wait_sync(self, args: dict[str, Any]) -> dict[str, Any]:
        volumes = self._node.volumes.values()
        await self._wait(lambda: all(v.is_in_sync for v in volumes), args, "the resync")
        return {}

    # ---- looking ----

    async def _role(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"role": str(self._node.role), "peer_role": str(self._node.peer_role)}

    async def _cstate(self, args: dict[str, Any]) -> dict[str, Any]:
        return {
            "connection": str(self._node.cstate),
            "volumes": {n: str(v.state.conn) for n, v in self._node.volumes.items()},
        }

    async def _dstate(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"volumes": {n: [str(v.state.disk), str(v.state.pdsk)] for n, v in self._node.volumes.items()}}

    async def _show_gi(self, args: dict[str, Any]) -> dict[str, Any]:
        volume = self._volume(args)
        if volume.superblock is None:
            raise StateRefused(f"{self._name}/{volume.number} has no disk", number=-11)
        return {"gi": sb.get_gi_text(volume.superblock), "size_sectors": volume.size_sectors}

    async def _status(self, args: dict[str, Any]) -> dict[str, Any]:
        return self._node.status()

    async def _why(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"findings": [finding.as_map() for finding in explain(self._node)]}

    async def _undo_list(self, args: dict[str, Any]) -> dict[str, Any]:
        found = [self._node.undo.status(volume) for volume in self._node.volumes.values()]
        return {"undos": [one for one in found if one is not None]}

    async def _undo_drop(self, args: dict[str, Any]) -> dict[str, Any]:
        await self._node.undo.drop(self._volume(args))
        return {}

    async def _undo_info(self, args: dict[str, Any]) -> dict[str, Any]:
        volume = self._volume(args)
        size = self._node.undo.open(volume)
        self._node.undo.closed(volume)
        return {"size_bytes": size}

    async def _undo_open(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"size_bytes": self._node.undo.open(self._volume(args))}

    # ---- NBD ----

    async def _nbd_info(self, args: dict[str, Any]) -> dict[str, Any]:
        volume = self._volume(args)
        return {"size_bytes": volume.size_sectors * 512}

    async def _nbd_open(self, args: dict[str, Any]) -> dict[str, Any]:
        volume = self._volume(args)
        async with self._role_lock:
            await self._promote_for_client()
            volume.open_count += 1
        return {"size_bytes": volume.size_sectors * 512}

    async def _promote_for_client(self) -> None:
        node = self._node
        if node.role != Role.PRIMARY:
            if not node.settings.auto_promote:
                raise StateRefused(
                    f"{self._name} is Secondary on {node.settings.node}",
                    number=-2,
                    advice=f'"replctl primary {self._name}" first, or connect to {node.settings.peer}.',
                )
            await self._promote(force=False)
            node.auto_promoted = True

    def nbd_closed(self, volume_number: int) -> None:
        """A client is gone; the last one takes an automatic promotion with it."""
        node = self._node
        volume = node.volumes.get(volume_number)
        if volume is None or volume.open_count == 0:
            return
        volume.open_count -= 1
        node.notify_watchers()
        if self._open_clients() == 0 and node.auto_promoted and node.role == Role.PRIMARY:
            node.auto_promoted = False
            node.start(self._demote_idle(), "automatic demotion")

    async def _demote_idle(self) -> None:
        node = self._node
        async with self._role_lock:
            if node.role == Role.PRIMARY and self._open_clients():
                node.auto_promoted = True  # somebody came meanwhile: who leaves last takes it with him
            elif node.role == Role.PRIMARY:
                await self._demote_locked(force=False)
