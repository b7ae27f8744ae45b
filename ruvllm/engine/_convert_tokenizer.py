"""Turns a Hugging Face tokenizer into the `tokenizer.*` keys of a GGUF.

Owns `tokenizer.json` (or `vocab.txt`, or SentencePiece's `tokenizer.model`).  Three kinds exist,
told apart by the structure of the file, never by its name:

    BPE over bytes      -> tokenizer.ggml.model "gpt2", with merges and the name of a pre-tokenizer
    BPE over characters -> "llama", with scores (SentencePiece: U+2581 for spaces, <0x0A> for bytes)
    WordPiece           -> "bert", words spelled with a leading U+2581 instead of "##" on the rest

The idea to hold: a GGUF only *names* how text is cut before BPE, so a conversion is right only if
the named rule is exactly the one in the file.  The regular expression is therefore compared
character for character with the ones this build implements, and anything else is refused.  A guess
would run, and give slightly other ids on some texts.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from ruvllm._errors import FormatError, NotFoundError, UnsupportedError
from ruvllm.engine._convert_arch import Config
from ruvllm.engine._convert_special import chat_templates, content_of, set_special_ids
from ruvllm.engine._convert_spm import read_sentencepiece
from ruvllm.engine._convert_vocab import (
    BYTE,
    CONTROL,
    KINDS,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER,
    Vocab,
    optional_json,
    parts_of,
    unused_name,
)
from ruvllm.engine._convert_weights import read_json

SPACE: Final = "\u2581"

_WORDS_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS_LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The regular expressions of tokenizer.json by the name a GGUF has for them.
_BY_REGEX: Final = {
    _WORDS_GPT2: "gpt-2",
    _WORDS_LLAMA3: "llama-bpe",
    _WORDS_LLAMA3.replace("{1,3}", ""): "qwen2",
}
_WHOLE_WORDS_FIRST: Final = ("llama-bpe", "lfm2")  # a word that is a token is not merged


def read_vocab(folder: Path, config: Config, arch: str) -> Vocab:
    """The vocabulary of a Hugging Face folder for a model of ``arch``.

    Raises NotFoundError without tokenizer files; FormatError for inconsistent ones;
    UnsupportedError for a kind, normaliser or pre-tokenizer this build does not have, by name.
    """
    spm, json_path, words = (folder / n for n in ("tokenizer.model", "tokenizer.json", "vocab.txt"))
    file = Config(read_json(json_path), "tokenizer.json") if json_path.is_file() else None
    extra = optional_json(folder / "tokenizer_config.json")
    kind = _kind(file) if file is not None else ""
    if spm.is_file() and kind in ("", "llama"):
        v = _from_sentencepiece(spm, file, extra)
    elif file is not None:
        v = {"gpt2": _byte_bpe, "llama": _char_bpe, "bert": _word_piece}[kind](file)
    elif words.is_file():
        v = _from_vocab_txt(words, extra)
    else:
        raise NotFoundError(f"{folder}: no tokenizer.json, tokenizer.model or vocab.txt")
    if v.pre == "llama-bpe" and arch == "lfm2":
        v.pre = "lfm2"  # the same rule under the name its files usually give
    set_special_ids(v, folder, file, extra, config)
    v.templates = chat_templates(folder, extra)
    return v


# ---------------------------------------------------------------- tokenizer.json


def _kind(file: Config) -> str:
    model = file.map("model")
    name = model.get("type")
    if name == "BPE":
        return "llama" if model.flag("byte_fallback", False) else "gpt2"
    if name == "WordPiece":
        return "bert"
    raise UnsupportedError(f"tokenizer.json: model type {name!r}, want 'BPE' or 'WordPiece'")


def _table(file: Config) -> tuple[list[str], list[int], dict[str, int]]:
    """Tokens and types by id, and ids by token, from the model's vocab and the added tokens."""
    vocab = file.map("model").get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise FormatError("tokenizer.json: model.vocab: want a map from token to id")
    by_id: dict[int, str] = {}
    types: dict[int, int] = {}
    for text, i in vocab.items():
        _place(by_id, i, text)
    for i, text, special in _added(file):
        if by_id.get(i) != text:
            if text in vocab:
                raise FormatError(
                    f"tokenizer.json: added token {text!r} has id {i}, the vocab says {vocab[text]}"
                )
            _place(by_id, i, text)
        types[i] = CONTROL if special or _looks_special(text) else USER
    tokens: list[str] = []
    have = set(by_id.values())
    for i in range(max(by_id) + 1):
        if i not in by_id:
            types[i] = UNUSED
        tokens.append(by_id[i] if i in by_id else unused_name(i, have))
    return (
        tokens,
        [types.get(i, NORMAL) for i in range(len(tokens))],
        {t: i for i, t in by_id.items()},
    )


