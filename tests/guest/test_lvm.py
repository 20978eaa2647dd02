# SPDX-License-Identifier: Apache-2.0
"""A real LVM in a guest: repl-snapshot around a resync, trims of thin volumes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.lib.guest import Guest
from tests.lib.tools import ROOT, require, require_engine

MIB = 1 << 20


@pytest.mark.interop
@pytest.mark.parametrize("story", ["snapshot thin", "snapshot thick", "discard yes", "discard no"])
def test_lvm_volume_as_the_disk_of_a_node(story: str, tmp_path: Path) -> None:
    require("lvcreate", "thin_check")
    require_engine()
    image = tmp_path / "pv.img"
    with image.open("wb") as file:
        file.truncate(256 * MIB)
    with Guest(modules=["dm-mod", "dm-snapshot", "dm-thin-pool"], disks=[image]) as guest:
        words = [f"PYTHONPATH={shlex.quote(str(ROOT))}", shlex.quote(sys.executable), "-m", "tests.guest.lvm_story"]
        guest.run(f"ip link set lo up; cd {shlex.quote(str(ROOT))} && {' '.join(words)} {story}", timeout=400)
