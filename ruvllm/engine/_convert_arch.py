"""What each Hugging Face architecture becomes in a GGUF: metadata keys, tensor names, shapes.

Owns the meaning of `config.json` and the two vocabularies of tensor names; reads no weights.  The
idea to hold: an architecture is a function from its config to a `Plan`, which names every tensor
with the shape it must have.  A checkpoint is then compared with the plan as a whole, so a missing,
left-over or misshapen tensor is found before a byte is written.

Facts that are easy to get wrong:
- Hugging Face rotates the two halves of a head, the llama GGUF rotates adjacent pairs: the rows of
  Q and K are reordered for llama and mistral, and for nothing else.
- lfm2's feed-forward size in the config is the size before the usual 2/3 and rounding.
- A tied head is left out of the file, not stored twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ruvllm._errors import FormatError, UnsupportedError

_MISSING: Final = object()
Kv = tuple[str, str, Any]


class Config:
    """A JSON object whose values are taken by type; FormatError names file, key, value, wish."""

    def __init__(self, values: dict[str, Any], file: str = "config.json") -> None:
        self.values = values
        self.file = file

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it stands; JSON null counts as absent."""
        v = self.values.get(key)
        return default if v is None else v

    def _wrong(self, key: str, want: str) -> FormatError:
        found = self.values.get(key)
        said = "is missing" if found is None else f"found {found!r:.60}"
        return FormatError(f"{self.file}: {key}: {said}, want {want}")

    def int(self, key: str, default: Any = _MISSING, lo: int = 1) -> int:
        """An integer of at least ``lo`` and below 2^31."""
        v = self.get(key, default)
        if isinstance(v, bool) or not isinstance(v, int) or not lo <= v < 1 << 31:
            raise self._wrong(key, f"an integer, {lo} or more")
        return v

    def num(self, key: str, default: Any = _MISSING) -> float:
        """A finite number above 0."""
        v = self.get(key, default)
        if isinstance(v, bool) or not isinstance(v, int | float) or not 0 < v < math.inf:
            raise self._wrong(key, "a number above 0")
        return float(v)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        v = self.get(key, default)
        if not isinstance(v, bool):
            raise self._wrong(key, "true or false")
        return v

    def map(self, key: str) -> Config:
        """A nested object; empty when absent."""
        v = self.get(key, {})
        if not isinstance(v, dict):
            raise self._wrong(key, "an object")
        return Config(v, f"{self.file}: {key}")

    def only(self, key: str, default: Any, *allowed: Any) -> None:
        """Refuse a setting that this build would compute wrongly."""
        v = self.get(key, default)
        if v not in allowed:
            want = " or ".join(repr(a) for a in allowed)
            raise UnsupportedError(f"{self.file}: {key}: found {v!r:.60}, want {want}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One tensor of the new file and where it comes from.

    shape: as Hugging Face stores it, rows first.  dims: as the GGUF says it, contiguous first.
    heads: above 0, rows are reordered within each of that many heads (adjacent-pair RoPE).
    """

    name: str
    source: str
    shape: tuple[int, ...]
    dims: tuple[int, ...]
    heads: int = 0

    def order(self) -> NDArray[np.intp] | None:
        """Source row of each row, or None when they are the same."""
        if not self.heads:
            return None
        half = self.shape[0] // self.heads // 2
        rows = np.arange(self.shape[0]).reshape(self.heads, 2, half)
        return rows.swapaxes(1, 2).reshape(-1)


@dataclass(slots=True)
class Plan:
    """Everything about the new file but its vocabulary and its weights."""

    arch: str
    n_vocab: int
    kv: list[Kv] = field(default_factory=list)
    tensors: list[Wanted] = field(default_factory=list)
    made: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # not in the checkpoint
    ignored: tuple[str, ...] = ()  # names, or their ends, that carry no weights we need
    rename: Callable[[str], str] = str  # spelling of the checkpoint -> Wanted.source

    def key(self, key: str, kind: str, value: Any) -> None:
        """Add ``<arch>.<key>``."""
        self.kv.append((f"{self.arch}.{key}", kind, value))

    def matrix(self, name: str, source: str, n_out: int, n_in: int, heads: int = 0) -> None:
        """Add ``<name>.weight`` from ``<source>.weight``."""
        w = Wanted(f"{name}.weight", f"{source}.weight", (n_out, n_in), (n_in, n_out), heads)
        self.tensors.append(w)

    def vector(self, name: str, source: str, n: int, heads: int = 0) -> None:
        """Add a 1-D tensor; the names are complete."""
        self.tensors.append(Wanted(name, source, (n,), (n,), heads))


def make_plan(config: Config, names: set[str]) -> Plan:
    """The plan of a checkpoint: its config and the names of its tensors.

    Raises UnsupportedError for an architecture or setting this build cannot run, FormatError for
    a missing or senseless setting.
    """
    found = config.get("architectures")
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
        raise FormatError(
            f"config.json: architectures: found {found!r:.60}, want a list of one name"
        )
    make = ARCHITECTURES.get(found[0])
    if make is None:
        known = " ".join(ARCHITECTURES)
        raise UnsupportedError(f"config.json: architecture {found[0]!r}, want one of {known}")
    if config.get("quantization_config") is not None:
        raise UnsupportedError(
            "config.json: quantization_config: the checkpoint is quantised "
            "already, want its f32, f16 or bf16 original"
        )
    return make(config, names)


# ---------------------------------------------------------------- pieces


def _heads(c: Config, default_head_dim: int | None = None) -> tuple[int, int, int]:
    n_head = c.int("num_attention_heads")
    n_kv = c.int("num_key_value_heads", n_head)
    if n_head % n_kv:
        raise FormatError(
            f"{c.file}: num_attention_heads: found {n_head}, "
            f"want a multiple of num_key_value_heads ({n_kv})"
        )
    n_embd = c.int("hidden_size")
    if c.get("head_dim") is None and default_head_dim is None and n_embd % n_head:
        raise FormatError(
            f"{c.file}: hidden_size: found {n_embd}, want a multiple of {n_head} heads"
        )
    head_dim = c.int("head_dim", default_head_dim or n_embd // n_head)
    if head_dim % 2:
        raise FormatError(f"{c.file}: head_dim: found {head_dim}, want an even number")
    return n_head, n_kv, head_dim


def _tied(c: Config, names: set[str], default: bool | None = None) -> bool:
    said = c.get("tie_word_embeddings", c.get("tie_embedding", default))
    return "lm_head.weight" not in names if said is None else bool(said)


def _common_keys(p: Plan, c: Config, n_ff: int) -> None:
    p.key("context_length", "u32", c.int("max_position_embeddings"))
    p.key("embedding_length", "u32", c.int("hidden_size"))
    p.key("block_count", "u32", c.int("num_hidden_layers"))
    p.key("feed_forward_length", "u32", n_ff)
    p.key("attention.head_count", "u32", c.int("num_attention_heads"))
    p.key("vocab_size", "u32", p.n_vocab)


def _rope_keys(p: Plan, c: Config, head_dim: int, default_base: float) -> None:
    """RoPE's base and scaling, from the old layout (rope_theta, rope_scaling) or the new one."""
    rope = c.map("rope_parameters")
    if not rope.values:
        rope = c.map("rope_scaling")
    if "full_attention" in rope.values or "sliding_attention" in rope.values:
        raise UnsupportedError(f"{rope.file}: one RoPE per kind of layer, want the same for all")
    for where in (c, rope):
        where.only("partial_rotary_factor", 1.0, 1.0)
    base = rope.num("rope_theta", c.num("rope_theta", default_base))
    p.key("rope.dimension_count", "u32", head_dim)
    p.key("rope.freq_base", "f32", base)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return
    if kind not in ("linear", "yarn", "llama3"):
        raise UnsupportedError(
            f"{rope.file}: rope_type {kind!r}, want default, linear, yarn or llama3"
        )
    factor = rope.num("factor")
    if kind == "llama3":
        p.made["rope_freqs.weight"] = _llama3_factors(rope, c, base, head_dim, factor)
        return
    p.key("rope.scaling.type", "str", kind)
    p.key("rope.scaling.factor", "f32", factor)
    if kind == "yarn":
        _yarn_keys(p, c, rope, factor)


def _original_context(rope: Config, c: Config) -> int:
    outer = c.int("original_max_position_embeddings", c.int("max_position_embeddings"))
    return rope.int("original_max_position_embeddings", outer)


def _yarn_keys(p: Plan, c: Config, rope: Config, factor: float) -> None:
    for key in ("mscale", "mscale_all_dim"):
        rope.only(key, None, None)
    rope.only("truncate", True, True)
    p.key("rope.scaling.original_context_length", "u32", _original_context(rope, c))
    for key in ("beta_fast", "beta_slow"):
        if rope.get(key) is not None:
            p.key(f"rope.scaling.yarn_{key}", "f32", rope.num(key))
    # A GGUF states the attention factor relative to the one that follows from the scaling factor.
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    attention = rope.num("attention_factor", usual)
    if abs(attention / usual - 1) > 1e-6:
        p.key("rope.scaling.attn_factor", "f32", attention / usual)


def _llama3_factors(
    rope: Config, c: Config, base: float, head_dim: int, factor: float
) -> NDArray[np.float32]:
    """Divisors of the RoPE frequencies: 1 for short waves, ``factor`` for long, between blended.

    The rule of Llama 3.1: waves up to context/high turn unchanged, waves from context/low on are
    slowed by ``factor``, and between the two the reciprocals are mixed linearly in context/wave.
    """
    low, high = rope.num("low_freq_factor"), rope.num("high_freq_factor")
    if low >= high:
        raise FormatError(f"{rope.file}: low_freq_factor: found {low}, want less than {high}")
    context = _original_context(rope, c)
    wave = 2 * math.pi * base ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    mix = np.clip((context / wave - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - mix) / factor + mix)).astype(np.float32)


