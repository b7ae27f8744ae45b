"""One budget: who yields to whom, what is never lost, threads, pressure, reports, the process."""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from encoder_make import encoder

import ruvllm
from ruvllm import ArgumentError, FullError, LoraAdapter, MemoryBlock, RouterWeights, StateError

FREE: dict[str, Any] = {"max_tokens": 16, "ignore_eos": True}
OPEN: dict[str, Any] = {"n_threads": 1, "witness": False}


def ids(n: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(500) for _ in range(n)]


def alone() -> ruvllm.Model:
    return ruvllm.Model(**OPEN)


def idle(pool: ruvllm.MemoryPool, version: int, n: int, **options: Any) -> MemoryBlock:
    block = pool.allocate(RouterWeights(version), n, **options)
    block.unpin()
    return block


# -- blocks -------------------------------------------------------------------------------------


def test_the_lowest_priority_goes_first_then_the_least_recently_used() -> None:
    pool = ruvllm.MemoryPool(100)
    gone: list[int] = []

    def evict(block: MemoryBlock) -> None:
        assert isinstance(block.kind, RouterWeights)
        gone.append(block.kind.version)

    blocks = [idle(pool, i, 20, priority=p, evict=evict) for i, p in enumerate((1, 0, 1, 0, 5))]
    with blocks[1].pin():
        pass  # used last of those with priority 0
    assert pool.used == 100 and pool.pressure == 1.0
    new = [idle(pool, 9, 20, priority=9, evict=evict) for _ in range(4)]
    assert gone == [3, 1, 0, 2] and [b.held for b in blocks] == [False] * 4 + [True]
    with pytest.raises(StateError, match="router weights 1: has been evicted"):
        blocks[1].pin()
    with blocks[4].pin(), new[0].pin():
        idle(pool, 7, 60, priority=-1, evict=evict)
    assert gone[4:] == [9, 9, 9] and blocks[4].held and new[0].held
    assert pool.report().peak == 100


def test_a_block_is_persisted_before_it_is_evicted_and_nothing_is_lost() -> None:
    pool = ruvllm.MemoryPool(100)
    done: list[tuple[str, int]] = []
    broken = True

    def persist(block: MemoryBlock) -> None:
        done.append(("persist", block.nbytes))
        if broken and block.nbytes == 30:
            raise OSError(28, "No space left on device")

    def evict(block: MemoryBlock) -> None:
        done.append(("evict", block.nbytes))

    first = idle(pool, 1, 30, evict=evict, persist=persist)
    second = idle(pool, 2, 40, evict=evict, persist=persist)
    pinned = pool.allocate(RouterWeights(3), 10, evict=evict, persist=persist)
    third = idle(pool, 4, 40)  # the first cannot be saved, so the second goes
    assert done == [("persist", 30), ("persist", 40), ("evict", 40)]
    assert first.held and not second.held and pinned.held and third.held
    with pytest.raises(FullError) as e:
        pool.allocate(LoraAdapter("new", 8, 4), 35)
    assert "adapter new, rank 8, 4 layers wants 35 bytes, 80 of 100 are in use" in str(e.value)
    assert "router weights 1 30" in str(e.value) and "router weights 4 40" in str(e.value)
    assert first.held and pool.used == 80 and pool.report().refused == 1
    broken = False
    assert pool.allocate(LoraAdapter("new", 8, 4), 35).held and not first.held


def test_what_is_pinned_meanwhile_stays() -> None:
    pool = ruvllm.MemoryPool(100)
    block = pool.allocate(RouterWeights(1), 60, evict=pytest.fail, persist=lambda b: b.pin())
    block.unpin()
    with pytest.raises(FullError):
        pool.allocate(RouterWeights(2), 50)
    assert block.held and block.pinned
    block.unpin()
    with pytest.raises(StateError, match="is not pinned"):
        block.unpin()


