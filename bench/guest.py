#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The same application on the kernel's DRBD and on ours: fio in a User-mode Linux guest, on two block devices by turns.

`python -m bench.guest`: /dev/drbd0 is drbd.ko, protocol C, its peer in a second guest, RAM disks in both; /dev/nbd0 is
the kernel's NBD client on our pair on the host, protocol C, disk files on a tmpfs.  Medians and their ratio.  Where
nbdkit is installed, its plugin that forgets everything shows how fast the guest's NBD client can be at all.
A guest's system call costs a hundred times the host's, so both rates are those of the guest: read the ratio.
Exit status: 0 measured, 1 something failed (or, with --strict, a goal is short), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench.measure import BenchError  # noqa: E402
from bench.ours import RESOURCE, Ours  # noqa: E402
from tests.lib.guest import CommandFailed, Guest, GuestDied, GuestTimedOut  # noqa: E402
from tests.lib.netns import NetNamespace  # noqa: E402
from tests.lib.process import Process  # noqa: E402
from tests.lib.tools import PACKAGES, find_tool  # noqa: E402

MIB = 1 << 20
GUEST_EXTRA_MIB = 384
RESERVE_MIB = 16
NBD_PORT, NULL_PORT, DRBD_PORT = 10810, 10812, 7788
WAIT_S = 60.0
FIO_TIMEOUT_S = 120.0
GOAL = 1.0
VECTOR = "depth=128,gro=1"
NEEDED = ("linux.uml", "modprobe", "taskset", "ip", "nsenter", "drbdadm", "nbd-client", "fio", "ss")
# Of both: DRBD's guide recommends these where the network is fast.
NET = "max-buffers 8000; max-epoch-size 8000;"

DRBD_CONF = """\
global {{ usage-count no; }}
resource r0 {{
    net {{ protocol C; {net} }}
    device /dev/drbd0 minor 0;
    disk /dev/ram0;
    meta-disk internal;
    on alpha {{ address {alpha}:{port}; }}
    on bravo {{ address {bravo}:{port}; }}
}}
"""


@dataclass(frozen=True, slots=True)
class Job:
    """What fio does."""

    name: str
    options: str
    sequential: bool

    @property
    def unit(self) -> str:
        return "MB/s" if self.sequential else "IOPS"


JOBS = (
    Job("4 KiB randwrite QD1", "--rw=randwrite --bs=4k --iodepth=1", False),
    Job("4 KiB randwrite QD32", "--rw=randwrite --bs=4k --iodepth=32", False),
    Job("1 MiB seqwrite QD8", "--rw=write --bs=1m --iodepth=8", True),
)
DRBD, OURS, NULL = "DRBD C", "ours C", "nbd null"
JUDGED = {"4 KiB randwrite QD32", "1 MiB seqwrite QD8"}


def run_fio(guest: Guest, device: str, job: Job, span_mib: int, seconds: float) -> float:
    """IOPS, or MB/s."""
    command = (
        f"fio --name=job --filename={device} --ioengine=libaio --direct=1 --size={span_mib}m --time_based "
        f"--ramp_time=500ms --runtime={seconds:g} --clocksource=cpu --output-format=json {job.options}"
    )
    text = guest.run(command, FIO_TIMEOUT_S).out
    (result,) = json.loads(text[text.index("{") :])["jobs"]
    if result["error"]:
        raise BenchError(f"fio on {device}: error {result['error']}")
    written = result["write"]
    return float(written["bw_bytes"]) / 1e6 if job.sequential else float(written["iops"])


class OursForGuests(Ours):
    """Our pair on the host, inside the guests' network; alice's export listens where a guest can reach it."""

    name = "ours-C"
    net = NET

    def __init__(self, namespace: NetNamespace, disk_dir: Path, run_dir: Path, size_bytes: int, replctl: Path) -> None:
        super().__init__(disk_dir, run_dir, size_bytes, replctl)
        self.prefix = namespace.prefix

    def config_of(self, node: str) -> Path:
        return self.run_dir / f"{node}.res"

    def write_config(self) -> None:
        super().write_config()
        text = self.config_path.read_text()
        self.config_of("bob").write_text(text)
        listen = f"    nbd {{ listen {NetNamespace.HOST}:{NBD_PORT}; }}\n"
        self.config_of("alice").write_text(f"{text.rstrip().removesuffix('}')}{listen}}}\n")

    def promote(self) -> None:
        self.call("alice", "wait-connect", RESOURCE)
        self.call("alice", "new-current-uuid", "--clear-bitmap", RESOURCE)
        super().promote()


