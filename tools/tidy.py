#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The style as a test: what no compiler or linter checks.

usage: tidy.py [FILE...]     without arguments: every file of the checkout that git knows or could add

Errors (exit status 1): missing SPDX line, a line over 120 columns, a to-do mark without an issue number, an
include from a lower C layer to a higher one, an import against the order of the Python layers, wall time or
random numbers in decisions, words that do not belong into the repository.  Warnings: files over 700 lines.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SELF = Path(__file__).resolve()
COLUMNS_MAX = 120
LINES_MAX = 700
TAB_COLUMNS = 4
SKIPPED_FOLDERS = {".git", ".venv", "build", "dist", "__pycache__"}

C_LAYERS = ["base", "files", "io", "meta", "req", "peer", "resync", "nbd", "engine", "shell"]
C_ABOVE = {"sim", "fuzz"}  # may include anything; no layer may include from them

# Groups from low to high; members of one group may import each other.
PYTHON_LAYERS = [
    {"errors", "limits", "units", "clock", "log"},
    {"drbd", "config"},
    {"node", "engine"},
    {"lock", "files", "proxy"},
    {"daemon"},
    {"cli", "agent", "web"},
]
NBD_MAY_IMPORT = {"errors", "limits"}

# Where time and random numbers may come from the system.
CLOCK_FREE = ("repl/clock.py", "repl/daemon/", "repl/cli/", "repl/agent/", "repl/web/",
              "repl/files/mount/service.py")  # fmt: skip
