"""Every generation leaves one entry, and an entry can be run again."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

import ruvllm
from ruvllm import _core
from ruvllm.engine._gguf_writer import GGUFWriter

ASK = [{"role": "user", "content": "reverse desert chair water rabbit"}]


@pytest.fixture
def log(tmp_path: Path) -> ruvllm.WitnessLog:
    return ruvllm.WitnessLog(tmp_path / "log")


def test_an_entry_says_what_happened(log: ruvllm.WitnessLog) -> None:
    m = ruvllm.Model(n_threads=1, witness=log)
    r = m.chat(ASK, temperature=0.7, seed=5, stop=["x"], session_id="s", user_id="u", tags=["t"])
    assert r.witness_id is not None
    e = log.get(r.witness_id)
    assert e.kind == "generate" and e.finish_reason == r.finish_reason and e.error is None
    assert e.prompt_ids == r.prompt_tokens and e.output_ids == r.tokens and e.output_text == r.text
    assert e.seed == 5 and e.params is not None and e.params["stop"] == ["x"]
    assert (e.session_id, e.user_id, e.tags) == ("s", "u", ("t",))
    assert e.model_digest is not None and e.model_digest.startswith("sha256:")
    assert e.n_prompt == len(r.prompt_tokens) and e.n_output == len(r.tokens)
    assert e.total_ms is not None and e.prefill_ms is not None and e.total_ms >= e.prefill_ms
    assert e.propensity == 1.0 and e.routing is not None and e.routing["temperature"] == 0.7
    assert e.engine is not None and e.engine["n_threads"] == 1
    assert len(log) == 1


def test_streams_and_cancelled_ones_leave_entries_too(log: ruvllm.WitnessLog) -> None:
    m = ruvllm.Model(witness=log)
    whole = m.chat(ASK, stream=True)
    list(whole)
    with m.chat(ASK, stream=True) as cut:
        next(cut)
    reasons = [e.finish_reason for e in log.list()]
    assert reasons == ["cancelled", "stop"]
    assert log.list()[0].id == cut.result.witness_id


def test_an_error_leaves_an_entry_with_the_error(tmp_path: Path, log: ruvllm.WitnessLog) -> None:
    g = _core.gguf_open(ruvllm.Model(witness=False).path)
    path = tmp_path / "nan.gguf"
    with GGUFWriter(path) as w:
        for key, kind, value in g.kv(-1):
            w.add_kv(key, kind, value)
        for name, _, kind, dims, *_ in g.tensors():
            w.add_tensor(name, kind, dims)
        for i, (name, *_) in enumerate(g.tensors()):
            data = bytes(g.tensor_data(i))
            nan = np.full(len(data) // 4, np.nan, np.float32).tobytes()
            w.write(name, nan if name == "output_norm.weight" else data)
    with pytest.raises(ruvllm.ArgumentError):
        ruvllm.Model(path, witness=log).generate([1, 2, 3])
    (e,) = log.list()
    assert e.finish_reason == "error" and e.error is not None
    assert e.error["code"] == "ArgumentError" and "nan" in e.error["message"].lower()
    assert "Traceback" in e.error["stack_trace"]


@pytest.mark.parametrize("temperature", [0.0, 1.4])
def test_replay_gives_the_same_tokens(log: ruvllm.WitnessLog, temperature: float) -> None:
    m = ruvllm.Model(n_threads=1, witness=log)
    r = m.chat(ASK, temperature=temperature, max_tokens=20, ignore_eos=True, top_k=50)
    assert r.witness_id is not None
    entry = log.get(r.witness_id)
    other = ruvllm.Model(entry.model_path, n_threads=2, n_batch=3, witness=False)
    found = ruvllm.replay(entry, other)
    assert found.same and found.same_model and found.first_difference is None
    assert found.expected == found.found == r.tokens


def test_replay_finds_differences(log: ruvllm.WitnessLog, golden: Path) -> None:
    m = ruvllm.Model(witness=log)
    r = m.chat(ASK)
    assert r.witness_id is not None
    entry = log.get(r.witness_id)
    assert entry.output_ids is not None
    changed = dataclasses.replace(entry, output_ids=(entry.output_ids[0], 7, *entry.output_ids[2:]))
    quiet = ruvllm.Model(witness=False)
    found = ruvllm.replay(changed, quiet)
    assert not found.same and found.first_difference == 1 and found.same_model
    longer = dataclasses.replace(entry, output_ids=(*entry.output_ids, 1))
    assert ruvllm.replay(longer, quiet).first_difference == len(entry.output_ids)
    another = ruvllm.Model(golden / "models" / "tiny-A.gguf", witness=False)
    assert not ruvllm.replay(entry, another).same_model
    bare = dataclasses.replace(entry, prompt_ids=None)
    with pytest.raises(ruvllm.UnsupportedError, match="holds no token ids"):
        ruvllm.replay(bare, quiet)


def test_cancelled_replies_are_compared_as_far_as_they_went(log: ruvllm.WitnessLog) -> None:
    m = ruvllm.Model(witness=log)
    with m.generate([5, 6, 7], stream=True, ignore_eos=True, temperature=1.0, seed=3) as s:
        next(s)
        next(s)
    assert s.result.witness_id is not None
    assert ruvllm.replay(log.get(s.result.witness_id), ruvllm.Model(witness=False)).same


def test_a_log_that_cannot_be_opened_does_not_cost_the_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("RUVLLM_HOME", os.fspath(blocked / "home"))
    m = ruvllm.Model()
    with pytest.warns(RuntimeWarning, match="takes no entries"):
        r = m.chat(ASK)
    assert r.text == "rabbit water chair desert" and r.witness_id is None
    assert m.chat(ASK).witness_id is None  # said once


def test_witness_can_be_off() -> None:
    assert ruvllm.Model(witness=False).chat(ASK).witness_id is None
