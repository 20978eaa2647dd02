/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of single disk operations on temporary files. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "io/disk_run.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/check.h"

enum { BLOCK = 4096, MIB = 1 << 20 };

/* The folder with the temporary files: one run on the disk, one on a memory file system if there is one. */
static const char *folder;

static int open_temporary(uint64_t bytes)
{
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    return fd;
}

static struct disk_op make_op(enum disk_op_kind kind, int fd, uint64_t offset, uint8_t *data, uint64_t length)
{
    return (struct disk_op){
        .kind = (uint8_t)kind, .fd = fd, .offset = offset, .data = data, .length = length, .error = -1};
}

static int run(enum disk_op_kind kind, uint32_t flags, int fd, uint64_t offset, uint8_t *data,
               uint64_t length)
{
    struct disk_op op = make_op(kind, fd, offset, data, length);
    op.flags = flags;
    disk_run(&op);
    return op.error;
}

static void expect_bytes(int fd, uint64_t offset, uint64_t length, uint8_t value)
{
    uint8_t *data = malloc(length);
    CHECK(data && run(DISK_READ, 0, fd, offset, data, length) == 0);
    for (uint64_t i = 0; i < length; i++)
        CHECK(data[i] == value);
    free(data);
}

static void fill(int fd, uint64_t offset, uint64_t length, uint8_t value)
{
    uint8_t *data = malloc(length);
    CHECK(data);
    memset(data, value, length);
    CHECK(run(DISK_WRITE, 0, fd, offset, data, length) == 0);
    free(data);
}

static void test_disk_write_with_every_flag_is_read_back(void)
{
    static const uint32_t flags[] = {0, DISK_FUA, DISK_PREFLUSH, DISK_FUA | DISK_PREFLUSH,
                                     DISK_FUA | DISK_PREFLUSH | DISK_NO_SYNC};
    int fd = open_temporary(64 * BLOCK);
    uint8_t block[BLOCK];
    for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
        memset(block, (int)i + 1, sizeof(block));
        CHECK(run(DISK_WRITE, flags[i], fd, i * BLOCK, block, BLOCK) == 0);
        expect_bytes(fd, i * BLOCK, BLOCK, (uint8_t)(i + 1));
    }
    CHECK(run(DISK_FLUSH, 0, fd, 0, NULL, 0) == 0);
    close(fd);
}

/* While not 0, what each kind of write fails with. */
static int plain_error, stable_error;

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    if (!plain_error)
        return syscall(SYS_pwrite64, fd, data, length, offset);
    errno = plain_error;
    return -1;
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    CHECK(flags == RWF_DSYNC);
    if (!stable_error)
        return syscall(SYS_pwritev2, fd, iov, count, offset, 0, flags);
    errno = stable_error;
    return -1;
}

/* The bytes can be written, but not be made stable: a disk says so once, of whatever was written before. */
static void test_disk_error_of_a_stable_write_is_its_own_or_one_of_what_was_lost(void)
{
    static const struct {
        int stable, plain, error;
        bool lost;
    } cases[] = {
        {EIO, 0, EIO, true},
        {EIO, EIO, EIO, false},
        {ENOSPC, ENOSPC, ENOSPC, false},
        {ENOSPC, 0, ENOSPC, true},
        {EOPNOTSUPP, 0, 0, false},
        {EOPNOTSUPP, EIO, EIO, false},
        {0, EIO, 0, false},
    };
    static uint8_t block[BLOCK];
    int fd = open_temporary(BLOCK);
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct disk_op op = make_op(DISK_WRITE, fd, 0, block, BLOCK);
        op.flags = DISK_FUA;
        op.lost = true;
        stable_error = cases[i].stable;
        plain_error = cases[i].plain;
        disk_run(&op);
        stable_error = plain_error = 0;
        CHECK(op.error == cases[i].error && op.lost == cases[i].lost);
    }
    close(fd);
}

