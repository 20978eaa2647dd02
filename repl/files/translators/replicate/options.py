# SPDX-License-Identifier: Apache-2.0
"""The options of cluster/replicate: GlusterFS's names and, but for what is marked, its defaults."""

from __future__ import annotations

from repl.files.options import Kind, Option

READ_HASH_MODE_MAX = 5

OPTIONS = (
    Option("afr-pending-xattr", Kind.LIST, (),
           "names of the children in the pending counters (trusted.afr.NAME), in their order; without it the names of "
           "the child volumes count, or, where a brick of this process is among them, identities kept on the bricks"),
    Option("read-subvolume", Kind.STRING, "", "the child to read from while it can be read"),
    Option("read-subvolume-index", Kind.INT, -1, "the same by its number from 0; -1: none", minimum=-1),
    Option("read-hash-mode", Kind.INT, 1,
           "who reads from where: 0 the first readable child, 1 by a hash of the gfid, 2 by gfid and process, 3 the "
           "one with the fewest reads under way, 4 the quickest, 5 both", minimum=0, maximum=READ_HASH_MODE_MAX),
    Option("choose-local", Kind.BOOL, True, "read from a brick of this host when there is one"),
    Option("consistent-metadata", Kind.BOOL, False, "attributes are read from the child that data is read from"),
    Option("quorum-type", Kind.CHOICE, "",
           "how many copies a change needs: auto more than half (of an even number half with the first child), fixed "
           "quorum-count, none one; default auto with more than two children, else none",
           choices=("auto", "fixed", "none", "")),
    Option("quorum-count", Kind.INT, 0, "copies that a change needs with quorum-type fixed", minimum=0),
    Option("quorum-reads", Kind.BOOL, False, "reads need the quorum too"),
    Option("arbiter-count", Kind.INT, 0, "1: the last child is an arbiter, which has no data", minimum=0, maximum=1),
    Option("optimistic-change-log", Kind.BOOL, True,
           "changes of metadata with all children up are not marked beforehand"),
    Option("ensure-durability", Kind.BOOL, True, "the mark of a write goes only after an fsync on all copies"),
    Option("eager-lock", Kind.BOOL, True, "locks are kept for the operations that follow"),
    Option("post-op-delay-secs", Kind.TIME, 1.0, "how long they are kept after the last one", minimum=0, maximum=60),
    Option("use-compound-fops", Kind.BOOL, True, "several operations travel in one frame"),
    Option("data-self-heal", Kind.BOOL, True, "a client that meets an old copy of a file heals it",
           aliases=("self-heal-data",)),
    Option("metadata-self-heal", Kind.BOOL, True, "the same for attributes"),
    Option("entry-self-heal", Kind.BOOL, True, "the same for the names of a directory"),
    Option("data-self-heal-algorithm", Kind.CHOICE, "dynamic",
           "diff copies blocks that differ, full all; dynamic is diff unless the old copy is empty",
           choices=("diff", "full", "dynamic", "reset")),
    Option("data-self-heal-window-size", Kind.INT, 8, "blocks of 128 KiB that are healed at a time",
           minimum=1, maximum=1024),
    Option("background-self-heal-count", Kind.INT, 8, "heals of a client at the same time", minimum=0, maximum=256),
    Option("heal-wait-queue-length", Kind.INT, 128,
           "heals of a client that wait; what finds no place is left to the index", minimum=0, maximum=10000,
           aliases=("heal-wait-queue-len",)),
    Option("heal-timeout", Kind.TIME, 600.0, "the heal daemon looks at the index that often", minimum=5),
    Option("shd-max-threads", Kind.INT, 8, "heals of the daemon at the same time", minimum=1, maximum=64),
    Option("shd-wait-qlength", Kind.INT, 1024, "heals of the daemon that wait", minimum=1, maximum=655536),
    Option("iam-self-heal-daemon", Kind.BOOL, False, "this graph belongs to a heal daemon"),
    Option("iam-nfs-daemon", Kind.BOOL, False, "for GlusterFS; no effect"),
    Option("self-heal-daemon", Kind.BOOL, True, "the heal daemon heals this volume",
           aliases=("cluster.self-heal-daemon",)),
    Option("self-heal-readdir-size", Kind.SIZE, 64 * 1024, "how much of a directory a heal reads at a time",
           minimum=1024, maximum=1024 * 1024),
    Option("granular-entry-heal", Kind.BOOL, False,
           "names that change while a child is away are noted in the index, and a heal looks at those only; needs "
           "features/index on all bricks, switch it on when nothing is pending"),
    Option("use-anonymous-inode", Kind.BOOL, True,
           "what loses its name in a heal is kept aside until it is known that it was not renamed"),
    Option("favorite-child-policy", Kind.CHOICE, "none", "who wins a split-brain without asking",
           choices=("none", "size", "ctime", "mtime", "majority")),
    Option("volume-id", Kind.STRING, "", "names the directory for things that lost their name"),
    Option("pre-op-compat", Kind.BOOL, True, "for GlusterFS; no effect"),
    Option("metadata-splitbrain-forced-heal", Kind.BOOL, False, "for GlusterFS; no effect"),
    Option("strict-readdir", Kind.BOOL, False, "for GlusterFS; no effect"),
    Option("node-uuid", Kind.STRING, "", "for GlusterFS; no effect"),
    Option("locks-trace", Kind.BOOL, False, "for GlusterFS; no effect", aliases=("entrylk-trace",)),
    Option("halo-enabled", Kind.BOOL, False, "for GlusterFS; no effect"),
    Option("spb-choice-timeout", Kind.TIME, 300.0, "how long replica.split-brain-choice holds", minimum=0),
    Option("child-wait-secs", Kind.TIME, 10.0,
           "at the start operations wait that long for children that have not said whether they are up", minimum=0),
)  # fmt: skip
