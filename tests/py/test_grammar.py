"""Constrained output over a small byte-level vocabulary: what is sampled under the masks obeys."""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ruvllm._errors import (
    ArgumentError,
    FormatError,
    FullError,
    RuvllmError,
    UnsupportedError,
)
from ruvllm.engine._grammar import Constraint

WORDS = ['{"', '":', '", "', '"}', "true", "null", "name", "age", " ", "12", "ab", "é".encode()[:1]]


class Vocab:
    """256 bytes, some longer pieces, a twin of "A", an empty one, two ends and a control token."""

    def __init__(self) -> None:
        self.pieces = [bytes([i]) for i in range(256)]
        self.pieces += [w if isinstance(w, bytes) else w.encode() for w in WORDS]
        self.pieces += [b"A", b"", b"<|eos|>", b"<|im_end|>", b"<|im_start|>"]
        self.n_vocab = len(self.pieces)
        self.eog_ids: Sequence[int] = [self.n_vocab - 3, self.n_vocab - 2]

    def piece(self, token: int) -> bytes:
        return self.pieces[token]

    def is_control(self, token: int) -> bool:
        return token >= self.n_vocab - 3

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


VOCAB = Vocab()


def allowed(mask: NDArray[np.int32]) -> NDArray[np.int64]:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert not bits[VOCAB.n_vocab :].any()
    return np.flatnonzero(bits)


def write(c: Constraint, rng: np.random.Generator, most: int = 4000) -> bytes:
    """Sample at random, closing things when it gets long."""
    out = b""
    for i in range(most):
        ids = allowed(c.mask())
        ends = [t for t in ids if t in VOCAB.eog_ids]
        assert bool(ends) == c.complete, (out, ids)
        assert VOCAB.n_vocab - 1 not in ids, "a control token"
        if ends and (len(ids) == len(ends) or rng.random() < 0.5):
            c.commit(int(ends[0]))
            assert c.done
            return out
        texts = [t for t in ids if t not in ends]
        closing = [t for t in texts if VOCAB.pieces[t] in (b'"', b"}", b"]", b",", b'"}')]
        if closing and i > 40:
            texts = closing
        token = int(rng.choice(texts))
        c.commit(token)
        out += VOCAB.pieces[token]
    raise AssertionError(f"no end: {out!r}")


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["x", "é", 'q"']}, "maxItems": 3},
        "ok": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "ok"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("as_text", [False, True])
def test_json_schema(seed: int, as_text: bool) -> None:
    c = Constraint(VOCAB, json_schema=json.dumps(PERSON) if as_text else PERSON)
    value = json.loads(write(c, np.random.default_rng(seed)))
    assert set(value) <= set(PERSON["properties"])  # type: ignore[call-overload]
    assert isinstance(value["name"], str) and len(value["name"]) <= 8
    assert isinstance(value["age"], int) and 0 <= value["age"] <= 150
    assert value["ok"] in (True, False, None)
    assert all(t in ("x", "é", 'q"') for t in value.get("tags", []))


@pytest.mark.parametrize("seed", range(5))
def test_json_object(seed: int) -> None:
    value = json.loads(write(Constraint(VOCAB, json_object=True), np.random.default_rng(seed)))
    assert isinstance(value, dict)


def test_regex_choices_lark_gbnf() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        out = write(Constraint(VOCAB, regex=r"[A-C]{2,4}/(yes|no)\.\d"), rng).decode()
        assert re.fullmatch(r"[A-C]{2,4}/(yes|no)\.\d", out)
        choices = ["rot & grün", "a/b", "(x", '"', "\\n", "語"]
        assert write(Constraint(VOCAB, choices=choices), rng).decode() in choices
        out = write(Constraint(VOCAB, lark='start: "a" b\nb: "x"~2 | "yz"'), rng).decode()
        assert out in ("axx", "ayz")
        gbnf = 'root ::= "v" digit+\ndigit ::= [0-9]'
        assert re.fullmatch(r"v\d+", write(Constraint(VOCAB, gbnf=gbnf), rng).decode())


def test_end_only_when_complete() -> None:
    c = Constraint(VOCAB, choices=["ab", "abc"])
    eos = VOCAB.eog_ids[0]
    assert not c.complete and eos not in allowed(c.mask())
    with pytest.raises(ArgumentError, match=f"token: {eos} may not come here"):
        c.commit(eos)
    c.commit(ord("a"))  # the refusal changed nothing
    for bad in (ord("x"), -1, 10**6, VOCAB.n_vocab - 1):
        with pytest.raises(ArgumentError, match="may not come here"):
            c.commit(bad)
    c.commit(ord("b"))
    assert c.complete and not c.done
    assert set(allowed(c.mask())) == {ord("c"), *VOCAB.eog_ids}
    c.commit(ord("c"))
    assert c.complete and c.done
    assert set(allowed(c.mask())) == set(VOCAB.eog_ids)


