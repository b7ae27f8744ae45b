"""Engine: what many get at once is what each gets alone; sharing, memory, ends, errors, waiting."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from encoder_make import encoder

import ruvllm
from ruvllm import _core

PROMPT = "reverse desert chair water rabbit<ans>"
ASK = [{"role": "user", "content": "reverse desert chair water rabbit"}]
FREE: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def model() -> Iterator[ruvllm.Model]:
    with ruvllm.Model(n_threads=1, witness=False) as m:
        yield m


@pytest.fixture
def engine(model: ruvllm.Model) -> Iterator[ruvllm.Engine]:
    with ruvllm.Engine(model) as e:
        yield e


def asks(n: int, n_vocab: int = 768) -> list[tuple[list[int], dict[str, Any]]]:
    """Prompts of many lengths, some with a beginning that others have too; greedy and seeded."""
    common = [(7 * i + 3) % (n_vocab - 8) for i in range(40)]
    out = []
    for i in range(n):
        own = [(11 * i + 5 * t + 1) % (n_vocab - 8) for t in range(1 + i * 5 % 37)]
        options: dict[str, Any] = {**FREE, "seed": i}
        if i % 2:
            options |= {"temperature": 1.1, "top_p": 0.95, "repeat_penalty": 1.1}
        if i % 5 == 0:
            options["logprobs"] = 2
        out.append((common[: 40 if i % 3 else 9] + own, options))
    return out


def same(a: ruvllm.GenerationResult, b: ruvllm.GenerationResult) -> bool:
    return (a.text, a.tokens, a.finish_reason, a.stop, a.logprobs, a.seed) == (
        b.text, b.tokens, b.finish_reason, b.stop, b.logprobs, b.seed,
    )  # fmt: skip


def serve(engine: ruvllm.Engine, work: list[tuple[list[int], dict[str, Any]]]) -> list[Any]:
    requests = [engine.submit(p, **o) for p, o in work]
    return [r.result(60) for r in requests]


# -- the same tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_rows": 7, "max_chunk": 3},
        {"max_rows": 1},
        {"max_running": 5, "policy": "sjf"},
        {"max_running": 64, "max_rows": 200, "max_chunk": 64, "policy": "fair"},
    ],
    ids=str,
)
def test_64_at_once_get_what_each_gets_alone(n_threads: int, options: dict[str, Any]) -> None:
    work = asks(64)
    m = ruvllm.Model(n_threads=n_threads, witness=False)
    want = [m.generate(p, **o) for p, o in work]
    with ruvllm.Engine(m, **options) as engine:
        found = serve(engine, work)
    assert [f.tokens for f in found] == [w.tokens for w in want]
    assert all(same(f, w) for f, w in zip(found, want, strict=True))


@pytest.mark.parametrize("path", ["lfm2-d256-q8_0", "qwen3-d256-q4_k_m", "lfm2-d64-f32"])
def test_other_architectures(golden: Path, path: str) -> None:
    m = ruvllm.Model(golden / "models" / f"{path}.gguf", n_threads=2, witness=False)
    work = asks(12, m.info.n_vocab)
    want = [m.generate(p, **o) for p, o in work]
    for options in ({}, {"max_rows": 5, "max_chunk": 2}):
        with ruvllm.Engine(m, **options) as engine:
            assert [r.tokens for r in serve(engine, work)] == [w.tokens for w in want]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kv_fit", ["first", "best", "round_robin"])
def test_memory_for_a_few_changes_no_token(kv_fit: Any, share: bool) -> None:
    work = asks(24)
    want = [ruvllm.Model(n_threads=1, witness=False).generate(p, **o) for p, o in work]
    per_token = ruvllm.Model(witness=False).info.kv_bytes_per_token
    m = ruvllm.Model(
        n_threads=1, witness=False, kv_budget=per_token * 320, kv_fit=kv_fit, share_prefix=share
    )
    with ruvllm.Engine(m, max_preempt=2) as engine:
        found = serve(engine, work)
        metrics = engine.metrics()
    assert [f.tokens for f in found] == [w.tokens for w in want]
    assert metrics.preemptions > 0 and sum(f.n_preempted for f in found) == metrics.preemptions
    assert max(f.n_preempted for f in found) <= 3
    stats = m.kv_stats
    assert stats.peak_bytes <= stats.budget_bytes == per_token * 320 and stats.n_sequences == 0


@pytest.mark.parametrize("store", ["q8_0", "q4_0"])
def test_with_a_store_too(golden: Path, store: Any) -> None:
    options: dict[str, Any] = {"kv_store": store, "kv_tail": 64, "kv_batch": 64, "witness": False}
    m = ruvllm.Model(golden / "models" / "llama-d256-q8_0.gguf", n_threads=1, **options)
    work = [([*p, *range(100)], o) for p, o in asks(8, m.info.n_vocab)]
    want = [m.generate(p, **o) for p, o in work]
    with ruvllm.Engine(m, max_rows=23, max_running=8) as engine:
        assert [r.tokens for r in serve(engine, work)] == [w.tokens for w in want]
    assert m.kv_stats.n_migrated > 0


def test_the_context_ends_it(model: ruvllm.Model, engine: ruvllm.Engine) -> None:
    for prompt in ([5] * 250, [5] * model.n_ctx):
        want = model.generate(prompt, max_tokens=None, ignore_eos=True, seed=1)
        found = engine.submit(prompt, max_tokens=None, ignore_eos=True, seed=1).result(60)
        assert same(found, want) and found.finish_reason == "length"
        assert len(found.tokens) == model.n_ctx + 1 - len(prompt)


def test_shared_beginnings_are_computed_once() -> None:
    m = ruvllm.Model(n_threads=1, witness=False)
    prompt = [(5 * i) % 700 for i in range(100)]
    want = m.generate(prompt, **FREE)
    with ruvllm.Engine(m) as engine:
        first = engine.submit(prompt, salt="a", **FREE).result(60)
        again = engine.submit(prompt, salt="a", **FREE).result(60)
        longer = engine.submit([*prompt, 1, 2], salt=b"a", **FREE).result(60)
        salted = engine.submit(prompt, salt="b", **FREE).result(60)
        assert first.cached_tokens == salted.cached_tokens == 0
        assert again.cached_tokens >= 96 - 16 and longer.cached_tokens >= 96
        assert {first.tokens, again.tokens, salted.tokens} == {want.tokens}
        assert longer.tokens == m.generate([*prompt, 1, 2], **FREE).tokens
        assert 0 < engine.metrics().hit_rate < 1


def test_chat_and_text(model: ruvllm.Model, engine: ruvllm.Engine) -> None:
    assert same(engine.submit_chat(ASK, seed=1).result(60), model.chat(ASK, seed=1))
    found = engine.submit(PROMPT, special=True, seed=1).result(60)
    assert same(found, model.generate(PROMPT, special=True, seed=1))
    assert found.finish_reason == "stop" and found.text == "rabbit water chair desert"


def test_a_path_or_the_bundled_model() -> None:
    with ruvllm.Engine() as engine:
        assert engine.submit_chat(ASK).result(60).text == "rabbit water chair desert"
        owned = engine.model
    with pytest.raises(ruvllm.StateError, match="is closed"):
        owned.generate("a")


# -- how it ends --------------------------------------------------------------------------------


def test_stop_strings_cut_as_alone(model: ruvllm.Model, engine: ruvllm.Engine) -> None:
    options: dict[str, Any] = {"special": True, "seed": 0}
    for stop in (["never", " wat"], ["t"], "rabbit water chair desert", [" chair", "air d"]):
        want = model.generate(PROMPT, stop=stop, **options)
        request = engine.submit(PROMPT, stop=stop, **options)
        assert "".join(c.text for c in request) == want.text
        assert same(request.result(), want) and want.finish_reason == "stop"
    assert engine.submit(PROMPT, special=True, max_tokens=0).result().tokens == ()


def test_constraints(model: ruvllm.Model, engine: ruvllm.Engine) -> None:
    for options in (
        {"choices": ["island apple", "island rabbit"]},
        {"regex": "[a-z]{3,9}( [a-z]{2,5})?"},
    ):
        want = [model.generate(PROMPT, seed=s, temperature=1.0, **options) for s in range(4)]
        found = [engine.submit(PROMPT, seed=s, temperature=1.0, **options) for s in range(4)]
        assert all(same(f.result(60), w) for f, w in zip(found, want, strict=True))


def test_cancel(engine: ruvllm.Engine) -> None:
    request = engine.submit("a", max_tokens=None, ignore_eos=True)
    other = engine.submit(PROMPT, special=True)
    pieces = iter(request)
    first = next(pieces)
    request.cancel()
    rest = list(pieces)
    result = request.result(60)
    assert result.finish_reason in ("cancelled", "length") and request.done
    assert result.text == first.text + "".join(c.text for c in rest)
    assert result.tokens == (*first.tokens, *(t for c in rest for t in c.tokens))
    request.cancel()
    assert other.result(60).text == "rabbit water chair desert"


def test_leaving_an_iteration_cancels(engine: ruvllm.Engine) -> None:
    request = engine.submit("a", max_tokens=None, ignore_eos=True)
    for _ in request:
        break
    assert request.result(60).finish_reason in ("cancelled", "length")
    kept = engine.submit("a", max_tokens=5, ignore_eos=True)
    iter(kept)  # never begun
    assert kept.result(60).finish_reason == "length"
    assert [len(c.tokens) for c in kept] == [1] * 5 and list(kept) == []


def test_deadline(model: ruvllm.Model) -> None:
    with ruvllm.Engine(model, max_running=1, max_rows=1) as engine:
        long = engine.submit([1] * 200, max_tokens=None, ignore_eos=True)
        late = engine.submit([2] * 200, deadline_ms=1)
        assert late.result(60).finish_reason == "deadline"
        assert late.result().tokens == ()
        long.cancel()


def test_close_while_running(model: ruvllm.Model) -> None:
    engine = ruvllm.Engine(model)
    requests = [engine.submit([i], max_tokens=None, ignore_eos=True) for i in range(1, 80)]
    next(pieces := iter(requests[0]))
    engine.close()
    engine.close()
    assert all(r.done for r in requests)
    assert {r.result().finish_reason for r in requests} <= {"cancelled", "length"}
    assert all(len(c.tokens) <= 1 for c in pieces)
    for call in (lambda: engine.submit("a"), engine.metrics):
        with pytest.raises(ruvllm.StateError, match="engine: is closed"):
            call()
    assert model.kv_stats.n_sequences == 0


def test_timeout_of_result(engine: ruvllm.Engine) -> None:
    request = engine.submit("a", max_tokens=None, ignore_eos=True)
    with pytest.raises(ruvllm.StateError, match="is not finished after 0 s"):
        request.result(timeout=0)
    assert request.result(60).finish_reason == "length"


# -- errors -------------------------------------------------------------------------------------


def test_queue_full(model: ruvllm.Model) -> None:
    with ruvllm.Engine(model, max_running=1, max_queue=2) as engine:
        running = engine.submit("a", max_tokens=None, ignore_eos=True)
        accepted = [running]
        with pytest.raises(ruvllm.FullError, match="queue"):
            for _ in range(4):
                accepted.append(engine.submit("a", max_tokens=None, ignore_eos=True))
        assert 2 <= len(accepted) <= 4
        assert engine.metrics().refused == 1
        assert len({r.result(60).tokens for r in accepted}) == 1


def test_bad_requests_say_what_is_wrong(engine: ruvllm.Engine) -> None:
    for prompt, options, error, message in (
        ([1] * 300, {}, ruvllm.FullError, "300"),
        ([], {}, ruvllm.ArgumentError, "prompt: has no tokens"),
        ([768], {}, ruvllm.ArgumentError, "is 768"),
        ("a", {"temperature": float("nan")}, ruvllm.ArgumentError, "temperature: .*nan"),
        ("a", {"top_p": 7.0}, ruvllm.ArgumentError, "top_p"),
        ("a", {"logit_bias": {-1: 1.0}}, ruvllm.ArgumentError, "-1"),
        ("a", {"stop": [""]}, ruvllm.ArgumentError, r"stop\[0\]"),
        ("a", {"priority": "urgent"}, ruvllm.ArgumentError, "priority: is 'urgent'"),
        ("a", {"deadline_ms": 0}, ruvllm.ArgumentError, "deadline_ms: is 0"),
        ("a", {"tenant": -1}, ruvllm.ArgumentError, "tenant: is -1"),
        ("a", {"salt": 5}, ruvllm.ArgumentError, "salt: is a int"),
        ("a", {"cancel": ruvllm.Cancel()}, ruvllm.ArgumentError, "cancel: is not an option"),
        ("a", {"colour": "red"}, ruvllm.ArgumentError, "colour: is not an option of submit"),
    ):
        with pytest.raises(error, match=message):
            engine.submit(prompt, **options)
    assert engine.submit("a", max_tokens=2, ignore_eos=True).result(60).finish_reason == "length"


def test_options_are_checked(model: ruvllm.Model) -> None:
    for options, message in (
        ({"policy": "lifo"}, "policy: is 'lifo', want one of fcfs, sjf, fair"),
        ({"max_running": 0}, "max_running: is 0"),
        ({"max_rows": 5000}, "max_rows: is 5000"),
        ({"max_rows": 3, "max_running": 4}, "max_rows: is 3, want at least max_running"),
        ({"max_queue": 0}, "max_queue: is 0"),
        ({"max_preempt": True}, "max_preempt: is True"),
    ):
        with pytest.raises(ruvllm.ArgumentError, match=message):
            ruvllm.Engine(model, **options)  # type: ignore[arg-type]
    for options, message in (
        ({"kv_budget": 0}, "kv_budget: is 0"),
        ({"kv_store": "f16"}, "kv_store: is 'f16', want one of None, q8_0, q4_0, k8v4"),
        ({"kv_store": "q8_0", "kv_type": "q4_0"}, "kv_type"),
        ({"kv_fit": "worst"}, "kv_fit: is 'worst'"),
        ({"kv_tail": 63, "kv_store": "q8_0"}, "kv_tail: is 63, want a multiple of 64"),
        ({"kv_batch": 1, "kv_store": "q8_0"}, "kv_batch: is 1, want a multiple of 64"),
    ):
        with pytest.raises(ruvllm.ArgumentError, match=message):
            ruvllm.Model(**options)  # type: ignore[arg-type]
    with pytest.raises(ruvllm.FullError):
        ruvllm.Model(kv_budget=1)


def test_an_error_is_of_one_request_alone(engine: ruvllm.Engine) -> None:
    everything = dict.fromkeys(range(768), float("-inf"))
    others = [engine.submit_chat(ASK) for _ in range(3)]
    bad = engine.submit(PROMPT, special=True, logit_bias=everything)
    with pytest.raises(ruvllm.StateError, match="all 768 tokens are masked"):
        bad.result(60)
    with pytest.raises(ruvllm.StateError, match="all 768 tokens are masked"):
        list(bad)
    assert {r.result(60).text for r in others} == {"rabbit water chair desert"}


def test_a_grammar_that_fails_fails_its_request(
    engine: ruvllm.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        done = False

        def mask(self) -> None:
            return None

        def commit(self, token: int) -> None:
            raise ruvllm.FormatError("grammar: broke")

    monkeypatch.setattr(engine.model, "_constraint", lambda options: Broken())
    bad = engine.submit(PROMPT)
    monkeypatch.undo()
    with pytest.raises(ruvllm.FormatError, match="grammar: broke"):
        bad.result(60)
    assert engine.submit_chat(ASK).result(60).text == "rabbit water chair desert"


class _Failing:
    """A core that fails some steps."""

    def __init__(self, core: Any, n: int, error: Exception) -> None:
        self._core, self._n, self._error = core, n, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def step(self) -> Any:
        if self._n > 0:
            self._n -= 1
            return [], False, self._error
        return self._core.step()


@pytest.mark.parametrize(
    ("n", "error", "served"),
    [
        (3, ruvllm.OutOfMemoryError("no memory"), True),
        (30, ruvllm.FullError("sessions hold it"), True),
        (5, ruvllm.OutOfMemoryError("no memory"), False),
    ],
)
def test_steps_that_fail(model: ruvllm.Model, n: int, error: Exception, served: bool) -> None:
    with ruvllm.Engine(model) as engine:
        engine._loop._core = _Failing(engine._loop._core, n, error)  # type: ignore[assignment]
        request = engine.submit_chat(ASK)
        if served:
            assert request.result(60).text == "rabbit water chair desert"
        else:
            with pytest.raises(ruvllm.OutOfMemoryError, match="no memory"):
                request.result(60)
        assert engine.submit_chat(ASK).result(60).text == "rabbit water chair desert"


def test_an_encoder_has_no_engine(tmp_path: Path) -> None:
    m = ruvllm.Model(encoder(tmp_path / "e.gguf"), witness=False)
    with pytest.raises(ruvllm.UnsupportedError, match="is an encoder"):
        ruvllm.Engine(m)
    assert m.kv_stats.budget_bytes == 0


# -- waiting ------------------------------------------------------------------------------------


def test_asyncio_streams_of_many(model: ruvllm.Model) -> None:
    work = asks(40)
    want = [model.generate(p, **o) for p, o in work]

    async def one(engine: ruvllm.Engine, p: list[int], o: dict[str, Any]) -> Any:
        request = engine.submit(p, **o)
        chunks = [c async for c in request]
        result = await request
        assert "".join(c.text for c in chunks) == result.text
        assert tuple(t for c in chunks for t in c.tokens) == result.tokens
        assert tuple(x for c in chunks for x in c.logprobs) == result.logprobs
        return result

    async def main() -> list[Any]:
        async with ruvllm.Engine(model) as engine:
            return await asyncio.gather(*(one(engine, p, o) for p, o in work))

    assert [r.tokens for r in asyncio.run(main())] == [w.tokens for w in want]


def test_a_cancelled_task_cancels_its_request(engine: ruvllm.Engine) -> None:
    async def main() -> None:
        request = engine.submit("a", max_tokens=None, ignore_eos=True)

        async def read() -> None:
            async for _ in request:
                await asyncio.sleep(0)

        task = asyncio.create_task(read())
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await request).finish_reason in ("cancelled", "length")

        whole = engine.submit("b", max_tokens=None, ignore_eos=True)
        task = asyncio.create_task(whole.aresult())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await whole).finish_reason in ("cancelled", "length")

        broken = engine.submit("c", max_tokens=None, ignore_eos=True)
        pieces = aiter(broken)
        await anext(pieces)
        await pieces.aclose()  # type: ignore[attr-defined]
        assert (await broken).finish_reason in ("cancelled", "length")

    asyncio.run(main())


def test_a_slow_reader_stops_nobody(engine: ruvllm.Engine) -> None:
    slow = engine.submit("a", **FREE)
    pieces = iter(slow)
    next(pieces)
    for _ in range(3):
        assert engine.submit_chat(ASK).result(60).text == "rabbit water chair desert"
    assert len(list(pieces)) == 23 and slow.result().finish_reason == "length"


def test_many_threads_submit_and_read(model: ruvllm.Model, engine: ruvllm.Engine) -> None:
    work = asks(32)
    want = [model.generate(p, **o).tokens for p, o in work]
    found: dict[int, Any] = {}

    def go(i: int) -> None:
        p, o = work[i]
        found[i] = tuple(t for c in engine.submit(p, **o) for t in c.tokens)

    threads = [threading.Thread(target=go, args=(i,)) for i in range(32)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [found[i] for i in range(32)] == want


def test_generation_beside_an_engine(model: ruvllm.Model, engine: ruvllm.Engine) -> None:
    requests = [engine.submit_chat(ASK) for _ in range(8)]
    assert model.chat(ASK).text == "rabbit water chair desert"
    assert {r.result(60).text for r in requests} == {"rabbit water chair desert"}


def test_metrics(engine: ruvllm.Engine) -> None:
    before = engine.metrics()
    assert (before.queue, before.running, before.tokens, before.tokens_per_second) == (0, 0, 0, 0)
    serve(engine, asks(6))
    engine.submit("a", max_tokens=None, ignore_eos=True).cancel()
    after = engine.metrics()
    assert after.submitted == 7 and after.finished >= 6 and after.refused == 0
    assert after.tokens >= 6 * 24 and after.tokens_per_second > 0 and after.rows_per_step > 1
    assert 0 < after.kv_used_bytes <= after.kv_held_bytes <= after.kv_budget_bytes
    assert after.steps > 0 and 0 <= after.hit_rate <= 1


def test_finished_requests_are_recorded(tmp_path: Path) -> None:
    with ruvllm.WitnessLog(tmp_path) as log:
        m = ruvllm.Model(n_threads=1, witness=log)
        with ruvllm.Engine(m) as engine:
            a = engine.submit_chat(ASK, session_id="s", tags=["x"]).result(60)
            b = engine.submit([1], max_tokens=None, ignore_eos=True)
            b.cancel()
            b.result(60)
        log.flush()
        assert a.witness_id is not None
        entry = log.get(a.witness_id)
        assert entry.output_ids == a.tokens and entry.session_id == "s" and entry.tags == ("x",)
        assert ruvllm.replay(entry, m).same


# -- its life -----------------------------------------------------------------------------------


def _threads() -> int:
    return sum(t.name == "ruvllm-engine" for t in threading.enumerate())


def _until(there: Any) -> None:
    for _ in range(2000):
        if there():
            return
        time.sleep(0.005)
    raise AssertionError("did not happen")


def test_an_engine_nobody_has_ends(model: ruvllm.Model) -> None:
    gc.collect()
    _until(lambda: _threads() == 0)
    assert model.chat(ASK).text  # what the model keeps is there
    before = _core.live_bytes()
    held = model.kv_stats.held_bytes
    engine = ruvllm.Engine(model)
    loop = weakref.ref(engine._loop)
    assert _threads() == 0
    request = engine.submit("a", max_tokens=50, ignore_eos=True)
    del engine
    assert request.result(60).finish_reason == "length"  # it lives while something runs
    del request
    gc.collect()
    _until(lambda: _threads() == 0 and loop() is None)
    assert _core.live_bytes() - before <= model.kv_stats.held_bytes - held + (1 << 20)
    loop = weakref.ref(ruvllm.Engine(model)._loop)  # never used
    gc.collect()
    assert loop() is None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_no_engine(model: ruvllm.Model) -> None:
    engine = ruvllm.Engine(model)
    running = [engine.submit([i], max_tokens=None, ignore_eos=True) for i in range(1, 9)]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            said = []
            for call in (
                lambda: engine.submit("a"),
                engine.metrics,
                lambda: [r.result(1) for r in running],
                lambda: list(running[0]),
            ):
                try:
                    call()
                except ruvllm.StateError as e:
                    said.append("forked" in str(e))
            running[0].cancel()
            engine.close()
            del engine
            gc.collect()
            with ruvllm.Engine() as fresh:
                said.append(fresh.submit_chat(ASK).result(60).text == "rabbit water chair desert")
            os.write(write, repr(said).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    _, status = os.waitpid(child, 0)
    assert status == 0 and os.read(read, 1000).decode() == repr([True] * 5)
    os.close(read)
    assert {r.result(60).finish_reason for r in running} == {"length"}
    engine.close()


@pytest.mark.parametrize("end", ["pass", "raise SystemExit(0)", "engine.close()"])
def test_the_process_ends_with_requests_under_way(end: str) -> None:
    code = f"""
import ruvllm
engine = ruvllm.Engine()
requests = [engine.submit([i], max_tokens=None, ignore_eos=True) for i in range(1, 200)]
print(next(iter(requests[0])).tokens != ())
{end}
"""
    args = [sys.executable, "-W", "error", "-c", code]
    out = subprocess.run(args, capture_output=True, text=True, timeout=120, check=False)
    assert (out.returncode, out.stdout, out.stderr) == (0, "True\n", "")
