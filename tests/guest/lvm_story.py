# SPDX-License-Identifier: Apache-2.0
"""Run inside a guest by test_lvm.py: two nodes, one of them on a volume of a real LVM.

    lvm_story.py snapshot thin|thick      handlers repl-snapshot around a resync
    lvm_story.py discard yes|no           discard-zeroes-if-aligned on a thin volume
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.lib import cluster as pair
from tests.lib.cluster import ALICE, BOB, MIB, Cluster
from tests.lib.tools import ROOT

CONF = """
devices { scan = ["/dev"] use_devicesfile = 0 types = [ "ubd", 16 ] obtain_device_list_from_udev = 0 }
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
global { event_activation = 0 use_lvmpolld = 0 }
"""
VOLUME = Path("/dev/vg/data")
SNAPSHOT = Path("/dev/vg/data-before-resync")
SIZE_MIB = 64
CHUNK = 65536


def lvm(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


def make_volume(kind: str) -> None:
    Path("/etc/lvm").mkdir(exist_ok=True)
    Path("/etc/lvm/lvm.conf").write_text(CONF)
    lvm("pvcreate", "-ff", "-y", "/dev/ubda")
    lvm("vgcreate", "vg", "/dev/ubda")
    if kind == "thick":
        lvm("lvcreate", "-n", "data", "-L", f"{SIZE_MIB}M", "vg")
        return
    lvm("lvcreate", "--type", "thin-pool", "-n", "pool", "-L", "120M", "-c", "64k", "vg")
    lvm("lvcreate", "-V", f"{SIZE_MIB}M", "--thinpool", "pool", "-n", "data", "vg")


def allocated() -> int:
    """Bytes of the thin volume that have space."""
    words = lvm("dmsetup", "status", "vg-data").split()
    return int(words[words.index("thin") + 1]) * 512


def snapshot(kind: str) -> None:
    make_volume(kind)
    run = f"env PYTHONPATH={ROOT} {sys.executable} -m repl.handlers.snapshot"
    before, after = f'"{run} before --required --thick-percent 50"', f'"{run} after"'
    for keep in ("", " --keep"):
        kept = after[:-1] + f'{keep}"'
        handlers = {"before-resync-target": before, "after-resync-target": kept}
        with Cluster(size_mib=SIZE_MIB, images={BOB: VOLUME}, handlers=handlers) as cluster:
            cluster.start_pair()
            client = cluster.client(ALICE)
            old, new = os.urandom(MIB), os.urandom(MIB)
            client.write(8 * MIB, old)
            client.flush()
            cluster.stop(BOB)
            client.write(8 * MIB, new)
            client.flush()
            cluster.start(BOB)
            cluster.wait_synced(120)
            log = cluster.log(BOB)
            assert f"keeps what {VOLUME} holds now" in log, log
            end = "is kept" if keep else "is gone"
            cluster.wait("the handler's end", partial(log_has, cluster, end), 120)
        there = subprocess.run(("lvs", "vg/data-before-resync"), capture_output=True, check=False).returncode == 0
        assert there == bool(keep)
    if kind == "thin":  # not activated unless somebody asks for it
        lvm("lvchange", "-ay", "-K", "vg/data-before-resync")
    with SNAPSHOT.open("rb") as file:
        file.seek(8 * MIB)
        assert file.read(MIB) == old, "the snapshot holds what was there before the resync"
    with VOLUME.open("rb") as file:
        file.seek(8 * MIB)
        assert file.read(MIB) == new


def log_has(cluster: Cluster, text: str) -> bool:
    return text in cluster.log(BOB)


def discard(value: str) -> None:
    make_volume("thin")
    with Cluster(size_mib=SIZE_MIB, images={BOB: VOLUME}, disk={"discard-zeroes-if-aligned": value}) as cluster:
        cluster.start_pair()
        client = cluster.client(ALICE)
        client.write(0, os.urandom(4 * MIB))
        client.write(4 * MIB, os.urandom(4 * MIB))
        client.flush()
        full = allocated()
        client.trim(512, 6 * MIB)  # neither its head nor its tail are whole chunks
        client.zero(20 * MIB, MIB)
        client.flush()
        freed = full - allocated()
        if value == "yes":
            assert freed == 6 * MIB - CHUNK - MIB, f"{freed} bytes given back"
        else:
            assert freed == -MIB, f"{freed} bytes given back"
        cluster.stop(ALICE)
        cluster.stop(BOB)
        alice, bob = (cluster.read_image(name) for name in (ALICE, BOB))
        assert bob(512, 6 * MIB) == bytes(6 * MIB)
        assert alice(0, 32 * MIB) == bob(0, 32 * MIB)


if __name__ == "__main__":
    pair.START_TIMEOUT_S = pair.STOP_TIMEOUT_S = pair.SYNC_TIMEOUT_S = 120.0  # a guest has one slow CPU
    {"snapshot": snapshot, "discard": discard}[sys.argv[1]](sys.argv[2])
