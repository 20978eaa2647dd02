# SPDX-License-Identifier: Apache-2.0
"""A pair of one of our nodes ("here") and one of the kernel's DRBD 8.4 ("guest", in a User-mode Linux guest).

Both read the same configuration file: ours is written to the test's folder, the kernel's copy lies in the guest.
:class:`KernelLab` is one guest and its network for many tests; :class:`KernelPair` is one resource in it, with its
own minor, ram disk, port and backing file.  Everything is awaited, and what could not be awaited says what both sides
look like.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbd.client import NbdClient
from repl import config
from repl.cli.client import Client
from repl.daemon.disks import open_disk
from repl.errors import ReplError
from repl.node.disk import create_metadata
from tests.lib.guest import Guest
from tests.lib.netns import NetNamespace
from tests.lib.process import Process
from tests.lib.relay import Relay
from tests.lib.tools import ROOT, SYSTEM_PYTHON, require, require_engine
from tests.lib.wait import wait_for

MIB = 1 << 20
DISK_BYTES = 32 * MIB
DISKS = 15
MEMORY_MIB = 1024  # what was written to a ram disk stays
FIRST_PORT = 7700
TO_GUEST, TO_HERE = 100, 200  # a relay's ports, from the pair's on
WAIT_S = 40.0
START_S = 60.0  # of a daemon, on a machine that does much else
LOG_TAIL = int(os.environ.get("REPL_LOG_TAIL", "6000"))
LOAD_BLOCKS = 3000
# How often the link is interrupted under load; more of it is a soak test.
ROUNDS = int(os.environ.get("REPL_INTEROP_ROUNDS", "4"))
# What the kernel says when the link breaks; for tests that break it.
LINK_LOST = r"PingAck did not arrive|sock was|error receiving|meta connection shut down"
READ_BYTES = 4 * MIB
# What the kernel says when the other side behaves in a way that it does not expect.
COMPLAINTS = re.compile(
    r"BAD!|ASSERT|Oops|BUG:|WARNING:|[Uu]nexpected|Wrong magic|unknown packet|expected .* got|"
    r"incompatible|too (short|long|small|large)|not found|mismatch|error receiving|meta connection shut down|"
    r"got wrong|Received bad|magic|timed out waiting|PingAck did not arrive"
)


@dataclass(frozen=True, slots=True)
class KernelState:
    """One line of /proc/drbd."""

    cstate: str
    role: str
    peer_role: str
    disk: str
    peer_disk: str
    protocol: str
    out_of_sync_kib: int

    @property
    def is_in_sync(self) -> bool:
        return (self.cstate, self.disk, self.peer_disk) == ("Connected", "UpToDate", "UpToDate")


class KernelLab:
    """A guest with drbd and ram disks for many pairs; a new one takes over if it dies."""

    def __init__(self, modules: tuple[str, ...] = (), shared: Path | None = None) -> None:
        """``shared``: a folder of the host that the guest may write; disks in it outlive the guest."""
        require("linux.uml", "modprobe", "ip", "drbdadm")
        require_engine()
        self._modules = modules
        self.shared = shared
        self._used = 0
        self.net = NetNamespace(taps=1)
        self._guest: Guest | None = None

    @property
    def guest(self) -> Guest:
        if self._guest is None or not self._guest.is_running:
            self._close_guest()
            self._used = 0
            self._guest = Guest(
                modules=["drbd:usermode_helper=/bin/true", f"brd:rd_nr={DISKS}:rd_size={DISK_BYTES // 1024}",
                         *self._modules],
                nics=[self.net.nic(0)],
                netns=self.net,
                rw=[self.shared] if self.shared else [],
                memory_mib=MEMORY_MIB,
            )  # fmt: skip
        return self._guest

    def take_minor(self) -> int:
        """A ram disk that no test has used yet; the guest starts anew when all were."""
        assert self.guest
        if self._used == DISKS:
            self._close_guest()
            assert self.guest
        self._used += 1
        return self._used - 1

    def make_room(self, disks: int) -> None:
        """For a test with several disks in one guest."""
        if self._used + disks > DISKS:
            self._close_guest()

    def power_cycle(self, minor: int) -> None:
        """The machine loses its power and boots again; only ``shared`` is still there."""
        assert self._guest is not None
        self._guest.kill()
        assert self.guest
        self._used = minor + 1

    def _close_guest(self) -> None:
        if self._guest is not None:
            self._guest.close()
            self._guest = None

    def close(self) -> None:
        self._close_guest()
        self.net.close()


class Kernel:
    """The kernel's side of the pair."""

    def __init__(
        self, lab: KernelLab, minor: int, disk: str, conf: str, size_bytes: int, *, survives: bool = False
    ) -> None:
        self.minor = minor
        self.disk = disk
        self.device = f"/dev/drbd{minor}"
        self.conf = f"/run/interop/r{minor}.conf"
        self.guest = lab.guest
        self.guest.write_file(self.conf, conf)
        self._lab = lab
        self.backing = f"{lab.shared if survives else '/dev/shm'}/disk{minor}"
        if disk.startswith("/dev/loop"):  # unlike a ram disk it can discard
            self.guest.run(f"truncate -s {size_bytes} {self.backing}")
            self._set_up_loop()
        self.log_begin = len(self.guest.log())
        self.log_all_begin = self.log_begin

    def adm(self, command: str, *, check: bool = True, timeout: float = 60) -> str:
        """One drbdadm command; its output."""
        done = self.guest.run(f"drbdadm -c {self.conf} {command} r0", timeout, check=check)
        return done.out + done.err

    def _set_up_loop(self) -> None:
        self.guest.run(f"modprobe loop && losetup {self.disk} {self.backing}")

    def up(self) -> None:
        self.guest.run(f"drbdadm -c {self.conf} create-md --force r0 && drbdadm -c {self.conf} up r0")

    def power_cycle(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Its machine loses power and comes back with the disk as it was (needs a lab with a shared folder)."""
        text = self.guest.run(f"cat {self.conf}").out
        self.guest.kill()
        meanwhile()
        self._lab.power_cycle(self.minor)
        self.guest = self._lab.guest
        self.guest.write_file(self.conf, text)
        self._set_up_loop()
        self.log_begin = self.log_all_begin = len(self.guest.log())
        self.adm("up")

    def state(self) -> KernelState:
        text = self.guest.read_file("/proc/drbd")
        found = re.search(rf"^ *{self.minor}: cs:(\S+)(.*\n.*)$", text, re.MULTILINE)
        if found is None or found[1] == "Unconfigured":
            return KernelState("Unconfigured", "Secondary", "Unknown", "Diskless", "DUnknown", "", 0)
        more = re.search(r"ro:(\w+)/(\w+) ds:(\w+)/(\w+)\s+(\S+)(?:.|\n)*oos:(\d+)", found[2])
        assert more is not None, text
        return KernelState(found[1], more[1], more[2], more[3], more[4], more[5], int(more[6]))

    def flags(self) -> str:
        """Of /proc/drbd: suspended, resync-after, peer and user pause, …"""
        found = re.search(rf"^ *{self.minor}: .* ([rs][-a-z]{{5}})$", self.guest.read_file("/proc/drbd"), re.M)
        return found[1] if found else ""

    def uuids(self) -> list[int]:
        """Current, bitmap and history; without the bit that tells who was Primary."""
        said = re.findall(r"\b[0-9A-F]{16}\b", self.adm("show-gi"))
        return [int(word, 16) & ~1 for word in said[:4]]

    def digest(self, size_bytes: int) -> str:
        """Of the disk itself, past the page cache."""
        assert size_bytes % 4096 == 0
        count = size_bytes // 4096
        command = f"dd if={self.disk} iflag=direct,count_bytes bs=1M count={count * 4096} 2>/dev/null | b2sum"
        return self.guest.run(command).out.split()[0]

    def write(self, offset_kib: int, length_kib: int, *, block_kib: int = 64, flush: bool = False) -> None:
        """Random data, past the page cache; ``flush``: and make it stable."""
        block_kib = min(block_kib, length_kib)
        command = (
            f"dd if=/dev/urandom of={self.device} bs={block_kib}K seek={offset_kib * 1024} "
            f"count={length_kib * 1024} iflag=fullblock,count_bytes oflag=direct,seek_bytes "
            f"conv=notrunc{',fsync' if flush else ''} 2>&1"
        )
        self.guest.run(command)

    def write_blocks(self, blocks: Sequence[int]) -> None:
        """Random data into single blocks of 4 KiB."""
        script = (
            "import os, sys; d = os.open(sys.argv[1], os.O_WRONLY)\n"
            "for line in sys.stdin: os.pwrite(d, os.urandom(4096), int(line) * 4096)\nos.fsync(d)"
        )
        text = "".join(f"{block}\n" for block in blocks)
        self.guest.run([SYSTEM_PYTHON, "-c", script, self.device], stdin=text.encode())

    # A load: small random writes one after the other until told to stop; counts what is done.

    def helper(self, script: str) -> None:
        """What the module runs from now on in place of drbdadm (``$1``: the handler's name); "" for nothing."""
        path = "/run/interop/helper" if script else "/bin/true"
        if script:
            self.guest.write_file(path, f"#!/bin/sh\n{script}\n")
            self.guest.run(f"chmod 755 {path}")
        self.guest.run(f"echo -n {path} >/sys/module/drbd/parameters/usermode_helper")

    def load_start(self) -> None:
        script = (
            f"n=0; while [ ! -e /run/interop/stop{self.minor} ]; do "
            f"dd if=/dev/urandom of={self.device} bs=4K count=4 seek=$((n * 37 % {LOAD_BLOCKS})) oflag=direct "
            f"conv=notrunc 2>/dev/null || break; n=$((n + 1)); echo $n >/run/interop/load{self.minor}; done"
        )
        self.guest.run(f"echo 0 >/run/interop/load{self.minor}; (setsid sh -c '{script}' </dev/null >/dev/null 2>&1 &)")

    def load_count(self) -> int:
        return int(self.guest.read_file(f"/run/interop/load{self.minor}") or 0)

    def load_stop(self) -> None:
        self.guest.run(f"touch /run/interop/stop{self.minor}; while fuser -s {self.device}; do sleep 0.05; done")

    @staticmethod
    def digest_of(data: bytes) -> str:
        return hashlib.blake2b(data).hexdigest()

    def log(self) -> str:
        """Kernel log since this pair began."""
        return self.guest.log()[self.log_all_begin :]

    def complaints(self, *, allowed: str = "") -> list[str]:
        found = [line for line in self.log().splitlines() if COMPLAINTS.search(line)]
        return [line for line in found if not (allowed and re.search(allowed, line))]

    def resync_kib(self) -> int:
        """How much the last resync of this minor set out to move."""
        said = re.findall(rf"drbd{self.minor}: Began resync as \w+ \(will sync (\d+) KB", self.log())
        assert said, self.log()[-LOG_TAIL:]
        return int(said[-1])

    def close(self) -> None:
        if not self.guest.is_running:
            return
        adm = f"drbdadm -c {self.conf}"
        commands = [f"{adm} disconnect --force r0", f"{adm} secondary r0", f"{adm} down r0"]
        if self.disk.startswith("/dev/loop"):
            commands += [f"losetup -d {self.disk}", f"rm -f {self.backing}"]
        with contextlib.suppress(Exception):
            self.guest.run("; ".join(commands), 30, check=False)


class Ours:
    """Our side of the pair: a daemon, its control socket, its disk."""

    def __init__(self, lab: KernelLab, folder: Path, conf: str, size_bytes: int) -> None:
        self._lab = lab
        self._folder = folder
        self._starts = 0
        self.conf = folder / "r0.res"
        self.conf.write_text(conf)
        self.disk = folder / "disk.img"
        with self.disk.open("wb") as file:
            file.truncate(size_bytes)
        self.run_dir = folder / "run"
        self.process: Process | None = None
        self.was_in_sync = False

    def create_metadata(self) -> None:
        """What ``replctl create-md`` does, without the time of a process."""
        for volume in config.resource_for_node(config.load(self.conf), "r0", "here", addresses=()).volumes:
            disk = open_disk(volume)
            try:
                create_metadata(disk.place, device_uuid=secrets.randbits(63) + 1)
            finally:
                disk.close()

    def start(self) -> None:
        """A daemon that is up."""
        self._starts += 1
        argv = [
            sys.executable, "-P", "-m", "repl.daemon.main", "r0", "--config", str(self.conf), "--node", "here",
            "--run-dir", str(self.run_dir), "--foreground", "--up",
        ]  # fmt: skip
        log = self._folder / f"repld-{self._starts}.log"
        self.process = Process(argv, log, env=_environment(), prefix=self._lab.net.prefix)
        self.process.wait_until(self._answers, START_S, "an answer on the control socket")

    def _answers(self) -> bool:
        try:
            return bool(self.call("status")["up"])
        except (ReplError, OSError):
            return False

    def call(self, verb: str, **args: Any) -> dict[str, Any]:
        with Client(self.run_dir / "r0.sock", "r0") as client:
            return client.call(verb, answer_timeout_s=30, **args)

    def status(self) -> dict[str, Any]:
        return self.call("status")

    def brief(self) -> str:
        """Connection, roles and disks on one line."""
        try:
            s = self.status()
        except (ReplError, OSError) as error:
            return f"not running ({error})"
        v = s["volumes"][0]
        return (
            f"{s['connection']}/{v['replication']} {s['role']}/{s['peer']['role']} {v['disk']}/{v['peer_disk']} "
            f"out of sync {v['out_of_sync_bytes'] // 1024} KiB {s['reason']}"
        )

    @property
    def nbd_uri(self) -> str:
        return f"nbd+unix:///?socket={self.run_dir / 'r0.nbd'}"

    @property
    def size_bytes(self) -> int:
        return int(self.status()["volumes"][0]["size_bytes"])

    @property
    def is_in_sync(self) -> bool:
        s = self.status()
        v = s["volumes"][0]
        return (v["replication"], v["disk"], v["peer_disk"]) == ("Connected", "UpToDate", "UpToDate")

    def uuids(self) -> list[int]:
        """Current, bitmap and history; without the bit that tells who was Primary."""
        said = re.findall(r"\b[0-9A-F]{16}\b", self.call("show-gi")["gi"])
        return [int(word, 16) & ~1 for word in said[:4]]

    def digest(self, size_bytes: int) -> str:
        digest = hashlib.blake2b()
        with self.disk.open("rb") as file:
            left = size_bytes
            while left and (data := file.read(min(left, READ_BYTES))):
                digest.update(data)
                left -= len(data)
        return digest.hexdigest()

    @contextlib.contextmanager
    def client(self) -> Iterator[NbdClient]:
        with NbdClient(self.nbd_uri) as client:
            yield client

    def open_client(self) -> NbdClient:
        """One that outlives our daemon: nobody closes it in an orderly way."""
        return NbdClient(self.nbd_uri)

    def log(self) -> str:
        paths = sorted(self._folder.glob("repld-*.log"))
        return "".join(f"--- {p.name}\n{p.read_text(errors='replace')}" for p in paths)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    def close(self) -> None:
        if self.process is not None:
            self.process.stop(15)


class OurLoad:
    """Small writes, zeroes and flushes through our NBD server, one after the other, until the block is left."""

    def __init__(self, ours: Ours) -> None:
        self._ours = ours
        self._stop = threading.Event()
        self._error: Exception | None = None
        self.writes = 0

    def _run(self) -> None:
        try:
            with self._ours.client() as client:
                while not self._stop.is_set():
                    n = self.writes
                    client.write(n * 7919 % LOAD_BLOCKS * 8192, os.urandom(4096 if n % 3 else 16384))
                    if n % 50 == 0:
                        client.zero(n * 7907 % LOAD_BLOCKS * 8192, 32768)
                        client.flush()
                    self.writes += 1
        except Exception as error:
            self._error = error

    def __enter__(self) -> OurLoad:
        self._thread = threading.Thread(target=self._run, name="load")
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error


class KernelPair:
    """One resource on both."""

    def __init__(self, lab: KernelLab, folder: Path, *, protocol: str = "C", net: str = "", rate: str = "400M",
                 other_net: str | None = None, disk: str = "", more: str = "",
                 can_discard: bool = False, survives: bool = False,
                 our_bytes: int = DISK_BYTES, kernel_bytes: int = DISK_BYTES,
                 relay: dict[str, Any] | None = None) -> None:  # fmt: skip
        """``net``, ``disk``: more options, ``more``: more sections, for both.

        ``other_net``: those of the kernel if they differ; ``rate``: of a resync.

        ``can_discard``: the kernel's disk is a loop device and not a ram disk; so are disks of another size.
        ``survives``: and lies in the lab's shared folder (where it cannot discard), for a loss of power.
        ``relay``: each node reaches the other one through a :class:`Relay` with these options.
        """
        self.begin = time.monotonic()
        self.lab = lab
        minor = lab.take_minor()
        self.port = FIRST_PORT + minor
        is_loop = can_discard or survives or kernel_bytes != DISK_BYTES
        kernel_disk = f"/dev/{'loop' if is_loop else 'ram'}{minor}"

        here, guest = f"{lab.net.HOST}:{self.port}", f"{lab.net.guest_address(0)}:{self.port}"
        guest_for_us, here_for_kernel = guest, here
        self.relays: list[Relay] = []
        if relay is not None:
            ways = (self.port + TO_GUEST, lab.net.guest_address(0)), (self.port + TO_HERE, lab.net.HOST)
            for listen_port, far in ways:
                connect = functools.partial(lab.net.connect, self.port, host=far, timeout=2)
                self.relays.append(Relay(lab.net.listen(listen_port), connect, **relay))
            guest_for_us, here_for_kernel = (f"{lab.net.HOST}:{listen_port}" for listen_port, _ in ways)

        def conf(options: str, here: str, guest: str) -> str:
            return f"""# our node and the kernel's read this same text
global {{ usage-count no; }}
resource r0 {{
	net {{ protocol {protocol}; connect-int 1; {options} }}
	disk {{ c-plan-ahead 0; resync-rate {rate}; {disk} }}
	{more}
	on here {{ device /dev/drbd{minor} minor {minor}; disk {folder / "disk.img"}; meta-disk internal;
		address ipv4 {here}; }}
	on guest {{ device /dev/drbd{minor} minor {minor}; disk {kernel_disk}; meta-disk internal;
		address ipv4 {guest}; }}
}}
"""

        other = conf(net if other_net is None else other_net, here_for_kernel, guest)
        self.ours = Ours(lab, folder, conf(net, here, guest_for_us), our_bytes)
        self.kernel = Kernel(lab, minor, kernel_disk, other, kernel_bytes, survives=survives)

    def up(self) -> None:
        """Fresh metadata on both, both running."""
        self.ours.create_metadata()
        self.ours.start()
        self.kernel.up()

    # ---- waiting ----

    def wait(self, predicate: Callable[[], object], what: str, timeout: float = WAIT_S) -> None:
        wait_for(predicate, timeout, what, describe=self.describe, ignore=(ReplError, OSError))

    def describe(self) -> str:
        return f"ours {self.ours.brief()}; kernel {self.kernel.state()}"

    def wait_connected(self) -> None:
        """Both say so; perhaps a resync has begun."""
        early = ("Off", "WFConnection", "WFReportParams", "Unconnected")

        def holds() -> bool:
            return (
                self.kernel.state().cstate not in early and self.ours.status()["volumes"][0]["replication"] not in early
            )

        self.wait(holds, "connected on both")

    def wait_in_sync(self, timeout: float = WAIT_S) -> None:
        self.wait(lambda: self.ours.is_in_sync and self.kernel.state().is_in_sync, "in sync on both", timeout)

    def wait_kernel(self, timeout: float = WAIT_S, **fields: str) -> None:
        self.wait(
            lambda: all(getattr(self.kernel.state(), k) in v.split("|") for k, v in fields.items()),
            f"the kernel's {fields}",
            timeout,
        )

    def wait_ours(self, timeout: float = WAIT_S, **fields: str) -> None:
        def holds() -> bool:
            status = self.ours.status()
            flat = {**status, **status["volumes"][0], "peer_role": status["peer"]["role"]}
            return all(flat[k] in v.split("|") for k, v in fields.items())

        self.wait(holds, f"our {fields}", timeout)

    def wait_stand_alone(self) -> None:
        """We have given up and say why (a node that has only just started is StandAlone without a reason)."""

        def holds() -> bool:
            status = self.ours.status()
            return status["connection"] == "StandAlone" and bool(status["reason"])

        self.wait(holds, "StandAlone with a reason", WAIT_S)

    def wait_load(self, more: int) -> None:
        """Until the guest's load has made so many steps more."""
        target = self.kernel.load_count() + more
        self.wait(lambda: self.kernel.load_count() >= target, f"{more} writes of the load")

    # ---- frequent steps ----

    def kernel_primary(self) -> None:
        """Fresh disks become in sync with the kernel as the source."""
        self.up()
        self.wait_connected()
        self.kernel.adm("primary --force")
        self.wait_in_sync()

    def our_primary(self) -> None:
        """Fresh disks become in sync with us as the source."""
        self.up()
        self.wait_connected()
        self.ours.call("primary", force=True)
        self.wait_in_sync()

    def our_secondary(self) -> None:
        """Once our server has seen that its clients are gone."""
        self.wait(lambda: self.ours.status()["volumes"][0]["open"] == 0, "no NBD client")
        self.ours.call("secondary")

    def reconnect_quietly(self) -> None:
        """Part and meet again."""
        self.ours.call("disconnect")
        self.wait_kernel(cstate="WFConnection")
        self.ours.call("connect")
        self.wait_in_sync()

    # ---- interruptions: each ends with a connection, not with a finished resync ----

    def interrupt_ours(self) -> None:
        self.ours.call("disconnect")
        self.wait_kernel(cstate="WFConnection|Unconnected")
        self.ours.call("connect")
        self.wait_connected()

    def interrupt_kernel(self) -> None:
        self.kernel.adm("disconnect")
        self.wait_ours(connection="WFConnection|Unconnected")
        self.kernel.adm("connect")
        self.wait_connected()

    def interrupt_cable(self) -> None:
        self.lab.net.link(0, up=False)
        try:
            self.wait_kernel(cstate="WFConnection|Unconnected")
            self.wait_ours(connection="WFConnection|Unconnected")
        finally:
            self.lab.net.link(0, up=True)
        self.wait_connected()

    def interrupt_process(self) -> None:
        self.ours.kill()
        self.wait_kernel(cstate="WFConnection|Unconnected")
        self.ours.start()
        self.wait_connected()

    def compare(self) -> None:
        """Both data areas, byte for byte; two that say that they are in sync have the same generation as well."""
        size = self.ours.size_bytes
        sectors = self.kernel.guest.read_file(f"/sys/block/drbd{self.kernel.minor}/size")
        assert int(sectors) * 512 == size
        assert self.ours.digest(size) == self.kernel.digest(size), self.first_differences(size)
        if self.ours.is_in_sync:
            assert self.ours.uuids()[:2] == [self.kernel.uuids()[0], 0], (self.ours.uuids(), self.kernel.uuids())

    def wait_equal(self) -> None:
        """Until both data areas are the same: in protocols A and B a write is done before the peer's disk has it."""
        size = self.ours.size_bytes
        self.wait(lambda: self.ours.digest(size) == self.kernel.digest(size), "the same data on both disks")

    def first_differences(self, size_bytes: int) -> str:
        """Which blocks differ, for the message."""
        copy = self.kernel.guest.dir / "compare"
        self.kernel.guest.run(f"dd if={self.kernel.disk} of={copy} iflag=direct bs=1M 2>/dev/null; sync")
        try:
            mine, theirs = self.ours.disk.read_bytes(), copy.read_bytes()
        finally:
            copy.unlink()
        blocks = [at // 4096 for at in range(0, size_bytes, 4096) if mine[at : at + 4096] != theirs[at : at + 4096]]
        return f"{len(blocks)} blocks differ, the first are {blocks[:10]}"

    def report(self) -> str:
        """For the end of a test that failed: both states and logs."""
        kernel = "the guest is dead"
        with contextlib.suppress(Exception):
            kernel = str(self.kernel.state())
        return (
            f"=== after {time.monotonic() - self.begin:.1f} s\nours:   {self.ours.brief()}\nkernel: {kernel}\n"
            f"=== our log\n{self.ours.log()[-LOG_TAIL:]}\n=== the kernel's log\n{self.kernel.log()[-LOG_TAIL:]}"
        )

    def close(self) -> None:
        self.ours.close()
        self.kernel.close()
        for relay in self.relays:
            relay.close()


class PairMaker:
    """Makes the pair of a test."""

    def __init__(self, lab: KernelLab, folder: Path) -> None:
        self.lab = lab
        self._folder = folder
        self.pair: KernelPair | None = None
        self.allowed = ""

    def __call__(self, *, allowed: str = "", **options: Any) -> KernelPair:
        """``options`` of KernelPair; ``allowed``: complaints in the kernel's log that belong to the test."""
        self.allowed = allowed
        self.pair = KernelPair(self.lab, self._folder, **options)
        return self.pair


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
