# SPDX-License-Identifier: Apache-2.0
"""What a configuration says, as values, and the part of it that one node needs.

Input: built by build.py from statements.  Output: ``Config`` keeps the options where they were written (so
that ``dump`` can show them); ``NodeView`` holds what they mean on one node after inheritance, in the units of
the engine (each attribute of ``NetOptions`` and ``DiskOptions`` names its unit).

Positions and warnings take no part in comparisons: two files that say the same are equal.
Facts: inheritance as DRBD 9 does it, with "most specific level wins" where the real tools disagree.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from repl.config.grammar import Position
from repl.config.options import TABLES, OptionSpec
from repl.limits import NBD_CLIENTS_MAX, NBD_NEGOTIATION_TIMEOUT_S

_NOWHERE = Position("", 0)


@dataclass(frozen=True, slots=True)
class ConfigWarning:
    """Something an administrator should know although the file is accepted."""

    text: str
    where: Position = _NOWHERE

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" if self.where.file else self.text


@dataclass(frozen=True, slots=True, repr=False)
class Option:
    """One option as it was written.

    ``text`` is the value as written ("yes"/"no" for booleans), ``value`` typed: numbers in the option's unit.
    """

    spec: OptionSpec = field(compare=False)
    name: str
    text: str
    value: int | bool | str
    where: Position = field(compare=False, default=_NOWHERE)
    words: tuple[str, ...] = ()  # of an option with several values

    def __repr__(self) -> str:
        shown = "***" if self.spec.is_secret else repr(self.text)
        return f"Option({self.name}={shown})"


Options = Mapping[str, Option]


class AddressFamily(enum.Enum):
    """How an address is written and which kind of socket it means."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    SDP = "sdp"
    SSOCKS = "ssocks"


@dataclass(frozen=True, slots=True)
class Address:
    """A network endpoint.  ``port_text`` keeps leading zeros."""

    family: AddressFamily
    host: str
    port_text: str
    where: Position = field(compare=False, default=_NOWHERE)

    @property
    def port(self) -> int:
        return int(self.port_text)

    @property
    def is_loopback(self) -> bool:
        return self.host == "::1" or (self.family is not AddressFamily.IPV6 and self.host.startswith("127."))

    @property
    def endpoint(self) -> str:
        """host:port, brackets around IPv6."""
        host = f"[{self.host}]" if self.family is AddressFamily.IPV6 else self.host
        return f"{host}:{self.port_text}"

    def __str__(self) -> str:
        return f"{self.family.value} {self.endpoint}"


class MetaDiskKind(enum.Enum):
    """Where the metadata lies."""

    INTERNAL = "internal"  # at the end of the data device
    FLEXIBLE = "flexible"  # an external device that holds nothing else
    INDEXED = "indexed"  # slot ``index`` of 128 MiB on an external device


@dataclass(frozen=True, slots=True)
class MetaDisk:
    """The place of the metadata of a volume.  ``path`` is empty for INTERNAL."""

    kind: MetaDiskKind
    path: str = ""
    index: int = 0
    where: Position = field(compare=False, default=_NOWHERE)


@dataclass(frozen=True, slots=True)
class Device:
    """``path`` is empty if only the minor was given."""

    minor: int
    path: str = ""
    where: Position = field(compare=False, default=_NOWHERE)


@dataclass(frozen=True, slots=True)
class Disk:
    """The lower device.  ``path`` None means diskless on purpose."""

    path: str | None
    where: Position = field(compare=False, default=_NOWHERE)


@dataclass(frozen=True, slots=True)
class Volume:
    """What one level says about a volume; None where it says nothing."""

    number: int
    is_implicit: bool = False
    device: Device | None = None
    disk: Disk | None = None
    meta_disk: MetaDisk | None = None
    is_tiebreaker: bool | None = None
    options: Options = field(default_factory=dict)
    where: Position = field(compare=False, default=_NOWHERE)


@dataclass(frozen=True, slots=True)
class ProxyLink:
    """``proxy on HOST.. { inside ADDR; outside ADDR; options { } }``."""

    hosts: tuple[str, ...]
    inside: Address
    outside: Address
    options: Options = field(default_factory=dict)
    where: Position = field(compare=False, default=_NOWHERE)


@dataclass(frozen=True, slots=True)
class Proxy:
    """The section ``proxy { }``: options and the free text of ``plugin { }``, words of each statement."""

    options: Options = field(default_factory=dict)
    plugins: tuple[tuple[str, ...], ...] = ()
    where: Position = field(compare=False, default=_NOWHERE)


