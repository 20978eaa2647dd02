# SPDX-License-Identifier: Apache-2.0
"""Every relative link in the Markdown pages leads to a file; every decision that the code names has its page; every
deviation from DRBD in the code (``differs:``) names its decision, and the protocol or metadata notes list it.  Those of
the file side are from GlusterFS: they need no place in the notes.

Prints what is broken; exit status 1 if anything is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
DECISION = re.compile(r"decision (\d{4})")
DEVIATION = re.compile(r"\bdiffers: ")
COMMENT_LINES_MAX = 5
FILE_SIDE = "repl/files/"
SOURCES = ("csrc/**/*.[ch]", "repl/**/*.py", "nbd/**/*.py")


def broken_links() -> Iterator[str]:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")]:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                yield f"{page.relative_to(ROOT)}: no {target}"


def missing_decisions() -> Iterator[str]:
    pages = {page.name[:4] for page in (ROOT / "docs/decisions").glob("*.md")}
    for pattern in SOURCES:
        for source in ROOT.glob(pattern):
            for number in DECISION.findall(source.read_text(encoding="utf-8")):
                if number not in pages:
                    yield f"{source.relative_to(ROOT)}: no page for decision {number}"


def silent_deviations() -> Iterator[str]:
    notes = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("protocol.md", "metadata.md"))
    for pattern in SOURCES:
        for source in ROOT.glob(pattern):
            if source.relative_to(ROOT).as_posix().startswith(FILE_SIDE):
                continue
            lines = source.read_text(encoding="utf-8").splitlines()
            for at, line in enumerate(lines):
                if not DEVIATION.search(line):
                    continue
                where = f"{source.relative_to(ROOT)}:{at + 1}"
                named = DECISION.search(" ".join(lines[at : at + COMMENT_LINES_MAX]))
                if named is None:
                    yield f"{where}: a difference from DRBD without (decision NNNN)"
                elif f"(decisions/{named[1]}-" not in notes:
                    yield f"{where}: decision {named[1]} is not in docs/protocol.md or docs/metadata.md"


def main() -> int:
    """0 if everything leads somewhere."""
    problems = [*broken_links(), *missing_decisions(), *silent_deviations()]
    for problem in problems:
        print(problem)
    print(f"docs: {len(problems)} broken references")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
