# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.soak_files``: see ``soak.py``; ``make soak-files MINUTES=60`` calls it."""

from __future__ import annotations

import sys

from tests.soak import command
from tests.soak_files.plan import FAMILIES, SHAPES
from tests.soak_files.soak import Settings, SoakFiles


def main() -> int:
    parser = command.parser("tests.soak_files", __doc__, FAMILIES, pause="0.5-8")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="", help="of the volume; else the seed chooses")
    parser.add_argument("--pace", type=float, default=20, help="milliseconds a client waits between two operations")
    options = parser.parse_args()
    command.check(parser, options, FAMILIES)
    settings = Settings(
        seed=options.seed, seconds=options.minutes * 60, families=options.faults.split(","),
        pause_s=command.seconds(options.pause), audit_s=options.audit * 60, shape=options.shape,
        pace_s=options.pace / 1000,
    )  # fmt: skip
    again = (
        f"make soak-files SEED={options.seed} MINUTES={options.minutes:g} "
        f"SOAK='--faults {options.faults} --pause {options.pause} --audit {options.audit:g} --pace {options.pace:g} "
        f"--shape {settings.found_shape().name}'"
    )
    return command.run(SoakFiles(settings, lambda line: print(line, flush=True)), again)


if __name__ == "__main__":
    sys.exit(main())
