# SPDX-License-Identifier: Apache-2.0
"""Volfiles: the text that describes a graph of translators.

Input: the text of a file.  Output: ``Volfile``, its volumes in the order of the file, children first; the last one is
the top.  ``render`` writes the same grammar.
Errors: ``ConfigError`` with file, line and, as the real parser words it, ``syntax error: line N (volume 'V')``, and a
hint where one helps.
Facts: what GlusterFS 10.3 accepts and refuses, tried on its own parser.  differs: text in backquotes, which Gluster
hands to a shell, is refused.

A hand-written scanner, because every error has to name the line of the word that is wrong and the volume around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from repl.errors import ConfigError
from repl.limits import VOLFILE_BYTES_MAX, VOLFILE_VOLUMES_MAX, VOLFILE_WORD_BYTES_MAX

KEYWORDS = ("volume", "type", "option", "subvolumes", "end-volume")

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\f\v]+|\#[^\n]*)
      | (?P<newline>\n)
      | "(?P<string>(?:\\[^\n]|[^"\\\n])*)"
      | (?P<open_string>"[^\n]*)
      | (?P<shell>`)
      | (?P<word>[^\s"\\`]+)
      | (?P<char>.)""",
    re.VERBOSE,
)
_BARE = re.compile(r"[^\s\"\\`#][^\s\"\\`]*")


@dataclass(slots=True)
class Volume:
    """One node of the graph as written.  ``lines``: option -> line (1-based)."""

    name: str
    line: int
    type: str = ""
    options: dict[str, str] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    subvolumes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Volfile:
    """A whole file."""

    path: str
    volumes: list[Volume]

    @property
    def top(self) -> Volume:
        return self.volumes[-1]


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    line: int
    is_quoted: bool = False


def _words(text: str, path: str) -> Iterator[_Word]:
    line = 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind == "newline":
            line += 1
        elif kind == "word":
            yield _Word(match["word"], line)
        elif kind == "string":
            yield _Word(re.sub(r"\\(.)", r"\1", match["string"]), line, is_quoted=True)
        elif kind == "open_string":
            raise ConfigError("the quotation mark is never closed on this line.", file=path, line=line)
        elif kind == "shell":
            raise ConfigError("text in backquotes would run a command: that is not done here.", file=path, line=line,
                              advice="Write the value itself.")  # fmt: skip
        elif kind == "char":
            raise ConfigError(f"{match['char']!r} cannot stand outside of quotation marks.", file=path, line=line)


