/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Named sizes and bounds of the engine.
 * Invariant: every value that is a disk or wire format constant says so; all others are our own choice.
 */
#ifndef BASE_LIMITS_H
#define BASE_LIMITS_H

#include <stdint.h>

/* Units (disk and wire format). */
#define SECTOR_BYTES 512u
#define SECTOR_SHIFT 9u
#define BLOCK_BYTES 4096u /* metadata I/O unit and bytes covered by one bitmap bit */
#define BLOCK_SHIFT 12u
#define BLOCK_SECTORS 8u

/* Activity log (disk format). */
#define AL_EXTENT_BYTES (4u * 1024 * 1024)
#define AL_EXTENT_SHIFT 22u
#define AL_EXTENT_SECTORS 8192u
#define BITS_PER_EXTENT 1024u /* bitmap bits of one activity log extent */
#define AL_UPDATES_PER_TRANSACTION 64u
#define AL_CONTEXT_PER_TRANSACTION 919u
#define AL_SLOTS_MIN 67u
#define AL_SLOTS_MAX 65534u
#define AL_SLOTS_DEFAULT 1237u
#define AL_EXTENTS_PER_REQUEST_MAX 32u /* so that one transaction always suffices */
#define AL_RING_BLOCKS_MAX (16ull * 1024 * 1024 * 1024 / BLOCK_BYTES)
#define AL_STRIPES_MAX 1024u

/* Resync extent, in memory only. */
#define RESYNC_EXTENT_BYTES (16u * 1024 * 1024)
#define RESYNC_EXTENT_SHIFT 24u
#define BITS_PER_RESYNC_EXTENT 4096u
#define RESYNC_EXTENTS_LOCKED_MAX 61u

/* Bitmap (disk format: one 4 KiB page covers 128 MiB of data). */
#define BITMAP_PAGE_BYTES BLOCK_BYTES
#define BITMAP_PAGE_BITS (BITMAP_PAGE_BYTES * 8u)
#define BITMAP_PAGE_WORDS (BITMAP_PAGE_BYTES / 8u)
#define BITMAP_EXTENTS_PER_PAGE (BITMAP_PAGE_BITS / BITS_PER_EXTENT)
#define BITMAP_PAGE_COVERS_BYTES ((uint64_t)BITMAP_PAGE_BITS * BLOCK_BYTES)
#define DEVICE_BYTES_MAX (1ull << 50) /* DRBD 8.4's own limit: the bitmap of 1 PiB takes 32 GiB */
#define BITMAP_BITS_MAX (DEVICE_BYTES_MAX / BLOCK_BYTES)

/* Peer protocol. */
#define PEER_REQUEST_BYTES_MAX (1024u * 1024) /* largest data payload of one packet */
#define PEER_CONTROL_PACKET_BYTES_MAX 4096u   /* largest body of any packet without payload */
#define PEER_DISCARD_BYTES_MAX (128u * 1024 * 1024)

/* Requests of clients. */
#define BATCH_BYTES_MAX (128u * 1024 * 1024) /* data of all requests taken in one turn */
#define REQUEST_BYTES_MAX (32u * 1024 * 1024)
#define VOLUMES_MAX 64u

_Static_assert(AL_EXTENT_BYTES == BITS_PER_EXTENT * BLOCK_BYTES, "extent and bitmap granularity agree");
_Static_assert(BLOCK_BYTES == BLOCK_SECTORS * SECTOR_BYTES, "block and sector agree");

#endif
