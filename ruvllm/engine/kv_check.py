"""check_kv: what a store of keys and values costs a model, on a text that the model knows.

Two models are opened on one file, one with F16 keys and values and one with the store behind the
shortest tail there is, and read the same text; the positions that count are those whose attention
reads from the store.  What comes out is a verdict, which opening the model asks for from then on
(_kv_gate.py).

The idea to hold: perplexity tells something only where the model has something to lose: on a text
from its user, of the kind it was trained on, or on one that it writes itself, token by token from
its own distribution; the bundled model, and its sisters, after a task of theirs.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ruvllm import _core
from ruvllm._errors import ArgumentError, UnsupportedError
from ruvllm.engine import _kv_gate
from ruvllm.engine._params import SamplingParams, check_one_of, check_whole
from ruvllm.engine.model import Model
from ruvllm.memory.witness import model_digest

_TAIL: Final = 64
_BATCH: Final = 64
_FROM: Final = _TAIL + _BATCH - 1  # the first position that reads from the store
_WINDOW: Final = 1024  # most tokens of a text that are read in one go
_WRITTEN: Final = 512  # most tokens of a text that a model writes
_FAMILY: Final = "ruvllm-tiny-tasks"  # general.name of the bundled model and its sisters
_TEXTS: Final = 2  # that a model writes
_TASKS: Final = 24  # texts that start with one
_LOGITS: Final = 1 << 22  # most of them at a time


@dataclasses.dataclass(frozen=True, slots=True)
class KVCheck:
    """What a store of keys and values costs a model, against F16 ones.

    model, digest: its name, and "sha256:<hex>" of its file.  kv_store, kv_rotate: as of ``Model``.
    text: "given", "written, seed N" (by the model), or "written after tasks, seed N".
    n_positions: whose attention reads from the store; n_scored: tokens after them, which
    perplexity counts.  kl_mean, kl_max: KL divergence from F16 over those positions, nats.
    same_first: part of them whose most likely token is the same, 0 .. 1.  perplexity_f16,
    perplexity_store: of the scored tokens; perplexity_change: percent.  bytes_f16, bytes_store: of
    keys and values of a position; ratio: bytes_store / bytes_f16.  limit: percent; passed: whether
    the change is within it.  path: the file that remembers the verdict; None: none was asked for,
    or 8 bits need none.
    """

    model: str
    digest: str
    kv_store: str
    kv_rotate: bool
    text: str
    n_positions: int
    n_scored: int
    kl_mean: float
    kl_max: float
    same_first: float
    perplexity_f16: float
    perplexity_store: float
    perplexity_change: float
    bytes_f16: int
    bytes_store: int
    ratio: float
    limit: float
    passed: bool
    path: str | None


def check_kv(
    model: str | os.PathLike[str] | None = None,
    *,
    kv_store: Literal["q8_0", "k8v4", "q4_0"] = "q4_0",
    kv_rotate: bool = True,
    text: str | bytes | None = None,
    tokens: Sequence[int] | None = None,
    seed: int = 0,
    n_threads: int | None = None,
    remember: bool = True,
) -> KVCheck:
    """Measure what a store of keys and values costs a model, and remember the verdict.

    model: a GGUF file; None: the bundled one.  text or tokens: something that the model knows, in
    its language and of its kind, 129 tokens at least, better some thousands; it is read in pieces
    of up to 1024 tokens.  Neither: the model writes them, the bundled one after its own tasks.
    seed: 0 .. 2**64 - 1, of what is drawn then.  n_threads: as of ``Model``; never changes a
    result.  remember: keep the verdict, so that ``Model(kv_store=...)`` knows it.

    Raises ArgumentError for a text that is too short or options out of range, UnsupportedError for
    a model that does not generate or whose context ends before anything is read from a store,
    FileError when the verdict cannot be written, and what ``Model`` raises.
    """
    check_one_of("kv_store", kv_store, ("q8_0", *_kv_gate.GATED))
    check_whole("seed", seed, 0, 2**64 - 1)
    if text is not None and tokens is not None:
        raise ArgumentError("text: tokens are given too, want one of them")
    options: dict[str, Any] = {
        "n_threads": n_threads, "kv_type": "f16", "kv_tail": _TAIL, "kv_batch": _BATCH,
        "kv_gate": False, "repack": False, "share_prefix": False, "witness": False,
    }  # fmt: skip
    with (
        Model(model, **options) as plain,
        Model(model, kv_store=kv_store, kv_rotate=kv_rotate, **options) as stored,
    ):
        _check_context(plain)
        if text is not None:
            tokens = plain.tokenize(text)
        texts: Iterable[list[int]]
        if tokens is None:
            about, starts = _starts(plain, seed)
            texts = _written(plain, starts, seed)
        else:
            about, texts = "given", _given(plain, tokens)
        sums = _Sums()
        for ids in texts:
            _compare(plain, stored, ids, sums)
        return _verdict(stored, kv_rotate, about, sums, remember)


# ---- texts ----


def _check_context(model: Model) -> None:
    info = model.info
    if not info.causal:
        raise UnsupportedError(f"{model.path}: is an encoder, want a model that generates")
    if info.n_ctx < _FROM + 2:
        raise UnsupportedError(
            f"{model.path}: has a context of {info.n_ctx} tokens, want at least {_FROM + 2}: "
            "less is never read from a store"
        )


def _given(model: Model, tokens: Sequence[int]) -> list[list[int]]:
    size = min(model.n_ctx, _WINDOW)
    ids = [int(t) for t in tokens]
    pieces = [ids[i : i + size] for i in range(0, len(ids), size)]
    pieces = [p for p in pieces if len(p) >= _FROM + 2]
    if not pieces:
        raise ArgumentError(f"text: has {len(ids)} tokens, want at least {_FROM + 2}")
    return pieces


def _starts(model: Model, seed: int) -> tuple[str, list[list[int]]]:
    """Beginnings of texts, and what to call them."""
    if model.info.name.startswith(_FAMILY):
        prompts = islice(_prompts(random.Random(seed)), _TASKS)
        ids = [model.tokenize(p + "<ans>", special=True) for p in prompts]
        return f"written after tasks, seed {seed}", ids
    tokenizer = model.tokenizer
    marks = () if tokenizer is None else (tokenizer.bos, tokenizer.eos)
    first = next((t for t in marks if t is not None), 0)
    return f"written, seed {seed}", [[first]] * _TEXTS


def _written(model: Model, starts: list[list[int]], seed: int) -> Iterator[list[int]]:
    """Texts drawn from the model's own distribution, end tokens or not."""
    n = min(model.n_ctx, _WRITTEN)
    for i, start in enumerate(starts):
        draws = SamplingParams(temperature=1.0, seed=(seed + i) % 2**64)
        sampler = draws.sampler(model.info.n_vocab)
        session = _core.session_new(model._open(), n)
        ids = list(start)
        session.eval(ids, False, None)
        while len(ids) < n:
            ids.append(session.sample(sampler, len(ids), None)[0])
            session.eval(ids[-1:], False, None)
        yield ids


