"""quantize(): which tensor gets which type, the bytes, and what is refused."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ruvllm import _core
from ruvllm._errors import (
    ArgumentError,
    CancelledError,
    FormatError,
    NotFoundError,
    UnsupportedError,
)
from ruvllm.engine import quantize as q
from ruvllm.engine._gguf_writer import GGUFWriter, dtypes
from ruvllm.engine._recipes import RECIPES, recipe
from ruvllm.engine.quantize import quantize

TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]
# Levels a block's span is cut into, and the error in steps that leaves (scales are halves).
BLOCKS = {"q8_0": (127, 0.57), "q4_0": (8, 1.01), "q4_1": (7.5, 0.6), "q5_0": (16, 1.02),
          "q5_1": (15.5, 0.7)}  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (40, 64),
    "output_norm.weight": (64,),
    "position_embd.weight": (8, 64),
    "token_types.weight": (2, 64),
    "blk.0.attn_q.weight": (64, 64),
    "blk.0.attn_q.bias": (64,),
    "blk.0.attn_q_norm.weight": (4, 64),
    "blk.0.ffn_up.weight": (96, 64),
    "blk.0.ffn_down.weight": (64, 96),
    "blk.0.odd.weight": (5, 40),
    "blk.0.shortconv.conv.weight": (64, 3),
    "blk.0.experts.weight": (2, 6, 64),
}


def weights(seed: int = 0, **extra: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s, dtype=np.float32) for n, s in (SHAPES | extra).items()}


def make(
    path: Path, tensors: dict[str, np.ndarray], kind: str = "f32", arch: str = "llama"
) -> Path:
    with GGUFWriter(path) as w:
        w.add_kv("general.architecture", "str", arch)
        w.add_kv("general.file_type", "u32", 0)
        w.add_kv("tokenizer.ggml.tokens", "arr[str]", ["a", b"\xff", "▁"])
        w.add_kv("some.nested", "arr[arr[u8]]", [[1], [2, 3]])
        for name, a in tensors.items():
            w.add_tensor(name, kind if a.ndim > 1 else "f32", a.shape[::-1])
        for name, a in tensors.items():
            w.write(name, stored(a, kind) if a.ndim > 1 else a.tobytes())
    return path


def stored(a: np.ndarray, kind: str) -> bytes:
    if kind == "bf16":  # truncation is enough to make a source
        return (a.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return a.astype({"f32": np.float32, "f16": np.float16}[kind]).tobytes()


def types(path: Path) -> dict[str, str]:
    return {t[0]: t[2] for t in _core.gguf_open(str(path)).tensors()}


def values(path: Path) -> dict[str, np.ndarray]:
    out = {}
    for t in gguf.GGUFReader(path).tensors:
        a = gguf.quants.dequantize(t.data, t.tensor_type)
        out[t.name] = a.reshape([int(d) for d in t.shape[::-1]])
    return out


@pytest.mark.parametrize("want", TYPES)
def test_each_tensor_gets_the_type_of_the_table(tmp_path: Path, want: str) -> None:
    src = make(tmp_path / "a.gguf", weights())
    dst = tmp_path / "b.gguf"
    r = quantize(src, dst, want.upper())
    block = want in BLOCKS
    expected = dict.fromkeys(SHAPES, want)
    for kept in (
        "output_norm.weight",
        "position_embd.weight",
        "token_types.weight",
        "blk.0.attn_q.bias",
        "blk.0.attn_q_norm.weight",
        "blk.0.shortconv.conv.weight",
    ):
        expected[kept] = "f32"
    if block:
        expected["blk.0.odd.weight"] = "f16"
    if block and want != "q8_0":
        expected["token_embd.weight"] = "q8_0"
    assert types(dst) == expected
    assert [(f.name, f.row_values, f.wanted, f.got) for f in r.fallbacks] == (
        [("blk.0.odd.weight", 40, want, "f16")] if block else []
    )
    assert {k: v.tensors for k, v in r.before.items()} == {"f32": len(SHAPES)}
    assert sum(t.values for t in r.after.values()) == sum(a.size for a in weights().values())
    assert r.src_bytes == src.stat().st_size and r.dst_bytes == dst.stat().st_size
    n_bytes = {t[2]: 0 for t in _core.gguf_open(str(dst)).tensors()}
    for t in _core.gguf_open(str(dst)).tensors():
        n_bytes[t[2]] += t[5]
    assert n_bytes == {k: v.n_bytes for k, v in r.after.items()}


def test_pure_and_untied_heads(tmp_path: Path) -> None:
    tied = make(tmp_path / "tied.gguf", weights())
    untied = make(tmp_path / "untied.gguf", weights(**{"output.weight": (40, 64)}))
    dst = tmp_path / "b.gguf"
    for src, pure, embd, head in [
        (tied, False, "q8_0", None),
        (tied, True, "q4_0", None),
        (untied, False, "q4_0", "q8_0"),
        (untied, True, "q4_0", "q4_0"),
    ]:
        quantize(src, dst, "q4_0", pure=pure)
        assert types(dst)["token_embd.weight"] == embd
        assert types(dst).get("output.weight") == head
    quantize(untied, dst, "q8_0")
    assert set(types(dst).values()) == {"q8_0", "f32", "f16"}


def test_values_of_an_encoder_keep_their_precision(tmp_path: Path) -> None:
    extra = weights(**{"blk.0.attn_v.weight": (64, 64)})
    dst = tmp_path / "b.gguf"
    for arch, pure, want, got in [
        ("bert", False, "q8_0", "f16"),
        ("bert", False, "q5_1", "f16"),
        ("bert", True, "q8_0", "q8_0"),
        ("bert", False, "bf16", "bf16"),
        ("llama", False, "q8_0", "q8_0"),
    ]:
        src = make(tmp_path / "a.gguf", extra, arch=arch)
        r = quantize(src, dst, want, pure=pure)
        assert types(dst)["blk.0.attn_v.weight"] == got
        assert all(f.name == "blk.0.odd.weight" for f in r.fallbacks)


@pytest.mark.parametrize("source", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("want", TYPES)
def test_values_are_nearest(tmp_path: Path, source: str, want: str) -> None:
    src = make(tmp_path / "a.gguf", weights(1), source)
    dst = tmp_path / "b.gguf"
    quantize(src, dst, want)
    before, after, kinds = values(src), values(dst), types(dst)
    for name, x in before.items():
        y, kind = after[name], kinds[name]
        if kind == "f32" or kind == source:
            np.testing.assert_array_equal(x, y, err_msg=name)
        elif kind == "f16":
            np.testing.assert_array_equal(y, x.astype(np.float16).astype(np.float32))
        elif kind == "bf16":
            assert np.all(np.abs(y - x) <= np.abs(x) * 2.0**-8)
        else:
            blocks = np.abs(x).reshape(-1, 32).max(1, keepdims=True)
            levels, most = BLOCKS[kind]
            step = blocks / levels
            error = np.abs(y - x).reshape(-1, 32) / np.maximum(step, 1e-30)
            assert error.max() <= most, name


def test_every_type_of_the_core_is_written() -> None:
    for d in dtypes().values():
        out = np.empty(d.row_bytes(256), np.uint8)
        _core.quantize(d.number, np.ones((1, 256), np.float32), 256, out)
    assert {recipe(name).base for name in RECIPES} == set(dtypes().values())


@pytest.mark.parametrize("want", list(BLOCKS))
def test_blocks_are_those_of_the_gguf_package(tmp_path: Path, want: str) -> None:
    src = make(tmp_path / "a.gguf", weights(2))
    dst = tmp_path / "b.gguf"
    quantize(src, dst, want, pure=True)
    before = values(src)
    for t in gguf.GGUFReader(dst).tensors:
        if t.tensor_type == gguf.GGMLQuantizationType[want.upper()]:
            theirs = gguf.quants.quantize(before[t.name], t.tensor_type)
            same = (np.asarray(t.data).reshape(-1) == theirs.reshape(-1)).mean()
            assert same > 0.999, t.name  # ties may fall either way


def test_metadata_is_kept_byte_for_byte(tmp_path: Path) -> None:
    src = make(tmp_path / "a.gguf", weights())
    dst = tmp_path / "b.gguf"
    quantize(src, dst, "q8_0")
    g = _core.gguf_open(str(dst))
    assert g.get("general.file_type") == 7 and g.get("general.quantization_version") == 2
    assert g.get("some.nested") == [[1], [2, 3]]
    assert b"\x01\0\0\0\0\0\0\0\xff" in dst.read_bytes()[:4096]  # the token that is not UTF-8
    keys = [k for k, _, _ in _core.gguf_open(str(src)).kv(0)]
    new = [k for k, _, _ in g.kv(0)]
    assert [k for k in new if k in keys and k != "general.file_type"] == [
        k for k in keys if k != "general.file_type"
    ]
    quantize(src, dst, "f16")
    assert _core.gguf_open(str(dst)).get("general.quantization_version") is None


def test_requantising_needs_permission(tmp_path: Path) -> None:
    src = make(tmp_path / "a.gguf", weights())
    quantize(src, tmp_path / "q8.gguf", "q8_0")
    dst = tmp_path / "b.gguf"
    for want in ("q4_0", "f16", "f32"):
        with pytest.raises(UnsupportedError, match="is q8_0 already"):
            quantize(tmp_path / "q8.gguf", dst, want)
        assert not dst.exists()
        quantize(tmp_path / "q8.gguf", dst, want, allow_requantize=True)
        dst.unlink()
    quantize(tmp_path / "q8.gguf", dst, "q8_0")  # nothing to round: a copy
    assert dst.read_bytes() == (tmp_path / "q8.gguf").read_bytes()


def test_threads_do_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(q, "_PIECE_VALUES", 256)
    src = make(tmp_path / "a.gguf", weights(3))
    out = []
    for n in (1, 2, 5):
        quantize(src, tmp_path / f"{n}.gguf", "q4_0", n_threads=n)
        out.append((tmp_path / f"{n}.gguf").read_bytes())
    monkeypatch.undo()
    quantize(src, tmp_path / "whole.gguf", "q4_0")
    assert len({*out, (tmp_path / "whole.gguf").read_bytes()}) == 1


def test_split_models_become_one_file(tmp_path: Path) -> None:
    whole = weights(4)
    names = list(whole)
    for i, part in enumerate((names[:5], names[5:])):
        with GGUFWriter(tmp_path / f"m-0000{i + 1}-of-00002.gguf") as w:
            if i == 0:
                w.add_kv("general.architecture", "str", "llama")
                w.add_kv("only.here", "arr[str]", ["x"])
            w.add_kv("split.no", "u16", i)
            w.add_kv("split.count", "u16", 2)
            w.add_kv("split.tensors.count", "i32", len(names))
            for n in part:
                w.add_tensor(n, "f32", whole[n].shape[::-1])
            for n in part:
                w.write(n, whole[n].tobytes())
    results = []
    for i in (1, 2):
        dst = tmp_path / f"from{i}.gguf"
        quantize(tmp_path / f"m-0000{i}-of-00002.gguf", dst, "q8_0")
        results.append(dst.read_bytes())
    assert results[0] == results[1]
    g = _core.gguf_open(str(tmp_path / "from1.gguf"))
    assert [k for k, _, _ in g.kv(0)] == [
        "general.architecture", "only.here", "general.file_type", "general.quantization_version",
    ]  # fmt: skip
    assert {t[0] for t in g.tensors()} == set(names)


@pytest.mark.parametrize(
    ("value", "want", "message"),
    [
        (float("nan"), "q8_0", "found nan at row 3, column 1, want finite values"),
        (float("inf"), "bf16", "found inf at row 3, column 1, want finite"),
        (float("-inf"), "f16", "found -inf at row 3, column 1, want finite"),
        (70000.0, "f16", "found 70000 at row 3, column 1, want what f16 can hold"),
        (-6e5, "q4_0", "found -600000 at row 3, column 1, want what q4_0 can hold"),
        (1e7, "q8_0", r"found 1e\+07 at row 3, column 1, want what q8_0 can hold"),
    ],
)
def test_values_that_cannot_be_held_are_errors(
    tmp_path: Path, value: float, want: str, message: str
) -> None:
    w = weights()
    w["blk.0.ffn_up.weight"][3, 1] = value
    src = make(tmp_path / "a.gguf", w)
    with pytest.raises(FormatError, match=f"'blk.0.ffn_up.weight': .*{message}"):
        quantize(src, tmp_path / "b.gguf", want, n_threads=2)
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_progress_rises_to_one_and_cancels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(q, "_PIECE_VALUES", 512)
    src = make(tmp_path / "a.gguf", weights())
    seen: list[tuple[float, int]] = []
    quantize(
        src,
        tmp_path / "b.gguf",
        "q8_0",
        n_threads=3,
        progress=lambda f: seen.append((f, threading.get_ident())),
    )
    fractions = [f for f, _ in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and len(fractions) > 20
    assert {t for _, t in seen} == {threading.get_ident()}
    with pytest.raises(CancelledError):
        quantize(src, tmp_path / "c.gguf", "q8_0", progress=lambda f: f < 0.5)
    assert not (tmp_path / "c.gguf").exists()


def test_bad_arguments(tmp_path: Path) -> None:
    src = make(tmp_path / "a.gguf", weights())
    dst = tmp_path / "b.gguf"
    with pytest.raises(ArgumentError, match="is the source"):
        quantize(src, tmp_path / "." / "a.gguf", "q8_0")
    with pytest.raises(UnsupportedError, match="found 'q9_9'"):
        quantize(src, dst, "q9_9")
    for n in (0, 257):
        with pytest.raises(ArgumentError, match="n_threads"):
            quantize(src, dst, "q8_0", n_threads=n)
    with pytest.raises(NotFoundError):
        quantize(tmp_path / "none.gguf", dst, "q8_0")
    (tmp_path / "junk.gguf").write_bytes(b"not a model")
    with pytest.raises(FormatError):
        quantize(tmp_path / "junk.gguf", dst, "q8_0")
    assert not dst.exists()


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more pieces are alive than threads + 1 in flight and the one being written."""
    monkeypatch.setattr(q, "_PIECE_VALUES", 64)
    alive = 0
    most = 0
    real: Any = q._encode_piece
    lock = threading.Lock()

    def counted(*args: Any) -> Any:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return real(*args)

    def written(self: Any, name: str, data: Any) -> None:
        nonlocal alive
        original(self, name, data)
        with lock:
            alive -= 1

    original = GGUFWriter.write
    monkeypatch.setattr(q, "_encode_piece", counted)
    monkeypatch.setattr(GGUFWriter, "write", written)
    src = tmp_path / "a.gguf"
    with GGUFWriter(src) as w:
        w.add_tensor("m.weight", "f32", (64, 500))
        original(w, "m.weight", np.zeros(64 * 500, np.float32).tobytes())
    quantize(src, tmp_path / "b.gguf", "q8_0", n_threads=2)
    assert 2 <= most <= 4
