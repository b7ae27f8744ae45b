"""The generation loop: one sequence, token by token, over a session of the core.

A Generation owns its session and is driven by whoever iterates it, in that thread; there is no
thread behind it.  Whatever ends it (an end token, a stop string, the length, a cancel, an error,
an abandoned iterator), ``_finish`` runs exactly once: it frees the session, fixes the result and
hands it to the recorder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ruvllm import _core
from ruvllm._errors import CancelledError, FullError, RuvllmError, StateError
from ruvllm.engine._params import SamplingParams
from ruvllm.engine._stream import TextStream
from ruvllm.engine.results import Chunk, FinishReason, GenerationResult, Timings, TokenLogprob
from ruvllm.engine.tokenizer import Tokenizer

_PREFILL_STEP = 512  # tokens per call into the core, so that Ctrl-C is heard during a long prompt


class Constraint(Protocol):
    """What a grammar tells the sampler at each position."""

    def mask(self) -> NDArray[np.int32]:
        """A buffer of ceil(n_vocab / 32) words, bit i % 32 of word i // 32 allows token i."""

    def commit(self, token: int) -> None:
        """Move on by one token."""

    @property
    def done(self) -> bool:
        """Whether nothing may follow."""


class Generation(Iterator[Chunk]):
    """A reply in the making: iterate for its pieces, or call ``run`` for all of it.

    A context manager; leaving it, or ``close``, stops the generation and frees its memory.
    ``result`` is there once the iteration has ended.
    """

    def __init__(
        self,
        model: _core.Model,
        tokenizer: Tokenizer | None,
        prompt: list[int],
        params: SamplingParams,
        *,
        n_ctx: int,
        cancel: _core.Cancel,
        constraint: Constraint | None,
        record: Callable[[GenerationResult, RuvllmError | None], str | None],
    ) -> None:
        if len(prompt) > n_ctx:
            raise FullError(
                f"prompt: has {len(prompt)} tokens, want at most the context of {n_ctx}"
            )
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._params = params
        self._cancel = cancel
        self._constraint = constraint
        self._record = record
        self._sampler = params.sampler(int(model.info()["n_vocab"]))
        self._sampler.accept(prompt)
        self._session = _core.session_new(model, n_ctx)
        self._text = TextStream(tokenizer.piece if tokenizer else _no_text, params.stop)
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._shown: list[str] = []
        self._result: GenerationResult | None = None
        self._started = time.perf_counter()
        self._prefilled = self._first = 0.0

    # -- what callers use ---------------------------------------------------------------------

    @property
    def result(self) -> GenerationResult:
        """The finished reply; StateError while it is still being made."""
        if self._result is None:
            raise StateError("generation: is not finished, want it iterated to its end or closed")
        return self._result

    def run(self) -> GenerationResult:
        """Generate to the end."""
        for _ in self:
            pass
        return self.result

    def close(self) -> None:
        """Stop here; the result then has finish_reason "cancelled". Does nothing at the end."""
        if self._result is None:
            self._finish("cancelled")

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Chunk:
        if self._result is not None:
            raise StopIteration
        try:
            return self._step()
        except CancelledError:
            return self._finish("cancelled")
        except RuvllmError as e:
            self._finish("error", error=e)
            raise
        except BaseException:  # Ctrl-C, mostly
            self.close()
            raise

    # -- how it works -------------------------------------------------------------------------

    def _prefill(self) -> None:
        for i in range(0, len(self._prompt), _PREFILL_STEP):
            self._session.eval(self._prompt[i : i + _PREFILL_STEP], False, self._cancel)
        self._prefilled = time.perf_counter()

    def _step(self) -> Chunk:
        if not self._prefilled:
            self._prefill()
            if self._params.max_tokens == 0:
                return self._finish("length")
        elif self._session.room() == 0:
            return self._finish("length")
        else:
            self._session.eval(self._tokens[-1:], False, self._cancel)
        token = self._sample()
        if self._is_end(token):
            return self._finish("stop", (token,))
        text = self._text.push(token)
        self._shown.append(text)
        if self._text.stop_hit is not None or (self._constraint and self._constraint.done):
            return self._finish("stop", (token,), text)
        if len(self._tokens) == self._params.max_tokens:
            return self._finish("length", (token,), text)
        return Chunk(text, (token,), tuple(self._logprobs[-1:]))

    def _sample(self) -> int:
        mask = None if self._constraint is None else self._constraint.mask()
        token, logprob, ids, logprobs = self._session.sample(self._sampler, len(self._tokens), mask)
        if not self._tokens:
            self._first = time.perf_counter()
        self._tokens.append(token)
        if self._params.logprobs is not None:
            top = tuple(zip(ids, logprobs, strict=True))
            self._logprobs.append(TokenLogprob(token, logprob, top))
        if self._constraint is not None:
            self._constraint.commit(token)
        return token

    def _is_end(self, token: int) -> bool:
        if self._tokenizer is None or self._params.ignore_eos:
            return False
        return self._tokenizer.is_end(token)

    def _finish(
        self,
        reason: FinishReason,
        tokens: tuple[int, ...] = (),
        text: str = "",
        error: RuvllmError | None = None,
    ) -> Chunk:
        tail = self._text.finish()
        self._shown.append(tail)
        end = time.perf_counter()
        prefilled = self._prefilled or end
        self._session.close()
        assert self._params.seed is not None
        result = GenerationResult(
            text="".join(self._shown),
            tokens=tuple(self._tokens),
            finish_reason=reason,
            stop=self._text.stop_hit,
            prompt_tokens=tuple(self._prompt),
            seed=self._params.seed,
            timings=Timings(
                prefill_ms=1e3 * (prefilled - self._started),
                first_token_ms=1e3 * ((self._first or end) - self._started),
                generation_ms=1e3 * (end - prefilled),
                total_ms=1e3 * (end - self._started),
                n_prompt=len(self._prompt),
                n_generated=len(self._tokens),
            ),
            logprobs=tuple(self._logprobs),
        )
        self._result = result  # so that a recorder that fails does not lose the reply
        self._result = dataclasses.replace(result, witness_id=self._record(result, error))
        return Chunk(text + tail, tokens, tuple(self._logprobs[-1:]) if tokens else ())


def _no_text(token: int) -> bytes:
    return b""
