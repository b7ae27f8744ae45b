"""Reads importance matrices: how much an error in each column of a tensor counts.

Owns the file formats and the checks against a model; what is done with the numbers is the core's.
The idea to hold: an entry is the mean square of the input that meets each column, so that the sum
of weight * error^2 over a row is the expected square error of its output.

    GGUF as llama.cpp writes it   <tensor>.in_sum2 (k, n) sums of squares, <tensor>.counts (1, n)
    .npz, or a mapping            <tensor>: float (k,) or (n, k)

n is 1, or the number of matrices in a three-dimensional tensor (experts), which then have weights
of their own.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ruvllm import _core
from ruvllm._errors import FormatError, NotFoundError

F32Array = NDArray[np.float32]
Imatrix = str | os.PathLike[str] | Mapping[str, ArrayLike]
_SHOWN = 8


def read_imatrix(source: Imatrix, dims: Mapping[str, Sequence[int]]) -> dict[str, F32Array]:
    """The weights of each tensor: float32 ``(n, k)``, finite, >= 0.

    source: a path (GGUF or .npz) or a mapping; head of this file.
    dims: of every tensor of the model.
    Raises NotFoundError, FormatError: not such a file, a tensor the model does not have, another
    number of columns, a weight that is negative or not finite; by name.
    """
    if isinstance(source, Mapping):
        where, entries = "imatrix", {k: _floats("imatrix", k, v) for k, v in source.items()}
    else:
        path = Path(source)
        if not path.is_file():
            raise NotFoundError(f"{path}: no such file")
        where = str(path)
        entries = _read_npz(path) if zipfile.is_zipfile(path) else _read_gguf(path)
    unknown = sorted(set(entries) - set(dims))
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise FormatError(
            f"{where}: has weights for {', '.join(unknown[:_SHOWN])}{more}, "
            "want names of the model's tensors"
        )
    return {name: _checked(where, name, a, dims[name]) for name, a in entries.items()}


def _floats(where: str, name: str, value: Any) -> F32Array:
    try:
        with np.errstate(over="ignore"):  # an infinity is refused with its name
            return np.asarray(value, np.float32)
    except (TypeError, ValueError) as e:
        raise FormatError(f"{where}: {name!r}: {e}") from None


def _checked(where: str, name: str, a: F32Array, dims: Sequence[int]) -> F32Array:
    n_matrices = dims[2] if len(dims) == 3 else 1
    if a.ndim == 1:
        a = a[None]
    if a.ndim != 2 or a.shape[1] != dims[0] or a.shape[0] not in (1, n_matrices):
        found = " x ".join(map(str, a.shape))
        also = f" or {n_matrices} x {dims[0]}" if n_matrices > 1 else ""
        raise FormatError(f"{where}: {name!r}: found {found} weights, want {dims[0]}{also}")
    bad = np.argwhere(~(np.isfinite(a) & (a >= 0)))
    if len(bad):
        at = tuple(bad[0])
        raise FormatError(
            f"{where}: {name!r}: found {float(a[at]):g} at column {at[1]}, "
            "want a finite number of at least 0"
        )
    return np.ascontiguousarray(a)


def _read_npz(path: Path) -> dict[str, F32Array]:
    try:
        with np.load(path, allow_pickle=False) as f:
            return {name: _floats(str(path), name, f[name]) for name in f.files}
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise FormatError(f"{path}: {e}, want arrays of numbers") from None


def _read_gguf(path: Path) -> dict[str, F32Array]:
    g = _core.gguf_open(os.fspath(path))
    sums: dict[str, F32Array] = {}
    counts: dict[str, F32Array] = {}
    for i, (name, _, kind, dims, _, _, _) in enumerate(g.tensors()):
        stem, _, role = name.rpartition(".")
        if role not in ("in_sum2", "counts") or kind != "f32":
            raise FormatError(
                f"{path}: found tensor {name!r} of type {kind}, "
                "want <tensor>.in_sum2 and <tensor>.counts of type f32"
            )
        a = np.frombuffer(g.tensor_data(i), np.float32).reshape(-1, dims[0])
        (sums if role == "in_sum2" else counts)[stem] = a
    if not sums:
        raise FormatError(f"{path}: found no tensor <tensor>.in_sum2, want an importance matrix")
    out = {}
    for stem, a in sums.items():
        n = counts.pop(stem, None)
        if n is None or n.shape != (len(a), 1):
            raise FormatError(f"{path}: {stem!r}: want {len(a)} x 1 values in {stem}.counts")
        if not (np.isfinite(n) & (n >= 0)).all():
            raise FormatError(f"{path}: {stem}.counts: want finite numbers of at least 0")
        # what was never used has no say: all columns alike
        out[stem] = np.where(n > 0, a / np.where(n > 0, n, np.float32(1)), np.float32(1))
    if counts:
        raise FormatError(f"{path}: {min(counts)!r}: has .counts, want .in_sum2 too")
    return out
