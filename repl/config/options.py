# SPDX-License-Identifier: Apache-2.0
"""The options of every section: type, range, default, unit, and whether this program honours them.

Input: an option's name and the text of its value.  Output: ``OptionSpec`` and the typed value: a number in
the option's own unit (column ``unit``), a bool, or the text.  Errors: ``ValueRefused`` with the reason;
build.py adds file and line.

Facts: the option tables of DRBD 8.4 and 9 (manual pages and the ranges the real tools print).  Where 8.4 and
9 differ in a range the wider one counts.  ``strict-flush``, ``io``, ``handler-timeout``, ``busy-poll`` and
the section ``nbd`` are our own.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from repl.limits import NBD_CLIENTS_MAX, NBD_NEGOTIATION_TIMEOUT_S, SECRET_BYTES_MAX

ALGORITHM_BYTES_MAX = 63
OPTION_VALUE_CHARS_MAX = 255


class Kind(enum.Enum):
    """How the value of an option is written."""

    NUMBER = "number"
    BOOL = "bool"
    FLAG = "flag"  # no value: it is there or it is not
    ENUM = "enum"
    ENUM_OR_NUMBER = "enum or number"
    STRING = "string"
    HOSTS = "hosts"  # one or more names


class Unit(enum.Enum):
    """What a plain number counts.  The value is the size in bytes where a suffix (K, M, G, s) makes sense."""

    NONE = "count"
    BYTES = "bytes"
    SECTORS = "sectors of 512 bytes"
    KIB_PER_SECOND = "KiB per second"
    TENTHS = "tenths of a second"
    SECONDS = "seconds"
    MILLISECONDS = "milliseconds"
    MICROSECONDS = "microseconds"


class Support(enum.Enum):
    """What this program does with an option."""

    YES = "yes"  # honoured
    ACCEPT = "accept"  # parsed, without effect on purpose
    LATER = "later"  # known, not implemented yet


class ValueRefused(ValueError):
    """The text is not a value of the option."""


@dataclass(frozen=True, slots=True)
class OptionSpec:
    """One row of the tables."""

    section: str
    name: str
    kind: Kind
    support: Support
    default: int | bool | str
    minimum: int = 0
    maximum: int = 0
    unit: Unit = Unit.NONE
    values: tuple[str, ...] = ()
    honoured_values: tuple[str, ...] = ()  # of a LATER option: those that do work
    is_clamped: bool = False  # out of range is moved into the range instead of refused
    is_peer_device: bool = False  # DRBD 9 hangs it on the connection; dump prints those last
    breaks_wire: bool = False  # ignoring a value other than the default would damage data or the connection
    is_secret: bool = False
    bytes_max: int = OPTION_VALUE_CHARS_MAX

    def is_honoured(self, value: int | bool | str) -> bool:
        """True if this value does here what it does in DRBD."""
        return self.support is Support.YES or value == self.default or value in self.honoured_values


_UNIT_BYTES = {Unit.SECTORS: 512, Unit.KIB_PER_SECOND: 1024}
_SUFFIX_BYTES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "s": 512}
_NUMBER = re.compile(r"([0-9]+)([kKmMgGs]?)\Z")

_YES, _ACCEPT, _LATER = Support.YES, Support.ACCEPT, Support.LATER
_SB_ANY = ("call-pri-lost-after-sb", "violently-as0p")
FENCING_POLICIES = ("dont-care", "resource-only", "resource-and-stonith")  # the strictest one last
_QUORUM = ("off", "majority", "all")
_STRIPING = tuple(f"{size}-striping" for size in ("32K", "64K", "128K", "256K", "512K", "1M"))
DISCARD_NODE_PREFIX = "discard-node-"


class _Table:
    """Collects the rows of one section."""

    def __init__(self, section: str) -> None:
        self.section = section
        self.rows: dict[str, OptionSpec] = {}

    def number(
        self,
        name: str,
        minimum: int,
        maximum: int,
        default: int,
        support: Support,
        unit: Unit = Unit.NONE,
        *,
        is_clamped: bool = False,
        is_peer_device: bool = False,
    ) -> None:
        self.rows[name] = OptionSpec(
            self.section,
            name,
            Kind.NUMBER,
            support,
            default,
            minimum,
            maximum,
            unit,
            is_clamped=is_clamped,
            is_peer_device=is_peer_device,
        )

    def boolean(
        self,
        name: str,
        default: bool,
        support: Support,
        *,
        breaks_wire: bool = False,
        is_peer_device: bool = False,
    ) -> None:
        self.rows[name] = OptionSpec(
            self.section,
            name,
            Kind.BOOL,
            support,
            default,
            breaks_wire=breaks_wire,
            is_peer_device=is_peer_device,
        )

    def flag(self, name: str, support: Support) -> None:
        self.rows[name] = OptionSpec(self.section, name, Kind.FLAG, support, False)

    def enum(
        self,
        name: str,
        values: tuple[str, ...],
        support: Support,
        *,
        honoured: tuple[str, ...] = (),
        default: str | None = None,
    ) -> None:
        """The default is the first value unless it is given."""
        self.rows[name] = OptionSpec(
            self.section,
            name,
            Kind.ENUM,
            support,
            values[0] if default is None else default,
            values=values,
            honoured_values=honoured,
        )

    def quorum(self, name: str, support: Support) -> None:
        self.rows[name] = OptionSpec(
            self.section, name, Kind.ENUM_OR_NUMBER, support, "off", 1, 32, values=_QUORUM
        )

    def string(
        self,
        name: str,
        support: Support,
        *,
        bytes_max: int = OPTION_VALUE_CHARS_MAX,
        breaks_wire: bool = False,
        is_secret: bool = False,
    ) -> None:
        self.rows[name] = OptionSpec(
            self.section,
            name,
            Kind.STRING,
            support,
            "",
            bytes_max=bytes_max,
            breaks_wire=breaks_wire,
            is_secret=is_secret,
        )

    def hosts(self, name: str, support: Support) -> None:
        self.rows[name] = OptionSpec(self.section, name, Kind.HOSTS, support, "")


def _net_table() -> dict[str, OptionSpec]:
    net = _Table("net")
    net.enum("protocol", ("A", "B", "C"), _YES, default="C")
    net.number("timeout", 1, 600, 60, _YES, Unit.TENTHS)
    net.number("ping-int", 1, 120, 10, _YES, Unit.SECONDS)
    net.number("ping-timeout", 1, 300, 5, _YES, Unit.TENTHS)
    net.number("connect-int", 1, 120, 10, _YES, Unit.SECONDS)
    net.number("ko-count", 0, 200, 7, _YES)
    net.number("max-epoch-size", 1, 20000, 2048, _YES)
    net.number("max-buffers", 32, 131072, 2048, _YES)
    net.number("unplug-watermark", 1, 131072, 128, _ACCEPT)
    net.number("sndbuf-size", 0, 128 << 20, 0, _YES, Unit.BYTES)
    net.number("rcvbuf-size", 0, 128 << 20, 0, _YES, Unit.BYTES)
    net.boolean("tcp-cork", True, _LATER)
    net.boolean("allow-two-primaries", False, _YES)
    net.string("cram-hmac-alg", _YES, bytes_max=ALGORITHM_BYTES_MAX)
    net.string("shared-secret", _YES, bytes_max=SECRET_BYTES_MAX, is_secret=True)
    net.string("data-integrity-alg", _YES, bytes_max=ALGORITHM_BYTES_MAX)
    net.string("verify-alg", _YES, bytes_max=ALGORITHM_BYTES_MAX)
    net.string("csums-alg", _YES, bytes_max=ALGORITHM_BYTES_MAX)
    net.boolean("csums-after-crash-only", False, _YES)
    net.boolean("use-rle", True, _YES)
    net.number("socket-check-timeout", 0, 300, 0, _LATER)
    net.enum(
        "after-sb-0pri",
        (
            "disconnect",
            "discard-younger-primary",
            "discard-older-primary",
            "discard-zero-changes",
            "discard-least-changes",
            "discard-local",
            "discard-remote",
        ),
        _YES,
    )
    net.enum("after-sb-1pri", ("disconnect", "consensus", "discard-secondary", *_SB_ANY), _YES)
    net.enum("after-sb-2pri", ("disconnect", *_SB_ANY), _YES)
    net.boolean("always-asbp", False, _YES)
    net.enum(
        "rr-conflict", ("disconnect", "call-pri-lost", "violently", "retry-connect", "auto-discard"), _YES
    )
    net.enum("on-congestion", ("block", "pull-ahead", "disconnect"), _YES)
    net.number("congestion-fill", 0, 20971520, 0, _YES, Unit.SECTORS)
    net.number("congestion-extents", 67, 65534, 1237, _YES)
    net.enum("fencing", FENCING_POLICIES, _YES)
    net.boolean("allow-remote-read", True, _LATER)
    net.string("transport", _ACCEPT)
    net.boolean("load-balance-paths", False, _LATER)
    net.boolean("tls", False, _LATER, breaks_wire=True)
    for name in ("tls-keyring", "tls-privkey", "tls-certificate"):
        net.string(name, _ACCEPT)
    for name in ("rdma-ctrl-rcvbuf-size", "rdma-ctrl-sndbuf-size"):
        net.number(name, 0, 10485760, 0, _ACCEPT)
    net.string("_name", _ACCEPT)
    net.boolean("strict-flush", True, _YES)
    net.enum("accept-from", ("peer", "any"), _YES)
    return net.rows


def _disk_table() -> dict[str, OptionSpec]:
    disk = _Table("disk")
    disk.number("size", 0, 2199023255552, 0, _YES, Unit.SECTORS)
    disk.enum("on-io-error", ("pass_on", "call-local-io-error", "detach"), _YES, default="detach")
    disk.boolean("disk-barrier", False, _ACCEPT)
    disk.boolean("disk-flushes", True, _YES)
    disk.boolean("disk-drain", True, _YES)
    disk.boolean("md-flushes", True, _YES)
    disk.number("al-extents", 67, 65534, 1237, _YES, is_clamped=True)
    disk.boolean("al-updates", True, _YES)
    disk.number("disk-timeout", 0, 6000, 0, _YES, Unit.TENTHS)
    disk.enum(
        "read-balancing",
        (
            "prefer-local",
            "prefer-remote",
            "round-robin",
            "least-pending",
            "when-congested-remote",
            *_STRIPING,
        ),
        _YES,
    )
    disk.string("resync-after", _YES)
    disk.boolean("discard-zeroes-if-aligned", True, _YES)
    disk.boolean("disable-write-same", False, _ACCEPT)
    disk.number("rs-discard-granularity", 0, 1048576, 0, _YES, Unit.BYTES)
    disk.number("max-bio-bvecs", 0, 128, 0, _ACCEPT)
    disk.number("resync-rate", 1, 8388608, 250, _YES, Unit.KIB_PER_SECOND, is_peer_device=True)
    disk.number("c-plan-ahead", 0, 300, 20, _YES, Unit.TENTHS, is_peer_device=True)
    disk.number("c-delay-target", 1, 100, 10, _YES, Unit.TENTHS, is_peer_device=True)
    disk.number("c-fill-target", 0, 1048576, 100, _YES, Unit.SECTORS, is_peer_device=True)
    disk.number("c-max-rate", 0, 4194304, 102400, _YES, Unit.KIB_PER_SECOND, is_peer_device=True)
    disk.number("c-min-rate", 0, 4194304, 250, _YES, Unit.KIB_PER_SECOND, is_peer_device=True)
    disk.enum("resync-priority", ("background", "balanced", "fast"), _YES, default="")
    disk.boolean("bitmap", True, _ACCEPT, is_peer_device=True)
    disk.boolean("resync-without-replication", True, _ACCEPT, is_peer_device=True)
    disk.boolean("peer-tiebreaker", True, _LATER, is_peer_device=True)
    disk.enum("io", ("direct", "buffered"), _YES, default="")
    disk.boolean("split-brain-undo", False, _YES)
    disk.enum("split-brain-undo-on-error", ("stop", "drop"), _YES)
    disk.string("split-brain-undo-dir", _YES)
    return disk.rows


def _options_table() -> dict[str, OptionSpec]:
    options = _Table("options")
    options.string("cpu-mask", _LATER)
    options.enum("on-no-data-accessible", ("io-error", "suspend-io"), _YES)
    options.boolean("auto-promote", True, _YES)
    options.number("auto-promote-timeout", 0, 600, 20, _LATER, Unit.TENTHS)
    options.quorum("quorum", _LATER)
    options.enum("on-no-quorum", ("io-error", "suspend-io"), _LATER, default="suspend-io")
    options.quorum("quorum-minimum-redundancy", _LATER)
    options.enum("on-suspended-primary-outdated", ("disconnect", "force-secondary"), _LATER)
    options.number("handler-timeout", 0, 86400, 0, _YES, Unit.SECONDS)
    options.number("busy-poll", 0, 1000, 200, _YES, Unit.MICROSECONDS)
    options.number("peer-ack-window", 2048, 204800, 4096, _ACCEPT, Unit.SECTORS)
    options.number("peer-ack-delay", 1, 10000, 100, _ACCEPT, Unit.MILLISECONDS)
    options.number("twopc-timeout", 50, 600, 300, _ACCEPT, Unit.TENTHS)
    options.number("twopc-retry-timeout", 1, 50, 1, _ACCEPT, Unit.TENTHS)
    options.number("max-io-depth", 4, 4294967295, 8000, _LATER)
    options.boolean("drbd8-api-compatibility", False, _ACCEPT)
    return options.rows


def _startup_table() -> dict[str, OptionSpec]:
    startup = _Table("startup")
    for name in ("wfc-timeout", "degr-wfc-timeout", "outdated-wfc-timeout"):
        startup.number(name, 0, 300000, 0, _LATER, Unit.SECONDS)
    startup.boolean("wait-after-sb", False, _LATER)
    startup.hosts("become-primary-on", _LATER)
    startup.flag("stacked-timeouts", _LATER)
    return startup.rows


def _handlers_table() -> dict[str, OptionSpec]:
    handlers = _Table("handlers")
    for name in (
        "fence-peer",
        "unfence-peer",
        "initial-split-brain",
        "split-brain",
        "before-resync-target",
        "after-resync-target",
        "before-resync-source",
        "pri-lost",
        "pri-lost-after-sb",
        "pri-on-incon-degr",
        "local-io-error",
        "out-of-sync",
        "disconnected",  # DRBD 9.2's
    ):
        handlers.string(name, _YES)
    handlers.string("quorum-lost", _LATER)
    return handlers.rows


def _global_table() -> dict[str, OptionSpec]:
    table = _Table("global")
    table.flag("disable-ip-verification", _YES)
    # Nothing is ever reported to anybody, so every value is honoured in the only way we want.
    table.enum("usage-count", ("yes", "no", "ask"), _YES, default="ask")
    table.number("minor-count", 1, 1048575, 32, _ACCEPT)
    table.number("dialog-refresh", 0, 600, 1, _ACCEPT, Unit.SECONDS)
    table.flag("udev-always-use-vnr", _ACCEPT)
    table.number("cmd-timeout-short", 0, 900, 5, _YES, Unit.SECONDS)
    table.number("cmd-timeout-medium", 0, 900, 121, _YES, Unit.SECONDS)
    table.number("cmd-timeout-long", 0, 900, 600, _YES, Unit.SECONDS)
    return table.rows


def _proxy_table() -> dict[str, OptionSpec]:
    proxy = _Table("proxy")
    proxy.number("memlimit", 0, 1 << 50, 0, _LATER, Unit.BYTES)
    proxy.number("bwlimit", 0, 1 << 50, 0, _LATER, Unit.BYTES)
    proxy.boolean("compression", False, _LATER)
    proxy.number("read-loops", 0, 1 << 31, 0, _ACCEPT)
    proxy.number("sndbuf-size", 0, 1 << 31, 0, _ACCEPT, Unit.BYTES)
    proxy.number("rcvbuf-size", 0, 1 << 31, 0, _ACCEPT, Unit.BYTES)
    proxy.number("ping-timeout", 0, 1 << 31, 0, _ACCEPT, Unit.TENTHS)
    return proxy.rows


def _nbd_table() -> dict[str, OptionSpec]:
    nbd = _Table("nbd")
    nbd.number("max-clients", 1, NBD_CLIENTS_MAX, NBD_CLIENTS_MAX, _YES)
    nbd.number("negotiation-timeout", 1, 600, int(NBD_NEGOTIATION_TIMEOUT_S), _YES)
    return nbd.rows


TABLES: dict[str, dict[str, OptionSpec]] = {
    "net": _net_table(),
    "disk": _disk_table(),
    "options": _options_table(),
    "startup": _startup_table(),
    "handlers": _handlers_table(),
    "global": _global_table(),
    "proxy": _proxy_table(),
    "nbd": _nbd_table(),
}

# Spelling in another section -> (section, name) it stands for.  8.3 had one section "syncer"; 8.4 has fencing
# in "disk" where 9 has it in "net".
MOVED: dict[tuple[str, str], tuple[str, str]] = {
    ("syncer", "rate"): ("disk", "resync-rate"),
    ("syncer", "after"): ("disk", "resync-after"),
    ("syncer", "al-extents"): ("disk", "al-extents"),
    ("syncer", "verify-alg"): ("net", "verify-alg"),
    ("syncer", "csums-alg"): ("net", "csums-alg"),
    ("syncer", "use-rle"): ("net", "use-rle"),
    ("syncer", "cpu-mask"): ("options", "cpu-mask"),
    ("syncer", "on-no-data-accessible"): ("options", "on-no-data-accessible"),
    **{
        ("syncer", name): ("disk", name)
        for name in ("c-plan-ahead", "c-delay-target", "c-fill-target", "c-max-rate", "c-min-rate")
    },
    ("disk", "fencing"): ("net", "fencing"),
    ("handlers", "outdate-peer"): ("handlers", "fence-peer"),
}


def find_option(section: str, word: str) -> tuple[OptionSpec, bool] | None:
    """The option that ``word`` names in ``section``, and True if it is the ``no-`` spelling of a boolean."""
    target = MOVED.get((section, word), (section, word))
    spec = TABLES.get(target[0], {}).get(target[1])
    if spec is not None:
        return spec, False
    if word.startswith("no-"):
        plain = word.removeprefix("no-")
        target = MOVED.get((section, plain), (section, plain))
        spec = TABLES.get(target[0], {}).get(target[1])
        if spec is not None and spec.kind is Kind.BOOL:
            return spec, True
    return None


def known_words(section: str) -> list[str]:
    """Every option word that may stand in the section, for hints."""
    return sorted([*TABLES.get(section, {}), *(word for where, word in MOVED if where == section)])


def parse_number(text: str, unit: Unit) -> int:
    """Digits and one suffix (K, M, G: powers of 1024; s: 512 bytes) to a number in ``unit``, rounded up."""
    match = _NUMBER.match(text)
    if match is None:
        raise ValueRefused("Value is not a number")
    number = int(match[1])
    if not match[2]:
        return number
    unit_bytes = _UNIT_BYTES.get(unit, 1)
    return -(-number * _SUFFIX_BYTES[match[2].lower()] // unit_bytes)


def parse_value(spec: OptionSpec, text: str) -> int | bool | str:
    """The typed value.  Raises ValueRefused with a reason that ends without a full stop."""
    match spec.kind:
        case Kind.NUMBER:
            return _in_range(spec, parse_number(text, spec.unit))
        case Kind.BOOL | Kind.FLAG:
            if text not in ("yes", "no"):
                raise ValueRefused("Value is not 'yes' or 'no'")
            return text == "yes"
        case Kind.ENUM:
            return _enum_value(spec, text)
        case Kind.ENUM_OR_NUMBER:
            return (
                _in_range(spec, int(text)) if text.isascii() and text.isdigit() else _enum_value(spec, text)
            )
        case Kind.STRING | Kind.HOSTS:
            if len(text.encode("utf-8", "surrogateescape")) > spec.bytes_max:
                raise ValueRefused(f"Value is too long (at most {spec.bytes_max} bytes)")
            return text


def _in_range(spec: OptionSpec, number: int) -> int:
    if spec.is_clamped:
        return min(max(number, spec.minimum), spec.maximum)
    if number > spec.maximum:
        raise ValueRefused(f"Value is too big (range {spec.minimum}..{spec.maximum}, unit {spec.unit.value})")
    if number < spec.minimum:
        raise ValueRefused(
            f"Value is too small (range {spec.minimum}..{spec.maximum}, unit {spec.unit.value})"
        )
    return number


def _enum_value(spec: OptionSpec, text: str) -> str:
    value = text.upper() if spec.name == "protocol" else text
    if spec.name == "after-sb-0pri" and text.startswith(DISCARD_NODE_PREFIX) and text != DISCARD_NODE_PREFIX:
        return text  # 8.4: the host is checked when the hosts are known
    if value not in spec.values:
        raise ValueRefused(f"Value is not valid.\nAllowed values are: {' | '.join(spec.values)}")
    return value
