"""convert(): tiny random Hugging Face folders of every architecture become right GGUFs.

`forward` below is an independent statement of what each checkpoint computes, written from the
architectures' own descriptions over the *Hugging Face* tensors (halves rotated, no permutation,
full rows); the engine runs the converted file.  When both give the same logits, names, shapes,
order, permutation, settings and RoPE scaling are all right.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

import ruvllm
from ruvllm import _core
from ruvllm._errors import (
    ArgumentError,
    CancelledError,
    FormatError,
    NotFoundError,
    RuvllmError,
    UnsupportedError,
)
from ruvllm.engine._convert_arch import Config, make_plan
from ruvllm.engine._convert_weights import Checkpoint
from ruvllm.engine.convert import convert

Tensors = dict[str, np.ndarray]
E, FF, LAYERS, HEADS, KV, VOCAB = 64, 96, 3, 4, 2, 300
ARCHS = ["llama", "mistral", "qwen2", "qwen3", "lfm2", "bert"]


# ---------------------------------------------------------------- tiny Hugging Face folders


def byte_letters() -> list[str]:
    """GPT-2's printable stand-in for each byte."""
    keep = {*range(33, 127), *range(161, 173), *range(174, 256)}
    n = iter(range(256, 512))
    return [chr(b) if b in keep else chr(next(n)) for b in range(256)]


def bpe_tokenizer() -> dict[str, Any]:
    letters = byte_letters()
    vocab = {c: i for i, c in enumerate(letters)}
    merges = [["h", "e"], ["l", "l"], ["he", "ll"], ["Ġ", "t"], ["Ġt", "he"]]
    for a, b in merges:
        vocab[a + b] = len(vocab)
    return {
        "added_tokens": [
            {"id": 261, "content": "<|begin|>", "special": True},
            {"id": 262, "content": "<|end|>", "special": True},
            {"id": 263, "content": "<tool>", "special": False},
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|begin|>"}}, {"Sequence": {"id": "A"}}],
        },
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def word_tokenizer() -> dict[str, Any]:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "##ing", "##"]
    return {
        "added_tokens": [{"id": i, "content": words[i], "special": True} for i in range(5)],
        "normalizer": {"type": "BertNormalizer", "lowercase": True, "strip_accents": None,
                       "clean_text": True, "handle_chinese_chars": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}},
                       {"SpecialToken": {"id": "[SEP]"}}],
        },
        "model": {"type": "WordPiece", "vocab": {w: i for i, w in enumerate(words)},
                  "continuing_subword_prefix": "##", "unk_token": "[UNK]"},
    }  # fmt: skip


def config_of(arch: str) -> dict[str, Any]:
    c: dict[str, Any] = {
        "hidden_size": E, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "intermediate_size": FF, "vocab_size": VOCAB, "max_position_embeddings": 256,
    }  # fmt: skip
    if arch == "bert":
        return c | {
            "architectures": ["BertModel"], "hidden_act": "gelu", "layer_norm_eps": 1e-12,
            "type_vocab_size": 2, "position_embedding_type": "absolute",
        }  # fmt: skip
    c |= {"num_key_value_heads": KV, "rope_theta": 20000.0, "tie_word_embeddings": arch != "llama"}
    if arch == "lfm2":
        return c | {
            "architectures": ["Lfm2ForCausalLM"], "norm_eps": 1e-5, "conv_L_cache": 3,
            "layer_types": ["conv", "full_attention", "conv"], "conv_bias": False,
            "block_ff_dim": 120, "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": True, "eos_token_id": 262,
        }  # fmt: skip
    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[arch]
    c |= {"architectures": [f"{name}ForCausalLM"], "rms_norm_eps": 1e-6, "hidden_act": "silu"}
    if arch == "qwen3":
        c["head_dim"] = 24
    if arch == "mistral":
        c["sliding_window"] = 4096
    return c


