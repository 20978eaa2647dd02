# SPDX-License-Identifier: Apache-2.0
"""Volumes as an administrator sees them: bricks, options, and the volfiles that follow.  No processes here."""
