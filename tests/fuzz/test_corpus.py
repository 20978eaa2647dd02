# SPDX-License-Identifier: Apache-2.0
"""Every input that was ever interesting goes through its fuzz target (C targets: csrc/fuzz, run by meson)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS
from tests.lib.tools import ROOT

CORPUS = Path(__file__).resolve().parent / "corpus"
CORPUS_BYTES_MAX = 2 << 20


@pytest.mark.parametrize("target", TARGETS)
def test_corpus_of_a_python_target_finds_nothing(target: str) -> None:
    files = sorted((CORPUS / target).iterdir())
    assert files, "no corpus: tools/make_corpus.py makes the seeds"
    for path in files:
        try:
            TARGETS[target](path.read_bytes())
        except Exception as error:
            error.add_note(f"replay: .venv/bin/python tools/fuzz_python.py {target} {path.relative_to(ROOT)}")
            raise


def test_every_c_target_has_a_corpus() -> None:
    for source in (ROOT / "csrc/fuzz").glob("fuzz_*.c"):
        if source.stem != "fuzz_main":
            assert any((CORPUS / source.stem).iterdir()), f"{source.stem} has no corpus"


def test_corpus_stays_small() -> None:
    size = sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file())
    assert size <= CORPUS_BYTES_MAX, f"{size >> 10} KiB: merge it (tools/fuzz --merge)"

