"""Conversations in an engine: the tokens of the whole text wherever its past was meanwhile, in
memory, in a file, in one that is damaged, foreign or gone."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ruvllm
from ruvllm import ArgumentError, FileError, FormatError, FullError, NotFoundError, StateError
from ruvllm.engine._spill import SpillFolder

FREE: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True}
OPEN: dict[str, Any] = {"n_threads": 1, "witness": False}
KINDS = [
    ("llama-d256-q4_k_m.gguf", {}),
    ("lfm2-d256-q8_0.gguf", {}),
    ("llama-d256-q4_k_m.gguf", {"kv_store": "q8_0", "kv_tail": 64}),
    ("lfm2-d256-q8_0.gguf", {"kv_store": "q4_0", "kv_tail": 64}),
]


@pytest.fixture(scope="module")
def model() -> Iterator[ruvllm.Model]:
    with ruvllm.Model(**OPEN) as m:
        yield m


@pytest.fixture(scope="module")
def plain() -> Iterator[ruvllm.Model]:
    """The same without a memory: what is found there came from a file."""
    with ruvllm.Model(share_prefix=False, **OPEN) as m:
        yield m


def ids(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 500, n).tolist()


def same(a: ruvllm.GenerationResult, b: ruvllm.GenerationResult) -> bool:
    return (a.tokens, a.logprobs) == (b.tokens, b.logprobs)


def until(done: Callable[[], bool]) -> None:
    for _ in range(2000):
        if done():
            return
        time.sleep(0.005)
    raise AssertionError("it does not come")


def files(folder: Path) -> list[str]:
    return sorted(p.name.partition(".")[2] for p in folder.iterdir() if p.name != "lock")


# -- the same tokens ----------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "options"), KINDS)
def test_turns_are_those_of_the_whole_text(
    golden: Path, tmp_path: Path, file: str, options: dict[str, Any]
) -> None:
    path = golden / "models" / file
    alone = ruvllm.Model(path, share_prefix=False, **options, **OPEN)
    with (
        ruvllm.Model(path, **options, **OPEN) as m,
        ruvllm.Engine(m, spill_dir=tmp_path) as engine,
    ):
        talk = engine.session("a")
        assert talk.tier == "evicted"
        for turn in range(5):
            ask, had = ids(30 + 17 * turn, turn), talk.tokens
            sampled: dict[str, Any] = {"logprobs": 1, "seed": turn, "temperature": 0.8, **FREE}
            found = talk.submit(ask, **sampled).result(60)
            assert same(found, alone.generate([*had, *ask], **sampled))
            kept = max(0, len(had) - 1) // 16 * 16
            assert found.cached_tokens == kept
            assert found.restored_tokens == (kept if turn % 2 else 0)
            assert talk.tokens == (*had, *ask, *found.tokens)
            assert talk.tier == "warm"
            if turn % 2 == 0:
                talk.park()
                talk.park()
                assert talk.tier == "cold" and files(tmp_path) == ["json", "json.kv"]


@pytest.mark.parametrize(("file", "options"), KINDS)
def test_a_short_turn_keeps_what_came_back(
    golden: Path, tmp_path: Path, file: str, options: dict[str, Any]
) -> None:
    with (
        ruvllm.Model(golden / "models" / file, **options, **OPEN) as m,
        ruvllm.Engine(m, spill_dir=tmp_path) as engine,
    ):
        talk = engine.session("a")
        talk.submit(ids(150, 1), **FREE).result(60)
        talk.park()
        for i in range(2):  # no page gets full
            found = talk.submit([i], max_tokens=1, ignore_eos=True).result(60)
            assert (found.cached_tokens, found.restored_tokens) == (160, 0 if i else 160)
            assert talk.tier == "warm"


def test_chat(model: ruvllm.Model, tmp_path: Path) -> None:
    with ruvllm.Engine(model, spill_dir=tmp_path) as engine:
        talk = engine.session(user_id="anna")
        first = talk.chat("reverse apple river stone").result(60)
        talk.park()
        assert talk.messages[-1] == {"role": "assistant", "content": first.text}
        second = talk.chat({"role": "user", "content": "reverse stone apple"}).result(60)
        assert [x["role"] for x in talk.messages] == ["user", "assistant"] * 2
        assert second.tokens == model.chat(talk.messages[:-1]).tokens
        again = engine.session(talk.session_id)
        assert again.tokens == talk.tokens
        ended = engine.session("no tokens").submit(ids(5, 1), max_tokens=0)
        assert ended.result().tokens == () and engine.session("no tokens").tokens == (*ids(5, 1),)


def test_another_process_goes_on(model: ruvllm.Model, plain: ruvllm.Model, tmp_path: Path) -> None:
    asks = {"a": ids(100, 31), "b": ids(100, 32)}
    script = f"""
