# SPDX-License-Identifier: Apache-2.0
"""A crash at every point of a disk's life: what the next attach finds must be legal and cover every unconfirmed write.

One node on a recorded simulated disk: create metadata, attach, promote alone, write to more extents than the activity
log holds, detach, go down.  For every point of the record and every legal subset of the unflushed writes (sampled
above twelve of them), also torn: the image is made, replayed twice, and judged; the replay's own writes are swept in
the same way, and drbdmeta judges a sample.
"""
