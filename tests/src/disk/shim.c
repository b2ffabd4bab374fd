/* Preloaded into a daemon: counts what it does to files below one folder, lets one such operation fail, and writes each
 * one that was done to a trace, from which the test makes what a loss of power leaves.
 *
 * KHDISK_FOLDER  the folder, absolute
 * KHDISK_TRACE   the trace, appended to; what is in it is in the order in which it was done
 * KHDISK_COUNT   a file of two 64-bit counters that all processes share: operations so far, and operations of the kind
 * KHDISK_KIND    "none"; "io": any operation fails with EIO; "full": what needs space fails with ENOSPC; "half": a write
 *                does half of its work, then fails with EIO; "kill": the process is killed before any operation
 * KHDISK_AT      which operation of the kind fails, from 0 on
 *
 * A record of the trace is struct record, then `first` and `second` bytes. Reads are not looked at. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct record {
    uint32_t operation; /* a letter */
    uint32_t failed;
    uint64_t file; /* inode */
    uint64_t at;
    uint64_t first, second;
};

static const char *folder, *kind;
static size_t folder_length;
static uint64_t failing;
static uint64_t *counters;
static int trace = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    const char *at = getenv("KHDISK_AT"), *counts = getenv("KHDISK_COUNT"), *path = getenv("KHDISK_TRACE");
    folder = getenv("KHDISK_FOLDER");
    kind = getenv("KHDISK_KIND");
    if (!at || !counts || !path || !folder || !kind)
        abort();
    folder_length = strlen(folder);
    failing = strtoull(at, NULL, 10);
    int fd = NEXT(open)(counts, O_RDWR | O_CLOEXEC);
    counters = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    trace = NEXT(open)(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0 || counters == MAP_FAILED || trace < 0)
        abort();
    close(fd);
}

static int below(const char *path) {
    return strncmp(path, folder, folder_length) == 0 && (path[folder_length] == '/' || path[folder_length] == 0);
}

/* Whether the descriptor is of a file or folder below the folder; its inode. */
static int watched(int fd, uint64_t *file) {
    char link[64], path[PATH_MAX];
    struct stat stat;
    if (trace < 0 || fd == trace || fstat(fd, &stat) != 0 || !(S_ISREG(stat.st_mode) || S_ISDIR(stat.st_mode)))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    *file = stat.st_ino;
    return below(path);
}

static void enter(void) {
    pthread_mutex_lock(&mutex);
    flock(trace, LOCK_EX);
}

static void leave(void) {
    int error = errno;
    flock(trace, LOCK_UN);
    pthread_mutex_unlock(&mutex);
    errno = error;
}

/* Whether this operation is the one that fails; errno says how. */
static int fails(int takes_space, int is_write) {
    int applies = !strcmp(kind, "io") || (!strcmp(kind, "full") && takes_space) || (!strcmp(kind, "half") && is_write);
    counters[0]++;
    if (!strcmp(kind, "kill") && counters[1]++ == failing) {
        kill(getpid(), SIGKILL);
        pause();
    }
    if (!applies || counters[1]++ != failing)
        return 0;
    errno = strcmp(kind, "full") ? EIO : ENOSPC;
    return 1;
}

static void note(char operation, int failed, uint64_t file, uint64_t at, const void *first, size_t first_length,
                 const void *second, size_t second_length) {
    struct record record = {operation, failed, file, at, first_length, second_length};
    int error = errno;
    ssize_t (*next)(int, const void *, size_t) = NEXT(write);
    if (next(trace, &record, sizeof record) != sizeof record ||
        next(trace, first, first_length) != (ssize_t)first_length ||
        next(trace, second, second_length) != (ssize_t)second_length)
        abort();
    errno = error;
}

static ssize_t put(int fd, const void *bytes, size_t length, off_t at, int positioned) {
    ssize_t (*next)(int, const void *, size_t) = NEXT(write);
    ssize_t (*next_at)(int, const void *, size_t, off_t) = NEXT(pwrite);
    uint64_t file;
    if (!watched(fd, &file))
        return positioned ? next_at(fd, bytes, length, at) : next(fd, bytes, length);
    enter();
    int failed = fails(1, 1);
    ssize_t done = -1;
    if (failed)
        length = strcmp(kind, "half") ? 0 : length / 2;
    if (!positioned)
        at = fcntl(fd, F_GETFL) & O_APPEND ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
    if (length) {
        done = positioned ? next_at(fd, bytes, length, at) : next(fd, bytes, length);
        if (done > 0)
            note('w', failed, file, at, bytes, done, NULL, 0);
    }
    if (failed) {
        done = -1;
        errno = strcmp(kind, "full") ? EIO : ENOSPC;
    }
    leave();
    return done;
}

ssize_t write(int fd, const void *bytes, size_t length) { return put(fd, bytes, length, 0, 0); }
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) { return put(fd, bytes, length, at, 1); }
ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t at) { return put(fd, bytes, length, at, 1); }

