# SPDX-License-Identifier: Apache-2.0
"""``replctl proc``: the text of ``/proc/drbd`` of DRBD 8.4, for scripts that read it.

Input: the status maps of all running resources.  Output: text; a gap in the minors is an empty line, as there.
"""

from __future__ import annotations

from typing import Any

import repl
from repl.cli import states

BAR_STEPS = 20
# The kernel rounds up to 100.0 while blocks are left; nobody is done before it is done.
PERCENT_SHOWN_MAX = 99.9
MIB_ABOVE_BYTES = 4 << 30


def render(statuses: list[dict[str, Any]]) -> str:
    lines = [
        f"version: 8.4.11 (api:1/proto:86-101)\nuserspace engine: repl {repl.__version__}",
    ]
    entries = sorted(
        ((int(volume.get("minor", 0)), status, volume) for status in statuses for volume in status["volumes"]),
        key=lambda entry: entry[0],
    )
    previous = -1
    for minor, status, volume in entries:
        if previous >= 0 and minor > previous + 1:
            lines.append("")
        lines.append(_volume(minor, status, volume))
        previous = minor
    return "\n".join(lines) + "\n"


def _volume(minor: int, status: dict[str, Any], volume: dict[str, Any]) -> str:
    counters = volume.get("counters", {})
    engine = status.get("engine", {})
    flag = "s" if status.get("suspended") else "r"
    lines = [
        f"{minor:2}: cs:{states.cstate_84(status, volume)} ro:{states.roles(status)} ds:{states.disks(volume)} "
        f"{status.get('protocol', 'C')} {flag}{_pauses(volume)}--",
        f"    ns:{_kib(counters, 'sent_bytes')} nr:{_kib(counters, 'received_bytes')} "
        f"dw:{_kib(counters, 'disk_written_bytes')} dr:{_kib(counters, 'disk_read_bytes')} "
        f"al:{counters.get('al_writes', 0)} bm:{counters.get('bitmap_writes', 0)} "
        f"lo:{counters.get('lower_pending', 0)} pe:{counters.get('peer_pending', 0)} "
        f"ua:{counters.get('unacked', 0)} ap:{counters.get('upper_pending', 0)} "
        f"ep:{max(1, engine.get('epochs_open', 1))} wo:{volume.get('write_ordering', 'flush')[0]} "
        f"oos:{volume.get('out_of_sync_bytes', 0) // 1024}",
    ]
    if resync := volume.get("resync"):
        lines += _resync(resync)
    return "\n".join(lines)


def _pauses(volume: dict[str, Any]) -> str:
    """The second to fourth flag: why a resync is paused."""
    reasons = volume.get("resync_suspended", [])
    return "".join(
        letter if name in reasons else "-" for letter, name in (("a", "dependency"), ("p", "peer"), ("u", "user"))
    )


def _resync(resync: dict[str, Any]) -> list[str]:
    total, done = int(resync.get("total_bytes", 0)), int(resync.get("done_bytes", 0))
    percent = float(resync.get("done_percent", 0.0))
    if done < total:
        percent = min(percent, PERCENT_SHOWN_MAX)
    full = int(percent * BAR_STEPS / 100)
    bar = "=" * full + ">" + "." * (BAR_STEPS - full) if full < BAR_STEPS else "=" * BAR_STEPS
    unit, divisor = ("M", 1 << 20) if total > MIB_ABOVE_BYTES else ("K", 1 << 10)
    rate = int(resync.get("rate_bytes", 0)) // 1024
    eta_s = resync.get("eta_s")
    finish = _clock(eta_s) if eta_s is not None else "never"
    stalled = "" if rate else " (stalled)"
    return [
        f"\t[{bar}] sync'ed:{percent:5.1f}% ({(total - done) // divisor}/{total // divisor}){unit}",
        f"\tfinish: {finish} speed: {rate:,} ({rate:,}) K/sec{stalled}",
    ]


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _kib(counters: dict[str, Any], name: str) -> int:
    return int(counters.get(name, 0)) // 1024
