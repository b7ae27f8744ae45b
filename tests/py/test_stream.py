"""Streaming text: any split of the bytes into tokens gives the text of the whole, cut at a stop."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ruvllm._errors import ArgumentError
from ruvllm.engine._stream import TextStream


def run(pieces: list[bytes], stop: list[str]) -> tuple[list[str], TextStream]:
    s = TextStream(pieces.__getitem__, stop)
    return [*(s.push(i) for i in range(len(pieces))), s.finish()], s


def first_stop(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The definition: the stop complete first; of several complete together, the longest."""
    for end in range(1, len(text) + 1):
        hits = [s for s in stop if text[:end].endswith(s)]
        if hits:
            longest = max(hits, key=len)
            return text[: end - len(longest)], longest
    return text, None


ALPHABET = ["a", "b", "é", "語", "🙂", "\n"]
CHUNKS = st.one_of(
    st.sampled_from(ALPHABET).map(str.encode),
    st.binary(min_size=0, max_size=3),
    st.sampled_from([b"\xf0", b"\x9f\x99", b"\x82", b"\xff", b"\xed\xa0\x80", b"\xc3"]),
)


@given(
    pieces=st.lists(CHUNKS, max_size=30),
    stop=st.lists(st.text(alphabet=[*ALPHABET, "\ufffd"], min_size=1, max_size=4), max_size=4),
)
@settings(max_examples=500, deadline=None)
def test_stream_equals_the_whole(pieces: list[bytes], stop: list[str]) -> None:
    out, s = run(pieces, stop)
    want, hit = first_stop(b"".join(pieces).decode("utf-8", "replace"), stop)
    assert "".join(out) == want
    assert s.stop_hit == hit


@given(
    text=st.text(alphabet="ab", max_size=40),
    stop=st.lists(st.text("ab", min_size=1, max_size=6), max_size=5),
)
@settings(max_examples=300, deadline=None)
def test_only_what_must_be_is_held_back(text: str, stop: list[str]) -> None:
    s = TextStream(lambda i: text[i].encode(), stop)
    given_out = ""
    for i in range(len(text)):
        given_out += s.push(i)
        if s.stop_hit is not None:
            break
        so_far = text[: i + 1]
        held = max((n for x in stop for n in range(1, len(x)) if so_far.endswith(x[:n])), default=0)
        assert given_out == so_far[: len(so_far) - held]


def test_a_character_in_four_tokens() -> None:
    out, _ = run([b"\xf0", b"\x9f", b"\x99", b"\x82", b"!"], [])
    assert out == ["", "", "", "🙂", "!", ""]
    out, _ = run([b"ok\xf0\x9f"], [])
    assert out == ["ok", "\ufffd"]


def test_stop_over_tokens_and_nothing_after() -> None:
    out, s = run([b"one <|", b"e", b"nd|> two", b"three"], ["<|end|>"])
    assert out == ["one ", "", "", "", ""]
    assert s.stop_hit == "<|end|>"
    out, s = run([b"one <|", b"e", b"x"], ["<|end|>"])
    assert out == ["one ", "", "<|ex", ""]
    out, s = run([b"one <|"], ["<|end|>"])
    assert out == ["one ", "<|"]
    assert s.stop_hit is None
    assert s.push(0) == "" and s.finish() == ""


def test_stop_complete_first_wins() -> None:
    out, s = run([b"xabc"], ["abc", "b"])
    assert "".join(out) == "xa" and s.stop_hit == "b"
    out, s = run([b"xabc"], ["c", "bc"])
    assert "".join(out) == "xa" and s.stop_hit == "bc"


def test_many_overlapping_stops_stay_linear() -> None:
    """A text that always almost matches: counted steps, not time."""
    n = 20_000
    stop = ["a" * k + "b" for k in range(1, 60)]
    s = TextStream(lambda _: b"a", stop)
    steps = 0
    step = s._matcher.step

    def counted(state: int, c: str) -> int:
        nonlocal steps
        steps += 1
        return step(state, c)

    s._matcher.step = counted  # type: ignore[method-assign]
    out = "".join(s.push(i) for i in range(n)) + s.finish()
    assert out == "a" * n
    assert steps == n


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ([""], r"stop\[0\]: is empty"),
        (["a", 3], r"stop\[1\]: is a int, want a string"),
        (5, "stop: is a int, want a string or a list of strings"),
        (b"x", "stop: is a bytes"),
    ],
)
def test_bad_stops(stop: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TextStream(lambda _: b"", stop)  # type: ignore[arg-type]


def test_one_stop_may_be_a_string() -> None:
    s = TextStream(lambda _: b"hello END", "END")
    assert s.push(0) == "hello " and s.stop_hit == "END"
