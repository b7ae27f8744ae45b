"""Memory: one budget in bytes for keys and values, adapters and router weights, and who holds it.

    pool = ruvllm.MemoryPool(256 << 20)
    model = ruvllm.Model("model.gguf", memory=pool)  # its keys and values count in the pool
    block = pool.allocate(ruvllm.LoraAdapter("a", 8, 16), n_bytes, evict=drop, persist=save)
    adapters["a"] = load()                           # it is pinned until it is there
    block.unpin()
    print(ruvllm.memory())

The budget itself is the core's (``csrc/base/budget.c``): bytes are counted before they are
allocated, so it is never exceeded by anybody.  A block counts memory that somebody else allocates:

    pinned ──unpin──► idle ──memory is wanted──► persist ──► evict ──► evicted
       ▲                │                           │
       └──────pin───────┘◄──── fails, or pinned ────┘

No lock is held while a function of a holder runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from ruvllm import _core
from ruvllm._errors import ArgumentError, StateError
from ruvllm.engine._params import check_one_of, check_whole

if TYPE_CHECKING:
    from ruvllm.engine.model import Model

_log = logging.getLogger("ruvllm")
_T = TypeVar("_T")
_MOST = 2**63 - 1


# -- what a block holds -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class KvCache:
    """Keys and values of a session that lie outside of a model's pages.

    tier: "hot", "warm" or "cold".  pages: of 16 positions.
    """

    session: str
    tier: Literal["hot", "warm", "cold"]
    pages: int

    def __post_init__(self) -> None:
        check_one_of("tier", self.tier, ("hot", "warm", "cold"))
        check_whole("pages", self.pages, 0, _MOST)

    def __str__(self) -> str:
        return f"keys and values of {self.session}, {self.tier}, {self.pages} pages"


@dataclasses.dataclass(frozen=True, slots=True)
class LoraAdapter:
    """An adapter: its rank, and how many layers it changes."""

    id: str
    rank: int
    layers: int

    def __post_init__(self) -> None:
        check_whole("rank", self.rank, 1, _MOST)
        check_whole("layers", self.layers, 1, _MOST)

    def __str__(self) -> str:
        return f"adapter {self.id}, rank {self.rank}, {self.layers} layers"


@dataclasses.dataclass(frozen=True, slots=True)
class RouterWeights:
    """Weights of the router, by the number of their version."""

    version: int

    def __post_init__(self) -> None:
        check_whole("version", self.version, 0, _MOST)

    def __str__(self) -> str:
        return f"router weights {self.version}"


BlockKind: TypeAlias = KvCache | LoraAdapter | RouterWeights
_PRIORITIES = {KvCache: 0, LoraAdapter: 1, RouterWeights: 2}


# -- blocks -------------------------------------------------------------------------------------


class MemoryBlock:
    """Bytes of a pool, counted from ``allocate`` until ``free``, eviction, or the last reference.

    It begins pinned, once.  A context manager: leaving it frees it.  Thread-safe.
    """

    def __init__(
        self,
        budget: _core.Budget,
        *,
        kind: BlockKind,
        nbytes: int,
        priority: int,
        evict: Callable[[MemoryBlock], object] | None,
        persist: Callable[[MemoryBlock], object] | None,
    ) -> None:
        #: What it holds.
        self.kind = kind
        #: Bytes it counts while it is held.
        self.nbytes = nbytes
        #: Blocks of lower ones go first.
        self.priority = priority
        self._evict = evict
        self._persist = persist
        self._lock = threading.Lock()
        self._pins = 1
        self._leaving = self._evicted = self._freed = False
        name = str(kind).replace("\0", " ").encode(errors="replace").decode()
        shrink = functools.partial(_shrink, weakref.ref(self)) if evict is not None else None
        self._holder = budget.join(name, priority, shrink)
        self._holder.take(nbytes)

    @property
    def pinned(self) -> bool:
        """Whether it is in use: it is not evicted then."""
        return self._pins > 0

    @property
    def held(self) -> bool:
        """Whether it counts: neither freed nor evicted."""
        return not (self._freed or self._evicted)

    def pin(self) -> contextlib.AbstractContextManager[object]:
        """Keep it from being evicted until ``unpin``, or as long as ``with block.pin():`` lasts.

        Raises StateError when it has been freed or evicted: allocate another one then.
        """
        with self._lock:
            if self._freed or self._evicted:
                what = "freed" if self._freed else "evicted"
                raise StateError(f"{self.kind}: has been {what}")
            self._pins += 1
        stack = contextlib.ExitStack()
        stack.callback(self.unpin)
        return stack

    def unpin(self) -> None:
        """Undo one ``pin``, or the one it begins with; it is now the most recently used.

        Raises StateError when there is none.
        """
        with self._lock:
            if not self._pins:
                raise StateError(f"{self.kind}: is not pinned")
            self._pins -= 1
        self._holder.use()

    def free(self) -> None:
        """Give the bytes back; the memory they count is free already.  Pinned or not, once."""
        with self._lock:
            if self._freed or self._evicted:
                return
            self._freed = True
            if self._leaving:  # whoever evicts it gives them back
                return
        self._holder.give()

    def __enter__(self) -> MemoryBlock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.free()

    def __repr__(self) -> str:
        state = "freed" if self._freed else "evicted" if self._evicted else f"{self._pins} pins"
        return f"MemoryBlock({self.kind}, {self.nbytes} bytes, {state})"

    def _go(self) -> bool:
        """Be evicted, if that can be; whether the bytes were given back."""
        with self._lock:
            if self._pins or self._freed or self._evicted:
                return False
            self._leaving = True
        went = self._let_go()
        with self._lock:
            self._leaving = False
            self._evicted = went
            gives = went or self._freed
        if gives:
            self._holder.give()
        return gives

    def _let_go(self) -> bool:
        assert self._evict is not None
        try:
            if self._persist is not None:
                self._persist(self)
            with self._lock:
                if self._pins or self._freed:
                    return False
                self._evicted = True  # nobody pins it from now on
            self._evict(self)
        except Exception:
            _log.warning("memory: %s could not be evicted and stays", self.kind, exc_info=True)
            return False
        return True


def _shrink(ref: weakref.ref[MemoryBlock], want: int) -> bool:
    block = ref()
    return block is not None and block._go()


# -- pools --------------------------------------------------------------------------------------


class MemoryPool:
    """One budget in bytes for the keys and values of models and for other holders of memory.

    budget: bytes, at least 1.  name: for reports.

    Give it to any number of models (``Model(path, memory=pool)``), and count other memory in it by
    ``allocate``.  When the budget is full, holders are asked for what they can do without, the
    lowest priority first, of equals the least recently used: pages of models that no sequence
    needs have priority 0.  What is held never exceeds the budget.  Thread-safe.
    """

    def __init__(self, budget: int, *, name: str = "memory") -> None:
        check_whole("budget", budget, 1, _MOST)
        #: For reports.
        self.name = name
        self._core = _core.budget_new(budget)
        self._watches: dict[int, _core.Holder] = {}
        self._numbers = itertools.count()
        _know(_pools, self)

    @property
    def budget(self) -> int:
        """Bytes that may be held."""
        return self._core.stats()["budget"]

    @property
    def used(self) -> int:
        """Bytes held now."""
        return self._core.stats()["used"]

    @property
    def pressure(self) -> float:
        """``used / budget``, 0 .. 1; more only after ``resize`` to less than is in use."""
        return _pressure(self._core)

    def allocate(
        self,
        kind: BlockKind,
        nbytes: int,
        *,
        priority: int | None = None,
        evict: Callable[[MemoryBlock], object] | None = None,
        persist: Callable[[MemoryBlock], object] | None = None,
    ) -> MemoryBlock:
        """Count bytes that are about to be allocated; others may have to go for them.

        kind: KvCache, LoraAdapter or RouterWeights.  nbytes: at least 1.  priority: -1000 .. 1000;
        None: 0, 1 and 2 for the three kinds.  evict: frees the memory; None: it is never evicted.
        persist: called before that, so that nothing is lost; if it raises, the block stays and
        another one is asked.

        The block begins pinned: ``unpin`` it when the memory is there and it may go.  Both
        functions are given the block.  They are called in whatever thread wants memory, that of an
        engine too, with no lock held, and must not wait for what that thread has yet to do.

        Raises FullError when it does not fit (what was wanted, the budget, who holds how much),
        ArgumentError.
        """
        if not isinstance(kind, (KvCache, LoraAdapter, RouterWeights)):
            raise ArgumentError(
                f"kind: is {kind!r:.60}, want a KvCache, LoraAdapter or RouterWeights"
            )
        check_whole("nbytes", nbytes, 1, _MOST)
        if priority is None:
            priority = _PRIORITIES[type(kind)]
        check_whole("priority", priority, -1000, 1000)
        for name, f in (("evict", evict), ("persist", persist)):
            if f is not None and not callable(f):
                raise ArgumentError(f"{name}: is {f!r:.60}, want a function or None")
        if persist is not None and evict is None:
            raise ArgumentError("persist: is given without evict, so it would never be called")
        return MemoryBlock(
            self._core, kind=kind, nbytes=nbytes, priority=priority, evict=evict, persist=persist
        )

    def resize(self, budget: int) -> int:
        """Another budget; with less than is held, holders are asked to free.

        Returns the bytes over it that nobody could free; nothing is counted until they are gone.
        """
        check_whole("budget", budget, 1, _MOST)
        return self._core.resize(budget)

    def on_pressure(
        self, fraction: float, callback: Callable[[float], object]
    ) -> Callable[[], None]:
        """Have ``callback(pressure)`` called when use rises to ``fraction`` of the budget.

        fraction: in (0, 1].  Once for each rise, in the thread that took the memory, with no lock
        held.  Returns a function that ends it.  Raises ArgumentError.
        """
        number = next(self._numbers)
        told = functools.partial(_told, self._core, callback)
        self._watches[number] = self._core.watch(float(fraction), told)

        def end() -> None:
            self._watches.pop(number, None)

        return end

    def report(self) -> PoolReport:
        """What is held of it, and by whom."""
        return _report(self.name, self._core)

    def __repr__(self) -> str:
        s = self._core.stats()
        return f"MemoryPool({self.name!r}, {s['used']} of {s['budget']} bytes)"


def _pressure(core: _core.Budget) -> float:
    stats = core.stats()
    return stats["used"] / stats["budget"]


def _told(core: _core.Budget, callback: Callable[[float], object]) -> None:
    try:
        callback(_pressure(core))
    except Exception:
        _log.warning("memory: a function told of pressure failed", exc_info=True)


# -- reports ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryHolder:
    """Who holds part of a budget; lower priorities are asked to free first."""

    name: str
    priority: int
    nbytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class PoolReport:
    """A budget: bytes of it, used now, and used at most so far; requests that were refused.

    holders: in the order in which they would be asked to free.
    """

    name: str
    budget: int
    used: int
    peak: int
    refused: int
    holders: tuple[MemoryHolder, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ModelMemory:
    """Bytes of an open model besides its keys and values; no budget counts them.

    mapped: the file, which the system can drop from memory and read again.  repacked: weights in
    the order the kernels read.  work: areas of forward passes that wait for their next use.
    """

    name: str
    mapped: int
    repacked: int
    work: int


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryReport:
    """Where the memory of this process is; ``str`` makes a table of it.

    pools: every MemoryPool, and the budget of every model that has one of its own.  models: all
    that are open.  core: bytes that the core's allocator holds, all the above but the mapped files
    and blocks, and more.  anonymous, swapped: of the whole process, None where the system does not
    say.
    """

    pools: tuple[PoolReport, ...]
    models: tuple[ModelMemory, ...]
    core: int
    anonymous: int | None
    swapped: int | None

    def __str__(self) -> str:
        lines = []
        for p in self.pools:
            lines.append(f"{p.name}: budget {_mib(p.budget)}, at most {_mib(p.peak)} so far")
            lines += [f"  {h.priority:>4}  {h.name:64} {_mib(h.nbytes)}" for h in p.holders]
            total = f"used; {p.refused} refused" if p.refused else "used"
            lines.append(f"        {total:64} {_mib(p.used)}")
        for m in self.models:
            lines.append(
                f"{m.name}: mapped {_mib(m.mapped)}, repacked {_mib(m.repacked)}, "
                f"work areas {_mib(m.work)}"
            )
        known = (("anonymous", self.anonymous), ("swapped", self.swapped), ("core", self.core))
        lines.append("process: " + ", ".join(f"{k} {_mib(v)}" for k, v in known if v is not None))
        return "\n".join(lines)


def memory() -> MemoryReport:
    """Where the memory of this process is; users call it ``ruvllm.memory()``."""
    pools = [p.report() for p in _known(_pools)]
    models = []
    for model in _known(_models):
        core = model._core
        if core is None:
            continue
        name = model.info.name or os.path.basename(model.path)
        budget = core.memory() if model.memory is None else None
        if budget is not None:
            pools.append(_report(f"model {name}", budget))
        models.append(
            ModelMemory(name, core.gguf().file_bytes(), core.repacked_bytes(), core.work_bytes())
        )
    status = _status()
    return MemoryReport(
        tuple(pools),
        tuple(models),
        _core.live_bytes(),
        status.get("RssAnon"),
        status.get("VmSwap"),
    )


def know_model(model: Model) -> None:
    """Have reports name it as long as it is open."""
    _know(_models, model)


def _report(name: str, core: _core.Budget) -> PoolReport:
    holders = tuple(MemoryHolder(*h) for h in core.holders())
    s = core.stats()
    return PoolReport(name, s["budget"], s["used"], s["peak"], s["n_refused"], holders)


def _status() -> dict[str, int]:
    """Bytes of the process by the kernel's names for them."""
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as f:
            rows = [line.split() for line in f if line.startswith(("RssAnon:", "VmSwap:"))]
    except OSError:
        return {}
    return {row[0][:-1]: int(row[1]) * 1024 for row in rows}


def _mib(n: int) -> str:
    return f"{n / 2**20:.1f} MiB"


# What reports name, in the order it was made; the lock because a set that grows cannot be walked.
_lock = threading.Lock()
_numbers = itertools.count()
_pools: weakref.WeakValueDictionary[int, MemoryPool] = weakref.WeakValueDictionary()
_models: weakref.WeakValueDictionary[int, Model] = weakref.WeakValueDictionary()


def _know(them: weakref.WeakValueDictionary[int, _T], one: _T) -> None:
    with _lock:
        them[next(_numbers)] = one


def _known(them: weakref.WeakValueDictionary[int, _T]) -> list[_T]:
    with _lock:
        return [one for _, one in sorted(them.items(), key=lambda item: item[0])]
