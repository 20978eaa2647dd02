# SPDX-License-Identifier: Apache-2.0
"""Small results that a node wants to have again after a restart, as JSON in the run directory.

Losing them loses nothing but what ``status`` tells about the past, so every error is only logged.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

BYTES_MAX = 16 << 20

_log = logging.getLogger("repl.daemon")


class Memory:
    """One file; a key has one map of plain values."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, dict[str, Any]] = {}

    def load(self) -> dict[str, dict[str, Any]]:
        """What is there; nothing if the file is missing or damaged."""
        try:
            with self._path.open("rb") as file:
                found = json.loads(file.read(BYTES_MAX))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.warning("%s: it cannot be read, earlier results are forgotten: %s", self._path, error)
            return {}
        if isinstance(found, dict):
            self._values = {key: values for key, values in found.items() if isinstance(values, dict)}
        return dict(self._values)

    def keep(self, key: str, values: dict[str, Any]) -> None:
        """Replaces the file as a whole."""
        self._values[key] = values
        new = self._path.with_name(self._path.name + ".new")
        try:
            new.write_text(json.dumps(self._values), encoding="utf-8")
            os.replace(new, self._path)
        except OSError as error:
            _log.warning("%s: it cannot be written: %s", self._path, error)
