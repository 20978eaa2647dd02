# SPDX-License-Identifier: Apache-2.0
"""Reading what ``dump`` prints gives the same configuration, for configurations made at random."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from repl.config import dump, load
from repl.config.grammar import KEYWORDS, TokenKind, scan
from repl.config.options import TABLES, Kind, OptionSpec, known_words
from repl.config.render import name_text, quote, value_text
from repl.errors import ConfigError

FILE = Path("test.res")

PRINTABLE = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f"), max_size=60
)
NAMES = st.one_of(
    st.text("abcXYZ019._+-/", min_size=1, max_size=20),
    st.sampled_from(sorted(KEYWORDS)),
    PRINTABLE.filter(bool),
)


def values_of(spec: OptionSpec) -> st.SearchStrategy[str]:
    """Texts of values, quoted as an administrator may do it."""
    match spec.kind:
        case Kind.NUMBER:
            return st.integers(spec.minimum, spec.maximum).map(str)
        case Kind.BOOL:
            return st.sampled_from(["", "yes", "no", '"yes"'])
        case Kind.FLAG:
            return st.just("")
        case Kind.ENUM:
            return st.sampled_from(spec.values)
        case Kind.ENUM_OR_NUMBER:
            return st.sampled_from([*spec.values, "7"])
        case Kind.HOSTS:
            return st.lists(NAMES, min_size=1, max_size=3).map(lambda names: " ".join(map(quote, names)))
        case Kind.STRING:
            return PRINTABLE.filter(lambda text: len(text.encode()) <= spec.bytes_max).map(quote)


@st.composite
def sections(draw: st.DrawFn, *names: str) -> str:
    parts = []
    for name in names:
        specs = draw(st.lists(st.sampled_from(list(TABLES[name].values())), max_size=5))
        specs = [spec for spec in specs if spec.name != "resync-after"]
        body = " ".join(f"{spec.name} {draw(values_of(spec))};" for spec in specs)
        if draw(st.booleans()):
            parts.append(f"{name} {{ {body} }}")
    return "\n".join(parts)


ALL_SECTIONS = ("net", "disk", "options", "startup", "handlers", "proxy", "nbd")


@st.composite
def configurations(draw: st.DrawFn) -> str:
    options = draw(st.sampled_from(["", "usage-count no;", "disable-ip-verification; minor-count 3;"]))
    text = f"global {{ {options} }}\n"
    if draw(st.booleans()):
        text += f"common {{ {draw(sections(*ALL_SECTIONS))} }}\n"
    for index, name in enumerate(draw(st.lists(NAMES, max_size=3, unique=True))):
        text += draw(resources(name, index))
    return text


@st.composite
def resources(draw: st.DrawFn, name: str, index: int) -> str:
    numbers = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
    volumes = ""
    for number in numbers:
        meta = draw(
            st.sampled_from(["", "internal", f'"/dev/meta {index}"[{number}]', f"/dev/m{index}{number}"])
        )
        volumes += (
            f"volume {number} {{ device minor {index * 10 + number}; disk {quote(f'/dev/{index} {number}')};"
        )
        volumes += f"meta-disk {meta};" if meta else ""
        volumes += draw(sections("disk")) + "}\n"
    first, second = draw(st.lists(NAMES, min_size=2, max_size=2, unique_by=str.lower))
    hosts = "".join(
        f"on {quote(host)} {{ address {address}; }}\n"
        for host, address in (
            (first, f"192.0.2.1:{7000 + index}"),
            (second, f"ipv6 [2001:db8::{index + 1}]:7"),
        )
    )
    return f"resource {quote(name)} {{ {volumes} {hosts} {draw(sections(*ALL_SECTIONS))} }}\n"


@settings(max_examples=200, deadline=None)
@given(configurations())
def test_configuration_dumped_and_read_again_is_the_same(text: str) -> None:
    config = load(FILE, text=text)
    dumped = dump(config, "alpha")
    again = load(FILE, text=dumped)
    assert again == config
    strip = [line for line in dumped.splitlines() if not line.startswith("# defined")]
    assert strip == [line for line in dump(again, "alpha").splitlines() if not line.startswith("# defined")]


@given(PRINTABLE)
def test_value_as_dumped_is_one_token_with_the_same_text(text: str) -> None:
    for shown in (value_text(text), quote(text)):
        token, end = scan(shown, file="x")
        assert (token.text, end.kind) == (text, TokenKind.END)


@given(NAMES)
def test_name_as_dumped_is_never_a_keyword_without_quotes(text: str) -> None:
    token, _ = scan(name_text(text), file="x")
    assert token.text == text
    assert token.kind is TokenKind.STRING or text not in KEYWORDS


FRAGMENTS = st.sampled_from(
    [
        *sorted(KEYWORDS),
        *known_words("net")[:6],
        "{",
        "}",
        ";",
        "[",
        "]",
        ":",
        '"',
        "\\",
        "#",
        "\n",
        " ",
        "x",
        "1",
        "192.0.2.1",
        "::1",
        "resource x {",
        "on a {",
        "skip",
        "\x00",
        "\udc80",
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(FRAGMENTS, max_size=40).map(" ".join))
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    try:
        load(Path("/nonexistent/test.res"), text=text)
    except ConfigError as error:
        assert error.line >= 1
