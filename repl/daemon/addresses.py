# SPDX-License-Identifier: Apache-2.0
"""The machine's own IP addresses, for ``floating`` sections.  Inputs: files of /proc.  Raises nothing."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

_FIB_LOCAL = re.compile(r"\|-- (\d+\.\d+\.\d+\.\d+)\n\s+/32 host LOCAL")


def own_addresses(proc: Path = Path("/proc")) -> tuple[str, ...]:
    """IPv4 and IPv6 addresses as text, each once."""
    found = dict.fromkeys(_FIB_LOCAL.findall(_read(proc / "net/fib_trie")))
    for line in _read(proc / "net/if_inet6").splitlines():
        digits = line.split(maxsplit=1)[0] if line.strip() else ""
        if len(digits) == 32:
            found[str(ipaddress.IPv6Address(int(digits, 16)))] = None
    return tuple(found)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