def _mlp(p: Plan, blk: str, hf: str, n_embd: int, n_ff: int) -> None:
    for ours, theirs, n_out, n_in in (
        ("ffn_gate", "gate_proj", n_ff, n_embd),
        ("ffn_up", "up_proj", n_ff, n_embd),
        ("ffn_down", "down_proj", n_embd, n_ff),
    ):
        p.matrix(f"{blk}.{ours}", f"{hf}.mlp.{theirs}", n_out, n_in)


# ---------------------------------------------------------------- architectures


@dataclass(frozen=True, slots=True)
class _Decoder:
    """What sets llama, mistral, qwen2 and qwen3 apart."""

    arch: str
    adjacent_pairs: bool = False  # the GGUF's RoPE pairing; else halves, as Hugging Face has it
    qkv_bias: bool = False  # always there
    qk_norm: bool = False
    head_dim: int | None = None  # when the config does not say; None: embedding / heads
    window: bool = False  # sliding_window applies to every layer

    def __call__(self, c: Config, names: set[str]) -> Plan:
        """The plan of one checkpoint."""
        c.only("hidden_act", "silu", "silu")
        c.only("mlp_bias", False, False)
        n_embd, n_ff = c.int("hidden_size"), c.int("intermediate_size")
        n_head, n_kv, d = _heads(c, self.head_dim)
        p = Plan(self.arch, c.int("vocab_size"))
        _common_keys(p, c, n_ff)
        p.key("attention.head_count_kv", "u32", n_kv)
        p.key("attention.key_length", "u32", d)
        p.key("attention.value_length", "u32", d)
        p.key("attention.layer_norm_rms_epsilon", "f32", c.num("rms_norm_eps"))
        _rope_keys(p, c, d, 10000.0)
        self._window(p, c)
        tied = _tied(c, names)
        p.ignored = (".rotary_emb.inv_freq", *(("lm_head.weight",) if tied else ()))
        p.matrix("token_embd", "model.embed_tokens", p.n_vocab, n_embd)
        if not tied:
            p.matrix("output", "lm_head", p.n_vocab, n_embd)
        p.vector("output_norm.weight", "model.norm.weight", n_embd)
        for i in range(c.int("num_hidden_layers")):
            self._layer(p, c, i, (n_head, n_kv, d))
        return p

    def _layer(self, p: Plan, c: Config, i: int, heads: tuple[int, int, int]) -> None:
        blk, hf, n_embd = f"blk.{i}", f"model.layers.{i}", c.int("hidden_size")
        n_head, n_kv, d = heads
        p.vector(f"{blk}.attn_norm.weight", f"{hf}.input_layernorm.weight", n_embd)
        bias = c.flag("attention_bias", False)
        for x, n in (("q", n_head), ("k", n_kv), ("v", n_kv)):
            turned = n if self.adjacent_pairs and x != "v" else 0
            p.matrix(f"{blk}.attn_{x}", f"{hf}.self_attn.{x}_proj", n * d, n_embd, turned)
            if bias or self.qkv_bias:
                p.vector(f"{blk}.attn_{x}.bias", f"{hf}.self_attn.{x}_proj.bias", n * d, turned)
        p.matrix(f"{blk}.attn_output", f"{hf}.self_attn.o_proj", n_embd, n_head * d)
        if bias:
            p.vector(f"{blk}.attn_output.bias", f"{hf}.self_attn.o_proj.bias", n_embd)
        if self.qk_norm:
            for x in "qk":
                p.vector(f"{blk}.attn_{x}_norm.weight", f"{hf}.self_attn.{x}_norm.weight", d)
        p.vector(f"{blk}.ffn_norm.weight", f"{hf}.post_attention_layernorm.weight", n_embd)
        _mlp(p, blk, hf, n_embd, c.int("intermediate_size"))

    def _window(self, p: Plan, c: Config) -> None:
        if self.window:
            if c.get("sliding_window") is not None:
                p.key("attention.sliding_window", "u32", c.int("sliding_window"))
            return
        if not c.flag("use_sliding_window", False):
            return
        reached = c.int("sliding_window", 1 << 30) < c.int("max_position_embeddings")
        if reached and c.int("max_window_layers", 0, lo=0) < c.int("num_hidden_layers"):
            raise UnsupportedError(
                f"{c.file}: use_sliding_window: found true with a window inside "
                f"the context, want false for {self.arch}"
            )


