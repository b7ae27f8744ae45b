"""GGUFWriter against two readers: the `gguf` package and the core's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ruvllm import _core
from ruvllm._errors import ArgumentError, FileError, NotFoundError, StateError, UnsupportedError
from ruvllm.engine import _gguf_writer
from ruvllm.engine._gguf_writer import GGUFWriter, dtype, dtypes, read_raw_kv

EVERY_KIND: list[tuple[str, Any]] = [
    ("u8", 255),
    ("i8", -128),
    ("u16", 65535),
    ("i16", -32768),
    ("u32", 2**32 - 1),
    ("i32", -(2**31)),
    ("u64", 2**64 - 1),
    ("i64", -(2**63)),
    ("f32", 1.5),
    ("f64", 0.1),
    ("bool", True),
    ("bool", False),
    ("str", ""),
    ("str", "Grüße \U0001f999\n"),
    ("arr[u8]", [0, 1, 255]),
    ("arr[i8]", [-1, 1]),
    ("arr[u16]", [1]),
    ("arr[i16]", [-1]),
    ("arr[u32]", [1, 2]),
    ("arr[i32]", [-1, 2]),
    ("arr[u64]", [2**63]),
    ("arr[i64]", [-(2**63)]),
    ("arr[f32]", [0.5, -2.0]),
    ("arr[f64]", [0.1]),
    ("arr[bool]", [True, False]),
    ("arr[str]", ["a", "", "▁b"]),
    ("arr[u32]", []),
    ("arr[str]", []),
]


def write(path: Path, tensors: dict[str, np.ndarray], **kv: tuple[str, Any]) -> None:
    with GGUFWriter(path) as w:
        w.add_kv("general.architecture", "str", "test")
        for k, (kind, value) in kv.items():
            w.add_kv(k, kind, value)
        for name, a in tensors.items():
            w.add_tensor(name, "f32", a.shape[::-1])
        for name, a in tensors.items():
            w.write(name, a.tobytes())


def test_every_value_type_reads_back(tmp_path: Path) -> None:
    p = tmp_path / "a.gguf"
    write(p, {}, **{f"k{i}": kv for i, kv in enumerate(EVERY_KIND)})
    ours = {k: (kind, v) for k, kind, v in _core.gguf_open(str(p)).kv(-1)}
    theirs = gguf.GGUFReader(p).fields
    for i, (kind, value) in enumerate(EVERY_KIND):
        assert ours[f"k{i}"] == (kind, value), kind
        if value != []:  # the package cannot read an empty array
            assert theirs[f"k{i}"].contents() == value, kind


def test_nested_arrays(tmp_path: Path) -> None:
    p = tmp_path / "a.gguf"
    write(p, {}, n=("arr[arr[i16]]", [[1, 2], [], [3]]))
    assert _core.gguf_open(str(p)).get("n") == [[1, 2], [], [3]]


def test_tensors_of_odd_sizes_read_back_aligned(tmp_path: Path) -> None:
    p = tmp_path / "a.gguf"
    rng = np.random.default_rng(0)
    shapes = {"a": (1,), "b": (3, 5), "c": (2, 3, 4), "d": (2, 1, 2, 7), "e": (33,)}
    tensors = {n: rng.standard_normal(s, dtype=np.float32) for n, s in shapes.items()}
    write(p, tensors)
    for t in gguf.GGUFReader(p).tensors:
        want = tensors[t.name]
        assert list(t.shape) == list(want.shape[::-1])
        assert t.data_offset % 32 == 0
        np.testing.assert_array_equal(np.asarray(t.data).reshape(want.shape), want)
    g = _core.gguf_open(str(p))
    for i, (name, number, _, dims, offset, _, _) in enumerate(g.tensors()):
        assert number == 0 and dims == tensors[name].shape[::-1] and offset % 32 == 0
        assert bytes(g.tensor_data(i)) == tensors[name].tobytes()
    assert os.path.getsize(p) % 32 == 0


def test_data_may_come_in_pieces(tmp_path: Path) -> None:
    data = np.arange(100, dtype=np.float32).tobytes()
    with GGUFWriter(tmp_path / "a.gguf") as w:
        w.add_tensor("t", "f32", (10, 10))
        for i in range(0, 400, 7):
            w.write("t", memoryview(data)[i : i + 7])
    assert bytes(_core.gguf_open(str(tmp_path / "a.gguf")).tensor_data(0)) == data


def test_block_sizes_agree_with_the_gguf_package() -> None:
    assert {"f32", "f16", "bf16", "q8_0", "q4_0"} <= set(dtypes())
    for name, d in dtypes().items():
        number = gguf.GGMLQuantizationType[name.upper()]
        assert d.number == number
        assert (d.block_values, d.block_bytes) == gguf.GGML_QUANT_SIZES[number]
        assert dtype(d.number) is d and dtype(name.upper()) is d


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("u8", 256),
        ("u8", -1),
        ("i64", 2**63),
        ("u32", 1.5),
        ("u32", True),
        ("u32", "1"),
        ("u32", [1]),
        ("u32", None),
        ("f32", 1e300),
        ("bool", 1),
        ("str", 1),
        ("str", "\ud800"),
        ("arr[u8]", [1, 256]),
        ("arr[u8]", [1, True]),
        ("arr[u8]", 1),
        ("arr[u8]", "ab"),
        ("arr[str]", ["a", 1]),
        ("arr", [1]),
        ("u128", 1),
        ("arr[what]", [1]),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, kind: str, value: Any) -> None:
    w = GGUFWriter(tmp_path / "a.gguf")
    with pytest.raises(ArgumentError, match=r"kv 'some.key'"):
        w.add_kv("some.key", kind, value)


def test_duplicates_are_refused(tmp_path: Path) -> None:
    w = GGUFWriter(tmp_path / "a.gguf")
    w.add_kv("k", "u8", 1)
    with pytest.raises(ArgumentError, match="'k'"):
        w.add_kv("k", "u8", 1)
    with pytest.raises(ArgumentError, match="'k'"):
        w.add_raw_kv("k", b"")
    w.add_tensor("t", "f32", (1,))
    with pytest.raises(ArgumentError, match="'t'"):
        w.add_tensor("t", "f32", (1,))
    with pytest.raises(ArgumentError, match="alignment"):
        w.add_kv("general.alignment", "u32", 64)


@pytest.mark.parametrize(
    "dims", [(), (1, 1, 1, 1, 1), (0,), (-1,), (1.5,), (1 << 62, 2), (2, 1 << 62)]
)
def test_wrong_dims_are_refused(tmp_path: Path, dims: Any) -> None:
    with pytest.raises(ArgumentError, match="tensor 't'"):
        GGUFWriter(tmp_path / "a.gguf").add_tensor("t", "f32", dims)


def test_wrong_tensor_types_and_names_are_refused(tmp_path: Path) -> None:
    w = GGUFWriter(tmp_path / "a.gguf")
    with pytest.raises(ArgumentError, match="found 33 values, want a multiple of 32"):
        w.add_tensor("t", "q8_0", (33, 2))
    for bad in ("iq1_s", 999, 4):
        with pytest.raises(UnsupportedError):
            w.add_tensor("t", bad, (32,))
    for name in ("", "n" * 64, "ü" * 32):
        with pytest.raises(ArgumentError, match="63"):
            w.add_tensor(name, "f32", (1,))
    for key in ("", "k" * 65536):
        with pytest.raises(ArgumentError, match="65535"):
            w.add_kv(key, "u8", 1)


def test_the_order_and_size_of_data_are_checked(tmp_path: Path) -> None:
    w = GGUFWriter(tmp_path / "a.gguf")
    w.add_tensor("a", "f32", (2,))
    w.add_tensor("b", "f32", (2,))
    with pytest.raises(ArgumentError, match="want bytes of 'a'"):
        w.write("b", bytes(8))
    with pytest.raises(ArgumentError, match="found 9 bytes, want 8"):
        w.write("a", bytes(9))
    w.write("a", bytes(4))
    with pytest.raises(StateError):
        w.add_kv("late", "u8", 1)
    with pytest.raises(StateError):
        w.add_tensor("late", "f32", (1,))
    with pytest.raises(ArgumentError, match="found 12 bytes, want 8"):
        w.write("a", bytes(8))
    w.write("a", bytes(4))
    w.write("b", bytes(8))
    with pytest.raises(ArgumentError, match="complete"):
        w.write("b", b"x")
    w.close()
    w.close()
    with pytest.raises(StateError):
        w.write("b", b"")


def test_an_incomplete_file_never_appears(tmp_path: Path) -> None:
    p = tmp_path / "a.gguf"
    p.write_bytes(b"before")
    w = GGUFWriter(p)
    w.add_tensor("a", "f32", (2,))
    w.write("a", bytes(4))
    with pytest.raises(StateError, match="found 4 bytes, want 8"):
        w.close()
    with pytest.raises(RuntimeError, match="mine"), GGUFWriter(p) as v:
        v.add_tensor("a", "f32", (2,))
        v.write("a", bytes(4))
        raise RuntimeError("mine")
    assert p.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.gguf"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_gguf_writer.os, "fsync", full)
    p = tmp_path / "a.gguf"
    w = GGUFWriter(p)
    with pytest.raises(FileError, match="No space left"):
        w.close()
    assert os.listdir(tmp_path) == []


def test_targets_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        GGUFWriter(tmp_path / "no" / "a.gguf")
    with pytest.raises(ArgumentError, match="is a folder"):
        GGUFWriter(tmp_path)


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    GGUFWriter(tmp_path / "a.gguf").close()
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a.gguf").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_raw_copy_keeps_every_byte(tmp_path: Path) -> None:
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    kinds = [*EVERY_KIND, ("str", b"\xff\xfe not UTF-8"), ("arr[arr[str]]", [["x"], [b"\xff"]])]
    write(a, {}, **{f"k{i}": kv for i, kv in enumerate(kinds)})
    with GGUFWriter(b) as w:
        for key, packed in read_raw_kv(a):
            w.add_raw_kv(key, packed)
    assert a.read_bytes() == b.read_bytes()
