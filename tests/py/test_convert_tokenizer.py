"""Hugging Face tokenizers become the vocabulary keys a GGUF should have, or are refused by name."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ruvllm._errors import FormatError, NotFoundError, RuvllmError, UnsupportedError
from ruvllm.engine import _convert_tokenizer, _convert_vocab
from ruvllm.engine._convert_arch import Config
from ruvllm.engine._convert_tokenizer import read_vocab
from ruvllm.engine._convert_vocab import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER,
    Vocab,
)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


def split(regex: str, **more: Any) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut | more, level(False)]}


DIGITS = {"type": "Sequence", "pretokenizers": [
    {"type": "Digits", "individual_digits": True}, level(True)]}  # fmt: skip

BPE: dict[str, Any] = {
    "added_tokens": [
        {"id": 5, "content": "<s>", "special": True},
        {"id": 6, "content": "<tool>", "special": False},
        {"id": 8, "content": "<|fim|>", "special": False},
    ],
    "normalizer": None,
    "pre_tokenizer": level(True),
    "post_processor": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġab": 4},
              "merges": ["a b", "Ġ ab"], "ignore_merges": False},
}  # fmt: skip

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "##s", "##", "[unused1]"]
WORD_PIECE: dict[str, Any] = {
    "added_tokens": [{"id": i, "content": WORDS[i], "special": True} for i in range(5)],
    "normalizer": {"type": "BertNormalizer", "lowercase": True, "strip_accents": None,
                   "clean_text": True, "handle_chinese_chars": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "model": {"type": "WordPiece", "continuing_subword_prefix": "##",
              "vocab": {w: i for i, w in enumerate(WORDS)}},
}  # fmt: skip
WORD_NAMES = {f"{k}_token": f"[{k.upper()}]" for k in ("cls", "sep", "unk", "pad", "mask")}

CHARS: dict[str, Any] = {
    "added_tokens": [
        *({"id": i, "content": t, "special": True} for i, t in enumerate(["<unk>", "<s>", "</s>"])),
        {"id": 11, "content": "<tool>", "special": False},
    ],
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "pre_tokenizer": None,
    "post_processor": {"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]},
    "model": {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>",
              "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "▁ab": 4, "ab": 5,
                        "aba": 6, "a": 7, "b": 8, "▁": 9, "zz": 10},
              "merges": ["a b", "▁ ab", "a ba", "ab a"]},
}  # fmt: skip
CHARS["model"]["vocab"]["ba"] = 12
CHARS["model"]["merges"].insert(0, "b a")


def read(path: Path, tok: dict[str, Any] | None = None, *, arch: str = "llama",
         config: dict[str, Any] | None = None, **files: Any) -> Vocab:  # fmt: skip
    if tok is not None:
        (path / "tokenizer.json").write_text(json.dumps(tok))
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return read_vocab(path, Config(config or {}), arch)


def but(tok: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    """A copy with one value at a path changed."""
    new = copy.deepcopy(tok)
    node = new
    for p in path[:-1]:
        node = node[p]
    node[path[-1]] = to
    return new


# ---------------------------------------------------------------- BPE over bytes


def test_byte_bpe(tmp_path: Path) -> None:
    v = read(
        tmp_path, BPE, tokenizer_config={"bos_token": "<s>", "eos_token": {"content": "<|fim|>"}}
    )
    assert (v.model, v.pre) == ("gpt2", "gpt-2")
    assert v.tokens == ["a", "b", "ab", "Ġ", "Ġab", "<s>", "<tool>", "[PAD7]", "<|fim|>"]
    assert v.types == [NORMAL] * 5 + [CONTROL, USER, UNUSED, CONTROL]
    assert v.merges == ["a b", "Ġ ab"] and v.scores is None
    assert v.special == {"bos": 5, "eos": 8}
    assert v.flags == {"add_bos_token": False, "add_eos_token": False}
    v.pad_to(11)
    assert v.tokens[9:] == ["[PAD9]", "[PAD10]"] and v.types[9:] == [UNUSED] * 2
    with pytest.raises(FormatError, match="found 11 tokens, the embedding has 10 rows"):
        v.pad_to(10)


def test_both_spellings_of_merges_agree(tmp_path: Path) -> None:
    pairs = but(BPE, "model", "merges", to=[["a", "b"], ["Ġ", "ab"]])
    assert read(tmp_path, pairs).merges == read(tmp_path, BPE).merges


def test_padding_never_repeats_a_token(tmp_path: Path) -> None:
    tok = but(BPE, "added_tokens", 0, to={"id": 5, "content": "[PAD7]", "special": False})
    v = read(tmp_path, tok)
    v.pad_to(12)
    assert len(set(v.tokens)) == 12


@pytest.mark.parametrize(
    ("pre", "arch", "name"),
    [
        (level(True), "llama", "gpt-2"),
        ({"type": "ByteLevel", "add_prefix_space": False}, "llama", "gpt-2"),
        (split(GPT2), "llama", "gpt-2"),
        (split(LLAMA3), "llama", "llama-bpe"),
        (split(LLAMA3), "lfm2", "lfm2"),
        (split(LLAMA3, behavior="Removed", invert=True), "llama", "llama-bpe"),
        (split(QWEN2), "qwen2", "qwen2"),
        (split(QWEN2), "llama", "qwen2"),
        (DIGITS, "llama", "smollm"),
        ({"type": "Sequence", "pretokenizers": [DIGITS]}, "llama", "smollm"),
    ],
)
def test_the_pre_tokenizer_is_recognised_by_structure(
    tmp_path: Path, pre: dict[str, Any], arch: str, name: str
) -> None:
    assert read(tmp_path, but(BPE, "pre_tokenizer", to=pre), arch=arch).pre == name


@pytest.mark.parametrize(
    "pre",
    [
        None,
        {"type": "Whitespace"},
        {"type": "ByteLevel", "use_regex": True},  # add_prefix_space is true when not said
        level(False),
        split(LLAMA3.replace("1,3", "1,2")),
        split(LLAMA3 + "|x"),
        split(LLAMA3, behavior="Removed"),
        split(LLAMA3, invert=True),
        split(LLAMA3, pattern={"String": " "}),
        {"type": "Sequence", "pretokenizers": [split(LLAMA3), split(LLAMA3)]},
        {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": False}, level(True)],
        },
    ],
)
def test_other_pre_tokenizers_are_refused(tmp_path: Path, pre: Any) -> None:
    with pytest.raises(UnsupportedError, match="pre_tokenizer"):
        read(tmp_path, but(BPE, "pre_tokenizer", to=pre))


@pytest.mark.parametrize(
    ("path", "to", "error", "message"),
    [
        (("model", "type"), "Unigram", UnsupportedError, "'Unigram', want 'BPE' or 'WordPiece'"),
        (("model",), {}, UnsupportedError, "model type None"),
        (("model",), [], FormatError, "model: found"),
        (("model", "vocab"), {}, FormatError, "vocab"),
        (("model", "vocab", "a"), -1, FormatError, "'a': found id -1"),
        (("model", "vocab", "a"), "0", FormatError, "'a': found id '0'"),
        (("model", "vocab", "a"), 2**40, FormatError, "want 0 .. 2\\^24 - 1"),
        (("model", "vocab", "a"), 1, FormatError, "id 1 is both 'a' and 'b'"),
        (("model", "merges"), ["a"], FormatError, "merge 'a': want two tokens"),
        (("model", "merges"), [["a", 1]], FormatError, "want two tokens"),
        (("model", "merges"), ["a Ġ"], FormatError, "'aĠ' is not in the vocab"),
        (
            ("model", "continuing_subword_prefix"),
            "##",
            UnsupportedError,
            "continuing_subword_prefix",
        ),
        (("model", "end_of_word_suffix"), "</w>", UnsupportedError, "end_of_word_suffix"),
        (("model", "byte_fallback"), "yes", FormatError, "byte_fallback"),
        (("normalizer",), {"type": "Lowercase"}, UnsupportedError, "normalizer 'Lowercase'"),
        (("normalizer",), "NFC", FormatError, "want an object"),
        (("post_processor",), {"type": "RobertaProcessing"}, UnsupportedError, "RobertaProcessing"),
        (("added_tokens", 0, "content"), "", FormatError, "want a content"),
        (("added_tokens", 0, "id"), 4, FormatError, "id 4 is both"),
        (("added_tokens", 0), {"id": 3, "content": "a"}, FormatError, "the vocab says 0"),
    ],
)
def test_broken_byte_bpe(
    tmp_path: Path, path: tuple[Any, ...], to: Any, error: type[RuvllmError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(tmp_path, but(BPE, *path, to=to))


def test_ignore_merges_must_not_matter_or_be_what_the_name_means(tmp_path: Path) -> None:
    """llama-bpe looks a word up before merging it, gpt-2 does not."""
    odd = but(BPE, "model", "vocab", "ba", to=7)  # no merge makes it
    for pre, says, refused in (
        (level(True), False, False),
        (level(True), True, True),
        (split(LLAMA3), True, False),
        (split(LLAMA3), False, True),
    ):
        for tok in (BPE, odd):
            new = but(but(tok, "pre_tokenizer", to=pre), "model", "ignore_merges", to=says)
            if refused and tok is odd:
                with pytest.raises(
                    UnsupportedError, match="token 'ba' is not what its merges give"
                ):
                    read(tmp_path, new)
            else:
                read(tmp_path, new)


def test_nfc_is_accepted(tmp_path: Path) -> None:
    nfc = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    assert read(tmp_path, but(BPE, "normalizer", to=nfc)).pre == "gpt-2"


# ---------------------------------------------------------------- begin, end and other ids


def template(*names: str | None) -> dict[str, Any]:
    single = [{"SpecialToken": {"id": n}} if n else {"Sequence": {"id": "A"}} for n in names]
    return {"type": "Sequence", "processors": [
        {"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": single}]}  # fmt: skip


def test_ids_come_from_the_first_file_that_says(tmp_path: Path) -> None:
    config = {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": None}
    v = read(tmp_path, BPE, config=config)
    assert v.special == {"bos": 0, "eos": 1, "eot": 2}
    v = read(tmp_path, BPE, config=config, generation_config={"eos_token_id": [1, 8]})
    assert v.special == {"bos": 0, "eos": 1, "eot": 8, "eom": 2}
    v = read(tmp_path, BPE, config=config, special_tokens_map={"eos_token": "<s>"})
    assert v.special["eos"] == 5
    v = read(tmp_path, BPE, config=config, tokenizer_config={"eos_token": "<|fim|>"})
    assert v.special["eos"] == 8
    v = read(tmp_path, BPE, config={"eos_token_id": 99}, tokenizer_config={"eos_token": "none"})
    assert v.special["eos"] == 5  # of special_tokens_map.json, which is still there
    with pytest.raises(FormatError, match="eos_token_id: found 'x'"):
        read(tmp_path, BPE, config={"eos_token_id": "x"})


def test_the_template_decides_what_is_put_around_a_text(tmp_path: Path) -> None:
    names = {"bos_token": "<s>", "eos_token": "<tool>", "add_bos_token": True}
    tok = but(BPE, "post_processor", to=template("<s>", None))
    v = read(tmp_path, tok, tokenizer_config=names | {"add_bos_token": False})
    assert (v.flags["add_bos_token"], v.flags["add_eos_token"]) == (True, False)
    v = read(tmp_path, but(BPE, "post_processor", to=template(None)), tokenizer_config=names)
    assert (v.flags["add_bos_token"], v.flags["add_eos_token"]) == (False, False)
    v = read(tmp_path, BPE, tokenizer_config=names)
    assert v.flags["add_bos_token"]
    # an end that is not the eos: the eos still ends a generation
    v = read(
        tmp_path, but(BPE, "post_processor", to=template(None, "<|fim|>")), tokenizer_config=names
    )
    assert v.special == {"bos": 5, "eos": 8, "eot": 6} and v.flags["add_eos_token"]
    for wrong in (template("<s>", "<s>", None), template(None, None), template("<s>")):
        with pytest.raises(UnsupportedError, match="post_processor: template"):
            read(tmp_path, but(BPE, "post_processor", to=wrong))
    with pytest.raises(FormatError, match="'<nope>' is not in the vocab"):
        read(tmp_path, but(BPE, "post_processor", to=template("<nope>", None)))


def test_chat_templates(tmp_path: Path) -> None:
    assert read(tmp_path, BPE).templates == {}
    (tmp_path / "chat_template.json").write_text('{"chat_template": "old"}')
    assert read(tmp_path, BPE).templates == {"default": "old"}
    v = read(tmp_path, BPE, tokenizer_config={"chat_template": "{{ x }}"})
    assert v.templates == {"default": "{{ x }}"}
    many = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    v = read(tmp_path, BPE, tokenizer_config={"chat_template": many})
    assert v.templates == {"default": "d", "tool_use": "t"}
    keys = {k: x for k, _, x in v.kv() if "template" in k}
    assert keys == {"tokenizer.chat_template": "d", "tokenizer.chat_template.tool_use": "t",
                    "tokenizer.chat_templates": ["tool_use"]}  # fmt: skip
    (tmp_path / "chat_template.jinja").write_text("file ü", "utf-8")
    assert read(tmp_path, BPE).templates["default"] == "file ü"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(FormatError, match="not UTF-8 at byte 0"):
        read(tmp_path, BPE)
    (tmp_path / "chat_template.jinja").unlink()
    for wrong in (1, [1], [{"name": "x"}]):
        with pytest.raises(FormatError, match="chat_template: found"):
            read(tmp_path, BPE, tokenizer_config={"chat_template": wrong})


# ---------------------------------------------------------------- WordPiece


def test_word_piece(tmp_path: Path) -> None:
    v = read(tmp_path, WORD_PIECE, arch="bert", tokenizer_config=WORD_NAMES)
    assert (v.model, v.merges, v.scores) == ("bert", None, None)
    assert v.tokens == [*WORDS[:5], "▁hello", "s", "▁##", "▁[unused1]"]
    assert v.types == [CONTROL] * 5 + [NORMAL] * 4
    assert v.special == {"cls": 2, "bos": 2, "sep": 3, "eos": 3, "unk": 1, "pad": 0, "mask": 4}
    assert v.flags["add_bos_token"] and v.flags["add_eos_token"]
    keys = {k: x for k, _, x in v.kv()}
    assert keys["tokenizer.ggml.seperator_token_id"] == 3  # sic
    assert keys["tokenizer.ggml.unknown_token_id"] == 1
    assert keys["tokenizer.ggml.padding_token_id"] == 0


def test_vocab_txt_gives_the_same(tmp_path: Path) -> None:
    a = read(tmp_path, WORD_PIECE, arch="bert", tokenizer_config=WORD_NAMES)
    (tmp_path / "tokenizer.json").unlink()
    for text in ("\n".join(WORDS), "\n".join(WORDS) + "\n", "\r\n".join(WORDS) + "\r\n"):
        (tmp_path / "vocab.txt").write_bytes(text.encode())
        assert read(tmp_path, arch="bert") == a
    (tmp_path / "vocab.txt").write_bytes(b"[UNK]\n\xff")
    with pytest.raises(FormatError, match="not UTF-8"):
        read(tmp_path, arch="bert")
    (tmp_path / "vocab.txt").write_text("hello\nworld\n")
    with pytest.raises(FormatError, match="no cls token"):
        read(tmp_path, arch="bert")
    with pytest.raises(UnsupportedError, match="tokenize_chinese_chars"):
        read(tmp_path, arch="bert", tokenizer_config={"tokenize_chinese_chars": False})


@pytest.mark.parametrize(
    ("lower", "strip", "want"),
    [(True, None, (True, True)), (False, None, (False, False)), (False, True, (False, True)),
     (True, False, (True, False)), (None, None, (True, True))],
)  # fmt: skip
def test_case_and_accents(tmp_path: Path, lower: Any, strip: Any, want: tuple[bool, bool]) -> None:
    norm = WORD_PIECE["normalizer"] | {"lowercase": lower, "strip_accents": strip}
    a = read(
        tmp_path, but(WORD_PIECE, "normalizer", to=norm), arch="bert", tokenizer_config=WORD_NAMES
    )
    assert (a.flags["normalizer.lowercase"], a.flags["normalizer.strip_accents"]) == want
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    names = WORD_NAMES | {"do_lower_case": lower, "strip_accents": strip}
    assert read(tmp_path, arch="bert", tokenizer_config=names) == a


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("normalizer",), None, "normalizer none, want BertNormalizer"),
        (("normalizer", "handle_chinese_chars"), False, "handle_chinese_chars"),
        (("normalizer", "clean_text"), False, "clean_text"),
        (("normalizer",), {"type": "NFD"}, "type: found 'NFD'"),
        (("pre_tokenizer",), {"type": "Whitespace"}, "type: found 'Whitespace'"),
    ],
)
def test_other_word_pieces_are_refused(
    tmp_path: Path, path: tuple[str, ...], to: Any, message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read(tmp_path, but(WORD_PIECE, *path, to=to), arch="bert", tokenizer_config=WORD_NAMES)


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no tokenizer.json, tokenizer.model or vocab.txt"):
        read(tmp_path)


# ---------------------------------------------------------------- BPE over characters


def test_char_bpe_ranks_become_scores(tmp_path: Path) -> None:
    v = read(
        tmp_path,
        CHARS,
        tokenizer_config={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    )
    assert (v.model, v.pre, v.merges) == ("llama", "default", None)
    assert v.types == [UNKNOWN, CONTROL, CONTROL, BYTE, *[NORMAL] * 7, USER, NORMAL]
    assert v.scores is not None
    by_token = dict(zip(v.tokens, v.scores, strict=True))
    assert by_token["ba"] > by_token["ab"] > by_token["▁ab"] > by_token["aba"] > by_token["zz"]
    assert v.flags == {"add_space_prefix": True, "add_bos_token": True, "add_eos_token": False}
    v.pad_to(14)
    assert len(v.scores) == 14


def test_runs_of_spaces_tie(tmp_path: Path) -> None:
    """As SentencePiece has them: one score, so the leftmost pair goes first."""
    vocab = {"<unk>": 0, "▁": 1, "▁▁": 2, "▁▁▁": 3, "a": 4, "▁a": 5}
    merges = [["▁", "a"], ["▁", "▁"], ["▁", "▁▁"], ["▁▁", "▁"]]
    tok = but(CHARS, "model", to=CHARS["model"] | {"vocab": vocab, "merges": merges})
    v = read(tmp_path, tok | {"added_tokens": [], "post_processor": None})
    assert v.scores is not None
    assert v.scores[5] > v.scores[2] > v.scores[3]
    mixed = [["▁", "▁"], ["▁", "▁▁"], ["▁", "a"], ["▁▁", "▁"]]
    tok["model"]["merges"] = mixed
    with pytest.raises(UnsupportedError, match="are mixed"):
        read(tmp_path, tok | {"added_tokens": [], "post_processor": None})
    tok["model"]["vocab"]["▁▁▁▁"] = 6
    tok["model"]["merges"] = [*merges[:3], ["▁", "▁▁▁"], ["▁▁", "▁"], ["▁▁", "▁▁"], ["▁▁▁", "▁"]]
    v = read(tmp_path, tok | {"added_tokens": [], "post_processor": None})
    assert v.scores is not None
    assert v.scores[5] > v.scores[2] > v.scores[3] == v.scores[6]


@pytest.mark.parametrize(
    ("pre", "prefix"),
    [
        (
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
            True,
        ),
        (
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False},
            False,
        ),
        ({"type": "Metaspace", "replacement": "▁", "add_prefix_space": False}, False),
        ({"type": "Metaspace", "replacement": "▁"}, True),
    ],
)
def test_metaspace(tmp_path: Path, pre: dict[str, Any], prefix: bool) -> None:
    tok = but(but(CHARS, "pre_tokenizer", to=pre), "normalizer", to=None)
    assert read(tmp_path, tok).flags["add_space_prefix"] is prefix


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("model", "merges"), ["a b", "b a", "▁ ab", "a ba"], "no merge of 'ab' and 'a'"),
        (("model", "merges"), ["a ba", "a b", "b a", "▁ ab", "ab a"], "'aba' and 'ab' are mixed"),
        (("normalizer",), None, "want spaces replaced by U\\+2581"),
        (("normalizer",), {"type": "NFKC"}, "NFKC"),
        (("pre_tokenizer",), {"type": "Metaspace", "replacement": "_"}, "Metaspace"),
        (("pre_tokenizer",), {"type": "Metaspace", "replacement": "▁", "split": True}, "Metaspace"),
    ],
)
def test_char_bpe_that_no_scores_can_say_is_refused(
    tmp_path: Path, path: tuple[str, ...], to: Any, message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read(tmp_path, but(CHARS, *path, to=to))


# ---------------------------------------------------------------- junk

JUNK: list[Any] = [None, True, -1, 2**70, 1.5, float("nan"), "", "x", [], [1], ["x"], [None],
                   [[]], {}, {"a": 1}, {"type": "x"}, [{"type": 1}], [{}]]  # fmt: skip


def paths(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, child in children:
        yield (*at, key)
        if isinstance(child, dict | list):
            yield from paths(child, (*at, key))


@pytest.mark.parametrize("kind", ["bytes", "words", "chars"])
def test_any_value_may_be_anything(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong value anywhere is a typed error in one line, or does not matter."""
    tok, config = {
        "bytes": (BPE | {"pre_tokenizer": split(LLAMA3), "post_processor": template("<s>", None)},
                  {"bos_token": "<s>", "eos_token": {"content": "<|fim|>"},
                   "chat_template": [{"name": "default", "template": "x"}]}),
        "words": (WORD_PIECE | {"post_processor": template("[CLS]", None, "[SEP]")}, WORD_NAMES),
        "chars": (CHARS, {"bos_token": "<s>", "eos_token": "</s>"}),
    }[kind]  # fmt: skip
    read(tmp_path, tok, arch="bert", tokenizer_config=config)  # so that there are files
    files = {"tokenizer.json": tok, "tokenizer_config.json": config}
    now: dict[str, Any] = {}
    for module in (_convert_tokenizer, _convert_vocab):
        monkeypatch.setattr(module, "read_json", lambda path: now[path.name])
    refused = 0
    for name, good in files.items():
        for path in paths(good):
            for junk in JUNK:
                now = files | {name: but(good, *path, to=junk)}
                try:
                    v = read_vocab(tmp_path, Config({}), "bert")
                    assert len(v.tokens) == len(v.types)
                except RuvllmError as e:
                    refused += 1
                    assert "\n" not in str(e)
    assert refused > 300


