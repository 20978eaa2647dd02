# SPDX-License-Identifier: Apache-2.0
"""NBD URIs both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd.uri import NbdUri, build_tcp_uri, build_unix_uri, parse_uri
from repl.errors import UsageError

_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)


@pytest.mark.parametrize(("host", "port", "export", "uri"), [
    ("localhost", 10809, "r0/0", "nbd://localhost:10809/r0/0"),
    ("::1", 1, "", "nbd://[::1]:1/"),
    ("fe80::1%eth0", 10809, "r0/0", "nbd://[fe80::1%25eth0]:10809/r0/0"),
    ("h", 65535, "/disk", "nbd://h:65535//disk"),
    ("h", 2, "a b?c#d%é", "nbd://h:2/a%20b%3Fc%23d%25%C3%A9"),
])
def test_tcp_uri_is_built_and_read_back(host: str, port: int, export: str, uri: str) -> None:
    assert build_tcp_uri(host, port, export) == uri
    assert parse_uri(uri) == NbdUri(export=export, host=host, port=port)
    assert str(parse_uri(uri)) == uri


@pytest.mark.parametrize(("path", "export", "uri"), [
    ("/run/repl/r0.nbd", "r0/0", "nbd+unix:///r0/0?socket=/run/repl/r0.nbd"),
    ("rel.sock", "", "nbd+unix:///?socket=rel.sock"),
    ("/a b&c+d=e", "r0/1", "nbd+unix:///r0/1?socket=/a%20b%26c%2Bd%3De"),
])
def test_unix_uri_is_built_and_read_back(path: str, export: str, uri: str) -> None:
    assert build_unix_uri(path, export) == uri
    assert parse_uri(uri) == NbdUri(export=export, socket_path=path)
    assert str(parse_uri(uri)) == uri


@pytest.mark.parametrize(("uri", "expected"), [
    ("nbd://example.com", NbdUri(host="example.com")),
    ("nbd://example.com:/disk", NbdUri(host="example.com", export="disk")),
    ("nbd:///disk", NbdUri(host="localhost", export="disk")),
    ("NBD://10.0.0.1/hello%20world", NbdUri(host="10.0.0.1", export="hello world")),
    ("nbd://h/r0/0?x-ours=1", NbdUri(host="h", export="r0/0")),
    ("nbd+unix:///?socket=a+b", NbdUri(socket_path="a+b")),
])
def test_uri_of_other_programs_is_read(uri: str, expected: NbdUri) -> None:
    assert parse_uri(uri) == expected


@pytest.mark.parametrize("uri", [
    "", "r0/0", "nbd:r0/0", "/dev/nbd0", "http://h/x", "nbds://h/x", "nbds+unix:///?socket=/s", "nbd+vsock://2/x",
    "nbd://h:0/x", "nbd://h:65536/x", "nbd://h:99999999/x", "nbd://h:http/x", "nbd://::1/x", "nbd://[::1/x",
    "nbd://user@h/x", "nbd://h/x#f", "nbd://h/a b", "nbd://h/é", "nbd://h/%zz", "nbd://h/%", "nbd://h/%ff",
    "nbd://h/%00", "nbd://h/x\n", "nbd://h/?socket=/s", "nbd://h/x?tls-type=psk", "nbd://h/x?unknown",
    "nbd+unix:///x", "nbd+unix:///x?socket=", "nbd+unix://h/x?socket=/s", "nbd+unix:///x?socket=/a&socket=/b",
    "nbd+unix:///?socket=%00/abstract", "nbd://h/" + "x" * 4097, "nbd://h/" + "x" * 100_000,
])
def test_uri_that_cannot_be_used_is_a_usage_error(uri: str) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        parse_uri(uri)


@pytest.mark.parametrize(("host", "port", "export"), [
    ("", 1, "x"), ("h", 0, "x"), ("h", 65536, "x"), ("h", 1, "a\0b"), ("h", 1, "x" * 4097),
])
def test_tcp_uri_of_impossible_parts_is_a_usage_error(host: str, port: int, export: str) -> None:
    with pytest.raises(UsageError):
        build_tcp_uri(host, port, export)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_unix_uri_of_an_impossible_path_is_a_usage_error(path: str) -> None:
    with pytest.raises(UsageError):
        build_unix_uri(path, "r0/0")


@given(export=_text, path=_text.filter(bool))
def test_any_unix_uri_that_is_built_is_read_back(export: str, path: str) -> None:
    assert parse_uri(build_unix_uri(path, export)) == NbdUri(export=export, socket_path=path)


@given(export=_text, port=st.integers(1, 65535))
def test_any_tcp_uri_that_is_built_is_read_back(export: str, port: int) -> None:
    assert parse_uri(build_tcp_uri("::1", port, export)) == NbdUri(export=export, host="::1", port=port)


@given(text=st.one_of(st.text(max_size=80), st.from_regex(r"nbd(\+unix)?://\S{0,40}", fullmatch=True)))
def test_any_text_is_read_or_refused_as_a_usage_error(text: str) -> None:
    try:
        uri = parse_uri(text)
    except UsageError:
        return
    assert parse_uri(str(uri)) == uri
