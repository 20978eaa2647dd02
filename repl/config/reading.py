# SPDX-License-Identifier: Apache-2.0
"""What all readers of statements share: the draft of the configuration, errors, the cursor, addresses.

Input: ``Statement`` of grammar.py.  Errors: ``ConfigError`` with file, line and, for a misspelt word, a hint.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from dataclasses import dataclass, field

from repl.config import grammar
from repl.config.grammar import Position, Statement, Token, TokenKind, parse_error
from repl.config.model import (
    Address,
    AddressFamily,
    ConfigWarning,
    Option,
    Resource,
    Sections,
)
from repl.errors import ConfigError


@dataclass(slots=True)
class Draft:
    """A configuration before its sections are compared with each other."""

    is_strict: bool
    global_options: dict[str, Option] = field(default_factory=dict)
    global_where: Position | None = None
    common: Sections | None = None
    resources: dict[str, Resource] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    warnings: list[ConfigWarning] = field(default_factory=list)
    seen_paths: set[str] = field(default_factory=set)

    def warn(self, text: str, where: Position) -> None:
        self.warnings.append(ConfigWarning(text, where))

    def refuse_or_warn(self, text: str, where: Position) -> None:
        """What the real tools let pass although it is a mistake."""
        if self.is_strict:
            raise error_at(where, text)
        self.warn(text, where)


def error_at(where: Position, text: str, *, advice: str = "") -> ConfigError:
    """A ConfigError at a position."""
    return ConfigError(text, file=where.file, line=where.line, advice=advice)


def conflict(kind: str, key: str, *, first: Position, second: Position) -> ConfigError:
    """The error for something that may exist only once."""
    return error_at(
        second, f"conflicting use of {kind} '{key}' ...\n{first}: {kind} '{key}' first used here."
    )


def mixed_volumes(resource: str, resource_where: Position, where: Position) -> ConfigError:
    """The error for implicit and explicit volumes in one resource."""
    text = f"in resource {resource}: you must not mix implicit and explicit volumes (line {where.line})."
    return error_at(resource_where, text)


def did_you_mean(word: str, known: list[str]) -> str:
    """A hint, or "" if nothing is similar."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean '{close[0]}'?" if close else ""


class Cursor:
    """Reads the tokens of one statement from left to right."""

    def __init__(self, statement: Statement) -> None:
        self.statement = statement
        self._index = 0

    @property
    def where(self) -> Position:
        return self.statement.where

    @property
    def body(self) -> tuple[Statement, ...]:
        assert self.statement.body is not None  # end_block() was called
        return self.statement.body

    def peek(self) -> Token:
        tokens = self.statement.tokens
        return tokens[self._index] if self._index < len(tokens) else self.statement.end

    def take(self) -> Token:
        token = self.peek()
        self._index += 1
        return token

    def at_end(self) -> bool:
        return self._index >= len(self.statement.tokens)

    def take_word(self, *texts: str) -> bool:
        """Take the next token if it is one of these keywords."""
        if self.at_end() or not self.peek().is_word(*texts):
            return False
        self.take()
        return True

    def expect_word(self, *texts: str) -> str:
        token = self.peek()
        if self.at_end() or not token.is_word(*texts):
            raise parse_error(token.where, " | ".join(texts), token)
        return self.take().text

    def expect_operator(self, text: str) -> None:
        token = self.peek()
        if self.at_end() or not token.is_operator(text):
            raise parse_error(token.where, text, token)
        self.take()

    def name(self, wanted: str) -> str:
        """A bare word that is not a keyword, or a quoted word."""
        token = self.peek()
        if token.kind is TokenKind.STRING and token.text:
            return self.take().text
        if token.kind is TokenKind.WORD and grammar.is_plain_name(token.text):
            return self.take().text
        advice = f'Put it in double quotes: "{token.text}".' if token.kind is TokenKind.WORD else ""
        raise parse_error(token.where, wanted, token, advice=advice)

    def names(self, wanted: str) -> tuple[str, ...]:
        """One or more names, up to the end of the row."""
        found = [self.name(wanted)]
        while not self.at_end():
            found.append(self.name(wanted))
        return tuple(found)

    def value(self, wanted: str) -> Token:
        """An option value: any word; a keyword other than yes and no must be quoted."""
        token = self.peek()
        is_word = token.kind is TokenKind.WORD and (
            token.is_word("yes", "no", "ask", "internal") or token.text not in grammar.KEYWORDS
        )
        if token.kind is TokenKind.STRING or is_word:
            return self.take()
        advice = f'Put it in double quotes: "{token.text}".' if token.kind is TokenKind.WORD else ""
        raise parse_error(token.where, wanted, token, advice=advice)

    def integer(self, wanted: str, minimum: int, maximum: int) -> int:
        token = self.peek()
        if token.kind is not TokenKind.WORD or not re.fullmatch("[0-9]{1,8}", token.text):
            raise parse_error(token.where, wanted, token)
        number = int(self.take().text)
        if not minimum <= number <= maximum:
            raise error_at(
                token.where, f"{wanted} {token.text} => {number} out of range [{minimum}..{maximum}]."
            )
        return number

    def end_statement(self) -> None:
        """The row ends with a semicolon."""
        end = self.peek()
        if not self.at_end() or not end.is_operator(";"):
            raise parse_error(end.where, ";", end)

    def end_block(self) -> tuple[Statement, ...]:
        """The row opens a block; its statements."""
        end = self.peek()
        if not self.at_end() or self.statement.body is None:
            raise parse_error(end.where, "{", end)
        return self.statement.body


