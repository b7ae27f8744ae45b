"""From a finished generation to its entry in the witness log, and back: what replay needs.

Recording happens after the reply and only hands the entry over; when the log cannot be opened
(a read-only home, say) the reply stands, a warning says so once, and ``witness_id`` is None."""

from __future__ import annotations

import dataclasses
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ruvllm import _core
from ruvllm._errors import ArgumentError, RuvllmError, UnsupportedError
from ruvllm.engine._params import SamplingParams
from ruvllm.engine.results import GenerationResult
from ruvllm.memory.witness import WitnessEntry, WitnessLog, default_log, model_digest

if TYPE_CHECKING:
    from ruvllm.engine.model import Model


#: Records a result (and the error that ended it), gives the id of the entry, or None.
Record = Callable[[GenerationResult, RuvllmError | None], str | None]


class Recorder:
    """Writes the entries of one model."""

    def __init__(self, model: Model, witness: bool | WitnessLog) -> None:
        if not isinstance(witness, (bool, WitnessLog)):
            raise ArgumentError(f"witness: is {witness!r}, want True, False or a WitnessLog")
        self._witness = witness
        self._lock = threading.Lock()
        self._warned = False
        self._path = model.path
        self._info = model.info
        self._n_ctx = model.n_ctx
        self._kv_store = model._kv_store

    def recorder(
        self,
        prompt_text: str | None,
        params: SamplingParams,
        constrained: bool,
        *,
        session_id: str | None,
        user_id: str | None,
        tags: Sequence[str] | None,
        kv_tail: int | None = None,
    ) -> Record:
        """A function that records one result and returns the entry's id, or None.

        kv_tail: instead of the model's.
        """

        def record(result: GenerationResult, error: RuvllmError | None) -> str | None:
            log = self._log()
            if log is None:
                return None
            entry = self._entry(result, prompt_text, params, constrained)
            entry = dataclasses.replace(
                entry,
                session_id=session_id,
                user_id=user_id,
                tags=None if tags is None else tuple(tags),
                error=None if error is None else _error(error),
                engine={
                    **(entry.engine or {}),
                    **({} if kv_tail is None else {"kv_tail": kv_tail}),
                },
            )
            try:
                return log.record(entry)
            except RuvllmError as e:
                self._warn(e)
                return None

        return record

    def _log(self) -> WitnessLog | None:
        if isinstance(self._witness, WitnessLog):
            return self._witness
        if not self._witness:
            return None
        try:
            return default_log()
        except (RuvllmError, OSError) as e:
            self._warn(e)
            return None

    def _warn(self, error: Exception) -> None:
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            warnings.warn(
                f"the witness log takes no entries: {error}", RuntimeWarning, stacklevel=2
            )

    def _entry(
        self,
        result: GenerationResult,
        prompt_text: str | None,
        params: SamplingParams,
        constrained: bool,
    ) -> WitnessEntry:
        info, t = self._info, result.timings
        return WitnessEntry(
            kind="generate",
            model_name=info.name or None,
            model_path=self._path,
            prompt_text=prompt_text,
            prompt_ids=result.prompt_tokens,
            output_text=result.text,
            output_ids=result.tokens,
            seed=result.seed,
            params={**params.to_dict(), "seed": result.seed, "constrained": constrained},
            routing={
                "model": info.name or None,
                "context_size": self._n_ctx,
                "temperature": params.temperature,
                "top_p": params.top_p,
                "confidence": None,
                "model_probs": None,
            },
            propensity=1.0,  # there was no choice of models
            prefill_ms=t.prefill_ms,
            generation_ms=t.generation_ms,
            total_ms=t.total_ms,
            finish_reason=result.finish_reason,
            n_prompt=t.n_prompt,
            n_output=t.n_generated,
            engine={
                "version": _core.version,
                "features": _core.cpu()["features"],
                "n_threads": info.n_threads,
                "n_batch": info.n_batch,
                "kv_type": info.kv_type,
                "numerics": info.numerics,
                "n_ctx": self._n_ctx,
                **self._kv_store,
            },
        )


def _error(e: RuvllmError) -> dict[str, Any]:
    return {
        "code": type(e).__name__,
        "message": str(e),
        "stack_trace": "".join(traceback.format_exception(e)),
        "recovery_attempted": False,
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Replay:
    """What a replay found.

    same: the tokens are those of the entry, all of them.  first_difference: index of the first
    that is not, or None.  same_model: the file at the path still has the entry's digest.
    same_numerics: both runs were exact, or both fast.
    """

    entry_id: str
    same: bool
    first_difference: int | None
    same_model: bool
    same_numerics: bool
    expected: tuple[int, ...]
    found: tuple[int, ...]


def replay(entry: WitnessEntry, model: Model) -> Replay:
    """Run the request of an entry again, with its seed and parameters.

    model: the model to run it on, normally ``Model(entry.model_path, witness=False)``, with the
    ``numerics`` of the entry's engine.
    Raises UnsupportedError when the entry lacks what a replay needs.
    """
    if entry.prompt_ids is None or entry.output_ids is None or entry.params is None:
        raise UnsupportedError(f"witness entry {entry.id}: holds no token ids, cannot be replayed")
    params: dict[str, Any] = dict(entry.params)
    if params.get("constrained"):
        raise UnsupportedError(
            f"witness entry {entry.id}: was constrained by a grammar, which the log does not hold"
        )
    expected = tuple(entry.output_ids)
    kept = SamplingParams.from_dict(params)
    # A reply that was cut short is compared as far as it went.
    options = {f.name: getattr(kept, f.name) for f in dataclasses.fields(kept)}
    if entry.finish_reason in ("cancelled", "deadline", "error"):
        options["max_tokens"] = len(expected)
    found = model.generate(entry.prompt_ids, **options).tokens
    differ = [i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b]
    first = differ[0] if differ else None
    if first is None and len(expected) != len(found):
        first = min(len(expected), len(found))
    return Replay(
        entry_id=entry.id or "",
        same=first is None,
        first_difference=first,
        same_model=entry.model_digest is None or model_digest(model.path) == entry.model_digest,
        same_numerics=(entry.engine or {}).get("numerics", "exact") == model.info.numerics,
        expected=expected,
        found=found,
    )
