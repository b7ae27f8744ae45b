"""Tokenizers against published ids, against llama.cpp, and against what users hand in."""

from __future__ import annotations

import hashlib
import json
import threading
from typing import Any

import gguf_make as mk
import pytest
import tok_vocab
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ruvllm import _core
from ruvllm._errors import ArgumentError, FormatError, StateError, UnsupportedError

BOS, EOS, SPECIAL = 1, 2, 4
NAMES = ["gpt-2", "llama-bpe", "llama-spm", "qwen2", "bert-bge"]
BYTE_LEVEL = ["gpt-2", "llama-bpe", "qwen2"]
IDS: dict[str, Any] = json.loads((tok_vocab.FOLDER / "ids.json").read_text())
CASES = [key for key in IDS if "/" in key]


def of_case(case: str) -> _core.Tokenizer:
    name, pre = case.split("/")
    return tok_vocab.tokenizer(name, pre)


def test_goldens_are_those_that_were_made() -> None:
    listed = set()
    for line in (tok_vocab.FOLDER / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split(maxsplit=1)
        found = hashlib.sha256((tok_vocab.FOLDER / name).read_bytes()).hexdigest()
        assert found == digest, name
        listed.add(name)
    names = {p.name for p in tok_vocab.FOLDER.iterdir() if p.is_file()}
    assert names == listed | {"SHA256SUMS"}


@pytest.mark.parametrize("name", NAMES)
def test_published_vectors(name: str) -> None:
    t = tok_vocab.tokenizer(name)
    base = tok_vocab.path(name)
    raw = base.with_suffix(".gguf.inp").read_bytes().decode()
    texts = raw.split("\n__ggml_vocab_test__\n")
    lines = base.with_suffix(".gguf.out").read_text().split("\n")
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        assert t.encode(text, 0) == [int(x) for x in line.split()], repr(text)


def test_minilm_ids() -> None:
    t = tok_vocab.tokenizer("bert-bge")
    rows = json.loads((tok_vocab.FOLDER / "minilm.json").read_text())
    assert len(rows) == 20
    for row in rows:
        ids = t.encode(row["text"], BOS | EOS)
        if len(ids) > 256:  # the embedder's limit, not the tokenizer's
            ids = [*ids[:255], ids[-1]]
        assert ids == row["ids"]


@pytest.mark.parametrize("case", CASES)
def test_same_as_llama_cpp(case: str) -> None:
    t, want = of_case(case), IDS[case]
    info = t.info()
    for i, text in enumerate(IDS["texts_hex"]):
        raw = bytes.fromhex(text)
        assert t.encode(raw, 0) == want["plain"][i], raw
        assert t.encode(raw, SPECIAL) == want["special"][i], raw
    assert [i for i in range(info["n_vocab"]) if t.is_eog(i)] == want["eog"]
    assert info["add_bos"] == want["add_bos"]
    digest = hashlib.sha256()
    for special in (False, True):
        for i in range(info["n_vocab"]):
            piece = t.piece(i, special)
            digest.update(len(piece).to_bytes(4, "little") + piece)
    assert digest.hexdigest() == want["pieces_sha256"]


@pytest.mark.parametrize("name", BYTE_LEVEL)
@settings(max_examples=150, deadline=None)
@given(text=st.text())
@example(text="\x00\r\n\t '\u2028\U0010ffff")
@example(text="'s'S'LL 're\u0301\u0661\u0662\u0663\u0664 <|im_end|>")
def test_text_comes_back(name: str, text: str) -> None:
    t = tok_vocab.tokenizer(name)
    for flags in (0, SPECIAL):
        ids = t.encode(text, flags)
        assert t.decode(ids, True) == text.encode()
        assert b"".join(t.piece(i, True) for i in ids) == text.encode()


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=60), text=st.text())
@example(raw=b"a\xffb\xf0\x9f", text="  a \u0301 ")
def test_bytes_come_back_through_byte_tokens(raw: bytes, text: str) -> None:
    """A vocabulary with byte tokens keeps any bytes but spaces that a broken character swallows."""
    t = tok_vocab.tokenizer("llama-spm")
    raw = raw.replace(b" ", b"").replace("\u2581".encode(), b"")
    assert t.decode(t.encode(raw, 0), False) == raw
    text = text.replace("\u2581", " ")  # what a space is spelled as
    assert t.decode(t.encode(text, 0), False) == text.encode()


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=40))
@example(raw=b"\xc0\xaf")
@example(raw=b"\xed\xa0\x80|\xf4\x90\x80\x80")
@example(raw=b"\xe2\x82")
def test_bytes_that_are_not_utf8_become_the_replacement_character(raw: bytes) -> None:
    """One U+FFFD per byte that starts no character: no byte hides what a filter looked for."""
    t = tok_vocab.tokenizer("gpt-2")
    want, at = "", 0
    while at < len(raw):
        for n in (1, 2, 3, 4):
            try:
                want += raw[at : at + n].decode()
            except UnicodeDecodeError:
                continue
            at += n
            break
        else:
            want += "\ufffd"
            at += 1
    assert t.decode(t.encode(raw, 0), False) == want.encode()
    assert t.encode(raw, 0) == t.encode(want, 0)


