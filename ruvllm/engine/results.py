"""What a generation gives back.  Plain frozen data; nothing here computes."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model itself (before any sampling filter) thought a token was.

    id: token id.  logprob: nats, <= 0.  top: the most likely ``(id, logprob)`` pairs at that
    position, by falling logprob, ties by id; as many as were asked for.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock times of one request, in milliseconds.

    Of a request of an Engine, prefill_ms is the time to the first token: waiting is in it.
    """

    prefill_ms: float
    first_token_ms: float
    generation_ms: float
    total_ms: float
    n_prompt: int
    n_generated: int

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of the decode phase; 0 when nothing was generated."""
        return 1000.0 * self.n_generated / self.generation_ms if self.generation_ms > 0 else 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed reply.

    text: what is new and safe to show (never half a character, never a part of a stop string;
    may be empty).  tokens: the ids it came from.  logprobs: one per token, if asked for.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationResult:
    """A finished reply.

    text: without control tokens and without the stop string.
    tokens: every generated id in order, the one that ended the reply included.
    finish_reason: "stop" (an end token or a stop string), "length" (max_tokens, or the context is
    full), "cancelled", "deadline" (of a request of an Engine), "error" (the exception was raised to
    the caller; this is what came before).
    stop: the stop string that ended it, or None.
    prompt_tokens: the ids the model was given.
    seed: the seed in use, also when the caller gave none.
    logprobs: one per token when asked for, else empty.
    witness_id: the id of the entry in the witness log, or None when it is off.
    cached_tokens, n_preempted: of a request of an Engine: prompt tokens whose keys and values were
    there already, and how often it had to give its memory to others and was computed again.
    restored_tokens, restore_error: of a turn of a Conversation: tokens whose keys and values came
    from a file, and why those that were there could not be used and were computed again, or None.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | None
    prompt_tokens: tuple[int, ...]
    seed: int
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] = ()
    witness_id: str | None = None
    cached_tokens: int = 0
    n_preempted: int = 0
    restored_tokens: int = 0
    restore_error: str | None = None

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for ``json.dumps``."""
        return dataclasses.asdict(self)
