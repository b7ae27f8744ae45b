"""The edges of speed: CPUs without the instruction sets, masks, odd sizes, tensors at odd
addresses, nothing at all, and thread counts beyond reason.  The results are the same, or the error
names the thing, the value found and the range."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import gguf_make as mk
import numpy as np
import pytest
from cli_run import MODEL, away, here

import ruvllm
from ruvllm import ArgumentError, FormatError, _core
from ruvllm.engine import _gguf_writer, _notice, _tune
from ruvllm.engine._gguf_writer import GGUFWriter, dtypes
from ruvllm.engine.quantize import quantize

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
MASKS = [0, 1, 3, 7, 15]
IDS = [1, 5, 36, 0, 7, 11, 2]


@pytest.fixture(autouse=True)
def _all_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_notice, "_said", set())
    yield
    _core.cpu_limit(15)


# ---- instruction sets ----


def test_a_cpu_without_avx2_answers_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    want = ruvllm.Model(witness=False).generate("reverse apple island", max_tokens=4)
    assert not caplog.records
    _core.cpu_limit(0)
    with caplog.at_level(logging.WARNING, "ruvllm"):
        for _ in range(3):
            found = ruvllm.Model(witness=False).generate("reverse apple island", max_tokens=4)
    assert found.tokens == want.tokens
    (record,) = caplog.records
    assert record.name == "ruvllm" and record.levelname == "WARNING"
    assert record.getMessage().startswith("cpu: found no AVX2 with FMA and F16C: models run")


def test_doctor_shows_a_cpu_without_avx2() -> None:
    assert json.loads(here("doctor", "--json").out)["cpu"]["notice"] is None
    _core.cpu_limit(0)
    ran = here("doctor")
    assert ran.code == 0 and "portable" in ran.out and "found no AVX2" in ran.out
    cpu = json.loads(here("doctor", "--json").out)["cpu"]
    assert cpu["used"] == ["portable"] and cpu["notice"].startswith("cpu: found no AVX2")


def test_the_command_line_says_it_on_one_line_of_stderr(tmp_path: Path) -> None:
    code = (
        "import sys; from ruvllm import _core; from ruvllm.cli import main\n"
        "_core.cpu_limit(0); sys.exit(main(sys.argv[1:]))"
    )
    ran = away(tmp_path, "run", "reverse apple island", code=code)
    assert ran.code == 0 and ran.out == "island apple\n"
    assert ran.error.startswith("warning: cpu: found no AVX2")


@pytest.mark.parametrize("mask", range(16))
def test_a_mask_uses_what_there_is_and_nothing_above_a_gap(mask: int) -> None:
    has = {"avx2": 1, "avx512": 2, "vnni": 4, "bf16": 8}
    machine = sum(has[name] for name in _core.cpu()["machine"].split() if name in has)
    want = mask & machine
    want = 0 if not want & 1 else want if want & 2 else 1
    _core.cpu_limit(mask)
    used = _core.cpu()["features"].split()
    assert used == ([n for n, bit in has.items() if want & bit] or ["portable"])
    assert set(_core.cpu()["kernels"].values()) <= {"ref", *used}


@pytest.mark.parametrize("mask", [-1, 16, 255, 2**32, 2**80, -(2**80)])
def test_a_mask_of_unknown_bits_is_refused(mask: int) -> None:
    before = _core.cpu()
    with pytest.raises(ArgumentError, match=r"cpu_limit: mask is .*, want 0 \.\. 15"):
        _core.cpu_limit(mask)
    assert _core.cpu() == before


# ---- sizes and addresses ----


def _write(path: Path, kind: str, width: int, n_ff: int, n_vocab: int) -> Path:
    """A llama of one layer with sizes that no tile divides; kind: of its matrices."""
    rng = np.random.default_rng(width)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_vocab, width), "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,), "blk.0.ffn_norm.weight": (width,),
        "blk.0.attn_q.weight": (width, width), "blk.0.attn_k.weight": (width // 4, width),
        "blk.0.attn_v.weight": (width // 4, width), "blk.0.attn_output.weight": (width, width),
        "blk.0.ffn_gate.weight": (n_ff, width), "blk.0.ffn_up.weight": (n_ff, width),
        "blk.0.ffn_down.weight": (width, n_ff),
    }  # fmt: skip
    to = dtypes()[kind]
    with GGUFWriter(path) as w:
        w.add_kv("general.architecture", "str", "llama")
        w.add_kv("general.alignment", "u32", _gguf_writer.ALIGNMENT)
        w.add_kv("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5)
        for key, value in {
            "context_length": 64, "block_count": 1, "embedding_length": width,
            "feed_forward_length": n_ff, "attention.head_count": 4,
            "attention.head_count_kv": 1, "rope.dimension_count": width // 8 * 2,
        }.items():  # fmt: skip
            w.add_kv(f"llama.{key}", "u32", value)
        for name, shape in shapes.items():
            w.add_tensor(name, to if len(shape) > 1 else "f32", shape[::-1])
        for name, shape in shapes.items():
            x = rng.standard_normal(shape, dtype=np.float32) * np.float32(shape[-1] ** -0.5)
            if len(shape) == 1:
                w.write(name, (x + 1).data)
            elif kind == "f32":
                w.write(name, x.data)
            else:
                out = np.empty(shape[0] * to.row_bytes(shape[1]), np.uint8)
                _core.quantize(to.number, x, shape[1], out)
                w.write(name, out.data)
    return path


def _logits(path: Path, n_threads: int = 1) -> np.ndarray:
    with ruvllm.Model(path, n_threads=n_threads, witness=False) as m:
        return np.array(m.logits(IDS))


@pytest.mark.parametrize("kind", dtypes())
def test_odd_sizes_give_the_same_at_every_level(tmp_path: Path, kind: str) -> None:
    block = dtypes()[kind].block_values
    width, n_ff = {1: (44, 53), 32: (160, 96), 256: (256, 768)}[block]
    path = _write(tmp_path / "a.gguf", kind, width, n_ff, 37)
    _core.cpu_limit(0)
    want = _logits(path)
    assert want.shape == (len(IDS), 37) and np.isfinite(want).all() and want.std() > 0.1
    for mask in MASKS:
        _core.cpu_limit(mask)
        found = _logits(path)
        assert np.abs(found - want).max() <= 5e-2 * want.std(), mask  # rounding of activations
        for n_threads in (2, 9):  # more than there are rows of 16 in a matrix
            assert (_logits(path, n_threads) == found).all(), (mask, n_threads)


@pytest.mark.parametrize("kind", ["f32", "f16", "q4_0", "q8_0"])
def test_tensors_at_any_multiple_of_eight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    width, n_ff = (44, 53) if kind.startswith("f") else (160, 96)
    want = _logits(_write(tmp_path / "a.gguf", kind, width, n_ff, 37))
    monkeypatch.setattr(_gguf_writer, "ALIGNMENT", 8)
    path = _write(tmp_path / "b.gguf", kind, width, n_ff, 37)
    assert {t[4] % 32 for t in _core.gguf_open(str(path)).tensors()} - {0}
    for mask in MASKS:
        _core.cpu_limit(mask)
        if mask == 15:
            assert (_logits(path) == want).all()
        assert np.abs(_logits(path) - want).max() <= 5e-2 * want.std()


@pytest.mark.parametrize(("kind", "k"), [("q8_0", 33), ("q4_0", 31), ("q4_k", 128), ("iq4_xs", 1)])
def test_rows_that_are_not_whole_blocks_name_the_tensor(tmp_path: Path, kind: str, k: int) -> None:
    values = dtypes()[kind].block_values
    with GGUFWriter(tmp_path / "a.gguf") as w:
        with pytest.raises(ArgumentError, match=rf"tensor 'odd': {kind} row: found {k} values"):
            w.add_tensor("odd", kind, (k, 2))
        w.add_tensor("even", kind, (values, 1))
        w.write("even", bytes(dtypes()[kind].block_bytes))
    bad = tmp_path / "b.gguf"
    bad.write_bytes(
        mk.gguf((), [mk.Tensor("odd", (k, 2), type=dtypes()[kind].number, n_bytes=4096)])
    )
    with pytest.raises(FormatError, match=rf'tensor 0, "odd": .*found {k}, .*{values}'):
        _core.gguf_open(str(bad))
    x = np.zeros((2, k), np.float32)
    with pytest.raises(ArgumentError, match=f"rows of {k} values, want a multiple of {values}"):
        _core.quantize(dtypes()[kind].number, x, k, np.empty(4096, np.uint8))


def test_rows_that_do_not_fit_are_named_in_the_result(tmp_path: Path) -> None:
    src = _write(tmp_path / "a.gguf", "f32", 160, 52, 37)
    got = quantize(src, tmp_path / "b.gguf", "q4_k_m")
    assert {(f.name, f.row_values, f.wanted, f.got) for f in got.fallbacks} >= {
        ("blk.0.attn_q.weight", 160, "q4_k", "q5_0"), ("blk.0.ffn_down.weight", 52, "q6_k", "f16"),
    }  # fmt: skip
    assert np.abs(_logits(tmp_path / "b.gguf") - _logits(src)).mean() < 0.5


# ---- nothing ----


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", dtypes())
def test_zero_rows_and_columns(kind: str, mask: int) -> None:
    number, k, size = _core.dtypes()[kind]
    _core.cpu_limit(mask)
    none, one = np.empty(0, np.uint8), np.zeros(size, np.uint8)
    out = np.full(0, 5, np.float32)
    _core.mul(number, none, 0, np.ones(k, np.float32), k, out)  # no rows
    _core.mul(number, one, 1, np.empty(0, np.float32), k, out)  # no columns
    _core.quantize(number, np.empty(0, np.float32), k, none)
    for call in (
        lambda: _core.mul(number, none, 0, np.empty(0, np.float32), 0, out),
        lambda: _core.quantize(number, np.empty(0, np.float32), 0, none),
        lambda: _core.dequantize(number, none, 0, out),
    ):
        with pytest.raises(ArgumentError, match="rows of 0 values, want at least 1"):
            call()


def test_a_model_is_asked_for_nothing() -> None:
    m = ruvllm.Model(witness=False)
    assert m.embed([]).shape == (0, m.info.n_embd)
    with pytest.raises(ArgumentError, match="tokens"):
        m.logits([])
    with pytest.raises(ArgumentError, match="prompt: has no tokens"):
        m.generate([])


# ---- reading ahead ----


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_models_may_be_closed_while_they_are_read_ahead(tmp_path: Path) -> None:
    path = _write(tmp_path / "big.gguf", "f32", 44, 53, 300_000)
    want = _logits(path)
    for _ in range(30):
        ruvllm.Model(path, n_threads=1, witness=False).close()
    model = ruvllm.Model(path, n_threads=2, witness=False)
    child = os.fork()
    if child == 0:  # has the model, and neither its threads nor the one that reads ahead
        same = (model.logits(IDS) == want).all()
        model.close()
        del model
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (model.logits(IDS) == want).all()


# ---- threads ----

BAD_COUNTS = [0, -1, 257, 2**40, True, 1.5, "2"]


@pytest.mark.parametrize("n", BAD_COUNTS, ids=repr)
def test_thread_counts_are_checked_everywhere(tmp_path: Path, n: object) -> None:
    message = r"n_threads: is .*, want .*1 \.\. 256"
    with pytest.raises(ArgumentError, match=message):
        ruvllm.Model(n_threads=n, witness=False)  # type: ignore[arg-type]
    out = tmp_path / "q.gguf"
    with pytest.raises(ArgumentError, match=message):
        quantize(GOLDEN / "llama-d64-f32.gguf", out, "q8_0", n_threads=n)  # type: ignore[arg-type]
    assert not out.exists()
    if type(n) is int and abs(n) < 2**31:
        with pytest.raises(ArgumentError, match=r"n_threads: .*1 \.\. 256"):
            _core.read_bandwidth(n, 1 << 20)


@pytest.mark.parametrize("n", ["0", "-1", "257"])
@pytest.mark.parametrize(
    "argv",
    [
        ["run", "x"],
        ["embed", "x"],
        ["bench"],
        ["quantize", GOLDEN / "llama-d64-f32.gguf", "OUT", "--type", "q8_0"],
    ],
    ids=lambda argv: argv[0],
)
def test_the_command_line_names_the_bad_count(
    tmp_path: Path, argv: list[str | Path], n: str
) -> None:
    words = [tmp_path / "out.gguf" if word == "OUT" else word for word in argv]
    ran = here(*words, "--threads", n)
    assert ran.code == 1 and f"threads: is {n}, want 1 .. 256" in ran.error


def test_more_threads_than_cpus_compute_the_same_and_are_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = ruvllm.Model(n_threads=1, witness=False).logits(IDS)
    assert not caplog.records
    monkeypatch.setattr(_notice, "n_cpus", lambda: 1)
    with caplog.at_level(logging.WARNING, "ruvllm"):
        for _ in range(2):
            assert (ruvllm.Model(n_threads=33, witness=False).logits(IDS) == want).all()
    (record,) = caplog.records
    assert record.getMessage() == "n_threads: 33 threads for 1 CPUs: they take turns"


def test_the_default_never_asks_for_more_threads_than_cpus(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "ruvllm"):
        assert ruvllm.Model(MODEL, witness=False).info.n_threads <= _tune.n_cpus()
    assert not caplog.records
