# SPDX-License-Identifier: Apache-2.0
"""What one node needs to know of a resource, in the units of the engine.

Made from the configuration by ``repl.daemon``; the simulator makes its own.  Addresses are texts for messages only:
dialling and listening are the shell's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from repl.engine.commands import Resync


@dataclass(frozen=True, slots=True)
class VolumeSettings:
    """One volume; sizes in 512-byte sectors, ``al_extents`` in 4 MiB extents."""

    number: int
    minor: int = 0
    has_disk: bool = True
    size_sectors: int = 0  # configured limit, 0 = none
    al_extents: int = 1237
    disk_flushes: bool = True
    disk_drain: bool = True
    md_flushes: bool = True
    on_io_error: str = "detach"
    read_balancing: str = "prefer-local"
    discard_zeroes_if_aligned: bool = True
    al_updates: bool = True
    disk_timeout_ms: int = 0  # 0: a disk may take as long as it likes
    split_brain_undo: bool = False
    split_brain_undo_on_error: str = "stop"  # or "drop"
    resync: Resync = field(default_factory=Resync)
    resync_priority: str = ""  # "" = the numbers in ``resync`` as they are configured
    resync_after: tuple[str, int] | None = None  # resource and volume that go first


@dataclass(frozen=True, slots=True)
class NetSettings:
    """The replication link; times in milliseconds."""

    protocol: int = 3  # 1 = A, 2 = B, 3 = C
    timeout_ms: int = 6000
    ping_int_ms: int = 10000
    ping_timeout_ms: int = 500
    connect_int_ms: int = 10000
    ko_count: int = 7
    two_primaries: bool = False
    on_congestion: str = "block"
    congestion_fill_sectors: int = 0
    congestion_extents: int = 1237
    max_epoch_size: int = 2048
    max_buffers: int = 2048  # 4 KiB pages
    use_rle: bool = True
    strict_flush: bool = True
    cram_hmac_alg: str = ""
    shared_secret: str = field(default="", repr=False)
    data_integrity_alg: str = ""
    verify_alg: str = ""
    csums_alg: str = ""
    csums_after_crash_only: bool = False
    fencing: str = "dont-care"  # or resource-only, resource-and-stonith: the strictest of the volumes
    after_sb_0pri: int = 0
    after_sb_1pri: int = 0
    after_sb_2pri: int = 0
    always_asbp: bool = False
    rr_conflict: str = "disconnect"
    protocol_min: int = 86
    protocol_max: int = 101


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """One resource as one node sees it."""

    resource: str
    node: str
    peer: str
    my_address: str  # "127.0.0.1:7788", for messages and for breaking ties
    peer_address: str
    volumes: tuple[VolumeSettings, ...]
    net: NetSettings = field(default_factory=NetSettings)
    auto_promote: bool = True
    on_no_data: str = "io-error"  # or suspend-io
    handlers: Mapping[str, str] = field(default_factory=dict)  # name -> shell command
