"""Sampling parameters: one typed record, from keyword arguments to the core's sampler and to the
witness log.  Ranges are checked in the core; types and what only Python knows are checked here."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Collection, Mapping
from typing import Any

from ruvllm import _core
from ruvllm._errors import ArgumentError
from ruvllm.engine._stream import check_stops


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a token is chosen from the logits; the fields are those of ``Model.generate``."""

    max_tokens: int | None = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_whole("max_tokens", self.max_tokens, 0, 2**31 - 1)
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbits(63))
        check_whole("seed", self.seed, 0, 2**64 - 1)
        check_whole("top_k", self.top_k, 0, 2**31 - 1)
        check_whole("penalty_last_n", self.penalty_last_n, -1, 2**31 - 1)
        if self.logprobs is not None:
            check_whole("logprobs", self.logprobs, 0, 100)
        for name in ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty",
                     "frequency_penalty", "presence_penalty"):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ArgumentError(f"{name}: is {value!r}, want a number")
        object.__setattr__(self, "stop", tuple(check_stops(self.stop)))
        if not isinstance(self.logit_bias, Mapping):
            raise ArgumentError(f"logit_bias: is {self.logit_bias!r}, want a mapping of id to bias")

    def core(self) -> _core._SampleParams:
        """The arguments of the core's samplers, whose ranges it checks."""
        ids = [int(i) for i in self.logit_bias]
        bias = [float(b) for b in self.logit_bias.values()]
        assert self.seed is not None
        return (
            self.temperature, self.top_k, self.top_p, self.min_p, self.typical_p,
            self.repeat_penalty, self.frequency_penalty, self.presence_penalty,
            self.penalty_last_n, self.seed, ids, bias,
            -1 if self.logprobs is None else self.logprobs,
        )  # fmt: skip

    def sampler(self, n_vocab: int) -> _core.Sampler:
        """A sampler of the core; ArgumentError names what is out of range."""
        return _core.sampler_new(*self.core(), n_vocab)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for the witness log; ``from_dict`` reads them back."""
        out = dataclasses.asdict(self)
        out["stop"] = list(self.stop)
        out["logit_bias"] = {str(k): v for k, v in self.logit_bias.items()}
        return out

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> SamplingParams:
        """The parameters that ``to_dict`` wrote."""
        names = {f.name for f in dataclasses.fields(cls)}
        known = {k: v for k, v in d.items() if k in names}
        known["logit_bias"] = {int(k): v for k, v in d.get("logit_bias", {}).items()}
        known["stop"] = tuple(d.get("stop", ()))
        return cls(**known)


def check_whole(name: str, value: object, lo: int, hi: int) -> None:
    """Raise ArgumentError unless ``value`` is an int, and no bool, of lo .. hi."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentError(f"{name}: is {value!r}, want an integer {lo} .. {hi}")
    if not lo <= value <= hi:
        raise ArgumentError(f"{name}: is {value}, want {lo} .. {hi}")


def check_one_of(name: str, value: object, known: Collection[str | None]) -> None:
    """Raise ArgumentError unless ``value`` is one of ``known``."""
    if not (value is None or isinstance(value, str)) or value not in known:
        raise ArgumentError(f"{name}: is {value!r}, want one of {', '.join(map(str, known))}")
