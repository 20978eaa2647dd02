# SPDX-License-Identifier: Apache-2.0
"""Everything that is printed: messages, JSON, progress, and numbers as people read them."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from repl.errors import ReplError

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def print_line(text: str = "") -> None:
    click.echo(text)


def print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def error_map(error: ReplError) -> dict[str, Any]:
    """The object that --json prints for a failure."""
    return {"ok": False, "code": error.code, "message": error.message, "advice": error.advice}


def print_error(error: ReplError) -> None:
    """One message: what, why, next step."""
    stop = "" if error.message.endswith((".", "!", "?", ":")) else "."
    advice = f" {error.advice}" if error.advice else ""
    click.echo(f"replctl: {error.message}{stop}{advice}", err=True)


def print_note(text: str) -> None:
    click.echo(f"replctl: {text}", err=True)


def is_terminal() -> bool:
    return sys.stdout.isatty()


def size_text(size_bytes: float) -> str:
    """``1.5 GiB``."""
    value = float(size_bytes)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


def duration_text(seconds: float | None) -> str:
    """``H:MM:SS``; a dash if it is not known."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def print_json_line(data: Any) -> None:
    """One object on one line, for streams."""
    click.echo(json.dumps(data, ensure_ascii=False))
