"""Session: a conversation that keeps its keys and values from turn to turn, and in a file.

The tokens are the truth.  Keys and values are a cache of what the model computed from them: shared
with other sequences that begin alike, saved beside the tokens, and computed again where they are
gone or damaged, with the same bits.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from ruvllm import _core
from ruvllm._errors import ArgumentError, RuvllmError, StateError
from ruvllm.engine._generate import Generation
from ruvllm.engine._transcript import Transcript, as_messages, beside
from ruvllm.engine.results import GenerationResult

if TYPE_CHECKING:
    from ruvllm.engine.model import Model

_log = logging.getLogger("ruvllm")
PAGE_TOKENS = 16  # positions of a page


@dataclasses.dataclass(frozen=True, slots=True)
class KVPage:
    """Keys and values of 16 positions of a layer, without a copy, as they are in memory.

    ``numpy.asarray(page)`` is read-only: float32 or float16 ``(heads, 2 * 16 * head_dim)``, or
    the bytes of 8-bit or 4-bit codes and their scales (uint8).  The page stays as it is while the
    session goes on.

    type: "f32", "f16", "q8_0", "q4_0" or "k8v4".  n_tokens: 1 .. 16, how many positions hold
    something.  rotated: keys are Hadamard-rotated (of the store only).
    """

    type: str
    heads: int
    head_dim: int
    n_tokens: int
    rotated: bool
    _memory: _core.Page = dataclasses.field(repr=False)

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        return np.array(np.asarray(self._memory), dtype=dtype, copy=copy or None)

    @property
    def keys(self) -> NDArray[Any]:
        """``(heads, n_tokens, head_dim)``, a view; StateError for codes."""
        lanes = self._floats()[:, 0].reshape(self.heads, self.head_dim, PAGE_TOKENS)
        return lanes.transpose(0, 2, 1)[:, : self.n_tokens]

    @property
    def values(self) -> NDArray[Any]:
        """``(heads, n_tokens, head_dim)``, a view; StateError for codes."""
        rows = self._floats()[:, 1].reshape(self.heads, PAGE_TOKENS, self.head_dim)
        return rows[:, : self.n_tokens]

    def _floats(self) -> NDArray[Any]:
        if self.type not in ("f32", "f16"):
            raise StateError(f"kv page: holds {self.type} codes, want f16 or f32 for numbers")
        return np.asarray(self._memory).reshape(self.heads, 2, -1)


class KVLayer:
    """The pages of one layer of a session."""

    def __init__(self, session: Session, layer: int) -> None:
        self._session = session
        self._layer = layer

    def __len__(self) -> int:
        return (self._session._core.n_past() + PAGE_TOKENS - 1) // PAGE_TOKENS

    def page(self, i: int) -> KVPage:
        """Positions ``16 * i`` and on.  Raises ArgumentError beyond the session's length."""
        if i < 0:
            raise ArgumentError(f"page: is {i}, want 0 .. {len(self) - 1}")
        memory = self._session._core.page(self._layer, i)
        about = memory.about()
        return KVPage(
            about["type"],
            about["n_heads"],
            about["head_dim"],
            about["n_tokens"],
            about["rotated"],
            memory,
        )


