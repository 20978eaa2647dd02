# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.soak``: see ``soak.py``; ``make soak MINUTES=60`` calls it."""

from __future__ import annotations

import sys

from tests.soak import command
from tests.soak.plan import FAMILIES
from tests.soak.soak import Settings, Soak


def main() -> int:
    parser = command.parser("tests.soak", __doc__, FAMILIES, pause="1-20")
    parser.add_argument("--protocol", choices=("B", "C"), default="C")
    options = parser.parse_args()
    command.check(parser, options, FAMILIES)
    settings = Settings(
        seed=options.seed, seconds=options.minutes * 60, families=options.faults.split(","),
        pause_s=command.seconds(options.pause), audit_s=options.audit * 60, protocol=options.protocol,
    )  # fmt: skip
    again = (
        f"make soak SEED={options.seed} MINUTES={options.minutes:g} "
        f"SOAK='--faults {options.faults} --pause {options.pause} --audit {options.audit:g} "
        f"--protocol {options.protocol}'"
    )
    return command.run(Soak(settings, lambda line: print(line, flush=True)), again)


if __name__ == "__main__":
    sys.exit(main())
