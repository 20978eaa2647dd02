# SPDX-License-Identifier: Apache-2.0
"""From a .res file to the node's settings; run directory, lock and addresses."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from repl import config
from repl.daemon.addresses import own_addresses
from repl.daemon.main import main
from repl.daemon.notify import notify
from repl.daemon.run_dir import ResourceLock, RunDir, default_run_dir, running_pid
from repl.daemon.settings import node_settings
from repl.engine.commands import Resync
from repl.errors import ConfigError, RequestRefused

TEXT = """
resource web {
  options { auto-promote no; }
  net { protocol B; timeout 50; ping-int 7; ping-timeout 4; connect-int 9; max-buffers 4000; use-rle no;
        after-sb-0pri discard-zero-changes; cram-hmac-alg sha1; shared-secret "s"; }
  disk { resync-rate 10M; c-plan-ahead 15; c-delay-target 12; c-fill-target 1M; c-min-rate 1M; c-max-rate 9M;
         al-extents 997; disk-flushes no; size 1G; }
  volume 0 { device minor 3; meta-disk internal; }
  volume 2 { device minor 4; meta-disk internal; }
  on alpha { address 127.0.0.1:7788; volume 0 { disk /a; } volume 2 { disk none; } }
  on beta { address 127.0.0.2:7789; volume 0 { disk /b; } volume 2 { disk /c; } }
}
"""


def view(node: str = "alpha", text: str = TEXT) -> config.NodeView:
    return config.resource_for_node(config.load(Path("x.res"), text=text), "web", node)


def test_settings_have_the_engines_units() -> None:
    settings = node_settings(view())
    net, volume = settings.net, settings.volumes[0]
    assert (settings.resource, settings.node, settings.peer) == ("web", "alpha", "beta")
    assert (settings.my_address, settings.peer_address) == ("127.0.0.1:7788", "127.0.0.2:7789")
    assert settings.auto_promote is False
    assert (net.protocol, net.timeout_ms, net.ping_int_ms, net.ping_timeout_ms) == (2, 5000, 7000, 400)
    assert (net.connect_int_ms, net.max_buffers, net.use_rle, net.after_sb_0pri) == (9000, 4000, False, 3)
    assert volume.resync == Resync(
        resync_rate_kib=10240, plan_ahead=15, delay_target=12, fill_target=2048, max_rate_kib=9216, min_rate_kib=1024
    )
    assert (volume.minor, volume.al_extents, volume.disk_flushes, volume.size_sectors) == (3, 997, False, 1 << 21)


def test_settings_of_a_diskless_volume_say_so() -> None:
    assert [(one.number, one.has_disk) for one in node_settings(view()).volumes] == [(0, True), (2, False)]


def test_settings_do_not_show_the_secret() -> None:
    assert "'s'" not in repr(node_settings(view()))


def test_settings_of_foreign_address_families_are_refused() -> None:
    text = TEXT.replace("address 127.0.0.1", "address sdp 127.0.0.1").replace(
        "address 127.0.0.2", "address sdp 127.0.0.2"
    )
    with pytest.raises(ConfigError, match="sdp is not supported"):
        node_settings(view(text=text))


# Run directory


def test_lock_of_a_running_resource_names_the_pid(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path, "web")
    first, second = ResourceLock(run_dir), ResourceLock(run_dir)
    assert running_pid(run_dir) is None
    first.take()
    assert running_pid(run_dir) == os.getpid()
    with pytest.raises(RequestRefused, match=f"already running, pid {os.getpid()}"):
        second.take()
    first.release()
    assert running_pid(run_dir) is None
    second.take()
    second.release()


def test_run_dir_is_private_and_too_long_a_path_is_refused(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "new", "web")
    run_dir.create()
    assert run_dir.folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError, match="shorter"):
        RunDir(tmp_path / ("x" * 100), "web").create()


def test_run_dir_default_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("REPL_RUN_DIR", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_run_dir() == tmp_path / ".local/state/repl"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert default_run_dir() == Path("/run/user/1000/repl")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_run_dir() == Path("/run/repl")
    monkeypatch.setenv("REPL_RUN_DIR", "/elsewhere")
    assert default_run_dir() == Path("/elsewhere")


# The machine


def test_own_addresses_come_from_proc(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/fib_trie").write_text(
        "Local:\n     |-- 10.9.0.0\n        /24 link UNICAST\n     |-- 10.9.0.1\n        /32 host LOCAL\n"
        "     |-- 10.9.0.255\n        /32 link BROADCAST\n"
    )
    (tmp_path / "net/if_inet6").write_text("20010db8000000000000000000000001 02 40 00 80 eth0\n\n")
    assert own_addresses(tmp_path) == ("10.9.0.1", "2001:db8::1")
    assert own_addresses(tmp_path / "nowhere") == ()


def test_notify_reaches_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path) + "-gone")
    notify("READY=1")  # nobody there: no error
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


# repld's command line


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ([], 1, "RESOURCE"),
        (["web", "--log-level", "loud"], 1, "loud"),
        (["web", "--config", "/nonexistent/x.res"], 10, "/nonexistent/x.res"),
        (["nothing", "--config", "FILE", "--node", "alpha"], 1, "not defined"),
        (["web", "--config", "FILE", "--node", "gamma"], 1, "gamma"),
    ],
)
def test_repld_wrong_usage_is_one_message_and_a_status(
    arguments: list[str], status: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.res"
    file.write_text(TEXT)
    assert main([str(file) if word == "FILE" else word for word in arguments]) == status
    error = capsys.readouterr().err
    assert error.startswith("repld: ") and text in error and "Traceback" not in error
