"""Model files that are valid GGUF but not a valid model: missing keys, wrong types and shapes,
lies about sizes, unusable vocabularies.  Each ends in one typed error that names the thing."""

# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ruvllm
from ruvllm import _core
from ruvllm.engine._gguf_writer import GGUFWriter

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
Keys = dict[str, tuple[str, Any]]
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def _load(name: str) -> tuple[Keys, Tensors]:
    g = _core.gguf_open(str(GOLDEN / f"{name}.gguf"))
    keys = {key: (kind, value) for key, kind, value in g.kv(-1)}
    tensors = {
        t[0]: (t[2], tuple(t[3]), bytes(g.tensor_data(i))) for i, t in enumerate(g.tensors())
    }
    return keys, tensors


def _write(path: Path, keys: Keys, tensors: Tensors) -> Path:
    with GGUFWriter(path) as w:
        for key, (kind, value) in keys.items():
            w.add_kv(key, kind, value)
        for name, (type_, dims, _) in tensors.items():
            w.add_tensor(name, type_, dims)
        for name, (_, _, data) in tensors.items():
            w.write(name, data)
    return path


Change = Callable[[Keys, Tensors], None]


def _drop_key(key: str) -> Change:
    return lambda k, t: k.__delitem__(key)


def _set(key: str, kind: str, value: Any) -> Change:
    return lambda k, t: k.__setitem__(key, (kind, value))


def _drop_tensor(name: str) -> Change:
    return lambda k, t: t.__delitem__(name)


def _shape(name: str, *dims: int) -> Change:
    def change(k: Keys, t: Tensors) -> None:
        n = int(np.prod(dims))
        t[name] = ("f32", dims, bytes(4 * n))

    return change


