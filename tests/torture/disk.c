/* SPDX-License-Identifier: MIT
 *
 * Stands between a process and its disk, by LD_PRELOAD, for the files below the folder DISK_FOLDER.
 *
 * With DISK_LOG it records each call that changes them: one record a call, in the order in which
 * they happened, with the content of a write. disk.py reads it. disk_fail() makes calls fail, or
 * hang for a while before they fail; the process calls it on itself.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum kind { OPEN, WRITE, TRUNCATE, SYNC, UNLINK, RENAME, MKDIR, MAP, READ, STAT, LOCK };

/* What a record begins with; then come its bytes: the content, or the path, or two paths. */
struct header {
    int32_t kind, fd;
    int64_t offset; /* of a write, -1 for the end; the size of a truncation; the flags of an open */
    int64_t length; /* of the bytes that follow */
    int64_t time;   /* nanoseconds */
};

#define DESCRIPTORS 65536
static char below[DESCRIPTORS]; /* whether a descriptor is of a file below the folder */
static const char *folder;
static int log_fd = -1;
static pthread_mutex_t in_order = PTHREAD_MUTEX_INITIALIZER;

static struct {
    int armed, kind, error, lasting;
    long countdown, hang; /* calls of the kind until the first that fails; milliseconds */
} plan;
static long failed;

