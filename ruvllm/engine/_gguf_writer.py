"""Writes GGUF files: version 3, little-endian, tensors aligned to 32 bytes.

Owns the byte layout and nothing else: what goes into a file is decided by `quantize.py` and
`convert.py`.  The idea to hold: the header, which names every tensor with its size and offset,
comes before the data, so all tensors are announced first and their bytes are then streamed in the
same order, in pieces of any size.  No more than one piece is ever in memory.

    magic "GGUF" | u32 version | u64 n_tensors | u64 n_kv
    kv       *   : str key | u32 type | value            str = u64 bytes + UTF-8
    tensor   *   : str name | u32 n_dims | u64 dims[] | u32 type | u64 offset
    padding to 32, then the tensors' data, each padded to 32

The file is written beside its target under a temporary name, flushed to the disk and renamed when
it is complete: a reader never sees half a file, and a failure leaves what was there before.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self, TypeAlias

import numpy as np

from ruvllm import _core
from ruvllm._errors import ArgumentError, FileError, NotFoundError, StateError, UnsupportedError

ALIGNMENT: Final = 32
_BLOCK: Final = 2 << 20  # written at once: Linux caches it in one huge page, as reading likes it
MAX_DIMS: Final = 4
MAX_NAME: Final = 63  # bytes: ggml keeps names in 64, with a NUL

# Metadata value types by the name `_core.GGUF.kv()` gives them: number in the file, struct code.
_SCALARS: Final[dict[str, tuple[int, str]]] = {
    "u8": (0, "<B"),
    "i8": (1, "<b"),
    "u16": (2, "<H"),
    "i16": (3, "<h"),
    "u32": (4, "<I"),
    "i32": (5, "<i"),
    "f32": (6, "<f"),
    "u64": (10, "<Q"),
    "i64": (11, "<q"),
    "f64": (12, "<d"),
}
_BOOL: Final = 7
_STR: Final = 8
_ARR: Final = 9
_WIDTHS: Final = {_BOOL: 1, **{n: struct.calcsize(code) for n, code in _SCALARS.values()}}

# What a metadata value may be; `str` values are written as UTF-8, `bytes` as they are.
KvValue: TypeAlias = "bool | int | float | str | bytes | Sequence[KvValue]"


@dataclass(frozen=True, slots=True)
class DType:
    """One tensor type: ggml's number, lower-case name, values and bytes per block."""

    number: int
    name: str
    block_values: int
    block_bytes: int

    def row_bytes(self, k: int) -> int:
        """Bytes of a row of ``k`` values; ArgumentError when ``k`` is not whole blocks."""
        if k % self.block_values:
            raise ArgumentError(
                f"{self.name} row: found {k} values, want a multiple of {self.block_values}"
            )
        return k // self.block_values * self.block_bytes


@cache
def dtypes() -> dict[str, DType]:
    """Every tensor type of this build by lower-case name."""
    return {
        name: DType(number, name, block_values, block_bytes)
        for name, (number, block_values, block_bytes) in _core.dtypes().items()
    }


def dtype(which: str | int) -> DType:
    """The tensor type of a name or of ggml's number; UnsupportedError when there is none."""
    if isinstance(which, str):
        found = dtypes().get(which.lower())
    else:
        found = next((d for d in dtypes().values() if d.number == which), None)
    if found is None:
        raise UnsupportedError(f"tensor type: found {which!r}, want one of {' '.join(dtypes())}")
    return found


def _bytes_of(text: str | bytes, what: str) -> bytes:
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise ArgumentError(f"{what}: found {type(text).__name__}, want str or bytes")
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise ArgumentError(f"{what}: not valid Unicode at character {e.start}") from None


def _pack_str(text: str | bytes, what: str) -> bytes:
    raw = _bytes_of(text, what)
    return struct.pack("<Q", len(raw)) + raw


