# SPDX-License-Identifier: Apache-2.0
"""Two nodes on this machine: replicate, kill the Primary in the middle of a stream of writes, lose nothing.

Every step is an ordinary ``replctl`` command, printed as it is run; every claim is checked, and the exit status is 1 if
one does not hold.  Needs no root.  Uses nbdcopy and mkfs.ext4/e2fsck where they are installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: E402

from nbd.client import NbdClient  # noqa: E402
from repl.cli.waiting import SpeedColumn  # noqa: E402
from repl.errors import PeerLost, ReplError  # noqa: E402

MIB = 1 << 20
DEVICE_MIB = 1024
IMAGE_MIB = 64
STREAM_OFFSET = 256 * MIB
RECORD = 4096
KILL_AFTER = 3000  # acknowledged records, and a little later
KILL_DELAY_S = 0.05
WAIT_S = 60.0
NODES = ("alice", "bob")
REPLCTL = Path(sys.executable).with_name("replctl")

console = Console(highlight=False)


class CheckFailed(Exception):
    """Something that the demo claims does not hold."""


def say(text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def check(condition: bool, text: str) -> None:
    console.print(f"  [green]ok[/green] {text}" if condition else f"  [red]FAILED[/red] {text}")
    if not condition:
        raise CheckFailed(text)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Pair:
    """Both nodes: a configuration, two run directories, two sparse files."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.config = home / "demo.res"
        for node in NODES:
            (home / node).mkdir()
            with (home / f"{node}.img").open("wb") as file:
                file.truncate(DEVICE_MIB * MIB)
        self.config.write_text(self._text())

    def _text(self) -> str:
        hosts = "".join(
            f"\ton {node} {{\n"
            f"\t\taddress 127.0.0.1:{free_port()};\n"
            f"\t\tdevice /dev/drbd{i} minor {i};\n"
            f"\t\tdisk {self.home / node}.img;\n"
            "\t\tmeta-disk internal;\n"
            "\t}\n"
            for i, node in enumerate(NODES)
        )
        return (
            "resource r0 {\n"
            "\tnet { protocol C; connect-int 2; ping-timeout 10; }\n"
            "\tdisk { c-max-rate 400M; c-fill-target 20M; resync-rate 400M; }\n"
            f"{hosts}}}\n"
        )

    def ctl(self, node: str, *words: str, quiet: bool = False) -> str:
        """Run replctl for one node; shows the command."""
        if not quiet:
            console.print(f"  [cyan]{node}#[/cyan] replctl {' '.join(words)}")
        command = [str(REPLCTL), "--config", str(self.config), "--node", node, "--run-dir", str(self.home / node)]
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise CheckFailed(
                f"replctl {' '.join(words)} on {node} ended with {done.returncode}: {done.stderr.strip()}"
            )
        return done.stdout

    def status(self, node: str) -> dict[str, Any]:
        """What ``replctl --json status`` says, the parts that the story needs.  Sizes in KiB."""
        resource = json.loads(self.ctl(node, "--json", "status", "r0", quiet=True))[0]
        connection = resource["connections"][0]
        return {
            "role": resource["role"],
            "connection": connection["connection-state"],
            "device": resource["devices"][0],
            "peer": connection["peer_devices"][0],
        }

    def pid(self, node: str) -> int:
        return int((self.home / node / "r0.lock").read_text())

    def is_alive(self, node: str) -> bool:
        try:
            os.kill(self.pid(node), 0)
        except (OSError, ValueError):
            return False
        return True

    def image_digest(self, node: str, length: int) -> str:
        digest = hashlib.sha256()
        with (self.home / f"{node}.img").open("rb") as file:
            left = length
            while left and (data := file.read(min(left, 4 * MIB))):
                digest.update(data)
                left -= len(data)
        return digest.hexdigest()