class HostKind(enum.Enum):
    """Which of the three host sections."""

    ON = "on"
    FLOATING = "floating"
    STACKED = "stacked-on-top-of"


@dataclass(frozen=True, slots=True)
class Host:
    """A host section.

    ``names`` is empty for FLOATING (its address is its name); for STACKED it holds the hosts of
    the ``lower`` resource.
    """

    kind: HostKind
    names: tuple[str, ...]
    address: Address | None
    node_id: int | None
    volumes: Mapping[int, Volume] = field(default_factory=dict)
    lower: str = ""
    disk_options: Options = field(default_factory=dict)
    options: Options = field(default_factory=dict)
    proxy: ProxyLink | None = None
    where: Position = field(compare=False, default=_NOWHERE)

    @property
    def label(self) -> str:
        """The host as a message names it."""
        if self.kind is HostKind.STACKED:
            return self.lower
        if self.kind is HostKind.FLOATING and self.address is not None:
            return self.address.host
        return " ".join(self.names)

    @property
    def section(self) -> str:
        """``on alpha``: the head of the section."""
        return f"{self.kind.value} {self.label}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a path of an explicit connection."""

    host: str
    address: Address | None = None
    port_text: str = ""
    proxy: ProxyLink | None = None
    outside: Address | None = None
    where: Position = field(compare=False, default=_NOWHERE)

    def is_of(self, host: Host) -> bool:
        """True if this is an end on that host, named or (floating) by its address."""
        if self.host:
            return self.host in (*host.names, host.label)
        return (
            self.address is not None and host.address is not None and self.address.host == host.address.host
        )


@dataclass(frozen=True, slots=True)
class Connection:
    """An explicit ``connection { }`` (DRBD 9).  ``is_multipath``: written with ``path { }`` sections."""

    name: str
    paths: tuple[tuple[Endpoint, ...], ...]
    is_multipath: bool
    net: Options = field(default_factory=dict)
    disk: Options = field(default_factory=dict)
    volumes: Mapping[int, Options] = field(default_factory=dict)
    where: Position = field(compare=False, default=_NOWHERE)