static void test_disk_flush_that_fails_has_lost_something(void)
{
    uint8_t block[BLOCK] = {0};
    struct disk_op flush = make_op(DISK_FLUSH, -1, 0, NULL, 0), before = make_op(DISK_WRITE, -1, 0, block, BLOCK);
    before.flags = DISK_PREFLUSH;
    disk_run(&flush);
    disk_run(&before);
    CHECK(flush.error == EBADF && flush.lost && before.error == EBADF && before.lost);
}

static void test_disk_read_beyond_the_end_is_an_error(void)
{
    int fd = open_temporary(BLOCK + 512);
    uint8_t data[2 * BLOCK];
    CHECK(run(DISK_READ, 0, fd, 0, data, 2 * BLOCK) == EIO);
    CHECK(run(DISK_READ, 0, fd, 8 * BLOCK, data, BLOCK) == EIO);
    close(fd);
}

static void test_disk_operation_on_a_bad_descriptor_has_its_errno(void)
{
    uint8_t data[BLOCK] = {0};
    int reader = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(run(DISK_READ, 0, -1, 0, data, BLOCK) == EBADF);
    CHECK(run(DISK_WRITE, DISK_FUA, -1, 0, data, BLOCK) == EBADF);
    CHECK(run(DISK_ZERO, 0, -1, 0, NULL, BLOCK) == EBADF);
    CHECK(run(DISK_FLUSH, 0, -1, 0, NULL, 0) == EBADF);
    CHECK(run(DISK_READ, 0, reader, 0, data, BLOCK) == EISDIR);
    close(reader);
}

static void test_disk_no_sync_makes_no_flush(void)
{
    CHECK(run(DISK_FLUSH, DISK_NO_SYNC, -1, 0, NULL, 0) == 0);
}

static void test_disk_zero_in_every_mode_reads_zeroes_and_spares_the_rest(void)
{
    static const uint32_t flags[] = {0, DISK_MAY_UNMAP, DISK_FUA, DISK_MAY_UNMAP | DISK_FUA | DISK_PREFLUSH};
    for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
        int fd = open_temporary(4 * MIB);
        struct stat status;
        fill(fd, 0, 4 * MIB, 0xee);
        CHECK(run(DISK_ZERO, flags[i], fd, BLOCK, NULL, 2 * MIB + BLOCK + 512) == 0);
        expect_bytes(fd, 0, BLOCK, 0xee);
        expect_bytes(fd, BLOCK, 2 * MIB + BLOCK + 512, 0);
        expect_bytes(fd, 2 * MIB + 2 * BLOCK + 512, 4 * MIB - 2 * MIB - 2 * BLOCK - 512, 0xee);
        CHECK(fstat(fd, &status) == 0 && status.st_size == 4 * MIB);
        if (!(flags[i] & DISK_MAY_UNMAP))
            CHECK(status.st_blocks >= 4 * MIB / 512);
        close(fd);
    }
}

static void test_disk_zero_fast_either_zeroes_or_leaves_everything(void)
{
    static const uint32_t flags[] = {DISK_FAST, DISK_FAST | DISK_MAY_UNMAP};
    for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
        int fd = open_temporary(MIB);
        fill(fd, 0, MIB, 0xee);
        int error = run(DISK_ZERO, flags[i], fd, 0, NULL, MIB);
        CHECK(error == 0 || error == ENOTSUP);
        expect_bytes(fd, 0, MIB, error ? 0xee : 0);
        close(fd);
    }
}

static void test_disk_extents_tell_data_and_holes_of_the_whole_range(void)
{
    int fd = open_temporary(8 * MIB);
    struct disk_extent extents[8];
    struct disk_op op = make_op(DISK_EXTENTS, fd, MIB, NULL, 6 * MIB);
    op.extents = extents;
    op.extents_max = 8;
    fill(fd, 2 * MIB, MIB, 1);
    fill(fd, 4 * MIB, MIB, 1);
    disk_run(&op);
    CHECK(op.error == 0 && op.extents_count == 5);
    for (uint32_t i = 0; i < 5; i++)
        CHECK(extents[i].hole == (i % 2 == 0) && extents[i].length == (i == 4 ? 2 * MIB : MIB));

    op.extents_max = 2;
    disk_run(&op);
    CHECK(op.error == 0 && op.extents_count == 2 && extents[0].hole && extents[0].length == MIB);
    CHECK(!extents[1].hole && extents[1].length == MIB);

    op.offset = 2 * MIB + BLOCK;
    op.length = BLOCK;
    disk_run(&op);
    CHECK(op.extents_count == 1 && !extents[0].hole && extents[0].length == BLOCK);
    close(fd);
}

