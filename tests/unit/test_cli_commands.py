# SPDX-License-Identifier: Apache-2.0
"""replctl as it is called: exit statuses, messages, metadata, and a daemon played by a thread."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from repl.cli.main import main
from repl.daemon import protocol
from repl.daemon.run_dir import ResourceLock, RunDir
from repl.errors import ReplError, StateRefused, WaitTimedOut
from tests.unit.test_cli_render import SYNCING, status

MIB = 1 << 20
DISK_BYTES = 8 * MIB


class Box:
    """A configuration with two resources, their disks, and replctl."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.run_dir, self.capsys = folder, folder / "run", capsys
        self.config = folder / "x.res"
        sections = []
        for number, name in enumerate(("web", "db")):
            with open(folder / f"{name}.img", "wb") as file:
                file.truncate(DISK_BYTES)
            sections.append(
                f"resource {name} {{ device minor {number}; meta-disk internal; disk {folder}/{name}.img;\n"
                f" on alpha {{ address 127.0.0.1:{7000 + number}; }}\n"
                f" on beta {{ address 127.0.0.1:{7100 + number}; }} }}\n"
            )
        self.config.write_text("".join(sections))

    def run(self, *words: str) -> tuple[int, str, str]:
        """(exit status, stdout, stderr)"""
        self.capsys.readouterr()
        found = main(["--config", str(self.config), "--node", "alpha", "--run-dir", str(self.run_dir), *words])
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        return found, out, err


@pytest.fixture
def box(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Box:
    for name in ("REPL_CONFIG", "REPL_NODE", "REPL_RUN_DIR", "__DRBD_NODE__"):
        monkeypatch.delenv(name, raising=False)
    return Box(tmp_path, capsys)


Answer = Callable[[str, dict[str, Any]], dict[str, Any]]


class FakeDaemon:
    """Answers on the control socket; holds the lock like the real one."""

    def __init__(self, run_dir: RunDir, answer: Answer) -> None:
        run_dir.create()
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._answer = answer
        self._lock = ResourceLock(run_dir)
        self._lock.take()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(run_dir.control))
        self._server.listen()
        self._run_dir = run_dir
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream:
            while len(header := stream.read(4)) == 4:
                request = protocol.parse_request(protocol.decode_body(stream.read(protocol.frame_length(header))))
                self.calls.append((request.verb, request.args))
                try:
                    result, error = self._answer(request.verb, request.args), None
                except ReplError as found:
                    result, error = {}, found
                client.sendall(protocol.encode_answer(request.request_id, result, error))
                if request.verb == "down" and error is None:
                    self.close()
                    return

    def close(self) -> None:
        self._server.close()
        self._run_dir.control.unlink(missing_ok=True)
        self._lock.release()


@pytest.fixture
def daemon(box: Box) -> Iterator[Callable[[Answer], FakeDaemon]]:
    started: list[FakeDaemon] = []

    def start(answer: Answer) -> FakeDaemon:
        started.append(FakeDaemon(RunDir(box.run_dir, "web"), answer))
        return started[-1]

    yield start
    for one in started:
        one.close()


Start = Callable[[Answer], FakeDaemon]


def refuse(error: ReplError) -> Answer:
    def answer(verb: str, args: dict[str, Any]) -> dict[str, Any]:
        raise error

    return answer


# Usage and exit statuses


@pytest.mark.parametrize(
    ("words", "found", "text"),
    [
        (["frobnicate"], 1, "frobnicate"),
        (["primary"], 1, "Which resource?"),
        (["primary", "--wrong", "web"], 1, "--wrong"),
        (["primary", "nothing"], 1, "'nothing' not defined in your config"),
        (["primary", "web/0"], 1, "whole resource"),
        (["nbd-url", "web/7"], 1, "'web/7' not defined"),
        (["primary", "web"], 10, "not running"),
        (["status", "web"], 10, "No such resource"),
        (["role", "web"], 10, "127"),
        (["wait-sync", "web", "--timeout", "x"], 1, "timeout"),
    ],
)
def test_replctl_failure_is_one_message_and_drbdadms_status(
    box: Box, words: list[str], found: int, text: str
) -> None:
    exit_status, out, err = box.run(*words)
    assert exit_status == found and text in err and not out
    assert err.count("\n") == 1 and err.startswith("replctl: ")


