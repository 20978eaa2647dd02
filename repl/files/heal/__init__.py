# SPDX-License-Identifier: Apache-2.0
"""Healing a volume as a whole: the daemon repl-heald, sweeps, what is pending, split-brains and their resolution.

How one inode is healed is in ``repl.files.translators.replicate``.
"""
