# SPDX-License-Identifier: Apache-2.0
"""From the configuration's ``NodeView`` to the node's ``NodeSettings``.

Mind the units: the resync controller counts in tenths of a second, the configuration's view in milliseconds.
Errors: ``ConfigError`` for addresses that this program cannot use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from repl.config.model import (
    Address,
    AddressFamily,
    DiskOptions,
    NetOptions,
    NodeView,
    Options,
    VolumeView,
    typed_net,
)
from repl.drbd.split_brain import AfterSplitBrain
from repl.engine.commands import Resync
from repl.errors import ConfigError
from repl.node.resync_options import with_priority
from repl.node.settings import NetSettings, NodeSettings, VolumeSettings

TENTH_MS = 100

PROTOCOLS = {"A": 1, "B": 2, "C": 3}

_AFTER_SPLIT_BRAIN = {policy.option: policy for policy in AfterSplitBrain}


def node_settings(view: NodeView) -> NodeSettings:
    """The same facts in the engine's units."""
    for address in (view.my_address, view.peer_address):
        check_address(address)
    return NodeSettings(
        resource=view.name,
        node=_node_name(view, mine=True),
        peer=_node_name(view, mine=False),
        my_address=view.my_address.endpoint,
        peer_address=view.peer_address.endpoint,
        volumes=tuple(_volume(volume) for volume in view.volumes),
        net=_net(view.net),
        auto_promote=view.options.auto_promote,
        on_no_data=view.options.on_no_data_accessible,
        handlers=dict(view.handlers),
    )


def check_address(address: Address) -> None:
    if address.family not in (AddressFamily.IPV4, AddressFamily.IPV6):
        raise ConfigError(
            f"address {address}: {address.family.value} is not supported.",
            file=address.where.file,
            line=address.where.line,
            advice="Use ipv4 or ipv6 on both nodes.",
        )


def _node_name(view: NodeView, *, mine: bool) -> str:
    host = view.me if mine else view.peer
    return host.names[0] if host.names else host.label


def _volume(view: VolumeView) -> VolumeSettings:
    options = view.options
    return VolumeSettings(
        number=view.number,
        minor=view.device.minor,
        has_disk=view.disk_path is not None,
        size_sectors=options.size_sectors,
        al_extents=options.al_extents,
        disk_flushes=options.disk_flushes,
        disk_drain=options.disk_drain,
        md_flushes=options.md_flushes,
        on_io_error=options.on_io_error,
        split_brain_undo=options.split_brain_undo,
        split_brain_undo_on_error=options.split_brain_undo_on_error,
        disk_timeout_ms=options.disk_timeout_ms,
        read_balancing=options.read_balancing,
        discard_zeroes_if_aligned=options.discard_zeroes_if_aligned,
        al_updates=options.al_updates,
        resync=with_priority(_resync(options), options.resync_priority),
        resync_priority=options.resync_priority,
        resync_after=view.resync_after,
    )


def _resync(options: DiskOptions) -> Resync:
    return Resync(
        resync_rate_kib=options.resync_rate_kib_s,
        plan_ahead=options.c_plan_ahead_ms // TENTH_MS,
        delay_target=options.c_delay_target_ms // TENTH_MS,
        fill_target=options.c_fill_target_sectors,
        max_rate_kib=options.c_max_rate_kib_s,
        min_rate_kib=options.c_min_rate_kib_s,
        discard_granularity=options.rs_discard_granularity_bytes,
    )


# Options of ``net`` that a running resource can change, and what NetSettings calls them.
NET_FIELDS = {
    "protocol": "protocol",
    "timeout": "timeout_ms",
    "ping-int": "ping_int_ms",
    "ping-timeout": "ping_timeout_ms",
    "connect-int": "connect_int_ms",
    "ko-count": "ko_count",
    "max-epoch-size": "max_epoch_size",
    "max-buffers": "max_buffers",
    "allow-two-primaries": "two_primaries",
    "after-sb-0pri": "after_sb_0pri",
    "after-sb-1pri": "after_sb_1pri",
    "after-sb-2pri": "after_sb_2pri",
    "always-asbp": "always_asbp",
    "rr-conflict": "rr_conflict",
    "on-congestion": "on_congestion",
    "congestion-fill": "congestion_fill_sectors",
    "congestion-extents": "congestion_extents",
    "data-integrity-alg": "data_integrity_alg",
    "verify-alg": "verify_alg",
    "csums-alg": "csums_alg",
    "csums-after-crash-only": "csums_after_crash_only",
    "use-rle": "use_rle",
    "strict-flush": "strict_flush",
}


def net_changes(options: Options, names: Iterable[str]) -> dict[str, Any]:
    """Fields of NetSettings for these names: as in ``options``, or DRBD's default."""
    settings = _net(typed_net(options))
    return {NET_FIELDS[name]: getattr(settings, NET_FIELDS[name]) for name in names}


def _net(net: NetOptions) -> NetSettings:
    return NetSettings(
        protocol=PROTOCOLS[net.protocol],
        timeout_ms=net.timeout_ms,
        ping_int_ms=net.ping_int_ms,
        ping_timeout_ms=net.ping_timeout_ms,
        connect_int_ms=net.connect_int_ms,
        ko_count=net.ko_count,
        two_primaries=net.allow_two_primaries,
        on_congestion=net.on_congestion,
        congestion_fill_sectors=net.congestion_fill_sectors,
        congestion_extents=net.congestion_extents,
        max_epoch_size=net.max_epoch_size,
        max_buffers=net.max_buffers_pages,
        use_rle=net.use_rle,
        strict_flush=net.strict_flush,
        cram_hmac_alg=net.cram_hmac_alg,
        shared_secret=net.shared_secret,
        data_integrity_alg=net.data_integrity_alg,
        verify_alg=net.verify_alg,
        csums_alg=net.csums_alg,
        csums_after_crash_only=net.csums_after_crash_only,
        fencing=net.fencing,
        after_sb_0pri=int(_AFTER_SPLIT_BRAIN[net.after_sb_0pri]),
        after_sb_1pri=int(_AFTER_SPLIT_BRAIN[net.after_sb_1pri]),
        after_sb_2pri=int(_AFTER_SPLIT_BRAIN[net.after_sb_2pri]),
        always_asbp=net.always_asbp,
        rr_conflict=net.rr_conflict,
    )
