# SPDX-License-Identifier: Apache-2.0
"""The program repl-rebalance: its messages, its table, and a run over bricks of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from repl.files.rebalance.main import main
from repl.files.rebalance.progress import Progress, State, load
from repl.files.rebalance.report import table
from tests.lib.wait import wait_for

BRICK = """
volume posix{n}
  type storage/posix
  option directory {directory}
end-volume
volume c{n}
  type features/locks
  subvolumes posix{n}
end-volume
"""
DISTRIBUTE = """
volume dist
  type cluster/distribute
  subvolumes {names}
end-volume
volume cache
  type debug/io-stats
  subvolumes dist
end-volume
"""


def volfile(folder: Path, bricks: int) -> Path:
    text = ""
    for n in range(bricks):
        (folder / f"b{n}").mkdir(exist_ok=True)
        text += BRICK.format(n=n, directory=folder / f"b{n}")
    path = folder / "client.vol"
    path.write_text(text + DISTRIBUTE.format(names=" ".join(f"c{n}" for n in range(bricks))))
    return path


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["-f", "VOLFILE", "--mode", "quick"], 1, "invalid choice"),
        (["-f", "VOLFILE", "-V", "other"], 10, "volume 'other' is not of type cluster/distribute"),
        (["-f", "VOLFILE", "-r", "c7"], 10, "'c7' is none of c0, c1"),
        (["-f", "VOLFILE", "-t", "fast"], 1, "lazy, normal, aggressive"),
        (["-f", "absent.vol"], 10, "absent.vol"),
    ],
)
def test_rebalance_wrong_usage_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, message: str
) -> None:
    path = volfile(tmp_path, 2)
    assert main([str(path) if word == "VOLFILE" else word for word in [*words, "-N"]]) == status
    assert message in capsys.readouterr().err


def test_rebalance_goes_to_the_background_and_finishes(tmp_path: Path) -> None:
    path, progress = volfile(tmp_path, 2), tmp_path / "progress"
    command = [sys.executable, "-m", "repl.files.rebalance.main", "-f", path, "-P", progress]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"REPL_RUN_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    wait_for(lambda: load(progress).state is State.COMPLETED, 20, "its end")


def test_rebalance_table_is_glusters() -> None:
    found = Progress(State.COMPLETED, "start", files=21, size=3 << 20, scanned=42, skipped=2, run_s=3725.4,
                     reasons={"an application holds a lock on it": 2})  # fmt: skip
    title, line, row, reason = table({"localhost": found})
    assert title.split("  ")[-1].strip() == "run time in h:m:s" and set(line) == {"-", " "}
    assert row.split() == ["localhost", "21", "3.0MB", "42", "0", "2", "completed", "1:02:05"]
    assert reason == "localhost: 2 skipped: an application holds a lock on it"
    assert " 97Bytes " in table({"a": Progress(size=97)})[2]
