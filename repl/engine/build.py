# SPDX-License-Identifier: Apache-2.0
"""Emits the C source of the cffi modules; run by meson, never at run time.

usage: build.py --module NAME --output FILE HEADER...

Inputs: the headers that cffi parses (``repl_engine.h``; for the simulator ``repl_sim.h`` as well; for bricks
``repl_brick.h``), where lines between ``/* cffi: off */`` and ``/* cffi: on */`` are for the C compiler only.
Output: the source of the module (``repl.engine._engine``, ``_repl_sim``, ``repl.files._brick``).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from cffi import FFI

_OFF = re.compile(r"/\* cffi: off \*/.*?(?:/\* cffi: on \*/|\Z)", re.DOTALL)


def declarations(header: str) -> str:
    """The part of a header that cffi reads."""
    return _OFF.sub("", header)


def emit(headers: list[Path], output: Path, module: str) -> None:
    ffi = FFI()
    for header in headers:
        ffi.cdef(declarations(header.read_text(encoding="utf-8")))
    includes = "".join(f'#include "{header.resolve()}"\n' for header in headers)
    ffi.set_source(module, includes)
    ffi.emit_c_code(str(output))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--module", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("headers", type=Path, nargs="+")
    options = parser.parse_args()
    emit(options.headers, options.output, options.module)


if __name__ == "__main__":
    main()
