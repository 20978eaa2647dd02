# SPDX-License-Identifier: Apache-2.0
"""The volfiles of well-known tutorials, unchanged but for addresses and directories, served and mounted."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lib.mounts import Mount, needs_fuse
from tests.lib.ports import free_port
from tests.lib.process import Process
from tests.lib.wait import wait_for

pytestmark = needs_fuse()
VOLFILES = Path(__file__).parents[1] / "vectors" / "volfiles"


class Nodes:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, Process] = {}
        self.mounts: list[Mount] = []
        self.ports: dict[str, int] = {}

    def port(self, node: str) -> int:
        return self.ports.setdefault(node, free_port())

    def write(self, name: str, source: str, **changes: str) -> Path:
        """``changes``: patterns and what they become."""
        text = (VOLFILES / source).read_text().replace("gfs-ds- locks", "gfs-ds-locks")
        for pattern, new in changes.values() if changes else ():
            text, count = re.subn(pattern, new, text, flags=re.MULTILINE)
            assert count, (source, pattern)
        path = self.folder / name
        path.write_text(text)
        return path

    def serve(self, name: str, volfile: Path) -> None:
        command: list[Any] = [sys.executable, "-m", "repl.files.brick", "-N", "-f", volfile]
        log = self.folder / f"{name}.log"
        log.unlink(missing_ok=True)
        self.running[name] = Process(command, log, env={"REPL_RUN_DIR": str(self.folder / "run")})
        self.running[name].wait_log("serving", 30)

    def mount(self, name: str, volfile: Path) -> Path:
        self.mounts.append(Mount(self.folder, volfile, (), name))
        return self.mounts[-1].path

    def stop(self) -> None:
        for mount in self.mounts:
            mount.unmount()
        for process in self.running.values():
            process.stop(20)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    found = Nodes(tmp_path)
    try:
        yield found
    finally:
        found.stop()
    for log in tmp_path.glob("*.log"):
        assert "Traceback" not in log.read_text(), log


def test_distributed_and_replicated_tutorial_is_served_and_mounted(nodes: Nodes) -> None:
    for number in range(1, 5):
        directory = nodes.folder / f"export{number}"
        directory.mkdir()
        server = nodes.write(
            f"server{number}.vol", "tutorial-2x2-server.vol", directory=("/data/export", str(directory)),
            port=(r"^type protocol/server$", rf"\g<0>\noption listen-port {nodes.port(str(number))}"),
        )  # fmt: skip
        nodes.serve(str(number), server)
    client = nodes.write("client.vol", "tutorial-2x2-client.vol", host=(
        r"^option remote-host gluster(\d)$", r"option remote-host 127.0.0.1\noption remote-port PORT\1"))  # fmt: skip
    client.write_text(re.sub(r"PORT(\d)", lambda found: str(nodes.port(found[1])), client.read_text()))
    root = nodes.mount("mnt", client)
    for number in range(20):
        (root / f"f{number}").write_text(f"{number}")
    assert sorted(os.listdir(root)) == sorted(f"f{number}" for number in range(20))
    copies = [sorted(p.name for p in (nodes.folder / f"export{n}").glob("f*")) for n in range(1, 5)]
    assert copies[0] == copies[1] and copies[2] == copies[3] and copies[0] and copies[2]


@pytest.mark.files_long
def test_two_nodes_that_replicate_among_themselves_never_show_the_old_copy(nodes: Nodes) -> None:
    """Each node calls its own brick gfs-ds-locks and the other one something else.  A node that had been away read from
    its own copy what had changed without it: it did not know that it was meant."""
    others = {"1": "2", "2": "1"}
    for node, other in others.items():
        directory = nodes.folder / f"ha{node}"
        directory.mkdir()
        nodes.write(
            f"node{node}.vol", f"tutorial-ha-node{node}.vol", directory=("directory /ha", f"directory {directory}"),
            peer=(r"^(option remote-host) 10.*$", rf"\1 127.0.0.1\noption remote-port {nodes.port(other)}"),
            allowed=(r"10\.0\.0\.\*", "127.0.0.*"),
            port=("^type protocol/server$", rf"\g<0>\noption listen-port {nodes.port(node)}"),
        )  # fmt: skip
        nodes.write(f"client{node}.vol", "tutorial-ha-client.vol", host=(
            "cluster.yourdomain.com.*$", f"127.0.0.1\noption remote-port {nodes.port(node)}"))  # fmt: skip
    for node in others:
        nodes.serve(node, nodes.folder / f"node{node}.vol")
    roots = {node: nodes.mount(f"mnt{node}", nodes.folder / f"client{node}.vol") for node in others}
    (roots["1"] / "file").write_text("first")
    wait_for(lambda: (roots["2"] / "file").read_text() == "first", 10, "the other node", ignore=OSError)
    for away, here in (("2", "1"), ("1", "2"), ("2", "1")):
        nodes.running[away].popen.send_signal(signal.SIGKILL)
        nodes.running[away].popen.wait(10)
        text = f"changed while {away} was away"
        (roots[here] / "file").write_text(text)
        (roots[here] / f"new-{away}").write_text(text)
        nodes.serve(away, nodes.folder / f"node{away}.vol")
        read = wait_for(lambda a=away: (roots[a] / "file").read_text(), 20, "the node that is back", ignore=OSError)
        assert read == text
        assert (roots[away] / f"new-{away}").read_text() == text
        wait_for(lambda: _is_healed(nodes, roots), 20, "the heal on access")
    for node in others:
        (roots[node] / f"by-{node}").write_text(node)
    # A node may not have found its way back to the other's brick yet: it marks what that one misses.
    wait_for(lambda: _is_healed(nodes, roots) and _contents(nodes, "1") == _contents(nodes, "2"), 20, "equal copies")
    assert _contents(nodes, "1") == {"file": text, "by-1": "1", "by-2": "2"} | {
        f"new-{n}": f"changed while {n} was away" for n in others
    }


def _contents(nodes: Nodes, node: str) -> dict[str, str]:
    """The files of a brick."""
    return {path.name: path.read_text() for path in (nodes.folder / f"ha{node}").iterdir() if path.is_file()}


def _is_healed(nodes: Nodes, roots: dict[str, Path]) -> bool:
    """There is no heal daemon: what is looked at is healed."""
    for root in roots.values():
        for entry in os.scandir(root):
            entry.stat()
    paths = [path for node in roots for path in (nodes.folder / f"ha{node}", *(nodes.folder / f"ha{node}").iterdir())]
    keys = [(path, key) for path in paths for key in os.listxattr(path) if key.startswith("trusted.afr.")]
    return not any(any(os.getxattr(path, key)) for path, key in keys)