def test_replctl_without_configuration_says_how_to_name_one(
    box: Box, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("repl.daemon.given.DEFAULT_CONFIG", tmp_path / "nothing")
    monkeypatch.setattr("repl.cli.session.DEFAULT_CONFIG", tmp_path / "nothing")
    assert main(["status"]) == 10
    assert "REPL_CONFIG" in box.capsys.readouterr().err


def test_replctl_reads_its_environment(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPL_CONFIG", str(box.config))
    monkeypatch.setenv("__DRBD_NODE__", "beta")
    monkeypatch.setenv("REPL_RUN_DIR", "/somewhere/run")
    assert main(["nbd-url", "web"]) == 0
    assert box.capsys.readouterr().out == "nbd+unix:///web/0?socket=/somewhere/run/web.nbd\n"
    monkeypatch.setenv("REPL_NODE", "gamma")
    assert main(["nbd-url", "web"]) == 1


def test_replctl_with_a_broken_configuration_names_file_and_line(box: Box) -> None:
    box.config.write_text("resource web {\n  dev ice;\n}\n")
    exit_status, _, err = box.run("dump")
    assert exit_status == 10 and f"{box.config}:2" in err


@pytest.mark.parametrize("words", [["--json", "primary", "nothing"], ["primary", "nothing", "--json"]])
def test_replctl_json_failure_is_one_object(box: Box, words: list[str]) -> None:
    exit_status, out, err = box.run(*words)
    assert exit_status == 1 and not err
    found = json.loads(out)
    assert found["ok"] is False and found["code"] == "usage" and set(found) == {"ok", "code", "message", "advice"}


def test_replctl_version_and_help_end_with_0(box: Box) -> None:
    assert "replctl" in box.run("--version")[1]
    assert box.run("up", "--help")[0] == 0


def test_replctl_bug_is_one_message(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repl.config.dump", lambda *args, **kwargs: 1 // 0)
    exit_status, _, err = box.run("dump")
    assert exit_status == 20 and "internal error: ZeroDivisionError" in err


# Configuration


def test_config_check_tells_the_resources_of_the_node(box: Box) -> None:
    exit_status, out, _ = box.run("config", "check")
    assert exit_status == 0 and "web, db" in out
    assert json.loads(box.run("--json", "config", "check")[1])["data"]["resources"] == ["web", "db"]


def test_dump_of_one_resource_leaves_the_others_out(box: Box) -> None:
    assert "resource db" not in box.run("dump", "web")[1]
    assert "resource db" in box.run("dump")[1]


# Metadata


def test_create_md_makes_metadata_that_get_gi_and_dstate_read(box: Box) -> None:
    exit_status, out, _ = box.run("create-md", "all")
    assert exit_status == 0 and out.count("new metadata") == 2
    fresh = ":".join(["0000000000000004", *["0000000000000000"] * 3, *["0"] * 7])
    assert box.run("get-gi", "web") == (0, fresh + "\n", "")
    assert box.run("dstate", "web") == (0, "Inconsistent/DUnknown\n", "")
    assert "meta-data: clean" in box.run("show-gi", "web/0")[1]


def test_create_md_refuses_to_overwrite_metadata_without_force(box: Box) -> None:
    box.run("create-md", "web")
    exit_status, _, err = box.run("create-md", "web")
    assert exit_status == 1 and "DRBD v08" in err and "--force" in err
    assert box.run("create-md", "--force", "web")[0] == 0


def test_create_md_names_the_file_system_it_found(box: Box) -> None:
    with open(box.folder / "web.img", "r+b") as file:
        file.write(b"XFSB")
    exit_status, _, err = box.run("create-md", "web")
    assert exit_status == 1 and "xfs" in err and "external" in err
    with open(box.folder / "web.img", "rb") as file:
        assert file.read().count(0) == DISK_BYTES - 4


def test_create_md_gives_each_disk_its_own_device_uuid(box: Box) -> None:
    assert box.run("create-md", "all")[0] == 0
    ends = [(box.folder / f"{name}.img").read_bytes()[-4096:] for name in ("web", "db")]
    assert ends[0] != ends[1]


def test_create_md_while_repld_runs_is_refused(box: Box, daemon: Start) -> None:
    volume: dict[str, Any] = {"volume": 0, "disk": "UpToDate"}
    daemon(lambda verb, args: {"volumes": [volume]})
    exit_status, _, err = box.run("create-md", "--force", "web")
    assert exit_status == 10 and "is attached" in err and "replctl detach web/0" in err


def test_create_md_of_a_detached_disk_is_possible_while_repld_runs(box: Box, daemon: Start) -> None:
    daemon(lambda verb, args: {"volumes": [{"volume": 0, "disk": "Diskless"}]})
    assert box.run("create-md", "web")[0] == 0


def test_get_gi_of_a_disk_without_metadata_says_what_to_do(box: Box) -> None:
    exit_status, _, err = box.run("get-gi", "web")
    assert exit_status == 20 and "create-md" in err


# With a daemon


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["primary", "web"], ("primary", {})),
        (["primary", "--force", "web"], ("primary", {"force": True})),
        (["secondary", "web"], ("secondary", {})),
        (["connect", "--discard-my-data", "web"], ("connect", {"discard_my_data": True})),
        (["disconnect", "--force", "web"], ("disconnect", {"force": True})),
        (["invalidate", "web/0"], ("invalidate", {"volume": 0})),
        (["attach", "web/0"], ("attach", {"volume": 0})),
        (["detach", "web/0"], ("detach", {"volume": 0})),
        (["detach", "--force", "web/0"], ("detach", {"volume": 0, "force": True})),
        (["wait-connect", "--timeout", "3", "web"], ("wait-connect", {"timeout_s": 3.0})),
        (["new-current-uuid", "--clear-bitmap", "web"], ("new-current-uuid", {"volume": 0, "clear_bitmap": True})),
    ],
)
def test_replctl_verb_reaches_the_daemon(
    box: Box, daemon: Start, words: list[str], call: tuple[str, dict[str, Any]]
) -> None:
    running = daemon(lambda verb, args: {})
    assert box.run(*words) == (0, "", "")
    assert running.calls == [call]


