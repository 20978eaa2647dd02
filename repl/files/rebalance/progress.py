# SPDX-License-Identifier: Apache-2.0
"""How far a rebalance is: counters, and the directory that it was through with last, in a file.

The file is JSON, replaced as a whole, so that readers (``replctl volume rebalance V status``) never see half of it; a
rebalance that is started again goes on behind ``last_directory``.  Errors: ``ConfigError`` for a file that is none of
ours.
"""

from __future__ import annotations

import enum
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from repl.errors import ConfigError


class State(enum.StrEnum):
    NOT_STARTED = "not started"
    IN_PROGRESS = "in progress"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(slots=True)
class Progress:
    state: State = State.NOT_STARTED
    mode: str = ""
    files: int = 0  # moved
    size: int = 0  # bytes of them
    scanned: int = 0
    failures: int = 0
    skipped: int = 0
    directories: int = 0
    started_ns: int = 0
    run_s: float = 0.0
    pid: int = 0
    commit: int = 0
    last_directory: list[str] | None = None  # components of its path
    reasons: dict[str, int] = field(default_factory=dict)  # why files were skipped, how many

    def skip(self, reason: str) -> None:
        self.skipped += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def is_done(self, path: tuple[bytes, ...]) -> bool:
        """Directories are visited in the order of their components."""
        if self.last_directory is None:
            return False
        return path <= tuple(os.fsencode(part) for part in self.last_directory)

    def save(self, path: Path) -> None:
        beside = path.with_name(path.name + ".new")
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


def load(path: Path) -> Progress:
    """A new one if there is no file."""
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = {name: raw[name] for name in Progress.__slots__ if name in raw}
        return Progress(**known | {"state": State(raw["state"])})
    except FileNotFoundError:
        return Progress()
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is no progress file of a rebalance: {error}.",
                          advice="Remove it to begin from the start.") from None  # fmt: skip
