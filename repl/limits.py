# SPDX-License-Identifier: Apache-2.0
"""Named limits of the control plane.  The C engine's own limits stand in csrc/base/limits.h."""

from __future__ import annotations

SECTOR_BYTES = 512
BLOCK_BYTES = 4096

# NBD negotiation
NBD_CLIENTS_MAX = 64
NBD_OPTIONS_MAX = 32
NBD_STRING_BYTES_MAX = 4096
NBD_OPTION_BYTES_MAX = 64 * 1024
NBD_NEGOTIATION_TIMEOUT_S = 10.0
NBD_REQUEST_BYTES_MAX = 32 * 1024 * 1024

# Control socket
CONTROL_FRAME_BYTES_MAX = 1024 * 1024
CONTROL_CLIENTS_MAX = 64

# Configuration
CONFIG_FILE_BYTES_MAX = 1024 * 1024
CONFIG_INCLUDE_DEPTH_MAX = 32

# Peer
PEER_CONTROL_PACKET_BYTES_MAX = 4096
SECRET_BYTES_MAX = 63
VOLUMES_MAX = 64

# Files
VOLFILE_BYTES_MAX = 1024 * 1024
VOLFILE_VOLUMES_MAX = 1000
VOLFILE_WORD_BYTES_MAX = 4096
FILES_DEPTH_MAX = 2048  # directories above one another (a path has at most 4096 bytes)
FILES_LISTING_ENTRIES_MAX = 4096
POSIX_DIRECTORY_FDS_MAX = 512
POSIX_THREADS_MAX = 16
POSIX_INLINE_BYTES_MAX = 128 * 1024  # reads and writes up to here are done by the event loop itself
POSIX_ALLOCATE_INLINE_BYTES = 1024 * 1024
POSIX_UNLINK_INLINE_BYTES = 64 * 1024 * 1024  # blocks of larger files become free in a thread
QUICK_READ_BYTES_MAX = 64 * 1024
