# SPDX-License-Identifier: Apache-2.0
"""Real NBD clients against real daemons: a single node on tmpfs, one on a disk's file system, a replicated pair.

What a client wrote has to be read back by another program; of a pair both disks have to be equal afterwards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.cluster import ALICE, MIB, Cluster
from tests.lib.load import TaggedRegion, writing
from tests.lib.tools import find_tool, require, require_engine, run_libnbd

SIZE_MIB = 96
IMAGE_MIB = 48
TIMEOUT_S = 60


@pytest.fixture(scope="module", params=["single-memory", "single-disk", "pair"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Alice is Primary."""
    require_engine()
    with Cluster(size_mib=SIZE_MIB, on_disk=request.param == "single-disk") as found:
        if request.param == "pair":
            found.start_pair()
            found.call(ALICE, "primary")
        else:
            found.start_single()
        yield found


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    """For one test; afterwards every client is gone, and a pair is equal."""
    yield cluster.url(ALICE)
    cluster.wait("no client left", lambda: cluster.volume(ALICE)["open"] == 0)
    if cluster.nodes["bob"].is_running:
        cluster.wait_synced()
        cluster.compare_disks()
    assert not cluster.bad_log_lines()


def run(*argv: str | Path, status: int = 0, folder: Path | None = None) -> str:
    """Standard output of a program; its errors are shown when it ends with another status."""
    program = find_tool(str(argv[0]))
    assert program, argv[0]
    done = subprocess.run([program, *map(str, argv[1:])], capture_output=True, text=True, timeout=TIMEOUT_S, cwd=folder)
    assert done.returncode == status, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def random_image(path: Path, size_mib: int = IMAGE_MIB) -> Path:
    """Data with holes: every third MiB is left out."""
    with path.open("wb") as file:
        for number in range(size_mib):
            if number % 3 != 2:
                file.seek(number * MIB)
                file.write(os.urandom(MIB))
        file.truncate(size_mib * MIB)
    return path


def test_nbdinfo_shows_what_the_export_can_do(url: str) -> None:
    require("nbdinfo")
    found = json.loads(run("nbdinfo", "--json", url))
    assert found["protocol"] == "newstyle-fixed"
    assert not found["TLS"]
    export = found["exports"][0]
    assert export["export-name"] == "r0/0"
    assert 90 * MIB < export["export-size"] < SIZE_MIB * MIB
    assert export["contexts"] == ["base:allocation"]
    assert (export["block_size_minimum"], export["block_size_maximum"]) == (512, 32 * MIB)
    wanted = ("flush", "fua", "trim", "zero", "fast_zero", "df", "cache", "multi_conn")
    assert {name: export[f"can_{name}"] for name in wanted} == dict.fromkeys(wanted, True)
    assert not export["is_read_only"]


def test_nbdinfo_lists_the_only_export(cluster: Cluster, url: str) -> None:
    require("nbdinfo")
    found = json.loads(run("nbdinfo", "--json", "--list", url))
    assert [export["export-name"] for export in found["exports"]] == ["r0/0"]


def test_export_without_a_name_is_the_only_volume(cluster: Cluster, url: str) -> None:
    require("nbdinfo")
    whole = f"nbd+unix:///?socket={cluster.nodes[ALICE].run_dir.nbd}"
    assert run("nbdinfo", "--size", whole) == run("nbdinfo", "--size", url)


def test_image_copied_in_and_out_by_nbdcopy_is_unchanged(url: str, tmp_path: Path) -> None:
    require("nbdcopy")
    image, back = random_image(tmp_path / "image"), tmp_path / "back"
    run("nbdcopy", "--flush", image, url)
    run("nbdcopy", url, back)
    os.truncate(back, IMAGE_MIB * MIB)
    assert subprocess.run(["cmp", image, back]).returncode == 0


def test_image_copied_synchronously_with_one_connection_is_unchanged(url: str, tmp_path: Path) -> None:
    require("nbdcopy")
    image, back = random_image(tmp_path / "image", 8), tmp_path / "back"
    run("nbdcopy", "--synchronous", "--connections=1", image, url)
    run("nbdcopy", "--synchronous", "--connections=1", url, back)
    os.truncate(back, 8 * MIB)
    assert subprocess.run(["cmp", image, back]).returncode == 0


LIBNBD = """
import sys, nbd
url = sys.argv[1]

def client(**k):
    h = nbd.NBD()
    h.set_strict_mode(0) if k.get("loose") else None
    if not k.get("simple"):
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    else:
        h.set_request_structured_replies(False)
    h.connect_uri(url)
    return h
"""


