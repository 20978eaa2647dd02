# SPDX-License-Identifier: Apache-2.0
"""Reads what glusterd keeps of a volume, to take the volume over.

Input: glusterd's directory (``vols/NAME/info``: key=value lines).  Output: ``GlusterVolume``.  Nothing is changed.
Errors: ``ConfigError``: no such volume, a kind of volume that is not there (disperse, stripe, thin arbiter), bricks
whose numbers are not in order.
Facts: files of volumes that GlusterFS 10.3's own tools made (replica, arbiter, distributed; after replace-brick).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from repl.errors import ConfigError, UsageError
from repl.files.volume import settings
from repl.files.volume.model import Place

GLUSTERD = Path("/var/lib/glusterd")
# Of glusterd itself; everything else with a dot in it is an option.
_NOT_OPTIONS = ("snap-", "brick-")


@dataclass(slots=True)
class GlusterVolume:
    id: str
    replica: int
    has_arbiter: bool
    places: list[Place]
    options: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # options that are not taken over: why


def read_gluster(folder: Path, name: str) -> GlusterVolume:
    path = folder / "vols" / name / "info"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        known = sorted(p.parent.name for p in folder.glob("vols/*/info"))
        advice = f"Volumes there: {', '.join(known)}." if known else "Name glusterd's directory with --from."
        raise ConfigError(f"{path}: {error.strerror}.", advice=advice) from None
    raw = dict(line.partition("=")[::2] for line in lines if "=" in line)
    try:
        return _read(raw, path)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not as glusterd writes it: {error}.") from None


def _read(raw: dict[str, str], path: Path) -> GlusterVolume:
    for key in ("disperse_count", "stripe_count", "thin_arbiter_count"):
        if int(raw.get(key, "0")) > (1 if key == "stripe_count" else 0):
            raise ConfigError(f"{path}: {key}={raw[key]}: volumes of that kind are not there.")
    count, replica = int(raw["count"]), max(1, int(raw.get("replica_count", "1")))
    places = [_place(path, raw[f"brick-{number}"], number) for number in range(count)]
    found = GlusterVolume(raw["volume-id"], replica, int(raw.get("arbiter_count", "0")) > 0, places)
    for key, value in raw.items():
        if "." in key and not key.startswith(_NOT_OPTIONS):
            _take_option(found, key, value)
    return found


def _place(path: Path, text: str, number: int) -> Place:
    """``HOST:-data-brick``: which dashes were slashes, the file of the brick says."""
    host = text.rpartition(":-")[0]
    beside = path.parent / "bricks" / text
    try:
        brick = dict(line.partition("=")[::2] for line in beside.read_text(encoding="utf-8").splitlines())
    except OSError as error:
        raise ConfigError(f"{beside}: {error.strerror}.") from None
    # The number in the brick's name is its key in the counters of the others: it must be the one that we give it.
    given = brick.get("brick-id", "").rpartition("-client-")[2]
    if given and given != str(number):
        raise ConfigError(
            f"{path}: brick {number} ({host}:{brick['path']}) is called {brick['brick-id']} in the counters on disk.",
            advice="Heal the volume with GlusterFS first, then write the volfiles by hand with afr-pending-xattr.",
        )
    return Place(host, brick["path"])


def _take_option(found: GlusterVolume, key: str, value: str) -> None:
    setting = settings.find(key)
    if setting is None:
        found.left_out[key] = "there is no such option here"
    elif not setting.has_effect:
        found.left_out[key] = "it has no effect here"
    else:
        try:
            settings.check(key, value)
        except UsageError as error:
            found.left_out[key] = error.message
        else:
            found.options[key] = value
