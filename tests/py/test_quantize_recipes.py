"""quantize(): mixes tensor by tensor against llama.cpp's choices, and importance matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_convert import folder
from test_quantize import make, types, values, weights

from ruvllm import _core
from ruvllm._errors import FormatError, NotFoundError, UnsupportedError
from ruvllm.engine._gguf_writer import GGUFWriter
from ruvllm.engine._recipes import FALLBACK, RECIPES, Facts, choose_types, recipe
from ruvllm.engine.convert import convert
from ruvllm.engine.quantize import quantize

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS: dict[str, Any] = json.loads((GOLDEN / "quantize" / "recipes.json").read_text())
CASES = [(m, key) for m, r in MODELS.items() for key in r["types"]]


def facts(r: dict[str, Any], weighted: bool) -> Facts:
    def first(value: Any, default: int) -> int:
        return default if value is None else value[0] if isinstance(value, list) else value

    heads = first(r["head_count"], 0)
    kv = first(r["head_count_kv"], heads)
    return Facts(r["arch"], r["block_count"], heads, kv, weighted)


@pytest.mark.parametrize(("model", "key"), CASES, ids=[f"{m}-{k}" for m, k in CASES])
def test_every_tensor_gets_llama_cpps_type(model: str, key: str) -> None:
    r = MODELS[model]
    name, *flags = key.split("+")
    theirs = {r["tensors"][i][0]: kind for kind, of in r["types"][key].items() for i in of}
    ours = choose_types(
        r["tensors"], recipe(name), facts(r, "imatrix" in flags), pure="pure" in flags
    )
    assert {n: c.got.name for n, c in ours.items()} == theirs
    assert recipe(name).file_type == r["file_types"][key]
    shuffled = choose_types(
        r["tensors"][::-1], recipe(name), facts(r, "imatrix" in flags), pure="pure" in flags
    )
    assert shuffled == ours


def test_the_goldens_cover_the_mixes() -> None:
    assert {k.split("+")[0] for _, k in CASES} == {n for n in RECIPES if recipe(n).mix}
    assert {r["arch"] for r in MODELS.values()} == {"llama", "qwen2", "qwen3", "lfm2", "bert"}


@pytest.mark.parametrize("name", [n for n in RECIPES if recipe(n).base.name in FALLBACK])
def test_rows_that_do_not_fit_fall_back_and_are_reported(tmp_path: Path, name: str) -> None:
    src = make(tmp_path / "a.gguf", weights())  # rows of 64, 96 and 40
    dst = tmp_path / "b.gguf"
    r = quantize(src, dst, name, pure=True)
    base = recipe(name).base.name
    kinds = types(dst)
    assert kinds["blk.0.ffn_up.weight"] == FALLBACK[base] and kinds["blk.0.odd.weight"] == "f16"
    assert {(f.row_values, f.wanted, f.got) for f in r.fallbacks} == {
        (64, base, FALLBACK[base]), (96, base, FALLBACK[base]), (40, base, "f16"),
    }  # fmt: skip
    assert _core.gguf_open(str(dst)).get("general.file_type") == recipe(name).file_type


@pytest.mark.parametrize("name", ["q4_k_m", "q2_k", "iq4_xs", "q5_k", "q6_k"])
def test_a_mixed_file_holds_the_model(tmp_path: Path, name: str) -> None:
    shapes = {
        "output.weight": (32, 256),
        "blk.0.attn_v.weight": (64, 256),
        "blk.1.attn_v.weight": (64, 256),
        "blk.0.ffn_down.weight": (256, 512),
    }
    src = make(tmp_path / "a.gguf", weights(**shapes))
    dst = tmp_path / "b.gguf"
    quantize(src, dst, name)
    kinds, before, after = types(dst), values(src), values(dst)
    assert kinds["output.weight"] == "q6_k"
    most = {"q2_k": 0.35, "q3_k": 0.25, "q4_k": 0.1, "iq4_xs": 0.1, "q5_k": 0.05, "q6_k": 0.03}
    for tensor in shapes:
        x, y = before[tensor], after[tensor]
        assert np.sqrt(np.mean((x - y) ** 2)) <= most[kinds[tensor]] * x.std(), tensor


@pytest.mark.parametrize("arch", ["llama", "qwen3", "lfm2", "bert"])
@pytest.mark.parametrize("name", ["q4_k_m", "iq4_nl", "q5_k"])
def test_convert_chooses_as_quantize_does(tmp_path: Path, arch: str, name: str) -> None:
    src = folder(tmp_path / "hf", arch)
    convert(src, tmp_path / "full.gguf", type="f32")
    ours = convert(src, tmp_path / "a.gguf", type=name)
    theirs = quantize(tmp_path / "full.gguf", tmp_path / "b.gguf", name)
    assert types(tmp_path / "a.gguf") == types(tmp_path / "b.gguf")
    assert sorted(ours.fallbacks, key=str) == sorted(theirs.fallbacks, key=str)
    assert ours.type == theirs.type == name
    kind = _core.gguf_open(str(tmp_path / "a.gguf")).get("general.file_type")
    assert kind == recipe(name).file_type


def test_plain_k_types_keep_the_head_at_six_bits(tmp_path: Path) -> None:
    ones = np.ones((8, 256), np.float32)
    src = make(tmp_path / "a.gguf", {"token_embd.weight": ones, "blk.0.attn_v.weight": ones})
    for name in ("q3_k", "q4_k", "q5_k"):
        quantize(src, tmp_path / "b.gguf", name)
        assert types(tmp_path / "b.gguf") == {
            "token_embd.weight": "q6_k", "blk.0.attn_v.weight": name,
        }  # fmt: skip


def test_unknown_types_name_those_there_are(tmp_path: Path) -> None:
    src = make(tmp_path / "a.gguf", weights())
    with pytest.raises(UnsupportedError, match="found 'q4_k_x', this build writes f32 .* q4_k_m "):
        quantize(src, tmp_path / "b.gguf", "q4_k_x")


# ---- importance matrices ----

UP, DOWN = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"


def write_imatrix(path: Path, entries: dict[str, tuple[Any, Any]]) -> Path:
    """A GGUF as llama.cpp's imatrix tool writes it; entries: sums (n, k) and counts (n,)."""
    with GGUFWriter(path) as w:
        w.add_kv("general.type", "str", "imatrix")
        w.add_kv("imatrix.chunk_count", "u32", 1)
        arrays = {}
        for name, (sums, counts) in entries.items():
            if sums is not None:
                arrays[f"{name}.in_sum2"] = np.atleast_2d(np.asarray(sums, np.float32))
            if counts is not None:
                arrays[f"{name}.counts"] = np.asarray(counts, np.float32).reshape(-1, 1)
        for name, a in arrays.items():
            w.add_tensor(name, "f32", a.shape[::-1])
        for name, a in arrays.items():
            w.write(name, a.tobytes())
    return path


