"""Logits and greedy tokens against goldens of a NumPy oracle and of llama.cpp."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import ruvllm
from ruvllm import _core

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = sorted(p for p in (GOLDEN / "models").glob("*.gguf") if p.with_suffix(".npz").exists())
LEVELS = {"ref": 0, "avx2": 1, "avx512": 3, "all": 15}


def _log_softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
    y = x.astype(np.float64)
    y -= y.max(-1, keepdims=True)
    return y - np.log(np.exp(y).sum(-1, keepdims=True))


def _kl(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    p, q = _log_softmax(reference), _log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def test_goldens_are_those_that_were_made() -> None:
    for line in (GOLDEN / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split(maxsplit=1)
        assert hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_logits_match(path: Path) -> None:
    data = np.load(path.with_suffix(".npz"))
    model = ruvllm.Model(path, n_threads=1, witness=False)
    found = model.logits(data["tokens"])
    assert found.dtype == np.float32 and found.shape == data["reference"].shape
    assert not found.flags.writeable and not found.flags.owndata
    _check(path.stem, found, data["reference"], data["logits"])


def _check(
    name: str,
    found: NDArray[np.float32],
    reference: NDArray[np.float32],
    llama: NDArray[np.float32],
) -> None:
    if name.endswith("f32"):
        worst = np.abs(found - reference).max(-1) / reference.std(-1)
        assert worst.max() <= 1e-4
    else:
        assert _kl(reference, found) <= 1.5 * _kl(reference, llama)
    top = np.sort(reference, -1)
    clear = top[:, -1] - top[:, -2] > 0.3
    assert clear.any() or name.endswith("f32")
    assert (found.argmax(-1) == reference.argmax(-1))[clear].all()


@pytest.mark.parametrize("level", LEVELS)
def test_logits_match_on_every_instruction_set(level: str) -> None:
    _core.cpu_limit(LEVELS[level])
    try:
        for name in ("llama-d256-q4_0", "lfm2-d256-q4_k_m", "qwen3-d64-f32", "llama-d256-bf16"):
            path = GOLDEN / "models" / f"{name}.gguf"
            data = np.load(path.with_suffix(".npz"))
            found = ruvllm.Model(path, n_threads=1, witness=False).logits(data["tokens"])
            _check(name, found, data["reference"], data["logits"])
    finally:
        _core.cpu_limit(15)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_short_convolutions_are_finer_than_eight_bits(kind: str, level: str) -> None:
    path = GOLDEN / "models" / f"lfm2-d256-{kind}.gguf"
    data = np.load(path.with_suffix(".npz"))
    _core.cpu_limit(LEVELS[level])
    try:
        found = ruvllm.Model(path, n_threads=1, witness=False).logits(data["tokens"])
    finally:
        _core.cpu_limit(15)
    rounded_to_eight = {"q8_0": 7.2e-4, "q4_k_m": 6.4e-4}[kind]
    assert _kl(data["reference"], found) <= 0.5 * rounded_to_eight


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_same_bits_for_any_chunk_and_thread_count(path: Path) -> None:
    tokens = np.load(path.with_suffix(".npz"))["tokens"]
    first = ruvllm.Model(path, n_threads=1, witness=False).logits(tokens)
    for n_threads, n_batch in ((2, None), (1, 1), (1, 7), (2, 64), (3, 5)):
        model = ruvllm.Model(path, n_threads=n_threads, n_batch=n_batch, witness=False)
        assert (model.logits(tokens) == first).all(), (n_threads, n_batch)
    core = model._open()
    session = _core.session_new(core, 64)
    for token, row in zip(tokens, first, strict=True):  # decode, one by one
        session.eval([int(token)], False, None)
        assert (np.asarray(session.logits()) == row).all()


@pytest.mark.parametrize("which", ["tiny-A", "tiny-B", "tiny-C"])
def test_tiny_models_give_the_golden_greedy_ids(which: str) -> None:
    path = None if which == "tiny-C" else GOLDEN / "models" / f"{which}.gguf"
    model = ruvllm.Model(path, n_threads=1, witness=False)
    for item in json.loads((GOLDEN / "tiny-tasks.json").read_text()):
        want = item["greedy_ids"][which]
        found = model.chat([{"role": "user", "content": item["prompt"]}], max_tokens=len(want))
        assert list(found.prompt_tokens) == item["prompt_ids"]
        assert list(found.tokens) == want
        assert found.text == item["greedy_text"][which]
        by_ids = model.generate(item["prompt_ids"], max_tokens=len(want))
        assert by_ids.tokens == found.tokens


@pytest.mark.parametrize("repack", [True, False])
def test_repacked_weights_give_the_same_bits(repack: bool) -> None:
    path = GOLDEN / "models" / "llama-d256-q4_0.gguf"
    can = _core.cpu()["kernels"]["mul_q4_0"] != "ref"
    tokens = np.load(path.with_suffix(".npz"))["tokens"]
    want = ruvllm.Model(path, n_batch=1, witness=False).logits(tokens)
    with ruvllm.Model(path, repack=repack, witness=False) as model:
        assert model.repacked_bytes == 0
        assert (model.logits(tokens) == want).all()
        assert (model.logits(tokens) == want).all()
        assert (model.repacked_bytes > 0) == (repack and can)
