# SPDX-License-Identifier: Apache-2.0
"""The guest rig itself: everything else that needs a real kernel stands on this."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from tests.lib.guest import CommandFailed, Guest, GuestDied, GuestTimedOut
from tests.lib.netns import NetNamespace
from tests.lib.process import Processes
from tests.lib.tools import find_tool, require

DRBD = "drbd:usermode_helper=/bin/true"  # else each state change runs drbdadm


def test_guest_with_nbd_and_drbd_has_both_modules_and_drbd_84() -> None:
    with Guest(modules=["nbd", DRBD]) as guest:
        loaded = guest.run("cut -d' ' -f1 /proc/modules").out.split()
        assert {"nbd", "drbd"} <= set(loaded)
        assert guest.run("cat /proc/drbd").out.startswith("version: 8.4.")
        assert guest.run("test -b /dev/nbd0").status == 0


def test_guest_command_reports_status_output_and_input() -> None:
    with Guest(name="alpha") as guest:
        result = guest.run("hostname; cat; echo wrong >&2; exit 7", stdin=b"in\n", check=False)
        assert (result.status, result.out, result.err) == (7, "alpha\nin\n", "wrong\n")
        with pytest.raises(CommandFailed, match="status 3"):
            guest.run("exit 3")
        guest.write_file("/run/made/file", "one\\n \ttwo\nthree")
        assert guest.read_file("/run/made/file") == "one\\n \ttwo\nthree"
        assert guest.read_file("/run/made/none", check=False) == ""
        with pytest.raises(CommandFailed, match="/run/made/none"):
            guest.read_file("/run/made/none")
        assert guest.run("printf 'a\\0end 9\\0b'").out == "a\0end 9\0b"


def test_guest_writes_reach_the_host_only_in_shared_folders(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    private = tmp_path / "private"
    shared.mkdir()
    private.mkdir()
    with Guest(rw=[shared]) as guest:
        guest.run(f"echo kept >{shared}/file; echo lost >{private}/file")
        assert guest.run(f"cat {private}/file").out == "lost\n"
    assert (shared / "file").read_text() == "kept\n"
    assert not (private / "file").exists()


def test_guest_disk_is_a_host_file(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    with Guest(disks=[disk]) as guest:
        guest.run("printf tag | dd of=/dev/ubda bs=512 seek=8 conv=notrunc 2>&1 && sync")
    assert disk.read_bytes()[4096:4099] == b"tag"


def test_guest_that_panics_is_reported_with_its_log() -> None:
    with Guest() as guest, pytest.raises(GuestDied, match="sysrq triggered crash"):
        guest.run("echo c >/proc/sysrq-trigger; sleep 10")


def test_guest_command_that_hangs_kills_the_guest() -> None:
    with Guest() as guest:
        with pytest.raises(GuestTimedOut):
            guest.run("sleep 60", timeout=1)
        assert not guest.is_running


def test_guest_power_cut_leaves_no_process_and_no_folder() -> None:
    guest = Guest()
    folder = guest.dir
    guest.kill()
    assert not guest.is_running
    assert not folder.exists()
    with pytest.raises(GuestDied):
        guest.run("true")


def test_guest_reaches_a_service_of_the_host_through_a_tap(network: NetNamespace) -> None:
    listener = network.listen(7777)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"hello " + connection.recv(100))

    thread = threading.Thread(target=serve)
    thread.start()
    fetch = (
        "import socket; s = socket.create_connection(('10.9.0.1', 7777), 10); "
        "s.sendall(b'guest'); print(s.recv(100).decode())"
    )
    with listener, Guest(nics=[network.nic(0)], netns=network) as guest:
        listener.settimeout(10)
        assert guest.run(["/usr/bin/python3", "-c", fetch]).out == "hello guest\n"
    thread.join()


def test_host_reaches_a_service_of_the_guest_through_a_tap(network: NetNamespace) -> None:
    answer = (
        "import socket; l = socket.create_server(('10.9.0.2', 7778)); "
        "c, _ = l.accept(); c.sendall(b'hello host')"
    )
    with Guest(nics=[network.nic(0)], netns=network) as guest:
        guest.run(f"/usr/bin/python3 -c {answer!r} >/dev/null 2>&1 & sleep 0.1; "
                  "while ! grep -q ':1E62 00000000:0000 0A' /proc/net/tcp; do sleep 0.1; done")  # fmt: skip
        with network.connect(7778, host=network.guest_address(0)) as client:
            assert client.recv(100) == b"hello host"


def test_guest_nbd_device_on_a_host_server_reads_back_what_was_written(
    network: NetNamespace, processes: Processes
) -> None:
    require("nbdkit", "nbd-client")
    nbdkit = find_tool("nbdkit")
    assert nbdkit is not None
    server = processes.start(
        [nbdkit, "--foreground", "--verbose", "--ipaddr", network.HOST, "memory", "16M"],
        prefix=network.prefix,
    )
    server.wait_log("bound to IP address")
    with Guest(modules=["nbd"], nics=[network.nic(0)], netns=network) as guest:
        guest.run(f"nbd-client {network.HOST} 10809 /dev/nbd0 -N ''")
        guest.run("dd if=/bin/ls of=/dev/nbd0 bs=64k oflag=direct conv=sync 2>/dev/null")
        guest.run("cmp -n $(stat -c %s /bin/ls) /bin/ls /dev/nbd0 && nbd-client -d /dev/nbd0")


def test_addresses_of_a_namespace_do_not_exist_outside_of_it(network: NetNamespace) -> None:
    with socket.socket() as outside, pytest.raises(OSError, match="assign requested address"):
        outside.bind((network.HOST, 0))
    network.listen(7779).close()


def test_two_namespaces_use_the_same_addresses_side_by_side() -> None:
    with NetNamespace(taps=0) as one, NetNamespace(taps=0) as two:
        with one.listen(7780), two.listen(7780), one.connect(7780), two.connect(7780):
            pass