@pytest.mark.parametrize("kind", ["q4_0", "q4_k_m", "q2_k"])
def test_weights_from_every_source_are_the_same(tmp_path: Path, kind: str) -> None:
    src = make(tmp_path / "a.gguf", weights(), "f16")
    rng = np.random.default_rng(0)
    up, down = rng.exponential(size=64).astype("f4"), rng.exponential(size=96).astype("f4")
    up[:8] *= 100
    mapping = {UP: up, DOWN: down}
    np.savez(tmp_path / "w.npz", **{k: v.astype("f8") for k, v in mapping.items()})
    write_imatrix(tmp_path / "w.gguf", {UP: (up * 4, [4]), DOWN: (down * 8, [8])})
    out = []
    for i, source in enumerate((mapping, tmp_path / "w.npz", str(tmp_path / "w.gguf"))):
        dst = tmp_path / f"{i}.gguf"
        r = quantize(src, dst, kind, imatrix=source)
        assert "blk.0.attn_q.weight" in r.unweighted and UP not in r.unweighted
        assert "blk.0.odd.weight" not in r.unweighted  # F16: weights make no difference
        out.append(dst.read_bytes())
    assert out[0] == out[1] == out[2]
    g = _core.gguf_open(str(tmp_path / "0.gguf"))
    assert g.get("quantize.imatrix.entries_count") == 2
    plain = quantize(src, tmp_path / "p.gguf", kind)
    assert plain.unweighted == []
    x, a, b = (values(p)[UP] for p in (src, tmp_path / "p.gguf", tmp_path / "0.gguf"))
    assert (up * (b - x) ** 2).mean() < 0.95 * (up * (a - x) ** 2).mean()
    again = quantize(tmp_path / "0.gguf", tmp_path / "c.gguf", "f16", allow_requantize=True)
    assert again.unweighted == []
    assert _core.gguf_open(str(again.dst)).get("quantize.imatrix.entries_count") is None


