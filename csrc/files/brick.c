/* SPDX-License-Identifier: Apache-2.0 */
/* See repl_brick.h.  Names, formats and orders are those of repl/files/translators/posix, which does the same step by
 * step where it is not as simple as here. */
#include "repl_brick.h"

#include "base/bytes.h"
#include "base/xxhash64.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define HIDDEN ".glusterfs"

enum {
    GFID_CHARS = 36,
    NAME_MAX_BYTES = 255,
    FOLDER_CHARS = sizeof HIDDEN "/00/00" - 1,
    HANDLE_ROOM = FOLDER_CHARS + 1 + GFID_CHARS + 1,
    PROC_ROOM = 32,
    SIZE_BYTES = 4,
};

static const uint8_t ROOT_GFID[RB_GFID_BYTES] = {[RB_GFID_BYTES - 1] = 1};
static const uint8_t NO_GFID[RB_GFID_BYTES];

/* ---- how things are called ---- */

/* The usual spelling with dashes; no zero at the end. */
static char *put_gfid(char *out, const uint8_t *gfid)
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < RB_GFID_BYTES; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *out++ = '-';
        *out++ = digits[gfid[i] >> 4];
        *out++ = digits[gfid[i] & 15];
    }
    return out;
}

/* .glusterfs/ab/cd/abcd... */
static void put_handle(char out[HANDLE_ROOM], const uint8_t *gfid)
{
    char text[GFID_CHARS];
    put_gfid(text, gfid);
    memcpy(out, HIDDEN "/", sizeof HIDDEN);
    char *at = out + sizeof HIDDEN;
    *at++ = text[0];
    *at++ = text[1];
    *at++ = '/';
    *at++ = text[2];
    *at++ = text[3];
    *at++ = '/';
    memcpy(at, text, GFID_CHARS);
    at[GFID_CHARS] = '\0';
}

/* The two folders that a handle lies in. */
static int make_folder(int root, const char handle[HANDLE_ROOM])
{
    static const size_t lengths[] = {FOLDER_CHARS - 3, FOLDER_CHARS};
    char path[FOLDER_CHARS + 1];
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        memcpy(path, handle, lengths[i]);
        path[lengths[i]] = '\0';
        if (mkdirat(root, path, 0700) < 0 && errno != EEXIST)
            return -errno;
    }
    return 0;
}

static int link_handle(int source_at, const char *source, int root, const uint8_t *gfid, int flags)
{
    char handle[HANDLE_ROOM];
    put_handle(handle, gfid);
    for (int attempt = 0; attempt < 2; attempt++) {
        if (linkat(source_at, source, root, handle, flags) == 0)
            return 0;
        if (errno != ENOENT)
            return -errno;
        int made = make_folder(root, handle);
        if (made < 0)
            return made;
    }
    return -ENOENT;
}

/* ---- attributes of inodes ---- */

static int64_t ns(struct timespec time)
{
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* The handle is no link of the user's, and .glusterfs none of his directories. */
static uint32_t links(const struct stat *st, const uint8_t *gfid)
{
    uint32_t count = (uint32_t)st->st_nlink;
    if (!S_ISDIR(st->st_mode))
        return count > 0 ? count - 1 : 0;
    return count > 2 && memcmp(gfid, ROOT_GFID, RB_GFID_BYTES) == 0 ? count - 1 : count;
}

static void put_iatt(uint8_t *out, const struct stat *st, const uint8_t *gfid)
{
    memcpy(out, gfid, RB_GFID_BYTES);
    be32_put(out + 16, st->st_mode);
    be32_put(out + 20, links(st, gfid));
    be32_put(out + 24, st->st_uid);
    be32_put(out + 28, st->st_gid);
    be64_put(out + 32, st->st_rdev);
    be64_put(out + 40, (uint64_t)st->st_size);
    be64_put(out + 48, (uint64_t)st->st_blocks);
    be32_put(out + 56, (uint32_t)st->st_blksize);
    be64_put(out + 60, (uint64_t)ns(st->st_atim));
    be64_put(out + 68, (uint64_t)ns(st->st_mtim));
    be64_put(out + 76, (uint64_t)ns(st->st_ctim));
}

static int look(int fd, const uint8_t *gfid, uint8_t *iatt)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    put_iatt(iatt, &st, gfid);
    return 0;
}

/* ---- a new file ---- */

/* trusted.gfid2path.<hash of the value>: <gfid of the directory>/<name> */
static int note_name(int fd, const uint8_t *above, const char *name)
{
    size_t name_bytes = strlen(name);
    if (name_bytes > NAME_MAX_BYTES)
        return -ENAMETOOLONG;
    char value[GFID_CHARS + 1 + NAME_MAX_BYTES], key[sizeof "trusted.gfid2path." + 16];
    char *at = put_gfid(value, above);
    *at++ = '/';
    memcpy(at, name, name_bytes);
    size_t bytes = GFID_CHARS + 1 + name_bytes;
    snprintf(key, sizeof key, "trusted.gfid2path.%016llx", (unsigned long long)xxhash64(value, bytes));
    return fsetxattr(fd, key, value, bytes, 0) < 0 ? -errno : 0;
}

