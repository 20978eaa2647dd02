#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/files-options.md from the code: the options of all translators, and the keys of ``volume set``.

usage: make_options.py [--check]     --check: write nothing, exit status 1 if the page is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from repl.files.options import Kind, Option, Percent  # noqa: E402
from repl.files.translators import find_class, known_types  # noqa: E402
from repl.files.volume import settings  # noqa: E402

PAGE = ROOT / "docs/files-options.md"
HEAD = """\
# Options of files: translators and volumes

<!-- Written by tools/make_options.py from the translators and repl/files/volume/settings.py: do not edit. -->

Names are Gluster's; a default that is not Gluster's is marked *differs*. Sizes take KB, MB, GB, TB, PB (powers of
1024), times sec, min, h, d, w; switches on/off, yes/no, true/false, enable/disable, 1/0. An option that a translator
does not know is a warning, never an error. "Accepted" and "for GlusterFS": the name is known so that volfiles load, and
changes nothing.

"""
VOLUME_HEAD = """\
## Keys of `replctl volume set`

Which option of which translator a key sets. Every key takes what that option takes; `replctl volume get NAME all` shows
the values of a volume.

"""


def cell(text: str) -> str:
    text = text.replace("|", "\\|")
    return text if text.startswith("`") else text.replace("*", "\\*")


def default_text(option: Option) -> str:
    value = option.default
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Percent):
        return f"{value.value:g}%"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if option.kind is Kind.OCTAL:
        return f"{value:04o}"
    if option.kind is Kind.SIZE and value and value % 1024 == 0:
        return size_text(value)
    if option.kind is Kind.TIME:
        return f"{value:g} s"
    if option.kind is Kind.PERCENT:
        return f"{value:g}%"
    return f"`{value}`" if isinstance(value, str) and value else str(value)


def size_text(value: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if value < 1024 or unit == "GB" or value % 1024:
            return f"{value:g} {unit}" if unit == "bytes" else f"{value:g}{unit}"
        value //= 1024
    raise AssertionError


def takes(option: Option) -> str:
    if option.kind is Kind.CHOICE:
        return ", ".join(choice or '""' for choice in option.choices)
    text = option.kind.value
    low, high = option.minimum, option.maximum
    if low is not None and high is not None:
        return f"{text}, {low:g} to {high:g}"
    if low is not None:
        return f"{text}, at least {low:g}"
    return f"{text}, at most {high:g}" if high is not None else text


def about(option: Option) -> str:
    text = option.description.strip().rstrip(".")
    text = text[:1].upper() + text[1:]
    others = [f"`{alias}`" for alias in option.aliases]
    return cell(text + ".") + (f" Also called {', '.join(others)}." if others else "")


def table(options: tuple[Option, ...]) -> Iterator[str]:
    yield "| option | takes | default | |"
    yield "|---|---|---|---|"
    for option in options:
        yield f"| `{option.name}` | {cell(takes(option))} | {cell(default_text(option))} | {about(option)} |"
    yield ""


def classes() -> dict[str, list[str]]:
    """Type -> its other names, of the translators that there are."""
    found: dict[str, list[str]] = {}
    for name in known_types():
        if settings.is_there(name):
            kind = find_class(name)
            assert kind is not None
            found.setdefault(kind.TYPE, []).append(name)
    return {kind: [name for name in names if name != kind] for kind, names in found.items()}


def translators() -> Iterator[str]:
    for kind, aliases in sorted(classes().items()):
        found = find_class(kind)
        assert found is not None
        yield f"## {kind}"
        yield ""
        if aliases:
            yield f"Also called {', '.join(f'`{name}`' for name in aliases)}."
            yield ""
        if found.OPTIONS:
            yield from table(tuple(found.OPTIONS))
        else:
            yield "No options."
            yield ""


def keys() -> Iterator[str]:
    yield "| key | sets |"
    yield "|---|---|"
    for key in sorted(settings.known()):
        found = settings.need(key)
        if key in settings.SWITCHES:
            kind = next(kind for name, kind, _ in settings.LAYERS if name == key)
            what = f"whether clients have {kind} (default {'on' if settings.SWITCHES[key] else 'off'})"
        elif key in settings.AUTH:
            what = f"protocol/server: {settings.AUTH[key].description}"
        else:
            what = ", ".join(f"{kind} `{option.name}`" for kind, option in found.targets)
        if what:
            yield f"| `{key}` | {what} |"
    yield ""
    quoted = ", ".join(f"`{key}`" for key in settings.WITHOUT_EFFECT)
    yield f"Taken, without effect: {quoted}."


def page() -> str:
    return HEAD + "\n".join(translators()) + "\n" + VOLUME_HEAD + "\n".join(keys()).rstrip() + "\n"


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        print(f"{PAGE.relative_to(ROOT)} is out of date: tools/make_options.py (or make docs) writes it")
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
