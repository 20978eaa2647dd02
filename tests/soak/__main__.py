# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.soak``: see ``soak.py``; ``make soak MINUTES=60`` calls it."""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import sys
import tarfile
from pathlib import Path

from tests.lib.tools import ROOT
from tests.soak.plan import FAMILIES
from tests.soak.soak import Settings, Soak


def main() -> int:
    options = _options()
    settings = Settings(
        seed=options.seed, seconds=options.minutes * 60, families=options.faults.split(","),
        pause_s=_range(options.pause), audit_s=options.audit * 60, protocol=options.protocol,
    )  # fmt: skip
    again = (
        f"make soak SEED={options.seed} MINUTES={options.minutes:g} "
        f"SOAK='--faults {options.faults} --pause {options.pause} --audit {options.audit:g} "
        f"--protocol {options.protocol}'"
    )
    print(f"seed {options.seed}, {options.minutes:g} minutes; the same schedule again: {again}", flush=True)
    soak = Soak(settings, lambda line: print(line, flush=True))
    try:
        result = soak.run()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            print("stopped")
            soak.cluster.close()
            return 130
        where = _keep(soak, repr(error) if not isinstance(error, AssertionError) else str(error), again)
        print(f"FAILED: {error}\n{where} has the journals, configurations and disks\nagain: {again}", flush=True)
        return 1
    with contextlib.redirect_stdout(None):  # the journals of a soak that went well
        soak.cluster.close()
    faults = ", ".join(f"{name} {count}" for name, count in sorted(result.faults.items()))
    print(f"{sum(result.faults.values())} faults survived ({faults})\n{result.audits} audits, {result.writes} writes, "
          f"{result.reads} reads checked, slowest answer {result.slowest_s:.1f} s, memory of a daemon at most "
          f"{result.rss_max_bytes >> 20} MiB; nothing lost, nothing different")  # fmt: skip
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1, 1_000_000))
    parser.add_argument("--faults", default=",".join(FAMILIES), help=f"families: {', '.join(FAMILIES)}")
    parser.add_argument("--pause", default="1-20", help="seconds between two faults")
    parser.add_argument("--audit", type=float, default=10, help="minutes between two audits")
    parser.add_argument("--protocol", choices=("B", "C"), default="C")
    options = parser.parse_args()
    try:
        _range(options.pause)
    except ValueError:
        parser.error(f"--pause takes seconds as 5 or 1-20, not {options.pause!r}")
    unknown = set(options.faults.split(",")) - set(FAMILIES)
    if unknown:
        parser.error(f"there are no faults of {', '.join(sorted(unknown))}; there is {', '.join(FAMILIES)}")
    return options


def _range(text: str) -> tuple[float, float]:
    first, _, last = text.partition("-")
    return float(first), float(last or first)


def _keep(soak: Soak, what: str, again: str) -> Path:
    """One archive with all that is there, made while both nodes are stopped."""
    folder = ROOT / "build/soak"
    folder.mkdir(parents=True, exist_ok=True)
    for node in soak.cluster.nodes.values():
        if node.process is not None:
            node.process.kill()
    report = soak.cluster.folder / "report.txt"
    report.write_text("\n".join([again, *soak.history, "", what, ""]))
    path = folder / f"{soak.settings.seed}.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(soak.cluster.folder, arcname=f"soak-{soak.settings.seed}", filter=_plain)
    shutil.rmtree(soak.cluster.folder, ignore_errors=True)
    return path


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return member if member.isfile() or member.isdir() else None


if __name__ == "__main__":
    sys.exit(main())