def test_resize_says_how_large_it_is(box: Box, daemon: Start) -> None:
    running = daemon(lambda verb, args: {"size_bytes": 1 << 20, "has_changed": True})
    assert box.run("resize", "--size", "1M", "--assume-clean", "web/0") == (0, "web/0: resized to 1048576 bytes\n", "")
    assert running.calls == [("resize", {"volume": 0, "assume_clean": True, "size_sectors": 2048})]
    assert box.run("resize", "--size", "much", "web/0")[0] == 1


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (StateRefused("web: held open", number=-12), 11),
        (StateRefused("web: no good data", number=-2), 17),
        (WaitTimedOut("web: too long"), 5),
    ],
)
def test_replctl_ends_with_the_daemons_status(box: Box, daemon: Start, error: ReplError, found: int) -> None:
    daemon(refuse(error))
    exit_status, _, err = box.run("secondary", "web")
    assert exit_status == found and error.message in err


def test_replctl_of_several_resources_does_all_and_fails_for_one(box: Box, daemon: Start) -> None:
    running = daemon(lambda verb, args: {})
    exit_status, _, err = box.run("secondary", "all")
    assert exit_status == 10 and "db" in err and running.calls == [("secondary", {})]
    answers = json.loads(box.run("--json", "secondary", "all")[1])
    assert answers["ok"] is False and [one["ok"] for one in answers["data"]] == [True, False]