def libnbd(url: str, body: str) -> None:
    done = run_libnbd(LIBNBD + body, url)
    assert done.returncode == 0, done.stdout + done.stderr


def test_structured_read_delivers_data_and_holes_that_fit_together(url: str) -> None:
    libnbd(
        url,
        """
h = client()
assert h.get_structured_replies_negotiated()
M = 1 << 20
h.zero(8 * M, 0)
h.pwrite(b"x" * 65536, M)
h.pwrite(b"y" * 4096, 3 * M)
seen = bytearray(b"?" * (8 * M))
def chunk(buf, offset, status, error):
    assert status in (nbd.READ_DATA, nbd.READ_HOLE)
    seen[offset:offset + len(buf)] = buf if status == nbd.READ_DATA else bytes(len(buf))
buf = h.pread_structured(8 * M, 0, chunk)
assert seen == buf, "chunks do not cover the range"
assert buf[M:M + 65536] == b"x" * 65536 and buf[3 * M:3 * M + 4096] == b"y" * 4096
assert buf.count(b"x") == 65536 and buf.count(b"y") == 4096 and buf.count(0) == 8 * M - 65536 - 4096
""",
    )


def test_read_with_df_is_one_chunk(url: str) -> None:
    libnbd(
        url,
        """
h = client()
M = 1 << 20
h.zero(M, 0)
h.pwrite(b"d" * 4096, 65536)
chunks = []
h.pread_structured(M, 0, lambda buf, offset, status, error: chunks.append((offset, len(buf))), nbd.CMD_FLAG_DF)
assert chunks == [(0, M)], chunks
""",
    )


def test_simple_replies_serve_a_client_that_wants_nothing_else(url: str) -> None:
    libnbd(
        url,
        """
h = client(simple=True)
assert not h.get_structured_replies_negotiated()
h.pwrite(b"s" * 8192, 512)
assert h.pread(8192, 512) == b"s" * 8192
h.flush()
""",
    )


def test_block_status_after_trim_and_write_covers_the_range_and_is_true(url: str) -> None:
    libnbd(
        url,
        """
h = client()
M = 1 << 20
h.trim(16 * M, 0)
h.zero(16 * M, 0)
h.pwrite(b"b" * M, 5 * M)
entries = []
h.block_status(16 * M, 0, lambda name, offset, e, err: entries.extend(zip(e[::2], e[1::2])))
total = sum(length for length, _ in entries)
assert total >= 1 and total <= 17 * M, entries
at = 0
for length, flags in entries:
    length = min(length, 16 * M - at)
    if length > 0 and flags & nbd.STATE_ZERO:
        assert h.pread(length, at) == bytes(length), (at, length)
    assert not (at <= 5 * M < at + length and flags & (nbd.STATE_ZERO | nbd.STATE_HOLE)), "written data is no hole"
    at += length
one = []
h.block_status(16 * M, 0, lambda name, offset, e, err: one.extend(e), nbd.CMD_FLAG_REQ_ONE)
assert len(one) == 2 and one[0] <= 16 * M, one
""",
    )


def test_fua_trim_zero_cache_and_flush_do_what_they_say(url: str) -> None:
    libnbd(
        url,
        """
h = client()
M = 1 << 20
h.pwrite(b"1" * M, 0, nbd.CMD_FLAG_FUA)
assert h.pread(M, 0) == b"1" * M
h.zero(4096, 4096)
assert h.pread(12288, 0) == b"1" * 4096 + bytes(4096) + b"1" * 4096
h.zero(1536, 512, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(2560, 0) == b"1" * 512 + bytes(1536) + b"1" * 512
h.trim(65536, 65536, nbd.CMD_FLAG_FUA)
h.pread(65536, 65536)
h.cache(M, 0)
h.flush()
""",
    )


def test_single_sectors_anywhere_are_written_whole(url: str) -> None:
    libnbd(
        url,
        """
h = client()
size = h.get_size()
import random
r = random.Random(3)
places = sorted(r.sample(range(size // 512), 200)) + [size // 512 - 1]
for p in places:
    h.pwrite(p.to_bytes(8, "big") * 64, p * 512)
for p in places:
    assert h.pread(512, p * 512) == p.to_bytes(8, "big") * 64, p
""",
    )


