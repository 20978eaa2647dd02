#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The matrix of tests/guest/test_matrix.py as a table, from a junit report.

usage: interop_table.py REPORT.xml [--write]      --write: put it into docs/interop.md
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/interop.md"
CELL = re.compile(r"test_cell\[(?P<name>.+)-(?P<protocol>[ABC])-(?P<primary>our|kernel) Primary\]")
BEGIN, END = "<!-- matrix: written by tools/interop_table.py -->", "<!-- end of matrix -->"


def cells(report: Path) -> dict[tuple[str, str], dict[str, str]]:
    """(what, whose Primary) -> protocol -> result."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        match = CELL.fullmatch(case.get("name", ""))
        if match is None:
            continue
        bad = case.find("failure") is not None or case.find("error") is not None
        result = "**fails**" if bad else "skipped" if case.find("skipped") is not None else "yes"
        row = found.setdefault((match["name"], match["primary"]), {})
        if row.get(match["protocol"]) != "**fails**":  # a test's teardown is a case of its own
            row[match["protocol"]] = result
    return found


def table(found: dict[tuple[str, str], dict[str, str]]) -> str:
    lines = [
        "| | we are Primary: A | B | C | kernel is Primary: A | B | C |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(name for name, _ in found):
        row = [found.get((name, primary), {}).get(letter, "") for primary in ("our", "kernel") for letter in "ABC"]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> int:
    arguments = [a for a in sys.argv[1:] if not a.startswith("-")]
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    text = table(cells(Path(arguments[0])))
    print(text)
    if "--write" in sys.argv:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN, 1)
        tail = rest.split(END, 1)[1]
        PAGE.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
