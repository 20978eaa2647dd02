# SPDX-License-Identifier: Apache-2.0
"""A thin Python face of the simulator's world (``_repl_sim``; csrc/sim/repl_sim.h says what everything means).

Times are virtual nanoseconds, offsets and lengths bytes.  Every object is a number of the simulator.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from typing import Any

from repl.drbd import activity_log
from repl.errors import DiskFailed
from tests.lib.tools import BUILD_DIR

MS = 1_000_000
SECOND = 1_000_000_000
MIB = 1 << 20
BLOCK = 4096
REPORT_BYTES = 8192

# Audit modes (enum re_sim_audit_mode); 0 checks the tags alone.
TAGS, STRICT, FLUSHED, CAUSAL, ACKED = 0, 1, 2, 4, 8


class SimFailure(AssertionError):
    """A promise is broken, or the simulation cannot go on."""


@functools.cache
def load() -> Any:
    """The module; its folder is the build's."""
    folder = str(BUILD_DIR / "csrc")
    if folder not in sys.path:
        sys.path.append(folder)
    import _repl_sim

    # A block of the log is read again and again with the same content: the checksum in Python is slow.
    activity_log.decode = functools.lru_cache(maxsize=512)(activity_log.decode)
    return _repl_sim


@dataclass(slots=True)
class Notice:
    """``struct re_sim_notice``."""

    kind: int
    node: int
    peer_node: int
    id: int
    fd: int
    error: int
    value: int


