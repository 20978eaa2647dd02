# SPDX-License-Identifier: Apache-2.0
"""Online verify: start, end, what it found, and the repair that may follow.

The engine compares; here is who may start when, what is kept of the result (status shows it, the shell stores it), and
how the differing blocks are copied: a resync of exactly the bits that are set, which starts without a reconnect.
Positions and ranges in sectors.  Facts: docs/protocol.md, sections 4.5 and 5.4.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from repl.drbd.digests import digest_number
from repl.drbd.states import ConnectionState, DiskState, StateChange, StateCode, StateWord
from repl.engine import commands as ec
from repl.engine.events import Event, EventType
from repl.errors import PeerLost, StateRefused, UsageError
from repl.node import actions as act
from repl.node.refusals import refusal
from repl.node.repair import Repair
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node

_C = ConnectionState
_D = DiskState
VERIFYING = (_C.VERIFY_S, _C.VERIFY_T)
RANGES_MAX = 4096  # kept; more are only counted
STOP_VERSION = 97  # from here on P_STATE(Connected) ends it at the other end ...
STOP_NOT_VERSION = 100  # ... but not in this one
ALGORITHM_VERSION = 88
TO_THE_END = (1 << 64) - 1


@dataclass(slots=True)
class VerifyReport:
    """One verify of a volume, running or the last one."""

    role: str  # "source" or "target"
    algorithm: str
    start_sector: int
    stop_sector: int | None
    began_at: float  # seconds since 1970
    state: str = "running"  # then "complete", "stopped" or "interrupted"
    position_sector: int = 0
    blocks: int = 0
    differing_blocks: int = 0
    ranges: list[list[int]] = field(default_factory=list)  # [first sector, sectors], in order, merged
    unlisted_ranges: int = 0
    ended_at: float = 0.0
    duration_s: float = 0.0
    repair: str = ""  # "", "starting", "running", "done", or why not
    repair_from: str = ""

    def add_range(self, begin: int, length: int) -> None:
        """Ranges come nearly in order; neighbours become one."""
        ranges, end = self.ranges, begin + length
        at = len(ranges)
        while at > 0 and ranges[at - 1][0] > begin:
            at -= 1
        if at > 0 and ranges[at - 1][0] + ranges[at - 1][1] >= begin:
            at -= 1
            end = max(end, ranges[at][0] + ranges[at][1])
            begin = ranges.pop(at)[0]
        while at < len(ranges) and ranges[at][0] <= end:
            end = max(end, ranges[at][0] + ranges[at][1])
            ranges.pop(at)
        ranges.insert(at, [begin, end - begin])
        if len(ranges) > RANGES_MAX:
            ranges.pop()
            self.unlisted_ranges += 1


class VerifyControl:
    """Verifies of all volumes."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.reports: dict[int, VerifyReport] = {}
        self.repair = Repair(node, self)

    # ---- the engine ----

    def engine_event(self, event: Event) -> None:
        volume = self._node.volumes.get(event.volume)
        report = self.reports.get(event.volume)
        if volume is None or report is None:
            return
        if event.type is EventType.VERIFY_RANGE:
            report.add_range(event.value, event.cookie)
            self._node.emit(
                "verify",
                f"Out of sync: start={event.value}, size={event.cookie} (sectors)",
                level="warning",
                volume=volume.number,
            )
        elif volume.state.conn in VERIFYING:
            self._node.connection.child(self._node.start(self._finish(volume), "verify end"))

    # ---- start ----

    async def start(
        self,
        volume: Volume,
        *,
        start_sector: int | None = None,
        stop_sector: int | None = None,
        repair: bool = False,
        repair_from: str = "",
    ) -> None:
        """Compare this volume with the peer's; returns when it runs."""
        node = self._node
        where = f"{node.settings.resource}/{volume.number}"
        self._check(volume, where, has_stop=stop_sector is not None)
        source = self.repair.check(volume, repair_from) if repair else ""
        begin = self.resume_sector(volume) if start_sector is None else start_sector
        if begin >= volume.size_sectors:
            raise UsageError(f"{where}: sector {begin} is behind the end of the device, {volume.size_sectors}.")
        if stop_sector is not None and stop_sector <= begin:
            raise UsageError(f"{where}: the stop sector {stop_sector} is not behind the start sector {begin}.")
        try:
            code = await node.connection.request_change(StateChange.of(conn=_C.VERIFY_S), volume=volume.number)
        except PeerLost:
            code = StateCode.NEED_CONNECTION
        if code < StateCode.SUCCESS:
            raise refusal(node, "verify", code)
        self._open(volume, "source", begin, stop_sector)
        report = self.reports[volume.number]
        report.repair_from, report.repair = source, "wanted" if source else ""
        stop = TO_THE_END if stop_sector is None else stop_sector
        node.send(ec.VerifyOrder(volume.number, ec.Verify(begin, stop)))
        await self._enter(volume, _C.VERIFY_S)

    def _check(self, volume: Volume, where: str, *, has_stop: bool) -> None:
        node = self._node
        version = node.connection.agreed.version
        problem: tuple[str, int, str] | None = None
        if not node.is_connected:
            problem = "a verify needs a connection", -15, f'"replctl connect {node.settings.resource}" first.'
        elif volume.state.conn != _C.CONNECTED:
            problem = f"a resync or verify is running ({volume.state.conn})", -8, "Wait until it has ended."
        elif not node.settings.net.verify_alg or volume.peer_verify_alg != node.settings.net.verify_alg:
            # The kernel module panics on a request when it has no algorithm.
            problem = "no verify-alg is configured", -14, 'Set "verify-alg crc32c;" in section net on both nodes.'
        elif version < ALGORITHM_VERSION:
            problem = f"{node.settings.peer} cannot verify (protocol version {version})", -17, ""
        elif volume.state.disk != _D.UP_TO_DATE:
            problem = f"the own disk is {volume.state.disk}", -2, "Both disks have to be UpToDate."
        elif volume.state.pdsk != _D.UP_TO_DATE:
            problem = f"{node.settings.peer}'s disk is {volume.state.pdsk}", -2, "Both disks have to be UpToDate."
        elif has_stop and not self._can_stop():
            problem = f"protocol version {version} has no stop sector", -17, "Verify to the end."
        if problem is not None:
            raise StateRefused(f"{where}: cannot verify: {problem[0]}", number=problem[1], advice=problem[2])

    def _can_stop(self) -> bool:
        version = self._node.connection.agreed.version
        return version >= STOP_VERSION and version != STOP_NOT_VERSION

    async def asked(self, volume: Volume) -> int:
        """The peer wants to verify: the answer; from a yes on this volume is VerifyT."""
        node, state = self._node, volume.state
        if not node.settings.net.verify_alg:
            return StateCode.NO_VERIFY_ALG
        if state.conn != _C.CONNECTED:
            return StateCode.RESYNC_RUNNING
        if state.disk != _D.UP_TO_DATE or state.pdsk != _D.UP_TO_DATE:
            return StateCode.NO_UP_TO_DATE_DISK
        self._open(volume, "target", 0, None)
        await self._enter(volume, _C.VERIFY_T)
        return StateCode.SUCCESS

    def _open(self, volume: Volume, role: str, begin: int, stop: int | None) -> None:
        node = self._node
        self.reports[volume.number] = VerifyReport(
            role=role,
            algorithm=digest_number(node.settings.net.verify_alg).name.lower(),
            start_sector=begin,
            stop_sector=stop,
            began_at=node.wall_s(),
            position_sector=begin,
        )

    async def _enter(self, volume: Volume, conn: ConnectionState) -> None:
        def change(v: Volume, s: StateWord) -> StateWord:
            return replace(s, conn=conn) if v is volume and s.conn == _C.CONNECTED else s

        await self._node.transition(change, only=volume, reason="online verify")
        if volume.state.conn != conn:  # the disk or the connection went away meanwhile
            self._close(volume, "interrupted")

    # ---- end ----

    async def _finish(self, volume: Volume) -> None:
        """Everything is compared: once the peer has seen all verdicts both are Connected again."""
        node = self._node
        if not await node.ask_ok(ec.Ping()):
            return
        await self._leave(volume, tell=volume.state.conn == _C.VERIFY_S)

    async def _leave(self, volume: Volume, *, tell: bool) -> None:
        node = self._node
        if volume.state.conn not in VERIFYING:
            return
        found = self.refresh(volume).differing_blocks
        if found:
            await node.ask(ec.BitmapWrite(volume.number))

        has_left = False

        def change(v: Volume, s: StateWord) -> StateWord:
            nonlocal has_left
            has_left = s.conn in VERIFYING  # the peer's word and our own count may come together
            return replace(s, conn=_C.CONNECTED) if has_left else s

        reason = f"online verify done, {found} blocks differ" if found else "online verify done"
        await node.transition(change, only=volume, reason=reason)
        if not has_left:
            return
        if volume.state.conn != _C.CONNECTED or not node.is_connected:
            self.repair.give_up(self.reports[volume.number])
            return
        if tell:
            node.connection.send_state(volume)
        if found:
            node.handlers.notify("out-of-sync", volume)
        self.repair.after_verify(volume, self.reports[volume.number])

    async def peer_says_connected(self, volume: Volume) -> None:
        """P_STATE(Connected) of the source ends it.  A target's may be older than its agreement: that came on meta."""
        if volume.state.conn == _C.VERIFY_T:
            await self._leave(volume, tell=False)

    def abort(self, volume: Volume) -> None:
        """End it early; what was asked for is still compared, and the position is kept."""
        node = self._node
        where = f"{node.settings.resource}/{volume.number}"
        if volume.state.conn not in VERIFYING:
            raise StateRefused(f"{where}: no verify is running", number=0)
        if volume.state.conn == _C.VERIFY_T:
            raise StateRefused(
                f"{where}: {node.settings.peer} has started this verify",
                number=-10,
                advice=f'"replctl verify --abort {where}" on {node.settings.peer}.',
            )
        if not self._can_stop():
            raise StateRefused(
                f"{where}: protocol version {node.connection.agreed.version} cannot stop a verify",
                number=-17,
                advice=f'"replctl disconnect {node.settings.resource}" and "connect" end it.',
            )
        node.send(ec.VerifyStop(volume.number))

    def state_changed(self, volume: Volume, before: StateWord, after: StateWord) -> None:
        """Called by every transition."""
        if before.conn in VERIFYING and after.conn not in VERIFYING:
            whole = after.conn == _C.CONNECTED and after.disk == _D.UP_TO_DATE and after.pdsk == _D.UP_TO_DATE
            self._close(volume, "complete" if whole else "interrupted")
        elif after.conn < _C.CONNECTED and volume.number in self.reports:
            self._close(volume, "interrupted")  # agreed on, not begun
        self.repair.state_changed(volume, before, after)

    def _close(self, volume: Volume, state: str) -> None:
        report = self.refresh(volume)
        if report.state != "running":
            return
        stats = self._node.stats.volume_stats(volume.number)
        if state == "complete" and stats is not None and report.blocks < stats.verify_total_bits:
            state = "stopped"
        report.state = state
        report.ended_at = self._node.wall_s()
        report.duration_s = max(0.0, report.ended_at - report.began_at)
        level = "warning" if report.differing_blocks or state == "interrupted" else "info"
        text = f"{report.blocks} blocks compared, {report.differing_blocks} differ"
        if state != "complete":
            text += f"; Online Verify reached sector {report.position_sector}"
        self._node.emit("verify", f"online verify {state}: {text}", level=level, volume=volume.number)
        self.save()
        if state == "interrupted":
            self.repair.give_up(report)

    # ---- looking ----

    def refresh(self, volume: Volume) -> VerifyReport:
        """The report with the engine's present figures."""
        report = self.reports[volume.number]
        stats = self._node.stats.volume_stats(volume.number)
        if report.state == "running" and stats is not None:
            report.blocks = stats.verify_done_bits
            report.differing_blocks = stats.verify_differing_bits
            report.position_sector = stats.verify_position
        return report

    def resume_sector(self, volume: Volume) -> int:
        """Where a verify without a start sector begins: where the last one ended early."""
        report = self.reports.get(volume.number)
        if report is None or report.role != "source" or report.state not in ("stopped", "interrupted"):
            return 0
        return report.position_sector if report.position_sector < volume.size_sectors else 0

    def is_busy(self, volume: Volume) -> bool:
        """A verify or the repair after it is going on."""
        report = self.reports.get(volume.number)
        return report is not None and (report.state == "running" or report.repair in ("wanted", "starting", "running"))

    def status(self, volume: Volume) -> dict[str, Any] | None:
        """Plain values of the running or last verify."""
        if volume.number not in self.reports:
            return None
        report = self.refresh(volume)
        values = asdict(report)
        stats = self._node.stats.volume_stats(volume.number)
        if report.state == "running" and stats is not None:
            total = stats.verify_total_bits
            values["total_blocks"] = total
            values["done_percent"] = round(100.0 * report.blocks / total, 2) if total else 100.0
            values["rate_bytes"] = stats.verify_rate_kib * 1024
            left = (total - report.blocks) * 4
            values["eta_s"] = round(left / stats.verify_rate_kib, 1) if stats.verify_rate_kib else None
            values["duration_s"] = max(0.0, self._node.wall_s() - report.began_at)
        else:
            values["age_s"] = max(0.0, self._node.wall_s() - report.ended_at)
        return values

    # ---- across restarts ----

    def save(self) -> None:
        """The shell keeps the ended ones."""
        ended = {str(n): asdict(r) for n, r in self.reports.items() if r.state != "running"}
        self._node.act(act.Remember("verify", ended))

    def restore(self, values: dict[str, Any]) -> None:
        """What :meth:`save` gave in an earlier life; anything that does not fit is forgotten."""
        for number, fields in values.items():
            try:
                report = VerifyReport(**fields)
            except TypeError:
                continue
            if number.isdecimal() and int(number) in self._node.volumes:
                if report.repair in ("wanted", "starting", "running"):
                    report.repair = "interrupted: repld ended"
                self.reports[int(number)] = report
