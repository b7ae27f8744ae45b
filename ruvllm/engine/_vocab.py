"""The vocabulary of a model as constrained output wants to see it: one entry per logit.

A model may have more rows than its tokenizer has tokens (padding); those are never text."""

from __future__ import annotations

from ruvllm._errors import UnsupportedError
from ruvllm.engine.tokenizer import Tokenizer


class ModelVocab:
    """The tokenizer, widened to ``n_logits`` entries; UnsupportedError if nothing ends a text."""

    def __init__(self, tokenizer: Tokenizer, n_logits: int) -> None:
        self._tokenizer = tokenizer
        self._n = n_logits
        ends = [t for t in range(tokenizer.n_vocab) if tokenizer.is_end(t)]
        if not ends:
            raise UnsupportedError("vocabulary: has no end token, want one to constrain output")
        self._ends = sorted(ends, key=lambda t: t != tokenizer.eos)

    @property
    def n_vocab(self) -> int:
        """Number of logits."""
        return self._n

    @property
    def eog_ids(self) -> list[int]:
        """Tokens that end a generation, the usual one first."""
        return self._ends

    def piece(self, token: int) -> bytes:
        """The bytes a token adds to the text; for a control token its spelling."""
        return self._tokenizer.piece(token, True) if token < self._tokenizer.n_vocab else b""

    def is_control(self, token: int) -> bool:
        """True for tokens that are not text."""
        return token >= self._tokenizer.n_vocab or not self._tokenizer.is_text(token)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: no control tokens, no begin token."""
        return self._tokenizer.tokenize(text, bos=False)
