"""A reply in the making: from chosen tokens to text, chunks and the result.

Whoever chooses the tokens (a Generation, an Engine) adds them here one by one, so that a reply is
cut, ended and timed in one way only."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ruvllm.engine._params import SamplingParams
from ruvllm.engine._stream import TextStream
from ruvllm.engine.results import Chunk, FinishReason, GenerationResult, Timings, TokenLogprob
from ruvllm.engine.tokenizer import Tokenizer


class Constraint(Protocol):
    """What a grammar tells the sampler at each position."""

    def mask(self) -> NDArray[np.int32]:
        """A buffer of ceil(n_vocab / 32) words, bit i % 32 of word i // 32 allows token i."""

    def commit(self, token: int) -> None:
        """Move on by one token."""

    @property
    def done(self) -> bool:
        """Whether nothing may follow."""


class Reply:
    """What one request has given so far."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt: list[int],
        params: SamplingParams,
        constraint: Constraint | None,
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.constraint = constraint
        self.tokens: list[int] = []
        #: When the prompt was computed (0.0: not yet); the first token tells if nobody else does.
        self.prefilled = 0.0
        self.cached_tokens = 0
        self.n_preempted = 0
        self.restored_tokens = 0
        #: Why keys and values that were on disk were of no use.
        self.lost: Exception | None = None
        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer.piece if tokenizer else _no_text, params.stop)
        self._logprobs: list[TokenLogprob] = []
        self._shown: list[str] = []
        self._started = time.perf_counter()
        self._first = 0.0

    def mask(self) -> NDArray[np.int32] | None:
        """Which tokens may come next; None: all."""
        return None if self.constraint is None else self.constraint.mask()

    def add(
        self, token: int, logprob: float, ids: tuple[int, ...], logprobs: tuple[float, ...]
    ) -> tuple[str, FinishReason | None]:
        """Take the next token; the text it adds, and why the reply ends with it, if it does."""
        if not self.tokens:
            self._first = time.perf_counter()
            self.prefilled = self.prefilled or self._first
        self.tokens.append(token)
        if self.params.logprobs is not None:
            top = tuple(zip(ids, logprobs, strict=True))
            self._logprobs.append(TokenLogprob(token, logprob, top))
        if self.constraint is not None:
            self.constraint.commit(token)
        if self._is_end(token):
            return "", "stop"
        text = self._text.push(token)
        self._shown.append(text)
        if self._text.stop_hit is not None or (self.constraint and self.constraint.done):
            return text, "stop"
        return text, "length" if len(self.tokens) == self.params.max_tokens else None

    def chunk(self, text: str, with_token: bool = True) -> Chunk:
        """A piece of the reply: text, and the last token unless it was in an earlier piece."""
        if not with_token:
            return Chunk(text, ())
        return Chunk(text, (self.tokens[-1],), tuple(self._logprobs[-1:]))

    def tail(self) -> str:
        """The text that was held back, once nothing follows any more."""
        text = self._text.finish()
        self._shown.append(text)
        return text

    def result(self, reason: FinishReason) -> GenerationResult:
        """The finished reply; ``tail`` comes first."""
        end = time.perf_counter()
        prefilled = self.prefilled or end
        assert self.params.seed is not None
        return GenerationResult(
            text="".join(self._shown),
            tokens=tuple(self.tokens),
            finish_reason=reason,
            stop=self._text.stop_hit,
            prompt_tokens=tuple(self.prompt),
            seed=self.params.seed,
            timings=Timings(
                prefill_ms=1e3 * (prefilled - self._started),
                first_token_ms=1e3 * ((self._first or end) - self._started),
                generation_ms=1e3 * (end - prefilled),
                total_ms=1e3 * (end - self._started),
                n_prompt=len(self.prompt),
                n_generated=len(self.tokens),
            ),
            logprobs=tuple(self._logprobs),
            cached_tokens=self.cached_tokens,
            n_preempted=self.n_preempted,
            restored_tokens=self.restored_tokens,
            restore_error=None if self.lost is None else str(self.lost),
        )

    def _is_end(self, token: int) -> bool:
        if self._tokenizer is None or self.params.ignore_eos:
            return False
        return self._tokenizer.is_end(token)


def _no_text(token: int) -> bytes:
    return b""
