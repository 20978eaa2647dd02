#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the console scripts of pyproject.toml into .venv/bin: a checkout runs like an installation."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """\
#!{python}
import sys

from {module} import {function}

if __name__ == "__main__":
    sys.exit({function}())
"""


def main() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    bin_dir = ROOT / ".venv/bin"
    for name, target in scripts.items():
        module, function = target.split(":")
        text = SCRIPT.format(python=bin_dir / "python", module=module, function=function)
        path = bin_dir / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            path.chmod(0o755)


if __name__ == "__main__":
    if sys.prefix == sys.base_prefix:
        sys.exit("launchers.py: to be run with .venv/bin/python")
    main()
