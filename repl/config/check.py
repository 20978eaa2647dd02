# SPDX-License-Identifier: Apache-2.0
"""The checks that need more than one statement, and the node ids that follow from them.

Input: the ``Draft`` of build.py.  Output: ``Config``.  Errors: ``ConfigError`` at the statement that is
wrong; what the real tools accept but somebody should know becomes a warning.

Facts: the checks of drbdadm 9 and 8.4 (which refuses what, on which line: tests/vectors/res-corpus) and the
derived node ids of drbdadm 9.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from repl.config.grammar import Position
from repl.config.model import (
    Address,
    Config,
    Host,
    HostKind,
    Option,
    Options,
    Resource,
    Volume,
    disk_options_of,
    host_volumes,
    inherited_levels,
    merge,
)
from repl.config.options import DISCARD_NODE_PREFIX, TABLES
from repl.config.reading import Draft, conflict, did_you_mean, error_at, mixed_volumes
from repl.limits import VOLUMES_MAX

_NODE_ID_CRC_START = 0x1A656F21
_CRC32C_POLYNOMIAL = 0x82F63B78


def finish(draft: Draft) -> Config:
    """Check the draft and turn it into a Config."""
    for resource in list(draft.resources.values()):
        draft.resources[resource.name] = _resolve_stacked(draft, resource)
    for resource in list(draft.resources.values()):
        _check_hosts(resource)
        _check_volumes(draft, resource)
        _check_connections(resource)
        draft.resources[resource.name] = _with_node_ids(resource)
    _check_unique(draft)
    config = Config(draft.global_options, draft.common, draft.resources)
    for resource in draft.resources.values():
        _check_options(draft, config, resource)
    return replace(config, files=tuple(draft.files), warnings=tuple(draft.warnings))


# ----------------------------------------------------------------------------------------------- hosts


def _resolve_stacked(draft: Draft, resource: Resource) -> Resource:
    """Give each stacked section the host names of the resource below."""
    if not resource.is_stacked:
        return resource
    hosts: list[Host] = []
    for host in resource.hosts:
        if host.kind is HostKind.STACKED:
            lower = draft.resources.get(host.lower)
            if lower is None:
                raise error_at(
                    host.where,
                    f"in resource {resource.name}, referenced resource '{host.lower}' not defined.",
                    advice=did_you_mean(host.lower, sorted(draft.resources)),
                )
            host = replace(host, names=tuple(name for below in lower.hosts for name in below.names))
        hosts.append(host)
    return replace(resource, hosts=tuple(hosts))


def _in_host(resource: Resource, host: Host) -> str:
    return f"in resource {resource.name}, {host.section} {{ ... }}:"


def _check_hosts(resource: Resource) -> None:
    if not resource.hosts:
        raise error_at(
            resource.where,
            f"in resource {resource.name}:\n\ta host section ('on alpha {{ ... }}') is missing.",
        )
    is_explicit = bool(resource.connections or resource.meshes)
    if len(resource.hosts) > 2 and not is_explicit:
        raise error_at(
            resource.hosts[0].where,
            f"in resource {resource.name}: use explicit 'connection' sections (or a 'connection-mesh' "
            "section) with more than two 'on' sections.",
        )
    ids = [host.node_id for host in resource.hosts]
    if is_explicit or any(node_id is not None for node_id in ids):
        for host in resource.hosts:
            if host.node_id is None:
                raise error_at(host.where, f"{_in_host(resource, host)} 'node-id' keyword missing.")
    first_uses: dict[int, Host] = {}
    for host in resource.hosts:
        if host.node_id in first_uses:
            key = f"{resource.name}:{host.node_id}"
            raise conflict("node-id", key, first=first_uses[host.node_id].where, second=host.where)
        if host.node_id is not None:
            first_uses[host.node_id] = host
    for host in resource.hosts:
        if host.address is None and not resource.connections:
            raise error_at(host.where, f"{_in_host(resource, host)} 'address' keyword missing.")


def _with_node_ids(resource: Resource) -> Resource:
    """Derive the ids of the plain form: the larger checksum of the two addresses is 0, the other 1."""
    if any(host.node_id is not None for host in resource.hosts):
        return resource
    hosts = resource.hosts
    ranked = sorted(range(len(hosts)), key=lambda index: _rank(hosts[index]), reverse=True)
    return replace(
        resource, hosts=tuple(replace(host, node_id=ranked.index(index)) for index, host in enumerate(hosts))
    )


def _rank(host: Host) -> tuple[int, str, str]:
    # differs: drbdadm 9 gives up when both checksums are equal (one machine, two ports; decision 0044).
    # Ours then goes on with what is different and the same on both nodes.
    if host.proxy is not None:
        address = host.proxy.outside
    else:
        assert host.address is not None  # _check_hosts
        address = host.address
    return _node_id_checksum(address.host), address.port_text, " ".join(host.names)


def _node_id_checksum(text: str) -> int:
    """CRC-32C without final inversion, as a signed number."""
    crc = _NODE_ID_CRC_START
    for byte in text.encode("ascii", "replace"):
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_CRC32C_POLYNOMIAL if crc & 1 else 0)
    return crc - (1 << 32) if crc >> 31 else crc


def _check_connections(resource: Resource) -> None:
    known = {name for host in resource.hosts for name in (*host.names, host.label)}
    by_name = {name: host for host in resource.hosts for name in (*host.names, host.label)}
    for mesh in resource.meshes:
        for name in mesh.hosts:
            if name not in known:
                raise _unknown_host(resource, name, "connection-mesh", mesh.where, known)
    for connection in resource.connections:
        for endpoint in (endpoint for path in connection.paths for endpoint in path):
            if endpoint.host and endpoint.host not in known:
                raise _unknown_host(resource, endpoint.host, "connection", endpoint.where, known)
            host = by_name.get(endpoint.host)
            if endpoint.address is None and (host is None or host.address is None):
                raise error_at(
                    endpoint.where,
                    f"in resource {resource.name}: no address is known for host '{endpoint.host}'.",
                )


def _unknown_host(resource: Resource, name: str, kind: str, where: Position, known: set[str]) -> Exception:
    return error_at(
        resource.where,
        f"in resource {resource.name}:\n\tThere is no 'on' section for hostname '{name}' named in the {kind} "
        f"(line {where.line}).",
        advice=did_you_mean(name, sorted(known)),
    )


# --------------------------------------------------------------------------------------------- volumes


def _check_volumes(draft: Draft, resource: Resource) -> None:
    levels = [*resource.volumes.values()]
    levels += [volume for host in resource.hosts for volume in host.volumes.values()]
    if any(volume.is_implicit for volume in levels) and (
        explicit := next((volume for volume in levels if not volume.is_implicit), None)
    ):
        raise mixed_volumes(resource.name, resource.where, explicit.where)
    merged = [(host, host_volumes(resource, host)) for host in resource.hosts]
    for host, volumes in merged:
        for other, others in merged:
            missing = sorted(set(others) - set(volumes))
            if missing:
                raise error_at(
                    resource.where,
                    f"{_in_host(resource, host)} volume {missing[0]} missing (present on {other.label}).",
                )
        if not volumes:
            raise error_at(resource.where, f"{_in_host(resource, host)} 'device' keyword missing.")
        if len(volumes) > VOLUMES_MAX:
            raise error_at(resource.where, f"resource {resource.name} has more than {VOLUMES_MAX} volumes.")
        for volume in volumes.values():
            _check_volume(resource, host, volume)
    _check_stacked_volumes(draft, resource)


def _check_volume(resource: Resource, host: Host, volume: Volume) -> None:
    place = _in_host(resource, host) + ("" if volume.is_implicit else f" volume {volume.number}:")
    if volume.device is None:
        raise error_at(host.where, f"{place} 'device' keyword missing.")
    if volume.disk is None and host.kind is not HostKind.STACKED:
        raise error_at(
            host.where, f"{place} 'disk' keyword missing.", advice="Write 'disk none;' for a diskless volume."
        )


def _check_stacked_volumes(draft: Draft, resource: Resource) -> None:
    for host in resource.hosts:
        if host.kind is not HostKind.STACKED:
            continue
        lower = draft.resources[host.lower]
        for below in lower.hosts:
            missing = sorted(set(host_volumes(resource, host)) - set(host_volumes(lower, below)))
            if missing:
                raise error_at(
                    host.where,
                    f"{_in_host(resource, host)} volume {missing[0]} missing in resource {lower.name}.",
                )


# ---------------------------------------------------------------------------------------------- unique


class _Register:
    """Things that may be used once; remembers who used them first."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._first: dict[str, tuple[object, Position]] = {}

    def claim(self, key: str, owner: object, where: Position) -> None:
        """Refuse the key if somebody else has it."""
        first_owner, first = self._first.setdefault(key, (owner, where))
        if first_owner != owner:
            raise conflict(self.kind, key, first=first, second=where)


