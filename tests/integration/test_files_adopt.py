# SPDX-License-Identifier: Apache-2.0
"""A volume of GlusterFS, made by its own tools, is taken over with ``volume adopt``, used, and given back."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.integration.test_files_distribute import digest, fill
from tests.integration.test_files_volume import Host, host  # noqa: F401
from tests.lib.mounts import needs_fuse
from tests.lib.ports import free_port

pytestmark = [
    needs_fuse(),
    pytest.mark.skipif(not (shutil.which("glusterd") and shutil.which("unshare")), reason="needs glusterfs-server"),
]
GLUSTER = """
set -e
ip link set lo up
mkdir -p /run/gluster {folder}/glusterd
mount --bind {folder}/glusterd /var/lib/glusterd
mount -t tmpfs none /var/log/glusterfs
mount -t tmpfs none /run/gluster
glusterd -p {folder}/glusterd.pid
until gluster volume list >/dev/null 2>&1; do sleep 0.1; done
{script}
"""
CREATE = """
gluster --mode=script volume create v replica 2 {bricks} force
gluster --mode=script volume set v network.ping-timeout 11
gluster --mode=script volume start v
"""
MOUNT = """
mkdir -p {folder}/gluster
mount -t glusterfs localhost:/v {folder}/gluster
{work}
umount {folder}/gluster
gluster --mode=script volume stop v
"""


def gluster(folder: Path, script: str) -> None:
    """In namespaces of its own, so that nothing of it stays and nobody meets it."""
    text = GLUSTER.format(folder=folder, script=script)
    command = ["unshare", "-mnp", "--fork", "--kill-child", "--mount-proc", "bash", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "Operation not permitted" in done.stderr and "unshare" in done.stderr:
        pytest.skip("needs namespaces of its own")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.files_long
def test_gluster_volume_is_adopted_used_and_given_back(host: Host) -> None:  # noqa: F811
    folder, name = host.folder, socket.gethostname()
    tree, changed = folder / "tree", folder / "changed"
    tree.mkdir()
    fill(tree)
    os.removexattr(tree / "a/file0", "user.color")
    bricks = " ".join(f"{name}:{host.brick(n)}" for n in (1, 2, 3, 4))
    work = MOUNT.format(folder=folder, work=f"cp -a {tree}/. {folder}/gluster/")
    gluster(folder, CREATE.format(bricks=bricks) + work)

    assert "Volumes there: v" in host.refused("adopt", "w", "--from", str(folder / "glusterd"))
    host.do("adopt", "v", "--from", str(folder / "glusterd"), "--base-port", str(free_port()))
    info = host.do("info", "v")
    assert "Number of Bricks: 2 x 2 = 4" in info and "network.ping-timeout: 11" in info
    host.do("start", "v")
    host.mount(f"{name}:/v")
    assert digest(host.mount_point) == digest(tree)
    host.kill(2)
    (host.mount_point / "a/by us").write_bytes(b"while a brick was away")
    os.rename(host.mount_point / "c", host.mount_point / "renamed")
    (host.mount_point / "file3").write_bytes(b"changed")
    host.do("start", "v", "force")
    host.do("heal", "v", "wait")
    shutil.copytree(host.mount_point, changed, symlinks=True)
    subprocess.run(["umount", host.mount_point], check=True)
    host.do("stop", "v")

    back = folder / "back"
    read = MOUNT.format(folder=folder, work=f"cp -a {folder}/gluster/. {back}; echo more > {folder}/gluster/a/more")
    pending = "gluster volume heal v info | grep -c 'entries: 0' | grep -qx 4"
    gluster(folder, f"gluster --mode=script volume start v force\n{pending}\n{read}")
    assert digest(back) == digest(changed)
