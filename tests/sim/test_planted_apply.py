# SPDX-License-Identifier: Apache-2.0
"""The planted bugs (tools/planted.py) still fit the sources: every patch applies and says what it breaks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.lib.tools import ROOT, require
from tools import planted

BUGS_MIN = 8
PATCHES = sorted((ROOT / "tests/planted").glob("*.patch"))


def test_there_are_enough_planted_bugs() -> None:
    assert len(PATCHES) >= BUGS_MIN


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: path.stem)
def test_planted_bug_still_applies_and_names_its_promise(path: Path, tmp_path: Path) -> None:
    require("patch")
    bug = planted.read_bug(path)
    assert bug.detectors
    touched = [line[6:].split("\t")[0] for line in path.read_text().splitlines() if line.startswith("+++ b/")]
    assert touched and all(name.startswith(("csrc/", "repl/")) for name in touched)
    for name in touched:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    why = planted.apply(bug, tmp_path)
    assert not why, f"{path.name} must be made anew:\n{why}"
