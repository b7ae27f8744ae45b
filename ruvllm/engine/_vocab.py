"""The vocabulary of a model as constrained output wants to see it: one entry per logit."""

from __future__ import annotations

from ruvllm.engine.tokenizer import Tokenizer

_CONTROL, _UNKNOWN, _UNUSED = 3, 2, 5


class GrammarVocab:
    """``n_logits`` may exceed the tokenizer's size: rows beyond it are never text."""

    def __init__(self, tokenizer: Tokenizer, n_logits: int) -> None:
        self._tokenizer = tokenizer
        self._n = n_logits
        self._ends = [t for t in range(tokenizer.n_vocab) if tokenizer.is_end(t)]
        if tokenizer.eos is not None and tokenizer.eos in self._ends:
            self._ends.remove(tokenizer.eos)
            self._ends.insert(0, tokenizer.eos)

    @property
    def n_vocab(self) -> int:
        """Number of tokens, as many as there are logits."""
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
        if token >= self._tokenizer.n_vocab:
            return True
        return self._tokenizer.kind(token) in (_CONTROL, _UNKNOWN, _UNUSED)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: no control tokens, no begin token."""
        return self._tokenizer.tokenize(text, bos=False)
