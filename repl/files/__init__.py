# SPDX-License-Identifier: Apache-2.0
"""Replicated and distributed files: graphs of translators, bricks that keep Gluster's on-disk format, a FUSE mount."""
