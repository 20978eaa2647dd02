# SPDX-License-Identifier: Apache-2.0
"""What replctl prints of a status: text, JSON, /proc/drbd, progress."""

from __future__ import annotations

from typing import Any

import pytest

from repl.cli import output, proc_text, states, status_json, status_text
from repl.cli.offline import Generation
from repl.cli.session import Target, parse_target
from repl.cli.waiting import StepReporter
from repl.errors import StateRefused, UsageError


def resync(percent: float = 43.78, total: int = 1000 << 20) -> dict[str, Any]:
    return {
        "role": "source",
        "done_percent": percent,
        "total_bytes": total,
        "done_bytes": int(total * percent / 100),
        "rate_bytes": 50 << 20,
        "eta_s": 11.2,
    }


def volume(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "volume": number,
        "minor": number,
        "disk": "UpToDate",
        "peer_disk": "UpToDate",
        "replication": "Connected",
        "size_bytes": 1000 << 20,
        "out_of_sync_bytes": 0,
        "open": 0,
        "resync": None,
        "exposed_uuid": "0",
        "counters": {"sent_bytes": 11472 << 10, "disk_read_bytes": 2048, "al_writes": 8, "unacked": 3},
        **changes,
    }


def status(*volumes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "resource": "web",
        "node": "alpha",
        "role": "Primary",
        "connection": "Connected",
        "reason": "",
        "advice": "",
        "suspended": False,
        "protocol": "C",
        "peer": {"name": "beta", "role": "Secondary", "address": "192.0.2.2:7788"},
        "volumes": list(volumes) or [volume()],
        "engine": {"epochs_open": 0},
        **changes,
    }


SYNCING = volume(0, replication="SyncSource", peer_disk="Inconsistent", resync=resync(), out_of_sync_bytes=562 << 20)
SPLIT = status(connection="StandAlone", reason="Split brain.", advice='On the loser: "connect --discard-my-data".')


def test_status_of_two_volumes_has_drbds_shape() -> None:
    assert status_text.render(status(SYNCING, volume(1))) == (
        "web role:Primary\n"
        "  volume:0 disk:UpToDate\n"
        "  volume:1 disk:UpToDate\n"
        "  beta role:Secondary\n"
        "    volume:0 replication:SyncSource peer-disk:Inconsistent done:43.78\n"
        "    volume:1 replication:Established peer-disk:UpToDate\n"
        "\n"
    )


def test_status_of_a_single_volume_0_leaves_its_number_out() -> None:
    assert status_text.render(status()) == (
        "web role:Primary\n  disk:UpToDate\n  beta role:Secondary\n    peer-disk:UpToDate\n\n"
    )


def test_status_that_is_verbose_leaves_nothing_out() -> None:
    text = status_text.render(status(), is_verbose=True, has_statistics=True)
    for part in ("suspended:no", "volume:0 minor:0", "connection:Connected", "replication:Established", "sent:11472"):
        assert part in text


def test_status_standalone_keeps_the_connection_and_the_reason() -> None:
    assert status_text.render(SPLIT).splitlines() == [
        "web role:Primary",
        "  disk:UpToDate",
        "  beta connection:StandAlone",
        "    reason: Split brain.",
        '    advice: On the loser: "connect --discard-my-data".',
        "",
    ]


def test_status_lines_are_wrapped_at_80_columns() -> None:
    text = status_text.render(status(reason="word " * 60, connection="StandAlone"), has_statistics=True)
    assert max(map(len, text.splitlines())) <= 80


def test_status_json_has_all_keys_and_null_when_unknown() -> None:
    found = status_json.resource_object(status(SYNCING), None)
    assert found["node-id"] is None and found["role"] == "Primary"
    peer = found["connections"][0]["peer_devices"][0]
    assert peer["replication-state"] == "SyncSource" and peer["percent-resync-done"] == 43.78
    assert peer["out-of-sync"] == 562 << 10 and peer["has-sync-details"] is True
    assert found["devices"][0]["size"] == 1000 << 10
    quiet = status_json.resource_object(status(), None)["connections"][0]["peer_devices"][0]
    assert set(quiet) == set(peer) and quiet["rs-total"] is None and quiet["percent-in-sync"] == 100.0


