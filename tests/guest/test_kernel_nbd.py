# SPDX-License-Identifier: Apache-2.0
"""The kernel's NBD client in a guest, on our NBD server on the host, over a tap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pytest

from tests.lib.cluster import ALICE, BOB, Cluster
from tests.lib.guest import Guest
from tests.lib.netns import NetNamespace
from tests.lib.process import Process
from tests.lib.tools import require, require_engine

DEVICE = "/dev/nbd0"
NBD_PORTS = {ALICE: 10810, BOB: 10811}
SUMS = "cd /run/m && find . -type f | sort | xargs sha256sum"
COMPLAINTS = ("I/O error", "Unexpected reply", "Wrong magic", "EXT4-fs error", "Connection timed out", "Oops")


class NetCluster(Cluster):
    """Both nodes live in a network namespace; their NBD servers listen on the address that guests can reach."""

    def __init__(self, net: NetNamespace, **options: object) -> None:
        self._namespace = net
        super().__init__(**options)  # type: ignore[arg-type]

    def config_text(
        self,
        own: str,
        net: Mapping[str, str],
        disk: Mapping[str, str],
        options: Mapping[str, str],
        nbd: str,
        handlers: Mapping[str, str],
    ) -> str:
        nbd = f"{nbd} listen {NetNamespace.HOST}:{NBD_PORTS[own]};"
        return super().config_text(own, net, disk, options, nbd, handlers)

    def spawn(self, name: str, *arguments: str, prefix: Sequence[str] = ()) -> Process:
        return super().spawn(name, *arguments, prefix=[*self._namespace.prefix, *prefix])


@pytest.fixture(scope="module")
def namespace() -> Iterator[NetNamespace]:
    require("nbd-client", "mkfs.ext4", "e2fsck")
    require_engine()
    with NetNamespace(taps=1) as net:
        yield net


@pytest.fixture(scope="module")
def shared_guest(namespace: NetNamespace) -> Iterator[Guest]:
    with Guest(modules=["nbd", "ext4"], nics=[namespace.nic(0)], netns=namespace) as guest:
        guest.run("mkdir -p /run/m")
        yield guest


@pytest.fixture
def guest(shared_guest: Guest) -> Iterator[Guest]:
    """The module's guest; at the end nothing is mounted or attached, and its kernel has not complained."""
    begin = len(shared_guest.log())
    try:
        yield shared_guest
    finally:
        log = shared_guest.log()[begin:]
        print(f"--- the guest's kernel\n{log[-4000:]}")
        if shared_guest.is_running:
            shared_guest.run(f"umount -l /run/m; nbd-client -d {DEVICE}", check=False)
    assert [line for line in log.splitlines() if any(word in line for word in COMPLAINTS)] == []


def attach(guest: Guest, name: str) -> None:
    guest.run(f"nbd-client {NetNamespace.HOST} {NBD_PORTS[name]} {DEVICE} -N r0/0 -t 30", timeout=30)


def detach(guest: Guest) -> None:
    guest.run(f"nbd-client -d {DEVICE}")


def fill(guest: Guest) -> str:
    """A filesystem with files in it, unmounted; the files' checksums."""
    guest.run(
        f"mkfs.ext4 -q {DEVICE} && mount {DEVICE} /run/m && cp -r /etc/default /bin/ls /bin/cat /run/m && "
        "dd if=/dev/urandom of=/run/m/random bs=64K count=64 conv=fsync 2>/dev/null"
    )
    sums = guest.run(SUMS).out
    guest.run("umount /run/m")
    return sums


def check(guest: Guest, sums: str) -> None:
    guest.run(f"e2fsck -fn {DEVICE} && mount {DEVICE} /run/m")
    assert guest.run(SUMS).out == sums
    guest.run("umount /run/m")


