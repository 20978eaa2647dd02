# SPDX-License-Identifier: Apache-2.0
"""A node has crashed as Primary: until the resync has its UUID the kernel's node lets no role change.

Generations are equal so long, and by rules 40 and 41 an Outdated disk could become the source (docs/protocol.md).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from repl.cli.client import Client
from repl.errors import WaitTimedOut
from tests.lib.interop import LINK_LOST, MIB, KernelLab, KernelPair, PairMaker

HANDLER = "before-resync-source"


def damage(path: Path) -> None:
    """In place of writes that one node alone has carried out."""
    with path.open("r+b") as file:
        file.seek(MIB // 2)
        file.write(os.urandom(65536))


def check_source(pair: KernelPair, good: str) -> None:
    pair.wait_in_sync()
    assert pair.ours.digest(pair.ours.size_bytes) == good
    pair.compare()


@pytest.mark.interop
def test_kernel_that_begins_a_resync_agrees_to_no_promotion_of_ours(tmp_path: Path) -> None:
    """Else, after the next loss of the link, it would take our Outdated disk for the better one: we were Primary."""
    shared = tmp_path / "shared"
    shared.mkdir()
    lab = KernelLab(shared=shared)
    try:
        pair = KernelPair(lab, tmp_path, survives=True)
        try:
            pair.kernel_primary()
            pair.kernel.write(0, 1024, flush=True)

            def while_it_is_off() -> None:
                pair.wait_ours(connection="WFConnection|Unconnected")
                pair.ours.call("disconnect")
                damage(pair.ours.disk)

            pair.kernel.power_cycle(while_it_is_off)
            pair.kernel.helper(f'[ "$1" != {HANDLER} ] || while [ ! -e /run/interop/go ]; do sleep 0.1; done')
            good = pair.kernel.digest(pair.ours.size_bytes)
            pair.ours.call("connect")
            pair.wait_ours(replication="WFSyncUUID", disk="Outdated")
            with Client(pair.ours.run_dir / "r0.sock", "r0") as client, pytest.raises(WaitTimedOut):
                client.call("primary", answer_timeout_s=3)
            assert pair.ours.status()["role"] == "Secondary"
            pair.kernel.guest.run("touch /run/interop/go")
            check_source(pair, good)
        finally:
            print(pair.report())
            pair.close()
    finally:
        lab.close()


@pytest.mark.interop
def test_kernel_that_waits_for_a_resync_is_not_promoted(make_pair: PairMaker, tmp_path: Path) -> None:
    """The same the other way round."""
    hold = tmp_path / "hold"
    script = f"while [ -e {hold} ]; do sleep 0.1; done"
    pair = make_pair(more=f'handlers {{ {HANDLER} "{script}"; }}', allowed=LINK_LOST)
    pair.our_primary()
    size = pair.ours.size_bytes
    client = pair.ours.open_client()
    client.write(0, os.urandom(MIB))
    hold.touch()
    pair.ours.kill()
    pair.wait_kernel(cstate="WFConnection|Unconnected")
    damage(pair.ours.disk)
    good = pair.ours.digest(size)
    pair.ours.start()
    pair.wait_kernel(disk="Outdated", cstate="WFSyncUUID")
    done = pair.kernel.guest.run(f"timeout -s KILL 3 drbdadm -c {pair.kernel.conf} primary r0", check=False)
    assert done.status != 0
    assert pair.kernel.state().role == "Secondary"
    hold.unlink()
    check_source(pair, good)