def test_a_failed_eviction_leaves_the_block() -> None:
    pool = ruvllm.MemoryPool(100)
    block = idle(pool, 1, 60, evict=lambda b: 1 // 0)
    with pytest.raises(FullError):
        pool.allocate(RouterWeights(2), 50)
    with block.pin():
        assert block.held and pool.used == 60
    block.free()
    block.free()
    assert pool.used == 0 and not block.held


def test_blocks_are_given_back_once() -> None:
    pool = ruvllm.MemoryPool(100)
    with pool.allocate(RouterWeights(1), 60) as block:
        assert pool.used == 60 and block.pinned
    assert pool.used == 0
    with pytest.raises(StateError, match="has been freed"):
        block.pin()
    block = idle(pool, 2, 60, evict=pytest.fail, persist=lambda b: b.free())
    other = pool.allocate(RouterWeights(3), 100)  # freed while it was being saved
    assert pool.used == 100 and not block.held
    other.free()
    block = idle(pool, 4, 60, evict=lambda b: b.free())
    other = pool.allocate(RouterWeights(5), 70)
    assert pool.used == 70
    del other  # nobody refers to it
    assert pool.used == 0


def test_functions_may_drop_allocate_and_close() -> None:
    pool = ruvllm.MemoryPool(8 << 20)
    held: dict[int, MemoryBlock] = {}
    model = ruvllm.Model(memory=pool, **OPEN)
    model.generate(ids(100, 1), **FREE)

    def drop(block: MemoryBlock) -> None:
        assert isinstance(block.kind, RouterWeights)
        del held[block.kind.version]  # the last reference but this call's
        model.close()
        held[7] = pool.allocate(RouterWeights(7), 1 << 20)

    held[1] = idle(pool, 1, 6 << 20, evict=drop, priority=-5)
    big = pool.allocate(RouterWeights(2), 7 << 20)
    gc.collect()
    assert list(held) == [7] and pool.used == 8 << 20
    del big, held[7]
    assert pool.used == 0


def test_threads_never_hold_more_than_the_budget() -> None:
    pool = ruvllm.MemoryPool(1000)
    lock = threading.Lock()
    real = most = n_evicted = 0

    def change(n: int, evicted: int = 0) -> None:
        nonlocal real, most, n_evicted
        with lock:
            real += n
            most = max(most, real)
            n_evicted += evicted

    def persist(block: MemoryBlock) -> None:
        if block.nbytes % 10 == 0:
            raise OSError("no luck")

    def evict(block: MemoryBlock) -> None:
        change(-block.nbytes, 1)

    def drop(block: MemoryBlock) -> None:
        try:
            block.pin()
        except StateError:
            return  # evicted
        change(-block.nbytes)
        block.free()

    def run(seed: int) -> None:
        rng = random.Random(seed)
        mine: list[MemoryBlock] = []
        for _ in range(300):
            if rng.random() < 0.6:
                n, p = rng.randint(1, 200), rng.randint(0, 2)
                try:
                    block = pool.allocate(
                        RouterWeights(seed), n, priority=p, evict=evict, persist=persist
                    )
                except FullError:
                    continue
                change(block.nbytes)
                block.unpin()
                mine.append(block)
            elif mine:
                drop(mine.pop(rng.randrange(len(mine))))
        for block in mine:
            drop(block)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert most <= 1000 and pool.report().peak <= 1000
    assert real == 0 and pool.used == 0 and n_evicted > 50


def test_arguments_are_checked() -> None:
    for budget in (0, -1, 1.5, True):
        with pytest.raises(ArgumentError, match="budget: is"):
            ruvllm.MemoryPool(budget)  # type: ignore[arg-type]
    pool = ruvllm.MemoryPool(100)
    kind = LoraAdapter("x", 1, 1)
    for n, options, match in (
        (0, {}, "nbytes: is 0, want 1"),
        (1, {"priority": 1001}, "priority: is 1001, want -1000 .. 1000"),
        (1, {"evict": 3}, "evict: is 3, want a function"),
        (1, {"persist": print}, "persist: is given without evict"),
    ):
        with pytest.raises(ArgumentError, match=match):
            pool.allocate(kind, n, **options)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="kind: is 'x', want a KvCache"):
        pool.allocate("x", 1)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="rank: is 0"):
        LoraAdapter("x", 0, 1)
    with pytest.raises(ArgumentError, match="tier: is 'lukewarm', want one of hot, warm, cold"):
        ruvllm.KvCache("s", "lukewarm", 1)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="fraction: is 0"):
        pool.on_pressure(0, print)
    with pytest.raises(ArgumentError, match="memory: is 5, want a MemoryPool"):
        ruvllm.Model(memory=5, **OPEN)
    with pytest.raises(ArgumentError, match="kv_budget: is 1000 beside memory"):
        ruvllm.Model(memory=pool, kv_budget=1000, **OPEN)
    with pytest.raises(FullError, match="100 bytes does not hold 64 positions"):
        ruvllm.Model(memory=pool, **OPEN)
    pool.allocate(ruvllm.KvCache("\0\ud800\u00fc", "cold", 3), 10).free()
    assert pool.used == 0


