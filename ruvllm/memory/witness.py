"""The witness log: one entry for each request, kept in the store, never in a reply's way.

    record ──► row ──► digest known? ──yes──► C queue ──► writer thread ──► memory.db
                             │no
                             └──► pending ──► digest thread: hash the file once ──► C queue

W1  record returns as soon as the entry is queued; only ``critical`` waits for the disk.
W2  An entry waits for its model's digest at most as long as the file takes to read; when the file
    cannot be read, the entry is written without one.  The thread exists while entries wait.
W3  The store must not be carried over a fork, so a log closes its store before the process forks
    and opens it anew, in parent and child, when it is next used.  Entries that wait for a digest
    stay with the parent.
W4  Lock order: _process.lock, then a log's _lock.  Nothing waits for the disk under them, but for
    the opening and closing of a store.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ruvllm import _core, _paths
from ruvllm._errors import ArgumentError, FileError, FullError, RuvllmError, StateError
from ruvllm.memory.digest import FileKey, file_key, hash_file
from ruvllm.memory.entry import WitnessEntry

__all__ = ["WitnessEntry", "WitnessLog", "default_log", "model_digest"]

_T = TypeVar("_T")
_Entries = list[WitnessEntry]  # a name for it: inside the class "list" is the method
_Row = dict[str, Any]
_Rows = list[_Row]
_SUMS = ("queued", "written", "dropped", "failed", "batches", "retries")
_READ_WAIT_S = 2.0

_log = logging.getLogger("ruvllm.witness")


class WitnessLog:
    """The log in one folder.  Every method may be called from any thread.

    path: the folder (made when missing); ``None``: ``ruvllm._paths.home()``.
    queue_depth: entries that may wait for the writer.  max_batch: entries per commit.
    max_wait: seconds an entry waits for others.  max_pending: entries that may wait for a digest.
    Raises FileError naming the path when the folder cannot be written, FormatError when memory.db
    is damaged or not ours, UnsupportedError when a newer version made it.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        queue_depth: int = 10_000,
        max_batch: int = 100,
        max_wait: float = 1.0,
        max_pending: int = 10_000,
    ) -> None:
        """Open the log, or make it."""
        if not 0.001 <= max_wait <= 3600:
            raise ArgumentError(f"witness: max_wait {max_wait} s, want 0.001 .. 3600")
        for name in ("queue_depth", "max_batch", "max_pending"):
            if (n := locals()[name]) < 1:
                raise ArgumentError(f"witness: {name} {n}, want at least 1")
        folder = Path(path) if path is not None else _paths.home()
        self._folder = os.path.abspath(folder)
        self._options = (queue_depth, 0, max_batch, round(max_wait * 1000), 0)
        self._max_pending = max_pending
        self._digests: dict[str, tuple[FileKey, str]] = {}
        self._closing = self._closed = False
        self._last: _Row = {}  # the counters of the last store closed
        self._reset()
        self._store: _core.Store | None = self._open()
        with _process.lock:
            _process.logs.add(self)

    def _reset(self) -> None:
        """What a forked child must not share with its parent."""
        self._lock = threading.Lock()
        self._hashing = threading.Lock()  # one file at a time
        self._idle = threading.Condition(self._lock)
        self._pending: deque[tuple[str, _Row | None]] = deque()
        self._n_deferred = self._n_done = 0
        self._working = False
        self._past: Counter[str] = Counter()

    # ---- the store beneath ----

    def _open(self) -> _core.Store:
        _process.close_at_end_of_worker()
        return _core.Store(self._folder, *self._options)

    def _current(self) -> _core.Store:
        with self._lock:
            if self._store is None:
                if self._closed:
                    raise StateError(f"{self.path}: the witness log is closed")
                self._store = self._open()
            return self._store

    def _call(self, f: Callable[[_core.Store], _T]) -> _T:
        """f(store), again when a fork closed the store in between (W3)."""
        while True:
            store = self._current()
            try:
                return f(store)
            except StateError:
                with self._lock:
                    if store is self._store:
                        raise

    def _retire(self) -> None:
        """Close the store and keep its counters; self._lock is held."""
        store, self._store = self._store, None
        if store is None:
            return
        try:
            store.close()
        finally:
            self._last = store.stats()
            self._past.update({name: self._last[name] for name in _SUMS})

    # ---- writing ----

    def record(self, entry: WitnessEntry, critical: bool = False) -> str:
        """Queue an entry and return its id.

        critical: return when the entry is on the disk (and its model's digest is known).
        An entry with a model_path and no model_digest gets the digest of that file.
        Raises ArgumentError (a field that cannot be stored), FullError (the queue is full: counted
        in ``stats()["dropped"]``), StateError (closed); critical: FileError and FormatError too.
        """
        row = entry.to_row()
        path = row.get("model_path")
        if path and "model_digest" not in row:
            digest = self._known_digest(path)
            if digest is None:
                row.setdefault("ts_ms", time.time_ns() // 1_000_000)
                if "id" not in row:
                    row["id"] = self._call(lambda s: s.new_id())
                if not critical:
                    self._defer(path, row)
                    return str(row["id"])
                digest = self._try_digest(path)
            if digest is not None:
                row["model_digest"] = digest
        return self._call(lambda s: s.witness_put(row, critical))

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every entry recorded before this call is on the disk.

        timeout: seconds; ``None``: no limit.  Raises StateError when it is over or the log is
        closed, FileError when the disk refuses (the entries stay queued and are tried again),
        FormatError when the table refused entries since the last flush (the others are written).
        """
        until = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            target = self._n_deferred
            if not self._idle.wait_for(lambda: self._n_done >= target, timeout):
                n = target - self._n_done
                raise StateError(f"{self.path}: {n} entries still wait for a model's digest")
        left = -1.0 if until is None else max(0.0, until - time.monotonic())
        self._call(lambda s: s.flush(left, True))

    def close(self) -> None:
        """Flush and close; again: nothing.  Raises as ``flush``; the log is closed all the same."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            try:
                self._idle.wait_for(lambda: self._n_done >= self._n_deferred)
            finally:
                self._closed = True
                self._retire()

    # ---- reading ----

    def get(self, id: str) -> WitnessEntry:
        """The entry with this id, or the one whose id begins so.

        Raises NotFoundError, ArgumentError when several do (the message says how many).
        """
        rows = self._read("witness_get", (id,))
        return WitnessEntry.from_row(rows[0])

    def list(
        self,
        limit: int | None = 20,
        offset: int = 0,
        *,
        since: int | datetime | None = None,
        until: int | datetime | None = None,
        session_id: str | None = None,
        model: str | None = None,
        kind: str | None = None,
    ) -> _Entries:
        """Entries, newest first.

        limit: at most so many, ``None``: all.  offset: skip so many.  since (included) and until
        (not included): UTC milliseconds or an aware datetime.  model: the model_name.
        What was recorded before is seen, but for entries whose model is so large that its digest
        takes more than two seconds; the log (logger "ruvllm.witness") then says so.
        """
        if limit is not None and limit < 0:
            raise ArgumentError(f"witness: limit {limit}, want at least 0, or None for all")
        if offset < 0:
            raise ArgumentError(f"witness: offset {offset}, want at least 0")
        range_ = (_to_ms(since), _to_ms(until))
        page = (-1 if limit is None else limit, offset)
        rows = self._read("witness_list", (*range_, session_id, model, kind, *page))
        return [WitnessEntry.from_row(row) for row in rows]

    def __len__(self) -> int:
        """How many entries the log holds."""
        return int(self._read("witness_count", (None,) * 5)[0]["n"])

    def __bool__(self) -> bool:
        """True, whatever it holds."""
        return True

    def _read(self, name: str, args: tuple[int | str | None, ...]) -> _Rows:
        with self._lock:
            target = self._n_deferred
            if not self._idle.wait_for(lambda: self._n_done >= target, _READ_WAIT_S):
                _log.warning("reading without entries that still wait for their model's digest")

        def read(store: _core.Store) -> _Rows:
            try:
                store.flush(_READ_WAIT_S, False)  # what was recorded before is seen
            except (FileError, StateError) as e:
                _log.warning("reading without the newest entries: %s", e)
            return store.query(name, args)

        return self._call(read)

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self._folder) / "memory.db"

    def stats(self) -> dict[str, Any]:
        """Counters since the log was opened.

        queued, written, dropped (refused by a full queue, or lost), failed (refused by the table),
        batches (commits), retries (commits that failed), queue_depth and queue_bytes (waiting now),
        pending (waiting for a digest now), queued_seq, committed_seq, durable_seq (row numbers of
        this opening of the file), failing (the last commit failed), ofd_locks, last_error.
        """
        with self._lock:
            out = dict(self._last)
            sums = Counter(self._past)
            pending = self._n_deferred - self._n_done
            if self._store is not None:
                out = self._store.stats()
                sums.update({name: out[name] for name in _SUMS})
        return {**out, **{name: sums[name] for name in _SUMS}, "pending": pending}

    def __enter__(self) -> WitnessLog:
        """The log itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    # ---- digests ----

    def model_digest(self, path: str | os.PathLike[str]) -> str:
        """ "sha256:<hex>" over the whole file, from the cache unless the file was edited.

        Raises NotFoundError, FileError.
        """
        with self._hashing:
            key = file_key(path)
            known = self._digests.get(key[0])
            if known and known[0] == key:
                return known[1]
            rows = self._call(lambda s: s.query("digest", key))
            if rows:
                digest = str(rows[0]["digest"])
            else:
                key, digest = hash_file(path)
                self._call(lambda s: s.write("digest", (*key, digest)))
            self._digests[key[0]] = (key, digest)
            return digest

    def prefetch_digest(self, path: str | os.PathLike[str]) -> None:
        """Begin to compute the digest of a file that entries will name soon."""
        if self._known_digest(os.fspath(path)) is None:
            self._defer(os.fspath(path), None)

    def _known_digest(self, path: str) -> str | None:
        """Without reading the file or the store."""
        known = self._digests.get(os.path.abspath(path))
        if known is None:
            return None
        try:
            return known[1] if file_key(path) == known[0] else None
        except FileError:
            return None

    def _try_digest(self, path: str) -> str | None:
        try:
            return self.model_digest(path)
        except FileError as e:
            _log.warning("entry without a digest: %s", e)
            return None

    def _defer(self, path: str, row: _Row | None) -> None:
        with self._lock:
            if self._closing:
                raise StateError(f"{self.path}: the witness log is closed")
            if len(self._pending) >= self._max_pending:
                self._past["dropped"] += 1
                n = self._max_pending
                raise FullError(f"witness: {n} entries wait for a model's digest, want fewer")
            self._pending.append((path, row))
            self._n_deferred += 1
            if self._working:
                return
            self._working = True
        try:
            threading.Thread(target=self._work, name="ruvllm-digest", daemon=True).start()
        except RuntimeError:  # the interpreter is ending and starts no threads
            self._work()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._pending:
                    self._working = False
                    return
                path, row = self._pending.popleft()
            try:
                self._finish(path, row)
            except FullError as e:  # the store has counted it
                _log.error("entry lost: %s", e)
            except Exception:
                _log.exception("entry lost")
                with self._lock:
                    self._past["failed"] += 1
            finally:
                with self._lock:
                    self._n_done += 1
                    self._idle.notify_all()

    def _finish(self, path: str, row: _Row | None) -> None:
        digest = self._try_digest(path)
        if row is None:
            return
        if digest is not None:
            row["model_digest"] = digest
        self._call(lambda s: s.witness_put(row))


def _to_ms(t: int | datetime | None) -> int | None:
    if not isinstance(t, datetime):
        return t
    if t.tzinfo is None:
        raise ArgumentError(f"witness: {t.isoformat()} has no time zone")
    return round(t.timestamp() * 1000)


# ---- the process: default logs, exit, fork ----


class _Process:
    """What the process knows of its logs."""

    def __init__(self) -> None:
        self.logs: weakref.WeakSet[WitnessLog] = weakref.WeakSet()
        self.defaults: dict[str, WitnessLog] = {}
        self.forking: list[WitnessLog] = []
        self.worker = 0  # the pid for which close_at_end_of_worker has been done
        self.lock = threading.Lock()
        self.defaults_lock = threading.Lock()

    def close_all(self) -> None:
        with self.lock:
            logs = list(self.logs)
        for log in logs:
            try:
                log.close()
            except RuvllmError as e:
                _log.error("at exit: %s", e)

    def close_at_end_of_worker(self) -> None:
        """A forked worker of multiprocessing ends without atexit; it has its own list."""
        pid = os.getpid()
        if "multiprocessing.util" not in sys.modules or self.worker == pid:
            return
        from multiprocessing import parent_process, util

        if parent_process() is not None:
            self.worker = pid
            util.Finalize(None, self.close_all, exitpriority=0)

    def before_fork(self) -> None:
        self.lock.acquire()
        self.forking = list(self.logs)
        for log in self.forking:
            log._lock.acquire()
            try:
                log._retire()
            except RuvllmError as e:
                _log.error("before a fork: %s", e)

    def after_fork_in_parent(self) -> None:
        for log in self.forking:
            log._lock.release()
        self.forking = []
        self.lock.release()

    def after_fork_in_child(self) -> None:
        for log in self.forking:
            log._closed = log._closing  # a thread of the parent was closing it
            log._reset()
        self.forking = []
        self.lock = threading.Lock()
        self.defaults_lock = threading.Lock()


_process = _Process()
atexit.register(_process.close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_process.before_fork,
        after_in_parent=_process.after_fork_in_parent,
        after_in_child=_process.after_fork_in_child,
    )


def default_log(path: str | Path | None = None) -> WitnessLog:
    """The process's log in a folder, opened on first use; one per folder, closed at exit.

    path: the folder; ``None``: ``ruvllm._paths.home()``.  Raises as ``WitnessLog``.
    """
    key = os.path.realpath(path if path is not None else _paths.home())
    with _process.defaults_lock:
        log = _process.defaults.get(key)
        if log is None or log._closing:
            log = _process.defaults[key] = WitnessLog(key)
        return log


def model_digest(path: str | os.PathLike[str]) -> str:
    """ "sha256:<hex>" over the whole file; kept in the default log, if that can be opened.

    Raises NotFoundError, FileError.
    """
    try:
        log = default_log()
    except RuvllmError as e:
        _log.warning("digests are not kept: %s", e)
        return hash_file(path)[1]
    return log.model_digest(path)