def wait_synced(pair: Pair, node: str, title: str) -> int:
    """Follow a resync with a bar; returns the number of bytes that it had to move."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        SpeedColumn(),
    )
    most = 0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None)
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            status = pair.status(node)
            peer = status["peer"]
            if peer["replication-state"] in ("SyncSource", "SyncTarget"):
                most = max(most, peer["out-of-sync"] * 1024)
                progress.update(task, total=most, completed=most - peer["out-of-sync"] * 1024)
            elif status["device"]["disk-state"] == peer["peer-disk-state"] == "UpToDate":
                counters: dict[str, int] = status["device"]["x"]["counters"]
                moved = counters["resync_total_bits"] * RECORD
                progress.update(task, total=moved or 1, completed=moved or 1)
                return moved
            time.sleep(0.05)  # the pace of the display
    raise CheckFailed(f"{title} did not end within {WAIT_S:.0f} s")


def record(number: int) -> bytes:
    head = f"record {number} of the demo ".encode()
    digest = hashlib.sha256(head).digest()
    return (head + digest * (RECORD // len(digest) + 1))[:RECORD]


def write_filesystem(pair: Pair, url: str) -> Path | None:
    """A real filesystem image through a real client, if the tools are there."""
    if not shutil.which("mkfs.ext4") or not shutil.which("nbdcopy"):
        console.print("  (mkfs.ext4 or nbdcopy is not installed: the filesystem part is left out)")
        return None
    image = pair.home / "fs.img"
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", str(ROOT / "docs"), str(image)], check=True)
    console.print(f"  nbdcopy: an ext4 filesystem of {IMAGE_MIB} MiB with our docs/ on it")
    subprocess.run(["nbdcopy", "--destination-is-zero", str(image), url], check=True)
    return image


def stream_until_death(pair: Pair, url: str) -> int:
    """Write records one after the other; kill alice in the middle; returns how many were acknowledged."""
    acknowledged = 0
    client = NbdClient(url)
    try:
        while True:
            client.write(STREAM_OFFSET + acknowledged * RECORD, record(acknowledged))
            acknowledged += 1
            if acknowledged == KILL_AFTER:  # from another thread: it hits whatever is in flight then
                threading.Timer(KILL_DELAY_S, os.kill, (pair.pid("alice"), signal.SIGKILL)).start()
    except PeerLost:
        console.print(f"  [red]kill -9[/red] of alice's repld; {acknowledged} writes had been acknowledged by then")
        return acknowledged


def story(pair: Pair) -> None:
    say("1. Two nodes, alice and bob, each with a sparse disk of 1 GiB, on loopback")
    for node in NODES:
        pair.ctl(node, "create-md", "r0")
    for node in NODES:
        pair.ctl(node, "up", "r0")
    pair.ctl("alice", "wait-connect", "--timeout", "30", "r0")
    check(
        pair.status("alice")["connection"] == "Connected", "connected; both disks are Inconsistent: nobody has data yet"
    )

    say("2. alice is declared to have the good data; bob gets all of it")
    pair.ctl("alice", "primary", "--force", "r0")
    moved = wait_synced(pair, "alice", "initial sync")
    check(moved > (DEVICE_MIB - 8) * MIB, f"{moved // MIB} MiB synced, both disks UpToDate")

    say("3. Writing through NBD on alice")
    url = pair.ctl("alice", "nbd-url", "r0").strip()
    console.print(f"  {url}")
    image = write_filesystem(pair, url)
    acknowledged = stream_until_death(pair, url)

    say("4. alice is dead; bob takes over")
    pair.ctl("bob", "primary", "r0")
    with NbdClient(pair.ctl("bob", "nbd-url", "r0").strip()) as client:
        wrong = [n for n in range(acknowledged) if client.read(STREAM_OFFSET + n * RECORD, RECORD) != record(n)]
        check(not wrong, f"all {acknowledged} acknowledged writes are on bob")
        for n in range(200):
            client.write(STREAM_OFFSET + 128 * MIB + n * RECORD, record(n))
        console.print("  200 more records written on bob while alice is away")
    if image is not None:
        copy = pair.home / "copy.img"
        subprocess.run(["nbdcopy", pair.ctl("bob", "nbd-url", "r0", quiet=True).strip(), str(copy)], check=True)
        os.truncate(copy, IMAGE_MIB * MIB)
        fsck = subprocess.run(["e2fsck", "-fn", str(copy)], capture_output=True)
        check(fsck.returncode == 0, "e2fsck finds the filesystem on bob clean")
        copy.unlink()

    say("5. alice comes back: only what may differ is copied")
    dirty_kib = pair.status("bob")["peer"]["out-of-sync"]
    console.print(
        f"  bob counts {dirty_kib // 4} dirty blocks ({dirty_kib} KiB); alice adds her activity log's extents"
    )
    pair.ctl("alice", "up", "r0")
    moved = wait_synced(pair, "bob", "bitmap resync")
    check(moved < 256 * MIB, f"{moved // MIB} MiB of {DEVICE_MIB} MiB resynced ({moved // RECORD} blocks)")
    check(pair.status("alice")["role"] == "Secondary", "alice is Secondary now, bob stays Primary")

    say("6. Both disks compared, then everything stops")
    size = pair.status("bob")["device"]["size"] * 1024
    for node in reversed(NODES):
        pair.ctl(node, "down", "r0")
    digests = {pair.image_digest(node, size) for node in NODES}
    check(len(digests) == 1, f"{size // MIB} MiB identical on both nodes (sha256 {digests.pop()[:16]}…)")


def main() -> int:
    """Exit status: 0 if every check held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the nodes' files")
    options = parser.parse_args()
    started = time.monotonic()
    base = "/dev/shm" if shutil.disk_usage("/dev/shm").free > 4 * DEVICE_MIB * MIB else None
    home = Path(tempfile.mkdtemp(prefix="repl-demo-", dir=base))
    pair = Pair(home)
    try:
        story(pair)
    except (CheckFailed, ReplError, subprocess.SubprocessError) as error:
        console.print(f"\n[red]The demo failed:[/red] {error}")
        for node in NODES:
            log = home / node / "r0.log"
            if log.exists():
                console.print(f"--- {node}'s log, last lines\n" + "\n".join(log.read_text().splitlines()[-15:]))
        return 1
    finally:
        for node in NODES:
            if pair.is_alive(node):
                os.kill(pair.pid(node), signal.SIGKILL)
        if not options.keep:
            shutil.rmtree(home, ignore_errors=True)
    say(f"Nothing was lost. ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
