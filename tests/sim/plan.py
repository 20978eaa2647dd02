# SPDX-License-Identifier: Apache-2.0
"""What a seed draws: first which classes of faults are on at all, then their rates, then sizes and options."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from typing import Any

from repl.drbd.split_brain import AfterSplitBrain
from repl.engine.commands import Resync
from repl.node.settings import NetSettings, VolumeSettings
from repl.node.volume import READ_BALANCING
from tests.sim.cluster import Load, Setup
from tests.sim.world import MIB

# How often, when the class is on.
FAULTS = {
    "cut": 4, "reset": 2, "half_open": 2, "flap": 1, "silence": 2, "one_socket": 3, "slow_link": 1, "tiny": 1,
    "flip": 2, "secondary_crash": 2, "secondary_power": 2, "primary_crash": 2, "primary_power": 2, "both_power": 1,
    "both_crash": 1, "double_death": 3, "failover": 3, "crash_point": 4, "crash_loop": 2, "resync_cut": 4,
    "old_disk": 1, "freeze": 1, "disk_error": 3, "disk_range": 1, "disk_stuck": 1, "slow": 1,
    "verify": 2, "rot": 2, "pause_resync": 2, "detach": 2, "invalidate_remote": 1,
    "down_up": 1, "switch": 2, "reconnect": 1, "invalidate": 1, "operators": 2, "split": 1, "upgrade": 1, "client": 1,
    "net_options": 2, "disk_options": 1, "discard": 1, "tentative": 1, "suspend": 1, "diskless": 1, "resize": 3,
}  # fmt: skip


HANDLERS = ("split-brain", "initial-split-brain", "pri-lost", "pri-lost-after-sb", "pri-on-incon-degr", "out-of-sync",
            "local-io-error", "before-resync-target", "after-resync-target", "before-resync-source")  # fmt: skip
OLD_VERSIONS = (86, 88, 89, 90, 91, 94, 95, 96, 97, 99)
FIRST_TO_SKIP_SYNC, FIRST_WITH_VOLUMES = 90, 100


@dataclass(frozen=True)
class Plan:
    """What the seed has drawn."""

    setup: Setup
    load: Load
    faults: dict[str, int]  # class -> weight
    steps: tuple[str, ...]  # one fault each
    gap_ms: int
    initial_sync: bool
    link_bytes_per_second: int = 0  # as long as faults come; 0: no limit


def known(kind: type, **values: Any) -> Any:
    """Settings; those that the product does not have (yet) are left out."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def draw(seed: int) -> Plan:
    """The scenario of a seed."""
    rng = random.Random(seed)
    names = [name for name in FAULTS if rng.random() < 0.3] or ["cut"]
    faults = {name: FAULTS[name] * rng.randint(1, 3) for name in names}
    steps = rng.choices(list(faults), list(faults.values()), k=rng.randint(2, 8))
    mib = rng.choice((1, 1, 1, 2, 2, 2, 4, 4, 8, 16, 64)) if rng.random() < 0.9 else rng.randint(1, 64)
    setup = _setup(rng, mib)
    load = _load(rng, mib * setup.volumes)
    if setup.on_no_data == "suspend-io" or setup.net.fencing == "resource-and-stonith":
        setup = patient(setup, load)
    initial_sync = rng.random() < 0.1 or setup.net.protocol_max < FIRST_TO_SKIP_SYNC
    return Plan(setup, load, faults, tuple(steps), rng.choice((50, 300, 1000)), initial_sync)


def patient(setup: Setup, load: Load) -> Setup:
    """What was kept is sent again at once: a link that needs longer for it than it may would never come up."""
    kept = load.queue_depth * load.max_bytes
    bytes_per_ms = setup.buffer_bytes / (2 * setup.latency_max_us / 1000)
    enough = setup.net.timeout_ms * setup.net.ko_count > 4 * kept / bytes_per_ms
    return setup if enough else replace(setup, net=replace(setup.net, ko_count=0))


def _net(rng: random.Random) -> NetSettings:
    digests = ("", "", "", "crc32c", "xxhash64", "md5", "sha1", "sha256")
    ahead = {"protocol": 1, "on_congestion": "pull-ahead", "congestion_fill_sectors": rng.choice((64, 512))}
    shape = {"protocol": rng.choice((1, 2, 3, 3, 3)), **(ahead if rng.random() < 0.1 else {})}
    fencing = rng.choice((*["dont-care"] * 7, "resource-only", "resource-and-stonith"))
    if fencing == "resource-and-stonith" and shape["protocol"] == 1:
        fencing = "resource-only"
    made: NetSettings = known(
        NetSettings,
        **shape,
        fencing=fencing,
        timeout_ms=rng.choice((600, 1000, 2000, 6000)),
        ping_int_ms=rng.choice((1000, 2000, 5000, 10000)),
        ping_timeout_ms=rng.choice((200, 300, 500)),
        connect_int_ms=rng.choice((1000, 2000, 4000)),
        ko_count=rng.choice((0, 1, 2, 7)),
        max_epoch_size=rng.choice((1, 2, 3, 8, 64, 2048)),
        max_buffers=rng.choice((32, 64, 131, 2048)),
        use_rle=rng.random() < 0.8,
        strict_flush=rng.random() < 0.8,
        protocol_max=rng.choice((101, 101, 101, 101, 100, 100, rng.choice(OLD_VERSIONS))),
        cram_hmac_alg=rng.choice(("", "", "sha1", "sha256")),
        shared_secret="secret",
        data_integrity_alg=rng.choice(digests),
        verify_alg=rng.choice(digests[2:]),
        csums_alg=rng.choice(digests),
        rr_conflict=rng.choice((*["disconnect"] * 4, "call-pri-lost", "retry-connect", "auto-discard")),
        **(_policies(rng) if rng.random() < 0.3 else {}),
    )
    return made


