"""The conversations of an engine: a table by id, and what becomes of those that nobody asks.

    turn ──► busy ──ends──► warm ──parked──► on disk ──next turn──► busy
             its request    transcript in     transcript and keys and
             has a          memory, pages in  values in files: a few
             sequence       the prefix tree   hundred bytes in memory

Between turns a conversation has no sequence: its pages stand in the tree, where the next turn finds
them and others may push them out.  Before that happens they are written: the coldest conversation
goes when the memory for keys and values is nearly used up and half of what was to go before it has
gone.  All writing is done by the thread of the engine between two steps, a few milliseconds at a
time; what fails leaves the conversation as it was.

``_lock`` guards the table and the talks' fields; nothing is written under it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from ruvllm import _core
from ruvllm._errors import (
    ArgumentError,
    FormatError,
    NotFoundError,
    RuvllmError,
    StateError,
    UnsupportedError,
)
from ruvllm.engine._spill import SpillFolder
from ruvllm.engine._transcript import Transcript
from ruvllm.engine.results import GenerationResult

if TYPE_CHECKING:
    from ruvllm.engine.batching import Request

Tier = Literal["hot", "warm", "cold", "evicted"]

_log = logging.getLogger("ruvllm")
_SLICE_S = 0.02  # of writing between two steps
_PIECE = 4 << 20  # bytes at once
_PAGE_TOKENS = 16
_RETRY_S = 5.0  # after an error, before something is parked unasked
_USELESS = (FormatError, UnsupportedError, NotFoundError)  # such a file will be no better later


class Talk:
    """A conversation; small once it is parked."""

    __slots__ = (
        "busy", "closed", "id", "importance", "kv_tail", "last_used", "messages", "n_evictable",
        "n_evicted", "n_kept", "request", "salt", "tenant", "tokens", "user_id",
    )  # fmt: skip

    def __init__(
        self,
        id: str,
        user_id: str | None,
        tenant: str | int | None,
        salt: bytes,
        *,
        importance: str,
        kv_tail: int | None,
    ) -> None:
        self.id = id
        self.user_id = user_id
        self.tenant = tenant
        self.salt = salt
        self.importance = importance
        self.kv_tail = kv_tail  # None: the model's
        self.tokens: array[int] | None = None  # never changed, but replaced; None: on disk
        self.messages: list[dict[str, Any]] | None = None
        self.n_kept = 0  # tokens in the file of keys and values; 0: nobody knows
        self.request: Request | None = None  # of the turn under way
        self.busy = self.closed = False
        self.last_used = 0.0
        # Pages of the tree when the last turn ended: gone, and to go before its own.
        self.n_evicted = self.n_evictable = 0

    @property
    def scope(self) -> tuple[bytes, int]:
        """What its keys and values depend on besides model and tokens, as the core takes it."""
        return self.salt, self.kv_tail or 0


class _Order:
    """Somebody waits until a talk is parked; or nobody does."""

    def __init__(self, talk: Talk, asked: bool) -> None:
        self.talk = talk
        self.asked = asked
        self.over = threading.Event()
        self.error: Exception | None = None
        self.tokens = array("i")  # those that are written
        self.n_kept = self.n_bytes = 0


class Talks:
    """Conversations of one engine, with or without a folder."""

    def __init__(
        self,
        core: _core.Engine,
        model: _core.Model,
        about: tuple[str, str],
        folder: SpillFolder | None,
        *,
        park_after: float | None,
        step_bytes: int,
    ) -> None:
        self.folder = folder
        #: Has the thread of the engine look after this.
        self.wake: Callable[[], None] = lambda: None
        self._core = core
        self._model: _core.Model | None = model
        #: Digest and name of the model.
        self.about = about
        self._park_after = park_after
        self._step_bytes = step_bytes
        self._lock = threading.Lock()
        self._all: dict[str, Talk] = {}
        self._warm: OrderedDict[str, Talk] = OrderedDict()  # could be parked, the coldest first
        self._orders: deque[_Order] = deque()
        self._now: _Order | None = None  # being written
        self._retry = 0.0
        self._closed = False

    # -- the table ----------------------------------------------------------------------------

    def open(
        self,
        name: str,
        user_id: str | None,
        tenant: str | int | None,
        salt: bytes | None,
        *,
        importance: str | None,
        tail: Callable[[str], int | None],
    ) -> Talk:
        """The conversation of that id, open already, in the folder, or new.

        tail: the kv_tail of a new one, by its importance.
        """
        talk = self._all.get(name)
        if talk is None:
            with self._lock:
                talk = self._all.get(name)
                if talk is None:
                    level = importance or "normal"
                    self._all[name] = talk = Talk(
                        name, user_id, tenant, salt or b"", importance=level, kv_tail=tail(level)
                    )
                    if self.folder is None or not os.path.exists(self.folder.transcript(name)):
                        talk.tokens, talk.messages = array("i"), []
                    return talk
        for what, here, want in (
            ("user_id", talk.user_id, user_id),
            ("tenant", talk.tenant, tenant),
            ("salt", talk.salt, salt),
            ("importance", talk.importance, importance),
        ):
            if want is not None and want != here:
                raise ArgumentError(f"{what}: is not the one session {name} was opened with")
        return talk

    def counts(self) -> tuple[int, int]:
        """Conversations that are open, and those of them that are on disk only."""
        with self._lock:
            return len(self._all), sum(t.tokens is None for t in self._all.values())

    def remove(self, talk: Talk) -> None:
        """Forget a conversation and its files."""
        with self._lock:
            talk.closed = True
            if self._all.get(talk.id) is not talk:
                return
            del self._all[talk.id]
            self._warm.pop(talk.id, None)
            if self.folder is not None:
                self.folder.forget(talk.id)

    # -- turns --------------------------------------------------------------------------------

    def read(self, talk: Talk) -> tuple[array[int], list[dict[str, Any]]]:
        """Tokens and messages, from the disk if they are there.

        Raises NotFoundError, FileError, FormatError, ArgumentError for a transcript that is not
        what it was.
        """
        tokens, messages = talk.tokens, talk.messages
        if tokens is not None and messages is not None:
            return tokens, messages
        assert self.folder is not None
        path = self.folder.transcript(talk.id)
        transcript = Transcript.read(path, *self.about)
        if transcript.session_id != talk.id:
            raise FormatError(f"{path}: is of session {transcript.session_id}, want {talk.id}")
        if talk.user_id is None:
            talk.user_id = transcript.user_id
        try:
            return array("i", transcript.tokens), transcript.messages
        except OverflowError:
            raise FormatError(f"{path}: tokens holds something else than ids") from None

    def begin(self, talk: Talk) -> None:
        """Have the conversation for a turn, until ``leave`` or ``ended``; it is in memory.

        Raises StateError while another turn is under way; what ``read`` raises.
        """
        with self._lock:
            if talk.closed:
                raise StateError(f"session {talk.id}: is closed")
            if talk.busy:
                raise StateError(f"session {talk.id}: its last turn has not ended")
            talk.busy = True
            self._warm.pop(talk.id, None)
        try:
            if self.folder is not None:
                self.folder.pin(talk.id, True)
            tokens, messages = self.read(talk)
        except BaseException:
            self.leave(talk)
            raise
        with self._lock:
            talk.tokens, talk.messages = tokens, messages

    def leave(self, talk: Talk) -> None:
        """The turn has ended, or never began."""
        if self.folder is not None:
            self.folder.pin(talk.id, False)
        with self._lock:
            model = self._model
            talk.busy, talk.request = False, None
            talk.last_used = time.monotonic()
            if self.folder is None or talk.closed or not talk.tokens or model is None:
                return
            kv = model.kv_stats()
            talk.n_evicted = kv["n_evicted"]
            talk.n_evictable = max(0, kv["n_evictable"] - len(talk.tokens) // _PAGE_TOKENS)
            self._warm[talk.id] = talk

    def restore(self, talk: Talk) -> tuple[bytes, int] | None:
        """The file of its keys and values and how many tokens are in it, if there is one."""
        if self.folder is None or not self.folder.has_pages(talk.id):
            return None
        n = talk.n_kept or len(talk.tokens or ())
        return os.fsencode(self.folder.pages(talk.id)), n

    def ended(
        self,
        talk: Talk,
        result: GenerationResult,
        messages: list[dict[str, Any]] | None,
        lost: Exception | None,
    ) -> None:
        """A turn has ended: what it said belongs to the conversation, if it said something."""
        if lost is not None:
            _log.warning("session %s: %s; it is computed again", talk.id, lost)
            if self.folder is not None and isinstance(lost, _USELESS):
                self.folder.drop_pages(talk.id)
        said = result.tokens or result.finish_reason in ("stop", "length")
        with self._lock:
            if result.restored_tokens and not talk.n_kept:
                talk.n_kept = result.restored_tokens
            if said and result.finish_reason != "error":
                old = talk.tokens or array("i")
                talk.tokens = array("i", (*result.prompt_tokens, *result.tokens))
                if talk.tokens[: len(old)] != old:  # a template that says the past otherwise
                    talk.n_kept = 0
                if messages is not None:
                    talk.messages = [*messages, {"role": "assistant", "content": result.text}]
        self.leave(talk)

    def tier(self, talk: Talk) -> Tier:
        """Where its keys and values are."""
        tokens = talk.tokens
        if talk.busy:
            return "hot"
        if tokens and self._core.peek(tokens, *talk.scope):
            return "warm"
        if self.folder is not None and self.folder.has_pages(talk.id):
            return "cold"
        return "evicted"

    # -- parking: from any thread --------------------------------------------------------------

    def park(self, talk: Talk) -> None:
        """Have it written, and wait for that.  Raises StateError, and what went wrong."""
        if self.folder is None:
            raise StateError("engine: has no spill_dir to park sessions in")
        with self._lock:
            self._check_idle(talk)
            if self._closed:
                raise StateError("engine: is closed")
            order = _Order(talk, True)
            self._orders.append(order)
        self.wake()
        order.over.wait()
        if order.error is not None:
            raise order.error

    def _check_idle(self, talk: Talk) -> None:
        if talk.closed:
            raise StateError(f"session {talk.id}: is closed")
        if talk.busy:
            raise StateError(f"session {talk.id}: has a turn under way, want it idle")

    # -- parking: the thread of the engine ------------------------------------------------------

    def left(self) -> float | None:
        """Seconds until there is something to do; None: nobody knows of anything."""
        with self._lock:
            if self._now is not None or self._orders:
                return 0.0
            if self._park_after is None or not self._warm:
                return None
            first = next(iter(self._warm.values()))
            return max(0.0, max(first.last_used + self._park_after, self._retry) - time.monotonic())

    def run(self) -> None:
        """Write for a few milliseconds, if something is to be written."""
        until = time.monotonic() + _SLICE_S
        while self._now is not None or self._begin():
            self._go_on(_PIECE)
            if time.monotonic() >= until:
                return

    def close(self) -> None:
        """Write all that is in memory only; the folder is free for others."""
        with self._lock:
            self._closed = True
            orders = [_Order(t, False) for t in self._warm.values()]
        if self.folder is not None:
            while self._now is not None or self._start(orders):
                self._go_on(2**63)
            self.folder.close()
        with self._lock:
            late, self._model = list(self._orders), None
            self._orders.clear()
        for order in late:
            order.error = StateError("engine: is closed")
            order.over.set()
        self.wake = lambda: None

    def disown(self) -> None:
        """In a forked process: the folder is the parent's."""
        if self.folder is not None:
            self.folder.close()

    def _begin(self) -> bool:
        with self._lock:
            orders = [self._orders.popleft()] if self._orders else []
            if not orders and (talk := self._due()) is not None:
                orders = [_Order(talk, False)]
        return self._start(orders)

    def _due(self) -> Talk | None:
        now = time.monotonic()
        if not self._warm or now < self._retry:
            return None
        talk = next(iter(self._warm.values()))
        if self._park_after is not None and now - talk.last_used >= self._park_after:
            return talk
        return talk if self._is_crowded(talk) else None

    def _is_crowded(self, talk: Talk) -> bool:
        assert self._model is not None
        kv, memory = self._model.kv_stats(), self._model.memory()
        assert memory is not None  # it generates
        budget, others = kv["budget_bytes"], memory.stats()["used"] - kv["held_bytes"]
        cushion = max(budget // 32, min(self._step_bytes, budget // 4))
        if budget - kv["used_bytes"] - others >= cushion:
            return False
        return kv["n_evicted"] - talk.n_evicted >= talk.n_evictable // 2

    def _start(self, orders: list[_Order]) -> bool:
        """Begin with the first of them, which is taken out; False: there is none."""
        if not orders:
            return False
        order = orders.pop(0)
        talk = order.talk
        self._now = order
        try:
            with self._lock:
                if order.asked:
                    self._check_idle(talk)
                tokens, messages = talk.tokens, talk.messages
                idle = not (talk.busy or talk.closed)
            if idle and tokens is not None and messages is not None:
                order.tokens = tokens
                self._write(order, messages)
            else:  # it is on disk already, or not idle any more
                self._finish(None)
        except Exception as e:
            self._finish(e)
        return True

    def _write(self, order: _Order, messages: list[dict[str, Any]]) -> None:
        """The transcript, and begin with the rest, unless a file has as much of it."""
        assert self.folder is not None
        talk, tokens = order.talk, order.tokens
        transcript = Transcript(*self.about, talk.id, talk.user_id, messages, list(tokens))
        transcript.write(self.folder.transcript(talk.id))
        n_kept = talk.n_kept if self.folder.has_pages(talk.id) else 0
        if tokens and self._core.peek(tokens, *talk.scope) > n_kept:
            path = os.fsencode(self.folder.pages(talk.id))
            order.n_kept, order.n_bytes = self._core.park(path, tokens, *talk.scope)

    def _go_on(self, n_bytes: int) -> None:
        if self._now is None:
            return
        try:
            if self._core.park_more(n_bytes):
                self._finish(None)
        except Exception as e:
            self._finish(e)

    def _finish(self, error: Exception | None) -> None:
        order, self._now = self._now, None
        assert order is not None and self.folder is not None
        talk = order.talk
        if order.n_kept and error is None:
            self.folder.wrote_pages(talk.id, order.n_bytes)
        with self._lock:
            if error is None and order.n_kept:
                talk.n_kept = order.n_kept
            parked = error is None and not talk.busy and talk.tokens is order.tokens
            if parked:
                talk.tokens = talk.messages = None
                talk.last_used = talk.n_evicted = talk.n_evictable = 0
                self._warm.pop(talk.id, None)
                alone = not any(_begins(order.tokens, talk, t) for t in self._warm.values())
            elif error is not None and not order.asked:
                self._retry = time.monotonic() + _RETRY_S
            if talk.closed and talk.id not in self._all:
                self.folder.forget(talk.id)
        try:
            if parked and alone:
                self._core.forget(order.tokens, *talk.scope)
        except RuvllmError as e:
            error = e
        if error is not None and not order.asked:
            _log.warning("session %s: is not parked: %s", talk.id, error)
        order.error = error
        order.over.set()


def _begins(tokens: array[int], talk: Talk, other: Talk) -> bool:
    """Whether all that another one has said is the beginning of these tokens of a talk."""
    said = other.tokens
    if not said or len(said) > len(tokens) or said[-1] != tokens[len(said) - 1]:
        return False
    return other.scope == talk.scope and said == tokens[: len(said)]