FORMAT, UNSUPPORTED = ruvllm.FormatError, ruvllm.UnsupportedError
A = "llama.attention."
CASES: list[tuple[str, str, Change, type[Exception], str]] = [
    ("no arch", "llama", _drop_key("general.architecture"), FORMAT,
     "general.architecture: is missing, want a string"),
    ("arch type", "llama", _set("general.architecture", "u32", 3), FORMAT,
     "general.architecture: has value type"),
    ("arch unknown", "llama", _set("general.architecture", "str", "gpt9"), UNSUPPORTED,
     'general.architecture: is "gpt9", want llama, qwen2, qwen3, lfm2 or bert'),
    ("arch newline", "llama", _set("general.architecture", "str", "a\nb\x1b[31m"), UNSUPPORTED,
     r'is "a\?b'),
    ("no layers", "llama", _drop_key("llama.block_count"), FORMAT,
     "llama.block_count: is missing, want an integer 1"),
    ("0 layers", "llama", _set("llama.block_count", "u32", 0), FORMAT,
     "llama.block_count: is 0, want 1"),
    ("2^64-1 layers", "llama", _set("llama.block_count", "u64", 2**64 - 1), FORMAT,
     "llama.block_count: is 9223372036854775807, want 1"),
    ("more layers than tensors", "llama", _set("llama.block_count", "u32", 10**6), FORMAT,
     "llama.block_count: is 1000000, want 1 .. 2[0-9]"),
    ("one layer too many", "llama", _set("llama.block_count", "u32", 3), FORMAT,
     "tensor blk.2.attn_norm.weight: is missing"),
    ("layers as text", "llama", _set("llama.block_count", "str", "2"), FORMAT,
     "llama.block_count: has value type 8, want an integer"),
    ("negative layers", "llama", _set("llama.block_count", "i32", -2), FORMAT,
     "llama.block_count: is -2"),
    ("width 0", "llama", _set("llama.embedding_length", "u32", 0), FORMAT, "embedding_length: is 0"),
    ("width", "llama", _set("llama.embedding_length", "u32", 128), FORMAT,
     r"tensor token_embd.weight: has shape \[64, 512, 1, 1\], want \[128, 512\]"),
    ("no context", "llama", _drop_key("llama.context_length"), FORMAT, "context_length: is missing"),
    ("no ff", "llama", _drop_key("llama.feed_forward_length"), FORMAT, "feed_forward_length: is mis"),
    ("heads 0", "llama", _set(A + "head_count", "u32", 0), FORMAT, "head_count: is 0, want 1"),
    ("kv heads", "llama", _set(A + "head_count_kv", "u32", 3), FORMAT,
     "head_count_kv: is 3 in layer 0, want a divisor of head_count 4"),
    ("kv heads 0", "llama", _set(A + "head_count_kv", "u32", 0), FORMAT,
     "head_count_kv: is 0 in layer 0, want at least 1"),
    ("kv heads array", "llama", _set(A + "head_count_kv", "arr[u32]", [2, 2, 2]), FORMAT,
     "head_count_kv: has 3 entries, want one per layer: 2"),
    ("kv heads array type", "llama", _set(A + "head_count_kv", "arr[f32]", [2.0, 2.0]), FORMAT,
     "head_count_kv: holds value type 6, want integers"),
    ("no eps", "llama", _drop_key(A + "layer_norm_rms_epsilon"), FORMAT,
     "layer_norm_rms_epsilon: is missing, want a number"),
    ("eps nan", "llama", _set(A + "layer_norm_rms_epsilon", "f32", float("nan")), FORMAT,
     "layer_norm_rms_epsilon: is -?nan, want 0"),
    ("rope base", "llama", _set("llama.rope.freq_base", "f32", 0.0), FORMAT, "freq_base: is 0"),
    ("rope dims", "llama", _set("llama.rope.dimension_count", "u32", 999), FORMAT,
     "dimension_count: is 999, want 0 .. 16"),
    ("rope odd", "llama", _set("llama.rope.dimension_count", "u32", 7), FORMAT, "want an even"),
    ("rope scaling", "llama", _set("llama.rope.scaling.type", "str", "magic"), UNSUPPORTED,
     'rope.scaling.type: is "magic", want none, linear or yarn'),
    ("value length", "llama", _set(A + "value_length", "u32", 8), UNSUPPORTED,
     "value_length: is 8, want 16"),
    ("experts", "llama", _set("llama.expert_count", "u32", 8), UNSUPPORTED,
     "expert_count: is 8, want 0"),
    ("no embedding", "llama", _drop_tensor("token_embd.weight"), FORMAT,
     "tensor token_embd.weight: is missing"),
    ("no norm", "llama", _drop_tensor("output_norm.weight"), FORMAT,
     "tensor output_norm.weight: is missing, want 64 values"),
    ("no q", "llama", _drop_tensor("blk.1.attn_q.weight"), FORMAT,
     r"tensor blk.1.attn_q.weight: is missing, want shape \[64, 64\]"),
    ("q shape", "llama", _shape("blk.0.attn_q.weight", 64, 32), FORMAT,
     r"tensor blk.0.attn_q.weight: has shape \[64, 32, 1, 1\], want \[64, 64\]"),
    ("norm shape", "llama", _shape("blk.0.ffn_norm.weight", 63), FORMAT, "blk.0.ffn_norm.weight: has"),
    ("3-D", "llama", _shape("blk.0.attn_q.weight", 64, 32, 2), FORMAT, r"has shape \[64, 32, 2, 1\]"),
    ("head rows", "llama", _shape("output.weight", 64, 100), FORMAT, "tensor output.weight: has shape"),
    ("rope factors", "llama", _shape("rope_freqs.weight", 8), FORMAT,
     "tensor rope_freqs.weight: value 0 is 0, want > 0"),
    ("rope factors shape", "llama", _shape("rope_freqs.weight", 5), FORMAT, "rope_freqs.weight: has"),
    ("a part we do not know", "llama", _shape("blk.0.ffn_up.bias", 128), UNSUPPORTED,
     "tensor blk.0.ffn_up.bias: is not a part of llama that this build knows"),
    ("no q bias", "qwen2", _drop_tensor("blk.0.attn_q.bias"), FORMAT, "blk.0.attn_q.bias: is missing"),
    ("no q norm", "qwen3", _drop_tensor("blk.0.attn_q_norm.weight"), FORMAT,
     "blk.0.attn_q_norm.weight: is missing, want 32 values"),
    ("no l_cache", "lfm2", _drop_key("lfm2.shortconv.l_cache"), FORMAT,
     "lfm2.shortconv.l_cache: is missing"),
    ("l_cache", "lfm2", _set("lfm2.shortconv.l_cache", "u32", 4), FORMAT,
     r"blk.0.shortconv.conv.weight: has shape \[3, 64\], want \[4, 64\]"),
    ("no conv", "lfm2", _drop_tensor("blk.0.shortconv.in_proj.weight"), FORMAT,
     r"in_proj.weight: is missing, want shape \[64, 192\]"),
    ("more tokens than rows", "llama", _shape("token_embd.weight", 64, 100), FORMAT,
     "tokenizer.ggml.tokens: has 512 tokens, want at most the 100 rows"),
    ("tokens of numbers", "llama", _set("tokenizer.ggml.tokens", "arr[u32]", [1, 2]), FORMAT,
     "tokenizer.ggml.tokens"),
    ("tokenizer unknown", "llama", _set("tokenizer.ggml.model", "str", "morse"), UNSUPPORTED, "morse"),
    ("pre unknown", "llama", _set("tokenizer.ggml.pre", "str", "morse"), UNSUPPORTED, "morse"),
    ("bos out of range", "llama", _set("tokenizer.ggml.bos_token_id", "u32", 2**31), FORMAT,
     "bos token is 2147483648, want 0"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "base", "change", "error", "message"), CASES, ids=lambda v: str(v)[:30]
)
def test_a_broken_model_is_refused(
    tmp_path: Path, name: str, base: str, change: Change, error: type[Exception], message: str
) -> None:
    keys, tensors = _load(f"{base}-d64-f32")
    path = _write(tmp_path / "good.gguf", keys, tensors)
    ruvllm.Model(path, witness=False).close()  # the change is what breaks it
    change(keys, tensors)
    before = _core.live_bytes()
    with pytest.raises(error, match=message) as caught:
        ruvllm.Model(_write(tmp_path / "bad.gguf", keys, tensors), witness=False)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    del caught
    assert _core.live_bytes() == before


