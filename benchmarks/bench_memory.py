"""Does the process stay within the budget it was given?

A pool of so many MiB holds the keys and values of a model and, beside them, adapters that are used
in turn.  Requests of hostile lengths (around pages, half of the context, all of it), some of which
are cancelled, go through an engine until the keys and values computed are several times the budget.
What the process has more of (anonymous memory and swap, the most that was ever seen) than after a
warm-up is compared with the budget; the warm-up brings what does not depend on it: repacked
weights, work areas, the interpreter's own."""

from __future__ import annotations

import mmap
import multiprocessing
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import Figure, options, report
from random_model import make

import ruvllm

N_ADAPTERS = 12
ADAPTERS = 0.3  # of the budget that they would take together
RUNNING = 48  # requests at once


def anonymous() -> int:
    """Bytes of the process that are its own, in memory or swapped out."""
    now = ruvllm.memory()
    assert now.anonymous is not None and now.swapped is not None
    return now.anonymous + now.swapped


class Highest:
    """The most anonymous memory that was seen while it runs, looked at every 5 ms."""

    def __init__(self) -> None:
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.bytes = max(self.bytes, anonymous())

    def __enter__(self) -> Highest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def exactly(nbytes: int) -> np.ndarray[Any, Any]:
    """Memory that goes back when it is freed: malloc keeps some blocks of this size for later."""
    area = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(area, np.uint8)


class Adapters:
    """Bytes that are read when they are there and made again when they had to go."""

    def __init__(self, pool: ruvllm.MemoryPool, n: int, nbytes: int) -> None:
        self.pool, self.nbytes = pool, nbytes
        self.blocks: list[ruvllm.MemoryBlock | None] = [None] * n
        self.data: list[np.ndarray[Any, Any] | None] = [None] * n
        self.saved = [0] * n
        self.made = self.refused = 0

    def use(self, i: int) -> None:
        block = self.blocks[i]
        try:
            if block is None:
                raise ruvllm.StateError("was never there")
            with block.pin():
                data = self.data[i]
                assert data is not None and data[-1] == i
        except ruvllm.StateError:
            self.load(i)

    def load(self, i: int) -> None:
        def save(block: ruvllm.MemoryBlock) -> None:
            self.saved[i] += 1

        def drop(block: ruvllm.MemoryBlock) -> None:
            self.data[i] = None

        kind = ruvllm.LoraAdapter(str(i), 16, 8)
        try:
            block = self.pool.allocate(kind, self.nbytes, evict=drop, persist=save)
        except ruvllm.FullError:
            self.refused += 1
            return
        self.data[i] = exactly(self.nbytes)
        self.data[i][:] = i
        self.blocks[i] = block
        self.made += 1
        block.unpin()


def serve(engine: ruvllm.Engine, prompts: Sequence[Sequence[int]], adapters: Adapters) -> int:
    """Tokens computed for prompts and replies, of which every ninth is cancelled on its way."""
    requests = [
        engine.submit(
            p, max_tokens=1 + 7 * i % 40, ignore_eos=True, priority="high" if i % 2 else "low"
        )
        for i, p in enumerate(prompts)
    ]
    for i, r in enumerate(requests):
        adapters.use(i % N_ADAPTERS)
        if i % 9 == 4:
            next(iter(r), None)  # an iteration that is left cancels the request
    results = [r.result() for r in requests]
    return sum(len(r.prompt_tokens) + len(r.tokens) - r.cached_tokens for r in results)


def measure(path: str, mib: int, times: float, seed: int) -> dict[str, float]:
    """In a process of its own: bytes by what they are."""
    budget = mib << 20
    pool = ruvllm.MemoryPool(budget)
    model = ruvllm.Model(path, memory=pool, n_threads=2, witness=False)
    per_token = model.info.kv_bytes_per_token
    longest = min(model.n_ctx - 48, budget // per_token // 4)
    lengths = (1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 255, longest // 2, longest)
    rng = np.random.default_rng(seed)

    def prompts(n: int, most: int) -> list[list[int]]:
        chosen = [min(int(x), most) for x in rng.choice(lengths, n)]
        return [rng.integers(0, model.info.n_vocab - 8, k).tolist() for k in chosen]

    with ruvllm.Engine(model, max_running=RUNNING) as engine:
        # As many at once as there will ever be, all of them choosing tokens, and a long one.
        first = [rng.integers(0, model.info.n_vocab - 8, 4).tolist() for _ in range(RUNNING)]
        first.append(rng.integers(0, model.info.n_vocab - 8, longest).tolist())
        for r in [engine.submit(p, max_tokens=48, ignore_eos=True) for p in first]:
            r.result()
        pool.resize(1)  # idle pages go, so that none that nobody has touched yet is counted
        before = anonymous() - pool.used
        pool.resize(budget)
        work_before = model._open().work_bytes()
        adapters = Adapters(pool, N_ADAPTERS, int(budget * ADAPTERS / N_ADAPTERS))
        computed = n_requests = 0
        with Highest() as highest:
            while computed * per_token < times * budget:
                wave = prompts(RUNNING, longest)
                computed += serve(engine, wave, adapters)
                n_requests += len(wave)
        n_preempted = engine.metrics().preemptions
        work = model._open().work_bytes() - work_before
    told = pool.report()
    return {
        "growth": (highest.bytes - before - work) / budget,
        "peak": told.peak / budget,
        "requests": n_requests,
        "preempted": n_preempted,
        "evicted": sum(adapters.saved),
        "refused": adapters.refused,
    }


def main() -> None:
    p = options(__doc__)
    p.add_argument("--budgets", type=int, nargs="+", default=[64, 128, 256], metavar="MIB")
    args = p.parse_args()
    if ruvllm.memory().anonymous is None:
        print("memory: left out: the system does not say what a process holds")
        return
    figures: list[Figure] = []
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "llama-100m.gguf"
        works = [("tiny-C", ruvllm.Model(witness=False).path, args.budgets)]
        if not args.quick:  # pages of 128 KiB
            works.append(
                ("llama-100m", str(make("llama-100m", path, "q4_0", args.seed)), args.budgets)
            )
        for name, file, budgets in works:
            for mib in budgets:
                with spawn.Pool(1) as one:
                    times = 1.2 if args.quick else 3.0
                    found = one.apply(measure, (file, mib, times, args.seed))
                what = f"{name}, {mib} MiB"
                growth, peak = found.pop("growth"), found.pop("peak")
                figures += [
                    Figure(
                        f"{what}: process", growth, "budgets", goal="<= 1.05", holds=growth <= 1.05
                    ),
                    Figure(f"{what}: counted", peak, "budgets", goal="<= 1", holds=peak <= 1),
                ]
                figures += [Figure(f"{what}: {key}", n, "") for key, n in found.items()]
    report(args, figures)


if __name__ == "__main__":
    main()