def _policies(rng: random.Random) -> dict[str, Any]:
    """What is done about a split brain without asking anybody."""
    p = AfterSplitBrain
    zero = (p.DISCARD_ZERO_CHANGES, p.DISCARD_LEAST_CHANGES, p.DISCARD_YOUNGER_PRIMARY, p.DISCARD_OLDER_PRIMARY)
    return {
        "after_sb_0pri": int(rng.choice(zero)),
        "after_sb_1pri": int(rng.choice((p.DISCONNECT, p.CONSENSUS, p.DISCARD_SECONDARY))),
        "always_asbp": rng.random() < 0.5,
    }


def _setup(rng: random.Random, mib: int) -> Setup:
    large = mib > 28
    slow_rates = (500, 1000) if mib <= 4 else ()
    net = _net(rng)
    resync = known(
        Resync,
        resync_rate_kib=rng.choice((4000, 20000, 100000, *slow_rates)),
        plan_ahead=rng.choice((0, 0, 20)),
        fill_target=rng.choice((0, 100, 2000)),
        max_rate_kib=102400,
        min_rate_kib=rng.choice((0, 250, 4000)),
        discard_granularity=rng.choice((0, 0, 4096, 65536)),
        use_csums=bool(net.csums_alg),
    )
    volumes = 2 if mib <= 4 and net.protocol_max >= FIRST_WITH_VOLUMES and rng.random() < 0.15 else 1
    room = MIB * rng.randint(1, 4) if volumes == 1 and rng.random() < 0.25 else 0
    return Setup(
        disk_bytes=mib * MIB + rng.choice((64 << 10, 72 << 10, (64 << 10) + 512 * 8 * rng.randint(0, 4))),
        volumes=volumes,
        room_bytes=room,
        resync_in_turn=volumes > 1 and rng.random() < 0.5,
        on_no_data=rng.choice(("io-error", "io-error", "suspend-io")),
        al_extents=rng.choice((7, 7, 8, 67)) if large else rng.choice((2, 2, 7, 67)),
        net=net,
        resync=resync,
        external=rng.random() < 0.2,
        requests=rng.choice((8, 16, 64, 256)),
        latency_max_us=rng.choice((50, 300, 2000, 20000)),
        write_max_us=rng.choice((100, 1000, 5000)),
        flush_max_us=rng.choice((100, 2000, 20000)),
        wake_max_us=rng.choice((10, 500, 5000, 30000)),
        partial_ppm=rng.choice((0, 100_000, 500_000)),
        tiny_ppm=rng.choice((0, 1000, 20_000)),
        buffer_bytes=rng.choice((8 << 10, 64 << 10, 256 << 10)),
        odd_sectors=0 if room else rng.choice((0, 0, 1, 5)),
        handlers=_handlers(rng, net),
        overrides={k: v for k, v in _volume(rng).items() if k in {f.name for f in fields(VolumeSettings)}},
    )


def _handlers(rng: random.Random, net: NetSettings) -> tuple[str, ...]:
    fencing = ("fence-peer", "unfence-peer") if net.fencing != "dont-care" else ()
    return (*fencing, *(HANDLERS if rng.random() < 0.3 else ()))


def _volume(rng: random.Random) -> dict[str, Any]:
    """Options of a volume's disk."""
    return {
        "on_io_error": rng.choice(("detach", "detach", "detach", "pass_on")),
        "disk_timeout_ms": rng.choice((0, 0, 0, 2000)),
        "read_balancing": rng.choice((*["prefer-local"] * 8, *READ_BALANCING)),
        "split_brain_undo": rng.random() < 0.3,
        "split_brain_undo_on_error": rng.choice(("stop", "drop")),
    }


def _load(rng: random.Random, mib: int) -> Load:
    return Load(
        queue_depth=rng.choice((1, 2, 4, 16)),
        read_percent=rng.choice((0, 20, 60)),
        flush_percent=rng.choice((0, 2, 10)),
        zero_percent=rng.choice((0, 3)),
        trim_percent=rng.choice((0, 3)),
        fua_percent=rng.choice((0, 5, 30)),
        hot_percent=rng.choice((0, 50, 90)),
        align_bytes=rng.choice((512, 4096, 4096)),
        max_bytes=rng.choice((4096, 16384, 65536, 262144, MIB)),
        think_max_ms=rng.choice((5, 20, 60)) * (3 if mib > 4 else 1),
    )


def short(plan: Plan, **changes: object) -> Plan:
    """The same scenario, changed (for narrowing a failure down)."""
    return replace(plan, **changes)  # type: ignore[arg-type]
