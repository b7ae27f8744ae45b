"""The thread of an engine: it steps while there is work, and hands out what a step gave.

    submit, cancel ──lock──► core queue ──► step (no lock, no GIL) ──► events ──► requests
                                                ▲__________ while anything runs or waits

One thread per engine, started with the first request, asleep when nothing is to do.  Between two
steps it does chores (``Chores``), a few milliseconds at a time.  It never waits for whoever reads:
what a request has given is kept until it is asked for.  ``lock`` guards the core's other methods
and the flags; the thread alone steps, and what it hands out it hands out without the lock.

A fork would copy the core in the middle of a step, with locks that nobody in the child holds; so
before one the thread is stopped between two steps (``gate``), and a child's engines are dead.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Mapping
from math import exp
from typing import TYPE_CHECKING, Any, Protocol

from ruvllm import _core
from ruvllm._errors import FullError, NotFoundError, StateError
from ruvllm.engine.results import FinishReason

if TYPE_CHECKING:
    import asyncio

    from numpy.typing import NDArray

_STOP, _CANCELLED, _ERROR = 1, 3, 5  # rv_finish
_REASONS: tuple[FinishReason | None, ...] = (
    None, "stop", "length", "cancelled", "deadline", "error",
)  # fmt: skip
_TRIES = 5  # steps that fail in a row (out of memory) before the requests do
_RATE_S = 5.0  # what tokens per second are averaged over, of time that was spent stepping


class Wakes:
    """Futures of event loops that are done, each loop told once for all of its."""

    def __init__(self) -> None:
        self._all: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        """Have ``future`` of ``loop`` done by ``send``."""
        self._all.setdefault(loop, []).append(future)

    def send(self) -> None:
        """Tell every loop; those that are closed have nobody waiting."""
        for loop, futures in self._all.items():
            try:
                loop.call_soon_threadsafe(_finish_all, futures)
            except RuntimeError:
                continue
        self._all.clear()


def _finish_all(futures: list[asyncio.Future[None]]) -> None:
    for f in futures:
        if not f.done():
            f.set_result(None)


class Job(Protocol):
    """What the loop needs of a request."""

    id: int

    def take(self, event: _core._Event, reason: FinishReason | None) -> FinishReason | None:
        """Take an event and, of one that ends it, why; why it ends now, if it does."""

    def mask(self) -> NDArray[Any] | None:
        """Which tokens the next choice may take."""

    def deliver(self, wakes: Wakes) -> None:
        """Show what was taken to those who wait."""

    def end(self, reason: FinishReason, error: Exception | None, wakes: Wakes) -> None:
        """Nothing follows: fix the result and show it."""


class Chores(Protocol):
    """What the thread does besides, between two steps."""

    def left(self) -> float | None:
        """Seconds until something is to be done; None: nobody knows of anything."""

    def run(self) -> None:
        """Do some of it, for a few milliseconds."""

    def close(self) -> None:
        """Do the rest: the core goes next."""

    def disown(self) -> None:
        """This process is a fork."""


class Loop:
    """Requests of one engine, from submission to their end."""

    def __init__(self, core: _core.Engine, chores: Chores) -> None:
        self.forked = False
        self.gate = threading.RLock()
        self._core = core
        self._chores = chores
        self._lock = threading.Condition()  # reentrant: the garbage collector may call stop()
        self._live: dict[int, Job] = {}
        self._thread: threading.Thread | None = None
        self._busy = self._stopping = self._closed = False
        self._n_pausing = 0
        self._n_failed = 0
        self._tokens = self._seconds = 0.0
        _loops.add(self)

    # -- from any thread ----------------------------------------------------------------------

    def check(self) -> None:
        """StateError when nothing can be asked of it any more."""
        if self.forked:
            raise StateError("engine: was made before this process was forked, want one of its own")
        if self._stopping:
            raise StateError("engine: is closed")

    def submit(self, job: Job, *args: Any) -> None:
        """Queue a request with the arguments of the core; its id is set."""
        self.check()
        with self._lock:
            self.check()
            self._start()
            job.id = self._core.submit(*args)
            self._live[job.id] = job
            self._work()

    def wake(self) -> None:
        """Have the thread look after the chores."""
        self.check()
        with self._lock:
            self.check()
            self._start()
            self._lock.notify_all()

    def cancel(self, job: Job) -> None:
        """End a request before the next step; nothing happens to one that has ended."""
        if self.forked:
            return
        with self._lock:
            if not self._stopping and job.id in self._live:
                self._cancel(job.id, _CANCELLED)
                self._work()

    def stats(self) -> tuple[Mapping[str, Any], float]:
        """The core's counters, and tokens per second over the last seconds of stepping."""
        self.check()
        with self._lock:
            self.check()
            return self._core.stats(), self._tokens / self._seconds if self._seconds else 0.0

    def stop(self, join: bool) -> None:
        """End: what runs is cancelled after the present step."""
        if self.forked:
            return
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
            if self._thread is None:
                self._close()
        if join and self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def pause(self) -> None:
        """Return between two steps, and let none begin before ``resume``."""
        with self._lock:
            self._n_pausing += 1
        self.gate.acquire()

    def resume(self) -> None:
        """Go on."""
        self.gate.release()
        with self._lock:
            self._n_pausing -= 1
            self._lock.notify_all()

    def disown(self) -> None:
        """This process is a fork: nothing works here any more."""
        self.forked = True
        self._chores.disown()

    # -- with the lock ------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="ruvllm-engine", daemon=True)
            thread.start()
            self._thread = thread

    def _work(self) -> None:
        self._busy = True
        self._lock.notify_all()

    def _cancel(self, request: int, reason: int) -> None:
        try:
            self._core.cancel(request, reason)
        except NotFoundError:
            return  # its end is on the way

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._chores.close()
            self._core.close()

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait():
            with self.gate:
                self._step()
                self._chores.run()
        with self.gate:
            self._end_all("cancelled", None)
            with self._lock:
                self._close()

    def _wait(self) -> bool:
        with self._lock:
            while self._n_pausing or not (self._busy or self._stopping):
                left = None if self._n_pausing else self._chores.left()
                if left == 0:
                    break
                self._lock.wait(left)
            self._busy = False
            return not self._stopping

    def _step(self) -> None:
        started = time.perf_counter()
        try:
            events, idle, error = self._core.step()
        except Exception as e:  # a bug, but nobody must wait for ever
            self._end_all("error", e)
            self.stop(False)
            return
        self._dispatch(events)
        if error is None:
            self._n_failed = 0
            self._count(sum(e[1] >= 0 for e in events), time.perf_counter() - started)
        else:
            self._fail(error)
        if not idle:
            with self._lock:
                self._busy = True

    def _fail(self, error: Exception) -> None:
        if isinstance(error, FullError):  # others than the engine hold the memory
            time.sleep(0.005)
            return
        self._n_failed += 1
        if self._n_failed < _TRIES:
            time.sleep(0.001 * 4**self._n_failed)  # memory may come back
            return
        self._n_failed = 0
        with self._lock:
            for request in self._live:
                self._cancel(request, _CANCELLED)
        self._end_all("error", error)

    def _count(self, n_tokens: int, seconds: float) -> None:
        keep = exp(-seconds / _RATE_S)
        self._tokens = self._tokens * keep + n_tokens
        self._seconds = self._seconds * keep + seconds

    def _dispatch(self, events: list[_core._Event]) -> None:
        wakes = Wakes()
        for event in events:
            job = self._live.get(event[0])
            if job is None:
                continue  # it ended here before the core knew
            try:
                self._one(job, event, wakes)
            except Exception as e:  # of its grammar, mostly: no other request's business
                if not event[5]:
                    with self._lock:
                        self._cancel(job.id, _CANCELLED)
                self._end(job, "error", e, wakes)
        wakes.send()

    def _one(self, job: Job, event: _core._Event, wakes: Wakes) -> None:
        finish, error = event[5], event[6]
        reason = job.take(event, _REASONS[finish])
        if reason is None:
            if (mask := job.mask()) is not None:
                self._core.allow(job.id, mask)
            job.deliver(wakes)
            return
        if not finish:  # a stop string, or a grammar that is complete
            with self._lock:
                self._cancel(job.id, _STOP)
        self._end(job, reason, error if finish == _ERROR else None, wakes)

    def _end(self, job: Job, reason: FinishReason, error: Exception | None, wakes: Wakes) -> None:
        with self._lock:
            self._live.pop(job.id, None)
        job.end(reason, error, wakes)

    def _end_all(self, reason: FinishReason, error: Exception | None) -> None:
        wakes = Wakes()
        with self._lock:
            jobs = list(self._live.values())
        for job in jobs:
            self._end(job, reason, error, wakes)
        wakes.send()


# -- processes --------------------------------------------------------------------------------

_loops: weakref.WeakSet[Loop] = weakref.WeakSet()
_fork_lock = threading.Lock()
_paused: list[Loop] = []


def _before_fork() -> None:
    _fork_lock.acquire()
    _paused.extend(_loops)
    for loop in _paused:
        loop.pause()


def _after_in_parent() -> None:
    for loop in _paused:
        loop.resume()
    _paused.clear()
    _fork_lock.release()


def _after_in_child() -> None:
    for loop in _paused:  # of those made before, none is alive here
        loop.disown()
    _paused.clear()
    _loops.clear()
    _fork_lock.release()


def _stop_all() -> None:
    for loop in list(_loops):
        loop.stop(True)


def watch_process() -> None:
    """Have forks and the end of the process seen.

    Once, after what requests write to when they end (the witness log) has asked for the same: what
    asked last is told first.
    """
    atexit.register(_stop_all)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
        )
