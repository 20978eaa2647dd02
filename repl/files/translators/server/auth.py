# SPDX-License-Identifier: Apache-2.0
"""Who may attach to what.

Input: options of protocol/server and what is known of a client; output: None, or why not.  A rejected address is
refused whatever else holds; then an allowed address, a user with the right password or, with TLS, an allowed common
name of the certificate lets in; without any of them nobody gets in.  With ``ssl-allow`` for a volume the certificate
is asked for in addition to the address.
differs: host names in lists are not resolved (decision 0054); networks (10.0.0.0/8) are understood.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from repl.files.options import Options

LOCAL = "127.0.0.1"  # what a Unix socket's client counts as


@dataclass(frozen=True, slots=True)
class Client:
    """``common_name`` is that of its certificate; None: it came without TLS."""

    address: str
    port: int = 0
    username: str = ""
    password: str = ""
    common_name: str | None = None


def address_of(peer: Any) -> tuple[str, int]:
    """Address and port of ``getpeername``; a Unix socket's client is local."""
    if isinstance(peer, tuple) and len(peer) >= 2:
        host = str(peer[0]).partition("%")[0]
        return host.removeprefix("::ffff:") if "." in host else host, int(peer[1])
    return LOCAL, 0


def matches(pattern: str, address: str) -> bool:
    """One entry of a list: wildcards, a network, or an address in any spelling."""
    if pattern == "localhost":
        return address in (LOCAL, "::1")
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(address, pattern)
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        return pattern == address


class Access:
    """The rules as they stand in one volfile."""

    def __init__(self, options: Options) -> None:
        self._allow: dict[str, tuple[str, ...]] = options.matching("auth.addr.*.allow")
        self._reject: dict[str, tuple[str, ...]] = options.matching("auth.addr.*.reject")
        self._users: dict[str, tuple[str, ...]] = options.matching("auth.login.*.allow")
        self._passwords: dict[str, str] = options.matching("auth.login.*.password")
        self._names: dict[str, tuple[str, ...]] = options.matching("auth.login.*.ssl-allow")
        self._only_low_ports = not options["rpc-auth-allow-insecure"]

    def may_speak(self, client: Client) -> bool:
        """Could it be allowed to attach to anything?  Asked before a byte of it is read."""
        if self._only_low_ports and client.port >= 1024:
            return False
        if self._passwords or self._names:
            return True
        return any(self._is_listed(self._allow, volume, client) for volume in self._allow)

    def refusal(self, volume: str, client: Client) -> str | None:
        """Why the client may not attach to the volume; None: it may."""
        if self._only_low_ports and client.port >= 1024:
            return "it calls from a port above 1023 (rpc-auth-allow-insecure off)"
        if self._is_listed(self._reject, volume, client):
            return f"its address is in auth.addr.{volume}.reject"
        names = self._names.get(volume)
        if names is not None and not any(fnmatchcase(client.common_name or "", name) for name in names):
            return f"its certificate's name '{client.common_name or ''}' is not in auth.login.{volume}.ssl-allow"
        if client.username and volume in self._users:
            return None if self._knows_password(volume, client) else "wrong user or password"
        if self._is_listed(self._allow, volume, client) or (names is not None and volume not in self._allow):
            return None
        if volume not in self._allow:
            return f"no option auth.addr.{volume}.allow says who may"
        return f"its address is not in auth.addr.{volume}.allow"

    def _is_listed(self, table: dict[str, tuple[str, ...]], volume: str, client: Client) -> bool:
        return any(matches(pattern, client.address) for pattern in table.get(volume, ()))

    def _knows_password(self, volume: str, client: Client) -> bool:
        password = self._passwords.get(client.username)
        if password is None or client.username not in self._users[volume]:
            return False
        return hmac.compare_digest(password.encode(), client.password.encode())
