"""A small run of benchmarks/check_parity.py: every way of computing gives the same replies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import ruvllm


def test_every_way_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import check_parity

    assert check_parity.main(["--prompts", "6", "--max-tokens", "6"]) == 0
    said = capsys.readouterr().out
    assert said.count("goal all equal: holds") > 100 and "MISSED" not in said
    assert "kv f16 q4_0 64 64, saved and loaded" in said

    with ruvllm.Model(witness=False) as m:
        a = m.generate([5, 6], max_tokens=3, ignore_eos=True, logprobs=0)
    b = dataclasses.replace(a, logprobs=(*a.logprobs[:2], a.logprobs[0]))
    assert check_parity.n_different("x", [a, a, b], [a, a, a]) == 1
    assert "x: reply 2 differs at token 2" in capsys.readouterr().out
