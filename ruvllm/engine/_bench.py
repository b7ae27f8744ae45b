"""What `ruvllm bench` measures: prompt processing, generation, embedding, loading.

Owns the loops and the arithmetic, not the printing.  The idea to hold: a repetition runs every test
once, so that a machine that becomes slower meanwhile slows all of them; a figure is the median of
the repetitions, with the least and the greatest beside it.  Token ids are a fixed sequence: the
arithmetic does not depend on them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ruvllm import _core
from ruvllm._errors import ArgumentError, CancelledError
from ruvllm.engine._params import SamplingParams
from ruvllm.engine.model import Model

TEXT_TOKENS: Final = 16  # of an embedded text, end marks included
TEXTS: Final = 64  # of one batch of texts
_BUFFER: Final = 256 << 20  # bytes read to measure the bandwidth
_CACHED: Final = 64 << 20  # bytes of weights below which caches, not memory, may feed a token


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    pp: prompt tokens.  tg: tokens to generate.  depth: tokens that stand before the generated ones.
    repeat: repetitions, >= 1.  batch: numbers of sequences that generate at once.
    """

    pp: int
    tg: int
    depth: int
    repeat: int
    batch: tuple[int, ...] = ()


@dataclass(slots=True)
class Result:
    """One test with one thread count.

    test: pp512, tg128, tg128@4096, tg128x16 (of 16 sequences), embed or latency.  unit: "tokens/s",
    "texts/s" or "ms".  values: of every repetition.  bandwidth: bytes/s read in a plain loop,
    measured between the repetitions; share: part of it that the test needs for the weights, keys
    and values of its tokens; both are None where memory is not what is measured.
    """

    test: str
    n_threads: int
    unit: str
    values: list[float] = field(default_factory=list)
    bandwidth: float | None = None
    share: float | None = None

    @property
    def median(self) -> float:
        """Median of the repetitions."""
        return statistics.median(self.values)


@dataclass(slots=True)
class Report:
    """All results; load_ms: of every opening of the file, in milliseconds."""

    results: list[Result] = field(default_factory=list)
    load_ms: list[float] = field(default_factory=list)


def plan_for(
    model: Model,
    *,
    pp: int | None,
    tg: int | None,
    depth: int | None,
    repeat: int,
    batch: tuple[int, ...] = (),
) -> Plan:
    """The plan with its defaults: 512 and 128 tokens, or what fits the model's context.

    Raises ArgumentError for a number out of range or longer than the context.
    """
    n_ctx = model.n_ctx
    at = 0 if depth is None else depth
    plan = Plan(
        min(512, n_ctx) if pp is None else pp,
        max(1, min(128, n_ctx - at)) if tg is None else tg,
        at,
        repeat,
        batch,
    )
    for name, value, low in (("pp", plan.pp, 1), ("tg", plan.tg, 1), ("depth", at, 0)):
        if value < low:
            raise ArgumentError(f"--{name}: is {value}, want at least {low}")
    if plan.pp > n_ctx:
        raise ArgumentError(f"--pp: is {plan.pp}, want at most the context of {n_ctx} tokens")
    if at + plan.tg > n_ctx:
        raise ArgumentError(
            f"--depth: {at} with --tg {plan.tg} makes {at + plan.tg} tokens, want at most the "
            f"context of {n_ctx} tokens"
        )
    return plan


def bytes_per_token(model: _core.Model) -> int:
    """Bytes of weights a decoder reads for one token; a tied embedding is also the head."""
    tensors = model.gguf().tensors()
    untied = any(t[0] == "output.weight" for t in tensors)
    return sum(t[5] for t in tensors if not (untied and t[0] == "token_embd.weight"))


def measure(
    open_model: Callable[[int], Model],
    threads: list[int],
    plan: Plan,
    cancel: _core.Cancel,
    step: Callable[[float], object],
) -> Report:
    """Run a plan for each thread count.

    open_model: gives the model for a number of threads.  step: called with the part done, 0 .. 1.
    Raises CancelledError soon after ``cancel`` is set.
    """
    report = Report()
    total = len(threads) * (plan.repeat + 1)
    done = 0
    for n in threads:
        start = time.perf_counter()
        model = open_model(n)
        report.load_ms.append(1e3 * (time.perf_counter() - start))
        with model:
            runs = (_decoder if model.info.causal else _encoder)(model, n, plan, cancel, report)
            for _ in runs:
                done += 1
                step(done / total)
    return report


