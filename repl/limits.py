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
VOLUME_BRICKS_MAX = 512
VOLUME_FILE_BYTES_MAX = 1024 * 1024  # what replctl keeps of one volume
FILES_DEPTH_MAX = 2048  # directories above one another (a path has at most 4096 bytes)
FILES_LISTING_ENTRIES_MAX = 4096
FILES_LOCKS_PER_INODE_MAX = 65536  # held and waited for
INDEX_KNOWN_MAX = 65536  # entries that features/index remembers to be on the disk
UPCALL_INODES_MAX = 65536  # inodes of which features/upcall remembers who knows them
UPCALL_CLIENTS_MAX = 64  # for one inode; beyond, all clients are told
TOP_BLOCK_BYTES_MAX = 256 * 1024 * 1024  # that "volume top" measures a disk with
IO_STATS_FILES_MAX = 4096  # files whose opens, reads and writes are counted one by one
UPCALL_RECENT_MAX = 4096  # inodes that changed last
POSIX_DIRECTORY_FDS_MAX = 512
POSIX_THREADS_MAX = 16
POSIX_AIO_MAX = 256  # syncs, direct reads and writes on their way to the disk at a time
POSIX_AIO_BUFFER_BYTES = 1024 * 1024  # aligned memory for direct reads and writes
POSIX_AIO_BUFFERS_MAX = 16  # of it kept for the next ones
POSIX_KNOWN_XATTRS_MAX = 65536  # files whose internal extended attributes a brick remembers
POSIX_REMEMBERED_SOON_MAX = 4096  # files of which a transaction has just ended, to be remembered in a moment
POSIX_CACHE_DROP_S = 1.0  # between two drops of a file's pages from the cache, for direct writes
POSIX_INLINE_BYTES_MAX = 128 * 1024  # reads and writes up to here are done by the event loop itself
POSIX_ALLOCATE_INLINE_BYTES = 1024 * 1024
POSIX_UNLINK_INLINE_BYTES = 64 * 1024 * 1024  # blocks of larger files become free in a thread
POSIX_LINGERING_MAX = 4096  # files that a rename has replaced and that can be opened by their gfid yet
POSIX_LINGER_S = 2.0
QUICK_READ_BYTES_MAX = 64 * 1024
POSIX_LISTING_CONTENTS_MAX = 64  # so many of them
POSIX_LISTING_CONTENT_BYTES = 256 * 1024  # of small files that come with one listing; one more may exceed it
WRITE_BEHIND_BYTES_MAX = 64 * 1024 * 1024  # acknowledged and not stored, of all files
WRITE_BEHIND_FRAME_BYTES = 1024 * 1024  # of several writes in one frame
WRITE_BEHIND_FRAME_WRITES = 32
WRITE_BEHIND_FRAMES = 2  # of one file on their way
WRITE_BEHIND_HOLD_S = 0.002  # a little that is written waits so long for what belongs to it
READ_AHEAD_FILES_MAX = 1024  # that are read ahead at a time
MD_CACHE_INODES_MAX = 65536
MD_CACHE_NAMES_MAX = 131072
MD_CACHE_LISTING_BYTES = 32 * 1024  # of a directory that is listed because names in it are looked up

# Files: frames between protocol/client and protocol/server
RPC_HANDSHAKE_BYTES_MAX = 16 * 1024
RPC_CALL_BODY_BYTES_MAX = 256 * 1024
RPC_ANSWER_BODY_BYTES_MAX = 1024 * 1024
RPC_PAYLOAD_BYTES_MAX = 8 * 1024 * 1024
RPC_COMPOUND_STEPS_MAX = 64
RPC_ENDS_MAX = 256  # files synced, or transactions ended, with one call
RPC_CALLERS_MAX = 1024
RPC_CLIENTS_MAX = 1024
RPC_OPEN_FILES_MAX = 1 << 20
RPC_NESTED_CLIENTS_MAX = 4096
RPC_LOCK_WAITS_MAX = 16384
RPC_LOCK_WAIT_BYTES_MAX = 64 * 1024 * 1024
RPC_UNSENT_BYTES_MAX = 64 * 1024 * 1024
RPC_HANDSHAKE_TIMEOUT_S = 10.0

# FUSE mounts
MOUNT_TRANSFER_BYTES_MAX = 1024 * 1024  # one read or write of the kernel
MOUNT_FAILURES_TOLD_MAX = 10  # why an operation of an application failed, told in the log, so often in ...
MOUNT_FAILURES_S = 10.0
MOUNT_REQUESTS_MAX = 1024  # being worked on; further ones wait in the kernel
MOUNT_REQUESTS_PER_WAKE_MAX = 64
MOUNT_LOOK_NS = 30_000  # so long the next request is looked for before the mount sleeps
MOUNT_LOOKS_SKIPPED_MAX = 63  # after looks in vain
MOUNT_CALLERS_MAX = 4096  # remembered identities
MOUNT_INVALIDATIONS_MAX = 65536  # waiting to be told to the kernel
MOUNT_COPY_BYTES_MAX = 16 * 1024 * 1024  # one copy_file_range
FILES_INODES_MAX = 65536  # inodes whose state replicate remembers beside those in use
FILES_LISTING_REMEMBERED_MAX = 262_144  # names of one listing that replicate remembers, to go on at another child
FILES_LISTING_LEGS_MAX = 1024  # how often one listing begins at a child
FILES_BUNDLE_S = 1.0  # so long at the most the end of a transaction waits for others (post-op-delay-secs: less)
FILES_BUNDLE_MAX = 128  # so many end together
FILES_TENURES_MAX = 512  # transactions that replicate keeps open
FILES_CONTENDED_S = 2.0  # so long after a contention operations lock for themselves only
DISTRIBUTE_DIRECTORIES_MAX = 16384  # layouts that distribute remembers
DISTRIBUTE_FILES_MAX = 131072  # files of which it remembers where they are
DISTRIBUTE_NAMES_MAX = 65536  # names of which it remembers where they led
DISTRIBUTE_NOTE_S = 0.003  # a change of a directory that all copies have stays noted so long
DISTRIBUTE_COPY_BYTES = 1024 * 1024  # that a migration copies at a time
REBALANCE_AT_ONCE_BYTES_MAX = 1024 * 1024  # larger files are moved in phases
HEAL_BLOCK_BYTES = 128 * 1024
HEAL_WINDOW_BYTES_MAX = 4 * 1024 * 1024  # of a file that a heal locks at a time
HEAL_AGAIN_S = 10.0  # what a client could not heal is not tried again for so long
HEAL_SEEN_MAX = 65536  # inodes that a sweep remembers having looked at
HEAL_SWEEPS_MAX = 64  # of what is pending, one after another, for as long as each one heals something
EXPLAIN_RANGES_MAX = 32  # ranges and names that an explanation of a split-brain lists
HEAL_REQUEST_BYTES_MAX = 64 * 1024  # one request to the heal daemon
HEAL_WINDOWS_AT_A_TIME = 2  # of one file
HEAL_NAMES_MAX = 100_000  # names of a directory that a heal compares at a time
HEAL_BATCH_NAMES = 64  # names that a heal works on at the same time
HEAL_LOCKED_S = 0.25  # so long a heal keeps the names of a directory locked
