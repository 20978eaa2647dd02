#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Lists source files for the build, sorted, one a line.

usage: sources.py [--relative-to DIR] PATTERN...   patterns from the checkout's root; "!" in front takes away
       sources.py --version                        the product's version
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION_UNSET = "0.1.0"


def find_files(patterns: list[str]) -> list[Path]:
    found: set[Path] = set()
    for pattern in patterns:
        if not pattern.startswith("!"):
            found.update(p for p in ROOT.glob(pattern) if p.is_file())
    for pattern in patterns:
        if pattern.startswith("!"):
            found.difference_update(ROOT.glob(pattern[1:]))
    return sorted(found)


def read_version() -> str:
    """``__version__`` of the package, without importing it."""
    match = re.search(r'^__version__(?:: \w+)? = "([^"]+)"', (ROOT / "repl/__init__.py").read_text(), re.M)
    return match.group(1) if match else VERSION_UNSET


def main() -> None:
    args = sys.argv[1:]
    if args == ["--version"]:
        print(read_version())
        return
    base = ROOT
    if args[:1] == ["--relative-to"]:
        base = ROOT / args[1]
        args = args[2:]
    for path in find_files(args):
        print(path.relative_to(base))


if __name__ == "__main__":
    main()