def weights_of(c: dict[str, Any], seed: int = 7) -> Tensors:
    rng = np.random.default_rng(seed)
    t: Tensors = {}

    def mat(name: str, n_out: int, n_in: int, *more: int) -> None:
        t[f"{name}.weight"] = (
            rng.standard_normal((n_out, n_in, *more), dtype=np.float32) / n_in**0.5
        )

    def vec(name: str, n: int, mean: float = 1.0) -> None:
        t[name] = (mean + 0.1 * rng.standard_normal(n)).astype(np.float32)

    arch = c["architectures"][0]
    if arch == "BertModel":
        e = "embeddings"
        mat(f"{e}.word_embeddings", c["vocab_size"], E)
        mat(f"{e}.position_embeddings", c["max_position_embeddings"], E)
        mat(f"{e}.token_type_embeddings", 2, E)
        t[f"{e}.position_ids"] = np.arange(c["max_position_embeddings"])[None]
        norms = [f"{e}.LayerNorm"]
        for i in range(c["num_hidden_layers"]):
            h = f"encoder.layer.{i}"
            for n in (
                "attention.self.query",
                "attention.self.key",
                "attention.self.value",
                "attention.output.dense",
            ):
                mat(f"{h}.{n}", E, E)
                vec(f"{h}.{n}.bias", E, 0)
            mat(f"{h}.intermediate.dense", FF, E)
            vec(f"{h}.intermediate.dense.bias", FF, 0)
            mat(f"{h}.output.dense", E, FF)
            vec(f"{h}.output.dense.bias", E, 0)
            norms += [f"{h}.attention.output.LayerNorm", f"{h}.output.LayerNorm"]
        for n in norms:
            vec(f"{n}.weight", E)
            vec(f"{n}.bias", E, 0)
        mat("pooler.dense", E, E)
        vec("pooler.dense.bias", E, 0)
        return t
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    d = c.get("head_dim", E // heads)
    lfm2 = arch == "Lfm2ForCausalLM"
    mat("model.embed_tokens", c["vocab_size"], E)
    if not c["tie_word_embeddings"]:
        mat("lm_head", c["vocab_size"], E)
    vec("model.embedding_norm.weight" if lfm2 else "model.norm.weight", E)
    for i in range(c["num_hidden_layers"]):
        h = f"model.layers.{i}"
        vec(f"{h}.operator_norm.weight" if lfm2 else f"{h}.input_layernorm.weight", E)
        vec(f"{h}.ffn_norm.weight" if lfm2 else f"{h}.post_attention_layernorm.weight", E)
        if lfm2 and c["layer_types"][i] == "conv":
            mat(f"{h}.conv.in_proj", 3 * E, E)
            t[f"{h}.conv.conv.weight"] = rng.standard_normal((E, 1, 3), dtype=np.float32)
            mat(f"{h}.conv.out_proj", E, E)
        else:
            for x, n in (("q", heads), ("k", kv), ("v", kv)):
                mat(f"{h}.self_attn.{x}_proj", n * d, E)
                if arch == "Qwen2ForCausalLM" or c.get("attention_bias"):
                    vec(f"{h}.self_attn.{x}_proj.bias", n * d, 0)
            mat(f"{h}.self_attn.{'out' if lfm2 else 'o'}_proj", E, heads * d)
            if c.get("attention_bias"):
                vec(f"{h}.self_attn.o_proj.bias", E, 0)
            if lfm2 or arch == "Qwen3ForCausalLM":
                for x in "qk":
                    vec(f"{h}.self_attn.{x}_{'layer' if lfm2 else ''}norm.weight", d)
        names = ("w1", "w3", "w2") if lfm2 else ("gate_proj", "up_proj", "down_proj")
        where = "feed_forward" if lfm2 else "mlp"
        for n, (n_out, n_in) in zip(names, ((FF, E), (FF, E), (E, FF)), strict=True):
            mat(f"{h}.{where}.{n}", n_out, n_in)
    return t


def save_bf16(t: Tensors, path: Path) -> None:
    """safetensors' NumPy side has no bfloat16: 24 lines of format."""
    header: dict[str, Any] = {}
    blobs, at = [], 0
    for name, a in t.items():
        raw = (
            (a.view(np.uint32) >> 16).astype(np.uint16).tobytes()
            if a.dtype == np.float32
            else a.tobytes()
        )
        kind = "BF16" if a.dtype == np.float32 else "I64"
        header[name] = {"dtype": kind, "shape": list(a.shape), "data_offsets": [at, at + len(raw)]}
        at += len(raw)
        blobs.append(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def folder(path: Path, arch: str, *, kind: str = "f32", **changes: Any) -> Path:
    path.mkdir(exist_ok=True)
    c = config_of(arch) | changes
    (path / "config.json").write_text(json.dumps(c))
    tok = word_tokenizer() if arch == "bert" else bpe_tokenizer()
    (path / "tokenizer.json").write_text(json.dumps(tok))
    names = {"cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}
    if arch != "bert":
        names = {"bos": "<|begin|>", "eos": "<|end|>"}
    (path / "tokenizer_config.json").write_text(
        json.dumps({f"{k}_token": v for k, v in names.items()})
    )
    t = weights_of(c)
    if kind == "bf16":
        save_bf16(t, path / "model.safetensors")
    else:
        half = {
            n: a.astype(np.float16) if kind == "f16" and a.dtype == np.float32 else a
            for n, a in t.items()
        }
        save_file(half, path / "model.safetensors")
    return path


def change(path: Path, file: str, **changes: Any) -> None:
    """Change keys of a JSON file; ... removes one."""
    old = json.loads((path / file).read_text())
    new = {k: v for k, v in (old | changes).items() if v is not ...}
    (path / file).write_text(json.dumps(new))


def tensors_of(path: Path) -> Tensors:
    out = {}
    for t in gguf.GGUFReader(path).tensors:
        a = gguf.quants.dequantize(t.data, t.tensor_type)
        out[t.name] = a.reshape([int(d) for d in t.shape[::-1]])
    return out


# ---------------------------------------------------------------- what the checkpoint computes


def norm(x: np.ndarray, g: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * g


def layer_norm(x: np.ndarray, t: Tensors, name: str) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return norm(x, t[f"{name}.weight"], 1e-12) + t[f"{name}.bias"]


def inv_freq(c: dict[str, Any], d: int) -> tuple[np.ndarray, float]:
    """RoPE's angles per position, and the factor on cos and sin, by the published rules."""
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    base = rope.get("rope_theta", c.get("rope_theta", 10000.0))
    inv = base ** -(np.arange(0, d, 2) / d)
    kind = rope.get("rope_type", rope.get("type", "default"))
    factor = rope.get("factor")
    if kind == "linear":
        return inv / factor, 1.0
    if kind == "llama3":
        out = []
        for f in inv:
            wave, old = 2 * math.pi / f, rope["original_max_position_embeddings"]
            if wave < old / rope["high_freq_factor"]:
                out.append(f)
            elif wave > old / rope["low_freq_factor"]:
                out.append(f / factor)
            else:
                low, high = rope["low_freq_factor"], rope["high_freq_factor"]
                s = (old / wave - low) / (high - low)
                out.append((1 - s) * f / factor + s * f)
        return np.array(out), 1.0
    if kind == "yarn":
        old = rope["original_max_position_embeddings"]

        def turns(n: float) -> float:
            return d * math.log(old / (n * 2 * math.pi)) / (2 * math.log(base))

        lo = max(math.floor(turns(rope.get("beta_fast", 32))), 0)
        hi = min(math.ceil(turns(rope.get("beta_slow", 1))), d - 1)
        keep = 1 - np.clip((np.arange(d // 2) - lo) / max(hi - lo, 1e-3), 0, 1)
        usual = 0.1 * math.log(factor) + 1
        return inv / factor * (1 - keep) + inv * keep, rope.get("attention_factor", usual)
    return inv, 1.0


def rotate(x: np.ndarray, inv: np.ndarray, scale: float) -> np.ndarray:
    """The two halves of each head, as Hugging Face pairs them.  x: (tokens, heads, d)."""
    a = np.arange(len(x))[:, None, None] * inv
    c, s = np.cos(a) * scale, np.sin(a) * scale
    x0, x1 = np.split(x, 2, -1)
    return np.concatenate([x0 * c - x1 * s, x1 * c + x0 * s], -1)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, reach: int | None) -> np.ndarray:
    """reach: tokens each one sees backwards, itself included; None: all, both ways."""
    n, heads, d = q.shape
    k, v = (np.repeat(x, heads // x.shape[1], 1) for x in (k, v))
    s = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(d)
    if reach is not None:
        back = np.arange(n)[:, None] - np.arange(n)[None]
        s = np.where((back >= 0) & (back < reach), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", p / p.sum(-1, keepdims=True), v).reshape(n, heads * d)


def forward(c: dict[str, Any], t: Tensors, ids: list[int]) -> np.ndarray:
    """Logits (n, vocab); of bert the mean-pooled unit vector."""
    t = {k: v.astype(np.float64) for k, v in t.items()}
    if c["architectures"] == ["BertModel"]:
        return bert_forward(c, t, ids)
    lfm2 = c["architectures"] == ["Lfm2ForCausalLM"]
    eps, heads, kv = (
        c.get("norm_eps") or c["rms_norm_eps"],
        c["num_attention_heads"],
        c["num_key_value_heads"],
    )
    d = c.get("head_dim", E // heads)
    inv, scale = inv_freq(c, d)
    x = t["model.embed_tokens.weight"][ids]
    n = len(ids)
    for i in range(c["num_hidden_layers"]):
        h = f"model.layers.{i}"
        a = norm(x, t[f"{h}.operator_norm.weight" if lfm2 else f"{h}.input_layernorm.weight"], eps)
        if lfm2 and c["layer_types"][i] == "conv":
            b, gate, v = np.split(a @ t[f"{h}.conv.in_proj.weight"].T, 3, -1)
            taps = t[f"{h}.conv.conv.weight"][:, 0]
            past = np.concatenate([np.zeros((2, E)), b * v])
            y = gate * sum(past[j : j + n] * taps[:, j] for j in range(3))
            x = x + y @ t[f"{h}.conv.out_proj.weight"].T
        else:
            p = f"{h}.self_attn"
            q, k, v = (
                a @ t[f"{p}.{z}_proj.weight"].T + t.get(f"{p}.{z}_proj.bias", 0.0) for z in "qkv"
            )
            q, k, v = q.reshape(n, heads, d), k.reshape(n, kv, d), v.reshape(n, kv, d)
            per_head = f"{p}.{{}}_{'layer' if lfm2 else ''}norm.weight"
            if per_head.format("q") in t:
                q, k = norm(q, t[per_head.format("q")], eps), norm(k, t[per_head.format("k")], eps)
            q, k = rotate(q, inv, scale), rotate(k, inv, scale)
            y = attend(q, k, v, c.get("sliding_window") or n)
            y = y @ t[f"{p}.{'out' if lfm2 else 'o'}_proj.weight"].T
            x = x + y + t.get(f"{p}.o_proj.bias", 0.0)
        a = norm(
            x, t[f"{h}.ffn_norm.weight" if lfm2 else f"{h}.post_attention_layernorm.weight"], eps
        )
        m = f"{h}.feed_forward" if lfm2 else f"{h}.mlp"
        w1, w3, w2 = (
            t[f"{m}.{z}.weight"]
            for z in (("w1", "w3", "w2") if lfm2 else ("gate_proj", "up_proj", "down_proj"))
        )
        g = a @ w1.T
        x = x + (g / (1 + np.exp(-g)) * (a @ w3.T)) @ w2.T
    x = norm(x, t["model.embedding_norm.weight" if lfm2 else "model.norm.weight"], eps)
    return x @ t.get("lm_head.weight", t["model.embed_tokens.weight"]).T


def bert_forward(c: dict[str, Any], t: Tensors, ids: list[int]) -> np.ndarray:
    n, heads = len(ids), c["num_attention_heads"]
    e = "embeddings"
    x = t[f"{e}.word_embeddings.weight"][ids] + t[f"{e}.position_embeddings.weight"][:n]
    x = layer_norm(x + t[f"{e}.token_type_embeddings.weight"][0], t, f"{e}.LayerNorm")
    erf = np.vectorize(math.erf)
    for i in range(c["num_hidden_layers"]):
        h = f"encoder.layer.{i}"

        def dense(a: np.ndarray, name: str) -> np.ndarray:
            return a @ t[f"{h}.{name}.weight"].T + t[f"{h}.{name}.bias"]

        q, k, v = (
            dense(x, f"attention.self.{z}").reshape(n, heads, -1) for z in ("query", "key", "value")
        )
        y = dense(attend(q, k, v, None), "attention.output.dense")
        x = layer_norm(x + y, t, f"{h}.attention.output.LayerNorm")
        a = dense(x, "intermediate.dense")
        y = dense(a * 0.5 * (1 + erf(a / math.sqrt(2))), "output.dense")
        x = layer_norm(x + y, t, f"{h}.output.LayerNorm")
    v = x.mean(0)
    return v / np.linalg.norm(v)


# ---------------------------------------------------------------- metadata, names, values


EXPECTED_KEYS: dict[str, dict[str, Any]] = {
    "llama": {"llama.attention.key_length": 16, "llama.rope.dimension_count": 16,
              "llama.attention.head_count_kv": 2, "llama.rope.freq_base": 20000.0},
    "mistral": {"llama.attention.sliding_window": 4096, "llama.attention.value_length": 16},
    "qwen2": {"qwen2.attention.head_count": 4, "qwen2.vocab_size": VOCAB},
    "qwen3": {"qwen3.attention.key_length": 24, "qwen3.rope.dimension_count": 24},
    "lfm2": {"lfm2.attention.head_count_kv": [0, 2, 0], "lfm2.shortconv.l_cache": 3,
             "lfm2.feed_forward_length": 96, "tokenizer.ggml.eos_token_id": 262},
    "bert": {"bert.attention.causal": False, "bert.pooling_type": 1,
             "tokenizer.ggml.token_type_count": 2, "bert.context_length": 256},
}  # fmt: skip


@pytest.mark.parametrize("arch", ARCHS)
def test_keys_and_names(tmp_path: Path, arch: str) -> None:
    src = folder(tmp_path / "Tiny-Model", arch)
    r = convert(src, tmp_path / "a.gguf", type="f32")
    g = _core.gguf_open(str(tmp_path / "a.gguf"))
    real = "llama" if arch == "mistral" else arch
    assert r.arch == real == g.get("general.architecture")
    assert g.get("general.name") == "Tiny-Model" and g.get("general.file_type") == 0
    for key, want in EXPECTED_KEYS[arch].items():
        assert g.get(key) == pytest.approx(want, rel=1e-6), key
    for key, want in (
        ("block_count", LAYERS),
        ("embedding_length", E),
        ("feed_forward_length", FF),
    ):
        assert g.get(f"{real}.{key}") == want
    eps = "attention.layer_norm_epsilon" if arch == "bert" else "attention.layer_norm_rms_epsilon"
    assert g.get(f"{real}.{eps}") > 0
    assert len(g.get("tokenizer.ggml.tokens")) == VOCAB
    have = {t[0]: t[3] for t in g.tensors()}
    assert have["token_embd.weight"] == (E, VOCAB)
    assert ("output.weight" in have) == (arch == "llama")
    known = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[real.upper()], LAYERS
    ).mapping  # every name is one that other readers know
    names = {f"{n}" for _, n in known.values()}
    for name in have:
        assert name.rsplit(".", 1)[0] in names, name
    params = sum(
        a.size
        for n, a in weights_of(config_of(arch)).items()
        if "pooler" not in n and "position_ids" not in n
    )
    assert r.n_params == params == sum(a.size for a in tensors_of(tmp_path / "a.gguf").values())


def test_llama_rows_are_paired_and_others_are_not(tmp_path: Path) -> None:
    for arch, permuted in (("llama", True), ("mistral", True), ("qwen2", False), ("qwen3", False)):
        src = folder(tmp_path / arch, arch)
        convert(src, tmp_path / "a.gguf", type="f32")
        ours, theirs = tensors_of(tmp_path / "a.gguf"), weights_of(config_of(arch))
        for x in "qkv":
            a, b = (
                ours[f"blk.1.attn_{x}.weight"],
                theirs[f"model.layers.1.self_attn.{x}_proj.weight"],
            )
            d = 24 if arch == "qwen3" else 16
            if permuted and x != "v":
                heads = b.reshape(-1, d, E)
                np.testing.assert_array_equal(a.reshape(-1, d, E)[:, 0::2], heads[:, : d // 2])
                np.testing.assert_array_equal(a.reshape(-1, d, E)[:, 1::2], heads[:, d // 2 :])
            else:
                np.testing.assert_array_equal(a, b)


def test_lfm2_taps_lose_their_middle_dimension(tmp_path: Path) -> None:
    convert(folder(tmp_path / "m", "lfm2"), tmp_path / "a.gguf", type="q8_0")
    g = _core.gguf_open(str(tmp_path / "a.gguf"))
    taps = {t[0]: t for t in g.tensors()}["blk.0.shortconv.conv.weight"]
    assert taps[2] == "f32" and taps[3] == (3, E)
    theirs = weights_of(config_of("lfm2"))["model.layers.0.conv.conv.weight"]
    np.testing.assert_array_equal(tensors_of(tmp_path / "a.gguf")[taps[0]], theirs[:, 0])


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("want", ["f32", "f16", "bf16"])
def test_values_survive_every_plain_type(tmp_path: Path, kind: str, want: str) -> None:
    src = folder(tmp_path / "m", "qwen2", kind=kind)
    convert(src, tmp_path / "a.gguf", type=want)
    got = tensors_of(tmp_path / "a.gguf")["blk.2.ffn_down.weight"]
    x = weights_of(config_of("qwen2"))["model.layers.2.mlp.down_proj.weight"]
    if kind == "bf16":
        x = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    elif kind == "f16":
        x = x.astype(np.float16).astype(np.float32)
    if want == "f16":
        x = x.astype(np.float16).astype(np.float32)
    if want == kind or want == "f32" or want == "f16":
        np.testing.assert_array_equal(got, x)
    else:
        assert np.all(np.abs(got - x) <= np.abs(x) * 2.0**-8)


@pytest.mark.parametrize("want", ["q8_0", "q4_0"])
def test_quantised_at_once_is_quantised_later(tmp_path: Path, want: str) -> None:
    from ruvllm.engine.quantize import quantize

    src = folder(tmp_path / "m", "qwen3")
    r = convert(src, tmp_path / "a.gguf", type=want.upper())
    convert(src, tmp_path / "f.gguf", type="f32")
    quantize(tmp_path / "f.gguf", tmp_path / "b.gguf", want)
    a, b = (_core.gguf_open(str(tmp_path / f"{x}.gguf")) for x in "ab")
    assert [t[:4] for t in a.tensors()] == [t[:4] for t in b.tensors()]
    for i in range(a.n_tensors()):
        assert bytes(a.tensor_data(i)) == bytes(b.tensor_data(i))
    assert a.get("general.quantization_version") == 2
    assert set(r.after) == ({"q4_0", "q8_0", "f32"} if want == "q4_0" else {"q8_0", "f32"})


def test_rows_that_are_not_blocks_fall_back_and_are_told(tmp_path: Path) -> None:
    src = folder(tmp_path / "m", "llama")
    c = config_of("llama")
    t = weights_of(c)
    for i in range(LAYERS):
        h = f"model.layers.{i}.mlp"
        t[f"{h}.down_proj.weight"] = np.ascontiguousarray(t[f"{h}.down_proj.weight"][:, :80])
        for x in ("gate", "up"):
            t[f"{h}.{x}_proj.weight"] = np.ascontiguousarray(t[f"{h}.{x}_proj.weight"][:80])
    save_file(t, src / "model.safetensors")
    change(src, "config.json", intermediate_size=80)
    r = convert(src, tmp_path / "a.gguf", type="q8_0")
    assert [f.name for f in r.fallbacks] == [f"blk.{i}.ffn_down.weight" for i in range(LAYERS)]
    assert {(f.row_values, f.wanted, f.got) for f in r.fallbacks} == {(80, "q8_0", "f16")}


def test_shards_equal_one_file_and_threads_change_nothing(tmp_path: Path) -> None:
    src = folder(tmp_path / "m", "llama", kind="bf16")
    convert(src, tmp_path / "a.gguf", type="q4_0", n_threads=1)
    t = weights_of(config_of("llama"))
    names = sorted(t)
    (src / "model.safetensors").unlink()
    places = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_bf16({n: t[n] for n in part}, src / file)
        places |= dict.fromkeys(part, file)
    (src / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    convert(src, tmp_path / "b.gguf", type="q4_0", n_threads=3)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    (src / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFoundError, match="model-00002-of-00002"):
        convert(src, tmp_path / "b.gguf")


def test_new_and_old_spellings_of_a_config_agree(tmp_path: Path) -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 64}
    a = folder(tmp_path / "a", "qwen2", rope_scaling={"type": "yarn", **scaling})
    b = folder(
        tmp_path / "b",
        "qwen2",
        rope_parameters={"rope_type": "yarn", "rope_theta": 20000.0, **scaling},
    )
    change(b, "config.json", rope_theta=...)
    lfm2 = folder(tmp_path / "c", "lfm2")
    old = folder(tmp_path / "d", "lfm2", full_attn_idxs=[1])
    change(
        old,
        "config.json",
        layer_types=...,
        block_ff_dim=...,
        intermediate_size=120,
        tie_word_embeddings=...,
        tie_embedding=True,
    )
    for x, y in ((a, b), (lfm2, old)):
        for src in (x, y):
            convert(src, tmp_path / f"{src.name}.gguf", type="f32", name="same")
        assert (tmp_path / f"{x.name}.gguf").read_bytes() == (
            tmp_path / f"{y.name}.gguf"
        ).read_bytes()


def test_the_oldest_bert_names(tmp_path: Path) -> None:
    src = folder(tmp_path / "m", "bert")
    convert(src, tmp_path / "a.gguf", type="f32")
    t = weights_of(config_of("bert"))
    renamed = {}
    for n, a in t.items():
        old = n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )
        renamed["bert." + old] = a
    save_file(renamed, src / "model.safetensors")
    convert(src, tmp_path / "b.gguf", type="f32")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    save_file({**renamed, **t}, src / "model.safetensors")
    with pytest.raises(FormatError, match="also there as"):
        convert(src, tmp_path / "b.gguf")


def test_pooling(tmp_path: Path) -> None:
    src = folder(tmp_path / "m", "bert")
    dst = tmp_path / "a.gguf"

    def pooled(**options: Any) -> int:
        r = convert(src, dst, **options)
        assert bool(r.notes) == (not (src / "1_Pooling").is_dir() and not options)
        return int(_core.gguf_open(str(dst)).get("bert.pooling_type"))

    assert pooled() == 1
    assert pooled(pooling="cls") == 2
    (src / "1_Pooling").mkdir()
    pool = src / "1_Pooling" / "config.json"
    pool.write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    assert pooled() == 2
    pool.write_text('{"pooling_mode": "lasttoken"}')
    assert pooled() == 3
    modules = [{"type": "models.Transformer", "path": ""},
               {"type": "sentence_transformers.Pooling", "path": "1_Pooling"},
               {"type": "models.Normalize", "path": "2_Normalize"}]  # fmt: skip
    (src / "modules.json").write_text(json.dumps(modules))
    pool.write_text('{"pooling_mode_mean_tokens": true}')
    assert pooled() == 1
    for bad in (
        '{"pooling_mode_max_tokens": true}',
        "{}",
        '{"pooling_mode_max_tokens": true, "pooling_mode_cls_token": true}',
    ):
        pool.write_text(bad)
        with pytest.raises(UnsupportedError, match="pooling"):
            convert(src, dst)
    modules[1]["path"] = "../elsewhere"
    (src / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(FormatError, match="inside"):
        convert(src, dst)
    modules[1] = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}
    (src / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedError, match="Dense"):
        convert(src, dst)
    with pytest.raises(ArgumentError, match="pooling: found 'max'"):
        convert(src, dst, pooling="max")
    with pytest.raises(ArgumentError, match="only an encoder"):
        convert(folder(tmp_path / "l", "llama"), dst, pooling="mean")


def test_sentence_length_and_sampling_advice_are_kept(tmp_path: Path) -> None:
    src = folder(tmp_path / "m", "bert")
    (src / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    convert(src, tmp_path / "a.gguf")
    assert _core.gguf_open(str(tmp_path / "a.gguf")).get("ruvllm.embed.max_tokens") == 128
    src = folder(tmp_path / "l", "llama")
    advice = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    (src / "generation_config.json").write_text(
        json.dumps(advice | {"eos_token_id": [262, 263, 0]})
    )
    convert(src, tmp_path / "a.gguf")
    g = _core.gguf_open(str(tmp_path / "a.gguf"))
    assert g.get("general.sampling.temp") == pytest.approx(0.6)
    assert (g.get("general.sampling.top_k"), g.get("tokenizer.ggml.eos_token_id")) == (20, 262)
    assert (g.get("tokenizer.ggml.eot_token_id"), g.get("tokenizer.ggml.eom_token_id")) == (263, 0)


# ---------------------------------------------------------------- what is refused


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CONFIG_ERRORS: list[tuple[str, dict[str, Any], type[RuvllmError], str]] = [
    ("llama", {"architectures": ["GPTJForCausalLM"]}, UnsupportedError, "GPTJ.*want one of"),
    ("llama", {"architectures": ...}, FormatError, "architectures: found None"),
    ("llama", {"architectures": "LlamaForCausalLM"}, FormatError, "architectures"),
    ("llama", {"hidden_size": ...}, FormatError, "hidden_size: is missing, want an integer"),
    ("llama", {"hidden_size": "64"}, FormatError, "hidden_size: found '64'"),
    ("llama", {"hidden_size": 2**31}, FormatError, "hidden_size: found 2147483648"),
    ("llama", {"num_hidden_layers": 0}, FormatError, "num_hidden_layers: found 0"),
    ("llama", {"num_hidden_layers": True}, FormatError, "num_hidden_layers: found True"),
    ("llama", {"num_attention_heads": 3}, FormatError, "multiple of num_key_value_heads"),
    ("llama", {"num_attention_heads": 6}, FormatError, "found 64, want a multiple of 6"),
    ("qwen3", {"head_dim": 23}, FormatError, "head_dim: found 23, want an even"),
    ("llama", {"rms_norm_eps": ...}, FormatError, "rms_norm_eps: is missing"),
    ("llama", {"rms_norm_eps": -1}, FormatError, "rms_norm_eps: found -1"),
    ("llama", {"hidden_act": "gelu"}, UnsupportedError, "hidden_act: found 'gelu', want 'silu'"),
    ("llama", {"mlp_bias": True}, UnsupportedError, "mlp_bias: found True, want False"),
    ("llama", {"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor"),
    ("llama", {"quantization_config": {}}, UnsupportedError, "quantised"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedError, "'dynamic'"),
    ("llama", {"rope_scaling": {"type": "linear"}}, FormatError, "rope_scaling: factor: is"),
    ("llama", {"rope_scaling": [1]}, FormatError, "rope_scaling: found"),
    ("llama", {"rope_parameters": {"full_attention": {}}}, UnsupportedError, "one RoPE per kind"),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}},
     UnsupportedError, "mscale"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0,
                                "high_freq_factor": 4.0}}, FormatError, "low_freq_factor"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 64}, UnsupportedError,
     "use_sliding_window"),
    ("mistral", {"sliding_window": "x"}, FormatError, "sliding_window"),
    ("lfm2", {"conv_bias": True}, UnsupportedError, "conv_bias: found True, want False"),
    ("lfm2", {"layer_types": ["conv"]}, FormatError, "layer_types"),
    ("lfm2", {"layer_types": ["conv", "mamba", "conv"]}, UnsupportedError, "'mamba'"),
    ("lfm2", {"conv_L_cache": 1}, FormatError, "conv_L_cache: found 1"),
    ("bert", {"hidden_act": "gelu_new"}, UnsupportedError, "hidden_act"),
    ("bert", {"position_embedding_type": "relative_key"}, UnsupportedError,
     "position_embedding_type"),
    ("bert", {"type_vocab_size": ...}, FormatError, "type_vocab_size"),
    ("llama", {"num_hidden_layers": LAYERS + 1}, FormatError,
     "missing: model.layers.3.input_layernorm.weight, .* and 5 more"),
    ("llama", {"num_hidden_layers": LAYERS - 1}, FormatError,
     "left over: model.layers.2.input_layernorm.weight, .* and 5 more: llama as"),
    ("llama", {"intermediate_size": 100}, FormatError,
     r"gate_proj.weight': found shape \[96, 64\], want \[100"),
    ("llama", {"vocab_size": 301}, FormatError,
     r"embed_tokens.weight': found shape \[300, 64\], want \[301"),
    ("llama", {"attention_bias": True}, FormatError, "missing: .*bias"),
    ("lfm2", {"block_multiple_of": 64}, FormatError, r"w1.weight': found shape \[96"),
    ("qwen2", {"tie_word_embeddings": False}, FormatError, "missing: lm_head.weight"),
]  # fmt: skip


@pytest.mark.parametrize(("arch", "changes", "error", "message"), CONFIG_ERRORS)
def test_configs_that_cannot_be_right(
    tmp_path: Path, arch: str, changes: dict[str, Any], error: type[RuvllmError], message: str
) -> None:
    src = folder(tmp_path / "m", arch)
    change(src, "config.json", **changes)
    with pytest.raises(error, match=message):
        convert(src, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize("arch", ARCHS)
def test_any_setting_may_be_anything(arch: str) -> None:
    """A wrong value anywhere in config.json is a typed error in one line, or does not matter."""
    good = config_of(arch) | {"head_dim": 16, "full_attn_idxs": [0], "use_sliding_window": False}
    junk = [None, True, -1, 0, 1.5, math.nan, 2**70, "", "x", [], [1], [[]], {}, {"type": {}}]
    refused = 0
    for rope in (LLAMA3_ROPE, YARN):
        cases = [good | {"rope_scaling": rope, k: j} for k in [*good, "rope_scaling"] for j in junk]
        cases += [good | {"rope_parameters": rope | {k: j}} for k in rope for j in junk]
        for case in cases:
            try:
                assert make_plan(Config(case), set()).tensors
            except RuvllmError as e:
                refused += 1
                assert "\n" not in str(e)
    assert refused > 150


def test_a_tied_head_that_is_stored_too_is_left_out(tmp_path: Path) -> None:
    src = folder(tmp_path / "m", "llama")
    change(src, "config.json", tie_word_embeddings=True)
    convert(src, tmp_path / "a.gguf")
    assert "output.weight" not in tensors_of(tmp_path / "a.gguf")
    change(src, "config.json", tie_word_embeddings=...)
    convert(src, tmp_path / "a.gguf")
    assert "output.weight" in tensors_of(tmp_path / "a.gguf")


def test_broken_files(tmp_path: Path) -> None:
    src = folder(tmp_path / "m", "llama")
    dst = tmp_path / "a.gguf"
    whole = (src / "model.safetensors").read_bytes()
    with pytest.raises(NotFoundError, match="no such folder"):
        convert(tmp_path / "none", dst)
    for n in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        (src / "model.safetensors").write_bytes(whole[:n])
        with pytest.raises(FormatError, match="not a safetensors file"):
            convert(src, dst)
    (src / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + whole[8:])
    with pytest.raises(FormatError, match="not a safetensors file"):
        convert(src, dst)
    (src / "model.safetensors").unlink()
    (src / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(NotFoundError, match=r"pytorch_model.bin: only safetensors"):
        convert(src, dst)
    (src / "model.safetensors").write_bytes(whole)
    for text in ("", "[1]", "{", '{"a":' * 100_000):
        (src / "config.json").write_text(text)
        with pytest.raises(FormatError, match=r"config.json"):
            convert(src, dst)
    (src / "config.json").unlink()
    with pytest.raises(NotFoundError, match=r"config.json"):
        convert(src, dst)
    assert not dst.exists()


def test_an_index_cannot_point_elsewhere_or_lie(tmp_path: Path) -> None:
    src = folder(tmp_path / "m", "llama")
    index = src / "model.safetensors.index.json"
    for places, message in (
        ({"a": "../x.safetensors"}, "plain file name"),
        ({"a": 1}, "plain file name"),
        ({}, "weight_map"),
        ({"no.such.tensor": "model.safetensors"}, "'no.such.tensor' is missing"),
    ):
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(FormatError, match=message):
            convert(src, tmp_path / "a.gguf")
    index.unlink()
    save_file({"model.norm.weight": np.zeros(E, np.float32)}, src / "more.safetensors")
    (src / "model.safetensors").rename(src / "other.safetensors")
    with pytest.raises(FormatError, match=r"also in more.safetensors"):
        convert(src, tmp_path / "a.gguf")


def test_integer_weights_and_values_out_of_range_are_named(tmp_path: Path) -> None:
    src = folder(tmp_path / "m", "llama")
    t = weights_of(config_of("llama"))
    name = "model.layers.0.mlp.up_proj.weight"
    for value, message in (
        (7e4, "blk.0.ffn_up.weight': found 70000 at row 2, column 5, want what f16"),
        (np.nan, "blk.0.ffn_up.weight': found nan at row 2, column 5"),
    ):
        a = t[name].copy()
        a[2, 5] = value
        save_file(t | {name: a}, src / "model.safetensors")
        with pytest.raises(FormatError, match=message):
            convert(src, tmp_path / "a.gguf", type="f16")
    save_file(t | {name: t[name].astype(np.int8)}, src / "model.safetensors")
    with pytest.raises(UnsupportedError, match=r"up_proj.weight' is I8, want one of F64 F32"):
        convert(src, tmp_path / "a.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_float64_checkpoints(tmp_path: Path) -> None:
    src = folder(tmp_path / "m", "llama")
    t = weights_of(config_of("llama"))
    save_file({n: a.astype(np.float64) for n, a in t.items()}, src / "model.safetensors")
    convert(src, tmp_path / "a.gguf", type="f32")
    np.testing.assert_array_equal(
        tensors_of(tmp_path / "a.gguf")["output.weight"], t["lm_head.weight"]
    )


def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    src = folder(tmp_path / "m", "llama")
    seen: list[float] = []
    convert(src, tmp_path / "a.gguf", progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 1.0
    with pytest.raises(CancelledError):
        convert(src, tmp_path / "b.gguf", progress=lambda f: False)
    assert not (tmp_path / "b.gguf").exists()


def test_without_safetensors_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src = folder(tmp_path / "m", "llama")
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(UnsupportedError, match=r"pip install ruvllm\[convert\]"):
        convert(src, tmp_path / "a.gguf")


def test_tensor_bytes_are_where_we_say(tmp_path: Path) -> None:
    """The places computed from the order of the file are those safetensors itself uses."""
    t = {
        f"t{i}": np.random.default_rng(i).standard_normal((i + 1, 3)).astype(np.float32)
        for i in range(9)
    }
    save_file(t, tmp_path / "model.safetensors", metadata={"k": "v" * 50})
    c = Checkpoint(tmp_path)
    for name, a in t.items():
        np.testing.assert_array_equal(c.tensors[name].rows(3, slice(None)), a)


# ---------------------------------------------------------------- the engine agrees

CASES: list[tuple[str, dict[str, Any]]] = [
    *((arch, {}) for arch in ARCHS if arch != "bert"),
    ("mistral", {"sliding_window": 5}),
    ("llama", {"rope_scaling": LLAMA3_ROPE}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    ("qwen2", {"rope_scaling": YARN}),
    ("qwen3", {"rope_parameters": YARN | {"rope_theta": 5000.0, "attention_factor": 1.5}}),
    ("llama", {"rope_scaling": YARN | {"beta_fast": 16, "beta_slow": 2}}),
    ("lfm2", {"layer_types": ["full_attention", "conv", "full_attention"]}),
    ("llama", {"attention_bias": True}),
    ("qwen3", {"attention_bias": True, "head_dim": 16}),
]
IDS = [5, 17, 200, 33, 4, 9, 9, 120, 64, 2, 77, 250]


@pytest.mark.parametrize(("arch", "changes"), CASES, ids=lambda x: str(x)[:40])
def test_the_engine_computes_what_the_checkpoint_does(
    tmp_path: Path, arch: str, changes: dict[str, Any]
) -> None:
    c = config_of(arch) | changes
    convert(folder(tmp_path / "m", arch, **changes), tmp_path / "a.gguf", type="f32")
    want = forward(c, weights_of(c), IDS)
    with ruvllm.Model(tmp_path / "a.gguf", n_threads=1) as m:
        got = np.asarray(m.logits(IDS))
    assert np.abs(got - want).max() < 1e-4 * want.std(1).min()


def test_the_engine_embeds_what_bert_does(tmp_path: Path) -> None:
    c = config_of("bert")
    convert(folder(tmp_path / "m", "bert"), tmp_path / "a.gguf", type="f32", pooling="mean")
    ids = [i for i in IDS if i < VOCAB]
    with ruvllm.Model(tmp_path / "a.gguf", n_threads=1) as m:
        got = np.asarray(m.embed([ids]))[0]
    assert float(got @ forward(c, weights_of(c), ids)) > 0.99999


def test_converted_tokenizers_run(tmp_path: Path) -> None:
    """Ids of the tiny vocabularies, worked out by hand from their merges."""
    convert(folder(tmp_path / "m", "llama"), tmp_path / "a.gguf")
    t = ruvllm.Tokenizer(tmp_path / "a.gguf")
    hell, the = 258, 260  # he + ll, Ġt + he
    assert t.tokenize("hello the") == [261, hell, ord("o"), the]
    assert t.tokenize("<tool>hell", bos=False) == [263, hell]  # user-defined: in any text
    control = t.tokenize("<|end|>", bos=False)
    assert len(control) == len("<|end|>") and 262 not in control
    assert t.tokenize("<|end|>", bos=False, special=True) == [262]
    assert t.detokenize([hell, the, 263]) == "hell the<tool>"

    convert(folder(tmp_path / "b", "bert"), tmp_path / "b.gguf")
    t = ruvllm.Tokenizer(tmp_path / "b.gguf")
    assert t.encode("Hello WORLDS, héllo", bos=True, eos=True) == [2, 5, 6, 7, 1, 5, 3]
    change(
        tmp_path / "b",
        "tokenizer.json",
        normalizer=word_tokenizer()["normalizer"] | {"lowercase": False},
    )
    convert(tmp_path / "b", tmp_path / "b.gguf")
    t = ruvllm.Tokenizer(tmp_path / "b.gguf")
    assert t.encode("Hello worlds", bos=True, eos=True) == [2, 1, 6, 7, 3]
