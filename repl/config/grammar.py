# SPDX-License-Identifier: Apache-2.0
"""From the text of a configuration file to a tree of statements.

Input: the text of one file and the name to show in messages.  Output: a tuple of ``Statement``;
a statement is a row of tokens that ends in ``;`` or opens a ``{ }`` block of further statements.  Which
words may stand where is decided by build.py; here are only the tokens (lengths, quotes, comments),
the nesting and ``skip``.

Errors: ``ConfigError`` with file and line.  Facts: DRBD's configuration language as the drbdadm tools of
8.4 and 9 accept it, observed on the files in tests/vectors/res-corpus.

A hand-written scanner, because the language is context-sensitive (``disk`` is a statement, a section
and, quoted, a name) and every error must carry the line of the token that is wrong.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from repl.errors import ConfigError

BARE_WORD_CHARS_MAX = 128
QUOTED_WORD_CHARS_MAX = 255
NESTING_DEPTH_MAX = 16
SHOWN_TOKEN_CHARS_MAX = 20

# Words with a fixed place in the grammar.  As a name or a value they must be quoted.
KEYWORDS = frozenset(
    """
    global common resource include skip on floating stacked-on-top-of volume device minor disk meta-disk
    flexible-meta-disk net options startup handlers syncer proxy plugin connection connection-mesh
    template-file ignore-on address host hosts port path via inside outside outside-address
    node-id ipv4 ipv6 sdp ssocks sci
    yes no ask internal protocol
    """.split()
)

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+|\#[^\n]*)
      | (?P<newline>\n)
      | (?P<op>[{};\[\]:])
      | (?P<word>[A-Za-z0-9/._-]+)
      | "(?P<string>(?:\\[^\n]|[^"\\\n])*)"
      | (?P<open_string>"[^\n]*)
      | (?P<char>.)""",
    re.VERBOSE | re.DOTALL,
)
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9._-]+)?")
_INTEGER = re.compile(r"[0-9]{1,8}[MKGs]?\Z")
_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}\Z")
_BARE_WORD = re.compile(r"[A-Za-z0-9/._-]+\Z")


class TokenKind(enum.Enum):
    """What the scanner saw."""

    WORD = "word"
    STRING = "string"
    IPV6 = "ipv6"
    OPERATOR = "operator"
    INVALID = "invalid"
    END = "end of file"


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a configuration file; ``line`` counts from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Token:
    """One token.  ``text`` of a quoted word is without quotes; of an invalid token, the complaint."""

    kind: TokenKind
    text: str
    where: Position = field(compare=False)

    @property
    def shown(self) -> str:
        """The token as a message names it."""
        if self.kind is TokenKind.END:
            return "end of file"
        return shorten(self.text)

    def is_word(self, *texts: str) -> bool:
        """True for one of these words written without quotes."""
        return self.kind is TokenKind.WORD and self.text in texts

    def is_operator(self, text: str) -> bool:
        """True for this operator."""
        return self.kind is TokenKind.OPERATOR and self.text == text


@dataclass(frozen=True, slots=True)
class Statement:
    """``tokens end`` or ``tokens { body }``.

    ``end`` is the token after the row: ``;``, ``{``, or, where that is missing, whatever stands there.
    """

    tokens: tuple[Token, ...]
    end: Token
    body: tuple[Statement, ...] | None
    where: Position = field(compare=False)


def shorten(text: str) -> str:
    """The beginning of a long word, for messages."""
    return text if len(text) <= SHOWN_TOKEN_CHARS_MAX else text[:SHOWN_TOKEN_CHARS_MAX] + "..."


def is_plain_name(text: str) -> bool:
    """True if the text is read back as a name when it is written without quotes."""
    return (
        len(text) <= BARE_WORD_CHARS_MAX
        and _BARE_WORD.match(text) is not None
        and text not in KEYWORDS
        and not is_integer(text)
        and _IPV4.match(text) is None
    )


def is_plain_value(text: str) -> bool:
    """True if the text is read back as an option value when it is written without quotes."""
    return len(text) <= BARE_WORD_CHARS_MAX and _BARE_WORD.match(text) is not None and text not in KEYWORDS


def is_integer(text: str) -> bool:
    """True for what the grammar calls an integer: at most eight digits and a unit letter."""
    return _INTEGER.match(text) is not None


def is_ipv4(text: str) -> bool:
    """True for four groups of digits, each below 256."""
    return _IPV4.match(text) is not None and all(int(group) < 256 for group in text.split("."))


def parse_error(where: Position, wanted: str, got: Token, *, advice: str = "") -> ConfigError:
    """The error for a token that cannot stand where it stands."""
    if got.kind is TokenKind.INVALID:
        return ConfigError(got.text, file=where.file, line=where.line, advice=advice)
    text = f"Parse error: '{wanted}' expected,\n\tbut got '{got.shown}'" + ("." if advice else "")
    return ConfigError(text, file=where.file, line=where.line, advice=advice)


