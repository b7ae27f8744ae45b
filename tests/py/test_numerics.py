"""numerics="fast": how far from exact it is, where it is the same, and who is told."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_run import MODEL, PROMPT, entries, here
from numpy.typing import NDArray

import ruvllm
from ruvllm import ArgumentError, _core

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
BF16 = GOLDEN / "llama-d256-bf16.gguf"
# One of each kind of weights; of them only BF16 has something to give up.
OTHERS = ("llama-d64-f32", "llama-d256-q4_0", "llama-d256-q4_k_m", "llama-d256-q8_0")
LEVELS = (0, 1, 3, 7, 11, 15)
EVERYTHING = 15
FREE: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUVLLM_HOME", str(tmp_path / "home"))


@pytest.fixture(params=LEVELS)
def has(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the kernels multiply pairs of BF16, at every instruction set this machine has."""
    _core.cpu_limit(request.param)
    yield "mul_bf16_rounded" in _core.cpu()["kernels"]
    _core.cpu_limit(EVERYTHING)


def here_it_is() -> bool:
    return "mul_bf16_rounded" in _core.cpu()["kernels"]


def opened(path: Path, **options: Any) -> ruvllm.Model:
    return ruvllm.Model(path, **{"n_threads": 1, "witness": False, **options})


def rounded(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """x rounded to BF16, to nearest even, by numpy alone."""
    u = x.view(np.uint32).astype(np.uint64)
    u = (u + 0x7FFF + (u >> 16 & 1)) >> 16 << 16
    return u.astype(np.uint32).view(np.float32).astype(np.float64)


def kl(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    def log_softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
        y = x.astype(np.float64) - x.max(-1, keepdims=True)
        return y - np.log(np.exp(y).sum(-1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


# -- the kernel ---------------------------------------------------------------------------------


def test_rounded_products_match_float64(has: bool) -> None:
    number = _core.dtypes()["bf16"][0]
    for k in (1, 31, 32, 37, 64, 1000):
        rng = np.random.default_rng(k)
        w = (rng.standard_normal((9, k)).astype("f4").view(np.uint32) >> 16).astype(np.uint16)
        x = rng.standard_normal((8, k)).astype("f4")
        y = np.full((8, 9), np.nan, np.float32)
        if not has:
            with pytest.raises(ArgumentError, match="found bf16, rounded"):
                _core.mul(number, w, 9, x, k, y, False, True)
            continue
        _core.mul(number, w, 9, x, k, y, False, True)
        wf = (w.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        xf = rounded(x)
        bound = (k / 16 + 16) * 2**-23 * (np.abs(xf) @ np.abs(wf).T) + k * 2.0**-126
        assert (np.abs(y - xf @ wf.T) <= bound).all()
        for n in range(1, 8):  # the same bits for fewer rows and columns
            part = np.empty((n, 9 - n), np.float32)
            _core.mul(number, w[n:], 9 - n, x[8 - n :], k, part, False, True)
            assert part.tobytes() == np.ascontiguousarray(y[8 - n :, n:]).tobytes()


def test_rounded_products_pass_nan_on_and_refuse_other_types(has: bool) -> None:
    x, y = np.ones((1, 64), np.float32), np.zeros((1, 1), np.float32)
    for name in ("f32", "f16", "q8_0"):
        number, values, size = _core.dtypes()[name]
        with pytest.raises(ArgumentError, match=f"found {name}, rounded"):
            _core.mul(number, bytes(64 // values * size), 1, x, 64, y, False, True)
    if has:
        number = _core.dtypes()["bf16"][0]
        for bad in (np.nan, np.inf, 3.4e38):  # the last one rounds to infinity
            x[0, 33] = bad
            _core.mul(number, np.full(64, 0x3F80, np.uint16), 1, x, 64, y, False, True)
            assert not np.isfinite(y[0, 0])


# -- the model ----------------------------------------------------------------------------------


def test_fast_is_as_near_to_the_reference_as_llama_cpp(has: bool) -> None:
    data = np.load(BF16.with_suffix(".npz"))
    exact = opened(BF16).logits(data["tokens"])
    with opened(BF16, numerics="fast") as model:
        found = model.logits(data["tokens"])
        assert model.info.numerics == ("fast" if has else "exact")
    assert (found == exact).all() == (not has)
    assert kl(data["reference"], found) <= 1.5 * kl(data["reference"], data["logits"])


@pytest.mark.parametrize("name", OTHERS)
def test_fast_is_exact_for_other_weights(name: str) -> None:
    path = GOLDEN / f"{name}.gguf"
    tokens = np.load(path.with_suffix(".npz"))["tokens"]
    with opened(path, numerics="fast") as model:
        assert model.info.numerics == "exact"
        assert (model.logits(tokens) == opened(path).logits(tokens)).all()


def test_fast_depends_on_the_tokens_alone() -> None:
    tokens = np.load(BF16.with_suffix(".npz"))["tokens"]
    first = opened(BF16, numerics="fast").logits(tokens)
    for n_threads, n_batch in ((2, None), (1, 1), (2, 7), (3, 64)):
        model = opened(BF16, numerics="fast", n_threads=n_threads, n_batch=n_batch)
        assert (model.logits(tokens) == first).all(), (n_threads, n_batch)
    with opened(BF16, numerics="fast") as model, ruvllm.Engine(model) as engine:
        asks = [tokens[i : i + 3 + i].tolist() for i in range(12)]
        requests = [engine.submit(ask, **FREE) for ask in asks]
        for ask, request in zip(asks, requests, strict=True):
            assert request.result(60).tokens == model.generate(ask, **FREE).tokens


def test_nothing_else_is_a_kind_of_numerics() -> None:
    for bad in ("quick", "", None, 1):
        with pytest.raises(ArgumentError, match="numerics: is .*, want one of exact, fast"):
            ruvllm.Model(numerics=bad)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="numerics: is 2, want 0"):
        _core.model_open(str(BF16), 1, 0, 0, False, None, 0, 0, 0, True, 0, 0, 0, True, 2)


def test_a_session_of_the_one_is_computed_again_by_the_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exact, fast = opened(BF16), opened(BF16, numerics="fast")
    with ruvllm.Session(exact) as session:
        session.generate(list(range(40)), **FREE)
        session.save(tmp_path / "s.json")
    for model, alike in ((exact, True), (fast, not here_it_is())):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ruvllm"):
            session = ruvllm.Session.load(tmp_path / "s.json", model)
        assert ("computed again" in caplog.text) == (not alike)
        session.close()


# -- the record ---------------------------------------------------------------------------------


def test_a_replay_says_when_the_numerics_differ(tmp_path: Path) -> None:
    with ruvllm.WitnessLog(tmp_path / "log") as log:
        found = opened(BF16, numerics="fast", witness=log).generate([5, 6, 7], **FREE)
        assert found.witness_id is not None
        entry = log.get(found.witness_id)
    kind = "fast" if here_it_is() else "exact"
    assert entry.engine is not None and entry.engine["numerics"] == kind
    again = ruvllm.replay(entry, opened(BF16, numerics="fast", n_threads=2))
    assert again.same and again.same_numerics
    assert ruvllm.replay(entry, opened(BF16)).same_numerics == (kind == "exact")
    engine = {k: v for k, v in entry.engine.items() if k != "numerics"}
    older = dataclasses.replace(entry, engine=engine)  # of a version that knew exact alone
    assert ruvllm.replay(older, opened(BF16)).same_numerics


def test_the_command_line_has_it_too(tmp_path: Path) -> None:
    kind = "fast" if here_it_is() else "exact"
    assert here("run", "--numerics", "fast", PROMPT).code == 0
    assert (entries()[0].engine or {})["numerics"] == "exact"  # the weights are not BF16
    assert here("run", PROMPT, env={"RUVLLM_NUMERICS": "quick"}).code == 2
    for file, want in ((BF16, kind), (MODEL, "exact")):
        ran = here(
            "bench", file, "--numerics", "fast", "--pp", "8", "--tg", "2", "-r", "1", "--json"
        )
        assert json.loads(ran.out)["model"]["numerics"] == want
    model = ruvllm.Model(BF16, n_threads=1, numerics="fast")
    made = model.generate([5, 6, 7], **FREE).witness_id
    assert made is not None and entries()[0].id == made
    got = json.loads(here("witness", "replay", made, "--json").out)
    assert got["same"] and got["same_numerics"]
    try:
        _core.cpu_limit(7)  # as on a CPU that cannot be fast
        ran = here("witness", "replay", made)
        assert ("made with fast arithmetic, not exact" in ran.err) == (kind == "fast")
    finally:
        _core.cpu_limit(EVERYTHING)