def test_requests_that_cannot_be_are_refused_with_the_right_error(url: str) -> None:
    libnbd(
        url,
        """
import errno
h = client(loose=True)
size = h.get_size()
def refused(number, f, *a):
    try:
        f(*a)
    except nbd.Error as e:
        assert e.errnum == number, (e.errnum, number, a[1:])
    else:
        raise AssertionError(f"accepted {a}")
refused(errno.EINVAL, h.pread, 512, size)
refused(errno.EINVAL, h.pread, 1024, size - 512)
refused(errno.ENOSPC, h.pwrite, b"x" * 512, size)
refused(errno.ENOSPC, h.zero, 4096, size)
refused(errno.EINVAL, h.trim, 4096, size)
refused(errno.EINVAL, h.pread, 100, 0)
refused(errno.EINVAL, h.pwrite, b"x" * 512, 17)
refused(errno.EINVAL, h.pread, 512, 0, 0x80)
assert h.pread(512, 0) is not None, "the connection goes on"
""",
    )


def test_two_connections_of_one_client_see_each_others_writes(url: str) -> None:
    libnbd(
        url,
        """
a, b = client(), client()
assert a.can_multi_conn()
for n in range(200):
    w, r = (a, b) if n % 2 else (b, a)
    w.pwrite(n.to_bytes(2, "big") * 2048, n * 4096)
    assert r.pread(4096, n * 4096) == n.to_bytes(2, "big") * 2048
    if n % 20 == 0:
        r.flush()
""",
    )


def test_many_requests_in_flight_are_all_answered(url: str) -> None:
    libnbd(
        url,
        """
h = client()
B = 4096
writes = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(n.to_bytes(4, "big") * 1024)), n * B) for n in range(500)]
done = set()
while len(done) < 500:
    h.poll(5000)
    done |= {c for c in writes if c not in done and h.aio_command_completed(c)}
for n in range(500):
    assert h.pread(B, n * B) == n.to_bytes(4, "big") * 1024, n
""",
    )


def test_nbdsh_reads_what_it_wrote(url: str) -> None:
    require("nbdsh")
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    code = "h.pwrite(b'nbdsh' * 1024 + bytes(3072), 0); h.flush(); print(h.pread(512, 0)[:5].decode())"
    done = subprocess.run(
        ["/usr/bin/nbdsh", "-u", url, "-c", code], capture_output=True, text=True, env=environment, cwd="/", timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "nbdsh\n"), done.stderr


def test_image_converted_and_compared_by_qemu_img_is_identical(url: str, tmp_path: Path) -> None:
    require("qemu-img")
    image = random_image(tmp_path / "image")
    size = int(run("nbdinfo", "--size", url))
    os.truncate(image, size)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, url)
    assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, url)
    back = tmp_path / "back.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", url, back)
    assert "identical" in run("qemu-img", "compare", image, back, "-f", "raw")


def test_qemu_io_patterns_written_discarded_and_zeroed_read_back(url: str) -> None:
    require("qemu-io")
    commands = [
        "write -P 0x11 0 8M",
        "write -P 0x22 1M 64k",
        "write -f -P 0x33 8M 512",
        "write -z 2M 1M",
        "write -z -u 3M 1M",
        "discard 16M 8M",
        "read -P 0x11 0 1M",
        "read -P 0x22 1M 64k",
        "read -P 0 2M 2M",
        "read -P 0x11 4M 4M",
        "read -P 0x33 8M 512",
        "flush",
    ]
    output = run("qemu-io", "-f", "raw", *(w for c in commands for w in ("-c", c)), url)
    assert "verification failed" not in output, output


def test_qemu_io_asynchronous_requests_are_all_written(url: str) -> None:
    require("qemu-io")
    commands = [f"aio_write -P {n + 1} {n * 64}k 64k" for n in range(64)] + ["aio_flush"]
    commands += [f"read -P {n + 1} {n * 64}k 64k" for n in range(64)]
    output = run("qemu-io", "-f", "raw", *(w for c in commands for w in ("-c", c)), url)
    assert "verification failed" not in output, output


def test_fio_verifies_random_writes_by_checksum(url: str, tmp_path: Path) -> None:
    require("fio")
    if "nbd" not in run("fio", "--enghelp"):
        pytest.skip("fio without the nbd engine")
    output = run(
        "fio", "--name=job", "--ioengine=nbd", f"--uri={url}", "--rw=randwrite", "--bsrange=4k-128k", "--size=32M",
        "--verify=crc32c", "--verify_fatal=1", "--iodepth=32", "--randseed=11", "--output-format=json",
        folder=tmp_path,
    )  # fmt: skip
    job = json.loads(output[output.index("{") :])["jobs"][0]
    assert job["error"] == 0
    assert job["read"]["io_bytes"] >= 30 * MIB