_WORDS: Final = (
    "amber apple basket bread candle chair cloud copper desert dragon eagle engine flower forest "
    "garden guitar hammer helmet insect island jacket jungle kettle kitten ladder lantern lemon "
    "market mirror needle noodle north orange oyster parrot pencil pilot quartz queen quiver "
    "rabbit ribbon river robot saddle silver stone sugar sunset table temple tiger tunnel umbra "
    "uncle valley violet water window yellow zebra"
)


def _prompts(rng: random.Random) -> Iterator[str]:
    """Tasks that the bundled model does well."""
    words = _WORDS.split()
    while True:
        yield "copy " + " ".join(rng.choices(words, k=rng.randint(2, 14)))
        yield "reverse " + " ".join(rng.choices(words, k=rng.randint(2, 9)))
        yield f"tools play mail | write to {rng.choice(words)} about {rng.choice(words)}"
        yield f"word {rng.randint(1, 4)} of " + " ".join(rng.sample(words, 4))


# ---- comparing ----


@dataclasses.dataclass(slots=True)
class _Sums:
    """Per position that reads from the store, and per scored token (log probabilities)."""

    kl: list[float] = dataclasses.field(default_factory=list)
    same: int = 0
    plain: list[float] = dataclasses.field(default_factory=list)
    stored: list[float] = dataclasses.field(default_factory=list)


def _log_softmax(logits: object) -> NDArray[np.float64]:
    x = np.asarray(logits).astype(np.float64)
    x -= x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return x


def _compare(plain: Model, stored: Model, ids: list[int], sums: _Sums) -> None:
    sessions = [_core.session_new(m._open(), len(ids)) for m in (plain, stored)]
    for s in sessions:
        s.eval(ids[:_FROM], False, None)
    step = max(1, min(_BATCH, _LOGITS // plain.info.n_vocab))
    for at in range(_FROM, len(ids), step):
        p, q = (_log_softmax(s.eval(ids[at : at + step], True, None)) for s in sessions)
        sums.kl += (np.exp(p) * (p - q)).sum(-1).tolist()
        sums.same += int((p.argmax(-1) == q.argmax(-1)).sum())
        following = np.array(ids[at + 1 : at + 1 + len(p)], np.int64)
        rows = np.arange(len(following))
        sums.plain += p[rows, following].tolist()
        sums.stored += q[rows, following].tolist()


def _verdict(stored: Model, rotate: bool, about: str, sums: _Sums, keep: bool) -> KVCheck:
    info, n = stored.info, len(sums.kl)
    assert info.kv_store is not None
    f16, store = (math.exp(-math.fsum(x) / len(x)) for x in (sums.plain, sums.stored))
    change = 100 * (store / f16 - 1)
    figures: dict[str, Any] = {
        "model": info.name,
        "text": about,
        "n_positions": n,
        "n_scored": len(sums.plain),
        "kl_mean": math.fsum(sums.kl) / n,
        "kl_max": max(sums.kl),
        "same_first": sums.same / n,
        "perplexity_f16": f16,
        "perplexity_store": store,
        "perplexity_change": change,
    }
    path = None
    if keep and info.kv_store in _kv_gate.GATED:
        entry = {**figures, "date": time.strftime("%Y-%m-%d")}
        path = str(_kv_gate.remember(stored.path, info.kv_store, rotate, entry))
    return KVCheck(
        **figures,
        digest=model_digest(stored.path),
        kv_store=info.kv_store,
        kv_rotate=rotate,
        bytes_f16=info.kv_bytes_per_token,
        bytes_store=info.kv_store_bytes_per_token,
        ratio=info.kv_store_bytes_per_token / info.kv_bytes_per_token,
        limit=_kv_gate.LIMIT,
        passed=change <= _kv_gate.LIMIT,
        path=path,
    )