def _decoder(
    model: Model, n_threads: int, plan: Plan, cancel: _core.Cancel, report: Report
) -> Iterator[None]:
    core = model._open()
    pp = Result(f"pp{plan.pp}", n_threads, "tokens/s")
    at = f"@{plan.depth}" if plan.depth else ""
    tg = Result(f"tg{plan.tg}{at}", n_threads, "tokens/s")
    report.results += [pp, tg]
    many = [Result(f"tg{plan.tg}{at}x{n}", n_threads, "tokens/s") for n in plan.batch]
    report.results += many
    session = _core.session_new(core, max(plan.pp, plan.depth + plan.tg))
    prompt, before, generated = (_ids(model, n) for n in (plan.pp, plan.depth, plan.tg))
    for warm in (prompt[:32], prompt[:1]):  # first use of the weights, by either way
        session.eval(warm, False, cancel)
        session.truncate(0)
    yield
    bandwidths = []
    for _ in range(plan.repeat):
        bandwidths.append(_core.read_bandwidth(n_threads, _BUFFER))
        pp.values.append(plan.pp / _seconds(session, [prompt], cancel))
        session.truncate(0)
        if plan.depth:
            session.eval(before, False, cancel)
        steps = [generated[i : i + 1] for i in range(plan.tg)]
        tg.values.append(plan.tg / _seconds(session, steps, cancel))
        session.truncate(0)
        for n, result in zip(plan.batch, many, strict=True):
            result.values.append(_together(model, n, plan, cancel))
        yield
    tg.bandwidth = statistics.median(bandwidths)
    weights = bytes_per_token(core)
    if weights >= _CACHED:
        kv = model.info.kv_bytes_per_token * (plan.depth + plan.tg / 2)
        tg.share = tg.median * (weights + kv) / tg.bandwidth


def _encoder(
    model: Model, n_threads: int, plan: Plan, cancel: _core.Cancel, report: Report
) -> Iterator[None]:
    core = model._open()
    many = Result("embed", n_threads, "texts/s")
    one = Result("latency", n_threads, "ms")
    report.results += [many, one]
    n = min(TEXT_TOKENS, model.n_ctx)
    text, texts = _ids(model, n), _ids(model, n * TEXTS)
    core.embed(text, [n], cancel)
    yield
    for _ in range(plan.repeat):
        start = time.perf_counter()
        core.embed(texts, [n] * TEXTS, cancel)
        many.values.append(TEXTS / (time.perf_counter() - start))
        times = []
        for _ in range(30):
            start = time.perf_counter()
            core.embed(text, [n], cancel)
            times.append(1e3 * (time.perf_counter() - start))
        one.values.append(statistics.median(times))
        yield


def _seconds(
    session: _core.Session, chunks: list[NDArray[np.int32]], cancel: _core.Cancel
) -> float:
    start = time.perf_counter()
    for ids in chunks:
        session.eval(ids, False, cancel)
    return time.perf_counter() - start


def _together(model: Model, n: int, plan: Plan, cancel: _core.Cancel) -> float:
    """Tokens per second that n sequences generate together, from when all of them have begun."""
    n_prompt = max(1, min(plan.depth, model.n_ctx - 2))
    most = model.n_ctx - n_prompt
    left = steps = max(1, min(plan.tg, most // 2))
    engine = _core.engine_new(model._open(), 0, model.n_ctx, 0, 0, n, n, n * n_prompt, 0, 0)
    greedy = SamplingParams().core()
    asked = set()
    for i in range(n):
        ids = (_ids(model, n_prompt) + i) % model.info.n_vocab
        asked.add(engine.submit(ids, most, greedy, None, [], True, 1, 0, 0, b""))
    begun: set[int] = set()
    start = time.perf_counter()
    while left:
        if cancel.get():
            raise CancelledError("bench: cancelled")
        events, _, error = engine.step()
        if error is not None:
            raise error
        if begun == asked:
            left -= 1
        else:
            begun.update(event[0] for event in events)
            start = time.perf_counter()
    seconds = time.perf_counter() - start
    engine.close()
    return n * steps / seconds


def _ids(model: Model, n: int) -> NDArray[np.int32]:
    return (np.arange(n, dtype=np.int64) * 31 % model.info.n_vocab).astype(np.int32)
