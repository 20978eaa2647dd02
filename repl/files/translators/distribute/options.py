# SPDX-License-Identifier: Apache-2.0
"""The options of cluster/distribute: GlusterFS's names and, but for what is marked, its defaults."""

from __future__ import annotations

from repl.files.options import Kind, Option, Percent
from repl.files.translators.distribute.name_hash import RSYNC_PATTERN

OPTIONS = (
    Option("lookup-unhashed", Kind.CHOICE, "on",
           "a name that is not where its hash says is looked for everywhere: on and auto where the directory's layout "
           "does not rule that out, off never",
           choices=("on", "yes", "true", "enable", "1", "auto", "off", "no", "false", "disable", "0")),
    Option("lookup-optimize", Kind.BOOL, True,
           "a directory with the volume's commit number has every name where its hash says: a miss there is final"),
    Option("min-free-disk", Kind.PERCENT_OR_SIZE, Percent(10.0),
           "new files go elsewhere when less than that is free where they belong"),
    Option("min-free-inodes", Kind.PERCENT, 5.0, "the same for inodes"),
    Option("decommissioned-bricks", Kind.STRING, "",
           "subvolumes that get no new directories' ranges, separated by blanks or commas: they are being emptied"),
    Option("directory-layout-spread", Kind.INT, 0, "subvolumes that share the names of one directory; 0: all",
           minimum=0, aliases=("subvols-per-directory",)),
    Option("weighted-rebalance", Kind.BOOL, True, "larger subvolumes get larger ranges in fix-layout"),
    Option("randomize-hash-range-by-gfid", Kind.BOOL, False,
           "the directory's gfid, not its path, decides who gets the first range"),
    Option("rsync-hash-regex", Kind.STRING, RSYNC_PATTERN,
           "temporary names that belong where the name in the first group does; none: none"),
    Option("extra-hash-regex", Kind.STRING, "", "another such pattern, tried first"),
    Option("assert-no-child-down", Kind.BOOL, False, "the volume counts as down when one subvolume is"),
    Option("xattr-name", Kind.STRING, "trusted.glusterfs.dht", "the attribute of the layout", aliases=("xattr_name",)),
    Option("min-free-interval", Kind.TIME, 5.0, "how old what is known of free space may be", minimum=0.1),
    Option("child-wait-secs", Kind.TIME, 10.0,
           "at the start operations wait that long for subvolumes that have not said whether they are up", minimum=0),
    Option("rebal-throttle", Kind.STRING, "normal",
           "files that a rebalance moves at the same time: lazy, normal, aggressive or a number"),
    Option("lock-migration", Kind.BOOL, False, "for GlusterFS; files with locks are not moved while they are locked"),
    Option("force-migration", Kind.BOOL, False, "for GlusterFS; no effect"),
    Option("unhashed-sticky-bit", Kind.BOOL, False, "for GlusterFS; no effect"),
    Option("use-readdirp", Kind.BOOL, True, "for GlusterFS; no effect"),
    Option("readdir-optimize", Kind.BOOL, False, "for GlusterFS; no effect"),
    Option("rebalance-stats", Kind.BOOL, False, "for GlusterFS; no effect"),
    Option("rebalance-filter", Kind.STRING, "", "for GlusterFS; no effect"),
    Option("commit-hash", Kind.STRING, "", "for GlusterFS; no effect"),
    Option("node-uuid", Kind.STRING, "", "for GlusterFS; no effect"),
)  # fmt: skip
