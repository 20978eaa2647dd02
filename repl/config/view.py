# SPDX-License-Identifier: Apache-2.0
"""Read a configuration, and pick from it what one node needs.

Input: a path (or a text), the name of a resource and of a node.  Output: ``Config`` and ``NodeView``.
Errors: ``ConfigError`` for a file that is wrong and for a resource that this program cannot run yet;
``UsageError`` for a resource that does not exist or is not for this node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from repl.config.build import build, is_safe_name
from repl.config.check import finish, resync_after_target
from repl.config.model import (
    STACKED_PREFIX,
    Address,
    Config,
    Endpoint,
    Host,
    HostKind,
    MetaDisk,
    MetaDiskKind,
    NetOptions,
    NodeView,
    Option,
    Options,
    Resource,
    VolumeView,
    connections_between,
    disk_options_of,
    find_host,
    host_volumes,
    inherited_levels,
    merge,
    nbd_options_of,
    net_options_of,
    typed_disk,
    typed_net,
    typed_options,
    typed_startup,
)
from repl.config.options import DISCARD_NODE_PREFIX, FENCING_POLICIES
from repl.config.reading import did_you_mean, error_at
from repl.drbd.digests import ADVICE as DIGEST_ADVICE
from repl.drbd.digests import DIGESTS
from repl.errors import ConfigError, UsageError


def load(path: Path, *, text: str | None = None, strict: bool = False) -> Config:
    """Read and check a configuration.

    ``text`` replaces the content of ``path`` (standard input, tests); includes stay relative to ``path``.
    ``strict`` refuses what the real tools let pass although it is a mistake.
    """
    return finish(build(path, text, is_strict=strict))


def resources_of_node(config: Config, node: str, *, addresses: Iterable[str] = ()) -> tuple[Resource, ...]:
    """The resources that have a section for this node, in the order of the file."""
    own_addresses = tuple(addresses)
    return tuple(
        found for found in config.resources.values() if find_host(found, node, own_addresses) is not None
    )


def resource_for_node(config: Config, name: str, node: str, *, addresses: Iterable[str] = ()) -> NodeView:
    """What ``node`` needs to run resource ``name``.  ``addresses``: the node's own, for floating sections."""
    resource = _find_resource(config, name)
    me = _find_me(resource, node, addresses)
    peer = _find_peer(resource, me)
    _refuse_unsupported_form(resource, me)
    levels = inherited_levels(config, resource)
    net = net_options_of(config, resource, me, peer)
    _refuse_unsafe(net, resource)
    _check_algorithms(net)
    my_address, peer_address = _addresses(resource, me, peer)
    typed = _with_strictest_fencing(typed_net(_without_node_names(net, me)), resource, me)
    _check_combination(typed, net, resource)
    return NodeView(
        resource=resource,
        me=me,
        peer=peer,
        my_address=my_address,
        peer_address=peer_address,
        volumes=_volumes(config, resource, me, peer),
        net=typed,
        options=typed_options(merge(*(level.options for level in levels), me.options)),
        nbd=nbd_options_of(config, resource),
        startup=typed_startup(merge(*(level.startup for level in levels))),
        handlers={
            handler: option.text for handler, option in merge(*(level.handlers for level in levels)).items()
        },
    )


def _find_resource(config: Config, name: str) -> Resource:
    resource = config.resources.get(name)
    if resource is None:
        known = sorted(config.resources)
        hint = did_you_mean(name, known) or f"Known: {', '.join(known) or 'none'}."
        raise UsageError(f"'{name}' not defined in your config.", advice=hint)
    return resource


def _find_me(resource: Resource, node: str, addresses: Iterable[str]) -> Host:
    me = find_host(resource, node, addresses)
    if me is None:
        known = ", ".join(host.label for host in resource.hosts)
        raise UsageError(
            f"'{resource.name}' not defined in your config for this host: no section matches node '{node}'.",
            advice=f"It has sections for: {known}.",
        )
    return me


def _find_peer(resource: Resource, me: Host) -> Host:
    peers = [host for host in resource.hosts if host is not me]
    if resource.connections or resource.meshes:
        peers = [peer for peer in peers if any(connections_between(resource, me, peer))]
    if len(peers) != 1:
        count = len(peers)
        raise error_at(
            me.where, f"resource {resource.name} has {count} peers for {me.label}; exactly one is supported."
        )
    return peers[0]


