# SPDX-License-Identifier: Apache-2.0
"""The sections of DRBD 9 that say who talks to whom, and the proxies between them.

Input: statements.  Output: ``Connection``, ``Mesh``, ``ProxyLink``.  Errors: ``ConfigError`` at the statement
that is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from repl.config.grammar import Statement
from repl.config.model import (
    Address,
    Connection,
    Endpoint,
    Mesh,
    Option,
    Options,
    ProxyLink,
)
from repl.config.reading import (
    Cursor,
    Draft,
    conflict,
    error_at,
    head,
    read_address,
    read_port,
)
from repl.config.sections import (
    section_options,
)

VOLUME_NUMBER_MAX = 65535


def read_proxy_link(draft: Draft, cursor: Cursor) -> ProxyLink:
    """``[proxy] on HOST.. { inside ADDR; outside ADDR; options { } }``; the cursor stands before ``on``."""
    where = cursor.peek().where
    cursor.expect_word("on")
    hosts = cursor.names("a host name")
    addresses: dict[str, Address] = {}
    options: dict[str, Option] = {}
    for statement in cursor.end_block():
        inner, word = head(statement, ("inside", "outside", "options"), section="proxy on")
        if word == "options":
            options = section_options(draft, inner.end_block(), "proxy")
            continue
        if word in addresses:
            raise conflict(word, " ".join(hosts), first=addresses[word].where, second=inner.where)
        addresses[word] = read_address(inner)
        inner.end_statement()
    for word in ("inside", "outside"):
        if word not in addresses:
            raise error_at(where, f"in proxy on {' '.join(hosts)} {{ ... }}: '{word}' keyword missing.")
    return ProxyLink(hosts, addresses["inside"], addresses["outside"], options, where)


@dataclass(slots=True)
class _ConnectionDraft:
    """The body of a connection section."""

    direct: list[Endpoint] = field(default_factory=list)
    paths: list[tuple[Endpoint, ...]] = field(default_factory=list)
    net: dict[str, Option] | None = None
    disk: dict[str, Option] | None = None
    volumes: dict[int, Options] = field(default_factory=dict)


def read_connection(draft: Draft, cursor: Cursor) -> Connection:
    where = cursor.where
    name = "" if cursor.at_end() else cursor.name("{")
    body = _ConnectionDraft()
    for statement in cursor.end_block():
        _connection_statement(draft, body, statement)
    if body.direct and body.paths:
        raise error_at(where, "a connection has either 'host' statements or 'path' sections.")
    paths = body.paths or [tuple(body.direct)]
    for path in paths:
        if len(path) != 2:
            raise error_at(path[0].where if path else where, "a connection needs exactly two ends.")
    return Connection(
        name, tuple(paths), bool(body.paths), body.net or {}, body.disk or {}, body.volumes, where
    )


def _connection_statement(draft: Draft, body: _ConnectionDraft, statement: Statement) -> None:
    words = ("host", "address", "path", "net", "disk", "volume", "skip")
    inner, word = head(statement, words, section="connection")
    match word:
        case "host" | "address":
            body.direct.append(_endpoint(draft, inner, word))
        case "path":
            ends = [head(end, ("host", "address"), section="path") for end in inner.end_block()]
            body.paths.append(tuple(_endpoint(draft, end, kind) for end, kind in ends))
        case "volume":
            number = inner.integer("volume", 0, VOLUME_NUMBER_MAX)
            if number in body.volumes:
                raise error_at(inner.where, f"conflicting use of volume '{number}': it is given twice.")
            body.volumes[number] = {}
            for part in inner.end_block():
                disk, _ = head(part, ("disk",), section="connection volume")
                body.volumes[number] = section_options(draft, disk.end_block(), "disk")
        case _:
            if (body.net if word == "net" else body.disk) is not None:
                raise error_at(inner.where, f"conflicting use of {word} section 'connection:{word}'.")
            options = section_options(draft, inner.end_block(), word)
            if word == "net":
                body.net = options
            else:
                body.disk = options


def _endpoint(draft: Draft, cursor: Cursor, word: str) -> Endpoint:
    where = cursor.where
    host = cursor.name("a host name") if word == "host" else ""
    address: Address | None = None
    port = ""
    if word == "address" or cursor.take_word("address"):
        address = read_address(cursor)
    elif cursor.take_word("port"):
        port = read_port(cursor)
    proxy: ProxyLink | None = None
    outside: Address | None = None
    if cursor.take_word("via"):
        if cursor.expect_word("proxy", "outside-address") == "proxy":
            return Endpoint(host, address, port, read_proxy_link(draft, cursor), None, where)
        outside = read_address(cursor)
    cursor.end_statement()
    return Endpoint(host, address, port, proxy, outside, where)


def read_mesh(draft: Draft, cursor: Cursor) -> Mesh:
    hosts: tuple[str, ...] = ()
    net: dict[str, Option] = {}
    for statement in cursor.end_block():
        inner, word = head(statement, ("hosts", "net", "skip"), section="connection-mesh")
        if word == "hosts":
            hosts = (*hosts, *inner.names("a host name"))
            inner.end_statement()
        else:
            net = section_options(draft, inner.end_block(), "net")
    if len(hosts) < 2:
        raise error_at(cursor.where, "a connection-mesh needs a 'hosts' statement with two names at least.")
    return Mesh(hosts, net, cursor.where)
