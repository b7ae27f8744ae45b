"""Conversation: turns of one talk among the many requests of an engine.

    engine = ruvllm.Engine(model, spill_dir="sessions")
    talk = engine.session("anna")
    print(talk.chat("reverse apple river").result().text)
    talk.park()                                 # a few hundred bytes are left in memory
    reply = talk.chat("reverse river").result() # comes back from the file
    print(reply.text, reply.cached_tokens, reply.restored_tokens)

A turn gives the tokens that the whole text would give alone, wherever its past was meanwhile."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ruvllm._errors import RuvllmError
from ruvllm.engine._record import Record
from ruvllm.engine._talks import Talk, Talks, Tier
from ruvllm.engine._transcript import as_messages
from ruvllm.engine.results import GenerationResult

if TYPE_CHECKING:
    from ruvllm.engine._reply import Reply
    from ruvllm.engine.batching import Engine, Request


def new_id() -> str:
    """A UUID of version 7: ids made later sort after it."""
    n = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    n = n & ~(0xF << 76) | 7 << 76  # version
    return str(uuid.UUID(int=n & ~(3 << 62) | 2 << 62))  # variant


class Turn:
    """A turn on its way through the engine; for Engine._submit."""

    def __init__(self, talks: Talks, talk: Talk, messages: list[dict[str, Any]] | None) -> None:
        self.talk = talk
        self.restore = talks.restore(talk)
        self._talks = talks
        self._messages = messages

    def recorded(self, record: Record, reply: Reply) -> Record:
        """A Record that tells the conversation first."""

        def record_both(result: GenerationResult, error: RuvllmError | None) -> str | None:
            self._talks.ended(self.talk, result, self._messages, reply.lost)
            return record(result, error)

        return record_both


class Conversation:
    """A conversation in an engine; made by ``Engine.session``.

    One turn at a time; turns of different conversations run together.  Between turns its keys and
    values stay in memory for as long as nothing else needs it; with a ``spill_dir`` they are
    written before they go, and the transcript with them.  Thread-safe.

    ``submit`` continues the text so far, ``chat`` adds a message and replies to all of them; both
    give a Request.  A turn that ends in an error, or before its first token, is not part of the
    conversation.
    """

    __slots__ = ("__weakref__", "_engine", "_talk")

    def __init__(self, engine: Engine, talk: Talk) -> None:
        self._engine = engine
        self._talk = talk

    @property
    def session_id(self) -> str:
        """Its id, by which ``Engine.session`` finds it."""
        return self._talk.id

    @property
    def tokens(self) -> tuple[int, ...]:
        """All ids so far, prompts and replies.

        Of a parked one they are read from its file: NotFoundError, FileError, FormatError.
        """
        return tuple(self._engine._talks.read(self._talk)[0])

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was said with ``chat``; a copy.  Raises as ``tokens``."""
        return [dict(m) for m in self._engine._talks.read(self._talk)[1]]

    @property
    def tier(self) -> Tier:
        """Where its keys and values are.

        "hot": a turn is under way.  "warm": in memory, until others need it.  "cold": in a file.
        "evicted": nowhere; the next turn computes them from the transcript.
        """
        self._engine._loop.check()
        return self._engine._talks.tier(self._talk)

    def submit(
        self,
        prompt: str | bytes | Sequence[int],
        *,
        priority: Literal["low", "normal", "high", "critical"] = "normal",
        deadline_ms: int | None = None,
        **options: Any,
    ) -> Request:
        """Append a prompt and continue; options as in ``Engine.submit``.

        The begin token comes before the first prompt only, unless ``bos`` says otherwise.
        Raises StateError while the last turn is under way; FormatError, FileError or NotFoundError
        when the transcript of a parked conversation is damaged or gone.
        """
        engine, talk = self._engine, self._talk
        engine._loop.check()
        engine._talks.begin(talk)
        try:
            past = talk.tokens or ()
            if past:
                options.setdefault("bos", False)
            ids, text = engine.model._prompt(prompt, options)
            return self._turn(([*past, *ids], text), None, options, priority, deadline_ms)
        except BaseException:
            engine._talks.leave(talk)
            raise

    def chat(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        priority: Literal["low", "normal", "high", "critical"] = "normal",
        deadline_ms: int | None = None,
        **options: Any,
    ) -> Request:
        """Add a message (a text is one of the user; or several) and reply to the conversation.

        The reply becomes a message of the assistant when it is finished.  Options and errors: as in
        ``submit`` and ``Model.chat``.
        """
        engine, talk = self._engine, self._talk
        engine._loop.check()
        engine._talks.begin(talk)
        try:
            messages = [*(talk.messages or ()), *as_messages(message)]
            ids, text = engine.model._render(messages, options)
            return self._turn((ids, text), messages, options, priority, deadline_ms)
        except BaseException:
            engine._talks.leave(talk)
            raise

    def park(self) -> None:
        """Write it to the folder of the engine and free its memory; waits for that.

        Nothing happens to one that is parked.  Raises StateError without a spill_dir or while a
        turn is under way, FileError (a full disk): it then stays as it was.
        """
        self._engine._loop.check()
        self._engine._talks.park(self._talk)

    def close(self) -> None:
        """Forget it, in memory and on disk; a turn under way is cancelled."""
        self._engine._loop.check()
        request = self._talk.request
        self._engine._talks.remove(self._talk)
        if request is not None:
            request.cancel()

    def __repr__(self) -> str:
        return f"Conversation({self._talk.id!r})"

    def _turn(
        self,
        prompt: tuple[list[int], str | None],
        messages: list[dict[str, Any]] | None,
        options: dict[str, Any],
        priority: str,
        deadline_ms: int | None,
    ) -> Request:
        engine, talk = self._engine, self._talk
        options.setdefault("session_id", talk.id)
        options.setdefault("user_id", talk.user_id)
        return engine._submit(
            prompt,
            options,
            priority=priority,
            tenant=talk.tenant,
            deadline_ms=deadline_ms,
            salt=talk.salt,
            turn=Turn(engine._talks, talk, messages),
        )
