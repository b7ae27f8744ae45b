"""Engine: many requests over one model at once, by continuous batching.

    engine = ruvllm.Engine("model.gguf")
    requests = [engine.submit(p, max_tokens=100) for p in prompts]
    for r in requests:
        print(r.result().text)

    async for chunk in engine.submit(prompt):      # any number of these at once
        print(chunk.text, end="")

    talk = engine.session("anna")                  # and any number of conversations
    print(talk.chat("reverse apple river").result().text)

A step of the core is one forward pass over rows of all running requests, so that a weight is read
once for all of them; requests come and go between steps.  What a request gives is exactly what
``Model.generate`` gives alone: neither the company nor the order shows in its tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from ruvllm import _core
from ruvllm._errors import ArgumentError, RuvllmError, StateError
from ruvllm.engine._loop import Loop, Wakes, watch_process
from ruvllm.engine._params import check_one_of, check_whole
from ruvllm.engine._record import Record
from ruvllm.engine._reply import Reply
from ruvllm.engine._spill import SpillFolder
from ruvllm.engine._talks import Talks
from ruvllm.engine.conversation import Conversation, Turn, new_id
from ruvllm.engine.kv_policy import IMPORTANCES, Importance, KVRule, check_rules, tail_for
from ruvllm.engine.model import Model
from ruvllm.engine.results import Chunk, FinishReason, GenerationResult
from ruvllm.memory.witness import model_digest

if TYPE_CHECKING:
    import asyncio

    import numpy as np
    from numpy.typing import NDArray

_POLICIES = {"fcfs": 0, "sjf": 1, "fair": 2}
_PRIORITIES = {name: i for i, name in enumerate(IMPORTANCES)}
_NO_LIMIT = 2**31 - 1  # tokens: the context ends it

watch_process()


@dataclasses.dataclass(frozen=True, slots=True)
class EngineMetrics:
    """What an engine does now, and what it did since it was made.

    queue, running: requests.  tokens_per_second: generated, over the last seconds that were spent
    computing.  rows_per_step: tokens (of prompts too) that one pass takes, a moving average.
    kv_used_bytes, kv_held_bytes, kv_budget_bytes: of the model's keys and values, see ``KVStats``.
    hit_rate: share of the prompts' tokens that were found computed already, 0 .. 1.
    sessions, parked: conversations that are open, and those of them that are on disk only.
    spill_bytes: of keys and values on disk.
    """

    queue: int
    running: int
    tokens_per_second: float
    rows_per_step: float
    kv_used_bytes: int
    kv_held_bytes: int
    kv_budget_bytes: int
    hit_rate: float
    submitted: int
    refused: int
    finished: int
    cancelled: int
    preemptions: int
    steps: int
    tokens: int
    sessions: int = 0
    parked: int = 0
    spill_bytes: int = 0


@dataclasses.dataclass(slots=True, eq=False)
class _Waiting:
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]
    for_chunks: bool  # or for the end only


class Request:
    """A request of an engine.

    Iterate it, with ``for`` or ``async for``, for its pieces (the Chunks of ``Model.generate``);
    or take the whole with ``result()`` or ``await request``.  An iteration that is left before its
    end, by ``break``, an exception or a cancelled task, cancels the request; one that was never
    begun does not.  Pieces are kept until somebody reads them, and are given out once.

    id: counts from 1 in each engine; 0 for a request of no tokens.
    """

    def __init__(self, engine: Engine, loop: Loop, reply: Reply, record: Record) -> None:
        self.id = 0
        self._engine: Engine | None = engine  # which lives as long as anything runs
        self._loop = loop
        self._reply = reply
        self._record = record
        lock = threading.RLock()
        self._more = threading.Condition(lock)  # a chunk, or the end
        self._over = threading.Condition(lock)  # the end
        self._chunks: deque[Chunk] = deque()
        self._futures: list[_Waiting] = []
        self._text: str = ""  # of the event that was taken last
        self._has_token = False
        self._result: GenerationResult | None = None
        self._error: Exception | None = None

    # -- what callers use ---------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._result is not None

    def cancel(self) -> None:
        """End it before the next step; the result then has finish_reason "cancelled".

        Nothing happens when it has ended.  From any thread; does not wait.
        """
        if not self.done:
            self._loop.cancel(self)

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Wait for the whole reply; in a coroutine ``await`` the request instead.

        timeout: seconds; None: no limit.  The request goes on when it is over.
        Raises what ended the request if it failed, StateError when the time is over.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with self._over:
            while self._result is None:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise StateError(f"request {self.id}: is not finished after {timeout} s")
                self._check()
                self._over.wait(left)
        return self._outcome()

    async def aresult(self) -> GenerationResult:
        """``result`` in a coroutine; cancelling its task cancels the request."""
        try:
            while not self.done:
                await self._news(False)
        finally:
            self.cancel()
        return self._outcome()

    def __await__(self) -> Generator[Any, None, GenerationResult]:
        return self.aresult().__await__()

    def __iter__(self) -> Iterator[Chunk]:
        try:
            while True:
                with self._more:
                    while not (self._chunks or self.done):
                        self._check()
                        self._more.wait()
                    if not self._chunks:
                        break
                    chunk = self._chunks.popleft()
                yield chunk
        finally:
            self.cancel()
        self._outcome()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            while True:
                with self._more:
                    chunk = self._chunks.popleft() if self._chunks else None
                    if chunk is None and self.done:
                        break
                if chunk is None:
                    await self._news(True)
                else:
                    yield chunk
        finally:
            self.cancel()
        self._outcome()

    def __repr__(self) -> str:
        state = self._result.finish_reason if self._result else f"{len(self._reply.tokens)} tokens"
        return f"Request({self.id}, {state})"

    # -- for the loop -------------------------------------------------------------------------

    def take(self, event: _core._Event, reason: FinishReason | None) -> FinishReason | None:
        """Take an event; why the reply ends with it, if it does."""
        _, token, logprob, ids, logprobs, _, _, n_cached, n_preempted, n_restored, lost = event
        reply = self._reply
        reply.cached_tokens, reply.n_preempted = n_cached, n_preempted
        reply.restored_tokens, reply.lost = min(n_restored, n_cached), lost
        self._text, self._has_token = "", token >= 0
        if self._has_token:
            self._text, ended = reply.add(token, logprob, ids, logprobs)
            return ended or reason  # a stop string goes before the length
        return reason

    def mask(self) -> NDArray[np.int32] | None:
        """Which tokens the next choice may take."""
        return self._reply.mask()

    def deliver(self, wakes: Wakes) -> None:
        """Show what was taken."""
        self._show(self._reply.chunk(self._text, self._has_token), wakes)

    def end(self, reason: FinishReason, error: Exception | None, wakes: Wakes) -> None:
        """Fix the result, record it, show it."""
        reply = self._reply
        chunk = reply.chunk(self._text + reply.tail(), self._has_token)
        result = reply.result(reason)
        try:
            said = error if isinstance(error, RuvllmError) else None
            result = dataclasses.replace(result, witness_id=self._record(result, said))
        except Exception as e:  # the reply stands, and whoever asks for it is told
            error = error or e
        self._error = error
        if error is None:
            self._show(chunk, wakes, result)
        else:
            self._show(None, wakes, result)
        self._engine = None

    def _show(
        self, chunk: Chunk | None, wakes: Wakes, result: GenerationResult | None = None
    ) -> None:
        with self._more:
            self._text, self._has_token = "", False
            if chunk is not None:
                self._chunks.append(chunk)
            self._result = result
            self._more.notify_all()
            if result is not None:
                self._over.notify_all()
            told = [w for w in self._futures if result is not None or w.for_chunks]
            self._futures = [w for w in self._futures if w not in told]
        for w in told:
            wakes.add(w.loop, w.future)

    # -- waiting ------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._loop.forked:
            raise StateError(f"request {self.id}: was made before this process was forked")

    def _outcome(self) -> GenerationResult:
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    async def _news(self, chunks: bool) -> None:
        """Return when it has ended or, with chunks, when there are some."""
        import asyncio  # 30 ms that only asynchronous callers pay

        loop = asyncio.get_running_loop()
        with self._more:
            if self.done or (chunks and self._chunks):
                return
            self._check()
            waiting = _Waiting(loop, loop.create_future(), chunks)
            self._futures.append(waiting)
        await waiting.future


class Engine:
    """Serves many requests of one model at once.

    model: a Model, which stays the caller's; or a path (None: the bundled model), opened with
    the defaults and closed with the engine.
    policy: who goes first among requests of one priority: "fcfs" the first to come, "sjf" the one
    with the fewest tokens left, "fair" the tenant that has had least.
    max_running: requests at once, 1 .. 4096; default 64 (or max_rows, if that is less).
    max_rows: tokens of a step, max_running .. 4096; default max_running + 128.  max_chunk: tokens
    of one prompt in a step, 1 .. 4096; default the model's n_batch.  Neither changes a result.
    max_queue: requests that wait, 1 .. 100,000.  max_queue_tokens: tokens of their prompts.
    age_steps: steps of waiting that lift a request by one priority; default 200.
    max_preempt: how often a request may have to give its memory to others; default 3.
    preempt: what becomes of its keys and values then: they are computed again ("recompute"), or
    written to spill_dir and read again ("swap").  Never changes a result.
    spill_dir: a folder, made if it is missing, of this engine alone, for conversations
    (``session``) that are not in memory: idle ones are written there before their keys and values
    would have to go, and all when the engine is closed; an engine that is given the folder later
    goes on from there.  None: transcripts stay in memory, keys and values as long as there is room.
    spill_budget: bytes of keys and values in it; what was written first goes first, transcripts
    stay; None: no limit.  park_after: seconds without a turn after which a conversation is written
    there, > 0; None: when memory is needed.
    kv_policy: how much of its past a sequence keeps in full precision, by the first of these rules
    that holds when it begins, else as the model has it; for a model with a ``kv_store``.

    A context manager, for ``async with`` too; leaving it closes it.  An engine that nobody refers
    to any more ends when its last request has.  Thread-safe; not usable in a forked process.
    Raises UnsupportedError for an encoder, ArgumentError for an option, FileError for a folder,
    StateError when another engine uses it.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike[str] | None = None,
        *,
        policy: Literal["fcfs", "sjf", "fair"] = "fcfs",
        max_running: int | None = None,
        max_rows: int | None = None,
        max_chunk: int | None = None,
        max_queue: int = 1000,
        max_queue_tokens: int | None = None,
        age_steps: int | None = None,
        max_preempt: int | None = None,
        preempt: Literal["recompute", "swap"] = "recompute",
        spill_dir: str | os.PathLike[str] | None = None,
        spill_budget: int | None = None,
        park_after: float | None = None,
        kv_policy: Sequence[KVRule] = (),
    ) -> None:
        check_one_of("policy", policy, _POLICIES)
        _check_spill(preempt, spill_dir, park_after)
        for name, value, most in (
            ("max_running", max_running, 4096),
            ("max_rows", max_rows, 4096),
            ("max_chunk", max_chunk, 4096),
            ("max_queue", max_queue, 100_000),
            ("max_queue_tokens", max_queue_tokens, 2**40),
            ("age_steps", age_steps, 2**31 - 1),
            ("max_preempt", max_preempt, 1000),
            ("spill_budget", spill_budget, 2**63 - 1),
        ):
            if value is not None:
                check_whole(name, value, 1, most)
        self._owns = not isinstance(model, Model)
        #: The model it serves.
        self.model = model if isinstance(model, Model) else Model(model)
        core_model = self.model._open()
        self._core_model: _core.Model | None = core_model
        self._kv_rules = check_rules(kv_policy, self.model.info.kv_store)
        folder = None if spill_dir is None else SpillFolder(spill_dir, spill_budget)
        try:
            digest = "" if folder is None else model_digest(self.model.path)
            core = _core.engine_new(
                core_model,
                _POLICIES[policy],
                self.model.n_ctx,
                max_rows or 0,
                max_chunk or 0,
                max_running or 0,
                max_queue,
                max_queue_tokens or 0,
                age_steps or 0,
                max_preempt or 0,
                None if folder is None else os.fsencode(folder.path),
                digest,
                preempt == "swap",
            )
        except BaseException:
            if folder is not None:
                folder.close()
            raise
        rows = max_rows or (max_running or 64) + 128
        self._talks = Talks(
            core,
            core_model,
            (digest, self.model.info.name),
            folder,
            park_after=park_after,
            step_bytes=2 * rows * self.model.info.kv_bytes_per_token,
        )
        self._loop = Loop(core, self._talks)
        self._talks.wake = self._loop.wake
        weakref.finalize(self, self._loop.stop, False).atexit = False

    def submit(
        self,
        prompt: str | bytes | Sequence[int],
        *,
        priority: Literal["low", "normal", "high", "critical"] = "normal",
        tenant: str | int | None = None,
        deadline_ms: int | None = None,
        salt: str | bytes | None = None,
        **options: Any,
    ) -> Request:
        """Queue a prompt; returns at once.

        priority: a running request of a lower one may have to wait for it; for kv_policy it is the
        importance.  tenant: whose request
        it is, for policy "fair".  deadline_ms: from now, >= 1; a request that is not finished then
        ends with what it has, finish_reason "deadline".  salt: the beginnings of prompts are shared
        (computed once) among requests of the same salt only, so that nobody can find out by timing
        what others asked.  The other options are those of ``Model.generate``, without cancel and
        stream.

        Raises ArgumentError for an option or prompt, FullError when the queue is full, or when the
        request can never fit (context, memory), StateError when the engine is closed.
        """
        return self._submit(
            self.model._prompt(prompt, options),
            options,
            priority=priority,
            tenant=tenant,
            deadline_ms=deadline_ms,
            salt=salt,
        )

    def submit_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        priority: Literal["low", "normal", "high", "critical"] = "normal",
        tenant: str | int | None = None,
        deadline_ms: int | None = None,
        salt: str | bytes | None = None,
        **options: Any,
    ) -> Request:
        """Queue a conversation, as ``Model.chat`` takes it; the rest as in ``submit``."""
        return self._submit(
            self.model._render(messages, options),
            options,
            priority=priority,
            tenant=tenant,
            deadline_ms=deadline_ms,
            salt=salt,
        )

    def session(
        self,
        session_id: str | None = None,
        *,
        user_id: str | None = None,
        tenant: str | int | None = None,
        salt: str | bytes | None = None,
        importance: Importance | None = None,
    ) -> Conversation:
        """A conversation whose turns run in this engine.

        session_id: 1 .. 256 characters; one that is open, or in spill_dir, goes on; None: a new
        one.  user_id: goes into the witness entries of its turns.  tenant, salt: of all its turns,
        see ``submit``; an id of spill_dir wants the salt it had, or computes its past again.
        importance: for kv_policy, default "normal"; the rules are asked when it is opened.

        Raises ArgumentError, also when it is open with another user_id, tenant, salt or importance.
        """
        self._loop.check()
        name = new_id() if session_id is None else session_id
        if not isinstance(name, str) or not 1 <= len(name) <= 256:
            raise ArgumentError(f"session_id: is {name!r:.80}, want 1 .. 256 characters")
        _number(tenant)
        if importance is not None:
            check_one_of("importance", importance, IMPORTANCES)
        kept = None if salt is None else _bytes(salt)
        talk = self._talks.open(name, user_id, tenant, kept, importance=importance, tail=self._tail)
        return Conversation(self, talk)

    def metrics(self) -> EngineMetrics:
        """What the engine does now and did so far."""
        core = self._core_model
        s, tokens_per_second = self._loop.stats()
        assert core is not None  # or stats would have said that it is closed
        kv = core.kv_stats()
        folder = self._talks.folder
        sessions, parked = self._talks.counts()
        return EngineMetrics(
            queue=s["n_waiting"],
            running=s["n_running"],
            tokens_per_second=tokens_per_second,
            rows_per_step=s["rows_per_step"],
            kv_used_bytes=kv["used_bytes"],
            kv_held_bytes=kv["held_bytes"],
            kv_budget_bytes=kv["budget_bytes"],
            hit_rate=s["n_cached"] / s["n_prompt"] if s["n_prompt"] else 0.0,
            submitted=s["n_submitted"],
            refused=s["n_refused"],
            finished=s["n_finished"],
            cancelled=s["n_cancelled"],
            preemptions=s["n_preempted"],
            steps=s["n_steps"],
            tokens=s["n_tokens"],
            sessions=sessions,
            parked=parked,
            spill_bytes=0 if folder is None else folder.n_bytes,
        )

    def close(self) -> None:
        """Cancel what runs or waits, and free its memory; waits for the step under way.

        Later submissions raise StateError; results that are there stay.
        """
        self._loop.stop(True)
        self._core_model = None
        if self._owns:
            self.model.close()

    async def aclose(self) -> None:
        """``close`` off the event loop."""
        import asyncio

        await asyncio.to_thread(self.close)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"Engine({self.model!r})"

    def _tail(self, importance: str) -> int | None:
        """The tail of a sequence that begins now; None: the model's."""
        core = self._core_model
        if not self._kv_rules or core is None:
            return None
        kv, memory = core.kv_stats(), core.memory()
        assert memory is not None  # it generates
        taken = memory.stats()["used"] - kv["held_bytes"] + kv["used_bytes"] - kv["evictable_bytes"]
        return tail_for(self._kv_rules, importance, taken / kv["budget_bytes"], self.model.n_ctx)

    def _submit(
        self,
        prompt: tuple[list[int], str | None],
        options: dict[str, Any],
        *,
        priority: str,
        tenant: str | int | None,
        deadline_ms: int | None,
        salt: str | bytes | None,
        turn: Turn | None = None,
    ) -> Request:
        self._loop.check()
        check_one_of("priority", priority, _PRIORITIES)
        if deadline_ms is not None:
            check_whole("deadline_ms", deadline_ms, 1, 2**63 - 1)
        kv_tail = self._tail(priority) if turn is None else turn.talk.kv_tail
        reply, record = self.model._prepare(*prompt, options, "submit", kv_tail)
        if turn is not None:
            record = turn.recorded(record, reply)
        request = Request(self, self._loop, reply, record)
        if turn is not None:
            turn.talk.request = request
        params = reply.params
        if params.max_tokens == 0:
            request.end("length", None, Wakes())
            return request
        self._loop.submit(
            request,
            reply.prompt,
            _NO_LIMIT if params.max_tokens is None else params.max_tokens,
            params.core(),
            reply.mask(),
            [],
            params.ignore_eos,
            _PRIORITIES[priority],
            _number(tenant),
            deadline_ms or 0,
            _bytes(salt),
            *((turn.restore if turn is not None else None) or (None, 0)),
            kv_tail or 0,
        )
        return request


