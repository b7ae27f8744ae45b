"""What a store of keys and values costs: heads of every size, ``check_kv``, and the gate."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_run import MODEL, here
from encoder_make import encoder
from numpy.typing import NDArray

import ruvllm
from ruvllm.engine import _kv_gate, _notice
from ruvllm.engine._gguf_writer import GGUFWriter

SMALL = Path(__file__).parents[1] / "golden" / "models" / "llama-d256-q8_0.gguf"
STORES = ("q8_0", "k8v4", "q4_0")
SIZES = range(16, 164, 4)
PER_BLOCK = {"q8_0": 34 + 34, "k8v4": 34 + 18, "q4_0": 18 + 18}  # bytes of 32 keys and 32 values


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUVLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(_notice, "_said", set())
    return tmp_path / "home"


# ---- heads of any size ----


def random_model(path: Path, head_dim: int) -> Path:
    """Two layers, three heads on one key head; the keys have a few large channels."""
    embd, heads, ff, vocab = 48, 3, 64, 96
    rng = np.random.default_rng(head_dim)
    channels = np.exp(rng.standard_normal(head_dim))
    tensors: dict[str, NDArray[Any]] = {
        "token_embd.weight": rng.standard_normal((vocab, embd)),
        "output_norm.weight": np.ones(embd),
    }
    for i in range(2):
        k = rng.standard_normal((head_dim, embd)) * channels[:, None]
        tensors |= {
            f"blk.{i}.attn_norm.weight": np.ones(embd),
            f"blk.{i}.attn_q.weight": rng.standard_normal((heads * head_dim, embd)) * 0.02,
            f"blk.{i}.attn_k.weight": k * embd**-0.5,
            f"blk.{i}.attn_v.weight": rng.standard_normal((head_dim, embd)) * embd**-0.5,
            f"blk.{i}.attn_output.weight": rng.standard_normal((embd, heads * head_dim)) * 0.1,
            f"blk.{i}.ffn_norm.weight": np.ones(embd),
            f"blk.{i}.ffn_gate.weight": rng.standard_normal((ff, embd)) * 0.1,
            f"blk.{i}.ffn_up.weight": rng.standard_normal((ff, embd)) * 0.1,
            f"blk.{i}.ffn_down.weight": rng.standard_normal((embd, ff)) * 0.1,
        }
    with GGUFWriter(path) as w:
        w.add_kv("general.architecture", "str", "llama")
        for key, n in (("block_count", 2), ("embedding_length", embd), ("context_length", 512),
                       ("feed_forward_length", ff), ("attention.head_count", heads),
                       ("attention.head_count_kv", 1), ("attention.key_length", head_dim),
                       ("attention.value_length", head_dim),
                       ("rope.dimension_count", head_dim)):  # fmt: skip
            w.add_kv(f"llama.{key}", "u32", n)
        w.add_kv("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5)
        w.add_kv("llama.rope.freq_base", "f32", 1e4)
        for name, x in tensors.items():
            w.add_tensor(name, "f32", x.shape[::-1])
        for name, x in tensors.items():
            w.write(name, memoryview(np.ascontiguousarray(x, np.float32)).cast("B"))
    return path


def logits(path: Path, **options: Any) -> NDArray[np.float32]:
    tokens = [(i * i + 3 * i) % 96 for i in range(260)]
    with ruvllm.Model(path, kv_type="f16", witness=False, kv_gate=False, **options) as m:
        return m.logits(tokens)


def kl(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    p, q = (x.astype(np.float64) - x.max(-1, keepdims=True) for x in (a, b))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


MOST = {"q8_0": 1e-4, "k8v4": 1e-2, "q4_0": 2e-2}


@pytest.mark.parametrize("size", SIZES)
def test_heads_of_every_size_can_be_stored(tmp_path: Path, size: int) -> None:
    path = random_model(tmp_path / "m.gguf", size)
    want = logits(path)
    for store in STORES:
        for rotate in (True, False):
            options = {"kv_store": store, "kv_rotate": rotate, "kv_tail": 64}
            found = logits(path, n_threads=1, **options)
            assert (found[:127] == want[:127]).all()  # nothing is read from the store
            assert 0 < kl(want[127:], found[127:]) < MOST[store], (store, rotate)
            again = logits(path, n_threads=2, n_batch=37 if rotate else 5, **options)
            assert (again == found).all()


@pytest.mark.parametrize("size", [16, 28, 32, 64, 80, 96])
def test_what_a_position_takes_in_the_store(tmp_path: Path, size: int) -> None:
    path = random_model(tmp_path / "m.gguf", size)
    blocks = -(-size // 32)
    for store in STORES:
        options: dict[str, Any] = {"kv_type": "f16", "kv_store": store, "kv_gate": False}
        with ruvllm.Model(path, witness=False, **options) as m:
            assert m.info.kv_store == store
            assert m.info.kv_bytes_per_token == 2 * 2 * 2 * size
            assert m.info.kv_store_bytes_per_token == 2 * blocks * PER_BLOCK[store]
    with ruvllm.Model(path, witness=False) as m:
        assert (m.info.kv_store, m.info.kv_store_bytes_per_token) == (None, 0)


def test_rotating_saves_4_bit_keys_with_large_channels(tmp_path: Path) -> None:
    gain = []
    for size in SIZES:
        path = random_model(tmp_path / f"{size}.gguf", size)
        want = logits(path)[127:]
        plain, rotated = (
            kl(want, logits(path, kv_store="q4_0", kv_tail=64, kv_rotate=rotate)[127:])
            for rotate in (False, True)
        )
        gain.append(math.log(plain / rotated))
    assert np.mean(gain) > 0 and np.mean(np.array(gain) > 0) > 0.6


# ---- check_kv ----


def test_the_bundled_model_with_its_own_tasks(home: Path) -> None:
    found = ruvllm.check_kv(kv_store="q8_0")
    assert found.text == "written after tasks, seed 0"
    assert (found.n_positions, found.n_scored) == (24 * 129, 24 * 128)
    assert found.perplexity_f16 < 10 and abs(found.perplexity_change) < 1
    assert 0 < found.kl_mean <= 2e-3 and found.kl_mean <= found.kl_max
    assert found.passed and found.same_first > 0.98
    assert (found.kv_store, found.kv_rotate, found.limit) == ("q8_0", True, 1.5)
    assert (found.bytes_f16, found.bytes_store) == (4 * 4 * 2 * 2 * 28, 4 * 4 * 68)
    assert found.ratio == found.bytes_store / found.bytes_f16
    assert found.path is None and not _kv_gate.gate_path().exists()  # 8 bits need no verdict


@pytest.mark.parametrize("store", ["k8v4", "q4_0"])
def test_a_verdict_is_remembered_and_asked(store: Any) -> None:
    found = ruvllm.check_kv(MODEL, kv_store=store)
    assert found.text.startswith("written after tasks")
    assert found.path == str(_kv_gate.gate_path())
    assert found.passed == (found.perplexity_change <= 1.5)
    (entry,) = json.loads(_kv_gate.gate_path().read_text())["entries"].values()
    assert entry["perplexity_change"] == found.perplexity_change
    assert entry["kl_mean"] == found.kl_mean and entry["n_bytes"] == MODEL.stat().st_size
    with ruvllm.Model(kv_store=store, kv_gate=False, witness=False) as m:
        assert m.info.kv_gate == ("passed" if found.passed else "failed")
    assert dataclasses.replace(found, path=None) == ruvllm.check_kv(
        MODEL, kv_store=store, n_threads=2, remember=False
    )


def test_a_text_and_ids_and_what_the_model_writes() -> None:
    ids = [(7 * i) % 200 for i in range(400)]
    by_ids = ruvllm.check_kv(SMALL, tokens=ids, remember=False)
    assert by_ids.text == "given" and by_ids.n_positions == 400 - 127
    assert by_ids.n_scored == by_ids.n_positions - 1
    assert by_ids.ratio == 18 / 64 and by_ids.path is None
    with ruvllm.Model(SMALL, kv_type="f16", witness=False) as m:
        x = m.logits(ids).astype(np.float64)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    want = math.exp(-x[np.arange(127, 399), ids[128:]].mean())
    assert math.isclose(by_ids.perplexity_f16, want, rel_tol=1e-9)
    one, other = (ruvllm.check_kv(SMALL, seed=s, remember=False) for s in (0, 1))
    assert (one.text, other.text) == ("written, seed 0", "written, seed 1")
    assert one.kl_mean != other.kl_mean and one.perplexity_f16 < 512
    text = "reverse apple river stone " * 60
    assert ruvllm.check_kv(text=text, remember=False).text == "given"


def test_what_cannot_be_checked(tmp_path: Path) -> None:
    for options, error, message in (
        ({"kv_store": "q2_0"}, ruvllm.ArgumentError, "kv_store: is 'q2_0', want one of q8_0"),
        ({"kv_store": None}, ruvllm.ArgumentError, "kv_store: is None"),
        ({"tokens": [1] * 128}, ruvllm.ArgumentError, "text: has 128 tokens, want at least 129"),
        ({"text": "a"}, ruvllm.ArgumentError, "tokens, want at least 129"),
        ({"text": "a", "tokens": [1]}, ruvllm.ArgumentError, "text: tokens are given too"),
        ({"tokens": [9999] * 200}, ruvllm.ArgumentError, "9999"),
        ({"seed": -1}, ruvllm.ArgumentError, "seed: is -1"),
        ({"model": tmp_path / "none.gguf"}, ruvllm.NotFoundError, "none.gguf"),
        ({"model": encoder(tmp_path / "e.gguf")}, ruvllm.UnsupportedError, "is an encoder"),
    ):
        with pytest.raises(error, match=message):
            ruvllm.check_kv(**options)  # type: ignore[arg-type]


# ---- the gate ----


def remember(path: Path, store: str, change: object) -> None:
    _kv_gate.remember(str(path), store, True, {"perplexity_change": change})


def test_a_model_that_failed_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"witness": False}
    remember(MODEL, "q4_0", 3.2)
    remember(MODEL, "k8v4", 1.5)
    want = r"kv_store: q4_0 raises the perplexity of .* by 3\.20 %, want at most 1\.5 %"
    with pytest.raises(ruvllm.UnsupportedError, match=want):
        ruvllm.Model(kv_store="q4_0", **options)
    assert ruvllm.Model(kv_store="q4_0", kv_gate=False, **options).info.kv_gate == "failed"
    assert ruvllm.Model(kv_store="k8v4", **options).info.kv_gate == "passed"
    assert ruvllm.Model(kv_store="q8_0", **options).info.kv_gate is None
    assert ruvllm.Model(**options).info.kv_gate is None
    assert caplog.records == []
    remember(MODEL, "q4_0", 0.3)
    assert ruvllm.Model(kv_store="q4_0", **options).info.kv_gate == "passed"


def test_what_is_unchecked_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(MODEL.read_bytes()[:-1] + b"\1")  # the same size
    remember(other, "q4_0", 9)
    for _ in range(2):
        model = ruvllm.Model(kv_store="q4_0", witness=False)
        assert model.info.kv_gate == "unchecked"
    assert [r.getMessage() for r in caplog.records] == [
        f"kv_store: what q4_0 costs {model.path} is unchecked; "
        f"ruvllm kv-check {model.path} --store q4_0 tries it"
    ]
    m = ruvllm.Model(kv_store="q4_0", kv_rotate=False, kv_gate=False, witness=False)
    assert m.info.kv_gate == "unchecked" and len(caplog.records) == 1


@pytest.mark.parametrize("text", ["{", '{"version": 2, "entries": {}}', '{"version": 1}'])
def test_a_broken_file_is_no_verdict(text: str, caplog: pytest.LogCaptureFixture) -> None:
    remember(MODEL, "q4_0", 9)
    _kv_gate.gate_path().write_text(text)
    with caplog.at_level(logging.WARNING, "ruvllm"):
        m = ruvllm.Model(kv_store="q4_0", kv_gate=False, witness=False)
    assert m.info.kv_gate == "unchecked" and "ignored" in caplog.text
    remember(MODEL, "q4_0", "much")
    m = ruvllm.Model(kv_store="q4_0", kv_gate=False, witness=False)
    assert m.info.kv_gate == "unchecked" and "perplexity_change is 'much'" in caplog.text


# ---- the command ----


def test_the_command(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("reverse apple river stone " * 60)
    ran = here("kv-check", MODEL, "--text", text, "--store", "k8v4", "--json")
    out = json.loads(ran.out)
    assert out["kv_store"] == "k8v4" and out["text"] == "given"
    assert ran.code == (0 if out["passed"] else 1) and Path(out["path"]).exists()
    ran = here("kv-check", "-m", MODEL, "--text", text, "-s", "q8_0", "--no-rotate")
    assert ran.code == 0 and "given text" in ran.out and "mean KL" in ran.out
    assert "passed: want at most 1.5 %" in ran.err


def test_the_command_says_that_a_model_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text"
    text.write_text("reverse apple river stone " * 60)
    monkeypatch.setattr(_kv_gate, "LIMIT", -100.0)
    ran = here("kv-check", "--text", text, "-s", "q8_0")
    assert ran.code == 1 and "failed: want at most -100.0 %" in ran.err
    ran = here("kv-check", "--text", tmp_path / "none")
    assert ran.code == 2 and "--text" in ran.error