def _check_unique(draft: Draft) -> None:
    minors, devices = _Register("device-minor"), _Register("device")
    disks, meta_disks, addresses = _Register("disk"), _Register("meta-disk"), _Register("IP")
    for resource in draft.resources.values():
        for index, host in enumerate(resource.hosts):
            for address in _addresses(resource, host):
                key = f"{address.family.value}:{address.endpoint}"
                # Every node has its own loopback; only the two ends of one connection must differ.
                scope = f"{key} in resource {resource.name}" if address.is_loopback else key
                if not (address.is_loopback and host.proxy is not None):
                    addresses.claim(scope, (resource.name, index), address.where)
            for name in host.names or (host.label,):
                for volume in host_volumes(resource, host).values():
                    _claim_volume(minors, devices, disks, meta_disks, resource, host, name, volume)


def _addresses(resource: Resource, host: Host) -> Iterator[Address]:
    if host.address is not None:
        yield host.address
    for connection in resource.connections:
        for endpoint in (endpoint for path in connection.paths for endpoint in path):
            if endpoint.address is not None and endpoint.host in (*host.names, host.label):
                yield endpoint.address


def _claim_volume(
    minors: _Register,
    devices: _Register,
    disks: _Register,
    meta_disks: _Register,
    resource: Resource,
    host: Host,
    name: str,
    volume: Volume,
) -> None:
    owner = (resource.name, volume.number)
    assert volume.device is not None  # _check_volume
    minors.claim(f"device-minor:{name}:{volume.device.minor}", owner, volume.device.where)
    if volume.device.path:
        devices.claim(f"device:{name}:{volume.device.path}", owner, volume.device.where)
    if host.kind is HostKind.STACKED:
        return
    if volume.disk is not None and volume.disk.path is not None:
        disks.claim(f"disk:{name}:{volume.disk.path}", owner, volume.disk.where)
    meta = volume.meta_disk
    if meta is not None and meta.path:
        meta_disks.claim(f"meta-disk:{name}:{meta.path}[{meta.index}]", owner, meta.where)


