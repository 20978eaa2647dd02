# SPDX-License-Identifier: Apache-2.0
"""The options of storage/posix, with Gluster's names and defaults."""

from __future__ import annotations

from repl.files.options import Kind, Option, Percent

OPTIONS = (
    Option("directory", Kind.PATH, "", "The brick: a directory on a file system with extended attributes."),
    Option("volume-id", Kind.STRING, "", "The volume that the brick belongs to; another one's brick is refused."),
    Option("reserve", Kind.PERCENT_OR_SIZE, Percent(1.0),
           "Space kept free: below it only heals and rebalance may allocate, others get ENOSPC."),
    Option("health-check-interval", Kind.TIME, 30.0, "Seconds between two tries of the disk; 0: never.", minimum=0),
    Option("health-check-timeout", Kind.TIME, 20.0, "A try that takes longer counts as a failed disk.", minimum=0),
    Option("max-hardlinks", Kind.INT, 100, "Most names of one file, EMLINK beyond; 0: as many as the disk takes.",
           minimum=0),
    Option("gfid2path", Kind.BOOL, True, "Note the names of a file in its extended attributes."),
    Option("o-direct", Kind.BOOL, False, "Go around the page cache for every open file."),
    Option("export-statfs-size", Kind.BOOL, True, "Tell clients the size of the file system; off: zeroes."),
    Option("shared-brick-count", Kind.INT, 1, "Bricks that share this file system: sizes are divided by it.",
           minimum=1),
    Option("background-unlink", Kind.BOOL, False, "Free the blocks of every removed file in the background."),
    Option("janitor-sleep-duration", Kind.TIME, 10.0, "Seconds between two rounds of the removal of garbage.",
           minimum=0.01),
    Option("create-mask", Kind.OCTAL, 0o777, "Permission bits that new files may have."),
    Option("create-directory-mask", Kind.OCTAL, 0o777, "Permission bits that new directories may have."),
    Option("force-create-mode", Kind.OCTAL, 0, "Permission bits that new files always have."),
    Option("force-directory-mode", Kind.OCTAL, 0, "Permission bits that new directories always have."),
    Option("brick-uid", Kind.INT, -1, "Owner of the brick's root; -1: as it is.", minimum=-1),
    Option("brick-gid", Kind.INT, -1, "Group of the brick's root; -1: as it is.", minimum=-1),
    Option("ctime", Kind.BOOL, True, "Heed the times that Gluster keeps in trusted.glusterfs.mdata."),
    Option("node-uuid-pathinfo", Kind.BOOL, False, "Name the node by its UUID, not its host name, in pathinfo."),
    Option("node-uuid", Kind.STRING, "", "The UUID for node-uuid-pathinfo."),
    Option("update-link-count-parent", Kind.BOOL, False, "Accepted; link counts are always right here."),
    Option("linux-aio", Kind.BOOL, False, "Accepted; cached reads never wait, others go to threads."),
    Option("batch-fsync-mode", Kind.STRING, "reverse-fsync", "Accepted; one fsync goes out for all that wait for it."),
    Option("batch-fsync-delay-usec", Kind.INT, 0, "Accepted; see batch-fsync-mode.", minimum=0),
    Option("fips-mode-rchecksum", Kind.BOOL, True, "Accepted; heals always compare SHA-256 digests."),
)  # fmt: skip