#define REAL(result, name, ...)                          \
    static result (*real_##name)(__VA_ARGS__);           \
    if (real_##name == NULL)                             \
    real_##name = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static ssize_t plain_write(int fd, const void *bytes, size_t length)
{
    REAL(ssize_t, write, int, const void *, size_t);
    return real_write(fd, bytes, length);
}

__attribute__((constructor)) static void begin(void)
{
    REAL(int, open64, const char *, int, ...);
    folder = getenv("DISK_FOLDER");
    if (getenv("DISK_LOG") != NULL)
        log_fd = real_open64(getenv("DISK_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int is_below(const char *path)
{
    size_t length = folder == NULL ? 0 : strlen(folder);
    return length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int is_ours(int fd)
{
    return fd >= 0 && fd < DESCRIPTORS && below[fd];
}

static void lock(void)
{
    if (log_fd >= 0)
        pthread_mutex_lock(&in_order);
}

static void unlock(void)
{
    if (log_fd >= 0)
        pthread_mutex_unlock(&in_order);
}

static void record(enum kind kind, int fd, int64_t offset, const void *bytes, int64_t length)
{
    struct timespec now;
    struct header header = {kind, fd, offset, length, 0};
    int error = errno;
    if (log_fd < 0)
        return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    header.time = now.tv_sec * 1000000000LL + now.tv_nsec;
    if (plain_write(log_fd, &header, sizeof header) != (ssize_t)sizeof header
        || plain_write(log_fd, bytes, length) != length)
        abort(); /* a log with a hole would prove nothing */
    errno = error;
}

/* Say whether this call is to fail, and set errno if so. */
static int fails(enum kind kind)
{
    struct timespec hang = {plan.hang / 1000, plan.hang % 1000 * 1000000};
    if (!__atomic_load_n(&plan.armed, __ATOMIC_ACQUIRE) || plan.kind != (int)kind)
        return 0;
    long left = __atomic_sub_fetch(&plan.countdown, 1, __ATOMIC_ACQ_REL);
    if (left > 0 || (left < 0 && !plan.lasting))
        return 0;
    __atomic_add_fetch(&failed, 1, __ATOMIC_ACQ_REL);
    if (plan.hang)
        nanosleep(&hang, NULL);
    errno = plan.error;
    return 1;
}

/* Fail the n-th call of a kind from now on, and if lasting all after it, until disk_heal(). */
void disk_fail(int kind, long n, int error, int lasting, long hang)
{
    plan.kind = kind;
    plan.error = error;
    plan.lasting = lasting;
    plan.hang = hang;
    plan.countdown = n;
    failed = 0;
    __atomic_store_n(&plan.armed, 1, __ATOMIC_RELEASE);
}

/* Fail no more calls, and return how many failed. */
long disk_heal(void)
{
    __atomic_store_n(&plan.armed, 0, __ATOMIC_RELEASE);
    return failed;
}

/* -- The calls ------------------------------------------------------------------------------- */

static int opened(int fd, const char *path, int flags, int is_new)
{
    if (fd >= 0 && fd < DESCRIPTORS)
        below[fd] = is_below(path);
    if (is_ours(fd))
        record(OPEN, fd, flags | (is_new ? 1LL << 32 : 0), path, strlen(path));
    return fd;
}

#define DEFINE_OPEN(name)                                     \
    int name(const char *path, int flags, ...)                \
    {                                                         \
        va_list more;                                         \
        va_start(more, flags);                                \
        mode_t mode = flags & O_CREAT ? va_arg(more, int) : 0; \
        va_end(more);                                         \
        REAL(int, name, const char *, int, ...);              \
        if (!is_below(path))                                  \
            return opened(real_##name(path, flags, mode), path, flags, 0); \
        if (fails(OPEN))                                      \
            return -1;                                        \
        lock();                                               \
        int is_new = (flags & O_CREAT) && access(path, F_OK);  \
        int fd = opened(real_##name(path, flags, mode), path, flags, is_new); \
        unlock();                                             \
        return fd;                                            \
    }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)

int close(int fd)
{
    REAL(int, close, int);
    if (fd >= 0 && fd < DESCRIPTORS)
        below[fd] = 0;
    return real_close(fd);
}

ssize_t write(int fd, const void *bytes, size_t length)
{
    if (!is_ours(fd))
        return plain_write(fd, bytes, length);
    if (fails(WRITE))
        return -1;
    lock();
    ssize_t written = plain_write(fd, bytes, length);
    if (written > 0)
        record(WRITE, fd, -1, bytes, written);
    unlock();
    return written;
}

/* One that fails has written its first half. */
#define DEFINE_PWRITE(name)                                                       \
    ssize_t name(int fd, const void *bytes, size_t length, off_t offset)          \
    {                                                                             \
        REAL(ssize_t, name, int, const void *, size_t, off_t);                    \
        if (!is_ours(fd))                                                         \
            return real_##name(fd, bytes, length, offset);                        \
        int to_fail = fails(WRITE), error = errno;                                \
        lock();                                                                   \
        ssize_t written = real_##name(fd, bytes, to_fail ? length / 2 : length, offset); \
        if (written > 0)                                                          \
            record(WRITE, fd, offset, bytes, written);                            \
        unlock();                                                                 \
        if (to_fail)                                                              \
            errno = error;                                                        \
        return to_fail ? -1 : written;                                            \
    }
DEFINE_PWRITE(pwrite)
DEFINE_PWRITE(pwrite64)

#define DEFINE_READ(name)                                          \
    ssize_t name(int fd, void *bytes, size_t length, off_t offset) \
    {                                                              \
        REAL(ssize_t, name, int, void *, size_t, off_t);           \
        if (is_ours(fd) && fails(READ))                            \
            return -1;                                             \
        return real_##name(fd, bytes, length, offset);             \
    }
DEFINE_READ(pread)
DEFINE_READ(pread64)

#define DEFINE_TRUNCATE(name)                        \
    int name(int fd, off_t size)                     \
    {                                                \
        REAL(int, name, int, off_t);                 \
        if (!is_ours(fd))                            \
            return real_##name(fd, size);            \
        if (fails(TRUNCATE))                         \
            return -1;                               \
        lock();                                      \
        int result = real_##name(fd, size);          \
        if (result == 0)                             \
            record(TRUNCATE, fd, size, "", 0);       \
        unlock();                                    \
        return result;                               \
    }
DEFINE_TRUNCATE(ftruncate)
DEFINE_TRUNCATE(ftruncate64)

/* Not carried out: the machine stays on, and its disk has other users. */
#define DEFINE_SYNC(name)                  \
    int name(int fd)                       \
    {                                      \
        REAL(int, name, int);              \
        if (!is_ours(fd))                  \
            return real_##name(fd);        \
        if (fails(SYNC))                   \
            return -1;                     \
        lock();                            \
        record(SYNC, fd, 0, "", 0);        \
        unlock();                          \
        return 0;                          \
    }
DEFINE_SYNC(fsync)
DEFINE_SYNC(fdatasync)

int unlink(const char *path)
{
    REAL(int, unlink, const char *);
    if (!is_below(path))
        return real_unlink(path);
    if (fails(UNLINK))
        return -1;
    lock();
    int result = real_unlink(path);
    if (result == 0)
        record(UNLINK, -1, 0, path, strlen(path));
    unlock();
    return result;
}

int rename(const char *from, const char *to)
{
    char both[8192];
    REAL(int, rename, const char *, const char *);
    if (!is_below(to) || strlen(from) + strlen(to) + 1 > sizeof both)
        return real_rename(from, to);
    if (fails(RENAME))
        return -1;
    lock();
    int result = real_rename(from, to);
    if (result == 0) {
        strcpy(both, from);
        strcpy(both + strlen(from) + 1, to);
        record(RENAME, -1, 0, both, strlen(from) + 1 + strlen(to));
    }
    unlock();
    return result;
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, mkdir, const char *, mode_t);
    if (!is_below(path))
        return real_mkdir(path, mode);
    if (fails(MKDIR))
        return -1;
    lock();
    int result = real_mkdir(path, mode);
    if (result == 0)
        record(MKDIR, -1, 0, path, strlen(path));
    unlock();
    return result;
}

/* Recorded as an open that makes the file. */
int mknod(const char *path, mode_t mode, dev_t device)
{
    REAL(int, mknod, const char *, mode_t, dev_t);
    if (!is_below(path))
        return real_mknod(path, mode, device);
    if (fails(OPEN))
        return -1;
    lock();
    int result = real_mknod(path, mode, device);
    if (result == 0)
        record(OPEN, -1, O_CREAT | 1LL << 32, path, strlen(path));
    unlock();
    return result;
}

#define DEFINE_MAP(name)                                                                  \
    void *name(void *address, size_t length, int protection, int flags, int fd, off_t at) \
    {                                                                                     \
        REAL(void *, name, void *, size_t, int, int, int, off_t);                         \
        if (is_ours(fd) && (flags & MAP_SHARED) && fails(MAP))                            \
            return MAP_FAILED;                                                            \
        return real_##name(address, length, protection, flags, fd, at);                   \
    }
DEFINE_MAP(mmap)
DEFINE_MAP(mmap64)

int stat64(const char *path, struct stat64 *status)
{
    REAL(int, stat64, const char *, struct stat64 *);
    if (is_below(path) && fails(STAT))
        return -1;
    return real_stat64(path, status);
}

int fstat64(int fd, struct stat64 *status)
{
    REAL(int, fstat64, int, struct stat64 *);
    if (is_ours(fd) && fails(STAT))
        return -1;
    return real_fstat64(fd, status);
}

int flock(int fd, int operation)
{
    REAL(int, flock, int, int);
    if (is_ours(fd) && (operation & LOCK_EX) && fails(LOCK))
        return -1;
    return real_flock(fd, operation);
}