class _Parser:
    def __init__(self, text: str, path: str) -> None:
        self._path = path
        self._words = list(_words(text, path))
        self._at = 0
        self._volumes: dict[str, Volume] = {}
        self._volume: Volume | None = None

    def parse(self) -> list[Volume]:
        while self._at < len(self._words):
            self._keyword("volume")
            self._parse_volume()
        if not self._volumes:
            raise ConfigError("no volume is described.", file=self._path, line=1)
        return list(self._volumes.values())

    # ---- words ----

    def _peek(self) -> str:
        """The keyword that comes next, "" if it is none."""
        if self._at < len(self._words):
            word = self._words[self._at]
            if not word.is_quoted and word.text in KEYWORDS:
                return word.text
        return ""

    def _error(self, hint: str = "") -> ConfigError:
        at = min(self._at, len(self._words) - 1)
        line = self._words[at].line if self._words else 1
        inside = f" (volume '{self._volume.name}')" if self._volume else ""
        found = "the end of the file" if self._at >= len(self._words) else f"'{self._words[at].text[:40]}'"
        return ConfigError(f"syntax error: line {line}{inside}: {found} does not fit here.", file=self._path, line=line,
                           advice=hint)  # fmt: skip

    def _keyword(self, expected: str) -> _Word:
        if self._peek() != expected:
            raise self._error(f"'{expected}' is expected.")
        self._at += 1
        return self._words[self._at - 1]

    def _value(self, what: str) -> _Word:
        if self._at >= len(self._words) or self._peek():
            raise self._error(f"{what} is missing.")
        word = self._words[self._at]
        if len(word.text.encode()) > VOLFILE_WORD_BYTES_MAX:
            raise self._error(f"A word has at most {VOLFILE_WORD_BYTES_MAX} bytes.")
        self._at += 1
        return word

    def _refuse(self, text: str, line: int, advice: str = "") -> ConfigError:
        return ConfigError(text, file=self._path, line=line, advice=advice)

    # ---- volumes ----

    def _parse_volume(self) -> None:
        name = self._value("The volume's name")
        if name.text in self._volumes:
            raise self._refuse(f"volume '{name.text}' defined again.", name.line)
        if len(self._volumes) >= VOLFILE_VOLUMES_MAX:
            raise self._refuse(f"more than {VOLFILE_VOLUMES_MAX} volumes.", name.line)
        self._volume = volume = Volume(name.text, name.line)
        self._keyword("type")
        volume.type = self._value("The type").text
        seen_subvolumes = False
        while (word := self._peek()) in ("option", "subvolumes"):
            if word == "option":
                self._parse_option(volume)
                continue
            if seen_subvolumes:
                raise self._error("A volume has one line of subvolumes.")
            seen_subvolumes = True
            self._parse_subvolumes(volume)
        self._end(volume)
        self._volumes[volume.name] = volume
        self._volume = None

    def _end(self, volume: Volume) -> None:
        if self._peek() == "end-volume":
            self._at += 1
            return
        if self._peek() or self._at >= len(self._words):
            raise self._error("'end-volume' is expected.")
        hint = "'option', 'subvolumes' or 'end-volume' is expected."
        if volume.options and self._words[self._at - 1].line == self._words[self._at].line:
            key = next(reversed(volume.options))
            hint = (f"An option has one value: put a value of several words into quotation marks, and check option "
                    f"'{key}' for a stray blank.")  # fmt: skip
        raise self._error(hint)

    def _parse_option(self, volume: Volume) -> None:
        self._keyword("option")
        key = self._value("The option's name")
        value = self._value(f"The value of option '{key.text}'")
        volume.options[key.text] = value.text
        volume.lines[key.text] = key.line

    def _parse_subvolumes(self, volume: Volume) -> None:
        line = self._keyword("subvolumes").line
        while self._at < len(self._words) and not self._peek():
            child = self._value("A subvolume's name")
            if child.text not in self._volumes:
                raise self._refuse(f"volume '{volume.name}': subvolume '{child.text}' is not defined prior to usage.",
                                   child.line, "Volumes are described bottom up: children first.")  # fmt: skip
            volume.subvolumes.append(child.text)
        if not volume.subvolumes:
            raise self._refuse(f"volume '{volume.name}': 'subvolumes' names none.", line)


def parse(text: str, path: str = "") -> Volfile:
    """Raises ``ConfigError``."""
    return Volfile(path, _Parser(text, path).parse())


def load(path: str | Path) -> Volfile:
    """Raises ``ConfigError``, also for a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            raw = file.read(VOLFILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the volfile {path}: {error.strerror}.") from error
    if len(raw) > VOLFILE_BYTES_MAX:
        raise ConfigError(f"{path} has more than {VOLFILE_BYTES_MAX >> 20} MiB: that is no volfile.")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError("this is not UTF-8 text.", file=str(path), line=line) from None
    return parse(text, str(path))


def _quoted(word: str) -> str:
    if _BARE.fullmatch(word) and word not in KEYWORDS:
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def render(volumes: Sequence[Volume]) -> str:
    """The text of a volfile; ``parse`` of it gives the same volumes."""
    parts = []
    for volume in volumes:
        lines = [f"volume {_quoted(volume.name)}", f"    type {_quoted(volume.type)}"]
        lines += [f"    option {_quoted(key)} {_quoted(value)}" for key, value in volume.options.items()]
        if volume.subvolumes:
            lines.append("    subvolumes " + " ".join(map(_quoted, volume.subvolumes)))
        parts.append("\n".join([*lines, "end-volume\n"]))
    return "\n".join(parts)