static int set_extra(int fd, const uint8_t *extra, size_t bytes)
{
    while (bytes > 0) {
        const uint8_t *end = memchr(extra, 0, bytes);
        if (end == NULL || (size_t)(end + 1 - extra) + SIZE_BYTES > bytes)
            return -EINVAL;
        size_t head = (size_t)(end + 1 - extra) + SIZE_BYTES, size = le32_get(end + 1);
        if (size > bytes - head)
            return -EINVAL;
        if (fsetxattr(fd, (const char *)extra, extra + head, size, 0) < 0)
            return -errno;
        extra += head + size;
        bytes -= head + size;
    }
    return 0;
}

/* A directory with the set-group-id bit gives its group to what is made in it. */
static int own(int parent, int fd, uint32_t mode, uint32_t uid, uint32_t gid)
{
    struct stat above;
    if (fstat(parent, &above) < 0)
        return -errno;
    bool inherits = (above.st_mode & S_ISGID) != 0;
    if (inherits)
        gid = above.st_gid;
    if (uid == 0 && gid == 0 && !inherits)
        return 0;
    if (fchown(fd, uid, gid) < 0)
        return -errno;
    if ((mode & 06000) != 0 && fchmod(fd, mode & 07777) < 0)
        return -errno;
    return 0;
}

static int link_both(int root, int parent, int fd, const char *name, const uint8_t *gfid)
{
    char source[PROC_ROOM];
    snprintf(source, sizeof source, "/proc/self/fd/%d", fd);
    if (linkat(AT_FDCWD, source, parent, name, AT_SYMLINK_FOLLOW) < 0)
        return -errno;
    int linked = link_handle(AT_FDCWD, source, root, gfid, AT_SYMLINK_FOLLOW);
    if (linked < 0 && unlinkat(parent, name, 0) < 0)
        return -errno;
    return linked;
}

int rb_complete(int root, int parent, int fd, const char *name, const uint8_t *gfid, const uint8_t *above,
                uint32_t mode, uint32_t uid, uint32_t gid, const uint8_t *extra, size_t extra_bytes, uint8_t *iatts)
{
    if (fsetxattr(fd, "trusted.gfid", gfid, RB_GFID_BYTES, 0) < 0)
        return -errno;
    int done = above != NULL ? note_name(fd, above, name) : 0;
    if (done == 0)
        done = set_extra(fd, extra, extra_bytes);
    if (done == 0)
        done = own(parent, fd, mode, uid, gid);
    if (done == 0)
        done = link_both(root, parent, fd, name, gfid);
    if (done == 0)
        done = look(fd, gfid, iatts);
    if (done == 0)
        done = look(parent, NO_GFID, iatts + RB_IATT_BYTES);
    return done;
}

/* ---- names ---- */

int rb_look(int parent, const char *name, const uint8_t *above, uint8_t *iatts, uint64_t *inode)
{
    struct stat st;
    uint8_t gfid[RB_GFID_BYTES];
    char path[PROC_ROOM + NAME_MAX_BYTES + 1];
    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || (!S_ISDIR(st.st_mode) && st.st_nlink < 2))
        return RB_OTHERWISE;
    int chars = snprintf(path, sizeof path, "/proc/self/fd/%d/%s", parent, name);
    if (chars < 0 || (size_t)chars >= sizeof path)
        return RB_OTHERWISE;
    if (lgetxattr(path, "trusted.gfid", gfid, sizeof gfid) != RB_GFID_BYTES)
        return RB_OTHERWISE;
    put_iatt(iatts, &st, gfid);
    *inode = st.st_ino;
    return look(parent, above, iatts + RB_IATT_BYTES) < 0 ? RB_OTHERWISE : 0;
}

int rb_remove(int root, int parent, const char *name, const uint8_t *gfid, const uint8_t *above, uint8_t *iatt)
{
    char handle[HANDLE_ROOM];
    put_handle(handle, gfid);
    if (unlinkat(root, handle, 0) < 0 && errno != ENOENT)
        return -errno;
    if (unlinkat(parent, name, 0) < 0) {
        int error = errno, restored = link_handle(parent, name, root, gfid, 0);
        return restored < 0 ? restored : -error;
    }
    return look(parent, above, iatt);
}

/* ---- data, counters ---- */

int rb_write(int fd, const uint8_t *gfid, const uint8_t *data, size_t bytes, int64_t offset, int how, uint8_t *iatts)
{
    int looked = look(fd, gfid, iatts);
    if (looked < 0)
        return looked;
    while (bytes > 0) {
        struct iovec piece = {(void *)(uintptr_t)data, bytes};
        ssize_t count = pwritev2(fd, &piece, 1, offset, how);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return -errno;
        data += count;
        bytes -= (size_t)count;
        offset += count;
    }
    return look(fd, gfid, iatts + RB_IATT_BYTES);
}

int rb_add(const char *path, const char *key, const uint8_t *delta, size_t bytes, uint8_t *after)
{
    uint8_t before[RB_COUNTER_MAX] = {0};
    ssize_t got = lgetxattr(path, key, before, sizeof before);
    if (got < 0 || got % 4 != 0 || bytes % 4 != 0 || bytes == 0 || bytes > sizeof before)
        return RB_OTHERWISE;
    size_t size = (size_t)got > bytes ? (size_t)got : bytes;
    memcpy(after, before, size);
    for (size_t at = 0; at < bytes; at += 4)
        be32_put(after + at, be32_get(before + at) + be32_get(delta + at));
    bool is_same = size == (size_t)got && memcmp(before, after, size) == 0;
    if (!is_same && lsetxattr(path, key, after, size, 0) < 0)
        return -errno;
    return (int)size;
}