def _check_spill(
    preempt: str, spill_dir: str | os.PathLike[str] | None, park_after: float | None
) -> None:
    check_one_of("preempt", preempt, ("recompute", "swap"))
    if spill_dir is None and (preempt == "swap" or park_after is not None):
        what = f"park_after: is {park_after}" if preempt != "swap" else "preempt: is 'swap'"
        raise ArgumentError(f"{what}, want a spill_dir with it")
    is_number = isinstance(park_after, (int, float)) and not isinstance(park_after, bool)
    if park_after is not None and not (is_number and park_after > 0):
        raise ArgumentError(f"park_after: is {park_after!r}, want more than 0 seconds")


def _number(tenant: str | int | None) -> int:
    """A tenant as the core counts them; names by a hash that is the same in every process."""
    if isinstance(tenant, str):
        return int.from_bytes(hashlib.blake2b(tenant.encode(), digest_size=8).digest(), "little")
    if tenant is None:
        return 0
    check_whole("tenant", tenant, 0, 2**64 - 1)
    return tenant


def _bytes(salt: str | bytes | None) -> bytes:
    if salt is None:
        return b""
    if not isinstance(salt, (str, bytes)):
        raise ArgumentError(f"salt: is a {type(salt).__name__}, want str or bytes")
    return salt.encode() if isinstance(salt, str) else salt
