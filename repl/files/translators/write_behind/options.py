# SPDX-License-Identifier: Apache-2.0
"""The options of performance/write-behind (spec 4.2)."""

from __future__ import annotations

from repl.files.options import Kind, Option

KIB = 1024
OPTIONS = (
    Option("cache-size", Kind.SIZE, 1024 * KIB, "bytes of one file that may wait to be sent; then its writers wait",
           minimum=512 * KIB, maximum=1024 * 1024 * KIB, aliases=("window-size",)),
    Option("aggregate-size", Kind.SIZE, 128 * KIB, "adjoining writes are joined up to so many bytes", minimum=0,
           maximum=1024 * KIB),
    Option("flush-behind", Kind.BOOL, False,
           "closing a file does not wait until its writes are stored, errors go to the log.  differs: off, so that "
           "whoever opens a file on another mount after it was closed reads what was written (decision 0093)"),
    Option("trickling-writes", Kind.BOOL, True,
           "write whenever nothing is on its way; off: only when aggregate-size bytes have come together"),
    Option("strict-O_DIRECT", Kind.BOOL, False, "writes of files opened with O_DIRECT are not held back"),
    Option("strict-write-ordering", Kind.BOOL, False, "each write begins when the one before it is done"),
    Option("resync-failed-syncs-after-fsync", Kind.BOOL, False,
           "writes that failed are kept and tried again by the next fsync or flush of the file"),
    Option("pass-through", Kind.BOOL, False, "hold nothing back"),
)  # fmt: skip
