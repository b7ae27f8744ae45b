"""The verdicts of ``check_kv``, remembered per model file and kind of store.

Owns ``<home>/kv_check.json`` and what a verdict means.  The idea to hold: 8 bits lose next to
nothing with any model, 4 bits ruin some, and nobody can tell which without trying; so a model that
was tried and failed is refused, and one that was not tried is said to be unchecked.

    {"version": 1, "entries": {"sha256:<hex>|q4_0|rotated": {"perplexity_change": 3.1, ...}}}

No digest is computed unless the file has a verdict for a model of the same size.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from ruvllm._errors import RuvllmError, UnsupportedError
from ruvllm._paths import home
from ruvllm.engine._entries import BROKEN, put_entry, read_entries
from ruvllm.engine._notice import notice_once
from ruvllm.memory.witness import model_digest

_log = logging.getLogger("ruvllm")

GATED: Final = ("k8v4", "q4_0")
"""Stores that ask for a verdict."""

LIMIT: Final = 1.5
"""Percent by which a store may raise the perplexity of a model."""

Gate = Literal["passed", "failed", "unchecked"]


def gate_path() -> Path:
    """The file; it need not exist."""
    return home() / "kv_check.json"


def remember(path: str, kv_store: str, kv_rotate: bool, entry: Mapping[str, Any]) -> Path:
    """Keep a verdict for a model file: at least perplexity_change, percent.  Returns where.

    Raises NotFoundError and FileError.
    """
    key = _key(model_digest(path), kv_store, kv_rotate)
    put_entry(gate_path(), key, {"n_bytes": os.path.getsize(path), **entry})
    return gate_path()


def gate(path: str, kv_store: str | None, kv_rotate: bool, refuse: bool) -> Gate | None:
    """What is known of a store for a model file; None: that store needs no verdict.

    refuse: raise UnsupportedError for one that failed, and say in the log that one is unchecked.
    """
    if kv_store not in GATED:
        return None
    change = _remembered(path, kv_store, kv_rotate)
    if change is None:
        if refuse:
            notice_once(
                f"kv_store: what {kv_store} costs {path} is unchecked; "
                f"ruvllm kv-check {path} --store {kv_store} tries it"
            )
        return "unchecked"
    if change <= LIMIT:
        return "passed"
    if refuse:
        raise UnsupportedError(
            f"kv_store: {kv_store}{'' if kv_rotate else ' without kv_rotate'} raises the "
            f"perplexity of {path} by {change:.2f} %, want at most {LIMIT} %; kv_gate=False takes "
            "it anyway"
        )
    return "failed"


def _remembered(path: str, kv_store: str, kv_rotate: bool) -> float | None:
    """The change of perplexity, percent; None: there is no verdict that can be used."""
    try:
        file = gate_path()
    except RuntimeError:  # there is no home folder
        return None
    try:
        entries = read_entries(file)
        size = os.path.getsize(path) if entries else 0
        if not any(e["n_bytes"] == size for e in entries.values()):
            return None
        entry = entries.get(_key(model_digest(path), kv_store, kv_rotate))
        if entry is None:
            return None
        change = entry["perplexity_change"]
        if type(change) not in (int, float):
            raise TypeError(f"perplexity_change is {change!r:.40}, want a number")
        return float(change)
    except (OSError, RuvllmError):
        return None  # the model cannot be read: opening it says so
    except BROKEN as e:
        _log.warning("%s: ignored: %s", file, e)
        return None


def _key(digest: str, kv_store: str, kv_rotate: bool) -> str:
    return f"{digest}|{kv_store}|{'rotated' if kv_rotate else 'plain'}"
