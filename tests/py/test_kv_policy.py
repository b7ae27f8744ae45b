"""Which sequences keep how much in full precision: rules, what they decide, and what follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ruvllm
from ruvllm.engine._record import replay

PROMPT = [5 + i * 7 % 400 for i in range(200)]
MORE: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True, "temperature": 1.0, "seed": 5}
STORE: dict[str, Any] = {"n_threads": 1, "kv_store": "q4_0", "kv_tail": 128}


@pytest.fixture
def path(golden: Path) -> Path:
    return golden / "models" / "llama-d256-q8_0.gguf"


def tokens_of(path: Path, **options: Any) -> tuple[int, ...]:
    with ruvllm.Model(path, n_threads=1, witness=False, **options) as m:
        return tuple(m.generate(PROMPT, **MORE).tokens)


def test_the_first_rule_that_holds_decides(path: Path) -> None:
    want = {
        "critical": tokens_of(path),
        "low": tokens_of(path, kv_store="q4_0", kv_tail=64),
        "normal": tokens_of(path, kv_store="q4_0", kv_tail=128),
    }
    assert len(set(want.values())) == 3  # or nothing below could fail
    rules = [
        ruvllm.KVRule(None, importance="critical"),
        ruvllm.KVRule(64, importance=("low", "critical")),
    ]
    with (
        ruvllm.Model(path, witness=False, **STORE) as m,
        ruvllm.Engine(m, kv_policy=rules) as engine,
    ):
        requests = {
            p: engine.submit(PROMPT, priority=p, **MORE)  # type: ignore[arg-type]
            for p in ("low", "critical", "normal", "low")
        }
        assert {p: tuple(r.result(60).tokens) for p, r in requests.items()} == want
        again = engine.submit(PROMPT, priority="critical", **MORE).result(60)
        assert tuple(again.tokens) == want["critical"] and again.cached_tokens > 190
        turn = engine.session(importance="critical").submit(PROMPT, **MORE).result(60)
        assert tuple(turn.tokens) == want["critical"] and turn.cached_tokens > 190


def test_other_tails_share_nothing(path: Path) -> None:
    rules = [ruvllm.KVRule(64, importance="low")]
    with (
        ruvllm.Model(path, witness=False, **STORE) as m,
        ruvllm.Engine(m, kv_policy=rules) as engine,
    ):
        assert engine.submit(PROMPT, **MORE).result(60).cached_tokens == 0
        assert engine.submit(PROMPT, priority="low", **MORE).result(60).cached_tokens == 0
        assert engine.submit(PROMPT, priority="high", **MORE).result(60).cached_tokens > 190
        assert engine.submit(PROMPT, priority="low", **MORE).result(60).cached_tokens > 190


def test_pressure_counts_what_is_needed(path: Path) -> None:
    pool = ruvllm.MemoryPool(8 << 20)
    rules = [ruvllm.KVRule(64, pressure=0.5)]
    with (
        ruvllm.Model(path, witness=False, memory=pool, **STORE) as m,
        ruvllm.Engine(m, kv_policy=rules) as engine,
    ):
        want = tokens_of(path, kv_store="q4_0", kv_tail=128)
        for _ in range(2):  # what it left behind is no pressure
            assert tuple(engine.submit(PROMPT, **MORE).result(60).tokens) == want
            stats = m.kv_stats
            assert stats.evictable_bytes == stats.used_bytes > 0
        with pool.allocate(ruvllm.LoraAdapter("x", 1, 1), 5 << 20):
            short = engine.submit(PROMPT, **MORE).result(60)
            assert tuple(short.tokens) == tokens_of(path, kv_store="q4_0", kv_tail=64)
            talk = engine.session("begun under pressure")
        assert tuple(talk.submit(PROMPT, **MORE).result(60).tokens) == tuple(short.tokens)


def test_the_log_has_the_tail(path: Path, tmp_path: Path) -> None:
    rules = [ruvllm.KVRule(64, importance="low"), ruvllm.KVRule(None, importance="high")]
    with (
        ruvllm.WitnessLog(tmp_path) as log,
        ruvllm.Model(path, witness=log, **STORE) as m,
        ruvllm.Engine(m, kv_policy=rules) as engine,
    ):
        ids = {
            p: engine.submit(PROMPT, priority=p, **MORE).result(60).witness_id  # type: ignore[arg-type]
            for p in ("low", "normal", "high")
        }
        log.flush()
        for p, tail in (("low", 64), ("normal", 128), ("high", m.n_ctx)):
            entry = log.get(ids[p] or "")
            assert entry.engine is not None and entry.engine["kv_tail"] == tail
            options = STORE | {"kv_tail": entry.engine["kv_tail"], "witness": False}
            with ruvllm.Model(path, **options) as other:
                assert replay(entry, other).same


def test_a_conversation_keeps_its_tail(path: Path, tmp_path: Path) -> None:
    rules = [ruvllm.KVRule(None, importance="critical"), ruvllm.KVRule(64, importance="low")]
    for level, tail in (("critical", None), ("low", 64), ("normal", 128)):
        store = {} if tail is None else {"kv_store": "q4_0", "kv_tail": tail}
        want = tokens_of(path, **store)
        name = f"talk {level}"
        opened: dict[str, Any] = {"importance": level}
        with (
            ruvllm.Model(path, witness=False, **STORE) as m,
            ruvllm.Engine(m, kv_policy=rules, spill_dir=tmp_path / "s") as engine,
        ):
            talk = engine.session(name, **opened)
            first = talk.submit(PROMPT[:150], max_tokens=1, ignore_eos=True).result(60)
            talk.park()
            assert talk.tier == "cold"
            rest = talk.submit(PROMPT, **MORE).result(60)
            assert rest.restored_tokens >= 144 and talk.tokens[150] == first.tokens[0]
            with pytest.raises(ruvllm.ArgumentError, match="importance: is not the one"):
                engine.session(name, importance="high")
            assert engine.session(name).tokens == talk.tokens
            alone = engine.session(None, **opened).submit(PROMPT, **MORE).result(60)
            assert tuple(alone.tokens) == want
        with (
            ruvllm.Model(path, witness=False, **STORE) as m,
            ruvllm.Engine(m, kv_policy=rules, spill_dir=tmp_path / "s") as engine,
        ):
            talk = engine.session(name, **opened)
            assert talk.submit([9], max_tokens=1).result(60).restored_tokens > 300
            engine.session(name).close()


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"tail": 65}, "tail: is 65, want a multiple of 64, or None"),
        ({"tail": 0}, "tail: is 0"),
        ({"tail": 64.0}, "tail: is 64.0"),
        ({"tail": 2**31}, "tail: is 2147483648"),
        ({"tail": 64, "importance": "huge"}, "importance: is 'huge'"),
        ({"tail": 64, "importance": ("low", 3)}, "importance: is 3"),
        ({"tail": 64, "pressure": 1.1}, "pressure: is 1.1, want 0 .. 1"),
        ({"tail": 64, "pressure": float("nan")}, "pressure: is nan"),
        ({"tail": 64, "pressure": True}, "pressure: is True"),
    ],
)
def test_a_wrong_rule_says_what_is_wrong(rule: dict[str, Any], text: str) -> None:
    with pytest.raises(ruvllm.ArgumentError) as caught:
        ruvllm.KVRule(**rule)
    assert str(caught.value).startswith(text)


def test_rules_want_a_store(path: Path) -> None:
    with ruvllm.Model(path, n_threads=1, witness=False) as m:
        with pytest.raises(ruvllm.ArgumentError, match="kv_policy: the model has no kv_store"):
            ruvllm.Engine(m, kv_policy=[ruvllm.KVRule(64)])
        ruvllm.Engine(m, kv_policy=[]).close()
    with (
        ruvllm.Model(path, witness=False, **STORE) as m,
        pytest.raises(ruvllm.ArgumentError, match="kv_policy: holds 64, want KVRule"),
    ):
        ruvllm.Engine(m, kv_policy=[64])  # type: ignore[list-item]