class Session:
    """A conversation with a model.

    model: keeps it alive.  session_id, user_id: go into the witness entries of its turns.

    ``generate`` continues the text so far, ``chat`` adds a message and replies to all of them; each
    computes only what is new.  One turn at a time; the same tokens as ``Model.generate`` and
    ``Model.chat`` would give for the whole text.
    """

    def __init__(
        self, model: Model, *, session_id: str | None = None, user_id: str | None = None
    ) -> None:
        self.model = model
        self.session_id = session_id
        self.user_id = user_id
        self.messages: list[dict[str, Any]] = []
        self._tokens: list[int] = []
        self._core = _core.session_new(model._open(), model.n_ctx)

    @property
    def tokens(self) -> tuple[int, ...]:
        """All ids so far, prompts and replies."""
        return tuple(self._tokens)

    @property
    def kv(self) -> tuple[KVLayer, ...]:
        """The layers that keep keys and values, in the order of the model."""
        return tuple(KVLayer(self, i) for i in range(self.model.info.n_kv_layers))

    @overload
    def generate(
        self, prompt: str | bytes | Sequence[int], *, stream: Literal[False] = False, **options: Any
    ) -> GenerationResult: ...
    @overload
    def generate(
        self, prompt: str | bytes | Sequence[int], *, stream: Literal[True], **options: Any
    ) -> Generation: ...
    def generate(
        self, prompt: str | bytes | Sequence[int], *, stream: bool = False, **options: Any
    ) -> GenerationResult | Generation:
        """Append a prompt and continue; prompt and options as in ``Model.generate``.

        The begin token comes before the first prompt only, unless ``bos`` says otherwise.
        """
        if self._tokens:
            options.setdefault("bos", False)
        ids, text = self.model._prompt(prompt, options)
        return self._turn([*self._tokens, *ids], text, stream, options)

    @overload
    def chat(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        **options: Any,
    ) -> GenerationResult: ...
    @overload
    def chat(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        stream: Literal[True],
        **options: Any,
    ) -> Generation: ...
    def chat(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        **options: Any,
    ) -> GenerationResult | Generation:
        """Add a message (a text is one of the user; or several) and reply to the conversation.

        The reply becomes a message of the assistant when it is finished.  Options: as in
        ``Model.chat``.
        """
        messages = [*self.messages, *as_messages(message)]
        ids, text = self.model._render(messages, options)
        return self._turn(ids, text, stream, options, messages)

    def fork(self) -> Session:
        """Another session with the same past; what they share is held once."""
        other = Session(self.model, session_id=self.session_id, user_id=self.user_id)
        other._core = self._core.fork()
        other._tokens = list(self._tokens)
        other.messages = [dict(m) for m in self.messages]
        return other

    # -- files --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation to ``path`` and its keys and values to ``path`` + ".kv".

        Each file is written whole or not at all, the conversation first.  Raises FileError.
        """
        from ruvllm.memory.witness import model_digest

        digest = model_digest(self.model.path)
        target = os.fspath(path)
        transcript = Transcript(
            digest,
            self.model.info.name,
            self.session_id,
            self.user_id,
            self.messages,
            self._tokens,
        )
        transcript.write(target)
        if self._core.n_past():
            self._core.save(beside(target), digest)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model) -> Session:
        """A session that ``save`` wrote, here or in another process.

        Keys and values that are gone, damaged or of another build are computed again on the next
        turn, which the log says (logger "ruvllm").  Raises NotFoundError, FormatError, and
        ArgumentError when the session is of another model.
        """
        from ruvllm.memory.witness import model_digest

        source = os.fspath(path)
        digest = model_digest(model.path)
        transcript = Transcript.read(source, digest, model.info.name)
        self = cls(model, session_id=transcript.session_id, user_id=transcript.user_id)
        self._tokens = transcript.tokens
        self.messages = transcript.messages
        if self._tokens:
            try:
                self._core.load(beside(source), digest, self._tokens)
            except RuvllmError as e:
                _log.warning("session: %s; it is computed again", e)
        return self

    def close(self) -> None:
        """Free its memory now; later turns raise StateError."""
        self._core.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- how it works -------------------------------------------------------------------------

    def _turn(
        self,
        ids: list[int],
        text: str | None,
        stream: bool,
        options: dict[str, Any],
        messages: list[dict[str, Any]] | None = None,
    ) -> GenerationResult | Generation:
        options.setdefault("session_id", self.session_id)
        options.setdefault("user_id", self.user_id)
        cancel = options.pop("cancel", None) or _core.Cancel()
        reply, record = self.model._prepare(ids, text, options, "generate")

        def finished(result: GenerationResult, error: RuvllmError | None) -> str | None:
            if error is None:
                self._tokens = [*ids, *result.tokens]
                if messages is not None:
                    self.messages = [*messages, {"role": "assistant", "content": result.text}]
            return record(result, error)

        generation = Generation(
            self.model._open(),
            reply,
            n_ctx=self.model.n_ctx,
            cancel=cancel,
            record=finished,
            session=self._core,
        )
        return generation if stream else generation.run()