def _refuse_unsupported_form(resource: Resource, me: Host) -> None:
    if not is_safe_name(resource.name):
        raise error_at(
            resource.where,
            f"the resource name '{resource.name}' cannot be used here.",
            advice="Use letters, digits and . _ + - only.",
        )


def _refuse_unsafe(net: Options, resource: Resource) -> None:
    """Options that would break data or the wire if they were ignored."""
    for option in net.values():
        if option.spec.breaks_wire and not option.spec.is_honoured(option.value):
            raise error_at(
                option.where,
                f"resource {resource.name}: '{option.name} {option.text}' is not supported yet.",
                advice="Remove it on both nodes.",
            )


def _check_algorithms(net: Options) -> None:
    for name in ("data-integrity-alg", "verify-alg", "csums-alg"):
        option = net.get(name)
        if option is not None and option.text and option.text not in DIGESTS:
            raise error_at(option.where, f"{name} '{option.text}' is not known here.", advice=DIGEST_ADVICE)


def _check_combination(net: NetOptions, options: Options, resource: Resource) -> None:
    """What the DRBD module refuses when the connection is set up."""
    for name, is_wrong, need in (
        ("allow-two-primaries", net.allow_two_primaries and net.protocol != "C", "protocol C"),
        ("fencing", net.fencing == "resource-and-stonith" and net.protocol == "A", "protocol B or C"),
        ("on-congestion", net.on_congestion == "pull-ahead" and net.protocol != "A", "protocol A"),
    ):
        if is_wrong:
            option = options[name]
            raise error_at(
                option.where,
                f"resource {resource.name}: '{name} {option.text}' needs {need} (it has {net.protocol}).",
            )


def _with_strictest_fencing(net: NetOptions, resource: Resource, me: Host) -> NetOptions:
    """DRBD 8.4 has fencing per volume; one connection can only do the strictest."""
    volumes = [*resource.volumes.values(), *me.volumes.values()]
    chosen = [net.fencing, *(v.options["fencing"].text for v in volumes if "fencing" in v.options)]
    return replace(net, fencing=max(chosen, key=FENCING_POLICIES.index))


def _without_node_names(net: Options, me: Host) -> Options:
    """``discard-node-HOST`` becomes discard-local or discard-remote."""
    option = net.get("after-sb-0pri")
    if option is None or not option.text.startswith(DISCARD_NODE_PREFIX):
        return net
    is_local = option.text.removeprefix(DISCARD_NODE_PREFIX) in me.names
    resolved: Option = replace(option, value="discard-local" if is_local else "discard-remote")
    return {**net, option.name: resolved}


def _addresses(resource: Resource, me: Host, peer: Host) -> tuple[Address, Address]:
    """The two ends: of the first path of an explicit connection, else of the host sections."""
    connections, _ = connections_between(resource, me, peer)
    for path in (path for connection in connections for path in connection.paths):
        ends = {host.label: endpoint for host in (me, peer) for endpoint in path if endpoint.is_of(host)}
        if len(ends) == 2:
            return _end_address(ends[me.label], me), _end_address(ends[peer.label], peer)
    if me.address is None or peer.address is None:
        raise ConfigError(f"resource {resource.name}: no address is known for {me.label} and {peer.label}.")
    # With a proxy on both sides each node talks to its own proxy.
    return me.address, me.proxy.inside if me.proxy and peer.proxy else peer.address


def _end_address(endpoint: Endpoint, host: Host) -> Address:
    if endpoint.address is not None:
        return endpoint.address
    assert host.address is not None  # check.py
    return replace(host.address, port_text=endpoint.port_text) if endpoint.port_text else host.address


def _volumes(config: Config, resource: Resource, me: Host, peer: Host) -> tuple[VolumeView, ...]:
    views: list[VolumeView] = []
    for number, volume in host_volumes(resource, me).items():
        is_stacked = me.kind is HostKind.STACKED
        assert volume.device is not None and (is_stacked or volume.disk is not None)  # check.py
        disk = f"{STACKED_PREFIX}{me.lower}/{number}" if volume.disk is None else volume.disk.path
        options = disk_options_of(config, resource, me, number, peer)
        after = options.get("resync-after")
        target = resync_after_target(dict(config.resources), after) if after is not None else None
        if target is None:
            options.pop("resync-after", None)  # warned about by check.py
        meta = volume.meta_disk or MetaDisk(MetaDiskKind.INTERNAL)
        views.append(VolumeView(number, volume.device, disk, meta, typed_disk(options), target))
    return tuple(views)
