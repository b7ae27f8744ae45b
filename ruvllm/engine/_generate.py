"""The generation loop: one sequence, token by token, over a session of the core.

A Generation has a session (its own, unless one is given) and is driven by whoever iterates it, in
that thread; there is no thread behind it.  Whatever ends it (an end token, a stop string, the
length, a cancel, an error, an abandoned iterator), ``_finish`` runs exactly once: it frees its own
session, fixes the result and hands it to the recorder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from types import TracebackType

from ruvllm import _core
from ruvllm._errors import CancelledError, FullError, RuvllmError, StateError
from ruvllm.engine._record import Record
from ruvllm.engine._reply import Reply
from ruvllm.engine.results import Chunk, FinishReason, GenerationResult

_PREFILL_STEP = 512  # tokens per call into the core, so that Ctrl-C is heard during a long prompt


class Generation(Iterator[Chunk]):
    """A reply in the making: iterate for its pieces, or call ``run`` for all of it.

    A context manager; leaving it, or ``close``, stops the generation and frees its memory.
    ``result`` is there once the iteration has ended.
    """

    def __init__(
        self,
        model: _core.Model,
        reply: Reply,
        *,
        n_ctx: int,
        cancel: _core.Cancel,
        record: Record,
        session: _core.Session | None = None,
    ) -> None:
        if len(reply.prompt) > n_ctx:
            raise FullError(
                f"prompt: has {len(reply.prompt)} tokens, want at most the context of {n_ctx}"
            )
        self._reply = reply
        self._cancel = cancel
        self._record = record
        self._sampler = reply.params.sampler(int(model.info()["n_vocab"]))
        self._sampler.accept(reply.prompt)
        self._owns_session = session is None
        self._session = session or _core.session_new(model, n_ctx)
        self._result: GenerationResult | None = None

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
            return self._reply.chunk(self._finish("cancelled"), False)
        except RuvllmError as e:
            self._finish("error", error=e)
            raise
        except BaseException:  # Ctrl-C, mostly
            self.close()
            raise

    # -- how it works -------------------------------------------------------------------------

    def _prefill(self) -> None:
        prompt = self._reply.prompt
        self._reply.cached_tokens = self._session.start(prompt)
        for i in range(self._reply.cached_tokens, len(prompt), _PREFILL_STEP):
            self._session.eval(prompt[i : i + _PREFILL_STEP], False, self._cancel)
        self._reply.prefilled = time.perf_counter()

    def _step(self) -> Chunk:
        reply = self._reply
        if not reply.prefilled:
            self._prefill()
            if reply.params.max_tokens == 0:
                return reply.chunk(self._finish("length"), False)
        elif self._session.room() == 0:
            return reply.chunk(self._finish("length"), False)
        else:
            self._session.eval(reply.tokens[-1:], False, self._cancel)
        drawn = self._session.sample(self._sampler, len(reply.tokens), reply.mask())
        text, reason = reply.add(*drawn)
        if reason is not None:
            text += self._finish(reason)
        return reply.chunk(text)

    def _finish(self, reason: FinishReason, error: RuvllmError | None = None) -> str:
        tail = self._reply.tail()
        if self._owns_session:
            self._session.close()
        result = self._reply.result(reason)
        self._result = result  # so that a recorder that fails does not lose the reply
        self._result = dataclasses.replace(result, witness_id=self._record(result, error))
        return tail