def _added(file: Config) -> list[tuple[int, str, bool]]:
    """Id, text and speciality of each added token."""
    found = file.get("added_tokens", [])
    if not isinstance(found, list):
        raise FormatError(f"tokenizer.json: added_tokens: found {found!r:.60}, want a list")
    return [_added_token(a, a.get("id") if isinstance(a, dict) else None) for a in found]


def _added_token(token: Any, i: Any) -> tuple[int, str, bool]:
    text = token.get("content") if isinstance(token, dict) else None
    if not isinstance(text, str) or not text or isinstance(i, bool) or not isinstance(i, int):
        raise FormatError(f"added_tokens: found {token!r:.80}, want a content and an id")
    return i, text, bool(token.get("special"))


def _place(by_id: dict[int, str], i: Any, text: str) -> None:
    if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < 1 << 24:
        raise FormatError(f"tokenizer.json: token {text!r:.60}: found id {i!r}, want 0 .. 2^24 - 1")
    if i in by_id:
        raise FormatError(f"tokenizer.json: id {i} is both {by_id[i]!r:.60} and {text!r:.60}")
    by_id[i] = text


def _looks_special(text: str) -> bool:
    # Many files mark <|fim_prefix|> and its kind as ordinary; text from users must not become them.
    return (text.startswith("<|") and text.endswith("|>")) or text in ("<pad>", "<mask>")