static void test_disk_extents_of_a_file_with_much_data_are_coarse_and_cheap(void)
{
    enum { COUNT = 64 };
    int fd = open_temporary(64 * MIB);
    struct disk_extent extents[COUNT];
    fill(fd, 8 * MIB, 8 * MIB, 0xab);
    fill(fd, 40 * MIB, BLOCK, 0xab);
    struct disk_op op = make_op(DISK_EXTENTS, fd, 0, NULL, 64 * MIB);
    op.extents = extents;
    op.extents_max = COUNT;
    disk_run_exact_bytes = MIB;
    disk_run(&op);
    disk_run_exact_bytes = 1 << 30;
    uint64_t at = 0, data = 0;
    for (uint32_t i = 0; i < op.extents_count; i++) {
        bool inside = (at >= 8 * MIB && at < 16 * MIB) || at == 40 * MIB;
        CHECK(extents[i].hole == !inside);  /* never a hole where there is data */
        if (!extents[i].hole)
            data += extents[i].length;
        at += extents[i].length;
    }
    CHECK(op.error == 0 && at == 64 * MIB && op.extents_count == 5);
    CHECK(data >= 8 * MIB + BLOCK && data <= 9 * MIB);
    op.extents_max = 1;
    op.offset = 9 * MIB;
    op.length = 20 * MIB;
    disk_run_exact_bytes = MIB;
    disk_run(&op);
    disk_run_exact_bytes = 1 << 30;
    CHECK(op.extents_count == 1 && !extents[0].hole && extents[0].length >= 7 * MIB && extents[0].length < 8 * MIB);
    close(fd);
}

static void test_disk_discard_takes_whole_pieces_only(void)
{
    struct disk_op op = make_op(DISK_ZERO, -1, 100 * BLOCK + 512, NULL, MIB);
    uint64_t begin, end;
    CHECK(!disk_run_aligned(&op, &begin, &end));
    op.extents_max = 64 << 10;
    CHECK(disk_run_aligned(&op, &begin, &end));
    CHECK(begin == 448 << 10 && end == 1408 << 10 && end <= op.offset + op.length && begin >= op.offset);
    op.length = 64 << 10;
    CHECK(!disk_run_aligned(&op, &begin, &end));
    op.offset = 128 << 10;
    CHECK(disk_run_aligned(&op, &begin, &end) && begin == op.offset && end == op.offset + op.length);
}

static void test_disk_read_that_looks_first_tells_a_hole_or_reads(void)
{
    int fd = open_temporary(4 * MIB);
    struct disk_extent extent;
    uint8_t *data = calloc(1, MIB);
    CHECK(data);
    fill(fd, 2 * MIB, MIB, 0xab);
    struct disk_op op = make_op(DISK_READ, fd, MIB, data, MIB);
    op.extents = &extent;
    op.extents_max = 1;
    disk_run(&op);
    CHECK(op.error == 0 && op.extents_count == 1 && extent.hole && extent.length == MIB);
    op.offset = MIB + MIB / 2;
    disk_run(&op);
    CHECK(op.error == 0 && op.extents_count == 1 && extent.length == MIB / 2);
    op.offset = 2 * MIB;
    disk_run(&op);
    CHECK(op.error == 0 && op.extents_count == 0 && data[0] == 0xab && data[MIB - 1] == 0xab);
    op.offset = 3 * MIB;
    op.length = BLOCK;
    disk_run(&op);
    CHECK(op.error == 0 && op.extents_count == 1 && extent.length == MIB);   /* all of it */
    op.offset = 4 * MIB - BLOCK;
    op.length = 2 * BLOCK;
    disk_run(&op);
    CHECK(op.error == EIO && op.extents_count == 0);    /* beyond the end is no hole */
    free(data);
    close(fd);
}

