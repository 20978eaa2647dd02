/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of a brick's calls on a real directory.  Skipped (77) where trusted attributes cannot be written. */
#include "base/bytes.h"
#include "base/check.h"
#include "repl_brick.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { SKIPPED = 77 };

static const uint8_t ROOT[RB_GFID_BYTES] = {[15] = 1};
static const uint8_t GFID[RB_GFID_BYTES] = {
    0x87, 0xd3, 0x98, 0xc6, 0xeb, 0xdf, 0x43, 0xe1, 0x96, 0x2e, 0x4a, 0xb3, 0x4b, 0x79, 0xb5, 0x1b,
};
static const char HANDLE[] = ".glusterfs/87/d3/87d398c6-ebdf-43e1-962e-4ab34b79b51b";
static const char DIRTY[] = "trusted.afr.dirty";

static int open_new(int root)
{
    return openat(root, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0644);
}

static int complete(int root, int fd, const char *name, uint32_t mode, uint32_t uid, const uint8_t *extra, size_t bytes,
                    uint8_t *iatts)
{
    return rb_complete(root, root, fd, name, GFID, ROOT, mode, uid, uid, extra, bytes, iatts);
}

static void test_a_new_file_has_identity_note_counter_owner_name_and_handle(int root)
{
    uint8_t iatts[2 * RB_IATT_BYTES], extra[64], value[64];
    size_t bytes = sizeof DIRTY;
    memcpy(extra, DIRTY, bytes);
    le32_put(extra + bytes, 4);
    memcpy(extra + bytes + 4, "\0\0\0\1", 4);
    int fd = open_new(root);
    CHECK(fd >= 0);
    CHECK(complete(root, fd, "file", 04755, 7, extra, bytes + 8, iatts) == 0);
    CHECK(memcmp(iatts, GFID, RB_GFID_BYTES) == 0);
    CHECK(be32_get(iatts + 16) == (S_IFREG | 04755) && be32_get(iatts + 20) == 1 && be32_get(iatts + 24) == 7);
    CHECK((be32_get(iatts + RB_IATT_BYTES + 16) & S_IFMT) == S_IFDIR);
    struct stat st, handle;
    CHECK(fstatat(root, "file", &st, 0) == 0 && fstatat(root, HANDLE, &handle, 0) == 0 && st.st_ino == handle.st_ino);
    CHECK(fgetxattr(fd, "trusted.gfid", value, sizeof value) == 16 && memcmp(value, GFID, 16) == 0);
    CHECK(fgetxattr(fd, DIRTY, value, sizeof value) == 4 && value[3] == 1);
    /* Key and value as on a brick of GlusterFS: its hash of the value. */
    char names[256], note[sizeof "00000000-0000-0000-0000-000000000001/file" - 1];
    ssize_t size = flistxattr(fd, names, sizeof names);
    bool is_noted = false;
    for (ssize_t at = 0; at < size; at += (ssize_t)strlen(names + at) + 1)
        if (strncmp(names + at, "trusted.gfid2path.", 18) == 0) {
            CHECK(fgetxattr(fd, names + at, note, sizeof note) == (ssize_t)sizeof note);
            is_noted = memcmp(note, "00000000-0000-0000-0000-000000000001/file", sizeof note) == 0;
        }
    CHECK(is_noted);
    close(fd);
}

static void test_a_name_that_is_there_stays_what_it_is(int root)
{
    uint8_t iatts[2 * RB_IATT_BYTES], other[RB_GFID_BYTES] = {9};
    int fd = open_new(root);
    CHECK(rb_complete(root, root, fd, "file", other, NULL, 0644, 0, 0, NULL, 0, iatts) == -EEXIST);
    /* A gfid that is there: its name goes again. */
    CHECK(complete(root, fd, "another", 0644, 0, NULL, 0, iatts) == -EEXIST);
    CHECK(faccessat(root, "another", F_OK, 0) < 0 && errno == ENOENT);
    close(fd);
}

static void test_attributes_that_reach_beyond_their_end_are_refused(int root)
{
    uint8_t iatts[2 * RB_IATT_BYTES];
    int fd = open_new(root);
    static const struct {
        const char *extra;
        size_t bytes;
    } wrong[] = {{"user.a", 6}, {"user.a", 7}, {"user.a\0\1\0\0\0", 11}, {"user.a\0\xff\xff\xff\xff" "b", 12}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        uint8_t *exact = malloc(wrong[i].bytes); /* so that the sanitizer sees a byte too far */
        CHECK(exact != NULL);
        memcpy(exact, wrong[i].extra, wrong[i].bytes);
        CHECK(complete(root, fd, "never", 0644, 0, exact, wrong[i].bytes, iatts) == -EINVAL);
        free(exact);
    }
    char name[300];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    CHECK(complete(root, fd, name, 0644, 0, NULL, 0, iatts) == -ENAMETOOLONG);
    close(fd);
}

