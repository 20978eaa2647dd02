# SPDX-License-Identifier: Apache-2.0
"""Real nodes of one resource ``r0`` on this machine: configuration, backing files, ``repld`` processes.

    with Cluster(size_mib=64) as cluster:
        cluster.start_pair()
        with cluster.client("alice") as client: ...

Nothing is left behind: ``close`` ends every process and removes the folder.  It also fails when a daemon logged an
error that nobody announced with ``expect``, or ended with a status that nobody asked for.  Sizes in MiB or bytes as
named; timeouts in seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nbd.client import NbdClient
from nbd.uri import build_unix_uri
from repl import config
from repl.cli.client import Client
from repl.daemon.disks import open_disk
from repl.daemon.run_dir import RunDir, running_pid
from repl.errors import ReplError
from repl.node.disk import create_metadata
from tests.lib.chaos_proxy import ChaosProxy
from tests.lib.ports import free_port
from tests.lib.process import Process
from tests.lib.tools import ROOT
from tests.lib.wait import wait_for

RESOURCE = "r0"
ALICE, BOB = "alice", "bob"
NODES = (ALICE, BOB)
MIB = 1 << 20
COMPARE_BYTES = 4 * MIB
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
SYNC_TIMEOUT_S = 30.0
CTL_TIMEOUT_S = 60.0
LOG_TAIL_BYTES = 6000

# Every connection waits ping-timeout (tenths of a second) to see whether its sockets last.
NET = {"connect-int": "1", "ping-timeout": "5", "timeout": "9"}
# Fixed and fast, unless a test wants to look into a running resync.
DISK = {"c-plan-ahead": "0", "resync-rate": "400M"}
_BAD_LINE = re.compile(
    r" (ERROR|CRITICAL) |Traceback|CHECK failed|internal error|\bbug\b|never awaited|never retrieved"
)


@dataclass
class Node:
    """One node's files and process."""

    name: str
    run_dir: RunDir
    config: Path
    image: Path
    metadata: Path | None
    log: Path
    port: int
    process: Process | None = None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.is_running


