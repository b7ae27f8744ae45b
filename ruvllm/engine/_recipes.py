"""Which tensor of a file gets which type: the policy of `quantize` and `convert`.

Two kinds of recipe.  A plain one gives every matrix its type; first match wins:

    one dimension, norms, biases, position and token-type embeddings, convolution taps    F32
    attn_v.weight of an encoder (bert); a block type                                      F16
    output.weight, or token_embd.weight where it is also the head; below 8 bits
        q4_0 q4_1 q5_0 q5_1                                                               Q8_0
        q3_k q4_k q5_k                                                                    Q6_K
    everything else                                                                       its type

The exceptions are there because 4 bits in the head cost more quality than anywhere else, and
because V is where rounding to 8 bits hurts an encoder: of 251 texts embedded by all-MiniLM-L6-v2 in
Q8_0, 9 were below a cosine of 0.999 to F32 (least 0.9983), with V in F16 none (least 0.9991), for
3 % more bytes.

A mix makes the choices of llama.cpp's file type of that name (src/llama-quant.cpp, as packaged in
llama-cpp-python 0.3.36), tensor by tensor: more bits for attn_v and ffn_down of some layers, Q6_K
for the head.

`pure` drops the exceptions of both.  Rows that are not whole blocks of the type chosen get the next
type with blocks of 32 (``FALLBACK``), and F16 where those do not fit either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ruvllm._errors import UnsupportedError
from ruvllm.engine._gguf_writer import DType, dtype

PLAIN: Final = frozenset({"f32", "f16", "bf16"})
FALLBACK: Final = {
    "q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0",
    "iq4_xs": "iq4_nl",
}  # fmt: skip

_EIGHT_BITS_AND_UP: Final = PLAIN | {"q8_0"}
_KEEP_SUFFIXES: Final = (
    "_norm.weight", "shortconv.conv.weight", "ssm_conv1d.weight", "ffn_gate_inp.weight",
)  # fmt: skip
_KEEP_NAMES: Final = frozenset({"position_embd.weight", "token_types.weight"})


@dataclass(frozen=True, slots=True)
class Recipe:
    """What can be asked for.

    name: how.  base: the type of most tensors.  file_type: general.file_type, by llama.cpp's
    numbers.  mix: whether llama.cpp's choices are made (head of this file).
    """

    name: str
    base: DType
    file_type: int
    mix: bool


# name -> base type, general.file_type, mix
_RECIPES: Final = {
    "f32": ("f32", 0, False),
    "f16": ("f16", 1, False),
    "bf16": ("bf16", 32, False),
    "q8_0": ("q8_0", 7, False),
    "q4_0": ("q4_0", 2, False),
    "q4_1": ("q4_1", 3, False),
    "q5_0": ("q5_0", 8, False),
    "q5_1": ("q5_1", 9, False),
    "q3_k": ("q3_k", 11, False),
    "q4_k": ("q4_k", 14, False),
    "q5_k": ("q5_k", 16, False),
    "q2_k": ("q2_k", 10, True),
    "q2_k_s": ("q2_k", 21, True),
    "q3_k_s": ("q3_k", 11, True),
    "q3_k_m": ("q3_k", 12, True),
    "q3_k_l": ("q3_k", 13, True),
    "q4_k_s": ("q4_k", 14, True),
    "q4_k_m": ("q4_k", 15, True),
    "q5_k_s": ("q5_k", 16, True),
    "q5_k_m": ("q5_k", 17, True),
    "q6_k": ("q6_k", 18, True),
    "iq4_nl": ("iq4_nl", 25, True),
    "iq4_xs": ("iq4_xs", 30, True),
}
RECIPES: Final = tuple(_RECIPES)


def recipe(name: str) -> Recipe:
    """The recipe called ``name``, in any case; else UnsupportedError names those there are."""
    found = _RECIPES.get(name.lower())
    if found is None:
        raise UnsupportedError(f"type: found {name!r}, this build writes {' '.join(RECIPES)}")
    base, file_type, mix = found
    return Recipe(name.lower(), dtype(base), file_type, mix)


@dataclass(frozen=True, slots=True)
class Facts:
    """What of a model, besides its tensors, decides.

    arch: general.architecture.  n_layers: block_count.  n_heads, n_kv_heads: of the first layer,
    0 where it has none.  weighted: whether there is an importance matrix.
    """

    arch: str
    n_layers: int = 0
    n_heads: int = 0
    n_kv_heads: int = 0
    weighted: bool = False

    @property
    def shared(self) -> int:
        """Query heads per key head; 0 for a first layer without attention."""
        return self.n_heads // self.n_kv_heads if self.n_kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp counts the model among those of 70 billion parameters."""
        return self.n_layers == 80 and (
            self.arch == "qwen2" or (self.arch == "llama" and self.n_heads != self.n_kv_heads)
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """got: the type of a tensor.  wanted: what it would be if its rows were whole blocks of it."""

    got: DType
    wanted: DType


def kept_f32(name: str, n_dims: int) -> bool:
    """Whether a tensor stays in F32 in every file: too small to matter, too exact to round."""
    return (
        n_dims == 1
        or not name.endswith(".weight")
        or name in _KEEP_NAMES
        or name.endswith(_KEEP_SUFFIXES)
    )


def choose_types(
    tensors: Iterable[tuple[str, Sequence[int]]], want: Recipe, facts: Facts, *, pure: bool = False
) -> dict[str, Choice]:
    """The type of every tensor, by name.

    tensors: name and dims as in the file, dims[0] contiguous; all of the model, in any order.
    """
    ordered = sorted(tensors, key=lambda t: (_layer(t[0]), t[0]))
    names = {name for name, _ in ordered}
    head = "output.weight" if "output.weight" in names else "token_embd.weight"
    n_values = sum(_part(name) == "attn_v" for name in names)
    seen = {"attn_v": 0, "ffn_down": 0}
    out = {}
    for name, dims in ordered:
        part = _part(name)
        if kept_f32(name, len(dims)):
            out[name] = Choice(dtype("f32"), dtype("f32"))
            continue
        kind = want.base.name
        if pure or kind in PLAIN:
            pass
        elif not want.mix:
            kind = _plain(name, kind, facts.arch, head)
        elif name == head:
            kind = "q8_0" if dims[0] % want.base.block_values else "q6_k"
        elif part in seen or part == "attn_output":
            n = n_values if part == "attn_v" else facts.n_layers
            kind = _mixed(want.name, part, seen.get(part, 0), n, facts) or kind
        if part in seen:
            seen[part] += 1
        out[name] = _fitting(dtype(kind), dims[0])
    return out


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _part(name: str) -> str:
    """What of a layer a tensor is, as far as a mix cares."""
    if any(x in name for x in ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")):
        return "attn_v"
    if "attn_output.weight" in name:
        return "attn_output"
    return "ffn_down" if "ffn_down" in name and name.endswith(".weight") else ""


def _plain(name: str, kind: str, arch: str, head: str) -> str:
    if arch == "bert" and name.endswith(".attn_v.weight"):
        return "f16"
    if name == head and kind not in _EIGHT_BITS_AND_UP:
        return "q6_k" if kind in FALLBACK else "q8_0"
    return kind


def _fitting(want: DType, k: int) -> Choice:
    got = want
    if k % got.block_values and got.name in FALLBACK:
        got = dtype(FALLBACK[got.name])
    if k % got.block_values:
        got = dtype("f16")
    return Choice(got, want)


# ---------------------------------------------------------------- llama.cpp's mixes


def _more_bits(i: int, n: int) -> bool:
    """The first and last eighth of the layers and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _mixed(mix: str, part: str, i: int, n: int, facts: Facts) -> str | None:
    """The type that differs from the base, for the i-th tensor of its part, of n; else None."""
    if part == "attn_v":
        kind = _mixed_v(mix, i, n, facts.shared)
        if facts.is_70b and (kind or mix[:4]) in ("q3_k", "q4_k"):
            return "q5_k"  # eight query heads share the tensor: precise and small
        return kind
    if part == "ffn_down":
        return _mixed_down(mix, i, n, facts.weighted)
    return {"q2_k": "q3_k", "q3_k_m": "q4_k", "q3_k_l": "q5_k"}.get(mix)


def _mixed_v(mix: str, i: int, n: int, shared: int) -> str | None:
    more = _more_bits(i, n)
    rules = {  # mix: type, whether it applies
        "q2_k": ("q4_k" if shared >= 4 else "q3_k", True),
        "q2_k_s": ("q4_k", shared >= 4),
        "q3_k_m": ("q5_k" if i < 2 else "q4_k", True),
        "q3_k_l": ("q5_k", True),
        "q4_k_s": ("q5_k", i < 4),
        "q4_k_m": ("q6_k", more),
        "q5_k_m": ("q6_k", more),
        "iq4_nl": ("q5_k", shared >= 4),
        "iq4_xs": ("q5_k", shared >= 4),
    }
    kind, applies = rules.get(mix, ("", False))
    return kind if applies else None


def _mixed_down(mix: str, i: int, n: int, weighted: bool) -> str | None:
    more, early = _more_bits(i, n), i < n // 8
    rules = {
        "q2_k": ("q3_k", True),
        "q2_k_s": ("q4_k", early),
        "q3_k_m": ("q5_k" if i < n // 16 else "q4_k", True),
        "q3_k_l": ("q5_k", True),
        "q4_k_s": ("q5_k", early),
        "q4_k_m": ("q6_k", more),
        "q5_k_m": ("q6_k", more),
        "iq4_nl": ("q5_k", early and not weighted),
        "iq4_xs": ("q5_k", early and not weighted),
    }
    kind, applies = rules.get(mix, ("", False))
    return kind if applies else None