import ruvllm
engine = ruvllm.Engine(ruvllm.Model(**{OPEN!r}), spill_dir={str(tmp_path)!r})
for name, prompt in {asks!r}.items():
    engine.session(name, user_id="u" + name).submit(prompt, **{FREE!r}).result()
engine.session("a").park()
"""
    ran = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    # The end of the process parks the other one.
    assert files(tmp_path) == ["json", "json", "json.kv", "json.kv"]
    with ruvllm.Engine(model, spill_dir=tmp_path, preempt="swap") as engine:
        assert engine.metrics().spill_bytes > 0 and engine.metrics().sessions == 0
        for name, ask in asks.items():
            talk = engine.session(name, salt=b"")
            assert talk.tokens == (*ask, *plain.generate(ask, **FREE).tokens)
            assert talk.tier == "cold"
            found = talk.submit(ids(5, 2), **FREE).result(60)
            assert found.restored_tokens == 96
        assert engine.metrics().sessions == 2 and engine.metrics().parked == 0
    records = [json.loads(p.read_text()) for p in tmp_path.glob("*.json")]
    assert {(r["session_id"], r["user_id"]) for r in records} == {("a", "ua"), ("b", "ub")}


def test_without_a_folder(model: ruvllm.Model) -> None:
    with ruvllm.Engine(model) as engine:
        talk = engine.session()
        assert uuid.UUID(talk.session_id).version == 7
        assert engine.session().session_id != talk.session_id
        talk.submit(ids(40, 9), **FREE).result(60)
        second = talk.submit(ids(9, 2), **FREE).result(60)
        assert second.cached_tokens == 48 and talk.tier == "warm"
        with pytest.raises(StateError, match="no spill_dir"):
            talk.park()


def test_many_at_once_in_little_memory(tmp_path: Path, plain: ruvllm.Model) -> None:
    """Pages go to files before they are pushed out, by threads that all want their turns."""
    per_token = plain.info.kv_bytes_per_token
    m = ruvllm.Model(kv_budget=per_token * 500, **OPEN)
    n_restored = []

    def talk_on(engine: ruvllm.Engine, i: int) -> None:
        talk = engine.session(f"talk {i}")
        for turn in range(3):
            together.wait(60)  # all of them have said something, and are idle
            had, ask = talk.tokens, ids(25 + i, 10 * i + turn)
            found = talk.submit(ask, **FREE).result(60)
            n_restored.append(found.restored_tokens)
            assert found.restore_error is None
            if not same(found, plain.generate([*had, *ask], **FREE)):
                wrong.append((i, turn))

    together = threading.Barrier(12)
    wrong: list[tuple[int, int]] = []
    with ruvllm.Engine(m, spill_dir=tmp_path, max_running=4) as engine:
        threads = [threading.Thread(target=talk_on, args=(engine, i)) for i in range(12)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert wrong == [] and len(n_restored) == 36 and sum(n_restored) > 0
        assert engine.metrics().parked > 0
        stats = m.kv_stats
        assert stats.peak_bytes <= stats.budget_bytes and stats.n_sequences == 0


def test_preempted_requests_are_swapped(tmp_path: Path, plain: ruvllm.Model) -> None:
    work = [ids(20 + 5 * i, i) for i in range(16)]
    want = [plain.generate(p, max_tokens=40, ignore_eos=True) for p in work]
    m = ruvllm.Model(kv_budget=plain.info.kv_bytes_per_token * 320, share_prefix=False, **OPEN)
    (tmp_path / "swap-1.kv").write_bytes(b"of an engine that was killed")
    with ruvllm.Engine(m, spill_dir=tmp_path, preempt="swap") as engine:
        assert files(tmp_path) == []
        requests = [engine.submit(p, max_tokens=40, ignore_eos=True) for p in work]
        found = [r.result(60) for r in requests]
        assert engine.metrics().preemptions > 0
        assert all(same(f, w) for f, w in zip(found, want, strict=True))
        assert files(tmp_path) == []


# -- when it is parked --------------------------------------------------------------------------


def test_idle_ones_are_parked(model: ruvllm.Model, tmp_path: Path) -> None:
    with ruvllm.Engine(model, spill_dir=tmp_path, park_after=0.01) as engine:
        talks = [engine.session(str(i)) for i in range(3)]
        for talk in talks:
            talk.submit(ids(20, 1), **FREE).result(60)
        until(lambda: engine.metrics().parked == 3)
        assert [t.tier for t in talks] == ["cold"] * 3


def test_memory_of_others_counts(plain: ruvllm.Model, tmp_path: Path) -> None:
    pool = ruvllm.MemoryPool(budget := plain.info.kv_bytes_per_token * 2000)
    m = ruvllm.Model(memory=pool, **OPEN)
    with ruvllm.Engine(m, spill_dir=tmp_path) as engine:
        talk, other = engine.session("a"), engine.session("b")
        talk.submit(ids(50, 1), **FREE).result(60)
        assert talk.tier == "warm"
        block = pool.allocate(ruvllm.RouterWeights(version=1), budget * 9 // 10)
        other.submit(ids(50, 2), **FREE).result(60)
        until(lambda: talk.tier == "cold")
        del block  # it counted until here


def test_the_coldest_files_go_first(plain: ruvllm.Model, tmp_path: Path) -> None:
    m = ruvllm.Model(**OPEN)
    with ruvllm.Engine(m, spill_dir=tmp_path / "a") as engine:
        talk = engine.session("x")
        talk.submit(ids(50, 1), **FREE).result(60)
        talk.park()
        one = engine.metrics().spill_bytes
    with ruvllm.Engine(m, spill_dir=tmp_path / "b", spill_budget=2 * one) as engine:
        talks = [engine.session(str(i)) for i in range(4)]
        for i, talk in enumerate(talks):
            talk.submit(ids(50, i + 5), **FREE).result(60)
            talk.park()
        assert [t.tier for t in talks] == ["evicted", "evicted", "cold", "cold"]
        assert engine.metrics().spill_bytes == 2 * one
        found = talks[0].submit(ids(3, 9), **FREE).result(60)
        assert found.cached_tokens == 0 and found.restore_error is None
        whole = [*talks[0].tokens[: -len(found.tokens)]]
        assert same(found, plain.generate(whole, **FREE))
    with ruvllm.Engine(m, spill_dir=tmp_path / "c", spill_budget=one - 1) as engine:
        talk = engine.session("x")
        talk.submit(ids(50, 1), **FREE).result(60)
        talk.park()
        assert talk.tier == "evicted" and files(tmp_path / "c") == ["json"]


def test_a_parked_one_is_small(model: ruvllm.Model, tmp_path: Path) -> None:
    n = 400
    with ruvllm.Engine(model, spill_dir=tmp_path) as engine:
        engine.session("0").submit(ids(2, 1), **FREE).result(60)
        engine.session("0").park()
    record = next(tmp_path.glob("*.json")).read_text()
    assert files(tmp_path) == ["json"]  # fewer tokens than a page
    folder = SpillFolder(tmp_path, None)
    for i in range(n):
        Path(folder.transcript(str(i))).write_text(record)
        Path(folder.pages(str(i))).write_bytes(b"x")
    folder.close()
    tracemalloc.start()
    with ruvllm.Engine(model, spill_dir=tmp_path) as engine:
        talks = [engine.session(str(i)) for i in range(n)]
        size = tracemalloc.get_traced_memory()[0] / n
        tracemalloc.stop()
        assert engine.metrics().parked == n == len(talks)
        assert {t.tier for t in talks} == {"cold"}
    assert size <= 2048


# -- what goes wrong ----------------------------------------------------------------------------


def test_what_is_lost_is_computed_again(
    model: ruvllm.Model, plain: ruvllm.Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ruvllm.Engine(model, spill_dir=tmp_path / "a") as engine:
        talk = engine.session("x")
        talk.submit(ids(40, 1), **FREE).result(60)
        talk.park()
        whole = [*talk.tokens, *ids(5, 2)]
    want = plain.generate(whole, **FREE)
    name = next((tmp_path / "a").glob("*.kv")).name
    kv = (tmp_path / "a" / name).read_bytes()
    cases: list[bytes | None] = [kv, None, b"", b"x" * 5000, kv.replace(b"sha256:", b"sha512:")]
    cases += [kv[:n] for n in range(1024, len(kv), 1024)]
    rng = np.random.default_rng(3)
    for at in (0, 9, 13, 20, 50, 200, *rng.integers(4096, len(kv), 8)):
        flipped = bytearray(kv)
        flipped[at] ^= 1 << int(rng.integers(8))
        cases.append(bytes(flipped))
    for i, content in enumerate(cases):
        folder = tmp_path / str(i)
        shutil.copytree(tmp_path / "a", folder)
        with ruvllm.Engine(plain, spill_dir=folder) as engine:
            talk = engine.session("x")
            if content is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(content)
            caplog.clear()
            with caplog.at_level(logging.WARNING, "ruvllm"):
                found = talk.submit(ids(5, 2), **FREE).result(60)
            assert same(found, want), i
            lost = "computed again" in caplog.text
            assert lost == (found.restore_error is not None)
            assert found.restored_tokens == found.cached_tokens == (0 if lost else 48)
            assert lost == (i > 0) or i > len(cases) - 9  # a flip may be in what fills a sector
            assert talk.tier == ("evicted" if lost else "cold")
        shutil.rmtree(folder)


def test_transcripts_are_the_truth(model: ruvllm.Model, tmp_path: Path) -> None:
    with ruvllm.Engine(model, spill_dir=tmp_path) as engine:
        for name in "ab":
            engine.session(name).submit(ids(20, 41), **FREE).result(60)
            engine.session(name).park()
    folder = SpillFolder(tmp_path, None)
    folder.close()
    path, other = Path(folder.transcript("a")), Path(folder.transcript("b"))
    good = path.read_text()
    record = json.loads(good)
    with ruvllm.Engine(model, spill_dir=tmp_path) as engine:
        talk = engine.session("a")
        for text, error in (
            (None, NotFoundError),
            (good[:50], FormatError),
            (other.read_text(), FormatError),
            (json.dumps({**record, "tokens": [2**40]}), FormatError),
            (json.dumps({**record, "model": "sha256:00"}), ArgumentError),
        ):
            if text is None:
                path.unlink()
            else:
                path.write_text(text)
            for call in (lambda: talk.submit("a"), lambda: talk.chat("a"), lambda: talk.tokens):
                with pytest.raises(error):
                    call()
        path.write_text(good)
        assert talk.submit(ids(3, 1), **FREE).result(60).restored_tokens == 16


def test_a_full_disk_leaves_it_as_it_was(
    model: ruvllm.Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ruvllm.Engine(model, spill_dir=tmp_path) as engine:
        talk, other = engine.session("a"), engine.session("b")
        for seed, t in enumerate((talk, other)):
            t.submit(ids(60, 50 + seed), **FREE).result(60)
        other.park()
        for most in (10, 6000):  # not the transcript; not the pages
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, was[1]))
            try:
                with pytest.raises(FileError, match=str(tmp_path)):
                    talk.park()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, was)
            assert talk.tier == "warm" and other.tier in ("warm", "cold")
            assert set(files(tmp_path)) == {"json", "json.kv"}
        found = talk.submit(ids(3, 1), **FREE).result(60)
        assert found.cached_tokens == 64 and found.restored_tokens == 0
        talk.park()
        assert talk.tier == "cold" and other.submit(ids(3, 1), **FREE).result(60).cached_tokens
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, was[1]))
        try:
            with caplog.at_level(logging.WARNING, "ruvllm"):
                engine.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, was)
        assert "session b: is not parked" in caplog.text


def test_one_engine_per_folder(model: ruvllm.Model, tmp_path: Path) -> None:
    script = f"import ruvllm; ruvllm.Engine(spill_dir={str(tmp_path)!r})"
    with ruvllm.Engine(model, spill_dir=tmp_path):
        with pytest.raises(StateError, match=f"in use by an engine of process {os.getpid()}"):
            ruvllm.Engine(model, spill_dir=tmp_path)
        ran = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
        assert b"StateError" in ran.stderr and b"in use by" in ran.stderr
    ruvllm.Engine(model, spill_dir=tmp_path).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="spill_dir"):
        ruvllm.Engine(model, spill_dir=tmp_path / "file")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_no_conversations(model: ruvllm.Model, tmp_path: Path) -> None:
    engine = ruvllm.Engine(model, spill_dir=tmp_path)
    talk = engine.session("a")
    talk.submit(ids(20, 1), **FREE).result(60)
    read, write = os.pipe()
    wait, go = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(go)
            said = []
            for call in (
                lambda: engine.session("b"),
                lambda: talk.submit("a"),
                lambda: talk.chat("a"),
                talk.park,
                talk.close,
                lambda: talk.tier,
            ):
                try:
                    call()
                except StateError as e:
                    said.append("forked" in str(e))
            engine.close()
            os.write(write, repr(said).encode())
            os.read(wait, 1)  # the parent lets go of the folder, and this process is still there
            status = 0
        finally:
            os._exit(status)
    os.close(wait)
    assert os.read(read, 1000).decode() == repr([True] * 6)
    talk.park()
    engine.close()
    with ruvllm.Engine(model, spill_dir=tmp_path) as again:
        assert again.session("a").tier == "cold"
    os.close(go)
    assert os.waitpid(child, 0)[1] == 0
    for fd in (read, write):
        os.close(fd)


def test_one_turn_at_a_time(model: ruvllm.Model, tmp_path: Path) -> None:
    with ruvllm.Engine(model, spill_dir=tmp_path) as engine:
        talk = engine.session("a")
        talk.submit(ids(20, 3), **FREE).result(60)
        before = talk.tokens
        with pytest.raises(FullError):
            talk.submit(ids(model.n_ctx, 1))
        running = talk.submit("a", max_tokens=None, ignore_eos=True)
        for call in (lambda: talk.submit("b"), lambda: talk.chat("b"), talk.park):
            with pytest.raises(StateError, match="session a: "):
                call()
        assert talk.tier == "hot"
        running.cancel()
        said = running.result(60).tokens
        assert talk.tokens[: len(before)] == before
        assert talk.tokens[-len(said) :] == said if said else talk.tokens == before
        with pytest.raises(ArgumentError, match="priority"):
            talk.submit("a", priority="urgent")  # type: ignore[arg-type]
        now = talk.tokens
        late = talk.submit([1] * 100, deadline_ms=1, max_tokens=200, ignore_eos=True).result(60)
        assert late.tokens or talk.tokens == now  # it never said anything
        assert talk.submit(ids(3, 2), **FREE).result(60).finish_reason == "length"


def test_closing(model: ruvllm.Model, tmp_path: Path) -> None:
    with ruvllm.Engine(model, spill_dir=tmp_path) as engine:
        talk, gone = engine.session("a"), engine.session("b")
        for t in (talk, gone):
            t.submit(ids(20, 5), **FREE).result(60)
            t.park()
        gone.close()
        gone.close()
        assert files(tmp_path) == ["json", "json.kv"] and engine.metrics().sessions == 1
        for call in (lambda: gone.submit("a"), gone.park):
            with pytest.raises(StateError, match="session b: is closed"):
                call()
        fresh = engine.session("b")
        assert fresh.tokens == ()
        running = fresh.submit("a", max_tokens=None, ignore_eos=True)
        fresh.close()
        assert running.result(60).finish_reason in ("cancelled", "length")
        running = talk.submit("a", max_tokens=None, ignore_eos=True)
        next(pieces := iter(running))
    for call in (lambda: talk.submit("a"), talk.park, talk.close, lambda: talk.tier):
        with pytest.raises(StateError, match="engine: is closed"):
            call()
    assert running.done and talk.tokens[:20] == (*ids(20, 5),)
    assert all(len(c.tokens) <= 1 for c in pieces)
    with ruvllm.Engine(model, spill_dir=tmp_path) as engine:
        assert engine.session("a").tokens == talk.tokens and len(talk.tokens) > 32


def test_bad_input(model: ruvllm.Model, tmp_path: Path) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"preempt": "no"}, "preempt"),
        ({"preempt": "swap"}, "want a spill_dir"),
        ({"park_after": 1}, "want a spill_dir"),
        ({"spill_dir": tmp_path, "park_after": 0}, "park_after"),
        ({"spill_dir": tmp_path, "park_after": True}, "park_after"),
        ({"spill_dir": tmp_path, "spill_budget": 0}, "spill_budget"),
        ({"spill_dir": tmp_path, "max_rows": 3, "max_running": 9}, "max_rows"),
    ]
    for options, match in bad:
        with pytest.raises(ArgumentError, match=match):
            ruvllm.Engine(model, **options)
    with ruvllm.Engine(model, spill_dir=tmp_path) as engine:
        for name in ("", "x" * 257, 5):
            with pytest.raises(ArgumentError, match="session_id"):
                engine.session(name)  # type: ignore[arg-type]
        engine.session("a", salt="s", tenant=3)
        for options in ({"salt": "t"}, {"tenant": "x"}, {"user_id": "u"}):
            with pytest.raises(ArgumentError, match="session a was opened with"):
                engine.session("a", **options)
        with pytest.raises(ArgumentError, match="salt"):
            engine.session("c", salt=3)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="tenant"):
            engine.session("c", tenant=-3)
        odd = engine.session("\ud800/../x")
        odd.submit(ids(20, 1), **FREE).result(60)
        odd.park()
        assert odd.tier == "cold" and odd.tokens[:20] == (*ids(20, 1),)