def test_replctl_reaches_what_runs_although_the_configuration_is_broken(box: Box, daemon: Start) -> None:
    running = daemon(lambda verb, args: {})
    box.config.write_text("nonsense")
    assert box.run("secondary", "web")[0] == 0
    assert running.calls == [("secondary", {})]


def test_status_shows_what_runs_and_what_does_not(box: Box, daemon: Start) -> None:
    daemon(lambda verb, args: status(SYNCING))
    exit_status, out, err = box.run("status")
    assert exit_status == 0 and "done:43.78" in out and "db: not running" in err
    (found,) = json.loads(box.run("status", "--json", "web")[1])
    assert found["name"] == "web" and found["connections"][0]["paths"][0]["this_host"]["port"] == 7000


def test_role_cstate_dstate_print_a_line_for_each_volume(box: Box, daemon: Start) -> None:
    daemon(lambda verb, args: status(SYNCING))
    assert box.run("role", "web")[1] == "Primary/Secondary\n"
    assert box.run("cstate", "web")[1] == "SyncSource\n"
    assert box.run("dstate", "web/0")[1] == "UpToDate/Inconsistent\n"
    assert "cs:SyncSource" in box.run("proc")[1]


def test_wait_sync_prints_progress_until_the_answer(
    box: Box, daemon: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repl.cli.waiting.REFRESH_S", 0.02)
    is_looked_at = threading.Event()

    def answer(verb: str, args: dict[str, Any]) -> dict[str, Any]:
        if verb == "wait-sync":
            is_looked_at.wait(10)
            return {}
        is_looked_at.set()
        return status(SYNCING)

    daemon(answer)
    exit_status, out, _ = box.run("wait-sync", "web")
    assert exit_status == 0 and "web/0: 43.8% synced" in out


def test_events_now_prints_what_is_known(box: Box, daemon: Start) -> None:
    event = {"sequence": 1, "time_s": 0.0, "kind": "change", "level": "info", "volume": 0,
             "message": "disk Inconsistent -> UpToDate", "fields": {}}  # fmt: skip

    def answer(verb: str, args: dict[str, Any]) -> dict[str, Any]:
        return {"events": [event] if args["after"] < 1 else []}

    daemon(answer)
    exit_status, out, _ = box.run("events", "--now", "web")
    assert exit_status == 0 and out.endswith(" web/0: disk Inconsistent -> UpToDate\n")


def test_down_waits_for_the_daemons_end_and_twice_is_fine(box: Box, daemon: Start) -> None:
    running = daemon(lambda verb, args: {})
    assert box.run("down", "web") == (0, "", "")
    assert running.calls == [("down", {})]
    assert box.run("down", "web") == (0, "", "")


def test_up_of_a_resource_that_is_up_fails_as_drbdadms_does(box: Box, daemon: Start) -> None:
    daemon(lambda verb, args: {"up": True})
    exit_status, _, err = box.run("up", "web")
    assert exit_status == 1 and "(124)" in err


def test_up_shows_why_the_daemon_died(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; print('repld: the engine is on fire.', file=sys.stderr); sys.exit(20)"
    monkeypatch.setattr("repl.cli.starting._command", lambda *args: [sys.executable, "-c", script])
    exit_status, _, err = box.run("up", "web")
    assert exit_status == 1 and "the engine is on fire" in err and "exit status 20" in err


def test_replctl_that_is_interrupted_ends_quietly(box: Box, daemon: Start) -> None:
    daemon(lambda verb, args: status())
    words = ["--config", str(box.config), "--node", "alpha", "--run-dir", str(box.run_dir)]
    script = f"from repl.cli.main import main; import sys; sys.exit(main({[*words, 'status', '--watch']!r}))"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        # A shell starts background jobs with the signal ignored, and they hand it on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"web role:Primary\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and not err.strip()