def _type_number(kind: str, key: str) -> int:
    if kind == "bool":
        return _BOOL
    if kind == "str":
        return _STR
    if kind.startswith("arr[") and kind.endswith("]"):
        return _ARR
    if kind in _SCALARS:
        return _SCALARS[kind][0]
    want = " ".join([*_SCALARS, "bool", "str", "arr[...]"])
    raise ArgumentError(f"kv {key!r}: found value type {kind!r}, want one of {want}")


def _pack_value(kind: str, value: KvValue, key: str) -> bytes:
    """The bytes of one value of type ``kind``, without the type itself."""
    number = _type_number(kind, key)
    if number == _BOOL:
        if not isinstance(value, bool):
            raise ArgumentError(f"kv {key!r}: found {value!r:.40}, want a bool")
        return b"\1" if value else b"\0"
    if number == _STR:
        if not isinstance(value, str | bytes):
            raise ArgumentError(f"kv {key!r}: found {value!r:.40}, want a string")
        return _pack_str(value, f"kv {key!r}")
    if number == _ARR:
        elem = kind[4:-1]
        if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
            raise ArgumentError(f"kv {key!r}: found {value!r:.40}, want a sequence of {elem}")
        assert not isinstance(value, bool | int | float)
        head = struct.pack("<IQ", _type_number(elem, key), len(value))
        return head + _pack_elements(elem, value, key)
    if isinstance(value, bool | str | bytes) or hasattr(value, "__len__"):
        raise ArgumentError(f"kv {key!r}: found {value!r:.40}, want a number ({kind})")
    try:
        return struct.pack(_SCALARS[kind][1], value)
    except (struct.error, OverflowError, TypeError):
        raise ArgumentError(f"kv {key!r}: found {value!r:.40}, out of range of {kind}") from None


def _pack_elements(elem: str, value: Sequence[KvValue], key: str) -> bytes:
    if elem not in _SCALARS:
        return b"".join(_pack_value(elem, v, key) for v in value)
    try:  # one call for a whole vocabulary's scores; the slow path words the error
        code = _SCALARS[elem][1]
        if not any(isinstance(v, bool) for v in value):
            return struct.pack(f"<{len(value)}{code[1:]}", *value)
    except (struct.error, OverflowError, TypeError):
        pass
    return b"".join(_pack_value(elem, v, key) for v in value)


def read_raw_kv(path: Path) -> list[tuple[str, bytes]]:
    """Each metadata key of a GGUF v2 or v3 with the bytes of its type and value.

    For copying exactly: strings that are not UTF-8, nested arrays and the spelling of NaN survive.
    path: one that the core has opened, and so checked; of a split model the first part.
    """
    view = np.memmap(path, np.uint8, "r").data  # a GGUF is never empty
    _, _, _, n_kv = struct.unpack_from("<4sIQQ", view)
    at, out = 24, []
    for _ in range(n_kv):
        (n,) = struct.unpack_from("<Q", view, at)
        key = bytes(view[at + 8 : at + 8 + n]).decode(errors="surrogateescape")
        at += 8 + n
        end = _skip_value(view, at + 4, struct.unpack_from("<I", view, at)[0])
        out.append((key, bytes(view[at:end])))
        at = end
    return out


def _skip_value(view: memoryview, at: int, number: int) -> int:
    """Where the value of that type which starts at ``at`` ends."""
    if number == _STR:
        return at + 8 + int(struct.unpack_from("<Q", view, at)[0])
    if number != _ARR:
        return at + _WIDTHS[number]
    elem, n = struct.unpack_from("<IQ", view, at)
    at += 12
    if elem in _WIDTHS:
        return at + int(n) * _WIDTHS[elem]
    for _ in range(n):
        at = _skip_value(view, at, elem)
    return at


@dataclass(slots=True)
class _Tensor:
    name: str
    type: DType
    dims: tuple[int, ...]
    n_bytes: int
    offset: int


