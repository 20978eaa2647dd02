# SPDX-License-Identifier: Apache-2.0
"""What an administrator, a peer, a disk or a stranger on a port can do wrong.

Each time: a message that says what it is, the right exit status, and whoever has nothing to do with it is served on.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd.client import NbdClient, NbdRequestError
from repl.drbd.packets import Packet, encode
from repl.errors import ReplError
from tests.integration.conftest import MakeCluster
from tests.lib.cluster import ALICE, BOB, MIB, NODES, Cluster, at_most
from tests.lib.load import TaggedRegion, writing
from tests.lib.ports import free_port
from tests.lib.process import Processes
from tests.lib.tools import find_tool, lacking, require, require_root
from tests.lib.wait import wait_for

LOOPBACK = "127.0.0.1"
RESET = struct.pack("ii", 1, 0)


def region(blocks: int = 256) -> TaggedRegion:
    return TaggedRegion(run=99, writer=1, offset_sectors=0, blocks=blocks)


def serves(cluster: Cluster, name: str = ALICE) -> None:
    """A client gets its answers from this node."""
    with NbdClient(cluster.url(name)) as client:
        client.write(0, b"served" + bytes(506))
        assert client.read(0, 512) == b"served" + bytes(506)


def wait_standalone(cluster: Cluster, pattern: str, *names: str) -> None:
    """The nodes have given up; the reason that they show matches, and replctl prints it."""
    for name in names or NODES:
        cluster.wait_connection(name, "StandAlone")
        reason = cluster.status(name)["reason"]
        assert re.search(pattern, reason), f"{name}: {reason}"
        assert re.search(pattern, cluster.ctl(name, "status", "r0").stdout.replace("\n", " "))


# --- strangers on the replication port ---


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"\xff" * 100_000,
        struct.pack(">IHH", 0x83740267, 0x1234, 4) + b"data",
        encode(Packet.INITIAL_DATA, b"", version=80) + b"\0" * 4096,
        encode(Packet.INITIAL_META, b"", version=80) + b"\xa5" * 4096,
        encode(Packet.INITIAL_DATA, b"", version=80) + struct.pack(">IHH", 0x83740267, 0xFFFE, 0xFFFF),
        b"",
    ],
    ids=["http", "ones", "unknown-packet", "data-zeroes", "meta-garbage", "data-huge-length", "silence"],
)
def test_stranger_on_the_replication_port_is_dropped_and_the_peer_connects(
    make_cluster: MakeCluster, data: bytes
) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.start_single()
    with socket.create_connection((LOOPBACK, cluster.nodes[ALICE].port), timeout=10) as stranger:
        with contextlib.suppress(OSError):
            stranger.sendall(data)
        serves(cluster)
        cluster.create_metadata(BOB)
        cluster.start(BOB)
        cluster.wait_synced()
        stranger.settimeout(10)
        with contextlib.suppress(ConnectionError):
            while stranger.recv(65536):
                pass
    serves(cluster)


def test_crowd_of_strangers_on_the_replication_port_only_delays_the_peer(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.start_single()
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            sock = stack.enter_context(socket.create_connection((LOOPBACK, cluster.nodes[ALICE].port), timeout=10))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        serves(cluster)
        cluster.create_metadata(BOB)
        cluster.start(BOB)
        cluster.wait_synced()


@pytest.mark.parametrize("first", [b"", encode(Packet.INITIAL_DATA, b"", version=80)])
def test_stranger_in_the_place_of_the_peer_is_left_and_the_peer_found_later(
    make_cluster: MakeCluster, first: bytes
) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.expect("did not answer with P_CONNECTION_FEATURES|broke the protocol")
    cluster.create_metadata()
    with socket.create_server((LOOPBACK, cluster.nodes[BOB].port)) as impostor:
        impostor.settimeout(10)
        cluster.start(ALICE)
        cluster.call(ALICE, "primary", force=True)
        for _ in range(2):
            sock, _ = impostor.accept()
            with sock, contextlib.suppress(OSError):
                sock.sendall(first + b"I am not a DRBD node" * 100)
                sock.settimeout(5)
                while sock.recv(65536):
                    pass
        serves(cluster)
    if cluster.status(ALICE)["connection"] == "StandAlone":
        cluster.call(ALICE, "connect")
    cluster.start(BOB)
    cluster.wait_synced()


# --- peers that do not fit ---


@pytest.mark.parametrize(
    ("alice", "bob"),
    [
        ({"cram-hmac-alg": "sha1", "shared-secret": "swordfish"}, {"cram-hmac-alg": "sha1", "shared-secret": "two"}),
        ({"cram-hmac-alg": "sha256", "shared-secret": "swordfish"}, {}),
    ],
    ids=["another-secret", "no-secret"],
)
def test_peer_that_cannot_authenticate_is_refused_and_both_say_so(
    make_cluster: MakeCluster, alice: dict[str, str], bob: dict[str, str]
) -> None:
    cluster = make_cluster(size_mib=16, node_net={ALICE: alice, BOB: bob})
    cluster.expect("[Aa]uthenticat")
    cluster.start_single()
    cluster.create_metadata(BOB)
    cluster.start(BOB)
    wait_standalone(cluster, "[Aa]uthenticat")
    serves(cluster)
    assert "swordfish" not in cluster.log(ALICE)
    assert cluster.volume(BOB)["disk"] == "Inconsistent"


def test_peers_with_the_same_secret_connect(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16, net={"cram-hmac-alg": "sha256", "shared-secret": "the-same"})
    cluster.start_pair()
    assert "the-same" not in cluster.log(ALICE)


@pytest.mark.parametrize(
    ("option", "alice", "bob"),
    [("protocol", "C", "A"), ("after-sb-0pri", "disconnect", "discard-younger-primary")],
)
def test_peer_with_another_setting_is_refused_and_both_name_it(
    make_cluster: MakeCluster, option: str, alice: str, bob: str
) -> None:
    cluster = make_cluster(size_mib=16, node_net={ALICE: {option: alice}, BOB: {option: bob}})
    cluster.expect("Incompatible settings")
    cluster.start_single()
    cluster.create_metadata(BOB)
    cluster.start(BOB)
    wait_standalone(cluster, f"Incompatible settings: {option}")
    serves(cluster)


def test_smaller_disk_of_a_new_peer_is_refused_while_the_larger_one_is_in_use(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(sizes_mib={ALICE: 32, BOB: 16})
    cluster.expect("too small")
    cluster.start_single()
    cluster.create_metadata(BOB)
    cluster.start(BOB)
    wait_standalone(cluster, "too small", ALICE)
    serves(cluster)
    assert cluster.size_bytes() > 30 * MIB


def test_two_fresh_disks_of_different_size_agree_on_the_smaller(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(sizes_mib={ALICE: 32, BOB: 16})
    cluster.start_pair()
    assert cluster.size_bytes(ALICE) == cluster.size_bytes(BOB) < 16 * MIB
    cluster.call(ALICE, "primary")
    with NbdClient(cluster.url(ALICE)) as client:
        assert client.size_bytes == cluster.size_bytes()
        client.write(client.size_bytes - 4096, b"e" * 4096)
    cluster.wait_synced()
    cluster.compare_disks()


def test_disks_with_histories_of_their_own_are_never_joined(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.expect("[Uu]nrelated|Split-Brain")
    for name in NODES:
        cluster.create_metadata(name)
        cluster.start(name)
        cluster.call(name, "disconnect")
        cluster.call(name, "primary", force=True)
        with NbdClient(cluster.url(name)) as client:
            client.write(0, name.encode().ljust(512, b"\0"))
    cluster.call(BOB, "secondary")
    for name in NODES:
        cluster.call(name, "connect")
    wait_standalone(cluster, "[Uu]nrelated|Split-Brain")
    for name in NODES:
        assert cluster.read_image(name)(0, 5).rstrip(b"\0") == name.encode()


# --- configuration ---


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("resource r0 {\n  net { protocol C; }\n  on alice {\n", 10, r":\d+: "),
        ("resource r0 {\n  net { protocl C; }\n}\n", 10, r"(?s)alice.res:2: .*protocl.*Did you mean 'protocol'"),
        ("resource r0 { net { timeout 100000; } }\n", 10, "timeout"),
        ("", 1, "r0"),
        ("\0\0\0", 10, "alice.res"),
    ],
    ids=["unfinished", "misspelt", "range", "empty", "binary"],
)
def test_wrong_configuration_is_refused_with_its_place(
    make_cluster: MakeCluster, text: str, status: int, message: str
) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.nodes[ALICE].config.write_text(text)
    done = cluster.ctl(ALICE, "up", "r0", status=status)
    assert re.search(message, done.stderr), done.stderr
    process = cluster.spawn(ALICE)
    assert process.wait_exit() == status
    assert re.search(message, process.log())


def test_configuration_that_does_not_exist_is_named(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.nodes[ALICE].config.unlink()
    done = cluster.ctl(ALICE, "up", "r0", status=10)
    assert "alice.res" in done.stderr


def test_node_that_is_not_in_the_configuration_is_told_which_there_are(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    done = cluster.ctl(ALICE, "--node", "carol", "up", "r0", status=None)
    assert done.returncode in (1, 10)
    assert "carol" in done.stderr and "alice" in done.stderr


def test_commands_for_a_resource_that_is_down_say_how_to_start_it(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    for verb in ("primary", "secondary", "connect", "wait-connect", "status"):
        done = cluster.ctl(ALICE, verb, "r0", status=10)
        assert "replctl up r0" in done.stderr, f"{verb}: {done.stderr}"
    done = cluster.ctl(ALICE, "primary", "r1", status=1)
    assert "r1" in done.stderr
    cluster.ctl(ALICE, "down", "r0")


# --- disks ---


def refused_up(cluster: Cluster, *patterns: str) -> None:
    """``replctl up`` says why and leaves nothing running."""
    done = cluster.ctl(ALICE, "up", "r0", status=1)
    for pattern in patterns:
        assert re.search(pattern, done.stderr), done.stderr
    cluster.ctl(ALICE, "status", "r0", status=10)


def test_missing_disk_is_named(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.create_metadata(ALICE)
    hidden = cluster.folder / "hidden"
    cluster.nodes[ALICE].image.rename(hidden)
    refused_up(cluster, "alice.img.*does not exist")
    hidden.rename(cluster.nodes[ALICE].image)
    cluster.ctl(ALICE, "up", "r0")


def test_missing_disk_ends_a_daemon_started_by_a_service_manager(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.expect("cannot be brought up")
    cluster.nodes[ALICE].image.unlink()
    process = cluster.spawn(ALICE, "--up")
    assert process.wait_exit() == 1
    assert "does not exist" in process.log()


def test_disk_without_metadata_is_refused_with_the_way_out(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    refused_up(cluster, "create-md")


def test_disk_that_has_shrunk_is_refused(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=32, is_flexible=True)
    cluster.start_single()
    assert cluster.stop(ALICE) == 0
    os.truncate(cluster.nodes[ALICE].image, 16 * MIB)
    refused_up(cluster, "65536 sectors, only 32768")


def test_tiny_disk_is_refused(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=1)
    os.truncate(cluster.nodes[ALICE].image, 16384)
    done = cluster.ctl(ALICE, "create-md", "r0", status=20)
    assert re.search("16384 bytes, 1048576 are needed", done.stderr), done.stderr


def test_directory_instead_of_a_disk_is_refused(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(images={ALICE: tmp_path})
    refused_up(cluster, "neither a block device nor a regular file")


def test_disk_of_another_running_resource_is_refused_with_its_pid(make_cluster: MakeCluster) -> None:
    first = make_cluster(size_mib=16)
    first.start_single()
    process = first.nodes[ALICE].process
    assert process is not None
    second = make_cluster(images={ALICE: first.nodes[ALICE].image})
    refused_up(second, f"in use by .*repld.*pid {process.pid}", r"\(114\)")
    done = second.ctl(ALICE, "create-md", "--force", "r0", status=10)
    assert "in use" in done.stderr
    serves(first)


def test_second_daemon_for_the_same_resource_is_refused(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.start_single()
    first, cluster.nodes[ALICE].process = cluster.nodes[ALICE].process, None
    assert first is not None
    try:
        second = cluster.spawn(ALICE)
        assert second.wait_exit() == 10
        assert f"already running, pid {first.pid}" in second.log()
    finally:
        cluster.nodes[ALICE].process = first
    serves(cluster)


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    require_root()
    target = tmp_path / "small"
    target.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", target], capture_output=True, text=True)
    if done.returncode:
        lacking(f"mount ({done.stderr.strip()})")
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", target], check=True)


def test_read_only_disk_is_refused(make_cluster: MakeCluster, small_tmpfs: Path) -> None:
    image = small_tmpfs / "alice.img"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    cluster = make_cluster(images={ALICE: image})
    cluster.create_metadata(ALICE)
    subprocess.run(["mount", "-o", "remount,ro", small_tmpfs], check=True)
    refused_up(cluster, "read-only")
    subprocess.run(["mount", "-o", "remount,rw", small_tmpfs], check=True)
    cluster.ctl(ALICE, "up", "r0")
    cluster.ctl(ALICE, "down", "r0")


def test_full_disk_under_a_sparse_file_detaches_and_the_peer_has_every_write(
    make_cluster: MakeCluster, small_tmpfs: Path
) -> None:
    image = small_tmpfs / "alice.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    cluster = make_cluster(size_mib=64, images={ALICE: image})
    cluster.expect("No space left|disk")
    cluster.start_pair()
    cluster.call(ALICE, "primary")
    with NbdClient(cluster.url(ALICE)) as client:
        for number in range(40):
            client.write(number * MIB, bytes([number + 1]) * MIB)
        assert cluster.volume(ALICE)["disk"] in ("Failed", "Diskless")
        for number in range(40):
            assert client.read(number * MIB, MIB) == bytes([number + 1]) * MIB, number
    read = cluster.read_image(BOB)
    for number in range(40):
        assert read(number * MIB, MIB) == bytes([number + 1]) * MIB, number
    assert cluster.ctl(ALICE, "dstate", "r0").stdout == "Diskless/UpToDate\n"


def test_full_disk_of_a_node_alone_gives_its_client_an_error_not_a_hang(
    make_cluster: MakeCluster, small_tmpfs: Path
) -> None:
    image = small_tmpfs / "alice.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    cluster = make_cluster(images={ALICE: image})
    cluster.expect("No space left|disk")
    cluster.start_single()
    with NbdClient(cluster.url(ALICE)) as client, pytest.raises(NbdRequestError):
        for number in range(40):
            client.write(number * MIB, b"f" * MIB)
    assert cluster.status(ALICE)["node"] == ALICE


# --- ports and signals ---


def test_replication_port_that_is_taken_is_named_and_used_when_it_is_free(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.expect("another program uses this port")
    cluster.create_metadata()
    with socket.create_server((LOOPBACK, cluster.nodes[ALICE].port)):
        cluster.start(ALICE)
        cluster.wait("the reason", lambda: "another program uses this port" in cluster.log(ALICE))
        cluster.call(ALICE, "primary", force=True)
        serves(cluster)
    cluster.start(BOB)
    cluster.wait_synced()


def test_nbd_port_that_is_taken_ends_the_start_with_a_message(make_cluster: MakeCluster) -> None:
    port = free_port()
    cluster = make_cluster(size_mib=16, nbd=f"listen {LOOPBACK}:{port};")
    cluster.create_metadata(ALICE)
    with socket.create_server((LOOPBACK, port)):
        done = cluster.ctl(ALICE, "up", "r0", status=1)
        assert str(port) in done.stderr, done.stderr
    cluster.ctl(ALICE, "up", "r0")
    cluster.ctl(ALICE, "primary", "--force", "r0")
    with NbdClient(f"nbd://{LOOPBACK}:{port}/r0/0") as client:
        assert client.read(0, 512) == bytes(512)


@pytest.mark.parametrize("name", NODES)
def test_sigterm_in_a_resync_ends_in_order_and_the_resync_goes_on_later(make_cluster: MakeCluster, name: str) -> None:
    cluster = make_cluster(size_mib=32, disk={"c-plan-ahead": "0", "resync-rate": "10M"})
    with cluster.nodes[ALICE].image.open("r+b") as image:
        image.write(os.urandom(30 * MIB))  # holes would be there at once
    cluster.start_pair(is_synced=False)
    cluster.call(ALICE, "primary", force=True)
    total = cluster.size_bytes()
    other = BOB if name == ALICE else ALICE
    cluster.wait("a part", lambda: cluster.volume(other)["out_of_sync_bytes"] < total - 6 * MIB)
    with at_most(10, "going down"):
        assert cluster.stop(name) == 0
    left = cluster.volume(other)["out_of_sync_bytes"]
    assert 0 < left < total
    cluster.start(name)
    cluster.wait_synced()
    assert cluster.resynced_bytes(other) <= left + 4 * MIB
    cluster.compare_disks()


def test_garbage_on_the_control_socket_ends_that_client_only(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.start_single()
    path = str(cluster.nodes[ALICE].run_dir.control)
    for data in (b"\xff" * 65536, b"\0\0\0\0", b"\0\0\0\x05hello", b"\x7f\xff\xff\xff" + b"x" * 100_000):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(path)
            with contextlib.suppress(OSError):
                sock.sendall(data)
                while sock.recv(65536):
                    if cluster.status(ALICE)["role"] != "Primary":
                        raise AssertionError("it is gone")
        assert cluster.status(ALICE)["role"] == "Primary"
    serves(cluster)


@pytest.mark.parametrize("verb", ["nbd-open", "no-such-verb", ""])
def test_verb_that_does_not_exist_is_refused(make_cluster: MakeCluster, verb: str) -> None:
    cluster = make_cluster(size_mib=16)
    cluster.start_single()
    with pytest.raises(ReplError):
        cluster.call(ALICE, verb, volume=0)
    assert cluster.volume(ALICE)["open"] == 0


# --- a disk that hangs ---


class StuckDisk:
    """A file on a FUSE mount whose server can be stopped: then every access hangs."""

    def __init__(self, folder: Path, processes: Processes, size_mib: int) -> None:
        self.mount = folder / "fuse"
        self.mount.mkdir()
        sock = folder / "stuck.sock"
        nbdkit = find_tool("nbdkit") or ""
        self.server = processes.start([nbdkit, "-f", "-U", sock, "memory", f"{size_mib}M"], name="nbdkit")
        self.server.wait_until(sock.exists, 10, "its socket")
        uri = f"nbd+unix:///?socket={sock}"
        self.fuse = processes.start([find_tool("nbdfuse") or "", self.mount / "disk", uri], name="nbdfuse")
        self.fuse.wait_until(lambda: self.image.exists() and self.image.stat().st_size, 10, "the mount")

    @property
    def image(self) -> Path:
        return self.mount / "disk"

    def hang(self) -> None:
        self.server.freeze()

    def go_on(self) -> None:
        self.server.thaw()

    def close(self) -> None:
        self.go_on()
        subprocess.run([find_tool("fusermount3") or "", "-u", "-z", str(self.mount)], capture_output=True)


@pytest.fixture
def stuck_disk(processes: Processes) -> Iterator[StuckDisk]:
    require("nbdkit", "nbdfuse", "fusermount3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        lacking("/dev/fuse")
    with tempfile.TemporaryDirectory(prefix="repl-stuck-") as folder:  # short: there is a socket in it
        disk = StuckDisk(Path(folder), processes, 32)
        try:
            yield disk
        finally:
            disk.close()


def ping_acks(cluster: Cluster) -> int:
    """Of both nodes: who hears the other one's ping in time sends none of its own."""
    return sum(int(cluster.status(name)["engine"]["ping_acks_received"]) for name in NODES)


