"""How many conversations does one machine hold, and how soon do they come back?

open      conversations of the bundled model, each with a turn of its own, all parked: what one is
          in anonymous memory; and how long it takes to find one of them by its id
admitted  conversations of 1008 tokens of a random-weight model in the shape of LFM2-350M (Q4_0,
          keys and values in Q8_0) that have all their pages in 8 GiB at once; 64 of them then
          generate together.  One of them is computed; the others get its pages, byte for byte, from
          files that say they are of other tokens, as computing a million tokens takes an hour
restore   one of 4096 tokens, from its file (which the system still has in memory) and computed
          again from its transcript"""

from __future__ import annotations

import gc
import random
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _common import Figure, options, report
from random_model import make

import ruvllm
from ruvllm.engine._transcript import Transcript

BUDGET = 8 << 30
GREEDY: dict[str, Any] = {"ignore_eos": True, "seed": 0}


def anon_bytes() -> int:
    """Anonymous memory of this process, resident or swapped out."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(1024 * int(x.split()[1]) for x in lines if x.startswith(("RssAnon", "VmSwap")))


def ids(n: int, seed: int, below: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, below, n).tolist()


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


# -- open ---------------------------------------------------------------------------------------


def park_all(engine: ruvllm.Engine, names: list[str]) -> None:
    """A turn of each, 64 at a time, and each on the disk."""
    for i in range(0, len(names), 64):
        talks = [engine.session(n) for n in names[i : i + 64]]
        turns = [t.submit(ids(24, i + k, 500), max_tokens=4, **GREEDY) for k, t in enumerate(talks)]
        for talk, turn in zip(talks, turns, strict=True):
            turn.result()
            talk.park()


def bench_open(n: int) -> Iterator[Figure]:
    with (
        tempfile.TemporaryDirectory() as folder,
        ruvllm.Model(n_threads=2, witness=False) as model,
        ruvllm.Engine(model, spill_dir=folder) as engine,
    ):
        park_all(engine, [f"warm-up {i}" for i in range(256)])
        gc.collect()
        before = anon_bytes()
        names = [f"conversation {i}" for i in range(n)]
        started = time.perf_counter()
        park_all(engine, names)
        seconds = time.perf_counter() - started
        talks = [engine.session(name) for name in names]  # as somebody who holds all of them
        gc.collect()
        size = (anon_bytes() - before) / n
        assert engine.metrics().parked == n + 256
        yield Figure("open sessions, parked", n, "")
        yield Figure("memory of a parked session", size, "B", goal="<= 2048", holds=size <= 2048)
        yield Figure("a turn and its parking", 1e3 * seconds / n, "ms")
        took = []
        rng = random.Random(0)
        for name in rng.choices(names, k=20_000):
            t = time.perf_counter_ns()
            engine.session(name)
            took.append((time.perf_counter_ns() - t) / 1e3)
        worst = p99(took)
        yield Figure("look-up of a session, median", statistics.median(took), "us")
        yield Figure("look-up of a session, p99", worst, "us", goal="< 100", holds=worst < 100)
        for t in rng.sample(talks, 50):
            assert t.submit([1, 2], max_tokens=1, **GREEDY).result().restored_tokens == 16
            t.close()


# -- admitted -----------------------------------------------------------------------------------

_CRC: list[int] = []
for _i in range(256):
    for _ in range(8):
        _i = _i >> 1 ^ (0x82F63B78 if _i & 1 else 0)
    _CRC.append(_i)


def crc32c(data: bytes) -> int:
    c = 0xFFFFFFFF
    for b in data:
        c = _CRC[(c ^ b) & 255] ^ c >> 8
    return c ^ 0xFFFFFFFF


def of_another_text(kv: bytes, first: int) -> bytes:
    """A file of keys and values that says it is of a text with another first token."""
    out = bytearray(kv)
    n_head, _, n_tag, n_format = struct.unpack_from("<4Q", out, 16)
    struct.pack_into("<i", out, 64 + n_tag + n_format, first)
    struct.pack_into("<I", out, 12, 0)
    struct.pack_into("<I", out, 12, crc32c(bytes(out[:n_head])))
    return bytes(out)


def copy_talk(engine: ruvllm.Engine, kv: bytes, past: Transcript, name: str, first: int) -> None:
    """Put a conversation into the folder that differs from another in its first token."""
    folder = engine._talks.folder
    assert folder is not None
    tokens = [first, *past.tokens[1:]]
    Transcript(past.model, past.model_name, name, None, [], tokens).write(folder.transcript(name))
    Path(folder.pages(name)).write_bytes(of_another_text(kv, first))
    folder.wrote_pages(name, len(kv))


def bench_admitted(path: Path, folder: str, n: int, n_steps: int) -> Iterator[Figure]:
    with (
        ruvllm.Model(
            path, n_threads=2, witness=False, n_ctx=2048, kv_type="q8_0", kv_budget=BUDGET
        ) as model,
        ruvllm.Engine(model, spill_dir=folder, max_running=64) as engine,
    ):
        store = engine._talks.folder
        assert store is not None
        first = engine.session("0")
        first.submit(ids(1008, 0, 1000), max_tokens=1, **GREEDY).result()
        first.park()
        past = Transcript.read(store.transcript("0"), *engine._talks.about)
        kv = Path(store.pages("0")).read_bytes()
        talks, restored = [first], []
        for i in range(1, n):
            copy_talk(engine, kv, past, str(i), 1000 + i)
            talks.append(engine.session(str(i)))
            turn = talks[-1].submit([5, 6], max_tokens=1, **GREEDY).result()
            assert turn.restored_tokens == 1008 == turn.cached_tokens, turn.restore_error
            restored.append(turn.timings.first_token_ms)
            store.drop_pages(str(i))
        first.submit([5, 6], max_tokens=1, **GREEDY).result()
        n_warm = sum(t.tier == "warm" for t in talks)
        kept = model.kv_stats
        yield Figure(
            "sessions of 1 k tokens in memory at once",
            n_warm,
            "",
            goal=f">= {n}",
            holds=n_warm >= n,
        )
        yield Figure("memory for their keys and values", kept.peak_bytes / 2**30, "GiB",
                     goal="<= 8", holds=kept.peak_bytes <= BUDGET)  # fmt: skip
        yield Figure("of the process, anonymous", anon_bytes() / 2**30, "GiB")
        yield Figure(
            "from its file to the next token, 1 k tokens", statistics.median(restored), "ms"
        )
        some = random.Random(0).sample(talks, min(64, n))
        started = time.perf_counter()
        turns = [t.submit([7], max_tokens=n_steps, **GREEDY) for t in some]
        found = [t.result() for t in turns]
        rate = sum(len(f.tokens) for f in found) / (time.perf_counter() - started)
        assert all(f.cached_tokens >= 1008 for f in found)
        yield Figure(f"{len(some)} of them generating at once", rate, "tok/s")
        for t in talks:
            t.close()


# -- restore ------------------------------------------------------------------------------------


def bench_restore(path: Path, folder: str, n: int, rounds: int) -> Iterator[Figure]:
    with (
        ruvllm.Model(path, n_threads=2, witness=False, n_ctx=n + 256, kv_type="q8_0") as model,
        ruvllm.Engine(model, spill_dir=folder) as engine,
    ):
        store = engine._talks.folder
        assert store is not None
        talk = engine.session("long")
        talk.submit(ids(n, 1, 1000), max_tokens=2, **GREEDY).result()
        took: dict[str, list[float]] = {"warm": [], "restored": [], "computed": []}
        for i in range(rounds):
            for how, times in took.items():
                if how == "computed" and i >= max(1, rounds // 3):
                    continue
                if how != "warm":
                    talk.park()
                if how == "computed":
                    store.drop_pages("long")
                turn = talk.submit([3], max_tokens=2, **GREEDY).result()
                assert (turn.restored_tokens > 0) == (how == "restored")
                assert (turn.cached_tokens > n - 16) == (how != "computed")
                times.append(turn.timings.first_token_ms)
                if how == "restored":
                    cached = turn.cached_tokens
        warm, restored, computed = (statistics.median(t) for t in took.values())
        times_faster = (computed - warm) / max(restored - warm, 1e-3)
        k = f"{n // 1024} k tokens"
        yield Figure(f"{k}: next token, in memory", warm, "ms")
        yield Figure(f"{k}: next token, from the file", restored, "ms")
        yield Figure(f"{k}: next token, computed again", computed, "ms")
        yield Figure(f"{k}: cached_tokens from the file", cached, "")
        yield Figure(f"{k}: restoring beside computing", restored - warm, "ms", "computing",
                     times_faster, ">= 50 x faster", times_faster >= 50)  # fmt: skip
        talk.close()


def main() -> None:
    p = options(__doc__)
    p.add_argument("--models", metavar="DIR", help="where lfm2-350m-q4_0.gguf is, or is made")
    p.add_argument("--only", choices=("open", "admitted", "restore"))
    args = p.parse_args()
    quick = args.quick
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        wants_model = args.only in (None, "admitted", "restore")
        path = Path(args.models or folder) / "lfm2-350m-q4_0.gguf"
        if wants_model:
            make("lfm2-350m", path, "q4_0", args.seed)
        parts = {
            "open": lambda: bench_open(2000 if quick else 10_000),
            "admitted": lambda: bench_admitted(path, f"{folder}/a", 100 if quick else 1024, 32),
            "restore": lambda: bench_restore(
                path, f"{folder}/b", 1024 if quick else 4096, 3 if quick else 9
            ),
        }
        for name, part in parts.items():
            if args.only in (None, name):
                figures += part()
    report(args, figures)


if __name__ == "__main__":
    main()
