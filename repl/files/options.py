# SPDX-License-Identifier: Apache-2.0
"""The options of translators: declared once, parsed as Gluster parses them.

Input: the text of a volfile; output: typed values (bytes, seconds, percent, lists).  Sizes are powers of 1024 with the
suffixes KB, MB, GB, TB, PB (also without B), times are seconds with an optional suffix, percentages may end in ``%``,
switches are on/off, yes/no, true/false, enable/disable, 1/0.  An unknown option is a warning, never an error; a value
that cannot be is a ``ConfigError`` with the line.
"""

from __future__ import annotations

import enum
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repl.errors import ConfigError

log = logging.getLogger(__name__)


class Kind(enum.Enum):
    """What a value is; the word is the one of the options reference."""

    BOOL = "on or off"
    INT = "number"
    SIZE = "size in bytes"
    TIME = "seconds"
    PERCENT = "percent"
    PERCENT_OR_SIZE = "percent or size"
    STRING = "text"
    PATH = "absolute path"
    CHOICE = "one of"
    LIST = "list, separated by commas"
    OCTAL = "permission bits, octal"


@dataclass(frozen=True, slots=True)
class Percent:
    """A share, where a size could also stand."""

    value: float


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its name, what it takes, what it does.  ``minimum`` and ``maximum`` are inclusive."""

    name: str
    kind: Kind
    default: Any
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    is_pattern: bool = False  # the name holds a ``*`` for a word of the user's (auth.addr.*.allow)

    def parse(self, text: str) -> Any:
        """Raises ``ValueError`` with what is expected."""
        value = _PARSERS[self.kind](text.strip(), self)
        number = value.value if isinstance(value, Percent) else value
        if isinstance(number, int | float) and not isinstance(number, bool):
            if self.minimum is not None and number < self.minimum:
                raise ValueError(f"at least {self.minimum:g}")
            if self.maximum is not None and number > self.maximum and not isinstance(value, Percent):
                raise ValueError(f"at most {self.maximum:g}")
        return value


_TRUE = {"on", "yes", "true", "enable", "1"}
_FALSE = {"off", "no", "false", "disable", "0"}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)B?", re.IGNORECASE)
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(s|sec|secs|m|min|mins|h|hr|hrs|d|days|w|wk|wks|)", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _bool(text: str, _: Option) -> bool:
    word = text.lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("on or off")
    return word in _TRUE


def _int(text: str, _: Option) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError("a whole number") from None


def _size(text: str, _: Option) -> int:
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError("a size such as 131072, 64KB or 512MB")
    return int(float(match[1]) * 1024 ** " KMGTP".index(match[2].upper() or " "))


def _time(text: str, _: Option) -> float:
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError("a time such as 5, 5sec or 2min")
    return float(match[1]) * _SECONDS[match[2][:1].lower()]


def _percent(text: str, _: Option) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        raise ValueError("a percentage such as 10 or 10%") from None
    if not 0 <= value <= 100:
        raise ValueError("0% to 100%")
    return value


def _percent_or_size(text: str, option: Option) -> Percent | int:
    if text.endswith("%"):
        return Percent(_percent(text, option))
    value = _size(text, option)
    # A bare number up to 100 is a percentage, as Gluster takes it.
    return Percent(float(value)) if text.isdigit() and value <= 100 else value


def _path(text: str, _: Option) -> str:
    if not text.startswith("/"):
        raise ValueError("an absolute path")
    return text


def _choice(text: str, option: Option) -> str:
    if text.lower() not in option.choices:
        raise ValueError("one of " + ", ".join(option.choices))
    return text.lower()


def _list(text: str, _: Option) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _octal(text: str, _: Option) -> int:
    try:
        value = int(text, 8)
    except ValueError:
        raise ValueError("permission bits such as 0644") from None
    if value > 0o7777:
        raise ValueError("permission bits up to 07777")
    return value


_PARSERS: dict[Kind, Any] = {
    Kind.BOOL: _bool,
    Kind.INT: _int,
    Kind.SIZE: _size,
    Kind.TIME: _time,
    Kind.PERCENT: _percent,
    Kind.PERCENT_OR_SIZE: _percent_or_size,
    Kind.STRING: lambda text, _: text,
    Kind.PATH: _path,
    Kind.CHOICE: _choice,
    Kind.LIST: _list,
    Kind.OCTAL: _octal,
}


class Options:
    """The values of one translator: those given and the defaults of the rest."""

    def __init__(self, declared: Sequence[Option], values: Mapping[str, Any], given: Mapping[str, str]) -> None:
        self._values = {option.name: option.default for option in declared if not option.is_pattern} | dict(values)
        self.given = dict(given)  # as they stand in the volfile, unknown ones too

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def matching(self, pattern: str) -> dict[str, Any]:
        """Word of the user -> value, of an option whose name has a ``*``."""
        head, tail = pattern.split("*")
        return {
            name[len(head) : len(name) - len(tail)]: value
            for name, value in self._values.items()
            if name.startswith(head) and name.endswith(tail) and len(name) > len(head) + len(tail)
        }


def _find(declared: Sequence[Option], name: str) -> tuple[Option, str] | None:
    """The option that a name of a volfile means and the name to keep its value under."""
    for option in declared:
        for spelling in (option.name, *option.aliases):
            if spelling == name:
                return option, option.name
            head, star, tail = spelling.partition("*")
            if star and name.startswith(head) and name.endswith(tail) and len(name) > len(head) + len(tail):
                return option, option.name.replace("*", name[len(head) : len(name) - len(tail)])
    return None


def parse_options(
    declared: Sequence[Option], given: Mapping[str, str], *, where: str = "", lines: Mapping[str, int] | None = None
) -> Options:
    """All values of a translator.  ``where`` names the volume; ``lines``: option -> line of the file.

    Raises ``ConfigError`` for a value that its option cannot take.
    """
    values: dict[str, Any] = {}
    for name, text in given.items():
        found = _find(declared, name)
        if found is None:
            log.warning("volume '%s': option '%s' is not known here; it has no effect", where, name)
            continue
        option, key = found
        if name != option.name and not option.is_pattern:
            log.info("volume '%s': option '%s' is called '%s' now", where, name, option.name)
        try:
            values[key] = option.parse(text)
        except ValueError as error:
            raise ConfigError(
                f"volume '{where}': option {name} cannot be {text!r}: {error} is expected.",
                line=(lines or {}).get(name, 0),
            ) from None
    return Options(declared, values, given)
