# SPDX-License-Identifier: Apache-2.0
"""``replctl status`` as text, in the shape of DRBD 9's ``drbdsetup status``.

Input: the status map of ``repld``.  Output: lines.  In addition to DRBD's shape, a connection that is down keeps its
reason and what to do next, so that a split brain does not look like "no connection at all".
"""

from __future__ import annotations

from typing import Any

from repl.cli import states
from repl.cli.output import duration_text, size_text

COLUMNS_MAX = 80
WRAP_INDENT = 4


def render(status: dict[str, Any], *, is_verbose: bool = False, has_statistics: bool = False) -> str:
    """The block of one resource, with an empty line behind it."""
    volumes: list[dict[str, Any]] = status.get("volumes", [])
    lines = _wrapped(0, _resource_words(status, is_verbose))
    if status.get("suspended_advice"):
        lines += _wrapped(2, ["suspended:", *str(status["suspended_advice"]).split()])
    for running in status.get("handlers", ()):
        lines += _wrapped(2, [f"handler:{running['handler']}", f"running-for:{running['running_s']:.0f}s"])
    for volume in volumes:
        lines += _wrapped(2, _volume_words(volume, volumes, is_verbose=is_verbose))
        if has_statistics:
            lines += _wrapped(6, _volume_statistics(volume))
    lines += _peer_lines(status, volumes, is_verbose=is_verbose, has_statistics=has_statistics)
    return "\n".join(lines) + "\n\n"


def _resource_words(status: dict[str, Any], is_verbose: bool) -> list[str]:
    words = [str(status.get("resource", "?")), f"role:{status.get('role', 'Unknown')}"]
    if status.get("suspended"):
        words.append(f"suspended:{','.join(status.get('suspended_by', ())) or 'user'}")
    elif is_verbose:
        words.append("suspended:no")
    return words


def _volume_name(volume: dict[str, Any], volumes: list[dict[str, Any]], is_verbose: bool) -> list[str]:
    """A single volume 0 needs no name."""
    number = volume.get("volume", 0)
    return [f"volume:{number}"] if is_verbose or number != 0 or len(volumes) > 1 else []


def _volume_words(
    volume: dict[str, Any], volumes: list[dict[str, Any]], *, is_verbose: bool
) -> list[str]:
    words = _volume_name(volume, volumes, is_verbose)
    if is_verbose:
        words.append(f"minor:{volume.get('minor', 0)}")
    words.append(f"disk:{volume.get('disk', 'Diskless')}")
    if volume.get("open"):
        words.append("open:yes")
    elif is_verbose:
        words.append("open:no")
    if volume.get("disk_error"):
        words.append(f"error:{volume['disk_error']}")
    return words


def _peer_lines(
    status: dict[str, Any], volumes: list[dict[str, Any]], *, is_verbose: bool, has_statistics: bool
) -> list[str]:
    peer = str(status.get("peer", {}).get("name", "peer"))
    if not states.is_connected(status):
        lines = _wrapped(2, [peer, f"connection:{states.connection_9(status)}"])
        for name in ("reason", "advice"):
            if status.get(name):
                lines += _wrapped(4, [f"{name}:", *str(status[name]).split()])
        return lines
    words = [peer, *(["connection:Connected"] if is_verbose else []), f"role:{states.peer_role(status)}"]
    lines = _wrapped(2, words)
    for volume in volumes:
        lines += _wrapped(4, _peer_volume_words(status, volume, volumes, is_verbose=is_verbose))
        if has_statistics:
            lines += _wrapped(8, _peer_statistics(volume))
    return lines


def _peer_volume_words(
    status: dict[str, Any], volume: dict[str, Any], volumes: list[dict[str, Any]], *, is_verbose: bool
) -> list[str]:
    words = _volume_name(volume, volumes, is_verbose)
    replication = states.replication_9(status, volume)
    resync = volume.get("resync")
    if is_verbose or resync or words or replication != states.ESTABLISHED:
        words.append(f"replication:{replication}")
    words.append(f"peer-disk:{volume.get('peer_disk', 'DUnknown')}")
    if resync:
        words.append(f"done:{resync.get('done_percent', 0.0):.2f}")
        if resync.get("limited_by") not in (None, "", "paused"):
            words.append(f"limited-by:{resync['limited_by']}")
    words += _verify_words(volume.get("verify"), is_verbose=is_verbose)
    suspended = ",".join(volume.get("resync_suspended", []))
    if suspended or is_verbose:
        words.append(f"resync-suspended:{suspended or 'no'}")
    return words


def _verify_words(report: dict[str, Any] | None, *, is_verbose: bool) -> list[str]:
    """A verify that runs, or what the last one found (if it matters, or everything was asked for)."""
    if report is None:
        return []
    if report["state"] == "running":
        return [f"done:{report.get('done_percent', 0.0):.2f}", f"differing-blocks:{report['differing_blocks']}"]
    left = report["differing_blocks"] if report["repair"] != "done" else 0
    if not (left or is_verbose):
        return []
    words = [f"verified:{duration_text(report.get('age_s'))}-ago", f"differing-blocks:{report['differing_blocks']}"]
    if report["repair"]:
        words.append(f"repair:{report['repair'].split(':')[0].replace(' ', '-')}")
    return words


def _volume_statistics(volume: dict[str, Any]) -> list[str]:
    counters = volume.get("counters", {})
    return [
        f"size:{volume.get('size_bytes', 0) // 1024}",
        f"read:{counters.get('disk_read_bytes', 0) // 1024}",
        f"written:{counters.get('disk_written_bytes', 0) // 1024}",
        f"al-writes:{counters.get('al_writes', 0)}",
        f"bm-writes:{counters.get('bitmap_writes', 0)}",
        f"upper-pending:{counters.get('upper_pending', 0)}",
        f"lower-pending:{counters.get('lower_pending', 0)}",
        "al-suspended:no",
    ]


def _peer_statistics(volume: dict[str, Any]) -> list[str]:
    counters = volume.get("counters", {})
    words = [
        f"received:{counters.get('received_bytes', 0) // 1024}",
        f"sent:{counters.get('sent_bytes', 0) // 1024}",
        f"out-of-sync:{volume.get('out_of_sync_bytes', 0) // 1024}",
        f"pending:{counters.get('peer_pending', 0)}",
        f"unacked:{counters.get('unacked', 0)}",
    ]
    if resync := volume.get("resync"):
        words.append(f"dbdt1:{resync.get('rate_bytes', 0) / (1 << 20):.2f}")
        if resync.get("eta_s") is not None:
            words.append(f"eta:{resync['eta_s']:.0f}")
    return words


def _wrapped(indent: int, words: list[str]) -> list[str]:
    """Lines of at most 80 columns; what does not fit goes below, further in."""
    lines: list[str] = []
    line = " " * indent + words[0]
    for word in words[1:]:
        if len(line) + 1 + len(word) > COLUMNS_MAX:
            lines.append(line)
            line = " " * (indent + WRAP_INDENT) + word
        else:
            line += " " + word
    return [*lines, line]


def progress_text(name: str, volume: dict[str, Any]) -> str:
    """One line about a running resync, for logs."""
    resync = volume["resync"]
    return (
        f"{name}/{volume['volume']}: {resync['done_percent']:.1f}% synced, "
        f"{size_text(resync['done_bytes'])} of {size_text(resync['total_bytes'])}, "
        f"{size_text(resync['rate_bytes'])}/s, {duration_text(resync.get('eta_s'))} left"
        + (f", limited by {limit}" if (limit := resync.get("limited_by")) and limit != "paused" else "")
        + (", paused" if resync.get("limited_by") == "paused" else "")
    )
