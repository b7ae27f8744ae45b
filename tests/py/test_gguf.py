"""The GGUF reader on right files: every value type, goldens against the gguf package, splits."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import gguf
import gguf_make as mk
import numpy as np
import pytest
from gguf_make import ARR, STR, U8, U32, Tensor

from ruvllm import _core
from ruvllm._errors import ArgumentError, FormatError, NotFoundError, StateError

ROOT = Path(__file__).parents[1]
GOLDEN = sorted((ROOT / "golden" / "models").glob("*.gguf"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_file_reads_like_the_gguf_package(path: Path) -> None:
    theirs = gguf.GGUFReader(path)
    ours = _core.gguf_open(str(path))
    pairs = {key: (kind, value) for key, kind, value in ours.kv(-1)}
    fields = {k: f for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert list(pairs) == list(fields)
    for key, field in fields.items():
        assert pairs[key][1] == field.contents(), key
        assert ours.get(key) == field.contents()
        kinds = [mk.NAMES[int(t)] for t in field.types]
        assert pairs[key][0] == (f"arr[{kinds[1]}]" if kinds[0] == "arr" else kinds[0])
    rows = ours.tensors()
    assert len(rows) == len(theirs.tensors) == ours.n_tensors() > 0
    for i, (row, t) in enumerate(zip(rows, theirs.tensors, strict=True)):
        name, number, kind, dims, offset, n_bytes, i_file = row
        assert (name, number) == (t.name, int(t.tensor_type))
        assert kind == t.tensor_type.name.lower()
        assert dims == tuple(int(d) for d in t.shape)
        assert (offset, n_bytes, i_file) == (t.data_offset, t.n_bytes, 0)
        data = np.frombuffer(ours.tensor_data(i), np.uint8)
        assert np.array_equal(data, t.data.reshape(-1).view(np.uint8))
    assert ours.file_bytes() == path.stat().st_size


def test_every_value_type() -> None:
    g = _core.gguf_open_bytes(mk.all_types())
    assert g.version() == 3 and g.alignment() == 32 and g.n_kv() == 28 and g.n_tensors() == 3
    values = {k: v for k, _, v in g.kv(-1)}
    assert values["a.u8"] == 255 and values["a.i8"] == -128
    assert values["a.u16"] == 65535 and values["a.i16"] == -32768
    assert values["a.u32"] == 2**32 - 1 and values["a.i32"] == -(2**31)
    assert values["a.u64"] == 2**64 - 1 and values["a.i64"] == -(2**63)
    assert values["a.f32"] == 0.5 and values["a.f64"] == -1e300
    assert values["a.bool"] is True and values["a.str"] == "größe" and values["a.empty"] == ""
    assert values["a.bytes"] == "��!"
    assert values["arr.u8"] == [0, 255] and values["arr.i8"] == [-128, 127]
    assert values["arr.u16"] == [0, 65535] and values["arr.i16"] == [-32768, 32767]
    assert values["arr.u32"] == [0, 2**32 - 1] and values["arr.i32"] == [-(2**31), 2**31 - 1]
    assert values["arr.u64"] == [0, 2**64 - 1] and values["arr.i64"] == [-(2**63), 2**63 - 1]
    assert values["arr.f32"] == [0.0, -1.5] and values["arr.f64"] == [0.1, -0.0]
    assert values["arr.bool"] == [True, False] and values["arr.str"] == ["", "ab", "ü"]
    assert values["arr.none"] == [] and values["arr.arr"] == [[1, 2], ["x"], [[]]]
    assert {k: t for k, t, _ in g.kv(0)}["arr.arr"] == "arr[arr]"
    assert all(g.get(k) == v for k, v in values.items())


def test_kv_cuts_arrays_where_asked() -> None:
    g = _core.gguf_open_bytes(mk.all_types())
    cut = {k: v for k, _, v in g.kv(1)}
    assert cut["arr.str"] == [""] and cut["arr.u8"] == [0] and cut["arr.arr"] == [[1]]
    assert {k: v for k, _, v in g.kv(0)}["arr.arr"] == []
    assert {k: v for k, _, v in g.kv(2)}["arr.arr"] == [[1, 2], ["x"]]
    with pytest.raises(ArgumentError, match=r"max_array: found -2, want -1 \(all\)"):
        g.kv(-2)


def test_get_of_an_unknown_key_is_none() -> None:
    g = _core.gguf_open_bytes(mk.all_types())
    assert g.get("") is None and g.get("a") is None and g.get("a.u8\0") is None
    assert g.get("a.u8") == 255
    with pytest.raises(TypeError):
        g.get(1)


@pytest.mark.parametrize("version", [2, 3])
def test_versions_2_and_3(version: int) -> None:
    g = _core.gguf_open_bytes(mk.gguf([mk.kv("k", U32, 1)], [Tensor()], version=version))
    assert g.version() == version and g.get("k") == 1


def test_an_empty_gguf_is_fine() -> None:
    g = _core.gguf_open_bytes(mk.gguf())
    assert g.n_kv() == 0 and g.n_tensors() == 0 and g.kv(-1) == [] and g.tensors() == []
    assert g.get("k") is None and g.file_bytes() == 24


@pytest.mark.parametrize("align", [8, 16, 64, 4096, 65536])
def test_alignment_from_the_file(align: int) -> None:
    tensors = [Tensor("a", (1,)), Tensor("b", (5,))]
    g = _core.gguf_open_bytes(
        mk.gguf([mk.kv("general.alignment", U32, align)], tensors, align=align)
    )
    assert g.alignment() == align
    rows = g.tensors()
    assert rows[0][4] % align == 0 and rows[1][4] == rows[0][4] + align
    assert bytes(g.tensor_data(1)) == bytes((align + i) % 251 for i in range(20))


def test_tensors_in_any_order_and_with_gaps() -> None:
    tensors = [
        Tensor("c", (8,), offset=256),
        Tensor("a", (8,), offset=0),
        Tensor("b", (8,), offset=64),
    ]
    g = _core.gguf_open_bytes(mk.gguf((), tensors))
    starts = [row[4] for row in g.tensors()]
    assert starts[0] - starts[1] == 256 and starts[2] - starts[1] == 64
    assert bytes(g.tensor_data(2))[:4] == bytes([64, 65, 66, 67])


def test_longest_key_and_name() -> None:
    g = _core.gguf_open_bytes(mk.gguf([mk.kv("k" * 65535, U8, 1)], [Tensor("n" * 64)]))
    assert g.get("k" * 65535) == 1 and g.tensors()[0][0] == "n" * 64


def test_arrays_nest_eight_deep() -> None:
    value = _core.gguf_open_bytes(mk.nested(8)).get("deep")
    for _ in range(7):
        assert isinstance(value, list) and len(value) == 1
        value = value[0]
    assert value == [7]


def test_many_strings() -> None:
    words = [f"token {i}" for i in range(150_000)]
    payload = mk.array(STR, [mk.string(w) for w in words])
    before = _core.live_bytes()
    g = _core.gguf_open_bytes(mk.gguf([mk.raw_kv("words", ARR, payload)]))
    assert _core.live_bytes() - before < 4096  # nothing per element
    assert g.get("words") == words
    assert g.kv(2)[0][2] == words[:2]


def test_many_names_are_found() -> None:
    n = 3000
    kvs = [mk.kv(f"key.{i}", U32, i) for i in range(n)]
    tensors = [Tensor(f"blk.{i}", (1,)) for i in range(n)]
    g = _core.gguf_open_bytes(mk.gguf(kvs, tensors))
    assert all(g.get(f"key.{i}") == i for i in range(n))
    assert [row[0] for row in g.tensors()] == [f"blk.{i}" for i in range(n)]


def test_tensor_data_is_a_read_only_view_that_keeps_the_file_alive() -> None:
    g = _core.gguf_open_bytes(bytes(bytearray(mk.all_types())))
    view = g.tensor_data(0)
    assert view.readonly and view.format == "B" and view.nbytes == 256 and view.shape == (256,)
    with pytest.raises(TypeError):
        view[0] = 1  # type: ignore[index]
    array = np.frombuffer(view, np.uint8)
    expect = bytes(i % 251 for i in range(256))
    del g, view
    gc.collect()
    assert array.tobytes() == expect


def test_close_refuses_while_views_exist() -> None:
    g = _core.gguf_open(str(GOLDEN[0]))
    a, b = g.tensor_data(0), g.tensor_data(1)
    with pytest.raises(BufferError, match="found 2 tensor views alive, want none"):
        g.close()
    a.release()
    del a
    with pytest.raises(BufferError, match="found 1 tensor views alive"):
        g.close()
    del b
    g.close()
    g.close()
    for call in (g.version, g.alignment, g.file_bytes, g.n_kv, g.n_tensors, g.tensors):
        with pytest.raises(StateError, match="gguf: found it closed, want it open"):
            call()
    for call1, arg in ((g.kv, -1), (g.get, "x"), (g.tensor_data, 0)):
        with pytest.raises(StateError, match="closed"):
            call1(arg)


@pytest.mark.parametrize("i", [-1, 3, 2**63 - 1])
def test_tensor_data_of_no_tensor(i: int) -> None:
    g = _core.gguf_open_bytes(mk.all_types())
    with pytest.raises(ArgumentError, match=rf"tensor: found {i}, want 0 to 2"):
        g.tensor_data(i)


def test_opening_leaves_nothing_behind() -> None:
    before = _core.live_bytes()
    for _ in range(3):
        g = _core.gguf_open_bytes(mk.all_types())
        v = g.tensor_data(2)
        del g, v
        with pytest.raises(FormatError):
            _core.gguf_open_bytes(mk.all_types()[:900])
    gc.collect()
    assert _core.live_bytes() == before


def test_only_bytes_are_taken() -> None:
    for data in (bytearray(mk.all_types()), memoryview(mk.all_types()), "GGUF", None):
        with pytest.raises(TypeError, match="data: want bytes"):
            _core.gguf_open_bytes(data)  # type: ignore[arg-type]


def test_paths_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "größe 模型.gguf"
    path.write_bytes(mk.all_types())
    assert _core.gguf_open(path).n_tensors() == 3
    assert _core.gguf_open(str(path)).n_tensors() == 3
    assert _core.gguf_open(bytes(path)).n_tensors() == 3
    with pytest.raises(ValueError, match="null"):
        _core.gguf_open("a\0b")
    with pytest.raises(TypeError):
        _core.gguf_open(1)  # type: ignore[arg-type]


# ---- split files ----


def write_split(folder: Path, count: int = 3, stem: str = "m", n_tensors: int = 3) -> list[Path]:
    """One tensor per part; the first part has the metadata."""
    paths = []
    for no in range(count):
        kvs = ([mk.kv("general.name", STR, "split")] if no == 0 else []) + mk.split_keys(
            no, count, n_tensors
        )
        path = folder / f"{stem}-{no + 1:05d}-of-{count:05d}.gguf"
        path.write_bytes(mk.gguf(kvs, [Tensor(f"t{no}", (32 * (no + 1),))]))
        paths.append(path)
    return paths


@pytest.mark.parametrize("which", [0, 1, 2])
def test_split_opens_from_any_part(tmp_path: Path, which: int) -> None:
    paths = write_split(tmp_path)
    g = _core.gguf_open(paths[which])
    assert g.get("general.name") == "split" and g.get("split.no") == 0
    assert [(row[0], row[3], row[6]) for row in g.tensors()] == [
        ("t0", (32,), 0),
        ("t1", (64,), 1),
        ("t2", (96,), 2),
    ]
    assert g.file_bytes() == sum(p.stat().st_size for p in paths)
    for i, path in enumerate(paths):
        row = g.tensors()[i]
        assert bytes(g.tensor_data(i)) == path.read_bytes()[row[4] : row[4] + row[5]]


def test_split_without_tensors_in_the_first_part(tmp_path: Path) -> None:
    paths = write_split(tmp_path, n_tensors=2)
    paths[0].write_bytes(mk.gguf(mk.split_keys(0, 3, 2)))
    assert [row[0] for row in _core.gguf_open(paths[2]).tensors()] == ["t1", "t2"]


def test_a_count_of_one_is_no_split(tmp_path: Path) -> None:
    for count in (0, 1):
        path = tmp_path / "any name.gguf"
        path.write_bytes(mk.gguf(mk.split_keys(0, count, 1), [Tensor()]))
        assert _core.gguf_open(path).n_tensors() == 1


def test_split_missing_part_is_named(tmp_path: Path) -> None:
    for gone in range(3):
        paths = write_split(tmp_path)
        paths[gone].unlink()
        text = rf"{paths[gone].name}: no such file, want part {gone + 1} of 3"
        with pytest.raises(NotFoundError, match=text):
            _core.gguf_open(paths[(gone + 1) % 3])


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (mk.split_keys(2, 3, 3), r"00002-of-00003.gguf: key split.no: found 2, want 1"),
        (mk.split_keys(1, 4, 3), r"key split.count: found 4, want 3"),
        (mk.split_keys(1, 3, 9), r"key split.tensors.count: found 9, want 3"),
        ([], r"key split.count: found 1, want 3"),
        (mk.split_keys(1, 3, 3)[1:], r"key split.no: found none, want one"),
        (mk.split_keys(1, 3, 3)[:2], r"key split.tensors.count: found none, want one"),
        ([*mk.split_keys(1, 3, 3)[:2], mk.kv("split.tensors.count", mk.I32, -1)],
         r"key split.tensors.count: found -1, want 0 to 2147483647"),
        ([mk.kv("split.no", STR, "1"), *mk.split_keys(1, 3, 3)[1:]],
         r"key split.no: found type str, want an integer"),
        (mk.split_keys(7, 3, 3), r"key split.no: found 7, want 0 to 2"),
    ],
)  # fmt: skip
def test_split_parts_that_disagree(tmp_path: Path, keys: list[bytes], text: str) -> None:
    paths = write_split(tmp_path)
    paths[1].write_bytes(mk.gguf(keys, [Tensor("t1", (64,))]))
    with pytest.raises(FormatError, match=text):
        _core.gguf_open(paths[0])


def test_split_broken_part_is_named(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    paths[2].write_bytes(b"GGUF")
    with pytest.raises(FormatError, match=r"m-00003-of-00003\.gguf: version: need 4 bytes"):
        _core.gguf_open(paths[0])


def test_split_tensor_counts_are_checked(tmp_path: Path) -> None:
    paths = write_split(tmp_path, n_tensors=4)
    with pytest.raises(FormatError, match=r"split.tensors.count: found 4, want 3 as in the parts"):
        _core.gguf_open(paths[0])
    paths = write_split(tmp_path, n_tensors=2)
    with pytest.raises(FormatError, match="tensor count: found 1 after 2, want 2 in all parts"):
        _core.gguf_open(paths[0])


def test_split_names_must_differ_between_parts(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    paths[2].write_bytes(mk.gguf(mk.split_keys(2, 3, 3), [Tensor("t0")]))
    with pytest.raises(FormatError, match='tensor 2: found the name "t0" twice, want it once'):
        _core.gguf_open(paths[0])


def test_split_file_names_must_say_the_part(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    other = tmp_path / "renamed.gguf"
    shutil.copy(paths[0], other)
    with pytest.raises(
        FormatError,
        match=r"part 1 of 3: found another file name, want one that ends in -00001-of-00003.gguf",
    ):
        _core.gguf_open(other)


def test_split_bytes_are_refused() -> None:
    from ruvllm._errors import UnsupportedError

    with pytest.raises(UnsupportedError, match=r"split\.count: found 2, want 1"):
        _core.gguf_open_bytes(mk.gguf(mk.split_keys(0, 2, 1), [Tensor()]))