def test_a_character_may_come_in_parts() -> None:
    c = Constraint(VOCAB, choices=["é"])
    twin = 256 + WORDS.index("é".encode()[:1])  # the same bytes: either may come
    assert set(allowed(c.mask())) == {0xC3, twin}
    c.commit(twin)
    assert not c.complete and list(allowed(c.mask())) == [0xA9]


def test_vocabulary_is_built_once() -> None:
    class Counting(Vocab):
        calls = 0

        def piece(self, token: int) -> bytes:
            Counting.calls += 1
            return super().piece(token)

    vocab = Counting()
    for _ in range(3):
        Constraint(vocab, regex="a")
    assert Counting.calls == vocab.n_vocab


DEEP = '{"anyOf":[' * 60000 + "{}" + "]}" * 60000
CYCLE: dict[str, Any] = {}
CYCLE["items"] = CYCLE


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("json_schema", "{", "json_schema: is not JSON"),
        ("json_schema", "[1]", r"json_schema: is \[1\], want a JSON object"),
        ("json_schema", {"type": "objec"}, "json_schema: Invalid type: objec"),
        ("json_schema", {"properties": 3}, "json_schema: "),
        ("json_schema", {"const": float("nan")}, "json_schema: is not JSON"),
        ("json_schema", {"x": object()}, "json_schema: is not JSON"),
        ("json_schema", DEEP, "json_schema: "),
        ("json_schema", CYCLE, "json_schema: "),
        ("json_schema", {"enum": [f"x{i}" for i in range(100_000)]}, "json_schema: "),
        ("regex", "(a", "regex: .*unclosed group"),
        ("regex", "(" * 100_000, "regex: "),
        ("lark", 'start: "a" | foo', 'lark: .*unknown name: "foo"'),
        ("lark", "", "lark: "),
        ("gbnf", "root ::= (", "gbnf: "),
        ("gbnf", "root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000, "gbnf: "),
    ],
)
def test_what_does_not_parse_is_a_format_error(kind: str, value: Any, message: str) -> None:
    with pytest.raises(FormatError, match=f"^{message}") as e:
        Constraint(VOCAB, **{kind: value})
    assert len(str(e.value)) < 400 and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "constraint: found none, want exactly one of json_schema, "),
        ({"regex": "a", "lark": "b"}, "constraint: found regex and lark, want"),
        ({"json_schema": 5}, "json_schema: is a int, want a mapping or JSON text"),
        ({"regex": 5}, "regex: is a int, want a string"),
        ({"choices": "abc"}, "choices: want a list of at least one string"),
        ({"choices": []}, "choices: want a list"),
        ({"choices": ["a", ""]}, r"choices\[1\]: is '', want a non-empty string"),
        ({"regex": "a" * (2 << 20)}, "regex: has 2097152 characters, want at most 1048576"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        Constraint(VOCAB, **kwargs)


@pytest.mark.parametrize(
    "regex", ["(a*)*b", "(a|a)*c", "a{1,1000000}b{1,1000000}", "((a{1,100}){1,100}){1,100}"]
)
def test_bombs_end_in_an_answer_or_a_typed_error(regex: str) -> None:
    try:
        c = Constraint(VOCAB, regex=regex)
        for _ in range(20):
            ids = allowed(c.mask())
            assert ord("a") in ids
            c.commit(ord("a"))
    except RuvllmError as e:
        assert isinstance(e, FormatError | FullError)


def test_too_ambiguous_a_grammar_is_stopped() -> None:
    c = Constraint(VOCAB, lark='start: a+\na: "a"* "a"* "a"* "a"* "a"* "a"* "a"* "a"*\n')
    with pytest.raises(FullError, match=r"^lark: .*max is 2000"):
        for _ in range(2500):
            c.mask()
            c.commit(ord("a"))
    with pytest.raises(FullError):
        c.mask()


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "llguidance":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnsupportedError, match=re.escape("pip install ruvllm[grammar]")):
        Constraint(VOCAB, regex="a")


def test_vocabulary_without_an_end() -> None:
    vocab = Vocab()
    vocab.eog_ids = []
    with pytest.raises(UnsupportedError, match="has no token that ends a text"):
        Constraint(vocab, regex="a")
