# SPDX-License-Identifier: Apache-2.0
"""The resync controller's settings while the resource runs: one knob, DRBD's numbers, and those of the peer.

Inputs: the configuration's ``Resync``, the verb "disk-options", P_SYNC_PARAM.  Outputs: VOLUME_RESYNC to the engine and
P_SYNC_PARAM to the peer.  Units are DRBD's (KiB/s, 0.1 s, sectors).
Facts: drbd's P_SYNC_PARAM89 is adopted at any time, the last writer wins (docs/protocol.md, section 1.8.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from repl.drbd import packets as pk
from repl.drbd.digests import DIGESTS
from repl.drbd.uuids import UuidFlag
from repl.engine import commands as ec
from repl.engine.commands import Resync
from repl.errors import UsageError
from repl.node.volume import Volume

if TYPE_CHECKING:
    from repl.node.node import Node

KIB_MAX = 4194304  # the largest c-max-rate: 4 GiB/s, which is no limit

# ``resync-priority``: what replaces the numbers of the controller.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # What applications leave over: little in flight, and it steps back as soon as one of them works.
        "background": MappingProxyType(
            {"resync_rate_kib": 10240, "plan_ahead": 20, "delay_target": 10, "fill_target": 1024,
             "max_rate_kib": 102400, "min_rate_kib": 4096}
        ),
        # As fast as the pipe takes it, but with a short queue in front of applications' writes.
        "balanced": MappingProxyType(
            {"resync_rate_kib": 102400, "plan_ahead": 20, "delay_target": 10, "fill_target": 4096,
             "max_rate_kib": KIB_MAX, "min_rate_kib": 51200}
        ),
        # No controller: max-buffers alone limits what is in flight, and applications get their share by chance.
        "fast": MappingProxyType(
            {"resync_rate_kib": KIB_MAX, "plan_ahead": 0, "delay_target": 10, "fill_target": 0,
             "max_rate_kib": KIB_MAX, "min_rate_kib": 0}
        ),
    }
)  # fmt: skip

# Fields that "disk-options" may set, with their bounds; those of the configuration's options.
_BOUNDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "resync_rate_kib": (1, 8388608),
        "plan_ahead": (0, 300),
        "delay_target": (1, 100),
        "fill_target": (0, 1048576),
        "max_rate_kib": (0, KIB_MAX),
        "min_rate_kib": (0, KIB_MAX),
        "discard_granularity": (0, 1048576),
    }
)


def with_priority(resync: Resync, priority: str) -> Resync:
    """The settings of a priority; "" leaves them as they are."""
    return replace(resync, **PRESETS[priority]) if priority else resync


class ResyncOptions:
    """The settings of all volumes that are in force now."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def tell_engine(self, volume: Volume) -> None:
        self._node.send(ec.VolumeResync(volume.number, replace(volume.resync, use_csums=volume.uses_csums)))

    def choose_csums(self, volume: Volume) -> None:
        """A resync begins with this node as its target: with digests or without."""
        net, report = self._node.settings.net, volume.peer_report
        csums_alg = self._node.connection.csums_alg
        crashed = volume.crashed_primary or (report is not None and UuidFlag.CRASHED_PRIMARY in report.flags)
        volume.uses_csums = bool(csums_alg) and (crashed or not net.csums_after_crash_only)
        self.tell_engine(volume)

    def packet(self, volume: Volume) -> pk.SyncParam:
        net, resync = self._node.settings.net, volume.resync
        return pk.SyncParam(
            resync_rate=resync.resync_rate_kib,
            verify_alg=net.verify_alg,
            csums_alg=self._node.connection.csums_alg,
            c_plan_ahead=resync.plan_ahead,
            c_delay_target=resync.delay_target,
            c_fill_target=resync.fill_target,
            c_max_rate=resync.max_rate_kib,
        )

    def change(self, volume: Volume, values: Mapping[str, Any], *, priority: str | None, reset: bool) -> None:
        """By order of the operator; the peer takes it over as well."""
        resync = Resync() if reset else volume.resync
        if priority is not None:
            if priority and priority not in PRESETS:
                raise UsageError(
                    f"resync-priority '{priority}' is not known.", advice=f"There is {', '.join(PRESETS)}."
                )
            volume.resync_priority = priority
            resync = with_priority(resync, priority)
        elif reset or values.keys() & PRESETS["fast"].keys():
            volume.resync_priority = ""
        for name, value in values.items():
            low, high = _BOUNDS.get(name, (1, 0))
            if not isinstance(value, int) or not low <= value <= high:
                raise UsageError(f"disk-options: {name} may not be {value!r}.", advice='See "replctl disk-options -h".')
        volume.resync = replace(resync, **values)
        self.tell_engine(volume)
        node = self._node
        if node.is_connected:
            node.connection.send_sync_param(volume)
        node.emit("resync", f"controller: {describe(volume)}", volume=volume.number)
        node.notify_watchers()

    def adopt(self, volume: Volume, theirs: pk.SyncParam) -> None:
        """The peer has changed its settings while connected.

        differs: DRBD adopts what comes in the handshake as well, so two nodes with different settings swap them
        (decision 0044).
        """
        self._adopt_csums(theirs.csums_alg)
        numbers: dict[str, Any] = {"resync_rate_kib": theirs.resync_rate}
        if theirs.c_plan_ahead is not None:
            numbers |= {
                "plan_ahead": theirs.c_plan_ahead,
                "delay_target": theirs.c_delay_target or 0,
                "fill_target": theirs.c_fill_target or 0,
                "max_rate_kib": theirs.c_max_rate or 0,
            }
        numbers = {name: min(max(value, _BOUNDS[name][0]), _BOUNDS[name][1]) for name, value in numbers.items()}
        changed = replace(volume.resync, **numbers)
        if changed == volume.resync:
            return
        volume.resync, volume.resync_priority = changed, ""
        self.tell_engine(volume)
        self._node.emit("resync", f"controller, as the peer says: {describe(volume)}", volume=volume.number)

    def _adopt_csums(self, name: str | None) -> None:
        """The peer's new csums-alg; one that is not known here ends the link when it is used."""
        connection = self._node.connection
        if name is None or name == connection.csums_alg or (name and name not in DIGESTS):
            return
        connection.csums_alg = name
        self._node.send(ec.LinkOptions(connection.link_options(connection.peer_integrity)))
        self._node.emit("resync", f'csums-alg "{name}", as the peer says')


def describe(volume: Volume) -> str:
    """The settings that count, for the log."""
    resync = volume.resync
    if volume.resync_priority:
        return f"resync-priority {volume.resync_priority}"
    named = {"resync_rate_kib": "resync-rate", "plan_ahead": "c-plan-ahead", "delay_target": "c-delay-target",
             "fill_target": "c-fill-target", "max_rate_kib": "c-max-rate", "min_rate_kib": "c-min-rate",
             "discard_granularity": "rs-discard-granularity"}  # fmt: skip
    values = {part.name: getattr(resync, part.name) for part in fields(resync)}
    return ", ".join(f"{name} {values[part]}" for part, name in named.items())