def _lfm2(c: Config, names: set[str]) -> Plan:
    for key in ("conv_bias", "block_conv_bias"):
        c.only(key, False, False)
    n_embd, n_layer = c.int("hidden_size"), c.int("num_hidden_layers")
    n_head, n_kv, d = _heads(c)
    n_ff, taps = _lfm2_ff(c), c.int("conv_L_cache", lo=2)
    attends = _lfm2_attention_layers(c, n_layer)
    p = Plan("lfm2", c.int("vocab_size"))
    _common_keys(p, c, n_ff)
    p.key("attention.head_count_kv", "arr[i32]", [n_kv if a else 0 for a in attends])
    p.key("attention.key_length", "u32", d)
    p.key("attention.value_length", "u32", d)
    p.key("attention.layer_norm_rms_epsilon", "f32", c.num("norm_eps"))
    p.key("shortconv.l_cache", "u32", taps)
    _rope_keys(p, c, d, 1e6)
    tied = _tied(c, names, True)
    p.ignored = (
        ".rotary_emb.inv_freq",
        ".pos_emb.inv_freq",
        *(("lm_head.weight",) if tied else ()),
    )
    p.matrix("token_embd", "model.embed_tokens", p.n_vocab, n_embd)
    if not tied:
        p.matrix("output", "lm_head", p.n_vocab, n_embd)
    p.vector("token_embd_norm.weight", "model.embedding_norm.weight", n_embd)
    for i, attention in enumerate(attends):
        blk, hf = f"blk.{i}", f"model.layers.{i}"
        p.vector(f"{blk}.attn_norm.weight", f"{hf}.operator_norm.weight", n_embd)
        if attention:
            for x, n in (("q", n_head), ("k", n_kv), ("v", n_kv)):
                p.matrix(f"{blk}.attn_{x}", f"{hf}.self_attn.{x}_proj", n * d, n_embd)
            p.matrix(f"{blk}.attn_output", f"{hf}.self_attn.out_proj", n_embd, n_head * d)
            for x in "qk":
                p.vector(f"{blk}.attn_{x}_norm.weight", f"{hf}.self_attn.{x}_layernorm.weight", d)
        else:
            p.matrix(f"{blk}.shortconv.in_proj", f"{hf}.conv.in_proj", 3 * n_embd, n_embd)
            p.tensors.append(
                Wanted(
                    f"{blk}.shortconv.conv.weight",
                    f"{hf}.conv.conv.weight",
                    (n_embd, 1, taps),
                    (taps, n_embd),
                )
            )
            p.matrix(f"{blk}.shortconv.out_proj", f"{hf}.conv.out_proj", n_embd, n_embd)
        p.vector(f"{blk}.ffn_norm.weight", f"{hf}.ffn_norm.weight", n_embd)
        p.matrix(f"{blk}.ffn_gate", f"{hf}.feed_forward.w1", n_ff, n_embd)
        p.matrix(f"{blk}.ffn_up", f"{hf}.feed_forward.w3", n_ff, n_embd)
        p.matrix(f"{blk}.ffn_down", f"{hf}.feed_forward.w2", n_embd, n_ff)
    return p


