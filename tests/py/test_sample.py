"""The sampler against a plain NumPy float64 reference: supports exactly, frequencies by chi-square.

The reference computes the filtered distribution of each setting; the sampler's draws over many
positions of one seed are counted against it.  Seeds are fixed, so a run either always passes or
always fails.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ruvllm import _core
from ruvllm._errors import ArgumentError, StateError

DEFAULTS: dict[str, Any] = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "penalty_last_n": 64,
    "seed": 0,
    "bias_ids": (),
    "bias": (),
    "n_logprobs": 0,
}


def make(n_vocab: int, **changes: Any) -> _core.Sampler:
    assert changes.keys() <= DEFAULTS.keys()
    return _core.sampler_new(*(DEFAULTS | changes).values(), n_vocab)


def logits_of(seed: int, n: int, scale: float = 2.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(x - x.max())
    return e / e.sum()


def order(x: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ids by falling value, ties by id."""
    return np.lexsort((np.arange(len(x)), -x))


def keep(x: NDArray[np.float64], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    out = np.full_like(x, -np.inf)
    out[ids] = x[ids]
    return out


def cut_at(p: NDArray[np.float64], ids: NDArray[np.int64], limit: float) -> NDArray[np.int64]:
    """The shortest prefix of ids whose probability reaches the limit."""
    n = int(np.searchsorted(np.cumsum(p[ids]), limit)) + 1
    return ids[:n]


def reference(
    logits: NDArray[np.float32],
    history: list[int],
    p: dict[str, Any],
    allow: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Probability of each token, with the chain written as its definition."""
    x = logits.astype(np.float32)
    for i, b in zip(p["bias_ids"], p["bias"], strict=True):
        x[i] += np.float32(b)
    last_n = p["penalty_last_n"]
    window = history if last_n < 0 else history[len(history) - last_n :] if last_n else []
    for i in set(window):
        r = np.float32(p["repeat_penalty"])
        x[i] = x[i] / r if x[i] > 0 else x[i] * r
        x[i] -= np.float32(window.count(i)) * np.float32(p["frequency_penalty"]) + np.float32(
            p["presence_penalty"]
        )
    z = x.astype(np.float64)
    if allow is not None:
        z[~allow] = -np.inf
    if p["temperature"] == 0:
        out = np.zeros(len(z))
        out[order(z)[0]] = 1
        return out
    if p["top_k"]:
        z = keep(z, order(z)[: p["top_k"]])
    if p["typical_p"] < 1:
        q = softmax(z)
        with np.errstate(divide="ignore", invalid="ignore"):
            logq = np.log(q)
            entropy = -np.nansum(q * logq)
            shift = np.abs(-logq - entropy)
        z = keep(z, cut_at(q, order(-shift), float(np.float32(p["typical_p"]))))
    if p["top_p"] < 1:
        z = keep(z, cut_at(softmax(z), order(z), float(np.float32(p["top_p"]))))
    if p["min_p"] > 0:
        q = softmax(z)
        z = keep(z, np.flatnonzero(q >= float(np.float32(p["min_p"])) * q.max()))
    return softmax(z / float(np.float32(p["temperature"])))


def chi_square_bound(df: int) -> float:
    """The 1 - 1e-6 quantile, by Wilson and Hilferty's cube."""
    z = 4.7534
    return float(df * (1 - 2 / (9 * df) + z * math.sqrt(2 / (9 * df))) ** 3)


def assert_drawn_from(counts: NDArray[np.int64], p: NDArray[np.float64]) -> None:
    assert not counts[p == 0].any(), "drew a token outside the support"
    n = counts.sum()
    expected = p * n
    big = expected >= 5
    observed = np.append(counts[big], counts[~big].sum())
    expected = np.append(expected[big], expected[~big].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    if len(observed) > 1:
        chi2 = ((observed - expected) ** 2 / expected).sum()
        assert chi2 < chi_square_bound(len(observed) - 1)


CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 7},
    {"temperature": 1.0, "top_k": 59},
    {"temperature": 1.0, "top_k": 60},
    {"temperature": 1.0, "top_k": 1000},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.7, "top_p": 0.5},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.5, "min_p": 0.3},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.0, "typical_p": 0.9},
    {"temperature": 1.3, "typical_p": 0.2},
    {"temperature": 1.0, "typical_p": 1e-6},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.9, "top_k": 40, "typical_p": 0.8, "top_p": 0.85, "min_p": 0.05},
    {"temperature": 0.9, "typical_p": 0.6, "min_p": 0.4},
    {"temperature": 1.0, "bias_ids": (0, 3, 59), "bias": (4.0, -math.inf, -2.5)},
    {"temperature": 1.0, "repeat_penalty": 1.5},
    {"temperature": 1.0, "repeat_penalty": 0.5, "penalty_last_n": -1},
    {"temperature": 1.0, "frequency_penalty": 0.7, "penalty_last_n": -1},
    {"temperature": 1.0, "presence_penalty": 1.2, "penalty_last_n": 5},
    {"temperature": 1.0, "presence_penalty": 1.2, "penalty_last_n": 0},
    {"temperature": 0.8, "repeat_penalty": 1.2, "frequency_penalty": -0.5, "top_k": 30,
     "top_p": 0.95, "min_p": 0.01, "bias_ids": (8,), "bias": (1.0,)},
]  # fmt: skip
HISTORY = [3, 8, 8, 8, 20, 3, 41, 41, 59, 0, 0, 5, 6]


