"""Reads the weights of a Hugging Face folder: safetensors, whole or in shards, without torch.

Owns finding the files and turning a range of rows into float32.  The idea to hold: the package
`safetensors` checks a file and says each tensor's type, shape and place in it; the bytes are then
read through our own read-only map, because NumPy has no bfloat16 and the package's NumPy side
cannot give one.  A tensor of any size costs no memory until its rows are asked for.

The place: the format has no holes, so in file order each tensor starts where the one before it
ends, the first one after the header (a u64 length and that many bytes).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ruvllm._errors import FormatError, NotFoundError, UnsupportedError

F32Array = NDArray[np.float32]

_ITEM: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_SIZES: Final = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64},
    **{"I64": 64, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}  # bits per value


def _safe_open(path: Path) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise UnsupportedError(
            "reading safetensors needs the package safetensors: pip install ruvllm[convert]"
        ) from None
    try:
        f = safe_open(path, framework="np")
    except (SafetensorError, OSError) as e:
        raise FormatError(f"{path}: not a safetensors file: {e}") from None
    if not hasattr(f, "offset_keys"):
        raise UnsupportedError(
            "the package safetensors is too old, want 0.6 or newer: pip install -U ruvllm[convert]"
        )
    return f


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a checkpoint: safetensors' type name, shape, and its bytes, mapped."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    _bytes: NDArray[np.uint8]

    def rows(self, k: int, which: slice | NDArray[np.intp]) -> F32Array:
        """Rows of the tensor seen as ``(-1, k)``, as float32, C-contiguous.

        Exact for F32, F16 and BF16; F64 is rounded to nearest.
        Raises UnsupportedError for a type that is not floating point or has fewer bits.
        """
        if self.dtype not in _ITEM:
            raise UnsupportedError(
                f"{self.file.name}: tensor {self.name!r} is {self.dtype}, "
                f"want one of {' '.join(_ITEM)}"
            )
        raw = self._bytes.view(_ITEM[self.dtype]).reshape(-1, k)[which]
        if self.dtype == "BF16":  # the upper half of a float32
            wide = raw.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        with np.errstate(over="ignore"):  # an F64 beyond float32 is refused later, by its name
            return np.ascontiguousarray(raw, np.float32)


class Checkpoint:
    """Every tensor of a folder, by name, over read-only maps.

    folder: holds ``model.safetensors.index.json`` and its shards, or one or more
    ``*.safetensors``.
    Raises NotFoundError without weights or a shard; FormatError for a broken file, a tensor that
    the index places where it is not, or one stored twice; UnsupportedError without the package.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, Stored] = {}
        self.n_bytes = 0
        for path, expected in _files(folder):
            self._add_file(path, expected)

    def _add_file(self, path: Path, expected: set[str] | None) -> None:
        f = _safe_open(path)
        data = np.memmap(path, np.uint8, "r")
        (header,) = struct.unpack("<Q", data[:8].tobytes())
        at = 8 + header
        names = list(f.offset_keys())
        if expected is not None and (missing := expected - set(names)):
            raise FormatError(
                f"{path}: tensor {min(missing)!r} is missing, the index places it here"
            )
        for name in names:
            s = f.get_slice(name)
            kind, shape = s.get_dtype(), tuple(s.get_shape())
            if kind not in _SIZES:
                raise UnsupportedError(f"{path}: tensor {name!r}: unknown type {kind}")
            n = -(-prod(shape) * _SIZES[kind] // 8)
            if at + n > data.nbytes:
                raise FormatError(f"{path}: tensor {name!r} ends at byte {at + n} of {data.nbytes}")
            if name in self.tensors:
                first = self.tensors[name].file.name
                raise FormatError(f"{path}: tensor {name!r} is also in {first}, want it once")
            self.tensors[name] = Stored(name, kind, shape, path, data[at : at + n])
            at += n
            self.n_bytes += n


def _files(folder: Path) -> list[tuple[Path, set[str] | None]]:
    """Weight files, each with the tensors the index promises in it."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise FormatError(f"{index}: no weight_map, want a map from tensor to file")
        shards: dict[str, set[str]] = {}
        for name, file in places.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise FormatError(
                    f"{index}: tensor {name!r} is in {file!r}, want a plain file name"
                )
            shards.setdefault(file, set()).add(name)
        for file in shards:
            if not (folder / file).is_file():
                raise NotFoundError(f"{folder / file}: no such file, {index.name} names it")
        return [(folder / file, names) for file, names in sorted(shards.items())]
    whole = folder / "model.safetensors"
    found = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    if not found:
        old = next(folder.glob("*.bin"), None)
        hint = f" (found {old.name}: only safetensors are read)" if old else ""
        raise NotFoundError(f"{folder}: no *.safetensors file{hint}")
    return [(p, None) for p in found]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; NotFoundError, FormatError (not JSON, not an object)."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as e:
        raise FormatError(f"{path}: not JSON: {e}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: found a JSON {type(value).__name__}, want an object")
    return value