# ---------------------------------------------------------------- SentencePiece's own file


def varint(n: int) -> bytes:
    out = b""
    n &= (1 << 64) - 1
    while n > 0x7F:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


def message(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def number(field: int, n: int) -> bytes:
    return varint(field << 3) + varint(n)


PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<0x0A>", 0.0, 6), ("▁a", -1.5, 1),
          ("b", -2.0, 1)]  # fmt: skip


def sentencepiece(model_type: int = 2, *, dummy_prefix: int = 1, pad: int = -1) -> bytes:
    out = b""
    for text, score, kind in PIECES:
        body = message(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
        out += message(1, body + (number(3, kind) if kind != 1 else b""))
    trainer = number(3, model_type) + number(43, pad) + varint(9 << 3 | 1) + bytes(8)
    norm = message(1, b"identity") + number(3, dummy_prefix) + number(4, 0)
    return out + message(2, trainer) + message(3, norm)


def test_sentencepiece_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece())
    v = read(tmp_path)
    assert v.tokens == [p[0] for p in PIECES] and v.types == [p[2] for p in PIECES]
    assert v.scores == [p[1] for p in PIECES]
    assert v.special == {"bos": 1, "eos": 2, "unk": 0}
    assert v.flags == {"add_space_prefix": True, "remove_extra_whitespaces": False,
                       "add_bos_token": True, "add_eos_token": False}  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(dummy_prefix=0, pad=2))
    v = read(tmp_path, tokenizer_config={"add_bos_token": False, "add_eos_token": True})
    assert v.special["pad"] == 2 and not v.flags["add_space_prefix"]
    assert (v.flags["add_bos_token"], v.flags["add_eos_token"]) == (False, True)