# -- models -------------------------------------------------------------------------------------


def test_two_models_in_one_pool_give_what_they_give_alone() -> None:
    work = [(ids(1 + 17 * i % 90, i), {**FREE, "seed": i, "temperature": 0.9}) for i in range(24)]
    model = alone()
    want = [model.generate(p, **o).tokens for p, o in work]
    pool = ruvllm.MemoryPool(model.info.kv_bytes_per_token * 400)
    models = [ruvllm.Model(memory=pool, **OPEN) for _ in range(2)]
    engines = [ruvllm.Engine(m) for m in models]
    for _ in range(2):
        requests = [[e.submit(p, **o) for p, o in work] for e in engines]
        assert [[r.result(60).tokens for r in rs] for rs in requests] == [want, want]
    report = pool.report()
    assert report.peak <= report.budget == pool.budget
    assert report.used == sum(m.kv_stats.held_bytes for m in models)
    assert all(m.kv_stats.n_evicted > 0 and m.kv_stats.budget_bytes == pool.budget for m in models)
    for e, m in zip(engines, models, strict=True):
        e.close()
        m.close()
    del requests
    gc.collect()
    assert pool.used == 0


def test_a_model_and_blocks_yield_to_each_other() -> None:
    model = alone()
    per = model.info.kv_bytes_per_token
    prompt = ids(200, 1)
    want = model.generate(prompt, **FREE).tokens
    pool = ruvllm.MemoryPool(per * 320)
    m = ruvllm.Model(memory=pool, **OPEN)
    gone: list[MemoryBlock] = []
    block = idle(pool, 1, per * 256, evict=gone.append)
    with ruvllm.Engine(m) as engine:
        assert engine.submit(prompt, **FREE).result(60).tokens == want and gone == [block]
        held = m.kv_stats.held_bytes
        assert held >= 192 * per and m.kv_stats.n_evicted == 0
        block = pool.allocate(RouterWeights(2), per * 256, evict=gone.append)
        assert m.kv_stats.n_evicted > 0 and pool.used <= pool.budget
        with pytest.raises(FullError, match=f"others hold {per * 256}"):
            m.generate(prompt, **FREE)
        waits = engine.submit(prompt, **FREE)
        late = engine.submit(prompt, deadline_ms=50, **FREE)
        assert late.result(60).finish_reason == "deadline"
        assert not waits.done and block.held
        block.unpin()
        assert waits.result(60).tokens == want and gone[1:] == [block]


