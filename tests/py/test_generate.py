"""Model.generate and chat: results, streaming, seeds, limits, cancel, threads, async, bad input."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ruvllm
from ruvllm import _core

PROMPT = "reverse desert chair water rabbit<ans>"
ASK = [{"role": "user", "content": "reverse desert chair water rabbit"}]


@pytest.fixture(scope="module")
def model() -> Iterator[ruvllm.Model]:
    with ruvllm.Model(n_threads=1, witness=False) as m:
        yield m


def test_the_bundled_model_answers(model: ruvllm.Model) -> None:
    r = model.chat(ASK)
    assert r.text == "rabbit water chair desert" == str(r)
    assert r.finish_reason == "stop" and r.stop is None and r.witness_id is None
    assert model.detokenize(r.tokens) == r.text
    assert r.tokens[-1] == model.tokenizer.eos  # type: ignore[union-attr]
    assert r.timings.n_generated == len(r.tokens) and r.timings.n_prompt == len(r.prompt_tokens)
    t = r.timings
    assert 0 < t.prefill_ms <= t.first_token_ms <= t.total_ms and t.tokens_per_second > 0


def test_text_ids_and_chat_agree(model: ruvllm.Model) -> None:
    ids = model.tokenize(PROMPT, special=True)
    same = {
        model.generate(ids).tokens,
        model.generate(np.array(ids, np.int32)).tokens,
        model.generate(PROMPT, special=True).tokens,
        model.chat(ASK).tokens,
    }
    assert len(same) == 1
    # Plain text that spells a control token stays text.
    assert model.tokenize(PROMPT) != ids
    assert 2 not in model.tokenize(PROMPT)


def test_streaming_gives_the_same_text_and_tokens(model: ruvllm.Model) -> None:
    whole = model.generate(PROMPT, special=True, logprobs=3)
    stream = model.generate(PROMPT, special=True, logprobs=3, stream=True)
    with pytest.raises(ruvllm.StateError):
        _ = stream.result
    chunks = list(stream)
    assert "".join(c.text for c in chunks) == whole.text
    assert tuple(t for c in chunks for t in c.tokens) == whole.tokens
    assert tuple(x for c in chunks for x in c.logprobs) == whole.logprobs == stream.result.logprobs
    assert stream.result.text == whole.text and stream.result.finish_reason == "stop"
    assert list(stream) == []


def test_abandoned_stream_is_cancelled(model: ruvllm.Model) -> None:
    with model.generate(PROMPT, special=True, stream=True) as stream:
        next(stream)
    assert stream.result.finish_reason == "cancelled" and len(stream.result.tokens) == 1


def test_logprobs_are_those_of_the_logits(model: ruvllm.Model) -> None:
    r = model.generate(PROMPT, special=True, logprobs=4)
    every = model.logits([*r.prompt_tokens, *r.tokens])[len(r.prompt_tokens) - 1 : -1]
    for row, token, lp in zip(every.astype(np.float64), r.tokens, r.logprobs, strict=True):
        want = row - row.max() - math.log(np.exp(row - row.max()).sum())
        assert lp.id == token and lp.logprob == pytest.approx(want[token], abs=1e-5)
        assert [i for i, _ in lp.top] == sorted(range(len(row)), key=lambda i: (-row[i], i))[:4]
    assert model.generate(PROMPT, special=True).logprobs == ()


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_a_seed_gives_the_same_tokens_whatever_runs_it(seed: int) -> None:
    want = None
    for n_threads, n_batch in ((1, None), (2, 7), (1, 1), (2, 64)):
        m = ruvllm.Model(n_threads=n_threads, n_batch=n_batch, witness=False)
        r = m.generate("one two three", temperature=1.3, seed=seed, max_tokens=40, ignore_eos=True)
        assert r.seed == seed and len(r.tokens) == 40
        want = want or r.tokens
        assert r.tokens == want


def test_token_i_depends_on_seed_and_i_alone(model: ruvllm.Model) -> None:
    opts: dict[str, Any] = {"temperature": 1.5, "seed": 9, "max_tokens": 20, "ignore_eos": True}
    short = model.generate(PROMPT, **{**opts, "max_tokens": 8})
    long = model.generate(PROMPT, **opts)
    assert long.tokens[:8] == short.tokens
    # The same logits at the same index draw the same token, whatever was drawn before: a sampler
    # that never saw the first tokens agrees with one that did.
    ids = [*long.prompt_tokens, *long.tokens]
    row = model.logits(ids[:-1])[-1]
    fresh = _core.sampler_new(1.5, 0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 64, 9, [], [], 0, len(row))
    assert fresh.sample(row, 19, None)[0] == long.tokens[19]


def test_no_seed_is_a_fresh_one_that_is_reported(model: ruvllm.Model) -> None:
    a, b = (model.generate("one", temperature=2.0, max_tokens=12) for _ in range(2))
    assert a.seed != b.seed
    again = model.generate("one", temperature=2.0, max_tokens=12, seed=a.seed)
    assert again.tokens == a.tokens


def test_lengths_and_stops(model: ruvllm.Model) -> None:
    assert model.generate(PROMPT, special=True, max_tokens=0).tokens == ()
    r = model.generate(PROMPT, special=True, max_tokens=1)
    assert r.finish_reason == "length" and len(r.tokens) == 1
    r = model.generate(PROMPT, special=True, stop=["never", " wat"])
    assert r.text == "rabbit" and r.stop == " wat" and r.finish_reason == "stop"
    r = model.generate("a b", max_tokens=None, ignore_eos=True)
    assert r.finish_reason == "length" and len(r.prompt_tokens) + len(r.tokens) == model.n_ctx + 1
    small = ruvllm.Model(n_ctx=16, n_threads=1, witness=False)
    r = small.generate("a b", max_tokens=None, ignore_eos=True)
    assert len(r.prompt_tokens) + len(r.tokens) == 17  # the last token needs no place of its own


def test_bias_and_penalties_reach_the_sampler(model: ruvllm.Model) -> None:
    free = model.chat(ASK)
    banned = model.chat(ASK, logit_bias={free.tokens[0]: -math.inf}, max_tokens=3)
    assert banned.tokens[0] != free.tokens[0]
    forced = model.chat(ASK, logit_bias={7: 1e4}, max_tokens=3)
    assert forced.tokens == (7, 7, 7)
    spread = model.chat(ASK, logit_bias={7: 50.0}, presence_penalty=100, max_tokens=2)
    assert spread.tokens[1] != 7


def test_cancel_from_another_thread_stops_within_a_step() -> None:
    m = ruvllm.Model(n_threads=1, witness=False)
    cancel = ruvllm.Cancel()
    stream = m.generate("a", max_tokens=None, ignore_eos=True, cancel=cancel, stream=True)
    next(stream)
    threading.Thread(target=cancel.set, args=(True,)).start()
    n = sum(1 for _ in stream)
    assert stream.result.finish_reason in ("cancelled", "length") and n <= m.n_ctx
    r = m.generate("a", cancel=cancel)  # set before it starts
    assert r.finish_reason == "cancelled" and r.tokens == ()
    with pytest.raises(ruvllm.CancelledError):
        m.logits([1, 2], cancel=cancel)
    with pytest.raises(ruvllm.CancelledError):
        m.embed("a", cancel=cancel)


def test_many_threads_share_one_model(golden: Path) -> None:
    for path in (None, golden / "models" / "lfm2-d256-q8_0.gguf"):
        m = ruvllm.Model(path, n_threads=2, witness=False)
        opts: dict[str, Any] = {"temperature": 1.0, "max_tokens": 24, "ignore_eos": True}
        prompts = [[5 + i, 9, 11 + i] for i in range(8)]
        want = [m.generate(p, seed=i, **opts).tokens for i, p in enumerate(prompts)]
        found: dict[int, tuple[int, ...]] = {}

        def work(i: int, m: ruvllm.Model = m, found: dict[int, Any] = found) -> None:
            found[i] = m.generate(prompts[i], seed=i, **opts).tokens

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert [found[i] for i in range(8)] == want


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_computes_the_same(golden: Path) -> None:
    m = ruvllm.Model(golden / "models" / "lfm2-d256-q8_0.gguf", n_threads=3, witness=False)
    want = m.generate([1, 2, 3], max_tokens=10, ignore_eos=True).tokens
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            again = m.generate([1, 2, 3], max_tokens=10, ignore_eos=True).tokens
            fresh = ruvllm.Model(n_threads=2, witness=False).chat(ASK).text
            os.write(write, repr((again == want, fresh)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    _, status = os.waitpid(child, 0)
    assert status == 0 and os.read(read, 1000).decode() == repr((True, _answer()))
    os.close(read)
    assert m.generate([1, 2, 3], max_tokens=10, ignore_eos=True).tokens == want


def _answer() -> str:
    return ruvllm.Model(n_threads=1, witness=False).chat(ASK).text


def test_the_gil_is_free_while_computing(golden: Path) -> None:
    m = ruvllm.Model(golden / "models" / "llama-d256-bf16.gguf", n_threads=1, witness=False)
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0)

    t = threading.Thread(target=tick)
    t.start()
    before = ticks
    m.logits(list(range(400)))
    during = ticks - before
    done.set()
    t.join()
    assert during > 0


def test_async(model: ruvllm.Model) -> None:
    async def main() -> None:
        a, b = await asyncio.gather(model.agenerate(PROMPT, special=True), model.achat(ASK))
        assert a.tokens == b.tokens
        text = ""
        async for chunk in model.astream_chat(ASK):
            text += chunk.text
        assert text == b.text
        vectors = await model.aembed(["a", "b"])
        assert vectors.shape == (2, model.info.n_embd)
        task = asyncio.create_task(model.agenerate("a", max_tokens=None, ignore_eos=True))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_closed_model_says_so() -> None:
    m = ruvllm.Model(witness=False)
    stream = m.generate("a", max_tokens=3, stream=True, ignore_eos=True)
    m.close()
    m.close()
    assert len(list(stream)) == 3  # what runs keeps the model alive
    for call in (lambda: m.generate("a"), lambda: m.logits([1]), lambda: m.metadata):
        with pytest.raises(ruvllm.StateError, match="is closed"):
            call()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": math.nan}, r"temperature: .*nan"),
    ({"temperature": -0.1}, r"temperature: .*-0.1"),
    ({"temperature": "hot"}, "temperature: is 'hot', want a number"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": math.nan}, "top_p: .*nan"),
    ({"top_p": 1.1}, "top_p"),
    ({"min_p": -1}, "min_p"),
    ({"typical_p": math.inf}, "typical_p"),
    ({"top_k": -1}, "top_k: is -1, want 0"),
    ({"repeat_penalty": 0.0}, "repeat_penalty"),
    ({"frequency_penalty": math.nan}, "frequency_penalty"),
    ({"presence_penalty": 1e9}, "presence_penalty"),
    ({"penalty_last_n": -2}, "penalty_last_n: is -2, want -1"),
    ({"max_tokens": -1}, "max_tokens: is -1, want 0"),
    ({"max_tokens": 1.5}, "max_tokens: is 1.5, want an integer"),
    ({"seed": -1}, "seed: is -1, want 0"),
    ({"logprobs": 101}, "logprobs: is 101, want 0 .. 100"),
    ({"logit_bias": {100000: 1.0}}, "100000"),
    ({"logit_bias": {-1: 1.0}}, "-1"),
    ({"logit_bias": {1: math.nan}}, "nan"),
    ({"stop": [""]}, r"stop\[0\]"),
    ({"stop": [3]}, r"stop\[0\]"),
    ({"colour": "red"}, "colour: is not an option of generate"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda v: str(v)[:40])
def test_bad_options_name_what_is_wrong(
    model: ruvllm.Model, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ruvllm.ArgumentError, match=message):
        model.generate("one", **options)


def test_bad_prompts(model: ruvllm.Model) -> None:
    with pytest.raises(ruvllm.ArgumentError, match="prompt: has no tokens"):
        model.generate("")
    with pytest.raises(ruvllm.ArgumentError, match="prompt: has no tokens"):
        model.generate([])
    with pytest.raises(ruvllm.FullError, match="prompt: has 300 tokens, want at most .* 256"):
        model.generate([1] * 300)
    with pytest.raises(ruvllm.ArgumentError, match="is 768, want 0 (to|..) 767"):
        model.generate([768])
    with pytest.raises(ruvllm.ArgumentError, match="is -1, want 0 (to|..) 767"):
        model.generate([-1])
    with pytest.raises(ruvllm.ArgumentError, match="lone surrogate"):
        model.generate("a\ud800b")
    with pytest.raises(ruvllm.ArgumentError, match="want text or a sequence of ids"):
        model.generate([1.5])  # type: ignore[list-item]
    with pytest.raises(ruvllm.ArgumentError, match="does not fit 32 bits"):
        model.generate([2**40])
    assert model.generate(b"one \xff two", max_tokens=2).tokens  # invalid UTF-8 is still text
    with pytest.raises(ruvllm.FullError):
        model.logits([1] * 257)
    with pytest.raises(ruvllm.ArgumentError):
        model.logits([])


def test_logits_of_nothing_consumed_after_errors(model: ruvllm.Model) -> None:
    s = _core.session_new(model._open(), 8)
    s.eval([1, 2, 3], False, None)
    before = np.asarray(s.logits()).copy()
    for bad in ([9999], [1] * 6, []):
        with pytest.raises(ruvllm.RuvllmError):
            s.eval(bad, False, None)
        assert s.n_past() == 3 and s.room() == 5
    assert (np.asarray(s.logits()) == before).all()
    s.truncate(1)
    with pytest.raises(ruvllm.StateError):
        s.logits()
    s.eval([2, 3], False, None)
    assert (np.asarray(s.logits()) == before).all()
    s.close()
    with pytest.raises(ruvllm.StateError, match="closed"):
        s.eval([1], False, None)


def test_model_options_are_checked() -> None:
    for options, message in (
        ({"n_threads": 0}, "n_threads: is 0"),
        ({"n_threads": 1000}, "n_threads: is 1000"),
        ({"n_ctx": 257}, "n_ctx: is 257, want 1 .. 256"),
        ({"n_ctx": 0}, "n_ctx: is 0"),
        ({"n_batch": 99999}, "n_batch: is 99999"),
        ({"kv_type": "q1"}, "kv_type: is 'q1'"),
        ({"witness": "yes"}, "witness"),
    ):
        with pytest.raises(ruvllm.ArgumentError, match=message):
            ruvllm.Model(**options)  # type: ignore[arg-type]


def test_progress_is_reported_and_may_stop_the_loading(golden: Path) -> None:
    seen: list[float] = []
    ruvllm.Model(prefault=True, progress=seen.append, witness=False)
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1.0)

    def stop(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ruvllm.Model(prefault=True, progress=stop, witness=False)


def test_nothing_leaks() -> None:
    def once() -> None:
        m = ruvllm.Model(n_threads=2, witness=False)
        m.chat(ASK)
        list(m.generate("a", stream=True, max_tokens=2))
        with pytest.raises(ruvllm.RuvllmError):
            m.generate([99999])
        view = m.logits([1, 2, 3])
        del m
        assert view.shape == (3, 768) and np.isfinite(view).all()

    once()
    before = _core.live_bytes()
    for _ in range(5):
        once()
    assert _core.live_bytes() == before
