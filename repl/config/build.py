# SPDX-License-Identifier: Apache-2.0
"""From statements to the model: which words may stand where.

Input: trees of grammar.py and the files they include.  Output: ``Draft`` (resources, common, global options,
warnings), which check.py completes to a ``Config``.  Errors: ``ConfigError`` with file, line and, for a
misspelt word, a hint.

Facts: DRBD's configuration language (8.4 and 9); where the flavours differ the
union is accepted.  The sections ``nbd { }`` and ``arbiter { }`` are our own.
"""

from __future__ import annotations

import glob
import operator
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from repl.config import grammar
from repl.config.connections import read_connection, read_mesh
from repl.config.grammar import Position, Statement, TokenKind, parse_error
from repl.config.hosts import VolumesDraft, implicit_statement, read_host, volume_block
from repl.config.model import (
    Connection,
    Host,
    Mesh,
    Resource,
    Sections,
)
from repl.config.reading import (
    Cursor,
    Draft,
    conflict,
    error_at,
    head,
)
from repl.config.sections import (
    RESOURCE_WORDS,
    SectionsDraft,
    common_body,
    option_section,
    section_options,
)
from repl.limits import CONFIG_FILE_BYTES_MAX, CONFIG_INCLUDE_DEPTH_MAX

CONFIG_FILES_MAX = 4096
COMPATIBLE_MODULE = (8, 4, 11)  # the kernel module this program stands in for
_TOP_WORDS = ("global", "common", "resource", "skip", "include")
_REQUIRE = re.compile(r"require-drbd-module-version-(eq|ne|gt|ge|lt|le)\Z")
_VERSION = re.compile(r"([0-9]+)\.([0-9]+)\.([0-9]+)\Z")
_COMPARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
}
_SAFE_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*\Z")


# ----------------------------------------------------------------------------------------------- files


def read_text(path: str, asked_at: Position | None) -> str:
    """The text of a file.  ``asked_at`` is the include statement, None for the main file."""
    where = asked_at or Position(path, 0)
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_FILE_BYTES_MAX + 1)
    except OSError as error:
        kind = "include file" if asked_at else "configuration file"
        raise error_at(where, f"Failed to open {kind} '{path}': {error.strerror}.") from error
    check_size(len(data), where)
    return data.decode("utf-8", "surrogateescape")


def check_size(size_bytes: int, where: Position) -> None:
    """Refuse a file that is too large to be a configuration."""
    if size_bytes > CONFIG_FILE_BYTES_MAX:
        raise error_at(where, f"the configuration file is larger than {CONFIG_FILE_BYTES_MAX} bytes.")


def read_file(
    draft: Draft, path: str, text: str | None = None, *, depth: int = 0, asked_at: Position | None = None
) -> None:
    """Read one file and all it includes into the draft.  A file that was read before is left out."""
    real = os.path.realpath(path)
    if real in draft.seen_paths:
        return
    where = asked_at or Position(path, 0)
    if depth > CONFIG_INCLUDE_DEPTH_MAX:
        raise error_at(where, f"includes are nested more than {CONFIG_INCLUDE_DEPTH_MAX} deep.")
    if len(draft.seen_paths) >= CONFIG_FILES_MAX:
        raise error_at(where, f"more than {CONFIG_FILES_MAX} files are included.")
    draft.seen_paths.add(real)
    if text is None:
        text = read_text(path, asked_at)
    else:
        check_size(len(text.encode("utf-8", "surrogateescape")), where)
    draft.files.append(path)
    tree = grammar.parse_tree(text, file=path)
    if tree.unclosed is not None:
        draft.refuse_or_warn(
            "the section that begins here is not closed at the end of the file.", tree.unclosed
        )
    for statement in tree.statements:
        _top_statement(draft, statement, path, depth)


def _top_statement(draft: Draft, statement: Statement, path: str, depth: int) -> None:
    first = Cursor(statement).peek()
    if first.kind is TokenKind.WORD and (require := _REQUIRE.match(first.text)) and statement.tokens:
        _require(Cursor(statement), require[1])
        return
    cursor, word = head(statement, _TOP_WORDS, section="")
    match word:
        case "global":
            _global(draft, cursor)
        case "common":
            _common(draft, cursor)
        case "resource":
            _resource(draft, cursor, path)
        case _:
            _include(draft, cursor, path, depth)


def _include(draft: Draft, cursor: Cursor, path: str, depth: int) -> None:
    pattern = cursor.value("a file name").text
    cursor.end_statement()
    full = os.path.join(os.path.dirname(path), pattern)
    names = sorted(glob.glob(full))
    if not names:
        if any(character in pattern for character in "*?["):
            return
        names = [full]
    for name in names:
        read_file(draft, name, depth=depth + 1, asked_at=cursor.where)