def _lfm2_ff(c: Config) -> int:
    size = c.int("block_ff_dim", c.get("intermediate_size"))
    if not c.flag("block_auto_adjust_ff_dim", True):
        return size
    size = int(c.num("block_ffn_dim_multiplier", 1.0) * int(2 * size / 3))
    unit = c.int("block_multiple_of", 256)
    return -(-size // unit) * unit


def _lfm2_attention_layers(c: Config, n_layer: int) -> list[bool]:
    kinds = c.get("layer_types")
    if kinds is None:  # the older spelling lists the attention layers; none listed means all
        listed = c.get("full_attn_idxs", list(range(n_layer)))
        if not isinstance(listed, list):
            raise FormatError(f"{c.file}: full_attn_idxs: found {listed!r:.60}, want a list")
        kinds = ["full_attention" if i in listed else "conv" for i in range(n_layer)]
    if not isinstance(kinds, list) or len(kinds) != n_layer:
        raise FormatError(f"{c.file}: layer_types: found {kinds!r:.60}, want {n_layer} names")
    for kind in kinds:
        if kind not in ("full_attention", "conv"):
            raise UnsupportedError(
                f"{c.file}: layer_types: found {kind!r:.60}, want 'full_attention' or 'conv'"
            )
    return [kind == "full_attention" for kind in kinds]


def _bert_name(name: str) -> str:
    """The spelling of BertModel for any of its heads, and of today for the oldest checkpoints."""
    name = name.removeprefix("bert.")
    if name.endswith("LayerNorm.gamma"):
        return name[: -len("gamma")] + "weight"
    if name.endswith("LayerNorm.beta"):
        return name[: -len("beta")] + "bias"
    return name


def _bert(c: Config, names: set[str]) -> Plan:
    del names
    c.only("hidden_act", "gelu", "gelu")
    c.only("position_embedding_type", "absolute", "absolute")
    c.only("is_decoder", False, False)
    n_embd, n_ff, n_head = c.int("hidden_size"), c.int("intermediate_size"), _heads(c)[0]
    p = Plan("bert", c.int("vocab_size"), rename=_bert_name)
    p.ignored = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
    _common_keys(p, c, n_ff)
    p.key("attention.layer_norm_epsilon", "f32", c.num("layer_norm_eps"))
    p.key("attention.causal", "bool", False)
    n_types = c.int("type_vocab_size")
    p.kv.append(("tokenizer.ggml.token_type_count", "u32", n_types))
    p.matrix("token_embd", "embeddings.word_embeddings", p.n_vocab, n_embd)
    p.matrix("token_types", "embeddings.token_type_embeddings", n_types, n_embd)
    n_ctx = c.int("max_position_embeddings")
    p.matrix("position_embd", "embeddings.position_embeddings", n_ctx, n_embd)

    def both(name: str, source: str, n: int) -> None:
        p.vector(f"{name}.weight", f"{source}.weight", n)
        p.vector(f"{name}.bias", f"{source}.bias", n)

    both("token_embd_norm", "embeddings.LayerNorm", n_embd)
    for i in range(c.int("num_hidden_layers")):
        blk, hf = f"blk.{i}", f"encoder.layer.{i}"
        for ours, theirs, n_out, n_in in (
            ("attn_q", "attention.self.query", n_embd, n_embd),
            ("attn_k", "attention.self.key", n_embd, n_embd),
            ("attn_v", "attention.self.value", n_embd, n_embd),
            ("attn_output", "attention.output.dense", n_embd, n_embd),
            ("ffn_up", "intermediate.dense", n_ff, n_embd),
            ("ffn_down", "output.dense", n_embd, n_ff),
        ):
            p.matrix(f"{blk}.{ours}", f"{hf}.{theirs}", n_out, n_in)
            p.vector(f"{blk}.{ours}.bias", f"{hf}.{theirs}.bias", n_out)
        both(f"{blk}.attn_output_norm", f"{hf}.attention.output.LayerNorm", n_embd)
        both(f"{blk}.layer_output_norm", f"{hf}.output.LayerNorm", n_embd)
    assert n_head
    return p


ARCHITECTURES: Final[dict[str, Callable[[Config, set[str]], Plan]]] = {
    "LlamaForCausalLM": _Decoder("llama", adjacent_pairs=True),
    "MistralForCausalLM": _Decoder("llama", adjacent_pairs=True, window=True),
    "Qwen2ForCausalLM": _Decoder("qwen2", qkv_bias=True),
    "Qwen3ForCausalLM": _Decoder("qwen3", qk_norm=True, head_dim=128),
    "Lfm2ForCausalLM": _lfm2,
    "BertModel": _bert,
}
