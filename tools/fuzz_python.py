#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs one Python fuzz target (tests/fuzz/targets.py) under atheris, whose options are libFuzzer's.

usage: .venv/bin/python tools/fuzz_python.py TARGET [LIBFUZZER-OPTION...] CORPUS...
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PACKAGES = ["repl", "nbd"]


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=PACKAGES):
        from tests.fuzz.targets import TARGETS
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"fuzz_python: no target {name!r}; there are {', '.join(TARGETS)}")
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
