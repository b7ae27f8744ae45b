"""Does a process that serves for a long time grow?

Requests of all kinds go through an Engine, 64 at a time: short and long ones, behind shared
beginnings and under many salts, seeded, cut by stop strings, cancelled before they begin and while
they run, with deadlines that pass, left in the middle of an iteration, and refused for their
options or their length.  The cache is so small that pages come and go all the time.  Memory that is
the process's own (RssAnon) is read when nothing is under way; after a warm-up a line through the
readings says what 100,000 requests leave behind."""

from __future__ import annotations

import gc
import random
from collections import Counter, deque
from pathlib import Path

import numpy as np
from _common import Figure, options, report

import ruvllm
from ruvllm import _core

AT_ONCE = 64
WARM_UP = 0.2  # part of the requests
READINGS = 40


def rss_anon() -> int:
    """Bytes of memory that is no file's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status: has no RssAnon")


class Clients:
    """Many that ask, and some that go away."""

    def __init__(self, engine: ruvllm.Engine, seed: int) -> None:
        self.seen: Counter[str] = Counter()
        self._engine = engine
        self._draw = random.Random(seed)
        self._n_vocab = engine.model.info.n_vocab
        self._texts = [self._ids(40) for _ in range(20)]
        self._running: deque[ruvllm.Request] = deque()

    def ask(self) -> None:
        """One more request, once there is room for it."""
        if len(self._running) == AT_ONCE:
            self._finish()
        draw, kind = self._draw, self._draw.random()
        prompt = draw.choice(self._texts)[: draw.randint(0, 40)] + self._ids(draw.randint(1, 20))
        how = {"max_tokens": draw.randint(1, 6), "ignore_eos": True, "seed": draw.getrandbits(60)}
        if kind < 0.05:
            self._refused(prompt)
            return
        if kind < 0.3:
            how |= {"temperature": 1.2, "top_p": 0.9, "logprobs": 2}
        if 0.2 < kind < 0.3:
            how |= {"stop": ["ab", " "], "salt": str(draw.randrange(500))}
        if 0.3 < kind < 0.35:
            how["deadline_ms"] = 1
        request = self._engine.submit(prompt, **how)
        self._running.append(request)
        if kind > 0.9:
            request.cancel()
        elif kind > 0.87:
            for _ in request:  # the first piece, then nobody listens
                break
        elif kind > 0.85:
            draw.choice(self._running).cancel()

    def rest(self) -> None:
        """Wait until nothing is under way."""
        while self._running:
            self._finish()

    def _finish(self) -> None:
        self.seen[self._running.popleft().result().finish_reason] += 1

    def _refused(self, prompt: list[int]) -> None:
        try:
            if len(prompt) % 2:
                self._engine.submit(prompt, temperature=-1.0)
            else:
                self._engine.submit(prompt * 1000)
        except (ruvllm.ArgumentError, ruvllm.FullError) as e:
            self.seen[type(e).__name__] += 1

    def _ids(self, n: int) -> list[int]:
        return [self._draw.randrange(self._n_vocab) for _ in range(n)]


def main() -> None:
    p = options(__doc__)
    p.add_argument("--requests", type=int, help="default 100,000, with --quick 10,000")
    args = p.parse_args()
    if not Path("/proc/self/status").exists():
        print("soak: left out: wants Linux")
        return
    n = args.requests or (10_000 if args.quick else 100_000)
    every = max(n // READINGS, 1)
    readings: list[tuple[int, int, int]] = []
    with (
        ruvllm.Model(n_threads=1, kv_budget=1 << 20, witness=False) as model,
        ruvllm.Engine(model, max_running=AT_ONCE) as engine,
    ):
        clients = Clients(engine, args.seed)
        for i in range(1, n + 1):
            clients.ask()
            if i >= WARM_UP * n and i % every == 0:
                clients.rest()
                gc.collect()
                readings.append((i, rss_anon(), _core.live_bytes()))
        clients.rest()
        stats, metrics = model.kv_stats, engine.metrics()
    at, rss, core = np.array(readings, dtype=np.float64).T
    slope = float(np.polyfit(at, rss, 1)[0]) * 1e5
    core_slope = float(np.polyfit(at, core, 1)[0]) * 1e5
    print(
        f"{n} requests: {', '.join(f'{k} {v}' for k, v in sorted(clients.seen.items()))}; "
        f"{metrics.preemptions} preemptions, {stats.n_evicted} pages evicted"
    )
    report(
        args,
        [
            Figure("own memory after the warm-up", rss[0] / 1e6, "MB"),
            Figure("own memory at the end", rss[-1] / 1e6, "MB"),
            Figure("growth per 100,000 requests", slope / 1e6, "MB", goal="< 1", holds=slope < 1e6),
            Figure(
                "of the core's allocator", core_slope / 1e6, "MB", goal="< 0.1",
                holds=core_slope < 1e5,
            ),
            Figure("sequences left", stats.n_sequences, "", goal="0", holds=stats.n_sequences == 0),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
