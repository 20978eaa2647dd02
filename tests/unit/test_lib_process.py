# SPDX-License-Identifier: Apache-2.0
"""A process that a test freezes stands when the call returns, and goes on after it."""

from __future__ import annotations

import functools
import sys

from tests.lib.process import Processes

# Four threads that count in a file each.
COUNTERS = """
import os, sys, threading
def count(path):
    with open(path, "r+b", 0) as file:
        number = 0
        while True:
            number += 1
            file.seek(0)
            file.write(b"%20d" % number)
for path in sys.argv[1:]:
    threading.Thread(target=count, args=(path,)).start()
"""


def test_process_that_is_frozen_does_nothing_until_it_is_thawed(processes: Processes) -> None:
    files = [processes.folder / f"counter{n}" for n in range(4)]
    for file in files:
        file.write_bytes(b"%20d" % 0)
    process = processes.start([sys.executable, "-c", COUNTERS, *files])

    def numbers() -> list[int]:
        return [int(file.read_bytes()) for file in files]

    def all_went_on(before: list[int]) -> bool:
        return all(now > then for now, then in zip(numbers(), before, strict=True))

    for _ in range(5):
        process.wait_until(functools.partial(all_went_on, numbers()), 30, "counting")
        process.freeze()
        frozen = numbers()
        assert [numbers() for _ in range(200)] == [frozen] * 200
        process.thaw()
