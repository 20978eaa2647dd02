# SPDX-License-Identifier: Apache-2.0
"""The option sections: net, disk, options, startup, handlers, syncer, proxy, global, nbd, arbiter.

Input: statements.  Output: ``Option`` values and ``Sections``.  Errors: ``ConfigError`` at the word that is
wrong.  An option that has no effect here becomes a warning of the draft.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from repl.config.grammar import Position, Statement, TokenKind, parse_error
from repl.config.model import (
    AddressFamily,
    Listen,
    Option,
    Proxy,
    Sections,
)
from repl.config.options import (
    Kind,
    OptionSpec,
    Support,
    ValueRefused,
    find_option,
    known_words,
    parse_value,
)
from repl.config.reading import (
    Cursor,
    Draft,
    conflict,
    did_you_mean,
    error_at,
    head,
    read_address,
)

_OPTION_SECTIONS = ("net", "disk", "options", "startup", "handlers")
RESOURCE_WORDS = (
    "protocol",
    "on",
    "floating",
    "stacked-on-top-of",
    "volume",
    "device",
    "disk",
    "meta-disk",
    "flexible-meta-disk",
    "net",
    "options",
    "startup",
    "handlers",
    "syncer",
    "proxy",
    "connection",
    "connection-mesh",
    "template-file",
    "ignore-on",
    "nbd",
    "arbiter",
    "skip",
)


# --------------------------------------------------------------------------------------------- options


def read_option(draft: Draft, cursor: Cursor, section: str) -> Option:
    """One option statement of a section, typed and checked."""
    token = cursor.peek()
    found = find_option(section, token.text) if token.kind is TokenKind.WORD and not cursor.at_end() else None
    if found is None:
        hint = did_you_mean(token.text, known_words(section)) if token.kind is TokenKind.WORD else ""
        raise parse_error(
            token.where, "an option keyword", token, advice=f"(section {section}) {hint}".rstrip()
        )
    cursor.take()
    spec, is_negated = found
    if spec.kind is Kind.HOSTS:
        words = cursor.names("a host name")
        cursor.end_statement()
        option = Option(spec, spec.name, " ".join(words), " ".join(words), token.where, words)
        _warn_about(draft, option)
        return option
    if is_negated:
        text, where = "no", token.where
    elif cursor.at_end() and spec.kind in (Kind.BOOL, Kind.FLAG):
        text, where = "yes", token.where
    else:
        text, where = _option_text(cursor, spec)
    cursor.end_statement()
    option = Option(spec, spec.name, text, _typed(spec, text, where), token.where)
    _warn_about(draft, option)
    return option


def _option_text(cursor: Cursor, spec: OptionSpec) -> tuple[str, Position]:
    if spec.kind is Kind.FLAG:
        cursor.end_statement()
    token = cursor.value(f"a value for {spec.name}")
    if spec.section == "global" and spec.kind is Kind.ENUM and token.kind is TokenKind.STRING:
        raise parse_error(token.where, " | ".join(spec.values), token, advice="Write it without quotes.")
    return token.text, token.where


def _typed(spec: OptionSpec, text: str, where: Position) -> int | bool | str:
    try:
        return parse_value(spec, text)
    except ValueRefused as refused:
        shown = "***" if spec.is_secret else text
        raise error_at(
            where, f"Parse error: while parsing value ('{shown}')\nfor {spec.name}. {refused}."
        ) from refused


_NO_QUORUM = (
    "quorum is DRBD 9's (8.4's parser does not know the word) and needs a third node; "
    "between two nodes fencing keeps one of them from going on alone"
)
_WHY_NOT = dict.fromkeys(("quorum", "on-no-quorum", "quorum-minimum-redundancy", "quorum-lost"), _NO_QUORUM)


def _warn_about(draft: Draft, option: Option) -> None:
    spec = option.spec
    if spec.is_clamped and option.text.isdigit() and int(option.text) != option.value:
        draft.warn(f"{spec.name} {option.text} is out of range; {option.value} is used.", option.where)
    if spec.is_honoured(option.value):
        return
    if spec.support is Support.LATER:
        value = "" if spec.kind is Kind.FLAG or spec.section == "handlers" else f" {option.text}"
        why = _WHY_NOT.get(spec.name)
        text = f"has no effect: {why}" if why else "is not implemented yet and has no effect"
        draft.warn(f"'{spec.name}{value}' ({spec.section}) {text}.", option.where)
        return
    text = f"'{spec.name}' ({spec.section}) is accepted for compatibility and has no effect."
    if not any(warning.text == text for warning in draft.warnings):
        draft.warn(text, option.where)


def add_option(draft: Draft, options: dict[str, Option], option: Option) -> None:
    """Add to a section; a repeated option replaces the earlier one."""
    earlier = options.pop(option.name, None)
    if earlier is not None:
        draft.warn(
            f"'{option.name}' is repeated (first at {earlier.where}); the last one counts.", option.where
        )
    options[option.name] = option


def section_options(
    draft: Draft, statements: tuple[Statement, ...], section: str, *, also: tuple[str, ...] = ()
) -> dict[str, Option]:
    """``also``: options of other sections that may stand here."""
    options: dict[str, Option] = {}
    for statement in statements:
        option = read_option(draft, Cursor(statement), section)
        if option.spec.section != section and option.name not in also:
            text = f"'{option.name}' is not allowed in a {section} section at this place."
            raise error_at(option.where, text)
        add_option(draft, options, option)
    return options


# --------------------------------------------------------------------- sections of common and resource


@dataclass(slots=True)
class SectionsDraft:
    """Collects the option sections of common or of a resource.  ``owner`` names them in messages."""

    owner: str
    where: Position
    options: dict[str, dict[str, Option]] = field(default_factory=dict)
    proxy: Proxy | None = None
    listen: list[Listen] = field(default_factory=list)
    arbiter: list[tuple[str, ...]] | None = None
    first_uses: dict[str, Position] = field(default_factory=dict)

    def claim(self, section: str, where: Position) -> None:
        if section in self.first_uses:
            key = f"{self.owner}:{section}"
            raise conflict(f"{section} section", key, first=self.first_uses[section], second=where)
        self.first_uses[section] = where

    def finish(self) -> Sections:
        return Sections(
            net=self.options.get("net"),
            disk=self.options.get("disk"),
            options=self.options.get("options"),
            startup=self.options.get("startup"),
            handlers=self.options.get("handlers"),
            proxy=self.proxy,
            nbd=self.options.get("nbd"),
            nbd_listen=tuple(self.listen),
            arbiter=None if self.arbiter is None else tuple(self.arbiter),
            where=self.where,
        )


def option_section(draft: Draft, sections: SectionsDraft, cursor: Cursor, word: str) -> bool:
    """Read the section ``word`` if it is one of those that hold options.  False: it is something else."""
    if word in (*_OPTION_SECTIONS, "syncer", "nbd"):
        statements = cursor.end_block()
        sections.claim(word, cursor.where)
        if word == "nbd" or not statements:
            sections.options.setdefault("disk" if word == "syncer" else word, {})
        for statement in statements:
            if word == "nbd" and statement.tokens and statement.tokens[0].is_word("listen"):
                sections.listen.append(_listen(Cursor(statement)))
                continue
            option = read_option(draft, Cursor(statement), word)
            add_option(draft, sections.options.setdefault(option.spec.section, {}), option)
    elif word == "protocol":
        option = read_option(draft, Cursor(cursor.statement), "net")
        add_option(draft, sections.options.setdefault("net", {}), option)
    elif word == "proxy":
        statements = cursor.end_block()
        sections.claim(word, cursor.where)
        sections.proxy = _proxy(draft, statements, cursor.where)
    elif word == "arbiter":
        _arbiter(draft, sections, cursor)
    else:
        return False
    return True


def _proxy(draft: Draft, statements: tuple[Statement, ...], where: Position) -> Proxy:
    options: dict[str, Option] = {}
    plugins: list[tuple[str, ...]] = []
    for statement in statements:
        cursor = Cursor(statement)
        if cursor.take_word("plugin"):
            plugins.extend(_free_text(inner) for inner in cursor.end_block())
            draft.warn("'plugin' (proxy) is not implemented yet and has no effect.", statement.where)
        else:
            add_option(draft, options, read_option(draft, cursor, "proxy"))
    return Proxy(options, tuple(plugins), where)


def _free_text(statement: Statement) -> tuple[str, ...]:
    if statement.body is not None or not statement.end.is_operator(";"):
        raise parse_error(statement.end.where, ";", statement.end)
    if not statement.tokens:
        raise parse_error(statement.end.where, "a word", statement.end)
    if (
        wrong := next((token for token in statement.tokens if token.kind is TokenKind.OPERATOR), None)
    ) is not None:
        raise parse_error(wrong.where, "a word", wrong, advice="Put the text in double quotes.")
    return tuple(token.text for token in statement.tokens)


def _arbiter(draft: Draft, sections: SectionsDraft, cursor: Cursor) -> None:
    statements = cursor.end_block()
    sections.claim("arbiter", cursor.where)
    sections.arbiter = [_free_text(statement) for statement in statements]
    draft.warn("the section 'arbiter' is not implemented yet and has no effect.", cursor.where)


def _listen(cursor: Cursor) -> Listen:
    cursor.take()
    if cursor.take_word("unix"):
        token = cursor.value("the path of a socket")
        cursor.end_statement()
        if not token.text.startswith("/"):
            raise error_at(token.where, f"the socket path '{token.text}' must be absolute.")
        return Listen(unix_path=token.text)
    address = read_address(cursor)
    if address.family not in (AddressFamily.IPV4, AddressFamily.IPV6):
        raise error_at(address.where, "an NBD server listens on ipv4, ipv6 or unix only.")
    cursor.end_statement()
    return Listen(address)


def common_body(draft: Draft, statements: tuple[Statement, ...], where: Position) -> Sections:
    sections = SectionsDraft("common", where)
    for statement in statements:
        cursor, word = head(statement, RESOURCE_WORDS, section="common")
        if word in ("on", "floating", "stacked-on-top-of"):
            raise error_at(cursor.where, "in the common section, there are no host sections allowed.")
        if word == "disk" and cursor.statement.body is None:
            raise error_at(cursor.where, "in the common section, there are no volumes allowed.")
        if not option_section(draft, sections, cursor, word):
            raise error_at(cursor.where, f"in the common section, '{word}' is not allowed.")
    return sections.finish()