class GGUFWriter:
    """Write one GGUF file, in the order: ``add_kv`` / ``add_tensor``, then ``write`` for each.

    As a context manager it commits when the body ends and discards the file when the body raises.
    The target appears, or is replaced, only in ``close``.  Not for several threads at once.

    path: the target; its folder must exist.
    Raises NotFoundError for a missing folder, FileError for what the system refuses.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Check the target; nothing is written yet."""
        self.path = Path(path)
        self._kv: dict[str, bytes] = {}
        self._tensors: list[_Tensor] = []
        self._names: set[str] = set()
        self._data_bytes = 0
        self._current = 0  # tensor that receives the next bytes
        self._filled = 0  # bytes of it that are there
        self._file: IO[bytes] | None = None
        self._tmp: Path | None = None
        self._held = bytearray()
        self._closed = False
        if self.path.is_dir():
            raise ArgumentError(f"{self.path}: is a folder, want a file to write")
        if not self.path.parent.is_dir():
            raise NotFoundError(f"{self.path.parent}: no such folder")

    # ------------------------------------------------------------ what the file says

    def add_kv(self, key: str, kind: str, value: KvValue) -> None:
        """Add one metadata pair.

        key: 1 .. 65535 bytes of UTF-8, once per file.
        kind: ``u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 bool str``, or ``arr[KIND]`` of any of
        these, nested too; the file holds exactly this type.
        value: of that type; integers in its range; an array is any sequence.
        Raises ArgumentError for a wrong type, range or a duplicate, StateError after the first
        ``write``.
        """
        self._check_open("add_kv")
        if not 1 <= len(_bytes_of(key, "kv key")) <= 65535:
            raise ArgumentError(f"kv key: found {len(key)} characters, want 1 .. 65535 bytes")
        if key == "general.alignment" and value != ALIGNMENT:
            raise ArgumentError(f"kv {key!r}: found {value!r:.40}, this writer's is {ALIGNMENT}")
        if key in self._kv:
            raise ArgumentError(f"kv {key!r}: already added, want it once")
        packed = _pack_value(kind, value, key)
        self._kv[key] = (
            _pack_str(key, "kv key") + struct.pack("<I", _type_number(kind, key)) + packed
        )

    def add_raw_kv(self, key: str, packed: bytes) -> None:
        """Add one pair whose type and value are bytes of another file (`read_raw_kv`)."""
        self._check_open("add_raw_kv")
        if key in self._kv:
            raise ArgumentError(f"kv {key!r}: already added, want it once")
        self._kv[key] = _pack_str(key.encode(errors="surrogateescape"), "kv key") + packed

    def add_tensor(self, name: str, type: str | int | DType, dims: Sequence[int]) -> int:
        """Announce a tensor and return its size in bytes.

        name: 1 .. 63 bytes of UTF-8, once per file.
        type: a name, ggml's number or a DType.
        dims: 1 to 4 positive lengths; dims[0] is the contiguous one, whole blocks of ``type``.
        Raises ArgumentError, UnsupportedError for an unknown type, StateError after ``write``.
        """
        self._check_open("add_tensor")
        raw = _bytes_of(name, "tensor name")
        if not 1 <= len(raw) <= MAX_NAME:
            raise ArgumentError(f"tensor {name!r}: name has {len(raw)} bytes, want 1 .. {MAX_NAME}")
        if name in self._names:
            raise ArgumentError(f"tensor {name!r}: already added, want it once")
        kind = type if isinstance(type, DType) else dtype(type)
        shape = tuple(dims)
        if not 1 <= len(shape) <= MAX_DIMS or any(not isinstance(d, int) or d < 1 for d in shape):
            raise ArgumentError(f"tensor {name!r}: found dims {shape}, want 1 .. 4 positive ints")
        try:
            n_bytes = kind.row_bytes(shape[0]) * math.prod(shape[1:])
        except ArgumentError as e:
            raise ArgumentError(f"tensor {name!r}: {e}") from None
        if self._data_bytes + n_bytes >= 1 << 63:
            raise ArgumentError(f"tensor {name!r}: dims {shape} make the file 2^63 bytes or more")
        self._tensors.append(_Tensor(name, kind, shape, n_bytes, self._data_bytes))
        self._names.add(name)
        self._data_bytes += -(-n_bytes // ALIGNMENT) * ALIGNMENT
        return n_bytes

    # ------------------------------------------------------------ its bytes

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Append bytes to tensor ``name``; tensors are filled one after another, as announced.

        data: any contiguous buffer; a piece of the tensor or all of it.
        Raises ArgumentError for the wrong tensor or too many bytes, FileError.
        """
        if self._closed:
            raise StateError(f"{self.path}: the writer is closed")
        if self._file is None:
            self._begin()
        if self._current >= len(self._tensors):
            raise ArgumentError(f"tensor {name!r}: every announced tensor is complete")
        t = self._tensors[self._current]
        view = memoryview(data).cast("B")
        if name != t.name:
            raise ArgumentError(f"tensor {name!r}: out of order, want bytes of {t.name!r} next")
        if view.nbytes > t.n_bytes - self._filled:
            raise ArgumentError(
                f"tensor {name!r}: found {self._filled + view.nbytes} bytes, want {t.n_bytes}"
            )
        self._put(view)
        self._filled += view.nbytes
        if self._filled == t.n_bytes:
            self._put(bytes(-t.n_bytes % ALIGNMENT))
            self._current += 1
            self._filled = 0

    def close(self) -> None:
        """Complete the file and put it in place; idempotent.

        Raises StateError when a tensor is incomplete (the file is discarded), FileError.
        """
        if self._closed:
            return
        if self._file is None:
            self._begin()
        if self._current < len(self._tensors):
            t = self._tensors[self._current]
            self.discard()
            raise StateError(f"tensor {t.name!r}: found {self._filled} bytes, want {t.n_bytes}")
        assert self._file is not None and self._tmp is not None
        self._flush()
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._tmp, self.path)
        except OSError as e:
            self.discard()
            raise FileError(f"{self.path}: {e.strerror}") from e
        self._closed = True
        self._sync_folder()

    def discard(self) -> None:
        """Give up: remove the temporary file and leave the target as it was; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        if self._tmp is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._tmp)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Commit, or discard when the body raised."""
        if kind is None:
            self.close()
        else:
            self.discard()

    # ------------------------------------------------------------ inside

    def _check_open(self, what: str) -> None:
        if self._closed or self._file is not None:
            raise StateError(f"{self.path}: {what} after the header was written")

    def _begin(self) -> None:
        head = struct.pack("<4sIQQ", b"GGUF", 3, len(self._tensors), len(self._kv))
        parts = [head, *self._kv.values()]
        for t in self._tensors:
            parts.append(_pack_str(t.name, "tensor name"))
            parts.append(
                struct.pack(f"<I{len(t.dims)}QIQ", len(t.dims), *t.dims, t.type.number, t.offset)
            )
        n = sum(map(len, parts))
        parts.append(bytes(-n % ALIGNMENT))
        try:
            # not mkstemp: that makes 0600, and a model is not a secret
            tmp = self.path.with_name(f".{self.path.name[:200]}.{secrets.token_hex(6)}.tmp")
            fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            self._tmp = tmp
            self._file = os.fdopen(fd, "wb")
        except OSError as e:
            self.discard()
            raise FileError(f"{self.path}: {e.strerror}") from e
        for p in parts:
            self._put(p)

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view.nbytes:
            piece = view[: _BLOCK - len(self._held)]
            self._held += piece
            view = view[piece.nbytes :]
            if len(self._held) == _BLOCK:
                self._flush()

    def _flush(self) -> None:
        assert self._file is not None
        try:
            self._file.write(self._held)
            self._held.clear()
        except OSError as e:
            self.discard()
            raise FileError(f"{self.path}: {e.strerror}") from e

    def _sync_folder(self) -> None:
        # The rename itself is durable only once the folder is; some file systems refuse this.
        with contextlib.suppress(OSError):
            fd = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