def test_experts_have_weights_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "blk.0.experts.weight"  # 2 matrices of 6 rows
    src = make(tmp_path / "a.gguf", weights())
    w = np.random.default_rng(1).exponential(size=(2, 64)).astype("f4")
    out = []
    for piece in (1 << 20, 256):
        monkeypatch.setattr("ruvllm.engine.quantize._PIECE_VALUES", piece)
        write_imatrix(tmp_path / "w.gguf", {name: (w * 3, [3, 3])})
        quantize(src, tmp_path / "b.gguf", "q4_0", imatrix=tmp_path / "w.gguf")
        out.append(values(tmp_path / "b.gguf")[name])
    assert np.array_equal(*out)
    for i in range(2):
        quantize(src, tmp_path / "c.gguf", "q4_0", imatrix={name: w[i]})
        assert np.array_equal(values(tmp_path / "c.gguf")[name][i], out[0][i])
    write_imatrix(tmp_path / "w.gguf", {name: (w, [3, 0])})  # the second was never used
    quantize(src, tmp_path / "b.gguf", "q4_0", imatrix=tmp_path / "w.gguf")
    quantize(src, tmp_path / "c.gguf", "q4_0", imatrix={name: np.ones(64)})
    assert np.array_equal(
        values(tmp_path / "b.gguf")[name][1], values(tmp_path / "c.gguf")[name][1]
    )


ONES = np.ones(64, np.float32)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"blk.7.x.weight": ONES, "a": ONES}, "imatrix: has weights for a, blk.7.x.weight, want"),
        ({UP: ONES[:63]}, "'blk.0.ffn_up.weight': found 1 x 63 weights, want 64"),
        ({UP: np.ones((2, 64))}, "found 2 x 64 weights, want 64"),
        ({"blk.0.experts.weight": np.ones((3, 64))}, "found 3 x 64 weights, want 64 or 2 x 64"),
        ({UP: np.ones((1, 1, 64))}, "found 1 x 1 x 64 weights"),
        ({UP: -ONES}, "found -1 at column 0, want a finite number of at least 0"),
        ({UP: ONES * np.nan}, "found nan at column 0"),
        ({UP: np.full(64, 1e300)}, "found inf at column 0"),
        ({UP: ["a"] * 64}, "'blk.0.ffn_up.weight': could not convert"),
    ],
)
def test_bad_weights_are_errors_by_name(tmp_path: Path, source: Any, message: str) -> None:
    src = make(tmp_path / "a.gguf", weights())
    with pytest.raises(FormatError, match=message):
        quantize(src, tmp_path / "b.gguf", "q4_0", imatrix=source)
    assert not (tmp_path / "b.gguf").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({UP: (ONES, None)}, "want 1 x 1 values in blk.0.ffn_up.weight.counts"),
        ({UP: (None, [1])}, "found no tensor"),
        ({UP: (ONES, [1]), DOWN: (None, [1])}, "'blk.0.ffn_down.weight': has .counts"),
        ({UP: (ONES, [1, 2])}, "want 1 x 1 values"),
        ({UP: (ONES, [-1])}, "counts: want finite numbers of at least 0"),
        ({UP: (-ONES, [1])}, "found -1 at column 0"),
    ],
)
def test_bad_imatrix_files(tmp_path: Path, entries: Any, message: str) -> None:
    src = make(tmp_path / "a.gguf", weights())
    path = write_imatrix(tmp_path / "w.gguf", entries)
    with pytest.raises(FormatError, match=message):
        quantize(src, tmp_path / "b.gguf", "q4_0", imatrix=path)


def test_files_that_are_no_imatrix(tmp_path: Path) -> None:
    src = make(tmp_path / "a.gguf", weights())
    dst = tmp_path / "b.gguf"
    with pytest.raises(NotFoundError, match="none.gguf"):
        quantize(src, dst, "q4_0", imatrix=tmp_path / "none.gguf")
    with pytest.raises(FormatError, match="want <tensor>.in_sum2 and <tensor>.counts"):
        quantize(src, dst, "q4_0", imatrix=src)
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(FormatError):
        quantize(src, dst, "q4_0", imatrix=tmp_path / "junk")
    np.savez(tmp_path / "o.npz", **{UP: np.array([{"a": 1}], object)})
    with pytest.raises(FormatError, match="want arrays of numbers"):
        quantize(src, dst, "q4_0", imatrix=tmp_path / "o.npz")
    whole = (tmp_path / "o.npz").read_bytes()
    (tmp_path / "t.npz").write_bytes(whole[:60])
    with pytest.raises(FormatError):
        quantize(src, dst, "q4_0", imatrix=tmp_path / "t.npz")
    assert not dst.exists()