def test_hanging_disk_of_the_primary_stops_neither_pings_nor_status_nor_new_clients(
    make_cluster: MakeCluster, stuck_disk: StuckDisk
) -> None:
    cluster = make_cluster(size_mib=32, images={ALICE: stuck_disk.image}, net={"ping-int": "1", "ko-count": "0"})
    try:
        cluster.start_pair()
        cluster.call(ALICE, "primary")
        one = region()
        with writing(one, cluster.url(ALICE)) as load:
            load.wait_writes(20)
            pings = ping_acks(cluster)
            stuck_disk.hang()
            try:
                wait_for(lambda: ping_acks(cluster) > pings + 2, 15, "pings")
                for name in NODES:
                    assert cluster.status(name)["connection"] == "Connected"
                with at_most(5, "replctl status"):
                    assert "r0" in cluster.ctl(ALICE, "status", "r0").stdout
                with at_most(5, "a new client"), NbdClient(cluster.url(ALICE)) as client:
                    assert client.size_bytes == cluster.size_bytes()
            finally:
                stuck_disk.go_on()
            load.wait_writes(20)
        with NbdClient(cluster.url(ALICE)) as client:
            assert not one.problems(client.read)
        cluster.wait_synced()
        cluster.compare_disks()
    finally:
        stuck_disk.go_on()
        for name in NODES:
            cluster.stop(name)


def test_hanging_disk_of_the_secondary_is_given_up_by_ko_count(
    make_cluster: MakeCluster, stuck_disk: StuckDisk
) -> None:
    cluster = make_cluster(
        size_mib=32, images={BOB: stuck_disk.image}, net={"timeout": "5", "ko-count": "3", "ping-int": "1"}
    )
    try:
        cluster.start_pair()
        cluster.call(ALICE, "primary")
        one = region()
        with writing(one, cluster.url(ALICE)) as load:
            load.wait_writes(20)
            stuck_disk.hang()
            try:
                load.wait_writes(200)
                assert load.slowest_s < 8
                assert "ko-count" in cluster.log(ALICE)
                with at_most(5, "replctl status"):
                    assert "r0" in cluster.ctl(BOB, "status", "r0").stdout
            finally:
                stuck_disk.go_on()
            cluster.wait_synced(60)
        with NbdClient(cluster.url(ALICE)) as client:
            assert not one.problems(client.read)
        cluster.wait_synced()
        cluster.compare_disks()
    finally:
        stuck_disk.go_on()
        for name in NODES:
            cluster.stop(name)
