# SPDX-License-Identifier: Apache-2.0
"""The mount: a graph of translators as a file system of the kernel's, through /dev/fuse."""
