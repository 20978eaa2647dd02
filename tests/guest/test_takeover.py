# SPDX-License-Identifier: Apache-2.0
"""Two machines that run the kernel's DRBD change to our node one after the other, and back again.

An ext4 filesystem on the device lives through all of it: its files are compared after every step by a third machine
or by the kernel that has it mounted.  Each machine keeps its disk, its metadata and its address; what changes is who
runs it: a User-mode Linux guest with drbd.ko, or our daemon.  The steps are those of docs/takeover.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repl.cli.client import Client
from repl.errors import ReplError
from tests.lib.guest import Guest, memory_folder
from tests.lib.netns import NetNamespace
from tests.lib.process import Process
from tests.lib.tools import ROOT, require, require_engine
from tests.lib.wait import wait_for

MIB = 1 << 20
DISK_MIB = 96
MEMORY_MIB = 1024  # three guests and two disks
NBD_PORT = 10809
WAIT_S = 60.0
VECTOR = "depth=128,gro=1"  # two kernels send each other segments that the old driver drops
SUMS = "find . -type f ! -name sums | sort | xargs sha256sum"
_IN_SYNC = re.compile(r"cs:Connected ro:\w+/\w+ ds:UpToDate/UpToDate")


class Machine:
    """One of the two: a disk and an address; either the kernel runs it or we do."""

    def __init__(self, name: str, index: int, net: NetNamespace, folder: Path) -> None:
        self.name, self.index, self.net = name, index, net
        self.address = net.guest_address(index)
        self.disk = folder / f"{name}.img"
        with self.disk.open("wb") as file:
            file.truncate(DISK_MIB * MIB)
        self.folder = folder / name
        self.folder.mkdir()
        self.config = self.folder / "r0.res"
        self.guest: Guest | None = None
        self.daemon: Process | None = None
        self.log = ""

    # ---- the kernel ----

    def boot(self, config: str) -> None:
        self.guest = Guest(
            modules=["drbd:usermode_helper=/bin/true", "ext4", "loop"], nics=[self.net.nic(self.index)], netns=self.net,
            rw=[self.disk.parent], memory_mib=256, name=self.name, vector=VECTOR,
        )  # fmt: skip
        self.guest.write_file("/etc/drbd.conf", config)
        self.guest.run(f"mkdir -p /run/m && losetup /dev/loop0 {self.disk}")

    def run(self, command: str) -> str:
        assert self.guest is not None
        return self.guest.run(command).out

    def shut_down(self) -> None:
        """An orderly end of the kernel's part."""
        assert self.guest is not None
        self.guest.run("drbdadm down r0 && losetup -d /dev/loop0 && sync")
        self.log += self.guest.log()
        self.guest.close()
        self.guest = None

    # ---- our node ----

    def start(self, config: str) -> None:
        """Our daemon on this machine's disk, at this machine's address."""
        self.config.write_text(config)
        self.net.run(["ip", "addr", "add", f"{self.address}/24", "dev", "br0"])
        argv = [sys.executable, "-P", "-m", "repl.daemon.main", "r0", "--config", str(self.config), "--node", self.name,
                "--run-dir", str(self.folder / "run"), "--foreground", "--up"]  # fmt: skip
        env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
        self.daemon = Process(argv, self.folder / "repld.log", env=env, prefix=self.net.prefix)
        self.daemon.wait_until(lambda: self.answers(), WAIT_S, "an answer on the control socket")

    def answers(self) -> bool:
        try:
            return bool(self.call("status")["up"])
        except (ReplError, OSError):
            return False

    def call(self, verb: str, **args: Any) -> dict[str, Any]:
        with Client(self.folder / "run/r0.sock", "r0") as client:
            return client.call(verb, answer_timeout_s=30, **args)

    def stop(self) -> None:
        assert self.daemon is not None
        self.call("down")
        self.daemon.wait_until(lambda: not self.daemon or not self.daemon.is_running, WAIT_S, "the daemon's end")
        self.daemon = None
        self.net.run(["ip", "addr", "del", f"{self.address}/24", "dev", "br0"])

    # ---- either ----

    @property
    def is_in_sync(self) -> bool:
        if self.guest is not None:
            return bool(_IN_SYNC.search(self.guest.read_file("/proc/drbd")))
        volume = self.call("status")["volumes"][0]
        return (volume["replication"], volume["disk"], volume["peer_disk"]) == ("Connected", "UpToDate", "UpToDate")

    def describe(self) -> str:
        with contextlib.suppress(Exception):
            return self.guest.read_file("/proc/drbd") if self.guest is not None else str(self.call("status"))
        return "not running"

    def close(self) -> None:
        if self.guest is not None:
            print(f"--- kernel of {self.name}\n{self.guest.log()[-3000:]}")
            self.guest.close()
        if self.daemon is not None:
            self.daemon.stop(15)
        if (self.folder / "repld.log").exists():
            print(f"--- our log on {self.name}\n{(self.folder / 'repld.log').read_text()[-4000:]}")


