"""Constrained output: which tokens may come next, so that the text obeys a schema or a grammar.

llguidance does the parsing (the extra ``ruvllm[grammar]``, imported on first use); this file turns
the ways of saying what is wanted into its grammars, gives it our vocabulary once per model, and
holds the state of one generation.  The mask it fills is the one the sampler takes: bit i % 32 of
word i // 32 allows token i.  Tokens that end a generation are allowed only where the text so far
is complete, and nothing else is once no text can follow.

llguidance reports errors by a sticky state of its matcher and bounds its own work (fuel for lexers,
items per step, size of the grammar); what is added here is that each error has our type.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ruvllm._errors import (
    ArgumentError,
    FormatError,
    FullError,
    UnsupportedError,
)

#: Most characters of a schema, expression or grammar.
MAX_SOURCE = 1 << 20
#: White space between JSON tokens: some, so that models may write as they were taught, but bounded,
#: because a weak model in a place where only blanks are likely would write them for ever.
_JSON_OPTIONS = {"whitespace_pattern": r"[ \n\r\t]{1,20}"}


class GrammarVocab(Protocol):
    """What is needed of a tokenizer; weakly referenced, compared by identity."""

    @property
    def n_vocab(self) -> int:
        """Number of tokens, as many as there are logits."""

    @property
    def eog_ids(self) -> Sequence[int]:
        """Tokens that end a generation, the usual one first; at least one."""

    def piece(self, token: int) -> bytes:
        """The bytes a token adds to the text; for a control token its spelling."""

    def is_control(self, token: int) -> bool:
        """True for tokens that are not text."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: no control tokens, no begin token."""


class _Wrapped:
    """The shape llguidance's TokenizerWrapper wants.

    Of tokens with the same bytes (byte tokens and letters in "llama" vocabularies) llguidance
    allows the first only, which may be the one the model never uses; so the others are hidden from
    it, and Constraint copies the first one's bit to them.
    """

    def __init__(self, vocab: GrammarVocab) -> None:
        self.eos_token_id = vocab.eog_ids[0]
        self.bos_token_id = None
        self.tokens: list[bytes] = []
        self.special_token_ids: list[int] = []
        self.twins: dict[int, int] = {}  # a later token -> the first with its bytes
        self._encode = vocab.encode
        first: dict[bytes, int] = {}
        for i in range(vocab.n_vocab):
            text = bytes(vocab.piece(i))
            if vocab.is_control(i):
                self.special_token_ids.append(i)
            elif text and first.setdefault(text, i) != i:
                self.twins[i] = first[text]
                text = b""  # which is never allowed
            self.tokens.append(text)

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):  # TokenizerWrapper asks once whether bytes are taken: no
            raise TypeError("want a string")
        return self._encode(text)


class _Tokenizer:
    """A vocabulary as llguidance's, with the twins as arrays."""

    def __init__(self, ll: Any, vocab: GrammarVocab) -> None:
        wrapped = _Wrapped(vocab)
        self.ll = ll.LLTokenizer(ll.TokenizerWrapper(wrapped), eos_token=list(vocab.eog_ids))
        self.n_vocab = vocab.n_vocab
        self.ends = frozenset(vocab.eog_ids)
        self.twins = wrapped.twins
        later = np.array(list(wrapped.twins), np.int32)
        first = np.array(list(wrapped.twins.values()), np.int32)
        self._first_word, self._first_bit = first // 32, first % 32
        self._later_word, self._later_bit = later // 32, later % 32

    def allow_twins(self, mask: NDArray[np.int32]) -> None:
        bits = mask.view(np.uint32)[self._first_word] >> self._first_bit.astype(np.uint32) & 1
        np.bitwise_or.at(
            mask.view(np.uint32), self._later_word, bits << self._later_bit.astype(np.uint32)
        )


_lock = threading.Lock()
_tokenizers: weakref.WeakKeyDictionary[Any, _Tokenizer] = weakref.WeakKeyDictionary()


def _import() -> Any:
    try:
        import llguidance
    except ImportError as e:
        raise UnsupportedError(
            "constrained output: the package llguidance is not installed, want "
            "`pip install ruvllm[grammar]`"
        ) from e
    return llguidance


def _tokenizer_of(vocab: GrammarVocab) -> _Tokenizer:
    """Made once per vocabulary (about a second for 150 000 tokens)."""
    ll = _import()
    with _lock:
        made = _tokenizers.get(vocab)
        if made is None:
            if not vocab.eog_ids:
                raise UnsupportedError(
                    "constrained output: the vocabulary has no token that ends a text, want one"
                )
            _tokenizers[vocab] = made = _Tokenizer(ll, vocab)
    return made


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _schema_source(schema: Mapping[str, Any] | str) -> str:
    """The schema as JSON text.  Text is parsed too, so that its errors are named here."""
    if not isinstance(schema, Mapping | str):
        raise ArgumentError(
            f"json_schema: is a {type(schema).__name__}, want a mapping or JSON text"
        )
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(value, Mapping):
            raise FormatError(f"json_schema: is {_one_line(repr(value))}, want a JSON object")
        return json.dumps(value, allow_nan=False)
    except RecursionError:
        raise FormatError("json_schema: is nested too deeply, want at most 100 levels") from None
    except (TypeError, ValueError) as e:
        if isinstance(e, FormatError):
            raise
        raise FormatError(f"json_schema: is not JSON: {_one_line(str(e))}") from None


