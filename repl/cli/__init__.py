# SPDX-License-Identifier: Apache-2.0
"""``replctl``: what an administrator types.  One file per group of commands."""