def _require(cursor: Cursor, relation: str) -> None:
    cursor.take()
    token = cursor.peek()
    version = _VERSION.match(token.text) if token.kind is TokenKind.WORD else None
    if version is None:
        raise parse_error(token.where, "a version such as 8.4.11", token)
    cursor.take()
    cursor.end_statement()
    wanted = tuple(int(part) for part in version.groups())
    if not _COMPARE[relation](COMPATIBLE_MODULE, wanted):
        ours = ".".join(map(str, COMPATIBLE_MODULE))
        raise error_at(
            cursor.where,
            f"the file demands DRBD module version {relation} {token.text}; this program stands for {ours}.",
        )


def _global(draft: Draft, cursor: Cursor) -> None:
    statements = cursor.end_block()
    if draft.global_where is not None:
        raise conflict("global section", "global", first=draft.global_where, second=cursor.where)
    draft.global_where = cursor.where
    if draft.resources:
        draft.warn("You should put the global {} section in front of any resource {} section.", cursor.where)
    draft.global_options = section_options(draft, statements, "global")


def _common(draft: Draft, cursor: Cursor) -> None:
    statements = cursor.end_block()
    if draft.common is not None:
        raise conflict("common section", "common", first=draft.common.where, second=cursor.where)
    draft.common = common_body(draft, statements, cursor.where)


# -------------------------------------------------------------------------------------------- resource


@dataclass(slots=True)
class _ResourceDraft:
    """The body of a resource section."""

    sections: SectionsDraft
    volumes: VolumesDraft
    hosts: list[Host] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    meshes: list[Mesh] = field(default_factory=list)
    template_file: str = ""
    template: Sections | None = None


def _resource(draft: Draft, cursor: Cursor, path: str) -> None:
    where = cursor.where
    name = cursor.name("a resource name")
    statements = cursor.end_block()
    _check_resource_name(draft, name, where)
    if name in draft.resources:
        raise conflict("resource section", name, first=draft.resources[name].where, second=where)
    body = _ResourceDraft(SectionsDraft(name, where), VolumesDraft(name, where))
    for statement in statements:
        cursor, word = head(statement, RESOURCE_WORDS, section=f"resource {name}")
        _resource_statement(draft, body, cursor, word, path)
    draft.resources[name] = Resource(
        name,
        tuple(body.hosts),
        body.volumes.volumes,
        body.sections.finish(),
        tuple(body.connections),
        tuple(body.meshes),
        body.template_file,
        body.template,
        where,
    )


def _check_resource_name(draft: Draft, name: str, where: Position) -> None:
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise error_at(where, "a resource name must not hold control characters.")
    if name == "all":
        draft.refuse_or_warn(
            "'all' means every resource in commands; give this resource another name.", where
        )
    elif not is_safe_name(name):
        draft.warn(f"the resource name '{name}' should only hold letters, digits and . _ + -", where)


def is_safe_name(name: str) -> bool:
    """True for a name that can be part of a file name and of RESOURCE/VOLUME."""
    return _SAFE_NAME.match(name) is not None


def _resource_statement(draft: Draft, body: _ResourceDraft, cursor: Cursor, word: str, path: str) -> None:
    name = body.sections.owner
    if word == "disk" and cursor.statement.body is None:
        implicit_statement(draft, body.volumes, cursor, word)
        return
    if option_section(draft, body.sections, cursor, word):
        return
    match word:
        case "on" | "floating" | "stacked-on-top-of":
            body.hosts.append(read_host(draft, name, body.sections.where, cursor, word))
        case "volume":
            volume_block(draft, body.volumes, cursor)
        case "connection":
            body.connections.append(read_connection(draft, cursor))
        case "connection-mesh":
            body.meshes.append(read_mesh(draft, cursor))
        case "template-file":
            if body.template is not None:
                raise error_at(cursor.where, f"conflicting use of template-file '{name}': it is given twice.")
            body.template_file = cursor.value("a file name").text
            cursor.end_statement()
            body.template = _template(
                draft, os.path.join(os.path.dirname(path), body.template_file), cursor.where
            )
        case "ignore-on":
            cursor.name("a host name")
            cursor.end_statement()
            draft.warn("'ignore-on' is obsolete and has no effect.", cursor.where)
        case _:
            implicit_statement(draft, body.volumes, cursor, word)


def _template(draft: Draft, path: str, where: Position) -> Sections:
    """The common section of a template file; everything else in it is left out."""
    tree = grammar.parse_tree(read_text(path, where), file=path)
    if path not in draft.files:
        draft.files.append(path)
    for statement in tree.statements:
        cursor, word = head(statement, _TOP_WORDS, section="")
        if word == "common":
            return common_body(draft, cursor.end_block(), cursor.where)
    return Sections(where=where)


def build(path: Path, text: str | None, *, is_strict: bool) -> Draft:
    """Read the main file and all it includes."""
    draft = Draft(is_strict)
    read_file(draft, str(path), text)
    return draft