@pytest.mark.parametrize("case", CASES, ids=lambda c: ",".join(f"{k}={v}" for k, v in c.items()))
@pytest.mark.parametrize("masked", [False, True])
def test_draws_follow_the_reference(case: dict[str, Any], masked: bool) -> None:
    n_vocab = 60
    logits = logits_of(11, n_vocab)
    params = DEFAULTS | case | {"seed": 77}
    allow = words = None
    if masked:
        allow = np.random.default_rng(5).random(n_vocab) < 0.5
        words = pack(allow)
    p = reference(logits, HISTORY, params, allow)
    counts = np.zeros(n_vocab, np.int64)
    s = make(n_vocab, **(case | {"seed": 77}))
    s.accept(HISTORY)
    penalised = s_has_memory(params)
    n_draws = 3000 if penalised else 20000
    for pos in range(n_draws):
        if penalised:  # each draw from the same history
            s = make(n_vocab, **(case | {"seed": 77}))
            s.accept(np.array(HISTORY, np.int32))
        counts[s.sample(logits, pos, words)[0]] += 1
    assert_drawn_from(counts, p)
    likely = p > 0.01  # would be missed with a chance of 1e-13
    assert counts[likely].all()


def s_has_memory(p: dict[str, Any]) -> bool:
    neutral = (p["repeat_penalty"], p["frequency_penalty"], p["presence_penalty"]) == (1, 0, 0)
    return not neutral