class World:
    """One simulation."""

    def __init__(self, seed: int) -> None:
        module = load()
        self.ffi, self.lib = module.ffi, module.lib
        self.seed = seed
        self.sim = self.lib.re_sim_create(seed)
        self._notice = self.ffi.new("struct re_sim_notice *")
        self._report = self.ffi.new("char[]", REPORT_BYTES)
        self.event = self.ffi.new("struct re_event *")
        self.blob = self.ffi.new("uint8_t[]", int(self.lib.RE_EVENT_BLOB_MAX))
        self.is_open = True

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.lib.re_sim_destroy(self.sim)

    # ---- time ----

    @property
    def now(self) -> int:
        return int(self.lib.re_sim_now(self.sim))

    @property
    def trace_hash(self) -> int:
        return int(self.lib.re_sim_trace_hash(self.sim))

    def trace_to(self, path: str | os.PathLike[str]) -> None:
        """Write what happens to a file."""
        if self.lib.re_sim_trace_file(self.sim, os.fsencode(path)) != 0:
            raise OSError(f"cannot write {path}")

    def random(self, bound: int) -> int:
        """Below ``bound``, from the control plane's stream of the seed."""
        return int(self.lib.re_sim_random(self.sim, bound))

    def random64(self) -> int:
        return self.random(1 << 32) << 32 | self.random(1 << 32)

    def random_bytes(self, length: int) -> bytes:
        return bytes(self.random(256) for _ in range(length))

    def step(self, until: int) -> Notice | None:
        """Run to the next notice, or to ``until``."""
        n = self._notice
        if not self.lib.re_sim_step(self.sim, until, n):
            return None
        return Notice(n.kind, n.node, n.peer_node, n.id, n.fd, n.error, n.value)

    def timer(self, at: int, timer_id: int) -> None:
        self.lib.re_sim_timer(self.sim, at, timer_id)

    def violations(self) -> list[str]:
        count = int(self.lib.re_sim_violations(self.sim))
        texts = []
        for index in range(min(count, 16)):
            text = self.lib.re_sim_violation(self.sim, index)
            if text != self.ffi.NULL:
                texts.append(self.ffi.string(text).decode())
        return texts if not count or texts else [f"{count} violations"]

    def tapped(self) -> bytes:
        """The packets that nodes have sent since the last call (struct re_sim_packet, csrc/sim/repl_sim.h)."""
        waiting = int(self.lib.re_sim_tap_waiting(self.sim))
        if not waiting:
            return b""
        memory = self.ffi.new("uint8_t[]", waiting)
        self.lib.re_sim_tap_take(self.sim, memory, waiting)
        return bytes(self.ffi.buffer(memory))

    def struct(self, name: str, **members: int) -> Any:
        value = self.ffi.new(f"struct {name} *")
        for member, number in members.items():
            setattr(value, member, number)
        return value

    def timing(self, *, wake_max_ns: int, run_max_ns: int) -> None:
        self.lib.re_sim_timing_set(
            self.sim, self.struct("re_sim_timing", wake_max_ns=wake_max_ns, run_max_ns=run_max_ns)
        )

    # ---- network ----

    def net(self, a: int = -1, b: int = -1, **changes: int) -> None:
        """Change settings of the direction a -> b."""
        settings = self.struct("re_sim_net_settings")
        self.lib.re_sim_net_settings_get(self.sim, max(a, 0), b if b >= 0 else 1, settings)
        for member, number in changes.items():
            setattr(settings, member, number)
        self.lib.re_sim_net_settings_set(self.sim, a, b, settings)

    def path(self, a: int, b: int, state: int) -> None:
        self.lib.re_sim_net_path(self.sim, a, b, state)

    def streams(self, node: int) -> list[int]:
        """The sockets of a node's link."""
        fds = self.ffi.new("int[]", 64)
        return [int(fds[i]) for i in range(min(64, self.lib.re_sim_net_streams(self.sim, node, fds, 64)))]

    def heal(self) -> None:
        self.path(0, 1, self.lib.RE_SIM_PATH_OPEN)
        self.path(1, 0, self.lib.RE_SIM_PATH_OPEN)

    # ---- checking ----

    def audit(self, history: int, disk: int, begin: int, length: int, *, modes: int, layer: int = 0) -> str:
        """"" or what is wrong with the content, which is the device's from ``begin`` on."""
        content = self.lib.re_sim_disk_content(self.sim, disk, layer)
        return self._audit(history, content, begin, length, modes)

    def audit_bytes(self, history: int, data: bytes, *, modes: int) -> str:
        """The same of a whole device."""
        return self._audit(history, self.ffi.from_buffer(data), 0, len(data), modes)

    def _audit(self, history: int, content: Any, begin: int, length: int, modes: int) -> str:
        count = self.lib.re_sim_audit_image(
            self.sim, history, content, begin, length, modes, self._report, REPORT_BYTES
        )
        return f"{count} sectors: {self.ffi.string(self._report).decode()}" if count else ""

    def rebase(self, history: int, disk: int, begin: int, length: int) -> None:
        self.lib.re_sim_history_rebase_part(self.sim, history, disk, 0, 0, begin, length)

    def bitmap(self, node: int, volume: int, device_bytes: int) -> int:
        """The bits of an engine's bitmap, as those of a number."""
        bits = self.ffi.new("uint8_t[]", (-(-device_bytes // BLOCK) // 64 + 1) * 8)
        self.lib.re_sim_volume_bitmap(self.sim, node, volume, bits, len(bits))
        return int.from_bytes(bytes(self.ffi.buffer(bits)), "little")

    def differing(self, a: int, b: int, length: int, *, layer: int = 0) -> int:
        """The blocks in which two disks differ, as the bits of a number."""
        bitmap = self.ffi.new("uint8_t[]", -(-length // BLOCK) // 8 + 1)
        if not self.lib.re_sim_disk_diff(self.sim, a, 0, b, 0, length, layer, bitmap):
            return 0
        return int.from_bytes(bytes(self.ffi.buffer(bitmap)), "little")


class SimDisk:
    """A disk of a node; also a ``repl.node.disk.BlockFile``."""

    def __init__(self, world: World, node: int, size_bytes: int, name: str) -> None:
        self._world = world
        self.size_bytes = size_bytes
        self.name = name
        self.number = int(world.lib.re_sim_disk_create(world.sim, node, size_bytes))

    def pread(self, offset: int, length: int) -> bytes:
        data = self._world.ffi.new("uint8_t[]", length)
        self._check(self._world.lib.re_sim_disk_pread(self._world.sim, self.number, offset, data, length))
        return bytes(self._world.ffi.buffer(data, length))

    def pwrite(self, offset: int, data: bytes) -> None:
        self._check(self._world.lib.re_sim_disk_pwrite(self._world.sim, self.number, offset, data, len(data)))

    def flush(self) -> None:
        self._check(self._world.lib.re_sim_disk_flush(self._world.sim, self.number))

    def _check(self, result: int) -> None:
        if result < 0:
            raise DiskFailed(f"{self.name}: {os.strerror(-result)}", errno=-result)

    def refresh_size(self) -> None:
        """The tests say how large it is."""

    def content(self, offset: int, length: int, *, layer: int = 0) -> bytes:
        start = self._world.lib.re_sim_disk_content(self._world.sim, self.number, layer)
        return bytes(self._world.ffi.buffer(start + offset, length))

    def load(self, offset: int, data: bytes) -> None:
        self._world.lib.re_sim_disk_load(self._world.sim, self.number, offset, data, len(data))

    def settings(self, **changes: int) -> None:
        settings = self._world.struct("re_sim_disk_settings")
        self._world.lib.re_sim_disk_settings_get(self._world.sim, self.number, settings)
        for member, value in changes.items():
            setattr(settings, member, value)
        self._world.lib.re_sim_disk_settings_set(self._world.sim, self.number, settings)

    def fail_next(self, kind: int, count: int = 1, error: int = 5) -> None:
        self._world.lib.re_sim_disk_fail_next(self._world.sim, self.number, kind, count, error)

    def heal(self) -> None:
        """No fault any more."""
        self.settings(read_error_ppm=0, write_error_ppm=0, flush_error_ppm=0, stuck_ppm=0, bad_length=0)
        for kind in range(4):
            self.fail_next(kind, 0)
        self.release()

    def hold(self) -> None:
        self._world.lib.re_sim_disk_hold(self._world.sim, self.number)

    def release(self) -> None:
        self._world.lib.re_sim_disk_release(self._world.sim, self.number)

    def record(self, on: bool) -> None:
        self._world.lib.re_sim_disk_record(self._world.sim, self.number, on)

    @property
    def in_flight(self) -> int:
        return int(self._world.lib.re_sim_disk_in_flight(self._world.sim, self.number))

    @property
    def unflushed(self) -> int:
        return int(self._world.lib.re_sim_disk_unflushed(self._world.sim, self.number))