def test_bert_decode_reads_like_text() -> None:
    t = tok_vocab.tokenizer("bert-bge")
    ids = t.encode("It's a naïve test, isn't it? Yes . OK!", BOS | EOS)
    assert t.decode(ids, False) == b"it's a naive test, isn ' t it? yes. ok!".replace(
        b"isn ' t", b"isn't"
    )
    assert t.decode(t.encode("unaffordability", 0), False) == b"unaffordability"


def test_control_tokens_only_when_asked() -> None:
    for name, text in (("llama-bpe", "<|eot_id|>"), ("qwen2", "<|im_end|>"), ("llama-spm", "</s>")):
        t = tok_vocab.tokenizer(name)
        token = t.find(text.encode())
        assert t.type_of(token) == 3 and t.is_eog(token)
        assert token not in t.encode(text, 0) and token not in t.encode(f"a {text} b", 0)
        assert token in t.encode(text, SPECIAL)
        assert t.piece(token, False) == b"" and t.piece(token, True) == text.encode()


def test_flags_and_defaults() -> None:
    t = tok_vocab.tokenizer("llama-spm")
    assert t.encode("", BOS | EOS) == [1, 2] and t.encode("", 0) == []
    assert t.encode("Hello", BOS) == [1, *t.encode("Hello", 0)]
    assert t.decode(t.encode("Hello", BOS), False) == b"Hello"
    assert t.info()["add_space_prefix"] is True
    assert tok_vocab.tokenizer("qwen2").info()["add_bos"] is False
    bert = tok_vocab.tokenizer("bert-bge")
    assert bert.encode("a", BOS | EOS) == [101, 1037, 102]
    assert bert.info()["add_bos"] and bert.info()["add_eos"]


def test_bad_arguments() -> None:
    t = tok_vocab.tokenizer("gpt-2")
    n = t.info()["n_vocab"]
    for bad in ([n], [-1], [2**31 - 1]):
        with pytest.raises(ArgumentError, match=f"0 .. {n - 1}"):
            t.decode(bad, False)
    for call in (t.type_of, t.is_eog):
        with pytest.raises(ArgumentError, match=f"0 .. {n - 1}"):
            call(n)
    with pytest.raises(ArgumentError, match=r"0 \.\. "):
        t.piece(-1, False)
    assert t.text(n) == b"" and t.text(2**40) == b"" and t.find(b"") == -1
    with pytest.raises(ArgumentError, match="surrogate"):
        t.encode("\ud800", 0)
    with pytest.raises(ArgumentError, match="str or bytes"):
        t.encode(3, 0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="flags are 8"):
        t.encode("a", 8)
    with pytest.raises(TypeError):
        _core.Tokenizer()