def _merges(file: Config, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Merge rules as pairs, from either spelling: ``"a b"`` or ``["a", "b"]``."""
    found = file.map("model").get("merges", [])
    if not isinstance(found, list):
        raise FormatError("tokenizer.json: model.merges: want a list")
    pairs = []
    for m in found:
        pair = m.split(" ") if isinstance(m, str) else m
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(x, str) for x in pair)
        ):
            raise FormatError(f"tokenizer.json: merge {m!r:.60}: want two tokens")
        a, b = pair
        for part in (a, b, a + b):
            if part not in ids:
                raise FormatError(
                    f"tokenizer.json: merge {m!r:.60}: {part!r:.60} is not in the vocab"
                )
        pairs.append((a, b))
    return pairs


# ---------------------------------------------------------------- BPE over bytes


def _byte_bpe(file: Config) -> Vocab:
    model = file.map("model")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        model.only(key, None, None, "")
    model.only("dropout", None, None, 0.0)
    for step in parts_of(file.get("normalizer"), "normalizers"):
        # NFC changes no text that is in NFC already, which is nearly all; the GGUF cannot say it
        if step.get("type") != "NFC":
            raise UnsupportedError(
                f"tokenizer.json: normalizer {step.get('type')!r}, want none or NFC"
            )
    pre = _pre_name(parts_of(file.get("pre_tokenizer"), "pretokenizers"))
    tokens, types, ids = _table(file)
    pairs = _merges(file, ids)
    if model.flag("ignore_merges", False) != (pre in _WHOLE_WORDS_FIRST):
        _check_reachable([t for t, k in zip(tokens, types, strict=True) if k == NORMAL], pairs)
    return Vocab("gpt2", pre, tokens, types, merges=[f"{a} {b}" for a, b in pairs])


def _check_reachable(tokens: list[str], pairs: list[tuple[str, str]]) -> None:
    """Refuse a token that merges do not make out of its own letters.

    Whether a word that is a token is looked up whole before merging follows from the name of the
    pre-tokenizer in a GGUF.  Where the file says otherwise, the two agree only if merging finds
    every token.
    """
    ranks = {pair: i for i, pair in enumerate(pairs)}
    for token in tokens:
        parts = list(token)
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda p: ranks.get(p, len(ranks)))
            if best not in ranks:
                raise UnsupportedError(
                    f"tokenizer.json: model.ignore_merges: token {token!r} is not what its merges "
                    "give, and a GGUF cannot say which of the two holds"
                )
            i = next(i for i, p in enumerate(pairwise(parts)) if p == best)
            parts[i : i + 2] = [best[0] + best[1]]


def _pre_name(steps: list[dict[str, Any]]) -> str:
    """The GGUF name of the rule that cuts text before BPE; UnsupportedError when it has none."""
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel":
        raise UnsupportedError(
            f"tokenizer.json: pre_tokenizer {_outline(steps)}, want a ByteLevel step at the end"
        )
    if last.get("add_prefix_space", True):
        raise UnsupportedError(
            "tokenizer.json: pre_tokenizer: add_prefix_space: found true, want false"
        )
    by_gpt2 = last.get("use_regex", True)
    cuts = steps[:-1]
    if not cuts and by_gpt2:
        return "gpt-2"
    if len(cuts) == 1 and cuts[0].get("type") == "Split" and not by_gpt2:
        step = cuts[0]
        pattern = step.get("pattern")
        regex = str(pattern.get("Regex")) if isinstance(pattern, dict) else None
        # Every character is part of some match, so dropping what lies between drops nothing.
        behavior = step.get("behavior"), step.get("invert", False)
        plain = behavior in (("Isolated", False), ("Removed", True))
        if plain and regex in _BY_REGEX:
            return _BY_REGEX[regex]
        raise UnsupportedError(
            f"tokenizer.json: pre_tokenizer pattern {regex!r}, want that of "
            + ", ".join(_BY_REGEX.values())
        )
    digits = [s for s in cuts if s.get("type") == "Digits" and s.get("individual_digits")]
    if len(digits) == len(cuts) == 1 and by_gpt2:
        return "smollm"
    raise UnsupportedError(
        f"tokenizer.json: pre_tokenizer {_outline(steps)}, "
        "want that of gpt-2, llama-bpe, qwen2, smollm or lfm2"
    )


def _outline(steps: list[dict[str, Any]]) -> str:
    return " + ".join(str(s.get("type")) for s in steps) or "none"


# ---------------------------------------------------------------- BPE over characters


def _char_bpe(file: Config) -> Vocab:
    """SentencePiece-style BPE out of its merge rules: the rank of a rule becomes a score."""
    tokens, types, ids = _table(file)
    prefix = _space_prefix(file)
    v = Vocab("llama", "default", tokens, types, scores=[0.0] * len(tokens))
    assert v.scores is not None
    unk = file.map("model").get("unk_token")
    for i, t in enumerate(tokens):
        if types[i] == NORMAL and re.fullmatch(r"<0x[0-9A-F]{2}>", t):
            v.types[i] = BYTE
        elif t == unk:
            v.types[i] = UNKNOWN
    pairs = _merges(file, ids)
    ranks = _score_order([a + b for a, b in pairs])
    _check_complete(tokens, v.types, ids, set(pairs))
    for i, t in enumerate(tokens):
        if v.types[i] == NORMAL:
            v.scores[i] = -float(ranks.get(t, len(ranks)))
        elif v.types[i] in (USER, UNUSED):
            v.scores[i] = -1000.0 if v.types[i] == USER else -10000.0
    v.flags["add_space_prefix"] = prefix
    return v


def _score_order(made: list[str]) -> dict[str, int]:
    """Place of each token among the scores, 0 the best, from what each merge in turn makes.

    SentencePiece's own order has all merges of a token together, since they share its score.  Runs
    of spaces all have the same score there, which leaves their merges mixed: those tie.
    """
    last = {token: at for at, token in enumerate(made)}
    places: dict[str, int] = {}
    group: list[str] = []
    place = end = -1
    for at, token in enumerate(made):
        if token in places:
            continue
        if at > end:
            group, place = [], place + 1
        group.append(token)
        end = max(end, last[token])
        places[token] = place
        if len(group) > 1 and len(set("".join(group))) > 1:
            raise UnsupportedError(
                f"tokenizer.json: merges that make {group[0]!r} and {token!r} are mixed: no "
                "scores give their order; want tokenizer.model"
            )
    return places


def _check_complete(
    tokens: list[str], types: list[int], ids: dict[str, int], pairs: set[tuple[str, str]]
) -> None:
    """Scores join any two neighbours that spell a token; the rules must allow each such join."""
    plain = {t for t, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    for t in plain:
        for cut in range(1, len(t)):
            a, b = t[:cut], t[cut:]
            if a in plain and b in plain and (a, b) not in pairs:
                raise UnsupportedError(
                    f"tokenizer.json: no merge of {a!r} and {b!r} though {t!r} is "
                    "a token: no scores give that; want tokenizer.model"
                )


def _space_prefix(file: Config) -> bool:
    """Whether a space is put before the text; UnsupportedError unless spaces become U+2581."""
    norm = parts_of(file.get("normalizer"), "normalizers")
    pre = parts_of(file.get("pre_tokenizer"), "pretokenizers")
    outline = f"normalizer {_outline(norm)}, pre_tokenizer {_outline(pre)}"
    prefix = replaced = False
    for s in norm:
        kind, content = s.get("type"), s.get("content")
        if kind == "Prepend" and s.get("prepend") == SPACE:
            prefix = True
        elif kind == "Replace" and content == SPACE and s.get("pattern") == {"String": " "}:
            replaced = True
        else:
            raise UnsupportedError(f"tokenizer.json: {outline}: step {s!r:.80} has no GGUF form")
    for s in pre:
        if s.get("type") != "Metaspace" or s.get("replacement") != SPACE or s.get("split"):
            raise UnsupportedError(f"tokenizer.json: {outline}: step {s!r:.80} has no GGUF form")
        replaced = True
        scheme = s.get("prepend_scheme", "always" if s.get("add_prefix_space", True) else "never")
        prefix = prefix or scheme != "never"
    if not replaced:
        raise UnsupportedError(f"tokenizer.json: {outline}: want spaces replaced by U+2581")
    return prefix


def _from_sentencepiece(path: Path, file: Config | None, extra: Config) -> Vocab:
    """SentencePiece's own file, which has the true scores, plus tokens added on top of it."""
    spm = read_sentencepiece(path)
    v = Vocab("llama", "default", spm.tokens, spm.types, scores=spm.scores)
    decoder = extra.get("added_tokens_decoder")
    if file is not None:
        added = _added(file)
    elif isinstance(decoder, dict):
        added = [_added_token(a, int(i) if i.isdecimal() else i) for i, a in decoder.items()]
    else:
        added = []
    assert v.scores is not None
    for i, text, special in sorted(added):
        if not 0 <= i < 1 << 24:
            raise FormatError(f"added token {text!r:.60}: found id {i}, want 0 .. 2^24 - 1")
        while i >= len(v.tokens):
            v.tokens.append(f"[PAD{len(v.tokens)}]")
            v.types.append(UNUSED)
            v.scores.append(-10000.0)
        if v.types[i] in (UNKNOWN, BYTE):
            continue
        v.tokens[i] = text
        v.types[i] = CONTROL if special or _looks_special(text) else USER
        v.scores[i] = -1000.0 if v.types[i] == USER else 0.0
    v.flags["add_space_prefix"] = spm.add_dummy_prefix
    v.flags["remove_extra_whitespaces"] = spm.remove_extra_whitespaces
    for kind, i in spm.special.items():
        if i >= 0:
            v.special[kind] = i
    return v


# ---------------------------------------------------------------- WordPiece


def _word_piece(file: Config) -> Vocab:
    prefix = file.map("model").get("continuing_subword_prefix", "##")
    if not isinstance(prefix, str):
        raise FormatError(f"tokenizer.json: continuing_subword_prefix: found {prefix!r:.60}")
    steps = parts_of(file.get("normalizer"), "normalizers")
    if len(steps) != 1:
        raise UnsupportedError(f"tokenizer.json: normalizer {_outline(steps)}, want BertNormalizer")
    norm = Config(steps[0], "tokenizer.json: normalizer")
    norm.only("type", None, "BertNormalizer")
    norm.only("handle_chinese_chars", True, True)
    norm.only("clean_text", True, True)
    for step in parts_of(file.get("pre_tokenizer"), "pretokenizers"):
        Config(step, "tokenizer.json: pre_tokenizer").only("type", None, "BertPreTokenizer")
    tokens, types, _ = _table(file)
    return _phantom(tokens, types, prefix, norm)


def _from_vocab_txt(path: Path, extra: Config) -> Vocab:
    extra.only("tokenize_chinese_chars", True, True)
    norm = Config({**extra.values, "lowercase": extra.get("do_lower_case")}, extra.file)
    try:
        tokens = path.read_text("utf-8").split("\n")
    except UnicodeDecodeError as e:
        raise FormatError(f"{path}: not UTF-8 at byte {e.start}") from None
    if tokens[-1] == "":
        tokens.pop()
    tokens = [t.removesuffix("\r") for t in tokens]
    special = {content_of(extra.get(f"{kind}_token", f"[{kind.upper()}]")) for kind in KINDS[2:]}
    return _phantom(tokens, [CONTROL if t in special else NORMAL for t in tokens], "##", norm)


def _phantom(tokens: list[str], types: list[int], prefix: str, norm: Config) -> Vocab:
    """llama.cpp's spelling: the start of a word carries a mark, its continuation none."""

    def spell(token: str, kind: int) -> str:
        if kind in (CONTROL, UNUSED):
            return token
        if token.startswith(prefix) and len(token) > len(prefix):
            return token[len(prefix) :]
        return SPACE + token

    spelled = [spell(t, k) for t, k in zip(tokens, types, strict=True)]
    v = Vocab("bert", "default", spelled, types)
    lower = norm.flag("lowercase", True)
    v.flags["normalizer.lowercase"] = lower
    v.flags["normalizer.strip_accents"] = norm.flag("strip_accents", lower)
    return v
