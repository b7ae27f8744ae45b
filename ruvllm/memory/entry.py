"""WitnessEntry: one request as the log keeps it, and its two other shapes, row and JSON.

The columns and what they mean are described in docs/store.md.  JSON columns are Python values here;
blobs are numpy arrays (embeddings, float32) and tuples of ints (token ids, int32).  An entry that
is read back has tuples where sequences may be given.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvllm._errors import ArgumentError

_JSON = frozenset(
    ("routing", "quality_metrics", "context_doc_ids", "error", "tags", "params", "engine")
)
_EMBEDDINGS = frozenset(("query_embedding", "response_embedding"))
_IDS = frozenset(("prompt_ids", "output_ids"))
_READ_ONLY = frozenset(("seq", "prev_hash", "hash", "legal_hold"))
_TUPLES = frozenset(("context_doc_ids", "tags"))


@dataclass(frozen=True, eq=False, kw_only=True)
class WitnessEntry:
    """One entry of the witness log.  ``None`` means not known or not applicable.

    kind: "generate", "chat" or "embed".  id: a UUID in lower case; the log makes one when it is
    ``None``.  ts_ms: UTC milliseconds; ``None``: the time of ``record``.
    model_used: the size class the router chose (350M, 700M, 1.2B, 2.6B).  model_digest:
    "sha256:<hex>" of the file; the log computes it from model_path when it is ``None``.
    routing: {model, context_size, temperature, top_p, confidence, model_probs, propensity,
    policy_version}.  propensity: probability with which the choice was made, 0 .. 1.
    query_embedding, response_embedding: float32 ``(d,)``.  quality_score: 0 .. 1.
    ``*_ms``: milliseconds.  prompt_ids, output_ids: token ids.  seed: 0 .. 2^64 - 1.
    params: every sampling parameter, enough to run the request again.  engine: version, kernels,
    n_threads, n_batch, n_ctx, kv_type, numerics (of a store also kv_store, kv_rotate, kv_tail,
    kv_batch).  error: {code, message, stack_trace, recovery_attempted}.
    seq, prev_hash, hash and legal_hold are set by the log alone.
    """

    kind: str = "generate"
    id: str | None = None
    request_id: str | None = None
    session_id: str | None = None
    ts_ms: int | None = None
    model_used: str | None = None
    model_name: str | None = None
    model_digest: str | None = None
    model_path: str | None = None
    adapter: str | None = None
    routing: Mapping[str, Any] | None = None
    propensity: float | None = None
    policy_version: str | None = None
    query_embedding: NDArray[np.float32] | None = None
    response_embedding: NDArray[np.float32] | None = None
    quality_score: float | None = None
    quality_metrics: Mapping[str, Any] | None = None
    embedding_ms: float | None = None
    retrieval_ms: float | None = None
    routing_ms: float | None = None
    attention_ms: float | None = None
    generation_ms: float | None = None
    total_ms: float | None = None
    prefill_ms: float | None = None
    queue_ms: float | None = None
    context_doc_ids: Sequence[str] | None = None
    error: Mapping[str, Any] | None = None
    tags: Sequence[str] | None = None
    prompt_text: str | None = None
    prompt_ids: Sequence[int] | None = None
    output_text: str | None = None
    output_ids: Sequence[int] | None = None
    seed: int | None = None
    params: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    n_prompt: int | None = None
    n_output: int | None = None
    engine: Mapping[str, Any] | None = None
    user_id: str | None = None
    seq: int | None = None
    prev_hash: bytes | None = None
    hash: bytes | None = None
    legal_hold: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values that JSON can hold: arrays as lists, hashes as hex."""
        out: dict[str, Any] = {}
        for name in _NAMES:
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                value = value.tolist()
            elif isinstance(value, bytes):
                value = value.hex()
            elif isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, Mapping):
                value = dict(value)
            out[name] = value
        return out

    def to_json(self, *, indent: int | None = None) -> str:
        """``to_dict`` as JSON; numbers that are not finite become the strings "NaN", "Infinity"."""
        return _dump(self.to_dict(), indent)

    def to_row(self) -> dict[str, Any]:
        """The columns that are not null, as ``_core.Store.witness_put`` takes them.

        Raises ArgumentError when a field cannot be stored; the message names it.
        """
        values = self.__dict__
        row: dict[str, Any] = {}
        for name, convert in _COLUMNS:
            value = values[name]
            if value is not None:
                row[name] = convert(name, value)
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> WitnessEntry:
        """The entry of a row of the store; columns this version does not know are left out."""
        values: dict[str, Any] = {}
        for name, value in row.items():
            if name not in _KNOWN:
                continue
            if value is None:
                values[name] = None
            elif name in _JSON:
                parsed = json.loads(value)
                as_tuple = name in _TUPLES and isinstance(parsed, list)
                values[name] = tuple(parsed) if as_tuple else parsed
            elif name in _IDS:
                values[name] = tuple(np.frombuffer(value, "<i4").tolist())
            elif name in _EMBEDDINGS:
                values[name] = np.frombuffer(value, "<f4").astype(np.float32, copy=False)
            elif name == "seed":
                values[name] = value & (2**64 - 1)  # the column holds the int64 of the same bits
            elif name == "legal_hold":
                values[name] = bool(value)
            else:
                values[name] = value
        return cls(**values)

    def __eq__(self, other: object) -> bool:
        """Equal in every field (arrays value by value)."""
        if not isinstance(other, WitnessEntry):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # it may hold arrays


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _plain(value: Any) -> Any:
    """What json cannot write by itself."""
    if isinstance(value, np.generic | np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


_encode = json.JSONEncoder(allow_nan=False, default=_plain).encode


def _dump(value: Any, indent: int | None = None) -> str:
    try:
        if indent is None:
            return _encode(value)
        return json.dumps(value, allow_nan=False, default=_plain, indent=indent)
    except ValueError:  # JSON has no word for them, and the table takes nothing but JSON
        return json.dumps(_finite(value), allow_nan=False, default=_plain, indent=indent)


# ---- one value of an entry to one value of a row ----


def _json_column(name: str, value: Any) -> str:
    try:
        return _dump(value)
    except (TypeError, ValueError, RecursionError) as e:
        raise ArgumentError(f"witness: {name}: {e}") from e


def _ids_column(name: str, value: Any) -> bytes:
    try:
        if isinstance(value, tuple | list):  # the usual case, and five times as fast as numpy
            return struct.pack(f"<{len(value)}i", *value)
        array = _vector(value)
        if array.dtype.kind not in "iu":
            raise ValueError(f"{array.dtype}, want integers")
        if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
            raise ValueError("an id beyond 32 bits")
        return array.astype("<i4").tobytes()
    except (TypeError, ValueError, OverflowError, struct.error) as e:
        raise ArgumentError(f"witness: {name}: {e}") from e


def _embedding_column(name: str, value: Any) -> bytes:
    try:
        return _vector(value).astype("<f4").tobytes()
    except (TypeError, ValueError, OverflowError) as e:
        raise ArgumentError(f"witness: {name}: {e}") from e


def _vector(value: Any) -> NDArray[Any]:
    array = np.asarray(value)
    if array.ndim != 1:
        raise ValueError(f"{array.ndim} dimensions, want 1")
    return array


def _plain_column(name: str, value: Any) -> Any:
    """Numbers and text; a lone surrogate, which UTF-8 cannot hold, is written as ``\\udcxx``."""
    if isinstance(value, str) and not value.isascii():
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, np.generic):
        return value.item()
    return value


def _column(name: str) -> Callable[[str, Any], Any]:
    if name in _JSON:
        return _json_column
    if name in _IDS:
        return _ids_column
    return _embedding_column if name in _EMBEDDINGS else _plain_column


_NAMES = tuple(f.name for f in fields(WitnessEntry))
_KNOWN = frozenset(_NAMES)
_COLUMNS = tuple((name, _column(name)) for name in _NAMES if name not in _READ_ONLY)