@dataclass(frozen=True, slots=True)
class Mesh:
    """``connection-mesh { hosts ..; net { } }`` (DRBD 9)."""

    hosts: tuple[str, ...]
    net: Options = field(default_factory=dict)
    where: Position = field(compare=False, default=_NOWHERE)


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the NBD server of a resource listens: one of the two is set."""

    address: Address | None = None
    unix_path: str = ""

    def __str__(self) -> str:
        return f"unix {self.unix_path}" if self.address is None else self.address.endpoint


@dataclass(frozen=True, slots=True)
class Sections:
    """The option sections that ``common`` and a resource share.  None: not written."""

    net: Options | None = None
    disk: Options | None = None
    options: Options | None = None
    startup: Options | None = None
    handlers: Options | None = None
    proxy: Proxy | None = None
    nbd: Options | None = None
    nbd_listen: tuple[Listen, ...] = ()
    arbiter: tuple[tuple[str, ...], ...] | None = None
    where: Position = field(compare=False, default=_NOWHERE)


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource section."""

    name: str
    hosts: tuple[Host, ...]
    volumes: Mapping[int, Volume]
    sections: Sections
    connections: tuple[Connection, ...] = ()
    meshes: tuple[Mesh, ...] = ()
    template_file: str = ""
    template: Sections | None = None
    where: Position = field(compare=False, default=_NOWHERE)

    @property
    def is_stacked(self) -> bool:
        return any(host.kind is HostKind.STACKED for host in self.hosts)


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration.  ``files`` in the order they were read, the main file first."""

    global_options: Options
    common: Sections | None
    resources: Mapping[str, Resource]
    files: tuple[str, ...] = field(compare=False, default=())
    warnings: tuple[ConfigWarning, ...] = field(compare=False, default=())

    @property
    def is_ip_verified(self) -> bool:
        """False: the administrator switched the check "address exists on this node" off."""
        return "disable-ip-verification" not in self.global_options


# -------------------------------------------------------------------------------------------- one node


@dataclass(frozen=True, slots=True)
class NetOptions:
    """Effective options of the connection."""

    protocol: str  # "A", "B" or "C"
    timeout_ms: int
    ping_int_ms: int
    ping_timeout_ms: int
    connect_int_ms: int
    ko_count: int  # how many timeout_ms a write may take; 0 = for ever
    max_epoch_size: int  # writes between two barriers
    max_buffers_pages: int  # pages of 4 KiB
    sndbuf_size_bytes: int  # 0 = the kernel tunes it
    rcvbuf_size_bytes: int  # 0 = the kernel tunes it
    cram_hmac_alg: str  # "" = no authentication
    shared_secret: str = field(repr=False)
    data_integrity_alg: str
    verify_alg: str
    csums_alg: str
    csums_after_crash_only: bool
    use_rle: bool
    allow_two_primaries: bool
    after_sb_0pri: str
    after_sb_1pri: str
    after_sb_2pri: str
    always_asbp: bool
    rr_conflict: str
    on_congestion: str
    congestion_fill_sectors: int
    congestion_extents: int
    fencing: str
    strict_flush: bool
    accept_from: str


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """Effective options of one volume."""

    size_sectors: int  # 0 = all of the lower device
    on_io_error: str
    disk_flushes: bool
    disk_drain: bool
    md_flushes: bool
    al_extents: int  # activity log size, extents of 4 MiB
    al_updates: bool
    read_balancing: str
    resync_rate_kib_s: int
    c_plan_ahead_ms: int  # 0 = fixed rate
    c_delay_target_ms: int
    c_fill_target_sectors: int
    c_max_rate_kib_s: int
    c_min_rate_kib_s: int  # 0 = never throttle for application I/O
    disk_timeout_ms: int  # 0 = wait for ever
    discard_zeroes_if_aligned: bool
    rs_discard_granularity_bytes: int  # 0 = no thin requests to a DRBD peer
    resync_priority: str  # "" = the numbers above as they are
    resync_after: str  # "" = none
    io: str  # "direct", "buffered" or "" = decide by the device
    split_brain_undo: bool
    split_brain_undo_on_error: str
    split_brain_undo_dir: str  # "" = /var/lib/repl, or the run directory if it was chosen


@dataclass(frozen=True, slots=True)
class ResourceOptions:
    """Effective options of the resource."""

    on_no_data_accessible: str
    auto_promote: bool
    auto_promote_timeout_ms: int
    cpu_mask: str
    handler_timeout_s: int  # 0 = a handler may take as long as it likes
    busy_poll_us: int  # 0 = the engine always blocks when it has nothing to do


@dataclass(frozen=True, slots=True)
class NbdOptions:
    """How the resource is served."""

    listen: tuple[Listen, ...] = ()
    max_clients: int = NBD_CLIENTS_MAX
    negotiation_timeout_s: float = NBD_NEGOTIATION_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class StartupOptions:
    """Effective start-up options; 0 seconds = for ever."""

    wfc_timeout_s: int
    degr_wfc_timeout_s: int
    outdated_wfc_timeout_s: int
    wait_after_sb: bool
    become_primary_on: tuple[str, ...]


STACKED_PREFIX = "lower:"  # in front of RESOURCE/VOLUME where a disk is another resource's device


@dataclass(frozen=True, slots=True)
class VolumeView:
    """A volume on this node.  ``disk_path`` None: diskless on purpose, then ``meta_disk`` means nothing."""

    number: int
    device: Device
    disk_path: str | None
    meta_disk: MetaDisk
    options: DiskOptions
    resync_after: tuple[str, int] | None = None  # resource and volume that resync before this one


@dataclass(frozen=True, slots=True)
class NodeView:
    """A resource as one node sees it."""

    resource: Resource
    me: Host
    peer: Host
    my_address: Address
    peer_address: Address
    volumes: tuple[VolumeView, ...]  # by number
    net: NetOptions
    options: ResourceOptions
    nbd: NbdOptions
    startup: StartupOptions
    handlers: Mapping[str, str]  # name -> shell command

    @property
    def name(self) -> str:
        return self.resource.name

    @property
    def my_node_id(self) -> int:
        assert self.me.node_id is not None  # build.py gives every host an id
        return self.me.node_id

    @property
    def peer_node_id(self) -> int:
        assert self.peer.node_id is not None
        return self.peer.node_id


# ----------------------------------------------------------------------------------------- inheritance


def names_match(name: str, node: str) -> bool:
    """DRBD 9's rule: case does not count; if one name has no dot, only the part before the dot counts."""
    name, node = name.lower(), node.lower()
    if "." in name and "." in node:
        return name == node
    return name.partition(".")[0] == node.partition(".")[0]


def host_matches(host: Host, node: str, addresses: Iterable[str] = ()) -> bool:
    """True if the section is this node's; floating sections are found by one of the node's own addresses."""
    if host.kind is HostKind.FLOATING:
        return host.address is not None and host.address.host in (node, *addresses)
    return any(names_match(name, node) for name in host.names)


