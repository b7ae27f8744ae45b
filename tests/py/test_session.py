"""Session: turns that compute what is new only, pages in sight, files that may be lost."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ruvllm
from ruvllm import ArgumentError, FileError, FormatError, FullError, NotFoundError, StateError

FREE: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True}
OPEN: dict[str, Any] = {"n_threads": 2, "witness": False}
# A model with recurrent state, models without; a store of old positions, and none.
KINDS = [
    ("llama-d256-q4_k_m.gguf", {}),
    ("lfm2-d256-q8_0.gguf", {}),
    ("llama-d256-q4_k_m.gguf", {"kv_store": "q8_0", "kv_tail": 64}),
    ("lfm2-d256-q8_0.gguf", {"kv_store": "q4_0", "kv_tail": 64}),
]


def ids(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 500, n).tolist()


def same(a: ruvllm.GenerationResult, b: ruvllm.GenerationResult) -> bool:
    return (a.tokens, a.logprobs) == (b.tokens, b.logprobs)


@pytest.mark.parametrize(("file", "options"), KINDS)
def test_turns_are_those_of_the_whole_text(
    golden: Path, file: str, options: dict[str, Any]
) -> None:
    path = golden / "models" / file
    alone = ruvllm.Model(path, share_prefix=False, **options, **OPEN)
    with ruvllm.Model(path, **options, **OPEN) as m, ruvllm.Session(m) as s:
        for turn in range(5):
            ask = ids(30 + 17 * turn, turn)
            whole = [*s.tokens, *ask]
            had = len(s.tokens)
            got = s.generate(ask, logprobs=1, seed=turn, temperature=0.8, **FREE)
            assert same(got, alone.generate(whole, logprobs=1, seed=turn, temperature=0.8, **FREE))
            assert got.cached_tokens == max(0, had - 1)
            assert s.tokens == (*whole, *got.tokens)


@pytest.mark.parametrize(("file", "options"), KINDS)
def test_a_file_brings_it_back_in_another_process(
    golden: Path, tmp_path: Path, file: str, options: dict[str, Any]
) -> None:
    path = golden / "models" / file
    with ruvllm.Model(path, **options, **OPEN) as m, ruvllm.Session(m, session_id="a") as s:
        s.generate(ids(300, 1), **FREE)
        s.save(tmp_path / "s.json")
        n = len(s.tokens)
        here = s.generate(ids(9, 2), **FREE)
        script = f"""
