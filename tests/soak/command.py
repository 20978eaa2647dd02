# SPDX-License-Identifier: Apache-2.0
"""What the commands of all soaks share: options, the line that repeats a schedule, one archive of what failed."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.lib.tools import ROOT
from tests.soak.row import Row

Say = Callable[[str], None]


def parser(module: str, about: str | None, families: Sequence[str], *, pause: str) -> argparse.ArgumentParser:
    """``pause``: seconds between two faults, as 1-20."""
    found = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    found.add_argument("--minutes", type=float, default=60)
    found.add_argument("--seed", type=int, default=random.randrange(1, 1_000_000))
    found.add_argument("--faults", default=",".join(families), help=f"families: {', '.join(families)}")
    found.add_argument("--pause", default=pause, help="seconds between two faults")
    found.add_argument("--audit", type=float, default=10, help="minutes between two audits")
    return found


def check(found: argparse.ArgumentParser, options: argparse.Namespace, families: Sequence[str]) -> None:
    """Ends the program if they cannot be."""
    try:
        seconds(options.pause)
    except ValueError:
        found.error(f"--pause takes seconds as 5 or 1-20, not {options.pause!r}")
    unknown = set(options.faults.split(",")) - set(families)
    if unknown:
        found.error(f"there are no faults of {', '.join(sorted(unknown))}; there is {', '.join(families)}")


def seconds(text: str) -> tuple[float, float]:
    first, _, last = text.partition("-")
    return float(first), float(last or first)


def run(soak: Row, again: str) -> int:
    """``again``: what repeats the schedule.  The exit status."""
    timing = soak.timing
    print(f"seed {timing.seed}, {timing.seconds / 60:g} minutes; the same schedule again: {again}", flush=True)
    try:
        result = soak.run()
        with contextlib.redirect_stdout(None):  # the journals of a soak that went well
            soak.close()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            print("stopped")
            soak.kill()
            shutil.rmtree(soak.folder, ignore_errors=True)
            return 130
        where = _keep(soak, repr(error) if not isinstance(error, AssertionError) else str(error), again)
        print(f"FAILED: {error}\n{where} has the journals, configurations and disks\nagain: {again}", flush=True)
        return 1
    shutil.rmtree(soak.folder, ignore_errors=True)
    faults = ", ".join(f"{name} {count}" for name, count in sorted(result.faults.items()))
    print(f"{sum(result.faults.values())} faults survived ({faults})\n{result.audits} audits, {result.writes} writes, "
          f"{result.reads} reads checked, slowest answer {result.slowest_s:.1f} s, memory of a daemon at most "
          f"{result.rss_max_bytes >> 20} MiB; nothing lost, nothing different")  # fmt: skip
    return 0


def _keep(soak: Row, what: str, again: str) -> Path:
    """One archive with all that is there, made when nothing runs any more."""
    folder = ROOT / "build/soak"
    folder.mkdir(parents=True, exist_ok=True)
    remarks = soak.remarks()
    soak.kill()
    report = soak.folder / "report.txt"
    report.write_text("\n".join([again, *soak.history, "", what, "", *remarks, ""]))
    path = folder / f"{soak.timing.seed}.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1, format=tarfile.PAX_FORMAT) as archive:
        for one in sorted(soak.folder.rglob("*")):
            _add(archive, one, f"soak-{soak.timing.seed}/{one.relative_to(soak.folder)}")
    shutil.rmtree(soak.folder, ignore_errors=True)
    return path


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """With the extended attributes, as tar --xattrs keeps them: on bricks they are half of the truth."""
    if not (path.is_file() or path.is_dir() or path.is_symlink()):
        return
    member = archive.gettarinfo(path, name)
    with contextlib.suppress(OSError):
        for key in os.listxattr(path, follow_symlinks=False):
            value = os.getxattr(path, key, follow_symlinks=False)
            member.pax_headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
    if member.isreg():
        with path.open("rb") as data:
            archive.addfile(member, data)
    else:
        archive.addfile(member)
