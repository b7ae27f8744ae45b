/* Read-only file mappings.
 *
 * A file that another process truncates while it is mapped makes later reads of the lost pages
 * fatal (SIGBUS); that is the price of not copying, and README's limits say so. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"

rv_status rv_map_open(rv_map *m, const char *path, rv_err *err) {
    *m = (rv_map){0};
    /* O_NONBLOCK: opening a FIFO would wait for a writer; regular files do not care. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        if (errno == ENOENT || errno == ENOTDIR)
            return rv_fail(err, RV_ENOTFOUND, "%s: no such file", path);
        return rv_fail(err, RV_EIO, "%s: cannot open: %s", path, strerror(errno));
    }
    struct stat sb;
    rv_status st = RV_OK;
    if (fstat(fd, &sb) != 0) {
        st = rv_fail(err, RV_EIO, "%s: cannot stat: %s", path, strerror(errno));
    } else if (!S_ISREG(sb.st_mode)) {
        st = rv_fail(err, RV_EIO, "%s: is %s, want a regular file", path,
                     S_ISDIR(sb.st_mode) ? "a directory" : "not a regular file");
    } else if (sb.st_size > 0) {
        void *p = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
            st = rv_fail(err, RV_EIO, "%s: cannot map %lld bytes: %s", path, (long long)sb.st_size,
                         strerror(errno));
        else
            *m = (rv_map){.p = p, .n = (size_t)sb.st_size};
#ifdef MADV_HUGEPAGE
        /* Before the first read: that decides about the pages of the cache. */
        if (m->p) madvise(p, m->n, MADV_HUGEPAGE);
#endif
    }
    close(fd);
    return st;
}

void rv_map_close(rv_map *m) {
    if (m->p) munmap((void *)(uintptr_t)m->p, m->n);
    *m = (rv_map){0};
}

void rv_map_populate(const void *p, size_t n) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), lo = (uintptr_t)p / page * page;
    if (!n) return;
#ifdef MADV_POPULATE_READ
    if (madvise((void *)lo, (uintptr_t)p + n - lo, MADV_POPULATE_READ) == 0 || errno != EINVAL)
        return;
#endif
    madvise((void *)lo, (uintptr_t)p + n - lo, MADV_WILLNEED); /* Linux before 5.14, others */
}

void rv_map_forget(const void *p, size_t n) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t lo = ((uintptr_t)p + page - 1) / page * page;
    const uintptr_t hi = ((uintptr_t)p + n) / page * page;
    if (lo < hi) madvise((void *)lo, hi - lo, MADV_DONTNEED);
}