def test_sentencepiece_with_added_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece())
    added = {"7": {"content": "<tool>"}, "8": {"content": "<|im_end|>", "special": True}}
    v = read(tmp_path, tokenizer_config={"added_tokens_decoder": added, "eos_token": "<|im_end|>"})
    assert v.tokens[6:] == ["[PAD6]", "<tool>", "<|im_end|>"]
    assert v.types[6:] == [UNUSED, USER, CONTROL] and v.special["eos"] == 8
    same = but(CHARS, "added_tokens", to=[{"id": int(i), **a} for i, a in added.items()])
    w = read(tmp_path, same, tokenizer_config={"eos_token": "<|im_end|>"})
    assert (w.tokens, w.types, w.scores) == (v.tokens, v.types, v.scores)
    # beside a byte-level tokenizer.json it is a leftover and not looked at
    assert read(tmp_path, BPE).model == "gpt2"


def test_broken_sentencepiece_files(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    whole = sentencepiece()
    complete = len(whole) - len(message(3, message(1, b"identity") + number(3, 1) + number(4, 0)))
    for n in range(len(whole)):
        if n == complete:  # all but the normaliser, which may be absent
            continue
        path.write_bytes(whole[:n])
        with pytest.raises(FormatError, match="not a SentencePiece model"):
            read(tmp_path)
    for junk in (
        b"\xff" * 100,
        b"\x0b",
        message(1, message(1, b"\xff")) + message(2, number(3, 2)),
        b"{}",
    ):
        path.write_bytes(junk)
        with pytest.raises(FormatError, match="not a SentencePiece model"):
            read(tmp_path)
    path.write_bytes(sentencepiece(1))
    with pytest.raises(UnsupportedError, match="model type 1, want BPE"):
        read(tmp_path)