def wait_drbd(guest: Guest, pattern: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not re.search(pattern, text := guest.run("cat /proc/drbd").out):
        if time.monotonic() > deadline_s:
            raise BenchError(f"DRBD in the guests: no {pattern} within {WAIT_S:.0f} s:\n{text}")
        time.sleep(0.1)


def start_drbd(alpha: Guest, bravo: Guest, namespace: NetNamespace) -> None:
    """Connected, both up to date, alpha Primary; without a full synchronisation."""
    conf = DRBD_CONF.format(net=NET, port=DRBD_PORT, alpha=namespace.guest_address(0), bravo=namespace.guest_address(1))
    for guest in (alpha, bravo):
        guest.write_file("/run/bench/r0.conf", conf)
        guest.run("dd if=/dev/zero of=/dev/ram0 bs=1M oflag=direct 2>/dev/null", check=False)  # all pages are there
        guest.run("drbdadm -c /run/bench/r0.conf create-md --force r0 && drbdadm -c /run/bench/r0.conf up r0")
    wait_drbd(alpha, r"cs:Connected")
    alpha.run("drbdadm -c /run/bench/r0.conf -- --clear-bitmap new-current-uuid r0")
    wait_drbd(alpha, r"cs:Connected.*ds:UpToDate/UpToDate")
    alpha.run("drbdadm -c /run/bench/r0.conf primary r0")


def attach(guest: Guest, device: str, port: int, export: str, stack: contextlib.ExitStack) -> None:
    guest.run(f"nbd-client {NetNamespace.HOST} {port} {device} -N '{export}' -t 30", timeout=30)
    stack.callback(lambda: guest.run(f"nbd-client -d {device}", check=False))


def start_null(namespace: NetNamespace, size_mib: int, folder: Path, stack: contextlib.ExitStack) -> None:
    command = ["nbdkit", "-f", "-i", NetNamespace.HOST, "-p", str(NULL_PORT), "null", f"{size_mib}M"]
    stack.enter_context(Process(command, folder / "nbdkit.log", prefix=namespace.prefix)).wait_until(
        lambda: f":{NULL_PORT}" in namespace.run(["ss", "-ltn"]).stdout, WAIT_S, "a listening socket"
    )


def measure(options: argparse.Namespace, stack: contextlib.ExitStack) -> dict[tuple[str, str], list[float]]:
    namespace = stack.enter_context(NetNamespace(taps=2))
    cpus = sorted(os.sched_getaffinity(0))
    guests = []
    for index, name in enumerate(("alpha", "bravo")):
        modules = ["drbd:usermode_helper=/bin/true", f"brd:rd_nr=1:rd_size={options.size * 1024}", "nbd"]
        guests.append(
            stack.enter_context(
                Guest(
                    modules=modules, nics=[namespace.nic(index)], netns=namespace, name=name,
                    memory_mib=options.size + GUEST_EXTRA_MIB, cpu=cpus[index % len(cpus)], vector=options.vector,
                )
            )
        )  # fmt: skip
    alpha, bravo = guests
    start_drbd(alpha, bravo, namespace)

    run_base = Path(tempfile.mkdtemp(prefix="repl-bench-"))
    stack.callback(shutil.rmtree, run_base, ignore_errors=True)
    disk_base = Path(tempfile.mkdtemp(prefix="repl-bench-", dir=options.dir))
    stack.callback(shutil.rmtree, disk_base, ignore_errors=True)
    pair = OursForGuests(namespace, disk_base / "disks", run_base / "run", options.size * MIB, options.replctl)
    stack.callback(pair.stop)
    pair.start()
    attach(alpha, "/dev/nbd0", NBD_PORT, f"{RESOURCE}/0", stack)

    devices = {DRBD: "/dev/drbd0", OURS: "/dev/nbd0"}
    if find_tool("nbdkit"):
        devices[NULL] = "/dev/nbd1"
        start_null(namespace, options.size, run_base, stack)
        attach(alpha, devices[NULL], NULL_PORT, "", stack)

    rates: dict[tuple[str, str], list[float]] = {}
    for number in range(options.rounds):
        for job in JOBS:
            for contender, device in devices.items():
                rate = run_fio(alpha, device, job, options.size - RESERVE_MIB, options.seconds)
                rates.setdefault((job.name, contender), []).append(rate)
                print(f"  round {number + 1}  {job.name:22} {contender:8} {rate:10,.0f} {job.unit}", flush=True)
    wait_drbd(alpha, r"cs:Connected.*ds:UpToDate/UpToDate C")
    return rates


def report(rates: dict[tuple[str, str], list[float]]) -> bool:
    """Prints the medians; true if no goal is short."""
    contenders = [name for name in (DRBD, OURS, NULL) if any(key[1] == name for key in rates)]
    print(f"\n{'':24}{''.join(f'{name:>12}' for name in contenders)}   ours / DRBD")
    all_ok = True
    for job in JOBS:
        medians = {name: statistics.median(rates[job.name, name]) for name in contenders}
        ratio = medians[OURS] / medians[DRBD]
        word = ""
        if job.name in JUDGED:
            word = f">= {GOAL:.1f} {'ok' if ratio >= GOAL else 'short'}"
            all_ok = all_ok and ratio >= GOAL
        columns = "".join(f"{rate:12,.0f}" for rate in medians.values())
        print(f"{job.name:24}{columns}   {ratio:.2f}x  {word:14}  {job.unit}")
    return all_ok


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.guest", description="fio in a guest: DRBD's device and ours.")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time of one run (default 3)")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds; the median counts (default 5)")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="device size (default 256)")
    parser.add_argument("--vector", default=VECTOR, help=f"guests' network (default {VECTOR}); empty: the old driver")
    parser.add_argument("--replctl", type=Path, default=ROOT / ".venv/bin/replctl")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where our disk files go (a tmpfs)")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a goal is short")
    options = parser.parse_args(arguments)
    if lacking := [f"{name} ({PACKAGES.get(name, name)})" for name in NEEDED if find_tool(name) is None]:
        print(f"bench.guest needs {', '.join(lacking)}", file=sys.stderr)
        return 1
    driver = f"vector driver, {options.vector}" if options.vector else "old network driver"
    print(f"load {os.getloadavg()[0]:.2f}; {options.size} MiB devices, {driver}, {options.rounds} rounds of "
          f"{options.seconds:g} s", flush=True)  # fmt: skip
    try:
        with contextlib.ExitStack() as stack:
            rates = measure(options, stack)
    except (BenchError, CommandFailed, GuestDied, GuestTimedOut, OSError, RuntimeError) as error:
        print(f"bench.guest: {error}", file=sys.stderr)
        return 1
    all_ok = report(rates)
    print(f"load at the end {os.getloadavg()[0]:.2f}")
    return 1 if options.strict and not all_ok else 0


if __name__ == "__main__":
    sys.exit(main())
