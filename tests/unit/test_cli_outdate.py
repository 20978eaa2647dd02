# SPDX-License-Identifier: Apache-2.0
"""outdate of a resource that is down, and what the status says about suspended I/O."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from repl import config
from repl.cli import status_json, status_text
from repl.config import resource_for_node
from repl.daemon.disks import open_disk
from repl.drbd.superblock import MdFlag
from repl.node.disk import find_superblock
from tests.lib.tools import find_tool, require
from tests.unit.test_cli_commands import Box, box
from tests.unit.test_cli_render import SYNCING, status

__all__ = ["box"]


def set_flags(box: Box, flags: MdFlag) -> None:
    """As a node that was UpToDate, or Inconsistent, leaves the disk."""
    view = resource_for_node(config.load(box.config), "web", "alpha").volumes[0]
    disk = open_disk(view)
    try:
        found, layout = find_superblock(disk.place)
        changed = replace(found, flags=flags | MdFlag.AL_CLEAN)
        disk.place.md.pwrite(layout.superblock_byte, changed.serialise())
    finally:
        disk.close()


def test_outdate_of_a_resource_that_is_down_lasts(box: Box) -> None:
    assert box.run("create-md", "web")[0] == 0
    set_flags(box, MdFlag.CONSISTENT | MdFlag.WAS_UP_TO_DATE)
    assert box.run("dstate", "web")[1].startswith("Consistent/")
    assert box.run("outdate", "web")[0] == 0
    assert box.run("dstate", "web")[1].startswith("Outdated/")
    require("drbdmeta")
    said = subprocess.run([find_tool("drbdmeta") or "", "--force", "0", "v08", str(box.folder / "web.img"), "internal",
                           "dstate"], capture_output=True, text=True)  # fmt: skip
    assert said.stdout.strip() == "Outdated", said.stderr


def test_outdate_of_an_inconsistent_disk_is_refused(box: Box) -> None:
    assert box.run("create-md", "web")[0] == 0
    status, _, err = box.run("outdate", "web")
    assert status == 5 and "lower than Outdated" in err


def test_outdate_without_metadata_says_so(box: Box) -> None:
    assert box.run("outdate", "web")[0] == 20


@pytest.mark.parametrize("reasons", [["fencing"], ["user", "no-data"]])
def test_status_names_the_reasons_of_a_suspension(reasons: list[str]) -> None:
    handlers = [{"handler": "fence-peer", "volume": -1, "running_s": 12.0}]
    shown = status(SYNCING, suspended=True, suspended_by=reasons, suspended_advice="What to do.", handlers=handlers)
    text = status_text.render(shown)
    assert f"suspended:{','.join(reasons)}" in text.splitlines()[0]
    assert "suspended: What to do." in text and "handler:fence-peer running-for:12s" in text
    words = status_json.resource_object(shown, None)
    assert [name for name in ("user", "no-data", "fencing") if words[f"suspended-{name}"]] == reasons


def test_fencing_is_the_strictest_of_the_volumes(tmp_path: Path) -> None:
    path = tmp_path / "x.res"
    path.write_text("""
resource x {
    disk { fencing resource-only; }
    volume 0 { device minor 3; disk /disk/a; meta-disk internal; disk { fencing resource-and-stonith; } }
    volume 1 { device minor 4; disk /disk/b; meta-disk internal; }
    on alpha { address 192.0.2.1:7788; }
    on bravo { address 192.0.2.2:7788; }
}
""")
    read = config.load(path)
    assert resource_for_node(read, "x", "alpha").net.fencing == "resource-and-stonith" and not read.warnings
