# SPDX-License-Identifier: Apache-2.0
"""Resync on the command line and in the configuration: options, circles of resync-after, what status shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repl import config
from repl.cli import proc_text, status_json, status_text
from repl.daemon.disks import is_fully_allocated
from repl.daemon.settings import node_settings
from repl.errors import ConfigError
from repl.node.resync_options import PRESETS
from tests.unit.test_cli_commands import Box, FakeDaemon, box, daemon  # noqa: F401
from tests.unit.test_cli_render import resync, status, volume

Start = Callable[[Callable[[str, dict[str, Any]], dict[str, Any]]], FakeDaemon]


def answers(verb: str, args: dict[str, Any]) -> dict[str, Any]:
    return status(volume(0), volume(2)) if verb == "status" else {}


@pytest.mark.parametrize("verb", ["pause-sync", "resume-sync", "invalidate-remote", "invalidate"])
def test_verb_is_carried_out_for_one_volume_or_for_each(box: Box, daemon: Start, verb: str) -> None:  # noqa: F811
    running = daemon(answers)
    assert box.run(verb, "web/2")[0] == 0
    assert running.calls == [(verb, {"volume": 2})]
    assert box.run(verb, "web")[0] == 0
    assert running.calls[1:] == [("status", {}), (verb, {"volume": 0}), (verb, {"volume": 2})]


def test_disk_options_reads_values_as_the_configuration_does(box: Box, daemon: Start) -> None:  # noqa: F811
    running = daemon(answers)
    words = ["disk-options", "web/0", "--c-max-rate", "200M", "--c-fill-target", "1M", "--resync-priority", "fast"]
    assert box.run(*words)[0] == 0
    values = {"max_rate_kib": 204800, "fill_target": 2048}
    assert running.calls == [("disk-options", {"volume": 0, "priority": "fast", **values})]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--c-max-rate", "quick"], "--c-max-rate quick"),
        (["--c-plan-ahead", "301"], "--c-plan-ahead 301"),
        (["--resync-priority", "ludicrous"], "ludicrous"),
        ([], "nothing to change"),
    ],
)
def test_disk_options_that_make_no_sense_are_refused(box: Box, words: list[str], said: str) -> None:  # noqa: F811
    found, _out, err = box.run("disk-options", "web/0", *words)
    assert found == 1 and said in err


def test_net_options_reads_values_as_the_configuration_does(box: Box, daemon: Start) -> None:  # noqa: F811
    running = daemon(answers)
    words = ["net-options", "web", "--protocol", "A", "--timeout", "50", "--after-sb-0pri", "discard-zero-changes"]
    assert box.run(*words, "--allow-two-primaries", "no", "--congestion-fill", "1M")[0] == 0
    values = {"protocol": 1, "timeout_ms": 5000, "after_sb_0pri": 3, "two_primaries": False}
    assert running.calls == [("net-options", {**values, "congestion_fill_sectors": 2048})]
    assert box.run("net-options", "web", "--set-defaults", "--protocol", "B")[0] == 0
    (_verb, changed) = running.calls[-1]
    assert changed["protocol"] == 2 and changed["timeout_ms"] == 6000 and changed["on_congestion"] == "block"
    assert "shared_secret" not in changed


@pytest.mark.parametrize("words", [["--protocol", "D"], ["--timeout", "0"], []])
def test_net_options_that_make_no_sense_are_refused(box: Box, words: list[str]) -> None:  # noqa: F811
    found, _out, err = box.run("net-options", "web", *words)
    assert found == 1 and (" ".join(words) or "nothing to change") in err


def two(first: str, second: str) -> str:
    return "".join(
        f"resource {name} {{ device minor {n}; meta-disk internal; disk /d{n}; {body}\n"
        f"on alpha {{ address 127.0.0.1:{7000 + n}; }} on beta {{ address 127.0.0.1:{7100 + n}; }} }}\n"
        for n, (name, body) in enumerate((("x", first), ("y", second)))
    )


def view(text: str, name: str) -> config.NodeView:
    return config.resource_for_node(config.load(Path("x.res"), text=text), name, "alpha")


def test_resync_after_names_resource_and_volume() -> None:
    text = two("", "disk { resync-after x; }")
    assert node_settings(view(text, "y")).volumes[0].resync_after == ("x", 0)
    assert node_settings(view(text, "x")).volumes[0].resync_after is None


@pytest.mark.parametrize("both", [("disk { resync-after y; }", "disk { resync-after x/0; }"),
                                  ("disk { resync-after x; }", "")])  # fmt: skip
def test_circle_of_resync_after_is_refused(both: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="makes a circle"):
        config.load(Path("x.res"), text=two(*both))


def test_chain_of_resync_after_is_no_circle() -> None:
    config.load(Path("x.res"), text=two("disk { resync-after y; }", ""))


def test_priority_replaces_the_numbers_of_the_controller() -> None:
    settings = node_settings(view(two("disk { resync-priority fast; c-max-rate 1M; rs-discard-granularity 64K; }", ""),
                                  "x")).volumes[0]  # fmt: skip
    assert settings.resync_priority == "fast"
    assert settings.resync.max_rate_kib == PRESETS["fast"]["max_rate_kib"]
    assert settings.resync.discard_granularity == 65536


def test_csums_options_reach_the_node() -> None:
    net = node_settings(view(two("net { csums-alg crc32c; csums-after-crash-only yes; }", ""), "x")).net
    assert (net.csums_alg, net.csums_after_crash_only) == ("crc32c", True)


def test_status_names_the_limit_and_the_pause() -> None:
    running = volume(0, replication="SyncTarget", resync={**resync(), "limited_by": "own-disk"})
    text = status_text.render(status(running))
    assert "done:43.78 limited-by:own-disk" in text and "resync-suspended" not in text
    assert "limited by own-disk" in status_text.progress_text("web", running)
    paused = volume(0, replication="PausedSyncT", resync={**resync(), "limited_by": "paused"},
                    resync_suspended=["user", "dependency"])  # fmt: skip
    assert "resync-suspended:user,dependency" in " ".join(status_text.render(status(paused)).split())
    peer = status_json.resource_object(status(paused), None)["connections"][0]["peer_devices"][0]
    assert peer["resync-suspended"] == "user,dependency"
    assert " C ra-u--" in proc_text.render([status(paused)])


def test_file_is_fully_allocated_only_when_all_of_it_has_blocks(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("w+b") as file:
        assert not is_fully_allocated(file.fileno())
        file.truncate(1 << 20)
        assert not is_fully_allocated(file.fileno())
        file.write(b"x" * (1 << 20))
        file.flush()
        assert is_fully_allocated(file.fileno())
