"""Makes a GGUF of a Hugging Face folder: `ruvllm convert DIR out.gguf`.

Owns the order of the work and the checks between its parts: `_convert_arch.py` says what the file
must hold, `_convert_weights.py` what the folder holds, `_convert_tokenizer.py` the vocabulary,
`quantize.py` turns rows into bytes.  The idea to hold: everything that can be wrong with a folder
is found by comparing the plan with the checkpoint before the first byte is written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from ruvllm._errors import ArgumentError, FormatError, NotFoundError, UnsupportedError
from ruvllm.engine._convert_arch import Config, Kv, Plan, Wanted, make_plan
from ruvllm.engine._convert_tokenizer import read_vocab
from ruvllm.engine._convert_vocab import Vocab
from ruvllm.engine._convert_weights import Checkpoint, F32Array, Stored, read_json
from ruvllm.engine._gguf_writer import DType, GGUFWriter
from ruvllm.engine._recipes import Choice, Facts, Recipe, choose_types, recipe
from ruvllm.engine.quantize import Fallback, Progress, RowPipeline, TypeTotal, file_kv

POOLING: Final = {"none": 0, "mean": 1, "cls": 2, "last": 3}  # <arch>.pooling_type
_SHOWN: Final = 4  # names listed in an error about many tensors


@dataclass(slots=True)
class ConvertResult:
    """What `convert` did.

    after: totals per tensor type of the new file.  fallbacks: tensors that became F16 because their
    rows do not fit the type's blocks.  notes: choices made where the folder does not say.
    """

    src: Path
    dst: Path
    type: str
    arch: str
    n_params: int = 0
    after: dict[str, TypeTotal] = field(default_factory=dict)
    fallbacks: list[Fallback] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dst_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Job:
    want: Wanted
    have: Stored | None  # None: the values are Plan.made
    to: DType


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    type: str = "f16",
    pure: bool = False,
    name: str | None = None,
    pooling: str | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> ConvertResult:
    """Write ``dst``, a GGUF of the Hugging Face model in the folder ``src``.

    src: holds config.json, the weights as safetensors (one file or shards with their index) and
    tokenizer.json, tokenizer.model or vocab.txt.  Architectures: LlamaForCausalLM,
    MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Lfm2ForCausalLM, BertModel.
    dst: the file to make or replace, atomically.
    type: of the matrices, one of those of `quantize`; vectors stay F32.
    pure: as in `quantize`.
    name: general.name; None: the folder's name.
    pooling: ``mean cls last none``; of an encoder, over what its pooling config says.
    n_threads: 1 .. 256; None: every CPU this process may use.  The bytes do not depend on it.
    progress: called with 0 .. 1; a return of False cancels.

    Memory: a few pieces of 4 MiB per thread; the weights are read through a map.
    Raises NotFoundError, FormatError (a missing or wrong setting, tensor or token, by name),
    UnsupportedError (architecture, setting, tokenizer, or the package safetensors missing),
    ArgumentError, FileError, CancelledError.
    """
    start = time.monotonic()
    src, dst, want = Path(src), Path(dst), recipe(type)
    if not src.is_dir():
        raise NotFoundError(f"{src}: no such folder")
    config = Config(read_json(src / "config.json"))
    weights = Checkpoint(src)
    plan = make_plan(config, set(weights.tensors))
    vocab = read_vocab(src, config, plan.arch)
    vocab.pad_to(plan.n_vocab)
    out = ConvertResult(src, dst, want.name, plan.arch)
    jobs = _match(plan, weights, want, out, pure=pure)
    with GGUFWriter(dst) as w:
        for key, kind, value in _metadata(src, plan, name, pooling, out):
            w.add_kv(key, kind, value)
        for key, kind, value in file_kv(want, [j.to for j in jobs]):
            w.add_kv(key, kind, value)
        _add_vocab(w, plan, vocab)
        total = sum(w.add_tensor(j.want.name, j.to, j.want.dims) for j in jobs)
        with RowPipeline(w, total, n_threads, progress) as pipe:
            for j in jobs:
                _write(j, plan, pipe)
    out.dst_bytes = dst.stat().st_size
    out.seconds = time.monotonic() - start
    return out


# ---------------------------------------------------------------- plan against checkpoint


def _match(
    plan: Plan, weights: Checkpoint, want: Recipe, out: ConvertResult, *, pure: bool
) -> list[_Job]:
    """A job per tensor; FormatError for tensors that are missing, left over or misshapen."""
    have: dict[str, Stored] = {}
    for spelled, stored in weights.tensors.items():
        known = plan.rename(spelled)
        if known in have:
            raise FormatError(f"tensor {spelled!r}: also there as {have[known].name!r}, want one")
        have[known] = stored
    needed = {t.source for t in plan.tensors}
    _refuse("missing", [n for n in needed if n not in have], "")
    extra = [n for n in have if n not in needed and not n.endswith(plan.ignored)]
    _refuse("left over", extra, f": {plan.arch} as config.json describes it has no such tensor")
    tensors: list[tuple[Wanted, Stored | None]] = [(t, have[t.source]) for t in plan.tensors]
    tensors += [(Wanted(n, n, a.shape, a.shape), None) for n, a in plan.made.items()]
    choices = choose_types(((t.name, t.dims) for t, _ in tensors), want, _facts(plan), pure=pure)
    return [_typed(t, stored, choices[t.name], out) for t, stored in tensors]


def _facts(plan: Plan) -> Facts:
    kv = {key.removeprefix(plan.arch + "."): value for key, _, value in plan.kv}

    def first(key: str, default: int) -> int:
        value = kv.get(key, default)
        return int(value[0] if isinstance(value, list | tuple) else value)

    n_heads = first("attention.head_count", 0)
    n_kv = first("attention.head_count_kv", n_heads)
    return Facts(plan.arch, first("block_count", 0), n_heads, n_kv)


def _refuse(what: str, names: Sequence[str], why: str) -> None:
    if names:
        shown = ", ".join(sorted(names)[:_SHOWN])
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise FormatError(f"weights: {what}: {shown}{more}{why}")


def _typed(t: Wanted, have: Stored | None, to: Choice, out: ConvertResult) -> _Job:
    if have is not None and have.shape != t.shape:
        raise FormatError(
            f"{have.file.name}: tensor {have.name!r}: found shape {list(have.shape)}, "
            f"want {list(t.shape)}"
        )
    if to.got != to.wanted:
        out.fallbacks.append(Fallback(t.name, t.dims[0], to.wanted.name, to.got.name))
    values = prod(t.dims)
    out.n_params += values
    n_bytes = to.got.row_bytes(t.dims[0]) * prod(t.dims[1:])
    out.after.setdefault(to.got.name, TypeTotal()).add(values, n_bytes)
    return _Job(t, have, to.got)


def _write(j: _Job, plan: Plan, pipe: RowPipeline) -> None:
    t, have = j.want, j.have
    order = t.order()
    if have is None or len(t.dims) == 1:  # small: one row, reordered by element
        if have is None:
            x = plan.made[t.name]
        else:
            x = have.rows(1, slice(None) if order is None else order)
        row = np.ascontiguousarray(x.reshape(1, -1))
        pipe.encode(t.name, j.to, 1, row.shape[1], lambda first, n: row)
        return
    k = t.dims[0]
    source: Stored = have

    def rows(first: int, n: int) -> F32Array:
        span = slice(first, first + n)
        return source.rows(k, span if order is None else order[span])

    pipe.encode(t.name, j.to, prod(t.dims[1:]), k, rows)


# ---------------------------------------------------------------- metadata


def _metadata(
    src: Path, plan: Plan, name: str | None, pooling: str | None, out: ConvertResult
) -> list[Kv]:
    kv: list[Kv] = [
        ("general.architecture", "str", plan.arch),
        ("general.type", "str", "model"),
        ("general.name", "str", name if name is not None else src.resolve().name),
    ]
    kv += _sampling(src)
    kv += [x for x in plan.kv if not x[0].startswith("tokenizer.")]
    if plan.arch == "bert":
        kv.append(("bert.pooling_type", "u32", _pooling(src, pooling, out)))
        kv += _sentence_length(src)
    elif pooling is not None:
        raise ArgumentError(
            f"pooling: found {pooling!r}, want None for {plan.arch}: only an encoder pools"
        )
    return kv


def _sentence_length(src: Path) -> list[Kv]:
    """Where sentence-transformers cuts a text: in tokens, those around it included."""
    path = src / "sentence_bert_config.json"
    if not path.is_file():
        return []
    c = Config(read_json(path), path.name)
    if c.get("max_seq_length") is None:
        return []
    return [("ruvllm.embed.max_tokens", "u32", c.int("max_seq_length"))]


def _add_vocab(w: GGUFWriter, plan: Plan, vocab: Vocab) -> None:
    for key, kind, value in vocab.kv():
        w.add_kv(key, kind, value)
    for key, kind, value in plan.kv:
        if key.startswith("tokenizer."):
            w.add_kv(key, kind, value)


def _sampling(src: Path) -> list[Kv]:
    """What the authors recommend for sampling, as general.sampling.*."""
    path = src / "generation_config.json"
    if not path.is_file():
        return []
    c = Config(read_json(path), path.name)
    if not c.flag("do_sample", False):
        return []
    kv: list[Kv] = []
    if c.get("temperature") is not None:
        kv.append(("general.sampling.temp", "f32", c.num("temperature")))
    if c.get("top_k") is not None:
        kv.append(("general.sampling.top_k", "i32", c.int("top_k", lo=0)))
    if c.get("top_p") is not None:
        kv.append(("general.sampling.top_p", "f32", c.num("top_p")))
    if c.get("repetition_penalty") is not None:
        kv.append(("general.sampling.penalty_repeat", "f32", c.num("repetition_penalty")))
    return kv


def _pooling(src: Path, asked: str | None, out: ConvertResult) -> int:
    """How an encoder's token vectors become one: asked, else as sentence-transformers has it."""
    if asked is not None:
        if asked not in POOLING:
            raise ArgumentError(f"pooling: found {asked!r}, want one of {' '.join(POOLING)}")
        return POOLING[asked]
    folder = _pooling_folder(src)
    if folder is None:
        out.notes.append("no pooling config: mean pooling assumed")
        return POOLING["mean"]
    path = folder / "config.json"
    c = Config(read_json(path), f"{folder.name}/config.json")
    modes = {
        k.removeprefix("pooling_mode_"): v
        for k, v in c.values.items()
        if k.startswith("pooling_mode_")
    }
    on = [k for k, v in modes.items() if v is True]
    if isinstance(c.get("pooling_mode"), str):
        on = [c.get("pooling_mode")]
    names = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}
    on = [names.get(k, k) for k in on]
    if len(on) != 1 or on[0] not in POOLING:
        raise UnsupportedError(f"{c.file}: pooling {on}, want one of mean, cls and last")
    return POOLING[on[0]]


def _pooling_folder(src: Path) -> Path | None:
    path = src / "modules.json"
    if not path.is_file():
        return src / "1_Pooling" if (src / "1_Pooling" / "config.json").is_file() else None
    try:
        modules: Any = json.loads(path.read_bytes())
    except ValueError as e:
        raise FormatError(f"{path}: not JSON: {e}") from None
    found = None
    for m in modules if isinstance(modules, list) else [modules]:
        kind = m.get("type") if isinstance(m, dict) else None
        if not isinstance(kind, str):
            raise FormatError(f"{path}: found {m!r:.80}, want a list of modules")
        last = kind.rsplit(".", 1)[-1]
        if last == "Pooling":
            found = src / str(m.get("path"))
        elif last not in ("Transformer", "Normalize"):
            raise UnsupportedError(
                f"{path}: module {last}, want Transformer, Pooling and Normalize"
            )
    if found is not None and not found.resolve().is_relative_to(src.resolve()):
        raise FormatError(f"{path}: Pooling is at {found}, want a folder inside {src}")
    return found
