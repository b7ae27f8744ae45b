"""``ruvllm bench``, and the thread count it remembers."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path

import pytest
from cli_run import MODEL, away, here, start
from encoder_make import encoder

import ruvllm
from ruvllm import _core
from ruvllm.engine import _tune
from ruvllm.engine._bench import bytes_per_token
from ruvllm.engine._tune import Measured, best, remember, tune_path, tuned_threads

SHORT = ("--pp", "8", "--tg", "4", "-r", "2")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUVLLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_bench_shows_a_row_per_thread_count_and_test() -> None:
    ran = here("bench", MODEL, *SHORT, "--threads", "1,2", "--depth", "3")
    rows = [line.split()[:2] for line in ran.out.splitlines()[4:]]
    assert ran.code == 0
    assert rows == [["1", "pp8"], ["1", "tg4@3"], ["2", "pp8"], ["2", "tg4@3"]]


def test_bench_json() -> None:
    ran = here("bench", MODEL, *SHORT, "-j", "1", "--json")
    out = json.loads(ran.out)
    assert ran.code == 0 and ran.err == ""
    assert list(out) == [
        "model", "machine", "version", "repeat", "load_ms", "results", "tuned",
    ]  # fmt: skip
    assert out["model"]["architecture"] == "llama" and out["tuned"] is None
    assert len(out["load_ms"]) == 1 and out["load_ms"][0] > 0
    pp, tg = out["results"]
    assert (pp["test"], tg["test"], pp["unit"]) == ("pp8", "tg4", "tokens/s")
    for r in (pp, tg):
        assert len(r["values"]) == out["repeat"] == 2
        assert 0 < r["min"] <= r["median"] <= r["max"] and r["n_threads"] == 1
    assert pp["read_bandwidth"] is None and tg["read_bandwidth"] > 0
    assert tg["bandwidth_share"] is None  # so small a model is in the caches


def test_bench_of_batches() -> None:
    out = json.loads(
        here("bench", MODEL, *SHORT, "--batch", "3,1,3", "--threads", "2", "--json").out
    )
    one, *many = [r for r in out["results"] if r["test"].startswith("tg")]
    assert [r["test"] for r in many] == [f"{one['test']}x3", f"{one['test']}x1"]
    for r in many:
        assert r["unit"] == "tokens/s" and r["bandwidth_share"] is None
        assert all(v > 0 for v in r["values"]) and len(r["values"]) == len(one["values"])


def test_bench_without_numbers_fits_the_context() -> None:
    n_ctx = ruvllm.Model(MODEL, witness=False).n_ctx
    ran = here("bench", "--depth", str(n_ctx - 5), "-r", "1", "--json")
    assert [r["test"] for r in json.loads(ran.out)["results"]] == [
        f"pp{min(512, n_ctx)}", f"tg5@{n_ctx - 5}",
    ]  # fmt: skip


def test_bench_of_an_encoder(tmp_path: Path) -> None:
    model = encoder(tmp_path / "e.gguf")
    out = json.loads(here("bench", model, "-r", "1", "-j", "1", "--json").out)
    assert [(r["test"], r["unit"]) for r in out["results"]] == [
        ("embed", "texts/s"), ("latency", "ms"),
    ]  # fmt: skip
    assert all(r["median"] > 0 for r in out["results"])
    ran = here("bench", model, "--pp", "5")
    assert ran.code == 2 and "--pp:" in ran.error and "is an encoder" in ran.error
    ran = here("bench", model, "--tune")
    assert ran.code == 2 and "is an encoder" in ran.error


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--threads", "0"], 1, "--threads: is 0, want 1 .. 256"),
        (["--threads", "1,-2"], 1, "--threads: is -2, want 1 .. 256"),
        (["--threads", "257"], 1, "--threads: is 257, want 1 .. 256"),
        (["--threads", "1,,2"], 2, "--threads: is '1,,2', want numbers such as 1,2,4"),
        (["--threads", ""], 2, "--threads: is '', want numbers"),
        (["--threads", "two"], 2, "--threads: is 'two', want numbers"),
        (["--batch", "0"], 1, "--batch: is 0, want 1 .. 1024"),
        (["--batch", "a"], 2, "--batch: is 'a', want numbers"),
        (["--pp", "0"], 1, "--pp: is 0, want at least 1"),
        (["--tg", "0"], 1, "--tg: is 0, want at least 1"),
        (["--depth", "-1"], 1, "--depth: is -1, want at least 0"),
        (["--repeat", "0"], 1, "--repeat: is 0, want at least 1"),
        (["--pp", "100000"], 1, "--pp: is 100000, want at most the context of 256 tokens"),
        (["--depth", "250", "--tg", "7"], 1, "--depth: 250 with --tg 7 makes 257 tokens"),
        (["--depth", "256"], 1, "--depth: 256 with --tg 1 makes 257 tokens"),
        (["/no/where.gguf"], 1, "/no/where.gguf"),
    ],
)
def test_bench_refuses(argv: list[str], code: int, says: str) -> None:
    ran = here("bench", *argv)
    assert ran.code == code and ran.out == "" and says in ran.error


def test_bytes_per_token_counts_a_tied_embedding_once() -> None:
    core = _core.model_open(str(MODEL), 1, 0, 0, False, None)
    tensors = {t[0]: t[5] for t in core.gguf().tensors()}
    untied = tensors["token_embd.weight"] if "output.weight" in tensors else 0
    assert bytes_per_token(core) == sum(tensors.values()) - untied


# ---- tune ----


def test_tune_is_remembered_and_used(home: Path) -> None:
    before = ruvllm.Model(MODEL, witness=False).info.n_threads
    ran = here("bench", MODEL, *SHORT, "--tune", "--threads", "3", "--json")
    assert json.loads(ran.out)["tuned"] == {"n_threads": 3, "path": str(home / "tune.json")}
    assert before != 3
    assert ruvllm.Model(MODEL, witness=False).info.n_threads == 3
    assert ruvllm.Model(MODEL, n_threads=2, witness=False).info.n_threads == 2
    assert os.listdir(home) == ["tune.json"]


def test_tune_tries_every_power_of_two(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tune, "n_cpus", lambda: 3)
    out = json.loads(here("bench", MODEL, *SHORT, "--tune", "--json").out)
    assert [r["n_threads"] for r in out["results"]] == [1, 1, 2, 2, 3, 3]
    (entry,) = json.loads((home / "tune.json").read_text())["entries"].values()
    assert [m["n_threads"] for m in entry["measured"]] == [1, 2, 3]
    assert entry["n_threads"] == out["tuned"]["n_threads"]


def test_the_best_is_the_fastest_or_close_to_it_with_fewer() -> None:
    assert best([Measured(1, 100, 30), Measured(2, 190, 45)]).n_threads == 2
    assert best([Measured(2, 190, 45), Measured(4, 191, 45.5)]).n_threads == 2
    assert best([Measured(1, 100, 30), Measured(2, 90, 20)]).n_threads == 1


def test_an_entry_is_for_one_file_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(MODEL.read_bytes() + b"\0")
    remember(str(MODEL), [Measured(3, 1, 1)], {})
    remember(str(other), [Measured(4, 1, 1)], {"model": "other"})
    assert (tuned_threads(str(MODEL)), tuned_threads(str(other))) == (3, 4)
    assert tuned_threads(str(tmp_path / "none.gguf")) is None
    monkeypatch.setattr(_tune, "cpu_name", lambda: "another")
    assert tuned_threads(str(MODEL)) is None


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "[" * 100_000, '{"version": 2, "entries": {}}', "\xff",
        '{"version": 1}', '{"version": 1, "entries": []}', " " * (1 << 20) + "{}",
    ],
)  # fmt: skip
def test_a_broken_file_is_ignored_and_replaced(
    text: str, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.mkdir()
    tune_path().write_bytes(text.encode("latin-1"))
    with caplog.at_level(logging.WARNING, "ruvllm"):
        assert ruvllm.Model(MODEL, witness=False).info.n_threads >= 1
    assert [r.getMessage().startswith(f"{tune_path()}: ignored:") for r in caplog.records] == [True]
    remember(str(MODEL), [Measured(3, 1, 1)], {})
    assert tuned_threads(str(MODEL)) == 3


@pytest.mark.parametrize("n", [0, -1, 257, 1.5, True, "2", None, [2]])
def test_a_broken_entry_is_ignored(n: object, caplog: pytest.LogCaptureFixture) -> None:
    remember(str(MODEL), [Measured(3, 1, 1)], {})
    found = json.loads(tune_path().read_text())
    for entry in found["entries"].values():
        entry["n_threads"] = n
    tune_path().write_text(json.dumps(found))
    with caplog.at_level(logging.WARNING, "ruvllm"):
        assert tuned_threads(str(MODEL)) is None
    assert "n_threads is" in caplog.text


def test_tune_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RUVLLM_HOME", str(tmp_path / "file" / "home"))
    assert tuned_threads(str(MODEL)) is None
    ran = here("bench", MODEL, *SHORT, "--tune", "-j", "1")
    assert ran.code == 1 and "Not a directory" in ran.error


def test_bench_in_a_process_of_its_own(home: Path) -> None:
    ran = away(home, "bench", *SHORT, "-j", "1")
    assert ran.code == 0 and ran.err == "" and "pp8" in ran.out


def test_ctrl_c_ends_it(home: Path) -> None:
    code = """
import sys, time
from ruvllm.engine import _bench
slow = _bench._seconds

def told(*args):
    print("started", file=sys.stderr, flush=True)
    time.sleep(0.05)
    return slow(*args)

_bench._seconds = told
from ruvllm.cli import main
sys.exit(main(sys.argv[1:]))
"""
    process = start(home, "bench", "-r", "10000", code=code)
    assert process.stderr is not None and process.stderr.readline() == b"started\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and out == b""
