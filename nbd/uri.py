# SPDX-License-Identifier: Apache-2.0
"""NBD URIs: ``nbd://host:port/export`` and ``nbd+unix:///export?socket=/path``.

Inputs and outputs: text ↔ ``NbdUri``.  Errors: ``UsageError`` saying what is wrong with the URI.
Facts: doc/uri.md of the NBD reference implementation, RFC 3986.  Deliberately missing: TLS and vsock schemes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from nbd.constants import DEFAULT_PORT
from repl.errors import UsageError
from repl.limits import NBD_STRING_BYTES_MAX

DEFAULT_HOST = "localhost"

URI_BYTES_MAX = 4 * NBD_STRING_BYTES_MAX

# RFC 3986, appendix B, with the parts that are required here.
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)"
                  r"(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?")
_URI_TEXT = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|[^:\[\]@]*)(?::(?P<port>[0-9]{0,5}))?")


@dataclass(frozen=True, slots=True)
class NbdUri:
    """Where an export is: over TCP (``host``, ``port``) or, with ``socket_path`` set, over a Unix socket."""

    export: str = ""
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    socket_path: str = ""

    def __str__(self) -> str:
        if self.socket_path:
            return build_unix_uri(self.socket_path, self.export)
        return build_tcp_uri(self.host, self.port, self.export)


def build_tcp_uri(host: str, port: int, export: str) -> str:
    """``nbd://host:port/export``; an IPv6 address gets its brackets."""
    if not host or not 0 < port <= 65535:
        raise UsageError(f"an NBD URI cannot name host {host!r}, port {port}.")
    # RFC 6874: the percent sign before a zone is itself encoded.
    shown_host = f"[{quote(host, safe=':')}]" if ":" in host else quote(host, safe="")
    return f"nbd://{shown_host}:{port}/{_quote_export(export)}"


def build_unix_uri(socket_path: str, export: str) -> str:
    """``nbd+unix:///export?socket=path``."""
    if not socket_path or "\0" in socket_path:
        raise UsageError(f"an NBD URI cannot name socket {socket_path!r}.")
    return f"nbd+unix:///{_quote_export(export)}?socket={quote(socket_path, safe='/')}"


def parse_uri(text: str) -> NbdUri:
    match = _URI.fullmatch(text) if len(text) <= URI_BYTES_MAX and _URI_TEXT.fullmatch(text) else None
    if match is None:
        raise _bad(text, "it is not a URI of the form nbd://host:port/export or "
                         "nbd+unix:///export?socket=/path")
    if match["fragment"]:
        raise _bad(text, "it has a fragment")
    export = _unquote(text, match["path"][1:])
    if len(export.encode()) > NBD_STRING_BYTES_MAX:
        raise _bad(text, f"the export name is longer than {NBD_STRING_BYTES_MAX} bytes")
    parameters = _parse_query(text, match["query"] or "")
    match match["scheme"].lower():
        case "nbd":
            if "socket" in parameters:
                raise _bad(text, "nbd:// has no socket (write nbd+unix:///)")
            host, port = _parse_authority(text, match["authority"])
            return NbdUri(export=export, host=host, port=port)
        case "nbd+unix":
            if match["authority"]:
                raise _bad(text, "nbd+unix:// has no host (write three slashes)")
            if not parameters.get("socket"):
                raise _bad(text, "it names no socket (append ?socket=/path)")
            return NbdUri(export=export, socket_path=parameters["socket"])
        case scheme:
            raise _bad(text, f"scheme {scheme!r} is not supported")


def _parse_authority(text: str, authority: str) -> tuple[str, int]:
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise _bad(text, "the part between // and / is not host:port")
    host = _unquote(text, match["host"].removeprefix("[").removesuffix("]")) or DEFAULT_HOST
    port = int(match["port"]) if match["port"] else DEFAULT_PORT
    if not 0 < port <= 65535:
        raise _bad(text, f"port {port} is outside 1..65535")
    return host, port


def _parse_query(text: str, query: str) -> dict[str, str]:
    """The parameters; a plus sign is a plus sign.  ``x-`` parameters are other programs' business."""
    parameters: dict[str, str] = {}
    for part in query.split("&") if query else ():
        key, _, value = part.partition("=")
        name = _unquote(text, key)
        if name.startswith("x-"):
            continue
        if name != "socket":
            raise _bad(text, f"parameter {name!r} is unknown")
        if name in parameters:
            raise _bad(text, f"parameter {name!r} is given twice")
        parameters[name] = _unquote(text, value)
    return parameters


def _quote_export(export: str) -> str:
    if "\0" in export or len(export.encode()) > NBD_STRING_BYTES_MAX:
        raise UsageError(f"export name {export[:64]!r} has a NUL or more than {NBD_STRING_BYTES_MAX} bytes.")
    return quote(export, safe="/")


def _unquote(text: str, part: str) -> str:
    try:
        decoded = unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        raise _bad(text, "a percent-encoded part is not valid UTF-8") from None
    if "\0" in decoded:
        raise _bad(text, "it contains a NUL")
    return decoded


def _bad(text: str, reason: str) -> UsageError:
    return UsageError(f"NBD URI {text[:200]!r} cannot be used: {reason}.")