def test_threads_share_one_tokenizer() -> None:
    t = tok_vocab.tokenizer("llama-bpe")
    texts = [bytes.fromhex(x) for x in IDS["texts_hex"]]
    want = [t.encode(x * 20, SPECIAL) for x in texts]
    wrong: list[int] = []

    def work() -> None:
        for i, text in enumerate(texts):
            if t.encode(text * 20, SPECIAL) != want[i]:
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_long_inputs_end(name: str) -> None:
    """A million of one thing: quadratic time would be minutes (measured times: benchmarks)."""
    t = tok_vocab.tokenizer(name)
    for unit in ("a", " ", "\n", "1", "'", "<|", "ab", "é", "東"):
        text = unit * (300_000 // len(unit))
        assert (len(t.encode(text, SPECIAL)) > 0) == (name != "bert-bge" or not text.isspace())


# ---- files ----


def vocab_file(**keys: bytes | None) -> bytes:
    """A tiny gpt2 vocabulary; a keyword replaces the pair of that name, None leaves it out."""
    pairs: dict[str, bytes | None] = {
        "model": mk.kv("tokenizer.ggml.model", mk.STR, "gpt2"),
        "pre": mk.kv("tokenizer.ggml.pre", mk.STR, "gpt-2"),
        "tokens": strings("tokens", "a", "b", "ab", "<e>"),
        "merges": strings("merges", "a b"),
        "types": ints("token_type", mk.I32, 1, 1, 1, 3),
        "eos": mk.kv("tokenizer.ggml.eos_token_id", mk.U32, 3),
        **keys,
    }
    return mk.gguf([pair for pair in pairs.values() if pair is not None])


def strings(key: str, *items: str | bytes) -> bytes:
    payload = mk.array(mk.STR, [mk.string(x) for x in items])
    return mk.raw_kv(f"tokenizer.ggml.{key}", mk.ARR, payload)


def ints(key: str, kind: int, *items: float) -> bytes:
    payload = mk.array(kind, [mk.scalar(kind, x) for x in items])
    return mk.raw_kv(f"tokenizer.ggml.{key}", mk.ARR, payload)


def open_bytes(data: bytes) -> _core.Tokenizer:
    return _core.tokenizer_open(_core.gguf_open_bytes(data))


def test_a_file_without_weights() -> None:
    t = open_bytes(vocab_file())
    assert t.encode("ab<e>", SPECIAL) == [2, 3] and t.info()["eos"] == 3
    scores = ints("scores", mk.I32, 0, 0, 0, 0)  # some files hold them as integers
    assert open_bytes(vocab_file(scores=scores)).encode("ab", 0) == [2]
    none = mk.kv("tokenizer.ggml.padding_token_id", mk.U32, 2**32 - 1)
    assert open_bytes(vocab_file(pad=none)).info()["pad"] == -1


BAD_FILES = {
    "model-missing": ({"model": None}, FormatError, "model: found none"),
    "model-type": (
        {"model": mk.kv("tokenizer.ggml.model", mk.U32, 1)}, FormatError, "model: found u32"),
    "model-unknown": (
        {"model": mk.kv("tokenizer.ggml.model", mk.STR, "rwkv")}, UnsupportedError, '"rwkv"'),
    "pre-type": ({"pre": strings("pre", "gpt-2")}, FormatError, "pre: found array of str"),
    "pre-unknown": (
        {"pre": mk.kv("tokenizer.ggml.pre", mk.STR, "nope")}, UnsupportedError, '"nope"'),
    "tokens-missing": ({"tokens": None}, FormatError, "tokens: found none"),
    "tokens-type": ({"tokens": ints("tokens", mk.U8, 1)}, FormatError, "tokens: found array of u8"),
    "tokens-empty": ({"tokens": strings("tokens"), "types": None}, FormatError, "0 tokens"),
    "merges-missing": ({"merges": None}, FormatError, "merges: found none"),
    "types-short": (
        {"types": ints("token_type", mk.I32, 1, 1)}, FormatError, "found 2 values, want 4"),
    "types-type": (
        {"types": ints("token_type", mk.F32, 1, 1, 1, 1)}, FormatError, "array of f32"),
    "scores-short": ({"s": ints("scores", mk.F32, 0)}, FormatError, "found 1 values, want 4"),
    "scores-type": ({"s": ints("scores", mk.U8, 0, 0, 0, 0)}, FormatError, "array of u8"),
    "eos-far": (
        {"eos": mk.kv("tokenizer.ggml.eos_token_id", mk.U32, 4)}, FormatError, "eos token is 4"),
    "eos-type": (
        {"eos": mk.kv("tokenizer.ggml.eos_token_id", mk.STR, "3")}, FormatError, "found str"),
    "eos-negative": (
        {"eos": mk.kv("tokenizer.ggml.eos_token_id", mk.I64, -2)}, FormatError, "found -2"),
    "eos-huge": (
        {"eos": mk.kv("tokenizer.ggml.eos_token_id", mk.U64, 2**64 - 1)}, FormatError, "1844674"),
    "flag-type": (
        {"f": mk.kv("tokenizer.ggml.add_bos_token", mk.U32, 1)}, FormatError, "add_bos_token"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(name: str) -> None:
    keys, error, message = BAD_FILES[name]
    with pytest.raises(error, match=message):
        open_bytes(vocab_file(**keys))


def test_odd_files_work() -> None:
    tokens = strings("tokens", "a", "", b"\xff\xfe", "ab", "a", "<0xZZ>", "b")
    types = ints("token_type", mk.I32, 1, 3, 1, 1, 1, 6, 99)
    merges = strings("merges", "", "ab", " ", "a b", "q r", b"\xff b", "a  b")
    t = open_bytes(vocab_file(tokens=tokens, types=types, merges=merges, eos=None))
    assert t.encode("abxa", 0) == [3, 0]  # there is no token for x
    assert t.decode([0, 1, 2, 5, 6], True) == b"a\xff\xfe"
    nan = ints("scores", mk.F32, float("nan"), float("-inf"), 0, 1, 2, 3, 4)
    spm = mk.kv("tokenizer.ggml.model", mk.STR, "llama")
    t = open_bytes(vocab_file(model=spm, tokens=tokens, types=types, scores=nan, eos=None))
    assert t.encode("ab", 0) == [0, 0, 0, 3]  # a space is unknown to it: three bytes


def test_closed_file() -> None:
    g = _core.gguf_open_bytes(vocab_file())
    t = _core.tokenizer_open(g)
    g.close()
    assert t.encode("ab", 0) == [2]  # nothing of the file is kept
    with pytest.raises(StateError, match="closed"):
        _core.tokenizer_open(g)
    with pytest.raises(ArgumentError, match="GGUF"):
        _core.tokenizer_open("x")  # type: ignore[arg-type]


def test_from_arrays() -> None:
    t = _core.tokenizer_new("gpt2", "gpt-2", [b"a", b"b", b"ab"], None, None, [b"a b"], {"bos": 1})
    assert t.encode("ab", BOS) == [1, 2]
    with pytest.raises(ValueError, match="not known"):
        _core.tokenizer_new("gpt2", "", [b"a"], None, None, [], {"nope": 1})
    with pytest.raises(ValueError, match="found 2, want 1"):
        _core.tokenizer_new("llama", "", [b"a"], [0.0, 1.0], None, None, {})
    with pytest.raises(TypeError):
        _core.tokenizer_new("llama", "", ["a"], None, None, None, {})  # type: ignore[list-item]
    with pytest.raises(FormatError, match=r"mask token is 1, want 0 \.\. 0"):
        _core.tokenizer_new("bert", "", [b"a"], None, None, None, {"mask": 1})
