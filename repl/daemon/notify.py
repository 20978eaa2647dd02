# SPDX-License-Identifier: Apache-2.0
"""Tell the service manager how we are (sd_notify).  Does nothing without NOTIFY_SOCKET; raises nothing."""

from __future__ import annotations

import logging
import os
import socket

_log = logging.getLogger("repl.daemon")


def notify(message: str) -> None:
    """``message``: lines such as READY=1, STOPPING=1, STATUS=text."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(1.0)
            sock.sendto(message.encode(), address)
    except OSError as error:
        _log.warning("the service manager cannot be told: %s", error)
