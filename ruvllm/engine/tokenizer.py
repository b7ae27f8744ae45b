"""Tokenizer: text to ids and back, from any GGUF, one without weights too."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ruvllm import _core
from ruvllm._errors import ArgumentError, UnsupportedError

_BOS, _EOS, _SPECIAL = 1, 2, 4
_NOT_TEXT = (2, 3, 5)  # token types: unknown, control, unused


def text_bytes(text: str | bytes, what: str) -> bytes:
    """UTF-8 of ``text``; ArgumentError naming ``what`` when it is neither str nor bytes, or holds
    a lone surrogate."""
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise ArgumentError(f"{what}: is {type(text).__name__}, want str or bytes")
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        found = text[e.start]
        raise ArgumentError(
            f"{what}: character {e.start} is the lone surrogate U+{ord(found):04X}, "
            "want text that UTF-8 can hold"
        ) from None


class Tokenizer:
    """The vocabulary of a GGUF file.

    path: a GGUF v2/v3 file with ``tokenizer.ggml.*`` keys; weights are not needed.
    Raises NotFoundError, FormatError, or UnsupportedError for a vocabulary this build cannot run.
    Thread-safe.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._core = _core.tokenizer_open(_core.gguf_open(os.fspath(path)))
        self._info = self._core.info()

    @classmethod
    def _wrap(cls, core: _core.Tokenizer) -> Tokenizer:
        self = cls.__new__(cls)
        self._core = core
        self._info = core.info()
        return self

    def tokenize(
        self, text: str | bytes, bos: bool | None = None, special: bool = False
    ) -> list[int]:
        """Ids of ``text``.

        bos: put the begin token first, or not; None: begin and end tokens as the file asks (an
        encoder's usually asks for both).  special: text that spells a control token becomes that
        token; leave it off for text from users.
        Raises ArgumentError when ``text`` is not text.
        """
        return self.encode(text, bos=bos, eos=None if bos is None else False, special=special)

    def encode(
        self,
        text: str | bytes,
        bos: bool | None = None,
        eos: bool | None = False,
        special: bool = False,
    ) -> list[int]:
        """As ``tokenize``, with the end token too (None: as the file asks)."""
        add_bos = self._info["add_bos"] if bos is None else bos
        add_eos = self._info["add_eos"] if eos is None else eos
        flags = (_BOS if add_bos else 0) | (_EOS if add_eos else 0) | (_SPECIAL if special else 0)
        return self._core.encode(text_bytes(text, "text"), flags)

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD.

        special: show control tokens as they are spelt instead of leaving them out.
        Raises ArgumentError for an id outside 0 .. n_vocab - 1.
        """
        return self._core.decode(ids, special).decode("utf-8", "replace")

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes one token adds to running text."""
        return self._core.piece(token, special)

    def is_end(self, token: int) -> bool:
        """Whether the token ends a reply (end of text, end of turn, ...)."""
        return self._core.is_eog(token)

    def is_text(self, token: int) -> bool:
        """Whether the token stands for text: not control, unknown or unused."""
        return self._core.type_of(token) not in _NOT_TEXT

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return int(self._info["n_vocab"])

    @property
    def bos(self) -> int | None:
        """Id of the begin token."""
        return self._special("bos")

    @property
    def eos(self) -> int | None:
        """Id of the end token."""
        return self._special("eos")

    def token_text(self, token: int | None) -> str:
        """A token as the vocabulary spells it; "" for None or an id out of range."""
        return "" if token is None else self._core.text(token).decode("utf-8", "replace")

    @property
    def info(self) -> dict[str, Any]:
        """Kind, pre-tokenizer, special ids (-1: none) and defaults of the vocabulary."""
        return dict(self._info)

    def _special(self, name: str) -> int | None:
        token = int(self._info[name])
        return None if token < 0 else token

    def __len__(self) -> int:
        return self.n_vocab

    def __repr__(self) -> str:
        return f"Tokenizer({self._info['model']!s}, {self.n_vocab} tokens)"


def need_tokenizer(tokenizer: Tokenizer | None, path: str) -> Tokenizer:
    """The tokenizer, or UnsupportedError when the file has none."""
    if tokenizer is None:
        raise UnsupportedError(f"{path}: has no vocabulary, want tokenizer.ggml.* keys; give ids")
    return tokenizer
