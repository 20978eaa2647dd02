/* SPDX-License-Identifier: Apache-2.0 */
/* What storage/posix does with one file, several system calls in a row: each call from Python costs more than most of
 * these take.
 *
 * Everything is reached by an open directory and a single component, or by a handle below the brick's root, whose path
 * is made here of nothing but a gfid; no symbolic link is followed.  Results are 0 or more, or minus an error number.
 * Whoever calls decides what is to be done; nothing is remembered here, so any thread may call.
 * This header is read by the C compiler and by cffi; cffi sees no preprocessor lines.
 */
/* cffi: off */
#ifndef REPL_BRICK_H
#define REPL_BRICK_H
#include <stddef.h>
#include <stdint.h>
/* cffi: on */

enum {
    RB_GFID_BYTES = 16,
    RB_IATT_BYTES = 84,  /* attributes as they stand in a frame (repl/files/rpc/packing.py) */
    RB_COUNTER_MAX = 256, /* bytes of a counter's value */
    RB_OTHERWISE = 1,    /* not so simple: nothing was changed, the caller does it step by step */
};

/* Gives the new file `fd` (made by O_TMPFILE in `parent`) its gfid, the note of its name (none without `above`, the
 * directory's gfid), more attributes, its owner, then its name, then its handle.  `extra`: of each attribute its name
 * with a zero, the value's size (32 bits, little-endian), the value.  Two attributes of inodes are answered: of the
 * file, and of its directory without a gfid.  After an error the file has no name; `fd` stays open. */
int rb_complete(int root, int parent, int fd, const char *name, const uint8_t *gfid, const uint8_t *above,
                uint32_t mode, uint32_t uid, uint32_t gid, const uint8_t *extra, size_t extra_bytes, uint8_t *iatts);

/* The inode behind a name, and its directory (`above`: its gfid).  RB_OTHERWISE: there is none, or it has no gfid, or
 * it is a file without a handle, or whatever else is not as usual. */
int rb_look(int parent, const char *name, const uint8_t *above, uint8_t *iatts, uint64_t *inode);

/* Removes a file's handle, then its last name; the directory as it is afterwards.  After an error both are there. */
int rb_remove(int root, int parent, const char *name, const uint8_t *gfid, const uint8_t *above, uint8_t *iatt);

/* All of it, and the file before and afterwards.  `how`: flags of pwritev2(2). */
int rb_write(int fd, const uint8_t *gfid, const uint8_t *data, size_t bytes, int64_t offset, int how, uint8_t *iatts);

/* Adds big-endian 32-bit words to the attribute `key` of what `path` leads to, no link followed; the size of `after`.
 * RB_OTHERWISE (which is no such size): it has none. */
int rb_add(const char *path, const char *key, const uint8_t *delta, size_t bytes, uint8_t *after);

/* cffi: off */
#endif
/* cffi: on */