# --------------------------------------------------------------------------------------------- options


def _check_options(draft: Draft, config: Config, resource: Resource) -> None:
    levels = inherited_levels(config, resource)
    nets = [resource.sections.net, *(mesh.net for mesh in resource.meshes)]
    nets += [connection.net for connection in resource.connections]
    for net in nets:
        _check_discard_node(resource, net or {})
    inherited = merge(*(level.net for level in levels))
    _check_discard_node(resource, inherited)
    for net in nets:
        _check_timing(draft, merge(inherited, net))
        _check_secret(draft, merge(inherited, net))
    _check_startup(draft, resource, merge(*(level.startup for level in levels)))
    _check_volume_options(draft, resource)
    for host in resource.hosts:
        for number in host_volumes(resource, host):
            option = disk_options_of(config, resource, host, number).get("resync-after")
            if option is not None:
                resync_after_target(draft.resources, option)
                _warn_unknown_resync_after(draft, option)
                _check_resync_cycles(config, resource, host, number)


def _check_discard_node(resource: Resource, net: Options) -> None:
    """8.4: ``after-sb-0pri discard-node-HOST``; the host must be one of the resource's."""
    option = net.get("after-sb-0pri")
    if option is None or not option.text.startswith(DISCARD_NODE_PREFIX):
        return
    name = option.text.removeprefix(DISCARD_NODE_PREFIX)
    known = [known for host in resource.hosts for known in host.names]
    if name not in known:
        raise error_at(
            option.where,
            f"Parse error: while parsing value ('{option.text}')\nfor after-sb-0pri. Value is not valid.",
            advice=f"Resource {resource.name} has no host '{name}'. {did_you_mean(name, known)}".rstrip(),
        )


