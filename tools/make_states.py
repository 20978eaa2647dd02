#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/STATES.md from the code: states, what they imply, which changes are refused.

usage: make_states.py [--check]      --check: write nothing, exit status 1 if the page is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from repl.drbd.meanings import CONNECTION_MEANING, DISK_MEANING, ROLE_MEANING  # noqa: E402
from repl.drbd.states import (  # noqa: E402
    STATE_CODE_TEXT,
    STATE_FIELDS,
    ConnectionState,
    DiskState,
    Role,
    StateWord,
    connection_change_allowed,
    sanitize,
)

PAGE = ROOT / "docs/STATES.md"
_C, _D = ConnectionState, DiskState
_USUAL = (_D.DISKLESS, _D.INCONSISTENT, _D.OUTDATED, _D.CONSISTENT, _D.UP_TO_DATE)
_LOST = (_C.TIMEOUT, _C.BROKEN_PIPE, _C.NETWORK_FAILURE, _C.PROTOCOL_ERROR, _C.TEAR_DOWN)


def table(head: tuple[str, ...], rows: Iterator[tuple[object, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"
    yield ""


def implied() -> Iterator[tuple[object, ...]]:
    """What a connection state makes of both disks."""
    for conn in ConnectionState:
        if conn < _C.CONNECTED:
            continue
        own, peer, falls = [], [], ""
        for disk in _USUAL:
            state = sanitize(StateWord(role=Role.SECONDARY, conn=conn, disk=disk, pdsk=_D.UP_TO_DATE))
            own.append(f"{disk} → {state.disk}" if state.disk != disk else "")
            state = sanitize(StateWord(role=Role.SECONDARY, conn=conn, disk=_D.UP_TO_DATE, pdsk=disk))
            peer.append(f"{disk} → {state.pdsk}" if state.pdsk != disk else "")
        without = sanitize(StateWord(conn=conn, disk=_D.DISKLESS, pdsk=_D.UP_TO_DATE)).conn
        if without != conn:
            falls = str(without)
        yield conn, ", ".join(filter(None, own)) or "as it is", ", ".join(filter(None, peer)) or "as it is", falls


def pauses() -> Iterator[tuple[object, ...]]:
    for conn in (_C.SYNC_SOURCE, _C.SYNC_TARGET):
        running = StateWord(conn=conn, disk=_D.UP_TO_DATE, pdsk=_D.INCONSISTENT)
        if conn == _C.SYNC_TARGET:
            running = StateWord(conn=conn, disk=_D.INCONSISTENT, pdsk=_D.UP_TO_DATE)
        for name, letter in (("user_isp", "u"), ("peer_isp", "p"), ("aftr_isp", "a")):
            yield conn, f"`{name}` ({letter})", sanitize(replace(running, **{name: True})).conn


def changes() -> Iterator[tuple[object, ...]]:
    groups = (
        ("StandAlone", _C.STANDALONE),
        ("Disconnecting", _C.DISCONNECTING),
        ("Unconnected", _C.UNCONNECTED),
        ("Timeout … TearDown", _C.BROKEN_PIPE),
        ("WFConnection", _C.WF_CONNECTION),
        ("WFReportParams", _C.WF_REPORT_PARAMS),
        ("Connected and above", _C.CONNECTED),
    )
    for name, old in groups:
        yield (
            name,
            *("yes" if connection_change_allowed(old, new) else "" for _, new in groups),
        )


def page() -> str:
    lines = [
        "# States",
        "",
        "<!-- Written by tools/make_states.py from repl/drbd/states.py and repl/drbd/meanings.py: do not edit. -->",
        "",
        "A resource has one role and one connection on each node; each of its volumes has two disk states",
        "(own/peer) and takes part in the connection with a state of its own from Connected on. Numbers are those",
        "of DRBD's wire format and ordered: comparisons in the rules mean these numbers. `replctl status` shows DRBD",
        "9's names (Connecting for WFConnection, Off and Established for a volume's replication), `replctl cstate`",
        "and `dstate` those of this page.",
        "",
        "## Roles",
        "",
        *table(("number", "role", "meaning"), ((int(r), r, ROLE_MEANING[r]) for r in Role)),
        "## Disk states",
        "",
        *table(("number", "state", "meaning", "next step"), ((int(d), d, *DISK_MEANING[d]) for d in DiskState)),
        "## Connection states",
        "",
        *table(
            ("number", "state", "meaning", "next step"), ((int(c), c, *CONNECTION_MEANING[c]) for c in ConnectionState)
        ),
        "## What a connection state implies",
        "",
        "Applied to every change (`sanitize` in `repl/drbd/states.py`). Below Connected the peer's role is Unknown",
        "and its disk is DUnknown, unless it was known to be Inconsistent or Outdated. The last column: what the",
        "state falls back to when a disk is missing.",
        "",
        *table(("state", "own disk (peer UpToDate)", "peer's disk (own UpToDate)", "without a disk"), implied()),
        "A reason to pause, on either node, pauses both:",
        "",
        *table(("state", "reason", "becomes"), pauses()),
        "## Which connection state may follow",
        "",
        *table(
            ("from \\ to", "StandAlone", "Disconnecting", "Unconnected", "Timeout … TearDown", "WFConnection",
             "WFReportParams", "Connected and above"),
            changes(),
        ),  # fmt: skip
        "## The state word",
        "",
        "The 32 bits of P_STATE and of state change requests:",
        "",
        *table(
            ("field", "first bit", "bits"), ((f"`{name}`", first, bits) for name, (first, bits) in STATE_FIELDS.items())
        ),
        "## Answers to a state change",
        "",
        "What `replctl` prints in brackets, and what P_STATE_CHG_REPLY carries; 1 and above is a yes.",
        "",
        *table(("code", "text"), ((int(code), text) for code, text in STATE_CODE_TEXT.items())),
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        print(f"{PAGE.relative_to(ROOT)} is out of date: tools/make_states.py writes it")
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
