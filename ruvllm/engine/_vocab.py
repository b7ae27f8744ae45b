"""The vocabulary of a model as constrained output wants to see it: one entry per logit.

A model may have more rows than its tokenizer has tokens (padding); those are never text."""

from __future__ import annotations

from ruvllm.engine.tokenizer import Tokenizer


class ModelVocab:
    """The tokenizer, widened to ``n_logits`` entries."""

    def __init__(self, tokenizer: Tokenizer, n_logits: int) -> None:
        self._tokenizer = tokenizer
        self._n = n_logits

    @property
    def n_vocab(self) -> int:
        """Number of logits."""
        return self._n

    @property
    def eos(self) -> int | None:
        """The usual token that ends a text."""
        return self._tokenizer.eos

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return token < self._tokenizer.n_vocab and self._tokenizer.is_end(token)

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes a token adds to the text."""
        return self._tokenizer.piece(token, special) if token < self._tokenizer.n_vocab else b""

    def tokenize(self, text: str, bos: bool | None = None, special: bool = False) -> list[int]:
        """Ids of text."""
        return self._tokenizer.tokenize(text, bos, special)