static void test_looking_tells_what_is_usual_and_nothing_else(int root)
{
    uint8_t iatts[2 * RB_IATT_BYTES];
    uint64_t inode = 0;
    struct stat st;
    CHECK(fstatat(root, "file", &st, 0) == 0);
    CHECK(rb_look(root, "file", ROOT, iatts, &inode) == 0);
    CHECK(memcmp(iatts, GFID, RB_GFID_BYTES) == 0 && inode == st.st_ino && be32_get(iatts + 20) == 1);
    CHECK(memcmp(iatts + RB_IATT_BYTES, ROOT, RB_GFID_BYTES) == 0);
    CHECK(rb_look(root, "nothing", ROOT, iatts, &inode) == RB_OTHERWISE);
    int fd = openat(root, "foreign", O_CREAT | O_WRONLY, 0600);
    CHECK(fd >= 0 && rb_look(root, "foreign", ROOT, iatts, &inode) == RB_OTHERWISE);
    close(fd);
    CHECK(linkat(root, "foreign", root, "second", 0) == 0);
    CHECK(rb_look(root, "second", ROOT, iatts, &inode) == RB_OTHERWISE);
    CHECK(symlinkat("file", root, "link") == 0 && rb_look(root, "link", ROOT, iatts, &inode) == RB_OTHERWISE);
}

static void test_writes_tell_before_and_after(int root)
{
    uint8_t iatts[2 * RB_IATT_BYTES];
    char text[16];
    int fd = openat(root, "file", O_RDWR);
    CHECK(rb_write(fd, GFID, (const uint8_t *)"hello", 5, 3, 0, iatts) == 0);
    CHECK(be64_get(iatts + 40) == 0 && be64_get(iatts + RB_IATT_BYTES + 40) == 8);
    CHECK(pread(fd, text, sizeof text, 0) == 8 && memcmp(text, "\0\0\0hello", 8) == 0);
    CHECK(rb_write(fd, GFID, NULL, 0, 3, 0, iatts) == 0);
    close(fd);
    CHECK(rb_write(fd, GFID, (const uint8_t *)"x", 1, 0, 0, iatts) == -EBADF);
}

static void test_counters_are_added_word_by_word(int root)
{
    char path[64];
    uint8_t after[RB_COUNTER_MAX], stored[16];
    snprintf(path, sizeof path, "/proc/self/fd/%d/file", root);
    CHECK(rb_add(path, DIRTY, (const uint8_t *)"\xff\xff\xff\xff\0\0\0\2", 8, after) == 8);
    CHECK(memcmp(after, "\0\0\0\0\0\0\0\2", 8) == 0);
    CHECK(lgetxattr(path, DIRTY, stored, sizeof stored) == 8 && memcmp(stored, after, 8) == 0);
    CHECK(rb_add(path, DIRTY, (const uint8_t *)"\0\0\0\0", 4, after) == 8 && after[7] == 2);
    CHECK(rb_add(path, DIRTY, after, 3, after) == RB_OTHERWISE);
    CHECK(rb_add(path, "trusted.afr.none", after, 4, after) == RB_OTHERWISE);
}

static void test_a_file_goes_with_its_handle(int root)
{
    uint8_t iatt[RB_IATT_BYTES];
    CHECK(rb_remove(root, root, "file", GFID, ROOT, iatt) == 0);
    CHECK(memcmp(iatt, ROOT, RB_GFID_BYTES) == 0 && (be32_get(iatt + 16) & S_IFMT) == S_IFDIR);
    CHECK(faccessat(root, "file", F_OK, 0) < 0 && faccessat(root, HANDLE, F_OK, 0) < 0);
    CHECK(rb_remove(root, root, "file", GFID, ROOT, iatt) == -ENOENT);
    CHECK(rb_remove(root, root, "foreign", GFID, ROOT, iatt) == 0); /* it had no handle */
}

int main(void)
{
    char path[] = "test_brick_XXXXXX"; /* where the build is: a temporary file system may not know such attributes */
    CHECK(mkdtemp(path) != NULL);
    int root = open(path, O_RDONLY | O_DIRECTORY);
    CHECK(root >= 0);
    int status = 0;
    int fd = open_new(root);
    if (fd < 0 || fsetxattr(fd, "trusted.gfid", GFID, sizeof GFID, 0) < 0) {
        status = SKIPPED;
    } else {
        CHECK(mkdirat(root, ".glusterfs", 0700) == 0);
        test_a_new_file_has_identity_note_counter_owner_name_and_handle(root);
        test_a_name_that_is_there_stays_what_it_is(root);
        test_attributes_that_reach_beyond_their_end_are_refused(root);
        test_looking_tells_what_is_usual_and_nothing_else(root);
        test_writes_tell_before_and_after(root);
        test_counters_are_added_word_by_word(root);
        test_a_file_goes_with_its_handle(root);
    }
    close(fd);
    close(root);
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", path);
    CHECK(system(command) == 0);
    return status;
}
