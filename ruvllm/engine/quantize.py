"""Rewrites a GGUF with its matrices in another type: `ruvllm quantize`.

Owns the row pipeline that `convert.py` shares; which tensor gets which type is decided in
`_recipes.py`.  The idea to hold: a tensor is rows of values, rows are independent, so a file is
made in pieces of a few megabytes: read rows as float32, quantise them in the core on several
threads, write them in order.  Memory stays at some pieces per thread whatever the model's size.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ruvllm import _core
from ruvllm._errors import ArgumentError, CancelledError, FormatError, UnsupportedError
from ruvllm.engine._gguf_writer import DType, GGUFWriter, dtype, read_raw_kv
from ruvllm.engine._imatrix import Imatrix, read_imatrix
from ruvllm.engine._params import check_whole
from ruvllm.engine._recipes import PLAIN, Facts, Recipe, choose_types, kept_f32, recipe

F32Array = NDArray[np.float32]
Progress = Callable[[float], bool | None]

QUANTIZATION_VERSION: Final = 2  # of ggml's block formats

_UNWEIGHTED: Final = PLAIN | {"q8_0"}  # where weights make no difference
_PIECE_VALUES: Final = 1 << 20  # 4 MiB of float32: in cache-sized reach, thousands per model


class Rows(Protocol):
    """Where the values of a tensor come from, row by row."""

    def __call__(self, first: int, n: int) -> F32Array:
        """Rows ``first`` .. ``first + n - 1`` as float32 ``(n, k)``, C-contiguous."""


# ---------------------------------------------------------------- result


@dataclass(slots=True)
class TypeTotal:
    """What one tensor type adds up to in a file."""

    tensors: int = 0
    values: int = 0
    n_bytes: int = 0

    def add(self, values: int, n_bytes: int) -> None:
        """Count one tensor."""
        self.tensors += 1
        self.values += values
        self.n_bytes += n_bytes


@dataclass(frozen=True, slots=True)
class Fallback:
    """A tensor that did not get the type chosen for it because its rows are not whole blocks."""

    name: str
    row_values: int
    wanted: str
    got: str


@dataclass(slots=True)
class QuantizeResult:
    """What `quantize` did.

    before, after: totals per tensor type; bytes are of tensor data alone.
    src_bytes, dst_bytes: sizes of the files (of all parts of a split one).
    fallbacks: tensors that got another type because their rows do not fit the blocks of theirs.
    unweighted: tensors that the importance matrix says nothing about, though their type would have
    used it; empty without one.
    """

    src: Path
    dst: Path
    type: str
    before: dict[str, TypeTotal] = field(default_factory=dict)
    after: dict[str, TypeTotal] = field(default_factory=dict)
    fallbacks: list[Fallback] = field(default_factory=list)
    unweighted: list[str] = field(default_factory=list)
    src_bytes: int = 0
    dst_bytes: int = 0
    seconds: float = 0.0

    @property
    def bits_per_value(self) -> float:
        """Bits of tensor data per value of the new file."""
        n = sum(t.values for t in self.after.values())
        return 8 * sum(t.n_bytes for t in self.after.values()) / n if n else 0.0


# ---------------------------------------------------------------- row pipeline


class RowPipeline:
    """Streams float32 rows into the blocks of a GGUFWriter on several threads.

    A context manager: leaving it stops the threads.
    """

    def __init__(
        self, writer: GGUFWriter, total_bytes: int, n_threads: int | None, progress: Progress | None
    ) -> None:
        """Start the threads.

        n_threads: 1 .. 256, or None for every CPU this process may use.
        progress: called in this thread with 0 .. 1, the share of ``total_bytes`` that is done; a
        return of False stops with CancelledError.
        """
        if n_threads is None:
            n_threads = len(os.sched_getaffinity(0))
        check_whole("n_threads", n_threads, 1, 256)
        self._writer = writer
        self._total = max(1, total_bytes)
        self._done = 0
        self._progress = progress
        self._in_flight = n_threads + 1
        self._pool = ThreadPoolExecutor(n_threads, "ruvllm-quantize") if n_threads > 1 else None

    def __enter__(self) -> Self:
        """Return the pipeline."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the threads; what was not started is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def encode(
        self,
        name: str,
        to: DType,
        n_rows: int,
        k: int,
        rows: Rows,
        *,
        weights: F32Array | None = None,
    ) -> None:
        """Write tensor ``name``: ``n_rows`` rows of ``k`` values, rounded to ``to``.

        weights: float32 ``(n, k)``, of the columns of each of n equal runs of rows; None: alike.
        Raises FormatError for NaN, infinities and values the type cannot hold.
        """
        step = max(1, _PIECE_VALUES // k)
        run = n_rows // len(weights) if weights is not None else n_rows
        spans = (
            (a, min(step, first + run - a))
            for first in range(0, n_rows, max(1, run))
            for a in range(first, first + run, step)
        )

        def piece(span: tuple[int, int]) -> NDArray[np.uint8]:
            w = None if weights is None else weights[span[0] // run]
            return _encode_piece(name, to, rows(*span), span[0], w)

        for blocks in self._map(piece, spans):
            self._writer.write(name, blocks.data)
            self._tick(blocks.nbytes)

    def copy(self, name: str, data: memoryview) -> None:
        """Write tensor ``name`` from bytes that are already what the file wants."""
        step = 4 * _PIECE_VALUES
        for a in range(0, data.nbytes, step):
            piece = data[a : a + step]
            self._writer.write(name, piece)
            self._tick(piece.nbytes)

    def _map(
        self, work: Callable[[tuple[int, int]], NDArray[np.uint8]], spans: Iterator[tuple[int, int]]
    ) -> Iterator[NDArray[np.uint8]]:
        """Results in order, with a bounded number of pieces in memory."""
        if self._pool is None:
            yield from map(work, spans)
            return
        queue: deque[Future[NDArray[np.uint8]]] = deque()
        for span in spans:
            queue.append(self._pool.submit(work, span))
            if len(queue) >= self._in_flight:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()

    def _tick(self, n_bytes: int) -> None:
        self._done += n_bytes
        if self._progress is None:
            return
        if self._progress(min(1.0, self._done / self._total)) is False:
            raise CancelledError(f"{self._writer.path}: cancelled at {self._done} bytes")


def _encode_piece(
    name: str, to: DType, x: F32Array, first: int, weights: F32Array | None
) -> NDArray[np.uint8]:
    n, k = x.shape
    out = np.empty(n * to.row_bytes(k), np.uint8)
    try:
        _core.quantize(to.number, x, k, out, weights)
    except ArgumentError:  # a value it cannot hold: say which, in the tensor's own terms
        bad = np.argwhere(~np.isfinite(x))
        row, column = bad[0] if len(bad) else np.unravel_index(np.abs(x).argmax(), x.shape)
        value = float(x[row, column])
        want = f"what {to.name} can hold" if len(bad) == 0 else "finite values"
        raise FormatError(
            f"tensor {name!r}: found {value:g} at row {first + row}, column {column}, want {want}"
        ) from None
    return out


# ---------------------------------------------------------------- quantize


@dataclass(frozen=True, slots=True)
class _Job:
    index: int
    name: str
    src: DType
    dst: DType
    dims: tuple[int, ...]
    weights: F32Array | None


def quantize(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    type: str,
    *,
    imatrix: Imatrix | None = None,
    pure: bool = False,
    allow_requantize: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Write ``dst``: the model of ``src`` with its matrices in another type.

    src: a GGUF; any part of a split one stands for all, and the result is one file.
    dst: the file to make or replace, atomically; not ``src``.
    type: in any case, of the matrices ``f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1 q3_k q4_k q5_k``, or
    a mix as llama.cpp's of that name ``q2_k q2_k_s q3_k_s q3_k_m q3_k_l q4_k_s q4_k_m q5_k_s
    q5_k_m q6_k iq4_nl iq4_xs``.
    imatrix: how much an error in each column counts (mean square of its input): the path of a GGUF
    as llama.cpp's imatrix tool writes it, of an .npz, or a mapping; of tensor name to float32
    ``(n_in,)``.  Tensors it does not have are rounded without (``unweighted`` of the result).
    pure: give every matrix the same type, where the default makes exceptions (docs/convert.md).
    allow_requantize: accept matrices that are already quantised; their rounding adds up.
    n_threads: 1 .. 256; None: every CPU this process may use.  The bytes do not depend on it.
    progress: called with 0 .. 1; a return of False cancels.

    All metadata is kept but for ``general.file_type``, ``general.quantization_version``,
    ``general.alignment``, ``split.*`` and ``quantize.imatrix.*``, which describe the file.
    Raises NotFoundError, FormatError (not a GGUF; NaN or a value the type cannot hold, by tensor;
    an imatrix with a name the model does not have or another number of columns),
    UnsupportedError (type not writable; quantised source), ArgumentError, FileError,
    CancelledError.
    """
    start = time.monotonic()
    src, dst, want = Path(src), Path(dst), recipe(type)
    g = _core.gguf_open(os.fspath(src))
    if dst.exists() and dst.samefile(src):
        raise ArgumentError(f"{dst}: is the source, want another file")
    out = QuantizeResult(src, dst, want.name, src_bytes=g.file_bytes())
    weights = {}
    if imatrix is not None:
        weights = read_imatrix(imatrix, {t[0]: t[3] for t in g.tensors()})
    facts = _facts(g, weighted=imatrix is not None)
    jobs = _plan(g, want, facts, weights, out, pure=pure, allow_requantize=allow_requantize)
    with GGUFWriter(dst) as w:
        _copy_kv(src, w, want, [j.dst for j in jobs])
        if imatrix is not None:
            w.add_kv("quantize.imatrix.entries_count", "u32", len(weights))
        total = sum(w.add_tensor(j.name, j.dst, j.dims) for j in jobs)
        with RowPipeline(w, total, n_threads, progress) as pipe:
            for j in jobs:
                _convert_tensor(g, j, pipe)
    out.dst_bytes = dst.stat().st_size
    out.seconds = time.monotonic() - start
    return out


def _facts(g: _core.GGUF, *, weighted: bool) -> Facts:
    """What the metadata says; nothing of it is needed but by a mix."""
    arch = str(g.get("general.architecture"))

    def first(key: str, default: int) -> int:
        value = g.get(f"{arch}.{key}")
        if isinstance(value, list):
            value = value[0] if value else None
        return value if isinstance(value, int) else default

    n_heads = first("attention.head_count", 0)
    n_kv = first("attention.head_count_kv", n_heads)
    return Facts(arch, first("block_count", 0), n_heads, n_kv, weighted)


def _plan(
    g: _core.GGUF,
    want: Recipe,
    facts: Facts,
    weights: Mapping[str, F32Array],
    out: QuantizeResult,
    *,
    pure: bool,
    allow_requantize: bool,
) -> list[_Job]:
    tensors = g.tensors()
    choices = choose_types(((t[0], t[3]) for t in tensors), want, facts, pure=pure)
    jobs = []
    for i, (name, number, _, dims, _, n_bytes, _) in enumerate(tensors):
        have = dtype(number)
        to = choices[name].got
        if kept_f32(name, len(dims)) and have.name not in PLAIN:
            to = have  # quantised by whoever made the file: nothing to gain by unpacking it
        if to != have and have.name not in PLAIN and not allow_requantize:
            raise UnsupportedError(
                f"tensor {name!r}: is {have.name} already, want f32, f16 or bf16 "
                "(allow_requantize=True accepts the added error)"
            )
        if to != choices[name].wanted and to == choices[name].got:
            out.fallbacks.append(Fallback(name, dims[0], choices[name].wanted.name, to.name))
        w = weights.get(name)
        if facts.weighted and w is None and to != have and to.name not in _UNWEIGHTED:
            out.unweighted.append(name)
        jobs.append(_Job(i, name, have, to, tuple(dims), w))
        values = prod(dims)
        out.before.setdefault(have.name, TypeTotal()).add(values, n_bytes)
        new_bytes = to.row_bytes(dims[0]) * prod(dims[1:])
        out.after.setdefault(to.name, TypeTotal()).add(values, new_bytes)
    return jobs


def file_kv(want: Recipe, types: Sequence[DType]) -> list[tuple[str, str, int]]:
    """The metadata that says what a file of type ``want`` holding ``types`` is."""
    kv = [("general.file_type", "u32", want.file_type)]
    if any(t.name not in PLAIN for t in types):
        kv.append(("general.quantization_version", "u32", QUANTIZATION_VERSION))
    return kv


def _first_part(path: Path) -> Path:
    """The part of a split model that has the metadata; the path itself of any other."""
    return path.with_name(re.sub(r"-\d{5}-of-(\d{5})\.gguf$", r"-00001-of-\1.gguf", path.name))


def _copy_kv(src: Path, w: GGUFWriter, want: Recipe, types: Sequence[DType]) -> None:
    ours = file_kv(want, types)
    drop = {"general.file_type", "general.quantization_version", "general.alignment"}
    for key, packed in read_raw_kv(_first_part(src)):
        if key not in drop and not key.startswith(("split.", "quantize.imatrix.")):
            w.add_raw_kv(key, packed)
    for key, kind, value in ours:
        w.add_kv(key, kind, value)


def _convert_tensor(g: _core.GGUF, j: _Job, pipe: RowPipeline) -> None:
    data = g.tensor_data(j.index)
    if j.src == j.dst:
        pipe.copy(j.name, data)
        return
    k, n_rows = j.dims[0], prod(j.dims[1:])
    row_bytes = j.src.row_bytes(k)

    def rows(first: int, n: int) -> F32Array:
        raw = data[first * row_bytes : (first + n) * row_bytes]
        if j.src.name == "f32":
            return np.frombuffer(raw, np.float32).reshape(n, k)
        x = np.empty((n, k), np.float32)
        _core.dequantize(j.src.number, raw, n * k, x)
        return x

    pipe.encode(j.name, j.dst, n_rows, k, rows, weights=j.weights)
