# SPDX-License-Identifier: Apache-2.0
"""Replicated block devices in user space, in DRBD 8.4's wire protocol and metadata."""

__version__ = "0.1.0"
