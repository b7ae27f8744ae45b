/* The process's copy of SQLite: its file locks, and the lock around opening.
 *
 * POSIX record locks belong to the process and to the file, so whoever in the process opens and
 * closes memory.db (Python's own sqlite3, a copy, a hash) drops the locks of our connections.  In
 * WAL mode another process then believes it is the last one and removes the log: rows are lost.
 * On Linux our statically linked copy of SQLite is told to use locks that belong to the open file
 * (F_OFD_*), which nobody but us can drop.  A shared SQLite is the whole process's and must not be
 * patched, and other systems have no such locks: there the file must not be opened by others.
 *
 * With such locks two connections of one process can block each other outside WAL mode, so the
 * time from opening to WAL is under one lock for the process. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* F_OFD_* */
#endif
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "store/store.h"

#if defined(__linux__) && defined(F_OFD_SETLK) && !defined(RV_SQLITE_SHARED)
#define HAVE_OFD 1
#else
#define HAVE_OFD 0
#endif

enum { MIN_SQLITE = 3037000 }; /* STRICT tables */

static pthread_mutex_t g_open = PTHREAD_MUTEX_INITIALIZER;
static int g_rc = SQLITE_OK;
static atomic_bool g_ofd;

void rv_vfs_lock(void) {
    pthread_mutex_lock(&g_open);
}

void rv_vfs_unlock(void) {
    pthread_mutex_unlock(&g_open);
}

#if HAVE_OFD
static int ofd_fcntl(int fd, int cmd, ...) {
    va_list ap;
    va_start(ap, cmd);
    int rc;
    if (cmd == F_SETLK || cmd == F_SETLKW || cmd == F_GETLK) {
        struct flock *l = va_arg(ap, struct flock *);
        int ofd = cmd == F_SETLK ? F_OFD_SETLK : cmd == F_SETLKW ? F_OFD_SETLKW : F_OFD_GETLK;
        l->l_pid = 0; /* the kernel wants it so */
        rc = fcntl(fd, ofd, l);
        if (rc < 0 && errno == EINVAL) { /* a kernel without them refuses every one alike */
            atomic_store(&g_ofd, false);
            rc = fcntl(fd, cmd, l);
        }
    } else {
        rc = fcntl(fd, cmd, va_arg(ap, int));
    }
    va_end(ap);
    return rc;
}
#endif

static void init_once(void) {
    pthread_atfork(rv_vfs_lock, rv_vfs_unlock, rv_vfs_unlock);
    g_rc = sqlite3_initialize();
#if HAVE_OFD
    if (g_rc != SQLITE_OK) return;
    sqlite3_vfs *vfs = sqlite3_vfs_find("unix");
    g_rc = vfs && vfs->iVersion >= 3
               ? vfs->xSetSystemCall(vfs, "fcntl", (sqlite3_syscall_ptr)ofd_fcntl)
               : SQLITE_NOTFOUND;
    atomic_store(&g_ofd, g_rc == SQLITE_OK);
#endif
}

rv_status rv_vfs_init(rv_err *err) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_once);
    if (g_rc != SQLITE_OK)
        return rv_fail(err, RV_EINTERNAL, "store: SQLite cannot start: %s", sqlite3_errstr(g_rc));
    if (sqlite3_libversion_number() < MIN_SQLITE)
        return rv_fail(err, RV_EUNSUPPORTED, "store: SQLite %s, want at least 3.37",
                       sqlite3_libversion());
    if (!sqlite3_threadsafe())
        return rv_fail(err, RV_EUNSUPPORTED, "store: SQLite was built without threads");
    return RV_OK;
}

bool rv_vfs_ofd_locks(void) {
    return atomic_load(&g_ofd);
}
