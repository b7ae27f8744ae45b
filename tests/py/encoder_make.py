"""A small encoder with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ruvllm.engine._gguf_writer import GGUFWriter


def encoder(path: Path, e: int = 32, f: int = 64, vocab: int = 50) -> Path:
    """A bert of one layer."""
    shapes = {
        "token_embd.weight": (vocab, e), "position_embd.weight": (24, e),
        "token_embd_norm.weight": (e,), "token_embd_norm.bias": (e,),
    }  # fmt: skip
    for part, n_out, n_in in (
        ("attn_q", e, e), ("attn_k", e, e), ("attn_v", e, e), ("attn_output", e, e),
        ("ffn_up", f, e), ("ffn_down", e, f),
    ):  # fmt: skip
        shapes |= {f"blk.0.{part}.weight": (n_out, n_in), f"blk.0.{part}.bias": (n_out,)}
    for part in ("attn_output_norm", "layer_output_norm"):
        shapes |= {f"blk.0.{part}.weight": (e,), f"blk.0.{part}.bias": (e,)}
    rng = np.random.default_rng(0)
    with GGUFWriter(path) as w:
        w.add_kv("general.architecture", "str", "bert")
        for key, n in (("block_count", 1), ("embedding_length", e), ("context_length", 24),
                       ("feed_forward_length", f), ("attention.head_count", 2)):  # fmt: skip
            w.add_kv(f"bert.{key}", "u32", n)
        w.add_kv("bert.attention.layer_norm_epsilon", "f32", 1e-12)
        for name, shape in shapes.items():
            w.add_tensor(name, "f32", shape[::-1])
        for name, shape in shapes.items():
            w.write(name, rng.standard_normal(shape, dtype=np.float32).tobytes())
    return path
