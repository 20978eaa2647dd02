# SPDX-License-Identifier: Apache-2.0
"""Why the simulator does not reach something that tests/sim/reach.py counts.

Two sorts: what cannot happen, and what happens so rarely in random scenarios (less than once in a thousand) that
nobody waits for it; a test is named where one makes it happen on purpose.  A gap without a reason here is one of the
tests.
"""

from __future__ import annotations

import re

# (pattern of the gap's whole name, reason)
CANNOT = (
    (r"packet BECOME_SYNC_(TARGET|SOURCE) \w+", "of DRBD 0.7; 8.4 knows the number and never sends it"),
    (r"packet (WSAME|DELAY_PROBE) \w+", "fatal to newer kernels, or between our own nodes only"),
    (r"packet UNPLUG_REMOTE \w+", "a hint that 8.4 may send; we take it and do not need it (tests/guest)"),
    (r"state \w+/DUnknown", "no node is unsure about its own disk"),
    (r"state DUnknown x .*", "no node is unsure about its own disk"),
    (r"state (Diskless|Attaching|Failed|Negotiating) x (StartingSync|WFBitMap|WFSyncUUID|Sync|Verify|PausedSync|Ahead|"
     r"Behind).*", "a resync or verify needs both disks in use"),
    (r"state Consistent x (StartingSync|WFBitMap|WFSyncUUID|Sync|Verify|PausedSync|Ahead|Behind).*",
     "the handshake settles what a Consistent disk is"),
    (r"state (Inconsistent|Outdated) x (StartingSyncS|WFBitMapS|SyncSource|PausedSyncS|Ahead)",
     "a source is UpToDate"),
    (r"state (Inconsistent|Outdated) x (VerifyS|VerifyT)", "a verify is refused"),
    (r"state Outdated x (SyncTarget|PausedSyncT|StartingSyncT)", "a target is Inconsistent as soon as data comes"),
    (r"state UpToDate x (WFBitMapT|WFSyncUUID|SyncTarget|PausedSyncT|StartingSyncT|Behind)",
     "a node that is going to be a target is Outdated first"),
    (r"state Negotiating x (StandAlone|Disconnecting|Unconnected|Timeout|BrokenPipe|NetworkFailure|ProtocolError|"
     r"TearDown|WFConnection)", "only a peer is negotiated with"),
    (r"state Attaching x (StartingSync|Disconnecting|Timeout|NetworkFailure|ProtocolError|TearDown).*",
     "a step that takes no time, or an attach that waits for the end of the connection"),
    (r"state Secondary/(StartingSyncS|Ahead)", "the source of an order, or of a congested link, is the Primary"),
    (r"state Primary/Behind", "who is behind is not the one that writes"),
)  # fmt: skip
ON_PURPOSE = (
    (r"rule \d+ on node \d", "tests/sim/test_reach.py makes every rule decide on both nodes"),
    (r"packet (SUPERSEDED|RETRY_WRITE) \w+", "two Primaries write the same blocks: tests/sim/test_two_primaries.py"),
    (r"packet PROTOCOL_UPDATE \w+", "tests/sim/test_net_options.py"),
    (r"packet FAREWELL \w+", "tests/sim/test_traps.py and every refusal between our own nodes"),
    (r"packet NEG_DREPLY \w+", "tests/sim/test_io_errors.py, test_passed_on_read_error"),
    (r"packet (NEG_RS_DREPLY|RS_CANCEL|NEG_ACK) \w+", "tests/sim/test_resync.py, tests/sim/test_io_errors.py"),
    (r"packet (SYNC_PARAM|CONN_ST_CHG_REQ|CONN_ST_CHG_REPLY) \w+", "tests/sim/test_old_versions.py"),
    (r"state \S+/Consistent", "tests/sim/test_fencing.py: with fencing alone"),
)  # fmt: skip
_BRIEF = (
    "Disconnecting|Unconnected|Timeout|BrokenPipe|NetworkFailure|ProtocolError|TearDown|WFReportParams|StartingSyncS|"
    "StartingSyncT|WFBitMapS|WFBitMapT|WFSyncUUID"
)
RARE = (
    (rf"request \w+ .* in ({_BRIEF})", "milliseconds long: a request has to begin or end just then"),
    (rf"state \w+(/| x )({_BRIEF})", "milliseconds long, and only after a rare cause"),
    (r"request \w+ (failed|cut off) in .*", "an error, or a client's end, has to fall into this state"),
    (r"request (zero|trim|flush) .* in (PausedSync|Verify|Sync|Ahead|Behind).*", "few operations are of this kind"),
    (r"request \w+ .* in (PausedSyncT|Behind|VerifyT|SyncTarget)", "the Primary is the source in nearly all cases"),
    (r"state (Failed|Attaching|Negotiating|Diskless) x .*", "a disk is in it for milliseconds or seldom"),
)  # fmt: skip


def reason_of(gap: str) -> str:
    """"" if none is known."""
    for pattern, reason in (*CANNOT, *ON_PURPOSE, *RARE):
        if re.fullmatch(pattern, gap):
            return reason
    return ""


def cannot_be(gap: str) -> bool:
    return any(re.fullmatch(pattern, gap) for pattern, _ in CANNOT)
