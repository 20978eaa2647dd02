# SPDX-License-Identifier: Apache-2.0
"""What goes between protocol/client and protocol/server: frames, values, operations, connections.  docs/files-wire.md
describes the format; it is ours (Gluster's ONC RPC is no goal, decision 0053)."""