def test_kernel_client_keeps_a_filesystem_on_our_server(guest: Guest, namespace: NetNamespace) -> None:
    with NetCluster(namespace) as cluster:
        cluster.start_single()
        attach(guest, ALICE)
        size = int(guest.run(f"blockdev --getsize64 {DEVICE}").out)
        assert size == cluster.volume(ALICE)["size_bytes"]
        sums = fill(guest)
        detach(guest)
        cluster.wait("the client is gone", lambda: cluster.volume(ALICE)["open"] == 0)
        attach(guest, ALICE)  # nothing comes from the guest's cache now
        check(guest, sums)
        detach(guest)


def test_kernel_client_sees_cache_fua_and_discard_and_uses_them(guest: Guest, namespace: NetNamespace) -> None:
    with NetCluster(namespace) as cluster:
        cluster.start_single()
        attach(guest, ALICE)
        queue = "/sys/block/nbd0/queue"
        assert guest.run(f"cat {queue}/write_cache {queue}/fua").out.split("\n")[:2] == ["write back", "1"]
        assert int(guest.run(f"cat {queue}/discard_max_bytes").out) > 0
        guest.run(f"dd if=/dev/urandom of={DEVICE} bs=1M count=8 oflag=direct conv=fsync 2>/dev/null")
        guest.run(f"blkdiscard -o 1M -l 2M {DEVICE} && blkdiscard -z -o 4M -l 1M {DEVICE}")
        zeroes = f"dd if={DEVICE} iflag=direct bs=1M skip=4 count=1 2>/dev/null | tr -d '\\000' | wc -c"
        assert guest.run(zeroes).out.strip() == "0"
        guest.run(f"mkfs.ext4 -q {DEVICE} && mount -o discard {DEVICE} /run/m && cp /bin/ls /run/m && sync && "
                  "rm /run/m/ls && sync && fstrim /run/m && umount /run/m && "
                  f"e2fsck -fn {DEVICE}")  # fmt: skip
        detach(guest)


def test_kernel_client_finds_its_filesystem_on_the_other_node_after_a_kill(
    guest: Guest, namespace: NetNamespace
) -> None:
    with NetCluster(namespace) as cluster:
        cluster.start_pair()
        attach(guest, ALICE)
        assert cluster.status(ALICE)["role"] == "Primary"
        sums = fill(guest)
        cluster.kill(ALICE)
        guest.run(f"nbd-client -d {DEVICE}", check=False)
        cluster.wait("bob alone", lambda: cluster.status(BOB)["connection"] != "Connected")
        attach(guest, BOB)
        check(guest, sums)
        guest.run(f"mount {DEVICE} /run/m && cp /bin/tar /run/m && umount /run/m")
        cluster.start(ALICE)
        cluster.wait_synced()
        detach(guest)
        cluster.wait("the client is gone", lambda: cluster.volume(BOB)["open"] == 0)
        cluster.wait("bob Secondary", lambda: cluster.status(BOB)["role"] == "Secondary")
        attach(guest, ALICE)
        guest.run(f"e2fsck -fn {DEVICE} && mount {DEVICE} /run/m && cmp /bin/tar /run/m/tar && umount /run/m")
        detach(guest)


def test_kernel_client_waits_while_our_primary_loses_its_peer(guest: Guest, namespace: NetNamespace) -> None:
    with NetCluster(namespace) as cluster:
        cluster.start_pair()
        attach(guest, ALICE)
        guest.run(f"mkfs.ext4 -q {DEVICE} && mount {DEVICE} /run/m")
        guest.run("(setsid dd if=/dev/urandom of=/run/m/random bs=64K count=320 oflag=direct </dev/null "
                  ">/dev/null 2>&1; echo $? >/run/load.status) >/dev/null 2>&1 &")  # fmt: skip
        cluster.wait("some writes", lambda: guest.run("stat -c %s /run/m/random", check=False).out not in ("", "0\n"))
        cluster.kill(BOB)
        cluster.start(BOB)
        cluster.wait("the writes' end", lambda: guest.run("cat /run/load.status", check=False).out == "0\n")
        guest.run(f"umount /run/m && e2fsck -fn {DEVICE}")
        cluster.wait_synced()
        cluster.compare_disks()
        detach(guest)