def head(statement: Statement, wanted: tuple[str, ...], *, section: str) -> tuple[Cursor, str]:
    """The cursor behind the keyword that a statement begins with."""
    cursor = Cursor(statement)
    token = cursor.peek()
    if not cursor.at_end() and token.is_word(*wanted):
        return cursor, cursor.take().text
    hint = did_you_mean(token.text, list(wanted)) if token.kind is TokenKind.WORD else ""
    advice = f"(section {section}) {hint}".rstrip() if section else hint
    raise parse_error(token.where, " | ".join(wanted), token, advice=advice)


# ----------------------------------------------------------------------------------- names of machines


def read_address(cursor: Cursor) -> Address:
    """``[family] host:port``."""
    first = cursor.peek()
    family = AddressFamily.IPV4
    if first.is_word("ipv4", "ipv6", "sdp", "ssocks", "sci"):
        word = cursor.take().text
        family = AddressFamily("ssocks" if word == "sci" else word)
    host = (
        _ipv6_host(cursor)
        if family is AddressFamily.IPV6
        else _ipv4_host(cursor, is_bare=cursor.peek() is first)
    )
    cursor.expect_operator(":")
    return Address(family, host, read_port(cursor), first.where)


def _ipv6_host(cursor: Cursor) -> str:
    cursor.expect_operator("[")
    token = cursor.peek()
    if token.kind is not TokenKind.IPV6:
        raise parse_error(token.where, "<ipv6 address>", token)
    try:
        ipaddress.IPv6Address(token.text)
    except ValueError as error:
        raise error_at(token.where, f"'{token.text}' is not an IPv6 address.") from error
    cursor.take()
    cursor.expect_operator("]")
    return token.text


def _ipv4_host(cursor: Cursor, *, is_bare: bool) -> str:
    token = cursor.peek()
    if token.kind is not TokenKind.WORD or not grammar.is_ipv4(token.text):
        wanted = "ssocks | sdp | ipv4 | ipv6 | <ipv4 address>" if is_bare else "<ipv4 address>"
        advice = "An IPv6 address needs the word ipv6 before the bracket." if token.is_operator("[") else ""
        raise parse_error(token.where, wanted, token, advice=advice)
    return cursor.take().text


def read_port(cursor: Cursor) -> str:
    token = cursor.peek()
    cursor.integer("port", 1, 65535)
    return token.text