import json, ruvllm
m = ruvllm.Model({str(path)!r}, **{options!r}, **{OPEN!r})
s = ruvllm.Session.load({str(tmp_path / "s.json")!r}, m)
r = s.generate({ids(9, 2)!r}, **{FREE!r})
print(json.dumps([r.tokens, r.cached_tokens, s.session_id]))
"""
        ran = subprocess.run(
            [sys.executable, "-c", script], check=False, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        tokens, cached, session_id = json.loads(ran.stdout)
        assert tuple(tokens) == here.tokens and cached == n - 1 and session_id == "a"


def test_what_is_lost_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ruvllm.Model(share_prefix=False, **OPEN) as m:
        s = ruvllm.Session(m)
        s.generate(ids(100, 1), **FREE)
        s.save(tmp_path / "s")
        want = s.fork().generate(ids(5, 2), **FREE)
        kv = (tmp_path / "s.kv").read_bytes()
        damaged = bytearray(kv)
        damaged[-5000] ^= 1
        foreign = kv.replace(b"sha256:", b"sha512:")
        for content in (None, b"", kv[:-1], bytes(damaged), foreign, b"x" * 5000):
            if content is None:
                (tmp_path / "s.kv").unlink()
            else:
                (tmp_path / "s.kv").write_bytes(content)
            caplog.clear()
            with caplog.at_level(logging.WARNING, "ruvllm"):
                t = ruvllm.Session.load(tmp_path / "s", m)
            assert "computed again" in caplog.text
            got = t.generate(ids(5, 2), **FREE)
            assert same(got, want) and got.cached_tokens == 0


def test_conversations(tmp_path: Path) -> None:
    with ruvllm.Model(**OPEN) as m:
        s = ruvllm.Session(m)
        first = s.chat("reverse apple river stone")
        assert s.messages[-1] == {"role": "assistant", "content": first.text}
        with s.chat({"role": "user", "content": "reverse stone apple"}, stream=True) as g:
            list(g)
        assert [x["role"] for x in s.messages] == ["user", "assistant"] * 2
        assert g.result.tokens == m.chat(s.messages[:-1]).tokens
        s.save(tmp_path / "talk")
        t = ruvllm.Session.load(tmp_path / "talk", m)
        assert t.messages == s.messages and t.tokens == s.tokens


def test_forks_go_their_own_ways() -> None:
    with ruvllm.Model(**OPEN) as m:
        s = ruvllm.Session(m)
        s.generate(ids(50, 1), **FREE)
        t = s.fork()
        assert t.tokens == s.tokens
        a, b = s.generate(ids(5, 2), **FREE), t.generate(ids(5, 3), **FREE)
        assert min(a.cached_tokens, b.cached_tokens) >= 61
        plain = ruvllm.Model(share_prefix=False, **OPEN)
        assert same(a, plain.generate(a.prompt_tokens, **FREE))
        assert same(b, plain.generate(b.prompt_tokens, **FREE))


def test_pages_are_the_memory_itself() -> None:
    with ruvllm.Model(**OPEN) as m:
        s = ruvllm.Session(m)
        s.generate(ids(40, 1), max_tokens=0)
        layer = s.kv[1]
        assert len(layer) == 3 and len(s.kv) == m.info.n_kv_layers
        page = layer.page(0)
        raw = np.asarray(page)
        assert raw.dtype == np.float32 and not raw.flags.writeable
        assert np.shares_memory(raw, page.keys) and np.shares_memory(raw, page.values)
        assert np.shares_memory(raw, np.asarray(layer.page(0)))
        assert page.keys.shape == (m.info.n_head_kv, 16, m.info.head_dim) == page.values.shape
        last = layer.page(2)
        assert last.n_tokens == 8 and last.keys.shape[1] == 8
        before = last.keys.copy()
        s.generate(ids(4, 2), max_tokens=0)  # writes beside it: a copy, as the page is looked at
        np.testing.assert_array_equal(last.keys, before)
        np.testing.assert_array_equal(layer.page(2).keys[:, :8], before)
        assert layer.page(2).n_tokens == 12
        other = ruvllm.Session(m)
        other.generate(ids(40, 1), max_tokens=0)
        assert np.shares_memory(np.asarray(other.kv[1].page(0)), raw)  # one page, two sessions
        s.close()
        other.close()
    np.testing.assert_array_equal(last.keys, before)  # the page outlives them all
    assert np.asarray(page, dtype=np.float64).dtype == np.float64


def test_pages_of_the_store(golden: Path) -> None:
    path = golden / "models" / "llama-d256-q4_k_m.gguf"
    with ruvllm.Model(path, kv_store="q8_0", kv_tail=64, **OPEN) as m:
        s = ruvllm.Session(m)
        s.generate(ids(200, 1), max_tokens=0)
        old, new = s.kv[0].page(0), s.kv[0].page(12)
        assert old.type == "q8_0" and old.rotated and np.asarray(old).dtype == np.uint8
        assert new.type == "f16" and not new.rotated and new.keys.dtype == np.float16
        assert np.asarray(old).nbytes / np.asarray(new).nbytes == (32 + 2) / 64
        with pytest.raises(StateError, match="q8_0 codes"):
            _ = old.keys


def test_bad_input(tmp_path: Path) -> None:
    with ruvllm.Model(n_ctx=64, **OPEN) as m:
        s = ruvllm.Session(m)
        with pytest.raises(FullError, match="65 tokens"):
            s.generate(ids(65, 1))
        s.generate(ids(20, 1), **FREE)
        for layer, page in ((0, 2), (0, -1)):
            with pytest.raises(ArgumentError, match="page: is"):
                s.kv[layer].page(page)
        with pytest.raises(FileError):
            s.save(tmp_path / "no" / "s")
        s.save(tmp_path / "s")
        good = json.loads((tmp_path / "s").read_text())
        for what, text, error in (
            ("is not a session", "{", FormatError),
            ("is not a session", "[]", FormatError),
            ("version 2", json.dumps({**good, "ruvllm_session": 2}), FormatError),
            ("tokens", json.dumps({**good, "tokens": [1, "a"]}), FormatError),
            ("messages", json.dumps({**good, "messages": [1]}), FormatError),
            ("session_id", json.dumps({**good, "session_id": 3}), FormatError),
            ("is of model", json.dumps({**good, "model": "sha256:00"}), ArgumentError),
        ):
            (tmp_path / "t").write_text(text)
            with pytest.raises(error, match=what):
                ruvllm.Session.load(tmp_path / "t", m)
        with pytest.raises(NotFoundError):
            ruvllm.Session.load(tmp_path / "none", m)
        s.close()
        with pytest.raises(StateError, match="closed"):
            s.generate("a")