static int sync_file(int fd, int (*next)(int)) {
    uint64_t file;
    if (!watched(fd, &file))
        return next(fd);
    enter();
    /* What a failed sync was to write is lost, and the next one knows nothing of it. */
    int failed = fails(0, 0), result = failed ? -1 : next(fd);
    note('s', failed, file, 0, NULL, 0, NULL, 0);
    leave();
    return result;
}

int fsync(int fd) { return sync_file(fd, NEXT(fsync)); }
int fdatasync(int fd) { return sync_file(fd, NEXT(fdatasync)); }

static int resize(int fd, off_t length) {
    uint64_t file;
    if (!watched(fd, &file))
        return NEXT(ftruncate)(fd, length);
    enter();
    int result = fails(1, 0) ? -1 : NEXT(ftruncate)(fd, length);
    if (result == 0)
        note('t', 0, file, length, NULL, 0, NULL, 0);
    leave();
    return result;
}

int ftruncate(int fd, off_t length) { return resize(fd, length); }
int ftruncate64(int fd, off_t length) { return resize(fd, length); }

static uint64_t inode_of(const char *path) {
    struct stat stat;
    return lstat(path, &stat) == 0 ? stat.st_ino : 0;
}

static int open_file(const char *path, int flags, mode_t mode) {
    int (*next)(const char *, int, ...) = NEXT(open);
    if (trace < 0 || !below(path) || !(flags & (O_CREAT | O_TRUNC)))
        return next(path, flags, mode);
    enter();
    int is_new = inode_of(path) == 0, changes = (is_new && flags & O_CREAT) || (!is_new && flags & O_TRUNC);
    int fd = changes && fails(1, 0) ? -1 : next(path, flags, mode);
    if (fd >= 0 && is_new)
        note('c', 0, inode_of(path), 0, path, strlen(path), NULL, 0);
    else if (fd >= 0 && flags & O_TRUNC)
        note('t', 0, inode_of(path), 0, NULL, 0, NULL, 0);
    leave();
    return fd;
}

#define MODE                                                                                                           \
    mode_t mode = 0;                                                                                                   \
    if (flags & O_CREAT) {                                                                                             \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode = va_arg(list, mode_t);                                                                                   \
        va_end(list);                                                                                                  \
    }

int open(const char *path, int flags, ...) {
    MODE return open_file(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE return open_file(path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
    if (trace < 0 || !below(path) || inode_of(path))
        return NEXT(mkdir)(path, mode);
    enter();
    int result = fails(1, 0) ? -1 : NEXT(mkdir)(path, mode);
    if (result == 0)
        note('d', 0, inode_of(path), 0, path, strlen(path), NULL, 0);
    leave();
    return result;
}

/* A new name for a file; with `from`, that one goes. */
static int name_file(char operation, const char *from, const char *to, int takes_space, int (*next)(void *), void *call) {
    if (trace < 0 || !(below(from) || below(to)))
        return next(call);
    enter();
    int result = fails(takes_space, 0) ? -1 : next(call);
    if (result == 0)
        note(operation, 0, 0, 0, from, strlen(from), to, strlen(to));
    leave();
    return result;
}

struct names {
    const char *from, *to;
    int from_folder, to_folder, flags;
};

static int do_rename(void *call) {
    struct names *names = call;
    return NEXT(rename)(names->from, names->to);
}

static int do_link(void *call) {
    struct names *names = call;
    return NEXT(linkat)(names->from_folder, names->from, names->to_folder, names->to, names->flags);
}

static int do_unlink(void *call) { return NEXT(unlink)(((struct names *)call)->from); }

int rename(const char *from, const char *to) {
    struct names names = {from, to, 0, 0, 0};
    return name_file('r', from, to, 1, do_rename, &names);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    struct names names = {from, to, from_folder, to_folder, flags};
    return name_file('l', from, to, 1, do_link, &names);
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlink(const char *path) {
    struct names names = {path, "", 0, 0, 0};
    if (trace < 0 || !below(path) || !inode_of(path))
        return NEXT(unlink)(path);
    return name_file('u', path, "", 0, do_unlink, &names);
}

static int do_rmdir(void *call) { return NEXT(rmdir)(((struct names *)call)->from); }

int rmdir(const char *path) {
    struct names names = {path, "", 0, 0, 0};
    if (trace < 0 || !below(path) || !inode_of(path))
        return NEXT(rmdir)(path);
    return name_file('u', path, "", 0, do_rmdir, &names);
}

int unlinkat(int parent, const char *name, int flags) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", parent);
    ssize_t length = parent == AT_FDCWD || name[0] == '/' ? -1 : readlink(link, path, sizeof path - 1);
    if (length < 0 || length + strlen(name) + 2 > sizeof path)
        return NEXT(unlinkat)(parent, name, flags);
    snprintf(path + length, sizeof path - length, "/%s", name);
    return flags & AT_REMOVEDIR ? rmdir(path) : unlink(path);
}
