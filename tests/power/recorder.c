/* Writes down what a program does to the files below a folder, in order, so that a disk can be imagined that forgot any
 * part of it that was not synced. Preloaded; POWER_ROOT is the folder, POWER_LOG the log.
 *
 * With POWER_CRASH_AT=n the program ends, as by `kill -9`, right before its n-th effect.
 *
 * A record: op (1 byte), inode (8), offset (8), size (8), length of path (4), path, data of `size` for writes.
 */
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
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 'o', WRITE = 'w', TRUNCATE = 't', SYNC = 's', RENAME = 'r', UNLINK = 'u', MKDIR = 'm', RMDIR = 'd', PROMISE = 'p' };

static pthread_mutex_t gate = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static char root[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static long crash_at = -1, effects = 0;
static char *names[4096]; /* path of each descriptor below the root */

static int (*real_openat)(int, const char *, int, ...);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
static int (*real_ftruncate)(int, off64_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_close)(int);
static int (*real_rename)(const char *, const char *);
static int (*real_unlink)(const char *);
static int (*real_mkdir)(const char *, mode_t);
static int (*real_rmdir)(const char *);

__attribute__((constructor)) static void start(void) {
    real_openat = dlsym(RTLD_NEXT, "openat64");
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_close = dlsym(RTLD_NEXT, "close");
    real_rename = dlsym(RTLD_NEXT, "rename");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    real_mkdir = dlsym(RTLD_NEXT, "mkdir");
    real_rmdir = dlsym(RTLD_NEXT, "rmdir");
    const char *folder = getenv("POWER_ROOT"), *log = getenv("POWER_LOG"), *at = getenv("POWER_CRASH_AT");
    if (!folder || !log || !realpath(folder, root)) return;
    root_length = strlen(root);
    if (at) crash_at = atol(at);
    log_fd = real_openat(AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void all(const void *data, size_t size) {
    const char *at = data;
    while (size) {
        ssize_t done = real_write(log_fd, at, size);
        if (done < 0) { if (errno == EINTR) continue; abort(); }
        at += done;
        size -= done;
    }
}

static void record(char op, uint64_t inode, uint64_t offset, uint64_t size, const char *path, const void *data) {
    uint32_t length = strlen(path);
    all(&op, 1); all(&inode, 8); all(&offset, 8); all(&size, 8); all(&length, 4); all(path, length);
    if (data) all(data, size);
}

/* Before an effect: perhaps this is the moment. */
static void effect(void) {
    if (crash_at >= 0 && ++effects >= crash_at) { kill(getpid(), SIGKILL); pause(); }
}

static uint64_t inode_of(int fd) {
    struct stat64 status;
    return fstat64(fd, &status) ? 0 : status.st_ino;
}

static int below(const char *path, char *out) {
    char folder[PATH_MAX], whole[PATH_MAX];
    if (log_fd < 0 || !path) return 0;
    if (strlen(path) >= sizeof folder) return 0;
    if (realpath(path, whole) && !strcmp(whole, root)) return strcpy(out, "/"), 1;
    strcpy(folder, path);
    char *slash = strrchr(folder, '/');
    const char *name = slash ? slash + 1 : folder;
    char kept[NAME_MAX + 1];
    if (strlen(name) > NAME_MAX) return 0;
    strcpy(kept, name);
    if (slash) *slash = 0; else strcpy(folder, ".");
    if (!realpath(*folder ? folder : "/", whole)) return 0;
    if (strncmp(whole, root, root_length) || (whole[root_length] && whole[root_length] != '/')) return 0;
    snprintf(out, PATH_MAX, "%s/%s", whole + root_length, kept);
    return 1;
}

static const char *name_of(int fd) { return fd >= 0 && fd < 4096 ? names[fd] : NULL; }

static int opened(int at, const char *path, int flags, mode_t mode) {
    char inside[PATH_MAX];
    int ours = (at == AT_FDCWD || (path && *path == '/')) && below(path, inside);
    if (!ours) return real_openat(at, path, flags, mode);
    pthread_mutex_lock(&gate);
    if (flags & (O_CREAT | O_TRUNC)) effect();
    int fd = real_openat(at, path, flags, mode);
    if (fd >= 0 && fd < 4096) {
        free(names[fd]);
        names[fd] = strdup(inside);
        struct stat64 status;
        if (!fstat64(fd, &status) && S_ISREG(status.st_mode))
            record(OPEN, status.st_ino, (flags & O_TRUNC) && (flags & O_ACCMODE) != O_RDONLY, 0, inside, NULL);
    }
    pthread_mutex_unlock(&gate);
    return fd;
}

#define MODE(flags) mode_t mode = 0; if ((flags) & O_CREAT) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) return opened(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) return opened(at, path, flags, mode); }

int close(int fd) {
    pthread_mutex_lock(&gate);
    if (fd >= 0 && fd < 4096 && names[fd]) { free(names[fd]); names[fd] = NULL; }
    int result = real_close(fd);
    pthread_mutex_unlock(&gate);
    return result;
}

static ssize_t written(int fd, const void *data, size_t size, off64_t offset, int placed) {
    const char *path = name_of(fd);
    if (!path) return placed ? real_pwrite(fd, data, size, offset) : real_write(fd, data, size);
    pthread_mutex_lock(&gate);
    effect();
    off64_t at = offset;
    if (!placed) {
        struct stat64 status;
        at = (fcntl(fd, F_GETFL) & O_APPEND) && !fstat64(fd, &status) ? status.st_size : lseek64(fd, 0, SEEK_CUR);
    }
    ssize_t done = placed ? real_pwrite(fd, data, size, offset) : real_write(fd, data, size);
    if (done > 0) record(WRITE, inode_of(fd), at, done, path, data);
    pthread_mutex_unlock(&gate);
    return done;
}
ssize_t write(int fd, const void *data, size_t size) { return written(fd, data, size, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return written(fd, data, size, offset, 1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return written(fd, data, size, offset, 1); }

static int truncated(int fd, off64_t length) {
    const char *path = name_of(fd);
    if (!path) return real_ftruncate(fd, length);
    pthread_mutex_lock(&gate);
    effect();
    int result = real_ftruncate(fd, length);
    if (!result) record(TRUNCATE, inode_of(fd), length, 0, path, NULL);
    pthread_mutex_unlock(&gate);
    return result;
}
int ftruncate(int fd, off_t length) { return truncated(fd, length); }
int ftruncate64(int fd, off64_t length) { return truncated(fd, length); }

static int synced(int fd, int (*really)(int)) {
    const char *path = name_of(fd);
    if (!path) return really(fd);
    pthread_mutex_lock(&gate);
    effect();
    int result = really(fd);
    if (!result) record(SYNC, inode_of(fd), 0, 0, path, NULL);
    pthread_mutex_unlock(&gate);
    return result;
}
int fsync(int fd) { return synced(fd, real_fsync); }
int fdatasync(int fd) { return synced(fd, real_fdatasync); }

int rename(const char *from, const char *to) {
    char old[PATH_MAX], new[PATH_MAX];
    if (!below(from, old) || !below(to, new)) return real_rename(from, to);
    pthread_mutex_lock(&gate);
    effect();
    int result = real_rename(from, to);
    if (!result) record(RENAME, 0, 0, strlen(new), old, new);
    pthread_mutex_unlock(&gate);
    return result;
}

static int named(char op, const char *path, int (*really)(const char *)) {
    char inside[PATH_MAX];
    if (!below(path, inside)) return really(path);
    pthread_mutex_lock(&gate);
    effect();
    int result = really(path);
    if (!result) record(op, 0, 0, 0, inside, NULL);
    pthread_mutex_unlock(&gate);
    return result;
}
int unlink(const char *path) { return named(UNLINK, path, real_unlink); }
int rmdir(const char *path) { return named(RMDIR, path, real_rmdir); }

/* shutil.rmtree works relative to open folders. */
int unlinkat(int at, const char *name, int flags) {
    static int (*really)(int, const char *, int);
    if (!really) really = dlsym(RTLD_NEXT, "unlinkat");
    const char *folder = at == AT_FDCWD ? NULL : name_of(at);
    char inside[PATH_MAX];
    if (folder) snprintf(inside, sizeof inside, "%s/%s", folder, name);
    else if (at != AT_FDCWD || !below(name, inside)) return really(at, name, flags);
    pthread_mutex_lock(&gate);
    effect();
    int result = really(at, name, flags);
    if (!result) record((flags & AT_REMOVEDIR) ? RMDIR : UNLINK, 0, 0, 0, inside, NULL);
    pthread_mutex_unlock(&gate);
    return result;
}

int mkdir(const char *path, mode_t mode) {
    char inside[PATH_MAX];
    if (!below(path, inside)) return real_mkdir(path, mode);
    pthread_mutex_lock(&gate);
    effect();
    int result = real_mkdir(path, mode);
    if (!result) record(MKDIR, 0, 0, 0, inside, NULL);
    pthread_mutex_unlock(&gate);
    return result;
}

/* What the program told others and must keep; called by name through ctypes. */
void power_promise(const char *text) {
    if (log_fd < 0) return;
    pthread_mutex_lock(&gate);
    record(PROMISE, 0, 0, strlen(text), "", text);
    pthread_mutex_unlock(&gate);
}
