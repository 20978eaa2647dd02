# SPDX-License-Identifier: Apache-2.0
"""cluster/distribute: each file is on one subvolume, each directory on all (spec section 6).

Inputs: one subvolume or more.  What it does, by module: names and their places (name_hash, layout, marks), subvolumes
and locks (base), directories (directories, trees), link files (links), lookups (lookups),
files (files, names, renames), files that are being migrated (migrating, copying), listings (listing), free space
(space).
Errors: ENOTCONN for what is, or belongs, on a subvolume that is away; EIO for a directory with two gfids.
"""

from __future__ import annotations

from repl.files.translators.distribute.distribute import Distribute

__all__ = ["Distribute"]
