# SPDX-License-Identifier: Apache-2.0
"""The options of performance/md-cache (spec 4.5)."""

from __future__ import annotations

from repl.files.options import Kind, Option

OPTIONS = (
    Option("md-cache-timeout", Kind.TIME, 1.0,
           "how long attributes and names are trusted.  With features/upcall in the bricks, which tells of changes, "
           "600 is fine", minimum=0, maximum=600),
    Option("cache-invalidation", Kind.BOOL, True,
           "accepted; bricks with features/upcall are always listened to.  differs: off in Gluster"),
    Option("global-cache-invalidation", Kind.BOOL, True, "accepted, the same"),
    Option("cache-names", Kind.BOOL, True,
           "names of directories are remembered, and that there is none.  differs: Gluster leaves names to the kernel"),
    Option("list-ahead", Kind.BOOL, True,
           "a directory in which many names are looked up is listed with attributes.  differs: not in Gluster"),
    Option("cache-capability-xattrs", Kind.BOOL, True, "remember security.capability"),
    Option("cache-ima-xattrs", Kind.BOOL, True, "remember security.ima"),
    Option("cache-selinux", Kind.BOOL, False, "remember security.selinux"),
    Option("cache-posix-acl", Kind.BOOL, False, "remember system.posix_acl_*"),
    Option("cache-swift-metadata", Kind.BOOL, False, "remember user.swift.metadata"),
    Option("cache-samba-metadata", Kind.BOOL, False, "remember user.DOSATTRIB and user.org.netatalk.Metadata"),
    Option("xattr-cache-list", Kind.LIST, (), "more extended attributes to remember; a * at the end stands for any"),
    Option("force-readdirp", Kind.BOOL, True, "accepted; listings have attributes when the kernel asks for them"),
    Option("md-cache-statfs", Kind.BOOL, False, "remember free space for as long"),
    Option("pass-through", Kind.BOOL, False, "remember nothing"),
)  # fmt: skip

XATTRS = (
    ("cache-capability-xattrs", (b"security.capability",)),
    ("cache-ima-xattrs", (b"security.ima",)),
    ("cache-selinux", (b"security.selinux",)),
    ("cache-posix-acl", (b"system.posix_acl_access", b"system.posix_acl_default")),
    ("cache-swift-metadata", (b"user.swift.metadata",)),
    ("cache-samba-metadata", (b"user.DOSATTRIB", b"user.org.netatalk.Metadata")),
)
