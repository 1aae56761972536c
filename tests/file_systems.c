/* Answers of file systems and containers that tests cannot mount; see test_locks.py.
 *
 * FILE_SYSTEM=nfs4: flock needs a file opened for what the lock allows, as NFSv4 demands.
 * FILE_SYSTEM=lustre: there is no flock, as on Lustre mounted without it.
 * HOST_NAME: what gethostname returns. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

int flock(int fd, int operation) {
    const char *kind = getenv("FILE_SYSTEM");
    int access = fcntl(fd, F_GETFL) & O_ACCMODE;
    if (kind && !strcmp(kind, "lustre")) {
        errno = ENOSYS;
        return -1;
    }
    if (kind && !strcmp(kind, "nfs4") &&
        (((operation & LOCK_SH) && access == O_WRONLY) ||
         ((operation & LOCK_EX) && access == O_RDONLY))) {
        errno = EBADF;
        return -1;
    }
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    return real(fd, operation);
}

int gethostname(char *name, size_t length) {
    const char *given = getenv("HOST_NAME");
    int (*real)(char *, size_t) = dlsym(RTLD_NEXT, "gethostname");
    if (!given)
        return real(name, length);
    strncpy(name, given, length);
    return 0;
}
