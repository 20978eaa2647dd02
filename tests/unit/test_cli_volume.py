# SPDX-License-Identifier: Apache-2.0
"""``replctl volume`` without processes: words, messages, files, and hosts that share a volume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from repl.cli.main import main
from repl.cli.volume import dumps
from repl.cli.volume.look import _row
from repl.files.volume.store import Store


class Host:
    """One machine: its own state directory, its own name."""

    def __init__(self, folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder / name
        self.bricks = folder / "bricks"
        self.bricks.mkdir(exist_ok=True)
        self.name = name
        self._capsys = capsys

    def place(self, name: str, host: str = "") -> str:
        return f"{host or self.name}:{self.bricks / name}"

    def run(self, *words: str) -> tuple[int, str, str]:
        status = main(["--node", self.name, "--run-dir", str(self.folder), "volume", *words])
        out, err = self._capsys.readouterr()
        return status, out, err

    def done(self, *words: str) -> str:
        status, out, err = self.run(*words)
        assert status == 0, err
        return out

    def fails(self, *words: str) -> str:
        status, _, err = self.run(*words)
        assert status != 0
        return err

    @property
    def store(self) -> Store:
        return Store(self.folder)


@pytest.fixture
def alice(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Host:
    for name in ("REPL_RUN_DIR", "REPL_STATE_DIR", "REPL_NODE"):
        monkeypatch.delenv(name, raising=False)
    if os.geteuid() != 0:
        pytest.skip("needs root for trusted.* attributes")
    return Host(tmp_path, "alice", capsys)


@pytest.fixture
def bob(alice: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Host:
    return Host(tmp_path, "bob", capsys)


def test_volume_create_says_what_gluster_says(alice: Host) -> None:
    words = ["create", "v", "replica", "2", alice.place("1"), alice.place("2")]
    assert "Multiple bricks of a replicate volume are present on the same server" in alice.fails(*words)
    assert alice.store.names() == []
    out = alice.done(*words, "force")
    assert out == "volume create: v: success: please start the volume to access data\n"
    assert "volume create: v: failed: Volume v already exists" in alice.fails(*words, "force")
    text = alice.done("info", "v")
    assert "Type: Replicate\n" in text and "Number of Bricks: 1 x 2 = 2\n" in text
    assert f"Brick2: {alice.place('2')}\n" in text
    assert alice.done("list") == "v\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("create", "v", "relica", "2", "alice:/b"), "Wrong brick type: relica, use <HOSTNAME>:<export-dir-abs-path>"),
        (("create", "v"), "no brick is given"),
        (("create", "v", "disperse", "3", "alice:/b"), "disperse 3 is not there"),
        (("create", "v", "replica", "two", "alice:/b"), "'two' is no number"),
        (("create", "v", "alice:/no/such/folder"), "the directory /no/such does not exist"),
        (("start", "v"), "volume start: Volume v does not exist"),
        (("start",), "Usage: replctl volume start NAME [force]"),
        (("heal", "v", "infos"), "Volume v does not exist"),
        (("rebalance", "v", "begin"), "start, stop or status is expected"),
        (("remove-brick", "v", "alice:/b"), "start, stop, status, commit or force is expected"),
    ],
)
def test_volume_wrong_words_get_a_message_that_helps(alice: Host, words: tuple[str, ...], message: str) -> None:
    assert message in alice.fails(*words)


def test_volume_bricks_of_another_volume_are_not_taken(alice: Host) -> None:
    alice.done("create", "v", alice.place("1"))
    assert "already part of volume v" in alice.fails("create", "w", alice.place("1"))
    alice.done("delete", "v")
    assert "is already part of a volume" in alice.fails("create", "w", alice.place("1"))
    alice.done("create", "v", alice.place("1"))  # the same volume again


def test_volume_the_same_command_on_two_hosts_makes_one_volume(alice: Host, bob: Host) -> None:
    words = ["create", "v", "replica", "2", alice.place("1", "alice"), alice.place("2", "bob")]
    alice.done(*words)
    bob.done(*words)
    one, two = alice.store.load("v"), bob.store.load("v")
    assert one == two
    assert alice.store.path("v", "client.vol").read_text() == bob.store.path("v", "client.vol").read_text()
    assert alice.store.path("v", "brick-0.vol").exists() and not alice.store.path("v", "brick-1.vol").exists()
    assert bob.store.path("v", "brick-1.vol").exists() and not bob.store.path("v", "brick-0.vol").exists()


def test_volume_changes_travel_by_export_and_import(alice: Host, bob: Host, tmp_path: Path) -> None:
    alice.done("create", "v", "replica", "2", alice.place("1", "alice"), alice.place("2", "bob"))
    alice.done("set", "v", "network.ping-timeout", "7")
    file = tmp_path / "v.json"
    file.write_text(alice.done("export", "v"))
    bob.done("import", str(file))
    assert bob.store.load("v") == alice.store.load("v")
    assert "ping-timeout 7" in bob.store.path("v", "client.vol").read_text()
    file.write_text("nothing")
    assert "does not describe a volume" in bob.fails("import", str(file))


def test_volume_options_are_set_read_and_reset(alice: Host) -> None:
    alice.done("create", "v", alice.place("1"))
    assert alice.done("set", "v", "network.ping-timeout", "7", "cluster.min-free-disk", "5%") == "volume set: success\n"
    assert "failed: option : network.ping does not exist" in alice.fails("set", "v", "network.ping", "1")
    assert "cannot be 'x'" in alice.fails("set", "v", "network.ping-timeout", "x")
    assert "is missing" in alice.fails("set", "v", "network.ping-timeout")
    assert json.loads(alice.done("get", "v", "network.ping-timeout", "--json"))["data"] == {"network.ping-timeout": "7"}
    assert len(alice.done("get", "v", "all").splitlines()) > 100
    alice.done("reset", "v", "network.ping-timeout")
    assert "5 (DEFAULT)" in alice.done("get", "v", "network.ping-timeout")
    assert "Option: cluster.quorum-type\n" in alice.done("set", "help")


def test_volume_what_needs_a_started_volume_says_so(alice: Host) -> None:
    alice.done("create", "v", "replica", "2", alice.place("1"), alice.place("2"), "force")
    for words in (("status", "v"), ("heal", "v"), ("rebalance", "v", "start"), ("profile", "v", "info"),
                  ("replace-brick", "v", alice.place("1"), alice.place("3"), "commit", "force")):  # fmt: skip
        assert "Volume v is not started" in alice.fails(*words)
    assert "is not in the started state" in alice.fails("stop", "v")
    assert "Volume v is not started" in alice.done("status")


def test_volume_bricks_are_added_to_and_dropped_from_a_stopped_volume(alice: Host) -> None:
    alice.done("create", "v", alice.place("1"), alice.place("2"))
    alice.done("add-brick", "v", alice.place("3"))
    assert [b.port for b in alice.store.load("v").bricks] == [24009, 24010, 24011]
    assert "is not decommissioned" in alice.fails("remove-brick", "v", alice.place("3"), "commit")
    alice.done("remove-brick", "v", alice.place("1"), "force")
    assert [b.number for b in alice.store.load("v").bricks] == [1, 2]
    assert not alice.store.path("v", "brick-0.vol").exists()


def test_volume_ports_are_given_once(alice: Host) -> None:
    alice.done("create", "v", alice.place("1"), alice.place("2"))
    alice.done("create", "w", alice.place("3"))
    assert alice.store.load("w").bricks[0].port == 24011
    assert "belongs to a brick of volume v" in alice.fails("create", "x", alice.place("4"), "--base-port", "24010")
    alice.done("add-brick", "v", alice.place("4"))
    assert [b.port for b in alice.store.load("v").bricks] == [24009, 24010, 24012]


def test_volume_status_breaks_long_names_as_gluster_does() -> None:
    lines = _row("Brick " + "x" * 50, 24009, True, 7).splitlines()
    assert len(lines) == 2 and len(lines[0]) == 43 and lines[1].split() == ["x" * 13, "24009", "0", "Y", "7"]


def test_volume_state_dumps_are_read_by_section() -> None:
    found: dict[str, Any] = dumps.parse("[brickd]\nvolfile=/a=b\n\n[debug/io-stats./b]\nlookup.calls=3\n")
    assert found["brickd"] == {"volfile": "/a=b"}
    assert dumps.find(found, "debug/io-stats") == {"lookup.calls": "3"}
