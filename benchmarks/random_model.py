"""Random-weight GGUF files in the shapes of real models: the same arithmetic and the same bytes as
a trained model of that shape; only the text is noise.

    random_model.py lfm2-350m out.gguf --type q4_0
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ruvllm import _core
from ruvllm.engine._gguf_writer import GGUFWriter
from ruvllm.engine.quantize import quantize


@dataclasses.dataclass(frozen=True)
class Shape:
    arch: str
    layers: int
    embd: int
    heads: int
    kv_heads: int
    ff: int
    vocab: int
    ctx: int
    head_dim: int = 64
    rope_base: float = 1e6
    attn_layers: tuple[int, ...] = ()  # lfm2; the others are convolutions


_LFM2_ATTN = (2, 5, 8, 10, 12, 14)
SHAPES = {
    "tiny": Shape("llama", 2, 64, 4, 2, 128, 512, 512, head_dim=16),
    "small-llama": Shape("llama", 8, 256, 4, 2, 512, 512, 512),
    "small-qwen3": Shape("qwen3", 8, 256, 4, 2, 512, 512, 512),
    "small-lfm2": Shape("lfm2", 8, 256, 4, 2, 512, 512, 512, attn_layers=(2, 5, 7)),
    "llama-350m": Shape("llama", 24, 1024, 16, 8, 2816, 65536, 32768),
    "llama-1b": Shape("llama", 16, 2048, 32, 8, 8192, 128256, 131072),
    "llama-100m": Shape("llama", 8, 768, 12, 4, 2048, 50304, 8192),
    "lfm2-350m": Shape("lfm2", 16, 1024, 16, 8, 4608, 65536, 128000, attn_layers=_LFM2_ATTN),
    "lfm2-1.2b": Shape("lfm2", 16, 2048, 32, 8, 8192, 65536, 128000, attn_layers=_LFM2_ATTN),
    "llama-1gb": Shape("llama", 4, 2048, 32, 8, 8192, 128256, 131072),
    "qwen3-0.6b": Shape("qwen3", 28, 1024, 16, 8, 3072, 151936, 40960, head_dim=128),
}


def tensors(s: Shape) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Name, shape (rows first) and deviation of every tensor; deviation 0 marks a norm."""
    e, q, kv = s.embd, s.heads * s.head_dim, s.kv_heads * s.head_dim

    def mat(name: str, n_out: int, n_in: int) -> tuple[str, tuple[int, ...], float]:
        return f"{name}.weight", (n_out, n_in), 1 / math.sqrt(n_in)

    yield "token_embd.weight", (s.vocab, e), 2 / math.sqrt(e)
    yield ("token_embd_norm" if s.arch == "lfm2" else "output_norm") + ".weight", (e,), 0.0
    for i in range(s.layers):
        b = f"blk.{i}."
        yield b + "attn_norm.weight", (e,), 0.0
        if s.arch == "lfm2" and i not in s.attn_layers:
            yield mat(b + "shortconv.in_proj", 3 * e, e)
            yield b + "shortconv.conv.weight", (e, 3), 1 / math.sqrt(3)
            yield mat(b + "shortconv.out_proj", e, e)
        else:
            yield mat(b + "attn_q", q, e)
            yield mat(b + "attn_k", kv, e)
            yield mat(b + "attn_v", kv, e)
            yield mat(b + "attn_output", e, q)
            if s.arch in ("lfm2", "qwen3"):
                yield b + "attn_q_norm.weight", (s.head_dim,), 0.0
                yield b + "attn_k_norm.weight", (s.head_dim,), 0.0
        yield b + "ffn_norm.weight", (e,), 0.0
        yield mat(b + "ffn_gate", s.ff, e)
        yield mat(b + "ffn_up", s.ff, e)
        yield mat(b + "ffn_down", e, s.ff)