CLOCK_CALLS = {
    "time": {"time", "time_ns", "monotonic", "monotonic_ns", "sleep", "perf_counter", "perf_counter_ns"},
    "os": {"urandom", "getrandom"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
    "uuid": {"uuid1", "uuid4"},
}
RANDOM_MODULES = {"random": {"Random"}, "secrets": {"compare_digest"}}  # module: what is harmless

# Split, so that this file passes its own test.
FORBIDDEN = re.compile(
    r"(?<![\w.})-])/wo" r"rk/|(?<![\w.})-])/ro" r"ot/|pypi\.o" r"rg|pythonho" r"sted|deb\.debian\.o" r"rg"
    r"|npm" r"js\.|anthro" r"pic|clau" r"de|chat" r"gpt|open" r"ai\b"
    r"|\bco" r"pilot\b|language mo" r"del|AI assis" r"tant",
    re.IGNORECASE,
)  # fmt: skip
UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b(?!\(#\d+\))")
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def files() -> list[Path]:
    """Tracked files and new ones that are not ignored; without git, all of the tree."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(git, capture_output=True, check=True)
        return sorted({ROOT / n for n in done.stdout.decode().split("\0") if n and (ROOT / n).is_file()})
    except (OSError, subprocess.CalledProcessError):
        found = []
        for folder, folders, names in os.walk(ROOT):
            folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS]
            found += [Path(folder, n) for n in names if not n.endswith((".so", ".o", ".pyc"))]
        return sorted(found)


Finding = tuple[int, str]


def check_spdx(lines: list[str], relative: str) -> Iterator[Finding]:
    if lines and not any("SPDX-License-Identifier: Apache-2.0" in line for line in lines[:2]):
        yield 1, "no SPDX line (SPDX-License-Identifier: Apache-2.0) at the top"


def check_columns(lines: list[str]) -> Iterator[Finding]:
    for number, line in enumerate(lines, 1):
        columns = len(line.expandtabs(TAB_COLUMNS))
        if columns > COLUMNS_MAX:
            yield number, f"{columns} columns, at most {COLUMNS_MAX}"


def check_words(lines: list[str]) -> Iterator[Finding]:
    for number, line in enumerate(lines, 1):
        if match := FORBIDDEN.search(line):
            yield number, f"'{match.group()}' does not belong into the repository"


def check_unfinished(lines: list[str]) -> Iterator[Finding]:
    for number, line in enumerate(lines, 1):
        if match := UNFINISHED.search(line):
            yield number, f"{match.group()} without an issue number: {match.group()}(#12)"


def c_layer(path: Path) -> str | None:
    """The folder below csrc/, None for other places."""
    try:
        parts = path.relative_to(ROOT / "csrc").parts
    except ValueError:
        return None
    return parts[0] if len(parts) > 1 else None


def check_c_layers(path: Path, lines: list[str]) -> Iterator[Finding]:
    layer = c_layer(path)
    if layer not in C_LAYERS or path.name.startswith("test_"):
        return
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        for base in (path.parent, ROOT / "csrc", ROOT / "csrc/include"):
            target = (base / match.group(1)).resolve()
            if target.exists():
                break
        else:
            yield number, f"no header {match.group(1)}"
            continue
        other = c_layer(target)
        if other in C_LAYERS and C_LAYERS.index(other) > C_LAYERS.index(layer):
            yield number, f"{layer}/ must not include from the higher layer {other}/"
        elif other in C_ABOVE:
            yield number, f"{layer}/ must not include from {other}/"


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "repl":
                yield from ((node.lineno, f"repl.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def python_rank(part: str) -> int | None:
    return next((i for i, group in enumerate(PYTHON_LAYERS) if part in group), None)


def check_python_layers(relative: str, tree: ast.AST) -> Iterator[Finding]:
    parts = relative.removesuffix(".py").split("/")
    for number, module in imported_modules(tree):
        names = module.split(".")
        if names[0] != "repl" or len(names) < 2:
            continue
        if parts[0] == "nbd" and names[1] not in NBD_MAY_IMPORT:
            yield number, f"nbd/ may import only {', '.join(sorted(NBD_MAY_IMPORT))} of repl, not {names[1]}"
        elif parts[0] == "repl":
            mine, theirs = python_rank(parts[1]), python_rank(names[1])
            if mine is not None and theirs is not None and theirs > mine:
                yield number, f"repl.{parts[1]} must not import the higher layer repl.{names[1]}"


def check_clock(relative: str, tree: ast.AST) -> Iterator[Finding]:
    if not relative.startswith("repl/") or relative.startswith(CLOCK_FREE):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner, name = node.value.id, node.attr
            harmless = RANDOM_MODULES.get(owner)
            if name in CLOCK_CALLS.get(owner, ()) or (harmless is not None and name not in harmless):
                yield node.lineno, f"{owner}.{name}: time and random numbers are passed in"
        elif isinstance(node, ast.ImportFrom) and node.module in {*CLOCK_CALLS, *RANDOM_MODULES}:
            bad = CLOCK_CALLS.get(node.module, set())
            harmless = RANDOM_MODULES.get(node.module)
            for alias in node.names:
                if alias.name in bad or (harmless is not None and alias.name not in harmless):
                    yield node.lineno, f"{node.module}.{alias.name}: time and random numbers are passed in"


def check_file(path: Path, warnings: list[str]) -> Iterator[Finding]:
    relative = str(path.relative_to(ROOT))
    data = path.read_bytes()
    if b"\0" in data[:8192]:
        return
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        return
    is_python = path.suffix == ".py" or (lines[:1] and "python" in lines[0] and lines[0].startswith("#!"))
    is_c = path.suffix in (".c", ".h")
    is_code = is_python or is_c or bool(lines and lines[0].startswith("#!"))
    if path != SELF:
        yield from check_words(lines)
    if not is_code:
        return
    yield from check_spdx(lines, relative)
    if path != SELF:
        yield from check_unfinished(lines)
    if is_python or is_c:
        yield from check_columns(lines)
        if len(lines) > LINES_MAX:
            warnings.append(f"{relative}: {len(lines)} lines: does it still say one thing?")
    if is_c:
        yield from check_c_layers(path, lines)
    if is_python:
        try:
            tree = ast.parse(data)
        except SyntaxError as error:
            yield error.lineno or 1, f"does not parse: {error.msg}"
            return
        yield from check_python_layers(relative, tree)
        yield from check_clock(relative, tree)


def main() -> int:
    paths = [Path(a).resolve() for a in sys.argv[1:]] or files()
    warnings: list[str] = []
    errors = 0
    for path in paths:
        for number, text in check_file(path, warnings):
            print(f"{path.relative_to(ROOT)}:{number}: {text}")
            errors += 1
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"tidy: {len(paths)} files, {errors} errors, {len(warnings)} warnings")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
