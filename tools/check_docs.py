# SPDX-License-Identifier: Apache-2.0
"""Every relative link in the Markdown pages leads to a file, and every decision that the code names has its page.

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


def main() -> int:
    """0 if everything leads somewhere."""
    problems = [*broken_links(), *missing_decisions()]
    for problem in problems:
        print(problem)
    print(f"docs: {len(problems)} broken references")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