def memory_folder() -> str | None:
    """A tmpfs if there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Cluster:
    """Two nodes; a test may start only one of them."""

    def __init__(
        self,
        *,
        size_mib: int = 64,
        sizes_mib: Mapping[str, int] | None = None,
        net: Mapping[str, str] | None = None,
        disk: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        handlers: Mapping[str, str] | None = None,
        node_net: Mapping[str, Mapping[str, str]] | None = None,
        nbd: str = "",
        on_disk: bool = False,
        is_flexible: bool = False,
        has_proxy: bool = False,
        images: Mapping[str, Path] | None = None,
        seed: int = 0,
    ) -> None:
        """``node_net``: differs in one node's configuration.  ``has_proxy``: the link goes through ``proxies[node]``,
        which stands in front of that node.  ``on_disk``: not on tmpfs.  ``images``: backing files that are there."""
        self.folder = Path(tempfile.mkdtemp(prefix="repl-test-", dir=None if on_disk else memory_folder()))
        self.nodes: dict[str, Node] = {}
        self.proxies: dict[str, ChaosProxy] = {}
        self._expected: list[re.Pattern[str]] = []
        self._checked_bytes: dict[str, int] = {}
        self._clients: list[NbdClient] = []
        try:
            self._make_nodes(size_mib, sizes_mib or {}, is_flexible, images or {})
            if has_proxy:
                for node in self.nodes.values():
                    self.proxies[node.name] = ChaosProxy(node.port, seed=seed)
            for name in NODES:
                text = self.config_text(
                    name,
                    {**NET, **(net or {}), **(node_net or {}).get(name, {})},
                    {**DISK, **(disk or {})},
                    options or {},
                    nbd,
                    handlers or {},
                )
                self.nodes[name].config.write_text(text)
        except BaseException:
            self.close()
            raise

    def _make_nodes(
        self, size_mib: int, sizes_mib: Mapping[str, int], is_flexible: bool, images: Mapping[str, Path]
    ) -> None:
        for name in NODES:
            image = images.get(name, self.folder / f"{name}.img")
            if name not in images:
                with image.open("wb") as file:
                    file.truncate(sizes_mib.get(name, size_mib) * MIB)
            metadata = None
            if is_flexible:
                metadata = self.folder / f"{name}.md"
                with metadata.open("wb") as file:
                    file.truncate(4 * MIB)
            folder = self.folder / name
            folder.mkdir(mode=0o700)
            self.nodes[name] = Node(
                name=name,
                run_dir=RunDir(folder, RESOURCE),
                config=self.folder / f"{name}.res",
                image=image,
                metadata=metadata,
                log=self.folder / f"{name}.log",
                port=free_port(),
            )

    def config_text(
        self,
        own: str,
        net: Mapping[str, str],
        disk: Mapping[str, str],
        options: Mapping[str, str],
        nbd: str,
        handlers: Mapping[str, str],
    ) -> str:
        """The resource as the node ``own`` sees it: through a proxy the peer has another port."""
        hosts = ""
        for minor, node in enumerate(self.nodes.values()):
            port = self.proxies[node.name].port if node.name != own and self.proxies else node.port
            meta = f"flexible-meta-disk {node.metadata};" if node.metadata else "meta-disk internal;"
            hosts += (
                f"  on {node.name} {{\n"
                f"    address 127.0.0.1:{port};\n"
                f"    device /dev/drbd{minor} minor {minor};\n"
                f"    disk {node.image};\n"
                f"    {meta}\n"
                "  }\n"
            )
        return (
            f"resource {RESOURCE} {{\n{_section('net', net)}{_section('disk', disk)}{_section('options', options)}"
            f"{_section('handlers', handlers)}"
            f"  nbd {{ {nbd} }}\n{hosts}}}\n"
        )

    # --- life of the nodes ---

    def create_metadata(self, *names: str) -> None:
        """What ``replctl create-md --force`` does, without the time of a process."""
        for name in names or NODES:
            view = config.resource_for_node(config.load(self.nodes[name].config), RESOURCE, name, addresses=())
            disk = open_disk(view.volumes[0])
            try:
                create_metadata(disk.place, device_uuid=secrets.randbits(64) or 1)
            finally:
                disk.close()

    def spawn(self, name: str, *arguments: str, prefix: Sequence[str] = ()) -> Process:
        """A ``repld`` of this node; returns at once."""
        node = self.nodes[name]
        if node.process is not None:  # after "down" the resource is free a moment before the process has ended
            node.process.wait_exit()
        argv = [sys.executable, "-P", "-m", "repl.daemon.main", *self.options(name, RESOURCE), *arguments]
        node.process = Process(argv, node.log, env={"PYTHONPATH": str(ROOT)}, prefix=prefix)
        return node.process

    def options(self, name: str, *positional: str) -> list[str]:
        node = self.nodes[name]
        return [*positional, "--config", str(node.config), "--node", name, "--run-dir", str(node.run_dir.folder)]

    def start(self, *names: str, up: bool = True) -> None:
        """Start daemons and wait until they answer (and are up)."""
        for name in names or NODES:
            self.spawn(name)
        for name in names or NODES:
            process = self.nodes[name].process
            assert process is not None
            process.wait_until(lambda name=name: self._answers(name), START_TIMEOUT_S, "control socket")
        if up:
            for name in names or NODES:
                self.call(name, "up")

    def start_pair(self, *, is_synced: bool = True) -> None:
        """Both nodes from nothing: connected, and without ``is_synced`` both Inconsistent."""
        self.create_metadata()
        self.start()
        self.wait_connected()
        if is_synced:
            self.call(ALICE, "new-current-uuid", clear_bitmap=True)
            self.wait_synced()

    def start_single(self, name: str = ALICE) -> None:
        """One node that is Primary; the other one never starts."""
        self.create_metadata(name)
        self.start(name)
        self.call(name, "primary", force=True)

    def kill(self, name: str) -> None:
        """A crash of the process (not of the machine: the page cache stays)."""
        process = self.nodes[name].process
        assert process is not None and process.is_running
        process.kill()

    def stop(self, name: str, timeout: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM; the exit status."""
        process = self.nodes[name].process
        assert process is not None
        process.signal(signal.SIGTERM)
        return process.wait_exit(timeout)

    def close(self) -> None:
        """End everything, then say what was wrong."""
        problems: list[str] = []
        for client in self._clients:
            with contextlib.suppress(Exception):
                client.close()
        for proxy in self.proxies.values():
            proxy.close()
        for node in self.nodes.values():
            problems += self._end(node)
        problems += self.bad_log_lines()
        text = "".join(f"--- {n.name}\n{self.log(n.name)[-LOG_TAIL_BYTES:]}\n" for n in self.nodes.values())
        shutil.rmtree(self.folder, ignore_errors=True)
        print(text)
        assert not problems, "\n".join(problems)

    def _end(self, node: Node) -> list[str]:
        problems = []
        if node.process is not None:
            was_running = node.process.is_running
            status = node.process.stop(STOP_TIMEOUT_S)
            if was_running and status != 0:
                problems.append(f"{node.name}: repld ended with {status} after SIGTERM")
        pid = running_pid(node.run_dir)  # one that replctl up has started
        if pid:
            os.kill(pid, signal.SIGTERM)
            try:
                wait_for(lambda: running_pid(node.run_dir) is None, STOP_TIMEOUT_S, f"the end of {node.name}")
            except AssertionError as error:
                problems.append(str(error))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return problems

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:  # the first failure is the one to show
            with contextlib.suppress(AssertionError):
                self.close()

    # --- logs ---

    def log(self, name: str) -> str:
        """Everything the node's daemons wrote."""
        node = self.nodes[name]
        texts = [path.read_text(errors="replace") for path in (node.log, node.run_dir.log) if path.exists()]
        return "".join(texts)

    def expect(self, pattern: str) -> None:
        """An error that a test provokes: log lines that match are no failure."""
        self._expected.append(re.compile(pattern))

    def bad_log_lines(self) -> list[str]:
        found = []
        for name in self.nodes:
            for line in self.log(name).splitlines():
                if _BAD_LINE.search(line) and not any(pattern.search(line) for pattern in self._expected):
                    found.append(f"{name} logged: {line}")
        return found

    # --- commands ---

    def ctl(
        self, name: str, *words: str, status: int | None = 0, timeout: float = CTL_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run ``replctl`` for a node; ``status``: the exit status it has to end with (None: any)."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "repl.cli.main", *self.options(name), *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=timeout,
        )
        if status is not None:
            assert done.returncode == status, f"{name}# replctl {' '.join(words)}: {done.returncode}\n{done.stderr}"
        return done

    def ctl_json(self, name: str, *words: str) -> Any:
        return json.loads(self.ctl(name, "--json", *words).stdout)

    def call(self, name: str, verb: str, **args: Any) -> dict[str, Any]:
        """A verb straight through the control socket; raises the daemon's error."""
        with Client(self.nodes[name].run_dir.control, RESOURCE) as client:
            return client.call(verb, answer_timeout_s=CTL_TIMEOUT_S, **args)

    def _answers(self, name: str) -> bool:
        try:
            return bool(self.call(name, "daemon"))
        except ReplError:
            return False

    def status(self, name: str) -> dict[str, Any]:
        return self.call(name, "status")

    def volume(self, name: str) -> dict[str, Any]:
        volume: dict[str, Any] = self.status(name)["volumes"][0]
        return volume

    def states(self, name: str) -> str:
        """For messages: ``Primary Connected UpToDate/UpToDate``."""
        try:
            status = self.status(name)
        except ReplError as error:
            return str(error)
        volume = status["volumes"][0]
        return (
            f"{status['role']} {status['connection']} {volume['replication']} {volume['disk']}/{volume['peer_disk']}"
            f" {status['reason']}"
        )

    # --- waiting ---

    def wait(self, what: str, predicate: Callable[[], object], timeout: float = SYNC_TIMEOUT_S) -> None:
        wait_for(
            predicate,
            timeout,
            what,
            ignore=ReplError,
            describe=lambda: {name: self.states(name) for name in self.nodes},
        )

    def wait_connection(self, name: str, state: str, timeout: float = SYNC_TIMEOUT_S) -> None:
        self.wait(f"{name} {state}", lambda: self.status(name)["connection"] == state, timeout)

    def wait_connected(self, timeout: float = SYNC_TIMEOUT_S) -> None:
        for name in NODES:
            self.wait_connection(name, "Connected", timeout)

    def is_synced(self, name: str) -> bool:
        status = self.status(name)
        volume = status["volumes"][0]
        return (
            status["connection"] == "Connected"
            and volume["disk"] == volume["peer_disk"] == "UpToDate"
            and volume["resync"] is None
            and volume["out_of_sync_bytes"] == 0
        )

    def wait_synced(self, timeout: float = SYNC_TIMEOUT_S) -> None:
        self.wait("both UpToDate", lambda: all(self.is_synced(name) for name in NODES), timeout)

    def resynced_bytes(self, name: str, since: int = 0) -> int:
        """How much the last resync had to move, by the node's journal: "N blocks (M KiB) to be sent/fetched"."""
        found = re.findall(r"\((\d+) KiB\) to be (?:sent|fetched)", self.log(name)[since:])
        assert found, f"{name} logged no resync"
        return int(found[-1]) * 1024

    def resync_count(self, name: str) -> int:
        return len(re.findall(r"KiB\) to be (?:sent|fetched)", self.log(name)))

    # --- data ---

    def url(self, name: str) -> str:
        return build_unix_uri(str(self.nodes[name].run_dir.nbd), f"{RESOURCE}/0")

    def client(self, name: str) -> NbdClient:
        """Closed at the end of the cluster at the latest."""
        client = NbdClient(self.url(name))
        self._clients.append(client)
        return client

    def size_bytes(self, name: str = ALICE) -> int:
        return int(self.volume(name)["size_bytes"])

    def read_image(self, name: str) -> Callable[[int, int], bytes]:
        """Reads a node's backing file as the engine left it."""
        image = self.nodes[name].image

        def read(offset: int, length: int) -> bytes:
            with image.open("rb") as file:
                file.seek(offset)
                return file.read(length)

        return read

    def first_difference(self, size_bytes: int | None = None) -> int | None:
        """Offset of the first block in which the two disks differ."""
        size = size_bytes if size_bytes is not None else self.size_bytes()
        with self.nodes[ALICE].image.open("rb") as a, self.nodes[BOB].image.open("rb") as b:
            for at in range(0, size, COMPARE_BYTES):
                count = min(COMPARE_BYTES, size - at)
                left, right = a.read(count), b.read(count)
                if left != right:
                    return next(at + i for i in range(0, count, 512) if left[i : i + 512] != right[i : i + 512])
        return None

    def compare_disks(self, size_bytes: int | None = None) -> None:
        """Both disks hold the same bytes (the nodes have to be idle)."""
        difference = self.first_difference(size_bytes)
        assert difference is None, f"the disks differ at byte {difference}"


def _section(name: str, options: Mapping[str, str]) -> str:
    return f"  {name} {{ {' '.join(f'{key} {value};' for key, value in options.items())} }}\n" if options else ""


BUSY_MACHINE_FACTOR = 3


@contextlib.contextmanager
def at_most(seconds: float, what: str) -> Iterator[None]:
    """The block must not hang: ``seconds`` is generous on an idle machine, and a busy one gets three times that."""
    begin = time.monotonic()
    yield
    took = time.monotonic() - begin
    assert took <= seconds * BUSY_MACHINE_FACTOR, f"{what} took {took:.1f} s"