def test_ext4_filesystem_copied_in_and_out_is_clean(url: str, tmp_path: Path) -> None:
    require("nbdcopy", "mkfs.ext4", "e2fsck")
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(200):
        (tree / f"file{number}").write_bytes(os.urandom(number * 100))
    image, back = tmp_path / "fs", tmp_path / "back"
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB * MIB)
    run("mkfs.ext4", "-q", "-F", "-d", tree, image)
    run("nbdcopy", image, url)
    run("nbdcopy", url, back)
    os.truncate(back, IMAGE_MIB * MIB)
    run("e2fsck", "-fn", back)
    assert subprocess.run(["cmp", image, back]).returncode == 0


@pytest.mark.parametrize("filters", [("blocksize", "blocksize-policy"), ("delay",), ("cow",)])
def test_nbdkit_in_front_forwards_everything(
    cluster: Cluster, url: str, tmp_path: Path, filters: tuple[str, ...]
) -> None:
    require("nbdkit", "nbdcopy")
    parameters = {
        "blocksize": ["minblock=512", "maxdata=64K"],
        "blocksize-policy": [],
        "delay": ["rdelay=1ms", "wdelay=1ms"],
        "cow": [],
    }
    image, back = random_image(tmp_path / "image", 4), tmp_path / "back"
    script = f'nbdcopy {image} "$uri" && nbdcopy "$uri" {back}'
    if "cow" in filters:  # its writes stay in front of us
        run("nbdcopy", image, url)
        script = f'nbdcopy "$uri" {back}'
    run(
        "nbdkit", "-U", "-", "nbd", f"uri={url}", *(f"--filter={name}" for name in filters),
        *(word for name in filters for word in parameters[name]), "--run", script,
    )  # fmt: skip
    os.truncate(back, 4 * MIB)
    assert subprocess.run(["cmp", image, back]).returncode == 0


def test_four_clients_at_once_do_not_disturb_each_other(cluster: Cluster, url: str, tmp_path: Path) -> None:
    require("qemu-io", "nbdcopy")
    region = TaggedRegion(run=4, writer=1, offset_sectors=64 * MIB // 512, blocks=512)
    image = random_image(tmp_path / "image", 24)
    failures: list[BaseException] = []

    def qemu_io() -> None:
        try:
            for turn in range(3):
                pattern = turn + 1
                run("qemu-io", "-f", "raw", "-c", f"write -P {pattern} 32M 8M", "-c", f"read -P {pattern} 32M 8M", url)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=qemu_io)
    with writing(region, url, flush_every=50) as first:
        other = TaggedRegion(run=4, writer=2, offset_sectors=72 * MIB // 512, blocks=512)
        with writing(other, url, fua_every=20) as second:
            thread.start()
            run("nbdcopy", image, url)
            thread.join()
            first.wait_writes(100)
            second.wait_writes(100)
    assert not failures, failures
    with cluster.client(ALICE) as client:
        assert not region.problems(client.read)
        assert not other.problems(client.read)
        assert client.read(0, MIB) == image.read_bytes()[:MIB]


def test_read_only_client_of_qemu_is_served(url: str) -> None:
    require("qemu-io")
    output = run("qemu-io", "-r", "-f", "raw", "-c", "read 0 1M", url)
    assert re.search(r"read 1048576/1048576 bytes", output)


def test_nbd_fuse_file_on_top_is_read_and_written(url: str, tmp_path: Path) -> None:
    require("nbdfuse", "fusermount3")
    if not os.access("/dev/fuse", os.W_OK):
        pytest.skip("needs /dev/fuse")
    target = tmp_path / "mount"
    target.mkdir()
    with subprocess.Popen([find_tool("nbdfuse") or "", target, url], stderr=subprocess.DEVNULL) as process:
        from tests.lib.wait import wait_for

        try:
            wait_for(lambda: (target / "nbd").exists(), 10, "the mount")
            with (target / "nbd").open("r+b", buffering=0) as file:
                data = os.urandom(MIB)
                file.seek(3 * MIB)
                file.write(data)
                file.seek(3 * MIB)
                assert file.read(MIB) == data
        finally:
            subprocess.run([find_tool("fusermount3") or shutil.which("fusermount3") or "", "-u", target])
            process.wait(10)
