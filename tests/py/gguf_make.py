"""Builds GGUF files field by field, right ones and wrong ones: every number can be replaced.

It shares no code with the reader or with ``ruvllm``; the layout is written down in docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
FORMATS = {
    U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?",
    U64: "<Q", I64: "<q", F64: "<d",
}  # fmt: skip
NAMES = ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64"]

# Tensor types: values and bytes per block.
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    20: (32, 18), 23: (256, 136), 30: (1, 2),
}  # fmt: skip


def u32(x: int) -> bytes:
    return struct.pack("<I", x)


def u64(x: int) -> bytes:
    return struct.pack("<Q", x)


def string(text: str | bytes, n: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if n is None else n) + raw


def scalar(kind: int, value: object) -> bytes:
    if kind == STR:
        assert isinstance(value, str | bytes)
        return string(value)
    return struct.pack(FORMATS[kind], value)


def array(elem: int, items: Sequence[bytes], n: int | None = None) -> bytes:
    """The payload of an array: element type, length, elements."""
    return u32(elem) + u64(len(items) if n is None else n) + b"".join(items)


def raw_kv(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return string(key) + u32(kind) + payload


def kv(key: str | bytes, kind: int, value: object) -> bytes:
    return raw_kv(key, kind, scalar(kind, value))


@dataclass
class Tensor:
    """A description; what is None follows from the rest."""

    name: str | bytes = "t"
    dims: Sequence[int] = (32,)
    type: int = 0
    offset: int | None = None
    n_dims: int | None = None
    n_bytes: int | None = None
    name_len: int | None = None

    def size(self) -> int:
        if self.n_bytes is not None:
            return self.n_bytes
        values = 1
        for d in self.dims:
            values *= d
        per, size = BLOCKS.get(self.type, (1, 1))
        return values // per * size


def header(n_tensors: int, n_kv: int, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + u32(version) + u64(n_tensors) + u64(n_kv)


def gguf(
    kvs: Sequence[bytes] = (),
    tensors: Sequence[Tensor] = (),
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
    n_kv: int | None = None,
    n_tensors: int | None = None,
    align: int = 32,
    data: bytes | None = None,
) -> bytes:
    """A file. data: the data section; None: bytes that count up, enough for every tensor."""
    out = header(
        len(tensors) if n_tensors is None else n_tensors,
        len(kvs) if n_kv is None else n_kv,
        version,
        magic,
    ) + b"".join(kvs)
    end = 0
    for t in tensors:
        offset = end if t.offset is None else t.offset
        out += string(t.name, t.name_len) + u32(len(t.dims) if t.n_dims is None else t.n_dims)
        out += b"".join(u64(d) for d in t.dims) + u32(t.type) + u64(offset)
        end = max(end, -(-(offset + t.size()) // align) * align)
    if tensors:
        out += bytes(-len(out) % align)
        out += bytes(i % 251 for i in range(end)) if data is None else data
    return out


def split_keys(no: int, count: int, n_tensors: int) -> list[bytes]:
    return [
        kv("split.no", U16, no),
        kv("split.count", U16, count),
        kv("split.tensors.count", I32, n_tensors),
    ]


def all_types() -> bytes:
    """One pair of every type, one array of every type, arrays in arrays, and three tensors."""
    kvs = [
        kv("a.u8", U8, 255),
        kv("a.i8", I8, -128),
        kv("a.u16", U16, 65535),
        kv("a.i16", I16, -32768),
        kv("a.u32", U32, 2**32 - 1),
        kv("a.i32", I32, -(2**31)),
        kv("a.f32", F32, 0.5),
        kv("a.bool", BOOL, True),
        kv("a.str", STR, "größe"),
        kv("a.u64", U64, 2**64 - 1),
        kv("a.i64", I64, -(2**63)),
        kv("a.f64", F64, -1e300),
        kv("a.empty", STR, ""),
        kv("a.bytes", STR, b"\xff\xfe!"),
    ]
    values: dict[int, list[object]] = {
        U8: [0, 255], I8: [-128, 127], U16: [0, 65535], I16: [-32768, 32767],
        U32: [0, 2**32 - 1], I32: [-(2**31), 2**31 - 1], F32: [0.0, -1.5], BOOL: [True, False],
        STR: ["", "ab", "ü"], U64: [0, 2**64 - 1], I64: [-(2**63), 2**63 - 1], F64: [0.1, -0.0],
    }  # fmt: skip
    for kind, items in values.items():
        payload = array(kind, [scalar(kind, x) for x in items])
        kvs.append(raw_kv(f"arr.{NAMES[kind]}", ARR, payload))
    kvs.append(raw_kv("arr.none", ARR, array(U32, [])))
    inner = [array(U8, [b"\x01", b"\x02"]), array(STR, [string("x")]), array(ARR, [array(I8, [])])]
    kvs.append(raw_kv("arr.arr", ARR, array(ARR, inner)))
    return gguf(
        kvs,
        [
            Tensor("first", (32, 2), 0),
            Tensor("second", (64, 3, 2), 8),
            Tensor("third", (256,), 12),
        ],
    )


def nested(levels: int) -> bytes:
    """A file whose only value is `levels` arrays in one another, the innermost one of a u8."""
    payload = (u32(ARR) + u64(1)) * (levels - 1) + array(U8, [b"\x07"])
    return gguf([raw_kv("deep", ARR, payload)])
