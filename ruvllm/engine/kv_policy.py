"""How much of its past a sequence keeps in full precision: by who it is and how full memory is.

    rules = [
        ruvllm.KVRule(tail=None, importance="critical"),      # all of it
        ruvllm.KVRule(tail=64, pressure=0.8),                 # when memory is short
        ruvllm.KVRule(tail=1024, importance=("high", "normal")),
    ]
    model = ruvllm.Model("model.gguf", kv_store="q8_0")
    engine = ruvllm.Engine(model, kv_policy=rules)

A sequence has its tail from its beginning on, so what is computed of it never depends on what
happens to the memory later; the witness log has the tail, and a replay uses it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final, Literal

from ruvllm._errors import ArgumentError
from ruvllm.engine._params import check_one_of, check_whole

Importance = Literal["low", "normal", "high", "critical"]

IMPORTANCES: Final = ("low", "normal", "high", "critical")
BLOCK: Final = 64  # positions; a tail is made of whole ones
_MOST: Final = 2**31 - BLOCK


@dataclasses.dataclass(frozen=True, slots=True)
class KVRule:
    """How long the tail in ``kv_type`` is, for whom and when.

    tail: newest positions that do not move to the model's ``kv_store``, a multiple of 64; None:
    none ever moves.
    importance: of a conversation, or the priority of a request; one or several; None: any.
    pressure: from this share of the budget on, 0 .. 1, that is held for sequences under way (or by
    others of a shared budget) when the sequence begins; what could be given up does not count.

    Raises ArgumentError.
    """

    tail: int | None
    importance: Importance | Sequence[Importance] | None = None
    pressure: float = 0.0

    def __post_init__(self) -> None:
        if self.tail is not None:
            check_whole("tail", self.tail, BLOCK, _MOST)
            if self.tail % BLOCK:
                raise ArgumentError(f"tail: is {self.tail}, want a multiple of {BLOCK}, or None")
        for name in self._names() or ():
            check_one_of("importance", name, IMPORTANCES)
        p = self.pressure
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
            raise ArgumentError(f"pressure: is {p!r}, want 0 .. 1")

    def holds(self, importance: str, pressure: float) -> bool:
        """Whether it is for a sequence of that importance that begins at that pressure."""
        names = self._names()
        return pressure >= self.pressure and (names is None or importance in names)

    def _names(self) -> Sequence[str] | None:
        return (self.importance,) if isinstance(self.importance, str) else self.importance


def check_rules(rules: Sequence[KVRule], kv_store: str | None) -> tuple[KVRule, ...]:
    """The rules of an engine.  Raises ArgumentError."""
    for rule in rules:
        if not isinstance(rule, KVRule):
            raise ArgumentError(f"kv_policy: holds {rule!r:.80}, want KVRule")
    if rules and kv_store is None:
        raise ArgumentError("kv_policy: the model has no kv_store, want one that positions move to")
    return tuple(rules)


def tail_for(rules: Sequence[KVRule], importance: str, pressure: float, n_ctx: int) -> int | None:
    """The tail by the first rule that holds; None: by none, it is the model's."""
    for rule in rules:
        if rule.holds(importance, pressure):
            return -(-n_ctx // BLOCK) * BLOCK if rule.tail is None else rule.tail
    return None