class Rig:
    """Both machines, and a third one that uses what our node serves over NBD."""

    def __init__(self, folder: Path) -> None:
        require("linux.uml", "modprobe", "ip", "drbdadm", "nbd-client", "mkfs.ext4", "e2fsck")
        require_engine()
        self.net = NetNamespace(taps=3)
        self.a = Machine("a", 0, self.net, folder)
        self.b = Machine("b", 1, self.net, folder)
        self.user: Guest | None = None

    def kernel_config(self) -> str:
        return self._config("/dev/loop0", "/dev/loop0", "")

    def our_config(self, machine: Machine) -> str:
        return self._config(str(self.a.disk), str(self.b.disk), f"nbd {{ listen {machine.address}:{NBD_PORT}; }}")

    def _config(self, disk_a: str, disk_b: str, extra: str) -> str:
        return f"""global {{ usage-count no; }}
resource r0 {{
	net {{ protocol C; connect-int 1; timeout 9; }}
	disk {{ c-plan-ahead 0; resync-rate 400M; }}
	{extra}
	on a {{ device /dev/drbd0 minor 0; disk {disk_a}; meta-disk internal; address ipv4 {self.a.address}:7788; }}
	on b {{ device /dev/drbd0 minor 0; disk {disk_b}; meta-disk internal; address ipv4 {self.b.address}:7788; }}
}}
"""

    def wait_in_sync(self, *machines: Machine) -> None:
        wait_for(
            lambda: all(m.is_in_sync for m in machines), WAIT_S, "in sync",
            describe=lambda: "\n".join(m.describe() for m in machines), ignore=(ReplError, OSError),
        )  # fmt: skip

    def compare(self) -> None:
        """Both disks hold the same data (the metadata at their ends is each one's own)."""
        size = DISK_MIB * MIB - 64 * 1024
        with self.a.disk.open("rb") as mine, self.b.disk.open("rb") as theirs:
            assert mine.read(size) == theirs.read(size)

    @contextlib.contextmanager
    def mounted_over_nbd(self, machine: Machine) -> Iterator[Guest]:
        """The third machine mounts what our node on ``machine`` serves."""
        if self.user is None:
            self.user = Guest(modules=["nbd", "ext4"], nics=[self.net.nic(2)], netns=self.net, memory_mib=256, name="c")
            self.user.run("mkdir -p /run/m")
        self.user.run(f"nbd-client {machine.address} {NBD_PORT} /dev/nbd0 -N r0/0 && mount /dev/nbd0 /run/m")
        try:
            yield self.user
        finally:
            self.user.run("umount /run/m; e2fsck -fn /dev/nbd0; nbd-client -d /dev/nbd0", check=False)

    def close(self) -> None:
        for machine in (self.a, self.b):
            machine.close()
        if self.user is not None:
            self.user.close()
        self.net.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="takeover-", dir=memory_folder(MEMORY_MIB)) as folder:
        rig = Rig(Path(folder))
        try:
            yield rig
        finally:
            rig.close()