def find_host(resource: Resource, node: str, addresses: Iterable[str] = ()) -> Host | None:
    """This node's section; an exact name goes before a name that only matches."""
    own_addresses = tuple(addresses)
    matches = [host for host in resource.hosts if host_matches(host, node, own_addresses)]
    return next((host for host in matches if node in host.names), matches[0] if matches else None)


def host_volumes(resource: Resource, host: Host) -> dict[int, Volume]:
    """The volumes of a host, each statement taken from the host or else from the resource.

    The options are the host volume's own; ``disk_options_of`` merges the levels.
    """
    merged: dict[int, Volume] = {}
    for number in sorted({*resource.volumes, *host.volumes}):
        above = resource.volumes.get(number, Volume(number))
        own = host.volumes.get(number, Volume(number, where=above.where))
        tiebreaker = own.is_tiebreaker if own.is_tiebreaker is not None else above.is_tiebreaker
        merged[number] = Volume(
            number=number,
            is_implicit=own.is_implicit or above.is_implicit,
            device=own.device or above.device,
            disk=own.disk or above.disk,
            meta_disk=own.meta_disk or above.meta_disk,
            is_tiebreaker=tiebreaker,
            options=own.options,
            where=own.where,
        )
    return merged


def inherited_levels(config: Config, resource: Resource) -> tuple[Sections, ...]:
    """Common (or the template that replaces it) and the resource, least specific first."""
    base = resource.template or config.common
    return (resource.sections,) if base is None else (base, resource.sections)


def merge(*levels: Options | None) -> dict[str, Option]:
    """The last level that has an option wins."""
    return {name: option for level in levels if level for name, option in level.items()}


def connections_between(resource: Resource, me: Host, peer: Host) -> tuple[list[Connection], list[Mesh]]:
    """The explicit connections and meshes that hold both hosts."""

    def joins(path: tuple[Endpoint, ...]) -> bool:
        return all(any(end.is_of(host) for end in path) for host in (me, peer))

    connections = [connection for connection in resource.connections if any(map(joins, connection.paths))]
    meshes = [mesh for mesh in resource.meshes if joins(tuple(Endpoint(name) for name in mesh.hosts))]
    return connections, meshes


def net_options_of(config: Config, resource: Resource, me: Host, peer: Host) -> dict[str, Option]:
    """common < resource < mesh < connection."""
    connections, meshes = connections_between(resource, me, peer)
    return merge(
        *(level.net for level in inherited_levels(config, resource)),
        *(mesh.net for mesh in meshes),
        *(connection.net for connection in connections),
    )


def disk_options_of(
    config: Config, resource: Resource, host: Host, number: int, peer: Host | None = None
) -> dict[str, Option]:
    """common < resource < host < resource volume < host volume < connection < peer device."""
    above = resource.volumes.get(number)
    own = host.volumes.get(number)
    connections = connections_between(resource, host, peer)[0] if peer is not None else []
    return merge(
        *(level.disk for level in inherited_levels(config, resource)),
        host.disk_options,
        above.options if above else None,
        own.options if own else None,
        *(connection.disk for connection in connections),
        *(connection.volumes.get(number) for connection in connections),
    )


class _Reader:
    """Typed access to merged options of a section, with the table's defaults."""

    def __init__(self, section: str, options: Options) -> None:
        self._table = TABLES[section]
        self._options = options

    def _value(self, name: str) -> int | bool | str:
        option = self._options.get(name)
        return self._table[name].default if option is None else option.value

    def number(self, name: str, *, factor: int = 1) -> int:
        return int(self._value(name)) * factor

    def bool(self, name: str) -> bool:
        return bool(self._value(name))

    def text(self, name: str) -> str:
        return str(self._value(name))


_TENTH_MS = 100
_SECOND_MS = 1000