def tokenizer_of(vocab: Path, n: int) -> Iterator[tuple[str, str, Any]]:
    """The tokenizer keys of a GGUF, its vocabulary filled up with unused tokens, or cut, to n."""
    keys = {k: (t, v) for k, t, v in _core.gguf_open(str(vocab)).kv(-1) if "tokenizer." in k}
    known = set(keys["tokenizer.ggml.tokens"][1][:n])
    fill: dict[str, Callable[[list[Any]], list[Any]]] = {
        "tokens": lambda v: v[:n] + [f"[unused {i}]" for i in range(len(v), n)],
        "token_type": lambda v: v[:n] + [5] * (n - len(v)),
        "scores": lambda v: v[:n] + [0.0] * (n - len(v)),
        "merges": lambda v: [m for m in v if known >= {*m.split(" "), m.replace(" ", "")}],
    }
    for key, (type, value) in keys.items():
        change = fill.get(key.rpartition(".")[2])
        if not key.endswith("_token_id") or value < n:
            yield key, type, value if change is None else change(value)


def write(path: Path, s: Shape, seed: int, vocab: Path | None = None) -> None:
    """An F16 file (vectors F32); vocab: a GGUF whose tokenizer it gets, else it has none."""
    with GGUFWriter(path) as w:
        a = s.arch
        w.add_kv("general.architecture", "str", a)
        w.add_kv("general.name", "str", f"random {a}")
        for key, n in (("block_count", s.layers), ("embedding_length", s.embd),
                       ("context_length", s.ctx), ("feed_forward_length", s.ff),
                       ("attention.head_count", s.heads)):  # fmt: skip
            w.add_kv(f"{a}.{key}", "u32", n)
        w.add_kv(f"{a}.attention.layer_norm_rms_epsilon", "f32", 1e-5)
        w.add_kv(f"{a}.rope.freq_base", "f32", s.rope_base)
        if a == "lfm2":
            heads = [s.kv_heads if i in s.attn_layers else 0 for i in range(s.layers)]
            w.add_kv(f"{a}.attention.head_count_kv", "arr[u32]", heads)
            w.add_kv(f"{a}.shortconv.l_cache", "u32", 3)
        else:
            w.add_kv(f"{a}.attention.head_count_kv", "u32", s.kv_heads)
            w.add_kv(f"{a}.attention.key_length", "u32", s.head_dim)
            w.add_kv(f"{a}.attention.value_length", "u32", s.head_dim)
            w.add_kv(f"{a}.rope.dimension_count", "u32", s.head_dim)
        for key, type, value in tokenizer_of(vocab, s.vocab) if vocab else ():
            w.add_kv(key, type, value)
        every = list(tensors(s))
        half = {n: len(shape) == 2 and "conv.weight" not in n for n, shape, _ in every}
        for name, shape, _ in every:
            w.add_tensor(name, "f16" if half[name] else "f32", shape[::-1])
        for name, shape, dev in every:
            rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
            x = rng.standard_normal(shape, dtype=np.float32)
            x = x * np.float32(dev) if dev else 1 + x * np.float32(0.1)
            w.write(name, memoryview(x.astype(np.float16 if half[name] else np.float32)).cast("B"))


def make(name: str, out: Path, type: str = "f16", seed: int = 0) -> Path:
    """Write the shape's file in a type, if it is not there yet; NAME-f16.gguf beside it is used."""
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    if type == "f16":
        write(out, SHAPES[name], seed)
        return out
    beside = out.with_name(f"{name}-f16.gguf")
    if beside.exists():
        quantize(beside, out, type, pure=True)
        return out
    with tempfile.TemporaryDirectory(dir=out.parent) as d:
        full = Path(d) / "f16.gguf"
        write(full, SHAPES[name], seed)
        quantize(full, out, type, pure=True)
    return out


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("shape", choices=SHAPES)
    p.add_argument("out", type=Path)
    p.add_argument("--type", default="f16")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    make(a.shape, a.out, a.type, a.seed)
