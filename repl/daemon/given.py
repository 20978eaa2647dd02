# SPDX-License-Identifier: Apache-2.0
"""Which configuration and which node is meant: given on the command line or in the environment, or the default."""

from __future__ import annotations

import os
import socket
from pathlib import Path

DEFAULT_CONFIG = Path("/etc/drbd.conf")


def given_config(path: Path | None) -> Path:
    """The configuration that is meant: --config, REPL_CONFIG, the default."""
    chosen = path or Path(os.environ.get("REPL_CONFIG") or DEFAULT_CONFIG)
    return chosen.absolute()


def given_node(name: str | None) -> tuple[str, bool]:
    """(node, whether somebody chose it): --node, REPL_NODE, __DRBD_NODE__, the host's name."""
    chosen = name or os.environ.get("REPL_NODE") or os.environ.get("__DRBD_NODE__")
    return (chosen, True) if chosen else (socket.gethostname(), False)
