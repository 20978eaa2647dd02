# SPDX-License-Identifier: Apache-2.0
"""tools/check_docs.py: deviations from DRBD in the code have a page, and the notes list it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import check_docs


@pytest.mark.parametrize(
    ("comment", "problem"),
    [
        ("# differs: DRBD waits.", "without (decision NNNN)"),
        ("# differs: DRBD waits\n# for ever (decision 0002).", "decision 0002 is not in docs/protocol.md"),
        ("# differs: DRBD waits\n# for ever (decision 0001).", ""),
        ("if differs:\n    pass", ""),
    ],
)
def test_deviation_needs_a_page_that_the_notes_list(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, comment: str, problem: str
) -> None:
    monkeypatch.setattr(check_docs, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "repl").mkdir()
    (tmp_path / "docs/protocol.md").write_text("* [0001](decisions/0001-it.md) It\n")
    (tmp_path / "docs/metadata.md").write_text("")
    (tmp_path / "repl/it.py").write_text(comment + "\n")
    found = list(check_docs.silent_deviations())
    assert len(found) == bool(problem) and all(problem in text for text in found)
