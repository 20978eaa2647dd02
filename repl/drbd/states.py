# SPDX-License-Identifier: Apache-2.0
"""DRBD's roles, disk and connection states, the 32-bit state word and the rules that follow from it.

Inputs and outputs are plain integers (the u32 of P_STATE and of state change requests) and frozen values.
Raises ``ProtocolError`` for words that no DRBD 8.4 node can send.
Facts: the DRBD 8.4 state packets (protocol 86..101) and the implied state changes of the 8.4 driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from types import MappingProxyType

from repl.errors import ProtocolError


class Role(IntEnum):
    """Role of a node; not ordered."""

    UNKNOWN = 0
    PRIMARY = 1
    SECONDARY = 2

    def __str__(self) -> str:
        return _ROLE_TEXT[self]


class DiskState(IntEnum):
    """Disk states; the order is meaningful."""

    DISKLESS = 0
    ATTACHING = 1
    FAILED = 2
    NEGOTIATING = 3
    INCONSISTENT = 4
    OUTDATED = 5
    UNKNOWN = 6
    CONSISTENT = 7
    UP_TO_DATE = 8

    def __str__(self) -> str:
        return _DISK_TEXT[self]


class ConnectionState(IntEnum):
    """Connection states; the order is meaningful."""

    STANDALONE = 0
    DISCONNECTING = 1
    UNCONNECTED = 2
    TIMEOUT = 3
    BROKEN_PIPE = 4
    NETWORK_FAILURE = 5
    PROTOCOL_ERROR = 6
    TEAR_DOWN = 7
    WF_CONNECTION = 8
    WF_REPORT_PARAMS = 9
    CONNECTED = 10
    STARTING_SYNC_S = 11
    STARTING_SYNC_T = 12
    WF_BITMAP_S = 13
    WF_BITMAP_T = 14
    WF_SYNC_UUID = 15
    SYNC_SOURCE = 16
    SYNC_TARGET = 17
    VERIFY_S = 18
    VERIFY_T = 19
    PAUSED_SYNC_S = 20
    PAUSED_SYNC_T = 21
    AHEAD = 22
    BEHIND = 23

    def __str__(self) -> str:
        return _CONNECTION_TEXT[self]


_ROLE_TEXT = {Role.UNKNOWN: "Unknown", Role.PRIMARY: "Primary", Role.SECONDARY: "Secondary"}

_DISK_TEXT = {
    DiskState.DISKLESS: "Diskless",
    DiskState.ATTACHING: "Attaching",
    DiskState.FAILED: "Failed",
    DiskState.NEGOTIATING: "Negotiating",
    DiskState.INCONSISTENT: "Inconsistent",
    DiskState.OUTDATED: "Outdated",
    DiskState.UNKNOWN: "DUnknown",
    DiskState.CONSISTENT: "Consistent",
    DiskState.UP_TO_DATE: "UpToDate",
}

_CONNECTION_TEXT = {
    ConnectionState.STANDALONE: "StandAlone",
    ConnectionState.DISCONNECTING: "Disconnecting",
    ConnectionState.UNCONNECTED: "Unconnected",
    ConnectionState.TIMEOUT: "Timeout",
    ConnectionState.BROKEN_PIPE: "BrokenPipe",
    ConnectionState.NETWORK_FAILURE: "NetworkFailure",
    ConnectionState.PROTOCOL_ERROR: "ProtocolError",
    ConnectionState.TEAR_DOWN: "TearDown",
    ConnectionState.WF_CONNECTION: "WFConnection",
    ConnectionState.WF_REPORT_PARAMS: "WFReportParams",
    ConnectionState.CONNECTED: "Connected",
    ConnectionState.STARTING_SYNC_S: "StartingSyncS",
    ConnectionState.STARTING_SYNC_T: "StartingSyncT",
    ConnectionState.WF_BITMAP_S: "WFBitMapS",
    ConnectionState.WF_BITMAP_T: "WFBitMapT",
    ConnectionState.WF_SYNC_UUID: "WFSyncUUID",
    ConnectionState.SYNC_SOURCE: "SyncSource",
    ConnectionState.SYNC_TARGET: "SyncTarget",
    ConnectionState.VERIFY_S: "VerifyS",
    ConnectionState.VERIFY_T: "VerifyT",
    ConnectionState.PAUSED_SYNC_S: "PausedSyncS",
    ConnectionState.PAUSED_SYNC_T: "PausedSyncT",
    ConnectionState.AHEAD: "Ahead",
    ConnectionState.BEHIND: "Behind",
}

# field name -> (first bit, width).  Order = the order in which state words are printed.
STATE_FIELDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "role": (0, 2),
        "peer": (2, 2),
        "conn": (4, 5),
        "disk": (9, 4),
        "pdsk": (13, 4),
        "susp": (17, 1),
        "aftr_isp": (18, 1),
        "peer_isp": (19, 1),
        "user_isp": (20, 1),
        "susp_nod": (21, 1),
        "susp_fen": (22, 1),
    }
)
_PAD_SHIFT = 23
_U32_MAX = 0xFFFFFFFF


def field_mask(name: str) -> int:
    """The bits of one state word field, in place."""
    first_bit, width = STATE_FIELDS[name]
    return ((1 << width) - 1) << first_bit


def _field(word: int, name: str) -> int:
    first_bit, width = STATE_FIELDS[name]
    return (word >> first_bit) & ((1 << width) - 1)


def _role(number: int, name: str) -> Role:
    try:
        return Role(number)
    except ValueError:
        raise ProtocolError(f"State word: {name} has the undefined value {number}.") from None


def _disk(number: int, name: str) -> DiskState:
    try:
        return DiskState(number)
    except ValueError:
        raise ProtocolError(f"State word: {name} has the undefined value {number}.") from None


def _connection(number: int) -> ConnectionState:
    try:
        return ConnectionState(number)
    except ValueError:
        raise ProtocolError(f"State word: conn has the undefined value {number}.") from None


@dataclass(frozen=True, slots=True)
class StateWord:
    """One node's view of a volume.  ``pad`` are the 9 unused high bits, kept so that re-packing is
    identical.
    """

    role: Role = Role.SECONDARY
    peer: Role = Role.UNKNOWN
    conn: ConnectionState = ConnectionState.STANDALONE
    disk: DiskState = DiskState.DISKLESS
    pdsk: DiskState = DiskState.UNKNOWN
    susp: bool = False
    aftr_isp: bool = False
    peer_isp: bool = False
    user_isp: bool = False
    susp_nod: bool = False
    susp_fen: bool = False
    pad: int = 0

    @classmethod
    def unpack(cls, word: int) -> StateWord:
        """The u32 of a P_STATE body, as a value."""
        if not 0 <= word <= _U32_MAX:
            raise ProtocolError(f"State word: {word} is not a 32-bit number.")
        return cls(
            role=_role(_field(word, "role"), "role"),
            peer=_role(_field(word, "peer"), "peer"),
            conn=_connection(_field(word, "conn")),
            disk=_disk(_field(word, "disk"), "disk"),
            pdsk=_disk(_field(word, "pdsk"), "pdsk"),
            susp=bool(_field(word, "susp")),
            aftr_isp=bool(_field(word, "aftr_isp")),
            peer_isp=bool(_field(word, "peer_isp")),
            user_isp=bool(_field(word, "user_isp")),
            susp_nod=bool(_field(word, "susp_nod")),
            susp_fen=bool(_field(word, "susp_fen")),
            pad=word >> _PAD_SHIFT,
        )

    def pack(self) -> int:
        """The 32-bit word."""
        word = self.pad << _PAD_SHIFT
        for name, (first_bit, _) in STATE_FIELDS.items():
            word |= int(getattr(self, name)) << first_bit
        return word

    @property
    def suspended(self) -> bool:
        """True if application I/O is suspended for any reason."""
        return self.susp or self.susp_nod or self.susp_fen

    @property
    def pauses_resync(self) -> bool:
        """The node of this state has paused its resync; its peer follows."""
        return self.aftr_isp or self.user_isp

    @property
    def resync_paused(self) -> bool:
        """True if there is any reason to pause a resync."""
        return self.aftr_isp or self.peer_isp or self.user_isp

    def __str__(self) -> str:
        flags = "".join(
            letter if on else "-"
            for letter, on in (
                ("s", self.suspended),
                ("a", self.aftr_isp),
                ("p", self.peer_isp),
                ("u", self.user_isp),
            )
        )
        return f"cs:{self.conn} ro:{self.role}/{self.peer} ds:{self.disk}/{self.pdsk} {flags}"


# Connection state of a request, as the receiver sees it.  Everything else may not be asked of a peer.
_PEER_CONNECTION: Mapping[ConnectionState, ConnectionState] = MappingProxyType(
    {
        ConnectionState.WF_REPORT_PARAMS: ConnectionState.WF_REPORT_PARAMS,
        ConnectionState.CONNECTED: ConnectionState.CONNECTED,
        ConnectionState.STARTING_SYNC_S: ConnectionState.STARTING_SYNC_T,
        ConnectionState.STARTING_SYNC_T: ConnectionState.STARTING_SYNC_S,
        ConnectionState.VERIFY_S: ConnectionState.VERIFY_T,
        ConnectionState.DISCONNECTING: ConnectionState.TEAR_DOWN,
    }
)

_MIRRORED_FIELDS = (("role", "peer"), ("peer", "role"), ("disk", "pdsk"), ("pdsk", "disk"))


@dataclass(frozen=True, slots=True)
class StateChange:
    """A partial change: a field takes part if its mask bits are set.  Both numbers are u32."""

    mask: int
    value: int

    @classmethod
    def of(
        cls,
        *,
        role: Role | None = None,
        peer: Role | None = None,
        conn: ConnectionState | None = None,
        disk: DiskState | None = None,
        pdsk: DiskState | None = None,
        flags: Mapping[str, bool] | None = None,
    ) -> StateChange:
        """Build a change from named fields; ``flags`` takes the one-bit fields (``susp``, ``user_isp``,
        …).
        """
        mask = value = 0
        numbers: dict[str, int] = {
            name: int(number)
            for name, number in (
                ("role", role),
                ("peer", peer),
                ("conn", conn),
                ("disk", disk),
                ("pdsk", pdsk),
            )
            if number is not None
        }
        numbers.update({name: int(on) for name, on in (flags or {}).items()})
        for name, number in numbers.items():
            mask |= field_mask(name)
            value |= number << STATE_FIELDS[name][0]
        return cls(mask, value)

    def changes(self, name: str) -> bool:
        """True if the field takes part."""
        return bool(self.mask & field_mask(name))

    def get(self, name: str) -> int:
        """The number of a field in ``value`` (meaningful only if the field takes part)."""
        return _field(self.value, name)

    def apply(self, state: StateWord) -> StateWord:
        """``state`` with this change made, nothing implied added."""
        return StateWord.unpack((state.pack() & ~self.mask) | (self.value & self.mask))

    def peer_view(self) -> StateChange:
        """The same change as the receiver of the request has to make it."""
        mask = value = 0
        for theirs, ours in _MIRRORED_FIELDS:
            if self.changes(theirs):
                mask |= field_mask(ours)
                value |= self.get(theirs) << STATE_FIELDS[ours][0]
        if self.changes("conn"):
            asked = _connection(self.get("conn"))
            if asked not in _PEER_CONNECTION:
                raise ProtocolError(f"State change request: a peer may not ask for connection state {asked}.")
            mask |= field_mask("conn")
            value |= _PEER_CONNECTION[asked] << STATE_FIELDS["conn"][0]
        if self.changes("aftr_isp") or self.changes("user_isp"):
            mask |= field_mask("peer_isp")
            value |= (self.get("aftr_isp") | self.get("user_isp")) << STATE_FIELDS["peer_isp"][0]
        return StateChange(mask, value)

    def __str__(self) -> str:
        parts = []
        for name in STATE_FIELDS:
            if not self.changes(name):
                continue
            number = self.get(name)
            text = str(number)
            if name in ("role", "peer"):
                text = str(_role(number, name))
            elif name in ("disk", "pdsk"):
                text = str(_disk(number, name))
            elif name == "conn":
                text = str(_connection(number))
            parts.append(f"{name}={text}")
        return " ".join(parts) if parts else "nothing"


class StateCode(IntEnum):
    """Results of state changes, also the codes of P_STATE_CHG_REPLY and P_CONN_ST_CHG_REPLY."""

    CLUSTER_WIDE_NO_NEED = 4
    CLUSTER_WIDE_SUCCESS = 3
    NOTHING_TO_DO = 2
    SUCCESS = 1
    UNKNOWN_ERROR = 0
    TWO_PRIMARIES = -1
    NO_UP_TO_DATE_DISK = -2
    NO_LOCAL_DISK = -4
    NO_REMOTE_DISK = -5
    CONNECTED_OUTDATES = -6
    PRIMARY_NOT_FENCED = -7
    RESYNC_RUNNING = -8
    ALREADY_STANDALONE = -9
    FAILED_BY_PEER = -10
    IS_DISKLESS = -11
    DEVICE_IN_USE = -12
    NO_NET_CONFIG = -13
    NO_VERIFY_ALG = -14
    NEED_CONNECTION = -15
    LOWER_THAN_OUTDATED = -16
    NOT_SUPPORTED = -17
    IN_TRANSIENT_STATE = -18
    CONCURRENT_CHANGE = -19
    OTHER_VOLUME_PEER_PRIMARY = -20
    OUTDATE_WITHOUT_CONNECTION = -21


STATE_CODE_TEXT: Mapping[int, str] = MappingProxyType(
    {
        StateCode.CLUSTER_WIDE_NO_NEED: "No need for a cluster wide state change",
        StateCode.CLUSTER_WIDE_SUCCESS: "Cluster wide state change succeeded",
        StateCode.NOTHING_TO_DO: "Nothing to do",
        StateCode.SUCCESS: "Success",
        StateCode.UNKNOWN_ERROR: "Unknown error",
        StateCode.TWO_PRIMARIES: "Multiple primaries not allowed by config",
        StateCode.NO_UP_TO_DATE_DISK: "Need access to UpToDate data",
        StateCode.NO_LOCAL_DISK: "Can not resync without local disk",
        StateCode.NO_REMOTE_DISK: "Can not resync without remote disk",
        StateCode.CONNECTED_OUTDATES: "Refusing to be Outdated while Connected",
        StateCode.PRIMARY_NOT_FENCED: "Refusing to be Primary while peer is not outdated",
        StateCode.RESYNC_RUNNING: "Can not start a resync or verify since one is already running",
        StateCode.ALREADY_STANDALONE: "Can not disconnect a StandAlone device",
        StateCode.FAILED_BY_PEER: "State change was refused by peer node",
        StateCode.IS_DISKLESS: "Device is diskless, the requested operation requires a disk",
        StateCode.DEVICE_IN_USE: "Device is held open by someone",
        StateCode.NO_NET_CONFIG: "Have no net/connection configuration",
        StateCode.NO_VERIFY_ALG: "Need a verify algorithm to start online verify",
        StateCode.NEED_CONNECTION: "Need a connection to start verify or resync",
        StateCode.LOWER_THAN_OUTDATED: "Disk state is lower than outdated",
        StateCode.NOT_SUPPORTED: "Peer does not support protocol",
        StateCode.IN_TRANSIENT_STATE: "In transient state, retry after next state change",
        StateCode.CONCURRENT_CHANGE: "Concurrent state changes detected and aborted",
        StateCode.OTHER_VOLUME_PEER_PRIMARY: "Other volume's peer is Primary",
        StateCode.OUTDATE_WITHOUT_CONNECTION: "Outdate-peer without a connection",
    }
)


def state_code_text(number: int) -> str:
    """Short text of a state code; also for numbers that are not defined."""
    return STATE_CODE_TEXT.get(number, f"Unknown state code {number}")


_C = ConnectionState
_D = DiskState

# connection -> (own lowest, own highest, peer lowest, peer highest)
_DISK_LIMITS: Mapping[ConnectionState, tuple[DiskState, DiskState, DiskState, DiskState]] = MappingProxyType(
    {
        **dict.fromkeys(
            (_C.WF_BITMAP_T, _C.PAUSED_SYNC_T, _C.STARTING_SYNC_T, _C.WF_SYNC_UUID, _C.BEHIND),
            (_D.INCONSISTENT, _D.OUTDATED, _D.UP_TO_DATE, _D.UP_TO_DATE),
        ),
        **dict.fromkeys(
            (_C.WF_BITMAP_S, _C.PAUSED_SYNC_S, _C.STARTING_SYNC_S, _C.AHEAD),
            (_D.UP_TO_DATE, _D.UP_TO_DATE, _D.INCONSISTENT, _D.CONSISTENT),
        ),
        _C.SYNC_TARGET: (_D.INCONSISTENT, _D.INCONSISTENT, _D.UP_TO_DATE, _D.UP_TO_DATE),
        _C.SYNC_SOURCE: (_D.UP_TO_DATE, _D.UP_TO_DATE, _D.INCONSISTENT, _D.INCONSISTENT),
        _C.VERIFY_S: (_D.UP_TO_DATE, _D.UP_TO_DATE, _D.UP_TO_DATE, _D.UP_TO_DATE),
        _C.VERIFY_T: (_D.UP_TO_DATE, _D.UP_TO_DATE, _D.UP_TO_DATE, _D.UP_TO_DATE),
    }
)

_PAUSED: Mapping[ConnectionState, ConnectionState] = MappingProxyType(
    {_C.SYNC_SOURCE: _C.PAUSED_SYNC_S, _C.SYNC_TARGET: _C.PAUSED_SYNC_T}
)
_RESUMED: Mapping[ConnectionState, ConnectionState] = MappingProxyType(
    {paused: running for running, paused in _PAUSED.items()}
)


def _clamp(disk: DiskState, lowest: DiskState, highest: DiskState) -> DiskState:
    return lowest if disk < lowest else min(disk, highest)


def sanitize(state: StateWord, *, negotiating_falls_to: DiskState = DiskState.DISKLESS) -> StateWord:
    """The state with everything that its connection state implies.

    ``negotiating_falls_to``: what a Negotiating disk becomes when the connection is lost - the disk state
    prepared at attach if the disk's current UUID equals the UUID of the data that the device presents,
    otherwise Diskless.
    """
    conn, peer, disk, pdsk = state.conn, state.peer, state.disk, state.pdsk
    if conn < _C.CONNECTED:
        peer = Role.UNKNOWN
        if pdsk > _D.UNKNOWN or pdsk < _D.INCONSISTENT:
            pdsk = _D.UNKNOWN
        if disk == _D.NEGOTIATING:
            disk = negotiating_falls_to
        return replace(state, peer=peer, disk=disk, pdsk=pdsk)
    if conn > _C.CONNECTED and (disk <= _D.FAILED or pdsk <= _D.FAILED):
        conn = _C.CONNECTED
    if state.resync_paused:
        conn = _PAUSED.get(conn, conn)
    else:
        conn = _RESUMED.get(conn, conn)
    if conn <= _C.PAUSED_SYNC_T:
        # differs: in DRBD such a disk becomes UpToDate as well when the good disk is gone, or is back and nobody has
        # compared them yet (decision 0016).
        least = _D.NEGOTIATING if conn == _C.CONNECTED else _D.FAILED
        if disk in (_D.CONSISTENT, _D.OUTDATED) and state.pdsk > least:
            disk = _D.UP_TO_DATE
        if pdsk in (_D.CONSISTENT, _D.OUTDATED) and state.disk > least:
            pdsk = _D.UP_TO_DATE
    if conn in _DISK_LIMITS:
        own_lowest, own_highest, peer_lowest, peer_highest = _DISK_LIMITS[conn]
        disk = _clamp(disk, own_lowest, own_highest)
        pdsk = _clamp(pdsk, peer_lowest, peer_highest)
    return replace(state, conn=conn, disk=disk, pdsk=pdsk)


_NETWORK_TROUBLE = frozenset(
    (_C.TIMEOUT, _C.BROKEN_PIPE, _C.NETWORK_FAILURE, _C.PROTOCOL_ERROR, _C.TEAR_DOWN)
)


def connection_change_allowed(old: ConnectionState, new: ConnectionState) -> bool:
    """Whether the connection may go from ``old`` to ``new`` (staying is always allowed).

    After a network error only Unconnected or Disconnecting follow, after Disconnecting only StandAlone, and
    nobody
    jumps from below WFReportParams to Connected or above.
    """
    if old == new:
        return True
    if old in _NETWORK_TROUBLE:
        return new in (_C.UNCONNECTED, _C.DISCONNECTING)
    if old == _C.DISCONNECTING:
        return new == _C.STANDALONE
    return not (old < _C.WF_REPORT_PARAMS and new >= _C.CONNECTED)