def write_files(guest: Guest, name: str, mib: int) -> None:
    """More files, and the sums of all of them."""
    guest.run(
        f"cd /run/m && mkdir {name} && cp /etc/services /bin/ls {name}/ && "
        f"dd if=/dev/urandom of={name}/random bs=64K count={mib * 16} conv=fsync 2>/dev/null && {SUMS} >sums && sync"
    )


def check_files(guest: Guest) -> None:
    guest.run("cd /run/m && sha256sum --quiet -c sums")


def kernel_pair(rig: Rig) -> None:
    """Two kernels in sync, a the Primary with a mounted filesystem."""
    for machine in (rig.a, rig.b):
        machine.boot(rig.kernel_config())
        machine.run("drbdadm create-md --force r0 2>&1 && drbdadm up r0")
    rig.a.run("drbdadm primary --force r0 && mkfs.ext4 -q /dev/drbd0 && mount /dev/drbd0 /run/m")
    assert rig.a.guest is not None
    write_files(rig.a.guest, "first", 4)
    rig.wait_in_sync(rig.a, rig.b)


def take_over_b(rig: Rig) -> None:
    """b's kernel goes, a writes on alone, our node comes with b's disk and fetches just that."""
    rig.b.shut_down()
    assert rig.a.guest is not None
    write_files(rig.a.guest, "alone", 2)
    rig.b.start(rig.our_config(rig.b))
    rig.wait_in_sync(rig.a, rig.b)
    moved_kib = [int(n) for n in re.findall(r"Began resync as SyncSource \(will sync (\d+) KB", rig.a.guest.log())][-1]
    assert 2 * 1024 <= moved_kib < DISK_MIB * 1024 // 2, "a resync of what was written, not of everything"


def test_take_over_from_the_kernel_and_back(rig: Rig) -> None:
    kernel_pair(rig)
    a, b = rig.a, rig.b

    # (a) Taking over: b first, while a is still the kernel's.
    take_over_b(rig)
    assert a.guest is not None
    check_files(a.guest)
    a.run("umount /run/m && drbdadm secondary r0")
    b.call("primary")
    with rig.mounted_over_nbd(b) as user:
        check_files(user)
        write_files(user, "ours-with-kernel-peer", 2)
        rig.wait_in_sync(a, b)

        # Then a, while the filesystem stays mounted.
        a.shut_down()
        write_files(user, "ours-alone", 2)
        a.start(rig.our_config(a))
        rig.wait_in_sync(a, b)
        check_files(user)
        write_files(user, "ours-with-our-peer", 2)
    rig.wait_in_sync(a, b)
    rig.compare()

    # (b) Back again: a returns to the kernel first and becomes Primary there, then b.
    a.stop()
    with rig.mounted_over_nbd(b) as user:
        write_files(user, "before-the-way-back", 2)
    a.boot(rig.kernel_config())
    a.run("drbdadm up r0")
    rig.wait_in_sync(a, b)
    wait_for(lambda: b.call("status")["volumes"][0]["open"] == 0, WAIT_S, "no NBD client")
    b.call("secondary")
    a.run("drbdadm primary r0 && mount /dev/drbd0 /run/m")
    assert a.guest is not None
    check_files(a.guest)
    write_files(a.guest, "kernel-with-our-peer", 2)
    rig.wait_in_sync(a, b)
    b.stop()
    b.boot(rig.kernel_config())
    b.run("drbdadm up r0")
    write_files(a.guest, "both-kernels-again", 2)
    rig.wait_in_sync(a, b)
    a.run("umount /run/m && drbdadm secondary r0")
    b.run("drbdadm primary r0 && mount /dev/drbd0 /run/m")
    assert b.guest is not None
    check_files(b.guest)
    b.run("umount /run/m && e2fsck -fn /dev/drbd0 && drbdadm secondary r0")
    a.shut_down()
    b.shut_down()
    rig.compare()
    assert [line for line in (a.log + b.log).splitlines() if re.search("EXT4-fs error|I/O error|Oops", line)] == []