static void test_disk_extents_of_what_has_none_are_one_allocated_extent(void)
{
    int fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
    struct disk_extent extents[2];
    struct disk_op op = make_op(DISK_EXTENTS, fd, MIB, NULL, MIB);
    op.extents = extents;
    op.extents_max = 2;
    disk_run(&op);
    CHECK(op.error == 0 && op.extents_count == 1 && !extents[0].hole && extents[0].length == MIB);
    op.extents_max = 0;
    disk_run(&op);
    CHECK(op.error == 0 && op.extents_count == 0);
    close(fd);
}

static void test_disk_writes_merge_only_when_adjacent_and_plain(void)
{
    struct disk_op a = make_op(DISK_WRITE, 5, 0, NULL, BLOCK);
    struct disk_op b = make_op(DISK_WRITE, 5, BLOCK, NULL, BLOCK);
    CHECK(disk_run_can_merge(&a, &b) && !disk_run_can_merge(&b, &a));
    b.flags = DISK_FUA;
    CHECK(!disk_run_can_merge(&a, &b));
    b.flags = DISK_FUA | DISK_NO_SYNC;
    CHECK(disk_run_can_merge(&a, &b));
    b.fd = 6;
    CHECK(!disk_run_can_merge(&a, &b));
    b.fd = 5;
    b.kind = DISK_READ;
    CHECK(!disk_run_can_merge(&a, &b));
}

static void test_disk_merged_writes_that_fail_halfway_have_errors_of_their_own(void)
{
    enum { COUNT = 4 };
    static uint8_t data[COUNT][BLOCK];
    struct disk_op ops[COUNT];
    struct disk_op *pointers[COUNT];
    struct rlimit limit, before;
    int fd = open_temporary(0);
    for (int i = 0; i < COUNT; i++) {
        memset(data[i], i + 1, BLOCK);
        ops[i] = make_op(DISK_WRITE, fd, (uint64_t)i * BLOCK, data[i], BLOCK);
        pointers[i] = &ops[i];
    }
    signal(SIGXFSZ, SIG_IGN);
    CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    limit = before;
    limit.rlim_cur = 2 * BLOCK + BLOCK / 2;
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    disk_run_writes(pointers, COUNT);
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK(ops[0].error == 0 && ops[1].error == 0 && ops[2].error == EFBIG && ops[3].error == EFBIG);
    expect_bytes(fd, 0, BLOCK, 1);
    expect_bytes(fd, BLOCK, BLOCK, 2);
    disk_run_writes(pointers, COUNT);
    for (int i = 0; i < COUNT; i++) {
        CHECK(ops[i].error == 0);
        expect_bytes(fd, (uint64_t)i * BLOCK, BLOCK, (uint8_t)(i + 1));
    }
    close(fd);
}

int main(void)
{
    static const char *const folders[] = {"/var/tmp", "/dev/shm"};
    int ran = 0;
    for (int i = 0; i < 2; i++) {
        folder = folders[i];
        int probe = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        if (probe < 0)
            continue;
        close(probe);
        ran++;
        test_disk_write_with_every_flag_is_read_back();
        test_disk_error_of_a_stable_write_is_its_own_or_one_of_what_was_lost();
        test_disk_flush_that_fails_has_lost_something();
        test_disk_read_beyond_the_end_is_an_error();
        test_disk_operation_on_a_bad_descriptor_has_its_errno();
        test_disk_no_sync_makes_no_flush();
        test_disk_zero_in_every_mode_reads_zeroes_and_spares_the_rest();
        test_disk_zero_fast_either_zeroes_or_leaves_everything();
        test_disk_extents_tell_data_and_holes_of_the_whole_range();
        test_disk_extents_of_a_file_with_much_data_are_coarse_and_cheap();
        test_disk_discard_takes_whole_pieces_only();
        test_disk_read_that_looks_first_tells_a_hole_or_reads();
    test_disk_extents_of_what_has_none_are_one_allocated_extent();
        test_disk_writes_merge_only_when_adjacent_and_plain();
        test_disk_merged_writes_that_fail_halfway_have_errors_of_their_own();
    }
    CHECK(ran > 0);
    return 0;
}
