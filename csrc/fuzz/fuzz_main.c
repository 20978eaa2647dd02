/* SPDX-License-Identifier: Apache-2.0 */
/* Replays files through a fuzz target where libFuzzer is not linked in.
 *
 * usage: fuzz_<target> FILE-OR-FOLDER...    Exit status 1: something could not be read.
 */
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { INPUT_BYTES_MAX = 64 << 20, PATH_BYTES_MAX = 4096 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool replay_file(const char *path, size_t size)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = malloc(size ? size : 1);    /* of its exact size, so that a sanitizer sees its end */
    bool good = file && data && size <= INPUT_BYTES_MAX && fread(data, 1, size, file) == size;

    if (good)
        LLVMFuzzerTestOneInput(data, size);
    else
        fprintf(stderr, "%s: cannot be read\n", path);
    free(data);
    if (file)
        fclose(file);
    return good;
}

static bool replay(const char *path, bool top)
{
    struct stat status;

    if (stat(path, &status) != 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return false;
    }
    if (!S_ISDIR(status.st_mode))
        return replay_file(path, (size_t)status.st_size);
    DIR *folder = top ? opendir(path) : NULL;
    if (!folder)
        return !top;    /* folders in folders are left out */
    bool good = true;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char name[PATH_BYTES_MAX];
        if (entry->d_name[0] == '.')
            continue;
        int length = snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (length < 0 || (size_t)length >= sizeof name || !replay(name, false))
            good = false;
    }
    closedir(folder);
    return good;
}

int main(int argc, char **argv)
{
    bool good = true;
    for (int i = 1; i < argc; i++)
        if (!replay(argv[i], true))
            good = false;
    return good ? 0 : 1;
}