def _check_timing(draft: Draft, net: Options) -> None:
    """The manual wants timeout below connect-int and ping-int; the tools accept anything."""

    def tenths(name: str) -> int:
        spec = TABLES["net"][name]
        value = int(net[name].value) if name in net else int(spec.default)
        return value if name == "timeout" else value * 10

    for name in ("connect-int", "ping-int"):
        option = net.get("timeout") or net.get(name)
        if option is not None and tenths("timeout") >= tenths(name):
            _warn_once(
                draft,
                f"timeout ({tenths('timeout')}/10 s) should be below {name} ({tenths(name)}/10 s).",
                option,
            )


def _check_secret(draft: Draft, net: Options) -> None:
    algorithm, secret = net.get("cram-hmac-alg"), net.get("shared-secret")
    if algorithm is not None and algorithm.text and (secret is None or not secret.text):
        _warn_once(draft, "'cram-hmac-alg' without 'shared-secret' keeps nobody out.", algorithm)


def _check_startup(draft: Draft, resource: Resource, startup: Options) -> None:
    for name, limit_name in (
        ("degr-wfc-timeout", "wfc-timeout"),
        ("outdated-wfc-timeout", "degr-wfc-timeout"),
    ):
        option, limit = startup.get(name), startup.get(limit_name)
        if option and limit and limit.value and (not option.value or int(option.value) > int(limit.value)):
            _warn_once(draft, f"{name} exceeds {limit_name} and is lowered to {limit.text}.", option)
    become = startup.get("become-primary-on")
    known = {name for host in resource.hosts for name in host.names}
    for name in become.words if become is not None else ():
        if become is not None and name != "both" and name not in known:
            _warn_once(
                draft, f"become-primary-on names '{name}', which is not a host of {resource.name}.", become
            )


def _check_volume_options(draft: Draft, resource: Resource) -> None:
    """Newest DRBD 9 refuses to apply what is set on both levels; here the volume wins."""
    for volume in resource.volumes.values():
        for name, option in volume.options.items():
            above = (resource.sections.disk or {}).get(name)
            if above is not None and above.text != option.text:
                _warn_once(
                    draft, f"'{name}' is also set at {above.where}; the volume's value counts.", option
                )


def resync_after_target(resources: dict[str, Resource], option: Option) -> tuple[str, int] | None:
    """The (resource, volume) that ``resync-after`` names; None for -1 or an unknown name."""
    name, slash, number = option.text.partition("/")
    target = resources.get(name)
    if target is None:
        return None
    numbers = sorted({*target.volumes, *(number for host in target.hosts for number in host.volumes)})
    if not slash:
        if len(numbers) != 1:
            raise error_at(
                option.where,
                f"resync-after '{option.text}' is ambiguous: {name} has {len(numbers)} volumes.",
                advice=f"Write '{name}/{numbers[0]}'.",
            )
        return name, numbers[0]
    return (name, int(number)) if number.isascii() and number.isdigit() and int(number) in numbers else None


def _check_resync_cycles(config: Config, resource: Resource, host: Host, number: int) -> None:
    """Two volumes that wait for each other would never resync (DRBD's code 133)."""
    start = (resource.name, number)
    where: tuple[str, int] | None = start
    chain: list[str] = []
    while where is not None:
        chain.append(f"{where[0]}/{where[1]}")
        now = config.resources.get(where[0])
        here = next((h for h in now.hosts if h is host or set(h.names) & set(host.names)), None) if now else None
        if now is None or here is None or where[1] not in host_volumes(now, here):
            return
        option = disk_options_of(config, now, here, where[1]).get("resync-after")
        target = resync_after_target(dict(config.resources), option) if option is not None else None
        if target == start and option is not None:
            raise error_at(
                option.where,
                f"resync-after makes a circle: {' after '.join([*chain, chain[0]])}.",
                advice="Let one of them have no resync-after.",
            )
        if target is not None and f"{target[0]}/{target[1]}" in chain:
            return  # a circle that this one only leads to; those in it say so
        where = target


def _warn_unknown_resync_after(draft: Draft, option: Option) -> None:
    if option.text != "-1" and resync_after_target(draft.resources, option) is None:
        _warn_once(
            draft, f"resource '{option.text}' mentioned in 'resync-after' option is not known.", option
        )


def _warn_once(draft: Draft, text: str, option: Option) -> None:
    """Inherited options are looked at for every resource, but reported once."""
    if not any(warning.text == text and warning.where == option.where for warning in draft.warnings):
        draft.warn(text, option.where)
