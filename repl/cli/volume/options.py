# SPDX-License-Identifier: Apache-2.0
"""set, reset, get: the options of a volume.  Processes and mounts that run take changes over within two seconds."""

from __future__ import annotations

from typing import Any

from repl.cli import output
from repl.cli.volume.context import Volumes
from repl.cli.volume.words import Words, command
from repl.errors import UsageError
from repl.files.options import Percent
from repl.files.volume import settings
from repl.files.volume.model import Volume


@command("set", "NAME KEY VALUE [KEY VALUE ...]")
def set_(volumes: Volumes, words: Words) -> None:
    """Change options.  "help" instead of a name lists them all."""
    name = words.next("the volume's name")
    if name == "help":
        _help(volumes)
        return
    pairs: dict[str, str] = {}
    while key := words.take(words.peek()):
        pairs[key] = words.next(f"the value of {key}")
    if not pairs:
        raise words.wrong("KEY and VALUE are missing.")
    notes = []
    with volumes.store.changing():
        volume = volumes.load(name)
        for key, value in pairs.items():
            found = _checked(key, value)
            if not found.has_effect:
                notes.append(f"{key} has no effect here.")
            if key == "auth.allow" and not value.strip():
                raise UsageError("failed: auth.allow cannot be empty.")
            volume.options[key] = value
        _check_quorum(volume)
        volumes.save(volume)
    _done(volumes, "volume set: success", notes)


def _checked(key: str, value: str) -> settings.Setting:
    try:
        return settings.check(key, value)
    except UsageError as error:
        error.message = f"failed: {error.message}"
        raise


def _check_quorum(volume: Volume) -> None:
    count = volume.options.get("cluster.quorum-count")
    if count is not None and int(count) > volume.replica:
        raise UsageError(f"failed: cluster.quorum-count {count} is more than the {volume.replica} copies there are.")


@command("reset", "NAME [KEY] [force]")
def reset(volumes: Volumes, words: Words) -> None:
    """Give an option its default again, or all of them."""
    name = words.next("the volume's name")
    words.take_last("force")
    key = words.take(words.peek())
    words.end()
    with volumes.store.changing():
        volume = volumes.load(name)
        if key and key != "all":
            _need(key)
            volume.options.pop(key, None)
        else:
            volume.options.clear()
        volumes.save(volume)
    _done(volumes, "volume reset: success: reset volume successful", [])


def _need(key: str) -> settings.Setting:
    try:
        return settings.need(key)
    except UsageError as error:
        error.message = f"failed: {error.message}"
        raise


def _done(volumes: Volumes, text: str, notes: list[str]) -> None:
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": {"notes": notes}})
        return
    output.print_line(text)
    for note in notes:
        output.print_note(note)


# ---- looking ----


def text_of(value: Any) -> str:
    """A default as one would write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Percent):
        return f"{value.value:g}%"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "(null)"
    return str(value) if value not in ("", None) else "(null)"


def _value(volume: Volume, key: str) -> str:
    given = volume.options.get(key)
    return given if given is not None else f"{text_of(_need(key).default)} (DEFAULT)"


@command("get", "NAME <KEY|all>")
def get(volumes: Volumes, words: Words) -> None:
    """The value of an option, or of all."""
    volume = volumes.load(words.next("the volume's name"))
    key = words.next("the option")
    words.end()
    keys = [*settings.known(), *(k for k in volume.options if k not in settings.known())] if key == "all" else [key]
    values = {each: _value(volume, each) for each in keys}
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": values})
        return
    for left, right in [("Option", "Value"), ("------", "-----"), *values.items()]:
        output.print_line(f"{left:<40} {right:<39}")


def _help(volumes: Volumes) -> None:
    found = []
    for key in settings.known():
        setting = settings.need(key)
        option = setting.targets[0][1] if setting.targets else setting.option
        found.append({"option": key, "default": text_of(setting.default),
                      "description": option.description if option else ""})  # fmt: skip
    if volumes.session.is_json:
        output.print_json({"ok": True, "data": found})
        return
    for one in found:
        output.print_line(f"Option: {one['option']}\nDefault Value: {one['default']}\n"
                          f"Description: {one['description']}\n")  # fmt: skip


COMMANDS = (set_, reset, get)
