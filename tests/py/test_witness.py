"""The witness log: entries round trip, filters, digests, defaults, exit, forks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ruvllm import _paths
from ruvllm._errors import (
    ArgumentError,
    FileError,
    FormatError,
    FullError,
    NotFoundError,
    StateError,
)
from ruvllm.memory import WitnessEntry, WitnessLog, default_log, model_digest
from ruvllm.memory import witness as witness_module
from ruvllm.memory.digest import hash_file

FULL: dict[str, Any] = {
    "kind": "chat",
    "id": "01890000-0000-7000-8000-000000000001",
    "request_id": "r",
    "session_id": "s",
    "ts_ms": 1_700_000_000_123,
    "model_used": "1.2B",
    "model_name": "tiny",
    "model_digest": "sha256:00",
    "model_path": "/models/tiny.gguf",
    "adapter": "a",
    "routing": {"model": "1.2B", "model_probs": [0.1, 0.2, 0.3, 0.4], "confidence": 0.5},
    "propensity": 0.3,
    "policy_version": "p1",
    "query_embedding": np.linspace(-1, 1, 768, dtype=np.float32),
    "response_embedding": np.zeros(3, np.float32),
    "quality_score": 0.75,
    "quality_metrics": {"overall": 0.75, "relevance": 1},
    "embedding_ms": 0.1,
    "retrieval_ms": 0.2,
    "routing_ms": 0.3,
    "attention_ms": 0.4,
    "generation_ms": 500.5,
    "total_ms": 501.5,
    "prefill_ms": 100.25,
    "queue_ms": 0.0,
    "context_doc_ids": ("d1", "d2"),
    "error": {"code": "x", "message": "m", "stack_trace": None, "recovery_attempted": False},
    "tags": ("a", "ä", ""),
    "prompt_text": "häßlich\0 \U0001f600\n",
    "prompt_ids": (1, 2, 2**31 - 1, 0, -1),
    "output_text": "",
    "output_ids": (),
    "seed": 2**64 - 1,
    "params": {"temperature": 0.7, "logit_bias": {"5": -1.5}, "stop": ["\n"]},
    "finish_reason": "stop",
    "n_prompt": 4,
    "n_output": 0,
    "engine": {"version": "0.1.0", "kernels": ["avx2"], "n_threads": 2},
    "user_id": "u",
}


@pytest.fixture
def log(tmp_path: Path) -> Any:
    with WitnessLog(tmp_path / "home") as made:
        yield made


def test_every_field_round_trips(log: WitnessLog) -> None:
    entry = WitnessEntry(**FULL)
    assert log.record(entry, critical=True) == entry.id
    got = log.get(FULL["id"])
    assert got == dataclasses.replace(entry, seq=1)
    for name, want in FULL.items():
        value = getattr(got, name)
        if isinstance(want, np.ndarray):
            assert value.dtype == np.float32 and np.array_equal(value, want)
        else:
            assert value == want and type(value) is type(want), name
    assert (got.seq, got.prev_hash, got.hash, got.legal_hold) == (1, None, None, False)
    columns = set(log._call(lambda s: s.query("witness_get", (FULL["id"],)))[0])
    assert columns == {f.name for f in dataclasses.fields(WitnessEntry)}
    parsed = json.loads(got.to_json())
    assert set(parsed) == columns
    assert parsed["query_embedding"][0] == -1 and parsed["prompt_ids"] == list(FULL["prompt_ids"])


def test_an_empty_entry_gets_an_id_and_the_time(log: WitnessLog) -> None:
    before = time.time_ns() // 10**6
    id = log.record(WitnessEntry(kind="embed"))
    entry = log.get(id)
    assert entry.ts_ms is not None and before <= entry.ts_ms <= time.time_ns() // 10**6
    for f in dataclasses.fields(WitnessEntry):
        if f.name not in ("kind", "id", "ts_ms", "seq"):
            assert getattr(entry, f.name) == f.default, f.name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "sing"),
        ("params", {"x": object()}),
        ("params", {"x": b"bytes"}),
        ("prompt_ids", (1, 2**31)),
        ("prompt_ids", (0.5,)),
        ("prompt_ids", ((1, 2), (3, 4))),
        ("query_embedding", "text"),
        ("quality_score", 1.01),
        ("propensity", -0.01),
        ("seed", -1),
        ("ts_ms", "now"),
        ("prompt_text", b"bytes"),
        ("id", "17"),
    ],
)
def test_a_field_that_cannot_be_stored_is_named(log: WitnessLog, field: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match="kind" if field == "kind" else field):
        log.record(WitnessEntry(**{field: value}))
    assert len(log) == 0 and log


def test_odd_values_are_kept_readable(log: WitnessLog) -> None:
    entry = WitnessEntry(
        params={"bias": -float("inf"), "nan": [float("nan")], "n": np.float32(0.5)},
        prompt_text="lone \udc80 surrogate",
        n_prompt=np.int64(7),  # type: ignore[arg-type]
        total_ms=float("nan"),
        prompt_ids=np.array([3, 4]),  # type: ignore[arg-type]
    )
    got = log.get(log.record(entry))
    assert got.params == {"bias": "-Infinity", "nan": ["NaN"], "n": 0.5}
    assert got.prompt_text == "lone \\udc80 surrogate"
    assert (got.n_prompt, got.total_ms, got.prompt_ids) == (7, None, (3, 4))
    assert json.loads(WitnessEntry(total_ms=float("nan")).to_json())["total_ms"] == "NaN"


def test_list_filters_and_order(log: WitnessLog) -> None:
    for i in range(30):
        log.record(
            WitnessEntry(
                kind=("generate", "chat", "embed")[i % 3],
                ts_ms=1000 + 10 * (i // 2),  # pairs share a time: the later record comes first
                session_id="even" if i % 2 == 0 else "odd",
                model_name="m1" if i < 10 else "m2",
                n_prompt=i,
            )
        )

    def numbers(*args: Any, **filters: Any) -> list[int | None]:
        return [e.n_prompt for e in log.list(*args, **filters)]

    assert len(log) == 30
    assert numbers() == list(range(29, 9, -1))
    assert numbers(None) == list(range(29, -1, -1))
    assert numbers(3, 2) == [27, 26, 25] and numbers(0) == [] and numbers(5, 100) == []
    assert numbers(None, since=1140) == [29, 28] and numbers(None, until=1010) == [1, 0]
    assert numbers(None, since=1010, until=1020) == [3, 2]
    assert numbers(None, session_id="odd", since=1130) == [29, 27]
    assert numbers(None, session_id="nobody") == []
    assert numbers(None, model="m1", kind="chat") == [7, 4, 1]
    assert numbers(None, model="m1", kind="chat", session_id="even") == [4]
    at = datetime.fromtimestamp(1.14, UTC)
    assert numbers(None, since=at) == [29, 28]
    with pytest.raises(ArgumentError, match="time zone"):
        log.list(since=datetime(2024, 1, 1))
    with pytest.raises(ArgumentError, match="limit -1"):
        log.list(-1)
    with pytest.raises(ArgumentError, match="offset -1"):
        log.list(1, -1)


def test_get_takes_a_unique_beginning(log: WitnessLog) -> None:
    for last in ("aa", "ab", "b0"):
        log.record(WitnessEntry(id=f"01890000-0000-7000-8000-0000000000{last}"))
    stem = "01890000-0000-7000-8000-0000000000"
    assert log.get(stem + "b").id == log.get((stem + "B0").upper()).id == stem + "b0"
    with pytest.raises(ArgumentError, match="2 entries begin with it"):
        log.get(stem + "a")
    for unknown in ("ff", stem + "ac", "%", "_"):
        with pytest.raises(NotFoundError):
            log.get(unknown)
    for bad in ("", "x" * 37):
        with pytest.raises(ArgumentError, match=r"1 \.\. 36"):
            log.get(bad)


def test_ids_sort_by_time(log: WitnessLog) -> None:
    ids = [log.record(WitnessEntry()) for _ in range(200)]
    assert ids == sorted(ids) and len(set(ids)) == 200
    assert [e.id for e in log.list(None)] == ids[::-1]


def test_a_full_queue_is_told_and_counted(tmp_path: Path) -> None:
    with WitnessLog(tmp_path, queue_depth=3, max_wait=3600, max_batch=1000) as log:
        for _ in range(3):
            log.record(WitnessEntry())
        with pytest.raises(FullError):
            log.record(WitnessEntry())
        log.record(WitnessEntry(kind="chat"), critical=True)
        assert log.stats()["dropped"] == 1 and log.stats()["written"] == 4
    assert log.stats()["queue_depth"] == 0


def test_close_writes_what_waits(tmp_path: Path) -> None:
    log = WitnessLog(tmp_path, max_wait=3600)
    log.record(WitnessEntry(kind="chat"))
    log.close()
    log.close()
    for call in (
        lambda: log.record(WitnessEntry()),
        lambda: log.record(WitnessEntry(model_path=__file__)),
        log.list,
        log.flush,
        lambda: len(log),
    ):
        with pytest.raises(StateError, match="closed"):
            call()
    with WitnessLog(tmp_path) as log:
        assert [e.kind for e in log.list()] == ["chat"]


def test_many_threads_record(log: WitnessLog) -> None:
    def work() -> None:
        for i in range(100):
            log.record(WitnessEntry(), critical=i == 50)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(log) == 400


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file"):
        WitnessLog(tmp_path / "file")
    (tmp_path / "memory.db").write_text("not a database")
    with pytest.raises(FormatError, match=r"memory\.db"):
        WitnessLog(tmp_path)
    for wrong in ({"max_wait": 0}, {"queue_depth": 0}, {"max_batch": -1}, {"max_pending": 0}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            WitnessLog(tmp_path / "x", **wrong)  # type: ignore[arg-type]


# ---- digests ----


def test_the_digest_is_computed_once_and_kept(tmp_path: Path, monkeypatch: Any) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"x" * (5 << 20))
    want = "sha256:" + hashlib.sha256(model.read_bytes()).hexdigest()
    calls: list[str] = []

    def counting(path: str) -> Any:
        calls.append(path)
        return hash_file(path)

    monkeypatch.setattr(witness_module, "hash_file", counting)
    with WitnessLog(tmp_path) as log:
        ids = [log.record(WitnessEntry(model_path=str(model))) for _ in range(3)]
        log.flush()
        assert [log.get(i).model_digest for i in ids] == [want] * 3
        assert log.model_digest(model) == want and len(calls) == 1
        assert log.get(log.record(WitnessEntry(model_path=str(model)))).model_digest == want
    with WitnessLog(tmp_path) as log:
        assert log.model_digest(model) == want and len(calls) == 1
        model.write_bytes(b"y")
        id = log.record(WitnessEntry(model_path=str(model)), critical=True)
        assert log.get(id).model_digest == "sha256:" + hashlib.sha256(b"y").hexdigest()
        assert len(calls) == 2
        id = log.record(WitnessEntry(model_path=str(model), model_digest="sha256:given"))
        assert log.get(id).model_digest == "sha256:given"


def test_record_does_not_wait_for_a_digest(tmp_path: Path, monkeypatch: Any) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"x")
    go = threading.Event()

    def slow(path: str) -> Any:
        assert go.wait(30)
        return hash_file(path)

    monkeypatch.setattr(witness_module, "hash_file", slow)
    log = WitnessLog(tmp_path, max_pending=2)
    log.prefetch_digest(model)
    while log._pending:  # now it is in the thread's hand
        time.sleep(0.001)
    first = log.record(WitnessEntry(model_path=str(model), n_prompt=1))
    second = log.record(WitnessEntry(model_path=str(model), n_prompt=2))
    with pytest.raises(FullError, match="2 entries"):
        log.record(WitnessEntry(model_path=str(model)))
    other = log.record(WitnessEntry(n_prompt=3))
    assert [e.id for e in log.list()] == [other]
    assert (log.stats()["pending"], log.stats()["dropped"]) == (3, 1)
    with pytest.raises(StateError, match="3 entries"):
        log.flush(0.01)
    go.set()
    log.close()
    with WitnessLog(tmp_path) as log:
        assert {e.id for e in log.list()} == {first, second, other}
        assert log.get(first).model_digest == log.get(second).model_digest != None  # noqa: E711


def test_a_missing_model_file_loses_no_entry(log: WitnessLog, tmp_path: Path) -> None:
    path = str(tmp_path / "gone.gguf")
    ids = [log.record(WitnessEntry(model_path=path), critical=c) for c in (False, True)]
    log.flush()
    assert [log.get(i).model_digest for i in ids] == [None, None]
    with pytest.raises(NotFoundError, match=r"gone\.gguf"):
        log.model_digest(path)
    with pytest.raises(FileError, match="regular file"):
        log.model_digest(tmp_path)


# ---- the process ----


def test_home(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("RUVLLM_HOME", str(tmp_path / "here"))
    assert _paths.home() == tmp_path / "here"
    monkeypatch.setenv("RUVLLM_HOME", "~/there")
    assert _paths.home() == Path.home() / "there"
    monkeypatch.delenv("RUVLLM_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert _paths.home() == tmp_path / "ruvllm"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert _paths.home() == Path.home() / ".local" / "share" / "ruvllm"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _paths.home() == Path.home() / "Library" / "Application Support" / "ruvllm"


def test_one_default_log_per_folder(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("RUVLLM_HOME", str(tmp_path / "a"))
    made: list[WitnessLog] = []
    threads = [threading.Thread(target=lambda: made.append(default_log())) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(map(id, made))) == 1
    log = made[0]
    other = default_log(tmp_path / "b")
    assert other is not log and default_log(tmp_path / "a" / ".." / "b") is other
    assert log.path == tmp_path / "a" / "memory.db"
    (tmp_path / "m").write_bytes(b"m")
    assert model_digest(tmp_path / "m") == log.model_digest(tmp_path / "m")
    log.close()
    again = default_log()
    assert again is not log and len(again) == 0
    again.close()
    other.close()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RUVLLM_HOME", str(tmp_path / "file"))
    assert model_digest(tmp_path / "m").startswith("sha256:")  # kept nowhere


def run(script: str, *args: object) -> str:
    argv = [sys.executable, "-W", "error", "-c", script, *map(str, args)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_end_of_the_interpreter_writes_what_waits(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"x" * (20 << 20))
    out = run(
        """
