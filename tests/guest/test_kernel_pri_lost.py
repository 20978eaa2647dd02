# SPDX-License-Identifier: Apache-2.0
"""A split brain that call-pri-lost-after-sb decides against a Primary whose device is open: nobody's data changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lib.interop import LINK_LOST, MIB, KernelPair, PairMaker

NET = "after-sb-0pri discard-least-changes; after-sb-1pri call-pri-lost-after-sb;"
ALLOWED = LINK_LOST + "|incompatible"
HANDLERS = "initial-split-brain", "pri-lost-after-sb", "split-brain"
PRIMARY_LOSES = 65536, MIB


def parted(make_pair: PairMaker, folder: Path, *, ours: int, kernels: int) -> KernelPair:
    """StandAlone; both have written so much alone and are Secondary.  Our handlers leave a file each."""
    handlers = "".join(f'{name} "touch {folder / name}"; ' for name in HANDLERS)
    pair = make_pair(net=NET, more=f"handlers {{ {handlers}}}", allowed=ALLOWED)
    pair.our_primary()
    pair.our_secondary()
    pair.wait_kernel(peer_role="Secondary")
    pair.ours.call("disconnect")
    pair.kernel.adm("disconnect")
    pair.ours.call("primary")
    with pair.ours.client() as client:
        client.write(0, os.urandom(ours))
        client.flush()
    pair.our_secondary()
    pair.kernel.adm("primary")
    pair.kernel.write(2048, kernels // 1024, flush=True)
    pair.kernel.adm("secondary")
    return pair


@pytest.mark.interop
def test_our_primary_with_a_client_keeps_its_data_and_says_why(make_pair: PairMaker, tmp_path: Path) -> None:
    less, more = PRIMARY_LOSES
    pair = parted(make_pair, tmp_path, ours=less, kernels=more)
    size = pair.ours.size_bytes
    pair.ours.call("primary")
    with pair.ours.client() as client:
        before = pair.ours.digest(size), pair.kernel.digest(size), client.read(0, less)
        pair.kernel.adm("connect")
        pair.ours.call("connect")
        pair.wait_stand_alone()
        status = pair.ours.status()
        assert (status["role"], status["reason_code"]) == ("Primary", "split-brain")
        assert "clients are connected" in status["reason"] and "discard-my-data" in status["advice"]
        pair.wait(lambda: all((tmp_path / name).exists() for name in HANDLERS), "the handlers")
        pair.wait_kernel(cstate="WFConnection|StandAlone", disk="UpToDate")
        assert (pair.ours.digest(size), pair.kernel.digest(size), client.read(0, less)) == before
        client.write(MIB, os.urandom(4096))
    assert "Began resync" not in pair.kernel.log().split("uuid_compare()=100")[-1]
    # Nobody uses it any more: it is demoted, and follows.
    good = pair.kernel.digest(size)
    pair.wait(lambda: pair.ours.status()["volumes"][0]["open"] == 0, "no NBD client")
    pair.kernel.adm("connect", check=False)
    pair.ours.call("connect")
    pair.wait_in_sync()
    assert pair.ours.status()["role"] == "Secondary"
    assert pair.ours.digest(size) == good
    pair.compare()


@pytest.mark.interop
def test_kernels_primary_that_is_in_use_keeps_its_data_and_we_say_why(make_pair: PairMaker, tmp_path: Path) -> None:
    less, more = PRIMARY_LOSES
    pair = parted(make_pair, tmp_path, ours=more, kernels=less)
    size = pair.ours.size_bytes
    pair.kernel.adm("primary")
    pair.kernel.guest.run(
        f"(setsid sleep 1000 <{pair.kernel.device} >/dev/null 2>&1 &) && fuser -s {pair.kernel.device}"
    )
    before = pair.ours.digest(size), pair.kernel.digest(size)
    pair.ours.call("connect")
    pair.kernel.adm("connect")
    pair.wait_kernel(cstate="StandAlone")
    pair.wait(lambda: pair.ours.status()["reason_code"] == "peer-refused", "the reason")
    assert "Primary" in pair.ours.status()["reason"]
    assert "pri-lost-after-sb" in pair.kernel.log()
    assert pair.kernel.state().role == "Primary" and pair.kernel.state().disk == "UpToDate"
    status = pair.ours.status()
    assert (status["role"], status["volumes"][0]["disk"]) == ("Secondary", "UpToDate")
    assert (pair.ours.digest(size), pair.kernel.digest(size)) == before
    pair.kernel.guest.run(
        f"fuser -ks -TERM {pair.kernel.device}; while fuser -s {pair.kernel.device}; do sleep 0.05; done"
    )