def test_files_that_are_not_there_or_not_models(tmp_path: Path) -> None:
    with pytest.raises(ruvllm.NotFoundError, match="no such file"):
        ruvllm.Model(tmp_path / "none.gguf")
    with pytest.raises(FileNotFoundError):
        ruvllm.Tokenizer(tmp_path / "none.gguf")
    with pytest.raises(ruvllm.FileError, match="is a directory"):
        ruvllm.Model(tmp_path)
    (tmp_path / "x").write_bytes(b"hello, this is not a model")
    with pytest.raises(ruvllm.FormatError, match="GGUF"):
        ruvllm.Model(tmp_path / "x")
    (tmp_path / "y").write_bytes(b"")
    with pytest.raises(ruvllm.FormatError):
        ruvllm.Model(tmp_path / "y")
    with pytest.raises((ValueError, TypeError)):
        ruvllm.Model("a\0b")


def test_truncated_models_never_crash(tmp_path: Path) -> None:
    whole = (GOLDEN / "llama-d256-q2_k.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for n in range(0, len(whole) - 1, 1024):
        path.write_bytes(whole[:n])
        with pytest.raises(ruvllm.FormatError):
            ruvllm.Model(path, witness=False)


def test_nan_weights_are_an_error_at_sampling_not_a_crash(tmp_path: Path) -> None:
    keys, tensors = _load("llama-d64-f32")
    kind, dims, data = tensors["output_norm.weight"]
    tensors["output_norm.weight"] = (kind, dims, np.full(64, np.nan, np.float32).tobytes())
    m = ruvllm.Model(_write(tmp_path / "nan.gguf", keys, tensors), witness=False)
    with pytest.raises(ruvllm.ArgumentError, match="nan|NaN"):
        m.generate([1, 2, 3], max_tokens=4)


def test_an_encoder_does_not_generate_and_a_file_without_vocabulary_takes_ids(
    tmp_path: Path,
) -> None:
    keys, tensors = _load("llama-d64-f32")
    keys = {k: v for k, v in keys.items() if not k.startswith("tokenizer.")}
    m = ruvllm.Model(_write(tmp_path / "bare.gguf", keys, tensors), witness=False)
    assert m.tokenizer is None
    assert len(m.generate([1, 2], max_tokens=3).tokens) == 3
    for call in (lambda: m.generate("text"), lambda: m.tokenize("x"), lambda: m.embed("x")):
        with pytest.raises(ruvllm.UnsupportedError, match="has no vocabulary"):
            call()
    with pytest.raises(ruvllm.UnsupportedError, match="chat_template"):
        m.chat([{"role": "user", "content": "x"}])
    assert np.allclose(np.linalg.norm(m.embed([[1, 2, 3], [4]]), axis=1), 1)