import sys, threading, time
from ruvllm.memory import WitnessEntry, WitnessLog, default_log
log = default_log(sys.argv[1])
log.record(WitnessEntry(kind="chat"))
log.record(WitnessEntry(kind="embed", model_path=sys.argv[2]))
def forever():
    while True:
        try:
            log.record(WitnessEntry())
        except Exception:
            time.sleep(1)
threading.Thread(target=forever, daemon=True).start()
time.sleep(0.05)
""",
        tmp_path / "home",
        tmp_path / "model",
    )
    assert out == ""
    with WitnessLog(tmp_path / "home") as log:
        assert len(log.list(None, kind="chat")) == 1
        assert log.list(kind="embed")[0].model_digest is not None
        assert len(log) > 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_log_is_usable_on_both_sides_of_a_fork(tmp_path: Path) -> None:
    out = run(
        """
import multiprocessing, os, sys
from ruvllm.memory import WitnessEntry, default_log
log = default_log(sys.argv[1])

def child():
    for i in range(10):
        log.record(WitnessEntry(session_id="child"))

log.record(WitnessEntry(session_id="parent"))
log.record(WitnessEntry(session_id="parent", model_path=__import__("json").__file__))
pid = os.fork()
if pid == 0:
    child()
    log.flush()
    os._exit(0)
for i in range(10):
    log.record(WitnessEntry(session_id="parent"), critical=True)
assert os.waitpid(pid, 0)[1] == 0
workers = [multiprocessing.get_context("fork").Process(target=child) for _ in range(2)]
for w in workers:
    w.start()
for w in workers:
    w.join()
    assert w.exitcode == 0
log.flush()
print(len(log), len(log.list(None, session_id="child")), log.stats()["written"])
""",
        tmp_path,
    )
    assert out == "42 30 13\n"  # rows: 12 entries and a digest