def typed_net(options: Options) -> NetOptions:
    """Merged options of ``net`` in engine units."""
    read = _Reader("net", options)
    return NetOptions(
        protocol=read.text("protocol"),
        timeout_ms=read.number("timeout", factor=_TENTH_MS),
        ping_int_ms=read.number("ping-int", factor=_SECOND_MS),
        ping_timeout_ms=read.number("ping-timeout", factor=_TENTH_MS),
        connect_int_ms=read.number("connect-int", factor=_SECOND_MS),
        ko_count=read.number("ko-count"),
        max_epoch_size=read.number("max-epoch-size"),
        max_buffers_pages=read.number("max-buffers"),
        sndbuf_size_bytes=read.number("sndbuf-size"),
        rcvbuf_size_bytes=read.number("rcvbuf-size"),
        cram_hmac_alg=read.text("cram-hmac-alg"),
        shared_secret=read.text("shared-secret"),
        data_integrity_alg=read.text("data-integrity-alg"),
        verify_alg=read.text("verify-alg"),
        csums_alg=read.text("csums-alg"),
        csums_after_crash_only=read.bool("csums-after-crash-only"),
        use_rle=read.bool("use-rle"),
        allow_two_primaries=read.bool("allow-two-primaries"),
        after_sb_0pri=read.text("after-sb-0pri"),
        after_sb_1pri=read.text("after-sb-1pri"),
        after_sb_2pri=read.text("after-sb-2pri"),
        always_asbp=read.bool("always-asbp"),
        rr_conflict=read.text("rr-conflict"),
        on_congestion=read.text("on-congestion"),
        congestion_fill_sectors=read.number("congestion-fill"),
        congestion_extents=read.number("congestion-extents"),
        fencing=read.text("fencing"),
        strict_flush=read.bool("strict-flush"),
        accept_from=read.text("accept-from"),
    )


def typed_disk(options: Options) -> DiskOptions:
    """Merged options of ``disk`` in engine units."""
    read = _Reader("disk", options)
    return DiskOptions(
        size_sectors=read.number("size"),
        on_io_error=read.text("on-io-error"),
        disk_flushes=read.bool("disk-flushes"),
        disk_drain=read.bool("disk-drain"),
        md_flushes=read.bool("md-flushes"),
        al_extents=read.number("al-extents"),
        al_updates=read.bool("al-updates"),
        read_balancing=read.text("read-balancing"),
        resync_rate_kib_s=read.number("resync-rate"),
        c_plan_ahead_ms=read.number("c-plan-ahead", factor=_TENTH_MS),
        c_delay_target_ms=read.number("c-delay-target", factor=_TENTH_MS),
        c_fill_target_sectors=read.number("c-fill-target"),
        c_max_rate_kib_s=read.number("c-max-rate"),
        c_min_rate_kib_s=read.number("c-min-rate"),
        disk_timeout_ms=read.number("disk-timeout", factor=_TENTH_MS),
        discard_zeroes_if_aligned=read.bool("discard-zeroes-if-aligned"),
        rs_discard_granularity_bytes=read.number("rs-discard-granularity"),
        resync_priority=read.text("resync-priority"),
        resync_after=read.text("resync-after"),
        io=read.text("io"),
        split_brain_undo=read.bool("split-brain-undo"),
        split_brain_undo_on_error=read.text("split-brain-undo-on-error"),
        split_brain_undo_dir=read.text("split-brain-undo-dir"),
    )


def typed_options(options: Options) -> ResourceOptions:
    """Merged options of ``options`` in engine units."""
    read = _Reader("options", options)
    return ResourceOptions(
        on_no_data_accessible=read.text("on-no-data-accessible"),
        auto_promote=read.bool("auto-promote"),
        auto_promote_timeout_ms=read.number("auto-promote-timeout", factor=_TENTH_MS),
        cpu_mask=read.text("cpu-mask"),
        handler_timeout_s=read.number("handler-timeout"),
        busy_poll_us=read.number("busy-poll"),
    )


def typed_startup(options: Options) -> StartupOptions:
    """Merged options of ``startup``.

    As the real tool does, degr-wfc-timeout is lowered to wfc-timeout and outdated-wfc-timeout to
    degr-wfc-timeout (0 is the longest).
    """
    read = _Reader("startup", options)
    wfc = read.number("wfc-timeout")
    degr = _shorter(read.number("degr-wfc-timeout"), wfc)
    become = options.get("become-primary-on")
    return StartupOptions(
        wfc_timeout_s=wfc,
        degr_wfc_timeout_s=degr,
        outdated_wfc_timeout_s=_shorter(read.number("outdated-wfc-timeout"), degr),
        wait_after_sb=read.bool("wait-after-sb"),
        become_primary_on=become.words if become is not None else (),
    )


def _shorter(timeout_s: int, limit_s: int) -> int:
    return min(timeout_s or limit_s, limit_s or timeout_s)


def nbd_options_of(config: Config, resource: Resource) -> NbdOptions:
    """The resource's listeners replace those of ``common``."""
    levels = inherited_levels(config, resource)
    listen = next((level.nbd_listen for level in reversed(levels) if level.nbd_listen), ())
    read = _Reader("nbd", merge(*(level.nbd for level in levels)))
    return NbdOptions(
        listen=listen,
        max_clients=read.number("max-clients"),
        negotiation_timeout_s=float(read.number("negotiation-timeout")),
    )
