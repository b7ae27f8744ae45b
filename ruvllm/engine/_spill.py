"""The folder where an engine keeps conversations that are not in memory.

    lock             held while an engine lives; a second one is refused
    HASH.json        the transcript of a conversation, HASH of its id: the truth
    HASH.json.kv     its keys and values: a cache, which may be gone or damaged
    swap-N.kv        of a preempted request; these and unfinished files go when an engine begins

The budget is for keys and values: the ones written first go first, transcripts stay.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections import OrderedDict

from ruvllm._errors import FileError, StateError
from ruvllm.engine._transcript import beside

_log = logging.getLogger("ruvllm")
_LEFT_OVER = re.compile(r"swap-\d+\.kv(\..*)?|[0-9a-f]{32}\.json(\.kv)?\.[A-Za-z0-9_]{6,}")
_PAGES = re.compile(r"([0-9a-f]{32})\.json\.kv")


class SpillFolder:
    """Files of one engine.  Thread-safe.

    Raises FileError when the folder cannot be made, StateError when another engine has it.
    """

    def __init__(self, path: str | os.PathLike[str], budget: int | None) -> None:
        self.path = os.fspath(path)
        self._budget = budget
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, int] = OrderedDict()  # bytes by hash, the oldest first
        self._pinned: set[str] = set()
        self._n_bytes = 0
        try:
            os.makedirs(self.path, 0o700, exist_ok=True)
            self._fd: int | None = self._take()
            self._scan()
        except OSError as e:
            raise FileError(f"spill_dir {self.path}: {e.strerror}") from e

    @property
    def n_bytes(self) -> int:
        """Of keys and values on disk."""
        return self._n_bytes

    def transcript(self, name: str) -> str:
        """Where the transcript of a conversation is, if it is."""
        return os.path.join(self.path, _hash(name) + ".json")

    def pages(self, name: str) -> str:
        """Where its keys and values are."""
        return beside(self.transcript(name))

    def has_pages(self, name: str) -> bool:
        """Whether they are."""
        return _hash(name) in self._kept

    def pin(self, name: str, on: bool) -> None:
        """Do not let its keys and values go for others."""
        with self._lock:
            (self._pinned.add if on else self._pinned.discard)(_hash(name))

    def wrote_pages(self, name: str, n_bytes: int) -> None:
        """They have been written; others go where the budget is used up, or these do."""
        key = _hash(name)
        with self._lock:
            self._count(key, n_bytes)
            if self._budget is not None and n_bytes > self._budget:
                self._remove(key)
            for other in list(self._kept):
                if self._budget is None or self._n_bytes <= self._budget:
                    return
                if other not in self._pinned:
                    self._remove(other)

    def drop_pages(self, name: str) -> None:
        """They are of no use."""
        with self._lock:
            self._remove(_hash(name))

    def forget(self, name: str) -> None:
        """Remove all of a conversation."""
        self.drop_pages(name)
        _unlink(self.transcript(name))

    def close(self) -> None:
        """Let others have the folder; in a fork, let the parent alone have it."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    # -- how it works -------------------------------------------------------------------------

    def _take(self) -> int:
        import fcntl

        fd = os.open(os.path.join(self.path, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.write(fd, b"%d\n" % os.getpid())
        except BlockingIOError:
            owner = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise StateError(
                f"spill_dir {self.path}: is in use by an engine of process {owner}, want a folder "
                "of its own"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _scan(self) -> None:
        found = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if _LEFT_OVER.fullmatch(entry.name):
                    os.unlink(entry.path)
                elif m := _PAGES.fullmatch(entry.name):
                    about = entry.stat()
                    found.append((about.st_mtime_ns, m[1], about.st_size))
        for _, key, n_bytes in sorted(found):
            self._count(key, n_bytes)

    def _count(self, key: str, n_bytes: int) -> None:
        self._n_bytes += n_bytes - self._kept.pop(key, 0)
        self._kept[key] = n_bytes

    def _remove(self, key: str) -> None:
        self._n_bytes -= self._kept.pop(key, 0)
        _unlink(beside(os.path.join(self.path, key + ".json")))


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as e:
        _log.warning("spill_dir: %s is not removed: %s", path, e.strerror)


def _hash(name: str) -> str:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