def pack(allow: NDArray[np.bool_]) -> NDArray[np.uint32]:
    bits = np.zeros((len(allow) + 31) // 32 * 32, np.uint8)
    bits[: len(allow)] = allow
    return np.packbits(bits, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("seed", range(30))
def test_supports_are_exact(seed: int) -> None:
    """Every token of the support is reachable, no other is: the mask leaves one token at a time."""
    rng = np.random.default_rng(seed)
    n_vocab = int(rng.integers(2, 90))
    logits = logits_of(seed, n_vocab, float(rng.uniform(0.2, 6)))
    case = {
        "temperature": 1.0,
        "top_k": int(rng.choice([0, 3, 12, 70])),
        "top_p": float(rng.choice([1.0, 0.95, 0.5])),
        "min_p": float(rng.choice([0.0, 0.01, 0.2])),
        "typical_p": float(rng.choice([1.0, 0.9, 0.4])),
        "seed": seed,
    }
    p = reference(logits, [], DEFAULTS | case)
    s = make(n_vocab, **case)
    seen = {s.sample(logits, pos, None)[0] for pos in range(4000)}
    assert seen <= set(np.flatnonzero(p > 0).tolist())
    assert set(np.flatnonzero(p > 0.005).tolist()) <= seen


def test_random_number_is_a_function_of_seed_and_position() -> None:
    n = 500
    logits = logits_of(1, n)
    forward = [make(n, temperature=1.0, seed=9).sample(logits, i, None)[0] for i in range(50)]
    s = make(n, temperature=1.0, seed=9)
    other = make(n, temperature=1.0, seed=9)
    backward = []
    for i in reversed(range(50)):
        other.sample(logits_of(i, n), 10**9 + i, None)  # unrelated draws in between
        s.sample(logits_of(i, n), 7, None)
        backward.append(s.sample(logits, i, None)[0])
    assert backward[::-1] == forward
    different = [make(n, temperature=1.0, seed=10).sample(logits, i, None)[0] for i in range(50)]
    assert different != forward
    assert len(set(forward)) > 20
    far = 2**64 - 1
    assert s.sample(logits, far, None) == make(n, temperature=1.0, seed=9).sample(logits, far, None)


def test_draw_inverts_the_distribution_in_canonical_order() -> None:
    """With four equal tokens the k-th quarter of the unit interval is the k-th lowest id."""
    n = 64
    logits = np.full(n, -20, np.float32)
    logits[[50, 9, 31, 10]] = 5
    s = make(n, temperature=1.0, seed=0, top_k=4)
    # Philox4x32-10, key 0, counters 0 .. 3: the first two words are the 53 bits of u.
    first_words = {0: 0x6627E8D5}
    for pos, word in first_words.items():
        assert s.sample(logits, pos, None)[0] == [9, 10, 31, 50][word >> 30]
    low = make(n, temperature=1.0, seed=0)
    assert low.sample(logits, 0, None)[0] == 10


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logprobs_are_of_the_raw_distribution(temperature: float) -> None:
    n = 1000
    logits = logits_of(3, n, 4)
    logits[[5, 6]] = logits.max() + 1  # a tie for first
    logits[7] = -np.inf
    lse = logits[7:].max()
    x = logits.astype(np.float64)
    lse = x.max() + math.log(np.exp(x - x.max()).sum())
    s = make(n, temperature=temperature, top_k=50, seed=2, n_logprobs=20,
             bias_ids=(1, 2), bias=(9.0, -math.inf), repeat_penalty=1.3)  # fmt: skip
    s.accept([5, 6, 8])
    want = order(x)[:20]
    assert want[0] == 5 and want[1] == 6
    for pos in range(30):
        token, logprob, ids, logprobs = s.sample(logits, pos, None)
        assert logprob == pytest.approx(x[token] - lse, abs=2e-6)
        assert list(ids) == want.tolist()
        assert logprobs == pytest.approx(x[want] - lse, abs=2e-6)


def test_logprobs_sum_to_one_and_stop_at_the_vocabulary() -> None:
    s = make(3, n_logprobs=100)
    token, logprob, ids, logprobs = s.sample(np.array([0, 2, 1], np.float32), 0, None)
    assert token == 1 and ids == (1, 2, 0) and logprob == logprobs[0]
    assert math.fsum(map(math.exp, logprobs)) == pytest.approx(1, abs=1e-6)
    assert make(3).sample(np.array([0, 2, 1], np.float32), 0, None)[2:] == ((), ())


def test_greedy_uses_bias_penalties_and_mask_but_no_filter() -> None:
    logits = np.array([1.0, 5.0, 4.0, 3.0], np.float32)
    assert make(4, top_k=1, top_p=0.1).sample(logits, 0, None)[0] == 1
    assert make(4, bias_ids=[1], bias=[-1.5]).sample(logits, 0, None)[0] == 2
    assert make(4).sample(logits, 0, pack(np.array([1, 0, 0, 1], bool)))[0] == 3
    s = make(4, repeat_penalty=2.0)
    assert [s.sample(logits, i, None)[0] for i in range(4)] == [1, 2, 3, 1]


def test_large_vocabulary() -> None:
    n = 150_000
    logits = logits_of(4, n, 1.0)
    for case in (
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "typical_p": 0.5},
        {"temperature": 1.0, "top_k": 1000, "min_p": 0.1},
    ):
        p = reference(logits, [], DEFAULTS | case)
        s = make(n, **case)
        for pos in range(10):
            assert p[s.sample(logits, pos, None)[0]] > 0


BAD = [
    ({"temperature": math.nan}, "temperature: is nan, want >= 0"),
    ({"temperature": "hot"}, "temperature: is a str, want a number"),
    ({"temperature": None}, "temperature: is a NoneType, want a number"),
    ({"temperature": 10**400}, "temperature: is an int too great"),
    ({"temperature": 1e39}, "temperature: is inf, want"),
    ({"top_p": 2.0}, "top_p: is 2, want > 0 and <= 1"),
    ({"top_k": 1.5}, "top_k: is a float, want an int"),
    ({"top_k": -3}, "top_k: is -3, want 0 to"),
    ({"top_k": 2**31}, "top_k: is 2147483648, want an int of 32 bits"),
    ({"top_k": 10**30}, "top_k: is 1000000000000000000000000000000, want an int of 32 bits"),
    ({"seed": -1}, "seed: is -1, want 0 to 2\\^64 - 1"),
    ({"seed": 2**64}, "seed: is 18446744073709551616, want 0 to"),
    ({"seed": "x"}, "seed: is a str, want an int"),
    ({"n_logprobs": 101}, "n_logprobs: is 101, want -1 to 100"),
    ({"penalty_last_n": -2}, "penalty_last_n: is -2, want -1 to"),
    ({"bias_ids": [1]}, "bias: has 0 entries, want 1, one per id"),
    ({"bias_ids": [1], "bias": 5}, "bias: is a int, want a sequence of numbers"),
    ({"bias_ids": [1], "bias": ["x"]}, "bias: is a str, want a number"),
    ({"bias_ids": [10], "bias": [0.0]}, "bias_ids\\[0\\]: is 10, want 0 to 9"),
    ({"bias_ids": [2**40], "bias": [0.0]}, "bias_ids\\[0\\]: does not fit 32 bits"),
    ({"bias_ids": "ab", "bias": [0.0]}, "bias_ids: want a sequence of integers"),
    ({"bias_ids": [4, 4], "bias": [0.0, 1.0]}, "bias_ids\\[1\\]: 4 is there twice"),
    ({"bias_ids": [4], "bias": [math.nan]}, "bias\\[0\\]: is nan, want a finite number or -inf"),
]


@pytest.mark.parametrize(("case", "message"), BAD)
def test_bad_parameters_are_named(case: dict[str, Any], message: str) -> None:
    live = _core.live_bytes()
    with pytest.raises(ArgumentError, match=f"^{message}"):
        make(10, **case)
    assert _core.live_bytes() == live


def test_bad_buffers_are_named() -> None:
    s = make(40)
    good = np.zeros(40, np.float32)
    for bad, message in [
        (np.zeros(40), 'logits: has 40 items of 8 bytes, format "d"; want 40 float32'),
        (np.zeros(39, np.float32), "logits: has 39 items"),
        (np.zeros(40, np.int32), 'logits: has 40 items of 4 bytes, format "i"; want 40 float32'),
        (np.zeros(80, np.float32)[::2], "logits: is a ndarray, want a C-contiguous array"),
        ([0.0] * 40, "logits: is a list, want float32"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            s.sample(bad, 0, None)
    for words, message in [
        (np.zeros(1, np.uint32), "allow: has 1 items of 4 bytes"),
        (np.zeros(2, np.uint64), "allow: has 2 items of 8 bytes"),
        (b"12345678", "allow: has 8 items of 1 bytes"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            s.sample(good, 0, words)
    with pytest.raises(ArgumentError, match="pos: is -1, want 0 to"):
        s.sample(good, -1, None)
    with pytest.raises(ArgumentError, match=r"ids\[1\]: is 40, want 0 to 39"):
        s.accept([1, 40])
    with pytest.raises(ArgumentError, match=r"logits\[3\]: is nan"):
        s.sample(np.array([0, 0, 0, math.nan] + [0] * 36, np.float32), 0, None)
    with pytest.raises(StateError, match="all 40 tokens are masked"):
        s.sample(good, 0, np.zeros(2, np.int32))
    with pytest.raises(TypeError, match="takes 3 arguments"):
        s.sample(good)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        _core.Sampler()


@given(
    values=st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 3e38, 1e-45, 5.0, -math.inf]),
        min_size=1,
        max_size=70,
    ),
    temperature=st.sampled_from([0.0, 1e-30, 0.5, 1.0, 1e30]),
    top_k=st.sampled_from([0, 1, 2, 50, 2**31 - 1]),
    top_p=st.sampled_from([1.0, 1e-30, 0.5, 0.999999]),
    min_p=st.sampled_from([0.0, 1e-30, 0.5, 1.0]),
    typical_p=st.sampled_from([1.0, 1e-30, 0.5, 0.999999]),
    repeat=st.sampled_from([1.0, 1e-30, 3.0, 1e30]),
    seed=st.integers(0, 2**64 - 1),
    pos=st.integers(0, 2**64 - 1),
)
@settings(max_examples=400, deadline=None)
def test_extremes_give_an_allowed_token_or_a_state_error(
    values: list[float], temperature: float, top_k: int, top_p: float, min_p: float,
    typical_p: float, repeat: float, seed: int, pos: int,
) -> None:  # fmt: skip
    x = np.array(values, np.float32)
    s = make(len(x), temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
             typical_p=typical_p, repeat_penalty=repeat, seed=seed, n_logprobs=5)  # fmt: skip
    s.accept([0])
    if not (x > -np.inf).any():
        with pytest.raises(StateError):
            s.sample(x, pos, None)
        return
    token, logprob, ids, logprobs = s.sample(x, pos, None)
    assert x[token] > -np.inf
    assert not math.isnan(logprob) and logprob <= 1e-6
    assert list(logprobs) == sorted(logprobs, reverse=True) and len(ids) == len(set(ids))
    assert list(ids) == order(x.astype(np.float64))[: len(ids)].tolist()
    if repeat == 1 and (top_k == 1 or temperature == 0):
        assert token == int(np.argmax(x))


def test_equal_logits_are_drawn_evenly() -> None:
    for value in (0.0, 1e30, -1e30):
        x = np.full(10, value, np.float32)
        s = make(10, temperature=1.0, seed=5)
        counts = np.bincount([s.sample(x, i, None)[0] for i in range(3000)], minlength=10)
        assert_drawn_from(counts, np.full(10, 0.1))


def test_threads_do_not_share_a_sampler() -> None:
    """Two threads in one sampler: each call is answered or refused, none is mixed up."""
    from concurrent.futures import ThreadPoolExecutor

    n = 100_000
    logits = logits_of(6, n)
    s = make(n, temperature=1.0, top_k=40, seed=3)
    want = [make(n, temperature=1.0, top_k=40, seed=3).sample(logits, i, None) for i in range(40)]

    def call(i: int) -> bool:
        try:
            return s.sample(logits, i, None) == want[i]
        except StateError as e:
            return "in use by another thread" in str(e)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(40)))


def test_without_logprobs_the_choice_is_the_same() -> None:
    x = np.random.default_rng(3).normal(size=500).astype(np.float32)
    for temperature in (0.0, 1.0):
        full = make(500, temperature=temperature, seed=4, n_logprobs=2)
        bare = make(500, temperature=temperature, seed=4, n_logprobs=-1)
        for pos in range(20):
            a, b = full.sample(x, pos, None), bare.sample(x, pos, None)
            assert a[0] == b[0] and np.isnan(b[1]) and b[2:] == ((), ())
