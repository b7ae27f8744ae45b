"""Model: an open GGUF that tokenises, generates, chats, embeds and gives logits.

A Model is read-only after it is opened, so any number of threads may use one; what a request
writes belongs to that request.  All computing happens in the core with the GIL released."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ruvllm import _core
from ruvllm._errors import ArgumentError, StateError, UnsupportedError
from ruvllm.engine._generate import Generation
from ruvllm.engine._kv_gate import gate
from ruvllm.engine._notice import notice_speed
from ruvllm.engine._params import SamplingParams, check_one_of, check_whole
from ruvllm.engine._record import Record, Recorder
from ruvllm.engine._reply import Constraint, Reply
from ruvllm.engine._tune import tuned_threads
from ruvllm.engine.memory import MemoryPool, know_model
from ruvllm.engine.results import Chunk, GenerationResult
from ruvllm.engine.tokenizer import Tokenizer, need_tokenizer
from ruvllm.memory.witness import WitnessLog

if TYPE_CHECKING:
    from ruvllm.engine._chat import ChatTemplate
    from ruvllm.engine._vocab import ModelVocab

_log = logging.getLogger("ruvllm")
_T = TypeVar("_T")
_KV_TYPES = {"auto": 0, "f16": 1, "f32": 2, "q8_0": 3, "q4_0": 4}
_KV_STORES = {None: 0, "q8_0": 3, "q4_0": 4, "k8v4": 5}
_KV_FITS = {"first": 0, "best": 1, "round_robin": 2}
_NUMERICS = {"exact": 0, "fast": 1}


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInfo:
    """Sizes and kind of an open model.

    n_params, n_bytes: of all tensors.  n_ctx: tokens the model was trained for.  n_swa: sliding
    window in tokens, 0: none.  n_kv_layers: layers that keep keys and values.  kv_type: of them.
    kv_bytes_per_token: what a session keeps of a token.  kv_store, kv_store_bytes_per_token: what
    old ones move to, or None, and what they take there.  main_type: the type most weight bytes
    have.  numerics: "fast" where that was asked for and makes a difference with these weights on
    this CPU, else "exact".  kv_gate: what ``check_kv`` found out about the store: "passed",
    "failed" (and it was taken anyway), "unchecked"; None: it needs no check.
    """

    arch: str
    name: str
    n_vocab: int
    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_ctx: int
    n_swa: int
    n_kv_layers: int
    causal: bool
    pooling: str
    kv_type: str
    kv_store: str | None
    numerics: str
    n_threads: int
    n_batch: int
    n_params: int
    n_bytes: int
    kv_bytes_per_token: int
    kv_store_bytes_per_token: int
    main_type: str
    kv_gate: Literal["passed", "failed", "unchecked"] | None


@dataclasses.dataclass(frozen=True, slots=True)
class KVStats:
    """Memory of the keys, values and recurrent states of all sequences of a model.

    budget_bytes: most that may be held, by others of the same MemoryPool too.  held_bytes,
    peak_bytes: now, and the most it ever was.  used_bytes: of pages that something refers to.
    n_pages, n_pages_free: with such a reference, and without one in held memory.  n_evictable,
    evictable_bytes: pages kept for nobody but requests to come.  n_evicted: those that had to go.
    n_nodes: of the tree of known prefixes.  n_sequences: alive.  n_looked_up, n_hit: prompt tokens
    asked for, and found.  n_migrated: blocks moved to the store type.  n_copied: pages copied
    because another sequence shared them.
    """

    budget_bytes: int
    held_bytes: int
    peak_bytes: int
    used_bytes: int
    n_pages: int
    n_pages_free: int
    n_evictable: int
    n_evicted: int
    evictable_bytes: int
    n_nodes: int
    n_sequences: int
    n_looked_up: int
    n_hit: int
    n_migrated: int
    n_copied: int


def bundled_model() -> str:
    """Path of the small model that comes with the package."""
    from importlib.resources import files

    return str(files("ruvllm") / "data" / "tiny-C.gguf")


class Model:
    """A GGUF model.

    path: a GGUF v2/v3 file (of a split model, any part); None: the bundled one.
    n_threads: 1 .. 256; None: what ``ruvllm bench --tune`` found best for this model here, else one
    per physical core.  n_ctx: most tokens of one request, 1 .. the trained context, which is the
    default; memory grows with use.  n_batch: tokens per prefill chunk, 1 .. 4096; None: 128; never
    changes a result.  kv_type: how keys and values are kept, "f32", "f16", "q8_0", "q4_0", or
    "auto": F32 for F32 weights, else F16.
    kv_budget: bytes that keys and values of all requests may take; None: half of the memory that is
    available.  memory: a MemoryPool in which they count instead, with other models and blocks.
    available.  kv_store: "q8_0", "q4_0" or "k8v4" (keys in 8 bits, values in 4): positions older
    than the last kv_tail move to that type (kv_type is then "f16" or "f32"), kv_batch at a time,
    both multiples of 64; None: none do.
    kv_rotate: keys are rotated before they are stored so, which costs little and loses less.
    kv_gate: refuse 4 bits for a model with which ``check_kv`` found them to cost too much, and say
    in the log when it was not asked; False: neither.
    kv_fit: which free page is taken, "first", "best" or "round_robin"; never changes a result.
    share_prefix: requests that begin alike share what is computed of it; never changes a result.
    prefault: read the whole file now instead of on first use; progress is then called with 0..1.
    repack: hold quantised weights a second time in the order the kernels read, which makes
    decoding faster and changes no result; None: where that leaves half of the memory free.
    numerics: "fast" rounds activations to BF16 under BF16 weights on CPUs that multiply pairs of
    those, which nearly doubles the speed of prompts and batches (decoding one by one gains
    nothing); results still depend on the tokens alone.  Elsewhere it is the same as "exact",
    which ``info.numerics`` then says.
    chat_template: Jinja source to use instead of the file's.
    witness: True records every request in the default log, a WitnessLog in that one, False nowhere.

    More threads than CPUs, and a CPU without AVX2, work and are said once in the log (logger
    "ruvllm").  Raises NotFoundError, FormatError or UnsupportedError for the file, UnsupportedError
    for a kv_store that failed its check, ArgumentError for the rest.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        n_threads: int | None = None,
        n_ctx: int | None = None,
        n_batch: int | None = None,
        kv_type: Literal["auto", "f16", "f32", "q8_0", "q4_0"] = "auto",
        prefault: bool = False,
        progress: Callable[[float], None] | None = None,
        repack: bool | None = None,
        numerics: Literal["exact", "fast"] = "exact",
        chat_template: str | None = None,
        witness: bool | WitnessLog = True,
        kv_budget: int | None = None,
        memory: MemoryPool | None = None,
        kv_store: Literal["q8_0", "q4_0", "k8v4"] | None = None,
        kv_rotate: bool = True,
        kv_tail: int = 256,
        kv_batch: int = 64,
        kv_fit: Literal["first", "best", "round_robin"] = "first",
        share_prefix: bool = True,
        kv_gate: bool = True,
    ) -> None:
        check_one_of("kv_type", kv_type, _KV_TYPES)
        check_one_of("kv_store", kv_store, _KV_STORES)
        check_one_of("kv_fit", kv_fit, _KV_FITS)
        check_one_of("numerics", numerics, _NUMERICS)
        for name, value, most in (
            ("n_threads", n_threads, 256),
            ("n_batch", n_batch, 4096),
            ("kv_budget", kv_budget, 2**63 - 1),
            ("kv_tail", kv_tail, 2**31 - 64),
            ("kv_batch", kv_batch, 2**31 - 64),
        ):
            if value is not None:
                check_whole(name, value, 1, most)
        if memory is not None and not isinstance(memory, MemoryPool):
            raise ArgumentError(f"memory: is {memory!r:.60}, want a MemoryPool or None")
        #: The pool its keys and values count in; None: a budget of its own.
        self.memory = memory
        self.path = os.fspath(path) if path is not None else bundled_model()
        threads = n_threads or tuned_threads(self.path) or 0
        known = gate(self.path, kv_store, kv_rotate, kv_gate)
        self._core: _core.Model | None = _core.model_open(
            self.path,
            threads,
            _KV_TYPES[kv_type],
            n_batch or 0,
            prefault,
            progress,
            0 if repack is None else 2 if repack else 1,
            kv_budget or 0,
            _KV_STORES[kv_store],
            kv_rotate,
            kv_tail,
            kv_batch,
            _KV_FITS[kv_fit],
            share_prefix,
            _NUMERICS[numerics],
            None if memory is None else memory._core,
        )
        fields = self._core.info()
        names = {number: name for name, (number, _, _) in _core.dtypes().items()}
        main_type = names[fields["main_type"]]
        self.info = ModelInfo(**{**fields, "main_type": main_type, "kv_gate": known})
        notice_speed(self.info.n_threads)
        self.n_ctx = self._check_ctx(n_ctx)
        core_tokenizer = self._core.tokenizer()
        self.tokenizer = Tokenizer._wrap(core_tokenizer) if core_tokenizer else None
        self._template_source = chat_template
        self._template: ChatTemplate | None = None
        self._vocab: ModelVocab | None = None
        #: What of keys and values replies depend on, besides their type.
        self._kv_store: dict[str, Any] = {}
        if kv_store is not None:
            self._kv_store |= {"kv_store": kv_store, "kv_rotate": kv_rotate}
            self._kv_store |= {"kv_tail": kv_tail, "kv_batch": kv_batch}
        self._recorder = Recorder(self, witness)
        know_model(self)

    # -- text and ids -------------------------------------------------------------------------

    def tokenize(
        self, text: str | bytes, bos: bool | None = None, special: bool = False
    ) -> list[int]:
        """Ids of ``text``; see ``Tokenizer.tokenize``."""
        return need_tokenizer(self.tokenizer, self.path).tokenize(text, bos, special)

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of ``ids``; see ``Tokenizer.detokenize``."""
        return need_tokenizer(self.tokenizer, self.path).detokenize(ids, special)

    # -- generation ---------------------------------------------------------------------------

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
        """Continue a prompt.

        prompt: text, or token ids as they are.  stream: give an iterator of Chunk whose ``result``
        is there at the end, instead of the whole reply.  Options, all keyword-only:

        max_tokens: most tokens to generate, >= 0; default 256; None: until the context is full.
        temperature: >= 0; default 0, greedy.  top_k: >= 0, 0 is off.  top_p, typical_p: in (0, 1],
        1 is off.  min_p: in [0, 1], 0 is off.  repeat_penalty: > 0, 1 is off.
        frequency_penalty, presence_penalty: -100 .. 100, 0 is off.  penalty_last_n: tokens the
        penalties look back at, -1: all; default 64.  logit_bias: mapping of id to what is added to
        its logit; -inf bans it.  seed: 0 .. 2**64 - 1; None: a fresh one, which the result
        reports; token i depends on (seed, i) alone.  stop: strings that end the reply and are not
        part of it.  logprobs: 0 .. 100 alternatives to report per token; None: none at all.
        ignore_eos: go on past end tokens.  bos: put the begin token before a text prompt; None: as
        the file asks.  special: text of the prompt that spells a control token becomes it; leave
        it off for text from users.  json_schema, json_object, regex, lark, choices: constrain the
        reply (needs the extra ``grammar``).  cancel: a ruvllm.Cancel that another thread may set;
        the result is then what was generated so far, finish_reason "cancelled".
        session_id, user_id, tags: go into the witness entry.

        Raises ArgumentError for an option out of range, FullError when the prompt is longer than
        the context, UnsupportedError for a model that does not generate.
        """
        return self._start(*self._prompt(prompt, options), stream, options)

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        **options: Any,
    ) -> GenerationResult: ...
    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], **options: Any
    ) -> Generation: ...
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool = False, **options: Any
    ) -> GenerationResult | Generation:
        """Reply to a conversation, through the model's own chat template.

        messages: mappings with "role" and "content" (text, or a list of {"type": "text"} parts).
        tools: function schemas for the template.  template_args: more variables for it.
        The other options are those of ``generate``.  Text of messages never becomes a control
        token, whatever it spells.
        Raises UnsupportedError when the model has no chat template, FormatError when it fails.
        """
        return self._start(*self._render(messages, options), stream, options)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """The token ids ``chat`` would give the model (tools, template_args: as there)."""
        ids, _ = self._render(messages, options)
        if options:
            raise ArgumentError(f"{sorted(options)[0]}: is not an option of render_chat")
        return ids

    async def agenerate(
        self, prompt: str | bytes | Sequence[int], **options: Any
    ) -> GenerationResult:
        """``generate`` off the event loop; cancelling the task stops the generation."""
        cancel = options.setdefault("cancel", _core.Cancel())
        return await _off_loop(lambda: self.generate(prompt, **options), cancel)

    async def achat(
        self, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> GenerationResult:
        """``chat`` off the event loop; cancelling the task stops the generation."""
        cancel = options.setdefault("cancel", _core.Cancel())
        return await _off_loop(lambda: self.chat(messages, **options), cancel)

    def astream(self, prompt: str | bytes | Sequence[int], **options: Any) -> AsyncIterator[Chunk]:
        """``generate(stream=True)`` as an async iterator."""
        cancel = options.setdefault("cancel", _core.Cancel())
        return _async_chunks(lambda: self.generate(prompt, stream=True, **options), cancel)

    def astream_chat(
        self, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> AsyncIterator[Chunk]:
        """``chat(stream=True)`` as an async iterator."""
        cancel = options.setdefault("cancel", _core.Cancel())
        return _async_chunks(lambda: self.chat(messages, stream=True, **options), cancel)

    # -- vectors ------------------------------------------------------------------------------

    def embed(
        self,
        texts: str | Sequence[str | bytes | Sequence[int]],
        *,
        truncate: bool | None = None,
        cancel: _core.Cancel | None = None,
    ) -> NDArray[np.float32]:
        """Embeddings of texts.

        texts: one text, or a sequence of texts (or of id sequences, taken as they are).
        truncate: what to do with a text longer than the embedder was made for (the context, or less
        where the file says so: ``ruvllm.embed.max_tokens``). True: cut it, its last token, the end
        mark, being kept. None: the same where the file states the limit, as its makers do, with a
        line in the log (logger "ruvllm"). False: embed it whole. Beyond the context: FullError.
        Returns float32 ``(n, n_embd)``, read-only, rows of unit length.
        """
        core = self._open()
        stated = core.gguf().get("ruvllm.embed.max_tokens")
        limit = min(stated, self.info.n_ctx) if isinstance(stated, int) else self.info.n_ctx
        cut = truncate or (truncate is None and stated is not None)
        flat: list[int] = []
        lengths: list[int] = []
        for i, text in enumerate([texts] if isinstance(texts, (str, bytes)) else texts):
            ids = self._embed_ids(text)
            if cut and len(ids) > limit:
                if truncate is None:
                    _log.warning("embed: text %d cut from %d to %d tokens", i, len(ids), limit)
                ids = [*ids[: limit - 1], ids[-1]]
            flat += ids
            lengths.append(len(ids))
        return np.asarray(core.embed(flat, lengths, cancel))

    async def aembed(
        self, texts: str | Sequence[str | bytes | Sequence[int]], *, truncate: bool | None = None
    ) -> NDArray[np.float32]:
        """``embed`` off the event loop; cancelling the task stops it."""
        cancel = _core.Cancel()
        return await _off_loop(lambda: self.embed(texts, truncate=truncate, cancel=cancel), cancel)

    def logits(
        self, tokens: Sequence[int] | NDArray[np.int32], *, cancel: _core.Cancel | None = None
    ) -> NDArray[np.float32]:
        """Logits after each token.

        tokens: ids, 1 .. n_ctx of them.
        Returns float32 ``(n, n_vocab)``, read-only: the core's own memory, not a copy.
        """
        session = _core.session_new(self._open(), self.n_ctx)
        return np.asarray(session.eval(tokens, True, cancel))

    # -- the rest -----------------------------------------------------------------------------

    @property
    def metadata(self) -> dict[str, Any]:
        """Every metadata key of the file; arrays as lists."""
        return {key: value for key, _, value in self._open().gguf().kv(-1)}

    @property
    def repacked_bytes(self) -> int:
        """Memory held by repacked weights: 0 before the second token, or with repack=False."""
        return self._open().repacked_bytes()

    @property
    def kv_stats(self) -> KVStats:
        """Memory of keys and values now, and how it was used since the model was opened."""
        return KVStats(**self._open().kv_stats())

    @property
    def chat_template(self) -> str | None:
        """Jinja source of the template ``chat`` uses, or None: the model then has no chat."""
        if self._template_source is not None:
            return self._template_source
        source = self._open().gguf().get("tokenizer.chat_template")
        return source if isinstance(source, str) else None

    def close(self) -> None:
        """Free the model; later calls raise StateError.  Generations under way keep it alive."""
        self._core = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        i = self.info
        return f"Model({i.name or self.path!r}, {i.arch}, {i.n_params / 1e6:.1f}M {i.main_type})"

    def _open(self) -> _core.Model:
        if self._core is None:
            raise StateError(f"model {self.path}: is closed")
        return self._core

    def _check_ctx(self, n_ctx: int | None) -> int:
        if n_ctx is None:
            return self.info.n_ctx
        check_whole("n_ctx", n_ctx, 1, self.info.n_ctx)
        return n_ctx

    def _embed_ids(self, text: str | bytes | Sequence[int]) -> list[int]:
        if not isinstance(text, (str, bytes)):
            return _ids(text)
        tokenizer = need_tokenizer(self.tokenizer, self.path)
        whole = not self.info.causal  # an encoder was trained on texts with both end marks
        return tokenizer.encode(text, bos=True if whole else None, eos=True if whole else None)

    def _template_of_model(self) -> ChatTemplate:
        if self._template is None:
            source = self.chat_template
            if source is None:
                raise UnsupportedError(
                    f"{self.path}: has no tokenizer.chat_template; give chat_template= or use "
                    "generate()"
                )
            from ruvllm.engine._chat import ChatTemplate

            t = need_tokenizer(self.tokenizer, self.path)
            self._template = ChatTemplate(
                source, bos_token=t.token_text(t.bos), eos_token=t.token_text(t.eos)
            )
        return self._template

    def _prompt(
        self, prompt: str | bytes | Sequence[int], options: dict[str, Any]
    ) -> tuple[list[int], str | None]:
        special = options.pop("special", False)
        bos = options.pop("bos", None)
        if not isinstance(prompt, (str, bytes)):
            return _ids(prompt), None
        text = prompt if isinstance(prompt, str) else prompt.decode("utf-8", "replace")
        return need_tokenizer(self.tokenizer, self.path).encode(prompt, bos, False, special), text

    def _render(
        self, messages: Sequence[Mapping[str, Any]], options: dict[str, Any]
    ) -> tuple[list[int], str]:
        from ruvllm.engine._chat import encode

        tools = options.pop("tools", None)
        args = options.pop("template_args", {})
        segments = self._template_of_model().render(messages, tools=tools, **args)
        tokenizer = need_tokenizer(self.tokenizer, self.path)
        ids = encode(segments, tokenizer)
        # A template that writes no begin token still gets the one the file asks for.
        if tokenizer.info["add_bos"] and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
            ids.insert(0, tokenizer.bos)
        return ids, "".join(text for text, _ in segments)

    def _constraint(self, options: dict[str, Any]) -> Constraint | None:
        kinds = ("json_schema", "json_object", "regex", "lark", "choices")
        given = {k: options.pop(k) for k in kinds if k in options}
        given = {k: v for k, v in given.items() if v is not None and v is not False}
        if not given:
            return None
        from ruvllm.engine._grammar import Constraint as Grammar
        from ruvllm.engine._vocab import ModelVocab

        if self._vocab is None:  # kept: the grammar library's copy of it is cached by identity
            tokenizer = need_tokenizer(self.tokenizer, self.path)
            self._vocab = ModelVocab(tokenizer, self.info.n_vocab)
        return Grammar(self._vocab, **given)

    def _prepare(
        self,
        ids: list[int],
        text: str | None,
        options: dict[str, Any],
        what: str,
        kv_tail: int | None = None,
    ) -> tuple[Reply, Record]:
        self._open()
        if not ids:
            raise ArgumentError("prompt: has no tokens, want at least 1")
        about = {k: options.pop(k, None) for k in ("session_id", "user_id", "tags")}
        constraint = self._constraint(options)
        try:
            params = SamplingParams(**options)
        except TypeError:
            known = {f.name for f in dataclasses.fields(SamplingParams)}
            wrong = sorted(set(options) - known)
            if not wrong:
                raise
            raise ArgumentError(f"{wrong[0]}: is not an option of {what}") from None
        record = self._recorder.recorder(
            text, params, constraint is not None, kv_tail=kv_tail, **about
        )
        return Reply(self.tokenizer, ids, params, constraint), record

    def _start(
        self, ids: list[int], text: str | None, stream: bool, options: dict[str, Any]
    ) -> GenerationResult | Generation:
        cancel = options.pop("cancel", None) or _core.Cancel()
        reply, record = self._prepare(ids, text, options, "generate")
        generation = Generation(self._open(), reply, n_ctx=self.n_ctx, cancel=cancel, record=record)
        return generation if stream else generation.run()


def _ids(tokens: Sequence[int]) -> list[int]:
    if isinstance(tokens, np.ndarray):
        return [int(t) for t in tokens.tolist()]
    try:
        return [int(t) if not isinstance(t, float) else _not_an_id(t) for t in tokens]
    except (TypeError, ValueError):
        raise ArgumentError(f"tokens: is {tokens!r:.60}, want text or a sequence of ids") from None


def _not_an_id(value: object) -> int:
    raise TypeError(value)


async def _off_loop(call: Callable[[], _T], cancel: _core.Cancel) -> _T:
    import asyncio  # 30 ms that only asynchronous callers pay

    task = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        cancel.set(True)
        await asyncio.wait([task])  # within one step: nothing goes on computing behind the caller
        if not task.cancelled():
            task.exception()
        raise


async def _async_chunks(
    start: Callable[[], Generation], cancel: _core.Cancel
) -> AsyncIterator[Chunk]:
    generation = await _off_loop(start, cancel)
    try:
        while (chunk := await _off_loop(lambda: next(generation, None), cancel)) is not None:
            yield chunk
    finally:
        generation.close()
