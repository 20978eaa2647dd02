/* SPDX-License-Identifier: Apache-2.0 */
/* Tests of reads that the page cache answers.  The two system calls are replaced below: what the page cache says is the
 * test's choice, except in the last one, which asks the kernel. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "io/disk_cached.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/check.h"

enum { PAGE = 4096, FILE_BYTES = 1 << 20, CACHESTAT = 451, AHEAD = 128 << 10 };

static long (*real_syscall)(long, ...);

static struct {
    bool real;          /* ask the kernel */
    int error;          /* cachestat fails */
    bool missing;       /* one page is not there */
    int read_error;     /* preadv2 fails */
    bool read_short;    /* it has a part only */
    int asked, read;    /* calls */
    uint64_t offset, length; /* what was asked about last */
} fake;

long syscall(long number, ...)
{
    va_list arguments;
    va_start(arguments, number);
    int fd = va_arg(arguments, int);
    const uint64_t *range = va_arg(arguments, const uint64_t *);
    uint64_t *state = va_arg(arguments, uint64_t *);
    va_end(arguments);
    CHECK(number == CACHESTAT);
    fake.asked++;
    fake.offset = range[0];
    fake.length = range[1];
    if (fake.real)
        return real_syscall(number, fd, range, state, 0);
    if (fake.error) {
        errno = fake.error;
        return -1;
    }
    state[0] = (range[0] + range[1] - 1) / PAGE - range[0] / PAGE + 1 - (fake.missing ? 1 : 0);
    return 0;
}

ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    fake.read++;
    CHECK(count == 1 && flags == RWF_NOWAIT);
    if (fake.read_error) {
        errno = fake.read_error;
        return -1;
    }
    return pread(fd, iov->iov_base, iov->iov_len - (fake.read_short ? 1 : 0), offset);
}

static int file;
static uint8_t content[FILE_BYTES], data[FILE_BYTES];
static struct disk_cached cached;

static void start(void)
{
    memset(&fake, 0, sizeof(fake));
    memset(&cached, 0, sizeof(cached));
    memset(data, 0, sizeof(data));
}

static struct disk_op read_of(uint64_t offset, uint64_t length)
{
    return (struct disk_op){.kind = DISK_READ, .flags = DISK_PAGE_CACHE, .fd = file, .data = data,
                            .offset = offset, .length = length, .error = -1};
}

static bool reads(uint64_t offset, uint64_t length)
{
    struct disk_op op = read_of(offset, length);
    return disk_cached_read(&cached, &op);
}

static void test_what_is_cached_is_read(void)
{
    start();
    struct disk_op op = read_of(8192 + 512, 1536);
    op.lost = true;
    CHECK(disk_cached_read(&cached, &op));
    CHECK(op.error == 0 && !op.lost);
    CHECK(memcmp(data, content + 8192 + 512, 1536) == 0 && data[1536] == 0);
    CHECK(fake.offset == 8192 + 512 && fake.length == 1536 + AHEAD);     /* and what would be read ahead */
}

static void test_what_is_not_cached_is_not_touched(void)
{
    start();
    fake.missing = true;
    CHECK(!reads(0, PAGE));
    CHECK(fake.asked == 1 && fake.read == 0);
}

static void test_a_kernel_that_does_not_tell_leaves_all_to_the_threads(void)
{
    static const int errors[] = {ENOSYS, EPERM, EOPNOTSUPP, EBADF};
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        start();
        fake.error = errors[i];
        CHECK(!reads(0, PAGE));
        CHECK(fake.read == 0);
    }
}

static void test_a_page_that_has_just_gone_leaves_the_read_to_the_threads(void)
{
    start();
    fake.read_error = EAGAIN;
    CHECK(!reads(0, PAGE));
    start();
    fake.read_short = true;
    CHECK(!reads(0, PAGE));
}

static void test_other_operations_are_not_looked_up(void)
{
    start();
    struct disk_op others[5];
    for (int i = 0; i < 5; i++)
        others[i] = read_of(0, PAGE);
    others[0].kind = DISK_WRITE;
    others[1].flags = 0;                            /* direct I/O, a device */
    others[2].extents_max = 1;                      /* wants to know of holes */
    others[3].length = DISK_CACHED_BYTES_MAX + 512;
    others[4].length = 0;
    for (int i = 0; i < 5; i++)
        CHECK(!disk_cached_read(&cached, &others[i]));
    CHECK(fake.asked == 0 && fake.read == 0);
    CHECK(reads(0, DISK_CACHED_BYTES_MAX));
}