def test_status_json_puts_the_reason_under_x() -> None:
    found = status_json.resource_object(SPLIT, None)
    assert found["x"]["reason"] == "Split brain."
    assert found["connections"][0]["connection-state"] == "StandAlone"


def test_proc_of_a_resync_has_the_kernels_lines() -> None:
    dirty = volume(
        0, replication="SyncSource", peer_disk="Inconsistent", out_of_sync_bytes=54024 << 10,
        resync={"role": "source", "done_percent": 17.52, "total_bytes": 65496 << 10, "done_bytes": 11472 << 10,
                "rate_bytes": 11472 << 10, "eta_s": 4.7},
    )  # fmt: skip
    lines = proc_text.render([status(dirty)]).splitlines()
    assert lines[0].startswith("version: 8.4.11 (api:1/proto:86-101)")
    assert lines[2] == " 0: cs:SyncSource ro:Primary/Secondary ds:UpToDate/Inconsistent C r-----"
    assert lines[3] == "    ns:11472 nr:0 dw:0 dr:2 al:8 bm:0 lo:0 pe:0 ua:3 ap:0 ep:1 wo:f oos:54024"
    assert lines[4] == "\t[===>.................] sync'ed: 17.5% (54024/65496)K"
    assert lines[5] == "\tfinish: 0:00:04 speed: 11,472 (11,472) K/sec"


def test_proc_with_a_gap_in_the_minors_has_an_empty_line() -> None:
    lines = proc_text.render([status(volume(0), volume(2))]).splitlines()
    assert lines[2].startswith(" 0: ") and lines[4] == "" and lines[5].startswith(" 2: ")


def test_proc_never_shows_100_percent_while_blocks_are_left() -> None:
    found = resync(99.99)
    assert "99.9%" in proc_text.render([status(volume(resync=found))])


@pytest.mark.parametrize(
    ("connection", "replication", "name_84", "name_9"),
    [
        ("WFConnection", "Off", "WFConnection", "Connecting"),
        ("StandAlone", "Off", "StandAlone", "StandAlone"),
        ("Connected", "Connected", "Connected", "Connected"),
        ("Connected", "Established", "Connected", "Connected"),
        ("Connected", "SyncTarget", "SyncTarget", "Connected"),
    ],
)
def test_states_have_both_generations_of_names(
    connection: str, replication: str, name_84: str, name_9: str
) -> None:
    found = status(volume(replication=replication), connection=connection)
    assert states.cstate_84(found, found["volumes"][0]) == name_84
    assert states.connection_9(found) == name_9


def test_progress_without_a_terminal_is_one_line_per_ten_percent(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = StepReporter("web")
    for percent in (0.1, 5, 12, 14, 19.9, 20, 99):
        reporter.show(status(volume(resync=resync(percent))))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["0.1%", "12.0%", "20.0%", "99.0%"]
    assert lines[0] == "web/0: 0.1% synced, 1.0 MiB of 1000.0 MiB, 50.0 MiB/s, 0:00:11 left"


def test_error_is_one_sentence_and_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error(StateRefused("web: cannot become Primary: beta is Primary", number=-1, advice="Wait."))
    assert capsys.readouterr().err == "replctl: web: cannot become Primary: beta is Primary (-1). Wait.\n"


@pytest.mark.parametrize(("size", "text"), [(0, "0 bytes"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")])
def test_sizes_are_readable(size: int, text: str) -> None:
    assert output.size_text(size) == text


@pytest.mark.parametrize(("text", "target"), [("r0", Target("r0")), ("r0/12", Target("r0", 12))])
def test_target_is_a_resource_or_a_volume(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert str(target) == text


@pytest.mark.parametrize("text", ["", "/0", "r0/", "r0/x", "r0/-1", "r0/1/2"])
def test_target_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_target(text)


def test_generation_is_explained_with_its_flags() -> None:
    text = Generation("0A:00:00:00:1:1:1:0:0:0:0", 2048, is_clean=False).explained()
    assert "flags: Consistent, UpToDate, Primary, not connected" in text
    assert "need apply-al" in text and "1024 KiB" in text