def scan(text: str, *, file: str) -> Iterator[Token]:
    """All tokens of the text, then one of kind END.  Never raises: bad input gives INVALID tokens."""
    line = 1
    offset = 0
    after_bracket = False
    while offset < len(text):
        where = Position(file, line)
        if after_bracket and (address := _IPV6.match(text, offset)) is not None:
            offset = address.end()
            after_bracket = False
            yield Token(TokenKind.IPV6, address.group(), where)
            continue
        match = _TOKEN.match(text, offset)
        assert match is not None  # the last alternative takes any character
        offset = match.end()
        match match.lastgroup:
            case "space":
                continue
            case "newline":
                line += 1
                continue
            case "op":
                after_bracket = match.group() == "["
                yield Token(TokenKind.OPERATOR, match.group(), where)
                continue
            case "word":
                yield _word_token(match.group(), where)
            case "string":
                yield _string_token(match.group("string"), where)
            case "open_string":
                yield Token(TokenKind.INVALID, _UNTERMINATED, where)
            case _:
                yield Token(TokenKind.INVALID, f"Parse error: unexpected character {match.group()!r}.", where)
        after_bracket = False
    yield Token(TokenKind.END, "", Position(file, line))


_UNTERMINATED = "Unterminated double quoted string; a quoted string must end on the line it begins on."


def _word_token(text: str, where: Position) -> Token:
    if len(text) > BARE_WORD_CHARS_MAX:
        complaint = f"Token too long: '{shorten(text)}' (at most {BARE_WORD_CHARS_MAX} characters)."
        return Token(TokenKind.INVALID, complaint, where)
    return Token(TokenKind.WORD, text, where)


def _string_token(quoted: str, where: Position) -> Token:
    value = re.sub(r"\\(.)", r"\1", quoted)
    if len(value) > QUOTED_WORD_CHARS_MAX:
        complaint = f"Token too long: a quoted string may have {QUOTED_WORD_CHARS_MAX} characters."
        return Token(TokenKind.INVALID, complaint, where)
    return Token(TokenKind.STRING, value, where)


@dataclass(slots=True)
class _OpenBlock:
    """A block whose closing brace has not been seen."""

    tokens: tuple[Token, ...]
    brace: Token | None
    statements: list[Statement]


@dataclass(frozen=True, slots=True)
class Tree:
    """The statements of one file.  ``unclosed`` is set where the end of the file had to close a section."""

    statements: tuple[Statement, ...]
    unclosed: Position | None


def parse_tree(text: str, *, file: str) -> Tree:
    """Group the tokens of one file into statements; skipped parts are left out."""
    tokens = scan(text, file=file)
    stack = [_OpenBlock((), None, [])]
    row: list[Token] = []
    for token in tokens:
        if token.kind is TokenKind.INVALID:
            raise parse_error(token.where, "", token)
        if token.kind is TokenKind.END:
            return _close_all(stack, row, token)
        if not row and token.is_word("skip"):
            unclosed = _skip_section(tokens, token)
            if unclosed is not None:
                return _close_all(stack, row, unclosed)
        elif token.is_operator("{"):
            if len(stack) > NESTING_DEPTH_MAX:
                raise ConfigError("sections are nested too deeply.", file=file, line=token.where.line)
            stack.append(_OpenBlock(tuple(row), token, []))
            row = []
        elif token.is_operator("}"):
            if row:
                raise parse_error(token.where, ";", token)
            _close_block(stack, token)
        elif token.is_operator(";"):
            where = row[0].where if row else token.where
            stack[-1].statements.append(Statement(tuple(row), token, None, where))
            row = []
        else:
            row.append(token)
    raise AssertionError("the scanner ends with an END token")


def _close_block(stack: list[_OpenBlock], brace: Token) -> None:
    if len(stack) == 1:
        raise parse_error(brace.where, "global | common | resource | skip | include", brace)
    block = stack.pop()
    assert block.brace is not None
    where = block.tokens[0].where if block.tokens else block.brace.where
    stack[-1].statements.append(Statement(block.tokens, block.brace, tuple(block.statements), where))


def _close_all(stack: list[_OpenBlock], row: list[Token], end: Token) -> Tree:
    """End of file: close what is open, as all flavours of the real tool do."""
    if row:
        # Kept, so that the wrong first word of the row is named rather than the missing semicolon.
        stack[-1].statements.append(Statement(tuple(row), end, None, row[0].where))
    unclosed = stack[-1].brace.where if stack[-1].brace is not None else None
    if unclosed is None and end.is_operator("{"):
        unclosed = end.where
    while len(stack) > 1:
        _close_block(stack, end)
    return Tree(tuple(stack[0].statements), unclosed)


def _skip_section(tokens: Iterator[Token], skip: Token) -> Token | None:
    """Drop tokens up to the brace that closes the skipped section.

    Returns None, or the opening brace if the file ended inside the section.
    """
    depth = 0
    brace = skip
    for token in tokens:
        if token.kind is TokenKind.END:
            if depth == 0:
                raise parse_error(token.where, "{", token)
            return brace
        if token.kind is TokenKind.INVALID and token.text == _UNTERMINATED:
            raise parse_error(token.where, "", token)
        if token.is_operator("{"):
            brace = token if depth == 0 else brace
            depth += 1
        elif token.is_operator("}"):
            if depth == 0:
                raise parse_error(token.where, "{", token)
            depth -= 1
            if depth == 0:
                return None
    raise AssertionError("the scanner ends with an END token")