def test_pressure_is_told_once_of_each_rise() -> None:
    pool = ruvllm.MemoryPool(16 << 20)
    model = ruvllm.Model(memory=pool, **OPEN)
    seen: list[float] = []
    low: list[float] = []
    end = pool.on_pressure(0.5, seen.append)
    pool.on_pressure(1e-9, low.append)
    pool.on_pressure(0.5, lambda p: 1 // 0)  # is logged, and nobody else's business
    model.generate(ids(30, 1), **FREE)
    assert len(low) == 1 and not seen
    for n in (1, 2):
        block = pool.allocate(RouterWeights(1), 9 << 20)
        assert len(seen) == n and 0.5 <= seen[-1] <= 1.0
        pool.allocate(RouterWeights(2), 1 << 20).free()
        assert len(seen) == n
        block.free()
    end()
    end()
    block = pool.allocate(RouterWeights(1), 9 << 20)
    assert len(seen) == 2 and len(low) == 1
    assert pool.resize(4 << 20) == 5 << 20 and pool.pressure > 1.0
    with pytest.raises(FullError):
        pool.allocate(RouterWeights(3), 1)
    block.free()
    assert pool.resize(1 << 20) == 0 and pool.budget == 1 << 20


def test_a_smaller_pool_takes_idle_pages() -> None:
    pool = ruvllm.MemoryPool(16 << 20)
    model = ruvllm.Model(memory=pool, **OPEN)
    model.generate(ids(200, 1), **FREE)
    assert pool.used > 0
    assert pool.resize(pool.used // 2) == 0 and pool.used <= pool.budget
    assert model.kv_stats.budget_bytes == pool.budget


# -- reports ------------------------------------------------------------------------------------


def test_the_report_says_who_holds_what(tmp_path: Path) -> None:
    gc.collect()
    pool = ruvllm.MemoryPool(64 << 20, name="shared")
    model = ruvllm.Model(memory=pool, **OPEN)
    own = ruvllm.Model(kv_budget=32 << 20, **OPEN)
    path = tmp_path / "encoder.gguf"
    encoder(path)
    embedder = ruvllm.Model(path, **OPEN)
    block = pool.allocate(LoraAdapter("legal", 16, 8), 3 << 20)
    for m in (model, own):
        m.generate(ids(40, 2), **FREE)
    report = ruvllm.memory()
    assert isinstance(report, ruvllm.MemoryReport)
    (p,) = [p for p in report.pools if p.name == "shared"]
    assert p == pool.report() and p.budget == 64 << 20 and p.refused == 0
    kv, adapter = p.holders
    assert kv.nbytes == model.kv_stats.held_bytes > 0 and kv.priority == 0
    assert kv.name.startswith("keys and values of ")
    assert (adapter.name, adapter.nbytes) == ("adapter legal, rank 16, 8 layers", 3 << 20)
    assert p.used == kv.nbytes + adapter.nbytes == pool.used
    (mine,) = [p for p in report.pools if p.budget == 32 << 20]
    assert mine.used == own.kv_stats.held_bytes > 0
    assert len(report.models) >= 3
    newest = report.models[-3:]
    assert newest[0].mapped == Path(model.path).stat().st_size and newest[0].work > 0
    assert newest[0].repacked == model.repacked_bytes
    assert newest[2].mapped == path.stat().st_size
    assert report.core >= pool.used - (3 << 20)
    if sys.platform == "linux":
        assert report.anonymous is not None and report.anonymous > 1 << 20
        assert report.swapped is not None
    text = str(report)
    assert "shared: budget 64.0 MiB" in text and "adapter legal" in text and "process: " in text
    block.free()
    n_models = len(report.models)
    for m in (model, own, embedder):
        m.close()
    assert len(ruvllm.memory().models) == n_models - 3
    assert "shared" in repr(pool)


def test_the_name_is_a_folder_too() -> None:
    code = (
        "import ruvllm; ruvllm.memory(); import ruvllm.memory as m; m.WitnessLog; "
        "from ruvllm.memory.witness import WitnessLog; print(ruvllm.memory().models)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "()"


# -- the process --------------------------------------------------------------------------------

_SERVE = """
import json, random, sys
import ruvllm

def memory():
    report = ruvllm.memory()
    return report.anonymous + report.swapped

budget = int(sys.argv[1])
rng = random.Random(1)
pool = ruvllm.MemoryPool(budget)
model = ruvllm.Model(sys.argv[2], memory=pool, kv_type="f32", n_threads=2, witness=False)
n_ctx = model.n_ctx - 8

def serve(engine, lengths):
    requests = []
    for n in lengths:
        ids = [rng.randrange(500) for _ in range(n)]
        requests.append(engine.submit(ids, max_tokens=8, ignore_eos=True))
    for i, r in enumerate(requests):
        if i % 7 == 0:
            r.cancel()
        r.result()

most = 0
with ruvllm.Engine(model) as engine:
    serve(engine, [8] * 80 + [n_ctx])
    base = memory() - pool.used
    while model.kv_stats.n_evicted < 200:
        serve(engine, rng.choices((1, 15, 16, 17, 63, 64, 65, n_ctx // 2, n_ctx), k=40))
        most = max(most, memory() - base)
report = pool.report()
print(json.dumps([most, report.peak, report.budget]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="wants /proc")
def test_the_process_grows_by_the_budget(golden: Path) -> None:
    budget = 48 << 20
    out = subprocess.run(
        [sys.executable, "-c", _SERVE, str(budget), golden / "models" / "llama-d256-q8_0.gguf"],
        capture_output=True,
        text=True,
        check=True,
    )
    most, peak, told = json.loads(out.stdout)
    assert peak <= told == budget and peak > 0.9 * budget
    assert most <= 1.05 * budget