def _escaped(text: str) -> str:
    """A regular expression for exactly this text."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


def _choices_source(choices: Sequence[str]) -> str:
    if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
        raise ArgumentError("choices: want a list of at least one string")
    for i, c in enumerate(choices):
        if not isinstance(c, str) or not c:
            raise ArgumentError(f"choices[{i}]: is {c!r}, want a non-empty string")
    return "|".join(f"({_escaped(c)})" for c in choices)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ArgumentError(f"{name}: is a {type(value).__name__}, want a string")
    return value


def _bounded(name: str, source: str) -> str:
    if len(source) > MAX_SOURCE:
        raise ArgumentError(f"{name}: has {len(source)} characters, want at most {MAX_SOURCE}")
    return source


def _from_gbnf(source: str) -> str:
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(source))
    except RecursionError:
        raise FormatError("gbnf: is nested too deeply") from None
    except Exception as e:
        raise FormatError(f"gbnf: {_one_line(str(e))}") from None


def _grammar(matcher: Any, name: str, value: Any) -> str:
    """llguidance's form of one way of saying what is wanted."""
    if name == "json_schema":
        source = _bounded(name, _schema_source(value))
        return str(matcher.grammar_from_json_schema(source, defaults=_JSON_OPTIONS))
    if name == "json_object":
        return str(matcher.grammar_from_json_schema('{"type":"object"}', defaults=_JSON_OPTIONS))
    if name == "choices":
        return str(matcher.grammar_from_regex(_bounded(name, _choices_source(value))))
    source = _bounded(name, _text(name, value))
    if name == "regex":
        return str(matcher.grammar_from_regex(source))
    return str(matcher.grammar_from_lark(_from_gbnf(source) if name == "gbnf" else source))


class Constraint:
    """What one generation may still say.

    vocab: the model's vocabulary.  Exactly one of:
    json_schema: a JSON Schema, as a mapping or JSON text;  json_object: True for any JSON object;
    regex: an expression (Rust's syntax, no look-around) that the whole text must match;
    lark: a grammar in llguidance's Lark dialect;  gbnf: one in llama.cpp's notation;
    choices: strings, one of which is the whole text.

    Not thread-safe: one per generation.  Raises ArgumentError for none or several of them or a
    wrong type, FormatError for one that does not parse or is too large, UnsupportedError when
    llguidance is not installed.
    """

    def __init__(
        self,
        vocab: GrammarVocab,
        *,
        json_schema: Mapping[str, Any] | str | None = None,
        json_object: bool = False,
        regex: str | None = None,
        lark: str | None = None,
        gbnf: str | None = None,
        choices: Sequence[str] | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "json_schema": json_schema,
            "json_object": json_object or None,
            "regex": regex,
            "lark": lark,
            "gbnf": gbnf,
            "choices": choices,
        }
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1:
            raise ArgumentError(
                f"constraint: found {' and '.join(names) or 'none'}, want exactly one of "
                + ", ".join(given)
            )
        self._name = names[0]
        ll = _import()
        source = _grammar(ll.LLMatcher, self._name, given[self._name])
        self._tokenizer = _tokenizer_of(vocab)
        limits = ll.LLParserLimits(verbose_errors=False)
        self._matcher = ll.LLMatcher(self._tokenizer.ll, source, log_level=0, limits=limits)
        if self._matcher.is_error():
            raise FormatError(f"{self._name}: {_one_line(self._matcher.get_error())}")
        self._mask = np.zeros((vocab.n_vocab + 31) // 32, np.int32)

    def mask(self) -> NDArray[np.int32]:
        """The tokens allowed next: int32 ``(ceil(n_vocab / 32),)``, valid until the next call.

        Raises FullError when the grammar needs more work in one step than llguidance allows.
        """
        self._check()
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        self._tokenizer.allow_twins(self._mask)
        return self._mask

    def commit(self, token: int) -> None:
        """Say which token was chosen.  Raises ArgumentError, changing nothing, if it may not be."""
        self._check()
        t = self._tokenizer
        if self.done:
            ok = token in t.ends  # which llguidance does not consume once nothing else may follow
        else:
            ok = 0 <= token < t.n_vocab and bool(
                self._matcher.try_consume_tokens([t.twins.get(token, token)])
            )
        if not ok:
            self._check()
            raise ArgumentError(f"token: {token} may not come here, want one the mask allows")

    @property
    def complete(self) -> bool:
        """True when the text so far is a whole one, so that it may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def done(self) -> bool:
        """True when only a token that ends the generation may follow, or has come."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        """After construction only llguidance's own limits put the matcher into its error state."""
        if self._matcher.is_error():
            raise FullError(f"{self._name}: {_one_line(self._matcher.get_error())}")