/* How many reads are not looked up before the next one is. */
static int paused(void)
{
    int before = fake.asked, count = 0;
    while (!reads(0, PAGE) && fake.asked == before)
        count++;
    return count;
}

static void test_misses_are_asked_about_less_and_less_until_one_hits(void)
{
    start();
    fake.missing = true;
    CHECK(!reads(0, PAGE));
    for (int expected = 1; expected <= DISK_CACHED_PAUSE_MAX; expected *= 2)
        CHECK(paused() == expected);
    CHECK(paused() == DISK_CACHED_PAUSE_MAX);
    fake.missing = false;
    CHECK(paused() == DISK_CACHED_PAUSE_MAX);       /* the hit */
    CHECK(paused() == 0);
    fake.missing = true;
    CHECK(!reads(0, PAGE));
    CHECK(paused() == 1);
}

static void test_misses_of_one_disk_do_not_count_for_another(void)
{
    start();
    fake.missing = true;
    CHECK(!reads(0, PAGE));
    fake.missing = false;
    struct disk_op other = read_of(0, PAGE);
    other.fd = dup(file);
    CHECK(disk_cached_read(&cached, &other));
    close(other.fd);
}

static void test_a_thread_gets_one_now_and_then(void)
{
    start();
    for (int i = 0; i < DISK_CACHED_ROW_MAX; i++)
        CHECK(reads(0, PAGE));
    CHECK(!reads(0, PAGE));
    CHECK(reads(0, PAGE));
}

/* Asked without a look of our own at the pages, which would bring them back. */
static bool is_resident(uint64_t offset)
{
    unsigned char there = 0;
    void *mapped = mmap(NULL, FILE_BYTES, PROT_READ, MAP_SHARED, file, 0);
    CHECK(mapped != MAP_FAILED);
    CHECK(mincore((uint8_t *)mapped + offset, PAGE, &there) == 0);
    munmap(mapped, FILE_BYTES);
    return there & 1;
}

static void test_the_kernel_says_the_same(void)
{
    start();
    fake.real = true;
    CHECK(pread(file, data, FILE_BYTES, 0) == FILE_BYTES);
    bool hit = reads(0, PAGE);
    if (!hit && (errno == ENOSYS || errno == EPERM)) {
        printf("cachestat(2) is not there: %s\n", strerror(errno));
        return;
    }
    CHECK(hit);
    CHECK(fsync(file) == 0 && posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) == 0);
    if (is_resident(512 << 10)) {
        printf("this file system keeps what it need not\n");    /* tmpfs */
        return;
    }
    CHECK(!reads(512 << 10, PAGE));
    CHECK(!is_resident(512 << 10));                 /* nobody has begun to read it */
}

int main(void)
{
    void *found = dlsym(RTLD_NEXT, "syscall");
    CHECK(found);
    memcpy(&real_syscall, &found, sizeof(real_syscall));
    char path[] = "disk_cached_XXXXXX";             /* in the build folder: mostly a real file system */
    file = mkstemp(path);
    CHECK(file >= 0 && unlink(path) == 0);
    for (size_t i = 0; i < FILE_BYTES; i++)
        content[i] = (uint8_t)(i * 2654435761u >> 13 | 1);
    CHECK(write(file, content, FILE_BYTES) == FILE_BYTES);

    test_what_is_cached_is_read();
    test_what_is_not_cached_is_not_touched();
    test_a_kernel_that_does_not_tell_leaves_all_to_the_threads();
    test_a_page_that_has_just_gone_leaves_the_read_to_the_threads();
    test_other_operations_are_not_looked_up();
    test_misses_are_asked_about_less_and_less_until_one_hits();
    test_misses_of_one_disk_do_not_count_for_another();
    test_a_thread_gets_one_now_and_then();
    test_the_kernel_says_the_same();
    printf("ok\n");
    return 0;
}
