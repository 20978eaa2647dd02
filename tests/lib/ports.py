# SPDX-License-Identifier: Apache-2.0
"""Free TCP ports for servers that cannot be told "any port"."""

from __future__ import annotations

import os
import socket

# Below the kernel's own range for outgoing connections, so that no client of ours takes one in between.
FIRST_PORT = 20_000
LAST_PORT = 31_999
TRIES_MAX = 500

_next_port = FIRST_PORT + os.getpid() * 61 % (LAST_PORT - FIRST_PORT)


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on; the next call gives another, other processes of the run start elsewhere."""
    global _next_port
    for _ in range(TRIES_MAX):
        port, _next_port = _next_port, _next_port + 1
        if _next_port > LAST_PORT:
            _next_port = FIRST_PORT
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port on {host} in {TRIES_MAX} tries")


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    return [free_port(host) for _ in range(count)]
